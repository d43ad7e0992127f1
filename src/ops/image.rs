//! Pictures to the model's range, with openpi's training augmentation.
//!
//! Plain: `y = u8 / 255 · 2 - 1`. Augmented (per picture, [`Jitter`]): in `[0, 1]`
//! 1. sample at `M c`, `c` the pixel's place relative to the centre, bilinear, black outside: a crop of 95 %, resized
//!    back, rotated by up to ±5° (cameras whose name lacks "wrist" only), all in one resampling;
//! 2. with probability ½, in HSV: brightness, contrast on the value, a shift of the hue. As in augmax 0.4, which openpi
//!    calls with (0.3, 0.4, 0.5): the hue moves by up to 0.1 (its default), the saturation does not move at all (the
//!    result is dropped there).
//!
//! Pictures `[n, S, S, 3]` u8; result f32 in `[-1, 1]`. No gradient: nothing in front of a picture learns.
//! One draw per picture and step, made on the host, serves every loss.
//!
//! Cost: memory bound.

use cubecl::prelude::*;

use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};
use crate::rng::Key;

/// Units of a workgroup.
const UNITS: usize = 64;
/// Numbers that describe one jitter on the device.
const FIELDS: usize = 10;

/// Share of the picture that a crop keeps, largest rotation, strengths of brightness, contrast and hue.
const CROP: f64 = 0.95;
const DEGREES: f64 = 5.0;
const BRIGHTNESS: f64 = 0.3;
const CONTRAST: f64 = 0.4;
const HUE: f64 = 0.1;

/// What happens to one picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter {
    /// Row-major 2 × 2 part and shift of the sampling map, in pixels (y, x).
    pub map: [f32; 6],
    /// (brightness, contrast, hue), or no colour change.
    pub colour: Option<[f32; 3]>,
}

impl Jitter {
    /// Nothing happens.
    pub const NONE: Jitter = Jitter {
        map: [1.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        colour: None,
    };

    /// A random jitter of a picture of `size` pixels; geometry only with `move_it`.
    pub fn draw(key: Key, size: usize, move_it: bool) -> Jitter {
        let mut jitter = Jitter::NONE;
        if move_it {
            let crop = (size as f64 * CROP).floor();
            let (zoom, room) = (crop / size as f64, (size as f64 - crop) / 2.0);
            let angle = key.range(0, -DEGREES, DEGREES).to_radians();
            let (sin, cos) = (libm::sin(angle), libm::cos(angle));
            let shift = [key.range(1, -room, room), key.range(2, -room, room)];
            jitter.map = [zoom * cos, zoom * sin, -zoom * sin, zoom * cos, shift[0], shift[1]].map(|v| v as f32);
        }
        if key.uniform(3) < 0.5 {
            let strengths = [(4, BRIGHTNESS), (5, CONTRAST), (6, HUE)];
            jitter.colour = Some(strengths.map(|(i, s)| key.range(i, -s, s) as f32));
        }
        jitter
    }

    fn fields(&self) -> [f32; FIELDS] {
        let [brightness, contrast, hue] = self.colour.unwrap_or_default();
        let [a, b, c, d, y, x] = self.map;
        [
            a,
            b,
            c,
            d,
            y,
            x,
            self.colour.is_some() as u32 as f32,
            brightness,
            contrast,
            hue,
        ]
    }
}

/// Jitters of several pictures on the device, `[n, 10]`.
pub fn upload(gpu: &Gpu, jitters: &[Jitter]) -> Tensor {
    let flat: Vec<f32> = jitters.iter().flat_map(Jitter::fields).collect();
    gpu.upload_f32(&flat, [jitters.len(), FIELDS])
}

/// `y` from `pictures [n, S, S, 3]` (u8), jittered where given.
pub fn forward(gpu: &Gpu, pictures: &Tensor, jitters: Option<&Tensor>, y: &Tensor) {
    let [n, height, width, 3] = *pictures.shape() else {
        panic!("pictures are [n, H, W, 3], not {pictures:?}")
    };
    assert_eq!(y.len(), pictures.len());
    launch!(
        gpu,
        Cost::moving("image", pictures.bytes() + y.bytes()),
        image_kernel,
        gpu.cubes(n * height * width, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [pictures, jitters.unwrap_or(y), y],
        (n * height * width, height, width, jitters.is_some()),
    );
}

/// Byte `i`, as a share of 255.
#[cube]
fn byte(pictures: &View<u32>, i: usize) -> f32 {
    let word = pictures.get(i / 4);
    f32::cast_from((word >> ((i % 4) * 8) as u32) & 255) / 255.0
}

/// Byte of channel c at (y, x) of picture `p`, zero outside.
#[cube]
fn pixel(pictures: &View<u32>, p: usize, y: i32, x: i32, c: usize, height: usize, width: usize) -> f32 {
    let inside = y >= 0 && x >= 0 && y < height as i32 && x < width as i32;
    let at = select(inside, (y * width as i32 + x) as usize, 0);
    select(inside, byte(pictures, (p * height * width + at) * 3 + c), 0.0)
}

#[cube]
fn bilinear(pictures: &View<u32>, p: usize, y: f32, x: f32, c: usize, height: usize, width: usize) -> f32 {
    let (y0, x0) = (f32::floor(y), f32::floor(x));
    let (fy, fx) = (y - y0, x - x0);
    let (iy, ix) = (i32::cast_from(y0), i32::cast_from(x0));
    let top = pixel(pictures, p, iy, ix, c, height, width) * (1.0 - fx)
        + pixel(pictures, p, iy, ix + 1, c, height, width) * fx;
    let bottom = pixel(pictures, p, iy + 1, ix, c, height, width) * (1.0 - fx)
        + pixel(pictures, p, iy + 1, ix + 1, c, height, width) * fx;
    top * (1.0 - fy) + bottom * fy
}

/// Moves `x` towards 1 (positive) or 0 (negative).
#[cube]
fn brighten(x: f32, by: f32) -> f32 {
    select(by < 0.0, x * (1.0 + by), x * (1.0 - by) + by)
}

/// A piecewise linear S-curve with slope `tan(π/4 (by + 1))` in the middle.
#[cube]
fn contrast(x: f32, by: f32) -> f32 {
    let quarter = std::f32::consts::FRAC_PI_4;
    let slope = f32::sin((by + 1.0) * quarter) / f32::cos((by + 1.0) * quarter);
    let low = (slope - slope * slope) / (2.0 * (1.0 - slope * slope));
    let mut y = slope * (x - 0.5) + 0.5;
    if x < low {
        y = x / slope;
    }
    if x > 1.0 - low {
        y = x / slope + 1.0 - 1.0 / slope;
    }
    // Slope one is the identity, where the corner points are 0 / 0.
    select(f32::abs(by) < 1e-6, x, y)
}

#[cube(launch_unchecked)]
fn image_kernel(
    pictures: &View<u32>,
    jitters: &View<f32>,
    out: &mut View<f32>,
    n: usize,
    height: usize,
    width: usize,
    #[comptime] jitter: bool,
) {
    let at = ABSOLUTE_POS;
    if at < n {
        let (r, g, b) = if comptime!(jitter) {
            jittered(pictures, jitters, at, height, width)
        } else {
            (
                byte(pictures, 3 * at),
                byte(pictures, 3 * at + 1),
                byte(pictures, 3 * at + 2),
            )
        };
        out.set(3 * at, r * 2.0 - 1.0);
        out.set(3 * at + 1, g * 2.0 - 1.0);
        out.set(3 * at + 2, b * 2.0 - 1.0);
    }
}

/// Red, green and blue of pixel `at` after its picture's jitter.
#[cube]
fn jittered(pictures: &View<u32>, jitters: &View<f32>, at: usize, height: usize, width: usize) -> (f32, f32, f32) {
    let area = height * width;
    let p = at / area;
    let f = p * FIELDS;
    let half_y = f32::cast_from(height as u32) / 2.0 - 0.5;
    let half_x = f32::cast_from(width as u32) / 2.0 - 0.5;
    let cy = f32::cast_from((at % area / width) as u32) - half_y;
    let cx = f32::cast_from((at % width) as u32) - half_x;
    let y = jitters.get(f) * cy + jitters.get(f + 1) * cx + jitters.get(f + 4) + half_y;
    let x = jitters.get(f + 2) * cy + jitters.get(f + 3) * cx + jitters.get(f + 5) + half_x;
    let mut r = bilinear(pictures, p, y, x, 0, height, width);
    let mut g = bilinear(pictures, p, y, x, 1, height, width);
    let mut b = bilinear(pictures, p, y, x, 2, height, width);
    if jitters.get(f + 6) == 1.0 {
        let high = max(r, max(g, b));
        let range = high - min(r, min(g, b));
        let mut hue = 0.0f32;
        if range > 0.0 {
            // The first largest channel decides the sextant.
            if r == high {
                hue = (g - b) / range / 6.0;
            } else if g == high {
                hue = (2.0 + (b - r) / range) / 6.0;
            } else {
                hue = (4.0 + (r - g) / range) / 6.0;
            }
        }
        let saturation = select(high == 0.0, 0.0, range / max(high, 1e-20));
        let value = contrast(brighten(high, jitters.get(f + 7)), jitters.get(f + 8));
        hue += jitters.get(f + 9);
        r = channel(hue, saturation, value, 5.0);
        g = channel(hue, saturation, value, 3.0);
        b = channel(hue, saturation, value, 1.0);
    }
    (r, g, b)
}

/// One channel of HSV as RGB; `n` is 5, 3, 1 for red, green, blue.
#[cube]
fn channel(hue: f32, saturation: f32, value: f32, n: f32) -> f32 {
    let turned = n + hue * 6.0;
    let k = turned - 6.0 * f32::floor(turned / 6.0);
    value - value * saturation * max(0.0, min(min(k, 4.0 - k), 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, gpu};

    /// The same in float64, written from the definition rather than from the kernel.
    fn reference(pictures: &[u8], n: usize, size: usize, jitters: &[Jitter]) -> Vec<f64> {
        let mut out = Vec::new();
        let half = size as f64 / 2.0 - 0.5;
        for p in 0..n {
            let j = &jitters[p];
            let m: Vec<f64> = j.map.iter().map(|&v| v as f64).collect();
            let read = |y: i64, x: i64, c: usize| -> f64 {
                if y < 0 || x < 0 || y >= size as i64 || x >= size as i64 {
                    return 0.0;
                }
                pictures[((p * size + y as usize) * size + x as usize) * 3 + c] as f64 / 255.0
            };
            for row in 0..size {
                for col in 0..size {
                    let (cy, cx) = (row as f64 - half, col as f64 - half);
                    let (y, x) = (m[0] * cy + m[1] * cx + m[4] + half, m[2] * cy + m[3] * cx + m[5] + half);
                    let mut rgb = [0.0; 3];
                    for (c, value) in rgb.iter_mut().enumerate() {
                        for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                            let (iy, ix) = (y.floor() as i64 + dy, x.floor() as i64 + dx);
                            let weight = (1.0 - (y - iy as f64).abs()) * (1.0 - (x - ix as f64).abs());
                            *value += weight * read(iy, ix, c);
                        }
                    }
                    if let Some(colour) = j.colour {
                        rgb = jitter_colour(rgb, colour.map(|v| v as f64));
                    }
                    out.extend(rgb.map(|v| v * 2.0 - 1.0));
                }
            }
        }
        out
    }

    fn jitter_colour(rgb: [f64; 3], [bright, contrast, shift]: [f64; 3]) -> [f64; 3] {
        let high = rgb.iter().cloned().fold(f64::MIN, f64::max);
        let range = high - rgb.iter().cloned().fold(f64::MAX, f64::min);
        let first = rgb.iter().position(|&v| v == high).unwrap();
        let hue = if range == 0.0 {
            0.0
        } else {
            (2.0 * first as f64 + (rgb[(first + 1) % 3] - rgb[(first + 2) % 3]) / range) / 6.0
        } + shift;
        let saturation = if high == 0.0 { 0.0 } else { range / high };
        let value = if bright < 0.0 {
            high * (1.0 + bright)
        } else {
            high * (1.0 - bright) + bright
        };
        let slope = ((contrast + 1.0) * std::f64::consts::FRAC_PI_4).tan();
        let low = (slope - slope * slope) / (2.0 * (1.0 - slope * slope));
        let value = if value < low {
            value / slope
        } else if value > 1.0 - low {
            value / slope + 1.0 - 1.0 / slope
        } else {
            slope * (value - 0.5) + 0.5
        };
        [5.0, 3.0, 1.0].map(|n| {
            let k = (n + hue * 6.0).rem_euclid(6.0);
            value - value * saturation * f64::max(0.0, k.min(4.0 - k).min(1.0))
        })
    }

    #[test]
    fn pictures_and_jitters_meet_float64() {
        let gpu = gpu();
        let (n, size) = (6, 20);
        let pictures: Vec<u8> = (0..n * size * size * 3)
            .map(|i| (Key::new(5).bits(i as u64)[0] % 256) as u8)
            .collect();
        let g = gpu.upload_u8(&pictures, [n, size, size, 3]);
        let y = gpu.f32([n, size, size, 3]);
        forward(&gpu, &g, None, &y);
        let plain: Vec<f64> = pictures.iter().map(|&v| v as f64 / 255.0 * 2.0 - 1.0).collect();
        check(&gpu, "plain", &y, &plain, 1e-6);

        let mut jitters: Vec<Jitter> = (0..n as u64)
            .map(|i| Jitter::draw(Key::new(9).fold(i), size, i % 2 == 0))
            .collect();
        assert!(jitters.iter().any(|j| j.colour.is_some()) && jitters.iter().any(|j| j.colour.is_none()));
        jitters[1] = Jitter::NONE;
        jitters[2].colour = Some([0.3, -0.4, 0.1]);
        jitters[3].colour = Some([-0.2, 0.0, -0.1]);
        forward(&gpu, &g, Some(&upload(&gpu, &jitters)), &y);
        let want = reference(&pictures, n, size, &jitters);
        // Hue of a near-grey pixel is ill-conditioned; values are in [-1, 1].
        check(&gpu, "jittered", &y, &want, 2e-4);
    }

    #[test]
    fn wrist_pictures_are_not_moved() {
        for i in 0..20 {
            assert_eq!(Jitter::draw(Key::new(i), 56, false).map, Jitter::NONE.map);
        }
        let moved = (0..20)
            .filter(|&i| Jitter::draw(Key::new(i), 56, true).map != Jitter::NONE.map)
            .count();
        assert_eq!(moved, 20);
    }
}
