//! Programs that need memory, for benchmarks and tests of swap: each checks what it reads back, and prints one JSON object with
//! its operations, completion time and latencies.
//!
//! `verify` accesses pages with known words at random, `ycsb` is a client of a Redis server with the core workloads of YCSB,
//! `sort` and `pagerank` compute. Exit status 1: something was not as it was written, or did not work.

mod compute;
mod random;
mod report;
mod verify;
mod ycsb;

use std::process::ExitCode;

use clap::Parser;

/// Programs that need memory, and check it
#[derive(Parser)]
enum Command {
    /// Known words in every page, accessed at random
    Verify(verify::Options),
    /// The core workloads of YCSB against a Redis server
    Ycsb(ycsb::Options),
    /// Merge sort of records
    Sort(compute::Sort),
    /// PageRank on a generated graph in which few vertices have most of the edges
    Pagerank(compute::Pagerank),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Verify(options) => verify::run(&options),
        Command::Ycsb(options) => ycsb::run(&options),
        Command::Sort(options) => compute::sort(&options),
        Command::Pagerank(options) => compute::pagerank(&options),
    };
    match done {
        Ok(outcome) => {
            println!("{}", outcome.json());
            if outcome.wrong > 0 {
                eprintln!("swapload: {} of what was read is wrong", outcome.wrong);
            }
            ExitCode::from(u8::from(outcome.wrong > 0))
        }
        Err(error) => {
            eprintln!("swapload: {error:#}");
            ExitCode::FAILURE
        }
    }
}
