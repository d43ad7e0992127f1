//! Frames of video files by their time, through FFmpeg (the feature `video`).
//!
//! [`Videos`] keeps decoders open, `decoder` finds the frame of a time, `picture` turns it into pixels. A file is
//! decoded by one thread; files are decoded at the same time by those who ask.

#[cfg(not(feature = "video"))]
mod absent;
#[cfg(feature = "video")]
mod decoder;
#[cfg(feature = "video")]
mod picture;
#[cfg(feature = "video")]
mod videos;

#[cfg(not(feature = "video"))]
pub(super) use absent::Videos;
#[cfg(feature = "video")]
pub(super) use videos::Videos;

/// Why a video does not give what it should.
#[derive(Debug)]
#[cfg_attr(not(feature = "video"), expect(dead_code, reason = "no file is read"))]
pub(super) enum Failure {
    /// The file cannot be read.
    Read(std::io::Error),
    /// What is wrong with its content, as the rest of a sentence that begins with "the video".
    Film(String),
}
