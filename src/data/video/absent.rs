//! What stands in for decoders in a program built without FFmpeg, which opens no dataset with video.

use std::path::Path;

use super::Failure;
use crate::data::{Footage, RgbImage, YuvImage};

/// Nothing.
#[derive(Debug, Default)]
pub(in crate::data) struct Videos {}

impl Videos {
    /// Whether this program reads video.
    pub(in crate::data) const AVAILABLE: bool = false;

    pub(in crate::data) fn pictures(&self, _: &Path, _: &[f64], _: (usize, usize)) -> Result<Vec<RgbImage>, Failure> {
        Err(built_without())
    }

    pub(in crate::data) fn planes(&self, _: &Path, _: &[f64], _: (usize, usize)) -> Result<Vec<YuvImage>, Failure> {
        Err(built_without())
    }

    pub(in crate::data) fn footage(&self, _: &Path) -> Result<Footage, Failure> {
        Err(built_without())
    }
}

fn built_without() -> Failure {
    Failure::Film("needs FFmpeg, which this program was built without".to_owned())
}
