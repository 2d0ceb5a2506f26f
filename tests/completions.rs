//! The package's completions, in the shells that they are for: somebody types, and presses the tab key.

mod support;

use clap::CommandFactory as _;
use f2bmqtt::cli::Cli;
use support::terminal::Terminal;
use support::{Rig, eventually, fleet_root};

/// Each shell as it comes with Debian, with nobody's own settings; zsh's completion has to be asked for.
const SHELLS: [(&str, &str); 3] = [
    ("bash", "bash --rcfile /usr/share/bash-completion/bash_completion"),
    ("zsh", "printf \"autoload -U compinit; compinit -u\\n\" >/root/.zshrc; zsh"),
    ("fish", "fish"),
];

/// What is offered behind `f2bmqtt`, behind `f2bmqtt ban --`, and where a jail is to be named.
fn offered() -> [(&'static str, Vec<String>); 3] {
    let tree = Cli::command();
    let shown = tree.get_subcommands().filter(|command| !command.is_hide_set());
    let commands = shown.map(|command| command.get_name().to_owned()).collect();
    let ban = tree.find_subcommand("ban").unwrap().get_arguments();
    let options = ban.filter_map(|option| Some(format!("--{}", option.get_long()?))).collect();
    let jails = ["both", "sshd", "web"].map(str::to_owned).to_vec();
    [("f2bmqtt ", commands), ("f2bmqtt ban --", options), ("f2bmqtt unban --jail ", jails)]
}

#[test]
fn each_shell_completes_commands_and_options() {
    let root = fleet_root("bookworm", &["zsh", "fish", "bash-completion"]);
    let rig = Rig::up(&root, &["web1"]);
    eventually("fail2ban has its jails", || {
        let jails = rig.host("web1").try_sh("f2bmqtt names jails");
        jails.is_ok_and(|jails| jails == "both\nsshd\nweb")
    });
    for (typed, words) in &offered() {
        assert!(words.len() > 1, "{words:?}");
        for (shell, command) in SHELLS {
            let terminal =
                Terminal::open(rig.host("web1"), &format!("PS1=ready.; export PS1; {command}"));
            terminal.shows(&format!("{shell} takes a line"), |screen| {
                screen.trim_end().ends_with(['#', '.', '$', '>', '%'])
            });
            terminal.types(&[typed, "Tab", "Tab"]);
            let what = format!("{shell} offers {words:?} behind {typed}");
            terminal.shows(&what, |screen| {
                let offered: Vec<_> = screen.split_whitespace().collect();
                words.iter().all(|word| offered.contains(&word.as_str()))
            });
        }
    }
}
