//! One open video: goes to a time and decodes the frame there.
//!
//! A frame is decoded from the last key frame that is *shown* at or before it. Demuxers search by decode time, which for
//! key frames of B-frame streams (HEVC, H.264) lies before the time they are shown, so a search may land on a key frame
//! that is shown too late; the frames shown before it refer to pictures that are not there. Therefore the packet the
//! search has landed on is looked at before anything is decoded, and the search goes back until it fits.

use std::ffi::CString;
use std::fmt::Display;
use std::path::Path;
use std::ptr;
use std::sync::Once;

use ffmpeg_next as ff;

use ff::codec::decoder::{self, Check, Decoder as Unopened};
use ff::codec::discard::Discard;
use ff::codec::threading;
use ff::ffi;
use ff::format::context::Input;
use ff::frame::Video as Frame;
use ff::{Error, Packet, media};

use super::picture::{self, ToRgb};
use crate::data::{Footage, RgbImage, YuvImage};

/// How far the time of a frame may be from the wanted one, in seconds: LeRobot's `tolerance_s`.
const TOLERANCE: f64 = 1e-4;
/// Key frames to go back to where the frame after the right one does not show it, as with streams that refresh bit by
/// bit.
const STEPS_BACK: usize = 4;

pub(super) struct Decoder {
    input: Input,
    stream: usize,
    /// Seconds of a tick, the unit of all times here.
    tick: f64,
    codec: decoder::Video,
    /// The packet read last.
    packet: Packet,
    /// Whether it still has to be decoded.
    pending: bool,
    /// The decode time of the packet decoded last.
    decoded: i64,
    /// The frame decoded last, and when it is shown, unless nothing was decoded since a seek.
    frame: Frame,
    shown: Option<i64>,
    /// Whether the end of the file was reached.
    drained: bool,
    /// When the key frame landed on is shown, and when it is decoded.
    landed: (i64, i64),
    to_rgb: ToRgb,
}

impl Decoder {
    /// Opens a file that exists. Errors, here and below, are the rest of a sentence that begins with "the video".
    pub(super) fn open(path: &Path) -> Result<Decoder, String> {
        let mut input = open_header(path)?;
        let (stream, tick, mut codec) = decoder(&input)?;
        codec.check(Check::EXPLODE);
        let codec = codec.video().map_err(cannot_open)?;
        // SAFETY: the streams belong to `input`, which is alive and not used elsewhere.
        unsafe { discard_others(&mut input, stream) };
        Ok(Decoder {
            input,
            stream,
            tick,
            codec,
            packet: Packet::empty(),
            pending: false,
            decoded: i64::MIN,
            frame: Frame::empty(),
            shown: None,
            drained: false,
            landed: (i64::MIN, i64::MIN),
            to_rgb: ToRgb::default(),
        })
    }

    /// The picture at `time` seconds, of `size` height and width.
    pub(super) fn picture(&mut self, time: f64, size: (usize, usize)) -> Result<RgbImage, String> {
        self.show(time, size)?;
        self.to_rgb.convert(&self.frame)
    }

    /// Its planes.
    pub(super) fn planes(&mut self, time: f64, size: (usize, usize)) -> Result<YuvImage, String> {
        self.show(time, size)?;
        picture::planes(&self.frame)
    }

    /// Makes `frame` the one at `time`.
    fn show(&mut self, time: f64, (height, width): (usize, usize)) -> Result<(), String> {
        let early = ((time - TOLERANCE) / self.tick).ceil() as i64;
        let late = ((time + TOLERANCE) / self.tick).floor() as i64;
        if self.shown.is_none_or(|shown| shown < early || shown > late) {
            self.find(early, late).map_err(|e| e.at(time, self.tick))?;
        }
        let found = (self.frame.height() as usize, self.frame.width() as usize);
        if found == (height, width) {
            return Ok(());
        }
        Err(format!(
            "shows {}x{} pixels (height x width) at {time:.4} s, but `meta/info.json` announces {height}x{width}",
            found.0, found.1
        ))
    }

    /// Decodes until the frame shown at `early..=late`.
    fn find(&mut self, early: i64, late: i64) -> Result<(), Miss> {
        if !self.leads_to(early, late) {
            self.seek(late, late)?;
        }
        let (mut back, mut before) = (0, None);
        loop {
            // Frames that no other refers to need not be decoded on the way; the second attempt is without tricks.
            let on_the_way = if back == 0 { early } else { i64::MIN };
            match self.next_frame(on_the_way)? {
                Some(shown) if shown < early => before = Some(shown),
                Some(shown) if shown <= late => return Ok(()),
                after => {
                    back += 1;
                    let enough = back > STEPS_BACK || before.is_some() && back > 1;
                    let (_, landed) = self.landed;
                    let earlier = !enough && self.seek(landed.saturating_sub(1), late)?;
                    if !earlier && (enough || back > 1) {
                        return Err(Miss::Absent { before, after });
                    }
                }
            }
        }
    }

    /// Whether decoding on is a way to `early..=late`, and no key frame lies ahead from which it is shorter.
    fn leads_to(&mut self, early: i64, late: i64) -> bool {
        let behind = self.shown.is_some_and(|shown| shown < early);
        behind && !self.drained && {
            // SAFETY: the stream belongs to `self.input`, which is alive; the entry is read before anything else is
            // called on it.
            let key = unsafe { key_frame_before(&mut self.input, self.stream, late) };
            key.is_some_and(|key| key <= self.decoded)
        }
    }

    /// Goes to the last key frame that is decoded at `target` or before, or an earlier one if that is shown after
    /// `late`. Says whether this is another one than that of the last seek.
    fn seek(&mut self, mut target: i64, late: i64) -> Result<bool, Miss> {
        let last = self.landed;
        let mut previous = None;
        loop {
            // SAFETY: `self.input` is alive and owned.
            unsafe { seek_back(&mut self.input, self.stream, target) }.map_err(|e| Miss::broken("be searched", e))?;
            self.codec.flush();
            (self.shown, self.drained, self.pending) = (None, false, false);
            if !self.read_packet()? {
                return Ok(false);
            }
            let decoded = self.packet.dts().or(self.packet.pts()).unwrap_or(target);
            let shown = self.packet.pts().unwrap_or(decoded);
            self.landed = (shown, decoded);
            self.decoded = decoded;
            // Where it does not move any more, it is the first of all.
            if shown <= late || previous == Some(self.landed) {
                return Ok(self.landed != last);
            }
            previous = Some(self.landed);
            target = decoded.saturating_sub(1);
        }
    }

    /// Decodes until there is a frame, and says when it is shown; `None` at the end. Frames before `on_the_way` may be
    /// left out.
    fn next_frame(&mut self, on_the_way: i64) -> Result<Option<i64>, Miss> {
        loop {
            match self.codec.receive_frame(&mut self.frame) {
                Ok(()) => {
                    self.shown = self.frame.timestamp();
                    if self.frame.is_corrupt() {
                        return Err(Miss::broken("be decoded", "the data are damaged"));
                    }
                    return match self.shown {
                        None => Err(Miss::broken("be decoded", "a frame does not say when it is shown")),
                        shown => Ok(shown),
                    };
                }
                Err(Error::Other {
                    errno: ff::error::EAGAIN,
                }) if !self.drained => {}
                Err(Error::Eof)
                | Err(Error::Other {
                    errno: ff::error::EAGAIN,
                }) => return Ok(None),
                Err(e) => self.tolerate(e)?,
            }
            if !self.pending && !self.read_packet()? {
                self.drained = true;
                self.codec.send_eof().map_err(|e| Miss::broken("be decoded", e))?;
                continue;
            }
            self.pending = false;
            let shown = self.packet.pts().unwrap_or(i64::MAX);
            self.decoded = self.packet.dts().unwrap_or(shown);
            self.codec.skip_frame(match shown < on_the_way {
                true => Discard::NonReference,
                false => Discard::Default,
            });
            if let Err(e) = self.codec.send_packet(&self.packet) {
                self.tolerate(e)?;
            }
        }
    }

    /// Frames that are decoded after a key frame but shown before it may refer to what is not there; any other error is
    /// one.
    fn tolerate(&self, error: Error) -> Result<(), Miss> {
        match self.packet.pts() {
            Some(shown) if shown < self.landed.0 => Ok(()),
            _ => Err(Miss::broken("be decoded", error)),
        }
    }

    /// Reads the next packet of the stream; `false` at the end.
    fn read_packet(&mut self) -> Result<bool, Miss> {
        loop {
            match self.packet.read(&mut self.input) {
                Ok(()) if self.packet.stream() == self.stream => {
                    self.pending = true;
                    return Ok(true);
                }
                Ok(()) => {}
                Err(Error::Eof) => return Ok(false),
                Err(e) => return Err(Miss::broken("be read", e)),
            }
        }
    }
}

/// What a file that exists says about itself.
pub(super) fn footage(path: &Path) -> Result<Footage, String> {
    let mut input = open_header(path)?;
    // SAFETY: the input is alive and ours. This looks at the first frames, for what the header need not tell.
    unsafe { ffi::avformat_find_stream_info(input.as_mut_ptr(), ptr::null_mut()) };
    let (stream, _, codec) = decoder(&input)?;
    let codec = codec.video().map_err(cannot_open)?;
    let fps = input
        .stream(stream)
        .map_or(0.0, |stream| f64::from(stream.avg_frame_rate()));
    Ok(Footage {
        codec: codec.id().name().to_owned(),
        pixel_format: codec.format().descriptor().map_or("unknown", |d| d.name()).to_owned(),
        height: codec.height() as usize,
        width: codec.width() as usize,
        fps,
    })
}

fn cannot_open(error: Error) -> String {
    format!("cannot be opened: {error}")
}

/// Opens a file and reads its header. The wrapper's own function also decodes the first frames of every stream, which
/// takes longer than finding one frame.
fn open_header(path: &Path) -> Result<Input, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| ff::log::set_level(ff::log::Level::Quiet));
    let text = path
        .to_str()
        .ok_or("has a path that is not UTF-8, which FFmpeg does not open")?;
    // "file:" keeps FFmpeg from taking the beginning of a path for a protocol.
    let url = CString::new(format!("file:{text}")).map_err(|_| "has a path with a zero byte")?;
    let mut input = ptr::null_mut();
    // SAFETY: `url` lives as long as the call, and what it puts into `input` belongs to the wrapper from then on.
    unsafe {
        match ffi::avformat_open_input(&mut input, url.as_ptr(), ptr::null(), ptr::null_mut()) {
            0 => Ok(Input::wrap(input)),
            code => Err(cannot_open(Error::from(code))),
        }
    }
}

/// The stream with pictures, the seconds of its tick, and a decoder for it with one thread.
fn decoder(input: &Input) -> Result<(usize, f64, Unopened), String> {
    let stream = input.streams().best(media::Type::Video).ok_or("has no pictures")?;
    let tick = f64::from(stream.time_base());
    if tick.is_nan() || tick <= 0.0 {
        return Err("does not say how long its frames last".to_owned());
    }
    let mut context = ff::codec::Context::from_parameters(stream.parameters()).map_err(cannot_open)?;
    context.set_threading(threading::Config {
        count: 1,
        ..Default::default()
    });
    Ok((stream.index(), tick, context.decoder()))
}

/// Why a frame was not found.
enum Miss {
    /// What cannot be done, and why.
    Broken(&'static str, String),
    /// When the frames around it are shown.
    Absent { before: Option<i64>, after: Option<i64> },
}

impl Miss {
    fn broken(what: &'static str, why: impl Display) -> Miss {
        Miss::Broken(what, why.to_string())
    }

    fn at(self, time: f64, tick: f64) -> String {
        let seconds = |ticks: i64| ticks as f64 * tick;
        match self {
            Miss::Broken(what, why) => format!("cannot {what} at {time:.4} s: {why}"),
            Miss::Absent {
                before: Some(last),
                after: None,
            } => format!("has no frame at {time:.4} s, its last is at {:.4} s", seconds(last)),
            Miss::Absent {
                before: Some(before),
                after: Some(after),
            } => format!(
                "has no frame at {time:.4} s, only at {:.4} s and {:.4} s",
                seconds(before),
                seconds(after)
            ),
            Miss::Absent { before: None, after } => match after {
                Some(after) => format!("has no frame at {time:.4} s, its first is at {:.4} s", seconds(after)),
                None => format!("has no frame at {time:.4} s"),
            },
        }
    }
}

/// Tells the demuxer not to read streams other than `index`, such as sound.
///
/// # Safety
/// No other reference to the streams of `input` may be in use.
unsafe fn discard_others(input: &mut Input, index: usize) {
    let streams = input.nb_streams() as usize;
    for other in (0..streams).filter(|i| *i != index) {
        // SAFETY: `other` is below the number of streams, and the caller owns them.
        unsafe { (**(*input.as_mut_ptr()).streams.add(other)).discard = ffi::AVDiscard::AVDISCARD_ALL };
    }
}

/// When the last key frame that is decoded at `time` or before is decoded, from the index of the file.
///
/// # Safety
/// `input` must not be in use elsewhere, and `stream` must be one of its streams.
unsafe fn key_frame_before(input: &mut Input, stream: usize, time: i64) -> Option<i64> {
    // SAFETY: as the caller promises; the entry is valid until the next call with this input.
    unsafe {
        let stream = *(*input.as_mut_ptr()).streams.add(stream);
        let entry = ffi::avformat_index_get_entry_from_timestamp(stream, time, ffi::AVSEEK_FLAG_BACKWARD);
        entry.as_ref().map(|entry| entry.timestamp)
    }
}

/// Goes to the last key frame that is decoded at `time` or before, in ticks of the stream; the wrapper's own seek
/// rounds to microseconds.
///
/// # Safety
/// `input` must not be in use elsewhere, and `stream` must be one of its streams.
unsafe fn seek_back(input: &mut Input, stream: usize, time: i64) -> Result<(), Error> {
    // SAFETY: as the caller promises.
    let code = unsafe { ffi::av_seek_frame(input.as_mut_ptr(), stream as i32, time, ffi::AVSEEK_FLAG_BACKWARD) };
    if code < 0 { Err(Error::from(code)) } else { Ok(()) }
}
