//! `stvor config show`: each setting, its value and where it comes from.

use serde_json::json;

use crate::args::{ConfigArgs, ConfigCommand};
use crate::config::{Settings, Shown, usual_file};
use crate::failure::Result;
use crate::render::{FAINT, Out, paint, rows, table};

/// Shows the settings.
pub(crate) fn run(args: &ConfigArgs, settings: &Settings, out: Out) -> Result {
    let ConfigCommand::Show { sources } = args.command;
    let shown = settings.shown(&stvor_relay::Config::default())?;
    if out.json {
        let list: Vec<_> = shown
            .iter()
            .map(|one| {
                let mut object = json!({ "key": one.key, "value": one.value });
                if sources {
                    object["source"] = one.source.clone().into();
                }
                object
            })
            .collect();
        return out.object(&list);
    }
    match (&settings.file, usual_file()) {
        (Some(file), _) => out.say(format!("Settings of {}", file.display())),
        (None, Some(file)) => out.say(format!("No settings file; {} would be read", file.display())),
        (None, None) => {}
    }
    let mut lines = table(["", "", ""]);
    for one in &shown {
        let value = text(one);
        if sources {
            lines.add_row([one.key.clone(), value, paint(FAINT, &one.source)]);
        } else {
            lines.add_row([one.key.clone(), value]);
        }
    }
    out.line(rows(&lines))
}

fn text(one: &Shown) -> String {
    match &one.value {
        serde_json::Value::Null => paint(FAINT, "(not set)"),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
