//! A data set in device memory as u8, and batches that are cropped, mirrored and normalized there. The batches are bit-identical
//! to those of [`Loader`]; nothing crosses the bus in an epoch except the indices at its start.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::augment::{Augmentation, PADDING};
use super::{Batch, BatchPlan, Dataset, Loader, LoaderOptions, SIDE};

/// Source of a data set's batches: host or device memory.
pub struct Feed {
    dataset: Arc<Dataset>,
    /// Images `[n, 3, 32, 32]` u8 and labels `[n]` int64 in device memory, if there is a device.
    resident: Option<(Tensor, Tensor)>,
}

impl Feed {
    /// Copies the data set to `device`, if there is one.
    pub fn new(dataset: Arc<Dataset>, device: Option<Device>) -> Feed {
        let resident = device.map(|device| {
            let (n, side) = (dataset.len() as i64, SIDE as i64);
            let images = Tensor::from_data_size(&dataset.images, &[n, 3, side, side], Kind::Uint8);
            let labels: Vec<i64> = dataset.labels.iter().map(|&label| i64::from(label)).collect();
            (images.to_device(device), Tensor::from_slice(&labels).to_device(device))
        });
        Feed { dataset, resident }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.dataset.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.dataset.is_empty()
    }

    /// Starts an iterator over the batches of `plan`, in order.
    ///
    /// # Panics
    /// The sizes of `plan` do not add up to its indices, or an index lies outside the data set.
    pub fn batches(&self, plan: BatchPlan, options: LoaderOptions) -> Batches {
        match &self.resident {
            None => Batches::Loaded(Loader::start(self.dataset.clone(), plan, options)),
            Some((images, labels)) => {
                let (images, labels) = (images.shallow_clone(), labels.shallow_clone());
                Batches::Resident(Box::new(DeviceLoader::new(images, labels, plan, options)))
            }
        }
    }
}

/// Iterator over the batches of a plan, in order.
pub enum Batches {
    /// Batches prepared on a thread of the host.
    Loaded(Loader),
    /// Batches prepared on a device.
    Resident(Box<DeviceLoader>),
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        match self {
            Batches::Loaded(loader) => loader.next(),
            Batches::Resident(loader) => loader.next(),
        }
    }
}

/// Iterator that makes batches from a data set in device memory.
pub struct DeviceLoader {
    images: Tensor,
    labels: Tensor,
    /// Indices into the data set, `[samples]` int64.
    indices: Tensor,
    /// Source row (and column) in the image of each row (column) of a sample, `[samples, 32]` int64, and its factor, u8: 0 in
    /// the padding. `None` without augmentation.
    shown: Option<[(Tensor, Tensor); 2]>,
    /// The divisor 255 as a tensor: CUDA would multiply by the reciprocal of a scalar, which rounds differently.
    full: Tensor,
    mean: Tensor,
    std: Tensor,
    channels_last: bool,
    sizes: std::vec::IntoIter<usize>,
    given: i64,
}

impl DeviceLoader {
    fn new(images: Tensor, labels: Tensor, plan: BatchPlan, options: LoaderOptions) -> DeviceLoader {
        let (planned, samples) = (plan.sizes.iter().sum::<usize>(), labels.numel());
        assert_eq!(planned, plan.indices.len(), "the sizes of the batches must add up to the number of indices");
        assert!(plan.indices.iter().all(|&index| (index as usize) < samples), "an index outside the data set");
        let device = images.device();
        let indices: Vec<i64> = plan.indices.iter().map(|&index| i64::from(index)).collect();
        let shown = options.augment.map(|seed| {
            let drawn: Vec<Augmentation> = plan.indices.iter().map(|&index| Augmentation::draw(seed, index)).collect();
            let of_each = |value: fn(&Augmentation) -> usize| {
                let values: Vec<i64> = drawn.iter().map(|one| value(one) as i64).collect();
                Tensor::from_slice(&values).to_device(device).view([-1, 1])
            };
            let (side, place) = (SIDE as i64, Tensor::arange(SIDE as i64, (Kind::Int64, device)));
            // Place 31 - x instead of x if it is mirrored.
            let mirrored = &place + of_each(|one| one.flip as usize) * (&place * -2 + (side - 1));
            let rows = &place + of_each(|one| one.top);
            let columns = mirrored + of_each(|one| one.left);
            [rows, columns].map(|padded| {
                let from = padded - PADDING as i64;
                let inside = from.ge(0).logical_and(&from.lt(side)).to_kind(Kind::Uint8);
                (from.clamp(0, side - 1), inside)
            })
        });
        let per_channel = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(device);
        DeviceLoader {
            indices: Tensor::from_slice(&indices).to_device(device),
            shown,
            full: per_channel([255.0; 3]),
            mean: per_channel(options.mean),
            std: per_channel(options.std),
            channels_last: options.channels_last,
            sizes: plan.sizes.into_iter(),
            given: 0,
            images,
            labels,
        }
    }

    fn next(&mut self) -> Option<Batch> {
        let len = self.sizes.next()?;
        let (from, n) = (self.given, len as i64);
        self.given += n;
        Some(tch::no_grad(|| {
            let indices = self.indices.narrow(0, from, n);
            let mut pixels = self.images.index_select(0, &indices);
            if let Some([rows, columns]) = &self.shown {
                let side = SIDE as i64;
                for (axis, (place, inside)) in [(2, rows), (3, columns)] {
                    let across = if axis == 2 { [n, 1, side, 1] } else { [n, 1, 1, side] };
                    let place = place.narrow(0, from, n).view(across).expand([n, 3, side, side], false);
                    pixels = pixels.gather(axis, &place, false) * inside.narrow(0, from, n).view(across);
                }
            }
            // The three operations of PyTorch's `(pixels.float() / 255 - mean) / std`, each rounded to float32.
            let images = (pixels.to_kind(Kind::Float) / &self.full - &self.mean) / &self.std;
            let images = match self.channels_last {
                true => images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
                false => images,
            };
            Batch { inputs: images, targets: self.labels.index_select(0, &indices), len }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{AugmentSeed, IMAGE_BYTES};

    #[test]
    fn batches_are_the_loaders_bit_for_bit() {
        let images = (0..60 * IMAGE_BYTES).map(|i| (i * 31 + i / 3072 * 17) as u8).collect();
        let dataset = Arc::new(Dataset { images, labels: (0..60).map(|i| (i * 3 % 10) as u8).collect() });
        let plan = BatchPlan { indices: (0..55).map(|i| i * 7 % 60).collect(), sizes: vec![16, 0, 16, 16, 7] };
        let seed = AugmentSeed { seed: 5, epoch: 2 };
        for (augment, channels_last) in [(None, false), (Some(seed), false), (Some(seed), true)] {
            let options = LoaderOptions {
                mean: [0.4914, 0.4822, 0.4465],
                std: [0.2470, 0.2435, 0.2616],
                augment,
                channels_last,
                prefetch: 2,
            };
            let [host, device] = [None, Some(Device::Cpu)]
                .map(|device| Feed::new(dataset.clone(), device).batches(plan.clone(), options));
            let mut batches = 0;
            for (host, device) in host.zip(device) {
                assert_eq!((host.len, host.inputs.size()), (device.len, device.inputs.size()));
                assert!(host.inputs.equal(&device.inputs) && host.targets.equal(&device.targets));
                assert!(host.len == 0 || host.inputs.stride() == device.inputs.stride());
                batches += 1;
            }
            assert_eq!(batches, 5);
        }
    }
}
