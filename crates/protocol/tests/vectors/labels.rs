//! Every label of the workspace, found in its sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use stvor_base::Suite;
use stvor_base::devices::{device_list_label, login_label};
use stvor_base::rotations::rotation_label;
use stvor_protocol::limits;
use stvor_protocol::profile;

const PROFILE: &str = "STVOR 1 P256 ";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// Byte strings that begin with the project's name, outside comments, with the files that they stand in.
fn labels() -> BTreeMap<String, Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap().path().join("src");
        if folder.is_dir() {
            sources(&folder, &mut files);
        }
    }
    let mut labels: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for part in line.split("b\"STVOR").skip(1) {
                let rest = part.split('"').next().unwrap();
                labels.entry(format!("STVOR{rest}")).or_default().push(file.clone());
            }
        }
    }
    labels
}

fn specification() -> String {
    std::fs::read_to_string(root().join("docs/specification.md")).unwrap()
}

fn of_the_profile(suite: Suite) -> BTreeSet<String> {
    let label = &profile::of(suite).label;
    let all = [
        device_list_label(suite),
        login_label(suite),
        rotation_label(suite),
        label.signed_prekey,
        label.kem_prekey,
        label.transcript,
        label.handshake,
        label.session_id,
        label.root,
        label.message,
        label.associated_data,
        label.handshake_mark,
        label.safety,
        label.group_change,
        label.group_state,
        label.group_data,
        label.group_message,
        label.group_signature,
        label.group_recipient,
        label.recovery_salt,
        label.recovered_key,
    ];
    all.iter().map(|label| std::str::from_utf8(label).unwrap().to_owned()).collect()
}

#[test]
fn no_label_is_a_prefix_of_another() {
    let mut labels = labels();
    let scanned = |label: &[u8]| labels.contains_key(std::str::from_utf8(label).unwrap());
    assert!(Suite::ALL.into_iter().all(|suite| scanned(login_label(suite))), "the scan misses labels");
    for suite in Suite::ALL {
        let known = of_the_profile(suite);
        assert_eq!(known.len(), 21);
        for label in known {
            labels.entry(label).or_insert_with(|| vec![PathBuf::new()]);
        }
    }
    assert!(labels.len() >= 40, "only {}", labels.len());
    for (a, at) in &labels {
        assert!(a.is_ascii(), "{a}");
        assert_eq!(at.len(), 1, "{a:?} stands in more than one place: {at:?}");
        for b in labels.keys().filter(|b| *b != a) {
            assert!(!b.starts_with(a.as_str()), "{a:?} is a prefix of {b:?}");
        }
    }
}

#[test]
fn the_specification_names_exactly_the_labels_of_the_profile() {
    let in_sources = of_the_profile(Suite::P256);
    let renamed: BTreeSet<String> =
        in_sources.iter().map(|label| label.replacen("P256", "X25519", 1)).collect();
    assert_eq!(of_the_profile(Suite::X25519), renamed, "only the name of the suite differs");
    let text = specification();
    let in_text: BTreeSet<String> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.starts_with(PROFILE))
        .map(str::to_owned)
        .collect();
    assert_eq!(in_text, in_sources);
}

#[test]
fn the_specification_names_the_limits_as_they_are() {
    let days = |count: u64| count * 24 * 3_600;
    let limits: &[(&str, u64, u64)] = &[
        ("MAX_SKIP", limits::MAX_SKIP.into(), 2_000),
        ("MAX_STORED_KEYS", limits::MAX_STORED_KEYS as u64, 2_000),
        ("STORED_KEY_LIFETIME", limits::STORED_KEY_LIFETIME.as_secs(), days(30)),
        ("MAX_LOST_RANGES", limits::MAX_LOST_RANGES as u64, 256),
        ("MAX_RECEIVING_CHAINS", limits::MAX_RECEIVING_CHAINS as u64, 5),
        ("MAX_ARCHIVED_SESSIONS", limits::MAX_ARCHIVED_SESSIONS as u64, 40),
        ("MAX_PLAINTEXT", limits::MAX_PLAINTEXT as u64, 65_536),
        ("MAX_BLOB", limits::MAX_BLOB as u64, 98_304),
        ("FORCED_RATCHET", limits::FORCED_RATCHET.into(), 50),
        ("UNANSWERED_RESTART", limits::UNANSWERED_RESTART.as_secs(), days(14)),
        ("PREKEY_ROTATION", limits::PREKEY_ROTATION.as_secs(), days(7)),
        ("PREKEY_RETENTION", limits::PREKEY_RETENTION.as_secs(), days(60)),
        ("BUNDLE_MAX_AGE", limits::BUNDLE_MAX_AGE.as_secs(), days(30)),
        ("ONE_TIME_BATCH", limits::ONE_TIME_BATCH.into(), 100),
        ("ONE_TIME_LOW", limits::ONE_TIME_LOW.into(), 20),
        ("KEM_ONE_TIME_BATCH", limits::KEM_ONE_TIME_BATCH.into(), 50),
        ("MAX_ONE_TIME_KEPT", limits::MAX_ONE_TIME_KEPT.into(), 2_000),
        ("MAX_RETIRED_PREKEYS", limits::MAX_RETIRED_PREKEYS as u64, 16),
        ("MAX_RETRIES", limits::MAX_RETRIES.into(), 3),
        ("FRESH_SESSION_INTERVAL", limits::FRESH_SESSION_INTERVAL.as_secs(), 3_600),
        ("BROKEN_SESSION_FAILURES", limits::BROKEN_SESSION_FAILURES.into(), 3),
        ("REPLAY_MARK_LIFETIME", limits::REPLAY_MARK_LIFETIME.as_secs(), 300),
        ("CONTENT_ID_LIFETIME", limits::CONTENT_ID_LIFETIME.as_secs(), days(60)),
        ("MAX_ROTATIONS", stvor_base::rotations::MAX_ROTATIONS as u64, 8),
        ("MAX_EARLIER_KEYS", limits::MAX_EARLIER_KEYS as u64, 64),
        ("LEFT_BEHIND_READING", limits::LEFT_BEHIND_READING.as_secs(), 600),
        ("SAFETY_ITERATIONS", limits::SAFETY_ITERATIONS.into(), 5_200),
    ];
    let text = specification();
    for (name, value, published) in limits {
        assert_eq!(value, published, "{name} is not what was published");
        let row = text.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("the specification does not name {name}"));
        let cell = row.split('|').nth(2).unwrap().trim().replace(',', "");
        let mut words = cell.split(' ');
        let number: u64 = words.next().unwrap().parse().unwrap_or_else(|_| panic!("{row}"));
        let said = match words.next() {
            Some("days") => days(number),
            Some("KiB") => number * 1_024,
            _ => number,
        };
        assert_eq!(said, *value, "{row}");
    }
}

#[test]
fn the_specification_names_the_characters_that_no_user_id_may_hold() {
    let text = specification();
    let (_, rest) = text.split_once("without format characters (").unwrap();
    let (list, _) = rest.split_once(')').unwrap();
    let code = |word: &str| u32::from_str_radix(word.trim().strip_prefix("U+").unwrap(), 16).unwrap();
    let ranges: Vec<_> = list
        .split(',')
        .map(|item| {
            item.split_once(" to ").map_or_else(|| (code(item), code(item)), |(a, b)| (code(a), code(b)))
        })
        .collect();
    assert!(ranges.len() > 10);
    // The planes that have characters; the last one is where tags and variation selectors are.
    for c in (0..0x2_0000).chain(0xe_0000..0xe_2000).filter_map(char::from_u32) {
        let listed = ranges.iter().any(|(from, to)| (*from..=*to).contains(&u32::from(c)));
        let refused = listed || c.is_control() || c.is_whitespace() && c != ' ';
        assert_eq!(stvor_base::UserId::new(&format!("a{c}b")).is_err(), refused, "U+{:04X}", u32::from(c));
    }
}
