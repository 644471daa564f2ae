//! The table of faults names tests: they are there.

use std::path::Path;

/// Where the tests of these modules are written down once for all: by their name, as `name: scenario;`.
const EVERYWHERE: [&str; 2] = ["fsync", "three"];

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
    assert!(named.len() > 80, "{} tests are named", named.len());
    for (module, test) in named {
        let (file, written) = match EVERYWHERE.contains(&module) {
            true => ("everywhere", format!("    {test}: ")),
            false => (module, format!("fn {test}(")),
        };
        let path = format!("tests/faults/{file}.rs");
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path));
        let text = text.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(text.contains(&written), "{path} has no test {test}");
    }
}

#[test]
fn every_row_has_a_test_for_each_column_that_it_can_have() {
    let readme = include_str!("../../README.md");
    let (_, table) = readme.split_once("| fault | what becomes of the jobs |").expect("a table");
    let (table, _) = table.split_once("\n\n").expect("an end");
    for row in table.lines().skip(2) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, fault, _, columns @ .., _] = &cells[..] else { panic!("{row}") };
        let tests = columns.iter().filter(|cell| cell.contains("::")).count();
        // One server has no quorum to lose.
        let expected = if *fault == "the quorum is lost" { 2 } else { 4 };
        assert_eq!(tests, expected, "{fault}");
    }
}
