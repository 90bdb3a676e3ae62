//! What every store promises; run on each implementation.

use core::num::NonZeroU64;
use core::time::Duration;
use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use stvor_base::devices::{DeviceEntry, DeviceList};
use stvor_base::rotations::{Rotation, Rotations};
use stvor_base::{Address, AppId, DeviceId, MessageId, Timestamp, UserId};
use stvor_crypto::kdf::sha256;
use stvor_wire::Code;
use stvor_wire::client::{Lane, UploadKeys};
use stvor_wire::keys::{KemPrekey, OneTimePrekey, SignedPrekey};
use stvor_wire::server::Registration;

use super::memory::MemoryStore;
use super::sqlite::SqliteStore;
use super::*;
use crate::limits::{KEYS_LOW, ONE_TIME_KEYS};
use crate::metrics::StoreMetrics;

/// Runs a test on every store.
macro_rules! on_every_store {
    ($($name:ident => $bounds:expr;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test]
            async fn memory() {
                super::$name(Arc::new(MemoryStore::new($bounds))).await;
            }

            #[tokio::test]
            async fn sqlite() {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("relay.sqlite");
                let store = SqliteStore::open(&path, $bounds, StoreMetrics::none()).unwrap();
                super::$name(Arc::new(store)).await;
            }
        }
    )*};
}

on_every_store! {
    messages_come_back_in_order_until_acked => Bounds::default();
    an_id_is_accepted_once_for_each_sender => Bounds::default();
    refused_messages_leave_nothing_behind => Bounds::default();
    the_highest_counter_keeps_the_mac_that_came_with_it => Bounds::default();
    a_sender_fills_a_share_of_a_mailbox_and_no_more => Bounds {
        mailbox_messages: 4, sender_messages: 2, sender_bytes: 1_536, ..Bounds::default()
    };
    a_full_mailbox_opens_at_half => Bounds { mailbox_messages: 4, ..Bounds::default() };
    the_monthly_quota_ends_with_the_month => Bounds { monthly_messages: Some(2), ..Bounds::default() };
    pages_end_at_rows_or_bytes => Bounds::default();
    expired_messages_are_swept_and_counted_as_lost => Bounds::default();
    ids_are_forgotten_after_the_dedup_time => Bounds { dedup: Duration::from_secs(10), ..Bounds::default() };
    a_name_belongs_to_its_first_identity => Bounds::default();
    a_replaced_identity_loses_everything => Bounds::default();
    a_key_that_hands_over_takes_mail_along_and_leaves_its_powers => Bounds::default();
    numbers_of_prekeys_begin_anew_after_a_rotation => Bounds::default();
    only_a_chain_from_the_key_that_is_held_rotates => Bounds::default();
    an_account_is_deleted_by_its_own_devices_only => Bounds::default();
    a_removed_device_neither_sends_nor_opens_its_mailbox => Bounds::default();
    device_lists_only_move_forward => Bounds::default();
    one_time_prekeys_are_handed_out_once => Bounds::default();
    a_repeated_upload_brings_no_used_key_back => Bounds::default();
    low_keys_are_told_once => Bounds::default();
    tokens_live_until_revoked_or_expired => Bounds::default();
    secrets_are_made_once => Bounds::default();
    fences_rise_with_receivers_only => Bounds::default();
}

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn app() -> AppId {
    AppId::new("acme").unwrap()
}

fn list(user: &str, key: u8, devices: &[u32]) -> DeviceList {
    let entry = |id: &u32| DeviceEntry {
        id: DeviceId::new(*id).unwrap(),
        signing_key: [u8::try_from(100 + id).unwrap(); 65].into(),
        agreement_key: [200; 65].into(),
    };
    DeviceList {
        app: app(),
        user: UserId::new(user).unwrap(),
        user_key: [key; 65].into(),
        version: 1,
        previous: [0; 32],
        devices: devices.iter().map(entry).collect(),
    }
}

fn attach_of(list: DeviceList, device: u32) -> Attach {
    Attach {
        app: app(),
        address: Address::new(list.user.clone(), DeviceId::new(device).unwrap()),
        list_bytes: list.encode().into(),
        list,
        list_signature: [9; 64],
        rotations: None,
        permission: Permission { register: Consent::Allowed, replace: false },
        receive: true,
        fresh_epoch: 77,
    }
}

async fn register(store: &SharedStore, user: &str) -> MailboxId {
    store.attach(attach_of(list(user, 1, &[1]), 1)).await.unwrap().device
}

fn id(number: u64) -> MessageId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    MessageId::from_bytes(bytes)
}

/// A device with its first keys.
fn first(device: MailboxId) -> Holder {
    Holder { device, generation: 0 }
}

/// Message `number` on a lane.
fn message(from: MailboxId, to: MailboxId, number: u64) -> Put {
    Put {
        mailbox: to,
        app: Arc::new(app()),
        sender: from,
        generation: 0,
        from: Arc::new(Address::new(UserId::new("sender").unwrap(), DeviceId::FIRST)),
        msg_id: id(number),
        lane: Lane { epoch: 5, number: NonZeroU64::new(number).unwrap() },
        counter: number,
        counter_mac: None,
        blob: Bytes::from(vec![u8::try_from(number % 256).unwrap(); 512]),
        received_at: NOW,
        expires_at: NOW + Duration::from_secs(3600),
    }
}

async fn put(store: &SharedStore, put: Put) -> Result<Stored, StoreError> {
    let (answer, result) = tokio::sync::oneshot::channel();
    store.put(Arc::new(put), Box::new(move |result| answer.send(result).unwrap()));
    result.await.unwrap()
}

async fn refused(store: &SharedStore, message: Put) -> Refusal {
    match put(store, message).await {
        Err(StoreError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

async fn ack(store: &SharedStore, mailbox: MailboxId, rows: Vec<AckRow>) -> Vec<MessageId> {
    let (answer, result) = tokio::sync::oneshot::channel();
    store.ack(mailbox, rows, Box::new(move |result| answer.send(result).unwrap()));
    result.await.unwrap().unwrap()
}

const ALL: PageLimit = PageLimit { rows: 1000, bytes: usize::MAX };

async fn ids(store: &SharedStore, mailbox: MailboxId) -> Vec<MessageId> {
    store.read(mailbox, 0, (ALL, &[])).await.unwrap().rows.iter().map(|row| row.msg_id).collect()
}

async fn messages_come_back_in_order_until_acked(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    for number in 1..=5 {
        assert_eq!(put(&store, message(alice, bob, number)).await, Ok(Stored::New { seq: number }));
    }
    assert_eq!(store.last_seq(first(bob)).await, Ok(5));
    let page = store.read(bob, 2, (ALL, &[])).await.unwrap();
    assert!(page.complete);
    let row = &page.rows[0];
    assert_eq!((row.seq, row.msg_id, row.sender, row.received_at), (3, id(3), alice, NOW));
    assert_eq!((row.from.user.as_str(), &row.blob[..]), ("sender", &[3; 512][..]));
    let wrong = AckRow { place: Place::Seq(4), msg_id: id(1) };
    let by_seq = AckRow { place: Place::Seq(2), msg_id: id(2) };
    let by_sender = AckRow { place: Place::From(alice), msg_id: id(5) };
    let gone = AckRow { place: Place::Seq(99), msg_id: id(99) };
    assert_eq!(ack(&store, bob, vec![wrong, by_seq, by_sender, gone, by_seq]).await, [id(1)]);
    assert_eq!(ids(&store, bob).await, [id(1), id(3), id(4)]);
    assert_eq!(ack(&store, alice, vec![AckRow { place: Place::Seq(1), msg_id: id(1) }]).await, []);
    assert_eq!(ids(&store, bob).await.len(), 3, "another mailbox's ACK deletes nothing here");
}

async fn an_id_is_accepted_once_for_each_sender(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    let carol = register(&store, "carol").await;
    assert!(put(&store, message(alice, bob, 1)).await.is_ok());
    assert_eq!(put(&store, message(alice, bob, 1)).await, Ok(Stored::Duplicate));
    let changed = Put { blob: vec![0; 512].into(), ..message(alice, bob, 1) };
    assert_eq!(refused(&store, changed).await.code, Code::IdConflict);
    assert_eq!(put(&store, message(carol, bob, 1)).await, Ok(Stored::New { seq: 2 }));
    let by_carol = AckRow { place: Place::From(carol), msg_id: id(1) };
    ack(&store, bob, vec![by_carol]).await;
    let rows = store.read(bob, 0, (ALL, &[])).await.unwrap().rows;
    assert_eq!(rows.iter().map(|row| row.sender).collect::<Vec<_>>(), [alice]);
    ack(&store, bob, vec![AckRow { place: Place::Seq(1), msg_id: id(1) }]).await;
    assert_eq!(put(&store, message(alice, bob, 1)).await, Ok(Stored::Duplicate), "remembered after its ACK");
    let reused =
        Put { lane: message(alice, bob, 2).lane, blob: vec![0; 512].into(), ..message(alice, bob, 1) };
    assert_eq!(refused(&store, reused).await.code, Code::IdConflict, "also with the next lane number");
}

async fn refused_messages_leave_nothing_behind(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    let gap = refused(&store, message(alice, bob, 2)).await;
    assert_eq!((gap.code, gap.expected_lane), (Code::LaneGap, 1));
    assert_eq!(refused(&store, message(alice, MailboxId(999), 1)).await.code, Code::RecipientNotFound);
    assert_eq!(store.last_seq(first(bob)).await, Ok(0));
    assert!(put(&store, message(alice, bob, 1)).await.is_ok());
    assert!(
        put(&store, message(alice, bob, 2)).await.is_ok(),
        "its id was not remembered when it was refused"
    );
    assert_eq!(store.attach(attach_of(list("alice", 1, &[1]), 1)).await.unwrap().highest_counter, 2);
}

async fn the_highest_counter_keeps_the_mac_that_came_with_it(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    let known = async || {
        let attached = store.attach(attach_of(list("alice", 1, &[1]), 1)).await.unwrap();
        (attached.highest_counter, attached.counter_mac)
    };
    assert_eq!(known().await, (0, None));
    let mut number = 0;
    let mut send = async |counter, counter_mac| {
        number += 1;
        let sent = Put { counter, counter_mac, ..message(alice, bob, number) };
        assert!(put(&store, sent).await.is_ok());
    };
    let (five, nine) = (Some([5; 32]), Some([9; 32]));
    send(5, five).await;
    assert_eq!(known().await, (5, five));
    // A lower one changes nothing, nor does the same again.
    send(4, nine).await;
    send(5, nine).await;
    send(5, None).await;
    assert_eq!(known().await, (5, five));
    // One of a client that knows no MAC leaves none beside it, until the same comes with one.
    send(9, None).await;
    assert_eq!(known().await, (9, None));
    send(9, nine).await;
    assert_eq!(known().await, (9, nine));
    // Nobody else's.
    let bob = store.attach(attach_of(list("bob", 1, &[1]), 1)).await.unwrap();
    assert_eq!((bob.highest_counter, bob.counter_mac), (0, None));
}

async fn a_sender_fills_a_share_of_a_mailbox_and_no_more(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    let (carol, dave) = (register(&store, "carol").await, register(&store, "dave").await);
    for number in 1..=2 {
        assert!(put(&store, message(alice, bob, number)).await.is_ok());
    }
    let refusal = refused(&store, message(alice, bob, 3)).await;
    assert_eq!(refusal.code, Code::MailboxFull);
    assert!(refusal.detail.contains("share"), "{}", refusal.detail);
    assert_eq!(put(&store, message(alice, bob, 2)).await, Ok(Stored::Duplicate), "a retry is none the worse");
    // Others are still delivered, and the same sender elsewhere.
    assert!(put(&store, message(carol, bob, 1)).await.is_ok());
    assert!(put(&store, message(alice, dave, 1)).await.is_ok());
    // What is fetched gives room back, to whom it belongs.
    let row = |seq| AckRow { place: Place::Seq(seq), msg_id: id(seq) };
    ack(&store, bob, vec![row(1)]).await;
    assert!(put(&store, message(alice, bob, 3)).await.is_ok());
    assert_eq!(refused(&store, message(alice, bob, 4)).await.code, Code::MailboxFull);
    // So does what expires.
    let swept = store.sweep(NOW + Duration::from_secs(40 * 24 * 3600), 100).await.unwrap();
    assert!(swept.messages > 0);
    assert!(put(&store, message(alice, bob, 4)).await.is_ok());
    // Bytes count as well as messages.
    let large = |sender, number| Put { blob: vec![7; 1_024].into(), ..message(sender, bob, number) };
    assert!(put(&store, large(carol, 2)).await.is_ok());
    assert_eq!(refused(&store, large(carol, 3)).await.code, Code::MailboxFull);
    assert!(put(&store, Put { blob: vec![7; 512].into(), ..message(carol, bob, 3) }).await.is_ok());
}

#[tokio::test]
async fn a_database_of_the_first_schema_keeps_its_mail_and_learns_whose_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.sqlite");
    sqlite::made_by_the_first_version(&path);
    let bounds = Bounds { sender_messages: 3, ..Bounds::default() };
    let store: SharedStore = Arc::new(SqliteStore::open(&path, bounds, StoreMetrics::none()).unwrap());
    let (alice, bob) = (MailboxId(1), MailboxId(2));
    let page = store.read(bob, 0, (ALL, &[])).await.unwrap();
    assert_eq!(
        page.rows.iter().map(|row| (row.seq, row.sender)).collect::<Vec<_>>(),
        [(1, alice), (2, alice)]
    );
    assert!(put(&store, message(alice, bob, 3)).await.is_ok(), "its lane goes on, and one more is its share");
    assert_eq!(refused(&store, message(alice, bob, 4)).await.code, Code::MailboxFull);
}

async fn a_full_mailbox_opens_at_half(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    for number in 1..=4 {
        assert!(put(&store, message(alice, bob, number)).await.is_ok());
    }
    assert_eq!(refused(&store, message(alice, bob, 5)).await.code, Code::MailboxFull);
    let row = |seq| AckRow { place: Place::Seq(seq), msg_id: id(seq) };
    ack(&store, bob, vec![row(1)]).await;
    assert_eq!(refused(&store, message(alice, bob, 5)).await.code, Code::MailboxFull);
    ack(&store, bob, vec![row(2)]).await;
    assert_eq!(put(&store, message(alice, bob, 5)).await, Ok(Stored::New { seq: 5 }));
}

async fn the_monthly_quota_ends_with_the_month(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    assert!(put(&store, message(alice, bob, 1)).await.is_ok());
    assert!(put(&store, message(alice, bob, 2)).await.is_ok());
    assert_eq!(refused(&store, message(alice, bob, 3)).await.code, Code::QuotaExceeded);
    assert_eq!(put(&store, message(alice, bob, 2)).await, Ok(Stored::Duplicate), "a retry costs nothing");
    let later = Put { received_at: NOW + Duration::from_secs(32 * 24 * 3600), ..message(alice, bob, 3) };
    assert!(put(&store, later).await.is_ok());
}

async fn pages_end_at_rows_or_bytes(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    for number in 1..=5 {
        put(&store, message(alice, bob, number)).await.unwrap();
    }
    for (rows, bytes, expected, complete) in [
        (2, usize::MAX, 2, false),
        (5, usize::MAX, 5, true),
        (1000, 3 * 512, 3, false),
        (1000, 5 * 512, 5, true),
        (1000, 1, 1, false),
    ] {
        let page = store.read(bob, 0, (PageLimit { rows, bytes }, &[])).await.unwrap();
        assert_eq!((page.rows.len(), page.complete), (expected, complete), "{rows} {bytes}");
    }
    assert_eq!(store.read(bob, 5, (ALL, &[])).await, Ok(Page { rows: Vec::new(), complete: true }));
    let carol = register(&store, "carol").await;
    put(&store, message(carol, bob, 1)).await.unwrap();
    let without = async |rows, senders: &[MailboxId]| {
        let page = store.read(bob, 0, (PageLimit { rows, ..ALL }, senders)).await.unwrap();
        (page.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), page.complete)
    };
    assert_eq!(without(2, &[alice]).await, (vec![6], true), "what is left out takes no room in the page");
    assert_eq!(without(2, &[carol]).await, (vec![1, 2], false));
    assert_eq!(without(2, &[alice, carol]).await, (vec![], true));
    assert_eq!(
        store.read(MailboxId(999), 0, (ALL, &[])).await,
        Ok(Page { rows: Vec::new(), complete: true })
    );
}

async fn expired_messages_are_swept_and_counted_as_lost(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    let soon = NOW + Duration::from_secs(5);
    put(&store, Put { expires_at: soon, ..message(alice, bob, 1) }).await.unwrap();
    put(&store, message(alice, bob, 2)).await.unwrap();
    assert_eq!(store.sweep(soon - Duration::from_millis(1), 100).await.unwrap().messages, 0);
    assert_eq!(store.sweep(soon, 100).await.unwrap().messages, 1);
    assert_eq!(ids(&store, bob).await, [id(2)]);
    let attached = store.attach(attach_of(list("bob", 1, &[1]), 1)).await.unwrap();
    assert_eq!((attached.lost_seq, attached.last_seq), (1, 2));
    assert_eq!(put(&store, message(alice, bob, 1)).await, Ok(Stored::Duplicate));
}

async fn ids_are_forgotten_after_the_dedup_time(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    let message = Put { expires_at: NOW + Duration::from_secs(3), ..message(alice, bob, 1) };
    put(&store, message.clone()).await.unwrap();
    ack(&store, bob, vec![AckRow { place: Place::Seq(1), msg_id: id(1) }]).await;
    assert_eq!(store.sweep(NOW + Duration::from_secs(9), 100).await.unwrap().ids, 0);
    assert_eq!(put(&store, message.clone()).await, Ok(Stored::Duplicate));
    assert_eq!(store.sweep(NOW + Duration::from_secs(10), 100).await.unwrap().ids, 1);
    let refusal = refused(&store, message).await;
    assert_eq!((refusal.code, refusal.expected_lane), (Code::LaneGap, 2), "its lane number still tells");
}

async fn a_name_belongs_to_its_first_identity(store: SharedStore) {
    let closed = |consent| {
        let mut attach = attach_of(list("alice", 1, &[1]), 1);
        attach.permission.register = consent;
        attach
    };
    let code = |result: Result<Attached, StoreError>| match result {
        Err(StoreError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(store.attach(closed(Consent::NotAsked)).await), Code::RecipientNotFound);
    assert_eq!(code(store.attach(closed(Consent::Closed)).await), Code::RegistrationClosed);
    let first = store.attach(closed(Consent::Allowed)).await.unwrap();
    assert_eq!((first.registration, first.epoch), (Registration::New, 77));
    let again = store.attach(closed(Consent::NotAsked)).await.unwrap();
    assert_eq!((again.registration, again.device), (Registration::Known, first.device));
    assert_eq!(code(store.attach(attach_of(list("alice", 2, &[1]), 1)).await), Code::UserIdTaken);
    let address = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    assert_eq!(store.resolve(&app(), &address).await, Ok(Some(first.device)));
    assert_eq!(store.resolve(&AppId::new("other").unwrap(), &address).await, Ok(None));
}

async fn a_replaced_identity_loses_everything(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    store.upload_keys(first(bob), upload(0..3)).await.unwrap();
    put(&store, message(alice, bob, 1)).await.unwrap();
    let mut attach = attach_of(list("bob", 2, &[1]), 1);
    attach.permission.replace = true;
    let replaced = store.attach(attach).await.unwrap();
    assert_eq!((replaced.registration, &replaced.removed[..]), (Registration::Replaced, &[bob][..]));
    assert_ne!(replaced.device, bob);
    assert_eq!(replaced.keys, KeyCounts::default());
    assert_eq!(
        (store.is_current(first(bob)).await, store.is_current(first(replaced.device)).await),
        (Ok(false), Ok(true))
    );
    assert_eq!(refused(&store, message(alice, bob, 2)).await.code, Code::RecipientNotFound);
    assert_eq!(ids(&store, replaced.device).await, []);
    assert_eq!(put(&store, message(alice, replaced.device, 1)).await, Ok(Stored::New { seq: 1 }));
}

/// A log-in by the key that `old` hands over to.
fn rotated(old: u8, new: u8, devices: &[u32]) -> Attach {
    let step = Rotation { time: NOW, new_key: [new; 65].into(), by_old: [1; 64], by_new: [2; 64] };
    let chain = Rotations::start([old; 65].into(), step);
    let bytes = chain.encode().into();
    let mut list = list("bob", new, devices);
    list.devices.iter_mut().for_each(|entry| entry.signing_key = [150 + new; 65].into());
    Attach { rotations: Some((chain, bytes)), ..attach_of(list, devices[0]) }
}

async fn a_key_that_hands_over_takes_mail_along_and_leaves_its_powers(store: SharedStore) {
    let code = |error: StoreError| match error {
        StoreError::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    };
    let alice = register(&store, "alice").await;
    let old = store.attach(attach_of(list("bob", 1, &[1, 2]), 1)).await.unwrap();
    let bob = old.device;
    let second = store.attach(attach_of(list("bob", 1, &[1, 2]), 2)).await.unwrap().device;
    store.upload_keys(first(bob), upload(0..3)).await.unwrap();
    put(&store, message(alice, bob, 1)).await.unwrap();
    let mac = Some([7; 32]);
    put(&store, Put { counter_mac: mac, ..message(bob, alice, 1) }).await.unwrap();
    let new = store.attach(rotated(1, 2, &[1])).await.unwrap();
    assert_eq!((new.device, new.registration), (bob, Registration::Rotated));
    assert_eq!((new.generation, new.epoch, new.last_seq), (old.generation + 1, old.epoch, old.last_seq + 1));
    assert_eq!((new.keys, new.highest_counter, new.counter_mac), (KeyCounts::default(), 0, None));
    assert_eq!(new.removed.iter().copied().collect::<HashSet<_>>(), HashSet::from([bob, second]));
    assert_eq!(ids(&store, bob).await, [id(1)], "mail stays");
    // Whoever proved the old keys before does nothing with it any more.
    assert_eq!(
        (store.is_current(first(bob)).await, store.is_current(new.holder()).await),
        (Ok(false), Ok(true))
    );
    assert_eq!(store.is_current(first(second)).await, Ok(false));
    assert_eq!(code(store.last_seq(first(bob)).await.unwrap_err()), Code::LoggedOut);
    assert_eq!(code(store.upload_keys(first(bob), upload(5..6)).await.unwrap_err()), Code::LoggedOut);
    assert_eq!(code(store.delete_account(first(bob)).await.unwrap_err()), Code::LoggedOut);
    assert_eq!(refused(&store, message(bob, alice, 2)).await.code, Code::LoggedOut);
    assert_eq!(
        store.attach(attach_of(list("bob", 1, &[1]), 1)).await.map_err(code),
        Err(Code::IdentityHandedOver)
    );
    // The new ones do.
    let sent = Put { generation: new.generation, counter: 1, ..message(bob, alice, 2) };
    assert!(put(&store, sent).await.is_ok(), "its lanes go on");
    assert_eq!(store.last_seq(new.holder()).await, Ok(1));
    let again = store.attach(Attach { rotations: None, ..rotated(1, 2, &[1]) }).await.unwrap();
    assert_eq!((again.registration, again.holder()), (Registration::Known, new.holder()));
    assert_eq!((again.highest_counter, again.counter_mac), (1, None));
    let third = store.attach(rotated(2, 3, &[1])).await.unwrap();
    assert_eq!(third.generation, new.generation + 1);
    assert_eq!(store.is_current(new.holder()).await, Ok(false));
    let take = Take { devices: Vec::new(), devices_only: true, one_time: false };
    let found = store.bundles(&app(), &UserId::new("bob").unwrap(), take).await.unwrap().unwrap();
    assert_eq!(found.rotations, rotated(2, 3, &[1]).rotations.unwrap().1);
    assert_eq!(store.delete_account(third.holder()).await, Ok(vec![bob]));
}

async fn numbers_of_prekeys_begin_anew_after_a_rotation(store: SharedStore) {
    let bob = register(&store, "bob").await;
    // Who has the old key uses the numbers up.
    store.upload_keys(first(bob), upload(u32::MAX - 1..u32::MAX)).await.unwrap();
    let new = store.attach(rotated(1, 2, &[1])).await.unwrap();
    let counts = store.upload_keys(new.holder(), upload(0..5)).await.unwrap();
    assert_eq!((counts.one_time, counts.kem_one_time), (5, 5));
    assert_eq!(store.upload_keys(new.holder(), upload(0..5)).await.unwrap().one_time, 5, "and count again");
}

async fn only_a_chain_from_the_key_that_is_held_rotates(store: SharedStore) {
    let refused = |result: Result<Attached, StoreError>| match result {
        Err(StoreError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    let bob = register(&store, "bob").await;
    assert_eq!(refused(store.attach(rotated(9, 2, &[1])).await), Code::UserIdTaken);
    store.attach(rotated(1, 2, &[1])).await.unwrap();
    assert_eq!(refused(store.attach(rotated(1, 3, &[1])).await), Code::IdentityHandedOver, "a fork");
    assert_eq!(
        refused(store.attach(rotated(9, 3, &[1])).await),
        Code::UserIdTaken,
        "a stranger is told nothing"
    );
    let mut longer = rotated(1, 2, &[1]).rotations.unwrap().0;
    longer.push(rotated(2, 3, &[1]).rotations.unwrap().0.steps()[0].clone());
    let rotations = Some((longer.clone(), longer.encode().into()));
    let last = store.attach(Attach { rotations, ..rotated(2, 3, &[1]) }).await.unwrap();
    assert_eq!((last.registration, last.device, last.generation), (Registration::Rotated, bob, 2));
}

async fn an_account_is_deleted_by_its_own_devices_only(store: SharedStore) {
    let code = |result: Result<Vec<MailboxId>, StoreError>| match result {
        Err(StoreError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    let (alice, old) = (register(&store, "alice").await, register(&store, "bob").await);
    let mut attach = attach_of(list("bob", 2, &[1, 2]), 1);
    attach.permission.replace = true;
    let one = store.attach(attach).await.unwrap().device;
    let two = store.attach(attach_of(list("bob", 2, &[1, 2]), 2)).await.unwrap().device;
    assert_eq!(code(store.delete_account(first(old)).await), Code::LoggedOut);
    assert_eq!(store.is_current(first(one)).await, Ok(true), "the name's new owner keeps the account");
    assert_eq!(store.delete_account(first(two)).await.map(HashSet::from_iter), Ok(HashSet::from([one, two])));
    assert_eq!(
        (store.is_current(first(one)).await, store.is_current(first(alice)).await),
        (Ok(false), Ok(true))
    );
    assert_eq!(store.user_state(&app(), &UserId::new("bob").unwrap()).await, Ok(Registered::default()));
    assert_eq!(code(store.delete_account(first(one)).await), Code::LoggedOut);
}

async fn a_removed_device_neither_sends_nor_opens_its_mailbox(store: SharedStore) {
    let (alice, bob) = (register(&store, "alice").await, register(&store, "bob").await);
    assert!(put(&store, message(alice, bob, 1)).await.is_ok());
    store.delete_account(first(alice)).await.unwrap();
    assert_eq!(refused(&store, message(alice, bob, 2)).await.code, Code::LoggedOut);
    assert_eq!(ids(&store, bob).await, [id(1)]);
    let opened = store.last_seq(first(alice)).await;
    assert!(matches!(opened, Err(StoreError::Refused(refusal)) if refusal.code == Code::LoggedOut));
}

async fn device_lists_only_move_forward(store: SharedStore) {
    let first = list("alice", 1, &[1, 2]);
    let one = store.attach(attach_of(first.clone(), 1)).await.unwrap().device;
    let next = DeviceList { version: 2, previous: sha256(&[&first.encode()]), ..list("alice", 1, &[1]) };
    let fork = DeviceList { previous: [1; 32], ..next.clone() };
    let code = |result: Result<Attached, StoreError>| match result {
        Err(StoreError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(store.attach(attach_of(fork, 1)).await), Code::InvalidDeviceList);
    let two = store.attach(attach_of(first.clone(), 2)).await.unwrap().device;
    let moved = store.attach(attach_of(next, 1)).await.unwrap();
    assert_eq!((moved.device, &moved.removed[..]), (one, &[two][..]));
    assert_eq!(code(store.attach(attach_of(first.clone(), 2)).await), Code::UnknownDevice);
    assert_eq!(store.attach(attach_of(first, 1)).await.unwrap().device, one, "still listed in the newest");
    let altered = DeviceList { version: 2, previous: [0; 32], ..list("alice", 1, &[1, 3]) };
    assert_eq!(code(store.attach(attach_of(altered, 3)).await), Code::InvalidDeviceList);
}

fn upload(ids: core::ops::Range<u32>) -> UploadKeys {
    let kem = |id| KemPrekey { id, key: vec![7; 1184].into(), created_at: NOW, signature: [8; 64] };
    UploadKeys {
        request_id: NonZeroU64::MIN,
        signed_prekey: Some(SignedPrekey { id: 0, key: [4; 65].into(), created_at: NOW, signature: [5; 64] }),
        kem_last_resort: Some(kem(1_000_000)),
        one_time: ids.clone().map(|id| OneTimePrekey { id, key: [6; 65].into() }).collect(),
        kem_one_time: ids.map(kem).collect(),
        replace_one_time: false,
    }
}

async fn take(store: &SharedStore, user: &str, one_time: bool) -> UserBundles {
    let take = Take { devices: Vec::new(), devices_only: false, one_time };
    store.bundles(&app(), &UserId::new(user).unwrap(), take).await.unwrap().unwrap()
}

async fn one_time_prekeys_are_handed_out_once(store: SharedStore) {
    let bob = register(&store, "bob").await;
    assert!(take(&store, "bob", true).await.bundles.is_empty(), "no keys, no bundle");
    store.upload_keys(first(bob), upload(0..30)).await.unwrap();
    let takers: Vec<_> = (0..60)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { take(&store, "bob", true).await.bundles.remove(0) })
        })
        .collect();
    let (mut ec, mut kem, mut without) = (HashSet::new(), HashSet::new(), 0);
    for taker in takers {
        let bundle = taker.await.unwrap();
        match bundle.one_time {
            Some(key) => assert!(ec.insert(key.id)),
            None => without += 1,
        }
        assert_eq!(bundle.kem_is_last_resort, bundle.kem.id == 1_000_000);
        if !bundle.kem_is_last_resort {
            assert!(kem.insert(bundle.kem.id));
        }
    }
    assert_eq!((ec.len(), kem.len(), without), (30, 30, 30));
    store.upload_keys(first(bob), upload(100..101)).await.unwrap();
    assert!(take(&store, "bob", false).await.bundles[0].one_time.is_none(), "not asked for");
    assert!(take(&store, "bob", true).await.bundles[0].one_time.is_some());
}

async fn a_repeated_upload_brings_no_used_key_back(store: SharedStore) {
    let bob = register(&store, "bob").await;
    store.upload_keys(first(bob), upload(0..5)).await.unwrap();
    assert_eq!(take(&store, "bob", true).await.bundles[0].one_time.as_ref().unwrap().id, 0);
    let counts = store.upload_keys(first(bob), upload(0..5)).await.unwrap();
    assert_eq!((counts.one_time, counts.kem_one_time, counts.signed_prekey_id), (4, 4, Some(0)));
    let replaced = UploadKeys { replace_one_time: true, ..upload(3..6) };
    assert_eq!(store.upload_keys(first(bob), replaced).await.unwrap().one_time, 1, "only number 5 is new");
    let many = store.upload_keys(first(bob), upload(100..400)).await.unwrap();
    assert_eq!((many.one_time, many.kem_one_time), (ONE_TIME_KEYS, ONE_TIME_KEYS));
    assert!(store.upload_keys(first(MailboxId(999)), upload(0..1)).await.is_err());
}

async fn low_keys_are_told_once(store: SharedStore) {
    let bob = register(&store, "bob").await;
    store.upload_keys(first(bob), upload(0..KEYS_LOW + 1)).await.unwrap();
    assert!(take(&store, "bob", true).await.low.is_empty());
    let low = take(&store, "bob", true).await.low;
    assert_eq!(
        low.iter().map(|(device, keys)| (*device, keys.one_time)).collect::<Vec<_>>(),
        [(bob, KEYS_LOW - 1)]
    );
    assert!(take(&store, "bob", true).await.low.is_empty());
}

async fn tokens_live_until_revoked_or_expired(store: SharedStore) {
    let token = |id: &str, hash: u8| TokenRecord {
        id: id.to_owned(),
        hash: [hash; 32],
        app: app(),
        label: "label".to_owned(),
        created_at: NOW,
        expires_at: Some(NOW + Duration::from_secs(10)),
        revoked_at: None,
    };
    store.put_token(token("a", 1)).await.unwrap();
    store.put_token(token("b", 2)).await.unwrap();
    assert_eq!(store.token(&[1; 32]).await, Ok(Some(token("a", 1))));
    assert_eq!(store.token(&[3; 32]).await, Ok(None));
    assert_eq!(store.tokens().await.unwrap().len(), 2, "two live at once");
    assert_eq!(store.revoke_token("a", NOW).await, Ok(true));
    assert_eq!(store.revoke_token("c", NOW).await, Ok(false));
    let (a, b) =
        (store.token(&[1; 32]).await.unwrap().unwrap(), store.token(&[2; 32]).await.unwrap().unwrap());
    assert!(!a.is_valid(NOW) && b.is_valid(NOW) && !b.is_valid(NOW + Duration::from_secs(10)));
}

async fn secrets_are_made_once(store: SharedStore) {
    assert_eq!(store.secret("one", [1; 32]).await, Ok([1; 32]));
    assert_eq!(store.secret("one", [2; 32]).await, Ok([1; 32]));
    assert_eq!(store.secret("two", [2; 32]).await, Ok([2; 32]));
    assert_eq!(store.check().await, Ok(()));
}

async fn fences_rise_with_receivers_only(store: SharedStore) {
    let attach = |receive| Attach { receive, ..attach_of(list("bob", 1, &[1]), 1) };
    let mut fences = Vec::new();
    for receive in [true, false, true] {
        fences.push(store.attach(attach(receive)).await.unwrap().fence);
    }
    assert_eq!(fences, [1, 1, 2]);
}
