//! The sticky error of a device, and the panic hook that feeds it.
//!
//! cubecl runs each device on a thread of its own and catches panics there: the launch is dropped, and reads go on to
//! return stale bytes with `Ok`. So we mark that thread when a device is opened, and a process-wide hook (chained to
//! the previous one) turns a panic on a marked thread into the error of its device. A program that replaces the panic
//! hook after opening a device must chain to it too.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, Once, Weak};

use super::GpuError;

/// Holds the first error of a device.
#[derive(Clone, Default)]
pub(crate) struct Fault(Arc<Mutex<Option<GpuError>>>);

/// Somebody who opened the device a thread feeds: where errors go, and the name of the device.
struct Owner {
    slot: Weak<Mutex<Option<GpuError>>>,
    device: String,
}

thread_local! {
    /// Whom this thread works for, if it is a device thread. Several: cubecl has one thread for each CUDA device,
    /// however often that is opened.
    static OWNERS: RefCell<Vec<Owner>> = const { RefCell::new(Vec::new()) };
}

impl Fault {
    /// Keeps `error` unless there is one already: the first is the cause, the rest are its consequences.
    pub(crate) fn set(&self, error: GpuError) {
        let mut slot = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if slot.is_none() {
            *slot = Some(error);
        }
    }

    pub(crate) fn get(&self) -> Option<GpuError> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Marks the current thread as the one that feeds `device`. Panics on it become errors of the device.
    pub(crate) fn claim_thread(&self, device: String) {
        install_hook();
        let slot = Arc::downgrade(&self.0);
        OWNERS.with_borrow_mut(|owners| {
            owners.retain(|o| o.slot.strong_count() > 0);
            owners.push(Owner { slot, device });
        });
    }
}

/// On a device thread: makes `error` of the device's name the error of all who opened it. Elsewhere: `false`.
pub(crate) fn report(error: impl Fn(String) -> GpuError) -> bool {
    let told = OWNERS.try_with(|owners| {
        let Ok(owners) = owners.try_borrow() else { return false };
        for owner in owners.iter() {
            if let Some(slot) = owner.slot.upgrade() {
                Fault(slot).set(error(owner.device.clone()));
            }
        }
        !owners.is_empty()
    });
    told.unwrap_or(false)
}

fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let why = one_line(&panic_text(info));
            let ours = report(|device| GpuError::DeviceThread {
                device,
                why: why.clone(),
            });
            // A device panic is reported as an error by the next read or sync; its text need not be printed twice.
            if !ours || std::env::var_os("RUST_BACKTRACE").is_some() {
                previous(info);
            }
        }));
    });
}

fn panic_text(info: &std::panic::PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".into())
}

/// The telling part of a server error: its text without cubecl's backtraces.
pub(crate) fn first_sentence(error: &cubecl_runtime::server::ServerError) -> String {
    use cubecl_runtime::server::ServerError;
    match error {
        ServerError::ServerUnhealthy { errors, .. } if !errors.is_empty() => first_sentence(&errors[0]),
        ServerError::Generic { reason, .. } => one_line(reason),
        other => one_line(&other.to_string()),
    }
}

fn one_line(text: &str) -> String {
    let head = text.split("\nBacktrace").next().unwrap_or(text);
    let flat = head.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(400) {
        Some((cut, _)) => format!("{}…", &flat[..cut]),
        None => flat,
    }
}
