//! The sticky error of a device, and the panic hook that feeds it.
//!
//! cubecl runs each device on a thread of its own and catches panics there: the launch is dropped, and reads go on to
//! return stale bytes with `Ok`. So we mark that thread when a device is opened, and a process-wide hook (chained to
//! the previous one) turns a panic on a marked thread into the error of its device. A program that replaces the panic
//! hook after opening a device must chain to it too.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, Once, Weak};

use super::{GpuError, cuda_codes};

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
            *slot = Some(explained(error));
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

/// A failure of the device as a sentence that says what to do, where its text tells what it was: cubecl hands on the
/// driver's codes, the compiler's log and its own panics.
pub(super) fn explained(error: GpuError) -> GpuError {
    let (GpuError::Launch { device, why } | GpuError::DeviceThread { device, why }) = &error else {
        return error;
    };
    let (why, fix) = if let Some(code) = cuda_codes::named_in(why) {
        (format!("{} ({})", code.what, code.name), code.fix.to_owned())
    } else if let Some(known) = KNOWN.iter().find(|k| k.0.iter().any(|mark| why.contains(mark))) {
        let what = match known.0 {
            COMPILATION => format!("{}: {}", known.1, compiler_error(why)),
            ALLOCATION => format!("{} ({why})", known.1),
            _ => known.1.to_owned(),
        };
        (cut(&what), known.2.to_owned())
    } else {
        return error;
    };
    let device = device.clone();
    GpuError::Failed { device, why, fix }
}

/// Marks in the texts of cubecl and wgpu, what they mean, and what to do.
type Known = (&'static [&'static str], &'static str, &'static str);

const COMPILATION: &[&str] = &["[Compilation Error]"];
const ALLOCATION: &[&str] = &["can't allocate buffer", "could not be allocated"];

const KNOWN: [Known; 6] = [
    (
        COMPILATION,
        "a kernel does not compile",
        "use NVRTC and CUDA headers of one version, 13.0 if possible; if they are, please report it",
    ),
    (
        &["device is lost", "Device lost", "device lost"],
        "the device was lost, by a reset, a crash of the driver or a kernel that ran for too long",
        "run again, with --resume if a checkpoint was saved; if it returns, update the driver or use a smaller \
         micro-batch",
    ),
    (
        &[
            "Failed to write to chunk",
            "Failed to open write chunk",
            "StorageFull",
            "No space left",
        ],
        "the disk with the kernel cache is full",
        "free some space, set ACRLPD_CACHE_DIR to another disk, or use --no-kernel-cache",
    ),
    (
        &["Missing symbol"],
        "libcuda or libnvrtc lacks a function of CUDA 13.0",
        "update the NVIDIA driver and the CUDA toolkit",
    ),
    // Last: an allocation can also fail for one of the reasons above.
    (ALLOCATION, "the device has no memory left", cuda_codes::SMALLER),
    (
        &["Out of Memory", "Not enough memory left"],
        "the device has no memory left",
        cuda_codes::SMALLER,
    ),
];

/// The first error in a compiler's log.
fn compiler_error(log: &str) -> &str {
    let log = log.split("[Source]").next().unwrap_or(log);
    let log = log.rsplit("[Compilation Error]").next().unwrap_or(log);
    log.find("error:").map_or(log, |at| &log[at..]).trim()
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
            let ours = ours || guard(&why);
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

/// Runs what may panic on a thread that nobody has marked yet, such as the opening of a device: instead of being
/// printed, the first panic of any thread becomes the error.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    install_hook();
    *GUARD.lock().unwrap_or_else(|e| e.into_inner()) = Some(None);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    let seen = GUARD.lock().unwrap_or_else(|e| e.into_inner()).take().flatten();
    done.map_err(|_| seen.unwrap_or_else(|| "unknown panic".into()))
}

/// `Some` while [`guarded`] runs: the first panic.
static GUARD: Mutex<Option<Option<String>>> = Mutex::new(None);

/// Takes a panic for [`guarded`], if that runs.
fn guard(why: &str) -> bool {
    let mut guard = GUARD.lock().unwrap_or_else(|e| e.into_inner());
    guard.as_mut().is_some_and(|first| {
        first.get_or_insert_with(|| why.to_owned());
        true
    })
}

/// The telling part of a server error: its text without cubecl's backtraces.
pub(crate) fn first_sentence(error: &cubecl_runtime::server::ServerError) -> String {
    use cubecl_runtime::server::ServerError;
    match error {
        ServerError::ServerUnhealthy { errors, .. } if !errors.is_empty() => first_sentence(&errors[0]),
        ServerError::Generic { reason, .. } => one_line(reason),
        other => {
            let text = one_line(&other.to_string());
            hidden(other).map_or(text.clone(), |more| cut(&format!("{text}: {}", one_line(more))))
        }
    }
}

/// What the text of an error leaves out: the driver's own words.
fn hidden(error: &cubecl_runtime::server::ServerError) -> Option<&str> {
    use cubecl_runtime::server::{IoError, LaunchError, ServerError};
    match error {
        ServerError::Io(IoError::Unknown { description, .. })
        | ServerError::Launch(LaunchError::IoError(IoError::Unknown { description, .. })) => Some(description),
        _ => None,
    }
}

fn one_line(text: &str) -> String {
    let head = text.split("\nBacktrace").next().unwrap_or(text);
    cut(&head.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device says after its thread has panicked with `why`.
    fn sentence(why: &str) -> String {
        let fault = Fault::default();
        fault.set(GpuError::DeviceThread {
            device: "H100".into(),
            why: one_line(why),
        });
        let text = fault.get().expect("an error").to_string();
        assert!(
            !text.contains('\n') && text.len() < 700 && text.starts_with("H100 failed: "),
            "{text}"
        );
        text
    }

    #[test]
    fn panics_of_the_device_thread_become_sentences() {
        let unwrap = |inner: &str| format!("called `Result::unwrap()` on an `Err` value: {inner}");
        for (why, what, fix) in [
            (
                unwrap("can't allocate buffer of size: 1099511627776\n   0: std::backtrace"),
                "can't allocate buffer of size: 1099511627776",
                "smaller micro-batch",
            ),
            (
                "can't allocate buffer of size: 42\nBacktrace: x".into(),
                "no memory left (can't allocate buffer of size: 42)",
                "--memory-fraction",
            ),
            (
                unwrap("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
                "no memory left (CUDA_ERROR_OUT_OF_MEMORY)",
                "memory.preset",
            ),
            (
                unwrap("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")"),
                "memory that is not its own (CUDA_ERROR_ILLEGAL_ADDRESS)",
                "report",
            ),
            (
                unwrap("DriverError(CUDA_ERROR_ECC_UNCORRECTABLE, \"uncorrectable\")"),
                "memory had an error (CUDA_ERROR_ECC_UNCORRECTABLE)",
                "--resume",
            ),
            (
                "Unable to load the PTX: DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"the provided PTX\")".into(),
                "older than the NVRTC",
                "update the NVIDIA driver",
            ),
            (
                "[Compilation Error]\n    default_program(7): error: identifier \"wgmma\" is undefined\n[Source]\n#include".into(),
                "does not compile: error: identifier \"wgmma\" is undefined;",
                "one version",
            ),
            ("Validation Error: Parent device is lost".into(), "the device was lost", "update the driver"),
            ("Out of Memory: Not enough memory left.".into(), "no memory left", "smaller micro-batch"),
            (
                format!("Failed to write to chunk: {:?}", std::io::Error::from(std::io::ErrorKind::StorageFull)),
                "kernel cache is full",
                "--no-kernel-cache",
            ),
            (
                "Missing symbol cuStreamCreate: dlsym failed".into(),
                "lacks a function",
                "update the NVIDIA driver",
            ),
        ] {
            let text = sentence(&why);
            assert!(text.contains(what) && text.contains(fix), "{why}\n{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_told_as_it_is() {
        let fault = Fault::default();
        let error = GpuError::DeviceThread {
            device: "H100".into(),
            why: "index out of bounds".into(),
        };
        fault.set(error.clone());
        assert_eq!(fault.get(), Some(error));
    }

    #[test]
    fn an_error_of_the_driver_is_found_behind_a_text_that_hides_it() {
        use cubecl_common::backtrace::BackTrace;
        use cubecl_runtime::server::{IoError, LaunchError, ServerError};
        let hidden = ServerError::Launch(LaunchError::IoError(IoError::Unknown {
            description: "CUDA allocation error: DriverError(CUDA_ERROR_ECC_UNCORRECTABLE, \"x\")".into(),
            backtrace: BackTrace::capture(),
        }));
        assert!(!hidden.to_string().contains("ECC"), "{hidden}");
        assert!(first_sentence(&hidden).contains("CUDA_ERROR_ECC_UNCORRECTABLE"));
    }

    #[test]
    fn panics_while_opening_are_caught_on_any_thread() {
        let done = guarded(|| {
            let inner = std::thread::spawn(|| panic!("cuInit is missing\nBacktrace: x"));
            inner.join().expect("the thread is well");
        });
        assert_eq!(done, Err("cuInit is missing".into()));
        assert_eq!(guarded(|| 7), Ok(7));
    }
}
