//! Data of the user's own, under the real launcher: every format gives the same training, a set larger than memory trains in little of
//! it, and what is wrong ends in one message.
//!
//! `HPML_PYTHON=/path/to/python` (h5py, numpy) also reads files that these write; without it that test says so and passes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{Finished, Mpirun, assert_refused, column, folder, text, texts};
use hdf5::types::VarLenUnicode;

/// Samples of the training and of the test set.
const COUNTS: [usize; 2] = [300, 100];
const IMAGE: usize = 3 * 32 * 32;

/// Pixels `[n, 3, 32, 32]` and labels of a set that can be learned: noise, brighter where the class says so.
fn set(part: usize) -> (Vec<u8>, Vec<u8>) {
    let labels: Vec<u8> = (0..COUNTS[part]).map(|index| ((index * 7 + part) % 10) as u8).collect();
    let pixel = |index: usize| {
        let noise = ((index + part).wrapping_mul(2_654_435_761) >> 7) as u8 / 3;
        noise + if index % IMAGE / 300 == usize::from(labels[index / IMAGE]) { 150 } else { 0 }
    };
    ((0..labels.len() * IMAGE).map(pixel).collect(), labels)
}

/// Reorders `[n, 3, 32, 32]` to `[n, 32, 32, 3]`.
fn channels_last(pixels: &[u8]) -> Vec<u8> {
    let image = |image: &[u8]| (0..IMAGE).map(|at| image[at % 3 * 1024 + at / 3]).collect::<Vec<u8>>();
    pixels.chunks(IMAGE).flat_map(image).collect()
}

/// Writes the set as CIFAR-10's files, whose other records are zeros.
fn write_cifar10(folder: &Path) {
    for (part, names) in
        [&["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"][..], &["test_batch"]]
            .into_iter()
            .enumerate()
    {
        let (pixels, labels) = set(part);
        for (number, name) in names.iter().enumerate() {
            let file = fs::File::create(folder.join(format!("{name}.bin"))).unwrap();
            file.set_len(10_000 * 3073).unwrap();
            if number == 0 {
                let record = |(label, image): (&u8, &[u8])| [&[*label], image].concat();
                let records: Vec<u8> = labels.iter().zip(pixels.chunks(IMAGE)).flat_map(record).collect();
                file.write_all_at(&records, 0).unwrap();
            }
        }
    }
}

/// Writes an array as numpy.save does.
fn write_npy(path: &Path, descr: &str, shape: &[usize], values: &[u8]) {
    let extents: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
    let header =
        format!("{:<117}\n", format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}"));
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(values);
    fs::write(path, bytes).unwrap();
}

fn idx(extents: &[usize], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, extents.len() as u8];
    extents.iter().for_each(|extent| bytes.extend((*extent as u32).to_be_bytes()));
    [&bytes, values].concat()
}

/// An HDF5 file with images of `shape` without the samples, in chunks of `chunk` samples, compressed, if it is given.
fn write_h5<T: hdf5::H5Type + Clone>(
    path: &Path,
    shape: &[usize],
    chunk: Option<usize>,
    pixels: impl Fn(Vec<u8>) -> Vec<T>,
) {
    let file = hdf5::File::create(path).unwrap();
    for (part, prefix) in ["", "test_"].into_iter().enumerate() {
        let (values, labels) = set(part);
        let extents = [&[labels.len()], shape].concat();
        let builder = file.new_dataset::<T>().shape(extents);
        let builder = match chunk {
            None => builder,
            Some(samples) => builder
                .chunk([&[samples.min(labels.len())], &shape[..2], &[shape[2].div_ceil(2)]].concat())
                .shuffle()
                .deflate(4),
        };
        builder.create(format!("{prefix}images").as_str()).unwrap().write_raw(&pixels(values)).unwrap();
        let labels: Vec<i64> = labels.into_iter().map(i64::from).collect();
        let dataset =
            file.new_dataset::<i64>().shape([labels.len()]).create(format!("{prefix}labels").as_str()).unwrap();
        dataset.write_raw(&labels).unwrap();
    }
    file.close().unwrap();
}

fn train(ranks: usize, data: &Path, out: &Path, set: &[&str]) -> Mpirun {
    let set = ["train.epochs=2", "train.batch_per_rank=10"].iter().chain(set).flat_map(|set| ["--set", set]);
    Mpirun::ranks(ranks).args(["train", "--data", text(data), "--out", text(out), "--force"]).args(set)
}

fn fingerprint(run: &Path) -> String {
    let file = hdf5::File::open(run).unwrap();
    let attribute = file.group("environment").unwrap().attr("data_fingerprint").unwrap();
    attribute.read_scalar::<VarLenUnicode>().unwrap().as_str().to_owned()
}

#[test]
fn the_same_samples_in_any_format_give_the_same_losses() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let cifar = at("cifar");
    fs::create_dir(&cifar).unwrap();
    write_cifar10(&cifar);
    write_h5(&at("planes.h5"), &[3, 32, 32], None, |pixels| pixels);
    write_h5(&at("chunks.h5"), &[32, 32, 3], Some(16), |pixels| channels_last(&pixels));
    // What torchvision's ToTensor makes of the pixels.
    write_h5(&at("floats.h5"), &[3, 32, 32], None, |pixels| {
        pixels.iter().map(|&p| f32::from(p) / 255.0).collect::<Vec<_>>()
    });
    let numpy = at("numpy");
    fs::create_dir(&numpy).unwrap();
    for (part, prefix) in ["", "test_"].into_iter().enumerate() {
        let (pixels, labels) = set(part);
        let file = |name: &str| numpy.join(format!("{prefix}{name}.npy"));
        write_npy(&file("images"), "|u1", &[labels.len(), 32, 32, 3], &channels_last(&pixels));
        let labels: Vec<u8> = labels.iter().flat_map(|label| i32::from(*label).to_le_bytes()).collect();
        write_npy(&file("labels"), "<i4", &[COUNTS[part]], &labels);
    }
    let names = ["planes.h5", "chunks.h5", "floats.h5", "numpy"];
    for ranks in [1, 2] {
        let (expected, out) = (at("expected.h5"), at("run.h5"));
        let counts = COUNTS.map(|count| count.to_string());
        let counts = [format!("data.train_samples={}", counts[0]), format!("data.test_samples={}", counts[1])];
        let more = ["data.augment=true", &counts[0], &counts[1]];
        train(ranks, &cifar, &expected, &more).run().succeeded();
        let loss = column(&expected, "epochs/train_loss");
        assert!(loss[1] < loss[0], "{loss:?}");
        for name in names {
            let run = train(ranks, &at(name), &out, &["data.augment=true"]).run().succeeded();
            assert!(run.stdout.contains(name), "{}", run.stdout);
            for column in ["epochs/train_loss", "epochs/test_loss"] {
                assert_eq!(
                    crate::common::column(&out, column),
                    crate::common::column(&expected, column),
                    "{name}, {ranks} ranks"
                );
            }
            assert_eq!(
                texts(&out, "epochs/parameter_checksum"),
                texts(&expected, "epochs/parameter_checksum"),
                "{name}"
            );
            assert_eq!(fingerprint(&out) == fingerprint(&expected), name != "floats.h5", "{name}");
            // Each rank has read its share, and of chunks every one once.
            let (bytes, misses) = (column(&out, "reads/read_bytes"), column(&out, "reads/cache_misses"));
            let size = if name == "floats.h5" { 4 * IMAGE } else { IMAGE };
            if name == "chunks.h5" {
                assert!(bytes.iter().zip(&misses).all(|(bytes, misses)| *bytes <= misses * 16.0 * IMAGE as f64));
                let of_first: f64 = misses[..ranks].iter().sum();
                // 19 chunks, of which rank 0's fingerprint has read 5 before.
                assert!((14.0..=19.0 * ranks as f64).contains(&of_first), "{misses:?}");
                assert_eq!(misses[ranks..].iter().sum::<f64>() + of_first, of_first, "the cache holds all");
                assert_eq!(column(&out, "reads/cache_hits").iter().sum::<f64>() + of_first, 600.0);
            } else {
                assert_eq!(bytes, vec![(COUNTS[0] / ranks * size) as f64; 2 * ranks], "{name}");
            }
            assert_eq!(column(&out, "reads/rank").len(), 2 * ranks);
        }
        let report = Mpirun::alone().args(["report", text(&out), "--table", "reads"]).run().succeeded();
        assert!(report.stdout.contains("read_wait"), "{}", report.stdout);
    }
}

#[test]
fn idx_files_and_another_number_of_classes_train() {
    let folder = folder();
    for (part, prefix) in ["train", "t10k"].into_iter().enumerate() {
        let (pixels, labels) = set(part);
        let images: Vec<u8> = pixels.chunks(IMAGE).flat_map(|image| image[..1024].to_vec()).collect();
        let file = |name: &str| folder.path().join(format!("{prefix}-{name}-ubyte"));
        fs::write(file("images-idx3"), idx(&[labels.len(), 32, 32], &images)).unwrap();
        fs::write(file("labels-idx1"), idx(&[labels.len()], &labels)).unwrap();
    }
    let out = folder.path().join("run.h5");
    let set = ["data.classes=12", "model.name=resnet18", "model.width=8", "train.max_steps=3"];
    let run = train(2, folder.path(), &out, &set).run().succeeded();
    assert!(
        run.stdout.contains("IDX files in") && run.stdout.contains("images 1 x 32 x 32, 12 classes"),
        "{}",
        run.stdout
    );
}

#[test]
fn sequences_of_tokens_train_a_decoder_and_are_checked() {
    let folder = folder();
    let mut tokens: Vec<u8> = (0..40 * 9).flat_map(|at: usize| ((at * at / 7 % 20) as u16).to_le_bytes()).collect();
    write_npy(&folder.path().join("text.npy"), "<u2", &[40, 9], &tokens);
    write_npy(&folder.path().join("other.npy"), "<u2", &[40, 9], &tokens);
    let out = folder.path().join("run.h5");
    let set = [
        "data.images=text",
        "data.test_images=other",
        "model.name=gpt2",
        "model.width=16",
        "model.depth=1",
        "model.heads=2",
    ];
    let run = train(2, folder.path(), &out, &[&set[..], &["data.classes=20"]].concat()).run().succeeded();
    assert!(run.stdout.contains("sequences of 8 tokens, vocabulary 20"), "{}", run.stdout);
    let loss = column(&out, "epochs/train_loss");
    assert!(loss[1] < loss[0] && loss[0] < 4.0, "{loss:?}"); // ln 20 is 3.0
    refused(folder.path(), &set, &["data.classes = 0", "vocabulary"]);
    tokens[2 * (9 * 3 + 4)] = 20;
    write_npy(&folder.path().join("text.npy"), "<u2", &[40, 9], &tokens);
    let set = [&set[..], &["data.classes=20"]].concat();
    refused(folder.path(), &set, &["text.npy", "sample 3", "token 4 is 20", "expected 0 to 19"]);
    refused(folder.path(), &[&set[..], &["data.augment=true"]].concat(), &["data.augment = true", "tokens"]);
}

/// Folder with `images.npy`, `labels.npy` and the test set's, of 20 and 20 samples; `change` may spoil one of them.
/// Writes a `.npy` file, given its name, dtype, shape and bytes.
type Writer<'a> = &'a dyn Fn(&str, &str, &[usize], &[u8]);

fn npy_folder(folder: &Path, change: impl Fn(Writer)) {
    let write = |name: &str, descr: &str, shape: &[usize], values: &[u8]| {
        write_npy(&folder.join(format!("{name}.npy")), descr, shape, values);
    };
    for prefix in ["", "test_"] {
        write(&format!("{prefix}images"), "|u1", &[20, 3, 32, 32], &[9; 20 * IMAGE]);
        write(&format!("{prefix}labels"), "|u1", &[20], &[3; 20]);
    }
    change(&write);
}

fn refused(data: &Path, set: &[&str], named: &[&str]) {
    let out = data.with_extension("out.h5");
    let run = train(2, data, &out, set).timeout(Duration::from_secs(60)).run();
    assert_refused(&run, named);
    assert!(!out.exists());
}

#[test]
fn bad_arrays_end_in_one_message_each() {
    let folder = folder();
    let root = folder.path();
    let bad = |change: &dyn Fn(Writer), set: &[&str], named: &[&str]| {
        npy_folder(root, change);
        refused(root, set, named);
    };
    let as_they_are = |_: Writer| {};
    bad(
        &as_they_are,
        &["data.classes=3"],
        &["labels.npy", "sample 0", "label 3", "expected 0 to 2", "data.classes = 3"],
    );
    let fives = 5_000_000u32.to_le_bytes().repeat(20);
    bad(
        &|write| write("labels", "<u4", &[20], &fives),
        &[],
        &["labels.npy", "label 5000000", "5000001 classes of 20", "data.classes"],
    );
    let elevens =
        ["test_labels.npy", "sample 0 has label 11", "greatest label of the training set is 3", "data.classes"];
    bad(&|write| write("test_labels", "|u1", &[20], &[11; 20]), &[], &elevens);
    bad(&as_they_are, &["data.shape=[3,28,28]"], &["data.shape = [3, 28, 28]", "[3, 32, 32]"]);
    bad(&as_they_are, &["data.mean=[0.1,0.2]"], &["data.mean = [0.1, 0.2]", "3 channels"]);
    bad(&as_they_are, &["data.train_samples=21"], &["data.train_samples = 21", "at most 20"]);
    bad(&|write| write("labels", "|u1", &[19], &[3; 19]), &[], &["labels.npy", "19 labels", "20 images"]);
    bad(&|write| write("test_labels", "<f4", &[20], &[0; 80]), &[], &["test_labels.npy", "float32", "astype"]);
    bad(&|write| write("images", "<f8", &[20, 3, 32, 32], &[0; 160]), &[], &["images.npy", "<f8", "float32"]);
    bad(&|write| write("images", "|u1", &[20, 3, 32, 32], &[0; 19 * IMAGE]), &[], &["images.npy", "cut short"]);
    bad(
        &|write| write("images", "|u1", &[20, 3, 8, 8], &[0; 20 * 192]),
        &[],
        &["test_images.npy", "[3, 32, 32]", "[3, 8, 8]"],
    );
    bad(&|write| write("images", "|u1", &[20, 3, 9, 3], &[0; 20 * 81]), &[], &["images.npy", "data.layout"]);
    bad(&|write| write("images", "|u1", &[20, 16], &[0; 320]), &[], &["test_images.npy", "[3, 32, 32]", "[15]"]);
    let nan: Vec<u8> =
        (0..20 * IMAGE).flat_map(|at| if at == 5 * IMAGE + 1024 + 33 { f32::NAN } else { 0.5 }.to_le_bytes()).collect();
    bad(
        &|write| write("images", "<f4", &[20, 3, 32, 32], &nan),
        &[],
        &["images.npy", "sample 5", "pixel [1, 1, 1]", "NaN"],
    );
    fs::remove_file(root.join("test_images.npy")).unwrap();
    refused(root, &[], &["no test set \"test_images\"", "data.test_dir"]);
}

#[test]
fn bad_files_end_in_one_message_each() {
    let folder = folder();
    let path = folder.path().join("set.h5");
    write_h5(&path, &[3, 32, 32], Some(16), |pixels| pixels);
    refused(&path, &["data.labels=classes"], &["set.h5", "classes", "no such dataset", "test_labels"]);
    refused(
        &path,
        &["data.test_images=images", "data.test_labels=test_labels"],
        &["test_labels", "100 labels", "300 images"],
    );
    // A chunk of 16 samples is larger than the cache.
    write_h5(&path, &[3, 32, 32], Some(300), |pixels| pixels.iter().map(|&p| f32::from(p)).collect::<Vec<_>>());
    refused(&path, &["data.cache_mb=1"], &["images", "chunks of 300 samples", "data.cache_mb", "raise it to 4"]);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(&path, &[], &["set.h5", "cut short"]);
    fs::write(&path, "no data").unwrap();
    refused(&path, &[], &["set.h5", "not an HDF5 file"]);
    let gz = folder.path().join("train-images-idx3-ubyte.gz");
    fs::write(&gz, [0x1f, 0x8b]).unwrap();
    refused(folder.path(), &[], &["train-images-idx3-ubyte", "gunzip"]);
    fs::remove_file(gz).unwrap();
    refused(folder.path(), &[], &["no data here", "HDF5"]);
}

/// A folder whose training set claims `samples` images, most of them a hole in the file that reads as zeros.
fn sparse(folder: &Path, descr: &str, samples: usize) -> PathBuf {
    npy_folder(folder, |_| ());
    let path = folder.join("images.npy");
    write_npy(&path, descr, &[samples, 3, 32, 32], &[]);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let bytes = if descr == "<f4" { 4 } else { 1 };
    file.set_len(128 + (samples * IMAGE * bytes) as u64).unwrap();
    write_npy(&folder.join("labels.npy"), "|u1", &[samples], &vec![1; samples]);
    path
}

/// Peak resident memory of the ranks of a training on the data in `folder`, in bytes.
fn peak(folder: &Path) -> u64 {
    let out = folder.join("run.h5");
    let set =
        ["data.classes=10", "train.max_steps=300", "train.batch_per_rank=32", "train.epochs=100", "data.shuffle=true"];
    let mut running = train(2, folder, &out, &set).spawn();
    let pids = running.rank_pids(2);
    let mut most = 0;
    while running.child.try_wait().unwrap().is_none() {
        for pid in &pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
            most = line.map_or(most, |kilobytes| most.max(kilobytes.parse::<u64>().unwrap() << 10));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    running.wait().succeeded();
    most
}

#[test]
fn a_set_larger_than_its_share_of_memory_trains_in_as_much_as_a_small_one() {
    let folder = folder();
    let [small, large] = [20_000, 350_000].map(|samples| {
        sparse(folder.path(), "|u1", samples);
        peak(folder.path())
    });
    // 61 MB against 1075 MB of images; what grows are labels, order and the counts of the sampling, some 30 bytes per sample.
    assert!(large < small + (64 << 20), "{small} {large}");
}

#[test]
fn an_image_that_turns_out_to_be_damaged_ends_the_job_with_one_message() {
    let folder = folder();
    let path = sparse(folder.path(), "<f4", 24_000); // 295 MB: not read through at the start
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&f32::INFINITY.to_le_bytes(), 128 + (21 * IMAGE as u64 + 3) * 4).unwrap();
    npy_test_floats(folder.path());
    let out = folder.path().join("run.h5");
    let run = train(2, folder.path(), &out, &["data.classes=10", "data.shuffle=false", "train.max_steps=20"]).run();
    assert_one_message(&run, &["images.npy", "sample 21", "pixel [0, 0, 3]", "infinite"]);
}

fn npy_test_floats(folder: &Path) {
    write_npy(&folder.join("test_images.npy"), "<f4", &[20, 3, 32, 32], &[0; 80 * IMAGE]);
}

fn assert_one_message(run: &Finished, named: &[&str]) {
    assert!(!run.status.success());
    assert_eq!(run.messages().len(), 1, "{}", run.stderr);
    named.iter().for_each(|word| assert!(run.messages()[0].contains(word), "{word}: {}", run.stderr));
}

#[test]
fn a_file_cut_short_while_it_is_read_ends_the_job_by_name() {
    let folder = folder();
    let path = sparse(folder.path(), "|u1", 20_000);
    let out = folder.path().join("run.h5");
    let set = ["data.classes=10", "data.train_samples=400", "train.epochs=100000", "data.test_samples=10"];
    let running = train(2, folder.path(), &out, &set).spawn();
    let running = running.until("epoch", || crate::common::has(&out, "epochs/epoch"));
    fs::File::options().write(true).open(&path).unwrap().set_len(10_000).unwrap();
    // Each rank reads samples of its own, and may come to the end before the other's message has ended the job.
    let run = running.wait();
    assert!(!run.status.success());
    let messages = run.messages();
    assert!((1..=2).contains(&messages.len()), "{}", run.stderr);
    let is_named = |message: &&str| message.contains("images.npy: cut short while it is read: sample");
    assert!(messages.iter().all(is_named), "{}", run.stderr);
}

#[test]
fn resuming_takes_the_same_samples_from_another_format_and_refuses_others() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    write_h5(&at("one.h5"), &[3, 32, 32], None, |pixels| pixels);
    write_h5(&at("same.h5"), &[32, 32, 3], Some(7), |pixels| channels_last(&pixels));
    write_h5(&at("other.h5"), &[3, 32, 32], None, |pixels| pixels.iter().map(|p| p ^ 1).collect());
    let set = ["checkpoint.every_epochs=1"];
    train(2, &at("one.h5"), &at("whole.h5"), &[&set[..], &["train.epochs=3"]].concat()).run().succeeded();
    train(2, &at("one.h5"), &at("run.h5"), &set).run().succeeded();
    let resume = |data: &str| {
        let set = [&set[..], &["train.epochs=3"]].concat();
        let set = set.iter().flat_map(|set| ["--set", set]);
        let (data, out) = (at(data), at("run.h5"));
        let run = Mpirun::ranks(2).args(["train", "--data", text(&data), "--out", text(&out), "--resume", "auto"]);
        run.args(["--set", "train.batch_per_rank=10"]).args(set).run()
    };
    assert_refused(&resume("other.h5"), &["the training data", "other samples"]);
    resume("same.h5").succeeded();
    let [resumed, whole] = ["run.h5", "whole.h5"].map(|run| texts(&at(run), "epochs/parameter_checksum"));
    assert_eq!(resumed, whole);
    assert_eq!(column(&at("run.h5"), "reads/epoch"), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
}

#[test]
fn int8_refuses_what_is_no_u8_image() {
    let folder = folder();
    let path = folder.path().join("floats.h5");
    write_h5(&path, &[3, 32, 32], None, |pixels| pixels.iter().map(|&p| f32::from(p) / 255.0).collect::<Vec<_>>());
    let out = folder.path().join("run.h5");
    train(1, &path, &out, &["train.max_steps=2"]).run().succeeded();
    let run = Mpirun::ranks(2).args(["quantize", text(&out), "--data", text(&path)]);
    assert_refused(&run.args(["--set", "quantize.calibration_images=50"]).run(), &["images", "float32", "uint8"]);
}

/// Files of h5py and NumPy as users write them; the sums of a batch are NumPy's.
const WRITE: &str = r#"
import sys, h5py, numpy as np
folder = sys.argv[1]
rng = np.random.default_rng(0)
for name, options in {
    "plain": {}, "gzip": dict(compression="gzip"), "lzf": dict(compression="lzf"), "big": {}, "rows": dict(chunks=(1, 3, 32, 32)),
}.items():
    with h5py.File(f"{folder}/{name}.h5", "w") as file:
        rng = np.random.default_rng(0)
        for part, n in ("", 120), ("test_", 40):
            images = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
            if name == "big":
                images = images.astype(">f4") / np.float32(255)
            file.create_dataset(part + "images", data=images, **options)
            file[part + "labels"] = rng.integers(0, 10, (n, 1)).astype(">i2" if name == "big" else np.uint16)
"#;

#[test]
fn files_of_h5py_train_alike_or_say_what_is_not_read() {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("left out: set HPML_PYTHON to a Python with h5py and numpy");
        return;
    };
    let folder = folder();
    let written = Command::new(python).arg("-c").arg(WRITE).arg(folder.path()).output().unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let at = |name: &str| folder.path().join(name);
    let mut checksums = Vec::new();
    for name in ["plain.h5", "gzip.h5", "rows.h5", "big.h5"] {
        train(1, &at(name), &at("run.h5"), &["train.max_steps=8"]).run().succeeded();
        checksums.push(texts(&at("run.h5"), "epochs/parameter_checksum"));
    }
    assert!(checksums.iter().all(|checksum| *checksum == checksums[0]), "{checksums:?}");
    refused(&at("lzf.h5"), &[], &["images", "lzf", "compression=\"gzip\""]);
}
