//! Where datasets are: a folder, or a public name that [`Hub`] turns into one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hub::{self, Hub};
use super::mixed::Mixed;
use super::{DataError, Dataset, dataset};

/// Where a dataset is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Folder(PathBuf),
    /// `USER/NAME`, or `NAME` for one in LeRobot's cache.
    Name(String),
}

impl Place {
    /// What a person means by `text`: a folder if there is one, else a name if it can be one, else a folder again.
    pub fn of(text: &str) -> Place {
        if !Path::new(text).exists() && hub::is_name(text) {
            Place::Name(text.to_owned())
        } else {
            Place::Folder(text.into())
        }
    }

    /// The folder; a dataset that is on the hub only is downloaded.
    ///
    /// # Errors
    /// Those of [`Hub::find`].
    pub fn folder(&self) -> Result<PathBuf, DataError> {
        match self {
            Place::Folder(folder) => Ok(folder.clone()),
            Place::Name(name) => Hub::from_env()?.find(name),
        }
    }
}

/// Opens the dataset at the only place, or those at several places as one.
///
/// # Errors
/// Everything that can be wrong with a dataset, and datasets that do not go together.
pub fn open_all(places: &[Place]) -> Result<Arc<dyn Dataset>, DataError> {
    let open = |place: &Place| dataset::open(place.folder()?);
    match places {
        [only] => open(only),
        _ => Ok(Arc::new(Mixed::new(
            places.iter().map(open).collect::<Result<_, _>>()?,
        )?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_before_a_name() {
        assert_eq!(Place::of("src/data"), Place::Folder("src/data".into()));
        for name in ["lerobot/aloha_sim_insertion_human", "droid", "a-b/c.d_e"] {
            assert_eq!(Place::of(name), Place::Name(name.to_owned()));
        }
        for folder in [
            "/data/set",
            "./set",
            "../set",
            "a/b/c",
            "",
            "a//b",
            "data sets/x",
            "a/..",
        ] {
            assert_eq!(Place::of(folder), Place::Folder(folder.into()), "{folder}");
        }
    }
}
