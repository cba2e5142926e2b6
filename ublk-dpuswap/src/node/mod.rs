//! The memory node: lends 1 MiB blocks over TCP.
//!
//! One thread per connection, a bounded number of them, each with one buffer for the largest message. A connection
//! that sends something else is closed with a log line and harms nobody; one that sends nothing is closed too.

mod store;

pub use store::{Session, Store};

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::proto::{
    self, HEADER_BYTES, Header, Hello, MAX_BLOCKS_PER_MESSAGE, MAX_CONTROL_BYTES, MAX_PAYLOAD_BYTES, Opcode,
    ProtoError, RANGE_BYTES, Range, Status,
};
use crate::units::BLOCK_BYTES;
use crate::wire;

/// Time in which a new connection must say who it is, and in which an answer must have gone out.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often leases are looked at and a stop is noticed.
const TICK: Duration = Duration::from_millis(100);
const STACK_BYTES: usize = 256 << 10;

/// How a node is to be.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Most connections at once.
    pub max_connections: usize,
    /// How long the blocks of a client without a connection are kept.
    pub grace: Duration,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { max_connections: 64, grace: Duration::from_secs(10) }
    }
}

struct Connection {
    id: u64,
    stream: TcpStream,
    thread: Option<JoinHandle<()>>,
}

/// A node that listens. It serves in [`Node::run`].
pub struct Node {
    listener: TcpListener,
    address: SocketAddr,
    config: NodeConfig,
    store: Arc<Store>,
    connections: Mutex<Vec<Connection>>,
    next_connection: AtomicU64,
    stop: AtomicBool,
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
        Ok(Self {
            listener,
            address,
            config,
            store: Arc::new(store),
            connections: Mutex::new(Vec::new()),
            next_connection: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Where the node listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The memory it lends.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes [`Node::run`] return soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves until [`Node::stop`], then closes all connections.
    pub fn run(&self) {
        std::thread::scope(|scope| {
            // On a thread of its own: wiping what a client leaves behind can take seconds.
            let leases = std::thread::Builder::new().name("node-leases".to_owned()).stack_size(STACK_BYTES);
            let expire = || {
                while !self.stop.load(Ordering::SeqCst) {
                    self.expire();
                    std::thread::sleep(TICK);
                }
            };
            let alone = leases.spawn_scoped(scope, expire).inspect_err(|error| {
                log::error!("no thread for ending leases, accepting connections may have to wait: {error}");
            });
            self.accept_all(alone.is_err());
        });
    }

    fn expire(&self) {
        let freed = self.store.expire(Instant::now(), self.config.grace);
        if freed > 0 {
            log::info!("{freed} blocks of clients that are gone are free again");
        }
    }

    fn accept_all(&self, expire_too: bool) {
        while !self.stop.load(Ordering::SeqCst) {
            self.wait_for_connection();
            match self.listener.accept() {
                Ok((stream, peer)) => self.accept(stream, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!("accepting a connection: {error}");
                    std::thread::sleep(TICK);
                }
            }
            self.connections()
                .retain(|connection| !connection.thread.as_ref().is_none_or(JoinHandle::is_finished));
            if expire_too {
                self.expire();
            }
        }
        let connections: Vec<Connection> = self.connections().drain(..).collect();
        for connection in &connections {
            let _ = connection.stream.shutdown(std::net::Shutdown::Both);
        }
        for thread in connections.into_iter().filter_map(|connection| connection.thread) {
            let _ = thread.join();
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
        if self.connections().len() >= self.config.max_connections {
            log::warn!("{peer}: refused: {} connections are open", self.config.max_connections);
            let header = Header::request(Opcode::Hello, 0, 0).answer(Status::Busy, 0);
            let _ = wire::send(&stream, [&header.encode(&[], &[]), &[], &[]], Some(Instant::now() + TICK));
            return;
        }
        let Ok(kept) = stream.try_clone() else { return };
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let store = Arc::clone(&self.store);
        let serve = move || {
            match serve(&store, &stream) {
                Ok(()) => log::debug!("{peer}: closed"),
                Err(End::Io(error)) => log::info!("{peer}: {error}"),
                Err(End::Proto(error)) => log::warn!("{peer}: closed: {error}"),
                Err(End::Refused(status)) => log::warn!("{peer}: closed: {status}"),
            }
            // The list of connections holds the socket too.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        };
        let thread =
            std::thread::Builder::new().name(format!("node-{id}")).stack_size(STACK_BYTES).spawn(serve);
        match thread {
            Ok(thread) => self.connections().push(Connection { id, stream: kept, thread: Some(thread) }),
            Err(error) => log::error!("{peer}: no thread for the connection: {error}"),
        }
    }

    /// Ids of the open connections, oldest first.
    pub fn open_connections(&self) -> Vec<u64> {
        let connections = self.connections();
        let open =
            connections.iter().filter(|c| c.thread.as_ref().is_some_and(|thread| !thread.is_finished()));
        open.map(|connection| connection.id).collect()
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
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

enum End {
    Io(io::Error),
    Proto(ProtoError),
    Refused(Status),
}

impl From<ProtoError> for End {
    fn from(error: ProtoError) -> Self {
        Self::Proto(error)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Serves one connection from HELLO to its end.
fn serve(store: &Store, stream: &TcpStream) -> Result<(), End> {
    let mut first = [0; MAX_CONTROL_BYTES];
    let (header, len) = receive(stream, &mut first, Some(Instant::now() + PATIENCE))?;
    let hello = Hello::decode(&first[..len]).ok().filter(|_| header.opcode == Opcode::Hello);
    let opened = match hello {
        Some(hello) if hello.block_bytes as usize == BLOCK_BYTES => store.open(&hello),
        _ => Err(Status::BadRequest),
    };
    let session = match opened {
        Ok(session) => session,
        Err(status) => {
            answer(stream, &header, status, &[])?;
            return Err(End::Refused(status));
        }
    };
    let ended = answer(stream, &header, Status::Ok, &store.info(&session).encode())
        .and_then(|()| serve_session(store, stream, &session));
    let goodbye = matches!(ended, Ok(Some(_)));
    store.close(&session, goodbye, Instant::now());
    match ended? {
        // Answered only now: what a client hears of its goodbye is that its blocks are free.
        Some(bye) => answer(stream, &bye, Status::Ok, &[]),
        None => Ok(()),
    }
}

/// Serves requests until the client closes the connection, or says goodbye with the message that is returned.
fn serve_session(store: &Store, stream: &TcpStream, session: &Session) -> Result<Option<Header>, End> {
    let mut buffer = vec![0; MAX_PAYLOAD_BYTES].into_boxed_slice();
    loop {
        let (header, len) = match receive(stream, &mut buffer, None) {
            Err(End::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        };
        if header.opcode == Opcode::Bye {
            return Ok(Some(header));
        }
        let mut list = [0; MAX_CONTROL_BYTES];
        let done = handle(store, session, header.opcode, &mut buffer, len, &mut list);
        match done {
            Ok(Reply::Nothing) => answer(stream, &header, Status::Ok, &[])?,
            Ok(Reply::List(len)) => answer(stream, &header, Status::Ok, &list[..len])?,
            Ok(Reply::Data(len)) => answer(stream, &header, Status::Ok, &buffer[..len])?,
            Err(status) => answer(stream, &header, status, &[])?,
        }
    }
}

/// Where the answer's payload is.
enum Reply {
    Nothing,
    List(usize),
    Data(usize),
}

fn handle(
    store: &Store,
    session: &Session,
    opcode: Opcode,
    buffer: &mut [u8],
    len: usize,
    list: &mut [u8; MAX_CONTROL_BYTES],
) -> Result<Reply, Status> {
    let bad = |_: ProtoError| Status::BadRequest;
    let (request, _) = buffer.split_at(len);
    match opcode {
        Opcode::Write => {
            let (body, data) = request.split_at_checked(RANGE_BYTES).ok_or(Status::BadRequest)?;
            store.write(session, &Range::decode(body).map_err(bad)?, data)?;
            Ok(Reply::Nothing)
        }
        Opcode::Read => {
            let range = Range::decode(request).map_err(bad)?;
            let out = buffer.get_mut(..range.len_bytes as usize).ok_or(Status::BadRequest)?;
            store.read(session, &range, out)?;
            Ok(Reply::Data(range.len_bytes as usize))
        }
        Opcode::Reserve => {
            let wanted = u32::from_le_bytes(request.try_into().map_err(|_| Status::BadRequest)?);
            let mut numbers = [0; MAX_BLOCKS_PER_MESSAGE];
            let (granted, free) = store.reserve(session, wanted, &mut numbers)?;
            Ok(Reply::List(proto::encode_list(free, &numbers[..granted], list)))
        }
        Opcode::Release => {
            let (_, numbers) = proto::decode_list(request).map_err(bad)?;
            let free = store.release(session, numbers)?;
            Ok(Reply::List(proto::encode_list(free, &[], list)))
        }
        Opcode::Stat => {
            let info = store.info(session).encode();
            list[..info.len()].copy_from_slice(&info);
            Ok(Reply::List(info.len()))
        }
        Opcode::Hello | Opcode::Bye => Err(Status::BadRequest),
    }
}

/// Receives one request, which must begin before the deadline, if there is one. A peer of another version is told ours; then, as with any malformed message, the connection
/// is over: where the next message would begin is not known.
fn receive(stream: &TcpStream, buffer: &mut [u8], deadline: Option<Instant>) -> Result<(Header, usize), End> {
    let mut raw = [0; HEADER_BYTES];
    match deadline {
        Some(_) => wire::receive(stream, &mut raw, deadline)?,
        None => wire::receive_next(stream, &mut raw, PATIENCE)?,
    }
    let header = match Header::decode(&raw) {
        Ok(header) => header,
        Err(error) => {
            if matches!(error, ProtoError::Version(_)) {
                let _ = answer(stream, &Header::request(Opcode::Hello, 0, 0), Status::Version, &[]);
            }
            return Err(error.into());
        }
    };
    if header.reply {
        return Err(ProtoError::Field.into());
    }
    let payload =
        buffer.get_mut(..header.payload_bytes as usize).ok_or(ProtoError::TooLong(header.payload_bytes))?;
    wire::receive(stream, payload, deadline.or(Some(Instant::now() + PATIENCE)))?;
    header.verify(&raw, payload, &[])?;
    Ok((header, payload.len()))
}

fn answer(stream: &TcpStream, request: &Header, status: Status, payload: &[u8]) -> Result<(), End> {
    let header = request.answer(status, payload.len());
    let deadline = Some(Instant::now() + PATIENCE);
    Ok(wire::send(stream, [&header.encode(payload, &[]), payload, &[]], deadline)?)
}
