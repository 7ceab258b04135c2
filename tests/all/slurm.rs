//! The scripts in slurm/ under a real Slurm on four emulated nodes (`tests/lab/slurm.sh`). Needs root and
//! Debian's packages of Slurm; left out elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::common::{is_open_mpi, parameters, texts};
use wait_timeout::ChildExt;

/// Time-out for Slurm to start or to end.
const LAB: Duration = Duration::from_secs(60);
/// Time-out for all jobs together; on two cores they take a minute and a half.
const JOBS: Duration = Duration::from_secs(300);

/// A cluster of four nodes, stopped on drop.
struct Lab {
    /// State of the daemons, in a short path: it holds sockets.
    state: tempfile::TempDir,
    /// Folder that jobs are submitted from, in place of the checkout.
    home: tempfile::TempDir,
    deadline: Instant,
    /// Lock that allows one cluster at a time: its ports are this process's.
    _alone: MutexGuard<'static, ()>,
}

/// Runs a command to its end or for `timeout`. Returns its output, or the failure in words.
fn run(command: &mut Command, timeout: Duration) -> Result<String, String> {
    // Into a file: a daemon that keeps a pipe open would block reading to its end.
    let said = tempfile::NamedTempFile::new().unwrap();
    let stream = || fs::File::options().append(true).open(said.path()).unwrap();
    let child = command.stdin(Stdio::null()).stdout(stream()).stderr(stream()).spawn();
    let mut child = child.map_err(|error| format!("{command:?}: {error}"))?;
    let status = child.wait_timeout(timeout).unwrap();
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let said = fs::read_to_string(said.path()).unwrap();
    match status {
        Some(status) if status.success() => Ok(said),
        Some(status) => Err(format!("{status}: {}", said.trim().replace('\n', "; "))),
        None => Err(format!("no end within {timeout:?}: {}", said.trim().replace('\n', "; "))),
    }
}

impl Lab {
    /// Starts the cluster; `None`, with the reason on stderr, if Slurm does not start.
    fn up(test: &str) -> Option<Lab> {
        if !is_open_mpi(test) {
            return None; // its srun speaks Open MPI's PMIx
        }
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let state = tempfile::Builder::new().prefix("hpml-slurm").tempdir_in("/tmp").unwrap();
        let mut lab = Lab { state, home: crate::common::folder(), deadline: Instant::now(), _alone: alone };
        // A separate port range: another cluster may be up. Below the ports that the system hands out.
        let port = 20_000 + std::process::id() % 1000 * 8;
        if let Err(reason) = lab.script("up", &[&port.to_string()]) {
            eprintln!("{test}: left out: no emulated Slurm (it needs root and Debian's packages): {reason}");
            return None;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::os::unix::fs::symlink(root.join("slurm"), lab.home.path().join("slurm")).unwrap();
        fs::create_dir(lab.home.path().join("runs")).unwrap();
        lab.deadline = Instant::now() + JOBS;
        Some(lab)
    }

    fn script(&self, command: &str, args: &[&str]) -> Result<String, String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/slurm.sh");
        run(Command::new(script).arg(command).arg(self.state.path()).args(args), LAB)
    }

    /// Prepares one of Slurm's commands, in the folder of the jobs.
    fn slurm(&self, command: &str, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(command);
        command.args(args).current_dir(self.home.path());
        command.env("SLURM_CONF", self.state.path().join("slurm.conf")).env("HPML", env!("CARGO_BIN_EXE_hpml"));
        command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
        command.env("OMPI_MCA_mpi_yield_when_idle", "1"); // four jobs at a time on a few cores
        run(&mut command, Duration::from_secs(30))
    }

    /// Submits job `name` on two nodes; returns its id.
    fn submit(&self, launch: &str, name: &str, args: &[&str]) -> String {
        let export = format!("--export=ALL,HPML_LAUNCH={launch}");
        let options = ["--parsable", "--job-name", name, "--nodes=2", "--ntasks-per-node=1", &export];
        let id = self.slurm("sbatch", &[&options[..], args].concat()).unwrap_or_else(|error| panic!("{name}: {error}"));
        id.trim().to_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join("runs").join(name)
    }

    /// Waits until `done`; `awaited` names the event in the message.
    fn wait<T>(&self, awaited: &str, mut done: impl FnMut() -> Option<T>) -> T {
        loop {
            if let Some(value) = done() {
                return value;
            }
            if Instant::now() > self.deadline {
                let queue = self.slurm("scontrol", &["show", "job"]).unwrap_or_default();
                panic!("{awaited}: not within {JOBS:?}\n{queue}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a job (all tasks of an array) has ended; returns the values of `field`.
    fn ended(&self, id: &str, field: &str) -> Vec<String> {
        self.wait(&format!("the end of job {id}"), || {
            let jobs = self.slurm("scontrol", &["show", "job", "--oneliner", id]).ok()?;
            let values = |name: &str| -> Vec<String> {
                let prefix = format!("{name}=");
                jobs.split_whitespace().filter_map(|word| word.strip_prefix(&prefix)).map(str::to_owned).collect()
            };
            // A job that queues itself again appears ended for a moment.
            let over = ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"];
            let states = values("JobState");
            (!states.is_empty() && states.iter().all(|state| over.contains(&state.as_str()))).then(|| values(field))
        })
    }

    fn completed(&self, id: &str) {
        let states = self.ended(id, "JobState");
        assert!(states.iter().all(|state| state == "COMPLETED"), "job {id}: {states:?}\n{}", self.logs());
    }

    fn logs(&self) -> String {
        let files = fs::read_dir(self.home.path().join("runs")).unwrap().map(|entry| entry.unwrap().path());
        let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.map(|path| format!("{}:\n{}\n", path.display(), fs::read_to_string(&path).unwrap_or_default())).collect()
    }

    /// Process ids of a job's ranks.
    fn ranks(&self, id: &str) -> Vec<u32> {
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let wanted = [format!("SLURM_JOB_ID={id}"), format!("SLURM_CONF={}/slurm.conf", self.state.path().display())];
        let is_rank = |pid: &u32| {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let has = |text: &String| environment.split(|byte| *byte == 0).any(|variable| variable == text.as_bytes());
            program == fs::canonicalize(env!("CARGO_BIN_EXE_hpml")).unwrap() && wanted.iter().all(has)
        };
        pids.filter(is_rank).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.script("down", &[]);
    }
}

fn kill(signal: &str, pids: &[u32]) {
    pids.iter().for_each(|&pid| crate::common::kill(signal, pid));
}

/// Whether SIGUSR1 is pending for this process.
fn has_usr1(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap_or_default();
    u64::from_str_radix(pending.trim(), 16).unwrap_or(0) & 1 << (libc::SIGUSR1 - 1) != 0
}

#[test]
fn every_script_runs_and_what_is_cut_short_goes_on() {
    let Some(lab) = Lab::up("every_script_runs_and_what_is_cut_short_goes_on") else { return };
    let config = "[train]\nepochs = 8\n[data]\ntrain_samples = 2000\ntest_samples = 200\n[launch]\nthreads = 1\n";
    fs::write(lab.home.path().join("small.toml"), config).unwrap();
    let runs = "small.toml --set train.lr=0.01\nsmall.toml --set train.lr=0.02 --set train.epochs=1\n";
    fs::write(lab.home.path().join("runs.txt"), runs).unwrap();

    // One training, run four times: by srun and by mpirun, uncut and cut.
    let srun = lab.submit("srun", "srun", &["slurm/train.sbatch", "small.toml"]);
    let limit = ["--time=1", "--signal=B:USR1@20", "slurm/chain.sbatch", "small.toml"];
    let chain = lab.submit("srun", "chain", &limit);
    let chain2 = lab.submit("mpirun", "chain2", &["--time=10", "slurm/chain.sbatch", "small.toml"]);
    let after = format!("--dependency=afterok:{srun}:{chain}:{chain2}");
    let files = format!("runs/srun-{srun}.h5 runs/chain*-[0-9]*.h5");
    let report = ["--parsable", "--kill-on-invalid-dep=yes", &after, "slurm/report.sbatch", &files];
    let report = lab.slurm("sbatch", &report).unwrap().trim().to_owned();

    // The ranks of the first chain are stopped, so that the time limit ends it in the midst of the training, however fast
    // the machine is. Slurm checks limits every 30 s.
    let first = lab.file(&format!("chain-{chain}.h5"));
    lab.wait("the first epoch", || first.exists().then_some(()));
    let ranks = lab.ranks(&chain);
    assert_eq!(ranks.len(), 2, "{}", lab.logs());
    kill("STOP", &ranks);
    // The shell of the second one gets at once the signal that `--signal=B:USR1` sends before the limit.
    let second = lab.file(&format!("chain2-{chain2}.h5"));
    lab.wait("the first epoch", || second.exists().then_some(()));
    lab.slurm("scancel", &["--batch", "--signal=USR1", &chain2]).unwrap();

    let mpirun = lab.submit("mpirun", "mpirun", &["slurm/train.sbatch", "small.toml"]);
    let array = ["--nodes=1", "--array=0-1", "slurm/array.sbatch", "runs.txt", "--", "--set", "data.train_samples=200"];
    let array = lab.submit("srun", "array", &array);
    let sweep = [
        "slurm/sweep.sbatch",
        "--set",
        "sweep.batch_per_rank=[8]",
        "--set",
        "sweep.seconds=0.2",
        "--set",
        "sweep.rounds=1",
        "--set",
        "data.train_samples=400",
    ];
    let sweep = lab.submit("srun", "sweep", &sweep);
    // A lost rank ends the other, and both begin again.
    let lost = lab.submit("srun", "lost", &["--time=10", "slurm/chain.sbatch", "small.toml"]);
    let third = lab.file(&format!("lost-{lost}.h5"));
    lab.wait("the first epoch", || third.exists().then_some(()));
    kill("KILL", &lab.ranks(&lost)[..1]);
    // A failure that a restart would repeat is not queued again.
    let wrong = lab.submit("srun", "wrong", &["slurm/chain.sbatch", "none.toml"]);
    assert_eq!(lab.ended(&wrong, "JobState"), ["FAILED"]);
    assert_eq!(lab.ended(&wrong, "Restarts"), ["0"]);

    lab.wait("USR1 before the time limit", || ranks.iter().any(|&pid| has_usr1(pid)).then_some(()));
    kill("CONT", &ranks);

    for id in [&srun, &mpirun, &array, &sweep, &chain2, &chain, &lost, &report] {
        lab.completed(id);
    }
    for id in [&chain, &chain2, &lost] {
        assert_ne!(lab.ended(id, "Restarts"), ["0"], "{}", lab.logs());
    }
    let uncut = lab.file(&format!("srun-{srun}.h5"));
    let hosts = texts(&uncut, "environment/host");
    assert!(hosts.len() == 2 && hosts[0] != hosts[1], "{hosts:?}");
    let others = [("mpirun", &mpirun), ("chain", &chain), ("chain2", &chain2), ("lost", &lost)];
    for name in others.map(|(script, id)| format!("{script}-{id}")) {
        let other = lab.file(&format!("{name}.h5"));
        let checksums = |file: &Path| texts(file, "epochs/parameter_checksum");
        assert_eq!(checksums(&uncut), checksums(&other), "{name}");
        assert_eq!(parameters(&uncut), parameters(&other), "{name}");
    }
    for (task, epochs) in [(0, 8), (1, 1)] {
        let file = lab.file(&format!("array-{array}-{task}.h5"));
        assert_eq!(texts(&file, "epochs/parameter_checksum").len(), epochs);
    }
    let written = |name: String| fs::read_to_string(lab.file(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(written(format!("sweep-{sweep}.html")).contains("<svg"));
    let page = written(format!("report-{report}/report.html"));
    for name in [&srun, &chain, &chain2] {
        assert!(page.contains(&format!("-{name}")), "{name} is not in the report");
        assert!(!written(format!("report-{report}/report.md")).is_empty());
    }
    assert_eq!(written(format!("report-{report}/chain-{chain}.csv")).lines().count(), 1 + 8);
}

/// A node that loses power in the middle of a training, long before Slurm notices: the same job goes on with the others.
#[test]
fn a_lost_node_costs_no_queue_wait_and_keeps_the_global_batch() {
    let Some(lab) = Lab::up("a_lost_node_costs_no_queue_wait_and_keeps_the_global_batch") else { return };
    let config = "[train]\nepochs = 40\nbatch_per_rank = 12\n[data]\ntrain_samples = 720\ntest_samples = 36\n\
                  [launch]\nthreads = 1\n[checkpoint]\nevery_epochs = 1\n";
    fs::write(lab.home.path().join("small.toml"), config).unwrap();
    let export = "--export=ALL,HPML_LAUNCH=srun,HPML_SILENCE=5";
    let options = ["--parsable", "--job-name=elastic", "--nodes=3", "--ntasks-per-node=1", export];
    let id = lab.slurm("sbatch", &[&options[..], &["slurm/train.sbatch", "small.toml"]].concat()).unwrap();
    let id = id.trim();
    let file = lab.file(&format!("elastic-{id}.h5"));
    let checkpoints = crate::common::checkpoint_folder(&file);
    lab.wait("the first checkpoint", || checkpoints.exists().then_some(()));
    // All ranks stop first, so that the training is not over before its node, however fast the machine is.
    kill("STOP", &lab.ranks(id));
    lab.script("fail", &["n2"]).unwrap();
    kill("CONT", &lab.ranks(id));

    // Until the node is DOWN, Slurm waits for its word that the job has ended there.
    lab.wait("the end of the training", || {
        let job = lab.slurm("scontrol", &["show", "job", id]).ok()?;
        job.contains("JobState=COMPLETING").then_some(())
    });
    lab.slurm("scontrol", &["update", "nodename=n2", "state=down", "reason=lost"]).unwrap();
    lab.completed(id);
    assert_eq!(lab.ended(id, "Restarts"), ["0"]);
    let log = fs::read_to_string(lab.file(&format!("elastic-{id}.log"))).unwrap();
    let said: Vec<&str> = log.lines().filter(|line| line.starts_with("slurm:")).collect();
    assert!(said.len() == 1 && said[0].contains("n2 lost; restart 1 on n1 n3 (2 of 3 nodes, 2 ranks)"), "{log}");
    assert!(log.contains("train.batch_per_rank = 18, so that the global batch stays 36"), "{log}");
    assert_eq!(texts(&file, "environment/host").len(), 2);
    assert_eq!(texts(&file, "epochs/parameter_checksum").len(), 40);
}

/// How often `elastic` starts a training again, and on what. Stand-ins for Slurm and for the ranks; needs no Slurm.
#[test]
fn a_training_is_started_again_only_while_that_helps() {
    let slurm = concat!(env!("CARGO_MANIFEST_DIR"), "/slurm");
    let folder = crate::common::folder();
    let hpml = folder.path().join("hpml");
    fs::write(&hpml, "#!/bin/sh\necho 'train.batch_per_rank = 12'; echo 'world_size 6'\n").unwrap();
    fs::set_permissions(&hpml, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // (statuses of the starts, those that are saved a step later, nodes left) -> (status, starts, a word of the last message)
    for (statuses, saves, left, expected, starts, word) in [
        ("69 0", "", "a b c", 0, 2, "a rank lost; restart 1 on a b c (3 of 3 nodes, 6 ranks)"),
        ("75", "", "a b", 75, 1, ""),
        ("1", "", "a b c", 1, 1, ""), // an error of hpml
        ("1 0", "1", "a c", 0, 2, "b lost; restart 1 on a c (2 of 3 nodes, 3 ranks) from step 1"), // of a launcher
        ("69 0", "", "a c", 69, 1, "no checkpoint yet"),
        ("137 0", "1", "b c", 0, 2, "a lost; restart 1 on b (1 of 3 nodes, 3 ranks)"), // 5 ranks do not divide 72
        ("9 9 9 9 9 9 9", "", "a b c", 9, 4, "4 starts in a row"),
        ("9 9 9 9 9 9 0", "1 3 5", "a b c", 0, 7, "restart 6"),
        ("205", "1", "", 205, 1, "no node answers"),
    ] {
        let runs = tempfile::tempdir_in(folder.path()).unwrap();
        let script = format!(
            "set -euo pipefail; source {slurm}/env.sh; source {slurm}/elastic.sh; starts=0 statuses=({statuses})
             scontrol() {{ tr , '\n' <<<\"$3\"; }}; end_steps() {{ :; }}; that_answer() {{ echo '{left}'; }}
             launch() {{
                 terminated=no starts=$((starts + 1))
                 case ' {saves} ' in *\" $starts \"*) mkdir -p r.h5.checkpoints; : >r.h5.checkpoints/step-000$starts-x.h5 ;; esac
                 return ${{statuses[starts - 1]}}
             }}
             status=0; elastic train x.toml --resume auto --out r.h5 || status=$?; echo \"$status after $starts\""
        );
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).env("HPML", &hpml).current_dir(runs.path());
        bash.envs([("SLURM_JOB_NODELIST", "a,b,c"), ("SLURM_TASKS_PER_NODE", "1,3,2")]);
        let said = run(&mut bash, Duration::from_secs(60)).unwrap();
        assert!(said.ends_with(&format!("{expected} after {starts}\n")), "{statuses}: {said}");
        assert!(said.contains(word) && (!word.is_empty() || !said.contains("slurm:")), "{statuses}: {said}");
    }
}

/// Launchers of MPI libraries differ after a signal; the run file decides. Needs no Slurm.
#[test]
fn a_launchers_status_is_held_against_the_run_file() {
    let folder = crate::common::folder();
    let hpml = folder.path().join("hpml");
    fs::write(&hpml, "#!/bin/sh\nsed 's/^/  status  /' \"$2\"\n").unwrap();
    fs::set_permissions(&hpml, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for state in ["finished", "unfinished"] {
        fs::write(folder.path().join(state), state).unwrap();
    }
    let env = concat!(env!("CARGO_MANIFEST_DIR"), "/slurm/env.sh");
    for (status, cut, file, expected) in [
        (0, "no", "finished", 0),
        (0, "yes", "finished", 0),    // the signal came too late
        (0, "yes", "unfinished", 75), // MPICH 4.0's launcher, in some runs
        (0, "yes", "none", 75),
        (0, "no", "unfinished", 69),
        (1, "yes", "unfinished", 75), // Open MPI's launcher
        (1, "yes", "finished", 0),
        (1, "no", "unfinished", 1),
        (1, "no", "finished", 1), // a run that was refused
        (75, "yes", "unfinished", 75),
        (9, "no", "unfinished", 9),
        (69, "yes", "unfinished", 69),
    ] {
        let script = format!("source {env}; settle {status} {cut} train x.toml --out {file} --resume auto");
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).env("HPML", &hpml).current_dir(folder.path());
        assert_eq!(bash.status().unwrap().code(), Some(expected), "{status} {cut} {file}");
    }
}

/// Open MPI 4 ends the process itself if srun has no PMIx for it; other libraries, and this one if it does not notice that it is
/// in a step, make a job of one rank of each process.
#[test]
fn tasks_of_srun_that_mpi_does_not_join_are_refused() {
    let Some(lab) = Lab::up("tasks_of_srun_that_mpi_does_not_join_are_refused") else { return };
    let srun = |mpi: &str, command: &str| {
        let script =
            format!("exec {command} --set train.max_steps=2 --set data.test_samples=20 --set launch.threads=1");
        lab.slurm("srun", &["--nodes=2", "--ntasks-per-node=1", mpi, "bash", "-c", &script])
    };
    let train = "$HPML train --out runs/$SLURM_PROCID.h5";
    let unseen = format!("env -u SLURM_NODELIST {train}");
    let refused = |mpi: &str, command: &str, named: &[&str]| {
        let message = srun(mpi, command).unwrap_err();
        let said: Vec<&str> = message.split("hpml: ").skip(1).collect();
        let [said] = said[..] else { panic!("one message expected: {message}") };
        let said = said.split("; ").take(2).collect::<Vec<_>>().join("; "); // without the other ranks' messages
        for word in named {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(fs::read_dir(lab.home.path().join("runs")).unwrap().count(), 0);
    };
    refused("--mpi=none", train, &["PMIX_RANK", "Open MPI", "srun --mpi=pmix"]);
    refused("--mpi=none", &unseen, &["SLURM_STEP_NUM_TASKS = 2", "MPI joined none", "srun --mpi=pmix"]);
    refused("--mpi=pmi2", &unseen, &["PMI_SIZE = 2", "srun --mpi=pmix"]);

    srun("--mpi=pmix", "$HPML train --out runs/joined.h5").unwrap();
    assert_eq!(texts(&lab.file("joined.h5"), "environment/host").len(), 2);
    srun("--mpi=none", &format!("{unseen} --set launch.allow_singletons=true")).unwrap();
    for rank in ["0", "1"] {
        assert_eq!(texts(&lab.file(&format!("{rank}.h5")), "environment/host").len(), 1);
    }
    // One process of a batch script that has more tasks, which is no step.
    let alone = "$HPML train --out runs/alone.h5 --set train.max_steps=2 --set data.test_samples=20";
    let id = lab.slurm("sbatch", &["--parsable", "--ntasks=2", "--output=runs/alone.log", "--wrap", alone]).unwrap();
    lab.completed(id.trim());
    assert_eq!(texts(&lab.file("alone.h5"), "environment/host").len(), 1);
}
