//! Bytes from elsewhere, read in order; nothing is believed before it has been counted.

use std::io::Read;

/// What was read, or in a few words what is wrong with the bytes.
pub(super) type Parsed<T> = std::result::Result<T, String>;

/// Most bytes that a decompressed node may have: writers of checkpoints allow 100 MB.
const MOST_NODE: u64 = 128 << 20;
/// Most bytes of all keys of a list together, which prefixes could make many of few.
const MOST_KEYS: usize = 64 << 20;

/// What is left to be read.
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, n: u64) -> Parsed<&'a [u8]> {
        let n = usize::try_from(n).ok().filter(|n| *n <= self.0.len());
        let (taken, rest) = self.0.split_at(n.ok_or("it ends too early")?);
        self.0 = rest;
        Ok(taken)
    }

    pub fn byte(&mut self) -> Parsed<u8> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned LEB128 number.
    pub fn varint(&mut self) -> Parsed<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number has more than 64 bits".into())
    }

    /// How many things follow, each of which takes at least a byte.
    pub fn count(&mut self) -> Parsed<usize> {
        let n = self.varint()?;
        let n = usize::try_from(n).ok().filter(|n| *n <= self.0.len());
        n.ok_or_else(|| "it announces more entries than it has bytes".into())
    }

    pub fn varints(&mut self, n: usize) -> Parsed<Vec<u64>> {
        (0..n).map(|_| self.varint()).collect()
    }

    /// `n` strings of which each shares the beginning of the one before. Between lengths and contents lies what
    /// `between` reads.
    pub fn strings(&mut self, n: usize, between: impl FnOnce(&mut Cursor) -> Parsed<()>) -> Parsed<Vec<Vec<u8>>> {
        let shared = self.varints(n.saturating_sub(1))?;
        let own = self.varints(n)?;
        between(self)?;
        let mut strings: Vec<Vec<u8>> = Vec::new();
        let mut total = 0;
        for (i, own) in own.into_iter().enumerate() {
            let start = match i {
                0 => &[][..],
                _ => usize::try_from(shared[i - 1])
                    .ok()
                    .and_then(|n| strings[i - 1].get(..n))
                    .ok_or("a key shares more than the one before has")?,
            };
            let string = [start, self.take(own)?].concat();
            total += string.len();
            if total > MOST_KEYS {
                return Err("its keys are too long".into());
            }
            strings.push(string);
        }
        Ok(strings)
    }
}

/// The content of a manifest or node: `magic`, length, version, compression, content, CRC-32C of all before it.
pub(super) fn unpacked(bytes: &[u8], magic: u32) -> Parsed<Vec<u8>> {
    let (sealed, crc) = bytes.split_last_chunk::<4>().ok_or("it ends too early")?;
    let mut cursor = Cursor::new(sealed);
    if cursor.take(4)? != magic.to_be_bytes() {
        return Err("it does not begin as it should".into());
    }
    if cursor.take(8)? != (bytes.len() as u64).to_le_bytes() {
        return Err("its length is not the one it states".into());
    }
    if crc32c::crc32c(sealed) != u32::from_le_bytes(*crc) {
        return Err("its checksum (CRC-32C) does not match".into());
    }
    match cursor.varint()? {
        0 => {}
        version => return Err(format!("it has version {version} of the format, only 0 is known")),
    }
    match cursor.varint()? {
        0 => Ok(cursor.0.to_vec()),
        1 => decompressed(cursor.0),
        method => Err(format!("it is compressed by an unknown method ({method})")),
    }
}

fn decompressed(bytes: &[u8]) -> Parsed<Vec<u8>> {
    let failed = |e: std::io::Error| format!("it cannot be decompressed ({e})");
    let decoder = zstd::Decoder::with_buffer(bytes).map_err(failed)?;
    let mut content = Vec::new();
    decoder.take(MOST_NODE + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MOST_NODE {
        return Err(format!("it has more than {MOST_NODE} bytes when decompressed"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_length() {
        let read = |bytes: &[u8]| Cursor::new(bytes).varint();
        assert_eq!(read(&[0x7f]), Ok(127));
        assert_eq!(read(&[0xac, 0x02]), Ok(300));
        let mut most = [0xff; 10];
        most[9] = 1;
        assert_eq!(read(&most), Ok(u64::MAX));
        most[9] = 2;
        assert!(read(&most).unwrap_err().contains("64 bits"));
        assert!(read(&[0x80; 11]).unwrap_err().contains("64 bits"));
        assert!(read(&[0x80]).unwrap_err().contains("too early"));
        assert!(Cursor::new(&[5, 0, 0]).count().unwrap_err().contains("more entries"));
    }

    #[test]
    fn strings_that_share_beginnings() {
        // Lengths shared (2, 0), own (3, 1, 1), then the contents.
        let bytes = [2, 0, 3, 1, 1, b'a', b'b', b'c', b'd', b'x'];
        let strings = Cursor::new(&bytes).strings(3, |_| Ok(())).unwrap();
        assert_eq!(strings, [&b"abc"[..], b"abd", b"x"]);
        assert!(Cursor::new(&[9, 1, 1, b'a', b'b']).strings(2, |_| Ok(())).is_err());
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let zeros = zstd::encode_all(std::io::repeat(0).take(MOST_NODE + 1), 1).unwrap();
        assert!(zeros.len() < 100_000);
        assert!(decompressed(&zeros).unwrap_err().contains("more than"));
    }
}
