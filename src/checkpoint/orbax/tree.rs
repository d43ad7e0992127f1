//! `_METADATA`: which arrays a checkpoint has, and where in the tree of parameters each belongs.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::cursor::Parsed;

pub(super) const METADATA: &str = "_METADATA";
/// What openpi puts around the tree, and what its training puts at the end of every path.
const AROUND: &str = "params";
const END: &str = "value";

#[derive(Deserialize)]
struct Metadata {
    tree_metadata: BTreeMap<String, Entry>,
    #[serde(default)]
    use_zarr3: bool,
}

#[derive(Deserialize)]
struct Entry {
    key_metadata: Vec<Key>,
    value_metadata: Kind,
}

#[derive(Deserialize)]
struct Key {
    key: Value,
}

#[derive(Deserialize)]
struct Kind {
    value_type: String,
}

/// The arrays that `text` lists: path in the tree (`PaliGemma/img/pos_embedding`) and key in the store.
pub(super) fn arrays(text: &[u8]) -> Parsed<Vec<(String, String)>> {
    let metadata: Metadata = serde_json::from_slice(text).map_err(|e| format!("it cannot be understood ({e})"))?;
    if metadata.use_zarr3 {
        return Err("its arrays are in zarr 3, of which only version 2 can be read".into());
    }
    let entries = metadata.tree_metadata.into_values();
    // Whatever is no array (`None`, empty mappings) has nothing in the store.
    let mut paths: Vec<Vec<String>> = entries
        .filter(|entry| entry.value_metadata.value_type.ends_with("rray"))
        .map(|entry| entry.key_metadata.into_iter().map(|key| plain(key.key)).collect())
        .collect();
    let keys: Vec<String> = paths.iter().map(|path| path.join(".")).collect();
    if paths.iter().all(|path| path.len() > 1 && path[0] == AROUND) {
        paths.iter_mut().for_each(|path| drop(path.remove(0)));
    }
    if paths.iter().all(|path| path.len() > 1 && path[path.len() - 1] == END) {
        paths.iter_mut().for_each(|path| drop(path.pop()));
    }
    Ok(paths.iter().map(|path| path.join("/")).zip(keys).collect())
}

/// A key is a name, or a number where the tree has a list.
fn plain(key: Value) -> String {
    match key {
        Value::String(name) => name,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(paths: &[&[&str]]) -> Vec<u8> {
        let entries = paths.iter().map(|path| {
            let keys: Vec<_> = path
                .iter()
                .map(|key| serde_json::json!({ "key": key, "key_type": 2 }))
                .collect();
            let entry = serde_json::json!({ "key_metadata": keys, "value_metadata": { "value_type": "jax.Array" } });
            (format!("{path:?}"), entry)
        });
        let tree: serde_json::Map<_, _> = entries.collect();
        serde_json::json!({ "tree_metadata": tree, "use_zarr3": false })
            .to_string()
            .into_bytes()
    }

    #[test]
    fn names_around_go_if_all_have_them() {
        let pair = |path: &str, key: &str| (path.to_owned(), key.to_owned());
        assert_eq!(
            arrays(&metadata(&[&["params", "a.b", "value"], &["params", "c", "value"]])).unwrap(),
            [pair("a.b", "params.a.b.value"), pair("c", "params.c.value")]
        );
        assert_eq!(
            arrays(&metadata(&[&["params", "a", "value"], &["params", "b"]])).unwrap(),
            [pair("a/value", "params.a.value"), pair("b", "params.b")]
        );
        assert_eq!(arrays(&metadata(&[&["params"], &["value"]])).unwrap().len(), 2);
    }

    #[test]
    fn what_is_no_array_is_passed_over_and_zarr_3_is_refused() {
        let text = String::from_utf8(metadata(&[&["params", "a"]])).unwrap();
        assert!(arrays(text.replace("jax.Array", "None").as_bytes()).unwrap().is_empty());
        assert!(
            arrays(text.replace("false", "true").as_bytes())
                .unwrap_err()
                .contains("zarr 3")
        );
        assert!(arrays(b"[]").unwrap_err().contains("cannot be understood"));
    }
}
