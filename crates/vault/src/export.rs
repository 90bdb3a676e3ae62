//! Export: everything that the owner can read, in a form that every program reads.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stvor_base::ErrorCode as _;
use stvor_crypto::SecretBytes;

use crate::daemon::Content;
use crate::engine::Engine;
use crate::engine::agents::Caller;
use crate::memory::{Header, MemoryId, State};
use crate::{Refusal, Vault, VaultError};

/// Memories in one page.
const PAGE: usize = 32;
/// Headers that are read at a time where no content is wanted.
const HEADERS: usize = 1_024;

type Listed = (i64, MemoryId, Option<Header>);

/// A memory, as it is exported.
#[derive(Debug)]
pub struct Exported {
    /// Its name.
    pub id: MemoryId,
    /// Everything but the content; nothing where its row was damaged.
    pub header: Option<Header>,
    /// The content, or the code of why it was not given out.
    pub content: Result<SecretBytes, &'static str>,
}

impl Exported {
    /// One line of JSON: `memory` (or `damaged`, with the name), and `content` (`text` or `base64`) or `refused`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut line = match &self.header {
            Some(header) => json!({ "memory": header }),
            None => json!({ "damaged": self.id }),
        };
        match &self.content {
            Ok(content) => line["content"] = json!(Content::of(content.expose())),
            Err(code) => line["refused"] = json!(code),
        }
        line
    }
}

impl Vault {
    /// The namespaces that there are, with how many memories in each can be recalled, for the owner. Damaged rows count in none.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`].
    pub fn namespaces(&self) -> Result<BTreeMap<String, u64>, VaultError> {
        let (mut found, mut after) = (BTreeMap::new(), 0);
        loop {
            let headers = self.ask(move |engine| engine.headers_after(after, HEADERS)).wait()?;
            for header in headers.iter().filter_map(|(.., header)| header.as_ref()) {
                if matches!(header.state, State::Live | State::Superseded) {
                    *found.entry(header.namespace.clone()).or_default() += 1;
                }
            }
            match headers.last() {
                Some((at, ..)) if headers.len() == HEADERS => after = *at,
                _ => return Ok(found),
            }
        }
    }

    /// Memories after the place `after` (0 to begin), in the order in which they were stored, and where to go on. Each is recalled
    /// as the owner, through every gate, and each recall is logged. Memories that ended come without content, and so do damaged
    /// ones: they end no export.
    ///
    /// # Errors
    /// [`Refusal::Cold`], [`Refusal::Lockdown`], [`VaultError::LogUnavailable`].
    pub fn export(&self, after: i64) -> Result<(Vec<Exported>, Option<i64>), VaultError> {
        let headers = self.ask(move |engine| engine.headers_after(after, PAGE)).wait()?;
        let next = headers.last().filter(|_| headers.len() == PAGE).map(|(at, ..)| *at);
        let mut all = Vec::with_capacity(headers.len());
        for (_, id, header) in headers {
            let asked = header.clone();
            let allowed =
                move |engine: &mut Engine| asked.as_ref().map_or(Ok(()), |it| engine.exportable(it));
            if let Err(error) = self.ask(allowed).wait() {
                all.push(Exported { id, header, content: Err(error.code()) });
                continue;
            }
            let content = match self.recall(&Caller::Owner, id, "export") {
                Ok(recalled) => Ok(recalled.content),
                // Nothing more comes: half of everything would pass for all of it.
                Err(VaultError::Refused(refusal @ (Refusal::Cold | Refusal::Lockdown))) => {
                    return Err(refusal.into());
                }
                Err(VaultError::Refused(refusal)) => Err(refusal.code()),
                Err(error @ VaultError::Tampered { .. }) => Err(error.code()),
                Err(error) => return Err(error),
            };
            all.push(Exported { id, header, content });
        }
        Ok((all, next))
    }
}

impl Engine {
    /// Places, names and headers of memories after a place. A damaged one has no header.
    fn headers_after(&self, after: i64, count: usize) -> Result<Vec<Listed>, VaultError> {
        self.no_lockdown()?;
        let rows = self.database.headers_after(after, count)?;
        rows.into_iter().map(|(at, row)| Ok((at, row.id, self.sound(self.header(&row))?))).collect()
    }
}
