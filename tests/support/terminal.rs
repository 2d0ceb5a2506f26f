//! A terminal of this machine, in which a command runs on a host, and somebody types and looks.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{CONDITION_LIMIT, Host, becomes};

/// What frames and bars of a screen are drawn with.
const DRAWING_CHARACTERS: &str = "│┌█";

pub(crate) struct Terminal(String);

impl Terminal {
    /// 80 by 24, as terminals are, without colours. When the command is over, it says so, and how the terminal is
    /// left.
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

    /// Types words, or keys by their names.
    pub(crate) fn type_keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    pub(crate) fn resize(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height]);
    }

    /// Waits until the screen is so; answers it.
    pub(crate) fn wait_for(&self, what: &str, so: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        let seen = becomes(CONDITION_LIMIT, || {
            screen = self.tmux(&["capture-pane", "-p"]);
            so(&screen)
        });
        assert!(seen, "{what}:\n{screen}");
        screen
    }

    /// Waits until the command is over: the screen is as it was before, and takes lines again. Answers it.
    pub(crate) fn assert_restored(&self) -> String {
        self.wait_for("it is over, and the terminal as before", |screen| {
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
