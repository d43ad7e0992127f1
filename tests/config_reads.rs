//! Every key of the configuration is read by something.
//!
//! The sources are read as tokens. In each function, variables that hold the configuration or one of its tables are
//! followed (`let a = &config.acrlpd`, `fn group(chosen: &Optimizer)`), and every field taken from one counts as read there.
//! Defaults, checks and file formats do not count. A field that only `config/convert.rs` reads counts if the function
//! that reads it is called from elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use acrlpd::config::Config;

/// Types of tables, and where they are.
const TABLES: [(&str, &[&str]); 11] = [
    ("Config", &[""]),
    ("Model", &["model"]),
    ("DimsOverride", &["model.dims"]),
    ("LoraOverride", &["model.lora"]),
    ("Acrlpd", &["acrlpd"]),
    ("QChunking", &["qchunking"]),
    ("Critic", &["critic"]),
    ("Optimizers", &["optimizer"]),
    ("Optimizer", &["optimizer.actor", "optimizer.critic"]),
    ("Memory", &["memory"]),
    ("Data", &["data"]),
];

/// Rooms that know no configuration, unless a file of theirs names its type.
const WITHOUT: [&str; 8] = ["config", "checkpoint", "data", "gpu", "model", "ops", "step", "verify"];

/// Tells other programs what a step is: no use of a key.
const TELLS: &str = "bench/step/listed.rs";

/// A key that exists to be compared with model.action_horizon, in `config/check.rs`.
const COMPARED: &str = "acrlpd.chunk_length";

/// (key, name of the function that reads it)
type Reads = BTreeSet<(String, String)>;

fn join(table: &str, field: &str) -> String {
    if table.is_empty() {
        field.into()
    } else {
        format!("{table}.{field}")
    }
}

/// Identifiers and single signs; comments, texts and numbers' points are gone.
fn tokens(source: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c: char| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if c.is_alphanumeric() || c == '_' {
            let end = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                .unwrap_or(rest.len());
            tokens.push(rest[..end].to_owned());
            end
        } else {
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
            c.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// What one file reads.
struct Reader<'a> {
    tokens: &'a [String],
    keys: &'a [String],
    function: String,
    /// Variables that hold tables.
    holds: BTreeMap<String, Vec<String>>,
    reads: Reads,
    calls: BTreeSet<String>,
}

impl Reader<'_> {
    fn at(&self, i: usize) -> &str {
        self.tokens.get(i).map_or("", String::as_str)
    }

    fn is_table(&self, path: &str) -> bool {
        let inside = format!("{path}.");
        self.keys.iter().any(|key| key.starts_with(&inside)) && path != "data.cameras"
    }

    /// Follows `variable.field.field` from token `i`: the tables it ends at, and the token after it.
    fn chain(&mut self, mut i: usize) -> (Vec<String>, usize) {
        let mut tables = match self.at(i) {
            // However the configuration got here: `options.config`, `identity.config`.
            "config" => vec![String::new()],
            name => self.holds.get(name).cloned().unwrap_or_default(),
        };
        i += 1;
        while !tables.is_empty() && self.at(i) == "." && self.at(i + 2) != "(" {
            let fields: Vec<String> = tables.iter().map(|table| join(table, self.at(i + 1))).collect();
            for key in fields.iter().filter(|field| self.keys.contains(field)) {
                self.reads.insert((key.clone(), self.function.clone()));
            }
            tables = fields.into_iter().filter(|field| self.is_table(field)).collect();
            i += 2;
        }
        (tables, i)
    }

    /// `let a = &x.table;` and `let (a, b) = (&x.table, y.other());`
    fn binding(&mut self, i: usize) {
        let Some(equals) = (i..self.tokens.len().min(i + 60)).find(|j| self.at(*j) == "=") else {
            return;
        };
        let split = |from: usize, to: usize| {
            let (mut parts, mut depth, mut start) = (Vec::new(), 0, from);
            for j in from..to {
                match self.at(j) {
                    "(" | "[" | "{" => depth += 1,
                    ")" | "]" | "}" => depth -= 1,
                    "," if depth == 0 => {
                        parts.push((start, j));
                        start = j + 1;
                    }
                    _ => (),
                }
            }
            parts.push((start, to));
            parts
        };
        let Some(end) = (equals..self.tokens.len()).find(|j| self.at(*j) == ";") else {
            return;
        };
        let tuple = self.at(i + 1) == "(" && self.at(equals + 1) == "(";
        let pairs: Vec<_> = if tuple {
            split(i + 2, equals - 1)
                .into_iter()
                .zip(split(equals + 2, end - 1))
                .collect()
        } else {
            vec![((i + 1, equals), (equals + 1, end))]
        };
        for ((name, name_end), (value, value_end)) in pairs {
            let value = value + usize::from(self.at(value) == "&");
            let (tables, after) = self.chain(value);
            if name + 1 == name_end {
                let held = if after == value_end { tables } else { Vec::new() };
                self.holds.insert(self.at(name).to_owned(), held);
            }
        }
    }

    fn run(&mut self) {
        for i in 0..self.tokens.len() {
            match self.at(i) {
                "impl" => {
                    let table = TABLES.iter().find(|t| t.0 == self.at(i + 1));
                    self.holds = BTreeMap::new();
                    let of = table.map_or(Vec::new(), |t| t.1.iter().map(|p| p.to_string()).collect());
                    self.holds.insert("self".into(), of);
                }
                "fn" => {
                    self.function = self.at(i + 1).to_owned();
                    self.holds.retain(|name, _| name == "self");
                }
                "let" => self.binding(i),
                // A parameter `x: &Table` or `x: &config::Table`.
                ":" if self.at(i + 1) == "&" => {
                    let path = if self.at(i + 3) == ":" {
                        self.at(i + 5)
                    } else {
                        self.at(i + 2)
                    };
                    if let Some((_, paths)) = TABLES.iter().find(|t| t.0 == path) {
                        let name = self.at(i - 1).to_owned();
                        self.holds.insert(name, paths.iter().map(|p| p.to_string()).collect());
                    }
                }
                "(" if i > 1 => {
                    self.calls.insert(self.at(i - 1).to_owned());
                }
                // A new chain, unless this is the middle of one.
                _ if i == 0 || self.at(i - 1) != "." || self.at(i) == "config" => {
                    self.chain(i);
                }
                _ => (),
            }
        }
    }
}

fn read(source: &str, keys: &[String]) -> (Reads, BTreeSet<String>) {
    let tokens = tokens(source);
    let mut reader = Reader {
        tokens: &tokens,
        keys,
        function: String::new(),
        holds: BTreeMap::new(),
        reads: Reads::new(),
        calls: BTreeSet::new(),
    };
    reader.run();
    (reader.reads, reader.calls)
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// The keys that nothing reads; `edit` changes the text of a file first.
fn unread(edit: impl Fn(&Path, String) -> String) -> Vec<String> {
    let keys = Config::keys();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    let text = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        // Tests read whatever they like.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        edit(path.strip_prefix(&root).unwrap(), text)
    };
    let without = |path: &Path| WITHOUT.iter().any(|room| path.starts_with(root.join(room)));
    let outside = all
        .iter()
        .filter(|path| !path.starts_with(root.join("config")) && !path.ends_with(TELLS));
    let (mut reads, mut calls) = (BTreeSet::new(), BTreeSet::new());
    for path in outside {
        let source = text(path);
        if without(path) && !source.contains("config::Config") {
            continue;
        }
        let (read, called) = read(&source, &keys);
        reads.extend(read.into_iter().map(|(key, _)| key));
        calls.extend(called);
    }
    // What convert.rs does on behalf of its callers, and theirs.
    let convert = text(&root.join("config/convert.rs"));
    let (inside, _) = read(&convert, &keys);
    let bodies: Vec<(String, BTreeSet<String>)> = convert
        .split("fn ")
        .skip(1)
        .map(|body| (tokens(body)[0].clone(), read(body, &keys).1))
        .collect();
    loop {
        let before = calls.len();
        for (name, inner) in &bodies {
            if calls.contains(name) {
                calls.extend(inner.iter().cloned());
            }
        }
        if calls.len() == before {
            break;
        }
    }
    reads.extend(
        inside
            .into_iter()
            .filter(|(_, by)| calls.contains(by))
            .map(|(key, _)| key),
    );
    keys.into_iter().filter(|key| !reads.contains(key)).collect()
}

#[test]
fn every_key_is_read_by_something() {
    assert_eq!(unread(|_, text| text), [COMPARED]);
    let wrong = "data.prompt_from_task = true\nacrlpd.chunk_length = 3\n";
    assert!(
        Config::parse(wrong, "x.toml")
            .unwrap_err()
            .to_string()
            .contains(COMPARED)
    );
}

/// The test above would notice: without one of these reads, its key is unread.
#[test]
fn a_read_that_goes_away_is_noticed() {
    for (file, read, key) in [
        ("config/convert.rs", "q.terminal_reward", "qchunking.terminal_reward"),
        ("config/convert.rs", "q.reward_scale", "qchunking.reward_scale"),
        ("config/convert.rs", "self.vision_mlp", "model.dims.vision_mlp"),
        ("config/convert.rs", "d.transforms", "data.transforms"),
        ("train/recipe.rs", "a.huber_delta", "acrlpd.huber_delta"),
        ("train/recipe.rs", "chosen.eps", "optimizer.critic.eps"),
        (
            "train/recipe.rs",
            "config.acrlpd.temperature_lr",
            "acrlpd.temperature_lr",
        ),
        ("train/setup.rs", "config.data.mix_weights", "data.mix_weights"),
        ("train/handover.rs", "config.keep_checkpoints", "keep_checkpoints"),
        (
            "train/setup.rs",
            "config.positive_batch_ratio()",
            "acrlpd.positive_batch_ratio",
        ),
    ] {
        let without = unread(|path, text| match path == Path::new(file) {
            true => {
                assert!(text.contains(read), "{file}: {read}");
                // In words nothing is read.
                text.replace(read, &format!("0 /* no more */ // {read}\n"))
            }
            false => text,
        });
        assert!(without.contains(&key.to_owned()), "{file} without {read}: {without:?}");
    }
}
