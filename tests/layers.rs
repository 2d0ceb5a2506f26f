//! The direction of imports: each top module of the crate belongs to one layer, and imports only from its own layer or
//! from layers below, without a circle. docs/architecture.md has the same layers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The layers, from the bottom to the top.
const LAYERS: [&[&str]; 6] = [
    &["error", "model", "sys"],
    &["wire", "config"],
    &["guard", "fleet"],
    &["fail2ban", "broker", "store", "spool"],
    &["daemon", "abuseipdb"],
    &["operator", "cli"],
];

/// The longest chain of imports between top modules.
const MAX_FLOORS: usize = 10;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Adds the modules that the code in a file or folder names as `crate::MODULE`. Tests and comments do not count.
fn collect_imports(path: &Path, imports: &mut BTreeSet<String>) {
    let name = path.file_name().unwrap().to_str().unwrap();
    if path.is_dir() && name != "tests" {
        for entry in std::fs::read_dir(path).unwrap() {
            collect_imports(&entry.unwrap().path(), imports);
        }
    } else if path.is_file() && name != "tests.rs" {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for after in line.split("crate::").skip(1) {
                assert!(!after.starts_with('{'), "one `use` for each module: {}", path.display());
                let end = after.find(|c: char| c != '_' && !c.is_alphanumeric());
                imports.insert(after[..end.unwrap_or(after.len())].to_owned());
            }
        }
    }
}

/// The top modules with the modules that each imports.
fn import_graph() -> BTreeMap<String, BTreeSet<String>> {
    let library = std::fs::read_to_string(source().join("lib.rs")).unwrap();
    let modules =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut graph = BTreeMap::new();
    for module in modules {
        let mut imports = BTreeSet::new();
        for path in [source().join(module), source().join(format!("{module}.rs"))] {
            if path.exists() {
                collect_imports(&path, &mut imports);
            }
        }
        imports.remove(module);
        graph.insert(module.to_owned(), imports);
    }
    graph
}

/// The number of modules in the longest chain of imports from a module on.
fn floors(graph: &BTreeMap<String, BTreeSet<String>>, module: &str, above: &[&str]) -> usize {
    assert!(!above.contains(&module), "a circle of imports: {above:?} -> {module}");
    let chain = [above, &[module]].concat();
    let imported = graph.get(module).into_iter().flatten();
    1 + imported.map(|import| floors(graph, import, &chain)).max().unwrap_or(0)
}

#[test]
fn imports_run_down_the_layers_without_a_circle() {
    let graph = import_graph();
    assert!((10..=16).contains(&graph.len()), "{} modules at the top", graph.len());
    for (module, imports) in &graph {
        let own = layer(module).unwrap_or_else(|| panic!("{module} belongs to no layer"));
        for import in imports {
            let other = layer(import).unwrap_or_else(|| panic!("{module} imports crate::{import}"));
            assert!(other <= own, "{module} imports from {import}, which is above it");
        }
        let floors = floors(&graph, module, &[]);
        assert!(floors <= MAX_FLOORS, "{module} is on floor {floors}");
    }
}

#[test]
fn architecture_names_each_layer() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let text = std::fs::read_to_string(path).unwrap();
    for (number, layer) in LAYERS.iter().enumerate() {
        let names: Vec<_> = layer.iter().map(|module| format!("`{module}`")).collect();
        let row = format!("| {} | {} |", number + 1, names.join(", "));
        assert!(text.contains(&row), "docs/architecture.md has no row {row}");
    }
}
