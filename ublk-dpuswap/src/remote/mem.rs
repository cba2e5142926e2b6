//! A node inside the process: the same promises as a real one, and faults to order. For tests and measurements.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Lane, LinkStart, RemoteError, RemoteNode, Reserved};
use crate::links::LinkMemory;
use crate::proto::{INFO_DRAINING, Info, Opcode, Status};
use crate::units::{BLOCK_BYTES, RemoteBlock};

struct Inner {
    bytes: Box<[u8]>,
    /// By number: the generation it is lent with.
    lent: Box<[Option<u32>]>,
    next_generation: Box<[u32]>,
    free: VecDeque<u32>,
    epoch: u64,
    /// Counts connections; a link of an earlier one is broken.
    connection: u64,
    connected: bool,
    reachable: bool,
    fail_in: Option<u32>,
    lose_reply: bool,
    /// Answers of each lane's unfinished writes, by ticket.
    unfinished: [VecDeque<(u64, Result<(), RemoteError>)>; Lane::COUNT],
    next_ticket: u64,
    delay: Duration,
    wants_back: u32,
    draining: bool,
}

/// A node in this process.
pub struct MemNode {
    name: String,
    inner: Arc<Mutex<Inner>>,
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemNode {
    /// A node with room for `blocks` blocks.
    pub fn new(name: &str, blocks: u32) -> Self {
        let count = blocks as usize;
        let inner = Inner {
            bytes: vec![0; count * BLOCK_BYTES].into_boxed_slice(),
            lent: vec![None; count].into_boxed_slice(),
            next_generation: vec![0; count].into_boxed_slice(),
            free: (0..blocks).collect(),
            epoch: 1,
            connection: 0,
            connected: false,
            reachable: true,
            fail_in: None,
            lose_reply: false,
            unfinished: std::array::from_fn(|_| VecDeque::with_capacity(64)),
            next_ticket: 1,
            delay: Duration::ZERO,
            wants_back: 0,
            draining: false,
        };
        Self { name: name.to_owned(), inner: Arc::new(Mutex::new(inner)) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Breaks all connections and refuses new ones until [`MemNode::revive`]. The content stays.
    pub fn kill(&self) {
        let mut inner = self.inner();
        (inner.connected, inner.reachable) = (false, false);
    }

    /// Lets clients connect again; with `forget`, as a node that was restarted: nothing is left of the content.
    pub fn revive(&self, forget: bool) {
        let mut inner = self.inner();
        inner.reachable = true;
        if forget {
            inner.epoch += 1;
            inner.connected = false;
            inner.take_all();
            inner.bytes.fill(0);
        }
    }

    /// The operation after the next `after` ones fails; a write then leaves garbage, and the connection is gone.
    pub fn fail_after(&self, after: u32) {
        self.inner().fail_in = Some(after);
    }

    /// The next reservation or release is executed, but its answer is lost and the connection gone.
    pub fn lose_next_reply(&self) {
        self.inner().lose_reply = true;
    }

    /// Takes all blocks back without a word, as a node would with a lease it thinks has ended: `NotYours` from now on.
    pub fn take_back(&self) {
        self.inner().take_all();
    }

    /// Every answer takes this long from now on.
    pub fn slow_down(&self, delay: Duration) {
        self.inner().delay = delay;
    }

    /// Asks for so many blocks back, within the deadline that [`Info`] will say.
    pub fn ask_back(&self, blocks: u32) {
        self.inner().wants_back = blocks;
    }

    /// Lends nothing more and wants everything back.
    pub fn drain(&self) {
        self.inner().draining = true;
    }

    /// Blocks lent now.
    pub fn held(&self) -> u32 {
        self.inner().held()
    }

    /// Spoils one byte of every block lent.
    pub fn corrupt(&self, offset: usize) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        for (block, lent) in inner.bytes.chunks_exact_mut(BLOCK_BYTES).zip(&inner.lent) {
            if lent.is_some() {
                block[offset] ^= 0x40;
            }
        }
    }
}

impl Inner {
    fn held(&self) -> u32 {
        self.lent.iter().flatten().count() as u32
    }

    fn take_all(&mut self) {
        for (number, lent) in (0..).zip(&mut self.lent) {
            if lent.take().is_some() {
                // They are the last to be lent again.
                self.free.push_back(number);
            }
        }
    }

    fn step(&mut self, opcode: Opcode) -> Result<(), RemoteError> {
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        if !self.connected {
            return Err(RemoteError::NotConnected);
        }
        match self.fail_in {
            Some(0) => {
                self.fail_in = None;
                self.connected = false;
                Err(RemoteError::Io(opcode, ErrorKind::ConnectionReset.into()))
            }
            Some(left) => {
                self.fail_in = Some(left - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// After the request was executed.
    fn answer<T>(&mut self, answer: T) -> Result<T, RemoteError> {
        if std::mem::take(&mut self.lose_reply) {
            self.connected = false;
            return Err(RemoteError::TimedOut);
        }
        Ok(answer)
    }

    fn info(&self) -> Info {
        let held_blocks = self.held();
        let lends = !self.draining && self.wants_back == 0;
        Info {
            epoch: self.epoch,
            lease: 1,
            capacity_blocks: self.lent.len() as u32,
            free_blocks: if lends { self.free.len() as u32 } else { 0 },
            held_blocks,
            reclaim_blocks: self.wants_back.min(held_blocks),
            reclaim_deadline_ms: 1000,
            flags: if self.draining { INFO_DRAINING } else { 0 },
            ..Info::default()
        }
    }

    fn range(
        &mut self,
        opcode: Opcode,
        block: RemoteBlock,
        offset: u32,
        len: usize,
    ) -> Result<&mut [u8], RemoteError> {
        let number = block.number as usize;
        if self.lent.get(number) != Some(&Some(block.generation)) {
            return Err(RemoteError::Refused(opcode, Status::NotYours));
        }
        let whole = self.bytes.chunks_exact_mut(BLOCK_BYTES).nth(number);
        whole
            .and_then(|bytes| bytes.get_mut(offset as usize..)?.get_mut(..len))
            .ok_or(RemoteError::Refused(opcode, Status::BadRequest))
    }

    fn write(&mut self, block: RemoteBlock, offset: u32, data: &[u8]) -> Result<(), RemoteError> {
        if let Err(error) = self.step(Opcode::Write) {
            if let Ok(bytes) = self.range(Opcode::Write, block, offset, data.len()) {
                bytes.fill(0xee);
            }
            return Err(error);
        }
        self.range(Opcode::Write, block, offset, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, block: RemoteBlock, offset: u32, data: &mut [u8]) -> Result<(), RemoteError> {
        self.step(Opcode::Read)?;
        data.copy_from_slice(self.range(Opcode::Read, block, offset, data.len())?);
        Ok(())
    }
}

/// A queue's way to the node's memory.
struct Link {
    inner: Arc<Mutex<Inner>>,
    connection: u64,
}

impl Link {
    fn inner(&self) -> Result<MutexGuard<'_, Inner>, RemoteError> {
        let inner = lock(&self.inner);
        if inner.connection == self.connection { Ok(inner) } else { Err(RemoteError::NotConnected) }
    }
}

impl LinkMemory for Link {
    fn read(&self, block: RemoteBlock, offset_bytes: u32, data: &mut [u8]) -> Result<(), RemoteError> {
        self.inner()?.read(block, offset_bytes, data)
    }

    fn write(&self, block: RemoteBlock, offset_bytes: u32, data: &[u8]) -> Result<(), RemoteError> {
        self.inner()?.write(block, offset_bytes, data)
    }
}

impl RemoteNode for MemNode {
    fn name(&self) -> &str {
        &self.name
    }

    fn connect(&self) -> Result<Info, RemoteError> {
        let mut inner = self.inner();
        if !inner.reachable {
            return Err(RemoteError::Connect(ErrorKind::ConnectionRefused.into()));
        }
        inner.connected = true;
        inner.connection += 1;
        inner.unfinished.iter_mut().for_each(VecDeque::clear);
        Ok(inner.info())
    }

    fn disconnect(&self) {
        let mut inner = self.inner();
        inner.connected = false;
        inner.take_all();
    }

    fn reserve(&self, _: Lane, blocks: &mut [RemoteBlock]) -> Result<Reserved, RemoteError> {
        let mut guard = self.inner();
        let inner = &mut *guard;
        inner.step(Opcode::Reserve)?;
        let mut granted = 0;
        for slot in blocks.iter_mut() {
            if inner.info().free_blocks == 0 {
                break;
            }
            let Some(number) = inner.free.pop_front() else { break };
            let generation = inner.next_generation[number as usize];
            inner.next_generation[number as usize] += 1;
            inner.lent[number as usize] = Some(generation);
            *slot = RemoteBlock { number, generation };
            granted += 1;
        }
        let free_blocks = inner.info().free_blocks;
        inner.answer(Reserved { granted, free_blocks })
    }

    fn release(&self, _: Lane, blocks: &[RemoteBlock]) -> Result<u32, RemoteError> {
        let mut guard = self.inner();
        let inner = &mut *guard;
        inner.step(Opcode::Release)?;
        for block in blocks {
            inner.range(Opcode::Release, *block, 0, BLOCK_BYTES)?.fill(0);
            inner.lent[block.number as usize] = None;
            if inner.wants_back > 0 {
                inner.wants_back -= 1;
            }
            inner.free.push_back(block.number);
        }
        let free = inner.info().free_blocks;
        inner.answer(free)
    }

    fn start_write(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
    ) -> Result<u64, RemoteError> {
        let mut inner = self.inner();
        if !inner.connected {
            return Err(RemoteError::NotConnected);
        }
        let answer = inner.write(block, offset_bytes, data);
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        let queue = inner.unfinished.get_mut(lane.0).ok_or(RemoteError::NotConnected)?;
        queue.push_back((ticket, answer));
        Ok(ticket)
    }

    fn finish_write(&self, lane: Lane, ticket: u64) -> Result<(), RemoteError> {
        let mut inner = self.inner();
        let queue = inner.unfinished.get_mut(lane.0).ok_or(RemoteError::NotConnected)?;
        if queue.front().map(|(oldest, _)| *oldest) != Some(ticket) {
            return Err(RemoteError::Unfinished);
        }
        queue.pop_front().map_or(Err(RemoteError::Unfinished), |(_, answer)| answer)
    }

    fn read_at(
        &self,
        _: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &mut [u8],
    ) -> Result<(), RemoteError> {
        self.inner().read(block, offset_bytes, data)
    }

    fn stat(&self, _: Lane) -> Result<Info, RemoteError> {
        let mut inner = self.inner();
        inner.step(Opcode::Stat)?;
        Ok(inner.info())
    }

    fn held(&self, _: Lane, found: &mut dyn FnMut(RemoteBlock)) -> Result<(), RemoteError> {
        let mut inner = self.inner();
        inner.step(Opcode::Stat)?;
        for (number, lent) in (0..).zip(&inner.lent) {
            if let Some(generation) = *lent {
                found(RemoteBlock { number, generation });
            }
        }
        Ok(())
    }

    fn open_link(&self, _: u16) -> Result<LinkStart, RemoteError> {
        let inner = self.inner();
        if !inner.connected {
            return Err(RemoteError::NotConnected);
        }
        let link = Link { inner: Arc::clone(&self.inner), connection: inner.connection };
        Ok(LinkStart::Memory(Arc::new(link)))
    }
}
