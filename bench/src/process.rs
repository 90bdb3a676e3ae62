//! What `/proc` says about another process.

use std::time::Duration;

use crate::Outcome;

/// CPU time that a living process has used so far, in user and kernel mode.
///
/// The scheduler's nanoseconds of its threads; threads that ended are only in the coarser ticks of the process, so the
/// larger of both counts.
///
/// # Errors
/// When there is no such process, or `/proc` is not Linux's.
pub fn cpu_time(pid: u32) -> Outcome<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split_whitespace().next().ok_or("an empty schedstat")?.parse::<u64>()?;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = ticks(&stat).ok_or("a stat line of unknown form")?;
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second())?;
    Ok(Duration::from_nanos(nanoseconds).max(Duration::from_secs(ticks) / per_second))
}

/// Memory of the process that is in RAM, in KiB.
///
/// # Errors
/// As [`cpu_time`].
pub fn resident_kib(pid: u32) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in status")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Open files that this process may have: what bounds the number of connections.
#[must_use]
pub fn open_files_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// `utime` and `stime` of a line of `/proc/<pid>/stat`. The name before them may hold spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_parentheses_does_not_shift_the_fields() {
        let stat = "12 (a ) b (c)) S 1 12 12 0 -1 4194560 100 0 0 0 700 42 0 0 20 0 1 0 5";
        assert_eq!(ticks(stat), Some(742));
        assert_eq!(ticks("12 (short) S 1"), None);
    }

    #[test]
    fn own_process_has_used_time_and_memory() {
        let me = std::process::id();
        let before = cpu_time(me).unwrap();
        let mut sum = 0_u64;
        while cpu_time(me).unwrap() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(resident_kib(me).unwrap() > 100);
    }
}
