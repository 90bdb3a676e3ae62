//! Frames: what is written reads back, what is not exactly a frame is refused, and each bound holds at n and n+1.

#![cfg(test)]

use core::num::NonZeroU64;
use core::time::Duration;

use proptest::prelude::*;
use prost::Message as _;
use prost::bytes::Bytes;
use stvor_base::{Address, AppId, DeviceId, KeyBytes, MessageId, Suite, Timestamp, UserId};
use stvor_wire::client::*;
use stvor_wire::keys::*;
use stvor_wire::server::*;
use stvor_wire::{ClientMessage, Code, FrameError, Phase, ServerMessage, frame, limits, proto};

fn user() -> impl Strategy<Value = UserId> {
    "[a-z@.]{1,40}".prop_map(|name| UserId::new(&name).unwrap())
}

fn address() -> impl Strategy<Value = Address> {
    (user(), 1..=u32::MAX).prop_map(|(user, device)| Address::new(user, DeviceId::new(device).unwrap()))
}

fn id() -> impl Strategy<Value = MessageId> {
    any::<[u8; 16]>().prop_map(MessageId::from_bytes)
}

fn request() -> impl Strategy<Value = NonZeroU64> {
    (1..=u64::MAX).prop_map(|id| NonZeroU64::new(id).unwrap())
}

fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..=most).prop_map(Bytes::from)
}

fn array64() -> impl Strategy<Value = [u8; 64]> {
    prop::collection::vec(any::<u8>(), 64).prop_map(|bytes| bytes.try_into().unwrap())
}

fn ec() -> impl Strategy<Value = KeyBytes> {
    prop::sample::select(&Suite::ALL)
        .prop_flat_map(|suite| prop::collection::vec(any::<u8>(), suite.key_bytes()))
        .prop_map(|bytes| bytes.as_slice().try_into().unwrap())
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp::from_millis)
}

fn signed() -> impl Strategy<Value = SignedPrekey> {
    (any::<u32>(), ec(), time(), array64()).prop_map(|(id, key, created_at, signature)| SignedPrekey {
        id,
        key,
        created_at,
        signature,
    })
}

fn kem() -> impl Strategy<Value = KemPrekey> {
    (any::<u32>(), any::<u8>(), time(), array64()).prop_map(|(id, byte, created_at, signature)| KemPrekey {
        id,
        key: vec![byte; limits::KEM_KEY_BYTES].into(),
        created_at,
        signature,
    })
}

fn one_time() -> impl Strategy<Value = OneTimePrekey> {
    (any::<u32>(), ec()).prop_map(|(id, key)| OneTimePrekey { id, key })
}

fn recipient(kept: bool) -> impl Strategy<Value = Recipient> {
    (address(), id(), any::<u64>(), request()).prop_map(move |(to, msg_id, epoch, number)| {
        let lane = kept.then_some(Lane { epoch, number });
        Recipient { to, msg_id, lane }
    })
}

fn acks() -> impl Strategy<Value = Ack> {
    let one = |least: u64| (least..=u64::MAX, id()).prop_map(|(seq, msg_id)| AckOne { seq, msg_id });
    (any::<u64>(), prop::option::of(one(1)), prop::collection::vec(one(0), 0..8))
        .prop_map(|(mailbox_epoch, up_to, single)| Ack { mailbox_epoch, up_to, single })
}

fn client_message() -> impl Strategy<Value = ClientMessage> {
    let hello =
        (any::<u32>(), any::<bool>(), "[!-~]{1,80}", address()).prop_map(|(version, app, text, address)| {
            let credential = if app { Credential::AppToken(text) } else { Credential::ClientToken(text) };
            let capabilities = vec!["one".to_owned()];
            ClientMessage::Hello(Hello { protocol_version: version, credential, address, capabilities })
        });
    let auth = (bytes(400), array64(), time(), array64(), any::<[bool; 3]>(), bytes(256)).prop_map(
        |(
            device_list,
            device_list_signature,
            time,
            signature,
            [receive, register, replace],
            resume_cursor,
        )| {
            ClientMessage::Auth(Auth {
                rotations: device_list.slice(..device_list.len() / 2),
                device_list,
                device_list_signature,
                origin: "wss://relay.example".to_owned(),
                time,
                signature,
                mode: if receive { Mode::Receive } else { Mode::SendOnly },
                resume_cursor,
                register,
                replace_identity: replace,
                store_mark: replace.then_some([7; limits::STORE_MARK_BYTES]),
            })
        },
    );
    let send = any::<bool>().prop_flat_map(|kept| {
        (recipient(kept), bytes(600), 1..=u64::MAX, any::<u32>()).prop_map(
            |(recipient, blob, counter, ttl)| {
                let counter_mac = (ttl % 2 == 0).then_some([counter as u8; limits::COUNTER_MAC_BYTES]);
                let ttl = Duration::from_millis(ttl.into());
                ClientMessage::Send(Send { recipient, blob, counter, counter_mac, ttl })
            },
        )
    });
    let many = (prop::collection::vec(recipient(true), 1..5), bytes(600), 1..=u64::MAX).prop_map(
        |(recipients, blob, counter)| {
            let counter_mac = (counter % 2 == 0).then_some([7; limits::COUNTER_MAC_BYTES]);
            ClientMessage::SendMany(SendMany { recipients, blob, counter, counter_mac, ttl: Duration::ZERO })
        },
    );
    let upload = (
        request(),
        prop::option::of(signed()),
        prop::option::of(kem()),
        prop::collection::vec(one_time(), 0..4),
        prop::collection::vec(kem(), 0..3),
        any::<bool>(),
    )
        .prop_map(
            |(request_id, signed_prekey, kem_last_resort, one_time, kem_one_time, replace_one_time)| {
                ClientMessage::UploadKeys(UploadKeys {
                    request_id,
                    signed_prekey,
                    kem_last_resort,
                    one_time,
                    kem_one_time,
                    replace_one_time,
                })
            },
        );
    let only = any::<(bool, bool)>();
    let fetch = (request(), user(), 0..=limits::MAX_WAIT_MS, only, prop::collection::vec(1..9_u32, 0..4))
        .prop_map(|(request_id, user, wait, (devices_only, without_one_time), devices)| {
            ClientMessage::FetchBundle(FetchBundle {
                request_id,
                user,
                wait: Duration::from_millis(wait.into()),
                devices_only,
                without_one_time,
                devices: devices.into_iter().map(|id| DeviceId::new(id).unwrap()).collect(),
            })
        });
    prop_oneof![
        hello,
        auth,
        send,
        many,
        acks().prop_map(ClientMessage::Ack),
        any::<(u32, u32)>().prop_map(|(window_messages, window_bytes)| {
            ClientMessage::Credit(Credit { window_messages, window_bytes })
        }),
        prop::collection::vec(id(), 1..=limits::MAX_HELD)
            .prop_map(|msg_ids| ClientMessage::Hold(Hold { msg_ids })),
        any::<u64>().prop_map(|nonce| ClientMessage::Ping { nonce }),
        any::<u64>().prop_map(|nonce| ClientMessage::Pong { nonce }),
        upload,
        fetch,
        (request(), user()).prop_map(|(request_id, user)| ClientMessage::UserStatus { request_id, user }),
        request().prop_map(|request_id| ClientMessage::DeleteAccount { request_id }),
    ]
}

fn counts() -> impl Strategy<Value = KeyCounts> {
    any::<(u32, u32, Option<u32>, Option<u32>)>().prop_map(
        |(one_time, kem_one_time, signed_prekey_id, kem_last_resort_id)| KeyCounts {
            one_time,
            kem_one_time,
            signed_prekey_id,
            kem_last_resort_id,
        },
    )
}

fn code() -> impl Strategy<Value = Code> {
    prop::sample::select(Code::ALL.to_vec())
}

fn ready() -> impl Strategy<Value = ServerMessage> {
    (any::<[u64; 2]>(), counts(), any::<[u32; 5]>(), any::<[u32; 2]>(), bytes(256)).prop_map(
        |([mailbox_epoch, highest_counter], keys, sizes, spans, resume_cursor)| {
            ServerMessage::Ready(Ready {
                mailbox_epoch,
                resumed: Resumed::Gap,
                registration: Registration::New,
                highest_counter,
                lost_seq: highest_counter / 3,
                counter_mac: (highest_counter % 2 == 0).then_some([9; limits::COUNTER_MAC_BYTES]),
                keys,
                limits: Limits {
                    max_frame_bytes: sizes[0],
                    max_blob_bytes: sizes[1],
                    window_messages: sizes[2],
                    window_bytes: sizes[3],
                    retention: Duration::from_millis(spans[0].into()),
                    dedup: Duration::from_millis(spans[1].into()),
                    max_recipients: sizes[4],
                },
                resume_cursor,
                heartbeat: Duration::from_millis(27_500),
            })
        },
    )
}

fn server_message() -> impl Strategy<Value = ServerMessage> {
    let challenge =
        (any::<[u8; 32]>(), "[a-z]{1,64}", time(), any::<bool>()).prop_map(|(nonce, app, time, dev)| {
            ServerMessage::Challenge(Challenge {
                nonce,
                app: AppId::new(&app).unwrap(),
                server_time: time,
                server_version: "3.6.0".to_owned(),
                protocol_version: 1,
                development: dev,
                capabilities: Vec::new(),
            })
        });
    let nack = (prop_oneof![id().prop_map(Subject::Message), request().prop_map(Subject::Request)], code())
        .prop_map(|(subject, code)| {
            ServerMessage::Nack(Nack {
                subject,
                code,
                detail: "why".to_owned(),
                retry_after: Duration::from_millis(5),
                expected_lane: 7,
            })
        });
    let deliver = (address(), any::<[u64; 2]>(), id(), bytes(600), time()).prop_map(
        |(from, [mailbox_epoch, seq], msg_id, blob, received_at)| {
            let ephemeral = seq == 0;
            ServerMessage::Deliver(Deliver { from, mailbox_epoch, seq, msg_id, blob, received_at, ephemeral })
        },
    );
    let bundle = (signed(), prop::option::of(one_time()), kem(), any::<bool>()).prop_map(
        |(signed_prekey, one_time, kem, kem_is_last_resort)| DeviceBundle {
            device: DeviceId::FIRST,
            signed_prekey,
            one_time,
            kem,
            kem_is_last_resort,
        },
    );
    let bundles = (request(), user(), bytes(400), array64(), prop::collection::vec(bundle, 0..3)).prop_map(
        |(request_id, user, device_list, device_list_signature, bundles)| {
            ServerMessage::Bundles(Bundles {
                request_id,
                user,
                rotations: device_list.slice(..device_list.len() / 2),
                device_list,
                device_list_signature,
                bundles,
            })
        },
    );
    let state = (request(), user(), any::<[bool; 3]>()).prop_map(
        |(request_id, user, [registered, online, has_keys])| {
            ServerMessage::UserState(UserState { request_id, user, registered, online, has_keys })
        },
    );
    prop_oneof![
        challenge,
        ready(),
        id().prop_map(|msg_id| ServerMessage::Accepted { msg_id, acceptance: Acceptance::Durable }),
        nack,
        deliver,
        (any::<u64>(), bytes(256))
            .prop_map(|(nonce, resume_cursor)| ServerMessage::Ping { nonce, resume_cursor }),
        any::<u64>().prop_map(|nonce| ServerMessage::Pong { nonce }),
        (request(), counts()).prop_map(|(request_id, keys)| ServerMessage::KeysUploaded { request_id, keys }),
        bundles,
        state,
        request().prop_map(|request_id| ServerMessage::Done { request_id }),
        counts().prop_map(|keys| ServerMessage::KeysLow { keys }),
        Just(ServerMessage::CloneSeen),
        bytes(256).prop_map(|resume_cursor| ServerMessage::Drain(Drain {
            reconnect_after: Duration::from_millis(1),
            spread: Duration::from_secs(60),
            resume_cursor,
        })),
        code().prop_map(|code| ServerMessage::End(End {
            code,
            detail: "bye".to_owned(),
            retry_after: Duration::ZERO
        })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_a_client_says_reads_back(message in client_message()) {
        prop_assert_eq!(frame::decode_client(frame::encode_client(&message), Phase::LoggedIn), Ok(message));
    }

    #[test]
    fn what_a_relay_says_reads_back(message in server_message()) {
        prop_assert_eq!(frame::decode_server(frame::encode_server(&message), Phase::LoggedIn), Ok(message));
    }

    #[test]
    fn no_cut_or_extended_frame_reads_as_one(message in client_message(), at in any::<prop::sample::Index>()) {
        let bytes = frame::encode_client(&message);
        prop_assert!(frame::decode_client(bytes.slice(..at.index(bytes.len())), Phase::LoggedIn).is_err());
        let extended = [&bytes[..], &[0]].concat();
        prop_assert!(frame::decode_client(extended, Phase::LoggedIn).is_err());
    }

    #[test]
    fn noise_is_refused_or_read_without_panic(noise in bytes(300)) {
        let _ = frame::decode_client(noise.clone(), Phase::LoggedIn);
        let _ = frame::decode_server(noise, Phase::LoggedIn);
    }
}

fn send() -> proto::Send {
    proto::Send {
        to: Some(proto::Address { user: "bob".to_owned(), device: 1 }),
        msg_id: vec![1; 16].into(),
        blob: vec![0; 512].into(),
        lane_epoch: 1,
        lane: 1,
        counter: 1,
        ephemeral: false,
        ttl_ms: 0,
        counter_mac: Bytes::new(),
    }
}

fn read(body: proto::client_frame::Body) -> Result<ClientMessage, FrameError> {
    frame::decode_client(proto::ClientFrame { body: Some(body) }.encode_to_vec(), Phase::LoggedIn)
}

fn sent(change: impl FnOnce(&mut proto::Send)) -> Result<ClientMessage, FrameError> {
    let mut send = send();
    change(&mut send);
    read(proto::client_frame::Body::Send(send))
}

#[test]
fn a_send_is_refused_for_each_field_out_of_range() {
    assert!(sent(|_| {}).is_ok());
    let field = |name| Err(FrameError::Field(name));
    assert_eq!(sent(|send| send.to = None), field("address"));
    assert_eq!(sent(|send| send.to.as_mut().unwrap().device = 0), field("device"));
    assert_eq!(sent(|send| send.to.as_mut().unwrap().user = "cafe\u{301}".to_owned()), field("user"));
    assert_eq!(sent(|send| send.msg_id = vec![1; 15].into()), field("msg_id"));
    assert_eq!(sent(|send| send.lane = 0), field("lane"));
    assert_eq!(sent(|send| send.ephemeral = true), field("lane"));
    assert_eq!(sent(|send| send.counter = 0), field("counter"));
    assert!(sent(|send| send.counter_mac = vec![1; limits::COUNTER_MAC_BYTES].into()).is_ok());
    for length in [1, limits::COUNTER_MAC_BYTES - 1, limits::COUNTER_MAC_BYTES + 1] {
        assert_eq!(sent(|send| send.counter_mac = vec![1; length].into()), field("counter_mac"), "{length}");
    }
    assert!(sent(|send| send.blob = vec![0; limits::MAX_BLOB_BYTES].into()).is_ok());
    assert_eq!(sent(|send| send.blob = vec![0; limits::MAX_BLOB_BYTES + 1].into()), field("blob"));
}

#[test]
fn lists_hold_their_limit_and_not_one_more() {
    let many = |count: usize| {
        let recipient = proto::Recipient {
            to: Some(proto::Address { user: "b".to_owned(), device: 1 }),
            msg_id: vec![1; 16].into(),
            lane_epoch: 1,
            lane: 1,
        };
        let (counter, blob) = (1, Bytes::new());
        let many =
            proto::SendMany { blob, recipients: vec![recipient; count], counter, ..Default::default() };
        read(proto::client_frame::Body::SendMany(many))
    };
    assert!(many(limits::MAX_RECIPIENTS).is_ok());
    assert!(many(limits::MAX_RECIPIENTS + 1).is_err() && many(0).is_err());
    let acks = |count: usize| {
        let one = proto::AckOne { seq: 1, msg_id: vec![1; 16].into() };
        let ack = proto::Ack { mailbox_epoch: 1, up_to: None, single: vec![one; count] };
        read(proto::client_frame::Body::Ack(ack))
    };
    assert!(acks(limits::MAX_SINGLE_ACKS).is_ok() && acks(limits::MAX_SINGLE_ACKS + 1).is_err());
    let keys = |ec: usize, kem: usize| {
        let one_time = vec![proto::OneTimePrekey { id: 1, key: vec![1; 65].into() }; ec];
        let (key, signature) = (vec![1; 1184].into(), vec![1; 64].into());
        let kem_one_time = vec![proto::KemPrekey { id: 1, key, created_at: 1, signature }; kem];
        let upload = proto::UploadKeys { request_id: 1, one_time, kem_one_time, ..Default::default() };
        read(proto::client_frame::Body::UploadKeys(upload))
    };
    assert!(
        keys(limits::MAX_ONE_TIME_PER_UPLOAD, limits::MAX_KEM_PER_UPLOAD).is_ok(),
        "a full upload fits a frame"
    );
    assert!(keys(limits::MAX_ONE_TIME_PER_UPLOAD + 1, 0).is_err());
    assert!(keys(0, limits::MAX_KEM_PER_UPLOAD + 1).is_err());
}

#[test]
fn the_largest_blob_with_the_most_and_longest_recipients_fits_a_frame() {
    let to = Address::new(UserId::new(&"x".repeat(256)).unwrap(), DeviceId::new(u32::MAX).unwrap());
    let lane = Some(Lane { epoch: u64::MAX, number: NonZeroU64::MAX });
    let recipient = Recipient { to, msg_id: MessageId::from_bytes([0xff; 16]), lane };
    let many = SendMany {
        recipients: vec![recipient; limits::MAX_RECIPIENTS],
        blob: vec![0; limits::MAX_BLOB_BYTES].into(),
        counter: u64::MAX,
        counter_mac: Some([0xff; limits::COUNTER_MAC_BYTES]),
        ttl: Duration::from_millis(u64::MAX),
    };
    let bytes = frame::encode_client(&ClientMessage::SendMany(many.clone()));
    assert_eq!(frame::decode_client(bytes, Phase::LoggedIn), Ok(ClientMessage::SendMany(many)));
}

#[test]
fn the_longest_log_in_fits_the_small_cap() {
    let auth = Auth {
        device_list: vec![0; limits::MAX_DEVICE_LIST_BYTES].into(),
        device_list_signature: [0xff; 64],
        origin: "x".repeat(limits::MAX_ORIGIN_BYTES),
        time: Timestamp::from_millis(u64::MAX),
        signature: [0xff; 64],
        mode: Mode::SendOnly,
        resume_cursor: vec![0; limits::MAX_CURSOR_BYTES].into(),
        register: true,
        replace_identity: true,
        store_mark: Some([0xff; limits::STORE_MARK_BYTES]),
        rotations: vec![0; limits::MAX_ROTATIONS_BYTES].into(),
    };
    let bytes = frame::encode_client(&ClientMessage::Auth(auth.clone()));
    assert!(bytes.len() <= limits::MAX_FRAME_BEFORE_AUTH, "{}", bytes.len());
    assert_eq!(frame::decode_client(bytes, Phase::LoggingIn), Ok(ClientMessage::Auth(auth.clone())));
    let long = Auth { rotations: vec![0; limits::MAX_ROTATIONS_BYTES + 1].into(), ..auth };
    let bytes = frame::encode_client(&ClientMessage::Auth(long));
    assert_eq!(frame::decode_client(bytes, Phase::LoggingIn), Err(FrameError::Field("rotations")));
    let hello = Hello {
        protocol_version: u32::MAX,
        credential: Credential::ClientToken("x".repeat(limits::MAX_CLIENT_TOKEN_BYTES)),
        address: Address::new(UserId::new(&"x".repeat(256)).unwrap(), DeviceId::new(u32::MAX).unwrap()),
        capabilities: vec!["x".repeat(limits::MAX_CAPABILITY_BYTES); limits::MAX_CAPABILITIES],
    };
    let bytes = frame::encode_client(&ClientMessage::Hello(hello));
    assert!(bytes.len() <= limits::MAX_FRAME_BEFORE_AUTH, "{}", bytes.len());
}

#[test]
fn a_frame_is_bounded_in_each_phase_to_the_byte() {
    for phase in [Phase::LoggingIn, Phase::LoggedIn] {
        let limit = phase.max_frame();
        // Noise within the cap is looked at; one byte more is not.
        assert!(!matches!(frame::decode_client(vec![0xff; limit], phase), Err(FrameError::TooLarge { .. })));
        let expected = FrameError::TooLarge { length: limit + 1, limit };
        assert_eq!(frame::decode_client(vec![0xff; limit + 1], phase), Err(expected));
        assert_eq!(expected.wire_code(), Code::FrameTooLarge);
    }
}

#[test]
fn a_hold_names_one_message_to_as_many_as_there_may_be() {
    let hold = |count: usize| {
        let hold = Hold { msg_ids: vec![MessageId::from_bytes([7; 16]); count] };
        frame::decode_client(frame::encode_client(&ClientMessage::Hold(hold)), Phase::LoggedIn)
    };
    assert!(hold(1).is_ok() && hold(limits::MAX_HELD).is_ok());
    assert_eq!(hold(0), Err(FrameError::Field("msg_ids")));
    assert_eq!(hold(limits::MAX_HELD + 1), Err(FrameError::Field("msg_ids")));
}

#[test]
fn a_frame_has_exactly_one_known_body() {
    let ping = frame::encode_client(&ClientMessage::Ping { nonce: 1 });
    let decode = |bytes: &[u8]| frame::decode_client(bytes.to_vec(), Phase::LoggedIn);
    assert_eq!(decode(&[]), Err(FrameError::Empty));
    assert_eq!(decode(&[&ping[..], &ping[..]].concat()), Err(FrameError::ManyBodies));
    // Field 100, length-delimited, empty; and field 1 as a number.
    assert_eq!(decode(&[0xa2, 0x06, 0x00]), Err(FrameError::UnknownBody(100)));
    assert_eq!(decode(&[0x08, 0x01]), Err(FrameError::UnknownBody(1)));
}

/// Frames of before the counter had a MAC, and of since: both stand for good, and who knows no MAC reads past one.
#[test]
fn frames_of_each_age_read_as_they_always_did() {
    let bytes = |text: &str| -> Vec<u8> {
        let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect()
    };
    let lane = Some(Lane { epoch: 0x0807_0605_0403_0201, number: NonZeroU64::new(5).unwrap() });
    let to = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let recipient = Recipient { to, msg_id: MessageId::from_bytes([0x11; 16]), lane };
    let (blob, ttl) = (Bytes::from_static(b"\x22\x22"), Duration::from_millis(9));
    let old = Send { recipient: recipient.clone(), blob: blob.clone(), counter: 7, counter_mac: None, ttl };
    let new = Send { counter_mac: Some([0x33; 32]), ..old.clone() };
    let many = SendMany { recipients: vec![recipient], blob, counter: 7, counter_mac: Some([0x33; 32]), ttl };
    for (vector, message) in [
        (SEND_OF_BEFORE, ClientMessage::Send(old)),
        (SEND_WITH_MAC, ClientMessage::Send(new)),
        (SEND_MANY_WITH_MAC, ClientMessage::SendMany(many)),
    ] {
        assert_eq!(frame::encode_client(&message)[..], bytes(vector)[..], "{message:?}");
        assert_eq!(frame::decode_client(bytes(vector), Phase::LoggedIn), Ok(message));
    }
}

const SEND_OF_BEFORE: &str =
    "1a2e0a070a03626f6210011210111111111111111111111111111111111a022222210102030405060708280530074009";
const SEND_WITH_MAC: &str = "1a500a070a03626f6210011210111111111111111111111111111111111a022222210102030405060708280530074009\
    4a203333333333333333333333333333333333333333333333333333333333333333";
const SEND_MANY_WITH_MAC: &str = "22520a02222212260a070a03626f62100112101111111111111111111111111111111119010203040506070820051807\
    280932203333333333333333333333333333333333333333333333333333333333333333";

#[test]
fn a_credential_prints_nothing_of_itself() {
    for credential in [Credential::AppToken("sk_live_x".into()), Credential::ClientToken("eyJx".into())] {
        let text = format!("{credential:?}");
        assert!(text.contains("[redacted]") && !text.contains("sk_live") && !text.contains("eyJ"), "{text}");
    }
}
