//! Writing the metadata log: two zones, one of which is current.
//!
//! Frames are appended to the current zone. When it has no room, the log *rolls*: the other zone is emptied and
//! gets a superblock with the next sequence number and a snapshot; that is flushed; only then is the old zone
//! reset. At every moment one of the two holds a complete, durable state. A snapshot that does not fit is
//! found out before anything is written.

use crate::device::{ZoneCond, ZoneId, ZonedDevice};
use crate::format::frame::{HEADER_BYTES, MAX_FRAME_BYTES, encode};
use crate::format::{FrameHeader, FrameKind, Superblock};
use crate::model::Tree;
use crate::{Error, Result};

/// Where the log is written next.
#[derive(Clone, Debug)]
pub(super) struct MetaLog {
    pub(super) superblock: Superblock,
    /// Which of the two metadata zones is current.
    pub(super) active: usize,
    pub(super) sequence: u64,
    pub(super) next_index: u64,
    /// The end of the last frame, from the zone's start.
    pub(super) end_bytes: u64,
}

/// The longest frame that is written: an eighth of a zone, so that the waste between frames stays small.
fn frame_limit(superblock: &Superblock) -> usize {
    let block = superblock.block_size_bytes as usize;
    let eighth = usize::try_from(superblock.zone_capacity_bytes / 8).unwrap_or(usize::MAX);
    eighth.min(MAX_FRAME_BYTES) / block * block
}

/// Packs encoded entries into frames.
fn pack(
    superblock: &Superblock,
    kind: FrameKind,
    (sequence, first_index): (u64, u64),
    entries: impl Iterator<Item = Vec<u8>>,
) -> Result<Vec<Vec<u8>>> {
    let limit = frame_limit(superblock).saturating_sub(HEADER_BYTES);
    let mut frames = Vec::new();
    let mut payload: Vec<u8> = Vec::new();
    let mut close = |payload: &mut Vec<u8>| {
        let index = first_index + frames.len() as u64;
        let header = FrameHeader { kind, payload_bytes: 0, sequence, index, salt: superblock.salt() };
        let frame = encode(header, payload, superblock.block_size_bytes as usize)
            .ok_or(Error::NoSpace("an entry is longer than a frame"))?;
        payload.clear();
        frames.push(frame);
        Ok::<(), Error>(())
    };
    for entry in entries {
        if !payload.is_empty() && payload.len() + entry.len() > limit {
            close(&mut payload)?;
        }
        payload.extend_from_slice(&entry);
    }
    if !payload.is_empty() {
        close(&mut payload)?;
    }
    Ok(frames)
}

/// The frames of a whole metadata zone: superblock and snapshot.
fn fresh_zone(superblock: &Superblock, sequence: u64, tree: &Tree) -> Result<Vec<Vec<u8>>> {
    let place = |index| (sequence, index);
    let first = std::iter::once(superblock.encode());
    let mut frames = pack(superblock, FrameKind::Superblock, place(0), first)?;
    let entries = tree.snapshot().map(|entry| entry.encode());
    frames.extend(pack(superblock, FrameKind::Snapshot, place(1), entries)?);
    Ok(frames)
}

fn total_bytes(frames: &[Vec<u8>]) -> u64 {
    frames.iter().map(|f| f.len() as u64).sum()
}

impl MetaLog {
    /// The current zone.
    pub(super) fn zone(&self) -> ZoneId {
        self.superblock.meta_zones[self.active]
    }

    /// How large the snapshot may become, in bytes, before new names and extents are refused. Half a zone
    /// leaves the other half for the log, so that rolling over stays rare.
    pub(super) fn snapshot_limit(&self) -> u64 {
        self.superblock.zone_capacity_bytes / 2
    }

    /// Appends entries, without a flush. False, and nothing written, when the zone has no room for them.
    pub(super) fn append(&mut self, device: &dyn ZonedDevice, entries: &[Vec<u8>]) -> Result<bool> {
        let place = (self.sequence, self.next_index);
        let frames = pack(&self.superblock, FrameKind::Log, place, entries.iter().cloned())?;
        if self.end_bytes + total_bytes(&frames) > self.superblock.zone_capacity_bytes {
            return Ok(false);
        }
        let start = device.geometry().zone_start(self.zone());
        for frame in frames {
            if let Err(error) = device.write(start + self.end_bytes, &frame) {
                // What reached the zone is not known: nothing may follow it.
                self.end_bytes = self.superblock.zone_capacity_bytes;
                return Err(error);
            }
            self.end_bytes += frame.len() as u64;
            self.next_index += 1;
        }
        Ok(true)
    }

    /// Moves to the other zone with a snapshot of the tree. The data that the tree points at must be flushed.
    pub(super) fn roll(&mut self, device: &dyn ZonedDevice, tree: &Tree) -> Result<()> {
        let sequence = self.sequence + 1;
        let frames = fresh_zone(&self.superblock, sequence, tree)?;
        let length = total_bytes(&frames);
        if length > self.superblock.zone_capacity_bytes {
            return Err(Error::NoSpace("a metadata zone cannot hold the snapshot"));
        }
        let (old, new) = (self.zone(), self.superblock.meta_zones[1 - self.active]);
        let geometry = device.geometry();
        if geometry.max_open_zones != 0 || geometry.max_active_zones != 0 {
            // One zone's resources are set aside for metadata, so the old zone gives them back first.
            if device.report_zone(old)?.cond.is_active() {
                self.end_bytes = self.superblock.zone_capacity_bytes;
                device.finish(old)?;
            }
        }
        if device.report_zone(new)?.cond != ZoneCond::Empty {
            device.reset(new)?;
        }
        write_frames(device, new, &frames)?;
        device.flush()?;
        self.active = 1 - self.active;
        self.sequence = sequence;
        self.next_index = frames.len() as u64;
        self.end_bytes = length;
        if let Err(error) = device.reset(old) {
            log::warn!("{error}; the old metadata zone stays as it is");
        }
        Ok(())
    }

    /// Writes the first state of a new file system into the first metadata zone, which is empty.
    pub(super) fn create(device: &dyn ZonedDevice, superblock: Superblock, tree: &Tree) -> Result<MetaLog> {
        let frames = fresh_zone(&superblock, 1, tree)?;
        let end_bytes = total_bytes(&frames);
        if end_bytes > superblock.zone_capacity_bytes {
            return Err(Error::NoSpace("a metadata zone cannot hold the snapshot"));
        }
        write_frames(device, superblock.meta_zones[0], &frames)?;
        device.flush()?;
        Ok(MetaLog { superblock, active: 0, sequence: 1, next_index: frames.len() as u64, end_bytes })
    }
}

fn write_frames(device: &dyn ZonedDevice, zone: ZoneId, frames: &[Vec<u8>]) -> Result<()> {
    let mut at = device.geometry().zone_start(zone);
    for frame in frames {
        device.write(at, frame)?;
        at += frame.len() as u64;
    }
    Ok(())
}
