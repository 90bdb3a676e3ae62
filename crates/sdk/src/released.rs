//! Rows as released versions wrote them, byte by byte: a build that no longer reads them, or writes them otherwise without
//! a new version, loses what its users have.

use stvor_base::codec::CodecError;
use stvor_base::{Address, ContentId, DeviceId, GroupId, MessageId, Timestamp, UserId};

use crate::content::Content;
use crate::events::DeliveryState;
use crate::instances::InstanceId;
use crate::rows::{
    Direction, InboxRow, LaneRow, MessageRow, PeerRow, PendingBody, PendingRow, Place, PointerRow, SealedSend,
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

#[test]
fn rows_of_later_versions_read_and_are_written_as_they_were() {
    let message = "020001000000047465787400000000000000090000000000000007000000000000000802000000000000000005010000\
        000000000000000000000000000000000000056361726f6c";
    let row = MessageRow {
        direction: Direction::In,
        content: Content::from("text"),
        sent_order: 9,
        sent_at: Timestamp::from_millis(7),
        stamped_at: Timestamp::from_millis(8),
        state: DeliveryState::Delivered,
        read: false,
        keep: 5,
        verified: true,
        msg_id: None,
        repairs: 0,
        queued: 0,
        identity: None,
        from: Some(UserId::new("carol").unwrap()),
    };
    assert_eq!(hex(&row.encode()), message);
    assert_eq!(MessageRow::decode(&bytes(message)), Ok(row));

    let lane = "0200000003626f6200000001030000000000000001000000000000000200000000000000030000000000000004000000\
        00000000050000000103030303030303030303030303030303";
    let due = vec![place().id];
    let row = LaneRow { epoch: 1, lane: 2, queued: 3, counter: 4, order: 5, due, announce: Some(3) };
    assert_eq!(hex(&row.encode(&bob())), lane);
    assert_eq!(LaneRow::decode(&bytes(lane)), Ok((bob(), row)));

    let pointer = "0200000003626f6200000001000000000000000703030303030303030303030303030303060606060606060606060606\
        06060606";
    let of_group = PointerRow { peer: bob(), place: place(), group: Some(GroupId::from_bytes([6; 16])) };
    assert_eq!(hex(&of_group.encode()), pointer);
    assert_eq!(PointerRow::decode(&bytes(pointer)), Ok(of_group.clone()));

    let (taken, taken_of_one) = (
        "03070707070707070707070707070707070200000003626f620000000100000000000000070303030303030303030303\
        030303030306060606060606060606060606060606",
        "03070707070707070707070707070707070100000003626f620000000100000000000000070303030303030303030303\
        0303030303",
    );
    let of_one = PointerRow { peer: bob(), place: place(), group: None };
    for (written, pointer) in [(taken, of_group), (taken_of_one, of_one)] {
        let row = InboxRow { pointer, taken_by: Some(InstanceId([7; 16])) };
        assert_eq!(hex(&row.encode()), written);
        assert_eq!(InboxRow::decode(&bytes(written)), Ok(row));
    }

    let control = "0100000000000000060000";
    let row = PendingRow { body: PendingBody::Control, sealed: None, created_at: Timestamp::from_millis(6) };
    assert_eq!(hex(&row.encode()), control);
    assert_eq!(PendingRow::decode(&bytes(control)), Ok(row));
}

/// What stands in rows that have no version of their own: their layout can never change.
#[test]
fn rows_without_a_version_stay_as_they_are() {
    let written = "000000000000000703030303030303030303030303030303";
    assert_eq!(hex(&place().to_bytes()), written);
    assert_eq!(Place::from_bytes(&bytes(written)), Ok(place()));
    assert!(Place::from_bytes(&bytes(&written[2..])).is_err());
    let instance = "0107070707070707070707070707070707";
    assert_eq!(hex(&InstanceId([7; 16]).encode()), instance);
    assert_eq!(InstanceId::decode(&bytes(instance)), Ok(InstanceId([7; 16])));
}

/// What an older program makes of the rows of a newer one.
#[test]
fn rows_of_a_newer_version_are_told_apart_by_their_first_byte() {
    let newer = |version: u8| {
        [vec![version], bytes("00000003626f620000000100000000000000070303030303030303030303030303030306060606060606060606060606\
        060606")].concat()
    };
    for version in [4, 9, 255] {
        let refused = Err(CodecError::Version(version));
        assert_eq!(MessageRow::decode(&newer(version)).map(|_| ()), refused);
        assert_eq!(PendingRow::decode(&newer(version)).map(|_| ()), refused);
        assert_eq!(PeerRow::decode(&newer(version)).map(|_| ()), refused);
        assert_eq!(LaneRow::decode(&newer(version)).map(|_| ()), refused);
        assert_eq!(PointerRow::decode(&newer(version)).map(|_| ()), refused);
        assert_eq!(InboxRow::decode(&newer(version)).map(|_| ()), refused);
    }
}

/// A store that a newer program wrote is refused as a whole, and not a byte of it is changed.
#[tokio::test]
async fn a_store_with_a_newer_row_opens_for_nobody_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = crate::ConnectOptions { allow_unregistered: true, ..crate::ConnectOptions::default() };
    let open = async |user: &str| {
        let app = crate::App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
        let app = app.timeout(std::time::Duration::from_millis(50)).data_dir(folder.path());
        app.open().await.unwrap().connect_with(user, options).await
    };
    let dump = async |store: &stvor_store::Sealed| {
        let mut all = Vec::new();
        // The header is the store's own.
        let tables = stvor_store::Table::ALL.into_iter().filter(|table| *table != stvor_store::Table::Header);
        for table in tables {
            for partition in [crate::keys::LANES, crate::keys::PEERS] {
                let rows = store.scan_all(stvor_store::Scan::of(table, partition), 100).await.unwrap();
                all.extend(rows.into_iter().map(|row| (row.key, row.value.expose().to_vec())));
            }
        }
        all
    };
    for (number, of_lane) in [true, false].into_iter().enumerate() {
        let user = format!("user{number}");
        let client = open(&user).await.unwrap();
        let store = &client.core().store;
        let (key, newer) = match of_lane {
            true => (crate::keys::lane(store, &bob()), [&[3_u8][..], &bytes("00000003626f620000000103000000000000000100000000000000020000000000000003000000000000000400000000\
        000000050000000103030303030303030303030303030303")].concat()),
            false => (crate::keys::peer(store, &bob().user), vec![2, 0, 0, 0, 3, b'b', b'o', b'b', 0, 0]),
        };
        let mut changes = stvor_store::ChangeSet::new();
        changes.put(key, newer);
        store.commit(changes).await.unwrap();
        let before = dump(store).await;
        assert!(!before.is_empty());
        let core = client.core();
        let place = core.config.place.of_store(&core.config.app, &core.address.user, core.directory.as_ref());
        client.close().await;
        let refused = open(&user).await.map(|_| ()).unwrap_err();
        assert_eq!(refused.code(), "FORMAT_TOO_NEW", "{refused}");
        let stores = stvor_store::SqliteStores;
        let opened = stvor_store::open_at(&stores, &place, stvor_store::OpenKey::Default).await.unwrap();
        assert_eq!(dump(&opened.store).await, before);
        opened.store.close().await.unwrap();
    }
}
