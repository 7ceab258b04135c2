"""Makes a parity file for `hpml verify` with PyTorch: the same weights and samples must give the same losses.

  python scripts/parity.py --data DIR --out parity.h5 [--models net resnet18]

DIR holds CIFAR-10's binary files. Needs torch, numpy, h5py. For each model group /net and /resnet18:
  attributes          mean, std (per channel; input = (u8/255 - mean)/std), lr, momentum, global_batch, ranks, seed
  init/<name>         initial state_dict, float32, without num_batches_tracked; left out with --no-weights: hpml then makes
                      them from `seed`, as torch.manual_seed does
  norm_init           L2 norm of each initial parameter (float64)
  indices  [20,64]    sample numbers in data_batch_1..5, one after the other; rank r of 2 takes columns 32r..32r+31
  labels   [20,64]    their labels
  input_sum [20]      sum of each step's normalised inputs (float64)
  loss_single, loss_single_t2   [20]  mean cross-entropy before each update: one process, batch 64, with 1 and with 2 threads
  loss_ddp [20]       the same with DistributedDataParallel on 2 ranks (gloo)
  norm_single, norm_ddp         L2 norm of each parameter after 20 steps
SGD with momentum, no weight decay; train mode; no augmentation.
"""
import argparse
import os
import tempfile

import h5py
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
import torch.nn.functional as F

STEPS, BATCH, RANKS, MOMENTUM = 20, 64, 2, 0.9
SETTINGS = {  # mean, std, learning rate at which 20 steps move the model but do not amplify rounding beyond use
    "net": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.1),
    "resnet18": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 0.001),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5, bias=False)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
        self.fc1 = nn.Linear(400, 120, bias=False)
        self.fc2 = nn.Linear(120, 84, bias=False)
        self.fc3 = nn.Linear(84, 10, bias=False)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for index, (width, stride) in enumerate([(64, 1), (128, 2), (256, 2), (512, 2)], 1):
            layer = nn.Sequential(BasicBlock(inputs, width, stride), BasicBlock(width, width, 1))
            setattr(self, f"layer{index}", layer)
            inputs = width
        self.linear = nn.Linear(512, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


MODELS = {"net": Net, "resnet18": ResNet18}


def build(name, seed):
    torch.manual_seed(seed)
    return MODELS[name]().train()


def norms(model):
    return np.array([p.detach().double().norm().item() for p in model.parameters()])


def train(model, wrapped, x, y, lr, columns):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    losses = []
    for images, labels in zip(x[:, columns], y[:, columns]):
        optimizer.zero_grad()
        loss = F.cross_entropy(wrapped(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def ddp_rank(rank, name, seed, x, y, lr, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    model = build(name, seed)
    share = BATCH // RANKS
    wrapped = nn.parallel.DistributedDataParallel(model)
    losses = train(model, wrapped, x, y, lr, slice(rank * share, (rank + 1) * share))
    every = [None] * RANKS
    dist.all_gather_object(every, losses)
    if rank == 0:
        torch.save((np.mean(every, axis=0), norms(model)), f"{folder}/rank0")
    dist.barrier()
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["net", "resnet18"])
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--no-weights", action="store_true", help="leave init/ out: a small file")
    args = parser.parse_args()

    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    records = np.concatenate([np.fromfile(os.path.join(args.data, name), np.uint8).reshape(-1, 3073) for name in names])
    indices = np.random.default_rng(args.seed).permutation(len(records))[: STEPS * BATCH].reshape(STEPS, BATCH)
    y = torch.from_numpy(records[indices, 0].astype(np.int64))
    pixels = torch.from_numpy(records[indices, 1:]).reshape(STEPS, BATCH, 3, 32, 32)
    everything = slice(0, BATCH)

    with h5py.File(args.out, "w") as file:
        for name in args.models:
            mean, std, lr = SETTINGS[name]
            group = file.create_group(name)
            group.attrs.update(mean=mean, std=std, lr=lr, momentum=MOMENTUM, global_batch=BATCH, ranks=RANKS, seed=args.seed)
            x = (pixels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            group["indices"], group["labels"] = indices.astype(np.int64), y.numpy().astype(np.uint8)
            group["input_sum"] = np.array([step.double().sum().item() for step in x])

            model = build(name, args.seed)
            group["norm_init"] = norms(model)
            if not args.no_weights:
                for key, tensor in model.state_dict().items():
                    if not key.endswith("num_batches_tracked"):
                        group[f"init/{key}"] = tensor.numpy()
            torch.set_num_threads(1)
            group["loss_single"] = train(model, model, x, y, lr, everything)
            group["norm_single"] = norms(model)
            torch.set_num_threads(2)
            again = build(name, args.seed)
            group["loss_single_t2"] = train(again, again, x, y, lr, everything)
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(ddp_rank, (name, args.seed, x, y, lr, folder), RANKS)
                group["loss_ddp"], group["norm_ddp"] = torch.load(f"{folder}/rank0", weights_only=False)
            print(f"{name}: loss {group['loss_single'][0]:.4f} -> {group['loss_single'][-1]:.4f}")


if __name__ == "__main__":
    main()
