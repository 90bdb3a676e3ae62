//! Whom a session is with: a name and a device number.

use core::fmt;
use core::str::FromStr;

use super::SignalError;

/// Bytes of a name.
const MAX_NAME: usize = 256;

/// A name and a device number, written `name.device`.
///
/// ```
/// use stvor_protocol::signal::ProtocolAddress;
/// let phone = ProtocolAddress::new("491701234567", 0)?;
/// assert_eq!(phone.to_string(), "491701234567.0");
/// assert_eq!("491701234567.0".parse::<ProtocolAddress>()?, phone);
/// assert!(ProtocolAddress::new("a.b", 1).is_err());
/// # Ok::<(), stvor_protocol::signal::SignalError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProtocolAddress {
    name: String,
    device: u32,
}

impl ProtocolAddress {
    /// An address.
    ///
    /// # Errors
    /// [`SignalError::BadAddress`] for a name that is empty, longer than 256 bytes or has a dot.
    pub fn new(name: &str, device: u32) -> Result<Self, SignalError> {
        match name {
            "" => Err(SignalError::BadAddress("the name is empty")),
            _ if name.len() > MAX_NAME => Err(SignalError::BadAddress("the name is too long")),
            _ if name.contains('.') => Err(SignalError::BadAddress("the name has a dot")),
            _ => Ok(Self { name: name.to_owned(), device }),
        }
    }

    /// The name, which identities belong to.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device, which sessions belong to. 0 is one like any other.
    #[must_use]
    pub fn device(&self) -> u32 {
        self.device
    }
}

impl fmt::Display for ProtocolAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.device)
    }
}

impl FromStr for ProtocolAddress {
    type Err = SignalError;

    fn from_str(text: &str) -> Result<Self, SignalError> {
        let (name, device) = text.rsplit_once('.').ok_or(SignalError::BadAddress("there is no dot"))?;
        let digits = !device.is_empty() && device.bytes().all(|byte| byte.is_ascii_digit());
        let device = device.parse().ok().filter(|_| digits);
        Self::new(name, device.ok_or(SignalError::BadAddress("the device is no number"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_checked() {
        assert!(ProtocolAddress::new(&"n".repeat(256), u32::MAX).is_ok());
        assert!(ProtocolAddress::new(&"n".repeat(257), 0).is_err());
        for bad in ["", "a", ".1", "a.", "a.b", "a.1x", "a.-1", "a.+1", "a.b.1", "a.4294967296"] {
            assert!(bad.parse::<ProtocolAddress>().is_err(), "{bad}");
        }
    }
}
