#!/usr/bin/env bash
# The bits of a bfloat16 NaN after a conversion to float32.
#
# Guess: a bfloat16 is the upper half of a float32, so a conversion to float32 is a shift by 16 bits for every pattern, and the
#        way back gives the same pattern: any two libraries agree on all 65,536.
# So:    they agree on every number, but each treats NaN in its own way. The Rust crate half sets the quiet bit of a signaling
#        NaN as it widens: 126 patterns are no shift, and come back changed. ml_dtypes (bfloat16 of NumPy and JAX) widens by the
#        shift, but narrows every NaN to one pattern per sign: 252 patterns come back changed. A check of buffers by their bits,
#        after they went through float32 in another library, fails on a NaN although both libraries are right.
# Needs cargo and python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2021"

[dependencies]
half = "=2.7.1"
TOML
cat >"$folder/src/main.rs" <<'RUST'
use half::bf16;

fn main() {
    let widened = |bits: u16| bf16::from_bits(bits).to_f32();
    let count = |is_so: &dyn Fn(u16) -> bool| (0..=u16::MAX).filter(|&bits| is_so(bits)).count();
    let no_shift = count(&|bits| widened(bits).to_bits() != u32::from(bits) << 16);
    let changed = count(&|bits| bf16::from_f32(widened(bits)).to_bits() != bits);
    let numbers = count(&|bits| !widened(bits).is_nan() && bf16::from_f32(widened(bits)).to_bits() != bits);
    println!("{no_shift} no shift, {changed} changed, {numbers} of them numbers");
}
RUST
cat >"$folder/probe.py" <<'PYTHON'
import ml_dtypes
import numpy as np

bits = np.arange(65536, dtype=np.uint16)
with np.errstate(invalid="ignore"):
    wide = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    back = wide.astype(ml_dtypes.bfloat16).view(np.uint16)
no_shift = wide.view(np.uint32) != bits.astype(np.uint32) << 16
changed = back != bits
print(f"{no_shift.sum()} no shift, {changed.sum()} changed, {(changed & ~np.isnan(wide)).sum()} of them numbers")
PYTHON
python3 -m venv "$folder/python"
"$folder/python/bin/pip" install -q --disable-pip-version-check ml_dtypes==0.5.3 numpy==2.3.3

status=0
check() {
    echo "$1: $2"
    [ "$2" = "$3" ] || { echo "changed: expected $3" >&2; status=1; }
}
check "half 2.7.1" "$(cd "$folder" && cargo run -q --release)" "126 no shift, 126 changed, 0 of them numbers"
check "ml_dtypes 0.5.3" "$("$folder/python/bin/python" "$folder/probe.py")" "0 no shift, 252 changed, 0 of them numbers"
exit $status
