//! Whom a client trusts, and whom it shuts out.

use std::time::Duration;

use stvor_base::{KeyBytes, UserId};
use stvor_protocol::SafetyParty;
use stvor_wire::server::Bundles;

use super::{Client, address_of};
use crate::app::user;
use crate::error::{ErrorKind, Result};
use crate::journal::fingerprint;
use crate::lane::{Adopted, Command};
use crate::trust::SafetyNumber;

impl Client {
    /// The safety number with a peer: of the pinned identity, or of the one that the relay shows when none is pinned.
    ///
    /// # Errors
    /// `RECIPIENT_NOT_FOUND`, `RELAY_UNAVAILABLE`, `BAD_DEVICE_LIST` when there is no pinned identity and none to be had.
    pub async fn safety_number(&self, peer: impl AsRef<str>) -> Result<SafetyNumber> {
        let peer = user(peer)?;
        let number = self.number(&peer).await?;
        self.core().show_number(&peer, number.key());
        Ok(number)
    }

    async fn number(&self, peer: &UserId) -> Result<SafetyNumber> {
        let (key, verified) = match self.ask(peer, Command::Pin).await? {
            Some(pin) => (pin.user_key, pin.verified),
            None => (self.shown_key(&self.fetch(peer).await?, peer)?, false),
        };
        let own = SafetyParty { user: self.user(), user_key: self.core().identity.user_key() };
        let theirs = SafetyParty { user: peer, user_key: &key };
        Ok(SafetyNumber::new(stvor_protocol::SafetyNumber::of(&own, &theirs), verified, &key))
    }

    /// Notes that the safety number with a peer was compared and is right: the one that this client showed last by
    /// [`safety_number`](Self::safety_number), and no other.
    ///
    /// # Errors
    /// `SAFETY_NUMBER_NOT_SHOWN` when this client showed none with the peer; as [`verify_number`](Self::verify_number).
    pub async fn verify(&self, peer: impl AsRef<str>) -> Result<()> {
        let peer = user(peer)?;
        let Some(key) = self.core().shown_number(&peer) else {
            return Err(ErrorKind::SafetyNumberNotShown { user: peer }.into());
        };
        self.verify_key(&peer, &key).await
    }

    /// Notes that this safety number with a peer was compared and is right. If the peer's identity is another one by now,
    /// nothing is noted.
    ///
    /// # Errors
    /// `IDENTITY_CHANGED` when the number is of another identity than the one that is pinned, or that the relay shows when none
    /// is pinned; `RECIPIENT_NOT_FOUND` and the like when there is none and none is to be had.
    pub async fn verify_number(&self, peer: impl AsRef<str>, number: &SafetyNumber) -> Result<()> {
        self.verify_key(&user(peer)?, number.key()).await
    }

    /// [`verify_number`](Self::verify_number) by the sixty digits that were compared; what stands between them does not count.
    /// Nothing is shown by it: [`verify`](Self::verify) still speaks of the number that was.
    ///
    /// # Errors
    /// `SAFETY_NUMBER_MISMATCH` when the digits are not those of the identity that is pinned, or that the relay shows when none
    /// is; otherwise as [`verify_number`](Self::verify_number).
    pub async fn verify_digits(&self, peer: impl AsRef<str>, digits: &str) -> Result<()> {
        let peer = user(peer)?;
        let number = self.number(&peer).await?;
        if !digits.chars().filter(char::is_ascii_digit).eq(number.digits().chars()) {
            return Err(ErrorKind::SafetyNumberMismatch { user: peer }.into());
        }
        self.verify_key(&peer, number.key()).await
    }

    async fn verify_key(&self, peer: &UserId, key: &[u8]) -> Result<()> {
        if self.ask(peer, Command::Pin).await?.is_some() {
            return self.ask(peer, |reply| Command::Verify(Some(key.to_vec()), reply)).await;
        }
        let bundles = self.fetch(peer).await?;
        self.adopt(peer, Adopted { bundles, named: Some(fingerprint(key)), verified: true }).await
    }

    /// Takes [`verify`](Self::verify) back.
    ///
    /// # Errors
    /// `IDENTITY_NOT_VERIFIED` when no identity is pinned.
    pub async fn unverify(&self, peer: impl AsRef<str>) -> Result<()> {
        let peer = user(peer)?;
        self.ask(&peer, |reply| Command::Verify(None, reply)).await
    }

    /// Takes the identity that a peer shows now in the place of the pinned one. Compare safety numbers first, or after. What
    /// rotations speak against is taken only by its fingerprint:
    /// [`accept_identity_named`](Self::accept_identity_named).
    ///
    /// # Errors
    /// `IDENTITY_SUPERSEDED` when the relay shows an identity that was rotated away from; `IDENTITY_FORKED` when an old key of
    /// the peer handed over to two identities; `RECIPIENT_NOT_FOUND`, `RELAY_UNAVAILABLE`, `BAD_BUNDLE` and the like when the identity is not to be had.
    pub async fn accept_identity(&self, peer: impl AsRef<str>) -> Result<()> {
        let peer = user(peer)?;
        let bundles = self.fetch(&peer).await?;
        self.adopt(&peer, Adopted { bundles, named: None, verified: false }).await
    }

    /// Takes the identity with this fingerprint in the place of the pinned one, whatever rotations say: the fingerprint has to
    /// come from the peer by a way that the relay has no part in. It is the SHA-256 of the user key in hexadecimal:
    /// `fingerprint` of [`identity`](Self::identity).
    ///
    /// # Errors
    /// `IDENTITY_CHANGED` when the relay shows another one; as [`accept_identity`](Self::accept_identity).
    pub async fn accept_identity_named(
        &self,
        peer: impl AsRef<str>,
        fingerprint: impl AsRef<str>,
    ) -> Result<()> {
        let (peer, named) = (user(peer)?, fingerprint.as_ref().trim().to_ascii_lowercase());
        let bundles = self.fetch(&peer).await?;
        self.adopt(&peer, Adopted { bundles, named: Some(named), verified: false }).await
    }

    async fn adopt(&self, peer: &UserId, adopted: Adopted) -> Result<()> {
        self.ask(peer, |reply| Command::Adopt(Box::new(adopted), reply)).await
    }

    /// The user key of what the relay shows.
    fn shown_key(&self, bundles: &Bundles, peer: &UserId) -> Result<KeyBytes> {
        crate::lane::read_bundle(self.core(), &address_of(peer), bundles).map(|bundle| *bundle.user_key())
    }

    /// What the relay shows of a user.
    pub(crate) async fn fetch(&self, peer: &UserId) -> Result<Bundles> {
        let core = self.core();
        let timeout = core.config.timeout.max(Duration::from_secs(1));
        let session = core.online(timeout).await?;
        session.fetch_bundle(peer, Duration::ZERO, timeout).await
    }

    /// Refuses mail from a user, and mail to them. What arrives is acknowledged and dropped, unread.
    ///
    /// # Errors
    /// `INVALID_NAME`, or what the store met.
    pub async fn block(&self, peer: impl AsRef<str>) -> Result<()> {
        self.core().change_peer(&user(peer)?, |row| row.blocked = true).await
    }

    /// Takes [`block`](Self::block) back.
    ///
    /// # Errors
    /// As [`block`](Self::block).
    pub async fn unblock(&self, peer: impl AsRef<str>) -> Result<()> {
        self.core().change_peer(&user(peer)?, |row| row.blocked = false).await
    }

    /// Whether a user is blocked.
    #[must_use]
    pub fn is_blocked(&self, peer: impl AsRef<str>) -> bool {
        user(peer).is_ok_and(|peer| self.core().is_blocked(&peer))
    }
}
