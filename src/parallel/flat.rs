//! A model's parameters, gradients and buffers in three flat buffers; the model's own tensors are views of them.

use std::borrow::Cow;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::collective::{HostBuffer, view};
use crate::model::{Model, Role};

/// The flat memory of a model: adjacent tensors travel as one message, and the optimizer is one loop.
pub struct FlatState {
    /// All parameters, in the model's order.
    pub parameters: Flat,
    /// Gradients; element `i` is the gradient of `parameters[i]`.
    pub gradients: Flat,
    /// Batch norm's running statistics.
    pub buffers: Flat,
    /// Batches that `buffers` have seen on this rank: batch norm's `num_batches_tracked`.
    pub batches_tracked: i64,
    /// The parameter tensors, in the model's order.
    pub tensors: Vec<FlatTensor>,
}

/// One parameter tensor in the flat buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatTensor {
    /// Elements of this tensor in the flat buffers.
    pub elements: Range<usize>,
    /// Whether it multiplies its input (weights of convolutions and linear layers), unlike biases and batch norm's scales.
    pub matrix: bool,
}

/// Contiguous float32 values, in host or in device memory.
pub enum Flat {
    /// Host memory, on which the CPU computes.
    Host(HostBuffer),
    /// Device memory, `[elements]` float32.
    Device(Tensor),
}

impl Flat {
    /// Allocates `elements` zeros, on `device` if there is one.
    pub fn zeros(elements: usize, device: Option<Device>) -> Flat {
        match device {
            None => Flat::Host(HostBuffer::zeros(elements)),
            Some(device) => Flat::Device(Tensor::zeros([elements as i64], (Kind::Float, device))),
        }
    }

    /// Allocates `elements` zeros in memory of this kind.
    pub fn zeros_like(&self, elements: usize) -> Flat {
        let device = match self {
            Flat::Host(_) => None,
            Flat::Device(tensor) => Some(tensor.device()),
        };
        Flat::zeros(elements, device)
    }

    /// Device of the values.
    pub fn device(&self) -> Device {
        match self {
            Flat::Host(_) => Device::Cpu,
            Flat::Device(tensor) => tensor.device(),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Flat::Host(buffer) => buffer.len(),
            Flat::Device(tensor) => tensor.numel(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the values; copies them if they are in device memory.
    pub fn read(&self) -> Cow<'_, [f32]> {
        match self {
            Flat::Host(buffer) => Cow::Borrowed(buffer.as_slice()),
            Flat::Device(tensor) => {
                let mut values = vec![0.0; tensor.numel()];
                tensor.copy_data(&mut values, tensor.numel());
                Cow::Owned(values)
            }
        }
    }

    /// Overwrites all values.
    pub fn write(&mut self, values: &[f32]) {
        match self {
            Flat::Host(buffer) => buffer.as_mut_slice().copy_from_slice(values),
            Flat::Device(tensor) => tch::no_grad(|| tensor.copy_(&Tensor::from_slice(values))),
        }
    }

    /// Swaps the values with those of `other`, of equal length and memory: both buffers stay where they are, for views of them.
    pub fn swap(&mut self, other: &mut Flat) {
        match (self, other) {
            (Flat::Host(one), Flat::Host(other)) => one.as_mut_slice().swap_with_slice(other.as_mut_slice()),
            (Flat::Device(one), Flat::Device(other)) => tch::no_grad(|| {
                let kept = one.copy();
                one.copy_(other);
                other.copy_(&kept);
            }),
            _ => unreachable!("buffers that are swapped share a memory"),
        }
    }

    /// The host buffer.
    ///
    /// # Panics
    /// The values are in device memory; `Config::check_for_gpu` refuses every setting that needs them on the host.
    pub fn host(&self) -> &HostBuffer {
        match self {
            Flat::Host(buffer) => buffer,
            Flat::Device(_) => unreachable!("needs host memory; Config::check_for_gpu refuses it on GPUs"),
        }
    }

    /// The host buffer, mutably.
    ///
    /// # Panics
    /// The values are in device memory, as for [`host`](Self::host).
    pub fn host_mut(&mut self) -> &mut HostBuffer {
        match self {
            Flat::Host(buffer) => buffer,
            Flat::Device(_) => unreachable!("needs host memory; Config::check_for_gpu refuses it on GPUs"),
        }
    }

    /// Sets all values to zero.
    pub fn zero(&mut self) {
        match self {
            Flat::Host(buffer) => buffer.zero(),
            Flat::Device(tensor) => tch::no_grad(|| _ = tensor.zero_()),
        }
    }

    /// Moves `tensor`, which is not trained, to this memory's device.
    fn take_in(&self, tensor: &mut Tensor) {
        if let Flat::Device(flat) = self
            && tensor.defined()
        {
            tensor.set_data(&tensor.to_device(flat.device()));
        }
    }

    /// Makes `tensor` a view of the elements from `offset` on: its values move there. With `gradients` it becomes a parameter,
    /// whose gradient is a view of the elements of `gradients` at that offset.
    #[allow(unsafe_code)]
    pub fn adopt(&self, offset: usize, tensor: &mut Tensor, gradients: Option<&Flat>, channels_last: bool) {
        let shape = tensor.size();
        let view = |flat: &Flat| match flat {
            // SAFETY: the owner of the tensors owns the flat memory too (a `Replica` its model and state, a finetuning its
            // nodes and state) and computes with them in methods that borrow it mutably, so that no slice is borrowed from the
            // memory meanwhile. Regions that are out during a backward pass are of buckets whose gradients are complete.
            Flat::Host(buffer) => unsafe { buffer.view(offset, &shape, channels_last) },
            Flat::Device(flat) => view(flat, offset, &shape, channels_last),
        };
        let mut home = view(self);
        tch::no_grad(|| home.copy_(tensor));
        tensor.set_data(&home);
        if let Some(gradients) = gradients {
            *tensor = tensor.set_requires_grad(true);
            tensor.sum(Kind::Float).backward(); // makes the gradient tensor
            tensor.grad().set_data(&view(gradients));
        }
    }
}

impl FlatState {
    /// Moves the model's tensors into flat buffers: values kept, gradients zero.
    ///
    /// `gradients` has one element per parameter, in memory that suits the all-reduce; the other buffers go to that device too.
    pub fn adopt(model: &mut Model, mut gradients: Flat) -> FlatState {
        let elements = |role| model.state.iter().filter(|e| e.role == role).map(|e| e.tensor.numel()).sum::<usize>();
        let parameters = gradients.zeros_like(elements(Role::Parameter));
        let buffers = gradients.zeros_like(elements(Role::Buffer));
        let (mut parameter, mut buffer) = (0, 0);
        let mut tensors = Vec::new();
        for entry in &mut model.state {
            let (home, offset) = match entry.role {
                Role::Parameter => (&parameters, &mut parameter),
                Role::Buffer => (&buffers, &mut buffer),
                Role::Tied => continue,
                Role::Frozen | Role::Counter | Role::Constant => {
                    gradients.take_in(&mut entry.tensor);
                    continue;
                }
            };
            let own_gradients = (entry.role == Role::Parameter).then_some(&gradients);
            home.adopt(*offset, &mut entry.tensor, own_gradients, model.channels_last);
            let elements = *offset..*offset + entry.tensor.numel();
            *offset = elements.end;
            if entry.role == Role::Parameter {
                tensors.push(FlatTensor { elements, matrix: entry.tensor.dim() > 1 });
            }
        }
        gradients.zero();
        FlatState { parameters, gradients, buffers, batches_tracked: 0, tensors }
    }

    /// Ranges of the parameters in the flat buffers, in the model's order.
    pub fn parameter_elements(&self) -> Vec<Range<usize>> {
        self.tensors.iter().map(|tensor| tensor.elements.clone()).collect()
    }
}

/// Euclidean norm, summed in float64.
pub fn norm(values: &[f32]) -> f64 {
    // Partial sums of a few thousand elements keep the loop vectorized and the result exact to float64's precision.
    let square = |chunk: &[f32]| chunk.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>();
    values.chunks(4096).map(square).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::model::Mode;
    use crate::sys::seeded;

    #[test]
    fn a_backward_pass_writes_into_the_flat_gradients() {
        for (name, channels_last, device) in [
            (config::ModelName::Net, false, None),
            (config::ModelName::Resnet18, true, None),
            (config::ModelName::Resnet18, true, Some(Device::Cpu)),
        ] {
            let config = config::Model { name, width: 16, channels_last, ..Default::default() };
            let mut model = Model::new(&config, crate::data::Form::CIFAR10, 3).unwrap();
            let before: Vec<Tensor> = model.parameters().map(|entry| entry.tensor.copy()).collect();
            let gradients = Flat::zeros(model.parameter_count(), device);
            let state = FlatState::adopt(&mut model, gradients);
            for (entry, before) in model.parameters().zip(&before) {
                assert!(entry.tensor.equal(before), "{} changed", entry.name);
            }
            let images = seeded(1, || Tensor::randn([4, 3, 32, 32], (Kind::Float, Device::Cpu)));
            model.forward(&images, Mode::TRAIN).square().sum(Kind::Float).backward();
            let squares: f64 =
                model.parameters().map(|e| e.tensor.grad().square().sum(Kind::Double).double_value(&[])).sum();
            let flat: f64 = state.gradients.read().iter().map(|&g| (g as f64).powi(2)).sum();
            assert!(flat > 0.0 && (flat / squares - 1.0).abs() < 1e-6, "{flat} {squares}");
            let last = state.tensors.last().map(|tensor| tensor.elements.end);
            assert_eq!(last, Some(state.parameters.len()));
        }
    }
}
