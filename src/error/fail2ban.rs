//! The errors of a command to fail2ban.

use std::io;
use std::path::PathBuf;

use crate::model::Jail;

/// Why a command to fail2ban failed.
#[derive(Debug, thiserror::Error)]
pub enum Fail2banError {
    /// The connection could not be made, or broke.
    #[error("fail2ban does not answer at {path}: {source}", path = path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// fail2ban did not answer in time.
    #[error("fail2ban took more than {seconds} s to answer «{command}»")]
    Timeout {
        /// The command, shortened.
        command: String,
        /// The time-out, in seconds.
        seconds: u64,
    },
    /// fail2ban answered with an error.
    #[error("fail2ban rejected «{command}»: {why}")]
    Rejected {
        /// The jail, if the command is for one.
        jail: Option<Jail>,
        /// The command, shortened.
        command: String,
        /// fail2ban's message.
        why: String,
    },
    /// The answer has an unexpected type.
    #[error("cannot read fail2ban's answer to «{command}»: {why}")]
    Unreadable {
        /// The jail, if the command is for one.
        jail: Option<Jail>,
        /// The command, shortened.
        command: String,
        /// What is wrong with the answer.
        why: String,
    },
}

impl Fail2banError {
    /// The jail that the error is limited to: the connection still works for other jails.
    #[must_use]
    pub fn jail(&self) -> Option<&Jail> {
        match self {
            Self::Rejected { jail, .. } | Self::Unreadable { jail, .. } => jail.as_ref(),
            Self::Unreachable { .. } | Self::Timeout { .. } => None,
        }
    }
}
