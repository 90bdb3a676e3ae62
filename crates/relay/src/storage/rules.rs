//! What every store decides alike, without I/O.

use bytes::Bytes;
use stvor_base::devices::DeviceList;
use stvor_base::rotations::Rotations;
use stvor_base::{DeviceId, Suite, Timestamp};
use stvor_crypto::kdf::sha256;
use stvor_wire::Code;
use stvor_wire::client::{CounterMac, Lane, UploadKeys};
use stvor_wire::keys::KeyCounts;
use stvor_wire::server::Registration;

use super::types::{Attach, Bounds, Consent, Refusal};
use crate::limits::{KEYS_LOW, LANE_EPOCHS};

/// Tells blobs of one message id apart.
pub(crate) fn blob_hash(blob: &[u8]) -> [u8; 16] {
    let hash = sha256(&[blob]);
    let mut short = [0; 16];
    short.copy_from_slice(&hash[..16]);
    short
}

/// The device was removed since it logged in.
pub(crate) const NOT_REGISTERED: Refusal =
    Refusal::new(Code::LoggedOut, "this device is no longer registered");

/// The highest send counter of a device, and what it proves that it is the device's own with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counter {
    pub(crate) value: u64,
    pub(crate) mac: Option<CounterMac>,
}

impl Counter {
    /// A counter was seen. One that is proven takes the place of the same without a proof.
    pub(crate) fn see(&mut self, value: u64, mac: Option<CounterMac>) {
        if value > self.value || (value == self.value && self.mac.is_none()) {
            *self = Self { value, mac };
        }
    }
}

/// How full a mailbox is. Once full it stays closed until it is half empty, so that it does not flap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Gauge {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) full: bool,
}

impl Gauge {
    pub(crate) fn admit(&mut self, length: usize, bounds: &Bounds) -> Result<(), Refusal> {
        let bytes = self.bytes + length as u64;
        if self.messages >= bounds.mailbox_messages || bytes > bounds.mailbox_bytes {
            self.full = true;
        }
        if self.full {
            return Err(Refusal::new(
                Code::MailboxFull,
                "the recipient's mailbox is full: retry after its device has fetched messages",
            ));
        }
        self.messages += 1;
        self.bytes = bytes;
        Ok(())
    }

    pub(crate) fn release(&mut self, length: u64, bounds: &Bounds) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(length);
        if self.messages <= bounds.mailbox_messages / 2 && self.bytes <= bounds.mailbox_bytes / 2 {
            self.full = false;
        }
    }
}

/// What of a mailbox is one sender's. Nobody can fill it alone: past the share others still get theirs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Share {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Share {
    pub(crate) fn admit(&mut self, length: usize, bounds: &Bounds) -> Result<(), Refusal> {
        let bytes = self.bytes + length as u64;
        if self.messages >= bounds.sender_messages || bytes > bounds.sender_bytes {
            return Err(Refusal::new(
                Code::MailboxFull,
                "what you sent fills your share of the recipient's mailbox: retry after its device has fetched messages",
            ));
        }
        (self.messages, self.bytes) = (self.messages + 1, bytes);
        Ok(())
    }

    pub(crate) fn release(&mut self, length: u64) {
        (self.messages, self.bytes) = (self.messages.saturating_sub(1), self.bytes.saturating_sub(length));
    }
}

/// The last number of each of a sender's newest epochs, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Lanes(pub(crate) Vec<(u64, u64)>);

impl Lanes {
    /// Takes a number in, or says which one is expected.
    pub(crate) fn advance(&mut self, lane: Lane) -> Result<(), Refusal> {
        let number = lane.number.get();
        let last = self.0.iter_mut().find(|(epoch, _)| *epoch == lane.epoch);
        let expected = last.as_ref().map_or(1, |(_, last)| last.saturating_add(1));
        if number != expected {
            let detail = if number < expected {
                "this lane number was accepted before"
            } else {
                "a lower number of this lane never arrived: send that one first"
            };
            return Err(Refusal { expected_lane: expected, ..Refusal::new(Code::LaneGap, detail) });
        }
        match last {
            Some((_, last)) => *last = number,
            None => {
                if self.0.len() >= LANE_EPOCHS {
                    self.0.remove(0);
                }
                self.0.push((lane.epoch, number));
            }
        }
        Ok(())
    }
}

/// What a log-in does to the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registering {
    /// The user is known; its stored list stays.
    Known,
    /// The user is known and brings a newer list.
    NewList,
    /// A free name.
    New,
    /// The name changes hands; everything of the old identity goes.
    Replace,
    /// The user's key handed over to the one of the list: mail stays, prekeys go.
    Rotate,
}

impl Registering {
    /// What the client is told.
    pub(crate) fn told(self) -> Registration {
        match self {
            Self::Known | Self::NewList => Registration::Known,
            Self::New => Registration::New,
            Self::Replace => Registration::Replaced,
            Self::Rotate => Registration::Rotated,
        }
    }
}

/// Decides a log-in, given the signed bytes of the list that the store holds for the name, and of the rotations beside it.
pub(crate) fn register(stored: Option<(&Bytes, &Bytes)>, attach: &Attach) -> Result<Registering, Refusal> {
    let Some((stored, rotations)) = stored else {
        return match attach.permission.register {
            Consent::Allowed => Ok(Registering::New),
            Consent::NotAsked => Err(Refusal::new(
                Code::RecipientNotFound,
                "the relay does not know this user: register first",
            )),
            Consent::Closed => Err(Refusal::new(
                Code::RegistrationClosed,
                "registering a new user here takes a client token that names the user; the relay's operator may let app \
                 tokens do it with open_registration = true",
            )),
        };
    };
    let unreadable = Refusal::new(Code::Internal, "the stored device list can not be read");
    let known = DeviceList::decode(stored).map_err(|_| unreadable)?;
    if known.user_key != attach.list.user_key {
        let leads = |(rotations, _): &(Rotations, Bytes)| rotations.from(&known.user_key).is_some();
        if attach.rotations.as_ref().is_some_and(leads) {
            return Ok(Registering::Rotate);
        }
        return if attach.permission.replace {
            Ok(Registering::Replace)
        } else if handed_over(rotations, attach) {
            Err(Refusal::new(
                Code::IdentityHandedOver,
                "this identity handed over to another one, by a rotation that it signed: if that was not you, somebody has its key",
            ))
        } else {
            Err(Refusal::new(
                Code::UserIdTaken,
                "this name belongs to another identity: choose another, or ask the operator to reset it",
            ))
        };
    }
    let fork = Refusal::new(
        Code::InvalidDeviceList,
        "the device list contradicts the one that the relay holds: fetch that one and build on it",
    );
    if attach.list.version > known.version {
        let follows = attach.list.version != known.version + 1 || attach.list.previous == sha256(&[stored]);
        return if follows { Ok(Registering::NewList) } else { Err(fork) };
    }
    if attach.list.version == known.version {
        return if *stored == attach.list_bytes { Ok(Registering::Known) } else { Err(fork) };
    }
    // A device that has not seen the newest list yet may log in if that list still vouches for it.
    let key = |list: &DeviceList| list.device(attach.address.device).map(|device| device.signing_key);
    if key(&known).is_some() && key(&known) == key(&attach.list) {
        Ok(Registering::Known)
    } else {
        Err(Refusal::new(Code::UnknownDevice, "the user's current device list does not hold this device"))
    }
}

/// Whether the key of a log-in, or one that it comes from, is in the chain by which the name went to another key.
fn handed_over(rotations: &Bytes, attach: &Attach) -> bool {
    let Ok(chain) = Rotations::decode(rotations) else { return false };
    let theirs = attach.rotations.iter().flat_map(|(rotations, _)| rotations.keys());
    theirs.chain([&attach.list.user_key]).any(|key| chain.keys().any(|known| known == key))
}

/// Whether a device of the list that the store holds is the same one in the new list: its number may have been given to
/// another device since, which must not get its mail.
pub(crate) fn is_same_device(stored: Option<&DeviceList>, new: &DeviceList, device: DeviceId) -> bool {
    let key = |list: &DeviceList| list.device(device).map(|entry| entry.signing_key);
    key(new).is_some() && stored.is_none_or(|stored| key(stored) == key(new))
}

/// The suite of a list that the store holds, given its signed bytes.
pub(crate) fn suite_of(stored: &[u8]) -> Result<Suite, Refusal> {
    let unreadable = Refusal::new(Code::Internal, "the stored device list can not be read");
    Ok(DeviceList::decode(stored).map_err(|_| unreadable)?.suite())
}

/// That prekeys have the suite of their user's device list: others could do nothing with them.
pub(crate) fn fits(suite: Suite, upload: &UploadKeys) -> Result<(), Refusal> {
    let signed = upload.signed_prekey.iter().map(|key| &key.key);
    let mut keys = signed.chain(upload.one_time.iter().map(|key| &key.key));
    if keys.all(|key| key.suite() == suite) {
        Ok(())
    } else {
        Err(Refusal::new(Code::BadRequest, "a prekey is of another suite than the user's device list"))
    }
}

/// Whether one-time prekeys just fell below [`KEYS_LOW`].
pub(crate) fn crossed_low(before: &KeyCounts, after: &KeyCounts) -> bool {
    let crossed = |before: u32, after: u32| before >= KEYS_LOW && after < KEYS_LOW;
    crossed(before.one_time, after.one_time) || crossed(before.kem_one_time, after.kem_one_time)
}

/// The calendar month (UTC) of a quota, as a number that rises.
pub(crate) fn month_of(time: Timestamp) -> u64 {
    // Days since 1970-03-01 in the civil calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let days = time.as_millis() / 86_400_000 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    (era * 400 + year) * 12 + (5 * day_of_year + 2) / 153
}

pub(crate) const NO_RECIPIENT: Refusal =
    Refusal::new(Code::RecipientNotFound, "the relay knows no such user or device");
pub(crate) const ID_CONFLICT: Refusal =
    Refusal::new(Code::IdConflict, "this message id was used for other bytes: a new message needs a new id");
pub(crate) const QUOTA: Refusal =
    Refusal::new(Code::QuotaExceeded, "the app has used up its messages of this month");

#[cfg(test)]
mod tests {
    use core::num::NonZeroU64;

    use super::*;

    fn lane(epoch: u64, number: u64) -> Lane {
        Lane { epoch, number: NonZeroU64::new(number).unwrap() }
    }

    #[test]
    fn a_lane_takes_numbers_in_a_row_and_says_which_one_is_next() {
        let mut lanes = Lanes::default();
        assert_eq!(lanes.advance(lane(7, 2)).unwrap_err().expected_lane, 1);
        assert_eq!(lanes.advance(lane(7, 1)), Ok(()));
        assert_eq!(lanes.advance(lane(7, 2)), Ok(()));
        assert_eq!(lanes.advance(lane(7, 4)).unwrap_err().expected_lane, 3);
        assert_eq!(lanes.advance(lane(7, 1)).unwrap_err().expected_lane, 3);
    }

    #[test]
    fn the_two_newest_epochs_are_kept() {
        let mut lanes = Lanes::default();
        for epoch in 1..=3 {
            assert_eq!(lanes.advance(lane(epoch, 1)), Ok(()));
        }
        assert_eq!(lanes.0.len(), LANE_EPOCHS);
        let expected = |epoch| lanes.clone().advance(lane(epoch, 9)).unwrap_err().expected_lane;
        assert_eq!([expected(1), expected(2), expected(3)], [1, 2, 2]);
    }

    #[test]
    fn a_full_mailbox_opens_at_half() {
        let bounds = Bounds { mailbox_messages: 4, mailbox_bytes: 1_000_000, ..Bounds::default() };
        let mut gauge = Gauge::default();
        assert!((0..4).all(|_| gauge.admit(10, &bounds).is_ok()));
        assert_eq!(gauge.admit(10, &bounds).unwrap_err().code, Code::MailboxFull);
        gauge.release(10, &bounds);
        assert!(gauge.admit(10, &bounds).is_err(), "three of four is not half");
        gauge.release(10, &bounds);
        assert!(gauge.admit(10, &bounds).is_ok());
    }

    #[test]
    fn a_mailbox_holds_its_bytes_and_not_one_more() {
        let bounds = Bounds { mailbox_messages: 10, mailbox_bytes: 1000, ..Bounds::default() };
        assert!(Gauge::default().admit(1000, &bounds).is_ok());
        assert!(Gauge::default().admit(1001, &bounds).is_err());
    }

    #[test]
    fn months_change_with_the_calendar() {
        let at = |seconds: u64| month_of(Timestamp::from_millis(seconds * 1000));
        // 2024-02-29 23:59:59, 2024-03-01, 2024-03-31 23:59:59, 2024-04-01, 2024-12-31 23:59:59, 2025-01-01.
        let [a, b, c, d, e, f] =
            [1_709_251_199, 1_709_251_200, 1_711_929_599, 1_711_929_600, 1_735_689_599, 1_735_689_600]
                .map(at);
        assert_eq!((b - a, c - b, d - c, f - e), (1, 0, 1, 1));
    }
}
