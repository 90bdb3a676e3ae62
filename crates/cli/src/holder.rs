//! Keys that a token or a key management server keeps.

use std::path::Path;
use std::sync::Arc;

use stvor_keys::kmip::{KmipKey, KmipServer};
use stvor_keys::pkcs11::{Token, TokenKey};
use stvor_keys::{KeyHolder, Managed};

use crate::config::Client;
use crate::failure::{Failure, Result};

/// The holder that the settings name, if they name one.
pub(crate) fn configured(client: &Client) -> Result<Option<Arc<dyn KeyHolder>>> {
    match (&client.token_module, &client.kmip_server) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Failure::Config(
            "the key of the store has one place: set either token_module or kmip_server".to_owned(),
        )),
        (Some(module), None) => token(client, module).map(Some),
        (None, Some(server)) => kmip(client, server).map(Some),
    }
}

fn needed<'a, T>(value: &'a Option<T>, name: &str, beside: &str) -> Result<&'a T> {
    value.as_ref().ok_or_else(|| Failure::Config(format!("{beside} needs {name} beside it")))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|source| Failure::File {
        what: "can not read",
        path: file.to_owned(),
        source,
    })
}

fn token(client: &Client, module: &Path) -> Result<Arc<dyn KeyHolder>> {
    const BESIDE: &str = "token_module";
    let which = TokenKey {
        module: module.to_owned(),
        token: needed(&client.token_label, "token_label", BESIDE)?.clone(),
        key: needed(&client.token_key, "token_key", BESIDE)?.clone(),
    };
    let file = needed(&client.token_pin_file, "token_pin_file", BESIDE)?;
    let pin = crate::secrets::from_file_or_fd(Some(file), None, "the PIN of the token")?;
    let pin = pin.as_ref().map_or("", |pin| pin.expose());
    let token = Token::new(which, stvor::SecretBytes::from_slice(pin.as_bytes()));
    Ok(Arc::new(Managed::token(token.map_err(|error| Failure::coded(&error))?)))
}

fn kmip(client: &Client, server: &str) -> Result<Arc<dyn KeyHolder>> {
    const BESIDE: &str = "kmip_server";
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let address = if server.contains(':') { server.to_owned() } else { format!("{server}:5696") };
    let server = KmipServer {
        address,
        name: client.kmip_name.clone().unwrap_or_else(|| host.to_owned()),
        roots: read(needed(&client.kmip_roots, "kmip_roots", BESIDE)?)?,
        certificate: read(needed(&client.kmip_certificate, "kmip_certificate", BESIDE)?)?,
        private_key: Arc::new(read(needed(&client.kmip_private_key, "kmip_private_key", BESIDE)?)?.into()),
    };
    let key = KmipKey::new(&server, needed(&client.kmip_key, "kmip_key", BESIDE)?.clone());
    Ok(Arc::new(Managed::service(key.map_err(|error| Failure::coded(&error))?)))
}
