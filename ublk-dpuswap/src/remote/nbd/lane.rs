//! One blocking connection to an NBD server: writes may be pipelined, answers may come in any order.
//!
//! Invariant: every wait ends within about twice the time-out; nothing is allocated after the negotiation.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::wire::{self, Command, Errno, Export, NbdError, REPLY_BYTES};
use crate::proto::Opcode;
use crate::remote::RemoteError;

/// Where the next connection's handles begin: none is ever used twice, so that a handle names its connection too.
static FIRST_HANDLE: AtomicU64 = AtomicU64::new(1);

/// Most writes that are started and not finished.
pub(crate) const MAX_UNFINISHED: usize = 256;

/// A stream socket of either kind.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp(socket)
    }
}

impl From<UnixStream> for Socket {
    fn from(socket: UnixStream) -> Self {
        Self::Unix(socket)
    }
}

impl Socket {
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_read_timeout(timeout).and(socket.set_write_timeout(timeout)),
            Self::Unix(socket) => socket.set_read_timeout(timeout).and(socket.set_write_timeout(timeout)),
        }
    }
}

/// A socket with a time by which all must be done, so that a peer that sends a byte now and then does not keep us for ever.
struct Until<'a>(&'a Socket, Instant);

impl Until<'_> {
    fn late<T>(&self, done: io::Result<T>) -> io::Result<T> {
        match done {
            // How a socket's time-out comes.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
            Ok(_) if Instant::now() > self.1 => Err(ErrorKind::TimedOut.into()),
            done => done,
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.late(match self.0 {
            Socket::Tcp(socket) => (&*socket).read(data),
            Socket::Unix(socket) => (&*socket).read(data),
        })
    }
}

impl Write for Until<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(data)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.late(match self.0 {
            Socket::Tcp(socket) => (&*socket).write_vectored(parts),
            Socket::Unix(socket) => (&*socket).write_vectored(parts),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A write that was started.
struct Unfinished {
    handle: u64,
    answer: Option<Errno>,
}

/// A connection to an NBD server.
pub(crate) struct Connection {
    socket: Socket,
    timeout: Duration,
    pub(crate) export: Export,
    next_handle: u64,
    unfinished: VecDeque<Unfinished>,
}

impl Connection {
    /// Over a fresh socket; [`Connection::negotiate`] comes next.
    pub(crate) fn new(socket: Socket, timeout: Duration) -> Result<Self, RemoteError> {
        socket.set_timeout(Some(timeout)).map_err(RemoteError::Connect)?;
        let export = Export { size_bytes: 0, flags: 0, minimum_bytes: 1, maximum_bytes: 0 };
        let unfinished = VecDeque::with_capacity(MAX_UNFINISHED);
        Ok(Self {
            socket,
            timeout,
            export,
            next_handle: FIRST_HANDLE.fetch_add(1 << 32, Ordering::Relaxed),
            unfinished,
        })
    }

    pub(crate) fn negotiate(&mut self, name: &str) -> Result<Export, RemoteError> {
        self.export = wire::negotiate(&mut self.until(), name)?;
        Ok(self.export)
    }

    /// The socket itself, for one who waits in another way.
    pub(crate) fn into_socket(self) -> io::Result<OwnedFd> {
        self.socket.set_timeout(None)?;
        Ok(match self.socket {
            Socket::Tcp(socket) => socket.into(),
            Socket::Unix(socket) => socket.into(),
        })
    }

    fn until(&self) -> Until<'_> {
        Until(&self.socket, Instant::now() + self.timeout)
    }

    pub(crate) fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    /// Sends a request, and gives its handle.
    pub(crate) fn send(
        &mut self,
        command: Command,
        at: u64,
        len: u32,
        data: &[u8],
    ) -> Result<u64, RemoteError> {
        let handle = self.next_handle;
        self.next_handle += 1;
        let head = wire::request(command, handle, at, len);
        let io = |error| RemoteError::from_io(opcode_of(command), error);
        let mut until = self.until();
        let mut done = 0;
        while done < head.len() {
            let sent = until.write_vectored(&[IoSlice::new(&head[done..]), IoSlice::new(data)]);
            match sent {
                Ok(0) => return Err(RemoteError::Closed),
                Ok(sent) => done += sent,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io(error)),
            }
        }
        until.write_all(&data[done - head.len()..]).map_err(io)?;
        Ok(handle)
    }

    /// The next answer. Gives what belongs to none of the unfinished writes.
    fn receive(&mut self, opcode: Opcode) -> Result<Option<(Errno, u64)>, RemoteError> {
        let mut head = [0; REPLY_BYTES];
        self.until().read_exact(&mut head).map_err(|error| RemoteError::from_io(opcode, error))?;
        let (error, handle) = wire::reply(&head)?;
        match self.unfinished.iter_mut().find(|write| write.handle == handle && write.answer.is_none()) {
            Some(write) => write.answer = Some(error),
            None => return Ok(Some((error, handle))),
        }
        Ok(None)
    }

    pub(crate) fn read(&mut self, at: u64, data: &mut [u8]) -> Result<(), RemoteError> {
        let handle = self.send(Command::Read, at, data.len() as u32, &[])?;
        loop {
            match self.receive(Opcode::Read)? {
                None => {}
                Some((Errno(0), answered)) if answered == handle => {
                    let io = |error| RemoteError::from_io(Opcode::Read, error);
                    return self.until().read_exact(data).map_err(io);
                }
                Some((error, answered)) if answered == handle => {
                    return Err(RemoteError::Server(Opcode::Read, error));
                }
                Some(_) => return Err(NbdError::Handle.into()),
            }
        }
    }

    pub(crate) fn start_write(&mut self, at: u64, data: &[u8]) -> Result<u64, RemoteError> {
        let handle = self.send(Command::Write, at, data.len() as u32, data)?;
        self.unfinished.push_back(Unfinished { handle, answer: None });
        Ok(handle)
    }

    pub(crate) fn finish_write(&mut self, handle: u64) -> Result<(), RemoteError> {
        // Begun on a connection that is gone.
        if self.unfinished.front().map(|write| write.handle) != Some(handle) {
            return Err(RemoteError::Unfinished);
        }
        loop {
            match self.unfinished.front().map(|write| write.answer) {
                None => return Err(RemoteError::Mixed),
                Some(None) => {
                    if self.receive(Opcode::Write)?.is_some() {
                        return Err(NbdError::Handle.into());
                    }
                }
                Some(Some(error)) => {
                    self.unfinished.pop_front();
                    return match error {
                        Errno(0) => Ok(()),
                        error => Err(RemoteError::Server(Opcode::Write, error)),
                    };
                }
            }
        }
    }

    /// Trims ranges, all at once. A server that does not want to keeps the memory, and no more: its refusal is no error.
    pub(crate) fn trim(&mut self, ranges: &[(u64, u32)]) -> Result<(), RemoteError> {
        let first = self.next_handle;
        for (at, len) in ranges {
            self.send(Command::Trim, *at, *len, &[])?;
        }
        let handles = first..self.next_handle;
        let mut answered = 0;
        while answered < ranges.len() {
            match self.receive(Opcode::Release)? {
                None => {}
                Some((_, handle)) if handles.contains(&handle) => answered += 1,
                Some(_) => return Err(NbdError::Handle.into()),
            }
        }
        Ok(())
    }
}

fn opcode_of(command: Command) -> Opcode {
    match command {
        Command::Read => Opcode::Read,
        Command::Write => Opcode::Write,
        Command::Trim => Opcode::Release,
        Command::Disconnect => Opcode::Bye,
    }
}

/// Connects to a Unix socket, in bounded time: where the server takes no more connections, `connect` waits.
pub(crate) fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all-zero is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the path of the socket is too long"));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (slot, byte) in address.sun_path.iter_mut().zip(bytes) {
        *slot = *byte as libc::c_char;
    }
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and is owned by nobody else.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.set_write_timeout(Some(timeout))?;
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is valid for reads of its length.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}
