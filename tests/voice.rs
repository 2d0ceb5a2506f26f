//! Checks the wording of all texts and names: phrases that readers misunderstand, and home-made terms in identifiers,
//! must not come back.

use std::path::{Path, PathBuf};

/// The checked files and folders.
const CHECKED: [&str; 13] = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    ".ci",
    ".github",
    "action.d",
    "debian",
    "docs",
    "etc",
    "examples",
    "src",
    "tests",
];

/// Not checked: this list, and inputs of fuzzers, which are no texts.
const EXCLUDED: [&str; 2] = ["tests/voice.rs", "tests/fuzz/corpus"];

/// Phrases that must not occur in a text, in lower case.
const PHRASES: [&str; 10] = [
    "anew",
    "whoever",
    "nobody",
    "for ever",
    "in the place of",
    "as a rule",
    "begun",
    "is to be",
    "are to be",
    "without a word",
];

/// Words that must not be part of an identifier in Rust code.
const WORDS: [&str; 9] =
    ["said", "unsaid", "told", "teller", "hear", "pardon", "obey", "carried", "words"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a path, without the excluded ones.
fn files(path: PathBuf) -> Vec<PathBuf> {
    if EXCLUDED.iter().any(|excluded| path == repository().join(excluded)) {
        return Vec::new();
    }
    if !path.is_dir() {
        return vec![path];
    }
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(files).collect()
}

/// The banned phrases in a text, as whole words. A line end counts as a blank.
fn phrases(text: &str) -> Vec<&'static str> {
    let words: Vec<_> = text
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let text = format!(" {} ", words.join(" "));
    PHRASES.into_iter().filter(|phrase| text.contains(&format!(" {phrase} "))).collect()
}

/// Rust code without comments and literals.
fn bare(code: &str) -> String {
    let mut bare = String::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            'r' if rest.starts_with("r#\"") => rest.find("\"#").map_or(rest.len(), |end| end + 2),
            '"' => end_of_string(rest),
            '\'' if rest.starts_with("'\\") => {
                rest[3..].find('\'').map_or(rest.len(), |end| end + 4)
            }
            '\'' if rest.starts_with("'\"'") => 3,
            c => {
                bare.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[skipped..];
    }
    bare
}

/// The length of the string literal at the start of the code, with its quotes.
fn end_of_string(code: &str) -> usize {
    let mut is_escaped = false;
    let end = code[1..].find(|c| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    });
    end.map_or(code.len(), |end| end + 2)
}

/// The words of all identifiers, split at `_` and capitals, in lower case.
fn words_of_identifiers(code: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in code.chars() {
        if !c.is_alphanumeric() || c.is_uppercase() {
            words.push(String::new());
        }
        if c.is_alphanumeric() {
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn texts_and_identifiers_have_no_banned_phrase() {
    for path in CHECKED.iter().flat_map(|path| files(repository().join(path))) {
        let text = std::fs::read_to_string(&path).unwrap();
        let found = phrases(&text);
        assert!(found.is_empty(), "{}: {found:?}", path.display());
        if path.extension().is_some_and(|extension| extension == "rs") {
            let mut words = words_of_identifiers(&bare(&text));
            words.retain(|word| WORDS.contains(&word.as_str()));
            assert!(words.is_empty(), "{}: {words:?}", path.display());
        }
    }
}

#[test]
fn phrases_and_words_are_found_as_whole_words() {
    assert_eq!(phrases("It IS\n# to be; a newt, fore ver"), ["is to be"]);
    assert_eq!(phrases("a newer beginning"), [""; 0]);
    let code = "last_toldAt('\"', '\\'', b\"a\\\"said\", r#\"hear\"#) // pardon\n Obey9";
    let words = ["last", "told", "at", "b", "obey9"];
    assert_eq!(words_of_identifiers(&bare(code)), words);
}
