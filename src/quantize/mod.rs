//! Post-training quantization to int8, and the integer network that runs it. In: a trained `state_dict` and calibration
//! images (u8). Out: an [`IntNet`] (int8 weights, int32 biases, scales, fixed-point multipliers), what it costs in accuracy
//! case by case, and an [`Engine`] that runs it from u8 pixels to i32 logits with no float in between.
//!
//! [`graph`] folds batch norm and lists the layers; [`calibration`] measures distributions; [`scheme`] chooses scales;
//! [`integer`] states the arithmetic, which [`simulated`] (float tensors), [`mod@reference`] (plain loops) and [`engine`]
//! (vector kernels) and [`gpu_engine`] (a GPU's matrix units) execute to the same integers; [`accuracy`] compares them and counts
//! hits; [`finetune`] trains for the integers where they lose too much; [`checkpoint`] and [`onnx`] take the result out. Only [`command`] knows of ranks and files.

pub mod accuracy;
pub mod calibration;
pub mod checkpoint;
pub mod command;
pub mod engine;
pub mod finetune;
pub mod float_network;
pub mod gpu_engine;
pub mod graph;
pub mod integer;
pub mod kernel;
pub mod onnx;
pub mod reference;
pub mod scheme;
pub mod simulated;

pub use calibration::Distribution;
pub use engine::{Engine, Kernel};
pub use graph::FloatNet;
pub use integer::IntNet;

#[cfg(test)]
mod tests;
