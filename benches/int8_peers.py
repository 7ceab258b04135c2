"""The peers of benches/int8.rs on the same machine, 1 thread, images/s, best (median) of 15 calls.

    cargo bench --bench int8 -- --onnx FOLDER
    python benches/int8_peers.py FOLDER

ONNX Runtime runs the exported int8 models (u8 activations, s8 weights, per channel), from u8 pixels like hpml; torch.ao
quantizes the same structure (FX, engine x86), from float images. Weights are random: only speed is measured.
"""
import statistics
import sys
import time
import warnings

import numpy as np
import onnxruntime as ort
import torch
import torch.nn as nn
import torch.nn.functional as F

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
ROUNDS = 15


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5, bias=False), nn.Conv2d(6, 16, 5, bias=False)
        self.fc1, self.fc2, self.fc3 = (nn.Linear(a, b, bias=False) for a, b in ((400, 120), (120, 84), (84, 10)))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = torch.flatten(F.max_pool2d(F.relu(self.conv2(x)), 2), 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        shapes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
        self.blocks = nn.Sequential(*(Block(*shape) for shape in shapes))
        self.linear = nn.Linear(512, 10)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(torch.flatten(F.avg_pool2d(x, 4), 1))


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


print(f"# onnxruntime {ort.__version__}, torch {torch.__version__}, torch sees {torch.backends.cpu.get_cpu_capability()}")
print("#     model  batch      ONNX Runtime         torch.ao")
for name, make in (("net", Net), ("resnet18", ResNet18)):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(f"{sys.argv[1]}/{name}.onnx", options, providers=["CPUExecutionProvider"])
    quantized = torch_ao(make())
    for batch in (128, 1):
        repeats = 1 if batch > 1 else (200 if name == "net" else 4)
        pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, 32, 32), np.uint8)
        images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        first = rate(lambda: session.run(None, {"pixels": pixels}), batch, repeats)
        with torch.no_grad():
            second = rate(lambda: quantized(images), batch, repeats)
        print(f"{name:>11} {batch:>6} {first:>17} {second:>16}", flush=True)
