//! `ublk-dpuswap`: a swap device on compressed remote memory.

mod device;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ublk_dpuswap::{alloc, durable};
use ublk_target::{Error, cli};

/// Swap must not wait for memory: what allocates on its path is counted.
#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// A swap device on compressed remote memory
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  dpuswap-node --listen 127.0.0.1:7001 --memory 2GiB --lock\n  ublk-dpuswap add --size 4GiB \
                  --node 127.0.0.1:7001\n  mkswap /dev/ublkb0 && swapon --discard -p 100 /dev/ublkb0"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a swap device; prints /dev/ublkbN when it is live
    #[command(
        mut_arg("depth", |arg| arg.default_value("64")),
        after_help = "Example:\n  ublk-dpuswap add --size 4GiB --node 127.0.0.1:7001 --node 127.0.0.1:7002 --cache 256MiB\n\n\
                      The device may be larger than what the nodes lend, since pages are compressed; when the nodes are\n\
                      full, swap-outs fail and the kernel keeps the pages. A size of more than twice the memory that the\n\
                      nodes can lend is warned about."
    )]
    Add(Box<device::Add>),
    /// Take over a device whose daemon was killed: nothing that was swapped out is lost
    #[command(after_help = "Example:\n  ublk-dpuswap recover 0")]
    Recover(cli::RecoverArgs),
    #[command(flatten)]
    Shared(cli::Shared),
}

/// Memory of devices that are gone, because their daemon was killed before they were deleted, is given back.
fn clean_up() {
    let gone = |id: &u32| !std::path::Path::new(&format!("/dev/ublkc{id}")).exists();
    durable::left_behind().into_iter().filter(gone).for_each(durable::forget);
}

fn run(command: &Command) -> Result<(), Error> {
    match command {
        Command::Add(args) => device::add(args),
        Command::Recover(args) => device::recover(args),
        Command::Shared(shared) => {
            let done = shared.run(Some("dpuswap"));
            if matches!(shared, cli::Shared::Del(_)) {
                clean_up();
            }
            done
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::init_log();
    cli::finish("ublk-dpuswap", run(&cli.command))
}
