//! `ublk-zns`: load a ZNS SSD as /dev/ublkbN.

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use std::process::ExitCode;
use ublk_target::{
    Error, cli,
    lifecycle::{self, RunOptions, UsageError},
};
use ublk_zns::{
    ZnsConfig, ZnsError,
    front::{FrontOptions, ZnsTarget, media_path},
};

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
        after_help = "Example:\n  ublk-zns add --size 1GiB --zone-size 64MiB --zone-capacity 48MiB --max-open 12 --max-active 14"
    )]
    Add(Box<Add>),
    /// Delete a device
    #[command(after_help = "Example:\n  ublk-zns del 0\n  ublk-zns del --all")]
    Del(cli::DelArgs),
    /// List the ZNS devices
    #[command(after_help = "Example:\n  ublk-zns list --json")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print every zone, as the device sees it
    #[command(after_help = "Example:\n  ublk-zns report 0")]
    Report {
        /// Number N of /dev/ublkbN
        id: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what the device has done
    #[command(after_help = "Example:\n  ublk-zns stat 0 --json")]
    Stat {
        /// Number N of /dev/ublkbN
        id: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Serve a device whose daemon died, with its data and zone states
    #[command(after_help = "Example:\n  ublk-zns recover 0")]
    Recover(cli::RecoverArgs),
    /// Print what the kernel's ublk driver can do
    #[command(after_help = "Example:\n  ublk-zns features")]
    Features {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Add {
    #[command(flatten)]
    common: cli::AddArgs,
    /// Sum of all zone sizes
    #[arg(long, default_value = "4GiB")]
    size: ByteSize,
    /// Zone size, a power of two
    #[arg(long, default_value = "64MiB")]
    zone_size: ByteSize,
    /// Writable part of each zone [default: the zone size]
    #[arg(long)]
    zone_capacity: Option<ByteSize>,
    /// Conventional zones at the start
    #[arg(long, default_value_t = 0, value_name = "ZONES")]
    conv_zones: u32,
    /// Maximum open zones, 0 for no limit [default: 14, or fewer if there are fewer zones]
    #[arg(long, value_name = "ZONES")]
    max_open: Option<u32>,
    /// Maximum active zones, 0 for no limit [default: 14, or fewer if there are fewer zones]
    #[arg(long, value_name = "ZONES")]
    max_active: Option<u32>,
    /// The longest zone append
    #[arg(long, default_value = "512KiB")]
    max_append: ByteSize,
    /// Logical block: 512 to 4096 bytes
    #[arg(long, default_value = "4KiB")]
    block_size: ByteSize,
    /// Where the data lives: in memory, kept while the machine runs, also over a daemon's death
    #[arg(long, default_value = "ram", value_parser = ["ram"])]
    media: String,
}

/// A size that does not fit is far beyond what the rules allow, which then say so.
fn small(size: ByteSize) -> u32 {
    u32::try_from(size.as_u64()).unwrap_or(u32::MAX)
}

impl Add {
    fn options(&self) -> FrontOptions {
        FrontOptions {
            config: ZnsConfig {
                size_bytes: self.size.as_u64(),
                zone_size_bytes: self.zone_size.as_u64(),
                zone_capacity_bytes: self.zone_capacity.map(|size| size.as_u64()),
                conventional_zones: self.conv_zones,
                max_open_zones: self.max_open,
                max_active_zones: self.max_active,
                block_bytes: small(self.block_size),
                max_append_bytes: small(self.max_append),
            },
            queues: self.common.queues,
            depth: self.common.depth,
        }
    }
}

fn target_error(error: ZnsError) -> Error {
    match error {
        ZnsError::Config { .. } => Error::Target(Box::new(UsageError(error.to_string()))),
        other => Error::Target(Box::new(other)),
    }
}

fn serve(run: &RunOptions, options: FrontOptions) -> Result<(), Error> {
    let shown = |id| println!("/dev/ublkb{id}");
    // Checked here too, so that wrong options never get as far as a second process.
    let target = ZnsTarget::new(options, run.recover).map_err(target_error)?;
    let id = lifecycle::serve(run, || Ok(target), shown)?;
    if !run.foreground {
        shown(id);
    }
    Ok(())
}

fn add(args: &Add) -> Result<(), Error> {
    let options = args.options();
    serve(&args.common.run_options(json!(options)), options)
}

fn recover(args: &cli::RecoverArgs) -> Result<(), Error> {
    let saved = lifecycle::recoverable_options("zns", args.id)?;
    let options = serde_json::from_value(saved.clone())
        .map_err(|e| Error::NotRecoverable { id: args.id, why: format!("its options: {e}") })?;
    serve(&args.run_options(saved), options)
}

fn del(args: &cli::DelArgs) -> Result<(), Error> {
    let ids = match args.id {
        Some(id) => vec![id],
        None => lifecycle::list(Some("zns"))?.iter().map(|listed| listed.id).collect(),
    };
    let result = cli::del(args, Some("zns"));
    // A daemon that was killed could not remove its media.
    for id in ids {
        if !ublk_target::adapter::device_ids().contains(&id) {
            let _ = std::fs::remove_file(media_path(id));
        }
    }
    result
}

fn report(id: u32, as_json: bool) -> Result<(), Error> {
    let zones = lifecycle::ask("zns", id, &json!({ "op": "report" }))?;
    if as_json {
        println!("{zones}");
        return Ok(());
    }
    println!(
        "{:>5} {:<12} {:<15} {:>12} {:>10} {:>10} {:>12}",
        "ZONE", "TYPE", "STATE", "START", "SIZE", "CAPACITY", "WP"
    );
    for zone in zones.as_array().into_iter().flatten() {
        let text = |key: &str| zone[key].as_str().unwrap_or("?").to_owned();
        let hex = |key: &str| zone[key].as_u64().map_or("-".to_owned(), |n| format!("{n:#x}"));
        println!(
            "{:>5} {:<12} {:<15} {:>12} {:>10} {:>10} {:>12}",
            zone["zone"].to_string(),
            text("type"),
            text("state"),
            hex("start_sectors"),
            hex("size_sectors"),
            hex("capacity_sectors"),
            hex("write_pointer_sectors"),
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::init_log();
    let result = match &cli.command {
        Command::Add(args) => add(args),
        Command::Del(args) => del(args),
        Command::List { json } => cli::list(Some("zns"), *json),
        Command::Report { id, json } => report(*id, *json),
        Command::Stat { id, json } => cli::stat("zns", *id, *json),
        Command::Recover(args) => recover(args),
        Command::Features { json } => cli::features(*json),
    };
    cli::finish("ublk-zns", result)
}
