//! The published π₀ in its full size through `acrlpd checkpoint import` and `export`, as programs: every bit of 3.2 · 10⁹
//! parameters is compared, memory and speed are measured (docs/CHECKPOINTS.md has the numbers). It takes 28 GB of disk and
//! some minutes, so it runs only where it is told to:
//!
//! ```sh
//! ACRLPD_TEST_FULL_SIZE=DIR cargo test --release --test full_size -- --ignored --nocapture
//! ```

mod checkpoint_support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use acrlpd::checkpoint::{RunState, begin, shards, state};
use acrlpd::config::Config;
use checkpoint_support::{EMBEDDING, TIED, UNUSED, golden};
use half::bf16;
use safetensors::tensor::SafeTensors;

/// What the program may have in memory at most, beside mapped files; the largest tensor has 2.1 GB.
const LITTLE: usize = 128 << 20;
/// Values made or compared at a time.
const CHUNK: usize = 1 << 20;

/// A tensor of openpi's list.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    number: u32,
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bits of a value: any finite number below two, subnormals and -0 too.
    fn bits(&self, place: usize) -> u32 {
        let x = (place as u32 ^ self.number.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        let x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
        (x ^ x >> 16) & 0xbfff_ffff
    }
}

/// Names and shapes as openpi has them.
fn tensors() -> Vec<Tensor> {
    let text = fs::read_to_string(golden("pi0_full_shapes.json")).expect("a list");
    let list: BTreeMap<String, Vec<usize>> = serde_json::from_str(&text).expect("JSON");
    let numbered = list.into_iter().zip(1..);
    let tensor = |((name, shape), number)| Tensor { name, shape, number };
    numbered.map(tensor).collect()
}

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    F32,
    /// The upper half of the f32.
    UpperHalf,
    /// The f32 rounded to bf16.
    Rounded,
}

impl Form {
    fn dtype(self) -> &'static str {
        if self == Form::F32 { "F32" } else { "BF16" }
    }

    fn size(self) -> usize {
        if self == Form::F32 { 4 } else { 2 }
    }

    /// The bytes of some values of a tensor.
    fn bytes(self, tensor: &Tensor, range: Range<usize>) -> Vec<u8> {
        let bits = range.map(|i| tensor.bits(i));
        match self {
            Form::F32 => bits.flat_map(u32::to_le_bytes).collect(),
            Form::UpperHalf => bits.flat_map(|b| ((b >> 16) as u16).to_le_bytes()).collect(),
            Form::Rounded => bits
                .flat_map(|b| bf16::from_f32(f32::from_bits(b)).to_le_bytes())
                .collect(),
        }
    }
}

fn chunks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(CHUNK).map(move |from| from..len.min(from + CHUNK))
}

/// A file as openpi saves it: the embedding under the name of the output layer, and the expert's unused output layer.
fn write_source(path: &Path, tensors: &[Tensor], form: Form) -> u64 {
    let unused = Tensor {
        name: UNUSED.into(),
        shape: vec![257_152, 1024],
        number: 0,
    };
    let all: Vec<&Tensor> = tensors.iter().chain([&unused]).collect();
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for tensor in &all {
        let end = offset + form.size() * tensor.len();
        let name = if tensor.name == EMBEDDING { TIED } else { &tensor.name };
        let entry = serde_json::json!({"dtype": form.dtype(), "shape": tensor.shape, "data_offsets": [offset, end]});
        header.insert(name.into(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).expect("JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path).expect("a file"));
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room");
    file.write_all(&header).expect("room");
    for tensor in all {
        for range in chunks(tensor.len()) {
            file.write_all(&form.bytes(tensor, range)).expect("room");
        }
    }
    file.into_inner().expect("room").sync_all().expect("a disk");
    offset as u64
}

/// Compares every bit of the tensors in `files`, which must be exactly those of the list, and `zeros`.
fn compare(files: &[PathBuf], tensors: &[Tensor], form: Form, zeros: Option<&str>) {
    let mut expected: BTreeMap<&str, &Tensor> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    if zeros.is_some() {
        let embedding = expected.remove(EMBEDDING).expect("the embedding");
        expected.insert(TIED, embedding);
    }
    let mut seen_zeros = false;
    for path in files {
        let map = acrlpd::files::map(path).expect("a file");
        let (header, metadata) = SafeTensors::read_metadata(&map).expect("a header");
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let data = &map[8 + header + from..8 + header + to];
            assert_eq!(format!("{:?}", info.dtype), form.dtype(), "{name}");
            if Some(name.as_str()) == zeros {
                assert_eq!(info.shape, [257_152, 1024]);
                assert!(data.iter().all(|byte| *byte == 0), "{name}");
                seen_zeros = true;
                continue;
            }
            let tensor = expected.remove(name.as_str()).expect("a tensor of the list");
            assert_eq!(info.shape, tensor.shape, "{name}");
            for range in chunks(tensor.len()) {
                let bytes = range.start * form.size()..range.end * form.size();
                assert!(
                    data[bytes] == form.bytes(tensor, range.clone()),
                    "{name} in values {range:?}"
                );
            }
        }
    }
    assert_eq!(seen_zeros, zeros.is_some());
    assert!(expected.is_empty(), "{:?} are missing", expected.keys());
}

/// Runs the program; what it says, how long it takes, and its largest anonymous memory.
fn run(args: &[&str]) -> (String, Duration, usize) {
    let since = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
    let mut child = command.args(args).stdout(Stdio::piped()).spawn().expect("it starts");
    let (status, mut most) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().expect("a program").is_none() {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.map_or("0", |line| line.trim().trim_end_matches("kB").trim());
        most = most.max(1024 * kilobytes.parse::<usize>().expect("a number"));
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = since.elapsed();
    let output = child.wait_with_output().expect("a program");
    assert!(output.status.success(), "{args:?}");
    (String::from_utf8(output.stdout).expect("text"), took, most)
}

fn tell(what: &str, read: u64, files: &[PathBuf], took: Duration, most: usize) {
    let written: u64 = files.iter().map(|f| fs::metadata(f).expect("a file").len()).sum();
    println!(
        "{what}: {:.2} GB read, {:.2} GB written in {:.1} s ({:.2} GB/s); at most {:.1} MB of anonymous memory",
        read as f64 / 1e9,
        written as f64 / 1e9,
        took.as_secs_f64(),
        written as f64 / 1e9 / took.as_secs_f64(),
        most as f64 / 1e6
    );
    assert!(most < LITTLE, "{what} had {most} bytes in memory");
}

fn safetensors_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// A checkpoint of the configuration rl_fold_box with these weights, in shards as a run writes them.
fn write_checkpoint(run: &Path, tensors: &[Tensor]) -> (PathBuf, u64) {
    let config = Config::load("rl_fold_box").expect("a preset");
    let mut draft = begin(run, RunState::now(1, 42, &config.name)).expect("a disk");
    let ranges = shards::divide(tensors.iter().map(|t| 4 * t.len() as u64), 1 << 30);
    let names: Vec<String> = (0..ranges.len())
        .map(|i| shards::shard_name(state::PARAMS, i, ranges.len()))
        .collect();
    for (range, name) in ranges.iter().zip(&names) {
        let part = &tensors[range.clone()];
        let plan: Vec<_> = part.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
        let mut file = draft.tensors(name, &plan).expect("a disk");
        for tensor in part {
            for range in chunks(tensor.len()) {
                let bytes = Form::F32.bytes(tensor, range);
                file.write_bytes(&tensor.name, &bytes).expect("a disk");
            }
        }
        draft.keep(file).expect("a disk");
    }
    let located = ranges.iter().zip(&names).flat_map(|(range, name)| {
        let of = tensors[range.clone()].iter();
        of.map(move |t| (t.name.as_str(), name.as_str()))
    });
    let bytes = tensors.iter().map(|t| 4 * t.len() as u64).sum();
    let index = shards::index(located, bytes);
    draft.text(&shards::index_of(state::PARAMS), &index).expect("a disk");
    draft.text(state::CONFIG, &config.to_toml()).expect("a disk");
    draft.text(state::NORM_STATS, "{}").expect("a disk");
    (draft.commit(1).expect("a disk"), bytes)
}

#[test]
#[ignore = "takes 28 GB of disk"]
fn the_whole_policy_is_imported_and_exported_in_little_memory() {
    let dir = std::env::var("ACRLPD_TEST_FULL_SIZE").expect("set ACRLPD_TEST_FULL_SIZE to a folder with 28 GB of room");
    let dir = tempfile::tempdir_in(dir).expect("a folder");
    let tensors = tensors();
    assert_eq!(tensors.iter().map(Tensor::len).sum::<usize>(), 3_238_048_528);

    for form in [Form::F32, Form::UpperHalf] {
        let (source, out) = (dir.path().join("source.safetensors"), dir.path().join("imported"));
        let since = Instant::now();
        let bytes = write_source(&source, &tensors, form);
        println!("a source was made and synced in {:.1} s", since.elapsed().as_secs_f64());
        let (said, took, most) = run(&["checkpoint", "import", text(&source), "--out", text(&out)]);
        assert!(said.contains("776 tensors"), "{said}");
        let files = safetensors_in(&out);
        tell(&format!("import of {}", form.dtype()), bytes, &files, took, most);
        compare(&files, &tensors, form, None);
        fs::remove_file(&source).expect("it is there");
        fs::remove_dir_all(&out).expect("it is there");
    }

    let (checkpoint, bytes) = write_checkpoint(&dir.path().join("run"), &tensors);
    for (dtype, form) in [("float32", Form::F32), ("bfloat16", Form::Rounded)] {
        let out = dir.path().join("exported");
        let path = [text(&checkpoint), "--to=openpi", "--out", text(&out)];
        let (_, took, most) = run(&[&["checkpoint", "export"], &path[..], &["--dtype", dtype]].concat());
        let files = safetensors_in(&out);
        assert_eq!(files.len(), 1);
        tell(&format!("export to {dtype}"), bytes, &files, took, most);
        compare(&files, &tensors, form, Some(UNUSED));
        fs::remove_dir_all(&out).expect("it is there");
    }
}
