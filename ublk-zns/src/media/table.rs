//! The live table: every zone's state and every write in progress, in shared memory that outlives the daemon.
//!
//! The file starts with a header page (the device's sizes, with a crc32c) and a session page (which boot it belongs to);
//! then 64 bytes per zone, then two banks of 16 bytes per tag: what this daemon placed, and what a dead one left
//! (docs/formats.md).
//!
//! The invariants: a zone's word is one atomic value with all that a reader needs (state and written sectors), so that
//! nobody ever sees half a change; it is changed only by who holds its lock bit, and stored before the command that
//! changed it completes. A tag's slot is stored before the word that its write moves, so that a successor can tell a
//! write that took its place from one that did not: its slot's start is below, or at, the zone's write pointer.

use super::region::Region;
use crate::{
    error::ZnsError,
    geometry::{Geometry, SECTOR_BYTES, ZnsConfig, ZoneId},
    zones::ZoneState,
};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

pub(super) const MAGIC: [u8; 8] = *b"STORLZNS";
/// Version 1 had a word per zone and nothing else; it was only ever in memory, and is gone with the boot that made it.
pub(super) const VERSION: u32 = 2;
pub(super) const PAGE: u64 = 4096;
/// Magic, version, four 4-byte and four 8-byte fields, slots as two 2-byte fields, then the crc.
pub(super) const CRC_AT: usize = 8 + 4 + 4 * 4 + 4 * 8 + 4;
const ZONE_BYTES: usize = 64;
const SLOT_BYTES: usize = 16;
/// Set in a zone's word while somebody changes it.
const LOCKED: u64 = 1 << 55;
const WRITTEN_MASK: u64 = (1 << 48) - 1;

/// How many tags have slots: hardware queues and requests in flight per queue. Zero for a device used in process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotShape {
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
}

impl SlotShape {
    fn count(self) -> usize {
        usize::from(self.queues) * usize::from(self.depth)
    }
}

/// A request in flight: its queue and tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotId {
    /// The queue.
    pub queue: u16,
    /// The tag within the queue.
    pub tag: u16,
}

/// What a slot remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Whose it was.
    pub slot: SlotId,
    /// A zone append, not a write.
    pub append: bool,
    /// Its completion was on its way to the kernel.
    pub committing: bool,
    /// First sector on the device.
    pub start_sector: u64,
    /// Length in sectors.
    pub sectors: u64,
}

/// What is kept of a zone besides its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneField {
    /// Sectors that a power cut cannot take.
    Durable = 1,
    /// Program/erase cycles.
    Cycles = 2,
    /// Reads since the last erase.
    Reads = 3,
    /// When it was first written after its last erase, in nanoseconds since 1970.
    ProgrammedAt = 4,
    /// Which opening this was, counted over the device: the oldest implicitly open zone is closed first.
    Opened = 5,
    /// Sectors the host ever wrote to it.
    HostSectors = 6,
}

/// Where the parts of the file are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    zones_at: usize,
    pub(super) slots_at: usize,
    /// Bytes of the table, whole pages.
    pub(super) bytes: u64,
}

impl Layout {
    pub(super) fn of(zones: u32, slots: SlotShape) -> Layout {
        let zones_at = 2 * PAGE;
        let slots_at = zones_at + u64::from(zones) * ZONE_BYTES as u64;
        let end = slots_at + 2 * slots.count() as u64 * SLOT_BYTES as u64;
        Layout { zones_at: zones_at as usize, slots_at: slots_at as usize, bytes: end.next_multiple_of(PAGE) }
    }
}

/// The table of one device.
pub(super) struct Table {
    region: Region,
    layout: Layout,
    zones: u32,
    slots: SlotShape,
    path: PathBuf,
}

impl Table {
    /// A new table in the empty file `file`: every zone empty.
    pub(super) fn format(
        file: &File,
        path: &Path,
        geometry: &Geometry,
        slots: SlotShape,
    ) -> std::io::Result<()> {
        let layout = Layout::of(geometry.zones(), slots);
        if file.metadata()?.len() < layout.bytes {
            file.set_len(layout.bytes)?;
        }
        file.write_all_at(&session(&boot_id()), PAGE)?;
        file.write_all_at(&header(geometry, slots), 0)?;
        log::debug!("{}: made for {} zones", path.display(), geometry.zones());
        Ok(())
    }

    /// Maps the table at the start of `file`.
    pub(super) fn map(
        file: &File,
        path: &Path,
        geometry: &Geometry,
        slots: SlotShape,
    ) -> std::io::Result<Table> {
        let layout = Layout::of(geometry.zones(), slots);
        let region = Region::map(file, 0, layout.bytes)?;
        Ok(Table { region, layout, zones: geometry.zones(), slots, path: path.to_owned() })
    }

    fn zone_word(&self, zone: ZoneId, index: usize) -> Option<&AtomicU64> {
        if zone.0 >= self.zones {
            return None;
        }
        self.region.word(self.layout.zones_at + zone.0 as usize * ZONE_BYTES + index * 8)
    }

    /// A zone's state and written sectors, without any lock.
    ///
    /// # Errors
    /// [`ZnsError::Format`] for a word that no device wrote.
    pub(super) fn load(&self, zone: ZoneId) -> Result<(ZoneState, u64), ZnsError> {
        let word = self.zone_word(zone, 0).map_or(u64::MAX, |word| word.load(Acquire));
        decode_word(word).ok_or_else(|| self.bad_word(zone, word))
    }

    pub(super) fn zone_offset(&self, zone: ZoneId) -> u64 {
        self.layout.zones_at as u64 + u64::from(zone.0) * ZONE_BYTES as u64
    }

    fn bad_word(&self, zone: ZoneId, word: u64) -> ZnsError {
        ZnsError::Format {
            path: self.path.clone(),
            offset: self.zone_offset(zone),
            why: format!("zone {}: {word:#x} is no zone state", zone.0),
        }
    }

    /// Takes a zone's lock bit, which others hold for a few instructions only; `None` for no such zone, or a word that no
    /// device wrote.
    pub(super) fn hold(&self, zone: ZoneId) -> Option<HeldZone<'_>> {
        let word = self.zone_word(zone, 0)?;
        let mut tries = 0u32;
        loop {
            let value = word.load(Relaxed);
            if value & LOCKED == 0
                && word.compare_exchange_weak(value, value | LOCKED, Acquire, Relaxed).is_ok()
            {
                let held = HeldZone { word, value };
                return decode_word(value).is_some().then_some(held);
            }
            tries += 1;
            // The holder may have lost its CPU.
            if tries.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    /// Releases lock bits that a killed daemon held.
    pub(super) fn release_all(&self) {
        for zone in 0..self.zones {
            if let Some(word) = self.zone_word(ZoneId(zone), 0) {
                word.fetch_and(!LOCKED, AcqRel);
            }
        }
    }

    /// Stores a zone's word outright, when nobody else uses the table yet.
    pub(super) fn restore(&self, zone: ZoneId, state: ZoneState, written: u64) {
        if let Some(word) = self.zone_word(zone, 0) {
            word.store(encode_word(state, written), Release);
        }
    }

    pub(super) fn field(&self, zone: ZoneId, field: ZoneField) -> u64 {
        self.zone_word(zone, field as usize).map_or(0, |word| word.load(Relaxed))
    }

    pub(super) fn set_field(&self, zone: ZoneId, field: ZoneField, value: u64) {
        if let Some(word) = self.zone_word(zone, field as usize) {
            word.store(value, Relaxed);
        }
    }

    pub(super) fn add_field(&self, zone: ZoneId, field: ZoneField, by: u64) {
        if let Some(word) = self.zone_word(zone, field as usize) {
            word.fetch_add(by, Relaxed);
        }
    }

    fn slot_words(&self, slot: SlotId) -> Option<(&AtomicU64, &AtomicU64)> {
        if slot.queue >= self.slots.queues || slot.tag >= self.slots.depth {
            return None;
        }
        let index = usize::from(slot.queue) * usize::from(self.slots.depth) + usize::from(slot.tag);
        let at = self.layout.slots_at + index * SLOT_BYTES;
        Some((self.region.word(at)?, self.region.word(at + 8)?))
    }

    /// Remembers where a write is about to be placed. Stored before the zone's word moves.
    pub(super) fn place(&self, slot: SlotId, append: bool, start_sector: u64, sectors: u64) {
        if let Some((head, start)) = self.slot_words(slot) {
            head.store(0, Release);
            start.store(start_sector, Release);
            head.store(encode_slot(slot, append, sectors), Release);
        }
    }

    /// The tag's completion is about to be given to the kernel. Tells whether the slot says something, and whether that is an
    /// append.
    pub(super) fn committing(&self, slot: SlotId) -> Option<bool> {
        let (head, _) = self.slot_words(slot)?;
        let value = head.load(Relaxed);
        if value == 0 {
            return None;
        }
        head.store(value | SLOT_COMMITTING, Release);
        Some(value & SLOT_APPEND != 0)
    }

    /// Forgets what the tag's slot said: the kernel knows the completion.
    pub(super) fn clear(&self, slot: SlotId) {
        if let Some((head, _)) = self.slot_words(slot) {
            head.store(0, Release);
        }
    }

    fn left_words(&self, index: usize) -> Option<(&AtomicU64, &AtomicU64)> {
        let at = self.layout.slots_at + (self.slots.count() + index) * SLOT_BYTES;
        Some((self.region.word(at)?, self.region.word(at + 8)?))
    }

    /// Moves what a dead daemon's slots say to the second bank, where it stays until somebody forgets it, and returns all
    /// that is there, each with its place in the bank.
    pub(super) fn inherit(&self) -> Vec<(usize, Placed)> {
        let mut left: Vec<(usize, Placed)> = (0..self.slots.count())
            .filter_map(|index| {
                let (head, start) = self.left_words(index)?;
                Some((index, decode_slot(head.load(Acquire), start.load(Acquire))?))
            })
            .collect();
        let mut free = (0..self.slots.count()).filter(|index| !left.iter().any(|(used, _)| used == index));
        let mut moved = Vec::new();
        for (queue, tag) in (0..self.slots.queues).flat_map(|q| (0..self.slots.depth).map(move |t| (q, t))) {
            let slot = SlotId { queue, tag };
            let Some((head, start)) = self.slot_words(slot) else { continue };
            let (value, at) = (head.load(Acquire), start.load(Acquire));
            if let Some(placed) = decode_slot(value, at)
                && !left.iter().any(|(_, other)| *other == placed)
                && let Some(index) = free.next()
                && let Some((to_head, to_start)) = self.left_words(index)
            {
                to_start.store(at, Release);
                to_head.store(value, Release);
                moved.push((index, placed));
            }
            // After the copy: a daemon that dies between the two leaves it twice, which the comparison above finds.
            head.store(0, Release);
        }
        left.append(&mut moved);
        left
    }

    /// Forgets an entry of the second bank.
    pub(super) fn forget_left(&self, index: usize) {
        if let Some((head, _)) = self.left_words(index) {
            head.store(0, Release);
        }
    }

    pub(super) fn slots(&self) -> SlotShape {
        self.slots
    }
}

const SLOT_PLACED: u64 = 1 << 63;
const SLOT_COMMITTING: u64 = 1 << 62;
const SLOT_APPEND: u64 = 1 << 61;
/// A request has fewer than 2^20 sectors (512 MiB), a queue at most 4096 tags, a device fewer than 2^16 queues.
const SLOT_SECTORS: u64 = (1 << 20) - 1;

/// From the top: three flags, the queue in 16 bits from bit 40, the tag in 16 bits from bit 20, the sectors.
fn encode_slot(slot: SlotId, append: bool, sectors: u64) -> u64 {
    let append = if append { SLOT_APPEND } else { 0 };
    SLOT_PLACED | append | u64::from(slot.queue) << 40 | u64::from(slot.tag) << 20 | (sectors & SLOT_SECTORS)
}

fn decode_slot(head: u64, start_sector: u64) -> Option<Placed> {
    (head & SLOT_PLACED != 0).then_some(Placed {
        slot: SlotId { queue: (head >> 40) as u16, tag: (head >> 20) as u16 },
        append: head & SLOT_APPEND != 0,
        committing: head & SLOT_COMMITTING != 0,
        start_sector,
        sectors: head & SLOT_SECTORS,
    })
}

/// A zone's word, held: nobody else changes it until this is dropped.
pub(crate) struct HeldZone<'t> {
    word: &'t AtomicU64,
    value: u64,
}

impl HeldZone<'_> {
    /// The zone's state and written sectors.
    pub(crate) fn get(&self) -> (ZoneState, u64) {
        decode_word(self.value).unwrap_or((ZoneState::Offline, 0))
    }

    /// What the zone is when this is dropped.
    pub(crate) fn set(&mut self, state: ZoneState, written: u64) {
        self.value = encode_word(state, written);
    }
}

impl Drop for HeldZone<'_> {
    fn drop(&mut self) {
        self.word.store(self.value, Release);
    }
}

const STATES: [ZoneState; 7] = [
    ZoneState::Empty,
    ZoneState::ImplicitlyOpen,
    ZoneState::ExplicitlyOpen,
    ZoneState::Closed,
    ZoneState::Full,
    ZoneState::ReadOnly,
    ZoneState::Offline,
];

/// The number of a state in words and journal entries.
pub(super) fn state_code(state: ZoneState) -> u8 {
    STATES.iter().position(|other| *other == state).unwrap_or(0) as u8
}

/// The state of a number.
pub(super) fn state_of(code: u8) -> Option<ZoneState> {
    STATES.get(usize::from(code)).copied()
}

/// State in the top byte, written sectors below. An empty zone is 0, which is what a fresh file holds.
fn encode_word(state: ZoneState, written: u64) -> u64 {
    u64::from(state_code(state)) << 56 | (written & WRITTEN_MASK)
}

fn decode_word(word: u64) -> Option<(ZoneState, u64)> {
    let written = word & !LOCKED & ((1 << 56) - 1);
    (written <= WRITTEN_MASK).then_some((state_of((word >> 56) as u8)?, written))
}

/// Which boot of the machine this is: what a table says counts only within one, since memory that was never flushed is
/// lost between two (`/proc/sys/kernel/random/boot_id`).
fn boot_id() -> [u8; 36] {
    let mut id = [0; 36];
    let text = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let len = text.len().min(id.len());
    if let (Some(to), Some(from)) = (id.get_mut(..len), text.get(..len)) {
        to.copy_from_slice(from);
    }
    id
}

fn session(boot: &[u8; 36]) -> Vec<u8> {
    let mut page = boot.to_vec();
    page.extend_from_slice(&crc32c::crc32c(boot).to_le_bytes());
    page
}

/// Whether the session page of a file says that it was used in this boot.
pub(super) fn is_of_this_boot(file: &File) -> bool {
    let mut found = [0u8; 40];
    let boot = boot_id();
    file.read_exact_at(&mut found, PAGE).is_ok() && boot != [0; 36] && found[..] == session(&boot)[..]
}

/// Writes the session page of this boot.
pub(super) fn begin_session(file: &File) -> std::io::Result<()> {
    file.write_all_at(&session(&boot_id()), PAGE)
}

/// The header page of a device.
pub(super) fn header(geometry: &Geometry, slots: SlotShape) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PAGE as usize);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    let small = [geometry.zones(), geometry.conventional_zones(), geometry.max_open(), geometry.max_active()];
    small.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    let large = [
        geometry.zone_sectors(),
        geometry.sequential_capacity_sectors(),
        geometry.block_sectors(),
        geometry.max_append_sectors(),
    ];
    large.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    [slots.queues, slots.depth].iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.resize(PAGE as usize, 0);
    bytes
}

/// What a header says, or where it is wrong and why.
pub(super) fn parse_header(found: &[u8]) -> Result<(ZnsConfig, SlotShape), (u64, String)> {
    let short = || (found.len() as u64, "it ends within the header".to_owned());
    if found.get(..8) != Some(&MAGIC[..]) {
        return Err((0, "not media of ublk-zns (no magic)".into()));
    }
    let int = |at: usize| -> Option<u32> {
        found.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
    };
    let long = |at: usize| -> Option<u64> {
        found.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
    };
    let version = int(8).ok_or_else(short)?;
    if version != VERSION {
        return Err((8, format!("its version is {version}, this program reads {VERSION}")));
    }
    let body = found.get(..CRC_AT).ok_or_else(short)?;
    if int(CRC_AT).ok_or_else(short)? != crc32c::crc32c(body) {
        return Err((CRC_AT as u64, "the header's checksum is wrong".into()));
    }
    let ints = [12, 16, 20, 24].map(int);
    let longs = [28, 36, 44, 52].map(long);
    let (
        [Some(zones), Some(conventional), Some(open), Some(active)],
        [Some(zone), Some(capacity), Some(block), Some(append)],
    ) = (ints, longs)
    else {
        return Err(short());
    };
    let half =
        |at: usize| found.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
    let config = ZnsConfig {
        size_bytes: bytes(zone).saturating_mul(zones.into()),
        zone_size_bytes: bytes(zone),
        zone_capacity_bytes: Some(bytes(capacity)),
        conventional_zones: conventional,
        max_open_zones: Some(open),
        max_active_zones: Some(active),
        block_bytes: u32::try_from(bytes(block)).unwrap_or(u32::MAX),
        max_append_bytes: u32::try_from(bytes(append)).unwrap_or(u32::MAX),
    };
    Ok((config, SlotShape { queues: half(60), depth: half(62) }))
}
