//! The configuration of a running job, as it is used. In: a [`Config`] as written, and the number of ranks. Out: a [`Plan`],
//! which can be read but not changed: whoever needs another one makes it with [`Plan::adapted`], which checks it again.

use std::ops::Deref;

use super::Config;
use crate::error::{Error, Result};

/// Place, in messages, of a value that stands in no file and on no command line.
const PLACE: &str = "configuration";

/// A checked configuration, as a job of [`world_size`](Self::world_size) ranks uses it. Sections are read as those of [`Config`].
///
/// # Examples
/// ```
/// use hpml::config::{Config, Plan};
///
/// let written = Config::load(None, &["train.global_batch=64".to_owned()])?;
/// let plan = Plan::new(written, 4)?;
/// assert_eq!(plan.train.batch_per_rank, 16);
/// assert!(plan.adapted(|config| config.train.epochs = 0).is_err());
/// # Ok::<(), hpml::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    used: Config,
    written: String,
    world_size: usize,
}

impl Deref for Plan {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.used
    }
}

impl Plan {
    /// The plan of `world_size` ranks that train together: `train.global_batch` is turned into `train.batch_per_rank`.
    ///
    /// # Errors
    /// A value is out of range, or `train.global_batch` does not divide by the ranks and `train.accumulate`.
    pub fn new(written: Config, world_size: usize) -> Result<Plan> {
        let mut plan = Plan::with_batch_as_written(written, world_size)?;
        let (global, accumulate) = (plan.train.global_batch, plan.train.accumulate);
        let parts = world_size * accumulate;
        if global > 0 {
            if global % parts != 0 {
                let expected = format!("must be a multiple of {world_size} ranks x train.accumulate = {accumulate}");
                let (place, key) = ("train".into(), "train.global_batch".into());
                return Err(Error::ConfigValue { place, key, value: global.to_string(), expected });
            }
            plan.used.train.batch_per_rank = global / parts;
        }
        Ok(plan)
    }

    /// The plan of a command whose batches do not come from `train.global_batch` on these ranks: cases of a sweep and variants of
    /// a study have batches of their own, and a network is quantized with the `train.batch_per_rank` that it was trained with.
    ///
    /// # Errors
    /// A value is out of range.
    pub fn with_batch_as_written(written: Config, world_size: usize) -> Result<Plan> {
        written.validate(PLACE)?;
        Ok(Plan { written: written.to_toml(), used: written, world_size })
    }

    /// The plan that follows from this one by a `change`, checked.
    ///
    /// # Errors
    /// A changed value is out of range.
    pub fn adapted(&self, change: impl FnOnce(&mut Config)) -> Result<Plan> {
        let mut plan = self.clone();
        change(&mut plan.used);
        plan.used.validate(PLACE)?;
        Ok(plan)
    }

    /// The configuration as TOML before the ranks, the data or an earlier job of the run changed anything in it.
    pub fn as_written(&self) -> &str {
        &self.written
    }

    /// Ranks that the plan is for.
    pub fn world_size(&self) -> usize {
        self.world_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(set: &[&str]) -> Config {
        Config::load(None, &set.iter().map(|given| given.to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_written_form_stays_beside_the_used_one() {
        let plan = Plan::new(config(&["train.global_batch=48", "train.accumulate=2"]), 3).unwrap();
        assert_eq!((plan.train.batch_per_rank, plan.world_size()), (8, 3));
        let adapted = plan.adapted(|config| config.train.batch_per_rank = 4).unwrap();
        assert_eq!((adapted.train.batch_per_rank, adapted.as_written()), (4, plan.as_written()));
        let written: Config = toml::from_str(plan.as_written()).unwrap();
        assert_eq!(written, config(&["train.global_batch=48", "train.accumulate=2"]));
    }

    #[test]
    fn no_plan_has_a_value_out_of_range() {
        let plan = Plan::new(Config::default(), 1).unwrap();
        let message = plan.adapted(|config| config.data.std[1] = 0.0).unwrap_err().to_string();
        assert!(message.contains("data.std"), "{message}");
        let mut written = Config::default();
        written.train.epochs = 0;
        assert!(Plan::new(written, 1).is_err());
    }
}
