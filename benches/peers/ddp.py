"""CIFAR-10 training with PyTorch's DistributedDataParallel (gloo, CPU, one thread per rank): the peer of benches/ddp.rs.

    torchrun --standalone --nproc_per_node=2 benches/peers/ddp.py --data DIR --model resnet18 --batch 32 --steps 8 --warmup 2

DIR holds CIFAR-10's binary files; --size makes random images of another size instead. A step is: load the batch (crop and flip
for the ResNets on CIFAR-10), clear the gradients, forward, backward with the all-reduce, SGD. Without options everything is as
PyTorch has it by default; the options are what a tuned script sets. The last line is JSON, images_per_second of all ranks together:

  by default    from the median over the steps of the slowest rank's seconds; a barrier before each step
  --unbroken    from all steps together; no barriers between them, and each reads its loss, as a training's log does
"""
import argparse
import inspect
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from pytorch_networks import MODELS

# Mean and standard deviation per channel, and the optimizer's settings: those of configs/cifar10-*.toml.
SETTINGS = {
    "net": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), {"lr": 0.001, "momentum": 0.9}),
    "resnet18": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}),
}
SETTINGS["resnet50"] = SETTINGS["resnet18"]
RECORD = 1 + 3 * 32 * 32


class Images(Dataset):
    """uint8 images of three channels and their labels, one sample at a time: augmented, then normalised. With `augment` the images
    have 4 pixels of padding on each side, of which a random crop of 32 is taken and perhaps flipped."""

    def __init__(self, images, labels, augment, mean, std):
        self.images, self.labels, self.augment = images, labels, augment
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.scale = 1 / torch.tensor(std).view(3, 1, 1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        if self.augment:
            top, left, flip = torch.randint(0, 9, (3,)).tolist()
            image = image[:, top : top + 32, left : left + 32]
            if flip & 1:
                image = image.flip(2)
        return image.float().div_(255).sub_(self.mean).mul_(self.scale), self.labels[index]


def cifar10(folder, augment):
    """The 50,000 training images, padded to be augmented, and their labels."""
    files = [os.path.join(folder, f"data_batch_{number}.bin") for number in range(1, 6)]
    records = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, RECORD) for file in files])
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return F.pad(images, (4, 4, 4, 4)) if augment else images, torch.from_numpy(records[:, 0].astype(np.int64))


def random_images(size):
    """1,024 random images, `size` pixels wide and high, and random labels."""
    return torch.randint(0, 256, (1024, 3, size, size), dtype=torch.uint8), torch.randint(0, 10, (1024,))


def batches(data, batch):
    """Batches without end; every epoch in an order of its own."""
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch, sampler=sampler, drop_last=True)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def wrapped(model, bucket_view, local_buffers):
    """`model` under DDP. What keeps each rank's statistics its own is called `forward_sync_buffers` since PyTorch 2.13; its older
    name, `broadcast_buffers`, leaves the statistics out of the first broadcast, too (here they are equal anyhow)."""
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    choice = {buffers: False} if local_buffers else {}
    return DistributedDataParallel(model, gradient_as_bucket_view=bucket_view, **choice)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="DIR")
    source.add_argument("--size", type=int, help="random images of so many pixels a side, not augmented")
    parser.add_argument("--model", choices=SETTINGS, required=True)
    parser.add_argument("--batch", type=int, required=True, help="images per rank and step")
    parser.add_argument("--steps", type=int, required=True, help="timed steps")
    parser.add_argument("--warmup", type=int, default=0, help="steps before those")
    parser.add_argument("--unbroken", action="store_true", help="no barriers between the steps")
    parser.add_argument("--plain", action="store_true", help="the module itself, without DDP: for one rank")
    parser.add_argument("--bucket-view", action="store_true", help="DDP's gradient_as_bucket_view")
    parser.add_argument("--local-buffers", action="store_true", help="no broadcast of batch norm's statistics at each step")
    parser.add_argument("--fused", action="store_true", help="fused SGD")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    world_size = dist.get_world_size()
    mean, std, sgd = SETTINGS[args.model]
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    augment = args.data is not None and args.model != "net"
    samples = cifar10(args.data, augment) if args.data else random_images(args.size)
    dataset = Images(*samples, augment, mean, std)
    data = batches(dataset, args.batch)
    image = tuple(dataset[0][0].shape)
    model = MODELS[args.model](image=image).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), fused=args.fused or None, **sgd)
    network = model if args.plain else wrapped(model, args.bucket_view, args.local_buffers)

    def step():
        images, labels = next(data)
        images = images.contiguous(memory_format=layout)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(args.warmup):
        step()
    if args.unbroken:
        dist.barrier()
        start = time.perf_counter()
        for _ in range(args.steps):
            loss = step().item()
        dist.barrier()
        seconds = (time.perf_counter() - start) / args.steps
    else:
        own = []
        for _ in range(args.steps):
            dist.barrier()
            start = time.perf_counter()
            loss = step()
            own.append(time.perf_counter() - start)
        ranks = [None] * world_size
        dist.all_gather_object(ranks, own)
        seconds = statistics.median(map(max, zip(*ranks)))
        loss = loss.item()
    if dist.get_rank() == 0:
        rate = world_size * args.batch / seconds
        print(json.dumps({"images_per_second": rate, "loss": loss, "torch": torch.__version__}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
