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
the file: the loss in eval mode, then those of three steps of SGD in training mode, on one batch made of integers (`batch`
below). Dropout draws as after torch.manual_seed(check.seed), which another version of libtorch or another kind of processor
may do otherwise; only the loss in eval mode is compared there. The allowed difference is FACTOR times the greatest that
relative changes of all weights by NOISE, 32 times float32's rounding, made in the losses, at least LEAST.
"""
import argparse
import copy
import importlib
import importlib.util
import io
import json
import os
import platform
import sys

import torch
import torch.nn.functional as F

STEPS, RUNS, NOISE, FACTOR, LEAST, MOST = 3, 4, 2**-18, 4, 1e-4, 0.05


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


def apart(one, other):
    """Greatest relative difference of two lists of losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other))


def build(name, arguments):
    """The model that --module names."""
    place, _, function = name.rpartition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(os.path.basename(place)[:-3], place)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # torch.jit.script looks its sources up by name
        sys.path.insert(0, os.path.dirname(os.path.abspath(place)))
        spec.loader.exec_module(module)
        return getattr(module, function)(**arguments)
    if place == "torchvision":
        return importlib.import_module("torchvision").models.get_model(function, **arguments)
    if place == "timm":
        return importlib.import_module("timm").create_model(function, **arguments)
    raise SystemExit(f"--module {name}: expected FILE.py:FUNCTION, torchvision:NAME or timm:NAME")


def argument(text):
    """Name and value of NAME=VALUE; the value is JSON, or else a text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def check_state(model):
    """Refuses what hpml cannot train or save."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise SystemExit(f"{name} is {tensor.dtype}: call .float() on the model; hpml computes in bf16 by model.precision")
    if not any(p.requires_grad for p in model.parameters()):
        raise SystemExit("no parameter requires a gradient: there is nothing to train")


def classes_of(model, inputs):
    """Classes, or the vocabulary, by the shape of the output for `inputs`."""
    with torch.no_grad():
        output = copy.deepcopy(model).eval()(inputs)
    if not isinstance(output, torch.Tensor):
        raise SystemExit(f"forward returns a {type(output).__name__}: return the logits alone (wrap the model in a module of your own)")
    wanted = inputs.shape[:1] if inputs.dim() == 4 else inputs.shape
    if output.dim() != len(wanted) + 1 or output.shape[:-1] != wanted:
        form = "[n, classes]" if inputs.dim() == 4 else "[n, t, vocabulary]"
        raise SystemExit(f"forward gives {list(output.shape)} for {list(inputs.shape)}: expected {form}")
    return output.shape[-1]


def compiled(model, inputs, trace):
    """The model as TorchScript, with the values that it had."""
    if not trace:
        return torch.jit.script(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = torch.jit.trace(model, inputs, check_trace=False)
    with torch.no_grad():  # the pass has moved batch norm's statistics
        for name, tensor in model.state_dict().items():
            tensor.copy_(state[name])
    return traced


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", required=True, help="FILE.py:FUNCTION, torchvision:NAME or timm:NAME")
    parser.add_argument("--set", type=argument, action="append", default=[], metavar="NAME=VALUE", help="argument of the function")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--input", type=int, nargs=3, metavar=("C", "H", "W"), help="shape of an image")
    form.add_argument("--tokens", type=int, metavar="LENGTH", help="length of a sequence of token ids")
    parser.add_argument("--out", required=True)
    parser.add_argument("--trace", action="store_true", help="record one training pass instead of compiling the source")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial values and of the check")
    parser.add_argument("--check-samples", type=int, default=4, help="samples of the check")
    parser.add_argument("--check-lr", type=float, default=0.01, help="learning rate of the check")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = build(args.module, dict(args.set)).cpu().train()
    check_state(model)
    shape = args.input or [args.tokens]
    classes = classes_of(model, batch(args.check_samples, shape, 2)[0])
    inputs, targets = batch(args.check_samples, shape, classes)

    def run(noise=0.0, seed=args.seed, of=None):
        return losses(of or copy.deepcopy(model), inputs, targets, args.check_lr, seed, noise)

    expected = run()
    is_random = run(seed=args.seed + 1)[1:] != expected[1:]
    bound = max([LEAST] + [FACTOR * apart(run(NOISE * sign), expected) for sign in range(1, RUNS + 1)])
    if not bound <= MOST:
        raise SystemExit(f"the check's losses {expected} move by {bound / FACTOR:.1e} with the last bits: lower --check-lr")

    script = compiled(model, inputs, args.trace)
    if not args.trace:
        archive = io.BytesIO()
        torch.jit.save(script, archive)
        archive.seek(0)
        torch._C._set_graph_executor_optimize(False)  # as hpml does
        found = run(of=torch.jit.load(archive))
        if not apart(found, expected) <= bound:
            raise SystemExit(f"the scripted model's losses are {found}, the model's {expected}: try --trace")

    lines = {
        "format": 1,
        "module": args.module,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "traced": args.trace,
        "input": list(shape),
        "dtype": "float32" if args.input else "int64",
        "classes": classes,
        "state": list(model.state_dict()),
        "check.seed": args.seed,
        "check.samples": args.check_samples,
        "check.lr": args.check_lr,
        "check.random": is_random,
        "check.eval_loss": expected[0],
        "check.losses": expected[1:],
        "check.bound": bound,
    }
    description = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    torch.jit.save(script, args.out, _extra_files={"hpml.toml": description})
    size, parameters = os.path.getsize(args.out), sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {size} bytes, {parameters} parameters, {list(shape)} to {classes} classes, losses {expected}, bound {bound:.1e}")


if __name__ == "__main__":
    main()
