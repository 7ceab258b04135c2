//! NumPy's `.npy` files. In: a file. Out: an [`Array`], after checking header and size.
//!
//! Layout (numpy.lib.format): `\x93NUMPY`, two bytes of version, the length of the header (2 bytes little endian, 4 from version 2
//! on), the header (a Python dictionary with the keys descr, fortran_order and shape, and nothing else), the values.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::array::Array;
use crate::error::{AtPath, Error, Result};
use crate::store::Number;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header that is read; NumPy's own limit is 10,000.
const LONGEST: usize = 65_536;

/// Opens the array.
///
/// # Errors
/// It is no `.npy` file, is cut short, or holds values in a type or an order that is not read.
pub(super) fn open(path: &Path) -> Result<Array> {
    let refuse = |message: String| Error::File { path: path.to_owned(), message };
    let mut bytes = Vec::new();
    File::open(path).at(path)?.take(LONGEST as u64).read_to_end(&mut bytes).at(path)?;
    let header = header(&bytes)
        .ok_or_else(|| refuse("no .npy file, or its header is damaged: write it with numpy.save".into()))?;
    let number = match header.descr {
        "|u1" => Number::U8,
        "|i1" => Number::I8,
        "<u2" => Number::U16,
        "<i2" => Number::I16,
        "<u4" => Number::U32,
        "<i4" => Number::I32,
        "<u8" => Number::U64,
        "<i8" => Number::I64,
        "<f4" => Number::F32,
        other => {
            let message = format!(
                "values of type {other}: save images as uint8 or float32, labels and tokens as int64 (array.astype(...))"
            );
            return Err(refuse(message));
        }
    };
    if header.is_fortran {
        return Err(refuse("in Fortran's order: save numpy.ascontiguousarray(array)".into()));
    }
    if header.shape.is_empty() {
        return Err(refuse("a single value, expected an array".into()));
    }
    Array::of_file(path, header.values as u64, header.shape, number)
}

/// Header of a file.
struct Header<'a> {
    descr: &'a str,
    is_fortran: bool,
    shape: Vec<usize>,
    /// Place of the values.
    values: usize,
}

/// Reads the header; `None` if there is none.
fn header(bytes: &[u8]) -> Option<Header<'_>> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, start) = match rest.first()? {
        1 => (u16::from_le_bytes(rest.get(2..4)?.try_into().ok()?) as usize, 10),
        2 | 3 => (u32::from_le_bytes(rest.get(2..6)?.try_into().ok()?) as usize, 12),
        _ => return None,
    };
    let values = start + length;
    let text = std::str::from_utf8(bytes.get(start..values)?).ok()?;
    let after = |key: &str| Some(text.split_once(&format!("'{key}':"))?.1.trim_start());
    let descr = after("descr")?.strip_prefix('\'')?.split_once('\'')?.0;
    let is_fortran = after("fortran_order")?.starts_with("True");
    let extents = after("shape")?.strip_prefix('(')?.split_once(')')?.0;
    let extents = extents.split(',').map(str::trim).filter(|extent| !extent.is_empty());
    let shape = extents.map(|extent| extent.parse().ok()).collect::<Option<_>>()?;
    Some(Header { descr, is_fortran, shape, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this header, as numpy.save pads it, and `values` bytes.
    fn file(folder: &Path, header: &str, values: usize) -> std::path::PathBuf {
        let mut bytes = [&MAGIC[..], &[1, 0]].concat();
        let padded = format!("{header:<117}\n");
        bytes.extend((padded.len() as u16).to_le_bytes());
        bytes.extend(padded.bytes());
        bytes.extend(vec![7; values]);
        let path = folder.join("x.npy");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn header_and_size_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let open = |header: &str, values| open(&file(folder.path(), header, values));
        let array = open("{'descr': '<i8', 'fortran_order': False, 'shape': (3, 2), }", 48).unwrap();
        assert_eq!((array.shape, array.number), (vec![3, 2], Number::I64));
        assert_eq!(open("{'descr': '|u1', 'fortran_order': False, 'shape': (5,), }", 5).unwrap().shape, [5]);
        for (header, named) in [
            ("{'descr': '<i8', 'fortran_order': False, 'shape': (3, 2), }", "47 bytes"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (3,), }", "values of type >f4: save"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", "values of type <f8: save"),
            ("{'descr': '|u1', 'fortran_order': True, 'shape': (3, 2), }", "numpy.ascontiguousarray"),
            ("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (3,), }", "no .npy file"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (-3,), }", "no .npy file"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 3), }", "175 bytes"),
        ] {
            let message = open(header, 47).err().unwrap().to_string();
            assert!(
                message.contains(named) || named.ends_with("bytes") && message.contains("bytes, expected"),
                "{message}"
            );
        }
        std::fs::write(folder.path().join("x.npy"), b"\x93NUMPY\x01\x00\xff\xff{").unwrap();
        assert!(super::open(&folder.path().join("x.npy")).is_err());
    }
}
