//! The device as a library: the zone rules and the media together, safe to use from many threads.
//!
//! Most writes go into an open zone and change nothing but its write pointer: they hold that zone's word for a few
//! instructions. Whatever changes a state takes the one lock too. Data is copied outside both, under its zone's guard:
//! copies share the guard, so that they run side by side; a reset takes it alone, so that no copy and no new write meets
//! the media while it is being emptied. Reads look at the zone's word ([`crate::media`]) and take neither lock nor word.
//!
//! The invariants: a zone's word is published before the command that changed it returns, and a write's data is in the
//! media when the write returns; data is only ever read below a zone's published write pointer. Locks are taken in the
//! order settling, guard, state, word.

use crate::{
    cache::Cache,
    error::ZnsError,
    geometry::{Geometry, SECTOR_BYTES, Sector, ZnsConfig, ZoneId},
    media::{Media, MediaPlace, SlotId, SlotShape, ZoneField},
    replay::Replays,
    zones::{self, Effect, Readable, ZoneDescriptor, ZoneError, ZoneState, Zones},
};
use std::{
    io,
    path::Path,
    ptr::NonNull,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// What a completed write means.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// It is durable: in memory as durable as memory gets, in a directory synced one by one.
    #[default]
    Durable,
    /// It may be lost in a power cut until a flush, as with a drive's volatile write cache.
    Volatile,
}

/// What a device is and where it lives.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// Its sizes and limits.
    pub config: ZnsConfig,
    /// Its media.
    pub place: MediaPlace,
    /// What a completed write means.
    pub cache: CacheMode,
    /// The tags of the front, so that a successor can tell which writes took their places.
    pub slots: SlotShape,
}

impl DeviceOptions {
    /// A device used in process, with a durable cache.
    pub fn new(config: ZnsConfig, place: MediaPlace) -> DeviceOptions {
        DeviceOptions { config, place, cache: CacheMode::Durable, slots: SlotShape::default() }
    }
}

/// Zones side by side must not share a cache line: each copy counts itself in its zone's guard.
#[repr(align(64))]
#[derive(Default)]
struct Guard {
    lock: RwLock<()>,
    dirty: AtomicBool,
    /// Bytes of memory that the empty zone still has from before its reset.
    kept_bytes: AtomicU64,
}

/// How much memory of reset zones is kept for their next writes: fresh pages cost more than the copy into them.
const KEPT_BYTES: u64 = 512 << 20;

/// A ZNS device.
pub struct ZnsDevice {
    geometry: Geometry,
    zones: Mutex<Zones>,
    guards: Box<[Guard]>,
    media: Media,
    pub(crate) cache: Cache,
    replays: Replays,
    openings: AtomicU64,
    powered: AtomicBool,
    kept_bytes: AtomicU64,
}

impl ZnsDevice {
    /// A new device in memory, gone with the process.
    ///
    /// # Errors
    /// [`ZnsError::Config`], [`ZnsError::Media`].
    pub fn new(config: &ZnsConfig) -> Result<ZnsDevice, ZnsError> {
        ZnsDevice::create(&DeviceOptions::new(config.clone(), MediaPlace::Anonymous))
    }

    /// A new device, in place of any that is there (but never of one in a directory).
    ///
    /// # Errors
    /// [`ZnsError::Config`], [`ZnsError::Media`].
    pub fn create(options: &DeviceOptions) -> Result<ZnsDevice, ZnsError> {
        let geometry = Geometry::new(&options.config)?;
        let media = Media::create(options.place.clone(), &geometry, options.slots)?;
        Ok(ZnsDevice::with(Zones::new(geometry), media, options.cache))
    }

    /// The device that was left at a place: same data, same zone states. With `recover`, writes that its dead daemon had
    /// in progress may come again, and are known.
    ///
    /// # Errors
    /// [`ZnsError::Config`], [`ZnsError::Media`], [`ZnsError::Format`], [`ZnsError::InUse`].
    pub fn open(options: &DeviceOptions, recover: bool) -> Result<ZnsDevice, ZnsError> {
        let geometry = Geometry::new(&options.config)?;
        let media = Media::open(options.place.clone(), &geometry, options.slots, recover)?;
        let states = (0..geometry.zones()).map(|id| media.left(ZoneId(id))).collect::<Result<Vec<_>, _>>()?;
        let opened = states.iter().map(|(.., opened)| *opened).max().unwrap_or(0);
        let zones = Zones::restore(geometry.clone(), states).map_err(|(zone, why)| ZnsError::Format {
            path: options.place.table_path(),
            offset: media.zone_offset(zone),
            why: format!("zone {}: {why}", zone.0),
        })?;
        media.release_all();
        let mut device = ZnsDevice::with(zones, media, options.cache);
        device.openings = AtomicU64::new(opened + 1);
        if recover {
            device.replays = Replays::inherit(&device.media, &device.geometry);
        }
        // What a killed daemon had not flushed is still not flushed.
        for zone in (0..device.geometry.zones()).map(ZoneId) {
            device.mark_dirty(zone);
        }
        Ok(device)
    }

    fn with(zones: Zones, media: Media, mode: CacheMode) -> ZnsDevice {
        let geometry = zones.geometry().clone();
        let guards = (0..geometry.zones()).map(|_| Guard::default()).collect();
        let cache = Cache::new(mode, media.lasts());
        ZnsDevice {
            geometry,
            zones: Mutex::new(zones),
            guards,
            media,
            cache,
            replays: Replays::default(),
            openings: AtomicU64::new(1),
            powered: AtomicBool::new(true),
            kept_bytes: AtomicU64::new(0),
        }
    }

    /// The device's sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The device's media.
    pub fn media(&self) -> &Media {
        &self.media
    }

    /// The file or directory that holds the media, if it has a name.
    pub fn media_path(&self) -> Option<&Path> {
        match self.media.place() {
            MediaPlace::Anonymous => None,
            MediaPlace::Ram(path) | MediaPlace::Dir(path) => Some(path),
        }
    }

    /// A panic while the lock was held cannot have left the zones half changed: every check precedes every change.
    fn lock(&self) -> MutexGuard<'_, Zones> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a copy that others may run beside: the kernel's, which tears at worst.
    fn share(&self, zone: ZoneId) -> Result<Option<RwLockReadGuard<'_, ()>>, ZnsError> {
        let guard = self.guards.get(zone.0 as usize);
        let held = guard.map(|guard| guard.lock.read().unwrap_or_else(PoisonError::into_inner));
        self.check_power().map(|()| held)
    }

    /// For what must have the zone's media alone.
    pub(crate) fn alone(&self, zone: ZoneId) -> Option<RwLockWriteGuard<'_, ()>> {
        let guard = self.guards.get(zone.0 as usize)?;
        Some(guard.lock.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Under a guard or the lock, so that a power cut, which takes all of them, lets nothing slip through.
    fn check_power(&self) -> Result<(), ZnsError> {
        if self.powered.load(Relaxed) { Ok(()) } else { Err(ZnsError::NoPower) }
    }

    /// Whether the simulated power is on.
    pub fn is_powered(&self) -> bool {
        self.powered.load(Relaxed)
    }

    pub(crate) fn set_powered(&self, on: bool) {
        self.powered.store(on, Relaxed);
    }

    fn zone_of(&self, sector: Sector) -> ZoneId {
        self.geometry.locate(sector).map_or(ZoneId(u32::MAX), |(zone, _)| zone)
    }

    /// Notes that a zone has changed since the last flush.
    pub(crate) fn mark_dirty(&self, zone: ZoneId) {
        if !self.cache.tracks() {
            return;
        }
        if let Some(guard) = self.guards.get(zone.0 as usize)
            && !guard.dirty.load(Relaxed)
            && !guard.dirty.swap(true, Relaxed)
        {
            self.cache.add_dirty(zone);
        }
    }

    /// The zone's changes so far are in what is being flushed.
    pub(crate) fn clear_dirty(&self, zone: ZoneId) {
        if let Some(guard) = self.guards.get(zone.0 as usize) {
            guard.dirty.store(false, Relaxed);
        }
    }

    /// Does one command on `zone` under the lock and publishes what it changed.
    fn command(
        &self,
        zone: ZoneId,
        run: impl FnOnce(&mut Zones) -> Result<Effect, ZoneError>,
    ) -> Result<Effect, ZnsError> {
        self.command_in_slot(zone, None, run)
    }

    fn command_in_slot(
        &self,
        zone: ZoneId,
        slot: Option<(SlotId, bool, u64)>,
        run: impl FnOnce(&mut Zones) -> Result<Effect, ZoneError>,
    ) -> Result<Effect, ZnsError> {
        let mut zones = self.lock();
        self.check_power()?;
        let mut held = self.media.hold(zone);
        if let Some(held) = &held {
            zones.catch_up(zone, held.get().1);
        }
        let effect = run(&mut zones)?;
        if let Some((slot, append, sectors)) = slot {
            self.media.place_write(slot, append, effect.sector.0, sectors);
        }
        // The closed zone first: a successor that sees only the first of two words must find the limits kept.
        if let Some(closed) = effect.closed {
            let mut victim = self.media.hold(closed);
            if let Some(victim) = &mut victim {
                zones.catch_up(closed, victim.get().1);
                self.publish(&zones, closed, victim);
            }
        }
        if let Some(held) = &mut held {
            self.publish(&zones, effect.zone, held);
        }
        Ok(effect)
    }

    fn publish(&self, zones: &Zones, id: ZoneId, held: &mut crate::media::HeldZone<'_>) {
        if let Ok((state, written)) = zones.state(id) {
            if state == ZoneState::ImplicitlyOpen && held.get().0 != state {
                self.media.set_field(id, ZoneField::Opened, self.openings.fetch_add(1, Relaxed));
            }
            if held.get().0 == ZoneState::Empty
                && state != ZoneState::Empty
                && let Some(guard) = self.guards.get(id.0 as usize)
            {
                self.kept_bytes.fetch_sub(guard.kept_bytes.swap(0, Relaxed), Relaxed);
            }
            held.set(state, written);
            self.mark_dirty(id);
        }
    }

    /// Gives an emptied zone's memory back, or keeps it for the zone's next writes: nothing of it can be read, since reads end
    /// at the write pointer. Files are always punched.
    fn deallocate(&self, zone: ZoneId) -> Result<(), ZnsError> {
        // All of the zone: a zone that was written less than before still has the rest of its memory.
        let bytes = self.geometry.capacity_sectors(zone).saturating_mul(SECTOR_BYTES);
        let fits = self.kept_bytes.load(Relaxed).saturating_add(bytes) <= KEPT_BYTES;
        match self.guards.get(zone.0 as usize) {
            Some(guard) if fits && !self.media.lasts() => {
                // One reset at a time: nobody else adds.
                self.kept_bytes.fetch_add(bytes, Relaxed);
                guard.kept_bytes.fetch_add(bytes, Relaxed);
                Ok(())
            }
            _ => self.media.deallocate(zone),
        }
    }

    /// All zones, in order.
    pub fn report(&self) -> Vec<ZoneDescriptor> {
        (0..self.geometry.zones()).filter_map(|id| self.describe(ZoneId(id)).ok()).collect()
    }

    /// One zone as a report shows it. Takes no lock.
    ///
    /// # Errors
    /// [`ZoneError::NoZone`].
    pub fn describe(&self, zone: ZoneId) -> Result<ZoneDescriptor, ZnsError> {
        let zones = self.geometry.zones();
        if zone.0 >= zones {
            return Err(ZoneError::NoZone { zone: zone.0, zones }.into());
        }
        let (state, written) = self.media.load(zone)?;
        Ok(zones::describe(&self.geometry, zone, state, written))
    }

    /// How many zones are open and how many active.
    pub fn resources(&self) -> (u32, u32) {
        let zones = self.lock();
        (zones.open_zones(), zones.active_zones())
    }

    /// What a read of `sectors` at `sector` finds. Takes no lock.
    ///
    /// # Errors
    /// The zone rules.
    pub fn check_read(&self, sector: Sector, sectors: u64) -> Result<Readable, ZnsError> {
        let (zone, offset) = zones::locate(&self.geometry, sector, sectors)?;
        let (state, written) = self.media.load(zone)?;
        Ok(zones::readable(zone, offset, sectors, state, written)?)
    }

    /// Reads `sectors` at `sector` from many threads at once: lets `copy` take what holds data, and says how much that is.
    /// `copy` must be the kernel's (a system call on the memory): a write beside it may change the bytes meanwhile.
    ///
    /// # Errors
    /// The zone rules; [`ZnsError::Transfer`] with what `copy` says; [`ZnsError::NoPower`].
    pub fn read_with(
        &self,
        sector: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<Readable, ZnsError> {
        let _shared = self.share(self.zone_of(sector))?;
        let found = self.check_read(sector, sectors)?;
        if found.written > 0 {
            self.transfer(found.zone, found.offset, found.written, copy)?;
        }
        Ok(found)
    }

    fn transfer(
        &self,
        zone: ZoneId,
        offset: u64,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<(), ZnsError> {
        let failed = |bytes, source| ZnsError::Transfer { zone: zone.0, bytes, source };
        match self.media.data(zone, offset, sectors) {
            Some((at, bytes)) => copy(at, bytes).map_err(|source| failed(bytes, source)),
            None => Err(failed(0, io::Error::from_raw_os_error(libc::EINVAL))),
        }
    }

    /// Writes `sectors` at `sector`: takes the place, then lets `copy` fill it. `copy` must be the kernel's, as in
    /// [`ZnsDevice::read_with`]. With a `slot`, a successor of this process knows the write if it comes again.
    ///
    /// # Errors
    /// The zone rules; [`ZnsError::Transfer`] if `copy` fails: the write pointer has moved then, as a failed write may.
    pub fn write_with(
        &self,
        slot: Option<SlotId>,
        sector: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<(), ZnsError> {
        let _shared = self.share(self.zone_of(sector))?;
        self.write_guarded(slot, sector, sectors, copy)
    }

    fn write_guarded(
        &self,
        slot: Option<SlotId>,
        sector: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<(), ZnsError> {
        let (zone, offset) = zones::locate(&self.geometry, sector, sectors)?;
        self.keep_old_blocks(zone, offset, sectors);
        let placed = self.place_in_open_zone(zone, Some(offset), sectors, slot, false);
        if placed.is_none() && !self.replays.take_write(&self.media, zone, sector, sectors) {
            let slot = slot.map(|slot| (slot, false, sectors));
            self.command_in_slot(zone, slot, |zones| zones.write(sector, sectors))?;
        }
        self.media.add_field(zone, ZoneField::HostSectors, sectors);
        self.transfer(zone, offset, sectors, copy)
    }

    /// The short way of a write: into an open zone. `None` when it takes the whole state machine.
    fn place_in_open_zone(
        &self,
        zone: ZoneId,
        offset: Option<u64>,
        sectors: u64,
        slot: Option<SlotId>,
        append: bool,
    ) -> Option<u64> {
        let mut held = self.media.hold(zone)?;
        let (state, written) = held.get();
        let end = zones::write_in_open_zone(&self.geometry, zone, (state, written), offset, sectors)?;
        let at = offset.unwrap_or(written);
        if let Some(slot) = slot {
            self.media.place_write(slot, append, self.geometry.start(zone).0 + at, sectors);
        }
        held.set(state, end);
        drop(held);
        self.mark_dirty(zone);
        Some(at)
    }

    /// A power cut may take an unflushed overwrite back, so the old blocks are kept until the next flush.
    fn keep_old_blocks(&self, zone: ZoneId, offset: u64, sectors: u64) {
        if self.geometry.is_conventional(zone) {
            self.cache.keep_old_blocks(&self.media, &self.geometry, zone, offset, sectors);
        }
    }

    /// Appends `sectors` to the zone that starts at `start`: takes the place, then lets `copy` fill it. Returns where.
    /// `copy` must be the kernel's, as in [`ZnsDevice::read_with`]; `slot` as in [`ZnsDevice::write_with`].
    ///
    /// # Errors
    /// As [`ZnsDevice::write_with`].
    pub fn append_with(
        &self,
        slot: Option<SlotId>,
        start: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<Sector, ZnsError> {
        let _shared = self.share(self.zone_of(start))?;
        self.append_guarded(slot, start, sectors, copy)
    }

    fn append_guarded(
        &self,
        slot: Option<SlotId>,
        start: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<Sector, ZnsError> {
        let (zone, offset) = zones::locate(&self.geometry, start, sectors)?;
        let at = match self.replays.take_append(&self.media, slot, zone, &self.geometry, sectors) {
            Some(at) => at,
            None => self.place_append(slot, zone, start, offset, sectors)?,
        };
        self.media.add_field(zone, ZoneField::HostSectors, sectors);
        self.transfer(zone, at, sectors, copy)?;
        Ok(Sector(start.0 + at))
    }

    fn place_append(
        &self,
        slot: Option<SlotId>,
        zone: ZoneId,
        start: Sector,
        offset: u64,
        sectors: u64,
    ) -> Result<u64, ZnsError> {
        if offset == 0
            && sectors <= self.geometry.max_append_sectors()
            && let Some(at) = self.place_in_open_zone(zone, None, sectors, slot, true)
        {
            return Ok(at);
        }
        let slot = slot.map(|slot| (slot, true, sectors));
        let effect = self.command_in_slot(zone, slot, |zones| zones.append(start, sectors))?;
        Ok(effect.sector.0 - start.0)
    }

    /// Reads `buffer.len()` bytes at `sector`, within one zone; what was never written is zeroes.
    ///
    /// # Errors
    /// The zone rules.
    pub fn read(&self, sector: Sector, buffer: &mut [u8]) -> Result<(), ZnsError> {
        let mut data = 0;
        self.read_with(sector, sectors_of(buffer.len()), |from, bytes| {
            data = bytes;
            // SAFETY: `from` is valid for `bytes`, which is at most the buffer's length; they do not overlap; writers in this
            // process (`write`, `append`) have the zone alone.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), buffer.as_mut_ptr(), bytes) };
            Ok(())
        })?;
        if let Some(rest) = buffer.get_mut(data..) {
            rest.fill(0);
        }
        Ok(())
    }

    /// Writes `data` at `sector`, which must be its zone's write pointer.
    ///
    /// # Errors
    /// The zone rules.
    pub fn write(&self, sector: Sector, data: &[u8]) -> Result<(), ZnsError> {
        let zone = self.zone_of(sector);
        {
            let _alone = self.alone(zone);
            self.check_power()?;
            self.write_guarded(None, sector, sectors_of(data.len()), |to, bytes| copy_in(data, to, bytes))?;
        }
        self.written_through()
    }

    /// Appends `data` to `zone` and returns where it went.
    ///
    /// # Errors
    /// The zone rules.
    pub fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Sector, ZnsError> {
        let start = self.geometry.start(zone);
        let at = {
            let _alone = self.alone(zone);
            self.check_power()?;
            self.append_guarded(None, start, sectors_of(data.len()), |to, bytes| copy_in(data, to, bytes))?
        };
        self.written_through()?;
        Ok(at)
    }

    /// Opens a zone explicitly.
    ///
    /// # Errors
    /// The zone rules.
    pub fn open_zone(&self, zone: ZoneId) -> Result<(), ZnsError> {
        self.command(zone, |zones| zones.open(zone))?;
        self.written_through()
    }

    /// Closes a zone.
    ///
    /// # Errors
    /// The zone rules.
    pub fn close_zone(&self, zone: ZoneId) -> Result<(), ZnsError> {
        self.command(zone, |zones| zones.close(zone))?;
        self.written_through()
    }

    /// Makes a zone full, durably.
    ///
    /// # Errors
    /// The zone rules; [`ZnsError::Media`].
    pub fn finish_zone(&self, zone: ZoneId) -> Result<(), ZnsError> {
        let settling = self.cache.settling();
        self.command(zone, |zones| zones.finish(zone))?;
        self.settle(&settling, [zone])
    }

    /// Empties a zone, durably.
    ///
    /// # Errors
    /// The zone rules; [`ZnsError::Media`].
    pub fn reset_zone(&self, zone: ZoneId) -> Result<(), ZnsError> {
        let settling = self.cache.settling();
        let _alone = self.alone(zone);
        let (before, written) = self.media.load(zone).unwrap_or((ZoneState::Empty, 0));
        self.command(zone, |zones| zones.reset(zone))?;
        self.replays.forget_zone(&self.media, zone);
        if before != ZoneState::Empty || written != 0 {
            self.media.add_field(zone, ZoneField::Cycles, 1);
            self.media.set_field(zone, ZoneField::Reads, 0);
            self.media.set_field(zone, ZoneField::ProgrammedAt, 0);
        }
        // Before the data goes: a journal that still spoke of it would promise what is no longer there.
        self.settle_alone(&settling, zone)?;
        // After the word: should the process die here, what is not yet deallocated is already unreadable.
        self.deallocate(zone)
    }

    /// Empties every zone that can be.
    ///
    /// # Errors
    /// [`ZnsError::Media`].
    pub fn reset_all(&self) -> Result<(), ZnsError> {
        for id in (0..self.geometry.zones()).map(ZoneId) {
            if self.is_reset_by_all(id) {
                self.reset_zone(id)?;
            }
        }
        Ok(())
    }

    /// Whether [`ZnsDevice::reset_all`] empties `zone`.
    pub fn is_reset_by_all(&self, zone: ZoneId) -> bool {
        self.lock().is_reset_by_all(zone)
    }

    /// Makes a zone read-only, as worn media does.
    ///
    /// # Errors
    /// The zone rules.
    pub fn wear_out(&self, zone: ZoneId) -> Result<(), ZnsError> {
        let settling = self.cache.settling();
        self.command(zone, |zones| zones.wear_out(zone))?;
        self.settle(&settling, [zone])
    }

    /// Takes a zone offline, as failed media does.
    ///
    /// # Errors
    /// The zone rules.
    pub fn fail(&self, zone: ZoneId) -> Result<(), ZnsError> {
        let settling = self.cache.settling();
        self.command(zone, |zones| zones.fail(zone))?;
        self.settle(&settling, [zone])
    }

    /// A completed command lasts from here on, where the device promises that. Not only its zone: a zone that was closed to
    /// make room has changed too.
    ///
    /// # Errors
    /// [`ZnsError::Media`].
    pub fn written_through(&self) -> Result<(), ZnsError> {
        if self.cache.writes_through() { self.flush() } else { Ok(()) }
    }

    /// The tag's completion goes to the kernel now. Tells whether a write placed something under it, and whether that was an
    /// append.
    pub fn committing(&self, slot: SlotId) -> Option<bool> {
        self.media.committing(slot)
    }

    /// The kernel has the tag's completion: its write will not come again.
    pub fn committed(&self, slot: SlotId) {
        self.media.clear_slot(slot);
    }

    /// The zones as the state machine has them, for who replaces them (a power cut). Everything else must be kept out.
    pub(crate) fn replace_zones(&self, states: Vec<(ZoneState, u64)>) -> Result<(), ZnsError> {
        let mut zones = self.lock();
        let left = states.iter().map(|(state, written)| (*state, *written, 0));
        let fresh = Zones::restore(self.geometry.clone(), left).map_err(|(zone, why)| ZnsError::Format {
            path: self.media.place().table_path(),
            offset: 0,
            why: format!("zone {}: {why}", zone.0),
        })?;
        for (id, (state, written)) in (0..).map(ZoneId).zip(states) {
            if let Some(mut held) = self.media.hold(id) {
                held.set(state, written);
            }
        }
        *zones = fresh;
        Ok(())
    }
}

/// A length that is no whole number of sectors becomes one that the zone rules refuse.
fn sectors_of(bytes: usize) -> u64 {
    if (bytes as u64).is_multiple_of(SECTOR_BYTES) { bytes as u64 / SECTOR_BYTES } else { 0 }
}

fn copy_in(data: &[u8], to: NonNull<u8>, bytes: usize) -> io::Result<()> {
    let data = data.get(..bytes).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `to` is valid for `bytes`, as is `data`; they do not overlap, and the caller has the zone alone.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.as_ptr(), bytes) };
    Ok(())
}

#[cfg(test)]
mod tests;
