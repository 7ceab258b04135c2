//! The parity file: what PyTorch computed from given weights and samples, for `hpml verify` to compare with.
//!
//! A group a model, made by a script around PyTorch; it is read with every shape and number checked, so that what comes
//! out can be indexed without care.

use std::path::Path;

use super::input::{Input, member_names};
use super::{Attribute, NamedTensor, TensorValues, checkpoint};
use crate::error::{Error, Result};

/// Largest number of samples in a step.
const MOST_SAMPLES: usize = 1 << 20;

/// One model of a parity file. S steps of B samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Parity {
    /// The group's name: `net`, `resnet18`.
    pub model: String,
    /// Per channel; input = (pixel / 255 - mean) / std.
    pub mean: [f32; 3],
    /// Per channel, above 0.
    pub std: [f32; 3],
    /// Learning rate.
    pub lr: f64,
    /// Of the plain SGD: v = momentum v + g, p -= lr v.
    pub momentum: f64,
    /// B.
    pub global_batch: usize,
    /// Parameters and batch-norm statistics before the first step; none: those that `torch.manual_seed(seed)` gives.
    pub init: Vec<NamedTensor>,
    /// See `init`.
    pub seed: u64,
    /// S x B sample numbers in the training set.
    pub indices: Vec<u32>,
    /// S x B, 0 to 9.
    pub labels: Vec<u8>,
    /// S sums of the normalised inputs.
    pub input_sum: Vec<f64>,
    /// S mean losses before each update, one process.
    pub loss_single: Vec<f64>,
    /// The same with two threads: the size of harmless rounding.
    pub loss_single_t2: Vec<f64>,
    /// S mean losses over two DDP ranks.
    pub loss_ddp: Vec<f64>,
    /// Norm of each parameter after the last step, in the model's order, one process.
    pub norm_single: Vec<f64>,
    /// The same after two DDP ranks.
    pub norm_ddp: Vec<f64>,
}

/// Reads all models of a parity file.
pub fn read_parity(path: &Path) -> Result<Vec<Parity>> {
    let input = Input::open(path)?;
    let models = member_names(input.root());
    if models.is_empty() {
        let message = "no groups: expected one for each model, with indices, labels, init and so on".into();
        return Err(Error::File { path: path.to_owned(), message });
    }
    models.iter().map(|model| Model { input: &input, model }.read()).collect()
}

struct Model<'a> {
    input: &'a Input,
    model: &'a str,
}

impl Model<'_> {
    fn read(&self) -> Result<Parity> {
        self.input.group(self.model)?;
        let (shape, indices) = self.numbers::<i64>("indices", None)?;
        let [steps, global_batch] = shape[..] else {
            return Err(self.error("indices", format!("shape {shape:?}, expected [steps, samples]")));
        };
        if steps == 0 || global_batch == 0 || global_batch > MOST_SAMPLES {
            return Err(self.error("indices", format!("shape {shape:?}, expected steps and samples")));
        }
        let claimed = self.attribute("global_batch")?;
        if claimed != Attribute::Int(global_batch as i64) {
            return Err(self.error("global_batch", format!("{claimed:?}, but {global_batch} columns of indices")));
        }
        let (_, labels) = self.numbers::<i64>("labels", Some(&shape))?;
        let norms = self.input.dataset(&self.path("norm_single"))?.size();
        Ok(Parity {
            model: self.model.to_owned(),
            mean: self.channels("mean", |_| true)?,
            std: self.channels("std", |std| std > 0.0)?,
            lr: self.float("lr", |lr| lr > 0.0)?,
            momentum: self.float("momentum", |momentum| (0.0..1.0).contains(&momentum))?,
            global_batch,
            init: self.init()?,
            seed: self.seed()?,
            indices: self.checked("indices", indices, "a sample number", |index| u32::try_from(index).ok())?,
            labels: self
                .checked("labels", labels, "0 to 9", |label| u8::try_from(label).ok().filter(|label| *label < 10))?,
            input_sum: self.floats("input_sum", steps)?,
            loss_single: self.floats("loss_single", steps)?,
            loss_single_t2: self.floats("loss_single_t2", steps)?,
            loss_ddp: self.floats("loss_ddp", steps)?,
            norm_single: self.floats("norm_single", norms)?,
            norm_ddp: self.floats("norm_ddp", norms)?,
        })
    }

    /// The initial state, if it is there, sorted by name.
    fn init(&self) -> Result<Vec<NamedTensor>> {
        if !member_names(&self.input.group(self.model)?).iter().any(|name| name == "init") {
            return Ok(Vec::new());
        }
        let group = self.path("init");
        let names = member_names(&self.input.group(&group)?);
        let read = |name: &String| {
            let tensor = checkpoint::read_tensor(self.input, &group, name)?;
            match &tensor.values {
                TensorValues::F32(values) if values.iter().all(|value| value.is_finite()) => Ok(tensor),
                TensorValues::F32(_) => Err(self.error(&format!("init/{name}"), "a value is not finite")),
                other => Err(self.error(&format!("init/{name}"), format!("{}, expected float32", other.type_name()))),
            }
        };
        names.iter().map(read).collect()
    }

    fn seed(&self) -> Result<u64> {
        match self.attribute("seed")? {
            Attribute::Int(seed) if seed >= 0 => Ok(seed as u64),
            other => Err(self.error("seed", format!("{other:?}, expected an integer, 0 or more"))),
        }
    }

    fn numbers<T: hdf5::H5Type>(&self, name: &str, expected: Option<&[usize]>) -> Result<(Vec<usize>, Vec<T>)> {
        let path = self.path(name);
        let dataset = self.input.dataset(&path)?;
        let shape = dataset.shape();
        match expected {
            Some(expected) if expected != shape => {
                Err(self.error(name, format!("shape {shape:?}, expected {expected:?}")))
            }
            _ => Ok((shape, self.input.numbers(&dataset, &path)?)),
        }
    }

    fn floats(&self, name: &str, count: usize) -> Result<Vec<f64>> {
        let (_, values) = self.numbers(name, Some(&[count]))?;
        self.checked(name, values, "a finite number", |value: f64| value.is_finite().then_some(value))
    }

    fn checked<T: Copy + std::fmt::Display, U>(
        &self,
        name: &str,
        values: Vec<T>,
        expected: &str,
        check: impl Fn(T) -> Option<U>,
    ) -> Result<Vec<U>> {
        let refuse = |index, value| self.error(name, format!("value {index} is {value}, expected {expected}"));
        values.into_iter().enumerate().map(|(index, value)| check(value).ok_or_else(|| refuse(index, value))).collect()
    }

    fn attribute(&self, name: &str) -> Result<Attribute> {
        let group = self.input.group(self.model)?;
        self.input
            .attribute(&group, name)
            .ok_or_else(|| self.error(name, "missing: expected an attribute of that name"))
    }

    fn float(&self, name: &str, allowed: impl Fn(f64) -> bool) -> Result<f64> {
        match self.attribute(name)? {
            Attribute::Float(value) if value.is_finite() && allowed(value) => Ok(value),
            other => Err(self.error(name, format!("{other:?}, expected a number in range"))),
        }
    }

    fn channels(&self, name: &str, allowed: impl Fn(f32) -> bool) -> Result<[f32; 3]> {
        let found = self.attribute(name)?;
        let Attribute::Floats(values) = &found else {
            return Err(self.error(name, format!("{found:?}, expected three numbers")));
        };
        let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
        match values[..] {
            [r, g, b] if [r, g, b].iter().all(|value| value.is_finite() && allowed(*value)) => Ok([r, g, b]),
            _ => Err(self.error(name, format!("{values:?}, expected three numbers in range"))),
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.model)
    }

    fn error(&self, name: &str, message: impl Into<String>) -> Error {
        self.input.error(&self.path(name), message)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// What the script writes, small: 2 steps of 3 samples, one parameter.
    fn file(folder: &Path) -> (PathBuf, hdf5::File) {
        let path = folder.join("parity.h5");
        let file = hdf5::File::create(&path).unwrap();
        let group = file.create_group("net").unwrap();
        let floats = |name: &str, values: &[f64]| {
            group.new_dataset::<f64>().shape([values.len()]).create(name).unwrap().write_raw(values).unwrap();
        };
        for name in ["input_sum", "loss_single", "loss_single_t2", "loss_ddp"] {
            floats(name, &[2.5, 1.5]);
        }
        floats("norm_single", &[1.0]);
        floats("norm_ddp", &[1.0]);
        group.new_dataset::<i64>().shape([2, 3]).create("indices").unwrap().write_raw(&[5i64, 4, 3, 2, 1, 0]).unwrap();
        group.new_dataset::<u8>().shape([2, 3]).create("labels").unwrap().write_raw(&[9u8, 8, 7, 6, 5, 4]).unwrap();
        group.new_dataset::<f32>().shape([1, 2]).create("init/w").unwrap().write_raw(&[1f32, 2.0]).unwrap();
        for name in ["mean", "std"] {
            group.new_attr::<f64>().shape([3]).create(name).unwrap().write_raw(&[0.5, 0.25, 0.5]).unwrap();
        }
        for (name, value) in [("lr", 0.1), ("momentum", 0.9)] {
            group.new_attr::<f64>().create(name).unwrap().write_scalar(&value).unwrap();
        }
        group.new_attr::<i64>().create("global_batch").unwrap().write_scalar(&3i64).unwrap();
        group.new_attr::<i64>().create("seed").unwrap().write_scalar(&7i64).unwrap();
        (path, file)
    }

    #[test]
    fn a_whole_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = file(folder.path());
        file.close().unwrap();
        let [parity] = &read_parity(&path).unwrap()[..] else { panic!("one model") };
        assert_eq!((parity.model.as_str(), parity.global_batch, parity.lr), ("net", 3, 0.1));
        assert_eq!(parity.mean, [0.5, 0.25, 0.5]);
        assert_eq!(parity.indices, [5, 4, 3, 2, 1, 0]);
        assert_eq!(parity.labels, [9, 8, 7, 6, 5, 4]);
        assert_eq!(parity.loss_ddp, [2.5, 1.5]);
        assert_eq!(parity.init, [NamedTensor::new("w", vec![1, 2], TensorValues::F32(vec![1.0, 2.0]))]);
    }

    #[test]
    fn without_weights_the_seed_stands_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = file(folder.path());
        file.unlink("net/init").unwrap();
        file.close().unwrap();
        let [parity] = &read_parity(&path).unwrap()[..] else { panic!("one model") };
        assert_eq!((parity.init.len(), parity.seed), (0, 7));
    }

    #[test]
    fn whatever_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (_, whole) = file(folder.path());
        let names = whole.group("net").unwrap().member_names().unwrap();
        whole.close().unwrap();
        assert_eq!(names.len(), 9);
        for name in names.into_iter().filter(|name| name != "init") {
            let (path, file) = file(folder.path());
            file.unlink(&format!("net/{name}")).unwrap();
            file.close().unwrap();
            let message = read_parity(&path).unwrap_err().to_string();
            assert!(message.contains(&format!("net/{name}")) && message.contains("missing"), "{message}");
        }
        for name in ["mean", "std", "lr", "momentum", "global_batch", "seed"] {
            let (path, file) = file(folder.path());
            file.group("net").unwrap().delete_attr(name).unwrap();
            file.close().unwrap();
            let message = read_parity(&path).unwrap_err().to_string();
            assert!(message.contains(&format!("net/{name}: missing")), "{message}");
        }
    }

    #[test]
    fn a_wrong_shape_or_value_is_named() {
        fn set<T: hdf5::H5Type>(group: &hdf5::Group, name: &str, shape: &[usize], values: &[T]) {
            group.unlink(name).unwrap();
            group.new_dataset::<T>().shape(shape.to_vec()).create(name).unwrap().write_raw(values).unwrap();
        }
        type Change = fn(&hdf5::Group);
        let changes: [(Change, &str); 9] = [
            (|group| set(group, "indices", &[6], &[0i64; 6]), "net/indices: shape [6]"),
            (|group| set(group, "indices", &[2, 3], &[0i64, 0, -1, 0, 0, 0]), "net/indices: value 2 is -1"),
            (|group| set(group, "indices", &[3, 2], &[0i64; 6]), "net/global_batch: Int(3), but 2 columns"),
            (|group| set(group, "labels", &[2, 2], &[0u8; 4]), "net/labels: shape [2, 2], expected [2, 3]"),
            (|group| set(group, "labels", &[2, 3], &[0u8, 10, 0, 0, 0, 0]), "net/labels: value 1 is 10"),
            (|group| set(group, "loss_ddp", &[3], &[0f64; 3]), "net/loss_ddp: shape [3], expected [2]"),
            (|group| set(group, "loss_ddp", &[2], &[1.0, f64::NAN]), "net/loss_ddp: value 1 is NaN"),
            (|group| set(group, "norm_ddp", &[2], &[0f64; 2]), "net/norm_ddp: shape [2], expected [1]"),
            (|group| set(group, "init/w", &[2], &[0i64; 2]), "net/init/w: int64, expected float32"),
        ];
        let folder = tempfile::tempdir().unwrap();
        for (change, expected) in changes {
            let (path, file) = file(folder.path());
            change(&file.group("net").unwrap());
            file.close().unwrap();
            let message = read_parity(&path).unwrap_err().to_string();
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn no_damage_anywhere_makes_it_panic() {
        let folder = tempfile::tempdir().unwrap();
        let (path, whole) = file(folder.path());
        whole.close().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for place in (0..whole.len()).step_by(29) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x81;
            std::fs::write(&path, damaged).unwrap();
            let _ = read_parity(&path);
            let _ = crate::store::inspect(&path);
        }
    }
}
