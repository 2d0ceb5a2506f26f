//! The process that an action leaves behind, to do what nobody is to wait for.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// Starts this program with a command, in a process group of its own, with `input` on its standard
/// input or none. Nothing is passed by arguments or environment: others could read it there.
///
/// # Errors
/// Whatever the system says.
pub fn leave(command: &str, input: Option<String>) -> io::Result<()> {
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
