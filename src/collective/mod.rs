//! Bytes over the wire. In: flat buffers of numbers. Out: the same, combined over the ranks, and how long it took.
//!
//! [`Communicator`] is MPI on host memory, [`DeviceCollectives`] NCCL on a GPU's. [`AllReduce`] sums large buffers over its
//! ranks: through a window of shared memory within a host, by a ring of our own between hosts, or by MPI_Allreduce.
//! [`HostBuffer`] is memory that tensors and collectives share without a copy, [`Worker`] a thread that reduces while the
//! caller computes. Every message is counted in the ledger by its kind, here, so that none can be forgotten. Nothing here
//! knows what the numbers mean. One thread of a process calls MPI at a time, and each float has one owner at a time: both are
//! checked, not agreed on. `unsafe` is allowed here, in `sys`, in `quantize/kernel` and where `parallel/flat.rs` gives a
//! buffer's memory to a network.
#![allow(unsafe_code)]

mod all_reduce;
mod device;
mod element;
mod exchange;
mod memory;
mod mpi;
mod nccl;
mod patience;
pub mod progress;
mod ring;
mod sum;
mod traffic;
mod turn;
mod window;
mod worker;

pub use all_reduce::{AllReduce, Finished};
pub use device::{DeviceCollectives, Span};
pub use element::{Bf16, Element, Fp16, Wire};
pub use memory::{HostBuffer, Region, view};
pub use mpi::{Combine, Communicator, Universe};
pub use nccl::nccl_version;
pub use patience::Patience;
pub use worker::Worker;
