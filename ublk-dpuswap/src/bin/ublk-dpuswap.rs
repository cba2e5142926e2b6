//! `ublk-dpuswap`: a swap device on compressed remote memory.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::ExitCode;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use ublk_dpuswap::engine::{Config, Engine};
use ublk_dpuswap::front::SwapDevice;
use ublk_dpuswap::lock;
use ublk_dpuswap::remote::{Lane, RemoteNode, tcp::TcpNode};
use ublk_dpuswap::units::{BLOCK_BYTES, PAGE_BYTES};
use ublk_target::{cli, lifecycle};

/// A swap device on compressed remote memory
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  dpuswap-node --listen 127.0.0.1:7001 --memory 2GiB\n  ublk-dpuswap add --size 4GiB --node \
                  127.0.0.1:7001\n  mkswap /dev/ublkb0 && swapon --discard -p 100 /dev/ublkb0"
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
    Add(Add),
    #[command(flatten)]
    Shared(cli::Shared),
}

#[derive(Args, Clone)]
struct Add {
    #[command(flatten)]
    common: cli::AddArgs,
    /// Capacity, up to 4 TiB
    #[arg(long)]
    size: ByteSize,
    /// A memory node; give it once per node
    #[arg(long = "node", required = true, value_name = "HOST:PORT")]
    nodes: Vec<String>,
    /// Local cache of compressed pages, up to 64 GiB (about 8 % more for its tables)
    #[arg(long, default_value = "256MiB")]
    cache: ByteSize,
    /// Pages written back together, to one contiguous run: a power of two up to 128
    #[arg(long, default_value_t = 16)]
    group_pages: u32,
    /// A node that does not answer within this time is down, and its pages are lost: longer than its worst pause
    #[arg(long, default_value_t = 10_000, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(10..=600_000))]
    node_timeout_ms: u64,
    /// Seed of the placement's choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Go on without locked memory and OOM protection; such a device can hang the machine
    #[arg(long)]
    unsafe_dev: bool,
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// An error as the shared command line takes it; a wrong option ends with status 2.
fn boxed(error: ublk_dpuswap::Error) -> Boxed {
    match error {
        ublk_dpuswap::Error::Option(message) => Box::new(lifecycle::UsageError(message)),
        other => Box::new(other),
    }
}

fn random_id() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Add {
    fn config(&self) -> Result<Config, ublk_dpuswap::Error> {
        let bad = |text: String| Err(ublk_dpuswap::Error::Option(text));
        let (bytes, page) = (self.size.as_u64(), PAGE_BYTES as u64);
        let Some(pages) =
            u32::try_from(bytes / page).ok().filter(|pages| *pages > 0 && bytes.is_multiple_of(page))
        else {
            return bad(format!("--size {bytes}: a multiple of 4 KiB up to 4 TiB is needed"));
        };
        let twice = self.nodes.iter().enumerate().find(|(at, node)| self.nodes[..*at].contains(node));
        if let Some((_, node)) = twice {
            return bad(format!("--node {node} is given twice"));
        }
        if self.cache.as_u64() < 1 << 20 {
            return bad(format!("--cache {}: at least 1 MiB is needed", self.cache.as_u64()));
        }
        let config = Config::new(pages);
        let (cache_bytes, queues) = (self.cache.as_u64(), self.common.queues);
        let node_patience =
            config.node_patience.min(Duration::from_millis(self.node_timeout_ms) + config.heartbeat);
        let config = Config {
            group_pages: self.group_pages,
            cache_bytes,
            queues,
            seed: self.seed,
            node_patience,
            ..config
        };
        config.check().map(|()| config)
    }

    fn tcp_nodes(&self, lanes: usize) -> Result<Vec<TcpNode>, ublk_dpuswap::Error> {
        let (client, timeout) = (random_id(), Duration::from_millis(self.node_timeout_ms));
        self.nodes.iter().map(|node| TcpNode::new(node, client, lanes, timeout)).collect()
    }

    /// Asks every node, before anything is loaded, whether it is one and has memory to lend.
    fn probe(&self) -> Result<(), ublk_dpuswap::Error> {
        let mut blocks = 0;
        for node in self.tcp_nodes(1)? {
            let name = node.name().to_owned();
            let info =
                node.connect().map_err(|source| ublk_dpuswap::Error::Node { node: name.clone(), source })?;
            node.disconnect();
            if info.free_blocks == 0 {
                return Err(ublk_dpuswap::Error::NodeFull {
                    node: name,
                    capacity_blocks: info.capacity_blocks,
                });
            }
            blocks += u64::from(info.free_blocks);
        }
        let lendable = blocks * BLOCK_BYTES as u64;
        if self.size.as_u64() > 2 * lendable {
            let (size, lendable) = (self.size.display().iec(), ByteSize::b(lendable).display().iec());
            log::warn!(
                "{size} is more than twice the {lendable} that the nodes can lend: swap-outs will fail when they are full"
            );
        }
        Ok(())
    }

    /// Builds the device in the process that serves it: after the fork, since memory locks do not outlive one.
    fn make(&self, config: Config) -> Result<SwapDevice, Boxed> {
        if self.unsafe_dev {
            log::warn!("--unsafe-dev: memory is not locked, the device can hang the machine");
        } else {
            let hint = "; --unsafe-dev goes on without (such a device can hang the machine)";
            lock::protect().map_err(|error| format!("{error}{hint}"))?;
        }
        let nodes = self.tcp_nodes(Lane::count(config.queues)).map_err(boxed)?;
        let nodes = nodes.into_iter().map(|node| Box::new(node) as Box<dyn RemoteNode>).collect();
        let engine = Engine::open(config, nodes).map_err(boxed)?;
        Ok(SwapDevice::new(engine, self.common.queues, self.common.depth))
    }
}

fn add(args: &Add) -> Result<(), ublk_target::Error> {
    let wrong = |error| ublk_target::Error::Target(boxed(error));
    let config = args.config().map_err(wrong)?;
    args.probe().map_err(wrong)?;
    let options = serde_json::json!({ "size_bytes": args.size.as_u64(), "nodes": args.nodes });
    let run = args.common.run_options(options);
    let shown = |id| println!("/dev/ublkb{id}");
    let id = lifecycle::serve(&run, || args.make(config), shown)?;
    if !run.foreground {
        shown(id);
    }
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::init_log();
    let result = match &cli.command {
        Command::Add(args) => add(args),
        Command::Shared(shared) => shared.run(Some("dpuswap")),
    };
    cli::finish("ublk-dpuswap", result)
}
