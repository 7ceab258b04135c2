//! This build against an earlier one: bit-identical parameters and the same figures from every command. Left out unless
//! HPML_BEFORE names the `hpml` of the earlier build, on the same machine, libtorch and MPI.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Mpirun, folder, text};
use hpml::store::{TensorValues, read_checkpoint, read_table, table_names};
use hpml::table::Values;

/// Units of figures that depend on the machine's speed and memory.
const MEASURED: [&str; 4] = ["s", "1/s", "GB/s", "J"];
/// Columns of other units that do.
const MEASURED_TOO: [&str; 9] = [
    "share",
    "speedup",
    "efficiency",
    "busbw_share",
    "overlap",
    "peak_memory",
    "batch_for_90_percent",
    "steps",
    "iterations",
];

/// Leaves convolutions to libtorch, as earlier builds did.
const DIRECT: &str = "model.convolution=direct";

/// Batch norm in libtorch's operations, as earlier builds computed it on CPU cores whatever the key said.
const UNFUSED: &str = "model.fused_batch_norm=false";

/// The earlier build; `None`, with a note on stderr, where there is none.
fn before(test: &str) -> Option<PathBuf> {
    let before = std::env::var_os("HPML_BEFORE").map(PathBuf::from);
    if before.is_none() {
        eprintln!("{test}: left out: HPML_BEFORE names no earlier build");
    }
    before
}

/// Runs `mpirun -n RANKS PROGRAM ARGS --out OUT`.
fn run(program: &Path, ranks: usize, args: &[&str], out: &Path) {
    let run = Mpirun::program(ranks, [text(program)]).args(args).arg("--out").arg(text(out)).run();
    assert!(run.status.success(), "{}: {}", program.display(), run.stderr);
}

/// Checks that two run files have the same tables, but for the columns of `newer` ones, and equal figures that are not measured.
fn compare(old: &Path, new: &Path, compare_rows: bool) {
    for group in table_names(old).unwrap() {
        let (before, after) = (read_table(old, &group).unwrap(), read_table(new, &group).unwrap());
        // How often ranks agree on errors and names at the start is no figure.
        let counted = |values: &Values| match (group.as_str(), before.column("kind").map(|kind| &kind.values)) {
            ("comm", Some(Values::Text(kinds))) => {
                values.select(&(0..kinds.len()).filter(|row| kinds[*row] != "control").collect::<Vec<usize>>())
            }
            _ => values.clone(),
        };
        for column in &before.columns {
            let name = format!("{group}/{}", column.name);
            let found = after.column(&column.name).unwrap_or_else(|| panic!("{name} is gone"));
            assert_eq!((&column.units, &column.dimensions), (&found.units, &found.dimensions), "{name}");
            let measured = [&MEASURED[..], &MEASURED_TOO[..]].concat();
            let is_measured = measured.contains(&column.units.as_str()) || measured.contains(&column.name.as_str());
            if compare_rows && !is_measured {
                let [was, is] = [&column.values, &found.values].map(counted);
                assert!(same(&was, &is), "{name}: {was:?} {is:?}");
            }
        }
    }
}

/// Whether all values are equal, NaN being equal to NaN.
fn same(one: &Values, other: &Values) -> bool {
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<u64>>();
    match (one, other) {
        (Values::F64(one), Values::F64(other)) => bits(one) == bits(other),
        (one, other) => one == other,
    }
}

#[test]
fn a_training_gives_the_same_parameters_and_tables_as_before() {
    let Some(before) = before("a_training") else { return };
    let folder = folder();
    let hpml = Path::new(env!("CARGO_BIN_EXE_hpml"));
    for (name, ranks, set) in [
        ("net", 2, &["quantize.enabled=true", "optim.ema=0.9"][..]),
        ("lars", 2, &["optim.name=lars", "metrics.spread_steps=4"]),
        ("lamb", 1, &["optim.name=lamb", "train.accumulate=2", "schedule.anneal=cosine"]),
        ("bucket", 3, &["parallel.bucket_mb=0.1", "metrics.timing=profile", "optim.clip_norm=1.0"]),
        ("bf16", 2, &["parallel.compression=bf16"]),
        ("resnet", 2, &["model.name=resnet18", "model.width=8", "parallel.buffers=local", UNFUSED]),
    ] {
        let mut args = vec!["train"];
        let small = ["train.epochs=2", "data.train_samples=192", "data.test_samples=64"];
        let small = small.into_iter().chain(["quantize.calibration_images=64"]);
        small.chain(set.iter().copied()).for_each(|set| args.extend(["--set", set]));
        let [old, new] = ["old", "new"].map(|which| folder.path().join(format!("{name}-{which}.h5")));
        run(&before, ranks, &args, &old);
        args.extend(["--set", DIRECT]);
        run(hpml, ranks, &args, &new);
        let [was, is] = [&old, &new].map(|path| read_checkpoint(path).unwrap());
        assert_eq!(was.tensors, is.tensors, "{name}: parameters");
        compare(&old, &new, true);
    }
}

#[test]
fn a_training_that_was_begun_before_goes_on_as_if_it_had_begun_now() {
    let Some(before) = before("a_training_that_was_begun") else { return };
    let folder = folder();
    let hpml = Path::new(env!("CARGO_BIN_EXE_hpml"));
    for (name, set) in [
        ("net", &[][..]),
        ("resnet", &["--set", "model.name=resnet18", "--set", UNFUSED, "--set", "data.augment=true"]),
    ] {
        let [whole, parts] = ["whole", "parts"].map(|which| folder.path().join(format!("{name}-{which}.h5")));
        let small = ["train", "--set", "data.train_samples=64", "--set", "data.test_samples=32"];
        let args = |epochs: &'static str, more: &[&'static str]| [&small, set, &["--set", epochs], more].concat();
        run(hpml, 2, &args("train.epochs=3", &["--set", DIRECT]), &whole);
        run(&before, 2, &args("train.epochs=2", &["--set", "checkpoint.every_epochs=1"]), &parts);
        run(hpml, 2, &args("train.epochs=3", &["--resume", "auto"]), &parts);
        let [expected, found] = [&whole, &parts].map(|path| read_checkpoint(path).unwrap());
        if name == "resnet" {
            assert_eq!(expected.tensors, found.tensors, "{name}");
        }
        // The convolutions of net are hpml's own in the last epoch.
        for (expected, found) in expected.tensors.iter().zip(&found.tensors) {
            let (TensorValues::F32(expected), TensorValues::F32(found)) = (&expected.values, &found.values) else {
                continue;
            };
            assert!(expected.iter().zip(found).all(|(one, other)| (one - other).abs() < 1e-5), "{name}");
        }
    }
}

#[test]
fn sweep_study_and_allreduce_give_the_same_tables_as_before() {
    let Some(before) = before("sweep_study_and_allreduce") else { return };
    let folder = folder();
    let hpml = Path::new(env!("CARGO_BIN_EXE_hpml"));
    let config = folder.path().join("study.toml");
    std::fs::write(
        &config,
        "[train]\nepochs = 1\n[data]\ntrain_samples = 96\ntest_samples = 32\n[metrics]\nspread_steps = 4\n[study]\nseeds = [0, 1]\n\
         [[study.variants]]\nname = \"a\"\nset = []\n[[study.variants]]\nname = \"b\"\nset = [\"train.lr=0.05\"]\n",
    )
    .unwrap();
    let sweep =
        ["sweep", "--set", "sweep.batch_per_rank=[8,16]", "--set", "sweep.seconds=0.5", "--set", "sweep.rounds=1"];
    let reduce = ["allreduce", "--max", "64K", "--iters", "3"];
    for (name, args, compare_rows) in
        [("study", &["study", text(&config)][..], true), ("sweep", &sweep[..], false), ("reduce", &reduce[..], false)]
    {
        let [old, new] = ["old", "new"].map(|which| folder.path().join(format!("{name}-{which}.h5")));
        run(&before, 2, args, &old);
        let same = if name == "study" { &["--set", DIRECT][..] } else { &[] };
        run(hpml, 2, &[args, same].concat(), &new);
        compare(&old, &new, compare_rows);
    }
    let printed = |program: &Path| {
        let output = Command::new(program)
            .args(["report", text(&folder.path().join("study-old.h5")), "--csv"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(printed(&before), printed(hpml), "the same file as CSV");
}
