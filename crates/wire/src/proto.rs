//! Types generated from `proto/stvor/v1/relay.proto`. Unchecked: read them through [`crate::frame`].

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from the definition")]

include!(concat!(env!("OUT_DIR"), "/stvor.v1.rs"));
