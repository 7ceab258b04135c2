//! What is trained on, and which of it each rank draws.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The value of `data.dir` that means the embedded synthetic set.
pub const SYNTHETIC: &str = "synthetic";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Data {
    pub dir: String,
    pub train_samples: usize,
    pub test_samples: usize,
    pub shuffle: bool,
    pub set_epoch: bool,
    pub shares: Shares,
    pub drop_last: bool,
    pub augment: bool,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub prefetch: usize,
}

impl Data {
    /// The folder of the CIFAR-10 files; `None`: the embedded synthetic set.
    pub fn folder(&self) -> Option<PathBuf> {
        (self.dir != SYNTHETIC).then(|| PathBuf::from(&self.dir))
    }

    /// Holds these data to be of the kind that the network of `file` was `trained` on: the accuracy on others, or on pixels
    /// normalised otherwise, says nothing of it.
    ///
    /// Error: the first key that makes them of another kind.
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
                                give a run file of a training on these images";
                return refuse("data.dir", format!("{:?}", self.dir), expected.into());
            }
            _ => {}
        }
        let normalised = [("data.mean", self.mean, trained.mean), ("data.std", self.std, trained.std)];
        match normalised.into_iter().find(|(_, own, trained)| own != trained) {
            Some((key, own, trained)) => {
                refuse(key, format!("{own:?}"), format!("this network was trained with {trained:?}: leave it out"))
            }
            None => Ok(()),
        }
    }
}

/// Which samples of an epoch a rank draws. The first is right; the others are mistakes to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shares {
    /// Its part of one order that all ranks share, as DistributedSampler.
    Disjoint,
    /// Its part of an order of its own: each rank has seeded its sampler differently.
    OwnOrder,
    /// Rank 0's part, as all others do.
    Same,
}
