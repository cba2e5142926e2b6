//! `add` and `recover`: what a device is to be, and bringing it up.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use ublk_dpuswap::engine::Config;
use ublk_dpuswap::front::{Plan, SwapDevice, random_number};
use ublk_dpuswap::link::{LinkKind, LinkModel, LinkOverrides};
use ublk_dpuswap::modes::{
    infiniswap::{self, Infiniswap},
    znswap::{self, Znswap},
};
use ublk_dpuswap::remote::NodeOptions;
use ublk_dpuswap::secure::{KeyFile, Security};
use ublk_dpuswap::units::{BLOCK_BYTES, PAGE_BYTES};
use ublk_dpuswap::{Error, lock};
use ublk_target::{cli, lifecycle};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Recompress {
    None,
    Zstd,
}

/// What kind of device it is: ours, or one that it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// Compressed, cached, packed
    Dpuswap,
    /// As Infiniswap does it: a page per request, coarse slabs, a backup on disk; nothing compressed or cached
    Infiniswap,
    /// Swap on a zoned SSD of this machine, reclaimed by the host
    Znswap,
}

#[derive(Args, Clone)]
pub(crate) struct Add {
    #[command(flatten)]
    common: cli::AddArgs,
    #[command(flatten)]
    options: Options,
}

/// What `add` is told and `recover` has to know again.
#[derive(Args, Clone, Serialize, Deserialize)]
struct Options {
    /// Capacity, up to 4 TiB
    #[arg(long, value_parser = bytes)]
    size: u64,
    /// A memory node; give it once per node: HOST:PORT of a dpuswap-node, nbd://HOST:PORT/EXPORT,
    /// nbd+unix:///EXPORT?socket=PATH, file:PATH?size=SIZE (only when the others are full), mem:SIZE (this process's own)
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// Also the nodes that register in etcd, now and later
    #[arg(long, value_name = "etcd://HOST:PORT")]
    discover: Option<String>,
    /// The kind of device; the others are there to be compared with
    #[arg(long, value_enum, default_value_t = Mode::Dpuswap)]
    mode: Mode,
    /// With --mode infiniswap: also write every page to this file, and read it there when its node is gone
    #[arg(long, value_name = "FILE")]
    backup: Option<PathBuf>,
    /// With --mode znswap: the zoned block device, such as one of ublk-zns
    #[arg(long, value_name = "DEVICE")]
    zoned: Option<PathBuf>,
    /// With --mode znswap: even if its zones are not empty
    #[arg(long)]
    overwrite: bool,
    /// Copies of every page, each on another node: with 2 or 3 the death of a node loses nothing
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    replicas: u8,
    /// Local cache of compressed pages, up to 64 GiB (about 8 % more for its tables)
    #[arg(long, default_value = "256MiB", value_parser = bytes)]
    cache: u64,
    /// Pages written back together, to one contiguous run: a power of two up to 128
    #[arg(long, default_value_t = 16)]
    group_pages: u32,
    /// Compress pages again when they are cleaned: what is still there then is cold
    #[arg(long, value_enum, default_value_t = Recompress::None)]
    recompress: Recompress,
    /// Never read more than was asked for
    #[arg(long)]
    no_read_ahead: bool,
    /// A node that does not answer within this time is down: longer than its worst pause
    #[arg(long, default_value_t = 10_000, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(10..=600_000))]
    node_timeout_ms: u64,
    /// With copies: another node is asked after this time at the latest
    #[arg(long, default_value_t = 50, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    hedge_ms: u64,
    /// Poll for answers for this long before sleeping
    #[arg(long, default_value_t = 50, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    spin_us: u64,
    /// Key shared with the nodes (default: /etc/storlab/dpuswap.key)
    #[arg(long, value_name = "FILE", conflicts_with = "insecure_plaintext")]
    key_file: Option<PathBuf>,
    /// Send pages as they are, to nodes that anybody may be: only where nobody else is on the network
    #[arg(long)]
    insecure_plaintext: bool,
    /// Let the nodes seem to be behind such a link: an answer counts when it would have brought it
    #[arg(long, default_value = "none", value_name = "none|rdma|pcie|tcp")]
    link: LinkKind,
    /// Seed of the placement's choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave a safeguard out, to see what it is for; such a device can hang the machine: lock, flusher, oom, alloc
    #[arg(long, value_name = "SAFEGUARD", hide_short_help = true)]
    #[serde(default)]
    without: Vec<String>,
    /// Go on without locked memory, OOM protection and memory that outlives the daemon; such a device can hang the machine
    #[arg(long)]
    unsafe_dev: bool,
}

/// A size such as 4GiB, in bytes.
fn bytes(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64())
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// An error as the shared command line takes it; a wrong option ends with status 2.
fn boxed(error: Error) -> Boxed {
    match error {
        Error::Option(message) => Box::new(lifecycle::UsageError(message)),
        other => Box::new(other),
    }
}

fn wrong(error: Error) -> ublk_target::Error {
    ublk_target::Error::Target(boxed(error))
}

impl Options {
    fn config(&self, queues: u16) -> Result<Config, Error> {
        let bad = |text: String| Err(Error::Option(text));
        let (bytes, page) = (self.size, PAGE_BYTES as u64);
        let whole = u32::try_from(bytes / page).ok().filter(|pages| *pages > 0 && bytes.is_multiple_of(page));
        let Some(pages) = whole else {
            return bad(format!("--size {bytes}: a multiple of 4 KiB up to 4 TiB is needed"));
        };
        match (self.mode, &self.zoned) {
            (Mode::Znswap, None) => return bad("--mode znswap: --zoned DEVICE is needed".to_owned()),
            (Mode::Znswap, _) if !self.nodes.is_empty() => {
                return bad("--mode znswap: it has no use for --node".to_owned());
            }
            (Mode::Dpuswap | Mode::Infiniswap, Some(_)) => {
                return bad("--zoned: only with --mode znswap".to_owned());
            }
            _ => {}
        }
        if self.mode != Mode::Infiniswap && self.backup.is_some() {
            return bad(
                "--backup: only with --mode infiniswap; a file: node is the last resort here".to_owned()
            );
        }
        if self.mode != Mode::Dpuswap && (queues > 1 || self.discover.is_some() || self.replicas > 1) {
            return bad("--mode: only dpuswap has more queues than one, --discover and --replicas".to_owned());
        }
        if self.mode != Mode::Znswap && self.nodes.is_empty() && self.discover.is_none() {
            return bad("--node: at least one is needed, or --discover".to_owned());
        }
        let twice = self.nodes.iter().enumerate().find(|(at, node)| self.nodes[..*at].contains(node));
        if let Some((_, node)) = twice {
            return bad(format!("--node {node} is given twice"));
        }
        if self.mode == Mode::Dpuswap
            && self.discover.is_none()
            && self.nodes.len() < usize::from(self.replicas)
        {
            let (replicas, nodes) = (self.replicas, self.nodes.len());
            return bad(format!("--replicas {replicas}: needs as many nodes, and there are {nodes}"));
        }
        if self.cache < 1 << 20 {
            return bad(format!("--cache {}: at least 1 MiB is needed", self.cache));
        }
        let config = Config::new(pages);
        let node_timeout = Duration::from_millis(self.node_timeout_ms);
        let config = Config {
            group_pages: self.group_pages,
            cache_bytes: self.cache,
            queues,
            replicas: self.replicas,
            sealed: !self.insecure_plaintext,
            recompress: self.recompress == Recompress::Zstd,
            read_ahead: !self.no_read_ahead,
            seed: self.seed,
            node_patience: config.node_patience.min(node_timeout + config.heartbeat),
            node_timeout,
            hedge: Duration::from_millis(self.hedge_ms),
            spin: Duration::from_micros(self.spin_us),
            link: self.link,
            safeguards: lock::Safeguards::without(&self.without)?,
            ..config
        };
        config.check().map(|()| config)
    }

    fn node_options(&self) -> Result<NodeOptions, Error> {
        let timeout = Duration::from_millis(self.node_timeout_ms);
        let needs_key = |name: &String| !["nbd", "file:", "mem:"].iter().any(|other| name.starts_with(other));
        let security = if self.insecure_plaintext {
            Security::Plaintext
        } else if self.discover.is_some() || self.nodes.iter().any(needs_key) {
            let path = self.key_file.clone().map_or_else(KeyFile::default_path, Ok)?;
            Security::Psk(KeyFile::load_or_create(&path, false)?.key)
        } else {
            Security::Plaintext
        };
        Ok(NodeOptions { timeout, security })
    }

    /// Asks every node, before anything is loaded, whether it is one and has memory to lend.
    fn probe(&self, options: &NodeOptions) -> Result<(), Error> {
        let mut blocks = 0;
        for name in self.nodes.iter().filter(|name| !name.starts_with("file:") && !name.starts_with("mem:")) {
            let node = options.open(name, random_number()?)?;
            let info = node.connect().map_err(|source| Error::Node { node: name.clone(), source })?;
            node.disconnect();
            if info.free_blocks == 0 {
                let capacity_blocks = info.capacity_blocks;
                return Err(Error::NodeFull { node: name.clone(), capacity_blocks });
            }
            blocks += u64::from(info.free_blocks);
        }
        let lendable = blocks * BLOCK_BYTES as u64;
        let all_asked = self.discover.is_none() && lendable > 0;
        if all_asked && self.size * u64::from(self.replicas) > 2 * lendable {
            let (size, lendable) =
                (ByteSize::b(self.size).display().iec(), ByteSize::b(lendable).display().iec());
            log::warn!(
                "{size} is more than twice the {lendable} that the nodes can lend: swap-outs will fail when they are full"
            );
        }
        Ok(())
    }

    /// Locks the process that serves, after the fork: memory locks do not outlive one.
    fn protect(&self, plan: &Plan) -> Result<(), Boxed> {
        if self.unsafe_dev {
            log::warn!("--unsafe-dev: memory is not locked, the device can hang the machine");
            return Ok(());
        }
        let hint = "; --unsafe-dev goes on without (such a device can hang the machine)";
        lock::protect(plan.config.safeguards).map_err(|error| format!("{error}{hint}"))?;
        lock::advice().iter().for_each(|line| log::info!("{line}"));
        Ok(())
    }

    fn infiniswap(&self, plan: &Plan) -> Result<Infiniswap, Boxed> {
        self.protect(plan)?;
        let client_id = random_number().map_err(boxed)?;
        let nodes = self.nodes.iter().map(|name| plan.options.open(name, client_id));
        let nodes = nodes.collect::<Result<_, _>>().map_err(boxed)?;
        let link = LinkModel::new(self.link, LinkOverrides::default());
        let config = infiniswap::Config {
            depth: plan.depth,
            backup: self.backup.clone(),
            seed: self.seed,
            spin_ns: self.spin_us * 1000,
            ..infiniswap::Config::new(plan.config.pages, link)
        };
        infiniswap::open(config, nodes).map_err(boxed)
    }

    fn znswap(&self, plan: &Plan) -> Result<Znswap, Boxed> {
        self.protect(plan)?;
        let config = znswap::Config {
            pages: plan.config.pages,
            depth: plan.depth,
            zoned: self.zoned.clone().unwrap_or_default(),
            overwrite: self.overwrite,
        };
        znswap::open(&config).map_err(boxed)
    }

    fn plan(&self, queues: u16, depth: u16, recover: bool) -> Result<Plan, Error> {
        Ok(Plan {
            config: self.config(queues)?,
            depth,
            nodes: self.nodes.clone(),
            discover: self.discover.clone(),
            options: self.node_options()?,
            recover,
            volatile: self.unsafe_dev,
        })
    }
}

/// What is remembered of a device for `recover`.
#[derive(Serialize, Deserialize)]
struct Saved {
    queues: u16,
    depth: u16,
    options: Options,
}

/// `add`.
pub(crate) fn add(args: &Add) -> Result<(), ublk_target::Error> {
    let options = Options {
        // The daemon's working directory is another.
        key_file: args
            .options
            .key_file
            .as_deref()
            .map(|path| std::path::absolute(path).unwrap_or(path.into())),
        ..args.options.clone()
    };
    let plan = options.plan(args.common.queues, args.common.depth, false).map_err(wrong)?;
    options.probe(&plan.options).map_err(wrong)?;
    let saved = Saved { queues: args.common.queues, depth: args.common.depth, options: options.clone() };
    let saved = serde_json::to_value(saved).map_err(|error| ublk_target::Error::Target(error.into()))?;
    let run = args.common.run_options(saved);
    let shown = |id| println!("/dev/ublkb{id}");
    let dpuswap = |plan| options.protect(&plan).map(|()| SwapDevice::new(plan));
    let id = match options.mode {
        Mode::Dpuswap => lifecycle::serve(&run, || dpuswap(plan), shown)?,
        Mode::Infiniswap => lifecycle::serve(&run, || options.infiniswap(&plan), shown)?,
        Mode::Znswap => lifecycle::serve(&run, || options.znswap(&plan), shown)?,
    };
    if !run.foreground {
        shown(id);
    }
    Ok(())
}

/// `recover`.
pub(crate) fn recover(args: &cli::RecoverArgs) -> Result<(), ublk_target::Error> {
    let value = lifecycle::recoverable_options("dpuswap", args.id)?;
    let Saved { queues, depth, options } =
        serde_json::from_value(value.clone()).map_err(|error| ublk_target::Error::Target(error.into()))?;
    let plan = options.plan(queues, depth, true).map_err(wrong)?;
    let run = args.run_options(value);
    let shown = |id| println!("/dev/ublkb{id}");
    if options.mode != Mode::Dpuswap {
        let told = format!("device {}: only those of --mode dpuswap can be recovered", args.id);
        return Err(ublk_target::Error::Target(told.into()));
    }
    let make = || options.protect(&plan).map(|()| SwapDevice::new(plan));
    let id = lifecycle::serve(&run, make, shown)?;
    if !run.foreground {
        shown(id);
    }
    Ok(())
}
