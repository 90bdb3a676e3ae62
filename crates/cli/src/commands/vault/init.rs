//! `stvor vault init`: makes a vault.

use serde_json::json;
use stvor_crypto::{Random as _, SystemRandom};
use stvor_vault::{NewKeys, Vault, VaultError};

use super::Call;
use crate::args::VaultInit;
use crate::failure::{Failure, Result};
use crate::render::{Hex, STRONG, paint};

/// Makes the vault.
pub(super) fn run(call: Call<'_>, args: &VaultInit) -> Result {
    let path = call.path()?;
    // Before anything is asked: what is there is not overwritten.
    if path.join("vault.db").exists() {
        return Err(VaultError::Exists(path).into());
    }
    let owner = call.new_owner(args)?;
    let second = call.new_second(&args.second, args.cost)?;
    let origin = match &args.origin {
        Some(origin) => origin.clone(),
        None => {
            let mut random = [0; 4];
            SystemRandom::new().fill(&mut random).map_err(|error| Failure::coded(&error))?;
            format!("stvor.local/vault/{}", Hex(&random).to_string().replace(' ', ""))
        }
    };
    Vault::create(&path, &NewKeys { owner: &*owner, vaulted: second.as_deref(), origin: &origin })?;
    let out = call.out();
    let object = json!({
        "vault": path.display().to_string(), "opens_with": owner.kind().name(),
        "second_secret": second.is_some(), "origin": origin,
    });
    out.either(&object, |_| format!("made {}", paint(STRONG, path.display())))?;
    out.say(format_args!("It opens with a {}; nobody can restore that for you.", owner.kind().name()));
    if owner.kind() == stvor_keys::HolderKind::Token && args.binding.recovery_passphrase_file.is_none() {
        out.say("Without that token nothing opens it: make shares (`stvor vault escrow make`), or give a recovery passphrase.");
    }
    out.say("Next: `stvor vault serve`, and in another terminal `stvor vault unlock`.");
    Ok(())
}
