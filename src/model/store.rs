//! Memory of parameters: one value each, of a placement's layout.

mod io;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::params::{ParamTensor, Room};
use super::placement::{Part, Placement};
use crate::gpu::{DType, Gpu, Result, Tensor};
use crate::ops::blockwise::{self, Format, Moment};
use crate::ops::host_average::{self, HostAverage};
use crate::ops::packed::{Open, Packed};
use crate::ops::split::{Kept, Values};

/// Memory for one value per parameter: weights, or gradients, or a moment, …
pub struct ParamStore {
    pub(super) placement: Arc<Placement>,
    /// Pages held; those of groups that do not learn may be missing at the end.
    pub(super) pages: Vec<Tensor>,
    /// Low halves of the values of each page that learns, or of which rows do, where the pages hold the high ones.
    low: Option<Vec<Tensor>>,
    /// Which moment the pages hold in blocks of 8 bits, if they do, and what is written of each in part.
    blocks: Option<(Moment, Vec<Open>)>,
    /// The pages, where they are in the host's memory.
    host: Option<Arc<HostAverage>>,
    dtype: DType,
    /// Values of what has no place on the device, by name; absent: zero.
    kept: RwLock<HashMap<String, Vec<f32>>>,
    /// Does it hold all units?
    all: bool,
    /// Stands for groups without memory.
    absent: Tensor,
}

/// Which groups a store has memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    /// Those that learn.
    Learning,
}

impl ParamStore {
    /// Uninitialised memory on the device.
    pub fn new(gpu: &Gpu, placement: Arc<Placement>, dtype: DType, scope: Scope) -> ParamStore {
        let held = if scope == Scope::All {
            placement.pages.len()
        } else {
            placement.learning
        };
        let absent = gpu.alloc_in(gpu.states(), dtype, [0]);
        ParamStore {
            pages: pages(gpu, &placement.pages[..held.min(placement.pages.len())], dtype),
            low: None,
            blocks: None,
            host: None,
            placement,
            dtype,
            kept: RwLock::default(),
            all: scope == Scope::All,
            absent,
        }
    }

    /// Values of all groups, set to zero. Those that learn, or some rows of which do, are f32 in two halves
    /// ([`split`](crate::ops::split)): [`ParamStore::group`] and [`ParamStore::parts`] give the high ones, in bf16;
    /// everything else sees the f32 values. Those that do not learn have the high half alone: nothing of them will ever be
    /// too small for it.
    pub fn halves(gpu: &Gpu, placement: Arc<Placement>) -> ParamStore {
        let whole = &placement.pages[..placement.whole.min(placement.pages.len())];
        let low = gpu.owned("low halves", || pages(gpu, whole, DType::U16));
        let high = gpu.owned("high halves", || {
            ParamStore::new(gpu, placement, DType::Bf16, Scope::All)
        });
        let store = ParamStore { low: Some(low), ..high };
        store.clear(gpu);
        store
    }

    /// Moments of the units that learn, zero, as `format` says.
    pub fn moments(gpu: &Gpu, placement: Arc<Placement>, format: Format, moment: Moment) -> ParamStore {
        if format == Format::Float32 {
            return ParamStore::zeros(gpu, placement, DType::F32, Scope::Learning);
        }
        let held = &placement.pages[..placement.learning.min(placement.pages.len())];
        let words: Vec<usize> = held.iter().map(|&len| blockwise::words(len)).collect();
        let store = ParamStore {
            pages: pages(gpu, &words, DType::U32),
            low: None,
            // A page each: copies would share what they hold.
            blocks: Some((moment, words.iter().map(|_| Open::default()).collect())),
            host: None,
            dtype: DType::U32,
            kept: RwLock::default(),
            all: false,
            absent: gpu.alloc_in(gpu.states(), DType::U32, [0]),
            placement,
        };
        store.clear(gpu);
        store
    }

    /// Averages of the units that learn, zero, in the host's memory.
    ///
    /// # Errors
    /// A system that gives no thread.
    pub fn on_host(gpu: &Gpu, placement: Arc<Placement>) -> Result<ParamStore> {
        let lengths = &placement.pages[..placement.learning.min(placement.pages.len())];
        Ok(ParamStore {
            host: Some(HostAverage::new(gpu, lengths, host_average::room())?),
            pages: Vec::new(),
            low: None,
            blocks: None,
            dtype: DType::F32,
            kept: RwLock::default(),
            all: false,
            absent: gpu.alloc_in(gpu.states(), DType::F32, [0]),
            placement,
        })
    }

    /// The averages, where they are in the host's memory.
    pub fn host(&self) -> Option<&Arc<HostAverage>> {
        self.host.as_ref()
    }

    /// Pages that are held.
    fn held(&self) -> usize {
        let all = self.placement.pages.len();
        self.host
            .as_ref()
            .map_or(self.pages.len(), |_| self.placement.learning.min(all))
    }

    /// Memory set to zero.
    pub fn zeros(gpu: &Gpu, placement: Arc<Placement>, dtype: DType, scope: Scope) -> ParamStore {
        let store = ParamStore::new(gpu, placement, dtype, scope);
        store.clear(gpu);
        store
    }

    /// Sets everything to zero.
    pub fn clear(&self, gpu: &Gpu) {
        for page in self.pages.iter().chain(self.low.iter().flatten()) {
            crate::ops::fill::zero(gpu, page);
        }
    }

    /// Where everything lies.
    pub fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }

    /// Element type of what kernels bind.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// A flat range of a page, as returned by [`Placement::segments`].
    pub fn segment(&self, (page, start, len): (usize, usize, usize)) -> Values {
        let Some((_, open)) = &self.blocks else {
            return self.page(page).slice(start, len);
        };
        // Who takes flat memory changes it.
        open[page].clear();
        let [start, len] = [start, len].map(blockwise::words);
        self.pages[page].slice(start, [len]).into()
    }

    pub(super) fn page(&self, page: usize) -> Values {
        let len = self.placement.pages[page];
        let blocks = self.blocks.as_ref().map(|(moment, open)| {
            Kept::Blocks(Packed {
                moment: *moment,
                start: 0,
                len,
                open: open[page].clone(),
            })
        });
        let host = self.host.as_ref().map(|host| Kept::Host(host.range(page, 0, len)));
        Values {
            high: self.pages.get(page).unwrap_or(&self.absent).clone(),
            low: self.low.as_ref().and_then(|low| low.get(page)).cloned(),
            kept: blocks.or(host),
        }
    }

    /// Has the group memory here?
    pub fn holds(&self, unit: usize, group: usize) -> bool {
        let parts = &self.placement.parts[unit][group];
        parts.iter().all(|p| p.page < self.held())
    }

    /// All memory of a room's groups that is held here, padding included, in as few flat ranges as kernels may bind;
    /// without that of the unit that is looked up ([`ParamStore::looked_up`]), which belongs to the language room.
    pub fn room(&self, gpu: &Gpu, room: Room) -> Vec<Values> {
        let units = self.placement.table.units.iter().enumerate();
        let looked_up = self.placement.looked_up;
        let of_room = units.filter(|(u, unit)| unit.room == room && looked_up != Some(*u));
        let groups = of_room.flat_map(|(u, unit)| (0..unit.groups.len()).map(move |g| (u, g)));
        let held = groups.filter(|(u, g)| self.holds(*u, *g));
        let segments = self.placement.segments_of(held, gpu.caps());
        segments.into_iter().map(|s| self.segment(s)).collect()
    }

    /// Group `group` of unit `unit` as one matrix; an empty tensor if it has no memory here.
    ///
    /// # Panics
    /// If it does not fit into one binding of the device; only tables ([`ParamStore::parts`]) may be that large.
    pub fn group(&self, unit: usize, group: usize) -> Tensor {
        let parts = &self.placement.parts[unit][group];
        let shape = &self.placement.table.units[unit].groups[group].shape;
        if !self.holds(unit, group) || parts.is_empty() {
            return self.absent.clone();
        }
        if let [part] = parts[..] {
            return self.pages[part.page].slice(part.offset, &shape[..]);
        }
        // Rows without padding in between, in one page: products cut such operands themselves.
        let row = self.placement.table.units[unit].groups[group].len() / shape[0];
        let contiguous = parts
            .windows(2)
            .all(|w| w[0].page == w[1].page && w[0].offset + w[0].rows * row == w[1].offset);
        assert!(
            contiguous,
            "{} does not fit into one page",
            self.placement.table.units[unit].name
        );
        self.pages[parts[0].page].slice(parts[0].offset, &shape[..])
    }

    /// The rows of a group that one kernel may bind at a time: (first row, matrix). Those of a table that learn come
    /// behind it, as rows of higher numbers.
    pub fn parts(&self, unit: usize, group: usize) -> Vec<(usize, Tensor)> {
        let shape = &self.placement.table.units[unit].groups[group].shape;
        let touched = self.touched_parts(unit);
        if !self.holds(unit, group) {
            return touched;
        }
        let part_of = |p: &Part| {
            let mut dims = shape.clone();
            dims[0] = p.rows;
            (p.first_row, self.pages[p.page].slice(p.offset, &dims[..]))
        };
        let parts = self.placement.parts[unit][group].iter().map(part_of);
        parts.chain(touched).collect()
    }

    /// Tensors that are kept on the host, because nothing computes with them.
    pub fn kept(&self) -> Vec<ParamTensor> {
        let unused = self.placement.unused.iter().filter(|_| self.all);
        let tensors = unused.flat_map(|&(unit, group)| &self.placement.table.units[unit].groups[group].tensors);
        tensors.cloned().collect()
    }

    /// Values of a tensor that is kept.
    pub fn kept_values(&self, tensor: &ParamTensor) -> Vec<f32> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let zeros = || vec![0.0; tensor.len()];
        kept.get(&tensor.name).cloned().unwrap_or_else(zeros)
    }

    /// Every named tensor that has memory here, as flat ranges, in order: (tensor, ranges). A table that learns in part is
    /// one tensor with every row in its place where all of it is held, and elsewhere a tensor of the rows that learn.
    pub fn named(&self) -> Vec<(ParamTensor, Vec<Values>)> {
        let units = 0..self.placement.table.units.len();
        let of = |unit: usize| match self.placement.touched_of(unit) {
            Some(touched) if self.holds(unit, 0) => {
                let tensor = self.placement.table.units[unit].groups[0].tensors[0].clone();
                vec![(tensor, self.spliced(touched, self))]
            }
            Some(touched) => vec![self.touched_tensor(touched)],
            None => self.named_of(unit),
        };
        units.flat_map(of).collect()
    }

    /// The named tensors of one unit that are held.
    pub(super) fn named_of(&self, unit: usize) -> Vec<(ParamTensor, Vec<Values>)> {
        let mut out = Vec::new();
        let groups = self.placement.table.units[unit].groups.iter().enumerate();
        let unused = &self.placement.unused;
        for (g, group) in groups.filter(|(g, _)| self.holds(unit, *g) && !unused.contains(&(unit, *g))) {
            let row = group.len() / group.shape[0].max(1);
            let mut first = 0;
            for tensor in &group.tensors {
                let end = first + tensor.len();
                let mut ranges = Vec::new();
                for part in &self.placement.parts[unit][g] {
                    let (from, to) = (part.first_row * row, (part.first_row + part.rows) * row);
                    let (a, b) = (first.max(from), end.min(to));
                    if a < b {
                        ranges.push(self.page(part.page).slice(part.offset + a - from, b - a));
                    }
                }
                out.push((tensor.clone(), ranges));
                first = end;
            }
        }
        out
    }
}

/// Uninitialised memory of these lengths.
fn pages(gpu: &Gpu, lengths: &[usize], dtype: DType) -> Vec<Tensor> {
    let page = |&len: &usize| gpu.alloc_in(gpu.states(), dtype, [len.max(1)]);
    lengths.iter().map(page).collect()
}
