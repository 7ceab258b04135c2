//! Writers for arrays and attributes. Errors are HDF5's; the caller adds the file.

use hdf5::DatasetBuilderEmpty;
use hdf5::types::VarLenUnicode;
use hdf5::{Dataset, Group, H5Type, Location};

use super::groups::MOST;
use super::schema::CHUNK_ELEMENTS;
use super::{Attribute, Values};

/// Writes a dataset of numbers in chunks with one checksum each; a scalar within the object header, which has a checksum.
pub(super) fn write_numbers<T: H5Type>(
    group: &Group,
    name: &str,
    shape: &[usize],
    values: &[T],
) -> hdf5::Result<Dataset> {
    check(name, shape, values.len())?;
    let builder = builder::<T>(group);
    let dataset = if shape.is_empty() {
        builder.layout(hdf5::dataset::Layout::Compact).shape(()).create(name)?
    } else if values.is_empty() {
        builder.shape(shape.to_vec()).create(name)?
    } else {
        builder.chunk(chunk_of(shape)).fletcher32().shape(shape.to_vec()).create(name)?
    };
    if !values.is_empty() {
        dataset.write_raw(values)?;
    }
    Ok(dataset)
}

/// Makes a dataset whose attributes stay in its header, which has a checksum, as those of [`group`](super::groups::group) do.
fn builder<T: H5Type>(group: &Group) -> DatasetBuilderEmpty {
    group.new_dataset_builder().with_dcpl(|plist| plist.attr_phase_change(MOST, MOST)).empty::<T>()
}

/// Writes a dataset of variable-length UTF-8.
pub(super) fn write_texts(group: &Group, name: &str, shape: &[usize], texts: &[String]) -> hdf5::Result<Dataset> {
    check(name, shape, texts.len())?;
    let dataset = builder::<VarLenUnicode>(group).shape(shape.to_vec()).create(name)?;
    if !texts.is_empty() {
        dataset.write_raw(&variable_length(texts)?)?;
    }
    Ok(dataset)
}

/// Writes the values of a column.
pub(super) fn write_values(group: &Group, name: &str, shape: &[usize], values: &Values) -> hdf5::Result<Dataset> {
    match values {
        Values::F64(values) => write_numbers(group, name, shape, values),
        Values::F32(values) => write_numbers(group, name, shape, values),
        Values::I64(values) => write_numbers(group, name, shape, values),
        Values::Text(texts) => write_texts(group, name, shape, texts),
    }
}

/// Writes an attribute of a group or dataset. An empty list is left out: R's packages read no attribute at all of a group that
/// has one of length zero.
pub(super) fn write_attribute(place: &Location, name: &str, value: &Attribute) -> hdf5::Result<()> {
    fn array<T: H5Type>(place: &Location, name: &str, values: &[T]) -> hdf5::Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        place.new_attr::<T>().shape([values.len()]).create(name)?.write_raw(values)
    }
    match value {
        Attribute::Text(text) => {
            let text = variable_length(std::slice::from_ref(text))?.remove(0);
            place.new_attr::<VarLenUnicode>().create(name)?.write_scalar(&text)
        }
        Attribute::Int(value) => place.new_attr::<i64>().create(name)?.write_scalar(value),
        Attribute::Float(value) => place.new_attr::<f64>().create(name)?.write_scalar(value),
        Attribute::Ints(values) => array(place, name, values),
        Attribute::Floats(values) => array(place, name, values),
        Attribute::Texts(texts) => array(place, name, &variable_length(texts)?),
    }
}

/// Writes several attributes.
pub(super) fn write_attributes(place: &Location, attributes: &[(String, Attribute)]) -> hdf5::Result<()> {
    attributes.iter().try_for_each(|(name, value)| write_attribute(place, name, value))
}

fn variable_length(texts: &[String]) -> hdf5::Result<Vec<VarLenUnicode>> {
    let convert = |text: &String| text.parse().map_err(|error| format!("{text:?}: {error}").into());
    texts.iter().map(convert).collect()
}

fn check(name: &str, shape: &[usize], values: usize) -> hdf5::Result<()> {
    if name.is_empty() || name == "." || name.contains('/') {
        return Err(format!("{name:?} is no name for a dataset").into());
    }
    if shape.iter().product::<usize>() != values {
        return Err(format!("{name}: {values} values for shape {shape:?}").into());
    }
    Ok(())
}

/// Shape of chunks with at most [`CHUNK_ELEMENTS`] elements, with whole last axes and about equally full (a chunk takes its
/// full size in the file).
fn chunk_of(shape: &[usize]) -> Vec<usize> {
    let mut chunk = shape.to_vec();
    let mut room = CHUNK_ELEMENTS;
    for extent in chunk.iter_mut().rev() {
        *extent = extent.div_ceil(extent.div_ceil(room));
        room = (room / *extent).max(1);
    }
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_bounded_and_waste_little() {
        assert_eq!(chunk_of(&[10]), [10]);
        assert_eq!(chunk_of(&[64, 3, 3, 3]), [64, 3, 3, 3]);
        assert_eq!(chunk_of(&[512, 512, 3, 3]), [52, 512, 3, 3]);
        assert_eq!(chunk_of(&[CHUNK_ELEMENTS + 1]), [CHUNK_ELEMENTS / 2 + 1]);
        for shape in [vec![1_000_003], vec![7, 1 << 20], vec![1 << 20, 7], vec![3, 5, 100_000]] {
            let chunk = chunk_of(&shape);
            assert!(chunk.iter().product::<usize>() <= CHUNK_ELEMENTS);
            let stored: usize =
                shape.iter().zip(&chunk).map(|(extent, chunk)| extent.div_ceil(*chunk) * chunk).product();
            assert!(stored as f64 <= 1.25 * shape.iter().product::<usize>() as f64, "{shape:?} {chunk:?}");
        }
    }
}
