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

/// Number of bytes in the pipe on stderr that its reader has not read; `None` if stderr is no pipe.
pub fn unread_on_stderr() -> Option<usize> {
    let mut about = std::mem::MaybeUninit::<libc::stat>::uninit();
    let mut bytes: libc::c_int = 0;
    // SAFETY: the calls only write what they are given; `about` is read after success.
    unsafe {
        let is_pipe = libc::fstat(libc::STDERR_FILENO, about.as_mut_ptr()) == 0
            && about.assume_init().st_mode & libc::S_IFMT == libc::S_IFIFO;
        let is_known = is_pipe && libc::ioctl(libc::STDERR_FILENO, libc::FIONREAD, &raw mut bytes) == 0;
        is_known.then_some(bytes as usize)
    }
}
