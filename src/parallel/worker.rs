//! The communication thread, one per rank, which reduces while the caller computes. Between `start` and the matching `wait`
//! it is the only thread that calls MPI.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::collective::{Finished, Region};
use crate::error::Result;
use crate::units::Second;

/// Handle to the communication thread.
pub struct Worker {
    requests: Option<Sender<Region>>,
    results: Receiver<Result<Finished>>,
    outstanding: usize,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread, which calls `reduce` with each region sent to it.
    pub fn start(mut reduce: impl FnMut(&mut Region) -> Result<Finished> + Send + 'static) -> Worker {
        let (requests, incoming) = channel::<Region>();
        let (outgoing, results) = channel();
        let thread = std::thread::Builder::new()
            .name("hpml-comm".into())
            .spawn(move || {
                while let Ok(mut region) = incoming.recv() {
                    let result = reduce(&mut region);
                    drop(region);
                    if outgoing.send(result).is_err() {
                        break;
                    }
                }
            })
            .expect("a thread can be started");
        Worker { requests: Some(requests), results, outstanding: 0, thread: Some(thread) }
    }

    /// Enqueues the all-reduce of `region`. Every rank enqueues the same regions in one order.
    pub fn all_reduce(&mut self, region: Region) {
        self.outstanding += 1;
        let requests = self.requests.as_ref().expect("open until drop");
        requests.send(region).expect("the communication thread lives as long as its worker");
    }

    /// Waits for all enqueued regions; returns their results in order, and the seconds spent waiting here.
    ///
    /// # Errors
    /// One of the reductions failed.
    pub fn wait(&mut self) -> Result<(Vec<Finished>, Second)> {
        let start = Instant::now();
        let count = std::mem::take(&mut self.outstanding);
        let finished: Result<Vec<Finished>> =
            (0..count).map(|_| self.results.recv().expect("the communication thread answers each request")).collect();
        Ok((finished?, if count == 0 { 0.0 } else { start.elapsed().as_secs_f64() }))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.requests = None; // the thread's receive ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
