//! Export: everything that the owner can read, in a form that every program reads.

use serde_json::{Value, json};
use stvor_base::ErrorCode as _;
use stvor_crypto::SecretBytes;

use crate::daemon::Content;
use crate::engine::agents::Caller;
use crate::memory::Header;
use crate::{Vault, VaultError};

/// Memories in one page.
const PAGE: usize = 32;

/// A memory, as it is exported.
#[derive(Debug)]
pub struct Exported {
    /// Everything but the content.
    pub header: Header,
    /// The content, or the code of why it was not given out.
    pub content: Result<SecretBytes, &'static str>,
}

impl Exported {
    /// One line of JSON: `memory`, and `content` (`text` or `base64`) or `refused`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match &self.content {
            Ok(content) => json!({ "memory": self.header, "content": Content::of(content.expose()) }),
            Err(code) => json!({ "memory": self.header, "refused": code }),
        }
    }
}

impl Vault {
    /// Memories after the place `after` (0 to begin), in the order in which they were stored, and where to go on. Each is recalled
    /// as the owner, through every gate, and each recall is logged. Memories that ended come without content.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::LogUnavailable`], [`VaultError::Tampered`].
    pub fn export(&self, after: i64) -> Result<(Vec<Exported>, Option<i64>), VaultError> {
        let headers = self.ask(move |engine| engine.headers_after(after, PAGE)).wait()?;
        let next = headers.last().filter(|_| headers.len() == PAGE).map(|(at, _)| *at);
        let mut all = Vec::with_capacity(headers.len());
        for (_, header) in headers {
            let content = match self.recall(&Caller::Owner, header.id, "export") {
                Ok(recalled) => Ok(recalled.content),
                Err(VaultError::Refused(refusal)) => Err(refusal.code()),
                Err(error) => return Err(error),
            };
            all.push(Exported { header, content });
        }
        Ok((all, next))
    }
}

impl crate::engine::Engine {
    /// Headers of memories after a place.
    pub(crate) fn headers_after(&self, after: i64, count: usize) -> Result<Vec<(i64, Header)>, VaultError> {
        let rows = self.database.memories_after(after, count)?;
        rows.into_iter().map(|(at, row)| Ok((at, self.header(&row)?))).collect()
    }
}
