//! Tensors under PyTorch's names, in chunks with one checksum each. They are not compressed: deflate takes twenty times as
//! long to save a fifth of the size.

use std::path::Path;

use hdf5::Group;
use hdf5::types::{FloatSize, IntSize, TypeDescriptor};

use super::groups;
use super::input::{Input, member_names};
use super::schema::{CHECKPOINT, LONG_NAME, UNITS};
use super::values::{write_attribute, write_attributes, write_numbers};
use super::{Attribute, Checkpoint, NamedTensor, TensorValues, attribute};
use crate::error::Result;

/// Writes `checkpoint` as the group `name`, which must not exist.
pub(super) fn write(root: &Group, name: &str, checkpoint: &Checkpoint) -> hdf5::Result<()> {
    let group = groups::group(root, name)?;
    write_attributes(&group, &checkpoint.attributes)?;
    for tensor in &checkpoint.tensors {
        let NamedTensor { name, shape, .. } = tensor;
        let dataset = match &tensor.values {
            TensorValues::F32(values) => write_numbers(&group, name, shape, values),
            TensorValues::I64(values) => write_numbers(&group, name, shape, values),
            TensorValues::I32(values) => write_numbers(&group, name, shape, values),
            TensorValues::I8(values) => write_numbers(&group, name, shape, values),
        }?;
        write_attribute(&dataset, UNITS, &Attribute::Text("1".into()))?;
        if attribute(&tensor.attributes, LONG_NAME).is_none() {
            write_attribute(&dataset, LONG_NAME, &Attribute::Text(format!("{name} of the training's state")))?;
        }
        write_attributes(&dataset, &tensor.attributes)?;
    }
    Ok(())
}

/// Reads the checkpoint of a run file, bit for bit as it was written.
///
/// ```no_run
/// let checkpoint = hpml::store::read_checkpoint("runs/net.h5".as_ref())?;
/// println!("{} tensors", checkpoint.tensors.len());
/// # Ok::<(), hpml::error::Error>(())
/// ```
///
/// # Errors
/// [`Error::Dataset`](crate::error::Error::Dataset) that names a dataset which is missing, damaged (checksum) or of a type
/// other than those of [`TensorValues`]; [`Error::File`](crate::error::Error::File) if it is no run file.
pub fn read_checkpoint(path: &Path) -> Result<Checkpoint> {
    read(&Input::open_run_file(path)?, CHECKPOINT)
}

/// Reads tensors to begin with: the checkpoint of a run file, or the datasets at the root of another HDF5 file. Returns them
/// with the name of the group that they lie in.
///
/// # Errors
/// The file is no HDF5 file, or a dataset is damaged or of another type than those of [`TensorValues`].
pub fn read_weights(path: &Path) -> Result<(Vec<NamedTensor>, &'static str)> {
    let input = Input::open(path)?;
    if input.root().link_exists(CHECKPOINT) {
        return Ok((read(&input, CHECKPOINT)?.tensors, CHECKPOINT));
    }
    Ok((read_tensors(&input, "", input.root())?, ""))
}

/// Reads the checkpoint in the group `name`.
pub(super) fn read(input: &Input, name: &str) -> Result<Checkpoint> {
    if !input.root().link_exists(name) {
        let message = match name {
            CHECKPOINT => "missing: the run ended before the end of its first epoch, or was not a training",
            _ => "missing: not a checkpoint that a training can continue from",
        };
        return Err(input.error(name, message));
    }
    let group = input.group(name)?;
    Ok(Checkpoint { tensors: read_tensors(input, name, &group)?, attributes: input.attributes(&group, &[]) })
}

/// Reads the tensors of `group`, which is called `name`.
pub(super) fn read_tensors(input: &Input, name: &str, group: &Group) -> Result<Vec<NamedTensor>> {
    let is_tensor = |tensor: &String| !group.dataset(tensor).is_ok_and(|dataset| input.is_bare_dimension(&dataset));
    member_names(group)
        .iter()
        .filter(|tensor| is_tensor(tensor))
        .map(|tensor| read_tensor(input, name, tensor))
        .collect()
}

/// Reads the tensor `name` of `group`.
pub(super) fn read_tensor(input: &Input, group: &str, name: &str) -> Result<NamedTensor> {
    let path = if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") };
    let dataset = input.dataset(&path)?;
    let values = match input.kind(&dataset, &path)? {
        TypeDescriptor::Float(FloatSize::U4) => TensorValues::F32(input.numbers(&dataset, &path)?),
        TypeDescriptor::Integer(IntSize::U8) => TensorValues::I64(input.numbers(&dataset, &path)?),
        TypeDescriptor::Integer(IntSize::U4) => TensorValues::I32(input.numbers(&dataset, &path)?),
        TypeDescriptor::Integer(IntSize::U1) => TensorValues::I8(input.numbers(&dataset, &path)?),
        other => return Err(input.error(&path, format!("type {other}, expected float32, int64, int32 or int8"))),
    };
    let attributes = input.attributes(&dataset, &[UNITS, LONG_NAME]);
    Ok(NamedTensor { name: name.to_owned(), shape: dataset.shape(), values, attributes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::{FileKind, Identity, RunFile, Table};

    fn checkpoint() -> Checkpoint {
        let floats = (0..300_000).map(|i| f32::from_bits(0x3f80_0000 + i)).chain([f32::NAN, -0.0, f32::MIN_POSITIVE]);
        let floats: Vec<f32> = floats.collect();
        let mut quantized = NamedTensor::new("fc.weight", vec![2, 3], TensorValues::I8(vec![-128, -1, 0, 1, 2, 127]));
        quantized.attributes = vec![
            ("scale".into(), Attribute::Floats(vec![f64::from(0.1f32), 0.5])),
            ("zero_point".into(), Attribute::Ints(vec![0, -3])),
        ];
        let tensors = vec![
            NamedTensor::new("z.weight", vec![3, 100_001], TensorValues::F32(floats)),
            NamedTensor::new("bn.num_batches_tracked", vec![], TensorValues::I64(vec![i64::MAX])),
            quantized,
            NamedTensor::new("bias", vec![2], TensorValues::I32(vec![i32::MIN, i32::MAX])),
            NamedTensor::new("empty", vec![0, 4], TensorValues::F32(vec![])),
        ];
        Checkpoint { tensors, attributes: vec![("epochs".into(), Attribute::Int(3))] }
    }

    fn write(path: &Path, checkpoint: Option<&Checkpoint>) -> Result<()> {
        let tables: Vec<Table> = Vec::new();
        let identity = Identity::new(FileKind::Training);
        RunFile::create(path, true, identity, &Config::default(), Vec::new(), Vec::new())?.flush(&tables, checkpoint)
    }

    #[test]
    fn every_bit_and_the_order_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        write(&path, Some(&checkpoint())).unwrap();
        let read = read_checkpoint(&path).unwrap();
        let bits = |checkpoint: &Checkpoint| match &checkpoint.tensors[0].values {
            TensorValues::F32(values) => values.iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
            _ => Vec::new(),
        };
        assert_eq!(bits(&read), bits(&checkpoint()));
        assert_eq!(read.tensors[1..], checkpoint().tensors[1..]);
        assert_eq!(read.tensors[0].shape, [3, 100_001]);
        assert_eq!(read.attributes, checkpoint().attributes);
    }

    #[test]
    fn a_flipped_byte_is_an_error_that_names_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        write(&path, Some(&checkpoint())).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let wanted = [1.0f32, f32::from_bits(0x3f80_0001)].map(f32::to_le_bytes).concat();
        for (needle, name) in
            [(wanted, "checkpoint/z.weight"), (i64::MAX.to_le_bytes().to_vec(), "num_batches_tracked")]
        {
            let place = whole.windows(needle.len()).position(|window| window == needle).expect("stored as it is");
            let mut damaged = whole.clone();
            damaged[place + 1] ^= 4;
            std::fs::write(&path, damaged).unwrap();
            let message = read_checkpoint(&path).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("damaged: checksum"), "{message}");
        }
    }

    #[test]
    fn no_damage_anywhere_makes_it_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let mut small = checkpoint();
        small.tensors.remove(0);
        write(&path, Some(&small)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for place in (0..whole.len()).step_by(31) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x81;
            std::fs::write(&path, &damaged).unwrap();
            let _ = read_checkpoint(&path);
            let _ = crate::store::inspect(&path);
            std::fs::write(&path, &whole[..place]).unwrap();
            assert!(read_checkpoint(&path).is_err());
        }
    }

    #[test]
    fn what_is_not_there_or_of_another_type_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        write(&path, None).unwrap();
        let message = read_checkpoint(&path).unwrap_err().to_string();
        assert!(message.contains("checkpoint: missing"), "{message}");

        let mut wrong = checkpoint();
        wrong.tensors[3].shape = vec![3];
        let message = write(&path, Some(&wrong)).unwrap_err().to_string();
        assert!(message.contains("bias: 2 values for shape [3]"), "{message}");

        let file = hdf5::File::open_rw(&path).unwrap();
        file.new_dataset::<f64>().shape([2]).create("checkpoint/fc.weight").unwrap();
        file.close().unwrap();
        let message = read_checkpoint(&path).unwrap_err().to_string();
        assert!(message.contains("checkpoint/fc.weight: type float64, expected float32"), "{message}");
    }

    #[test]
    fn a_size_that_the_file_cannot_hold_is_refused_before_memory_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        for shape in [vec![1usize << 40], vec![1 << 33, 1 << 33]] {
            write(&path, None).unwrap();
            let file = hdf5::File::open_rw(&path).unwrap();
            let chunk = vec![1; shape.len()];
            file.new_dataset::<f32>().chunk(chunk).shape(shape).create("checkpoint/huge").unwrap();
            file.close().unwrap();
            let message = read_checkpoint(&path).unwrap_err().to_string();
            assert!(message.contains("checkpoint/huge: claims more data"), "{message}");
        }
    }

    #[test]
    fn what_is_no_run_file_is_told_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        std::fs::write(&path, "no hdf5").unwrap();
        let mut messages = vec![read_checkpoint(&path).unwrap_err().to_string()];
        hdf5::File::create(&path).unwrap();
        messages.push(read_checkpoint(&path).unwrap_err().to_string());
        messages.push(read_checkpoint(folder.path()).unwrap_err().to_string());
        messages.push(read_checkpoint(&folder.path().join("none.h5")).unwrap_err().to_string());
        let expected = ["not an HDF5 file", "not a run file of hpml", "not a file", "No such file"];
        for (message, expected) in messages.iter().zip(expected) {
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
    }
}
