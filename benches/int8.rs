//! True int8 against hpml's float32 on one thread, end to end from u8 pixels to logits.
//!
//!     cargo bench --bench int8
//!
//! Weights are random: speed does not depend on them, and every run first checks that kernel and plain loops agree. Each
//! figure is the best and the median of repeated calls; the two forms take turns, so that a busy machine slows both alike.
//! Peers on the same machine: `-- --onnx FOLDER` writes the models there for benches/peers/int8.py.

use std::time::Instant;

use hpml::config::{self, ModelName};
use hpml::live::Live;
use hpml::model::{Mode, Model, Role};
use hpml::quantize::{Engine, FloatNet, FloatTorch, IntNet, Kernel, Reference, Spec, calibration, scheme, to_onnx};
use hpml::store::{NamedTensor, TensorValues};

/// Number of calls per form.
const ROUNDS: usize = 15;

/// Images per call that are measured beside single ones: with more pixels an image, fewer.
const IMAGES: usize = 128;

fn main() {
    tch::set_num_threads(1);
    println!("# 1 thread, int8 by {}, images/s, best (median) of {ROUNDS} calls", Kernel::best().as_str());
    println!("#     model  image  batch          float32             int8   ratio of the best");
    for (name, side, classes) in
        [(ModelName::Net, 32, 10), (ModelName::Resnet18, 32, 10), (ModelName::Resnet50, 224, 1000)]
    {
        let model = config::Model { name, ..config::Model::default() };
        let spec = Spec { model, shape: [3, side, side], classes, mean: vec![0.5; 3], std: vec![0.5; 3] };
        let model = Model::new(&spec.model, spec.form(), 0).expect("the images fit the network");
        let net = quantized(&model, &spec);
        if let Some(folder) = std::env::args().skip_while(|argument| argument != "--onnx").nth(1) {
            let path = std::path::Path::new(&folder).join(format!("{}.onnx", name.as_str()));
            std::fs::write(path, to_onnx(&net)).expect("the folder can be written to");
        }
        let mut engine = Engine::new(&net, Kernel::best());
        let image = pixels(&spec, 1);
        assert_eq!(engine.run(&image), Reference::new(&net).run(&image));
        for batch in [spec.images_together(IMAGES), 1] {
            let pixels = pixels(&spec, batch);
            let repeats = match (name, batch) {
                (ModelName::Net, 1) => 200,
                (ModelName::Resnet18, 1) => 4,
                _ => 1,
            };
            let mut rates = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                rates[0].push(images_per_second(batch, repeats, || drop(float(&model, &spec, &pixels))));
                rates[1].push(images_per_second(batch, repeats, || drop(engine.run(&pixels))));
            }
            let [float, int] = rates.map(|mut rates| {
                rates.sort_by(f64::total_cmp);
                (rates[ROUNDS - 1], rates[ROUNDS / 2])
            });
            let shown = |(best, median): (f64, f64)| format!("{best:.0} ({median:.0})");
            println!(
                "{:>11} {side:>6} {batch:>6} {:>16} {:>16} {:>7.2}",
                name.as_str(),
                shown(float),
                shown(int),
                int.0 / float.0
            );
        }
    }
}

fn images_per_second(batch: usize, repeats: usize, mut call: impl FnMut()) -> f64 {
    let started = Instant::now();
    (0..repeats).for_each(|_| call());
    (batch * repeats) as f64 / started.elapsed().as_secs_f64()
}

/// Runs hpml's float32 as the test of a training does, in the model's memory layout.
fn float(model: &Model, spec: &Spec, pixels: &[u8]) -> tch::Tensor {
    let [channels, height, width] = spec.shape.map(|extent| extent as i64);
    let images = tch::Tensor::from_slice(pixels).view([-1, channels, height, width]).to_kind(tch::Kind::Float);
    let mut images = (images / 255.0 - 0.5) / 0.5;
    if model.channels_last {
        images = images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    }
    tch::no_grad(|| model.forward(&images, Mode::Eval))
}

fn quantized(model: &Model, spec: &Spec) -> IntNet {
    let floats = model.state.iter().filter(|entry| entry.role != Role::Counter);
    let state: Vec<NamedTensor> = floats
        .map(|entry| {
            let mut values = vec![0f32; entry.tensor.numel()];
            entry.tensor.detach().contiguous().copy_data(&mut values, entry.tensor.numel());
            let shape = entry.tensor.size().into_iter().map(|extent| extent as usize).collect();
            NamedTensor::new(entry.name.clone(), shape, TensorValues::F32(values))
        })
        .collect();
    let net = FloatNet::from_state(&state, spec.clone()).expect("the model's own state");
    let images = pixels(spec, 20);
    let activations =
        calibration::activations(&FloatTorch::new(&net), &images, 0, 1, &calibration::alone, &mut Live::hidden());
    scheme::quantize(&net, &activations.expect("finite"), &config::Quantize::default()).expect("quantizable")
}

fn pixels(spec: &Spec, images: usize) -> Vec<u8> {
    (0..images * spec.image_bytes()).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
