//! The TCP client of a node: one connection per lane, opened ahead, blocking, with time-outs on everything.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::address::Address;
use super::{Lane, RemoteError, RemoteNode, Reserved};
use crate::error::Error;
use crate::links::{LinkStart, dpsw::DpswCodec};
use crate::proto::{
    self, Header, Hello, Info, MAX_BLOCKS_PER_MESSAGE, MAX_CONTROL_BYTES, Opcode, ProtoError, RANGE_BYTES,
    Range, Status,
};
use crate::secure::{Initiator, Security};
use crate::units::{BLOCK_BYTES, RemoteBlock};
use crate::wire::{Channel, Fault, Wire};

/// Most unfinished writes of a lane.
pub const MAX_UNFINISHED: usize = 16;
/// Most pages of HELD: as many blocks as any node has. More is a node that counts in circles.
const MAX_HELD_PAGES: u32 = (4 << 20) / MAX_BLOCKS_PER_MESSAGE as u32 + 1;

/// A socket of our own, as a wire.
struct Socket(TcpStream);

impl Wire for Socket {
    fn send(&mut self, parts: [&[u8]; 4], deadline: Instant) -> std::io::Result<()> {
        (&mut &self.0).send(parts, deadline)
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Option<Instant>) -> std::io::Result<usize> {
        (&mut &self.0).receive(buffer, deadline)
    }
}

/// An open lane.
struct Open {
    channel: Channel<Socket>,
    /// Where data is sealed: it must not change under the caller.
    stage: Vec<u8>,
    unfinished: VecDeque<u64>,
}

/// A node reached over TCP.
pub struct TcpNode {
    name: String,
    address: Address,
    timeout: Duration,
    client_id: u64,
    grace_s: u32,
    security: Security,
    incarnation: AtomicU64,
    request_id: AtomicU64,
    lanes: [Mutex<Option<Box<Open>>>; Lane::COUNT],
    /// Epoch and lease that the lanes found.
    current: Mutex<Option<(u64, u64)>>,
}

impl TcpNode {
    /// A node at `HOST:PORT`, for a client with this id whose last incarnation is given (0 for a new client).
    /// Connects nothing, and looks nothing up: a name that cannot be resolved is [`RemoteError::Resolve`] when the node is
    /// connected. `timeout` bounds every request.
    ///
    /// # Errors
    /// The name is not `HOST:PORT`.
    pub fn new(
        name: &str,
        client_id: u64,
        incarnation: u64,
        timeout: Duration,
        security: Security,
    ) -> Result<Self, Error> {
        let bad = |source| Error::NodeName { node: name.to_owned(), source };
        let address = Address::new(name).map_err(bad)?;
        Ok(Self {
            name: name.to_owned(),
            address,
            timeout,
            client_id,
            grace_s: 0,
            security,
            incarnation: AtomicU64::new(incarnation),
            request_id: AtomicU64::new(1),
            lanes: std::array::from_fn(|_| Mutex::new(None)),
            current: Mutex::new(None),
        })
    }

    /// Asks the node to keep the blocks for this long after the last connection is gone; at most its own maximum,
    /// which is what it does unasked.
    pub fn with_grace(self, grace_s: u32) -> Self {
        Self { grace_s, ..self }
    }

    /// The incarnation of the last `connect`.
    pub fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::SeqCst)
    }

    fn lane(&self, lane: Lane) -> Result<MutexGuard<'_, Option<Box<Open>>>, RemoteError> {
        let lane = self.lanes.get(lane.0).ok_or(RemoteError::NotConnected)?;
        Ok(lane.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn current(&self) -> MutexGuard<'_, Option<(u64, u64)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Channel<Socket>, RemoteError> {
        Ok(Channel::new(Socket(self.address.connect(self.timeout)?)))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn next_id(&self) -> u64 {
        self.request_id.fetch_add(1, Ordering::Relaxed)
    }

    /// One small request and its answer. `reply` must have room for the answer's payload, whose length is returned.
    fn exchange(
        &self,
        channel: &mut Channel<Socket>,
        opcode: Opcode,
        body: &mut [u8],
        reply: &mut [u8],
    ) -> Result<usize, RemoteError> {
        let (deadline, id) = (self.deadline(), self.next_id());
        let request = Header::request(opcode, id, body.len());
        let (clear, rest) = body.split_at_mut(request.clear_bytes());
        channel.send(&request, clear, rest, deadline).map_err(|fault| from_fault(opcode, fault))?;
        answer(channel, opcode, id, reply, deadline)
    }

    fn oldest_write(&self, lane: Lane) -> Option<u64> {
        self.lane(lane).ok()?.as_ref()?.unfinished.front().copied()
    }

    /// A lane with nothing unfinished does `work`; one on which anything but a refusal happened is closed.
    fn on_lane<T>(
        &self,
        lane: Lane,
        work: impl FnOnce(&mut Open) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let mut slot = self.lane(lane)?;
        let result = work(slot.as_mut().ok_or(RemoteError::NotConnected)?);
        if !matches!(result, Ok(_) | Err(RemoteError::Refused(..) | RemoteError::Unfinished)) {
            *slot = None;
        }
        result
    }

    fn transact(
        &self,
        lane: Lane,
        opcode: Opcode,
        body: &mut [u8],
        reply: &mut [u8],
    ) -> Result<usize, RemoteError> {
        self.on_lane(lane, |open| match open.unfinished.is_empty() {
            true => self.exchange(&mut open.channel, opcode, body, reply),
            false => Err(RemoteError::Unfinished),
        })
    }

    fn hello(&self, incarnation: u64) -> Result<(Channel<Socket>, Info), RemoteError> {
        let mut channel = self.open()?;
        let mut reply = [0; MAX_CONTROL_BYTES];
        if let Security::Psk(key) = &self.security {
            let (initiator, mut first) = Initiator::start(key)?;
            let len = self.exchange(&mut channel, Opcode::Secure, &mut first, &mut reply)?;
            channel.secure(initiator.finish(&reply[..len])?)?;
        }
        let block_bytes = BLOCK_BYTES as u32;
        let hello = Hello { client_id: self.client_id, incarnation, block_bytes, grace_s: self.grace_s };
        let len = self.exchange(&mut channel, Opcode::Hello, &mut hello.encode(), &mut reply)?;
        Ok((channel, Info::decode(&reply[..len])?))
    }
}

fn from_fault(opcode: Opcode, fault: Fault) -> RemoteError {
    match fault {
        Fault::Io(error) => RemoteError::from_io(opcode, error),
        Fault::Proto(error) => error.into(),
    }
}

/// Receives the answer to a request.
fn answer(
    channel: &mut Channel<Socket>,
    opcode: Opcode,
    id: u64,
    reply: &mut [u8],
    deadline: Instant,
) -> Result<usize, RemoteError> {
    let fault = |fault| from_fault(opcode, fault);
    let left = deadline.saturating_duration_since(Instant::now());
    let incoming = channel.header(Some(deadline), left).map_err(fault)?;
    let header = incoming.header;
    let payload = reply.get_mut(..header.payload_bytes as usize).ok_or(ProtoError::Body)?;
    channel.payload(&incoming, payload, deadline).map_err(fault)?;
    // Said before any request is read: they answer none in particular.
    if header.reply && matches!(header.status, Status::Busy | Status::Version) && header.request_id == 0 {
        return Err(RemoteError::Refused(opcode, header.status));
    }
    if !header.reply || header.request_id != id || header.opcode != opcode {
        return Err(RemoteError::Mixed);
    }
    match header.status {
        Status::Ok => Ok(payload.len()),
        status => Err(RemoteError::Refused(opcode, status)),
    }
}

impl RemoteNode for TcpNode {
    fn name(&self) -> &str {
        &self.name
    }

    fn connect(&self) -> Result<Info, RemoteError> {
        // A higher incarnation fences off whatever an older connection may still have on its way.
        let incarnation = self.incarnation.fetch_add(1, Ordering::SeqCst) + 1;
        *self.current() = None;
        let mut info: Option<Info> = None;
        for lane in 0..Lane::COUNT {
            let mut slot = self.lane(Lane(lane))?;
            *slot = None;
            let (channel, answer) = self.hello(incarnation)?;
            if info.is_some_and(|first| (first.epoch, first.lease) != (answer.epoch, answer.lease)) {
                return Err(RemoteError::Mixed);
            }
            info = Some(answer);
            // The control lane carries large data only in tests; the writers' must be there before memory is short.
            let stage = if channel.is_secure() && Lane(lane) != Lane::CONTROL { BLOCK_BYTES } else { 0 };
            let unfinished = VecDeque::with_capacity(MAX_UNFINISHED);
            *slot = Some(Box::new(Open { channel, stage: Vec::with_capacity(stage), unfinished }));
        }
        let info = info.ok_or(RemoteError::NotConnected)?;
        *self.current() = Some((info.epoch, info.lease));
        Ok(info)
    }

    fn disconnect(&self) {
        *self.current() = None;
        for lane in 0..Lane::COUNT {
            while let Some(ticket) = self.oldest_write(Lane(lane)) {
                if !matches!(self.finish_write(Lane(lane), ticket), Ok(()) | Err(RemoteError::Refused(..))) {
                    break;
                }
            }
            let _ = self.transact(Lane(lane), Opcode::Bye, &mut [], &mut []);
            if let Ok(mut slot) = self.lane(Lane(lane)) {
                *slot = None;
            }
        }
    }

    fn reserve(&self, lane: Lane, blocks: &mut [RemoteBlock]) -> Result<Reserved, RemoteError> {
        let wanted = blocks.len().min(MAX_BLOCKS_PER_MESSAGE) as u32;
        let mut reply = [0; MAX_CONTROL_BYTES];
        let len = match self.transact(lane, Opcode::Reserve, &mut wanted.to_le_bytes(), &mut reply) {
            // Nothing to be had now, for a reason that [`Info`] tells.
            Err(RemoteError::Refused(_, Status::Quota | Status::Draining)) => {
                return Ok(Reserved { granted: 0, free_blocks: 0 });
            }
            other => other?,
        };
        let (free_blocks, numbers) = proto::decode_list(&reply[..len])?;
        let mut granted = 0;
        for (slot, block) in blocks.iter_mut().zip(numbers) {
            *slot = block;
            granted += 1;
        }
        Ok(Reserved { granted, free_blocks })
    }

    fn release(&self, lane: Lane, blocks: &[RemoteBlock]) -> Result<u32, RemoteError> {
        let mut free_blocks = 0;
        for blocks in blocks.chunks(MAX_BLOCKS_PER_MESSAGE) {
            let (mut body, mut reply) = ([0; MAX_CONTROL_BYTES], [0; MAX_CONTROL_BYTES]);
            let body_len = proto::encode_list(0, blocks, &mut body);
            let len = self.transact(lane, Opcode::Release, &mut body[..body_len], &mut reply)?;
            free_blocks = proto::decode_list(&reply[..len])?.0;
        }
        Ok(free_blocks)
    }

    fn start_write(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
    ) -> Result<u64, RemoteError> {
        let range = Range { block, offset_bytes, len_bytes: data.len() as u32 };
        if data.len() > BLOCK_BYTES {
            return Err(RemoteError::Refused(Opcode::Write, Status::BadRequest));
        }
        self.on_lane(lane, |open| {
            if open.unfinished.len() >= MAX_UNFINISHED {
                return Err(RemoteError::Unfinished);
            }
            let id = self.next_id();
            let header = Header::request(Opcode::Write, id, RANGE_BYTES + data.len());
            let sent =
                open.channel.send_copy(&header, &range.encode(), data, &mut open.stage, self.deadline());
            sent.map_err(|fault| from_fault(Opcode::Write, fault))?;
            open.unfinished.push_back(id);
            Ok(id)
        })
    }

    fn finish_write(&self, lane: Lane, ticket: u64) -> Result<(), RemoteError> {
        self.on_lane(lane, |open| {
            // Begun on a lane that is gone: the answers here are to other writes.
            if open.unfinished.front() != Some(&ticket) {
                return Err(RemoteError::Unfinished);
            }
            open.unfinished.pop_front();
            answer(&mut open.channel, Opcode::Write, ticket, &mut [], self.deadline()).map(|_| ())
        })
    }

    fn read_at(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &mut [u8],
    ) -> Result<(), RemoteError> {
        let range = Range { block, offset_bytes, len_bytes: data.len() as u32 };
        let wanted = data.len();
        let len = self.transact(lane, Opcode::Read, &mut range.encode(), data)?;
        if len == wanted { Ok(()) } else { Err(ProtoError::Body.into()) }
    }

    fn stat(&self, lane: Lane) -> Result<Info, RemoteError> {
        let mut reply = [0; MAX_CONTROL_BYTES];
        let len = self.transact(lane, Opcode::Stat, &mut [], &mut reply)?;
        Ok(Info::decode(&reply[..len])?)
    }

    fn held(&self, lane: Lane, found: &mut dyn FnMut(RemoteBlock)) -> Result<(), RemoteError> {
        let mut from = 0_u32;
        for _ in 0..MAX_HELD_PAGES {
            let mut reply = [0; MAX_CONTROL_BYTES];
            let len = self.transact(lane, Opcode::Held, &mut from.to_le_bytes(), &mut reply)?;
            let (next, blocks) = proto::decode_list(&reply[..len])?;
            blocks.for_each(&mut *found);
            match next {
                0 => return Ok(()),
                next if next <= from => break,
                next => from = next,
            }
        }
        Err(ProtoError::Body.into())
    }

    fn open_link(&self, _queue: u16) -> Result<LinkStart, RemoteError> {
        let current = (*self.current()).ok_or(RemoteError::NotConnected)?;
        let (channel, info) = self.hello(self.incarnation())?;
        if (info.epoch, info.lease) != current {
            return Err(RemoteError::Mixed);
        }
        let (socket, seals) = channel.into_parts().ok_or(RemoteError::Mixed)?;
        Ok(LinkStart::Socket { socket: OwnedFd::from(socket.0), codec: Box::new(DpswCodec::new(seals)) })
    }

    fn set_incarnation(&self, incarnation: u64) {
        self.incarnation.store(incarnation, Ordering::SeqCst);
    }
}
