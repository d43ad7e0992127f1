//! The framing of a `.wandb` file: LevelDB's log format with its own header and zlib's CRC-32.
//!
//! A file is blocks of 32 KiB; the header's 7 bytes count in the first. A record that does not fit into what is left of a
//! block is cut into chunks. A chunk is the CRC-32 of type and data (u32), the length of the data (u16), the type (u8:
//! whole, first, middle, last), and the data, little-endian. Less than a chunk's header at the end of a block is zeros.

use std::io::{self, Write};

/// `:W&B`, the magic number 0xBEE1, version 0.
const HEADER: [u8; 7] = *b":W&B\xe1\xbe\x00";
const BLOCK: usize = 32 * 1024;
/// Bytes of a chunk before its data.
const CHUNK_HEADER: usize = 7;

const WHOLE: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// Writes records.
pub struct BlockWriter<W: Write> {
    file: W,
    /// Bytes written.
    position: usize,
}

impl<W: Write> BlockWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// Those of `file`, as for all methods.
    pub fn new(mut file: W) -> io::Result<BlockWriter<W>> {
        file.write_all(&HEADER)?;
        Ok(BlockWriter {
            file,
            position: HEADER.len(),
        })
    }

    /// Appends a record.
    pub fn record(&mut self, mut data: &[u8]) -> io::Result<()> {
        let mut first = true;
        loop {
            let mut left = BLOCK - self.position % BLOCK;
            if left < CHUNK_HEADER {
                self.put(&[0; CHUNK_HEADER][..left])?;
                left = BLOCK;
            }
            let (chunk, rest) = data.split_at(data.len().min(left - CHUNK_HEADER));
            let kind = match (first, rest.is_empty()) {
                (true, true) => WHOLE,
                (true, false) => FIRST,
                (false, false) => MIDDLE,
                (false, true) => LAST,
            };
            self.put(&checksum(kind, chunk).to_le_bytes())?;
            self.put(&(chunk.len() as u16).to_le_bytes())?;
            self.put(&[kind])?;
            self.put(chunk)?;
            if rest.is_empty() {
                return Ok(());
            }
            (data, first) = (rest, false);
        }
    }

    /// Hands everything to the operating system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len();
        self.file.write_all(bytes)
    }
}

/// The records of a file, up to what a killed program was writing; `None` if something else is in it.
pub fn records(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    file.strip_prefix(&HEADER)?;
    let (mut records, mut record) = (Vec::new(), Vec::new());
    let mut position = HEADER.len();
    loop {
        let left = BLOCK - position % BLOCK;
        if left < CHUNK_HEADER {
            position += left;
        }
        let header = file
            .get(position..)
            .and_then(|rest| rest.split_first_chunk::<CHUNK_HEADER>());
        let Some(([a, b, c, d, low, high, kind], data)) = header else {
            return Some(records);
        };
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let Some(data) = data.get(..length) else {
            return Some(records);
        };
        if u32::from_le_bytes([*a, *b, *c, *d]) != checksum(*kind, data) {
            return None;
        }
        position += CHUNK_HEADER + length;
        match *kind {
            WHOLE | FIRST => record = data.to_vec(),
            MIDDLE | LAST => record.extend_from_slice(data),
            _ => return None,
        }
        if matches!(*kind, WHOLE | LAST) {
            records.push(std::mem::take(&mut record));
        }
    }
}

fn checksum(kind: u8, data: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    crc.update(data);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(data: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = BlockWriter::new(&mut bytes).expect("memory");
        data.iter().for_each(|d| writer.record(d).expect("memory"));
        bytes
    }

    proptest! {
        /// Lengths around the borders of blocks, where chunks are cut and blocks are filled up.
        #[test]
        fn records_come_back(lengths in prop::collection::vec(
            prop_oneof![0usize..40, BLOCK - 40..BLOCK + 8, 3 * BLOCK..3 * BLOCK + 40], 0..6
        )) {
            let data: Vec<Vec<u8>> = lengths.iter().map(|&n| (0..n).map(|i| (i * 31 % 251) as u8).collect()).collect();
            let bytes = framed(&data);
            prop_assert_eq!(records(&bytes), Some(data.clone()));
            // A kill leaves a beginning; whole records in it are read.
            let cut = records(&bytes[..HEADER.len() + (bytes.len() - HEADER.len()) / 2]).expect("a beginning");
            prop_assert!(data.starts_with(&cut));
        }
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let mut bytes = framed(&[vec![1, 2, 3]]);
        *bytes.last_mut().expect("not empty") ^= 1;
        assert_eq!(records(&bytes), None);
        assert_eq!(records(b"no such file"), None);
    }
}
