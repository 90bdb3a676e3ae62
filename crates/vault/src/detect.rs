//! Finding secrets in what is to be remembered: credentials do not belong where agents read freely.

use std::sync::OnceLock;

use regex::RegexSet;

/// What each pattern finds.
const PATTERNS: &[(&str, &str)] = &[
    ("a private key", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    ("an AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})"),
    ("a GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,}"),
    ("a Slack token", r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    ("a payment provider's key", r"\b[rs]k_live_[A-Za-z0-9]{20,}"),
    ("a Google API key", r"\bAIza[A-Za-z0-9_-]{35}\b"),
    ("an API key of a model provider", r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}"),
    ("a JSON web token", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    ("an age identity", r"\bAGE-SECRET-KEY-1[A-Z0-9]{50,}"),
    ("a password in a URL", r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]{4,}@"),
    (
        "a password",
        r#"(?i)\b(?:password|passwd|passphrase|secret|api[_-]?key|access[_-]?token)\b["']?\s*(?:[:=]|\bis\b)\s*["']?[^\s"']{6,}"#,
    ),
];

/// What the content looks like, if it looks like a secret.
///
/// ```
/// use stvor_vault::detect::secret;
/// assert_eq!(secret(b"password: correct-horse"), Some("a password"));
/// assert_eq!(secret(b"the password policy changed"), None);
/// ```
#[must_use]
pub fn secret(content: &[u8]) -> Option<&'static str> {
    static SET: OnceLock<Option<RegexSet>> = OnceLock::new();
    let set = SET.get_or_init(|| RegexSet::new(PATTERNS.iter().map(|(_, pattern)| pattern)).ok());
    let text = String::from_utf8_lossy(content);
    // Without the patterns nothing could be judged, and what can not be judged is not let through.
    let Some(set) = set else { return Some("a secret (the detector does not work)") };
    let first = set.matches(&text).into_iter().next()?;
    PATTERNS.get(first).map(|(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_each_kind_are_found() {
        let jwt = ["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NSJ9", "c2lnbmF0dXJlLWhlcmU"].join(".");
        let cases = [
            (format!("-----BEGIN {} KEY-----", "OPENSSH PRIVATE"), "a private key"),
            (format!("key {}{}", "AKIA", "IOSFODNN7EXAMPLE"), "an AWS access key"),
            (format!("{}_{}", "ghp", "a".repeat(36)), "a GitHub token"),
            (format!("{}-{}", "glpat", "b".repeat(20)), "a GitLab token"),
            (format!("{}-{}", "xoxb", "1234567890-abc"), "a Slack token"),
            (format!("{}_{}", "sk_live", "c".repeat(24)), "a payment provider's key"),
            (format!("{}{}", "AIza", "d".repeat(35)), "a Google API key"),
            (format!("{}-{}", "sk-ant", "e".repeat(40)), "an API key of a model provider"),
            (jwt, "a JSON web token"),
            (format!("{}-1{}", "AGE-SECRET-KEY", "F".repeat(58)), "an age identity"),
            (format!("see postgres://admin:{}@db/x", "hunter22"), "a password in a URL"),
            ("the password is hunter22".into(), "a password"),
            ("API_KEY=\"0123456789\"".into(), "a password"),
        ];
        for (text, kind) in cases {
            assert_eq!(secret(text.as_bytes()), Some(kind), "{text}");
        }
    }

    #[test]
    fn ordinary_sentences_are_let_through() {
        for text in [
            "The meeting is at ten; the secret of good soup is time.",
            "She asked where the API documentation is.",
            "https://example.com/path?user=me",
            "token bucket, 60 per minute",
            "\u{fffd}\0binary\x01",
        ] {
            assert_eq!(secret(text.as_bytes()), None, "{text}");
        }
    }
}
