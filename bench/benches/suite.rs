//! Runs the benchmarks: `cargo bench -p stvor-bench -- --help`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use stvor_bench::fault::Role;
use stvor_bench::load::server::{binary, target_directory};
use stvor_bench::load::{self, Load};
use stvor_bench::report::{Row, Summary, Target};
use stvor_bench::vault::{self, Size};
use stvor_bench::{Outcome, fault, groups, micro, sizes};

/// A part of the suite.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One message in memory, beside its floor and Olm.
    Micro,
    /// A message to a group of 1,000, beside Megolm.
    Groups,
    /// Stored and travelling bytes.
    Sizes,
    /// What a message, a connection and a reconnect cost the relay, beside peers.
    Relay,
    /// Two users, their durable stores, and the relay between them.
    Whole,
    /// The vault: storing, recalling, searching, verifying, unlocking, and what each gate costs.
    Vault,
    /// Kills processes while messages flow; only when named.
    Fault,
}

/// Who is killed in the fault test.
#[derive(Clone, Copy, ValueEnum)]
enum Victim {
    /// The relay.
    Relay,
    /// The receiver.
    Receiver,
    /// A sender.
    Sender,
}

impl Victim {
    fn role(self) -> Role {
        match self {
            Self::Relay => Role::Relay,
            Self::Receiver => Role::Receiver,
            Self::Sender => Role::Sender,
        }
    }
}

/// Benchmarks of STVOR beside its floors and peers.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// What to run; everything but the fault test when nothing is named.
    parts: Vec<Part>,
    /// Fault: how often something is killed.
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// Fault: messages of all senders.
    #[arg(long, default_value_t = 10_000)]
    messages: usize,
    /// Fault: senders.
    #[arg(long, default_value_t = 2)]
    senders: usize,
    /// Fault: who is killed [default: all].
    #[arg(long, value_enum)]
    victims: Vec<Victim>,
    /// Fault: decides who is killed and when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Vault: events in the log that is verified [default: 1000000, quick 20000].
    #[arg(long)]
    events: Option<usize>,
    /// A rough run in a tenth of the time.
    #[arg(long)]
    quick: bool,
    /// Where the JSON goes.
    #[arg(long, default_value_os_t = default_output())]
    output: PathBuf,
    /// The `stvor` binary; built in the release profile when absent.
    #[arg(long)]
    stvor: Option<PathBuf>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn default_output() -> PathBuf {
    target_directory().join("bench/summary.json")
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn run(arguments: &Arguments) -> Outcome<()> {
    const USUAL: [Part; 6] = [Part::Micro, Part::Groups, Part::Sizes, Part::Relay, Part::Whole, Part::Vault];
    let parts: &[Part] = if arguments.parts.is_empty() { &USUAL } else { &arguments.parts };
    let needs_binary = parts.iter().any(|part| matches!(part, Part::Relay | Part::Whole | Part::Fault));
    let binary = match &arguments.stvor {
        Some(path) => path.clone(),
        None if needs_binary => binary()?,
        None => PathBuf::new(),
    };
    let mut summary = Summary::default();
    let mut failures = Vec::new();
    for part in parts {
        let start = Instant::now();
        let name = part.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        if let Err(error) = measure(*part, arguments, &binary, &mut summary) {
            failures.push(format!("{name}: {error}"));
        }
        eprintln!("{name}: {:.1} s", start.elapsed().as_secs_f64());
    }
    summary.write(&arguments.output)?;
    print!("{}", summary.table());
    println!("written to {}", arguments.output.display());
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

fn measure(part: Part, arguments: &Arguments, binary: &Path, summary: &mut Summary) -> Outcome<()> {
    let load = if arguments.quick { Load::QUICK } else { Load::FULL };
    match part {
        Part::Micro => micro::run(Duration::from_millis(if arguments.quick { 60 } else { 600 }), summary),
        Part::Groups => groups::run(Duration::from_millis(if arguments.quick { 60 } else { 600 }), summary),
        Part::Sizes => sizes::run(if arguments.quick { 1_000 } else { 10_000 }, summary),
        Part::Relay => runtime()?.block_on(load::relay::run(binary, load, summary)),
        Part::Whole => runtime()?.block_on(load::whole::run(binary, load, summary)),
        Part::Vault => {
            let size = if arguments.quick { Size::QUICK } else { Size::FULL };
            vault::run(Size { events: arguments.events.unwrap_or(size.events), ..size }, summary)
        }
        Part::Fault => faults(arguments, binary, summary),
    }
}

fn faults(arguments: &Arguments, binary: &Path, summary: &mut Summary) -> Outcome<()> {
    let Arguments { kills, messages, senders, seed, .. } = *arguments;
    let named: Vec<Role> = arguments.victims.iter().map(|victim| victim.role()).collect();
    let victims = if named.is_empty() { Role::ALL.to_vec() } else { named };
    let binary = binary.to_owned();
    let verdict = fault::run(fault::Plan { binary, messages, kills, senders, victims, seed })?;
    println!("{verdict}");
    let log = arguments.output.with_file_name("fault.log");
    std::fs::write(&log, [verdict.log, verdict.violations.clone()].concat().join("\n"))?;
    println!("what happened is in {}", log.display());
    let wrong = u32::try_from(verdict.violations.len())?;
    let name = format!("fault test: violations, {kills} kills, {messages} messages");
    summary.push(Row::new(&name, "", f64::from(wrong)).target(Target::AtMost(0.0)));
    Ok(())
}

fn main() -> std::process::ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the benchmark failed: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
