//! Name, unit, formula and reason for absence of each figure, defined once for run files, terminal, report and docs/.

use crate::table::Definition;
pub use crate::table::{reason, text};

const fn define(name: &'static str, units: &'static str, text: &'static str) -> Definition {
    Definition::new(name, units, text)
}

// The parts of a step, in seconds of one step on one rank.
pub const DATA: Definition = define(
    "data",
    "s",
    "waiting for the next batch, which another thread prepares (on a GPU: taking it from the data set in GPU memory)",
);
pub const FORWARD: Definition = define("forward", "s", "forward pass and loss");
pub const BACKWARD: Definition = define("backward", "s", "backward pass, without waiting for collectives");
pub const COMM: Definition = define(
    "comm",
    "s",
    "collectives, from the arrival of the last rank (NCCL during the backward pass: from their start) to their end, \
     hidden or exposed, compression and decompression of gradients included",
);
pub const COMM_WAIT: Definition =
    define("comm_wait", "s", "waiting for slower ranks before a collective could start, hidden or exposed");
pub const COMM_EXPOSED: Definition =
    define("comm_exposed", "s", "part of comm_wait + comm during which the rank did nothing but wait");
pub const OPTIMIZER: Definition = define("optimizer", "s", "update of the parameters");
pub const STEP: Definition = define("step", "s", "whole step");

// Key columns of several tables.
pub const EPOCH: Definition = define("epoch", "1", "epoch, from 0");
pub const RANK: Definition = define("rank", "1", "MPI rank");
pub const VARIANT: Definition = define("variant", "1", "name of the variant in the study");
pub const SEED: Definition = define("seed", "1", "run.seed of the training");
pub const MODEL: Definition = define("model", "1", "network");
pub const BATCH_PER_RANK: Definition = define("batch_per_rank", "1", "samples per rank and step");

// Columns of /steps.
pub const WORLD_SIZE: Definition = define("world_size", "1", "ranks that trained");
pub const PROFILE: Definition = define("profile", "1", "1: profile timing, nothing overlapped; 0: overlap timing");
pub const WARMUP: Definition =
    define("warmup", "1", "1: a warm-up step, left out of all statistics unless there are no others");

// Columns of /reads.
pub const READ_BYTES: Definition = define(
    "read_bytes",
    "B",
    "bytes of training samples read from files, decompressed, from storage or from the system's page cache",
);
pub const READ_RATE: Definition =
    define("bytes_per_second", "B/s", "read_bytes / wall time of the epoch's training on the rank");
pub const READ_SECONDS: Definition =
    define("read_seconds", "s", "time in reading and decompressing, summed over the threads that read ahead");
pub const READ_WAIT: Definition =
    define("read_wait", "s", "time that the training waited for samples that were not prepared yet");

// Statistics of a part over the counted steps.
pub const MEAN: Definition = define("mean", "s", "mean over all counted steps and ranks");
pub const P50: Definition = define("p50", "s", "median over all counted steps and ranks");
pub const P99: Definition = define("p99", "s", "99th percentile over all counted steps and ranks (nearest rank)");
pub const MEAN_OF_SLOWEST: Definition =
    define("mean_of_slowest", "s", "mean time of the part on the rank where that is greatest: a time, not a rank");
pub const SHARE: Definition = define("share", "1", "mean / mean of the whole step");

// Columns of the tables of slow ranks and hosts.
pub const OWN_WORK: Definition = define(
    "own_work",
    "s",
    "mean time per step of what a rank does without the others: data, forward, backward, optimizer; waiting for others is no own work",
);
pub const RATIO: Definition =
    define("ratio", "1", "own_work / median of it over all ranks or hosts; from 1.2 on a rank or host counts as slow");
pub const SLOW_IN: Definition =
    define("slow_in", "1", "the part of own_work that takes most more than its median over all ranks or hosts");
pub const EXCESS: Definition = define("excess", "s", "what the part slow_in takes more than that median, per step");

// Columns of the timeline.
pub const EXPOSED: Definition = define(
    "exposed",
    "s",
    "exposed communication of the traced steps, per step and rank: time in which the rank did nothing but wait for a collective, which \
     makes the step longer; the rest of the communication is hidden behind computation",
);
pub const BUCKET: Definition = define(
    "bucket",
    "1",
    "group of gradients that one all-reduce sums (parallel.bucket_mb), from 0 in the order in which they are complete; -1: none",
);

// Columns of /rank_times, statistics of a part over the counted steps of one rank.
pub const COUNTED_STEPS: Definition = define("count", "1", "counted steps of the rank, warm-up left out");
pub const RANK_MEAN: Definition = define("mean", "s", "mean of the part over the rank's counted steps");
pub const RANK_DEVIATION: Definition =
    define("deviation", "s", "standard deviation of the part over the rank's counted steps (n - 1)")
        .unless("fewer than two steps");
pub const RANK_LEAST: Definition = define("min", "s", "least of the part");
pub const RANK_MOST: Definition = define("max", "s", "greatest of the part");

const NOT_MEASURED: &str = "not measured, see status";

// Columns of /scaling. Each part of the step has two: its name holds the trimmed mean, `<part>_mean` the mean.
pub const STATUS: Definition = define("status", "1", "ok, out_of_memory or pending");
pub const TRIMMED_MEAN: Definition = define(
    "trimmed mean",
    "s",
    "trimmed mean over all ranks and the middle half of the counted steps, sorted by the slowest rank's step (over \
     all steps if fewer than 4)",
)
.unless(NOT_MEASURED);
pub const PART_MEAN: Definition = MEAN.unless(NOT_MEASURED);
pub const STEP_P50: Definition =
    define("step_p50", "s", "median over all counted steps of the slowest rank's step").unless(NOT_MEASURED);
const FEW: &str = "fewer than 6 counted steps";
pub const STEP_LOW: Definition = define(
    "step_low",
    "s",
    "lower end of the 95 % interval of step_p50, by order statistics of steps taken as independent",
)
.unless(FEW);
pub const STEP_HIGH: Definition = define("step_high", "s", "upper end of the 95 % interval of step_p50").unless(FEW);
pub const SWEEP_IMAGES_PER_SECOND: Definition =
    define("images_per_second", "1/s", "ranks * batch_per_rank / step of the case").unless(NOT_MEASURED);
pub const OVERLAPS: Definition = define(
    "overlaps",
    "1",
    "1: collectives can run beside the backward pass; 0: they cannot (one rank, profile timing, gradients in one \
     bucket, which is complete only at the end of the pass)",
);
pub const OVERLAP: Definition = define(
    "overlap",
    "1",
    "1 - comm_exposed / (comm_wait + comm): share of the time in collectives, waits for slower ranks included, that was hidden \
     behind the backward pass",
)
.unless("nothing can overlap (one rank, profile timing, gradients in one bucket) or it was not measured");
pub const SPEEDUP: Definition =
    define("speedup", "1", "images_per_second / that of 1 rank at the same model, batch_per_rank and timing")
        .unless("1 rank or this case was not measured");
pub const EFFICIENCY: Definition = define("efficiency", "1", "speedup / ranks").unless(SPEEDUP.absent);
pub const EPOCH_SECONDS: Definition =
    define("epoch_seconds", "s", "training samples / images_per_second").unless(NOT_MEASURED);
pub const GRADIENT_BYTES: Definition =
    define("gradient_bytes", "B", "size of the gradients that one rank all-reduces per step, as sent");
pub const VOLUME: Definition =
    define("volume", "B", "2 (n-1) / n * gradient_bytes on n ranks: least that a rank must send per step");
pub const PEAK_MEMORY: Definition = define("peak_memory", "B", "greatest resident memory of a rank");
const NO_GPU: &str = "no GPU, or not measured";
pub const GPU_UTILIZATION: Definition =
    define("gpu_utilization", "percent", "share of time in which a GPU computed anything, mean over the GPUs (NVML)")
        .unless(NO_GPU);
pub const GPU_MEMORY: Definition = define("gpu_memory", "B", "greatest memory in use on a GPU").unless(NO_GPU);
pub const EPOCH_JOULES: Definition = define("epoch_joules", "J", "joules_per_image * training samples").unless(NO_GPU);
pub const JOULES_PER_IMAGE: Definition =
    define("joules_per_image", "J", "energy of all GPUs per training image").unless(NO_GPU);
const ONE_RANK: &str = "one rank, which has no collectives, or not measured, see status";
pub const COMPUTE_SHARE: Definition =
    define("compute share", "1", "(forward + backward + optimizer) / step").unless(NOT_MEASURED);
pub const COMM_WAIT_SHARE: Definition = define("comm_wait share", "1", "comm_wait / step").unless(ONE_RANK);
pub const COMM_SHARE: Definition = define("comm share", "1", "comm / step").unless(ONE_RANK);
pub const EXPOSED_SHARE: Definition = define("exposed share", "1", "comm_exposed / step").unless(ONE_RANK);

// Bandwidths. Source: nccl-tests, doc/PERFORMANCE.md.
pub const ALGBW: Definition = define(
    "algbw",
    "GB/s",
    "bytes of the buffer on one rank / time of its collective (/allreduce: size / time; /comm: bytes / seconds of \
     the gradients; /scaling: gradient_bytes / comm)",
)
.unless("nothing was all-reduced, or (in /comm) the kind has other collectives than all-reduces");
pub const BUSBW: Definition = define(
    "busbw",
    "GB/s",
    "algbw * 2 (n-1) / n on n ranks, as in nccl-tests: bytes that any all-reduce must send and receive per rank, per \
     second; in /allreduce times (n-1) / n for all_gather, reduce_scatter and all_to_all, 1 for broadcast",
)
.unless(
    "one rank, which sends nothing; nothing was all-reduced, or (in /comm) the kind has other collectives than \
     all-reduces",
);
pub const BUSBW_SHARE: Definition = define(
    "busbw_share",
    "1",
    "bandwidth utilization: busbw / busbw of the bare all-reduce of gradient_bytes on the same ranks, in place, at \
     its median time",
)
.unless(
    "one rank; or no bare all-reduce of this size was measured, or it was slower than the one in training and cannot \
     serve as reference",
);

// Columns of /allreduce.
pub const REDUCE_TIME: Definition = define("time", "s", "mean over the iterations of the slowest rank's time");
pub const REDUCE_P50: Definition = define("p50", "s", "median over the iterations of the slowest rank's time");
pub const REDUCE_P99: Definition =
    define("p99", "s", "99th percentile over the iterations of the slowest rank's time (nearest rank)");
pub const REDUCE_MIN: Definition = define("min", "s", "minimum over the iterations of the slowest rank's time");
pub const REDUCE_SKEW: Definition =
    define("skew", "s", "median over the iterations of the slowest minus the fastest rank's time");

pub const BETWEEN: Definition =
    define("between", "s", "part of time between hosts: mean over the iterations of the slowest rank's")
        .unless(NO_LEVELS);
pub const WITHIN: Definition =
    define("within", "s", "time - between: within the hosts, through shared memory").unless(NO_LEVELS);
pub const BETWEEN_BUSBW: Definition =
    define("between_busbw", "GB/s", "size / between * 2 (h-1) / h on h hosts").unless(NO_LEVELS);
pub const WITHIN_ALGBW: Definition = define("within_algbw", "GB/s", "size / within").unless(NO_LEVELS);
const NO_LEVELS: &str =
    "one host, or an algorithm other than shared, halving and hierarchical, which have these two levels";
pub const BETWEEN_RACKS: Definition = define(
    "between_racks",
    "s",
    "part of between that is between racks: mean over the iterations of the slowest rank's",
)
.unless("an algorithm other than hierarchical");

// Columns of /comm, the ledger.
pub const LEDGER_STEPS: Definition = define("steps", "1", "optimizer steps on world_size ranks with this timing");
pub const MESSAGES: Definition = define("messages", "1", "number of collective calls");
pub const BYTES: Definition = define("bytes", "B", "size of the buffers that rank 0 gave to its collectives");
pub const SENT_BYTES: Definition = define(
    "sent_bytes",
    "B",
    "size of the messages that all ranks together sent for these collectives: 2 (n-1) buffers per all-reduce, n-1 \
     per broadcast or gather; none through the shared memory of a host",
);
pub const SECONDS: Definition = define("seconds", "s", "time that rank 0 spent inside the collective calls");

const NO_NODES: &str = "a network from a file is not looked into";
const NO_COUNT: &str = "the file of the network has no count";
const NO_LOSS_SCALE: &str = "model.precision is not fp16";
const NAN_LOSS: &str = "the training diverged";

// Columns of /epochs.
pub const TRAIN_LOSS: Definition = define(
    "train_loss",
    "1",
    "mean loss over the epoch's training samples, each with the parameters of its step (train.label_smoothing \
     included)",
)
.unless(NAN_LOSS);
pub const TRAIN_ACCURACY: Definition = define(
    "train_accuracy",
    "percent",
    "share of correct predictions among the epoch's training samples, each with the parameters of its step",
)
.unless(NAN_LOSS);
pub const TEST_LOSS: Definition =
    define("test_loss", "1", "mean cross-entropy on the test set, after the epoch").unless(NAN_LOSS);
pub const TEST_ACCURACY: Definition =
    define("test_accuracy", "percent", "share of correct predictions on the test set, after the epoch")
        .unless(NAN_LOSS);
pub const EPOCH_LR: Definition = define("lr", "1", "learning rate of the epoch's last step").unless(NAN_LOSS);
pub const OPERATIONS_FORWARD: Definition = define(
    "operations_forward",
    "1",
    "multiplications and additions of the forward pass per sample, in convolutions, matrix products and attention",
)
.unless(NO_COUNT);
pub const OPERATIONS_TRAINING: Definition =
    define("operations_training", "1", "multiplications and additions of forward and backward pass per sample")
        .unless(NO_COUNT);
pub const FLOPS: Definition = define(
    "flops",
    "FLOP/s",
    "3 * operations_forward of /environment * images_per_second: multiplications and additions per second of all ranks, by the usual \
     convention that the backward pass has twice those of the forward pass, in direct convolutions, whatever computes them",
)
.unless("there are no images_per_second, or no operations_forward (a network whose file has no count of them)");
pub const PEAK_SHARE: Definition = define(
    "peak_share",
    "percent",
    "flops / peak_flops of /environment, the ranks' fastest matrix products: model FLOP/s utilization (MFU); more than the device is \
     busy where Winograd computes with fewer operations",
)
.unless("metrics.peak is false, or there are no flops");
pub const ACTIVATION_BYTES: Definition =
    define("activation_bytes", "B", "values of one sample that the backward pass needs").unless(NO_NODES);
pub const LOSS_SCALE: Definition =
    define("loss_scale", "1", "factor of the loss after the epoch's last step").unless(NO_LOSS_SCALE);
pub const SKIPPED_STEPS: Definition = define(
    "skipped_steps",
    "1",
    "optimizer steps left out since the start of the training, since a gradient was NaN or infinite",
)
.unless(NO_LOSS_SCALE);
pub const TRAIN_SECONDS: Definition =
    define("seconds", "s", "wall time of the epoch's training, without the test").unless(NAN_LOSS);
pub const TEST_SECONDS: Definition = define("test_seconds", "s", "wall time of the test");
pub const GATHER_SECONDS: Definition = define(
    "gather_seconds",
    "s",
    "wall time of the epoch's beginning and end: order of the samples, agreement of the ranks, times of the steps to rank 0",
)
.unless("an earlier build did not measure it");
const WRITTEN_BEFORE: &str = "the last epoch in the file, which was written before it was known";
pub const WRITE_SECONDS: Definition =
    define("write_seconds", "s", "wall time of writing the run file after the epoch").unless(WRITTEN_BEFORE);
pub const CHECKPOINT_SECONDS: Definition = define(
    "checkpoint_seconds",
    "s",
    "wall time in which the training waited for the checkpoint after the epoch; those within the epoch are in seconds",
)
.unless(WRITTEN_BEFORE);
pub const IMAGES_PER_SECOND: Definition =
    define("images_per_second", "1/s", "training samples of all ranks in the epoch / seconds")
        .unless("the epoch was trained on several numbers of ranks, or the training diverged");

// Columns of a study: its variants after their last epoch, and its epochs.
pub const SEEDS: Definition = define("seeds", "1", "number of trainings, one per seed");
pub const DIVERGED: Definition = define("diverged", "1", "number of trainings whose loss became NaN or infinite");
pub const VARIANT_ACCURACY: Definition = define(
    "test_accuracy",
    "percent",
    "mean over the seeds; a training that diverged counts as 10 %, the accuracy of guessing",
);
pub const LEAST: Definition = define("least", "percent", "test_accuracy of the worst seed");
pub const MOST: Definition = define("most", "percent", "test_accuracy of the best seed");
pub const AGAINST_FIRST: Definition =
    define("against_first", "percent", "test_accuracy minus that of the first variant, in percentage points");
pub const WON_BACK: Definition = define(
    "won_back",
    "1",
    "(test_accuracy - that of the second variant) / (that of the first - that of the second): share of the second \
     variant's loss of accuracy that was recovered",
)
.unless(
    "the first two variants; or the second variant's loss is within the spread of the seeds (its best seed reaches \
     the first's worst, or there is one seed), or this variant exceeds the first, see against_first",
);
pub const GRADIENT_MESSAGES: Definition = define(
    "gradient_messages",
    "1",
    "number of all-reduces of gradients (with local steps: of parameters and momentum) on rank 0",
);
pub const GRADIENTS_SENT: Definition =
    define("gradient_bytes", "B", "size of the buffers of gradient_messages on rank 0, as sent");
pub const GRADIENT_SECONDS: Definition =
    define("gradient_seconds", "s", "time inside the calls of gradient_messages on rank 0");
pub const EPOCH_COMM: Definition = define("comm", "s", "sum of the steps' comm on rank 0");

// A column of /sampling.
pub const MET_BEFORE: Definition = define(
    "met_before",
    "percent",
    "share of the sample pairs within a global batch that also shared a batch in the previous epoch",
)
.unless("no previous epoch, or batches of one sample");

// A column of /buckets.
pub const READY: Definition = define(
    "ready",
    "1",
    "share of the backward pass's multiplications and additions (of a network from a file: of its parameters) after which \
     the bucket is complete",
);

// Columns of /prediction.
pub const PREDICTED_STEP: Definition = define("step", "s", "predicted time of a step, a trimmed mean as in /scaling");
pub const PREDICTED_COMM: Definition =
    define("comm", "s", "predicted time of the step's all-reduces, hidden or exposed");
pub const PREDICTED_EXPOSED: Definition =
    define("comm_exposed", "s", "predicted time of the all-reduces that the backward pass does not hide");
pub const PREDICTED_LAG: Definition =
    define("lag", "s", "predicted time by which the slowest of the ranks ends its own work after their mean");
pub const PREDICTED_ALL_REDUCE: Definition =
    define("all_reduce", "1", "algorithm that the largest bucket is predicted with").unless("one rank");
pub const BATCH_FOR_90: Definition =
    define("batch_for_90_percent", "1", "least batch per rank with an efficiency of 0.9")
        .unless("no batch up to a million reaches it");
pub const STEP_ERROR: Definition =
    define("step error", "percent", "predicted step / measured step, minus 100 %").unless("not measured");

/// Figures explained in docs/reading-the-numbers.md and in the HTML page.
pub const EXPLAINED: [Definition; 45] = [
    DATA,
    FORWARD,
    BACKWARD,
    COMM,
    COMM_WAIT,
    COMM_EXPOSED,
    OPTIMIZER,
    STEP,
    MEAN,
    P50,
    P99,
    MEAN_OF_SLOWEST,
    SHARE,
    OWN_WORK,
    RATIO,
    SLOW_IN,
    EXCESS,
    EXPOSED,
    BUCKET,
    TRIMMED_MEAN,
    STEP_P50,
    STEP_LOW,
    STEP_HIGH,
    OVERLAP,
    ALGBW,
    BUSBW,
    BUSBW_SHARE,
    VOLUME,
    SPEEDUP,
    EFFICIENCY,
    SWEEP_IMAGES_PER_SECOND,
    EPOCH_SECONDS,
    IMAGES_PER_SECOND,
    FLOPS,
    PEAK_SHARE,
    BYTES,
    SENT_BYTES,
    SECONDS,
    READ_BYTES,
    READ_RATE,
    READ_SECONDS,
    READ_WAIT,
    VARIANT_ACCURACY,
    AGAINST_FIRST,
    WON_BACK,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_says_when_there_is_no_figure() {
        assert_eq!(reason(&OVERLAP.long_name()), Some(OVERLAP.absent));
        assert_eq!((reason(&STEP.long_name()), text(&OVERLAP.long_name())), (None, OVERLAP.text));
        let forward = TRIMMED_MEAN.of_part(&FORWARD);
        assert!(forward.starts_with("forward pass and loss: trimmed mean"), "{forward}");
        assert_eq!(reason(&forward), Some(NOT_MEASURED));
    }
}
