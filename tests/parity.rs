//! The same losses as PyTorch, from the same initial values and samples, on real images.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Finished, Mpirun};

/// Made by `scripts/parity.py --no-weights` from the images that the continuous integration has; the initial values come
/// from the seed, so that this also tests that they are `torch.manual_seed`'s.
const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/parity.h5");

/// `None`, with a word why: no data, or another edition of the images (labels or pixels differ).
fn verify(ranks: usize, test: &str) -> Option<Finished> {
    let data = common::cifar10(test)?;
    let run = Mpirun::ranks(ranks)
        .args([Path::new("verify"), Path::new(PARITY), Path::new("--data"), &data])
        .args(["--set", "launch.threads=1"])
        .timeout(Duration::from_secs(900))
        .run();
    if run.stderr.contains("made from other") {
        eprintln!("{test}: left out: the parity file was made from another edition of CIFAR-10");
        return None;
    }
    Some(run)
}

#[test]
fn one_rank_repeats_pytorchs_losses() {
    let Some(run) = verify(1, "one_rank_repeats_pytorchs_losses") else { return };
    let run = run.succeeded();
    assert!(run.stdout.contains("# net: lr 0.1") && run.stdout.contains("# resnet18: lr 0.001"), "{}", run.stdout);
    assert_eq!(run.stdout.lines().filter(|line| line.trim_start().starts_with("19 ")).count(), 2);
}

#[test]
fn two_ranks_repeat_the_losses_of_ddp() {
    let Some(run) = verify(2, "two_ranks_repeat_the_losses_of_ddp") else { return };
    assert!(run.succeeded().stdout.contains("DDP on 2 ranks"));
}

#[test]
fn a_loss_out_of_bound_is_an_error() {
    let Some(data) = common::cifar10("a_loss_out_of_bound_is_an_error") else { return };
    let folder = common::folder();
    let wrong = folder.path().join("wrong.h5");
    std::fs::copy(PARITY, &wrong).unwrap();
    {
        let file = hdf5::File::open_rw(&wrong).unwrap();
        file.unlink("resnet18").unwrap();
        let losses = file.dataset("net/loss_single").unwrap();
        let mut values: Vec<f64> = losses.read_raw().unwrap();
        values[7] *= 1.0 + 3e-5;
        losses.write_raw(&values).unwrap();
    }
    let run = Mpirun::ranks(1).args([Path::new("verify"), &wrong, Path::new("--data"), &data]).run();
    if run.stderr.contains("made from other") {
        return;
    }
    assert!(!run.status.success());
    assert_eq!(run.messages().len(), 1, "{}", run.stderr);
    assert!(run.messages()[0].contains("step 7"), "{}", run.stderr);
}
