//! Event files for TensorBoard (`metrics.tensorboard`): scalars by step.
//!
//! A file is a sequence of records: length, its checksum, a protocol buffer `Event`, its checksum. Source: TensorFlow,
//! tsl/lib/io/record_writer.h; tensorboard/compat/proto/event.proto and summary.proto, of which the messages here are the fields that
//! scalars need.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};
use prost::Message;

use crate::error::{Error, Result};

/// Beginning of the names by which TensorBoard finds event files.
const NAME: &str = "events.out.tfevents.";
/// Version of the format; from 2 on a `START` takes away what earlier files of the folder have from its step on.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;
/// CRC-32C.
const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

#[derive(Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    // In a oneof of the original, by which 0 is written too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Folder of event files, to one of which this job writes.
pub(super) struct Board {
    folder: PathBuf,
    host: String,
    /// The file, from [`start`](Self::start) on.
    file: Option<File>,
}

impl Board {
    /// Prepares `folder` and writes nothing yet. Event files that are there stay; new ones join them if `goes_on` or with `force`.
    ///
    /// # Errors
    /// [`Error::Output`] if no file can be made there, [`Error::OutputExists`] if it has another training's.
    pub fn open(folder: &Path, host: &str, goes_on: bool, force: bool) -> Result<Board> {
        let cannot = |error: std::io::Error| Error::Output { path: folder.to_owned(), reason: error.to_string() };
        fs::create_dir_all(folder).map_err(cannot)?;
        tempfile::tempfile_in(folder).map_err(cannot)?;
        let is_event_file = |name: &str| name.starts_with(NAME);
        let mut found = fs::read_dir(folder).map_err(cannot)?.flatten();
        if !goes_on && !force && found.any(|entry| entry.file_name().to_str().is_some_and(is_event_file)) {
            return Err(Error::OutputExists { path: folder.to_owned() });
        }
        Ok(Board { folder: folder.to_owned(), host: host.to_owned(), file: None })
    }

    /// Folder of the event files.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Begins a file, whose first scalar comes after `step`: for TensorBoard what earlier files have after it is no more.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn start(&mut self, step: usize) -> std::io::Result<()> {
        let seconds = now() as u64;
        let name = format!("{NAME}{seconds:010}.{}.{}", self.host, std::process::id());
        // Two trainings of one process in one second.
        let names = std::iter::once(name.clone()).chain((1..1000).map(|number| format!("{name}.{number}")));
        for name in names {
            match OpenOptions::new().append(true).create_new(true).open(self.folder.join(name)) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                file => {
                    self.file = Some(file?);
                    break;
                }
            }
        }
        self.write(0, What::FileVersion(VERSION.into()))?;
        self.write(step + 1, What::SessionLog(SessionLog { status: START }))
    }

    /// Writes the finite ones of these scalars (tag, value) for `step`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn scalars(&mut self, step: usize, scalars: &[(&str, f64)]) -> std::io::Result<()> {
        let finite = scalars.iter().filter(|(_, value)| value.is_finite());
        let value = |&(tag, value): &(&str, f64)| Value { tag: tag.into(), simple_value: Some(value as f32) };
        self.write(step, What::Summary(Summary { value: finite.map(value).collect() }))
    }

    fn write(&mut self, step: usize, what: What) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let event = Event { wall_time: now(), step: step as i64, what: Some(what) };
        file.write_all(&record(&event.encode_to_vec()))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Frames an event: length, its checksum, the event, its checksum.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), event, &masked(event).to_le_bytes()].concat()
}

/// Checksum as records hold it.
fn masked(bytes: &[u8]) -> u32 {
    CHECKSUM.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_tensorflow_frames_it() {
        // The beginning of an event file of PyTorch's SummaryWriter: an event of 24 bytes.
        let framed = record(&[0; 24]);
        assert_eq!((framed.len(), &framed[..8]), (40, &24u64.to_le_bytes()[..]));
        assert_eq!(framed[8..12], [0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(CHECKSUM.checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_value_of_zero_is_written() {
        let value = Value { tag: "lr".into(), simple_value: Some(0.0) };
        assert_eq!(value.encode_to_vec(), [&[10, 2, b'l', b'r', 21][..], &[0; 4]].concat());
    }
}
