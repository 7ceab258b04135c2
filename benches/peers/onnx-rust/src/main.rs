//! A model of `hpml export` in a runtime in Rust: the share of its predictions that are hpml's.
//!
//! ```sh
//! cargo run --release -- tract|rten MODEL.onnx FOLDER_OF_CIFAR10 PREDICTIONS [IMAGES]
//! ```
//! PREDICTIONS has one class a line (`hpml eval --predictions FILE`); the first IMAGES (2000) test images are computed.
use std::error::Error;
use std::path::Path;

use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use tract_onnx::prelude::*;

const SHAPE: [usize; 3] = [3, 32, 32];
const PIXELS: usize = 3 * 32 * 32;
/// Images of one call.
const BATCH: usize = 100;

/// A function from the pixels of [`BATCH`] images to their logits.
type Network = Box<dyn FnMut(&[u8]) -> Result<Vec<f32>, Box<dyn Error>>>;

fn tract(path: &Path) -> Result<Network, Box<dyn Error>> {
    let shape = tvec!(BATCH, SHAPE[0], SHAPE[1], SHAPE[2]);
    let model = tract_onnx::onnx().model_for_path(path)?.with_input_fact(0, u8::fact(shape.clone()).into())?;
    let model = model.into_optimized()?.into_runnable()?;
    Ok(Box::new(move |pixels| {
        let logits = model.run(tvec!(Tensor::from_shape(&shape, pixels)?.into()))?.remove(0);
        Ok(logits.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
    }))
}

fn rten(path: &Path) -> Result<Network, Box<dyn Error>> {
    let model = rten::Model::load_file(path)?;
    Ok(Box::new(move |pixels| {
        let images = NdTensor::from_data([BATCH, SHAPE[0], SHAPE[1], SHAPE[2]], pixels.to_vec());
        let logits: NdTensor<f32, 2> = model.run_one(images.into(), None)?.try_into()?;
        Ok(logits.to_vec())
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [runtime, model, data, predictions, images @ ..] = &args[..] else {
        return Err("usage: onnx-rust tract|rten MODEL.onnx FOLDER_OF_CIFAR10 PREDICTIONS [IMAGES]".into());
    };
    let images: usize = images.first().map_or(Ok(2000), |images| images.parse())?;
    let mut network = match runtime.as_str() {
        "tract" => tract(Path::new(model))?,
        "rten" => rten(Path::new(model))?,
        other => return Err(format!("{other}: tract or rten").into()),
    };
    let records = std::fs::read(Path::new(data).join("test_batch.bin"))?;
    let records: Vec<&[u8]> = records.chunks_exact(1 + PIXELS).take(images).collect();
    let expected = std::fs::read_to_string(predictions)?;
    let expected: Vec<usize> = expected.lines().map(|line| line.trim().parse()).collect::<Result<_, _>>()?;
    let (mut equal, mut right) = (0, 0);
    for (records, expected) in records.chunks_exact(BATCH).zip(expected.chunks_exact(BATCH)) {
        let pixels: Vec<u8> = records.iter().flat_map(|record| &record[1..]).copied().collect();
        let logits = network(&pixels)?;
        for ((logits, record), expected) in logits.chunks_exact(logits.len() / BATCH).zip(records).zip(expected) {
            let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("classes");
            equal += usize::from(best == *expected);
            right += usize::from(best == usize::from(record[0]));
        }
    }
    let images = records.len() / BATCH * BATCH;
    println!(
        "{runtime}: {images} images, accuracy {:.2} %, {equal} predictions equal",
        100.0 * right as f64 / images as f64
    );
    Ok(())
}
