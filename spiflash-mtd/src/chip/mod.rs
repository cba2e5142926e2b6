//! A chip: the frame decoder, the operation state machine, registers, array and time, put together (pure).
//!
//! Commands are dispatched at the rise of CS# ([`Chip::deselect`]); what takes time is a job, whose effect is there when its
//! time is over ([`Chip::advance_to`]) and half there when it is interrupted (power, reset). The invariants:
//!
//! - a chip is a function of its part, its setup and the calls: it reads no clock, and a clone goes its own way;
//! - what a frame asks for happens at CS# rise or not at all (memories that are written like RAM: with each byte);
//! - [`crate::states::next`] decides what is ignored.

mod error;
mod execute;
mod input;
mod jobs;
mod nand;
mod output;
mod planted;
mod protection;
mod report;
#[cfg(test)]
mod rules;
mod snapshot;
mod stats;

pub use error::ChipError;
pub use report::{Effect, FrameReport, Reason};
pub use snapshot::{ChipState, Lasting};
pub use stats::Stats;

use crate::array::Array;
use crate::bus::Transfer;
use crate::command::{AddressMode, Lines};
use crate::frame::{Event as FrameEvent, FrameDecoder, FrameMode, Phase};
use crate::part::{Kind, Part};
use crate::regs::{Registers, Role, RoleMap};
use crate::reliability::{Layout, Reliability, ReliabilityParams};
use crate::states::{Event, State, next};
use jobs::{Job, Suspended};
use nand::NandState;
use planted::planted;
use std::sync::Arc;

const NS_PER_S: u64 = 1_000_000_000;
/// The first bytes of a frame's data, for commands that are not about the array: 18 of SST26's protection register at most.
const SMALL_BYTES: usize = 32;

/// What a chip is made with, besides its part.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Seed of all that is random: times, bit errors, the unique ID, bad blocks.
    pub seed: u64,
    /// The error and wear model.
    pub reliability: ReliabilityParams,
    /// Whether it has power, and has had it for long.
    pub powered: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { seed: 1, reliability: ReliabilityParams::default(), powered: true }
    }
}

/// The latches and modes that frames set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Modes {
    /// 06h.
    wel: bool,
    /// 50h.
    wel_volatile: bool,
    /// 66h was the last frame.
    reset_armed: bool,
    four_byte: bool,
    qpi: bool,
    /// Continuous read: the opcode that the next frame has without sending it.
    implied_opcode: Option<u8>,
    /// Reads with wrap stay within so many bytes.
    burst_bytes: Option<u32>,
    /// SST25 AAI: where the next word goes.
    aai_at: Option<u64>,
    /// Reads and programs go to the one-time area (Macronix B1h).
    otp: bool,
    /// SRP1 = 1, SRP0 = 0 was written: registers are locked until power is lost.
    locked_until_power: bool,
    /// SST26: the block-protection register is locked until power is lost.
    lock_down: bool,
    wp_low: bool,
}

/// One chip.
#[derive(Debug, Clone)]
pub struct Chip {
    part: Arc<Part>,
    sfdp: Arc<[u8]>,
    roles: RoleMap,
    reliability: Arc<Reliability>,
    seed: u64,
    frame: FrameDecoder,
    /// Whether the frame's command is one that the chip, in its state, listens to; and why not.
    heard: Result<(), Reason>,
    small: [u8; SMALL_BYTES],
    /// The page buffer: what the frame programs, FFh elsewhere; while a program runs, what it programs.
    latch: Vec<u8>,
    /// The last data byte before the one on the lines, for data that is not aligned with the host's bytes.
    carry: u8,
    registers: Registers,
    array: Array,
    security: Array,
    locks: Vec<bool>,
    /// The blocks that the locks are of, and the register bit that turns them on, if there is one.
    lock_units: Arc<[std::ops::Range<u64>]>,
    lock_bit: Option<crate::regs::BitRef>,
    nand: Option<NandState>,
    modes: Modes,
    state: State,
    now_ns: u64,
    /// When the present state ends, if it is one that time ends.
    until_ns: u64,
    job: Option<Job>,
    suspended: Option<Suspended>,
    clock_hz: u32,
    clock_rest: u64,
    /// How often in turn BUSY has been read, and after how many the chip gets ready at once.
    polls: u32,
    poll_skip: Option<u32>,
    cut_at_ns: Option<u64>,
    draws: u64,
    stats: Stats,
    /// A bug planted by a test.
    #[cfg(test)]
    pub(crate) mutant: Option<planted::Mutant>,
}

impl Chip {
    /// A chip as delivered.
    ///
    /// # Errors
    /// [`ChipError::Reliability`] for error parameters that do not fit the part.
    pub fn new(part: Arc<Part>, setup: &Setup) -> Result<Chip, ChipError> {
        let (units, unit_bytes, page_bytes) = layout(&part);
        let array = Array::new(units, unit_bytes, page_bytes);
        let pages = array.len().div_ceil(page_bytes as u64) as u32;
        let layout = Layout { blocks: units as u32, pages, page_bytes: page_bytes as u32 };
        let reliability = Arc::new(Reliability::new(&setup.reliability, setup.seed, layout)?);
        let security = match &part.security {
            Some(spec) => Array::new(usize::from(spec.registers), spec.register_bytes as usize, 256),
            None => Array::new(0, 256, 256),
        };
        let mut chip = Chip {
            sfdp: crate::sfdp::table(&part).into(),
            roles: RoleMap::new(&part),
            reliability,
            seed: setup.seed,
            frame: FrameDecoder::new(part.commands.clone()),
            heard: Ok(()),
            small: [0; SMALL_BYTES],
            latch: vec![0xFF; (part.geometry.page_bytes as usize).max(256)],
            carry: 0xFF,
            registers: Registers::new(&part),
            array,
            security,
            locks: Vec::new(),
            lock_units: part.locks.iter().flat_map(|rules| rules.units(part.geometry.size_bytes)).collect(),
            lock_bit: part
                .locks
                .as_ref()
                .and_then(|rules| crate::regs::find_bit(&part, rules.selected_by()?)),
            nand: NandState::new(&part, setup.seed),
            modes: Modes::default(),
            state: State::Off,
            now_ns: 0,
            until_ns: 0,
            job: None,
            suspended: None,
            clock_hz: part.bus.max_read_clock_hz,
            clock_rest: 0,
            polls: 0,
            poll_skip: None,
            cut_at_ns: None,
            draws: 0,
            stats: Stats::default(),
            #[cfg(test)]
            mutant: None,
            part,
        };
        chip.mark_bad_blocks();
        if setup.powered {
            chip.set_power(true);
            chip.advance_to(chip.until_ns);
            chip.now_ns = 0;
        }
        Ok(chip)
    }

    /// Its part.
    pub fn part(&self) -> &Arc<Part> {
        &self.part
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Where in a frame it is.
    pub fn phase(&self) -> Phase {
        self.frame.phase()
    }

    /// Its time, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// When what it is doing is over; `None` while it is doing nothing that ends by itself.
    pub fn busy_until_ns(&self) -> Option<u64> {
        self.state.is_timed().then_some(self.until_ns)
    }

    /// The array.
    pub fn array(&self) -> &Array {
        &self.array
    }

    /// The array, to load an image into it.
    pub fn array_mut(&mut self) -> &mut Array {
        &mut self.array
    }

    /// Security registers or the one-time area, one unit each.
    pub fn security(&self) -> &Array {
        &self.security
    }

    /// What it has done.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The error and wear model.
    pub fn reliability(&self) -> &Reliability {
        &self.reliability
    }

    /// The clock of SCK from now on; 0: bytes take no time.
    pub fn set_clock_hz(&mut self, hz: u32) {
        self.clock_hz = hz;
        self.clock_rest = 0;
    }

    /// After BUSY has been read `polls` times in turn, the chip gets ready at once. `None`: never.
    pub fn set_poll_skip(&mut self, polls: Option<u32>) {
        self.poll_skip = polls;
    }

    /// Power goes at this time, to the nanosecond; `None`: it does not.
    pub fn set_cut_at_ns(&mut self, at_ns: Option<u64>) {
        self.cut_at_ns = at_ns;
    }

    /// When power will go; `None`: it will not.
    pub fn cut_at_ns(&self) -> Option<u64> {
        self.cut_at_ns
    }

    /// Whether the WP# pin is low.
    pub fn is_write_protect_low(&self) -> bool {
        self.modes.wp_low
    }

    /// The WP# pin.
    pub fn set_write_protect(&mut self, low: bool) {
        self.modes.wp_low = low;
    }

    fn role(&self, role: Role) -> bool {
        self.roles.get(role).is_some_and(|at| self.registers.bit(at))
    }

    fn set_role(&mut self, role: Role, on: bool) {
        if let Some(at) = self.roles.get(role) {
            self.registers.set_bit(at, on);
        }
    }

    fn next_draw(&mut self) -> u64 {
        self.draws += 1;
        self.draws
    }

    // --- Time and power ---

    /// Time passes until `now_ns`; nothing when that is past.
    pub fn advance_to(&mut self, now_ns: u64) {
        while let Some(at) = self.next_change_ns(now_ns) {
            self.now_ns = self.now_ns.max(at);
            if self.cut_at_ns.is_some_and(|cut| cut <= at) {
                self.cut_at_ns = None;
                self.set_power(false);
            } else {
                self.finish();
            }
        }
        self.now_ns = self.now_ns.max(now_ns);
    }

    fn next_change_ns(&self, limit_ns: u64) -> Option<u64> {
        let done = self.state.is_timed().then_some(self.until_ns);
        let at = done.into_iter().chain(self.cut_at_ns).min()?;
        (at <= limit_ns).then_some(at)
    }

    /// The time of so many clocks passes.
    fn tick(&mut self, clocks: u64) {
        if self.clock_hz == 0 {
            return;
        }
        let total = clocks * NS_PER_S + self.clock_rest;
        let hz = u64::from(self.clock_hz);
        self.clock_rest = total % hz;
        self.advance_to(self.now_ns.saturating_add(total / hz));
    }

    /// Whether the power goes before the last of so many clocks has ended.
    fn loses_power_within(&self, clocks: u64) -> bool {
        let Some(cut) = self.cut_at_ns.filter(|_| self.clock_hz > 0) else { return false };
        let time_ns = (clocks * NS_PER_S + self.clock_rest) / u64::from(self.clock_hz);
        cut < self.now_ns.saturating_add(time_ns)
    }

    /// How many bytes can be clocked before the power goes.
    fn bytes_before_cut(&self, lines: Lines) -> usize {
        match self.cut_at_ns {
            None => usize::MAX,
            Some(_) if self.clock_hz == 0 => usize::MAX,
            Some(cut) => {
                let clocks = cut.saturating_sub(self.now_ns) as u128 * u128::from(self.clock_hz)
                    / u128::from(NS_PER_S);
                (clocks / u128::from(lines.clocks_per_byte())).min(usize::MAX as u128) as usize
            }
        }
    }

    /// Goes to the state after `event`, for `time_ns` if it is one that time ends. `false`: the event is ignored.
    fn go(&mut self, event: Event, time_ns: u64) -> bool {
        let Some(state) = next(self.state, event) else { return false };
        let no_time = planted!(self, NeverBusy)
            || (planted!(self, SuspendsRegisterWrites) && event == Event::Suspend)
            || (planted!(self, WakesAtOnce) && event == Event::Release);
        let time_ns = if no_time { 0 } else { time_ns };
        self.state = state;
        self.until_ns = self.now_ns.saturating_add(time_ns);
        if no_time && state.is_timed() {
            self.finish();
        }
        self.polls = 0;
        true
    }

    /// Power comes or goes. What is under way when it goes is left half done.
    pub fn set_power(&mut self, on: bool) {
        if on {
            if self.go(Event::PowerOn, self.part.timing.power_up_ns) {
                // Registers that were locked until the power went are free again (W25Q128JV, section 7.1.7).
                if let Some(at) = self.roles.get(Role::Srp1)
                    && self.registers.stored_bit(at)
                    && !self.roles.get(Role::Srp0).is_some_and(|at| self.registers.stored_bit(at))
                {
                    self.registers.store_bit(at, false);
                }
                self.wake();
            }
            return;
        }
        if self.state != State::Off {
            self.interrupt_all();
            self.frame = FrameDecoder::new(self.part.commands.clone());
            self.go(Event::PowerOff, 0);
            if !planted!(self, PowerKeepsModes) {
                self.modes = Modes { wp_low: self.modes.wp_low, ..Modes::default() };
            }
            self.stats.power_cycles += 1;
        }
    }

    /// Everything volatile as after power-up.
    fn wake(&mut self) {
        self.registers.power_up(&self.part);
        let locked = self.modes.locked_until_power;
        let resetting = self.state == State::Idle;
        if (planted!(self, ResetKeepsModes) && resetting) || (planted!(self, PowerKeepsModes) && !resetting) {
            return;
        }
        self.modes = Modes { wp_low: self.modes.wp_low, ..Modes::default() };
        self.modes.locked_until_power = locked && resetting;
        self.modes.four_byte = self.part.address_mode() == AddressMode::FourByte || self.role(Role::Adp);
        self.reset_locks();
        self.suspended = None;
        self.job = None;
        if self.nand.is_some() {
            self.nand_power_up();
        }
    }

    // --- Frames ---

    /// CS# falls.
    pub fn select(&mut self) {
        if self.part.bus.wakes_by_select {
            self.go(Event::Release, self.part.timing.release_ns);
        }
        let mode = FrameMode {
            address: if self.modes.four_byte && !planted!(self, FourByteModeIgnored) {
                AddressMode::FourByte
            } else {
                AddressMode::ThreeByte
            },
            qpi: self.modes.qpi,
            dummy_clocks: self.dummy_clocks(false),
            quad_dummy_clocks: self.dummy_clocks(true),
            implied_opcode: self.modes.implied_opcode,
            no_address: self.modes.aai_at.and(Some(0xAD)),
        };
        self.frame.select(mode);
        self.carry = 0xFF;
        self.heard = Ok(());
        if mode.implied_opcode.is_some() {
            self.begin_command();
        }
    }

    /// The clocks between address and data that the part's register asks for; 0: as the command has it.
    fn dummy_clocks(&self, quad: bool) -> u8 {
        let Some(rule) = self.part.bus.dummy.as_ref().filter(|_| !planted!(self, DummyIgnored)) else {
            return 0;
        };
        if rule.only_qpi && !self.modes.qpi {
            return 0;
        }
        rule.clocks_at(self.registers.value(rule.register), quad).unwrap_or(0)
    }

    /// The opcode is known: does the chip listen?
    fn begin_command(&mut self) {
        self.heard = self.hears();
        let program =
            self.frame.spec().is_some_and(|spec| matches!(spec.data, crate::command::DataPhase::In { .. }));
        if program && self.heard.is_ok() {
            self.begin_input();
        }
    }

    /// Bytes are clocked.
    pub fn transfer(&mut self, transfer: Transfer<'_>) {
        match transfer {
            Transfer::Write { lines, bytes } => self.exchange(lines, bytes.len(), Wires::Write(bytes)),
            Transfer::Read { lines, bytes } => self.exchange(lines, bytes.len(), Wires::Read(bytes)),
            Transfer::Both { bytes } => self.exchange(Lines::Single, bytes.len(), Wires::Both(bytes)),
        }
    }

    fn exchange(&mut self, lines: Lines, count: usize, mut wires: Wires<'_>) {
        let clocks = u64::from(lines.clocks_per_byte());
        let mut at = 0;
        while at < count {
            let most = if matches!(wires, Wires::Read(_)) { ZEROS.len() } else { usize::MAX };
            let most = if self.frame.phase() == Phase::DataIn { most } else { usize::MAX };
            let many = (count - at).min(self.bytes_before_cut(lines)).min(most);
            let heard = self.heard.is_ok() && self.state.hears();
            let many = match self.frame.phase() {
                Phase::DataOut if self.streams() || !heard => self.frame.take_data(many, lines),
                Phase::DataIn => self.frame.take_data(many, lines),
                _ => 0,
            };
            if many > 0 {
                let first = self.frame.data_bytes() - many as u64;
                match self.frame.phase() {
                    Phase::DataOut if heard => wires.fill(at, many, |out| self.output(first, out)),
                    Phase::DataOut => wires.release(at, many),
                    _ => {
                        if heard {
                            self.input(first, wires.sent(at, many));
                        }
                        wires.release(at, many);
                    }
                }
                self.tick(clocks * many as u64);
                at += many;
                continue;
            }
            self.byte(lines, at, &mut wires);
            at += 1;
        }
    }

    /// One byte that is not data in bulk.
    fn byte(&mut self, lines: Lines, at: usize, wires: &mut Wires<'_>) {
        let clocks = u64::from(lines.clocks_per_byte());
        if self.loses_power_within(clocks) {
            // It never was a whole byte: what is written at once (MRAM) is not written.
            self.tick(clocks);
            return wires.release(at, 1);
        }
        let sent = wires.sent(at, 1).first().copied().unwrap_or(0);
        let event = self.frame.clock(sent, lines);
        match event {
            FrameEvent::Opcode { known: true, .. } => self.begin_command(),
            FrameEvent::DataIn { index, byte } if self.heard.is_ok() && self.state.hears() => {
                self.input(index, &[byte]);
            }
            _ => {}
        }
        match event {
            FrameEvent::DataOut { index } if self.heard.is_ok() && self.state.hears() => {
                wires.fill(at, 1, |out| self.output(index, out));
            }
            _ => wires.release(at, 1),
        }
        self.tick(clocks);
    }

    /// CS# rises, `stray_clocks` after the last whole byte (0 on a bus of whole bytes): what was asked for takes effect.
    /// `None` when no whole opcode came.
    pub fn deselect(&mut self, stray_clocks: u8) -> Option<FrameReport> {
        let armed = std::mem::take(&mut self.modes.reset_armed);
        if planted!(self, EnableLastsForever) {
            self.modes.reset_armed = armed;
        }
        let command = self.frame.deselect(stray_clocks)?;
        let effect = self.execute(&command, armed);
        self.stats.count(command.opcode, &effect);
        Some(FrameReport::new(&command, effect, self.now_ns))
    }
}

static ZEROS: [u8; 256] = [0; 256];

/// The bytes of a transfer, both ways.
enum Wires<'a> {
    Write(&'a [u8]),
    Read(&'a mut [u8]),
    Both(&'a mut [u8]),
}

impl Wires<'_> {
    /// What the host sends: zeros where it reads.
    fn sent(&self, at: usize, count: usize) -> &[u8] {
        match self {
            Wires::Write(bytes) => bytes.get(at..at + count),
            Wires::Both(bytes) => bytes.get(at..at + count),
            Wires::Read(_) => ZEROS.get(..count),
        }
        .unwrap_or(&[])
    }

    /// What the chip drives.
    fn fill(&mut self, at: usize, count: usize, drive: impl FnOnce(&mut [u8])) {
        match self {
            Wires::Read(bytes) | Wires::Both(bytes) => {
                if let Some(out) = bytes.get_mut(at..at + count) {
                    drive(out);
                }
            }
            // The chip drives all the same: a status register that is read is polled.
            Wires::Write(_) => drive(&mut vec![0; count]),
        }
    }

    /// The chip drives nothing: pulled up.
    fn release(&mut self, at: usize, count: usize) {
        if let Wires::Read(bytes) | Wires::Both(bytes) = self
            && let Some(out) = bytes.get_mut(at..at + count)
        {
            out.fill(0xFF);
        }
    }
}

/// Units, bytes of a unit and bytes of a page of a part's array.
pub(crate) fn layout(part: &Part) -> (usize, usize, usize) {
    let geometry = &part.geometry;
    let (unit, page) = match (part.kind, &part.nand) {
        (Kind::Nand, Some(nand)) => {
            let page = geometry.page_bytes as usize + nand.spare_bytes as usize;
            let units =
                geometry.size_bytes / (u64::from(geometry.page_bytes) * u64::from(nand.pages_per_block));
            return (units as usize, page * nand.pages_per_block as usize, page);
        }
        (Kind::Mram | Kind::Fram, _) => (4096.min(geometry.size_bytes), 256),
        _ => (u64::from(geometry.sector_bytes), (geometry.page_bytes as usize).max(256)),
    };
    ((geometry.size_bytes / unit) as usize, unit as usize, page)
}
