//! The MPI library: the one whose header hpml was compiled with, and the one that is loaded. Handles, constants and the layout
//! of structures are the header's, so another family's library would read them as something else, and crash.

use std::ffi::{CStr, c_char, c_int};

use mpi::ffi;

use crate::error::{Error, Result};

unsafe extern "C" {
    safe fn hpml_mpi_header() -> *const c_char;
    safe fn hpml_mpi_comm_world() -> usize;
    fn hpml_mpi_library(text: *mut c_char, length: *mut c_int) -> c_int;
}

/// Bytes for a library's version.
const LONGEST: usize = 1 << 16;

/// Name and version of the loaded MPI library: the first line of MPI_Get_library_version, for example `Open MPI v4.1.4`.
/// Callable before MPI is initialized.
pub fn library_version() -> String {
    let mut text = vec![0u8; LONGEST];
    let mut length: c_int = 0;
    // SAFETY: no known library writes more than 8192 bytes.
    unsafe { hpml_mpi_library(text.as_mut_ptr().cast(), &mut length) };
    let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
    first_line(&text.to_string_lossy())
}

/// Name and version of the MPI library that hpml was built for, for example `Open MPI 4.1.4`.
pub fn built_for() -> &'static str {
    // SAFETY: a constant of `header.c`, which ends with a zero.
    unsafe { CStr::from_ptr(hpml_mpi_header()) }.to_str().unwrap_or("an MPI without a name")
}

/// Checks that the loaded MPI library is one that hpml was built for. Callable, and to be called, before MPI is initialized.
///
/// # Errors
/// Returns [`Error::MpiDiffers`] if it is not, and [`Error::MpiMixed`] if parts of hpml were compiled with different headers.
pub fn check_library() -> Result<()> {
    let (built, loaded) = (built_for(), library_version());
    if !fits(built, &loaded) {
        return Err(Error::MpiDiffers { built: built.into(), loaded });
    }
    // SAFETY: reads a constant that rsmpi's C part initializes at load time.
    let of_rsmpi = handle(unsafe { ffi::RSMPI_COMM_WORLD });
    if of_rsmpi != Some(hpml_mpi_comm_world()) {
        return Err(Error::MpiMixed { built: built.into(), loaded });
    }
    Ok(())
}

/// A handle of MPI as a number: libraries have integers or pointers for handles.
fn handle<T: Copy>(handle: T) -> Option<usize> {
    match size_of::<T>() {
        // SAFETY: a plain value with as many bytes. The C side makes a number of an int with its sign.
        4 => Some(unsafe { std::mem::transmute_copy::<T, i32>(&handle) } as usize),
        // SAFETY: as above.
        8 => Some(unsafe { std::mem::transmute_copy::<T, usize>(&handle) }),
        _ => None,
    }
}

/// First line of an MPI library's version text, without tabs and the name of the package.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(", package").next().unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Family of MPI libraries that take each other's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Open MPI from version 4 on, as long as libmpi.so.40 is its library: 4.1 and 5.0 take each other's programs.
    OpenMpi,
    /// MPICH and its relatives, which agreed on one ABI in 2013 (<https://www.mpich.org/abi>).
    Mpich,
    /// An earlier or later Open MPI, with its major version.
    OtherOpenMpi(u32),
}

impl Family {
    /// The family of the library with this name and version; `None` for a name that hpml does not know.
    fn of(name: &str) -> Option<Family> {
        if ["MPICH", "Intel MPI", "Intel(R) MPI", "MVAPICH", "CRAY MPICH"].iter().any(|known| name.starts_with(known)) {
            return Some(Family::Mpich);
        }
        let version = name.strip_prefix("Open MPI")?.trim_start().trim_start_matches('v');
        match version.split('.').next()?.parse().ok()? {
            4 | 5 => Some(Family::OpenMpi),
            major => Some(Family::OtherOpenMpi(major)),
        }
    }
}

/// Whether a program that was compiled with the header `built` can use the library `loaded`. A name that is unknown is trusted,
/// and so is every library of the standard ABI, which is loaded under a name of its own (libmpi_abi).
fn fits(built: &str, loaded: &str) -> bool {
    match (Family::of(built), Family::of(loaded)) {
        (Some(built), Some(loaded)) => built == loaded,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_one_line_without_tabs() {
        let debian = "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, repo rev: v4.1.4, May 26, 2022";
        assert_eq!(first_line(debian), "Open MPI v4.1.4");
        assert_eq!(first_line("MPICH Version:\t4.0.2\nMPICH Release date:\tThu Apr  7"), "MPICH Version: 4.0.2");
        assert_eq!(first_line("MPICH Version:      5.0.2\nMPICH Release"), "MPICH Version: 5.0.2");
    }

    #[test]
    fn libraries_of_one_family_take_each_others_programs() {
        let (open4, open5, open6) = ("Open MPI v4.1.4", "Open MPI v5.0.11", "Open MPI v6.0.0");
        let (mpich, intel) = ("MPICH Version: 5.0.2", "Intel(R) MPI Library 2021.19 for Linux* OS");
        for (built, loaded) in [
            ("Open MPI 4.1.4", open5),
            ("Open MPI 5.0.11", open4),
            ("Open MPI 6.0.0", open6),
            ("MPICH 4.0.2", mpich),
            ("MPICH 4.0.2", intel),
            ("Intel MPI 2021.19.0", mpich),
            ("MPI's standard ABI 1.0", mpich),
            ("another MPI", open4),
        ] {
            assert!(fits(built, loaded), "{built}, {loaded}");
        }
        for (built, loaded) in [
            ("Open MPI 4.1.4", mpich),
            ("MPICH 4.0.2", open4),
            ("Intel MPI 2021.19.0", open5),
            ("Open MPI 5.0.11", open6),
        ] {
            assert!(!fits(built, loaded), "{built}, {loaded}");
        }
    }

    #[test]
    fn this_program_has_the_library_it_was_built_for() {
        check_library().unwrap();
    }
}
