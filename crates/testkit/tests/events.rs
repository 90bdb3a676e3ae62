//! Whatever the engine tells, a listener in Node can hear: each event of the SDK has its name in the list that `on` takes, and its
//! shape in the types.
#![cfg(test)]

use std::path::Path;

use regex::Regex;

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// `group_joined` as JavaScript calls it.
fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |all, word| all + &word[..1].to_uppercase() + &word[1..])
}

#[test]
fn every_event_can_be_listened_to_in_node() {
    let (events, listeners, types) = (
        text("crates/sdk/src/events.rs"),
        text("bindings/node/ts/events.ts"),
        text("bindings/node/ts/types.ts"),
    );
    let named = Regex::new(r#"Self::(\w+)(?: \{ \.\. \})? => "([a-z_]+)","#).unwrap();
    let start = events.find("pub enum Event ").unwrap();
    let of_events = &events[start..];
    let names: Vec<String> = named.captures_iter(of_events).map(|found| camel(&found[2])).collect();
    assert!(names.len() > 30, "the events are found: {names:?}");
    let list = &listeners[listeners.find("const EVENTS").unwrap()..];
    let list = &list[..list.find("]);").unwrap()];
    let shapes = &types[types.find("interface ClientEvents").unwrap()..];
    let shapes = &shapes[..shapes.find("\n}").unwrap()];
    for name in names {
        assert!(list.contains(&format!("'{name}'")), "`on` takes {name}");
        assert!(shapes.contains(&format!("\n  {name}: ")), "{name} has a type");
    }
}
