//! `hpml verify`: PyTorch's weights, PyTorch's samples, 20 steps; do the losses come out the same?
//!
//! In: a parity file (made with PyTorch, see [`crate::store::Parity`]) and the images it was made from. Out: a table of
//! expected and reached losses, and an error if any lies outside its bound. Uses the training's own code for all it does.

use std::path::Path;
use std::sync::Arc;

use crate::collective::Combine;
use crate::config::{Compression, Config, ModelName};
use crate::data::{self, BatchPlan, Dataset, Feed};
use crate::device::{Target, Timeline};
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::metrics::Kind;
use crate::model::{Model, Role};
use crate::parallel::Replica;
use crate::store::{self, Parity};
use crate::train::{Optimizer, load, loader_options};

/// Relative difference allowed where rounding is not amplified: `Net` throughout.
const TIGHT: f64 = 1e-5;
/// Relative difference allowed in the first steps of a network with batch norm.
const FIRST_STEPS: f64 = 1e-4;
/// How many steps those are.
const FIRST: usize = 3;
/// Later, rounding is amplified in PyTorch itself; allowed is so many times what PyTorch shows between 1 and 2 threads.
const SPREAD: f64 = 3.0;
/// That spread doubles with about every step. A run whose first rounding differs earlier is some steps further on the
/// same curve (PyTorch's two runs are equal for two steps; another memory layout is not): so many steps are allowed.
const AHEAD: usize = 3;
/// And on a GPU, whose convolutions differ from the first step on: ResNet-18's losses there are up to so many steps ahead.
const AHEAD_ON_GPU: usize = 6;

/// Verifies every model of the parity file.
pub fn run(config: &Config, job: &Job, path: &Path) -> Result<()> {
    let parities = job.agree(store::read_parity(path))?;
    if config.data.dir.is_empty() {
        let mend = "give the CIFAR-10 folder that the parity file was made from with --data".into();
        job.agree(Err(Error::DataMissing { path: path.to_owned(), mend }))?;
    }
    let datasets = job.agree(data::open(config))?;
    let mut failures = Vec::new();
    for parity in &parities {
        failures.extend(verify(config, job, parity, &datasets.train, path)?);
    }
    let verdict = if failures.is_empty() { Ok(()) } else { Err(Error::Verify(failures.join("; "))) };
    job.agree(verdict)
}

/// One model. Returns what was out of bounds, the same on all ranks.
fn verify(config: &Config, job: &Job, parity: &Parity, images: &Arc<Dataset>, path: &Path) -> Result<Vec<String>> {
    let mut config = config.clone();
    config.model.name = job.agree(model_name(parity, path))?;
    config.model.bias = parity.init.iter().any(|tensor| tensor.name == "fc3.bias");
    (config.data.mean, config.data.std) = (parity.mean, parity.std);
    config.optim.momentum = parity.momentum;
    config.optim.weight_decay = 0.0;
    // PyTorch's gradients are summed as they are, at every step.
    (config.parallel.compression, config.parallel.local_steps) = (Compression::None, 1);
    let mut model = Model::new(&config.model, parity.seed);
    if !parity.init.is_empty() {
        job.agree(load(&mut model, &parity.init, path, "init"))?;
    }
    job.agree(same_parameters(&model, parity, path))?;
    let has_buffers = model.state.iter().any(|entry| entry.role == Role::Buffer);

    let mut replica = Replica::new(model, job.target, job.communicator.clone(), &config)?;
    let mut optimizer = Optimizer::new(&replica.state, &config.optim);
    let plan = job.agree(own_samples(job, parity, images, path))?;
    let feed = Feed::new(images.clone(), job.target.own_memory());
    let batches = feed.batches(plan, loader_options(&config, &replica, None));
    let (mut losses, mut input_difference) = (Vec::new(), 0f64);
    for (batch, expected_sum) in batches.zip(&parity.input_sum) {
        let mut sum = [batch.images.sum(tch::Kind::Double).double_value(&[])];
        job.communicator.all_reduce(Kind::Metrics, Combine::Sum, &mut sum)?;
        input_difference = input_difference.max(relative(sum[0], *expected_sum));
        replica.step(&batch, parity.global_batch, &mut Timeline::default())?;
        optimizer.step(&mut replica.state, parity.lr)?;
        let total = Replica::sum_over_ranks(&job.communicator, replica.take_result()?)?;
        losses.push(total.loss_sum / total.samples as f64);
    }
    replica.agreed_checksum(0)?;

    let reference = Reference::choose(parity, job.world_size, has_buffers);
    let norms: Vec<f64> = replica
        .model
        .parameters()
        .map(|entry| entry.tensor.square().sum(tch::Kind::Double).double_value(&[]).sqrt())
        .collect();
    let ahead = if matches!(job.target, Target::Gpu { .. }) { AHEAD_ON_GPU } else { AHEAD };
    let report = Report { parity, reference, losses, norms, has_buffers, input_difference, ahead };
    if job.is_root() {
        report.print(job.world_size);
    }
    Ok(report.failures())
}

fn model_name(parity: &Parity, path: &Path) -> Result<ModelName> {
    match parity.model.as_str() {
        "net" => Ok(ModelName::Net),
        "resnet18" => Ok(ModelName::Resnet18),
        other => {
            Err(Error::File { path: path.to_owned(), message: format!("model {other}: expected net or resnet18") })
        }
    }
}

/// A file with the norms of other parameters would be compared with the wrong ones.
fn same_parameters(model: &Model, parity: &Parity, path: &Path) -> Result<()> {
    let (expected, found) = (model.parameters().count(), parity.norm_single.len());
    if expected != found {
        let message = format!("{found} norms, expected {expected}: made from another model");
        let name = format!("{}/norm_single", parity.model);
        return Err(Error::Dataset { path: path.to_owned(), name, message });
    }
    Ok(())
}

/// This rank's columns of every step, after checking that the labels are those of the parity file.
fn own_samples(job: &Job, parity: &Parity, images: &Dataset, path: &Path) -> Result<BatchPlan> {
    let batch = parity.global_batch;
    for (&index, &label) in parity.indices.iter().zip(&parity.labels) {
        if images.labels.get(index as usize) != Some(&label) {
            let message =
                format!("sample {index} has label {label} there, another one in --data: made from other data");
            return Err(Error::Dataset { path: path.to_owned(), name: "labels".into(), message });
        }
    }
    let own = job.rank * batch / job.world_size..(job.rank + 1) * batch / job.world_size;
    let indices = parity.indices.chunks(batch).flat_map(|step| step[own.clone()].to_vec()).collect();
    Ok(BatchPlan { indices, sizes: vec![own.len(); parity.indices.len() / batch] })
}

/// What PyTorch gave for this number of ranks.
struct Reference<'a> {
    name: &'static str,
    /// `None`: nothing to compare with, since batch norm saw other groups of samples than in any of PyTorch's runs.
    losses: Option<&'a [f64]>,
    norms: &'a [f64],
}

impl Reference<'_> {
    fn choose(parity: &Parity, ranks: usize, has_buffers: bool) -> Reference<'_> {
        match ranks {
            2 => Reference { name: "DDP on 2 ranks", losses: Some(&parity.loss_ddp), norms: &parity.norm_ddp },
            n if n == 1 || !has_buffers => {
                Reference { name: "one process", losses: Some(&parity.loss_single), norms: &parity.norm_single }
            }
            _ => Reference { name: "none", losses: None, norms: &parity.norm_single },
        }
    }
}

struct Report<'a> {
    parity: &'a Parity,
    reference: Reference<'a>,
    losses: Vec<f64>,
    norms: Vec<f64>,
    has_buffers: bool,
    input_difference: f64,
    ahead: usize,
}

impl Report<'_> {
    /// The bound on each step's relative difference.
    fn bounds(&self) -> Vec<f64> {
        if !self.has_buffers {
            return vec![TIGHT; self.losses.len()];
        }
        let spreads: Vec<f64> = self
            .parity
            .loss_single
            .iter()
            .zip(&self.parity.loss_single_t2)
            .map(|(one, two)| relative(*two, *one))
            .collect();
        // The largest until then: the spread grows, but in a single step it can be small by chance.
        let spread =
            |step: usize| spreads[..(step + 1 + self.ahead).min(spreads.len())].iter().copied().fold(0.0, f64::max);
        let later = |step| f64::max(SPREAD * spread(step), FIRST_STEPS);
        (0..self.losses.len()).map(|step| if step < FIRST { FIRST_STEPS } else { later(step) }).collect()
    }

    fn norm_difference(&self) -> f64 {
        self.norms
            .iter()
            .zip(self.reference.norms)
            .map(|(found, expected)| relative(*found, *expected))
            .fold(0.0, f64::max)
    }

    fn print(&self, ranks: usize) {
        let Parity { model, lr, global_batch, .. } = self.parity;
        println!(
            "# {model}: lr {lr}, global batch {global_batch} on {ranks} rank(s), against PyTorch: {}",
            self.reference.name
        );
        println!("# step      expected       reached   relative difference      bound");
        for (step, (reached, bound)) in self.losses.iter().zip(self.bounds()).enumerate() {
            match self.reference.losses.map(|losses| losses[step]) {
                Some(expected) => {
                    let difference = relative(*reached, expected);
                    let verdict = if difference <= bound { "" } else { "  OUT OF BOUND" };
                    println!("{step:>6} {expected:>13.7} {reached:>13.7} {difference:>21.1e} {bound:>10.1e}{verdict}");
                }
                None => println!("{step:>6} {:>13} {reached:>13.7} {:>21} {:>10}", "-", "-", "-"),
            }
        }
        println!("# inputs differ by at most {:.1e} (relative, of each step's sum)", self.input_difference);
        match self.reference.losses {
            Some(_) => println!(
                "# parameter norms after the last step differ by at most {:.1e} (relative)\n",
                self.norm_difference()
            ),
            None => println!(
                "# not judged: batch norm over {ranks} groups of samples has no counterpart in the file (1 and 2 ranks have)\n"
            ),
        }
    }

    fn failures(&self) -> Vec<String> {
        let model = &self.parity.model;
        let mut failures = Vec::new();
        if self.input_difference > TIGHT {
            failures.push(format!("{model}: inputs differ by {:.1e}: made from other images", self.input_difference));
        }
        let Some(expected) = self.reference.losses else { return failures };
        let differences = self.losses.iter().zip(expected).map(|(reached, expected)| relative(*reached, *expected));
        let first =
            differences.zip(self.bounds()).enumerate().find(|(_, (difference, bound))| outside(*difference, *bound));
        if let Some((step, (difference, bound))) = first {
            failures.push(format!("{model}: loss of step {step} differs by {difference:.1e}, allowed {bound:.1e}"));
        }
        let norms = self.norm_difference();
        if !self.has_buffers && outside(norms, TIGHT) {
            failures.push(format!("{model}: parameter norms differ by {norms:.1e}, allowed {TIGHT:.1e}"));
        }
        failures
    }
}

fn relative(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs().max(f64::MIN_POSITIVE)
}

/// A NaN is outside of every bound.
fn outside(difference: f64, bound: f64) -> bool {
    difference.is_nan() || difference > bound
}
