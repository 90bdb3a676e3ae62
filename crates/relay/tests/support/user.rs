//! Users with real keys and signed device lists.

use bytes::Bytes;
use stvor_base::devices::{DeviceEntry, DeviceList, device_list_label};
use stvor_base::rotations::{Rotation, Rotations, Statement, rotation_label};
use stvor_base::{Address, AppId, DeviceId, Suite, Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_crypto::kdf::sha256;
use stvor_crypto::suite::{AgreementKey, SigningKey};

/// The first device of a user.
pub(crate) fn address(user: &str) -> Address {
    Address::new(UserId::new(user).unwrap(), DeviceId::FIRST)
}

/// A user of an app, with the private keys of all devices.
pub(crate) struct User {
    pub(crate) key: SigningKey,
    pub(crate) devices: Vec<SigningKey>,
    pub(crate) list: DeviceList,
    pub(crate) list_bytes: Bytes,
    pub(crate) list_signature: [u8; 64],
    pub(crate) rotations: Option<Rotations>,
}

fn entry(suite: Suite, id: u32) -> (SigningKey, DeviceEntry) {
    let mut rng = SystemRandom::new();
    let signing = SigningKey::generate(suite, &mut rng).unwrap();
    let agreement = AgreementKey::generate(suite, &mut rng).unwrap();
    let entry = DeviceEntry {
        id: DeviceId::new(id).unwrap(),
        signing_key: signing.public(),
        agreement_key: agreement.public(),
    };
    (signing, entry)
}

impl User {
    /// A new identity with one device, in the app of the tests' token.
    pub(crate) fn new(name: &str) -> Self {
        Self::of_app(&super::app(), name)
    }

    /// A new identity with one device.
    pub(crate) fn of_app(app: &AppId, name: &str) -> Self {
        Self::with_devices(app, name, 1)
    }

    /// A new identity with devices 1, 2, 3 ...
    pub(crate) fn with_devices(app: &AppId, name: &str, count: u32) -> Self {
        Self::in_suite(Suite::P256, app, name, count)
    }

    /// A new identity of a suite with devices 1, 2, 3 ...
    pub(crate) fn in_suite(suite: Suite, app: &AppId, name: &str, count: u32) -> Self {
        let key = SigningKey::generate(suite, &mut SystemRandom::new()).unwrap();
        let (devices, entries) = (1..=count).map(|id| entry(suite, id)).unzip();
        let list = DeviceList {
            app: app.clone(),
            user: UserId::new(name).unwrap(),
            user_key: key.public(),
            version: 1,
            previous: [0; 32],
            devices: entries,
        };
        let (list_bytes, list_signature) = sign(&key, &list);
        Self { key, devices, list, list_bytes, list_signature, rotations: None }
    }

    /// The same user with fresh keys, to which this one's key hands over.
    pub(crate) fn rotated(&self) -> Self {
        let (suite, count) = (self.list.suite(), u32::try_from(self.devices.len()).unwrap());
        let next = Self::in_suite(suite, &self.list.app, self.name(), count);
        let (number, time) =
            (self.rotations.as_ref().map_or(1, Rotations::next_number), Timestamp::from_millis(7));
        let (old_key, new_key) = (&self.list.user_key, next.list.user_key);
        let (app, user) = (&self.list.app, &self.list.user);
        let statement = Statement { app, user, number, old_key, new_key: &new_key, time }.encode();
        let sign = |key: &SigningKey| key.sign(rotation_label(suite), &statement).unwrap();
        let step = Rotation { time, new_key, by_old: sign(&self.key), by_new: sign(&next.key) };
        let chain = match self.rotations.clone() {
            None => Rotations::start(*old_key, step),
            Some(mut chain) => {
                chain.push(step);
                chain
            }
        };
        Self { rotations: Some(chain), ..next }
    }

    /// Publishes the next version of the list, with these devices of the present ones and `added` new ones.
    pub(crate) fn change_devices(&mut self, keep: &[u32], added: u32) {
        let kept = |(_, entry): &(SigningKey, DeviceEntry)| keep.contains(&entry.id.get());
        let before = self.devices.drain(..).zip(self.list.devices.drain(..));
        let mut all: Vec<_> = before.filter(kept).collect();
        let next = all.last().map_or(1, |(_, entry)| entry.id.get() + 1);
        let suite = self.list.suite();
        all.extend((next..next + added).map(|id| entry(suite, id)));
        (self.devices, self.list.devices) = all.into_iter().unzip();
        self.list.version += 1;
        self.list.previous = sha256(&[&self.list_bytes]);
        (self.list_bytes, self.list_signature) = sign(&self.key, &self.list);
    }

    /// The name.
    pub(crate) fn name(&self) -> &str {
        self.list.user.as_str()
    }

    /// The address of a device.
    pub(crate) fn device(&self, id: u32) -> Address {
        Address::new(self.list.user.clone(), DeviceId::new(id).unwrap())
    }

    /// The address of the first device.
    pub(crate) fn address(&self) -> Address {
        self.device(1)
    }

    /// The signing key of a device.
    pub(crate) fn device_key(&self, id: DeviceId) -> &SigningKey {
        let index = self.list.devices.iter().position(|entry| entry.id == id).unwrap();
        &self.devices[index]
    }
}

fn sign(key: &SigningKey, list: &DeviceList) -> (Bytes, [u8; 64]) {
    let bytes = list.encode();
    let signature = key.sign(device_list_label(list.suite()), &bytes).unwrap();
    (bytes.into(), signature)
}
