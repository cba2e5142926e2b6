//! The memory array: units that are erased together, shared between clones until one of them changes.
//!
//! The invariant: a clone is O(1) and never sees what happens to the other: each unit, and the table of units, is copied by the
//! first one that changes it. Power-cut searches clone a chip for every branch.

use crate::reliability::Marginal;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What has happened to a page since its last erase.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PageMeta {
    /// When it was last programmed, or erased.
    pub written_at_ns: u64,
    /// Grows with each program and erase of it.
    pub epoch: u64,
    /// Programs since the erase.
    pub programs: u32,
    /// What an interrupted operation left.
    pub marginal: Marginal,
}

/// A unit: what the smallest erase erases.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Unit {
    /// Its bytes; empty while all are FFh.
    data: Vec<u8>,
    /// Its pages; empty while nothing has happened to any.
    pages: Vec<PageMeta>,
    /// Erases.
    pub cycles: u32,
    /// Reads since the erase.
    pub reads: u64,
}

/// Something of the array that changed, for those who keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirtyPage {
    /// The unit.
    pub unit: u32,
    /// Its page, or `None`: all of it.
    pub page: Option<u32>,
}

/// The array.
#[derive(Debug, Clone)]
pub struct Array {
    units: Arc<Vec<Arc<Unit>>>,
    unit_bytes: usize,
    page_bytes: usize,
    dirty: Option<Vec<DirtyPage>>,
}

impl Array {
    /// An array as delivered: all bytes FFh. `page_bytes` divides `unit_bytes`.
    pub fn new(units: usize, unit_bytes: usize, page_bytes: usize) -> Array {
        let fresh = Arc::new(Unit::default());
        let page_bytes = page_bytes.clamp(1, unit_bytes.max(1));
        Array { units: Arc::new(vec![fresh; units]), unit_bytes, page_bytes, dirty: None }
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.units.len() as u64 * self.unit_bytes as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many units there are.
    pub fn unit_count(&self) -> u32 {
        self.units.len() as u32
    }

    /// Bytes of a unit.
    pub fn unit_bytes(&self) -> usize {
        self.unit_bytes
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Starts to note what changes.
    pub fn track(&mut self) {
        self.dirty.get_or_insert_with(Vec::new);
    }

    /// What changed since the last call, in order; nothing unless [`Array::track`] was called.
    pub fn take_dirty(&mut self) -> Vec<DirtyPage> {
        self.dirty.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn note(&mut self, unit: usize, page: Option<usize>) {
        if let Some(dirty) = &mut self.dirty {
            let entry = DirtyPage { unit: unit as u32, page: page.map(|page| page as u32) };
            if dirty.last() != Some(&entry) {
                dirty.push(entry);
            }
        }
    }

    /// A unit.
    pub fn unit(&self, unit: u32) -> Option<&Unit> {
        self.units.get(unit as usize).map(Arc::as_ref)
    }

    fn unit_mut(&mut self, unit: usize) -> Option<&mut Unit> {
        Arc::make_mut(&mut self.units).get_mut(unit).map(Arc::make_mut)
    }

    /// Whether a unit has the lengths of this array's.
    pub fn fits(&self, unit: &Unit) -> bool {
        let pages = self.unit_bytes.div_ceil(self.page_bytes);
        (unit.data.is_empty() || unit.data.len() == self.unit_bytes)
            && (unit.pages.is_empty() || unit.pages.len() == pages)
    }

    /// Puts a page in, as a stored image has it; the rest of its unit is as it was.
    pub fn restore_page(&mut self, unit: u32, page: u32, data: &[u8], meta: PageMeta) {
        let offset = u64::from(page) * self.page_bytes as u64;
        let address = u64::from(unit) * self.unit_bytes as u64 + offset;
        if offset + data.len() as u64 <= self.unit_bytes as u64 && data.len() <= self.page_bytes {
            self.change(address, data.len(), |cells, known| {
                cells.copy_from_slice(data);
                *known = meta;
            });
        }
    }

    /// Puts a unit in, as a stored image has it.
    pub fn restore_unit(&mut self, unit: u32, content: Unit) {
        if let Some(slot) = Arc::make_mut(&mut self.units).get_mut(unit as usize) {
            *slot = Arc::new(content);
        }
        self.note(unit as usize, None);
    }

    /// Reads from `address`, which with `out` lies within the array; FFh beyond.
    pub fn read(&self, address: u64, out: &mut [u8]) {
        let (mut address, mut out) = (address, out);
        while !out.is_empty() {
            let (unit, offset) = self.split(address);
            let bytes = out.len().min(self.unit_bytes - offset);
            let (now, later) = out.split_at_mut(bytes);
            match self.units.get(unit).and_then(|unit| unit.data.get(offset..offset + bytes)) {
                Some(data) => now.copy_from_slice(data),
                None => now.fill(0xFF),
            }
            out = later;
            address += bytes as u64;
        }
    }

    fn split(&self, address: u64) -> (usize, usize) {
        let unit_bytes = self.unit_bytes as u64;
        ((address / unit_bytes) as usize, (address % unit_bytes) as usize)
    }

    /// Changes bytes that lie within one page by `change`, and what is known of the page.
    pub fn change(&mut self, address: u64, bytes: usize, change: impl FnOnce(&mut [u8], &mut PageMeta)) {
        let (unit, offset) = self.split(address);
        let (unit_bytes, page_bytes) = (self.unit_bytes, self.page_bytes);
        let page = offset / page_bytes;
        let Some(slot) = self.unit_mut(unit) else { return };
        if slot.data.is_empty() {
            slot.data.resize(unit_bytes, 0xFF);
        }
        if slot.pages.is_empty() {
            slot.pages.resize(unit_bytes.div_ceil(page_bytes), PageMeta::default());
        }
        if let (Some(data), Some(meta)) =
            (slot.data.get_mut(offset..offset + bytes), slot.pages.get_mut(page))
        {
            change(data, meta);
        }
        self.note(unit, Some(page));
    }

    /// Clears the bits that are 0 in `data`, from `address`, within one page (AND: a program cannot set bits).
    pub fn program(&mut self, address: u64, data: &[u8], now_ns: u64) {
        self.change(address, data.len(), |old, meta| {
            old.iter_mut().zip(data).for_each(|(old, new)| *old &= new);
            meta.written_at_ns = now_ns;
            meta.epoch += 1;
            meta.programs += 1;
        });
    }

    /// Writes as RAM is written.
    pub fn write(&mut self, address: u64, data: &[u8], now_ns: u64) {
        let (mut address, mut data) = (address, data);
        while !data.is_empty() {
            let left = self.page_bytes - (address % self.page_bytes as u64) as usize;
            let (now, later) = data.split_at(data.len().min(left));
            self.change(address, now.len(), |old, meta| {
                old.copy_from_slice(now);
                meta.written_at_ns = now_ns;
                meta.epoch += 1;
            });
            address += now.len() as u64;
            data = later;
        }
    }

    /// Erases a unit: all bytes FFh, one more cycle.
    pub fn erase_unit(&mut self, unit: u32, now_ns: u64) {
        let Some(slot) = self.unit_mut(unit as usize) else { return };
        slot.data = Vec::new();
        slot.cycles = slot.cycles.saturating_add(1);
        slot.reads = 0;
        for page in &mut slot.pages {
            *page = PageMeta { written_at_ns: now_ns, epoch: page.epoch + 1, ..PageMeta::default() };
        }
        self.note(unit as usize, None);
    }

    /// Changes all pages of a unit by `change`, and counts a cycle: an erase that was interrupted.
    pub fn spoil_unit(&mut self, unit: u32, mut change: impl FnMut(u32, &mut [u8]) -> Marginal, now_ns: u64) {
        let page_bytes = self.page_bytes;
        for page in 0..(self.unit_bytes / page_bytes) as u32 {
            let address = u64::from(unit) * self.unit_bytes as u64 + u64::from(page) * page_bytes as u64;
            self.change(address, page_bytes, |data, meta| {
                meta.marginal = meta.marginal.merged_with(change(page, data));
                meta.written_at_ns = now_ns;
                meta.epoch += 1;
                meta.programs = 0;
            });
        }
        if let Some(slot) = self.unit_mut(unit as usize) {
            slot.cycles = slot.cycles.saturating_add(1);
            slot.reads = 0;
        }
        self.note(unit as usize, None);
    }

    /// Counts reads of a unit, for read disturb.
    pub fn count_reads(&mut self, unit: u32, reads: u64) {
        if let Some(slot) = self.unit_mut(unit as usize) {
            slot.reads = slot.reads.saturating_add(reads);
        }
    }

    /// What is known of a page.
    pub fn page(&self, unit: u32, page: u32) -> PageMeta {
        let meta = self.unit(unit).and_then(|unit| unit.pages.get(page as usize));
        meta.copied().unwrap_or_default()
    }
}

impl Unit {
    /// A unit from its parts: `data` and `pages` empty, or as long as those of its array ([`Array::fits`]).
    pub fn from_parts(data: Vec<u8>, pages: Vec<PageMeta>, cycles: u32, reads: u64) -> Unit {
        Unit { data, pages, cycles, reads }
    }

    /// Whether every byte is FFh.
    pub fn is_blank(&self) -> bool {
        self.data.iter().all(|byte| *byte == 0xFF)
    }

    /// Its bytes; `None` while all are FFh.
    pub fn data(&self) -> Option<&[u8]> {
        (!self.data.is_empty()).then_some(self.data.as_slice())
    }

    /// What is known of its pages; `None` while nothing has happened to any.
    pub fn pages(&self) -> Option<&[PageMeta]> {
        (!self.pages.is_empty()).then_some(self.pages.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_does_not_see_what_happens_to_the_other() {
        let mut one = Array::new(4, 4096, 256);
        one.program(256, &[0x0F], 5);
        let two = one.clone();
        one.program(256, &[0xF0], 6);
        one.erase_unit(1, 7);
        let mut byte = [0];
        two.read(256, &mut byte);
        assert_eq!((byte, two.unit(1).unwrap().cycles), ([0x0F], 0));
        one.read(256, &mut byte);
        assert_eq!((byte, one.unit(1).unwrap().cycles), ([0], 1));
    }

    #[test]
    fn a_program_clears_bits_and_an_erase_sets_them() {
        let mut array = Array::new(2, 4096, 256);
        array.program(0, &[0b1010_1010, 0xFF], 1);
        array.program(0, &[0b1100_1100, 0x0F], 2);
        let mut bytes = [0; 3];
        array.read(0, &mut bytes);
        assert_eq!(bytes, [0b1000_1000, 0x0F, 0xFF]);
        assert_eq!(
            array.page(0, 0),
            PageMeta { written_at_ns: 2, epoch: 2, programs: 2, ..PageMeta::default() }
        );
        array.erase_unit(0, 3);
        array.read(0, &mut bytes);
        assert_eq!(bytes, [0xFF; 3]);
        assert_eq!((array.page(0, 0).epoch, array.unit(0).unwrap().cycles), (3, 1));
    }

    #[test]
    fn what_changed_is_noted_once_in_order() {
        let mut array = Array::new(2, 4096, 256);
        array.track();
        array.program(0, &[1], 0);
        array.program(1, &[1], 0);
        array.erase_unit(1, 0);
        let expected = [DirtyPage { unit: 0, page: Some(0) }, DirtyPage { unit: 1, page: None }];
        assert_eq!(array.take_dirty(), expected);
        assert_eq!(array.take_dirty(), []);
    }
}
