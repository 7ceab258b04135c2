//! The networks, one file each, as functions that list their nodes. Adding one: docs/networks.md.

mod gpt2;
mod net;
mod resnet;
mod vit;

use super::builder::Description;
use crate::config::{self, ModelName};
use crate::data::Form;
use crate::error::{Error, Result};

/// The network that `config` names, for samples of `form`.
///
/// # Errors
/// [`Error::ConfigValue`]: the network takes no such samples, or a key of `[model]` does not fit them.
pub(super) fn describe(config: &config::Model, form: Form) -> Result<Description> {
    match (config.name, form) {
        (ModelName::Net, Form::Images { classes, .. }) => net::net(config, form, classes),
        (
            ModelName::Resnet18 | ModelName::Resnet34 | ModelName::Resnet50 | ModelName::Resnet101,
            Form::Images { shape, classes },
        ) => resnet::resnet(config, form, shape, classes),
        (ModelName::Vit, Form::Images { shape, classes }) => vit::vit(config, form, shape, classes),
        (ModelName::Gpt2, Form::Tokens { length, vocabulary }) => gpt2::gpt2(config, form, length, vocabulary),
        (ModelName::File, _) => Err(refuse(
            "model.name",
            "\"file\"".into(),
            "has no list of nodes to count: this needs a built-in network".into(),
        )),
        (name, Form::Tokens { .. }) => Err(refuse(
            "model.name",
            format!("{:?}", name.as_str()),
            "takes images, but the data are sequences of tokens: choose gpt2, or other data".into(),
        )),
        (name, Form::Images { .. }) => Err(refuse(
            "model.name",
            format!("{:?}", name.as_str()),
            "takes sequences of tokens, but the data are images: choose another network, or other data".into(),
        )),
    }
}

fn refuse(key: &str, value: String, expected: String) -> Error {
    Error::ConfigValue { place: "model".into(), key: key.into(), value, expected }
}

/// Sizes of a transformer.
struct Sizes {
    /// Values per token.
    width: usize,
    /// Attention heads.
    heads: usize,
    /// Hidden values of the feed-forward part.
    hidden: usize,
}

impl Sizes {
    /// The sizes in `config`, with those of ViT-B and GPT-2 where it says 0.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] if the heads do not divide the width.
    fn new(config: &config::Model) -> Result<Sizes> {
        let width = config.effective_width();
        let heads = if config.heads == 0 { (width / 64).max(1) } else { config.heads };
        if !width.is_multiple_of(heads) {
            return Err(refuse("model.heads", heads.to_string(), format!("must divide model.width, here {width}")));
        }
        Ok(Sizes { width, heads, hidden: config.mlp_ratio * width })
    }
}
