//! A node inside the process: the same promises as a real one, and faults to order. For tests and measurements.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Lane, RemoteError, RemoteNode, Reserved};
use crate::proto::{Info, Opcode, Status};
use crate::units::{BLOCK_BYTES, RemoteBlock};

#[derive(Default)]
struct Inner {
    free: Vec<u32>,
    capacity: u32,
    held: HashMap<u32, Box<[u8]>>,
    epoch: u64,
    connected: bool,
    reachable: bool,
    fail_in: Option<u32>,
    lose_reply: bool,
}

/// A node in this process.
pub struct MemNode {
    name: String,
    inner: Mutex<Inner>,
}

impl MemNode {
    /// A node with room for `blocks` blocks.
    pub fn new(name: &str, blocks: u32) -> Self {
        let inner = Inner {
            free: (0..blocks).rev().collect(),
            capacity: blocks,
            epoch: 1,
            reachable: true,
            ..Inner::default()
        };
        Self { name: name.to_owned(), inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
            inner.held.clear();
            inner.free = (0..inner.capacity).rev().collect();
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
        let mut inner = self.inner();
        let numbers: Vec<u32> = inner.held.drain().map(|(number, _)| number).collect();
        // They are the last to be lent again.
        inner.free.splice(0..0, numbers);
    }

    /// Blocks lent now.
    pub fn held(&self) -> u32 {
        self.inner().held.len() as u32
    }

    /// Spoils one byte of every block lent.
    pub fn corrupt(&self, offset: usize) {
        for block in self.inner().held.values_mut() {
            block[offset] ^= 0x40;
        }
    }
}

impl Inner {
    fn step(&mut self, opcode: Opcode) -> Result<(), RemoteError> {
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
        let held_blocks = self.held.len() as u32;
        Info {
            epoch: self.epoch,
            lease: 1,
            capacity_blocks: self.capacity,
            free_blocks: self.free.len() as u32,
            held_blocks,
        }
    }

    fn range(
        &mut self,
        opcode: Opcode,
        block: RemoteBlock,
        offset: u32,
        len: usize,
    ) -> Result<&mut [u8], RemoteError> {
        let bytes = self.held.get_mut(&block.number).ok_or(RemoteError::Refused(opcode, Status::NotYours))?;
        bytes
            .get_mut(offset as usize..offset as usize + len)
            .ok_or(RemoteError::Refused(opcode, Status::BadRequest))
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
        Ok(inner.info())
    }

    fn disconnect(&self) {
        let mut inner = self.inner();
        inner.connected = false;
        inner.held.clear();
        inner.free = (0..inner.capacity).rev().collect();
    }

    fn reserve(&self, _: Lane, blocks: &mut [RemoteBlock]) -> Result<Reserved, RemoteError> {
        let mut inner = self.inner();
        inner.step(Opcode::Reserve)?;
        let mut granted = 0;
        for slot in blocks.iter_mut() {
            let Some(number) = inner.free.pop() else { break };
            inner.held.insert(number, vec![0; BLOCK_BYTES].into_boxed_slice());
            *slot = RemoteBlock::numbered(number);
            granted += 1;
        }
        let free_blocks = inner.free.len() as u32;
        inner.answer(Reserved { granted, free_blocks })
    }

    fn release(&self, _: Lane, blocks: &[RemoteBlock]) -> Result<u32, RemoteError> {
        let mut inner = self.inner();
        inner.step(Opcode::Release)?;
        for block in blocks {
            inner
                .held
                .remove(&block.number)
                .ok_or(RemoteError::Refused(Opcode::Release, Status::NotYours))?;
            inner.free.push(block.number);
        }
        let free_blocks = inner.free.len() as u32;
        inner.answer(free_blocks)
    }

    fn write_at(
        &self,
        _: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
    ) -> Result<(), RemoteError> {
        let mut inner = self.inner();
        if let Err(error) = inner.step(Opcode::Write) {
            if let Ok(bytes) = inner.range(Opcode::Write, block, offset_bytes, data.len()) {
                bytes.fill(0xee);
            }
            return Err(error);
        }
        inner.range(Opcode::Write, block, offset_bytes, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn read_at(
        &self,
        _: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &mut [u8],
    ) -> Result<(), RemoteError> {
        let mut inner = self.inner();
        inner.step(Opcode::Read)?;
        data.copy_from_slice(inner.range(Opcode::Read, block, offset_bytes, data.len())?);
        Ok(())
    }

    fn stat(&self, _: Lane) -> Result<Info, RemoteError> {
        let mut inner = self.inner();
        inner.step(Opcode::Stat)?;
        Ok(inner.info())
    }
}
