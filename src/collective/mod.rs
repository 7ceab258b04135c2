//! Communication between ranks. In: flat buffers of numbers. Out: the buffers combined over the ranks, and the seconds it took.
//!
//! [`Communicator`] is MPI on host memory, [`DeviceCollectives`] NCCL on GPU memory. [`AllReduce`] sums large buffers over its
//! ranks: through a window of shared memory within a host, by hpml's own ring, halving and doubling or level by level between
//! hosts and racks, or by MPI_Allreduce; a cost model of the measured network chooses.
//! [`HostBuffer`] is memory that tensors and collectives share without a copy. Every message is counted here in the ledger by
//! its kind, so that none can be forgotten. This module never knows what the numbers mean. One thread of a process calls MPI
//! at a time, and each float has one owner at a time: both are checked. Cargo.toml lists where `unsafe` is allowed.
//!
//! An all-reduce of four numbers over all ranks, started by `mpirun`:
//! ```no_run
//! use hpml::collective::{AllReduce, Universe, WaitPolicy};
//! use hpml::{config::Parallel, metrics::Kind};
//!
//! let universe = Universe::start().expect("MPI is initialized once");
//! let all_reduce = AllReduce::new(universe.world().into(), &Parallel::default())?;
//! let mut buffer = all_reduce.buffer::<f32>(4)?;
//! buffer.as_mut_slice().fill(1.0);
//! let finished = all_reduce.reduce(Kind::Gradients, &mut buffer.region(0..4), WaitPolicy::Spin)?;
//! assert_eq!(buffer.as_slice(), [all_reduce.communicator().size() as f32; 4]);
//! println!("{} s waiting, {} s transferring", finished.wait(), finished.transfer());
//! # Ok::<(), hpml::error::Error>(())
//! ```
#![allow(unsafe_code)]

mod all_reduce;
mod backoff;
mod clock_offsets;
mod cost;
mod device;
mod element;
mod finished;
mod gather;
mod halving;
mod hierarchical;
mod hosts;
mod levels;
mod library;
mod memory;
mod mpi;
mod nccl;
mod parts;
mod point_to_point;
pub mod progress;
mod racks;
mod ring;
mod segments;
mod shared_memory;
mod sum;
mod traffic;
mod turn;
mod window;

pub use all_reduce::{AllReduce, Taken, measure_network};
pub use backoff::WaitPolicy;
pub use clock_offsets::ClockOffset;
pub use cost::{Crossovers, Link, Network, RackNetwork};
pub use device::{DeviceCollectives, Span};
pub use element::{Bf16, Element, Fp16, MpiType};
pub use finished::{Finished, Waits};
pub use levels::{Level, Levels};
pub use library::{built_for, check_library, library_version};
pub use memory::{HostBuffer, Region, view};
pub use mpi::{Combine, Communicator, Universe};
pub use nccl::nccl_version;
pub use parts::MOST_IN_PART;
pub use racks::check_racks;
pub use shared_memory::has_room;
pub use traffic::Collective;
pub use window::share_progress;
