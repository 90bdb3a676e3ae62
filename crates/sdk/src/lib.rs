//! End-to-end encrypted messaging in four lines.
//!
//! ```no_run
//! # async fn example() -> stvor::Result<()> {
//! let app = stvor::App::builder().app_token("stvor_dev_test123").relay_url("ws://localhost:4444").open().await?;
//! let alice = app.connect("alice@example.com").await?;
//! let bob = app.connect("bob@example.com").await?;
//! let mut inbox = bob.messages();
//! let receipt = alice.send("bob@example.com", "Hello!").await?;
//! let message = inbox.next().await.expect("a message");
//! assert_eq!(message.text(), Some("Hello!"));
//! receipt.delivered().await?;
//! # Ok(())
//! # }
//! ```

mod app;
mod client;
mod clock;
mod config;
mod content;
mod core;
mod error;
mod events;
mod history;
mod inbox;
mod keys;
mod lane;
pub mod limits;
mod metrics;
mod place;
mod prekeys;
mod receipt;
mod records;
mod rollback;
mod rows;
mod sealing;
mod transport;
mod trust;
mod upkeep;
mod watch;

pub use self::app::{App, ConnectOptions};
pub use self::client::{Client, OwnIdentity, PeerInfo, SendOptions, SendWait};
pub use self::clock::{Clock, SystemClock};
pub use self::config::{AppBuilder, ReceiptPolicy, Retention};
pub use self::content::{Content, Json};
pub use self::error::{Error, ErrorKind, PassedOn, Result};
pub use self::events::{ConnectionState, DeliveryState, Event, Events};
pub use self::history::{Cursor, HistoryMessage, HistoryQuery, Page};
pub use self::inbox::{Message, Messages};
pub use self::lane::Unsealed;
pub use self::receipt::Receipt;
pub use self::rows::Direction;
pub use self::trust::{MismatchPolicy, SafetyNumber, TrustPolicy, TrustQuestion, TrustReason};
pub use stvor_base::{AppId, ContentId, DeviceId, ErrorCode, Timestamp, UserId};
