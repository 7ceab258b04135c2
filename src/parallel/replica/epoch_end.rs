//! Agreement of the ranks at an epoch's end: batch norm's statistics, the parameters' checksum, the sum of the results.

use tch::Tensor;

use super::Replica;
use crate::collective::{Combine, Communicator};
use crate::config::BufferSync;
use crate::data::Batch;
use crate::device::StepRecorder;
use crate::error::{Error, Result};
use crate::metrics::Kind;
use crate::model::Role;
use crate::parallel::StepResult;

impl Replica {
    /// Sets batch norm's statistics to rank 0's or to the mean over the ranks, by `parallel.buffers`, so that one network is
    /// tested and saved at an epoch's end. (DistributedDataParallel, too, broadcasts before a test's forward pass.)
    ///
    /// # Errors
    /// A collective failed.
    pub fn end_epoch(&mut self) -> Result<()> {
        match self.buffer_sync {
            BufferSync::Broadcast => self.broadcast_buffers(false, &mut StepRecorder::default()), // not part of any step
            BufferSync::Average => self.average_buffers(),
            BufferSync::Local | BufferSync::Sync => Ok(()),
        }
    }

    /// Sets batch norm's statistics to their mean over the ranks, bit-identical on all.
    fn average_buffers(&mut self) -> Result<()> {
        if self.state.buffers.is_empty() {
            return Ok(());
        }
        let mut buffers = self.state.buffers.read().into_owned();
        self.communicator.all_reduce_sum(Kind::Buffers, &mut buffers)?;
        let ranks = self.communicator.size() as f32;
        buffers.iter_mut().for_each(|value| *value /= ranks);
        self.state.buffers.write(&buffers);
        Ok(())
    }

    /// Recomputes batch norm's running statistics as the mean over this rank's `batches` at the current parameters, then
    /// averages them over the ranks where those keep one network. A collective.
    ///
    /// Source: PyTorch, torch/optim/swa_utils.py, `update_bn` (momentum `None`: a cumulative average).
    ///
    /// # Errors
    /// A collective failed, or a batch cannot be read.
    pub fn measure_statistics(&mut self, batches: impl Iterator<Item = Result<Batch>>) -> Result<()> {
        self.state.batches_tracked = 0;
        let counters = self.model.state.iter().filter(|entry| entry.role == Role::Counter && entry.tensor.defined());
        let counters: Vec<(Tensor, Tensor)> =
            counters.map(|entry| (entry.tensor.shallow_clone(), entry.tensor.copy())).collect();
        for batch in batches {
            let batch = batch?;
            self.state.batches_tracked += 1;
            // The first batch takes the place of what was there.
            let momentum = 1.0 / self.state.batches_tracked as f64;
            let _logits =
                self.with_mode(Some(momentum), |mode| tch::no_grad(|| self.model.forward(&batch.inputs, mode)));
            if let Some(batch_norm) = &self.sync_batch_norm {
                batch_norm.take_spent()?;
            }
        }
        // A file's own counts go on with the training's passes.
        tch::no_grad(|| counters.into_iter().for_each(|(mut counter, before)| counter.copy_(&before)));
        match self.buffer_sync {
            BufferSync::Broadcast | BufferSync::Average if self.keeps_ranks_equal => self.average_buffers(),
            _ => Ok(()),
        }
    }

    /// Hash of this rank's parameters.
    ///
    /// # Errors
    /// The parameters differ between ranks that must keep them equal (not with local SGD), or the collective failed.
    pub fn agreed_checksum(&self, epoch: usize) -> Result<u64> {
        let mut hasher = blake3::Hasher::new();
        for values in self.state.parameters.read().chunks(1 << 14) {
            // Chunks that stay in the cache.
            let bytes: Vec<[u8; 4]> = values.iter().map(|value| value.to_le_bytes()).collect();
            hasher.update(bytes.as_flattened());
        }
        let digest = hasher.finalize();
        let own = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a blake3 hash has 32 bytes"));
        let all = self.communicator.all_gather(Kind::Control, &[own])?;
        match all.iter().position(|&other| other != all[0]) {
            Some(rank) if self.keeps_ranks_equal => {
                Err(Error::ParametersDiffer { epoch, rank, found: all[rank], expected: all[0] })
            }
            _ => Ok(own),
        }
    }

    /// Sums a step's results over the ranks.
    ///
    /// # Errors
    /// The collective failed.
    pub fn sum_over_ranks(communicator: &Communicator, result: StepResult) -> Result<StepResult> {
        let StepResult { loss_sum, correct, samples } = result;
        let mut sums = [loss_sum, correct as f64, samples as f64];
        communicator.all_reduce(Kind::Metrics, Combine::Sum, &mut sums)?;
        let [loss_sum, correct, samples] = sums;
        Ok(StepResult { loss_sum, correct: correct as usize, samples: samples as usize })
    }
}
