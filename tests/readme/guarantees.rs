//! The table of faults names tests: they are there.

use std::path::Path;

#[test]
fn every_test_that_shows_a_guarantee_is_there() {
    let readme = include_str!("../../README.md");
    let (_, guarantees) = readme.split_once("## Guarantees").expect("a chapter");
    let (guarantees, _) = guarantees.split_once("\n## ").expect("more chapters");
    let rows = guarantees.lines().filter(|line| line.starts_with('|'));
    let named: Vec<(&str, &str)> = rows
        .flat_map(|row| row.split('`').skip(1).step_by(2))
        .filter_map(|code| code.split_once("::"))
        .collect();
    assert!(named.len() > 30, "{} tests are named", named.len());
    for (file, test) in named {
        let path = format!("tests/faults/{file}.rs");
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path));
        let text = text.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "{path} has no test {test}");
    }
}
