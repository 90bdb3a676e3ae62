//! What keeps a set-up from being fit for production, all of it at once, each with the way to mend it.

use core::fmt;
use std::path::{Path, PathBuf};

use stvor_store::{MemoryStores, StoreError, StoreFacts, StoreProvider};
use stvor_wire::token::TokenKind;
use tokio::time::Instant;

use crate::config::KeySource;
use crate::limits;

/// Something about the set-up of an app that production should not have, or that its owner should know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// A stable name in snake case, for example `store_not_durable`.
    pub code: &'static str,
    /// What was found.
    pub what: String,
    /// How to mend it.
    pub fix: String,
    /// Whether [`production`](crate::AppBuilder::production) refuses to start with it. What is not refused is stated.
    pub refused: bool,
}

impl Finding {
    pub(crate) fn refused(code: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, what: what.into(), fix: fix.into(), refused: true }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.fix)
    }
}

/// One finding a line, for the message of the error that lists them.
pub(crate) fn list(findings: &[Finding]) -> String {
    findings.iter().fold(String::new(), |text, finding| text + &format!("\n  - {finding} ({})", finding.code))
}

/// What of an app's settings is judged.
pub(crate) struct Setup<'a> {
    pub(crate) store: StoreFacts,
    pub(crate) keys: &'a KeySource,
    /// The directory of the app at this relay; `None` when nothing is kept on this machine.
    pub(crate) directory: Option<&'a Path>,
    pub(crate) secure_relay: bool,
    pub(crate) relay: String,
    /// The app token's kind, when it is the app token that lets the client in.
    pub(crate) token: Option<Option<TokenKind>>,
}

/// Judges settings, without looking at anything but paths.
pub(crate) fn judge(setup: &Setup<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    if setup.store.durable && setup.store.local {
        found.extend(judge_key(setup));
    } else if setup.store.durable && setup.directory.is_some() && matches!(setup.keys, KeySource::Beside) {
        // A key on this machine is not beside a database on another, but nobody chose to have it there. Stores of the application have none.
        found.push(Finding::refused(
            "keyfile_on_this_machine",
            "the key of the store on a server is a file in the data directory of this machine: without this machine (or its container) \
             nobody opens the store, and no other machine does",
            "give the store a passphrase, a token or a KMS, or a keyfile that all its machines get and that is kept elsewhere, too",
        ));
    }
    if !setup.secure_relay {
        found.push(Finding::refused(
            "relay_without_tls",
            format!(
                "{} is not encrypted on the way: others see the app token and who talks when",
                setup.relay
            ),
            "use a wss:// relay URL; a relay without a certificate belongs behind a proxy that has one",
        ));
    }
    if let Some(Some(kind @ (TokenKind::Development | TokenKind::Test))) = setup.token {
        found.push(Finding::refused(
            "development_token",
            format!("the app token starts with {}: it is one for development or tests", kind.prefix()),
            "use a client token that your backend signs, or an sk_live_ token (`stvor relay token create --kind live`)",
        ));
    }
    found
}

/// Findings about a store that say nothing of what becomes of its commits, and the word of whoever runs it that they are kept.
/// Whatever else is found, also by a store of the application's own, may mean that one is lost.
const KEEPS_COMMITS: [&str; 3] = ["redis_no_tls", "postgres_no_tls", ASSURED];

/// Why a commit can be lost, or half of it, that was acknowledged, if it can: when the store's machine crashes, or another takes
/// over. A store that is in the memory of this process goes as a whole, and no older state of it comes back.
pub(crate) fn loses_commits(
    facts: StoreFacts,
    found: Vec<stvor_store::Finding>,
) -> Option<stvor_store::Finding> {
    let in_memory = facts == MemoryStores.facts();
    let gone = |finding: &stvor_store::Finding| in_memory && finding.code == "store_not_durable";
    let first = found.into_iter().find(|finding| !KEEPS_COMMITS.contains(&finding.code) && !gone(finding));
    first.or_else(|| facts.findings().into_iter().find(|finding| !gone(finding)))
}

/// The code of a store that can not apply a change set whole or not at all.
pub(crate) const NOT_ATOMIC: &str = "store_not_atomic";

/// The code of settings of a server that somebody vouches for and nobody can look at.
const ASSURED: &str = "redis_settings_assured";

/// Adds what the store says of itself. What is vouched for is stated. A store that is not atomic is, too, and refused where that was
/// asked for.
pub(crate) fn with_store(
    found: Vec<Finding>,
    store: Result<Vec<stvor_store::Finding>, StoreError>,
    require_atomic: bool,
) -> Result<Vec<Finding>, (Vec<Finding>, StoreError)> {
    let store = match store {
        Ok(store) => store,
        Err(error) => return Err((found, error)),
    };
    let of = |finding| of_store(finding, require_atomic);
    Ok(store.into_iter().map(of).chain(found).collect())
}

fn of_store(finding: stvor_store::Finding, require_atomic: bool) -> Finding {
    Finding {
        refused: match finding.code {
            NOT_ATOMIC => require_atomic,
            code => code != ASSURED,
        },
        code: finding.code,
        what: finding.what,
        fix: finding.fix,
    }
}

/// What the server of the store said last of its settings, or why it did not. All clients of an app ask together.
#[derive(Debug, Default)]
pub(crate) struct Settings(tokio::sync::Mutex<Option<(Instant, Asked)>>);

/// What is weak about the settings, or why nobody knows.
type Asked = Result<Vec<Finding>, StoreError>;

impl Settings {
    /// What is weak about them now. Who comes soon after somebody asked waits, and then one asks for all who came meanwhile.
    pub(crate) async fn ask(&self, stores: &dyn StoreProvider) -> Result<Vec<Finding>, StoreError> {
        let since = Instant::now();
        let mut last = loop {
            let last = self.0.lock().await;
            let next = match &*last {
                Some((at, found)) if *at >= since => return found.clone(),
                Some((at, _)) => *at + limits::SETTINGS_PACE,
                None => break last,
            };
            if next <= Instant::now() {
                break last;
            }
            drop(last);
            tokio::time::sleep_until(next).await;
        };
        let at = Instant::now();
        let found = stores.findings().await;
        let found =
            found.map(|found| found.into_iter().map(|finding| of_store(finding, false)).collect::<Vec<_>>());
        *last = Some((at, found.clone()));
        found
    }
}

fn judge_key(setup: &Setup<'_>) -> Option<Finding> {
    const FIX: &str = "give the store a passphrase, the system's keyring, a token or a KMS, or keep the keyfile on \
                       another file system than the backups of the store";
    match setup.keys {
        KeySource::Beside => Some(Finding::refused(
            "keyfile_beside_store",
            "the key of the store is a file beside it: whoever copies the directory can read everything",
            FIX,
        )),
        KeySource::Keyfile(path) if setup.directory.is_some_and(|directory| holds(directory, path)) => {
            Some(Finding::refused(
                "keyfile_beside_store",
                format!(
                    "the keyfile {} is in the data directory: whoever copies that can read everything",
                    path.display()
                ),
                FIX,
            ))
        }
        _ => None,
    }
}

/// Whether a file is in the data directory that holds `directory`, whatever links the paths go through.
fn holds(directory: &Path, file: &Path) -> bool {
    let real = |path: &Path| -> PathBuf {
        // What does not exist yet is where its nearest ancestor that exists is.
        path.ancestors()
            .find_map(|above| {
                let rest = path.strip_prefix(above).ok()?;
                let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
                Some(above.canonicalize().ok()?.join(rest))
            })
            .unwrap_or_else(|| path.to_owned())
    };
    let root = directory.parent().unwrap_or(directory);
    real(file).starts_with(real(root))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_store::SqliteStores;

    fn judge_one(change: impl FnOnce(&mut Setup<'_>)) -> Vec<&'static str> {
        let keys = KeySource::Passphrase("x".into());
        let mut setup = Setup {
            store: SqliteStores.facts(),
            keys: &keys,
            directory: Some(Path::new("/data/relay-app")),
            secure_relay: true,
            relay: "wss://relay.example".to_owned(),
            token: Some(Some(TokenKind::Live)),
        };
        change(&mut setup);
        judge(&setup).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_sound_setup_has_no_findings_and_each_weakness_has_its_own() {
        assert_eq!(judge_one(|_| {}), [""; 0]);
        assert_eq!(judge_one(|setup| setup.keys = &KeySource::Beside), ["keyfile_beside_store"]);
        let server = StoreFacts { local: false, shared: true, ..SqliteStores.facts() };
        assert_eq!(judge_one(|setup| setup.store = server), [""; 0]);
        let beside = judge_one(|setup| (setup.store, setup.keys) = (server, &KeySource::Beside));
        assert_eq!(beside, ["keyfile_on_this_machine"]);
        let adapters = judge_one(|setup| {
            (setup.store, setup.keys, setup.directory) = (server, &KeySource::Beside, None);
        });
        assert_eq!(adapters, [""; 0], "they are sealed under the identity");
        assert_eq!(judge_one(|setup| setup.secure_relay = false), ["relay_without_tls"]);
        for kind in [TokenKind::Development, TokenKind::Test] {
            assert_eq!(judge_one(|setup| setup.token = Some(Some(kind))), ["development_token"]);
        }
        // A literal that the operator chose, or a client token.
        assert_eq!(judge_one(|setup| setup.token = Some(None)), [""; 0]);
        assert_eq!(judge_one(|setup| setup.token = None), [""; 0]);
    }

    #[tokio::test]
    async fn what_a_store_says_of_itself_comes_first_and_one_that_is_not_atomic_is_refused_if_asked_for() {
        let codes = |findings: &[Finding]| -> Vec<_> {
            findings.iter().map(|finding| (finding.code, finding.refused)).collect()
        };
        let memory = with_store(Vec::new(), MemoryStores.findings().await, false).unwrap();
        assert_eq!(codes(&memory), [("store_not_durable", true)]);
        let facts = StoreFacts { atomic: false, ..SqliteStores.facts() };
        for (required, refused) in [(false, false), (true, true)] {
            let rest = vec![Finding::refused("other", "", "")];
            let found = with_store(rest, Ok(facts.findings()), required).unwrap();
            assert_eq!(codes(&found), [("store_not_atomic", refused), ("other", true)]);
        }
        let vouched = vec![stvor_store::Finding::new("redis_settings_assured", "what", "fix")];
        let found = with_store(Vec::new(), Ok(vouched), true).unwrap();
        assert_eq!(
            codes(&found),
            [("redis_settings_assured", false)],
            "stated, and the operator's to answer for"
        );
        let (found, error) = with_store(memory, Err(StoreError::Closed), false).unwrap_err();
        assert_eq!((found.len(), stvor_base::ErrorCode::code(&error)), (1, "STORE_CLOSED"));
    }

    #[test]
    fn whatever_a_store_says_that_is_not_known_as_harmless_may_cost_a_commit() {
        let found = |code| vec![stvor_store::Finding::new(code, "what", "fix")];
        let sound = SqliteStores.facts();
        let first = |facts, found| loses_commits(facts, found).map(|finding| finding.code);
        assert_eq!(first(sound, Vec::new()), None);
        for (code, loses) in [
            ("postgres_no_tls", false),
            ("redis_no_tls", false),
            ("redis_settings_assured", false),
            ("redis_appendonly", true),
            ("postgres_synchronous_commit", true),
            ("something of the application's own", true),
        ] {
            assert_eq!(first(sound, found(code)), loses.then_some(code));
        }
        for facts in [StoreFacts { durable: false, ..sound }, StoreFacts { atomic: false, ..sound }] {
            assert!(first(facts, Vec::new()).is_some(), "whatever it forgets to say");
        }
        let memory = MemoryStores.facts();
        assert_eq!(first(memory, memory.findings()), None, "it goes as a whole");
    }

    #[test]
    fn all_findings_come_at_once() {
        let all = judge_one(|setup| {
            setup.keys = &KeySource::Beside;
            setup.secure_relay = false;
            setup.token = Some(Some(TokenKind::Development));
        });
        assert_eq!(all, ["keyfile_beside_store", "relay_without_tls", "development_token"]);
    }

    #[test]
    fn a_keyfile_counts_as_beside_the_store_by_any_path_to_it() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let inside = |path: PathBuf| holds(&data.join("relay-app"), &path);
        assert!(inside(data.join("key")));
        assert!(inside(data.join("not/there/yet/key")));
        assert!(!inside(root.path().join("key")));
        assert!(!inside(root.path().join("data-of-another/key")));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&data, root.path().join("link")).unwrap();
            assert!(inside(root.path().join("link/key")));
        }
    }
}
