//! A strict zoned device in memory, with power cuts and injected errors.
//!
//! Everything since the last flush is kept as a list of operations per zone. A power cut keeps a prefix of
//! each list, chosen by a seed, and may tear the last write of it at a block boundary: that is all a device
//! without power-loss protection promises. A broken zone rule is answered with an error *and* remembered in
//! [`MemZoned::violations`], so that a test can ask that nobody ever broke one.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::device::{Geometry, Zone, ZoneCond, ZoneId, ZoneType, ZonedDevice};
use crate::{Error, Result};

/// A small seeded generator (xorshift64*), so that a failing case can be run again.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator for a seed; any seed will do.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, or 0 when that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { ((self.next_u64() >> 11) % bound as u64) as usize }
    }
}

/// The shape of a [`MemZoned`].
#[derive(Clone, Copy, Debug)]
pub struct MemGeometry {
    /// The logical block.
    pub block_size_bytes: u32,
    /// Zone size.
    pub zone_size_bytes: u64,
    /// Zone capacity.
    pub zone_capacity_bytes: u64,
    /// Conventional zones at the start.
    pub conventional: u32,
    /// Sequential zones after them.
    pub sequential: u32,
    /// 0 is no limit.
    pub max_open_zones: u32,
    /// 0 is no limit.
    pub max_active_zones: u32,
}

impl Default for MemGeometry {
    fn default() -> Self {
        MemGeometry {
            block_size_bytes: 512,
            zone_size_bytes: 256 << 10,
            zone_capacity_bytes: 192 << 10,
            conventional: 0,
            sequential: 12,
            max_open_zones: 4,
            max_active_zones: 4,
        }
    }
}

/// An operation that shall fail with EIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    /// Every write to this zone.
    Write(ZoneId),
    /// Every read from this zone.
    Read(ZoneId),
    /// Every reset of this zone.
    Reset(ZoneId),
    /// Every flush.
    Flush,
}

#[derive(Clone, Debug)]
struct Image {
    data: Vec<u8>,
    cond: ZoneCond,
}

#[derive(Clone, Debug)]
enum Op {
    Write(Vec<u8>),
    Reset,
    Finish,
}

#[derive(Clone, Debug)]
struct MemZone {
    kind: ZoneType,
    current: Image,
    durable: Image,
    unflushed: Vec<Op>,
}

#[derive(Debug)]
struct Inner {
    zones: Vec<MemZone>,
    operations: u64,
    cut_at: Option<u64>,
    powered: bool,
    failing: Vec<Fail>,
    violations: Vec<String>,
}

/// A strict zoned device in memory. See the module.
#[derive(Debug)]
pub struct MemZoned {
    geometry: Geometry,
    inner: Mutex<Inner>,
}

impl MemZoned {
    /// An empty device.
    pub fn new(shape: MemGeometry) -> MemZoned {
        let zone = |index: u32| {
            let conventional = index < shape.conventional;
            let image = if conventional {
                Image { data: vec![0; shape.zone_size_bytes as usize], cond: ZoneCond::NotWp }
            } else {
                Image { data: Vec::new(), cond: ZoneCond::Empty }
            };
            let kind = if conventional { ZoneType::Conventional } else { ZoneType::Sequential };
            MemZone { kind, current: image.clone(), durable: image, unflushed: Vec::new() }
        };
        let nr_zones = shape.conventional + shape.sequential;
        MemZoned {
            geometry: Geometry {
                block_size_bytes: shape.block_size_bytes,
                zone_size_bytes: shape.zone_size_bytes,
                zone_capacity_bytes: shape.zone_capacity_bytes,
                nr_zones,
                max_open_zones: shape.max_open_zones,
                max_active_zones: shape.max_active_zones,
            },
            inner: Mutex::new(Inner {
                zones: (0..nr_zones).map(zone).collect(),
                operations: 0,
                cut_at: None,
                powered: true,
                failing: Vec::new(),
                violations: Vec::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many writes, resets, finishes and flushes there were.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Cuts the power during operation number `operation` (counted from 0).
    pub fn cut_power_at(&self, operation: u64) {
        self.lock().cut_at = Some(operation);
    }

    /// Cuts the power now, and puts it back: of what was not flushed, a prefix per zone is left, chosen by `rng`.
    pub fn power_cycle(&self, rng: &mut Rng) {
        let block = self.geometry.block_size_bytes as usize;
        let mut inner = self.lock();
        for zone in &mut inner.zones {
            let ops = std::mem::take(&mut zone.unflushed);
            let keep = rng.below(ops.len() + 1);
            let mut image = zone.durable.clone();
            for (index, op) in ops.into_iter().enumerate().take(keep) {
                match op {
                    Op::Write(data) if index + 1 == keep && rng.below(2) == 0 => {
                        let torn = rng.below(data.len() / block) * block;
                        apply(
                            &mut image,
                            &Op::Write(data[..torn].to_vec()),
                            self.geometry.zone_capacity_bytes,
                        );
                    }
                    op => apply(&mut image, &op, self.geometry.zone_capacity_bytes),
                }
            }
            if image.cond.is_active() {
                image.cond = if image.data.is_empty() { ZoneCond::Empty } else { ZoneCond::Closed };
            }
            zone.durable = image.clone();
            zone.current = image;
        }
        inner.powered = true;
        inner.cut_at = None;
    }

    /// Lets the device answer again after a cut with all it was given, flushed or not: what is left when the
    /// program was killed, not the power cut.
    pub fn keep_power(&self) {
        let mut inner = self.lock();
        inner.powered = true;
        inner.cut_at = None;
    }

    /// Sets the operations that fail from now on.
    pub fn fail(&self, failing: &[Fail]) {
        self.lock().failing = failing.to_vec();
    }

    /// Turns a zone read-only or offline (or whatever is asked).
    pub fn set_condition(&self, zone: ZoneId, cond: ZoneCond) {
        if let Some(zone) = self.lock().zones.get_mut(zone.0 as usize) {
            zone.current.cond = cond;
            zone.durable.cond = cond;
        }
    }

    /// Changes bytes on the medium behind everybody's back.
    pub fn scribble(&self, offset_bytes: u64, bytes: &[u8]) {
        let zone = self.geometry.zone_of(offset_bytes);
        let at = (offset_bytes - self.geometry.zone_start(zone)) as usize;
        let mut inner = self.lock();
        let Some(zone) = inner.zones.get_mut(zone.0 as usize) else { return };
        for image in [&mut zone.current, &mut zone.durable] {
            if let Some(place) = image.data.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
    }

    /// Cuts a zone's content off behind `written_bytes`, as a power cut would.
    pub fn truncate_zone(&self, zone: ZoneId, written_bytes: u64) {
        if let Some(zone) = self.lock().zones.get_mut(zone.0 as usize) {
            zone.current.data.truncate(written_bytes as usize);
            zone.current.cond = if written_bytes == 0 { ZoneCond::Empty } else { ZoneCond::Closed };
            zone.durable = zone.current.clone();
            zone.unflushed.clear();
        }
    }

    /// A copy of the device as it is now, with nothing unflushed and nothing failing.
    pub fn fork(&self) -> MemZoned {
        let inner = self.lock();
        let mut zones = inner.zones.clone();
        for zone in &mut zones {
            zone.durable = zone.current.clone();
            zone.unflushed.clear();
        }
        MemZoned {
            geometry: self.geometry,
            inner: Mutex::new(Inner {
                zones,
                operations: 0,
                cut_at: None,
                powered: true,
                failing: Vec::new(),
                violations: Vec::new(),
            }),
        }
    }

    /// The zone rules that were broken so far.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    fn io_error(&self, what: &'static str, offset_bytes: u64, why: &'static str) -> Error {
        Error::Io { device: self.name().into(), what, offset_bytes, source: io::Error::other(why) }
    }

    /// Counts an operation; fails when there is no power.
    fn count(&self, inner: &mut Inner, what: &'static str, offset_bytes: u64) -> Result<bool> {
        if !inner.powered {
            return Err(self.io_error(what, offset_bytes, "no power"));
        }
        let cut = inner.cut_at == Some(inner.operations);
        inner.operations += 1;
        Ok(cut)
    }

    fn broken(&self, inner: &mut Inner, error: Error) -> Error {
        inner.violations.push(error.to_string());
        error
    }

    /// The sequential zone an operation is for, or the error for another one.
    fn sequential(&self, inner: &Inner, zone: ZoneId, what: &'static str) -> Result<ZoneCond> {
        let device = || self.name().to_owned();
        let found = inner.zones.get(zone.0 as usize).ok_or_else(|| Error::NoSuchZone {
            device: device(),
            zone,
            what: "past the end of the device",
        })?;
        match found.current.cond {
            cond @ (ZoneCond::NotWp | ZoneCond::ReadOnly | ZoneCond::Offline) => {
                Err(Error::ZoneState { device: device(), zone, what, cond })
            }
            cond => Ok(cond),
        }
    }

    /// Takes the open and active resources a zone needs to become open.
    fn open_resources(&self, inner: &mut Inner, zone: ZoneId, cond: ZoneCond) -> Result<()> {
        let geometry = self.geometry;
        let count = |inner: &Inner, f: fn(ZoneCond) -> bool| {
            inner.zones.iter().filter(|z| f(z.current.cond)).count() as u32
        };
        let too_many = |what, limit| Error::TooManyZones { device: self.name().into(), zone, what, limit };
        let (limit, active) = (geometry.max_active_zones, count(inner, ZoneCond::is_active));
        if !cond.is_active() && limit != 0 && active >= limit {
            return Err(too_many("active", limit));
        }
        let (limit, open) = (geometry.max_open_zones, count(inner, ZoneCond::is_open));
        if !cond.is_open() && limit != 0 && open >= limit {
            let victim = inner.zones.iter_mut().find(|z| z.current.cond == ZoneCond::ImplicitOpen);
            victim.ok_or_else(|| too_many("open", limit))?.current.cond = ZoneCond::Closed;
        }
        Ok(())
    }

    fn write_sequential(&self, inner: &mut Inner, zone: ZoneId, at: Option<u64>, data: &[u8]) -> Result<u64> {
        let start = self.geometry.zone_start(zone);
        let cond = self.sequential(inner, zone, "write")?;
        let device = || self.name().to_owned();
        let length_bytes = data.len() as u64;
        let written = if cond == ZoneCond::Full {
            self.geometry.zone_capacity_bytes
        } else {
            inner.zones[zone.0 as usize].current.data.len() as u64
        };
        let offset_bytes = at.unwrap_or(start + written);
        let room_bytes = self.geometry.zone_capacity_bytes - written;
        if offset_bytes != start + written {
            let write_pointer_bytes = start + written;
            let error =
                Error::NotAtWritePointer { device: device(), zone, offset_bytes, write_pointer_bytes };
            return Err(self.broken(inner, error));
        }
        if length_bytes > room_bytes {
            let error = Error::ZoneFull { device: device(), zone, room_bytes, length_bytes };
            return Err(self.broken(inner, error));
        }
        if let Err(error) = self.open_resources(inner, zone, cond) {
            return Err(self.broken(inner, error));
        }
        let cut = self.count(inner, "write", offset_bytes)?;
        if !cut && inner.failing.contains(&Fail::Write(zone)) {
            return Err(self.io_error("write", offset_bytes, "injected"));
        }
        self.do_op(inner, zone, Op::Write(data.to_vec()));
        if cut {
            inner.powered = false;
            return Err(self.io_error("write", offset_bytes, "the power was cut"));
        }
        Ok(offset_bytes)
    }

    fn do_op(&self, inner: &mut Inner, zone: ZoneId, op: Op) {
        let zone = &mut inner.zones[zone.0 as usize];
        apply(&mut zone.current, &op, self.geometry.zone_capacity_bytes);
        zone.unflushed.push(op);
    }

    fn whole_zone(&self, zone: ZoneId, what: &'static str, op: Op) -> Result<()> {
        let mut inner = self.lock();
        self.sequential(&inner, zone, what)?;
        let start = self.geometry.zone_start(zone);
        let cut = self.count(&mut inner, what, start)?;
        if !cut && matches!(op, Op::Reset) && inner.failing.contains(&Fail::Reset(zone)) {
            return Err(self.io_error(what, start, "injected"));
        }
        self.do_op(&mut inner, zone, op);
        if cut {
            inner.powered = false;
            return Err(self.io_error(what, start, "the power was cut"));
        }
        Ok(())
    }
}

fn apply(image: &mut Image, op: &Op, capacity_bytes: u64) {
    match op {
        Op::Write(data) => {
            image.data.extend_from_slice(data);
            let full = image.data.len() as u64 == capacity_bytes;
            image.cond = match image.cond {
                _ if full => ZoneCond::Full,
                ZoneCond::ExplicitOpen => ZoneCond::ExplicitOpen,
                cond if data.is_empty() => cond,
                _ => ZoneCond::ImplicitOpen,
            };
        }
        Op::Reset => {
            image.data.clear();
            image.cond = ZoneCond::Empty;
        }
        Op::Finish => image.cond = ZoneCond::Full,
    }
}

impl ZonedDevice for MemZoned {
    fn name(&self) -> &str {
        "mem"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn report(&self) -> Result<Vec<Zone>> {
        (0..self.geometry.nr_zones).map(|zone| self.report_zone(ZoneId(zone))).collect()
    }

    fn report_zone(&self, zone: ZoneId) -> Result<Zone> {
        let inner = self.lock();
        if !inner.powered {
            return Err(self.io_error("zone report", self.geometry.zone_start(zone), "no power"));
        }
        let found = inner.zones.get(zone.0 as usize).ok_or_else(|| Error::NoSuchZone {
            device: self.name().into(),
            zone,
            what: "past the end of the device",
        })?;
        let conventional = found.kind == ZoneType::Conventional;
        let geometry = self.geometry;
        Ok(Zone {
            id: zone,
            kind: found.kind,
            cond: found.current.cond,
            capacity_bytes: if conventional {
                geometry.zone_size_bytes
            } else {
                geometry.zone_capacity_bytes
            },
            written_bytes: match found.current.cond {
                ZoneCond::NotWp | ZoneCond::ReadOnly | ZoneCond::Offline => 0,
                ZoneCond::Full => geometry.zone_capacity_bytes,
                _ => found.current.data.len() as u64,
            },
        })
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let length_bytes = buf.len() as u64;
        if !self.geometry.range_is_valid(offset_bytes, length_bytes) {
            let device = self.name().into();
            return Err(Error::BadRange { device, what: "read", offset_bytes, length_bytes });
        }
        let inner = self.lock();
        let zone = self.geometry.zone_of(offset_bytes);
        let image = &inner.zones[zone.0 as usize].current;
        if !inner.powered || inner.failing.contains(&Fail::Read(zone)) {
            return Err(self.io_error("read", offset_bytes, "injected"));
        }
        if image.cond == ZoneCond::Offline {
            return Err(Error::ZoneState {
                device: self.name().into(),
                zone,
                what: "read",
                cond: image.cond,
            });
        }
        let at = (offset_bytes - self.geometry.zone_start(zone)) as usize;
        let there = image.data.get(at..).unwrap_or_default();
        let n = there.len().min(buf.len());
        buf[..n].copy_from_slice(&there[..n]);
        buf[n..].fill(0);
        Ok(())
    }

    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<()> {
        let length_bytes = data.len() as u64;
        let mut inner = self.lock();
        if !self.geometry.range_is_valid(offset_bytes, length_bytes) {
            let device = self.name().into();
            let error = Error::BadRange { device, what: "write", offset_bytes, length_bytes };
            return Err(self.broken(&mut inner, error));
        }
        let zone = self.geometry.zone_of(offset_bytes);
        if inner.zones[zone.0 as usize].kind == ZoneType::Conventional {
            let at = (offset_bytes - self.geometry.zone_start(zone)) as usize;
            let found = &mut inner.zones[zone.0 as usize];
            found.current.data[at..at + data.len()].copy_from_slice(data);
            found.durable.data[at..at + data.len()].copy_from_slice(data);
            return Ok(());
        }
        self.write_sequential(&mut inner, zone, Some(offset_bytes), data).map(|_| ())
    }

    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<u64> {
        let mut inner = self.lock();
        let offset_bytes = self.geometry.zone_start(zone);
        let length_bytes = data.len() as u64;
        if zone.0 < self.geometry.nr_zones && !self.geometry.range_is_valid(offset_bytes, length_bytes) {
            let device = self.name().into();
            let error = Error::BadRange { device, what: "append", offset_bytes, length_bytes };
            return Err(self.broken(&mut inner, error));
        }
        self.write_sequential(&mut inner, zone, None, data)
    }

    fn reset(&self, zone: ZoneId) -> Result<()> {
        self.whole_zone(zone, "reset", Op::Reset)
    }

    fn finish(&self, zone: ZoneId) -> Result<()> {
        self.whole_zone(zone, "finish", Op::Finish)
    }

    fn open(&self, zone: ZoneId) -> Result<()> {
        let mut inner = self.lock();
        let cond = self.sequential(&inner, zone, "open")?;
        if cond == ZoneCond::Full {
            return Err(Error::ZoneState { device: self.name().into(), zone, what: "open", cond });
        }
        self.open_resources(&mut inner, zone, cond)?;
        inner.zones[zone.0 as usize].current.cond = ZoneCond::ExplicitOpen;
        Ok(())
    }

    fn close(&self, zone: ZoneId) -> Result<()> {
        let mut inner = self.lock();
        let cond = self.sequential(&inner, zone, "close")?;
        if !cond.is_active() {
            return Err(Error::ZoneState { device: self.name().into(), zone, what: "close", cond });
        }
        inner.zones[zone.0 as usize].current.cond = ZoneCond::Closed;
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut inner = self.lock();
        let cut = self.count(&mut inner, "flush", 0)?;
        if cut {
            inner.powered = false;
            return Err(self.io_error("flush", 0, "the power was cut"));
        }
        if inner.failing.contains(&Fail::Flush) {
            return Err(self.io_error("flush", 0, "injected"));
        }
        let capacity_bytes = self.geometry.zone_capacity_bytes;
        for zone in &mut inner.zones {
            for op in std::mem::take(&mut zone.unflushed) {
                apply(&mut zone.durable, &op, capacity_bytes);
            }
        }
        Ok(())
    }
}
