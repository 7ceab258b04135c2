//! MPI on host memory. Every call is a collective over all ranks of the communicator: all of them must make it, in the
//! same order, with equal counts.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use mpi::traits::AsRaw;
use mpi::{Threading, ffi};

use super::backoff::{Backoff, WaitPolicy};
use super::element::{Bf16, Element, Fp16, MpiType, add};
use super::library::library_version;
use super::progress;
use super::traffic::Collective;
use super::turn;
use crate::error::{Error, Result};
use crate::message;
use crate::metrics::{Kind, Ledger};
use crate::units::{Bytes, Second};

unsafe extern "C" {
    pub(super) fn hpml_mpi_in_place() -> *mut c_void;
}

/// Keeps MPI initialized; MPI is finalized when it is dropped.
pub struct Universe {
    universe: mpi::environment::Universe,
    granted: Threading,
}

impl Universe {
    /// Initializes MPI for two threads that call it one at a time; [`Communicator::may_change_threads`] checks that it allows
    /// that. Returns `None` if MPI was initialized before. A collective over all ranks.
    pub fn start() -> Option<Universe> {
        let (universe, granted) = mpi::initialize_with_threading(Threading::Serialized)?;
        // The lowest level of all ranks, so that all of them decide alike.
        let mut level = granted as c_int;
        // SAFETY: one int on every rank, the same operation everywhere; an error ends the job.
        unsafe {
            let (buffer, one) = ((&raw mut level).cast(), 1);
            ffi::MPI_Allreduce(
                hpml_mpi_in_place(),
                buffer,
                one,
                ffi::RSMPI_INT32_T,
                ffi::RSMPI_MIN,
                ffi::RSMPI_COMM_WORLD,
            );
        }
        let levels = [Threading::Single, Threading::Funneled, Threading::Serialized, Threading::Multiple];
        let granted = levels.into_iter().find(|&one| one as c_int == level).unwrap_or(Threading::Single);
        if granted < Threading::Serialized {
            turn::bind_to_this_thread();
        }
        Some(Universe { universe, granted })
    }

    /// A communicator over all ranks of the job.
    pub fn world(&self) -> Communicator {
        let _turn = turn::take("setting up");
        Communicator::new(self.universe.world().as_raw(), Owned::No, self.granted)
    }
}

/// A group of ranks, and the ledger of the messages they exchanged.
pub struct Communicator {
    raw: ffi::MPI_Comm,
    rank: usize,
    size: usize,
    bf16_sum: ffi::MPI_Op,
    fp16_sum: ffi::MPI_Op,
    owned: Owned,
    /// Lowest thread level that MPI granted on any rank.
    granted: Threading,
    ledger: Arc<Mutex<Ledger>>,
}

/// Whether a handle is freed with its communicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owned {
    Yes,
    No,
}

// SAFETY: the handle is a plain value. Every call takes this process's turn (`turn`), so that no two are made at the same time;
// a second thread (`Worker`) is started only where MPI allows it (`may_change_threads`).
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

/// Operation that combines the values of several ranks into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// Sum of the values.
    Sum,
    /// Largest value.
    Max,
    /// Smallest value.
    Min,
}

/// Maximum number of elements per call: what MPI's 32-bit counts can hold.
const MOST: usize = 1 << 30;

impl Communicator {
    /// A communicator for a handle of MPI. The caller holds this process's [turn](turn::take).
    fn new(raw: ffi::MPI_Comm, owned: Owned, granted: Threading) -> Communicator {
        let (mut rank, mut size) = (0, 1);
        let (mut bf16_sum, mut fp16_sum) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: `raw` is a valid communicator; the calls only write what they are given. Errors are returned instead of
        // ending the process, so that the message can name what failed.
        let (bf16_sum, fp16_sum) = unsafe {
            ffi::MPI_Comm_rank(raw, &mut rank);
            ffi::MPI_Comm_size(raw, &mut size);
            ffi::MPI_Comm_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN);
            ffi::MPI_Op_create(Some(add::<Bf16>), 1, bf16_sum.as_mut_ptr());
            ffi::MPI_Op_create(Some(add::<Fp16>), 1, fp16_sum.as_mut_ptr());
            (bf16_sum.assume_init(), fp16_sum.assume_init())
        };
        let ledger = Arc::default();
        Communicator { raw, rank: rank as usize, size: size as usize, bf16_sum, fp16_sum, owned, granted, ledger }
    }

    /// Checks that a thread other than the one that initialized MPI may call it. All ranks come to the same answer, and rank 0
    /// reports it.
    ///
    /// # Errors
    /// Returns [`Error::ThreadLevel`] on rank 0, and [`Error::OnRank`] on the others, if MPI granted less than
    /// MPI_THREAD_SERIALIZED on any rank.
    pub fn may_change_threads(&self) -> Result<()> {
        let granted = match self.granted {
            Threading::Single => "MPI_THREAD_SINGLE",
            Threading::Funneled => "MPI_THREAD_FUNNELED",
            Threading::Serialized | Threading::Multiple => return Ok(()),
        };
        match self.rank {
            0 => Err(Error::ThreadLevel { library: library_version(), granted }),
            _ => Err(Error::OnRank { rank: 0 }),
        }
    }

    /// Rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Snapshot of the messages counted until now.
    pub fn ledger(&self) -> Ledger {
        self.ledger.lock().expect("no thread panics while it counts").clone()
    }

    /// A communicator over the ranks that share this host's memory, in the order of their ranks. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn split_by_host(&self) -> Result<Communicator> {
        let _turn = turn::take("splitting the ranks by host");
        let mut part = MaybeUninit::uninit();
        // SAFETY: MPI writes the new communicator, which is valid when the call returns success.
        unsafe {
            let (kind, info) = (ffi::RSMPI_COMM_TYPE_SHARED, ffi::RSMPI_INFO_NULL);
            let code = ffi::MPI_Comm_split_type(self.raw, kind, self.rank as c_int, info, part.as_mut_ptr());
            self.check("MPI_Comm_split_type", code)?;
            Ok(Communicator::new(part.assume_init(), Owned::Yes, self.granted))
        }
    }

    /// A communicator over the ranks that pass the same `color`, in the order of their ranks; `None` for ranks that pass none.
    ///
    /// A collective over all ranks of this communicator. The new one counts in a ledger of its own.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn split(&self, color: Option<usize>) -> Result<Option<Communicator>> {
        self.split_in_order(color, self.rank)
    }

    /// A communicator as by [`split`](Self::split), in the order of what the ranks pass as `key`. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub(super) fn split_in_order(&self, color: Option<usize>, key: usize) -> Result<Option<Communicator>> {
        let _turn = turn::take("splitting the ranks");
        let mut part = MaybeUninit::uninit();
        // SAFETY: MPI writes the new communicator: valid when the call returns success, unless the color was undefined.
        unsafe {
            let color = color.map_or(ffi::RSMPI_UNDEFINED, |color| color as c_int);
            let code = ffi::MPI_Comm_split(self.raw, color, key as c_int, part.as_mut_ptr());
            self.check("MPI_Comm_split", code)?;
            Ok((color != ffi::RSMPI_UNDEFINED).then(|| Communicator::new(part.assume_init(), Owned::Yes, self.granted)))
        }
    }

    /// This communicator, counting in the ledger of `other` from here on.
    pub fn counting_in(mut self, other: &Communicator) -> Communicator {
        self.ledger = other.ledger.clone();
        self
    }

    /// Waits for every rank by MPI_Barrier, which spins: for waits that are short, or with nothing else to do. Returns the
    /// seconds waited.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn barrier(&self) -> Result<Second> {
        self.counted(Kind::Control, Collective::Barrier, 0, || {
            // SAFETY: a collective without buffers.
            self.check("MPI_Barrier", unsafe { ffi::MPI_Barrier(self.raw) })
        })
    }

    /// Waits for every rank by MPI_Ibarrier and polls as `policy` says, which leaves the core to threads that compute. Returns
    /// the seconds waited.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn patient_barrier(&self, policy: WaitPolicy) -> Result<Second> {
        self.counted(Kind::Control, Collective::Barrier, 0, || {
            let mut request = MaybeUninit::<ffi::MPI_Request>::uninit();
            let mut backoff = Backoff::between_hosts(policy);
            // SAFETY: MPI writes `request`, which stays in place until MPI_Test has reported its completion.
            unsafe {
                self.check("MPI_Ibarrier", ffi::MPI_Ibarrier(self.raw, request.as_mut_ptr()))?;
                while !self.is_done(&mut *request.as_mut_ptr())? {
                    backoff.pause();
                }
            }
            Ok(())
        })
    }

    /// Replaces every rank's `values` by their sum over the ranks, bit-identical on all of them, by MPI_Allreduce. Returns the
    /// seconds of the call.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn all_reduce_sum<T: Element>(&self, kind: Kind, values: &mut [T]) -> Result<Second> {
        self.in_place(kind, Collective::AllReduce, values, |buffer, count| {
            // SAFETY: `buffer` holds `count` elements (see `in_place`), every rank passes the same count.
            unsafe {
                ffi::MPI_Allreduce(hpml_mpi_in_place(), buffer, count, T::mpi_type(), self.sum_of::<T>(), self.raw)
            }
        })
    }

    /// Writes the sum of every rank's `source` to every rank's `target`, equally long, by MPI_Allreduce. Returns the seconds of
    /// the call.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn all_reduce_sum_into<T: Element>(&self, kind: Kind, source: &[T], target: &mut [T]) -> Result<Second> {
        assert_eq!(source.len(), target.len(), "source and target are equally long");
        self.counted(kind, Collective::AllReduce, size_of_val(source), || {
            for (source, target) in source.chunks(MOST).zip(target.chunks_mut(MOST)) {
                let count = source.len() as c_int;
                // SAFETY: both hold `count` elements and do not overlap; every rank passes the same count.
                let code = unsafe {
                    let (from, to) = (source.as_ptr().cast(), target.as_mut_ptr().cast());
                    ffi::MPI_Allreduce(from, to, count, T::mpi_type(), self.sum_of::<T>(), self.raw)
                };
                self.check("MPI_Allreduce", code)?;
            }
            Ok(())
        })
    }

    /// Combines `values` element by element over the ranks; every rank gets the result. Returns the seconds of the call.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn all_reduce(&self, kind: Kind, combine: Combine, values: &mut [f64]) -> Result<Second> {
        self.in_place(kind, Collective::AllReduce, values, |buffer, count| {
            // SAFETY: `buffer` holds `count` f64 (see `in_place`), every rank passes the same count and operation.
            unsafe {
                let operation = match combine {
                    Combine::Sum => ffi::RSMPI_SUM,
                    Combine::Max => ffi::RSMPI_MAX,
                    Combine::Min => ffi::RSMPI_MIN,
                };
                ffi::MPI_Allreduce(hpml_mpi_in_place(), buffer, count, ffi::RSMPI_DOUBLE, operation, self.raw)
            }
        })
    }

    /// Replaces every rank's `values` by rank 0's. Returns the seconds of the call.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn broadcast<T: MpiType>(&self, kind: Kind, values: &mut [T]) -> Result<Second> {
        self.in_place(kind, Collective::Broadcast, values, |buffer, count| {
            // SAFETY: `buffer` holds `count` of T (see `in_place`), every rank passes the same count.
            unsafe { ffi::MPI_Bcast(buffer, count, T::mpi_type(), 0, self.raw) }
        })
    }

    /// Ends the whole job with exit status `status`, once this process's message has been read: for errors that the other
    /// ranks know nothing of.
    pub fn abort(status: i32) -> ! {
        message::wait_until_read();
        // SAFETY: MPI_Abort may be called at any time between init and finalize, from any thread.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, status) };
        std::process::exit(status)
    }

    /// Runs `call` on pieces of `values` that MPI's 32-bit counts can hold.
    fn in_place<T>(
        &self,
        kind: Kind,
        collective: Collective,
        values: &mut [T],
        call: impl Fn(*mut c_void, c_int) -> c_int,
    ) -> Result<Second> {
        self.counted(kind, collective, size_of_val(values), || {
            if self.size > 1 {
                for piece in values.chunks_mut(MOST) {
                    self.check("an MPI collective", call(piece.as_mut_ptr().cast(), piece.len() as c_int))?;
                }
            }
            Ok(())
        })
    }

    /// Runs a collective of messages over all ranks and counts it as one of `bytes`.
    pub(super) fn counted(
        &self,
        kind: Kind,
        collective: Collective,
        bytes: usize,
        call: impl FnOnce() -> Result<()>,
    ) -> Result<Second> {
        self.counted_as(kind, bytes, collective.sent(self.size, bytes), call)
    }

    /// Runs a collective of `bytes` per rank and counts it with `sent` bytes on the wire in all: for collectives in which not
    /// every rank sends messages.
    ///
    /// # Panics
    /// Panics if another thread of this process is inside MPI.
    pub(super) fn counted_as(
        &self,
        kind: Kind,
        bytes: usize,
        sent: Bytes,
        call: impl FnOnce() -> Result<()>,
    ) -> Result<Second> {
        let _turn = turn::take(kind.as_str());
        if self.size == 1 {
            call()?; // nothing leaves the process: not a message
            return Ok(0.0);
        }
        let start = Instant::now();
        let inside = progress::enter(kind, bytes);
        call()?;
        drop(inside);
        let seconds = start.elapsed().as_secs_f64();
        self.record(kind, bytes as Bytes, sent, seconds);
        Ok(seconds)
    }

    /// Counts a message that was not sent through MPI.
    pub(super) fn record(&self, kind: Kind, bytes: Bytes, sent: Bytes, seconds: Second) {
        self.ledger.lock().expect("no thread panics while it counts").record(kind, bytes, sent, seconds);
    }

    /// Whether `request` is complete; it must stay in place and its memory valid until then.
    pub(super) fn is_done(&self, request: &mut ffi::MPI_Request) -> Result<bool> {
        let mut done: c_int = 0;
        // SAFETY: a request that MPI has written, or that has ended before.
        let code = unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
        self.check("MPI_Test", code)?;
        Ok(done != 0)
    }

    pub(super) fn raw(&self) -> ffi::MPI_Comm {
        self.raw
    }

    /// Turns the return `code` of `call` into a result.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(Error::Mpi { call, rank: self.rank, code }) }
    }

    /// MPI's operation that adds numbers of this type.
    pub(super) fn sum_of<T: Element>(&self) -> ffi::MPI_Op {
        match T::KIND {
            tch::Kind::BFloat16 => self.bf16_sum,
            tch::Kind::Half => self.fp16_sum,
            // SAFETY: reads a constant that rsmpi's C part initializes at load time.
            _ => unsafe { ffi::RSMPI_SUM },
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let _turn = turn::take("freeing a communicator");
        let mut finalized: c_int = 0;
        // SAFETY: the handles are ours and not used again; nothing is freed once MPI has ended.
        unsafe {
            ffi::MPI_Finalized(&mut finalized);
            if finalized == 0 {
                ffi::MPI_Op_free(&mut self.bf16_sum);
                ffi::MPI_Op_free(&mut self.fp16_sum);
                if self.owned == Owned::Yes {
                    ffi::MPI_Comm_free(&mut self.raw);
                }
            }
        }
    }
}
