//! Recovery phrases: 256 random bits as 24 English words (BIP-39), the last of which holds a checksum.

use crate::KeyError;
use bip39::{Language, Mnemonic};
use std::fmt;
use stvor_crypto::{Random, Secret, SecretBytes};

/// Words of a phrase.
pub const WORDS: usize = 24;

/// A recovery phrase. Whoever has it is its owner.
///
/// ```
/// use stvor_crypto::SystemRandom;
/// use stvor_keys::RecoveryPhrase;
///
/// let phrase = RecoveryPhrase::generate(&mut SystemRandom::new())?;
/// let words = phrase.words();
/// let text = core::str::from_utf8(words.expose())?;
/// assert_eq!(text.split(' ').count(), 24);
/// assert!(RecoveryPhrase::parse(&text.to_uppercase())?.entropy() == phrase.entropy());
/// assert!(RecoveryPhrase::parse("abandon ability able").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RecoveryPhrase(Secret<32>);

impl RecoveryPhrase {
    /// A new phrase.
    ///
    /// # Errors
    /// [`KeyError::Crypto`] when the random source is unhealthy.
    pub fn generate(rng: &mut dyn Random) -> Result<Self, KeyError> {
        Ok(Self(Secret::random(rng)?))
    }

    /// A new phrase from the system's randomness.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn fresh() -> Result<Self, KeyError> {
        Self::generate(&mut stvor_crypto::SystemRandom::new())
    }

    /// Reads a phrase: 24 words, in any case, with any white space between them.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] for another number of words, a word that is not in the list, or a checksum that does not
    /// match (a word was exchanged). No message repeats a word.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let malformed = |reason| KeyError::Malformed { holder: "recovery phrase", reason };
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        if words.len() != WORDS {
            return Err(malformed("it does not have 24 words"));
        }
        let joined = SecretBytes::from(words.join(" ").into_bytes());
        let text = core::str::from_utf8(joined.expose()).map_err(|_| malformed("it is not text"))?;
        let mnemonic =
            Mnemonic::parse_in_normalized(Language::English, text).map_err(|error| match error {
                bip39::Error::UnknownWord(_) => {
                    malformed("one of its words is not in the English word list; look for a typing error")
                }
                bip39::Error::InvalidChecksum => {
                    malformed("its checksum does not match: a word is wrong, or two stand in the wrong order")
                }
                _ => malformed("it does not have 24 words"),
            })?;
        let (entropy, length) = mnemonic.to_entropy_array();
        let secret = Secret::from_slice(entropy.get(..length).unwrap_or_default());
        Ok(Self(secret.map_err(|_| malformed("it does not hold 256 bits"))?))
    }

    /// The 24 words, lower case, one space between each two: to be shown once and written on paper.
    #[must_use]
    pub fn words(&self) -> SecretBytes {
        // 32 bytes are a length that BIP-39 knows.
        let text = Mnemonic::from_entropy_in(Language::English, self.0.expose());
        SecretBytes::from(text.map(|words| words.to_string()).unwrap_or_default().into_bytes())
    }

    /// The 256 bits.
    #[must_use]
    pub fn entropy(&self) -> &Secret<32> {
        &self.0
    }
}

impl fmt::Debug for RecoveryPhrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryPhrase([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_base::ErrorCode;

    /// Of the vectors that BIP-39's reference implementation publishes.
    const VECTORS: [([u8; 32], &str); 3] = [
        (
            [0; 32],
            "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon art",
        ),
        (
            [0x7f; 32],
            "legal winner thank year wave sausage worth useful legal winner thank year wave sausage worth useful legal winner thank year wave sausage worth title",
        ),
        (
            [0xff; 32],
            "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo vote",
        ),
    ];

    #[test]
    fn phrases_are_those_of_the_published_vectors() {
        for (entropy, words) in VECTORS {
            let phrase = RecoveryPhrase::parse(words).unwrap();
            assert_eq!(phrase.entropy().expose(), &entropy);
            assert_eq!(phrase.words().expose(), words.as_bytes());
            let untidy = format!("\n {}\t", words.to_uppercase().replace(' ', "  \n"));
            assert_eq!(RecoveryPhrase::parse(&untidy).unwrap().entropy().expose(), &entropy);
        }
    }

    #[test]
    fn a_slip_of_the_pen_is_told_without_repeating_a_word() {
        let words = VECTORS[1].1;
        for wrong in [
            words.replace("title", "legal"),
            words.replace("sausage", "sausagge"),
            words.replacen("winner thank", "thank winner", 1),
            words.rsplit_once(' ').unwrap().0.to_owned(),
            format!("{words} legal"),
            String::new(),
        ] {
            let error = RecoveryPhrase::parse(&wrong).unwrap_err();
            assert_eq!(error.code(), "KEY_MALFORMED");
            assert!(!error.to_string().contains("sausage") && !error.to_string().contains("winner"));
        }
    }

    #[test]
    fn a_phrase_does_not_show_in_debug() {
        assert_eq!(
            format!("{:?}", RecoveryPhrase::parse(VECTORS[1].1).unwrap()),
            "RecoveryPhrase([redacted])"
        );
    }
}
