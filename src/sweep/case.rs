//! What there is to measure.

use crate::config::{Config, ModelName, Timing};
use crate::error::{Error, Result};

/// One case of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// The network.
    pub model: ModelName,
    /// The first so many ranks of the job.
    pub ranks: usize,
    /// Samples per rank and step.
    pub batch_per_rank: usize,
    /// How steps are timed.
    pub timing: Timing,
}

/// All cases of the configuration on so many ranks, in an order that only depends on these.
///
/// Errors: more ranks asked for than there are; a batch that the data set cannot fill.
pub fn cases(config: &Config, world_size: usize, samples: usize) -> Result<Vec<Case>> {
    let sweep = &config.sweep;
    let refuse = |key: &str, value: usize, expected: String| {
        Err(Error::ConfigValue { place: "sweep".into(), key: key.into(), value: value.to_string(), expected })
    };
    if let Some(&ranks) = sweep.ranks.iter().find(|&&ranks| ranks > world_size) {
        return refuse("sweep.ranks", ranks, format!("the job has {world_size} ranks: start it with more"));
    }
    if let Some(&batch) = sweep.batch_per_rank.iter().find(|&&batch| batch > samples) {
        return refuse("sweep.batch_per_rank", batch, format!("there are {samples} training samples"));
    }
    let models = if sweep.model.is_empty() { vec![config.model.name] } else { sweep.model.clone() };
    let batches = if sweep.batch_per_rank.is_empty() { default_batches(samples) } else { sweep.batch_per_rank.clone() };
    let ranks = if sweep.ranks.is_empty() { powers_of_two(world_size) } else { sweep.ranks.clone() };
    let mut cases = Vec::new();
    for &model in &models {
        for &batch_per_rank in &batches {
            for &ranks in ranks.iter().filter(|&&ranks| batch_per_rank * ranks <= samples) {
                for &timing in &sweep.timing {
                    let case = Case { model, ranks, batch_per_rank, timing };
                    if !cases.contains(&case) {
                        cases.push(case);
                    }
                }
            }
        }
    }
    if cases.is_empty() {
        let expected = format!("no case has batch x ranks within the {samples} training samples");
        return refuse("sweep.batch_per_rank", batches.first().copied().unwrap_or(0), expected);
    }
    Ok(cases)
}

fn default_batches(samples: usize) -> Vec<usize> {
    let beyond = std::iter::successors(Some(2048), |batch: &usize| batch.checked_mul(4));
    [32, 128, 512, 1024].into_iter().chain(beyond).take_while(|&batch| batch <= samples).collect()
}

/// 1, 2, 4, ... and `most` itself.
fn powers_of_two(most: usize) -> Vec<usize> {
    let mut ranks: Vec<usize> =
        std::iter::successors(Some(1), |ranks| Some(ranks * 2)).take_while(|&ranks| ranks < most).collect();
    ranks.push(most);
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_every_power_of_two_and_batches_that_the_data_fill() {
        let cases = cases(&Config::default(), 6, 10_000).unwrap();
        let of = |ranks: usize, batch: usize| {
            cases.iter().filter(|case| case.ranks == ranks && case.batch_per_rank == batch).count()
        };
        assert_eq!((of(1, 32), of(2, 32), of(4, 2048), of(6, 32), of(6, 2048)), (2, 2, 2, 2, 0));
        assert_eq!((of(1, 8192), of(1, 32_768)), (2, 0));
        assert_eq!(powers_of_two(1), [1]);
        assert_eq!(powers_of_two(4), [1, 2, 4]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_by_name() {
        let cases_of = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|given| given.to_string()).collect();
            cases(&Config::load(None, &overrides).unwrap(), 2, 1000).map_err(|error| error.to_string())
        };
        assert!(cases_of(&["sweep.ranks=[1, 4]"]).unwrap_err().contains("the job has 2 ranks"));
        assert!(cases_of(&["sweep.batch_per_rank=2000"]).unwrap_err().contains("1000 training samples"));
        assert!(cases_of(&["sweep.batch_per_rank=900", "sweep.ranks=2"]).unwrap_err().contains("no case"));
        let few = cases_of(&["sweep.batch_per_rank=4", "sweep.ranks=[2, 2]", "sweep.timing=overlap"]).unwrap();
        assert_eq!(few.len(), 1);
    }
}
