//! Messages for people on stderr. In: a text. Out: one write for the whole of it, so that no other rank's words come between
//! (a pipe takes up to 4096 bytes as a whole), and none is lost when the launcher ends the job. Results go to stdout.

use std::fmt::Display;
use std::io::{Result, Write, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest time that a launcher is given to read a message, and the time that it then has to pass it on.
const READ: Duration = Duration::from_secs(1);
const PASSED_ON: Duration = Duration::from_millis(100);
/// Poll interval.
const POLL: Duration = Duration::from_millis(10);

/// Longest time that a launcher is given to read the end of a bar, and the time that it then has to pass it on.
const BAR_READ: Duration = Duration::from_millis(200);
const BAR_PASSED_ON: Duration = Duration::from_millis(2);

/// Whether the last line of the terminal is a bar, which a message takes the place of; it is drawn again below.
static BAR: AtomicBool = AtomicBool::new(false);

/// Control characters before a message where there is a bar: back to the line's beginning, and clear it.
const CLEAR_LINE: &str = "\r\x1b[2K";

/// Publishes whether the last line of the terminal is a bar.
pub fn set_bar(is_drawn: bool) {
    BAR.store(is_drawn, Ordering::Relaxed);
}

/// What comes before a message.
fn before() -> &'static str {
    if BAR.load(Ordering::Relaxed) { CLEAR_LINE } else { "" }
}

/// Writes `text` and the end of its line in one piece. (`eprintln!` writes each part of its format by itself.)
pub fn print(text: impl Display) {
    // Where stderr is closed there is nobody to report that to.
    let _ = stderr().write_all(format!("{}{text}\n", before()).as_bytes());
}

/// Waits until the reader of a pipe on stderr has read all of it, for a second at most, and a moment more: before a call that
/// ends the whole job. MPICH's launcher throws away what it has not yet passed on when a rank calls MPI_Abort.
pub fn wait_until_read() {
    wait(READ, POLL, PASSED_ON);
}

/// Waits until the launcher has passed on the end of a bar, 0.2 s at most: what goes to stdout then comes on the line below.
pub fn settle() {
    wait(BAR_READ, BAR_PASSED_ON, BAR_PASSED_ON);
}

fn wait(most: Duration, poll: Duration, passed_on: Duration) {
    if crate::sys::unread_on_stderr().is_none() {
        return; // a file or a terminal: there already
    }
    let mut waited = Duration::ZERO;
    while crate::sys::unread_on_stderr().is_some_and(|bytes| bytes > 0) && waited < most {
        std::thread::sleep(poll);
        waited += poll;
    }
    std::thread::sleep(passed_on);
}

/// Stderr for the logger, which hands over each line as a whole.
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        // The logger hands over whole lines.
        stderr().write_all(&[before().as_bytes(), bytes].concat()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        stderr().flush()
    }
}
