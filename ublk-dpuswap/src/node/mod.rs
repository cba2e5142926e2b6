//! The memory node: lends 1 MiB blocks over TCP.
//!
//! One thread per connection, a bounded number of them, each with a small stack; buffers for large messages are shared.
//! A connection that sends something else is closed with a log line and harms nobody; one that does not say who it is,
//! or does not finish what it began, is closed too.
//!
//! The node takes its memory back by asking ([`Store`]), when the machine needs it ([`pressure`]), when it is told to
//! ([`Node::reclaim`]) or when it is about to end ([`Node::drain`]). It never drops a lent block while it runs.

mod buffers;
mod http;
pub mod pressure;
mod serve;
mod stats;
mod store;

pub use http::StatusPage;
pub use serve::End;
pub use stats::{ClientReport, Counters, CountersReport, NodeReport, StoreReport};
pub use store::{Session, Store};

pub use crate::wire::Wire;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::proto::{Header, Opcode, Status};
use crate::secure::Security;
use buffers::Buffers;
use pressure::{Monitor, Sample};
use serve::Service;

/// How often leases are looked at and a stop is noticed.
const TICK: Duration = Duration::from_millis(100);
/// How often the machine's memory is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Stack of a connection's thread: what it touches is what it costs, unless memory is locked.
const STACK_BYTES: usize = 128 << 10;
/// Large messages handled at once.
const LARGE_MESSAGES: usize = 64;

/// How a node is to be.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Most connections at once.
    pub max_connections: usize,
    /// How long the blocks of a client without a connection are kept, at most; clients may ask for less.
    pub grace: Duration,
    /// The key that clients must have.
    pub security: Security,
    /// Memory of the machine to be kept available, in bytes; none to lend whatever the machine says.
    pub keep_free_bytes: Option<u64>,
    /// How long clients have to give back what is wanted back.
    pub reclaim_deadline: Duration,
    /// How long a draining node waits for what it lent.
    pub drain_timeout: Duration,
}

impl NodeConfig {
    /// The defaults.
    pub fn new(security: Security) -> Self {
        Self {
            max_connections: 1024,
            grace: Duration::from_secs(120),
            security,
            keep_free_bytes: Some(256 << 20),
            reclaim_deadline: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

struct Connection {
    stream: Arc<TcpStream>,
    thread: JoinHandle<()>,
}

/// What limits lending, in blocks.
struct Limits {
    by_pressure: u32,
    by_order: u32,
}

/// A node that listens. It serves in [`Node::run`].
pub struct Node {
    listener: TcpListener,
    address: SocketAddr,
    config: NodeConfig,
    service: Arc<Service>,
    connections: Mutex<Vec<Connection>>,
    limits: Mutex<Limits>,
    monitor: Mutex<Monitor>,
    last_look: Mutex<Option<Sample>>,
    refused: AtomicU64,
    broken: Arc<AtomicU64>,
    drain_until: Mutex<Option<Instant>>,
    stop: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Listens on `address` (port 0 for any). Connections wait until [`Node::run`].
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn bind(address: SocketAddr, store: Store, config: NodeConfig) -> Result<Self, Error> {
        let fail = |source| Error::System { what: format!("listening on {address}"), source };
        let listener = TcpListener::bind(address).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let capacity = store.capacity();
        let (security, grace) = (config.security.clone(), config.grace);
        let store = Arc::new(store);
        let service = Service { store, security, grace, buffers: Buffers::new(LARGE_MESSAGES) };
        Ok(Self {
            listener,
            address,
            monitor: Mutex::new(Monitor::new(config.keep_free_bytes.unwrap_or(0), capacity)),
            config,
            service: Arc::new(service),
            connections: Mutex::new(Vec::new()),
            limits: Mutex::new(Limits { by_pressure: capacity, by_order: capacity }),
            last_look: Mutex::new(None),
            refused: AtomicU64::new(0),
            broken: Arc::default(),
            drain_until: Mutex::new(None),
            stop: AtomicBool::new(false),
        })
    }

    /// Where the node listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The memory it lends.
    pub fn store(&self) -> &Store {
        &self.service.store
    }

    /// Makes [`Node::run`] return soon, whatever is lent.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Whether [`Node::stop`] was called, or draining has ended.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Lends nothing more and makes [`Node::run`] return when everything came back, or the time for that is over.
    pub fn drain(&self) {
        let until = Instant::now() + self.config.drain_timeout;
        let mut drain_until = locked(&self.drain_until);
        if drain_until.is_none() {
            self.store().drain(until);
            let (lent, clients) = self.store().lent();
            log::info!("draining: {lent} blocks of {clients} clients are lent");
            *drain_until = Some(until);
        }
    }

    /// Whether [`Node::drain`] was called.
    pub fn is_draining(&self) -> bool {
        locked(&self.drain_until).is_some()
    }

    /// Wants so many blocks back and does not lend them again until told 0. Gives the blocks that clients are asked for.
    pub fn reclaim(&self, blocks: u64) -> u32 {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let limit = match blocks {
            0 => self.store().capacity(),
            blocks => self.store().holding().saturating_sub(blocks),
        };
        locked(&self.limits).by_order = limit;
        self.apply_limits();
        let wanted = self.store().report(Instant::now()).reclaim_blocks;
        log::info!("told to take {blocks} blocks back: {wanted} are lent and wanted back");
        wanted
    }

    fn apply_limits(&self) {
        let limits = locked(&self.limits);
        let limit = limits.by_pressure.min(limits.by_order);
        self.store().set_limit(limit, Instant::now(), self.config.reclaim_deadline);
    }

    /// Everything there is to tell.
    pub fn report(&self) -> NodeReport {
        let look = *locked(&self.last_look);
        NodeReport {
            connections: locked(&self.connections).iter().filter(|c| !c.thread.is_finished()).count(),
            refused_connections: self.refused.load(Ordering::Relaxed),
            broken_connections: self.broken.load(Ordering::Relaxed),
            pressure_some_avg10: look.and_then(|look| look.stalled_percent),
            available_bytes: locked(&self.monitor).available_bytes(),
            store: self.store().report(Instant::now()),
        }
    }

    /// Serves until [`Node::stop`] or the end of draining, then closes all connections.
    pub fn run(&self) {
        std::thread::scope(|scope| {
            // On a thread of its own: wiping what a client leaves behind can take seconds.
            let keeper = std::thread::Builder::new().name("node-keeper".to_owned()).stack_size(STACK_BYTES);
            let keep = || {
                let mut next_look = Instant::now();
                while !self.is_stopping() {
                    self.keep(&mut next_look);
                    std::thread::sleep(TICK);
                }
            };
            let alone = keeper.spawn_scoped(scope, keep).inspect_err(|error| {
                log::error!("no thread for ending leases, accepting connections may have to wait: {error}");
            });
            self.accept_all(alone.is_err());
            self.stop();
        });
    }

    /// Ends leases, looks at the machine, says who is late, notices the end of draining.
    fn keep(&self, next_look: &mut Instant) {
        let now = Instant::now();
        let freed = self.store().expire(now);
        if freed > 0 {
            log::info!("{freed} blocks of clients that are gone are free again");
        }
        if self.config.keep_free_bytes.is_some() && now >= *next_look {
            *next_look = now + LOOK;
            self.look();
        }
        self.store().park();
        if let Some(blocks) = self.store().newly_overdue(now) {
            log::warn!("{blocks} blocks that were wanted back are overdue; they stay lent");
        }
        let until = *locked(&self.drain_until);
        if let Some(until) = until {
            match self.store().lent() {
                (0, _) => log::info!("drained: nothing is lent"),
                (lent, clients) if now >= until => {
                    log::warn!("ends with {lent} blocks of {clients} clients still lent: their time is over");
                }
                _ => return,
            }
            self.stop();
        }
    }

    fn look(&self) {
        let sample = match pressure::look(ublk_target::clock::monotonic_ns()) {
            Ok(sample) => sample,
            Err(error) => return log::warn!("cannot tell how much memory the machine has left: {error}"),
        };
        *locked(&self.last_look) = Some(sample);
        let before = locked(&self.limits).by_pressure;
        let limit = locked(&self.monitor).decide(&sample, self.store().holding(), self.store().capacity());
        if limit != before {
            locked(&self.limits).by_pressure = limit;
            self.apply_limits();
            let available = sample.available_bytes >> 20;
            log::info!("{available} MiB of memory are available: lends up to {limit} blocks, not {before}");
        }
    }

    fn accept_all(&self, keep_too: bool) {
        let mut next_look = Instant::now();
        while !self.is_stopping() {
            self.wait_for_connection();
            match self.listener.accept() {
                Ok((stream, peer)) => self.accept(stream, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!("accepting a connection: {error}");
                    std::thread::sleep(TICK);
                }
            }
            locked(&self.connections).retain(|connection| !connection.thread.is_finished());
            if keep_too {
                self.keep(&mut next_look);
            }
        }
        let connections: Vec<Connection> = locked(&self.connections).drain(..).collect();
        for connection in &connections {
            let _ = connection.stream.shutdown(std::net::Shutdown::Both);
        }
        for connection in connections {
            let _ = connection.thread.join();
        }
    }

    fn wait_for_connection(&self) {
        let mut poll = libc::pollfd { fd: self.listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd; the result does not matter, since accept is tried in any case.
        unsafe { libc::poll(&mut poll, 1, TICK.as_millis() as libc::c_int) };
    }

    fn accept(&self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = prepare(&stream) {
            log::warn!("{peer}: {error}");
            return;
        }
        if locked(&self.connections).len() >= self.config.max_connections {
            self.refused.fetch_add(1, Ordering::Relaxed);
            log::warn!("{peer}: refused: {} connections are open", self.config.max_connections);
            let header = Header::request(Opcode::Hello, 0, 0).answer(Status::Busy, 0);
            let _ = (&stream).send([&header.encode(&[], &[]), &[], &[], &[]], Instant::now() + TICK);
            return;
        }
        let stream = Arc::new(stream);
        let (served, service, broken) =
            (Arc::clone(&stream), Arc::clone(&self.service), Arc::clone(&self.broken));
        let serve = move || {
            match serve::serve(&service, &*served) {
                Ok(()) => log::debug!("{peer}: closed"),
                Err(End::Io(error)) => log::info!("{peer}: {error}"),
                Err(end) => {
                    broken.fetch_add(1, Ordering::Relaxed);
                    log::warn!("{peer}: closed: {end}");
                }
            }
            // The list of connections holds the socket too.
            let _ = served.shutdown(std::net::Shutdown::Both);
        };
        match std::thread::Builder::new().name("node-peer".to_owned()).stack_size(STACK_BYTES).spawn(serve) {
            Ok(thread) => locked(&self.connections).push(Connection { stream, thread }),
            Err(error) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                log::error!("{peer}: no thread for the connection: {error}");
            }
        }
    }
}

/// Serves one connection over any wire, alone: for tests, and for fuzzing a node without a socket. Ends when the wire
/// does. Gives why it ended, if not by the peer's wish.
///
/// # Errors
/// What the peer did wrong.
pub fn serve_one(store: Arc<Store>, security: Security, wire: impl Wire) -> Result<(), End> {
    let grace = Duration::from_secs(1);
    serve::serve(&Service { store, security, grace, buffers: Buffers::new(1) }, wire)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    // A client whose machine died sends no FIN: ask after 10 s of silence, give up after three unanswered questions.
    for (option, value) in [(libc::TCP_KEEPIDLE, 10), (libc::TCP_KEEPINTVL, 5), (libc::TCP_KEEPCNT, 3)] {
        set_option(stream, libc::IPPROTO_TCP, option, value)?;
    }
    set_option(stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}

fn set_option(
    stream: &TcpStream,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the descriptor is open, the value is a c_int and its size is given.
    let done = unsafe {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(stream.as_raw_fd(), level, option, (&raw const value).cast(), size)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
