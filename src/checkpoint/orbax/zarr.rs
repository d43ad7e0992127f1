//! zarr v2: an array as a grid of chunks of equal size, described by a JSON object.
//!
//! Arrays are read in blocks of rows (indices of the first axis). A chunk is unpacked from its beginning only as far as
//! rows were asked for, and stays open: rows asked for in their order are unpacked once, and never are more in memory
//! than were asked for.

use std::io::{self, Cursor, Read};
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::cursor::Parsed;
use super::ocdbt::{Store, Value};

/// Most elements of an array; the largest of π₀ has 1.2 · 10⁹.
const MOST_ELEMENTS: u64 = 1 << 31;
/// Most chunks beside each other.
const MOST_CHUNKS: usize = 1 << 10;
/// Fewer bytes are not worth a thread.
const SPLIT: usize = 1 << 20;

/// Where and how an array is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Array {
    /// In front of `/.zarray` and of the chunks' keys.
    pub key: String,
    pub dtype: Dtype,
    /// Of a scalar `[]`.
    pub shape: Vec<usize>,
    /// Shape of a chunk, those at the edges included.
    chunks: Vec<usize>,
    compressed: bool,
    separator: char,
}

/// `.zarray`.
#[derive(Deserialize)]
struct Description {
    zarr_format: u8,
    shape: Vec<u64>,
    chunks: Vec<u64>,
    dtype: String,
    compressor: Option<Compressor>,
    filters: Option<IgnoredAny>,
    order: char,
    fill_value: Option<serde_json::Number>,
    dimension_separator: Option<char>,
}

#[derive(Deserialize)]
struct Compressor {
    id: String,
}

impl Array {
    /// The array that `key` names.
    pub fn open(store: &Store, key: &str) -> Parsed<Array> {
        let described = store.get(&format!("{key}/.zarray")).ok_or("it is not in the store")?;
        let d: Description =
            serde_json::from_slice(described.bytes()).map_err(|e| format!("its .zarray cannot be understood ({e})"))?;
        let refused = |what: String| Err(format!("{what} cannot be read"));
        let compressed = match d.compressor.as_ref().map(|c| c.id.as_str()) {
            None => false,
            Some("zstd") => true,
            Some(other) => return refused(format!("the compression `{other}`")),
        };
        if d.zarr_format != 2 || d.order != 'C' || d.filters.is_some() {
            return refused("zarr that is not version 2, in C order and without filters".into());
        }
        if d.fill_value.is_some_and(|fill| fill.as_f64() != Some(0.0)) {
            return refused("a fill value other than zero".into());
        }
        let (Some(dtype), Some(separator)) = (dtype(&d.dtype), known_separator(d.dimension_separator)) else {
            return refused(format!("elements of type `{}`", d.dtype));
        };
        let (Some(shape), Some(chunks)) = (sizes(&d.shape, 0), sizes(&d.chunks, 1)) else {
            return refused(format!("the shape {:?} in chunks of {:?}", d.shape, d.chunks));
        };
        let array = Array {
            key: key.into(),
            dtype,
            shape,
            chunks,
            compressed,
            separator,
        };
        if array.shape.len() != array.chunks.len() || array.is_unreasonable() {
            return refused(format!("the shape {:?} in chunks of {:?}", d.shape, d.chunks));
        }
        Ok(array)
    }

    /// Bytes of an element.
    pub fn element(&self) -> usize {
        self.dtype.bitsize() / 8
    }

    /// Rows; a scalar is one.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Bytes of a row.
    pub fn row(&self) -> usize {
        self.shape.iter().skip(1).product::<usize>() * self.element()
    }

    /// Rows of a chunk.
    fn chunk_rows(&self) -> usize {
        self.chunks.first().copied().unwrap_or(1)
    }

    /// Bytes of a row of a chunk.
    fn chunk_row(&self) -> usize {
        self.chunks.iter().skip(1).product::<usize>() * self.element()
    }

    /// Too many chunks beside each other, or such that are mostly beyond the edge.
    fn is_unreasonable(&self) -> bool {
        let chunks = self.beside().try_fold(1usize, |n, d| n.checked_mul(d));
        chunks.is_none_or(|n| n > MOST_CHUNKS) || self.chunk_row() > 16 * self.row().max(4096)
    }

    /// Chunks along each axis but the first.
    fn beside(&self) -> impl Iterator<Item = usize> {
        let pairs = self.shape.iter().zip(&self.chunks).skip(1);
        pairs.map(|(whole, part)| whole.div_ceil(*part))
    }

    /// The chunks of the row of chunks `i`, each with its place in the axes but the first.
    fn open_chunks(&self, store: &Store, i: usize) -> Parsed<Vec<Chunk>> {
        let grid: Vec<usize> = self.beside().collect();
        let n: usize = grid.iter().product();
        let mut all = Vec::with_capacity(n);
        for flat in 0..n {
            let mut place = vec![0; grid.len()];
            let mut rest = flat;
            for (at, size) in place.iter_mut().zip(&grid).rev() {
                (*at, rest) = (rest % size, rest / size);
            }
            let numbers: Vec<String> = std::iter::once(&i).chain(&place).map(usize::to_string).collect();
            let key = format!("{}/{}", self.key, numbers.join(&self.separator.to_string()));
            let content = match store.get(&key) {
                None => Content::Missing,
                Some(value) if self.compressed => Content::compressed(value, &key)?,
                Some(value) => Content::plain(value, self.chunk_rows() * self.chunk_row(), &key)?,
            };
            all.push(Chunk { key, place, content });
        }
        Ok(all)
    }
}

fn known_separator(separator: Option<char>) -> Option<char> {
    Some(separator.unwrap_or('.')).filter(|c| matches!(c, '.' | '/'))
}

/// Sizes of at least `least` with a product that is not absurd.
fn sizes(given: &[u64], least: u64) -> Option<Vec<usize>> {
    let product = given.iter().try_fold(1u64, |n, d| n.checked_mul((*d).max(1)));
    let sound = product.is_some_and(|n| n <= MOST_ELEMENTS) && given.iter().all(|d| *d >= least);
    sound.then(|| given.iter().map(|d| *d as usize).collect())
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "<f4" => Dtype::F32,
        "<f2" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "<f8" => Dtype::F64,
        "<i4" => Dtype::I32,
        "<i8" => Dtype::I64,
        "<u4" => Dtype::U32,
        "|i1" => Dtype::I8,
        "|u1" => Dtype::U8,
        "|b1" => Dtype::BOOL,
        _ => return None,
    })
}

/// A chunk that is being read.
struct Chunk {
    key: String,
    /// In the grid of chunks, without the first axis.
    place: Vec<usize>,
    content: Content,
}

enum Content {
    /// Zeros.
    Missing,
    Plain(Cursor<Value>),
    Compressed(Box<zstd::Decoder<'static, Cursor<Value>>>),
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Content {
    fn plain(value: &Value, bytes: usize, key: &str) -> Parsed<Content> {
        match value.bytes().len() == bytes {
            true => Ok(Content::Plain(Cursor::new(value.clone()))),
            false => Err(format!(
                "its chunk `{key}` has {} bytes instead of {bytes}",
                value.bytes().len()
            )),
        }
    }

    fn compressed(value: &Value, key: &str) -> Parsed<Content> {
        let decoder = zstd::Decoder::with_buffer(Cursor::new(value.clone()));
        let decoder = decoder.map_err(|e| format!("its chunk `{key}` cannot be decompressed ({e})"))?;
        Ok(Content::Compressed(decoder.into()))
    }

    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        match self {
            Content::Missing => into.fill(0),
            Content::Plain(bytes) => bytes.read_exact(into)?,
            Content::Compressed(decoder) => decoder.read_exact(into)?,
        }
        Ok(())
    }

    /// Reads over `bytes`.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = match self {
            Content::Missing => bytes,
            Content::Plain(content) => io::copy(&mut content.take(bytes), &mut io::sink())?,
            Content::Compressed(decoder) => io::copy(&mut decoder.take(bytes), &mut io::sink())?,
        };
        match skipped == bytes {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Whether nothing is left.
    fn at_end(&mut self) -> io::Result<bool> {
        match self {
            Content::Missing => Ok(true),
            Content::Plain(bytes) => Ok(bytes.read(&mut [0])? == 0),
            Content::Compressed(decoder) => Ok(decoder.read(&mut [0])? == 0),
        }
    }
}

impl Chunk {
    fn broken(&self, e: &io::Error) -> String {
        format!("its chunk `{}` cannot be read ({e})", self.key)
    }

    fn done(&mut self, left: u64) -> Parsed<()> {
        let ended = self.content.skip(left).and_then(|()| self.content.at_end());
        match ended.map_err(|e| self.broken(&e))? {
            true => Ok(()),
            false => Err(format!("its chunk `{}` is longer than it should be", self.key)),
        }
    }
}

/// The chunks in which an array is being read.
pub(super) struct Stream {
    key: String,
    /// Row of chunks.
    at: usize,
    /// The row that comes next.
    next: usize,
    chunks: Vec<Chunk>,
}

/// Reads `rows` of `array`; `stream` is what was read before, if anything, and what may go on from there.
pub(super) fn read(store: &Store, array: &Array, rows: Range<usize>, stream: &mut Option<Stream>) -> Parsed<Vec<u8>> {
    let mut all = vec![0; rows.len() * array.row()];
    let mut done = 0;
    let mut first = rows.start;
    while first < rows.end {
        let at = first / array.chunk_rows();
        let end = rows.end.min((at + 1) * array.chunk_rows());
        let mut open = match stream.take() {
            Some(open) if open.key == array.key && open.at == at && open.next <= first => open,
            _ => Stream {
                key: array.key.clone(),
                at,
                next: at * array.chunk_rows(),
                chunks: array.open_chunks(store, at)?,
            },
        };
        let bytes = (end - first) * array.row();
        open.rows(array, first..end, &mut all[done..done + bytes])?;
        (done, first) = (done + bytes, end);
        *stream = open.unless_done(array)?;
    }
    Ok(all)
}

impl Stream {
    /// Reads rows of this row of chunks.
    fn rows(&mut self, array: &Array, rows: Range<usize>, into: &mut [u8]) -> Parsed<()> {
        let over = ((rows.start - self.next) * array.chunk_row()) as u64;
        self.next = rows.end;
        let bytes = rows.len() * array.chunk_row();
        if let ([chunk], true) = (&mut self.chunks[..], array.chunk_row() == array.row()) {
            let read = chunk.content.skip(over).and_then(|()| chunk.content.fill(into));
            return read.map_err(|e| chunk.broken(&e));
        }
        let parts = in_threads(&mut self.chunks, bytes, |chunk| {
            let mut part = vec![0; bytes];
            chunk.content.skip(over)?;
            chunk.content.fill(&mut part)?;
            Ok(part)
        })?;
        for (chunk, part) in self.chunks.iter().zip(parts) {
            place(array, &chunk.place, rows.len(), &part, into);
        }
        Ok(())
    }

    /// Itself as long as rows are left; after the last one the chunks must end.
    fn unless_done(mut self, array: &Array) -> Parsed<Option<Stream>> {
        let last = (self.at + 1) * array.chunk_rows();
        if self.next < last.min(array.rows()) {
            return Ok(Some(self));
        }
        let left = ((last - self.next) * array.chunk_row()) as u64;
        for chunk in &mut self.chunks {
            chunk.done(left)?;
        }
        Ok(None)
    }
}

/// What `read` makes of every chunk, `bytes` each, in as many threads as there are processors if it is worth it.
fn in_threads(
    chunks: &mut [Chunk],
    bytes: usize,
    read: impl Fn(&mut Chunk) -> io::Result<Vec<u8>> + Sync,
) -> Parsed<Vec<Vec<u8>>> {
    let several = |chunks: &mut [Chunk]| -> Parsed<Vec<Vec<u8>>> {
        let one = |chunk: &mut Chunk| read(chunk).map_err(|e| chunk.broken(&e));
        chunks.iter_mut().map(one).collect()
    };
    if bytes * chunks.len() < SPLIT {
        return several(chunks);
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let few = chunks.len().div_ceil(threads);
    let parts: Parsed<Vec<_>> = std::thread::scope(|scope| {
        let running: Vec<_> = chunks.chunks_mut(few).map(|few| scope.spawn(|| several(few))).collect();
        let ended = running.into_iter().map(|thread| thread.join());
        ended
            .map(|part| part.unwrap_or_else(|_| Err("a thread that reads it panicked".into())))
            .collect()
    });
    Ok(parts?.concat())
}

/// Copies `rows` rows of a chunk to their place in as many rows of the array, without what is beyond its edges.
fn place(array: &Array, at: &[usize], rows: usize, part: &[u8], into: &mut [u8]) {
    let (shape, chunk) = (&array.shape[1..], &array.chunks[1..]);
    let kept: Vec<usize> = (0..at.len())
        .map(|a| chunk[a].min(shape[a] - at[a] * chunk[a]))
        .collect();
    // Runs of elements that lie next to each other in both.
    let (run, lines) = match kept.split_last() {
        Some((run, lines)) => (*run, lines),
        None => (1, &[][..]),
    };
    let size = array.element();
    for line in 0..rows * lines.iter().product::<usize>() {
        let (mut rest, mut from, mut to) = (line, 0, 0);
        let (mut chunk_step, mut step) = (chunk.last().copied().unwrap_or(1), shape.last().copied().unwrap_or(1));
        to += at.last().map_or(0, |i| i * chunk[at.len() - 1]);
        for axis in (0..lines.len()).rev() {
            let i = rest % lines[axis];
            rest /= lines[axis];
            from += i * chunk_step;
            to += (at[axis] * chunk[axis] + i) * step;
            (chunk_step, step) = (chunk_step * chunk[axis], step * shape[axis]);
        }
        (from, to) = (from + rest * chunk_step, to + rest * step);
        into[to * size..(to + run) * size].copy_from_slice(&part[from * size..(from + run) * size]);
    }
}
