//! hpml: data-parallel training under MPI that measures what it costs. This file is the table of contents of a run.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use hpml::cli::{self, Cli, Command, Common};
use hpml::config::{self, Config};
use hpml::error::Result;
use hpml::launch::{self, Job};
use hpml::{allreduce, store, sys, train, verify};

fn main() -> ExitCode {
    sys::keep_freed_memory();
    // Network file systems often cannot lock, and store never writes to a file that others can see.
    sys::default_environment("HDF5_USE_FILE_LOCKING", "FALSE");
    match Cli::parse().command.unwrap_or_else(|| Command::Train(cli::Train::default())) {
        Command::Train(args) => launch::run(|job| train(job, &args)),
        Command::Verify(args) => launch::run(|job| verify(job, &args)),
        Command::Allreduce(args) => launch::run(|job| allreduce::run(&args, job)),
        Command::Config => print(Ok(config::documented_defaults())),
        Command::Inspect { file } => print(store::inspect(&file)),
    }
}

fn train(job: &mut Job, args: &cli::Train) -> Result<()> {
    let loaded = load_config(args.config.as_deref(), &args.common).map(|mut config| {
        if let Some(out) = &args.out {
            config.run.out = out.display().to_string();
        }
        config
    });
    let config = job.agree(loaded)?; // typed and checked before any work
    job.configure(&config)?; // the same on all ranks; threads
    train::run(&config, job, args.force)
}

fn verify(job: &mut Job, args: &cli::Verify) -> Result<()> {
    // PyTorch's reference ran in NCHW; another layout rounds differently from the first step on. --set may still ask for it.
    let mut common = args.common.clone();
    common.set.insert(0, "model.channels_last=false".into());
    let config = job.agree(load_config(None, &common))?;
    job.configure(&config)?;
    verify::run(&config, job, &args.parity)
}

fn load_config(file: Option<&Path>, common: &Common) -> Result<Config> {
    let mut config = Config::load(file, &common.set)?;
    if let Some(dir) = &common.data {
        config.data.dir = dir.display().to_string();
    }
    Ok(config)
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
