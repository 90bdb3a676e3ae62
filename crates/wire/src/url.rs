//! Where a relay is.
//!
//! A relay URL may be `ws://`, `wss://`, `http://` or `https://`, with or without a path; socket and HTTP API are found
//! below it. The *origin* is what a device signs at log-in, in one canonical form on both sides: `ws` or `wss`, the
//! host in lower case, the port unless it is the scheme's own, no path.

use crate::SOCKET_PATH;
use crate::limits::MAX_ORIGIN_BYTES;

/// A URL that can not be a relay's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRelayUrl {
    /// The text is not a URL.
    #[error("the relay URL can not be read ({0}): give something like wss://relay.example.com")]
    Syntax(String),
    /// The scheme is another one.
    #[error("a relay URL starts with ws://, wss://, http:// or https://, not {0}://")]
    Scheme(String),
    /// The URL holds a user name, password, query or fragment, none of which has a meaning here.
    #[error("a relay URL can not hold a user name, password, query or fragment")]
    Extra,
    /// There is no host, or the origin is too long.
    #[error("the relay URL needs a host name of at most 253 characters")]
    Host,
}

impl stvor_base::ErrorCode for InvalidRelayUrl {
    fn code(&self) -> &'static str {
        "INVALID_RELAY_URL"
    }
}

/// A relay's URL, checked.
///
/// ```
/// use stvor_wire::url::RelayUrl;
/// let url: RelayUrl = "https://Relay.Example.com:443/".parse()?;
/// assert_eq!(url.origin(), "wss://relay.example.com");
/// assert_eq!(url.socket_url(), "wss://relay.example.com/v1/socket");
/// assert_eq!(url.http_url("/health"), "https://relay.example.com/health");
/// # Ok::<(), stvor_wire::url::InvalidRelayUrl>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RelayUrl {
    secure: bool,
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl RelayUrl {
    /// The canonical origin.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.secure { "wss" } else { "ws" }, self.authority)
    }

    /// The URL of the socket.
    #[must_use]
    pub fn socket_url(&self) -> String {
        format!("{}{}{SOCKET_PATH}", self.origin(), self.path)
    }

    /// The URL of a path (with its leading slash) of the HTTP API.
    #[must_use]
    pub fn http_url(&self, path: &str) -> String {
        format!("{}://{}{}{path}", if self.secure { "https" } else { "http" }, self.authority, self.path)
    }

    /// Whether TLS is asked for.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.secure
    }

    /// The host, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether the host is this machine, where traffic without TLS stays private.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let is_loopback_address = || self.host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        self.host == "localhost" || self.host.ends_with(".localhost") || is_loopback_address()
    }
}

impl core::str::FromStr for RelayUrl {
    type Err = InvalidRelayUrl;

    fn from_str(text: &str) -> Result<Self, InvalidRelayUrl> {
        let url =
            ::url::Url::parse(text.trim()).map_err(|error| InvalidRelayUrl::Syntax(error.to_string()))?;
        let secure = match url.scheme() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            other => return Err(InvalidRelayUrl::Scheme(other.to_owned())),
        };
        let extra = !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some();
        if extra {
            return Err(InvalidRelayUrl::Extra);
        }
        let host_text = url.host_str().ok_or(InvalidRelayUrl::Host)?;
        let port = url.port_or_known_default().ok_or(InvalidRelayUrl::Host)?;
        let default_port = if secure { 443 } else { 80 };
        let authority =
            if port == default_port { host_text.to_owned() } else { format!("{host_text}:{port}") };
        if authority.len() + "wss://".len() > MAX_ORIGIN_BYTES {
            return Err(InvalidRelayUrl::Host);
        }
        let host = host_text.trim_start_matches('[').trim_end_matches(']').to_owned();
        // People paste the socket's own URL too.
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix(SOCKET_PATH).unwrap_or(path).to_owned();
        Ok(Self { secure, authority, host, port, path })
    }
}

/// The canonical form of an origin, from any relay URL with that origin.
///
/// # Errors
/// [`InvalidRelayUrl`].
pub fn canonical_origin(url: &str) -> Result<String, InvalidRelayUrl> {
    url.parse::<RelayUrl>().map(|url| url.origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RelayUrl, InvalidRelayUrl> {
        text.parse()
    }

    #[test]
    fn four_schemes_lead_to_two_origins() {
        for text in ["ws://LOCALHOST:4444", "http://localhost:4444/", "http://localhost:4444/v1/socket"] {
            assert_eq!(parse(text).unwrap().socket_url(), "ws://localhost:4444/v1/socket", "{text}");
        }
        assert_eq!(canonical_origin("wss://a.example:443"), canonical_origin("https://A.example/"));
        assert_ne!(canonical_origin("ws://a.example"), canonical_origin("wss://a.example"));
    }

    #[test]
    fn a_path_prefix_is_kept() {
        let url = parse("https://example.com/stvor/").unwrap();
        assert_eq!(url.socket_url(), "wss://example.com/stvor/v1/socket");
        assert_eq!((url.origin().as_str(), url.port()), ("wss://example.com", 443));
    }

    #[test]
    fn what_is_no_relay_url_says_why() {
        assert!(matches!(parse("relay.example.com"), Err(InvalidRelayUrl::Syntax(_))));
        assert_eq!(parse("ftp://a"), Err(InvalidRelayUrl::Scheme("ftp".into())));
        assert_eq!(parse("ws://u:p@a"), Err(InvalidRelayUrl::Extra));
        assert_eq!(parse("ws://a?x=1"), Err(InvalidRelayUrl::Extra));
        assert!(matches!(parse("ws://"), Err(InvalidRelayUrl::Syntax(_))));
    }

    #[test]
    fn loopback_is_recognised_in_all_its_forms() {
        for text in ["ws://localhost:1", "ws://127.0.0.9", "ws://[::1]:5", "ws://a.localhost"] {
            assert!(parse(text).unwrap().is_loopback(), "{text}");
        }
        assert!(!parse("ws://localhost.example.com").unwrap().is_loopback());
        assert_eq!(parse("ws://[::1]:5").unwrap().host(), "::1");
    }
}
