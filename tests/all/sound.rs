//! Undefined behavior and unbounded growth, refused or prevented: threads that call MPI at the same time, an MPI that allows
//! one thread only, shared memory, another libtorch.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{Mpirun, column, folder, text};
use hpml::collective::{AllReduce, Universe, WaitPolicy, progress};
use hpml::config::{Algorithm, Parallel};
use hpml::metrics::Kind;

/// Runs a part of a test in this file on each of `ranks` ranks.
fn on_every_rank(ranks: usize, part: &str) -> Mpirun {
    let mut command = crate::common::launcher();
    command.args(["-n", &ranks.to_string()]).arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "--test-threads=1", &format!("sound::{part}")]);
    Mpirun::command(command)
}

/// A few steps of a ResNet in several buckets, so that one is reduced while the next is computed.
fn train(ranks: usize, out: &Path, settings: &[&str]) -> Mpirun {
    let small = ["model.name=resnet18", "model.width=8", "parallel.bucket_mb=0.1", "train.batch_per_rank=4"];
    let short = ["train.max_steps=4", "data.train_samples=64", "data.test_samples=16"];
    let settings = small.iter().chain(&short).chain(settings).flat_map(|setting| ["--set", setting]);
    Mpirun::ranks(ranks).args(["train", "--out", text(out)]).args(settings)
}

#[test]
fn where_mpi_allows_one_thread_overlap_is_refused_before_any_work_and_the_rest_is_not() {
    let folder = folder();
    let library = crate::common::preloaded(folder.path(), "lower_mpi.c");
    let out = folder.path().join("run.h5");
    let lowered = |run: Mpirun, level: &str| run.env("LD_PRELOAD", text(&library)).env("LOWER_THREAD_LEVEL", level);
    for (level, name) in [("0", "MPI_THREAD_SINGLE"), ("1", "MPI_THREAD_FUNNELED")] {
        let refused = lowered(train(2, &out, &[]), level).run();
        let library = hpml_mpi_version();
        crate::common::assert_refused(
            &refused,
            &[name, &library, "metrics.timing", "\"profile\"", "MPI_THREAD_SERIALIZED"],
        );
        assert!(!refused.stdout.contains("epoch"), "{}", refused.stdout);
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 1, "nothing but the library: {left:?}");
    }
    // Runs without a second thread: no overlap, one bucket, one rank.
    lowered(train(2, &out, &["metrics.timing=profile"]), "1").run().succeeded();
    lowered(train(2, &out, &["parallel.bucket_mb=100"]), "1").arg("--force").run().succeeded();
    lowered(train(1, &out, &[]), "1").arg("--force").run().succeeded();
    // A sufficient thread level is accepted.
    lowered(train(2, &out, &[]), "2").arg("--force").run().succeeded();
    // A refused run replaces nothing.
    let before = std::fs::read(&out).unwrap();
    assert!(!lowered(train(2, &out, &[]), "1").arg("--force").run().status.success());
    assert!(std::fs::read(&out).unwrap() == before, "a refused run replaced the file");
}

/// Name of the MPI library as hpml reports it.
fn hpml_mpi_version() -> String {
    let devices = Mpirun::alone().arg("devices").run().succeeded().stdout;
    let line = devices.lines().find_map(|line| line.strip_prefix("MPI ")).expect("a line on MPI");
    line.trim().to_owned()
}

#[test]
fn a_sweep_is_refused_on_all_ranks_where_mpi_allows_one_thread() {
    let folder = folder();
    let library = crate::common::preloaded(folder.path(), "lower_mpi.c");
    let out = folder.path().join("scaling.h5");
    // The third rank has no part in the case that is refused.
    let sets = ["model.name=resnet18", "model.width=8", "parallel.bucket_mb=0.1", "sweep.ranks=[2, 3]"];
    let short = ["sweep.batch_per_rank=[2]", "sweep.timing=overlap", "sweep.seconds=0.1", "data.train_samples=100"];
    let refused = Mpirun::ranks(3)
        .args(["sweep", "--out", text(&out)])
        .args(sets.iter().chain(&short).flat_map(|set| ["--set", set]))
        .env("LD_PRELOAD", text(&library))
        .env("LOWER_THREAD_LEVEL", "1")
        .run();
    crate::common::assert_refused(&refused, &["MPI_THREAD_FUNNELED", "sweep.timing", "\"profile\""]);
}

#[test]
fn two_threads_that_call_mpi_at_once_are_told_by_name() {
    let folder = folder();
    let run = on_every_rank(2, "a_collective_beside_one_of_another_thread").env("FOLDER", text(folder.path())).run();
    assert_eq!(run.succeeded().stdout.matches("1 passed").count(), 2);
}

/// Rank 0's part: its other thread waits in a barrier for rank 1, which joins after this thread has been refused.
#[test]
#[ignore = "a part of another test"]
fn a_collective_beside_one_of_another_thread() {
    let universe = Universe::start().unwrap();
    let ranks = Arc::new(universe.world());
    let refused = PathBuf::from(std::env::var_os("FOLDER").unwrap()).join("refused");
    if ranks.rank() == 1 {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !refused.exists() {
            assert!(Instant::now() < deadline, "rank 0 was not refused");
            std::thread::sleep(Duration::from_millis(10));
        }
        ranks.patient_barrier(WaitPolicy::Sleep).unwrap();
        return;
    }
    let other = std::thread::spawn({
        let ranks = ranks.clone();
        move || ranks.patient_barrier(WaitPolicy::Sleep).unwrap()
    });
    while progress::of_host()[0].waits_for.is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let own = std::thread::Builder::new().name("own".into()).spawn({
        let ranks = ranks.clone();
        move || ranks.all_reduce_sum(Kind::Buffers, &mut [1f32])
    });
    let message = *own.unwrap().join().expect_err("it is refused").downcast::<String>().unwrap();
    std::fs::write(refused, "").unwrap();
    other.join().unwrap();
    for word in ["thread own", "(buffers)", "collective of control", "MPI_THREAD_SERIALIZED", "Worker::wait"] {
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[test]
fn thirty_windows_of_shared_memory_leave_nothing_behind() {
    for ranks in [2, 3] {
        let run = on_every_rank(ranks, "windows_that_come_and_go").run().succeeded();
        assert_eq!(run.stdout.matches("1 passed").count(), ranks, "{}", run.stdout);
        assert!(!run.stderr.contains("stay taken"), "{}", run.stderr);
    }
}

/// One rank's part of the window test.
#[test]
#[ignore = "a part of another test"]
fn windows_that_come_and_go() {
    const ELEMENTS: usize = 1 << 20; // 4 MiB per rank
    let universe = Universe::start().unwrap();
    let ranks = Arc::new(universe.world());
    let all_reduce =
        AllReduce::new(ranks.clone(), &Parallel { all_reduce: Algorithm::Shared, ..Parallel::default() }).unwrap();
    let (size, rank) = (ranks.size(), ranks.rank());
    let sum = (1..=size).sum::<usize>() as f32;
    let mut after_first = 0;
    for visit in 0..30 {
        let mut buffer = all_reduce.buffer::<f32>(ELEMENTS).unwrap();
        assert!(buffer.as_slice().iter().all(|&value| value == 0.0), "new memory is zero");
        assert_eq!(buffer.as_slice().as_ptr() as usize % 4096, 0, "and begins with a page");
        buffer.as_mut_slice().fill((rank + 1) as f32);
        all_reduce.reduce(Kind::Gradients, &mut buffer.region(0..ELEMENTS), WaitPolicy::Spin).unwrap();
        assert!(buffer.as_slice().iter().all(|&value| value == sum), "every rank's part is reached");
        // This rank's own part, and the slices of the others' parts that it sums.
        let least = ELEMENTS * 4 / 1024 * (2 * size - 1) / size;
        assert!(shared_kilobytes() >= least, "the test sees the memory: {} kB", shared_kilobytes());
        drop(buffer);
        ranks.barrier().unwrap(); // all have dropped theirs
        let now = shared_kilobytes();
        after_first = if visit == 0 { now } else { after_first };
        // Windows that were kept would add 6 MiB and more per visit.
        assert!(now < after_first + 4096, "visit {visit}: {now} kB, {after_first} kB after the first");
        ranks.barrier().unwrap(); // all have measured
    }
}

/// Resident memory of this process that is backed by a file: a window's file lies in /dev/shm or in the session's folder.
fn shared_kilobytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    of("RssShmem:") + of("RssFile:")
}

#[test]
fn thirty_visits_of_a_sweep_take_the_memory_of_one() {
    let folder = folder();
    let peak = |rounds: usize| {
        let out = folder.path().join(format!("{rounds}.h5"));
        let rounds = format!("sweep.rounds={rounds}");
        let model = ["model.name=resnet18", "model.width=32", "launch.threads=1", "metrics.warmup_steps=1"];
        let sweep = ["sweep.batch_per_rank=[1]", "sweep.ranks=2", "sweep.timing=overlap", "sweep.seconds=0.01"];
        let data = ["data.train_samples=64", &*rounds];
        let sets = model.iter().chain(&sweep).chain(&data).flat_map(|set| ["--set", set]);
        let run = Mpirun::ranks(2).args(["sweep", "--out", text(&out)]).args(sets).timeout(Duration::from_secs(600));
        run.run().succeeded();
        column(&out, "scaling/peak_memory")[0]
    };
    let (one, thirty) = (peak(1), peak(30));
    // Kept gradients of both ranks would add 30 x 22.4 MB; the allocator itself varies by some 30 MB.
    assert!(thirty < one + 150e6, "{one} bytes after one visit, {thirty} after thirty");
}

#[test]
fn memory_that_the_system_does_not_take_back_is_told_once() {
    let folder = folder();
    let library = crate::common::preloaded(folder.path(), "lower_mpi.c");
    let out = folder.path().join("run.h5");
    let run = train(2, &out, &[]).env("LD_PRELOAD", text(&library)).env("LOWER_MADVISE", "1").run().succeeded();
    let told: Vec<&str> = run.stderr.lines().filter(|line| line.contains("stay taken")).collect();
    assert_eq!(told.len(), 1, "{}", run.stderr);
    assert!(told[0].contains("Invalid argument") && told[0].contains("parallel.all_reduce"), "{}", told[0]);
}

#[test]
fn another_libtorch_than_hpml_was_built_with_is_refused_before_anything_is_done() {
    let folder = folder();
    let library = crate::common::preloaded(folder.path(), "other_libtorch.c");
    let out = folder.path().join("run.h5");
    for run in [train(2, &out, &[]), Mpirun::ranks(2).arg("devices"), Mpirun::alone().arg("devices")] {
        let refused = run.env("LD_PRELOAD", text(&library)).run();
        let built = hpml::sys::LIBTORCH_VERSION;
        crate::common::assert_refused(&refused, &["2.99.1", built, text(&library), "LD_LIBRARY_PATH", "scripts/setup"]);
        assert!(refused.stdout.is_empty() && !out.exists(), "{}", refused.stdout);
    }
}
