//! `net`: conv(6, 5) - relu - pool - conv(16, 5) - relu - pool - fc(120) - relu - fc(84) - relu - fc(classes).

use super::super::builder::{Builder, Description, Window};
use crate::config;
use crate::data::Form;
use crate::error::Result;

const CONVOLUTION: Window = Window { kernel: 5, stride: 1, padding: 0 };
const POOL: Window = Window { kernel: 2, stride: 2, padding: 0 };

/// `net` for images of any size from 16x16. Only the last layer can have a bias (`model.bias`).
pub(super) fn net(config: &config::Model, form: Form, classes: usize) -> Result<Description> {
    let mut build = Builder::new(form);
    let mut x = Builder::INPUT;
    for (number, channels) in [(1, 6), (2, 16)] {
        build.part(&format!("conv{number}"));
        x = build.conv(&format!("conv{number}"), x, channels, CONVOLUTION, false);
        x = build.relu(&format!("relu{number}"), x);
        x = build.max_pool(&format!("pool{number}"), x, POOL);
    }
    build.part("fc1");
    x = build.flatten("flatten", x);
    x = build.linear("fc1", x, 120, false);
    x = build.relu("relu3", x);
    build.part("fc2");
    x = build.linear("fc2", x, 84, false);
    x = build.relu("relu4", x);
    build.part("fc3");
    build.linear("fc3", x, classes, config.bias);
    build.finish("net")
}
