//! Attention in float64, by its formula: an element of a result at a time.

use std::cell::RefCell;

use crate::bench::check::Sum;
use crate::bench::work::Operand;
use crate::ops::attention::Sequence;
use crate::ops::rope::Heads;

/// Everything a reference reads.
#[derive(Clone)]
pub(super) struct Values {
    pub heads: Heads,
    pub qkv: Operand,
    pub cache: Option<Operand>,
    pub o: Option<Operand>,
    pub lse: Option<Operand>,
    pub d_o: Option<Operand>,
    /// `Σ do·o`, where it is an input.
    pub delta: Option<Operand>,
}

/// A key: in the cache, or in the rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub own: bool,
    pub row: usize,
}

impl Values {
    pub fn scale(&self) -> f64 {
        (self.heads.dim as f64).sqrt().recip()
    }

    /// Element `j` of query head `h` of row `r`.
    pub fn q(&self, r: usize, h: usize, j: usize) -> f64 {
        self.qkv.at(r * self.heads.fused() + h * self.heads.dim + j)
    }

    /// Element `j` of head `g` of a key (part 0) or value (part 1).
    pub fn kv(&self, key: Key, part: usize, g: usize, j: usize) -> f64 {
        let column = part * self.heads.kv_width() + g * self.heads.dim + j;
        match (&self.cache, key.own) {
            (Some(cache), false) => cache.at(key.row * 2 * self.heads.kv_width() + column),
            _ => self
                .qkv
                .at(key.row * self.heads.fused() + self.heads.q_width() + column),
        }
    }

    pub fn score(&self, r: usize, h: usize, key: Key) -> f64 {
        let g = h / self.heads.group();
        let dot: f64 = (0..self.heads.dim)
            .map(|j| self.q(r, h, j) * self.kv(key, 0, g, j))
            .sum();
        dot * self.scale()
    }

    fn at(&self, operand: &Option<Operand>, i: usize) -> f64 {
        operand.as_ref().map_or(0.0, |o| o.at(i))
    }

    /// `Σ do·o` of a row and head.
    pub fn delta(&self, r: usize, h: usize) -> Sum {
        if let Some(delta) = &self.delta {
            return Sum::of(delta.at(r * self.heads.q + h));
        }
        let first = r * self.heads.q_width() + h * self.heads.dim;
        (first..first + self.heads.dim)
            .map(|i| self.at(&self.d_o, i) * self.at(&self.o, i))
            .collect()
    }

    /// Probability, and gradient at the score, of one query and key.
    pub fn pair(&self, r: usize, h: usize, key: Key, delta: &Sum) -> (f64, Sum) {
        let p = (self.score(r, h, key) - self.at(&self.lse, r * self.heads.q + h)).exp();
        let (g, first) = (h / self.heads.group(), r * self.heads.q_width() + h * self.heads.dim);
        let mut ds: Sum = (0..self.heads.dim)
            .map(|j| self.at(&self.d_o, first + j) * self.kv(key, 1, g, j))
            .collect();
        ds.value -= delta.value;
        ds.size += delta.size;
        (p, ds.times(p))
    }
}

/// The keys of a sequence, in order.
pub(super) fn keys_of(s: &Sequence, cached: bool) -> Vec<Key> {
    let first = (s.k_row0..s.k_row0 + s.k_rows).map(|row| Key { own: !cached, row });
    let second = (s.own_row0..s.own_row0 + s.own_rows).map(|row| Key { own: true, row });
    first.chain(second).collect()
}

/// Remembers the last value: samples are neighbours, and neighbours share their softmax.
pub(super) fn remembered<K: PartialEq + Copy, V: Clone>(make: impl Fn(K) -> V) -> impl Fn(K) -> V {
    let last: RefCell<Option<(K, V)>> = RefCell::new(None);
    move |key| {
        if let Some((of, value)) = &*last.borrow()
            && *of == key
        {
            return value.clone();
        }
        let value = make(key);
        *last.borrow_mut() = Some((key, value.clone()));
        value
    }
}
