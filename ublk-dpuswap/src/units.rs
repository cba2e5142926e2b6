//! Sizes and the numbers that must not be mixed up.

/// Bytes in a logical page: the unit in which the kernel swaps.
pub const PAGE_BYTES: usize = 4096;
/// Bytes in a remote block: the unit in which nodes lend memory (1 MiB).
pub const BLOCK_BYTES: usize = 1 << 20;
/// Remote offsets are multiples of this; a record is padded up to it.
pub const UNIT_BYTES: usize = 64;
/// Units in a remote block.
pub const UNITS_PER_BLOCK: u32 = (BLOCK_BYTES / UNIT_BYTES) as u32;

/// Number of a 4 KiB page of the device, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(pub u32);

/// Index of a block in the client's own block table (not the number the node knows it by).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// Most nodes of a device; each has a slot that it keeps.
pub const MAX_NODES: usize = 64;
/// Most copies of a block, each on another node.
pub const MAX_REPLICAS: usize = 3;

/// Number by which a node knows one of its blocks, and how often that block had been lent before: a message that comes late
/// never touches a block that is lent anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteBlock {
    /// The block.
    pub number: u32,
    /// How often it had been lent before.
    pub generation: u32,
}

impl RemoteBlock {
    /// A block of a node that does not count generations.
    pub const fn numbered(number: u32) -> Self {
        Self { number, generation: 0 }
    }
}

/// Index of a node, in the order in which the nodes were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "number {}", self.0)
    }
}

/// Index of an entry of the local cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub u32);

/// Where a page's record lies in remote memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The block, by the client's own number.
    pub block: BlockId,
    /// First unit (64 bytes) of the record in the block.
    pub offset_units: u32,
    /// Length of the record, header included, without padding.
    pub len_bytes: u32,
}

impl Location {
    /// Units the record takes, padding included.
    pub fn units(self) -> u32 {
        units_of(self.len_bytes as usize)
    }

    /// Byte offset of the record in its block.
    pub fn offset_bytes(self) -> usize {
        self.offset_units as usize * UNIT_BYTES
    }
}

/// Units needed for `bytes`.
pub fn units_of(bytes: usize) -> u32 {
    bytes.div_ceil(UNIT_BYTES) as u32
}

/// A small, seeded source of choices (xorshift64*): placement must be repeatable in a test.
#[derive(Debug, Clone)]
pub struct Choices(u64);

impl Choices {
    /// Choices that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    /// A number in `0..bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        ((u64::from(high) * u64::from(bound)) >> 32) as u32
    }
}
