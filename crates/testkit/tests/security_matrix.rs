//! Every test that SECURITY.md names exists.

#![cfg(test)]

use std::path::Path;

use regex::Regex;

#[test]
fn every_row_of_the_matrix_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let matrix =
        page.split("## What stops which attack").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let named = Regex::new(r"`([A-Za-z0-9_./-]+\.rs)::([a-z0-9_]+)`").unwrap();
    let (mut rows, mut wrong) = (0, Vec::new());
    for row in matrix.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attack |")) {
        rows += 1;
        if !named.is_match(row) {
            wrong.push(format!("no test: {row}"));
        }
        for test in named.captures_iter(row) {
            let file = std::fs::read_to_string(root.join(&test[1])).unwrap_or_default();
            if !file.contains(&format!("fn {}(", &test[2])) {
                wrong.push(format!("does not exist: {}", &test[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(rows >= 10, "the matrix is read");
}
