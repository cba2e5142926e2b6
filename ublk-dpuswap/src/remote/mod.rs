//! Memory that another machine lends: reserve blocks, write and read them by offset, give them back.
//!
//! The engine knows only [`RemoteNode`]. [`tcp`] speaks to `dpuswap-node`; [`mem`] is a node inside the process, with
//! faults to order, for tests and for measuring everything but the network.

pub mod address;
pub mod claim;
pub mod file;
pub mod mem;
pub mod nbd;
pub mod tcp;

use std::io;
use std::sync::Arc;

use bytesize::ByteSize;

use crate::error::Error;
pub use crate::links::LinkStart;
use crate::proto::{Info, Opcode, ProtoError, Status};
use crate::secure::Security;
use crate::units::RemoteBlock;

/// Which of a node's blocking connections a caller uses. Each thread has its own, so none waits for another. The queues
/// have none: their connections are part of their rings ([`RemoteNode::open_link`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane(pub usize);

impl Lane {
    /// Heartbeats, reservations ahead, releases.
    pub const CONTROL: Lane = Lane(0);
    /// Write-back and cleaning.
    pub const WRITER: Lane = Lane(1);
    /// Copies of whole blocks.
    pub const COPIER: Lane = Lane(2);
    /// Lanes of a node.
    pub const COUNT: usize = 3;
}

/// Why a node did not do what it was asked. Making one allocates nothing: it happens on the swap path.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The node's name means nothing now.
    #[error("its name cannot be resolved: {0}")]
    Resolve(#[source] io::Error),
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
    /// The peer is no NBD server that can be used, or no longer the one it was.
    #[error("not a usable NBD server: {0}")]
    Nbd(#[from] nbd::wire::NbdError),
    /// An NBD server answered a request with an error.
    #[error("{0:?} failed at the NBD server: {1}")]
    Server(Opcode, nbd::wire::Errno),
    /// What is stored there does not belong to this client.
    #[error("{0}")]
    Claim(#[from] claim::ClaimError),
    /// A local file or device cannot be used.
    #[error("{0}: {1}")]
    Local(&'static str, #[source] io::Error),
    /// More writes were begun on a lane than may be unfinished, or another request before all were finished.
    #[error("unfinished writes on the lane")]
    Unfinished,
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

/// A node. All calls block, for a bounded time; none allocates after [`RemoteNode::connect`], but [`RemoteNode::open_link`].
///
/// After an error other than a refusal the lane is unusable until the next `connect`.
pub trait RemoteNode: Send + Sync {
    /// How messages name the node: its address.
    fn name(&self) -> &str;

    /// Opens every lane, dropping what was open; late messages of older connections have no effect from here on. A changed
    /// epoch or lease in the answer means that all blocks reserved before are gone.
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

    /// Sends `data` to byte `offset_bytes` of a block, without waiting for the answer; several may be on their way. Gives a
    /// ticket, never the same twice, also over reconnections. When a write fails, its range may hold anything.
    ///
    /// # Errors
    /// The connection failed.
    fn start_write(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
    ) -> Result<u64, RemoteError>;

    /// Waits for the answer to the write with this ticket, the oldest that was started on this lane.
    ///
    /// # Errors
    /// The connection failed or the node refused; [`RemoteError::Unfinished`] when the lane was connected again since, so that
    /// nobody knows what became of the write.
    fn finish_write(&self, lane: Lane, ticket: u64) -> Result<(), RemoteError>;

    /// Writes `data` at byte `offset_bytes` of a block, on a lane without unfinished writes.
    ///
    /// # Errors
    /// The connection failed or the node refused.
    fn write_at(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
    ) -> Result<(), RemoteError> {
        let ticket = self.start_write(lane, block, offset_bytes, data)?;
        self.finish_write(lane, ticket)
    }

    /// Reads `data.len()` bytes from byte `offset_bytes` of a block, on a lane without unfinished writes.
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

    /// What the node has and can lend, and what it wants back.
    ///
    /// # Errors
    /// The connection failed or the node refused.
    fn stat(&self, lane: Lane) -> Result<Info, RemoteError>;

    /// Names every block that this client holds.
    ///
    /// # Errors
    /// The connection failed or the node refused.
    fn held(&self, lane: Lane, found: &mut dyn FnMut(RemoteBlock)) -> Result<(), RemoteError>;

    /// A connection for one queue's ring, ready for requests. It belongs to the same life as the lanes.
    ///
    /// # Errors
    /// The node cannot be reached, or refuses.
    fn open_link(&self, queue: u16) -> Result<LinkStart, RemoteError>;

    /// The next [`RemoteNode::connect`] is to be later than this incarnation, which an earlier process may have used.
    fn set_incarnation(&self, _incarnation: u64) {}

    /// Whether blocks here are only for when no other node has one: a disk of this machine.
    fn is_last_resort(&self) -> bool {
        false
    }
}

/// How nodes are reached.
#[derive(Clone)]
pub struct NodeOptions {
    /// A node that does not answer within this time is down.
    pub timeout: std::time::Duration,
    /// How nodes prove who they are.
    pub security: Security,
}

impl NodeOptions {
    /// Makes the node of a name, and connects and looks up nothing: `HOST:PORT` (a `dpuswap-node`), `nbd://HOST:PORT/EXPORT`,
    /// `nbd+unix:///EXPORT?socket=PATH`, `file:PATH?size=SIZE` (the last resort), `mem:SIZE` (in this process, for measurements).
    ///
    /// # Errors
    /// [`Error::NodeName`] and what the kind of node says.
    pub fn open(&self, name: &str, client_id: u64) -> Result<Arc<dyn RemoteNode>, Error> {
        if name.starts_with("nbd://") || name.starts_with("nbd+unix://") {
            return Ok(Arc::new(nbd::NbdNode::new(name, client_id, self.timeout)?));
        }
        if name.starts_with("file:") {
            return Ok(Arc::new(file::FileNode::new(name, client_id)?));
        }
        if let Some(size) = name.strip_prefix("mem:") {
            let blocks =
                size.parse::<ByteSize>().ok().and_then(|size| u32::try_from(size.as_u64() >> 20).ok());
            let bad = || Error::Option(format!("node {name}: a size such as mem:2GiB is needed"));
            let blocks = blocks.filter(|blocks| *blocks > 0).ok_or_else(bad)?;
            return Ok(Arc::new(mem::MemNode::new(name, blocks)));
        }
        Ok(Arc::new(tcp::TcpNode::new(name, client_id, 0, self.timeout, self.security.clone())?))
    }
}
