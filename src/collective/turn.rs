//! The check that one thread of a process calls MPI at a time, which is all that MPI_THREAD_SERIALIZED allows, and always one
//! and the same thread where MPI grants less.
//!
//! A turn that has to wait would hide the mistake: two threads then enter collectives in an order that differs from rank to
//! rank. So a second caller is refused instead. MPI_Abort alone is exempt: the watchdog calls it while another thread hangs in
//! a collective, which is its purpose.

use std::fmt::Display;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use super::progress;
use crate::units::format_bytes;

/// The right of this process's threads to call MPI.
struct Turns {
    /// Whether a thread is inside MPI.
    taken: AtomicBool,
    /// The only thread that may call MPI; unset where MPI lets threads take turns.
    only: OnceLock<ThreadId>,
}

/// Turns of this process. Global as MPI itself is: all communicators share it.
static OF_PROCESS: Turns = Turns::new();

/// The right to call MPI, until it is dropped.
pub(super) struct Turn<'a>(&'a Turns);

/// Takes the turn of this process to call MPI for `purpose`.
///
/// # Panics
/// Panics if a call of another thread, or one around this one, has not returned, or if MPI allows only another thread.
pub(super) fn take(purpose: impl Display) -> Turn<'static> {
    OF_PROCESS.take(purpose)
}

/// Lets this thread alone call MPI, for the rest of the process.
pub(super) fn bind_to_this_thread() {
    OF_PROCESS.bind_to_this_thread();
}

impl Turns {
    const fn new() -> Turns {
        Turns { taken: AtomicBool::new(false), only: OnceLock::new() }
    }

    fn take(&self, purpose: impl Display) -> Turn<'_> {
        if self.only.get().is_some_and(|only| *only != std::thread::current().id()) {
            panic!(
                "{} calls MPI ({purpose}), which grants less than MPI_THREAD_SERIALIZED: the thread that initialized it \
                 must make all calls",
                this_thread()
            );
        }
        if self.taken.swap(true, Ordering::Acquire) {
            refuse(&purpose);
        }
        Turn(self)
    }

    fn bind_to_this_thread(&self) {
        let _ = self.only.set(std::thread::current().id()); // MPI is initialized once
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

fn this_thread() -> String {
    format!("thread {}", std::thread::current().name().unwrap_or("without a name"))
}

#[cold]
fn refuse(purpose: &dyn Display) -> ! {
    let inside = match progress::here().waits_for {
        Some((kind, bytes)) => format!("in a collective of {} ({})", kind.as_str(), format_bytes(bytes)),
        None => "in a call of MPI".into(),
    };
    panic!(
        "{} calls MPI ({purpose}) while this rank is {inside}: its threads must take turns (MPI_THREAD_SERIALIZED); \
         wait for the communication thread (Worker::wait) first",
        this_thread()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message with which a thread of this name is refused.
    fn refusal(turns: &Turns, name: &str) -> String {
        let panic = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(name.into());
            thread.spawn_scoped(scope, || drop(turns.take("buffers"))).unwrap().join()
        });
        *panic.expect_err("it is refused").downcast().unwrap()
    }

    #[test]
    fn a_second_call_at_the_same_time_is_refused_by_name_and_one_after_the_other_is_not() {
        let turns = Turns::new();
        drop(turns.take("gradients"));
        let first = turns.take("gradients");
        let message = refusal(&turns, "other");
        assert!(message.starts_with("thread other calls MPI (buffers) while this rank is in "), "{message}");
        drop(first);
        std::thread::scope(|scope| scope.spawn(|| drop(turns.take("buffers"))).join().unwrap());
    }

    #[test]
    fn where_one_thread_alone_may_call_mpi_another_is_refused() {
        let turns = Turns::new();
        turns.bind_to_this_thread();
        drop(turns.take("gradients"));
        let message = refusal(&turns, "other");
        assert!(message.contains("thread other") && message.contains("MPI_THREAD_SERIALIZED"), "{message}");
        drop(turns.take("gradients"));
    }
}
