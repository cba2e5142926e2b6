//! The state that survives: its header, who the device is, and how a model is taken over after a crash.
//!
//! Only the page table, the cache's entries, links and arena, and the block table are believed. Free lists, counters,
//! live units and queues are made anew from them. What contradicts itself is dropped and counted, never followed.
//! Invariant: after [`Model::recover`] the model is as consistent as one that was never interrupted, whatever bytes the
//! mapping had.

use bytemuck::{Pod, Zeroable};

use super::blocks::Blocks;
use super::groups::DirtyGroups;
use super::table::PageTable;
use super::{Mapping, Model, Usage};
use crate::cache::Cache;
use crate::memory::{Memory, PersistError, Slab, barrier};
use crate::record::record_bytes;
use crate::units::{Location, MAX_NODES, MAX_REPLICAS, PAGE_BYTES, PageNo};

const MAGIC: u64 = u64::from_le_bytes(*b"dpuswap\0");
const VERSION: u32 = 1;
const REMEDY: &str = "start a new device instead of recovering this one";
/// Longest name of a node, bytes.
pub const NODE_NAME_BYTES: usize = 120;

/// How large the parts of the model are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Pages of the device.
    pub pages: u32,
    /// Pages of a block group: written back together, to one contiguous run.
    pub group_pages: u32,
    /// Bytes of cache.
    pub cache_bytes: u64,
    /// Most blocks to use at once; each takes as many remote blocks as it has copies.
    pub max_blocks: u32,
    /// Node slots.
    pub nodes: u16,
    /// Copies wanted of each block.
    pub replicas: u8,
    /// Whether records are sealed with the page key.
    pub sealed: bool,
}

impl Shape {
    fn check(&self) -> Result<(), PersistError> {
        let wrong = |field, value: u64, right| Err(PersistError::Shape { field, value, right });
        match self {
            Self { pages: 0, .. } => wrong("pages", 0, "at least 1"),
            Self { group_pages: 0, .. } => wrong("group_pages", 0, "at least 1"),
            Self { max_blocks: 0, .. } => wrong("max_blocks", 0, "at least 1"),
            Self { max_blocks, .. } if *max_blocks > 1 << 30 => {
                wrong("max_blocks", u64::from(*max_blocks), "at most 2^30")
            }
            Self { nodes, .. } if *nodes == 0 || usize::from(*nodes) > MAX_NODES => {
                wrong("nodes", u64::from(*nodes), "1 to 64")
            }
            Self { replicas, .. } if *replicas == 0 || usize::from(*replicas) > MAX_REPLICAS => {
                wrong("replicas", u64::from(*replicas), "1 to 3")
            }
            Self { cache_bytes, .. } if *cache_bytes > 1 << 39 => {
                wrong("cache_bytes", *cache_bytes, "at most 512 GiB")
            }
            _ => Ok(()),
        }
    }
}

/// The start of the mapping: 64 bytes.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u32,
    /// crc32c of the fields from `cache_bytes` on.
    crc: u32,
    cache_bytes: u64,
    pages: u32,
    group_pages: u32,
    max_blocks: u32,
    nodes: u16,
    replicas: u8,
    sealed: u8,
    reserved: [u64; 3],
}

impl Header {
    fn of(shape: &Shape) -> Self {
        let mut header = Self {
            magic: MAGIC,
            version: VERSION,
            crc: 0,
            cache_bytes: shape.cache_bytes,
            pages: shape.pages,
            group_pages: shape.group_pages,
            max_blocks: shape.max_blocks,
            nodes: shape.nodes,
            replicas: shape.replicas,
            sealed: shape.sealed.into(),
            reserved: [0; 3],
        };
        header.crc = header.checksum();
        header
    }

    fn checksum(&self) -> u32 {
        crc32c::crc32c(&bytemuck::bytes_of(self)[16..])
    }

    fn shape(&self, name: &str) -> Result<Shape, PersistError> {
        let wrong = |field, value: u64, right: String| {
            Err(PersistError::Header { name: name.to_owned(), field, value, right, remedy: REMEDY })
        };
        if self.magic != MAGIC {
            return wrong("magic", self.magic, format!("that of a device's state is {MAGIC:#x}"));
        }
        if self.version != VERSION {
            return wrong("version", self.version.into(), format!("this build reads {VERSION}"));
        }
        if self.crc != self.checksum() {
            return wrong("crc", self.crc.into(), format!("the header's is {:#x}", self.checksum()));
        }
        let shape = Shape {
            pages: self.pages,
            group_pages: self.group_pages,
            cache_bytes: self.cache_bytes,
            max_blocks: self.max_blocks,
            nodes: self.nodes,
            replicas: self.replicas,
            sealed: self.sealed != 0,
        };
        shape.check().map(|()| shape)
    }
}

/// What is known of one node slot.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct NodeIdentity {
    /// The node's epoch when we last spoke.
    pub epoch: u64,
    /// Our lease there.
    pub lease: u64,
    /// Not 0 when the node is to be used.
    pub wanted: u32,
    name_bytes: u32,
    name: [[u8; 8]; NODE_NAME_BYTES / 8],
}

impl NodeIdentity {
    /// The node's name; empty for a slot that was never used, or a damaged one.
    pub fn name(&self) -> &str {
        let bytes = self.name.as_flattened().get(..self.name_bytes as usize).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// Names the slot. `false` when the name is longer than [`NODE_NAME_BYTES`]: nothing is changed.
    #[must_use]
    pub fn set_name(&mut self, name: &str) -> bool {
        let Some(room) = self.name.as_flattened_mut().get_mut(..name.len()) else { return false };
        room.copy_from_slice(name.as_bytes());
        self.name_bytes = name.len() as u32;
        true
    }
}

/// Who the device is to its nodes, and its page key.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Identity {
    /// The client's number, by which nodes know its blocks.
    pub client_id: u64,
    /// The last incarnation that was used.
    pub incarnation: u64,
    /// The key that pages are sealed with.
    pub page_key: [u8; 32],
    /// The node slots.
    pub nodes: [NodeIdentity; MAX_NODES],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity {{ client_id: {:#x}, incarnation: {}, .. }}", self.client_id, self.incarnation)
    }
}

/// What a recovery found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Pages with content.
    pub pages: u64,
    /// Of these, pages that are not yet in remote memory.
    pub dirty: u64,
    /// Blocks with content.
    pub blocks: u32,
    /// Things that contradicted themselves and were dropped or made dirty: 0 after a kill, more after damage.
    pub repaired: u64,
}

/// The slabs that are the model's own.
pub(super) struct Root {
    header: Slab<Header>,
    pub(super) identity: Slab<Identity>,
    /// The next sequence number.
    pub(super) next_seq: Slab<u64>,
}

/// Sequence numbers this large were never counted up to.
const MOST_SEQ: u64 = 1 << 62;

impl Model {
    /// Bytes of memory that a device of this shape needs.
    pub fn memory_bytes(shape: Shape) -> usize {
        let parts = [
            Memory::slab_bytes::<Header>(1),
            Memory::slab_bytes::<Identity>(1),
            Memory::slab_bytes::<u64>(1),
            Memory::slab_bytes::<u64>(shape.pages as usize),
            Cache::memory_bytes(shape.cache_bytes),
            Blocks::memory_bytes(shape.max_blocks),
        ];
        parts.into_iter().fold(0, usize::saturating_add)
    }

    fn carve(shape: Shape, header: Slab<Header>, mut memory: Memory) -> Result<Self, PersistError> {
        let need_bytes = Self::memory_bytes(shape);
        if memory.bytes() < need_bytes {
            let name = memory.name().to_owned();
            return Err(PersistError::TooSmall { name, have_bytes: memory.bytes(), need_bytes });
        }
        let memory = &mut memory;
        let root = Root { header, identity: memory.take(1)?, next_seq: memory.take(1)? };
        Ok(Self {
            root,
            table: PageTable::new(shape.pages, memory)?,
            cache: Cache::new(shape.cache_bytes, memory)?,
            blocks: Blocks::new(shape.max_blocks, shape.nodes, shape.replicas, memory)?,
            dirty: DirtyGroups::new(shape.pages.div_ceil(shape.group_pages)),
            shape,
            usage: Usage::default(),
        })
    }

    /// An empty device in `memory`, whatever was there. All nodes count as answering, with nothing to lend.
    ///
    /// # Errors
    /// A shape that cannot be, or too little memory.
    pub fn create(shape: Shape, mut memory: Memory) -> Result<Self, PersistError> {
        shape.check()?;
        let mut header = memory.take::<Header>(1)?;
        // Until the last line a crash leaves nothing that could be taken for a state.
        header.fill(Zeroable::zeroed());
        barrier();
        let mut model = Self::carve(shape, header, memory)?;
        model.root.identity.fill(Zeroable::zeroed());
        model.root.next_seq.fill(1);
        model.table.clear();
        model.cache.clear();
        model.blocks.clear();
        barrier();
        model.root.header.fill(Header::of(&shape));
        Ok(model)
    }

    /// The device that was in `memory` when its process ended. No node counts as answering: see [`Model::node_up`].
    /// Pools of empty blocks are unknown: [`Blocks::add_reserved`] for what a node says we hold and is no copy.
    ///
    /// # Errors
    /// No state, one of another version, or a header that is damaged.
    pub fn recover(mut memory: Memory) -> Result<(Self, Recovered), PersistError> {
        let name = memory.name().to_owned();
        let header = memory.take::<Header>(1)?;
        let shape = header.first().copied().unwrap_or(Zeroable::zeroed()).shape(&name)?;
        let mut model = Self::carve(shape, header, memory)?;
        let damaged = |field, value| PersistError::Header {
            name: name.clone(),
            field,
            value,
            right: "a count from 1 to 2^62".to_owned(),
            remedy: REMEDY,
        };
        let next_seq = model.root.next_seq.first().copied().unwrap_or(0);
        if next_seq == 0 || next_seq > MOST_SEQ {
            return Err(damaged("next_seq", next_seq));
        }
        let repaired = model.blocks.repair().map_err(|value| damaged("next_generation", value))?;
        let mut recovered = Recovered { repaired, ..Recovered::default() };
        model.take_over(&mut recovered);
        Ok((model, recovered))
    }

    fn take_over(&mut self, recovered: &mut Recovered) {
        let least = record_bytes(0, self.shape.sealed) as u32;
        let most = record_bytes(PAGE_BYTES, self.shape.sealed) as u32;
        let sane = |at: Location| (least..=most).contains(&at.len_bytes);
        let mut claims = self.cache.claims();
        for page in (0..self.shape.pages).map(PageNo) {
            match self.table.get(page) {
                Mapping::Absent => continue,
                Mapping::SameFilled(pattern) => self.table.set(page, Mapping::SameFilled(pattern)),
                Mapping::Remote(at) => {
                    if !sane(at) || !self.blocks.is_valid(at) {
                        self.table.set(page, Mapping::Absent);
                        recovered.repaired += 1;
                        continue;
                    }
                    self.blocks.add_live(at);
                }
                Mapping::Cached(id) => {
                    let blocks = &self.blocks;
                    let mut refused = false;
                    let valid = |at| {
                        refused = !(sane(at) && blocks.is_valid(at));
                        !refused
                    };
                    let Some(entry) = self.cache.reclaim(&mut claims, id, page, valid) else {
                        self.table.set(page, Mapping::Absent);
                        recovered.repaired += 1;
                        continue;
                    };
                    self.table.set(page, Mapping::Cached(id));
                    recovered.repaired += u64::from(refused);
                    recovered.dirty += u64::from(entry.dirty);
                    match entry.remote {
                        Some(at) => self.blocks.add_live(at),
                        None => self.dirty.push(page.0 / self.shape.group_pages),
                    }
                }
            }
            recovered.pages += 1;
            let mapping = self.table.get(page);
            self.weigh(mapping, true);
        }
        self.cache.rebuild(&claims);
        recovered.blocks = self.blocks.settle();
    }

    /// Who the device is.
    pub fn identity(&self) -> &Identity {
        &self.root.identity[0]
    }

    /// Who the device is, to be changed: it is stored at once.
    pub fn identity_mut(&mut self) -> &mut Identity {
        &mut self.root.identity[0]
    }
}
