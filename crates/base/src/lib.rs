//! Words that every floor of STVOR shares.
//!
//! Nothing here does I/O or cryptography: names of users and devices ([`UserId`], [`DeviceId`], [`Address`],
//! [`AppId`]), message ids ([`MessageId`], [`ContentId`]), time as a value ([`Timestamp`]), stable error codes
//! ([`ErrorCode`]), the fixed byte codec of everything that is signed or stored ([`codec`]), and the byte layout of
//! the device list ([`devices`]) and of rotations of a user's key ([`rotations`]) that clients sign and relays read, and which primitives an identity uses ([`suite`]).

pub mod address;
pub mod code;
pub mod codec;
pub mod devices;
pub mod ids;
pub mod rotations;
pub mod suite;
pub mod time;

pub use address::{Address, AppId, DeviceId, InvalidName, UserId};
pub use code::ErrorCode;
pub use ids::{ContentId, GroupId, MessageId};
pub use suite::{KeyBytes, Suite};
pub use time::Timestamp;
