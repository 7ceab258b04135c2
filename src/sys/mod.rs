//! Calls of C and C++ that no crate wraps: the allocator's, the environment's, HDF5's, libtorch's, the GPU's. In: plain values
//! and tensors. Out: safe functions and types. Knows no ranks and no networks. One of the folders where `unsafe` is allowed;
//! Cargo.toml lists them.
#![allow(unsafe_code)]

mod allocator;
mod autocast;
mod autograd;
mod batch_norm;
mod convolution;
mod generator;
pub mod gpu;
mod graph;
mod hdf5;
mod libtorch;
mod optimizer;
mod process;
mod script;
pub mod simd;
pub mod small;
mod threads;
mod version;

pub use self::hdf5::{attach_dimension_scale, create_file, refuse_external_links, set_dimension_scale};
pub use allocator::{Allocator, give_back_freed_memory, keep_freed_memory, private_memory_left, with_memory_limit};
pub use autocast::Autocast;
pub use autograd::{GradientHooks, backward, differentiable};
pub use batch_norm::BatchNorm;
pub use convolution::{ConvolutionPass, Winograd};
pub use generator::Generator;
pub use graph::{CudaGraph, CudaGraphPool};
pub use libtorch::{im2col_conv2d, seeded};
pub use optimizer::{FusedAdam, FusedSgd, unscale};
pub use process::{default_environment, exit_now, terminate_parent, unread_on_stderr};
pub use script::{ComputeBatchNorm, Script, ScriptBatchNorm, ScriptFacts, ScriptTensor};
pub use threads::{parallel_for, threads};
pub use version::{LIBTORCH_VERSION, check_libtorch};
