//! What an operator does from the command line, on the database of a relay that may be running: issue, list and revoke
//! tokens, reset and delete users. A running relay notices within a second.

use core::time::Duration;
use std::path::Path;

use stvor_base::{AppId, Timestamp, UserId};
use stvor_crypto::{Random as _, SystemRandom};
use stvor_wire::token::{AppToken, TokenKind};

use crate::storage::{StoreError, TokenRecord, sqlite};

/// A relay's database, opened for administration.
pub struct Admin(sqlite::Offline);

/// A token that was just issued. This is the only time that it is known.
#[derive(Debug)]
pub struct IssuedToken {
    /// The token, to be shown once.
    pub token: AppToken,
    /// What the relay keeps of it.
    pub record: TokenRecord,
}

impl Admin {
    /// Opens the database at `path`, which a relay may be using; makes it if there is none.
    ///
    /// # Errors
    /// [`StoreError::TooNew`], [`StoreError::Unavailable`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        sqlite::Offline::open(path).map(Self)
    }

    /// Issues a token of an app.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn create_token(
        &mut self,
        kind: TokenKind,
        app: &AppId,
        label: &str,
        life: Option<Duration>,
    ) -> Result<IssuedToken, StoreError> {
        let mut rng = SystemRandom::new();
        let no_randomness = |error: stvor_crypto::CryptoError| StoreError::Unavailable(error.to_string());
        let token = AppToken::issue(kind, app, &mut rng).map_err(no_randomness)?;
        let mut id = [0; 6];
        rng.fill(&mut id).map_err(no_randomness)?;
        let now = Timestamp::system();
        let record = TokenRecord {
            id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
            hash: token.hash(),
            app: app.clone(),
            label: label.to_owned(),
            created_at: now,
            expires_at: life.map(|life| now + life),
            revoked_at: None,
        };
        self.0.put_token(&record)?;
        Ok(IssuedToken { token, record })
    }

    /// All tokens that were issued, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn tokens(&mut self) -> Result<Vec<TokenRecord>, StoreError> {
        self.0.tokens()
    }

    /// Revokes a token by its id; its connections end. `false` when there is no such id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn revoke_token(&mut self, id: &str) -> Result<bool, StoreError> {
        self.0.revoke_token(id, Timestamp::system())
    }

    /// Frees a name: its keys and mail are dropped, its connections end, and the next identity that registers the name has
    /// it. Contacts then see IDENTITY_CHANGED. `false` when nobody has the name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn reset_user(&mut self, app: &AppId, user: &UserId) -> Result<bool, StoreError> {
        self.0.delete_user(app, user)
    }

    /// Deletes a user with all devices, keys and mail; connections end. `false` when nobody has the name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn delete_user(&mut self, app: &AppId, user: &UserId) -> Result<bool, StoreError> {
        self.0.delete_user(app, user)
    }
}
