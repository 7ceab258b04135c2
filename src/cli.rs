//! Command-line arguments and `--help`.
//!
//! In: the command line. Out: a [`Cli`], each value in its range. Texts end without a full stop, as clap's own do.
//!
//! ```
//! use clap::Parser;
//! use hpml::cli::{Cli, Command};
//! let cli = Cli::parse_from(["hpml", "train", "--set", "train.lr=0.1"]);
//! assert!(matches!(cli.command, Some(Command::Train(train)) if train.common.set == ["train.lr=0.1"]));
//! ```

mod generate;
mod hint;
mod values;

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};

use crate::collective::Collective;
use crate::collectives::{self, ElementType};
use crate::config::{Algorithm, Device};
use crate::output::Destination;
use crate::train::ResumeFrom;
use crate::{predict, report};
pub use generate::generate;
pub use hint::with_hint;
pub use values::RankCounts;
use values::{bytes, not_negative, positive, rank_counts, seconds};

/// Data-parallel training under MPI that measures what it costs.
#[derive(Debug, Parser)]
#[command(
    name = "hpml",
    version,
    about,
    long_about = "hpml trains a network with one process (rank) per GPU or share of the CPU cores, all-reduces the \
        gradients, and writes to HDF5 what the training cost in compute, communication and bandwidth.\n\n\
        Without a command it runs hpml train with the built-in defaults (a small CNN on an embedded data set).",
    after_help = "Two commands that work:\n  mpirun -n 4 hpml\n  mpirun -n 2 hpml train configs/cifar10-net.toml --data DIR \
        --out runs/net.h5"
)]
pub struct Cli {
    /// Command; `None`: train with the built-in defaults.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Commands of hpml.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a network, measure its steps and write a run file
    #[command(
        after_help = "Two commands that work:\n  mpirun -n 4 hpml train --set train.epochs=3\n  mpirun -n 2 hpml train \
        configs/cifar10-resnet18.toml --data DIR --set train.max_steps=20 --out runs/try.h5"
    )]
    Train(Train),
    /// Print the default configuration with a comment for every key
    #[command(after_help = "Two commands that work:\n  hpml config > mine.toml\n  mpirun -n 4 hpml train mine.toml")]
    Config,
    /// List the cores, GPUs, libtorch, NCCL and MPI that hpml finds on this host
    #[command(after_help = "Two commands that work:\n  hpml devices\n  srun --ntasks-per-node=1 --label hpml devices")]
    Devices,
    /// Print the contents of a run file
    #[command(after_help = "Two commands that work:\n  hpml inspect runs/net.h5\n  hpml inspect runs/net.h5 | less")]
    Inspect {
        /// Run file, parity file or any other HDF5 file
        file: PathBuf,
    },
    /// Measure step anatomy, speedup and bandwidth for every batch size and rank count in one job
    #[command(
        after_help = "Two commands that work:\n  mpirun -n 4 hpml sweep configs/scaling.toml\n  mpirun -n 2 hpml sweep --set \
        sweep.batch_per_rank=[8,32] --set sweep.seconds=3 --out runs/scaling.h5"
    )]
    Sweep(Sweep),
    /// Train the variants of a configuration with several seeds and compare their accuracy
    #[command(
        after_help = "Two commands that work:\n  mpirun -n 2 hpml study configs/large-batch.toml --data DIR\n  mpirun -n 2 \
        hpml study configs/large-batch.toml --data DIR --set study.seeds=[0] --set train.epochs=2"
    )]
    Study(Study),
    /// Count what a training computes, sends and keeps in memory, before anything is started
    #[command(
        after_help = "Two commands that work:\n  hpml workload --ranks 4 --set model.name=resnet18\n  hpml workload \
        configs/resnet18-h200.toml --data DIR --set train.batch_per_rank=512"
    )]
    Workload(Workload),
    /// Predict step time, speedup and efficiency on more ranks, or another machine, from the run file of a sweep or training
    #[command(after_help = "Two commands that work:\n  hpml predict runs/scaling.h5 --ranks 8..4096\n  hpml predict \
        runs/scaling.h5 --ranks 8..4096 --machine configs/machines/dgx-h100.toml --batch 256")]
    Predict(Predict),
    /// Quantize a trained network to int8 and show its accuracy before and after; any number of ranks
    #[command(
        after_help = "Two commands that work:\n  hpml quantize runs/net.h5 --data DIR\n  mpirun -n 2 hpml quantize \
        runs/resnet18.h5 --data DIR --set quantize.weight_range=mse --out int8.h5"
    )]
    Quantize(Quantize),
    /// Measure accuracy and images/s of a quantized file in float32, simulated and true int8, with batch 1 and 128
    #[command(
        after_help = "Two commands that work:\n  hpml eval runs/net-int8.h5 --data DIR\n  hpml eval int8.h5 --data DIR \
        --set data.test_samples=1000"
    )]
    Eval {
        /// Quantized file, as written by hpml quantize (HDF5)
        file: PathBuf,
        /// Text file to write with the class that true int8 predicts, one line per test image
        #[arg(long, value_name = "FILE")]
        predictions: Option<PathBuf>,
        /// Overwrite the output if it exists
        #[arg(long)]
        force: bool,
        /// Options `--set` and `--data`.
        #[command(flatten)]
        common: Common,
    },
    /// Convert a quantized file to ONNX (QDQ format)
    #[command(
        after_help = "Two commands that work:\n  hpml export runs/net-int8.h5 --onnx net.onnx\n  hpml export int8.h5 \
        --onnx resnet18.onnx --force"
    )]
    Export {
        /// Quantized file, as written by hpml quantize (HDF5)
        file: PathBuf,
        /// ONNX model to write
        #[arg(long, value_name = "FILE.onnx")]
        onnx: PathBuf,
        /// Overwrite the output if it exists
        #[arg(long)]
        force: bool,
    },
    /// Train a few steps from PyTorch's weights and samples and compare losses and updates; run it first on a new cluster
    #[command(
        after_help = "Two commands that work:\n  hpml verify parity.h5 --data DIR\n  mpirun -n 2 hpml verify parity.h5 \
        --data DIR --set parallel.bucket_mb=1"
    )]
    Verify(Verify),
    /// Measure collectives of these ranks per buffer size, with nccl-tests' columns
    #[command(
        after_help = "Two commands that work:\n  mpirun -n 2 hpml collectives\n  mpirun -n 4 hpml collectives --collective \
        all_reduce --min 1M --max 64M --algorithm shared --algorithm ring --type float32 --out runs/allreduce.h5"
    )]
    Collectives(Collectives),
    /// Measure the all-reduce: an earlier name of hpml collectives --collective all_reduce
    #[command(
        hide = true,
        after_help = "Two commands that work:\n  mpirun -n 2 hpml allreduce\n  mpirun -n 4 hpml allreduce --min 1M --max 64M"
    )]
    Allreduce(Collectives),
    /// Print or plot run files as tables, CSV, Markdown or an HTML page; several files are compared
    #[command(
        after_help = "Two commands that work:\n  hpml report runs/net.h5 --html net.html\n  hpml report old.h5 new.h5 --csv \
        --table epochs"
    )]
    Report(Report),
    /// Write shell completions and man pages, for those who make packages
    #[command(
        hide = true,
        after_help = "Two commands that work:\n  hpml generate /usr/local\n  hpml generate \"$DESTDIR/usr\""
    )]
    Generate {
        /// Prefix to install under: share/man, share/bash-completion, share/zsh and share/fish
        prefix: PathBuf,
    },
}

/// Arguments of `hpml train`.
#[derive(Debug, Default, Args)]
pub struct Train {
    /// Configuration (TOML) [default: built-in, printed by hpml config]
    pub config: Option<PathBuf>,
    /// Options `--set` and `--data`.
    #[command(flatten)]
    pub common: Common,
    /// Run file to write (HDF5) [default: a new runs/MODEL-RANKSranks-TIME.h5, with the id of the Slurm job if there is one]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Continue from a checkpoint: a file, or auto for the newest undamaged one of this run file (from the start if there is
    /// none)
    #[arg(long, value_name = "auto|FILE.h5")]
    pub resume: Option<String>,
    /// Replace another training's run file and checkpoints, even if a job is still writing them
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml sweep`.
#[derive(Debug, Args)]
pub struct Sweep {
    /// Configuration (TOML) with a `[sweep]` section [default: built-in, printed by hpml config]
    pub config: Option<PathBuf>,
    /// Options `--set` and `--data`.
    #[command(flatten)]
    pub common: Common,
    /// Run file to write (HDF5) [default: runs/scaling-RANKSranks-TIME.h5]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Continue the run file if it exists: measure only the cases that it lacks
    #[arg(long, requires = "out", conflicts_with = "force")]
    pub resume: bool,
    /// Overwrite the run file if it exists
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml study`.
#[derive(Debug, Args)]
pub struct Study {
    /// Configuration (TOML) with a `[study]` section
    pub config: PathBuf,
    /// Options `--set` and `--data`.
    #[command(flatten)]
    pub common: Common,
    /// Run file to write (HDF5) [default: runs/study-RANKSranks-TIME.h5]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Overwrite the run file if it exists
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml predict`.
#[derive(Debug, Args)]
pub struct Predict {
    /// Run file of a sweep on 1 rank and on several; with --machine of any sweep or training (HDF5)
    pub run: PathBuf,
    /// Rank counts: a list (8,64,100) or a range that doubles (8..4096)
    #[arg(long, value_name = "N,N|N..N", default_value = "1..4096", value_parser = rank_counts)]
    pub ranks: RankCounts,
    /// Samples per rank and step [default: the middle one of the measured sizes]
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 20))]
    pub batch: Option<usize>,
    /// File of the machine to predict for: its levels, as configs/machines/*.toml [default: one ring, fitted to the sweep]
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["busbw", "latency"])]
    pub machine: Option<PathBuf>,
    /// Bus bandwidth of the network to predict for, GB/s [default: fitted to the sweep]
    #[arg(long, value_name = "GB/s", value_parser = positive)]
    pub busbw: Option<f64>,
    /// Latency per message of the network to predict for, microseconds [default: fitted to the sweep]
    #[arg(long, value_name = "us", value_parser = not_negative)]
    pub latency: Option<f64>,
    /// Predict only this network
    #[arg(long)]
    pub model: Option<String>,
    /// Also write the prediction to the run file, as /prediction
    #[arg(long)]
    pub save: bool,
}

/// Arguments of `hpml workload`.
#[derive(Debug, Args)]
pub struct Workload {
    /// Configuration (TOML) of the training [default: built-in, printed by hpml config]
    pub config: Option<PathBuf>,
    /// Options `--set` and `--data`.
    #[command(flatten)]
    pub common: Common,
    /// Ranks of the training
    #[arg(long, default_value = "1", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 24))]
    pub ranks: usize,
}

/// Arguments of `hpml quantize`.
#[derive(Debug, Args)]
pub struct Quantize {
    /// Run file of a training (HDF5), which also names the data and the network
    pub run: PathBuf,
    /// Options `--set` and `--data`.
    #[command(flatten)]
    pub common: Common,
    /// Quantized file to write (HDF5) [default: RUN-int8.h5 beside the run file]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Overwrite the output if it exists
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Parity file, as written by scripts/parity.py (HDF5)
    pub parity: PathBuf,
    /// Options `--set` and `--data`.
    #[command(flatten)]
    pub common: Common,
}

impl Train {
    /// File that `--out` and `--force` name.
    pub fn destination(&self) -> Destination {
        Destination { path: self.out.clone(), force: self.force }
    }

    /// Checkpoint that `--resume` names.
    pub fn resume_from(&self) -> Option<ResumeFrom> {
        self.resume.as_deref().map(|given| match given {
            "auto" => ResumeFrom::Newest,
            file => ResumeFrom::Checkpoint(file.into()),
        })
    }
}

impl Sweep {
    /// File that `--out` and `--force` name.
    pub fn destination(&self) -> Destination {
        Destination { path: self.out.clone(), force: self.force }
    }
}

impl Study {
    /// File that `--out` and `--force` name.
    pub fn destination(&self) -> Destination {
        Destination { path: self.out.clone(), force: self.force }
    }
}

impl Quantize {
    /// File that `--out` and `--force` name.
    pub fn destination(&self) -> Destination {
        Destination { path: self.out.clone(), force: self.force }
    }
}

/// Arguments that several commands share.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// Override one key of the configuration, as in train.epochs=3; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// HDF5 file, or folder of CIFAR, IDX or .npy files; short for --set data.dir=DIR
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

impl Common {
    /// Overrides in their order: each `--set`, then `--data`, which takes precedence.
    pub fn overrides(&self) -> Vec<String> {
        let data = self.data.iter().map(|dir| format!("data.dir={}", toml::Value::String(dir.display().to_string())));
        self.set.iter().cloned().chain(data).collect()
    }
}

/// Arguments of `hpml collectives`.
#[derive(Debug, Args)]
pub struct Collectives {
    /// Collective to measure; may be repeated [default: all]
    #[arg(long = "collective", value_name = "NAME")]
    pub collectives: Vec<Collective>,
    /// Smallest buffer, in bytes; K, M and G are powers of 1024. The gradient sizes of net and resnet18 are added if in range
    #[arg(long, value_name = "BYTES", default_value = "8", value_parser = bytes)]
    pub min: usize,
    /// Largest buffer, in bytes
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = bytes)]
    pub max: usize,
    /// Factor from one buffer size to the next
    #[arg(long, default_value = "4", value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    pub factor: usize,
    /// Seconds to measure per size, type, algorithm and placement, without the warm-up (3 iterations)
    #[arg(long, default_value = "0.2", value_parser = seconds)]
    pub seconds: f64,
    /// Timed iterations; 0: as many as fit --seconds
    #[arg(long, default_value = "0")]
    pub iters: usize,
    /// Memory of the buffers: cpu, cuda (a GPU per rank; NCCL, other algorithms stage through the host) or auto
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    /// Algorithm to measure, as in parallel.all_reduce; of the other collectives mpi (MPI's own call) or auto (hpml's where it has
    /// one); may be repeated [default: auto mpi]
    #[arg(long = "algorithm", value_name = "NAME")]
    pub algorithms: Vec<Algorithm>,
    /// Element type to measure; may be repeated [default: float32, and bf16 for an all-reduce if the algorithm supports it]
    #[arg(long = "type", value_name = "TYPE")]
    pub types: Vec<ElementType>,
    /// Run file to write (HDF5) [default: none]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Overwrite the run file if it exists
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Run files (HDF5) of hpml train, sweep, study, collectives or quantize
    #[arg(required = true, value_name = "FILE.h5")]
    pub files: Vec<PathBuf>,
    /// Print one table as CSV with all digits: --table, or the first found of scaling, study, allreduce, epochs, quantization
    #[arg(long, conflicts_with = "markdown")]
    pub csv: bool,
    /// Print all tables, or the one of --table, as one JSON document: typed cells with all digits, units and meanings
    #[arg(long, conflicts_with_all = ["csv", "markdown"])]
    pub json: bool,
    /// Print the tables as GitHub-flavored Markdown
    #[arg(long)]
    pub markdown: bool,
    /// Print only this table: one of the file, or one of the report (steps-anatomy, comm-step, study-summary,
    /// scaling-overlap, ...)
    #[arg(long, value_name = "NAME")]
    pub table: Option<String>,
    /// Write one self-contained page with all tables and plots
    #[arg(long, value_name = "OUT.html")]
    pub html: Option<PathBuf>,
    /// Folder to write each plot into, as SVG and PNG
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// File to write the timeline of the steps of metrics.trace_steps into, in Chrome's form: open it in ui.perfetto.dev
    #[arg(long, value_name = "OUT.json")]
    pub trace: Option<PathBuf>,
    /// Folder to write the same timeline into as Holistic Trace Analysis reads it: one file per rank
    #[arg(long, value_name = "DIR")]
    pub hta: Option<PathBuf>,
    /// Overwrite outputs that exist
    #[arg(long)]
    pub force: bool,
}

impl From<Predict> for predict::Request {
    fn from(args: Predict) -> predict::Request {
        let link = predict::Link { busbw: args.busbw.map(|gbs| gbs * 1e9), latency: args.latency.map(|us| us * 1e-6) };
        let Predict { run, ranks, batch, machine, model, save, .. } = args;
        predict::Request { run, ranks: ranks.to_vec(), batch, machine, link, model, save }
    }
}

impl From<Collectives> for collectives::Request {
    fn from(args: Collectives) -> collectives::Request {
        let Collectives { collectives, min, max, factor, seconds, iters, device, algorithms, types, out, force } = args;
        collectives::Request {
            collectives,
            min,
            max,
            factor,
            budget: collectives::Budget { seconds, iterations: iters },
            device,
            algorithms,
            types,
            destination: Destination { path: out, force },
        }
    }
}

impl From<Report> for report::Request {
    fn from(args: Report) -> report::Request {
        let Report { files, csv, json, markdown, table, html, plots, trace, hta, force } = args;
        report::Request { files, csv, json, markdown, table, html, plots, trace, hta, force }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_library() {
        let command = Cli::parse_from(["hpml", "collectives"]).command;
        let Some(Command::Collectives(args)) = command else { panic!("the command was named") };
        assert_eq!(collectives::Request::from(args), collectives::Request::default());
    }
}
