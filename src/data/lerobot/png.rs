//! PNG bytes to RGB pixels.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Transformations};

use crate::data::RgbImage;

/// Why a picture cannot be used.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    /// The reason, as a clause.
    Broken(String),
    /// It has another height and width.
    Size(usize, usize),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Refusal::Broken(reason)
    }
}

/// Decodes an RGB picture (8 or 16 bits a channel, or a palette) of `height` and `width` pixels; one that says it is
/// larger is not given the memory.
///
/// Grey and transparent pictures are refused: what a depth map or a mask should look like to a vision tower is not
/// ours to guess.
pub(super) fn decode(bytes: &[u8], (height, width): (usize, usize)) -> Result<RgbImage, Refusal> {
    let mut decoder = Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(|e| describe(&e))?;
    let (w, h) = reader.info().size();
    if (h as usize, w as usize) != (height, width) {
        return Err(Refusal::Size(h as usize, w as usize));
    }
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| "its size does not fit into memory".to_owned())?;
    let mut pixels = vec![0; size];
    let info = reader.next_frame(&mut pixels).map_err(|e| describe(&e))?;
    match (info.color_type, info.bit_depth) {
        (ColorType::Rgb, BitDepth::Eight) => {
            pixels.truncate(info.buffer_size());
            Ok(RgbImage {
                height: info.height as usize,
                width: info.width as usize,
                pixels,
            })
        }
        (color, _) => Err(format!("it has channels {color:?} instead of red, green, blue").into()),
    }
}

fn describe(error: &png::DecodingError) -> String {
    match error {
        png::DecodingError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the PNG data end too early".to_owned()
        }
        other => format!("not a valid PNG, {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(color: ColorType, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, 2, 1);
        encoder.set_color(color);
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        out
    }

    const SIZE: (usize, usize) = (1, 2);

    fn reason(bytes: &[u8]) -> String {
        match decode(bytes, SIZE) {
            Err(Refusal::Broken(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rgb_pixels_survive() {
        let image = decode(&encode(ColorType::Rgb, &[1, 2, 3, 250, 0, 9]), SIZE).unwrap();
        assert_eq!(
            image,
            RgbImage {
                height: 1,
                width: 2,
                pixels: vec![1, 2, 3, 250, 0, 9]
            }
        );
    }

    #[test]
    fn other_pictures_are_refused_with_a_reason() {
        let grey = reason(&encode(ColorType::Grayscale, &[1, 2]));
        assert!(grey.contains("Grayscale instead of red, green, blue"), "{grey}");
        let alpha = reason(&encode(ColorType::Rgba, &[0; 8]));
        assert!(alpha.contains("Rgba"), "{alpha}");
        let jpeg = reason(&[0xff, 0xd8, 0xff, 0xe0, 0, 0, 0, 0, 0, 0]);
        assert!(jpeg.contains("not a valid PNG"), "{jpeg}");
        let larger = decode(&encode(ColorType::Rgb, &[0; 6]), (2, 2)).unwrap_err();
        assert_eq!(larger, Refusal::Size(1, 2));
    }

    #[test]
    fn no_cut_or_flipped_byte_is_a_panic_or_goes_unnoticed() {
        let whole = encode(ColorType::Rgb, &[1, 2, 3, 250, 0, 9]);
        let end_of_data = whole.len() - 12; // The last chunk, IEND, holds no picture data.
        for cut in 0..end_of_data {
            let reason = reason(&whole[..cut]);
            assert!(
                reason.contains("too early") || reason.contains("not a valid PNG"),
                "{cut}: {reason}"
            );
        }
        for i in 0..end_of_data {
            let mut bad = whole.clone();
            bad[i] ^= 0x55;
            assert!(decode(&bad, SIZE).is_err(), "byte {i}");
        }
    }
}
