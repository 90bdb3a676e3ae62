//! What STVOR clients and relays say to each other.
//!
//! The dialogue runs over the WebSocket subprotocol [`SUBPROTOCOL`]: one protobuf frame a message ([`proto`] is
//! generated from the public `relay.proto`, the only definition). [`frame`] reads and writes frames within their caps
//! and turns them into the checked types of [`client`] and [`server`]; what is not exactly a frame is refused.

pub mod client;
pub mod frame;
pub mod keys;
pub mod limits;
pub mod login;
pub mod padding;
pub mod problem;
pub mod proto;
pub mod resume;
pub mod server;
pub mod token;
pub mod url;

pub use client::ClientMessage;
pub use frame::{FrameError, Phase};
pub use problem::Code;
pub use server::ServerMessage;

/// The WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "stvor.v1";

/// The protocol version that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// The path of the socket on a relay.
pub const SOCKET_PATH: &str = "/v1/socket";
