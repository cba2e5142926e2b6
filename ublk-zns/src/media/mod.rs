//! The media: the live table of zone states, the data, and for media that lasts a journal.
//!
//! Three kinds: anonymous memory, gone with the process; one file in tmpfs, which a killed daemon's successor maps again;
//! and a directory with three files (`zones`, the live table; `data`, sparse; `journal`), which also survives a restart of
//! the machine. Formats: docs/formats.md.
//!
//! The invariants: only one process uses a file at a time (a lock that ends with the process); within one boot the live
//! table counts, after a restart only the journal; the journal speaks only of data that was made durable before.

pub mod journal;
mod region;
mod table;

pub(crate) use table::HeldZone;
pub use table::{Placed, SlotId, SlotShape, ZoneField};

use crate::{
    error::ZnsError,
    geometry::{Geometry, SECTOR_BYTES, ZnsConfig, ZoneId},
    zones::{self, ZoneState},
};
use journal::{Entry, Journal, LogFile};
use region::Region;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::{Mutex, PoisonError},
};
use table::{Layout, PAGE, Table};

/// Where a device's media is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MediaPlace {
    /// In this process only.
    Anonymous,
    /// One file, in a file system that lives in memory.
    Ram(PathBuf),
    /// A directory that lasts.
    Dir(PathBuf),
}

impl MediaPlace {
    /// For messages.
    fn path(&self) -> &Path {
        match self {
            MediaPlace::Anonymous => Path::new("memory"),
            MediaPlace::Ram(path) | MediaPlace::Dir(path) => path,
        }
    }

    pub(crate) fn table_path(&self) -> PathBuf {
        match self {
            MediaPlace::Dir(dir) => dir.join("zones"),
            other => other.path().to_owned(),
        }
    }
}

/// How a zone was left.
pub(crate) type Left = (ZoneState, u64, u64);

/// A device's media.
pub struct Media {
    place: MediaPlace,
    table: Table,
    data: Region,
    data_file: File,
    data_at: u64,
    zone_bytes: usize,
    zones: u32,
    journal: Option<Mutex<JournalState>>,
    /// Holds the lock.
    _table_file: File,
}

struct JournalState {
    journal: Journal<LogFile>,
    /// What the journal says of every zone.
    entries: Vec<Entry>,
}

impl Media {
    /// New media at `place`, in place of any that is there (a directory must be empty or not exist).
    ///
    /// # Errors
    /// [`ZnsError::Media`].
    pub fn create(place: MediaPlace, geometry: &Geometry, slots: SlotShape) -> Result<Media, ZnsError> {
        let files = match &place {
            MediaPlace::Anonymous => {
                let made =
                    nix::sys::memfd::memfd_create(c"storlab-zns", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
                let file = File::from(made.map_err(|e| media(place.path(), "making", e.into()))?);
                (file, None)
            }
            MediaPlace::Ram(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(media(path, "removing what was there", error));
                    }
                    _ => {}
                }
                (make(path)?, None)
            }
            MediaPlace::Dir(dir) => {
                make_dir(dir)?;
                (make(&dir.join("zones"))?, Some(make(&dir.join("data"))?))
            }
        };
        Media::format(place.clone(), files, geometry, slots).inspect_err(|_| remove(&place))
    }

    fn format(
        place: MediaPlace,
        (table_file, data_file): (File, Option<File>),
        geometry: &Geometry,
        slots: SlotShape,
    ) -> Result<Media, ZnsError> {
        let path = place.table_path();
        let failed = |what, e| media(&path, what, e);
        lock(&table_file, &path)?;
        let data_at = if data_file.is_some() { 0 } else { Layout::of(geometry.zones(), slots).bytes };
        let size = data_at + geometry.sectors() * SECTOR_BYTES;
        data_file.as_ref().unwrap_or(&table_file).set_len(size).map_err(|e| failed("sizing", e))?;
        Table::format(&table_file, &path, geometry, slots).map_err(|e| failed("writing the header", e))?;
        let lasts = data_file.is_some();
        let mut made = Media::map(place, table_file, data_file, geometry, slots)?;
        if lasts {
            made.data_file.sync_all().map_err(|e| failed("syncing", e))?;
            made._table_file.sync_all().map_err(|e| failed("syncing", e))?;
            let entries: Vec<Entry> = (0..geometry.zones()).map(|zone| made.entry(ZoneId(zone))).collect();
            let journal = made.journal_path();
            let store = LogFile::open(&journal).map_err(|e| media(&journal, "opening", e))?;
            let journal = Journal::create(store, geometry, geometry_crc(geometry), &entries)
                .map_err(|e| media(&journal, "writing", e))?;
            made.journal = Some(Mutex::new(JournalState { journal, entries }));
        }
        Ok(made)
    }

    fn journal_path(&self) -> PathBuf {
        self.place.path().join("journal")
    }

    fn map(
        place: MediaPlace,
        table_file: File,
        data_file: Option<File>,
        geometry: &Geometry,
        slots: SlotShape,
    ) -> Result<Media, ZnsError> {
        let path = place.table_path();
        let mapped = |e| media(&path, "mapping", e);
        let table = Table::map(&table_file, &path, geometry, slots).map_err(mapped)?;
        let data_at = if data_file.is_some() { 0 } else { Layout::of(geometry.zones(), slots).bytes };
        let data_file = match data_file {
            Some(file) => file,
            None => table_file.try_clone().map_err(mapped)?,
        };
        let data = Region::map(&data_file, data_at, geometry.sectors() * SECTOR_BYTES).map_err(mapped)?;
        Ok(Media {
            place,
            table,
            data,
            data_file,
            data_at,
            zone_bytes: (geometry.zone_sectors() * SECTOR_BYTES) as usize,
            zones: geometry.zones(),
            journal: None,
            _table_file: table_file,
        })
    }

    /// What the device at `place` is: its sizes and limits.
    ///
    /// # Errors
    /// [`ZnsError::Media`] if it cannot be read, [`ZnsError::Format`] if it is not a device's.
    pub fn probe(place: &MediaPlace) -> Result<ZnsConfig, ZnsError> {
        let path = place.table_path();
        let file = open(&path)?;
        Ok(read_header(&file, &path)?.0)
    }

    /// The media of a device of this geometry that was left at `place`. With `same_slots` (a recovery) the tags must be the
    /// same too; without, their slots are made anew.
    ///
    /// # Errors
    /// [`ZnsError::Media`] if it cannot be opened, is another user's or in use; [`ZnsError::Format`] if it is not such a
    /// device's, or damaged.
    pub fn open(
        place: MediaPlace,
        geometry: &Geometry,
        slots: SlotShape,
        same_slots: bool,
    ) -> Result<Media, ZnsError> {
        let path = place.table_path();
        let file = open(&path)?;
        lock(&file, &path)?;
        let bad = |offset: u64, why: String| ZnsError::Format { path: path.clone(), offset, why };
        let (config, found_slots) = read_header(&file, &path)?;
        let there = Geometry::new(&config).map_err(|error| bad(12, error.to_string()))?;
        if let Some(why) = differs(&there, geometry) {
            return Err(bad(12, why));
        }
        let header = header_differs(&file, &there, found_slots).map_err(|e| media(&path, "reading", e))?;
        if let Some(offset) = header {
            return Err(bad(offset, "no device of these sizes has this in its header".into()));
        }
        let data_file = match &place {
            MediaPlace::Dir(dir) => Some(open(&dir.join("data"))?),
            _ => None,
        };
        if found_slots != slots && (same_slots || data_file.is_none()) {
            return Err(bad(60, "it was made for other queues or another depth".into()));
        }
        if !same_slots && data_file.is_some() {
            fresh_slots(&file, &path, geometry, slots)?;
        }
        let table_bytes = Layout::of(geometry.zones(), slots).bytes;
        let data_bytes = geometry.sectors() * SECTOR_BYTES;
        let check = |file: &File, path: &Path, expected: u64| {
            let len = file.metadata().map_err(|e| media(path, "looking at it", e))?.len();
            let why = format!("it ends here, and should be {expected} bytes long");
            if len == expected {
                Ok(())
            } else {
                Err(ZnsError::Format { path: path.to_owned(), offset: len, why })
            }
        };
        match (&data_file, &place) {
            (Some(data), MediaPlace::Dir(dir)) => {
                check(&file, &path, table_bytes)?;
                check(data, &dir.join("data"), data_bytes)?;
            }
            _ => check(&file, &path, table_bytes + data_bytes)?,
        }
        let lasts = data_file.is_some();
        let mut media = Media::map(place, file, data_file, geometry, slots)?;
        if lasts {
            media.open_journal(geometry)?;
        }
        Ok(media)
    }

    fn open_journal(&mut self, geometry: &Geometry) -> Result<(), ZnsError> {
        let path = self.journal_path();
        let at = |what| {
            let path = path.clone();
            move |e| media(&path, what, e)
        };
        let store = LogFile::open(&path).map_err(at("opening"))?;
        let (journal, replayed) = match Journal::open(store, geometry, geometry_crc(geometry)) {
            Ok(opened) => opened,
            Err(Ok(error)) => return Err(media(&path, "reading", error)),
            Err(Err(damage)) => return Err(journal::damaged(&path, damage)),
        };
        if let Some(offset) = replayed.torn_at {
            log::warn!("{}: a record torn by a power cut at byte {offset} is left out", path.display());
        }
        let entries: Vec<Entry> = replayed.zones.into_iter().flatten().collect();
        if !table::is_of_this_boot(&self._table_file) {
            log::info!(
                "{}: the machine was restarted: zone states from the journal",
                self.place.path().display()
            );
            self.restore(geometry, &entries)?;
            table::begin_session(&self._table_file).map_err(at("beginning a session"))?;
        }
        self.journal = Some(Mutex::new(JournalState { journal, entries }));
        Ok(())
    }

    /// Fills the table with what the journal says. Zones were noted one by one, so that together they may exceed the limits:
    /// the device then closes or finishes some.
    ///
    /// # Errors
    /// [`ZnsError::Media`].
    fn restore(&self, geometry: &Geometry, entries: &[Entry]) -> Result<(), ZnsError> {
        let mut states: Vec<(ZoneState, u64)> =
            entries.iter().map(|entry| (entry.state, entry.written)).collect();
        zones::keep_limits(geometry, &mut states);
        for (entry, (state, written)) in entries.iter().zip(states) {
            // What was written later and reached the disk anyway must not come up again when the zone grows.
            self.deallocate_from(entry.zone, written)?;
            self.table.restore(entry.zone, state, written);
            let fields = [
                (ZoneField::Durable, written),
                (ZoneField::Cycles, entry.cycles.into()),
                (ZoneField::Reads, entry.reads.into()),
                (ZoneField::ProgrammedAt, entry.programmed_at_ns),
                (ZoneField::Opened, entry.opened),
                (ZoneField::HostSectors, entry.host_sectors),
            ];
            for (field, value) in fields {
                self.table.set_field(entry.zone, field, value);
            }
        }
        Ok(())
    }

    /// Where the media is.
    pub fn place(&self) -> &MediaPlace {
        &self.place
    }

    /// Whether it outlives the machine's memory.
    pub fn lasts(&self) -> bool {
        self.journal.is_some()
    }

    /// The tags that have slots.
    pub fn slots(&self) -> SlotShape {
        self.table.slots()
    }

    /// State and written sectors of a zone, without any lock.
    ///
    /// # Errors
    /// [`ZnsError::Format`] for a word that no device wrote.
    pub fn load(&self, zone: ZoneId) -> Result<(ZoneState, u64), ZnsError> {
        self.table.load(zone)
    }

    /// Where the table has a zone, in bytes from its start, for messages.
    pub(crate) fn zone_offset(&self, zone: ZoneId) -> u64 {
        self.table.zone_offset(zone)
    }

    /// How a zone was left: state, written sectors, and which opening it was.
    pub(crate) fn left(&self, zone: ZoneId) -> Result<Left, ZnsError> {
        let (state, written) = self.table.load(zone)?;
        Ok((state, written, self.table.field(zone, ZoneField::Opened)))
    }

    /// Releases what a killed daemon held, once its states are known to be good.
    pub(crate) fn release_all(&self) {
        self.table.release_all();
    }

    pub(crate) fn hold(&self, zone: ZoneId) -> Option<HeldZone<'_>> {
        self.table.hold(zone)
    }

    /// One of the numbers kept of a zone; 0 for no such zone.
    pub fn field(&self, zone: ZoneId, field: ZoneField) -> u64 {
        self.table.field(zone, field)
    }

    pub(crate) fn set_field(&self, zone: ZoneId, field: ZoneField, value: u64) {
        self.table.set_field(zone, field, value);
    }

    pub(crate) fn add_field(&self, zone: ZoneId, field: ZoneField, by: u64) {
        self.table.add_field(zone, field, by);
    }

    pub(crate) fn place_write(&self, slot: SlotId, append: bool, start_sector: u64, sectors: u64) {
        self.table.place(slot, append, start_sector, sectors);
    }

    pub(crate) fn committing(&self, slot: SlotId) -> Option<bool> {
        self.table.committing(slot)
    }

    pub(crate) fn clear_slot(&self, slot: SlotId) {
        self.table.clear(slot);
    }

    pub(crate) fn inherit(&self) -> Vec<(usize, Placed)> {
        self.table.inherit()
    }

    pub(crate) fn forget_left(&self, index: usize) {
        self.table.forget_left(index);
    }

    /// What the journal would say of a zone now.
    pub(crate) fn entry(&self, zone: ZoneId) -> Entry {
        let (state, written) = self.table.load(zone).unwrap_or((ZoneState::Offline, 0));
        let small = |field| u32::try_from(self.field(zone, field)).unwrap_or(u32::MAX);
        Entry {
            zone,
            state,
            written,
            cycles: small(ZoneField::Cycles),
            reads: small(ZoneField::Reads),
            programmed_at_ns: self.field(zone, ZoneField::ProgrammedAt),
            opened: self.field(zone, ZoneField::Opened),
            host_sectors: self.field(zone, ZoneField::HostSectors),
        }
    }

    /// Makes all data so far durable, then says so of these zones. Memory has nothing to do.
    ///
    /// # Errors
    /// [`ZnsError::Media`]: nothing may be taken for durable then.
    pub(crate) fn commit(&self, entries: &[Entry]) -> Result<(), ZnsError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        self.data_file.sync_data().map_err(|e| media(self.place.path(), "syncing the data", e))?;
        let mut state = journal.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.journal_path();
        if !entries.is_empty() {
            state.journal.append(entries).map_err(|e| media(&path, "writing", e))?;
        }
        for entry in entries {
            if let Some(known) = state.entries.get_mut(entry.zone.0 as usize) {
                *known = *entry;
            }
        }
        if state.journal.is_long() {
            let JournalState { journal, entries } = &mut *state;
            journal.rewrite(entries).map_err(|e| media(&path, "rewriting", e))?;
        }
        Ok(())
    }

    /// Where `sectors` at `offset` of a zone lie in memory; `None` outside the zone.
    ///
    /// The pointer is valid for reads and writes as long as the media. Others may access the bytes at the same time:
    /// use it only for copies where a torn value is acceptable.
    pub fn data(&self, zone: ZoneId, offset_sectors: u64, sectors: u64) -> Option<(NonNull<u8>, usize)> {
        let offset = usize::try_from(offset_sectors.checked_mul(SECTOR_BYTES)?).ok()?;
        let bytes = usize::try_from(sectors.checked_mul(SECTOR_BYTES)?).ok()?;
        if zone.0 >= self.zones || offset.checked_add(bytes)? > self.zone_bytes {
            return None;
        }
        Some((self.data.bytes(zone.0 as usize * self.zone_bytes + offset, bytes)?, bytes))
    }

    /// Gives the memory of a zone's data back; it reads as zeroes from then on.
    ///
    /// # Errors
    /// [`ZnsError::Media`].
    pub fn deallocate(&self, zone: ZoneId) -> Result<(), ZnsError> {
        self.deallocate_from(zone, 0)
    }

    fn deallocate_from(&self, zone: ZoneId, offset_sectors: u64) -> Result<(), ZnsError> {
        let zone_bytes = self.zone_bytes as u64;
        let skipped = offset_sectors.saturating_mul(SECTOR_BYTES).min(zone_bytes);
        if skipped == zone_bytes {
            return Ok(());
        }
        let offset = (self.data_at + u64::from(zone.0) * zone_bytes + skipped) as libc::off_t;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (fd, bytes) = (self.data_file.as_raw_fd(), (zone_bytes - skipped) as libc::off_t);
        // SAFETY: fallocate on our own file with a range inside it.
        if unsafe { libc::fallocate(fd, mode, offset, bytes) } < 0 {
            return Err(media(self.place.path(), "deallocating a zone", io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// Removes what was made at `place`, which held nothing before.
pub fn remove(place: &MediaPlace) {
    let files = match place {
        MediaPlace::Anonymous => Vec::new(),
        MediaPlace::Ram(path) => vec![path.clone()],
        MediaPlace::Dir(dir) => ["journal", "journal.new", "data", "zones"].map(|name| dir.join(name)).into(),
    };
    for file in files {
        if let Err(error) = std::fs::remove_file(&file)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{}: {error}", file.display());
        }
    }
    if let MediaPlace::Dir(dir) = place {
        // Somebody else's files in it keep it.
        let _ = std::fs::remove_dir(dir);
    }
}

/// Whether a directory holds a device.
pub fn is_device(dir: &Path) -> bool {
    dir.join("zones").exists()
}

fn make_dir(dir: &Path) -> Result<(), ZnsError> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(media(dir, "making the directory", error)),
        Ok(()) => return Ok(()),
    }
    let mut found = std::fs::read_dir(dir).map_err(|e| media(dir, "looking into it", e))?;
    match found.next() {
        None => Ok(()),
        Some(_) => Err(ZnsError::Format {
            path: dir.to_owned(),
            offset: 0,
            why: "the directory is not empty, and holds no device".into(),
        }),
    }
}

fn make(path: &Path) -> Result<File, ZnsError> {
    let options = File::options().read(true).write(true).create_new(true).mode(0o600).clone();
    options.open(path).map_err(|e| media(path, "making", e))
}

fn open(path: &Path) -> Result<File, ZnsError> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|e| media(path, "opening", e))?;
    let meta = file.metadata().map_err(|e| media(path, "looking at it", e))?;
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(media(path, "opening", io::Error::from_raw_os_error(libc::EPERM)));
    }
    Ok(file)
}

/// One process at a time; the lock ends with it.
fn lock(file: &File, path: &Path) -> Result<(), ZnsError> {
    file.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => ZnsError::InUse(path.to_owned()),
        std::fs::TryLockError::Error(source) => media(path, "locking", source),
    })
}

/// The first byte of the header that is not what a device of this geometry writes: a field may say what comes to the same.
fn header_differs(file: &File, geometry: &Geometry, slots: SlotShape) -> io::Result<Option<u64>> {
    let expected = table::header(geometry, slots);
    let mut found = vec![0; table::CRC_AT];
    file.read_exact_at(&mut found, 0)?;
    Ok(found.iter().zip(&expected).position(|(a, b)| a != b).map(|at| at as u64))
}

fn read_header(file: &File, path: &Path) -> Result<(ZnsConfig, SlotShape), ZnsError> {
    let bad = |(offset, why)| ZnsError::Format { path: path.to_owned(), offset, why };
    let len = file.metadata().map_err(|e| media(path, "looking at it", e))?.len().min(PAGE);
    let mut found = vec![0; len as usize];
    file.read_exact_at(&mut found, 0).map_err(|e| media(path, "reading", e))?;
    table::parse_header(&found).map_err(bad)
}

/// Makes room for the slots of this run's queues. What the old ones said is about a daemon that ended and requests that
/// will not come again.
fn fresh_slots(file: &File, path: &Path, geometry: &Geometry, slots: SlotShape) -> Result<(), ZnsError> {
    let failed = |e| media(path, "making room for the queues", e);
    let zones_end = Layout::of(geometry.zones(), SlotShape::default()).bytes;
    let len = file.metadata().map_err(failed)?.len();
    if len < zones_end {
        let why = format!("it ends here, and should be at least {zones_end} bytes long");
        return Err(ZnsError::Format { path: path.to_owned(), offset: len, why });
    }
    let run = || -> io::Result<()> {
        let layout = Layout::of(geometry.zones(), slots);
        file.set_len(layout.slots_at as u64)?;
        file.set_len(layout.bytes)?;
        file.write_all_at(&table::header(geometry, slots), 0)
    };
    run().map_err(failed)
}

/// What the journal knows its device by.
fn geometry_crc(geometry: &Geometry) -> u32 {
    crc32c::crc32c(&table::header(geometry, SlotShape::default()))
}

fn differs(found: &Geometry, wanted: &Geometry) -> Option<String> {
    let fields: [(&str, u64, u64); 8] = [
        ("sectors per zone", found.zone_sectors(), wanted.zone_sectors()),
        ("zones", found.zones().into(), wanted.zones().into()),
        (
            "writable sectors per zone",
            found.sequential_capacity_sectors(),
            wanted.sequential_capacity_sectors(),
        ),
        ("conventional zones", found.conventional_zones().into(), wanted.conventional_zones().into()),
        ("zones open at most", found.max_open().into(), wanted.max_open().into()),
        ("zones active at most", found.max_active().into(), wanted.max_active().into()),
        ("sectors per block", found.block_sectors(), wanted.block_sectors()),
        ("sectors per append at most", found.max_append_sectors(), wanted.max_append_sectors()),
    ];
    let (name, has, asked) = fields.into_iter().find(|(_, has, asked)| has != asked)?;
    Some(format!("the device there has {has} {name}, not {asked}"))
}

fn media(path: &Path, what: &'static str, source: io::Error) -> ZnsError {
    ZnsError::Media { path: path.to_owned(), what, source }
}
