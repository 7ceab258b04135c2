//! ONNX Runtime and ONNX's reference evaluator against the integer engine: the logits of exported networks of every kind.

#[path = "../../src/quantize/tests/networks.rs"]
mod networks;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use hpml::config::{self, ModelName, Stem};
use hpml::live::Live;
use hpml::model::{Entry, Model, Role};
use hpml::quantize::{Engine, FloatNet, FloatTorch, IntNet, Kernel, Spec, calibration, predictions, scheme, to_onnx};
use hpml::store::{NamedTensor, TensorValues};
use networks::{float_net, name, networks, pixels, quantized};

/// Both multiply accumulators with float32 scales, hpml with fixed-point multipliers of 31 bits, so that a sum within
/// float32's rounding of a half becomes another step now and then. Of 20 images none has such a sum in `net`, at most 3 in a
/// ResNet, whose logits then differ by up to 2 % of their range; a bound of 5 % leaves room for other CPUs.
fn logits_agree(runtime: &str, images: usize) {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("left out: set HPML_PYTHON to a Python with onnx and onnxruntime");
        return;
    };
    let imports = Command::new(&python).args(["-c", "import onnx, onnxruntime"]).stderr(Stdio::null()).status();
    if !imports.unwrap().success() {
        eprintln!("left out: HPML_PYTHON has no onnx and onnxruntime (tests/requirements.txt)");
        return;
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx_logits.py");
    let folder = tempfile::tempdir().unwrap();
    let [model, pixels_file, logits] = ["net.onnx", "pixels", "logits"].map(|name| folder.path().join(name));
    for spec in networks() {
        let net = quantized(&float_net(&spec), |config| config.per_channel = true);
        let pixels = pixels(&spec, images);
        std::fs::write(&model, to_onnx(&net)).unwrap();
        std::fs::write(&pixels_file, &pixels).unwrap();
        let mut command = Command::new(&python);
        command.arg(&script).arg(runtime).args([&model, &pixels_file, &logits]).env("OMP_NUM_THREADS", "1");
        crate::common::Mpirun::command(command).run().succeeded();
        let bytes = std::fs::read(&logits).unwrap();
        let scale = net.nodes.last().unwrap().numbers().output.scale;
        let steps = |four: &[u8; 4]| (f64::from(f32::from_le_bytes(*four)) / scale).round() as i32;
        let found: Vec<i32> = bytes.as_chunks::<4>().0.iter().map(steps).collect();
        let expected = Engine::new(&net, Kernel::best()).run(&pixels);
        let off: Vec<i32> = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).collect();
        let spread = expected.iter().max().unwrap() - expected.iter().min().unwrap();
        let (equal, most) = (off.iter().filter(|off| **off == 0).count(), off.iter().max().unwrap());
        let told =
            format!("{runtime}, {}: {equal} of {} logits equal, {most} of {spread} steps off", name(&spec), off.len());
        eprintln!("{told}");
        let bound = if spec.model.name == ModelName::Net { 0 } else { spread / 20 };
        assert!(*most <= bound && equal * 4 >= off.len() * 3, "{told}");
        assert_eq!(predictions(&found, spec.classes), predictions(&expected, spec.classes), "{}", name(&spec));
    }
}

#[test]
fn onnx_runtime_finds_the_logits_of_the_exported_network() {
    logits_agree("onnxruntime", 20);
}

/// In NumPy, so with fewer images.
#[test]
fn the_reference_evaluator_finds_the_logits_of_the_exported_network() {
    logits_agree("reference", 4);
}
