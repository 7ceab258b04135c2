#!/usr/bin/env bash
# A gather to which one rank brings no bytes, from Rust.
#
# Guess: MPI_Gatherv takes a count of zero from any rank, whatever the address of its buffer is: nothing is read there.
# So:    the rank's call fails with MPI_ERR_ARG under Open MPI. An empty Rust slice has the address of its alignment, for bytes 1, and 1 is
#        Open MPI's MPI_IN_PLACE, which only the root may pass. Floats, whose empty slices are at 4, are taken; so are bytes under an MPI
#        whose MPI_IN_PLACE is another number.
# Needs cargo, libclang, and Open MPI with its headers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "gather"
version = "0.1.0"
edition = "2021"

[dependencies]
mpi = { version = "=0.8.2", default-features = false }
TOML
cat >src/main.rs <<'RUST'
use mpi::collective::Root;
use mpi::datatype::PartitionMut;
use mpi::traits::*;

/// Gathers three values of rank 0 and none of rank 1.
fn gather<T: Equivalence + Copy + Default + std::fmt::Debug>(world: &impl Communicator) {
    let root = world.process_at_rank(0);
    let own: Vec<T> = if world.rank() == 0 { vec![T::default(); 3] } else { Vec::new() };
    println!("rank {}: {} values of {} bytes at {:p}", world.rank(), own.len(), size_of::<T>(), own.as_ptr());
    if world.rank() == 0 {
        let mut all = [T::default(); 3];
        root.gather_varcount_into_root(&own[..], &mut PartitionMut::new(&mut all[..], [3, 0], [0, 3]));
    } else {
        root.gather_varcount_into(&own[..]);
    }
    world.barrier();
}

fn main() {
    let universe = mpi::initialize().unwrap();
    let world = universe.world();
    match std::env::args().nth(1).as_deref() {
        Some("floats") => gather::<f32>(&world),
        _ => gather::<u8>(&world),
    }
}
RUST
cargo build --quiet
mpirun --version | head -n 1
for kind in floats bytes; do
    timeout 60 mpirun -n 2 target/debug/gather $kind >out 2>&1 && status=0 || status=$?
    error=$(grep -o 'MPI_ERR_[A-Z]*' out | head -n 1 || true)
    echo "$kind: status $status ${error:-gathered}; $(grep -o '^rank 1.*' out)"
    case $kind in floats) expected= ;; bytes) expected=MPI_ERR_ARG ;; esac
    [ "$error" = "$expected" ] || { cat out >&2; echo "no longer so" >&2; exit 1; }
done
