//! Where compiled kernels are kept, and whether.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// A folder for the cache instead of the usual one.
pub const FOLDER: &str = "ACRLPD_CACHE_DIR";
/// Set to anything but 0: no cache.
pub const OFF: &str = "ACRLPD_NO_KERNEL_CACHE";

static SWITCHED_OFF: AtomicBool = AtomicBool::new(false);

/// Devices opened from now on neither use nor fill the kernel cache on disk.
pub fn without_kernel_cache() {
    SWITCHED_OFF.store(true, Ordering::Relaxed);
}

/// The folder, if there is to be a cache and a place for it.
pub(super) fn folder() -> Option<PathBuf> {
    if SWITCHED_OFF.load(Ordering::Relaxed) {
        return None;
    }
    from(|name| std::env::var_os(name))
}

/// By environment: `ACRLPD_CACHE_DIR`, else `acrlpd` in the user's folder for caches.
fn from(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|v| !v.is_empty());
    // As their specification says, relative paths in XDG variables are ignored.
    let absolute = |name| set(name).map(PathBuf::from).filter(|p| p.is_absolute());
    if set(OFF).is_some_and(|v| v != "0") {
        return None;
    }
    if let Some(own) = set(FOLDER) {
        return Some(own.into());
    }
    let caches = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Caches"))
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
    };
    Some(caches?.join("acrlpd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Option<PathBuf> {
        from(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_usual_place_can_be_changed_and_switched_off() {
        let path = |p: &str| Some(PathBuf::from(p));
        assert_eq!(with(&[("HOME", "/home/me")]), path("/home/me/.cache/acrlpd"));
        assert_eq!(
            with(&[("HOME", "/home/me"), ("XDG_CACHE_HOME", "/c")]),
            path("/c/acrlpd")
        );
        assert_eq!(
            with(&[("HOME", "/home/me"), ("XDG_CACHE_HOME", "c")]),
            path("/home/me/.cache/acrlpd")
        );
        assert_eq!(with(&[("HOME", "/home/me"), (FOLDER, "/k")]), path("/k"));
        assert_eq!(
            with(&[("HOME", "/home/me"), (FOLDER, "")]),
            path("/home/me/.cache/acrlpd")
        );
        assert_eq!(with(&[(FOLDER, "/k"), (OFF, "1")]), None);
        assert_eq!(with(&[(FOLDER, "/k"), (OFF, "0")]), path("/k"));
        assert_eq!(with(&[]), None);
    }
}
