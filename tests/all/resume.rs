//! Resume: an interrupted training continues as if never interrupted, by checkpoints, signals and `--resume`.

use std::path::Path;
use std::time::Duration;

use crate::common::{Finished, Mpirun, checkpoints, folder, kill, parameters, text};

const SOON: Duration = Duration::from_secs(90);
/// Settings with which an epoch takes a fraction of a second.
const SMALL: [&str; 6] =
    ["--set", "train.epochs=8", "--set", "data.train_samples=2000", "--set", "data.test_samples=200"];

fn train(ranks: usize, out: &Path, args: &[&str]) -> Mpirun {
    Mpirun::ranks(ranks).args(["train", "--out", text(out)]).args(SMALL).args(args).timeout(SOON)
}

/// Starts a training and sends `signal` to `mpirun`, which passes it on, once the first epoch is in the run file.
fn cut(ranks: usize, out: &Path, args: &[&str], signal: &str) -> Finished {
    let run = train(ranks, out, args).spawn().until("epoch", || out.exists());
    kill(signal, run.child.id());
    run.wait()
}

fn assert_refused(run: &Finished, named: &[&str]) {
    assert_eq!(run.status.code(), Some(1), "{}", run.stdout);
    crate::common::assert_refused(run, named);
}

#[test]
fn a_resumed_training_ends_bit_for_bit_where_an_uncut_one_does() {
    let cases: [(usize, &[&str]); 9] = [
        (1, &[]),
        (2, &["optim.ema=0.9", "data.augment=true", "schedule.anneal=cosine", "train.accumulate=2"]),
        (2, &["optim.name=lamb", "optim.clip_norm=1.0", "parallel.all_reduce=ring"]),
        (3, &["optim.nesterov=true", "parallel.all_reduce=mpi", "train.label_smoothing=0.1"]),
        // Dropout, which each rank draws for itself.
        (
            2,
            &[
                "model.name=vit",
                "model.width=8",
                "model.depth=1",
                "model.heads=2",
                "model.patch=8",
                "model.dropout=0.2",
                "optim.name=adamw",
                "optim.weight_decay=0.1",
            ],
        ),
        // Errors that each rank's compression carries to later steps.
        (2, &["parallel.compression=int8", "parallel.bucket_mb=0.1"]),
        (2, &["parallel.compression=powersgd", "parallel.compression_start=200"]),
        (2, &["parallel.local_steps=7"]),
        // Each rank has a network of its own.
        (2, &["parallel.broadcast_parameters=false", "parallel.same_seed=false", "metrics.spread_steps=50"]),
    ];
    for (ranks, settings) in cases {
        let args: Vec<&str> =
            ["train.epochs=5"].iter().chain(settings).flat_map(|setting| ["--set", setting]).collect();
        let folder = folder();
        let (whole, pieces) = (folder.path().join("whole.h5"), folder.path().join("pieces.h5"));
        train(ranks, &whole, &args).run().succeeded();
        let first = cut(ranks, &pieces, &args, "USR1");
        assert_eq!(first.status.code(), Some(75), "{}\n{}", first.stdout, first.stderr);
        assert!(first.messages()[0].contains("SIGUSR1"), "{}", first.stderr);
        assert_eq!(checkpoints(&pieces).len(), 1);
        let rest = train(ranks, &pieces, &[&args[..], &["--resume", "auto"]].concat()).run().succeeded();
        assert!(rest.stdout.contains("goes on after step"), "{}", rest.stdout);
        assert_eq!(parameters(&whole), parameters(&pieces), "{settings:?}");
        for column in ["epochs/epoch", "epochs/test_accuracy", "epochs/train_samples", "epochs/lr", "steps/global_step"]
        {
            assert_eq!(crate::common::column(&whole, column), crate::common::column(&pieces, column), "{column}");
        }
        let drawn = |file: &Path| crate::common::column(file, "sampling/met_before")[1..].to_vec();
        assert_eq!(drawn(&whole), drawn(&pieces));
        if settings.contains(&"metrics.spread_steps=50") {
            for column in ["ranks/test_accuracy", "ranks/parameter_distance", "spread/parameter_spread"] {
                assert_eq!(crate::common::column(&whole, column), crate::common::column(&pieces, column), "{column}");
            }
        }
        let checksums = |file: &Path| crate::common::texts(file, "epochs/parameter_checksum");
        assert_eq!(checksums(&whole), checksums(&pieces));
        // Cut or not, the ledger counts equally many gradients.
        assert_eq!(
            crate::common::column(&whole, "comm/messages")[1],
            crate::common::column(&pieces, "comm/messages")[1]
        );
    }
}

/// Batch norm's statistics are each rank's own until the epoch's end.
#[test]
fn what_is_each_ranks_own_is_saved_too() {
    let folder = folder();
    let (whole, pieces) = (folder.path().join("whole.h5"), folder.path().join("pieces.h5"));
    let settings = ["model.name=resnet18", "model.width=4", "parallel.buffers=local", "data.train_samples=200"];
    let args: Vec<&str> =
        settings.iter().flat_map(|setting| ["--set", setting]).chain(["--set", "train.epochs=4"]).collect();
    train(2, &whole, &args).run().succeeded();
    assert_eq!(cut(2, &pieces, &args, "USR1").status.code(), Some(75));
    train(2, &pieces, &[&args[..], &["--resume", "auto"]].concat()).run().succeeded();
    assert_eq!(parameters(&whole), parameters(&pieces));
    assert_eq!(crate::common::column(&whole, "epochs/test_loss"), crate::common::column(&pieces, "epochs/test_loss"));
}

#[test]
fn another_number_of_ranks_goes_on_with_the_same_samples() {
    let folder = folder();
    let (whole, pieces) = (folder.path().join("whole.h5"), folder.path().join("pieces.h5"));
    // 4 x 4 samples, at a rate at which rounding does not grow: at 0.001 the ring and shared memory, too, differ by 4e-4 after 1,250
    // steps of equal samples.
    let args = ["--set", "train.batch_per_rank=4", "--set", "train.lr=0.00001", "--set", "train.epochs=4"];
    train(4, &whole, &args).run().succeeded();
    let first = cut(4, &pieces, &args, "USR1");
    assert_eq!(first.status.code(), Some(75), "{}\n{}", first.stdout, first.stderr);
    let rest = train(2, &pieces, &[&args[..], &["--resume", "auto"]].concat()).run().succeeded();
    assert!(rest.stderr.contains("train.batch_per_rank = 8"), "{}", rest.stderr);
    // Equal samples in each step, summed in another order.
    let (one, two) =
        (crate::common::column(&whole, "epochs/train_loss"), crate::common::column(&pieces, "epochs/train_loss"));
    for (one, two) in one.iter().zip(&two) {
        assert!((one / two - 1.0).abs() < 1e-5, "{one} {two}");
    }
    assert_eq!(crate::common::column(&whole, "epochs/epoch"), crate::common::column(&pieces, "epochs/epoch"));
    let refused = train(3, &pieces, &[&args[..], &["--set", "train.epochs=9", "--resume", "auto"]].concat()).run();
    assert_refused(&refused, &["global batch is 16", "3 ranks"]);
}

#[test]
fn dropout_draws_anew_on_another_number_of_ranks_and_the_log_says_so() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let small =
        ["model.name=vit", "model.width=8", "model.depth=1", "model.heads=2", "model.patch=8", "model.dropout=0.2"];
    let data = ["data.train_samples=64", "data.test_samples=20", "train.epochs=2", "train.batch_per_rank=8"];
    let settings = |more: &[&'static str]| -> Vec<&'static str> {
        small.iter().chain(&data).chain(more).flat_map(|setting| ["--set", *setting]).collect()
    };
    let first = settings(&["train.epochs=1", "checkpoint.every_epochs=1"]);
    let run = train(2, &out, &first).run().succeeded();
    assert!(!run.stderr.contains("dropout"), "{}", run.stderr);
    let saved = hdf5::File::open(&checkpoints(&out)[0]).unwrap().dataset("resume/cpu_generator").unwrap();
    assert_eq!(saved.shape(), [2, 5056]);
    let rest = train(1, &out, &[&settings(&["checkpoint.every_epochs=1"])[..], &["--resume", "auto"]].concat());
    let rest = rest.run().succeeded();
    assert!(rest.stderr.contains("no cpu_generator of 1 rank: what dropout draws begins anew"), "{}", rest.stderr);
}

#[test]
fn every_signal_stops_all_ranks_whichever_of_them_gets_it() {
    for (signal, rank) in [("TERM", 1), ("INT", 0), ("USR1", 1)] {
        let folder = folder();
        let out = folder.path().join("run.h5");
        let run = train(2, &out, &["--set", "train.epochs=1000"]).spawn().until("epoch", || out.exists());
        kill(signal, run.rank_pids(2)[rank]);
        let run = run.wait();
        assert_eq!(run.status.code(), Some(75), "{signal}: {}", run.stderr);
        assert_eq!(run.messages().len(), 1, "{}", run.stderr);
        assert!(run.messages()[0].contains(&format!("SIG{signal}")), "{}", run.stderr);
        // Run file and checkpoint agree.
        let step = |file: &Path| *crate::common::column(file, "steps/global_step").last().unwrap();
        assert_eq!(step(&out), step(&checkpoints(&out)[0]));
    }
}

#[test]
fn a_launcher_that_reads_no_more_while_it_ends_a_job_costs_no_epoch() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    // An epoch of milliseconds: lines for each of them would fill the pipe before Open MPI's launcher passes SIGTERM on.
    let short = ["data.train_samples=16", "data.test_samples=8", "train.batch_per_rank=8", "train.epochs=100000"];
    let args: Vec<&str> = short.iter().flat_map(|setting| ["--set", setting]).collect();
    let run = train(2, &out, &args).spawn();
    let epochs = || if out.exists() { crate::common::column(&out, "epochs/epoch").len() } else { 0 };
    let run = run.until("400 epochs", || epochs() > 400);
    kill("TERM", run.child.id());
    let run = run.wait();
    let saved = checkpoints(&out).pop().expect("a checkpoint");
    assert_eq!(epochs(), crate::common::column(&saved, "epochs/epoch").len(), "{}", run.stderr);
    let lines: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("epoch ")).collect();
    assert!(lines[99].starts_with("epoch 99 ") && lines.len() < epochs(), "{} lines", lines.len());
}

#[test]
fn a_second_interrupt_ends_at_once() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    // A step takes a minute, so the first step cannot have ended the job in the meantime.
    let args = ["--set", "model.name=resnet18", "--set", "train.batch_per_rank=1000"];
    let run = Mpirun::alone().args(["train", "--out", text(&out)]).args(args).timeout(SOON).spawn();
    std::thread::sleep(Duration::from_secs(4));
    kill("INT", run.child.id());
    std::thread::sleep(Duration::from_millis(300));
    kill("INT", run.child.id());
    let run = run.wait();
    assert_eq!(run.status.code(), Some(130), "{}", run.stderr);
    assert!(run.seconds < 30.0);
}

#[test]
fn the_last_checkpoints_are_kept_and_a_damaged_one_is_passed_over() {
    let folder = folder();
    let (whole, pieces) = (folder.path().join("whole.h5"), folder.path().join("pieces.h5"));
    let args = ["--set", "checkpoint.every_epochs=2", "--set", "checkpoint.keep=3", "--set", "optim.ema=0.9"];
    let run = train(2, &whole, &args).run().succeeded();
    assert_eq!(run.stderr.lines().filter(|line| line.contains("checkpoint of step")).count(), 4, "{}", run.stderr);
    assert_eq!(checkpoints(&whole).len(), 3);

    let short = [&args[..], &["--set", "train.epochs=6"]].concat();
    train(2, &pieces, &short).run().succeeded();
    let newest = checkpoints(&pieces).pop().unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() - 100]).unwrap();
    let rest = train(2, &pieces, &[&args[..], &["--resume", "auto"]].concat()).run().succeeded();
    assert!(rest.stderr.contains("damaged") && rest.stderr.contains("trying the one before"), "{}", rest.stderr);
    assert_eq!(parameters(&whole), parameters(&pieces));
    assert!(!newest.exists() || std::fs::read(&newest).unwrap().len() != bytes.len() - 100, "the damaged one stayed");
    // The training is complete: nothing changes any more, and that is no error.
    let again = train(2, &pieces, &[&args[..], &["--resume", "auto"]].concat()).run().succeeded();
    assert!(again.stdout.contains("nothing to do"), "{}", again.stdout);
    assert_eq!(parameters(&whole), parameters(&pieces));
    assert_eq!(crate::common::column(&pieces, "epochs/epoch").len(), 8);
}

#[test]
fn what_cannot_be_resumed_is_said_in_one_message() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let resume = |args: &[&str]| train(2, &out, &[args, &["--resume", "auto"]].concat()).run();
    // Nothing exists yet: a chain of jobs starts with the command that also continues it.
    let first = resume(&["--set", "checkpoint.every_epochs=1", "--set", "train.epochs=1"]).succeeded();
    assert!(first.stderr.contains("starting anew"), "{}", first.stderr);
    assert_refused(&resume(&["--set", "train.lr=0.5"]), &["train.lr", "0.5", "0.01", "run.h5.checkpoints"]);
    let without = Mpirun::ranks(2).args(["train", "--resume", "auto"]).timeout(SOON).run();
    assert_refused(&without, &["--resume auto", "--out"]);
    assert_refused(&train(2, &out, &[]).run(), &["run.h5.checkpoints", "--force"]);
    let missing = train(2, &out, &["--resume", "none.h5"]).run();
    assert_refused(&missing, &["none.h5"]);
    let not_a_checkpoint = train(2, &out, &["--resume", text(&out)]).run();
    assert_refused(&not_a_checkpoint, &["resume", "missing"]);
    // Finished and without checkpoints: nothing to do.
    std::fs::remove_dir_all(crate::common::checkpoint_folder(&out)).unwrap();
    let done = resume(&["--set", "train.epochs=1"]).succeeded();
    assert!(done.stdout.contains("nothing to do"), "{}", done.stdout);
    // More epochs are wanted, but no checkpoint exists to continue from: only the user may discard the result.
    let more = ["--set", "train.epochs=2"];
    assert_refused(&resume(&more), &["run.h5", "1 epoch", "no checkpoint", "--force"]);
    assert_eq!(crate::common::column(&out, "epochs/epoch").len(), 1);
    resume(&[&more[..], &["--force"]].concat()).succeeded();
    assert_eq!(crate::common::column(&out, "epochs/epoch").len(), 2);
}

#[test]
fn with_force_the_checkpoints_of_the_earlier_training_give_way() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let args = ["--set", "checkpoint.every_epochs=1", "--set", "train.epochs=3"];
    train(1, &out, &args).run().succeeded();
    train(1, &out, &[&args[..], &["--force", "--set", "train.epochs=1"]].concat()).run().succeeded();
    assert_eq!(checkpoints(&out).len(), 1);
}

#[test]
fn a_checkpoint_with_impossible_counts_is_refused() {
    let folder = folder();
    let (out, copy) = (folder.path().join("run.h5"), folder.path().join("copy.h5"));
    // Batch norm's statistics are saved per rank of the first job.
    let model = ["--set", "model.name=resnet18", "--set", "model.width=4", "--set", "data.train_samples=50"];
    train(1, &out, &[&model[..], &["--set", "checkpoint.every_epochs=8"]].concat()).run().succeeded();
    for (count, value, named) in [
        ("world_size", 0, "world_size"),
        ("world_size", 1 << 39, "buffers"),
        ("global_batch", 0, "global_batch"),
        ("steps", -1, "steps"),
    ] {
        std::fs::copy(&checkpoints(&out)[0], &copy).unwrap();
        let file = hdf5::File::open_rw(&copy).unwrap();
        file.group("resume").unwrap().attr(count).unwrap().write_scalar::<i64>(&value).unwrap();
        file.close().unwrap();
        let other = folder.path().join("other.h5");
        let run = train(1, &other, &[&model[..], &["--resume", text(&copy)]].concat()).run();
        assert_refused(&run, &["copy.h5", named]);
    }
}
