//! What links are made of, and what they give: the ways to a node, the protocols, and the ends of operations.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Outbox;
use crate::proto::{Opcode, Status};
use crate::remote::RemoteError;
use crate::units::{NodeId, RemoteBlock};

/// How one queue reaches one node.
pub enum LinkStart {
    /// A connection that is ready for requests.
    Socket {
        /// Connected, with nothing on its way.
        socket: OwnedFd,
        /// What is spoken on it.
        codec: Box<dyn LinkCodec>,
    },
    /// A file or a block device: block `n` is its `n`-th MiB.
    File(OwnedFd),
    /// Something in this process, which answers at once.
    Memory(Arc<dyn LinkMemory>),
}

/// A node that answers at once.
pub trait LinkMemory: Send + Sync {
    /// Reads `data.len()` bytes from byte `offset_bytes` of a block.
    ///
    /// # Errors
    /// As [`crate::remote::RemoteNode::read_at`].
    fn read(&self, block: RemoteBlock, offset_bytes: u32, data: &mut [u8]) -> Result<(), RemoteError>;

    /// Writes `data` at byte `offset_bytes` of a block.
    ///
    /// # Errors
    /// As [`crate::remote::RemoteNode::write_at`].
    fn write(&self, block: RemoteBlock, offset_bytes: u32, data: &[u8]) -> Result<(), RemoteError>;
}

/// A protocol of reads and writes: bytes in, bytes out. It allocates nothing.
pub trait LinkCodec: Send {
    /// Puts the request for `len_bytes` bytes; its answer names `id`. `false`: no room, and nothing was put.
    fn read(
        &mut self,
        id: u32,
        block: RemoteBlock,
        offset_bytes: u32,
        len_bytes: u32,
        out: &mut Outbox,
    ) -> bool;

    /// Puts the request to write `data`. `false`: no room, and nothing was put.
    fn write(
        &mut self,
        id: u32,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
        out: &mut Outbox,
    ) -> bool;

    /// Looks for an answer at the start of `bytes`, which are not empty. Asked again about the same bytes only when as many
    /// are there as [`Parsed::More`] said.
    ///
    /// # Errors
    /// These bytes are nothing of this protocol: the link is broken.
    fn parse(&mut self, bytes: &mut [u8]) -> Result<Parsed, RemoteError>;
}

/// What a node's refusal says: of what, and why.
pub type Refusal = (Opcode, Status);

/// What is at the start of the bytes that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A part of an answer; it has so many bytes in all, or more.
    More(usize),
    /// An answer.
    Message {
        /// Bytes it takes.
        used: usize,
        /// The request's number.
        id: u32,
        /// Where among these bytes its data lies (an empty range for a write), or the node's refusal.
        result: Result<Range<usize>, Refusal>,
    },
}

/// The end of an operation.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// The caller's number.
    pub op: u32,
    /// The node.
    pub node: NodeId,
    /// What a read has read (empty for a write). It may be changed in place, and stays until the links are used again.
    pub result: Result<&'a mut [u8], RemoteError>,
}
