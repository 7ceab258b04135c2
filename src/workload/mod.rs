//! `hpml workload`: what a training computes, sends and keeps in memory, told from its configuration before anything is started.
//! In: a plan and the form of the samples. Out: a [`Workload`] and its tables. Runs no network and measures nothing.

mod activations;
mod memory;
mod tables;

use std::collections::HashMap;

use crate::config::{Device, ModelName, Plan};
use crate::data::{self, Form};
use crate::error::Result;
use crate::model::graph::{Graph, Op, Slot};
use crate::model::{Entry, Model, Role};
use crate::parallel::Bucket;
use crate::table::{Table, terminal, terminal_width};
pub use activations::Activations;
pub use memory::Memory;
pub use tables::{empty_buckets, empty_tables};

/// Counts of a training, from its configuration alone.
///
/// ```
/// use hpml::config::{Config, Plan};
/// use hpml::data::Form;
/// use hpml::workload::Workload;
///
/// let plan = Plan::new(Config::default(), 2)?;
/// let workload = Workload::new(&plan, Form::CIFAR10)?;
/// assert_eq!(workload.parameters(), 61_770);
/// assert_eq!(workload.operations().map(|[forward, _]| forward), Ok(2 * 651_720));
/// # Ok::<(), hpml::error::Error>(())
/// ```
pub struct Workload {
    /// Tensors of the state.
    state: Vec<Slot>,
    buckets: Vec<Bucket>,
    /// Operations of the network; `None` for one from a file, which is no list of nodes.
    nodes: Option<Nodes>,
    operations: Result<[u64; 2], String>,
    memory: Memory,
}

/// The operations of a network.
struct Nodes {
    graph: Graph,
    /// Whether the backward pass computes a gradient of each node's output: the node or one before it is trained.
    differentiated: Vec<bool>,
    activations: Activations,
}

/// Tables of the workload of `plan`, as text.
///
/// # Errors
/// The data cannot be opened, or the network takes no such samples.
pub fn run(plan: &Plan) -> Result<String> {
    let form = data::open(&plan.data)?.train.form();
    let sheets = tables::sheets(&Workload::new(plan, form)?, plan);
    Ok(sheets.iter().map(|sheet| terminal(sheet, terminal_width())).collect::<Vec<_>>().join("\n"))
}

/// Operations of `model`, the network of `plan`, on samples of this `form`, see [`Workload::operations`].
///
/// # Errors
/// The network takes no samples of this `form`.
pub fn operations(plan: &Plan, form: Form, model: &Model) -> Result<Result<[u64; 2], String>> {
    Ok(match Nodes::of(plan, form, false)? {
        Some(nodes) => Ok(nodes.operations()),
        None => model.operations_in_file(),
    })
}

/// The table `/buckets` of a run file: the buckets of `plan` on several ranks, and when each is complete.
///
/// # Errors
/// As [`Workload::new`].
pub fn buckets(plan: &Plan, form: Form) -> Result<Table> {
    let workload = Workload::of_ranks(plan, form, plan.world_size().max(2))?;
    Ok(tables::bucket_table(&workload, plan.model.name.as_str()))
}

impl Workload {
    /// The workload of `plan`'s ranks on samples of this `form`. They compute on GPUs if `launch.device` is `cuda`.
    ///
    /// # Errors
    /// The network takes no such samples, or its file cannot be used.
    pub fn new(plan: &Plan, form: Form) -> Result<Workload> {
        Workload::of_ranks(plan, form, plan.world_size())
    }

    fn of_ranks(plan: &Plan, form: Form, ranks: usize) -> Result<Workload> {
        let gpu = plan.launch.device == Device::Cuda;
        let nodes = Nodes::of(plan, form, gpu)?;
        let (state, operations) = match &nodes {
            Some(nodes) => (nodes.graph.state.clone(), Ok(nodes.operations())),
            None => {
                let model = Model::new(&plan.model, form, plan.run.seed)?;
                (model.state.iter().map(slot).collect(), model.operations_in_file())
            }
        };
        let mut end = 0;
        let of_parameter = |slot: &Slot| {
            end += slot.elements();
            end - slot.elements()..end
        };
        let elements: Vec<_> = of_role(&state, Role::Parameter).map(of_parameter).collect();
        let buckets = Bucket::plan(&elements, Bucket::least_bytes(plan, ranks));
        let memory = Memory::new(&state, form, nodes.as_ref().map(|nodes| &nodes.activations), plan, gpu);
        Ok(Workload { state, buckets, nodes, operations, memory })
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        of_role(&self.state, Role::Parameter).map(Slot::elements).sum()
    }

    /// Buckets of gradients, in the order in which they are planned: the last parameters first.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Share of the backward pass after which each bucket is complete: of its multiplications and additions, or of the parameters
    /// where those are not counted.
    fn ready(&self) -> Vec<f64> {
        let parameters = self.parameters().max(1) as f64;
        let Some(nodes) = &self.nodes else {
            return self.buckets.iter().map(|bucket| 1.0 - bucket.elements.start as f64 / parameters).collect();
        };
        let trained = of_role(&self.state, Role::Parameter).map(|slot| slot.name.as_str());
        let numbers: HashMap<&str, usize> = trained.zip(0..).collect();
        // The backward pass goes through the nodes from the last to the first; a tied weight is complete with its first node.
        let (mut done, mut done_at) = (0, vec![0; numbers.len()]);
        for (index, node) in nodes.graph.nodes.iter().enumerate().rev() {
            let [forward, all] = nodes.operations_of(index);
            done += all - forward;
            for slot in nodes.graph.slots(node) {
                if let Some(&number) = numbers.get(slot.name.as_str()) {
                    done_at[number] = done;
                }
            }
        }
        let all = done.max(1) as f64;
        let last = |bucket: &Bucket| done_at[bucket.parameters.clone()].iter().max().copied().unwrap_or(done);
        self.buckets.iter().map(|bucket| last(bucket) as f64 / all).collect()
    }

    /// Values of one sample that the backward pass needs; `None` for a network from a file.
    pub fn activations(&self) -> Option<&Activations> {
        self.nodes.as_ref().map(|nodes| &nodes.activations)
    }

    /// Predicted memory of a rank.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Multiplications and additions per sample in the forward pass, and in forward and backward pass, as PyTorch's
    /// `FlopCounterMode` counts them: those of convolutions, matrix products and attention. For a network from a file they are those
    /// that scripts/export.py had it count.
    ///
    /// # Errors
    /// Returns why they are not known, for a network from a file, with the mend.
    pub fn operations(&self) -> Result<[u64; 2], &str> {
        self.operations.as_ref().copied().map_err(String::as_str)
    }
}

impl Nodes {
    fn new(graph: Graph, plan: &Plan, gpu: bool) -> Nodes {
        let mut differentiated: Vec<bool> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            let trained = graph.slots(node).any(|slot| slot.role == Role::Parameter);
            differentiated.push(trained || node.inputs.iter().any(|&input| differentiated[input]));
        }
        let activations = Activations::new(&graph, &differentiated, plan.model.precision, gpu);
        Nodes { graph, differentiated, activations }
    }

    /// The nodes of the network of `plan`; `None` for one from a file.
    fn of(plan: &Plan, form: Form, gpu: bool) -> Result<Option<Nodes>> {
        Ok(match plan.model.name {
            ModelName::File => None,
            _ => Some(Nodes::new(Graph::new(&plan.model, form)?, plan, gpu)),
        })
    }

    /// Multiplications and additions per sample.
    fn operations(&self) -> [u64; 2] {
        let each = (0..self.graph.nodes.len()).map(|node| self.operations_of(node));
        each.fold([0, 0], |[forward, all], [one, both]| [forward + one, all + both])
    }

    /// Multiplications and additions of a node per sample: forward, and forward and backward.
    fn operations_of(&self, index: usize) -> [u64; 2] {
        let node = &self.graph.nodes[index];
        let forward = 2 * self.graph.multiplications_of(node);
        // Each product has a gradient for each of its two factors, if that is trained or follows from what is trained.
        let trained = self.graph.slots(node).any(|slot| slot.role == Role::Parameter);
        let factors = match node.op {
            Op::Attention { .. } => [true; 2],
            _ => [trained, node.inputs.iter().any(|&input| self.differentiated[input])],
        };
        [forward, forward * (1 + factors.into_iter().filter(|is| *is).count() as u64)]
    }
}

/// The tensors with this `role`, in the order of the state.
fn of_role(state: &[Slot], role: Role) -> impl Iterator<Item = &Slot> {
    state.iter().filter(move |slot| slot.role == role)
}

/// Name, role and shape of an entry of a model's state.
fn slot(entry: &Entry) -> Slot {
    let shape = if entry.tensor.defined() { entry.tensor.size() } else { Vec::new() };
    Slot {
        name: entry.name.clone(),
        role: entry.role,
        shape: shape.into_iter().map(|extent| extent as usize).collect(),
    }
}
