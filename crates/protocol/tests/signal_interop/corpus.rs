//! Messages that the peers wrote: what our decoders make of them, and seeds of the fuzz targets.

use std::path::Path;

use serde_json::json;
use stvor_protocol::signal::{
    MessageKind, PreKeyMessage, SenderKeyDistribution, SignalError, WhisperMessage, wire::SenderKeyMessage,
};

use crate::party::Party;
use crate::peer::{Peer, bytes};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    PreKey,
    Whisper,
}

/// Messages of sessions, as npm `libsignal` writes them: first ones with and without a one-time prekey, and of later turns.
pub(crate) fn of_libsignal(peer: &mut Peer) -> Vec<(Kind, Vec<u8>)> {
    of(peer, "libsignal")
}

fn of(peer: &mut Peer, over: &str) -> Vec<(Kind, Vec<u8>)> {
    let mut all = Vec::new();
    for (round, prekey) in [Some(7), None, Some(0)].into_iter().enumerate() {
        let id = format!("corpus {over} {round}");
        peer.call(json!({ "op": "party", "id": id, "over": over }));
        let mut own = Party::new(&id);
        peer.start_session(&id, &own.bundle(prekey));
        for text in [&[1; 40][..], b"", &[2; 300]] {
            let first = peer.send(&id, text);
            assert_eq!((first.kind, own.text(&first).as_slice()), (MessageKind::PreKey, text));
            all.push((Kind::PreKey, first.body));
        }
        for turn in 0..3u8 {
            let answer = own.send(&[turn]);
            peer.read(&id, &answer).unwrap();
            for number in 0..3u8 {
                let later = peer.send(&id, &[number; 20]);
                assert_eq!((later.kind, own.text(&later)), (MessageKind::Whisper, vec![number; 20]));
                all.push((Kind::Whisper, later.body));
            }
        }
    }
    all
}

/// Writes a seed of a fuzz target where `STVOR_WRITE_CORPUS` is set.
fn seed(target: &str, name: &str, message: &[u8]) {
    if std::env::var_os("STVOR_WRITE_CORPUS").is_some() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
        std::fs::write(seeds.join(name), message).unwrap();
    }
}

#[test]
fn messages_of_sessions_of_both_peers_are_taken() {
    let Some(mut peer) = Peer::start() else { return };
    for over in ["libsignal", "bridge"] {
        let all = of(&mut peer, over);
        let (mut first, mut later) = (0, 0);
        for (kind, message) in &all {
            match kind {
                Kind::PreKey => {
                    let read = PreKeyMessage::parse(message).unwrap();
                    assert_eq!(read.message().to_bytes().first(), Some(&0x33));
                    first += 1;
                }
                Kind::Whisper => {
                    assert_eq!(WhisperMessage::parse(message).unwrap().to_bytes(), *message);
                    later += 1;
                }
            }
            let number = first + later;
            if [1, 4, 10, 19].contains(&number) {
                seed("signal-decoders", &format!("{over}-{number}"), message);
            }
        }
        assert_eq!((first, later), (9, 27));
    }
}

#[test]
fn messages_of_groups_of_the_bridge_are_taken() {
    let Some(mut peer) = Peer::start() else { return };
    peer.call(json!({ "op": "party", "id": "group corpus" }));
    let made = peer.call(json!({ "op": "groupCreate", "id": "group corpus", "name": "g" }));
    let distribution = bytes(&made["distribution"]);
    assert_eq!(SenderKeyDistribution::parse(&distribution).unwrap().encode(), distribution);
    seed("signal-decoders", "bridge-distribution", &distribution);
    for number in 0..3 {
        let sent =
            peer.call(json!({ "op": "groupEncrypt", "id": "group corpus", "name": "g", "text": "00" }));
        let message = bytes(&sent["body"]);
        assert!(SenderKeyMessage::parse(&message).is_ok());
        if number == 0 {
            seed("signal-decoders", "bridge-to-group", &message);
        }
    }
}

/// Its sessions are of version 4, and its groups have other fields: refused, by name and not by chance.
#[test]
fn messages_of_the_official_client_are_refused_as_what_they_are() {
    let Some(mut peer) = Peer::start() else { return };
    let all = peer.call(json!({ "op": "official" }));
    let of = |name: &str| bytes(&all[name]);
    for name in ["first", "later", "distribution", "toGroup"] {
        seed("signal-decoders", &format!("official-{name}"), &of(name));
    }
    assert!(matches!(PreKeyMessage::parse(&of("first")), Err(SignalError::Version(0x44))));
    assert!(matches!(WhisperMessage::parse(&of("later")), Err(SignalError::Version(0x44))));
    assert!(matches!(SenderKeyDistribution::parse(&of("distribution")), Err(SignalError::Malformed(_))));
    assert!(matches!(SenderKeyMessage::parse(&of("toGroup")), Err(SignalError::Malformed(_))));
}
