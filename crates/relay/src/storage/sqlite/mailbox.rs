//! Messages in SQL: put, acknowledge, read, sweep.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};
use stvor_base::{Address, AppId, DeviceId, MessageId, Timestamp, UserId};

use super::writer::{Batch, unavailable};
use crate::storage::rules::{
    Counter, Gauge, ID_CONFLICT, Lanes, NO_RECIPIENT, NOT_REGISTERED, QUOTA, Share, month_of,
};
use crate::storage::{
    AckRow, Bounds, MailboxId, Page, PageLimit, Place, Put, Refusal, Row, StoreError, Stored, Swept,
};

/// Entries of a kind that the cache holds before it starts anew.
const CACHE_ENTRIES: usize = 50_000;

/// Rows that every message changes, kept in memory and written once a batch.
#[derive(Default)]
pub(super) struct Cache {
    devices: HashMap<i64, Option<DeviceState>>,
    lanes: HashMap<(i64, i64), LaneState>,
    usage: HashMap<AppId, Usage>,
    /// Messages of this batch, by mailbox and seq. What its device acknowledges within the batch is never written.
    fresh: BTreeMap<(i64, i64), Arc<Put>>,
    dirty_devices: Vec<i64>,
    dirty_lanes: Vec<(i64, i64)>,
    dirty_usage: Vec<AppId>,
}

/// What an acknowledgement finds among the messages of its batch.
enum Fresh {
    Absent,
    /// Another message has this place.
    OtherId,
    /// It was there, with so many bytes, of this sender, and is gone.
    Taken(u64, i64),
}

#[derive(Clone, Default)]
pub(super) struct DeviceState {
    /// Of the device's keys. Only a rotation changes it, which makes the cache forget the device.
    pub(super) generation: u64,
    pub(super) last_seq: u64,
    pub(super) lost_seq: u64,
    pub(super) counter: Counter,
    pub(super) gauge: Gauge,
    dirty: bool,
}

#[derive(Default)]
struct LaneState {
    lanes: Lanes,
    /// What of the mailbox is the sender's.
    share: Share,
    dirty: bool,
}

#[derive(Clone, Copy)]
struct Usage {
    month: u64,
    messages: u64,
    dirty: bool,
}

/// SQLite has signed integers only; the bits are kept.
pub(super) fn int(value: u64) -> i64 {
    value.cast_signed()
}

pub(super) fn millis(time: Timestamp) -> i64 {
    // Times are compared in SQL: far future stays far future.
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn load_device(sql: &Connection, device: MailboxId) -> Result<Option<DeviceState>, rusqlite::Error> {
    sql.prepare_cached(
        "SELECT last_seq, lost_seq, counter, messages, bytes, closed, counter_mac, generation FROM devices WHERE id = ?1",
    )?
    .query_row([device.0], |row| {
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(DeviceState {
            generation: number(7)?,
            last_seq: number(0)?,
            lost_seq: number(1)?,
            counter: Counter { value: number(2)?, mac: row.get(6)? },
            gauge: Gauge { messages: number(3)?, bytes: number(4)?, full: number(5)? != 0 },
            dirty: false,
        })
    })
    .optional()
}

fn load_lanes(sql: &Connection, key: (i64, i64)) -> Result<(Lanes, Share), rusqlite::Error> {
    let known = sql
        .prepare_cached(
            "SELECT epoch_1, last_1, epoch_2, last_2, messages, bytes FROM lanes WHERE device = ?1 AND sender = ?2",
        )?
        .query_row([key.0, key.1], |row| {
            let older: (Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?);
            let newer: (i64, i64) = (row.get(2)?, row.get(3)?);
            let pair = |(epoch, last): (i64, i64)| (epoch.cast_unsigned(), last.cast_unsigned());
            let older = older.0.zip(older.1).map(pair);
            let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            let share = Share { messages: number(4)?, bytes: number(5)? };
            Ok((Lanes(older.into_iter().chain([pair(newer)]).collect()), share))
        })
        .optional()?;
    Ok(known.unwrap_or_default())
}

impl Cache {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keeps the cache bounded. Only between transactions.
    pub(super) fn trim(&mut self) {
        if self.devices.len() > CACHE_ENTRIES || self.lanes.len() > CACHE_ENTRIES {
            self.clear();
        }
    }

    /// Forgets a device, after its changes were flushed.
    pub(super) fn forget(&mut self, device: MailboxId) {
        self.devices.remove(&device.0);
        self.lanes.retain(|(to, from), _| *to != device.0 && *from != device.0);
    }

    /// The state of a device; `None` when there is no such device.
    pub(super) fn device(
        &mut self,
        sql: &Connection,
        device: MailboxId,
    ) -> Result<Option<&mut DeviceState>, rusqlite::Error> {
        let state = match self.devices.entry(device.0) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(load_device(sql, device)?),
        };
        Ok(state.as_mut())
    }

    /// Takes a message out that is not written yet, if its id is the one that is acknowledged.
    fn take_fresh(&mut self, key: (i64, i64), msg_id: MessageId) -> Fresh {
        match self.fresh.get(&key) {
            None => Fresh::Absent,
            Some(put) if put.msg_id != msg_id => Fresh::OtherId,
            Some(put) => {
                let (length, sender) = (put.blob.len() as u64, put.sender.0);
                self.fresh.remove(&key);
                Fresh::Taken(length, sender)
            }
        }
    }

    fn touch(&mut self, device: MailboxId, change: impl FnOnce(&mut DeviceState)) {
        if let Some(Some(state)) = self.devices.get_mut(&device.0) {
            change(state);
            if !state.dirty {
                state.dirty = true;
                self.dirty_devices.push(device.0);
            }
        }
    }

    fn lanes(&mut self, sql: &Connection, key: (i64, i64)) -> Result<&mut LaneState, rusqlite::Error> {
        Ok(match self.lanes.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let (lanes, share) = load_lanes(sql, key)?;
                place.insert(LaneState { lanes, share, dirty: false })
            }
        })
    }

    /// A message left a mailbox: its room is free, and its sender's share is less.
    fn release(
        &mut self,
        sql: &Connection,
        key: (i64, i64),
        (length, bounds): (u64, &Bounds),
    ) -> Result<(), rusqlite::Error> {
        let mailbox = MailboxId(key.0);
        if self.device(sql, mailbox)?.is_none() {
            return Ok(());
        }
        self.touch(mailbox, |device| device.gauge.release(length, bounds));
        let state = self.lanes(sql, key)?;
        state.share.release(length);
        if !core::mem::replace(&mut state.dirty, true) {
            self.dirty_lanes.push(key);
        }
        Ok(())
    }

    fn usage(&mut self, sql: &Connection, app: &AppId, month: u64) -> Result<Usage, rusqlite::Error> {
        match self.usage.get(app) {
            Some(usage) if usage.month == month => Ok(*usage),
            _ => {
                let messages: Option<i64> = sql
                    .prepare_cached("SELECT messages FROM usage WHERE app = ?1 AND month = ?2")?
                    .query_row(params![app.as_str(), int(month)], |row| row.get(0))
                    .optional()?;
                let usage = Usage { month, messages: messages.unwrap_or(0).cast_unsigned(), dirty: false };
                self.usage.insert(app.clone(), usage);
                Ok(usage)
            }
        }
    }

    fn count(&mut self, app: &AppId) {
        if let Some(usage) = self.usage.get_mut(app) {
            usage.messages += 1;
            if !usage.dirty {
                usage.dirty = true;
                self.dirty_usage.push(app.clone());
            }
        }
    }

    /// Writes what changed. To be called before a statement looks at the tables of messages, devices, lanes or usage.
    pub(super) fn flush(&mut self, sql: &Connection) -> Result<(), rusqlite::Error> {
        self.flush_messages(sql)?;
        self.flush_devices(sql)?;
        self.flush_lanes(sql)?;
        for app in self.dirty_usage.drain(..) {
            let Some(usage) = self.usage.get_mut(&app) else { continue };
            sql.prepare_cached("INSERT OR REPLACE INTO usage VALUES (?1, ?2, ?3)")?.execute(params![
                app.as_str(),
                int(usage.month),
                int(usage.messages)
            ])?;
            usage.dirty = false;
        }
        Ok(())
    }

    fn flush_messages(&mut self, sql: &Connection) -> Result<(), rusqlite::Error> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        let mut insert =
            sql.prepare_cached("INSERT INTO messages VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
        for ((device, seq), put) in std::mem::take(&mut self.fresh) {
            insert.execute(params![
                device,
                seq,
                put.msg_id.as_bytes(),
                put.sender.0,
                put.from.user.as_str(),
                put.from.device.get(),
                millis(put.received_at),
                millis(put.expires_at),
                &put.blob[..]
            ])?;
        }
        Ok(())
    }

    fn flush_devices(&mut self, sql: &Connection) -> Result<(), rusqlite::Error> {
        if self.dirty_devices.is_empty() {
            return Ok(());
        }
        let mut update = sql.prepare_cached(
            "UPDATE devices SET last_seq = ?2, lost_seq = ?3, counter = ?4, messages = ?5, bytes = ?6, closed = ?7,
             counter_mac = ?8 WHERE id = ?1",
        )?;
        for id in self.dirty_devices.drain(..) {
            let Some(Some(state)) = self.devices.get_mut(&id) else { continue };
            update.execute(params![
                id,
                int(state.last_seq),
                int(state.lost_seq),
                int(state.counter.value),
                int(state.gauge.messages),
                int(state.gauge.bytes),
                state.gauge.full,
                state.counter.mac
            ])?;
            state.dirty = false;
        }
        Ok(())
    }

    fn flush_lanes(&mut self, sql: &Connection) -> Result<(), rusqlite::Error> {
        if self.dirty_lanes.is_empty() {
            return Ok(());
        }
        let mut replace =
            sql.prepare_cached("INSERT OR REPLACE INTO lanes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
        for key in self.dirty_lanes.drain(..) {
            let Some(state) = self.lanes.get_mut(&key) else { continue };
            let Some(newer) = state.lanes.0.last() else { continue };
            let older = state.lanes.0.len().checked_sub(2).and_then(|at| state.lanes.0.get(at));
            replace.execute(params![
                key.0,
                key.1,
                older.map(|lane| int(lane.0)),
                older.map(|lane| int(lane.1)),
                int(newer.0),
                int(newer.1),
                int(state.share.messages),
                int(state.share.bytes)
            ])?;
            state.dirty = false;
        }
        Ok(())
    }
}

impl Batch<'_> {
    /// Makes an SQL error the batch's, and tells the caller.
    fn note<T>(&mut self, result: Result<T, rusqlite::Error>) -> Result<T, StoreError> {
        result.map_err(|error| {
            let told = unavailable(&error);
            self.failed = Some(error);
            told
        })
    }

    pub(super) fn put(&mut self, put: &Arc<Put>, hash: [u8; 16]) -> Result<Stored, StoreError> {
        let result = self.try_put(put, hash);
        self.note(result)?.map_err(StoreError::Refused)
    }

    fn try_put(
        &mut self,
        put: &Arc<Put>,
        hash: [u8; 16],
    ) -> Result<Result<Stored, Refusal>, rusqlite::Error> {
        let (sql, bounds) = (self.sql, self.bounds);
        let key = (put.mailbox.0, put.sender.0);
        let sender = self.cache.device(sql, put.sender)?;
        if sender.is_none_or(|sender| sender.generation != put.generation) {
            return Ok(Err(NOT_REGISTERED));
        }
        let Some(device) = self.cache.device(sql, put.mailbox)? else { return Ok(Err(NO_RECIPIENT)) };
        let (seq, mut gauge) = (device.last_seq + 1, device.gauge);
        let state = self.cache.lanes(sql, key)?;
        let (mut lanes, mut share) = (state.lanes.clone(), state.share);
        let month = month_of(put.received_at);
        let over_quota = match bounds.monthly_messages {
            Some(limit) => self.cache.usage(sql, &put.app, month)?.messages >= limit,
            None => false,
        };
        let admitted = lanes
            .advance(put.lane)
            .and(if over_quota { Err(QUOTA) } else { Ok(()) })
            .and_then(|()| share.admit(put.blob.len(), bounds))
            .and_then(|()| gauge.admit(put.blob.len(), bounds));
        if let Err(refusal) = admitted {
            if gauge.full {
                self.cache.touch(put.mailbox, |device| device.gauge.full = true);
            }
            return Ok(seen(sql, put, hash)?.unwrap_or(Err(refusal)));
        }
        let remembered = (put.received_at + bounds.dedup).max(put.expires_at);
        let fresh = sql
            .prepare_cached("INSERT OR IGNORE INTO seen VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![key.0, key.1, put.msg_id.as_bytes(), hash, int(seq), millis(remembered)])?;
        if fresh == 0 {
            return Ok(seen(sql, put, hash)?.unwrap_or(Ok(Stored::Duplicate)));
        }
        self.cache.fresh.insert((put.mailbox.0, int(seq)), put.clone());
        self.cache.touch(put.mailbox, |device| {
            device.last_seq = seq;
            device.gauge = gauge;
        });
        self.cache.touch(put.sender, |sender| sender.counter.see(put.counter, put.counter_mac));
        if bounds.monthly_messages.is_some() {
            self.cache.count(&put.app);
        }
        let state = self.cache.lanes(sql, key)?;
        (state.lanes, state.share) = (lanes, share);
        if !state.dirty {
            state.dirty = true;
            self.cache.dirty_lanes.push(key);
        }
        Ok(Ok(Stored::New { seq }))
    }

    pub(super) fn ack(&mut self, mailbox: MailboxId, rows: &[AckRow]) -> Result<Vec<MessageId>, StoreError> {
        let result = self.try_ack(mailbox, rows);
        self.note(result)
    }

    fn try_ack(&mut self, mailbox: MailboxId, rows: &[AckRow]) -> Result<Vec<MessageId>, rusqlite::Error> {
        let (sql, bounds) = (self.sql, self.bounds);
        let mut mismatched = Vec::new();
        for ack in rows {
            let seq = match ack.place {
                Place::Seq(seq) => Some(int(seq)),
                Place::From(sender) => sql
                    .prepare_cached("SELECT seq FROM seen WHERE device = ?1 AND sender = ?2 AND msg_id = ?3")?
                    .query_row(params![mailbox.0, sender.0, ack.msg_id.as_bytes()], |row| row.get(0))
                    .optional()?,
            };
            let Some(seq) = seq else { continue };
            match self.cache.take_fresh((mailbox.0, seq), ack.msg_id) {
                Fresh::Taken(length, sender) => {
                    self.cache.release(sql, (mailbox.0, sender), (length, bounds))?;
                    continue;
                }
                Fresh::OtherId => {
                    mismatched.push(ack.msg_id);
                    continue;
                }
                Fresh::Absent => {}
            }
            let deleted: Option<(i64, i64)> = sql
                .prepare_cached(
                    "DELETE FROM messages WHERE device = ?1 AND seq = ?2 AND msg_id = ?3
                     RETURNING length(blob), sender",
                )?
                .query_row(params![mailbox.0, seq, ack.msg_id.as_bytes()], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            if let Some((length, sender)) = deleted {
                self.cache.release(sql, (mailbox.0, sender), (length.cast_unsigned(), bounds))?;
            } else if sql
                .prepare_cached("SELECT 1 FROM messages WHERE device = ?1 AND seq = ?2")?
                .exists(params![mailbox.0, seq])?
            {
                mismatched.push(ack.msg_id);
            }
        }
        Ok(mismatched)
    }

    pub(super) fn sweep(&mut self, now: Timestamp, limit: usize) -> Result<Swept, rusqlite::Error> {
        let (sql, bounds) = (self.sql, self.bounds);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let expired: Vec<(i64, i64, i64, i64)> = sql
            .prepare_cached(
                "DELETE FROM messages WHERE rowid IN
                     (SELECT rowid FROM messages WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)
                 RETURNING device, seq, length(blob), sender",
            )?
            .query_map(params![millis(now), limit], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?
            .collect::<Result<_, _>>()?;
        for (device, seq, length, sender) in &expired {
            self.cache.release(sql, (*device, *sender), (length.cast_unsigned(), bounds))?;
            self.cache.touch(MailboxId(*device), |state| {
                state.lost_seq = state.lost_seq.max(seq.cast_unsigned());
            });
        }
        let ids = sql
            .prepare_cached(
                "DELETE FROM seen WHERE (device, sender, msg_id) IN
                     (SELECT device, sender, msg_id FROM seen WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)",
            )?
            .execute(params![millis(now), limit])?;
        Ok(Swept { messages: expired.len() as u64, ids: ids as u64 })
    }
}

/// What is known of a message id: a duplicate, a conflict, or nothing.
fn seen(
    sql: &Connection,
    put: &Put,
    hash: [u8; 16],
) -> Result<Option<Result<Stored, Refusal>>, rusqlite::Error> {
    let known: Option<Vec<u8>> = sql
        .prepare_cached("SELECT hash FROM seen WHERE device = ?1 AND sender = ?2 AND msg_id = ?3")?
        .query_row(params![put.mailbox.0, put.sender.0, put.msg_id.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(known.map(|known| if known == hash { Ok(Stored::Duplicate) } else { Err(ID_CONFLICT) }))
}

pub(super) fn read(
    sql: &Connection,
    mailbox: MailboxId,
    after: u64,
    (limit, without): (PageLimit, &[MailboxId]),
) -> Result<Page, rusqlite::Error> {
    // The blobs of what is left out are not even read. Their numbers are the relay's own.
    let without: Vec<String> = without.iter().map(|sender| sender.0.to_string()).collect();
    let mut statement = sql.prepare_cached(&format!(
        "SELECT seq, msg_id, sender, from_user, from_device, received_at, blob FROM messages
         WHERE device = ?1 AND seq > ?2 AND sender NOT IN ({}) ORDER BY seq",
        without.join(","),
    ))?;
    let mut found = statement.query(params![mailbox.0, int(after)])?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        let blob: Vec<u8> = row.get(6)?;
        bytes += blob.len();
        if rows.len() >= limit.rows || (bytes > limit.bytes && !rows.is_empty()) {
            return Ok(Page { rows, complete: false });
        }
        let (user, device): (String, u32) = (row.get(3)?, row.get(4)?);
        let (Ok(user), Ok(device)) = (UserId::from_canonical(&user), DeviceId::new(device)) else { continue };
        let msg_id: [u8; 16] = row.get(1)?;
        rows.push(Row {
            seq: row.get::<_, i64>(0)?.cast_unsigned(),
            msg_id: MessageId::from_bytes(msg_id),
            from: Address::new(user, device),
            sender: MailboxId(row.get(2)?),
            blob: Bytes::from(blob),
            received_at: Timestamp::from_millis(row.get::<_, i64>(5)?.cast_unsigned()),
        });
    }
    Ok(Page { rows, complete: true })
}
