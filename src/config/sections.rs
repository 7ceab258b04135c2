//! Sections of the configuration. `[data]`, `[parallel]`, `[sweep]` and `[study]` have files of their own beside this one.

use std::time::Duration;

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

/// Section `[run]` of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Seed of the initial parameters, the order of the samples and the augmentation; an integer,
    /// at least 0.
    pub seed: u64,
    /// Run file to write (HDF5); empty: a new runs/MODEL-RANKSranks-TIME.h5, with the id of the
    /// Slurm job if there is one.
    pub out: String,
}

/// Section `[launch]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Launch {
    /// Device of the ranks: auto, cpu or cuda; auto takes GPUs if every rank of a host can have one
    /// to itself, CPU cores otherwise.
    pub device: Device,
    /// Allows several ranks of a host to share a GPU; gradients are then all-reduced through host
    /// memory.
    pub allow_gpu_sharing: bool,
    /// Treatment of processes that were launched together but not joined by MPI; true: each is a
    /// job of one rank; false: that is an error.
    pub allow_singletons: bool,
    /// Captures forward and backward as CUDA graphs and replays them; needs the memory of one extra
    /// pass. No effect on CPU cores, and none where several ranks overlap their all-reduces.
    pub cuda_graphs: bool,
    /// Compute threads per rank; 0: the cores that the rank may use, divided by the ranks that share
    /// them.
    pub threads: usize,
    /// Seconds until ranks that wait for another time out, at start and end and in the collectives
    /// of train, study, quantize and verify, which ends the job and names the missing rank; 0: never.
    pub comm_timeout_s: f64,
}

impl Launch {
    /// Duration after which a collective times out; zero: never.
    pub fn comm_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.comm_timeout_s).unwrap_or(Duration::ZERO)
    }
}

/// Device that a rank computes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// GPUs if every rank of a host can have one to itself, CPU cores otherwise.
    Auto,
    /// CPU cores.
    #[default]
    Cpu,
    /// A GPU of its own for each rank: the first that it sees and no earlier rank of its host has.
    Cuda,
}

/// Section `[model]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Network: net (two convolutions, three linear layers), resnet18, resnet34, resnet50 or
    /// resnet101, vit (vision transformer), gpt2 (decoder of tokens) or file (model.file).
    pub name: ModelName,
    /// File of the network with model.name = "file": a TorchScript module, as scripts/export.py
    /// writes it; its initial values are those in the file.
    pub file: String,
    /// Adds a bias to the last layer of net.
    pub bias: bool,
    /// First layers of a ResNet: cifar (3x3 convolution; names of PyTorch's usual CIFAR scripts),
    /// imagenet (7x7 convolution of stride 2 and a max-pool; torchvision's names and initial
    /// values) or auto (cifar for images up to 64 pixels wide and high, imagenet for larger ones).
    pub stem: Stem,
    /// Channels of a ResNet's first stage, or width of vit and gpt2; 0: that of the published
    /// network, 64 or 768.
    pub width: usize,
    /// Blocks of vit and gpt2, at least 1.
    pub depth: usize,
    /// Attention heads of vit and gpt2, a divisor of the width; 0: one per 64 of the width.
    pub heads: usize,
    /// Hidden values of the feed-forward part of a block of vit and gpt2, as a multiple of the
    /// width.
    pub mlp_ratio: usize,
    /// Side in pixels of the squares that vit cuts an image into; 0: 4 for images up to 64 pixels
    /// wide and high, 16 for larger ones.
    pub patch: usize,
    /// Share of the values that dropout sets to 0 in the training of vit and gpt2, 0 to below 1.
    pub dropout: f64,
    /// HDF5 file with the initial parameters and batch-norm statistics under PyTorch's names: a run
    /// file, or a state_dict as datasets; empty: they are drawn from run.seed.
    pub weights: String,
    /// Number format of convolutions and linear layers: float32, tf32 (GPUs multiply with 10 bits
    /// of mantissa), bf16 or fp16 (GPUs only, with a dynamic scale of the loss); parameters and
    /// gradients stay float32.
    pub precision: Precision,
    /// Stores images and convolution weights as NHWC, which is faster on most hardware; ResNets
    /// and files only.
    pub channels_last: bool,
    /// Computes batch norm, shortcut and ReLU in fused kernels, on CPU cores and on GPUs (compiled
    /// by NVRTC); false: in libtorch's kernels, which pass over memory more often. No effect without
    /// model.channels_last.
    pub fused_batch_norm: bool,
    /// Computation of convolutions with stride 1 on CPU cores in float32: direct (by libtorch),
    /// winograd (a ResNet's of 3x3 in NHWC with channels that are multiples of 16: a quarter of the
    /// products, rounded otherwise) or auto (a trial at the start decides for each such shape; those
    /// of few channels on small images are hpml's own).
    pub convolution: Convolution,
}

/// Computation of 3x3 convolutions on CPU cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convolution {
    /// Winograd where a trial at the start of the training does not find it slower.
    Auto,
    /// libtorch's.
    Direct,
    /// Winograd's F(4x4, 3x3) wherever it can compute.
    Winograd,
}

/// The networks that hpml trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelName {
    /// Two convolutions and three fully connected layers, 62 thousand parameters on CIFAR-10.
    Net,
    /// ResNet with 18 layers, 11.17 million parameters on CIFAR-10.
    Resnet18,
    /// ResNet with 34 layers.
    Resnet34,
    /// ResNet with 50 layers in bottleneck blocks, 25.56 million parameters on ImageNet.
    Resnet50,
    /// ResNet with 101 layers in bottleneck blocks.
    Resnet101,
    /// Vision transformer, 86.57 million parameters on ImageNet.
    Vit,
    /// Decoder of tokens as GPT-2, 124.44 million parameters with its vocabulary.
    Gpt2,
    /// Network in the file `model.file`.
    File,
}

impl ModelName {
    /// Name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            ModelName::Net => "net",
            ModelName::Resnet18 => "resnet18",
            ModelName::Resnet34 => "resnet34",
            ModelName::Resnet50 => "resnet50",
            ModelName::Resnet101 => "resnet101",
            ModelName::Vit => "vit",
            ModelName::Gpt2 => "gpt2",
            ModelName::File => "file",
        }
    }

    /// Whether the network is a ResNet, with batch norm.
    pub fn is_resnet(self) -> bool {
        matches!(self, ModelName::Resnet18 | ModelName::Resnet34 | ModelName::Resnet50 | ModelName::Resnet101)
    }

    /// Whether the network is a transformer.
    pub fn is_transformer(self) -> bool {
        matches!(self, ModelName::Vit | ModelName::Gpt2)
    }

    /// Whether the network reads `key` of `[model]`.
    pub fn reads(self, key: &str) -> bool {
        match key {
            "bias" => self == ModelName::Net,
            "file" => self == ModelName::File,
            "stem" | "fused_batch_norm" => self.is_resnet(),
            "convolution" => self.is_resnet() || self == ModelName::Net,
            "channels_last" => self.is_resnet() || self == ModelName::File,
            "width" => self.is_resnet() || self.is_transformer(),
            "depth" | "heads" | "mlp_ratio" | "dropout" => self.is_transformer(),
            "patch" => self == ModelName::Vit,
            _ => true,
        }
    }
}

impl Model {
    /// Width of the network: the published one, 64 for a ResNet and 768 for a transformer, where `width` is 0.
    pub fn effective_width(&self) -> usize {
        match self.width {
            0 if self.name.is_resnet() => 64,
            0 if self.name.is_transformer() => 768,
            width => width,
        }
    }
}

/// First layers of a ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// `Cifar` for images up to 64 pixels wide and high, `Imagenet` for larger ones.
    Auto,
    /// 3x3 convolution.
    Cifar,
    /// 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2.
    Imagenet,
}

/// Number format of convolutions and matrix products; parameters and gradients are always float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE single precision.
    Float32,
    /// IEEE single precision, but a GPU's matrix units multiply with 10 bits of mantissa.
    Tf32,
    /// bfloat16 in convolutions and linear layers; other operations keep the format of their inputs (autocast's rule).
    Bf16,
    /// IEEE half precision where bf16 has bfloat16, on GPUs only; the loss is scaled so that small gradients are not lost.
    Fp16,
}

/// Section `[train]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Passes over the training samples; at least 1.
    pub epochs: usize,
    /// Samples per rank and batch; at least 1. The global batch is batch_per_rank x accumulate x
    /// ranks, or the samples of an epoch if they are fewer.
    pub batch_per_rank: usize,
    /// Samples per optimizer step over all ranks, at most the training set; 0: batch_per_rank
    /// decides.
    pub global_batch: usize,
    /// Learning rate; not scaled with the number of ranks unless schedule.scaling says so.
    pub lr: f64,
    /// Batches per rank and optimizer step, whose gradients are summed before one all-reduce; at
    /// least 1.
    pub accumulate: usize,
    /// Optimizer steps after which the training ends, counted over all epochs; 0: train.epochs
    /// decides.
    pub max_steps: usize,
    /// Share of the target that is spread evenly over the classes, 0 to below 1; in training only.
    pub label_smoothing: f64,
    /// Samples per rank and batch of the test; at least 1.
    pub test_batch: usize,
}

/// Section `[optim]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// Optimizer: sgd, lars (SGD with layer-wise rates), adam, adamw (Adam with decoupled weight
    /// decay) or lamb (Adam with layer-wise rates).
    pub name: OptimName,
    /// Momentum of sgd and lars; beta1 of adam, adamw and lamb: decay per step of their average of
    /// gradients. 0 to below 1.
    pub momentum: f64,
    /// Multiple of the parameters that is added to the gradient (adamw, lamb: to the step). 0: none.
    pub weight_decay: f64,
    /// Parameters that weight_decay holds for: all, matrices (those of two and more dimensions:
    /// weights and embeddings, but no biases and no scales of norms) or auto (all with sgd, adam and
    /// adamw, as in PyTorch; matrices with lars and lamb).
    pub decay: Decay,
    /// Uses Nesterov momentum; sgd and lars only.
    pub nesterov: bool,
    /// Largest L2 norm of the mean gradient over all parameters, to which a larger one is scaled
    /// down; 0: no limit.
    pub clip_norm: f64,
    /// Trust coefficient of lars: a layer's rate is lr * trust * |weights| / (|gradient| +
    /// weight_decay * |weights|).
    pub trust: f64,
    /// Decay per step of the average of squared gradients of adam, adamw and lamb; 0 to below 1.
    pub beta2: f64,
    /// Constant that adam, adamw and lamb add to the root of the average of squared gradients; at
    /// least 0. PyTorch's Adam and AdamW have 1e-8.
    pub epsilon: f64,
    /// Decay per step of a moving average of the weights, which is then the network that is tested
    /// and saved. Batch-norm statistics are measured for it over 2,048 training images at the end
    /// of every epoch. 0: no average.
    pub ema: f64,
}

/// Optimizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimName {
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// SGD with a rate per layer, in proportion to the ratio of the norms of weights and gradient.
    Lars,
    /// Adam; weight decay is part of the gradient.
    Adam,
    /// Adam with weight decay beside the gradient, in proportion to the learning rate.
    AdamW,
    /// Adam with a rate per layer, in proportion to the ratio of the norms of weights and step.
    Lamb,
}

impl OptimName {
    /// Whether the step divides by the root of an average of squared gradients.
    pub fn is_adaptive(self) -> bool {
        matches!(self, OptimName::Adam | OptimName::AdamW | OptimName::Lamb)
    }
}

/// Parameters that weight decay holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// As the optimizer's authors do: all with SGD, Adam and AdamW, matrices with LARS and LAMB.
    Auto,
    /// All parameters.
    All,
    /// Parameters of two and more dimensions.
    Matrices,
}

impl Optim {
    /// Weight decay of a parameter, by whether it is a matrix (of two and more dimensions).
    pub fn weight_decay_of(&self, matrix: bool) -> f64 {
        let all = match self.decay {
            Decay::All => true,
            Decay::Matrices => false,
            Decay::Auto => !matches!(self.name, OptimName::Lars | OptimName::Lamb),
        };
        if all || matrix { self.weight_decay } else { 0.0 }
    }
}

/// Section `[schedule]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Scaling of train.lr with the global batch: none, linear (global batch / base_batch) or sqrt
    /// (its square root).
    pub scaling: Scaling,
    /// Global batch that train.lr was chosen for, in samples; at least 1.
    pub base_batch: usize,
    /// Epochs over which the rate rises to its full value; 0: no warm-up.
    pub warmup_epochs: f64,
    /// Rate at the start of the warm-up, as a fraction of the full rate.
    pub warmup_start: f64,
    /// Rate after the warm-up: constant, cosine (until the last step), step (times gamma at each
    /// milestone) or onecycle (warm-up and decay along cosines).
    pub anneal: Anneal,
    /// Final rate of cosine and onecycle, as a fraction of the full rate.
    pub least: f64,
    /// Epochs at which the rate is multiplied by gamma (schedule.anneal = "step"); empty: never.
    pub milestones: Vec<f64>,
    /// Factor applied to the rate at each milestone (schedule.anneal = "step").
    pub gamma: f64,
}

/// Scaling of the learning rate with the global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// No scaling.
    None,
    /// Rate in proportion to the global batch.
    Linear,
    /// Rate in proportion to the square root of the global batch.
    Sqrt,
}

/// Course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anneal {
    /// The full rate until the end.
    Constant,
    /// Decay along half a cosine.
    Cosine,
    /// Multiplication by `gamma` at each milestone.
    Step,
    /// Warm-up along half a cosine and decay along another.
    OneCycle,
}

/// Section `[checkpoint]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Epochs from one checkpoint to the next, written beside the run file; 0: only every_minutes
    /// decides.
    pub every_epochs: usize,
    /// Minutes from one checkpoint to the next; 0: only every_epochs decides. A signal that ends
    /// the run also writes one.
    pub every_minutes: f64,
    /// Checkpoints to keep; older ones are removed. At least 1.
    pub keep: usize,
}

/// Section `[metrics]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Timing of a step: overlap (buckets are reduced during the backward pass) or profile (no
    /// overlap and a barrier before each collective, so that the parts add up to the step).
    pub timing: Timing,
    /// First steps of a job that are trained but not counted in the step times, unless there are no
    /// others.
    pub warmup_steps: usize,
    /// Rows of /steps at most: a training with more steps x ranks keeps those of steps at equal
    /// distances and of the slowest, and the moments and histograms of all.
    pub step_rows: usize,
    /// Steps from one measurement of the divergence (distance between the ranks' parameters) to the
    /// next; every rank's own network is then tested at the end of an epoch, too. 0: never.
    pub spread_steps: usize,
    /// Seconds from one line on stderr that says how far the work is to the next, where stderr is no
    /// terminal, and from one interval of metrics.log and metrics.tensorboard to the next; 0: none.
    pub progress_seconds: f64,
    /// File of JSON lines that a training writes while it runs: an object per interval and per
    /// epoch; --resume continues it. Empty: none.
    pub log: String,
    /// Folder of TensorBoard event files that a training writes while it runs. Empty: none.
    pub tensorboard: String,
    /// Steps of which each span is kept, on every rank, for a timeline: ranges such as "100..110" (100
    /// to 109), single steps and "every 1000", separated by commas. Empty: none.
    pub trace_steps: String,
    /// Multiplies matrices for a fifth of a second after the last step, on all ranks, to say which share of
    /// the devices' peak the training reached. No other figure contains this time.
    pub peak: bool,
}

/// Timing mode of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Timing {
    /// Fastest mode: buckets are reduced while the backward pass still computes.
    Overlap,
    /// Mode without overlap and with a barrier before each collective, so that the parts add up to the step.
    Profile,
}

impl Timing {
    /// Name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Timing::Overlap => "overlap",
            Timing::Profile => "profile",
        }
    }
}

/// Section `[quantize]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Quantize {
    /// Quantizes the network to int8 after the training.
    pub enabled: bool,
    /// Training images, counted from the first, from which activation ranges are measured, or all
    /// that there are; at least 1.
    pub calibration_images: usize,
    /// Range of the weights: max (largest magnitude), sigma3 (mean and 3 standard deviations),
    /// percentile, or mse (least mean squared error).
    pub weight_range: RangeFrom,
    /// Range of the activations: max, sigma3, percentile or mse, as for weight_range.
    pub activation_range: RangeFrom,
    /// Percent of the values within the range if weight_range or activation_range is percentile;
    /// above 50, at most 100.
    pub percentile: f64,
    /// Gives every output channel its own weight scale; false: one scale per layer. The last layer
    /// always has one scale.
    pub per_channel: bool,
    /// Largest acceptable loss of accuracy, in percentage points; beyond it the network is
    /// finetuned (finetune_epochs), and a warning is given if that is off or not enough.
    pub max_drop: f64,
    /// Epochs, or a fraction of one, of training with quantized weights and activations if int8
    /// loses more than max_drop; 0: none.
    pub finetune_epochs: f64,
    /// Initial learning rate of the finetuning, decayed linearly to 0; its batch size is
    /// train.batch_per_rank.
    pub finetune_lr: f64,
}

/// Rule for the magnitude that the largest quantized value represents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RangeFrom {
    /// Largest magnitude.
    Max,
    /// Mean plus three standard deviations, or the largest magnitude if that is less.
    Sigma3,
    /// Percentile `quantize.percentile` of the magnitudes.
    Percentile,
    /// Range with the least mean squared error.
    Mse,
}
