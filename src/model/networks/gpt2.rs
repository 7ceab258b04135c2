//! `gpt2`: the decoder of Radford et al., Language Models are Unsupervised Multitask Learners, 2019: learned positions, layer norm
//! before attention and feed-forward part, GELU by tanh, and an output layer whose weight is that of the token embedding.
//!
//! Names and initial values are those of Karpathy's nanoGPT (model.py): normal with standard deviation 0.02, the projections
//! onto the residual divided by the root of their number. The tied weight is one parameter, `transformer.wte.weight`, as in
//! PyTorch's `named_parameters`; nanoGPT's `state_dict` has it a second time, as `lm_head.weight`.

use super::super::builder::{Builder, Description, Place};
use super::super::initial::Values;
use super::Sizes;
use crate::config;
use crate::data::Form;
use crate::error::Result;

/// Constant that layer norm adds to the variance: PyTorch's default.
const EPSILON: f64 = 1e-5;

/// Decoder for sequences of `length` tokens below `vocabulary`.
pub(super) fn gpt2(config: &config::Model, form: Form, length: usize, vocabulary: usize) -> Result<Description> {
    let sizes = Sizes::new(config)?;
    let mut build = Builder::new(form);
    build.part("transformer.wte");
    let x = build.embedding("transformer.wte", Builder::INPUT, vocabulary, sizes.width);
    let shape = [length, sizes.width];
    let position = build.parameter("transformer.wpe.weight", &shape, &shape);
    build.redraw("transformer.wpe.weight", Values::Normal(1.0));
    let x = build.add("transformer.add", [x, position]);
    let mut x = build.dropout("transformer.drop", x, config.dropout);
    for index in 0..config.depth {
        let name = format!("transformer.h.{index}");
        build.part(&name);
        x = block(&mut build, &name, x, &sizes, config.dropout);
    }
    build.part("lm_head");
    let x = build.layer_norm("transformer.ln_f", x, EPSILON);
    build.tied_linear("lm_head", x, "transformer.wte.weight");
    draws(&mut build, config.depth);
    build.finish("gpt2")
}

fn block(build: &mut Builder, name: &str, input: Place, sizes: &Sizes, dropout: f64) -> Place {
    let x = build.layer_norm(&format!("{name}.ln_1"), input, EPSILON);
    let x = build.linear(&format!("{name}.attn.c_attn"), x, 3 * sizes.width, true);
    let x = build.attention(&format!("{name}.attn"), x, sizes.heads, true, dropout);
    let x = build.linear(&format!("{name}.attn.c_proj"), x, sizes.width, true);
    let x = build.dropout(&format!("{name}.attn.resid_dropout"), x, dropout);
    let middle = build.add(&format!("{name}.add_1"), [x, input]);
    let x = build.layer_norm(&format!("{name}.ln_2"), middle, EPSILON);
    let x = build.linear(&format!("{name}.mlp.c_fc"), x, sizes.hidden, true);
    let x = build.gelu(&format!("{name}.mlp.gelu"), x, true);
    let x = build.linear(&format!("{name}.mlp.c_proj"), x, sizes.width, true);
    let x = build.dropout(&format!("{name}.mlp.dropout"), x, dropout);
    build.add(&format!("{name}.add_2"), [x, middle])
}

/// nanoGPT's draws after those of its modules: all matrices in the order of the modules, the tied one as embedding and as
/// output layer, then once more the projections onto the residual.
fn draws(build: &mut Builder, depth: usize) {
    const STD: f64 = 0.02;
    build.redraw("transformer.wte.weight", Values::Normal(STD));
    build.redraw("transformer.wpe.weight", Values::Normal(STD));
    for index in 0..depth {
        for layer in ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] {
            let layer = format!("transformer.h.{index}.{layer}");
            build.redraw(&format!("{layer}.weight"), Values::Normal(STD));
            build.redraw(&format!("{layer}.bias"), Values::Constant(0.0));
        }
    }
    build.redraw("transformer.wte.weight", Values::Normal(STD));
    for index in 0..depth {
        for layer in ["attn.c_proj", "mlp.c_proj"] {
            let std = STD / ((2 * depth) as f64).sqrt();
            build.redraw(&format!("transformer.h.{index}.{layer}.weight"), Values::Normal(std));
        }
    }
}
