//! Datasets by name: the caches, and a server on this machine that answers as the hub does.

mod data_support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use acrlpd::data::hub::Hub;
use acrlpd::data::{self, DataError};
use data_support::synthetic::Recipe;

const NAME: &str = "someone/toy_set";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the files of a folder as the dataset [`NAME`], and remembers what it was asked for.
struct Server {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `refused`: files that it answers with an error.
    fn start(root: PathBuf, listed: Vec<String>, refused: &'static str) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &root, &listed, refused, &log);
            }
        });
        Server { endpoint, asked }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn answer(mut stream: TcpStream, root: &Path, listed: &[String], refused: &str, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines
        .take_while(|line| !line.is_empty())
        .map(|l| l.to_lowercase())
        .collect();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(path.clone());
    let range = headers.iter().find_map(|h| h.strip_prefix("range: bytes="));
    let (status, more, body) = if path.starts_with("/api/datasets/") && path.contains(NAME) {
        let siblings: Vec<_> = listed.iter().map(|f| serde_json::json!({ "rfilename": f })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        ("200 OK", String::new(), body.into_bytes())
    } else if let Some(file) = path.strip_prefix(&format!("/datasets/{NAME}/resolve/main/"))
        && file != refused
        && let Ok(bytes) = fs::read(root.join(file))
    {
        let (first, last) = range.and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
        let first: usize = first.parse().unwrap();
        let end = last
            .parse::<usize>()
            .map_or(bytes.len(), |last| bytes.len().min(last + 1));
        let more = format!(
            "x-repo-commit: {COMMIT}\r\netag: \"{:x}\"\r\ncontent-range: bytes {first}-{}/{}\r\n",
            xxhash_rust::xxh3::xxh3_64(&bytes),
            end.saturating_sub(1),
            bytes.len()
        );
        ("206 Partial Content", more, bytes[first..end].to_vec())
    } else {
        ("404 Not Found", String::new(), b"not here".to_vec())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{more}\r\n",
        body.len()
    );
    let _ = stream.write_all(&[head.into_bytes(), body].concat());
}

/// A small dataset in a folder, and its files.
fn toy() -> (tempfile::TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    Recipe::default().write(folder.path());
    let mut files = Vec::new();
    let mut open = vec![folder.path().to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                files.push(entry.path().strip_prefix(folder.path()).unwrap().display().to_string());
            }
        }
    }
    files.sort();
    (folder, files)
}

fn hub(home: &Path, endpoint: &str) -> Hub {
    Hub {
        lerobot: home.join("lerobot"),
        cache: home.join("hub"),
        endpoint: endpoint.to_owned(),
        token: None,
        offline: false,
    }
}

#[test]
fn a_dataset_is_downloaded_once() {
    let (source, files) = toy();
    let server = Server::start(source.path().to_owned(), files.clone(), "");
    let home = tempfile::tempdir().unwrap();
    let hub = hub(home.path(), &server.endpoint);
    let root = hub.find(NAME).unwrap();
    assert_eq!(
        root,
        home.path()
            .join(format!("hub/datasets--someone--toy_set/snapshots/{COMMIT}"))
    );
    for file in &files {
        assert_eq!(
            fs::read(root.join(file)).unwrap(),
            fs::read(source.path().join(file)).unwrap(),
            "{file}"
        );
    }
    let theirs = data::open(&root).unwrap();
    let ours = data::open(source.path()).unwrap();
    assert_eq!(theirs.columns(), ours.columns());
    assert!(
        server.asked().last().unwrap().ends_with("meta/info.json"),
        "the sign that all is there comes last"
    );
    assert_eq!(hub.find(NAME).unwrap(), root);
    assert_eq!(server.asked(), [""; 0], "nothing is asked again");
}

#[test]
fn an_interrupted_download_goes_on() {
    let (source, files) = toy();
    let home = tempfile::tempdir().unwrap();
    let torn = Server::start(source.path().to_owned(), files.clone(), "meta/tasks.jsonl");
    let error = hub(home.path(), &torn.endpoint).find(NAME).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, DataError::Download { .. }) && text.contains("`meta/tasks.jsonl`"),
        "{text}"
    );
    assert!(!text.contains('\n'), "{text}");
    let offline = Hub {
        offline: true,
        ..hub(home.path(), &torn.endpoint)
    };
    assert!(
        matches!(offline.find(NAME), Err(DataError::NotFound { .. })),
        "half a dataset is none"
    );
    let server = Server::start(source.path().to_owned(), files, "");
    let root = hub(home.path(), &server.endpoint).find(NAME).unwrap();
    data::open(root).unwrap();
    let again = server.asked();
    assert!(
        !again.iter().any(|path| path.ends_with(".parquet")),
        "what was there is not fetched again: {again:?}"
    );
}

#[test]
fn lerobots_own_cache_comes_first() {
    let (source, _) = toy();
    let home = tempfile::tempdir().unwrap();
    let hub = hub(home.path(), "http://127.0.0.1:9");
    let local = home.path().join("lerobot/droid");
    fs::create_dir_all(local.parent().unwrap()).unwrap();
    fs::rename(source.path(), &local).unwrap();
    assert_eq!(hub.find("droid").unwrap(), local);
}

#[test]
fn what_is_nowhere_is_one_sentence() {
    let home = tempfile::tempdir().unwrap();
    let online = hub(home.path(), "http://127.0.0.1:9");
    let offline = Hub {
        offline: true,
        ..online.clone()
    };
    let text = |hub: &Hub, name: &str| hub.find(name).unwrap_err().to_string();
    let looked = [
        "lerobot/someone/toy_set`",
        "hub/datasets--someone--toy_set`",
        "HF_HUB_OFFLINE",
    ];
    let message = text(&offline, NAME);
    assert!(looked.iter().all(|part| message.contains(part)), "{message}");
    let message = text(&online, "droid");
    assert!(message.contains("without `USER/`"), "{message}");
    let message = text(&online, NAME);
    assert!(
        message.contains("http://127.0.0.1:9") && message.contains("check the name and the network"),
        "{message}"
    );
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_hostile_or_foreign_listing_is_refused() {
    let (source, files) = toy();
    for (file, why) in [("../../escape", "outside of it"), ("/etc/passwd", "outside of it")] {
        let listed = [files.clone(), vec![file.to_owned()]].concat();
        let server = Server::start(source.path().to_owned(), listed, "");
        let home = tempfile::tempdir().unwrap();
        let message = hub(home.path(), &server.endpoint).find(NAME).unwrap_err().to_string();
        assert!(message.contains(why), "{message}");
        assert!(
            fs::read_dir(home.path()).unwrap().next().is_none(),
            "nothing was written"
        );
    }
    let server = Server::start(source.path().to_owned(), vec!["README.md".to_owned()], "");
    let home = tempfile::tempdir().unwrap();
    let message = hub(home.path(), &server.endpoint).find(NAME).unwrap_err().to_string();
    assert!(message.contains("not a LeRobot dataset"), "{message}");
}
