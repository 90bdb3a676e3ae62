//! Talking to the TPM. A context lives for one operation: when it is dropped, its sessions and objects are flushed.

use core::str::FromStr;

use stvor_crypto::{Random as _, Secret, SystemRandom};
use tss_esapi::attributes::{ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Code;
use tss_esapi::constants::{PropertyTag, SessionType};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Auth, Digest, EccPoint, EccScheme, KeyDerivationFunctionScheme, KeyedHashScheme, PcrSelectionList,
    PcrSlot, Private, Public, PublicBuilder, PublicEccParametersBuilder, PublicKeyedHashParameters,
    SensitiveData, SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};
use tss_esapi::{Context, Error, TctiNameConf};

use super::{HOLDER, Pcrs, Sealed};
use crate::KeyError;
use crate::own_thread::on_own_thread;

/// How the TPM is reached, as tpm2-tss writes it: `device:/dev/tpmrm0`, `tabrmd`, `swtpm:host=127.0.0.1,port=2321`.
#[derive(Debug, Clone)]
pub struct Place(TctiNameConf);

impl Default for Place {
    /// The resource manager of the Linux kernel.
    fn default() -> Self {
        Self(TctiNameConf::Device(tss_esapi::tcti_ldr::DeviceConfig::default()))
    }
}

impl FromStr for Place {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let reason = "it is reached by device:PATH, tabrmd, mssim:... or swtpm:host=...,port=...";
        text.parse().map(Self).map_err(|_| KeyError::Malformed { holder: "place of the TPM", reason })
    }
}

/// What is known of a TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Who made it, four letters.
    pub maker: String,
    /// Wrong PINs that it counts at the moment.
    pub wrong_tries: u32,
    /// So many lock it.
    pub allowed_tries: u32,
    /// Seconds after which it forgets one wrong PIN.
    pub forgets_after: u32,
}

type Done<T> = Result<T, KeyError>;

fn unavailable(reason: impl Into<String>) -> KeyError {
    KeyError::Unavailable { holder: "TPM", reason: reason.into() }
}

fn failed(error: Error) -> KeyError {
    match code(error) {
        Some(Code::Lockout) => KeyError::TpmLocked,
        _ => unavailable(error.to_string()),
    }
}

fn code(error: Error) -> Option<Code> {
    match error {
        Error::Tss2Error(code) => code.kind(),
        Error::WrapperError(_) => None,
    }
}

/// A connection with the storage root key loaded.
struct Open {
    context: Context,
    root: KeyHandle,
}

impl Open {
    fn new(place: &Place) -> Done<Self> {
        let mut context = Context::new(place.0.clone())
            .map_err(|error| unavailable(format!("it does not answer ({error})")))?;
        let template = root_template().map_err(failed)?;
        let made = context.execute_with_nullauth_session(|context| {
            context.create_primary(Hierarchy::Owner, template, None, None, None, None)
        });
        let made = made.map_err(|error| match code(error) {
            Some(Code::BadAuth | Code::AuthFail) => {
                unavailable("its owner hierarchy has a password, with which no key can be made")
            }
            _ => failed(error),
        })?;
        Ok(Self { context, root: made.key_handle })
    }

    /// A session that is salted to the storage root key; what goes in and what comes out is encrypted as asked.
    fn session(&mut self, kind: SessionType, (sent, received): (bool, bool)) -> Done<AuthSession> {
        let (symmetric, hash) = (SymmetricDefinition::AES_128_CFB, HashingAlgorithm::Sha256);
        let started = self.context.start_auth_session(Some(self.root), None, None, kind, symmetric, hash);
        let session = started.map_err(failed)?.ok_or_else(|| unavailable("it opened no session"))?;
        let (attributes, mask) =
            SessionAttributesBuilder::new().with_decrypt(sent).with_encrypt(received).build();
        self.context.tr_sess_set_attributes(session, attributes, mask).map_err(failed)?;
        Ok(session)
    }

    /// Asks for the PIN and for the registers in a policy session.
    fn policy(&mut self, session: AuthSession, pcrs: Pcrs) -> Done<PolicySession> {
        let policy = PolicySession::try_from(session).map_err(failed)?;
        self.context.policy_auth_value(policy).map_err(failed)?;
        self.context
            .policy_pcr(policy, Digest::default(), selection(pcrs).map_err(failed)?)
            .map_err(failed)?;
        Ok(policy)
    }

    /// The digest of that policy while the registers are as they are now.
    fn policy_digest(&mut self, pcrs: Pcrs) -> Done<Digest> {
        let session = self.session(SessionType::Trial, (false, false))?;
        let policy = self.policy(session, pcrs)?;
        self.context.policy_get_digest(policy).map_err(failed)
    }
}

/// The storage root key of the TCG's guidance: P-256, restricted to decrypting what it is the parent of. Its authorisation is
/// empty and not counted; that of its children is.
fn root_template() -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new()
        .with_symmetric(SymmetricDefinitionObject::AES_128_CFB)
        .with_ecc_scheme(EccScheme::Null)
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(false)
        .with_is_decryption_key(true)
        .with_restricted(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// A sealed object. With a policy the PIN alone opens nothing.
fn sealed_template(policy: Option<Digest>) -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_user_with_auth(policy.is_none())
        .with_admin_with_policy(policy.is_some())
        .build()?;
    let mut template = PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default());
    if let Some(policy) = policy {
        template = template.with_auth_policy(policy);
    }
    template.build()
}

fn selection(pcrs: Pcrs) -> Result<PcrSelectionList, Error> {
    let slots = pcrs.numbers().map(|number| PcrSlot::try_from(1_u32 << number));
    let slots = slots.collect::<Result<Vec<_>, _>>()?;
    PcrSelectionList::builder().with_selection(HashingAlgorithm::Sha256, &slots).build()
}

/// Seals a key under a PIN, and to the registers as they are now.
pub(super) fn seal(place: &Place, (key, pin): (&Secret<32>, &Secret<32>), pcrs: Pcrs) -> Done<Sealed> {
    on_own_thread("TPM", || seal_here(place, (key, pin), pcrs))
}

fn seal_here(place: &Place, (key, pin): (&Secret<32>, &Secret<32>), pcrs: Pcrs) -> Done<Sealed> {
    let mut open = Open::new(place)?;
    let policy = if pcrs.is_empty() { None } else { Some(open.policy_digest(pcrs)?) };
    let template = sealed_template(policy).map_err(failed)?;
    let session = open.session(SessionType::Hmac, (true, true))?;
    let pin = Auth::try_from(&pin.expose()[..]).map_err(failed)?;
    let secret = SensitiveData::try_from(&key.expose()[..]).map_err(failed)?;
    let root = open.root;
    let made = open.context.execute_with_session(Some(session), |context| {
        context.create(root, template, Some(pin), Some(secret), None, None)
    });
    let made = made.map_err(failed)?;
    let public = made.out_public.marshall().map_err(failed)?;
    Ok(Sealed { private: made.out_private.value().to_vec(), public })
}

/// Opens what [`seal`] sealed.
pub(super) fn unseal(place: &Place, (sealed, pin): (&Sealed, &Secret<32>), pcrs: Pcrs) -> Done<Secret<32>> {
    on_own_thread("TPM", || unseal_here(place, (sealed, pin), pcrs))
}

fn unseal_here(place: &Place, (sealed, pin): (&Sealed, &Secret<32>), pcrs: Pcrs) -> Done<Secret<32>> {
    let damaged = |_| KeyError::Corrupt("what the TPM sealed is not understood");
    let private = Private::try_from(&sealed.private[..]).map_err(damaged)?;
    let public = Public::unmarshall(&sealed.public).map_err(damaged)?;
    let mut open = Open::new(place)?;
    let session = open.session(SessionType::Hmac, (true, true))?;
    let root = open.root;
    let loaded =
        open.context.execute_with_session(Some(session), |context| context.load(root, private, public));
    let object = loaded.map_err(|error| match code(error) {
        // The storage root key is another one: of another TPM, or of another seed since it was cleared.
        Some(Code::Integrity | Code::Size | Code::Binding) => KeyError::TpmForeign,
        _ => failed(error),
    })?;
    let pin = Auth::try_from(&pin.expose()[..]).map_err(failed)?;
    open.context.tr_set_auth(object.into(), pin).map_err(failed)?;
    let session = if pcrs.is_empty() {
        open.session(SessionType::Hmac, (false, true))?
    } else {
        let session = open.session(SessionType::Policy, (false, true))?;
        open.policy(session, pcrs)?;
        session
    };
    let unsealed = open.context.execute_with_session(Some(session), |context| context.unseal(object.into()));
    let secret = unsealed.map_err(|error| match code(error) {
        Some(Code::AuthFail | Code::BadAuth) => KeyError::Wrong { holder: "PIN of the TPM" },
        Some(Code::PolicyFail) => KeyError::TpmState { pcrs: pcrs.list() },
        _ => failed(error),
    })?;
    Secret::from_slice(secret.value())
        .map_err(|_| KeyError::Corrupt("what the TPM sealed has another length"))
}

/// Has the TPM test itself in full, then seals and unseals a key that is of no use. Leaves nothing in it.
///
/// # Errors
/// [`KeyError::Unavailable`] when it is not there or fails, [`KeyError::TpmLocked`].
pub fn self_test(place: &Place) -> Result<Health, KeyError> {
    let health = on_own_thread("TPM", || {
        let mut open = Open::new(place)?;
        let context = &mut open.context;
        context.self_test(true).map_err(|error| unavailable(format!("its self-test fails: {error}")))?;
        let (_, result) = context.get_test_result().map_err(failed)?;
        result.map_err(|error| unavailable(format!("its self-test fails: {error}")))?;
        let mut read = |tag| context.get_tpm_property(tag).map_err(failed).map(Option::unwrap_or_default);
        let maker = read(PropertyTag::Manufacturer)?.to_be_bytes();
        let maker =
            maker.iter().filter(|byte| byte.is_ascii_graphic()).map(|byte| char::from(*byte)).collect();
        Ok(Health {
            maker,
            wrong_tries: read(PropertyTag::LockoutCounter)?,
            allowed_tries: read(PropertyTag::MaxAuthFail)?,
            forgets_after: read(PropertyTag::LockoutInterval)?,
        })
    })?;
    let mut rng = SystemRandom::new();
    let mut random = || -> Done<Secret<32>> {
        let mut bytes = [0; 32];
        rng.fill(&mut bytes)?;
        Ok(Secret::new(bytes))
    };
    let (key, pin) = (random()?, random()?);
    let sealed = seal(place, (&key, &pin), Pcrs::default())?;
    if unseal(place, (&sealed, &pin), Pcrs::default())? == key {
        Ok(health)
    } else {
        Err(unavailable(format!("a {HOLDER} came back as another one")))
    }
}
