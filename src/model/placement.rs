//! Where parameters live: a range of flat pages for every group of a table.

use std::sync::Arc;

use super::lookup::{LookedUp, Touched};
use super::params::{Group, ParamTable, Unit};
use crate::gpu::Caps;
use crate::ops::blockwise;

/// Groups start at multiples of this many elements, so that views are aligned for every device and type, and no block of
/// moments holds values of two of them.
pub(super) const ALIGN: usize = blockwise::BLOCK;

/// A contiguous range of rows of a group in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) page: usize,
    pub(super) offset: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
}

/// Where every group of a table lies: the same for weights, gradients and optimizer states.
#[derive(Debug)]
pub struct Placement {
    pub(super) table: Arc<ParamTable>,
    /// Elements of each page. Pages of groups that learn come first.
    pub(super) pages: Vec<usize>,
    pub(super) learning: usize,
    /// Pages of f32 weights: those of groups that learn, and of the table of which rows do.
    pub(super) whole: usize,
    /// `[unit][group]` -> parts; more than one only where a group exceeds what a kernel may bind.
    pub(super) parts: Vec<Vec<Vec<Part>>>,
    /// The unit that is looked up, and the rows of it that learn if it does not do so as a whole.
    pub(super) looked_up: Option<usize>,
    pub(super) touched: Option<Touched>,
    /// (unit, group) of what has no place.
    pub(super) unused: Vec<(usize, usize)>,
}

/// Parts of a network that are placed in their own way.
#[derive(Clone, Debug, Default)]
pub struct Special {
    /// A table that is looked up: the last of what learns, on pages of its own, so that everything else lies where it does
    /// whether all or some of its rows learn.
    pub looked_up: Option<LookedUp>,
    /// (unit, group) of what nothing computes with: stores keep it on the host, and it does not learn.
    pub unused: Vec<(usize, usize)>,
}

impl Placement {
    /// Places `table` for a device. Groups that do not learn get pages of their own, so that gradients and optimizer
    /// states need memory for the others only.
    pub fn new(table: Arc<ParamTable>, caps: &Caps) -> Placement {
        Placement::with(table, caps, Special::default())
    }

    /// The same with parts that are placed in their own way.
    pub fn with(table: Arc<ParamTable>, caps: &Caps, special: Special) -> Placement {
        let Special { looked_up, unused } = special;
        let looked_up = looked_up.filter(|l| table.units[l.unit].groups[0].learns);
        let is_table = |unit: usize| looked_up.is_some_and(|l| l.unit == unit);
        let rows = looked_up.and_then(|l| l.rows);
        // Largest element type first: every store of this placement must fit.
        let most_page = (caps.max_page_bytes / 4) as usize / ALIGN * ALIGN;
        let most_part = ((caps.max_binding_bytes - caps.alignment) / 4) as usize;
        let mut pages: Vec<usize> = vec![0];
        let places = |unit: &Unit| vec![Vec::new(); unit.groups.len()];
        let mut parts: Vec<Vec<Vec<Part>>> = table.units.iter().map(places).collect();
        let of_group = |group: &Group, pages: &mut Vec<usize>| {
            let rows = group.shape[0];
            place(rows, group.len() / rows.max(1), most_page, most_part, pages)
        };
        let all = |parts: &mut Vec<Vec<Vec<Part>>>, pages: &mut Vec<usize>, learns: bool| {
            for (u, unit) in table.units.iter().enumerate().filter(|(u, _)| !is_table(*u)) {
                let groups = unit.groups.iter().enumerate().filter(|(_, g)| g.learns == learns);
                for (g, group) in groups.filter(|(g, _)| !unused.contains(&(u, *g))) {
                    parts[u][g] = of_group(group, pages);
                }
            }
        };
        all(&mut parts, &mut pages, true);
        let mut touched = None;
        if let Some(l) = looked_up {
            open(&mut pages);
            let group = &table.units[l.unit].groups[0];
            match rows {
                None => parts[l.unit][0] = of_group(group, &mut pages),
                Some(capacity) => {
                    let parts = place(capacity, group.shape[1], most_page, most_part, &mut pages);
                    touched = Some(Touched::new(l.unit, group.shape[0], capacity, parts));
                }
            }
        }
        let learning = pages.len();
        pages.push(0);
        if let Some(l) = looked_up.filter(|_| rows.is_some()) {
            parts[l.unit][0] = of_group(&table.units[l.unit].groups[0], &mut pages);
            pages.push(0);
        }
        let whole = pages.len() - 1;
        all(&mut parts, &mut pages, false);
        if pages.last() == Some(&0) {
            pages.pop();
        }
        Placement {
            table,
            pages,
            learning,
            whole,
            parts,
            looked_up: looked_up.map(|l| l.unit),
            touched,
            unused,
        }
    }

    /// The names and shapes.
    pub fn table(&self) -> &Arc<ParamTable> {
        &self.table
    }

    /// Elements of all pages, padding included.
    pub fn elements(&self) -> usize {
        self.pages.iter().sum()
    }

    /// Flat ranges (page, first element, elements) that cover all groups that learn and that one kernel may bind.
    pub fn segments(&self, caps: &Caps) -> Vec<(usize, usize, usize)> {
        let most = ((caps.max_binding_bytes - caps.alignment) / 4) as usize / ALIGN * ALIGN;
        let mut out = Vec::new();
        for (page, &len) in self.pages[..self.learning.min(self.pages.len())].iter().enumerate() {
            for start in (0..len).step_by(most) {
                out.push((page, start, most.min(len - start)));
            }
        }
        out
    }

    /// Flat ranges (page, first element, elements) of some groups (unit, group) that one kernel may bind, padding
    /// included.
    pub fn segments_of(
        &self,
        groups: impl IntoIterator<Item = (usize, usize)>,
        caps: &Caps,
    ) -> Vec<(usize, usize, usize)> {
        let most = ((caps.max_binding_bytes - caps.alignment) / 4) as usize / ALIGN * ALIGN;
        let mut out: Vec<(usize, usize, usize)> = Vec::new();
        for (unit, group) in groups {
            let parts = &self.parts[unit][group];
            let group = &self.table.units[unit].groups[group];
            let row = group.len() / group.shape[0].max(1);
            for part in parts {
                let len = (part.rows * row).next_multiple_of(ALIGN);
                match out.last_mut() {
                    Some((page, start, have))
                        if *page == part.page && *start + *have == part.offset && *have + len <= most =>
                    {
                        *have += len;
                    }
                    _ => out.push((part.page, part.offset, len)),
                }
            }
        }
        out
    }
}

/// Starts a page, unless the last one is empty.
fn open(pages: &mut Vec<usize>) {
    if pages.last() != Some(&0) {
        pages.push(0);
    }
}

/// Places a matrix `[rows, row]` behind what is placed already. One that fits into a page lies in one page, so that only
/// larger ones have to be met in parts.
fn place(rows: usize, row: usize, most_page: usize, most_part: usize, pages: &mut Vec<usize>) -> Vec<Part> {
    // Parts end on aligned elements where rows allow it, so that they follow each other closely.
    let granule = ALIGN / gcd(row, ALIGN);
    let fitting = (most_part.min(most_page) / row.max(1)).clamp(1, rows.max(1));
    let whole = fitting >= rows || fitting < granule;
    let rows_per_part = if whole { fitting } else { fitting / granule * granule };
    let padded = |rows: usize| (rows * row).next_multiple_of(ALIGN);
    let all = rows / rows_per_part * padded(rows_per_part) + padded(rows % rows_per_part);
    if all <= most_page && pages[pages.len() - 1] + all > most_page {
        pages.push(0);
    }
    let mut parts = Vec::new();
    for first_row in (0..rows).step_by(rows_per_part) {
        let rows = rows_per_part.min(rows - first_row);
        let len = padded(rows);
        if pages[pages.len() - 1] + len > most_page {
            pages.push(0);
        }
        let page = pages.len() - 1;
        parts.push(Part {
            page,
            offset: pages[page],
            first_row,
            rows,
        });
        pages[page] += len;
    }
    parts
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::super::params::{Init, Room};
    use super::*;

    fn table() -> Arc<ParamTable> {
        let block = |i: usize| {
            Unit::new(format!("block{i}"), Room::Language)
                .one("scale", &[10], Init::Zeros)
                .stacked(&[("q".into(), &[6, 10]), ("k".into(), &[2, 10])], Init::Normal(0.1))
        };
        let embed = Unit::new("embed", Room::Language).one("table", &[1000, 10], Init::Normal(1.0));
        let mut units = vec![embed, block(0), block(1)];
        // Of the first block nothing learns, of the second one the scale.
        for (unit, group) in [(1, 0), (1, 1), (2, 1)] {
            units[unit].groups[group].learns = false;
        }
        Arc::new(ParamTable { units })
    }

    #[test]
    fn a_matrix_that_fits_into_a_page_is_not_cut_by_its_end() {
        // Parts of 4 rows of 256, pages of 10 rows.
        let mut pages = vec![0];
        let pages_of = |rows: usize, pages: &mut Vec<usize>| -> Vec<usize> {
            place(rows, 256, 2560, 1024, pages).iter().map(|p| p.page).collect()
        };
        assert_eq!(pages_of(7, &mut pages), [0, 0]);
        assert_eq!(pages_of(7, &mut pages), [1, 1], "three rows are left in the first page");
        assert_eq!(pages_of(3, &mut pages), [1]);
        assert_eq!(pages_of(11, &mut pages), [2, 2, 3], "no page is large enough");
    }

    #[test]
    fn groups_do_not_overlap_and_segments_cover_everything() {
        for caps in [
            Caps::planning(),
            Caps {
                max_binding_bytes: 8192,
                alignment: 256,
                ..Caps::planning()
            },
            Caps {
                max_binding_bytes: 8192,
                alignment: 256,
                max_page_bytes: 16384,
                ..Caps::planning()
            },
        ] {
            let p = Placement::new(table(), &caps);
            let mut used = vec![Vec::new(); p.pages.len()];
            for (u, unit) in p.parts.iter().enumerate() {
                for (g, parts) in unit.iter().enumerate() {
                    let group = &p.table.units[u].groups[g];
                    let row = group.len() / group.shape[0];
                    assert_eq!(parts.iter().map(|p| p.rows).sum::<usize>(), group.shape[0]);
                    for part in parts {
                        assert!(
                            part.offset.is_multiple_of(ALIGN) && (part.rows * row) as u64 * 4 <= caps.max_binding_bytes
                        );
                        used[part.page].push((part.offset, part.rows * row));
                    }
                }
            }
            for (page, mut ranges) in used.into_iter().enumerate() {
                ranges.sort();
                assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
                assert!(ranges.last().is_none_or(|r| r.0 + r.1 <= p.pages[page]));
                assert!(p.pages[page] as u64 * 4 <= caps.max_page_bytes);
            }
            let covered: usize = p.segments(&caps).iter().map(|s| s.2).sum();
            let size = |groups: &[(usize, usize)]| -> usize {
                p.segments_of(groups.iter().copied(), &caps).iter().map(|s| s.2).sum()
            };
            assert_eq!(covered + size(&[(1, 0), (1, 1), (2, 1)]), p.elements());
            assert_eq!(size(&[(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]), p.elements());
        }
    }
}
