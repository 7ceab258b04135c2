//! The libtorch that this process has loaded, against the one that hpml was built with.

use std::ffi::{CStr, c_char};

use crate::error::{Error, Result};

/// Version of the libtorch whose headers hpml was built with, for example `2.13.0`.
pub const LIBTORCH_VERSION: &str = env!("HPML_LIBTORCH_VERSION");

unsafe extern "C" {
    fn hpml_libtorch_loaded() -> u64;
    fn hpml_libtorch_file() -> *const c_char;
}

/// Refuses a loaded libtorch of another minor version than the one hpml was built with: libtorch promises no binary interface
/// between them, and an object that has grown is written past its end. A run-time search path can bring one in unnoticed
/// (`LD_LIBRARY_PATH` goes before the folder that the build wrote into the program).
///
/// # Errors
/// Returns [`Error::Libtorch`] with both versions and the file.
pub fn check_libtorch() -> Result<()> {
    // SAFETY: returns a number.
    let loaded = unsafe { hpml_libtorch_loaded() };
    // SAFETY: returns null, or a name that the loader keeps as long as the library is loaded.
    let file = unsafe { hpml_libtorch_file() };
    // SAFETY: not null, and ends with a zero byte.
    let file = (!file.is_null()).then(|| unsafe { CStr::from_ptr(file) }.to_string_lossy().into_owned());
    compare(LIBTORCH_VERSION, loaded, file)
}

/// Compares `built` with `loaded`, the version that the library reports: major, minor and patch in the three highest bytes; 0 if it
/// reports none. A patch release keeps the interface.
fn compare(built: &str, loaded: u64, file: Option<String>) -> Result<()> {
    let [major, minor, patch, ..] = loaded.to_be_bytes();
    let loaded = match loaded {
        0 => "an old version that it does not tell".into(),
        _ => format!("{major}.{minor}.{patch}"),
    };
    let minor_version = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
    if minor_version(built) == minor_version(&loaded) {
        return Ok(());
    }
    let file = file.unwrap_or_else(|| "a file without a name".into());
    Err(Error::Libtorch { built: built.into(), loaded, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn version(major: u64, minor: u64, patch: u64) -> u64 {
        major << 56 | minor << 48 | patch << 40
    }

    #[test]
    fn a_libtorch_of_another_minor_version_is_refused() {
        for patch in [0, 1, 19] {
            assert!(compare("2.13.0", version(2, 13, patch), None).is_ok());
        }
        for (built, loaded, named) in [
            ("2.13.0", version(2, 11, 0), "2.11.0"),
            ("2.13.0", version(2, 15, 1), "2.15.1"),
            ("2.13.0", version(2, 130, 0), "2.130.0"),
            ("2.1.13", version(2, 13, 0), "2.1.13"),
            ("2.13.0", version(3, 13, 0), "3.13.0"),
            ("2.13.0", 0, "does not tell"),
        ] {
            let message = compare(built, loaded, Some("/x/libtorch_cpu.so".into())).unwrap_err().to_string();
            for words in [built, named, "/x/libtorch_cpu.so", "LD_LIBRARY_PATH"] {
                assert!(message.contains(words), "{words}: {message}");
            }
        }
    }

    #[test]
    fn the_loaded_libtorch_says_the_version_of_the_headers() {
        check_libtorch().unwrap();
        // SAFETY: returns a number.
        let [major, minor, patch, ..] = unsafe { hpml_libtorch_loaded() }.to_be_bytes();
        assert_eq!(format!("{major}.{minor}.{patch}"), LIBTORCH_VERSION);
    }
}
