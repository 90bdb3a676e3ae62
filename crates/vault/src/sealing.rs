//! How rows and contents are sealed: pure functions over keys and bytes.

use stvor_base::codec::{Reader, Writer};
use stvor_crypto::aead::{Aes256Gcm, NONCE_BYTES, TAG_BYTES};
use stvor_crypto::kdf::hkdf_sha256;
use stvor_crypto::p256::{AgreementKey, PUBLIC_KEY_BYTES, PublicKey};
use stvor_crypto::{CryptoError, Random, Secret, SecretBytes};

/// Keys that a key for many rows is spread over.
const SPREAD: u16 = 256;

/// A key that seals rows, each under a random nonce of 96 bits. One key may seal 2^32 rows: a nonce repeats by then with a
/// probability of 2^-32 (NIST SP 800-38D, 8.3). A key for many rows is spread over 256 keys that follow from it, each for the rows
/// of some places, so it is good for 2^40: 10,000 rows a second for three years. The nonce itself tells nothing of the place,
/// since a place is written again after a commit that failed or a restore.
#[derive(Debug)]
pub(crate) struct RowKey {
    keys: Vec<Aes256Gcm>,
    /// What sealed all places before; it opens rows of then, and seals nothing any more.
    before: Option<Aes256Gcm>,
}

/// Where plaintexts are opened into, one after another. It is wiped when it goes away or grows.
#[derive(Debug, Default)]
pub(crate) struct Scratch(SecretBytes);

impl RowKey {
    /// A key for few rows.
    pub(crate) fn new(key: &Secret<32>) -> Self {
        Self { keys: vec![Aes256Gcm::new(key)], before: None }
    }

    /// A key for many rows.
    pub(crate) fn spread(key: &Secret<32>) -> Self {
        let of = |number: u16| {
            let info = [b"STVOR vault row key ".as_slice(), &number.to_be_bytes()].concat();
            Aes256Gcm::new(&hkdf_sha256::<32>(b"", key.expose(), &info))
        };
        Self { keys: (0..SPREAD).map(of).collect(), before: Some(Aes256Gcm::new(key)) }
    }

    /// The key of a place. Numbers and random names spread evenly over the keys.
    fn of(&self, ad: &[u8]) -> Result<&Aes256Gcm, CryptoError> {
        let folded = ad.iter().fold(0, |folded, byte| folded ^ byte);
        let at = usize::from(folded) % self.keys.len().max(1);
        self.keys.get(at).ok_or(CryptoError::Internal("a row key without keys"))
    }

    /// Seals `plain` for the place that `ad` names.
    pub(crate) fn seal(&self, rng: &mut dyn Random, ad: &[u8], plain: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut nonce = [0; NONCE_BYTES];
        rng.fill(&mut nonce)?;
        let mut out = Vec::with_capacity(NONCE_BYTES + plain.len() + 16);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let tag = self.of(ad)?.seal_in_place_separate_tag(
            &nonce,
            ad,
            out.get_mut(NONCE_BYTES..).unwrap_or_default(),
        )?;
        out.extend_from_slice(&tag);
        Ok(out)
    }

    /// Opens what [`RowKey::seal`] sealed for the same place.
    pub(crate) fn open(&self, ad: &[u8], sealed: &[u8]) -> Result<SecretBytes, CryptoError> {
        let mut plain = SecretBytes::from(vec![0; Self::length(sealed)?]);
        self.open_to(ad, sealed, plain.expose_mut())?;
        Ok(plain)
    }

    /// The same, into a place that serves many.
    pub(crate) fn open_into<'a>(
        &self,
        ad: &[u8],
        sealed: &[u8],
        scratch: &'a mut Scratch,
    ) -> Result<&'a [u8], CryptoError> {
        let length = Self::length(sealed)?;
        if scratch.0.len() < length {
            scratch.0 = SecretBytes::from(vec![0; length.next_power_of_two()]);
        }
        let out = scratch.0.expose_mut().get_mut(..length).ok_or(CryptoError::DecryptFailed)?;
        self.open_to(ad, sealed, out)?;
        Ok(out)
    }

    fn length(sealed: &[u8]) -> Result<usize, CryptoError> {
        sealed.len().checked_sub(NONCE_BYTES + TAG_BYTES).ok_or(CryptoError::DecryptFailed)
    }

    fn open_to(&self, ad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<(), CryptoError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(CryptoError::DecryptFailed)?;
        match (self.of(ad)?.open_into(nonce, ad, rest, out), &self.before) {
            (Err(_), Some(before)) => before.open_into(nonce, ad, rest, out),
            (opened, _) => opened,
        }
    }
}

/// What a memory's own key is wrapped under.
#[derive(Debug)]
pub(crate) enum Wrap<'a> {
    /// Levels 0 and 1: a key that is held while the vault is not cold.
    Shared(&'a RowKey),
    /// Levels 2 and up: the level's public key, so that writing needs no unlock.
    Public(&'a PublicKey),
    /// The same, with an agreement that serves several memories.
    Sender(&'a Sender),
}

/// An ephemeral key and what it agrees on with a level's public key. It may serve many memories, for each gets a key of its
/// own from what is bound to it, which holds its id. Agreeing is what writing above level 1 costs most.
#[derive(Debug)]
pub(crate) struct Sender {
    public: PublicKey,
    ephemeral: PublicKey,
    agreed: Secret<32>,
}

impl Sender {
    /// Agrees with a level's public key, under a fresh ephemeral key that is gone when this returns.
    pub(crate) fn new(public: &PublicKey, rng: &mut dyn Random) -> Result<Self, CryptoError> {
        let ephemeral = AgreementKey::generate(rng)?;
        let agreed = ephemeral.agree(public)?;
        Ok(Self { public: public.clone(), ephemeral: ephemeral.public().clone(), agreed })
    }

    /// Seals bytes for the holder of the private key. `bound` may be used once with one sender.
    pub(crate) fn wrap(&self, plain: &[u8], bound: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut out = Vec::with_capacity(PUBLIC_KEY_BYTES + plain.len() + 16);
        out.extend_from_slice(self.ephemeral.as_bytes());
        out.extend_from_slice(plain);
        let body = out.get_mut(PUBLIC_KEY_BYTES..).unwrap_or_default();
        let tag = one_time_key(self.agreed.expose(), (&self.public, &self.ephemeral), bound)
            .seal_in_place_separate_tag(&[0; NONCE_BYTES], bound, body)?;
        out.extend_from_slice(&tag);
        Ok(out)
    }
}

/// What a memory's own key is unwrapped with.
#[derive(Debug)]
pub(crate) enum Unwrap<'a> {
    /// Levels 0 and 1.
    Shared(&'a RowKey),
    /// Levels 2 and up.
    Private(&'a AgreementKey),
}

/// A content under a key of its own, and that key, wrapped. Destroying the latter destroys the content.
#[derive(Debug)]
pub(crate) struct SealedContent {
    pub(crate) wrapped: Vec<u8>,
    pub(crate) content: Vec<u8>,
}

/// The key that wraps one memory's key. `bound` holds the memory's id, which no other has.
fn one_time_key(shared: &[u8], (public, ephemeral): (&PublicKey, &PublicKey), bound: &[u8]) -> Aes256Gcm {
    let mut info = Writer::with_capacity(320);
    info.raw(b"STVOR vault level key v1").raw(ephemeral.as_bytes()).raw(public.as_bytes()).bytes(bound);
    Aes256Gcm::new(&hkdf_sha256::<32>(b"", shared, &info.finish()))
}

/// Seals `content`; `bound` is authenticated with both the content and its wrapped key.
pub(crate) fn seal_content(
    wrap: &Wrap<'_>,
    bound: &[u8],
    content: &[u8],
    rng: &mut dyn Random,
) -> Result<SealedContent, CryptoError> {
    let key = Secret::<32>::random(rng)?;
    let mut sealed = Vec::with_capacity(content.len() + 16);
    sealed.extend_from_slice(content);
    // The key seals this one content and nothing else, so a constant nonce is used once.
    Aes256Gcm::new(&key).seal(&[0; NONCE_BYTES], bound, &mut sealed)?;
    let wrapped = match wrap {
        Wrap::Shared(shared) => shared.seal(rng, bound, key.expose())?,
        Wrap::Public(public) => Sender::new(public, rng)?.wrap(key.expose(), bound)?,
        Wrap::Sender(sender) => sender.wrap(key.expose(), bound)?,
    };
    Ok(SealedContent { wrapped, content: sealed })
}

/// Opens what [`Sender::wrap`] sealed.
pub(crate) fn open_wrapped(
    private: &AgreementKey,
    bound: &[u8],
    wrapped: &[u8],
) -> Result<SecretBytes, CryptoError> {
    let mut input = Reader::new(wrapped);
    let ephemeral = input.array::<PUBLIC_KEY_BYTES>().map_err(|_| CryptoError::DecryptFailed)?;
    let ephemeral = PublicKey::from_bytes(ephemeral)?;
    let agreed = private.agree(&ephemeral)?;
    let mut body = SecretBytes::from_slice(input.rest());
    let opened = one_time_key(agreed.expose(), (private.public(), &ephemeral), bound);
    let length = opened.open(&[0; NONCE_BYTES], bound, body.expose_mut())?.len();
    body.truncate(length);
    Ok(body)
}

/// A memory's own key.
fn unwrap_key(unwrap: &Unwrap<'_>, bound: &[u8], wrapped: &[u8]) -> Result<SecretBytes, CryptoError> {
    match unwrap {
        Unwrap::Shared(shared) => shared.open(bound, wrapped),
        Unwrap::Private(private) => open_wrapped(private, bound, wrapped),
    }
}

/// Wraps a memory's own key anew. Its content stays as it is.
pub(crate) fn rewrap(
    (unwrap, wrap): (&Unwrap<'_>, &Wrap<'_>),
    bound: &[u8],
    wrapped: &[u8],
    rng: &mut dyn Random,
) -> Result<Vec<u8>, CryptoError> {
    let key = unwrap_key(unwrap, bound, wrapped)?;
    match wrap {
        Wrap::Shared(shared) => shared.seal(rng, bound, key.expose()),
        Wrap::Public(public) => Sender::new(public, rng)?.wrap(key.expose(), bound),
        Wrap::Sender(sender) => sender.wrap(key.expose(), bound),
    }
}

/// Opens what [`seal_content`] sealed.
pub(crate) fn open_content(
    unwrap: &Unwrap<'_>,
    bound: &[u8],
    (wrapped, content): (&[u8], &[u8]),
) -> Result<SecretBytes, CryptoError> {
    let key = unwrap_key(unwrap, bound, wrapped)?;
    let key = Secret::from_slice(key.expose())?;
    let mut plain = SecretBytes::from_slice(content);
    let length = Aes256Gcm::new(&key).open(&[0; NONCE_BYTES], bound, plain.expose_mut())?.len();
    plain.truncate(length);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_crypto::SystemRandom;

    #[test]
    fn a_key_for_many_rows_seals_each_place_with_one_of_256_and_opens_what_was_sealed_before() {
        let rng = &mut SystemRandom::new();
        let root = Secret::new([7; 32]);
        let (one, many) = (RowKey::new(&root), RowKey::spread(&root));
        let mut scratch = Scratch::default();
        let mut used = std::collections::BTreeSet::new();
        for seq in 0..1_024_u64 {
            let place = seq.to_be_bytes();
            used.insert(std::ptr::from_ref(many.of(&place).unwrap()) as usize);
            let words = vec![b'w'; usize::try_from(seq).unwrap()];
            let (old, new) =
                (one.seal(rng, &place, &words).unwrap(), many.seal(rng, &place, &words).unwrap());
            for sealed in [&old, &new] {
                assert_eq!(many.open(&place, sealed).unwrap().expose(), words);
                assert_eq!(many.open_into(&place, sealed, &mut scratch).unwrap(), words);
                assert!(many.open(&(seq + 1).to_be_bytes(), sealed).is_err());
            }
            assert!(one.open(&place, &new).is_err(), "the old key seals nothing any more");
        }
        assert_eq!(used.len(), usize::from(SPREAD));
        assert!(many.open(b"", &[0; NONCE_BYTES + TAG_BYTES - 1]).is_err());
    }

    #[test]
    fn a_key_is_wrapped_anew_and_its_content_stays() {
        let rng = &mut SystemRandom::new();
        let (old, new) = (AgreementKey::generate(rng).unwrap(), AgreementKey::generate(rng).unwrap());
        let sealed = seal_content(&Wrap::Public(old.public()), b"here", b"words", rng).unwrap();
        let both = (&Unwrap::Private(&old), &Wrap::Public(new.public()));
        let wrapped = rewrap(both, b"here", &sealed.wrapped, rng).unwrap();
        let open = |key, wrapped: &[u8]| {
            open_content(&Unwrap::Private(key), b"here", (wrapped, &sealed.content)).map(|plain| plain.len())
        };
        assert_eq!(open(&new, &wrapped).unwrap(), 5);
        assert!(open(&old, &wrapped).is_err() && open(&new, &sealed.wrapped).is_err());
        assert!(rewrap(both, b"there", &sealed.wrapped, rng).is_err());
    }

    #[test]
    fn one_agreement_serves_many_memories_under_keys_of_their_own() {
        let rng = &mut SystemRandom::new();
        let private = AgreementKey::generate(rng).unwrap();
        let sender = Sender::new(private.public(), rng).unwrap();
        let seal = |bound: &[u8], rng: &mut SystemRandom| {
            seal_content(&Wrap::Sender(&sender), bound, b"words", rng).unwrap()
        };
        let (one, two) = (seal(b"one", rng), seal(b"two", rng));
        let open = |bound: &[u8], wrapped: &[u8], content: &[u8]| {
            open_content(&Unwrap::Private(&private), bound, (wrapped, content))
        };
        assert_eq!(open(b"one", &one.wrapped, &one.content).unwrap().expose(), b"words");
        assert_eq!(open(b"two", &two.wrapped, &two.content).unwrap().expose(), b"words");
        assert!(open(b"one", &two.wrapped, &two.content).is_err());
        assert!(open(b"two", &one.wrapped, &two.content).is_err());
    }

    #[test]
    fn a_content_opens_with_its_key_and_in_its_place_only() {
        let rng = &mut SystemRandom::new();
        let (private, other) = (AgreementKey::generate(rng).unwrap(), AgreementKey::generate(rng).unwrap());
        let shared = RowKey::new(&Secret::new([1; 32]));
        for (wrap, unwrap, wrong) in [
            (Wrap::Public(private.public()), Unwrap::Private(&private), Unwrap::Private(&other)),
            (Wrap::Shared(&shared), Unwrap::Shared(&shared), Unwrap::Private(&private)),
        ] {
            let sealed = seal_content(&wrap, b"here", b"words", rng).unwrap();
            let parts = (&sealed.wrapped[..], &sealed.content[..]);
            assert_eq!(open_content(&unwrap, b"here", parts).unwrap().expose(), b"words");
            assert!(open_content(&unwrap, b"there", parts).is_err());
            assert!(open_content(&wrong, b"here", parts).is_err());
            for at in 0..sealed.wrapped.len() {
                let mut changed = sealed.wrapped.clone();
                changed[at] ^= 1;
                assert!(open_content(&unwrap, b"here", (&changed, parts.1)).is_err(), "{at}");
            }
            let twin = seal_content(&wrap, b"here", b"other", rng).unwrap();
            assert!(open_content(&unwrap, b"here", (parts.0, &twin.content)).is_err(), "swapped");
        }
    }
}
