//! The timeline: `metrics.trace_steps`, the tables `/trace` and `/clocks`, `hpml report --trace` and `--hta`, under the real launcher.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::hosts::Hosts;
use crate::common::{Finished, Mpirun, assert_refused, column, folder, has, may_unshare, text, texts};

/// A span of `/trace`.
#[derive(Debug, Clone)]
struct Span {
    rank: usize,
    step: usize,
    lane: String,
    name: String,
    bucket: i64,
    start: f64,
    end: f64,
}

fn spans(file: &Path) -> Vec<Span> {
    let get = |name: &str| column(file, &format!("trace/{name}"));
    let (rank, step, bucket, start, end) = (get("rank"), get("step"), get("bucket"), get("start"), get("end"));
    let (lane, name) = (texts(file, "trace/lane"), texts(file, "trace/name"));
    let span = |row: usize| Span {
        rank: rank[row] as usize,
        step: step[row] as usize,
        lane: lane[row].clone(),
        name: name[row].clone(),
        bucket: bucket[row] as i64,
        start: start[row],
        end: end[row],
    };
    (0..rank.len()).map(span).collect()
}

fn train(program: &[&str], ranks: usize, out: &Path, more: &[&str]) -> Finished {
    train_as(Mpirun::program(ranks, program.iter().copied()), out, more)
}

fn train_as(run: Mpirun, out: &Path, more: &[&str]) -> Finished {
    let small = ["data.train_samples=320", "data.test_samples=20", "train.epochs=2", "parallel.bucket_mb=0.01"];
    let small = small.iter().chain(&["launch.threads=1"]).flat_map(|set| ["--set", set]);
    run.args(["train", "--force", "--out", text(out)])
        .args(small)
        .args(more.iter().flat_map(|set| ["--set", set]))
        .run()
}

const HPML: &[&str] = &[env!("CARGO_BIN_EXE_hpml")];

/// Spans of each lane lie one after the other or one in the other.
fn assert_nested(spans: &[Span]) {
    let lanes: BTreeSet<(usize, String)> = spans.iter().map(|span| (span.rank, span.lane.clone())).collect();
    for (rank, lane) in lanes {
        let mut of_lane: Vec<&Span> = spans.iter().filter(|span| span.rank == rank && span.lane == lane).collect();
        of_lane.sort_by(|a, b| a.start.total_cmp(&b.start).then(b.end.total_cmp(&a.end)));
        let mut open: Vec<&Span> = Vec::new();
        for span in of_lane {
            while open.last().is_some_and(|last| last.end <= span.start) {
                open.pop();
            }
            // The clocks' drift moves a span's ends by nanoseconds.
            assert!(open.last().is_none_or(|last| span.end <= last.end + 1e-7), "{span:?} leaves {:?}", open.last());
            open.push(span);
        }
    }
}

/// Seconds of the spans called `name` of one rank's step, without those of `inner` within them.
fn own_seconds(spans: &[Span], rank: usize, step: usize, name: &str, inner: &str) -> f64 {
    let of = |name: &str| {
        let name = name.to_owned();
        spans.iter().filter(move |span| (span.rank, span.step) == (rank, step) && span.name == name)
    };
    let within = |outer: &Span| {
        let inside = |span: &&Span| span.lane == outer.lane && span.start >= outer.start && span.end <= outer.end;
        of(inner).filter(inside).map(|span| span.end - span.start).sum::<f64>()
    };
    of(name).map(|span| span.end - span.start - within(span)).sum()
}

#[test]
fn the_spans_of_the_traced_steps_are_the_times_of_the_steps() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    for (ranks, timing) in [(1, "overlap"), (2, "overlap"), (4, "overlap"), (2, "profile")] {
        let timing_set = format!("metrics.timing={timing}");
        let sync = if timing == "profile" { "parallel.buffers=sync" } else { "parallel.buffers=broadcast" };
        let model = ["model.name=resnet18", "model.width=8"];
        let settings = [&timing_set, sync, "metrics.trace_steps=1..3, 9, every 5", model[0], model[1]];
        train(HPML, ranks, &out, &settings).succeeded();
        let spans = spans(&out);
        let steps: BTreeSet<usize> = spans.iter().map(|span| span.step).collect();
        let total = 2 * 320 / (8 * ranks);
        let expected: BTreeSet<usize> =
            [1, 2, 9].into_iter().chain((0..total).step_by(5)).filter(|&s| s < total).collect();
        assert_eq!(steps, expected, "{ranks} ranks");
        assert_nested(&spans);

        let (global_step, rank) = (column(&out, "steps/global_step"), column(&out, "steps/rank"));
        let parts = ["data", "forward", "backward", "comm", "comm_wait", "comm_exposed", "optimizer", "step"];
        for part in parts {
            let seconds = column(&out, &format!("steps/{part}"));
            let inner = match part {
                "comm" => "comm_wait",
                "step" => "",
                _ => "comm_exposed",
            };
            for row in (0..rank.len()).filter(|&row| steps.contains(&(global_step[row] as usize))) {
                let inner = if inner == part { "" } else { inner };
                let traced = own_seconds(&spans, rank[row] as usize, global_step[row] as usize, part, inner);
                let apart = (traced - seconds[row]).abs();
                assert!(apart <= 1e-2 * seconds[row] + 1e-6, "{part}: {traced} traced, {} in /steps", seconds[row]);
            }
        }
        let comm = spans.iter().filter(|span| span.name == "comm" && span.bucket >= 0);
        assert_eq!(comm.clone().count() == 0, ranks == 1);
        for comm in comm {
            let ready = spans.iter().find(|span| {
                span.name == "ready" && (span.rank, span.step, span.bucket) == (comm.rank, comm.step, comm.bucket)
            });
            assert!(ready.is_some_and(|ready| ready.start <= comm.start + 1e-7), "{comm:?} after {ready:?}");
        }
        // Each rank's clock was measured at the beginning and when spans were gathered.
        assert_eq!(column(&out, "clocks/rank").len(), 3 * ranks);
    }
}

/// No rank ends a collective before the last one has begun it: on one clock, but for the clocks' uncertainty.
fn assert_aligned(file: &Path) {
    let (spans, uncertainty) = (spans(file), column(file, "clocks/uncertainty"));
    let slack = 2.0 * uncertainty.iter().copied().fold(0.0, f64::max) + 1e-6;
    let of_bucket = |bucket: &i64, step: &usize| {
        let (bucket, step) = (*bucket, *step);
        spans.iter().filter(move |span| span.name == "comm" && (span.bucket, span.step) == (bucket, step))
    };
    let all: BTreeSet<(i64, usize)> =
        spans.iter().filter(|span| span.bucket >= 0).map(|span| (span.bucket, span.step)).collect();
    assert!(!all.is_empty());
    for (bucket, step) in &all {
        let last = of_bucket(bucket, step).map(|span| span.start).fold(f64::NEG_INFINITY, f64::max);
        let first = of_bucket(bucket, step).map(|span| span.end).fold(f64::INFINITY, f64::min);
        assert!(last <= first + slack, "bucket {bucket} of step {step}: {last} after {first}, slack {slack}");
    }
}

#[test]
fn ranks_whose_clocks_are_50_ms_apart_are_put_on_one() {
    let name = "ranks_whose_clocks_are_50_ms_apart_are_put_on_one";
    if !may_unshare("-T", name) {
        return;
    }
    let folder = folder();
    // Rank 1's children see a monotonic clock that is 50 ms ahead.
    let script = "if [ \"${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\" = 1 ]; then \
                  exec unshare -T sh -c 'echo \"monotonic 0 50000000\" >/proc/$$/timens_offsets; \"$@\"' sh \"$@\"; \
                  fi; exec \"$@\"";
    let apart = ["sh", "-c", script, "sh", HPML[0]];
    for (program, out) in [(HPML, "together.h5"), (&apart[..], "apart.h5")] {
        let out = folder.path().join(out);
        train(program, 2, &out, &["metrics.trace_steps=5..15"]).succeeded();
        assert_aligned(&out);
    }
    let Some(hosts) = Hosts::up(2, name) else { return };
    let out = folder.path().join("hosts.h5");
    train_as(hosts.program(2, 1, &apart), &out, &["metrics.trace_steps=5..15"]).succeeded();
    assert_aligned(&out);
}

#[test]
fn a_resumed_training_keeps_the_spans_of_before() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let common = ["metrics.trace_steps=2..4, 30..33", "checkpoint.every_epochs=1"];
    let first = ["metrics.trace_steps=2..4", "checkpoint.every_epochs=1", "train.epochs=1"];
    train(HPML, 2, &out, &first).succeeded();
    let before = spans(&out);
    let resume = Mpirun::ranks(2).args(["train", "--resume", "auto", "--out", text(&out)]);
    let small = ["data.train_samples=320", "data.test_samples=20", "train.epochs=2", "parallel.bucket_mb=0.01"];
    let settings = small.iter().chain(&common).chain(&["launch.threads=1"]).flat_map(|set| ["--set", set]);
    resume.args(settings).run().succeeded();
    let after = spans(&out);
    assert_eq!(after.iter().map(|span| span.step).collect::<BTreeSet<_>>(), BTreeSet::from([2, 3, 30, 31, 32]));
    assert!(before.iter().zip(&after).all(|(a, b)| (a.rank, a.step, a.start) == (b.rank, b.step, b.start)));
    // On one time line: the spans of the second job follow on those of the first, and each step has the samples it had.
    let end = before.iter().map(|span| span.end).fold(0.0, f64::max);
    assert!(after[before.len()..].iter().all(|span| span.start >= end - 1e-3));
    assert!(column(&out, "trace/samples").iter().all(|samples| *samples == 8.0));
}

#[test]
fn the_timeline_is_written_for_other_programs_and_shown_on_the_page() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (out, json, page) = (at("run.h5"), at("trace.json"), at("page.html"));
    train(HPML, 2, &out, &["metrics.trace_steps=5..10"]).succeeded();
    let report = |args: &[&str]| Mpirun::alone().args(["report", text(&out)]).args(args).run();
    let written = report(&["--trace", text(&json), "--hta", text(&at("hta")), "--html", text(&page)]).succeeded();
    assert!(written.stdout.contains("5 steps x 2 ranks"), "{}", written.stdout);
    let read = |path: &Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let trace = read(&json);
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |kind: &str| events.iter().filter(|event| event["ph"] == kind).collect::<Vec<_>>();
    let rows = spans(&out);
    assert_eq!(of("X").len(), rows.iter().filter(|span| span.name != "ready").count());
    let buckets = rows.iter().filter(|span| span.name == "comm" && span.bucket >= 0).count();
    assert!(buckets > 0 && of("s").len() == buckets && of("f").len() == buckets);
    let ids = |kind: &str| of(kind).iter().map(|event| event["id"].as_u64().unwrap()).collect::<BTreeSet<_>>();
    assert_eq!(ids("s"), ids("f"));
    for rank in 0..2 {
        let path = at("hta").join(format!("rank{rank}.json"));
        assert!(std::fs::read_to_string(&path).unwrap().contains(&format!("\"rank\": {rank},")), "a blank, for HTA");
        let trace = read(&path);
        assert_eq!(trace["distributedInfo"]["rank"], rank);
        let kernels: Vec<_> =
            trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["cat"] == "kernel").collect();
        assert!(kernels.iter().any(|kernel| kernel["name"].as_str().unwrap().starts_with("ncclKernel")));
        assert!(kernels.iter().all(|kernel| kernel["args"]["stream"].as_u64().is_some()));
    }
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("Timeline, rank below rank") && page.contains("exposed per step and rank"));

    assert_refused(&report(&["--trace", text(&json)]), &["trace.json", "--force"]);
    report(&["--trace", text(&json), "--force"]).succeeded();
}

#[test]
fn what_cannot_be_traced_is_refused_before_the_first_step() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    for (steps, named) in [
        ("100..110", &["metrics.trace_steps", "step 100 is never taken", "0 to 39"][..]),
        ("7..7", &["metrics.trace_steps", "holds no step"]),
        ("soon", &["metrics.trace_steps", "neither a range"]),
    ] {
        let run = train(HPML, 2, &out, &[&format!("metrics.trace_steps={steps}")]);
        assert_refused(&run, named);
        assert!(!out.exists(), "{steps}");
    }
    train(HPML, 1, &out, &[]).succeeded();
    assert!(!has(&out, "trace/start"));
    let json = folder.path().join("trace.json");
    let run = Mpirun::alone().args(["report", text(&out), "--trace", text(&json)]).run();
    assert_refused(&run, &["run.h5", "no step was traced", "metrics.trace_steps"]);
}
