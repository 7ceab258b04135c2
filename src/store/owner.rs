//! Ownership of an output: a small file beside it, the mark, made at the start and removed at the end, so that no two jobs
//! write the same output.
//!
//! A mark appears whole, by a rename that replaces nothing, which network file systems do atomically too. Whether its owner
//! is alive is read from the process table if both processes share it (same boot, same process namespace), otherwise from the
//! mark's time of modification, which the owner renews every [`BEAT`]. Both times that are compared are the file system's, so
//! that the hosts' clocks do not matter. An owner that was killed blocks no job on its own host, and jobs on other hosts for
//! at most [`SILENT`]. File locks are not needed.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::atomic::{beside, folder_of, persist};
use crate::error::{Error, Result};

/// Time between two renewals of a mark.
const BEAT: Duration = Duration::from_secs(2);
/// Age at which a mark of another host counts as that of a dead job. Many beats long, because file systems stall.
const SILENT: Duration = Duration::from_secs(30);
/// Poll interval for a mark of another host.
const LOOK: Duration = Duration::from_millis(500);
/// Time to wait while another process removes a mark.
const REMOVAL: Duration = Duration::from_millis(5);
/// Attempts to make a mark while others make and remove theirs.
const ATTEMPTS: usize = 100;

/// Description by which other processes recognize the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// UUID of this mark.
    token: String,
    host: String,
    pid: u32,
    /// Start of the process in clock ticks since boot, since process ids are reused.
    started: u64,
    boot: String,
    pid_namespace: String,
    slurm_job_id: String,
}

impl Mark {
    fn of_this_process() -> Mark {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = std::process::id();
        Mark {
            token: uuid::Uuid::new_v4().to_string(),
            host: sysinfo::System::host_name().unwrap_or_else(|| "localhost".into()),
            pid,
            started: process_start(pid).unwrap_or_default(),
            boot: boot.trim().to_owned(),
            pid_namespace: namespace.to_string_lossy().into_owned(),
            slurm_job_id: std::env::var("SLURM_JOB_ID").unwrap_or_default(),
        }
    }

    /// Formats the text of the file, whose first byte is rewritten at every beat.
    fn to_text(&self) -> String {
        let values = toml::to_string(self).expect("a flat struct has a TOML form");
        format!("# hpml: the job that writes the output of this name. It removes this file when it ends.\n{values}")
    }

    /// Parses the text of a mark. A text that is none gives a mark of an unknown host with the text as its token.
    fn from_text(text: &str) -> Mark {
        let unknown = |_| Mark {
            token: text.to_owned(),
            host: "an unknown host".into(),
            pid: 0,
            started: 0,
            boot: String::new(),
            pid_namespace: String::new(),
            slurm_job_id: String::new(),
        };
        toml::from_str(text).unwrap_or_else(unknown)
    }

    /// Whether the mark's process is alive; `None` if it cannot be seen from `here`.
    fn is_alive(&self, here: &Mark) -> Option<bool> {
        let visible = !here.boot.is_empty() && (&self.boot, &self.pid_namespace) == (&here.boot, &here.pid_namespace);
        visible.then(|| process_start(self.pid) == Some(self.started))
    }

    fn describe(&self) -> String {
        let job = match self.slurm_job_id.as_str() {
            "" => String::new(),
            id => format!(" (Slurm job {id})"),
        };
        format!("process {} on {}{job}", self.pid, self.host)
    }
}

/// Start of a running process, in clock ticks since boot; `None` if it has ended.
fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok()).flatten()
}

/// Attempt to own an output.
pub struct Claim {
    target: PathBuf,
    mark_path: PathBuf,
    force: bool,
    /// Mark of another host, with its time of modification when it was first seen.
    watched: Option<(Mark, SystemTime)>,
}

/// Outcome of an attempt.
pub enum Attempt {
    /// The output belongs to this process.
    Owned(Owner),
    /// A job on another host may be alive; its description.
    Waiting(String),
}

impl Claim {
    /// Prepares to own `path`, or the file that it links to, and creates missing folders. `force` takes it from any owner.
    ///
    /// # Errors
    /// [`Error::Output`] if `path` is no file name or its folder cannot be created.
    pub fn new(path: &Path, force: bool) -> Result<Claim> {
        let cannot = |reason: String| Error::Output { path: path.to_owned(), reason };
        let target = match path.is_symlink() {
            // A rename would replace the link itself.
            true => fs::canonicalize(path).map_err(|error| cannot(format!("dangling link: {error}")))?,
            false => path.to_owned(),
        };
        let name = target.file_name().ok_or_else(|| cannot("it is no file name".into()))?;
        let mark_path = target.with_file_name(format!(".hpml-{}.owner", name.to_string_lossy()));
        let folder = folder_of(&target);
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(|error| cannot(format!("{}: {error}", folder.display())))?;
        }
        Ok(Claim { target, mark_path, force, watched: None })
    }

    /// Tries to own the output, without waiting.
    ///
    /// # Errors
    /// [`Error::OutputOwned`] if a living job writes it, [`Error::Output`] if no mark can be made there.
    pub fn attempt(&mut self) -> Result<Attempt> {
        let own = Mark::of_this_process();
        for _ in 0..ATTEMPTS {
            if self.make(&own)? {
                return Ok(Attempt::Owned(Owner::start(self.target.clone(), self.mark_path.clone(), own)));
            }
            let Some((mark, beaten)) = self.read()? else { continue };
            let owned = || Error::OutputOwned { path: self.target.clone(), owner: mark.describe() };
            match mark.is_alive(&own) {
                _ if self.force => {}
                Some(true) => return Err(owned()),
                Some(false) => {}
                None => {
                    let beats = matches!(&self.watched, Some((known, first)) if *known == mark && *first != beaten);
                    if beats {
                        return Err(owned());
                    }
                    if self.may_live(&mark, beaten, &own)? {
                        let description = mark.describe();
                        if !matches!(&self.watched, Some((known, _)) if *known == mark) {
                            self.watched = Some((mark, beaten));
                        }
                        return Ok(Attempt::Waiting(description));
                    }
                }
            }
            self.remove(&mark, &own)?;
        }
        Err(self.cannot("other jobs keep taking this name: choose another one".into()))
    }

    /// Owns the output, after waiting until it is clear whether an owner on another host is alive.
    ///
    /// # Errors
    /// [`Error::OutputOwned`] or [`Error::Output`], as for [`attempt`](Self::attempt).
    pub fn wait(mut self) -> Result<Owner> {
        loop {
            match self.attempt()? {
                Attempt::Owned(owner) => return Ok(owner),
                Attempt::Waiting(_) => Self::pause(),
            }
        }
    }

    /// Sleeps for the time between two attempts.
    pub fn pause() {
        std::thread::sleep(LOOK);
    }

    /// Owns the output if it has no mark and no file of its name exists; `None` otherwise.
    ///
    /// # Errors
    /// [`Error::Output`] if no mark can be made there.
    pub fn if_new(&self) -> Result<Option<Owner>> {
        let own = Mark::of_this_process();
        if self.target.exists() || !self.make(&own)? {
            return Ok(None);
        }
        let owner = Owner::start(self.target.clone(), self.mark_path.clone(), own);
        // An owner may have finished between the two checks.
        Ok((!self.target.exists()).then_some(owner))
    }

    /// Makes the mark; false if there is one.
    fn make(&self, mark: &Mark) -> Result<bool> {
        make_mark(&self.target, &self.mark_path, mark).map_err(|error| self.cannot(error.to_string()))
    }

    fn read(&self) -> Result<Option<(Mark, SystemTime)>> {
        read_mark(&self.mark_path).map_err(|error| self.cannot(error.to_string()))
    }

    /// Current time of the file system.
    fn now(&self) -> Result<SystemTime> {
        let now = beside(&self.target).and_then(|file| file.as_file().metadata()?.modified());
        now.map_err(|error| self.cannot(error.to_string()))
    }

    /// Removes `mark`, unless another has taken its place. Only one process at a time may do so (`own` names it), or it could
    /// remove the mark of a process that was faster.
    fn remove(&self, mark: &Mark, own: &Mark) -> Result<()> {
        let lock = self.mark_path.with_extension("removal");
        let io = |error: io::Error| self.cannot(error.to_string());
        if !make_mark(&self.target, &lock, own).map_err(io)? {
            match read_mark(&lock).map_err(io)? {
                // Killed within the microseconds that a removal takes.
                Some((other, made)) if !self.may_live(&other, made, own)? => fs::remove_file(&lock).map_err(io)?,
                _ => std::thread::sleep(REMOVAL),
            }
            return Ok(());
        }
        let removed = match read_mark(&self.mark_path) {
            Ok(Some((found, _))) if found == *mark => fs::remove_file(&self.mark_path),
            found => found.map(drop),
        };
        fs::remove_file(&lock).and(removed).map_err(io)
    }

    /// Whether the process of a mark that was renewed at `beaten` may be alive, judged without waiting.
    fn may_live(&self, mark: &Mark, beaten: SystemTime, own: &Mark) -> Result<bool> {
        match mark.is_alive(own) {
            Some(lives) => Ok(lives),
            None => Ok(self.now()?.duration_since(beaten).unwrap_or_default() < SILENT),
        }
    }

    fn cannot(&self, reason: String) -> Error {
        Error::Output { path: self.target.clone(), reason }
    }
}

/// Makes the mark of `target`; false if there is one.
fn make_mark(target: &Path, mark_path: &Path, mark: &Mark) -> io::Result<bool> {
    let mut file = beside(target)?;
    file.write_all(mark.to_text().as_bytes())?;
    match persist(file.into_temp_path(), mark_path, false) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    }
}

/// Reads the mark at `path` and its time of modification; `None` if there is none. Opens the file each time, so that a
/// network file system consults its server.
fn read_mark(path: &Path) -> io::Result<Option<(Mark, SystemTime)>> {
    let mut file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some((Mark::from_text(&text), file.metadata()?.modified()?)))
}

/// Output that this process owns until the value is dropped.
pub struct Owner {
    target: PathBuf,
    mark_path: PathBuf,
    mark: Mark,
    /// Sender whose drop ends the thread.
    stop: Option<Sender<()>>,
    beats: Option<JoinHandle<()>>,
}

impl Owner {
    fn start(target: PathBuf, mark_path: PathBuf, mark: Mark) -> Owner {
        let (stop, stopped) = channel::<()>();
        let (path, own) = (mark_path.clone(), mark.clone());
        let beat = move || {
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                // A renewal that fails is tried again; whether the mark is still this process's is checked before each write.
                let _ = renew(&path, &own);
            }
        };
        let beats = std::thread::Builder::new().name("hpml-owner".into()).spawn(beat);
        Owner { target, mark_path, mark, stop: Some(stop), beats: Some(beats.expect("a thread can be started")) }
    }

    /// Path of the output.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Checks that the output still belongs to this process.
    ///
    /// # Errors
    /// [`Error::OutputLost`] if another job has taken it over, [`Error::Output`] if its mark cannot be read.
    pub fn check(&self) -> Result<()> {
        let cannot = |error: io::Error| Error::Output { path: self.target.clone(), reason: error.to_string() };
        for _ in 0..ATTEMPTS {
            match read_mark(&self.mark_path).map_err(cannot)? {
                Some((mark, _)) if mark.token == self.mark.token => return Ok(()),
                Some((mark, _)) => {
                    return Err(Error::OutputLost { path: self.target.clone(), owner: mark.describe() });
                }
                // The mark was removed, perhaps by a user who cleaned up.
                None => make_mark(&self.target, &self.mark_path, &self.mark).map(drop).map_err(cannot)?,
            }
        }
        Err(cannot(io::Error::other("its mark of ownership (.hpml-NAME.owner) keeps vanishing: leave it there")))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(beats) = self.beats.take() {
            let _ = beats.join();
        }
        if matches!(read_mark(&self.mark_path), Ok(Some((mark, _))) if mark.token == self.mark.token) {
            let _ = fs::remove_file(&self.mark_path);
        }
    }
}

/// Sets the mark's time of modification to the file system's, by rewriting its first byte.
fn renew(path: &Path, own: &Mark) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if Mark::from_text(&text).token == own.token {
        file.write_all_at(&text.as_bytes()[..1], 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(path: &Path, force: bool) -> Result<Owner> {
        Claim::new(path, force)?.wait()
    }

    fn mark_of(path: &Path) -> PathBuf {
        path.with_file_name(format!(".hpml-{}.owner", path.file_name().unwrap().to_string_lossy()))
    }

    /// Writes a mark of another process, this process's mark after `change`.
    fn leave(path: &Path, change: impl FnOnce(&mut Mark)) -> Mark {
        let mut mark = Mark::of_this_process();
        change(&mut mark);
        fs::write(mark_of(path), mark.to_text()).unwrap();
        mark
    }

    fn elsewhere(mark: &mut Mark) {
        (mark.boot, mark.host) = ("another".into(), "node07".into());
    }

    fn age(path: &Path, age: Duration) {
        let file = fs::File::options().write(true).open(mark_of(path)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn a_living_owner_is_named_and_a_dead_one_gives_way_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/run.h5");
        let owner = claim(&path, false).unwrap();
        owner.check().unwrap();
        let message = claim(&path, false).err().unwrap().to_string();
        assert!(
            message.contains("run.h5") && message.contains(&format!("process {}", std::process::id())),
            "{message}"
        );
        assert!(message.contains("--force"), "{message}");
        drop(owner);
        assert!(!mark_of(&path).exists());

        // The process id now belongs to another process.
        leave(&path, |mark| mark.started += 1);
        drop(claim(&path, false).unwrap());
        leave(&path, |mark| mark.pid = u32::MAX);
        drop(claim(&path, false).unwrap());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn another_hosts_owner_lives_while_its_mark_is_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let mark = leave(&path, elsewhere);
        let mut waiting = Claim::new(&path, false).unwrap();
        assert!(matches!(waiting.attempt().unwrap(), Attempt::Waiting(owner) if owner.contains("node07")));
        std::thread::sleep(Duration::from_millis(20));
        renew(&mark_of(&path), &mark).unwrap();
        assert!(matches!(waiting.attempt(), Err(Error::OutputOwned { .. })));

        // Whatever the clocks of the hosts say: what counts is that it is not renewed.
        age(&path, SILENT * 2);
        drop(claim(&path, false).unwrap());
        fs::write(mark_of(&path), "no mark").unwrap();
        assert!(matches!(Claim::new(&path, false).unwrap().attempt().unwrap(), Attempt::Waiting(_)));
        age(&path, SILENT * 2);
        claim(&path, false).unwrap();
    }

    #[test]
    fn the_owner_that_was_forced_out_notices_and_leaves_the_others_mark_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let first = claim(&path, false).unwrap();
        let second = claim(&path, true).unwrap();
        assert!(matches!(first.check(), Err(Error::OutputLost { .. })));
        drop(first);
        second.check().unwrap();
        fs::remove_file(mark_of(&path)).unwrap();
        second.check().unwrap();
        assert!(mark_of(&path).exists());
    }

    #[test]
    fn of_many_that_come_at_once_one_owns_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        for _ in 0..50 {
            leave(&path, |mark| mark.pid = u32::MAX);
            let start = std::sync::Barrier::new(8);
            let claims = || {
                start.wait();
                claim(&path, false)
            };
            let owners: Vec<Owner> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(claims)).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap().ok()).collect()
            });
            let whole = owners.iter().filter(|owner| owner.check().is_ok()).count();
            assert_eq!((owners.len(), whole), (1, 1));
        }
    }

    #[test]
    fn a_new_name_is_one_that_nobody_has_or_marks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let owner = Claim::new(&path, false).unwrap().if_new().unwrap().unwrap();
        assert!(Claim::new(&path, false).unwrap().if_new().unwrap().is_none());
        drop(owner);
        fs::write(&path, "").unwrap();
        assert!(Claim::new(&path, false).unwrap().if_new().unwrap().is_none());
        assert!(!mark_of(&path).exists());
    }
}
