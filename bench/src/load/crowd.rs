//! Users who all write to one user: conversations by the thousand, whose other ends cost little.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use stvor_base::{Address, ContentId, Timestamp};
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_protocol::{
    ContentKind, Context, Conversation, KemKind, KemPrekeyIn, Plaintext, PrekeyBundleIn, Records,
    SignedDeviceListIn, SignedPrekeyIn, TrustPolicy,
};
use stvor_wire::client::Mode;
use stvor_wire::server::{Bundles, ServerMessage};

use crate::Outcome;
use crate::load::raw::Account;
use crate::ours::padding;

/// Users who write at once.
const AT_ONCE: usize = 64;

/// Lets so many new users each start a session with the user `to` and send its first message through the relay.
///
/// # Errors
/// When the relay refuses something, or has no prekeys of `to`.
pub async fn write_to(url: &str, to: &Address, users: u64) -> Outcome<()> {
    let run: u64 = rand::random();
    let reader = Account::new(&format!("reader-{run:x}"))?;
    let bundles = reader.connect(url, Mode::SendOnly).await?.bundles(&to.user).await?;
    let bundle = Arc::new(bundle_of(&bundles)?);
    let mut writing = stream::iter(0..users)
        .map(|number| {
            let (url, to, bundle) = (url.to_owned(), to.clone(), Arc::clone(&bundle));
            // In tasks of their own: what they compute is spread over the processors.
            tokio::spawn(async move { write(&url, (&to, &bundle), &format!("user{number}-{run:x}")).await })
        })
        .buffer_unordered(AT_ONCE);
    while let Some(written) = writing.next().await {
        written??;
    }
    Ok(())
}

async fn write(url: &str, (to, bundle): (&Address, &PrekeyBundleIn), name: &str) -> Outcome<()> {
    let account = Account::new(name)?;
    let blob = first_message(&account, (to, bundle))?;
    let mut connection = account.connect(url, Mode::SendOnly).await?;
    connection.sender.feed(to, blob.into(), false).await?;
    connection.sender.flush().await?;
    loop {
        let answers = connection.receiver.batch(16).await?;
        if answers.is_empty() {
            return Err("the connection ended before the message was accepted".into());
        }
        if answers.iter().any(|answer| matches!(answer, ServerMessage::Accepted { .. })) {
            return Ok(());
        }
    }
}

fn first_message(account: &Account, (to, bundle): (&Address, &PrekeyBundleIn)) -> Outcome<Vec<u8>> {
    let (now, mut rng) = (Timestamp::system(), SystemRandom::new());
    let context = Context { identity: &account.identity, policy: TrustPolicy::default(), padding, now };
    let bundle = bundle.validate(&account.app, to, now)?;
    let mut conversation = Conversation::load(&account.identity, to, &Records::new())?;
    // This end is not used again: there is nothing to store.
    drop(conversation.start(&context, &bundle, None, &mut rng)?);
    let plaintext = Plaintext {
        content: ContentId::from_bytes(rand::random()),
        kind: ContentKind::Text,
        body: SecretBytes::from_slice(b"hello"),
    };
    Ok(conversation.encrypt(&context, &plaintext, &mut rng)?.blob)
}

fn bundle_of(bundles: &Bundles) -> Outcome<PrekeyBundleIn> {
    let bundle = bundles.bundles.first().ok_or("the relay has no prekeys of this user")?;
    let (signed, kem) = (&bundle.signed_prekey, &bundle.kem);
    Ok(PrekeyBundleIn {
        list: SignedDeviceListIn {
            bytes: bundles.device_list.to_vec(),
            signature: bundles.device_list_signature.to_vec(),
        },
        device: bundle.device.get(),
        signed: SignedPrekeyIn {
            id: signed.id,
            created: signed.created_at.as_millis(),
            public: signed.key.to_vec(),
            signature: signed.signature.to_vec(),
        },
        one_time: None,
        kem: KemPrekeyIn {
            kind: if bundle.kem_is_last_resort { KemKind::LastResort } else { KemKind::OneTime },
            id: kem.id,
            created: kem.created_at.as_millis(),
            public: kem.key.to_vec(),
            signature: kem.signature.to_vec(),
        },
    })
}
