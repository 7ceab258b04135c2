//! A machine: the levels that join its ranks, and the time of an all-reduce over them. Pure arithmetic, and the reader of its file.
//!
//! Each level has Hockney's terms: a latency per message and a bandwidth. docs/prediction.md has the formulas and their sources.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{AtPath, Error, Result};
use crate::units::Second;

/// Factor by which the messages of a ring between hosts take longer than one message alone, in NCCL's own cost model.
/// Source: NCCL 2.20, src/graph/tuning.cc, "Plateau effect of ring".
const RING_PLATEAU: f64 = 1.9;

/// Share of the bandwidth that a tree reaches in NCCL's own cost model. Source: NCCL 2.8, src/graph/tuning.cc.
const TREE_BANDWIDTH: f64 = 0.9;

/// Algorithm of an all-reduce, or the library that chooses one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllReduce {
    /// One ring over all ranks.
    Ring,
    /// A chain within the units of the innermost level, binary trees between them, as NCCL's.
    Tree,
    /// Level by level, each by the cheaper of a ring and of halving and doubling.
    Hierarchical,
    /// `Ring` or `Tree`, whichever is cheaper for the buffer by NCCL's cost model.
    #[default]
    Nccl,
}

impl AllReduce {
    /// Name in the machine's file.
    pub fn as_str(self) -> &'static str {
        match self {
            AllReduce::Ring => "ring",
            AllReduce::Tree => "tree",
            AllReduce::Hierarchical => "hierarchical",
            AllReduce::Nccl => "nccl",
        }
    }
}

/// Links of one kind, and the ranks that they join.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Name, for messages.
    pub name: String,
    /// Ranks of one unit that this level joins: a host's, a rack's. `None` in the outermost level, which joins all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<usize>,
    /// Latency of one message, in microseconds.
    pub latency_us: f64,
    /// Gigabytes (10^9 bytes) per second that a unit of the level within (a rank in the innermost level) can send to the others
    /// of this level, over all its links together.
    pub bandwidth_gbs: f64,
    /// What the units can send at once over what the level can carry.
    #[serde(default = "one")]
    pub oversubscription: f64,
}

impl Level {
    /// Bytes per second per unit when all send at once.
    fn bandwidth(&self) -> f64 {
        self.bandwidth_gbs * 1e9 / self.oversubscription
    }

    fn latency(&self) -> Second {
        self.latency_us * 1e-6
    }
}

/// Ranks that are slower than the others, wherever they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stragglers {
    /// Share of such ranks, 0 to 1.
    pub share: f64,
    /// Time of their own work / that of others.
    pub slowdown: f64,
}

impl Default for Stragglers {
    fn default() -> Stragglers {
        Stragglers { share: 0.0, slowdown: 1.0 }
    }
}

impl Stragglers {
    /// Mean factor on the time of the slowest of `ranks` ranks: `1 + (slowdown - 1) (1 - (1 - share)^ranks)`.
    /// Source: Dean, Barroso, The Tail at Scale, Communications of the ACM, 2013.
    pub fn factor(&self, ranks: usize) -> f64 {
        1.0 + (self.slowdown - 1.0) * (1.0 - (1.0 - self.share).powf(ranks as f64))
    }
}

/// A machine to predict for.
///
/// ```
/// use hpml::predict::{AllReduce, Machine};
/// let text = "all_reduce = 'ring'\n[[levels]]\nname = 'fabric'\nlatency_us = 5.0\nbandwidth_gbs = 10.0";
/// let machine = Machine::from_toml(text, "example")?;
/// let (seconds, _) = machine.all_reduce(4, 1e9);
/// assert!((seconds - (6.0 * 5e-6 + 1.5e9 / 10e9)).abs() < 1e-12);
/// # Ok::<(), hpml::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Algorithm of all-reduces.
    #[serde(default)]
    pub all_reduce: AllReduce,
    /// Levels from the innermost (of a host) to the outermost.
    pub levels: Vec<Level>,
    /// Slow ranks.
    #[serde(default)]
    pub stragglers: Stragglers,
}

impl Machine {
    /// Reads a machine's file (TOML).
    ///
    /// # Errors
    /// The file cannot be read, or is no machine; the error names the key and what is allowed.
    pub fn load(path: &Path) -> Result<Machine> {
        Machine::from_toml(&std::fs::read_to_string(path).at(path)?, &path.display().to_string())
    }

    /// The machine written as `text` (TOML); `place` names it in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_toml(text: &str, place: &str) -> Result<Machine> {
        let machine: Machine = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let message = format!("line {line}: {}: see docs/prediction.md", error.message().trim().replace('\n', " "));
            Error::ConfigSyntax { place: place.into(), message }
        })?;
        machine.check(place)?;
        Ok(machine)
    }

    /// A machine whose ranks are joined by one ring of equal links.
    pub fn flat(latency: Second, bandwidth: f64) -> Machine {
        let (latency_us, bandwidth_gbs) = (latency * 1e6, bandwidth / 1e9);
        let level = Level { name: "link".into(), ranks: None, latency_us, bandwidth_gbs, oversubscription: 1.0 };
        Machine { all_reduce: AllReduce::Ring, levels: vec![level], stragglers: Stragglers::default() }
    }

    fn check(&self, place: &str) -> Result<()> {
        let refuse = |key: String, value: String, expected: &str| {
            Err(Error::ConfigValue { place: place.into(), key, value, expected: expected.into() })
        };
        if self.levels.is_empty() {
            return refuse("levels".into(), "[]".into(), "must name one level at least: [[levels]]");
        }
        let mut within = 1;
        for (number, level) in self.levels.iter().enumerate() {
            let key = |name: &str| format!("levels[{number}].{name}");
            let outermost = number + 1 == self.levels.len();
            match level.ranks {
                None if !outermost => return refuse(key("ranks"), "missing".into(), "only the last level joins all"),
                Some(ranks) if outermost => {
                    return refuse(key("ranks"), ranks.to_string(), "the last level joins all ranks: leave it out");
                }
                Some(ranks) if ranks <= within || ranks % within != 0 => {
                    let expected = format!("must be a multiple of {within}, the ranks of the level within, and larger");
                    return refuse(key("ranks"), ranks.to_string(), &expected);
                }
                Some(ranks) => within = ranks,
                None => {}
            }
            if !(level.latency_us >= 0.0 && level.latency_us < 1e9) {
                return refuse(key("latency_us"), level.latency_us.to_string(), "must be 0 to 1e9");
            }
            for (name, value, least) in
                [("bandwidth_gbs", level.bandwidth_gbs, 1e-9), ("oversubscription", level.oversubscription, 1.0)]
            {
                if !(value >= least && value < 1e9) {
                    return refuse(key(name), value.to_string(), &format!("must be {least} to 1e9"));
                }
            }
        }
        let Stragglers { share, slowdown } = self.stragglers;
        if !(0.0..=1.0).contains(&share) {
            return refuse("stragglers.share".into(), share.to_string(), "must be 0 to 1");
        }
        if !(1.0..1e6).contains(&slowdown) {
            return refuse("stragglers.slowdown".into(), slowdown.to_string(), "must be 1 to 1e6");
        }
        Ok(())
    }

    /// Seconds of an all-reduce of `bytes` on each of `ranks` ranks, and the algorithm that takes them.
    pub fn all_reduce(&self, ranks: usize, bytes: f64) -> (Second, AllReduce) {
        let by = |algorithm| (self.seconds(algorithm, ranks, bytes), algorithm);
        match self.all_reduce {
            AllReduce::Nccl => {
                let (ring, tree) = (by(AllReduce::Ring), by(AllReduce::Tree));
                if tree.0 < ring.0 { tree } else { ring }
            }
            algorithm => by(algorithm),
        }
    }

    fn seconds(&self, algorithm: AllReduce, ranks: usize, bytes: f64) -> Second {
        // Units that each level joins in one unit of the next, and the links that carry something.
        let used: Vec<(f64, f64, &Level)> = self
            .levels
            .iter()
            .scan(ranks, |units, level| {
                let (children, ranks_within) = (*units as f64, level.ranks.map(|joined| ranks.div_ceil(joined)));
                *units = ranks_within.unwrap_or(1);
                Some((children, *units as f64, level))
            })
            .filter(|(units, parents, _)| units > parents)
            .collect();
        let slowest = used.iter().map(|(.., level)| level.bandwidth()).fold(f64::INFINITY, f64::min);
        let share = |n: f64| 2.0 * (n - 1.0) / n;
        let latencies = |rounds: &dyn Fn(f64, f64, &Level) -> f64| {
            used.iter().map(|(units, parents, level)| rounds(*units, *parents, level) * level.latency()).sum::<f64>()
        };
        match algorithm {
            AllReduce::Ring | AllReduce::Nccl => {
                let plateau = if self.all_reduce == AllReduce::Nccl && used.len() > 1 { RING_PLATEAU } else { 1.0 };
                let hops = latencies(&|units, parents, _| 2.0 * (units - parents));
                plateau * hops + share(ranks as f64) * bytes / slowest
            }
            AllReduce::Tree => {
                // Within a host the ranks form a chain.
                let depth = |units: f64, parents: f64, level: &Level| match level.ranks {
                    Some(_) if std::ptr::eq(level, &self.levels[0]) => 2.0 * ((units / parents).ceil() - 1.0),
                    _ => 2.0 * (units / parents).ceil().log2().ceil(),
                };
                latencies(&depth) + 2.0 * bytes / (TREE_BANDWIDTH * slowest)
            }
            AllReduce::Hierarchical => {
                let rounds = |units: f64, parents: f64, _: &Level| {
                    let children = (units / parents).ceil();
                    let doublings = children.log2().ceil();
                    // Another number than a power of two takes two more messages: the binary blocks of Thakur et al.
                    let uneven = if doublings.exp2() == children { 0.0 } else { 2.0 };
                    (2.0 * (children - 1.0)).min(2.0 * doublings + uneven)
                };
                let carried = used
                    .iter()
                    .map(|(units, parents, level)| share((units / parents).ceil()) * bytes / level.bandwidth());
                latencies(&rounds) + carried.sum::<f64>()
            }
        }
    }
}

fn one() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_levels(all_reduce: AllReduce) -> Machine {
        let text = format!(
            "all_reduce = '{}'\n[[levels]]\nname = 'NVLink'\nranks = 8\nlatency_us = 3.4\nbandwidth_gbs = 100\n[[levels]]\nname \
             = 'fabric'\nlatency_us = 14.0\nbandwidth_gbs = 20.0",
            all_reduce.as_str()
        );
        Machine::from_toml(&text, "test").unwrap()
    }

    #[test]
    fn each_algorithm_costs_its_messages_and_bytes() {
        let seconds = |algorithm, ranks, bytes| two_levels(algorithm).all_reduce(ranks, bytes).0;
        let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9, "{found}, {expected}");
        // A ring of 32 ranks on 4 hosts has 28 links within hosts and, less one, 3 between them.
        near(seconds(AllReduce::Ring, 32, 1e9), 2.0 * (28.0 * 3.4e-6 + 3.0 * 14e-6) + 2.0 * 31.0 / 32.0 * 1e9 / 20e9);
        near(seconds(AllReduce::Ring, 8, 1e9), 14.0 * 3.4e-6 + 2.0 * 7.0 / 8.0 * 1e9 / 100e9);
        near(seconds(AllReduce::Tree, 32, 1e9), 2.0 * (7.0 * 3.4e-6 + 2.0 * 14e-6) + 2e9 / (0.9 * 20e9));
        let within = 6.0 * 3.4e-6 + 1.75e9 / 100e9;
        near(seconds(AllReduce::Hierarchical, 32, 1e9), within + 4.0 * 14e-6 + 1.5e9 / 20e9);
        // Three hosts: two doublings and two more messages, or the four of a ring.
        near(seconds(AllReduce::Hierarchical, 24, 1e9), within + 4.0 * 14e-6 + 4.0 / 3.0 * 1e9 / 20e9);
        assert_eq!(seconds(AllReduce::Hierarchical, 1, 1e9), 0.0);
        // Half of the links between hosts: a buffer takes as long as one of twice the size.
        let mut narrow = two_levels(AllReduce::Ring);
        narrow.levels[1].oversubscription = 2.0;
        near(narrow.all_reduce(32, 1e9).0, seconds(AllReduce::Ring, 32, 2e9));
    }

    #[test]
    fn the_library_takes_trees_for_many_ranks_and_rings_for_large_buffers() {
        let machine = two_levels(AllReduce::Nccl);
        assert_eq!(machine.all_reduce(16, 1e9).1, AllReduce::Ring);
        assert_eq!(machine.all_reduce(4096, 1e6).1, AllReduce::Tree);
        let times: Vec<f64> = (1..14).map(|power| machine.all_reduce(1 << power, 1e8).0).collect();
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    }

    #[test]
    fn stragglers_slow_a_step_as_often_as_one_takes_part() {
        let stragglers = Stragglers { share: 0.01, slowdown: 1.5 };
        // Dean and Barroso: with one of a hundred servers slow, 63 % of the requests to a hundred of them are.
        assert!((stragglers.factor(100) - (1.0 + 0.5 * 0.634)).abs() < 1e-3, "{}", stragglers.factor(100));
        assert_eq!(Stragglers::default().factor(1 << 24), 1.0);
    }

    #[test]
    fn what_is_no_machine_is_refused_with_its_key() {
        let level = |more: &str| format!("[[levels]]\nname = 'a'\nlatency_us = 1.0\nbandwidth_gbs = 1.0\n{more}\n");
        for (text, named) in [
            (String::new(), "levels"),
            ("levels = []".into(), "levels = []: must name"),
            (level("ranks = 4"), "levels[0].ranks = 4: the last level"),
            (level("") + &level(""), "levels[0].ranks = missing"),
            (level("ranks = 4") + &level("ranks = 6") + &level(""), "levels[1].ranks = 6: must be a multiple of 4"),
            (level("oversubscription = 0.5"), "levels[0].oversubscription = 0.5"),
            (level("speed = 1"), "line 5: unknown field `speed`"),
            (level("") + "[stragglers]\nshare = 2.0\nslowdown = 1.0", "stragglers.share = 2"),
            ("all_reduce = 'best'\n".to_owned() + &level(""), "line 1: unknown variant `best`"),
        ] {
            let message = Machine::from_toml(&text, "m.toml").unwrap_err().to_string();
            assert!(message.starts_with("m.toml: ") && message.contains(named), "{text}: {message}");
        }
    }
}
