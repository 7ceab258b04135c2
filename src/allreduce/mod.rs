//! `hpml allreduce`: how fast the ranks of this job sum a buffer, by size, type and algorithm, with nccl-tests' columns.
//! In: the ranks and a list of sizes. Out: rows of times, bandwidths and wrong sums; printed as they come, and tables for a
//! run file. Never touches a model: it is the yardstick beside which a training's own collectives are held.

mod bench;
mod measure;
mod table;

use crate::cli::{self, ElementType};
use crate::collective::{Bf16, DeviceCollectives, Element};
use crate::config::{Algorithm, Config, Launch};
use crate::device::Target;
use crate::environment;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::output;
use crate::report;
use crate::store::{FileKind, Identity, Owner, RunFile};
pub use bench::Bench;
pub use measure::{Budget, Row, Timing};
pub use table::{empty_table, table};

/// Gradients of the two networks, in elements: what training all-reduces. (A test compares them with the models.)
const MODEL_ELEMENTS: [usize; 2] = [61_770, 11_173_962];

/// Measures as asked, prints on rank 0 and writes the run file if one is named.
pub fn run(args: &cli::Allreduce, job: &mut Job) -> Result<()> {
    if args.min > args.max {
        let (place, key, value) = ("command line".into(), "--max".into(), args.max.to_string());
        let expected = format!("must be at least --min, {}", args.min);
        return job.agree(Err(Error::ConfigValue { place, key, value, expected }));
    }
    let mut config = Config::default();
    config.launch = Launch { device: args.device, allow_gpu_sharing: true, ..config.launch };
    job.configure(&config)?;
    let plan = job.agree(plan(args, job.target))?;
    job.disable_watchdog();
    let owner = args.out.as_ref().map(|out| output::claim_at(job, out, args.force)).transpose()?.flatten();
    let file = owner.map(|owner| create(owner, args.force, &config, job));
    let mut file = job.agree(file.transpose())?;
    if job.is_root() {
        table::print_header(job);
    }
    let mut rows = Vec::new();
    for (kind, algorithms) in &plan {
        rows.extend(match kind {
            ElementType::Float32 => measure_type::<f32>(args, algorithms, job, &config)?,
            ElementType::Bf16 => measure_type::<Bf16>(args, algorithms, job, &config)?,
        });
    }
    if job.is_root() {
        print!("{}", report::tables(None, &[table::table(&rows)], &["allreduce"]));
    }
    if let Some(file) = &mut file {
        file.set_warnings(job.warnings());
        file.finish(&[table::table(&rows)], None)?;
        println!("\nwritten to {}", file.path().display());
    }
    Ok(())
}

/// The types that are measured, and by which algorithms each: what was asked for, or else what exists on such a `target`. Error:
/// what was asked for does not.
fn plan(args: &cli::Allreduce, target: Target) -> Result<Vec<(ElementType, Vec<Algorithm>)>> {
    let or =
        |asked: &[Algorithm]| if asked.is_empty() { vec![Algorithm::Auto, Algorithm::Mpi] } else { asked.to_vec() };
    let types = if args.types.is_empty() { &[ElementType::Float32, ElementType::Bf16] } else { &args.types[..] };
    let mut plan = Vec::new();
    for &kind in types {
        let through_host = |&algorithm: &Algorithm| DeviceCollectives::go_through_host(target, algorithm);
        let lacking = |algorithm: &Algorithm| target.is_gpu() && kind == ElementType::Bf16 && through_host(algorithm);
        let (lacking, algorithms): (Vec<_>, Vec<_>) = or(&args.algorithms).into_iter().partition(lacking);
        let asked = !args.types.is_empty();
        if asked && !lacking.is_empty() && (algorithms.is_empty() || !args.algorithms.is_empty()) {
            let (place, key, value) = ("command line".into(), "--type".into(), "bf16".into());
            let expected = "goes from GPU to GPU by NCCL alone (--algorithm auto): leave it out".into();
            return Err(Error::ConfigValue { place, key, value, expected });
        }
        if !algorithms.is_empty() {
            plan.push((kind, algorithms));
        }
    }
    Ok(plan)
}

/// All sizes of one type. The algorithms take turns at each size, so that drift of the machine meets them alike.
fn measure_type<T: Element>(
    args: &cli::Allreduce,
    algorithms: &[Algorithm],
    job: &Job,
    config: &Config,
) -> Result<Vec<Row>> {
    let counts = element_counts(args, size_of::<T>());
    let largest = counts.last().copied().unwrap_or(0);
    let benches: Result<Vec<_>> = algorithms
        .iter()
        .map(|&algorithm| Bench::<T>::new(&job.communicator, job.target, algorithm, largest, config))
        .collect();
    let mut benches = job.agree(benches)?;
    let budget = Budget { seconds: args.seconds, iterations: args.iters };
    let mut rows = Vec::new();
    for elements in counts {
        let mut measured: Vec<&str> = Vec::new();
        for bench in &mut benches {
            let algorithm = bench.algorithm(elements * size_of::<T>());
            if measured.contains(&algorithm) {
                continue; // auto chose what was asked for by name, too
            }
            measured.push(algorithm);
            let row = bench.measure(&job.communicator, elements, &budget)?;
            if job.is_root() {
                table::log_row(&row);
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// From `min` to `max` bytes by `factor`, `max` itself and the networks' gradients; ascending, each once.
fn element_counts(args: &cli::Allreduce, element_bytes: usize) -> Vec<usize> {
    let steps = std::iter::successors(Some(args.min), |bytes| bytes.checked_mul(args.factor));
    let mut counts: Vec<usize> = steps.take_while(|&bytes| bytes < args.max).chain([args.max]).collect();
    counts.iter_mut().for_each(|bytes| *bytes = (*bytes / element_bytes).max(1));
    let inside = |&elements: &usize| (args.min..=args.max).contains(&(elements * element_bytes));
    counts.extend(MODEL_ELEMENTS.into_iter().filter(inside));
    counts.sort_unstable();
    counts.dedup();
    counts
}

fn create(owner: Owner, force: bool, config: &Config, job: &Job) -> Result<RunFile> {
    let identity = Identity::new(FileKind::Allreduce);
    RunFile::create_owned(
        owner,
        force,
        identity,
        config,
        environment::attributes(job, None),
        vec![environment::table(job)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::model::Model;

    fn counts(min: usize, max: usize, factor: usize, element_bytes: usize) -> Vec<usize> {
        element_counts(&cli::Allreduce { min, max, factor, ..Default::default() }, element_bytes)
    }

    #[test]
    fn sizes_grow_by_the_factor_and_hold_the_models_gradients() {
        assert_eq!(counts(8, 256, 4, 4), [2, 8, 32, 64]);
        assert_eq!(counts(4, 4, 4, 4), [1]);
        assert_eq!(counts(1, 9, 2, 4), [1, 2]);
        assert!(counts(8, 1 << 28, 4, 2).ends_with(&[11_173_962, 16 << 20, 64 << 20, 128 << 20]));
    }

    #[test]
    fn the_models_have_as_many_parameters_as_are_measured() {
        for (name, elements) in [(config::ModelName::Net, 61_770), (config::ModelName::Resnet18, 11_173_962)] {
            let model = Model::new(&config::Model { name, ..Default::default() }, 0);
            assert_eq!(model.parameter_count(), elements);
            assert!(MODEL_ELEMENTS.contains(&elements));
        }
    }
}
