//! What a run shows while it runs: lines, the bar on a terminal, the log and TensorBoard's event files, under the real launcher.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{
    Finished, Mpirun, assert_refused, checkpoints, cifar10, column, folder, is_open_mpi, kill, launcher, text,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(120);

fn sets<'a>(sets: &[&'a str]) -> Vec<&'a str> {
    sets.iter().flat_map(|set| ["--set", set]).collect()
}

fn train(ranks: usize, out: &Path, settings: &[&str]) -> Mpirun {
    let small = ["data.train_samples=2000", "data.test_samples=200"];
    Mpirun::ranks(ranks).args(["train", "--out", text(out)]).args(sets(&small)).args(sets(settings)).timeout(SOON)
}

/// Lines of stderr that say how far the work is.
fn progress<'a>(run: &'a Finished, what: &str) -> Vec<&'a str> {
    let begin = format!("[rank 0] INFO: {what}");
    run.stderr.lines().filter(|line| line.starts_with(&begin) && line.contains(" | ")).collect()
}

/// The objects of a log; every line must be one.
fn events(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

fn number(event: &Value, key: &str) -> f64 {
    event[key].as_f64().unwrap_or_else(|| panic!("{key} in {event}"))
}

#[test]
fn without_a_terminal_there_is_a_line_at_most_every_interval() {
    let folder = folder();
    let every = "metrics.progress_seconds=0.1";
    let run = train(2, &folder.path().join("two.h5"), &["train.epochs=4", every]).run().succeeded();
    let lines = progress(&run, "epoch ");
    assert!(!lines.is_empty() && lines.len() as f64 <= run.seconds / 0.1, "{} lines in {} s", lines.len(), run.seconds);
    let steps: Vec<&&str> = lines.iter().filter(|line| line.contains(", step ")).collect();
    assert!(!steps.is_empty(), "{}", run.stderr);
    for line in steps {
        for words in ["/4, step ", "/125 | loss ", " samples/s | exposed ", " % | ", " left"] {
            assert!(line.contains(words), "{words}: {line}");
        }
    }
    let run = train(1, &folder.path().join("one.h5"), &["train.epochs=4", every]).run().succeeded();
    assert!(!progress(&run, "epoch ").is_empty() && !run.stderr.contains("exposed"), "{}", run.stderr);
    // A run that ends before an interval does shows nothing, and so does one without intervals.
    for quiet in ["metrics.progress_seconds=1000", "metrics.progress_seconds=0"] {
        let run = train(2, &folder.path().join("quiet.h5"), &[quiet]).arg("--force").run().succeeded();
        assert_eq!(progress(&run, ""), [""; 0], "{quiet}");
    }
}

#[test]
fn sweep_study_quantize_and_verify_say_how_far_they_are() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let every = ["--set", "metrics.progress_seconds=0.001"];
    let shows = |run: Mpirun, wanted: &[&str]| {
        let run = run.folder(folder.path()).args(every).timeout(SOON).run().succeeded();
        for what in wanted {
            assert!(!progress(&run, what).is_empty(), "{what}: {}", run.stderr);
        }
        run
    };
    let sweep = ["sweep.batch_per_rank=[8]", "sweep.rounds=1", "sweep.seconds=0.3", "launch.threads=1"];
    let run =
        shows(Mpirun::ranks(2).args(["sweep", "--out", "sweep.h5"]).args(sets(&sweep)), &["net, 1 rank, batch 8, "]);
    assert!(run.stderr.contains("at most ") && run.stderr.contains("visit 0/4 | "), "{}", run.stderr);

    std::fs::write(
        path("study.toml"),
        "[data]\ntrain_samples = 400\ntest_samples = 50\n[train]\nepochs = 1\n[study]\nseeds = [3]\n\
         [[study.variants]]\nname = \"plain\"\n[[study.variants]]\nname = \"slow\"\nset = [\"train.lr=1e-4\"]\n",
    )
    .unwrap();
    let study = Mpirun::ranks(2).args(["study", "study.toml", "--out", "study.h5"]);
    shows(study, &["training 1/2 (plain, seed 3), epoch 1/1, step ", "training 2/2 (slow, seed 3), epoch 1/1, step "]);

    train(1, &path("net.h5"), &["train.max_steps=20", "train.lr=0.001"]).run().succeeded();
    let finetune = ["quantize.max_drop=0", "quantize.finetune_epochs=0.1"];
    let quantize = Mpirun::ranks(2).args(["quantize", "net.h5"]).args(sets(&finetune));
    shows(quantize, &["calibration ", "accuracy, batch "]);

    if let Some(data) = cifar10("progress of hpml verify") {
        let parity = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/parity.h5");
        shows(Mpirun::ranks(2).args(["verify", parity, "--data", text(&data)]), &["net, step "]);
    }
}

#[test]
fn the_log_has_what_the_run_file_has_and_its_page_names_every_field() {
    the_log_has_what_the_run_file_has("0");
}

#[test]
fn on_a_device_the_log_is_the_same() {
    the_log_has_what_the_run_file_has("1");
}

fn the_log_has_what_the_run_file_has(emulate_gpu: &str) {
    let folder = folder();
    let (out, log) = (folder.path().join("run.h5"), folder.path().join("a/run.jsonl"));
    let settings = ["metrics.progress_seconds=0.05", &format!("metrics.log={}", text(&log))];
    train(1, &out, &settings).env("HPML_EMULATE_GPU", emulate_gpu).run().succeeded();
    let all = events(&log);
    let kinds = kinds(&all);
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("start", "end"), "{kinds:?}");
    assert_eq!(all[all.len() - 1]["outcome"], "finished");
    assert_eq!((number(&all[0], "steps"), number(&all[0], "step")), (500.0, 0.0));
    let of = |kind: &str| all.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();
    let (epochs, intervals) = (of("epoch"), of("interval"));
    for key in ["train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "images_per_second", "seconds"] {
        let logged: Vec<f64> = epochs.iter().map(|epoch| number(epoch, key)).collect();
        let in_file = column(&out, &format!("epochs/{key}"));
        // JSON's reader may round the last bit.
        let equal = logged.iter().zip(&in_file).all(|(a, b)| (a - b).abs() <= 1e-12 * b.abs());
        assert!(logged.len() == 2 && equal, "{key}: {logged:?} {in_file:?}");
    }
    // On one rank the intervals are all samples: their losses add up to the epoch's.
    let mut before = 0.0;
    let mut sums = BTreeMap::new();
    for interval in &intervals {
        let steps = number(interval, "step") - before;
        before += steps;
        *sums.entry(number(interval, "epoch") as usize).or_insert(0.0) += steps / 250.0 * number(interval, "loss");
        assert!(steps > 0.0 && interval["exposed_share"].is_null(), "{interval}");
    }
    assert_eq!(before, 500.0, "the end of an epoch is logged");
    for (epoch, loss) in sums {
        let expected = number(epochs[epoch], "train_loss");
        assert!((loss - expected).abs() < 1e-9, "{epoch}: {loss} {expected}"); // sums in another order
    }

    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/live.md")).unwrap();
    for event in [&all[0], intervals[0], epochs[0], &all[all.len() - 1]] {
        for key in event.as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{key}`")), "docs/live.md does not have {key}");
        }
    }
}

#[test]
fn the_exposed_share_is_that_of_rank_0s_steps() {
    let folder = folder();
    let (out, log) = (folder.path().join("run.h5"), folder.path().join("run.jsonl"));
    // Checkpoints take the times of the steps away between two intervals.
    let settings = [
        &format!("metrics.log={}", text(&log)),
        "train.epochs=1",
        "checkpoint.every_minutes=0.002",
        "metrics.progress_seconds=1000",
    ];
    train(2, &out, &settings).run().succeeded();
    let [exposed, step] = ["comm_exposed", "step"].map(|part| {
        let (all, ranks) = (column(&out, &format!("steps/{part}")), column(&out, "steps/rank"));
        all.iter().zip(ranks).filter(|(_, rank)| *rank == 0.0).map(|(seconds, _)| seconds).sum::<f64>()
    });
    let all = events(&log);
    for kind in ["interval", "epoch"] {
        let event = all.iter().find(|event| event["event"] == kind).unwrap();
        let share = number(event, "exposed_share");
        assert!((share - exposed / step).abs() < 1e-6, "{kind}: {share} {}", exposed / step); // float32 in the file
    }
}

/// Scalars of a folder as TensorBoard reads them: tag to (step, value); `None` without `HPML_PYTHON`.
fn scalars(folder: &Path) -> Option<BTreeMap<String, Vec<(f64, f64)>>> {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("TensorBoard's reader: left out: set HPML_PYTHON to a Python with tests/requirements.txt");
        return None;
    };
    let script = "import json, sys\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0}).Reload()\n\
        tags = events.Tags()['scalars']\n\
        print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags}))";
    let output = Command::new(python).args(["-W", "ignore", "-c", script]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn tensorboard_reads_the_events_and_a_killed_job_that_goes_on_leaves_one_curve() {
    let folder = folder();
    let [out, log, board] = ["run.h5", "run.jsonl", "board"].map(|name| folder.path().join(name));
    let settings = [
        "train.epochs=6",
        "checkpoint.every_epochs=1",
        "metrics.progress_seconds=0.02",
        &format!("metrics.log={}", text(&log)),
        &format!("metrics.tensorboard={}", text(&board)),
    ];
    let epochs = |log: &PathBuf| kinds(&events(log)).iter().filter(|kind| **kind == "epoch").count();
    // A line is whole at any moment: it is one write.
    let run = train(2, &out, &settings).spawn();
    let run = run.until("a checkpoint", || !checkpoints(&out).is_empty() && epochs(&log) > 0);
    let ranks = run.rank_pids(2);
    ranks.iter().for_each(|&rank| kill("KILL", rank));
    assert!(!run.wait().status.success());
    let killed = events(&log);
    assert!(!kinds(&killed).contains(&"end"));

    train(2, &out, &settings).args(["--resume", "auto"]).run().succeeded();
    let all = events(&log);
    assert_eq!(all[..killed.len()], killed, "the log is continued");
    let again = &all[killed.len()];
    assert!(again["event"] == "start" && number(again, "step") >= 125.0, "{again}");
    assert_eq!(again["run_id"], all[0]["run_id"]);
    assert_eq!(all[all.len() - 1]["outcome"], "finished");

    let Some(read) = scalars(&board) else { return };
    let resumed = number(again, "step");
    // The last word on each step: from the first job what came before the second one began.
    let expected = |kind: &str, key: &str| -> Vec<(f64, f64)> {
        let place = |(index, event): (usize, &Value)| {
            (index >= killed.len() || number(event, "step") <= resumed).then(|| event.clone())
        };
        let events = all.iter().enumerate().filter(|(_, event)| event["event"] == kind).filter_map(place);
        events.map(|event| (number(&event, "step"), number(&event, key))).collect()
    };
    for (tag, kind, key) in [
        ("loss/train", "interval", "loss"),
        ("loss/test", "epoch", "test_loss"),
        ("accuracy/test", "epoch", "test_accuracy"),
        ("images_per_second", "interval", "images_per_second"),
        ("exposed_share", "interval", "exposed_share"),
        ("lr", "interval", "lr"),
    ] {
        let (found, expected) = (&read[tag], expected(kind, key));
        assert_eq!(found.len(), expected.len(), "{tag}: {found:?} {expected:?}");
        assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "{tag}: {found:?}");
        for ((step, value), (at, logged)) in found.iter().zip(expected) {
            // Event files hold float32.
            assert!(
                *step == at && (value - logged).abs() <= 1e-6 * logged.abs(),
                "{tag}: {step} {value}, {at} {logged}"
            );
        }
    }
    assert_eq!(read.len(), 6, "{:?}", read.keys());
}

#[test]
fn a_log_that_cannot_be_written_is_one_message_before_the_first_step() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("file"), "text").unwrap();
    std::fs::write(path("other.jsonl"), "{}\n").unwrap();
    std::fs::create_dir_all(path("board")).unwrap();
    std::fs::write(path("board/events.out.tfevents.1.host.2"), "").unwrap();
    assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
    for (setting, named) in [
        ("metrics.log=file/run.jsonl", &["file/run.jsonl", "cannot be written"][..]),
        ("metrics.log=board", &["board", "cannot be written: it is no file"]),
        ("metrics.log=fifo", &["fifo", "cannot be written: it is no file"]),
        ("metrics.log=other.jsonl", &["other.jsonl", "exists already", "--force"]),
        ("metrics.log=./run.h5", &["metrics.log = ./run.h5", "is the run file"]),
        ("metrics.log=/proc/run.jsonl", &["/proc/run.jsonl", "cannot be written"]),
        ("metrics.tensorboard=file", &["file", "cannot be written"]),
        ("metrics.tensorboard=board", &["board", "exists already", "--force"]),
        ("metrics.progress_seconds=-1", &["metrics.progress_seconds = -1", "at least 0"]),
    ] {
        let run = train(2, Path::new("run.h5"), &[setting]).folder(folder.path()).run();
        assert_refused(&run, named);
        assert!(!path("run.h5").exists() && !run.stdout.contains("epoch"), "{setting}: {}", run.stdout);
    }
    assert_eq!(std::fs::read_to_string(path("other.jsonl")).unwrap(), "{}\n");
    let force = ["metrics.log=other.jsonl", "metrics.tensorboard=board", "train.max_steps=3"];
    train(2, Path::new("run.h5"), &force).arg("--force").folder(folder.path()).run().succeeded();
    assert_eq!(kinds(&events(&path("other.jsonl"))), ["start", "interval", "epoch", "end"]);
    // The next training has another run file, but names the same log.
    let run = train(2, Path::new("next.h5"), &force[..1]).folder(folder.path()).run();
    assert_refused(&run, &["other.jsonl", "exists already"]);
    for command in ["sweep", "study none.toml", "quantize run.h5"] {
        let run = Mpirun::ranks(2).args(command.split(' ')).args(sets(&force[..1])).folder(folder.path()).run();
        assert!(!run.status.success() && run.messages().len() == 1, "{command}: {}", run.stderr);
    }
}

#[test]
fn a_training_that_fails_or_is_stopped_says_so_in_its_log() {
    let folder = folder();
    let log = folder.path().join("run.jsonl");
    let setting = format!("metrics.log={}", text(&log));
    let run = train(2, &folder.path().join("a.h5"), &["train.lr=1e30", &setting]).run();
    assert!(!run.status.success() && run.stderr.contains("diverged"), "{}", run.stderr);
    assert_eq!(events(&log).last().unwrap()["outcome"], "failed");

    let out = folder.path().join("b.h5");
    let run = train(2, &out, &["train.epochs=1000", &setting]).arg("--force").spawn();
    let run = run.until("epoch", || out.exists());
    kill("TERM", run.child.id());
    run.wait();
    assert_eq!(events(&log).last().unwrap()["outcome"], "stopped");
}

/// Lines of a terminal after `bytes` were written to it, by the few control sequences that a bar takes.
fn rendered(bytes: &str) -> Vec<String> {
    let (mut lines, mut column) = (vec![Vec::new()], 0);
    let mut rest = bytes.chars();
    while let Some(next) = rest.next() {
        let line: &mut Vec<char> = lines.last_mut().unwrap();
        match next {
            '\n' => lines.push(Vec::new()),
            '\r' => column = 0,
            '\x1b' => match rest.by_ref().find(|c| c.is_ascii_alphabetic()) {
                Some('K') => line.clear(),
                other => panic!("a sequence that this terminal does not know: {other:?}"),
            },
            next => {
                line.resize(line.len().max(column + 1), ' ');
                line[column] = next;
                column += 1;
            }
        }
    }
    lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

/// Output of a command on a terminal, made by script(1); `None` if that is missing.
fn on_terminal(folder: &Path, command: &Command, term: &str) -> Option<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_str().unwrap());
    let line = words.map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("TERM", term).current_dir(folder);
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("a bar on a terminal: left out: script (util-linux) is missing");
        return None;
    }
    Some(Mpirun::command(script).timeout(2 * SOON).run().succeeded().stdout)
}

#[test]
fn a_bar_is_drawn_on_a_terminal_under_the_launcher_too_and_leaves_nothing_behind() {
    let folder = folder();
    let mut number = 0;
    let mut command = |mut command: Command, before: &[&str]| {
        number += 1;
        command.args(before).arg(env!("CARGO_BIN_EXE_hpml")).args(["train", "--out", &format!("{number}.h5")]);
        let long = [
            "data.test_samples=200",
            "data.train_samples=4000",
            "train.batch_per_rank=1",
            "metrics.progress_seconds=0.1",
        ];
        command.args(sets(&long));
        command
    };
    let alone = command(Command::new("env"), &[]);
    let mut runs = vec![alone];
    if is_open_mpi("a bar under the launcher") {
        runs.push(command(launcher(), &["-n", "2"]));
    }
    for run in runs {
        let Some(output) = on_terminal(folder.path(), &run, "xterm") else { return };
        for shown in ["epoch 1/2, step [", "epoch 2/2, step [", "| loss ", " left"] {
            assert!(output.contains(shown), "{shown}: {output}");
        }
        assert!(!output.contains("INFO: epoch"), "{output}");
        let lines = rendered(&output);
        let screen = lines.join("\n");
        assert!(lines.iter().any(|line| line.starts_with("epoch  1 (2/2) | train loss")), "{screen}");
        assert!(!screen.contains(", step [") && !screen.contains(", test batch ["), "{screen}");
    }
    if is_open_mpi("no bar where lines are marked or go elsewhere") {
        for (before, term) in [(&["-n", "2", "--tag-output"][..], "xterm"), (&["-n", "2"], "dumb")] {
            let output = on_terminal(folder.path(), &command(launcher(), before), term).unwrap();
            assert!(output.contains("INFO: epoch 1/2, step ") && !output.contains(", step ["), "{output}");
        }
    }
}
