//! `hpml workload`: what a training computes, sends and keeps in memory, told from its configuration before anything is started.
//! In: a plan and the form of the samples. Out: a [`Workload`] and its tables. Runs no network and measures nothing.

mod activations;
mod memory;
mod tables;

use crate::config::{Device, Plan};
use crate::data::{self, Form};
use crate::error::Result;
use crate::model::Role;
use crate::model::graph::{Graph, Op, Slot};
use crate::parallel::Bucket;
use crate::table::{terminal, terminal_width};
pub use activations::Activations;
pub use memory::Memory;
pub use tables::empty_tables;

/// Counts of a training, from its configuration alone.
///
/// ```
/// use hpml::config::{Config, Plan};
/// use hpml::data::Form;
/// use hpml::workload::Workload;
///
/// let plan = Plan::new(Config::default(), 2)?;
/// let workload = Workload::new(&plan, Form::CIFAR10)?;
/// assert_eq!((workload.parameters(), workload.operations()[0]), (61_770, 2 * 651_720));
/// # Ok::<(), hpml::error::Error>(())
/// ```
pub struct Workload {
    graph: Graph,
    /// Whether the backward pass computes a gradient of each node's output: the node or one before it is trained.
    differentiated: Vec<bool>,
    buckets: Vec<Bucket>,
    activations: Activations,
    memory: Memory,
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

impl Workload {
    /// The workload of `plan`'s ranks on samples of this `form`. They compute on GPUs if `launch.device` is `cuda`.
    ///
    /// # Errors
    /// The network takes no such samples, or has no list of nodes in which to count.
    pub fn new(plan: &Plan, form: Form) -> Result<Workload> {
        let graph = Graph::new(&plan.model, form)?;
        let mut differentiated: Vec<bool> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            let trained = graph.slots(node).any(|slot| slot.role == Role::Parameter);
            differentiated.push(trained || node.inputs.iter().any(|&input| differentiated[input]));
        }
        let mut end = 0;
        let of_parameter = |slot: &Slot| {
            end += slot.elements();
            end - slot.elements()..end
        };
        let elements: Vec<_> = of_role(&graph, Role::Parameter).map(of_parameter).collect();
        let buckets = Bucket::plan(&elements, Bucket::least_bytes(plan, plan.world_size()));
        let gpu = plan.launch.device == Device::Cuda;
        let activations = Activations::new(&graph, &differentiated, plan.model.precision, gpu);
        let memory = Memory::new(&graph, &activations, plan, gpu);
        Ok(Workload { graph, differentiated, buckets, activations, memory })
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.graph.parameters()
    }

    /// Buckets of gradients, in the order in which they are planned: the last parameters first.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Values of one sample that the backward pass needs.
    pub fn activations(&self) -> &Activations {
        &self.activations
    }

    /// Predicted memory of a rank.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Multiplications and additions per sample in the forward pass, and in forward and backward pass, as PyTorch's
    /// `FlopCounterMode` counts them: those of convolutions, matrix products and attention.
    pub fn operations(&self) -> [u64; 2] {
        let nodes = (0..self.graph.nodes.len()).map(|node| self.operations_of(node));
        nodes.fold([0, 0], |[forward, all], [one, both]| [forward + one, all + both])
    }

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
fn of_role(graph: &Graph, role: Role) -> impl Iterator<Item = &Slot> {
    graph.state.iter().filter(move |slot| slot.role == role)
}
