//! `stvor doctor`: what is wrong, and how to fix it.

mod local;
mod probe;

use serde::Serialize;
use stvor_base::ErrorCode as _;
use stvor_wire::url::RelayUrl;

use crate::args::{DoctorArgs, Me};
use crate::exit;
use crate::failure::{Failure, Result};
use crate::render::{BAD, FAINT, GOOD, LOUD, Out, paint};
use crate::secrets;
use crate::session::Context;
use probe::{Found, Trouble, Visitor, probe};

/// A clock this far from the relay's is worth a warning, in milliseconds.
const CLOCK_WARNING_MS: i64 = 30_000;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// All is well.
    Ok,
    /// It works, and could be better.
    Warning,
    /// It does not work.
    Problem,
}

/// One check.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    pub(crate) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), code: None, fix: None }
    }

    pub(crate) fn warning(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), code: None, fix: Some(fix.into()) }
    }

    pub(crate) fn problem(
        name: &'static str,
        code: &'static str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { name, verdict: Verdict::Problem, found: found.into(), code: Some(code), fix: Some(fix.into()) }
    }

    pub(crate) fn is_good(&self) -> bool {
        self.verdict == Verdict::Ok
    }

    fn named(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(crate) fn failure(name: &'static str, failure: &Failure, fix: impl Into<String>) -> Self {
        Self::problem(name, failure.code(), failure.to_string(), fix)
    }
}

/// Prints checks as they are made.
pub(crate) struct Report {
    out: Out,
    first_problem: Option<u8>,
    warnings: usize,
    problems: usize,
}

impl Report {
    /// Nothing was checked yet.
    pub(crate) fn new(out: Out) -> Self {
        Self { out, first_problem: None, warnings: 0, problems: 0 }
    }

    /// Says how many problems there are; the first decides on the exit code.
    pub(crate) fn end(&self) -> Result {
        self.out.say(format!("{} problems, {} warnings", self.problems, self.warnings));
        match self.first_problem {
            Some(exit) => Err(Failure::Told(exit)),
            None => Ok(()),
        }
    }

    /// Prints a check.
    pub(crate) fn add(&mut self, check: Check) -> Result {
        match check.verdict {
            Verdict::Ok => {}
            Verdict::Warning => self.warnings += 1,
            Verdict::Problem => {
                self.problems += 1;
                let exit = check.code.map_or(exit::FAILURE, exit::of);
                self.first_problem.get_or_insert(exit);
            }
        }
        if self.out.json {
            return self.out.object(&check);
        }
        let mark = match check.verdict {
            Verdict::Ok => paint(GOOD, "ok     "),
            Verdict::Warning => paint(LOUD, "warning"),
            Verdict::Problem => paint(BAD, "problem"),
        };
        let code = check.code.map_or_else(String::new, |code| format!(" [{code}]"));
        self.out.line(format_args!("{mark}  {:<12} {}{code}", check.name, check.found))?;
        match &check.fix {
            Some(fix) => {
                self.out.line(format_args!("         {:<12} {}", "", paint(FAINT, format_args!("-> {fix}"))))
            }
            None => Ok(()),
        }
    }
}

/// Makes every check and prints it.
pub(crate) async fn run(context: Context<'_>, args: &DoctorArgs) -> Result {
    let mut report = Report::new(context.out);
    report.add(match &context.settings.file {
        Some(file) => Check::ok("settings", format!("read from {}", file.display())),
        None => Check::ok("settings", "no file; flags, variables and defaults"),
    })?;
    let data = context.settings.data_dir()?;
    for check in local::directory(&data) {
        report.add(check)?;
    }
    for check in local::production(context).await {
        report.add(check)?;
    }
    for check in local::server(context).await {
        report.add(check)?;
    }
    let reached = relay(context, &args.me, &mut report).await?;
    for check in local::stores(context, &args.me, &data, reached).await {
        report.add(check)?;
    }
    report.end()
}

/// Checks the relay; returns whether it would let us in.
async fn relay(context: Context<'_>, me: &Me, report: &mut Report) -> Result<bool> {
    let client = &context.settings.client;
    let url = match client.relay.parse::<RelayUrl>() {
        Ok(url) => url,
        Err(error) => {
            let fix = "write it as wss://relay.example.com or ws://127.0.0.1:3002 (--relay, STVOR_RELAY)";
            report.add(Check::problem("relay", error.code(), error.to_string(), fix))?;
            return Ok(false);
        }
    };
    if !url.is_secure() && !url.is_loopback() {
        let fix = "use wss://: messages are encrypted either way, but others on the path see the app token and who talks";
        report.add(Check::warning("TLS", format!("{} is not encrypted on the way", url.origin()), fix))?;
    }
    let credential = match secrets::credential(context.settings) {
        Ok(credential) => credential,
        Err(failure) => {
            let fix = "give --token, --token-file or STVOR_TOKEN; `stvor relay token create` makes one";
            report.add(Check::failure("token", &failure, fix))?;
            return Ok(false);
        }
    };
    let roots = match &client.root_certificate {
        Some(file) => Some(std::fs::read(file).map_err(|source| Failure::File {
            what: "can not read",
            path: file.clone(),
            source,
        })?),
        None => None,
    };
    let user = context.user(me).unwrap_or_else(|_| "doctor".to_owned());
    let visitor = Visitor { user, credential, roots };
    match probe(&url, visitor, context.settings.timeout()).await {
        Ok(found) => {
            for check in good(context, &url, &found) {
                report.add(check)?;
            }
            Ok(true)
        }
        Err(trouble) => {
            report.add(bad(&url, trouble))?;
            Ok(false)
        }
    }
}

fn good(context: Context<'_>, url: &RelayUrl, found: &Found) -> Vec<Check> {
    let Found { challenge, ahead_ms, took } = found;
    let mut checks = vec![Check::ok(
        "relay",
        format!("{} answers in {} ms, version {}", url.origin(), took.as_millis(), challenge.server_version),
    )];
    if url.is_secure() {
        checks.push(Check::ok("TLS", "the certificate is trusted"));
    }
    let expected = context.settings.client.app_id.as_deref();
    checks.push(match expected {
        Some(expected) if expected != challenge.app.as_str() => Check::problem(
            "token",
            "RELAY_PROTOCOL",
            format!("the token belongs to app {}, not {expected}", challenge.app),
            "give the token of that app, or correct app_id",
        ),
        _ => Check::ok("token", format!("accepted, app {}", challenge.app)),
    });
    if challenge.development {
        let fix = "fine for development; run `stvor relay` without --dev for anything else";
        checks.push(Check::warning(
            "mode",
            "a development relay: any stvor_ token and any name is let in",
            fix,
        ));
    }
    checks.push(if ahead_ms.abs() > CLOCK_WARNING_MS {
        let direction = if *ahead_ms > 0 { "behind" } else { "ahead of" };
        let fix = "set the clock (timedatectl set-ntp true); log-in and key rotation go by it";
        Check::warning(
            "clock",
            format!("this clock is {} s {direction} the relay's", ahead_ms.abs() / 1000),
            fix,
        )
    } else {
        Check::ok("clock", format!("{} ms from the relay's", ahead_ms.abs()))
    });
    checks
}

fn bad(url: &RelayUrl, trouble: Trouble) -> Check {
    match trouble {
        Trouble::Name(found) => Check::problem(
            "relay",
            "RELAY_UNAVAILABLE",
            found,
            "correct the name in --relay, or look at your network",
        ),
        Trouble::Socket(found) => {
            let fix = if url.is_loopback() {
                "start one: `stvor up` (port 3002) or `stvor mock-relay` (port 4444)"
            } else {
                "is the relay running, the port right, and no firewall between?"
            };
            Check::problem("relay", "RELAY_UNAVAILABLE", found, fix)
        }
        Trouble::Tls { found, fix } => Check::problem("TLS", "RELAY_PROTOCOL", found, fix),
        Trouble::NoRelay(found) => Check::problem(
            "relay",
            "RELAY_PROTOCOL",
            format!("{} is not a STVOR relay: {found}", url.origin()),
            "correct --relay; behind a proxy, let WebSockets of /v1/socket through",
        ),
        Trouble::Refused(end) => {
            let fix = match end.code.as_str() {
                "INVALID_APP_TOKEN" => {
                    "ask the operator for a token (`stvor relay token create`), or use a mock relay for stvor_ ones"
                }
                "AUTH_FAILED" => "the token is revoked or expired: ask the operator for a new one",
                "UNSUPPORTED_VERSION" => "this program and the relay are too far apart: update the older one",
                _ => "try again later, or ask the operator",
            };
            Check::problem("token", end.code.as_str(), format!("the relay refuses: {}", end.detail), fix)
        }
    }
}
