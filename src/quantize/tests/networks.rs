//! Networks with random weights for the tests of quantization; the parent module names the types, so that the tests beside the
//! code and those of `tests/` share them.

use super::{Entry, FloatNet, FloatTorch, IntNet, Live, Model, ModelName, NamedTensor, Role, Spec, Stem, TensorValues};
use super::{calibration, config, scheme};

/// Pseudo-random images, blotches rather than noise so that layers differ in their ranges.
pub fn pixels(spec: &Spec, images: usize) -> Vec<u8> {
    let [channels, height, width] = spec.shape;
    let value = |at: usize| {
        let (x, y) = (at % width, at / width % height);
        let (channel, image) = (at / (width * height) % channels, at / (width * height * channels));
        let wave = ((x * (image % 5 + 1) + y * 3) as f64 / 7.0 + channel as f64).sin() * 90.0;
        (128.0 + wave + ((at * 2_654_435_761) >> 7 & 31) as f64) as u8
    };
    (0..images * spec.image_bytes()).map(value).collect()
}

pub fn spec(name: ModelName, edit: impl Fn(&mut config::Model), shape: [usize; 3], classes: usize) -> Spec {
    let mut model = config::Model { name, ..config::Model::default() };
    edit(&mut model);
    let values = |first: f32, step: f32| (0..shape[0]).map(|channel| first + step * channel as f32).collect();
    Spec { model, shape, classes, mean: values(0.49, -0.02), std: values(0.2, 0.005) }
}

pub fn net(bias: bool) -> Spec {
    spec(ModelName::Net, |model| model.bias = bias, [3, 32, 32], 10)
}

pub fn resnet18() -> Spec {
    spec(ModelName::Resnet18, |model| model.width = 16, [3, 32, 32], 10)
}

pub fn resnet(name: ModelName, stem: Stem, width: usize, shape: [usize; 3], classes: usize) -> Spec {
    spec(name, |model| (model.stem, model.width) = (stem, width), shape, classes)
}

/// Networks of every kind, with sizes that are odd, not square, smaller than a kernel.
pub fn networks() -> Vec<Spec> {
    vec![
        net(false),
        net(true),
        spec(ModelName::Net, |model| model.bias = true, [1, 28, 31], 3),
        resnet18(),
        resnet(ModelName::Resnet18, Stem::Imagenet, 16, [3, 45, 38], 300),
        resnet(ModelName::Resnet34, Stem::Cifar, 4, [1, 17, 12], 10),
        resnet(ModelName::Resnet50, Stem::Imagenet, 4, [3, 66, 65], 17),
        resnet(ModelName::Resnet50, Stem::Cifar, 8, [5, 16, 16], 10),
        resnet(ModelName::Resnet101, Stem::Imagenet, 4, [3, 33, 64], 5),
    ]
}

pub fn name(spec: &Spec) -> String {
    format!("{} {:?} {:?}", spec.model.name.as_str(), spec.model.stem, spec.shape)
}

/// State of a network as after a training: with batch norm's initial values folding would change nothing.
pub fn state(spec: &Spec) -> Vec<NamedTensor> {
    let model = Model::new(&spec.model, spec.form(), 3).unwrap();
    let value = |name: &str, index: usize, value: f32| match name.rsplit('.').next() {
        Some("running_var") => 0.2 + (index % 7) as f32 * 0.05,
        Some("running_mean") => (index % 5) as f32 * 0.03 - 0.06,
        Some("bias") if name.contains("bn") => (index % 3) as f32 * 0.1 - 0.1,
        _ => value,
    };
    let tensor = |entry: &Entry| {
        let mut values = vec![0f32; entry.tensor.numel()];
        entry.tensor.detach().contiguous().copy_data(&mut values, entry.tensor.numel());
        let values = values.iter().enumerate().map(|(index, &own)| value(&entry.name, index, own)).collect();
        let shape = entry.tensor.size().into_iter().map(|extent| extent as usize).collect();
        NamedTensor::new(entry.name.clone(), shape, TensorValues::F32(values))
    };
    model.state.iter().filter(|entry| entry.role != Role::Counter).map(tensor).collect()
}

pub fn float_net(spec: &Spec) -> FloatNet {
    FloatNet::from_state(&state(spec), spec.clone()).unwrap()
}

pub fn quantized(net: &FloatNet, edit: impl Fn(&mut config::Quantize)) -> IntNet {
    let mut config = config::Quantize::default();
    edit(&mut config);
    let images = pixels(&net.spec, 24);
    let activations =
        calibration::activations(&FloatTorch::new(net), &images, 0, 1, &calibration::alone, &mut Live::hidden());
    scheme::quantize(net, &activations.unwrap(), &config).unwrap()
}
