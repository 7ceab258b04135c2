//! The terminal that shows what this process writes to stderr: its own, or that of the launcher, which passes on what its ranks
//! write. A bar goes through stderr in both cases, so that the launcher's words and the ranks' stay in order.

use std::fs::File;
use std::io::{IsTerminal, Result, Write, stderr};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use procfs::process::Process;
use terminal_size::{Height, Width, terminal_size_of};

use crate::sys;

/// Launchers that pass on the bytes of rank 0's stderr as they come, by the names of their programs.
const LAUNCHERS: [&str; 5] = ["mpirun", "orterun", "prterun", "mpiexec", "mpiexec.hydra"];
/// Options by which a launcher changes the lines that it passes on, or sends them elsewhere.
const CHANGING: [&str; 9] =
    ["-tag", "-timestamp", "-output", "-xterm", "-xml", "-l", "-prepend", "-outfile", "-errfile"];
/// Bytes in the pipe to the launcher beyond which no more frames are drawn: a launcher or a terminal that has stopped reading must
/// not stop the training.
const UNREAD: usize = 4096;
/// Time after the beginning of a part in which no bar is drawn: what was printed on stdout before is then passed on, too.
const PAUSE: Duration = Duration::from_millis(300);
/// Columns of a terminal that does not tell.
const COLUMNS: u16 = 80;

/// Terminal at the other end of stderr.
#[derive(Debug, Clone)]
pub(super) struct Terminal {
    /// The launcher's terminal; `None`: stderr is the terminal.
    launchers: Option<Arc<File>>,
    /// Frame that is being drawn, written at once.
    frame: Arc<Mutex<String>>,
    /// Moment before which nothing is drawn.
    from: Instant,
}

impl Terminal {
    /// The terminal that shows stderr; `None` if there is none, or it cannot move its cursor.
    pub fn find() -> Option<Terminal> {
        if std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
            return None;
        }
        let launchers = if stderr().is_terminal() { None } else { Some(Arc::new(of_launcher()?)) };
        Some(Terminal { launchers, frame: Arc::default(), from: Instant::now() })
    }

    /// This terminal for the bar of a part that begins now.
    pub fn of_part(&self) -> Terminal {
        let pause = if self.launchers.is_some() { PAUSE } else { Duration::ZERO };
        Terminal { from: Instant::now() + pause, ..self.clone() }
    }

    fn size(&self) -> Option<(Width, Height)> {
        match &self.launchers {
            Some(terminal) => terminal_size_of(terminal),
            None => terminal_size_of(stderr()),
        }
    }

    fn add(&self, text: &str) -> Result<()> {
        self.frame.lock().expect("no thread panics while it adds a text").push_str(text);
        Ok(())
    }

    fn add_move(&self, n: usize, direction: char) -> Result<()> {
        if n == 0 { Ok(()) } else { self.add(&format!("\x1b[{n}{direction}")) }
    }
}

/// Stderr of the launcher that started this process on this host, if that is a terminal and stderr is a pipe to the launcher.
fn of_launcher() -> Option<File> {
    sys::unread_on_stderr()?;
    let parent = |process: &Process| process.stat().ok().filter(|stat| stat.ppid > 0).map(|stat| stat.ppid);
    let mut process = Process::myself().ok()?;
    loop {
        process = Process::new(parent(&process)?).ok()?;
        // The launcher may have been started by a script of its own name; its own stderr counts.
        if LAUNCHERS.contains(&&*process.stat().ok()?.comm) {
            break;
        }
    }
    if changes_lines(&process.cmdline().ok()?) {
        return None;
    }
    let path = format!("/proc/{}/fd/2", process.pid());
    // A pipe or a FIFO would wait for a writer, and a terminal must not become this process's own.
    let terminal = File::options().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path).ok()?;
    terminal.is_terminal().then_some(terminal)
}

/// Whether the command line of a launcher has an option that changes what it passes on.
fn changes_lines(command: &[String]) -> bool {
    let options =
        command.iter().map(|word| word.strip_prefix("--").map_or_else(|| word.clone(), |name| format!("-{name}")));
    options.into_iter().any(|option| {
        CHANGING.iter().any(|known| match *known {
            "-l" => option == "-l",
            known => option.starts_with(known),
        })
    })
}

impl indicatif::TermLike for Terminal {
    fn width(&self) -> u16 {
        // Not the last column: behind it the cursor is on the next line on some terminals.
        self.size().map_or(COLUMNS, |(Width(width), _)| width).max(2) - 1
    }

    fn height(&self) -> u16 {
        self.size().map_or(24, |(_, Height(height))| height).max(1)
    }

    fn move_cursor_up(&self, n: usize) -> Result<()> {
        self.add_move(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> Result<()> {
        self.add_move(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> Result<()> {
        self.add_move(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> Result<()> {
        self.add_move(n, 'D')
    }

    fn write_line(&self, text: &str) -> Result<()> {
        self.add(&format!("{text}\r\n"))
    }

    fn write_str(&self, text: &str) -> Result<()> {
        self.add(text)
    }

    fn clear_line(&self) -> Result<()> {
        self.add("\r\x1b[2K")
    }

    fn flush(&self) -> Result<()> {
        let frame = std::mem::take(&mut *self.frame.lock().expect("no thread panics while it adds a text"));
        if frame.is_empty() || Instant::now() < self.from || sys::unread_on_stderr().is_some_and(|bytes| bytes > UNREAD)
        {
            return Ok(());
        }
        stderr().write_all(frame.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_mark_lines_are_known_with_one_dash_and_with_two() {
        let command = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for changing in ["mpirun --tag-output -n 2 hpml", "mpirun -timestamp-output hpml", "mpiexec -l -n 2 hpml"] {
            assert!(changes_lines(&command(changing)), "{changing}");
        }
        for plain in ["mpirun -n 2 hpml train --set launch.threads=1", "mpiexec -n 2 -launcher ssh hpml train"] {
            assert!(!changes_lines(&command(plain)), "{plain}");
        }
    }
}
