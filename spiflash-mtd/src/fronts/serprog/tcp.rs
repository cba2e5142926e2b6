//! serprog over TCP: one client at a time, the next waits until it has left.
//!
//! The invariant: what listens where others can reach it has said so.

use super::{
    protocol::Options,
    session::{End, Line, serve},
    tuning::{KeepAwake, incoming_cpu, set_low_water},
};
use crate::fronts::{FrontError, Running, SharedBus, Stop, Woken};
use nix::{
    poll::PollFlags,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    unistd::Pid,
};
use std::{
    cell::Cell,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

/// A client's host that is silent is asked for a sign of life after this many seconds.
const KEEPALIVE_SECONDS: u32 = 30;

/// How long a read or write waits before it is looked whether the server is to end. A command that is shorter than was
/// expected waits as long.
const IO_TIMEOUT: Duration = Duration::from_millis(5);
/// The kernel takes no more than half of the receive buffer.
const MOST_LOW_WATER: usize = 16 << 10;
/// How many reads pass before the thread looks where its client is.
const FOLLOW_EVERY: u32 = 64;
const THIS_THREAD: Pid = Pid::from_raw(0);

/// Reads where to listen: `HOST:PORT` with a numeric host, or only a port, which is on the loopback interface.
///
/// # Errors
/// Anything else.
pub fn parse_address(text: &str) -> Result<SocketAddr, FrontError> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| FrontError::Option {
        what: "serprog address",
        value: text.to_owned(),
        rule: "it must be PORT or ADDRESS:PORT, such as 4000 or 127.0.0.1:4000".to_owned(),
    })
}

/// A serprog server on a TCP port. It ends when it is dropped.
#[derive(Debug)]
pub struct TcpServer {
    address: SocketAddr,
    running: Running,
}

impl TcpServer {
    /// Listens; clients are served from now on. Port 0 takes one that is free.
    ///
    /// serprog has no notion of who its client is: at an address that is not a loopback one this logs a warning.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn bind(address: SocketAddr, bus: SharedBus, options: Options) -> Result<TcpServer, FrontError> {
        let listen = || -> io::Result<(TcpListener, SocketAddr)> {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) =
            listen().map_err(FrontError::system(format!("serprog: listening on {address}")))?;
        if !address.ip().is_loopback() {
            log::warn!(
                "serprog listens on {address}, which is not a loopback address: \
                 whoever reaches it can read and write the chip"
            );
        }
        let name = format!("serprog on {address}");
        let running = Running::start(name, Stop::new()?, move |stop| run(stop, &listener, &bus, &options))?;
        Ok(TcpServer { address, running })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether clients are served.
    pub fn is_running(&self) -> bool {
        self.running.is_running()
    }

    /// Ends it, and its client's session, and waits until that is done.
    ///
    /// # Errors
    /// It had ended by itself, by this.
    pub fn stop(mut self) -> Result<(), FrontError> {
        self.running.stop()
    }
}

fn run(stop: &Stop, listener: &TcpListener, bus: &SharedBus, options: &Options) -> Result<(), FrontError> {
    loop {
        match listener.accept() {
            Ok((stream, client)) => {
                let connection = match Connection::new(stream, client) {
                    Ok(connection) => connection,
                    Err(error) => {
                        log::warn!("serprog: client {client}: {error}");
                        continue;
                    }
                };
                log::info!("serprog: client {client} has come");
                let end = serve(stop, &connection, bus, options, || ());
                log::info!("serprog: client {client} has left");
                if end == End::Stop {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let woken = stop.wait(Some(listener.as_fd()), PollFlags::POLLIN, None);
                if woken.map_err(FrontError::system("serprog: waiting for a client"))? == Woken::Stop {
                    return Ok(());
                }
            }
            // A client that gave up, or too many open files: neither is for good.
            Err(error) => {
                log::warn!("serprog: accepting a client: {error}");
                let woken = stop.wait(None, PollFlags::empty(), Some(100));
                if woken.map_err(FrontError::system("serprog: waiting for a client"))? == Woken::Stop {
                    return Ok(());
                }
            }
        }
    }
}

/// A client's connection.
///
/// A client such as flashrom sends a command in two pieces, waits for the answer, and so on 200,000 times for a chip of
/// 16 MiB. What the bus does takes no time beside that; waking a thread does, above all on another CPU. So reads wait until
/// a command is likely whole, and over the loopback interface the thread follows the client to its CPU.
struct Connection {
    stream: TcpStream,
    low_water: Cell<usize>,
    follow: Option<Follow>,
    awake: Option<KeepAwake>,
}

impl Connection {
    fn new(stream: TcpStream, client: SocketAddr) -> io::Result<Connection> {
        // Not without blocking: a read that waits saves a poll. The timeouts let the thread see that it has to end.
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        // Answers are short, and the client waits for each.
        stream.set_nodelay(true)?;
        // A host that lost its power must not keep the server for itself.
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS)?;
        let here = client.ip().is_loopback();
        let (follow, awake) = if here { (Follow::new(), KeepAwake::start()) } else { (None, None) };
        Ok(Connection { stream, low_water: Cell::new(1), follow, awake })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Line for Connection {
    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut stream = &self.stream;
        let result = stream.read(bytes);
        if result.is_ok()
            && let Some(awake) = &self.awake
        {
            awake.touch();
        }
        if let Some(follow) = &self.follow {
            follow.step(self.stream.as_fd());
        }
        result
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream = &self.stream;
        stream.write(bytes)
    }

    fn expect(&self, bytes: usize) {
        let bytes = bytes.min(MOST_LOW_WATER);
        if self.low_water.replace(bytes) != bytes {
            set_low_water(self.stream.as_fd(), bytes as i32);
        }
    }
}

/// Keeps the thread on its client's CPU, and gives it back all its CPUs in the end.
struct Follow {
    before: CpuSet,
    on: Cell<Option<usize>>,
    reads: Cell<u32>,
}

impl Follow {
    fn new() -> Option<Follow> {
        let before = sched_getaffinity(THIS_THREAD).ok()?;
        Some(Follow { before, on: Cell::new(None), reads: Cell::new(0) })
    }

    fn step(&self, socket: BorrowedFd<'_>) {
        let reads = self.reads.get().wrapping_add(1);
        self.reads.set(reads);
        if !reads.is_multiple_of(FOLLOW_EVERY) {
            return;
        }
        let Some(cpu) = incoming_cpu(socket) else { return };
        if self.on.replace(Some(cpu)) != Some(cpu) && self.before.is_set(cpu).unwrap_or(false) {
            let mut only = CpuSet::new();
            // Refused, it stays where it is.
            let _ = only.set(cpu).and_then(|()| sched_setaffinity(THIS_THREAD, &only));
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if self.on.get().is_some() {
            // It was allowed before.
            let _ = sched_setaffinity(THIS_THREAD, &self.before);
        }
    }
}
