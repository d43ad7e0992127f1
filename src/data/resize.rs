//! Resize with pad: fit a picture into a square (or any frame) without distortion, centred on a dark border.
//!
//! [`resize_with_pad`] follows Pillow's 8-bit bilinear resampling bit for bit, because π₀ was trained on its output: a
//! horizontal pass, then a vertical one, both with triangle filters (widened by the scale when shrinking) in fixed point
//! with 22 fractional bits, and u8 in between. Source: Pillow `src/libImaging/Resample.c`, openpi
//! `image_tools.resize_with_pad`.

use super::RgbImage;

/// Fractional bits of a filter tap: 32 - 8 bits of the pixel - 2 of headroom.
const PRECISION: u32 = 22;
const CHANNELS: usize = 3;

/// Fits `image` into `height` x `width` pixels with a black border; returns `[height, width, 3]`.
pub fn resize_with_pad(image: &RgbImage, height: usize, width: usize) -> Vec<u8> {
    if (image.height, image.width) == (height, width) {
        return image.pixels.clone();
    }
    let fit = Letterbox::new(image.height, image.width, height, width);
    let pixels = resample(image, fit.height, fit.width);
    let mut out = vec![0; height * width * CHANNELS];
    fit.paste(&pixels, &mut out, width);
    out
}

/// The same on floats in [-1, 1] (`pixels` is `[h, w, 3]`), without rounding; the border is -1.
pub fn resize_with_pad_f32(pixels: &[f32], h: usize, w: usize, height: usize, width: usize) -> Vec<f32> {
    let fit = Letterbox::new(h, w, height, width);
    let mut rows = vec![0.0; h * fit.width * CHANNELS];
    for (x, tap) in taps(w, fit.width).iter().enumerate() {
        for y in 0..h {
            for c in 0..CHANNELS {
                let value = |i: usize| f64::from(pixels[(y * w + tap.first + i) * CHANNELS + c]);
                rows[(y * fit.width + x) * CHANNELS + c] = tap.sum(value);
            }
        }
    }
    let stride = fit.width * CHANNELS;
    let mut fitted = Vec::with_capacity(fit.height * stride);
    for tap in taps(h, fit.height) {
        fitted.extend((0..stride).map(|x| tap.sum(|i| rows[(tap.first + i) * stride + x]).clamp(-1.0, 1.0) as f32));
    }
    let mut out = vec![-1.0; height * width * CHANNELS];
    fit.paste(&fitted, &mut out, width);
    out
}

/// Where the resized picture lies in its frame. An odd remainder goes to the bottom and the right.
struct Letterbox {
    height: usize,
    width: usize,
    top: usize,
    left: usize,
}

impl Letterbox {
    fn new(from_h: usize, from_w: usize, to_h: usize, to_w: usize) -> Self {
        let ratio = (from_w as f64 / to_w as f64).max(from_h as f64 / to_h as f64);
        // A very long picture keeps at least one row or column.
        let height = ((from_h as f64 / ratio) as usize).clamp(1, to_h);
        let width = ((from_w as f64 / ratio) as usize).clamp(1, to_w);
        Letterbox {
            height,
            width,
            top: (to_h - height) / 2,
            left: (to_w - width) / 2,
        }
    }

    fn paste<T: Copy>(&self, from: &[T], to: &mut [T], to_width: usize) {
        for (y, row) in from.chunks_exact(self.width * CHANNELS).enumerate() {
            let start = ((self.top + y) * to_width + self.left) * CHANNELS;
            to[start..start + row.len()].copy_from_slice(row);
        }
    }
}

/// The weights of one output pixel over the input pixels from `first` on.
struct Tap {
    first: usize,
    weights: Vec<f64>,
}

impl Tap {
    fn sum(&self, value: impl Fn(usize) -> f64) -> f64 {
        self.weights
            .iter()
            .enumerate()
            .map(|(i, weight)| weight * value(i))
            .sum()
    }

    fn fixed_point(&self) -> Vec<i32> {
        self.weights
            .iter()
            .map(|w| (w * f64::from(1u32 << PRECISION) + 0.5) as i32)
            .collect()
    }
}

fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let tap = |x: usize| {
        let centre = (x as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let triangle = |i: usize| (1.0 - ((i as f64 - centre + 0.5) / support).abs()).max(0.0);
        let weights: Vec<f64> = (first..end).map(triangle).collect();
        let total: f64 = weights.iter().sum();
        Tap {
            first,
            weights: weights.into_iter().map(|w| w / total).collect(),
        }
    };
    (0..to).map(tap).collect()
}

#[inline(always)]
fn round(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

/// `[h, w, 3]` to `[height, width, 3]`.
fn resample(image: &RgbImage, height: usize, width: usize) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has these instructions.
        return unsafe { resample_avx2(image, height, width) };
    }
    resample_here(image, height, width)
}

/// The same code, compiled for processors that multiply eight integers at once: the baseline's have to do without.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn resample_avx2(image: &RgbImage, height: usize, width: usize) -> Vec<u8> {
    resample_here(image, height, width)
}

#[inline(always)]
fn resample_here(image: &RgbImage, height: usize, width: usize) -> Vec<u8> {
    let rows = resample_rows(&image.pixels, image.width, width);
    resample_columns(&rows, image.height, height, width)
}

/// Rows that are filtered together, so that the numbers of one place in all of them lie side by side.
const BAND: usize = 8;
const LANES: usize = BAND * CHANNELS;

/// `[h, from, 3]` to `[h, to, 3]`. An unchanged size is not filtered, as in Pillow.
#[inline(always)]
fn resample_rows(pixels: &[u8], from: usize, to: usize) -> Vec<u8> {
    if from == to {
        return pixels.to_vec();
    }
    let taps: Vec<(usize, Vec<i32>)> = taps(from, to).iter().map(|t| (t.first, t.fixed_point())).collect();
    let mut out = vec![0; pixels.len() / from * to];
    let mut band = vec![[[0u8; CHANNELS]; BAND]; from];
    for (rows, out) in pixels
        .chunks(BAND * from * CHANNELS)
        .zip(out.chunks_mut(BAND * to * CHANNELS))
    {
        for (i, row) in rows.chunks_exact(from * CHANNELS).enumerate() {
            for (place, pixel) in band.iter_mut().zip(row.as_chunks::<CHANNELS>().0) {
                place[i] = *pixel;
            }
        }
        let mut filtered = [[0u8; CHANNELS]; BAND];
        let height = rows.len() / (from * CHANNELS);
        let out = out.as_chunks_mut::<CHANNELS>().0;
        for (x, (first, weights)) in taps.iter().enumerate() {
            let mut sums = [HALF; LANES];
            for (place, weight) in band[*first..].iter().zip(weights) {
                let place = place.as_flattened();
                for i in 0..LANES {
                    sums[i] += i32::from(place[i]) * weight;
                }
            }
            for (value, sum) in filtered.as_flattened_mut().iter_mut().zip(sums) {
                *value = round(sum);
            }
            for i in 0..height {
                out[i * to + x] = filtered[i];
            }
        }
    }
    out
}

/// `[from, width, 3]` to `[to, width, 3]`.
#[inline(always)]
fn resample_columns(pixels: &[u8], from: usize, to: usize, width: usize) -> Vec<u8> {
    if from == to {
        return pixels.to_vec();
    }
    let stride = width * CHANNELS;
    let mut out = vec![0; to * stride];
    let mut sums = vec![HALF; stride];
    for (tap, out) in taps(from, to).iter().zip(out.chunks_exact_mut(stride)) {
        sums.fill(HALF);
        for (row, weight) in pixels[tap.first * stride..].chunks_exact(stride).zip(tap.fixed_point()) {
            for (s, p) in sums.iter_mut().zip(row) {
                *s += i32::from(*p) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = round(*sum);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(height: usize, width: usize, value: u8) -> RgbImage {
        RgbImage {
            height,
            width,
            pixels: vec![value; height * width * 3],
        }
    }

    #[test]
    fn a_flat_picture_stays_flat_inside_a_black_border() {
        let out = resize_with_pad(&flat(31, 97, 200), 50, 40);
        let is_inside = |y: usize| (19..31).contains(&y); // 31 / (97 / 40) = 12 rows, 19 above.
        for (i, value) in out.iter().enumerate() {
            assert_eq!(*value, if is_inside(i / 120) { 200 } else { 0 }, "row {}", i / 120);
        }
    }

    #[test]
    fn extreme_shapes_fit() {
        for (h, w) in [(1, 1000), (1000, 1), (1, 1), (2, 3)] {
            let out = resize_with_pad(&flat(h, w, 255), 8, 8);
            assert_eq!(out.len(), 8 * 8 * 3);
            assert!(out.contains(&255), "{h}x{w}");
        }
    }
}
