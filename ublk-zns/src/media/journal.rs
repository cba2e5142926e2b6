//! The journal of zone states: what is known after the machine lost its memory.
//!
//! A file of records (docs/formats.md). Each has a length, a sequence number and a crc32c over both and its body; a record
//! counts whole or not at all, so that a batch of zones changes in one step. The first record holds every zone; later ones
//! what changed. When the file is long, a new one with a single record takes its place by rename.
//!
//! The invariants: a record is synced before the command that waits for it completes, and after the data it speaks of;
//! records follow each other without a gap in their numbers. So a bad record with nothing valid behind it is the tail that
//! a power cut tore, which is cut off and reported; a bad record before a valid one is damage, and an error.

use super::table::{state_code, state_of};
use crate::{
    error::ZnsError,
    geometry::{Geometry, ZoneId},
    zones::ZoneState,
};
use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const MAGIC: [u8; 8] = *b"STORLZNJ";
const VERSION: u32 = 1;
/// Magic, version, number of zones, crc32c of the table's header page, crc32c of the above.
const HEADER_BYTES: usize = 24;
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"ZNJR");
/// Magic, crc, sequence, length, tag, zero.
const RECORD_BYTES: usize = 24;
const ENTRY_BYTES: usize = 48;
/// A record with zones.
const TAG_ZONES: u16 = 1;
/// Unknown tags from here on may be skipped.
const TAG_SKIPPABLE: u16 = 0x8000;
/// The longest record: a full set of zones of the largest device.
const MAX_RECORD_BYTES: usize = 256 << 20;
/// Records may take this much more than one with every zone, before a new file is written.
const SLACK_BYTES: u64 = 1 << 20;

/// What the journal keeps of a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The zone.
    pub zone: ZoneId,
    /// Its state.
    pub state: ZoneState,
    /// Sectors that hold data, all durable.
    pub written: u64,
    /// Program/erase cycles.
    pub cycles: u32,
    /// Reads since the last erase.
    pub reads: u32,
    /// When it was first written after its last erase, nanoseconds since 1970.
    pub programmed_at_ns: u64,
    /// Which opening it was.
    pub opened: u64,
    /// Sectors the host ever wrote to it.
    pub host_sectors: u64,
}

/// Where a journal lies: a file, or in tests a store that loses power.
pub trait LogStore {
    /// Everything there is.
    ///
    /// # Errors
    /// The store's.
    fn read(&self) -> io::Result<Vec<u8>>;

    /// Writes `bytes` at `offset`, behind everything that counts.
    ///
    /// # Errors
    /// The store's; some of the bytes may be there.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written last.
    ///
    /// # Errors
    /// The store's.
    fn sync(&mut self) -> io::Result<()>;

    /// Puts `bytes` in place of everything, in one durable step.
    ///
    /// # Errors
    /// The store's; either all or nothing is there then.
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// What reading a journal gave.
#[derive(Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The last entry of each zone, by zone.
    pub zones: Vec<Option<Entry>>,
    /// Where the next record goes.
    pub end: u64,
    /// The next record's number.
    pub sequence: u64,
    /// Where a torn tail begins, if there is one.
    pub torn_at: Option<u64>,
}

/// A journal, open for appending.
pub struct Journal<S> {
    store: S,
    header: [u8; HEADER_BYTES],
    end: u64,
    sequence: u64,
    limit: u64,
}

impl<S: LogStore> Journal<S> {
    /// Begins a new journal with `entries`, one per zone.
    ///
    /// # Errors
    /// The store's.
    pub fn create(
        store: S,
        geometry: &Geometry,
        geometry_crc: u32,
        entries: &[Entry],
    ) -> io::Result<Journal<S>> {
        let header = header(geometry.zones(), geometry_crc);
        let limit = SLACK_BYTES + 2 * (geometry.zones() as usize * ENTRY_BYTES) as u64;
        let mut journal = Journal { store, header, end: 0, sequence: 1, limit };
        journal.rewrite(entries)?;
        Ok(journal)
    }

    /// Reads the journal of `geometry` in `store` and goes on with it, its torn tail left out.
    ///
    /// # Errors
    /// The store's as `Err(Ok(..))`; `Err(Err((offset, why)))` for one that is damaged, or another device's.
    #[allow(clippy::type_complexity)]
    pub fn open(
        store: S,
        geometry: &Geometry,
        geometry_crc: u32,
    ) -> Result<(Journal<S>, Replayed), Result<io::Error, (u64, String)>> {
        let bytes = store.read().map_err(Ok)?;
        let replayed = replay(&bytes, geometry.zones(), geometry_crc).map_err(Err)?;
        let limit = SLACK_BYTES + 2 * (geometry.zones() as usize * ENTRY_BYTES) as u64;
        let header = header(geometry.zones(), geometry_crc);
        let journal = Journal { store, header, end: replayed.end, sequence: replayed.sequence, limit };
        Ok((journal, replayed))
    }

    /// Appends `entries` as one record and waits until it is durable.
    ///
    /// # Errors
    /// The store's: the entries may or may not count, and the next append puts its record in the same place.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let record = record(self.sequence, entries);
        self.store.write_at(self.end, &record)?;
        self.store.sync()?;
        self.end += record.len() as u64;
        self.sequence += 1;
        Ok(())
    }

    /// Whether it is time for [`Journal::rewrite`].
    pub fn is_long(&self) -> bool {
        self.end > self.limit
    }

    /// Puts a journal with nothing but `entries`, one per zone, in this one's place.
    ///
    /// # Errors
    /// The store's; the old journal counts then.
    pub fn rewrite(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = self.header.to_vec();
        bytes.extend_from_slice(&record(self.sequence, entries));
        self.store.replace(&bytes)?;
        self.end = bytes.len() as u64;
        self.sequence += 1;
        Ok(())
    }
}

fn header(zones: u32, geometry_crc: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&zones.to_le_bytes());
    bytes[16..20].copy_from_slice(&geometry_crc.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn record(sequence: u64, entries: &[Entry]) -> Vec<u8> {
    let length = RECORD_BYTES + entries.len() * ENTRY_BYTES;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&RECORD_MAGIC.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.extend_from_slice(&TAG_ZONES.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    for entry in entries {
        bytes.extend_from_slice(&entry.zone.0.to_le_bytes());
        bytes.extend_from_slice(&[state_code(entry.state), 0, 0, 0]);
        bytes.extend_from_slice(&entry.written.to_le_bytes());
        bytes.extend_from_slice(&entry.cycles.to_le_bytes());
        bytes.extend_from_slice(&entry.reads.to_le_bytes());
        bytes.extend_from_slice(&entry.programmed_at_ns.to_le_bytes());
        bytes.extend_from_slice(&entry.opened.to_le_bytes());
        bytes.extend_from_slice(&entry.host_sectors.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Little-endian numbers at offsets, `None` past the end.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }
    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }
    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }
    fn u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}

/// The record at `at`: its number, tag and body; `None` if none is whole there.
fn record_at(bytes: &[u8], at: usize) -> Option<(u64, u16, &[u8])> {
    let all = Fields(bytes.get(at..)?);
    let length = all.u32(16)? as usize;
    if all.u32(0)? != RECORD_MAGIC || !(RECORD_BYTES..=MAX_RECORD_BYTES).contains(&length) {
        return None;
    }
    let summed = all.0.get(8..length)?;
    if crc32c::crc32c(summed) != all.u32(4)? {
        return None;
    }
    Some((all.u64(8)?, all.u16(20)?, all.0.get(RECORD_BYTES..length)?))
}

/// Whether a whole record with a number of at least `sequence` begins anywhere from `from` on.
fn any_record_after(bytes: &[u8], from: usize, sequence: u64) -> bool {
    let magic = RECORD_MAGIC.to_le_bytes();
    // Records are multiples of 8 long and so is the header: they begin at multiples of 8.
    (from.next_multiple_of(8)..bytes.len()).step_by(8).any(|at| {
        bytes.get(at..at + 4) == Some(&magic[..])
            && record_at(bytes, at).is_some_and(|(number, ..)| number >= sequence)
    })
}

/// Reads the bytes of a journal.
///
/// # Errors
/// The offset of what is wrong, and why.
pub fn replay(bytes: &[u8], zones: u32, geometry_crc: u32) -> Result<Replayed, (u64, String)> {
    let head = Fields(bytes);
    if head.array::<8>(0) != Some(MAGIC) {
        return Err((0, "not a journal of ublk-zns (no magic)".into()));
    }
    match head.u32(8) {
        Some(VERSION) => {}
        Some(version) => return Err((8, format!("its version is {version}, this program reads {VERSION}"))),
        None => return Err((8, "it ends within the header".into())),
    }
    let sum = bytes.get(..20).map(crc32c::crc32c);
    if sum.is_none() || head.u32(20) != sum {
        return Err((20, "the header's checksum is wrong".into()));
    }
    if head.u32(12) != Some(zones) || head.u32(16) != Some(geometry_crc) {
        return Err((12, format!("it belongs to another device, this one has {zones} zones")));
    }
    let mut found =
        Replayed { zones: vec![None; zones as usize], end: HEADER_BYTES as u64, sequence: 0, torn_at: None };
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        let (number, tag, body) = match record_at(bytes, at) {
            Some(record) if found.sequence == 0 || record.0 == found.sequence => record,
            Some((number, ..)) if number > found.sequence => {
                let why = format!("record {number} where {} should be", found.sequence);
                return Err((at as u64, why));
            }
            // Older than what is expected: left over from before a failed append was repeated, or torn.
            _ if found.sequence == 0 || any_record_after(bytes, at + 8, found.sequence) => {
                return Err((at as u64, "a damaged record, with valid ones behind it".into()));
            }
            _ => {
                found.torn_at = Some(at as u64);
                break;
            }
        };
        match tag {
            TAG_ZONES => apply(&mut found.zones, body).map_err(|why| (at as u64, why))?,
            TAG_SKIPPABLE.. => {}
            _ => return Err((at as u64, format!("a record of the unknown kind {tag}"))),
        }
        found.sequence = number.saturating_add(1);
        at += RECORD_BYTES + body.len();
        found.end = at as u64;
    }
    if found.sequence == 0 {
        return Err((HEADER_BYTES as u64, "it has no record".into()));
    }
    if let Some(missing) = found.zones.iter().position(Option::is_none) {
        return Err((found.end, format!("it says nothing of zone {missing}")));
    }
    Ok(found)
}

fn apply(zones: &mut [Option<Entry>], body: &[u8]) -> Result<(), String> {
    let (entries, rest) = body.as_chunks::<ENTRY_BYTES>();
    if !rest.is_empty() {
        return Err(format!("a record with {} bytes left over", rest.len()));
    }
    for bytes in entries {
        let entry = entry(bytes).ok_or_else(|| "a zone with a state that does not exist".to_owned())?;
        let count = zones.len();
        let place = zones
            .get_mut(entry.zone.0 as usize)
            .ok_or_else(|| format!("zone {}, of {count} zones", entry.zone.0))?;
        *place = Some(entry);
    }
    Ok(())
}

fn entry(bytes: &[u8]) -> Option<Entry> {
    let fields = Fields(bytes);
    Some(Entry {
        zone: ZoneId(fields.u32(0)?),
        state: state_of(*bytes.get(4)?)?,
        written: fields.u64(8)?,
        cycles: fields.u32(16)?,
        reads: fields.u32(20)?,
        programmed_at_ns: fields.u64(24)?,
        opened: fields.u64(32)?,
        host_sectors: fields.u64(40)?,
    })
}

/// A journal in a file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
}

impl LogFile {
    /// The file `path`, which need not exist yet.
    ///
    /// # Errors
    /// The open's.
    pub fn open(path: &Path) -> io::Result<LogFile> {
        let opened = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path);
        let file = match opened {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(LogFile { path: path.to_owned(), file })
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl LogStore for LogFile {
    fn read(&self) -> io::Result<Vec<u8>> {
        let file = self.file()?;
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.file()?;
        // A torn tail, or what a failed append left, must not stay behind the new record.
        if file.metadata()?.len() > offset {
            file.set_len(offset)?;
        }
        file.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file()?.sync_data()
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&new)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        self.file = Some(file);
        Ok(())
    }
}

/// A damaged journal as this crate's error.
pub(super) fn damaged(path: &Path, (offset, why): (u64, String)) -> ZnsError {
    ZnsError::Format { path: path.to_owned(), offset, why }
}
