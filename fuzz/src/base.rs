//! Decoders of `stvor-base`: what they accept is canonical, so writing it again gives the same bytes.

use stvor_base::codec::{Reader, Writer};
use stvor_base::devices::DeviceList;
use stvor_base::{Address, AppId, UserId};

/// The targets of this floor.
pub const TARGETS: &[crate::Target] = &[
    ("base-reader", reader),
    ("base-device-list", device_list),
    ("base-address", address),
    ("base-names", names),
];

/// Reads by a script that the input holds itself; a second reader must see the same.
fn reader(data: &[u8]) {
    let Some((script, data)) = data.split_at_checked(8) else { return };
    let mut input = Reader::new(data);
    for step in script {
        let before = input.remaining();
        let gone = match step % 8 {
            0 => input.u8().map(|_| 1),
            1 => input.u16().map(|_| 2),
            2 => input.u32().map(|_| 4),
            3 => input.u64().map(|_| 8),
            4 => input.bool().map(|_| 1),
            5 => input.array::<12>().map(|bytes| bytes.len()),
            6 => input.raw(usize::from(*step)).map(<[u8]>::len),
            _ => input.bytes(usize::from(*step)).map(|bytes| {
                assert!(bytes.len() <= usize::from(*step));
                4 + bytes.len()
            }),
        };
        match gone {
            Ok(gone) => assert_eq!(input.remaining() + gone, before),
            Err(_) => assert!(input.remaining() <= before),
        }
    }
    let left = input.remaining();
    assert_eq!(input.finish().is_ok(), left == 0);
}

fn device_list(data: &[u8]) {
    if let Ok(list) = DeviceList::decode(data) {
        assert_eq!(list.encode(), data);
    }
}

fn address(data: &[u8]) {
    let mut input = Reader::new(data);
    if let Ok(address) = Address::decode(&mut input) {
        let used = data.len() - input.remaining();
        let mut out = Writer::new();
        address.encode(&mut out);
        assert_eq!(out.finish(), data[..used]);
    }
}

fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(user) = UserId::new(text) {
        let again = UserId::from_canonical(user.as_str());
        assert_eq!(again.as_ref(), Ok(&user), "the canonical form is not canonical");
    }
    if let Ok(user) = UserId::from_canonical(text) {
        assert_eq!(user.as_str(), text);
    }
    if let Ok(app) = AppId::new(text) {
        assert_eq!(app.as_str(), text);
    }
}
