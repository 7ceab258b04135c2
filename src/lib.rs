//! hpml: data-parallel training under MPI that measures what it costs.
//!
//! The program is `src/main.rs`; this library has its parts, so that tests, benches, fuzzers and other programs can reach them.
//! Data flow: `config` -> `launch` (over `device`) -> `data` -> `model` -> `parallel` (over `collective`) -> `optim` -> `train`
//! -> `store` -> `report`.
#![deny(clippy::print_stderr)] // in pieces, which mix with other ranks' words: see message.rs

pub mod cli;
pub mod collective;
pub mod collectives;
pub mod config;
pub mod convolution;
pub mod data;
pub mod device;
pub mod environment;
pub mod error;
pub mod launch;
pub mod live;
pub mod message;
pub mod metrics;
pub mod model;
pub mod optim;
pub mod output;
pub mod parallel;
pub mod predict;
pub mod quantize;
pub mod report;
pub mod store;
pub mod study;
pub mod sweep;
pub mod sys;
pub mod table;
pub mod trace;
pub mod train;
pub mod units;
pub mod verify;
pub mod workload;
