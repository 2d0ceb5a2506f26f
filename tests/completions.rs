//! The package's completions in real shells: the tests type a command line and press the tab key.

mod support;

use clap::CommandFactory as _;
use f2bmqtt::cli::Cli;
use support::terminal::Terminal;
use support::{Rig, eventually, fleet_root};

/// Each shell with Debian's default settings. zsh needs a command to enable completion.
const SHELLS: [(&str, &str); 3] = [
    ("bash", "bash --rcfile /usr/share/bash-completion/bash_completion"),
    ("zsh", "printf \"autoload -U compinit; compinit -u\\n\" >/root/.zshrc; zsh"),
    ("fish", "fish"),
];

/// Command lines, and the completions that the shells must offer.
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
    for (typed, offers) in &offered() {
        assert!(offers.len() > 1, "{offers:?}");
        for (shell, command) in SHELLS {
            let terminal =
                Terminal::open(rig.host("web1"), &format!("PS1=ready.; export PS1; {command}"));
            terminal.wait_for(&format!("{shell} takes a line"), |screen| {
                screen.trim_end().ends_with(['#', '.', '$', '>', '%'])
            });
            terminal.type_keys(&[typed, "Tab", "Tab"]);
            let what = format!("{shell} offers {offers:?} behind {typed}");
            terminal.wait_for(&what, |screen| {
                let offered: Vec<_> = screen.split_whitespace().collect();
                offers.iter().all(|offer| offered.contains(&offer.as_str()))
            });
        }
    }
}
