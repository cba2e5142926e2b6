//! The device as a library: the zone rules and the media together, safe to use from many threads.
//!
//! State changes take one lock for a few instructions. Data is copied outside it, under its zone's guard: copies share the
//! guard, so that they run side by side; a reset takes it alone, so that no copy and no new write meets the media while it
//! is being emptied. Reads look at the zone's published word ([`crate::store`]) and never take the lock.
//!
//! The invariant: a zone's word is published before the command that changed it returns, and a write's data is in the
//! media when the write returns; data is only ever read below a zone's published write pointer.

use crate::{
    error::ZnsError,
    geometry::{Geometry, SECTOR_BYTES, Sector, ZnsConfig, ZoneId},
    store::Store,
    zones::{self, Effect, Readable, ZoneDescriptor, ZoneError, Zones},
};
use std::{
    io,
    path::Path,
    ptr::NonNull,
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// A ZNS device.
pub struct ZnsDevice {
    geometry: Geometry,
    zones: Mutex<Zones>,
    guards: Box<[RwLock<()>]>,
    store: Store,
}

impl ZnsDevice {
    /// A new device in memory, gone with the process.
    ///
    /// # Errors
    /// [`ZnsError::Config`], [`ZnsError::Media`].
    pub fn new(config: &ZnsConfig) -> Result<ZnsDevice, ZnsError> {
        let geometry = Geometry::new(config)?;
        let store = Store::anonymous(&geometry)?;
        Ok(ZnsDevice::with(Zones::new(geometry), store))
    }

    /// A new device whose media is the file `path`, in place of any that is there.
    ///
    /// # Errors
    /// [`ZnsError::Config`], [`ZnsError::Media`].
    pub fn create(config: &ZnsConfig, path: &Path) -> Result<ZnsDevice, ZnsError> {
        let geometry = Geometry::new(config)?;
        let store = Store::create(path, &geometry)?;
        Ok(ZnsDevice::with(Zones::new(geometry), store))
    }

    /// The device that was left in the file `path`: same data, same zone states, the order in which zones were opened
    /// excepted.
    ///
    /// # Errors
    /// [`ZnsError::Config`], [`ZnsError::Media`], [`ZnsError::Format`].
    pub fn open(config: &ZnsConfig, path: &Path) -> Result<ZnsDevice, ZnsError> {
        let geometry = Geometry::new(config)?;
        let store = Store::open(path, &geometry)?;
        let states = (0..geometry.zones()).map(|id| store.load(ZoneId(id))).collect::<Result<Vec<_>, _>>()?;
        let zones = Zones::restore(geometry.clone(), states).map_err(|(zone, why)| ZnsError::Format {
            path: path.to_owned(),
            offset: 4096 + u64::from(zone.0) * 8,
            why: format!("zone {}: {why}", zone.0),
        })?;
        Ok(ZnsDevice::with(zones, store))
    }

    fn with(zones: Zones, store: Store) -> ZnsDevice {
        let geometry = zones.geometry().clone();
        let guards = (0..geometry.zones()).map(|_| RwLock::new(())).collect();
        ZnsDevice { geometry, zones: Mutex::new(zones), guards, store }
    }

    /// The device's sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The file that holds the media, if it has a name.
    pub fn media_file(&self) -> Option<&Path> {
        Some(self.store.path()).filter(|path| path.is_absolute())
    }

    /// A panic while the lock was held cannot have left the zones half changed: every check precedes every change.
    fn lock(&self) -> MutexGuard<'_, Zones> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a copy that others may run beside: the kernel's, which tears at worst.
    fn share(&self, zone: ZoneId) -> Option<RwLockReadGuard<'_, ()>> {
        let guard = self.guards.get(zone.0 as usize)?;
        Some(guard.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// For what must have the zone's media alone.
    fn alone(&self, zone: ZoneId) -> Option<RwLockWriteGuard<'_, ()>> {
        let guard = self.guards.get(zone.0 as usize)?;
        Some(guard.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn zone_of(&self, sector: Sector) -> ZoneId {
        self.geometry.locate(sector).map_or(ZoneId(u32::MAX), |(zone, _)| zone)
    }

    fn publish(&self, zones: &Zones, id: ZoneId) {
        if let Ok((state, written)) = zones.state(id) {
            self.store.publish(id, state, written);
        }
    }

    /// Does one command under the lock and publishes what it changed.
    fn command(&self, run: impl FnOnce(&mut Zones) -> Result<Effect, ZoneError>) -> Result<Effect, ZnsError> {
        let mut zones = self.lock();
        let effect = run(&mut zones)?;
        // The closed zone first: a successor that sees only the first of two words must find the limits kept.
        if let Some(closed) = effect.closed {
            self.publish(&zones, closed);
        }
        self.publish(&zones, effect.zone);
        Ok(effect)
    }

    /// All zones, in order.
    pub fn report(&self) -> Vec<ZoneDescriptor> {
        (0..self.geometry.zones()).filter_map(|id| self.describe(ZoneId(id)).ok()).collect()
    }

    /// One zone as a report shows it.
    ///
    /// # Errors
    /// [`ZoneError::NoZone`].
    pub fn describe(&self, zone: ZoneId) -> Result<ZoneDescriptor, ZnsError> {
        Ok(self.lock().describe(zone)?)
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
        let (state, written) = self.store.load(zone)?;
        Ok(zones::readable(&self.geometry, zone, offset, sectors, state, written)?)
    }

    /// Reads `sectors` at `sector` from many threads at once: lets `copy` take what holds data, and says how much that is.
    /// `copy` must be the kernel's (a system call on the memory): a write beside it may change the bytes meanwhile.
    ///
    /// # Errors
    /// The zone rules; [`ZnsError::Transfer`] with what `copy` says.
    pub fn read_with(
        &self,
        sector: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<Readable, ZnsError> {
        let _shared = self.share(self.zone_of(sector));
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
        match self.store.data(zone, offset, sectors) {
            Some((at, bytes)) => copy(at, bytes).map_err(|source| failed(bytes, source)),
            None => Err(failed(0, io::Error::from_raw_os_error(libc::EINVAL))),
        }
    }

    /// Writes `sectors` at `sector`: takes the place, then lets `copy` fill it. `copy` must be the kernel's, as in
    /// [`ZnsDevice::read_with`].
    ///
    /// # Errors
    /// The zone rules; [`ZnsError::Transfer`] if `copy` fails: the write pointer has moved then, as a failed write may.
    pub fn write_with(
        &self,
        sector: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<(), ZnsError> {
        let _shared = self.share(self.zone_of(sector));
        self.write_guarded(sector, sectors, copy)
    }

    fn write_guarded(
        &self,
        sector: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<(), ZnsError> {
        let effect = self.command(|zones| zones.write(sector, sectors))?;
        let offset = sector.0 - self.geometry.start(effect.zone).0;
        self.transfer(effect.zone, offset, sectors, copy)
    }

    /// Appends `sectors` to the zone that starts at `start`: takes the place, then lets `copy` fill it. Returns where.
    /// `copy` must be the kernel's, as in [`ZnsDevice::read_with`].
    ///
    /// # Errors
    /// As [`ZnsDevice::write_with`].
    pub fn append_with(
        &self,
        start: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<Sector, ZnsError> {
        let _shared = self.share(self.zone_of(start));
        self.append_guarded(start, sectors, copy)
    }

    fn append_guarded(
        &self,
        start: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Result<Sector, ZnsError> {
        let effect = self.command(|zones| zones.append(start, sectors))?;
        let offset = effect.sector.0 - start.0;
        self.transfer(effect.zone, offset, sectors, copy)?;
        Ok(effect.sector)
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
        let _alone = self.alone(self.zone_of(sector));
        self.write_guarded(sector, sectors_of(data.len()), |to, bytes| copy_in(data, to, bytes))
    }

    /// Appends `data` to `zone` and returns where it went.
    ///
    /// # Errors
    /// The zone rules.
    pub fn append(&self, zone: ZoneId, data: &[u8]) -> Result<Sector, ZnsError> {
        let start = self.geometry.start(zone);
        let _alone = self.alone(zone);
        self.append_guarded(start, sectors_of(data.len()), |to, bytes| copy_in(data, to, bytes))
    }

    /// Opens a zone explicitly.
    ///
    /// # Errors
    /// The zone rules.
    pub fn open_zone(&self, zone: ZoneId) -> Result<(), ZnsError> {
        self.command(|zones| zones.open(zone)).map(drop)
    }

    /// Closes a zone.
    ///
    /// # Errors
    /// The zone rules.
    pub fn close_zone(&self, zone: ZoneId) -> Result<(), ZnsError> {
        self.command(|zones| zones.close(zone)).map(drop)
    }

    /// Makes a zone full.
    ///
    /// # Errors
    /// The zone rules.
    pub fn finish_zone(&self, zone: ZoneId) -> Result<(), ZnsError> {
        self.command(|zones| zones.finish(zone)).map(drop)
    }

    /// Empties a zone and gives its memory back.
    ///
    /// # Errors
    /// The zone rules; [`ZnsError::Media`].
    pub fn reset_zone(&self, zone: ZoneId) -> Result<(), ZnsError> {
        let _alone = self.alone(zone);
        self.command(|zones| zones.reset(zone))?;
        // After the word: should the process die here, what is not yet deallocated is already unreadable.
        self.store.deallocate(zone)
    }

    /// Empties every zone that can be.
    ///
    /// # Errors
    /// [`ZnsError::Media`].
    pub fn reset_all(&self) -> Result<(), ZnsError> {
        for id in (0..self.geometry.zones()).map(ZoneId) {
            let due = self.lock().is_reset_by_all(id);
            if due {
                self.reset_zone(id)?;
            }
        }
        Ok(())
    }

    /// Makes a zone read-only, as worn media does.
    ///
    /// # Errors
    /// The zone rules.
    pub fn wear_out(&self, zone: ZoneId) -> Result<(), ZnsError> {
        self.command(|zones| zones.wear_out(zone)).map(drop)
    }

    /// Takes a zone offline, as failed media does.
    ///
    /// # Errors
    /// The zone rules.
    pub fn fail(&self, zone: ZoneId) -> Result<(), ZnsError> {
        self.command(|zones| zones.fail(zone)).map(drop)
    }

    /// Makes everything written so far last. Media in memory has nothing to do.
    ///
    /// # Errors
    /// None today; a media that can lose data will have some.
    pub fn flush(&self) -> Result<(), ZnsError> {
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
mod tests {
    use super::*;
    use crate::zones::ZoneState;

    fn config() -> ZnsConfig {
        ZnsConfig {
            size_bytes: 4 << 20,
            zone_size_bytes: 1 << 20,
            zone_capacity_bytes: Some(768 << 10),
            max_open_zones: Some(2),
            max_active_zones: Some(3),
            ..Default::default()
        }
    }

    #[test]
    fn what_was_written_is_read_and_the_rest_is_zeroes() {
        let device = ZnsDevice::new(&config()).unwrap();
        device.write(Sector(0), &[1; 4096]).unwrap();
        assert_eq!(device.append(ZoneId(0), &[2; 8192]).unwrap(), Sector(8));
        let mut back = vec![9; 16384];
        device.read(Sector(0), &mut back).unwrap();
        assert_eq!(back[..4096], [1; 4096]);
        assert_eq!(back[4096..12288], [2; 8192]);
        assert_eq!(back[12288..], [0; 4096]);
    }

    #[test]
    fn a_reset_zone_reads_as_zeroes_and_can_be_written_again() {
        let device = ZnsDevice::new(&config()).unwrap();
        device.write(Sector(2048), &[7; 4096]).unwrap();
        device.reset_zone(ZoneId(1)).unwrap();
        let mut back = [9; 4096];
        device.read(Sector(2048), &mut back).unwrap();
        assert_eq!(back, [0; 4096]);
        device.write(Sector(2048), &[8; 4096]).unwrap();
        device.finish_zone(ZoneId(1)).unwrap();
        device.read(Sector(2048), &mut back).unwrap();
        assert_eq!(back, [8; 4096]);
        device.read(Sector(2056), &mut back).unwrap();
        assert_eq!(back, [0; 4096]);
    }

    #[test]
    fn odd_lengths_are_refused() {
        let device = ZnsDevice::new(&config()).unwrap();
        assert!(device.write(Sector(0), &[1; 100]).is_err());
        assert!(device.write(Sector(0), &[]).is_err());
        assert!(device.read(Sector(0), &mut [0; 513]).is_err());
        assert_eq!(device.describe(ZoneId(0)).unwrap().state, ZoneState::Empty);
    }

    #[test]
    fn a_device_comes_back_from_its_file_with_states_limits_and_data() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("media");
        let device = ZnsDevice::create(&config(), &path).unwrap();
        device.open_zone(ZoneId(0)).unwrap();
        device.write(Sector(2048), &[5; 4096]).unwrap();
        device.write(Sector(4096), &[6; 4096]).unwrap();
        device.fail(ZoneId(3)).unwrap();
        let before = device.report();
        drop(device);
        let device = ZnsDevice::open(&config(), &path).unwrap();
        assert_eq!(device.report(), before);
        assert_eq!(device.resources(), (2, 3));
        let mut back = [0; 4096];
        device.read(Sector(2048), &mut back).unwrap();
        assert_eq!(back, [5; 4096]);
        assert!(device.read(Sector(6144), &mut back).is_err());
    }

    #[test]
    fn writes_that_race_a_reset_are_whole_or_gone() {
        let device = ZnsDevice::new(&config()).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..2000 {
                    // A write that is done is in the media until the next reset; one that lost its place is refused.
                    let _ = device.write(Sector(0), &[7; 4096]);
                }
            });
            while !writer.is_finished() {
                device.reset_zone(ZoneId(0)).unwrap();
                let mut back = [1; 4096];
                device.read(Sector(0), &mut back).unwrap();
                assert!(back == [0; 4096] || back == [7; 4096]);
            }
        });
        let written = device.describe(ZoneId(0)).unwrap().write_pointer.0;
        let mut back = [1; 4096];
        device.read(Sector(0), &mut back).unwrap();
        assert_eq!(back, if written == 0 { [0; 4096] } else { [7; 4096] });
    }

    #[test]
    fn parallel_appends_to_one_zone_each_get_their_own_place() {
        let device = ZnsDevice::new(&config()).unwrap();
        let mut places: Vec<u64> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4u8)
                .map(|who| {
                    let device = &device;
                    scope.spawn(move || -> Vec<u64> {
                        (0..48).map(|_| device.append(ZoneId(2), &[who; 4096]).unwrap().0).collect()
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        places.sort_unstable();
        assert_eq!(places, (0..192).map(|n| 4096 + n * 8).collect::<Vec<_>>());
        assert_eq!(device.describe(ZoneId(2)).unwrap().state, ZoneState::Full);
    }
}
