//! Optimizers on a device's flat tensors: the formulas of [`Optimizer`](super::Optimizer) as operations that are enqueued
//! without waiting.

use tch::Tensor;

use super::{CLIP_EPSILON, Step};
use crate::config::OptimName;
use crate::error::Result;
use crate::parallel::FlatTensor;
use crate::sys::{FusedAdam, FusedSgd};

/// Updates `parameters` by `gradients`, both `[elements]` float32, and the moments, in place.
///
/// # Errors
/// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
pub fn step(step: &Step, parameters: &mut Tensor, gradients: &Tensor, moments: [&mut Tensor; 2]) -> Result<()> {
    let clip_norm = step.config.clip_norm;
    tch::no_grad(|| {
        // The divisor, at least 1, that makes the gradient's norm at most `clip_norm`.
        let divisor = (clip_norm > 0.0).then(|| ((gradients.norm() + CLIP_EPSILON) / clip_norm).clamp_min(1.0));
        match step.config.name {
            OptimName::Lars | OptimName::Lamb => {
                by_tensor(step, parameters, gradients, moments, divisor.as_ref());
                Ok(())
            }
            OptimName::Sgd | OptimName::Adam | OptimName::AdamW => {
                by_group(step, parameters, gradients, moments, divisor.as_ref())
            }
        }
    })
}

/// Updates the parameters of each group by one of libtorch's fused optimizers.
fn by_group(
    step: &Step,
    parameters: &Tensor,
    gradients: &Tensor,
    [first, second]: [&mut Tensor; 2],
    divisor: Option<&Tensor>,
) -> Result<()> {
    let &Step { config, number, lr, .. } = step;
    for group in step.groups {
        let parts = |of: &Tensor| -> Vec<Tensor> {
            group.elements.iter().map(|part| of.narrow(0, part.start as i64, part.len() as i64)).collect()
        };
        let weight_decay = group.weight_decay;
        match config.name {
            OptimName::Sgd => {
                let rule = FusedSgd { weight_decay, momentum: config.momentum, lr, nesterov: config.nesterov, divisor };
                rule.step(&parts(parameters), &parts(gradients), &parts(first))?;
            }
            name => {
                let rule = FusedAdam {
                    number: number.into(),
                    weight_decay,
                    beta1: config.momentum,
                    beta2: config.beta2,
                    epsilon: config.epsilon,
                    lr,
                    decoupled: name == OptimName::AdamW,
                    divisor,
                };
                rule.step(&parts(parameters), &parts(gradients), [&parts(first), &parts(second)])?;
            }
        }
    }
    Ok(())
}

/// Updates one tensor after the other by LARS or LAMB, whose rates follow from a tensor's norms.
fn by_tensor(
    step: &Step,
    parameters: &Tensor,
    gradients: &Tensor,
    [first, second]: [&mut Tensor; 2],
    divisor: Option<&Tensor>,
) {
    let &Step { config, tensors, number, lr, .. } = step;
    for FlatTensor { elements, matrix } in tensors {
        let part = |of: &Tensor| of.narrow(0, elements.start as i64, elements.len() as i64);
        let (mut weights, mut gradient, mut first) = (part(parameters), part(gradients), part(first));
        if let Some(divisor) = divisor {
            let _ = gradient.g_div_(divisor);
        }
        let weight_decay = config.weight_decay_of(*matrix);
        // 1 where one of the norms is 0.
        let or_one = |trust: Tensor, one: &Tensor, other: &Tensor| {
            trust.where_self(&one.gt(0.0).logical_and(&other.gt(0.0)), &Tensor::ones_like(one))
        };
        if config.name == OptimName::Lars {
            let mut scaled = &gradient + &weights * weight_decay;
            if *matrix {
                let (own, length) = (weights.norm(), gradient.norm());
                let trust = &own * config.trust / (&length + &own * weight_decay);
                let _ = scaled.g_mul_(&or_one(trust, &own, &length));
            }
            let _ = scaled.g_mul_scalar_(lr);
            let _ = first.g_mul_scalar_(config.momentum).g_add_(&scaled);
            let _ = if config.nesterov {
                weights.g_sub_(&(scaled + &first * config.momentum))
            } else {
                weights.g_sub_(&first)
            };
        } else {
            let mut second = part(second);
            let (beta1, beta2) = (f64::from(config.momentum as f32), f64::from(config.beta2 as f32));
            let _ = first.g_mul_scalar_(beta1).g_add_(&(&gradient * (1.0 - beta1)));
            let _ = second.g_mul_scalar_(beta2).g_add_(&(gradient.square() * (1.0 - beta2)));
            let corrected = |moment: &Tensor, beta: f64| moment / (1.0 - beta.powi(number));
            let adam = corrected(&first, beta1) / (corrected(&second, beta2).sqrt() + config.epsilon);
            let mut direction = adam + &weights * weight_decay;
            if *matrix {
                let (own, length) = (weights.norm(), direction.norm());
                let _ = direction.g_mul_(&or_one(&own / &length, &own, &length));
            }
            let _ = weights.g_sub_(&(direction * lr));
        }
    }
}
