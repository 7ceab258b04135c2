//! hpml: data-parallel training under MPI that measures what it costs. This file is the table of contents of a run.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use hpml::cli::{self, Cli, Command, Common};
use hpml::config::{self, Config};
use hpml::error::Result;
use hpml::launch::{self, Job};
use hpml::{allreduce, predict, quantize, report, store, study, sweep, sys, train, verify};

fn main() -> ExitCode {
    sys::keep_freed_memory();
    // Network file systems often cannot lock, and store never writes to a file that others can see.
    sys::default_environment("HDF5_USE_FILE_LOCKING", "FALSE");
    let cli = Cli::try_parse().unwrap_or_else(|error| launch::first_rank_only(|| error.exit(), error.exit_code()));
    match cli.command.unwrap_or_else(|| Command::Train(cli::Train::default())) {
        Command::Train(args) => launch::run(|job| train(job, &args)),
        Command::Verify(args) => launch::run(|job| verify(job, &args)),
        Command::Allreduce(args) => launch::run(|job| allreduce::run(&args, job)),
        Command::Sweep(args) => launch::run(|job| sweep(job, &args)),
        Command::Study(args) => launch::run(|job| study(job, &args)),
        Command::Quantize(args) => launch::run(|job| quantize(job, &args)),
        Command::Predict(args) => print(predict::run(&args)),
        Command::Eval { file, predictions, common } => print(eval(&file, predictions.as_deref(), &common)),
        Command::Export { file, onnx, force } => print(quantize::command::export(&file, &onnx, force)),
        Command::Config => print(Ok(config::documented_defaults())),
        Command::Inspect { file } => print(store::inspect(&file)),
        Command::Report(args) => print(report::report(&args)),
    }
}

fn train(job: &mut Job, args: &cli::Train) -> Result<()> {
    let loaded = load_config(args.config.as_deref(), &args.common);
    let loaded = loaded.and_then(|config| config.for_ranks(job.world_size)).map(|mut config| {
        if let Some(out) = &args.out {
            config.run.out = out.display().to_string();
        }
        config
    });
    let config = job.agree(loaded)?; // typed and checked before any work
    job.configure(&config)?; // the same on all ranks; threads
    job.watch(&config)?;
    train::run(&config, job, args)
}

fn sweep(job: &mut Job, args: &cli::Sweep) -> Result<()> {
    let config = job.agree(load_config(args.config.as_deref(), &args.common))?;
    job.configure(&config)?;
    sweep::run(&config, job, args)
}

fn study(job: &mut Job, args: &cli::Study) -> Result<()> {
    let config = job.agree(load_config(Some(&args.config), &args.common))?;
    job.configure(&config)?;
    job.watch(&config)?;
    study::run(&config, job, args)
}

fn verify(job: &mut Job, args: &cli::Verify) -> Result<()> {
    // PyTorch's reference ran in NCHW; another layout rounds differently from the first step on. --set may still ask for it.
    let mut common = args.common.clone();
    common.set.insert(0, "model.channels_last=false".into());
    let config = job.agree(load_config(None, &common))?;
    job.configure(&config)?;
    verify::run(&config, job, &args.parity)
}

fn quantize(job: &mut Job, args: &cli::Quantize) -> Result<()> {
    let config = job.agree(config_of(&args.run, &args.common))?;
    job.configure(&config)?;
    let out = args.out.clone().unwrap_or_else(|| quantize::command::beside(&args.run));
    quantize::command::quantize(&config, job, &args.run, &out, args.force)
}

fn eval(file: &Path, predictions: Option<&Path>, common: &Common) -> Result<String> {
    quantize::command::eval(&config_of(file, common)?, file, predictions)
}

/// The configuration that a run file was made with, and what the command line changes in it.
fn config_of(run: &Path, common: &Common) -> Result<Config> {
    let config = store::read_config(run)?.with_overrides(&common.set, &run.display().to_string())?;
    Ok(with_data(config, common))
}

fn load_config(file: Option<&Path>, common: &Common) -> Result<Config> {
    Ok(with_data(Config::load(file, &common.set)?, common))
}

/// `--data` stands above the file and `--set`.
fn with_data(mut config: Config, common: &Common) -> Config {
    if let Some(dir) = &common.data {
        config.data.dir = dir.display().to_string();
    }
    config
}

/// For the commands that need no ranks.
fn print(text: Result<String>) -> ExitCode {
    match text {
        Ok(text) => {
            use std::io::Write;
            // A closed pipe (`| head`) is no error of ours.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("hpml: {error}");
            ExitCode::FAILURE
        }
    }
}
