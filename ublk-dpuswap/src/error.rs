//! Everything that can go wrong, in two kinds: before the device exists ([`Error`]), and for one request ([`IoError`]).

use crate::record::RecordError;
use crate::remote::RemoteError;
use crate::units::NodeId;

/// Why the device, or a node, could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A node's name is not `HOST:PORT`.
    #[error("node {node}: {source}")]
    NodeName {
        /// As given.
        node: String,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// A node cannot be used.
    #[error("node {node}: {source}")]
    Node {
        /// Its address.
        node: String,
        /// Why.
        source: RemoteError,
    },
    /// A node has nothing to lend.
    #[error("node {node}: it has no free memory to lend ({capacity_blocks} MiB, all lent)")]
    NodeFull {
        /// Its address.
        node: String,
        /// Blocks it has.
        capacity_blocks: u32,
    },
    /// The mapping that outlives the process.
    #[error("the device's memory: {0}")]
    Memory(#[from] crate::model::PersistError),
    /// Where nodes are announced.
    #[error(transparent)]
    Discover(#[from] crate::discover::DiscoverError),
    /// The key that device and nodes share.
    #[error(transparent)]
    Key(#[from] crate::secure::KeyFileError),
    /// An option that cannot be.
    #[error("{0}")]
    Option(String),
    /// Protection of the process against its own swapping.
    #[error("{what}: {source}; {remedy}")]
    Protect {
        /// The step.
        what: &'static str,
        /// What the kernel says.
        source: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Memory, a socket, a file or a thread of a node or an engine.
    #[error("{what}: {source}")]
    System {
        /// The thing.
        what: String,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Why a request failed. Making one allocates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// Not a range of whole pages inside the device.
    #[error("the range is not within the device, in whole pages")]
    Range,
    /// The page's only copy is on a node that does not answer.
    #[error("node {0} does not answer")]
    NodeDown(NodeId),
    /// Every copy of the page was on nodes that have forgotten it.
    #[error("its nodes have restarted and lost the page")]
    Lost,
    /// The page's record on the node is not what was written.
    #[error("a damaged record on node {0}: {1}")]
    Record(NodeId, RecordError),
    /// The cache is full and no node answers.
    #[error("the cache is full and no node answers")]
    NoNode,
    /// The cache is full and the nodes have nothing to lend.
    #[error("the cache is full and no node has memory to lend")]
    NoSpace,
    /// The request lost too many races; the kernel will try again.
    #[error("gave up after too many retries")]
    Retries,
}
