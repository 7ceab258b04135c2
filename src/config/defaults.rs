//! Built-in defaults, with which alone `mpirun -n 4 hpml` is a complete run on the embedded data.

use super::*;

impl Default for Launch {
    fn default() -> Self {
        Launch {
            device: Device::Auto,
            allow_gpu_sharing: false,
            allow_singletons: false,
            cuda_graphs: true,
            threads: 0,
            comm_timeout_s: 600.0,
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Data {
            dir: data::SYNTHETIC.into(),
            shape: Vec::new(),
            classes: 0,
            images: "images".into(),
            labels: "labels".into(),
            test_images: "test_images".into(),
            test_labels: "test_labels".into(),
            test_dir: String::new(),
            layout: Layout::Auto,
            train_samples: 0,
            test_samples: 0,
            shuffle: true,
            set_epoch: true,
            shares: Shares::Disjoint,
            drop_last: false,
            augment: false,
            mean: vec![0.5; 3],
            std: vec![0.5; 3],
            prefetch: 4,
            threads: 0,
            cache_mb: 256,
            gpu_mb: 8192,
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Model {
            name: ModelName::Net,
            file: String::new(),
            bias: false,
            stem: Stem::Auto,
            width: 0,
            depth: 12,
            heads: 0,
            mlp_ratio: 4,
            patch: 0,
            dropout: 0.0,
            weights: String::new(),
            precision: Precision::Float32,
            channels_last: true,
            fused_batch_norm: true,
            convolution: Convolution::Auto,
        }
    }
}

impl Default for Train {
    fn default() -> Self {
        Train {
            epochs: 2,
            batch_per_rank: 8,
            global_batch: 0,
            lr: 0.01,
            accumulate: 1,
            max_steps: 0,
            label_smoothing: 0.0,
            test_batch: 250,
        }
    }
}

impl Default for Optim {
    fn default() -> Self {
        Optim {
            name: OptimName::Sgd,
            momentum: 0.9,
            weight_decay: 0.0,
            decay: Decay::Auto,
            nesterov: false,
            clip_norm: 0.0,
            trust: 0.001,
            beta2: 0.999,
            epsilon: 1e-6,
            ema: 0.0,
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            scaling: Scaling::None,
            base_batch: 128,
            warmup_epochs: 0.0,
            warmup_start: 0.1,
            anneal: Anneal::Constant,
            least: 0.0,
            milestones: Vec::new(),
            gamma: 0.1,
        }
    }
}

impl Default for Parallel {
    fn default() -> Self {
        Parallel {
            bucket_mb: 8.0,
            all_reduce: Algorithm::Auto,
            crossovers: Vec::new(),
            buffers: BufferSync::Broadcast,
            broadcast_parameters: true,
            same_seed: true,
            lr_spread: 0.0,
            compression: Compression::None,
            compression_block: 256,
            compression_rank: 4,
            compression_start: 0,
            local_steps: 1,
        }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Checkpoint { every_epochs: 0, every_minutes: 10.0, keep: 2 }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            timing: Timing::Overlap,
            warmup_steps: 3,
            step_rows: 500_000,
            spread_steps: 0,
            trace_steps: String::new(),
            progress_seconds: 10.0,
            log: String::new(),
            tensorboard: String::new(),
            peak: true,
        }
    }
}

impl Default for Quantize {
    fn default() -> Self {
        Quantize {
            enabled: false,
            calibration_images: 400,
            weight_range: RangeFrom::Max,
            activation_range: RangeFrom::Max,
            percentile: 99.99,
            per_channel: true,
            max_drop: 0.3,
            finetune_epochs: 0.0,
            finetune_lr: 0.001,
        }
    }
}

impl Default for Sweep {
    fn default() -> Self {
        Sweep {
            model: Vec::new(),
            batch_per_rank: Vec::new(),
            ranks: Vec::new(),
            timing: vec![Timing::Profile, Timing::Overlap],
            rounds: 3,
            seconds: 12.0,
            precision: 0.02,
        }
    }
}

impl Default for Study {
    fn default() -> Self {
        Study { seeds: vec![0, 1, 2], variants: Vec::new() }
    }
}
