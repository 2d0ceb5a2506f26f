//! A client on the network that connects to servers, to test what their firewalls really block.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::support::{Host, Rig, eventually};

/// A process that connects to servers from an address of its own.
pub(crate) struct Attacker {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Attacker {
    pub(crate) fn from(rig: &Rig, address: &str) -> Self {
        rig.attacker(address);
        let mut command = rig.lan("python3", &["-u", "-c", include_str!("attacker.py"), address]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, commands, answers }
    }

    /// Runs a command: `connect HOST PORT`, `open HOST PORT` or `echo`. Returns the result.
    pub(crate) fn send(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server that echoes each line.
pub(crate) fn listen(host: Host<'_>, port: u16) {
    let echo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/echo.py");
    host.push(&echo, "/root/echo.py");
    host.sh(&format!("systemd-run -q python3 /root/echo.py {port}"));
    eventually("the server listens", || {
        host.try_sh(&format!("ss -Hltn | grep -q :{port}")).is_ok()
    });
}
