//! Collectives that bring values of all ranks together, or part them, by MPI's own calls.

use std::ffi::{c_int, c_void};

use mpi::ffi;

use super::traffic::Collective;
use super::{Communicator, MpiType};
use crate::error::Result;
use crate::metrics::Kind;
use crate::units::Bytes;

impl Communicator {
    /// Concatenates every rank's `values`, of equal length, in the order of the ranks, on every rank.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn all_gather<T: MpiType>(&self, kind: Kind, values: &[T]) -> Result<Vec<T>> {
        let mut all = vec![T::default(); values.len() * self.size()];
        self.counted(kind, Collective::AllGather, size_of_val(values), || {
            let count = c_int::try_from(values.len()).expect("gathered tables are small");
            // SAFETY: `values` has `count` elements of T's MPI type and `all` room for `count` from each rank.
            self.check("MPI_Allgather", unsafe {
                let (send, receive) = (start_of(values), all.as_mut_ptr().cast());
                ffi::MPI_Allgather(send, count, T::mpi_type(), receive, count, T::mpi_type(), self.raw())
            })
        })?;
        Ok(all)
    }

    /// Concatenates every rank's `values`, of equal length, in the order of the ranks, on rank 0; empty on the others.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn gather<T: MpiType>(&self, kind: Kind, values: &[T]) -> Result<Vec<T>> {
        let mut all = vec![T::default(); if self.rank() == 0 { values.len() * self.size() } else { 0 }];
        self.counted(kind, Collective::Gather, size_of_val(values), || {
            let count = c_int::try_from(values.len()).expect("gathered tables are small");
            // SAFETY: `values` has `count` elements of T's MPI type; on the root `all` has room for `count` from each rank, elsewhere MPI ignores it.
            self.check("MPI_Gather", unsafe {
                let (send, receive) = (start_of(values), all.as_mut_ptr().cast());
                ffi::MPI_Gather(send, count, T::mpi_type(), receive, count, T::mpi_type(), 0, self.raw())
            })
        })?;
        Ok(all)
    }

    /// Every rank's `values`, of any length, in the order of the ranks, on rank 0; empty on the others. A rank without values
    /// sends none.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn gather_varying<T: MpiType>(&self, kind: Kind, values: &[T]) -> Result<Vec<Vec<T>>> {
        let counts: Vec<c_int> =
            self.gather(kind, &[values.len() as u64])?.into_iter().map(|count| count as c_int).collect();
        let starts: Vec<c_int> =
            counts.iter().scan(0, |end, count| Some(std::mem::replace(end, *end + count))).collect();
        let mut all = vec![T::default(); counts.iter().sum::<c_int>() as usize];
        // What the others bring is known to rank 0 alone, whose count is the one that is stored.
        let sent = all.len().saturating_sub(values.len()) * size_of::<T>();
        self.counted_as(kind, size_of_val(values), sent as Bytes, || {
            let count = c_int::try_from(values.len()).expect("gathered tables are small");
            // SAFETY: `values` has `count` elements of T's MPI type; on the root `all` has room for each rank's `counts` from
            // its `starts` on, elsewhere MPI ignores all three.
            self.check("MPI_Gatherv", unsafe {
                let (send, receive) = (start_of(values), all.as_mut_ptr().cast());
                let (counts, starts, type_) = (counts.as_ptr(), starts.as_ptr(), T::mpi_type());
                ffi::MPI_Gatherv(send, count, type_, receive, counts, starts, type_, 0, self.raw())
            })
        })?;
        Ok(starts
            .iter()
            .zip(&counts)
            .map(|(&start, &count)| all[start as usize..][..count as usize].to_vec())
            .collect())
    }

    /// Sends each rank its part of rank 0's `values`, the parts being of equal length and in the order of the ranks; `values` of
    /// other ranks are ignored. Returns this rank's `length` elements.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn scatter<T: MpiType>(&self, kind: Kind, values: &[T], length: usize) -> Result<Vec<T>> {
        debug_assert!(self.rank() > 0 || values.len() == length * self.size());
        let mut own = vec![T::default(); length];
        self.counted(kind, Collective::Gather, length * size_of::<T>(), || {
            let count = c_int::try_from(length).expect("less than 2^31 elements per rank");
            // SAFETY: `own` has room for `count` elements of T's MPI type; the root has `count` for each rank.
            self.check("MPI_Scatter", unsafe {
                let (send, receive) = (start_of(values), own.as_mut_ptr().cast());
                ffi::MPI_Scatter(send, count, T::mpi_type(), receive, count, T::mpi_type(), 0, self.raw())
            })
        })?;
        Ok(own)
    }

    /// Every rank's `text`, in the order of the ranks, on every rank. Texts are cut at 256 bytes.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn all_gather_text(&self, kind: Kind, text: &str) -> Result<Vec<String>> {
        const WIDTH: usize = 256;
        let mut padded = [0u8; WIDTH];
        let length = text.len().min(WIDTH);
        padded[..length].copy_from_slice(&text.as_bytes()[..length]);
        let all = self.all_gather(kind, &padded)?;
        Ok(all.chunks(WIDTH).map(|bytes| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()).collect())
    }
}

/// Pointer to `values` for MPI. That of an empty slice of bytes is 1 in Rust, which Open MPI takes for MPI_IN_PLACE.
fn start_of<T>(values: &[T]) -> *const c_void {
    if values.is_empty() { std::ptr::null() } else { values.as_ptr().cast() }
}
