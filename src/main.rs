//! hpml: data-parallel training under MPI that measures what it costs. This file is the table of contents of a run: it parses the
//! command line, starts the ranks, and calls the command.
#![deny(clippy::print_stderr)] // in pieces, which mix with other ranks' words: see message.rs

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use hpml::cli::{self, Cli, Command, Common};
use hpml::collective::Collective;
use hpml::config::{self, Config, Device, Launch, ModelName, Plan, Reader};
use hpml::error::{Error, Result};
use hpml::launch::{self, Job};
use hpml::quantize::command as int8;
use hpml::{collectives, message, model, predict, report, store, study, sweep, sys, train, verify, workload};

#[global_allocator]
static ALLOCATOR: sys::Allocator = sys::Allocator;

fn main() -> ExitCode {
    if let Err(error) = sys::check_libtorch() {
        launch::leave_to_first_rank(error.status().into());
        return print(Err(error));
    }
    sys::keep_freed_memory();
    // Network file systems often cannot lock, and store never writes to a file that others can see.
    sys::default_environment("HDF5_USE_FILE_LOCKING", "FALSE");
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let error = cli::with_hint(error, &std::env::args_os().collect::<Vec<_>>());
        launch::leave_to_first_rank(error.exit_code());
        if error.use_stderr() {
            // clap would write it in pieces, which a launcher mixes with its own words.
            let text = error.render();
            let text = if std::io::stderr().is_terminal() { text.ansi().to_string() } else { text.to_string() };
            message::print(text.trim_end());
            std::process::exit(error.exit_code())
        }
        error.exit()
    });
    match cli.command.unwrap_or_else(|| Command::Train(cli::Train::default())) {
        Command::Train(args) => {
            start(load_config(Reader::Train, args.config.as_deref(), &args.common), |job, config| {
                train(job, config, &args)
            })
        }
        Command::Verify(args) => start(verify_config(&args.common), |job, config| verify(job, config, &args)),
        Command::Collectives(args) => start(Ok(Config::default()), |job, _| collectives::run(&args.into(), job)),
        Command::Allreduce(mut args) => {
            if args.collectives.is_empty() {
                args.collectives.push(Collective::AllReduce);
            }
            start(Ok(Config::default()), |job, _| collectives::run(&args.into(), job))
        }
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
        Command::Workload(args) => alone(|| count(&args)),
        Command::Predict(args) => alone(|| predict::run(&args.into())),
        Command::Eval { file, predictions, force, common } => {
            alone(|| eval(&file, predictions.as_deref(), force, &common))
        }
        Command::Export { file, onnx, force } => alone(|| int8::export(&file, &onnx, force)),
        Command::Config => alone(|| Ok(config::documented_defaults())),
        Command::Devices => print(Ok(launch::describe_host())),
        Command::Inspect { file } => alone(|| {
            let (overview, slow) = (store::inspect(&file)?, report::slow(&file));
            Ok(if slow.is_empty() { overview } else { format!("{overview}\n{slow}") })
        }),
        Command::Report(args) => alone(|| report::report(&args.into())),
        Command::Generate { prefix } => alone(|| cli::generate(&prefix)),
    }
}

/// Starts the ranks, which wait for each other as long as the configuration says. A configuration with an error is reported by
/// the ranks once they have met, which they do with the defaults.
fn start(config: Result<Config>, work: impl FnOnce(&mut Job, Result<Config>) -> Result<()>) -> ExitCode {
    // A wrong configuration is reported by each process, ranks of one job or not.
    let unknown = || Launch { allow_singletons: true, ..Launch::default() };
    let launch = config.as_ref().map_or_else(|_| unknown(), |config| config.launch.clone());
    launch::run(&launch, |job| work(job, config))
}

/// Trains, and quantizes the result if `[quantize] enabled` says so: its file is prepared before the first step.
fn train(job: &mut Job, loaded: Result<Config>, args: &cli::Train) -> Result<()> {
    let plan = loaded.and_then(|config| Plan::new(config, job.world_size));
    let plan = watched(job, plan)?;
    let destination = args.destination();
    let Some(begun) = train::begin(&plan, job, &destination, args.resume_from().as_ref())? else { return Ok(()) };
    if !begun.plan().quantize.enabled {
        return begun.run(false).map(drop);
    }
    let plan = begun.plan().clone();
    let file = int8::prepare(&plan, job, begun.datasets(), begun.output(), destination.force)?;
    let trained = begun.run(true)?;
    let weights = trained.weights()?;
    let quantized = int8::quantize_state(&plan, job, &weights.tensors, trained.datasets())?;
    let written = file.map_or(Ok(()), |mut file| {
        int8::print(&quantized, &plan.quantize);
        int8::write(&quantized, job, &mut file)?;
        trained.finish(&weights, &quantized.tables)
    });
    job.agree(written)
}

fn sweep(job: &mut Job, loaded: Result<Config>, args: &cli::Sweep) -> Result<()> {
    let plan = loaded.and_then(|config| Plan::with_batch_as_written(config, job.world_size));
    let plan = job.agree(plan)?;
    job.configure(&plan)?;
    check_model(job, &plan)?;
    job.disable_watchdog(); // while others are measured
    sweep::run(&plan, job, &args.destination(), args.resume)
}

fn study(job: &mut Job, loaded: Result<Config>, args: &cli::Study) -> Result<()> {
    let plan = loaded.and_then(|config| Plan::with_batch_as_written(config, job.world_size));
    let plan = watched(job, plan)?;
    study::run(&plan, job, &args.destination())
}

fn verify(job: &mut Job, loaded: Result<Config>, args: &cli::Verify) -> Result<()> {
    let plan = loaded.and_then(|config| Plan::with_batch_as_written(config, job.world_size));
    let result = watched(job, plan).and_then(|plan| verify::run(&plan, job, &args.parity));
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
    let plan = loaded.map(anywhere).and_then(|config| Plan::with_batch_as_written(config, job.world_size));
    let plan = watched(job, plan)?;
    int8::quantize(&plan, job, &args.run, &args.destination())
}

/// The plan, after it was found to be right and the same on all ranks. From then on no rank waits for ever.
fn watched(job: &mut Job, plan: Result<Plan>) -> Result<Plan> {
    let plan = job.agree(plan)?;
    job.configure(&plan)?;
    job.watch(&plan.launch)?;
    check_model(job, &plan)?;
    Ok(plan)
}

/// Repeats the check of a network from a file, on rank 0. A collective.
fn check_model(job: &Job, plan: &Plan) -> Result<()> {
    job.agree(if job.is_root() { model::check_file(&plan.model) } else { Ok(()) })
}

/// Counts what a training by these arguments computes, sends and keeps in memory.
fn count(args: &cli::Workload) -> Result<String> {
    let config = load_config(Reader::Train, args.config.as_deref(), &args.common)?;
    workload::run(&Plan::new(config, args.ranks)?)
}

fn eval(file: &Path, predictions: Option<&Path>, force: bool, common: &Common) -> Result<String> {
    int8::eval(&config_of(Reader::Eval, file, common)?, file, predictions, force)
}

/// The configuration that a run file was made with, changed by the command line; the kind of the data must stay.
fn config_of(reader: Reader, run: &Path, common: &Common) -> Result<Config> {
    let trained = store::read_config(run)?;
    let config = trained.with_overrides(&common.overrides(), &run.display().to_string())?;
    config.data.check_kind(&trained.data, run)?;
    if reader == Reader::Quantize && config.model.name == ModelName::File {
        let (place, key, value) = (run.display().to_string(), "model.name".into(), "file".into());
        let expected = "a network from a file has no int8 form: quantize a run of a built-in network".into();
        return Err(Error::ConfigValue { place, key, value, expected });
    }
    reader.refuse_unread(&common.set, &config)?;
    Ok(config)
}

fn load_config(reader: Reader, file: Option<&Path>, common: &Common) -> Result<Config> {
    let config = Config::load(file, &common.overrides())?;
    reader.refuse_unread(&common.set, &config)?;
    Ok(config)
}

/// Runs a command that needs no ranks, on the first of the processes that a launcher started.
fn alone(command: impl FnOnce() -> Result<String>) -> ExitCode {
    if launch::is_first() { print(command()) } else { ExitCode::SUCCESS }
}

/// Prints the result of a command, or its error.
fn print(text: Result<String>) -> ExitCode {
    match text {
        Ok(text) => {
            use std::io::Write;
            // A closed pipe (`| head`) is no error of hpml's.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            message::print(format_args!("hpml: {error}"));
            ExitCode::FAILURE
        }
    }
}
