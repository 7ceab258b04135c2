//! The communication thread, one per rank, which reduces while the caller computes. Between `start` and the matching `wait`
//! it is the only thread that calls MPI.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::collective::{Finished, Region};
use crate::device::Message;
use crate::error::Result;
use crate::units::Bytes;

/// Handle to the communication thread.
pub struct Worker {
    requests: Option<Sender<Region>>,
    results: Receiver<Result<(Finished, Bytes)>>,
    /// Buckets of the regions enqueued, in order.
    outstanding: Vec<usize>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread, which calls `reduce` with each region sent to it, and returns what it took and the bytes it sent.
    pub fn start(mut reduce: impl FnMut(&mut Region) -> Result<(Finished, Bytes)> + Send + 'static) -> Worker {
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
        Worker { requests: Some(requests), results, outstanding: Vec::new(), thread: Some(thread) }
    }

    /// Enqueues the all-reduce of `region`, the gradients of `bucket`. Every rank enqueues the same regions in one order.
    pub fn all_reduce(&mut self, region: Region, bucket: usize) {
        self.outstanding.push(bucket);
        let requests = self.requests.as_ref().expect("open until drop");
        requests.send(region).expect("the communication thread lives as long as its worker");
    }

    /// Whether no region is enqueued.
    pub fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Waits for all enqueued regions; returns what became of each, in order.
    ///
    /// # Errors
    /// One of the reductions failed.
    pub fn wait(&mut self) -> Result<Vec<(Finished, Message)>> {
        let answer = |bucket: usize| {
            let (finished, bytes) = self.results.recv().expect("the communication thread answers each request")?;
            Ok((finished, Message { bucket: Some(bucket), bytes }))
        };
        self.outstanding.drain(..).map(answer).collect()
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
