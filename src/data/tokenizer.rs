//! Prompts as token ids, in the forms π₀ and π₀.₅ were trained with.
//!
//! | model | text after `<bos>` |
//! |---|---|
//! | π₀ | `{text}` then, tokenized on its own, a newline |
//! | π₀.₅ | `Task: {text}, State: {bins};\nAction: ` where bins are the state's coordinates in 256 steps over [-1, 1] |
//!
//! In both, the text is stripped and its underscores and newlines become spaces. Source: openpi `models/tokenizer.py`.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kitoken::{Definition, InsertionPosition, Kitoken, SpecialTokenKind};

use super::DataError;
use super::panics::caught;

const PAD: i32 = 0;
/// SentencePiece matches user-defined pieces (`<loc0001>`) in text, but never `<bos>` and the like.
const IN_TEXT: &[SpecialTokenKind] = &[SpecialTokenKind::Priority];
/// Bins of a state coordinate per unit: 256 over [-1, 1].
const BINS_PER_UNIT: f64 = 128.0;

/// A SentencePiece model, ready to make prompts. Thread-safe.
#[derive(Debug)]
pub struct PromptTokenizer {
    pieces: Kitoken,
    bos: i32,
    /// One more than the largest id.
    ids: usize,
    warned: AtomicBool,
}

/// A prompt of L tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedPrompt {
    /// Token ids, 0 where masked, `[L]`.
    pub tokens: Vec<i32>,
    /// Which tokens are real, `[L]`.
    pub mask: Vec<bool>,
    /// Number of tokens before cutting to L.
    pub untruncated: usize,
}

impl PromptTokenizer {
    /// Reads a `.model` file.
    ///
    /// # Errors
    /// [`DataError::Read`], or [`DataError::Tokenizer`] if it is something else than a model with a `<bos>` token.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let data = fs::read(path).map_err(|source| DataError::Read {
            path: path.to_owned(),
            role: "the tokenizer",
            source,
        })?;
        let unusable = |reason: String| DataError::Tokenizer {
            path: path.to_owned(),
            reason,
        };
        let pieces = caught(|| {
            let definition = Definition::from_sentencepiece_slice(&data).map_err(|e| e.to_string())?;
            let plain = definition.model.vocab().iter().map(|piece| piece.id);
            let last = plain.chain(definition.specials.iter().map(|piece| piece.id)).max();
            let pieces = Kitoken::from_definition(definition).map_err(|e| e.to_string())?;
            Ok((pieces, last.map_or(0, |id| id as usize + 1)))
        });
        let pieces = pieces.map_err(|panic| unusable(format!("its parser gave up, {panic}")))?;
        let (pieces, ids) = pieces.map_err(unusable)?;
        let start = pieces
            .config()
            .templates
            .iter()
            .find(|t| t.position == InsertionPosition::SequenceStart);
        let start = start.ok_or_else(|| unusable("it names no token that begins a sequence".to_owned()))?;
        let bos = match pieces.encode(&start.content, true).as_deref() {
            Ok([bos]) => *bos as i32,
            _ => return Err(unusable(format!("`{}` is not one of its tokens", start.content))),
        };
        Ok(PromptTokenizer {
            pieces,
            bos,
            ids,
            warned: AtomicBool::new(false),
        })
    }

    /// Ids are below this: the rows that the embedding must have.
    pub fn ids(&self) -> usize {
        self.ids
    }

    /// The π₀ form, or the π₀.₅ form if `state` (normalised, not padded) is given, cut or padded to `len` tokens.
    ///
    /// # Errors
    /// [`DataError::Prompt`] if the model has no way to write a part of the text.
    pub fn prompt(&self, text: &str, state: Option<&[f64]>, len: usize) -> Result<TokenizedPrompt, DataError> {
        let clean = strip(text).replace(['_', '\n'], " ");
        let parts = match state {
            None => vec![clean, "\n".to_owned()],
            Some(state) => {
                let bins: Vec<String> = state.iter().map(|x| bin(*x).to_string()).collect();
                vec![format!("Task: {clean}, State: {};\nAction: ", bins.join(" "))]
            }
        };
        let mut tokens = vec![self.bos];
        for part in parts {
            let ids = self.pieces.encode(&part, IN_TEXT);
            let ids = ids.map_err(|e| DataError::Prompt {
                prompt: text.to_owned(),
                reason: e.to_string(),
            })?;
            tokens.extend(ids.into_iter().map(|id| id as i32));
        }
        let untruncated = tokens.len();
        if untruncated > len && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "a prompt of {untruncated} tokens is cut to {len}: {text:?}; raise token_len to keep all of it"
            );
        }
        let mut mask = vec![true; untruncated.min(len)];
        mask.resize(len, false);
        tokens.resize(len, PAD);
        Ok(TokenizedPrompt {
            tokens,
            mask,
            untruncated,
        })
    }
}

/// Python's `str.strip`, which also takes the four ASCII separators for whitespace.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// `numpy.digitize(x, numpy.linspace(-1, 1, 257)[:-1]) - 1`: -1 below the range, 255 above it. Exact, since both the
/// edges and the product are.
fn bin(x: f64) -> i64 {
    ((x * BINS_PER_UNIT).floor() + BINS_PER_UNIT).clamp(-1.0, 255.0) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_have_exact_edges() {
        for (x, expected) in [
            (-1.5, -1),
            (-1.0 - f64::EPSILON, -1),
            (-1.0, 0),
            (-0.9921875, 1),
            (-0.9921875 - 1e-16, 0),
            (-1e-300, 127),
            (-0.0, 128),
            (0.0, 128),
            (1.0 - f64::EPSILON, 255),
            (1.0, 255),
            (9.0, 255),
        ] {
            assert_eq!(bin(x), expected, "{x:e}");
        }
    }

    #[test]
    fn strip_is_pythons() {
        assert_eq!(strip("\u{1c} \t\u{a0}a b\u{2003}\u{1f}\n"), "a b");
    }
}
