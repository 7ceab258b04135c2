//! `Net`: conv(3,6,5) - relu - pool - conv(6,16,5) - relu - pool - fc(400,120) - relu - fc(120,84) - relu - fc(84,10).

use tch::{Kind, Tensor};

use super::Model;
use super::layers::Builder;
use crate::config;

/// `Net` on CIFAR-10's images. Only the last layer can have a bias (`model.bias`).
pub(super) fn net(config: &config::Model) -> Model {
    let mut build = Builder::new(config);
    let conv1 = build.conv("conv1", [3, 6, 5], 1, 0);
    build.stage("conv1", Box::new(move |images, _| pool(conv1.forward(images)))); // [n, 6, 14, 14]
    let conv2 = build.conv("conv2", [6, 16, 5], 1, 0);
    build.stage("conv2", Box::new(move |hidden, _| pool(conv2.forward(hidden)))); // [n, 16, 5, 5]
    let fc1 = build.linear("fc1", 400, 120, false);
    build.stage("fc1", Box::new(move |hidden, _| fc1.forward(&hidden.flatten(1, -1)).relu_()));
    let fc2 = build.linear("fc2", 120, 84, false);
    build.stage("fc2", Box::new(move |hidden, _| fc2.forward(hidden).relu_()));
    let fc3 = build.linear("fc3", 84, 10, config.bias);
    build.stage("fc3", Box::new(move |hidden, _| fc3.forward(hidden).to_kind(Kind::Float)));
    // Its convolutions are so thin (3 and 6 channels in) that NHWC brings them nothing.
    build.finish(false)
}

fn pool(mut hidden: Tensor) -> Tensor {
    hidden.relu_().max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
}
