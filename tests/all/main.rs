//! All tests that start the real binary under the real launcher, one file for each subject. They are one program, so that it is
//! linked once and the tests of all files share the cores: `cargo test --release --test all resume::` runs those of one file.

mod common;

mod allreduce;
mod average;
mod before;
mod cli;
mod compression;
mod convolution;
mod data;
mod device;
mod documentation;
mod environment;
mod exchange;
mod failures;
mod figures;
mod hosts;
mod launch;
mod live;
mod model_file;
mod networks;
mod onnx;
mod ownership;
mod pack;
mod packaging;
mod page;
mod parity;
mod quantize;
mod readers;
mod report;
mod resume;
mod scale;
mod setup;
mod slurm;
mod snippets;
mod sound;
mod store;
mod study;
mod sweep;
mod trace;
mod training;
mod workload;
