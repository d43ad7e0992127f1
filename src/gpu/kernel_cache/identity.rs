//! Everything that determines what a kernel compiles to.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use crate::files;

/// What determines compiled code, by name.
#[derive(Clone, Debug, Default)]
pub(in crate::gpu) struct Identity(Vec<(String, String)>);

impl Identity {
    /// The program itself: all sources of kernels, and what makes CUDA C++ of them, are inside.
    pub fn of_program() -> files::Result<Identity> {
        // On Linux the file may have been replaced since the start, but this is the one that runs.
        let path = if cfg!(target_os = "linux") {
            PathBuf::from("/proc/self/exe")
        } else {
            std::env::current_exe().unwrap_or_default()
        };
        Identity::default().with_content("program", &path)
    }

    /// With one thing more.
    pub fn with(mut self, name: &str, value: impl ToString) -> Identity {
        self.0.push((name.into(), value.to_string()));
        self
    }

    /// With the content of a file.
    pub fn with_content(self, name: &str, path: &Path) -> files::Result<Identity> {
        let file = files::hash(path)?;
        Ok(self.with(name, format!("{} bytes {:016x}", file.bytes, file.xxh3)))
    }

    /// A name for all of it that serves as the name of a folder.
    pub fn key(&self) -> String {
        // Lengths in front: no two lists run together to the same text.
        let part = |text: &str| format!("{} {text}\n", text.len());
        let parts = self.0.iter().map(|(name, value)| part(name) + &part(value));
        format!("{:032x}", xxh3_128(parts.collect::<String>().as_bytes()))
    }
}
