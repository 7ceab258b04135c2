//! Groups of an HDF5 file by their path.

use hdf5::Group;
use hdf5::plist::group_create::{LinkCreationOrder, LinkPhaseChange};

/// Largest number of compact links and attributes that HDF5 allows, more than any group or dataset has.
pub(super) const MOST: u32 = 65_535;

/// Opens the group `path` and creates it if it is missing. Groups keep the order in which their members were written.
///
/// Members and attributes lie in the group's header, which has a checksum. By default HDF5 moves more than 8 of them to a
/// heap whose blocks have none, and the library crashes on a damaged heap.
pub(super) fn group(root: &Group, path: &str) -> hdf5::Result<Group> {
    let mut group = root.clone();
    for name in path.split('/') {
        group = if group.link_exists(name) {
            group.group(name)?
        } else {
            group
                .create_group_builder()
                .with_gcpl(|plist| {
                    let compact = LinkPhaseChange { max_compact: MOST, min_dense: MOST };
                    let plist = plist.link_creation_order(LinkCreationOrder::Indexed).link_phase_change(compact);
                    plist.attr_phase_change(MOST, MOST)
                })
                .create(name)?
        };
    }
    Ok(group)
}

/// Whether `path` exists below `root`. Checked level by level, since HDF5 treats a missing parent as an error.
pub(super) fn exists(root: &Group, path: &str) -> bool {
    let parents = path.match_indices('/').map(|(end, _)| &path[..end]);
    parents.chain([path]).all(|path| root.link_exists(path))
}

#[cfg(test)]
mod tests {
    use super::super::atomic::Temporary;
    use super::*;

    #[test]
    fn no_group_of_a_file_has_its_members_in_a_heap() {
        let folder = tempfile::tempdir().unwrap();
        let file = Temporary::write(&folder.path().join("run.h5"), None, |root| {
            (0..20).try_for_each(|number| group(root, &format!("table{number}")).map(drop))?;
            (0..20).try_for_each(|number| group(root, &format!("table0/part{number}")).map(drop))
        });
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        // Signature of a fractal heap: HDF5 File Format Specification, III.G.
        assert!(!bytes.windows(4).any(|word| word == b"FRHP"));
        let text = |text: &str| bytes.windows(text.len()).any(|word| word == text.as_bytes());
        assert!(text("table19") && text("part19"));
    }
}
