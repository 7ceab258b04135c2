//! The check that a model file carries: the losses of up to three steps, which PyTorch wrote into it.

use std::path::Path;

use tch::{Kind, Tensor};

use super::description::{Check, Description};
use super::{Mode, Module, Role, reason};
use crate::config::{self, ModelName, Precision};
use crate::data::Form;
use crate::error::{Error, Result};
use crate::sys::{LIBTORCH_VERSION, seeded};

/// Repeats the check of `model.file`, if the network is one of a file, on a copy of the model, in float32 on the CPU.
///
/// One rank does it for all. A file without a check is passed over, with a line in the log.
///
/// # Errors
/// The file cannot be read, or a loss is not PyTorch's; the message says which.
pub fn check(config: &config::Model) -> Result<()> {
    if config.name != ModelName::File {
        return Ok(());
    }
    let module = Module::read(Path::new(&config.file))?;
    let Some(description) = module.description.clone() else {
        log::info!(
            "{}: has no description, since torch.jit.save wrote it and not scripts/export.py: classes and losses are not compared \
             with PyTorch's",
            module.path.display()
        );
        return Ok(());
    };
    let path = module.path.clone();
    let refuse = |message: String| Error::File { path: path.clone(), message };
    let Check { losses, eval_loss, bound, random, .. } = &description.check;
    let found =
        repeat(module, &description).map_err(|message| refuse(format!("its check fails: {}", reason(&message))))?;
    let comparable = !random || draws_alike(&description);
    let expected = std::iter::once(eval_loss).chain(losses.iter().filter(|_| comparable));
    let mut most: f64 = 0.0;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Relative, or absolute for a loss of 0, which every model of one class has.
        let apart = (found - expected).abs() / if *expected == 0.0 { 1.0 } else { expected.abs() };
        if apart.is_nan() || apart > *bound {
            let place = if index == 0 { "in eval mode".into() } else { format!("of training step {index}") };
            return Err(refuse(format!(
                "its loss {place} is {found:.6}, but PyTorch {} found {expected:.6} (allowed: {bound:.0e} apart): the file is \
                 damaged, or libtorch {LIBTORCH_VERSION} computes it otherwise: export it again, with PyTorch {LIBTORCH_VERSION}",
                description.torch
            )));
        }
        most = most.max(apart);
    }
    let steps =
        if comparable { "eval mode and training" } else { "eval mode (steps draw random numbers otherwise here)" };
    log::info!("{}: losses as in PyTorch {}, within {most:.0e}, in {steps}", path.display(), description.torch);
    Ok(())
}

/// Whether libtorch draws here what it drew where the file was written: another version or another kind of processor may not.
fn draws_alike(description: &Description) -> bool {
    let minor = |version: &str| version.split('.').take(2).map(str::to_owned).collect::<Vec<_>>();
    minor(&description.torch) == minor(LIBTORCH_VERSION) && description.machine == std::env::consts::ARCH
}

/// Losses in eval mode and before each step of SGD, of a module that is used up.
fn repeat(module: Module, description: &Description) -> Result<Vec<f64>, String> {
    let check = &description.check;
    let state = module.state();
    let mut parameters: Vec<Tensor> =
        state.iter().filter(|entry| entry.role == Role::Parameter).map(|entry| entry.tensor.shallow_clone()).collect();
    let network = module.into_network(Precision::Float32, description.form());
    let (inputs, targets) = batch(description.form(), check.samples);
    let loss = |mode| -> Result<Tensor, String> {
        let logits = network.logits(&inputs, mode)?;
        let classes = *logits.size().last().ok_or("its output is a single number")?;
        if classes != description.form().outputs() as i64 {
            let wanted = description.form().outputs();
            return Err(format!("its output is {:?}, but its description says {wanted} classes", logits.size()));
        }
        Ok(logits.reshape([-1, classes]).cross_entropy_loss(&targets, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0))
    };
    let mut losses = vec![tch::no_grad(|| loss(Mode::Eval))?.double_value(&[])];
    seeded(check.seed, || {
        for _ in &check.losses {
            let loss = loss(Mode::TRAIN)?;
            losses.push(loss.double_value(&[]));
            parameters.iter_mut().for_each(Tensor::zero_grad);
            loss.backward();
            tch::no_grad(|| {
                for parameter in &mut parameters {
                    let gradient = parameter.grad();
                    if gradient.defined() {
                        let _ = parameter.g_sub_(&(gradient * check.lr));
                    }
                }
            });
        }
        Ok(losses)
    })
}

/// Inputs and targets `[n]` or `[n t]` of the check, as `batch` in scripts/export.py makes them.
fn batch(form: Form, samples: usize) -> (Tensor, Tensor) {
    let sizes =
        |shape: &[usize]| std::iter::once(samples).chain(shape.iter().copied()).map(|n| n as i64).collect::<Vec<_>>();
    match form {
        Form::Images { shape, classes } => {
            let count = samples * shape.iter().product::<usize>();
            let pixels: Vec<f32> = hashed(0..count).map(|hash| (2.0 * (hash >> 24) as f32 - 255.0) / 128.0).collect();
            let targets: Vec<i64> =
                hashed(count..count + samples).map(|hash| i64::from(hash) % classes as i64).collect();
            (Tensor::from_slice(&pixels).reshape(sizes(&shape)), Tensor::from_slice(&targets))
        }
        Form::Tokens { length, vocabulary } => {
            let ids = |first| {
                let ids: Vec<i64> =
                    hashed(first..first + samples * length).map(|hash| i64::from(hash) % vocabulary as i64).collect();
                Tensor::from_slice(&ids)
            };
            (ids(0).reshape(sizes(&[length])).to_kind(Kind::Int64), ids(samples * length))
        }
    }
}

/// Hash of 32 bits per integer. Source: `hashed` in scripts/export.py.
pub(super) fn hashed(range: std::ops::Range<usize>) -> impl Iterator<Item = u32> {
    range.map(|index| {
        let mut x = index as u32;
        for (shift, factor) in [(16, 0x7feb_352d), (15, 0x846c_a68b)] {
            x = (x ^ (x >> shift)).wrapping_mul(factor);
        }
        x ^ (x >> 16)
    })
}
