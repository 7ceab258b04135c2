//! Commands and their `--help`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Data-parallel training under MPI that measures what it costs.
#[derive(Debug, Parser)]
#[command(
    name = "hpml",
    version,
    about,
    long_about = "hpml trains a network with one process (rank) per GPU or share of the CPU cores, all-reduces the \
        gradients, and writes to HDF5 what the training cost in compute, communication and bandwidth.\n\n\
        Without a command: hpml train with the built-in defaults (a small CNN on an embedded data set).",
    after_help = "Two commands that work:\n  mpirun -n 4 hpml\n  mpirun -n 2 hpml train configs/cifar10-net.toml --data DIR \
        --out results/net.h5"
)]
pub struct Cli {
    /// What to do; train if left out.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train, measure, write a run file
    #[command(
        after_help = "Two commands that work:\n  mpirun -n 4 hpml train --set train.epochs=3\n  mpirun -n 2 hpml train \
        configs/cifar10-resnet18.toml --data DIR --set train.max_steps=20 --out results/try.h5"
    )]
    Train(Train),
    /// Print the default configuration, every key explained
    #[command(after_help = "Two commands that work:\n  hpml config > mine.toml\n  mpirun -n 4 hpml train mine.toml")]
    Config,
    /// Print what a run file holds
    #[command(
        after_help = "Two commands that work:\n  hpml inspect results/net.h5\n  hpml inspect results/net.h5 | less"
    )]
    Inspect {
        /// A run file or parity file (HDF5)
        file: PathBuf,
    },
    /// Train 20 steps from PyTorch's weights and samples and compare the losses; the first thing to run on a new cluster
    #[command(
        after_help = "Two commands that work:\n  hpml verify parity.h5 --data DIR\n  mpirun -n 2 hpml verify parity.h5 \
        --data DIR --set parallel.bucket_mb=1"
    )]
    Verify(Verify),
}

/// Arguments of `hpml train`.
#[derive(Debug, Default, Args)]
pub struct Train {
    /// Configuration (TOML); the built-in defaults if left out. `hpml config` prints them
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
    /// Run file to write (HDF5) [default: results/MODEL-RANKSranks-TIME.h5]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Overwrite the run file if it exists
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Parity file made with PyTorch (HDF5)
    pub parity: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

/// What several commands take.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// Override one key, as in train.epochs=3; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder of CIFAR-10's binary files; short for --set data.dir=DIR
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}
