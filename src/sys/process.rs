//! This process, its parent and its environment.

/// Ends this process at once, without destructors or exit handlers, which may hang.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: only ends the process.
    unsafe { libc::_exit(status) }
}

/// Sends SIGTERM to this process's parent.
pub fn terminate_parent() {
    // SAFETY: takes numbers.
    unsafe { libc::kill(libc::getppid(), libc::SIGTERM) };
}

/// Sets the environment variable `name` to `value` unless the user has set it. Call before any other thread runs.
pub fn default_environment(name: &str, value: &str) {
    if std::env::var_os(name).is_none() {
        // SAFETY: single-threaded at this point (first statements of `main`), so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(name, value) }
    }
}
