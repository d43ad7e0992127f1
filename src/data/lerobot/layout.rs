//! Which file holds an episode, and where in it.

use std::path::PathBuf;

use super::super::dataset::Episode;
use super::template::{Place, Template};

/// Where the tables and videos of a dataset lie.
#[derive(Debug)]
pub(super) struct Layout {
    pub root: PathBuf,
    pub data_path: Template,
    /// For each episode.
    pub tables: Vec<Table>,
    /// For each filmed camera, in the order of the metadata.
    pub films: Vec<Film>,
}

/// The rows of an episode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub place: Place,
    pub first_row: usize,
}

/// What a camera has recorded.
#[derive(Debug)]
pub(super) struct Film {
    pub camera: String,
    pub path: Template,
    /// For each episode.
    pub clips: Vec<Clip>,
}

/// An episode's part of a video.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clip {
    pub place: Place,
    /// When the video shows the first frame of the episode, in seconds.
    pub from: f64,
}

impl Layout {
    /// The file that holds the numbers of `episode`, and the row of its first frame.
    pub(super) fn table(&self, episode: usize) -> (PathBuf, usize) {
        let Table { place, first_row } = self.tables[episode];
        (self.root.join(self.data_path.fill(place, "")), first_row)
    }

    /// The video that shows `episode`, and when it begins there; `None` if the camera is not filmed.
    pub(super) fn clip(&self, camera: &str, episode: usize) -> Option<(PathBuf, f64)> {
        let film = self.films.iter().find(|film| film.camera == camera)?;
        let Clip { place, from } = film.clips[episode];
        Some((self.root.join(film.path.fill(place, camera)), from))
    }

    /// The episodes, those of one table together.
    pub(super) fn by_table<'a>(&self, episodes: &'a [Episode]) -> Vec<&'a [Episode]> {
        let place = |episode: &Episode| self.tables[episode.index].place;
        episodes.chunk_by(|a, b| place(a) == place(b)).collect()
    }
}
