//! The log on stderr.

use crate::message;

/// Starts the log on stderr, each line with the rank: level info on rank 0, warn on the others, or what `RUST_LOG` says.
pub(super) fn start(rank: usize) {
    use std::io::Write;
    let level = if rank == 0 { "info" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format(move |out, record| writeln!(out, "[rank {rank}] {}: {}", record.level(), record.args()))
        .target(env_logger::Target::Pipe(Box::new(message::Lines)))
        .init();
}
