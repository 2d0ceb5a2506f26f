//! A terminal on this machine, in which a command runs on a host. Tests type keys and read the screen.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{CONDITION_LIMIT, Host, becomes};

/// Characters of frames and bars.
const DRAWING_CHARACTERS: &str = "│┌█";

pub(crate) struct Terminal(String);

impl Terminal {
    /// Opens a terminal of 80 by 24 without colours. After the command has ended, it shows the terminal's settings.
    pub(crate) fn open(host: Host<'_>, command: &str) -> Self {
        Self::open_in_colour(host, &format!("export NO_COLOR=1; {command}"))
    }

    pub(crate) fn open_in_colour(host: Host<'_>, command: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let terminal = Self(format!("f2bmqtt-{}-{number}", std::process::id()));
        let inside = format!("export TERM=screen; {command}; echo over; stty -a; sleep 600");
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", &host.by_hand(&inside)]);
        terminal
    }

    pub(crate) fn tmux(&self, arguments: &[&str]) -> String {
        let out = Command::new("tmux").args(["-L", &self.0]).args(arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Types texts, or keys by their names.
    pub(crate) fn type_keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    pub(crate) fn resize(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height]);
    }

    /// Waits until the screen matches. Returns the screen.
    pub(crate) fn wait_for(&self, what: &str, so: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        let seen = becomes(CONDITION_LIMIT, || {
            screen = self.tmux(&["capture-pane", "-p"]);
            so(&screen)
        });
        assert!(seen, "{what}:\n{screen}");
        screen
    }

    /// Waits until the command has ended, with the screen and the line mode restored. Returns the screen.
    pub(crate) fn assert_restored(&self) -> String {
        self.wait_for("the command has ended and restored the terminal", |screen| {
            screen.contains("over")
                && screen.contains(" icanon")
                && screen.contains(" echo ")
                && !screen.contains(|c| DRAWING_CHARACTERS.contains(c))
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.0, "kill-server"]).output();
    }
}
