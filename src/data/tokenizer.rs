//! Prompts as token ids, in the forms π₀ and π₀.₅ were trained with.
//!
//! | model | text after `<bos>` |
//! |---|---|
//! | π₀ | `{text}` then, tokenized on its own, a newline |
//! | π₀.₅ | `Task: {text}, State: {bins};\nAction: ` where bins are the state's coordinates in 256 steps over [-1, 1] |
//!
//! In both, the text is stripped and its underscores and newlines become spaces. Source: openpi `models/tokenizer.py`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kitoken::{Definition, InsertionPosition, Kitoken, Processing, SpecialTokenKind};

use super::DataError;
use super::panics::caught;

const PAD: i32 = 0;
/// SentencePiece matches user-defined pieces (`<loc0001>`) in text, but never `<bos>` and the like.
const IN_TEXT: &[SpecialTokenKind] = &[SpecialTokenKind::Priority];
/// Names of a begin token, where no template says which it is.
const BEGIN: [&str; 2] = ["<bos>", "<s>"];
/// Bins of a state coordinate per unit: 256 over [-1, 1].
const BINS_PER_UNIT: f64 = 128.0;

/// A SentencePiece model or a `tokenizer.json`, ready to make prompts. Thread-safe.
#[derive(Debug)]
pub struct PromptTokenizer {
    pieces: Kitoken,
    bos: i32,
    /// One more than the largest id that a prompt can have.
    ids: usize,
    /// Pieces of which the numbers of a state can consist.
    numbers: Vec<i32>,
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
    /// Reads a SentencePiece `.model` or a `tokenizer.json` of the `tokenizers` library.
    ///
    /// # Errors
    /// [`DataError::Read`], or [`DataError::Tokenizer`] if it is something else than either with a begin token.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let data = fs::read(path).map_err(|source| DataError::Read {
            path: path.to_owned(),
            role: "the tokenizer",
            source,
        })?;
        let unusable = |reason: String| DataError::Tokenizer {
            path: path.to_owned(),
            reason: reason.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        let read = caught(|| Self::parse(&data));
        let read = read.map_err(|panic| unusable(format!("its parser gave up, {panic}")))?;
        read.map_err(unusable)
    }

    /// Either form, told apart by the brace that opens a JSON file.
    fn parse(data: &[u8]) -> Result<Self, String> {
        let definition = if data.trim_ascii_start().starts_with(b"{") {
            Definition::from_tokenizers_slice(data)
        } else {
            Definition::from_sentencepiece_slice(data)
        };
        let mut definition = definition.map_err(|e| e.to_string())?;
        // A `tokenizer.json` may cut and pad, each part of a prompt by itself; the length of prompts is decided here.
        let length = |p: &Processing| matches!(p, Processing::Pad { .. } | Processing::Truncate { .. });
        definition.config.processing.retain(|p| !length(p));
        let bos = begin(&definition)?;
        let in_text = definition
            .specials
            .iter()
            .filter(|s| s.kind != SpecialTokenKind::Control);
        let ids = in_text.map(|special| special.id);
        let ids = ids.chain(definition.model.vocab().iter().map(|piece| piece.id));
        let last = ids.fold(bos, u32::max);
        let bound = |id: u32| i32::try_from(id).map_err(|_| format!("a piece has the id {id}, which is too large"));
        bound(last)?;
        let numbers = definition.model.vocab().iter().filter(|piece| in_numbers(&piece.bytes));
        let numbers = numbers.map(|piece| piece.id as i32).collect();
        Ok(PromptTokenizer {
            pieces: Kitoken::from_definition(definition).map_err(|e| e.to_string())?,
            bos: bound(bos)?,
            ids: last as usize + 1,
            numbers,
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
        let mut tokens = self.whole(text, state)?;
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

    /// Every id that prompts of these texts can have, whatever their `state` coordinates are (π₀: none), and perhaps more.
    ///
    /// # Errors
    /// As [`PromptTokenizer::prompt`].
    pub fn ids_of(&self, texts: &[&str], state: Option<usize>) -> Result<BTreeSet<i32>, DataError> {
        let mut ids = BTreeSet::new();
        let state = state.map(|width| vec![0.0; width]);
        for text in texts {
            ids.extend(self.whole(text, state.as_deref())?);
        }
        if let (Some(mut state), Some(text)) = (state, texts.first()) {
            // Every number at the start and the end of a state; between them only pieces of numbers can stand.
            ids.extend(&self.numbers);
            for step in -1..256 {
                state.fill(f64::from(step) / BINS_PER_UNIT - 1.0);
                ids.extend(self.whole(text, Some(&state))?);
            }
        }
        Ok(ids)
    }

    /// The prompt, neither cut nor padded.
    fn whole(&self, text: &str, state: Option<&[f64]>) -> Result<Vec<i32>, DataError> {
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
            let ids = caught(|| self.pieces.encode(&part, IN_TEXT).map_err(|e| e.to_string()));
            let ids = ids.and_then(|ids| ids).map_err(|reason| DataError::Prompt {
                prompt: text.to_owned(),
                reason,
            })?;
            tokens.extend(ids.into_iter().map(|id| id as i32));
        }
        Ok(tokens)
    }
}

/// Whether a piece can occur in numbers with single spaces between them.
fn in_numbers(piece: &[u8]) -> bool {
    let text = String::from_utf8_lossy(piece).replace('\u{2581}', " ");
    let fits = text.chars().all(|c| c.is_ascii_digit() || c == ' ' || c == '-');
    fits && !text.contains("  ") && !text.contains("--")
}

/// The id of the token that begins a sequence: the one the tokenizer puts there itself, else one of the usual names.
fn begin(definition: &Definition) -> Result<u32, String> {
    let starts = [InsertionPosition::SequenceStart, InsertionPosition::SubSequenceStart];
    let template = definition
        .config
        .templates
        .iter()
        .find(|t| starts.contains(&t.position));
    let id = |name: &str| {
        let special = definition.specials.iter().find(|s| s.bytes == name.as_bytes());
        special.map(|special| special.id)
    };
    match template {
        Some(template) => {
            id(&template.content).ok_or_else(|| format!("`{}` is not one of its tokens", template.content))
        }
        None => BEGIN
            .into_iter()
            .find_map(id)
            .ok_or_else(|| "it names no token that begins a sequence".to_owned()),
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
    fn ids_of_texts_are_those_of_every_prompt() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tokenizer/tiny_paligemma.model");
        let tokenizer = PromptTokenizer::from_file(path).expect("the shipped tokenizer");
        let texts = ["fold the box", "put the_cup on 12 plates; then wait"];
        let plain = tokenizer.ids_of(&texts, None).expect("ids");
        let ids = tokenizer.ids_of(&texts, Some(3)).expect("ids");
        assert!(
            plain.len() < ids.len() && ids.len() < tokenizer.ids(),
            "{} of {}",
            ids.len(),
            tokenizer.ids()
        );
        for text in texts {
            assert!(
                tokenizer
                    .whole(text, None)
                    .expect("ids")
                    .iter()
                    .all(|id| plain.contains(id))
            );
            for i in 0..2000 {
                let state = [1, 7, 13].map(|factor| f64::from(i * factor % 259) / BINS_PER_UNIT - 1.01);
                let prompt = tokenizer.whole(text, Some(&state)).expect("ids");
                assert!(prompt.iter().all(|id| ids.contains(id)), "{state:?}");
            }
        }
    }

    #[test]
    fn strip_is_pythons() {
        assert_eq!(strip("\u{1c} \t\u{a0}a b\u{2003}\u{1f}\n"), "a b");
    }
}
