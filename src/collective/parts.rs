//! MPI's collectives on buffers that consist of one part per rank, for `hpml collectives`.

use std::ffi::{c_int, c_void};

use super::mpi::hpml_mpi_in_place;
use super::traffic::Collective;
use super::{Communicator, Element, MpiType};
use crate::error::Result;
use crate::metrics::Kind;
use crate::units::Second;

use mpi::ffi;

/// Maximum number of elements of a part: what MPI's 32-bit counts can hold.
pub const MOST_IN_PART: usize = i32::MAX as usize;

impl Communicator {
    /// Concatenates every rank's part in the order of the ranks in `target`, on every rank, by MPI_Allgather. The parts are equally
    /// long: `source`, or this rank's part of `target` if it is `None`. Returns the seconds of the call.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    ///
    /// # Panics
    /// Panics if `target` does not consist of one such part per rank.
    pub fn all_gather_into<T: MpiType>(&self, kind: Kind, source: Option<&[T]>, target: &mut [T]) -> Result<Second> {
        let count = self.part(target.len());
        assert!(source.is_none_or(|source| source.len() == count as usize), "the source is one part");
        let to: *mut c_void = target.as_mut_ptr().cast();
        self.counted(kind, Collective::AllGather, size_of_val(target) / self.size(), || {
            // SAFETY: a part has `count` elements, and `target` a part of every rank; all ranks pass the same count.
            self.check("MPI_Allgather", unsafe {
                let from = source.map_or(hpml_mpi_in_place().cast_const(), |source| source.as_ptr().cast());
                ffi::MPI_Allgather(from, count, T::mpi_type(), to, count, T::mpi_type(), self.raw())
            })
        })
    }

    /// Sums every rank's buffer, one part per rank, and gives each rank its part of the sum, by MPI_Reduce_scatter_block: of
    /// `source` into `target`, which is one part; or, without a source, of `target` into its own first part. Returns the seconds
    /// of the call.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    ///
    /// # Panics
    /// Panics if the buffers do not have these lengths.
    pub fn reduce_scatter_into<T: Element>(
        &self,
        kind: Kind,
        source: Option<&[T]>,
        target: &mut [T],
    ) -> Result<Second> {
        let whole = source.map_or(target.len(), <[T]>::len);
        let count = self.part(whole);
        assert!(source.is_none() || target.len() == count as usize, "the target is one part");
        let to: *mut c_void = target.as_mut_ptr().cast();
        self.counted(kind, Collective::ReduceScatter, whole * size_of::<T>(), || {
            // SAFETY: a part has `count` elements, the summed buffer one of every rank; all ranks pass the same count.
            self.check("MPI_Reduce_scatter_block", unsafe {
                let from = source.map_or(hpml_mpi_in_place().cast_const(), |source| source.as_ptr().cast());
                ffi::MPI_Reduce_scatter_block(from, to, count, T::mpi_type(), self.sum_of::<T>(), self.raw())
            })
        })
    }

    /// Sends the r-th part of `source` to rank r, and receives rank r's part for this rank as the r-th of `target`, by
    /// MPI_Alltoall. Returns the seconds of the call.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    ///
    /// # Panics
    /// Panics if the buffers are not equally long, of one part per rank.
    pub fn all_to_all_by_mpi<T: MpiType>(&self, kind: Kind, source: &[T], target: &mut [T]) -> Result<Second> {
        assert_eq!(source.len(), target.len(), "source and target are equally long");
        let count = self.part(source.len());
        self.counted(kind, Collective::AllToAll, size_of_val(source), || {
            // SAFETY: both have `count` elements for every rank and do not overlap; all ranks pass the same count.
            self.check("MPI_Alltoall", unsafe {
                let (from, to) = (source.as_ptr().cast(), target.as_mut_ptr().cast());
                ffi::MPI_Alltoall(from, count, T::mpi_type(), to, count, T::mpi_type(), self.raw())
            })
        })
    }

    /// Elements of a part of a buffer of `whole` elements.
    fn part(&self, whole: usize) -> c_int {
        assert!(whole.is_multiple_of(self.size()), "the buffer has one part per rank");
        c_int::try_from(whole / self.size()).expect("a part holds at most MOST_IN_PART elements")
    }
}
