//! Run files in other programs' hands: every group of every kind of file in h5py, netCDF4, xarray and whatever else is installed
//! (`tests/readers`), hpml on the copies that netCDF tools and xarray make, and on files in the form of earlier builds.
//!
//! Without `HPML_PYTHON=/path/to/python` (`tests/requirements.txt`) only the last is tested.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{Finished, Mpirun, checkpoints, folder, kill, parameters, text};

/// Settings of a training of a second, with every table that one on CPU cores can have.
const SMALL: [&str; 8] = [
    "data.train_samples=200",
    "data.test_samples=50",
    "train.epochs=2",
    "metrics.spread_steps=5",
    "parallel.broadcast_parameters=false",
    "parallel.same_seed=false",
    "checkpoint.every_epochs=1",
    "optim.ema=0.9",
];

const STUDY: &str = r#"
[data]
train_samples = 200
test_samples = 50

[train]
epochs = 1

[study]
seeds = [3]

[[study.variants]]
name = "plain"

[[study.variants]]
name = "slow"
set = ["train.lr=1e-4"]
"#;

fn sets<'a>(sets: &[&'a str]) -> Vec<&'a str> {
    sets.iter().flat_map(|set| ["--set", set]).collect()
}

fn hpml(args: &[&str]) -> Finished {
    Mpirun::alone().args(args).run()
}

fn train(out: &Path, settings: &[&str]) -> Mpirun {
    Mpirun::ranks(2).args(["train", "--out", text(out)]).args(sets(settings))
}

/// One file of every kind that hpml writes, and of that which it reads besides.
fn files(folder: &Path) -> BTreeMap<&'static str, PathBuf> {
    let path = |name: &str| folder.join(name);
    train(&path("training.h5"), &SMALL).run().succeeded();
    let resnet = [
        "model.name=resnet18",
        "model.width=4",
        "data.train_samples=64",
        "data.test_samples=20",
        "quantize.enabled=true",
    ];
    train(&path("resnet.h5"), &resnet).timeout(Duration::from_secs(240)).run().succeeded();
    let sweep = ["sweep.batch_per_rank=[8,16]", "sweep.rounds=1", "sweep.seconds=0.3", "launch.threads=1"];
    Mpirun::ranks(2).args(["sweep", "--out", text(&path("sweep.h5"))]).args(sets(&sweep)).run().succeeded();
    hpml(&["predict", text(&path("sweep.h5")), "--save"]).succeeded();
    std::fs::write(path("study.toml"), STUDY).unwrap();
    let study = ["study", text(&path("study.toml")), "--out", text(&path("study.h5"))].map(str::to_owned);
    Mpirun::ranks(2).args(&study).run().succeeded();
    let allreduce = path("allreduce.h5");
    Mpirun::ranks(2).args(["allreduce", "--max", "64K", "--out", text(&allreduce)]).run().succeeded();
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity.h5"), path("parity.h5")).unwrap();
    let last = checkpoints(&path("training.h5")).pop().unwrap();
    std::fs::copy(last, path("checkpoint.h5")).unwrap();
    let names = ["training", "checkpoint", "resnet", "resnet-int8", "sweep", "study", "allreduce", "parity"];
    names.into_iter().map(|name| (name, path(&format!("{name}.h5")))).collect()
}

/// Every table, and the checkpoint if there is one, as hpml reads them: each column and tensor by its place, since a copy may have
/// them in another order. As text, in which NaN equals NaN.
fn content(file: &Path) -> BTreeMap<String, String> {
    let mut content = BTreeMap::new();
    for name in hpml::store::table_names(file).unwrap() {
        let table = hpml::store::read_table(file, &name).unwrap();
        content.extend(table.columns.iter().map(|column| (format!("{name}/{}", column.name), format!("{column:?}"))));
    }
    for tensor in hpml::store::read_checkpoint(file).map(|checkpoint| checkpoint.tensors).unwrap_or_default() {
        content.insert(tensor.name, format!("{:?} {:?}", tensor.shape, tensor.values));
    }
    content
}

#[test]
fn every_reader_sees_every_group_of_every_kind_of_file_and_hpml_reads_what_they_write() {
    let test = "every_reader_sees_every_group_of_every_kind_of_file_and_hpml_reads_what_they_write";
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("{test}: left out: set HPML_PYTHON to a Python with tests/requirements.txt");
        return;
    };
    let folder = folder();
    let files = files(folder.path());
    let copies = folder.path().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers/readers.py");
    let mut command = Command::new(python);
    command.arg(script).arg("--copies").arg(&copies).args(files.values());
    for reader in ["netCDF4", "xarray, netcdf4", "xarray, h5netcdf", "xarray tree, netcdf4", "xarray tree, h5netcdf"] {
        command.args(["--need", reader]);
    }
    let run = Mpirun::command(command).timeout(Duration::from_secs(600)).run();
    eprintln!("{}", run.stdout);
    assert!(run.status.success(), "{}", run.stderr);

    let mut read = 0;
    for copy in std::fs::read_dir(&copies).unwrap().map(|entry| entry.unwrap().path()) {
        let name = copy.file_name().unwrap().to_str().unwrap();
        let kinds = files.keys().filter(|kind| name.starts_with(&format!("{kind}-")));
        let kind = *kinds.max_by_key(|kind| kind.len()).unwrap();
        let original = &files[kind];
        if kind == "parity" {
            continue; // needs the data that it names
        }
        let (copied, expected) = (content(&copy), content(original));
        assert_eq!(copied.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        expected.iter().for_each(|(place, value)| assert_eq!(value, &copied[place], "{name}: {place}"));
        assert!(hpml::store::inspect(&copy).unwrap().contains("run file of hpml"), "{name}");
        if kind == "training" {
            hpml(&["report", text(&copy)]).succeeded();
        }
        if kind == "resnet-int8" {
            let predicted = |file: &Path| {
                let out = folder.path().join("predicted.txt");
                hpml(&["eval", text(file), "--predictions", text(&out), "--force"]).succeeded();
                std::fs::read_to_string(out).unwrap()
            };
            assert_eq!(predicted(&copy), predicted(original), "{name}");
        }
        read += 1;
    }
    assert!(read >= 4 * (files.len() - 1), "{read} copies");
}

/// Ends a training after its first epoch, changes run file and checkpoint, and resumes it: it ends as an uncut one.
fn resumes_after(change: impl Fn(&Path)) {
    let settings = ["train.epochs=4", "data.train_samples=2000", "data.test_samples=100", "run.seed=5"];
    let folder = folder();
    let (whole, pieces) = (folder.path().join("whole.h5"), folder.path().join("pieces.h5"));
    train(&whole, &settings).run().succeeded();
    let run = train(&pieces, &settings).spawn().until("epoch", || pieces.exists());
    kill("USR1", run.child.id());
    assert_eq!(run.wait().status.code(), Some(75));
    change(&pieces);
    let last = checkpoints(&pieces).pop().unwrap();
    change(&last);
    // The name holds the hash of the bytes.
    let hash = blake3::hash(&std::fs::read(&last).unwrap());
    let hash = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap());
    let name = last.file_name().unwrap().to_str().unwrap();
    std::fs::rename(&last, last.with_file_name(format!("{}-{hash:016x}.h5", name.rsplit_once('-').unwrap().0)))
        .unwrap();
    hpml(&["report", text(&pieces)]).succeeded();
    let rest = train(&pieces, &settings).args(["--resume", "auto"]).run().succeeded();
    assert!(rest.stdout.contains("goes on after step"), "{}", rest.stdout);
    assert_eq!(parameters(&whole), parameters(&pieces));
}

/// Gives a file booleans and empty lists as earlier builds wrote them.
fn to_earlier_form(file: &Path) {
    let file = hdf5::File::open_rw(file).unwrap();
    let config = file.group("config").unwrap();
    for name in ["data.shuffle", "launch.cuda_graphs"] {
        let value: i64 = config.attr(name).unwrap().read_scalar().unwrap();
        config.delete_attr(name).unwrap();
        config.new_attr::<bool>().create(name).unwrap().write_scalar(&(value != 0)).unwrap();
    }
    for place in ["config", "checkpoint"] {
        file.group(place).unwrap().new_attr::<f64>().shape([0]).create("schedule.milestones").unwrap();
    }
    file.group("environment").unwrap().new_attr::<i64>().shape([0]).create("resumed_at_steps").unwrap();
    file.close().unwrap();
}

#[test]
fn files_of_earlier_builds_are_read_and_resumed() {
    resumes_after(to_earlier_form);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/2026-11-25-2xZen3-scaling/scaling.h5");
    let config = hdf5::File::open(&kept).unwrap().group("config").unwrap();
    assert!(config.attr("data.shuffle").unwrap().dtype().unwrap().is::<bool>());
    assert_eq!(config.attr("schedule.milestones").unwrap().size(), 0);
    assert!(hpml(&["report", text(&kept)]).succeeded().stdout.contains("speedup"));
    hpml(&["inspect", text(&kept)]).succeeded();
}

#[test]
fn a_training_is_resumed_from_files_that_xarray_wrote() {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("left out: set HPML_PYTHON to a Python with tests/requirements.txt");
        return;
    };
    for engine in ["netcdf4", "h5netcdf"] {
        resumes_after(|file| {
            let script = format!(
                "import sys, os, xarray\n\
                 with xarray.open_datatree(sys.argv[1], engine='{engine}') as tree:\n \
                 tree.to_netcdf(sys.argv[1] + '.new', engine='{engine}')\n\
                 os.replace(sys.argv[1] + '.new', sys.argv[1])"
            );
            let output = Command::new(&python).args(["-W", "ignore", "-c", &script]).arg(file).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        });
    }
}

#[test]
fn no_file_has_an_attribute_of_length_zero_or_a_boolean() {
    fn check(place: &hdf5::Location, found: &mut usize) {
        for name in place.attr_names().unwrap() {
            let attribute = place.attr(&name).unwrap();
            *found += 1;
            assert!(attribute.size() > 0, "{}: {name}", place.name());
            assert!(!attribute.dtype().unwrap().is::<bool>(), "{}: {name}", place.name());
        }
    }
    fn visit(group: &hdf5::Group, found: &mut usize) {
        check(group, found);
        group.datasets().unwrap().iter().for_each(|dataset| check(dataset, found));
        group.groups().unwrap().iter().for_each(|child| visit(child, found));
    }
    let folder = folder();
    for (kind, file) in files(folder.path()).into_iter().filter(|(kind, _)| *kind != "parity") {
        let mut found = 0;
        visit(&hdf5::File::open(file).unwrap(), &mut found);
        assert!(found > 100, "{kind}: {found} attributes");
    }
}
