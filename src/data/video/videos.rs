//! Open decoders, for all threads.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Failure;
use super::decoder::{self, Decoder};
use crate::data::{Footage, RgbImage, YuvImage};

/// Decoders kept open while nobody uses them. One for 640x480 pixels holds some megabytes, and opening one takes as
/// long as decoding a few frames.
const IDLE: usize = 64;

/// Decoders that are open and not in use, the most recently used last. Whoever wants frames of a file takes its decoder
/// out and puts it back afterwards; two threads that want the same file at the same time get two decoders.
#[derive(Default)]
pub(in crate::data) struct Videos {
    idle: Mutex<VecDeque<(PathBuf, Decoder)>>,
}

impl std::fmt::Debug for Videos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Videos").finish_non_exhaustive()
    }
}

impl Videos {
    /// Whether this program reads video.
    pub(in crate::data) const AVAILABLE: bool = true;

    /// The pictures at `times`, in seconds since the video begins. Ascending times are cheapest. `size` is the height
    /// and width they must have.
    pub(in crate::data) fn pictures(
        &self,
        path: &Path,
        times: &[f64],
        size: (usize, usize),
    ) -> Result<Vec<RgbImage>, Failure> {
        self.with(path, |decoder| {
            let picture = |time: &f64| decoder.picture(*time, size);
            times.iter().map(picture).collect()
        })
    }

    /// Like [`Videos::pictures`], before the conversion to RGB.
    pub(in crate::data) fn planes(
        &self,
        path: &Path,
        times: &[f64],
        size: (usize, usize),
    ) -> Result<Vec<YuvImage>, Failure> {
        self.with(path, |decoder| {
            let planes = |time: &f64| decoder.planes(*time, size);
            times.iter().map(planes).collect()
        })
    }

    /// What the file says about itself.
    pub(in crate::data) fn footage(&self, path: &Path) -> Result<Footage, Failure> {
        File::open(path).map_err(Failure::Read)?;
        decoder::footage(path).map_err(Failure::Film)
    }

    /// Calls `f` with a decoder of the file. One that fails is not used again.
    fn with<T>(&self, path: &Path, f: impl FnOnce(&mut Decoder) -> Result<T, String>) -> Result<T, Failure> {
        let mut decoder = match self.take(path) {
            Some(decoder) => decoder,
            None => {
                // FFmpeg tells less of a file that is missing or forbidden.
                File::open(path).map_err(Failure::Read)?;
                Decoder::open(path).map_err(Failure::Film)?
            }
        };
        let done = f(&mut decoder).map_err(Failure::Film)?;
        // Closing one that has to go for it takes a while, so not under the lock.
        drop(self.put_back(path, decoder));
        Ok(done)
    }

    fn take(&self, path: &Path) -> Option<Decoder> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let position = idle.iter().rposition(|(at, _)| at == path)?;
        idle.remove(position).map(|(_, decoder)| decoder)
    }

    /// Keeps the decoder; the one unused for longest may have to go.
    fn put_back(&self, path: &Path, decoder: Decoder) -> Option<(PathBuf, Decoder)> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push_back((path.to_owned(), decoder));
        if idle.len() > IDLE { idle.pop_front() } else { None }
    }
}
