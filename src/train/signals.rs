//! Ctrl-C and `kill`: the step that runs is finished and saved. A second one ends the program at once. SIGUSR1, which
//! job schedulers send ahead of the end, saves too, and counts as a good end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[cfg(unix)]
use signal_hook::consts::SIGUSR1;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Remembers which signal came.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// Listens to SIGINT, SIGTERM and SIGUSR1 from now on.
    ///
    /// # Errors
    /// A system that refuses handlers.
    pub fn listen() -> std::io::Result<Stop> {
        let stop = Stop::default();
        for signal in [SIGINT, SIGTERM] {
            let again = Arc::new(AtomicBool::new(false));
            // The order matters: the shutdown sees the flag of the signal before.
            flag::register_conditional_shutdown(signal, 128 + signal, again.clone())?;
            flag::register(signal, again)?;
            flag::register_usize(signal, stop.0.clone(), signal as usize)?;
        }
        #[cfg(unix)]
        flag::register_usize(SIGUSR1, stop.0.clone(), SIGUSR1 as usize)?;
        Ok(stop)
    }

    /// The signal that came, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}

/// The exit code of a run that `signal`, if any, has ended: 128 + its number as shells have it, 0 after SIGUSR1.
pub fn exit_code(signal: Option<i32>) -> u8 {
    match signal {
        #[cfg(unix)]
        Some(SIGUSR1) => 0,
        Some(signal) => 128 + signal as u8,
        None => 0,
    }
}
