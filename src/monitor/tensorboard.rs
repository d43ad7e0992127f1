//! TensorBoard's event files: `Event` messages of `tensorflow/core/util/event.proto` in the framing of TFRecord.
//!
//! A record is its length (u64), the masked CRC-32C of those eight bytes, the message, and the masked CRC-32C of it, all
//! little-endian.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::{fs, process};

use prost::Message;

use super::{Point, Sink, unix_time};

/// TensorBoard finds files with this in their name, and reads those of a folder in order of name.
const PREFIX: &str = "events.out.tfevents.";
/// Of the format; from 2 on, a session that starts again takes back the rows it will write anew.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub struct Event {
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    #[prost(string, optional, tag = "3")]
    pub file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    pub summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    pub session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Scalar>,
}

/// `Summary.Value` of one number.
#[derive(Clone, PartialEq, Message)]
pub struct Scalar {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SessionLog {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// An event file being written.
pub struct Events(BufWriter<File>);

impl Events {
    /// What a warning calls it.
    pub const NAME: &'static str = "the TensorBoard file";

    /// Begins a file in `dir` for rows after `step` steps. TensorBoard drops later rows of earlier files then.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn create(dir: &Path, step: u64) -> io::Result<Events> {
        let now = unix_time();
        let path = dir.join(format!("{PREFIX}{:010}.acrlpd.{}", now as u64, process::id()));
        let mut events = Events(BufWriter::new(File::create_new(path)?));
        events.put(&Event {
            wall_time: now,
            file_version: Some(VERSION.into()),
            ..Event::default()
        })?;
        if step > 0 {
            events.put(&Event {
                wall_time: now,
                step: step as i64 + 1,
                session_log: Some(SessionLog { status: START }),
                ..Event::default()
            })?;
        }
        Ok(events)
    }

    fn put(&mut self, event: &Event) -> io::Result<()> {
        let message = event.encode_to_vec();
        let length = (message.len() as u64).to_le_bytes();
        self.0.write_all(&length)?;
        self.0.write_all(&masked(&length).to_le_bytes())?;
        self.0.write_all(&message)?;
        self.0.write_all(&masked(&message).to_le_bytes())
    }
}

impl Sink for Events {
    fn name(&self) -> &'static str {
        Events::NAME
    }

    fn write(&mut self, point: &Point) -> io::Result<()> {
        let scalar = |(tag, x): &(String, f64)| Scalar {
            tag: tag.clone(),
            simple_value: Some(*x as f32),
        };
        self.put(&Event {
            wall_time: point.time.unwrap_or_default(),
            step: point.step as i64,
            summary: Some(Summary {
                value: point.scalars.iter().map(scalar).collect(),
            }),
            ..Event::default()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn finish(&mut self, _exit_code: u8) -> io::Result<()> {
        self.0.flush()
    }
}

/// A checksum that may itself be part of checksummed data.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The event files in `dir`, oldest first.
///
/// # Errors
/// A folder that cannot be read.
pub fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Reads an event file; what a killed program was writing at its end is left out.
///
/// # Errors
/// A file that cannot be read, and one whose checksums or messages are wrong.
pub fn read(path: &Path) -> io::Result<Vec<Event>> {
    let bytes = fs::read(path)?;
    let broken = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("`{}`: {why}", path.display()));
    let mut rest = bytes.as_slice();
    let mut events = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<8>() {
        let n = u64::from_le_bytes(*length) as usize;
        let Some((header_sum, after)) = after.split_first_chunk::<4>() else {
            break;
        };
        if u32::from_le_bytes(*header_sum) != masked(length) {
            return Err(broken("the checksum of a length is wrong"));
        }
        let Some((message, after)) = after.split_at_checked(n) else {
            break;
        };
        let Some((sum, after)) = after.split_first_chunk::<4>() else {
            break;
        };
        if u32::from_le_bytes(*sum) != masked(message) {
            return Err(broken("the checksum of an event is wrong"));
        }
        events.push(Event::decode(message).map_err(|e| broken(&e.to_string()))?);
        rest = after;
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_framing_is_that_of_tfrecord() {
        // An empty event file as other writers make it: `brain.Event:2` at time 0.
        let event = Event {
            file_version: Some(VERSION.into()),
            ..Event::default()
        };
        assert_eq!(event.encode_to_vec(), b"\x1a\x0dbrain.Event:2");
        // RFC 3720 B.4: 32 bytes of zeros have the CRC-32C 8a9136aa.
        assert_eq!(
            masked(&[0; 32]),
            0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
    }

    #[test]
    fn rows_come_back_and_a_cut_tail_does_no_harm() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut events = Events::create(dir.path(), 4).expect("a file");
        let point = Point {
            step: 5,
            time: Some(1.5e9),
            scalars: vec![("train/q".into(), 0.25), ("eval/q".into(), -3.0)],
        };
        events.write(&point).expect("written");
        events.finish(0).expect("finished");
        let path = files(dir.path()).expect("a folder").remove(0);
        let read_back = read(&path).expect("whole");
        assert_eq!(read_back[0].file_version.as_deref(), Some(VERSION));
        assert_eq!(
            (read_back[1].step, &read_back[1].session_log),
            (5, &Some(SessionLog { status: START }))
        );
        let scalars = read_back[2].summary.as_ref().expect("a summary").value.iter();
        let scalars: Vec<_> = scalars.map(|s| (s.tag.as_str(), s.simple_value)).collect();
        assert_eq!((read_back[2].step, read_back[2].wall_time), (5, 1.5e9));
        assert_eq!(scalars, [("train/q", Some(0.25)), ("eval/q", Some(-3.0))]);

        let bytes = fs::read(&path).expect("bytes");
        fs::write(&path, &bytes[..bytes.len() - 3]).expect("cut");
        assert_eq!(read(&path).expect("readable"), read_back[..2]);
        let mut flipped = bytes.clone();
        flipped[bytes.len() - 6] ^= 1;
        fs::write(&path, flipped).expect("changed");
        assert!(read(&path).is_err());
    }
}
