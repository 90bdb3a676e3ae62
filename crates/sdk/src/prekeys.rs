//! Keeping prekeys at the relay: after each log-in, when they run low, and daily.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use core::num::NonZeroU64;
use stvor_base::Timestamp;
use stvor_crypto::SystemRandom;
use stvor_protocol::{KemPublicPrekey, PrekeyUpload, Prekeys, ServerCounts};
use stvor_store::{ChangeSet, Expect, Op, RowVersion, Sealed};
use stvor_wire::client::UploadKeys;
use stvor_wire::keys::{KemPrekey, KeyCounts, OneTimePrekey, SignedPrekey};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::core::Core;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::keys;
use crate::limits;
use crate::records;

/// The prekeys of one device.
pub(crate) struct PrekeyKeeper {
    state: tokio::sync::Mutex<Kept>,
    counts: Mutex<Option<KeyCounts>>,
    /// When one-time prekeys were last made.
    refilled: Mutex<Option<Instant>>,
    due: Notify,
    /// The relay may hold one-time prekeys of a store that is lost: the next upload takes their place.
    replace: AtomicBool,
    /// The relay holds what others need to write to this device.
    reachable: watch::Sender<bool>,
}

/// What was made so far, and which version of its row that is.
struct Kept {
    prekeys: Prekeys,
    version: Option<RowVersion>,
    /// Memory may have what the store has not: a commit failed or was given up, or has not been made.
    ahead: bool,
}

impl Kept {
    async fn read(store: &Sealed) -> Result<Self> {
        let row = store.one(&records::key(&Prekeys::key())?).await.map_err(Error::passed)?;
        let anew = store.one(&keys::meta(ANEW)).await.map_err(Error::passed)?;
        let first = anew.and_then(|row| row.value.expose().try_into().ok()).map(u32::from_be_bytes);
        let Some(row) = row else {
            // Nothing was made here so far.
            let prekeys = first.map_or_else(Prekeys::default, Prekeys::starting_at);
            return Ok(Self { prekeys, version: None, ahead: false });
        };
        let version = Some(row.version);
        let rows = [(Prekeys::key(), row.value)].into_iter().collect();
        Ok(Self { prekeys: Prekeys::load(&rows).map_err(Error::passed)?, version, ahead: false })
    }

    /// Before anything is made: a prekey without its private half must never leave, so what may not be stored is read again. Of a
    /// shared store another instance may have made some since.
    async fn refresh(&mut self, core: &Core) -> Result<()> {
        if self.ahead || core.instances.is_shared() {
            *self = Self::read(&core.store).await?;
        }
        self.ahead = true;
        Ok(())
    }

    /// Commits what goes with a change of the row. If that fails, or is given up, memory is read again before its next use.
    async fn commit(&mut self, core: &Core, mut changes: ChangeSet) -> Result<()> {
        let state = records::key(&Prekeys::key())?;
        let mut written = false;
        for op in &mut changes.ops {
            if let Op::Put { key, expect, .. } = op
                && *key == state
                && !core::mem::replace(&mut written, true)
            {
                *expect = self.version.map_or(Expect::Absent, Expect::Version);
            }
        }
        if !changes.is_empty() {
            self.ahead = true;
            let version = core.store.commit(changes).await.map_err(Error::passed)?;
            if written {
                self.version = Some(version);
            }
        }
        self.ahead = false;
        Ok(())
    }
}

/// Prekeys were renewed, and those at the relay are to be replaced.
const RENEW: &str = "renew";

impl PrekeyKeeper {
    pub(crate) async fn load(store: &Sealed) -> Result<Self> {
        let anew = store.one(&keys::meta(ANEW)).await.map_err(Error::passed)?;
        let state = Kept::read(store).await?;
        Ok(Self {
            replace: AtomicBool::new(anew.is_some()),
            state: tokio::sync::Mutex::new(state),
            counts: Mutex::default(),
            refilled: Mutex::default(),
            due: Notify::new(),
            reachable: watch::Sender::new(false),
        })
    }

    /// The relay told what it holds: see to it soon.
    pub(crate) fn hurry(&self, counts: KeyCounts) {
        self.set_counts(counts);
        self.due.notify_one();
    }

    fn set_counts(&self, counts: KeyCounts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
        self.reachable.send_replace(counts.signed_prekey_id.is_some() && counts.kem_last_resort_id.is_some());
    }

    /// Waits until others can write to this device.
    pub(crate) async fn reachable(&self) {
        let mut reachable = self.reachable.subscribe();
        let _ = reachable.wait_for(|reachable| *reachable).await;
    }

    pub(crate) fn counts(&self) -> Option<KeyCounts> {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to do.
    pub(crate) async fn due(&self) {
        self.due.notified().await;
    }

    /// When one-time prekeys may be made again, if that is not now.
    pub(crate) fn next_refill(&self) -> Option<Instant> {
        let refilled = *self.refilled.lock().unwrap_or_else(PoisonError::into_inner);
        refilled.map(|at| at + limits::PREKEY_REFILL).filter(|next| *next > Instant::now())
    }

    /// What the relay lacks by its own account. One-time prekeys are made at a bounded rate, whatever it says it has: each
    /// costs work and room here.
    async fn due_upload(
        &self,
        prekeys: &mut Kept,
        (core, mut counts): (&Core, KeyCounts),
    ) -> Result<Option<UploadKeys>> {
        let renewed = core.store.one(&keys::meta(RENEW)).await.map_err(Error::passed)?.is_some();
        if self.replace.load(Ordering::Relaxed) || renewed {
            counts = KeyCounts::default();
        }
        if self.next_refill().is_some() {
            (counts.one_time, counts.kem_one_time) = (u32::MAX, u32::MAX);
        }
        let upload = prepare(prekeys, core, counts).await?;
        if upload
            .as_ref()
            .is_some_and(|upload| !(upload.one_time.is_empty() && upload.kem_one_time.is_empty()))
        {
            *self.refilled.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        Ok(upload)
    }

    /// Whether this store takes the place of a lost one and the relay does not have its prekeys yet.
    pub(crate) fn starts_anew(&self) -> bool {
        self.replace.load(Ordering::Relaxed)
    }

    /// An id above those of all prekeys that were made so far.
    pub(crate) async fn next_id(&self) -> u32 {
        self.state.lock().await.prekeys.next_id()
    }

    /// Makes what is due and uploads it.
    pub(crate) async fn maintain(&self, core: &Core) -> Result<()> {
        match self.maintain_once(core).await {
            Err(error) if is_conflict(&error) => self.maintain_once(core).await,
            done => done,
        }
    }

    async fn maintain_once(&self, core: &Core) -> Result<()> {
        let Some(counts) = self.counts() else { return Ok(()) };
        let Some(session) = core.session() else { return Ok(()) };
        let mut kept = self.state.lock().await;
        kept.refresh(core).await?;
        let Some(mut upload) = self.due_upload(&mut kept, (core, counts)).await? else { return Ok(()) };
        let anew = self.replace.load(Ordering::Relaxed);
        let renewed = core.store.one(&keys::meta(RENEW)).await.map_err(Error::passed)?.is_some();
        upload.replace_one_time = (anew || renewed) && !upload.one_time.is_empty();
        let count = u32::try_from(upload.one_time.len()).unwrap_or(u32::MAX);
        let replaced = upload.replace_one_time;
        let held = session.upload(upload, UPLOAD_TIMEOUT).await?;
        self.set_counts(held);
        let mut changes = ChangeSet::new();
        records::write(&core.store, &mut changes, kept.prekeys.uploaded(core.now()))?;
        if replaced {
            changes.delete(keys::meta(RENEW));
        }
        if replaced && anew {
            changes.delete(keys::meta(ANEW));
            // What the relay told at the log-in is the floor from now on.
            changes.put(keys::meta("counter"), core.counter().to_be_bytes().to_vec());
        }
        kept.commit(core, changes).await?;
        if replaced {
            self.replace.store(false, Ordering::Relaxed);
        }
        if replaced && anew && held.one_time < count {
            // Another store took the place of the lost one a moment before, and began with the same ids, which the relay takes once:
            // those of the next batch are above them. Once, whatever the relay says.
            *self.refilled.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.due.notify_one();
        }
        core.hub.emit(Event::PrekeysUploaded { count });
        Ok(())
    }

    /// Gives up prekeys that an old copy of the store is wrong about; the relay gets new ones as soon as it can.
    pub(crate) async fn renew(&self, core: &Core) -> Result<()> {
        let known = self.counts().and_then(|counts| counts.signed_prekey_id);
        let mut kept = self.state.lock().await;
        kept.refresh(core).await?;
        let effects = kept
            .prekeys
            .renew(&core.identity, known, core.now(), &mut SystemRandom::new())
            .map_err(Error::passed)?;
        let mut changes = ChangeSet::new();
        records::write(&core.store, &mut changes, effects)?;
        changes.put(keys::meta(RENEW), vec![1]);
        kept.commit(core, changes).await?;
        // The private halves of those at the relay are gone: it is not for the pace of refills to leave them there.
        *self.refilled.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.due.notify_one();
        Ok(())
    }

    /// Fresh prekeys for a bundle that travels another way than by the relay: a signed one, and one one-time one of each
    /// kind.
    pub(crate) async fn for_export(&self, core: &Core) -> Result<Export> {
        match self.for_export_once(core).await {
            Err(error) if is_conflict(&error) => self.for_export_once(core).await,
            done => done,
        }
    }

    async fn for_export_once(&self, core: &Core) -> Result<Export> {
        let mut kept = self.state.lock().await;
        kept.refresh(core).await?;
        // As a relay that lacks nothing but the signed one.
        let counts = KeyCounts { one_time: u32::MAX, kem_one_time: u32::MAX, ..KeyCounts::default() };
        let upload = prepare(&mut kept, core, counts).await?;
        let missing = || Error::not_ready("no prekey could be made");
        let signed = upload.and_then(|upload| upload.signed_prekey).ok_or_else(missing)?;
        // One of each and no more: those at the relay are not to be pushed out by what nobody gets.
        let (one_time, kem, effects) = kept
            .prekeys
            .one_more(&core.identity, core.now(), &mut SystemRandom::new())
            .map_err(Error::passed)?;
        let mut changes = ChangeSet::new();
        records::write(&core.store, &mut changes, effects)?;
        kept.commit(core, changes).await?;
        let one = to_wire(PrekeyUpload {
            one_time: vec![one_time],
            kem_one_time: vec![kem],
            ..PrekeyUpload::default()
        });
        Ok(Export {
            signed,
            one_time: one.one_time.into_iter().next(),
            kem: one.kem_one_time.into_iter().next().ok_or_else(missing)?,
        })
    }
}

/// The first prekey id of a store that takes the place of a lost one.
const ANEW: &str = "prekeys_anew";

/// Seconds from 1970 to 2020: ids of prekeys have 32 bits.
const YEAR_2020: u64 = 1_577_836_800;

/// Notes that this store takes the place of one that is lost, `next` the next prekey id that is known of it. The relay takes
/// only ids above all that it had, and the lost store may have made more since: a store makes less than one a second, so
/// the seconds since 2020 are above them.
pub(crate) fn start_anew(changes: &mut ChangeSet, next: u32, now: Timestamp) {
    let seconds = (now.as_millis() / 1_000).saturating_sub(YEAR_2020);
    let first = u32::try_from(seconds).unwrap_or(u32::MAX / 2).max(next);
    changes.put(keys::meta(ANEW), first.to_be_bytes().to_vec());
}

/// What an exported bundle holds beside the device list.
pub(crate) struct Export {
    pub(crate) signed: SignedPrekey,
    pub(crate) one_time: Option<OneTimePrekey>,
    pub(crate) kem: KemPrekey,
}

/// Whether the row is another one than memory has: a rotation of the data key seals it anew, another instance makes prekeys. It is
/// read again before the next use.
fn is_conflict(error: &Error) -> bool {
    error.code() == "STORE_CONFLICT"
}

const UPLOAD_TIMEOUT: Duration = Duration::from_secs(20);

/// What is to be uploaded, after it was committed. The current generation is repeated to a relay that lost it.
async fn prepare(kept: &mut Kept, core: &Core, counts: KeyCounts) -> Result<Option<UploadKeys>> {
    let prekeys = &mut kept.prekeys;
    let server = ServerCounts { one_time: counts.one_time, kem_one_time: counts.kem_one_time };
    let maintenance = prekeys
        .maintain(&core.identity, server, core.now(), &mut SystemRandom::new())
        .map_err(Error::passed)?;
    let mut upload = maintenance.upload.unwrap_or_default();
    let lost = counts.signed_prekey_id.is_none() || counts.kem_last_resort_id.is_none();
    if upload.signed.is_none() && lost {
        let rows = records::load(&core.store, &prekeys.newest(), &maintenance.effects).await?;
        let again = prekeys.repeat(&core.identity, &rows, &mut SystemRandom::new()).map_err(Error::passed)?;
        let PrekeyUpload { signed, kem_last, .. } = again.unwrap_or_default();
        (upload.signed, upload.kem_last) = (signed, kem_last);
    }
    let mut changes = ChangeSet::new();
    records::write(&core.store, &mut changes, maintenance.effects)?;
    for (kind, partition) in maintenance.clear {
        changes.delete_partition(records::table(kind)?, partition);
    }
    kept.commit(core, changes).await?;
    Ok(Some(upload).filter(|upload| *upload != PrekeyUpload::default()).map(to_wire))
}

fn to_wire(upload: PrekeyUpload) -> UploadKeys {
    let kem = |key: KemPublicPrekey| KemPrekey {
        id: key.id,
        key: key.public.into(),
        created_at: Timestamp::from_millis(key.created),
        signature: key.signature,
    };
    UploadKeys {
        request_id: NonZeroU64::MIN,
        signed_prekey: upload.signed.map(|key| SignedPrekey {
            id: key.id,
            key: key.public,
            created_at: Timestamp::from_millis(key.created),
            signature: key.signature,
        }),
        kem_last_resort: upload.kem_last.map(kem),
        one_time: upload
            .one_time
            .into_iter()
            .map(|key| OneTimePrekey { id: key.id, key: key.public })
            .collect(),
        kem_one_time: upload.kem_one_time.into_iter().map(kem).collect(),
        replace_one_time: false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::clock::testing::{Behind, soon};
    use crate::{App, Client, ConnectOptions, SendOptions, SendWait};

    #[tokio::test(flavor = "multi_thread")]
    async fn asking_again_and_again_for_who_was_away_for_long_costs_them_one_prekey() {
        let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let app = || App::builder().app_token("stvor_dev_test123").relay_url(relay.url());
        let clock = Arc::new(Behind(AtomicU64::new(31 * 86_400_000)));
        let his = app().data_dir(directory.path()).clock(clock.clone()).open().await.unwrap();
        let counts = |bob: &Client| bob.core().prekeys.counts().unwrap_or_default();
        let bob = his.connect("bob").await.unwrap();
        soon(async {
            while counts(&bob).one_time == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let before = counts(&bob);
        bob.close().await;
        let alice = app().in_memory().open().await.unwrap().connect("alice").await.unwrap();
        let queued = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
        alice.send_with("bob", "for when you are back", queued).await.unwrap();
        for _ in 0..4 {
            // Each has the relay asked at once.
            alice.reset_session("bob").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(alice.pending(), 1, "there is nothing yet that a session could start with");
        clock.0.store(0, Ordering::Relaxed);
        let bob = his.connect("bob").await.unwrap();
        soon(async {
            while counts(&bob).signed_prekey_id == before.signed_prekey_id {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let after = counts(&bob);
        assert_eq!((after.one_time + 1, after.kem_one_time + 1), (before.one_time, before.kem_one_time));
        alice.reset_session("bob").await.unwrap();
        let message = soon(bob.messages().next()).await.unwrap();
        assert_eq!(message.text(), Some("for when you are back"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_second_of_two_restores_in_one_moment_has_one_time_prekeys_too() {
        let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await.unwrap();
        let words = crate::RecoveryPhrase::fresh().unwrap().words();
        let words = core::str::from_utf8(words.expose()).unwrap();
        let begun = Instant::now();
        for _ in 0..2 {
            let passed = u64::try_from(begun.elapsed().as_millis()).unwrap();
            let app = App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).in_memory();
            let app = app.identity_phrase(words).clock(Arc::new(Behind(AtomicU64::new(passed))));
            let alice = app.open().await.unwrap().connect("alice").await.unwrap();
            let prekeys = &alice.core().prekeys;
            let few = || {
                let counts = prekeys.counts().unwrap_or_default();
                counts.one_time.min(counts.kem_one_time) < stvor_protocol::limits::ONE_TIME_LOW
            };
            soon(async {
                while prekeys.starts_anew() || few() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            alice.close().await;
        }
    }

    #[tokio::test]
    async fn a_relay_that_never_has_one_time_prekeys_gets_them_once_a_minute() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let app = App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
        let app = app.in_memory().open().await.unwrap();
        let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
        let client = app.connect_with("alice", options).await.unwrap();
        let (core, prekeys) = (client.core(), &client.core().prekeys);
        let mut state = prekeys.state.lock().await;
        let none = (&**core, KeyCounts::default());
        let first = prekeys.due_upload(&mut state, none).await.unwrap().unwrap();
        assert!(!first.one_time.is_empty() && !first.kem_one_time.is_empty());
        let again = prekeys.due_upload(&mut state, none).await.unwrap().unwrap();
        assert!(again.one_time.is_empty() && again.kem_one_time.is_empty());
        assert!(again.signed_prekey.is_some() && again.kem_last_resort.is_some(), "those it may lack");
        let past = Instant::now().checked_sub(limits::PREKEY_REFILL).unwrap();
        *prekeys.refilled.lock().unwrap() = Some(past);
        let later = prekeys.due_upload(&mut state, none).await.unwrap().unwrap();
        assert!(!later.one_time.is_empty() && !later.kem_one_time.is_empty());
    }
}
