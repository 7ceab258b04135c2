//! Trainings under faults at random moments on 2 to 4 ranks: `cargo bench --bench reliability`. After each fault, the files
//! on the disk must open, and `--resume auto` must end with exactly the parameters of an undisturbed run. Prints the table of
//! results/reliability.md; ends with status 1 if anything was lost or hung.
//!
//! HPML_FAULTS: tries per fault (10). HPML_SEED: seed of the moments (printed). An argument picks faults by name. The faults
//! of the disk need root, to mount a small one, and are left out elsewhere.

#[path = "../tests/all/common/mod.rs"]
mod common;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Finished, Mpirun, Parameters, Running, checkpoints, kill, parameters};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Time-out of the watchdog.
const COMM_TIMEOUT: &str = "launch.comm_timeout_s=4";
/// Time after which a run counts as hung; undisturbed runs of these sizes are shorter.
const HANG: Duration = Duration::from_secs(120);

/// A fault and its required outcome.
struct Fault {
    name: &'static str,
    inject: fn(&mut Try),
    /// Whether the run may end successfully.
    survives: bool,
    /// Words of the message, `{rank}` being the rank that was hit.
    says: &'static [&'static str],
    disk: bool,
}

/// Base of all faults: ends the run, without a required message.
const HIT: Fault = Fault { name: "", inject: |_| (), survives: false, says: &[], disk: false };

const FAULTS: &[Fault] = &[
    Fault { name: "a rank killed (SIGKILL)", inject: |one| one.signal("KILL"), says: &["signal 9"], ..HIT },
    Fault { name: "a rank stopped (SIGSTOP)", inject: |one| one.signal("STOP"), says: &["rank {rank}", "step"], ..HIT },
    Fault { name: "a rank stopped for 2 s", inject: pause, survives: true, ..HIT },
    Fault { name: "SIGUSR1 to a rank", inject: |one| one.signal("USR1"), says: &["SIGUSR1", "step"], ..HIT },
    Fault { name: "SIGTERM to a rank", inject: |one| one.signal("TERM"), says: &["SIGTERM", "step"], ..HIT },
    Fault { name: "SIGINT to a rank", inject: |one| one.signal("INT"), says: &["SIGINT", "step"], ..HIT },
    Fault { name: "SIGTERM to mpirun", inject: |one| kill("TERM", one.mpirun), ..HIT },
    Fault { name: "killed, newest checkpoint damaged", inject: damage, ..HIT },
    Fault { name: "disk full", inject: fill, says: &["cannot be written"], disk: true, ..HIT },
    Fault { name: "disk full for a while", inject: fill_for_a_while, survives: true, disk: true, ..HIT },
    Fault { name: "disk read-only", inject: read_only, says: &["cannot be written"], disk: true, ..HIT },
];

/// One run under a fault.
struct Try {
    random: Xoshiro256PlusPlus,
    pids: Vec<u32>,
    mpirun: u32,
    folder: PathBuf,
    /// The rank that was hit.
    rank: usize,
}

fn pause(one: &mut Try) {
    one.signal("STOP");
    std::thread::sleep(Duration::from_secs(2));
    one.signal("CONT");
}
fn damage(one: &mut Try) {
    one.signal("KILL");
    std::thread::sleep(Duration::from_secs(2)); // until all are gone
    // Resume cannot skip the newest checkpoint if it is the only one.
    if let [_, .., newest] = &checkpoints(&one.run_file())[..] {
        let mut bytes = std::fs::read(newest).unwrap();
        let at = one.random.next_u64() as usize % bytes.len();
        bytes[at] ^= 1 << (one.random.next_u32() % 8);
        std::fs::write(newest, bytes).unwrap();
    }
}
fn fill(one: &mut Try) {
    let filler = std::fs::File::create(one.folder.join("filler")).unwrap();
    while std::io::Write::write_all(&mut &filler, &[0; 4096]).is_ok() {}
}
fn fill_for_a_while(one: &mut Try) {
    fill(one);
    std::thread::sleep(Duration::from_millis(700));
    std::fs::remove_file(one.folder.join("filler")).unwrap();
}
fn read_only(one: &mut Try) {
    mount(&["-o", "remount,ro"], &one.folder);
}

impl Try {
    fn run_file(&self) -> PathBuf {
        self.folder.join("run.h5")
    }

    fn signal(&self, name: &str) {
        kill(name, self.pids[self.rank]);
    }
}

fn mount(options: &[&str], folder: &Path) -> bool {
    Command::new("mount").args(options).arg(folder).output().is_ok_and(|output| output.status.success())
}

/// A folder, on a disk of 8 MB if the fault needs one; both are removed on drop.
struct Place {
    folder: tempfile::TempDir,
    mounted: bool,
}

impl Place {
    fn new(disk: bool) -> Option<Place> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mounted = disk && mount(&["-t", "tmpfs", "-o", "size=8M", "none"], folder.path());
        (mounted == disk).then_some(Place { folder, mounted })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg(self.folder.path()).status();
        }
    }
}

/// Starts a training with `--resume auto` from the first job on, as in a chain of jobs.
fn train(ranks: usize, out: &Path) -> Running {
    Mpirun::ranks(ranks)
        .args(["train", "--out", out.to_str().unwrap(), "--resume", "auto", "--set", COMM_TIMEOUT])
        .args(["--set", "train.epochs=10", "--set", "data.train_samples=1600", "--set", "data.test_samples=100"])
        .args(["--set", "optim.ema=0.99", "--set", "data.augment=true", "--set", "checkpoint.every_epochs=1"])
        .args(["--set", "train.global_batch=24"])
        .timeout(HANG)
        .spawn()
}

/// Results of all tries of one fault.
#[derive(Default)]
struct Row {
    seconds: Vec<f64>,
    statuses: Vec<String>,
    too_late: usize,
    faults: Vec<String>,
}

fn main() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (tries, seed) = (number("HPML_FAULTS").unwrap_or(10), number("HPML_SEED").unwrap_or(1));
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |fault: &&Fault| wanted.is_empty() || wanted.iter().any(|name| fault.name.contains(name.as_str()));
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let references: Vec<(f64, Parameters)> = [2, 3, 4].map(reference).into();
    println!("HPML_FAULTS={tries} HPML_SEED={seed}\n");
    println!(
        "| fault | tries | ended after, s: median (most) | exit status: times | resumed to the same parameters | lost or hung |"
    );
    println!("|---|--:|--:|---|--:|--:|");
    let mut bad = 0;
    for fault in FAULTS.iter().filter(wanted) {
        let mut row = Row::default();
        for number in 0..tries {
            let ranks = 2 + (number % 3) as usize;
            let (seconds, expected) = &references[ranks - 2];
            random.jump(); // an independent stream for each try
            let one = random.clone();
            match catch_unwind(|| hit(fault, ranks, *seconds, expected, one)) {
                Ok(Some(outcome)) => row.take(outcome),
                Ok(None) => break,
                Err(_) => row.faults.push(format!("{}: try {number} on {ranks} ranks hung or broke", fault.name)),
            }
        }
        bad += row.faults.len();
        row.print(fault.name);
    }
    if bad > 0 {
        println!("\n{bad} tries went wrong");
        std::process::exit(1);
    }
}

/// Seconds and parameters of an undisturbed run.
fn reference(ranks: usize) -> (f64, Parameters) {
    let place = Place::new(false).expect("a folder");
    let out = place.folder.path().join("run.h5");
    let run = train(ranks, &out).wait().succeeded();
    (run.seconds, parameters(&out))
}

struct Outcome {
    seconds: Option<f64>,
    status: String,
    faults: Vec<String>,
}

/// One run under a fault, and its continuation. `None` if the fault is not possible here.
fn hit(
    fault: &Fault,
    ranks: usize,
    lasts: f64,
    expected: &Parameters,
    mut random: Xoshiro256PlusPlus,
) -> Option<Outcome> {
    let place = Place::new(fault.disk)?;
    let out = place.folder.path().join("run.h5");
    // A disk can only be hit once something is on it; anything else at any moment.
    let run = train(ranks, &out).until("epoch", || !fault.disk || out.exists());
    let pids = run.rank_pids(ranks);
    let part = random.next_u64() as f64 / u64::MAX as f64 * if fault.disk { 0.4 } else { 0.8 };
    std::thread::sleep(Duration::from_secs_f64(part * lasts));
    let (mpirun, rank) = (run.child.id(), random.next_u64() as usize % ranks);
    let mut one = Try { random, pids, mpirun, folder: place.folder.path().to_owned(), rank };
    let started = Instant::now();
    (fault.inject)(&mut one);
    let finished = run.wait();
    let seconds = started.elapsed().as_secs_f64();
    if fault.disk {
        let _ = mount(&["-o", "remount,rw"], place.folder.path());
        let _ = std::fs::remove_file(place.folder.path().join("filler"));
    }
    let mut faults = complaints(fault, &finished, rank);
    for file in checkpoints(&out).iter().chain([&out]).filter(|file| file.exists()) {
        let is_damaged = fault.name.contains("damaged") && Some(file) == checkpoints(&out).last();
        let read = Command::new(env!("CARGO_BIN_EXE_hpml")).arg("inspect").arg(file).output().unwrap();
        if !read.status.success() && !is_damaged {
            faults.push(format!("{}: unreadable: {}", fault.name, String::from_utf8_lossy(&read.stderr).trim()));
        }
    }
    let rest = train(ranks, &out).wait();
    if !rest.status.success() || parameters(&out) != *expected {
        faults.push(format!("{}: not the same after resuming: {}\n{}", fault.name, rest.status, rest.stderr));
    }
    let status = finished.status.code().map_or("signal".into(), |code| code.to_string());
    let too_late = finished.status.success() && !fault.survives;
    Some(Outcome { seconds: (!too_late).then_some(seconds), status, faults })
}

/// Violations of the fault's required outcome by the first run.
fn complaints(fault: &Fault, finished: &Finished, rank: usize) -> Vec<String> {
    let mut faults = Vec::new();
    if fault.survives && !finished.status.success() {
        faults.push(format!("{}: it did not survive: {}", fault.name, finished.stderr));
    }
    // Hit before it handles signals, before the ranks know each other or after its last step, a run has no message to print.
    let knows = !finished.stderr.contains("the ranks have not");
    let speaks = !fault.survives && knows && matches!(finished.status.code(), Some(1 | 69 | 75));
    for word in fault.says.iter().map(|word| word.replace("{rank}", &rank.to_string())) {
        if speaks && !finished.stderr.contains(&word) {
            faults.push(format!("{}: {word} is not in its message: {}", fault.name, finished.stderr));
        }
    }
    faults
}

impl Row {
    fn take(&mut self, outcome: Outcome) {
        match outcome.seconds {
            Some(seconds) => self.seconds.push(seconds),
            None => self.too_late += 1,
        }
        self.statuses.push(outcome.status);
        self.faults.extend(outcome.faults);
    }

    fn print(mut self, name: &str) {
        if self.statuses.is_empty() && self.faults.is_empty() {
            println!("| {name} | left out: needs root | | | | |");
            return;
        }
        self.seconds.sort_by(f64::total_cmp);
        self.statuses.sort();
        let mut statuses: Vec<(String, usize)> = Vec::new();
        for status in &self.statuses {
            match statuses.last_mut() {
                Some((known, times)) if known == status => *times += 1,
                _ => statuses.push((status.clone(), 1)),
            }
        }
        let statuses: Vec<String> = statuses.iter().map(|(status, times)| format!("{status}: {times}")).collect();
        let middle = self.seconds.get(self.seconds.len() / 2).copied().unwrap_or(f64::NAN);
        let most = self.seconds.last().copied().unwrap_or(f64::NAN);
        let [middle, most] = [middle, most].map(|s| if s.is_nan() { "-".into() } else { format!("{s:.1}") });
        let late = if self.too_late > 0 { format!(" ({} hit after the end)", self.too_late) } else { String::new() };
        let tries = self.statuses.len();
        println!(
            "| {name} | {tries}{late} | {middle} ({most}) | {} | {} of {tries} | {} |",
            statuses.join(", "),
            tries - self.faults.len().min(tries),
            self.faults.len()
        );
        self.faults.iter().for_each(|fault| eprintln!("{fault}"));
    }
}
