//! A file, or a block device, as a node: block `n` is its `n`-th MiB.
//!
//! The invariant: the pieces of an operation's buffer are its own from its start until the kernel has ended it and its
//! caller has seen it. An error is that operation's alone.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, types};
use ublk_target::QueueIo;

use super::buffer::Buffer;
use super::conn::ended;
use crate::proto::{Opcode, Status};
use crate::remote::RemoteError;
use crate::units::{BLOCK_BYTES, RemoteBlock};

/// The pieces of a link's buffer; as many small operations can be in flight.
const PIECES: usize = 64;
const PIECE_BYTES: usize = 64 << 10;

/// One operation.
#[derive(Debug, Clone, Copy)]
struct Transfer {
    /// Its number among the operations of all links.
    id: u32,
    opcode: Opcode,
    position: u64,
    len: usize,
    done: usize,
}

/// What came of an operation in the kernel.
pub(super) enum Ended {
    /// It goes on.
    Not,
    /// It is over.
    Over { id: u32, result: Result<(), RemoteError> },
}

/// A file and the buffers of its operations.
pub(super) struct FileLink {
    file: Option<OwnedFd>,
    buffer: Buffer,
    /// A bit for each piece that is taken.
    taken: u64,
    /// By an operation's first piece.
    transfers: [Option<Transfer>; PIECES],
    /// Bits of those to be handed to the kernel.
    queued: u64,
    /// Bits of those in the kernel.
    in_kernel: u64,
}

/// The bits of the pieces for `len` bytes, from piece 0.
fn mask(len: usize) -> u64 {
    let pieces = len.div_ceil(PIECE_BYTES).clamp(1, PIECES);
    u64::MAX >> (PIECES - pieces)
}

impl FileLink {
    pub(super) fn new(file: OwnedFd) -> Self {
        Self {
            file: Some(file),
            buffer: Buffer::new(PIECES * PIECE_BYTES),
            taken: 0,
            transfers: [None; PIECES],
            queued: 0,
            in_kernel: 0,
        }
    }

    /// Another file in the buffers of one that is over.
    pub(super) fn renew(&mut self, file: OwnedFd) {
        debug_assert!(self.in_kernel == 0);
        self.file = Some(file);
        (self.taken, self.queued) = (0, 0);
        self.transfers = [None; PIECES];
    }

    pub(super) fn release(&mut self) {
        self.file = None;
    }

    pub(super) fn in_kernel(&self) -> bool {
        self.in_kernel != 0
    }

    /// Queues an operation; `false` if there is no room.
    pub(super) fn start(
        &mut self,
        id: u32,
        opcode: Opcode,
        block: RemoteBlock,
        offset_bytes: u32,
        len: usize,
        data: &[u8],
    ) -> bool {
        let mask = mask(len);
        let last = PIECES - mask.count_ones() as usize;
        let Some(piece) = (0..=last).find(|piece| self.taken & mask << piece == 0) else { return false };
        let from = piece * PIECE_BYTES;
        // SAFETY: these pieces are free: the kernel has no operation on them.
        unsafe { self.buffer.slice(from..from + data.len()) }.copy_from_slice(data);
        let position = u64::from(block.number) * BLOCK_BYTES as u64 + u64::from(offset_bytes);
        if let Some(slot) = self.transfers.get_mut(piece) {
            *slot = Some(Transfer { id, opcode, position, len, done: 0 });
        }
        self.taken |= mask << piece;
        self.queued |= 1 << piece;
        true
    }

    /// Hands the kernel what is queued; `token` of a piece.
    pub(super) fn submit(
        &mut self,
        io: &mut dyn QueueIo,
        token: impl Fn(u8) -> u64,
    ) -> Result<(), RemoteError> {
        let fd = types::Fd(self.file.as_ref().map_or(-1, |file| file.as_raw_fd()));
        while self.queued != 0 {
            let piece = self.queued.trailing_zeros() as usize;
            self.queued &= !(1 << piece);
            let Some(Some(transfer)) = self.transfers.get(piece) else { continue };
            let at = self.buffer.at(piece * PIECE_BYTES + transfer.done);
            let len = (transfer.len - transfer.done) as u32;
            let position = transfer.position + transfer.done as u64;
            let entry = match transfer.opcode {
                Opcode::Write => opcode::Write::new(fd, at, len).offset(position).build(),
                _ => opcode::Read::new(fd, at, len).offset(position).build(),
            };
            // SAFETY: the pieces are the operation's until it has ended, and the file stays open.
            unsafe { io.push(entry, token(piece as u8)) }
                .map_err(|error| RemoteError::from_io(transfer.opcode, error))?;
            self.in_kernel |= 1 << piece;
        }
        Ok(())
    }

    /// The operation of `piece` ended in the kernel.
    pub(super) fn completed(&mut self, piece: u8, result: i32) -> Ended {
        let index = usize::from(piece) % PIECES;
        self.in_kernel &= !(1 << index);
        let Some(Some(transfer)) = self.transfers.get_mut(index) else { return Ended::Not };
        let (id, opcode) = (transfer.id, transfer.opcode);
        match ended(opcode, result) {
            // Behind the file's end.
            Ok(Some(0)) => Ended::Over { id, result: Err(RemoteError::Refused(opcode, Status::BadRequest)) },
            Ok(bytes) => {
                transfer.done += bytes.unwrap_or(0);
                if transfer.done >= transfer.len {
                    return Ended::Over { id, result: Ok(()) };
                }
                self.queued |= 1 << index;
                Ended::Not
            }
            Err(error) => Ended::Over { id, result: Err(error) },
        }
    }

    /// The caller sees the end of the operation of `piece`: gives what a read has read.
    pub(super) fn take(&mut self, piece: u8) -> &mut [u8] {
        let index = usize::from(piece) % PIECES;
        let Some(transfer) = self.transfers.get_mut(index).and_then(Option::take) else { return &mut [] };
        self.taken &= !(mask(transfer.len) << index);
        let from = index * PIECE_BYTES;
        let len = if transfer.opcode == Opcode::Read { transfer.len } else { 0 };
        // SAFETY: the kernel has ended the operation, and the next one needs `&mut self`.
        unsafe { self.buffer.slice(from..from + len) }
    }
}
