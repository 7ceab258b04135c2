//! Compressed all-reduce of gradients. In: a bucket's gradients. Out: their sum over the ranks (or the compression's
//! approximation of it), bit-identical on all ranks. With error feedback, what one step's compression drops is added to the
//! next step's gradient, so that nothing is lost, only late.
//!
//! The time to compress and restore counts in a step's `comm`, because an uncompressed all-reduce has none of it. The
//! ledger's seconds are those inside the collectives alone. One rank sends nothing and compresses nothing.

mod half;
mod int8;
mod powersgd;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::collective::{AllReduce, Bf16, Finished, Fp16, Region, WaitPolicy, Waits};
use crate::config::{self, Compression};
use crate::error::Result;
use crate::metrics::Kind;
use crate::model::Model;
use crate::units::Bytes;
use half::Half;
use int8::Int8;
use powersgd::PowerSgd;

/// A method of summing gradients that sends a compressed form of them.
trait Compressor: Send {
    /// Replaces `gradients`, a bucket, by their sum over the ranks. Adds the waits for slower ranks to `waits`.
    fn reduce(
        &mut self,
        all_reduce: &AllReduce,
        gradients: &mut Region,
        policy: WaitPolicy,
        waits: &mut Waits,
    ) -> Result<()>;

    /// Bytes that [`reduce`](Self::reduce) of `elements` adds to the ledger.
    fn bytes(&self, elements: &Range<usize>) -> u64;

    /// State carried from step to step, by name.
    fn state(&mut self) -> Vec<(&'static str, &mut [f32])> {
        Vec::new()
    }
}

/// Sums gradients over the ranks as configured. All ranks call its methods together.
pub struct Reducer {
    all_reduce: Arc<AllReduce>,
    /// The compression, `None` for none; locked per reduction, because the communication thread and the caller take turns.
    compressor: Mutex<Option<Box<dyn Compressor>>>,
    /// Steps left before compression starts.
    plain_steps: AtomicUsize,
}

impl Reducer {
    /// Creates the configured reducer for the gradients of `model`'s parameters, contiguous in one buffer.
    ///
    /// # Errors
    /// The compression's buffers cannot be allocated.
    pub fn new(all_reduce: Arc<AllReduce>, model: &Model, parallel: &config::Parallel, seed: u64) -> Result<Reducer> {
        let elements = model.parameter_count();
        let compressor: Option<Box<dyn Compressor>> = match parallel.compression {
            _ if all_reduce.communicator().size() == 1 => None,
            Compression::None => None,
            Compression::Bf16 => Some(Box::new(Half::<Bf16>::new(&all_reduce, elements)?)),
            Compression::Fp16 => Some(Box::new(Half::<Fp16>::new(&all_reduce, elements)?)),
            Compression::Int8 => Some(Box::new(Int8::new(elements, parallel.compression_block))),
            Compression::PowerSgd => {
                let shapes: Vec<Vec<i64>> = model.parameters().map(|entry| entry.tensor.size()).collect();
                Some(Box::new(PowerSgd::new(&all_reduce, &shapes, parallel.compression_rank, seed)?))
            }
        };
        Ok(Reducer {
            all_reduce,
            compressor: Mutex::new(compressor),
            plain_steps: AtomicUsize::new(parallel.compression_start),
        })
    }

    /// Counts `steps` steps as done: the first `parallel.compression_start` of a training are not compressed.
    pub fn steps_done(&self, steps: usize) {
        let left = self.plain_steps.load(Ordering::Relaxed);
        self.plain_steps.store(left.saturating_sub(steps), Ordering::Relaxed);
    }

    /// Replaces `gradients`, a bucket of the buffer, by their sum over the ranks. All ranks reduce the buckets in one order. Returns what
    /// it took, and the bytes that the ledger counts.
    ///
    /// # Errors
    /// A collective failed.
    pub fn reduce(&self, gradients: &mut Region, policy: WaitPolicy) -> Result<(Finished, Bytes)> {
        let mut compressor = self.compressor();
        let compressor = compressor.as_mut().filter(|_| self.plain_steps.load(Ordering::Relaxed) == 0);
        let Some(compressor) = compressor else {
            return Ok((self.all_reduce.reduce(Kind::Gradients, gradients, policy)?, gradients.bytes() as Bytes));
        };
        let bytes = compressor.bytes(&gradients.range());
        Ok((Finished::of(|waits| compressor.reduce(&self.all_reduce, gradients, policy, waits))?, bytes))
    }

    /// Bytes that the ledger counts for `elements` once compression has started.
    pub fn bytes(&self, elements: &Range<usize>) -> u64 {
        match &*self.compressor() {
            Some(compressor) => compressor.bytes(elements),
            None => (elements.len() * size_of::<f32>()) as u64,
        }
    }

    /// Compression state of this rank, carried from step to step, by name: with it and the parameters a training resumes as if
    /// never interrupted. Every rank has its own, of equal length. Empty without error feedback.
    pub fn state(&self) -> Vec<(String, Vec<f32>)> {
        let mut compressor = self.compressor();
        let state = compressor.as_mut().map_or_else(Vec::new, |compressor| compressor.state());
        state.into_iter().map(|(name, values)| (name.to_owned(), values.to_vec())).collect()
    }

    /// Restores what [`state`](Self::state) returned.
    ///
    /// # Errors
    /// `saved` has other names or lengths; the text says which, and nothing has changed.
    pub fn restore(&self, saved: &[(String, Vec<f32>)]) -> Result<(), String> {
        let mut compressor = self.compressor();
        let state = compressor.as_mut().map_or_else(Vec::new, |compressor| compressor.state());
        put_back(state, saved)
    }

    fn compressor(&self) -> MutexGuard<'_, Option<Box<dyn Compressor>>> {
        self.compressor.lock().expect("a panic while reducing ends the job")
    }
}

/// Copies all of `saved` into the arrays of these names and lengths; changes nothing on an error.
fn put_back(state: Vec<(&'static str, &mut [f32])>, saved: &[(String, Vec<f32>)]) -> Result<(), String> {
    if state.len() != saved.len() {
        return Err(format!("{} arrays of compression state, expected {}", saved.len(), state.len()));
    }
    for ((name, own), (saved_name, values)) in state.iter().zip(saved) {
        if name != saved_name || own.len() != values.len() {
            let (found, expected) = (values.len(), own.len());
            return Err(format!("{saved_name} of {found} numbers, expected {name} of {expected}"));
        }
    }
    for ((_, own), (_, values)) in state.into_iter().zip(saved) {
        own.copy_from_slice(values);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_taken_back_whole_or_not_at_all() {
        let (mut one, mut two) = ([0.0; 3], [0.0; 2]);
        let saved = |name: &str, length| (name.to_owned(), vec![1.0; length]);
        let mut restore = |saved: &[(String, Vec<f32>)]| {
            let done = put_back(vec![("one", &mut one[..]), ("two", &mut two[..])], saved);
            (done, [one[0], two[1]])
        };
        for (wrong, told) in [
            (vec![saved("one", 3)], "1 arrays"),
            (vec![saved("one", 3), saved("two", 3)], "two of 3 numbers, expected two of 2"),
            (vec![saved("one", 3), saved("other", 2)], "expected two"),
        ] {
            let (done, values) = restore(&wrong);
            assert!(done.unwrap_err().contains(told));
            assert_eq!(values, [0.0, 0.0]);
        }
        assert_eq!(restore(&[saved("one", 3), saved("two", 2)]), (Ok(()), [1.0, 1.0]));
    }
}
