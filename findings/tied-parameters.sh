#!/usr/bin/env bash
# Tied weights among the parameters of a TorchScript module.
#
# Guess: named_parameters() of a module lists a tied weight once, as Python's does, so that an optimizer can be made of the list.
# So:    C++'s torch::jit::Module::named_parameters() lists it under each of its names, the same tensor each time, also after
#        torch.jit.load in Python has listed it once. An optimizer made of C++'s list steps such a weight twice per step.
# Needs g++ and python3 with venv; installs PyTorch, or takes a Python that has it as its argument.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/probe.py" <<'PYTHON'
import sys
import warnings

import torch
import torch.nn as nn

warnings.simplefilter("ignore")  # TorchScript is deprecated
model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
model[1].weight = model[0].weight
torch.jit.save(torch.jit.script(model), sys.argv[1])
print("Python:", *(name for name, _ in torch.jit.load(sys.argv[1]).named_parameters()))
PYTHON
cat >"$folder/probe.cpp" <<'CPP'
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <iostream>
#include <set>

int main(int, char **arguments) {
    const auto module = torch::jit::load(arguments[1]);
    std::set<const void *> tensors;
    std::cout << "C++:";
    for (const auto &parameter : module.named_parameters()) {
        std::cout << " " << parameter.name;
        tensors.insert(parameter.value.unsafeGetTensorImpl());
    }
    std::cout << " (" << tensors.size() << " tensor)\n";
}
CPP
python=${1:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/python"
    "$folder/python/bin/pip" install -q --disable-pip-version-check torch==2.11.0
    python="$folder/python/bin/python"
fi
"$python" -c 'import torch; print("torch", torch.__version__)'
torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
g++ -std=c++20 -w "$folder/probe.cpp" -o "$folder/probe" -I"$torch/include" -I"$torch/include/torch/csrc/api/include" \
    -L"$torch/lib" -Wl,--unresolved-symbols=ignore-in-shared-libs -ltorch_cpu -lc10 -Wl,-rpath,"$torch/lib"
found=$("$python" "$folder/probe.py" "$folder/tied.pt" && "$folder/probe" "$folder/tied.pt")
echo "$found"
expected="Python: 0.weight
C++: 0.weight 1.weight (1 tensor)"
[ "$found" = "$expected" ] || { echo "changed: expected" >&2; echo "$expected" >&2; exit 1; }
