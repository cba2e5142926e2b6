//! `ublk-target`: the null device, and what is common to all ublk devices of this machine.

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use ublk_target::{
    Error, cli,
    lifecycle::{self, RunOptions},
    null::{Null, NullOptions},
};

/// A null ublk device (the ceiling of benchmarks), and every ublk device of this machine
#[derive(Parser)]
#[command(version, after_help = "Example:\n  ublk-target add --size 1GiB\n  ublk-target list")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a null device: reads give zeroes, writes go nowhere
    #[command(after_help = "Example:\n  ublk-target add --size 4GiB --queues 2 --user-copy")]
    Add(Add),
    /// Serve a null device whose daemon died
    #[command(after_help = "Example:\n  ublk-target recover 0")]
    Recover(cli::RecoverArgs),
    #[command(flatten)]
    Shared(cli::Shared),
}

#[derive(Args)]
struct Add {
    #[command(flatten)]
    common: cli::AddArgs,
    /// Capacity
    #[arg(long, default_value = "1GiB")]
    size: ByteSize,
    /// Copy data with pread/pwrite on the character device instead of through buffers
    #[arg(long)]
    user_copy: bool,
    /// Keep the device when its daemon dies, until `recover`
    #[arg(long)]
    recovery: bool,
    /// As --recovery, and what the daemon held when it died is sent again instead of failing
    #[arg(long)]
    reissue: bool,
    /// Complete every request N ns after it was fetched, up to an hour
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u64).range(..=ublk_target::queue::MAX_DELAY_NS))]
    latency_ns: u64,
    /// Poll the clock for the last N ns before a completion is due, up to 1000000
    #[arg(long, default_value_t = 0, value_name = "N")]
    spin_ns: u32,
    /// Keep no latency histograms
    #[arg(long)]
    no_latency_stats: bool,
    /// Fail every N-th request
    #[arg(long, default_value_t = 0, value_name = "N")]
    fail_every: u64,
    /// Panic on every N-th request
    #[arg(long, default_value_t = 0, value_name = "N")]
    panic_every: u64,
    /// Fail to open the queues
    #[arg(long)]
    fail_start: bool,
    /// Never open the last queue
    #[arg(long)]
    hang_start: bool,
}

fn serve(run: &RunOptions, options: NullOptions) -> Result<(), Error> {
    let shown = |id| println!("/dev/ublkb{id}");
    let id = lifecycle::serve(run, || Ok(Null::new(options)), shown)?;
    if !run.foreground {
        shown(id);
    }
    Ok(())
}

fn add(args: &Add) -> Result<(), Error> {
    let options = NullOptions {
        size_bytes: args.size.as_u64(),
        queues: args.common.queues,
        depth: args.common.depth,
        user_copy: args.user_copy,
        recovery: args.recovery,
        fail_every: args.fail_every,
        panic_every: args.panic_every,
        fail_start: args.fail_start,
        hang_start: args.hang_start,
        reissue: args.reissue,
        latency_ns: args.latency_ns,
        spin_ns: args.spin_ns,
        no_latency_stats: args.no_latency_stats,
    };
    let saved = serde_json::json!(options);
    serve(&args.common.run_options(saved), options)
}

fn recover(args: &cli::RecoverArgs) -> Result<(), Error> {
    let saved = lifecycle::recoverable_options("null", args.id)?;
    let options = serde_json::from_value(saved.clone())
        .map_err(|e| Error::NotRecoverable { id: args.id, why: format!("its options: {e}") })?;
    serve(&args.run_options(saved), options)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::init_log();
    let result = match &cli.command {
        Command::Add(args) => add(args),
        Command::Recover(args) => recover(args),
        Command::Shared(shared) => shared.run(None),
    };
    cli::finish("ublk-target", result)
}
