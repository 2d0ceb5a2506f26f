//! The manual pages and the shell completions are generated from the command line and the settings.
//! `BLESS=1 cargo test --locked --test man` writes them.

#[path = "support/docs.rs"]
mod docs;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use f2bmqtt::cli::Cli;

const SAMPLE: &str = include_str!("../etc/mqtt.env");

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("debian").join(name)
}

/// Compares a generated text with the file below `debian/`, or writes the file.
fn assert_matches_file(name: &str, generated: &str) {
    let path = path(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, generated).unwrap();
    }
    let current = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        current == generated,
        "debian/{name} is outdated: run BLESS=1 cargo test --locked --test man"
    );
}

/// The commands for people and for fail2ban, without those that only the program itself calls.
fn visible_commands(command: &Command) -> Vec<Command> {
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set());
    commands.filter(|command| command.get_name() != "help").cloned().collect()
}

/// A part of a page, without its heading.
fn section(render: impl Fn(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut part = Vec::new();
    render(&mut part).unwrap();
    let part = String::from_utf8(part).unwrap();
    let lines = part.lines().filter(|line| !line.starts_with(".SH") && !line.starts_with(".ie"));
    lines.filter(|line| !line.starts_with(".el")).flat_map(|line| [line, "\n"]).collect()
}

/// Escapes text for roff.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\*(Aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

/// The page of all commands, with a section for each.
fn commands() -> String {
    let mut tree = Cli::command().disable_help_subcommand(true);
    tree.build();
    let man = Man::new(tree.clone()).section("8").manual("f2bmqtt");
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    let mut page = String::from_utf8(page).unwrap();
    page.push_str(".SH COMMANDS\n");
    for command in visible_commands(&tree) {
        let usage = command.clone().render_usage().to_string();
        let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
        page.extend([".SS ", &roff(usage), "\n"]);
        let man = Man::new(command.clone());
        page.push_str(&section(|part| man.render_description_section(part)));
        page.push_str(&section(|part| man.render_options_section(part)));
        if command.get_after_help().or(command.get_after_long_help()).is_some() {
            page.push_str(".PP\n.na\n");
            page.push_str(&section(|part| man.render_extra_section(part)));
            page.push_str(".ad\n");
        }
    }
    page.push_str(".SH NOTES\n.na\n");
    page.push_str(&section(|part| man.render_extra_section(part)));
    page.push_str(
        ".ad\n.SH SEE ALSO\n.BR mqtt.env (5),\n.BR fail2ban\\-client (1),\n\
              .I /usr/share/doc/f2bmqtt/README.md\n",
    );
    ascii(&page)
}

/// Replaces characters beyond ASCII by their code points: not each roff reads UTF-8.
fn ascii(page: &str) -> String {
    let mut text = String::new();
    for c in page.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            write!(text, "\\[u{:04X}]", u32::from(c)).unwrap();
        }
    }
    text
}

/// The section of the docs on the settings.
fn settings_section() -> String {
    docs::section("docs/configuration.md", "Settings")
}

/// The rows of the table of settings: keys, default, meaning.
fn settings() -> Vec<[String; 3]> {
    let section = settings_section();
    section.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

/// The cells of a table row, without links.
fn cells(row: &str) -> [String; 3] {
    let row = row.trim_matches(['|', ' ']).replace("\\|", "|");
    let cells: Vec<_> = row.splitn(3, " |").map(|cell| without_links(cell.trim())).collect();
    cells.try_into().unwrap()
}

/// Makes code spans of Markdown bold.
fn bold(markdown: &str) -> String {
    let parts = markdown.split('`').enumerate().map(|(number, part)| match number % 2 {
        0 => roff(part),
        _ => format!("\\fB{}\\fR", roff(part)),
    });
    parts.collect()
}

/// The page of the settings: the text of the docs, and the shipped file.
fn settings_page() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n.TH mqtt.env 5 \"f2bmqtt {version}\" f2bmqtt\n\
         .SH NAME\nmqtt.env \\- the settings of f2bmqtt\n.SH SYNOPSIS\n\\fI/etc/fail2ban/mqtt.env\\fR\n\
         .SH DESCRIPTION\n"
    );
    let section = settings_section();
    let (text, _) = section.split_once("\n\n|").unwrap();
    for line in text.lines() {
        page.push_str(&bold(&without_links(line)));
        page.push('\n');
    }
    page.push_str(".SH SETTINGS\n");
    for [keys, default, meaning] in settings() {
        page.extend([".TP\n", &bold(&keys), "\n", &bold(&meaning), "\n"]);
        if !default.is_empty() {
            page.extend([".br\nDefault: ", &bold(&default), "\n"]);
        }
    }
    page.push_str(".SH EXAMPLE\nThe shipped file:\n.PP\n.nf\n");
    for line in SAMPLE.lines() {
        page.push_str(&roff(line));
        page.push('\n');
    }
    page.push_str(
        ".fi\n.SH SEE ALSO\n.BR f2bmqtt (8),\n.I /usr/share/doc/f2bmqtt/docs/configuration.md\n",
    );
    ascii(&page)
}

/// A shell's completion of the visible commands.
fn completion(shell: Shell) -> String {
    let tree = Cli::command();
    let mut visible_commands = Command::new("f2bmqtt")
        .version(env!("CARGO_PKG_VERSION"))
        .args(tree.get_arguments().cloned())
        .subcommands(visible_commands(&tree));
    let mut text = Vec::new();
    generate(shell, &mut visible_commands, "f2bmqtt", &mut text);
    let text = String::from_utf8(text).unwrap();
    let text: String = text.lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
    with_names(shell, text)
}

/// What the arguments of commands name. clap's generators only offer files.
const NAMES: [(&str, &str); 4] =
    [("ban", "jails"), ("unban", "addresses"), ("list", "addresses"), ("forget", "hosts")];

/// The shell command that prints the known jails, addresses or hosts.
fn names(of: &str) -> String {
    format!("$(f2bmqtt names {of} 2>/dev/null)")
}

/// A line of fish that offers names for a command's argument or option.
fn fish_line(command: &str, option: &str, of: &str) -> String {
    format!(
        "complete -c f2bmqtt -n \"__fish_f2bmqtt_using_subcommand {command}\" {option} -a \"(f2bmqtt names {of} 2>/dev/null)\"\n"
    )
}

/// Adds the names that `f2bmqtt names` prints.
fn with_names(shell: Shell, mut text: String) -> String {
    match shell {
        Shell::Bash => {
            for (command, of) in NAMES {
                let head = format!("        f2bmqtt__subcmd__{command})\n            opts=\"");
                assert!(text.contains(&head), "{head}");
                text = text.replace(&head, &format!("{head}{} ", names(of)));
            }
            for (option, of) in [("--jail", "jails"), ("--host", "hosts")] {
                let files = format!(
                    "                {option})\n                    COMPREPLY=($(compgen -f \"${{cur}}\"))"
                );
                assert!(text.contains(&files), "{files}");
                let offered = format!("compgen -W \"{}\" -- \"${{cur}}\"", names(of));
                text = text.replace(&files, &files.replace("compgen -f \"${cur}\"", &offered));
            }
        }
        Shell::Zsh => {
            let default = "_default'";
            let of = [
                ("]:JAIL:", "jails"),
                ("]:HOST:", "hosts"),
                ("jail -- The jail:", "jails"),
                ("Addresses, IPv4 or IPv6:", "addresses"),
                ("An address, or a network:", "addresses"),
                ("Names of hosts in the fleet:", "hosts"),
            ];
            for (before, of) in of {
                let plain = format!("{before}{default}");
                assert!(text.contains(&plain), "{plain}");
                text = text.replace(&plain, &format!("{before}{{compadd -- {}}}'", names(of)));
            }
        }
        _ => {
            for (command, of) in NAMES {
                text.push_str(&fish_line(command, "-f", of));
            }
            for (command, option, of) in [
                ("list", "-l jail -x", "jails"),
                ("list", "-l host -x", "hosts"),
                ("unban", "-l jail -x", "jails"),
            ] {
                text.push_str(&fish_line(command, option, of));
            }
        }
    }
    text
}

#[test]
fn man_pages_match_command_line_and_settings() {
    assert_matches_file("f2bmqtt.8", &commands());
    assert_matches_file("mqtt.env.5", &settings_page());
}

/// Replaces links by their texts: a manual page has no links.
fn without_links(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, link)) = rest.split_once('[') {
        let parts = link
            .split_once("](")
            .and_then(|(visible_commands, url)| Some((visible_commands, url.split_once(')')?.1)));
        let (visible_commands, after) = parts.unwrap_or(("[", link));
        text.extend([before, visible_commands]);
        rest = after;
    }
    text + rest
}

/// groff's warnings about a page at 80 columns, and the lines of the page.
fn render_page(name: &str) -> (String, Vec<String>) {
    let mut groff = Process::new("groff");
    let out = groff
        .args(["-ww", "-mandoc", "-Tutf8", "-P-cbou", "-rLL=80n"])
        .arg(path(name))
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    (String::from_utf8(out.stderr).unwrap(), text.lines().map(str::to_owned).collect())
}

#[test]
fn man_pages_fit_80_columns() {
    for name in ["f2bmqtt.8", "mqtt.env.5", "f2bmqttsub.8"] {
        // f2bmqttsub.8 only includes the first page, by a path that only man(1) resolves.
        let (warnings, lines) =
            render_page(if name == "f2bmqttsub.8" { "f2bmqtt.8" } else { name });
        assert_eq!(warnings, "", "{name}");
        for line in &lines {
            assert!(line.chars().count() <= 80 && !line.contains("]("), "{name}: {line}");
        }
    }
    // A row of a table stays on one line.
    let (_, lines) = render_page("f2bmqtt.8");
    for row in [
        "peers                     how many other hosts the daemon knows",
        "published            this host",
    ] {
        assert!(lines.iter().any(|line| line.contains(row)), "{row}");
    }
}

#[test]
fn help_is_wrapped_to_80_columns() {
    let mut commands = vec![Cli::command()];
    commands.extend(Cli::command().get_subcommands().cloned());
    for command in commands {
        let name = command.get_name().to_owned();
        let help = command.clone().term_width(80).render_long_help().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{name}: {line}");
        }
        // Lines with columns are not wrapped.
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in after.lines().filter(|line| line.starts_with(' ')) {
            assert!(line.chars().count() <= 72, "{name}: {line}");
        }
    }
}

#[test]
fn completions_match_command_line() {
    assert_matches_file("completions/f2bmqtt.bash", &completion(Shell::Bash));
    assert_matches_file("completions/_f2bmqtt", &completion(Shell::Zsh));
    assert_matches_file("completions/f2bmqtt.fish", &completion(Shell::Fish));
}

#[test]
fn check_help_lists_each_check() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/operator/check/rules");
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let code: String = files
        .filter(|path| path.is_file())
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let made = ["ok(", "warning(", "fault("];
    let calls = made.iter().flat_map(|how| {
        let how = format!("Finding::{how}");
        code.split(&how).skip(1).map(str::to_owned).collect::<Vec<_>>()
    });
    let ids = calls.filter_map(|call| {
        let (id, _) = call.trim_start().strip_prefix('"')?.split_once('"')?;
        Some(id.to_owned())
    });
    let help =
        Cli::command().find_subcommand("check").unwrap().get_after_help().unwrap().to_string();
    let (_, named) = help.split_once("Checks: ").unwrap();
    let named: BTreeSet<_> = named.split([' ', ';']).filter(|id| !id.is_empty()).collect();
    let ids: BTreeSet<_> = ids.collect();
    assert_eq!(ids.iter().map(String::as_str).collect::<BTreeSet<_>>(), named);
}

#[test]
fn bash_completes_commands_jails_hosts_and_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f2bmqtt");
    std::fs::write(&file, completion(Shell::Bash)).unwrap();
    let table = [
        ("che", "check"),
        ("ban we", "web"),
        ("list --jail ss", "sshd"),
        ("list --host d", "db1"),
        ("unban 203", "203.0.113.9"),
        ("forget we", "web2"),
    ];
    for (typed, completed) in table {
        // `f2bmqtt names` asks the host for its names.
        let script = format!(
            "f2bmqtt() {{ case $2 in jails) echo sshd web ;; hosts) echo db1 web2 ;; *) echo 203.0.113.9 ;; esac; }}
             source {}; COMP_WORDS=(f2bmqtt {typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
             _f2bmqtt f2bmqtt \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"
             echo \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        let out = Process::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), completed, "f2bmqtt {typed}");
    }
}

#[test]
fn sample_and_settings_table_list_same_settings() {
    let table: String = settings().into_iter().map(|[keys, ..]| keys).collect();
    let lines = SAMPLE.lines().filter(|line| line.trim_start_matches('#').starts_with("MQTT_"));
    let sample: String = lines.flat_map(|line| [line, "\n"]).collect();
    let (table, sample) = (setting_names(&table, '`'), setting_names(&sample, '='));
    assert_eq!(table, sample, "docs/configuration.md (left) and etc/mqtt.env (right) differ");
}

/// The names of settings in a text, each followed by `end`.
fn setting_names(text: &str, end: char) -> BTreeSet<&str> {
    text.split("MQTT_").skip(1).map(|rest| rest.split(end).next().unwrap()).collect()
}
