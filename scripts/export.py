"""Turns a PyTorch model into a file that `hpml` trains without Python: `--set model.name=file --set model.file=OUT`.

  python scripts/export.py --module my.py:make --input 3 32 32 --out my.pt
  python scripts/export.py --module torchvision:resnet50 --set num_classes=10 --input 3 64 64 --out resnet50.pt
  python scripts/export.py --module timm:vit_tiny_patch16_224 --set num_classes=10 --input 3 224 224 --out vit.pt
  python scripts/export.py --module my.py:decoder --tokens 64 --out decoder.pt

--module names a Python file and a function in it that returns the model (a torch.nn.Module with float32 parameters), or a
model of torchvision or timm; --set gives that function arguments. The initial values are those that it makes after
torch.manual_seed(--seed), or pretrained ones if it loads them. forward takes one tensor, images [n, c, h, w] (float32) or with
--tokens LENGTH token ids [n, t] (int64), and returns one tensor: logits [n, classes], or [n, t, vocabulary].

The model is compiled by torch.jit.script. --trace records one training pass instead, for models that cannot be scripted:
branches on values or on `self.training` are then fixed as in that pass.

The archive gets a text, hpml.toml, that says what the file takes and gives, and holds a check that hpml repeats as it loads
the file: the loss in eval mode, then those of up to three steps of SGD in training mode (fewer if the last bits decide them),
on one batch made of integers (`batch` below). Dropout draws as after torch.manual_seed(check.seed), which another version of libtorch or another kind of processor
may do otherwise; only the loss in eval mode is compared there. The allowed difference is FACTOR times the greatest that
relative changes of all weights by NOISE, 32 times float32's rounding, made in the losses, at least LEAST.

The text also has `operations`: multiplications and additions per sample of the forward pass in training, and of forward and backward
pass, as torch.utils.flop_counter counts them in the model in Python (but for gradients of grouped convolutions, which it counts
too high). Of models that it cannot count the text has none.

What cannot be exported ends it with status 1 and one line: `export.py: THING: what is wrong: mend`.
"""
import argparse
import contextlib
import copy
import importlib
import importlib.util
import inspect
import io
import json
import math
import os
import platform
import re
import sys
import traceback

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

STEPS, RUNS, NOISE, FACTOR, LEAST, MOST = 3, 4, 2**-18, 4, 1e-4, 0.05

# What to do about an option that argparse refuses.
MENDS = {
    "--module": "give FILE.py:FUNCTION, torchvision:NAME or timm:NAME",
    "--set": "give NAME=VALUE, such as num_classes=10",
    "--input": "give channels, height and width of an image, such as --input 3 32 32",
    "--tokens": "give the length of a sequence, such as --tokens 64",
    "--out": "give the file to write, such as --out my.pt",
    "--seed": "give a whole number from 0 on",
    "--check-samples": "give a whole number from 1 on",
    "--check-lr": "give a number above 0, such as 0.01",
}


def refuse(thing, wrong, mend):
    """Ends the program with status 1 and one line."""
    raise SystemExit(f"export.py: {thing}: {wrong}: {mend}")


@contextlib.contextmanager
def refusing(thing, action, mend):
    """Refuses `thing` with one line if what is done in it raises an exception: the first line of its text, and where it was raised."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            refuse(thing, f"needs {package}, which is not installed", f"pip install {package}")
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = (lines[0] if lines else "no message").rstrip(":")
        # TorchScript writes the place into its text; of other errors it is the last one in the user's file, outside libraries.
        place = re.search(r'File "([^"]+)", line (\d+)', str(error))
        if isinstance(error, SyntaxError):
            place = None  # it stands in the text
        elif place:
            place = f"{place[1]}, line {place[2]}"
        else:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
            place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else None
        refuse(thing, f"{action} with {type(error).__name__}: {text}" + (f" ({place})" if place else ""), mend)


def is_users(path):
    """Whether the source at `path` is neither this program's nor a library's."""
    libraries = (os.path.dirname(os.path.dirname(torch.__file__)), os.path.dirname(os.__file__), "<")
    return os.path.abspath(path) != os.path.abspath(__file__) and not path.startswith(libraries)


class Parser(argparse.ArgumentParser):
    """Parser that refuses options as all else is refused: in one line, with status 1."""

    def error(self, message):
        message = message.removeprefix("argument ")
        thing, _, wrong = message.partition(": ")
        if thing not in MENDS:
            thing, wrong = "options", message
        refuse(thing, wrong, MENDS.get(thing, "python scripts/export.py --help lists them"))


def hashed(count, first):
    """`count` numbers of 32 bits, a hash of the integers from `first` on. Source: lowbias32 of Wellons' hash-prospector."""
    x = torch.arange(first, first + count, dtype=torch.int64)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def batch(samples, shape, classes):
    """Inputs and targets of the check: equal on every machine."""
    count = samples * torch.Size(shape).numel()
    numbers = hashed(count, 0)
    if len(shape) == 1:
        return (numbers % classes).view(samples, *shape), (hashed(count, count) % classes).view(samples, *shape)
    images = ((2 * (numbers >> 24) - 255).float() / 128).view(samples, *shape)
    return images, hashed(samples, count) % classes


def loss_of(model, inputs, targets):
    logits = model(inputs)
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())


def losses(model, inputs, targets, lr, seed, noise=0.0):
    """Loss in eval mode, then before each of the steps in training mode, of a `model` that is used up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters() if noise else []:
            p.mul_(1 + noise * torch.randn(p.shape, generator=generator))
        found = [loss_of(model.eval(), inputs, targets).item()]
    model.train()
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, inputs, targets)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def of_convolution_backward(gradient, inputs, weight, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, mask, out_shape):
    """Operations of a convolution's gradients, of shapes: each takes as many as the forward pass. PyTorch's own counter forgets the
    groups in that of the weights (2.13): for a depthwise convolution it counts as many times too much as there are channels."""
    return sum(mask[:2]) * conv_flop_count(inputs, weight, gradient, transposed)


def operations(model, inputs, targets):
    """Multiplications and additions per sample of the forward pass in training, and of forward and backward pass; None, with a line,
    where they cannot be counted. Attention counts as its two matrix products, the masked half too, whatever kernel computes it."""
    try:
        mapping = {torch.ops.aten.convolution_backward: of_convolution_backward}
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            loss = loss_of(model.train(), inputs, targets)
            forward = counter.get_total_flops()
            loss.backward()
        return [count // len(inputs) for count in (forward, counter.get_total_flops())]
    except Exception as error:  # the model trains all the same
        lines = str(error).splitlines() or [""]
        print(f"operations: not counted, so that hpml shows no FLOP/s: {type(error).__name__}: {lines[0]}")
        return None


def apart(one, other):
    """Greatest difference of two lists of losses: relative, or absolute for a loss of 0, which every model of one class has."""
    return max(abs(a - b) / (abs(b) or 1) if math.isfinite(a - b) else math.inf for a, b in zip(one, other))


def build(name, arguments):
    """The model that --module names."""
    place, _, function = name.rpartition(":")
    thing, hint = f"--module {name}", "check what --set gives it"
    if place.endswith(".py"):
        make = function_of(place, function)
        try:
            inspect.signature(make).bind(**arguments)
        except TypeError as error:
            given = "".join(f" {key}={json.dumps(value)}" for key, value in arguments.items())
            refuse(f"--set{given}", f"{function}{inspect.signature(make)} of {place}: {error}", "give its arguments as NAME=VALUE")
        except ValueError:  # a function without a signature
            pass
    elif place in ("torchvision", "timm") and function:
        with refusing(place, "its import fails", f"install the {place} that belongs to PyTorch {torch.__version__}"):
            library = importlib.import_module(place)
        models = library.models if place == "torchvision" else library
        hint += f", and the name against {models.__name__}.list_models()"

        def make(**arguments):
            return models.get_model(function, **arguments) if place == "torchvision" else models.create_model(function, **arguments)
    else:
        refuse(thing, "names no model", MENDS["--module"])
    with refusing(thing, "fails", hint):
        model = make(**arguments)
    if not isinstance(model, torch.nn.Module):
        refuse(thing, f"returns a value of type {type(model).__name__}", "return the model, a torch.nn.Module")
    return model


def function_of(path, name):
    """The function `name` in the Python file `path`."""
    if not os.path.isfile(path):
        refuse(path, "no such file", f"check --module; paths are relative to {os.getcwd()}")
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.jit.script looks its sources up by name
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    with refusing(path, "fails as it is imported", "mend it"):
        spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if found is None:
        members = inspect.getmembers(module, lambda value: inspect.isfunction(value) or inspect.isclass(value))
        own = [key for key, value in members if value.__module__ == spec.name]
        refuse(path, f"has no function {name!r}", f"name one that it has ({', '.join(own) or 'it has none'})")
    if isinstance(found, torch.nn.Module) or not callable(found):
        refuse(path, f"{name} is a value of type {type(found).__name__}, not a function", "name a function that returns the model")
    return found


def argument(text):
    """Name and value of NAME=VALUE; the value is JSON, or else a text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def number(kind, least, is_above=False):
    """Reader of options that are numbers of type `kind`, from `least` on or above it."""
    def read(text):
        value = kind(text)
        if not (value > least if is_above else value >= least) or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not {'above' if is_above else 'at least'} {least}")
        return value
    read.__name__ = kind.__name__  # argparse's name for it
    return read


def check_state(model):
    """Refuses what hpml cannot train or save."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            refuse(name, f"is {tensor.dtype}", "call .float() on the model; hpml computes in bf16 by model.precision")
    if not any(p.requires_grad for p in model.parameters()):
        refuse("parameters", "none requires a gradient, so that there is nothing to train", "set requires_grad of what is trained")


def classes_of(model, inputs, option):
    """Classes, or the vocabulary, by the shape of the output for `inputs`, whose shape `option` gave."""
    with torch.no_grad(), refusing(option, f"forward fails on {list(inputs.shape)}", "give what the model takes, or mend forward"):
        output = copy.deepcopy(model).eval()(inputs)
    if not isinstance(output, torch.Tensor):
        mend = "return the logits alone (wrap the model in a module of your own)"
        refuse("forward", f"returns a value of type {type(output).__name__}", mend)
    wanted = inputs.shape[:1] if inputs.dim() == 4 else inputs.shape
    if output.dim() != len(wanted) + 1 or output.shape[:-1] != wanted or output.shape[-1] == 0:
        form = "[n, classes]" if inputs.dim() == 4 else "[n, t, vocabulary]"
        refuse("forward", f"returns {list(output.shape)} for {list(inputs.shape)}", f"return logits {form}")
    return output.shape[-1]


def check_losses(losses, name):
    """Refuses a model whose own losses are no numbers."""
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            place = f"in training step {step}" if step else "in eval mode"
            mend = "lower --check-lr, or mend the model" if step > 1 else "mend the model or its initial values"
            what = "NaN" if math.isnan(loss) else "infinite"
            refuse(f"--module {name}", f"the model's own loss is {what} on random inputs ({place}), before any export", mend)


def enters_autocast(model, script, inputs):
    """Whether forward enters autocast: found in the graph, as src/sys/script.cpp finds it, or as it runs, since neither a trace nor
    a script of a decorated forward shows it."""
    graph = script.inlined_graph
    types = [node.inputsAt(0).type() for node in graph.findAllNodes("prim::Enter")]
    types += [node.outputsAt(0).type() for node in graph.findAllNodes("prim::CreateObject")]
    entered, enter = [], torch.autocast.__enter__

    def watched(self):
        entered.append(self)
        return enter(self)

    torch.autocast.__enter__ = watched
    try:
        with torch.no_grad():
            copy.deepcopy(model)(inputs)
    finally:
        torch.autocast.__enter__ = enter
    return bool(entered) or any("autocast" in str(kind) for kind in types)


def compiled(model, inputs, trace):
    """The model as TorchScript, with the values that it had."""
    if not trace:
        with refusing("torch.jit.script", "fails", "change what TorchScript cannot compile, or record the model with --trace"):
            return torch.jit.script(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with refusing("torch.jit.trace", "fails", "change what cannot be traced"):
        traced = torch.jit.trace(model, inputs, check_trace=False)
    with torch.no_grad():  # the pass has moved batch norm's statistics
        for name, tensor in model.state_dict().items():
            tensor.copy_(state[name])
    return traced


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", required=True, help="FILE.py:FUNCTION, torchvision:NAME or timm:NAME")
    parser.add_argument("--set", type=argument, action="append", default=[], metavar="NAME=VALUE", help="argument of the function")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--input", type=number(int, 1), nargs=3, metavar=("C", "H", "W"), help="shape of an image")
    form.add_argument("--tokens", type=number(int, 1), metavar="LENGTH", help="length of a sequence of token ids")
    parser.add_argument("--out", required=True)
    parser.add_argument("--trace", action="store_true", help="record one training pass instead of compiling the source")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of the initial values and of the check")
    parser.add_argument("--check-samples", type=number(int, 1), default=4, help="samples of the check")
    parser.add_argument("--check-lr", type=number(float, 0, is_above=True), default=0.01, help="learning rate of the check")
    args = parser.parse_args()

    folder = os.path.dirname(os.path.abspath(args.out))
    if not os.path.isdir(folder):
        refuse(f"--out {args.out}", f"no folder {folder}", f"mkdir -p {folder}, or give another file")
    if os.path.isdir(args.out) or not os.access(folder, os.W_OK):
        refuse(f"--out {args.out}", "cannot be written", "give a file in a folder that you may write to")

    torch.manual_seed(args.seed)
    model = build(args.module, dict(args.set)).cpu().train()
    check_state(model)
    shape = args.input or [args.tokens]
    option = f"--input {' '.join(map(str, shape))}" if args.input else f"--tokens {args.tokens}"
    classes = classes_of(model, batch(args.check_samples, shape, 2)[0], option)
    inputs, targets = batch(args.check_samples, shape, classes)

    def run(noise=0.0, seed=args.seed, of=None):
        return losses(of or copy.deepcopy(model), inputs, targets, args.check_lr, seed, noise)

    with refusing(f"--module {args.module}", "a training step fails", "mend the model, or raise --check-samples"):
        expected = run()
    check_losses(expected, args.module)
    script = compiled(model, inputs, args.trace)
    if enters_autocast(model, script, inputs):
        refuse("forward", "enters autocast, which TorchScript does by rules of its own", "take it out and set model.precision = bf16")
    is_random = run(seed=args.seed + 1)[1:] != expected[1:]
    noisy = [run(NOISE * sign) for sign in range(1, RUNS + 1)]

    def bound_of(steps):
        count = steps + 1  # the loss in eval mode comes first
        return max([LEAST] + [FACTOR * apart(losses[:count], expected[:count]) for losses in noisy])

    # Batch norm over few samples makes deep networks so sensitive that later losses say nothing.
    steps = next((steps for steps in range(STEPS, -1, -1) if bound_of(steps) <= MOST), None)
    if steps is None:
        refuse("check", f"its loss {expected[0]} in eval mode moves with the last bits", "mend the model or its initial values")
    if steps < STEPS:
        print(f"check: {steps} of {STEPS} training steps: later losses move by {bound_of(steps + 1) / FACTOR:.1e} with the last bits")
    expected, bound = expected[: steps + 1], bound_of(steps)

    if not args.trace:
        archive = io.BytesIO()
        torch.jit.save(script, archive)
        archive.seek(0)
        torch._C._set_graph_executor_optimize(False)  # as hpml does
        with refusing("torch.jit.script", "gives a model that fails", "try --trace"):
            found = run(of=torch.jit.load(archive))[: steps + 1]
        if not apart(found, expected) <= bound:
            refuse("torch.jit.script", f"its model's losses are {found}, the model's {expected}", "try --trace")

    lines = {
        "format": 1,
        "module": args.module,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "traced": args.trace,
        "input": list(shape),
        "dtype": "float32" if args.input else "int64",
        "classes": classes,
        "operations": operations(copy.deepcopy(model), inputs, targets),
        "state": list(model.state_dict()),
        "check.seed": args.seed,
        "check.samples": args.check_samples,
        "check.lr": args.check_lr,
        "check.random": is_random,
        "check.eval_loss": expected[0],
        "check.losses": expected[1:],
        "check.bound": bound,
    }
    lines = {key: value for key, value in lines.items() if value is not None}
    description = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    with refusing(f"--out {args.out}", "writing fails", "give a file that can be written"):
        torch.jit.save(script, args.out, _extra_files={"hpml.toml": description})
    size, parameters = os.path.getsize(args.out), sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {size} bytes, {parameters} parameters, {list(shape)} to {classes} classes, losses {expected}, bound {bound:.1e}")


if __name__ == "__main__":
    main()
