//! The dies and channels: who is busy when.
//!
//! Every operation takes the earliest time at which all it needs is free together. A die is one lane, or one per plane where planes
//! sense on their own; programs and erases take all lanes of a die. The invariant: no two operations overlap on a lane or on a
//! channel, whatever the order of calls.

use super::{layout::Layout, planted::planted, profile::Profile, stats::DieStats, timeline::Timeline};

/// Model times, already multiplied by the profile's scale.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale(pub(crate) f64);

impl Scale {
    /// A time in model ns, rounded.
    pub(crate) fn time(self, ns: u64) -> u64 {
        (ns as f64 * self.0 + 0.5) as u64
    }

    /// A rate's time per byte in model ns; 0 for no limit.
    pub(crate) fn ns_per_byte(self, bytes_per_s: u64) -> f64 {
        if bytes_per_s == 0 { 0.0 } else { 1e9 * self.0 / bytes_per_s as f64 }
    }
}

/// How long `bytes` take, rounded.
pub(crate) fn transfer_ns(bytes: u64, ns_per_byte: f64) -> u64 {
    (bytes as f64 * ns_per_byte + 0.5) as u64
}

/// The rest of a finished zone being programmed on one die. It is work of the lowest rank: whatever comes runs at the next
/// program's end, and the rest moves back by as much.
#[derive(Debug, Clone, Copy, Default)]
struct Fill {
    start: u64,
    end: u64,
}

/// What a test sees of a reservation.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserved {
    Lane { lane: usize, start: u64, end: u64 },
    Channel { channel: usize, start: u64, end: u64 },
}

/// Dies and channels of a device.
#[derive(Debug)]
pub(crate) struct Flash {
    pub(super) planes_sense_alone: bool,
    lanes_per_die: usize,
    lanes: Vec<Timeline>,
    fills: Vec<Fill>,
    /// When a die's cache register takes the next unit: at the start of the program before.
    cache_free: Vec<u64>,
    channels: Vec<Timeline>,
    pub(super) channel_of: Vec<usize>,
    pub(super) cache_program: bool,
    pub(super) cache_read: bool,
    pub(super) ns_per_byte: f64,
    pub(super) program_ns: u64,
    erase_ns: u64,
    fill_period_ns: u64,
    pub(super) fill_yields: bool,
    now: u64,
    /// When the last program reserved so far ends.
    pub(crate) programs_end: u64,
    /// When the last reservation of any kind ends.
    pub(crate) end: u64,
    /// Busy times, per die.
    pub(crate) die_stats: Vec<DieStats>,
    /// Busy ns, per channel.
    pub(crate) channel_busy: Vec<u64>,
    #[cfg(test)]
    pub(crate) mutant: Option<super::planted::Mutant>,
    #[cfg(test)]
    pub(crate) trace: Vec<Reserved>,
}

impl Flash {
    /// The idle dies and channels of `profile`, which is valid.
    pub(crate) fn new(profile: &Profile, scale: Scale) -> Flash {
        let dies = profile.dies() as usize;
        let timing = &profile.timing;
        let lanes_per_die =
            if timing.independent_plane_reads { profile.geometry.planes_per_die as usize } else { 1 };
        let channels = profile.geometry.channels as usize;
        let ns_per_byte = scale.ns_per_byte(timing.channel_bytes_per_s);
        let program_ns = scale.time(timing.program_ns);
        let transfer = transfer_ns(profile.unit_bytes(), ns_per_byte);
        let fill_period_ns = match timing.cache_program {
            true => program_ns.max(transfer),
            false => program_ns.saturating_add(transfer),
        };
        Flash {
            planes_sense_alone: lanes_per_die > 1,
            lanes_per_die,
            lanes: vec![Timeline::new(); dies * lanes_per_die],
            fills: vec![Fill::default(); dies],
            cache_free: vec![0; dies],
            channels: vec![Timeline::new(); channels],
            channel_of: Layout::channels(profile),
            cache_program: timing.cache_program,
            cache_read: timing.cache_read,
            ns_per_byte,
            program_ns,
            erase_ns: scale.time(timing.erase_ns),
            fill_period_ns,
            fill_yields: profile.zones.finish_yields,
            now: 0,
            programs_end: 0,
            end: 0,
            die_stats: vec![DieStats::default(); dies],
            channel_busy: vec![0; channels],
            #[cfg(test)]
            mutant: None,
            #[cfg(test)]
            trace: Vec::new(),
        }
    }

    /// Nothing will be reserved before `now_ns` any more. It only ever grows.
    pub(crate) fn advance(&mut self, now_ns: u64) {
        self.now = now_ns;
    }

    /// Senses `bytes` of a page in `sense_ns` and transfers them; returns when the last byte has left the channel.
    pub(crate) fn sense(&mut self, die: usize, plane: usize, ready: u64, sense_ns: u64, bytes: u64) -> u64 {
        let lanes = match self.planes_sense_alone {
            true => (die * self.lanes_per_die + plane % self.lanes_per_die, 1),
            false => self.all_lanes(die),
        };
        let transfer = match planted!(self, ReadTransferForgotten) {
            true => 0,
            false => transfer_ns(bytes, self.ns_per_byte),
        };
        let channel = self.channel_of[die];
        let shortest = sense_ns.saturating_add(if self.cache_read { 0 } else { transfer });
        let mut start = match planted!(self, ReadIgnoresDie) {
            true => ready,
            false => self.gap(die, lanes, ready, shortest),
        };
        loop {
            let sensed = start.saturating_add(sense_ns);
            let on_channel = match transfer {
                0 => sensed,
                _ => self.channels[channel].earliest(sensed, transfer),
            };
            let out = on_channel.saturating_add(transfer);
            let die_free = if self.cache_read { sensed } else { out };
            // Without a cache register the page stays in the die until the channel takes it: the die must be free until then.
            match self.blocked(lanes, start.saturating_add(shortest), die_free) {
                Some(until) if !planted!(self, ReadIgnoresDie) => {
                    start = self.gap(die, lanes, until, shortest);
                }
                _ => {
                    self.occupy(die, lanes, start, die_free);
                    self.occupy_channel(channel, on_channel, out);
                    let stats = &mut self.die_stats[die];
                    stats.reads += 1;
                    stats.read_ns = stats.read_ns.saturating_add(die_free - start);
                    return out;
                }
            }
        }
    }

    /// Transfers `bytes` to a die and programs a unit, after erasing a block if `erase`; returns when it is programmed.
    pub(crate) fn program(&mut self, die: usize, ready: u64, bytes: u64, erase: bool) -> u64 {
        let transfer = match planted!(self, WriteTransferForgotten) {
            true => 0,
            false => transfer_ns(bytes, self.ns_per_byte),
        };
        let lanes = self.all_lanes(die);
        let erase_ns = if erase { self.erase_ns } else { 0 };
        let (start, hold) = if self.cache_program {
            self.load_and_program(die, lanes, ready, transfer, erase_ns)
        } else {
            self.hold_and_program(die, lanes, ready, transfer, erase_ns)
        };
        let end = start.saturating_add(hold);
        self.occupy(die, lanes, start, end);
        let stats = &mut self.die_stats[die];
        stats.programs += 1;
        stats.erases += u64::from(erase);
        stats.erase_ns = stats.erase_ns.saturating_add(erase_ns);
        stats.program_ns = stats.program_ns.saturating_add(hold - erase_ns);
        self.programs_end = self.programs_end.max(end);
        end
    }

    /// With a cache register: the transfer goes beside the program before. Returns the die's start and its time.
    fn load_and_program(
        &mut self,
        die: usize,
        lanes: (usize, usize),
        ready: u64,
        transfer: u64,
        erase_ns: u64,
    ) -> (u64, u64) {
        let channel = self.channel_of[die];
        let from = ready.max(self.cache_free[die]);
        let start = if transfer == 0 { from } else { self.channels[channel].earliest(from, transfer) };
        let loaded = start.saturating_add(transfer);
        self.occupy_channel(channel, start, loaded);
        let hold = erase_ns.saturating_add(self.program_ns);
        let start = self.gap(die, lanes, loaded, hold);
        self.cache_free[die] = start;
        (start, hold)
    }

    /// Without: erase, transfer and program follow each other on the die, which must be free for all three together with the
    /// channel for the transfer. Returns the die's start and its time.
    fn hold_and_program(
        &mut self,
        die: usize,
        lanes: (usize, usize),
        ready: u64,
        transfer: u64,
        erase_ns: u64,
    ) -> (u64, u64) {
        let channel = self.channel_of[die];
        let hold = erase_ns.saturating_add(transfer).saturating_add(self.program_ns);
        let mut start = self.gap(die, lanes, ready, hold);
        if transfer == 0 {
            return (start, hold);
        }
        loop {
            let want = start.saturating_add(erase_ns);
            let on_channel = self.channels[channel].earliest(want, transfer);
            if on_channel == want {
                self.occupy_channel(channel, want, want.saturating_add(transfer));
                return (start, hold);
            }
            start = self.gap(die, lanes, on_channel.saturating_sub(erase_ns), hold);
        }
    }

    fn all_lanes(&self, die: usize) -> (usize, usize) {
        (die * self.lanes_per_die, self.lanes_per_die)
    }

    /// Erases `blocks` blocks of a die, one after the other; returns when they are erased.
    pub(crate) fn erase(&mut self, die: usize, ready: u64, blocks: u64) -> u64 {
        let lanes = self.all_lanes(die);
        let work = self.erase_ns.saturating_mul(blocks);
        if work == 0 {
            self.die_stats[die].erases += blocks;
            return ready;
        }
        let start = self.gap(die, lanes, ready, work);
        let end = start.saturating_add(work);
        self.occupy(die, lanes, start, end);
        let stats = &mut self.die_stats[die];
        stats.erases += blocks;
        stats.erase_ns = stats.erase_ns.saturating_add(work);
        end
    }

    /// Programs `units` of padding on a die, erasing `blocks` on the way; returns when the last is programmed if nothing else comes.
    /// The padding comes from the controller at the die's own pace: it holds the die as long as a unit of data would, but is not
    /// reserved on the channel.
    pub(crate) fn fill(&mut self, die: usize, ready: u64, units: u64, blocks: u64) -> u64 {
        let erases = self.erase_ns.saturating_mul(blocks);
        let work = self.fill_period_ns.saturating_mul(units).saturating_add(erases);
        let stats = &mut self.die_stats[die];
        stats.programs += units;
        stats.erases += blocks;
        stats.erase_ns = stats.erase_ns.saturating_add(erases);
        stats.program_ns = stats.program_ns.saturating_add(work - erases);
        if work == 0 {
            return ready;
        }
        // A fill that is still running is prolonged: its end is where the new one starts.
        let (start, work) = match self.running_fill(die) {
            Some(fill) => (fill.start, work.saturating_add(fill.end - fill.start)),
            None => (ready.max(self.now), work),
        };
        self.lay_fill(die, start, work);
        let end = self.fills[die].end;
        if !self.fill_yields {
            let fill = std::mem::take(&mut self.fills[die]);
            self.harden(die, fill.start, fill.end);
        }
        self.programs_end = self.programs_end.max(end);
        end
    }

    fn running_fill(&self, die: usize) -> Option<Fill> {
        Some(self.fills[die]).filter(|fill| fill.end > self.now && fill.end > fill.start)
    }

    /// Puts a fill into the idle time from `start` on. What must lie before work already reserved becomes an ordinary reservation.
    fn lay_fill(&mut self, die: usize, mut start: u64, mut work: u64) {
        let lanes = self.all_lanes(die);
        loop {
            start = self.hard_gap(lanes, start, 1);
            let next = (lanes.0..lanes.0 + lanes.1).filter_map(|lane| self.lanes[lane].next_busy(start));
            match next.map(|(busy, _)| busy).min() {
                Some(busy) if start.saturating_add(work) > busy => {
                    self.harden(die, start, busy);
                    work -= busy - start;
                    start = busy;
                }
                _ => {
                    let end = start.saturating_add(work);
                    self.fills[die] = Fill { start, end };
                    self.end = self.end.max(end);
                    return;
                }
            }
        }
    }

    /// Makes a part of a fill an ordinary reservation.
    fn harden(&mut self, die: usize, start: u64, end: u64) {
        if start >= end {
            return;
        }
        for lane in die * self.lanes_per_die..(die + 1) * self.lanes_per_die {
            self.lanes[lane].prune(self.now);
            self.lanes[lane].insert(start, end);
            #[cfg(test)]
            self.trace.push(Reserved::Lane { lane, start, end });
        }
    }

    /// The earliest `length` that is idle on all `lanes` (first, count), fills aside.
    fn hard_gap(&self, lanes: (usize, usize), from: u64, length: u64) -> u64 {
        let mut start = self.lanes[lanes.0].earliest(from, length);
        if lanes.1 == 1 {
            return start;
        }
        loop {
            let all =
                (lanes.0..lanes.0 + lanes.1).fold(start, |at, lane| self.lanes[lane].earliest(at, length));
            if all == start {
                return start;
            }
            start = all;
        }
    }

    /// The same, but not in the middle of a fill's program.
    fn gap(&self, die: usize, lanes: (usize, usize), from: u64, length: u64) -> u64 {
        let mut start = self.hard_gap(lanes, from, length);
        let Some(fill) = self.running_fill(die) else { return start };
        while start > fill.start && start < fill.end {
            let period = self.fill_period_ns.max(1);
            let programs = (start - fill.start).div_ceil(period);
            let boundary = fill.start.saturating_add(programs.saturating_mul(period)).min(fill.end);
            if boundary == start {
                break;
            }
            start = self.hard_gap(lanes, boundary, length);
        }
        start
    }

    /// If a lane is busy somewhere in `from..to`: when that ends.
    fn blocked(&self, lanes: (usize, usize), from: u64, to: u64) -> Option<u64> {
        if from >= to {
            return None;
        }
        let busy = (lanes.0..lanes.0 + lanes.1).filter_map(|lane| self.lanes[lane].next_busy(from));
        busy.filter(|(start, _)| *start < to).map(|(_, end)| end).min()
    }

    /// Reserves lanes of a die; a fill that is in the way moves back.
    fn occupy(&mut self, die: usize, lanes: (usize, usize), start: u64, end: u64) {
        if start >= end {
            return;
        }
        for lane in lanes.0..lanes.0 + lanes.1 {
            self.lanes[lane].prune(self.now);
            self.lanes[lane].insert(start, end);
            #[cfg(test)]
            self.trace.push(Reserved::Lane { lane, start, end });
        }
        self.end = self.end.max(end);
        if let Some(fill) = self.running_fill(die)
            && start < fill.end
            && end > fill.start
        {
            let done = start.max(fill.start);
            self.fills[die] = Fill::default();
            self.harden(die, fill.start, done);
            self.lay_fill(die, end, fill.end - done);
        }
    }

    fn occupy_channel(&mut self, channel: usize, start: u64, end: u64) {
        if start >= end {
            return;
        }
        self.channels[channel].prune(self.now);
        self.channels[channel].insert(start, end);
        self.channel_busy[channel] = self.channel_busy[channel].saturating_add(end - start);
        self.end = self.end.max(end);
        #[cfg(test)]
        self.trace.push(Reserved::Channel { channel, start, end });
    }
}
