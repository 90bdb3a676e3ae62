//! Decoders of `stvor-wire`. What a frame decodes to survives being written and read again.

use stvor_wire::frame::{decode_client, decode_server, encode_client, encode_server};
use stvor_wire::padding::{bucket_for, is_bucket, strict_bucket_for};
use stvor_wire::resume::ResumeCursor;
use stvor_wire::token::{AppToken, app_of};
use stvor_wire::url::RelayUrl;
use stvor_wire::{Code, Phase};

/// The targets of this floor.
pub const TARGETS: &[crate::Target] = &[
    ("wire-client-frame", client_frame),
    ("wire-server-frame", server_frame),
    ("wire-token", token),
    ("wire-cursor", cursor),
    ("wire-url", url),
    ("wire-padding", padding),
];

fn client_frame(data: &[u8]) {
    let early = decode_client(data.to_vec(), Phase::LoggingIn);
    let late = decode_client(data.to_vec(), Phase::LoggedIn);
    if let Ok(message) = &early {
        assert_eq!(Ok(message), late.as_ref());
    }
    if let Ok(message) = late {
        let _ = format!("{message:?}");
        assert_eq!(decode_client(encode_client(&message), Phase::LoggedIn), Ok(message));
    }
}

fn server_frame(data: &[u8]) {
    if let Ok(message) = decode_server(data.to_vec(), Phase::LoggedIn) {
        let _ = format!("{message:?}");
        assert_eq!(decode_server(encode_server(&message), Phase::LoggedIn), Ok(message));
    }
}

fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = AppToken::parse(text) {
        assert_eq!(app_of(text).as_ref(), Ok(&token.app()));
        assert_eq!(token.expose(), text);
        assert_eq!(format!("{token:?}"), "AppToken([redacted])");
        if let Some(app) = token.issued_app() {
            assert_eq!(app, token.app());
        }
    }
    let _ = Code::parse(text);
}

fn cursor(data: &[u8]) {
    if let Some(cursor) = ResumeCursor::new(data.to_vec().into()) {
        assert_eq!(cursor.bytes(), data);
    }
}

fn url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(url) = text.parse::<RelayUrl>() {
        let again = url.origin().parse::<RelayUrl>().expect("an origin is a relay URL");
        assert_eq!(again.origin(), url.origin());
    }
}

fn padding(data: &[u8]) {
    let Some(length) = data.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize) else { return };
    for bucket in [bucket_for(length), strict_bucket_for(length)].into_iter().flatten() {
        assert!(bucket >= length && is_bucket(bucket));
    }
}
