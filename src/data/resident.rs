//! A data set in device memory as it is stored, and batches that are cropped, mirrored and normalized there. The batches are
//! bit-identical to those of [`Loader`]; nothing crosses the bus in an epoch except the indices at its start.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::augment::{Augmentation, PADDING};
use super::{Batch, BatchPlan, Dataset, Form, Loader, LoaderOptions};
use crate::error::Result;
use crate::units::Bytes;

/// Bytes that are copied to the device at once.
const PIECE: usize = 64 << 20;

/// Source of a data set's batches: host or device memory.
pub struct Feed {
    dataset: Arc<Dataset>,
    /// Device that the batches are for, if there is one.
    device: Option<Device>,
    /// Samples as stored, and classes `[n]` int64, in device memory, if there is a device and they have room there.
    resident: Option<(Tensor, Tensor)>,
}

impl Feed {
    /// Copies the data set to `device`, if there is one and the set has at most `most` bytes.
    ///
    /// # Errors
    /// A sample cannot be read or trained on.
    pub fn new(dataset: Arc<Dataset>, device: Option<Device>, most: Bytes) -> Result<Feed> {
        let resident = match device.filter(|_| dataset.device_bytes() <= most) {
            Some(device) => Some((samples(&dataset, device)?, labels(&dataset, device))),
            None => None,
        };
        dataset.take_reads();
        Ok(Feed { dataset, device, resident })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.dataset.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.dataset.is_empty()
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Whether samples are read from files while they are trained on.
    pub fn reads_files(&self) -> bool {
        self.resident.is_none() && self.dataset.is_in_files()
    }

    /// Starts an iterator over the batches of `plan`, in order.
    ///
    /// # Panics
    /// The sizes of `plan` do not add up to its indices, or an index lies outside the data set.
    pub fn batches(&self, plan: BatchPlan, options: LoaderOptions) -> Batches {
        match &self.resident {
            None => Batches::Loaded(Loader::start(self.dataset.clone(), plan, options), self.device),
            Some((samples, labels)) => {
                let (samples, labels) = (samples.shallow_clone(), labels.shallow_clone());
                Batches::Resident(Box::new(DeviceLoader::new(self.dataset.form(), samples, labels, plan, options)))
            }
        }
    }
}

/// All samples on the device: `[n, channels, height, width]` u8 or float32, or `[n, length + 1]` int64.
fn samples(dataset: &Dataset, device: Device) -> Result<Tensor> {
    let (shape, kind): (Vec<i64>, Kind) = match dataset.form() {
        Form::Images { shape, .. } => {
            (shape.map(|extent| extent as i64).to_vec(), if dataset.is_float() { Kind::Float } else { Kind::Uint8 })
        }
        Form::Tokens { length, .. } => (vec![length as i64 + 1], Kind::Int64),
    };
    let samples = dataset.len();
    let all = Tensor::empty([&[samples as i64], &shape[..]].concat(), (kind, device));
    let at_once = (PIECE as Bytes * samples as Bytes / dataset.device_bytes().max(1)).max(1) as usize;
    for first in (0..samples).step_by(at_once) {
        let range = first..(first + at_once).min(samples);
        let size = [&[range.len() as i64], &shape[..]].concat();
        let piece = Tensor::from_data_size(&dataset.bytes(range.clone())?, &size, kind);
        all.narrow(0, first as i64, range.len() as i64).copy_(&piece);
    }
    Ok(all)
}

fn labels(dataset: &Dataset, device: Device) -> Tensor {
    let labels: Vec<i64> = (0..dataset.len()).map(|index| i64::from(dataset.label(index))).collect();
    Tensor::from_slice(&labels).to_device(device)
}

/// Iterator over the batches of a plan, in order.
pub enum Batches {
    /// Batches prepared on threads of the host, for the device if there is one.
    Loaded(Loader, Option<Device>),
    /// Batches prepared on a device.
    Resident(Box<DeviceLoader>),
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        match self {
            Batches::Loaded(loader, None) => loader.next(),
            Batches::Loaded(loader, Some(device)) => loader.next().map(|batch| {
                batch.map(|Batch { inputs, targets, len }| Batch {
                    inputs: inputs.to_device(*device),
                    targets: targets.to_device(*device),
                    len,
                })
            }),
            Batches::Resident(loader) => loader.next().map(Ok),
        }
    }
}

/// Iterator that makes batches from a data set in device memory.
pub struct DeviceLoader {
    samples: Tensor,
    labels: Tensor,
    /// Indices into the data set, `[samples]` int64.
    indices: Tensor,
    /// What is done with images; `None` for tokens.
    images: Option<Images>,
    sizes: std::vec::IntoIter<usize>,
    given: i64,
}

/// Augmentation and normalization of images on a device.
struct Images {
    shape: [i64; 3],
    /// Source row (and column) in the image of each row (column) of a sample, `[samples, height]` int64, and its factor, u8: 0 in
    /// the padding. `None` without augmentation.
    shown: Option<[(Tensor, Tensor); 2]>,
    /// The divisor 255 of u8 pixels as a tensor: CUDA would multiply by the reciprocal of a scalar, which rounds differently.
    full: Option<Tensor>,
    mean: Tensor,
    std: Tensor,
    channels_last: bool,
}

impl Images {
    fn new(shape: [usize; 3], kind: Kind, device: Device, indices: &[u32], options: &LoaderOptions) -> Images {
        let shape = shape.map(|extent| extent as i64);
        let [channels, height, width] = shape;
        let shown = options.augment.map(|seed| {
            let drawn: Vec<Augmentation> = indices.iter().map(|&index| Augmentation::draw(seed, index)).collect();
            let of_each = |value: fn(&Augmentation) -> usize| {
                let values: Vec<i64> = drawn.iter().map(|one| value(one) as i64).collect();
                Tensor::from_slice(&values).to_device(device).view([-1, 1])
            };
            let [row, column] = [height, width].map(|side| Tensor::arange(side, (Kind::Int64, device)));
            // Place width - 1 - x instead of x if it is mirrored.
            let mirrored = &column + of_each(|one| one.flip as usize) * (&column * -2 + (width - 1));
            let rows = (&row + of_each(|one| one.top), height);
            let columns = (mirrored + of_each(|one| one.left), width);
            [rows, columns].map(|(padded, side)| {
                let from = padded - PADDING as i64;
                let inside = from.ge(0).logical_and(&from.lt(side)).to_kind(Kind::Uint8);
                (from.clamp(0, side - 1), inside)
            })
        });
        let per_channel = |values: &[f32]| Tensor::from_slice(values).view([1, channels, 1, 1]).to_device(device);
        let full = (kind == Kind::Uint8).then(|| per_channel(&vec![255.0; channels as usize]));
        let (mean, std) = (per_channel(&options.mean), per_channel(&options.std));
        Images { shape, shown, full, mean, std, channels_last: options.channels_last }
    }

    /// The inputs of the `n` samples `pixels`, the plan's from sample `from` on.
    fn inputs(&self, mut pixels: Tensor, from: i64, n: i64) -> Tensor {
        let [channels, height, width] = self.shape;
        if let Some([rows, columns]) = &self.shown {
            for (axis, (place, inside)) in [(2, rows), (3, columns)] {
                let across = if axis == 2 { [n, 1, height, 1] } else { [n, 1, 1, width] };
                let place = place.narrow(0, from, n).view(across).expand([n, channels, height, width], false);
                pixels = pixels.gather(axis, &place, false) * inside.narrow(0, from, n).view(across);
            }
        }
        // The operations of PyTorch's `(pixels.float() / 255 - mean) / std`, each rounded to float32.
        let pixels = match &self.full {
            Some(full) => pixels.to_kind(Kind::Float) / full,
            None => pixels,
        };
        let images = (pixels - &self.mean) / &self.std;
        match self.channels_last {
            true => images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
            false => images,
        }
    }
}

impl DeviceLoader {
    fn new(form: Form, samples: Tensor, labels: Tensor, plan: BatchPlan, options: LoaderOptions) -> DeviceLoader {
        let (planned, count) = (plan.sizes.iter().sum::<usize>(), labels.numel());
        assert_eq!(planned, plan.indices.len(), "the sizes of the batches must add up to the number of indices");
        assert!(plan.indices.iter().all(|&index| (index as usize) < count), "an index outside the data set");
        let device = samples.device();
        let indices: Vec<i64> = plan.indices.iter().map(|&index| i64::from(index)).collect();
        let images = match form {
            Form::Images { shape, .. } => Some(Images::new(shape, samples.kind(), device, &plan.indices, &options)),
            Form::Tokens { .. } => None,
        };
        let indices = Tensor::from_slice(&indices).to_device(device);
        DeviceLoader { samples, labels, indices, images, sizes: plan.sizes.into_iter(), given: 0 }
    }

    fn next(&mut self) -> Option<Batch> {
        let len = self.sizes.next()?;
        let (from, n) = (self.given, len as i64);
        self.given += n;
        Some(tch::no_grad(|| {
            let indices = self.indices.narrow(0, from, n);
            let samples = self.samples.index_select(0, &indices);
            match &self.images {
                Some(images) => {
                    let targets = self.labels.index_select(0, &indices);
                    Batch { inputs: images.inputs(samples, from, n), targets, len }
                }
                None => {
                    let length = samples.size()[1] - 1;
                    let ids = |first| samples.narrow(1, first, length).contiguous();
                    Batch { inputs: ids(0), targets: ids(1), len }
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{AugmentSeed, open};

    fn compare(dataset: &Arc<Dataset>, options: &LoaderOptions) {
        let plan = BatchPlan { indices: (0..55).map(|i| i * 7 % 60).collect(), sizes: vec![16, 0, 16, 16, 7] };
        let [host, device] = [None, Some(Device::Cpu)].map(|device| {
            Feed::new(dataset.clone(), device, Bytes::MAX).unwrap().batches(plan.clone(), options.clone())
        });
        assert!(matches!(device, Batches::Resident(_)));
        let mut batches = 0;
        for (host, device) in host.zip(device) {
            let (host, device) = (host.unwrap(), device.unwrap());
            assert_eq!((host.len, host.inputs.size()), (device.len, device.inputs.size()));
            assert!(host.inputs.equal(&device.inputs) && host.targets.equal(&device.targets));
            // The strides of a single channel say nothing.
            let says_nothing = host.len == 0 || host.inputs.size().get(1) == Some(&1);
            assert!(says_nothing || host.inputs.stride() == device.inputs.stride());
            batches += 1;
        }
        assert_eq!(batches, 5);
    }

    #[test]
    fn batches_are_the_loaders_bit_for_bit() {
        let seed = AugmentSeed { seed: 5, epoch: 2 };
        for shape in [[3, 32, 32], [2, 9, 20], [1, 3, 2]] {
            let values: usize = shape.iter().product();
            let images = (0..60 * values).map(|i| (i * 31 + i / values * 17) as u8).collect();
            let dataset = Dataset::in_memory(images, (0..60).map(|i| (i * 3 % 10) as u32).collect(), shape, 10);
            let dataset = Arc::new(dataset);
            for (augment, channels_last) in [(None, false), (Some(seed), false), (Some(seed), true)] {
                let (mean, std) = (vec![0.4914, 0.4822, 0.4465], vec![0.2470, 0.2435, 0.2616]);
                let (mean, std) = (mean[..shape[0]].to_vec(), std[..shape[0]].to_vec());
                compare(&dataset, &LoaderOptions { mean, std, augment, channels_last, prefetch: 2, threads: 0 });
            }
        }
    }

    #[test]
    fn sequences_are_the_loaders_too_and_a_large_set_stays_on_the_host() {
        let data = ["data.shape=[5]", "data.classes=40", "data.train_samples=60"].map(str::to_owned);
        let dataset = open(&crate::config::Config::load(None, &data).unwrap().data).unwrap().train;
        let options =
            LoaderOptions { mean: vec![], std: vec![], augment: None, channels_last: false, prefetch: 2, threads: 0 };
        compare(&dataset, &options);
        let bytes = dataset.device_bytes();
        let feed = |most| Feed::new(dataset.clone(), Some(Device::Cpu), most).unwrap();
        assert!(feed(bytes).resident.is_some() && feed(bytes - 1).resident.is_none());
        let mut batches = feed(0).batches(BatchPlan::even(vec![1, 2, 3], 2), options);
        assert_eq!(batches.next().unwrap().unwrap().inputs.size(), [2, 5]);
    }
}
