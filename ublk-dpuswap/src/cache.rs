//! The local cache: compressed pages in a bounded arena of 256-byte slots.
//!
//! A payload takes a chain of slots linked by `u32`s, so the arena cannot fragment and nothing is allocated after
//! start. Clean entries stand in one list and leave it by CLOCK (second chance); dirty entries are not in the list and
//! so can never be evicted: that is what makes an acknowledged write safe.
//!
//! Arena, links and entries lie in the memory that survives; lists and counters are made anew from the entries that
//! the page table names. An entry is complete before the table names it, and freed after the table stopped to.
//!
//! Invariant: every slot is either free or in exactly one entry's chain; an entry is in the clean list exactly when it
//! is neither dirty nor being written.

use bytemuck::{Pod, Zeroable};

use crate::codec::Codec;
use crate::memory::{Memory, PersistError, Slab, barrier};
use crate::model::{pack_location, unpack_location};
use crate::units::{EntryId, Location, PAGE_BYTES, PageNo};

/// Bytes in a slot.
pub const SLOT_BYTES: usize = 256;
/// One entry per this many slots: 1 KiB of arena per entry.
pub const SLOTS_PER_ENTRY: u32 = 4;
const NIL: u32 = u32::MAX;

/// What is known of a cached page.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The page.
    pub page: PageNo,
    /// How its payload is coded.
    pub codec: Codec,
    /// Bytes of payload.
    pub payload_bytes: u32,
    /// Number of the write it comes from.
    pub seq: u64,
    /// Where the same content is in remote memory; `None` while dirty.
    pub remote: Option<Location>,
    /// Not yet in remote memory.
    pub dirty: bool,
    /// A write-back is under way; the entry must stay until it ends.
    pub writing: bool,
    /// Overwritten or discarded during its write-back; freed when that ends.
    pub orphan: bool,
    /// Came into the cache by a read, not by a write.
    pub filled: bool,
    /// Brought by read-ahead, and not asked for yet.
    pub ahead: bool,
}

const USED: u32 = 1;
const DIRTY: u32 = 1 << 1;
const WRITING: u32 = 1 << 2;
const ORPHAN: u32 = 1 << 3;
const FILLED: u32 = 1 << 4;
const REFERENCED: u32 = 1 << 5;
const AHEAD: u32 = 1 << 6;
const CODEC_SHIFT: u32 = 8;

/// An entry as it lies in memory.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawEntry {
    page: u32,
    flags: u32,
    seq: u64,
    remote: u64,
    payload_bytes: u32,
    first_slot: u32,
}

impl RawEntry {
    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    fn codec(&self) -> Option<Codec> {
        Codec::from_u8((self.flags >> CODEC_SHIFT) as u8)
    }

    fn decode(&self) -> Option<Entry> {
        Some(Entry {
            page: PageNo(self.page),
            codec: self.codec()?,
            payload_bytes: self.payload_bytes,
            seq: self.seq,
            remote: unpack_location(self.remote),
            dirty: self.has(DIRTY),
            writing: self.has(WRITING),
            orphan: self.has(ORPHAN),
            filled: self.has(FILLED),
            ahead: self.has(AHEAD),
        })
    }
}

/// Neighbours in the clean list, or the next free entry.
#[derive(Debug, Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
}

/// A page on its way into the cache.
#[derive(Debug, Clone, Copy)]
pub struct NewEntry<'a> {
    /// The page.
    pub page: PageNo,
    /// How the payload is coded.
    pub codec: Codec,
    /// The payload.
    pub payload: &'a [u8],
    /// Number of the write.
    pub seq: u64,
    /// Where it already is in remote memory; `None` makes the entry dirty.
    pub remote: Option<Location>,
    /// Brought by read-ahead.
    pub ahead: bool,
}

/// The cache.
pub struct Cache {
    /// Entries brought by read-ahead that were asked for later.
    pub ahead_used: u64,
    /// Entries brought by read-ahead that left without having been asked for.
    pub ahead_wasted: u64,
    arena: Slab<u8>,
    links: Slab<u32>,
    entries: Slab<RawEntry>,
    lists: Vec<Link>,
    free_slot: u32,
    free_slots: u32,
    free_entry: u32,
    free_entries: u32,
    clean_head: u32,
    clean_tail: u32,
    clean_slots: u32,
    clean_entries: u32,
}

fn slots_of(payload_bytes: usize) -> u32 {
    payload_bytes.div_ceil(SLOT_BYTES).max(1) as u32
}

fn slot_count(bytes: u64) -> u32 {
    let least = 2 * u64::from(slots_of(PAGE_BYTES));
    (bytes / SLOT_BYTES as u64).clamp(least, u64::from(u32::MAX - 1)) as u32
}

/// Finds out at recovery which entries and slots are in use.
pub(crate) struct Claims {
    slots: Vec<u64>,
    entries: Vec<u64>,
}

fn claim(bits: &mut [u64], index: u32) -> bool {
    let Some(word) = bits.get_mut(index as usize / 64) else { return false };
    let bit = 1 << (index % 64);
    let free = *word & bit == 0;
    *word |= bit;
    free
}

fn claimed(bits: &[u64], index: u32) -> bool {
    bits.get(index as usize / 64).is_some_and(|word| word & 1 << (index % 64) != 0)
}

impl Cache {
    /// Bytes of the memory that survives for a cache of `bytes`.
    pub(crate) fn memory_bytes(bytes: u64) -> usize {
        let slots = slot_count(bytes) as usize;
        Memory::slab_bytes::<u8>(slots.saturating_mul(SLOT_BYTES))
            .saturating_add(Memory::slab_bytes::<u32>(slots))
            .saturating_add(Memory::slab_bytes::<RawEntry>(slots / SLOTS_PER_ENTRY as usize))
    }

    /// A cache whose arena has `bytes` (at least the slots of two raw pages), content as it lies in `memory`; all of it
    /// counts as free until [`Cache::clear`] or [`Cache::rebuild`].
    pub(crate) fn new(bytes: u64, memory: &mut Memory) -> Result<Self, PersistError> {
        let slots = slot_count(bytes);
        let count = slots / SLOTS_PER_ENTRY;
        Ok(Self {
            ahead_used: 0,
            ahead_wasted: 0,
            arena: memory.take(slots as usize * SLOT_BYTES)?,
            links: memory.take(slots as usize)?,
            entries: memory.take(count as usize)?,
            lists: vec![Link { prev: NIL, next: NIL }; count as usize],
            free_slot: NIL,
            free_slots: 0,
            free_entry: NIL,
            free_entries: 0,
            clean_head: NIL,
            clean_tail: NIL,
            clean_slots: 0,
            clean_entries: 0,
        })
    }

    /// Empties the cache.
    pub(crate) fn clear(&mut self) {
        let claims = self.claims();
        self.rebuild(&claims);
    }

    pub(crate) fn claims(&self) -> Claims {
        let bits = |count: usize| vec![0; count.div_ceil(64)];
        Claims { slots: bits(self.links.len()), entries: bits(self.entries.len()) }
    }

    /// Takes over an entry that the page table names for `page`, when it is whole and no other page has it. What was
    /// being written, or has a location that `valid` refuses, is dirty.
    pub(crate) fn reclaim(
        &mut self,
        claims: &mut Claims,
        id: EntryId,
        page: PageNo,
        valid: impl FnOnce(Location) -> bool,
    ) -> Option<Entry> {
        let raw = *self.entries.get(id.0 as usize)?;
        let whole = raw.has(USED) && !raw.has(ORPHAN) && raw.page == page.0 && raw.codec().is_some();
        let count = slots_of(raw.payload_bytes as usize);
        if !whole || raw.payload_bytes as usize > PAGE_BYTES || claimed(&claims.entries, id.0) {
            return None;
        }
        // The chain must be as long as the payload says: it ends in no slot.
        let (mut slot, mut taken) = (raw.first_slot, 0);
        while taken < count && (slot as usize) < self.links.len() && claim(&mut claims.slots, slot) {
            slot = self.links[slot as usize];
            taken += 1;
        }
        if taken < count || slot != NIL {
            // What was claimed is given back: a damaged link may have led into another chain.
            let mut back = raw.first_slot;
            for _ in 0..taken {
                claims.slots[back as usize / 64] &= !(1 << (back % 64));
                back = self.links[back as usize];
            }
            return None;
        }
        claim(&mut claims.entries, id.0);
        let clean = !raw.has(DIRTY) && !raw.has(WRITING);
        let remote = unpack_location(raw.remote).filter(|_| clean).filter(|at| valid(*at));
        let entry = &mut self.entries[id.0 as usize];
        let codec_bits = raw.flags & (0xff << CODEC_SHIFT);
        let keep = raw.flags & (FILLED | AHEAD);
        entry.flags = codec_bits | USED | if remote.is_some() { keep } else { DIRTY };
        entry.remote = remote.map_or(0, pack_location);
        entry.decode()
    }

    /// Makes all lists and counters anew; entries and slots not in `claims` are free.
    pub(crate) fn rebuild(&mut self, claims: &Claims) {
        (self.free_slot, self.free_slots) = (NIL, 0);
        (self.free_entry, self.free_entries) = (NIL, 0);
        (self.clean_head, self.clean_tail, self.clean_slots, self.clean_entries) = (NIL, NIL, 0, 0);
        for slot in (0..self.links.len() as u32).rev() {
            if !claimed(&claims.slots, slot) {
                self.links[slot as usize] = self.free_slot;
                self.free_slot = slot;
                self.free_slots += 1;
            }
        }
        for id in (0..self.entries.len() as u32).rev() {
            if !claimed(&claims.entries, id) {
                self.entries[id as usize].flags = 0;
                self.lists[id as usize] = Link { prev: NIL, next: self.free_entry };
                self.free_entry = id;
                self.free_entries += 1;
            } else if !self.entries[id as usize].has(DIRTY) {
                self.link_clean(id);
            }
        }
    }

    /// Slots in all.
    pub fn slots(&self) -> u32 {
        self.links.len() as u32
    }

    /// Slots that hold dirty pages, those being written included.
    pub fn dirty_slots(&self) -> u32 {
        self.slots() - self.free_slots - self.clean_slots
    }

    /// How full of dirty pages the cache is, in thousandths: of its slots or of its entries, whichever is more.
    pub fn dirty_permille(&self) -> u32 {
        let dirty_entries = self.entries.len() as u32 - self.free_entries - self.clean_entries;
        let of_slots = u64::from(self.dirty_slots()) * 1000 / u64::from(self.slots().max(1));
        let of_entries = u64::from(dirty_entries) * 1000 / (self.entries.len() as u64).max(1);
        of_slots.max(of_entries) as u32
    }

    /// Slots that hold anything.
    pub fn used_slots(&self) -> u32 {
        self.slots() - self.free_slots
    }

    /// Whether `payload_bytes` fit after evicting clean entries at most.
    pub fn can_store(&self, payload_bytes: usize) -> bool {
        self.free_slots + self.clean_slots >= slots_of(payload_bytes)
            && self.free_entries + self.clean_entries > 0
    }

    /// Whether `payload_bytes` fit without evicting anything.
    pub fn has_free(&self, payload_bytes: usize) -> bool {
        self.free_slots >= slots_of(payload_bytes) && self.free_entries > 0
    }

    /// The entry, when it is in use.
    pub fn entry(&self, id: EntryId) -> Option<Entry> {
        self.entries.get(id.0 as usize).filter(|entry| entry.has(USED))?.decode()
    }

    /// Ids of all possible entries, for the rare walk over the whole cache.
    pub fn ids(&self) -> impl Iterator<Item = EntryId> + use<> {
        (0..self.entries.len() as u32).map(EntryId)
    }

    /// Stores a page. `None` when it does not fit without evicting: see [`Cache::pop_victim`].
    pub fn insert(&mut self, new: &NewEntry<'_>) -> Option<EntryId> {
        if new.payload.len() > PAGE_BYTES || !self.has_free(new.payload.len()) {
            return None;
        }
        let id = self.free_entry;
        let next_free = self.lists.get(id as usize)?.next;
        let first_slot = self.take_slots(new.payload);
        self.free_entry = next_free;
        self.free_entries -= 1;
        let clean = new.remote.is_some();
        let ahead = if new.ahead { AHEAD } else { 0 };
        let state = if clean { FILLED | ahead } else { DIRTY };
        self.entries[id as usize] = RawEntry {
            page: new.page.0,
            flags: USED | state | (new.codec as u32) << CODEC_SHIFT,
            seq: new.seq,
            remote: new.remote.map_or(0, pack_location),
            payload_bytes: new.payload.len() as u32,
            first_slot,
        };
        if clean {
            self.link_clean(id);
        }
        barrier();
        Some(EntryId(id))
    }

    fn used(&mut self, id: EntryId) -> Option<&mut RawEntry> {
        self.entries.get_mut(id.0 as usize).filter(|entry| entry.has(USED))
    }

    /// Copies the payload of an entry into the start of `out`; gives its length.
    pub fn copy_out(&self, id: EntryId, out: &mut [u8]) -> usize {
        let Some(entry) = self.entries.get(id.0 as usize).filter(|entry| entry.has(USED)) else { return 0 };
        let len = (entry.payload_bytes as usize).min(out.len());
        let mut slot = entry.first_slot;
        for piece in out[..len].chunks_mut(SLOT_BYTES) {
            let from = slot as usize * SLOT_BYTES;
            piece.copy_from_slice(&self.arena[from..from + piece.len()]);
            slot = self.links[slot as usize];
        }
        len
    }

    /// Notes that the entry was asked for, so that eviction passes it over once.
    pub fn touch(&mut self, id: EntryId) {
        let Some(entry) = self.used(id) else { return };
        let ahead = entry.has(AHEAD);
        entry.flags = (entry.flags | REFERENCED) & !AHEAD;
        self.ahead_used += u64::from(ahead);
    }

    /// The clean entry that CLOCK gives up next. It stays in the cache until [`Cache::free`].
    pub fn pop_victim(&mut self) -> Option<EntryId> {
        for _ in 0..=self.clean_entries {
            let id = self.clean_head;
            let entry = self.entries.get_mut(id as usize)?;
            if !entry.has(REFERENCED) {
                return Some(EntryId(id));
            }
            entry.flags &= !REFERENCED;
            self.unlink_clean(id);
            self.link_clean(id);
        }
        None
    }

    /// Marks a dirty entry as being written back.
    pub fn begin_write(&mut self, id: EntryId) {
        if let Some(entry) = self.used(id) {
            entry.flags |= WRITING;
        }
    }

    /// Ends a write-back: clean at `remote`, or dirty as before when `None`.
    pub fn end_write(&mut self, id: EntryId, remote: Option<Location>) {
        let Some(entry) = self.used(id) else { return };
        let Some(at) = remote else {
            entry.flags &= !WRITING;
            return;
        };
        entry.remote = pack_location(at);
        barrier();
        entry.flags &= !(WRITING | DIRTY);
        barrier();
        self.link_clean(id.0);
    }

    /// Makes a clean entry dirty again, because its remote copy is gone. Gives the lost location.
    pub fn make_dirty(&mut self, id: EntryId) -> Option<Location> {
        let entry = self.used(id).filter(|entry| !entry.has(DIRTY))?;
        let old = unpack_location(entry.remote)?;
        entry.flags = (entry.flags | DIRTY) & !(FILLED | AHEAD);
        barrier();
        entry.remote = 0;
        barrier();
        self.unlink_clean(id.0);
        Some(old)
    }

    /// Records that the remote copy of a clean entry has moved.
    pub fn moved(&mut self, id: EntryId, remote: Location) {
        if let Some(entry) = self.used(id) {
            entry.remote = pack_location(remote);
            barrier();
        }
    }

    /// Marks an entry that is being written as no longer wanted.
    pub fn orphan(&mut self, id: EntryId) {
        if let Some(entry) = self.used(id) {
            entry.flags |= ORPHAN;
        }
    }

    /// Gives the entry and its slots back.
    pub fn free(&mut self, id: EntryId) {
        let Some(entry) = self.entries.get(id.0 as usize).copied().filter(|entry| entry.has(USED)) else {
            return;
        };
        if !entry.has(DIRTY) {
            self.unlink_clean(id.0);
        }
        self.ahead_wasted += u64::from(entry.has(AHEAD));
        let mut last = entry.first_slot;
        let count = slots_of(entry.payload_bytes as usize);
        for _ in 1..count {
            last = self.links[last as usize];
        }
        barrier();
        self.links[last as usize] = self.free_slot;
        self.free_slot = entry.first_slot;
        self.free_slots += count;
        self.entries[id.0 as usize].flags = 0;
        self.lists[id.0 as usize] = Link { prev: NIL, next: self.free_entry };
        self.free_entry = id.0;
        self.free_entries += 1;
    }

    fn take_slots(&mut self, payload: &[u8]) -> u32 {
        let first = self.free_slot;
        let mut slot = first;
        let count = slots_of(payload.len());
        for index in 0..count as usize {
            let piece = &payload[index * SLOT_BYTES..payload.len().min((index + 1) * SLOT_BYTES)];
            let to = slot as usize * SLOT_BYTES;
            self.arena[to..to + piece.len()].copy_from_slice(piece);
            let next = self.links[slot as usize];
            if index + 1 == count as usize {
                self.links[slot as usize] = NIL;
            }
            slot = next;
        }
        self.free_slot = slot;
        self.free_slots -= count;
        first
    }

    fn link_clean(&mut self, id: u32) {
        let tail = self.clean_tail;
        self.lists[id as usize] = Link { prev: tail, next: NIL };
        match self.lists.get_mut(tail as usize) {
            Some(last) => last.next = id,
            None => self.clean_head = id,
        }
        self.clean_tail = id;
        self.clean_slots += slots_of(self.entries[id as usize].payload_bytes as usize);
        self.clean_entries += 1;
    }

    fn unlink_clean(&mut self, id: u32) {
        let Link { prev, next } = self.lists[id as usize];
        match self.lists.get_mut(prev as usize) {
            Some(link) => link.next = next,
            None => self.clean_head = next,
        }
        match self.lists.get_mut(next as usize) {
            Some(link) => link.prev = prev,
            None => self.clean_tail = prev,
        }
        self.clean_slots -= slots_of(self.entries[id as usize].payload_bytes as usize);
        self.clean_entries -= 1;
    }
}

#[cfg(test)]
mod tests;
