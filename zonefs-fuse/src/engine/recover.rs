//! Reading the metadata back. Nothing here writes.
//!
//! Of the two metadata zones the one with the higher sequence number counts, when its snapshot is complete; a
//! roll-over that was cut off leaves the other one. Frames are replayed in order. Bytes at the end that are no
//! frame are a torn tail: left out, and reported. But when a good frame of the same file system comes after
//! bytes that are none, something in the middle was damaged: that is an error, with its place.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::device::{Zone, ZoneCond, ZoneId, ZoneType, ZonedDevice};
use crate::format::frame::{FrameError, claimed_bytes, decode};
use crate::format::superblock::KNOWN_FEATURES;
use crate::format::{Decoded, Entry, FrameHeader, FrameKind, Superblock};
use crate::model::{Kind, Tree};
use crate::{Error, Result};

/// What was noticed while the metadata was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecoveryReport {
    /// Bytes at the end of the log that are no frame, and were left out.
    pub torn_bytes: u64,
    /// The current metadata zone.
    pub meta_zone: u32,
    /// Its sequence number.
    pub sequence: u64,
    /// Frames of the log behind the snapshot.
    pub log_frames: u64,
    /// Entries of a later version that were skipped.
    pub skipped_entries: u64,
    /// Anything else, in words.
    pub notes: Vec<String>,
}

/// The state of a file system as it is on the device.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) superblock: Superblock,
    pub(super) tree: Tree,
    /// Which of the metadata zones is current.
    pub(super) active: usize,
    pub(super) next_index: u64,
    /// Where the last frame ends, from the zone's start.
    pub(super) end_bytes: u64,
    /// Whether the log can go on there.
    pub(super) can_append: bool,
    /// The highest sequence number seen, in either zone.
    pub(super) highest_sequence: u64,
    pub(super) zones: Vec<Zone>,
    pub(super) report: RecoveryReport,
}

/// A metadata zone being read.
struct MetaZone<'a> {
    device: &'a dyn ZonedDevice,
    zone: Zone,
    start: u64,
    /// How much of it may hold something.
    written: u64,
    /// A part of the zone, read ahead.
    window: Vec<u8>,
    window_at: u64,
}

const WINDOW_BYTES: u64 = 1 << 20;

impl<'a> MetaZone<'a> {
    fn new(device: &'a dyn ZonedDevice, zone: Zone) -> MetaZone<'a> {
        let written = match zone.cond {
            // A read-only zone does not say how far it is written.
            ZoneCond::ReadOnly => zone.capacity_bytes,
            ZoneCond::Offline => 0,
            _ => zone.written_bytes,
        };
        let start = device.geometry().zone_start(zone.id);
        MetaZone { device, zone, start, written, window: Vec::new(), window_at: 0 }
    }

    /// Bytes of the zone, fewer at the end of what is written.
    fn bytes(&mut self, at: u64, length: u64) -> Result<&[u8]> {
        let end = at.saturating_add(length).min(self.written);
        let have = self.window_at..self.window_at + self.window.len() as u64;
        if at < have.start || end > have.end {
            let block = u64::from(self.device.geometry().block_size_bytes);
            let (from, to) = (at / block * block, (at + length.max(WINDOW_BYTES)).next_multiple_of(block));
            let to = to.min(self.written.next_multiple_of(block));
            self.window = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
            self.window_at = from;
            if !self.window.is_empty() {
                self.device.read(self.start + from, &mut self.window)?;
            }
        }
        let first = usize::try_from(at - self.window_at).unwrap_or(usize::MAX);
        let count = usize::try_from(end.saturating_sub(at)).unwrap_or(0);
        Ok(self.window.get(first..first + count).unwrap_or_default())
    }

    /// The frame at a place, when there is one.
    fn frame(&mut self, at: u64, block: usize) -> Result<Result<(FrameHeader, Vec<u8>), FrameError>> {
        let claimed = match claimed_bytes(self.bytes(at, block as u64)?, block) {
            Ok(claimed) => claimed,
            Err(error) => return Ok(Err(error)),
        };
        let bytes = self.bytes(at, claimed as u64)?;
        Ok(decode(bytes, block).map(|(header, payload)| (header, payload.to_vec())))
    }

    fn corrupt(&self, at: u64, what: impl Into<String>) -> Error {
        Error::Corrupt { device: self.device.name().into(), offset_bytes: self.start + at, what: what.into() }
    }

    /// Whether a frame of any file system of ours is near the start: then its superblock is damaged.
    fn has_a_frame(&mut self) -> Result<bool> {
        for at in (0..self.written.min(WINDOW_BYTES)).step_by(512) {
            if self.frame(at, 512)?.is_ok() || self.frame(at, 4096)?.is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes sure that bytes which are no frame are the zone's tail; counts how many are not zero.
    fn torn_tail(&mut self, at: u64, block: usize, salt: u64, why: &FrameError) -> Result<u64> {
        let mut torn = 0;
        let mut next = at;
        while next < self.written {
            if self.bytes(next, block as u64)?.iter().any(|b| *b != 0) {
                torn = next + block as u64 - at;
            }
            if next > at
                && let Ok((header, _)) = self.frame(next, block)?
                && header.salt == salt
            {
                let what = format!(
                    "{why}, but frame {} of the log follows at byte {}",
                    header.index,
                    self.start + next
                );
                return Err(self.corrupt(at, what));
            }
            next += block as u64;
        }
        Ok(torn.min(self.written - at))
    }
}

/// The first frame of a metadata zone.
enum First {
    Superblock(FrameHeader, Box<Superblock>),
    /// Nothing of ours: the zone is empty, or has other bytes.
    Nothing(FrameError),
    /// The zone is lost.
    Offline,
}

fn first_frame(zone: &mut MetaZone<'_>) -> Result<First> {
    if zone.zone.cond == ZoneCond::Offline {
        return Ok(First::Offline);
    }
    // The block size is in the superblock; its frame is padded to it, and short: try the sizes there are.
    let mut last = FrameError::NoMagic;
    for shift in 9..=16 {
        match zone.frame(0, 1 << shift)? {
            Ok((header, payload)) => {
                let superblock = match header.kind {
                    FrameKind::Superblock => Superblock::decode(&payload),
                    _ => None,
                };
                let superblock = superblock.ok_or_else(|| zone.corrupt(0, "the superblock is not valid"))?;
                if superblock.block_size_bytes == 1 << shift {
                    return Ok(First::Superblock(header, Box::new(superblock)));
                }
                last = FrameError::Field("block size");
            }
            Err(FrameError::Version(version)) => return Err(newer(zone.device, version)),
            Err(error @ FrameError::NoMagic) => return Ok(First::Nothing(error)),
            Err(error) => last = error,
        }
    }
    Ok(First::Nothing(last))
}

fn newer(device: &dyn ZonedDevice, version: u16) -> Error {
    let what = FrameError::Version(version).to_string();
    Error::Unsupported { device: device.name().into(), what }
}

/// What a metadata zone's frames lead to.
struct Replayed {
    tree: Tree,
    complete: bool,
    next_index: u64,
    end_bytes: u64,
    torn_bytes: u64,
    log_frames: u64,
    skipped_entries: u64,
}

fn replay(zone: &mut MetaZone<'_>, first: &FrameHeader, superblock: &Superblock) -> Result<Replayed> {
    let block = superblock.block_size_bytes as usize;
    let mut state = Replayed {
        tree: Tree::default(),
        complete: false,
        next_index: 1,
        end_bytes: first.frame_bytes(block) as u64,
        torn_bytes: 0,
        log_frames: 0,
        skipped_entries: 0,
    };
    while state.end_bytes < zone.written {
        let at = state.end_bytes;
        let (header, payload) = match zone.frame(at, block)? {
            Ok(frame) => frame,
            Err(FrameError::Version(version)) => return Err(newer(zone.device, version)),
            Err(error @ FrameError::Field(_)) => return Err(zone.corrupt(at, error.to_string())),
            Err(error) => {
                state.torn_bytes = zone.torn_tail(at, block, superblock.salt(), &error)?;
                break;
            }
        };
        let expected = (first.sequence, state.next_index, superblock.salt());
        if (header.sequence, header.index, header.salt) != expected {
            let what = format!(
                "frame {} of sequence {} where frame {} of sequence {} belongs",
                header.index, header.sequence, expected.1, expected.0
            );
            return Err(zone.corrupt(at, what));
        }
        let wanted = if state.complete { FrameKind::Log } else { FrameKind::Snapshot };
        if header.kind != wanted {
            return Err(
                zone.corrupt(at, format!("a {:?} frame where a {wanted:?} frame belongs", header.kind))
            );
        }
        replay_frame(&mut state, header.kind, &payload, superblock).map_err(|what| zone.corrupt(at, what))?;
        state.next_index += 1;
        state.end_bytes += header.frame_bytes(block) as u64;
    }
    Ok(state)
}

fn replay_frame(
    state: &mut Replayed,
    kind: FrameKind,
    payload: &[u8],
    superblock: &Superblock,
) -> Result<(), String> {
    for decoded in Entry::decode_all(payload)? {
        let Decoded::Known(entry) = decoded else {
            state.skipped_entries += 1;
            continue;
        };
        let fits = match kind {
            FrameKind::Snapshot => entry.is_of_a_snapshot() || matches!(entry, Entry::Extents { .. }),
            _ => !entry.is_of_a_snapshot(),
        };
        if !fits || (kind == FrameKind::Snapshot && state.complete) {
            return Err(format!("an entry that does not belong here: {entry:?}"));
        }
        state.tree.apply(&entry, superblock).map_err(|error| format!("{error}, in {entry:?}"))?;
        if matches!(entry, Entry::SnapshotEnd { .. }) {
            if !state.tree.is_connected() {
                return Err("directories of the snapshot do not lead to the root".into());
            }
            state.complete = true;
        }
    }
    if kind == FrameKind::Log {
        state.log_frames += 1;
    }
    Ok(())
}

/// Reads a device's metadata.
///
/// # Errors
/// [`Error::NoFileSystem`], [`Error::Corrupt`], [`Error::Unsupported`], or what the device said.
pub(super) fn load(device: &dyn ZonedDevice) -> Result<Loaded> {
    let zones = device.report()?;
    let sequential: Vec<Zone> = zones.iter().filter(|z| z.kind == ZoneType::Sequential).copied().collect();
    let [first, second, ..] = sequential[..] else {
        return Err(Error::NoFileSystem { device: device.name().into() });
    };
    let mut meta = [MetaZone::new(device, first), MetaZone::new(device, second)];
    let mut notes = Vec::new();
    let mut candidates: Vec<(usize, FrameHeader, Superblock)> = Vec::new();
    let mut nothing: Vec<(usize, FrameError)> = Vec::new();
    let mut offline: Vec<usize> = Vec::new();
    for (index, zone) in meta.iter_mut().enumerate() {
        match first_frame(zone)? {
            First::Superblock(header, superblock) => candidates.push((index, header, *superblock)),
            First::Nothing(error) => nothing.push((index, error)),
            First::Offline => {
                notes.push(format!("metadata zone {} is offline", zone.zone.id));
                offline.push(index);
            }
        }
    }
    candidates.sort_by_key(|(_, header, _)| std::cmp::Reverse(header.sequence));
    let Some((_, newest, newest_superblock)) = candidates.first().cloned() else {
        for (index, error) in &nothing {
            let zone = &mut meta[*index];
            if *error != FrameError::NoMagic || zone.has_a_frame()? {
                return Err(zone.corrupt(0, format!("the superblock: {error}")));
            }
        }
        if let Some(index) = offline.first() {
            // Nobody knows what it held: this must not read like "run mkfs".
            let (lost, other) = (&meta[*index], &meta[1 - *index]);
            let what = format!(
                "metadata zone {} is offline, and zone {} holds no copy: a file system there was is lost with it",
                lost.zone.id, other.zone.id
            );
            return Err(lost.corrupt(0, what));
        }
        return Err(Error::NoFileSystem { device: device.name().into() });
    };
    check_superblock(device, &newest_superblock, [first.id, second.id])?;
    for (index, error) in &nothing {
        let zone = &mut meta[*index];
        let block = newest_superblock.block_size_bytes as usize;
        let torn = zone.torn_tail(0, block, newest_superblock.salt(), error)?;
        if torn > 0 {
            notes.push(format!("metadata zone {} holds a superblock that was cut off", zone.zone.id));
        }
    }
    for (active, header, superblock) in candidates {
        check_superblock(device, &superblock, [first.id, second.id])?;
        let zone = &mut meta[active];
        let state = replay(zone, &header, &superblock)?;
        if !state.complete {
            notes.push(format!("metadata zone {} holds a snapshot that was cut off", zone.zone.id));
            continue;
        }
        let can_append = state.end_bytes == zone.written && !matches!(zone.zone.cond, ZoneCond::ReadOnly);
        let report = RecoveryReport {
            torn_bytes: state.torn_bytes,
            meta_zone: zone.zone.id.0,
            sequence: header.sequence,
            log_frames: state.log_frames,
            skipped_entries: state.skipped_entries,
            notes,
        };
        return Ok(Loaded {
            superblock,
            tree: state.tree,
            active,
            next_index: state.next_index,
            end_bytes: state.end_bytes,
            can_append,
            highest_sequence: newest.sequence,
            zones,
            report,
        });
    }
    Err(meta[0].corrupt(0, "neither metadata zone holds a complete snapshot (an mkfs that was cut off?)"))
}

fn check_superblock(device: &dyn ZonedDevice, superblock: &Superblock, meta: [ZoneId; 2]) -> Result<()> {
    let unsupported = |what| Error::Unsupported { device: device.name().into(), what };
    let unknown = superblock.features & !KNOWN_FEATURES;
    if unknown != 0 {
        return Err(unsupported(format!("features {unknown:#x} are unknown to this program")));
    }
    superblock.fits(&device.geometry()).map_err(unsupported)?;
    if superblock.meta_zones != meta {
        return Err(unsupported("its metadata zones are not the first two sequential zones".into()));
    }
    Ok(())
}

/// Counts the live blocks of each zone, and makes sure that no two files share one and that all are written.
pub(super) fn live_blocks(device: &dyn ZonedDevice, loaded: &Loaded) -> Result<BTreeMap<ZoneId, u64>> {
    let block = u64::from(loaded.superblock.block_size_bytes);
    let mut runs: Vec<(ZoneId, u64, u64, u64)> = Vec::new();
    for (ino, inode) in loaded.tree.iter() {
        if let Kind::File(map) = &inode.kind {
            let run = |e: crate::model::Extent| {
                (e.zone, e.offset_bytes, e.offset_bytes + e.blocks(block) * block, ino)
            };
            runs.extend(map.iter().map(run));
        }
    }
    runs.sort_unstable();
    let start = |zone| device.geometry().zone_start(zone);
    let corrupt = |zone: ZoneId, at: u64, what: String| Error::Corrupt {
        device: device.name().into(),
        offset_bytes: start(zone) + at,
        what,
    };
    let mut live = BTreeMap::new();
    let mut last: Option<(ZoneId, u64, u64)> = None;
    for (zone, from, to, ino) in runs {
        if let Some((_, _, other)) = last.filter(|(z, end, _)| *z == zone && *end > from) {
            return Err(corrupt(zone, from, format!("inodes {other} and {ino} both have this block")));
        }
        last = Some((zone, to, ino));
        let found = loaded.zones.get(zone.0 as usize).filter(|z| z.kind == ZoneType::Sequential);
        let found =
            found.ok_or_else(|| corrupt(zone, from, format!("inode {ino} has blocks of no data zone")))?;
        let known = !matches!(found.cond, ZoneCond::ReadOnly | ZoneCond::Offline);
        if known && to > found.written_bytes {
            let what =
                format!("inode {ino} has blocks past the zone's write pointer, {}", found.written_bytes);
            return Err(corrupt(zone, from, what));
        }
        *live.entry(zone).or_insert(0) += (to - from) / block;
    }
    Ok(live)
}
