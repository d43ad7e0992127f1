//! PNG bytes to RGB pixels.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Transformations};

use crate::data::RgbImage;

/// Decodes an RGB picture (8 or 16 bits a channel, or a palette). The error is the reason, as a clause.
///
/// Grey and transparent pictures are refused: what a depth map or a mask should look like to a vision tower is not
/// ours to guess.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let mut decoder = Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(|e| describe(&e))?;
    let size = reader.output_buffer_size().ok_or("its size does not fit into memory")?;
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
        (color, _) => Err(format!("it has channels {color:?} instead of red, green, blue")),
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

    #[test]
    fn rgb_pixels_survive() {
        let image = decode(&encode(ColorType::Rgb, &[1, 2, 3, 250, 0, 9])).unwrap();
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
        let grey = decode(&encode(ColorType::Grayscale, &[1, 2])).unwrap_err();
        assert!(grey.contains("Grayscale instead of red, green, blue"), "{grey}");
        let alpha = decode(&encode(ColorType::Rgba, &[0; 8])).unwrap_err();
        assert!(alpha.contains("Rgba"), "{alpha}");
        let jpeg = decode(&[0xff, 0xd8, 0xff, 0xe0, 0, 0, 0, 0, 0, 0]).unwrap_err();
        assert!(jpeg.contains("not a valid PNG"), "{jpeg}");
    }

    #[test]
    fn no_cut_or_flipped_byte_is_a_panic_or_goes_unnoticed() {
        let whole = encode(ColorType::Rgb, &[1, 2, 3, 250, 0, 9]);
        let end_of_data = whole.len() - 12; // The last chunk, IEND, holds no picture data.
        for cut in 0..end_of_data {
            let reason = decode(&whole[..cut]).unwrap_err();
            assert!(
                reason.contains("too early") || reason.contains("not a valid PNG"),
                "{cut}: {reason}"
            );
        }
        for i in 0..end_of_data {
            let mut bad = whole.clone();
            bad[i] ^= 0x55;
            assert!(decode(&bad).is_err(), "byte {i}");
        }
    }
}
