//! Lines on the sockets. Keys pass in them, so what held one is wiped.

use std::io::{BufRead as _, Read, Write};

use serde::Serialize;
use stvor_crypto::SecretBytes;

/// Bytes that are read from a socket at once.
const PART: usize = 8 << 10;

/// Bytes that grow without leaving a copy behind, and are wiped when they go.
#[derive(Default)]
pub(super) struct Wiped {
    room: SecretBytes,
    used: usize,
}

impl Wiped {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.room.expose()[..self.used]
    }

    fn add(&mut self, more: &[u8]) {
        let end = self.used + more.len();
        if end > self.room.len() {
            let mut wider = SecretBytes::from(vec![0; end.max(2 * self.room.len()).max(256)]);
            wider.expose_mut()[..self.used].copy_from_slice(self.bytes());
            self.room = wider;
        }
        self.room.expose_mut()[self.used..end].copy_from_slice(more);
        self.used = end;
    }
}

impl Write for Wiped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The JSON of something.
pub(super) fn json_of(what: &impl Serialize) -> serde_json::Result<Wiped> {
    let mut json = Wiped::default();
    serde_json::to_writer(&mut json, what)?;
    Ok(json)
}

/// The same as a line, with its end.
pub(super) fn line_of(what: &impl Serialize) -> serde_json::Result<Wiped> {
    let mut line = json_of(what)?;
    line.add(b"\n");
    Ok(line)
}

/// What comes, line by line. Nothing of a line stays here once it was read.
#[derive(Debug)]
pub(super) struct Lines<R> {
    pub(super) from: R,
    held: SecretBytes,
    start: usize,
    end: usize,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, held: SecretBytes::from(vec![0; PART]), start: 0, end: 0 }
    }

    /// The next line of at most `most` bytes, without its end; nothing when the peer has gone.
    pub(super) fn next_line(&mut self, most: usize) -> std::io::Result<Option<Wiped>> {
        let refused = || std::io::Error::other("a line is too long, or was cut");
        let mut line = Wiped::default();
        loop {
            if self.start == self.end {
                self.fill()?;
            }
            let held = &mut self.held.expose_mut()[self.start..self.end];
            if held.is_empty() {
                return if line.bytes().is_empty() { Ok(None) } else { Err(refused()) };
            }
            let mut rest = &*held;
            let taken = rest.skip_until(b'\n')?;
            let part = &mut held[..taken];
            let (text, ended) = match part.split_last() {
                Some((&b'\n', text)) => (text, true),
                _ => (&*part, false),
            };
            if line.bytes().len() + text.len() > most {
                return Err(refused());
            }
            line.add(text);
            part.fill(0);
            self.start += taken;
            if ended {
                return Ok(Some(line));
            }
        }
    }

    fn fill(&mut self) -> std::io::Result<()> {
        (self.start, self.end) = (0, 0);
        self.end = loop {
            match self.from.read(self.held.expose_mut()) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        Ok(())
    }
}

/// The text of a JSON string, given as it is written, with its quotes. The parser would take it apart in a buffer of its own, which
/// nobody wipes.
pub(super) fn unescaped(written: &str) -> Option<Wiped> {
    let mut rest = written.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = Wiped::default();
    while let Some((plain, _)) = rest.split_once('\\') {
        text.add(plain.as_bytes());
        rest = rest.get(plain.len()..)?;
        let escape = escape(rest)?;
        match escape.as_bytes() {
            [_, one @ (b'"' | b'\\' | b'/')] => text.add(&[*one]),
            _ => text.add(serde_json::from_str::<String>(&format!("\"{escape}\"")).ok()?.as_bytes()),
        }
        rest = rest.get(escape.len()..)?;
    }
    text.add(rest.as_bytes());
    Some(text)
}

/// The escape that a text begins with; both where two stand for one character.
fn escape(text: &str) -> Option<&str> {
    let first_of_two =
        |digits: &[u8]| matches!(digits, [b'd' | b'D', b'8' | b'9' | b'a' | b'A' | b'b' | b'B', ..]);
    match text.as_bytes() {
        [_, b'u', digits @ ..] if first_of_two(digits) => text.get(..12),
        [_, b'u', ..] => text.get(..6),
        _ => text.get(..2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_were_cut_and_leave_nothing() {
        let long = "x".repeat(3 * PART);
        let sent = format!("one\n\n{long}\nlast\n");
        let mut lines = Lines::new(sent.as_bytes());
        for wanted in ["one", "", long.as_str(), "last"] {
            assert_eq!(lines.next_line(long.len()).unwrap().unwrap().bytes(), wanted.as_bytes());
        }
        assert!(lines.next_line(long.len()).unwrap().is_none());
        assert!(lines.held.expose().iter().all(|byte| *byte == 0), "what was read is wiped");
    }

    #[test]
    fn a_line_that_is_too_long_or_was_cut_is_none() {
        let of = |sent: &str, most| Lines::new(sent.as_bytes()).next_line(most).map(|line| line.is_some());
        assert!(of("four\n", 4).unwrap());
        of("four\n", 3).unwrap_err();
        of("four", 9).unwrap_err();
    }

    #[test]
    fn the_text_of_a_string_is_what_the_parser_reads() {
        for text in ["", "plain", "{\"verb\":\"lock\"}", "a\\b\n\t\u{1}\u{7f}é😀\u{ffff}", "\\\"", "\\u0041"]
        {
            let written = serde_json::to_string(text).unwrap();
            assert_eq!(unescaped(&written).unwrap().bytes(), text.as_bytes(), "{written}");
        }
        for written in [r#""\u00e9\ud83d\ude00\uD83D\uDE00\/\b\f\r""#, r#""\u0041\\\\\"""#] {
            let text: String = serde_json::from_str(written).unwrap();
            assert_eq!(unescaped(written).unwrap().bytes(), text.as_bytes(), "{written}");
        }
        for written in
            ["", "\"", "{}", "7", r#""\x""#, r#""\u12""#, r#""\ud83d""#, r#""\ud83d\u0041""#, r#""\é""#]
        {
            assert!(unescaped(written).is_none(), "{written}");
        }
    }
}
