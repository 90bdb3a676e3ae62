//! Rows as released versions wrote them, byte by byte: a build that no longer reads them, or writes them otherwise without
//! a new version, loses what its users have.

use stvor_base::{Address, ContentId, DeviceId, MessageId, Timestamp, UserId};

use crate::content::Content;
use crate::events::DeliveryState;
use crate::rows::{
    Direction, LaneRow, MessageRow, PeerRow, PendingBody, PendingRow, Place, PointerRow, SealedSend,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn place() -> Place {
    Place { order: 7, id: ContentId::from_bytes([3; 16]) }
}

fn bob() -> Address {
    Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST)
}

#[test]
fn rows_of_version_1_read_and_are_written_as_they_were() {
    let message =
        "01010100000004746578740000000000000007000000000000000700000000000000080201000000000000000501020000\
        000000000004000000100101010101010101010101010101010100000041"
            .to_owned()
            + &"09".repeat(65);
    let row = MessageRow {
        direction: Direction::Out,
        content: Content::from("text"),
        sent_order: 7,
        sent_at: Timestamp::from_millis(7),
        stamped_at: Timestamp::from_millis(8),
        state: DeliveryState::Delivered,
        read: true,
        keep: 5,
        verified: true,
        msg_id: Some(MessageId::from_bytes([1; 16])),
        repairs: 2,
        queued: 4,
        identity: Some([9; 65].into()),
        from: None,
    };
    assert_eq!(hex(&row.encode()), message);
    assert_eq!(MessageRow::decode(&bytes(&message)), Ok(row));

    let pending = "010000000000000006010000000000000007030303030303030303030303030303030101010101010101010101010101\
        010101000000000000000200000000000000030000000000000004000000010000000805050505050505\
        05";
    let row = PendingRow {
        body: PendingBody::Message(place()),
        sealed: Some(SealedSend {
            msg_id: MessageId::from_bytes([1; 16]),
            lane_epoch: 2,
            lane: 3,
            counter: 4,
            device: 1,
            blob: vec![5; 8],
        }),
        created_at: Timestamp::from_millis(6),
    };
    assert_eq!(hex(&row.encode()), pending);
    assert_eq!(PendingRow::decode(&bytes(pending)), Ok(row));

    let peer = "0100000003626f6201010000000000000005";
    let row = PeerRow { user: UserId::new("bob").unwrap(), blocked: true, retention: Some(5) };
    assert_eq!(hex(&row.encode()), peer);
    assert_eq!(PeerRow::decode(&bytes(peer)), Ok(row));

    let lane = "0100000003626f62000000010000000000000001000000000000000200000000000000030000000000000004000000000000\
        00050000000103030303030303030303030303030303";
    let row =
        LaneRow { epoch: 1, lane: 2, queued: 3, counter: 4, order: 5, due: vec![place().id], announce: None };
    assert_eq!(hex(&row.encode(&bob())), lane);
    assert_eq!(LaneRow::decode(&bytes(lane)), Ok((bob(), row)));

    let pointer = "0100000003626f6200000001000000000000000703030303030303030303030303030303";
    let row = PointerRow { peer: bob(), place: place(), group: None };
    assert_eq!(hex(&row.encode()), pointer);
    assert_eq!(PointerRow::decode(&bytes(pointer)), Ok(row));
}
