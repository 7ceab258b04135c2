//! How the work is cut, by the shape alone. Numbers are those that were fastest on a core with 2 MiB of second-level cache
//! (benches/convolution.rs); a core with less loses a few percent.

use super::tile::{Kernels, blocks};

/// Order of a convolution of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// All kernels are transformed first; then each block of `tiles` tiles goes from input to output while it lies in the second-level
    /// cache.
    TilesFirst {
        /// Tiles per block.
        tiles: usize,
    },
    /// `tiles` tiles are transformed first; then `depth` rows of a block of columns of the kernels are transformed at a time and used at
    /// once for all of these tiles. With many channels the transformed kernels, four times as large, would not stay in a cache.
    ColumnsFirst {
        /// Tiles per round.
        tiles: usize,
        /// Channels that are summed over before the next kernels are transformed, at most a block.
        depth: usize,
    },
}

/// Pairs of channel blocks up to which the transformed kernels stay in the caches.
const FEW_PAIRS: usize = 4;

fn pairs(kernels: &Kernels) -> usize {
    blocks(kernels.inputs) * blocks(kernels.outputs)
}

impl Plan {
    /// Plan for the output or the gradient of the input of `tiles` tiles.
    pub fn of_images(tiles: usize, kernels: &Kernels) -> Plan {
        match pairs(kernels) {
            1 => Plan::TilesFirst { tiles: tiles.min(24) },
            2..=FEW_PAIRS => Plan::TilesFirst { tiles: tiles.min(48) },
            _ => Plan::ColumnsFirst { tiles: tiles.min(128), depth: if tiles <= 64 { 32 } else { 64 } },
        }
    }
}

/// Tiles per round for the gradient of the kernels. Sums of few pairs of channel blocks are kept in the second-level cache from round
/// to round; those of many are not, and a round should read them for as many tiles as possible.
pub fn tiles_of_kernels(tiles: usize, kernels: &Kernels) -> usize {
    tiles.min(if pairs(kernels) <= FEW_PAIRS { 48 } else { 128 })
}
