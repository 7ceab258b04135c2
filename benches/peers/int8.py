"""The peers of benches/int8.rs on the same machine, 1 thread, images/s, best (median) of 15 calls.

    cargo bench --bench int8 -- --onnx FOLDER
    python benches/peers/int8.py FOLDER

ONNX Runtime runs two int8 models (both u8 activations, s8 weights, per channel): the same structure quantized by its own
quantize_static, the form that it is fastest at, from float images; and the one that hpml exports, from u8 pixels, whose
residual sums are not rounded before they are added, so that ONNX Runtime computes those convolutions in float. torch.ao
quantizes the same structure (FX, engine x86), from float images. Weights are random: only speed is measured.
"""
import statistics
import sys
import time
from pathlib import Path
import warnings

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from pytorch_networks import MODELS

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
ROUNDS = 15


def rate(call, batch, repeats):
    call()
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        rates.append(batch * repeats / (time.perf_counter() - start))
    return f"{max(rates):.0f} ({statistics.median(rates):.0f})"


def torch_ao(model):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "x86"
    prepared = prepare_fx(model.eval(), get_default_qconfig_mapping("x86"), (torch.randn(1, 3, 32, 32),))
    with torch.no_grad():
        prepared(torch.randn(16, 3, 32, 32))
    return convert_fx(prepared)


class Images(CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"images": np.random.default_rng(1).standard_normal((16, 3, 32, 32)).astype(np.float32)}])

    def get_next(self):
        return next(self.batches, None)


def quantize_onnx(model, folder):
    """The path of the model, batch norm folded, quantized by ONNX Runtime's own tool."""
    paths = [f"{folder}/peer-{step}.onnx" for step in ("float", "folded", "int8")]
    example = torch.randn(1, 3, 32, 32)
    names = {"input_names": ["images"], "dynamic_axes": {"images": {0: "n"}}, "opset_version": 17}
    torch.onnx.export(model.eval(), example, paths[0], dynamo=False, **names)
    quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
    quantize_static(
        paths[1], paths[2], Images(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )
    return paths[2]


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


print(f"# onnxruntime {ort.__version__}, torch {torch.__version__}, torch sees {torch.backends.cpu.get_cpu_capability()}")
print("#     model  batch      ONNX Runtime   its run of ours         torch.ao")
for name in ("net", "resnet18"):
    model = MODELS[name]()
    own, exported = session(quantize_onnx(model, sys.argv[1])), session(f"{sys.argv[1]}/{name}.onnx")
    quantized = torch_ao(model)
    for batch in (128, 1):
        repeats = 1 if batch > 1 else (200 if name == "net" else 4)
        pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, 32, 32), np.uint8)
        floats = np.random.default_rng(0).standard_normal((batch, 3, 32, 32)).astype(np.float32)
        images = torch.from_numpy(floats).contiguous(memory_format=torch.channels_last)
        rates = [
            rate(lambda: own.run(None, {"images": floats}), batch, repeats),
            rate(lambda: exported.run(None, {"pixels": pixels}), batch, repeats),
        ]
        with torch.no_grad():
            rates.append(rate(lambda: quantized(images), batch, repeats))
        print(f"{name:>11} {batch:>6} {rates[0]:>17} {rates[1]:>17} {rates[2]:>16}", flush=True)
