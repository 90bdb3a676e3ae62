//! Users, devices and prekeys in SQL.

use bytes::Bytes;
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, params};
use stvor_base::devices::DeviceList;
use stvor_base::{Address, AppId, DeviceId, UserId};
use stvor_wire::Code;
use stvor_wire::client::UploadKeys;
use stvor_wire::keys::{DeviceBundle, KemPrekey, KeyCounts, OneTimePrekey, SignedPrekey};
use stvor_wire::proto;

use super::mailbox::int;
use super::writer::{Batch, Failure};
use crate::limits::ONE_TIME_KEYS;
use crate::storage::rules::{self, NOT_REGISTERED, Registering, crossed_low};
use crate::storage::{
    Attach, Attached, Holder, MailboxId, Registered, StoreError, Take, UserBundles, is_wanted,
};

/// A device's signed prekey and last resort, as stored.
type LastingKeys = (Option<Vec<u8>>, Option<Vec<u8>>);

const ONE_TIME: i64 = 0;
const KEM: i64 = 1;

fn unreadable() -> Failure {
    Failure::Store(StoreError::Unavailable("a stored key can not be read".to_owned()))
}

struct User {
    id: i64,
    list: Bytes,
    signature: [u8; 64],
    rotations: Bytes,
}

fn find_user(sql: &Connection, app: &AppId, user: &UserId) -> Result<Option<User>, rusqlite::Error> {
    sql.prepare_cached("SELECT id, list, signature, rotations FROM users WHERE app = ?1 AND name = ?2")?
        .query_row(params![app.as_str(), user.as_str()], |row| {
            let (list, rotations): (Vec<u8>, Option<Vec<u8>>) = (row.get(1)?, row.get(3)?);
            let rotations = rotations.unwrap_or_default().into();
            Ok(User { id: row.get(0)?, list: list.into(), signature: row.get(2)?, rotations })
        })
        .optional()
}

fn devices_of(sql: &Connection, user: i64) -> Result<Vec<(MailboxId, DeviceId)>, rusqlite::Error> {
    let rows: Vec<(i64, u32)> = sql
        .prepare_cached("SELECT id, device FROM devices WHERE user = ?1 ORDER BY device")?
        .query_map([user], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    Ok(rows
        .into_iter()
        .filter_map(|(id, device)| Some((MailboxId(id), DeviceId::new(device).ok()?)))
        .collect())
}

fn counts(sql: &Connection, device: MailboxId) -> Result<Option<KeyCounts>, Failure> {
    let keys: Option<LastingKeys> = sql
        .prepare_cached("SELECT signed_prekey, kem_last_resort FROM devices WHERE id = ?1")?
        .query_row([device.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((signed, kem)) = keys else { return Ok(None) };
    let count = |kind: i64| {
        sql.prepare_cached("SELECT count(*) FROM one_time WHERE device = ?1 AND kind = ?2")?
            .query_row(params![device.0, kind], |row| row.get::<_, u32>(0))
    };
    Ok(Some(KeyCounts {
        one_time: count(ONE_TIME)?,
        kem_one_time: count(KEM)?,
        signed_prekey_id: signed.map(|bytes| signed_prekey(&bytes)).transpose()?.map(|key| key.id),
        kem_last_resort_id: kem.map(|bytes| kem_prekey(&bytes)).transpose()?.map(|key| key.id),
    }))
}

fn signed_prekey(bytes: &[u8]) -> Result<SignedPrekey, Failure> {
    let wire = proto::SignedPrekey::decode(bytes).map_err(|_| unreadable())?;
    wire.try_into().map_err(|_| unreadable())
}

fn kem_prekey(bytes: &[u8]) -> Result<KemPrekey, Failure> {
    let wire = proto::KemPrekey::decode(bytes).map_err(|_| unreadable())?;
    wire.try_into().map_err(|_| unreadable())
}

fn one_time_prekey(bytes: &[u8]) -> Result<OneTimePrekey, Failure> {
    let wire = proto::OneTimePrekey::decode(bytes).map_err(|_| unreadable())?;
    wire.try_into().map_err(|_| unreadable())
}

/// Takes the oldest one-time key out: nobody gets it again.
fn pop(sql: &Connection, device: MailboxId, kind: i64) -> Result<Option<Vec<u8>>, rusqlite::Error> {
    sql.prepare_cached(
        "DELETE FROM one_time WHERE device = ?1 AND kind = ?2 AND id =
             (SELECT min(id) FROM one_time WHERE device = ?1 AND kind = ?2)
         RETURNING key",
    )?
    .query_row(params![device.0, kind], |row| row.get(0))
    .optional()
}

impl Batch<'_> {
    fn drop_device(&mut self, device: MailboxId) -> Result<(), rusqlite::Error> {
        for statement in [
            "DELETE FROM messages WHERE device = ?1",
            "DELETE FROM seen WHERE device = ?1",
            "DELETE FROM lanes WHERE device = ?1",
            "DELETE FROM lanes WHERE sender = ?1",
            "DELETE FROM one_time WHERE device = ?1",
            "DELETE FROM devices WHERE id = ?1",
        ] {
            self.sql.prepare_cached(statement)?.execute([device.0])?;
        }
        self.cache.forget(device);
        Ok(())
    }

    fn drop_user(&mut self, user: i64) -> Result<Vec<MailboxId>, rusqlite::Error> {
        let devices: Vec<MailboxId> = devices_of(self.sql, user)?.into_iter().map(|(id, _)| id).collect();
        for device in &devices {
            self.drop_device(*device)?;
        }
        self.sql.prepare_cached("DELETE FROM users WHERE id = ?1")?.execute([user])?;
        Ok(devices)
    }

    pub(super) fn delete_user(&mut self, app: &AppId, user: &UserId) -> Result<bool, Failure> {
        let Some(user) = find_user(self.sql, app, user)? else { return Ok(false) };
        self.drop_user(user.id)?;
        Ok(true)
    }

    pub(super) fn delete_account(&mut self, holder: Holder) -> Result<Vec<MailboxId>, Failure> {
        let owner: Option<i64> = self
            .sql
            .prepare_cached("SELECT user FROM devices WHERE id = ?1 AND generation = ?2")?
            .query_row(params![holder.device.0, int(holder.generation)], |row| row.get(0))
            .optional()?;
        let owner = owner.ok_or(StoreError::Refused(NOT_REGISTERED))?;
        Ok(self.drop_user(owner)?)
    }

    pub(super) fn attach(&mut self, attach: &Attach) -> Result<Attached, Failure> {
        let sql = self.sql;
        let known = find_user(sql, &attach.app, &attach.address.user)?;
        let registering = rules::register(known.as_ref().map(|user| (&user.list, &user.rotations)), attach)
            .map_err(|refusal| Failure::Store(StoreError::Refused(refusal)))?;
        let stored = known.as_ref().and_then(|user| DeviceList::decode(&user.list).ok());
        let mut removed = Vec::new();
        if let (Registering::Replace, Some(user)) = (registering, &known) {
            removed.extend(self.drop_user(user.id)?);
        }
        let user = match (registering, known) {
            (Registering::Known | Registering::NewList | Registering::Rotate, Some(user)) => user.id,
            _ => sql
                .prepare_cached("INSERT INTO users (app, name, list, signature) VALUES (?1, ?2, x'', x'')")?
                .insert(params![attach.app.as_str(), attach.address.user.as_str()])?,
        };
        if registering != Registering::Known {
            // Rotated, a device keeps its number and mailbox: whoever holds both keys says that it is the same.
            let before = stored.as_ref().filter(|_| registering != Registering::Rotate);
            self.adopt_list(user, (before, attach), &mut removed)?;
        }
        if registering == Registering::Rotate {
            self.forget_keys(user, &mut removed)?;
        }
        let (id, epoch): (i64, i64) = sql
            .prepare_cached("SELECT id, epoch FROM devices WHERE user = ?1 AND device = ?2")?
            .query_row(params![user, attach.address.device.get()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?
            .ok_or(StoreError::refused(Code::UnknownDevice, "the device list does not hold this device"))?;
        let device = MailboxId(id);
        // Nothing is written for a device that is known: with a full disk it comes for its mail, which makes room.
        *self.fence += u64::from(attach.receive);
        let state = self.cache.device(sql, device)?.cloned().unwrap_or_default();
        Ok(Attached {
            device,
            generation: state.generation,
            registration: registering.told(),
            epoch: epoch.cast_unsigned(),
            fence: *self.fence,
            highest_counter: state.counter.value,
            counter_mac: state.counter.mac,
            lost_seq: state.lost_seq,
            last_seq: state.last_seq,
            keys: counts(sql, device)?.unwrap_or_default(),
            removed,
        })
    }

    /// Makes the stored devices those of the list.
    fn adopt_list(
        &mut self,
        user: i64,
        (stored, attach): (Option<&DeviceList>, &Attach),
        removed: &mut Vec<MailboxId>,
    ) -> Result<(), Failure> {
        self.sql
            .prepare_cached(
                "UPDATE users SET list = ?2, signature = ?3, rotations = coalesce(?4, rotations) WHERE id = ?1",
            )?
            .execute(params![
                user,
                &attach.list_bytes[..],
                attach.list_signature,
                attach.rotations.as_ref().map(|(_, bytes)| &bytes[..])
            ])?;
        let (present, gone): (Vec<_>, Vec<_>) = devices_of(self.sql, user)?
            .into_iter()
            .partition(|(_, number)| rules::is_same_device(stored, &attach.list, *number));
        for (device, _) in gone {
            self.drop_device(device)?;
            removed.push(device);
        }
        for entry in &attach.list.devices {
            if !present.iter().any(|(_, number)| *number == entry.id) {
                self.sql
                    .prepare_cached("INSERT INTO devices (user, device, epoch) VALUES (?1, ?2, ?3)")?
                    .execute(params![user, entry.id.get(), int(attach.fresh_epoch)])?;
            }
        }
        Ok(())
    }

    /// The devices of a user have other keys from now on: those that they signed before are of no use, nor are their
    /// numbers, and the counter is proven by another key. Who is connected with the old ones is to go.
    fn forget_keys(&mut self, user: i64, removed: &mut Vec<MailboxId>) -> Result<(), Failure> {
        for (device, _) in devices_of(self.sql, user)? {
            self.sql.prepare_cached("DELETE FROM one_time WHERE device = ?1")?.execute([device.0])?;
            self.sql
                .prepare_cached(
                    "UPDATE devices SET generation = generation + 1, signed_prekey = NULL, kem_last_resort = NULL,
                     highest_one_time = -1, highest_kem = -1, counter = 0, counter_mac = NULL WHERE id = ?1",
                )?
                .execute([device.0])?;
            self.cache.forget(device);
            removed.push(device);
        }
        Ok(())
    }

    pub(super) fn upload(&mut self, holder: Holder, upload: &UploadKeys) -> Result<KeyCounts, Failure> {
        let (sql, device) = (self.sql, holder.device);
        let highest: Option<(i64, i64)> = sql
            .prepare_cached(
                "SELECT highest_one_time, highest_kem FROM devices WHERE id = ?1 AND generation = ?2",
            )?
            .query_row(params![device.0, int(holder.generation)], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (mut one_time, mut kem) = highest.ok_or(StoreError::Refused(NOT_REGISTERED))?;
        let list: Vec<u8> = sql
            .prepare_cached("SELECT list FROM users WHERE id = (SELECT user FROM devices WHERE id = ?1)")?
            .query_row([device.0], |row| row.get(0))?;
        rules::suite_of(&list).and_then(|suite| rules::fits(suite, upload)).map_err(StoreError::Refused)?;
        if upload.replace_one_time {
            sql.prepare_cached("DELETE FROM one_time WHERE device = ?1")?.execute([device.0])?;
        }
        if let Some(key) = &upload.signed_prekey {
            let bytes = proto::SignedPrekey::from(key).encode_to_vec();
            sql.prepare_cached("UPDATE devices SET signed_prekey = ?2 WHERE id = ?1")?
                .execute(params![device.0, bytes])?;
        }
        if let Some(key) = &upload.kem_last_resort {
            let bytes = proto::KemPrekey::from(key).encode_to_vec();
            sql.prepare_cached("UPDATE devices SET kem_last_resort = ?2 WHERE id = ?1")?
                .execute(params![device.0, bytes])?;
        }
        let keys =
            upload.one_time.iter().map(|key| (key.id, proto::OneTimePrekey::from(key).encode_to_vec()));
        self.add(device, (ONE_TIME, &mut one_time), keys.collect())?;
        let keys =
            upload.kem_one_time.iter().map(|key| (key.id, proto::KemPrekey::from(key).encode_to_vec()));
        self.add(device, (KEM, &mut kem), keys.collect())?;
        sql.prepare_cached("UPDATE devices SET highest_one_time = ?2, highest_kem = ?3 WHERE id = ?1")?
            .execute(params![device.0, one_time, kem])?;
        Ok(counts(sql, device)?.unwrap_or_default())
    }

    /// Adds keys whose number is higher than any before, while there is room.
    fn add(
        &mut self,
        device: MailboxId,
        (kind, highest): (i64, &mut i64),
        mut keys: Vec<(u32, Vec<u8>)>,
    ) -> Result<(), rusqlite::Error> {
        keys.sort_by_key(|(id, _)| *id);
        let held: u32 = self
            .sql
            .prepare_cached("SELECT count(*) FROM one_time WHERE device = ?1 AND kind = ?2")?
            .query_row(params![device.0, kind], |row| row.get(0))?;
        let room = usize::try_from(ONE_TIME_KEYS.saturating_sub(held)).unwrap_or_default();
        let fresh = keys.into_iter().filter(|(id, _)| i64::from(*id) > *highest).take(room);
        let mut last = *highest;
        for (id, key) in fresh {
            if i64::from(id) > last {
                last = i64::from(id);
                self.sql
                    .prepare_cached("INSERT INTO one_time VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![device.0, kind, id, key])?;
            }
        }
        *highest = last;
        Ok(())
    }

    pub(super) fn bundles(
        &mut self,
        app: &AppId,
        user: &UserId,
        take: &Take,
    ) -> Result<Option<UserBundles>, Failure> {
        let sql = self.sql;
        let Some(user) = find_user(sql, app, user)? else { return Ok(None) };
        let mut found = UserBundles {
            list: user.list,
            signature: user.signature,
            rotations: user.rotations,
            bundles: Vec::new(),
            low: Vec::new(),
        };
        if take.devices_only {
            return Ok(Some(found));
        }
        for (id, device) in devices_of(sql, user.id)? {
            if !is_wanted(&take.devices, device) {
                continue;
            }
            let keys: LastingKeys = sql
                .prepare_cached("SELECT signed_prekey, kem_last_resort FROM devices WHERE id = ?1")?
                .query_row([id.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let (Some(signed), Some(last_resort)) = keys else { continue };
            let before = counts(sql, id)?.unwrap_or_default();
            let (mut one_time, mut kem) = (None, None);
            if take.one_time {
                one_time = pop(sql, id, ONE_TIME)?.map(|bytes| one_time_prekey(&bytes)).transpose()?;
                kem = pop(sql, id, KEM)?.map(|bytes| kem_prekey(&bytes)).transpose()?;
            }
            let after = KeyCounts {
                one_time: before.one_time - u32::from(one_time.is_some()),
                kem_one_time: before.kem_one_time - u32::from(kem.is_some()),
                ..before
            };
            if crossed_low(&before, &after) {
                found.low.push((id, after));
            }
            let kem_is_last_resort = kem.is_none();
            let kem = match kem {
                Some(kem) => kem,
                None => kem_prekey(&last_resort)?,
            };
            let signed_prekey = signed_prekey(&signed)?;
            found.bundles.push(DeviceBundle { device, signed_prekey, one_time, kem, kem_is_last_resort });
        }
        Ok(Some(found))
    }
}

pub(super) fn resolve(
    sql: &Connection,
    app: &AppId,
    address: &Address,
) -> Result<Option<MailboxId>, rusqlite::Error> {
    sql.prepare_cached(
        "SELECT devices.id FROM users JOIN devices ON devices.user = users.id
         WHERE app = ?1 AND name = ?2 AND device = ?3",
    )?
    .query_row(params![app.as_str(), address.user.as_str(), address.device.get()], |row| {
        row.get(0).map(MailboxId)
    })
    .optional()
}

const HAS_KEYS: &str = "signed_prekey IS NOT NULL AND kem_last_resort IS NOT NULL";

pub(super) fn user_state(
    sql: &Connection,
    app: &AppId,
    user: &UserId,
) -> Result<Registered, rusqlite::Error> {
    let query = format!(
        "SELECT EXISTS (SELECT 1 FROM devices WHERE devices.user = users.id AND {HAS_KEYS})
         FROM users WHERE app = ?1 AND name = ?2"
    );
    let known: Option<bool> = sql
        .prepare_cached(&query)?
        .query_row(params![app.as_str(), user.as_str()], |row| row.get(0))
        .optional()?;
    Ok(Registered { registered: known.is_some(), has_keys: known.unwrap_or(false) })
}

pub(super) fn has_keys_anywhere(sql: &Connection, user: &UserId) -> Result<bool, rusqlite::Error> {
    let query = format!(
        "SELECT 1 FROM users JOIN devices ON devices.user = users.id WHERE name = ?1 AND {HAS_KEYS} LIMIT 1"
    );
    sql.prepare_cached(&query)?.exists([user.as_str()])
}
