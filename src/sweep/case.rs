//! The cases of a sweep.

use crate::config::{self, ModelName, Timing, repeated};
use crate::error::{Error, Result};
use crate::units::counted;

/// One case of a sweep: network, ranks, batch and timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Network.
    pub model: ModelName,
    /// Number of ranks: the first `ranks` of the job.
    pub ranks: usize,
    /// Samples per rank and step.
    pub batch_per_rank: usize,
    /// Timing mode of the steps.
    pub timing: Timing,
}

impl Case {
    /// Samples per step over all ranks. A step is full even if the data set is smaller: samples are drawn again, since only speed
    /// counts.
    pub fn global_batch(&self) -> usize {
        self.ranks * self.batch_per_rank
    }

    /// Network, ranks, batch and timing in one line.
    pub fn describe(&self) -> String {
        let Case { model, ranks, batch_per_rank, timing } = *self;
        format!("{}, {}, batch {batch_per_rank}, {}", model.as_str(), counted(ranks, "rank"), timing.as_str())
    }
}

/// Lists all cases of `sweep` on `world_size` ranks, of `model` unless it names networks itself, in an order that depends on
/// nothing else. Default batch sizes go up to `samples`, the size of the training set.
///
/// # Errors
/// `sweep.ranks` holds more ranks than the job has, or a list holds a value twice.
pub fn cases(sweep: &config::Sweep, model: ModelName, world_size: usize, samples: usize) -> Result<Vec<Case>> {
    let refuse = |key: &str, value: String, expected: String| {
        Err(Error::ConfigValue { place: "sweep".into(), key: key.into(), value, expected })
    };
    if let Some(&ranks) = sweep.ranks.iter().find(|&&ranks| ranks > world_size) {
        return refuse("sweep.ranks", ranks.to_string(), format!("the job has {world_size} ranks: start it with more"));
    }
    let twice = [
        ("sweep.model", repeated(&sweep.model).map(|model| model.as_str().to_owned())),
        ("sweep.batch_per_rank", repeated(&sweep.batch_per_rank).map(usize::to_string)),
        ("sweep.ranks", repeated(&sweep.ranks).map(usize::to_string)),
        ("sweep.timing", repeated(&sweep.timing).map(|timing| timing.as_str().to_owned())),
    ];
    if let Some((key, value)) = twice.into_iter().find_map(|(key, value)| value.map(|value| (key, value))) {
        return refuse(key, value, "is listed twice: list each once".into());
    }
    let models = if sweep.model.is_empty() { vec![model] } else { sweep.model.clone() };
    let batches = if sweep.batch_per_rank.is_empty() { default_batches(samples) } else { sweep.batch_per_rank.clone() };
    let ranks = if sweep.ranks.is_empty() { powers_of_two(world_size) } else { sweep.ranks.clone() };
    let mut cases = Vec::new();
    for &model in &models {
        for &batch_per_rank in &batches {
            for &ranks in &ranks {
                cases.extend(sweep.timing.iter().map(|&timing| Case { model, ranks, batch_per_rank, timing }));
            }
        }
    }
    Ok(cases)
}

/// Default batch sizes: 32 in any case; larger ones up to the data set, beyond which a step is more than an epoch.
fn default_batches(samples: usize) -> Vec<usize> {
    let beyond = std::iter::successors(Some(2048), |batch: &usize| batch.checked_mul(4));
    let larger = [128, 512, 1024].into_iter().chain(beyond).take_while(|&batch| batch <= samples);
    std::iter::once(32).chain(larger).collect()
}

/// Powers of two up to `most`, and `most` itself.
fn powers_of_two(most: usize) -> Vec<usize> {
    let mut ranks: Vec<usize> =
        std::iter::successors(Some(1), |ranks| Some(ranks * 2)).take_while(|&ranks| ranks < most).collect();
    ranks.push(most);
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_default_is_every_power_of_two_and_batches_up_to_the_data_set() {
        let cases = cases(&config::Sweep::default(), ModelName::Net, 6, 10_000).unwrap();
        let of = |ranks: usize, batch: usize| {
            cases.iter().filter(|case| case.ranks == ranks && case.batch_per_rank == batch).count()
        };
        assert_eq!((of(1, 32), of(2, 32), of(4, 2048), of(6, 32), of(6, 8192)), (2, 2, 2, 2, 2));
        assert_eq!((of(1, 8192), of(1, 32_768)), (2, 0));
        assert_eq!(powers_of_two(1), [1]);
        assert_eq!(powers_of_two(4), [1, 2, 4]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_by_name() {
        let cases_of = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|given| given.to_string()).collect();
            cases(&Config::load(None, &overrides).unwrap().sweep, ModelName::Net, 2, 1000)
                .map_err(|error| error.to_string())
        };
        assert!(cases_of(&["sweep.ranks=[1, 4]"]).unwrap_err().contains("the job has 2 ranks"));
        for (set, named) in [
            ("sweep.ranks=[2, 1, 2]", "sweep.ranks = 2"),
            ("sweep.batch_per_rank=[8, 8]", "sweep.batch_per_rank = 8"),
            ("sweep.model=['net', 'net']", "sweep.model = net"),
            ("sweep.timing=['overlap', 'overlap']", "sweep.timing = overlap"),
        ] {
            let message = cases_of(&[set]).unwrap_err();
            assert!(message.contains(named) && message.contains("twice"), "{message}");
        }
    }

    #[test]
    fn no_case_is_left_out_for_lack_of_samples() {
        let overrides = ["sweep.batch_per_rank=[900, 4000]".to_owned()];
        let cases = cases(&Config::load(None, &overrides).unwrap().sweep, ModelName::Net, 2, 1000).unwrap();
        assert_eq!(cases.len(), 8); // 2 batches x 2 rank counts x 2 timings
        assert_eq!(cases.iter().map(Case::global_batch).max(), Some(8000));
        assert_eq!(default_batches(20), [32]);
    }
}
