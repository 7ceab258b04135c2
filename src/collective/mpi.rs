//! MPI on host memory. Every call is a collective over all ranks of the communicator: all of them must make it, in the
//! same order, with equal counts.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::time::Instant;

use mpi::traits::AsRaw;
use mpi::{Threading, ffi};

use super::backoff::{Backoff, WaitPolicy};
use super::element::{Bf16, Element, Fp16, MpiType, add};
use super::progress;
use super::traffic::Collective;
use super::turn;
use crate::error::{Error, Result};
use crate::metrics::{Kind, Ledger};
use crate::units::{Bytes, Second};

unsafe extern "C" {
    fn hpml_mpi_in_place() -> *mut c_void;
}

/// Keeps MPI initialised; MPI is finalised when it is dropped.
pub struct Universe {
    universe: mpi::environment::Universe,
    granted: Threading,
}

impl Universe {
    /// Initialises MPI for two threads that call it one at a time; [`Communicator::may_change_threads`] tells whether it
    /// allows that. A collective over all ranks. `None`: it was initialised before.
    pub fn start() -> Option<Universe> {
        let (universe, granted) = mpi::initialize_with_threading(Threading::Serialized)?;
        // The least level of all ranks, so that all of them decide alike.
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

    /// All ranks of the job.
    pub fn world(&self) -> Communicator {
        let _turn = turn::take("setting up");
        Communicator::new(self.universe.world().as_raw(), Owned::No, self.granted)
    }

    /// Name and version of the MPI library, its first line.
    pub fn library_version() -> String {
        let text = mpi::environment::library_version().unwrap_or_default();
        let line = text.trim_end_matches('\0').lines().next().unwrap_or_default();
        line.split(", package").next().unwrap_or_default().trim().to_owned()
    }
}

/// A group of ranks and the messages they exchanged.
pub struct Communicator {
    raw: ffi::MPI_Comm,
    rank: usize,
    size: usize,
    bf16_sum: ffi::MPI_Op,
    fp16_sum: ffi::MPI_Op,
    owned: Owned,
    /// The threads that MPI allows on every rank.
    granted: Threading,
    ledger: Mutex<Ledger>,
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

/// How values of several ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// Their sum.
    Sum,
    /// The greatest.
    Max,
    /// The least.
    Min,
}

/// Elements of one call: what MPI's 32-bit counts can hold.
const MOST: usize = 1 << 30;

impl Communicator {
    /// The caller has the turn.
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
        let ledger = Mutex::default();
        Communicator { raw, rank: rank as usize, size: size as usize, bf16_sum, fp16_sum, owned, granted, ledger }
    }

    /// Checks that MPI lets another thread than the one that initialised it call it. All ranks come to the same answer, and
    /// one of them tells.
    ///
    /// # Errors
    /// It has granted less than MPI_THREAD_SERIALIZED.
    pub fn may_change_threads(&self) -> Result<()> {
        let granted = match self.granted {
            Threading::Single => "MPI_THREAD_SINGLE",
            Threading::Funneled => "MPI_THREAD_FUNNELED",
            Threading::Serialized | Threading::Multiple => return Ok(()),
        };
        match self.rank {
            0 => Err(Error::ThreadLevel { library: Universe::library_version(), granted }),
            _ => Err(Error::OnRank { rank: 0 }),
        }
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// What has been sent so far.
    pub fn ledger(&self) -> Ledger {
        self.ledger.lock().expect("no thread panics while it counts").clone()
    }

    /// The ranks that share this host's memory.
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

    /// The ranks that give the same `color`, in the same order; those that give none get no communicator.
    ///
    /// A collective over all ranks of this communicator. The new one counts in a ledger of its own.
    pub fn split(&self, color: Option<usize>) -> Result<Option<Communicator>> {
        let _turn = turn::take("splitting the ranks");
        let mut part = MaybeUninit::uninit();
        // SAFETY: MPI writes the new communicator: valid when the call returns success, unless the color was undefined.
        unsafe {
            let color = color.map_or(ffi::RSMPI_UNDEFINED, |color| color as c_int);
            let code = ffi::MPI_Comm_split(self.raw, color, self.rank as c_int, part.as_mut_ptr());
            self.check("MPI_Comm_split", code)?;
            Ok((color != ffi::RSMPI_UNDEFINED).then(|| Communicator::new(part.assume_init(), Owned::Yes, self.granted)))
        }
    }

    /// Returns when every rank has come here. Spins: for waits that are short or have nothing else to do.
    pub fn barrier(&self) -> Result<Second> {
        self.counted(Kind::Control, Collective::Barrier, 0, || {
            // SAFETY: a collective without buffers.
            self.check("MPI_Barrier", unsafe { ffi::MPI_Barrier(self.raw) })
        })
    }

    /// As [`barrier`](Self::barrier), but as patient as asked, so that the core is left to whoever computes.
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

    /// Every rank's `values` become their sum over the ranks, bit-identical on all of them, by MPI_Allreduce. Returns the
    /// seconds it took.
    pub fn all_reduce_sum<T: Element>(&self, kind: Kind, values: &mut [T]) -> Result<Second> {
        self.in_place(kind, Collective::AllReduce, values, |buffer, count| {
            // SAFETY: `buffer` holds `count` elements (see `in_place`), every rank passes the same count.
            unsafe {
                ffi::MPI_Allreduce(hpml_mpi_in_place(), buffer, count, T::mpi_type(), self.sum_of::<T>(), self.raw)
            }
        })
    }

    /// As [`all_reduce_sum`](Self::all_reduce_sum), from `source` into `target`, equally long.
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

    /// Combines `values` element by element over the ranks; every rank gets the result.
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

    /// Rank 0's `values` go to every rank.
    pub fn broadcast(&self, kind: Kind, values: &mut [f32]) -> Result<Second> {
        self.in_place(kind, Collective::Broadcast, values, |buffer, count| {
            // SAFETY: `buffer` holds `count` f32 (see `in_place`), every rank passes the same count.
            unsafe { ffi::MPI_Bcast(buffer, count, ffi::RSMPI_FLOAT, 0, self.raw) }
        })
    }

    /// Every rank's `values`, one after the other by rank, on every rank. Equal lengths everywhere.
    pub fn all_gather<T: MpiType>(&self, kind: Kind, values: &[T]) -> Result<Vec<T>> {
        let mut all = vec![T::default(); values.len() * self.size];
        self.counted(kind, Collective::AllGather, size_of_val(values), || {
            let count = c_int::try_from(values.len()).expect("gathered tables are small");
            // SAFETY: `values` has `count` elements of T's MPI type and `all` room for `count` from each rank.
            self.check("MPI_Allgather", unsafe {
                let (send, receive) = (values.as_ptr().cast(), all.as_mut_ptr().cast());
                ffi::MPI_Allgather(send, count, T::mpi_type(), receive, count, T::mpi_type(), self.raw)
            })
        })?;
        Ok(all)
    }

    /// Every rank's `values`, one after the other by rank, on rank 0; nothing on the others. Equal lengths everywhere.
    pub fn gather(&self, kind: Kind, values: &[f32]) -> Result<Vec<f32>> {
        let mut all = vec![0.0; if self.rank == 0 { values.len() * self.size } else { 0 }];
        self.counted(kind, Collective::Gather, size_of_val(values), || {
            let count = c_int::try_from(values.len()).expect("gathered tables are small");
            // SAFETY: `values` has `count` f32; on the root `all` has room for `count` from each rank, elsewhere MPI ignores it.
            self.check("MPI_Gather", unsafe {
                let (send, receive, float) = (values.as_ptr().cast(), all.as_mut_ptr().cast(), ffi::RSMPI_FLOAT);
                ffi::MPI_Gather(send, count, float, receive, count, float, 0, self.raw)
            })
        })?;
        Ok(all)
    }

    /// Every rank's text, by rank, on every rank. Texts are cut at 256 bytes.
    pub fn all_gather_text(&self, kind: Kind, text: &str) -> Result<Vec<String>> {
        const WIDTH: usize = 256;
        let mut padded = [0u8; WIDTH];
        let length = text.len().min(WIDTH);
        padded[..length].copy_from_slice(&text.as_bytes()[..length]);
        let all = self.all_gather(kind, &padded)?;
        Ok(all.chunks(WIDTH).map(|bytes| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()).collect())
    }

    /// Ends the whole job now, with this exit status. For errors that the other ranks know nothing of.
    pub fn abort(status: i32) -> ! {
        // SAFETY: MPI_Abort may be called at any time between init and finalize, from any thread.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, status) };
        std::process::exit(status)
    }

    /// Makes the `call` with pieces that MPI's 32-bit counts can hold.
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

    /// As [`counted`](Self::counted), for a collective whose ranks send `sent` bytes in all: less than all ranks have messages
    /// for each other.
    ///
    /// # Panics
    /// Another thread of this process is inside MPI.
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

    /// Counts a message that went another way than through MPI.
    pub(super) fn record(&self, kind: Kind, bytes: Bytes, sent: Bytes, seconds: Second) {
        self.ledger.lock().expect("no thread panics while it counts").record(kind, bytes, sent, seconds);
    }

    /// Whether `request` has ended; it must stay in place and its memory valid until then.
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

    /// An error where MPI returned one.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(Error::Mpi { call, rank: self.rank, code }) }
    }

    /// MPI's operation that adds numbers of this type.
    fn sum_of<T: Element>(&self) -> ffi::MPI_Op {
        match T::KIND {
            tch::Kind::BFloat16 => self.bf16_sum,
            tch::Kind::Half => self.fp16_sum,
            // SAFETY: reads a constant that rsmpi's C part initialises at load time.
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
