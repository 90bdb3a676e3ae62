//! Settings: flags before `STVOR_*` variables before the TOML file before defaults, each with its origin.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy as _;
use figment::error::Kind;
use figment::providers::{Format as _, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::args::{Color, Shared};
use crate::failure::{Failure, Result};
use crate::policy::{IdentityChange, Keep, Receipts, Trust};

/// Where a relay of `stvor relay` and `stvor up` is found.
pub(crate) const DEFAULT_RELAY: &str = "ws://127.0.0.1:3002";

/// Names that do not follow the rule (earlier versions of the product used some), and the settings that they mean.
const OTHER_NAMES: [(&str, &str); 3] =
    [("STVOR_RELAY_URL", "client.relay"), ("STVOR_APP_TOKEN", "client.token"), ("STVOR_VAULT", "vault.path")];

/// Variables that are read elsewhere than here.
const NOT_SETTINGS: [&str; 2] = ["STVOR_CONFIG", "STVOR_LOG"];

/// Keys whose values are not printed. The URL of a store may hold a password.
const SECRET_KEYS: [&str; 6] = ["token", "secret", "client_token", "passphrase", "credential", "store"];

/// How alike a name and a known one must be to be suggested.
const ALIKE: f64 = 0.75;

/// Section `[client]`: what every command uses that speaks to a relay.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Client {
    pub(crate) relay: String,
    pub(crate) token: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) client_token: Option<String>,
    pub(crate) client_token_file: Option<PathBuf>,
    pub(crate) app_id: Option<String>,
    #[serde(rename = "as")]
    pub(crate) user: Option<String>,
    pub(crate) data: Option<PathBuf>,
    /// Seconds.
    pub(crate) timeout: u64,
    pub(crate) root_certificate: Option<PathBuf>,
    pub(crate) passphrase_file: Option<PathBuf>,
    pub(crate) keyfile: Option<PathBuf>,
    pub(crate) os_keyring: bool,
    /// Who decides and does things, for the journal; the account's name if not set.
    pub(crate) actor: Option<String>,
    pub(crate) production: bool,
    /// Of new identities: `p256` if not set, or `x25519`.
    pub(crate) suite: Option<String>,
    pub(crate) store: Option<String>,
    pub(crate) store_password_file: Option<PathBuf>,
    pub(crate) store_root_certificate: Option<PathBuf>,
    pub(crate) store_replicas: usize,
    /// Redis: `name value` of settings that the server does not tell, separated by commas.
    pub(crate) store_assured_settings: Option<String>,
    pub(crate) token_module: Option<PathBuf>,
    pub(crate) token_label: Option<String>,
    pub(crate) token_key: Option<String>,
    pub(crate) token_pin_file: Option<PathBuf>,
    pub(crate) kmip_server: Option<String>,
    pub(crate) kmip_name: Option<String>,
    pub(crate) kmip_key: Option<String>,
    pub(crate) kmip_roots: Option<PathBuf>,
    pub(crate) kmip_certificate: Option<PathBuf>,
    pub(crate) kmip_private_key: Option<PathBuf>,
    pub(crate) trust: Trust,
    pub(crate) identity_change: IdentityChange,
    pub(crate) receipts: Receipts,
    pub(crate) retention: Keep,
    pub(crate) json: bool,
    pub(crate) color: Color,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            relay: DEFAULT_RELAY.to_owned(),
            token: None,
            token_file: None,
            client_token: None,
            client_token_file: None,
            app_id: None,
            user: None,
            data: None,
            timeout: 10,
            root_certificate: None,
            passphrase_file: None,
            keyfile: None,
            os_keyring: false,
            actor: None,
            production: false,
            suite: None,
            store: None,
            store_password_file: None,
            store_root_certificate: None,
            store_replicas: 0,
            store_assured_settings: None,
            token_module: None,
            token_label: None,
            token_key: None,
            token_pin_file: None,
            kmip_server: None,
            kmip_name: None,
            kmip_key: None,
            kmip_roots: None,
            kmip_certificate: None,
            kmip_private_key: None,
            trust: Trust::default(),
            identity_change: IdentityChange::default(),
            receipts: Receipts::default(),
            retention: Keep::default(),
            json: false,
            color: Color::Auto,
        }
    }
}

/// Section `[mock]`: `stvor mock-relay`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Mock {
    pub(crate) port: u16,
    pub(crate) verbose: bool,
}

impl Default for Mock {
    fn default() -> Self {
        Self { port: 4444, verbose: false }
    }
}

/// Section `[vault]`: `stvor vault` and `stvor mcp`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Vault {
    /// Directory of the vault.
    pub(crate) path: Option<PathBuf>,
    /// Directory of the daemon's sockets.
    pub(crate) sockets: Option<PathBuf>,
    /// An agent's credential.
    pub(crate) credential: Option<String>,
    pub(crate) credential_file: Option<PathBuf>,
    /// The owner's secret.
    pub(crate) passphrase_file: Option<PathBuf>,
    pub(crate) keyfile: Option<PathBuf>,
    pub(crate) os_keyring: bool,
    /// How the TPM is reached.
    pub(crate) tpm_place: Option<String>,
    /// Further files for checkpoints.
    pub(crate) checkpoints: Vec<PathBuf>,
    /// Further lists of the memories that no restore may bring back.
    pub(crate) forgotten: Vec<PathBuf>,
    /// The boundary daemon: its socket, and the file of its public key.
    pub(crate) boundary: Option<PathBuf>,
    pub(crate) boundary_key: Option<PathBuf>,
    /// The daemon serves only where its memory can not come into the swap.
    pub(crate) require_locked_memory: bool,
}

/// The file as a whole. The relay's section is read by the command that needs it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sections {
    client: Client,
    mock: Mock,
    vault: Vault,
    relay: Dict,
}

/// All settings of this run.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) client: Client,
    pub(crate) mock: Mock,
    pub(crate) vault: Vault,
    /// The TOML file that was read.
    pub(crate) file: Option<PathBuf>,
    figment: Figment,
}

/// One setting, for `config show`.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) key: String,
    pub(crate) value: serde_json::Value,
    pub(crate) source: String,
}

impl Settings {
    /// Gathers the settings. `variables` is the environment.
    pub(crate) fn load(shared: &Shared, variables: impl Iterator<Item = (String, String)>) -> Result<Self> {
        let variables: Vec<(String, String)> =
            variables.filter(|(name, _)| name.starts_with("STVOR_")).collect();
        let file = config_file(shared, &variables)?;
        let mut figment = Figment::from(Serialized::defaults(Sections::default()));
        if let Some(file) = &file {
            figment = figment.merge(Toml::file_exact(file));
        }
        for (name, value) in variables {
            if let Some(one) = from_variable(&name, &value)? {
                figment = figment.merge(one);
            }
        }
        for one in from_flags(shared) {
            figment = figment.merge(one);
        }
        let sections: Sections = figment.extract().map_err(|error| explain(error, None))?;
        Ok(Self { client: sections.client, mock: sections.mock, vault: sections.vault, file, figment })
    }

    /// The section `[relay]` over the defaults of `T`, with `flags` (key, value) above all.
    pub(crate) fn relay<T: Serialize + DeserializeOwned>(
        &self,
        defaults: &T,
        flags: Vec<(&str, Value)>,
    ) -> Result<T> {
        let mut figment =
            Figment::from(Serialized::defaults(defaults)).merge(self.figment.clone().focus("relay"));
        for (key, value) in flags {
            figment = figment.merge(Single::new(key, value, format!("flag --{}", key.replace('_', "-"))));
        }
        figment.extract().map_err(|error| explain(error, Some("relay")))
    }

    /// The longest that anything which can wait waits.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.client.timeout)
    }

    /// The data directory: the one asked for, or the platform's.
    pub(crate) fn data_dir(&self) -> Result<PathBuf> {
        if let Some(data) = &self.client.data {
            return Ok(data.clone());
        }
        let base = etcetera::choose_base_strategy().map_err(|_| {
            Failure::Config("there is no home directory to keep data in: give --data DIR".to_owned())
        })?;
        Ok(base.data_dir().join("stvor"))
    }

    /// Every setting with its value and where it comes from; `relay` holds the defaults of the relay's section.
    pub(crate) fn shown<T: Serialize>(&self, relay: &T) -> Result<Vec<Shown>> {
        let figment = Figment::from(Serialized::defaults(relay))
            .select("relay")
            .merge(self.figment.clone().focus("relay"));
        let all = self.figment.extract::<Dict>().map_err(|error| explain(error, None))?;
        let relay = figment.extract::<Dict>().map_err(|error| explain(error, Some("relay")))?;
        let mut shown = Vec::new();
        for (section, values) in ["client", "mock", "vault"].map(|name| (name, all.get(name))) {
            if let Some(values) = values.and_then(Value::as_dict) {
                self.walk(section, values, &mut shown);
            }
        }
        self.walk("relay", &relay, &mut shown);
        Ok(shown)
    }

    fn walk(&self, path: &str, values: &Dict, shown: &mut Vec<Shown>) {
        for (key, value) in values {
            let path = format!("{path}.{key}");
            if let Value::Dict(_, inner) = value {
                self.walk(&path, inner, shown);
                continue;
            }
            let source = self.figment.find_metadata(&path).map_or_else(|| "default".to_owned(), origin);
            let value = if matches!(value, Value::Empty(..)) {
                serde_json::Value::Null
            } else if SECRET_KEYS.contains(&key.as_str()) || key == "tokens" {
                "(hidden)".into()
            } else {
                serde_json::to_value(value).unwrap_or_default()
            };
            shown.push(Shown { key: path, value, source });
        }
    }
}

fn origin(metadata: &Metadata) -> String {
    match metadata.source.as_ref().and_then(|source| source.file_path()) {
        Some(file) => file.display().to_string(),
        None if metadata.provide_location.is_some() && metadata.name.contains("Client") => {
            "default".to_owned()
        }
        None if metadata.name.starts_with("flag") || metadata.name.starts_with("variable") => {
            metadata.name.to_string()
        }
        None => "default".to_owned(),
    }
}

/// The file to read: the one that was named, which must exist, or the usual one if it exists.
fn config_file(shared: &Shared, variables: &[(String, String)]) -> Result<Option<PathBuf>> {
    let variable =
        variables.iter().find(|(name, _)| name == "STVOR_CONFIG").map(|(_, value)| PathBuf::from(value));
    if let Some(file) = shared.config.clone().or(variable) {
        std::fs::metadata(&file).map_err(|source| {
            Failure::Config(format!("can not read the settings in {}: {source}", file.display()))
        })?;
        return Ok(Some(file));
    }
    Ok(usual_file().filter(|file| file.exists()))
}

/// Where the settings stand when nobody says otherwise.
pub(crate) fn usual_file() -> Option<PathBuf> {
    Some(etcetera::choose_base_strategy().ok()?.config_dir().join("stvor").join("stvor.toml"))
}

/// One value from one place.
struct Single {
    key: String,
    value: Value,
    name: String,
}

impl Single {
    fn new(key: &str, value: Value, name: String) -> Self {
        Self { key: key.to_owned(), value, name }
    }
}

impl Provider for Single {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let mut value = self.value.clone();
        for part in self.key.rsplit('.') {
            value = Value::from(Dict::from([(part.to_owned(), value)]));
        }
        Ok(Profile::Default.collect(value.into_dict().unwrap_or_default()))
    }
}

/// The setting that a variable means, or nothing for a variable that is none of ours.
fn from_variable(name: &str, text: &str) -> Result<Option<Single>> {
    if NOT_SETTINGS.contains(&name) {
        return Ok(None);
    }
    let lower = name.trim_start_matches("STVOR_").to_ascii_lowercase();
    let other = OTHER_NAMES.iter().find(|(other, _)| *other == name).map(|(_, key)| (*key).to_owned());
    let key = match (other, lower.split_once('_')) {
        (Some(key), _) => key,
        (None, Some((section @ ("relay" | "mock" | "vault"), key))) => format!("{section}.{key}"),
        (None, _) => format!("client.{lower}"),
    };
    if let Some(key) = key.strip_prefix("client.") {
        let known = keys_of(&Client::default());
        if !known.iter().any(|known| known == key) {
            // Other programs may use the prefix too; what looks like a slip of the pen is refused.
            return match nearest(key, known.iter().map(String::as_str)) {
                Some(near) => Err(Failure::UnknownSetting(format!(
                    "the variable {name} is not known: did you mean STVOR_{}?",
                    near.to_ascii_uppercase()
                ))),
                None => Ok(None),
            };
        }
    }
    let value = typed(&key, text);
    Ok(Some(Single::new(&key, value, format!("variable {name}"))))
}

/// Text stays text, even if it looks like a number, unless the setting is a number or a switch.
fn typed(key: &str, text: &str) -> Value {
    match key {
        "client.timeout" | "client.store_replicas" | "mock.port" => {
            text.parse::<u64>().map_or_else(|_| Value::from(text), Value::from)
        }
        "client.json" | "client.os_keyring" | "client.production" | "vault.os_keyring" | "mock.verbose" => {
            match text {
                "1" | "true" | "yes" | "on" => Value::from(true),
                "" | "0" | "false" | "no" | "off" => Value::from(false),
                other => Value::from(other),
            }
        }
        key if key.starts_with("relay.") => text.parse().unwrap_or_else(|_| Value::from(text)),
        _ => Value::from(text),
    }
}

fn from_flags(shared: &Shared) -> Vec<Single> {
    let text =
        |key: &str, value: &Option<String>| value.clone().map(|value| (key.to_owned(), Value::from(value)));
    let path = |key: &str, value: &Option<PathBuf>| {
        value.as_ref().map(|value| (key.to_owned(), Value::from(value.to_string_lossy().into_owned())))
    };
    let color = shared.color.and_then(|color| Value::serialize(color).ok());
    let given = [
        text("relay", &shared.relay),
        text("token", &shared.token),
        path("token_file", &shared.token_file),
        text("client_token", &shared.client_token),
        path("client_token_file", &shared.client_token_file),
        text("app_id", &shared.app_id),
        path("data", &shared.data),
        shared.timeout.map(|seconds| ("timeout".to_owned(), Value::from(seconds))),
        path("root_certificate", &shared.root_certificate),
        path("passphrase_file", &shared.passphrase_file),
        path("keyfile", &shared.keyfile),
        shared.os_keyring.then(|| ("os_keyring".to_owned(), Value::from(true))),
        shared.production.then(|| ("production".to_owned(), Value::from(true))),
        shared.json.then(|| ("json".to_owned(), Value::from(true))),
        color.map(|color| ("color".to_owned(), color)),
    ];
    given
        .into_iter()
        .flatten()
        .map(|(key, value)| {
            Single::new(&format!("client.{key}"), value, format!("flag --{}", key.replace('_', "-")))
        })
        .collect()
}

fn keys_of(value: &impl Serialize) -> Vec<String> {
    Value::serialize(value)
        .ok()
        .and_then(Value::into_dict)
        .map(|dict| dict.into_keys().collect())
        .unwrap_or_default()
}

/// The known name that is most like `name`, if any is like it at all.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// Says what is wrong with a setting, where, and what to write instead.
fn explain(error: figment::Error, section: Option<&str>) -> Failure {
    let place = match &error.metadata {
        Some(metadata) => format!(" in {}", origin(metadata)),
        None => String::new(),
    };
    let path = section.into_iter().map(ToOwned::to_owned).chain(error.path.iter().cloned());
    let path: Vec<String> = path.filter(|part| part != "default").collect();
    if let Kind::UnknownField(name, known) = &error.kind {
        let mut full = path;
        if full.last() != Some(name) {
            full.push(name.clone());
        }
        let advice = match nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("known are {}", known.join(", ")),
        };
        return Failure::UnknownSetting(format!(
            "the setting {}{place} is not known: {advice}",
            full.join(".")
        ));
    }
    let what =
        if path.is_empty() { "the settings".to_owned() } else { format!("the setting {}", path.join(".")) };
    Failure::Config(format!("{what}{place}: {}", error.kind))
}

/// The directory of a relay inside a data directory.
pub(crate) fn relay_dir(data: &Path) -> PathBuf {
    data.join("relay")
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_base::ErrorCode as _;

    fn with(shared: Shared, file: &str, variables: &[(&str, &str)]) -> Result<Settings> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stvor.toml");
        std::fs::write(&path, file).unwrap();
        let shared = Shared { config: Some(path), ..shared };
        Settings::load(&shared, variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn flags_go_before_variables_before_the_file_before_defaults() {
        let file = "[client]\nrelay = 'ws://file'\ntimeout = 3\ndata = '/file'\n";
        let shared = Shared { relay: Some("ws://flag".into()), ..Shared::default() };
        let settings =
            with(shared, file, &[("STVOR_RELAY", "ws://variable"), ("STVOR_DATA", "/variable")]).unwrap();
        assert_eq!(settings.client.relay, "ws://flag");
        assert_eq!(settings.client.data, Some(PathBuf::from("/variable")));
        assert_eq!(settings.client.timeout, 3);
        assert_eq!(settings.mock.port, 4444);
    }

    #[test]
    fn every_setting_tells_where_it_comes_from_and_hides_secrets() {
        let shared = Shared { relay: Some("ws://flag".into()), ..Shared::default() };
        let settings = with(shared, "[client]\ntimeout = 3\n", &[("STVOR_TOKEN", "sk_live_secret")]).unwrap();
        let shown = settings.shown(&Mock::default()).unwrap();
        let find = |key: &str| shown.iter().find(|shown| shown.key == key).unwrap();
        assert_eq!(find("client.relay").source, "flag --relay");
        assert_eq!(find("client.token").source, "variable STVOR_TOKEN");
        assert_eq!(find("client.token").value, "(hidden)");
        assert!(find("client.timeout").source.ends_with("stvor.toml"));
        assert_eq!(find("mock.port").source, "default");
        assert!(find("client.keyfile").value.is_null());
    }

    #[test]
    fn an_unknown_key_is_refused_with_a_suggestion() {
        let failure = with(Shared::default(), "[client]\nreley = 'x'\n", &[]).unwrap_err();
        assert_eq!(failure.code(), "UNKNOWN_SETTING");
        assert!(failure.to_string().contains("client.reley"), "{failure}");
        assert!(failure.to_string().contains("did you mean relay?"), "{failure}");
        let failure = with(Shared::default(), "[clint]\n", &[]).unwrap_err();
        assert!(failure.to_string().contains("did you mean client?"), "{failure}");
    }

    #[test]
    fn a_misspelt_variable_is_refused_and_a_foreign_one_is_not() {
        let failure = with(Shared::default(), "", &[("STVOR_TOKN", "x")]).unwrap_err();
        assert!(failure.to_string().contains("STVOR_TOKEN"), "{failure}");
        assert!(with(Shared::default(), "", &[("STVOR_ZZZZ", "x")]).is_ok());
    }

    #[test]
    fn tokens_of_digits_and_old_names_of_variables_work() {
        let settings =
            with(Shared::default(), "", &[("STVOR_APP_TOKEN", "0123456789"), ("STVOR_MOCK_PORT", "0")])
                .unwrap();
        assert_eq!(settings.client.token.as_deref(), Some("0123456789"));
        assert_eq!(settings.mock.port, 0);
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_the_setting_and_its_place() {
        let failure = with(Shared::default(), "", &[("STVOR_MOCK_PORT", "many")]).unwrap_err();
        assert_eq!(failure.code(), "INVALID_CONFIG");
        assert!(
            failure.to_string().contains("mock.port") && failure.to_string().contains("STVOR_MOCK_PORT"),
            "{failure}"
        );
    }

    #[test]
    fn the_section_of_the_relay_takes_variables_and_flags() {
        let settings =
            with(Shared::default(), "[relay]\nport = 1\n", &[("STVOR_RELAY_VERBOSE", "true")]).unwrap();
        let relay: Mock = settings.relay(&Mock::default(), vec![("port", Value::from(2_u16))]).unwrap();
        assert_eq!((relay.port, relay.verbose), (2, true));
        let settings = with(Shared::default(), "[relay]\nprot = 1\n", &[]).unwrap();
        let failure = settings.relay(&Mock::default(), Vec::new()).unwrap_err();
        assert!(
            failure.to_string().contains("relay.prot") && failure.to_string().contains("mean port"),
            "{failure}"
        );
    }
}
