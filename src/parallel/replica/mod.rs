//! One rank's copy of the model and its part of a training step.

mod epoch_end;

use std::sync::Arc;

use tch::{Reduction, Tensor};

use super::bucket::Readiness;
use super::exchange::Exchange;
use super::pass::{Listener, Pass, Recorder};
use super::tally::{StepResult, Tally};
use super::{Bucket, FlatState, LocalSteps, SyncBatchNorm};
use crate::collective::Communicator;
use crate::config::{BufferSync, Plan, Timing};
use crate::data::Batch;
use crate::device::{Clock, Message, Open, StepRecorder, Target};
use crate::error::{Error, Result};
use crate::metrics::{Kind, Part};
use crate::model::{Entry, Mode, Model, Role};
use crate::sys::GradientHooks;
use crate::units::Bytes;

/// The model on this rank, kept equal to that of all other ranks. All ranks call its methods together.
///
/// ```no_run
/// use hpml::{data::{Batch, Form}, device::StepRecorder, error::Result, model::Model, optim::Optimizer, parallel::Replica};
/// # use hpml::{config::Plan, launch::Job};
/// # fn train(job: &Job, plan: &Plan, batches: impl Iterator<Item = Batch>) -> Result<()> {
/// let model = Model::new(&plan.model, Form::CIFAR10, plan.run.seed)?;
/// let mut replica = Replica::new(model, job.target, job.communicator.clone(), plan)?;
/// let mut optimizer = Optimizer::new(replica.state(), &plan.optim);
/// let mut times = StepRecorder::default();
/// for batch in batches {
///     replica.step(&batch, job.world_size * batch.len, &mut times)?; // all-reduces the gradients meanwhile
///     optimizer.step(replica.state_mut(), 0.1)?;
/// }
/// println!("{:?}", replica.take_result()?);
/// # Ok(())
/// # }
/// ```
pub struct Replica {
    /// The network; its tensors are views of `state`.
    model: Model,
    /// Flat memory of the model's parameters, gradients and buffers.
    state: FlatState,
    communicator: Arc<Communicator>,
    exchange: Exchange,
    buckets: Vec<Bucket>,
    /// Order of the buckets' all-reduces, and the gradients that are complete.
    readiness: Readiness,
    /// Hooks on the parameters' gradients, if all-reduces overlap the backward pass.
    hooks: Option<GradientHooks>,
    /// Whether the order of the buckets is still to be taken from a pass.
    must_order: bool,
    buffer_sync: BufferSync,
    /// Set with `parallel.buffers = "sync"`; there is no worker then.
    sync_batch_norm: Option<SyncBatchNorm>,
    timing: Timing,
    clock: Clock,
    label_smoothing: f64,
    /// Factor of the loss whose gradients the backward pass computes, one float32 on the device; `None` stands for 1.
    loss_scale: Option<Tensor>,
    /// Whether all ranks must have the same parameters.
    keeps_ranks_equal: bool,
    /// Whether the gradients hold those of earlier batches of the current step.
    accumulated: bool,
    /// CUDA graph capture, on a GPU with `launch.cuda_graphs`.
    recorder: Option<Recorder>,
    tally: Tally,
}

impl Replica {
    /// Moves the model to `target` and broadcasts rank 0's parameters and buffers, if `parallel.broadcast_parameters`.
    ///
    /// # Errors
    /// Memory cannot be allocated, a collective failed, or MPI does not allow the communication thread.
    pub fn new(mut model: Model, target: Target, communicator: Arc<Communicator>, plan: &Plan) -> Result<Replica> {
        let (mut exchange, gradients) = Exchange::new(&model, target, &communicator, plan)?;
        let mut state = FlatState::adopt(&mut model, gradients);
        // The worker would call MPI concurrently with the collectives that synchronized batch norm makes in the backward pass.
        let sync = plan.parallel.buffers == BufferSync::Sync && communicator.size() > 1 && !state.buffers.is_empty();
        let sync_batch_norm = sync.then(|| SyncBatchNorm::new(communicator.clone(), plan.metrics.timing));
        let buckets = Bucket::plan(&state.parameter_elements(), Bucket::least_bytes(plan, communicator.size()));
        if plan.metrics.timing == Timing::Overlap && buckets.len() > 1 && !sync {
            exchange.overlap()?; // first, so that nothing has been sent if MPI does not allow it
        }
        if plan.parallel.broadcast_parameters {
            for flat in [&mut state.parameters, &mut state.buffers].into_iter().filter(|flat| !flat.is_empty()) {
                let mut values = flat.read().into_owned();
                communicator.broadcast(Kind::Parameters, &mut values)?;
                flat.write(&values);
            }
        }
        broadcast_untrained(&mut model, &communicator, plan.parallel.broadcast_parameters)?;
        let parameters = model.parameters().map(|entry| &entry.tensor);
        let can_be_captured = model.can_be_captured();
        let hooks = (buckets.len() > 1 && exchange.overlaps()).then(|| GradientHooks::new(parameters));
        let draws = model.draws();
        Ok(Replica {
            model,
            state,
            communicator,
            exchange,
            readiness: Readiness::new(&buckets),
            buckets,
            buffer_sync: plan.parallel.buffers,
            sync_batch_norm,
            timing: plan.metrics.timing,
            clock: Clock::of(target, plan.metrics.timing)?,
            label_smoothing: plan.train.label_smoothing,
            loss_scale: None,
            keeps_ranks_equal: plan.parallel.keeps_ranks_equal(),
            must_order: hooks.is_some(),
            accumulated: false,
            recorder: match target {
                // A replayed pass calls no hook: with several ranks the overlap is worth more. What dropout draws in one was not
                // seen yet.
                Target::Gpu { index, .. }
                    if plan.launch.cuda_graphs && hooks.is_none() && !draws && can_be_captured =>
                {
                    Recorder::new(index)
                }
                _ => None,
            },
            hooks,
            tally: Tally::new(target),
        })
    }

    /// The network. Its tensors are views of [`state`](Self::state).
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Parameters, gradients and buffers of the network, in flat memory.
    pub fn state(&self) -> &FlatState {
        &self.state
    }

    /// Parameters, gradients and buffers of the network, to be overwritten: values change, the memory stays the model's.
    pub fn state_mut(&mut self) -> &mut FlatState {
        &mut self.state
    }

    /// Bytes that one step all-reduces, as sent: after compression; 0 where gradients stay on their rank.
    pub fn gradient_bytes(&self) -> u64 {
        self.exchange.bytes(&self.buckets)
    }

    /// Whether gradient collectives overlap the backward pass: with one bucket there is nothing left to overlap.
    pub fn overlaps(&self) -> bool {
        self.buckets.len() > 1 && self.exchange.overlaps()
    }

    /// Compression state carried from step to step, by name; input of [`restore_compression`].
    ///
    /// [`restore_compression`]: Self::restore_compression
    pub fn compression(&self) -> Vec<(String, Vec<f32>)> {
        self.exchange.state()
    }

    /// Restores what [`compression`](Self::compression) returned after `steps` steps.
    ///
    /// # Errors
    /// `saved` does not fit the configured compression; the text says how.
    pub fn restore_compression(&self, saved: &[(String, Vec<f32>)], steps: usize) -> Result<(), String> {
        self.exchange.restore(saved, steps)
    }

    /// Clock of the replica's device.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Whether a step's result is known when [`step`](Self::step) returns.
    pub fn result_is_ready(&self) -> bool {
        self.tally.result_is_ready()
    }

    /// Takes this rank's result of the samples since the last call. Synchronizes with the device.
    ///
    /// # Errors
    /// The device has failed, or a peer is gone.
    pub fn take_result(&mut self) -> Result<StepResult> {
        self.exchange.settle()?;
        Ok(self.tally.take())
    }

    /// Ends an update: with `parallel.local_steps` it averages the ranks when due. Called after every update, with the
    /// optimizer's moments.
    ///
    /// # Errors
    /// A collective failed.
    pub fn updated(&mut self, moments: [&mut [f32]; 2], times: &mut StepRecorder) -> Result<()> {
        let due = self.exchange.local().is_some_and(LocalSteps::updated);
        if due { self.average(moments, times) } else { Ok(()) }
    }

    /// Updates of this rank since the ranks were equal; 0 without local steps.
    pub fn local_steps(&mut self) -> usize {
        self.exchange.local().map_or(0, |local| local.since())
    }

    /// Sets the updates since the ranks were equal, as [`local_steps`](Self::local_steps) returned them.
    pub fn set_local_steps(&mut self, steps: usize) {
        if let Some(local) = self.exchange.local() {
            local.set_since(steps);
        }
    }

    /// Sets the factor of the losses to come, which the gradients then have, too; losses in results are without it. Its place in
    /// memory stays the same, so that captured passes read it.
    pub fn set_loss_scale(&mut self, factor: f32) {
        let device = self.state.parameters.device();
        let scale = self.loss_scale.get_or_insert_with(|| Tensor::ones([], (tch::Kind::Float, device)));
        let _ = tch::no_grad(|| scale.fill_(f64::from(factor)));
    }

    /// Buckets, in the order in which they are reduced.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Runs forward and backward pass over a `batch` of a step that has `global_batch` samples over all batches and ranks,
    /// without communication. [`step`](Self::step) with the step's last batch reduces the gradients of all its batches.
    ///
    /// # Errors
    /// The device has failed, or synchronized batch norm got no sample.
    pub fn accumulate(&mut self, batch: &Batch, global_batch: usize, times: &mut StepRecorder) -> Result<()> {
        self.begin(times)?;
        self.accumulated = true;
        if self.has_nothing(batch)? {
            return Ok(());
        }
        let pass = self.forward_pass(batch, global_batch, times)?;
        self.backward(&pass, false, times)?;
        self.count(&pass, batch, times)
    }

    /// Runs forward and backward pass over this rank's (last) `batch` of a step that has `global_batch` samples over all ranks.
    ///
    /// Leaves in the flat gradients the mean gradient over all `global_batch` samples, however unevenly they are spread. Adds
    /// the times of the parts to `times`; [`take_result`](Self::take_result) returns loss and correct predictions.
    ///
    /// # Errors
    /// A collective or the device failed, or synchronized batch norm got no sample.
    pub fn step(&mut self, batch: &Batch, global_batch: usize, times: &mut StepRecorder) -> Result<()> {
        self.begin(times)?;
        self.accumulated = false;
        // With more ranks than samples there may be nothing to compute, but the other ranks need this one in the collectives.
        let pass = match self.has_nothing(batch)? {
            true => None,
            false => Some(self.forward_pass(batch, global_batch, times)?),
        };
        if let Some(pass) = &pass {
            self.backward(pass, true, times)?;
        }
        let left = self.readiness.end();
        for (number, &bucket) in left.iter().enumerate() {
            let last = number + 1 == left.len();
            self.exchange.ready(&self.buckets[bucket], last, &mut self.state, times)?;
        }
        self.exchange.finish(&self.buckets, &mut self.state, times)?;
        if self.must_order {
            self.must_order = false;
            self.agree_on_order()?;
        }
        pass.map_or(Ok(()), |pass| self.count(&pass, batch, times))
    }

    /// Sets the order of the buckets to that in which rank 0's first pass completed them.
    fn agree_on_order(&mut self) -> Result<()> {
        let mut order: Vec<f32> = self.readiness.take_completed().iter().map(|&bucket| bucket as f32).collect();
        self.communicator.broadcast(Kind::Control, &mut order)?; // exact: fewer than 2^24 buckets
        self.readiness.set_order(order.iter().map(|&bucket| bucket as usize).collect());
        Ok(())
    }

    /// Whether this rank has no sample in `batch`.
    ///
    /// # Errors
    /// Synchronized batch norm needs a sample from each rank.
    fn has_nothing(&self, batch: &Batch) -> Result<bool> {
        if batch.len == 0 && self.sync_batch_norm.is_some() {
            let (place, key, value) = ("parallel".into(), "parallel.buffers".into(), "sync".into());
            let expected = "needs a sample of every batch on every rank: use fewer ranks".into();
            return Err(Error::ConfigValue { place, key, value, expected });
        }
        Ok(batch.len == 0)
    }

    /// Prepares a step before its first forward pass.
    fn begin(&mut self, times: &mut StepRecorder) -> Result<()> {
        if self.accumulated {
            return Ok(());
        }
        if !self.exchange.is_local() {
            // A barrier separates waiting for late ranks from the transfer; only profile mode may pay for one.
            self.broadcast_buffers(self.timing == Timing::Profile, times)?;
        }
        let zeroing = times.begin(Part::Backward)?;
        self.state.gradients.zero();
        times.end(zeroing)
    }

    fn forward_pass(&mut self, batch: &Batch, global_batch: usize, times: &mut StepRecorder) -> Result<Pass> {
        let forward = times.begin(Part::Forward)?;
        self.state.batches_tracked += 1;
        // Samples over which the gradient is the mean: those of all ranks, or of this rank where every rank updates on its own.
        let sharing = if self.exchange.is_local() { global_batch / self.communicator.size() } else { global_batch };
        let share = batch.len as f64 / sharing as f64;
        let mut recorder = self.recorder.take();
        let replayed = match &mut recorder {
            Some(recorder) => recorder.pass(batch, share, |inputs, targets| self.forward(inputs, targets, share))?,
            None => None,
        };
        self.recorder = recorder;
        let pass = replayed.unwrap_or_else(|| self.forward(&batch.inputs, &batch.targets, share));
        self.end_pass(forward, times)?;
        Ok(pass)
    }

    /// Runs the backward pass; with `reduces`, the step's last one, buckets are handed over as soon as they are complete.
    fn backward(&mut self, pass: &Pass, reduces: bool, times: &mut StepRecorder) -> Result<()> {
        let backward = times.begin(Part::Backward)?;
        let Replica { exchange, state, readiness, buckets, .. } = self;
        let mut done = Ok(());
        let mut ready = |parameter: usize| {
            for &bucket in readiness.complete(parameter) {
                if done.is_ok() {
                    done = exchange.enqueue(&buckets[bucket], state, times);
                }
            }
        };
        let hooks = self.hooks.as_mut().filter(|_| reduces);
        pass.backward(hooks.map(|hooks| -> Listener { (hooks, &mut ready) }))?;
        done?;
        self.end_pass(backward, times)
    }

    /// Ends a pass; batch norm's collectives within it count as exposed communication.
    fn end_pass(&self, pass: Open, times: &mut StepRecorder) -> Result<()> {
        let inside = self.sync_batch_norm.as_ref().map_or_else(|| Ok(Vec::new()), SyncBatchNorm::take_spent)?;
        times.end_around(pass, &inside)
    }

    /// Runs one forward and backward pass without communication, to see whether the memory suffices. The gradients and
    /// batch-norm statistics that it leaves are meaningless.
    pub fn compute_alone(&mut self, batch: &Batch) {
        loss(&self.model.forward(&batch.inputs, Mode::TRAIN), &batch.targets, 0.0).backward();
    }

    /// Adds loss and correct predictions of a test batch, in eval mode and without gradients, to the next
    /// [`take_result`](Self::take_result).
    pub fn evaluate(&mut self, batch: &Batch) {
        if batch.len == 0 {
            return;
        }
        tch::no_grad(|| {
            let logits = self.model.forward(&batch.inputs, Mode::Eval);
            let mean_loss = loss(&logits, &batch.targets, 0.0);
            self.tally.add(&logits, &batch.targets, &mean_loss, batch.len);
        });
    }

    /// Averages the ranks at an epoch's end if local steps have left them apart; `times` are those of the epoch's last step.
    ///
    /// # Errors
    /// A collective failed.
    pub fn end_local_steps(&mut self, moments: [&mut [f32]; 2], times: &mut StepRecorder) -> Result<()> {
        if self.exchange.local().is_some_and(|local| local.apart()) {
            let step = times.begin(Part::Step)?;
            self.average(moments, times)?;
            times.end(step)?;
        }
        Ok(())
    }

    fn average(&mut self, moments: [&mut [f32]; 2], times: &mut StepRecorder) -> Result<()> {
        let Some(local) = self.exchange.local() else { return Ok(()) };
        let bytes = self.state.parameters.len() + moments.iter().map(|values| values.len()).sum::<usize>();
        let message = Message { bucket: None, bytes: (bytes * size_of::<f32>()) as Bytes };
        times.collective(&local.average(&mut self.state, moments)?, message, true);
        self.broadcast_buffers(false, times) // the average has just synchronized the ranks
    }

    /// Broadcasts rank 0's batch-norm statistics with `parallel.buffers = "broadcast"`; `barrier`: with a barrier before.
    fn broadcast_buffers(&mut self, barrier: bool, times: &mut StepRecorder) -> Result<()> {
        if self.buffer_sync == BufferSync::Broadcast && !self.state.buffers.is_empty() {
            self.exchange.broadcast_buffers(barrier, &mut self.state, times)?;
        }
        Ok(())
    }

    /// Runs the forward pass of a `share` of a step.
    fn forward(&self, inputs: &Tensor, targets: &Tensor, share: f64) -> Pass {
        self.with_mode(None, |mode| self.forward_in(mode, inputs, targets, share))
    }

    /// Calls `forward` in training mode, with the statistics of this rank's batch or of the batches of all ranks.
    fn with_mode<T>(&self, momentum: Option<f64>, forward: impl FnOnce(Mode) -> T) -> T {
        match &self.sync_batch_norm {
            None => forward(Mode::Train { momentum, standardize: None }),
            Some(batch_norm) => {
                let standardize = |input: &Tensor, epsilon: f64| batch_norm.standardize(input, epsilon);
                forward(Mode::Train { momentum, standardize: Some(&standardize) })
            }
        }
    }

    fn forward_in(&self, mode: Mode, inputs: &Tensor, targets: &Tensor, share: f64) -> Pass {
        let logits = self.model.forward(inputs, mode);
        let mean_loss = loss(&logits, targets, self.label_smoothing);
        let loss = match &self.loss_scale {
            Some(scale) => &mean_loss * scale,
            None => mean_loss.shallow_clone(),
        };
        Pass::eager(loss, share, logits, mean_loss)
    }

    fn count(&mut self, pass: &Pass, batch: &Batch, times: &mut StepRecorder) -> Result<()> {
        let counting = times.begin(Part::Forward)?;
        self.tally.add(&pass.logits, &batch.targets, &pass.mean_loss, batch.len);
        times.end(counting)
    }
}

/// Mean cross entropy of `logits` `[.., classes]` over all `targets` `[..]`.
fn loss(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Tensor {
    let mean = |logits: &Tensor, targets: &Tensor| {
        logits.cross_entropy_loss(targets, None::<&Tensor>, Reduction::Mean, -100, label_smoothing)
    };
    match logits.dim() {
        2 => mean(logits, targets),
        _ => mean(&logits.flatten(0, -2), &targets.flatten(0, -1)),
    }
}

/// Gives every rank rank 0's values of what is neither trained nor in the flat buffers, if `broadcasts`.
fn broadcast_untrained(model: &mut Model, communicator: &Communicator, broadcasts: bool) -> Result<()> {
    let untrained = |entry: &&mut Entry| matches!(entry.role, Role::Frozen | Role::Counter) && entry.tensor.defined();
    for entry in model.state.iter_mut().filter(|_| broadcasts).filter(untrained) {
        let count = entry.tensor.numel();
        let mut values = vec![0f64; count];
        entry.tensor.to_kind(tch::Kind::Double).copy_data(&mut values, count);
        let all = communicator.all_gather(Kind::Parameters, &values)?;
        let of_root = Tensor::from_slice(&all[..count]).view_(entry.tensor.size());
        tch::no_grad(|| entry.tensor.copy_(&of_root));
    }
    Ok(())
}
