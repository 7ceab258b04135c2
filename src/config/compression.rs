//! What stands in for the gradients on the wire.

use serde::{Deserialize, Serialize};

/// What an all-reduce of gradients sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// The gradients.
    None,
    /// Their upper halves, rounded.
    Bf16,
    /// Half precision, scaled into its range.
    Fp16,
    /// A byte each and a scale a block; what is lost is sent later.
    Int8,
    /// Thin matrices whose products come near; what is lost is sent later.
    PowerSgd,
}
