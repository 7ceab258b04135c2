//! Parity file: losses and updates that PyTorch computed from given weights and samples, for `hpml verify` to compare with.
//!
//! One group per model, written by `scripts/parity.py`. Every shape and number is checked on reading, so that the result can be
//! indexed without further checks.

use std::path::Path;

use super::input::{Input, member_names};
use super::{Attribute, NamedTensor, TensorValues, checkpoint};
use crate::error::{Error, Result};

/// Largest number of samples in a step.
const MOST_SAMPLES: usize = 1 << 20;

/// Model of a parity file, with S steps of B samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Parity {
    /// Name of the group: `net`, `resnet18`.
    pub model: String,
    /// Keys of `[model]` that make the network, as in `name=resnet50 width=16`; `name=` and the group's name if the file has none.
    pub settings: String,
    /// Mean per channel; input = (pixel / 255 - mean) / std.
    pub mean: [f32; 3],
    /// Standard deviation per channel, above 0.
    pub std: [f32; 3],
    /// Learning rate.
    pub lr: f64,
    /// Momentum of plain SGD: v = momentum v + g, p -= lr v.
    pub momentum: f64,
    /// Samples per step over all ranks, B.
    pub global_batch: usize,
    /// Parameters and batch-norm statistics before the first step; empty: those that `torch.manual_seed(seed)` gives.
    pub init: Vec<NamedTensor>,
    /// Seed of the initial parameters if `init` is empty.
    pub seed: u64,
    /// Sample numbers in the training set, `[S, B]`; empty for a network of tokens.
    pub indices: Vec<u32>,
    /// Labels of the samples, `[S, B]`, 0 to 9; empty for a network of tokens.
    pub labels: Vec<u8>,
    /// Samples of a network of tokens.
    pub tokens: Option<Tokens>,
    /// Sum of the normalized inputs per step, `[S]`.
    pub input_sum: Vec<f64>,
    /// Results of PyTorch per number of ranks, ascending; never empty.
    pub references: Vec<Reference>,
}

/// Sequences of token ids; the target at each place is the next token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, `[S, B, length + 1]`, each below `vocabulary`.
    pub ids: Vec<i64>,
    /// Tokens per sequence, without the last target.
    pub length: usize,
    /// Number of different token ids.
    pub vocabulary: usize,
}

/// Results of PyTorch with batch-norm statistics over the samples of each of `ranks` ranks, for P parameters and K float32
/// references.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Number of ranks; a model without batch norm gives the same results for any.
    pub ranks: usize,
    /// Mean loss before each update in float64, `[S]`, above 0.
    pub loss: Vec<f64>,
    /// L2 norm of each parameter's movement since the start, after each update, in float64, `[S][P]` in the model's order;
    /// above 0.
    pub update: Vec<Vec<f64>>,
    /// Relative difference of each float32 reference's loss from `loss`, `[K][S]`.
    pub loss_rounding: Vec<Vec<f64>>,
    /// Relative difference of the norm of all parameters' movement from that of a row of `update`, `[K][S]`.
    pub update_rounding: Vec<Vec<f64>>,
    /// Largest relative difference of a parameter's movement from that in `update`, `[K][S]`.
    pub parameter_rounding: Vec<Vec<f64>>,
}

/// Prefix of a reference's group name; the number of ranks follows.
const RANKS: &str = "ranks_";

/// Reads all models of a parity file.
///
/// # Errors
/// [`Error::File`] or [`Error::Dataset`] with the first dataset or attribute that is missing, damaged or out of range.
pub fn read_parity(path: &Path) -> Result<Vec<Parity>> {
    let input = Input::open(path)?;
    let models = member_names(input.root());
    if models.is_empty() {
        let message = "no groups: expected one per model, as scripts/parity.py writes them".into();
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
        let group = self.input.group(self.model)?;
        let has_tokens = group.link_exists("tokens");
        let samples = if has_tokens { "tokens" } else { "indices" };
        let (shape, numbers) = self.numbers::<i64>(samples, None)?;
        let (steps, global_batch, length) = match shape[..] {
            [steps, global_batch] if !has_tokens => (steps, global_batch, 0),
            [steps, global_batch, next] if has_tokens && next > 1 => (steps, global_batch, next - 1),
            _ => return Err(self.error(samples, format!("shape {shape:?}, expected [steps, samples]"))),
        };
        if steps == 0 || global_batch == 0 || global_batch > MOST_SAMPLES {
            return Err(self.error(samples, format!("shape {shape:?}, expected steps and samples")));
        }
        let claimed = self.attribute("global_batch")?;
        if claimed.integer() != Some(global_batch as i64) {
            return Err(self.error("global_batch", format!("{claimed:?}, but {global_batch} columns of {samples}")));
        }
        let (indices, labels, tokens) = if has_tokens {
            (Vec::new(), Vec::new(), Some(self.tokens(numbers, length)?))
        } else {
            let (_, labels) = self.numbers::<i64>("labels", Some(&shape))?;
            let label = |label| u8::try_from(label).ok().filter(|label| *label < 10);
            let indices = self.checked("indices", numbers, "a sample number", |index| u32::try_from(index).ok())?;
            (indices, self.checked("labels", labels, "0 to 9", label)?, None)
        };
        Ok(Parity {
            model: self.model.to_owned(),
            settings: self.settings()?,
            mean: self.channels("mean", |_| true)?,
            std: self.channels("std", |std| std > 0.0)?,
            lr: self.float("lr", |lr| lr > 0.0)?,
            momentum: self.float("momentum", |momentum| (0.0..1.0).contains(&momentum))?,
            global_batch,
            init: self.init()?,
            seed: self.seed()?,
            indices,
            labels,
            tokens,
            input_sum: self.floats("input_sum", steps)?,
            references: self.references(steps)?,
        })
    }

    fn tokens(&self, ids: Vec<i64>, length: usize) -> Result<Tokens> {
        let found = self.attribute("vocabulary")?;
        let vocabulary = match found.integer() {
            Some(vocabulary) if (1..=1 << 24).contains(&vocabulary) => vocabulary,
            _ => return Err(self.error("vocabulary", format!("{found:?}, expected an integer from 1 to 2^24"))),
        };
        let is_token = |id| (0..vocabulary).contains(&id).then_some(id);
        let ids = self.checked("tokens", ids, &format!("0 to {}", vocabulary - 1), is_token)?;
        Ok(Tokens { ids, length, vocabulary: vocabulary as usize })
    }

    fn settings(&self) -> Result<String> {
        let group = self.input.group(self.model)?;
        let Some(found) = self.input.attribute(&group, "settings") else { return Ok(format!("name={}", self.model)) };
        found.text().map(str::to_owned).ok_or_else(|| self.error("settings", format!("{found:?}, expected a text")))
    }

    fn references(&self, steps: usize) -> Result<Vec<Reference>> {
        let members = member_names(&self.input.group(self.model)?);
        let mut ranks: Vec<usize> = members
            .iter()
            .filter_map(|name| name.strip_prefix(RANKS)?.parse().ok())
            .filter(|ranks| *ranks > 0)
            .collect();
        ranks.sort_unstable();
        if ranks.is_empty() {
            let made = if members.iter().any(|name| name == "loss_single") {
                "made by an older scripts/parity.py, whose bounds did not hold on every processor"
            } else {
                "missing"
            };
            let message = format!("{made}: make the file again with python scripts/parity.py --data DIR --out FILE.h5");
            return Err(self.error(&format!("{RANKS}1"), message));
        }
        ranks.into_iter().map(|ranks| self.reference(ranks, steps)).collect()
    }

    fn reference(&self, ranks: usize, steps: usize) -> Result<Reference> {
        let name = |dataset: &str| format!("{RANKS}{ranks}/{dataset}");
        let rounding =
            |dataset: &str| self.table(&name(dataset), [None, Some(steps)], "0 or more", |value| value >= 0.0);
        let loss = self.floats(&name("loss"), steps)?;
        Ok(Reference {
            ranks,
            loss: self.checked(&name("loss"), loss, "above 0", |value| (value > 0.0).then_some(value))?,
            update: self.table(&name("update"), [Some(steps), None], "above 0", |value| value > 0.0)?,
            loss_rounding: rounding("loss_rounding")?,
            update_rounding: rounding("update_rounding")?,
            parameter_rounding: rounding("parameter_rounding")?,
        })
    }

    /// Reads the rows of a table of finite numbers that satisfy `is_right`. `expected`: rows and columns, `None`: any number
    /// but 0.
    fn table(
        &self,
        name: &str,
        expected: [Option<usize>; 2],
        right: &str,
        is_right: fn(f64) -> bool,
    ) -> Result<Vec<Vec<f64>>> {
        let (shape, values) = self.numbers::<f64>(name, None)?;
        let fits =
            |(found, expected): (&usize, &Option<usize>)| *found > 0 && expected.is_none_or(|size| size == *found);
        if shape.len() != 2 || !shape.iter().zip(&expected).all(fits) {
            let [rows, columns] = expected.map(|size| size.map_or("any".into(), |size| size.to_string()));
            return Err(self.error(name, format!("shape {shape:?}, expected [{rows}, {columns}]")));
        }
        let values =
            self.checked(name, values, right, |value: f64| (value.is_finite() && is_right(value)).then_some(value))?;
        Ok(values.chunks(shape[1]).map(<[f64]>::to_vec).collect())
    }

    /// Reads the initial state, sorted by name; empty if the file has none.
    fn init(&self) -> Result<Vec<NamedTensor>> {
        if !member_names(&self.input.group(self.model)?).iter().any(|name| name == "init") {
            return Ok(Vec::new());
        }
        let group = self.path("init");
        let finite = |tensor: NamedTensor| {
            let name = format!("init/{}", tensor.name);
            match &tensor.values {
                TensorValues::F32(values) if values.iter().all(|value| value.is_finite()) => Ok(tensor),
                TensorValues::F32(_) => Err(self.error(&name, "a value is not finite")),
                other => Err(self.error(&name, format!("{}, expected float32", other.type_name()))),
            }
        };
        checkpoint::read_tensors(self.input, &group, &self.input.group(&group)?)?.into_iter().map(finite).collect()
    }

    fn seed(&self) -> Result<u64> {
        let found = self.attribute("seed")?;
        let seed = found.integer().and_then(|seed| u64::try_from(seed).ok());
        seed.ok_or_else(|| self.error("seed", format!("{found:?}, expected an integer, 0 or more")))
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
        let found = self.attribute(name)?;
        let value = found.number().filter(|value| value.is_finite() && allowed(*value));
        value.ok_or_else(|| self.error(name, format!("{found:?}, expected a number in range")))
    }

    fn channels(&self, name: &str, allowed: impl Fn(f32) -> bool) -> Result<[f32; 3]> {
        let found = self.attribute(name)?;
        let Some(values) = found.floats() else {
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

    /// Writes a small file as the script does: 2 steps of 3 samples, one parameter.
    fn file(folder: &Path) -> (PathBuf, hdf5::File) {
        let path = folder.join("parity.h5");
        // As the script writes it: metadata without checksums can crash the library when they are damaged.
        let file = hdf5::File::with_options().with_fapl(|plist| plist.libver_v110()).create(&path).unwrap();
        let group = file.create_group("net").unwrap();
        let floats = |name: &str, values: &[f64]| {
            group.new_dataset::<f64>().shape([values.len()]).create(name).unwrap().write_raw(values).unwrap();
        };
        let table = |name: &str, shape: [usize; 2], values: &[f64]| {
            group.new_dataset::<f64>().shape(shape).create(name).unwrap().write_raw(values).unwrap();
        };
        floats("input_sum", &[2.5, 1.5]);
        for ranks in ["ranks_2", "ranks_1"] {
            group.create_group(ranks).unwrap();
            floats(&format!("{ranks}/loss"), &[2.5, 1.5]);
            table(&format!("{ranks}/update"), [2, 1], &[1.0, 2.0]);
            for name in ["loss", "update", "parameter"] {
                table(&format!("{ranks}/{name}_rounding"), [3, 2], &[1e-7, 2e-7, 3e-7, 1e-6, 0.0, 1e-7]);
            }
        }
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
        assert_eq!(parity.references.iter().map(|reference| reference.ranks).collect::<Vec<_>>(), [1, 2]);
        let reference = &parity.references[1];
        assert_eq!((&reference.loss[..], &reference.update[..]), (&[2.5, 1.5][..], &[vec![1.0], vec![2.0]][..]));
        assert_eq!(reference.parameter_rounding, [[1e-7, 2e-7], [3e-7, 1e-6], [0.0, 1e-7]]);
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
        let group = whole.group("net").unwrap();
        let of_reference = group.group("ranks_2").unwrap().member_names().unwrap();
        let names: Vec<String> = group.member_names().unwrap().into_iter().filter(|name| name != "init").collect();
        drop(group);
        whole.close().unwrap();
        assert_eq!((names.len(), of_reference.len()), (5, 5));
        let names = names.into_iter().filter(|name| !name.starts_with(RANKS));
        for name in names.chain(of_reference.iter().map(|name| format!("ranks_2/{name}"))) {
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
        let changes: [(Change, &str); 11] = [
            (|group| set(group, "indices", &[6], &[0i64; 6]), "net/indices: shape [6]"),
            (|group| set(group, "indices", &[2, 3], &[0i64, 0, -1, 0, 0, 0]), "net/indices: value 2 is -1"),
            (|group| set(group, "indices", &[3, 2], &[0i64; 6]), "net/global_batch: Int(3), but 2 columns"),
            (|group| set(group, "labels", &[2, 2], &[0u8; 4]), "net/labels: shape [2, 2], expected [2, 3]"),
            (|group| set(group, "labels", &[2, 3], &[0u8, 10, 0, 0, 0, 0]), "net/labels: value 1 is 10"),
            (|group| set(group, "ranks_1/loss", &[3], &[1f64; 3]), "net/ranks_1/loss: shape [3], expected [2]"),
            (|group| set(group, "ranks_1/loss", &[2], &[1.0, f64::NAN]), "net/ranks_1/loss: value 1 is NaN"),
            (|group| set(group, "ranks_1/loss", &[2], &[1.0, 0.0]), "net/ranks_1/loss: value 1 is 0, expected above 0"),
            (
                |group| set(group, "ranks_2/update", &[1, 2], &[1f64; 2]),
                "ranks_2/update: shape [1, 2], expected [2, any]",
            ),
            (
                |group| set(group, "ranks_2/loss_rounding", &[1, 2], &[0.0, -1.0]),
                "ranks_2/loss_rounding: value 1 is -1, expected 0 or more",
            ),
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
    fn a_file_of_the_older_form_is_to_be_made_again() {
        let folder = tempfile::tempdir().unwrap();
        for older in [true, false] {
            let (path, file) = file(folder.path());
            let group = file.group("net").unwrap();
            ["ranks_1", "ranks_2"].iter().for_each(|name| group.unlink(name).unwrap());
            if older {
                group.new_dataset::<f64>().shape([2]).create("loss_single").unwrap().write_raw(&[2.5, 1.5]).unwrap();
            }
            drop(group);
            file.close().unwrap();
            let message = read_parity(&path).unwrap_err().to_string();
            assert!(message.contains("net/ranks_1: ") && message.contains("make the file again"), "{message}");
            assert_eq!(message.contains("older scripts/parity.py"), older, "{message}");
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
