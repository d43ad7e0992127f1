//! A table that is only looked up, such as the prompt embedding: few of its rows ever occur, and only those can learn.
//!
//! A row without gradient and with zero moments is left as it is by an update whose learning rate times weight decay is
//! below the resolution of f32, and so is its average ([`stands_still`]). Rows that never occurred therefore need no
//! gradient, no moments and no average: the table itself does not learn. A row that occurs in a gradient for the first
//! time is copied to the next free one of some rows that do ([`Touched`]), and stays there. Kernels see both as one
//! table with the rows that learn at its end, so a token is looked up in one or the other by its row's number alone.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::params::ParamTensor;
use super::placement::{Part, Placement};
use super::store::ParamStore;
use crate::gpu::{Gpu, Tensor};
use crate::ops::reduce::Scattered;
use crate::ops::split::Values;

/// The unit whose only group is looked up, and how many rows of it can learn; `None`: all, where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookedUp {
    pub unit: usize,
    pub rows: Option<usize>,
}

/// Does an update at this learning rate leave a weight without gradient and moments as it is? `p - lr·λ·p` rounds to p in
/// f32 where lr·λ is at most 2⁻²⁵; half of that leaves room for the roundings on the way.
pub fn stands_still(lr: f64, weight_decay: f64) -> bool {
    lr * weight_decay < f64::from(f32::EPSILON) / 8.0
}

/// Rows of a table that learn.
#[derive(Debug)]
pub struct Touched {
    unit: usize,
    /// Rows of the table, and of those that can learn.
    rows: usize,
    capacity: usize,
    pub(super) parts: Vec<Part>,
    taken: RwLock<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Row of the table that each one is.
    ids: Vec<u32>,
    slots: HashMap<u32, u32>,
}

impl Touched {
    pub(super) fn new(unit: usize, rows: usize, capacity: usize, parts: Vec<Part>) -> Touched {
        Touched {
            unit,
            rows,
            capacity,
            parts,
            taken: RwLock::default(),
        }
    }

    fn taken(&self) -> RwLockReadGuard<'_, Taken> {
        self.taken.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn taking(&self) -> RwLockWriteGuard<'_, Taken> {
        self.taken.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows that can learn.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Rows of the table that learn, in the order in which they lie.
    pub fn ids(&self) -> Vec<u32> {
        self.taken().ids.clone()
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.taken().ids.len()
    }

    /// None yet?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where kernels find row `id` of the table: there, or among those that learn, which come behind it.
    pub fn row(&self, id: u32) -> u32 {
        self.taken().slots.get(&id).map_or(id, |slot| self.rows as u32 + slot)
    }

    /// Those of `ids` that are not among the rows that learn, each once, in order.
    pub fn missing(&self, ids: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let taken = self.taken();
        let mut new = Vec::new();
        for id in ids {
            if (id as usize) < self.rows && !taken.slots.contains_key(&id) && !new.contains(&id) {
                new.push(id);
            }
        }
        new
    }

    /// Lets rows `ids` learn from now on, which must be new; says where they lie. `None`: there is no room.
    #[must_use]
    pub fn take(&self, ids: &[u32]) -> Option<Range<usize>> {
        let mut taken = self.taking();
        let first = taken.ids.len();
        let end = first + ids.len();
        if end > self.capacity {
            return None;
        }
        for (slot, &id) in (first..).zip(ids) {
            taken.ids.push(id);
            taken.slots.insert(id, slot as u32);
        }
        Some(first..end)
    }

    /// Forgets which rows learn.
    pub fn clear(&self) {
        *self.taking() = Taken::default();
    }
}

impl Placement {
    /// The rows that learn of a table that does not.
    pub fn touched(&self) -> Option<&Touched> {
        self.touched.as_ref()
    }

    /// Those of unit `unit`.
    pub(super) fn touched_of(&self, unit: usize) -> Option<&Touched> {
        self.touched().filter(|t| t.unit == unit)
    }

    fn width(&self, unit: usize) -> usize {
        let group = &self.table.units[unit].groups[0];
        group.len() / group.shape[0].max(1)
    }
}

impl ParamStore {
    /// The rows of unit `unit` that learn: (row as kernels count them, matrix).
    pub(super) fn touched_parts(&self, unit: usize) -> Vec<(usize, Tensor)> {
        let Some(touched) = self.placement.touched_of(unit) else {
            return Vec::new();
        };
        let width = self.placement.width(unit);
        let matrix = |p: &Part| {
            let rows = self.pages[p.page].slice(p.offset, [p.rows, width]);
            (touched.rows + p.first_row, rows)
        };
        touched.parts.iter().map(matrix).collect()
    }

    /// Rows `slots` of those that learn, flat, in pieces: (first row, values).
    fn slots(&self, touched: &Touched, slots: Range<usize>) -> Vec<(usize, Values)> {
        self.cut(&touched.parts, self.placement.width(touched.unit), slots)
    }

    /// Rows `rows` of a matrix in these parts, flat, in pieces: (first row, values).
    fn cut(&self, parts: &[Part], width: usize, rows: Range<usize>) -> Vec<(usize, Values)> {
        let piece = |p: &Part| {
            let (a, b) = (rows.start.max(p.first_row), rows.end.min(p.first_row + p.rows));
            let at = || p.offset + (a - p.first_row) * width;
            (a < b).then(|| (a, self.page(p.page).slice(at(), (b - a) * width)))
        };
        parts.iter().filter_map(piece).collect()
    }

    /// The same as (page, first element, values).
    fn flat(&self, parts: &[Part], width: usize, rows: Range<usize>) -> Vec<(usize, usize, Values)> {
        let pieces = parts.iter().flat_map(|p| {
            self.cut(&[*p], width, rows.clone())
                .into_iter()
                .map(move |piece| (p, piece))
        });
        let place =
            |(p, (first, values)): (&Part, (usize, Values))| (p.page, p.offset + (first - p.first_row) * width, values);
        pieces.map(place).collect()
    }

    /// The table of `touched` in order, flat: its rows of this store, those that learn from `learning`.
    pub(super) fn spliced(&self, touched: &Touched, learning: &ParamStore) -> Vec<Values> {
        let (unit, width) = (touched.unit, self.placement.width(touched.unit));
        let mut moved: Vec<(usize, usize)> = (0..).zip(touched.ids()).map(|(slot, id)| (id as usize, slot)).collect();
        moved.sort_unstable();
        let (mut ranges, mut next) = (Vec::new(), 0);
        let table = |rows: Range<usize>| self.cut(&self.placement.parts[unit][0], width, rows);
        for (id, slot) in moved {
            ranges.extend(table(next..id));
            ranges.extend(learning.slots(touched, slot..slot + 1));
            next = id + 1;
        }
        ranges.extend(table(next..touched.rows));
        ranges.into_iter().map(|(_, values)| values).collect()
    }

    /// What a store of rows that learn holds of their table: a tensor of as many rows, in the order of [`Touched::ids`].
    pub(super) fn touched_tensor(&self, touched: &Touched) -> (ParamTensor, Vec<Values>) {
        let mut tensor = self.placement.table.units[touched.unit].groups[0].tensors[0].clone();
        tensor.shape[0] = touched.len();
        let ranges = self.slots(touched, 0..touched.len());
        (tensor, ranges.into_iter().map(|(_, values)| values).collect())
    }

    /// Like [`ParamStore::named`], but what `average` has memory for is read from there.
    pub fn named_with(&self, average: &ParamStore) -> Vec<(ParamTensor, Vec<Values>)> {
        let mut out = Vec::new();
        for unit in 0..self.placement.table.units.len() {
            match self.placement.touched_of(unit) {
                Some(touched) => {
                    let tensor = self.placement.table.units[unit].groups[0].tensors[0].clone();
                    out.push((tensor, self.spliced(touched, average)));
                }
                None => {
                    let mut own = average.named_of(unit).into_iter().peekable();
                    let averaged = |(tensor, ranges): (ParamTensor, Vec<Values>)| {
                        own.next_if(|(t, _)| t.name == tensor.name).unwrap_or((tensor, ranges))
                    };
                    out.extend(self.named_of(unit).into_iter().map(averaged));
                }
            }
        }
        out
    }

    /// The table that is looked up, for sums over its rows, which do not depend on which rows learn apart from it.
    pub fn looked_up(&self, gpu: &Gpu) -> Option<Scattered> {
        let unit = self.placement.looked_up?;
        let (rows, width) = (
            self.placement.table.units[unit].groups[0].shape[0],
            self.placement.width(unit),
        );
        let mut all = Scattered {
            rows,
            width,
            parts: Vec::new(),
            moved: Vec::new(),
        };
        if self.holds(unit, 0) {
            all.parts = self.cut(&self.placement.parts[unit][0], width, 0..rows);
        }
        if let Some(touched) = self.placement.touched().filter(|t| !t.is_empty()) {
            let ids = touched.ids();
            let pieces = self.slots(touched, 0..ids.len()).into_iter();
            let moved = |(first, values): (usize, Values)| {
                let ids = &ids[first..first + values.len() / width];
                (gpu.upload_u32(ids, [ids.len()]), values)
            };
            all.moved = pieces.map(moved).collect();
        }
        Some(all)
    }

    /// Copies rows `ids` of the table, as `weights` holds them, to rows `slots` of those that learn, in all stores.
    pub(crate) fn move_rows(gpu: &Gpu, weights: &ParamStore, others: &[&ParamStore], ids: &[u32], slots: Range<usize>) {
        let Some(touched) = weights.placement.touched() else {
            return;
        };
        let width = weights.placement.width(touched.unit);
        let whole = gpu.f32([ids.len(), width]);
        for (i, &id) in ids.iter().enumerate() {
            let id = id as usize;
            let row = weights.cut(&weights.placement.parts[touched.unit][0], width, id..id + 1);
            row.iter()
                .for_each(|(_, values)| values.copy_to(gpu, &whole.slice(i * width, [width])));
        }
        for store in std::iter::once(weights).chain(others.iter().copied()) {
            if let Some(host) = store.host() {
                host.begin(&weights.flat(&touched.parts, width, slots.clone()));
                continue;
            }
            for (first, values) in store.slots(touched, slots.clone()) {
                let from = whole.slice((first - slots.start) * width, [values.len()]);
                store.convert(gpu, &from, &values);
            }
        }
    }

    /// Sets the rows that can learn to zero, whether they do or not.
    pub(crate) fn clear_touched(&self, gpu: &Gpu) {
        let Some(touched) = self.placement.touched() else {
            return;
        };
        for (_, values) in self.slots(touched, 0..touched.capacity) {
            if values.kept.is_some() {
                values.write(gpu, &vec![0.0; values.len()]);
                continue;
            }
            for half in std::iter::once(&values.high).chain(&values.low) {
                crate::ops::fill::zero(gpu, half);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_below_the_resolution_moves_no_weight() {
        let (lr, decay) = (1e-3f32, 1.4e-5f32);
        assert!(stands_still(f64::from(lr), f64::from(decay)) && !stands_still(1e-3, 1e-4));
        // Mantissas of all kinds, smallest and largest numbers.
        for bits in (0..u32::MAX / 2).step_by(99_991) {
            let p = f32::from_bits(bits);
            if p.is_finite() {
                assert_eq!((p - lr * (0.0 + decay * p)).to_bits(), p.to_bits(), "{p:e}");
                assert_eq!(
                    (-lr).mul_add((decay).mul_add(p, 0.0), p).to_bits(),
                    p.to_bits(),
                    "{p:e}"
                );
            }
        }
        // The power of two above which the spacing of numbers doubles is the first to move.
        let one = std::hint::black_box(1.0f32);
        assert!(one - 1.0001 * f32::EPSILON / 4.0 < one);
    }

    #[test]
    fn rows_are_taken_once_and_no_more_than_there_is_room_for() {
        let touched = Touched::new(0, 100, 3, Vec::new());
        assert_eq!(touched.missing([7, 5, 7, 100, 5]), [7, 5]);
        assert_eq!(touched.take(&[7, 5]), Some(0..2));
        assert_eq!((touched.row(7), touched.row(5), touched.row(6)), (100, 101, 6));
        assert_eq!(touched.missing([5, 6, 7]), [6]);
        assert_eq!(touched.take(&[6, 8]), None);
        assert_eq!(touched.ids(), [7, 5]);
        touched.clear();
        assert!(touched.is_empty() && touched.row(7) == 7);
    }
}
