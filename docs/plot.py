"""The README's picture from a run file: python docs/plot.py RUN.h5 OUT.png (needs h5py, numpy, matplotlib)."""
import sys

import h5py
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

PARTS = ["data", "forward", "backward", "comm_exposed", "optimizer"]
COLORS = ["#9aa5b1", "#3d7ea6", "#1f4e79", "#e07a3f", "#7fb069"]

with h5py.File(sys.argv[1]) as run:
    steps = {name: run["steps"][name][()] for name in PARTS + ["rank", "warmup", "step"]}
    epochs = {name: run["epochs"][name][()] for name in ["epoch", "train_accuracy", "test_accuracy", "images_per_second"]}
    model = run["config"].attrs["model.name"]
    batch = run["config"].attrs["train.batch_per_rank"]

ranks = np.unique(steps["rank"])
counted = steps["warmup"] == 0
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=[3, 2])
bottom = np.zeros(len(ranks))
for part, color in zip(PARTS, COLORS):
    mean = np.array([steps[part][counted & (steps["rank"] == rank)].mean() * 1e3 for rank in ranks])
    left.barh([f"rank {rank}" for rank in ranks], mean, left=bottom, color=color, label=part)
    bottom += mean
left.invert_yaxis()
left.set_xlabel("mean time of a step (ms)")
left.set_title(f"Step anatomy: {model}, {batch} images per rank", fontsize=10)
left.legend(ncols=len(PARTS), fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22))
right.plot(epochs["epoch"] + 1, epochs["train_accuracy"], "o-", color="#9aa5b1", label="train")
right.plot(epochs["epoch"] + 1, epochs["test_accuracy"], "o-", color="#1f4e79", label="test")
right.set_xlabel("epoch")
right.set_ylabel("accuracy (%)")
right.set_xticks(epochs["epoch"] + 1)
right.set_title(f"{epochs['images_per_second'][-1]:,.0f} images/s on {len(ranks)} ranks", fontsize=10)
right.legend(fontsize=8, frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
figure.savefig(sys.argv[2], dpi=130)
