//! A store that forgets with the process: for development and tests.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use stvor_base::devices::DeviceList;
use stvor_base::{Address, AppId, DeviceId, MessageId, Suite, Timestamp, UserId};
use stvor_wire::Code;
use stvor_wire::client::UploadKeys;
use stvor_wire::keys::{DeviceBundle, KemPrekey, KeyCounts, OneTimePrekey, SignedPrekey};

use super::rules::{
    self, Counter, Gauge, ID_CONFLICT, Lanes, NO_RECIPIENT, NOT_REGISTERED, QUOTA, Registering, Share,
    crossed_low, month_of,
};
use super::types::*;
use super::{Directory, Done, Mailbox, Tokens, is_wanted};
use crate::limits::{MEMORY_USERS, ONE_TIME_KEYS};

/// Everything in one process's memory.
pub struct MemoryStore {
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_id: i64,
    users: HashMap<UserKey, User>,
    devices: HashMap<MailboxId, Device>,
    tokens: Vec<TokenRecord>,
    usage: HashMap<AppId, (u64, u64)>,
    secrets: HashMap<&'static str, [u8; 32]>,
}

struct User {
    list: Bytes,
    signature: [u8; 64],
    rotations: Bytes,
    devices: BTreeMap<DeviceId, MailboxId>,
}

struct Held {
    row: Row,
    expires_at: Timestamp,
}

struct Seen {
    hash: [u8; 16],
    seq: u64,
    expires_at: Timestamp,
}

#[derive(Default)]
struct Device {
    suite: Suite,
    /// Of its keys.
    generation: u64,
    epoch: u64,
    fence: u64,
    last_seq: u64,
    lost_seq: u64,
    counter: Counter,
    gauge: Gauge,
    shares: HashMap<MailboxId, Share>,
    messages: BTreeMap<u64, Held>,
    seen: HashMap<(MailboxId, MessageId), Seen>,
    lanes: HashMap<MailboxId, Lanes>,
    keys: Keys,
}

#[derive(Default)]
struct Keys {
    signed: Option<SignedPrekey>,
    last_resort: Option<KemPrekey>,
    one_time: BTreeMap<u32, OneTimePrekey>,
    kem: BTreeMap<u32, KemPrekey>,
    /// Lowest numbers that may still come, so that a repeated upload brings no used key back.
    next_one_time: u64,
    next_kem: u64,
}

impl Keys {
    fn counts(&self) -> KeyCounts {
        KeyCounts {
            one_time: u32::try_from(self.one_time.len()).unwrap_or(u32::MAX),
            kem_one_time: u32::try_from(self.kem.len()).unwrap_or(u32::MAX),
            signed_prekey_id: self.signed.as_ref().map(|key| key.id),
            kem_last_resort_id: self.last_resort.as_ref().map(|key| key.id),
        }
    }

    fn upload(&mut self, upload: UploadKeys) {
        if upload.replace_one_time {
            self.one_time.clear();
            self.kem.clear();
        }
        self.signed = upload.signed_prekey.or(self.signed.take());
        self.last_resort = upload.kem_last_resort.or(self.last_resort.take());
        let mut keys = upload.one_time;
        keys.sort_by_key(|key| key.id);
        for key in keys {
            if self.one_time.len() < ONE_TIME_KEYS as usize && u64::from(key.id) >= self.next_one_time {
                self.next_one_time = u64::from(key.id) + 1;
                self.one_time.insert(key.id, key);
            }
        }
        let mut keys = upload.kem_one_time;
        keys.sort_by_key(|key| key.id);
        for key in keys {
            if self.kem.len() < ONE_TIME_KEYS as usize && u64::from(key.id) >= self.next_kem {
                self.next_kem = u64::from(key.id) + 1;
                self.kem.insert(key.id, key);
            }
        }
    }

    /// The device has other keys from now on: those that it signed before are of no use, nor are their numbers.
    fn forget(&mut self) {
        *self = Self::default();
    }

    fn bundle(&mut self, device: DeviceId, one_time: bool) -> Option<DeviceBundle> {
        let signed_prekey = self.signed.clone()?;
        let last_resort = self.last_resort.clone()?;
        let ec = one_time.then(|| self.one_time.pop_first()).flatten().map(|(_, key)| key);
        let kem = one_time.then(|| self.kem.pop_first()).flatten().map(|(_, key)| key);
        let kem_is_last_resort = kem.is_none();
        Some(DeviceBundle {
            device,
            signed_prekey,
            one_time: ec,
            kem: kem.unwrap_or(last_resort),
            kem_is_last_resort,
        })
    }
}

impl State {
    fn user_devices(&self, app: &AppId, user: &UserId) -> Option<&User> {
        self.users.get(&UserKey { app: app.clone(), user: user.clone() })
    }

    /// The device of a holder, if its keys are still those.
    fn held(&mut self, holder: Holder) -> Result<&mut Device, StoreError> {
        let device = self.devices.get_mut(&holder.device);
        device
            .filter(|device| device.generation == holder.generation)
            .ok_or(StoreError::Refused(NOT_REGISTERED))
    }

    fn put(&mut self, put: &Put, bounds: &Bounds) -> Result<Stored, StoreError> {
        self.held(Holder { device: put.sender, generation: put.generation })?;
        let month = month_of(put.received_at);
        let device = self.devices.get_mut(&put.mailbox).ok_or(StoreError::Refused(NO_RECIPIENT))?;
        let hash = rules::blob_hash(&put.blob);
        if let Some(seen) = device.seen.get(&(put.sender, put.msg_id)) {
            return if seen.hash == hash {
                Ok(Stored::Duplicate)
            } else {
                Err(StoreError::Refused(ID_CONFLICT))
            };
        }
        let lanes = device.lanes.entry(put.sender).or_default();
        let mut advanced = lanes.clone();
        advanced.advance(put.lane).map_err(StoreError::Refused)?;
        let mut share = device.shares.get(&put.sender).copied().unwrap_or_default();
        share.admit(put.blob.len(), bounds).map_err(StoreError::Refused)?;
        if let Some(limit) = bounds.monthly_messages {
            let usage = self.usage.entry((*put.app).clone()).or_insert((month, 0));
            if usage.0 != month {
                *usage = (month, 0);
            }
            if usage.1 >= limit {
                return Err(StoreError::Refused(QUOTA));
            }
            device.gauge.admit(put.blob.len(), bounds).map_err(StoreError::Refused)?;
            usage.1 += 1;
        } else {
            device.gauge.admit(put.blob.len(), bounds).map_err(StoreError::Refused)?;
        }
        *lanes = advanced;
        device.shares.insert(put.sender, share);
        device.last_seq += 1;
        let seq = device.last_seq;
        let row = Row {
            seq,
            msg_id: put.msg_id,
            from: (*put.from).clone(),
            sender: put.sender,
            blob: put.blob.clone(),
            received_at: put.received_at,
        };
        device.messages.insert(seq, Held { row, expires_at: put.expires_at });
        let remembered = (put.received_at + bounds.dedup).max(put.expires_at);
        device.seen.insert((put.sender, put.msg_id), Seen { hash, seq, expires_at: remembered });
        if let Some(sender) = self.devices.get_mut(&put.sender) {
            sender.counter.see(put.counter, put.counter_mac);
        }
        Ok(Stored::New { seq })
    }

    fn ack(&mut self, mailbox: MailboxId, rows: &[AckRow], bounds: &Bounds) -> Vec<MessageId> {
        let Some(device) = self.devices.get_mut(&mailbox) else { return Vec::new() };
        let mut mismatched = Vec::new();
        for ack in rows {
            let seq = match ack.place {
                Place::Seq(seq) => Some(seq),
                Place::From(sender) => device.seen.get(&(sender, ack.msg_id)).map(|seen| seen.seq),
            };
            let Some(seq) = seq else { continue };
            match device.messages.get(&seq) {
                Some(held) if held.row.msg_id != ack.msg_id => mismatched.push(ack.msg_id),
                Some(_) => device.remove(seq, bounds),
                None => {}
            }
        }
        mismatched
    }

    fn drop_devices(&mut self, ids: &[MailboxId]) {
        for id in ids {
            self.devices.remove(id);
        }
    }

    fn new_device(&mut self, suite: Suite, epoch: u64) -> MailboxId {
        self.last_id += 1;
        let id = MailboxId(self.last_id);
        self.devices.insert(id, Device { suite, epoch, ..Device::default() });
        id
    }

    fn attach(&mut self, attach: Attach) -> Result<Attached, StoreError> {
        let key = UserKey { app: attach.app.clone(), user: attach.address.user.clone() };
        let registering =
            rules::register(self.users.get(&key).map(|user| (&user.list, &user.rotations)), &attach)
                .map_err(StoreError::Refused)?;
        if registering == Registering::New && self.users.len() >= MEMORY_USERS {
            return Err(StoreError::refused(
                Code::TooMany,
                "a relay without a database takes in no more users",
            ));
        }
        let before = match registering {
            Registering::Replace => self.users.remove(&key).map(|user| user.devices).unwrap_or_default(),
            _ => BTreeMap::new(),
        };
        let mut removed: Vec<MailboxId> = before.into_values().collect();
        let mut handed_over = Vec::new();
        if registering != Registering::Known {
            let mut user = self.users.remove(&key).unwrap_or_else(|| User {
                list: Bytes::new(),
                signature: [0; 64],
                rotations: Bytes::new(),
                devices: BTreeMap::new(),
            });
            let stored = DeviceList::decode(&user.list).ok();
            // Rotated, a device keeps its number and mailbox: whoever holds both keys says that it is the same.
            let before = stored.as_ref().filter(|_| registering != Registering::Rotate);
            let listed = |id: &DeviceId| rules::is_same_device(before, &attach.list, *id);
            user.list = attach.list_bytes.clone();
            user.signature = attach.list_signature;
            if let Some((_, bytes)) = &attach.rotations {
                user.rotations = bytes.clone();
            }
            removed.extend(user.devices.iter().filter(|(id, _)| !listed(id)).map(|(_, device)| *device));
            user.devices.retain(|id, _| listed(id));
            if registering == Registering::Rotate {
                for id in user.devices.values() {
                    if let Some(device) = self.devices.get_mut(id) {
                        device.generation += 1;
                        device.keys.forget();
                        device.counter = Counter::default();
                    }
                    handed_over.push(*id);
                }
            }
            for entry in &attach.list.devices {
                user.devices
                    .entry(entry.id)
                    .or_insert_with(|| self.new_device(attach.list.suite(), attach.fresh_epoch));
            }
            self.users.insert(key.clone(), user);
        }
        self.drop_devices(&removed);
        removed.extend(handed_over);
        let id = self.users.get(&key).and_then(|user| user.devices.get(&attach.address.device)).copied();
        let (id, device) = id
            .and_then(|id| self.devices.get_mut(&id).map(|device| (id, device)))
            .ok_or(StoreError::refused(Code::UnknownDevice, "the device list does not hold this device"))?;
        if attach.receive {
            device.fence += 1;
        }
        Ok(Attached {
            device: id,
            generation: device.generation,
            registration: registering.told(),
            epoch: device.epoch,
            fence: device.fence,
            highest_counter: device.counter.value,
            counter_mac: device.counter.mac,
            lost_seq: device.lost_seq,
            last_seq: device.last_seq,
            keys: device.keys.counts(),
            removed,
        })
    }

    fn bundles(&mut self, app: &AppId, user: &UserId, take: &Take) -> Option<UserBundles> {
        let user = self.users.get(&UserKey { app: app.clone(), user: user.clone() })?;
        let mut bundles = Vec::new();
        let mut low = Vec::new();
        for (device, id) in &user.devices {
            let wanted = !take.devices_only && is_wanted(&take.devices, *device);
            let Some(state) = self.devices.get_mut(id).filter(|_| wanted) else { continue };
            let before = state.keys.counts();
            let Some(bundle) = state.keys.bundle(*device, take.one_time) else { continue };
            bundles.push(bundle);
            let after = state.keys.counts();
            if crossed_low(&before, &after) {
                low.push((*id, after));
            }
        }
        let (list, rotations) = (user.list.clone(), user.rotations.clone());
        Some(UserBundles { list, signature: user.signature, rotations, bundles, low })
    }
}

impl Device {
    fn remove(&mut self, seq: u64, bounds: &Bounds) {
        if let Some(held) = self.messages.remove(&seq) {
            let length = held.row.blob.len() as u64;
            self.gauge.release(length, bounds);
            if let Some(share) = self.shares.get_mut(&held.row.sender) {
                share.release(length);
                if share.messages == 0 {
                    self.shares.remove(&held.row.sender);
                }
            }
        }
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is made only after everything that can fail, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Mailbox for MemoryStore {
    fn put(&self, put: Arc<Put>, done: Done<Stored>) {
        // Called back under the lock, so that call-backs come in the order of the seqs. They must not block.
        let mut state = self.state();
        let result = state.put(&put, &self.bounds);
        done(result);
    }

    fn ack(&self, mailbox: MailboxId, rows: Vec<AckRow>, done: Done<Vec<MessageId>>) {
        let result = self.state().ack(mailbox, &rows, &self.bounds);
        done(Ok(result));
    }

    async fn last_seq(&self, holder: Holder) -> Result<u64, StoreError> {
        Ok(self.state().held(holder)?.last_seq)
    }

    async fn read(
        &self,
        mailbox: MailboxId,
        after: u64,
        (limit, without): (PageLimit, &[MailboxId]),
    ) -> Result<Page, StoreError> {
        let state = self.state();
        let Some(device) = state.devices.get(&mailbox) else {
            return Ok(Page { rows: Vec::new(), complete: true });
        };
        let mut bytes = 0;
        let mut rows = Vec::new();
        let waiting = device.messages.range(after.saturating_add(1)..).map(|(_, held)| held);
        for held in waiting.filter(|held| !without.contains(&held.row.sender)) {
            bytes += held.row.blob.len();
            if rows.len() >= limit.rows || (bytes > limit.bytes && !rows.is_empty()) {
                return Ok(Page { rows, complete: false });
            }
            rows.push(held.row.clone());
        }
        Ok(Page { rows, complete: true })
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for device in self.state().devices.values_mut() {
            let expired = |held: &Held| held.expires_at <= now;
            let seqs: Vec<u64> = device
                .messages
                .iter()
                .filter(|(_, held)| expired(held))
                .map(|(seq, _)| *seq)
                .take(limit)
                .collect();
            for seq in seqs {
                device.remove(seq, &self.bounds);
                device.lost_seq = device.lost_seq.max(seq);
                swept.messages += 1;
            }
            let before = device.seen.len();
            let (messages, seen) = (&device.messages, &mut device.seen);
            seen.retain(|_, seen| seen.expires_at > now || messages.contains_key(&seen.seq));
            swept.ids += (before - device.seen.len()) as u64;
        }
        Ok(swept)
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl Directory for MemoryStore {
    async fn attach(&self, attach: Attach) -> Result<Attached, StoreError> {
        self.state().attach(attach)
    }

    async fn resolve(&self, app: &AppId, address: &Address) -> Result<Option<MailboxId>, StoreError> {
        let state = self.state();
        let user = state.user_devices(app, &address.user);
        Ok(user.and_then(|user| user.devices.get(&address.device)).copied())
    }

    async fn upload_keys(&self, holder: Holder, upload: UploadKeys) -> Result<KeyCounts, StoreError> {
        let mut state = self.state();
        let device = state.held(holder)?;
        rules::fits(device.suite, &upload).map_err(StoreError::Refused)?;
        device.keys.upload(upload);
        Ok(device.keys.counts())
    }

    async fn bundles(
        &self,
        app: &AppId,
        user: &UserId,
        take: Take,
    ) -> Result<Option<UserBundles>, StoreError> {
        Ok(self.state().bundles(app, user, &take))
    }

    async fn user_state(&self, app: &AppId, user: &UserId) -> Result<Registered, StoreError> {
        let state = self.state();
        let Some(user) = state.user_devices(app, user) else { return Ok(Registered::default()) };
        let complete = |keys: &Keys| keys.signed.is_some() && keys.last_resort.is_some();
        let has_keys =
            user.devices.values().filter_map(|id| state.devices.get(id)).any(|device| complete(&device.keys));
        Ok(Registered { registered: true, has_keys })
    }

    async fn has_keys_anywhere(&self, user: &UserId) -> Result<bool, StoreError> {
        let apps: Vec<AppId> =
            self.state().users.keys().filter(|key| key.user == *user).map(|key| key.app.clone()).collect();
        for app in apps {
            if self.user_state(&app, user).await?.has_keys {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn delete_account(&self, holder: Holder) -> Result<Vec<MailboxId>, StoreError> {
        let mut state = self.state();
        state.held(holder)?;
        let owned = |user: &User| user.devices.values().any(|owned| *owned == holder.device);
        let key = state.users.iter().find(|(_, user)| owned(user)).map(|(key, _)| key.clone());
        let user = key.and_then(|key| state.users.remove(&key));
        let user = user.ok_or(StoreError::Refused(NOT_REGISTERED))?;
        let devices: Vec<MailboxId> = user.devices.into_values().collect();
        state.drop_devices(&devices);
        Ok(devices)
    }

    async fn is_current(&self, holder: Holder) -> Result<bool, StoreError> {
        Ok(self.state().held(holder).is_ok())
    }
}

#[async_trait]
impl Tokens for MemoryStore {
    async fn put_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        let mut state = self.state();
        state.tokens.retain(|known| known.hash != token.hash);
        state.tokens.push(token);
        Ok(())
    }

    async fn token(&self, hash: &[u8; 32]) -> Result<Option<TokenRecord>, StoreError> {
        let equal = |token: &&TokenRecord| stvor_crypto::kdf::constant_time_eq(&token.hash, hash);
        Ok(self.state().tokens.iter().find(equal).cloned())
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let mut tokens = self.state().tokens.clone();
        tokens.reverse();
        Ok(tokens)
    }

    async fn revoke_token(&self, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let mut state = self.state();
        let token = state.tokens.iter_mut().find(|token| token.id == id);
        Ok(token.map(|token| token.revoked_at.get_or_insert(now)).is_some())
    }

    async fn secret(&self, name: &'static str, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        Ok(*self.state().secrets.entry(name).or_insert(fresh))
    }

    async fn outside_changes(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
}
