//! A node that is any NBD server: nbdkit, qemu-nbd, and whatever else exports memory or a disk.
//!
//! Block `i` is the `i`-th MiB of the export; the first is the client's [signature](super::claim). An export therefore
//! belongs to one client alone: nothing in NBD keeps a second one out, but each finds the other's signature. Reserving is
//! bookkeeping here; a release trims where the server can. A server never asks for memory back, and has no lease: it is
//! there or it is not. What it cannot tell (that it restarted, empty) the signature does.
//!
//! Invariant: no request leaves for a block that is not lent, and block 0 is never lent.

pub mod url;
pub mod wire;

mod lane;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::lane::{Connection, MAX_UNFINISHED};
use self::url::{Server, Url};
use self::wire::Command;
use super::claim::{ClaimError, Extents, FENCE, LOOKED_AT_BYTES, SIGNATURE_BYTES, Signature, new_epoch};
use super::{Lane, LinkStart, RemoteError, RemoteNode, Reserved};
use crate::error::Error;
use crate::links::nbd::{NbdCodec, position};
use crate::proto::{Info, Opcode, Status};
use crate::units::{BLOCK_BYTES, RemoteBlock};

/// Most trims on their way at once.
const TRIMS_AT_ONCE: usize = 32;

/// An export of an NBD server.
pub struct NbdNode {
    name: String,
    url: Url,
    client_id: u64,
    timeout: Duration,
    lanes: [Mutex<Option<Connection>>; Lane::COUNT],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What this process has signed, or found signed. The epoch is 0 before.
    signature: Option<Signature>,
    /// Epoch of the last signature that was sent; whether it arrived may not be known.
    sent_epoch: u64,
    trims: bool,
    extents: Extents,
    links: u64,
    /// Queues whose first link was opened.
    queues: u64,
}

impl NbdNode {
    /// The export that `name` says: `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`, each also with
    /// `take=yes` (the first claim may overwrite what is there). Connects nothing, and looks nothing up.
    ///
    /// # Errors
    /// The name is not such a URL.
    pub fn new(name: &str, client_id: u64, timeout: Duration) -> Result<Self, Error> {
        Ok(Self {
            name: name.to_owned(),
            url: Url::parse(name)?,
            client_id,
            timeout,
            lanes: Default::default(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lane(&self, lane: Lane) -> Result<MutexGuard<'_, Option<Connection>>, RemoteError> {
        let lane = self.lanes.get(lane.0).ok_or(RemoteError::NotConnected)?;
        Ok(lane.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something on a lane; after anything but a refusal the lane is closed.
    fn on<T>(
        &self,
        lane: Lane,
        work: impl FnOnce(&mut Connection) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let mut slot = self.lane(lane)?;
        let result = work(slot.as_mut().ok_or(RemoteError::NotConnected)?);
        if !matches!(result, Ok(_) | Err(RemoteError::Refused(..) | RemoteError::Server(..))) {
            *slot = None;
        }
        result
    }

    /// A connection in its transmission phase, and the blocks of its export.
    fn open(&self) -> Result<(Connection, u32), RemoteError> {
        let mut connection = match &self.url.server {
            Server::Tcp(address) => Connection::new(address.connect(self.timeout)?.into(), self.timeout),
            Server::Unix(path) => {
                let socket = lane::connect_unix(path, self.timeout).map_err(RemoteError::Connect)?;
                Connection::new(socket.into(), self.timeout)
            }
        }?;
        let export = connection.negotiate(&self.url.export)?;
        let blocks = export.blocks()?;
        Ok((connection, blocks))
    }

    fn unsigned(&self, size_bytes: u64) -> Signature {
        Signature { client_id: self.client_id, epoch: 0, size_bytes, boot: [0; 16] }
    }

    /// Finds or writes the signature, and opens the books.
    fn claim(&self, connection: &mut Connection, blocks: u32) -> Result<Signature, RemoteError> {
        let known = self.state().signature;
        // A signature that was ours and is another's now is never taken again: two clients would steal from each other.
        let (signed, found) = self.sign(connection, self.url.take && known.is_none())?;
        let mut state = self.state();
        state.trims = connection.export.trims();
        if known != Some(signed) {
            // Found by a process that did not write it: everything may be in use.
            let recovered = found && known.is_none() && state.sent_epoch != signed.epoch;
            state.extents.reset(blocks - 1, recovered);
        }
        if found {
            state.extents.fence(Instant::now() + FENCE);
        }
        state.signature = Some(signed);
        Ok(signed)
    }

    /// Finds or writes the signature. Whether it was found comes with it.
    fn sign(&self, connection: &mut Connection, take: bool) -> Result<(Signature, bool), RemoteError> {
        let mine = self.unsigned(connection.export.size_bytes);
        let mut first = vec![0; LOOKED_AT_BYTES];
        connection.read(0, &mut first)?;
        if let Some(epoch) = mine.look(&first, take)? {
            return Ok((Signature { epoch, ..mine }, true));
        }
        let signed = Signature { epoch: new_epoch()?, ..mine };
        self.state().sent_epoch = signed.epoch;
        let handle = connection.start_write(0, &signed.encode())?;
        connection.finish_write(handle)?;
        Ok((signed, false))
    }

    fn info(&self) -> Info {
        let mut state = self.state();
        Info {
            epoch: state.signature.map_or(0, |signature| signature.epoch),
            lease: 1,
            capacity_blocks: state.extents.capacity(),
            free_blocks: state.extents.free_blocks(Instant::now()),
            held_blocks: state.extents.held_blocks(),
            ..Info::default()
        }
    }

    /// The place of a range of a lent block in the export.
    fn place(&self, opcode: Opcode, block: RemoteBlock, offset: u32, len: usize) -> Result<u64, RemoteError> {
        if len == 0 || offset as usize > BLOCK_BYTES || len > BLOCK_BYTES - offset as usize {
            return Err(RemoteError::Refused(opcode, Status::BadRequest));
        }
        if !self.state().extents.is_held(block.number) {
            return Err(RemoteError::Refused(opcode, Status::NotYours));
        }
        Ok(position(block, offset))
    }

    /// Trims everything lent, in long runs, for as long as one request may take.
    fn trim_all(&self, connection: &mut Connection) -> Result<(), RemoteError> {
        const RUN_BLOCKS: u32 = 32;
        let until = Instant::now() + self.timeout;
        let mut from = 0;
        loop {
            let (mut number, mut len) = (0, 0);
            {
                let state = self.state();
                if let Some(first) = state.extents.next_held(from) {
                    number = first;
                    while len < RUN_BLOCKS && state.extents.is_held(first + len) {
                        len += 1;
                    }
                }
            }
            if len == 0 || Instant::now() > until {
                return Ok(());
            }
            let at = position(RemoteBlock::numbered(number), 0);
            connection.trim(&[(at, len * BLOCK_BYTES as u32)])?;
            from = number + len;
        }
    }
}

/// Whether the signature on the server is still `signed`.
fn still(connection: &mut Connection, signed: Option<Signature>) -> Result<(), RemoteError> {
    let mut bytes = [0; SIGNATURE_BYTES];
    connection.read(0, &mut bytes)?;
    match signed {
        Some(signed) if Signature::decode(&bytes) == Some(signed) => Ok(()),
        _ => Err(ClaimError::Lost.into()),
    }
}

impl RemoteNode for NbdNode {
    fn name(&self) -> &str {
        &self.name
    }

    fn connect(&self) -> Result<Info, RemoteError> {
        for lane in 0..Lane::COUNT {
            *self.lane(Lane(lane))? = None;
        }
        let (mut first, blocks) = self.open()?;
        let signed = self.claim(&mut first, blocks)?;
        let mut opened = [Some(first), None, None];
        for slot in opened.iter_mut().filter(|slot| slot.is_none()) {
            let (mut connection, _) = self.open()?;
            still(&mut connection, Some(signed))?;
            *slot = Some(connection);
        }
        for (lane, connection) in opened.into_iter().enumerate() {
            *self.lane(Lane(lane))? = connection;
        }
        Ok(self.info())
    }

    fn disconnect(&self) {
        let trims = self.state().trims;
        let erased = self.on(Lane::CONTROL, |connection| {
            if trims {
                self.trim_all(connection)?;
            }
            still(connection, self.state().signature)?;
            let handle = connection.start_write(0, &[0; SIGNATURE_BYTES])?;
            connection.finish_write(handle)
        });
        if let Err(error) = erased {
            log::warn!("node {}: its signature stays: {error}", self.name);
        }
        for lane in 0..Lane::COUNT {
            if let Ok(mut slot) = self.lane(Lane(lane))
                && let Some(mut connection) = slot.take()
            {
                // "Terminating the transmission phase": no answer comes.
                let _ = connection.send(Command::Disconnect, 0, 0, &[]);
            }
        }
        let mut state = self.state();
        state.signature = None;
        state.extents.reset(0, false);
    }

    fn reserve(&self, lane: Lane, blocks: &mut [RemoteBlock]) -> Result<Reserved, RemoteError> {
        if self.lane(lane)?.is_none() {
            return Err(RemoteError::NotConnected);
        }
        Ok(self.state().extents.reserve(blocks, Instant::now()))
    }

    fn release(&self, lane: Lane, blocks: &[RemoteBlock]) -> Result<u32, RemoteError> {
        for chunk in blocks.chunks(TRIMS_AT_ONCE) {
            let mut places = [(0, BLOCK_BYTES as u32); TRIMS_AT_ONCE];
            for (place, block) in places.iter_mut().zip(chunk) {
                place.0 = self.place(Opcode::Release, *block, 0, BLOCK_BYTES)?;
            }
            let trims = self.state().trims;
            let result = self.on(lane, |connection| match trims {
                true => connection.trim(&places[..chunk.len()]),
                false => Ok(()),
            });
            let now = Instant::now();
            let mut state = self.state();
            if matches!(result, Err(RemoteError::NotConnected)) {
                return Err(RemoteError::NotConnected);
            }
            if result.is_err() {
                // A trim on its way would empty a block that is lent anew.
                state.extents.fence(now + FENCE);
            }
            for block in chunk {
                state.extents.release(block.number, now);
            }
            drop(state);
            result?;
        }
        Ok(self.info().free_blocks)
    }

    fn start_write(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
    ) -> Result<u64, RemoteError> {
        let at = self.place(Opcode::Write, block, offset_bytes, data.len())?;
        self.on(lane, |connection| match connection.unfinished() {
            0..MAX_UNFINISHED => connection.start_write(at, data),
            _ => Err(RemoteError::Refused(Opcode::Write, Status::Busy)),
        })
    }

    fn finish_write(&self, lane: Lane, ticket: u64) -> Result<(), RemoteError> {
        self.on(lane, |connection| connection.finish_write(ticket))
    }

    fn read_at(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &mut [u8],
    ) -> Result<(), RemoteError> {
        let at = self.place(Opcode::Read, block, offset_bytes, data.len())?;
        self.on(lane, |connection| connection.read(at, data))
    }

    fn stat(&self, lane: Lane) -> Result<Info, RemoteError> {
        let signed = self.state().signature;
        self.on(lane, |connection| still(connection, signed))?;
        Ok(self.info())
    }

    fn held(&self, lane: Lane, found: &mut dyn FnMut(RemoteBlock)) -> Result<(), RemoteError> {
        if self.lane(lane)?.is_none() {
            return Err(RemoteError::NotConnected);
        }
        let mut from = 0;
        loop {
            // Not locked while the caller does what it does with a block.
            let next = self.state().extents.next_held(from);
            let Some(number) = next else { return Ok(()) };
            found(RemoteBlock::numbered(number));
            from = number + 1;
        }
    }

    fn open_link(&self, queue: u16) -> Result<LinkStart, RemoteError> {
        let signed = self.state().signature;
        if signed.is_none() || self.lane(Lane::CONTROL)?.is_none() {
            return Err(RemoteError::NotConnected);
        }
        let (mut connection, _) = self.open()?;
        // A server that was restarted since the lanes were opened is not the one that has the blocks.
        still(&mut connection, signed)?;
        let mark = {
            let mut state = self.state();
            let queue = 1 << (queue % 64);
            if state.queues & queue != 0 {
                // The link before it broke, maybe with writes on their way.
                state.extents.fence(Instant::now() + FENCE);
            }
            state.queues |= queue;
            state.links += 1;
            state.links
        };
        let socket = connection.into_socket().map_err(RemoteError::Connect)?;
        Ok(LinkStart::Socket { socket, codec: Box::new(NbdCodec::new(mark)) })
    }
}
