#!/usr/bin/env bash
# Momentum of a parameter whose gradient has become zero.
#
# Guess: the momentum of SGD shrinks by its factor every step until it is zero, and costs nothing further.
# So:    it stops at four times the least denormal of float32: 0.9 times that is rounded to itself. Each later step multiplies
#        denormals, which on CPUs takes many times as long: steps that move no parameter at all are several times slower than with a
#        momentum of zero (20 times on a Xeon), with PyTorch's fused SGD too. Units that are never active (dead ReLUs) and rare tokens
#        of an embedding get there after some 800 steps. torch.set_flush_denormal(True) before the training ends it.
# Needs python3 with venv; installs PyTorch, or takes a Python that has it as its argument.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/probe.py" <<'PYTHON'
import statistics
import time
import warnings

warnings.simplefilter("ignore")  # NumPy is not needed
import torch

LENGTH, STEPS = 1 << 16, 1000
torch.set_num_threads(1)


def momentum(first_gradient, fused):
    """The momentum after a gradient and STEPS steps without one, and the median seconds of a step then."""
    parameter = torch.ones(LENGTH, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, fused=fused)
    parameter.grad = torch.full((LENGTH,), first_gradient)
    optimizer.step()
    parameter.grad = torch.zeros(LENGTH)
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return optimizer.state[parameter]["momentum_buffer"].max().item(), statistics.median(seconds[-100:])


print("torch", torch.__version__)
for flush in False, True:
    torch.set_flush_denormal(flush)
    for fused in False, True:
        (left, slow), (none, fast) = momentum(1.0, fused), momentum(0.0, fused)
        print(f"flush {flush}, fused {fused}: {left:.2e} left of 1, a step takes {slow / fast:.1f} times that with {none:.0f}")
        assert (left > 0) != flush, left
        if not flush:
            assert slow > 2 * fast, (slow, fast)
PYTHON

python=${1:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/python"
    "$folder/python/bin/pip" install -q --disable-pip-version-check torch==2.11.0
    python="$folder/python/bin/python"
fi
"$python" "$folder/probe.py"
