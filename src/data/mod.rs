//! Images and labels. In: the `[data]` section. Out: [`Datasets`] in memory; the indices that each rank draws in an epoch
//! ([`Sampler`]); and a [`Feed`] of batches `[n, 3, 32, 32]`, made by a [`Loader`] on another thread, or by a device from its
//! own copy of the images.
//!
//! Images stay u8 until a batch is made of them. Two sources: CIFAR-10's binary files, or a synthetic set that needs no
//! file and no network. Nothing here talks to other ranks: a rank's samples follow from its number and the seed.

mod augment;
mod cifar10;
mod form;
mod loader;
mod resident;
mod sampler;
mod synthetic;

use std::sync::Arc;

use crate::config;
use crate::error::{Error, Result};
pub use augment::AugmentSeed;
pub use cifar10::append_records;
pub use form::Form;
pub use loader::{Batch, BatchPlan, Loader, LoaderOptions};
pub use resident::{Batches, Feed};
pub use sampler::{Sampler, samples_per_rank};

/// Number of classes of every data set.
pub const CLASSES: usize = 10;
/// Width and height of an image in pixels.
const SIDE: usize = 32;
/// Pixels of one channel.
const PLANE: usize = SIDE * SIDE;
/// Bytes of an image: red, green, blue plane, row by row.
const IMAGE_BYTES: usize = 3 * PLANE;

/// Images and their labels.
#[derive(Debug, PartialEq)]
pub struct Dataset {
    /// `[n, 3, 32, 32]` u8, row-major.
    pub images: Vec<u8>,
    /// `[n]`, each 0 to 9.
    pub labels: Vec<u8>,
}

impl Dataset {
    fn with_capacity(samples: usize) -> Dataset {
        Dataset { images: Vec::with_capacity(samples * IMAGE_BYTES), labels: Vec::with_capacity(samples) }
    }

    /// Form of the samples.
    pub fn form(&self) -> Form {
        Form::CIFAR10
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Fingerprint that identifies the data set: a hash of all labels and of every 61st image, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.labels);
        for index in (0..self.len()).step_by(61) {
            hasher.update(self.image(index));
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }

    /// Image `index`, `[3, 32, 32]`.
    pub fn image(&self, index: usize) -> &[u8] {
        &self.images[index * IMAGE_BYTES..][..IMAGE_BYTES]
    }
}

/// Data sets of a run.
pub struct Datasets {
    /// Data set to train on.
    pub train: Arc<Dataset>,
    /// Data set to test on.
    pub test: Arc<Dataset>,
    /// Name for the header and the run file, with the folder it was read from.
    pub name: String,
}

/// Reads (or makes) the data that the configuration names.
///
/// ```
/// let datasets = hpml::data::open(&hpml::config::Data::default())?; // the embedded synthetic set
/// assert_eq!(datasets.test.image(0).len(), 3 * 32 * 32);
/// # Ok::<(), hpml::error::Error>(())
/// ```
///
/// # Errors
/// A file is missing, has the wrong size or holds an impossible label, or the configuration wants more samples than there are.
pub fn open(data: &config::Data) -> Result<Datasets> {
    let wanted = |place: &str, most_train, most_test| {
        let train = samples(place, "data.train_samples", data.train_samples, most_train)?;
        Ok((train, samples(place, "data.test_samples", data.test_samples, most_test)?))
    };
    let (train, test, name) = match data.folder() {
        Some(dir) => {
            let dir = cifar10::find(&dir)?;
            let (train, test) = wanted(&dir.display().to_string(), cifar10::TRAIN_SAMPLES, cifar10::TEST_SAMPLES)?;
            let (train, test) = (cifar10::read_train(&dir, train)?, cifar10::read_test(&dir, test)?);
            (train, test, format!("CIFAR-10 in {}", dir.display()))
        }
        None => {
            let place = "the embedded synthetic set (data.dir = \"synthetic\")";
            let (train, test) = wanted(place, synthetic::TRAIN_SAMPLES, synthetic::TEST_SAMPLES)?;
            (synthetic::train(train), synthetic::test(test), "synthetic (embedded)".into())
        }
    };
    Ok(Datasets { train: Arc::new(train), test: Arc::new(test), name })
}

/// Number of samples to take: the first `asked`, or all `most` for 0.
fn samples(place: &str, key: &str, asked: usize, most: usize) -> Result<usize> {
    if asked > most {
        let expected = format!("must be at most {most}, the size of the set (0 takes all)");
        return Err(Error::ConfigValue { place: place.into(), key: key.into(), value: asked.to_string(), expected });
    }
    Ok(if asked == 0 { most } else { asked })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_with(overrides: &[&str]) -> Result<Datasets> {
        let overrides: Vec<String> = overrides.iter().map(|given| given.to_string()).collect();
        open(&config::Config::load(None, &overrides).unwrap().data)
    }

    #[test]
    fn without_a_folder_the_synthetic_set_is_cut_to_the_first_samples() {
        let few = open_with(&["data.train_samples=30", "data.test_samples=20"]).unwrap();
        assert_eq!((few.train.len(), few.test.len()), (30, 20));
        let more = open_with(&["data.train_samples=50", "data.test_samples=20"]).unwrap();
        assert_eq!(more.train.images[..30 * IMAGE_BYTES], few.train.images[..]);
        assert_eq!(more.test, few.test);
    }

    #[test]
    fn more_samples_than_there_are_is_an_error_that_names_the_key_and_the_most() {
        let message = open_with(&["data.test_samples=2001"]).err().unwrap().to_string();
        assert!(message.contains("data.test_samples = 2001: must be at most 2000"), "{message}");
    }
}
