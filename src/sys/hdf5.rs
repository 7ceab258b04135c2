//! Calls of HDF5 that hdf5-metno does not bind.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ::hdf5;

// HDF5's high-level library, of which hdf5-metno binds nothing, and calls without which a file cannot be made with these properties. A
// `dataset.id()` of another type than this (HDF5 1.8 had 32 bits) does not compile.
unsafe extern "C" {
    fn H5DSset_scale(dataset: i64, name: *const libc::c_char) -> libc::c_int;
    fn H5DSattach_scale(dataset: i64, scale: i64, axis: libc::c_uint) -> libc::c_int;
    fn H5Pset_link_phase_change(plist: i64, max_compact: libc::c_uint, min_dense: libc::c_uint) -> libc::c_int;
    fn H5Fcreate(name: *const libc::c_char, flags: libc::c_uint, create: i64, access: i64) -> i64;
    fn H5Fclose(file: i64) -> libc::c_int;
    fn H5Lunregister(class: libc::c_int) -> libc::c_int;
}

/// Disables HDF5's external links in this process: links that point to another file cannot be opened afterwards.
pub fn refuse_external_links() {
    /// `H5L_TYPE_EXTERNAL`.
    const EXTERNAL: libc::c_int = 64;
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: takes a number, and `sync` keeps other threads out of the library. It fails only if there is no such class.
    ONCE.call_once(|| hdf5::sync::sync(|| _ = unsafe { H5Lunregister(EXTERNAL) }));
}

/// Makes an empty file in the place of `path`, in whose first group up to `most` members lie in the group's header: hdf5-metno sets that
/// for other groups alone, and drops it from the properties of a file.
///
/// # Errors
/// Returns HDF5's error, or one that names a path with a zero byte.
pub fn create_file(
    path: &Path,
    create: &hdf5::plist::FileCreate,
    access: &hdf5::plist::FileAccess,
    most: u32,
) -> hdf5::Result<()> {
    /// `H5F_ACC_TRUNC`.
    const TRUNCATE: libc::c_uint = 2;
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{path:?} is no path of a file"))?;
    // SAFETY: both handles are open as long as the references live, the name ends in a 0 and outlives the call, and `sync` keeps
    // other threads out of the library. The file is closed once, if there is one.
    hdf5::sync::sync(|| unsafe {
        hdf5_status(H5Pset_link_phase_change(create.id(), most, most))?;
        match H5Fcreate(name.as_ptr(), TRUNCATE, create.id(), access.id()) {
            file if file < 0 => hdf5_status(-1),
            file => hdf5_status(H5Fclose(file)),
        }
    })
}

/// Makes `dataset` an HDF5 dimension scale, the coordinate of the dimension `name`.
///
/// # Errors
/// Returns HDF5's error, or one that names a `name` with a zero byte.
pub fn set_dimension_scale(dataset: &hdf5::Dataset, name: &str) -> hdf5::Result<()> {
    let name = CString::new(name).map_err(|_| format!("{name:?} is no name for a dimension"))?;
    // SAFETY: the handle is open as long as `dataset` lives, the name ends in a 0 and outlives the call, and `sync`
    // keeps other threads out of the library.
    hdf5::sync::sync(|| hdf5_status(unsafe { H5DSset_scale(dataset.id(), name.as_ptr()) }))
}

/// Attaches the dimension scale `scale` to `axis` of `dataset`.
///
/// # Errors
/// Returns HDF5's error.
pub fn attach_dimension_scale(dataset: &hdf5::Dataset, scale: &hdf5::Dataset, axis: u32) -> hdf5::Result<()> {
    // SAFETY: both handles are open as long as the references live, and `sync` keeps other threads out of the library.
    hdf5::sync::sync(|| hdf5_status(unsafe { H5DSattach_scale(dataset.id(), scale.id(), axis) }))
}

fn hdf5_status(status: libc::c_int) -> hdf5::Result<()> {
    if status < 0 { Err(hdf5::Error::query()?) } else { Ok(()) }
}
