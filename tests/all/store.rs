//! Run files as h5py, xarray and netCDF4 read them, if there is a Python that has these.
//!
//! `HPML_PYTHON=/path/to/python cargo test --release --test all store::`; without that variable these tests say so and pass.

use std::path::Path;
use std::process::Command;

use hpml::config::Config;
use hpml::store::{
    Attribute, Checkpoint, Column, FileKind, Identity, NamedTensor, RunFile, Table, TensorValues, Values,
};

/// Writes a run file with everything in it that the store can write.
fn write(path: &Path) {
    let texts = |texts: &[&str]| Values::Text(texts.iter().map(|text| (*text).to_owned()).collect());
    let environment = vec![("cpu".into(), Attribute::Text("Größe ∞".into())), ("world_size".into(), Attribute::Int(2))];
    let ranks = Table::new("environment", "rank", vec![Column::new("host", "1", "host name", texts(&["a", "b"]))]);
    let epochs = vec![
        Column::new("epoch", "1", "epoch, from 0", Values::I64(vec![0, 1, 2])),
        Column::new("train_loss", "1", "mean cross-entropy", Values::F64(vec![2.3, 2.1, 1.9])),
        Column::new("seconds", "s", "wall time", Values::F64(vec![1.5, 1.25, 1.0])),
    ];
    let steps = vec![
        Column::new("epoch", "1", "epoch, from 0", Values::I64(vec![0; 6])),
        Column::new("step", "s", "the whole step", Values::F32(vec![0.25; 6])),
    ];
    let mut comm = Table::new(
        "comm",
        "kind",
        vec![
            Column::new("kind", "1", "what the messages are for", texts(&["parameters", "gradients"])),
            Column::new("bytes", "B", "bytes of the buffers", Values::I64(vec![10, 20])),
        ],
    );
    comm.attributes = vec![("busbw".into(), Attribute::Float(1.5)), ("shuffle".into(), Attribute::Int(1))];
    let counts = Column::new("count", "1", "weights in the bin", Values::I64((0..8).collect()));
    let edges = Column::new("edge", "1", "lower edge", Values::F64(vec![0.0, 0.25, 0.5, 0.75]));
    let histograms = vec![
        Column::new("layer", "1", "name", texts(&["conv1", "fc3"])),
        counts.over(&[("layer", 2), ("bin", 4)]),
        edges.over(&[("bin", 4)]),
    ];
    let mut tensor = NamedTensor::new("fc3.weight", vec![2, 2], TensorValues::I8(vec![-128, 0, 1, 127]));
    tensor.attributes = vec![("scale".into(), Attribute::Floats(vec![0.5, 0.25]))];
    let tensors = vec![NamedTensor::new("conv1.bias", vec![2], TensorValues::F32(vec![0.1, -0.0])), tensor];
    let checkpoint = Checkpoint { tensors, attributes: vec![("epochs".into(), Attribute::Int(3))] };

    let mut file =
        RunFile::create(path, false, Identity::new(FileKind::Training), &Config::default(), environment, vec![ranks])
            .unwrap();
    file.flush(&[Table::new("epochs", "epoch", epochs), Table::new("steps", "row", steps), comm], None).unwrap();
    drop(file); // a run file has one owner
    let mut again = RunFile::open(path).unwrap();
    again.flush(&[Table::new("histograms", "layer", histograms)], Some(&checkpoint)).unwrap();
}

const READ: &str = r#"
import sys, warnings
import h5py, numpy as np, xarray as xr
warnings.simplefilter("error")
path = sys.argv[1]

with h5py.File(path) as file:
    assert file.attrs["hpml_format_version"] == 1
    assert file["config"].attrs["train.lr"] == 0.01 and file["config"].attrs["data.shuffle"] == 1
    assert "schedule.milestones" not in file["config"].attrs, "R's packages read no attribute beside one of length zero"
    assert list(file["config"].attrs["data.mean"]) == [0.5, 0.5, 0.5]
    assert file["config"].attrs["toml"].startswith("[run]")
    assert file["environment"].attrs["cpu"] == "Größe ∞"
    assert list(file["checkpoint"]) == ["conv1.bias", "fc3.weight"]
    assert file["checkpoint/fc3.weight"][:].tolist() == [[-128, 0], [1, 127]]
    assert file["checkpoint/fc3.weight"].dtype == np.int8 and file["checkpoint/fc3.weight"].fletcher32
    assert file["checkpoint/fc3.weight"].attrs["scale"].tolist() == [0.5, 0.25]
    assert file["checkpoint"].attrs["epochs"] == 3
    def check(name, item):
        if isinstance(item, h5py.Dataset):
            assert item.attrs["units"] and item.attrs["long_name"], name
    file.visititems(check)
    loss, epoch = file["epochs/train_loss"], file["epochs/epoch"]
    assert epoch.is_scale and h5py.h5ds.is_attached(loss.id, epoch.id, 0)

def group(name):
    data = xr.open_dataset(path, group=name, engine="h5netcdf")
    assert not any("phony" in dimension for dimension in data.dims), (name, data.dims)
    return data

epochs = group("epochs")
assert epochs["train_loss"].sel(epoch=1) == 2.1 and epochs["train_loss"].units == "1"
assert epochs["seconds"].dtype == np.float64, "no time delta made of seconds"
assert group("steps").sizes == {"row": 6} and list(group("steps")["row"]) == list(range(6))
assert group("comm")["bytes"].sel(kind="gradients") == 20 and group("comm").attrs["busbw"] == 1.5
assert list(group("environment")["host"].values) == ["a", "b"]
histograms = group("histograms")
assert histograms["count"].dims == ("layer", "bin") and histograms["edge"].dims == ("bin",)
assert histograms["count"].sel(layer="fc3").values.tolist() == [4, 5, 6, 7]

import netCDF4
assert netCDF4.Dataset(path)["comm"]["kind"][:].tolist() == ["parameters", "gradients"]
"#;

#[test]
fn h5py_xarray_and_netcdf_read_what_was_written() {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("skipped: set HPML_PYTHON to a Python with h5py, xarray, h5netcdf and netCDF4");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.h5");
    write(&path);
    let output = Command::new(python).arg("-c").arg(READ).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_binary_shows_it_and_says_in_one_line_what_it_cannot_show() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.h5");
    write(&path);
    let inspect = |path: &Path| Command::new(env!("CARGO_BIN_EXE_hpml")).arg("inspect").arg(path).output().unwrap();
    let output = inspect(&path);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    for part in ["gradients", "2.3", "batch_per_rank = 8", "fc3.weight", "int8", "histograms"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    std::fs::write(&path, "something else").unwrap();
    for path in [path.as_path(), &folder.path().join("none.h5"), folder.path()] {
        let output = inspect(path);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(message.starts_with("hpml: ") && message.trim_end().lines().count() == 1, "{message}");
    }
}
