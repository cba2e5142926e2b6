//! The zone state machine of NVMe ZNS (pure): which command is allowed in which state, and what it leaves behind.
//!
//! Follows the NVM Express Zoned Namespace Command Set Specification 1.1, sections 2.1 (zones and their states, figure 8),
//! 2.1.1.4 (resource limits), 3.4 (commands), as QEMU's hw/nvme/ctrl.c implements it where the text leaves room.
//!
//! The invariants, whatever the commands: open zones never exceed the open limit, nor open and closed ones together the
//! active limit; a command that fails changes nothing, no other zone included; a sequential zone's data ends at its write
//! pointer, which moves only by writes, appends, finish and reset.
//!
//! The order of checks, where several could fail a write: alignment and bounds, the zone's state, the write pointer, then
//! resources: active before open, and an implicitly open zone is closed to make room only once nothing else can fail.

mod rules;

pub use rules::{after_power_cut, describe, keep_limits, locate, readable, write_in_open_zone};

use crate::geometry::{Geometry, Sector, ZoneId};

/// A zone's state (ZNS section 2.1.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZoneState {
    /// Nothing written; the write pointer is at the start.
    Empty,
    /// Opened by a write; the device may close it to make room.
    ImplicitlyOpen,
    /// Opened by command; only a command closes it.
    ExplicitlyOpen,
    /// Partly written, or explicitly opened once, and not open.
    Closed,
    /// Written to its capacity, or finished.
    Full,
    /// The media wore out for writes; reads still work.
    ReadOnly,
    /// The media failed.
    Offline,
}

impl ZoneState {
    /// Whether it takes an open resource.
    pub fn is_open(self) -> bool {
        matches!(self, ZoneState::ImplicitlyOpen | ZoneState::ExplicitlyOpen)
    }

    /// Whether it takes an active resource.
    pub fn is_active(self) -> bool {
        self.is_open() || self == ZoneState::Closed
    }
}

/// How a zone may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneType {
    /// Anywhere, in any order. It has no write pointer and its state does not change.
    Conventional,
    /// Only at its write pointer.
    SequentialWriteRequired,
}

/// A command that the zone rules refuse. Each message names the zone, what was asked and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// The range is not made of whole logical blocks.
    #[error("sector {sector} + {sectors}: not whole logical blocks of {block_sectors} sectors")]
    Misaligned {
        /// First sector.
        sector: u64,
        /// Length in sectors.
        sectors: u64,
        /// Sectors of a block.
        block_sectors: u64,
    },
    /// The range leaves the device.
    #[error("sector {sector} + {sectors}: the device has {device_sectors} sectors")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Length in sectors.
        sectors: u64,
        /// The device's sectors.
        device_sectors: u64,
    },
    /// The range leaves its zone, or a write its capacity (Zone Boundary Error).
    #[error("zone {zone}: {sectors} sectors at {offset} cross its boundary at {boundary}")]
    Boundary {
        /// The zone.
        zone: u32,
        /// Where in the zone, in sectors.
        offset: u64,
        /// Length in sectors.
        sectors: u64,
        /// What it must not cross, in sectors from the zone's start.
        boundary: u64,
    },
    /// A write elsewhere than at the write pointer (Zone Invalid Write).
    #[error("zone {zone}: write at sector offset {offset}, its write pointer is at {write_pointer}")]
    InvalidWrite {
        /// The zone.
        zone: u32,
        /// Where the write wanted to go, in sectors from the zone's start.
        offset: u64,
        /// Where the write pointer is, in sectors from the zone's start.
        write_pointer: u64,
    },
    /// An append that does not name the zone's first sector, or is longer than the device allows.
    #[error(
        "zone {zone}: an append must name the zone's first sector and be 1 to {max_sectors} sectors long"
    )]
    InvalidAppend {
        /// The zone.
        zone: u32,
        /// The device's limit in sectors.
        max_sectors: u64,
    },
    /// Zone Is Full.
    #[error("zone {0} is full")]
    Full(u32),
    /// Zone Is Read Only.
    #[error("zone {0} is read-only")]
    ReadOnly(u32),
    /// Zone Is Offline.
    #[error("zone {0} is offline")]
    Offline(u32),
    /// Invalid Zone State Transition.
    #[error("zone {zone} is {state:?}: it cannot {action}")]
    InvalidTransition {
        /// The zone.
        zone: u32,
        /// Its state.
        state: ZoneState,
        /// What was asked.
        action: &'static str,
    },
    /// A zone command on a conventional zone.
    #[error("zone {zone} is conventional: it cannot {action}")]
    Conventional {
        /// The zone.
        zone: u32,
        /// What was asked.
        action: &'static str,
    },
    /// Too Many Open Zones.
    #[error("zone {zone}: {limit} zones are open, which is the limit, and none can be closed implicitly")]
    TooManyOpen {
        /// The zone.
        zone: u32,
        /// The limit.
        limit: u32,
    },
    /// Too Many Active Zones.
    #[error("zone {zone}: {limit} zones are active, which is the limit")]
    TooManyActive {
        /// The zone.
        zone: u32,
        /// The limit.
        limit: u32,
    },
    /// There is no such zone.
    #[error("there is no zone {zone}: the device has {zones}")]
    NoZone {
        /// The zone.
        zone: u32,
        /// How many there are.
        zones: u32,
    },
}

/// What a command changed, for who keeps the zones' states or charges for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// The zone it was about.
    pub zone: ZoneId,
    /// Where the data starts: an append's answer.
    pub sector: Sector,
    /// A zone that was closed to make room.
    pub closed: Option<ZoneId>,
}

/// What a read finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readable {
    /// The zone.
    pub zone: ZoneId,
    /// Where in the zone, in sectors.
    pub offset: u64,
    /// How many of the sectors, from the first, hold data. The rest reads as zeroes: deallocated.
    pub written: u64,
}

/// One zone as a report shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZoneDescriptor {
    /// Its number.
    pub zone: ZoneId,
    /// Its type.
    pub kind: ZoneType,
    /// Its state; a conventional zone has none that means anything.
    pub state: ZoneState,
    /// First sector.
    pub start: Sector,
    /// Size in sectors.
    pub sectors: u64,
    /// Writable sectors.
    pub capacity_sectors: u64,
    /// The next sector to write. Of a full zone its end; [`NO_WRITE_POINTER`] where there is none.
    pub write_pointer: Sector,
}

/// The write pointer of a zone that has none (conventional, read-only, offline), as ZNS reports it.
pub const NO_WRITE_POINTER: Sector = Sector(u64::MAX);

/// No link in the list of implicitly open zones.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Zone {
    state: ZoneState,
    /// Sectors that hold data, from the start: the write pointer while the zone has one, and where data ends in a
    /// finished zone.
    written: u64,
    older: u32,
    newer: u32,
}

/// All zones of a device.
#[derive(Debug, Clone)]
pub struct Zones {
    geometry: Geometry,
    zones: Vec<Zone>,
    open: u32,
    active: u32,
    /// The implicitly open zones form a list in the order of their opening: the oldest is closed first.
    oldest: u32,
    newest: u32,
}

impl Zones {
    /// A new device: every zone empty.
    pub fn new(geometry: Geometry) -> Zones {
        let empty = Zone { state: ZoneState::Empty, written: 0, older: NONE, newer: NONE };
        let zones = vec![empty; geometry.zones() as usize];
        Zones { geometry, zones, open: 0, active: 0, oldest: NONE, newest: NONE }
    }

    /// A device whose zones have these states and written sectors, and were opened in the order of the third number.
    ///
    /// # Errors
    /// The number of the first zone that cannot be, and why.
    pub fn restore(
        geometry: Geometry,
        states: impl IntoIterator<Item = (ZoneState, u64, u64)>,
    ) -> Result<Zones, (ZoneId, String)> {
        let mut zones = Zones::new(geometry);
        let mut implicitly_open = Vec::new();
        for (id, (state, written, opened)) in (0..).map(ZoneId).zip(states).take(zones.zones.len()) {
            let capacity = zones.geometry.capacity_sectors(id);
            let broken = |why: String| Err((id, why));
            if written > capacity || !written.is_multiple_of(zones.geometry.block_sectors()) {
                return broken(format!(
                    "{written} sectors written: not whole blocks within its capacity {capacity}"
                ));
            }
            let fits = match state {
                ZoneState::Empty => written == 0 || zones.geometry.is_conventional(id),
                ZoneState::ImplicitlyOpen => written > 0 && written < capacity,
                ZoneState::ExplicitlyOpen | ZoneState::Closed => written < capacity,
                ZoneState::Full | ZoneState::ReadOnly | ZoneState::Offline => true,
            };
            if !fits {
                return broken(format!("{state:?} with {written} of {capacity} sectors written"));
            }
            if zones.geometry.is_conventional(id)
                && !matches!(state, ZoneState::Empty | ZoneState::ReadOnly | ZoneState::Offline)
            {
                return broken(format!("conventional and {state:?}"));
            }
            zones.zones[id.0 as usize].written = written;
            match state {
                ZoneState::ImplicitlyOpen => implicitly_open.push((opened, id)),
                _ => zones.set_state(id, state),
            }
        }
        implicitly_open.sort_unstable();
        implicitly_open.into_iter().for_each(|(_, id)| zones.set_state(id, ZoneState::ImplicitlyOpen));
        let (open, active) = (zones.geometry.max_open(), zones.geometry.max_active());
        if (open != 0 && zones.open > open) || (active != 0 && zones.active > active) {
            let why = format!(
                "{} open and {} active zones, the limits are {open} and {active}",
                zones.open, zones.active
            );
            return Err((ZoneId(0), why));
        }
        Ok(zones)
    }

    /// The device's sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How many zones are open.
    pub fn open_zones(&self) -> u32 {
        self.open
    }

    /// How many zones are active: open or closed.
    pub fn active_zones(&self) -> u32 {
        self.active
    }

    /// The zone took writes that moved nothing but its write pointer ([`write_in_open_zone`]), which is at `written` now.
    pub fn catch_up(&mut self, id: ZoneId, written: u64) {
        if let Some(zone) = self.zones.get_mut(id.0 as usize) {
            zone.written = written;
        }
    }

    /// A zone's state and the sectors that hold data.
    ///
    /// # Errors
    /// [`ZoneError::NoZone`].
    pub fn state(&self, id: ZoneId) -> Result<(ZoneState, u64), ZoneError> {
        self.get(id).map(|zone| (zone.state, zone.written))
    }

    /// Zone `id` as a report shows it (ZNS section 3.4.2.2.3).
    ///
    /// # Errors
    /// [`ZoneError::NoZone`].
    pub fn describe(&self, id: ZoneId) -> Result<ZoneDescriptor, ZoneError> {
        let (state, written) = self.state(id)?;
        Ok(describe(&self.geometry, id, state, written))
    }

    /// Checks a read of `sectors` at `sector`, which may go beyond the write pointer but not out of the zone.
    ///
    /// # Errors
    /// Alignment and bounds; [`ZoneError::Offline`].
    pub fn read(&self, sector: Sector, sectors: u64) -> Result<Readable, ZoneError> {
        let (id, offset) = locate(&self.geometry, sector, sectors)?;
        let (state, written) = self.state(id)?;
        readable(id, offset, sectors, state, written)
    }

    /// Writes `sectors` at `sector`, which must be the zone's write pointer.
    ///
    /// # Errors
    /// See the module's order of checks.
    pub fn write(&mut self, sector: Sector, sectors: u64) -> Result<Effect, ZoneError> {
        let (id, offset) = locate(&self.geometry, sector, sectors)?;
        if self.geometry.is_conventional(id) {
            return self.write_conventional(id, sector, offset + sectors);
        }
        let capacity = self.geometry.capacity_sectors(id);
        if offset + sectors > capacity {
            return Err(ZoneError::Boundary { zone: id.0, offset, sectors, boundary: capacity });
        }
        let zone = self.writable(id)?;
        if offset != zone.written {
            return Err(ZoneError::InvalidWrite { zone: id.0, offset, write_pointer: zone.written });
        }
        let closed = self.advance(id, sectors)?;
        Ok(Effect { zone: id, sector, closed })
    }

    /// Writes `sectors` at the write pointer of the zone that starts at `start`, and says where that was.
    ///
    /// # Errors
    /// See the module's order of checks.
    pub fn append(&mut self, start: Sector, sectors: u64) -> Result<Effect, ZoneError> {
        let (id, offset) = locate(&self.geometry, start, sectors)?;
        if self.geometry.is_conventional(id) {
            return Err(ZoneError::Conventional { zone: id.0, action: "take an append" });
        }
        let max_sectors = self.geometry.max_append_sectors();
        if offset != 0 || sectors > max_sectors {
            return Err(ZoneError::InvalidAppend { zone: id.0, max_sectors });
        }
        let zone = self.writable(id)?;
        let capacity = self.geometry.capacity_sectors(id);
        let at = zone.written;
        if at + sectors > capacity {
            return Err(ZoneError::Boundary { zone: id.0, offset: at, sectors, boundary: capacity });
        }
        let closed = self.advance(id, sectors)?;
        Ok(Effect { zone: id, sector: Sector(start.0 + at), closed })
    }

    /// Opens a zone explicitly: it stays open until it is closed, finished, filled or reset.
    ///
    /// # Errors
    /// [`ZoneError::InvalidTransition`] of a full, read-only or offline zone; the limits.
    pub fn open(&mut self, id: ZoneId) -> Result<Effect, ZoneError> {
        let zone = self.sequential(id, "be opened")?;
        let closed = match zone.state {
            ZoneState::ExplicitlyOpen => None,
            ZoneState::ImplicitlyOpen => {
                self.set_state(id, ZoneState::ExplicitlyOpen);
                None
            }
            ZoneState::Empty | ZoneState::Closed => {
                let closed = self.take_resources(id, zone.state)?;
                self.set_state(id, ZoneState::ExplicitlyOpen);
                closed
            }
            state => return Err(ZoneError::InvalidTransition { zone: id.0, state, action: "be opened" }),
        };
        Ok(self.effect(id, closed))
    }

    /// Closes an open zone; it stays active, also when nothing was written to it (where ZBC would empty it).
    ///
    /// # Errors
    /// [`ZoneError::InvalidTransition`] of a zone that is neither open nor closed.
    pub fn close(&mut self, id: ZoneId) -> Result<Effect, ZoneError> {
        match self.sequential(id, "be closed")?.state {
            ZoneState::Closed => {}
            state if state.is_open() => self.set_state(id, ZoneState::Closed),
            state => return Err(ZoneError::InvalidTransition { zone: id.0, state, action: "be closed" }),
        }
        Ok(self.effect(id, None))
    }

    /// Makes a zone full. An empty one needs no resources for it.
    ///
    /// # Errors
    /// [`ZoneError::InvalidTransition`] of a read-only or offline zone.
    pub fn finish(&mut self, id: ZoneId) -> Result<Effect, ZoneError> {
        match self.sequential(id, "be finished")?.state {
            state @ (ZoneState::ReadOnly | ZoneState::Offline) => {
                return Err(ZoneError::InvalidTransition { zone: id.0, state, action: "be finished" });
            }
            _ => self.set_state(id, ZoneState::Full),
        }
        Ok(self.effect(id, None))
    }

    /// Empties a zone: all its blocks are deallocated.
    ///
    /// # Errors
    /// [`ZoneError::InvalidTransition`] of a read-only or offline zone.
    pub fn reset(&mut self, id: ZoneId) -> Result<Effect, ZoneError> {
        match self.sequential(id, "be reset")?.state {
            state @ (ZoneState::ReadOnly | ZoneState::Offline) => {
                return Err(ZoneError::InvalidTransition { zone: id.0, state, action: "be reset" });
            }
            _ => {
                self.set_state(id, ZoneState::Empty);
                self.zones[id.0 as usize].written = 0;
            }
        }
        Ok(self.effect(id, None))
    }

    /// Whether "reset all zones" would empty `id`: open, closed and full sequential zones only.
    pub fn is_reset_by_all(&self, id: ZoneId) -> bool {
        !self.geometry.is_conventional(id)
            && self.get(id).is_ok_and(|zone| zone.state.is_active() || zone.state == ZoneState::Full)
    }

    /// The media of `id` wore out: it can only be read from now on. An offline zone stays offline.
    ///
    /// # Errors
    /// [`ZoneError::NoZone`], [`ZoneError::InvalidTransition`] of an offline zone.
    pub fn wear_out(&mut self, id: ZoneId) -> Result<Effect, ZoneError> {
        match self.get(id)?.state {
            state @ ZoneState::Offline => {
                Err(ZoneError::InvalidTransition { zone: id.0, state, action: "become read-only" })
            }
            _ => {
                self.set_state(id, ZoneState::ReadOnly);
                Ok(self.effect(id, None))
            }
        }
    }

    /// The media of `id` failed for good.
    ///
    /// # Errors
    /// [`ZoneError::NoZone`].
    pub fn fail(&mut self, id: ZoneId) -> Result<Effect, ZoneError> {
        self.get(id)?;
        self.set_state(id, ZoneState::Offline);
        Ok(self.effect(id, None))
    }

    fn get(&self, id: ZoneId) -> Result<&Zone, ZoneError> {
        let zones = self.geometry.zones();
        self.zones.get(id.0 as usize).ok_or(ZoneError::NoZone { zone: id.0, zones })
    }

    fn sequential(&self, id: ZoneId, action: &'static str) -> Result<Zone, ZoneError> {
        let zone = *self.get(id)?;
        if self.geometry.is_conventional(id) {
            return Err(ZoneError::Conventional { zone: id.0, action });
        }
        Ok(zone)
    }

    fn writable(&self, id: ZoneId) -> Result<Zone, ZoneError> {
        let zone = *self.get(id)?;
        match zone.state {
            ZoneState::Full => Err(ZoneError::Full(id.0)),
            ZoneState::ReadOnly => Err(ZoneError::ReadOnly(id.0)),
            ZoneState::Offline => Err(ZoneError::Offline(id.0)),
            _ => Ok(zone),
        }
    }

    fn write_conventional(&mut self, id: ZoneId, sector: Sector, end: u64) -> Result<Effect, ZoneError> {
        let zone = self.writable(id)?;
        self.zones[id.0 as usize].written = zone.written.max(end);
        Ok(Effect { zone: id, sector, closed: None })
    }

    /// Takes the resources a write needs and moves the write pointer. A write that fills an empty zone needs them
    /// for a moment, though it ends without.
    fn advance(&mut self, id: ZoneId, sectors: u64) -> Result<Option<ZoneId>, ZoneError> {
        let zone = *self.get(id)?;
        let mut closed = None;
        if !zone.state.is_open() {
            closed = self.take_resources(id, zone.state)?;
            self.set_state(id, ZoneState::ImplicitlyOpen);
        }
        let written = zone.written + sectors;
        self.zones[id.0 as usize].written = written;
        if written == self.geometry.capacity_sectors(id) {
            self.set_state(id, ZoneState::Full);
        }
        Ok(closed)
    }

    /// Makes sure that a zone in `state`, empty or closed, may be opened; closes the oldest implicitly open zone when
    /// that is what it takes.
    fn take_resources(&mut self, id: ZoneId, state: ZoneState) -> Result<Option<ZoneId>, ZoneError> {
        let limit = self.geometry.max_active();
        if state == ZoneState::Empty && limit != 0 && self.active >= limit {
            return Err(ZoneError::TooManyActive { zone: id.0, limit });
        }
        let limit = self.geometry.max_open();
        if limit == 0 || self.open < limit {
            return Ok(None);
        }
        match self.oldest {
            NONE => Err(ZoneError::TooManyOpen { zone: id.0, limit }),
            victim => {
                self.set_state(ZoneId(victim), ZoneState::Closed);
                Ok(Some(ZoneId(victim)))
            }
        }
    }

    fn effect(&self, zone: ZoneId, closed: Option<ZoneId>) -> Effect {
        Effect { zone, sector: self.geometry.start(zone), closed }
    }

    /// The one place where a state changes: keeps the counts and the list in step. `id` exists.
    fn set_state(&mut self, id: ZoneId, state: ZoneState) {
        let before = self.zones[id.0 as usize].state;
        if before == state {
            return;
        }
        self.open = self.open + u32::from(state.is_open()) - u32::from(before.is_open());
        self.active = self.active + u32::from(state.is_active()) - u32::from(before.is_active());
        if before == ZoneState::ImplicitlyOpen {
            self.unlink(id);
        }
        self.zones[id.0 as usize].state = state;
        if state == ZoneState::ImplicitlyOpen {
            self.link_newest(id);
        }
    }

    fn link_newest(&mut self, id: ZoneId) {
        let older = self.newest;
        let zone = &mut self.zones[id.0 as usize];
        (zone.older, zone.newer) = (older, NONE);
        match self.zones.get_mut(older as usize) {
            Some(zone) => zone.newer = id.0,
            None => self.oldest = id.0,
        }
        self.newest = id.0;
    }

    fn unlink(&mut self, id: ZoneId) {
        let Zone { older, newer, .. } = self.zones[id.0 as usize];
        match self.zones.get_mut(older as usize) {
            Some(zone) => zone.newer = newer,
            None => self.oldest = newer,
        }
        match self.zones.get_mut(newer as usize) {
            Some(zone) => zone.older = older,
            None => self.newest = older,
        }
    }
}
