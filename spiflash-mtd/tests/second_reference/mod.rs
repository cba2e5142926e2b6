//! A second W25Q128JV, written from the data sheet's rules and not from `src/`: one flat array, one byte at a time, a `match` on
//! the opcode. What the differential test compares the model with.
//!
//! The rules are those of the Winbond W25Q128JV data sheet, revision F, as remembered, with numbers from
//! `parts/w25q128jv.toml`. Bytes take no time here; it passes by `advance` only.
pub(crate) mod frames;
mod rules;

pub(crate) use rules::Rules;

use std::ops::Range;

const SIZE: usize = 0x100_0000;
const ALL: Range<usize> = 0..SIZE;

/// What a running operation will do when it is done.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    WriteStatus([Option<u8>; 3]),
    Program { page: usize, data: Vec<u8> },
    Erase(Range<usize>),
    ProgramSecurity { register: usize, data: Vec<u8> },
    EraseSecurity(usize),
    ChipErase,
}

#[derive(Debug, Clone)]
struct Job {
    work: Work,
    /// When it began or was resumed.
    since: u64,
    /// How long it still had to go then.
    left: u64,
}

impl Job {
    fn end(&self) -> u64 {
        self.since + self.left
    }
}

/// What the chip hears.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Power {
    Off,
    /// Nothing until then: power-up, reset, release.
    Deaf(u64),
    On,
    Asleep,
}

#[derive(Debug, Default)]
struct Frame {
    dead: bool,
    bytes: usize,
    opcode: u8,
    address: usize,
    address_left: usize,
    address_lines: u8,
    mode_left: usize,
    dummy_left: u8,
    data: Vec<u8>,
    /// Data bytes that the chip sent.
    sent: usize,
}

/// The chip.
pub(crate) struct Reference {
    pub(crate) rules: Rules,
    pub(crate) array: Vec<u8>,
    pub(crate) security: [Vec<u8>; 3],
    pub(crate) sfdp: Vec<u8>,
    pub(crate) unique_id: Vec<u8>,
    /// What power loss leaves of the status registers, and what is in force.
    pub(crate) stored: [u8; 3],
    pub(crate) live: [u8; 3],
    pub(crate) wp_low: bool,
    /// Cut off: the harness takes what is left from the model.
    pub(crate) interrupted: Vec<Work>,
    now: u64,
    power: Power,
    wel: bool,
    wel_volatile: bool,
    reset_armed: bool,
    locked_down: bool,
    wrap: Option<usize>,
    sector_locks: [bool; 32],
    block_locks: [bool; 256],
    job: Option<Job>,
    /// Being suspended until then.
    suspending: Option<u64>,
    suspended: Option<Job>,
    frame: Frame,
}

impl Reference {
    pub(crate) fn new(sfdp: Vec<u8>, unique_id: Vec<u8>, rules: Rules) -> Reference {
        Reference {
            rules,
            array: vec![0xFF; SIZE],
            security: [vec![0xFF; 256], vec![0xFF; 256], vec![0xFF; 256]],
            sfdp,
            unique_id,
            stored: [0x00, 0x02, 0x60],
            live: [0x00, 0x02, 0x60],
            wp_low: false,
            interrupted: Vec::new(),
            now: 0,
            power: Power::On,
            wel: false,
            wel_volatile: false,
            reset_armed: false,
            locked_down: false,
            wrap: None,
            sector_locks: [true; 32],
            block_locks: [true; 256],
            job: None,
            suspending: None,
            suspended: None,
            frame: Frame::default(),
        }
    }

    /// When what is under way ends, if something is.
    pub(crate) fn busy_until(&self) -> Option<u64> {
        match self.power {
            Power::Deaf(until) => Some(until),
            _ => self.suspending.or(self.job.as_ref().map(Job::end)),
        }
    }

    fn is_busy(&self) -> bool {
        self.job.is_some() || self.suspending.is_some()
    }

    pub(crate) fn advance(&mut self, now: u64) {
        self.now = now;
        if let Power::Deaf(until) = self.power
            && until <= now
        {
            self.power = Power::On;
        }
        if let Some(until) = self.suspending
            && until <= now
        {
            self.suspending = None;
            self.suspended = self.job.take();
        }
        if self.suspending.is_none()
            && let Some(job) = self.job.take_if(|job| job.end() <= now)
        {
            self.complete(job.work);
        }
    }

    fn complete(&mut self, work: Work) {
        self.wel = false;
        self.wel_volatile = false;
        match work {
            Work::WriteStatus(values) => self.put_status(values, true),
            Work::Program { page, data } => and(&mut self.array[page..page + 256], &data),
            Work::Erase(range) => self.array[range].fill(0xFF),
            Work::ProgramSecurity { register, data } => and(&mut self.security[register], &data),
            Work::EraseSecurity(register) => self.security[register].fill(0xFF),
            Work::ChipErase => self.array.fill(0xFF),
        }
    }

    pub(crate) fn set_power(&mut self, on: bool) {
        match (on, self.power) {
            (true, Power::Off) => self.power = Power::Deaf(self.now + 20_000),
            (false, _) => {
                self.lose_everything();
                // Power Supply Lock-Down ends with the power, and its bit with it.
                self.locked_down = false;
                if self.rules.lock_ends_with_power || self.stored[0] & 0x80 == 0 {
                    self.stored[1] &= !1;
                }
                self.live = self.stored;
                self.power = Power::Off;
            }
            _ => (),
        }
    }

    /// What a reset and a loss of power have in common.
    fn lose_everything(&mut self) {
        self.interrupted.extend(self.job.take().map(|job| job.work));
        self.interrupted.extend(self.suspended.take().map(|job| job.work));
        self.suspending = None;
        self.wel = false;
        self.wel_volatile = false;
        self.reset_armed = false;
        self.wrap = None;
        self.sector_locks = [true; 32];
        self.block_locks = [true; 256];
        self.live = self.stored;
    }

    // ---------------------------------------------------------------------------------------------------------------- registers

    fn status(&self, register: usize) -> u8 {
        let mut value = self.live[register];
        if register == 0 {
            value |= u8::from(self.is_busy()) | u8::from(self.wel) << 1;
        }
        if register == 1 {
            let suspending = self.suspending.is_some() && self.rules.sus_at_once;
            value |= u8::from(self.suspended.is_some() || suspending) << 7;
        }
        value
    }

    pub(crate) fn describe(&self) -> String {
        let (job, suspended) =
            (self.job.as_ref().map(|job| &job.work), self.suspended.as_ref().map(|job| &job.work));
        let mut text = format!(
            "{:?} doing {job:x?} suspending {:?} suspended {suspended:x?}",
            self.power, self.suspending
        );
        text.truncate(300);
        text
    }

    /// What 05h, 35h and 15h would read, when they can.
    pub(crate) fn registers(&self) -> Option<[u8; 3]> {
        (self.power == Power::On).then(|| [self.status(0), self.status(1), self.status(2)])
    }

    fn quad_enabled(&self) -> bool {
        self.live[1] & 0x02 != 0
    }

    fn status_protected(&self) -> bool {
        let srp0 = self.live[0] & 0x80 != 0;
        let srp1 = self.live[1] & 0x01 != 0;
        if srp0 && srp1 || self.locked_down {
            return true;
        }
        srp0 && self.wp_low && !(self.rules.qe_takes_wp && self.quad_enabled())
    }

    fn write_status(&mut self) {
        let values = match (self.frame.opcode, self.frame.data.as_slice()) {
            (0x01, [a]) => [Some(*a), None, None],
            (0x01, [a, b]) => [Some(*a), Some(*b), None],
            (0x31, [a]) => [None, Some(*a), None],
            (0x11, [a]) => [None, None, Some(*a)],
            _ => return,
        };
        if !(self.wel || self.wel_volatile) || self.status_protected() {
            return;
        }
        if self.suspended.is_some() && (self.rules.no_volatile_write_in_suspend || !self.wel_volatile) {
            return;
        }
        if self.wel_volatile {
            self.wel_volatile = false;
            self.wel = false;
            self.put_status(values, false);
        } else {
            self.start(Work::WriteStatus(values), 10_000_000);
        }
    }

    /// LB1 to LB3 are never set back; other bits than these are not written.
    fn put_status(&mut self, values: [Option<u8>; 3], for_good: bool) {
        for (i, (written, once)) in [(0xFC, 0), (0x7B, 0x38), (0x64, 0)].into_iter().enumerate() {
            let Some(value) = values[i] else { continue };
            if for_good || self.rules.volatile_lock_bits {
                self.live[i] = value & written | self.live[i] & once;
            } else {
                self.live[i] = value & written & !once | self.live[i] & once;
            }
            if for_good {
                self.stored[i] = value & written | self.stored[i] & once;
            }
        }
        self.see_lock_down();
    }

    /// SRP1 set: Power Supply Lock-Down.
    pub(crate) fn see_lock_down(&mut self) {
        let srp0 = self.live[0] & 0x80 != 0;
        let srp1 = self.live[1] & 0x01 != 0;
        self.locked_down |= srp1 && (self.rules.lock_ends_with_power || !srp0);
    }

    // --------------------------------------------------------------------------------------------------------------- protection

    /// Table "Status Register Memory Protection".
    fn protected_by_bits(&self) -> Range<usize> {
        let sr1 = self.live[0];
        let bp = sr1 >> 2 & 7;
        let bottom = sr1 & 0x20 != 0;
        let small = sr1 & 0x40 != 0;
        let length = match (small, bp) {
            (_, 0) => 0,
            (_, 7) => SIZE,
            (false, 1) => 0x04_0000,
            (false, 2) => 0x08_0000,
            (false, 3) => 0x10_0000,
            (false, 4) => 0x20_0000,
            (false, 5) => 0x40_0000,
            (false, _) => 0x80_0000,
            (true, 1) => 0x1000,
            (true, 2) => 0x2000,
            (true, 3) => 0x4000,
            (true, _) => 0x8000,
        };
        let complement = self.live[1] & 0x40 != 0;
        match (bottom, complement) {
            (false, false) => SIZE - length..SIZE,
            (false, true) => 0..SIZE - length,
            (true, false) => 0..length,
            (true, true) => length..SIZE,
        }
    }

    fn lock_of(&mut self, address: usize) -> &mut bool {
        match address >> 16 {
            0 => &mut self.sector_locks[address >> 12 & 15],
            255 => &mut self.sector_locks[16 + (address >> 12 & 15)],
            block => &mut self.block_locks[block],
        }
    }

    fn lock(&mut self, address: usize, locked: bool) {
        if self.wel {
            *self.lock_of(address) = locked;
            self.wel = self.rules.locks_keep_wel;
        }
    }

    fn lock_all(&mut self, locked: bool) {
        if self.wel {
            self.sector_locks = [locked; 32];
            self.block_locks = [locked; 256];
            self.wel = self.rules.locks_keep_wel;
        }
    }

    fn protected(&mut self, range: Range<usize>) -> bool {
        if self.live[2] & 0x04 == 0 {
            let by_bits = self.protected_by_bits();
            return by_bits.start.max(range.start) < by_bits.end.min(range.end);
        }
        range.step_by(0x1000).any(|address| *self.lock_of(address))
    }

    // --------------------------------------------------------------------------------------------------------------- operations

    fn start(&mut self, work: Work, left: u64) {
        self.job = Some(Job { work, since: self.now, left });
    }

    /// tBP1 and tBP2 for each byte after it, at most tPP.
    fn program_time(bytes: usize) -> u64 {
        (30_000 + (bytes.min(256) as u64 - 1) * 2_500).min(400_000)
    }

    /// Page data as the chip's buffer has it: 256 bytes, FFh where nothing was sent, later bytes over earlier ones.
    fn page_buffer(&self) -> Vec<u8> {
        let mut buffer = vec![0xFF; 256];
        for (i, byte) in self.frame.data.iter().enumerate() {
            buffer[(self.frame.address + i) % 256] = *byte;
        }
        buffer
    }

    fn program(&mut self) {
        let page = self.frame.address & !0xFF;
        if self.frame.data.is_empty() || !self.wel || self.protected(page..page + 256) {
            return;
        }
        match &self.suspended {
            Some(Job { work: Work::Erase(range), .. }) if !range.contains(&page) => (),
            None | Some(Job { work: Work::EraseSecurity(_), .. }) => (),
            _ => return,
        }
        let time = Self::program_time(self.frame.data.len());
        self.start(Work::Program { page, data: self.page_buffer() }, time);
    }

    fn erase(&mut self, bytes: usize, time: u64) {
        let begin = self.frame.address & !(bytes - 1);
        let range = begin..begin + bytes;
        if self.wel && self.suspended.is_none() && !self.protected(range.clone()) {
            self.start(Work::Erase(range), time);
        }
    }

    fn chip_erase(&mut self) {
        if self.wel && self.suspended.is_none() && !self.protected(ALL) {
            self.start(Work::ChipErase, 40_000_000_000);
        }
    }

    /// Which security register an address names.
    fn security_register(&self) -> Option<usize> {
        match self.frame.address >> 8 {
            0x10 => Some(0),
            0x20 => Some(1),
            0x30 => Some(2),
            _ => None,
        }
    }

    fn security_locked(&self, register: usize) -> bool {
        self.live[1] & (0x08 << register) != 0
    }

    fn program_security(&mut self) {
        let Some(register) = self.security_register() else { return };
        if self.frame.data.is_empty() || !self.wel || self.security_locked(register) {
            return;
        }
        match &self.suspended {
            None => (),
            Some(Job { work: Work::Erase(_), .. }) => (),
            Some(Job { work: Work::EraseSecurity(which), .. }) => {
                if *which == register && self.rules.suspended_register_is_barred {
                    return;
                }
            }
            _ => return,
        }
        let time = Self::program_time(self.frame.data.len());
        self.start(Work::ProgramSecurity { register, data: self.page_buffer() }, time);
    }

    fn erase_security(&mut self) {
        let Some(register) = self.security_register() else { return };
        if self.wel && self.suspended.is_none() && !self.security_locked(register) {
            self.start(Work::EraseSecurity(register), 45_000_000);
        }
    }

    fn suspend(&mut self) {
        let Some(job) = &mut self.job else { return };
        let can = match job.work {
            Work::Program { .. } | Work::Erase(_) => true,
            Work::ProgramSecurity { .. } | Work::EraseSecurity(_) => !self.rules.security_goes_on,
            _ => false,
        };
        if !can || self.suspended.is_some() || self.suspending.is_some() {
            return;
        }
        let progress = self.now - job.since;
        if progress >= 20_000 {
            job.left -= progress;
        }
        job.since = self.now;
        self.suspending = Some(self.now + 20_000);
    }

    fn resume(&mut self) {
        if let Some(mut job) = self.suspended.take() {
            job.since = self.now;
            self.job = Some(job);
        }
    }

    // ------------------------------------------------------------------------------------------------------------------- frames

    pub(crate) fn select(&mut self) {
        self.frame = Frame::default();
    }

    /// A byte on so many lines: what the host drives, and what it sees.
    pub(crate) fn clock(&mut self, driven: u8, lines: u8) -> u8 {
        self.frame.bytes += 1;
        if self.frame.dead {
            return 0xFF;
        }
        if self.frame.bytes == 1 {
            self.frame.opcode = driven;
            self.frame.dead = lines != 1 || !self.hears(driven) || !self.lay_out(driven);
        } else if self.frame.address_left > 0 {
            self.frame.address_left -= 1;
            self.frame.address = self.frame.address << 8 | usize::from(driven);
            self.frame.dead = lines != self.frame.address_lines;
        } else if self.frame.mode_left > 0 {
            self.frame.mode_left -= 1;
            self.frame.dead = lines != self.frame.address_lines;
        } else if self.frame.dummy_left > 0 {
            self.frame.dummy_left -= (8 / lines).min(self.frame.dummy_left);
        } else {
            return self.data(driven, lines);
        }
        0xFF
    }

    fn hears(&self, opcode: u8) -> bool {
        match self.power {
            Power::Off | Power::Deaf(_) => false,
            Power::Asleep => opcode == 0xAB,
            Power::On if self.is_busy() => matches!(opcode, 0x05 | 0x35 | 0x15 | 0x75 | 0x66 | 0x99),
            Power::On => true,
        }
    }

    /// What follows an opcode; false where there is no such command.
    fn lay_out(&mut self, opcode: u8) -> bool {
        let quad = self.quad_enabled() || !self.rules.quad_needs_qe;
        let (address, lines, mode, dummy) = match opcode {
            0x04 | 0x06 | 0x50 | 0x05 | 0x35 | 0x15 | 0x01 | 0x31 | 0x11 | 0x60 | 0xC7 | 0x75 | 0x7A => {
                (0, 1, 0, 0)
            }
            0x66 | 0x99 | 0x7E | 0x98 | 0x9F | 0xB9 => (0, 1, 0, 0),
            0xAB => (0, 1, 0, 24),
            0x4B => (0, 1, 0, 32),
            0x02 | 0x03 | 0x20 | 0x36 | 0x39 | 0x3D | 0x42 | 0x44 | 0x52 | 0x90 | 0xD8 => (3, 1, 0, 0),
            0x0B | 0x3B | 0x48 | 0x5A => (3, 1, 0, 8),
            0xBB => (3, 2, 1, 0),
            0x32 if quad => (3, 1, 0, 0),
            0x6B if quad => (3, 1, 0, 8),
            0xEB if quad => (3, 4, 1, 4),
            0x77 if quad => (3, 4, 0, 0),
            _ => return false,
        };
        self.frame.address_left = address;
        self.frame.address_lines = lines;
        self.frame.mode_left = mode;
        self.frame.dummy_left = dummy;
        true
    }

    fn data(&mut self, driven: u8, lines: u8) -> u8 {
        let right = match self.frame.opcode {
            0x3B | 0xBB => 2,
            0x6B | 0xEB | 0x32 | 0x77 => 4,
            _ => 1,
        };
        if lines != right {
            self.frame.dead = true;
            return 0xFF;
        }
        let n = self.frame.sent;
        let address = self.frame.address;
        let out = match self.frame.opcode {
            0x05 => self.status(0),
            0x35 => self.status(1),
            0x15 => self.status(2),
            0x9F => *[0xEF, 0x40, 0x18].get(n).unwrap_or(&0xFF),
            0x90 => [0xEF, 0x17][(address + n) % 2],
            0xAB => 0x17,
            0x4B => *self.unique_id.get(n).unwrap_or(&0xFF),
            0x5A => *self.sfdp.get(address + n).unwrap_or(&0xFF),
            0x03 | 0x0B | 0x3B | 0x6B | 0xBB => self.array[(address + n) % SIZE],
            0xEB => match self.wrap {
                Some(bytes) => self.array[(address & !(bytes - 1)) + (address + n) % bytes],
                None => self.array[(address + n) % SIZE],
            },
            0x48 => match self.security_register() {
                Some(register) => self.security[register][(address + n) % 256],
                None => 0xFF,
            },
            0x3D => u8::from(*self.lock_of(address)),
            _ => {
                self.frame.data.push(driven);
                return 0xFF;
            }
        };
        self.frame.sent += 1;
        out
    }

    /// CS# rises, `stray` clocks after the last whole byte.
    pub(crate) fn deselect(&mut self, stray: u8) {
        let frame = &self.frame;
        if frame.bytes == 0 && self.rules.empty_frame_is_none {
            return;
        }
        let armed = std::mem::take(&mut self.reset_armed);
        let whole = frame.address_left == 0 && frame.mode_left == 0 && frame.dummy_left == 0;
        let stray = stray > 0 && frame.opcode != 0xAB;
        if frame.bytes == 0 || frame.dead || stray {
            return;
        }
        if frame.opcode == 0xAB {
            if self.power == Power::Asleep {
                self.power = Power::Deaf(self.now + 3_000);
            }
            return;
        }
        if !whole {
            return;
        }
        let alone = frame.data.is_empty();
        let address = frame.address;
        match frame.opcode {
            0x06 if alone => self.wel = true,
            0x04 if alone => self.wel = false,
            0x50 if alone => self.wel_volatile = true,
            0x01 | 0x31 | 0x11 => self.write_status(),
            0x02 | 0x32 => self.program(),
            0x20 if alone => self.erase(0x1000, 45_000_000),
            0x52 if alone => self.erase(0x8000, 120_000_000),
            0xD8 if alone => self.erase(0x1_0000, 150_000_000),
            0x60 | 0xC7 if alone => self.chip_erase(),
            0x42 => self.program_security(),
            0x44 if alone => self.erase_security(),
            0x75 if alone => self.suspend(),
            0x7A if alone => self.resume(),
            0x66 if alone => self.reset_armed = true,
            0x99 if alone && armed => {
                self.lose_everything();
                self.power = Power::Deaf(self.now + 30_000);
            }
            0xB9 if alone && (self.suspended.is_none() || self.rules.sleeps_in_suspend) => {
                self.power = Power::Asleep;
            }
            0x36 if alone => self.lock(address, true),
            0x39 if alone => self.lock(address, false),
            0x7E if alone => self.lock_all(true),
            0x98 if alone => self.lock_all(false),
            0x77 if self.frame.data.len() == 1 => {
                let value = self.frame.data[0];
                self.wrap = (value & 0x10 == 0).then_some(8 << (value >> 5 & 3));
            }
            _ => (),
        }
    }
}

fn and(to: &mut [u8], data: &[u8]) {
    for (byte, data) in to.iter_mut().zip(data) {
        *byte &= data;
    }
}
