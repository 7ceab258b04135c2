//! The panic hook of a rank.

use crate::collective::Communicator;
use crate::message;

/// Makes a panic in any thread end the job: the other ranks would wait for this one for ever.
pub(super) fn set(rank: usize) {
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let first_line = message.lines().next().unwrap_or_default();
        let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        message::print(format_args!("hpml: rank {rank}: internal error{place}: {first_line}"));
        Communicator::abort(101);
    }));
}
