//! A connection to a node: one receive and one send in the kernel, everything else waits its turn.
//!
//! The invariants: while the kernel sends from one outbox, only the other is written to; while it receives, only what it
//! has received before is looked at; the socket and the buffers stay until both have ended.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, types};
use ublk_target::QueueIo;

use super::buffer::Inbox;
use super::outbox::Outbox;
use super::{LinkCodec, Parsed, Refusal};
use crate::proto::Opcode;
use crate::remote::RemoteError;
use crate::units::BLOCK_BYTES;

/// Room for everything that arrives between two turns: at least one answer of 1 MiB, its header, and as much again.
const INBOX_BYTES: usize = 2 * BLOCK_BYTES + (64 << 10);
/// Room for one write of 1 MiB and small requests.
const OUTBOX_BYTES: usize = BLOCK_BYTES + (64 << 10);
/// A receive has at least this room, or what the message lacks.
const RECEIVE_BYTES: usize = 64 << 10;

/// A socket with its protocol and buffers.
pub(super) struct Connection {
    /// `None` between two uses.
    socket: Option<OwnedFd>,
    codec: Box<dyn LinkCodec>,
    inbox: Inbox,
    /// Filled by the caller, sent by the kernel.
    out: [Outbox; 2],
    /// Which of `out` the caller fills; the other one is being sent, or empty.
    filling: usize,
    /// Bytes that the kernel has sent of the other one.
    sent: usize,
    sending: bool,
    receiving: bool,
    /// What must have arrived before another look at it makes sense.
    needed: usize,
}

/// What a look at the arrived bytes found.
pub(super) enum Found {
    /// Nothing that is whole.
    Nothing,
    /// An answer: bytes it takes, whose it is, where its data lies.
    Answer { used: usize, id: u32, result: Result<Range<usize>, Refusal> },
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, codec: Box<dyn LinkCodec>) -> io::Result<Self> {
        blocking(&socket)?;
        Ok(Self {
            socket: Some(socket),
            codec,
            inbox: Inbox::new(INBOX_BYTES),
            out: [Outbox::new(OUTBOX_BYTES), Outbox::new(OUTBOX_BYTES)],
            filling: 0,
            sent: 0,
            sending: false,
            receiving: false,
            needed: 1,
        })
    }

    /// Another connection in the buffers of one that is over.
    pub(super) fn renew(&mut self, socket: OwnedFd, codec: Box<dyn LinkCodec>) -> io::Result<()> {
        debug_assert!(!self.in_kernel());
        blocking(&socket)?;
        self.socket = Some(socket);
        self.codec = codec;
        self.inbox.clear();
        self.out.iter_mut().for_each(Outbox::clear);
        (self.sent, self.needed) = (0, 1);
        Ok(())
    }

    /// Ends what the kernel does with the socket.
    pub(super) fn shut_down(&mut self) {
        if let Some(socket) = &self.socket {
            // SAFETY: a call on a descriptor of ours. One that is no longer connected has nothing to end.
            unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }

    /// Closes the socket, once the kernel has no operation on it.
    pub(super) fn release(&mut self) {
        self.socket = None;
    }

    pub(super) fn in_kernel(&self) -> bool {
        self.sending || self.receiving
    }

    /// Queues a request; `false` if there is no room.
    pub(super) fn request(&mut self, put: impl FnOnce(&mut dyn LinkCodec, &mut Outbox) -> bool) -> bool {
        self.out.get_mut(self.filling).is_some_and(|out| put(&mut *self.codec, out))
    }

    /// Hands the kernel what it can take: room to receive, and what there is to send.
    pub(super) fn submit(
        &mut self,
        io: &mut dyn QueueIo,
        receive: u64,
        send: u64,
    ) -> Result<(), RemoteError> {
        if !self.receiving {
            let missing = self.needed.saturating_sub(self.inbox.bytes().len());
            let (at, len) = self.inbox.room(RECEIVE_BYTES.max(missing));
            // A full inbox is one whose caller has not looked yet.
            if len > 0 {
                let entry = opcode::Recv::new(self.fd(), at, len as u32).build();
                // SAFETY: the room stays, untouched, until the receive has ended; so does the socket.
                unsafe { io.push(entry, receive) }
                    .map_err(|error| RemoteError::from_io(Opcode::Read, error))?;
                self.receiving = true;
            }
        }
        if self.sending {
            return Ok(());
        }
        if self.unsent().is_empty() {
            self.filling ^= 1;
            self.sent = 0;
        }
        let unsent = self.unsent();
        if !unsent.is_empty() {
            let (at, len) = (unsent.as_ptr(), unsent.len() as u32);
            let entry = opcode::Send::new(self.fd(), at, len).flags(libc::MSG_NOSIGNAL).build();
            // SAFETY: the outbox stays, and is not written to, until the send has ended; so does the socket.
            unsafe { io.push(entry, send) }.map_err(|error| RemoteError::from_io(Opcode::Write, error))?;
            self.sending = true;
        }
        Ok(())
    }

    /// What of the outbox that is not being filled is still to be sent.
    fn unsent(&self) -> &[u8] {
        self.out.get(self.filling ^ 1).and_then(|out| out.bytes().get(self.sent..)).unwrap_or_default()
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.socket.as_ref().map_or(-1, |socket| socket.as_raw_fd()))
    }

    /// A receive ended.
    pub(super) fn received(&mut self, result: i32) -> Result<(), RemoteError> {
        self.receiving = false;
        match ended(Opcode::Read, result)? {
            Some(0) => Err(RemoteError::Closed),
            Some(bytes) => {
                self.inbox.filled(bytes);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A send ended.
    pub(super) fn sent(&mut self, result: i32) -> Result<(), RemoteError> {
        self.sending = false;
        self.sent += ended(Opcode::Write, result)?.unwrap_or(0);
        if self.unsent().is_empty()
            && let Some(out) = self.out.get_mut(self.filling ^ 1)
        {
            out.clear();
            self.sent = 0;
        }
        Ok(())
    }

    /// Whether a look at what has arrived makes sense.
    pub(super) fn has_news(&mut self) -> bool {
        let needed = self.needed;
        self.inbox.bytes().len() >= needed
    }

    /// Looks at what has arrived.
    pub(super) fn look(&mut self) -> Result<Found, RemoteError> {
        if !self.has_news() {
            return Ok(Found::Nothing);
        }
        let capacity = self.inbox.capacity();
        let bytes = self.inbox.bytes();
        let len = bytes.len();
        match self.codec.parse(bytes)? {
            Parsed::More(needed) if needed > len && needed <= capacity => {
                self.needed = needed;
                Ok(Found::Nothing)
            }
            Parsed::Message { used, id, result } if (1..=len).contains(&used) => {
                let within =
                    result.as_ref().map_or(true, |range| range.start <= range.end && range.end <= used);
                if within { Ok(Found::Answer { used, id, result }) } else { Err(RemoteError::Mixed) }
            }
            _ => Err(RemoteError::Mixed),
        }
    }

    /// Takes the answer that was found; gives its data.
    pub(super) fn take(&mut self, used: usize, range: Range<usize>) -> &mut [u8] {
        self.needed = 1;
        self.inbox.consume(used, range)
    }
}

/// The bytes an operation moved; `None` if it is to be tried again.
pub(super) fn ended(opcode: Opcode, result: i32) -> Result<Option<usize>, RemoteError> {
    match usize::try_from(result) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => Ok(None),
        Err(_) => Err(RemoteError::from_io(opcode, io::Error::from_raw_os_error(result.saturating_neg()))),
    }
}

/// With `O_NONBLOCK` the ring would say `EAGAIN` where it is to wait.
fn blocking(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain calls on a descriptor of ours.
    let set = unsafe {
        let flags = libc::fcntl(socket.as_raw_fd(), libc::F_GETFL);
        flags >= 0 && libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) >= 0
    };
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}
