"""ONNX Runtime on a model of `hpml export`: predictions against PyTorch-free truth, the int8 logits of hpml itself.

    onnx_check.py MODEL.onnx FOLDER_OF_CIFAR10 [PREDICTIONS]

Prints accuracy, and with PREDICTIONS (one class a line, from `hpml eval --predictions FILE`) the share of equal ones.
`session.x64quantprecision` keeps ONNX Runtime exact on CPUs without VNNI, where its u8 x i8 product saturates.
"""
import os
import sys

import numpy as np
import onnx
import onnxruntime as ort

onnx.checker.check_model(sys.argv[1], full_check=True)
record = np.fromfile(os.path.join(sys.argv[2], "test_batch.bin"), np.uint8).reshape(-1, 3073)
labels, pixels = record[:, 0], record[:, 1:].reshape(-1, 3, 32, 32)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.x64quantprecision", "1")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
logits = np.concatenate([session.run(None, {"pixels": p})[0] for p in np.array_split(pixels, len(pixels) // 100)])
found = logits.argmax(1)
print(f"onnxruntime {ort.__version__}: {len(found)} images, accuracy {100 * (found == labels).mean():.2f} %")
if len(sys.argv) > 3:
    expected = np.loadtxt(sys.argv[3], dtype=int)
    print(f"same predictions: {100 * (found == expected).mean():.3f} %")
