//! Both sides of a fuzz run: the test, which starts processes and watches them, and the process, which works through cases.

#![allow(unsafe_code)] // fork: a process after each crash would have to load libtorch again

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::mutate::Random;
use super::target;

const TASK: &str = "HPML_FUZZ_TASK";
/// Bytes that a case may allocate beyond what the process has before the first.
const MEMORY: u64 = 256 << 20;
/// CPU seconds that a case may take; it usually takes milliseconds.
const CPU: i64 = 5;
/// Time without progress after which the process counts as hung.
const LONG: Duration = Duration::from_secs(120);
/// Values in the progress file: all cases are done, and none has begun.
const DONE: u64 = u64::MAX;
const STARTING: u64 = u64::MAX - 1;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: not a number: {text}")))
}

/// Observations of one process.
#[derive(Default)]
struct Seen {
    /// Failures to fix.
    findings: Vec<String>,
    /// Crashes: case and signal.
    crashes: Vec<(u64, i32)>,
}

/// Runs `cases` cases of a target, or HPML_FUZZ_CASES.
///
/// # Panics
/// There is anything to fix.
pub fn fuzz(name: &str, cases: u64) {
    let cases = match setting("HPML_FUZZ_CASES") {
        // A case is a whole file of 30 MB.
        Some(cases) if name == "cifar_files" => cases / 1000,
        Some(cases) => cases,
        None => cases,
    };
    let (from, workers) = (setting("HPML_FUZZ_FROM").unwrap_or(0), setting("HPML_FUZZ_WORKERS").unwrap_or(1));
    let started = Instant::now();
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                let folder = root.path().join(worker.to_string());
                scope.spawn(move || work(name, &folder, from + worker, workers, from + cases))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let findings: Vec<&String> = seen.iter().flat_map(|seen| &seen.findings).collect();
    let crashes: Vec<&(u64, i32)> = seen.iter().flat_map(|seen| &seen.crashes).collect();
    eprintln!(
        "{name}: {cases} inputs in {:.0} s, {} findings, {} crashes of HDF5's library (case, signal): {:?}",
        started.elapsed().as_secs_f64(),
        findings.len(),
        crashes.len(),
        &crashes[..crashes.len().min(8)],
    );
    assert!(findings.is_empty(), "{name}:\n{}", findings.into_iter().take(50).cloned().collect::<Vec<_>>().join("\n"));
    assert!(crashes.is_empty() || name == "old_hdf5", "{name}: {crashes:?}");
}

/// Starts the process and waits for it.
fn work(name: &str, folder: &Path, from: u64, step: u64, end: u64) -> Seen {
    fs::create_dir_all(folder).unwrap();
    let (progress, log) = (folder.join("progress"), folder.join("log"));
    fs::write(&progress, STARTING.to_le_bytes()).unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker", "--ignored", "--nocapture", "--test-threads=1"])
        .env(TASK, format!("{name} {from} {step} {end} {}", folder.display()))
        .env("HDF5_USE_FILE_LOCKING", "FALSE")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut last = (STARTING, Instant::now());
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(50));
        if read(&progress) != last.0 {
            last = (read(&progress), Instant::now());
        } else if last.1.elapsed() > LONG {
            let _ = process.kill();
        }
    };
    let said = fs::read_to_string(&log).unwrap_or_default();
    let done = read(&progress) == DONE && status.success();
    assert!(done, "{name}: case {}: {status}: {}", read(&progress), said.trim().replace('\n', "; "));
    let mut seen = Seen::default();
    for line in fs::read_to_string(folder.join("seen")).unwrap_or_default().lines() {
        match line.strip_prefix("crash ").and_then(|rest| rest.split_once(' ')) {
            Some((case, signal)) => seen.crashes.push((case.parse().unwrap(), signal.parse().unwrap())),
            None => seen.findings.push(line.to_owned()),
        }
    }
    seen
}

fn read(progress: &Path) -> u64 {
    let bytes = fs::read(progress).unwrap();
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// Keeps the input of a case for inspection.
fn keep(name: &str, folder: &Path, case: u64) {
    if let Ok(bytes) = fs::read(folder.join("case")) {
        let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{case}"));
        let _ = fs::write(kept, bytes);
    }
}

/// Body of the process: children work through its cases, a new one after each crash.
pub fn run_worker() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.splitn(5, ' ').collect();
    let [name, from, step, end, folder] = words[..] else { panic!("{TASK}: {task}") };
    let [from, step, end] = [from, step, end].map(|number| number.parse::<u64>().unwrap());
    let folder = Path::new(folder);
    let mut case = target(name, folder);
    let progress = File::options().read(true).write(true).open(folder.join("progress")).unwrap();
    let mut seen = File::create(folder.join("seen")).unwrap();
    static PLACE: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| *PLACE.lock().unwrap() = info.to_string().replace('\n', " ")));
    let mut next = from;
    while next < end {
        let mut child_seen = seen.try_clone().unwrap();
        let ended = in_child(|| {
            hpml::sys::with_memory_limit(MEMORY, || {
                for number in (next..end).step_by(step as usize) {
                    progress.write_all_at(&number.to_le_bytes(), 0).unwrap();
                    limit_case();
                    if catch_unwind(AssertUnwindSafe(|| case(&mut Random::of(number)))).is_err() {
                        writeln!(child_seen, "case {number}: {}", PLACE.lock().unwrap()).unwrap();
                        keep(name, folder, number);
                    }
                }
            });
        });
        let Err(signal) = ended else { break };
        let case = read(&folder.join("progress"));
        keep(name, folder, case);
        match signal {
            libc::SIGPROF => writeln!(seen, "case {case}: no end after {CPU} s").unwrap(),
            // Raised by Rust itself, for lack of memory or stack. With the old format it is no finding: the hdf5 crate turns
            // numbers of the metadata into Rust enums unchecked.
            libc::SIGABRT if name != "old_hdf5" && said_by_rust(folder) => {
                writeln!(seen, "case {case}: memory or stack").unwrap()
            }
            _ => writeln!(seen, "crash {case} {signal}").unwrap(),
        }
        next = case + step;
    }
    progress.write_all_at(&DONE.to_le_bytes(), 0).unwrap();
}

/// Whether the log ends with a fatal message of Rust's runtime. Empties the log.
fn said_by_rust(folder: &Path) -> bool {
    let said = fs::read_to_string(folder.join("log")).unwrap_or_default();
    let _ = File::options().write(true).open(folder.join("log")).and_then(|log| log.set_len(0));
    ["memory allocation of", "overflowed its stack"].iter().any(|word| said.contains(word))
}

/// Runs `work` in a copy of this process.
///
/// # Errors
/// The copy died of this signal.
fn in_child(work: impl FnOnce()) -> Result<(), i32> {
    // SAFETY: this thread is the only one that works, so no lock is held by another; the child leaves by `_exit`, past
    // everything that belongs to its parent. `waitpid` writes to the number given.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
        if child == 0 {
            work();
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        if libc::WIFSIGNALED(status) { Err(libc::WTERMSIG(status)) } else { Ok(()) }
    }
}

/// Arms SIGPROF for a case that computes too long: in its own CPU time, however busy the machine is.
fn limit_case() {
    let second = |seconds| libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: second(0), it_value: second(CPU) };
    // SAFETY: reads the struct given.
    unsafe { libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut()) };
}
