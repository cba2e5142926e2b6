//! The NAND timing model: when a command that arrives now is done.
//!
//! A command is charged when it is submitted: the firmware's cores, the host link, the zone's buffer, the channels and the dies it
//! needs are reserved in order of arrival, each from the earliest time that is free, and the end of the last one that the host
//! waits for is the command's due time. docs/nand-model.md has the formulas.
//!
//! The invariants: a command is due at or after its arrival; no lane of a die, channel or link direction is ever used twice at a
//! time; a valid profile can make no number overflow.

use super::{
    buffer::ZoneState,
    error::NandError,
    firmware::{Costs, Firmware},
    flash::{Flash, Scale, transfer_ns},
    layout::{Layout, pieces},
    planted::planted,
    profile::Profile,
    stats::NandStats,
    timeline::Timeline,
};
use crate::geometry::{Geometry, SECTOR_BYTES, ZoneId};

/// The last time the model counts to: sums of a few times beyond it stay in a `u64`.
const CLOCK_END_NS: u64 = u64::MAX / 4;

/// A command as the model sees it. Offsets are from the zone's start; what lies outside the zone costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read {
        /// The zone.
        zone: ZoneId,
        /// Where in it, in sectors.
        offset_sectors: u64,
        /// How much, in sectors.
        sectors: u64,
        /// Die time that read retries add to each page, in ns of the profile (before `time_scale`).
        retry_ns: u64,
    },
    /// Write at the write pointer (anywhere in a conventional zone).
    Write {
        /// The zone.
        zone: ZoneId,
        /// Where in it, in sectors.
        offset_sectors: u64,
        /// How much, in sectors.
        sectors: u64,
    },
    /// Zone append, at the offset it was given.
    Append {
        /// The zone.
        zone: ZoneId,
        /// Where in it, in sectors.
        offset_sectors: u64,
        /// How much, in sectors.
        sectors: u64,
    },
    /// Open a zone.
    Open(ZoneId),
    /// Close a zone.
    Close(ZoneId),
    /// Finish a zone.
    Finish {
        /// The zone.
        zone: ZoneId,
        /// How much of it the host has written, in sectors.
        written_sectors: u64,
    },
    /// Reset a zone.
    Reset(ZoneId),
    /// Reset all sequential zones.
    ResetAll,
    /// Flush.
    Flush,
    /// Report zones.
    Report,
}

/// Where a byte lies on the dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The die, from 0.
    pub die: u32,
    /// The die's channel.
    pub channel: u32,
    /// The plane of the die.
    pub plane: u32,
}

/// The model of one device. Not shared: a caller with several threads puts it behind a lock.
#[derive(Debug)]
pub struct NandModel {
    layout: Layout,
    pub(super) flash: Flash,
    pub(super) firmware: Firmware,
    pub(super) costs: Costs,
    scale: Scale,
    link_in: Timeline,
    link_out: Timeline,
    pub(super) link_ns_per_byte: f64,
    sense_ns: u64,
    pub(super) sense_4k_ns: u64,
    pub(super) zones: Vec<ZoneState>,
    conventional_zones: u32,
    zone_bytes: u64,
    capacity_bytes: u64,
    buffer_bytes: u64,
    pub(super) early_completion: bool,
    pub(super) flush_drains: bool,
    erase_on_reset: bool,
    finish_fills: bool,
    now: u64,
    first: Option<u64>,
    counted: NandStats,
    #[cfg(test)]
    pub(super) mutant: Option<super::planted::Mutant>,
    #[cfg(test)]
    pub(super) shared_pointer: u64,
}

impl NandModel {
    /// An idle device of erased zones, with `queues` submission queues.
    ///
    /// # Errors
    /// [`NandError::Field`] if the profile is not valid.
    pub fn new(profile: &Profile, geometry: &Geometry, queues: u16) -> Result<NandModel, NandError> {
        profile.validate()?;
        let scale = Scale(profile.time_scale);
        let sense_ns = scale.time(profile.timing.read_ns);
        let mut zones = Vec::new();
        zones.resize_with(geometry.zones() as usize, ZoneState::default);
        Ok(NandModel {
            layout: Layout::new(profile),
            flash: Flash::new(profile, scale),
            firmware: Firmware::new(profile, queues),
            costs: Costs::new(profile, scale),
            scale,
            link_in: Timeline::new(),
            link_out: Timeline::new(),
            link_ns_per_byte: scale.ns_per_byte(profile.link.bytes_per_s),
            sense_ns,
            sense_4k_ns: match profile.timing.read_4k_ns {
                0 => sense_ns,
                small => scale.time(small),
            },
            zones,
            conventional_zones: geometry.conventional_zones(),
            zone_bytes: geometry.zone_sectors().saturating_mul(SECTOR_BYTES),
            capacity_bytes: geometry.sequential_capacity_sectors().saturating_mul(SECTOR_BYTES),
            buffer_bytes: profile.zones.buffer_bytes,
            early_completion: profile.zones.early_completion,
            flush_drains: profile.zones.flush_drains,
            erase_on_reset: profile.zones.erase_on_reset,
            finish_fills: profile.zones.finish_fills,
            now: 0,
            first: None,
            counted: NandStats::default(),
            #[cfg(test)]
            mutant: None,
            #[cfg(test)]
            shared_pointer: 0,
        })
    }

    /// What is in a sequential zone already, after recovery: `written_sectors` from its start (all of a full or finished zone).
    /// With a buffer, a unit that is not complete is in it.
    pub fn restore(&mut self, zone: ZoneId, written_sectors: u64) {
        if self.is_conventional(zone) {
            return;
        }
        let (unit_bytes, capacity) = (self.layout.unit_bytes, self.capacity_bytes);
        let written = written_sectors.saturating_mul(SECTOR_BYTES).min(capacity);
        let buffered = self.buffer_bytes > 0 && written < capacity;
        if let Some(state) = self.zones.get_mut(zone.0 as usize) {
            state.clear();
            state.written = written;
            state.programmed_units = written.div_ceil(unit_bytes);
            if buffered && !written.is_multiple_of(unit_bytes) {
                state.programmed_units -= 1;
                let partial = written % unit_bytes;
                state.enter(0, 0, partial, self.buffer_bytes);
                state.collect(written / unit_bytes, partial, unit_bytes);
            }
        }
    }

    /// Charges `command`, which arrives at `now_ns` on submission queue `queue`; returns when it is due, at or after `now_ns`. A
    /// time before that of an earlier command counts as that command's.
    pub fn submit(&mut self, now_ns: u64, queue: u16, command: &Command) -> u64 {
        self.now = self.now.max(now_ns.min(CLOCK_END_NS));
        self.first.get_or_insert(self.now);
        self.flash.advance(self.now);
        let manage = self.costs.manage;
        let due = match *command {
            Command::Read { zone, offset_sectors, sectors, retry_ns } => {
                self.read(queue, zone, offset_sectors, sectors, retry_ns)
            }
            Command::Write { zone, offset_sectors, sectors } => {
                self.write(queue, zone, offset_sectors, sectors, false)
            }
            Command::Append { zone, offset_sectors, sectors } => {
                self.write(queue, zone, offset_sectors, sectors, true)
            }
            Command::Open(_) => self.firmware.run(self.now, queue, manage).saturating_add(self.costs.open),
            Command::Close(_) => self.firmware.run(self.now, queue, manage).saturating_add(self.costs.close),
            Command::Finish { zone, written_sectors } => self.finish(queue, zone, written_sectors),
            Command::Reset(zone) => self.reset(queue, zone),
            Command::ResetAll => self.reset_all(queue),
            Command::Flush => {
                let begun = self.firmware.run(self.now, queue, self.costs.flush);
                if self.flush_drains { begun.max(self.flash.programs_end) } else { begun }
            }
            Command::Report => self.firmware.run(self.now, queue, manage),
        };
        due.max(now_ns)
    }

    /// What the device did so far.
    pub fn stats(&self) -> NandStats {
        let end = self.flash.end.max(self.now);
        NandStats {
            window_ns: end.saturating_sub(self.first.unwrap_or(end)),
            dies: self.flash.die_stats.clone(),
            channel_busy_ns: self.flash.channel_busy.clone(),
            ..self.counted.clone()
        }
    }

    /// Where the sector at `offset_sectors` of `zone` lies; `None` outside the zone.
    pub fn place(&self, zone: ZoneId, offset_sectors: u64) -> Option<Place> {
        let at = offset_sectors.checked_mul(SECTOR_BYTES).filter(|at| *at < self.capacity(zone))?;
        self.zones.get(zone.0 as usize)?;
        let die = self.die(zone, at / self.layout.unit_bytes);
        let channel = self.flash.channel_of.get(die).copied()?;
        let plane = self.layout.plane(at % self.layout.unit_bytes);
        Some(Place { die: die as u32, channel: channel as u32, plane: plane as u32 })
    }

    fn is_conventional(&self, zone: ZoneId) -> bool {
        zone.0 < self.conventional_zones
    }

    fn capacity(&self, zone: ZoneId) -> u64 {
        if self.is_conventional(zone) { self.zone_bytes } else { self.capacity_bytes }
    }

    fn die(&self, zone: ZoneId, unit: u64) -> usize {
        let unit = if planted!(self, StripeStandsStill) { 0 } else { unit };
        if planted!(self, GroupsOverlap) {
            return (zone.0 as usize + (unit % self.layout.stripe) as usize) % self.layout.dies;
        }
        self.layout.die(self.layout.group(zone.0), unit)
    }

    fn host_in(&mut self, ready: u64, bytes: u64) -> u64 {
        match transfer_ns(bytes, self.link_ns_per_byte) {
            0 => ready,
            time => {
                self.link_in.prune(self.now);
                self.link_in.reserve(ready, time).1
            }
        }
    }

    fn host_out(&mut self, ready: u64, bytes: u64) -> u64 {
        if planted!(self, LinkHalfDuplex) {
            return self.host_in(ready, bytes);
        }
        match transfer_ns(bytes, self.link_ns_per_byte) {
            0 => ready,
            time => {
                self.link_out.prune(self.now);
                self.link_out.reserve(ready, time).1
            }
        }
    }

    fn read(&mut self, queue: u16, zone: ZoneId, offset: u64, sectors: u64, retry_ns: u64) -> u64 {
        let bytes = sectors.saturating_mul(SECTOR_BYTES);
        let service = if bytes <= 4096 { self.costs.read_4k } else { self.costs.read };
        let begun = self.firmware.run(self.now, queue, service);
        let start = offset.saturating_mul(SECTOR_BYTES);
        let end = start.saturating_add(bytes).min(self.zone_bytes);
        let Some(state) = self.zones.get(zone.0 as usize).filter(|_| start < end) else { return begun };
        let found = if self.is_conventional(zone) { end } else { end.min(state.written) };
        let quick = begun.saturating_add(self.costs.buffer_read);
        // Nothing is stored beyond the write pointer: no die is asked.
        let mut ready = if found < end { quick } else { begun };
        let retry_ns = if planted!(self, RetryForgotten) { 0 } else { self.scale.time(retry_ns) };
        let unit_bytes = self.layout.unit_bytes;
        let left = |at: u64| self.layout.left_in_page(at % unit_bytes);
        let mut buffered = (u64::MAX, false);
        for (at, piece) in pieces(start, found, left) {
            let unit = at / unit_bytes;
            if buffered.0 != unit {
                buffered = (unit, state.holds(unit, begun));
            }
            if buffered.1 {
                self.counted.buffer_hits += 1;
                ready = ready.max(quick);
                continue;
            }
            let sense = if piece <= 4096 { self.sense_4k_ns } else { self.sense_ns };
            let (die, plane) = (self.die(zone, unit), self.layout.plane(at % unit_bytes));
            let out = self.flash.sense(die, plane, begun, sense.saturating_add(retry_ns), piece);
            ready = ready.max(out);
        }
        self.host_out(ready, end - start)
    }

    fn write(&mut self, queue: u16, zone: ZoneId, offset: u64, sectors: u64, append: bool) -> u64 {
        let bytes = sectors.saturating_mul(SECTOR_BYTES);
        let each = self.costs.write_per_4k.saturating_mul(bytes.div_ceil(4096));
        let service = if append { self.costs.append } else { self.costs.write }.saturating_add(each);
        let begun = self.firmware.run(self.now, queue, service);
        let capacity = self.capacity(zone);
        let start = offset.saturating_mul(SECTOR_BYTES);
        let end = start.saturating_add(bytes).min(capacity);
        if zone.0 as usize >= self.zones.len() || start >= end {
            return begun;
        }
        let unit_bytes = match planted!(self, UnitOnePageLate) {
            true => self.layout.unit_bytes + self.layout.left_in_page(0),
            false => self.layout.unit_bytes,
        };
        let collects = self.buffer_bytes > 0 && !self.is_conventional(zone);
        let (mut entered, mut programmed, mut waited) = (begun, begun, false);
        for (at, piece) in pieces(start, end, |at| unit_bytes - at % unit_bytes) {
            let unit = at / unit_bytes;
            if self.buffer_bytes > 0
                && let Some(state) = self.zones.get_mut(zone.0 as usize)
            {
                let free = state.enter(self.now, entered, piece, self.buffer_bytes);
                waited |= free > entered;
                entered = free;
            }
            entered = self.host_in(entered, piece);
            let mut whole = Some(piece);
            if let Some(state) = self.zones.get_mut(zone.0 as usize) {
                state.entered = state.entered.max(entered);
                if collects {
                    let size = unit_bytes.min(capacity - unit * unit_bytes);
                    whole = state.collect(unit, piece, size).then_some(size);
                }
            }
            if let Some(bytes) = whole {
                programmed = programmed.max(self.program(zone, unit, entered, bytes, append));
            }
        }
        if let Some(state) = self.zones.get_mut(zone.0 as usize) {
            state.written = state.written.max(end);
        }
        self.counted.buffer_waits += u64::from(waited);
        if self.early_completion { entered } else { entered.max(programmed) }
    }

    /// Programs `bytes` of a unit from `ready` on; they leave the buffer when that is done.
    fn program(&mut self, zone: ZoneId, unit: u64, ready: u64, bytes: u64, append: bool) -> u64 {
        let mut place = if append && planted!(self, AppendAtZoneStart) { 0 } else { unit };
        if planted!(self, SharedWritePointer) {
            place = self.next_shared();
        }
        let die = self.die(zone, place);
        let Some(state) = self.zones.get_mut(zone.0 as usize) else { return ready };
        let buffered = self.buffer_bytes > 0;
        // A deferred erase is due with the first program of the block, once.
        let first = buffered || unit >= state.programmed_units;
        let erase = first && unit < state.stale_units && self.layout.begins_block(unit);
        let erase = erase && !planted!(self, EraseForgottenWhenDeferred);
        let done = self.flash.program(die, ready.max(state.not_before), bytes, erase);
        state.programmed_units = state.programmed_units.max(unit + 1);
        state.last_program = state.last_program.max(done);
        if buffered {
            let freed = if planted!(self, BufferFreedOnEntry) { ready } else { done };
            state.leave(unit, bytes, freed);
        }
        self.counted.host_bytes_programmed = self.counted.host_bytes_programmed.saturating_add(bytes);
        done
    }

    #[cfg(test)]
    fn next_shared(&mut self) -> u64 {
        self.shared_pointer += 1;
        self.shared_pointer - 1
    }

    #[cfg(not(test))]
    fn next_shared(&mut self) -> u64 {
        0
    }

    fn reset(&mut self, queue: u16, zone: ZoneId) -> u64 {
        let begun = self.firmware.run(self.now, queue, self.costs.manage).saturating_add(self.costs.reset);
        if self.is_conventional(zone) {
            return begun;
        }
        let whole = self.capacity_bytes.div_ceil(self.layout.unit_bytes);
        let Some(state) = self.zones.get_mut(zone.0 as usize) else { return begun };
        let touched = if planted!(self, EraseWholeZone) { whole } else { state.programmed_units };
        state.clear();
        if !self.erase_on_reset {
            state.stale_units = state.stale_units.max(touched);
            return begun;
        }
        let from = begun.max(state.not_before).max(state.last_program);
        let mut end = begun;
        let slots = if planted!(self, EraseFirstDie) { 1 } else { self.layout.stripe };
        let erased = if planted!(self, EraseNextZone) { ZoneId(zone.0 + 1) } else { zone };
        for slot in 0..slots.min(touched) {
            let blocks = self.layout.blocks(self.layout.units_on(touched, slot));
            end = end.max(self.flash.erase(self.die(erased, slot), from, blocks));
        }
        if let Some(state) = self.zones.get_mut(zone.0 as usize) {
            state.not_before = state.not_before.max(end);
        }
        end
    }

    /// One erase per die for all zones together: the cost is in the number of zones and dies, not in their product.
    fn reset_all(&mut self, queue: u16) -> u64 {
        let begun = self.firmware.run(self.now, queue, self.costs.manage).saturating_add(self.costs.reset);
        let first = (self.conventional_zones as usize).min(self.zones.len());
        let layout = &self.layout;
        // Per group: blocks that each of its dies erases, one block more on the first `n` dies (differences), and from when.
        let mut all = vec![0u64; layout.groups()];
        let mut more = vec![0i64; layout.dies + 1];
        let mut from = vec![begun; layout.groups()];
        for (zone, state) in self.zones.iter_mut().enumerate().skip(first) {
            let (group, touched) = (layout.group(zone as u32), state.programmed_units);
            state.clear();
            if touched == 0 {
                continue;
            }
            if !self.erase_on_reset {
                state.stale_units = state.stale_units.max(touched);
                continue;
            }
            from[group] = from[group].max(state.not_before).max(state.last_program);
            let (rows, longer) = (touched / layout.stripe, touched % layout.stripe);
            all[group] += layout.blocks(rows);
            if layout.blocks(rows + 1) > layout.blocks(rows) {
                more[layout.die(group, 0)] += 1;
                more[layout.die(group, 0) + longer as usize] -= 1;
            }
        }
        let (mut end, mut extra) = (begun, 0i64);
        for (die, more) in more.into_iter().enumerate().take(layout.dies) {
            let group = die / layout.stripe as usize;
            extra += more;
            let blocks = all[group].saturating_add(extra.unsigned_abs());
            if blocks > 0 {
                end = end.max(self.flash.erase(die, from[group], blocks));
            }
        }
        for state in self.zones.iter_mut().skip(first) {
            state.not_before = state.not_before.max(end);
        }
        end
    }

    fn finish(&mut self, queue: u16, zone: ZoneId, written_sectors: u64) -> u64 {
        let begun = self.firmware.run(self.now, queue, self.costs.manage).saturating_add(self.costs.finish);
        let (unit_bytes, capacity) = (self.layout.unit_bytes, self.capacity_bytes);
        if self.is_conventional(zone) || zone.0 as usize >= self.zones.len() || planted!(self, FinishFree) {
            return begun;
        }
        let (mut end, mut padding) = (begun, 0u64);
        while let Some((unit, bytes)) = self.zones.get_mut(zone.0 as usize).and_then(ZoneState::take_partial)
        {
            end = end.max(self.program(zone, unit, begun, bytes, false));
            let size = unit_bytes.min(capacity.saturating_sub(unit.saturating_mul(unit_bytes)));
            padding = padding.saturating_add(size.saturating_sub(bytes));
        }
        let Some(state) = self.zones.get_mut(zone.0 as usize) else { return begun };
        state.written = state.written.max(written_sectors.saturating_mul(SECTOR_BYTES)).min(capacity);
        let filled = state.written.div_ceil(unit_bytes).max(state.programmed_units);
        if self.finish_fills {
            let (from, stale) = (begun.max(state.not_before), state.stale_units);
            let short = u64::from(planted!(self, FinishOneShort));
            let whole = capacity.div_ceil(unit_bytes) - short;
            for slot in 0..self.layout.stripe {
                let rows = |units: u64| self.layout.units_on(units, slot);
                let units = rows(whole).saturating_sub(rows(filled));
                // Of the blocks that begin in the rows to fill, those that wait for their erase.
                let stale_blocks = |units: u64| self.layout.blocks(rows(units).min(rows(stale)));
                let erases = stale_blocks(whole).saturating_sub(stale_blocks(filled));
                end = end.max(self.flash.fill(self.die(zone, slot), from, units, erases));
            }
            padding = padding.saturating_add(capacity.saturating_sub(filled.saturating_mul(unit_bytes)));
            if let Some(state) = self.zones.get_mut(zone.0 as usize) {
                state.programmed_units = state.programmed_units.max(whole);
                state.not_before = state.not_before.max(end);
            }
        }
        if !planted!(self, PaddingNotCounted) {
            self.counted.padding_bytes = self.counted.padding_bytes.saturating_add(padding);
        }
        if self.finish_fills { end } else { begun }
    }
}
