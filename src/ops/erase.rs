//! Random erasing: a rectangle of each picture turns grey, so that nothing can be told from one spot alone.
//!
//! With probability ½, a rectangle of 2 % to 20 % of the picture's area, with sides in a ratio of 0.3 to 1 / 0.3, lies
//! anywhere it fits and becomes 0, the middle of the model's range [-1, 1].
//! Source: Zhong et al. 2020, "Random erasing data augmentation".
//!
//! Pictures `[n, S, S, 3]` f32 in `[-1, 1]`, in place; one row (top, left, bottom, right) in pixels for each, ends
//! excluded. No gradient: nothing in front of a picture learns.
//!
//! Cost: memory bound.

use cubecl::prelude::*;

use super::augmentations::Augmentation;
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};
use crate::rng::Key;

/// Units of a workgroup.
const UNITS: usize = 64;

/// Share of the pictures, shares of the area, and the flattest rectangle.
const PROBABILITY: f64 = 0.5;
const AREA: [f64; 2] = [0.02, 0.2];
const FLATTEST: f64 = 0.3;

/// Random erasing.
pub struct Erase;

impl Augmentation for Erase {
    fn draw(key: Key, size: usize) -> [f32; 4] {
        if key.uniform(0) >= PROBABILITY {
            return [0.0; 4];
        }
        let side = size as f64;
        let area = key.range(1, AREA[0], AREA[1]) * side * side;
        // Wide as often as tall.
        let ratio = libm::exp(key.range(2, libm::log(FLATTEST), -libm::log(FLATTEST)));
        let extent = |length: f64| (libm::round(length) as u64).clamp(1, size as u64);
        let (height, width) = (extent(libm::sqrt(area * ratio)), extent(libm::sqrt(area / ratio)));
        let top = key.below(3, size as u64 - height + 1);
        let left = key.below(4, size as u64 - width + 1);
        [top, left, top + height, left + width].map(|pixels| pixels as f32)
    }

    fn apply(gpu: &Gpu, pictures: &Tensor, draws: &Tensor) {
        let [n, height, width, 3] = *pictures.shape() else {
            panic!("pictures are [n, H, W, 3], not {pictures:?}")
        };
        launch!(
            gpu,
            Cost::moving("erase", draws.bytes() + pictures.bytes()),
            erase_kernel,
            gpu.cubes(n * height * width, UNITS),
            CubeDim::new_1d(UNITS as u32),
            [pictures, draws],
            (n * height * width, height, width),
        );
    }
}

#[cube(launch_unchecked)]
fn erase_kernel(pictures: &mut View<f32>, draws: &View<f32>, n: usize, height: usize, width: usize) {
    let at = ABSOLUTE_POS;
    if at < n {
        let area = height * width;
        let first = at / area * 4;
        let y = f32::cast_from((at % area / width) as u32);
        let x = f32::cast_from((at % width) as u32);
        let below = y >= draws.get(first) && x >= draws.get(first + 1);
        let above = y < draws.get(first + 2) && x < draws.get(first + 3);
        if below && above {
            pictures.set(3 * at, 0.0);
            pictures.set(3 * at + 1, 0.0);
            pictures.set(3 * at + 2, 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::augmentations::Kind;
    use crate::ops::testing::{check, gpu, normals};

    #[test]
    fn the_rectangle_and_nothing_else_turns_grey() {
        let gpu = gpu();
        let (n, size) = (4, 14);
        let start = normals(1, n * size * size * 3);
        // Whole, none, a corner, one pixel.
        let draws = [[0, 0, 14, 14], [0, 0, 0, 0], [11, 9, 14, 14], [5, 6, 6, 7]].map(|d| d.map(|v: u8| f32::from(v)));
        let pictures = gpu.upload_f32(&start, [n, size, size, 3]);
        Kind::Erase.apply(&gpu, &pictures, &draws);
        let mut want: Vec<f64> = start.iter().map(|&v| v.into()).collect();
        for (i, value) in want.iter_mut().enumerate() {
            let (picture, pixel) = (i / (size * size * 3), i / 3 % (size * size));
            let [top, left, bottom, right] = draws[picture].map(|v| v as usize);
            if (top..bottom).contains(&(pixel / size)) && (left..right).contains(&(pixel % size)) {
                *value = 0.0;
            }
        }
        check(&gpu, "erased", &pictures, &want, 0.0);
    }

    #[test]
    fn half_of_the_pictures_lose_a_rectangle_of_the_promised_size() {
        let (size, draws) = (224usize, 4000);
        let erased: Vec<[f32; 4]> = (0..draws)
            .map(|i| Kind::Erase.draw(Key::new(7).fold(i), size))
            .filter(|d| *d != [0.0; 4])
            .collect();
        let share = erased.len() as f64 / draws as f64;
        assert!((share - 0.5).abs() < 0.03, "{share}");
        let (mut tall, mut corners) = (0, [false; 4]);
        for [top, left, bottom, right] in erased.iter().map(|d| d.map(f64::from)) {
            let (height, width) = (bottom - top, right - left);
            let area = height * width / (size * size) as f64;
            assert!(top >= 0.0 && left >= 0.0 && bottom <= size as f64 && right <= size as f64);
            // Sides are whole pixels, so area and ratio are met up to rounding.
            assert!((0.018..=0.205).contains(&area), "{area}");
            assert!((0.28..=1.0 / 0.28).contains(&(height / width)), "{height} {width}");
            tall += usize::from(height > width);
            let half = size as f64 / 2.0;
            corners[usize::from(top > half) * 2 + usize::from(left > half)] = true;
        }
        assert!((0.45..0.55).contains(&(tall as f64 / erased.len() as f64)), "{tall}");
        assert_eq!(corners, [true; 4]);
    }
}
