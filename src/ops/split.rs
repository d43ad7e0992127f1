//! f32 weights in two halves of 16 bits: the high one is what a bf16 step computes with, the low one is the rest.
//!
//! ```text
//! high = (bits + 0x8000) >> 16                           the nearest bf16, ties away from zero
//! low  = bits & 0xffff
//! bits = (high - (low >= 0x8000)) << 16 | low            exactly
//! ```
//! Ties go away from zero because rounding them to even could not be undone. Every number comes back bit for bit,
//! infinities, subnormals and -0 too. NaNs stay NaNs in both; those whose high half would carry into the sign (the 2¹⁵
//! largest payloads of either sign) lose bit 15 of their payload.
//!
//! Cost: memory bound, 8 bytes an element.

use cubecl::ir::{ElemType, StorageType, UIntKind};
use cubecl::prelude::*;

use super::blocks::{self, Rect};
use super::host_average::HostRange;
use super::lanes::{Lanes, load, load_words, store, store_words};
use super::packed::Packed;
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Result, Tensor, WRITTEN};

/// Elements that pass through f32 at a time where the host reads halves.
const THROUGH: usize = 16 << 20;

/// f32 values: whole, in two halves, rounded to the high half, in [blocks](super::blockwise) of 8 bits, or in the host's
/// memory.
#[derive(Clone, Debug)]
pub struct Values {
    /// The f32 values, their high halves (bf16), the words of the page of blocks that they lie in, or nothing.
    pub high: Tensor,
    /// The low halves (u16) of the same elements; without them the values are those of the high ones.
    pub low: Option<Tensor>,
    /// What they are where `high` does not say it.
    pub kept: Option<Kept>,
}

/// Values that kernels do not bind as they are.
#[derive(Clone, Debug)]
pub enum Kept {
    /// A range of a page of blocks.
    Blocks(Packed),
    /// A range of an average on the host.
    Host(HostRange),
}

impl From<Tensor> for Values {
    fn from(whole: Tensor) -> Values {
        Values {
            high: whole,
            low: None,
            kept: None,
        }
    }
}

impl From<&Tensor> for Values {
    fn from(whole: &Tensor) -> Values {
        whole.clone().into()
    }
}

impl From<&Values> for Values {
    fn from(values: &Values) -> Values {
        values.clone()
    }
}

impl Values {
    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.kept {
            None => self.high.len(),
            Some(Kept::Blocks(packed)) => packed.len,
            Some(Kept::Host(range)) => range.len,
        }
    }

    /// No values?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values `start..start + len`, flat.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Values {
        if let Some(kept) = &self.kept {
            let kept = match kept {
                Kept::Blocks(packed) => Kept::Blocks(packed.slice(start, len)),
                Kept::Host(range) => Kept::Host(range.slice(start, len)),
            };
            return Values {
                kept: Some(kept),
                ..self.clone()
            };
        }
        Values {
            high: self.high.slice(start, [len]),
            low: self.low.as_ref().map(|low| low.slice(start, [len])),
            kept: None,
        }
    }

    /// Reads the values. Waits for all work before.
    ///
    /// # Errors
    /// A device that failed.
    pub fn read(&self, gpu: &Gpu) -> Result<Vec<f32>> {
        match &self.kept {
            Some(Kept::Blocks(packed)) => return packed.read(gpu, &self.high),
            Some(Kept::Host(range)) => return range.read(),
            None => (),
        }
        if self.low.is_none() {
            return gpu.read_f32(&self.high);
        }
        let mut values = Vec::with_capacity(self.len());
        for start in (0..self.len()).step_by(THROUGH) {
            let part = self.slice(start, THROUGH.min(self.len() - start));
            values.extend(gpu.read_f32(&part.joined(gpu))?);
        }
        Ok(values)
    }

    /// The values as one f32 tensor on the device: themselves, or a copy for the running step. None of those that the host
    /// makes of something else.
    pub fn whole(&self, gpu: &Gpu) -> Option<Tensor> {
        match (&self.kept, &self.low) {
            (Some(_), _) => None,
            (None, None) => Some(self.high.clone()),
            (None, Some(_)) => Some(self.joined(gpu)),
        }
    }

    fn joined(&self, gpu: &Gpu) -> Tensor {
        let whole = gpu.f32([self.len()]);
        self.copy_to(gpu, &whole);
        whole
    }

    /// Overwrites the values, as many as there are.
    pub fn write(&self, gpu: &Gpu, values: &[f32]) {
        assert_eq!(self.len(), values.len());
        match &self.kept {
            Some(Kept::Blocks(packed)) => return packed.write(gpu, &self.high, values),
            Some(Kept::Host(range)) => return range.write(values),
            None => (),
        }
        if self.is_whole() {
            return gpu.write_f32(&self.high, values);
        }
        for (i, chunk) in values.chunks(WRITTEN).enumerate() {
            let whole = gpu.upload_f32(chunk, [chunk.len()]);
            self.slice(i * WRITTEN, chunk.len()).copy_from(gpu, &whole);
        }
    }

    /// f32 values, not halves or high halves alone.
    pub(super) fn is_whole(&self) -> bool {
        self.high.dtype() == DType::F32 && self.low.is_none()
    }

    /// Copies the values to an f32 tensor.
    pub fn copy_to(&self, gpu: &Gpu, whole: &Tensor) {
        if self.kept.is_some() {
            // An error is the device's from here on.
            return self.read(gpu).map_or((), |values| gpu.write_f32(whole, &values));
        }
        match &self.low {
            None if self.is_whole() => gpu.copy(&self.high, whole),
            None => in_parts(gpu, whole.len(), |part| {
                let [high, whole] = [&self.high, whole].map(part);
                let n = whole.len();
                blocks::copy(gpu, Rect::rows(&high, n), Rect::rows(&whole, n), 1, n, false);
            }),
            Some(low) => in_parts(gpu, whole.len(), |part| {
                let [high, low, whole] = [&self.high, low, whole].map(part);
                launch(gpu, &whole, &high, &low, Way::Join);
            }),
        }
    }

    /// Copies the values of an f32 tensor.
    pub fn copy_from(&self, gpu: &Gpu, whole: &Tensor) {
        if self.kept.is_some() {
            return gpu.read_f32(whole).map_or((), |values| self.write(gpu, &values));
        }
        match &self.low {
            None if self.is_whole() => gpu.copy(whole, &self.high),
            None => round(gpu, whole, &self.high),
            Some(low) => in_parts(gpu, whole.len(), |part| {
                let [high, low, whole] = [&self.high, low, whole].map(part);
                launch(gpu, &whole, &high, &low, Way::Split);
            }),
        }
    }
}

/// `high = ` the nearest bf16 of `whole`, ties away from zero: what splitting gives, without the rest.
pub fn round(gpu: &Gpu, whole: &Tensor, high: &Tensor) {
    in_parts(gpu, whole.len(), |part| {
        let [high, whole] = [high, whole].map(part);
        launch(gpu, &whole, &high, &high, Way::Round);
    });
}

/// Runs `work` on flat ranges that kernels may bind; it is given what cuts a tensor to the range.
fn in_parts(gpu: &Gpu, n: usize, work: impl Fn(&dyn Fn(&Tensor) -> Tensor)) {
    let most = (gpu.caps().max_binding_bytes / 8) as usize / 128 * 128;
    for start in (0..n).step_by(most.max(1)) {
        work(&|t: &Tensor| t.slice(start, [most.min(n - start)]));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    Split,
    Join,
    Round,
}

fn launch(gpu: &Gpu, whole: &Tensor, high: &Tensor, low: &Tensor, way: Way) {
    let n = whole.len();
    let lanes = Lanes::pick(gpu, &[n], &[whole, high, low]);
    let (count, dim) = lanes.grid(gpu, n);
    let halves = if way == Way::Round { 1 } else { 2 };
    launch!(
        gpu,
        Cost::moving("split", whole.bytes() + halves * high.bytes()),
        split_kernel,
        count,
        dim,
        [whole, high, low],
        (n, way, lanes, [words(high), words(low)], lanes.sizes()),
    );
}

/// The integers in which a kernel sees halves. (Those of 32 bits hold a half each: for tests on devices without others.)
pub(super) fn words(halves: &Tensor) -> StorageType {
    match halves.dtype() {
        DType::Bf16 | DType::U16 => ElemType::UInt(UIntKind::U16).into(),
        _ => ElemType::UInt(UIntKind::U32).into(),
    }
}

/// Bits of an f32 that split without a carry into the sign.
#[cube]
fn tame(bits: u32) -> u32 {
    select((bits & 0x7fff_8000) == 0x7fff_8000, bits - 0x8000, bits)
}

/// The upper 16 bits, rounded.
#[cube]
pub(super) fn high_half(x: f32) -> u32 {
    (tame(u32::reinterpret(x)) + 0x8000) >> 16
}

/// The lower 16 bits.
#[cube]
pub(super) fn low_half(x: f32) -> u32 {
    tame(u32::reinterpret(x)) & 0xffff
}

/// The number with these halves.
#[cube]
pub(super) fn whole_of(high: u32, low: u32) -> f32 {
    f32::reinterpret(((high - (low >> 15)) << 16) | low)
}

#[cube(launch_unchecked)]
fn split_kernel<H: Numeric, L: Numeric, W: Size, N: Size>(
    whole: &mut View<Vector<f32, W>>,
    high: &mut View<Vector<H, W>>,
    low: &mut View<Vector<L, W>>,
    n: usize,
    #[comptime] way: Way,
    #[comptime] lanes: Lanes,
    #[define(H, L)] _types: [StorageType; 2],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let i = ABSOLUTE_POS * lanes.count;
    if i < n {
        let (whole_at, high_at, low_at) = (whole.start() + i, high.start() + i, low.start() + i);
        if comptime!(way == Way::Join) {
            let mut values = Vector::<f32, N>::empty();
            let highs = load_words::<H, W, N>(high, high_at, lanes);
            let lows = load_words::<L, W, N>(low, low_at, lanes);
            #[unroll]
            for k in 0..lanes.count {
                values[k] = whole_of(highs[k], lows[k]);
            }
            store::<f32, W, N>(whole, whole_at, values, lanes);
        } else {
            let values = load::<f32, W, N>(whole, whole_at, lanes);
            let mut highs = Vector::<u32, N>::empty();
            let mut lows = Vector::<u32, N>::empty();
            #[unroll]
            for k in 0..lanes.count {
                highs[k] = high_half(values[k]);
                lows[k] = low_half(values[k]);
            }
            store_words::<H, W, N>(high, high_at, highs, lanes);
            if comptime!(way == Way::Split) {
                store_words::<L, W, N>(low, low_at, lows, lanes);
            }
        }
    }
}

/// Halves as this device can hold them: of 16 bits, or each in a word of 32.
#[cfg(test)]
pub(crate) fn halves(gpu: &Gpu, n: usize) -> Values {
    let (high, low) = if gpu.caps().u16 {
        (DType::Bf16, DType::U16)
    } else {
        (DType::U32, DType::U32)
    };
    Values {
        high: gpu.alloc(high, [n]),
        low: Some(gpu.alloc(low, [n])),
        kept: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::gpu;

    #[test]
    fn every_number_comes_back_and_its_high_half_is_the_nearest() {
        let gpu = gpu();
        // Every high half with what lies below, at and above the tie: all signs, exponents, infinities, subnormals, NaNs.
        let lows = [0u32, 1, 0x1234, 0x7fff, 0x8000, 0x8001, 0xffff];
        let bits: Vec<u32> = (0..1u32 << 16)
            .flat_map(|high| lows.map(|low| high << 16 | low))
            .collect();
        let numbers: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let split = halves(&gpu, bits.len());
        split.write(&gpu, &numbers);
        let back: Vec<u32> = split.read(&gpu).unwrap().iter().map(|v| v.to_bits()).collect();
        let rounded = halves(&gpu, bits.len()).high;
        round(&gpu, &gpu.upload_f32(&numbers, [bits.len()]), &rounded);
        let high_halves = |t: &Tensor| -> Vec<u32> {
            match t.dtype() {
                DType::U32 => gpu.read_u32(t).unwrap(),
                _ => gpu.read_f32(t).unwrap().iter().map(|v| v.to_bits() >> 16).collect(),
            }
        };
        let highs = high_halves(&split.high);
        let mut changed = 0;
        for ((&was, &is), &high) in bits.iter().zip(&back).zip(&highs) {
            let (number, rounded) = (f32::from_bits(was), f32::from_bits(high << 16));
            if number.is_nan() {
                assert!(f32::from_bits(is).is_nan(), "{was:08x} came back as {is:08x}");
                assert!(!rounded.is_finite(), "{was:08x} has the high half {high:04x}");
                changed += u32::from(was != is);
                continue;
            }
            assert_eq!(was, is);
            if was & 0xffff == 0x8000 {
                assert!(rounded.abs() > number.abs(), "{was:08x}");
            } else {
                assert_eq!(high, u32::from(half::bf16::from_f32(number).to_bits()), "{was:08x}");
            }
        }
        // Only payloads that would have carried into the sign.
        assert_eq!(changed, 2 * 3);
        assert_eq!(high_halves(&rounded), highs);
    }

    #[test]
    fn ranges_may_start_anywhere() {
        let gpu = gpu();
        let all = halves(&gpu, 64);
        all.write(&gpu, &[0.0; 64]);
        let numbers: Vec<f32> = (0..21).map(|i| 1.0 + i as f32 * 0.001).collect();
        all.slice(5, 21).write(&gpu, &numbers);
        let read = all.read(&gpu).unwrap();
        assert_eq!(&read[5..26], numbers);
        assert!(read[..5].iter().chain(&read[26..]).all(|v| *v == 0.0));
    }
}
