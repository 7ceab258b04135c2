//! Bytes over the wire. In: flat buffers of numbers. Out: the same, combined over the ranks, and how long it took.
//!
//! [`Communicator`] is MPI on host memory. [`AllReduce`] sums large buffers over its ranks: through a window of shared
//! memory within a host, by a ring of our own between hosts, or by MPI_Allreduce. [`HostBuffer`] is memory that tensors
//! and collectives share without a copy, [`Worker`] a thread that reduces while the caller computes. Every message is
//! counted in the ledger by its kind, here, so that none can be forgotten. Nothing here knows what the numbers mean.
//! `unsafe` is allowed here and in `sys` alone.
#![allow(unsafe_code)]

mod all_reduce;
mod element;
mod exchange;
mod memory;
mod mpi;
mod patience;
pub mod progress;
mod ring;
mod sum;
mod traffic;
mod window;
mod worker;

pub use all_reduce::{AllReduce, Finished};
pub use element::{Bf16, Element, Fp16, Wire};
pub use memory::{HostBuffer, Region};
pub use mpi::{Combine, Communicator, Universe};
pub use patience::Patience;
pub use worker::Worker;
