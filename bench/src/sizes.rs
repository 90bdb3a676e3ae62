//! How much is stored and how much travels.

use crate::Outcome;
use crate::ours::Hello;
use crate::report::{Row, Summary};

/// Lengths of plaintext, in bytes.
const BODIES: [usize; 3] = [2, 100, 1_000];

/// Stored bytes of a session after `round_trips`, and blobs of messages.
///
/// # Errors
/// When a party refuses what it should accept.
pub fn run(round_trips: u32, summary: &mut Summary) -> Outcome<()> {
    let (mut alice, mut bob) = Hello::new(b"hello")?.established()?;
    alice.send_stored(&mut bob, b"x")?;
    bob.send_stored(&mut alice, b"x")?;
    let total = |end: &crate::ours::End, peer| -> usize {
        end.device.conversation_bytes(peer).iter().map(|(_, bytes)| bytes).sum()
    };
    let peer = bob.device.address().clone();
    let young = total(&alice, &peer);
    for _ in 0..round_trips {
        alice.send_stored(&mut bob, b"there")?;
        bob.send_stored(&mut alice, b"and back")?;
    }
    let rows = alice.device.conversation_bytes(&peer);
    let old = total(&alice, &peer);
    let name = format!("stored rows of a conversation after {round_trips} round trips");
    summary.push(Row::new(&name, "B", count(old)).peer("after 1 round trip", count(young)));
    let list: Vec<String> = rows.iter().map(|(kind, bytes)| format!("{kind:?} {bytes}")).collect();
    summary.note(format!("the rows of that conversation, before sealing: {}", list.join(", ")));
    for length in BODIES {
        let body = vec![b'x'; length];
        let Hello { first, .. } = Hello::new(&body)?;
        let later = alice.send_stored(&mut bob, &body)?;
        summary.push(Row::new(
            &format!("blob of the first message, {length} B of text"),
            "B",
            count(first.len()),
        ));
        summary.push(Row::new(&format!("blob of a later message, {length} B of text"), "B", count(later)));
    }
    Ok(())
}

/// Sizes here are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn count(bytes: usize) -> f64 {
    bytes as f64
}
