//! Batch loader, which reads samples and prepares batches ahead on other threads. In: a data set, a rank's indices and the size of
//! each batch. Out: normalized images `[n, channels, height, width]` float32 and classes, or tokens and next tokens, in that order.
//!
//! The threads read samples, turn them into numbers and sleep when they are far enough ahead; the tensors are made on the caller's
//! thread. A libtorch call on a large tensor starts OpenMP threads *per calling thread*, and a second set of them would
//! take the cores from the training. Small batches are sent several at a time: a wake-up costs as much as some images.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use tch::{Kind, Tensor};

use super::prepare::{Packet, Preparer};
use super::{AugmentSeed, Dataset, Form};
use crate::error::Result;
use crate::units::Bytes;

/// Most samples of a packet of several batches, and bytes as float32 (400 kB, so that a packet stays in a core's own cache).
const PACKET: (usize, usize) = (32, 400 << 10);
/// Threads that read a set which is larger than [`FEW_READERS`], and its size: disks and file systems answer several at a time.
const READERS: usize = 4;
const FEW_READERS: Bytes = 1 << 30;

/// Samples that a rank loads, batch by batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPlan {
    /// Indices into the data set, one batch after the other.
    pub indices: Vec<u32>,
    /// Samples per batch; their sum is the number of `indices`. 0 is allowed and gives an empty batch.
    pub sizes: Vec<usize>,
}

impl BatchPlan {
    /// Creates batches of `batch` samples; the last one has the remainder.
    pub fn even(indices: Vec<u32>, batch: usize) -> BatchPlan {
        let sizes = indices.chunks(batch).map(<[u32]>::len).collect();
        BatchPlan { indices, sizes }
    }

    /// Removes the first `batches` batches.
    pub fn skip(&mut self, batches: usize) {
        let samples: usize = self.sizes.drain(..batches.min(self.sizes.len())).sum();
        self.indices.drain(..samples);
    }

    /// Keeps at most the first `batches` batches.
    pub fn truncate(&mut self, batches: usize) {
        self.sizes.truncate(batches);
        self.indices.truncate(self.sizes.iter().sum());
    }
}

/// Options of batch preparation.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Mean per channel; see `std`.
    pub mean: Vec<f32>,
    /// Standard deviation per channel: a u8 pixel becomes `(pixel / 255 - mean) / std`, a float32 one `(pixel - mean) / std`.
    pub std: Vec<f32>,
    /// Seed of crop and flip; `None` leaves the images unchanged.
    pub augment: Option<AugmentSeed>,
    /// Stores images as `[n, height, width, channels]`, libtorch's `channels_last`; their shape stays `[n, channels, height, width]`.
    pub channels_last: bool,
    /// Batches prepared ahead, at least 1; small ones are rounded up to a packet.
    pub prefetch: usize,
    /// Threads that read and prepare; 0: by the size of the set, 1 or 4.
    pub threads: usize,
}

/// Input of one training step on one rank.
#[derive(Debug)]
pub struct Batch {
    /// Images `[n, channels, height, width]` float32, or tokens `[n, length]` int64.
    pub inputs: Tensor,
    /// Classes `[n]`, or next tokens `[n, length]`, int64.
    pub targets: Tensor,
    /// Number of samples, n.
    pub len: usize,
}

/// Iterator over the batches of a [`BatchPlan`], in order. Dropping it early ends its threads. After an error it must not be asked
/// again.
pub struct Loader {
    dataset: Arc<Dataset>,
    sizes: std::vec::IntoIter<usize>,
    channels_last: bool,
    /// Receivers of the threads, which take turns: packet p comes from thread p modulo their number.
    packets: Vec<Receiver<Result<Packet>>>,
    threads: Vec<JoinHandle<()>>,
    /// Packets received.
    received: usize,
    current: Packet,
    /// Samples of `current` that are already used.
    given: usize,
}

impl Loader {
    /// Starts to read and prepare the first batches of `plan`.
    ///
    /// # Panics
    /// The sizes of `plan` do not add up to its indices, or an index lies outside the data set.
    pub fn start(dataset: Arc<Dataset>, plan: BatchPlan, options: LoaderOptions) -> Loader {
        let planned: usize = plan.sizes.iter().sum();
        assert_eq!(planned, plan.indices.len(), "the sizes of the batches must add up to the number of indices");
        assert!(plan.indices.iter().all(|&index| (index as usize) < dataset.len()), "an index outside the data set");

        let packets = packet_sizes(&plan.sizes, dataset.form());
        let count = match options.threads {
            0 if dataset.is_in_files() && dataset.stored_bytes() > FEW_READERS => READERS,
            0 => 1,
            asked => asked,
        };
        let count = count.clamp(1, packets.len().max(1));
        let batches_per_packet = plan.sizes.len().div_ceil(packets.len().max(1)).max(1);
        // Each thread holds one more packet while it waits to send it.
        let queued = options.prefetch.div_ceil(batches_per_packet).div_ceil(count).max(1) - 1;
        let (sizes, channels_last) = (plan.sizes.into_iter(), options.channels_last);
        let work = Arc::new((dataset.clone(), plan.indices, packets, options));
        let start = |number: usize| {
            let (sender, receiver) = sync_channel(queued);
            let work = work.clone();
            let body = move || {
                let (dataset, indices, packets, options) = &*work;
                prepare(dataset, indices, packets, options, (number, count), &sender);
            };
            let thread =
                std::thread::Builder::new().name("hpml-data".into()).spawn(body).expect("a thread can be started");
            (receiver, thread)
        };
        let (packets, threads) = (0..count).map(start).unzip();
        Loader { dataset, sizes, channels_last, packets, threads, received: 0, current: Packet::default(), given: 0 }
    }

    /// Makes the tensors of the next `len` samples of the current packet.
    fn batch(&mut self, len: usize) -> Batch {
        let range = self.given..self.given + len;
        self.given = range.end;
        let n = len as i64;
        match self.dataset.form() {
            Form::Images { shape, .. } => {
                let values: usize = shape.iter().product();
                let pixels = self.current.pixels[range.start * values..range.end * values].as_flattened();
                let [channels, height, width] = shape.map(|extent| extent as i64);
                let inputs = if self.channels_last {
                    Tensor::from_data_size(pixels, &[n, height, width, channels], Kind::Float).permute([0, 3, 1, 2])
                } else {
                    Tensor::from_data_size(pixels, &[n, channels, height, width], Kind::Float)
                };
                Batch { inputs, targets: Tensor::from_slice(&self.current.targets[range]), len }
            }
            Form::Tokens { length, .. } => {
                let range = range.start * length..range.end * length;
                let tensor = |ids: &[i64]| Tensor::from_slice(&ids[range.clone()]).view([n, length as i64]);
                Batch { inputs: tensor(&self.current.tokens), targets: tensor(&self.current.targets), len }
            }
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let len = self.sizes.next()?;
        if len > 0 && self.given == self.current.len {
            let waiting = Instant::now();
            let packets = &self.packets[self.received % self.packets.len()];
            let packet = packets.recv().expect("the data threads prepare every batch of their plan");
            self.dataset.spent_waiting(waiting.elapsed());
            match packet {
                Ok(packet) => self.current = packet,
                Err(error) => return Some(Err(error)),
            }
            self.received += 1;
            self.given = 0;
        }
        Some(Ok(self.batch(len)))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.packets.clear(); // the threads' next send fails
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Samples per packet: as many whole batches as fit, at least one. Empty batches need no packet.
fn packet_sizes(batches: &[usize], form: Form) -> Vec<usize> {
    let values = match form {
        Form::Images { shape, .. } => shape.iter().product(),
        Form::Tokens { length, .. } => 4 * length, // two int64 each
    };
    let most = PACKET.0.min(PACKET.1 / 4 / values.max(1));
    let mut packets: Vec<usize> = Vec::new();
    for &batch in batches.iter().filter(|&&batch| batch > 0) {
        match packets.last_mut() {
            Some(packet) if *packet + batch <= most => *packet += batch,
            _ => packets.push(batch),
        }
    }
    packets
}

/// Body of thread `number` of `count`: sends its packets in order, until the last, an error, or until the receiver is dropped.
fn prepare(
    dataset: &Dataset,
    indices: &[u32],
    packets: &[usize],
    options: &LoaderOptions,
    (number, count): (usize, usize),
    sender: &SyncSender<Result<Packet>>,
) {
    let mut preparer = Preparer::new(dataset, options);
    let mut start = 0;
    for (packet, size) in packets.iter().enumerate() {
        let own = &indices[start..start + size];
        start += size;
        if packet % count == number {
            let prepared = preparer.packet(own);
            let failed = prepared.is_err();
            if sender.send(prepared).is_err() || failed {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sampler;

    const SHAPE: [usize; 3] = [3, 32, 32];

    fn dataset(samples: usize) -> Arc<Dataset> {
        shaped(samples, SHAPE)
    }

    fn shaped(samples: usize, shape: [usize; 3]) -> Arc<Dataset> {
        let values: usize = shape.iter().product();
        let images = (0..samples * values).map(|i| (i * 31 + i / values * 17) as u8).collect();
        Arc::new(Dataset::in_memory(images, (0..samples).map(|i| (i * 3 % 10) as u32).collect(), shape, 10))
    }

    fn options() -> LoaderOptions {
        let (mean, std) = (vec![0.4914, 0.4822, 0.4465], vec![0.2470, 0.2435, 0.2616]);
        LoaderOptions { mean, std, augment: None, channels_last: false, prefetch: 4, threads: 0 }
    }

    fn batches(loader: Loader) -> Vec<Batch> {
        loader.map(|batch| batch.unwrap()).collect()
    }

    /// Makes the batch by libtorch's own arithmetic.
    fn directly(dataset: &Dataset, indices: &[u32], options: &LoaderOptions) -> (Tensor, Tensor) {
        let Form::Images { shape, .. } = dataset.form() else { panic!() };
        let image = |&index: &u32| dataset.images(index as usize..index as usize + 1).unwrap().into_owned();
        let bytes: Vec<u8> = indices.iter().flat_map(image).collect();
        let [channels, height, width] = shape.map(|extent| extent as i64);
        let pixels = Tensor::from_slice(&bytes).view([-1, channels, height, width]).to_kind(Kind::Float);
        let per_channel = |values: &[f32]| Tensor::from_slice(&values[..shape[0]]).view([1, channels, 1, 1]);
        let labels: Vec<i64> = indices.iter().map(|&index| i64::from(dataset.label(index as usize))).collect();
        let images = (pixels / 255.0 - per_channel(&options.mean)) / per_channel(&options.std);
        (images, Tensor::from_slice(&labels))
    }

    #[test]
    fn batches_equal_libtorchs_arithmetic_bit_for_bit_in_both_layouts() {
        let indices: Vec<u32> = (0..199).map(|i| i * 7 % 200).collect();
        for (shape, channels_last, batch, prefetch, threads) in [
            (SHAPE, false, 4, 4, 0),
            (SHAPE, true, 4, 1, 3),
            (SHAPE, false, 50, 1, 1),
            (SHAPE, true, 128, 3, 4),
            (SHAPE, true, 1, 9, 0),
            ([1, 5, 7], false, 3, 2, 2),
            ([2, 40, 90], true, 11, 2, 2),
        ] {
            let dataset = shaped(200, shape);
            let options = LoaderOptions { channels_last, prefetch, threads, ..options() };
            let loader = Loader::start(dataset.clone(), BatchPlan::even(indices.clone(), batch), options.clone());
            let mut taken = 0;
            for (got, own) in batches(loader).into_iter().zip(indices.chunks(batch)) {
                let (images, labels) = directly(&dataset, own, &options);
                assert_eq!(got.len, own.len());
                assert!(got.inputs.equal(&images) && got.targets.equal(&labels), "batch at {taken}");
                let [c, h, w] = shape.map(|extent| extent as i64);
                let strides = if channels_last { [c * h * w, 1, c * w, c] } else { [c * h * w, h * w, w, 1] };
                assert_eq!(got.inputs.stride(), strides);
                taken += own.len();
            }
            assert_eq!(taken, indices.len());
        }
    }

    #[test]
    fn the_target_of_a_token_is_the_next_one() {
        let data = ["data.shape=[5]", "data.classes=40"].map(str::to_owned);
        let set = crate::data::open(&crate::config::Config::load(None, &data).unwrap().data).unwrap().train;
        let loader = Loader::start(set.clone(), BatchPlan::even(vec![7, 2, 9], 2), options());
        let found = batches(loader);
        assert_eq!((found[0].inputs.size(), found[1].targets.size()), (vec![2, 5], vec![1, 5]));
        let ids = set.tokens(9, &mut Vec::new()).unwrap();
        assert!(found[1].inputs.equal(&Tensor::from_slice(&ids[..5]).view([1, 5])));
        assert!(found[1].targets.equal(&Tensor::from_slice(&ids[1..]).view([1, 5])));
    }

    #[test]
    fn a_plan_may_hold_empty_batches() {
        let dataset = dataset(5);
        let plan = BatchPlan { indices: vec![4, 0, 2], sizes: vec![0, 2, 0, 1, 0] };
        let batches = batches(Loader::start(dataset, plan, options()));
        assert_eq!(batches.iter().map(|batch| batch.len).collect::<Vec<_>>(), [0, 2, 0, 1, 0]);
        assert_eq!(batches[0].inputs.size(), [0, 3, 32, 32]);
        assert_eq!(batches[3].targets.int64_value(&[0]), 6);
        let none = Loader::start(self::dataset(0), BatchPlan::even(vec![], 8), options());
        assert_eq!(none.count(), 0);
    }

    #[test]
    fn an_augmented_image_is_the_same_on_any_number_of_ranks() {
        let dataset = dataset(24);
        let options = LoaderOptions { augment: Some(AugmentSeed { seed: 5, epoch: 2 }), ..options() };
        let collect = |world_size, batch| {
            let mut images: Vec<(u32, Tensor)> = Vec::new();
            for rank in 0..world_size {
                let indices = Sampler::new(24, world_size, rank, true, false, world_size as u64).indices();
                let loader = Loader::start(dataset.clone(), BatchPlan::even(indices.clone(), batch), options.clone());
                let all: Vec<Tensor> = batches(loader).into_iter().map(|batch| batch.inputs).collect();
                images.extend(indices.into_iter().zip(Tensor::cat(&all, 0).unbind(0)));
            }
            images.sort_by_key(|(index, _)| *index);
            images
        };
        let one = collect(1, 8);
        let differ =
            one.iter().filter(|(i, image)| !image.equal(&directly(&dataset, &[*i], &options).0.get(0))).count();
        assert!(differ > 15, "{differ} of 24 were changed");
        for other in [collect(4, 5), collect(3, 1)] {
            assert!(one.iter().zip(&other).all(|((i, a), (j, b))| i == j && a.equal(b)));
        }
    }

    #[test]
    fn dropping_it_early_ends_its_threads() {
        let dataset = dataset(100);
        for (take, threads) in [(0, 1), (1, 2), (3, 3)] {
            let plan = BatchPlan::even((0..100).collect(), 8);
            let options = LoaderOptions { prefetch: 1, threads, ..options() };
            let mut loader = Loader::start(dataset.clone(), plan, options);
            assert_eq!(loader.by_ref().take(take).count(), take);
        }
        assert_eq!(Arc::strong_count(&dataset), 1); // the threads held the others
    }

    #[test]
    fn small_batches_travel_together_and_large_ones_alone() {
        let form = |shape| Form::Images { shape, classes: 10 };
        assert_eq!(packet_sizes(&[4; 10], form(SHAPE)), [32, 8]);
        assert_eq!(packet_sizes(&[128, 128, 0, 40], form(SHAPE)), [128, 128, 40]);
        assert_eq!(packet_sizes(&[4; 3], form([3, 224, 224])), [4; 3]);
        assert!(packet_sizes(&[0, 0], form(SHAPE)).is_empty());
    }

    #[test]
    fn the_last_batch_has_what_is_left() {
        assert_eq!(BatchPlan::even((0..10).collect(), 4).sizes, [4, 4, 2]);
        assert_eq!(BatchPlan::even((0..8).collect(), 4).sizes, [4, 4]);
    }
}
