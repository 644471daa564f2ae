//! The architecture, read off the sources: dependencies point down, and one module names NATS.

use std::path::{Path, PathBuf};

/// The layers, the lowest first. A module may use those below it and those beside it in its line.
const LAYERS: &[&[&str]] = &[
    &["error", "guide"],
    &["token"],
    &["priority", "kind", "retry", "outcome", "wire", "topology"],
    &["schedule", "seal", "sign"],
    &["broker"],
    &["embedded", "client"],
    &["cron"],
    &["inspect"],
    &["stuck"],
    &["worker"],
    &["control", "dead", "doctor", "agent"],
    &["fuzzing"],
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The library's files, each with the top module it belongs to.
fn modules() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files
        .into_iter()
        .filter_map(|file| {
            let inside = file.strip_prefix(&root).ok()?;
            let top = inside.components().next()?.as_os_str().to_string_lossy();
            let module = top.trim_end_matches(".rs").to_owned();
            (module != "bin" && module != "lib").then_some((module, file))
        })
        .collect()
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("module {module} has no layer: give it one"))
}

/// Code without its tests, which may look anywhere.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("reads");
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
}

/// The top modules that a file names by `crate::`.
fn uses(text: &str) -> Vec<&str> {
    text.match_indices("crate::")
        .filter_map(|(at, found)| {
            let rest = &text[at + found.len()..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
            Some(&rest[..end])
        })
        .filter(|name| name.chars().next().is_some_and(|first| first.is_ascii_lowercase()))
        .collect()
}

#[test]
fn dependencies_point_down() {
    for (module, file) in modules() {
        for used in uses(&code(&file)) {
            assert!(
                layer(used) <= layer(&module),
                "{} (layer of {module}) uses crate::{used}, which lies above it",
                file.display()
            );
        }
    }
}

#[test]
fn only_the_broker_names_the_client_library() {
    for (module, file) in modules() {
        let names_it = std::fs::read_to_string(&file).expect("reads").contains("async_nats");
        assert!(!names_it || module == "broker", "{} names async_nats", file.display());
    }
}
