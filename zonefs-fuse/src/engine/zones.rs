//! The data zones: who writes where, what is live, what can be emptied.
//!
//! A block is *live* from its write until nothing durable can point at it any more: a block of an unlinked file
//! stays live until the commit that holds the unlink is flushed. Only zones without live blocks are reset.
//! At most `active_limit` data zones are partly written at a time; one zone's resources are left to the log.

use crate::device::{Geometry, Zone, ZoneCond, ZoneId, ZoneType, ZonedDevice};
use crate::format::Superblock;
use crate::model::Extent;

/// How many zones are written side by side when the device sets no limit.
const UNLIMITED: usize = 16;

/// One data zone.
#[derive(Clone, Debug)]
pub(super) struct DataZone {
    pub(super) id: ZoneId,
    /// What the file system thinks of it.
    pub(super) usable: Usable,
    /// The write pointer from the zone's start; the capacity once it is full or finished.
    pub(super) written_bytes: u64,
    pub(super) live_blocks: u64,
    /// Live blocks that the next commit frees.
    pub(super) freeing_blocks: u64,
    /// Files that continue here.
    pub(super) writers: u32,
}

/// Whether a data zone can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usable {
    /// Yes.
    Yes,
    /// No further writes before a reset: a write failed, or the write pointer is between blocks.
    Sealed,
    /// Read-only: what is there can be read, nothing can be written or reset.
    ReadOnly,
    /// Offline: lost.
    Offline,
}

/// All data zones.
#[derive(Clone, Debug)]
pub(super) struct Zones {
    pub(super) zones: Vec<DataZone>,
    block_size: u64,
    capacity_bytes: u64,
    active_limit: usize,
    /// Blocks promised to tails of files that are in memory only.
    pub(super) reserved_blocks: u64,
    /// Where the search for an empty zone starts: zones are used in turn.
    next: usize,
}

/// How many data zones may be partly written at once: the device's limit less one for the log.
pub(super) fn active_limit(geometry: &Geometry) -> usize {
    let limits = [geometry.max_open_zones, geometry.max_active_zones];
    let least = limits.iter().filter(|l| **l != 0).min();
    least.map_or(UNLIMITED, |l| (*l as usize).saturating_sub(1))
}

impl Zones {
    /// The data zones of a report; nothing is live yet.
    pub(super) fn new(geometry: &Geometry, report: &[Zone], superblock: &Superblock) -> Zones {
        let block_size = u64::from(superblock.block_size_bytes);
        let sequential = report.iter().filter(|z| z.kind == ZoneType::Sequential);
        let data = sequential.filter(|z| !superblock.meta_zones.contains(&z.id));
        let zones = data.map(|zone| DataZone {
            id: zone.id,
            usable: match zone.cond {
                ZoneCond::ReadOnly => Usable::ReadOnly,
                ZoneCond::Offline => Usable::Offline,
                _ if !zone.written_bytes.is_multiple_of(block_size) => Usable::Sealed,
                _ => Usable::Yes,
            },
            written_bytes: zone.written_bytes,
            live_blocks: 0,
            freeing_blocks: 0,
            writers: 0,
        });
        Zones {
            zones: zones.collect(),
            block_size,
            capacity_bytes: superblock.zone_capacity_bytes,
            active_limit: active_limit(geometry),
            reserved_blocks: 0,
            next: 0,
        }
    }

    /// A data zone by its number on the device.
    pub(super) fn get_mut(&mut self, id: ZoneId) -> Option<&mut DataZone> {
        let index = self.index(id)?;
        self.zones.get_mut(index)
    }

    /// A data zone by its number on the device.
    pub(super) fn get(&self, id: ZoneId) -> Option<&DataZone> {
        self.zones.get(self.index(id)?)
    }

    fn index(&self, id: ZoneId) -> Option<usize> {
        self.zones.binary_search_by_key(&id, |z| z.id).ok()
    }

    /// How many bytes can be written to a zone as it is.
    pub(super) fn room(&self, zone: &DataZone) -> u64 {
        if zone.usable == Usable::Yes { self.capacity_bytes.saturating_sub(zone.written_bytes) } else { 0 }
    }

    fn is_active(&self, zone: &DataZone) -> bool {
        match zone.usable {
            Usable::Yes => zone.written_bytes > 0 && zone.written_bytes < self.capacity_bytes,
            // Finishing a sealed zone may have failed; its resources count until a reset.
            Usable::Sealed => zone.written_bytes < self.capacity_bytes,
            _ => false,
        }
    }

    fn can_be_reset(zone: &DataZone) -> bool {
        zone.live_blocks == 0 && zone.written_bytes > 0 && matches!(zone.usable, Usable::Yes | Usable::Sealed)
    }

    /// Blocks that can be written now, tails' reservations included.
    pub(super) fn available_blocks(&self) -> u64 {
        self.count_available(0)
    }

    /// Blocks that can be written once what is being freed is free.
    pub(super) fn available_after_commit(&self) -> u64 {
        self.count_available(1)
    }

    fn count_available(&self, freeing: u64) -> u64 {
        let bytes = |zone: &DataZone| {
            let live = zone.live_blocks - freeing * zone.freeing_blocks.min(zone.live_blocks);
            let empty = live == 0 && matches!(zone.usable, Usable::Yes | Usable::Sealed);
            if empty { self.capacity_bytes } else { self.room(zone) }
        };
        self.zones.iter().map(|zone| bytes(zone) / self.block_size).sum()
    }

    /// Blocks of all zones that are not lost.
    pub(super) fn total_blocks(&self) -> u64 {
        let there = self.zones.iter().filter(|z| z.usable != Usable::Offline).count() as u64;
        there * (self.capacity_bytes / self.block_size)
    }

    /// The zone a file continues in: its own, a partly written one that nobody else uses, an empty one while
    /// another may be active, or one that is shared.
    pub(super) fn pick(&self, own: Option<ZoneId>) -> Option<ZoneId> {
        let has_room = |zone: &&DataZone| self.room(zone) > 0;
        // Its own zone may have been reset meanwhile, and then another may be active in its place.
        if let Some(zone) = own.and_then(|id| self.get(id)).filter(has_room).filter(|z| z.written_bytes > 0) {
            return Some(zone.id);
        }
        let active = || self.zones.iter().filter(has_room).filter(|z| z.written_bytes > 0);
        if let Some(zone) = active().filter(|z| z.writers == 0).max_by_key(|z| z.written_bytes) {
            return Some(zone.id);
        }
        if self.zones.iter().filter(|z| self.is_active(z)).count() < self.active_limit {
            let (before, after) = self.zones.split_at(self.next.min(self.zones.len()));
            let empty = |z: &&DataZone| z.written_bytes == 0 && z.usable == Usable::Yes;
            if let Some(zone) = after.iter().chain(before).find(empty) {
                return Some(zone.id);
            }
        }
        active().min_by_key(|z| z.writers).map(|z| z.id)
    }

    /// Counts a write, which is live from now on.
    pub(super) fn wrote(&mut self, extent: &Extent) {
        let blocks = extent.blocks(self.block_size);
        let index = self.index(extent.zone);
        let Some(zone) = index.and_then(|i| self.zones.get_mut(i)) else { return };
        if zone.written_bytes == 0 {
            self.next = index.unwrap_or(0) + 1;
        }
        zone.written_bytes += blocks * self.block_size;
        zone.live_blocks += blocks;
    }

    /// Marks extents as free once the next commit is durable.
    pub(super) fn freeing(&mut self, extents: &[Extent]) {
        for extent in extents {
            let blocks = extent.blocks(self.block_size);
            if let Some(zone) = self.get_mut(extent.zone) {
                zone.freeing_blocks += blocks;
            }
        }
    }

    /// Frees extents now: nothing durable points at them.
    pub(super) fn free(&mut self, extents: &[Extent]) {
        for extent in extents {
            let blocks = extent.blocks(self.block_size);
            if let Some(zone) = self.get_mut(extent.zone) {
                zone.live_blocks = zone.live_blocks.saturating_sub(blocks);
            }
        }
    }

    /// Frees what was marked, after a durable commit.
    pub(super) fn freed(&mut self) {
        for zone in &mut self.zones {
            zone.live_blocks = zone.live_blocks.saturating_sub(zone.freeing_blocks);
            zone.freeing_blocks = 0;
        }
    }

    /// Resets zones without live blocks: those that can take no more writes, or, when room is short, also
    /// partly written ones. The durable log must not point into them.
    pub(super) fn reset_dead(&mut self, device: &dyn ZonedDevice, also_partly_written: bool) -> usize {
        let capacity = self.capacity_bytes;
        let mut count = 0;
        for zone in &mut self.zones {
            let full = zone.written_bytes >= capacity || zone.usable == Usable::Sealed;
            if !Self::can_be_reset(zone) || !(full || also_partly_written) {
                continue;
            }
            match device.reset(zone.id) {
                Ok(()) => {
                    zone.written_bytes = 0;
                    zone.usable = Usable::Yes;
                    count += 1;
                }
                Err(error) => {
                    log::warn!("{error}");
                    look_again(device, zone, capacity);
                }
            }
        }
        count
    }

    /// After a failed write: what the zone can still do. It gets no more writes before a reset.
    pub(super) fn write_failed(&mut self, device: &dyn ZonedDevice, id: ZoneId) {
        let capacity = self.capacity_bytes;
        if let Some(zone) = self.get_mut(id) {
            look_again(device, zone, capacity);
        }
    }

    /// Finishes zones that can take no more writes but hold resources, and the fullest ones beyond the limit.
    pub(super) fn finish_surplus(&mut self, device: &dyn ZonedDevice) {
        let capacity = self.capacity_bytes;
        for zone in self.zones.iter_mut().filter(|z| z.usable == Usable::Sealed) {
            if zone.written_bytes < capacity {
                look_again(device, zone, capacity);
            }
        }
        loop {
            let active: Vec<&DataZone> = self.zones.iter().filter(|z| self.is_active(z)).collect();
            if active.len() <= self.active_limit {
                return;
            }
            let usable = active.iter().filter(|z| z.usable == Usable::Yes);
            let Some(id) = usable.max_by_key(|z| z.written_bytes).map(|z| z.id) else { return };
            self.write_failed(device, id);
        }
    }
}

/// Asks the device about a zone in doubt, and finishes it when it is still there.
fn look_again(device: &dyn ZonedDevice, zone: &mut DataZone, capacity_bytes: u64) {
    zone.usable = match device.report_zone(zone.id).map(|z| z.cond) {
        Ok(ZoneCond::ReadOnly) => Usable::ReadOnly,
        Ok(ZoneCond::Offline) => Usable::Offline,
        Ok(ZoneCond::Full) => {
            zone.written_bytes = capacity_bytes;
            Usable::Sealed
        }
        Ok(_) => {
            match device.finish(zone.id) {
                Ok(()) => zone.written_bytes = capacity_bytes,
                Err(error) => log::warn!("{error}; zone {} is not written before a reset", zone.id),
            }
            Usable::Sealed
        }
        Err(error) => {
            log::warn!("{error}");
            Usable::Sealed
        }
    };
}
