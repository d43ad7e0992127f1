//! Files that are missing, broken or not what they should be, one a row, given to the program as its users would: the
//! exit code, and one sentence that names the file and what is wrong in it. Nothing is written.
//!
//! `tests/bad_input_config.rs` does the same for configurations, flags and variables.

mod checkpoints;
mod datasets;
mod fixtures;
mod room;
mod runs;
mod statistics;
mod tables;
mod tokenizers;
mod weights;
