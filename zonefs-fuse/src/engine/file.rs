//! A file's bytes: append, read, cut off.
//!
//! Whole blocks go to a zone at once; what is left of less than a block stays in memory as the tail. When the
//! tail must be durable it is written in a padded block, and its extent ends inside that block. The next write
//! puts the same bytes, followed by new ones, into new blocks, and gives the padded one up: so every extent
//! but the last is whole blocks, and a file reads exactly what was written to it.

use super::state::{Live, State, Tail};
use crate::device::ZonedDevice;
use crate::model::{Extent, Time};
use crate::{Error, Result};

/// The largest single write to the device.
const MAX_WRITE_BYTES: u64 = 1 << 20;
/// How many zones may fail a write before the caller is told.
const MAX_FAILURES: usize = 4;
/// What one write may add to the snapshot: a few extents, each in an entry of its own at worst.
const WRITE_METADATA_BYTES: u64 = 512;

impl State {
    /// Loads a file's tail, so that it can be written.
    fn load_tail(&mut self, device: &dyn ZonedDevice, ino: u64) -> Result<Tail> {
        if let Some(tail) = self.files.get(&ino).and_then(|live| live.tail.as_ref()) {
            return Ok(tail.clone());
        }
        let block = self.block_size();
        let size = self.map(ino)?.length_bytes();
        let start = size / block * block;
        let mut bytes = vec![0; (size - start) as usize];
        self.read_extents(device, ino, start, &mut bytes)?;
        let tail = Tail { start, bytes };
        self.live(ino).tail = Some(tail.clone());
        Ok(tail)
    }

    fn live(&mut self, ino: u64) -> &mut Live {
        self.files.entry(ino).or_default()
    }

    /// Sets a block aside for a file's tail, or gives it back. False when there is none.
    fn reserve(&mut self, ino: u64, wanted: bool) -> bool {
        let has = self.live(ino).reserved;
        if wanted && !has && self.zones.available_blocks() <= self.zones.reserved_blocks {
            return false;
        }
        self.zones.reserved_blocks += u64::from(wanted && !has);
        self.zones.reserved_blocks -= u64::from(has && !wanted);
        self.live(ino).reserved = wanted;
        true
    }

    /// Blocks a file may write: all but those set aside for other files' tails.
    fn writable_blocks(&mut self, ino: u64) -> u64 {
        let others = self.zones.reserved_blocks - u64::from(self.live(ino).reserved);
        self.zones.available_blocks().saturating_sub(others)
    }

    /// Appends to a file. Returns how much was taken, which is less when the space ends.
    pub(super) fn write(
        &mut self,
        device: &dyn ZonedDevice,
        ino: u64,
        offset_bytes: u64,
        data: &[u8],
        now: Time,
    ) -> Result<usize> {
        self.writable()?;
        let size_bytes = self.size(ino)?;
        if offset_bytes != size_bytes {
            return Err(Error::NotAppend { ino, offset_bytes, size_bytes });
        }
        if data.is_empty() {
            return Ok(0);
        }
        self.metadata_can_grow(WRITE_METADATA_BYTES)?;
        let mut taken = self.append(device, ino, data)?;
        if taken < data.len() {
            let more = match self.reclaim(device) {
                Ok(true) => self.append(device, ino, &data[taken..]),
                other => other.map(|_| 0),
            };
            match more {
                Ok(more) => taken += more,
                // What was taken before stays taken; the next write meets the error again.
                Err(error) if taken > 0 => log::warn!("inode {ino}: {error}"),
                Err(error) => return Err(error),
            }
        }
        if taken == 0 {
            return Err(Error::NoSpace("no zone has room"));
        }
        match self.orphans.get_mut(&ino) {
            Some(inode) => (inode.attrs.mtime, inode.attrs.ctime) = (now, now),
            None => self.tree.touch(ino, now)?,
        }
        Ok(taken)
    }

    /// Appends as much as there is room for.
    fn append(&mut self, device: &dyn ZonedDevice, ino: u64, data: &[u8]) -> Result<usize> {
        let block = self.block_size();
        let tail = self.load_tail(device, ino)?;
        let old = tail.bytes.len();
        let whole = (old + data.len()) as u64 / block * block;
        let whole = whole.min(self.writable_blocks(ino) * block) as usize;
        let mut taken = 0;
        if whole > 0 {
            let mut blocks = tail.bytes;
            blocks.extend_from_slice(&data[..whole - old]);
            let extents = self.write_blocks(device, ino, &blocks)?;
            let written: u64 = extents.iter().map(|e| e.length_bytes).sum();
            if written == 0 {
                return Ok(0);
            }
            self.replace_end(ino, tail.start, &extents)?;
            self.live(ino).tail = Some(Tail { start: tail.start + written, bytes: Vec::new() });
            self.reserve(ino, false);
            taken = written as usize - old;
        }
        let rest = &data[taken..];
        let fits = rest.len() as u64 + if taken > 0 { 0 } else { old as u64 } < block;
        if !rest.is_empty() && fits && self.reserve(ino, true) {
            let mut tail = self.load_tail(device, ino)?;
            tail.bytes.extend_from_slice(rest);
            self.live(ino).tail = Some(tail);
            taken = data.len();
        }
        Ok(taken)
    }

    /// The file continues with these extents from `start` on.
    fn replace_end(&mut self, ino: u64, start: u64, extents: &[Extent]) -> Result<()> {
        let block = self.block_size();
        let dropped = self.with_extents(ino, |map| {
            let dropped = map.truncate(start, block);
            for extent in extents {
                map.push(*extent, block);
            }
            dropped
        })?;
        let live = self.live(ino);
        live.stale.extend(dropped);
        live.dirty(start);
        Ok(())
    }

    /// Writes blocks to zones; fewer when the zones are full.
    fn write_blocks(&mut self, device: &dyn ZonedDevice, ino: u64, blocks: &[u8]) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut rest = blocks;
        let mut failures = Vec::new();
        while !rest.is_empty() {
            let own = self.live(ino).zone;
            let mut picked = self.zones.pick(own);
            if picked.is_none() && self.zones.reset_dead(device, true) > 0 {
                picked = self.zones.pick(own);
            }
            let Some(zone) = picked.and_then(|id| self.zones.get(id)) else {
                match failures.pop() {
                    Some(error) if extents.is_empty() => return Err(error),
                    _ => break,
                }
            };
            let (id, offset_bytes) = (zone.id, zone.written_bytes);
            let length_bytes = self.zones.room(zone).min(rest.len() as u64).min(MAX_WRITE_BYTES);
            let (now, later) = rest.split_at(length_bytes as usize);
            self.continue_in(ino, id);
            match device.write(device.geometry().zone_start(id) + offset_bytes, now) {
                Ok(()) => {
                    let extent = Extent { zone: id, offset_bytes, length_bytes };
                    self.zones.wrote(&extent);
                    extents.push(extent);
                    rest = later;
                }
                Err(error) => {
                    self.zones.write_failed(device, id);
                    if failures.len() == MAX_FAILURES {
                        self.zones.free(&extents);
                        return Err(error);
                    }
                    log::warn!("{error}; trying another zone");
                    failures.push(error);
                }
            }
        }
        Ok(extents)
    }

    /// Remembers the zone a file continues in.
    fn continue_in(&mut self, ino: u64, zone: crate::device::ZoneId) {
        let live = self.live(ino);
        // A file without handles is only finishing its tail: it claims no zone.
        if live.zone == Some(zone) || live.opens == 0 {
            return;
        }
        let before = live.zone.replace(zone);
        if let Some(old) = before.and_then(|id| self.zones.get_mut(id)) {
            old.writers = old.writers.saturating_sub(1);
        }
        if let Some(new) = self.zones.get_mut(zone) {
            new.writers += 1;
        }
    }

    /// Writes a file's tail in a padded block, when the device does not have it yet.
    pub(super) fn write_tail(&mut self, device: &dyn ZonedDevice, ino: u64) -> Result<()> {
        let written = self.map(ino)?.length_bytes();
        let Some(tail) = self.files.get(&ino).and_then(|live| live.tail.as_ref()) else { return Ok(()) };
        if tail.start + tail.bytes.len() as u64 <= written {
            return Ok(());
        }
        self.writable()?;
        let (start, length_bytes) = (tail.start, tail.bytes.len() as u64);
        let mut padded = tail.bytes.clone();
        padded.resize(self.block_size() as usize, 0);
        let extents = self.write_blocks(device, ino, &padded)?;
        let Some(extent) = extents.first() else {
            return Err(Error::NoSpace("no zone has room for the end of a file"));
        };
        self.replace_end(ino, start, &[Extent { length_bytes, ..*extent }])?;
        self.reserve(ino, false);
        Ok(())
    }

    /// Cuts a file off. Growing one is not possible: there are no holes.
    pub(super) fn truncate(
        &mut self,
        device: &dyn ZonedDevice,
        ino: u64,
        size: u64,
        now: Time,
    ) -> Result<()> {
        self.writable()?;
        let old = self.size(ino)?;
        if size > old {
            return Err(Error::Invalid("a file grows by writing at its end only"));
        }
        if size < old {
            self.cut(device, ino, size)?;
        }
        match self.orphans.get_mut(&ino) {
            Some(inode) => (inode.attrs.mtime, inode.attrs.ctime) = (now, now),
            None => self.tree.touch(ino, now)?,
        }
        if self.size(ino)? == old {
            // Nothing for the extents' entry to carry but the times.
            let at = self.map(ino)?.length_bytes();
            self.live(ino).dirty(at);
        }
        Ok(())
    }

    fn cut(&mut self, device: &dyn ZonedDevice, ino: u64, size: u64) -> Result<()> {
        let block = self.block_size();
        let start = size / block * block;
        let mut tail = self.load_tail(device, ino)?;
        if size >= tail.start {
            tail.bytes.truncate((size - tail.start) as usize);
        } else {
            let mut bytes = vec![0; (size - start) as usize];
            self.read_extents(device, ino, start, &mut bytes)?;
            tail = Tail { start, bytes };
        }
        let written = self.map(ino)?.length_bytes();
        if size < written {
            let dropped = self.with_extents(ino, |map| map.truncate(size, block))?;
            let live = self.live(ino);
            live.stale.extend(dropped);
            live.dirty(size);
        }
        self.live(ino).tail = Some(tail);
        if size <= written {
            self.reserve(ino, false);
        }
        Ok(())
    }

    /// Reads a range that extents cover.
    fn read_extents(
        &self,
        device: &dyn ZonedDevice,
        ino: u64,
        offset_bytes: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let block = u64::from(device.geometry().block_size_bytes);
        let mut rest = buf;
        for piece in self.map(ino)?.pieces(offset_bytes, rest.len() as u64) {
            let (into, later) = rest.split_at_mut((piece.length_bytes as usize).min(rest.len()));
            let start = device.geometry().zone_start(piece.zone) + piece.offset_bytes;
            let end = start + piece.length_bytes;
            let (from, to) = (start / block * block, end.next_multiple_of(block));
            if (from, to) == (start, end) {
                device.read(start, into)?;
            } else {
                let mut blocks = vec![0; (to - from) as usize];
                device.read(from, &mut blocks)?;
                let skip = (start - from) as usize;
                into.copy_from_slice(&blocks[skip..skip + into.len()]);
            }
            rest = later;
        }
        Ok(())
    }

    /// Reads from a file; less at its end.
    pub(super) fn read(
        &self,
        device: &dyn ZonedDevice,
        ino: u64,
        offset_bytes: u64,
        length: usize,
    ) -> Result<Vec<u8>> {
        let size = self.size(ino)?;
        let length = size.saturating_sub(offset_bytes).min(length as u64);
        let mut data = vec![0; length as usize];
        if length == 0 {
            return Ok(data);
        }
        let tail = self.files.get(&ino).and_then(|live| live.tail.as_ref());
        let in_extents = tail.map_or(size, |t| t.start).saturating_sub(offset_bytes).min(length) as usize;
        let (on_device, in_memory) = data.split_at_mut(in_extents);
        self.read_extents(device, ino, offset_bytes, on_device)?;
        if let Some(tail) = tail.filter(|_| !in_memory.is_empty()) {
            let skip = (offset_bytes + in_extents as u64).saturating_sub(tail.start) as usize;
            let bytes = tail.bytes.get(skip..skip + in_memory.len()).ok_or(Error::Invalid("tail"))?;
            in_memory.copy_from_slice(bytes);
        }
        Ok(data)
    }
}
