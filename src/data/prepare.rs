//! Samples as the network takes them: images augmented and normalized, sequences cut into inputs and targets. In: a data set and
//! indices. Out: numbers in the order of the tensors. Calls nothing of libtorch: it runs on the loader's threads.

use super::augment::Augmentation;
use super::dataset::Pixel;
use super::{Dataset, Form, LoaderOptions};
use crate::error::Result;

/// Bytes of a float32, the form in which tch takes data with a shape.
pub(super) type FloatBytes = [u8; 4];

/// Several samples, prepared except for the tensors.
#[derive(Default)]
pub(super) struct Packet {
    /// Number of samples.
    pub(super) len: usize,
    /// Pixels `[n, channels, height, width]` or, channels last, `[n, height, width, channels]`; empty for tokens.
    pub(super) pixels: Vec<FloatBytes>,
    /// Ids `[n, length]`; empty for images.
    pub(super) tokens: Vec<i64>,
    /// Classes `[n]`, or next tokens `[n, length]`.
    pub(super) targets: Vec<i64>,
}

/// Prepares samples of one data set; each thread has its own.
pub(super) struct Preparer<'a> {
    dataset: &'a Dataset,
    options: &'a LoaderOptions,
    raw: Vec<u8>,
    normalized: Normalized,
}

impl<'a> Preparer<'a> {
    pub(super) fn new(dataset: &'a Dataset, options: &'a LoaderOptions) -> Preparer<'a> {
        let normalized = match (dataset.form(), dataset.is_float()) {
            (Form::Images { shape, .. }, false) => Normalized::pixels(shape[0], options),
            _ => Normalized(Vec::new()),
        };
        Preparer { dataset, options, raw: Vec::new(), normalized }
    }

    /// Prepares the samples `indices`, in that order.
    ///
    /// # Errors
    /// A sample cannot be read or trained on.
    pub(super) fn packet(&mut self, indices: &[u32]) -> Result<Packet> {
        let mut packet = Packet { len: indices.len(), ..Packet::default() };
        match self.dataset.form() {
            Form::Images { shape, .. } => {
                let values: usize = shape.iter().product();
                packet.pixels = vec![FloatBytes::default(); indices.len() * values];
                packet.targets = indices.iter().map(|&index| i64::from(self.dataset.label(index as usize))).collect();
                if self.dataset.is_float() {
                    self.images::<f32>(indices, shape, &mut packet.pixels)?;
                } else {
                    self.images::<u8>(indices, shape, &mut packet.pixels)?;
                }
            }
            Form::Tokens { length, .. } => {
                for &index in indices {
                    let ids = self.dataset.tokens(index as usize, &mut self.raw)?;
                    packet.tokens.extend_from_slice(&ids[..length]);
                    packet.targets.extend_from_slice(&ids[1..]);
                }
            }
        }
        Ok(packet)
    }

    fn images<T: Pixel + Normal>(&mut self, indices: &[u32], shape: [usize; 3], out: &mut [FloatBytes]) -> Result<()> {
        let values: usize = shape.iter().product();
        let (mut image, mut augmented) = (vec![T::default(); values], vec![T::default(); values]);
        for (&index, out) in indices.iter().zip(out.chunks_exact_mut(values)) {
            self.dataset.pixels(index as usize, &mut self.raw, &mut image)?;
            if let Some(seed) = self.options.augment {
                Augmentation::draw(seed, index).apply(&image, shape, &mut augmented);
                std::mem::swap(&mut image, &mut augmented);
            }
            let plane = shape[1] * shape[2];
            for (channel, pixels) in image.chunks_exact(plane).enumerate() {
                let normalize = T::normalize(&self.normalized, self.options, channel);
                if self.options.channels_last {
                    for (out, &pixel) in out[channel..].iter_mut().step_by(shape[0]).zip(pixels) {
                        *out = normalize(pixel);
                    }
                } else {
                    for (out, &pixel) in out[channel * plane..].iter_mut().zip(pixels) {
                        *out = normalize(pixel);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Normalized value of each of the 256 pixel values, per channel.
struct Normalized(Vec<[FloatBytes; 256]>);

impl Normalized {
    /// Rounds as PyTorch's `(pixels.float() / 255 - mean) / std` does: three operations, each to float32.
    fn pixels(channels: usize, options: &LoaderOptions) -> Normalized {
        let table = |channel: usize| {
            let (mean, std) = (options.mean[channel], options.std[channel]);
            std::array::from_fn(|pixel| ((pixel as f32 / 255.0 - mean) / std).to_ne_bytes())
        };
        Normalized((0..channels).map(table).collect())
    }
}

/// A pixel that can be normalized.
trait Normal: Sized {
    /// The function that normalizes pixels of `channel`.
    fn normalize(tables: &Normalized, options: &LoaderOptions, channel: usize) -> impl Fn(Self) -> FloatBytes;
}

impl Normal for u8 {
    fn normalize(tables: &Normalized, _: &LoaderOptions, channel: usize) -> impl Fn(u8) -> FloatBytes {
        let table = &tables.0[channel];
        move |pixel| table[usize::from(pixel)]
    }
}

impl Normal for f32 {
    fn normalize(_: &Normalized, options: &LoaderOptions, channel: usize) -> impl Fn(f32) -> FloatBytes {
        let (mean, std) = (options.mean[channel], options.std[channel]);
        move |pixel| ((pixel - mean) / std).to_ne_bytes()
    }
}
