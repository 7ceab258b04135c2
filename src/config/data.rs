//! Section `[data]`: the data set, and the samples that each rank draws.

use std::path::{Path, PathBuf};

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Value of `data.dir` that selects the embedded synthetic set.
pub const SYNTHETIC: &str = "synthetic";

/// Section `[data]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Folder of CIFAR-10's binary files, or the folder above it; synthetic: the embedded set (a
    /// folder of that name is ./synthetic).
    pub dir: String,
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
    /// Mean per channel (R, G, B) of pixels scaled to 0..1; input = (pixel / 255 - mean) / std.
    pub mean: [f32; 3],
    /// Standard deviation per channel (R, G, B) of pixels scaled to 0..1, above 0.
    pub std: [f32; 3],
    /// Batches that a second thread prepares in advance; at least 1.
    pub prefetch: usize,
}

impl Data {
    /// Folder of the CIFAR-10 files; `None`: the embedded synthetic set.
    pub fn folder(&self) -> Option<PathBuf> {
        (self.dir != SYNTHETIC).then(|| PathBuf::from(&self.dir))
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
                    "this network was trained on CIFAR-10 in {}, not on the embedded synthetic set: give that folder with --data",
                    trained.dir
                );
                return refuse("data.dir", format!("{:?}", self.dir), expected);
            }
            (None, Some(_)) => {
                let expected = "this network was trained on the embedded synthetic set: leave out --data and data.dir, or \
                                give the run file of a training on these images";
                return refuse("data.dir", format!("{:?}", self.dir), expected.into());
            }
            _ => {}
        }
        let normalization = [("data.mean", self.mean, trained.mean), ("data.std", self.std, trained.std)];
        match normalization.into_iter().find(|(_, own, trained)| own != trained) {
            Some((key, own, trained)) => {
                refuse(key, format!("{own:?}"), format!("this network was trained with {trained:?}: remove it"))
            }
            None => Ok(()),
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
