//! libtorch's threads for loops of hpml: libtorch's own kernels and hpml's share one pool.

use std::any::Any;
use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

type Body<'a> = &'a (dyn Fn(Range<usize>) + Sync);

unsafe extern "C" {
    fn hpml_threads() -> usize;
    fn hpml_thread_number() -> usize;
    fn hpml_parallel_for(
        count: usize,
        grain: usize,
        body: extern "C" fn(*mut c_void, usize, usize),
        context: *mut c_void,
    );
}

/// Number of threads that [`parallel_for`] uses at most: libtorch's, of `tch::set_num_threads`.
pub fn threads() -> usize {
    // SAFETY: reads a number.
    unsafe { hpml_threads() }
}

/// Number of the calling thread within `body` of [`parallel_for`], below [`threads`].
pub(super) fn thread_number() -> usize {
    // SAFETY: reads a number.
    unsafe { hpml_thread_number() }
}

/// Calls `body` on ranges that together are 0 to `count`, of at least `grain` but for the last, one per thread at most. Returns
/// when all calls have. A call within `body` runs on one thread.
///
/// # Panics
/// Goes on with the first panic of `body`, after all calls have ended.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// let sum = AtomicUsize::new(0);
/// hpml::sys::parallel_for(100, 10, &|range| {
///     sum.fetch_add(range.sum::<usize>(), Ordering::Relaxed);
/// });
/// assert_eq!(sum.into_inner(), 4950);
/// ```
pub fn parallel_for(count: usize, grain: usize, body: Body) {
    struct Context<'a> {
        body: Body<'a>,
        panic: Mutex<Option<Box<dyn Any + Send>>>,
    }
    extern "C" fn call(context: *mut c_void, begin: usize, end: usize) {
        // SAFETY: the context of the call below, which is under way; several threads share it, and it is Sync.
        let context = unsafe { &*context.cast::<Context>() };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (context.body)(begin..end))) {
            context.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
    let mut context = Context { body, panic: Mutex::new(None) };
    // SAFETY: the context outlives the call, which returns after the last call of `call`.
    unsafe { hpml_parallel_for(count, grain.max(1), call, (&raw mut context).cast()) };
    if let Some(panic) = context.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_index_is_visited_once() {
        for (count, grain) in [(0, 1), (1, 1), (7, 2), (1000, 1), (1000, 300), (1000, 5000), (3, 0)] {
            let visits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            parallel_for(count, grain, &|range| {
                visits[range].iter().for_each(|index| {
                    index.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(visits.iter().all(|index| index.load(Ordering::Relaxed) == 1), "{count} {grain}");
        }
    }

    #[test]
    #[should_panic = "of the body"]
    fn a_panic_of_the_body_goes_on_in_the_caller() {
        parallel_for(100, 1, &|range| assert!(!range.contains(&99), "of the body"));
    }
}
