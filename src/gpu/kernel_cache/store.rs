//! The file that compiled kernels are kept in: a line that says what it is, then entries, one behind the other.
//!
//! ```text
//! acrlpd kernels 1 KEY BYTES XXH3\n    BYTES and XXH3 (128 bits) of what follows
//! entry entry entry …                  each a CBOR map, as cubecl writes them
//! ```
//! The file is only ever replaced as a whole, and what does not match its line is not used at all. Entries are looked
//! into only so far as to know where each ends.

use std::collections::HashSet;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use crate::files;

/// Changes when the file does.
const FORMAT: u32 = 1;
/// Nothing cubecl writes is nested deeper.
const DEPTH: u32 = 8;

/// The entries in the file at `path`, of the cache `key`; nothing if there is no file.
///
/// # Errors
/// Why what is there cannot be used.
pub(super) fn read(path: &Path, key: &str) -> Result<Vec<u8>, String> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut bytes = files::read_bytes(path).map_err(|e| e.to_string())?;
    let start = bytes
        .iter()
        .take(256)
        .position(|&b| b == b'\n')
        .ok_or("it has no first line")?
        + 1;
    let entries = bytes.split_off(start);
    if bytes != line(key, &entries).as_bytes() {
        return Err("its content does not match its first line".into());
    }
    Ok(entries)
}

/// Replaces the file.
pub(super) fn write(path: &Path, key: &str, entries: &[u8]) -> files::Result<()> {
    files::replace(path, &[line(key, entries).as_bytes(), entries].concat())
}

fn line(key: &str, entries: &[u8]) -> String {
    let hash = xxh3_128(entries);
    format!("acrlpd kernels {FORMAT} {key} {} {hash:032x}\n", entries.len())
}

/// What is in `more` and not in `entries` is added to them; returns how many there were. The end of `more` may be cut
/// off, as that of a file is that was being written.
pub(super) fn merge(entries: &mut Vec<u8>, more: &[u8]) -> usize {
    let mut known: HashSet<u128> = each(entries).map(xxh3_128).collect();
    let mut added = 0;
    for entry in each(more) {
        if known.insert(xxh3_128(entry)) {
            entries.extend_from_slice(entry);
            added += 1;
        }
    }
    added
}

/// The whole entries at the front of `bytes`.
pub(super) fn each(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let is_map = bytes.first()? >> 5 == 5;
        let end = skip(bytes, 0, DEPTH).filter(|_| is_map)?;
        let (entry, rest) = bytes.split_at(end);
        bytes = rest;
        Some(entry)
    })
}

/// Where the CBOR item that begins at `at` ends; `None` if it is cut off or not of a kind that cubecl writes.
fn skip(bytes: &[u8], at: usize, depth: u32) -> Option<usize> {
    let first = *bytes.get(at)?;
    let length = match first & 31 {
        0..24 => 0,
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => return None,
    };
    let mut end = at + 1 + length;
    let argument = match length {
        0 => u64::from(first & 31),
        _ => bytes.get(at + 1..end)?.iter().fold(0, |n, &b| n << 8 | u64::from(b)),
    };
    let children = match first >> 5 {
        // Numbers, and what is written like them: true, false, null, floats.
        0 | 1 | 7 => 0,
        // Bytes and text.
        2 | 3 => {
            end = end.checked_add(usize::try_from(argument).ok()?)?;
            0
        }
        4 => argument,
        5 => argument.checked_mul(2)?,
        // A tag is in front of one item.
        _ => 1,
    };
    if children > 0 && depth == 0 {
        return None;
    }
    for _ in 0..children {
        end = skip(bytes, end, depth - 1)?;
    }
    (end <= bytes.len()).then_some(end)
}
