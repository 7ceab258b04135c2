//! Parsers of files: HDF5 as a whole, values in tables, int8 checkpoints, CIFAR-10's files in full size.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hdf5::types::{TypeDescriptor, VarLenUnicode};
use hdf5::{Dataset, Group, H5Type, Location};
use hpml::config::Config;
use hpml::quantize::{Engine, Kernel, from_checkpoint};
use hpml::store::{
    self, Attribute, Checkpoint, CheckpointFolder, FileKind, Identity, Resumable, RunFile, Table, TensorValues, Values,
};
use hpml::{data, predict, report};

use super::Case;
use super::mutate::{FLOATS, NUMBERS, Random, damage};

/// Makes real files: a training's run file, its int8 form and its checkpoint, a sweep's; and PyTorch's parity file.
fn real_files(folder: &Path) -> Vec<PathBuf> {
    let run = folder.join("run.h5");
    let settings = [
        "train.epochs=2",
        "data.train_samples=64",
        "data.test_samples=32",
        "quantize.enabled=true",
        "quantize.calibration_images=8",
        "checkpoint.every_epochs=1",
        "launch.threads=1",
    ];
    // Made once: after a crash the next process reuses them.
    let mut command = Command::new(env!("CARGO_BIN_EXE_hpml"));
    command.args(["train", "--out", run.to_str().unwrap()]);
    command.args(settings.iter().flat_map(|setting| ["--set", setting]));
    if !run.exists() {
        assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    }
    let checkpoints = fs::read_dir(folder.join("run.h5.checkpoints")).unwrap();
    let checkpoint = checkpoints.map(|entry| entry.unwrap().path()).min().unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    vec![
        run,
        folder.join("run-int8.h5"),
        checkpoint,
        here.join("results/2026-11-25-2xZen3-scaling/scaling.h5"),
        here.join("tests/fixtures/parity.h5"),
    ]
}

/// Copies at most `rows` entries per dataset along the first axis, in the oldest format, whose metadata has no checksums, and
/// without checksums of data, so that no check stops the damage early.
fn small_copy(from: &Path, to: &Path, rows: usize) {
    fn attributes(from: &Location, to: &Location) {
        fn copy<T: H5Type>(from: &hdf5::Attribute, to: &Location, name: &str) {
            let (shape, values) = (from.shape(), from.read_raw::<T>().unwrap());
            if shape.is_empty() {
                to.new_attr::<T>().create(name).unwrap().write_scalar(&values[0]).unwrap();
            } else {
                to.new_attr::<T>().shape(shape).create(name).unwrap().write_raw(&values).unwrap();
            }
        }
        for name in from.attr_names().unwrap() {
            let attribute = from.attr(&name).unwrap();
            match attribute.dtype().unwrap().to_descriptor() {
                Ok(TypeDescriptor::VarLenUnicode) => copy::<VarLenUnicode>(&attribute, to, &name),
                Ok(TypeDescriptor::Float(_)) => copy::<f64>(&attribute, to, &name),
                Ok(TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_)) => copy::<i64>(&attribute, to, &name),
                Ok(TypeDescriptor::Boolean) => copy::<bool>(&attribute, to, &name),
                _ => {} // dimension scales
            }
        }
    }
    fn values<T: H5Type + Clone>(from: &Dataset, to: &Group, name: &str, rows: usize) -> Dataset {
        let (mut shape, mut values) = (from.shape(), from.read_raw::<T>().unwrap());
        if let Some(first) = shape.first_mut() {
            let each = values.len() / (*first).max(1);
            *first = rows.min(*first);
            values.truncate(*first * each);
        }
        let dataset = to.new_dataset::<T>().shape(shape).create(name).unwrap();
        if !values.is_empty() {
            dataset.write_raw(&values).unwrap();
        }
        dataset
    }
    fn group(from: &Group, to: &Group, rows: usize) {
        attributes(from, to);
        for name in from.member_names().unwrap() {
            if let Ok(below) = from.group(&name) {
                group(&below, &to.create_group(&name).unwrap(), rows);
                continue;
            }
            let dataset = from.dataset(&name).unwrap();
            let copy = match dataset.dtype().unwrap().to_descriptor().unwrap() {
                TypeDescriptor::VarLenUnicode => values::<VarLenUnicode>(&dataset, to, &name, rows),
                TypeDescriptor::Float(hdf5::types::FloatSize::U4) => values::<f32>(&dataset, to, &name, rows),
                TypeDescriptor::Float(_) => values::<f64>(&dataset, to, &name, rows),
                TypeDescriptor::Integer(hdf5::types::IntSize::U1) => values::<i8>(&dataset, to, &name, rows),
                TypeDescriptor::Integer(hdf5::types::IntSize::U4) => values::<i32>(&dataset, to, &name, rows),
                _ => values::<i64>(&dataset, to, &name, rows),
            };
            attributes(&dataset, &copy);
        }
    }
    let (from, file) = (hdf5::File::open(from).unwrap(), hdf5::File::create(to).unwrap());
    group(&from, &file, rows);
    file.close().unwrap();
}

/// Feeds damaged files of hpml, written as usual but with fewer rows and tensors, to everything that reads them.
pub fn hdf5(folder: &Path) -> Case {
    fn few_rows(path: &Path) -> Vec<Table> {
        let names = store::table_names(path).unwrap();
        let mut tables: Vec<Table> = names.iter().map(|name| store::read_table(path, name).unwrap()).collect();
        for table in tables.iter_mut().filter(|table| table.columns.iter().all(|column| column.dimensions.is_empty())) {
            table.columns.iter_mut().for_each(|column| match &mut column.values {
                Values::F64(values) => values.truncate(3),
                Values::F32(values) => values.truncate(3),
                Values::I64(values) => values.truncate(3),
                Values::Text(values) => values.truncate(3),
            });
        }
        tables
    }
    fn few(mut checkpoint: Checkpoint) -> Checkpoint {
        checkpoint.tensors.retain(|tensor| tensor.values.len() < 1000);
        checkpoint
    }
    let files = real_files(folder);
    let small = folder.join("small.h5");
    let mut corpus = Vec::new();
    for path in &files[..2] {
        let config = store::read_config(path).unwrap();
        let mut file =
            RunFile::create(&small, true, Identity::new(FileKind::Training), &config, Vec::new(), Vec::new()).unwrap();
        let mut tables = few_rows(path);
        tables.retain(|table| !table.group.starts_with("histograms"));
        file.flush(&tables, Some(&few(store::read_checkpoint(path).unwrap()))).unwrap();
        corpus.push(fs::read(&small).unwrap());
    }
    let whole = store::read_resumable(&files[2]).unwrap();
    let tables = few_rows(&files[2]).into_iter().filter(|table| table.group != "environment").collect();
    let content = Resumable { tables, model: few(whole.model), state: few(whole.state) };
    let header =
        RunFile::create(&small, true, Identity::new(FileKind::Training), &Config::default(), Vec::new(), Vec::new())
            .unwrap();
    let mut checkpoints = CheckpointFolder::new(&header, 1, None, false).unwrap();
    corpus.push(fs::read(checkpoints.write(1, &content).unwrap().path).unwrap());
    damaged(folder, corpus)
}

/// Feeds damaged small copies in HDF5's old format, and a damaged file of h5py's.
pub fn old_hdf5(folder: &Path) -> Case {
    let real = real_files(folder);
    let copy = |(number, path): (usize, &PathBuf)| {
        let small = folder.join(format!("small{number}.h5"));
        small_copy(path, &small, if number == 4 { 64 } else { 3 });
        fs::read(small).unwrap()
    };
    damaged(folder, real.iter().enumerate().map(copy).chain([fs::read(&real[4]).unwrap()]).collect())
}

fn damaged(folder: &Path, corpus: Vec<Vec<u8>>) -> Case {
    // Places at which HDF5's own structures begin: most of a file is numbers.
    let signatures: [&[u8]; 9] = [b"\x89HDF", b"OHDR", b"OCHK", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"FRHP", b"BTHD"];
    let signs = |bytes: &[u8], at: usize| signatures.iter().any(|sign| bytes[at..].starts_with(sign));
    let places: Vec<Vec<usize>> =
        corpus.iter().map(|bytes| (0..bytes.len()).filter(|&at| signs(bytes, at)).collect()).collect();
    let path = folder.join("case");
    Box::new(move |random| {
        let which = random.below(corpus.len());
        let mut bytes = corpus[which].clone();
        for _ in 0..1 + random.below(3) {
            let place = random.one_in(2).then(|| places[which][random.below(places[which].len())]);
            damage(&mut bytes, place, &corpus[random.below(corpus.len())], random);
        }
        fs::write(&path, &bytes).unwrap();
        read_it(&path, random);
    })
}

/// Reads the file with one of the readers; its result does not matter, but it must need no more memory than a small file.
fn read_it(path: &Path, random: &mut Random) {
    let reader = random.below(5);
    fn no_memory_asked<T>(result: Result<T, hpml::error::Error>) -> Option<T> {
        result
            .inspect_err(|error| {
                let message = error.to_string();
                assert!(!message.contains('\n'), "{message}");
                // The library allocates as much as a block of its own format claims to have, before it reads the block.
                let asked = message.contains("memory allocation") && !message.contains("on disk image buffer");
                assert!(!asked, "{message}");
            })
            .ok()
    }
    match reader {
        0 => drop(no_memory_asked(store::inspect(path))),
        1 => drop(no_memory_asked(store::read_resumable(path))),
        2 => {
            no_memory_asked(store::read_parity(path));
            no_memory_asked(store::read_config(path));
            no_memory_asked(store::read_attributes(path, "environment"));
        }
        3 => {
            if let Some(found) = no_memory_asked(store::read_checkpoint(path)) {
                let _ = from_checkpoint(&found);
            }
        }
        _ => {
            let names = no_memory_asked(store::table_names(path)).unwrap_or_default();
            names.get(random.below(names.len())).map(|name| no_memory_asked(store::read_table(path, name)));
        }
    }
}

/// Feeds tables of the right form with any numbers in them to report and predict.
pub fn tables(folder: &Path) -> Case {
    /// One number in the file: offset, width in bytes, and whether it is a float.
    type Place = (u64, usize, bool);
    fn places(group: &Group, found: &mut Vec<Place>) {
        for name in group.member_names().unwrap() {
            if let Ok(below) = group.group(&name) {
                places(&below, found);
            } else if let Ok(dataset) = group.dataset(&name)
                && let Some(offset) = dataset.offset()
            {
                let dtype = dataset.dtype().unwrap();
                let is_float = matches!(dtype.to_descriptor(), Ok(TypeDescriptor::Float(_)));
                let is_number = is_float || matches!(dtype.to_descriptor(), Ok(TypeDescriptor::Integer(_)));
                if is_number {
                    let width = dtype.size();
                    found.extend((0..dataset.size()).map(|index| (offset + (index * width) as u64, width, is_float)));
                }
            }
        }
    }
    let corpus: Vec<(Vec<u8>, Vec<Place>)> = real_files(folder)
        .iter()
        .enumerate()
        .filter(|(number, _)| [0, 1, 3].contains(number))
        .map(|(number, path)| {
            let small = folder.join(format!("small{number}.h5"));
            small_copy(path, &small, if number == 3 { 200 } else { 6 });
            let mut found = Vec::new();
            places(&hdf5::File::open(&small).unwrap(), &mut found);
            (fs::read(small).unwrap(), found)
        })
        .collect();
    let path = folder.join("case");
    Box::new(move |random| {
        let (bytes, places) = &corpus[random.below(corpus.len())];
        fs::write(&path, bytes).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        let many = random.pick(&[&1usize, &5, &50, &1000]);
        for _ in 0..1 + random.below(*many) {
            let (offset, width, is_float) = places[random.below(places.len())];
            let float = match random.below(3) {
                0 => f64::from_bits(random.next()),
                _ => FLOATS[random.below(FLOATS.len())],
            };
            let value = match (is_float, width) {
                (true, 4) => u64::from((float as f32).to_bits()),
                (true, _) => float.to_bits(),
                (false, _) if random.one_in(2) => random.below(200) as u64,
                (false, _) => NUMBERS[random.below(NUMBERS.len())],
            };
            file.write_all_at(&value.to_le_bytes()[..width], offset).unwrap();
        }
        let mut args = report::Request { files: vec![path.clone()], ..report::Request::default() };
        match random.below(30) {
            0 => {
                args.html = Some(path.with_extension("html"));
                args.plots = Some(path.with_extension("plots"));
                args.force = true;
            }
            1..=5 => args.csv = true,
            6..=8 => args.files.push(path.clone()),
            9..=11 => args.markdown = true,
            _ => {}
        }
        let _ = report::report(&args);
        let _ = store::inspect(&path);
        let ranks = [1, 2, 3, 1000, 1 << 24];
        let mut predict = predict::Request {
            run: path.clone(),
            ranks: ranks.to_vec(),
            batch: None,
            machine: None,
            link: predict::Link::default(),
            model: None,
            save: false,
        };
        if random.one_in(4) {
            predict.link = predict::Link { busbw: Some(1e-291), latency: Some(1e294) };
            predict.batch = Some(1 << 20);
        }
        let _ = predict::run(&predict);
    })
}

/// Changes an int8 checkpoint in names, shapes, values and scales; an accepted one must give equal results on every kernel.
pub fn int8(folder: &Path) -> Case {
    let whole = store::read_checkpoint(&real_files(folder)[1]).unwrap();
    from_checkpoint(&whole).unwrap();
    Box::new(move |random| {
        let mut changed = whole.clone();
        for _ in 0..1 + random.below(3) {
            change(&mut changed, random);
        }
        if let Ok(net) = from_checkpoint(&changed) {
            let pixels: Vec<u8> = (0..net.spec.image_bytes()).map(|place| (place * 7 % 256) as u8).collect();
            let portable = Engine::new(&net, Kernel::Portable).run(&pixels);
            assert_eq!(Engine::new(&net, Kernel::best()).run(&pixels), portable);
        }
    })
}

fn change(checkpoint: &mut Checkpoint, random: &mut Random) {
    if checkpoint.tensors.is_empty() {
        return;
    }
    let which = random.below(checkpoint.tensors.len());
    let tensor = &mut checkpoint.tensors[which];
    match random.below(9) {
        0 => drop(checkpoint.tensors.remove(which)),
        1 => tensor.name = random.pick(&["conv1.weight", "fc3.bias", "", "../x"]).to_owned(),
        2 => {
            let axis = random.below(tensor.shape.len());
            if let Some(extent) = tensor.shape.get_mut(axis) {
                *extent = NUMBERS[random.below(NUMBERS.len())] as usize;
            }
        }
        3 => tensor.shape.truncate(random.below(3)),
        4 => match &mut tensor.values {
            TensorValues::I8(values) => values.fill(NUMBERS[random.below(NUMBERS.len())] as i8),
            TensorValues::I32(values) => values.fill(NUMBERS[random.below(NUMBERS.len())] as i32),
            other => *other = TensorValues::F32(vec![1.0]),
        },
        5 => tensor.values = TensorValues::I64(vec![1; random.below(4)]),
        _ => {
            let attributes = if random.one_in(2) { &mut tensor.attributes } else { &mut checkpoint.attributes };
            if attributes.is_empty() {
                return;
            }
            let which = random.below(attributes.len());
            attributes[which].1 = match random.below(5) {
                0 => Attribute::Int(NUMBERS[random.below(NUMBERS.len())] as i64),
                1 => Attribute::Floats(vec![FLOATS[random.below(FLOATS.len())]; random.below(20)]),
                2 => Attribute::Text(random.pick(&["int8", "net", "resnet18", ""]).to_owned()),
                3 => Attribute::Int(random.below(256) as i64),
                _ => Attribute::Float(FLOATS[random.below(FLOATS.len())]),
            };
        }
    }
}

/// Feeds damaged files of 30 MB in full.
pub fn cifar(folder: &Path) -> Case {
    let names: Vec<String> =
        (1..=5).map(|number| format!("data_batch_{number}.bin")).chain(["test_batch.bin".into()]).collect();
    let whole: Vec<u8> = (0..10_000 * 3073).map(|place| if place % 3073 == 0 { 3 } else { 9 }).collect();
    for name in &names {
        fs::write(folder.join(name), &whole).unwrap();
    }
    let data = folder.to_owned();
    Box::new(move |random| {
        let path = data.join(&names[random.below(names.len())]);
        let file = fs::File::options().write(true).open(&path).unwrap();
        let place = random.below(whole.len()) as u64;
        match random.below(4) {
            0 => file.set_len(NUMBERS[random.below(NUMBERS.len())] % (1 << 36)).unwrap(), // sparse
            1 => file.write_all_at(&[random.next() as u8], place / 3073 * 3073).unwrap(),
            2 => file.write_all_at(&random.next().to_le_bytes(), place).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        let mut config = Config::default();
        config.data.dir = data.display().to_string();
        config.data.train_samples = random.below(50_001);
        config.data.test_samples = random.below(10_001);
        let _ = data::open(&config.data);
        fs::write(&path, &whole).unwrap();
    })
}

/// Feeds damaged `.npy` and IDX files of a few small images.
pub fn arrays(folder: &Path) -> Case {
    let npy = |descr: &str, shape: &str, values: usize| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(118u16.to_le_bytes());
        bytes.extend(format!("{header:<117}\n").bytes());
        bytes.extend(vec![0; values]);
        bytes
    };
    let idx = |extents: &[u8], values: usize| {
        let mut bytes = vec![0, 0, 8, extents.len() as u8];
        extents.iter().for_each(|extent| bytes.extend([0, 0, 0, *extent]));
        bytes.extend(vec![1; values]);
        bytes
    };
    let kinds = [
        vec![
            ("images.npy", npy("|u1", "6, 3, 5, 5", 450)),
            ("labels.npy", npy("<i8", "6,", 48)),
            ("test_images.npy", npy("|u1", "2, 3, 5, 5", 150)),
            ("test_labels.npy", npy("<u2", "2, 1", 4)),
        ],
        vec![
            ("train-images-idx3-ubyte", idx(&[6, 5, 5], 150)),
            ("train-labels-idx1-ubyte", idx(&[6], 6)),
            ("t10k-images-idx3-ubyte", idx(&[2, 5, 5], 50)),
            ("t10k-labels-idx1-ubyte", idx(&[2], 2)),
        ],
    ];
    let folder = folder.join("arrays");
    Box::new(move |random| {
        let files = &kinds[random.below(kinds.len())];
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let damaged = random.below(files.len());
        for (number, (name, whole)) in files.iter().enumerate() {
            let mut bytes = whole.clone();
            if number == damaged {
                let header = if random.one_in(2) { Some(random.below(80.min(bytes.len()))) } else { None };
                damage(&mut bytes, header, &files[random.below(files.len())].1, random);
            }
            fs::write(folder.join(name), bytes).unwrap();
        }
        let mut config = Config::default();
        config.data.dir = folder.display().to_string();
        if let Ok(sets) = data::open(&config.data) {
            let _ = (sets.train.images(0..sets.train.len()), sets.test.fingerprint());
        }
    })
}
