//! SentencePiece models.

use std::fs;

use crate::room::{Row, check, cut, dataset, row};

const ROWS: &[Row] = &[
    row(
        "missing",
        |dir| fs::remove_file(dir.join("tok.model")).unwrap(),
        "TRAIN",
        3,
        &["cannot read `", "tok.model`", "the tokenizer"],
    ),
    row(
        "a folder",
        |_| (),
        "TRAIN --set=data.tokenizer=data",
        3,
        &["cannot read `", "/data`", "the tokenizer"],
    ),
    row(
        "of another library",
        |dir| fs::write(dir.join("tok.model"), "{\"model\": {\"type\": \"BPE\"}}").unwrap(),
        "TRAIN",
        3,
        &["tok.model` is not a usable tokenizer"],
    ),
    row(
        "empty",
        |dir| fs::write(dir.join("tok.model"), "").unwrap(),
        "TRAIN",
        3,
        &["tok.model` is not a usable tokenizer"],
    ),
    row(
        "half of it",
        |dir| cut(&dir.join("tok.model"), 0.5),
        "TRAIN",
        3,
        &["tok.model` is not a usable tokenizer"],
    ),
    row(
        "more pieces than the model embeds",
        |_| (),
        "TRAIN --set=model.dims.vocab=100",
        3,
        &["tok.model` has", "pieces", "model.dims.vocab = 100"],
    ),
];

#[test]
fn broken_tokenizers() {
    check(dataset, ROWS);
}
