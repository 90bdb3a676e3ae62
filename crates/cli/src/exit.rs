//! Exit codes: the few answers that a script can tell apart, and which error code gives which.

/// The process succeeded.
pub(crate) const OK: u8 = 0;
/// It failed in a way that no other number names.
pub(crate) const FAILURE: u8 = 1;
/// The command line is wrong (clap uses the same number).
pub(crate) const USAGE: u8 = 2;
/// A setting is wrong or missing.
pub(crate) const CONFIGURATION: u8 = 3;
/// Somebody said no: the relay, a quota, a key holder, a gate of the vault.
pub(crate) const DENIED: u8 = 4;
/// No relay or daemon answers there.
pub(crate) const UNREACHABLE: u8 = 5;
/// What was asked for does not exist.
pub(crate) const NOT_FOUND: u8 = 6;
/// Something is not what it was, or not who it was.
pub(crate) const INTEGRITY: u8 = 7;
/// Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 130;

/// The table at the end of every help text.
pub(crate) const HELP: &str = "Exit codes: 0 ok, 1 failure, 2 usage, 3 configuration, 4 denied, 5 unreachable, \
6 not found, 7 integrity or identity mismatch, 130 interrupted.";

/// The exit code of an error code.
pub(crate) fn of(code: &str) -> u8 {
    match code {
        "INVALID_NAME" | "INVALID_ARGUMENT" | "USAGE" | "VAULT_BAD_REQUEST" => USAGE,
        "INVALID_CONFIG"
        | "INVALID_RELAY_URL"
        | "UNKNOWN_SETTING"
        | "NO_APP_TOKEN"
        | "SECRET_UNREADABLE"
        | "KEY_REQUIRED"
        | "KEY_MISSING"
        | "KEY_MALFORMED"
        | "KEY_PERMISSIONS"
        | "KEYFILE_PERMISSIONS"
        | "SUITE_FIXED"
        | "KEYRING_UNAVAILABLE"
        | "VAULT_MEMORY_EXPOSED"
        | "NOT_FOR_PRODUCTION" => CONFIGURATION,
        "AUTH_FAILED"
        | "INVALID_APP_TOKEN"
        | "USER_ID_TAKEN"
        | "IDENTITY_HANDED_OVER"
        | "REGISTRATION_CLOSED"
        | "QUOTA_EXCEEDED"
        | "BACKPRESSURE"
        | "MAILBOX_FULL"
        | "RATE_LIMITED"
        | "PEER_BLOCKED"
        | "NOT_A_MEMBER"
        | "GROUP_FULL"
        | "WRONG_KEY"
        | "BACKUP_WRONG_KEY"
        | "TPM_LOCKED"
        | "PROFILE_CLOSED"
        | "PROFILE_NOT_EXPORTABLE"
        | "LOGGED_OUT"
        | "VAULT_COLD"
        | "VAULT_LOCKED"
        | "VAULT_LOCKDOWN"
        | "AGENT_NOT_ALLOWED"
        | "AGENT_QUOTA"
        | "AGENT_LOG_QUOTA"
        | "AGENT_READ_QUOTA"
        | "MEMORY_LESS_TRUSTED"
        | "MEMORY_LOWER_LEVEL"
        | "MEMORY_LEAVES_PROFILE"
        | "JUSTIFICATION_REQUIRED"
        | "APPROVAL_REQUIRED"
        | "APPROVAL_OUTDATED"
        | "COOLDOWN"
        | "CLOCK_BACKWARDS"
        | "BOUNDARY_DENIED"
        | "VAULTED_KEY_REQUIRED"
        | "TOKEN_REQUIRED"
        | "SECRET_DETECTED"
        | "AUDITOR_REFUSED"
        | "ONE_TIME_CODE"
        | "ONE_TIME_CODES_BLOCKED"
        | "TOO_MANY_REFUSALS" => DENIED,
        "RELAY_UNAVAILABLE"
        | "RELAY_PROTOCOL"
        | "STORE_UNREACHABLE"
        | "VAULT_NOT_SERVED"
        | "VAULT_CROWDED"
        | "WITNESS_UNREACHABLE" => UNREACHABLE,
        "RECIPIENT_NOT_FOUND"
        | "IDENTITY_NOT_FOUND"
        | "RECIPIENT_TIMEOUT"
        | "NOT_FOUND"
        | "GROUP_NOT_FOUND"
        | "UNKNOWN_USER"
        | "UNKNOWN_TOKEN"
        | "MEMORY_NOT_FOUND"
        | "MEMORY_GONE"
        | "VAULT_NOT_FOUND"
        | "LOG_OUT_OF_RANGE"
        | "VAULT_MISSING" => NOT_FOUND,
        "LOG_FORGED"
        | "VAULT_UNPROVEN"
        | "BACKUP_OLDER"
        | "LOG_PROOF_INVALID"
        | "TPM_FOREIGN"
        | "TPM_STATE"
        | "IDENTITY_CHANGED"
        | "FINGERPRINT_FIXED"
        | "SUITE_MISMATCH"
        | "STORE_EMPTIED"
        | "STORE_PUT_BACK"
        | "STORE_SERVER_UNTRUSTED"
        | "IDENTITY_SUPERSEDED"
        | "BAD_ROTATION"
        | "IDENTITY_NOT_VERIFIED"
        | "SAFETY_NUMBER_MISMATCH"
        | "ROLLBACK_DETECTED" => INTEGRITY,
        "INTERRUPTED" => INTERRUPTED,
        code if code.contains("CORRUPT") || code == "BACKUP_TRUNCATED" || code.contains("TAMPERED") => {
            INTEGRITY
        }
        _ => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_of_errors_has_its_own_exit_code() {
        let cases = [
            ("INVALID_CONFIG", 3),
            ("INVALID_APP_TOKEN", 4),
            ("RELAY_UNAVAILABLE", 5),
            ("RECIPIENT_NOT_FOUND", 6),
            ("IDENTITY_CHANGED", 7),
            ("FINGERPRINT_FIXED", 7),
            ("STORE_UNREACHABLE", 5),
            ("STORE_SERVER_UNTRUSTED", 7),
            ("SUITE_MISMATCH", 7),
            ("SUITE_FIXED", 3),
            ("VAULT_NOT_FOUND", 6),
            ("ONE_TIME_CODE", 4),
            ("VAULT_UNPROVEN", 7),
            ("BACKUP_OLDER", 7),
            ("ANYTHING_ELSE", 1),
        ];
        for (code, exit) in cases {
            assert_eq!(of(code), exit, "{code}");
        }
    }
}
