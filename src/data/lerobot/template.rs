//! File name patterns in Python's format language.

use std::path::{Component, Path, PathBuf};

/// A `data_path` or `video_path` pattern, such as `data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet`.
#[derive(Clone, Debug)]
pub(super) struct Template {
    /// Literal text, then what stands after it (if anything).
    parts: Vec<(String, Option<Blank>)>,
}

/// What a pattern calls its blanks. `file` must be in it, and `key` if it has a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub chunk: &'static str,
    pub file: &'static str,
    /// The camera.
    pub key: Option<&'static str>,
}

/// The numbers of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub chunk: usize,
    pub file: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Blank {
    /// With their zero-padded widths.
    Chunk(usize),
    File(usize),
    Key,
}

impl Template {
    /// The error is the reason, as a clause.
    pub(super) fn parse(pattern: &str, names: Names) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = pattern;
        while let Some((text, tail)) = rest.split_once('{') {
            let (inside, tail) = tail.split_once('}').ok_or("a `{` is not closed")?;
            parts.push((text.to_owned(), Some(blank(inside, names)?)));
            rest = tail;
        }
        parts.push((rest.to_owned(), None));
        if !stays_inside(Path::new(pattern)) {
            return Err("it leads out of the dataset".to_owned());
        }
        let has = |wanted: fn(&Blank) -> bool| parts.iter().any(|(_, blank)| blank.as_ref().is_some_and(wanted));
        if !has(|blank| matches!(blank, Blank::File(_))) {
            let whose = if names.file == "episode_index" {
                "episodes"
            } else {
                "files"
            };
            return Err(format!(
                "it does not contain `{{{}}}`, so all {whose} would share a file",
                names.file
            ));
        }
        match names.key {
            Some(key) if !has(|blank| *blank == Blank::Key) => Err(format!(
                "it does not contain `{{{key}}}`, so all cameras would share a file"
            )),
            _ => Ok(Template { parts }),
        }
    }

    /// The path of a file, relative to the dataset. `key` must not lead out of it (see [`stays_inside`]).
    pub(super) fn fill(&self, place: Place, key: &str) -> PathBuf {
        let mut path = String::new();
        for (text, blank) in &self.parts {
            path.push_str(text);
            match blank {
                Some(Blank::Chunk(width)) => path.push_str(&format!("{:0width$}", place.chunk)),
                Some(Blank::File(width)) => path.push_str(&format!("{:0width$}", place.file)),
                Some(Blank::Key) => path.push_str(key),
                None => {}
            }
        }
        path.into()
    }
}

/// Whether a relative path goes down only.
pub(super) fn stays_inside(path: &Path) -> bool {
    let plain = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    path.components().all(plain)
}

fn blank(inside: &str, names: Names) -> Result<Blank, String> {
    let (name, format) = inside.split_once(':').unwrap_or((inside, ""));
    let known = [Some(names.chunk), Some(names.file), names.key];
    if !known.contains(&Some(name)) {
        let known: Vec<String> = known.into_iter().flatten().map(|name| format!("`{name}`")).collect();
        return Err(format!("`{{{name}}}` is neither {}", known.join(" nor ")));
    }
    if Some(name) == names.key {
        return match format {
            "" | "s" => Ok(Blank::Key),
            _ => Err(format!("`{{{inside}}}` asks for a text as `{format}`")),
        };
    }
    let width = match format.strip_suffix('d') {
        Some(digits) if !digits.is_empty() => digits
            .strip_prefix('0')
            .and_then(|digits| digits.parse().ok())
            .filter(|width| *width <= 32),
        Some(_) => Some(0),
        None => format.is_empty().then_some(0),
    };
    let width = width.ok_or_else(|| format!("`{format}` is not like `06d`"))?;
    Ok(if name == names.chunk {
        Blank::Chunk(width)
    } else {
        Blank::File(width)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: Names = Names {
        chunk: "episode_chunk",
        file: "episode_index",
        key: None,
    };
    const VIDEO: Names = Names {
        key: Some("video_key"),
        ..DATA
    };

    fn filled(pattern: &str, names: Names, chunk: usize, file: usize) -> PathBuf {
        let template = Template::parse(pattern, names).unwrap();
        template.fill(Place { chunk, file }, "cam.a")
    }

    #[test]
    fn the_path_pattern_follows_python_formatting() {
        let pattern = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet";
        for (chunk, file, path) in [
            (0, 7, "data/chunk-000/episode_000007.parquet"),
            (12, 12_345, "data/chunk-012/episode_012345.parquet"),
        ] {
            assert_eq!(filled(pattern, DATA, chunk, file), PathBuf::from(path));
        }
        assert_eq!(filled("e{episode_index}", DATA, 0, 42), PathBuf::from("e42"));
        assert_eq!(filled("e{episode_index:d}x", DATA, 0, 42), PathBuf::from("e42x"));
        let film = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4";
        assert_eq!(
            filled(film, VIDEO, 1, 1001),
            PathBuf::from("videos/chunk-001/cam.a/episode_001001.mp4")
        );
        for (bad, names, why) in [
            ("data.parquet", DATA, "all episodes would share a file"),
            ("{episode_index}", VIDEO, "all cameras would share a file"),
            ("../{episode_index}", DATA, "out of the dataset"),
            ("/{episode_index}", DATA, "out of the dataset"),
            ("{episode_index:6s}", DATA, "06d"),
            ("{episode_index:099999999999d}", DATA, "06d"),
            ("{video_key}", DATA, "neither `episode_chunk` nor `episode_index`"),
            ("{video_key:3d}{episode_index}", VIDEO, "asks for a text"),
            ("{episode_index", DATA, "not closed"),
        ] {
            let reason = Template::parse(bad, names).unwrap_err();
            assert!(reason.contains(why), "{bad}: {reason}");
        }
    }
}
