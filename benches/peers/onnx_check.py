"""A model of `hpml export` in another runtime: accuracy on CIFAR-10's test images, and the share of predictions that are hpml's.

    onnx_check.py MODEL.onnx FOLDER_OF_CIFAR10 [PREDICTIONS] [--runtime NAME] [--images N]

PREDICTIONS has one class a line (`hpml eval --predictions FILE`). Runtimes, each with one thread:

  onnxruntime        with session.x64quantprecision = 1, which keeps its u8 x i8 product exact on CPUs without VNNI, where it saturates
  reference          onnx's own reference evaluator, in NumPy: seconds per image of a ResNet-18
  openvino           with INFERENCE_PRECISION_HINT = f32
  openvino-default   as it is: on CPUs with bf16 instructions it rounds what is not integers to bf16
"""
import argparse
import os

import numpy as np
import onnx

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("data")
parser.add_argument("predictions", nargs="?")
parser.add_argument("--runtime", default="onnxruntime", choices=["onnxruntime", "reference", "openvino", "openvino-default"])
parser.add_argument("--images", type=int, default=10000)
args = parser.parse_args()


def onnxruntime():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
    return f"onnxruntime {onnxruntime.__version__}", lambda pixels: session.run(None, {"pixels": pixels})[0]


def reference():
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(args.model)
    return f"reference evaluator of onnx {onnx.__version__}", lambda pixels: evaluator.run(None, {"pixels": pixels})[0]


def openvino():
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1}
    if args.runtime == "openvino":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    model = openvino.Core().compile_model(args.model, "CPU", settings)
    precision = model.get_property("INFERENCE_PRECISION_HINT")
    return f"openvino {openvino.__version__}, precision {precision}", lambda pixels: model(pixels)[0]


onnx.checker.check_model(args.model, full_check=True)
record = np.fromfile(os.path.join(args.data, "test_batch.bin"), np.uint8).reshape(-1, 3073)[: args.images]
labels, pixels = record[:, 0], record[:, 1:].reshape(-1, 3, 32, 32)
name, run = {"onnxruntime": onnxruntime, "reference": reference}.get(args.runtime, openvino)()
found = np.concatenate([run(batch) for batch in np.array_split(pixels, -(-len(pixels) // 100))]).argmax(1)
print(f"{name}: {len(found)} images, accuracy {100 * (found == labels).mean():.2f} %")
if args.predictions:
    expected = np.loadtxt(args.predictions, dtype=int)[: len(found)]
    found = found[: len(expected)]
    print(f"same predictions: {100 * (found == expected).mean():.3f} % ({(found != expected).sum()} differ)")
