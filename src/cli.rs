//! Commands and their `--help`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::allreduce::{self, ElementType};
use crate::config::{Algorithm, Device};
use crate::output::Destination;
use crate::train::ResumeFrom;
use crate::{predict, report};

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
    /// Say what this host has to compute and to communicate with: cores, GPUs, libtorch, NCCL, MPI
    #[command(after_help = "Two commands that work:\n  hpml devices\n  srun --ntasks-per-node=1 --label hpml devices")]
    Devices,
    /// Print what a run file holds
    #[command(
        after_help = "Two commands that work:\n  hpml inspect results/net.h5\n  hpml inspect results/net.h5 | less"
    )]
    Inspect {
        /// A run file or parity file (HDF5)
        file: PathBuf,
    },
    /// Measure every case of batch per rank x ranks in one job: step anatomy, speedup, bandwidth
    #[command(
        after_help = "Two commands that work:\n  mpirun -n 4 hpml sweep configs/scaling.toml\n  mpirun -n 2 hpml sweep --set \
        sweep.batch_per_rank=[8,32] --set sweep.seconds=3 --out results/scaling.h5"
    )]
    Sweep(Sweep),
    /// Train the variants that a configuration names, over several seeds, and compare their accuracy
    #[command(
        after_help = "Two commands that work:\n  mpirun -n 2 hpml study configs/large-batch.toml --data DIR\n  mpirun -n 2 \
        hpml study configs/large-batch.toml --data DIR --set study.seeds=[0] --set train.epochs=2"
    )]
    Study(Study),
    /// Predict step time, speedup and efficiency on more ranks from the run file of a sweep
    #[command(
        after_help = "Two commands that work:\n  hpml predict results/scaling.h5 --ranks 8..4096\n  hpml predict \
        results/scaling.h5 --ranks 8,64 --busbw 20 --latency 5 --batch 256"
    )]
    Predict(Predict),
    /// Take a trained checkpoint to int8 and show what that costs in accuracy; any number of ranks
    #[command(
        after_help = "Two commands that work:\n  hpml quantize results/net.h5 --data DIR\n  mpirun -n 2 hpml quantize \
        results/resnet18.h5 --data DIR --set quantize.weight_range=mse --out int8.h5"
    )]
    Quantize(Quantize),
    /// Accuracy and images/s of a quantized file: float32, simulated and true int8, batch 1 and 128
    #[command(
        after_help = "Two commands that work:\n  hpml eval results/net-int8.h5 --data DIR\n  hpml eval int8.h5 --data DIR \
        --set data.test_samples=1000"
    )]
    Eval {
        /// A file of hpml quantize (HDF5)
        file: PathBuf,
        /// Also write the class of every test image, by true int8, a line each
        #[arg(long, value_name = "FILE")]
        predictions: Option<PathBuf>,
        /// Overwrite it if it exists
        #[arg(long)]
        force: bool,
        /// `--set`, `--data`
        #[command(flatten)]
        common: Common,
    },
    /// Write a quantized file as ONNX (QDQ)
    #[command(
        after_help = "Two commands that work:\n  hpml export results/net-int8.h5 --onnx net.onnx\n  hpml export int8.h5 \
        --onnx resnet18.onnx --force"
    )]
    Export {
        /// A file of hpml quantize (HDF5)
        file: PathBuf,
        /// The ONNX model to write
        #[arg(long, value_name = "FILE.onnx")]
        onnx: PathBuf,
        /// Overwrite it if it exists
        #[arg(long)]
        force: bool,
    },
    /// Train a few steps from PyTorch's weights and samples and compare losses and updates; the first thing to run on a new cluster
    #[command(
        after_help = "Two commands that work:\n  hpml verify parity.h5 --data DIR\n  mpirun -n 2 hpml verify parity.h5 \
        --data DIR --set parallel.bucket_mb=1"
    )]
    Verify(Verify),
    /// Measure the all-reduce of these ranks by size, with nccl-tests' columns
    #[command(
        after_help = "Two commands that work:\n  mpirun -n 2 hpml allreduce\n  mpirun -n 4 hpml allreduce --min 1M --max 64M \
        --algorithm shared --algorithm ring --type float32 --out results/allreduce.h5"
    )]
    Allreduce(Allreduce),
    /// Tables, CSV, Markdown, plots and an HTML page from run files; several are compared
    #[command(
        after_help = "Two commands that work:\n  hpml report results/net.h5 --html net.html\n  hpml report old.h5 new.h5 --csv \
        --table epochs"
    )]
    Report(Report),
}

/// Arguments of `hpml train`.
#[derive(Debug, Default, Args)]
pub struct Train {
    /// Configuration (TOML); the built-in defaults if left out. `hpml config` prints them
    pub config: Option<PathBuf>,
    /// `--set`, `--data`
    #[command(flatten)]
    pub common: Common,
    /// Run file to write (HDF5) [default: a new results/MODEL-RANKSranks-TIME.h5, with the Slurm job's id if there is one]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Go on from a checkpoint: auto for the newest whole one of the run file's run (anew if there is none), or its file
    #[arg(long, value_name = "auto|FILE.h5")]
    pub resume: Option<String>,
    /// Replace a run file of another training and its checkpoints, and take the name from a job that writes it
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml sweep`.
#[derive(Debug, Args)]
pub struct Sweep {
    /// Configuration (TOML) with a `[sweep]` section; the built-in defaults if left out
    pub config: Option<PathBuf>,
    /// `--set`, `--data`
    #[command(flatten)]
    pub common: Common,
    /// Run file to write (HDF5) [default: results/scaling-RANKSranks-TIME.h5]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Go on with the run file if it exists: measure only what is missing in it
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
    /// `--set`, `--data`
    #[command(flatten)]
    pub common: Common,
    /// Run file to write (HDF5) [default: results/study-RANKSranks-TIME.h5]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Overwrite the run file if it exists
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml predict`.
#[derive(Debug, Args)]
pub struct Predict {
    /// Run file of a sweep on 1 and on several ranks (HDF5)
    pub run: PathBuf,
    /// Rank counts: 8,64,100 or 8..4096 (times 2)
    #[arg(long, value_name = "N,N|N..N", default_value = "1..4096", value_parser = rank_counts)]
    pub ranks: RankCounts,
    /// Samples per rank and step [default: the middle one of the measured]
    #[arg(long, value_parser = batch)]
    pub batch: Option<usize>,
    /// Bus bandwidth of another network, GB/s [default: fitted]
    #[arg(long, value_name = "GB/s", value_parser = positive)]
    pub busbw: Option<f64>,
    /// Latency of one message in another network, microseconds [default: fitted]
    #[arg(long, value_name = "us", value_parser = not_negative)]
    pub latency: Option<f64>,
    /// Only this network
    #[arg(long)]
    pub model: Option<String>,
    /// Also write it to the run file, as /prediction
    #[arg(long)]
    pub save: bool,
}

/// Arguments of `hpml quantize`.
#[derive(Debug, Args)]
pub struct Quantize {
    /// Run file of a training (HDF5); data and model are those of its configuration
    pub run: PathBuf,
    /// `--set`, `--data`
    #[command(flatten)]
    pub common: Common,
    /// Quantized file to write (HDF5) [default: RUN-int8.h5 beside the run file]
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Overwrite it if it exists
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Parity file made with PyTorch (HDF5)
    pub parity: PathBuf,
    /// `--set`, `--data`
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

impl Common {
    /// Every override in order: each `--set`, then `--data`, which stands above them.
    pub fn overrides(&self) -> Vec<String> {
        let data = self.data.iter().map(|dir| format!("data.dir={}", toml::Value::String(dir.display().to_string())));
        self.set.iter().cloned().chain(data).collect()
    }
}

/// Arguments of `hpml allreduce`.
#[derive(Debug, Args)]
pub struct Allreduce {
    /// Smallest buffer, in bytes; K, M, G: x 1024. The gradients of net and resnet18 are measured too if they lie between
    #[arg(long, value_name = "BYTES", default_value = "8", value_parser = bytes)]
    pub min: usize,
    /// Largest buffer, in bytes
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = bytes)]
    pub max: usize,
    /// From one size to the next
    #[arg(long, default_value = "4", value_parser = factor)]
    pub factor: usize,
    /// About so many seconds for each size, type, algorithm and place; warm-up (3 iterations) apart
    #[arg(long, default_value = "0.2", value_parser = seconds)]
    pub seconds: f64,
    /// So many iterations instead; 0: --seconds decides
    #[arg(long, default_value = "0")]
    pub iters: usize,
    /// Whose memory: cpu (the host's), cuda (a GPU's, by NCCL or with another --algorithm than auto through the host), auto
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    /// As in parallel.all_reduce; may be repeated [default: auto mpi]
    #[arg(long = "algorithm", value_name = "NAME")]
    pub algorithms: Vec<Algorithm>,
    /// Type of the elements; may be repeated [default: float32, and bf16 where an algorithm has it]
    #[arg(long = "type", value_name = "TYPE")]
    pub types: Vec<ElementType>,
    /// Run file to write (HDF5); none if left out
    #[arg(long, value_name = "FILE.h5")]
    pub out: Option<PathBuf>,
    /// Overwrite the run file if it exists
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `hpml report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Run files (HDF5) of hpml train, sweep, allreduce or quantize
    #[arg(required = true, value_name = "FILE.h5")]
    pub files: Vec<PathBuf>,
    /// One table as CSV, all digits: --table, else the first there is of scaling, allreduce, epochs, quantization
    #[arg(long, conflicts_with = "markdown")]
    pub csv: bool,
    /// The tables as GitHub's Markdown
    #[arg(long)]
    pub markdown: bool,
    /// Only this table: as it stands in the file, a row a row, or one of the report's own (steps-anatomy, comm-step, study-summary,
    /// scaling-overlap, ...)
    #[arg(long, value_name = "NAME")]
    pub table: Option<String>,
    /// Write one page with all tables and plots, which needs no other file
    #[arg(long, value_name = "OUT.html")]
    pub html: Option<PathBuf>,
    /// Write each plot as SVG and PNG into this folder
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// Overwrite files that exist
    #[arg(long)]
    pub force: bool,
}

impl From<Predict> for predict::Request {
    fn from(args: Predict) -> predict::Request {
        let link = predict::Link { busbw: args.busbw.map(|gbs| gbs * 1e9), latency: args.latency.map(|us| us * 1e-6) };
        let Predict { run, ranks, batch, model, save, .. } = args;
        predict::Request { run, ranks: ranks.to_vec(), batch, link, model, save }
    }
}

impl From<Allreduce> for allreduce::Request {
    fn from(args: Allreduce) -> allreduce::Request {
        let Allreduce { min, max, factor, seconds, iters, device, algorithms, types, out, force } = args;
        allreduce::Request {
            min,
            max,
            factor,
            budget: allreduce::Budget { seconds, iterations: iters },
            device,
            algorithms,
            types,
            destination: Destination { path: out, force },
        }
    }
}

impl From<Report> for report::Request {
    fn from(args: Report) -> report::Request {
        let Report { files, csv, markdown, table, html, plots, force } = args;
        report::Request { files, csv, markdown, table, html, plots, force }
    }
}

/// `8`, `64K`, `256M`, `1G` in bytes; at least 1, at most 64 GiB.
fn bytes(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1usize),
    };
    let bytes = digits.parse().ok().and_then(|number: usize| number.checked_mul(unit));
    bytes.filter(|bytes| (1..=64 << 30).contains(bytes)).ok_or_else(|| "must be 1 to 64G".to_owned())
}

fn factor(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&factor| factor >= 2).ok_or_else(|| "must be a whole number, at least 2".to_owned())
}

/// Ascending rank counts.
pub type RankCounts = std::sync::Arc<[usize]>;

/// `8,64` or `8..4096`, which doubles from 8 on and ends at 4096.
fn rank_counts(text: &str) -> Result<RankCounts, String> {
    let number = |text: &str| text.trim().parse().ok().filter(|number| (1..=1 << 24).contains(number));
    let counts: Option<Vec<usize>> = match text.split_once("..") {
        Some((first, last)) => {
            number(first).zip(number(last)).filter(|(first, last)| first <= last).map(|(first, last)| {
                let doubled = std::iter::successors(Some(first), |count| Some(count * 2));
                doubled.take_while(|&count| count < last).chain([last]).collect()
            })
        }
        None => text.split(',').map(number).collect(),
    };
    counts.map(Into::into).ok_or_else(|| "must be rank counts from 1 to 16777216, as in 8,64 or 8..4096".to_owned())
}

fn batch(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|batch| (1..=1 << 20).contains(batch)).ok_or_else(|| "must be 1 to 1048576".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "must be above 0".to_owned())
}

fn not_negative(text: &str) -> Result<f64, String> {
    let given = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    given.ok_or_else(|| "must be a number, at least 0".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let given = text.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds > 0.0 && *seconds <= 3600.0);
    given.ok_or_else(|| "must be above 0, at most 3600".to_owned())
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
        let command = Cli::parse_from(["hpml", "allreduce"]).command;
        let Some(Command::Allreduce(args)) = command else { panic!("the command was named") };
        assert_eq!(allreduce::Request::from(args), allreduce::Request::default());
    }

    #[test]
    fn rank_counts_are_lists_or_doubling_ranges() {
        assert_eq!(*rank_counts("8..100").unwrap(), [8, 16, 32, 64, 100]);
        assert_eq!(*rank_counts("3, 5").unwrap(), [3, 5]);
        assert_eq!(*rank_counts("4..4").unwrap(), [4]);
        for wrong in ["", "0", "8..2", "a", "1,", "99999999999"] {
            assert!(rank_counts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_take_binary_units() {
        assert_eq!((bytes("8"), bytes("64K"), bytes("256M")), (Ok(8), Ok(65_536), Ok(268_435_456)));
        for wrong in ["", "0", "K", "1T", "-8", "99999999999G"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
