//! The ZNS SSD of `ublk-zns` in process: no kernel, no root.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use ublk_zns::geometry::SECTOR_BYTES;
use ublk_zns::zones::ZoneDescriptor;
use ublk_zns::{Sector, ZnsDevice, ZnsError, ZoneState};

use super::{Geometry, Zone, ZoneCond, ZoneId, ZoneType, ZonedDevice};
use crate::{Error, Result};

/// A [`ZnsDevice`] as a [`ZonedDevice`].
pub struct ModelZoned {
    device: Arc<ZnsDevice>,
    name: String,
    geometry: Geometry,
    /// Held while an append that is longer than the device's own appends looks for its place.
    appending: Mutex<()>,
}

impl ModelZoned {
    /// Wraps a device under a name for error messages.
    pub fn new(device: Arc<ZnsDevice>, name: impl Into<String>) -> ModelZoned {
        let model = device.geometry();
        let geometry = Geometry {
            block_size_bytes: model.block_bytes(),
            zone_size_bytes: model.zone_sectors() * SECTOR_BYTES,
            zone_capacity_bytes: model.sequential_capacity_sectors() * SECTOR_BYTES,
            nr_zones: model.zones(),
            max_open_zones: model.max_open(),
            max_active_zones: model.max_active(),
        };
        ModelZoned { device, name: name.into(), geometry, appending: Mutex::new(()) }
    }

    fn check(&self, what: &'static str, offset_bytes: u64, length_bytes: u64) -> Result<Sector> {
        if !self.geometry.range_is_valid(offset_bytes, length_bytes) {
            return Err(Error::BadRange { device: self.name.clone(), what, offset_bytes, length_bytes });
        }
        Ok(Sector(offset_bytes / SECTOR_BYTES))
    }

    fn io(&self, what: &'static str, offset_bytes: u64) -> impl FnOnce(ZnsError) -> Error + '_ {
        move |source| Error::Io {
            device: self.name.clone(),
            what,
            offset_bytes,
            source: io::Error::other(source),
        }
    }

    fn manage(
        &self,
        zone: ZoneId,
        what: &'static str,
        run: fn(&ZnsDevice, ublk_zns::ZoneId) -> Result<(), ZnsError>,
    ) -> Result<()> {
        run(&self.device, ublk_zns::ZoneId(zone.0)).map_err(self.io(what, self.geometry.zone_start(zone)))
    }
}

fn convert(zone: &ZoneDescriptor) -> Zone {
    let conventional = zone.kind == ublk_zns::ZoneType::Conventional;
    let cond = match zone.state {
        _ if conventional => ZoneCond::NotWp,
        ZoneState::Empty => ZoneCond::Empty,
        ZoneState::ImplicitlyOpen => ZoneCond::ImplicitOpen,
        ZoneState::ExplicitlyOpen => ZoneCond::ExplicitOpen,
        ZoneState::Closed => ZoneCond::Closed,
        ZoneState::Full => ZoneCond::Full,
        ZoneState::ReadOnly => ZoneCond::ReadOnly,
        ZoneState::Offline => ZoneCond::Offline,
    };
    let capacity_bytes = zone.capacity_sectors * SECTOR_BYTES;
    let written_bytes = match cond {
        ZoneCond::NotWp | ZoneCond::Empty | ZoneCond::ReadOnly | ZoneCond::Offline => 0,
        ZoneCond::Full => capacity_bytes,
        _ => zone.write_pointer.0.saturating_sub(zone.start.0) * SECTOR_BYTES,
    };
    Zone {
        id: ZoneId(zone.zone.0),
        kind: if conventional { ZoneType::Conventional } else { ZoneType::Sequential },
        cond,
        capacity_bytes,
        written_bytes,
    }
}

impl ZonedDevice for ModelZoned {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn report(&self) -> Result<Vec<Zone>> {
        Ok(self.device.report().iter().map(convert).collect())
    }

    fn report_zone(&self, zone: ZoneId) -> Result<Zone> {
        let found = self.device.describe(ublk_zns::ZoneId(zone.0));
        found.map(|z| convert(&z)).map_err(self.io("zone report", self.geometry.zone_start(zone)))
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let sector = self.check("read", offset_bytes, buf.len() as u64)?;
        self.device.read(sector, buf).map_err(self.io("read", offset_bytes))
    }

    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<()> {
        let sector = self.check("write", offset_bytes, data.len() as u64)?;
        self.device.write(sector, data).map_err(self.io("write", offset_bytes))
    }

    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<u64> {
        let start = self.geometry.zone_start(zone);
        self.check("append", start, data.len() as u64)?;
        if data.len() as u64 <= self.device.geometry().max_append_sectors() * SECTOR_BYTES {
            let placed = self.device.append(ublk_zns::ZoneId(zone.0), data);
            return placed.map(|sector| sector.0 * SECTOR_BYTES).map_err(self.io("append", start));
        }
        let _place = self.appending.lock().unwrap_or_else(PoisonError::into_inner);
        let at = start + self.report_zone(zone)?.written_bytes;
        self.write(at, data)?;
        Ok(at)
    }

    fn reset(&self, zone: ZoneId) -> Result<()> {
        self.manage(zone, "reset", ZnsDevice::reset_zone)
    }

    fn finish(&self, zone: ZoneId) -> Result<()> {
        self.manage(zone, "finish", ZnsDevice::finish_zone)
    }

    fn open(&self, zone: ZoneId) -> Result<()> {
        self.manage(zone, "open", ZnsDevice::open_zone)
    }

    fn close(&self, zone: ZoneId) -> Result<()> {
        self.manage(zone, "close", ZnsDevice::close_zone)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush().map_err(self.io("flush", 0))
    }
}
