"""Makes a parity file for `hpml verify` with PyTorch: the same weights and samples must give the same losses and updates.

  python scripts/parity.py --data DIR --out parity.h5 [--models net resnet18] [--ranks 1 2 4]

DIR holds CIFAR-10's binary files. Needs torch, numpy, h5py. One group per model of SETTINGS, for example /net (20 steps of 64
samples) and /resnet18 (8 steps of 16), with S steps of B samples and P parameters:
  attributes          mean, std (per channel; input = (u8/255 - mean)/std), lr, momentum, global_batch, noise, seed;
                      settings: hpml's keys of [model] that make it, if it is not the network of the group's name in full size
  init/<name>         initial state_dict, float32, without num_batches_tracked, tied weights once; left out with --no-weights
                      where they are those that hpml makes from `seed`, as torch.manual_seed does
  indices  [S,B]      sample numbers in data_batch_1..5, one after the other; rank r of n takes columns rB//n to (r+1)B//n
  labels   [S,B]      labels of the samples
  input_sum [S]       sum of the normalized inputs per step (float64)
  tokens   [S,B,T+1]  instead of indices and labels, for a network of tokens: inputs 0 to T-1, targets 1 to T; attribute
                      vocabulary; mean and std are not used
and one group ranks_<n> per number of ranks n, with batch-norm statistics over the samples of each rank (a model without batch
norm has only ranks_1, which holds for any n):
  loss [S], update [S,P]    in float64: mean cross-entropy before each update, L2 norm of each parameter's movement since the start
                            after the update
  loss_rounding, update_rounding, parameter_rounding   [K,S]  relative difference of K float32 references (attribute
                            `references`) from the float64 values: of the loss, of the norm of all parameters' movement, and
                            of the movement of the worst parameter
SGD with momentum, no weight decay; train mode; no augmentation.

The references are float32 without noise (1 and 2 threads, both memory layouts, three instruction sets, DistributedDataParallel
with gloo on 2 ranks) and float32 with noise: every weight is multiplied by 1 + noise * N(0, 1) while a gradient is computed. The
noise is many times float32's rounding, so that ReLU and max-pool units are switched in every step; the rounding of a processor
does that too, but so rarely that a few references would miss it. hpml allows FACTOR (4) times the largest difference; the file
is refused if a reference without noise differs by more than half of the allowed amount.
"""
import argparse
import dataclasses
import concurrent.futures
import os
import tempfile

import h5py
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
import torch.nn.functional as F

import pytorch_networks

MOMENTUM, NOISY, FACTOR = 0.9, 12, 4
HALF, CIFAR = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@dataclasses.dataclass
class Settings:
    """Training of one group. The rate moves the model, but does not amplify rounding beyond use."""

    network: str
    lr: float
    steps: int
    batch: int
    noise: float
    normalization: tuple = CIFAR  # mean and std per channel
    sizes: dict = dataclasses.field(default_factory=dict)  # hpml's keys of [model]
    tokens: tuple = ()  # length and vocabulary


CHANGED = ("heads.head.weight", "bn3.weight")  # have other initial values than the seed gives, see build
TRANSFORMER = dict(width=32, depth=2, heads=2)
SETTINGS = {
    "net": Settings("net", 0.1, 20, 64, 2**-14, HALF),
    "resnet18": Settings("resnet18", 0.0003, 8, 16, 2**-16),
    "resnet18_imagenet": Settings("resnet18", 0.0003, 4, 32, 2**-16, sizes=dict(width=16, stem="imagenet")),
    "resnet34": Settings("resnet34", 0.0003, 4, 16, 2**-16, sizes=dict(width=16)),
    "resnet50": Settings("resnet50", 0.0003, 4, 16, 2**-16, sizes=dict(width=4)),
    "resnet101": Settings("resnet101", 0.0003, 4, 16, 2**-16, sizes=dict(width=4)),
    "vit": Settings("vit", 0.01, 8, 16, 2**-14, sizes=TRANSFORMER),
    "gpt2": Settings("gpt2", 0.01, 8, 16, 2**-14, sizes=TRANSFORMER, tokens=(32, 128)),
}
# Stand-ins for other processors: environments that restrict a process to some instructions.
PROCESSORS = {
    "all instructions": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE4": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def build(name, seed):
    settings = SETTINGS[name]
    form = dict(zip(("length", "vocabulary"), settings.tokens))
    torch.manual_seed(seed)
    model = pytorch_networks.build(settings.network, **form, **settings.sizes).train()
    for key, parameter in model.named_parameters():
        if key == "heads.head.weight":
            # With its weight of 0 no layer of vit before the head would move in the first step.
            nn.init.normal_(parameter, std=0.02)
        if key.endswith("bn3.weight"):
            # With weights of 1 float32's rounding grows to 1 % of the gradient of a bottleneck network.
            nn.init.constant_(parameter, 0.2)
    return model


def cross_entropy(logits, targets):
    """Mean over all targets: those of images, or those at all places of sequences."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def has_batch_norm(model):
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


class Run:
    """SGD that records the loss before each step and the norms of the parameters' movement after it."""

    def __init__(self, model, lr, noise=0.0, noise_seed=0):
        self.parameters, self.noise = list(model.parameters()), noise
        self.initial = [p.detach().double().clone() for p in self.parameters]
        self.optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=MOMENTUM)
        self.generator = torch.Generator().manual_seed(noise_seed)
        self.losses, self.updates = [], []

    def step(self, gradient):
        """Makes one step. `gradient` computes the gradient and returns the loss."""
        self.optimizer.zero_grad()
        with torch.no_grad():
            exact = [p.clone() for p in self.parameters]
            for p in self.parameters if self.noise else []:
                p.mul_(1 + self.noise * torch.randn(p.shape, generator=self.generator))
        self.losses.append(gradient())
        with torch.no_grad():
            for p, value in zip(self.parameters, exact):
                p.copy_(value)
        self.optimizer.step()
        moved = zip(self.parameters, self.initial)
        self.updates.append([(p.detach().double() - initial).norm().item() for p, initial in moved])

    def result(self):
        return np.array(self.losses), np.array(self.updates)


def train(name, seed, x, y, ranks, dtype=torch.float32, threads=1, channels_last=False, noise=0.0, noise_seed=0):
    """Trains in one process, with batch-norm statistics over the samples of each of `ranks` ranks."""
    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, x = build(name, seed).to(dtype).to(memory_format=layout), x.to(dtype) if x.is_floating_point() else x
    run, batch = Run(model, SETTINGS[name].lr, noise, noise_seed), x.shape[1]
    shares = [slice(rank * batch // ranks, (rank + 1) * batch // ranks) for rank in range(ranks)]

    def gradient(images, labels):
        total = 0.0
        for share in shares:
            own = images[share].contiguous(memory_format=layout) if images.ndim == 4 else images[share]
            loss = cross_entropy(model(own), labels[share]) * (len(own) / batch)
            loss.backward()
            total += loss.item()
        return total

    for images, labels in zip(x, y):
        run.step(lambda: gradient(images, labels))
    return run.result()


def on_processor(environment, *args):
    """Runs `train(*args)` with 1 thread (NCHW) and with 2 (NHWC), in a process restricted to the instructions of `environment`."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with concurrent.futures.ProcessPoolExecutor(1, mp.get_context("spawn")) as pool:
            for threads, channels_last in ((1, False), (2, True)):
                found = pool.submit(train, *args, torch.float32, threads, channels_last).result()
                yield f"{threads} thread(s), {'NHWC' if channels_last else 'NCHW'}", found
    finally:
        os.environ.clear()
        os.environ.update(before)


def ddp_rank(rank, name, seed, x, y, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, share = build(name, seed), x.shape[1] // 2
    wrapped, run = nn.parallel.DistributedDataParallel(model), Run(model, SETTINGS[name].lr)
    own = slice(rank * share, (rank + 1) * share)

    def gradient(images, labels):
        loss = cross_entropy(wrapped(images), labels)
        loss.backward()
        return loss.item()

    for images, labels in zip(x[:, own], y[:, own]):
        run.step(lambda: gradient(images, labels))
    losses, updates = run.result()
    every = [None] * 2
    dist.all_gather_object(every, losses)
    if rank == 0:
        torch.save((np.mean(every, axis=0), updates), f"{folder}/rank0")
    dist.barrier()
    dist.destroy_process_group()


def ddp(name, seed, x, y):
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(ddp_rank, (name, seed, x, y, folder), 2)
        return torch.load(f"{folder}/rank0", weights_only=False)


def rounding(found, exact):
    """Relative differences `[3, S]`: of the loss, of the norm of the whole movement, of the worst parameter's movement."""
    (loss, update), (exact_loss, exact_update) = found, exact
    whole, exact_whole = np.linalg.norm(update, axis=1), np.linalg.norm(exact_update, axis=1)
    return np.array([
        np.abs(loss / exact_loss - 1),
        np.abs(whole / exact_whole - 1),
        np.abs(update / exact_update - 1).max(axis=1),
    ])


def references(group, name, seed, x, y, ranks, batch_norm):
    """Writes the float64 run on `ranks` ranks and the differences of float32 from it."""
    exact = train(name, seed, x, y, ranks, torch.float64, 2)
    group["loss"], group["update"] = exact
    plain, noisy = {}, {}
    for processor, environment in PROCESSORS.items():
        for run, found in on_processor(environment, name, seed, x, y, ranks):
            plain[f"{processor}, {run}"] = rounding(found, exact)
    if ranks == 2 or not batch_norm:
        plain["DistributedDataParallel, 2 ranks"] = rounding(ddp(name, seed, x, y), exact)
    for number in range(NOISY):
        found = train(name, seed, x, y, ranks, noise=SETTINGS[name].noise, noise_seed=number)
        noisy[f"noise {number}"] = rounding(found, exact)

    envelope = np.maximum.accumulate(np.max(list(noisy.values()), axis=0), axis=1)
    ratio = np.max(list(plain.values()), axis=0) / envelope
    quantities = ("loss_rounding", "update_rounding", "parameter_rounding")
    for row, quantity in enumerate(quantities):
        most = f"noise up to {envelope[row, -1]:.1e}, the rest within {ratio[row].max():.1e} of it"
        print(f"{group.name} {quantity}: {most}", flush=True)
        group[quantity] = np.array([found[row] for found in (plain | noisy).values()], np.float32)
    group.attrs["references"] = list(plain | noisy)
    if ratio.max() > FACTOR / 2:
        raise SystemExit(f"{group.name}: float32 without noise differs too much: raise the noise of {name} in SETTINGS")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--models", nargs="+", choices=sorted(SETTINGS), default=["net", "resnet18"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--no-weights", action="store_true", help="omit init/, for a small file, where the seed gives it")
    args = parser.parse_args()

    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    records = np.concatenate([np.fromfile(os.path.join(args.data, name), np.uint8).reshape(-1, 3073) for name in names])
    order = np.random.default_rng(args.seed).permutation(len(records))

    with h5py.File(args.out, "w", libver="v110") as file:  # with checksums of its metadata
        for name in args.models:
            settings = SETTINGS[name]
            (mean, std), steps, batch = settings.normalization, settings.steps, settings.batch
            group = file.create_group(name)
            group.attrs.update(mean=mean, std=std, lr=settings.lr, momentum=MOMENTUM, global_batch=batch)
            group.attrs.update(noise=settings.noise, seed=args.seed)
            if settings.sizes:
                keys = dict(name=settings.network) | settings.sizes
                group.attrs["settings"] = " ".join(f"{key}={value}" for key, value in keys.items())
            if settings.tokens:
                length, vocabulary = settings.tokens
                tokens = np.random.default_rng(args.seed).integers(vocabulary, size=(steps, batch, length + 1))
                x, y = torch.from_numpy(tokens[:, :, :-1].copy()), torch.from_numpy(tokens[:, :, 1:].copy())
                group["tokens"], group.attrs["vocabulary"] = tokens.astype(np.int32), vocabulary
            else:
                indices = order[: steps * batch].reshape(steps, batch)
                y = torch.from_numpy(records[indices, 0].astype(np.int64))
                pixels = torch.from_numpy(records[indices, 1:]).reshape(steps, batch, 3, 32, 32)
                x = (pixels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
                group["indices"], group["labels"] = indices.astype(np.int32), y.numpy().astype(np.uint8)
            group["input_sum"] = np.array([step.double().sum().item() for step in x])
            model = build(name, args.seed)
            if not args.no_weights or any(key.endswith(CHANGED) for key in model.state_dict()):
                listed = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
                for key, tensor in model.state_dict().items():
                    if not key.endswith("num_batches_tracked") and key in listed:
                        group[f"init/{key}"] = tensor.numpy()
            batch_norm = has_batch_norm(model)
            for ranks in args.ranks if batch_norm else [1]:
                references(group.create_group(f"ranks_{ranks}"), name, args.seed, x, y, ranks, batch_norm)


if __name__ == "__main__":
    main()
