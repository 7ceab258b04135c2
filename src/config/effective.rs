//! Normal form of a configuration: keys that the others leave without effect at their defaults. Equal forms train alike.

use super::{
    Algorithm, Anneal, Compression, Config, Convolution, Decay, Model, ModelName, Optim, OptimName, Parallel, Scaling,
    Schedule,
};

impl Config {
    /// The configuration of the same training, on any ranks and samples, with every key that the others leave without effect at its
    /// default.
    pub fn effective(&self) -> Config {
        let mut own = self.clone();
        own.model = own.model.effective();
        own.optim = own.optim.effective();
        own.schedule = own.schedule.effective();
        own.parallel = own.parallel.effective();
        // Without batch norm there are no statistics.
        if own.model.name == ModelName::Net || own.model.name.is_transformer() {
            own.parallel.buffers = Parallel::default().buffers;
        }
        own
    }
}

impl Model {
    /// The section of the same network in one form: keys that the network does not read at their defaults, and its width as a number.
    pub fn effective(&self) -> Model {
        fn set<T: Clone>(name: ModelName, key: &str, value: &mut T, default: &T) {
            if !name.reads(key) {
                value.clone_from(default);
            }
        }
        let (mut own, default, name) = (self.clone(), Model::default(), self.name);
        own.width = self.effective_width();
        set(name, "file", &mut own.file, &default.file);
        set(name, "bias", &mut own.bias, &default.bias);
        set(name, "stem", &mut own.stem, &default.stem);
        set(name, "width", &mut own.width, &default.width);
        set(name, "depth", &mut own.depth, &default.depth);
        set(name, "heads", &mut own.heads, &default.heads);
        set(name, "mlp_ratio", &mut own.mlp_ratio, &default.mlp_ratio);
        set(name, "patch", &mut own.patch, &default.patch);
        set(name, "dropout", &mut own.dropout, &default.dropout);
        set(name, "channels_last", &mut own.channels_last, &default.channels_last);
        set(name, "fused_batch_norm", &mut own.fused_batch_norm, &default.fused_batch_norm);
        set(name, "convolution", &mut own.convolution, &default.convolution);
        if name == ModelName::Net && own.convolution == Convolution::Winograd {
            own.convolution = default.convolution; // it has none for Winograd
        }
        if !own.channels_last {
            own.fused_batch_norm = default.fused_batch_norm;
        }
        own
    }
}

impl Optim {
    fn effective(&self) -> Optim {
        let (mut own, default) = (self.clone(), Optim::default());
        if own.name != OptimName::Lars {
            own.trust = default.trust;
        }
        if own.name.is_adaptive() {
            own.nesterov = default.nesterov;
        } else {
            (own.beta2, own.epsilon) = (default.beta2, default.epsilon);
        }
        own.decay = match own.weight_decay {
            0.0 => default.decay,
            decay if own.weight_decay_of(false) == decay => Decay::All,
            _ => Decay::Matrices,
        };
        own
    }
}

impl Schedule {
    fn effective(&self) -> Schedule {
        let (mut own, default) = (self.clone(), Schedule::default());
        if own.scaling == Scaling::None {
            own.base_batch = default.base_batch;
        }
        if own.warmup_epochs == 0.0 {
            own.warmup_start = default.warmup_start;
        }
        if !matches!(own.anneal, Anneal::Cosine | Anneal::OneCycle) {
            own.least = default.least;
        }
        if own.anneal != Anneal::Step {
            (own.milestones, own.gamma) = (default.milestones, default.gamma);
        }
        own
    }
}

impl Parallel {
    fn effective(&self) -> Parallel {
        let (mut own, default) = (self.clone(), Parallel::default());
        if own.all_reduce != Algorithm::Auto {
            own.crossovers = default.crossovers;
        }
        if own.compression == Compression::None {
            own.compression_start = default.compression_start;
        }
        if own.compression != Compression::Int8 {
            own.compression_block = default.compression_block;
        }
        if own.compression != Compression::PowerSgd {
            own.compression_rank = default.compression_rank;
        }
        if own.local_steps > 1 {
            own.bucket_mb = default.bucket_mb;
        }
        own
    }
}
