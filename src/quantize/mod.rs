//! Post-training quantization to int8, and the integer network that runs it. In: a trained `state_dict` and calibration
//! images (u8). Out: an [`IntNet`] (int8 weights, int32 biases, scales, fixed-point multipliers), what it costs in accuracy
//! case by case, and an [`Engine`] that runs it from u8 pixels to i32 logits with no float in between.
//!
//! `graph` lists the layers, which `structure` reads from the model's list of nodes and `fold` fills with its numbers;
//! [`calibration`] measures distributions; [`scheme`] chooses scales;
//! `integer` states the arithmetic, which `simulated` (float tensors), `reference` (plain loops), `engine` (vector kernels)
//! and `gpu_engine` (a GPU's matrix units) execute to identical integers; `accuracy` compares them and counts correct
//! predictions; `finetune` trains for the integers where they lose too much; `checkpoint` and `onnx` export the result. Only
//! [`command`] and `finetune` know of ranks, only [`command`] of files.

mod accuracy;
pub mod calibration;
mod checkpoint;
pub mod command;
mod engine;
mod finetune;
mod float_network;
mod fold;
mod gpu_engine;
mod graph;
mod integer;
mod kernel;
mod onnx;
mod reference;
pub mod scheme;
mod simulated;
mod structure;

pub use accuracy::AccuracyTable;
pub use calibration::Distribution;
pub use checkpoint::{from_checkpoint, is_quantized, to_checkpoint};
pub use engine::{Engine, Kernel};
pub use finetune::finetune;
pub use float_network::FloatTorch;
pub use gpu_engine::GpuEngine;
pub use graph::{FloatNet, Floats, Geometry, Layer, Node, Norm, Operation, Source, Spec, Window};
pub use integer::{IntNet, Integers, Quantization, Requantization, predictions};
pub use onnx::to_onnx;
pub use reference::Reference;
pub use simulated::Simulated;
pub use structure::structure;

#[cfg(test)]
mod tests;
