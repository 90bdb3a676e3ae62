//! What agents may do, and the owner as one of them.

use core::sync::atomic::Ordering;

use stvor_crypto::SystemRandom;

use super::{Pending, Vault};
use crate::engine::Engine;
use crate::engine::agents::Caller;
use crate::engine::memories::Recall;
use crate::engine::sessions::SessionId;
use crate::gates::approval::Approval;
use crate::level::Level;
use crate::memory::{
    Forgotten, Found, Header, MemoryId, NewMemory, Purged, Recalled, Tombstoned, WouldForget,
};
use crate::{VaultError, limits};

impl Vault {
    /// Stores a memory and returns its name.
    ///
    /// # Errors
    /// [`VaultError::Refused`], [`VaultError::Invalid`], [`VaultError::LogUnavailable`].
    pub fn store(&self, caller: &Caller, memory: NewMemory) -> Result<MemoryId, VaultError> {
        self.begin_store(caller, memory).wait()
    }

    /// As [`Vault::store`], without waiting.
    #[must_use]
    pub fn begin_store(&self, caller: &Caller, memory: NewMemory) -> Pending<MemoryId> {
        self.begin_store_in(SessionId::OWNER, caller, memory)
    }

    /// As [`Vault::begin_store`]; a memory of level 0 ends with the session.
    #[must_use]
    pub fn begin_store_in(
        &self,
        session: SessionId,
        caller: &Caller,
        memory: NewMemory,
    ) -> Pending<MemoryId> {
        let caller = caller.clone();
        self.ask(move |engine| engine.store((&caller, session), &memory))
    }

    /// Begins a session for memories of level 0.
    #[must_use]
    pub fn begin_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed))
    }

    /// Ends a session: what it stored at level 0 is destroyed, [`limits::MAX_GROUP`] memories at a time with others' operations in
    /// between. Returns how many memories this destroyed: what the vault's upkeep destroyed of them in between is not counted.
    /// What fails here is done later by itself.
    ///
    /// # Errors
    /// [`VaultError::LogUnavailable`], [`crate::Refusal::Cold`].
    pub fn end_session(&self, session: SessionId) -> Result<usize, VaultError> {
        let begun = self.ask(move |engine| engine.end_session(session, limits::MAX_GROUP)).wait();
        let (mut ended, left) = begun?;
        // These and no others: of other sessions that ended something may be left, too.
        for part in left.chunks(limits::MAX_GROUP) {
            let part = part.to_vec();
            ended += self.ask(move |engine| engine.end_ephemeral(&part)).wait()?;
        }
        Ok(ended)
    }

    /// Recalls a memory. From level 3 on the boundary daemon is asked, and `justification` says what for.
    ///
    /// # Errors
    /// [`VaultError::Refused`], [`VaultError::Tampered`], [`VaultError::LogUnavailable`].
    pub fn recall(&self, caller: &Caller, id: MemoryId, justification: &str) -> Result<Recalled, VaultError> {
        let boundary = self.ask_boundary(caller, id)?;
        let (caller, justification) = (caller.clone(), justification.to_owned());
        let work = move |engine: &mut Engine| {
            engine.recall(&Recall { caller: &caller, id, justification: &justification, boundary })
        };
        self.ask(work).wait()
    }

    /// Asks the boundary daemon on the caller's thread, so that its delays are nobody else's.
    fn ask_boundary(
        &self,
        caller: &Caller,
        id: MemoryId,
    ) -> Result<Option<crate::gates::boundary::Verdict>, VaultError> {
        let Some(boundary) = &self.boundary else { return Ok(None) };
        let asking = caller.clone();
        let known = self.ask(move |engine| Ok((engine.place_of(&asking, id), engine.wall()))).wait()?;
        let (Some((level, _)), now) = known else { return Ok(None) };
        if !level.needs_approval() {
            return Ok(None);
        }
        Ok(Some(boundary.ask(level, now, &mut SystemRandom::new())))
    }

    /// Searches a namespace for memories that hold all words, best first, at most [`limits::MAX_PAGE`].
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn search(&self, caller: &Caller, namespace: &str, query: &str) -> Result<Vec<Header>, VaultError> {
        self.find(caller, namespace, query).map(|found| found.memories)
    }

    /// As [`Vault::search`], and whether there are more.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn find(&self, caller: &Caller, namespace: &str, query: &str) -> Result<Found, VaultError> {
        let (caller, namespace, query) = (caller.clone(), namespace.to_owned(), query.to_owned());
        self.ask(move |engine| engine.search(&caller, &namespace, &query)).wait()
    }

    /// Lists a namespace, newest first: at most [`limits::MAX_PAGE`] memories, and those of about [`limits::MAX_PAGE_BYTES`]. With where
    /// the next page goes on (`before`, for this caller and this namespace), if there is more that the caller may know of, or if
    /// [`limits::MAX_PASSED`] was passed over of what it may not: then a page is short, or empty, and the next one goes on.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn list(
        &self,
        caller: &Caller,
        namespace: &str,
        before: Option<&str>,
    ) -> Result<(Vec<Header>, Option<String>), VaultError> {
        let (caller, namespace) = (caller.clone(), namespace.to_owned());
        let before = before.map(str::to_owned);
        self.ask(move |engine| engine.list(&caller, &namespace, before.as_deref())).wait()
    }

    /// Memories that serve an intent, newest first, at most [`limits::MAX_PAGE`].
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn by_intent(&self, caller: &Caller, intent: &str) -> Result<Vec<Header>, VaultError> {
        self.find_by_intent(caller, intent).map(|found| found.memories)
    }

    /// As [`Vault::by_intent`], and whether there are more, or may be, since [`limits::MAX_PASSED`] was passed over: of more than a
    /// page any may be left out.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn find_by_intent(&self, caller: &Caller, intent: &str) -> Result<Found, VaultError> {
        let (caller, intent) = (caller.clone(), intent.to_owned());
        self.ask(move |engine| engine.by_intent(&caller, &intent)).wait()
    }

    /// Links (or unlinks) an intent to a memory.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn set_intent(
        &self,
        caller: &Caller,
        id: MemoryId,
        (intent, link): (&str, bool),
    ) -> Result<(), VaultError> {
        let (caller, intent) = (caller.clone(), intent.to_owned());
        self.ask(move |engine| engine.set_intent(&caller, (id, link), &intent)).wait()
    }

    /// Destroys a memory's key and content, for good and before the answer. Returns what that did not reach: backups, and earlier
    /// versions, which the memory corrected.
    ///
    /// # Errors
    /// As [`Vault::store`]; [`VaultError::WipePending`].
    pub fn forget(&self, caller: &Caller, id: MemoryId, reason: &str) -> Result<Forgotten, VaultError> {
        let (caller, reason) = (caller.clone(), reason.to_owned());
        self.ask(move |engine| engine.forget(&caller, (id, false), &reason)).wait()
    }

    /// As [`Vault::forget`], with the earlier versions, which the memory corrected, as far as the caller may end them; also when
    /// the memory itself was forgotten before. In one commit, with an event for each.
    ///
    /// # Errors
    /// As [`Vault::forget`].
    pub fn forget_with_earlier(
        &self,
        caller: &Caller,
        id: MemoryId,
        reason: &str,
    ) -> Result<Forgotten, VaultError> {
        let (caller, reason) = (caller.clone(), reason.to_owned());
        self.ask(move |engine| engine.forget(&caller, (id, true), &reason)).wait()
    }

    /// What [`Vault::forget`] (or, with `with_earlier`, [`Vault::forget_with_earlier`]) would destroy, and what it would leave.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn would_forget(
        &self,
        caller: &Caller,
        id: MemoryId,
        with_earlier: bool,
    ) -> Result<WouldForget, VaultError> {
        let caller = caller.clone();
        self.ask(move |engine| engine.would_forget(&caller, (id, with_earlier))).wait()
    }

    /// Ends the pause of a memory that was recalled, for the owner: whoever may recall it may do so at once.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when no pause is under way; as [`Vault::store`].
    pub fn end_pause(&self, id: MemoryId) -> Result<(), VaultError> {
        self.ask(move |engine| engine.end_pause(id)).wait()
    }

    /// Closes a memory for good and keeps it for the record. Returns what that did not reach: earlier versions, which the memory
    /// corrected.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn tombstone(&self, caller: &Caller, id: MemoryId, reason: &str) -> Result<Tombstoned, VaultError> {
        let (caller, reason) = (caller.clone(), reason.to_owned());
        self.ask(move |engine| engine.tombstone(&caller, id, &reason)).wait()
    }

    /// Destroys all memories whose time ran out, some at a time, with others' operations in between. It also happens by itself.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn purge(&self) -> Result<Purged, VaultError> {
        let (mut all, mut after) = (Purged::default(), None);
        loop {
            let (some, next) = self.ask(move |engine| engine.purge(after, limits::MAX_GROUP)).wait()?;
            (all.ended, all.left) = (all.ended + some.ended, all.left + some.left);
            if next.is_none() {
                return Ok(all);
            }
            after = next;
        }
    }

    /// Asks the owner to approve one recall, and returns the request's name.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn request_approval(
        &self,
        caller: &Caller,
        id: MemoryId,
        purpose: &str,
    ) -> Result<MemoryId, VaultError> {
        let (caller, purpose) = (caller.clone(), purpose.to_owned());
        self.ask(move |engine| engine.request_approval(&caller, id, &purpose)).wait()
    }

    /// The level and the namespace of a memory that the caller may know of.
    pub(crate) fn place_of(
        &self,
        caller: &Caller,
        id: MemoryId,
    ) -> Result<Option<(Level, String)>, VaultError> {
        let caller = caller.clone();
        self.ask(move |engine| Ok(engine.place_of(&caller, id))).wait()
    }

    /// What became of a request for approval that this caller made; nothing when there is none, or no more.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn approval(&self, caller: &Caller, request: MemoryId) -> Result<Option<Approval>, VaultError> {
        let name = caller.name().to_owned();
        self.ask(move |engine| Ok(engine.approval(request)?.filter(|approval| approval.agent == name))).wait()
    }
}
