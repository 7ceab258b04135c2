//! ResNet-18 for CIFAR: 3x3 stem without max-pool, stages of [2, 2, 2, 2] basic blocks, 10 classes.
//!
//! ReLU and the shortcut's addition work in place where no earlier layer needs its output for its gradient (batch norm needs
//! its input only), which saves memory traffic and changes no value.

use tch::{Kind, Tensor};

use super::layers::{BatchNorm, Builder, Conv};
use super::{Mode, Model};
use crate::config;

/// ResNet-18 with `model.width` channels in the first stage, doubled in each of the next three.
pub(super) fn resnet18(config: &config::Model) -> Model {
    let width = if config.width == 0 { 64 } else { config.width as i64 };
    let mut build = Builder::new(config);
    let conv1 = build.conv("conv1", [3, width, 3], 1, 1);
    let bn1 = build.batch_norm("bn1", width);
    build.stage("stem", Box::new(move |images, mode| bn1.forward_relu(&conv1.forward(images), None, mode)));

    let mut inputs = width;
    for (layer, stride) in [(1, 1), (2, 2), (3, 2), (4, 2)] {
        let outputs = width << (layer - 1);
        for index in 0..2 {
            let name = format!("layer{layer}.{index}");
            let block = Block::new(&mut build, &name, inputs, outputs, if index == 0 { stride } else { 1 });
            if (layer, index) != (4, 1) {
                build.stage(&name, Box::new(move |hidden, mode| block.forward(hidden, mode)));
            } else {
                // The last block and the head are one stage: the head alone is too small to be worth a cut.
                let linear = build.linear("linear", outputs, 10, true);
                let head = move |hidden: &Tensor, mode: Mode| {
                    let hidden = block.forward(hidden, mode); // [n, 8 width, 4, 4]
                    let pooled = hidden.avg_pool2d([4, 4], [4, 4], [0, 0], false, true, None::<i64>).flatten(1, -1);
                    linear.forward(&pooled).to_kind(Kind::Float) // [n, 10]
                };
                build.stage("layer4.1+linear", Box::new(head));
            }
            inputs = outputs;
        }
    }
    build.finish(config.channels_last)
}

/// Basic block: two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes.
struct Block {
    conv1: Conv,
    bn1: BatchNorm,
    conv2: Conv,
    bn2: BatchNorm,
    shortcut: Option<(Conv, BatchNorm)>,
}

impl Block {
    fn new(build: &mut Builder, name: &str, inputs: i64, outputs: i64, stride: i64) -> Block {
        let conv1 = build.conv(&format!("{name}.conv1"), [inputs, outputs, 3], stride, 1);
        let bn1 = build.batch_norm(&format!("{name}.bn1"), outputs);
        let conv2 = build.conv(&format!("{name}.conv2"), [outputs, outputs, 3], 1, 1);
        let bn2 = build.batch_norm(&format!("{name}.bn2"), outputs);
        let shortcut = (stride != 1 || inputs != outputs).then(|| {
            let conv = build.conv(&format!("{name}.shortcut.0"), [inputs, outputs, 1], stride, 0);
            (conv, build.batch_norm(&format!("{name}.shortcut.1"), outputs))
        });
        Block { conv1, bn1, conv2, bn2, shortcut }
    }

    fn forward(&self, input: &Tensor, mode: Mode) -> Tensor {
        let hidden = self.bn1.forward_relu(&self.conv1.forward(input), None, mode);
        let shortcut = match &self.shortcut {
            Some((conv, norm)) => norm.forward(&conv.forward(input), mode),
            None => input.shallow_clone(),
        };
        self.bn2.forward_relu(&self.conv2.forward(&hidden), Some(&shortcut), mode)
    }
}
