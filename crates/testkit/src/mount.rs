//! File systems of a test's own.

use std::process::Command;

/// The words that run a program after the shell's `script` set up a mount for it alone, with the mount's place as `$0`; `None`
/// where nobody may mount anything.
#[must_use]
pub fn in_a_mount<'a>(script: &'a str, at: &'a str) -> Option<[&'a str; 6]> {
    let wrapper = |flags: &'a str| ["unshare", flags, "sh", "-c", script, at];
    let works = |flags: &&'a str| {
        let [program, arguments @ ..] = wrapper(flags);
        let tried = Command::new(program).args(arguments).arg("true").output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    let found = ["-m", "-rm"].into_iter().find(works);
    if found.is_none() {
        println!("skipped: neither root nor a user namespace may mount here (unshare -rm)");
    }
    found.map(wrapper)
}
