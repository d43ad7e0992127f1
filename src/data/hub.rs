//! Datasets by their public name: in LeRobot's cache, in the hub's cache, or downloaded into the latter.
//!
//! | looked in | where it is |
//! |---|---|
//! | LeRobot's cache | `$HF_LEROBOT_HOME/NAME`, by default `$HF_HOME/lerobot/NAME` |
//! | the hub's cache | `$HF_HUB_CACHE/datasets--USER--NAME/snapshots/COMMIT`, by default in `$HF_HOME/hub` |
//!
//! `$HF_HOME` is `$XDG_CACHE_HOME/huggingface` or `~/.cache/huggingface` where it is not set; `HF_HUB_OFFLINE`,
//! `HF_ENDPOINT` and `HF_TOKEN` mean what they mean to huggingface_hub. `meta/info.json` is downloaded last, so a
//! download that was interrupted does not look like a dataset, and goes on where it stopped.

use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::DataError;
use super::lerobot::INFO;
use super::panics::caught;

/// Branch that is downloaded.
const REVISION: &str = "main";
/// Between two messages about a file that takes long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where datasets are kept and fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Holds `NAME` or `USER/NAME`.
    pub lerobot: PathBuf,
    /// Holds `datasets--USER--NAME`.
    pub cache: PathBuf,
    /// Address of the server.
    pub endpoint: String,
    pub token: Option<String>,
    /// Never ask the server.
    pub offline: bool,
}

/// Whether `text` can be the name of a dataset: `name` or `user/name`.
pub fn is_name(text: &str) -> bool {
    let part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
    };
    text.split('/').count() <= 2 && text.split('/').all(part)
}

impl Hub {
    /// What the environment says.
    ///
    /// # Errors
    /// [`DataError::NoCache`] without a home folder.
    pub fn from_env() -> Result<Hub, DataError> {
        let folder = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let user = || {
            let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
            let cache = folder("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")));
            cache.map(|cache| cache.join("huggingface"))
        };
        let home = folder("HF_HOME").or_else(user).ok_or(DataError::NoCache)?;
        let text = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        let yes = |v: String| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str());
        Ok(Hub {
            lerobot: folder("HF_LEROBOT_HOME").unwrap_or_else(|| home.join("lerobot")),
            cache: folder("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: text("HF_TOKEN"),
            offline: text("HF_HUB_OFFLINE").is_some_and(yes),
        })
    }

    /// The folder of dataset `name`, downloaded if it is in neither cache.
    ///
    /// # Errors
    /// [`DataError::NotFound`] says where was looked and why nothing was downloaded; [`DataError::Download`].
    pub fn find(&self, name: &str) -> Result<PathBuf, DataError> {
        let local = self.lerobot.join(name);
        if local.join(INFO).exists() {
            return Ok(local);
        }
        let repo = Repo::with_revision(name.to_owned(), RepoType::Dataset, REVISION.to_owned());
        let cache = Cache::new(self.cache.clone());
        if let Some(info) = cache.repo(repo.clone()).get(INFO) {
            return Ok(root_of(&info));
        }
        let missing = |why: &str| DataError::NotFound {
            name: name.to_owned(),
            lerobot: local.clone(),
            cache: self.cache.join(repo.folder_name()),
            why: why.to_owned(),
        };
        if self.offline {
            return Err(missing("HF_HUB_OFFLINE forbids to download it"));
        }
        if !name.contains('/') {
            return Err(missing("a name without `USER/` cannot be downloaded"));
        }
        let failed = |reason: String| DataError::Download {
            name: name.to_owned(),
            endpoint: self.endpoint.clone(),
            lerobot: local.clone(),
            reason,
        };
        let download = || self.download(cache, repo.clone(), name);
        caught(download).unwrap_or_else(Err).map_err(failed)
    }

    /// The error is the reason, as a clause.
    fn download(&self, cache: Cache, repo: Repo, name: &str) -> Result<PathBuf, String> {
        let plain = |e: ApiError| e.to_string().replace('\n', " ");
        let token = self.token.clone().or_else(|| cache.token());
        let cached = cache.repo(repo.clone());
        let api = ApiBuilder::from_cache(cache)
            .with_endpoint(self.endpoint.clone())
            .with_token(token)
            .with_progress(false);
        let api = api.build().map_err(plain)?.repo(repo);
        let mut files: Vec<String> = api
            .info()
            .map_err(plain)?
            .siblings
            .into_iter()
            .map(|s| s.rfilename)
            .collect();
        if !files.iter().any(|file| file == INFO) {
            return Err(format!("it has no `{INFO}`, so it is not a LeRobot dataset"));
        }
        let inside = |file: &&String| Path::new(*file).components().all(|c| matches!(c, Component::Normal(_)));
        if let Some(outside) = files.iter().find(|file| !inside(file)) {
            return Err(format!("it lists the file `{outside}`, which would lie outside of it"));
        }
        // Last: its presence says that the others are there.
        files.sort_by_key(|file| file == INFO);
        tracing::info!(
            "downloading the dataset {name} from {}: {} files",
            self.endpoint,
            files.len()
        );
        let mut root = PathBuf::new();
        for (i, file) in files.iter().enumerate() {
            let path = match cached.get(file) {
                Some(path) => path,
                None => fetch(&api, file, i + 1, files.len()).map_err(|e| format!("`{file}`: {}", plain(e)))?,
            };
            root = root_of_file(&path, file);
        }
        match files.iter().find(|file| !root.join(file).exists()) {
            None => Ok(root),
            Some(_) => {
                // A new commit came while files were fetched, so they lie in two snapshots.
                let _ = fs::remove_file(root.join(INFO));
                Err("it changed while it was downloaded; try again".to_owned())
            }
        }
    }
}

/// The file in the cache, downloaded if it is not there.
fn fetch(api: &ApiRepo, file: &str, number: usize, files: usize) -> Result<PathBuf, ApiError> {
    let news = News {
        file: format!("{file} (file {number} of {files})"),
        ..News::default()
    };
    api.download_with_progress(file, news)
}

/// Says how far a long download is.
#[derive(Default)]
struct News {
    file: String,
    bytes: usize,
    of: usize,
    said: Option<Instant>,
}

impl Progress for News {
    fn init(&mut self, size: usize, _: &str) {
        (self.of, self.said) = (size, Some(Instant::now()));
    }

    fn update(&mut self, size: usize) {
        self.bytes += size;
        if self.said.is_some_and(|at| at.elapsed() > PATIENCE) {
            self.said = Some(Instant::now());
            tracing::info!(
                "{}: {} of {} MB",
                self.file,
                self.bytes / 1_000_000,
                self.of / 1_000_000
            );
        }
    }

    fn finish(&mut self) {
        tracing::info!("{}: {:.1} MB", self.file, self.of as f64 / 1e6);
    }
}

/// The folder that `file`, a path of several parts, is found in by its whole name.
fn root_of_file(path: &Path, file: &str) -> PathBuf {
    let depth = Path::new(file).components().count();
    path.ancestors().nth(depth).unwrap_or(path).to_owned()
}

fn root_of(info: &Path) -> PathBuf {
    root_of_file(info, INFO)
}
