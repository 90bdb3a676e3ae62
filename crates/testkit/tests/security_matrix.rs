//! Every test that SECURITY.md and the vault's page of what holds name exists.

#![cfg(test)]

use std::path::{Path, PathBuf};

use regex::Regex;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What is wrong with the rows of a table, and how many there are.
fn wrong(table: &str) -> (usize, Vec<String>) {
    let named = Regex::new(r"`([A-Za-z0-9_./-]+\.rs)::([a-z0-9_]+)`").unwrap();
    let (mut rows, mut wrong) = (0, Vec::new());
    let heads = ["| attack |", "| what holds |"];
    let is_row = |line: &&str| line.starts_with("| ") && !heads.iter().any(|head| line.starts_with(head));
    for row in table.lines().filter(is_row) {
        rows += 1;
        if !named.is_match(row) {
            wrong.push(format!("no test: {row}"));
        }
        for test in named.captures_iter(row) {
            let file = std::fs::read_to_string(root().join(&test[1])).unwrap_or_default();
            if !file.contains(&format!("fn {}(", &test[2])) {
                wrong.push(format!("does not exist: {}", &test[0]));
            }
        }
    }
    (rows, wrong)
}

#[test]
fn every_row_of_the_matrix_names_tests_that_exist() {
    let page = std::fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let matrix =
        page.split("## What stops which attack").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let (rows, wrong) = wrong(matrix);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(rows >= 10, "the matrix is read");
}

#[test]
fn whatever_the_vault_promises_names_tests_that_exist() {
    let page = std::fs::read_to_string(root().join("docs/vault/holds.md")).unwrap();
    let (rows, wrong) = wrong(&page);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(rows >= 15, "the table is read");
}
