//! Networks from files (`model.name = "file"`): a TorchScript module as a [`Network`], and the check that it carries.
//!
//! In: `model.file`. Out: a [`Model`] whose entries are the module's own tensors under their true names. What is particular to
//! TorchScript lies in [`Script`]: another reader gives tensors by name, a forward pass and a mode as it does. TorchScript is
//! deprecated in PyTorch since 2.11; its successor torch.export cannot train from C++ yet.

mod check;
mod description;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

pub use check::check;
use description::Description;

use super::{Entry, Mode, Model, Network, Role, Standardize};
use crate::config::{self, Precision};
use crate::data::Form;
use crate::error::{Error, Result};
use crate::sys::{Autocast, LIBTORCH_VERSION, Script, ScriptBatchNorm, ScriptFacts, ScriptTensor, seeded};

/// Samples of the passes with which a module is tried out: more than one, for batch norm.
const TRIED: i64 = 2;

/// A TorchScript module that was read.
struct Module {
    path: PathBuf,
    script: Script,
    facts: ScriptFacts,
    tensors: Vec<ScriptTensor>,
    /// What scripts/export.py wrote into the archive; `None` for a file of torch.jit.save alone.
    description: Option<Description>,
}

impl Module {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The file is missing, none of TorchScript, damaged, or holds what cannot be trained.
    fn read(path: &Path) -> Result<Module> {
        let refuse = |message: String| Error::File { path: path.to_owned(), message };
        std::fs::File::open(path).map_err(|error| refuse(format!("model.file cannot be opened: {error}")))?;
        let (script, text) =
            Script::load(path, description::FILE).map_err(|message| refuse(why_unreadable(path, &message)))?;
        let description = (!text.is_empty()).then(|| Description::parse(&text)).transpose().map_err(refuse)?;
        let module =
            Module { path: path.to_owned(), facts: script.facts(), tensors: script.tensors(), script, description };
        module.check_trainable()?;
        Ok(module)
    }

    fn refuse<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::File { path: self.path.clone(), message: message.into() })
    }

    /// Refuses what would not train, or not as it did in PyTorch.
    fn check_trainable(&self) -> Result<()> {
        let facts = self.facts;
        if facts.autocast {
            return self.refuse(
                "its forward enters autocast, which TorchScript does by rules of its own (over a convolution with a bias it \
                 fails): take autocast out of the model, export it again, and set model.precision = \"bf16\"",
            );
        }
        if facts.baked_test && !facts.baked_training && !facts.reads_mode {
            return self.refuse(
                "was traced in eval mode, so that dropout and batch norm would do in training what they do in a test: script it \
                 with scripts/export.py, or trace it in training mode (--trace)",
            );
        }
        if !self.tensors.iter().any(|tensor| tensor.is_parameter && tensor.tensor.requires_grad()) {
            return self.refuse(
                "has no parameter to train: export the model itself, before torch.jit.freeze or quantization, with \
                 requires_grad of what is trained",
            );
        }
        let floats = [Kind::Float, Kind::Int64, Kind::Int, Kind::Int16, Kind::Int8, Kind::Uint8, Kind::Bool];
        for ScriptTensor { name, tensor, is_parameter, .. } in &self.tensors {
            let allowed = if *is_parameter { &floats[..1] } else { &floats[..] };
            if !allowed.contains(&tensor.kind()) {
                let message = format!(
                    "{name} is {:?}, expected float32: call .float() on the model before it is exported; hpml computes in \
                     bfloat16 with model.precision = \"bf16\"",
                    tensor.kind()
                );
                return self.refuse(message);
            }
        }
        self.check_overlap()
    }

    /// Refuses tensors that share memory and are two: each would get a place of its own.
    fn check_overlap(&self) -> Result<()> {
        let mut extents: Vec<(usize, usize, &str)> = Vec::new();
        for (index, ScriptTensor { name, tensor, first, .. }) in self.tensors.iter().enumerate() {
            if *first == index && tensor.numel() > 0 {
                let last: i64 =
                    tensor.size().iter().zip(tensor.stride()).map(|(extent, stride)| (extent - 1) * stride).sum();
                let start = tensor.data_ptr() as usize;
                extents.push((start, start + (last as usize + 1) * tensor.kind().elt_size_in_bytes(), name));
            }
        }
        extents.sort_unstable();
        match extents.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            None => Ok(()),
            Some(pair) => self.refuse(format!(
                "{} and {} share memory but are two tensors: make them one in PyTorch (a.weight = b.weight), or copies",
                pair[0].2, pair[1].2
            )),
        }
    }

    /// The entries of the state. Names that the description does not list are of buffers that no state_dict has.
    fn state(&self) -> Vec<Entry> {
        let is_saved = |name: &String| self.description.as_ref().is_none_or(|own| own.state.contains(name));
        let entry = |(index, given): (usize, &ScriptTensor)| Entry {
            name: given.name.clone(),
            role: match given.tensor.kind() {
                _ if given.first != index => Role::Tied,
                _ if given.is_parameter && given.tensor.requires_grad() => Role::Parameter,
                _ if given.is_parameter => Role::Frozen,
                _ if !is_saved(&given.name) => Role::Constant,
                Kind::Float => Role::Buffer,
                _ => Role::Counter,
            },
            tensor: given.tensor.shallow_clone(),
        };
        self.tensors.iter().enumerate().map(entry).collect()
    }

    /// Whether dropout and batch norm were traced in training mode, and follow the mode by hpml's doing.
    fn is_traced(&self) -> bool {
        self.facts.baked_training && !self.facts.reads_mode
    }

    /// Multiplications and additions per sample of this `form`, from the description.
    ///
    /// # Errors
    /// Returns why they are not known, with the mend.
    fn operations(&self, form: Form) -> Result<[u64; 2], String> {
        let without = || {
            "was written by torch.jit.save alone: write it with scripts/export.py, which counts operations".to_owned()
        };
        let found = self.description.as_ref().ok_or_else(without).and_then(|description| description.operations(form));
        found.map_err(|reason| format!("{}: {reason}", self.path.display()))
    }

    /// The module as a network for samples of this `form`.
    fn into_network(self, precision: Precision, form: Form) -> FileNetwork {
        let operations = self.operations(form);
        // A trace counts its passes whatever the mode.
        let counted =
            |given: &&ScriptTensor| self.is_traced() && !given.is_parameter && given.tensor.kind() != Kind::Float;
        let counters = self.tensors.iter().filter(counted).map(|given| given.tensor.shallow_clone()).collect();
        let draws = self.description.as_ref().is_none_or(|description| description.check.random);
        FileNetwork { script: self.script, is_training: Cell::new(None), precision, draws, counters, operations }
    }
}

/// Reason why libtorch could not read the file at `path`, from its `message` of many lines.
fn why_unreadable(path: &Path, message: &str) -> String {
    let start = std::fs::File::open(path).and_then(|mut file| {
        let mut start = [0; 4];
        std::io::Read::read_exact(&mut file, &mut start).map(|()| start)
    });
    let first = message.lines().next().unwrap_or_default();
    if !matches!(start, Ok([b'P', b'K', 3, 4])) {
        return "is no TorchScript file, which scripts/export.py or torch.jit.save writes".into();
    }
    if is_exported(path) {
        return "is an archive of torch.export, which cannot be trained from C++ yet: write the model with scripts/export.py"
            .into();
    }
    if message.contains("constants.pkl") {
        return "has no code, only weights (of torch.save?): write the model with scripts/export.py or torch.jit.save"
            .into();
    }
    if message.contains("central directory") || message.contains("failed finding") || message.contains("failed reading")
    {
        return format!("is cut short or damaged: copy or export it again ({first})");
    }
    format!("cannot be read by libtorch {LIBTORCH_VERSION}: {first}: export it again with that version")
}

/// Whether the archive at `path` is one of torch.export: a member has the name of its program.
fn is_exported(path: &Path) -> bool {
    let member = b"models/model.json";
    std::fs::read(path).is_ok_and(|bytes| bytes.windows(member.len()).any(|bytes| bytes == member))
}

/// The line of libtorch's `message` that says what failed: the interpreter puts a trace of the module's source before it.
fn reason(message: &str) -> &str {
    let mut lines = message.lines().filter(|line| !line.trim().is_empty());
    let last =
        message.lines().rev().find_map(|line| line.trim_start_matches("builtins.").strip_prefix("RuntimeError: "));
    last.or_else(|| lines.next()).unwrap_or("no reason given")
}

/// A module's forward pass.
struct FileNetwork {
    script: Script,
    is_training: Cell<Option<bool>>,
    /// Number format of convolutions and matrix products, by autocast.
    precision: Precision,
    /// Whether it draws random numbers in training.
    draws: bool,
    /// Integer buffers that a test must leave as they are.
    counters: Vec<Tensor>,
    /// Multiplications and additions per sample, or why they are not known.
    operations: Result<[u64; 2], String>,
}

impl FileNetwork {
    fn logits(&self, inputs: &Tensor, mode: Mode) -> Result<Tensor, String> {
        let is_training = matches!(mode, Mode::Train { .. });
        if self.is_training.replace(Some(is_training)) != Some(is_training) {
            self.script.set_training(is_training);
        }
        let _autocast = match self.precision {
            Precision::Float32 | Precision::Tf32 => None,
            Precision::Bf16 => Some(Autocast::bf16(inputs.device())),
            Precision::Fp16 => Some(Autocast::fp16(inputs.device())),
        };
        match mode {
            Mode::Eval => {
                let before: Vec<Tensor> = self.counters.iter().map(Tensor::copy).collect();
                let logits = self.script.forward(inputs, None, None);
                for (counter, before) in self.counters.iter().zip(&before) {
                    counter.shallow_clone().copy_(before);
                }
                logits
            }
            Mode::Train { momentum, standardize } => match standardize {
                None => self.script.forward(inputs, momentum, None),
                Some(standardize) => {
                    let batch_norm = |layer: &ScriptBatchNorm| standardized(layer, standardize);
                    self.script.forward(inputs, momentum, Some(&batch_norm))
                }
            },
        }
        .map(|logits| logits.to_kind(Kind::Float))
    }
}

impl Network for FileNetwork {
    fn draws(&self) -> bool {
        self.draws
    }

    fn can_be_captured(&self) -> bool {
        false // nobody knows what is in it
    }

    fn operations_in_file(&self) -> Result<[u64; 2], String> {
        self.operations.clone()
    }

    /// # Panics
    /// An operation fails that did not when the module was tried out, for want of memory for example.
    fn forward(&self, inputs: &Tensor, mode: Mode) -> Tensor {
        self.logits(inputs, mode).unwrap_or_else(|message| panic!("Torch({})", reason(&message)))
    }
}

/// Output of a batch norm that `standardize` computes, with the running statistics updated.
fn standardized(layer: &ScriptBatchNorm, standardize: Standardize) -> Tensor {
    let shape = layer.input.size();
    let images =
        if shape.len() == 4 { layer.input.shallow_clone() } else { layer.input.reshape([shape[0], shape[1], -1, 1]) };
    let own = standardize(&images, layer.epsilon);
    tch::no_grad(|| {
        for (running, new) in [(&layer.mean, &own.mean), (&layer.variance, &own.unbiased_variance)] {
            if let Some(running) = running {
                running.shallow_clone().copy_(&(running * (1.0 - layer.momentum) + new * layer.momentum));
            }
        }
    });
    let across = |channels: &Tensor| channels.view([1, -1, 1, 1]);
    let scaled = match (&layer.weight, &layer.bias) {
        (Some(weight), Some(bias)) => across(bias).addcmul(&own.values, &across(weight)),
        (Some(weight), None) => own.values * across(weight),
        (None, Some(bias)) => own.values + across(bias),
        (None, None) => own.values,
    };
    scaled.reshape(&shape).to_kind(layer.input.kind())
}

/// Reads the network in `model.file` for samples of this `form`.
///
/// # Errors
/// The file is no network that can be trained on such samples; the message says why, and what to do.
pub(super) fn open(config: &config::Model, form: Form, seed: u64) -> Result<Model> {
    let module = Module::read(Path::new(&config.file))?;
    if let Some(description) = &module.description
        && let Some(message) = description.misfit(form)
    {
        return module.refuse(message);
    }
    let (path, state) = (module.path.clone(), module.state());
    let network = module.into_network(config.precision, form);
    let is_images = matches!(form, Form::Images { .. });
    let channels_last = config.channels_last && is_images;
    let refuse = |message: String| Error::File { path: path.clone(), message };
    seeded(seed, || try_out(&network, &state, form, channels_last)).map_err(|message| {
        let reason = reason(&message);
        if channels_last && seeded(seed, || try_out(&network, &state, form, false)).is_ok() {
            return refuse(format!(
                "fails on images in NHWC, and not in NCHW: {reason}: set model.channels_last = false, or use reshape and \
                 flatten instead of view in the model"
            ));
        }
        refuse(format!("does not fit {form}: {reason}: export it for these samples, or choose other data"))
    })?;
    Ok(Model { state, channels_last, network: Box::new(network) })
}

/// Runs the network once in each mode, and leaves its buffers as they were.
///
/// # Errors
/// Returns libtorch's message if it fails, or the shape of an output that is none of logits.
fn try_out(network: &FileNetwork, state: &[Entry], form: Form, channels_last: bool) -> Result<(), String> {
    let buffers = || state.iter().filter(|entry| !matches!(entry.role, Role::Parameter | Role::Frozen | Role::Tied));
    let before: Vec<Tensor> = buffers().map(|entry| entry.tensor.copy()).collect();
    let (shape, kind, mut expected, classes) = match form {
        Form::Images { shape, classes } => (shape.to_vec(), Kind::Float, vec![TRIED], classes),
        Form::Tokens { length, vocabulary } => (vec![length], Kind::Int64, vec![TRIED, length as i64], vocabulary),
    };
    expected.push(classes as i64);
    let sizes: Vec<i64> = std::iter::once(TRIED).chain(shape.into_iter().map(|extent| extent as i64)).collect();
    let mut inputs = Tensor::zeros(&sizes, (kind, Device::Cpu));
    if channels_last {
        inputs = inputs.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    }
    let mut tried = Ok(());
    for mode in [Mode::Eval, Mode::TRAIN] {
        tried = tried.and_then(|()| {
            let logits = tch::no_grad(|| network.logits(&inputs, mode))?;
            if logits.size() == expected {
                return Ok(());
            }
            let wanted = if expected.len() == 2 { "[n, classes]" } else { "[n, t, vocabulary]" };
            Err(format!("its output is {:?} for an input {sizes:?}, expected {wanted} = {expected:?}", logits.size()))
        });
    }
    tch::no_grad(|| {
        for (entry, before) in buffers().zip(&before) {
            entry.tensor.shallow_clone().copy_(before);
        }
    });
    tried
}
