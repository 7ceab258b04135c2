//! `hpml allreduce`: time and bandwidth of an all-reduce by size, type and algorithm, with nccl-tests' columns. In: the ranks,
//! and a [`Request`]. Out: rows of times, bandwidths and wrong sums, printed as they are measured, and a table for the run file.
//! Needs no model: the collectives of a training are compared with these.

mod bench;
mod measure;
mod table;

use crate::collective::{Bf16, DeviceCollectives, Element, Network};
use crate::config::{self, Algorithm, Config, Launch, Parallel, Plan};
use crate::device::Target;
use crate::environment;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::output::{self, Destination};
use crate::report;
use crate::store::{FileKind, Identity, Owner, RunFile};
pub use bench::Bench;
pub use measure::{Budget, Row, Timing};
pub use table::{empty_table, table};

/// Elements of the gradients that the two networks all-reduce. (A test compares them with the models.)
const MODEL_ELEMENTS: [usize; 2] = [61_770, 11_173_962];

/// Sizes, types and algorithms to measure. The default is that of the command line.
///
/// # Examples
/// ```no_run
/// use hpml::allreduce::{self, Request};
/// use hpml::config::Launch;
///
/// # fn main() -> std::process::ExitCode {
/// let request = Request { min: 1 << 20, max: 64 << 20, ..Request::default() };
/// hpml::launch::run(&Launch::default(), |job| allreduce::run(&request, job))
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Smallest buffer, in bytes.
    pub min: usize,
    /// Largest buffer, in bytes.
    pub max: usize,
    /// Ratio of one size to the one before.
    pub factor: usize,
    /// How long each size, type, algorithm and place is measured.
    pub budget: Budget,
    /// Device in whose memory the buffers lie.
    pub device: config::Device,
    /// Algorithms; empty: `auto` and `mpi`.
    pub algorithms: Vec<Algorithm>,
    /// Types of the elements; empty: float32, and bf16 where an algorithm has it.
    pub types: Vec<ElementType>,
    /// Run file to write; none if it has no path.
    pub destination: Destination,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            min: 8,
            max: 256 << 20,
            factor: 4,
            budget: Budget { seconds: 0.2, iterations: 0 },
            device: config::Device::Cpu,
            algorithms: Vec::new(),
            types: Vec::new(),
            destination: Destination::default(),
        }
    }
}

/// Types that can be all-reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ElementType {
    /// IEEE single precision.
    Float32,
    /// bfloat16, summed in float32.
    Bf16,
}

/// Measures what is requested, prints on rank 0, and writes the run file if one is named. A collective.
///
/// # Errors
/// The request contradicts itself or does not suit the devices, or the run file cannot be written.
pub fn run(request: &Request, job: &mut Job) -> Result<()> {
    if request.min > request.max {
        let (place, key, value) = ("command line".into(), "--max".into(), request.max.to_string());
        let expected = format!("must be at least --min, {}", request.min);
        return job.agree(Err(Error::ConfigValue { place, key, value, expected }));
    }
    let launch = Launch { device: request.device, allow_gpu_sharing: true, ..Launch::default() };
    let plan = Plan::with_batch_as_written(Config { launch, ..Config::default() }, job.world_size)?;
    job.configure(&plan)?;
    let chosen = job.agree(chosen(request, job.target))?;
    job.disable_watchdog();
    let Destination { path, force } = &request.destination;
    let owner = path.as_ref().map(|path| output::claim_at(job, path, *force)).transpose()?.flatten();
    let chooses = chosen.iter().any(|(_, algorithms)| algorithms.contains(&Algorithm::Auto));
    let (plan, network) = if chooses { job.with_crossovers(&plan)? } else { (plan, None) };
    let file = owner.map(|owner| create(owner, *force, &plan, network.as_ref(), job));
    let mut file = job.agree(file.transpose())?;
    if job.is_root() {
        table::print_header(job, network.as_ref());
    }
    let mut rows = Vec::new();
    for (kind, algorithms) in &chosen {
        rows.extend(match kind {
            ElementType::Float32 => measure_type::<f32>(request, algorithms, job, &plan)?,
            ElementType::Bf16 => measure_type::<Bf16>(request, algorithms, job, &plan)?,
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

/// The types that are measured, each with its algorithms: those of the `request`, or else those that exist on such a `target`.
///
/// # Errors
/// A requested type and algorithm do not exist together on `target`.
fn chosen(request: &Request, target: Target) -> Result<Vec<(ElementType, Vec<Algorithm>)>> {
    const ALGORITHMS: [Algorithm; 2] = [Algorithm::Auto, Algorithm::Mpi];
    const TYPES: [ElementType; 2] = [ElementType::Float32, ElementType::Bf16];
    let algorithms = if request.algorithms.is_empty() { &ALGORITHMS[..] } else { &request.algorithms };
    let types = if request.types.is_empty() { &TYPES[..] } else { &request.types };
    let mut chosen = Vec::new();
    for &kind in types {
        let through_host = |&algorithm: &Algorithm| DeviceCollectives::go_through_host(target, algorithm);
        let lacking = |algorithm: &Algorithm| target.is_gpu() && kind == ElementType::Bf16 && through_host(algorithm);
        let (lacking, algorithms): (Vec<_>, Vec<_>) = algorithms.iter().copied().partition(lacking);
        let requested = !request.types.is_empty();
        if requested && !lacking.is_empty() && (algorithms.is_empty() || !request.algorithms.is_empty()) {
            let (place, key, value) = ("command line".into(), "--type".into(), "bf16".into());
            let expected = "goes from GPU to GPU by NCCL alone (--algorithm auto): leave it out".into();
            return Err(Error::ConfigValue { place, key, value, expected });
        }
        if !algorithms.is_empty() {
            chosen.push((kind, algorithms));
        }
    }
    Ok(chosen)
}

/// Measures all sizes of one type. The algorithms take turns at each size, so that drift of the machine affects them alike.
fn measure_type<T: Element>(request: &Request, algorithms: &[Algorithm], job: &Job, plan: &Plan) -> Result<Vec<Row>> {
    let counts = element_counts(request, size_of::<T>());
    let largest = counts.last().copied().unwrap_or(0);
    let benches: Result<Vec<_>> = algorithms
        .iter()
        .map(|&all_reduce| {
            let parallel = Parallel { all_reduce, ..plan.parallel.clone() };
            Bench::<T>::new(&job.communicator, job.target, &parallel, largest, plan.launch.comm_timeout())
        })
        .collect();
    let mut benches = job.agree(benches)?;
    let mut rows = Vec::new();
    for elements in counts {
        let mut measured: Vec<&str> = Vec::new();
        for bench in &mut benches {
            let algorithm = bench.algorithm(elements * size_of::<T>());
            if measured.contains(&algorithm) {
                continue; // auto chose an algorithm that is named beside it
            }
            measured.push(algorithm);
            let row = bench.measure(&job.communicator, elements, &request.budget)?;
            if job.is_root() {
                table::log_row(&row);
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Buffer sizes in elements: from `min` to `max` bytes by `factor`, `max`, and the networks' gradients; ascending, each once.
fn element_counts(request: &Request, element_bytes: usize) -> Vec<usize> {
    let &Request { min, max, factor, .. } = request;
    let steps = std::iter::successors(Some(min), |bytes| bytes.checked_mul(factor));
    let mut counts: Vec<usize> = steps.take_while(|&bytes| bytes < max).chain([max]).collect();
    counts.iter_mut().for_each(|bytes| *bytes = (*bytes / element_bytes).max(1));
    let inside = |&elements: &usize| (min..=max).contains(&(elements * element_bytes));
    counts.extend(MODEL_ELEMENTS.into_iter().filter(inside));
    counts.sort_unstable();
    counts.dedup();
    counts
}

fn create(owner: Owner, force: bool, plan: &Plan, network: Option<&Network>, job: &Job) -> Result<RunFile> {
    let identity = Identity::new(FileKind::Allreduce);
    let mut environment = environment::attributes(job, None);
    environment.extend(network.into_iter().flat_map(environment::network));
    RunFile::create_owned(owner, force, identity, plan, environment, vec![environment::table(job)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    fn counts(min: usize, max: usize, factor: usize, element_bytes: usize) -> Vec<usize> {
        element_counts(&Request { min, max, factor, ..Default::default() }, element_bytes)
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
            let model =
                Model::new(&config::Model { name, ..Default::default() }, crate::data::Form::CIFAR10, 0).unwrap();
            assert_eq!(model.parameter_count(), elements);
            assert!(MODEL_ELEMENTS.contains(&elements));
        }
    }
}
