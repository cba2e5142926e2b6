//! `dpuswap-node`: lends this machine's memory to swap devices.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ublk_dpuswap::discover::{Description, EtcdUrl, Registration};
use ublk_dpuswap::lock;
use ublk_dpuswap::node::{Node, NodeConfig, StatusPage, Store};
use ublk_dpuswap::secure::{KeyFile, Security};
use ublk_dpuswap::units::BLOCK_BYTES;
use ublk_target::daemon::{self, Notifier, Side};
use ublk_target::state::StateDir;

/// How long the background process may take to listen; locking much memory takes its time.
const PATIENCE: Duration = Duration::from_secs(120);
/// Descriptors besides connections: the log, the listeners, the status page's clients.
const OTHER_FILES: u64 = 64;

/// Lends memory to ublk-dpuswap over TCP
///
/// Devices must have this node's key: a file, made at the first start, to be copied to their machines. `reclaim`,
/// `drain` and `stat` speak to a node on this machine that was started with --http.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Example:\n  dpuswap-node --listen 127.0.0.1:7001 --memory 2GiB --http 127.0.0.1:7081 --pid-file /run/node1.pid\n  dpuswap-node reclaim --http 127.0.0.1:7081 512MiB"
)]
struct Cli {
    #[command(subcommand)]
    order: Option<Order>,
    #[command(flatten)]
    serve: Option<Serve>,
}

#[derive(Subcommand)]
enum Order {
    /// Ask the clients of a node for so much memory, and do not lend it again until told 0
    Reclaim {
        /// The node's --http address
        #[arg(long, value_name = "HOST:PORT")]
        http: String,
        /// How much
        size: ByteSize,
    },
    /// Make a node lend nothing more, and end when it got everything back
    Drain {
        /// The node's --http address
        #[arg(long, value_name = "HOST:PORT")]
        http: String,
    },
    /// Show what a node has lent and to whom, as JSON
    Stat {
        /// The node's --http address
        #[arg(long, value_name = "HOST:PORT")]
        http: String,
    },
}

#[derive(Args, Clone)]
struct Serve {
    /// Address to listen on; port 0 for any
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// Memory to lend, in whole MiB; used only as it is written to
    #[arg(long)]
    memory: ByteSize,
    /// File with the key that devices must have; made if it is missing (default: /etc/storlab/dpuswap.key for root, else
    /// ~/.config/storlab/dpuswap.key)
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Serve without a key: anyone who can reach the port can borrow, read and change
    #[arg(long, conflicts_with = "key_file")]
    insecure_plaintext: bool,
    /// Lock the process and all it lends in memory at once, so that this machine never swaps it. Needed when a device
    /// that borrows from this node is swapped on by the same machine: else each waits for the other
    #[arg(long)]
    lock: bool,
    /// Lend one client at most this much
    #[arg(long, value_name = "SIZE")]
    quota: Option<ByteSize>,
    /// Keep the blocks of a client without a connection for this long; clients may ask for less
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    grace: u64,
    /// Most connections at once; a device needs three and one per queue
    #[arg(long, default_value_t = 1024)]
    max_connections: usize,
    /// Ask clients for memory back when this machine has less than this available
    #[arg(long, default_value_t = ByteSize::mib(256), value_name = "SIZE")]
    keep_free: ByteSize,
    /// Never mind how much memory this machine has available
    #[arg(long, conflicts_with = "keep_free")]
    no_pressure: bool,
    /// How long clients have to give back what they are asked for; after that they are late, and nothing is dropped
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    reclaim_deadline: u64,
    /// On SIGTERM wait this long for clients to give everything back; 0 not at all. A second SIGTERM ends at once
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    drain_timeout: u64,
    /// Serve /health, /stats and /metrics here; and take orders (POST /reclaim?bytes=N, /drain) from this machine
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Announce this node in etcd while it serves, for devices that were added with --discover
    #[arg(long, value_name = "etcd://HOST:PORT")]
    register: Option<String>,
    /// The address under which devices reach this node, when it is not that of --listen
    #[arg(long, value_name = "HOST:PORT", requires = "register")]
    advertise: Option<String>,
    /// Write the process id to this file; it is removed at the end
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Append the log to this file when in the background (default: /run/storlab/node-PORT.log, or none if that
    /// directory cannot be had)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Stay in the foreground, with the log on standard error
    #[arg(long)]
    foreground: bool,
    /// Print what is served as JSON
    #[arg(long)]
    json: bool,
}

fn address(option: &str, text: &str) -> Result<SocketAddr> {
    let found = text.to_socket_addrs().with_context(|| format!("{option} {text}"))?.next();
    found.ok_or_else(|| anyhow!("{option} {text}: no such address"))
}

/// Blocks in a size given to an option.
fn blocks(size: ByteSize) -> u32 {
    u32::try_from(size.as_u64() / BLOCK_BYTES as u64).unwrap_or(u32::MAX)
}

impl Serve {
    fn security(&self) -> Result<Security> {
        if self.insecure_plaintext {
            log::warn!("without a key: anyone who can reach the port can borrow, read and change");
            return Ok(Security::Plaintext);
        }
        let path = self.key_file.clone().map_or_else(KeyFile::default_path, Ok)?;
        let file = KeyFile::load_or_create(&path, true)?;
        if file.created {
            let path = path.display();
            eprintln!("dpuswap-node: made a new key, {path}; copy it to the machines that may borrow");
        }
        Ok(Security::Psk(file.key))
    }

    fn config(&self) -> Result<NodeConfig> {
        Ok(NodeConfig {
            max_connections: self.max_connections,
            grace: Duration::from_secs(self.grace),
            keep_free_bytes: (!self.no_pressure).then_some(self.keep_free.as_u64()),
            reclaim_deadline: Duration::from_secs(self.reclaim_deadline),
            drain_timeout: Duration::from_secs(self.drain_timeout),
            ..NodeConfig::new(self.security()?)
        })
    }

    fn store(&self) -> Result<Store> {
        let epoch = RandomState::new().build_hasher().finish();
        let quota = match self.quota.map(blocks) {
            Some(0) => bail!("--quota: at least 1 MiB is needed"),
            quota => quota.unwrap_or(0),
        };
        let store = Store::new(self.memory.as_u64(), epoch)?.with_quota(quota);
        Ok(store)
    }

    /// Room for as many descriptors as connections, or fewer connections.
    fn make_room(&mut self) -> Result<()> {
        let wanted = self.max_connections as u64 + OTHER_FILES;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("RLIMIT_NOFILE")?;
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).context("RLIMIT_NOFILE")?;
        }
        if hard < wanted {
            self.max_connections = usize::try_from(hard.saturating_sub(OTHER_FILES).max(1)).unwrap_or(1);
            log::warn!("this process may open {hard} files: at most {} connections", self.max_connections);
        }
        Ok(())
    }

    /// Locks what there is, store included, into memory; it takes all of it now.
    fn lock(&self, store: &Store) -> Result<()> {
        let needed = u64::from(store.capacity()) * BLOCK_BYTES as u64;
        // Rather a clear word than the kernel's choice of a victim half-way.
        let sample = ublk_dpuswap::node::pressure::look(0).context("--lock")?;
        if sample.available_bytes < needed {
            let (needed, available) = (ByteSize::b(needed), ByteSize::b(sample.available_bytes));
            let (needed, available) = (needed.display().iec(), available.display().iec());
            bail!("--lock --memory {needed}: this machine has {available} available");
        }
        lock::protect(lock::Safeguards::ALL).and_then(|()| lock::become_io_flusher()).context("--lock")?;
        store.set_locked();
        Ok(())
    }

    fn start(&mut self) -> Result<(Node, Option<StatusPage>)> {
        self.make_room()?;
        let store = self.store()?;
        let config = self.config()?;
        let page = self
            .http
            .as_deref()
            .map(|http| Ok::<_, anyhow::Error>(StatusPage::bind(address("--http", http)?)?));
        let page = page.transpose()?;
        let node = Node::bind(address("--listen", &self.listen)?, store, config)?;
        if self.lock {
            self.lock(node.store())?;
        }
        if let Some(path) = &self.pid_file {
            std::fs::write(path, format!("{}\n", std::process::id()))
                .with_context(|| path.display().to_string())?;
        }
        Ok((node, page))
    }

    /// The log of the node at `port`. One that was asked for must be had; the default one need not.
    fn open_log(&self, port: u16) -> Result<File> {
        if let Some(path) = &self.log {
            return Ok(daemon::open_log(path)?);
        }
        let usual = StateDir::open().and_then(|dir| {
            // The directory names its files by device; a node has none, so its port takes that place.
            daemon::open_log(&dir.log(0).with_file_name(format!("node-{port}.log")))
        });
        match usual {
            Ok(file) => Ok(file),
            Err(error) => {
                log::warn!("no log: {error}");
                Ok(File::options().write(true).open("/dev/null").context("opening /dev/null")?)
            }
        }
    }

    fn show(&self, served: &serde_json::Value) {
        if self.json {
            println!("{served}");
        } else {
            let bytes = ByteSize::b(served["memory_bytes"].as_u64().unwrap_or(0));
            let address = served["listen"].as_str().unwrap_or("?");
            println!("dpuswap-node: serving {} on {address}", bytes.display().iec());
        }
    }

    fn serve(&mut self, mut notifier: Notifier) -> Result<()> {
        daemon::block_signals()?;
        let (node, page) = match self.start() {
            Ok((node, page)) => (Arc::new(node), page),
            Err(error) => {
                notifier.failed(&told(&error), false);
                return Err(error);
            }
        };
        let served = serde_json::json!({
            "listen": node.address().to_string(),
            "http": page.as_ref().and_then(StatusPage::address).map(|address| address.to_string()),
            "memory_bytes": u64::from(node.store().capacity()) << 20,
            "pid": std::process::id(),
        });
        if notifier.in_background() {
            let log = self.open_log(node.address().port());
            if let Err(error) = log.and_then(|log| Ok(daemon::detach(&log)?)) {
                notifier.failed(&told(&error), false);
                return Err(error);
            }
        } else {
            self.show(&served);
        }
        notifier.ready(&served);
        let stopper = Arc::clone(&node);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            // The first signal is a request to end, the second is an order.
            for act in [Node::drain, Node::stop] {
                match daemon::wait_for_signal() {
                    Ok(signal) => log::info!("{signal}"),
                    Err(error) => log::error!("{error}"),
                }
                act(&stopper);
            }
        })?;
        if let Some(page) = page {
            let shown = Arc::clone(&node);
            std::thread::Builder::new().name("http".into()).spawn(move || page.serve(&shown))?;
        }
        let registration = self.register(&node);
        node.run();
        drop(registration);
        self.pid_file.iter().for_each(|path| drop(std::fs::remove_file(path)));
        Ok(())
    }

    /// Announces the node until what is returned is dropped. A node that cannot be announced serves all the same.
    fn register(&self, node: &Arc<Node>) -> Option<Registration> {
        let url = EtcdUrl::parse(self.register.as_deref()?);
        let addr = self.advertise.clone().unwrap_or_else(|| node.address().to_string());
        let (described, id) = (Arc::clone(node), addr.clone());
        let describe = move || {
            let memory_blocks = described.store().capacity();
            let free_blocks = memory_blocks.saturating_sub(described.store().lent().0);
            Description { addr: addr.clone(), memory_blocks, free_blocks, epoch: 0 }
        };
        let started = url.and_then(|url| Registration::start(url, &id, describe));
        started.inspect_err(|error| log::error!("--register: {error}")).ok()
    }

    fn run(&self) -> Result<()> {
        let mut this = self.clone();
        if self.foreground {
            return this.serve(Notifier::foreground());
        }
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        this.pid_file = self.pid_file.as_deref().map(absolute).transpose()?;
        this.log = self.log.as_deref().map(absolute).transpose()?;
        this.key_file = self.key_file.as_deref().map(absolute).transpose()?;
        match daemon::split(PATIENCE)? {
            Side::Parent(Ok(served)) => {
                this.show(&served);
                Ok(())
            }
            Side::Parent(Err(error)) => Err(anyhow!(error.message)),
            Side::Daemon(notifier) => std::process::exit(i32::from(this.serve(notifier).is_err())),
        }
    }
}

/// An error and its causes in one line; those that an error's own text names already are not said again.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        line if line.ends_with(&cause) => line.to_owned(),
        line => format!("{line}: {cause}"),
    })
}

impl Order {
    fn run(&self) -> Result<()> {
        let (http, request) = match self {
            Self::Reclaim { http, size } => {
                (http, minreq::post(format!("http://{http}/reclaim?bytes={}", size.as_u64())))
            }
            Self::Drain { http } => (http, minreq::post(format!("http://{http}/drain"))),
            Self::Stat { http } => (http, minreq::get(format!("http://{http}/stats"))),
        };
        let answer = request.with_timeout(10).send().with_context(|| format!("--http {http}"))?;
        let text = answer.as_str().with_context(|| format!("--http {http}"))?.trim_end();
        if answer.status_code != 200 {
            bail!("--http {http}: {text}");
        }
        println!("{text}");
        Ok(())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    ublk_target::cli::init_log();
    let done = match (&cli.order, &cli.serve) {
        (Some(order), _) => order.run(),
        (None, Some(serve)) => serve.run(),
        (None, None) => Err(anyhow!("--listen and --memory are needed")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dpuswap-node: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}
