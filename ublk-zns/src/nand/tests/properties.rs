//! The model against a second one that is as simple as can be: arrays of microseconds, searched from the left. And what must hold
//! for every profile: nothing overlaps, nothing is due before it came, no number overflows.

use super::*;
use crate::nand::flash::Reserved;
use proptest::prelude::*;
use std::collections::HashMap;

/// Dies and channels as arrays of busy microseconds. Bench layout: dies 0 and 2 on channel 0, 1 and 3 on channel 1.
struct Reference {
    dies: [Vec<bool>; 4],
    channels: [Vec<bool>; 2],
    cache_read: bool,
    /// Per zone: units programmed; when its last program ends; when its last erase ends.
    zones: HashMap<u32, (u64, usize, usize)>,
}

const SENSE: usize = 40;
const PAGE: usize = 10;
const LOAD: usize = 30;
const PROGRAM: usize = 600;
const ERASE: usize = 3000;

impl Reference {
    fn new(cache_read: bool) -> Reference {
        let line = || vec![false; 400_000];
        Reference {
            dies: [line(), line(), line(), line()],
            channels: [line(), line()],
            cache_read,
            zones: HashMap::new(),
        }
    }

    fn free(line: &[bool], from: usize, to: usize) -> bool {
        line[from..to].iter().all(|busy| !busy)
    }

    /// Zones of two dies: even zones on dies 0 and 1, odd ones on 2 and 3.
    fn die(zone: u32, unit: u64) -> usize {
        2 * (zone as usize % 2) + (unit % 2) as usize
    }

    fn read_page(&mut self, now: usize, die: usize) -> usize {
        let channel = die % 2;
        for start in now.. {
            let sensed = start + SENSE;
            let transfer =
                (sensed..).find(|at| Reference::free(&self.channels[channel], *at, at + PAGE)).unwrap();
            let die_free = if self.cache_read { sensed } else { transfer + PAGE };
            if Reference::free(&self.dies[die], start, die_free) {
                self.dies[die][start..die_free].fill(true);
                self.channels[channel][transfer..transfer + PAGE].fill(true);
                return transfer + PAGE;
            }
        }
        unreachable!("time has no end");
    }

    fn program(&mut self, now: usize, zone: u32, unit: u64) -> usize {
        let die = Reference::die(zone, unit);
        let (channel, state) = (die % 2, self.zones.entry(zone).or_default());
        let start = (now.max(state.2)..)
            .find(|start| {
                Reference::free(&self.dies[die], *start, start + LOAD + PROGRAM)
                    && Reference::free(&self.channels[channel], *start, start + LOAD)
            })
            .unwrap();
        self.dies[die][start..start + LOAD + PROGRAM].fill(true);
        self.channels[channel][start..start + LOAD].fill(true);
        let end = start + LOAD + PROGRAM;
        (state.0, state.1) = (state.0.max(unit + 1), state.1.max(end));
        end
    }

    fn reset(&mut self, now: usize, zone: u32) -> usize {
        let (units, programmed, erased) = self.zones.get(&zone).copied().unwrap_or_default();
        let from = now.max(programmed).max(erased);
        let mut end = now;
        for slot in 0..2 {
            let on_die = (0..units).filter(|unit| unit % 2 == slot).count();
            let time = on_die.div_ceil(4) * ERASE;
            let die = Reference::die(zone, slot);
            if time > 0 {
                let start = (from..).find(|at| Reference::free(&self.dies[die], *at, at + time)).unwrap();
                self.dies[die][start..start + time].fill(true);
                end = end.max(start + time);
            }
        }
        self.zones.insert(zone, (0, programmed, end.max(erased)));
        end
    }
}

/// What a random script does next: kind, zone, pause before it in us.
fn steps() -> impl Strategy<Value = Vec<(u8, u32, u64, u64)>> {
    prop::collection::vec((0u8..10, 0u32..4, 0u64..3, 0u64..400), 1..60)
}

/// Each lane's and channel's reservations must not overlap.
fn assert_no_overlap(model: &NandModel) {
    let mut lines: HashMap<(bool, usize), Vec<(u64, u64)>> = HashMap::new();
    for reserved in &model.flash.trace {
        let (key, interval) = match *reserved {
            Reserved::Lane { lane, start, end } => ((true, lane), (start, end)),
            Reserved::Channel { channel, start, end } => ((false, channel), (start, end)),
        };
        lines.entry(key).or_default().push(interval);
    }
    for (line, intervals) in &mut lines {
        intervals.sort_unstable();
        for pair in intervals.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{line:?}: {pair:?}");
        }
    }
}

fn run_beside_reference(steps: &[(u8, u32, u64, u64)], cache_read: bool) -> Result<(), TestCaseError> {
    let cached = format!("timing.cache_read={cache_read}");
    let mut model = model(&["zones.dies_per_zone=2", CHANNEL, "timing.read_4k_ns=0", &cached], None);
    let mut reference = Reference::new(cache_read);
    let mut now = 0;
    for (at, (kind, zone, pages, pause)) in steps.iter().copied().enumerate() {
        // Long pauses now and then, so that the script does not only queue up.
        now += if kind == 0 { pause * 10 } else { pause / 4 };
        let units = reference.zones.get(&zone).map_or(0, |state| state.0);
        let (command, want) = match kind {
            0..=4 if units > 0 => {
                let unit = pause % units;
                let die = Reference::die(zone, unit);
                let dues: Vec<usize> = (0..=pages).map(|_| reference.read_page(now as usize, die)).collect();
                (read(zone, unit * UNIT, 32 * (pages + 1)), dues.into_iter().max().unwrap())
            }
            9 => (Command::Reset(ZoneId(zone)), reference.reset(now as usize, zone)),
            _ if units < 80 => {
                let dues: Vec<usize> =
                    (units..=units + pages).map(|unit| reference.program(now as usize, zone, unit)).collect();
                (write(zone, units * UNIT, (pages + 1) * UNIT), dues.into_iter().max().unwrap())
            }
            _ => continue,
        };
        let due = model.submit(now * US, 0, &command);
        prop_assert_eq!(due, want as u64 * US, "step {} at {}: {:?}", at, now, command);
    }
    assert_no_overlap(&model);
    // Every busy microsecond of the arrays is in the statistics, and no other.
    for (die, stats) in model.stats().dies.iter().enumerate() {
        let busy = reference.dies[die].iter().filter(|busy| **busy).count() as u64;
        prop_assert_eq!(stats.busy_ns(), busy * US);
    }
    for (channel, busy_ns) in model.stats().channel_busy_ns.iter().enumerate() {
        let busy = reference.channels[channel].iter().filter(|busy| **busy).count() as u64;
        prop_assert_eq!(*busy_ns, busy * US);
    }
    Ok(())
}

/// A zone's buffer, second version: bytes inside at a time, from lists of what came and went.
fn buffered_reference(writes: &[(u64, u64)], capacity: u64) -> Vec<u64> {
    const UNIT_BYTES: u64 = 49_152;
    let (mut came, mut went) = (Vec::<(u64, u64)>::new(), Vec::<(u64, u64)>::new());
    let (mut at, mut offset, mut die_free, mut now) = (0u64, 0u64, [0u64; 4], 0u64);
    let mut dues = Vec::new();
    for (pause, bytes) in writes {
        now += pause;
        at = at.max(now);
        let mut left = *bytes;
        while left > 0 {
            let piece = left.min(UNIT_BYTES - offset % UNIT_BYTES);
            let inside = |time: u64, came: &[(u64, u64)], went: &[(u64, u64)]| {
                let sum = |list: &[(u64, u64)]| -> u64 {
                    list.iter().filter(|(then, _)| *then <= time).map(|(_, bytes)| bytes).sum()
                };
                sum(came) - sum(went)
            };
            while inside(at, &came, &went) + piece > capacity {
                at += 1;
            }
            came.push((at, piece));
            offset += piece;
            left -= piece;
            if offset.is_multiple_of(UNIT_BYTES) {
                let die = ((offset / UNIT_BYTES - 1) % 4) as usize;
                die_free[die] = die_free[die].max(at) + 600;
                went.push((die_free[die], UNIT_BYTES));
            }
        }
        dues.push(at);
    }
    dues
}

/// A profile of anything that validates.
fn any_profile() -> impl Strategy<Value = Profile> {
    let time = || prop_oneof![3 => 0u64..5_000_000, 1 => Just(10_000_000_000u64)];
    let rate = || prop_oneof![Just(0u64), 100_000u64..5_000_000_000, Just(1_000_000_000_000_000u64)];
    let shape = (1u32..5, 1u32..5, 1u32..4, 1u64..5, 1u64..4, 1u64..5);
    let times = (time(), time(), time(), time(), rate(), rate());
    let flags = prop::array::uniform9(any::<bool>());
    let rest = (0u32..3, 0u64..4, prop_oneof![Just(1.0), Just(1000.0), Just(0.001), Just(2.5)], time());
    (shape, times, flags, rest).prop_map(|(shape, times, flags, rest)| {
        let mut profile = bench(&[]);
        let g = &mut profile.geometry;
        (g.channels, g.dies_per_channel, g.planes_per_die) = (shape.0, shape.1, shape.2);
        g.page_bytes = 4096 * shape.3;
        g.program_bytes = g.page_bytes * shape.4;
        g.erase_block_bytes = g.program_bytes * shape.5;
        let t = &mut profile.timing;
        (t.read_ns, t.read_4k_ns, t.program_ns, t.erase_ns) = (times.0, times.1, times.2, times.3);
        (t.channel_bytes_per_s, profile.link.bytes_per_s) = (times.4, times.5);
        [t.cache_program, t.cache_read, t.independent_plane_reads, ..] = flags;
        let dies = profile.dies();
        profile.zones.buffer_bytes = rest.1 * profile.unit_bytes();
        let z = &mut profile.zones;
        [.., z.erase_on_reset, z.finish_fills, z.finish_yields, z.flush_drains, _, _] = flags;
        z.early_completion = flags[7] && z.buffer_bytes > 0;
        z.dies_per_zone = if dies.is_multiple_of(2) && flags[8] { dies / 2 } else { 0 };
        profile.firmware.cores = rest.0;
        profile.firmware.read_ns = rest.3;
        if rest.0 > 0 && flags[8] {
            profile.arbitration.kind = ArbitrationKind::RoundRobin;
        }
        profile.time_scale = rest.2;
        profile
    })
}

fn any_command() -> impl Strategy<Value = Command> {
    let zone = || prop_oneof![9 => 0u32..16, 1 => any::<u32>()].prop_map(ZoneId);
    let offset = || prop_oneof![9 => 0u64..8200, 1 => any::<u64>()];
    let sectors = || prop_oneof![9 => 0u64..300, 1 => any::<u64>()];
    let retry = prop_oneof![3 => Just(0u64), 1 => any::<u64>()];
    prop_oneof![
        (zone(), offset(), sectors(), retry).prop_map(|(zone, offset_sectors, sectors, retry_ns)| {
            Command::Read { zone, offset_sectors, sectors, retry_ns }
        }),
        (zone(), offset(), sectors()).prop_map(|(zone, offset_sectors, sectors)| Command::Write {
            zone,
            offset_sectors,
            sectors
        }),
        (zone(), offset(), sectors()).prop_map(|(zone, offset_sectors, sectors)| Command::Append {
            zone,
            offset_sectors,
            sectors
        }),
        zone().prop_map(Command::Reset),
        (zone(), offset()).prop_map(|(zone, written_sectors)| Command::Finish { zone, written_sectors }),
        zone().prop_map(Command::Open),
        zone().prop_map(Command::Close),
        prop_oneof![Just(Command::ResetAll), Just(Command::Flush), Just(Command::Report)],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn reads_programs_and_erases_are_due_when_the_arrays_of_microseconds_say(
        steps in steps(), cache_read in any::<bool>(),
    ) {
        run_beside_reference(&steps, cache_read)?;
    }

    #[test]
    fn a_buffer_lets_bytes_in_when_the_lists_of_what_came_and_went_say(
        writes in prop::collection::vec((0u64..400, 1u64..40), 1..40), units in 1u64..6,
    ) {
        let writes: Vec<(u64, u64)> = writes.into_iter().map(|(pause, blocks)| (pause, blocks * 4096)).collect();
        let capacity = units * 49_152;
        let buffer = format!("zones.buffer_bytes={capacity}");
        let mut model = model(&[&buffer, "zones.early_completion=true"], None);
        let wants = buffered_reference(&writes, capacity);
        let (mut now, mut offset) = (0, 0);
        for ((pause, bytes), want) in writes.into_iter().zip(wants) {
            now += pause;
            let due = model.submit(now * US, 0, &write(0, offset / 512, bytes / 512));
            prop_assert_eq!(due, want * US, "{} bytes at {} of {}", bytes, now, offset);
            offset += bytes;
        }
    }

    #[test]
    fn whatever_comes_nothing_overlaps_and_nothing_is_due_before_it_came(
        profile in any_profile(),
        script in prop::collection::vec((any_command(), 0u64..2_000_000, 0u16..6), 1..60),
    ) {
        let mut model = NandModel::new(&profile, &geometry(), 4).unwrap();
        let mut now = 0;
        for (command, pause, queue) in script {
            now += pause;
            // Clocks of several threads: some commands come with a slightly older time.
            let at = now.saturating_sub(pause % 977);
            let due = model.submit(at, queue, &command);
            prop_assert!(due >= at, "{command:?} at {at} is due at {due}");
        }
        assert_no_overlap(&model);
        prop_assert!(model.submit(u64::MAX, 0, &read(0, 0, 8)) == u64::MAX);
        for share in model.stats().channel_utilisation() {
            prop_assert!((0.0..=1.0).contains(&share), "{share}");
        }
    }

    #[test]
    fn a_fill_keeps_its_work_whatever_runs_between_its_programs(
        mut reads in prop::collection::vec((0u64..50_000, 0u64..80), 1..60),
    ) {
        let mut model = model(&["zones.dies_per_zone=1", "zones.finish_yields=true"], None);
        model.restore(ZoneId(4), u64::MAX);
        reads.sort_unstable();
        model.submit(0, 0, &Command::Finish { zone: ZoneId(0), written_sectors: 0 });
        for (at, unit) in &reads {
            let due = model.submit(at * US, 0, &read(4, unit * UNIT, 8));
            // At worst the program that runs and every read before it.
            prop_assert!(due <= (at + 600 + 30 * reads.len() as u64) * US);
        }
        assert_no_overlap(&model);
        prop_assert_eq!(model.flash.end, (86 * 600 + 30 * reads.len() as u64) * US);
    }
}

#[test]
fn a_profile_that_is_not_valid_makes_no_model() {
    let error = NandModel::new(&bench(&["zones.dies_per_zone=3"]), &geometry(), 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "profile bench: zones.dies_per_zone is 3: it must divide the 4 dies (0 for all of them)"
    );
}
