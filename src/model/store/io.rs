//! What goes into a store of parameters and comes out of it.

use std::collections::HashMap;
use std::sync::PoisonError;

use super::ParamStore;
use crate::gpu::{DType, Gpu, Result, Tensor};
use crate::model::params::ParamTensor;
use crate::model::placement::ALIGN;
use crate::ops::blocks::{self, Rect};
use crate::ops::split::{self, Values};

impl ParamStore {
    /// Reads every tensor: name -> values.
    pub fn read(&self, gpu: &Gpu) -> Result<HashMap<String, Vec<f32>>> {
        let mut out = HashMap::new();
        for (tensor, ranges) in self.named() {
            let mut values = Vec::with_capacity(tensor.len());
            for range in ranges {
                values.extend(range.read(gpu)?);
            }
            out.insert(tensor.name, values);
        }
        for tensor in self.kept() {
            let values = self.kept_values(&tensor);
            out.insert(tensor.name, values);
        }
        Ok(out)
    }

    /// Overwrites every tensor that `values` gives.
    pub fn write(&self, gpu: &Gpu, values: impl FnMut(&ParamTensor) -> Option<Vec<f32>>) {
        self.write_by(gpu, |_| (), values);
    }

    /// The same, those with the least `order` first: where reading is cheap in some order.
    pub fn write_by<K: Ord>(
        &self,
        gpu: &Gpu,
        order: impl Fn(&ParamTensor) -> K,
        mut values: impl FnMut(&ParamTensor) -> Option<Vec<f32>>,
    ) {
        let named = self.named().into_iter().map(|(tensor, ranges)| (tensor, Some(ranges)));
        let mut all: Vec<_> = named
            .chain(self.kept().into_iter().map(|tensor| (tensor, None)))
            .collect();
        all.sort_by_cached_key(|(tensor, _)| order(tensor));
        for (tensor, ranges) in all {
            let Some(values) = values(&tensor) else { continue };
            assert_eq!(values.len(), tensor.len(), "{}", tensor.name);
            let Some(ranges) = ranges else {
                let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
                kept.insert(tensor.name, values);
                continue;
            };
            let mut at = 0;
            for range in ranges {
                range.write(gpu, &values[at..at + range.len()]);
                at += range.len();
            }
        }
    }

    /// Overwrites every tensor with what `values` hands over for it, piece by piece, in order; those with the least `order`
    /// first. What is not handed over stays as it is.
    ///
    /// # Panics
    /// If there are more values than the tensor has.
    pub fn write_pieces<K: Ord>(
        &self,
        gpu: &Gpu,
        order: impl Fn(&ParamTensor) -> K,
        mut values: impl FnMut(&ParamTensor, &mut dyn FnMut(&[f32])),
    ) {
        let named = self.named().into_iter().map(|(tensor, ranges)| (tensor, Some(ranges)));
        let kept = self.kept().into_iter().map(|tensor| (tensor, None));
        let mut all: Vec<_> = named.chain(kept).collect();
        all.sort_by_cached_key(|(tensor, _)| order(tensor));
        for (tensor, ranges) in all {
            let Some(ranges) = ranges else {
                let mut whole = Vec::new();
                values(&tensor, &mut |piece| whole.extend_from_slice(piece));
                if whole.len() == tensor.len() {
                    let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
                    kept.insert(tensor.name, whole);
                }
                continue;
            };
            let mut done = 0;
            values(&tensor, &mut |piece| {
                assert!(done + piece.len() <= tensor.len(), "{}", tensor.name);
                // First element of the range, counted from the start of the tensor.
                let mut first = 0;
                for range in &ranges {
                    let (from, to) = (done.max(first), (done + piece.len()).min(first + range.len()));
                    if from < to {
                        let part = range.slice(from - first, to - from);
                        part.write(gpu, &piece[from - done..to - done]);
                    }
                    first += range.len();
                }
                done += piece.len();
            });
        }
    }

    /// Converts everything from an f32 store of the same placement to this one's element type; to bf16 as the high halves
    /// of weights are rounded.
    pub fn convert_from(&self, gpu: &Gpu, other: &ParamStore) {
        let most = (gpu.caps().max_binding_bytes / 4) as usize / ALIGN * ALIGN / 2;
        for (to, from) in self.pages.iter().zip(&other.pages) {
            for start in (0..to.len()).step_by(most) {
                let n = most.min(to.len() - start);
                self.convert(gpu, &from.slice(start, [n]), &to.slice(start, [n]).into());
            }
        }
    }

    /// Converts f32 values to some of this store, in its way to hold them.
    pub(in crate::model) fn convert(&self, gpu: &Gpu, from: &Tensor, to: &Values) {
        if to.low.is_some() || self.dtype == DType::F32 {
            to.copy_from(gpu, from);
        } else if self.dtype == DType::Bf16 {
            split::round(gpu, from, &to.high);
        } else {
            let n = from.len();
            blocks::copy(gpu, Rect::rows(from, n), Rect::rows(&to.high, n), 1, n, false);
        }
    }

    /// Copies everything to this f32 store from a store of the same placement.
    pub fn copy_from(&self, gpu: &Gpu, other: &ParamStore) {
        if let Some(host) = &self.host {
            let pages: Vec<_> = (0..self.held()).map(|page| (page, 0, other.page(page))).collect();
            return host.begin(&pages);
        }
        for (page, to) in self.pages.iter().enumerate().take(other.pages.len()) {
            other.page(page).copy_to(gpu, to);
        }
    }
}
