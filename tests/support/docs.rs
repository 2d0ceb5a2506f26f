//! Reads the documents for tests: the README and its siblings, and docs/. A block that a test uses has a name in a
//! comment on the line before: `<!-- test: NAME -->`. So the test finds the block wherever it moves.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};

/// A document: its path within the repository, and its text.
pub(crate) struct Document {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A block with a name: the text between its fences.
pub(crate) struct Block {
    pub(crate) name: String,
    pub(crate) text: String,
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and its siblings, and every page of docs/.
pub(crate) fn documents() -> Vec<Document> {
    let mut paths = Vec::new();
    for dir in ["", "docs"] {
        for entry in std::fs::read_dir(repository().join(dir)).unwrap() {
            paths.push(Path::new(dir).join(entry.unwrap().file_name()));
        }
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    paths.into_iter().map(|path| Document { text: text(&path), path }).collect()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(repository().join(path))
        .unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// The named blocks of a document.
pub(crate) fn named_blocks(document: &Document) -> Vec<Block> {
    let mut blocks = Vec::new();
    for part in document.text.split("<!-- test: ").skip(1) {
        let (name, rest) = part.split_once(" -->\n").expect("a comment ends on its line");
        let fenced = rest.strip_prefix("```").and_then(|rest| rest.split_once('\n'));
        let (_, rest) = fenced.unwrap_or_else(|| panic!("no block directly after {name}"));
        let (text, _) = rest.split_once("```").expect("a block has an end");
        blocks.push(Block { name: name.to_owned(), text: text.to_owned() });
    }
    blocks
}

/// The block with this name in any document.
pub(crate) fn block(name: &str) -> String {
    let blocks = documents().iter().flat_map(named_blocks).collect::<Vec<_>>();
    let found: Vec<_> = blocks.iter().filter(|block| block.name == name).collect();
    let [block] = found[..] else { panic!("{} blocks are named {name}, not 1", found.len()) };
    block.text.clone()
}

/// The section of a document below a heading of the second level, without the heading.
pub(crate) fn section(path: &str, heading: &str) -> String {
    let text = text(Path::new(path));
    let begin = format!("\n## {heading}\n\n");
    let (_, rest) =
        text.split_once(&begin).unwrap_or_else(|| panic!("{path} has no heading {heading}"));
    rest.split("\n## ").next().unwrap().to_owned()
}
