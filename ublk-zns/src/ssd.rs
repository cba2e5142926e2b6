//! The drive: a zoned device with the timing, errors and wear of flash, and with faults.
//!
//! Each command asks, in this order, the faults, the error model, the timing model and the device, and gets a result and a
//! time when it is due. The device does the command at once; that the host hears of it later is up to the front.
//!
//! The invariants: a command is due at or after its arrival; a command that fails is due when it would have been done; with
//! the same seed, the same commands at the same times have the same results.

use crate::{
    cache::locked,
    engine::{DeviceOptions, ZnsDevice},
    error::ZnsError,
    faults::{FaultAction, Faults, ForcedState, IoOp, Verdict},
    geometry::{Geometry, Sector, ZoneId},
    media::{SlotId, ZoneField},
    nand::{Command, NandModel, Profile},
    reliability::{ErrorParams, Health, Pattern, Reliability, WearEvent, ZoneCounters},
    zones::{Readable, ZoneState},
};
use serde_json::{Value, json};
use std::{
    io,
    ptr::NonNull,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// What a drive is besides its zones.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Models {
    /// The timing of its flash; `None` for none.
    pub profile: Option<Profile>,
    /// Its bit errors and wear; `None` for none.
    pub errors: Option<ErrorParams>,
    /// Where all that is random starts.
    pub seed: u64,
    /// Submission queues, for the timing's arbitration.
    pub queues: u16,
}

/// When and from where a command comes.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The time on the clock by which commands are due, in ns.
    pub now_ns: u64,
    /// Its submission queue.
    pub queue: u16,
    /// Its place in the front, for who must know it again.
    pub slot: Option<SlotId>,
}

impl Arrival {
    /// A command on the first queue at `now_ns`.
    pub fn at(now_ns: u64) -> Arrival {
        Arrival { now_ns, queue: 0, slot: None }
    }
}

/// What became of a command, and when the host may know.
#[derive(Debug)]
pub struct Timed<T> {
    /// What became of it.
    pub result: Result<T, ZnsError>,
    /// When, on the clock of [`Arrival::now_ns`]; 0 for at once.
    pub due_ns: u64,
}

/// A drive.
pub struct Ssd {
    device: ZnsDevice,
    models: Models,
    nand: Option<Mutex<NandModel>>,
    reliability: Option<Mutex<Reliability>>,
    faults: Mutex<Faults>,
    any_fault: AtomicBool,
    /// What to add to the clock of commands to get nanoseconds since 1970, the clock of retention.
    since_1970_ns: AtomicU64,
}

impl Ssd {
    /// A new drive, as [`ZnsDevice::create`].
    ///
    /// # Errors
    /// The device's; [`ZnsError::Nand`] and [`ZnsError::Reliability`] for models that cannot be.
    pub fn create(options: &DeviceOptions, models: Models) -> Result<Ssd, ZnsError> {
        // Before the device: what cannot be must leave nothing behind.
        let built = models.build(&Geometry::new(&options.config)?)?;
        Ssd::with(ZnsDevice::create(options)?, models, built)
    }

    /// The drive that was left at a place, as [`ZnsDevice::open`].
    ///
    /// # Errors
    /// As [`Ssd::create`].
    pub fn open(options: &DeviceOptions, models: Models, recover: bool) -> Result<Ssd, ZnsError> {
        let built = models.build(&Geometry::new(&options.config)?)?;
        Ssd::with(ZnsDevice::open(options, recover)?, models, built)
    }

    fn with(device: ZnsDevice, models: Models, (nand, reliability): Built) -> Result<Ssd, ZnsError> {
        let faults = Mutex::new(Faults::new(models.seed, device.geometry()));
        let ssd = Ssd {
            device,
            nand: nand.map(Mutex::new),
            reliability: reliability.map(Mutex::new),
            faults,
            any_fault: AtomicBool::new(false),
            since_1970_ns: AtomicU64::new(0),
            models,
        };
        if let Some(nand) = &ssd.nand {
            ssd.restore_flash(&mut locked(nand))?;
        }
        ssd.restore_wear();
        Ok(ssd)
    }

    /// Tells a new timing model what the zones hold.
    fn restore_flash(&self, nand: &mut NandModel) -> Result<(), ZnsError> {
        let geometry = self.device.geometry();
        for zone in (0..geometry.zones()).map(ZoneId) {
            let (state, written) = self.device.media().load(zone)?;
            let written = if state == ZoneState::Full { geometry.capacity_sectors(zone) } else { written };
            nand.restore(zone, written);
        }
        Ok(())
    }

    fn restore_wear(&self) {
        let (Some(reliability), Some(params)) = (&self.reliability, &self.models.errors) else { return };
        let media = self.device.media();
        for zone in (0..self.device.geometry().zones()).map(ZoneId) {
            let small = |field| u32::try_from(media.field(zone, field)).unwrap_or(u32::MAX);
            let programmed_at_ns = media.field(zone, ZoneField::ProgrammedAt);
            let saved = ZoneCounters {
                pe_cycles: params.initial_pe_cycles.saturating_add(small(ZoneField::Cycles)),
                programmed_at_ns: (programmed_at_ns != 0).then_some(programmed_at_ns),
                page_reads: media.field(zone, ZoneField::Reads),
                health: match media.load(zone) {
                    Ok((ZoneState::ReadOnly, _)) => Health::ReadOnly,
                    Ok((ZoneState::Offline, _)) => Health::Offline,
                    _ => Health::Good,
                },
                ..ZoneCounters::default()
            };
            let mut reliability = locked(reliability);
            // Chips may begin worn out.
            let born = reliability.counters(zone).map_or(Health::Good, |counters| counters.health);
            let health = saved.health.max(born);
            reliability.restore(zone, ZoneCounters { health, ..saved });
            drop(reliability);
            match health {
                health if health == saved.health => {}
                Health::Offline => self.apply_wear(zone, WearEvent::Offline),
                _ => self.apply_wear(zone, WearEvent::ReadOnly),
            }
        }
    }

    /// The zoned device.
    pub fn device(&self) -> &ZnsDevice {
        &self.device
    }

    /// What else it is.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Whether commands need the time of their arrival.
    pub fn wants_time(&self) -> bool {
        self.nand.is_some() || self.reliability.is_some() || self.any_fault.load(Relaxed)
    }

    /// What the clock of commands is behind nanoseconds since 1970: retention goes on while nothing runs.
    pub fn set_clock_offset_ns(&self, offset_ns: u64) {
        self.since_1970_ns.store(offset_ns, Relaxed);
    }

    fn calendar_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_add(self.since_1970_ns.load(Relaxed))
    }

    fn verdict(&self, arrival: Arrival, op: IoOp, sector: Sector, sectors: u64) -> Verdict {
        if !self.any_fault.load(Relaxed) {
            return Verdict::default();
        }
        let mut faults = locked(&self.faults);
        let verdict = faults.check(arrival.now_ns, op, sector, sectors);
        self.any_fault.store(!faults.is_empty(), Relaxed);
        verdict
    }

    fn charge(&self, arrival: Arrival, command: &Command) -> u64 {
        match &self.nand {
            Some(nand) => locked(nand).submit(arrival.now_ns, arrival.queue, command),
            None => 0,
        }
    }

    fn locate(&self, sector: Sector) -> (ZoneId, u64) {
        self.device.geometry().locate(sector).unwrap_or((ZoneId(u32::MAX), 0))
    }

    /// Reads, as [`ZnsDevice::read_with`].
    pub fn read_with(
        &self,
        arrival: Arrival,
        sector: Sector,
        sectors: u64,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Timed<Readable> {
        let verdict = self.verdict(arrival, IoOp::Read, sector, sectors);
        let mut due_ns = 0;
        let result = self.device.check_read(sector, sectors).and_then(|found| {
            let (retry_ns, lost) = self.read_flash(arrival, &found);
            let Readable { zone, offset, .. } = found;
            due_ns = self.charge(arrival, &Command::Read { zone, offset_sectors: offset, sectors, retry_ns });
            match verdict.media_error.or(lost) {
                Some(bad) => Err(ZnsError::Medium(bad)),
                None => self.device.read_with(sector, sectors, copy),
            }
        });
        Timed { result, due_ns: later(due_ns, &verdict, arrival) }
    }

    /// What reading flash adds: the time of retries, and the first sector whose data is lost.
    fn read_flash(&self, arrival: Arrival, found: &Readable) -> (u64, Option<Sector>) {
        let Some(reliability) = &self.reliability else { return (0, None) };
        if found.written == 0 {
            return (0, None);
        }
        let mut reliability = locked(reliability);
        let pattern = if reliability.wants_pattern() { self.pattern(found) } else { Pattern::RANDOM };
        let now = self.calendar_ns(arrival.now_ns);
        let outcome = reliability.read(now, found.zone, found.offset, found.written, pattern);
        let reads = reliability.counters(found.zone).map_or(0, |counters| counters.page_reads);
        drop(reliability);
        self.device.media().set_field(found.zone, ZoneField::Reads, reads);
        self.apply_wear(found.zone, outcome.event);
        let start = self.device.geometry().start(found.zone).0;
        (outcome.extra_latency_ns, outcome.first_bad_sector.map(|offset| Sector(start + offset)))
    }

    /// How many ones and zeroes there are matters to a drive without a randomizer.
    fn pattern(&self, found: &Readable) -> Pattern {
        let Some((at, bytes)) = self.device.media().data(found.zone, found.offset, found.written) else {
            return Pattern::RANDOM;
        };
        let mut copy = vec![0u8; bytes];
        // SAFETY: valid for `bytes`; a write beside it makes at worst a pattern of both.
        unsafe { std::ptr::copy_nonoverlapping(at.as_ptr(), copy.as_mut_ptr(), bytes) };
        Pattern::of(&copy)
    }

    fn apply_wear(&self, zone: ZoneId, event: WearEvent) {
        let done = match event {
            WearEvent::None => return,
            WearEvent::ReadOnly => self.device.wear_out(zone),
            WearEvent::Offline => self.device.fail(zone),
        };
        match done {
            Ok(()) => log::info!("zone {}: {event:?}, at the end of its life", zone.0),
            Err(error) => log::error!("zone {}: {event:?}: {error}", zone.0),
        }
    }

    /// Writes, as [`ZnsDevice::write_with`]; with `fua` durably.
    pub fn write_with(
        &self,
        arrival: Arrival,
        sector: Sector,
        sectors: u64,
        fua: bool,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Timed<()> {
        let verdict = self.verdict(arrival, IoOp::Write, sector, sectors);
        let landed = verdict.landed_sectors(sector, sectors, self.device.geometry().block_sectors());
        let (zone, offset_sectors) = self.locate(sector);
        let mut due_ns = 0;
        let written = match landed {
            0 => Ok(()),
            _ => self.device.write_with(arrival.slot, sector, landed, copy),
        };
        let result = written.and_then(|()| {
            self.programmed(arrival, zone);
            due_ns = self.charge(arrival, &Command::Write { zone, offset_sectors, sectors: landed });
            self.make_durable(zone, fua)?;
            if verdict.fails() { Err(ZnsError::Medium(Sector(sector.0 + landed))) } else { Ok(()) }
        });
        Timed { result, due_ns: later(due_ns, &verdict, arrival) }
    }

    /// Appends, as [`ZnsDevice::append_with`]; with `fua` durably.
    pub fn append_with(
        &self,
        arrival: Arrival,
        start: Sector,
        sectors: u64,
        fua: bool,
        copy: impl FnOnce(NonNull<u8>, usize) -> io::Result<()>,
    ) -> Timed<Sector> {
        let (zone, _) = self.locate(start);
        let written = self.device.media().load(zone).map_or(0, |(_, written)| written);
        let expected = Sector(start.0.saturating_add(written));
        let verdict = self.verdict(arrival, IoOp::Write, expected, sectors);
        let landed = verdict.landed_sectors(expected, sectors, self.device.geometry().block_sectors());
        let mut due_ns = 0;
        let placed = match landed {
            0 => Ok(expected),
            _ => self.device.append_with(arrival.slot, start, landed, copy),
        };
        let result = placed.and_then(|at| {
            self.programmed(arrival, zone);
            let offset_sectors = at.0.saturating_sub(start.0);
            due_ns = self.charge(arrival, &Command::Append { zone, offset_sectors, sectors: landed });
            self.make_durable(zone, fua)?;
            if verdict.fails() { Err(ZnsError::Medium(Sector(at.0 + landed))) } else { Ok(at) }
        });
        Timed { result, due_ns: later(due_ns, &verdict, arrival) }
    }

    fn make_durable(&self, zone: ZoneId, fua: bool) -> Result<(), ZnsError> {
        if fua { self.device.flush_zone(zone) } else { self.device.written_through() }
    }

    fn programmed(&self, arrival: Arrival, zone: ZoneId) {
        let Some(reliability) = &self.reliability else { return };
        let now = self.calendar_ns(arrival.now_ns);
        locked(reliability).programmed(now, zone);
        let media = self.device.media();
        if media.field(zone, ZoneField::ProgrammedAt) == 0 {
            media.set_field(zone, ZoneField::ProgrammedAt, now.max(1));
        }
    }

    /// Opens a zone.
    pub fn open_zone(&self, arrival: Arrival, zone: ZoneId) -> Timed<()> {
        self.manage(arrival, zone, Command::Open(zone), |ssd| ssd.device.open_zone(zone))
    }

    /// Closes a zone.
    pub fn close_zone(&self, arrival: Arrival, zone: ZoneId) -> Timed<()> {
        self.manage(arrival, zone, Command::Close(zone), |ssd| ssd.device.close_zone(zone))
    }

    /// Finishes a zone.
    pub fn finish_zone(&self, arrival: Arrival, zone: ZoneId) -> Timed<()> {
        let written_sectors = match self.device.media().load(zone) {
            Ok((ZoneState::Full, _)) => self.device.geometry().capacity_sectors(zone),
            Ok((_, written)) => written,
            Err(_) => 0,
        };
        let command = Command::Finish { zone, written_sectors };
        self.manage(arrival, zone, command, |ssd| ssd.device.finish_zone(zone))
    }

    /// Resets a zone; at the end of its life it becomes read-only.
    pub fn reset_zone(&self, arrival: Arrival, zone: ZoneId) -> Timed<()> {
        self.manage(arrival, zone, Command::Reset(zone), |ssd| ssd.reset_and_wear(zone))
    }

    fn reset_and_wear(&self, zone: ZoneId) -> Result<(), ZnsError> {
        let was_empty = matches!(self.device.media().load(zone), Ok((ZoneState::Empty, 0)));
        self.device.reset_zone(zone)?;
        // An empty zone has nothing to erase.
        if let Some(reliability) = self.reliability.as_ref().filter(|_| !was_empty) {
            let event = locked(reliability).reset(zone);
            self.apply_wear(zone, event);
        }
        Ok(())
    }

    /// Resets every zone that can be.
    pub fn reset_all(&self, arrival: Arrival) -> Timed<()> {
        self.manage(arrival, ZoneId(0), Command::ResetAll, |ssd| {
            (0..ssd.device.geometry().zones())
                .map(ZoneId)
                .filter(|zone| ssd.device.is_reset_by_all(*zone))
                .try_for_each(|zone| ssd.reset_and_wear(zone))
        })
    }

    fn manage(
        &self,
        arrival: Arrival,
        zone: ZoneId,
        command: Command,
        run: impl FnOnce(&Ssd) -> Result<(), ZnsError>,
    ) -> Timed<()> {
        let start = self.device.geometry().start(zone);
        let verdict = self.verdict(arrival, IoOp::Manage, start, self.device.geometry().zone_sectors());
        let result = run(self);
        let due_ns = if result.is_ok() { self.charge(arrival, &command) } else { 0 };
        Timed { result, due_ns: later(due_ns, &verdict, arrival) }
    }

    /// What a zone report costs.
    pub fn report(&self, arrival: Arrival, zone: ZoneId) -> Timed<()> {
        self.manage(arrival, zone, Command::Report, |_| Ok(()))
    }

    /// Flushes, as [`ZnsDevice::flush`].
    pub fn flush(&self, arrival: Arrival) -> Timed<()> {
        let verdict = self.verdict(arrival, IoOp::Flush, Sector(0), 0);
        let result = match verdict.drop_flush {
            true => Ok(()),
            false => self.device.flush(),
        };
        let due_ns = self.charge(arrival, &Command::Flush);
        Timed { result, due_ns: later(due_ns, &verdict, arrival) }
    }

    /// Does what `ublk-zns fault` asks for.
    ///
    /// # Errors
    /// One line that says what cannot be, and what would be right.
    pub fn fault(&self, now_ns: u64, action: &FaultAction) -> Result<Value, String> {
        let mut faults = locked(&self.faults);
        let answer = match action {
            FaultAction::Add { rule } => {
                json!({ "id": faults.add(now_ns, *rule).map_err(|e| e.to_string())? })
            }
            FaultAction::List => json!(faults.list(now_ns)),
            FaultAction::Remove { which } => {
                json!({ "removed": faults.remove(*which).map_err(|e| e.to_string())? })
            }
            FaultAction::Zone { zone, state } => {
                let forced = match state {
                    ForcedState::ReadOnly => self.device.wear_out(*zone),
                    ForcedState::Offline => self.device.fail(*zone),
                };
                forced.map_err(|e| e.to_string())?;
                json!({ "zone": zone })
            }
            FaultAction::PowerCut => {
                self.device.power_cut(self.models.seed ^ now_ns).map_err(|e| e.to_string())?;
                json!({ "power": "off" })
            }
            FaultAction::PowerOn => {
                if let (Some(nand), Ok(Some(mut fresh))) =
                    (&self.nand, self.models.nand(self.device.geometry()))
                    && self.restore_flash(&mut fresh).is_ok()
                {
                    *locked(nand) = fresh;
                }
                self.device.power_on();
                json!({ "power": "on" })
            }
        };
        self.any_fault.store(!faults.is_empty(), Relaxed);
        Ok(answer)
    }

    /// What the models know of the drive, for `stat`.
    pub fn statistics(&self) -> Value {
        let mut report = json!({ "seed": self.models.seed, "powered": self.device.is_powered() });
        if let Some(nand) = &self.nand {
            let stats = locked(nand).stats();
            report["profile"] = json!(self.models.profile.as_ref().map(|profile| &profile.name));
            report["die_utilisation"] = json!(stats.die_utilisation());
            report["channel_utilisation"] = json!(stats.channel_utilisation());
            report["write_amplification"] = json!(stats.write_amplification());
            report["nand"] = json!(stats);
        }
        if self.reliability.is_some() {
            report["errors"] = self.error_statistics();
        }
        report
    }

    fn error_statistics(&self) -> Value {
        let Some(reliability) = &self.reliability else { return Value::Null };
        let reliability = locked(reliability);
        let mut sum = ZoneCounters::default();
        for zone in (0..self.device.geometry().zones()).map(ZoneId) {
            let Some(counters) = reliability.counters(zone) else { continue };
            sum.pe_cycles = sum.pe_cycles.max(counters.pe_cycles);
            sum.page_reads += counters.page_reads;
            sum.raw_bit_errors += counters.raw_bit_errors;
            sum.bits_read += counters.bits_read;
            sum.retry_steps += counters.retry_steps;
            sum.uncorrectable_codewords += counters.uncorrectable_codewords;
        }
        json!({
            "most_pe_cycles": sum.pe_cycles,
            "raw_bit_errors": sum.raw_bit_errors,
            "bits_read": sum.bits_read,
            "rber": if sum.bits_read == 0 { 0.0 } else { sum.raw_bit_errors as f64 / sum.bits_read as f64 },
            "retry_steps": sum.retry_steps,
            "uncorrectable_codewords": sum.uncorrectable_codewords,
        })
    }
}

type Built = (Option<NandModel>, Option<Reliability>);

impl Models {
    /// Checks what the models say of themselves and of the device, before anything is made.
    ///
    /// # Errors
    /// [`ZnsError::Nand`], [`ZnsError::Reliability`].
    pub fn check(&self, geometry: &Geometry) -> Result<(), ZnsError> {
        self.build(geometry).map(drop)
    }

    fn build(&self, geometry: &Geometry) -> Result<Built, ZnsError> {
        let reliability = |params| Reliability::new(params, self.seed, geometry);
        Ok((self.nand(geometry)?, self.errors.as_ref().map(reliability).transpose()?))
    }

    fn nand(&self, geometry: &Geometry) -> Result<Option<NandModel>, ZnsError> {
        let nand = |profile| NandModel::new(profile, geometry, self.queues.max(1));
        Ok(self.profile.as_ref().map(nand).transpose()?)
    }
}

/// What faults add to the time a command is due.
fn later(due_ns: u64, verdict: &Verdict, arrival: Arrival) -> u64 {
    if verdict.added_ns == 0 && verdict.not_before_ns == 0 {
        return due_ns;
    }
    due_ns.max(arrival.now_ns).saturating_add(verdict.added_ns).max(verdict.not_before_ns)
}
