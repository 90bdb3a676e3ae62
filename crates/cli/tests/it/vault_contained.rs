//! What the daemon keeps from an agent that has a shell, and what it does not do itself.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use stvor_testkit::process::Finished;
use stvor_testkit::{Process, Signal, Spawn};

use crate::common::{SOON, finished, objects, on_path, skipped, strace};
use crate::vault::Served;

/// Users that need not be in any list.
const DAEMON: u32 = 64_501;
const AGENT: u32 = 64_502;
const OWNER: u32 = 64_503;

/// Whether this process can be three users. In CI, where it is not root and `sudo` asks nothing, another process that is does the
/// test of this name. Where neither is so the test is skipped, and says so past what captures the output of tests that pass.
fn can_be_others(test: &str) -> bool {
    let (ci, missing) = (std::env::var_os("CI").is_some(), on_path("setpriv").is_none());
    assert!(!missing || !ci, "setpriv is missing: apt-get install util-linux");
    if rustix::process::getuid().is_root() && !missing {
        return true;
    }
    let asks_nothing = |sudo: &PathBuf| {
        Spawn::new(sudo).args(["-n", "true"]).run(SOON).is_ok_and(|ended| ended.status.success())
    };
    let Some(sudo) = on_path("sudo").filter(|_| ci).filter(asks_nothing) else {
        let why = "only root can be three users, with setpriv: run it as root";
        skipped(test, why);
        return false;
    };
    let name = format!("vault_contained::{test}");
    let ended = Spawn::new(sudo)
        .args(["-n", "env", "CI=true"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &name])
        .run(SOON + SOON)
        .unwrap();
    assert!(ended.status.success() && ended.out.contains("1 passed"), "{} {}", ended.out, ended.err);
    false
}

/// A directory that three users share, as /run and /var/lib of a machine.
struct Machine {
    dir: stvor_testkit::temp::TempDir,
}

fn own(path: &Path, user: u32, mode: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: stvor_testkit::temp_dir().unwrap() };
        own(machine.dir.path(), 0, 0o755);
        std::fs::copy(env!("CARGO_BIN_EXE_stvor"), machine.path("stvor")).unwrap();
        own(&machine.path("stvor"), 0, 0o755);
        for (name, user, mode) in
            [("lib", DAEMON, 0o700), ("run", DAEMON, 0o711), ("agent", AGENT, 0o700), ("owner", OWNER, 0o700)]
        {
            std::fs::create_dir(machine.path(name)).unwrap();
            own(&machine.path(name), user, mode);
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A shell of a user, in whose words `stvor` is the command and `$HERE` the machine.
    fn shell(&self, user: u32, words: &str) -> Spawn {
        let ids = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
        let home = match user {
            DAEMON => "lib",
            AGENT => "agent",
            _ => "owner",
        };
        let path = format!("{}:/usr/bin:/bin", self.dir.path().display());
        Spawn::new(on_path("setpriv").unwrap())
            .args(ids)
            .args(["/bin/sh", "-c", words])
            .env("PATH", path)
            .env("HERE", self.dir.path())
            .env("HOME", self.path(home))
            .dir(self.path(home))
    }

    fn run(&self, user: u32, words: &str) -> Finished {
        self.shell(user, words).run(SOON).unwrap()
    }

    /// Runs and has to succeed.
    fn does(&self, user: u32, words: &str) -> String {
        let ended = self.run(user, words);
        assert!(ended.status.success(), "{words}: {} {}", ended.out, ended.err);
        ended.out
    }
}

const SOCKETS: &str = "--sockets $HERE/run";

fn serve(machine: &Machine) -> Process {
    machine.does(DAEMON, "stvor vault init --vault $HERE/lib/vault --keyfile $HERE/lib/owner.key");
    let owner = machine.path("owner/owner.key");
    std::fs::copy(machine.path("lib/owner.key"), &owner).unwrap();
    own(&owner, OWNER, 0o600);
    machine.does(DAEMON, "stvor vault boundary key $HERE/lib/boundary.key");
    let boundary = "--boundary $HERE/lib/boundary.sock --boundary-key $HERE/lib/boundary.key.pub";
    let words = format!(
        "exec stvor vault serve --vault $HERE/lib/vault {SOCKETS} --owner {OWNER} --agent-user {AGENT} {boundary} --exit-with-stdin"
    );
    let daemon = machine.shell(DAEMON, &words).with_input().start().unwrap();
    daemon.wait_output(1, SOON).unwrap();
    daemon
}

#[test]
fn an_agent_of_another_user_with_a_shell_reaches_no_more_than_its_credential() {
    if !can_be_others("an_agent_of_another_user_with_a_shell_reaches_no_more_than_its_credential") {
        return;
    }
    let machine = Machine::new();
    let daemon = serve(&machine);
    // It runs as the daemon's user, who alone reaches its socket and its key.
    let words = "exec stvor vault boundary serve --key $HERE/lib/boundary.key --socket $HERE/lib/boundary.sock --mode offline \
                 --exit-with-stdin";
    let boundary = machine.shell(DAEMON, words).with_input().start().unwrap();
    boundary.wait_output(1, SOON).unwrap();
    let owner = |words: &str| {
        machine.does(OWNER, &format!("stvor vault {words} {SOCKETS} --keyfile owner.key --json"))
    };
    owner("unlock");
    owner("agents add assistant --namespace home --highest sealed --credential-out assistant.cred");
    owner("agents add low --namespace home --credential-out low.cred");
    for name in ["assistant.cred", "low.cred"] {
        std::fs::copy(machine.path("owner").join(name), machine.path("agent").join(name)).unwrap();
        own(&machine.path("agent").join(name), AGENT, 0o600);
    }
    let as_agent = format!("{SOCKETS} --json --credential-file assistant.cred");
    let stored = |options: &str| {
        let words = format!("echo quince | stvor vault store --namespace home {options} {as_agent}");
        objects(&[machine.does(AGENT, &words)])[0]["id"].as_str().unwrap().to_owned()
    };
    let (plain, private, sealed) = (stored(""), stored("--level private"), stored("--level sealed"));
    machine.does(AGENT, &format!("stvor vault recall {plain} {as_agent}"));
    let words = format!("stvor vault approvals request {sealed} --purpose report {as_agent}");
    let request = objects(&[machine.does(AGENT, &words)])[0]["request"].as_str().unwrap().to_owned();

    let pid = daemon.pid();
    let secret = "--keyfile $HERE/agent/guess.key";
    machine.does(AGENT, "head -c 32 /dev/urandom > guess.key && chmod 600 guess.key");
    for (words, code) in [
        // The owner's socket does not know this user, with a secret or without.
        (format!("stvor vault unlock {SOCKETS} {secret}"), 5),
        (format!("stvor vault status {SOCKETS}"), 5),
        (format!("stvor vault approvals approve {request} {SOCKETS} {secret}"), 5),
        (format!("stvor vault lockdown leave {SOCKETS} {secret}"), 5),
        (format!("stvor vault log {SOCKETS} {secret}"), 5),
        (format!("stvor vault passphrase {SOCKETS} {secret} --new-keyfile mine.key"), 5),
        // Its own socket knows what its credential is good for.
        (format!("stvor vault recall {sealed} --justification report {as_agent}"), 4),
        (format!("echo x | stvor vault supersede {sealed} --namespace home {as_agent}"), 4),
        (format!("echo quince | stvor vault supersede {sealed} --level working {as_agent}"), 4),
        (format!("stvor vault forget {sealed} --yes {as_agent}"), 4),
        (format!("stvor vault recall {private} {SOCKETS} --credential-file low.cred"), 6),
    ] {
        let ended = machine.run(AGENT, &words);
        assert_eq!(ended.status.code(), Some(code), "{words}: {} {}", ended.out, ended.err);
    }
    // Of what it may correct it lowers no level, either: its own words do not come where `low` reads.
    let lower = format!("echo quince | stvor vault supersede {private} --level working {as_agent}");
    let ended = machine.run(AGENT, &lower);
    assert!(ended.status.code() == Some(4) && ended.err.contains("MEMORY_LOWER_LEVEL"), "{}", ended.err);
    let found =
        format!("stvor vault search quince --namespace home {SOCKETS} --json --credential-file low.cred");
    assert_eq!(objects(&machine.does(AGENT, &found).lines().map(str::to_owned).collect::<Vec<_>>()).len(), 1);
    for words in [
        "cat $HERE/lib/owner.key".to_owned(),
        "cat $HERE/lib/boundary.key".to_owned(),
        "rm -f $HERE/lib/boundary.sock".to_owned(),
        "cat $HERE/lib/vault/vault.db".to_owned(),
        "ls $HERE/lib/vault".to_owned(),
        "cat $HERE/owner/owner.key".to_owned(),
        "rm -f $HERE/run/owner.sock".to_owned(),
        "mv $HERE/run/agents.sock $HERE/agent/".to_owned(),
        format!("head -c 1 /proc/{pid}/mem"),
        format!("cat /proc/{pid}/maps"),
        format!("cat /proc/{pid}/environ"),
        format!("kill -9 {pid}"),
        "stvor vault serve --vault $HERE/lib/vault".to_owned(),
    ] {
        let ended = machine.run(AGENT, &words);
        assert!(!ended.status.success() && ended.out.is_empty(), "{words}: {}", ended.out);
    }
    // What the owner approves it gets, once.
    owner(&format!("approvals approve {request}"));
    let recall = format!("stvor vault recall {sealed} --justification report {as_agent}");
    assert_eq!(objects(&[machine.does(AGENT, &recall)])[0]["content"]["text"], "quince");
    assert_eq!(machine.run(AGENT, &recall).status.code(), Some(4));
    // It may stop everything, and not let it go on.
    machine.does(AGENT, &format!("stvor vault lockdown enter {as_agent}"));
    let leave = machine.run(AGENT, &format!("stvor vault lockdown leave {SOCKETS} {secret}"));
    assert_eq!(leave.status.code(), Some(5), "{} {}", leave.out, leave.err);
    let stopped = machine.run(AGENT, &format!("stvor vault recall {plain} {as_agent}"));
    assert!(stopped.status.code() == Some(4) && stopped.err.contains("VAULT_LOCKDOWN"), "{}", stopped.err);
    owner("lockdown leave");
    machine.does(AGENT, &format!("stvor vault recall {plain} {as_agent}"));
    // Not even a process of the daemon's own user can look into it.
    assert!(!machine.run(DAEMON, &format!("head -c 1 /proc/{pid}/mem")).status.success());
    let status = objects(&[owner("status")]);
    assert_eq!((&status[0]["isolated"], &status[0]["mode"]), (&true.into(), &"open".into()));
    assert_eq!(objects(&[owner("verify")])[0]["ok"], true);
}

#[test]
fn the_owner_of_a_daemon_of_another_user_gets_backups_shares_and_the_archived_log() {
    if !can_be_others("the_owner_of_a_daemon_of_another_user_gets_backups_shares_and_the_archived_log") {
        return;
    }
    let machine = Machine::new();
    let daemon = serve(&machine);
    let run = |words: &str| {
        machine.run(OWNER, &format!("stvor vault {words} {SOCKETS} --keyfile owner.key --json"))
    };
    let owner = |words: &str| {
        let ended = run(words);
        assert!(ended.status.success(), "{words}: {} {}", ended.out, ended.err);
        objects(&ended.out.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    owner("unlock");
    let stored = |text: &str| {
        let words =
            format!("echo {text} | stvor vault store --namespace home {SOCKETS} --keyfile owner.key --json");
        objects(&[machine.does(OWNER, &words)])[0]["id"].as_str().unwrap().to_owned()
    };
    let (kept, gone) = (stored("quince"), stored("medlar"));
    owner(&format!("forget {gone} --yes"));
    let identity = stvor_keys::recipients::Identity::generate();
    let file = machine.path("owner/age.key");
    std::fs::write(&file, identity.to_secret_line().expose()).unwrap();
    own(&file, OWNER, 0o600);
    let to = identity.recipient().to_string();
    let mine = |path: &Path| {
        use std::os::unix::fs::MetadataExt as _;
        let about = std::fs::metadata(path).unwrap();
        assert_eq!((about.uid(), about.mode() & 0o777), (OWNER, 0o600), "{}", path.display());
    };

    let full = owner(&format!("backup make --dir backups --to {to}"));
    let full = PathBuf::from(full[0]["path"].as_str().unwrap());
    assert_eq!(full.parent().unwrap(), machine.path("owner/backups"));
    mine(&full);
    stored("sloe");
    let more = owner(&format!("backup make --dir backups --to {to} --incremental"));
    let more = PathBuf::from(more[0]["path"].as_str().unwrap());
    mine(&more);
    let listed = owner("backup list");
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0]["path"], full.display().to_string(), "it is known where it went");
    let ended = std::fs::read_to_string(machine.path("owner/backups/forgotten")).unwrap();
    assert!(ended.contains(&gone), "the list of what no restore may bring back is beside them");
    let shares = owner(&format!("escrow make --needed 2 --dir shares --keeper ada={to} --keeper bob={to}"));
    for share in shares[0]["files"].as_array().unwrap() {
        mine(Path::new(share.as_str().unwrap()));
    }
    owner(&format!("archive --out log.age --to {to}"));
    mine(&machine.path("owner/log.age"));
    assert_eq!(
        std::fs::read_dir(machine.path("lib/vault/outbox")).unwrap().count(),
        1,
        "all but the list was taken"
    );
    // It is the vault that comes back from them, in another place.
    let words = format!(
        "restore {} {} --identity age.key --vault new --keyfile owner.key --json",
        full.display(),
        more.display()
    );
    let restored = objects(&[machine.does(OWNER, &format!("stvor vault {words}"))]);
    assert_eq!(restored[0]["memories"], 3);
    assert_eq!(owner(&format!("recall {kept}"))[0]["content"]["text"], "quince");

    // What the daemon itself goes on writing it has to be let write, and the failure says so.
    let arm = format!("switch arm --days 90 --heir ada={to} --memory {kept} --dir watched");
    let refused = run(&arm);
    assert!(
        !refused.status.success() && refused.err.contains(&format!("as the user {DAEMON}")),
        "{}",
        refused.err
    );
    // The doctor of another user's vault looks at what it can see, and finds nothing wrong with that.
    let checked = machine.run(OWNER, &format!("stvor vault doctor {SOCKETS}"));
    assert!(checked.status.success(), "{} {}", checked.out, checked.err);
    assert!(checked.out.contains(&format!("user {DAEMON} keeps them")), "{}", checked.out);
    let status = owner("status");
    assert_eq!(status[0]["sockets"], machine.path("run").display().to_string());
    drop(daemon);
    let checked = machine.run(OWNER, &format!("stvor vault doctor {SOCKETS}"));
    assert!(!checked.out.contains("stvor vault init"), "nobody makes a second vault: {}", checked.out);
}

#[test]
fn the_daemon_opens_no_internet_socket_and_runs_no_program() {
    let Some(strace) = strace() else { return };
    let mut served = Served::new();
    served.daemon.signal(Signal::Term).unwrap();
    finished(&served.daemon);
    let trace = served.home.path("trace");
    // Without its filter, so that what it does itself is seen.
    let spawn = Spawn::new(strace)
        .args(["-f", "-qq", "-e", "trace=socket,execve,execveat,io_uring_setup,bpf,ptrace", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_stvor"))
        .args(["vault", "serve", "--exit-with-stdin", "--no-sandbox"]);
    let spawn =
        served.home.variables().into_iter().fold(spawn, |spawn, (name, value)| spawn.env(name, value));
    served.daemon = spawn.with_input().start().unwrap();
    served.daemon.wait_output(1, SOON).unwrap();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let id = served.store("assistant", ("watched", " --level private"));
    served.agent("assistant", &format!("recall {id}"));
    served.agent("assistant", "search watched --namespace home");
    served.owner("verify --content");
    served.owner("lockdown enter");
    served.owner("lockdown leave");
    served.daemon.close_input();
    assert_eq!(finished(&served.daemon), Some(0));
    let trace = std::fs::read_to_string(&trace).unwrap();
    assert!(trace.contains("socket(AF_UNIX"), "the watcher watches: {trace}");
    let other: Vec<&str> =
        trace.lines().filter(|line| line.contains("socket(") && !line.contains("socket(AF_UNIX")).collect();
    assert!(other.is_empty(), "{other:?}");
    assert_eq!(trace.matches("execve").count(), 1, "its own start and no other: {trace}");
    for call in ["io_uring_setup", "bpf(", "ptrace("] {
        assert!(!trace.contains(call), "{call}");
    }
}

#[test]
fn eight_processes_at_once_fail_lose_and_double_no_write() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "working");
    let line = served.as_agent("assistant", "store --namespace home");
    let each = format!("for n in 0 1 2 3 4 5; do echo \"from $1 number $n\" | \"$0\" {line} || exit 1; done");
    let processes: Vec<Process> = (0..8)
        .map(|number| {
            let shell =
                Spawn::new("/bin/sh").args(["-c", &each, env!("CARGO_BIN_EXE_stvor"), &number.to_string()]);
            let shell = served
                .home
                .variables()
                .into_iter()
                .fold(shell, |shell, (name, value)| shell.env(name, value));
            shell.start().unwrap()
        })
        .collect();
    for process in &processes {
        assert_eq!(finished(process), Some(0), "{:?}", process.lines(stvor_testkit::Stream::Err));
    }
    let mut contents: Vec<String> = served
        .agent("assistant", "list --namespace home --all")
        .iter()
        .map(|header| {
            let recalled = served.agent("assistant", &format!("recall {}", header["id"].as_str().unwrap()));
            recalled[0]["content"]["text"].as_str().unwrap().to_owned()
        })
        .collect();
    contents.sort();
    let mut wanted: Vec<String> =
        (0..8).flat_map(|number| (0..6).map(move |n| format!("from {number} number {n}"))).collect();
    wanted.sort();
    assert_eq!(contents, wanted);
    assert_eq!(served.owner("verify")[0]["ok"], true);
}
