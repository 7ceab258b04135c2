//! Starts the real binary under the real launcher, always with a time-out.
#![allow(dead_code)] // each test file uses its own part

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use wait_timeout::ChildExt;

pub mod hosts;

/// A run to start.
pub struct Mpirun {
    command: Command,
    timeout: Duration,
}

/// Status and output of a finished run.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub seconds: f64,
}

impl Mpirun {
    /// Prepares `mpirun -n RANKS hpml`.
    pub fn ranks(ranks: usize) -> Mpirun {
        Mpirun::program(ranks, [env!("CARGO_BIN_EXE_hpml")])
    }

    /// Prepares `mpirun -n RANKS PROGRAM`, a program with arguments.
    pub fn program<'a>(ranks: usize, program: impl IntoIterator<Item = &'a str>) -> Mpirun {
        let mut command = launcher();
        command.args(["-n", &ranks.to_string()]).args(program);
        Mpirun::command(command)
    }

    /// Prepares a run of any command.
    pub fn command(mut command: Command) -> Mpirun {
        command.env("OMP_WAIT_POLICY", "passive"); // other tests' ranks run on the same cores
        Mpirun { command, timeout: Duration::from_secs(120) }
    }

    /// Prepares `hpml` without a launcher.
    pub fn alone() -> Mpirun {
        Mpirun::command(Command::new(env!("CARGO_BIN_EXE_hpml")))
    }

    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Mpirun {
        self.command.args(args);
        self
    }

    pub fn arg(self, arg: &str) -> Mpirun {
        self.args([arg])
    }

    pub fn folder(mut self, folder: &Path) -> Mpirun {
        self.command.current_dir(folder);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Mpirun {
        self.command.env(name, value);
        self
    }

    pub fn without_env(mut self, name: &str) -> Mpirun {
        self.command.env_remove(name);
        self
    }

    /// Adds `folder` in front of all places to look for libraries.
    pub fn libraries(self, folder: &Path) -> Mpirun {
        let others = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        self.env("LD_LIBRARY_PATH", &format!("{}:{others}", text(folder)))
    }

    pub fn timeout(mut self, timeout: Duration) -> Mpirun {
        self.timeout = timeout;
        self
    }

    /// Starts the run and leaves it running.
    pub fn spawn(mut self) -> Running {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("mpirun can be started");
        let read = |mut stream: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = stream.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = read(Box::new(child.stdout.take().unwrap()));
        let stderr = read(Box::new(child.stderr.take().unwrap()));
        Running { child, stdout, stderr, started: Instant::now(), timeout: self.timeout }
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// The time-out passes first.
    pub fn run(self) -> Finished {
        self.spawn().wait()
    }
}

/// A run in progress.
pub struct Running {
    pub child: Child,
    stdout: std::thread::JoinHandle<String>,
    stderr: std::thread::JoinHandle<String>,
    started: Instant,
    timeout: Duration,
}

impl Running {
    /// Waits until `happened`.
    ///
    /// # Panics
    /// The run ends or its time-out passes first; the panic shows the run's output.
    pub fn until(mut self, awaited: &str, mut happened: impl FnMut() -> bool) -> Running {
        while !happened() {
            let over = self.child.try_wait().unwrap().is_some() || self.started.elapsed() > self.timeout;
            if over && !happened() {
                let run = self.wait();
                panic!("{}: no {awaited}\n{}\n{}", run.status, run.stdout, run.stderr);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self
    }

    pub fn wait(mut self) -> Finished {
        let status = self.child.wait_timeout(self.timeout.saturating_sub(self.started.elapsed())).unwrap();
        if status.is_none() {
            // mpirun ends its ranks on SIGTERM; SIGKILL would leave them behind.
            kill("TERM", self.child.id());
            let _ = self.child.wait_timeout(Duration::from_secs(10));
            let _ = self.child.kill();
        }
        let (stdout, stderr) = (self.stdout.join().unwrap(), self.stderr.join().unwrap());
        let status = status.unwrap_or_else(|| panic!("no end within {:?}\n{stdout}\n{stderr}", self.timeout));
        Finished { status, stdout, stderr, seconds: self.started.elapsed().as_secs_f64() }
    }

    /// Process ids of the ranks, by rank; waits until there are `count`.
    pub fn rank_pids(&self, count: usize) -> Vec<u32> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut ranks: Vec<(usize, u32)> =
                descendants(self.child.id()).into_iter().filter_map(|pid| Some((rank_of(pid)?, pid))).collect();
            if ranks.len() == count {
                ranks.sort();
                return ranks.into_iter().map(|(_, pid)| pid).collect();
            }
            assert!(Instant::now() < deadline, "{count} ranks did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The launcher of the MPI on the PATH, with the settings that its kind needs: `scripts/mpirun`.
pub fn launcher() -> Command {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/mpirun"))
}

/// Whether this process may make a namespace by `unshare OPTION`; tells that the test `name` is left out if not.
pub fn may_unshare(option: &str, name: &str) -> bool {
    let may = Command::new("unshare").args([option, "true"]).output().is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("{name}: left out: no right to unshare {option}");
    }
    may
}

/// Whether the output of `mpirun --version` contains this text.
fn mpirun_says(words: &str) -> bool {
    static VERSION: OnceLock<String> = OnceLock::new();
    let ask = || Command::new("mpirun").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    VERSION.get_or_init(|| String::from_utf8_lossy(&ask()).into_owned()).contains(words)
}

/// Whether the launcher is Intel MPI's.
pub fn is_intel_mpi() -> bool {
    mpirun_says("Intel(R) MPI")
}

/// Whether the launcher is Open MPI's; prints otherwise that `test` is left out.
pub fn is_open_mpi(test: &str) -> bool {
    let is = mpirun_says("Open MPI") || mpirun_says("Open RTE");
    if !is {
        eprintln!("{test}: left out: this MPI is not Open MPI");
    }
    is
}

/// Descendants of a process: some launchers start ranks through another process.
fn descendants(parent: u32) -> Vec<u32> {
    children(parent).flat_map(|pid| std::iter::once(pid).chain(descendants(pid))).collect()
}

fn children(parent: u32) -> impl Iterator<Item = u32> {
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(move |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{parent}"))
    })
}

/// Variables that hold a process's rank, by launcher.
const RANK: [&str; 2] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"];

fn rank_of(pid: u32) -> Option<usize> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|&byte| byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok());
    variables
        .find_map(|variable| RANK.iter().find_map(|name| variable.strip_prefix(name)?.strip_prefix('=')))?
        .parse()
        .ok()
}

impl Finished {
    /// Asserts success and returns self, for chaining.
    pub fn succeeded(self) -> Finished {
        assert!(self.status.success(), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Lines of stderr in which hpml itself reports an error.
    pub fn messages(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| line.starts_with("hpml: ")).collect()
    }
}

/// A printed text with the notes of its tables, which are wrapped, in one line each.
pub fn unwrapped(text: &str) -> String {
    text.replace("\n# ", " ")
}

/// Builds the library `source` of `tests/fixtures` in `folder`, to be loaded before all others.
pub fn preloaded(folder: &Path, source: &str) -> PathBuf {
    let library = folder.join(source).with_extension("so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(source);
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(built.expect("a C compiler, which building hpml needs too").success());
    library
}

/// A folder that is removed when the test ends.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Folder of CIFAR-10's binary files from `HPML_CIFAR10`; prints that `test` is left out if the variable is not set.
pub fn cifar10(test: &str) -> Option<PathBuf> {
    match std::env::var_os("HPML_CIFAR10") {
        Some(folder) => Some(folder.into()),
        None => {
            eprintln!("{test}: left out: set HPML_CIFAR10 to the folder of CIFAR-10's binary files");
            None
        }
    }
}

/// Writes a data set in CIFAR-10's layout whose images are a function of the label: six files of 10,000 records.
pub fn write_fake_cifar10(folder: &Path) {
    let mut records = Vec::with_capacity(10_000 * 3073);
    for index in 0..10_000usize {
        let label = index % 10;
        records.push(label as u8);
        records.extend((0..3072).map(|byte| ((label * 25 + byte % 7 + index % 5) % 256) as u8));
    }
    for name in (1..=5).map(|i| format!("data_batch_{i}.bin")).chain(["test_batch.bin".into()]) {
        std::fs::write(folder.join(name), &records).unwrap();
    }
}

/// Reads one float64 (or convertible) column of a run file.
pub fn column(file: &Path, name: &str) -> Vec<f64> {
    let file = hdf5::File::open(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    file.dataset(name).unwrap_or_else(|error| panic!("{name}: {error}")).read_raw().unwrap()
}

/// Asserts that in each of these `rows` of `/steps`, measured in profile mode, the parts lie within the step one after the other and,
/// in the typical row, leave nothing out: between two parts the system may give the core to others.
pub fn assert_parts_add_up(file: &Path, rows: &[usize]) {
    let parts = ["data", "forward", "backward", "comm_wait", "comm", "optimizer"]
        .map(|part| column(file, &format!("steps/{part}")));
    let step = column(file, "steps/step");
    let mut shares: Vec<f64> =
        rows.iter().map(|&row| parts.iter().map(|part| part[row]).sum::<f64>() / step[row]).collect();
    shares.sort_by(f64::total_cmp);
    assert!(shares[shares.len() - 1] < 1.0 + 1e-5, "{shares:?}");
    assert!(shares[shares.len() / 2] > 0.9, "{shares:?}");
}

/// Whether a run file exists and holds dataset `name`.
pub fn has(file: &Path, name: &str) -> bool {
    file.exists() && hdf5::File::open(file).is_ok_and(|file| file.dataset(name).is_ok())
}

/// Reads one column of texts of a run file.
pub fn texts(file: &Path, name: &str) -> Vec<String> {
    let file = hdf5::File::open(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let dataset = file.dataset(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    dataset.read_raw::<hdf5::types::VarLenUnicode>().unwrap().iter().map(|text| text.as_str().to_owned()).collect()
}

/// Tensors of a checkpoint: name and bits.
pub type Parameters = Vec<(String, Vec<u32>)>;

/// Reads the parameters of a run file, sorted by name: HDF5's own order is that of its heap.
pub fn parameters(file: &Path) -> Parameters {
    let file = hdf5::File::open(file).unwrap();
    let group = file.group("checkpoint").unwrap();
    let mut names = group.member_names().unwrap();
    names.sort();
    let bits =
        |name: &String| group.dataset(name).unwrap().read_raw::<f32>().unwrap().iter().map(|v| v.to_bits()).collect();
    names.iter().map(|name| (name.clone(), bits(name))).collect()
}

/// Folder of a run file's checkpoints.
pub fn checkpoint_folder(run_file: &Path) -> PathBuf {
    PathBuf::from(format!("{}.checkpoints", text(run_file)))
}

/// Checkpoints beside a run file, the oldest first.
pub fn checkpoints(run_file: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(checkpoint_folder(run_file));
    let mut paths: Vec<PathBuf> =
        entries.map(|found| found.flatten().map(|entry| entry.path()).collect()).unwrap_or_default();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "h5")); // no partly written files
    paths.sort();
    paths
}

/// Sends a signal, as in `kill -USR1 PID`.
pub fn kill(signal: &str, pid: u32) {
    // The shell's own: a system without the package procps has no program of that name.
    Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
}

/// Asserts that the run failed with one message, which names all of `named`.
pub fn assert_refused(run: &Finished, named: &[&str]) {
    assert!(!run.status.success(), "{}", run.stdout);
    let messages = run.messages();
    assert_eq!(messages.len(), 1, "one message expected:\n{}", run.stderr);
    for word in named {
        assert!(messages[0].contains(word), "{word} is not named in: {}", messages[0]);
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
