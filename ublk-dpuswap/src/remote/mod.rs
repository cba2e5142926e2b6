//! Memory that another machine lends: reserve blocks, write and read them by offset, give them back.
//!
//! The engine knows only [`RemoteNode`]. [`tcp`] speaks to `dpuswap-node`; [`mem`] is a node inside the process, with
//! faults to order, for tests and for measuring everything but the network.

pub mod mem;
pub mod tcp;

use std::io;

use crate::proto::{Info, Opcode, ProtoError, Status};
use crate::units::RemoteBlock;

/// Which of a node's connections a caller uses. Each thread that does I/O has its own, so none waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane(pub usize);

impl Lane {
    /// Heartbeats, reconnection, releases.
    pub const CONTROL: Lane = Lane(0);
    /// Write-back and cleaning.
    pub const WRITER: Lane = Lane(1);

    /// Reads of queue `queue`.
    pub fn queue(queue: u16) -> Self {
        Lane(2 + usize::from(queue))
    }

    /// Lanes of a device with `queues` queues.
    pub fn count(queues: u16) -> usize {
        2 + usize::from(queues)
    }
}

/// Why a node did not do what it was asked. Making one allocates nothing: it happens on the swap path.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// No connection can be made.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("{0:?}: {1}")]
    Io(Opcode, #[source] io::Error),
    /// The node closed the connection.
    #[error("the connection was closed by the node")]
    Closed,
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The connection was lost before and is not back.
    #[error("not connected")]
    NotConnected,
    /// The peer sends something that is not our protocol.
    #[error("not a usable dpuswap-node: {0}")]
    Protocol(#[from] ProtoError),
    /// An answer that does not belong to the request.
    #[error("an answer to another request")]
    Mixed,
    /// The node refused.
    #[error("{0:?} refused: {1}")]
    Refused(Opcode, Status),
}

impl RemoteError {
    /// The error for a failed transfer in `opcode`.
    pub fn from_io(opcode: Opcode, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io(opcode, error),
        }
    }
}

/// What RESERVE gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// Blocks granted: the first so many of the caller's array.
    pub granted: usize,
    /// Blocks the node can still lend.
    pub free_blocks: u32,
}

/// A node. All calls block, for a bounded time; none allocates after [`RemoteNode::connect`].
///
/// After an error other than a refusal the lane is unusable until the next `connect`.
pub trait RemoteNode: Send + Sync {
    /// How messages name the node: its address.
    fn name(&self) -> &str;

    /// Opens every lane, dropping what was open. A changed epoch or lease in the answer means that all blocks
    /// reserved before are gone.
    ///
    /// # Errors
    /// The node cannot be reached, is something else, or refuses.
    fn connect(&self) -> Result<Info, RemoteError>;

    /// Closes every lane on purpose: the node takes its blocks back.
    fn disconnect(&self);

    /// Borrows up to `blocks.len()` blocks. Fewer, or none, is not an error.
    ///
    /// # Errors
    /// The connection failed or the node refused.
    fn reserve(&self, lane: Lane, blocks: &mut [RemoteBlock]) -> Result<Reserved, RemoteError>;

    /// Gives blocks back; their content is gone. Gives the number the node can lend now.
    ///
    /// # Errors
    /// The connection failed or the node refused.
    fn release(&self, lane: Lane, blocks: &[RemoteBlock]) -> Result<u32, RemoteError>;

    /// Writes `data` at byte `offset_bytes` of a block. When it fails, that range may hold anything.
    ///
    /// # Errors
    /// The connection failed or the node refused.
    fn write_at(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
    ) -> Result<(), RemoteError>;

    /// Reads `data.len()` bytes from byte `offset_bytes` of a block.
    ///
    /// # Errors
    /// The connection failed or the node refused.
    fn read_at(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &mut [u8],
    ) -> Result<(), RemoteError>;

    /// What the node has and can lend.
    ///
    /// # Errors
    /// The connection failed or the node refused.
    fn stat(&self, lane: Lane) -> Result<Info, RemoteError>;
}
