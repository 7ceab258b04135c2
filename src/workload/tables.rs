//! Tables of a workload.

use super::{Nodes, Workload, of_role};
use crate::config::{Device, Plan};
use crate::metrics::definitions;
use crate::model::Role;
use crate::model::graph::Slot;
use crate::parallel::Bucket;
use crate::table::{Frame, Schema, Sheet, Table};
use crate::units::Bytes;

/// Columns of the table `workload`, which has one row.
fn workload() -> Schema<Row> {
    Schema::new("workload", "row")
        .text(&definitions::MODEL, |row: &Row| row.model.clone())
        .count(("ranks", "1", "ranks that train"), |row| row.ranks)
        .count(&definitions::BATCH_PER_RANK, |row| row.batch)
        .count(("parameters", "1", "values that are trained"), |row| row.parameters)
        .count(("frozen", "1", "parameters that are not trained"), |row| row.frozen)
        .count(("buffers", "1", "running statistics of batch norm"), |row| row.buffers)
        .integer(("gradient_bytes", "B", "gradients of a rank in float32, before compression"), |row| {
            row.gradient_bytes
        })
        .count(("buckets", "1", "all-reduces of gradients per step; 1 on one rank, which sends none"), |row| {
            row.buckets
        })
        .float(&definitions::OPERATIONS_FORWARD, |row| row.operations.map_or(f64::NAN, |[forward, _]| forward as f64))
        .float(&definitions::OPERATIONS_TRAINING, |row| row.operations.map_or(f64::NAN, |[_, all]| all as f64))
        .float(&definitions::ACTIVATION_BYTES, |row| row.kept)
        .integer(("memory", "B", "predicted memory of a rank, without that of the process"), |row| row.memory)
}

struct Row {
    model: String,
    ranks: usize,
    batch: usize,
    parameters: usize,
    frozen: usize,
    buffers: usize,
    gradient_bytes: i64,
    buckets: usize,
    operations: Option<[u64; 2]>,
    kept: f64,
    memory: i64,
}

/// One part of the network.
struct Part {
    name: String,
    shape: String,
    parameters: usize,
    operations: u64,
    kept: Bytes,
}

/// Columns of the table `parts`, which has one row per part of the network.
fn parts() -> Schema<Part> {
    Schema::new("parts", "row")
        .text(("part", "1", "part of the network"), |part: &Part| part.name.clone())
        .text(("output", "1", "shape of its output, of one sample"), |part| part.shape.clone())
        .count(("parameters", "1", "values that are trained"), |part| part.parameters)
        .integer(
            ("operations_training", "1", "multiplications and additions per sample, forward and backward"),
            |part| part.operations as i64,
        )
        .integer(("activation_bytes", "B", "values of one sample that its backward pass needs first"), |part| {
            part.kept as i64
        })
}

/// Gradients that one all-reduce sums.
struct BucketRow {
    model: String,
    index: usize,
    first: String,
    last: String,
    parameters: usize,
    bytes: usize,
    ready: f64,
}

/// Columns of the table `buckets`, which has one row per bucket.
fn buckets() -> Schema<BucketRow> {
    Schema::new("buckets", "row")
        .text(&definitions::MODEL, |row: &BucketRow| row.model.clone())
        .count(("bucket", "1", "bucket, in the order of the plan: the last parameters first"), |row| row.index)
        .text(("first", "1", "its first parameter"), |row| row.first.clone())
        .text(("last", "1", "its last parameter"), |row| row.last.clone())
        .count(("parameters", "1", "number of its parameters"), |row| row.parameters)
        .count(("bytes", "B", "its gradients in float32"), |row| row.bytes)
        .float(&definitions::READY, |row| row.ready)
}

/// The table `buckets` of `of`, whose network is called `model`.
pub(super) fn bucket_table(of: &Workload, model: &str) -> Table {
    let names: Vec<&str> = of_role(&of.state, Role::Parameter).map(|slot| slot.name.as_str()).collect();
    let ready = of.ready();
    let row = |(index, bucket): (usize, &Bucket)| BucketRow {
        model: model.to_owned(),
        index,
        first: names[bucket.parameters.start].to_owned(),
        last: names[bucket.parameters.end - 1].to_owned(),
        parameters: bucket.parameters.len(),
        bytes: bucket.elements.len() * size_of::<f32>(),
        ready: ready[index],
    };
    buckets().table(&of.buckets.iter().enumerate().map(row).collect::<Vec<_>>())
}

/// The table `buckets` without rows.
pub fn empty_buckets() -> Table {
    buckets().table(&[])
}

/// Columns of the table `memory`, which has one row per part of a rank's memory.
fn memory() -> Schema<(&'static str, &'static str, Bytes)> {
    Schema::new("memory", "row")
        .text(("part", "1", "part of a rank's memory"), |(name, ..): &(&str, &str, Bytes)| *name)
        .integer(("bytes", "B", "its bytes"), |(.., bytes)| *bytes as i64)
        .text(("meaning", "1", "what it holds"), |(_, meaning, _)| *meaning)
}

/// The tables without rows, which their documentation is generated from.
pub fn empty_tables() -> Vec<Table> {
    vec![workload().table(&[]), parts().table(&[]), empty_buckets(), memory().table(&[])]
}

/// The tables for readers.
pub(super) fn sheets(of: &Workload, plan: &Plan) -> Vec<Sheet> {
    let name = plan.model.name.as_str();
    let all = |table: Table, title: String| Sheet { title, ..Frame::new(table).raw() };
    let number = |role: Role| of_role(&of.state, role).map(Slot::elements).sum();
    let bytes = |elements: usize| elements * size_of::<f32>();
    let row = Row {
        model: name.to_owned(),
        ranks: plan.world_size(),
        batch: plan.train.batch_per_rank,
        parameters: of.parameters(),
        frozen: number(Role::Frozen),
        buffers: number(Role::Buffer),
        gradient_bytes: bytes(of.parameters()) as i64,
        buckets: of.buckets.len(),
        operations: of.operations().ok(),
        kept: of.activations().map_or(f64::NAN, |activations| activations.kept as f64),
        memory: of.memory.total() as i64,
    };
    let place = if plan.launch.device == Device::Cuda { "on a GPU" } else { "on CPU cores" };
    let note = format!(
        "{place}; without the process itself (libtorch and MPI), workspaces of kernels, a data set held in memory (once per host), \
         and what compression carries"
    );
    let unknown =
        of.operations().map_or_else(|reason| format!("operations are not known: {reason}"), |_| String::new());
    let parts = of.nodes.as_ref().map(|nodes| all(parts().table(&part_rows(nodes)), format!("Parts of {name}")));
    let first = [Some(all(workload().table(&[row]), format!("Workload of {name}")).with_note(unknown)), parts];
    let rest = [
        all(bucket_table(of, name), "Buckets of gradients".into()),
        all(memory().table(&of.memory.parts), "Memory of a rank".into()).with_note(note),
    ];
    first.into_iter().flatten().chain(rest).collect()
}

fn part_rows(of: &Nodes) -> Vec<Part> {
    let mut rows: Vec<Part> = Vec::new();
    let mut counted = vec![false; of.graph.state.len()];
    for (index, node) in of.graph.nodes.iter().enumerate().skip(1) {
        if rows.last().is_none_or(|row| row.name != node.part) {
            rows.push(Part { name: node.part.clone(), shape: String::new(), parameters: 0, operations: 0, kept: 0 });
        }
        let row = rows.last_mut().expect("just added");
        for &slot in &node.slots {
            // A tied weight belongs to the part that reads it first.
            let is_new = !std::mem::replace(&mut counted[slot], true);
            if is_new && of.graph.state[slot].role == Role::Parameter {
                row.parameters += of.graph.state[slot].elements();
            }
        }
        let extents: Vec<String> = node.shape.iter().map(usize::to_string).collect();
        row.shape = extents.join("x");
        row.operations += of.operations_of(index)[1];
        row.kept += of.activations.of_nodes[index];
    }
    rows
}
