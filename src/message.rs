//! Messages for people on stderr. In: a text. Out: one write for the whole of it, so that no other rank's words come between
//! (a pipe takes up to 4096 bytes as a whole), and none is lost when the launcher ends the job. Results go to stdout.

use std::fmt::Display;
use std::io::{Result, Write, stderr};
use std::time::Duration;

/// Longest time that a launcher is given to read a message, and the time that it then has to pass it on.
const READ: Duration = Duration::from_secs(1);
const PASSED_ON: Duration = Duration::from_millis(100);
/// Poll interval.
const POLL: Duration = Duration::from_millis(10);

/// Writes `text` and the end of its line in one piece. (`eprintln!` writes each part of its format by itself.)
pub fn print(text: impl Display) {
    // Where stderr is closed there is nobody to report that to.
    let _ = stderr().write_all(format!("{text}\n").as_bytes());
}

/// Waits until the reader of a pipe on stderr has read all of it, for a second at most, and a moment more: before a call that
/// ends the whole job. MPICH's launcher throws away what it has not yet passed on when a rank calls MPI_Abort.
pub fn wait_until_read() {
    if crate::sys::unread_on_stderr().is_none() {
        return; // a file or a terminal: there already
    }
    let mut waited = Duration::ZERO;
    while crate::sys::unread_on_stderr().is_some_and(|bytes| bytes > 0) && waited < READ {
        std::thread::sleep(POLL);
        waited += POLL;
    }
    std::thread::sleep(PASSED_ON);
}

/// Stderr for the logger, which hands over each line as a whole.
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        stderr().write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        stderr().flush()
    }
}
