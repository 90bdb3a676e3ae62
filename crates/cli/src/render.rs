//! What people and scripts see: data on standard output, talk on standard error.

use std::fmt::{self, Display, Write as _};
use std::io::{IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::json;
use stvor_base::{ErrorCode as _, Timestamp};

use crate::failure::{Failure, Result};

/// Something went well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Something went wrong.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Something insecure or unusual.
pub(crate) const LOUD: Style = AnsiColor::Yellow.on_default().bold();
/// Something that matters.
pub(crate) const STRONG: Style = Style::new().bold();
/// Something that can be passed over.
pub(crate) const FAINT: Style = Style::new().dimmed();

/// `text` in `style`; what is not a terminal gets the text alone, since all output passes through anstream.
pub(crate) fn paint(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// How a command talks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    /// Objects instead of sentences.
    pub(crate) json: bool,
    /// No talk, only data and errors.
    pub(crate) quiet: bool,
}

impl Out {
    /// Writes one line of data and flushes it.
    pub(crate) fn line(&self, text: impl Display) -> Result {
        let mut out = anstream::stdout().lock();
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(|error| Failure::io("can not write the output", error))
    }

    /// Writes one object on a line of its own and flushes it.
    pub(crate) fn object(&self, value: &impl Serialize) -> Result {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::io("can not write the output", std::io::Error::other(error)))?;
        self.line(text)
    }

    /// Writes `value` as an object, or the lines that `human` makes of it.
    pub(crate) fn either<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) -> Result {
        if self.json { self.object(value) } else { self.line(human(value)) }
    }

    /// Says something to the person at the terminal. It may get lost: a closed standard error is no failure.
    pub(crate) fn say(&self, text: impl Display) {
        if !self.quiet && !self.json {
            drop(writeln!(anstream::stderr().lock(), "{text}"));
        }
    }

    /// Says something that must be seen even with `--quiet`; `--json` gets an object with `warning`.
    pub(crate) fn warn(&self, text: impl Display) {
        let mut err = anstream::stderr().lock();
        if self.json {
            drop(writeln!(err, "{}", json!({ "warning": text.to_string() })));
        } else {
            drop(writeln!(err, "{}", paint(LOUD, text)));
        }
    }

    /// Tells of an event: an object on standard error with `--json`, else `human`.
    pub(crate) fn event(&self, object: &serde_json::Value, human: impl Display) {
        if self.json {
            drop(writeln!(anstream::stderr().lock(), "{object}"));
        } else {
            self.say(human);
        }
    }

    /// Tells why the command ends.
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.is_silent() {
            return;
        }
        let mut err = anstream::stderr().lock();
        if self.json {
            let error = json!({ "error": {
                "code": failure.code(),
                "message": failure.to_string(),
                "retryable": failure.retryable(),
                "exit": failure.exit(),
            }});
            drop(writeln!(err, "{error}"));
        } else {
            drop(writeln!(err, "{} {}", paint(BAD, "error:"), failure.render()));
        }
    }
}

/// Whether a person reads standard output.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// A table without lines: as wide as the terminal allows, or as its content needs when a program reads it.
pub(crate) fn table<const N: usize>(head: [&str; N]) -> Table {
    let mut table = Table::new();
    let arrangement = if is_terminal() { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
    table.load_style(presets::NOTHING).set_content_arrangement(arrangement);
    if table.width() == Some(0) {
        // A terminal that nobody gave a size: nothing fits into none.
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    if head.iter().any(|title| !title.is_empty()) {
        table.set_header(head);
    }
    table
}

/// A table as lines, without the space around it.
pub(crate) fn rows(table: &Table) -> String {
    let lines = table.to_string();
    let lines: Vec<&str> =
        lines.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n")
}

/// Text of somebody else, made safe for a terminal: control characters are shown instead of obeyed. Line feeds and
/// tabs stay.
pub(crate) fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let shown = c == '\n' || c == '\t' || !(c.is_control() || is_directional(c) || is_unseen(c));
        if shown {
            safe.push(c);
        } else {
            // Writing to a String can not fail.
            let _ = write!(safe, "{}", c.escape_unicode());
        }
    }
    safe
}

/// Characters that reorder the text around them on screen.
fn is_directional(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// Characters that take no room and join nothing: what they hide between is not what it looks like.
fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// A time as RFC 3339 in UTC with milliseconds, for machines.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    i64::try_from(time.as_millis())
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok())
        .map_or_else(|| time.to_string(), |time| format!("{time:.3}"))
}

/// The hour and minute here, for people; with the date if it is not today.
pub(crate) fn clock(time: Timestamp, now: Timestamp) -> String {
    let zoned = |time: Timestamp| {
        let millis = i64::try_from(time.as_millis()).ok()?;
        Some(jiff::Timestamp::from_millisecond(millis).ok()?.to_zoned(jiff::tz::TimeZone::system()))
    };
    let (Some(time_here), Some(now_here)) = (zoned(time), zoned(now)) else { return time.to_string() };
    let form = if time_here.date() == now_here.date() { "%H:%M" } else { "%b %-d %H:%M" };
    time_here.strftime(form).to_string()
}

/// Bytes as pairs of hexadecimal digits with spaces between.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let space = if place == 0 { "" } else { " " };
            write!(f, "{space}{byte:02x}")?;
        }
        Ok(())
    }
}

/// A whole number with commas between thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_of_a_peer_are_shown_and_not_obeyed() {
        assert_eq!(safe("hi\u{1b}[2J there"), "hi\\u{1b}[2J there");
        assert_eq!(safe("evil\u{202e}txt"), "evil\\u{202e}txt");
        assert_eq!(safe("a\n\tb ü 🙂"), "a\n\tb ü 🙂");
    }

    #[test]
    fn tables_begin_at_the_margin_and_end_with_their_text() {
        let mut table = table(["a", "b"]);
        table.add_row(["one", "2"]).add_row(["3", "four"]);
        assert_eq!(rows(&table), "a    b\none  2\n3    four");
    }

    #[test]
    fn times_for_machines_are_utc_with_milliseconds() {
        assert_eq!(rfc3339(Timestamp::from_millis(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
        assert_eq!(rfc3339(Timestamp::from_millis(0)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn bytes_are_pairs_of_digits() {
        assert_eq!(Hex(&[0, 255, 16]).to_string(), "00 ff 10");
    }
}
