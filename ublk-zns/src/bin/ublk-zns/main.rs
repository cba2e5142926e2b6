//! `ublk-zns`: load a ZNS SSD as /dev/ublkbN.

mod device;
mod models;

use bytesize::ByteSize;
use clap::{Parser, Subcommand};
use serde_json::json;
use std::process::ExitCode;
use ublk_target::{Error, cli, lifecycle};
use ublk_zns::faults_cli::FaultArgs;

/// A ZNS SSD in user space
#[derive(Parser)]
#[command(version, after_help = "Example:\n  ublk-zns add --size 4GiB\n  blkzone report /dev/ublkb0")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a device; prints /dev/ublkbN when it is live
    #[command(
        after_help = "Examples:\n  ublk-zns add --size 1GiB --zone-size 64MiB --zone-capacity 48MiB --max-open 12 --max-active 14\n  ublk-zns add --media file:/var/lib/zns0\n  ublk-zns add --profile nvmevirt-zn540 --set timing.program_ns=600us --errors tlc-3d"
    )]
    Add(Box<device::Add>),
    /// Make a device in a directory, without loading it: for `add --media file:DIR` and for model:DIR
    #[command(after_help = "Example:\n  ublk-zns create /var/lib/zns0 --size 1GiB --zone-size 64MiB")]
    Create(device::Create),
    /// Print every zone, as the device sees it
    #[command(after_help = "Example:\n  ublk-zns report 0")]
    Report {
        /// Number N of /dev/ublkbN
        id: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Serve a device whose daemon died, with its data and zone states
    #[command(after_help = "Example:\n  ublk-zns recover 0")]
    Recover(cli::RecoverArgs),
    /// Break a running device: media errors, latency, torn writes, zones read-only or offline, power cuts
    #[command(
        after_help = "Examples:\n  ublk-zns fault 0 media-error --op read --range 2048+8 --count once\n  ublk-zns fault 0 zone 3 offline\n  ublk-zns fault 0 list\n  ublk-zns fault 0 remove all"
    )]
    Fault(FaultArgs),
    /// Print the built-in timing profiles and error parameters, or the file of one
    #[command(after_help = "Examples:\n  ublk-zns profiles\n  ublk-zns profiles femu-tlc > mine.toml")]
    Profiles(models::Profiles),
    /// Print what the timing model expects of a fio job, without a device
    #[command(
        after_help = "Example:\n  ublk-zns predict --profile nvmevirt-zn540 --rw randread --bs 4KiB --iodepth 32 --json"
    )]
    Predict(models::Predict),
    /// Print raw bit error rates of simulated chips: by page, by written value, by condition
    #[command(after_help = "Example:\n  ublk-zns rber pages --errors tlc-3d --blocks 8 --csv > pages.csv")]
    Rber(models::Rber),
    /// Find the error parameters of a measurement
    #[command(after_help = "Example:\n  ublk-zns fit measured.csv --start tlc-3d > mychip.toml")]
    Fit(models::FitArgs),
    #[command(flatten)]
    Shared(cli::Shared),
}

fn report(id: u32, as_json: bool) -> Result<(), Error> {
    let zones = lifecycle::ask("zns", id, &json!({ "op": "report" }))?;
    if as_json {
        println!("{zones}");
        return Ok(());
    }
    println!(
        "{:>5} {:<12} {:<15} {:>12} {:>10} {:>10} {:>12} {:>7} {:>12}",
        "ZONE", "TYPE", "STATE", "START", "SIZE", "CAPACITY", "WP", "RESETS", "WRITTEN"
    );
    for zone in zones.as_array().into_iter().flatten() {
        let text = |key: &str| zone[key].as_str().unwrap_or("?").to_owned();
        let hex = |key: &str| zone[key].as_u64().map_or("-".to_owned(), |n| format!("{n:#x}"));
        println!(
            "{:>5} {:<12} {:<15} {:>12} {:>10} {:>10} {:>12} {:>7} {:>12}",
            zone["zone"].to_string(),
            text("type"),
            text("state"),
            hex("start_sectors"),
            hex("size_sectors"),
            hex("capacity_sectors"),
            hex("write_pointer_sectors"),
            zone["resets"].to_string(),
            zone["host_written_sectors"]
                .as_u64()
                .map_or("-".into(), |n| ByteSize::b(n * 512).display().iec().to_string()),
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::init_log();
    if !matches!(cli.command, Command::Add(_) | Command::Recover(_)) {
        cli::end_with_the_pipe();
    }
    let result = match &cli.command {
        Command::Add(args) => device::add(args),
        Command::Create(args) => device::create(args),
        Command::Report { id, json } => report(*id, *json),
        Command::Recover(args) => device::recover(args),
        Command::Fault(args) => args.run(),
        Command::Profiles(args) => args.run(),
        Command::Predict(args) => args.run(),
        Command::Rber(args) => args.run(),
        Command::Fit(args) => args.run(),
        Command::Shared(cli::Shared::Del(args)) => device::del(args),
        Command::Shared(shared) => shared.run(Some("zns")),
    };
    cli::finish("ublk-zns", result)
}
