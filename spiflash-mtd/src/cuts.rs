//! Power cuts, searched: a workload runs once, and at every place where power can go a clone of the chip loses it.
//!
//! [`CutSearch`] is a bus with one chip. What drives it (a script, a driver, a file system) sees that chip and nothing else; beside
//! it, clones branch off and are cut: after CS# has fallen and after each byte of each frame, and within what a frame began: at
//! its begin, at its end, 1 ns to either side of it, at the borders of an erase's three half states and at equal steps between. Each
//! clone gets its power back and is handed to a check. A clone costs the same however long the workload was (the array is
//! shared), so that nothing is run twice.
//!
//! The invariant: the workload's chip is as it would be on a [`crate::SimBus`]; no branch is seen by it or by another.

use crate::bus::{BusError, SpiBus, Transfer};
use crate::chip::Chip;
use crate::command::Lines;
use crate::op::Reg;
use crate::reliability::Marginal;
use crate::script::ScriptBus;
use crate::states::State;
use serde::Serialize;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};

/// Failures that a report keeps; the others are counted.
const MOST_FAILURES: usize = 100;

/// Which cuts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutOptions {
    /// Equal steps within what a frame began, besides its begin, its end and its thresholds.
    pub points: u32,
    /// Whether power also goes between the bytes of frames.
    pub between_bytes: bool,
}

impl Default for CutOptions {
    fn default() -> CutOptions {
        CutOptions { points: 8, between_bytes: true }
    }
}

/// What a cut left of what was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HalfState {
    /// All is as before.
    Untouched,
    /// Of the bits to be cleared, some are 0; no other bit has changed. In an erase: its pre-programming has begun.
    PartlyProgrammed,
    /// An erase has brought all cells to 0, and none to 1.
    PreProgrammed,
    /// An erase has brought some cells to 1. Of registers: each bit is old or new, and not all are either.
    Mixed,
    /// All cells are 1, but an erase had not recovered those that it brought too far.
    OverErased,
    /// All is as it was to be.
    Done,
    /// A bit is neither as it was nor as it was to be, and no half state explains it.
    Foreign,
}

/// Where power went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "within")]
pub enum Place {
    /// In a frame, after so many of its bytes.
    Frame {
        /// Whole bytes since CS# fell.
        bytes: u64,
    },
    /// While the chip was doing something, or just after.
    Busy {
        /// What it was doing.
        state: State,
        /// How far it was; a resumed operation counts from its resume.
        fraction: f64,
        /// What is left; `None` for states that change no cell and no register.
        left: Option<HalfState>,
    },
}

/// A cut.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cut {
    /// When power went.
    pub at_ns: u64,
    /// The frame of the workload, from 0: the one under way, or the one that began what was.
    pub frame: u64,
    /// The first byte of that frame; `None` of one that has none yet.
    pub opcode: Option<u8>,
    /// Where.
    pub place: Place,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CutReport {
    /// Cuts in all.
    pub cuts: u64,
    /// Of them, within frames.
    pub in_frames: u64,
    /// Of them, while the chip was busy.
    pub while_busy: u64,
    /// Different contents of the array (and the security registers) that were found after them.
    pub distinct_arrays: u64,
    /// What was left, by what was under way.
    pub left: BTreeMap<String, BTreeMap<HalfState, u64>>,
    /// Checks that failed.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<String>,
}

/// What a frame began, until it is over.
struct Window {
    /// Just after CS# rose.
    before: Chip,
    /// When it is over.
    after: Chip,
    begin_ns: u64,
    until_ns: u64,
    points: VecDeque<u64>,
    frame: u64,
    opcode: Option<u8>,
}

/// What a check says of a chip that lost its power and got it back: `Err` with what is wrong.
pub type Check<'a> = dyn FnMut(&mut Chip, &Cut) -> Result<(), String> + 'a;

/// The search: a bus with one chip, for the workload.
pub struct CutSearch<'a> {
    chip: Chip,
    options: CutOptions,
    check: Box<Check<'a>>,
    selected: bool,
    /// Frames so far, and of the present one its bytes and the first of them.
    frames: u64,
    bytes: u64,
    opcode: Option<u8>,
    window: Option<Window>,
    base: Chip,
    arrays: HashSet<u64>,
    report: CutReport,
}

impl<'a> CutSearch<'a> {
    /// A search that begins with this chip.
    pub fn new(
        chip: Chip,
        options: CutOptions,
        check: impl FnMut(&mut Chip, &Cut) -> Result<(), String> + 'a,
    ) -> CutSearch<'a> {
        CutSearch {
            base: chip.clone(),
            chip,
            options,
            check: Box::new(check),
            selected: false,
            frames: 0,
            bytes: 0,
            opcode: None,
            window: None,
            arrays: HashSet::new(),
            report: CutReport::default(),
        }
    }

    /// Ends the workload: what is still under way is cut too. The chip as the workload left it, and what was found.
    pub fn finish(mut self) -> (Chip, CutReport) {
        let chip = self.chip.clone();
        self.cut_window(&chip, u64::MAX, |branch, at_ns| branch.advance_to(at_ns));
        self.report.distinct_arrays = self.arrays.len() as u64;
        (self.chip, self.report)
    }

    /// Cuts off clones of a chip, as it was before a stretch of time, at the window's points up to `end_ns`; `pass` takes a clone
    /// through the stretch.
    fn cut_window(&mut self, before: &Chip, end_ns: u64, mut pass: impl FnMut(&mut Chip, u64)) {
        // The workload may have cut the power itself: then nothing is under way any more.
        let Some(mut window) = self.window.take().filter(|_| before.state() != State::Off) else { return };
        while let Some(at_ns) = window.points.front().copied().filter(|at| *at <= end_ns) {
            window.points.pop_front();
            let mut branch = before.clone();
            branch.set_cut_at_ns(Some(at_ns));
            pass(&mut branch, at_ns);
            branch.advance_to(at_ns);
            let total = (window.until_ns - window.begin_ns).max(1) as f64;
            let fraction = (at_ns.saturating_sub(window.begin_ns) as f64 / total).min(1.0);
            let state = window.before.state();
            self.power_up(&mut branch);
            let left = window.left_in(&branch, at_ns);
            if let Some(left) = left {
                let name = crate::script::state_name(state);
                *self.report.left.entry(name).or_default().entry(left).or_insert(0) += 1;
            }
            let (frame, opcode) = (window.frame, window.opcode);
            self.report.while_busy += 1;
            self.judge(branch, Cut { at_ns, frame, opcode, place: Place::Busy { state, fraction, left } });
        }
        if !window.points.is_empty() {
            self.window = Some(window);
        }
    }

    fn power_up(&self, branch: &mut Chip) {
        branch.set_cut_at_ns(None);
        branch.set_power(false);
        branch.set_power(true);
        if let Some(until) = branch.busy_until_ns() {
            branch.advance_to(until);
        }
    }

    /// A clone that has its power back.
    fn judge(&mut self, mut branch: Chip, cut: Cut) {
        self.report.cuts += 1;
        self.arrays.insert(fingerprint(&branch, &self.base));
        if let Err(what) = (self.check)(&mut branch, &cut) {
            self.report.failed += 1;
            if self.report.failures.len() < MOST_FAILURES {
                let opcode = cut.opcode.map_or("no opcode".into(), |opcode| format!("{opcode:02X}h"));
                let place = format!("cut at {} ns, frame {} ({opcode})", cut.at_ns, cut.frame);
                self.report.failures.push(format!("{place}: {what}"));
            }
        }
    }

    fn cut_in_frame(&mut self, chip: &Chip, bytes: u64) {
        // A frame that comes while the chip is off cannot lose its power.
        if !self.options.between_bytes || chip.state() == State::Off {
            return;
        }
        let mut branch = chip.clone();
        self.power_up(&mut branch);
        self.report.in_frames += 1;
        let cut = Cut {
            at_ns: chip.now_ns(),
            frame: self.frames,
            opcode: self.opcode,
            place: Place::Frame { bytes },
        };
        self.judge(branch, cut);
    }

    /// The bytes of a transfer, one by one, on a clone, which is cut after each.
    fn cut_between_bytes(&mut self, transfer: &Transfer<'_>) {
        if !self.options.between_bytes {
            return;
        }
        let mut running = self.chip.clone();
        let (lines, sent, count) = match transfer {
            Transfer::Write { lines, bytes } => (*lines, Some(&**bytes), bytes.len()),
            Transfer::Read { lines, bytes } => (*lines, None, bytes.len()),
            Transfer::Both { bytes } => (Lines::Single, Some(&**bytes), bytes.len()),
        };
        for at in 0..count {
            match sent.and_then(|sent| sent.get(at)) {
                Some(byte) => running.transfer(Transfer::Write { lines, bytes: &[*byte] }),
                None => running.transfer(Transfer::Read { lines, bytes: &mut [0] }),
            }
            self.cut_in_frame(&running, self.bytes + at as u64 + 1);
        }
    }

    /// What the chip has begun since it was looked at last.
    fn note_window(&mut self) {
        let Some(until_ns) = self.chip.busy_until_ns() else { return };
        if self.window.as_ref().is_some_and(|window| window.until_ns == until_ns) {
            return;
        }
        // The frame that did it has ended: it is the one before the next.
        let frame = self.frames.saturating_sub(1);
        self.window = Some(Window::new(&self.chip, until_ns, self.options.points, frame, self.opcode));
    }

    fn pass_to(&mut self, now_ns: u64) {
        let before = self.chip.clone();
        self.chip.advance_to(now_ns);
        self.cut_window(&before, now_ns, |branch, at_ns| branch.advance_to(at_ns));
        // One thing may follow another by itself: a chip that is woken up.
        self.note_window();
    }
}

impl SpiBus for CutSearch<'_> {
    fn chips(&self) -> u8 {
        1
    }

    fn select(&mut self, select: u8) -> Result<(), BusError> {
        if self.selected {
            return Err(BusError::StillSelected { select: 0 });
        }
        only(select)?;
        self.selected = true;
        self.chip.select();
        (self.bytes, self.opcode) = (0, None);
        let chip = self.chip.clone();
        self.cut_in_frame(&chip, 0);
        Ok(())
    }

    fn transfer(&mut self, transfer: Transfer<'_>) -> Result<(), BusError> {
        if !self.selected {
            return Err(BusError::NotSelected);
        }
        let first = match &transfer {
            Transfer::Write { bytes, .. } => bytes.first(),
            Transfer::Both { bytes } => bytes.first(),
            Transfer::Read { .. } => None,
        };
        if self.bytes == 0 {
            self.opcode = first.copied();
        }
        self.cut_between_bytes(&transfer);
        let before = self.chip.clone();
        // The same bytes once more for each cut while they go over the lines.
        let (lines, sent, count) = match transfer {
            Transfer::Write { lines, bytes } => {
                self.chip.transfer(Transfer::Write { lines, bytes });
                (lines, Some(bytes.to_vec()), bytes.len())
            }
            Transfer::Read { lines, bytes } => {
                self.chip.transfer(Transfer::Read { lines, bytes: &mut *bytes });
                (lines, None, bytes.len())
            }
            Transfer::Both { bytes } => {
                let sent = bytes.to_vec();
                self.chip.transfer(Transfer::Both { bytes: &mut *bytes });
                (Lines::Single, Some(sent), bytes.len())
            }
        };
        let end_ns = self.chip.now_ns();
        let mut scratch = vec![0; count];
        self.cut_window(&before, end_ns, |branch, _| match &sent {
            Some(bytes) => branch.transfer(Transfer::Write { lines, bytes }),
            None => branch.transfer(Transfer::Read { lines, bytes: &mut scratch }),
        });
        self.bytes += count as u64;
        Ok(())
    }

    fn deselect(&mut self) -> Result<(), BusError> {
        if !self.selected {
            return Err(BusError::NotSelected);
        }
        self.selected = false;
        self.chip.deselect(0);
        self.frames += 1;
        self.note_window();
        Ok(())
    }

    fn delay_ns(&mut self, delay_ns: u64) {
        self.pass_to(self.chip.now_ns().saturating_add(delay_ns));
    }

    fn now_ns(&mut self) -> u64 {
        self.chip.now_ns()
    }

    fn set_clock_hz(&mut self, hz: u32) -> Result<u32, BusError> {
        let most_hz = self.chip.part().bus.max_clock_hz;
        if hz == 0 {
            return Err(BusError::Clock { hz, most_hz });
        }
        let hz = hz.min(most_hz);
        self.chip.set_clock_hz(hz);
        Ok(hz)
    }

    fn set_power(&mut self, select: u8, on: bool) -> Result<(), BusError> {
        only(select)?;
        self.chip.set_power(on);
        self.window = None;
        self.note_window();
        Ok(())
    }

    fn set_write_protect(&mut self, select: u8, low: bool) -> Result<(), BusError> {
        only(select)?;
        self.chip.set_write_protect(low);
        Ok(())
    }
}

impl ScriptBus for CutSearch<'_> {
    fn look_at(&mut self, select: u8) -> Option<&Chip> {
        (select == 0).then_some(&self.chip)
    }

    fn cut_at_ns(&mut self, select: u8, at_ns: Option<u64>) {
        if select == 0 {
            self.chip.set_cut_at_ns(at_ns);
        }
    }
}

fn only(select: u8) -> Result<(), BusError> {
    if select == 0 { Ok(()) } else { Err(BusError::NoChip { select, chips: 1 }) }
}

impl Window {
    fn new(chip: &Chip, until_ns: u64, points: u32, frame: u64, opcode: Option<u8>) -> Window {
        let begin_ns = chip.now_ns();
        let mut after = chip.clone();
        after.set_cut_at_ns(None);
        after.advance_to(until_ns);
        let total = until_ns.saturating_sub(begin_ns);
        let at = |share: f64| begin_ns.saturating_add((total as f64 * share) as u64);
        let around = |at: u64| [at.saturating_sub(1), at, at.saturating_add(1)];
        let mut all: Vec<u64> = vec![begin_ns, begin_ns.saturating_add(1)];
        all.extend(around(until_ns));
        let steps = u128::from(points) + 1;
        all.extend((1..steps).map(|step| begin_ns.saturating_add((u128::from(total) * step / steps) as u64)));
        if matches!(chip.state(), State::Erase | State::ChipErase) {
            let params = chip.reliability().params();
            all.extend(around(at(params.erase_preprogram_share)));
            all.extend(around(at(1.0 - params.erase_recovery_share)));
        }
        all.retain(|at| *at >= begin_ns);
        all.sort_unstable();
        all.dedup();
        Window { before: chip.clone(), after, begin_ns, until_ns, points: all.into(), frame, opcode }
    }

    /// What a cut left of what was under way; the branch has its power back.
    fn left_in(&self, branch: &Chip, at_ns: u64) -> Option<HalfState> {
        match self.before.state() {
            State::WriteStatus => Some(self.left_in_registers(branch)),
            State::Program | State::ProgramInSuspend => Some(self.left_in_cells(branch, at_ns, false)),
            State::Erase | State::ChipErase => Some(self.left_in_cells(branch, at_ns, true)),
            _ => None,
        }
    }

    fn left_in_registers(&self, branch: &Chip) -> HalfState {
        let stored = |chip: &Chip| {
            let mut chip = chip.clone();
            chip.set_cut_at_ns(None);
            // Nothing is under way in a chip that gets ready at once: what is stored is what it starts with.
            chip.set_power(false);
            chip.set_power(true);
            let until = chip.busy_until_ns().unwrap_or(0);
            chip.advance_to(until);
            registers(&chip)
        };
        // Power that goes at once leaves every bit old.
        let mut before = self.before.clone();
        before.set_cut_at_ns(Some(self.begin_ns));
        before.advance_to(self.begin_ns);
        let (old, new, now) = (stored(&before), stored(&self.after), registers(branch));
        let foreign = now.iter().zip(&old).zip(&new).any(|((now, old), new)| (now ^ old) & (now ^ new) != 0);
        match () {
            () if foreign => HalfState::Foreign,
            () if now == old => HalfState::Untouched,
            () if now == new => HalfState::Done,
            () => HalfState::Mixed,
        }
    }

    fn left_in_cells(&self, branch: &Chip, at_ns: u64, is_erase: bool) -> HalfState {
        let mut cells = Cells {
            same_as_old: true,
            same_as_new: true,
            only_cleared: true,
            all_zero: true,
            all_one: true,
            of_request: true,
        };
        let arrays = [
            (self.before.array(), self.after.array(), branch.array()),
            (self.before.security(), self.after.security(), branch.security()),
        ];
        let mut noisy = false;
        for (old, new, now) in arrays {
            for unit in 0..old.unit_count() {
                let (Some(a), Some(b), Some(c)) = (old.unit(unit), new.unit(unit), now.unit(unit)) else {
                    continue;
                };
                if std::ptr::eq(a, b) && std::ptr::eq(a, c) {
                    continue;
                }
                let bytes = old.unit_bytes();
                let start = u64::from(unit) * bytes as u64;
                let read = |array: &crate::array::Array| {
                    let mut out = vec![0; bytes];
                    array.read(start, &mut out);
                    out
                };
                cells.add(&read(old), &read(new), &read(now));
                noisy |= c
                    .pages()
                    .unwrap_or(&[])
                    .iter()
                    .any(|page| matches!(page.marginal, Marginal::Erase { .. }));
            }
        }
        cells.verdict(is_erase, noisy || at_ns < self.until_ns)
    }
}

/// What holds for all bytes of the units that something was done to.
struct Cells {
    same_as_old: bool,
    same_as_new: bool,
    only_cleared: bool,
    all_zero: bool,
    all_one: bool,
    of_request: bool,
}

impl Cells {
    fn add(&mut self, old: &[u8], new: &[u8], now: &[u8]) {
        for ((old, new), now) in old.iter().zip(new).zip(now) {
            self.same_as_old &= now == old;
            self.same_as_new &= now == new;
            self.only_cleared &= now & !old == 0;
            self.of_request &= now & !old == 0 && !now & old & new == 0;
            self.all_zero &= *now == 0;
            self.all_one &= *now == 0xFF;
        }
    }

    fn verdict(&self, is_erase: bool, unfinished: bool) -> HalfState {
        match () {
            () if self.same_as_old => HalfState::Untouched,
            () if is_erase && self.all_one && unfinished => HalfState::OverErased,
            () if self.same_as_new => HalfState::Done,
            () if is_erase && self.all_zero => HalfState::PreProgrammed,
            () if is_erase && self.only_cleared => HalfState::PartlyProgrammed,
            () if is_erase => HalfState::Mixed,
            () if self.of_request => HalfState::PartlyProgrammed,
            () => HalfState::Foreign,
        }
    }
}

fn registers(chip: &Chip) -> Vec<u8> {
    let ids: Vec<Reg> = chip.part().registers.keys().copied().collect();
    ids.into_iter().map(|register| chip.register(register)).collect()
}

/// A number for the contents of array and security registers: of units that are as in `base`, nothing.
fn fingerprint(chip: &Chip, base: &Chip) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (which, (now, then)) in
        [(chip.array(), base.array()), (chip.security(), base.security())].into_iter().enumerate()
    {
        for unit in 0..now.unit_count() {
            let (Some(content), Some(before)) = (now.unit(unit), then.unit(unit)) else { continue };
            let data =
                |unit: &crate::array::Unit| unit.data().filter(|_| !unit.is_blank()).map(<[u8]>::to_vec);
            if std::ptr::eq(content, before) || data(content) == data(before) {
                continue;
            }
            (which, unit, data(content)).hash(&mut hasher);
        }
    }
    hasher.finish()
}
