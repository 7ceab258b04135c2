//! The choice between GPUs and CPU cores, the messages if there is no usable GPU, and a GPU's code path on CPU cores
//! (`HPML_EMULATE_GPU`): flat tensors on a device, batches cut there, results read at an epoch's end, sums staged through the
//! host. It cannot test streams, events, CUDA graphs and NCCL, which need a GPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{Mpirun, checkpoints, column, folder, kill, parameters, text};

const SOON: Duration = Duration::from_secs(60);

fn train(ranks: usize, out: &Path, settings: &[&str]) -> Mpirun {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    Mpirun::ranks(ranks).args(["train", "--out", text(out)]).args(settings).timeout(SOON)
}

/// A training whose CPU cores emulate GPUs.
fn on_device(ranks: usize, out: &Path, settings: &[&str]) -> Mpirun {
    train(ranks, out, settings).args(["--set", "launch.device=cuda"]).env("HPML_EMULATE_GPU", "1")
}

/// Builds a stand-in for one of NVIDIA's libraries; returns its folder.
fn fake(folder: &Path, source: &str, library: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(source);
    let library = folder.join(library);
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(built.expect("a C compiler, which building hpml needs too").success());
    folder.to_owned()
}

fn has_driver() -> bool {
    let devices = Mpirun::alone().arg("devices").run().succeeded();
    !devices.stdout.contains("no NVIDIA driver here")
}

#[test]
fn that_there_is_no_gpu_is_no_news_to_auto_and_cuda_is_refused() {
    if has_driver() {
        eprintln!("left out: this host has an NVIDIA driver");
        return;
    }
    let folder = folder();
    let out = folder.path().join("run.h5");
    let few = ["train.max_steps=2", "data.test_samples=10"];
    let run = train(2, &out, &few).run().succeeded();
    for words in ["NVIDIA", "libcuda", "CPU cores"] {
        assert!(!run.stderr.contains(words), "{}", run.stderr);
    }
    let ranks = run.stdout.lines().find(|line| line.starts_with("# ranks 0-1 on ")).expect("a line of the ranks");
    assert!(ranks.contains(": cpu, "), "{ranks}");
    let refused = train(2, &folder.path().join("gpu.h5"), &["launch.device=cuda"]).run();
    crate::common::assert_refused(&refused, &["launch.device", "no NVIDIA driver", "libcuda.so.1", "\"auto\""]);
}

/// On CPU cores fp16 is rounded as on a GPU, only slower.
#[test]
fn fp16_trains_as_float32_with_a_scale_of_the_loss_that_a_resume_keeps() {
    let folder = folder();
    let [full, half, pieces] = ["full.h5", "half.h5", "pieces.h5"].map(|name| folder.path().join(name));
    let small =
        ["data.train_samples=400", "data.test_samples=50", "train.epochs=2", "optim.name=adamw", "train.lr=0.002"];
    let fp16 = [&small[..], &["model.precision=fp16", "checkpoint.every_epochs=1"]].concat();
    on_device(2, &full, &small).run().succeeded();
    on_device(2, &half, &fp16).run().succeeded();
    for (full, half) in column(&full, "epochs/train_loss").iter().zip(column(&half, "epochs/train_loss")) {
        // Measured: 0.1 %. A scale that is not divided out again, or steps that are lost, show at once.
        assert!((half / full - 1.0).abs() < 0.02, "{half} {full}");
    }
    assert!(column(&full, "epochs/loss_scale").iter().all(|scale| scale.is_nan()));
    let scales = |file: &Path| [column(file, "epochs/loss_scale"), column(file, "epochs/skipped_steps")];
    let [scale, skipped] = scales(&half);
    for (scale, skipped) in scale.iter().zip(&skipped) {
        assert_eq!(*scale, 65_536.0 * 0.5f64.powf(*skipped), "halved once per step that was left out");
    }
    let short = [&fp16[..], &["train.epochs=1"]].concat();
    on_device(2, &pieces, &short).run().succeeded();
    on_device(2, &pieces, &fp16).args(["--resume", "auto"]).run().succeeded();
    assert_eq!(parameters(&half), parameters(&pieces));
    assert_eq!(scales(&half), scales(&pieces));

    let refused = train(2, &folder.path().join("cpu.h5"), &["model.precision=fp16", "launch.device=cpu"]).run();
    crate::common::assert_refused(&refused, &["model.precision = fp16", "CPU cores", "bf16"]);
}

#[test]
fn what_a_driver_lacks_is_named() {
    if has_driver() {
        eprintln!("left out: this host has an NVIDIA driver");
        return;
    }
    let folder = folder();
    let libraries = fake(folder.path(), "fake_driver.c", "libcuda.so.1");
    let out = folder.path().join("run.h5");
    let refused = |settings: &[(&str, &str)], named: &[&str]| {
        let run = train(2, &out, &["launch.device=cuda"]).libraries(&libraries);
        let run = settings.iter().fold(run, |run, (name, value)| run.env(name, value)).run();
        crate::common::assert_refused(&run, &[named, &["launch.device"]].concat());
    };
    refused(&[("FAKE_CUDA_INIT", "100")], &["shows no GPU", "CUDA_VISIBLE_DEVICES"]);
    refused(&[("FAKE_CUDA_INIT", "803")], &["cuInit: error 803", "nvidia-smi"]);
    refused(&[("FAKE_CUDA_COUNT", "0")], &["shows no GPU"]);
    // Even `auto` never passes over a GPU in silence.
    let few = ["train.max_steps=2", "data.test_samples=10"];
    let run = train(2, &out, &few).libraries(&libraries).env("FAKE_CUDA_INIT", "803").run().succeeded();
    let told: Vec<&str> = run.stderr.lines().filter(|line| line.contains("CPU cores")).collect();
    assert!(told.len() == 1 && told[0].contains("cuInit: error 803"), "{}", run.stderr);
    let shown = Mpirun::alone().args(["report", text(&out)]).run().succeeded();
    assert!(shown.stdout.contains("cuInit: error 803"), "{}", shown.stdout);
    // Then libtorch lacks its CUDA part, unless it is the whole of PyTorch: then there is a GPU too few.
    let run = train(2, &out, &["launch.device=cuda"]).libraries(&libraries).run();
    let message = run.messages().join("\n");
    assert!(message.contains("libtorch has no part for CUDA") || message.contains("allow_gpu_sharing"), "{message}");
}

#[test]
fn a_device_trains_to_what_the_host_does() {
    let cases: [(usize, &[&str]); 6] = [
        (1, &["data.augment=true"]),
        (2, &["train.accumulate=2", "optim.nesterov=true", "optim.weight_decay=0.001"]),
        (3, &["optim.name=lamb", "optim.clip_norm=0.5", "train.lr=0.001"]),
        (2, &["optim.name=lars", "optim.ema=0.9", "metrics.timing=profile", "parallel.bucket_mb=0.1"]),
        // At ten times the rate a difference in the last bit grows tenfold every two steps.
        (2, &["model.name=resnet18", "model.width=4", "train.batch_per_rank=16", "train.lr=0.0001"]),
        (2, &["model.name=resnet18", "model.width=4", "parallel.buffers=average", "train.lr=0.0001"]),
    ];
    for (ranks, settings) in cases {
        let folder = folder();
        let (host, device) = (folder.path().join("host.h5"), folder.path().join("device.h5"));
        let settings = [settings, &["train.max_steps=12", "data.test_samples=100", "run.seed=3"]].concat();
        train(ranks, &host, &settings).run().succeeded();
        let run = on_device(ranks, &device, &settings).run().succeeded();
        assert!(run.stdout.contains("cpu as a GPU"), "{}", run.stdout);
        let values = |file: &Path| -> Vec<f32> {
            parameters(file).into_iter().flat_map(|(_, bits)| bits).map(f32::from_bits).collect()
        };
        let (one, two) = (values(&host), values(&device));
        assert_eq!(one.len(), two.len());
        let pairs = || one.iter().zip(&two);
        let apart = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let norm = one.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        assert!(apart < 1e-5 * norm, "{settings:?}: {}", apart / norm);
        for column in ["epochs/train_loss", "epochs/test_loss"] {
            let (one, two) = (crate::common::column(&host, column)[0], crate::common::column(&device, column)[0]);
            assert!((one / two - 1.0).abs() < 1e-4, "{settings:?} {column}: {one} {two}");
        }
        // Parameters, gradients, buffers; not control, since the ranks exchange signals at intervals of time.
        for column in ["epochs/train_samples", "epochs/test_samples", "comm/messages", "comm/bytes"] {
            let counts = |file: &Path| crate::common::column(file, column).into_iter().take(3).collect::<Vec<_>>();
            assert_eq!(counts(&host), counts(&device), "{settings:?}: {column}");
        }
    }
}

#[test]
fn a_device_repeats_pytorchs_losses() {
    let Some(data) = crate::common::cifar10("a_device_repeats_pytorchs_losses") else { return };
    const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/parity.h5");
    let run = Mpirun::ranks(2)
        .args([Path::new("verify"), Path::new(PARITY), Path::new("--data"), &data])
        .args(["--set", "launch.threads=1", "--set", "launch.device=cuda"])
        .env("HPML_EMULATE_GPU", "1")
        .timeout(Duration::from_secs(900))
        .run();
    if !run.stderr.contains("made from other") {
        let run = run.succeeded();
        assert!(run.stdout.contains("batch norm over 2 groups"), "{}", run.stdout);
        assert!(run.stdout.lines().last().is_some_and(|line| line.starts_with("PASSED: ")), "{}", run.stdout);
    }
}

#[test]
fn a_device_that_is_cut_goes_on_bit_for_bit() {
    let folder = folder();
    let (whole, pieces) = (folder.path().join("whole.h5"), folder.path().join("pieces.h5"));
    let settings = ["train.epochs=8", "data.train_samples=2000", "data.test_samples=200", "optim.ema=0.9"];
    on_device(2, &whole, &settings).run().succeeded();
    let run = on_device(2, &pieces, &settings).spawn().until("epoch", || pieces.exists());
    kill("USR1", run.child.id());
    let first = run.wait();
    assert_eq!(first.status.code(), Some(75), "{}\n{}", first.stdout, first.stderr);
    assert_eq!(checkpoints(&pieces).len(), 1);
    on_device(2, &pieces, &settings).args(["--resume", "auto"]).run().succeeded();
    assert_eq!(parameters(&whole), parameters(&pieces));
    assert_eq!(
        crate::common::column(&whole, "epochs/test_accuracy"),
        crate::common::column(&pieces, "epochs/test_accuracy")
    );
}

#[test]
fn what_the_gpus_take_is_in_the_run_file_and_in_the_sweeps() {
    let folder = folder();
    let libraries = fake(folder.path(), "fake_nvml.c", "libnvidia-ml.so.1");
    let (run, scaling) = (folder.path().join("run.h5"), folder.path().join("scaling.h5"));
    let settings = ["train.epochs=2", "data.train_samples=400", "data.test_samples=100"];
    on_device(2, &run, &settings).libraries(&libraries).run().succeeded();
    let column = |name: &str| crate::common::column(&run, &format!("gpu/{name}"));
    assert_eq!((column("epoch"), column("rank")), (vec![0.0, 0.0, 1.0, 1.0], vec![0.0, 1.0, 0.0, 1.0]));
    assert_eq!((column("utilization"), column("memory")), (vec![50.0; 4], vec![1e9; 4]));
    assert_eq!(column("energy"), [1000.0; 4]);
    let report = Mpirun::alone().args(["report", text(&run), "--markdown"]).run().succeeded();
    assert!(report.stdout.contains("GPUs by epoch"), "{}", report.stdout);

    let cases = [
        "launch.device=cuda",
        "sweep.batch_per_rank=[8]",
        "sweep.seconds=0.3",
        "sweep.rounds=1",
        "sweep.model=['net']",
    ];
    let sweep = Mpirun::ranks(2).args(["sweep", "--out", text(&scaling)]).timeout(Duration::from_secs(300));
    let sweep = sweep.args(cases.iter().flat_map(|setting| ["--set", setting]));
    sweep.env("HPML_EMULATE_GPU", "1").libraries(&libraries).run().succeeded();
    let column = |name: &str| crate::common::column(&scaling, &format!("scaling/{name}"));
    assert!(column("gpu_utilization").iter().all(|&share| share == 50.0));
    assert!(column("epoch_joules").iter().all(|joules| joules.is_finite() && *joules > 0.0));
}

#[test]
fn the_all_reduce_of_a_devices_memory_sums_right() {
    let run = Mpirun::ranks(3)
        .args(["allreduce", "--device", "cuda", "--max", "64K", "--seconds", "0.01"])
        .env("HPML_EMULATE_GPU", "1")
        .run()
        .succeeded();
    let rows = run.stdout.lines().filter(|line| line.contains("in_place")).count();
    assert!(rows > 5 && run.stdout.contains("algorithm host, wrong 0"), "{}", run.stdout);
    let asked = ["allreduce", "--device", "cuda", "--type", "bf16"];
    let refused = Mpirun::ranks(2).args(asked).env("HPML_EMULATE_GPU", "1").run();
    crate::common::assert_refused(&refused, &["--type = bf16", "NCCL"]);
}

#[test]
fn what_only_cpu_ranks_can_do_is_refused_by_name() {
    let folder = folder();
    for (settings, named) in [
        (&["parallel.compression=powersgd"][..], "parallel.compression = powersgd"),
        (&["parallel.compression=bf16"], "parallel.compression = bf16"),
        (&["parallel.local_steps=4"], "parallel.local_steps = 4"),
        (&["model.name=resnet18", "parallel.buffers=sync"], "parallel.buffers = sync"),
    ] {
        let run = on_device(2, &folder.path().join("run.h5"), settings).run();
        crate::common::assert_refused(&run, &["launch.device", named, "\"cpu\""]);
    }
}

#[test]
fn a_loss_that_is_no_number_ends_it_at_the_epochs_end() {
    let folder = folder();
    let settings = ["train.lr=1e30", "data.train_samples=400", "data.test_samples=100"];
    let run = on_device(2, &folder.path().join("run.h5"), &settings).run();
    assert!(!run.status.success() && run.messages()[0].contains("train.lr"), "{}", run.stderr);
}
