//! `dpuswap-node`: lends this machine's memory to swap devices.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytesize::ByteSize;
use clap::Parser;
use ublk_dpuswap::lock;
use ublk_dpuswap::node::{Node, NodeConfig, Store};
use ublk_target::daemon::{self, Notifier, Side};
use ublk_target::state::StateDir;

/// How long the background process may take to listen; locking much memory takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Lends memory to ublk-dpuswap over TCP
///
/// Anyone who can reach the port can borrow: listen on a private network only.
#[derive(Parser, Clone)]
#[command(
    version,
    after_help = "Example:\n  dpuswap-node --listen 127.0.0.1:7001 --memory 2GiB --pid-file /run/node1.pid"
)]
struct Cli {
    /// Address to listen on; port 0 for any
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// Memory to lend, in whole MiB; used only as it is written to
    #[arg(long)]
    memory: ByteSize,
    /// Lock the process and all it lends in memory at once, so that this machine never swaps it. Needed when a device
    /// that borrows from this node is swapped on by the same machine: else each waits for the other
    #[arg(long)]
    lock: bool,
    /// Keep the blocks of a client without a connection for this long
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    grace: u64,
    /// Most connections at once; a device needs two and one per queue
    #[arg(long, default_value_t = 64)]
    max_connections: usize,
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

impl Cli {
    fn address(&self) -> Result<SocketAddr> {
        let found =
            self.listen.to_socket_addrs().with_context(|| format!("--listen {}", self.listen))?.next();
        found.ok_or_else(|| anyhow!("--listen {}: no such address", self.listen))
    }

    fn start(&self) -> Result<Node> {
        let epoch = RandomState::new().build_hasher().finish();
        let store = Store::new(self.memory.as_u64(), epoch)?;
        let config =
            NodeConfig { max_connections: self.max_connections, grace: Duration::from_secs(self.grace) };
        let node = Node::bind(self.address()?, store, config)?;
        if self.lock {
            lock::protect().and_then(|()| lock::become_io_flusher()).context("--lock")?;
        }
        if let Some(path) = &self.pid_file {
            std::fs::write(path, format!("{}\n", std::process::id()))
                .with_context(|| path.display().to_string())?;
        }
        Ok(node)
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

    fn serve(&self, mut notifier: Notifier) -> Result<()> {
        daemon::block_signals()?;
        let node = match self.start() {
            Ok(node) => Arc::new(node),
            Err(error) => {
                notifier.failed(&format!("{error:#}"), false);
                return Err(error);
            }
        };
        let served = serde_json::json!({
            "listen": node.address().to_string(),
            "memory_bytes": u64::from(node.store().capacity()) << 20,
            "pid": std::process::id(),
        });
        if notifier.in_background() {
            let log = self.open_log(node.address().port());
            if let Err(error) = log.and_then(|log| Ok(daemon::detach(&log)?)) {
                notifier.failed(&format!("{error:#}"), false);
                return Err(error);
            }
        } else {
            self.show(&served);
        }
        notifier.ready(&served);
        let stopper = Arc::clone(&node);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            if let Err(error) = daemon::wait_for_signal() {
                log::error!("{error}");
            }
            stopper.stop();
        })?;
        node.run();
        self.pid_file
            .as_deref()
            .map(Path::to_path_buf)
            .into_iter()
            .for_each(|path| drop(std::fs::remove_file(path)));
        Ok(())
    }

    fn run(&self) -> Result<()> {
        if self.foreground {
            return self.serve(Notifier::foreground());
        }
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        let pid_file = self.pid_file.as_deref().map(absolute).transpose()?;
        let log = self.log.as_deref().map(absolute).transpose()?;
        let this = Self { pid_file, log, ..self.clone() };
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

fn main() -> ExitCode {
    let cli = Cli::parse();
    ublk_target::cli::init_log();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dpuswap-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}
