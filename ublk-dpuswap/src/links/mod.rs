//! What connects a queue's io_uring with the nodes: pages are read and written without a thread of their own, and many
//! operations are in flight on each connection.
//!
//! The invariants: every operation that [`Links::read`] or [`Links::write`] started arrives once, by [`Links::next`], with
//! its data or an error, whatever its node does; a node that closes, hangs up or sends garbage costs the operations of its
//! own link and nothing else; memory that the kernel was given stays until the kernel has given it back, also when its
//! link was closed and opened anew meanwhile; and nothing allocates but [`Links::open`].
//!
//! A turn of the queue: [`Links::completed`] for what the ring says, [`Links::next`] until there is nothing, new requests,
//! [`Links::submit`]. A socket has one receive and one send in the kernel; what is requested meanwhile goes with the next
//! send. Protocols are a [`LinkCodec`] each.

mod api;
mod buffer;
mod conn;
pub mod dpsw;
mod file;
pub mod nbd;
mod ops;
mod outbox;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use ublk_target::QueueIo;

use crate::proto::{Opcode, Status};
use crate::remote::RemoteError;
use crate::units::{BLOCK_BYTES, NodeId, RemoteBlock};
use buffer::Buffer;
use conn::{Connection, Found};
use file::{Ended, FileLink};
use ops::{Op, Ops};

pub use api::{Arrival, LinkCodec, LinkMemory, LinkStart, Parsed, Refusal};
pub use outbox::Outbox;

/// Tokens of the links' operations, from the first one that [`Links::new`] was given.
pub const LINK_TOKENS: u64 = 1 << 40;

// A token, above the first: what it is about, the connection, which use of its buffers.
const CONN_SHIFT: u32 = 8;
const KIND_SHIFT: u32 = 22;
const GENERATION_SHIFT: u32 = 24;
const MAX_CONNS: usize = 1 << (KIND_SHIFT - CONN_SHIFT);
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const TRANSFER: u64 = 2;

const BUSY: Status = Status::Busy;

/// The ways to a node, and what each needs.
enum Way {
    Socket(Connection),
    File(Box<FileLink>),
    Memory(Arc<dyn LinkMemory>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In use.
    Open,
    /// The node will say no more; what it has said counts.
    Ending,
    /// Its operations are to fail.
    Failing,
    /// Nothing is in flight, in the kernel neither: the buffers may be used for another link.
    Over,
}

/// A link, open or not.
struct Link {
    way: Way,
    node: NodeId,
    state: State,
    generation: u16,
    in_flight: usize,
    /// Why it ended: for the first operation that fails of it.
    why: Option<RemoteError>,
}

/// The end of an operation that does not lie in an inbox.
struct Ready {
    id: u32,
    what: What,
}

enum What {
    /// In a memory node, to be read when it is asked for.
    Read(RemoteBlock, u32),
    Written(Result<(), RemoteError>),
    /// In the piece of a file link's buffer.
    Transferred(u8, Result<(), RemoteError>),
}

/// Where an arrival's data lies.
enum Data {
    None,
    Inbox { used: usize, range: Range<usize> },
    Piece(u8),
    Memory(RemoteBlock, u32),
}

/// The links of one queue to all nodes.
pub struct Links {
    links: Vec<Link>,
    /// By node: its open link.
    by_node: Vec<Option<u16>>,
    ops: Ops,
    ready: VecDeque<Ready>,
    first_token: u64,
    /// A link may be failing.
    failing: bool,
    /// What is read from memory nodes; made when the first one opens.
    scratch: Option<Buffer>,
}

impl Links {
    /// Links to nodes `0..nodes`, none open; `ops` operations may be in flight over all (at most 65536). They use the tokens
    /// from `first_token` to [`LINK_TOKENS`] more. Buffers are made when a link opens: 4.2 MiB for a socket, 4 MiB for a
    /// file, 1 MiB for all memory nodes together.
    pub fn new(nodes: usize, ops: usize, first_token: u64) -> Links {
        let ops = Ops::new(ops);
        let ready = VecDeque::with_capacity(ops.capacity());
        let by_node = vec![None; nodes];
        Links { links: Vec::new(), by_node, ops, ready, first_token, failing: false, scratch: None }
    }

    /// Opens a link, in place of the one that the node had. The only thing here that allocates, unless it finds the buffers of
    /// a link that is over.
    ///
    /// # Errors
    /// `EINVAL` for a node that is not there; the kernel's about the socket, or that the ring takes no more.
    pub fn open(&mut self, node: NodeId, start: LinkStart, io: &mut dyn QueueIo) -> io::Result<()> {
        if usize::from(node.0) >= self.by_node.len() || self.links.len() >= MAX_CONNS {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.close(node);
        let index = self.place(node, start)?;
        if let Some(slot) = self.by_node.get_mut(usize::from(node.0)) {
            *slot = Some(index as u16);
        }
        self.submit_link(index, io);
        if self.is_open(node) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ECANCELED)) }
    }

    /// A link in the buffers of one that is over, or in new ones.
    fn place(&mut self, node: NodeId, start: LinkStart) -> io::Result<usize> {
        if matches!(start, LinkStart::Memory(_)) && self.scratch.is_none() {
            self.scratch = Some(Buffer::new(BLOCK_BYTES));
        }
        let fits = |link: &Link| {
            let fits = matches!(
                (&link.way, &start),
                (Way::Socket(_), LinkStart::Socket { .. })
                    | (Way::File(_), LinkStart::File(_))
                    | (Way::Memory(_), LinkStart::Memory(_))
            );
            fits && link.state == State::Over
        };
        if let Some((index, link)) = self.links.iter_mut().enumerate().find(|(_, link)| fits(link)) {
            match (&mut link.way, start) {
                (Way::Socket(connection), LinkStart::Socket { socket, codec }) => {
                    connection.renew(socket, codec)?;
                }
                (Way::File(file), LinkStart::File(fd)) => file.renew(fd),
                (way, LinkStart::Memory(memory)) => *way = Way::Memory(memory),
                _ => {}
            }
            let generation = link.generation.wrapping_add(1);
            (link.node, link.state, link.generation, link.why) = (node, State::Open, generation, None);
            return Ok(index);
        }
        let way = match start {
            LinkStart::Socket { socket, codec } => Way::Socket(Connection::new(socket, codec)?),
            LinkStart::File(file) => Way::File(Box::new(FileLink::new(file))),
            LinkStart::Memory(memory) => Way::Memory(memory),
        };
        self.links.push(Link { way, node, state: State::Open, generation: 0, in_flight: 0, why: None });
        Ok(self.links.len() - 1)
    }

    /// Closes a node's link: its operations arrive as [`RemoteError::NotConnected`].
    pub fn close(&mut self, node: NodeId) {
        if let Some(index) = self.index(node) {
            self.fail(index, RemoteError::NotConnected);
        }
    }

    /// Whether operations can be started on a node's link.
    pub fn is_open(&self, node: NodeId) -> bool {
        let link = self.index(node).and_then(|index| self.links.get(index));
        link.is_some_and(|link| link.state == State::Open)
    }

    fn index(&self, node: NodeId) -> Option<usize> {
        self.by_node.get(usize::from(node.0)).copied().flatten().map(usize::from)
    }

    /// Starts to read `len_bytes` bytes from byte `offset_bytes` of a block; it arrives with `op`.
    ///
    /// # Errors
    /// [`RemoteError::NotConnected`], or a refusal: `BadRequest` for a range that is not within a block, `Busy` when too many
    /// operations or bytes are in flight. It was not started then.
    pub fn read(
        &mut self,
        node: NodeId,
        block: RemoteBlock,
        offset_bytes: u32,
        len_bytes: u32,
        op: u32,
    ) -> Result<(), RemoteError> {
        let len = len_bytes as usize;
        let (index, id) = self.start(node, Opcode::Read, offset_bytes, len, op)?;
        let Some(link) = self.links.get_mut(index) else { return Err(RemoteError::NotConnected) };
        let started = match &mut link.way {
            Way::Socket(connection) => {
                connection.request(|codec, out| codec.read(id, block, offset_bytes, len_bytes, out))
            }
            Way::File(file) => file.start(id, Opcode::Read, block, offset_bytes, len, &[]),
            Way::Memory(_) => {
                self.ready.push_back(Ready { id, what: What::Read(block, offset_bytes) });
                true
            }
        };
        self.started(index, id, Opcode::Read, started)
    }

    /// Starts to write `data`, which is copied, at byte `offset_bytes` of a block; it arrives with `op`.
    ///
    /// # Errors
    /// As [`Links::read`].
    pub fn write(
        &mut self,
        node: NodeId,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
        op: u32,
    ) -> Result<(), RemoteError> {
        let (index, id) = self.start(node, Opcode::Write, offset_bytes, data.len(), op)?;
        let Some(link) = self.links.get_mut(index) else { return Err(RemoteError::NotConnected) };
        let started = match &mut link.way {
            Way::Socket(connection) => {
                connection.request(|codec, out| codec.write(id, block, offset_bytes, data, out))
            }
            Way::File(file) => file.start(id, Opcode::Write, block, offset_bytes, data.len(), data),
            Way::Memory(memory) => {
                let result = memory.write(block, offset_bytes, data);
                self.ready.push_back(Ready { id, what: What::Written(result) });
                true
            }
        };
        self.started(index, id, Opcode::Write, started)
    }

    fn start(
        &mut self,
        node: NodeId,
        opcode: Opcode,
        offset_bytes: u32,
        len: usize,
        caller: u32,
    ) -> Result<(usize, u32), RemoteError> {
        let index = self.index(node).filter(|_| self.is_open(node)).ok_or(RemoteError::NotConnected)?;
        if len == 0 || (offset_bytes as usize).saturating_add(len) > BLOCK_BYTES {
            return Err(RemoteError::Refused(opcode, Status::BadRequest));
        }
        let answer_bytes = if opcode == Opcode::Read { len } else { 0 };
        let op = Op { caller, conn: index as u16, answer_bytes };
        let id = self.ops.start(op).ok_or(RemoteError::Refused(opcode, BUSY))?;
        Ok((index, id))
    }

    fn started(&mut self, index: usize, id: u32, opcode: Opcode, started: bool) -> Result<(), RemoteError> {
        if !started {
            self.ops.finish(id);
            return Err(RemoteError::Refused(opcode, BUSY));
        }
        if let Some(link) = self.links.get_mut(index) {
            link.in_flight += 1;
        }
        Ok(())
    }

    /// Hands the ring what was requested, and room to receive. To be called at the end of every turn, when [`Links::next`] has
    /// nothing more: what has arrived and was not asked for takes room.
    pub fn submit(&mut self, io: &mut dyn QueueIo) {
        for index in 0..self.links.len() {
            self.submit_link(index, io);
        }
    }

    fn submit_link(&mut self, index: usize, io: &mut dyn QueueIo) {
        let (receive, send) = (self.token(index, RECEIVE, 0), self.token(index, SEND, 0));
        let transfer = self.token(index, TRANSFER, 0);
        let Some(link) = self.links.get_mut(index) else { return };
        if link.state != State::Open {
            return;
        }
        let submitted = match &mut link.way {
            Way::Socket(connection) => connection.submit(io, receive, send),
            Way::File(file) => file.submit(io, |piece| transfer + u64::from(piece)),
            Way::Memory(_) => Ok(()),
        };
        if let Err(error) = submitted {
            self.fail(index, error);
        }
    }

    fn token(&self, index: usize, kind: u64, piece: u8) -> u64 {
        let generation = self.links.get(index).map_or(0, |link| link.generation);
        let token = u64::from(generation) << GENERATION_SHIFT
            | kind << KIND_SHIFT
            | (index as u64) << CONN_SHIFT
            | u64::from(piece);
        self.first_token + token
    }

    /// Whether an operation of the ring is of these links.
    pub fn owns(&self, token: u64) -> bool {
        token.checked_sub(self.first_token).is_some_and(|token| token < LINK_TOKENS)
    }

    /// One of the links' operations in the ring ended.
    pub fn completed(&mut self, token: u64, result: i32, _io: &mut dyn QueueIo) {
        let Some(token) = token.checked_sub(self.first_token).filter(|token| *token < LINK_TOKENS) else {
            return;
        };
        let index = (token >> CONN_SHIFT) as usize % MAX_CONNS;
        let (piece, kind) = (token as u8, token >> KIND_SHIFT & 3);
        let Some(link) = self.links.get_mut(index) else { return };
        if u64::from(link.generation) != token >> GENERATION_SHIFT {
            return;
        }
        let open = link.state == State::Open;
        let ended = match &mut link.way {
            Way::Socket(connection) if kind == RECEIVE => connection.received(result),
            Way::Socket(connection) => connection.sent(result),
            Way::File(file) => {
                if let Ended::Over { id, result } = file.completed(piece, result)
                    && open
                {
                    self.ready.push_back(Ready { id, what: What::Transferred(piece, result) });
                }
                Ok(())
            }
            Way::Memory(_) => Ok(()),
        };
        match ended {
            // What the node said before it hung up still counts.
            Err(error) if open => {
                link.state = State::Ending;
                link.why = Some(error);
            }
            _ => self.settle(index),
        }
    }

    /// What has arrived: the end of an operation that was started. To be called until there is nothing more.
    #[expect(clippy::should_implement_trait, reason = "what it gives borrows from the links")]
    pub fn next(&mut self) -> Option<Arrival<'_>> {
        while let Some(Ready { id, what }) = self.ready.pop_front() {
            // One whose link was closed arrives below.
            let Some(op) = self.ops.get(id) else { continue };
            let (data, result) = match what {
                What::Read(block, offset_bytes) => (Data::Memory(block, offset_bytes), Ok(())),
                What::Written(result) => (Data::None, result),
                What::Transferred(piece, result) => (Data::Piece(piece), result),
            };
            return Some(self.arrive(usize::from(op.conn), id, data, result));
        }
        for index in 0..self.links.len() {
            match self.look(index) {
                Ok(Some((id, data, result))) => return Some(self.arrive(index, id, data, result)),
                Ok(None) => {}
                Err(error) => self.fail(index, error),
            }
        }
        if self.failing {
            let links = &self.links;
            let failing =
                |index: u16| links.get(usize::from(index)).is_some_and(|link| link.state == State::Failing);
            if let Some((id, op)) = self.ops.find(failing).and_then(|id| Some((id, self.ops.get(id)?))) {
                let index = usize::from(op.conn);
                let why = self.links.get_mut(index).and_then(|link| link.why.take());
                return Some(self.arrive(
                    index,
                    id,
                    Data::None,
                    Err(why.unwrap_or(RemoteError::NotConnected)),
                ));
            }
            self.failing = false;
        }
        None
    }

    /// Looks for an answer that has arrived on a link.
    #[expect(clippy::type_complexity, reason = "the three parts of an arrival")]
    fn look(&mut self, index: usize) -> Result<Option<(u32, Data, Result<(), RemoteError>)>, RemoteError> {
        let Some(link) = self.links.get_mut(index) else { return Ok(None) };
        let (Way::Socket(connection), State::Open | State::Ending) = (&mut link.way, link.state) else {
            return Ok(None);
        };
        match connection.look()? {
            Found::Nothing if link.state == State::Ending => {
                Err(link.why.take().unwrap_or(RemoteError::NotConnected))
            }
            Found::Nothing => Ok(None),
            Found::Answer { used, id, result } => {
                let op =
                    self.ops.get(id).filter(|op| usize::from(op.conn) == index).ok_or(RemoteError::Mixed)?;
                match result {
                    Ok(range) if range.len() == op.answer_bytes => {
                        Ok(Some((id, Data::Inbox { used, range }, Ok(()))))
                    }
                    Ok(_) => Err(RemoteError::Mixed),
                    Err((opcode, status)) => {
                        let range = 0..0;
                        Ok(Some((id, Data::Inbox { used, range }, Err(RemoteError::Refused(opcode, status)))))
                    }
                }
            }
        }
    }

    /// The operation `id` ends.
    fn arrive(&mut self, index: usize, id: u32, data: Data, result: Result<(), RemoteError>) -> Arrival<'_> {
        let op = self.ops.finish(id);
        let (caller, len) = op.map_or((0, 0), |op| (op.caller, op.answer_bytes));
        if let Some(link) = self.links.get_mut(index) {
            link.in_flight = link.in_flight.saturating_sub(1);
        }
        self.settle(index);
        let Some(link) = self.links.get_mut(index) else {
            return Arrival { op: caller, node: NodeId(u16::MAX), result: Err(RemoteError::NotConnected) };
        };
        let node = link.node;
        let bytes: &mut [u8] = match (data, &mut link.way) {
            (Data::Inbox { used, range }, Way::Socket(connection)) => connection.take(used, range),
            (Data::Piece(piece), Way::File(file)) => file.take(piece),
            (Data::Memory(block, offset_bytes), Way::Memory(memory)) => {
                // SAFETY: the kernel knows nothing of it.
                let bytes =
                    self.scratch.as_mut().map(|scratch| unsafe { scratch.slice(0..len) }).unwrap_or_default();
                return Arrival {
                    op: caller,
                    node,
                    result: memory.read(block, offset_bytes, bytes).map(|()| bytes),
                };
            }
            _ => &mut [],
        };
        Arrival { op: caller, node, result: result.map(|()| bytes) }
    }

    /// A link is broken, or closed: its operations are to fail.
    fn fail(&mut self, index: usize, why: RemoteError) {
        let Some(link) = self.links.get_mut(index) else { return };
        link.state = State::Failing;
        link.why = Some(why);
        self.failing = true;
        let node = usize::from(link.node.0);
        match &mut link.way {
            Way::Socket(connection) => connection.shut_down(),
            Way::File(_) | Way::Memory(_) => {
                let ops = &self.ops;
                self.ready.retain(|ready| ops.get(ready.id).is_some_and(|op| usize::from(op.conn) != index));
            }
        }
        if let Some(slot) = self.by_node.get_mut(node)
            && *slot == Some(index as u16)
        {
            *slot = None;
        }
        self.settle(index);
    }

    /// A link that failed is over once nothing of it is in flight.
    fn settle(&mut self, index: usize) {
        let Some(link) = self.links.get_mut(index) else { return };
        if link.state != State::Failing || link.in_flight > 0 || link.way.in_kernel() {
            return;
        }
        link.state = State::Over;
        match &mut link.way {
            Way::Socket(connection) => connection.release(),
            Way::File(file) => file.release(),
            Way::Memory(_) => {}
        }
    }

    /// Whether an operation with the caller's number `op` was started and has not arrived. Looks at all of them.
    pub fn is_under_way(&self, op: u32) -> bool {
        self.ops.any(|under_way| under_way.caller == op)
    }

    /// Operations that have not arrived.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }
}

impl Way {
    fn in_kernel(&self) -> bool {
        match self {
            Way::Socket(connection) => connection.in_kernel(),
            Way::File(file) => file.in_kernel(),
            Way::Memory(_) => false,
        }
    }
}

impl Drop for Links {
    /// A queue stops its handler only when the ring has nothing in flight. Links that go earlier leave the kernel its memory.
    fn drop(&mut self) {
        for link in self.links.drain(..) {
            if link.way.in_kernel() {
                log::error!(
                    "a link to node {} went while the kernel was at work: its buffers stay",
                    link.node
                );
                std::mem::forget(link);
            }
        }
    }
}
