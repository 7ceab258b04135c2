//! The default configuration as `hpml config` prints it: every key with its meaning, unit and allowed values.

use super::Config;

/// (`section.key`, what it means). Values are not repeated here: they come from `Default`.
const COMMENTS: &[(&str, &str)] = &[
    ("run.seed", "seeds the parameters, the order of the samples and the augmentation; integer, 0 or more"),
    (
        "run.out",
        "the run file (HDF5); empty: a new results/MODEL-RANKSranks-TIME.h5, with the Slurm job's id if there is one",
    ),
    ("launch.device", "auto, cpu or cuda; auto takes a GPU where every rank of a host has one of its own"),
    (
        "launch.allow_gpu_sharing",
        "let several ranks of a host have the same GPU, whose sums then go through host memory",
    ),
    (
        "launch.allow_singletons",
        "true: processes that a launcher started together and MPI did not join are separate jobs of one rank; false: that is an \
         error",
    ),
    (
        "launch.cuda_graphs",
        "on a GPU: record what a step's passes ask of it, and ask for it again in a call for each bucket; takes the memory of one \
         more pass",
    ),
    ("launch.threads", "compute threads per rank; 0: cores of the host / ranks on it"),
    (
        "launch.comm_timeout_s",
        "a collective of hpml train or study that takes longer (seconds) ends the job and names the rank that is missing; 0: never",
    ),
    (
        "data.dir",
        "folder of CIFAR-10's binary files (or the one above it), or synthetic: the embedded set (a folder of that name: ./synthetic)",
    ),
    ("data.train_samples", "train on the first so many samples; 0: all"),
    ("data.test_samples", "test on the first so many samples; 0: all"),
    ("data.shuffle", "draw the samples in a new order each epoch (seed + epoch, as DistributedSampler)"),
    (
        "data.set_epoch",
        "false: draw the same order in every epoch, as a DistributedSampler whose set_epoch is forgotten",
    ),
    (
        "data.shares",
        "disjoint: each rank draws its part of one order (DistributedSampler); mistakes to look at: own_order (its part of an order \
         of its own), same (rank 0's part)",
    ),
    ("data.drop_last", "drop the samples that do not divide by the ranks instead of repeating the first ones"),
    ("data.augment", "random crop (4 pixels of padding) and horizontal flip of training images"),
    ("data.mean", "per channel (R, G, B); input = (pixel / 255 - mean) / std"),
    ("data.std", "per channel (R, G, B)"),
    ("data.prefetch", "batches prepared ahead on another thread"),
    ("model.name", "net or resnet18"),
    ("model.bias", "a bias on the last layer of net"),
    ("model.width", "channels of resnet18's first stage; 64 is the published network"),
    (
        "model.precision",
        "float32, tf32 (a GPU multiplies with 10 bits of mantissa), or bf16: convolutions and linear layers in bfloat16, \
         parameters in float32",
    ),
    (
        "model.channels_last",
        "keep images and convolution weights as NHWC in memory, faster on most hardware (resnet18 only)",
    ),
    (
        "model.fused_batch_norm",
        "on a GPU: batch norm, shortcut and ReLU in kernels of hpml's own (NVRTC compiles them); false: libtorch's, in more \
         passes over memory",
    ),
    ("train.epochs", "passes over the training data"),
    (
        "train.batch_per_rank",
        "samples per rank and batch; global batch = this x accumulate x ranks, or what an epoch has if that is less",
    ),
    (
        "train.global_batch",
        "samples per step over all ranks, instead of batch_per_rank, at most the training set; 0: batch_per_rank decides",
    ),
    ("train.lr", "learning rate, as used unless schedule says otherwise (no hidden scaling with the ranks)"),
    ("train.accumulate", "batches per rank whose gradients are summed before one all-reduce and update"),
    ("train.label_smoothing", "share of the target spread evenly over the classes, 0 to below 1; training only"),
    ("train.max_steps", "stop after so many steps in all; 0: train.epochs decides"),
    ("train.test_batch", "samples per rank at a time in the test"),
    ("optim.name", "sgd, lars (layer-wise rates), lamb (layer-wise Adam)"),
    ("optim.momentum", "momentum of sgd and lars, beta1 of lamb, 0 to below 1"),
    (
        "optim.weight_decay",
        "added to the gradient (lamb: to its step) as weight_decay * parameter; lars and lamb spare biases and batch norm",
    ),
    ("optim.nesterov", "look ahead along the momentum; sgd and lars"),
    ("optim.clip_norm", "greatest norm of the mean gradient over all parameters, larger ones are scaled down; 0: any"),
    ("optim.trust", "lars: a layer's rate is lr * trust * |weights| / (|gradient| + weight_decay |weights|)"),
    ("optim.beta2", "lamb: decay of the squared gradient's average, 0 to below 1"),
    ("optim.epsilon", "lamb: added to the root of the squared gradient's average"),
    (
        "optim.ema",
        "decay of a moving average of the weights over the steps so far, which is then tested and saved, with batch norm's statistics \
         measured for it over 2,048 training images at each epoch's end; 0: none",
    ),
    ("schedule.scaling", "none, linear or sqrt: multiply train.lr by global batch / base_batch, or its root"),
    ("schedule.base_batch", "global batch that train.lr was chosen for"),
    ("schedule.warmup_epochs", "epochs of linear rise to the full rate"),
    ("schedule.warmup_start", "first rate of the rise / full rate"),
    ("schedule.anneal", "constant, cosine (to the end), step (at milestones), onecycle (warm-up and fall by cosines)"),
    ("schedule.least", "last rate of cosine and onecycle / full rate"),
    ("schedule.milestones", "epochs at which step multiplies the rate by gamma"),
    ("schedule.gamma", "that factor"),
    ("parallel.bucket_mb", "gradients are all-reduced in buckets of at least so many decimal MB, cut at stages"),
    (
        "parallel.all_reduce",
        "how gradients are summed: shared (in a host through shared memory, between hosts by a ring of one rank each), ring (of \
         all ranks), mpi (MPI_Allreduce), auto (shared; mpi for less than 64 KiB between hosts)",
    ),
    (
        "parallel.buffers",
        "batch-norm statistics: broadcast (from rank 0 each step, as DDP), average (each epoch), local, sync (batch norm over the \
         global batch, as SyncBatchNorm; gradients are then reduced stage by stage after the backward pass, without overlap)",
    ),
    (
        "parallel.broadcast_parameters",
        "rank 0's first parameters go to all ranks; false: nothing makes them equal, and no rank is held to it",
    ),
    ("parallel.same_seed", "all ranks draw their first parameters from run.seed; false: each from a seed of its own"),
    ("parallel.lr_spread", "a mistake to look at: rank r steps with lr * (1 + lr_spread * r); 0: all with the same"),
    (
        "parallel.compression",
        "what stands for the gradients on the wire: none, bf16, fp16, int8 (a scale a block), powersgd (low-rank products); int8 \
         and powersgd send later what they lose now",
    ),
    (
        "parallel.compression_block",
        "int8: gradients that share a scale, 64 to 65536; they take 1/4 + 1/block of float32's bytes",
    ),
    ("parallel.compression_rank", "powersgd: columns of the two matrices that stand for a gradient, 1 to 64"),
    ("parallel.compression_start", "steps at the beginning of a training whose gradients are sent as they are"),
    (
        "parallel.local_steps",
        "above 1: every rank updates with its own gradients, and parameters and momentum are averaged after so many steps and at \
         the end of each epoch",
    ),
    (
        "checkpoint.every_epochs",
        "save all that --resume needs, beside the run file, every so many epochs; 0: every_minutes decides alone",
    ),
    (
        "checkpoint.every_minutes",
        "the same, whenever so many minutes have passed since the last; 0: never by time. A signal saves in any case",
    ),
    ("checkpoint.keep", "the last so many checkpoints are kept, older ones removed"),
    ("metrics.timing", "overlap (fast), or profile: no overlap, a barrier before each collective, parts add up"),
    (
        "metrics.warmup_steps",
        "first steps of a job that are trained but not counted in the step times, unless there are no others",
    ),
    (
        "metrics.spread_steps",
        "every so many steps measure how far the ranks' parameters lie apart, and test each rank's own network at an epoch's end; 0: \
         never",
    ),
    ("quantize.enabled", "quantize to int8 after the training"),
    ("quantize.calibration_images", "first so many training images, from which activation ranges are measured"),
    ("quantize.weight_range", "max, sigma3 (mean and 3 standard deviations), percentile or mse (least squared error)"),
    ("quantize.activation_range", "the same choices for the activations"),
    (
        "quantize.percentile",
        "per cent of the values within the range, where a range is percentile; above 50, at most 100",
    ),
    (
        "quantize.per_channel",
        "a weight scale per output channel instead of one per layer (the last layer always has one)",
    ),
    (
        "quantize.max_drop",
        "accuracy that int8 may lose before quantize.finetune_epochs are trained, or a warning is given; percentage points",
    ),
    (
        "quantize.finetune_epochs",
        "epochs, or parts of one, trained with rounded weights and activations if int8 loses more than that; 0: none",
    ),
    ("quantize.finetune_lr", "learning rate of that, falling to 0 in a line; batches of train.batch_per_rank"),
    ("sweep.model", "networks that hpml sweep measures; empty: model.name"),
    (
        "sweep.batch_per_rank",
        "batch sizes, which may be more than the data set (samples are then drawn again); empty: 32, 128, 512, 1024, 2048 and on, \
         times 4, up to the data set's size or until memory is full",
    ),
    ("sweep.ranks", "rank counts; empty: 1, 2, 4, ... and all ranks of the job"),
    ("sweep.timing", "profile, overlap (as metrics.timing), or both"),
    ("sweep.rounds", "how often each case is visited, in another order each time"),
    ("sweep.seconds", "training time spent on a case over all its visits, warm-up apart; a visit has 3 steps at least"),
    (
        "sweep.precision",
        "a case is done earlier when the 95 % interval of its median step time is within this, relative to it",
    ),
    ("study.seeds", "hpml study trains each variant with each of these as run.seed"),
    (
        "study.variants",
        "what it compares: [[study.variants]] with a name of its own and set = [\"section.key=value\", ...], of keys that one \
         training of many can have to itself",
    ),
];

/// The default configuration as TOML with a comment above each key. Feeding it back gives the defaults.
pub fn documented_defaults() -> String {
    let mut text = String::from(
        "# hpml: the default configuration. Save it, edit it, and run: mpirun -n 4 hpml train FILE.toml\n\
         # Any key can also be given as --set section.key=value.\n",
    );
    for line in Config::default().to_toml().lines() {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            text.push_str(&format!("\n[{section}]\n"));
        } else if let Some((key, _)) = line.split_once(" = ") {
            let section = text.rsplit("\n[").next().and_then(|rest| rest.split(']').next()).unwrap_or_default();
            let name = format!("{section}.{key}");
            if let Some((_, comment)) = COMMENTS.iter().find(|(known, _)| *known == name) {
                text.push_str(&format!("# {comment}\n"));
            }
            text.push_str(&format!("{line}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_comment_and_every_comment_a_key() {
        let keys: Vec<String> = Config::default().flattened().into_iter().map(|(key, _)| key).collect();
        for key in &keys {
            assert!(COMMENTS.iter().any(|(known, _)| known == key), "{key} has no comment");
        }
        for (known, _) in COMMENTS {
            assert!(keys.iter().any(|key| key == known), "{known} is no key");
        }
    }

    #[test]
    fn the_printed_defaults_are_the_defaults() {
        let config: Config = toml::from_str(&documented_defaults()).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(documented_defaults().matches("\n# ").count(), COMMENTS.len() + 1);
    }
}
