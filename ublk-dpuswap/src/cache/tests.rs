use super::*;
use crate::units::BlockId;

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
        for entry in self.entries.iter().filter(|entry| entry.has(USED)) {
            let slots = slots_of(entry.payload_bytes as usize);
            assert_eq!(take(entry.first_slot, slots), NIL, "a chain ends where it should");
            assert!(entry.has(DIRTY) || entry.remote != 0);
            used += 1;
            if !entry.has(DIRTY) {
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
            id = self.lists[id as usize].next;
        }
        assert_eq!(walked, clean, "the clean list has every clean entry");
    }
}

fn new(page: u32, payload: &[u8], clean: bool) -> NewEntry<'_> {
    let at = Location { block: BlockId(0), offset_units: 0, len_bytes: 100 };
    NewEntry {
        page: PageNo(page),
        codec: Codec::Raw,
        payload,
        seq: 1,
        remote: clean.then_some(at),
        ahead: false,
    }
}

fn cache(bytes: u64) -> Cache {
    let mut memory = Memory::anonymous(Cache::memory_bytes(bytes)).unwrap();
    let mut cache = Cache::new(bytes, &mut memory).unwrap();
    cache.clear();
    cache
}

#[test]
fn payloads_of_every_length_come_back_whole() {
    let mut cache = cache(64 << 10);
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
    let mut cache = cache(64 << 10);
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
    let mut cache = cache(8192);
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
