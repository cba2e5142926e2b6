//! The TCP client of a node: one connection per lane, opened ahead, blocking, with time-outs on everything.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Lane, RemoteError, RemoteNode, Reserved};
use crate::error::Error;
use crate::proto::{
    self, HEADER_BYTES, Header, Hello, Info, MAX_CONTROL_BYTES, Opcode, ProtoError, Range, Status,
};
use crate::units::{BLOCK_BYTES, RemoteBlock};
use crate::wire;

/// A node reached over TCP.
pub struct TcpNode {
    name: String,
    addresses: Vec<SocketAddr>,
    timeout: Duration,
    client_id: u64,
    incarnation: AtomicU64,
    request_id: AtomicU64,
    lanes: Vec<Mutex<Option<TcpStream>>>,
}

impl TcpNode {
    /// A node at `HOST:PORT`, for a client with this id and `lanes` lanes. Resolves the name; connects nothing.
    ///
    /// # Errors
    /// The name cannot be resolved.
    pub fn new(name: &str, client_id: u64, lanes: usize, timeout: Duration) -> Result<Self, Error> {
        let bad = |source| Error::NodeName { node: name.to_owned(), source };
        let addresses: Vec<SocketAddr> = name.to_socket_addrs().map_err(bad)?.collect();
        Ok(Self {
            name: name.to_owned(),
            addresses,
            timeout,
            client_id,
            incarnation: AtomicU64::new(0),
            request_id: AtomicU64::new(1),
            lanes: (0..lanes).map(|_| Mutex::new(None)).collect(),
        })
    }

    fn lane(&self, lane: Lane) -> Result<MutexGuard<'_, Option<TcpStream>>, RemoteError> {
        let lane = self.lanes.get(lane.0).ok_or(RemoteError::NotConnected)?;
        Ok(lane.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn open(&self) -> Result<TcpStream, RemoteError> {
        let mut last = std::io::ErrorKind::AddrNotAvailable.into();
        for address in &self.addresses {
            match TcpStream::connect_timeout(address, self.timeout) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(RemoteError::Connect)?;
                    stream.set_read_timeout(Some(self.timeout)).map_err(RemoteError::Connect)?;
                    stream.set_write_timeout(Some(self.timeout)).map_err(RemoteError::Connect)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(RemoteError::Connect(last))
    }

    /// One request and its answer. `reply` must have room for the answer's payload, whose length is returned.
    fn exchange(
        &self,
        stream: &TcpStream,
        opcode: Opcode,
        body: &[u8],
        data: &[u8],
        reply: &mut [u8],
    ) -> Result<usize, RemoteError> {
        let deadline = Some(Instant::now() + self.timeout);
        let io = |error| RemoteError::from_io(opcode, error);
        let request_id = self.request_id.fetch_add(1, Ordering::Relaxed);
        let request = Header::request(opcode, request_id, body.len() + data.len());
        wire::send(stream, [&request.encode(body, data), body, data], deadline).map_err(io)?;
        let mut raw = [0; HEADER_BYTES];
        wire::receive(stream, &mut raw, deadline).map_err(io)?;
        let header = Header::decode(&raw)?;
        let payload = reply.get_mut(..header.payload_bytes as usize).ok_or(ProtoError::Body)?;
        wire::receive(stream, payload, deadline).map_err(io)?;
        header.verify(&raw, payload, &[])?;
        if header.status == Status::Busy {
            return Err(RemoteError::Refused(opcode, Status::Busy));
        }
        if !header.reply || header.request_id != request_id || header.opcode != opcode {
            return Err(RemoteError::Mixed);
        }
        match header.status {
            Status::Ok => Ok(payload.len()),
            status => Err(RemoteError::Refused(opcode, status)),
        }
    }

    /// [`TcpNode::exchange`] on a lane; a lane on which anything but a refusal happened is closed.
    fn transact(
        &self,
        lane: Lane,
        opcode: Opcode,
        body: &[u8],
        data: &[u8],
        reply: &mut [u8],
    ) -> Result<usize, RemoteError> {
        let mut slot = self.lane(lane)?;
        let stream = slot.as_ref().ok_or(RemoteError::NotConnected)?;
        let result = self.exchange(stream, opcode, body, data, reply);
        if !matches!(result, Ok(_) | Err(RemoteError::Refused(..))) {
            *slot = None;
        }
        result
    }

    fn hello(&self, incarnation: u64) -> Result<(TcpStream, Info), RemoteError> {
        let stream = self.open()?;
        let hello = Hello { client_id: self.client_id, incarnation, block_bytes: BLOCK_BYTES as u32 };
        let mut reply = [0; MAX_CONTROL_BYTES];
        let len = self.exchange(&stream, Opcode::Hello, &hello.encode(), &[], &mut reply)?;
        Ok((stream, Info::decode(&reply[..len])?))
    }
}

impl RemoteNode for TcpNode {
    fn name(&self) -> &str {
        &self.name
    }

    fn connect(&self) -> Result<Info, RemoteError> {
        // A higher incarnation fences off whatever an older connection may still have on its way.
        let incarnation = self.incarnation.fetch_add(1, Ordering::SeqCst) + 1;
        let mut info: Option<Info> = None;
        for lane in 0..self.lanes.len() {
            let mut slot = self.lane(Lane(lane))?;
            *slot = None;
            let (stream, answer) = self.hello(incarnation)?;
            if info.is_some_and(|first| (first.epoch, first.lease) != (answer.epoch, answer.lease)) {
                return Err(RemoteError::Mixed);
            }
            info = Some(answer);
            *slot = Some(stream);
        }
        info.ok_or(RemoteError::NotConnected)
    }

    fn disconnect(&self) {
        for lane in 0..self.lanes.len() {
            let _ = self.transact(Lane(lane), Opcode::Bye, &[], &[], &mut []);
            if let Ok(mut slot) = self.lane(Lane(lane)) {
                *slot = None;
            }
        }
    }

    fn reserve(&self, lane: Lane, blocks: &mut [RemoteBlock]) -> Result<Reserved, RemoteError> {
        let wanted = blocks.len().min(proto::MAX_BLOCKS_PER_MESSAGE) as u32;
        let mut reply = [0; MAX_CONTROL_BYTES];
        let len = self.transact(lane, Opcode::Reserve, &wanted.to_le_bytes(), &[], &mut reply)?;
        let (free_blocks, numbers) = proto::decode_list(&reply[..len])?;
        let mut granted = 0;
        for (slot, number) in blocks.iter_mut().zip(numbers) {
            *slot = RemoteBlock::numbered(number);
            granted += 1;
        }
        Ok(Reserved { granted, free_blocks })
    }

    fn release(&self, lane: Lane, blocks: &[RemoteBlock]) -> Result<u32, RemoteError> {
        let mut free_blocks = 0;
        for blocks in blocks.chunks(proto::MAX_BLOCKS_PER_MESSAGE) {
            let mut numbers = [0; proto::MAX_BLOCKS_PER_MESSAGE];
            for (number, block) in numbers.iter_mut().zip(blocks) {
                *number = block.number;
            }
            let mut body = [0; MAX_CONTROL_BYTES];
            let body_len = proto::encode_list(0, &numbers[..blocks.len()], &mut body);
            let mut reply = [0; MAX_CONTROL_BYTES];
            let len = self.transact(lane, Opcode::Release, &body[..body_len], &[], &mut reply)?;
            free_blocks = proto::decode_list(&reply[..len])?.0;
        }
        Ok(free_blocks)
    }

    fn write_at(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
    ) -> Result<(), RemoteError> {
        let range = Range { block: block.number, offset_bytes, len_bytes: data.len() as u32 };
        match self.transact(lane, Opcode::Write, &range.encode(), data, &mut [])? {
            0 => Ok(()),
            _ => Err(ProtoError::Body.into()),
        }
    }

    fn read_at(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &mut [u8],
    ) -> Result<(), RemoteError> {
        let range = Range { block: block.number, offset_bytes, len_bytes: data.len() as u32 };
        let wanted = data.len();
        let len = self.transact(lane, Opcode::Read, &range.encode(), &[], data)?;
        if len == wanted { Ok(()) } else { Err(ProtoError::Body.into()) }
    }

    fn stat(&self, lane: Lane) -> Result<Info, RemoteError> {
        let mut reply = [0; MAX_CONTROL_BYTES];
        let len = self.transact(lane, Opcode::Stat, &[], &[], &mut reply)?;
        Ok(Info::decode(&reply[..len])?)
    }
}
