//! `hpml verify`: compares losses and updates with PyTorch's, from PyTorch's weights and on PyTorch's samples.
//!
//! In: a parity file (made by `scripts/parity.py`, see [`crate::store::Parity`]) and the images it was made from. Out: a table of
//! expected and reached values for each model, and a last line on stdout that begins with PASSED or FAILED; FAILED goes with a
//! status other than 0. It computes with the training's own code, and changes nothing that the parity file determines.
//!
//! Three quantities are compared at every step: the loss before the update, the norm of the movement of all parameters together
//! since the start, and that of each parameter. The expected value is PyTorch's in float64. The bound follows from how float32's
//! rounding grows, see `judgement`: no processor, thread count or memory layout has a bound of its own.

mod judgement;

use std::path::Path;
use std::sync::Arc;

use tch::Tensor;

use self::judgement::{Judgement, Reached, relative};
use crate::collective::Combine;
use crate::config::{self, BufferSync, Config, Plan};
use crate::data::{self, Batch, BatchPlan, Dataset, Feed, Form};
use crate::device::StepRecorder;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::live::{Live, Outlets};
use crate::metrics::Kind;
use crate::model::{Model, Role};
use crate::optim::Optimizer;
use crate::parallel::Replica;
use crate::store::{self, Parity, Reference, Tokens};
use crate::train::{Score, load, loader_options};
use crate::units::{Bytes, counted};

/// Sections and keys that `--set` may change: they affect where and how the steps are computed, not the result.
const SETTINGS: [&str; 11] = [
    "launch.",
    "data.dir",
    "data.prefetch",
    "model.channels_last",
    "model.fused_batch_norm",
    "parallel.bucket_mb",
    "parallel.all_reduce",
    "parallel.crossovers",
    "parallel.buffers",
    "metrics.timing",
    "metrics.progress_seconds",
];

/// Checks that no override of `--set` contradicts the parity file.
///
/// # Errors
/// An override sets a key that may not be changed; the error names the first one.
pub fn check_overrides(overrides: &[String]) -> Result<()> {
    let pairs = overrides.iter().filter_map(|given| given.split_once('='));
    for (key, value) in pairs.map(|(key, value)| (key.trim(), value.trim())) {
        let may_change =
            SETTINGS.iter().any(|known| if known.ends_with('.') { key.starts_with(known) } else { key == *known });
        if !may_change {
            let expected = format!(
                "the parity file decides that, or it is not used: leave it out (free: {})",
                SETTINGS.map(|known| if known.ends_with('.') { format!("{known}*") } else { known.into() }).join(", ")
            );
            return Err(Error::ConfigValue {
                place: "hpml verify".into(),
                key: key.into(),
                value: value.into(),
                expected,
            });
        }
    }
    Ok(())
}

/// Prints the outcome on rank 0, PASSED or FAILED, and passes an error on.
///
/// # Errors
/// `result` is an error.
pub fn conclude(job: &Job, result: Result<String>) -> Result<()> {
    if job.is_root() {
        match &result {
            Ok(passed) => println!("PASSED: {passed}"),
            Err(error) => println!("FAILED: {error}"),
        }
    }
    result.map(drop)
}

/// Verifies every model of the parity file. Returns a line that names the models that passed.
///
/// ```no_run
/// # use hpml::{config::Plan, error::Result, launch::Job, verify};
/// # fn check(plan: &Plan, job: &Job) -> Result<()> {
/// let result = verify::run(plan, job, "parity.h5".as_ref()); // prints a table per model
/// verify::conclude(job, result) // prints PASSED or FAILED
/// # }
/// ```
///
/// # Errors
/// A value is out of bounds, a model has no reference for this number of ranks, or a model could not be computed.
pub fn run(plan: &Plan, job: &Job, path: &Path) -> Result<String> {
    let parities = job.agree(store::read_parity(path))?;
    if plan.data.folder().is_none() {
        let mend = "give the CIFAR-10 folder that the parity file was made from with --data".into();
        job.agree(Err(Error::DataMissing { path: path.to_owned(), mend }))?;
    }
    let datasets = job.agree(data::open_shared(&plan.data, &job.communicator))?;
    let (mut passed, mut failures) = (Vec::new(), Vec::new());
    let mut live = Live::new(job, &plan.metrics, Outlets::none());
    for parity in &parities {
        let found = verify(plan, job, parity, &datasets.train, path, &mut live)?;
        if found.is_empty() {
            passed.push(format!("{} ({} steps)", parity.model, parity.input_sum.len()));
        }
        failures.extend(found);
    }
    let verdict = if failures.is_empty() { Ok(()) } else { Err(Error::Verify(failures.join("; "))) };
    job.agree(verdict)?;
    Ok(format!(
        "{} on {}: all within what float32 rounding explains",
        passed.join(", "),
        counted(job.world_size, "rank")
    ))
}

/// Verifies one model. Returns descriptions of what is out of bounds, identical on all ranks.
fn verify(
    plan: &Plan,
    job: &Job,
    parity: &Parity,
    images: &Arc<Dataset>,
    path: &Path,
    live: &mut Live,
) -> Result<Vec<String>> {
    let section = job.agree(model_section(parity, path))?;
    let settings = job.agree(plan.adapted(|config| {
        let own = &config.model;
        let (channels_last, fused_batch_norm) = (own.channels_last, own.fused_batch_norm);
        config.model = config::Model { channels_last, fused_batch_norm, ..section };
        config.model.bias = parity.init.iter().any(|tensor| tensor.name == "fc3.bias");
        (config.data.mean, config.data.std) = (parity.mean.to_vec(), parity.std.to_vec());
        config.optim.momentum = parity.momentum;
        config.optim.weight_decay = 0.0;
    }))?;
    if let Form::Images { shape, .. } = images.form() {
        job.agree(settings.data.normalization(shape[0]))?;
    }
    let form = match &parity.tokens {
        Some(Tokens { length, vocabulary, .. }) => Form::Tokens { length: *length, vocabulary: *vocabulary },
        None => images.form(),
    };
    let mut model = job.agree(Model::new(&settings.model, form, parity.seed))?;
    if !parity.init.is_empty() {
        job.agree(load(&mut model, &parity.init, path, "init"))?;
    }
    let has_batch_norm = model.state.iter().any(|entry| entry.role == Role::Buffer);
    // Number of sample groups over which batch norm takes separate statistics.
    let groups = if has_batch_norm && settings.parallel.buffers != BufferSync::Sync { job.world_size } else { 1 };
    let Some(reference) = parity.references.iter().find(|reference| reference.ranks == groups) else {
        return Ok(vec![no_reference(parity, groups, path)]);
    };
    job.agree(same_parameters(&model, parity, reference, path))?;

    let settings = job.agree(job.fitting(&settings, &job.communicator, model.parameter_count()))?;
    let mut replica = Replica::new(model, job.target, job.communicator.clone(), &settings)?;
    let mut optimizer = Optimizer::new(replica.state(), &settings.optim);
    let initial: Vec<Tensor> = replica.model().parameters().map(|entry| entry.tensor.detach().copy()).collect();
    let plan = job.agree(own_samples(job, parity, images, path))?;
    let feed = job.agree(Feed::new(images.clone(), job.target.own_memory(), Bytes::MAX))?;
    let batches = feed.batches(plan, loader_options(&settings.data, &feed, &replica, None));
    let mut reached = Reached::default();
    let batches: Box<dyn Iterator<Item = Result<Batch>>> = match &parity.tokens {
        Some(tokens) => Box::new(token_batches(job, tokens, parity.global_batch).map(Ok)),
        None => Box::new(batches),
    };
    live.begin_whole(&format!("{}, step", parity.model), parity.input_sum.len());
    for (batch, expected_sum) in batches.zip(&parity.input_sum) {
        let batch = batch?;
        let mut sum = [batch.inputs.sum(tch::Kind::Double).double_value(&[])];
        job.communicator.all_reduce(Kind::Metrics, Combine::Sum, &mut sum)?;
        reached.input_difference = reached.input_difference.max(relative(sum[0], *expected_sum));
        replica.step(&batch, parity.global_batch, &mut StepRecorder::default())?;
        optimizer.step(replica.state_mut(), parity.lr)?;
        let total = Replica::sum_over_ranks(&job.communicator, replica.take_result()?)?;
        let loss = Score::new(total, form).loss;
        reached.loss.push(loss);
        reached.update.push(movements(replica.model(), &initial));
        live.step(|| format!("loss {loss:.4}"));
    }
    live.clear();
    replica.agreed_checksum(0)?;

    let names: Vec<&str> = replica.model().parameters().map(|entry| entry.name.as_str()).collect();
    let judgement = Judgement::new(&parity.model, reference, &reached, &names);
    if job.is_root() {
        let Parity { model, lr, momentum, global_batch, .. } = parity;
        println!(
            "# {model}: lr {lr}, momentum {momentum}, global batch {global_batch} on {}, against PyTorch in float64 with \
             batch norm over {}; bounds from {}",
            counted(job.world_size, "rank"),
            counted(groups, "group"),
            counted(reference.loss_rounding.len(), "float32 reference")
        );
        println!("{judgement}");
    }
    Ok(judgement.failures())
}

/// L2 norm of each parameter's movement since `initial`.
fn movements(model: &Model, initial: &[Tensor]) -> Vec<f64> {
    let moved = |(now, start): (&Tensor, &Tensor)| {
        let difference = now.detach().to_kind(tch::Kind::Double) - start.to_kind(tch::Kind::Double);
        difference.square().sum(tch::Kind::Double).double_value(&[]).sqrt()
    };
    model.parameters().map(|entry| &entry.tensor).zip(initial).map(moved).collect()
}

/// The `[model]` section that makes the network of the parity file.
fn model_section(parity: &Parity, path: &Path) -> Result<config::Model> {
    let keys: Vec<String> = parity.settings.split_whitespace().map(|key| format!("model.{key}")).collect();
    let refuse = |error: Error| Error::Dataset {
        path: path.to_owned(),
        name: format!("{}/settings", parity.model),
        message: format!("{error}: made for another version of hpml, or by hand"),
    };
    Ok(Config::load(None, &keys).map_err(refuse)?.model)
}

/// This rank's columns of every step of a network of tokens.
fn token_batches<'a>(job: &Job, tokens: &'a Tokens, batch: usize) -> impl Iterator<Item = Batch> + 'a {
    let own = job.rank * batch / job.world_size..(job.rank + 1) * batch / job.world_size;
    let (next, device) = (tokens.length + 1, job.target.device());
    tokens.ids.chunks(batch * next).map(move |step| {
        let ids = Tensor::from_slice(&step[own.start * next..own.end * next]);
        let ids = ids.view([own.len() as i64, next as i64]).to_device(device);
        let places = |first: i64| ids.narrow(1, first, tokens.length as i64).contiguous();
        Batch { inputs: places(0), targets: places(1), len: own.len() }
    })
}

fn no_reference(parity: &Parity, groups: usize, path: &Path) -> String {
    let ranks: Vec<String> = parity.references.iter().map(|reference| reference.ranks.to_string()).collect();
    format!(
        "{}: batch norm over {groups} groups of samples has no reference in {}, which has those of {} ranks: start one of \
         these, set parallel.buffers=sync, or make the file again with scripts/parity.py --ranks {groups}",
        parity.model,
        path.display(),
        ranks.join(", ")
    )
}

/// Checks the number of parameters, so that updates are not compared with those of other parameters.
fn same_parameters(model: &Model, parity: &Parity, reference: &Reference, path: &Path) -> Result<()> {
    let (expected, found) = (model.parameters().count(), reference.update[0].len());
    if expected != found {
        let message = format!("{found} parameters, expected {expected}: made from another model");
        let name = format!("{}/ranks_{}/update", parity.model, reference.ranks);
        return Err(Error::Dataset { path: path.to_owned(), name, message });
    }
    Ok(())
}

/// This rank's columns of every step, after checking that the labels are those of the parity file.
fn own_samples(job: &Job, parity: &Parity, images: &Dataset, path: &Path) -> Result<BatchPlan> {
    let batch = parity.global_batch;
    for (&index, &label) in parity.indices.iter().zip(&parity.labels) {
        if index as usize >= images.len() || images.label(index as usize) != u32::from(label) {
            let message =
                format!("sample {index} has label {label} in it, another one in --data: made from other data");
            return Err(Error::Dataset { path: path.to_owned(), name: "labels".into(), message });
        }
    }
    let own = job.rank * batch / job.world_size..(job.rank + 1) * batch / job.world_size;
    let indices = parity.indices.chunks(batch).flat_map(|step| step[own.clone()].to_vec()).collect();
    Ok(BatchPlan { indices, sizes: vec![own.len(); parity.indices.len() / batch] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn only_what_leaves_the_result_alone_may_be_set() {
        let refused: Vec<String> = Config::default()
            .flattened()
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| check_overrides(&[format!(" {key} = 1")]).is_err())
            .collect();
        let free = Config::default().flattened().len() - refused.len();
        let launch = Config::default().flattened().iter().filter(|(key, _)| key.starts_with("launch.")).count();
        assert_eq!(free, launch + SETTINGS.len() - 1, "a key of SETTINGS is not in the configuration");
        for key in ["train.lr", "optim.momentum", "run.seed", "model.name", "model.precision", "data.train_samples"] {
            let message = check_overrides(&["launch.threads=2".into(), format!("{key}=1")]).unwrap_err().to_string();
            assert!(message.contains(&format!("{key} = 1: the parity file decides")), "{message}");
        }
    }
}
