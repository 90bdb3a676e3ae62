//! End-to-end encrypted messaging in four lines.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await?;
//! # let url = relay.url(); // `stvor mock-relay` listens on ws://localhost:4444
//! let app = stvor::App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory().open().await?;
//! let alice = app.connect("alice@example.com").await?;
//! let bob = app.connect("bob@example.com").await?;
//!
//! let mut inbox = bob.messages();
//! let receipt = alice.send("bob@example.com", "Hello!").await?; // now in the outbox, at the relay, or further
//! let message = inbox.next().await.ok_or("closed")?;
//! assert_eq!((message.from.as_str(), message.text()), ("alice@example.com", Some("Hello!")));
//! receipt.delivered().await?; // Bob's device has stored it, and said so end to end
//!
//! // The same sixty digits at both ends mean that nobody sits between them.
//! let (here, there) = (alice.safety_number("bob@example.com").await?, bob.safety_number("alice@example.com").await?);
//! assert_eq!(here.to_string(), there.to_string());
//! # app.close().await?;
//! # Ok(()) }
//! ```
//!
//! Without [`in_memory`](AppBuilder::in_memory) everything is kept in the platform's data directory, sealed: identities,
//! sessions, messages and the outbox survive restarts and crashes.
//!
//! # What to rely on
//!
//! - [`Client::send`] fails before a message is in the outbox, or not at all: from then on it can only wait. Its
//!   [`Receipt`] tells how far it came; `Delivered` and `Read` come from the recipient's device, never from the relay.
//! - Each message is in the recipient's inbox once, in the order of sending, and is offered to the application until it
//!   was consumed ([`Messages`]).
//! - The client connects again by itself, at any time ([`Client::events`], [`Client::state`]).
//! - The first identity of a user is pinned. Another one under the same name is an [`Event::IdentityChanged`], and the
//!   trust policy decides ([`TrustPolicy`], [`MismatchPolicy`]).
//! - Every [`Error`] renders as `message [CODE]`, and the code is stable.

mod app;
mod backup;
mod client;
mod clock;
mod closing;
mod config;
mod content;
mod core;
mod deletion;
mod error;
mod events;
mod executor;
mod failures;
mod groups;
mod guards;
#[cfg(test)]
mod hiccups;
mod history;
mod inbox;
mod instances;
mod journal;
mod keys;
mod lane;
mod left;
pub mod limits;
mod metrics;
mod names;
mod opening;
mod parked;
mod place;
mod prekeys;
mod production;
mod receipt;
mod records;
#[cfg(test)]
mod released;
mod revival;
mod rollback;
mod rotation;
mod rows;
mod sealing;
mod storekey;
mod transport;
mod trust;
mod upkeep;
mod watch;

pub use self::app::{App, ConnectOptions};
pub use self::backup::{Backup, BackupError, BackupOptions, OnProgress, Progress, Restored};
pub use self::client::{Client, OwnIdentity, PeerInfo, SendOptions, SendWait};
pub use self::clock::{Clock, SystemClock};
pub use self::config::{AppBuilder, ReceiptPolicy, Retention};
pub use self::content::{Content, Json};
pub use self::error::{Error, ErrorKind, PassedOn, Result};
pub use self::events::{ConnectionState, DeliveryState, Event, Events};
pub use self::executor::{Executor, OnPressure};
pub use self::groups::{Group, GroupInfo, MemberReceipt};
pub use self::history::{Cursor, HistoryMessage, HistoryQuery, Page};
pub use self::inbox::{Message, Messages};
pub use self::journal::{Deed, JournalEntry};
pub use self::lane::Unsealed;
pub use self::production::Finding;
pub use self::receipt::Receipt;
pub use self::rollback::RollbackPolicy;
pub use self::rotation::{RotateOptions, RotatedIdentity};
pub use self::rows::Direction;
pub use self::trust::{MismatchPolicy, SafetyNumber, TrustPolicy, TrustQuestion, TrustReason};
pub use stvor_base::{AppId, ContentId, DeviceId, ErrorCode, GroupId, Suite, Timestamp, UserId};
pub use stvor_crypto::{Secret, SecretBytes};
pub use stvor_keys::recipients;
pub use stvor_keys::{KeyError, KeyringItem, RecoveryPhrase, SecretService};
pub use stvor_keys::{KeyHolder, KeyService, Managed};
pub use stvor_store as store;
pub use stvor_store::narrow;
