//! The local cache: compressed pages in a bounded arena of 256-byte slots.
//!
//! A payload takes a chain of slots linked by `u32`s, so the arena cannot fragment and nothing is allocated after
//! start. Clean entries stand in one list and leave it by CLOCK (second chance); dirty entries are not in the list and
//! so can never be evicted: that is what makes an acknowledged write safe.
//!
//! Invariant: every slot is either free or in exactly one entry's chain; an entry is in the clean list exactly when it
//! is neither dirty nor being written.

use crate::codec::Codec;
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
    used: bool,
    referenced: bool,
    first_slot: u32,
    prev: u32,
    next: u32,
}

const FREE_ENTRY: Entry = Entry {
    page: PageNo(0),
    codec: Codec::Raw,
    payload_bytes: 0,
    seq: 0,
    remote: None,
    dirty: false,
    writing: false,
    orphan: false,
    filled: false,
    used: false,
    referenced: false,
    first_slot: NIL,
    prev: NIL,
    next: NIL,
};

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
}

/// The cache.
pub struct Cache {
    arena: Vec<u8>,
    links: Vec<u32>,
    free_slot: u32,
    free_slots: u32,
    entries: Vec<Entry>,
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

impl Cache {
    /// A cache whose arena has `bytes` (at least the slots of two raw pages); links and entries come on top (~8 %).
    pub fn new(bytes: u64) -> Self {
        let slots = (bytes / SLOT_BYTES as u64)
            .clamp(2 * slots_of(PAGE_BYTES) as u64, u64::from(u32::MAX - 1)) as u32;
        let count = slots / SLOTS_PER_ENTRY;
        let mut entries = vec![FREE_ENTRY; count as usize];
        for (index, entry) in entries.iter_mut().enumerate() {
            entry.next = if index as u32 + 1 == count { NIL } else { index as u32 + 1 };
        }
        Self {
            arena: vec![0; slots as usize * SLOT_BYTES],
            links: (1..=slots).map(|slot| if slot == slots { NIL } else { slot }).collect(),
            free_slot: 0,
            free_slots: slots,
            entries,
            free_entry: 0,
            free_entries: count,
            clean_head: NIL,
            clean_tail: NIL,
            clean_slots: 0,
            clean_entries: 0,
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
    pub fn entry(&self, id: EntryId) -> Option<&Entry> {
        self.entries.get(id.0 as usize).filter(|entry| entry.used)
    }

    /// Ids of all possible entries, for the rare walk over the whole cache.
    pub fn ids(&self) -> impl Iterator<Item = EntryId> + use<> {
        (0..self.entries.len() as u32).map(EntryId)
    }

    /// Stores a page. `None` when it does not fit without evicting: see [`Cache::pop_victim`].
    pub fn insert(&mut self, new: &NewEntry<'_>) -> Option<EntryId> {
        if !self.has_free(new.payload.len()) {
            return None;
        }
        let id = self.free_entry;
        let first_slot = self.take_slots(new.payload);
        let entry = self.entries.get_mut(id as usize)?;
        self.free_entry = entry.next;
        self.free_entries -= 1;
        *entry = Entry {
            page: new.page,
            codec: new.codec,
            payload_bytes: new.payload.len() as u32,
            seq: new.seq,
            remote: new.remote,
            dirty: new.remote.is_none(),
            filled: new.remote.is_some(),
            used: true,
            first_slot,
            ..FREE_ENTRY
        };
        if new.remote.is_some() {
            self.link_clean(id);
        }
        Some(EntryId(id))
    }

    /// Copies the payload of an entry into the start of `out`; gives its length.
    pub fn copy_out(&self, id: EntryId, out: &mut [u8]) -> usize {
        let Some(entry) = self.entry(id) else { return 0 };
        let len = (entry.payload_bytes as usize).min(out.len());
        let mut slot = entry.first_slot;
        for piece in out[..len].chunks_mut(SLOT_BYTES) {
            let from = slot as usize * SLOT_BYTES;
            piece.copy_from_slice(&self.arena[from..from + piece.len()]);
            slot = self.links[slot as usize];
        }
        len
    }

    /// Notes that the entry was used, so that eviction passes it over once.
    pub fn touch(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.get_mut(id.0 as usize) {
            entry.referenced = true;
        }
    }

    /// The clean entry that CLOCK gives up next. It stays in the cache until [`Cache::free`].
    pub fn pop_victim(&mut self) -> Option<EntryId> {
        for _ in 0..=self.clean_entries {
            let id = self.clean_head;
            let entry = self.entries.get_mut(id as usize)?;
            if !entry.referenced {
                return Some(EntryId(id));
            }
            entry.referenced = false;
            self.unlink_clean(id);
            self.link_clean(id);
        }
        None
    }

    /// Marks a dirty entry as being written back.
    pub fn begin_write(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.get_mut(id.0 as usize) {
            entry.writing = true;
        }
    }

    /// Ends a write-back: clean at `remote`, or dirty as before when `None`.
    pub fn end_write(&mut self, id: EntryId, remote: Option<Location>) {
        let Some(entry) = self.entries.get_mut(id.0 as usize) else { return };
        entry.writing = false;
        if remote.is_some() {
            entry.remote = remote;
            entry.dirty = false;
            self.link_clean(id.0);
        }
    }

    /// Makes a clean entry dirty again, because its remote copy is gone. Gives the lost location.
    pub fn make_dirty(&mut self, id: EntryId) -> Option<Location> {
        let entry = self.entries.get_mut(id.0 as usize).filter(|entry| entry.used)?;
        let old = entry.remote.take()?;
        entry.dirty = true;
        self.unlink_clean(id.0);
        Some(old)
    }

    /// Records that the remote copy of a clean entry has moved.
    pub fn moved(&mut self, id: EntryId, remote: Location) {
        if let Some(entry) = self.entries.get_mut(id.0 as usize) {
            entry.remote = Some(remote);
        }
    }

    /// Marks an entry that is being written as no longer wanted.
    pub fn orphan(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.get_mut(id.0 as usize) {
            entry.orphan = true;
        }
    }

    /// Gives the entry and its slots back.
    pub fn free(&mut self, id: EntryId) {
        let Some(entry) = self.entry(id).copied() else { return };
        if entry.remote.is_some() {
            self.unlink_clean(id.0);
        }
        let mut last = entry.first_slot;
        let count = slots_of(entry.payload_bytes as usize);
        for _ in 1..count {
            last = self.links[last as usize];
        }
        self.links[last as usize] = self.free_slot;
        self.free_slot = entry.first_slot;
        self.free_slots += count;
        self.entries[id.0 as usize] = Entry { next: self.free_entry, ..FREE_ENTRY };
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
        let entry = &mut self.entries[id as usize];
        entry.prev = tail;
        entry.next = NIL;
        let slots = slots_of(entry.payload_bytes as usize);
        match self.entries.get_mut(tail as usize) {
            Some(last) => last.next = id,
            None => self.clean_head = id,
        }
        self.clean_tail = id;
        self.clean_slots += slots;
        self.clean_entries += 1;
    }

    fn unlink_clean(&mut self, id: u32) {
        let Entry { prev, next, payload_bytes, .. } = self.entries[id as usize];
        match self.entries.get_mut(prev as usize) {
            Some(entry) => entry.next = next,
            None => self.clean_head = next,
        }
        match self.entries.get_mut(next as usize) {
            Some(entry) => entry.prev = prev,
            None => self.clean_tail = prev,
        }
        self.clean_slots -= slots_of(payload_bytes as usize);
        self.clean_entries -= 1;
    }
}

#[cfg(test)]
impl Cache {
    /// Walks everything and panics when the invariant of the module does not hold.
    pub(crate) fn check(&self) {
        let mut seen = vec![false; self.links.len()];
        let mut take = |mut slot: u32, count: u32| {
            for _ in 0..count {
                assert!(!std::mem::replace(&mut seen[slot as usize], true), "slot {slot} is used twice");
                slot = self.links[slot as usize];
            }
            slot
        };
        assert_eq!(take(self.free_slot, self.free_slots), NIL, "the free list ends where it should");
        let (mut clean, mut clean_slots, mut used) = (0, 0, 0);
        for entry in self.entries.iter().filter(|entry| entry.used) {
            let slots = slots_of(entry.payload_bytes as usize);
            assert_eq!(take(entry.first_slot, slots), NIL, "a chain ends where it should");
            assert_eq!(entry.dirty, entry.remote.is_none());
            used += 1;
            if entry.remote.is_some() {
                clean += 1;
                clean_slots += slots;
            }
        }
        assert!(seen.iter().all(|seen| *seen), "no slot is lost");
        assert_eq!((clean, clean_slots), (self.clean_entries, self.clean_slots));
        assert_eq!(self.entries.len() as u32 - self.free_entries, used);
        let (mut walked, mut id) = (0, self.clean_head);
        while id != NIL {
            walked += 1;
            id = self.entries[id as usize].next;
        }
        assert_eq!(walked, clean, "the clean list has every clean entry");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockId;

    fn new(page: u32, payload: &[u8], clean: bool) -> NewEntry<'_> {
        let at = Location { block: BlockId(0), offset_units: 0, len_bytes: 100 };
        NewEntry { page: PageNo(page), codec: Codec::Raw, payload, seq: 1, remote: clean.then_some(at) }
    }

    #[test]
    fn payloads_of_every_length_come_back_whole() {
        let mut cache = Cache::new(64 << 10);
        for len in [0, 1, 255, 256, 257, 3000, 4096] {
            let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let id = cache.insert(&new(1, &payload, false)).unwrap();
            let mut out = vec![0; 5000];
            assert_eq!(cache.copy_out(id, &mut out), len);
            assert_eq!(&out[..len], payload);
            cache.check();
            cache.free(id);
            cache.check();
        }
    }

    #[test]
    fn dirty_entries_are_never_offered_for_eviction_and_used_ones_get_a_second_chance() {
        let mut cache = Cache::new(64 << 10);
        let dirty = cache.insert(&new(1, &[1; 100], false)).unwrap();
        assert_eq!(cache.pop_victim(), None);
        let old = cache.insert(&new(2, &[2; 100], true)).unwrap();
        let young = cache.insert(&new(3, &[3; 100], true)).unwrap();
        cache.touch(old);
        assert_eq!(cache.pop_victim(), Some(young), "the older one was used meanwhile");
        cache.free(young);
        assert_eq!(cache.pop_victim(), Some(old));
        cache.free(old);
        assert_eq!(cache.pop_victim(), None);
        assert!(cache.entry(dirty).is_some());
        cache.check();
    }

    #[test]
    fn a_full_cache_refuses_and_loses_nothing() {
        let mut cache = Cache::new(8192);
        let page = [9; PAGE_BYTES];
        let a = cache.insert(&new(1, &page, false)).unwrap();
        let _b = cache.insert(&new(2, &page, false)).unwrap();
        assert!(cache.insert(&new(3, &page, false)).is_none());
        assert!(!cache.can_store(1));
        cache.check();
        cache.free(a);
        assert!(cache.insert(&new(3, &page, false)).is_some());
        cache.check();
    }
}
