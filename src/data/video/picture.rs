//! A decoded frame as pixels.

use ffmpeg_next as ff;

use ff::color::{Range, Space};
use ff::ffi;
use ff::format::Pixel;
use ff::frame::Video as Frame;
use ff::software::scaling;

use crate::data::{RgbImage, YuvImage};

/// Copies the planes of a frame, bit for bit as the codec defines them.
pub(super) fn planes(frame: &Frame) -> Result<YuvImage, String> {
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    // The second differs in the range of its values only.
    let fits = matches!(frame.format(), Pixel::YUV420P | Pixel::YUVJ420P);
    if !fits || width % 2 + height % 2 != 0 {
        return Err(format!(
            "has {width}x{height} pixels of format {:?}, whose planes are not those of YUV 4:2:0 with even sides",
            frame.format()
        ));
    }
    let mut planes = Vec::with_capacity(width * height * 3 / 2);
    for (plane, width, height) in [
        (0, width, height),
        (1, width / 2, height / 2),
        (2, width / 2, height / 2),
    ] {
        append_rows(frame, plane, width, height, &mut planes);
    }
    Ok(YuvImage { height, width, planes })
}

fn append_rows(frame: &Frame, plane: usize, width: usize, height: usize, out: &mut Vec<u8>) {
    let rows = frame.data(plane).chunks(frame.stride(plane)).take(height);
    rows.for_each(|row| out.extend_from_slice(&row[..width]));
}

/// What a conversion depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Source {
    format: Pixel,
    width: u32,
    height: u32,
    space: Space,
    range: Range,
}

/// Converts frames to RGB as lerobot's readers do: swscale, the matrix the stream names and otherwise BT.601.
#[derive(Default)]
pub(super) struct ToRgb {
    prepared: Option<(Source, Converter)>,
    rgb: Option<Frame>,
}

impl ToRgb {
    pub(super) fn convert(&mut self, frame: &Frame) -> Result<RgbImage, String> {
        let source = Source {
            format: frame.format(),
            width: frame.width(),
            height: frame.height(),
            space: frame.color_space(),
            range: frame.color_range(),
        };
        let (_, converter) = match self.prepared.take() {
            Some(same) if same.0 == source => self.prepared.insert(same),
            _ => {
                self.rgb = None;
                self.prepared.insert((source, Converter::new(source)?))
            }
        };
        let rgb = self.rgb.get_or_insert_with(Frame::empty);
        let failed = |e| format!("cannot be converted to RGB: {e}");
        converter.0.run(frame, rgb).map_err(failed)?;
        let (width, height) = (frame.width() as usize, frame.height() as usize);
        let mut pixels = Vec::with_capacity(3 * width * height);
        append_rows(rgb, 0, 3 * width, height, &mut pixels);
        Ok(RgbImage { height, width, pixels })
    }
}

struct Converter(scaling::Context);

// SAFETY: a scaling context is memory of its own without ties to a thread; `&mut` keeps two threads from using it at
// the same time. The wrapper leaves this out by having a pointer in it.
unsafe impl Send for Converter {}

impl Converter {
    fn new(source: Source) -> Result<Converter, String> {
        let Source {
            format, width, height, ..
        } = source;
        let flags = scaling::Flags::BILINEAR;
        let context = scaling::Context::get(format, width, height, Pixel::RGB24, width, height, flags);
        let mut context =
            context.map_err(|e| format!("has pixels of format {format:?}, which RGB cannot be made of: {e}"))?;
        // Without these calls the matrix is BT.601 and the range is the format's.
        let other_matrix = matches!(
            source.space,
            Space::BT709 | Space::FCC | Space::SMPTE240M | Space::BT2020NCL | Space::BT2020CL
        );
        let full = source.range == Range::JPEG;
        if other_matrix || full {
            let space = match other_matrix {
                true => ffi::AVColorSpace::from(source.space) as i32,
                false => ffi::SWS_CS_DEFAULT,
            };
            // SAFETY: the context is alive and ours; both tables are constants of the library.
            unsafe {
                ffi::sws_setColorspaceDetails(
                    context.as_mut_ptr(),
                    ffi::sws_getCoefficients(space),
                    i32::from(full),
                    ffi::sws_getCoefficients(ffi::SWS_CS_DEFAULT),
                    0,
                    0,
                    UNCHANGED,
                    UNCHANGED,
                );
            }
        }
        Ok(Converter(context))
    }
}

/// 1.0 for contrast and saturation, as 16.16 fixed point.
const UNCHANGED: i32 = 1 << 16;
