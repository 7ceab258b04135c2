//! Batch loader, which prepares batches ahead on another thread. In: a data set, a rank's indices and the size of each batch.
//! Out: normalized images `[n, 3, 32, 32]` float32 and labels, in that order.
//!
//! The thread turns pixels into float32 and sleeps when it is far enough ahead; the tensors are made on the caller's
//! thread. A libtorch call on a large tensor starts OpenMP threads *per calling thread*, and a second set of them would
//! take the cores from the training. Small batches are sent several at a time: a wake-up costs as much as some images.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tch::{Kind, Tensor};

use super::augment::Augmentation;
use super::{AugmentSeed, Dataset, IMAGE_BYTES, PLANE, SIDE};

/// Most images of a packet of several batches (400 kB, so that a packet stays in a core's own cache).
const PACKET_IMAGES: usize = 32;

/// Bytes of a float32, the form in which tch takes data with a shape.
type FloatBytes = [u8; 4];

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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoaderOptions {
    /// Mean per channel; see `std`.
    pub mean: [f32; 3],
    /// Standard deviation per channel: a pixel becomes `(pixel / 255 - mean) / std`.
    pub std: [f32; 3],
    /// Seed of crop and flip; `None` leaves the images unchanged.
    pub augment: Option<AugmentSeed>,
    /// Stores images as `[n, 32, 32, 3]`, libtorch's `channels_last`; their shape stays `[n, 3, 32, 32]`.
    pub channels_last: bool,
    /// Batches prepared ahead, at least 1; small ones are rounded up to a packet.
    pub prefetch: usize,
}

/// Input of one training step on one rank.
#[derive(Debug)]
pub struct Batch {
    /// `[n, c, h, w]` float32 of images, `[n, t]` int64 of tokens.
    pub inputs: Tensor,
    /// `[n]` int64 of images, `[n, t]` of tokens.
    pub targets: Tensor,
    /// Number of samples, n.
    pub len: usize,
}

/// Iterator over the batches of a [`BatchPlan`], in order. Dropping it early ends its thread.
pub struct Loader {
    sizes: std::vec::IntoIter<usize>,
    channels_last: bool,
    packets: Option<Receiver<Packet>>,
    thread: Option<JoinHandle<()>>,
    current: Packet,
    /// Images of `current` that are already used.
    given: usize,
}

/// Several whole batches, prepared except for the tensors.
#[derive(Default)]
struct Packet {
    /// `[n, 3, 32, 32]` or, channels last, `[n, 32, 32, 3]`.
    pixels: Vec<FloatBytes>,
    labels: Vec<i64>,
}

impl Loader {
    /// Starts to prepare the first batches of `plan`.
    ///
    /// # Panics
    /// The sizes of `plan` do not add up to its indices, or an index lies outside the data set.
    pub fn start(dataset: Arc<Dataset>, plan: BatchPlan, options: LoaderOptions) -> Loader {
        let planned: usize = plan.sizes.iter().sum();
        assert_eq!(planned, plan.indices.len(), "the sizes of the batches must add up to the number of indices");
        assert!(plan.indices.iter().all(|&index| (index as usize) < dataset.len()), "an index outside the data set");

        let packets = packet_sizes(&plan.sizes);
        let batches_per_packet = plan.sizes.len().div_ceil(packets.len().max(1)).max(1);
        // The thread holds one more packet while it waits to send it.
        let queued = options.prefetch.div_ceil(batches_per_packet).max(1) - 1;
        let (sender, receiver) = sync_channel(queued);
        let indices = plan.indices;
        let thread = std::thread::Builder::new()
            .name("hpml-data".into())
            .spawn(move || prepare(&dataset, &indices, &packets, &options, &sender))
            .expect("a thread can be started");
        Loader {
            sizes: plan.sizes.into_iter(),
            channels_last: options.channels_last,
            packets: Some(receiver),
            thread: Some(thread),
            current: Packet::default(),
            given: 0,
        }
    }
}

impl Iterator for Loader {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let len = self.sizes.next()?;
        if len > 0 && self.given == self.current.labels.len() {
            let packets = self.packets.as_ref().expect("open until drop");
            self.current = packets.recv().expect("the data thread prepares every batch of its plan");
            self.given = 0;
        }
        let range = self.given..self.given + len;
        self.given = range.end;
        let pixels = self.current.pixels[range.start * IMAGE_BYTES..range.end * IMAGE_BYTES].as_flattened();
        let (n, side) = (len as i64, SIDE as i64);
        let images = if self.channels_last {
            Tensor::from_data_size(pixels, &[n, side, side, 3], Kind::Float).permute([0, 3, 1, 2])
        } else {
            Tensor::from_data_size(pixels, &[n, 3, side, side], Kind::Float)
        };
        Some(Batch { inputs: images, targets: Tensor::from_slice(&self.current.labels[range]), len })
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.packets = None; // the thread's next send fails
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Images per packet: as many whole batches as fit, at least one. Empty batches need no packet.
fn packet_sizes(batches: &[usize]) -> Vec<usize> {
    let mut packets: Vec<usize> = Vec::new();
    for &batch in batches.iter().filter(|&&batch| batch > 0) {
        match packets.last_mut() {
            Some(packet) if *packet + batch <= PACKET_IMAGES => *packet += batch,
            _ => packets.push(batch),
        }
    }
    packets
}

/// Body of the thread: sends all packets in order, until the last or until the receiver is dropped.
fn prepare(
    dataset: &Dataset,
    mut indices: &[u32],
    packets: &[usize],
    options: &LoaderOptions,
    sender: &SyncSender<Packet>,
) {
    let normalized = Normalized::new(options.mean, options.std);
    let mut augmented = [0; IMAGE_BYTES];
    for &images in packets {
        let own;
        (own, indices) = indices.split_at(images);
        let mut pixels = vec![FloatBytes::default(); images * IMAGE_BYTES];
        for (&index, out) in own.iter().zip(pixels.chunks_exact_mut(IMAGE_BYTES)) {
            let mut image = dataset.image(index as usize);
            if let Some(seed) = options.augment {
                Augmentation::draw(seed, index).apply(image, &mut augmented);
                image = &augmented;
            }
            normalized.write(image, out, options.channels_last);
        }
        let labels = own.iter().map(|&index| i64::from(dataset.labels[index as usize])).collect();
        if sender.send(Packet { pixels, labels }).is_err() {
            return;
        }
    }
}

/// Normalized value of each of the 256 pixel values, per channel.
struct Normalized([[FloatBytes; 256]; 3]);

impl Normalized {
    /// Rounds as PyTorch's `(pixels.float() / 255 - mean) / std` does: three operations, each to float32.
    fn new(mean: [f32; 3], std: [f32; 3]) -> Normalized {
        let value = |channel: usize, pixel: usize| (pixel as f32 / 255.0 - mean[channel]) / std[channel];
        Normalized(std::array::from_fn(|channel| std::array::from_fn(|pixel| value(channel, pixel).to_ne_bytes())))
    }

    /// Writes `image` `[3, 32, 32]`, normalized, to `out` `[3, 32, 32]` or `[32, 32, 3]`.
    fn write(&self, image: &[u8], out: &mut [FloatBytes], channels_last: bool) {
        let Normalized([red, green, blue]) = self;
        if channels_last {
            let (r, rest) = image.split_at(PLANE);
            let (g, b) = rest.split_at(PLANE);
            for (((out, &r), &g), &b) in out.chunks_exact_mut(3).zip(r).zip(g).zip(b) {
                out[0] = red[usize::from(r)];
                out[1] = green[usize::from(g)];
                out[2] = blue[usize::from(b)];
            }
        } else {
            let planes = image.chunks_exact(PLANE).zip(out.chunks_exact_mut(PLANE));
            for ((plane, out), table) in planes.zip([red, green, blue]) {
                for (out, &pixel) in out.iter_mut().zip(plane) {
                    *out = table[usize::from(pixel)];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sampler;

    fn dataset(samples: usize) -> Arc<Dataset> {
        let images = (0..samples * IMAGE_BYTES).map(|i| (i * 31 + i / 3072 * 17) as u8).collect();
        Arc::new(Dataset { images, labels: (0..samples).map(|i| (i * 3 % 10) as u8).collect() })
    }

    fn options() -> LoaderOptions {
        let (mean, std) = ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]);
        LoaderOptions { mean, std, augment: None, channels_last: false, prefetch: 4 }
    }

    /// Makes the batch by libtorch's own arithmetic.
    fn directly(dataset: &Dataset, indices: &[u32], options: &LoaderOptions) -> (Tensor, Tensor) {
        let bytes: Vec<u8> = indices.iter().flat_map(|&index| dataset.image(index as usize).to_vec()).collect();
        let pixels = Tensor::from_slice(&bytes).view([indices.len() as i64, 3, 32, 32]).to_kind(Kind::Float);
        let per_channel = |values: &[f32; 3]| Tensor::from_slice(values).view([1, 3, 1, 1]);
        let labels: Vec<i64> = indices.iter().map(|&index| i64::from(dataset.labels[index as usize])).collect();
        let images = (pixels / 255.0 - per_channel(&options.mean)) / per_channel(&options.std);
        (images, Tensor::from_slice(&labels))
    }

    #[test]
    fn batches_equal_libtorchs_arithmetic_bit_for_bit_in_both_layouts() {
        let dataset = dataset(200);
        let indices: Vec<u32> = (0..199).map(|i| i * 7 % 200).collect();
        for (channels_last, batch, prefetch) in
            [(false, 4, 4), (true, 4, 1), (false, 50, 1), (true, 128, 3), (true, 1, 9)]
        {
            let options = LoaderOptions { channels_last, prefetch, ..options() };
            let loader = Loader::start(dataset.clone(), BatchPlan::even(indices.clone(), batch), options);
            let mut taken = 0;
            for (got, own) in loader.zip(indices.chunks(batch)) {
                let (images, labels) = directly(&dataset, own, &options);
                assert_eq!(got.len, own.len());
                assert!(got.inputs.equal(&images) && got.targets.equal(&labels), "batch at {taken}");
                let strides = if channels_last { vec![3072, 1, 96, 3] } else { vec![3072, 1024, 32, 1] };
                assert_eq!(got.inputs.stride(), strides);
                taken += own.len();
            }
            assert_eq!(taken, indices.len());
        }
    }

    #[test]
    fn a_plan_may_hold_empty_batches() {
        let dataset = dataset(5);
        let plan = BatchPlan { indices: vec![4, 0, 2], sizes: vec![0, 2, 0, 1, 0] };
        let batches: Vec<Batch> = Loader::start(dataset, plan, options()).collect();
        assert_eq!(batches.iter().map(|batch| batch.len).collect::<Vec<_>>(), [0, 2, 0, 1, 0]);
        assert_eq!(batches[0].inputs.size(), [0, 3, 32, 32]);
        assert_eq!(batches[3].targets.int64_value(&[0]), 6);
        let none = Loader::start(Arc::new(Dataset::with_capacity(0)), BatchPlan::even(vec![], 8), options());
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
                let loader = Loader::start(dataset.clone(), BatchPlan::even(indices.clone(), batch), options);
                let all: Vec<Tensor> = loader.map(|batch| batch.inputs).collect();
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
    fn dropping_it_early_ends_its_thread() {
        let dataset = dataset(100);
        for take in [0, 1, 3] {
            let plan = BatchPlan::even((0..100).collect(), 8);
            let mut loader = Loader::start(dataset.clone(), plan, LoaderOptions { prefetch: 1, ..options() });
            assert_eq!(loader.by_ref().take(take).count(), take);
        }
        assert_eq!(Arc::strong_count(&dataset), 1); // the threads held the others
    }

    #[test]
    fn small_batches_travel_together_and_large_ones_alone() {
        assert_eq!(packet_sizes(&[4; 10]), [32, 8]);
        assert_eq!(packet_sizes(&[128, 128, 0, 40]), [128, 128, 40]);
        assert!(packet_sizes(&[0, 0]).is_empty());
    }

    #[test]
    fn the_last_batch_has_what_is_left() {
        assert_eq!(BatchPlan::even((0..10).collect(), 4).sizes, [4, 4, 2]);
        assert_eq!(BatchPlan::even((0..8).collect(), 4).sizes, [4, 4]);
    }
}
