//! Starts detached processes, so that a fail2ban action can return before its work is done.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// Starts this program with a command in a new process group, with `input` on its standard input. Arguments and
/// environment never contain data, because other users could read them in /proc.
///
/// # Errors
/// The program cannot be started, or its input cannot be written.
pub fn spawn_detached(command: &str, input: Option<String>) -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg0("f2bmqtt")
        .arg(command)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(input.as_bytes())?;
    }
    Ok(())
}
