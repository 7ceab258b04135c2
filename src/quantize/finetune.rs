//! Quantization-aware finetuning: a short training of the folded network in which weights and activations are rounded as the
//! integer network rounds them, at its scales, so that the network adapts to the rounding.
//!
//! The gradient passes straight through the rounding, and is 0 where a value was clamped. Source: Jacob et al., Quantization
//! and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018, section 3; Bengio, Leonard,
//! Courville, Estimating or Propagating Gradients Through Stochastic Neurons, 2013.

use std::sync::Arc;

use tch::Tensor;

use super::float_network::{self, Keep, Tensors};
use super::graph::{FloatNet, Node, Operation};
use super::integer::{IntNet, Integers, Quantization};
use super::scheme::{ACTIVATION_MAX, WEIGHT_MAX};
use crate::collective::{AllReduce, HostBuffer, WaitPolicy};
use crate::config::{self, Plan};
use crate::data::{AugmentSeed, BatchPlan, Dataset, Loader, LoaderOptions, Sampler};
use crate::error::Result;
use crate::launch::Job;
use crate::live::Live;
use crate::metrics::Kind;
use crate::optim::Optimizer;
use crate::parallel::{Flat, FlatState, FlatTensor};

/// Finetunes `net` for `quantize.finetune_epochs` epochs on all ranks together, its values rounded as in `integers`, by SGD with
/// the default momentum. The learning rate decays linearly from `quantize.finetune_lr` to 0.
///
/// Every rank ends with identical weights. They may be NaN or infinite: [`with_scales_of`](super::scheme::with_scales_of)
/// returns the error then.
///
/// # Errors
/// Memory for the gradients cannot be allocated, a collective failed, or a sample cannot be read.
pub fn finetune(
    net: &FloatNet,
    integers: &IntNet,
    train: &Arc<Dataset>,
    settings: &Plan,
    job: &Job,
    live: &mut Live,
) -> Result<FloatNet> {
    let elements = elements(net);
    let settings = &job.fitting(settings, &job.communicator, elements)?;
    let all_reduce = AllReduce::new(job.communicator.clone(), &settings.parallel)?;
    let mut rounded = Rounded::new(net, integers, all_reduce.buffer(elements)?);
    let mut optimizer = Optimizer::new(&rounded.state, &config::Optim::default());
    let plan = plan(train.len(), settings, job);
    let steps = plan.sizes.len();
    let options = LoaderOptions {
        mean: net.spec.mean.clone(),
        std: net.spec.std.clone(),
        augment: settings
            .data
            .augment
            .then_some(AugmentSeed { seed: settings.run.seed, epoch: settings.train.epochs as u64 }),
        channels_last: false,
        prefetch: settings.data.prefetch,
        threads: settings.data.threads,
    };
    live.begin_whole("finetuning, step", steps);
    for (step, batch) in Loader::start(train.clone(), plan, options).enumerate() {
        let batch = batch?;
        rounded.state.gradients.zero();
        let logits = rounded.forward(&batch.inputs).pop().expect("a network has layers");
        let loss = logits.flatten(1, -1).cross_entropy_for_logits(&batch.targets);
        (&loss / job.world_size as f64).backward(); // the sum over the ranks is the mean gradient
        {
            // The optimizer reads the region's memory after the all-reduce.
            let mut gradients = rounded.state.gradients.host_mut().region(0..elements);
            all_reduce.reduce(Kind::Gradients, &mut gradients, WaitPolicy::Spin)?;
        }
        let lr = settings.quantize.finetune_lr * (steps - step) as f64 / steps as f64;
        optimizer.step(&mut rounded.state, lr)?;
        live.step(|| format!("loss {:.4}", loss.double_value(&[])));
    }
    Ok(rounded.into_net(net))
}

/// Number of weights and biases of a network.
pub(super) fn elements(net: &FloatNet) -> usize {
    net.bytes() / size_of::<f32>()
}

/// This rank's batches of `samples` samples per epoch, from the epochs after the training's last one.
fn plan(samples: usize, settings: &Plan, job: &Job) -> BatchPlan {
    let mut sampler = Sampler::new(samples, job.world_size, job.rank, settings.data.shuffle, false, settings.run.seed);
    let wanted = (settings.quantize.finetune_epochs * samples.div_ceil(job.world_size) as f64).ceil() as usize;
    let mut indices = Vec::with_capacity(wanted);
    for epoch in settings.train.epochs.. {
        sampler.set_epoch(epoch as u64);
        indices.extend(sampler.indices());
        if indices.len() >= wanted {
            break;
        }
    }
    indices.truncate(wanted);
    BatchPlan::even(indices, settings.train.batch_per_rank)
}

/// The network being trained; each weight and tensor is rounded before it is read.
pub(super) struct Rounded {
    /// All weights and biases, node by node, as one parameter; the tensors of `nodes` are views of it.
    state: FlatState,
    nodes: Vec<Node<Tensors>>,
    /// Real weight of one quantization step, `[1]` or `[outputs, 1, 1, 1]`, by node.
    weight_scales: Vec<Tensor>,
    /// Quantization of every tensor but the logits, the image first.
    activations: Vec<Quantization>,
}

impl Rounded {
    /// Starts from the numbers of `net`; `gradients` holds [`elements`] values.
    pub(super) fn new(net: &FloatNet, integers: &IntNet, gradients: HostBuffer) -> Rounded {
        let elements = elements(net);
        let (parameters, gradients) = (Flat::zeros(elements, None), Flat::Host(gradients));
        let mut offset = 0;
        let mut adopt = |mut tensor: Tensor| {
            parameters.adopt(offset, &mut tensor, Some(&gradients), false);
            offset += tensor.numel();
            tensor
        };
        let mut nodes = float_network::tensor_nodes(net, tch::Device::Cpu);
        for node in &mut nodes {
            let Operation::Convolution(layer) = &mut node.operation else { continue };
            layer.numbers.0 = adopt(layer.numbers.0.shallow_clone());
            layer.numbers.1 = layer.numbers.1.take().map(&mut adopt);
        }
        let scale = |node: &Node<Integers>| {
            let scales: Vec<f32> = node.numbers().weight_scale.iter().map(|&scale| scale as f32).collect();
            Tensor::from_slice(&scales).view([-1, 1, 1, 1])
        };
        Rounded {
            nodes,
            weight_scales: integers.nodes.iter().map(scale).collect(),
            activations: (0..integers.nodes.len()).map(|index| integers.quantization(index)).collect(),
            state: FlatState {
                parameters,
                gradients,
                buffers: Flat::zeros(0, None),
                batches_tracked: 0,
                tensors: vec![FlatTensor { elements: 0..elements, matrix: true }],
            },
        }
    }

    /// Computes every tensor that a layer reads, in real units, from the normalized images
    /// `[n, channels, height, width]` on, and the logits.
    pub(super) fn forward(&self, images: &Tensor) -> Vec<Tensor> {
        let nodes = self.nodes.iter().zip(&self.weight_scales).map(|(node, scale)| {
            let numbers = |node: &Node<Tensors>| {
                let (weight, bias) = node.numbers();
                let weight = match node.layer() {
                    Some(_) => fake(weight, scale, -WEIGHT_MAX, WEIGHT_MAX),
                    None => Tensor::new(),
                };
                // Biases are int32 at so fine a scale that rounding them changes nothing.
                Ok((weight, bias.as_ref().map(Tensor::shallow_clone)))
            };
            node.with_numbers(numbers).expect("rounding cannot fail")
        });
        let nodes: Vec<Node<Tensors>> = nodes.collect();
        let quantized = |index: usize, values: Tensor| match self.activations.get(index) {
            Some(&Quantization { scale, zero_point }) => {
                let zero_point = zero_point as f64;
                fake(&values, &Tensor::from(scale as f32), -zero_point, ACTIVATION_MAX - zero_point)
            }
            None => values,
        };
        float_network::forward(&nodes, images.shallow_clone(), Keep::All, quantized)
    }

    fn into_net(self, net: &FloatNet) -> FloatNet {
        let mut net = net.clone();
        let parameters = self.state.parameters.read();
        let mut rest = &parameters[..];
        for node in &mut net.nodes {
            let Operation::Convolution(layer) = &mut node.operation else { continue };
            for values in std::iter::once(&mut layer.numbers.weight).chain(layer.numbers.bias.as_mut()) {
                let (own, after) = rest.split_at(values.len());
                values.copy_from_slice(own);
                rest = after;
            }
        }
        net
    }
}

/// Rounds `values` to whole steps of `scale`, clamped to `least` to `most` steps. The gradient is that of the clamp alone.
fn fake(values: &Tensor, scale: &Tensor, least: f64, most: f64) -> Tensor {
    let steps = (values / scale).clamp(least, most);
    let rounding = (steps.round() - &steps).detach();
    (steps + rounding) * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_goes_through_rounding_and_stops_at_the_clamp() {
        let values = Tensor::from_slice(&[0.24f32, 0.26, -0.9, 9.0, -9.0]).set_requires_grad(true);
        let rounded = fake(&values, &Tensor::from(0.5f32), -2.0, 3.0);
        let expected = Tensor::from_slice(&[0.0f32, 0.5, -1.0, 1.5, -1.0]);
        assert!(rounded.equal(&expected), "{rounded:?}");
        rounded.sum(tch::Kind::Float).backward();
        assert!(values.grad().equal(&Tensor::from_slice(&[1.0f32, 1.0, 1.0, 0.0, 0.0])));
    }
}
