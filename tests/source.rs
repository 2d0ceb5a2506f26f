//! Checks over the whole source: each type name is unique, and the comments cite the rules of docs/architecture.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The name of the type that a line of code defines. The indented `type` of an `impl` block defines none.
fn defined_type(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let code = code.strip_prefix("pub").map_or(code, |rest| {
        let rest = rest.strip_prefix('(').map_or(rest, |rest| rest.split_once(')').unwrap().1);
        rest.trim_start()
    });
    let (keyword, rest) = code.split_once(' ')?;
    let defines = match keyword {
        "struct" | "enum" | "trait" => true,
        "type" => !line.starts_with(' '),
        _ => false,
    };
    let name = rest.split(|c: char| !c.is_alphanumeric()).next()?;
    (defines && name.starts_with(char::is_uppercase)).then_some(name)
}

/// The ids of rules in a text, such as `R7`.
fn rule_ids(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| {
            let digits = word.strip_prefix('R').unwrap_or_default();
            (1..=2).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_digit())
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn type_names_are_unique() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in rust_files(&repository().join("src")) {
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            if let Some(name) = defined_type(line) {
                places.entry(name.to_owned()).or_default().push(path.display().to_string());
            }
        }
    }
    assert!(places.len() > 100, "{}", places.len());
    places.retain(|_, places| places.len() > 1);
    assert!(places.is_empty(), "{places:#?}");
}

#[test]
fn type_is_found_only_in_its_definition() {
    let table = [
        ("pub(super) struct Entry {", Some("Entry")),
        ("    enum Case<'a> {", Some("Case")),
        ("pub type Name = String;", Some("Name")),
        ("    type Value = StrictObject;", None),
        ("// struct Entry {", None),
        ("fn trait_of(name: &str) {", None),
    ];
    for (line, expected) in table {
        assert_eq!(defined_type(line), expected, "{line}");
    }
}

#[test]
fn rules_cited_in_comments_match_architecture() {
    let text = std::fs::read_to_string(repository().join("docs/architecture.md")).unwrap();
    let defined = rule_ids(&text);
    assert!(defined.len() > 20, "{defined:?}");
    let mut cited = BTreeSet::new();
    let folders = ["src", "tests"].map(|folder| rust_files(&repository().join(folder)));
    for path in folders.concat() {
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            if let Some((_, comment)) = line.split_once("//") {
                cited.extend(rule_ids(comment));
            }
        }
    }
    let unknown: Vec<_> = cited.difference(&defined).collect();
    assert!(unknown.is_empty(), "not in docs/architecture.md: {unknown:?}");
    let uncited: Vec<_> = defined.difference(&cited).collect();
    assert!(uncited.is_empty(), "cited by no comment: {uncited:?}");
}
