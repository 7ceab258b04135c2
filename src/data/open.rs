//! Opens the data sets that the configuration names: finds out what lies at `data.dir`, and refuses keys that it does not read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::array::{Array, MOST_CLASSES, Origin};
use super::cifar::{self, Cifar};
use super::dataset::{Labels, Stored};
use super::generated::{self, Generated};
use super::source::{Memory, Source};
use super::{Dataset, Datasets, Form, idx, npy, shared, synthetic};
use crate::collective::{Combine, Communicator};
use crate::config::{self, Layout};
use crate::error::{AtPath, Error, Result};
use crate::metrics;
use crate::store::{Number, SampleFile};
use crate::units::Bytes;

/// Names of the numbers of samples.
const SAMPLES: [&str; 2] = ["data.train_samples", "data.test_samples"];

/// What lies at `data.dir`.
enum Kind {
    /// The set that is built in.
    Embedded,
    /// A set of a form that the configuration gives.
    Generated,
    Cifar(&'static Cifar, PathBuf),
    Idx([[PathBuf; 2]; 2]),
    /// Folder of `.npy` files.
    Npy(PathBuf),
    Hdf5(PathBuf),
}

/// Opens (or makes) the data that the configuration names, for one process.
///
/// ```
/// let datasets = hpml::data::open(&hpml::config::Data::default())?; // the embedded synthetic set
/// assert_eq!(datasets.test.images(0..1)?.len(), 3 * 32 * 32);
/// # Ok::<(), hpml::error::Error>(())
/// ```
///
/// # Errors
/// A file is missing, cut short, or holds what cannot be trained on; the configuration wants more samples than there are, or has a key
/// that these data do not read.
pub fn open(data: &config::Data) -> Result<Datasets> {
    open_for(data, None)
}

/// Opens the data as [`open`] does, with one copy per host of what is held in memory. A collective.
///
/// # Errors
/// As [`open`]; or a rank is gone.
pub fn open_shared(data: &config::Data, ranks: &Communicator) -> Result<Datasets> {
    open_for(data, Some(ranks))
}

fn open_for(data: &config::Data, ranks: Option<&Communicator>) -> Result<Datasets> {
    let kind = find(data);
    let is_small = matches!(kind, Ok(Kind::Cifar(..)));
    let opened = kind.and_then(|kind| open_kind(data, kind, ranks)).and_then(|datasets| {
        match datasets.form() {
            Form::Images { shape, .. } => data.normalization(shape[0]).map(drop)?,
            Form::Tokens { .. } => {}
        }
        Ok(datasets)
    });
    match ranks {
        Some(ranks) if data.folder().is_some() => {
            // A rank whose files are missing does not come to a collective on their content.
            let mut is_held = [f64::from(u8::from(is_small && opened.is_ok()))];
            ranks.all_reduce(metrics::Kind::Control, Combine::Min, &mut is_held)?;
            match is_held == [0.0] {
                true => opened,
                false => shared::hold(opened?, ranks),
            }
        }
        _ => opened,
    }
}

fn open_kind(data: &config::Data, kind: Kind, ranks: Option<&Communicator>) -> Result<Datasets> {
    refuse_unread(data, &kind)?;
    let (sets, name) = match kind {
        Kind::Embedded => return embedded(data, ranks),
        Kind::Generated => return generated(data),
        Kind::Cifar(set, dir) => return cifar(data, set, &dir),
        Kind::Idx(paths) => {
            let name = format!("IDX files in {}", folder_of(&paths[0][0]).display());
            let [train, test] = paths;
            let pair = |[images, labels]: [PathBuf; 2]| Ok((idx::open(&images)?, Some(idx::open(&labels)?)));
            ([pair(train)?, pair(test)?], name)
        }
        Kind::Npy(dir) => {
            let name = format!("NumPy files in {}", dir.display());
            let array = |dir: &Path, name: &str| npy::open(&dir.join(format!("{name}.npy")));
            let has = |dir: &Path, name: &str| dir.join(format!("{name}.npy")).exists();
            (
                pairs(data, &dir, |dir| Ok(dir.to_owned()), |dir, name| array(dir, name), |dir, name| has(dir, name))?,
                name,
            )
        }
        Kind::Hdf5(path) => {
            let name = format!("HDF5 in {}", path.display());
            let open = |path: &Path| Ok((path.to_owned(), SampleFile::open(path)?));
            let array = |(path, file): &(PathBuf, SampleFile), name: &str| Array::of_rows(path, name, file.rows(name)?);
            (pairs(data, &path, open, array, |(_, file), name| file.has(name))?, name)
        }
    };
    of_arrays(data, sets, name)
}

/// Finds out what the configuration names.
///
/// # Errors
/// Nothing that is known lies there.
fn find(data: &config::Data) -> Result<Kind> {
    const KNOWN: &str = "data.dir (or --data) must be an HDF5 file (.h5), or a folder with CIFAR-10's or CIFAR-100's binary files, \
                         MNIST-type IDX files, or images.npy and labels.npy";
    let missing = |path: &Path, mend: String| Err(Error::DataMissing { path: path.to_owned(), mend });
    let Some(path) = data.folder() else {
        return Ok(if data.shape.is_empty() && data.classes == 0 { Kind::Embedded } else { Kind::Generated });
    };
    if path.is_file() {
        let mut start = [0; 8];
        let read =
            std::fs::File::open(&path).and_then(|mut file| std::io::Read::read(&mut file, &mut start)).at(&path)?;
        let is_named_so =
            path.extension().is_some_and(|extension| ["h5", "hdf5"].iter().any(|known| extension == *known));
        return match start[..read] {
            [0x89, b'H', b'D', b'F', ..] => Ok(Kind::Hdf5(path)),
            _ if is_named_so => Ok(Kind::Hdf5(path)), // whose reader says what is wrong
            [0x1f, 0x8b, ..] => missing(&path, format!("compressed: unpack it; {KNOWN}")),
            [0x93, b'N', b'U', b'M', ..] => missing(
                &path,
                "give its folder, and the files' names without .npy as data.images and data.labels".into(),
            ),
            _ => missing(&path, KNOWN.into()),
        };
    }
    if !path.is_dir() {
        return missing(&path, format!("no such file or folder; {KNOWN}"));
    }
    if let Some((set, dir)) = cifar::find(&path)? {
        return Ok(Kind::Cifar(set, dir));
    }
    if let Some(paths) = idx::find(&path)? {
        return Ok(Kind::Idx(paths));
    }
    if path.join(format!("{}.npy", data.images)).exists() {
        return Ok(Kind::Npy(path));
    }
    missing(&path, KNOWN.into())
}

/// Refuses keys that data of this kind do not read, if they are set.
///
/// # Errors
/// [`Error::ConfigValue`] with the first such key.
fn refuse_unread(data: &config::Data, kind: &Kind) -> Result<()> {
    let default = config::Data::default();
    let (has_names, has_layout, what) = match kind {
        Kind::Embedded => (false, false, "the embedded synthetic set"),
        Kind::Generated => (false, false, "a synthetic set"),
        Kind::Cifar(..) => (false, false, "CIFAR's binary files"),
        Kind::Idx(_) => (false, true, "IDX files"),
        Kind::Npy(_) | Kind::Hdf5(_) => (true, true, ""),
    };
    let keys = [
        ("data.images", has_names, &data.images, &default.images),
        ("data.labels", has_names, &data.labels, &default.labels),
        ("data.test_images", has_names, &data.test_images, &default.test_images),
        ("data.test_labels", has_names, &data.test_labels, &default.test_labels),
        ("data.test_dir", has_names, &data.test_dir, &default.test_dir),
    ];
    let layout = ("data.layout", has_layout, &data.layout.as_str().to_owned(), &default.layout.as_str().to_owned());
    match keys.into_iter().chain([layout]).find(|(_, is_read, value, default)| !is_read && value != default) {
        None => Ok(()),
        Some((key, _, value, _)) => {
            let expected = format!("not read with {what}: remove it");
            Err(refused(key, format!("{value:?}"), expected))
        }
    }
}

fn refused(key: &str, value: String, expected: String) -> Error {
    Error::ConfigValue { place: "data".into(), key: key.into(), value, expected }
}

/// Number of samples to take of a set of `most`: the configured number of first samples, or all for 0.
fn samples(data: &config::Data, part: usize, most: usize, place: &str) -> Result<usize> {
    let asked = [data.train_samples, data.test_samples][part];
    if asked > most {
        let expected = format!("must be at most {most}, the size of the set (0 takes all)");
        let (place, key) = (place.into(), SAMPLES[part].into());
        return Err(Error::ConfigValue { place, key, value: asked.to_string(), expected });
    }
    Ok(if asked == 0 { most } else { asked })
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

const IN_MEMORY: Stored = Stored { number: Number::U8, channels_last: false, in_files: false };
const IN_FILES: Stored = Stored { in_files: true, ..IN_MEMORY };

fn embedded(data: &config::Data, ranks: Option<&Communicator>) -> Result<Datasets> {
    let place = "the embedded synthetic set (data.dir = \"synthetic\")";
    let counts = [samples(data, 0, synthetic::SAMPLES[0], place)?, samples(data, 1, synthetic::SAMPLES[1], place)?];
    let labels: [Vec<u32>; 2] = std::array::from_fn(|part| synthetic::labels(counts[part], synthetic::SEEDS[part]));
    let images = |part: usize| synthetic::images(&labels[part], synthetic::SEEDS[part]);
    let shared = match ranks {
        Some(ranks) => {
            shared::share(ranks, |file| file.write_all(&images(0)).and_then(|()| file.write_all(&images(1))))?
        }
        None => None,
    };
    let form = Form::Images { shape: [3, synthetic::SIDE, synthetic::SIDE], classes: synthetic::CLASSES };
    let bytes = 3 * synthetic::SIDE * synthetic::SIDE;
    let source = |part: usize| -> Result<Box<dyn Source>> {
        Ok(match &shared {
            None => Box::new(Memory(images(part))),
            Some((path, file)) => {
                Box::new(shared::part_of(path, file, (part * counts[0] * bytes) as Bytes, bytes as Bytes)?)
            }
        })
    };
    let sources = [source(0)?, source(1)?];
    let mut sets = labels.into_iter().zip(sources).map(|(labels, source)| {
        let origin = Origin::new("the embedded synthetic set".as_ref(), "");
        Arc::new(Dataset::new(form, IN_MEMORY, labels.len(), Labels::Held(labels), source, origin))
    });
    let mut next = || sets.next().expect("there are two");
    Ok(Datasets { train: next(), test: next(), name: "synthetic (embedded)".into() })
}

/// A set of the form that `data.shape` and `data.classes` give; where one of them is missing, as in the embedded set.
fn generated(data: &config::Data) -> Result<Datasets> {
    let form = match data.shape[..] {
        [] => Form::Images { shape: cifar::SHAPE, classes: data.classes },
        [channels, height, width] => {
            let classes = if data.classes == 0 { synthetic::CLASSES } else { data.classes };
            Form::Images { shape: [channels, height, width], classes }
        }
        [length] if data.classes == 0 => {
            let expected = format!("must be the vocabulary of the sequences of {length} tokens in data.shape");
            return Err(refused("data.classes", "0".into(), expected));
        }
        [length] => Form::Tokens { length, vocabulary: data.classes },
        _ => unreachable!("the configuration has checked it"),
    };
    refuse_of_tokens(data, form)?;
    let set = |part: usize| {
        let (seed, asked) = (generated::SEEDS[part], [data.train_samples, data.test_samples][part]);
        let samples = if asked == 0 { synthetic::SAMPLES[part] } else { asked };
        let (number, labels) = match form {
            Form::Images { classes, .. } => {
                (Number::U8, Labels::Made(Box::new(move |index| generated::label(seed, index, classes))))
            }
            Form::Tokens { .. } => (Number::I64, Labels::None),
        };
        let (stored, origin) = (Stored { number, ..IN_MEMORY }, Origin::new("the synthetic set".as_ref(), ""));
        Arc::new(Dataset::new(form, stored, samples, labels, Box::new(Generated { form, seed }), origin))
    };
    Ok(Datasets { train: set(0), test: set(1), name: format!("synthetic ({form})") })
}

fn cifar(data: &config::Data, set: &'static Cifar, dir: &Path) -> Result<Datasets> {
    let place = dir.display().to_string();
    check_shape(data, &place, &cifar::SHAPE)?;
    if (1..set.classes).contains(&data.classes) {
        let expected = format!("must be at least {}, the classes of {} (0 takes them)", set.classes, set.name);
        return Err(refused("data.classes", data.classes.to_string(), expected));
    }
    let form = Form::Images { shape: cifar::SHAPE, classes: set.classes.max(data.classes) };
    let counts = [samples(data, 0, set.samples()[0], &place)?, samples(data, 1, set.samples()[1], &place)?];
    let open = |part: usize| -> Result<Arc<Dataset>> {
        let (labels, records) = set.open(dir, part, counts[part])?;
        let labels = Labels::Held(labels);
        Ok(Arc::new(Dataset::new(form, IN_FILES, counts[part], labels, Box::new(records), Origin::new(dir, ""))))
    };
    Ok(Datasets { train: open(0)?, test: open(1)?, name: format!("{} in {}", set.name, dir.display()) })
}

/// Images (or tokens) and labels of a set.
type Pair = (Array, Option<Array>);

/// The training set at `path`, and the test set there or at `data.test_dir`. `open` opens a file or folder, `array` an array in it,
/// `has` tells whether it is there.
fn pairs<F>(
    data: &config::Data,
    path: &Path,
    open: impl Fn(&Path) -> Result<F>,
    array: impl Fn(&F, &str) -> Result<Array>,
    has: impl Fn(&F, &str) -> bool,
) -> Result<[Pair; 2]> {
    let pair = |file: &F, images: &str, labels: &str| -> Result<Pair> {
        let (samples, name) = (array(file, images)?, images);
        if samples.is_tokens() {
            return Ok((samples, None));
        }
        if !has(file, labels) && samples.shape.len() < 3 {
            let message = format!(
                "{} of shape {:?} and no {labels} for {name}: write token sequences as whole numbers [n, length + 1], images as \
                 [n, channels, height, width] with one label each",
                samples.number.as_str(),
                samples.shape
            );
            return Err(samples.error(message));
        }
        Ok((samples, Some(array(file, labels)?)))
    };
    let file = open(path)?;
    let train = pair(&file, &data.images, &data.labels)?;
    let test = match data.test_dir.as_str() {
        "" if !has(&file, &data.test_images) => {
            let message = format!(
                "no test set {:?} here: name it with data.test_images and data.test_labels, or give another file or folder, whose \
                 names are data.images and data.labels, with data.test_dir",
                data.test_images
            );
            return Err(Error::File { path: path.to_owned(), message });
        }
        "" => pair(&file, &data.test_images, &data.test_labels)?,
        other => pair(&open(Path::new(other))?, &data.images, &data.labels)?,
    };
    Ok([train, test])
}

/// The data sets of arrays, after all checks.
fn of_arrays(data: &config::Data, sets: [Pair; 2], name: String) -> Result<Datasets> {
    let forms = sets.each_ref().map(|(images, _)| match images.is_tokens() {
        true => images.as_tokens().map(|length| (vec![length], false)),
        false => images.as_images(data.layout).map(|(shape, last)| (shape.to_vec(), last)),
    });
    let [train, test] = forms;
    let (train, test) = (train?, test?);
    if train.0 != test.0 {
        let message = format!("test samples of shape {:?}, but the training set's are {:?}", test.0, train.0);
        return Err(sets[1].0.error(message));
    }
    check_shape(data, &name, &train.0)?;
    let labels =
        sets.each_ref().map(|(images, labels)| labels.as_ref().map(|labels| labels.labels(images, data)).transpose());
    let [train_labels, test_labels] = labels;
    let labels = [train_labels?, test_labels?];
    let form = match train.0[..] {
        [length] => {
            if data.classes == 0 {
                let expected = format!(
                    "must be the vocabulary: {name} holds sequences of {length} tokens (if they are meant as images, write them as \
                     [n, height, width])"
                );
                return Err(refused("data.classes", "0".into(), expected));
            }
            Form::Tokens { length, vocabulary: data.classes }
        }
        _ => {
            let classes = if data.classes > 0 { data.classes } else { classes_of(&sets, &labels)? };
            Form::Images { shape: [train.0[0], train.0[1], train.0[2]], classes }
        }
    };
    refuse_of_tokens(data, form)?;
    let mut orders = [train.1, test.1].into_iter();
    let mut made = sets.into_iter().zip(labels).enumerate().map(|(part, ((images, _), labels))| {
        let origin = images.origin().clone();
        let samples = samples(data, part, images.len(), &name)?;
        let channels_last = orders.next().expect("there are two");
        let stored = Stored { number: images.number, channels_last, in_files: true };
        let labels = labels.map_or(Labels::None, |mut labels| {
            labels.truncate(samples);
            labels.shrink_to_fit();
            Labels::Held(labels)
        });
        let source = images.into_source(data.cache_mb * 1_000_000)?;
        let set = Dataset::new(form, stored, samples, labels, source, origin);
        set.check()?;
        Ok(Arc::new(set))
    });
    let mut next = || made.next().expect("there are two");
    Ok(Datasets { train: next()?, test: next()?, name })
}

/// Number of classes by the labels of the training set: the greatest label + 1.
///
/// # Errors
/// [`Error::Dataset`] or [`Error::File`] that names a label which makes more classes than there are training samples, or is
/// greater than all in the training set: rather a mistake than a class.
fn classes_of(sets: &[Pair; 2], labels: &[Option<Vec<u32>>; 2]) -> Result<usize> {
    let greatest = |part: usize| {
        // The first of equal ones: `max_by_key` takes the last.
        let numbered = labels[part].as_deref().unwrap_or_default().iter().enumerate().rev();
        numbered.max_by_key(|(_, label)| **label).map_or((0, 0), |(sample, label)| (sample, *label))
    };
    let refuse = |part: usize, (sample, label): (usize, u32), why: String| {
        let named: &Array = sets[part].1.as_ref().unwrap_or(&sets[part].0);
        Err(named.error(format!("sample {sample} has label {label}, {why}: set data.classes if that is meant")))
    };
    let [train, test] = [greatest(0), greatest(1)];
    let classes = train.1 as usize + 1;
    let samples = labels[0].as_ref().map_or(0, Vec::len);
    if classes > samples {
        return refuse(0, train, format!("which makes {classes} classes of {samples} training samples"));
    }
    if test.1 > train.1 {
        return refuse(1, test, format!("and the greatest label of the training set is {}", train.1));
    }
    Ok(classes)
}

/// Checks that `data.shape`, if it is given, is the `found` one.
fn check_shape(data: &config::Data, place: &str, found: &[usize]) -> Result<()> {
    if data.shape.is_empty() || data.shape == found {
        return Ok(());
    }
    let (place, key, value) = (place.into(), "data.shape".into(), format!("{:?}", data.shape));
    Err(Error::ConfigValue { place, key, value, expected: format!("the samples there have {found:?}: remove it") })
}

/// Refuses keys of images, if they are set and the set has tokens.
fn refuse_of_tokens(data: &config::Data, form: Form) -> Result<()> {
    let default = config::Data::default();
    if let Form::Images { .. } = form {
        return Ok(());
    }
    let set = [
        ("data.augment", data.augment, "true".to_owned()),
        ("data.mean", data.mean != default.mean, format!("{:?}", data.mean)),
        ("data.std", data.std != default.std, format!("{:?}", data.std)),
        ("data.layout", data.layout != Layout::Auto, format!("{:?}", data.layout.as_str())),
    ];
    match set.into_iter().find(|(_, is_set, _)| *is_set) {
        None => Ok(()),
        Some((key, _, value)) => Err(refused(key, value, "is for images, and these are tokens: remove it".into())),
    }
}

const _: () = assert!(MOST_CLASSES <= u32::MAX as usize, "labels are u32");

#[cfg(test)]
mod tests {
    use super::*;

    fn open_with(overrides: &[&str]) -> Result<Datasets> {
        let overrides: Vec<String> = overrides.iter().map(|given| given.to_string()).collect();
        open(&config::Config::load(None, &overrides)?.data)
    }

    #[test]
    fn without_a_folder_the_synthetic_set_is_cut_to_the_first_samples() {
        let few = open_with(&["data.train_samples=30", "data.test_samples=20"]).unwrap();
        assert_eq!((few.train.len(), few.test.len()), (30, 20));
        let more = open_with(&["data.train_samples=50", "data.test_samples=20"]).unwrap();
        assert_eq!(more.train.images(0..30).unwrap(), few.train.images(0..30).unwrap());
        assert_eq!(more.test.images(0..20).unwrap(), few.test.images(0..20).unwrap());
    }

    #[test]
    fn shape_and_classes_make_a_set_of_any_form() {
        let images =
            open_with(&["data.shape=[1,28,28]", "data.classes=47", "data.train_samples=4_000_000_000"]).unwrap();
        assert_eq!(images.form(), Form::Images { shape: [1, 28, 28], classes: 47 });
        assert_eq!(images.train.images(7..9).unwrap().len(), 2 * 784);
        assert!((0..100).all(|index| images.train.label(index) < 47));
        let tokens = open_with(&["data.shape=[128]", "data.classes=1000"]).unwrap();
        assert_eq!(tokens.form(), Form::Tokens { length: 128, vocabulary: 1000 });
        assert_eq!(tokens.train.bytes(0..1).unwrap().len(), 129 * 8);
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_key() {
        for (set, named) in [
            (&["data.test_samples=2001"][..], "data.test_samples = 2001: must be at most 2000"),
            (&["data.shape=[128]"], "data.classes = 0: must be the vocabulary"),
            (&["data.shape=[128]", "data.classes=10", "data.augment=true"], "data.augment = true: is for images"),
            (&["data.images=x"], "data.images = \"x\": not read with the embedded synthetic set"),
            (&["data.layout=nhwc"], "data.layout = \"nhwc\": not read"),
            (&["data.dir=/no/such"], "/no/such: no data here: no such file or folder"),
        ] {
            let message = open_with(set).err().unwrap().to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn the_fingerprint_of_the_embedded_set_is_that_of_the_first_release() {
        let set = open_with(&["data.train_samples=1000"]).unwrap();
        assert_eq!(set.train.fingerprint().unwrap(), "825c49067d2ceb48");
    }
}
