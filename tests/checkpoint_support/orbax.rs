//! A small writer of Orbax checkpoints, after the format's description and nothing of the reader's.

use std::fs;
use std::path::Path;

/// Path in the tree below `params`, zarr's name of the type, shape, shape of the chunks, bytes.
pub struct Array {
    pub path: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub chunks: Vec<usize>,
    pub bytes: Vec<u8>,
}

pub fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

/// Frame of a manifest or node, uncompressed.
pub fn framed(magic: u32, content: &[u8]) -> Vec<u8> {
    let mut out = magic.to_be_bytes().to_vec();
    out.extend((content.len() as u64 + 18).to_le_bytes());
    out.extend([0, 0]);
    out.extend(content);
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out
}

fn list(numbers: impl IntoIterator<Item = usize>) -> Vec<u8> {
    numbers.into_iter().flat_map(|n| varint(n as u64)).collect()
}

/// The chunks of an array: index in the grid, bytes.
fn chunks(array: &Array) -> Vec<(Vec<usize>, Vec<u8>)> {
    let size = array.bytes.len() / array.shape.iter().product::<usize>().max(1);
    let grid: Vec<usize> = array
        .shape
        .iter()
        .zip(&array.chunks)
        .map(|(s, c)| s.div_ceil(*c))
        .collect();
    let index = |flat: usize, dims: &[usize]| {
        let mut rest = flat;
        let mut index: Vec<usize> = dims.iter().rev().map(|d| (rest % d, rest /= d).0).collect();
        index.reverse();
        index
    };
    let chunk = |at: Vec<usize>| {
        let mut bytes = Vec::new();
        for flat in 0..array.chunks.iter().product() {
            let inside = index(flat, &array.chunks);
            let place: Vec<usize> = (0..at.len()).map(|a| at[a] * array.chunks[a] + inside[a]).collect();
            match place.iter().zip(&array.shape).all(|(i, s)| i < s) {
                true => {
                    let i = place.iter().zip(&array.shape).fold(0, |i, (p, s)| i * s + p);
                    bytes.extend(&array.bytes[i * size..(i + 1) * size]);
                }
                false => bytes.extend(vec![0; size]),
            }
        }
        (at, bytes)
    };
    (0..grid.iter().product())
        .map(|flat| chunk(index(flat, &grid)))
        .collect()
}

/// Writes arrays as openpi's training does, paths ending in `value`.
pub fn write(folder: &Path, arrays: &[Array]) {
    let mut values: Vec<(String, Vec<u8>)> = Vec::new();
    let mut tree = serde_json::Map::new();
    for array in arrays {
        let keys: Vec<&str> = std::iter::once("params")
            .chain(array.path.split('/'))
            .chain(["value"])
            .collect();
        let described: Vec<_> = keys
            .iter()
            .map(|key| serde_json::json!({ "key": key, "key_type": 2 }))
            .collect();
        let entry = serde_json::json!({ "key_metadata": described, "value_metadata": { "value_type": "jax.Array" } });
        tree.insert(format!("{keys:?}"), entry);
        let name = keys.join(".");
        let zarray = serde_json::json!({
            "zarr_format": 2, "shape": array.shape, "chunks": array.chunks, "dtype": array.dtype, "order": "C",
            "compressor": { "id": "zstd", "level": 1 }, "filters": null, "fill_value": null, "dimension_separator": ".",
        });
        values.push((format!("{name}/.zarray"), zarray.to_string().into_bytes()));
        for (at, bytes) in chunks(array) {
            let at: Vec<String> = at.iter().map(usize::to_string).collect();
            let at = if at.is_empty() { "0".into() } else { at.join(".") };
            values.push((format!("{name}/{at}"), zstd::encode_all(&bytes[..], 1).unwrap()));
        }
    }
    values.sort();
    fs::create_dir_all(folder.join("d")).unwrap();
    let metadata = serde_json::json!({ "tree_metadata": tree, "use_zarr3": false });
    fs::write(folder.join("_METADATA"), metadata.to_string()).unwrap();

    let data = values.iter().flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<u8>>();
    let n = values.len();
    let starts = values
        .iter()
        .scan(0, |at, (_, bytes)| Some((*at, *at += bytes.len()).0));
    // One file, `d/data`, whose name shares nothing and whose folder is `` .
    let file = |name: &str| [list([1, name.len(), 0]), name.as_bytes().to_vec()].concat();
    let leaf = [
        vec![0],
        file("d/data"),
        list([n]),
        list(vec![0; n - 1]),
        list(values.iter().map(|(key, _)| key.len())),
        values.iter().flat_map(|(key, _)| key.bytes()).collect(),
        list(values.iter().map(|(_, bytes)| bytes.len())),
        list(vec![1; n]),
        list(vec![0; n]),
        list(starts),
    ];
    let leaf = framed(0x0cdb_20de, &leaf.concat());
    let manifest = [
        vec![7; 16],
        list([0, 1024, 100_000_000]),
        vec![4],
        list([0]),
        file("d/nodes"),
        list([1, 1]),
        vec![0],
        list([0, 0, leaf.len(), n, 0, 0]),
        vec![0; 8],
        list([0]),
    ];
    fs::write(folder.join("d/data"), data).unwrap();
    fs::write(folder.join("d/nodes"), leaf).unwrap();
    fs::write(folder.join("manifest.ocdbt"), framed(0x0cdb_3a2a, &manifest.concat())).unwrap();
}
