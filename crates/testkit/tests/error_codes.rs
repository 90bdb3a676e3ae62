//! Every stable error code has a section in docs/errors.md, and every section has a code.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Files of Rust and of the TypeScript face.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "ts") {
            found.push(path);
        }
    }
}

/// The body of the item that starts at `from`, by its braces. Good enough for code that rustfmt formatted and that
/// has no brace in a literal there.
fn body(text: &str, from: usize) -> &str {
    let open = from + text[from..].find('{').unwrap();
    let mut depth = 0;
    for (at, c) in text[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[open..=open + at];
        }
    }
    &text[open..]
}

/// Codes of the relay, codes named by functions `code`, and codes given to errors that carry theirs in a field, each
/// with the place that names it.
fn codes() -> BTreeMap<String, PathBuf> {
    let function = Regex::new(r"fn code\(&self\) -> &'static str").unwrap();
    // In a field, or handed to the function that says what an administrator's command did.
    let field =
        Regex::new(r#"(?:\bcode: |\bdone\([\w.]+, [\w.]+, |\bfailure\()["']([A-Z][A-Z0-9_]{2,})["']"#)
            .unwrap();
    let literal = Regex::new(r#""([A-Z][A-Z0-9_]{2,})""#).unwrap();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap().map(Result::unwrap) {
        if entry.file_name() != "testkit" {
            sources(&entry.path().join("src"), &mut files);
        }
    }
    for folder in ["node/src", "node/ts", "libsignal/src", "libsignal/ts"] {
        sources(&root().join("bindings").join(folder), &mut files);
    }
    let wire = PathBuf::from("stvor_wire::Code");
    let mut codes: BTreeMap<_, _> =
        stvor_wire::Code::ALL.iter().map(|code| (code.as_str().to_owned(), wire.clone())).collect();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for code in field.captures_iter(&text) {
            codes.insert(code[1].to_owned(), file.clone());
        }
        for start in function.find_iter(&text) {
            for code in literal.captures_iter(body(&text, start.start())) {
                codes.insert(code[1].to_owned(), file.clone());
            }
        }
    }
    codes
}

fn sections() -> BTreeSet<String> {
    let heading = Regex::new(r"(?m)^## `?([A-Z][A-Z0-9_]{2,})`?$").unwrap();
    let page = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    heading.captures_iter(&page).map(|heading| heading[1].to_owned()).collect()
}

#[test]
fn every_error_code_has_a_page_section() {
    let sections = sections();
    let missing: Vec<_> = codes().into_iter().filter(|(code, _)| !sections.contains(code)).collect();
    assert!(missing.is_empty(), "no section in docs/errors.md: {missing:#?}");
}

#[test]
fn every_page_section_has_an_error_code() {
    let codes = codes();
    let stale: Vec<_> = sections().into_iter().filter(|code| !codes.contains_key(code)).collect();
    assert!(stale.is_empty(), "sections of docs/errors.md that no code names: {stale:?}");
    assert!(codes.contains_key("INVALID_NAME"), "the walk works");
}
