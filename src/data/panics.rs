//! Panics of other people's parsers, turned into errors.
//!
//! The parquet and SentencePiece readers return errors for most damaged files but trip over their own assertions on
//! some; a broken file must not end a run without saying which file it is. (Needs unwinding, the default.)

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Whether this thread is inside of [`caught`]: its panics are answers then and nothing to print.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// What `f` returns, or the message it panics with. `f` must leave nothing half changed that is used afterwards.
pub(super) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !INSIDE.get() {
                print(panic);
            }
        }));
    });
    INSIDE.set(true);
    let done = catch_unwind(AssertUnwindSafe(f));
    INSIDE.set(false);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        text.unwrap_or("a panic without a message").replace('\n', ", ")
    })
}
