//! `hpml collectives`: time and bandwidth of collectives by size, type and algorithm, with nccl-tests' columns. In: the ranks,
//! and a [`Request`]. Out: rows of times, bandwidths and wrong results, printed as they are measured, and a table for the run file.
//! Needs no model: the collectives of a training are compared with these.

mod bench;
mod measure;
mod table;

use clap::ValueEnum;

use crate::collective::{Bf16, Collective, DeviceCollectives, Element, Levels, MOST_IN_PART, Network};
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

/// Collectives, sizes, types and algorithms to measure. The default is that of the command line.
///
/// # Examples
/// ```no_run
/// use hpml::collectives::{self, Request};
/// use hpml::config::Launch;
///
/// # fn main() -> std::process::ExitCode {
/// let request = Request { min: 1 << 20, max: 64 << 20, ..Request::default() };
/// hpml::launch::run(&Launch::default(), |job| collectives::run(&request, job))
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Collectives; empty: all that can be measured.
    pub collectives: Vec<Collective>,
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
    /// Types of the elements; empty: float32, and bf16 for an all-reduce where an algorithm has it.
    pub types: Vec<ElementType>,
    /// Run file to write; none if it has no path.
    pub destination: Destination,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            collectives: Vec::new(),
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

/// Types of elements.
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
    let chosen = job.agree(chosen(request, job.target, job.world_size))?;
    job.disable_watchdog();
    let Destination { path, force } = &request.destination;
    let owner = path.as_ref().map(|path| output::claim_at(job, path, *force)).transpose()?.flatten();
    let chooses = chosen
        .iter()
        .any(|case| case.collective == Collective::AllReduce && case.algorithms.contains(&Algorithm::Auto));
    let through_host = DeviceCollectives::go_through_host(job.target, Algorithm::Auto);
    let levels = if through_host { Some(Levels::of(&job.communicator)?) } else { None };
    let (plan, network) = if chooses { job.with_crossovers(&plan, &job.communicator, None)? } else { (plan, None) };
    let file = owner.map(|owner| create(owner, *force, &plan, network.as_ref(), job));
    let mut file = job.agree(file.transpose())?;
    if job.is_root() {
        table::print_header(job, levels.as_ref(), network.as_ref());
    }
    let mut rows = Vec::new();
    for case in &chosen {
        rows.extend(match case.element {
            ElementType::Float32 => measure::<f32>(request, case, job, &plan)?,
            ElementType::Bf16 => measure::<Bf16>(request, case, job, &plan)?,
        });
    }
    let mut tables = vec![table::table(&rows)];
    let used = |algorithm: Algorithm| rows.iter().any(|row| row.algorithm == algorithm.as_str());
    let levels = levels.map(|levels| environment::levels(&levels, network.as_ref(), used));
    tables.extend(levels.filter(|table| !table.is_empty()));
    if job.is_root() {
        print!("{}", report::tables(None, &tables, &["allreduce", "levels"]));
    }
    if let Some(file) = &mut file {
        file.set_warnings(job.warnings());
        file.finish(&tables, None)?;
        println!("\nwritten to {}", file.path().display());
    }
    Ok(())
}

/// A collective and a type of elements, and the algorithms that are compared on them.
#[derive(Debug, PartialEq)]
struct Case {
    collective: Collective,
    element: ElementType,
    algorithms: Vec<Algorithm>,
}

/// The cases that are measured on `ranks` ranks: those of the `request`, or else those that exist on such a `target`.
///
/// # Errors
/// What is requested does not exist together on `target`, or no call of MPI can hold it.
fn chosen(request: &Request, target: Target, ranks: usize) -> Result<Vec<Case>> {
    const ALGORITHMS: [Algorithm; 2] = [Algorithm::Auto, Algorithm::Mpi];
    const TYPES: [ElementType; 2] = [ElementType::Float32, ElementType::Bf16];
    let refuse = |key: &str, value: String, expected: String| {
        Err(Error::ConfigValue { place: "command line".into(), key: key.into(), value, expected })
    };
    let collectives = match request.collectives.is_empty() {
        true => Collective::value_variants(),
        false => &request.collectives,
    };
    let algorithms = if request.algorithms.is_empty() { &ALGORITHMS[..] } else { &request.algorithms };
    let through_host = |&algorithm: &Algorithm| DeviceCollectives::go_through_host(target, algorithm);
    let mut chosen = Vec::new();
    for &collective in collectives {
        let is_all_reduce = collective == Collective::AllReduce;
        let types = match request.types.is_empty() {
            true if is_all_reduce => &TYPES[..],
            true => &TYPES[..1],
            false => &request.types,
        };
        for &element in types {
            let lacking = |algorithm: &Algorithm| match target.is_gpu() {
                true => (element == ElementType::Bf16 || !is_all_reduce) && through_host(algorithm),
                false => !is_all_reduce && !ALGORITHMS.contains(algorithm),
            };
            let (lacking, algorithms): (Vec<_>, Vec<_>) = algorithms.iter().copied().partition(lacking);
            let is_named = !request.collectives.is_empty() && !is_all_reduce || !request.types.is_empty();
            if is_named && !lacking.is_empty() && (algorithms.is_empty() || !request.algorithms.is_empty()) {
                let name = collective.as_str();
                return match (is_all_reduce, target.is_gpu()) {
                    (true, _) => {
                        let expected = "goes from GPU to GPU by NCCL alone (--algorithm auto): leave it out";
                        refuse("--type", "bf16".into(), expected.into())
                    }
                    (false, true) => {
                        let expected = "goes from GPU to GPU by NCCL alone, with a GPU per rank (--algorithm auto)";
                        refuse("--collective", name.into(), format!("{expected}: leave it out"))
                    }
                    (false, false) => {
                        let expected = format!("{name} has auto and mpi: choose one of them, or all_reduce alone");
                        refuse("--algorithm", lacking[0].as_str().into(), expected)
                    }
                };
            }
            if !is_all_reduce && request.max / 2 / ranks > MOST_IN_PART {
                let expected = format!("{}: a call of MPI holds 2^31 elements per rank", collective.as_str());
                return refuse("--max", request.max.to_string(), expected);
            }
            if !algorithms.is_empty() {
                chosen.push(Case { collective, element, algorithms });
            }
        }
    }
    Ok(chosen)
}

/// Measures all sizes of one case. The algorithms take turns at each size, so that drift of the machine affects them alike.
fn measure<T: Element>(request: &Request, case: &Case, job: &Job, plan: &Plan) -> Result<Vec<Row>> {
    // One part per rank, except where the buffer need not be cut.
    let parts = match case.collective {
        Collective::AllReduce | Collective::Broadcast => 1,
        _ => job.world_size,
    };
    let counts = element_counts(request, size_of::<T>(), parts);
    let largest = counts.last().copied().unwrap_or(0);
    let benches: Result<Vec<_>> = case
        .algorithms
        .iter()
        .map(|&all_reduce| {
            let parallel = Parallel { all_reduce, ..plan.parallel.clone() };
            let limit = plan.launch.comm_timeout();
            Bench::<T>::new(case.collective, &job.communicator, job.target, &parallel, largest, limit)
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
            let row = bench.measure(job.hosts(), elements, &request.budget)?;
            if job.is_root() {
                table::log_row(&row);
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Buffer sizes in elements: from `min` to `max` bytes by `factor`, `max`, and the networks' gradients; ascending, each once, and
/// multiples of `parts`.
fn element_counts(request: &Request, element_bytes: usize, parts: usize) -> Vec<usize> {
    let &Request { min, max, factor, .. } = request;
    let steps = std::iter::successors(Some(min), |bytes| bytes.checked_mul(factor));
    let mut counts: Vec<usize> = steps.take_while(|&bytes| bytes < max).chain([max]).collect();
    counts.iter_mut().for_each(|bytes| *bytes = (*bytes / element_bytes).max(1));
    let inside = |&elements: &usize| (min..=max).contains(&(elements * element_bytes));
    counts.extend(MODEL_ELEMENTS.into_iter().filter(inside));
    counts.iter_mut().for_each(|elements| *elements = (*elements / parts).max(1) * parts);
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

    #[test]
    fn what_no_algorithm_has_is_refused_only_if_it_is_named() {
        let case = |collectives: &[Collective], algorithms: &[Algorithm]| {
            let (collectives, algorithms) = (collectives.to_vec(), algorithms.to_vec());
            chosen(&Request { collectives, algorithms, ..Request::default() }, Target::Cpu, 4)
        };
        let all = case(&[], &[]).unwrap();
        assert_eq!(all.len(), 6); // all_reduce also in bf16
        let ring = case(&[], &[Algorithm::Ring]).unwrap();
        assert!(ring.iter().all(|case| case.collective == Collective::AllReduce), "{ring:?}");
        let message = case(&[Collective::AllGather], &[Algorithm::Ring]).unwrap_err().to_string();
        assert!(message.contains("all_gather has auto and mpi"), "{message}");
    }

    fn counts(min: usize, max: usize, factor: usize, element_bytes: usize) -> Vec<usize> {
        element_counts(&Request { min, max, factor, ..Default::default() }, element_bytes, 1)
    }

    #[test]
    fn sizes_grow_by_the_factor_and_hold_the_models_gradients() {
        assert_eq!(counts(8, 256, 4, 4), [2, 8, 32, 64]);
        assert_eq!(counts(4, 4, 4, 4), [1]);
        assert_eq!(counts(1, 9, 2, 4), [1, 2]);
        assert_eq!(element_counts(&Request { min: 8, max: 80, ..Default::default() }, 4, 3), [3, 6, 18]);
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
