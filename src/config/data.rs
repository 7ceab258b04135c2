//! Section `[data]`: the data set, and the samples that each rank draws.

use std::path::{Path, PathBuf};

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::units::counted;

/// Value of `data.dir` that selects a synthetic set.
pub const SYNTHETIC: &str = "synthetic";

/// Section `[data]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// The data: an HDF5 file, or a folder of CIFAR-10's or CIFAR-100's binary files (or the one
    /// above it), of MNIST-type IDX files, or of .npy files; synthetic: a set made without files (a
    /// folder of that name is ./synthetic).
    pub dir: String,
    /// Shape of a sample: [channels, height, width] of images, `[length]` of token sequences. Makes
    /// a synthetic set of that form; data in files must have it. []: as the data are; synthetic:
    /// the embedded set, [3, 32, 32] in ten classes.
    pub shape: Vec<usize>,
    /// Number of classes; of token sequences the size of the vocabulary, which must be given.
    /// 0: as the data are, the greatest label + 1; synthetic: 10.
    pub classes: usize,
    /// Dataset of the training images, or of token sequences [n, length + 1], in an HDF5 file; name
    /// of their .npy file without the ending.
    pub images: String,
    /// Dataset (or .npy file) of the training labels, one whole number from 0 per image.
    pub labels: String,
    /// Dataset (or .npy file) of the test images or token sequences.
    pub test_images: String,
    /// Dataset (or .npy file) of the test labels.
    pub test_labels: String,
    /// HDF5 file (or folder of .npy files) of the test set, in which data.images and data.labels are
    /// the names; empty: the test set lies beside the training set.
    pub test_dir: String,
    /// Axes of images in files: nchw, nhwc, or auto: told by the shape.
    pub layout: Layout,
    /// Number of training samples, counted from the first; 0: all.
    pub train_samples: usize,
    /// Number of test samples, counted from the first; 0: all.
    pub test_samples: usize,
    /// Draws the training samples in a new order every epoch, seeded with run.seed + epoch as
    /// PyTorch's DistributedSampler does.
    pub shuffle: bool,
    /// Tells the sampler the epoch; false: every epoch has the same order, as with a
    /// DistributedSampler whose set_epoch is not called.
    pub set_epoch: bool,
    /// Samples that a rank draws; disjoint: its part of one order, as DistributedSampler does. Two
    /// mistakes to study: own_order (its part of an order seeded per rank) and same (rank 0's part
    /// on all ranks).
    pub shares: Shares,
    /// Drops the last samples of an epoch if they do not divide by the ranks; false: the first
    /// samples are repeated to fill up.
    pub drop_last: bool,
    /// Crops (4 pixels of padding) and flips the training images at random.
    pub augment: bool,
    /// Mean per channel of pixels scaled to 0..1; input = (pixel / 255 - mean) / std. Pixels in
    /// float32 are taken as scaled: (pixel - mean) / std. Equal values hold for any number of channels.
    pub mean: Vec<f32>,
    /// Standard deviation per channel of pixels scaled to 0..1, above 0.
    pub std: Vec<f32>,
    /// Batches that other threads prepare in advance; at least 1.
    pub prefetch: usize,
    /// Threads per rank that read and prepare; 0: one, or four if the data in files are larger than
    /// 1 GiB.
    pub threads: usize,
    /// Memory per rank for chunks of HDF5 files, in MB (10^6 bytes).
    pub cache_mb: usize,
    /// Largest set that is copied into GPU memory, in MB; batches of a larger one are made on the
    /// host.
    pub gpu_mb: usize,
}

impl Data {
    /// File or folder of the data; `None`: a synthetic set.
    pub fn folder(&self) -> Option<PathBuf> {
        (self.dir != SYNTHETIC).then(|| PathBuf::from(&self.dir))
    }

    /// Mean and standard deviation of each of `channels` channels.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] if there are other values than one per channel.
    pub fn normalization(&self, channels: usize) -> Result<[Vec<f32>; 2]> {
        let per_channel = |key: &str, values: &[f32]| {
            if values.len() == channels {
                return Ok(values.to_vec());
            }
            if values.iter().all(|value| *value == values[0]) {
                return Ok(vec![values[0]; channels]);
            }
            let expected =
                format!("the images have {}: give one value per channel, or one for all", counted(channels, "channel"));
            let (place, key) = ("data".into(), key.into());
            Err(Error::ConfigValue { place, key, value: format!("{values:?}"), expected })
        };
        Ok([per_channel("data.mean", &self.mean)?, per_channel("data.std", &self.std)?])
    }

    /// Refuses data of another kind than those that the network of `file` was `trained` on: its accuracy on other images, or
    /// on pixels normalized differently, would mean nothing.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] with the first key that differs.
    pub fn check_kind(&self, trained: &Data, file: &Path) -> Result<()> {
        let refuse = |key: &str, value: String, expected: String| {
            Err(Error::ConfigValue { place: file.display().to_string(), key: key.into(), value, expected })
        };
        match (trained.folder(), self.folder()) {
            (Some(_), None) => {
                let expected = format!(
                    "this network was trained on the data in {}, not on a synthetic set: give these with --data",
                    trained.dir
                );
                return refuse("data.dir", format!("{:?}", self.dir), expected);
            }
            (None, Some(_)) => {
                let expected = "this network was trained on a synthetic set: leave out --data and data.dir, or give the run file \
                                of a training on these data";
                return refuse("data.dir", format!("{:?}", self.dir), expected.into());
            }
            _ => {}
        }
        let differing = [
            ("data.shape", format!("{:?}", self.shape), format!("{:?}", trained.shape)),
            ("data.classes", self.classes.to_string(), trained.classes.to_string()),
            ("data.mean", format!("{:?}", self.mean), format!("{:?}", trained.mean)),
            ("data.std", format!("{:?}", self.std), format!("{:?}", trained.std)),
        ];
        match differing.into_iter().find(|(_, own, trained)| own != trained) {
            Some((key, own, trained)) => {
                refuse(key, own, format!("this network was trained with {trained}: remove it"))
            }
            None => Ok(()),
        }
    }
}

/// Order of the axes of images in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Told by the shape: the axis with at most 4 values is that of the channels.
    Auto,
    /// `[n, channels, height, width]`.
    Nchw,
    /// `[n, height, width, channels]`.
    Nhwc,
}

impl Layout {
    /// Name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Layout::Auto => "auto",
            Layout::Nchw => "nchw",
            Layout::Nhwc => "nhwc",
        }
    }
}

/// Samples of an epoch that a rank draws. `Disjoint` is right; the others are mistakes to study.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shares {
    /// The rank's part of one order that all ranks share, as with DistributedSampler.
    Disjoint,
    /// The rank's part of an order that each rank seeds differently.
    OwnOrder,
    /// Rank 0's part, on every rank.
    Same,
}
