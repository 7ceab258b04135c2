//! hpml: data-parallel training under MPI that measures what it costs. This file is the table of contents of a run.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use hpml::cli::{self, Cli, Command, Common};
use hpml::config::{self, Config, Device, Launch, Reader};
use hpml::error::Result;
use hpml::launch::{self, Job};
use hpml::{allreduce, predict, quantize, report, store, study, sweep, sys, train, verify};

fn main() -> ExitCode {
    sys::keep_freed_memory();
    // Network file systems often cannot lock, and store never writes to a file that others can see.
    sys::default_environment("HDF5_USE_FILE_LOCKING", "FALSE");
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        launch::leave_to_first_rank(error.exit_code());
        error.exit()
    });
    match cli.command.unwrap_or_else(|| Command::Train(cli::Train::default())) {
        Command::Train(args) => {
            start(load_config(Reader::Train, args.config.as_deref(), &args.common), |job, config| {
                train(job, config, &args)
            })
        }
        Command::Verify(args) => start(verify_config(&args.common), |job, config| verify(job, config, &args)),
        Command::Allreduce(args) => start(Ok(Config::default()), |job, _| allreduce::run(&args, job)),
        Command::Sweep(args) => {
            start(load_config(Reader::Sweep, args.config.as_deref(), &args.common), |job, config| {
                sweep(job, config, &args)
            })
        }
        Command::Study(args) => {
            start(load_config(Reader::Study, Some(&args.config), &args.common), |job, config| study(job, config, &args))
        }
        Command::Quantize(args) => {
            start(config_of(Reader::Quantize, &args.run, &args.common), |job, config| quantize(job, config, &args))
        }
        Command::Predict(args) => print(predict::run(&args)),
        Command::Eval { file, predictions, force, common } => {
            print(eval(&file, predictions.as_deref(), force, &common))
        }
        Command::Export { file, onnx, force } => print(quantize::command::export(&file, &onnx, force)),
        Command::Config => print(Ok(config::documented_defaults())),
        Command::Devices => print(Ok(launch::describe_host())),
        Command::Inspect { file } => print(store::inspect(&file)),
        Command::Report(args) => print(report::report(&args)),
    }
}

/// Starts the ranks, which wait for each other as long as the configuration says; the default if it is not even right, which
/// they tell when they have met.
fn start(config: Result<Config>, work: impl FnOnce(&mut Job, Result<Config>) -> Result<()>) -> ExitCode {
    // A wrong configuration is told by each process, ranks of one job or not.
    let unknown = || Launch { allow_singletons: true, ..Launch::default() };
    let launch = config.as_ref().map_or_else(|_| unknown(), |config| config.launch.clone());
    launch::run(&launch, |job| work(job, config))
}

fn train(job: &mut Job, loaded: Result<Config>, args: &cli::Train) -> Result<()> {
    let config = watched(job, loaded.and_then(|config| config.for_ranks(job.world_size)))?;
    let destination = args.destination();
    let Some(begun) = train::begin(&config, job, &destination, args.resume_from().as_ref())? else { return Ok(()) };
    if !begun.config().quantize.enabled {
        return begun.run(false).map(drop);
    }
    let config = begun.config().clone();
    let int8 = quantize::command::prepare(&config, job, &begun.datasets().train, begun.output(), destination.force)?;
    let trained = begun.run(true)?;
    let weights = trained.weights()?;
    let quantized = quantize::command::quantize_state(&config, job, &weights.tensors, trained.datasets())?;
    let written = int8.map_or(Ok(()), |mut file| {
        quantize::command::print(&quantized, &config, job.target);
        quantize::command::write(&quantized, job, &mut file)?;
        trained.finish(&weights, &quantized.tables)
    });
    job.agree(written)
}

fn sweep(job: &mut Job, loaded: Result<Config>, args: &cli::Sweep) -> Result<()> {
    let config = job.agree(loaded)?;
    job.configure(&config)?;
    job.let_ranks_wait(); // while others are measured
    sweep::run(&config, job, args)
}

fn study(job: &mut Job, loaded: Result<Config>, args: &cli::Study) -> Result<()> {
    let config = watched(job, loaded)?;
    study::run(&config, job, args)
}

fn verify(job: &mut Job, loaded: Result<Config>, args: &cli::Verify) -> Result<()> {
    let result = watched(job, loaded).and_then(|config| verify::run(&config, job, &args.parity));
    verify::conclude(job, result)
}

fn verify_config(common: &Common) -> Result<Config> {
    // A --set that cannot be read is reported before one that does not belong here.
    let config = Config::load(None, &common.overrides())?;
    verify::check_overrides(&common.set).map(|()| config)
}

fn quantize(job: &mut Job, loaded: Result<Config>, args: &cli::Quantize) -> Result<()> {
    // A run of GPUs is quantized where there are none, too.
    let is_chosen = args.common.set.iter().any(|setting| setting.trim_start().starts_with("launch.device"));
    let anywhere = |config: Config| match is_chosen {
        true => config,
        false => Config { launch: Launch { device: Device::Auto, ..config.launch }, ..config },
    };
    let loaded = loaded.map(anywhere);
    let config = watched(job, loaded)?;
    quantize::command::quantize(&config, job, &args.run, &args.destination())
}

/// The configuration, right and the same on all ranks before any work; from now on no rank waits for ever.
fn watched(job: &mut Job, loaded: Result<Config>) -> Result<Config> {
    let config = job.agree(loaded)?;
    job.configure(&config)?;
    job.watch(&config)?;
    Ok(config)
}

fn eval(file: &Path, predictions: Option<&Path>, force: bool, common: &Common) -> Result<String> {
    quantize::command::eval(&config_of(Reader::Eval, file, common)?, file, predictions, force)
}

/// The configuration that a run file was made with, and what the command line changes in it, the kind of the data apart.
fn config_of(reader: Reader, run: &Path, common: &Common) -> Result<Config> {
    let trained = store::read_config(run)?;
    let config = trained.with_overrides(&common.overrides(), &run.display().to_string())?;
    config.data.check_kind(&trained.data, run)?;
    reader.refuse_unread(&common.set, &config)?;
    Ok(config)
}

fn load_config(reader: Reader, file: Option<&Path>, common: &Common) -> Result<Config> {
    let config = Config::load(file, &common.overrides())?;
    reader.refuse_unread(&common.set, &config)?;
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
