//! A data set: samples of one form, read by index from a [`Source`], and their labels. In: a source and what it holds. Out: pixels in
//! planes, whatever the order and the type in which they are stored; token ids; labels. A value that cannot be trained on (NaN, a
//! token outside the vocabulary) is an error of its sample.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Instant;

use super::Form;
use super::array::Origin;
use super::source::{Counters, Memory, Reads, Source};
use crate::config;
use crate::error::Result;
use crate::store::Number;
use crate::units::Bytes;

/// Largest set of float32 images or tokens whose values are all checked before the first step; of a larger one each sample is checked
/// when it is read.
const CHECKED_BYTES: usize = 256 << 20;
/// Samples of which the fingerprint is made at most, and bytes of them.
const FINGERPRINT: (usize, usize) = (1024, 64 << 20);

/// Samples of one form, and their labels.
pub struct Dataset {
    form: Form,
    stored: Stored,
    samples: usize,
    labels: Labels,
    source: Box<dyn Source>,
    origin: Origin,
    counters: Counters,
}

/// Numbers of a sample as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    /// Type of the numbers.
    pub(super) number: Number,
    /// Whether images are `[height, width, channels]`; else `[channels, height, width]`.
    pub(super) channels_last: bool,
    /// Whether samples come from files.
    pub(super) in_files: bool,
}

/// Class of each image.
pub(super) enum Labels {
    /// Labels of all samples.
    Held(Vec<u32>),
    /// Label of a sample by its index.
    Made(Box<dyn Fn(usize) -> u32 + Send + Sync>),
    /// Token sequences have their targets in them.
    None,
}

/// A pixel as it is stored.
pub(super) trait Pixel: Copy + Default {
    /// Decodes pixels of the machine's byte order.
    fn decode(bytes: &[u8], out: &mut [Self]);
    /// Whether the pixel is a finite number.
    fn is_usable(self) -> bool;
}

impl Pixel for u8 {
    fn decode(bytes: &[u8], out: &mut [u8]) {
        out.copy_from_slice(bytes);
    }

    fn is_usable(self) -> bool {
        true
    }
}

impl Pixel for f32 {
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
            *out = f32::from_ne_bytes(*bytes);
        }
    }

    fn is_usable(self) -> bool {
        self.is_finite()
    }
}

impl Dataset {
    /// The `samples` first samples of `source`.
    pub(super) fn new(
        form: Form,
        stored: Stored,
        samples: usize,
        labels: Labels,
        source: Box<dyn Source>,
        origin: Origin,
    ) -> Dataset {
        Dataset { form, stored, samples, labels, source, origin, counters: Counters::default() }
    }

    /// Images `[n, channels, height, width]` in memory, with their labels.
    ///
    /// # Panics
    /// There are more or fewer labels than images of `shape`.
    pub fn in_memory(images: Vec<u8>, labels: Vec<u32>, shape: [usize; 3], classes: usize) -> Dataset {
        assert_eq!(images.len(), labels.len() * shape.iter().product::<usize>(), "a label per image");
        let stored = Stored { number: Number::U8, channels_last: false, in_files: false };
        let origin = Origin::new("memory".as_ref(), "");
        let (samples, labels) = (labels.len(), Labels::Held(labels));
        Dataset::new(Form::Images { shape, classes }, stored, samples, labels, Box::new(Memory(images)), origin)
    }

    /// The set with its samples in `source`, in the order of images `[channels, height, width]`, and no longer in files.
    pub(super) fn held_in(self, source: Box<dyn Source>) -> Dataset {
        self.take_reads();
        let stored = Stored { in_files: false, channels_last: false, ..self.stored };
        Dataset { source, stored, ..self }
    }

    /// Form of the samples.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// Whether the samples are read from files, while they are trained on.
    pub fn is_in_files(&self) -> bool {
        self.stored.in_files
    }

    /// Whether the images are float32, which are taken as they are; u8 pixels are divided by 255.
    pub fn is_float(&self) -> bool {
        self.stored.number == Number::F32
    }

    /// Mean and standard deviation per channel; none for token sequences.
    ///
    /// # Panics
    /// `data` is not what the set was opened with.
    pub fn normalization(&self, data: &config::Data) -> [Vec<f32>; 2] {
        match self.form {
            Form::Images { shape, .. } => data.normalization(shape[0]).expect("checked when the set was opened"),
            Form::Tokens { .. } => [Vec::new(), Vec::new()],
        }
    }

    /// Class of image `index`; 0 for token sequences.
    pub fn label(&self, index: usize) -> u32 {
        match &self.labels {
            Labels::Held(labels) => labels[index],
            Labels::Made(label) => label(index),
            Labels::None => 0,
        }
    }

    /// Classes of the images of `range`.
    pub fn labels(&self, range: Range<usize>) -> Vec<u32> {
        range.map(|index| self.label(index)).collect()
    }

    /// Images of `range` as u8, `[n, channels, height, width]`.
    ///
    /// # Errors
    /// They cannot be read, or are no u8 images.
    pub fn images(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        if self.stored.number != Number::U8 || !matches!(self.form, Form::Images { .. }) {
            let found = match self.form {
                Form::Images { .. } => "float32 images",
                Form::Tokens { .. } => "token sequences",
            };
            return Err(self
                .origin
                .error(format!("{found}: int8 takes images of uint8 pixels; write the set as such")));
        }
        self.bytes(range).map(Cow::Owned)
    }

    /// Fingerprint that identifies the samples, whatever format they are stored in: a hash of all labels and of some samples, evenly
    /// spaced, in hexadecimal.
    ///
    /// # Errors
    /// A sample cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for index in 0..self.samples {
            // One byte, as in the first release, whose sets had ten classes.
            match (self.form, self.label(index)) {
                (Form::Images { classes: ..=256, .. }, label) => hasher.update(&[label as u8]),
                (Form::Images { .. }, label) => hasher.update(&label.to_le_bytes()),
                (Form::Tokens { .. }, _) => break,
            };
        }
        let (most, bytes) = FINGERPRINT;
        let most = (bytes / self.sample_bytes()).clamp(1, most);
        // Every 61st of CIFAR-10's form, as in the first release, whose files must still be known.
        let least = if self.form == Form::CIFAR10 && self.stored.number == Number::U8 { 61 } else { 1 };
        if let Form::Tokens { .. } = self.form {
            hasher.update(&(self.samples as u64).to_le_bytes());
        }
        for index in (0..self.samples).step_by(self.samples.div_ceil(most).max(least)) {
            hasher.update(&self.bytes(index..index + 1)?);
        }
        self.take_reads();
        Ok(hasher.finalize().to_hex()[..16].to_owned())
    }

    /// Checks the values of all samples, if they are of a kind that can be wrong and the set is small.
    ///
    /// # Errors
    /// A value is NaN or infinite, or a token lies outside the vocabulary.
    pub(super) fn check(&self) -> Result<()> {
        let can_be_wrong = self.is_float() || matches!(self.form, Form::Tokens { .. });
        if self.stored.in_files && can_be_wrong && self.samples * self.sample_bytes() <= CHECKED_BYTES {
            for index in 0..self.samples {
                self.bytes(index..index + 1)?;
            }
        }
        self.take_reads();
        Ok(())
    }

    /// Bytes of all samples as stored.
    pub(super) fn stored_bytes(&self) -> Bytes {
        self.samples as Bytes * self.sample_bytes() as Bytes
    }

    /// Bytes of all samples in the memory of a device.
    pub(super) fn device_bytes(&self) -> Bytes {
        let value = match self.form {
            Form::Images { .. } => self.stored.number.bytes(),
            Form::Tokens { .. } => 8,
        };
        self.samples as Bytes * (self.values() * value) as Bytes
    }

    /// Samples of `range`, checked: pixels as stored, in planes; token ids as int64.
    pub(super) fn bytes(&self, range: Range<usize>) -> Result<Vec<u8>> {
        let (mut raw, mut bytes) = (Vec::new(), Vec::with_capacity(range.len() * self.sample_bytes()));
        let mut floats = vec![0f32; if self.is_float() { self.values() } else { 0 }];
        let mut pixels = vec![0u8; if self.stored.number == Number::U8 { self.values() } else { 0 }];
        for index in range {
            match (self.form, self.stored.number) {
                (Form::Images { .. }, Number::F32) => {
                    self.pixels(index, &mut raw, &mut floats)?;
                    bytes.extend(floats.iter().flat_map(|value| value.to_ne_bytes()));
                }
                (Form::Images { .. }, _) => {
                    self.pixels(index, &mut raw, &mut pixels)?;
                    bytes.extend_from_slice(&pixels);
                }
                (Form::Tokens { .. }, _) => {
                    bytes.extend(self.tokens(index, &mut raw)?.into_iter().flat_map(i64::to_ne_bytes));
                }
            }
        }
        Ok(bytes)
    }

    /// Values of a sample.
    fn values(&self) -> usize {
        match self.form {
            Form::Images { shape, .. } => shape.iter().product(),
            Form::Tokens { length, .. } => length + 1,
        }
    }

    fn sample_bytes(&self) -> usize {
        self.values() * self.stored.number.bytes()
    }

    /// Reads sample `index` as stored into `raw`.
    fn raw(&self, index: usize, raw: &mut Vec<u8>) -> Result<()> {
        raw.resize(self.sample_bytes(), 0);
        if !self.stored.in_files {
            return self.source.read(index, raw, &self.counters);
        }
        let started = Instant::now();
        let read = self.source.read(index, raw, &self.counters);
        self.counters.spent_reading(started.elapsed());
        read
    }

    /// Reads image `index` as planes `[channels, height, width]` into `out`, by way of `raw`.
    ///
    /// # Errors
    /// It cannot be read, or a pixel is NaN or infinite.
    pub(super) fn pixels<T: Pixel>(&self, index: usize, raw: &mut Vec<u8>, out: &mut [T]) -> Result<()> {
        let Form::Images { shape: [channels, height, width], .. } = self.form else { panic!("tokens have no pixels") };
        self.raw(index, raw)?;
        if self.stored.channels_last && channels > 1 {
            let (size, plane) = (size_of::<T>(), height * width);
            let mut pixel = vec![T::default(); channels];
            for (place, bytes) in raw.chunks_exact(channels * size).enumerate() {
                T::decode(bytes, &mut pixel);
                for (channel, value) in pixel.iter().enumerate() {
                    out[channel * plane + place] = *value;
                }
            }
        } else {
            T::decode(raw, out);
        }
        match out.iter().position(|value| !value.is_usable()) {
            None => Ok(()),
            Some(at) => {
                let (channel, row, column) = (at / (height * width), at / width % height, at % width);
                let message = format!(
                    "pixel [{channel}, {row}, {column}] is NaN or infinite: mend the images (numpy.isfinite finds them)"
                );
                Err(self.origin.error_at(index, message))
            }
        }
    }

    /// Reads the ids of sequence `index`, one more than its length, by way of `raw`.
    ///
    /// # Errors
    /// It cannot be read, or an id lies outside the vocabulary.
    pub(super) fn tokens(&self, index: usize, raw: &mut Vec<u8>) -> Result<Vec<i64>> {
        let Form::Tokens { vocabulary, .. } = self.form else { panic!("images have no tokens") };
        self.raw(index, raw)?;
        let ids = self.stored.number.decode(raw);
        match ids.iter().position(|id| !(0..vocabulary as i64).contains(id)) {
            None => Ok(ids),
            Some(at) => {
                let (id, last) = (ids[at], vocabulary - 1);
                let message =
                    format!("token {at} is {id}, expected 0 to {last}: set data.classes to the vocabulary of the set");
                Err(self.origin.error_at(index, message))
            }
        }
    }

    /// Adds to the time that the training waited for samples.
    pub(super) fn spent_waiting(&self, time: std::time::Duration) {
        self.counters.spent_waiting(time);
    }

    /// Returns what reading has cost on this rank since the last call.
    pub fn take_reads(&self) -> Reads {
        self.counters.take()
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(out, "{} samples: {}", self.samples, self.form)
    }
}
