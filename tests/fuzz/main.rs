//! Fuzz tests: for every content of a file or argument, hpml ends with a result or an error, without a panic, a hang or more
//! memory than the input justifies.
//!
//! Each test feeds one parser with damaged copies of real inputs. A case follows from its number alone. Cases run in a process
//! of their own, with limits on memory and time. HDF5's C library may crash on files of its old format, whose metadata has no
//! checksums; such crashes are counted and printed.
//!
//!   HPML_FUZZ_CASES=1000000 cargo test --release --test fuzz -- --nocapture [TEST]     number of inputs per parser
//!   HPML_FUZZ_WORKERS=2                                                                processes per parser
//!   HPML_FUZZ_FROM=N                                                                   first case, for new inputs

mod files;
mod mutate;
mod supervise;
mod texts;

use std::path::Path;

use mutate::Random;
use supervise::{fuzz, run_worker};

/// Function that feeds one damaged input to a parser.
type Case = Box<dyn FnMut(&mut Random)>;

/// Function for the parser `name`; `folder` is for its files.
fn target(name: &str, folder: &Path) -> Case {
    match name {
        "config" => texts::config(folder),
        "machine" => texts::machine(),
        "arguments" => texts::arguments(),
        "cifar" => texts::cifar(),
        "cifar_files" => files::cifar(folder),
        "arrays" => files::arrays(folder),
        "sampler" => texts::sampler(),
        "hdf5" => files::hdf5(folder),
        "old_hdf5" => files::old_hdf5(folder),
        "tables" => files::tables(folder),
        "int8" => files::int8(folder),
        other => panic!("no target {other}"),
    }
}

#[test]
fn configurations_and_overrides() {
    fuzz("config", 10_000);
}

#[test]
fn machines() {
    fuzz("machine", 10_000);
}

#[test]
fn arguments() {
    fuzz("arguments", 10_000);
}

#[test]
fn cifar_records() {
    fuzz("cifar", 50_000);
}

#[test]
fn cifar_files() {
    fuzz("cifar_files", 10);
}

#[test]
fn arrays() {
    fuzz("arrays", 5_000);
}

#[test]
fn samplers() {
    fuzz("sampler", 5_000);
}

/// Files in the format that hpml writes: nothing may crash.
#[test]
fn hdf5_files() {
    fuzz("hdf5", 1_500);
}

/// Files in HDF5's old format, in which the C library trusts any metadata.
#[test]
fn hdf5_files_of_the_old_format() {
    fuzz("old_hdf5", 1_000);
}

#[test]
fn tables_with_any_values() {
    fuzz("tables", 150);
}

#[test]
fn int8_checkpoints() {
    fuzz("int8", 2_000);
}

#[test]
#[ignore = "a part of the other tests, which start it as a process"]
fn worker() {
    run_worker();
}
