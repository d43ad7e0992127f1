//! A contact sheet: one episode at a glance, a row for each camera, time from left to right.

use super::resize::resize_with_pad;
use super::{DataError, Dataset, Episode, RgbImage};

/// Pictures of a row.
const COLUMNS: usize = 8;
/// Pixels of a picture's side, and between pictures.
const SIDE: usize = 160;
const GAP: usize = 4;
const CHANNELS: usize = 3;

/// The sheet of `episode`: first frame, last frame, and evenly spaced ones between. Every picture is letterboxed into a
/// square.
///
/// # Errors
/// Pictures that cannot be read.
pub fn sheet(dataset: &dyn Dataset, episode: &Episode) -> Result<RgbImage, DataError> {
    let cameras: Vec<&str> = dataset.info().cameras().collect();
    let (frames, step) = (frames_of(episode), SIDE + GAP);
    let (height, width) = (cameras.len() * step + GAP, COLUMNS * step + GAP);
    let mut out = RgbImage {
        height,
        width,
        pixels: vec![255; height * width * CHANNELS],
    };
    for (row, camera) in cameras.iter().enumerate() {
        for (column, image) in dataset.images(camera, &frames)?.iter().enumerate() {
            let small = resize_with_pad(image, SIDE, SIDE);
            let corner = ((GAP + row * step) * width + GAP + column * step) * CHANNELS;
            for (y, line) in small.chunks_exact(SIDE * CHANNELS).enumerate() {
                let at = corner + y * width * CHANNELS;
                out.pixels[at..at + line.len()].copy_from_slice(line);
            }
        }
    }
    Ok(out)
}

/// Ascending and distinct: fewer than [`COLUMNS`] in an episode that has no more.
fn frames_of(episode: &Episode) -> Vec<usize> {
    let last = episode.length.saturating_sub(1);
    let mut frames: Vec<usize> = (0..COLUMNS)
        .map(|i| episode.start + (last * i + (COLUMNS - 1) / 2) / (COLUMNS - 1))
        .collect();
    frames.dedup();
    frames
}

/// `image` as PNG.
///
/// # Errors
/// None that a picture of matching size could cause; the encoder's otherwise.
pub fn png(image: &RgbImage) -> Result<Vec<u8>, png::EncodingError> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, image.width as u32, image.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&image.pixels)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_span_the_episode() {
        let of = |start, length| {
            frames_of(&Episode {
                index: 0,
                start,
                length,
                tasks: Vec::new(),
                success: None,
            })
        };
        assert_eq!(of(100, 71), [100, 110, 120, 130, 140, 150, 160, 170]);
        assert_eq!(of(5, 3), [5, 6, 7]);
        assert_eq!(of(5, 1), [5]);
    }
}
