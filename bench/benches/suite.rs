//! Runs the benchmarks: `cargo bench -p stvor-bench -- --help`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use stvor_bench::report::Summary;
use stvor_bench::{Outcome, micro, sizes};

/// A part of the suite.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One message in memory, beside its floor and Olm.
    Micro,
    /// Stored and travelling bytes.
    Sizes,
}

/// Benchmarks of STVOR beside its floors and peers.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// What to run; everything but the fault test when nothing is named.
    parts: Vec<Part>,
    /// A rough run in a tenth of the time.
    #[arg(long)]
    quick: bool,
    /// Where the JSON goes.
    #[arg(long, default_value_os_t = default_output())]
    output: PathBuf,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from)
}

fn default_output() -> PathBuf {
    target_directory().join("bench/summary.json")
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let parts: &[Part] = if arguments.parts.is_empty() { &[Part::Micro, Part::Sizes] } else { &arguments.parts };
    let mut summary = Summary::default();
    for part in parts {
        let start = Instant::now();
        match part {
            Part::Micro => micro::run(Duration::from_millis(if arguments.quick { 60 } else { 600 }), &mut summary)?,
            Part::Sizes => sizes::run(if arguments.quick { 1_000 } else { 10_000 }, &mut summary)?,
        }
        let name = part.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        eprintln!("{name}: {:.1} s", start.elapsed().as_secs_f64());
    }
    summary.write(&arguments.output)?;
    print!("{}", summary.table());
    println!("written to {}", arguments.output.display());
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
