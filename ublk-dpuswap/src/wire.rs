//! Whole messages over a connection: plain or sealed, with a deadline, without allocating.
//!
//! A receiver looks for its message a while before it sleeps: waking a sleeper costs more than most answers take (on
//! loopback some 100 µs against 10 µs). It yields the CPU between looks, so that a peer on the same CPU can answer.
//! What has arrived is read at once as far as it fits, so that many small messages cost one system call.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::proto::{HEADER_BYTES, Header, ProtoError, TAG_BYTES};
use crate::secure::Seals;

/// How long a receiver looks before it sleeps.
const SPIN: Duration = Duration::from_micros(200);
/// Bytes that are read ahead.
const INBOX_BYTES: usize = 4096;

/// A way for bytes to and from a peer: a socket, or in a test anything.
pub trait Wire {
    /// Sends all parts in order.
    ///
    /// # Errors
    /// `TimedOut` past the deadline; else what the system says.
    fn send(&mut self, parts: [&[u8]; 4], deadline: Instant) -> io::Result<()>;

    /// Receives at least one byte; gives how many. Without a deadline, waits for ever.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer has closed; `TimedOut` past the deadline; else what the system says.
    fn receive(&mut self, buffer: &mut [u8], deadline: Option<Instant>) -> io::Result<usize>;
}

impl Wire for &TcpStream {
    fn send(&mut self, parts: [&[u8]; 4], deadline: Instant) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut done = 0;
        while done < total {
            let mut skip = done;
            let mut slices = parts.map(|part| {
                let from = skip.min(part.len());
                skip -= from;
                libc::iovec { iov_base: part[from..].as_ptr().cast_mut().cast(), iov_len: part.len() - from }
            });
            // SAFETY: all zero is a valid msghdr.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            (message.msg_iov, message.msg_iovlen) = (slices.as_mut_ptr(), slices.len());
            // SAFETY: the message names four slices that are valid for reads of their lengths.
            let sent =
                unsafe { libc::sendmsg(self.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            match usize::try_from(sent) {
                Ok(sent) => done += sent,
                Err(_) => {
                    try_again(io::Error::last_os_error())?;
                    wait(self, libc::POLLOUT, Some(deadline))?;
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        let spin_until = Instant::now() + SPIN;
        loop {
            // SAFETY: the buffer is valid for writes of its length.
            let got = unsafe {
                libc::recv(self.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
            };
            match got {
                1.. => return Ok(got as usize),
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                _ => try_again(io::Error::last_os_error())?,
            }
            if Instant::now() < spin_until {
                std::thread::yield_now();
            } else {
                wait(self, libc::POLLIN, deadline)?;
            }
        }
    }
}

fn try_again(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::WouldBlock => Ok(()),
        _ => Err(error),
    }
}

/// Sleeps until the socket is ready.
fn wait(stream: &TcpStream, events: libc::c_short, deadline: Option<Instant>) -> io::Result<()> {
    let limit_ms = match deadline {
        None => -1,
        Some(deadline) => {
            let left = deadline.checked_duration_since(Instant::now()).ok_or(ErrorKind::TimedOut)?;
            libc::c_int::try_from(left.as_millis() + 1).unwrap_or(libc::c_int::MAX)
        }
    };
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 };
    // SAFETY: one valid pollfd.
    match unsafe { libc::poll(&mut poll, 1, limit_ms) } {
        0 => Err(ErrorKind::TimedOut.into()),
        1.. => Ok(()),
        _ => try_again(io::Error::last_os_error()),
    }
}

/// Why a message was not sent or received.
#[derive(Debug)]
pub(crate) enum Fault {
    Io(io::Error),
    Proto(ProtoError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ProtoError> for Fault {
    fn from(error: ProtoError) -> Self {
        Self::Proto(error)
    }
}

/// A header that has arrived, not yet to be believed: its payload is next.
pub(crate) struct Incoming {
    pub(crate) header: Header,
    raw: [u8; HEADER_BYTES],
}

/// One end of a connection.
pub(crate) struct Channel<W> {
    pub(crate) wire: W,
    seals: Option<Seals>,
    inbox: [u8; INBOX_BYTES],
    start: usize,
    end: usize,
}

impl<W: Wire> Channel<W> {
    /// A connection that is not sealed yet.
    pub(crate) fn new(wire: W) -> Self {
        Self { wire, seals: None, inbox: [0; INBOX_BYTES], start: 0, end: 0 }
    }

    /// Seals everything from now on. What arrived too early was not sealed.
    ///
    /// # Errors
    /// [`ProtoError::Forged`] if there is such.
    pub(crate) fn secure(&mut self, seals: Seals) -> Result<(), ProtoError> {
        if self.start < self.end {
            return Err(ProtoError::Forged);
        }
        self.seals = Some(seals);
        Ok(())
    }

    /// Whether messages are sealed.
    pub(crate) fn is_secure(&self) -> bool {
        self.seals.is_some()
    }

    /// The connection and its keys, for somebody else to go on with; none if something unasked has arrived.
    pub(crate) fn into_parts(self) -> Option<(W, Option<Seals>)> {
        (self.start == self.end).then_some((self.wire, self.seals))
    }

    /// Sends a message whose payload is `clear`, then `data`. Sealing encrypts `data` in place.
    pub(crate) fn send(
        &mut self,
        header: &Header,
        clear: &[u8],
        data: &mut [u8],
        deadline: Instant,
    ) -> Result<(), Fault> {
        if self.seals.is_none() {
            return self.send_plain(header, clear, data, deadline);
        }
        let (raw, tag) = self.seal(header, clear, data)?;
        Ok(self.wire.send([&raw, clear, data, &tag], deadline)?)
    }

    fn seal(
        &mut self,
        header: &Header,
        clear: &[u8],
        data: &mut [u8],
    ) -> Result<([u8; HEADER_BYTES], [u8; TAG_BYTES]), Fault> {
        let raw = header.encode_sealed();
        let seals = self.seals.as_mut().ok_or(ProtoError::Forged)?;
        let tag = seals.send.seal(&raw, clear, data)?;
        Ok((raw, tag))
    }

    fn send_plain(
        &mut self,
        header: &Header,
        clear: &[u8],
        data: &[u8],
        deadline: Instant,
    ) -> Result<(), Fault> {
        Ok(self.wire.send([&header.encode(clear, data), clear, data, &[]], deadline)?)
    }

    /// [`Channel::send`] of data that must stay as it is; `stage` takes what is sealed, and grows if need be.
    pub(crate) fn send_copy(
        &mut self,
        header: &Header,
        clear: &[u8],
        data: &[u8],
        stage: &mut Vec<u8>,
        deadline: Instant,
    ) -> Result<(), Fault> {
        if self.seals.is_none() {
            return self.send_plain(header, clear, data, deadline);
        }
        stage.clear();
        stage.extend_from_slice(data);
        self.send(header, clear, stage, deadline)
    }

    /// Waits for a header: for its first byte until `begin`, or for ever; for the rest at most `patience` more.
    pub(crate) fn header(&mut self, begin: Option<Instant>, patience: Duration) -> Result<Incoming, Fault> {
        if self.start == self.end {
            self.start = 0;
            self.end = self.wire.receive(&mut self.inbox, begin)?;
        }
        let mut raw = [0; HEADER_BYTES];
        self.take(&mut raw, Instant::now() + patience)?;
        Ok(Incoming { header: Header::decode(&raw)?, raw })
    }

    /// Receives the payload of a header into `buffer`, which is as long as it, and checks the whole message.
    pub(crate) fn payload(
        &mut self,
        incoming: &Incoming,
        buffer: &mut [u8],
        deadline: Instant,
    ) -> Result<(), Fault> {
        if buffer.len() != incoming.header.payload_bytes as usize {
            return Err(ProtoError::Body.into());
        }
        self.take(buffer, deadline)?;
        if self.seals.is_none() {
            return Ok(incoming.header.verify(&incoming.raw, buffer, &[])?);
        }
        let mut tag = [0; TAG_BYTES];
        self.take(&mut tag, deadline)?;
        let (clear, data) = buffer.split_at_mut(incoming.header.clear_bytes());
        let seals = self.seals.as_mut().ok_or(ProtoError::Forged)?;
        Ok(seals.receive.open(&incoming.raw, clear, data, &tag)?)
    }

    /// Fills `buffer` from what was read ahead, then from the wire: a long rest goes straight to its place.
    fn take(&mut self, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
        loop {
            let ahead = &self.inbox[self.start..self.end];
            let (now, later) = buffer.split_at_mut(ahead.len().min(buffer.len()));
            now.copy_from_slice(&ahead[..now.len()]);
            self.start += now.len();
            buffer = later;
            if buffer.is_empty() {
                return Ok(());
            }
            if buffer.len() >= INBOX_BYTES {
                let got = self.wire.receive(buffer, Some(deadline))?;
                buffer = &mut buffer[got..];
            } else {
                self.start = 0;
                self.end = 0;
                self.end = self.wire.receive(&mut self.inbox, Some(deadline))?;
            }
            // A peer that sends a byte now and then must not keep us for ever.
            if !buffer.is_empty() && Instant::now() > deadline {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }
}
