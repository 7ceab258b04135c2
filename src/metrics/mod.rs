//! The cost of training: step times, the ledger of messages, bandwidths, statistics, and the definition of each figure. Pure
//! arithmetic on seconds and bytes; knows neither MPI nor tensors.

mod anatomy;
mod bandwidth;
#[allow(missing_docs)] // each constant's text defines its figure
pub mod definitions;
mod flops;
mod ledger;
mod moments;
mod slow_ranks;
mod step_times;
mod summaries;
mod time_histogram;
mod variants;

pub use crate::table::Definition;
pub use anatomy::{
    Basis, Conditions, Group, PartMeans, PartSummary, RankStep, Summary, groups, mean, median, median_interval,
    median_of, percentile, rank_steps, world_sizes,
};
pub use bandwidth::{algbw, all_reduce_busbw, all_reduce_volume, busbw_share, overlap};
pub use flops::flops;
pub use ledger::{Entry, Kind, Ledger};
pub use moments::Moments;
pub use slow_ranks::{LEAST_RATIO, SlowRank, own_work, slow_ranks};
pub use step_times::{Part, StepTimes};
pub use summaries::{PartMoments, RankSummary, Summaries};
pub use time_histogram::TimeHistogram;
pub use variants::{Variant, variants};
