//! The networks, one file each, as functions that list their nodes. Adding one: docs/networks.md.

mod net;
mod resnet;

use super::builder::Description;
use crate::config::{self, ModelName};
use crate::data::Form;
use crate::error::{Error, Result};

/// The network that `config` names, for samples of `form`.
///
/// # Errors
/// [`Error::ConfigValue`]: the network takes no such samples.
pub(super) fn describe(config: &config::Model, form: Form) -> Result<Description> {
    match (config.name, form) {
        (ModelName::Net, Form::Images { classes, .. }) => net::net(config, form, classes),
        (
            ModelName::Resnet18 | ModelName::Resnet34 | ModelName::Resnet50 | ModelName::Resnet101,
            Form::Images { classes, .. },
        ) => resnet::resnet(config, form, classes),
        (name, form) => {
            let expected = match form {
                Form::Tokens { .. } => "takes images, and the data are sequences of tokens",
                Form::Images { .. } => "takes sequences of tokens, and the data are images",
            };
            let (place, key, value) = ("model".into(), "model.name".into(), format!("{:?}", name.as_str()));
            Err(Error::ConfigValue { place, key, value, expected: expected.into() })
        }
    }
}
