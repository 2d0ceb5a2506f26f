//! The errors of a settings file.

use std::fmt;
use std::path::PathBuf;

/// All errors in a settings file.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    pub(crate) path: PathBuf,
    /// Line number (0 if the error belongs to no line) and message, in the file's order.
    pub(crate) faults: Vec<(usize, String)>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings in {} cannot be used:", self.path.display())?;
        for (line, what) in &self.faults {
            match line {
                0 => write!(f, "\n  {what}")?,
                _ => write!(f, "\n  line {line}: {what}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl ConfigErrors {
    /// Line number (0 if the error belongs to no line) and message of each error, in the file's order.
    #[must_use]
    pub fn list(&self) -> &[(usize, String)] {
        &self.faults
    }
}
