//! The host's side of moments in [blocks](super::blockwise): ranges of them are read and written as f32.
//!
//! Blocks are encoded as a whole. Where a range covers a block in part, the f32 values written to it so far are kept until
//! the next update, so that a block that is written piece by piece ends as if it had been written at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::blockwise::{BLOCK, Moment, WORDS};
use crate::gpu::{Gpu, Result, Tensor};

/// Blocks that pass through the host at a time.
const THROUGH: usize = 1 << 16;

/// Values of blocks of one page that were written in part, by the number of the block in it.
#[derive(Clone, Debug, Default)]
pub struct Open(Arc<Mutex<HashMap<usize, [f32; BLOCK]>>>);

impl Open {
    /// Forgets them: from here on the device's own are the newest.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, [f32; BLOCK]>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A range of the values in a page of blocks.
#[derive(Clone, Debug)]
pub struct Packed {
    pub moment: Moment,
    /// First value, counted from the start of the page.
    pub start: usize,
    pub len: usize,
    pub open: Open,
}

impl Packed {
    /// Values `start..start + len` of these.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Packed {
        assert!(start + len <= self.len, "{start} + {len} of {}", self.len);
        Packed {
            start: self.start + start,
            len,
            ..self.clone()
        }
    }

    /// Parts of the range with the blocks they lie in: (first block, blocks, first value, values).
    fn parts(&self) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let (start, end) = (self.start, self.start + self.len);
        let (first, last) = (start / BLOCK, end.div_ceil(BLOCK));
        (first..last).step_by(THROUGH).map(move |block| {
            let blocks = THROUGH.min(last - block);
            let from = start.max(block * BLOCK);
            (block, blocks, from, end.min((block + blocks) * BLOCK) - from)
        })
    }

    /// Reads the values from the words of their page. Waits for all work before.
    ///
    /// # Errors
    /// A device that failed.
    pub fn read(&self, gpu: &Gpu, page: &Tensor) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(self.len);
        for (block, blocks, from, len) in self.parts() {
            let words = gpu.read_u32(&page.slice(block * WORDS, [blocks * WORDS]))?;
            let all = words
                .as_chunks::<WORDS>()
                .0
                .iter()
                .flat_map(|w| self.moment.decode_block(w));
            values.extend(all.skip(from - block * BLOCK).take(len));
        }
        Ok(values)
    }

    /// Overwrites the values, as many as there are.
    pub fn write(&self, gpu: &Gpu, page: &Tensor, values: &[f32]) {
        let mut open = self.open.lock();
        for (block, blocks, from, len) in self.parts() {
            let mut words = Vec::with_capacity(blocks * WORDS);
            for block in block..block + blocks {
                let (a, b) = (from.max(block * BLOCK), (from + len).min((block + 1) * BLOCK));
                let new = &values[a - self.start..b - self.start];
                let whole = match new.as_chunks::<BLOCK>().0 {
                    [whole] => {
                        open.remove(&block);
                        *whole
                    }
                    _ => {
                        let held = open.entry(block).or_insert_with(|| self.held(gpu, page, block));
                        held[a - block * BLOCK..][..new.len()].copy_from_slice(new);
                        *held
                    }
                };
                words.extend(self.moment.encode_block(&whole));
            }
            let words = gpu.upload_u32(&words, [words.len()]);
            gpu.copy(&words, &page.slice(block * WORDS, [blocks * WORDS]));
        }
    }

    /// What a block holds on the device; zeros if that has failed, which it will tell.
    fn held(&self, gpu: &Gpu, page: &Tensor, block: usize) -> [f32; BLOCK] {
        let words = gpu.read_u32(&page.slice(block * WORDS, [WORDS])).unwrap_or_default();
        words
            .first_chunk()
            .map_or([0.0; BLOCK], |words| self.moment.decode_block(words))
    }
}
