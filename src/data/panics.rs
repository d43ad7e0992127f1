//! Panics of other people's parsers, turned into errors.
//!
//! The parquet and SentencePiece readers return errors for most damaged files but trip over their own assertions on
//! some; a broken file must not end a run without saying which file it is. (Needs unwinding, the default.)

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `f` returns, or the message it panics with. `f` must leave nothing half changed that is used afterwards.
pub(super) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        text.unwrap_or("a panic without a message").replace('\n', ", ")
    })
}
