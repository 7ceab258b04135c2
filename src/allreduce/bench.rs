//! One algorithm and the buffers that it reduces, in host or device memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::collective::{AllReduce, Communicator, DeviceCollectives, Element, HostBuffer, WaitPolicy};
use crate::config::Parallel;
use crate::device::Target;
use crate::error::Result;
use crate::metrics::Kind;
use crate::units::Second;

/// Buffers of an all-reduce: one that is overwritten (in place), or two (out of place).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    In,
    Out,
}

/// An algorithm with its buffers. In place, the target is also the source.
pub enum Bench<T: Element> {
    /// Buffers in host memory.
    Host(Box<HostBench<T>>),
    /// Buffers in device memory.
    Device(DeviceBench),
}

/// Buffers in host memory, and the all-reduce over them.
pub struct HostBench<T: Element> {
    all_reduce: AllReduce,
    source: HostBuffer<T>,
    target: HostBuffer<T>,
}

/// Buffers in device memory, `[elements]` each, and the collectives over them.
pub struct DeviceBench {
    collectives: DeviceCollectives,
    source: Tensor,
    target: Tensor,
}

impl<T: Element> Bench<T> {
    /// Buffers of `elements` on each of `ranks`, in the memory of `target`, and what the algorithm of
    /// `parallel` needs. On a GPU, ranks wait for
    /// each other for `limit` at most.
    ///
    /// # Errors
    /// There is no memory, or NCCL cannot be used.
    pub fn new(
        ranks: &Arc<Communicator>,
        target: Target,
        parallel: &Parallel,
        elements: usize,
        limit: Duration,
    ) -> Result<Bench<T>> {
        if !target.is_gpu() {
            let all_reduce = AllReduce::new(ranks.clone(), parallel)?;
            let (source, target) = (all_reduce.buffer(elements)?, all_reduce.buffer(elements)?);
            return Ok(Bench::Host(Box::new(HostBench { all_reduce, source, target })));
        }
        let collectives = DeviceCollectives::new(ranks.clone(), target, parallel, elements, limit)?;
        let [source, target] = [(); 2].map(|()| Tensor::zeros([elements as i64], (T::KIND, target.device())));
        Ok(Bench::Device(DeviceBench { collectives, source, target }))
    }

    /// Name of the algorithm that reduces a buffer of `bytes` bytes; never `auto`.
    pub(super) fn algorithm(&self, bytes: usize) -> &'static str {
        match self {
            Bench::Host(host) => host.all_reduce.algorithm_for(bytes).as_str(),
            Bench::Device(device) if device.collectives.is_through_host() => "host",
            Bench::Device(_) => "nccl",
        }
    }

    /// Fills the first `elements` of the source for `place` with `value(index)`.
    pub(super) fn fill(&mut self, place: Place, elements: usize, value: impl Fn(usize) -> f32) {
        match self {
            Bench::Host(host) => {
                let buffer = if place == Place::In { &mut host.target } else { &mut host.source };
                let elements = buffer.as_mut_slice()[..elements].iter_mut().enumerate();
                elements.for_each(|(index, element)| *element = T::from_f32(value(index)));
            }
            Bench::Device(device) => {
                let buffer = if place == Place::In { &device.target } else { &device.source };
                let values: Vec<f32> = (0..elements).map(value).collect();
                tch::no_grad(|| buffer.narrow(0, 0, elements as i64).copy_(&Tensor::from_slice(&values)));
            }
        }
    }

    /// First `elements` of the result.
    pub(super) fn result(&self, elements: usize) -> Vec<f32> {
        match self {
            Bench::Host(host) => host.target.as_slice()[..elements].iter().map(|element| element.to_f32()).collect(),
            Bench::Device(device) => {
                let result = device.target.narrow(0, 0, elements as i64).to_kind(tch::Kind::Float);
                let mut values = vec![0.0; elements];
                result.copy_data(&mut values, elements);
                values
            }
        }
    }

    /// Runs one all-reduce without a barrier before it. Returns this rank's seconds.
    ///
    /// # Errors
    /// A rank is gone, or the device has failed.
    pub(super) fn once(&mut self, place: Place, elements: usize) -> Result<Second> {
        match self {
            Bench::Host(host) => {
                let source = (place == Place::Out).then(|| host.source.region(0..elements));
                let mut target = host.target.region(0..elements);
                let start = Instant::now();
                host.all_reduce.run(Kind::Gradients, source.as_ref(), &mut target, WaitPolicy::Spin)?;
                Ok(start.elapsed().as_secs_f64())
            }
            Bench::Device(device) => {
                let part = |of: &Tensor| of.narrow(0, 0, elements as i64);
                let target = part(&device.target);
                let source = if place == Place::In { target.shallow_clone() } else { part(&device.source) };
                let span = device.collectives.all_reduce_into(Kind::Gradients, &source, &target)?;
                device.collectives.join()?;
                device.collectives.finish()?;
                span.seconds()
            }
        }
    }
}
