//! What the daemon's process may not ask the system for any more, and what it keeps out of the swap.

use std::path::Path;

use crate::VaultError;
use crate::engine::status::Memory;

/// From here on this process can open no socket but Unix ones, run no other program, and look into no other process: the
/// system refuses with `EPERM`. It holds for all its threads and can not be taken back. Returns whether this system has the
/// means (Linux on x86-64, arm64 and riscv64).
///
/// # Errors
/// [`VaultError::Io`] when the system refuses to be asked.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
pub fn confine() -> Result<bool, VaultError> {
    use std::collections::BTreeMap;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, apply_filter_all_threads,
    };

    let failed = |reason: String| VaultError::Io { what: "confining", path: "this process".into(), reason };
    let not_unix = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::AF_UNIX as u64)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|error| failed(error.to_string()))?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        BTreeMap::from([(libc::SYS_socket, vec![not_unix.clone()])]);
    let denied = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        // Its requests pass no filter.
        libc::SYS_io_uring_setup,
        libc::SYS_bpf,
    ];
    rules.extend(denied.map(|call| (call, Vec::new())));
    // The same calls by their numbers of the x32 interface.
    #[cfg(target_arch = "x86_64")]
    {
        const X32: i64 = 0x4000_0000;
        rules.extend([520, 545, 521, 539, 540, 425, 321].map(|call| (X32 | call, Vec::new())));
        rules.insert(X32 | libc::SYS_socket, vec![not_unix]);
    }
    let arch = std::env::consts::ARCH.try_into().map_err(|error| failed(format!("{error}")))?;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch);
    let program: BpfProgram =
        filter.and_then(TryInto::try_into).map_err(|error| failed(error.to_string()))?;
    apply_filter_all_threads(&program).map_err(|error| failed(error.to_string()))?;
    Ok(true)
}

/// This system has no such filter; nothing is confined.
///
/// # Errors
/// None.
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
pub fn confine() -> Result<bool, VaultError> {
    Ok(false)
}

/// Keeps all memory of this process, now and later, out of the swap, as far as the system lets it. All or nothing: keys alone are
/// not worth much where words, the index and what libraries copied lie beside them.
#[must_use]
pub fn keep_memory() -> Memory {
    if lock_memory() {
        Memory::Locked
    } else if in_a_group_without_swap() {
        Memory::Unswapped
    } else {
        Memory::Exposed
    }
}

/// How many bytes the system lets this process lock at most; nothing where that is as much as it wants, or not known.
#[cfg(target_os = "linux")]
#[must_use]
pub fn memory_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Memlock).maximum
}

/// This system is not asked.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn memory_limit() -> Option<u64> {
    None
}

/// Locks all memory, where there is no limit on locked memory (`ulimit -l unlimited`, `LimitMEMLOCK=infinity`) or this process has
/// the capability `CAP_IPC_LOCK`. Under a limit nothing is locked, however high it is: it counts what is reserved and not what is
/// used, and the first allocation past it would end the process.
#[cfg(target_os = "linux")]
fn lock_memory() -> bool {
    use rustix::mm::{MlockAllFlags, mlockall};
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Memlock);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let unlimited = limit.maximum.is_none() && setrlimit(Resource::Memlock, raised).is_ok();
    if !unlimited && !may_lock() {
        return false;
    }
    // Pages are locked when they are first touched: stacks and tables of which little is used cost nothing.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).is_ok()
}

/// This system is not asked.
#[cfg(not(target_os = "linux"))]
fn lock_memory() -> bool {
    false
}

/// Whether the control group of this process, or one around it, lets nothing of it into the swap.
fn in_a_group_without_swap() -> bool {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    forbids_swap(Path::new("/sys/fs/cgroup"), &own)
}

/// The same of the group that `own` names in the unified hierarchy, whose files are below `files`.
fn forbids_swap(files: &Path, own: &str) -> bool {
    let group = own.lines().find_map(|line| line.strip_prefix("0::/"));
    // One outside of what this process sees is not to be read.
    let Some(group) = group.filter(|group| !group.split('/').any(|part| part == "..")) else { return false };
    let group = files.join(group);
    let none = |group: &Path| {
        let most = std::fs::read_to_string(group.join("memory.swap.max"));
        most.is_ok_and(|most| most.trim() == "0")
    };
    group.ancestors().take_while(|group| group.starts_with(files)).any(none)
}

/// Whether this process has the capability `CAP_IPC_LOCK`, so that no limit on locked memory is one for it.
#[cfg(target_os = "linux")]
fn may_lock() -> bool {
    const IPC_LOCK: u64 = 1 << 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & IPC_LOCK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_swap_covers_all_that_is_in_it() {
        let files = tempfile::tempdir().unwrap();
        let inner = files.path().join("user.slice/vault.scope");
        std::fs::create_dir_all(&inner).unwrap();
        let own = "12:memory:/old\n0::/user.slice/vault.scope\n";
        let set = |group: &str, most: &str| {
            std::fs::write(files.path().join(group).join("memory.swap.max"), most).unwrap();
        };
        assert!(!forbids_swap(files.path(), own), "nothing says so");
        set("user.slice/vault.scope", "max\n");
        assert!(!forbids_swap(files.path(), own));
        set("user.slice/vault.scope", "4096\n");
        assert!(!forbids_swap(files.path(), own));
        set("user.slice/vault.scope", "0\n");
        assert!(forbids_swap(files.path(), own));
        set("user.slice/vault.scope", "max\n");
        set("user.slice", "0\n");
        assert!(forbids_swap(files.path(), own), "what an outer one forbids no inner one allows");
        assert!(!forbids_swap(files.path(), "0::/elsewhere\n"));
        assert!(!forbids_swap(&inner, "0::/../../user.slice\n"));
        assert!(!forbids_swap(files.path(), "12:memory:/user.slice\n"), "the older hierarchy says nothing");
    }
}
