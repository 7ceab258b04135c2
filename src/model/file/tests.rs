//! Networks from the files that tests/fixtures/model_file.py has made, held against PyTorch's losses of the same models.

use super::*;
use crate::config::ModelName;
use crate::optim::Optimizer;
use crate::parallel::{Flat, FlatState};

const IMAGES: Form = Form::Images { shape: [3, 32, 32], classes: 10 };
const TOKENS: Form = Form::Tokens { length: 16, vocabulary: 29 };
/// PyTorch's losses: file, precision and batch size, then the losses of the steps and of a test.
const LOSSES: &str = include_str!("../../../tests/fixtures/model_file.txt");

fn config(name: &str) -> config::Model {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/");
    let file = format!("{folder}{name}.pt");
    config::Model { name: ModelName::File, file, channels_last: false, ..Default::default() }
}

fn form(name: &str) -> Form {
    if name.starts_with("decoder") { TOKENS } else { IMAGES }
}

fn model(name: &str) -> Model {
    open(&config(name), form(name), 7).unwrap()
}

fn refusal(name: &str, form: Form, edit: impl Fn(&mut config::Model)) -> String {
    let mut config = config(name);
    edit(&mut config);
    let message = open(&config, form, 7).err().unwrap_or_else(|| panic!("{name} was opened")).to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// Inputs and targets of `hpml_batch` in model_file.py.
fn batch(step: usize, samples: usize, form: Form) -> (Tensor, Tensor) {
    match form {
        Form::Images { .. } => {
            let first = step * samples * 3072;
            let pixel = |(index, hash): (usize, u32)| {
                let class = ((step * samples + index / 3072) * 7 % 10) as f32;
                (hash >> 24) as f32 / 256.0 + class / 8.0 - 1.0
            };
            let pixels: Vec<f32> = check::hashed(first..first + samples * 3072).enumerate().map(pixel).collect();
            let classes: Vec<i64> =
                (step * samples..(step + 1) * samples).map(|sample| sample as i64 * 7 % 10).collect();
            (Tensor::from_slice(&pixels).reshape([samples as i64, 3, 32, 32]), Tensor::from_slice(&classes))
        }
        Form::Tokens { .. } => {
            let first = step * samples * 17;
            let mut ids: Vec<i64> =
                check::hashed(first..first + samples * 17).map(|hash| i64::from(hash % 29)).collect();
            for row in ids.chunks_mut(17) {
                for place in (1..17).step_by(2) {
                    row[place] = (row[place - 1] * 3 + 1) % 29;
                }
            }
            let ids = Tensor::from_slice(&ids).reshape([samples as i64, 17]);
            (ids.narrow(1, 0, 16).contiguous(), ids.narrow(1, 1, 16).contiguous())
        }
    }
}

/// Losses of a few steps, then of a test, with the parameters and gradients in flat memory.
fn train(config: &config::Model, form: Form, samples: usize, steps: usize, device: Option<Device>) -> Vec<f64> {
    let mut model = open(config, form, 7).unwrap();
    let gradients = Flat::zeros(model.parameter_count(), device);
    let mut state = FlatState::adopt(&mut model, gradients);
    let optim = config::Optim { momentum: 0.9, ..Default::default() };
    let mut optimizer = Optimizer::new(&state, &optim);
    let loss = |step, mode| {
        let (inputs, targets) = batch(step, samples, form);
        let logits = model.forward(&inputs, mode);
        let classes = form.outputs() as i64;
        let (logits, targets) = (logits.reshape([-1, classes]), targets.reshape([-1]));
        logits.cross_entropy_loss(&targets, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)
    };
    seeded(7, || {
        let mut losses: Vec<f64> = (0..steps)
            .map(|step| {
                state.gradients.zero();
                let loss = loss(step, Mode::TRAIN);
                loss.backward();
                optimizer.step(&mut state, 0.05).unwrap();
                loss.double_value(&[])
            })
            .collect();
        losses.push(tch::no_grad(|| loss(steps, Mode::Eval).double_value(&[])));
        losses
    })
}

#[test]
fn losses_are_pytorchs_with_dropout_in_float32_and_bf16() {
    let mut files = 0;
    for line in LOSSES.lines() {
        let (case, losses) = line.split_once(" : ").unwrap();
        let [name, precision, samples] = case.split(' ').collect::<Vec<_>>()[..] else { panic!("{case}") };
        let expected: Vec<f64> = losses.split(' ').map(|loss| loss.parse().unwrap()).collect();
        let mut config = config(name);
        config.precision = if precision == "bf16" { Precision::Bf16 } else { Precision::Float32 };
        // The rounding of a processor's kernels grows with each step; a mask drawn otherwise is far beyond.
        let least = if precision == "bf16" { 2e-3 } else { 1e-5 };
        for device in [None, Some(Device::Cpu)] {
            let found = train(&config, form(name), samples.parse().unwrap(), expected.len() - 1, device);
            for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let bound = least * 2f64.powi(step as i32);
                assert!((found / expected - 1.0).abs() < bound, "{case}, step {step}: {found} {expected}");
            }
            println!("{case}: bits equal: {}", found == expected);
        }
        files += 1;
    }
    assert_eq!(files, 10);
}

#[test]
fn tied_frozen_and_other_tensors_are_known_by_their_roles() {
    let model = model("decoder");
    let role = |name: &str| model.state.iter().find(|entry| entry.name == name).unwrap().role;
    for (name, expected) in [
        ("embedding.weight", Role::Parameter),
        ("head.weight", Role::Tied),
        ("positions", Role::Frozen),
        ("scale", Role::Constant),
        ("calls", Role::Counter),
        ("mlp.0.bias", Role::Parameter),
    ] {
        assert_eq!(role(name), expected, "{name}");
    }
    // Parameters without the frozen positions [16, 16], and the head's weight once.
    assert_eq!(model.parameter_count(), 4032 - 256);
}

#[test]
fn a_step_moves_what_is_trained_and_counts_passes_in_training_only() {
    for name in ["decoder", "mobile", "mobile_traced"] {
        let mut model = model(name);
        let gradients = Flat::zeros(model.parameter_count(), None);
        let _state = FlatState::adopt(&mut model, gradients);
        let (inputs, _) = batch(0, 4, form(name));
        let counts = || {
            let counters = model.state.iter().filter(|entry| entry.role == Role::Counter);
            counters.map(|entry| entry.tensor.int64_value(&[])).collect::<Vec<_>>()
        };
        let before = counts();
        assert!(!before.is_empty() && before.iter().all(|count| *count == 0), "{name}: {before:?}");
        let tests = [0, 1].map(|_| tch::no_grad(|| model.forward(&inputs, Mode::Eval)));
        assert!(tests[0].equal(&tests[1]), "{name}: a test draws or changes something");
        assert_eq!(counts(), before, "{name}");
        seeded(1, || model.forward(&inputs, Mode::TRAIN)).sum(Kind::Float).backward();
        assert!(counts().iter().all(|count| *count == 1), "{name}");
        for entry in &model.state {
            let moves = entry.role == Role::Parameter;
            let gradient = entry.tensor.grad();
            assert_eq!(gradient.defined(), moves || entry.role == Role::Tied, "{name}: {}", entry.name);
        }
    }
}

#[test]
fn a_trace_in_training_mode_gets_the_mode_back() {
    let (inputs, _) = batch(3, 4, IMAGES);
    let [scripted, traced] =
        ["mobile", "mobile_traced"].map(|name| tch::no_grad(|| model(name).forward(&inputs, Mode::Eval)));
    assert!(scripted.equal(&traced));
}

#[test]
fn batch_norm_takes_another_momentum_and_other_statistics() {
    let (inputs, _) = batch(0, 4, IMAGES);
    let pass = |mode: Mode| {
        let model = model("mobile_plain");
        let logits = tch::no_grad(|| model.forward(&inputs, mode));
        let mean = model.state.iter().find(|entry| entry.name == "stem.1.running_mean").unwrap();
        (logits, mean.tensor.copy())
    };
    let (own, tenth) = pass(Mode::TRAIN);
    let (logits, all) = pass(Mode::Train { momentum: Some(1.0), standardize: None });
    assert!(logits.equal(&own) && tenth.allclose(&(&all * 0.1), 1e-6, 1e-7, false));

    let standardize = |input: &Tensor, epsilon: f64| {
        let over = [0i64, 2, 3];
        let mean = input.mean_dim(&over[..], true, Kind::Float);
        let [biased, unbiased_variance] = [false, true].map(|unbiased| input.var_dim(&over[..], unbiased, true));
        let values = (input - &mean) / (biased + epsilon).sqrt();
        super::super::Standardized {
            values,
            mean: mean.flatten(0, -1),
            unbiased_variance: unbiased_variance.flatten(0, -1),
        }
    };
    let (logits, mean) = pass(Mode::Train { momentum: None, standardize: Some(&standardize) });
    assert!(logits.allclose(&own, 1e-4, 1e-5, false) && mean.allclose(&tenth, 1e-5, 1e-6, false));
}

#[test]
fn a_file_of_torch_jit_save_alone_is_taken_if_the_samples_fit() {
    let model = model("undescribed");
    assert_eq!(model.parameter_count(), 2986);
    check(&config("undescribed")).unwrap();
    let wide = Form::Images { shape: [3, 32, 32], classes: 100 };
    assert!(refusal("undescribed", wide, |_| ()).contains("[n, classes] = [2, 100]"));
}

#[test]
fn every_check_is_repeated_and_a_loss_that_is_not_pytorchs_is_an_error() {
    for name in ["mobile", "mobile_plain", "mobile_traced", "decoder", "decoder_plain"] {
        check(&config(name)).unwrap();
    }
    check(&config::Model::default()).unwrap();
    let message = check(&config("refused_check")).unwrap_err().to_string();
    for named in ["refused_check.pt", "training step 1", "found 2.390000", "PyTorch 2.13"] {
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn what_cannot_be_trained_is_refused_by_what_it_is() {
    let cases: [(&str, Form, &[&str]); 11] = [
        ("refused_autocast", IMAGES, &["enters autocast", "model.precision = \"bf16\""]),
        ("refused_pair", IMAGES, &["forward returns Tuple[Tensor, Tensor]"]),
        ("refused_map", IMAGES, &["[2, 10, 32]", "[n, classes] = [2, 10]"]),
        ("refused_traced_in_eval", IMAGES, &["traced in eval mode", "--trace"]),
        ("refused_frozen", IMAGES, &["no parameter to train", "torch.jit.freeze"]),
        ("refused_double", IMAGES, &["conv.weight is Double", ".float()"]),
        ("refused_shared", IMAGES, &["one.weight", "two.weight", "share memory"]),
        ("refused_state", IMAGES, &["only weights", "scripts/export.py"]),
        ("mobile", TOKENS, &["images", "--tokens 16"]),
        ("mobile", Form::Images { shape: [3, 64, 64], classes: 10 }, &["--input 3 64 64"]),
        ("missing", IMAGES, &["missing.pt", "No such file"]),
    ];
    for (name, form, named) in cases {
        let message = refusal(name, form, |_| ());
        for word in named.iter().chain([&name]) {
            assert!(message.contains(word), "{word}: {message}");
        }
    }
    let message = refusal("refused_view", IMAGES, |config| config.channels_last = true);
    assert!(message.contains("model.channels_last = false") && message.contains("view size"), "{message}");
    assert!(open(&config("refused_view"), IMAGES, 7).is_ok());
}

#[test]
fn a_file_cut_anywhere_is_refused_in_one_line() {
    let whole = std::fs::read(config("decoder").file).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.pt");
    for (bytes, named) in [
        (&whole[..whole.len() / 2], "cut short"),
        (&whole[..whole.len() - 1], "cut short"),
        (&whole[..3], "no TorchScript file"),
        (&[][..], "no TorchScript file"),
        (b"weights", "no TorchScript file"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let message = refusal("decoder", TOKENS, |config| config.file = path.to_str().unwrap().into());
        assert!(message.contains(named) && message.contains("cut.pt"), "{message}");
    }
    let message = refusal("decoder", TOKENS, |config| config.file = folder.path().to_str().unwrap().into());
    assert!(message.contains("no TorchScript file") || message.contains("directory"), "{message}");
}
