//! File name patterns in Python's format language.

use std::path::{Component, Path, PathBuf};

/// The `data_path` pattern, such as `data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet`.
#[derive(Clone, Debug)]
pub(super) struct Template {
    /// Literal text, then the number after it (if any) with its zero-padded width.
    parts: Vec<(String, Option<(Number, usize)>)>,
    chunks_size: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Chunk,
    Episode,
}

impl Template {
    /// The error is the reason, as a clause.
    pub(super) fn parse(pattern: &str, chunks_size: usize) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = pattern;
        while let Some((text, tail)) = rest.split_once('{') {
            let (inside, tail) = tail.split_once('}').ok_or("a `{` is not closed")?;
            let (name, format) = inside.split_once(':').unwrap_or((inside, "d"));
            let number = match name {
                "episode_chunk" => Number::Chunk,
                "episode_index" => Number::Episode,
                _ => return Err(format!("`{{{name}}}` is neither `episode_chunk` nor `episode_index`")),
            };
            let width = match format.strip_suffix('d') {
                Some("") => Some(0),
                Some(digits) => digits
                    .strip_prefix('0')
                    .and_then(|d| d.parse().ok())
                    .filter(|w| *w <= 32),
                None => None,
            };
            parts.push((
                text.to_owned(),
                Some((number, width.ok_or(format!("`{format}` is not like `06d`"))?)),
            ));
            rest = tail;
        }
        parts.push((rest.to_owned(), None));
        let plain = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(pattern).components().all(plain) {
            return Err("it leads out of the dataset".to_owned());
        }
        if !parts.iter().any(|(_, n)| n.is_some_and(|(n, _)| n == Number::Episode)) {
            return Err("it does not contain `{episode_index}`, so all episodes would share a file".to_owned());
        }
        Ok(Template { parts, chunks_size })
    }

    /// The path of an episode's file, relative to the dataset.
    pub(super) fn fill(&self, episode: usize) -> PathBuf {
        let mut path = String::new();
        for (text, number) in &self.parts {
            path.push_str(text);
            let value = match number {
                Some((Number::Chunk, width)) => Some((episode / self.chunks_size, *width)),
                Some((Number::Episode, width)) => Some((episode, *width)),
                None => None,
            };
            if let Some((value, width)) = value {
                path.push_str(&format!("{value:0width$}"));
            }
        }
        path.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_pattern_follows_python_formatting() {
        let pattern = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet";
        let template = Template::parse(pattern, 1000).unwrap();
        assert_eq!(template.fill(7), PathBuf::from("data/chunk-000/episode_000007.parquet"));
        assert_eq!(
            template.fill(12_345),
            PathBuf::from("data/chunk-012/episode_012345.parquet")
        );
        assert_eq!(
            Template::parse("e{episode_index}", 1).unwrap().fill(42),
            PathBuf::from("e42")
        );
        assert_eq!(
            Template::parse("e{episode_index:d}x", 1).unwrap().fill(42),
            PathBuf::from("e42x")
        );
        for (bad, why) in [
            ("data.parquet", "share a file"),
            ("../{episode_index}", "out of the dataset"),
            ("/{episode_index}", "out of the dataset"),
            ("{episode_index:6s}", "06d"),
            ("{episode_index:099999999999d}", "06d"),
            ("{video_key}", "neither"),
            ("{episode_index", "not closed"),
        ] {
            let reason = Template::parse(bad, 1000).unwrap_err();
            assert!(reason.contains(why), "{bad}: {reason}");
        }
    }
}
