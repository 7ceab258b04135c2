//! The only check of the values, before any rank works. An error names the key, the value and what is allowed.

use super::{Algorithm, BufferSync, Compression, Config, Convolution, ModelName, Precision, TraceSteps};
use crate::error::{Error, Result};

impl Config {
    /// Refuses values out of range. `place` is the file or the command line they came from.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] with the first such key.
    pub(super) fn validate(&self, place: &str) -> Result<()> {
        let refuse = |key: &str, value: String, expected: &str| {
            Err(Error::ConfigValue { place: place.into(), key: key.into(), value, expected: expected.into() })
        };
        let at_least_one = [
            ("train.epochs", self.train.epochs),
            ("train.batch_per_rank", self.train.batch_per_rank),
            ("train.test_batch", self.train.test_batch),
            ("model.depth", self.model.depth),
            ("model.mlp_ratio", self.model.mlp_ratio),
            ("data.prefetch", self.data.prefetch),
            ("data.cache_mb", self.data.cache_mb),
            ("train.accumulate", self.train.accumulate),
            ("parallel.local_steps", self.parallel.local_steps),
            ("schedule.base_batch", self.schedule.base_batch),
            ("checkpoint.keep", self.checkpoint.keep),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return refuse(key, value.to_string(), "must be at least 1");
            }
        }
        let at_most = [
            ("train.epochs", self.train.epochs, 100_000),
            ("train.batch_per_rank", self.train.batch_per_rank, 1 << 20),
            ("train.test_batch", self.train.test_batch, 1 << 20),
            ("train.accumulate", self.train.accumulate, 1 << 20),
            ("model.width", self.model.width, 65_536),
            ("model.depth", self.model.depth, 1024),
            ("model.heads", self.model.heads, 1024),
            ("model.mlp_ratio", self.model.mlp_ratio, 64),
            ("model.patch", self.model.patch, 1024),
            ("data.prefetch", self.data.prefetch, 1024),
            ("data.threads", self.data.threads, 256),
            ("data.cache_mb", self.data.cache_mb, 1 << 24),
            ("data.gpu_mb", self.data.gpu_mb, 1 << 24),
            ("data.classes", self.data.classes, 1 << 24),
            ("data.train_samples", self.data.train_samples, u32::MAX as usize), // indices are 32 bits
            ("data.test_samples", self.data.test_samples, u32::MAX as usize),
            ("launch.threads", self.launch.threads, 4096),
            ("checkpoint.every_epochs", self.checkpoint.every_epochs, 100_000),
            ("checkpoint.keep", self.checkpoint.keep, 1000),
        ];
        for (key, value, most) in at_most {
            if value > most {
                return refuse(key, value.to_string(), &format!("must be at most {most}"));
            }
        }
        if let Err(wrong) = TraceSteps::parse(&self.metrics.trace_steps) {
            return refuse("metrics.trace_steps", format!("{:?}", self.metrics.trace_steps), &wrong);
        }
        if i64::try_from(self.run.seed).is_err() {
            return refuse("run.seed", self.run.seed.to_string(), "must be below 2^63");
        }
        if !(self.train.lr.is_finite() && self.train.lr > 0.0) {
            return refuse("train.lr", self.train.lr.to_string(), "must be a number above 0");
        }
        let below_one = [
            ("optim.momentum", self.optim.momentum),
            ("optim.beta2", self.optim.beta2),
            ("optim.ema", self.optim.ema),
            ("model.dropout", self.model.dropout),
            ("train.label_smoothing", self.train.label_smoothing),
        ];
        for (key, value) in below_one {
            if !(0.0..1.0).contains(&value) {
                return refuse(key, value.to_string(), "must be at least 0 and below 1");
            }
        }
        let schedule = &self.schedule;
        let not_negative = [
            ("optim.weight_decay", self.optim.weight_decay),
            ("optim.clip_norm", self.optim.clip_norm),
            ("optim.trust", self.optim.trust),
            ("optim.epsilon", self.optim.epsilon),
            ("schedule.warmup_epochs", schedule.warmup_epochs),
            ("schedule.warmup_start", schedule.warmup_start),
            ("schedule.least", schedule.least),
            ("schedule.gamma", schedule.gamma),
            ("launch.comm_timeout_s", self.launch.comm_timeout_s),
            ("metrics.progress_seconds", self.metrics.progress_seconds),
            ("checkpoint.every_minutes", self.checkpoint.every_minutes),
            ("quantize.finetune_lr", self.quantize.finetune_lr),
        ];
        for (key, value) in not_negative {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(key, value.to_string(), "must be a number, at least 0");
            }
        }
        if schedule.milestones.iter().any(|epoch| !(epoch.is_finite() && *epoch >= 0.0)) {
            return refuse("schedule.milestones", format!("{:?}", schedule.milestones), "must be epochs, at least 0");
        }
        if !(self.parallel.bucket_mb > 0.0 && self.parallel.bucket_mb <= 65_536.0) {
            return refuse("parallel.bucket_mb", self.parallel.bucket_mb.to_string(), "must be above 0, at most 65536");
        }
        if !(self.parallel.lr_spread.is_finite() && self.parallel.lr_spread >= 0.0) {
            return refuse("parallel.lr_spread", self.parallel.lr_spread.to_string(), "must be a number, at least 0");
        }
        let parallel = &self.parallel;
        if !(64..=65_536).contains(&parallel.compression_block) {
            return refuse("parallel.compression_block", parallel.compression_block.to_string(), "must be 64 to 65536");
        }
        if !(1..=64).contains(&parallel.compression_rank) {
            return refuse("parallel.compression_rank", parallel.compression_rank.to_string(), "must be 1 to 64");
        }
        if parallel.compression == Compression::Int8 && parallel.all_reduce != Algorithm::Auto {
            let expected =
                "int8 compression has its own algorithm: leave this at auto or choose another parallel.compression";
            return refuse("parallel.all_reduce", parallel.all_reduce.as_str().into(), expected);
        }
        if !matches!(parallel.crossovers[..], [] | [_, _] | [_, _, _]) || !parallel.crossovers.is_sorted() {
            let expected = "must be two or three sizes in bytes, ascending, or [] to measure them";
            return refuse("parallel.crossovers", format!("{:?}", parallel.crossovers), expected);
        }
        if parallel.local_steps > 1 {
            let steps = parallel.local_steps.to_string();
            if parallel.compression != Compression::None {
                let expected =
                    "above 1 no gradients are sent to compress: set parallel.compression = \"none\" or this to 1";
                return refuse("parallel.local_steps", steps, expected);
            }
            if parallel.buffers == BufferSync::Sync {
                let expected =
                    "sync batch norm couples the ranks in every step: set parallel.buffers = \"average\" or this to 1";
                return refuse("parallel.local_steps", steps, expected);
            }
            if self.optim.ema > 0.0 {
                let expected = "the ranks' averages of the weights would differ: set optim.ema = 0 or this to 1";
                return refuse("parallel.local_steps", steps, expected);
            }
        }
        if self.data.dir.is_empty() {
            let expected =
                "must be a file or folder of data, or synthetic for a set without files (is a shell variable unset?)";
            return refuse("data.dir", "\"\"".into(), expected);
        }
        let shape = &self.data.shape;
        if !matches!(shape.len(), 0 | 1 | 3) || shape.iter().any(|extent| !(1..=1 << 20).contains(extent)) {
            let expected = "must be [channels, height, width] of images, [length] of token sequences, or []";
            return refuse("data.shape", format!("{shape:?}"), expected);
        }
        if shape.iter().product::<usize>() > 1 << 28 {
            return refuse("data.shape", format!("{shape:?}"), "must be at most 2^28 values");
        }
        let names = [
            ("data.images", &self.data.images),
            ("data.labels", &self.data.labels),
            ("data.test_images", &self.data.test_images),
            ("data.test_labels", &self.data.test_labels),
        ];
        if let Some((key, _)) = names.into_iter().find(|(_, name)| name.is_empty()) {
            return refuse(key, "\"\"".into(), "must be the name of a dataset (is a shell variable unset?)");
        }
        let (mean, std) = (&self.data.mean, &self.data.std);
        if mean.is_empty() || mean.iter().any(|mean| !mean.is_finite()) {
            return refuse("data.mean", format!("{mean:?}"), "must be finite numbers, one per channel");
        }
        if std.is_empty() || std.iter().any(|std| !std.is_finite() || *std <= 0.0) {
            return refuse("data.std", format!("{std:?}"), "must be numbers above 0, one per channel");
        }
        let quantize = &self.quantize;
        if quantize.calibration_images == 0 {
            return refuse("quantize.calibration_images", "0".into(), "must be at least 1");
        }
        if !(quantize.percentile > 50.0 && quantize.percentile <= 100.0) {
            return refuse("quantize.percentile", quantize.percentile.to_string(), "must be above 50, at most 100");
        }
        if !(0.0..=1000.0).contains(&quantize.finetune_epochs) {
            return refuse("quantize.finetune_epochs", quantize.finetune_epochs.to_string(), "must be 0 to 1000");
        }
        if !(0.0..=100.0).contains(&quantize.max_drop) {
            return refuse("quantize.max_drop", quantize.max_drop.to_string(), "must be 0 to 100");
        }
        if self.model.bias && self.model.name != ModelName::Net {
            return refuse("model.bias", "true".into(), "belongs to model.name = \"net\" only (its fc3)");
        }
        let reads_file = self.model.name == ModelName::File || self.sweep.model.contains(&ModelName::File);
        if reads_file == self.model.file.is_empty() {
            let (value, expected) = match self.model.file.is_empty() {
                true => ("\"\"".into(), "must name a model file with model.name = \"file\", made by scripts/export.py"),
                false => (format!("{:?}", self.model.file), "belongs to model.name = \"file\""),
            };
            return refuse("model.file", value, expected);
        }
        if quantize.enabled && self.model.name == ModelName::File {
            return refuse(
                "quantize.enabled",
                "true".into(),
                "a network of model.name = \"file\" has no int8 form: set it to false",
            );
        }
        let sweep = &self.sweep;
        for (key, values, most) in
            [("sweep.batch_per_rank", &sweep.batch_per_rank, 1 << 20), ("sweep.ranks", &sweep.ranks, 1 << 20)]
        {
            if let Some(value) = values.iter().find(|value| !(1..=most).contains(*value)) {
                return refuse(key, value.to_string(), &format!("must be numbers from 1 to {most}"));
            }
        }
        if !(1..=100).contains(&sweep.rounds) {
            return refuse("sweep.rounds", sweep.rounds.to_string(), "must be 1 to 100");
        }
        if sweep.timing.is_empty() {
            return refuse("sweep.timing", "[]".into(), "must name profile, overlap or both");
        }
        if !(sweep.seconds > 0.0 && sweep.seconds <= 86_400.0) {
            return refuse("sweep.seconds", sweep.seconds.to_string(), "must be above 0, at most 86400");
        }
        if !(sweep.precision > 0.0 && sweep.precision < 1.0) {
            return refuse("sweep.precision", sweep.precision.to_string(), "must be above 0, below 1");
        }
        Ok(())
    }

    /// Refuses keys that only GPUs support.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] with the first such key.
    pub fn check_for_cpu(&self) -> Result<()> {
        let model = &self.model;
        let in_full = matches!(model.precision, Precision::Float32 | Precision::Tf32);
        if model.convolution == Convolution::Winograd && model.name.is_resnet() && !(model.channels_last && in_full) {
            return Err(Error::ConfigValue {
                place: "model".into(),
                key: "model.convolution".into(),
                value: "\"winograd\"".into(),
                expected: "computes in float32 and NHWC: set model.precision = \"float32\" and model.channels_last = true, or \
                           \"auto\""
                    .into(),
            });
        }
        if self.model.precision != Precision::Fp16 {
            return Ok(());
        }
        Err(Error::ConfigValue {
            place: "launch.device".into(),
            key: "model.precision".into(),
            value: "fp16".into(),
            expected: "not supported on CPU cores: set bf16 (or float32), or use a GPU".into(),
        })
    }

    /// Refuses keys that only CPU ranks support; with `through_host`, also those that need gradients to stay on the GPU.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] with the first such key.
    pub fn check_for_gpu(&self, through_host: bool) -> Result<()> {
        let parallel = &self.parallel;
        let refused = [
            (
                "model.convolution",
                self.model.name.is_resnet() && self.model.convolution == Convolution::Winograd,
                "winograd".to_owned(),
            ),
            ("parallel.buffers", parallel.buffers == BufferSync::Sync, "sync".to_owned()),
            ("parallel.local_steps", parallel.local_steps > 1, parallel.local_steps.to_string()),
            ("parallel.compression_start", parallel.compression_start > 0, parallel.compression_start.to_string()),
            (
                "parallel.compression",
                parallel.compression != Compression::None
                    && (through_host || matches!(parallel.compression, Compression::Int8 | Compression::PowerSgd)),
                parallel.compression.as_str().to_owned(),
            ),
        ];
        match refused.into_iter().find(|(_, is_set, _)| *is_set) {
            None => Ok(()),
            Some((key, _, value)) => Err(Error::ConfigValue {
                place: "launch.device".into(),
                key: key.into(),
                value,
                expected: "not supported on GPUs (of the compressions only bf16 and fp16 are, through NCCL): remove it, or set \
                           launch.device = \"cpu\""
                    .into(),
            }),
        }
    }
}
