#!/usr/bin/env bash
# Autocast that is written inside the forward of a TorchScript module.
#
# Guess: `with torch.autocast(...)` in forward is part of the scripted program, and does there what it does in Python.
# So:    it is a rewriting of the graph, which the executor's optimizer makes with a list of its own. Over a convolution with a
#        bias the rewritten graph fails at the first call (the bias is not cast). In a module loaded while the optimizer is off
#        the block is passed over: the module computes in float32, without a word. Autocast around the call does neither.
# Needs python3 with venv; installs PyTorch, or takes a Python that has it as its argument.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/probe.py" <<'PYTHON'
import io
import warnings

import torch
import torch.nn as nn

warnings.simplefilter("ignore")  # TorchScript is deprecated


class Model(nn.Module):
    def __init__(self, bias, inside):
        super().__init__()
        self.conv, self.inside = nn.Conv2d(3, 4, 3, bias=bias), inside

    def forward(self, x):
        if self.inside:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.conv(x)
        else:
            x = self.conv(x)
        return x


def outcome(model):
    try:
        return str(model(torch.zeros(2, 3, 8, 8)).dtype).removeprefix("torch.")
    except RuntimeError:
        return "fails"


def loaded(model, optimize):
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(model), archive)
    archive.seek(0)
    torch._C._set_graph_executor_optimize(optimize)
    return torch.jit.load(archive)


for bias in (False, True):
    model, plain = Model(bias, True), Model(bias, False)
    inside = [outcome(model), outcome(loaded(model, True)), outcome(loaded(model, False))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = outcome(loaded(plain, False))
    print("bias" if bias else "no bias", "eager", inside[0], "loaded", inside[1], "optimizer off", inside[2], "around", around)
PYTHON
python=${1:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/python"
    "$folder/python/bin/pip" install -q --disable-pip-version-check torch==2.11.0
    python="$folder/python/bin/python"
fi
"$python" -c 'import torch; print("torch", torch.__version__)'
found=$("$python" "$folder/probe.py")
echo "$found"
expected="no bias eager bfloat16 loaded bfloat16 optimizer off float32 around bfloat16
bias eager bfloat16 loaded fails optimizer off float32 around bfloat16"
[ "$found" = "$expected" ] || { echo "changed: expected" >&2; echo "$expected" >&2; exit 1; }
