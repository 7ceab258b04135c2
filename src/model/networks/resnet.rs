//! ResNets of He et al., Deep Residual Learning for Image Recognition, 2016, with basic blocks (18 and 34 layers) or bottleneck
//! blocks (50 and 101), whose stride lies on the 3x3 convolution as in torchvision.
//!
//! The stem `cifar` is a 3x3 convolution; names and initial values are those of PyTorch's modules as most CIFAR scripts have
//! them (`shortcut.0`, `linear`). The stem `imagenet` is a 7x7 convolution of stride 2 and a max-pool; names and initial values
//! are torchvision's (`downsample.0`, `fc`). Source: torchvision/models/resnet.py.

use super::super::Role;
use super::super::builder::{Builder, Description, Place, Window};
use super::super::initial::Values;
use crate::config::{self, ModelName, Stem};
use crate::data::Form;
use crate::error::Result;

/// Blocks per stage, and whether they are bottlenecks.
fn blocks(name: ModelName) -> ([usize; 4], bool) {
    match name {
        ModelName::Resnet34 => ([3, 4, 6, 3], false),
        ModelName::Resnet50 => ([3, 4, 6, 3], true),
        ModelName::Resnet101 => ([3, 4, 23, 3], true),
        _ => ([2, 2, 2, 2], false),
    }
}

/// ResNet with `model.width` channels in the first stage's 3x3 convolutions, doubled in each of the next three.
pub(super) fn resnet(
    config: &config::Model,
    form: Form,
    [_, height, width]: [usize; 3],
    classes: usize,
) -> Result<Description> {
    let (stages, bottleneck) = blocks(config.name);
    let imagenet = match config.stem {
        Stem::Auto => height.max(width) > LARGEST_OF_CIFAR,
        Stem::Cifar => false,
        Stem::Imagenet => true,
    };
    let names = if imagenet { Names { shortcut: "downsample", head: "fc" } } else { CIFAR };
    let width = config.effective_width();

    let mut build = Builder::new(form);
    build.part("stem");
    let stem = if imagenet { square(7, 2) } else { square(3, 1) };
    let x = build.conv("conv1", Builder::INPUT, width, stem, false);
    let x = build.batch_norm("bn1", x);
    let mut x = build.relu("relu", x);
    if imagenet {
        x = build.max_pool("maxpool", x, square(3, 2));
    }
    for (stage, count) in stages.into_iter().enumerate() {
        for index in 0..count {
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            let name = format!("layer{}.{index}", stage + 1);
            build.part(&name);
            x = block(&mut build, &name, x, width << stage, stride, bottleneck, names.shortcut);
        }
    }
    build.part(names.head);
    x = build.average_pool("avgpool", x);
    x = build.flatten("flatten", x);
    build.linear(names.head, x, classes, true);
    if imagenet {
        as_torchvision(&mut build);
    }
    build.finish(config.name.as_str())
}

/// Side of the largest images that get the stem for CIFAR, in pixels.
const LARGEST_OF_CIFAR: usize = 64;

/// Names of modules that differ between PyTorch's widespread ResNets.
struct Names {
    shortcut: &'static str,
    head: &'static str,
}

const CIFAR: Names = Names { shortcut: "shortcut", head: "linear" };

/// Window that keeps the side, divided by `stride`.
fn square(kernel: usize, stride: usize) -> Window {
    Window { kernel, stride, padding: kernel / 2 }
}

/// Block: convolutions of kernels 3, 3 or 1, 3, 1 and a shortcut, which is a 1x1 convolution where the shape changes.
fn block(
    build: &mut Builder,
    name: &str,
    input: Place,
    width: usize,
    stride: usize,
    bottleneck: bool,
    shortcut: &str,
) -> Place {
    let outputs = if bottleneck { 4 * width } else { width };
    let windows: &[(usize, Window)] = if bottleneck {
        &[(width, square(1, 1)), (width, square(3, stride)), (outputs, square(1, 1))]
    } else {
        &[(width, square(3, stride)), (outputs, square(3, 1))]
    };
    let mut x = input;
    for (index, &(channels, window)) in windows.iter().enumerate() {
        let number = index + 1;
        x = build.conv(&format!("{name}.conv{number}"), x, channels, window, false);
        x = build.batch_norm(&format!("{name}.bn{number}"), x);
        if number < windows.len() {
            x = build.relu(&format!("{name}.relu{number}"), x);
        }
    }
    let mut other = input;
    if stride != 1 || build.shape(input)[0] != outputs {
        other = build.conv(&format!("{name}.{shortcut}.0"), input, outputs, square(1, stride), false);
        other = build.batch_norm(&format!("{name}.{shortcut}.1"), other);
    }
    x = build.add(&format!("{name}.add"), [x, other]);
    build.relu(&format!("{name}.relu"), x)
}

/// torchvision draws every convolution again after its modules were made. What those drew before is overwritten, and only the
/// number of draws counts, so it does not matter that torchvision makes a shortcut before its block.
fn as_torchvision(build: &mut Builder) {
    let convolutions: Vec<_> =
        build.state().iter().filter(|slot| slot.role == Role::Parameter && slot.shape.len() == 4).cloned().collect();
    for slot in convolutions {
        let [outputs, _, kernel, _] = slot.shape[..] else { unreachable!("four extents") };
        build.redraw(&slot.name, Values::kaiming_normal(outputs * kernel * kernel));
    }
}
