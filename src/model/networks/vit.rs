//! `vit`: the vision transformer of Dosovitskiy et al., An Image is Worth 16x16 Words, 2021, with layer norm before attention and
//! feed-forward part. Names and initial values are torchvision's. Source: torchvision/models/vision_transformer.py.

use super::super::builder::{Builder, Description, Place, Window};
use super::super::initial::Values;
use super::{Sizes, refuse};
use crate::config;
use crate::data::Form;
use crate::error::Result;

/// Constant that layer norm adds to the variance.
const EPSILON: f64 = 1e-6;
/// Side of the largest images that are cut into squares of 4x4 pixels unless `model.patch` says otherwise.
const LARGEST_OF_CIFAR: usize = 64;

/// Vision transformer for images whose sides are multiples of the patch.
pub(super) fn vit(
    config: &config::Model,
    form: Form,
    [_, height, width]: [usize; 3],
    classes: usize,
) -> Result<Description> {
    let sizes = Sizes::new(config)?;
    let patch = match config.patch {
        0 if height.max(width) <= LARGEST_OF_CIFAR => 4,
        0 => 16,
        patch => patch,
    };
    if !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
        let expected = format!("must divide the sides of the images, {height}x{width}");
        return Err(refuse("model.patch", patch.to_string(), expected));
    }
    let mut build = Builder::new(form);
    build.part("patches");
    let token = build.parameter("class_token", &[1, sizes.width], &[1, 1, sizes.width]);
    let window = Window { kernel: patch, stride: patch, padding: 0 };
    let x = build.conv("conv_proj", Builder::INPUT, sizes.width, window, true);
    let x = build.sequence("sequence", x);
    let x = build.concat("concat", [token, x]);
    let length = build.shape(x)[0];
    let position = build.parameter("encoder.pos_embedding", &[length, sizes.width], &[1, length, sizes.width]);
    let x = build.add("encoder.add", [x, position]);
    let mut x = build.dropout("encoder.dropout", x, config.dropout);
    for index in 0..config.depth {
        let name = format!("encoder.layers.encoder_layer_{index}");
        build.part(&name);
        x = block(&mut build, &name, x, &sizes, config.dropout);
    }
    build.part("heads.head");
    let x = build.layer_norm("encoder.ln", x, EPSILON);
    let x = build.select("select", x, 0);
    build.linear("heads.head", x, classes, true);
    draws(&mut build, config.depth);
    build.finish("vit")
}

fn block(build: &mut Builder, name: &str, input: Place, sizes: &Sizes, dropout: f64) -> Place {
    let attention = format!("{name}.self_attention");
    let x = build.layer_norm(&format!("{name}.ln_1"), input, EPSILON);
    let in_proj = format!("{attention}.in_proj");
    let x = build.linear_of(&in_proj, &format!("{in_proj}_"), x, 3 * sizes.width, true);
    let x = build.attention(&attention, x, sizes.heads, false, 0.0);
    let x = build.linear(&format!("{attention}.out_proj"), x, sizes.width, true);
    let x = build.dropout(&format!("{name}.dropout"), x, dropout);
    let middle = build.add(&format!("{name}.add_1"), [x, input]);
    let x = build.layer_norm(&format!("{name}.ln_2"), middle, EPSILON);
    let x = build.linear(&format!("{name}.mlp.0"), x, sizes.hidden, true);
    let x = build.gelu(&format!("{name}.mlp.1"), x, false);
    let x = build.dropout(&format!("{name}.mlp.2"), x, dropout);
    let x = build.linear(&format!("{name}.mlp.3"), x, sizes.width, true);
    let x = build.dropout(&format!("{name}.mlp.4"), x, dropout);
    build.add(&format!("{name}.add_2"), [x, middle])
}

/// torchvision's draws: those of the modules as they are made, and those that overwrite them.
fn draws(build: &mut Builder, depth: usize) {
    build.forget_draws();
    build.draw_module("conv_proj");
    build.redraw("encoder.pos_embedding", Values::Normal(0.02));
    for index in 0..depth {
        let name = format!("encoder.layers.encoder_layer_{index}");
        build.draw_module(&format!("{name}.self_attention.out_proj"));
        xavier(build, &format!("{name}.self_attention.in_proj_weight"));
        build.redraw(&format!("{name}.self_attention.in_proj_bias"), Values::Constant(0.0));
        build.redraw(&format!("{name}.self_attention.out_proj.bias"), Values::Constant(0.0));
        let layers = [format!("{name}.mlp.0"), format!("{name}.mlp.3")];
        layers.iter().for_each(|layer| build.draw_module(layer));
        for layer in &layers {
            xavier(build, &format!("{layer}.weight"));
            build.redraw(&format!("{layer}.bias"), Values::Normal(1e-6));
        }
    }
    build.draw_module("heads.head");
    let fan_in: usize = build.slot_named("conv_proj.weight").shape[1..].iter().product();
    build.redraw("conv_proj.weight", Values::TruncatedNormal((1.0 / fan_in as f64).sqrt()));
    for name in ["conv_proj.bias", "heads.head.weight", "heads.head.bias"] {
        build.redraw(name, Values::Constant(0.0));
    }
}

fn xavier(build: &mut Builder, name: &str) {
    let [outputs, inputs] = build.slot_named(name).shape[..] else { unreachable!("a matrix") };
    build.redraw(name, Values::xavier_uniform([outputs, inputs]));
}
