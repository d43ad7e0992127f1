//! OCDBT, the key-value store in which Orbax keeps arrays: a manifest names the root of a B-tree whose leaves hold
//! values, or the place of values in data files.
//!
//! The format is that of TensorStore's `ocdbt` driver. A manifest of kind 1 holds only the settings; the tree is in the
//! newest of the files `manifest.NUMBER` beside it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::cursor::{Cursor, Parsed, unpacked};
use crate::checkpoint::error::{CheckpointError, Result};
use crate::files;

pub(super) const MANIFEST: &str = "manifest.ocdbt";
const MANIFEST_MAGIC: u32 = 0x0cdb_3a2a;
const NODE_MAGIC: u32 = 0x0cdb_20de;

/// Most nodes of a tree, and most bytes of all of them and their keys.
const MOST_NODES: usize = 1 << 16;
const MOST_BYTES: usize = 256 << 20;

/// A value, in the tree itself or in a data file.
#[derive(Clone)]
pub(super) enum Value {
    Inline(Arc<Vec<u8>>),
    Stored { file: Arc<Mmap>, range: Range<usize> },
}

impl Value {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Value::Inline(bytes) => bytes,
            Value::Stored { file, range } => &file[range.clone()],
        }
    }
}

/// All keys of a store with their values.
pub(super) struct Store(BTreeMap<String, Value>);

impl Store {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }
}

/// Where a node lies.
struct Node {
    /// Of its file.
    path: String,
    /// In front of the paths of files that it names.
    base: String,
    from: u64,
    length: u64,
    height: u8,
    /// What the keys below it begin with.
    prefix: Vec<u8>,
}

/// Opens the store in `root`; data files are mapped, not read.
pub(super) fn open(root: &Path) -> Result<Store> {
    let (path, manifest) = manifest(root)?;
    let (top, keys) = newest_version(&manifest).map_err(|reason| bad(&path, reason))?;
    let mut reader = Reader {
        root,
        files: HashMap::new(),
        values: BTreeMap::new(),
        bytes: 0,
    };
    let mut waiting: Vec<Node> = top.into_iter().collect();
    let mut nodes = 0;
    while let Some(node) = waiting.pop() {
        nodes += 1;
        let file = root.join(&node.path);
        if nodes > MOST_NODES {
            return Err(bad(&file, format!("its tree has more than {MOST_NODES} nodes")));
        }
        let content = reader.content(&node)?;
        let below = reader.read(&node, &content);
        waiting.extend(below.map_err(|reason| bad(&file, format!("node at byte {}: {reason}", node.from)))?);
    }
    if reader.values.len() as u64 != keys {
        let found = reader.values.len();
        return Err(bad(
            &path,
            format!("it announces {keys} keys, but its tree has {found}"),
        ));
    }
    Ok(Store(reader.values))
}

fn bad(path: &Path, reason: String) -> CheckpointError {
    let path = path.to_owned();
    CheckpointError::Orbax { path, reason }
}

/// The manifest that holds the tree, without its frame.
fn manifest(root: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let read = |path: &Path| -> Result<Vec<u8>> {
        unpacked(&files::map(path)?, MANIFEST_MAGIC).map_err(|reason| bad(path, reason))
    };
    let path = root.join(MANIFEST);
    let first = read(&path)?;
    let settings = Settings::read(&mut Cursor::new(&first)).map_err(|reason| bad(&path, reason))?;
    if !settings.numbered {
        return Ok((path, first));
    }
    let names = files::list(root)?;
    let number = |name: &String| u64::from_str_radix(name.strip_prefix("manifest.")?, 16).ok();
    let newest = names
        .iter()
        .max_by_key(|name| number(name))
        .filter(|name| number(name).is_some());
    let newest = newest.ok_or_else(|| bad(&path, "it refers to numbered manifests, but there are none".into()))?;
    let numbered = root.join(newest);
    let content = read(&numbered)?;
    let own = Settings::read(&mut Cursor::new(&content)).map_err(|reason| bad(&numbered, reason))?;
    if own.id != settings.id {
        return Err(bad(&numbered, format!("it belongs to another store than {MANIFEST}")));
    }
    Ok((numbered, content))
}

/// What a manifest begins with.
struct Settings {
    id: [u8; 16],
    numbered: bool,
}

impl Settings {
    fn read(cursor: &mut Cursor) -> Parsed<Settings> {
        let mut id = [0; 16];
        id.copy_from_slice(cursor.take(16)?);
        let kind = cursor.varint()?;
        // Limits for values kept in nodes and for nodes, fan-out of the versions.
        cursor.varints(2)?;
        cursor.byte()?;
        match cursor.varint()? {
            0 => {}
            // The level of zstd.
            1 => drop(cursor.take(4)?),
            method => return Err(format!("it asks for an unknown compression ({method})")),
        }
        match kind {
            0 | 1 => Ok(Settings {
                id,
                numbered: kind == 1,
            }),
            _ => Err(format!("it is of an unknown kind ({kind})")),
        }
    }
}

/// The root of the newest version and its number of keys; no root if there are no keys.
fn newest_version(manifest: &[u8]) -> Parsed<(Option<Node>, u64)> {
    let mut cursor = Cursor::new(manifest);
    Settings::read(&mut cursor)?;
    let files = files_named(&mut cursor, "")?;
    let n = cursor.count()?;
    let last = n.checked_sub(1).ok_or("it has no version")?;
    let _generations = cursor.varints(n)?;
    let heights = cursor.take(n as u64)?;
    let [file, from, length, keys] = [(); 4].map(|()| cursor.varints(n));
    let (file, from, length, keys) = (file?, from?, length?, keys?);
    if keys[last] == 0 {
        return Ok((None, 0));
    }
    let (path, base) = named(&files, file[last])?;
    let root = Node {
        path,
        base,
        from: from[last],
        length: length[last],
        height: heights[last],
        prefix: Vec::new(),
    };
    Ok((Some(root), keys[last]))
}

/// Paths of files, and what is in front of paths in the nodes that these files hold.
type Files = Vec<(String, String)>;

fn files_named(cursor: &mut Cursor, base: &str) -> Parsed<Files> {
    let n = cursor.count()?;
    let mut bases = Vec::new();
    let paths = cursor.strings(n, |cursor| {
        bases = cursor.varints(n)?;
        Ok(())
    })?;
    let whole = |(path, length): (Vec<u8>, u64)| {
        let path = String::from_utf8(path).map_err(|_| "a path is not UTF-8")?;
        let below = usize::try_from(length).ok().and_then(|n| path.get(..n));
        let below = below.ok_or("a path is shorter than its folder")?;
        let (below, path) = (format!("{base}{below}"), format!("{base}{path}"));
        // A store is data from elsewhere: it must not lead out of its folder.
        let inside = |part: Component| matches!(part, Component::Normal(_));
        match !path.is_empty() && Path::new(&path).components().all(inside) {
            true => Ok((path, below)),
            false => Err(format!("`{path}` leads out of the folder")),
        }
    };
    paths.into_iter().zip(bases).map(whole).collect()
}

fn named(files: &Files, i: u64) -> Parsed<(String, String)> {
    let file = usize::try_from(i).ok().and_then(|i| files.get(i));
    file.cloned()
        .ok_or_else(|| format!("it refers to file {i} of {}", files.len()))
}

/// The bytes that a place in a file means.
fn range(file: &[u8], from: u64, length: u64) -> Parsed<Range<usize>> {
    let end = from.checked_add(length).filter(|end| *end <= file.len() as u64);
    let end = end.ok_or_else(|| format!("{length} bytes from {from} on are beyond the end of their file"))?;
    Ok(from as usize..end as usize)
}

/// Reads a tree, node by node.
struct Reader<'a> {
    root: &'a Path,
    files: HashMap<String, Arc<Mmap>>,
    values: BTreeMap<String, Value>,
    /// Of all nodes, and of the keys in full.
    bytes: usize,
}

impl Reader<'_> {
    fn file(&mut self, path: &str) -> Result<Arc<Mmap>> {
        if let Some(file) = self.files.get(path) {
            return Ok(file.clone());
        }
        let file = Arc::new(files::map(&self.root.join(path))?);
        self.files.insert(path.into(), file.clone());
        Ok(file)
    }

    fn content(&mut self, node: &Node) -> Result<Vec<u8>> {
        let file = self.file(&node.path)?;
        let at = |reason: &str| {
            bad(
                &self.root.join(&node.path),
                format!("node at byte {}: {reason}", node.from),
            )
        };
        let range = range(&file, node.from, node.length).map_err(|reason| at(&reason))?;
        let content = unpacked(&file[range], NODE_MAGIC).map_err(|reason| at(&reason))?;
        self.bytes += content.len();
        Ok(content)
    }

    /// Takes the values of a leaf, or returns the nodes below an interior one.
    fn read(&mut self, node: &Node, content: &[u8]) -> Parsed<Vec<Node>> {
        let mut cursor = Cursor::new(content);
        if self.bytes > MOST_BYTES {
            return Err(format!("the tree takes more than {MOST_BYTES} bytes"));
        }
        let height = cursor.byte()?;
        if height != node.height {
            return Err(format!("it has height {height} where {} is expected", node.height));
        }
        let files = files_named(&mut cursor, &node.base)?;
        let n = cursor.count()?;
        if height == 0 {
            self.leaf(&mut cursor, n, &files, &node.prefix)?;
            return match cursor.is_empty() {
                true => Ok(Vec::new()),
                false => Err("bytes follow its last value".into()),
            };
        }
        let mut common = Vec::new();
        let keys = cursor.strings(n, |cursor| {
            common = cursor.varints(n)?;
            Ok(())
        })?;
        let [file, from, length] = [(); 3].map(|()| cursor.varints(n));
        let (file, from, length) = (file?, from?, length?);
        let below = |i: usize| {
            let (path, base) = named(&files, file[i])?;
            let shared = usize::try_from(common[i]).ok().and_then(|n| keys[i].get(..n));
            let shared = shared.ok_or("a key is shorter than what all below it share")?;
            Ok(Node {
                path,
                base,
                from: from[i],
                length: length[i],
                height: height - 1,
                prefix: [&node.prefix, shared].concat(),
            })
        };
        (0..n).map(below).collect()
    }

    fn leaf(&mut self, cursor: &mut Cursor, n: usize, files: &Files, prefix: &[u8]) -> Parsed<()> {
        let keys = cursor.strings(n, |_| Ok(()))?;
        let lengths = cursor.varints(n)?;
        let kinds = cursor.varints(n)?;
        let stored = kinds.iter().filter(|kind| **kind == 1).count();
        let (file, from) = (cursor.varints(stored)?, cursor.varints(stored)?);
        let mut places = file.into_iter().zip(from);
        for ((key, length), kind) in keys.into_iter().zip(lengths).zip(kinds) {
            let value = match kind {
                0 => Value::Inline(Arc::new(cursor.take(length)?.to_vec())),
                1 => {
                    let (file, from) = places.next().ok_or("it has fewer places than values")?;
                    let (path, _) = named(files, file)?;
                    let file = self.file(&path).map_err(|e| e.to_string())?;
                    let range = range(&file, from, length)?;
                    Value::Stored { file, range }
                }
                _ => return Err(format!("a value is of an unknown kind ({kind})")),
            };
            let key = String::from_utf8([prefix, &key].concat()).map_err(|_| "a key is not UTF-8")?;
            self.bytes += key.len();
            if self.values.insert(key, value).is_some() {
                return Err("a key occurs twice".into());
            }
        }
        Ok(())
    }
}
