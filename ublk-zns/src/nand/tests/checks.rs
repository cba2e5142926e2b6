//! Every check is a closed form: what it must be is worked out here, in units of the profile's own times.

use super::*;

pub(super) type Check = fn(Option<Mutant>) -> Result<(), String>;

macro_rules! checks {
    ($($name:ident,)*) => {
        /// Every check with its name.
        pub(super) const CHECKS: &[(&str, Check)] = &[$((stringify!($name), $name),)*];

        mod true_model {
            $(#[test]
            fn $name() {
                super::$name(None).unwrap();
            })*
        }
    };
}

checks! {
    a_single_read_is_the_sum_of_its_parts,
    each_page_of_a_read_takes_its_retries,
    sequential_writes_keep_every_die_programming,
    sequential_writes_share_the_channels,
    a_cache_register_hides_the_transfer,
    a_slow_channel_bounds_the_writes,
    sequential_write_bandwidth_is_dies_times_unit_per_program,
    a_full_buffer_lets_in_what_programs_let_out,
    a_write_without_early_completion_waits_for_its_programs,
    small_writes_are_collected_into_units,
    buffered_data_is_read_from_the_buffer,
    many_reads_saturate_the_dies,
    many_reads_saturate_the_channel,
    a_die_without_cache_register_waits_for_its_transfer,
    planes_sense_at_the_same_time_where_they_can,
    zones_conflict_exactly_when_they_share_dies,
    a_read_waits_for_the_program_on_its_die,
    a_reset_erases_what_was_touched,
    a_reset_of_everything_erases_every_zone_once,
    a_deferred_erase_comes_with_the_first_program,
    a_finish_programs_the_rest,
    a_finish_counts_its_padding,
    a_fill_lets_others_in_between_programs,
    appends_run_in_parallel_like_writes,
    zones_on_different_dies_do_not_slow_each_other,
    cores_bound_the_commands,
    arbitration_protects_the_short_queue,
    the_link_bounds_each_direction_on_its_own,
    a_flush_waits_for_programs,
    time_scale_scales_everything,
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("{what}: {got:?}, not {want:?}")) }
}

/// Submits everything at time 0; the last due time.
fn burst(model: &mut NandModel, commands: impl IntoIterator<Item = Command>) -> u64 {
    commands.into_iter().map(|command| model.submit(0, 0, &command)).max().unwrap_or(0)
}

/// A model whose zones are all written.
fn written(changes: &[&str], mutant: Option<Mutant>) -> NandModel {
    let mut model = model(changes, mutant);
    for zone in 0..16 {
        model.restore(ZoneId(zone), u64::MAX);
    }
    model
}

fn a_single_read_is_the_sum_of_its_parts(mutant: Option<Mutant>) -> Result<(), String> {
    let link = "link.bytes_per_s=4096000000";
    let parts = ["firmware.read_ns=8us", "firmware.read_4k_ns=5us", link, CHANNEL];
    let small = written(&parts, mutant).submit(0, 0, &read(3, 8, 8));
    same("4 KiB: firmware, tR, channel, link", small, 5 * US + 30 * US + 2500 + US)?;
    let page = written(&parts, mutant).submit(70, 0, &read(3, 32, 32));
    same("16 KiB: firmware, tR, channel, link", page, 70 + 8 * US + 40 * US + 10 * US + 4 * US)
}

fn each_page_of_a_read_takes_its_retries(mutant: Option<Mutant>) -> Result<(), String> {
    let command = Command::Read { zone: ZoneId(0), offset_sectors: 0, sectors: 64, retry_ns: 25 * US };
    let due = written(&[], mutant).submit(0, 0, &command);
    same("two pages of a die", due, 2 * (40 + 25) * US)
}

fn sequential_writes_keep_every_die_programming(mutant: Option<Mutant>) -> Result<(), String> {
    let due = burst(&mut model(&[], mutant), (0..40).map(|unit| write(0, unit * UNIT, UNIT)));
    same("40 units on 4 dies", due, 40 / 4 * 600 * US)
}

fn sequential_writes_share_the_channels(mutant: Option<Mutant>) -> Result<(), String> {
    let due = burst(&mut model(&[CHANNEL], mutant), (0..40).map(|unit| write(0, unit * UNIT, UNIT)));
    // Die 2 follows die 0 on their channel, one transfer later; then each takes transfer + program per unit.
    same("40 units on 4 dies, 2 channels", due, 30 * US + 10 * (30 + 600) * US)
}

fn a_cache_register_hides_the_transfer(mutant: Option<Mutant>) -> Result<(), String> {
    let mut model = model(&[CHANNEL, "timing.cache_program=true"], mutant);
    let due = burst(&mut model, (0..40).map(|unit| write(0, unit * UNIT, UNIT)));
    same("40 units on 4 dies, 2 channels", due, 2 * 30 * US + 10 * 600 * US)
}

fn a_slow_channel_bounds_the_writes(mutant: Option<Mutant>) -> Result<(), String> {
    // 400 us per unit: two dies of a channel ask for 800 us of it per 600 us.
    let slow = ["timing.channel_bytes_per_s=122880000", "timing.cache_program=true"];
    let due = burst(&mut model(&slow, mutant), (0..40).map(|unit| write(0, unit * UNIT, UNIT)));
    same("20 transfers per channel and the last program", due, 20 * 400 * US + 600 * US)
}

fn sequential_write_bandwidth_is_dies_times_unit_per_program(mutant: Option<Mutant>) -> Result<(), String> {
    // One job at queue depth 1 with a buffer of two stripes, as a host that waits for every write sees it.
    let buffered = ["zones.buffer_bytes=384KiB", "zones.early_completion=true", "zones.dies_per_zone=2"];
    let mut model = model(&buffered, mutant);
    let mut now = 0;
    let mut times = Vec::new();
    for part in 0..480 {
        now = model.submit(now, 0, &write(1, part * 16, 16));
        times.push(now);
    }
    // Eight units fit; from the ninth on, each pair of dies lets two units in per tPROG.
    for (part, time) in times.iter().enumerate() {
        let unit = part as u64 / 6;
        let want = if unit < 8 { 0 } else { (unit - 8) / 2 * 600 * US + 600 * US };
        same(&format!("write {part}"), *time, want)?;
    }
    Ok(())
}

fn a_full_buffer_lets_in_what_programs_let_out(mutant: Option<Mutant>) -> Result<(), String> {
    // Two units of buffer on four dies: the buffer is the limit.
    let mut model = model(&["zones.buffer_bytes=96KiB", "zones.early_completion=true"], mutant);
    let mut now = 0;
    for unit in 0..20 {
        now = model.submit(now, 0, &write(0, unit * UNIT, UNIT));
        same(&format!("unit {unit}"), now, unit / 2 * 600 * US)?;
    }
    Ok(())
}

fn a_write_without_early_completion_waits_for_its_programs(mutant: Option<Mutant>) -> Result<(), String> {
    let mut model = model(&["zones.buffer_bytes=384KiB"], mutant);
    same("half a unit is safe in the buffer", model.submit(5, 0, &write(0, 0, UNIT / 2)), 5)?;
    same("the other half completes it", model.submit(5, 0, &write(0, UNIT / 2, UNIT / 2)), 5 + 600 * US)
}

fn small_writes_are_collected_into_units(mutant: Option<Mutant>) -> Result<(), String> {
    let mut model = model(&["zones.buffer_bytes=384KiB", "zones.early_completion=true"], mutant);
    for part in 0..12 * 5 {
        model.submit(0, 0, &write(0, part * 8, 8));
        let programs: u64 = model.stats().dies.iter().map(|die| die.programs).sum();
        same(&format!("programs after {} writes of 4 KiB", part + 1), programs, (part + 1) / 12)?;
    }
    same("host bytes", model.stats().host_bytes_programmed, 5 * 49152)
}

fn buffered_data_is_read_from_the_buffer(mutant: Option<Mutant>) -> Result<(), String> {
    let buffered =
        ["zones.buffer_bytes=384KiB", "zones.early_completion=true", "firmware.buffer_read_ns=2us"];
    let mut model = model(&buffered, mutant);
    burst(&mut model, [write(0, 0, UNIT), write(0, UNIT, 8)]);
    same("being programmed", model.submit(0, 0, &read(0, 0, 8)), 2 * US)?;
    same("not complete", model.submit(0, 0, &read(0, UNIT, 8)), 2 * US)?;
    same("never written", model.submit(0, 0, &read(0, 40 * UNIT, 8)), 2 * US)?;
    same("hits", model.stats().buffer_hits, 2)?;
    same("programmed", model.submit(MS, 0, &read(0, 0, 8)), MS + 30 * US)?;
    same("still not complete", model.submit(MS, 0, &read(0, UNIT, 8)), MS + 2 * US)
}

fn many_reads_saturate_the_dies(mutant: Option<Mutant>) -> Result<(), String> {
    let reads = (0..400).map(|n| read(n % 16, u64::from(n) % 80 * UNIT, 8));
    let due = burst(&mut written(&[], mutant), reads);
    same("100 senses per die", due, 100 * 30 * US)
}

fn many_reads_saturate_the_channel(mutant: Option<Mutant>) -> Result<(), String> {
    // 10 us per page and two dies per channel: 20 us of channel per 15 us of die.
    let fast = [CHANNEL, "timing.cache_read=true", "timing.read_ns=15us"];
    let reads = (0..400).map(|n| read(n % 16, u64::from(n) % 80 * UNIT, 32));
    let due = burst(&mut written(&fast, mutant), reads);
    same("the first sense and 200 transfers per channel", due, 15 * US + 200 * 10 * US)
}

fn a_die_without_cache_register_waits_for_its_transfer(mutant: Option<Mutant>) -> Result<(), String> {
    let reads = || (0..10).map(|row| read(0, row * 4 * UNIT, 32));
    same("without", burst(&mut written(&[CHANNEL], mutant), reads()), 10 * (40 + 10) * US)?;
    let cached = [CHANNEL, "timing.cache_read=true"];
    same("with", burst(&mut written(&cached, mutant), reads()), 10 * 40 * US + 10 * US)
}

fn planes_sense_at_the_same_time_where_they_can(mutant: Option<Mutant>) -> Result<(), String> {
    // A unit is two planes of 48 KiB, one after the other.
    let reads = || [read(0, 0, 32), read(0, UNIT, 32), read(0, 32, 32), read(0, UNIT + 32, 32)];
    let alone = ["geometry.planes_per_die=2", "timing.independent_plane_reads=true"];
    same("independent", burst(&mut written(&alone, mutant), reads()), 2 * 40 * US)?;
    same("the die at a time", burst(&mut written(&alone[..1], mutant), reads()), 4 * 40 * US)?;
    let mut mixed = written(&alone, mutant);
    mixed.submit(0, 0, &Command::Reset(ZoneId(0)));
    mixed.submit(0, 0, &write(0, 0, 2 * UNIT));
    let end = mixed.submit(0, 0, &read(4, 0, 32)).max(mixed.submit(0, 0, &read(4, UNIT, 32)));
    // 43 units of 96 KiB, 11 on the die, 4 to a block: 3 erases; a program takes both planes.
    same("behind an erase and a program", end, 3 * 3 * MS + 600 * US + 40 * US)
}

fn zones_conflict_exactly_when_they_share_dies(mutant: Option<Mutant>) -> Result<(), String> {
    // Two dies per zone: zones 0, 2, 4... on dies 0 and 1; zones 1, 3... on dies 2 and 3.
    for (zone, unit) in (0..6).flat_map(|zone| [(zone, 0), (zone, 1)]) {
        for first in 0..2 {
            let mut model = written(&["zones.dies_per_zone=2"], mutant);
            model.submit(0, 0, &read(0, first * UNIT, 8));
            let due = model.submit(0, 0, &read(zone, (unit + 4) * UNIT, 8));
            let conflict = u64::from(zone % 2 == 0 && unit == first);
            let what = format!("zone 0 unit {first} and zone {zone} unit {unit}");
            same(&what, due, (1 + conflict) * 30 * US)?;
        }
    }
    // By place: neighbouring dies are on different channels, or on the same one.
    for (placement, channels) in [("channel-first", [0, 1]), ("die-first", [0, 0])] {
        let placed = [&format!("zones.placement={placement}"), "zones.dies_per_zone=2", CHANNEL];
        let mut model = written(&placed, mutant);
        let place = |unit| model.place(ZoneId(0), unit * UNIT).map(|place| place.channel);
        same(placement, [place(0), place(1)], channels.map(Some))?;
        let due = burst(&mut model, [read(0, 0, 32), read(0, UNIT, 32)]);
        let wait = if channels[0] == channels[1] { 10 * US } else { 0 };
        same(placement, due, 50 * US + wait)?;
    }
    Ok(())
}

fn a_read_waits_for_the_program_on_its_die(mutant: Option<Mutant>) -> Result<(), String> {
    let mut model = model(&[], mutant);
    burst(&mut model, [write(0, 0, UNIT)]);
    model.restore(ZoneId(1), u64::MAX);
    same("its die", model.submit(100 * US, 0, &read(1, 0, 8)), 630 * US)?;
    same("another die", model.submit(100 * US, 0, &read(1, UNIT, 8)), 130 * US)
}

fn a_reset_erases_what_was_touched(mutant: Option<Mutant>) -> Result<(), String> {
    let costs = ["zones.dies_per_zone=2", "firmware.manage_ns=3us", "zones.reset_ns=7us"];
    // Zone 0 on dies 0 and 1, four units in a block: units written, blocks erased on each.
    for (units, blocks) in [(0, [0, 0]), (1, [1, 0]), (2, [1, 1]), (8, [1, 1]), (9, [2, 1]), (10, [2, 2])] {
        let mut model = model(&costs, mutant);
        model.restore(ZoneId(0), units * UNIT);
        model.restore(ZoneId(1), u64::MAX);
        model.restore(ZoneId(2), u64::MAX);
        let due = model.submit(0, 0, &Command::Reset(ZoneId(0)));
        same(&format!("reset of {units} units"), due, 10 * US + blocks[0] * 3 * MS)?;
        for (slot, blocks) in [(0, blocks[0]), (1, blocks[1])] {
            let busy = if blocks == 0 { 0 } else { 10 * US + blocks * 3 * MS };
            let due = model.submit(0, 0, &read(2, slot * UNIT, 8));
            same(&format!("read of die {slot} beside it"), due, 30 * US + busy)?;
            let due = model.submit(0, 0, &read(1, slot * UNIT, 8));
            same("read of the other dies", due, 30 * US)?;
        }
        same("a second reset", model.submit(20 * MS, 0, &Command::Reset(ZoneId(0))), 20 * MS + 10 * US)?;
        same("erases", model.stats().erases(), blocks[0] + blocks[1])?;
    }
    Ok(())
}

fn a_reset_of_everything_erases_every_zone_once(mutant: Option<Mutant>) -> Result<(), String> {
    let mut model = model(&["zones.dies_per_zone=2", "zones.reset_ns=7us"], mutant);
    for (zone, units) in [(0, 9), (1, 2), (2, 1), (5, 85)] {
        model.restore(ZoneId(zone), units * UNIT);
    }
    let due = model.submit(0, 0, &Command::ResetAll);
    // Dies 0 and 1: 9 units (2 and 1 blocks) and 1 unit (1, 0). Dies 2 and 3: 2 units (1, 1) and 85 (43 and 42: 11, 11).
    let erases: Vec<u64> = model.stats().dies.iter().map(|die| die.erases).collect();
    same("blocks", erases, vec![3, 1, 12, 12])?;
    same("due", due, 7 * US + 12 * 3 * MS)?;
    same("again", model.submit(due, 0, &Command::ResetAll), due + 7 * US)
}

fn a_deferred_erase_comes_with_the_first_program(mutant: Option<Mutant>) -> Result<(), String> {
    let mut model = model(&["zones.erase_on_reset=false", "zones.dies_per_zone=1"], mutant);
    model.restore(ZoneId(0), 6 * UNIT);
    same("reset", model.submit(0, 0, &Command::Reset(ZoneId(0))), 0)?;
    // Six units were two blocks: units 0 and 4 begin one, unit 8 begins one that is clean.
    let mut now = 0;
    for unit in 0..10 {
        let erase = if unit == 0 || unit == 4 { 3 * MS } else { 0 };
        let due = model.submit(now, 0, &write(0, unit * UNIT, UNIT));
        same(&format!("unit {unit}"), due - now, 600 * US + erase)?;
        now = due;
    }
    // Ten units are three blocks; a finish meets all of them.
    model.submit(now, 0, &Command::Reset(ZoneId(0)));
    let due = model.submit(now, 0, &Command::Finish { zone: ZoneId(0), written_sectors: 0 });
    same("finish", due - now, 86 * 600 * US + 3 * 3 * MS)
}

fn a_finish_programs_the_rest(mutant: Option<Mutant>) -> Result<(), String> {
    // 86 units on 4 dies: 22, 22, 21, 21.
    let rest = |written: u64| {
        let on = |units: u64, die: u64| units / 4 + u64::from(units % 4 > die);
        (0..4).map(|die| on(86, die) - on(written, die)).max().unwrap_or(0)
    };
    for units in [0, 1, 2, 5, 6, 42, 84, 85] {
        let mut model = model(&["firmware.manage_ns=3us", "zones.finish_ns=5us", CHANNEL], mutant);
        model.restore(ZoneId(2), units * UNIT);
        let due = model.submit(0, 0, &Command::Finish { zone: ZoneId(2), written_sectors: units * UNIT });
        same(&format!("after {units} units"), due, 8 * US + rest(units) * (600 + 30) * US)?;
        let again = Command::Finish { zone: ZoneId(2), written_sectors: 8192 };
        same("again", model.submit(due, 0, &again), due + 8 * US)?;
    }
    Ok(())
}

fn a_finish_counts_its_padding(mutant: Option<Mutant>) -> Result<(), String> {
    let buffered = ["zones.buffer_bytes=384KiB", "zones.early_completion=true"];
    let mut model = model(&buffered, mutant);
    model.submit(0, 0, &write(0, 0, 5 * UNIT + 8));
    model.submit(0, 0, &Command::Finish { zone: ZoneId(0), written_sectors: 5 * UNIT + 8 });
    let stats = model.stats();
    same("host", stats.host_bytes_programmed, (5 * UNIT + 8) * 512)?;
    same("padding", stats.padding_bytes, (4 << 20) - (5 * UNIT + 8) * 512)?;
    same("programs", stats.dies.iter().map(|die| die.programs).sum::<u64>(), 86)?;
    let want = (4 << 20) as f64 / ((5 * UNIT + 8) * 512) as f64;
    same("write amplification", stats.write_amplification(), Some(want))
}

fn a_fill_lets_others_in_between_programs(mutant: Option<Mutant>) -> Result<(), String> {
    for (yields, at_0, at_1000) in [(true, 0, 1200), (false, 86 * 600, 86 * 600)] {
        let mut model = model(&["zones.dies_per_zone=1", &format!("zones.finish_yields={yields}")], mutant);
        model.restore(ZoneId(4), u64::MAX);
        let finish = Command::Finish { zone: ZoneId(0), written_sectors: 0 };
        same("finish", model.submit(0, 0, &finish), 86 * 600 * US)?;
        same("at once", model.submit(0, 0, &read(4, 0, 8)), (at_0 + 30) * US)?;
        // The read put the fill off by 30 us: the second program ends at 1230.
        let late = if yields { 30 } else { 0 };
        let due = model.submit(1000 * US, 0, &read(4, 0, 8));
        same("in the middle of a program", due, (at_1000 + late + 30 + u64::from(!yields) * 30) * US)?;
        let other = model.submit(1000 * US, 0, &read(1, 0, 8));
        same("another die", other, 1000 * US)?;
    }
    Ok(())
}

fn appends_run_in_parallel_like_writes(mutant: Option<Mutant>) -> Result<(), String> {
    let due = burst(&mut model(&[], mutant), (0..40).map(|unit| append(0, unit * UNIT, UNIT)));
    same("40 appends on 4 dies", due, 10 * 600 * US)?;
    // In any order of arrival, as from several threads; with a buffer, in pieces.
    let mut model = model(&["zones.buffer_bytes=3MiB"], mutant);
    let due = burst(&mut model, (0..160).map(|n| append(0, n * 7 % 160 * UNIT / 4, UNIT / 4)));
    same("40 units in pieces, shuffled", due, 10 * 600 * US)
}

fn zones_on_different_dies_do_not_slow_each_other(mutant: Option<Mutant>) -> Result<(), String> {
    let mut model = model(&["zones.dies_per_zone=2"], mutant);
    let both = (0..10).flat_map(|unit| [write(0, unit * UNIT, UNIT), write(1, unit * UNIT, UNIT)]);
    same("10 units each on 2 dies each", burst(&mut model, both), 5 * 600 * US)?;
    let all = (0..10).flat_map(|unit| [write(2, unit * UNIT, UNIT), write(4, unit * UNIT, UNIT)]);
    same("the same dies", burst(&mut model, all), 15 * 600 * US)
}

fn cores_bound_the_commands(mutant: Option<Mutant>) -> Result<(), String> {
    // Reads of an empty zone are firmware only.
    let mut model = model(&["firmware.read_ns=10us", "firmware.cores=2"], mutant);
    for n in 0..20 {
        same(&format!("read {n}"), model.submit(0, 0, &read(0, 0, 8)), (n / 2 + 1) * 10 * US)?;
    }
    same("after a pause", model.submit(MS, 0, &read(0, 0, 8)), MS + 10 * US)
}

fn arbitration_protects_the_short_queue(mutant: Option<Mutant>) -> Result<(), String> {
    for (kind, want) in [("fifo", 65 * 10 * US), ("round-robin", 2 * 10 * US)] {
        let shared = ["firmware.read_ns=10us", "firmware.cores=1", &format!("arbitration.kind={kind}")];
        let mut model = model(&shared, mutant);
        let deep = (0..64).map(|_| read(0, 0, 8));
        same("64 commands of a queue alone", burst(&mut model, deep), 64 * 10 * US)?;
        same(kind, model.submit(0, 1, &read(0, 0, 8)), want)?;
    }
    // Both backlogged: each gets half, in the long run.
    let shared = ["firmware.read_ns=10us", "firmware.cores=1", "arbitration.kind=round-robin"];
    let mut model = model(&shared, mutant);
    model.submit(0, 0, &read(0, 0, 8));
    let rounds = (0..100).map(|_| (model.submit(0, 1, &read(0, 0, 8)), model.submit(0, 0, &read(0, 0, 8))));
    same("100 commands each", rounds.last(), Some((2000 * US, 2010 * US)))
}

fn the_link_bounds_each_direction_on_its_own(mutant: Option<Mutant>) -> Result<(), String> {
    let link = ["link.bytes_per_s=1024000000", "zones.buffer_bytes=3MiB", "zones.early_completion=true"];
    let mut model = model(&link, mutant);
    let reads = burst(&mut model, (0..10).map(|_| read(5, 0, 200)));
    same("10 × 100 KiB to the host", reads, 10 * 100 * US)?;
    let writes = burst(&mut model, (0..10).map(|n| write(0, n * 200, 200)));
    same("10 × 100 KiB from the host meanwhile", writes, 10 * 100 * US)
}

fn a_flush_waits_for_programs(mutant: Option<Mutant>) -> Result<(), String> {
    for (drains, want) in [(true, 600 * US), (false, 4 * US)] {
        let drain = format!("zones.flush_drains={drains}");
        let mut model = model(&["zones.buffer_bytes=384KiB", "firmware.flush_ns=4us", &drain], mutant);
        model.submit(0, 0, &write(0, 0, UNIT + 8));
        same(&drain, model.submit(0, 0, &Command::Flush), want)?;
        same("nothing on the way", model.submit(MS, 0, &Command::Flush), MS + 4 * US)?;
    }
    Ok(())
}

fn time_scale_scales_everything(mutant: Option<Mutant>) -> Result<(), String> {
    let changes = [
        CHANNEL,
        "link.bytes_per_s=4096000000",
        "firmware.read_ns=8us",
        "firmware.write_ns=2us",
        "firmware.write_per_4k_ns=500",
        "firmware.manage_ns=3us",
        "zones.buffer_bytes=96KiB",
        "zones.early_completion=true",
        "zones.finish_yields=true",
    ];
    let script = |scale: u64| {
        let mut all = changes.to_vec();
        let text = format!("time_scale={scale}");
        all.push(&text);
        let mut model = model(&all, mutant);
        let mut dues = Vec::new();
        for n in 0..30 {
            dues.push(model.submit(n * 20 * US * scale, 0, &write(0, n * UNIT, UNIT)));
            dues.push(model.submit(n * 30 * US * scale, 0, &read(0, n / 2 * UNIT, 32)));
        }
        dues.push(model.submit(
            MS * scale,
            0,
            &Command::Finish { zone: ZoneId(0), written_sectors: 30 * UNIT },
        ));
        dues.push(model.submit(2 * MS * scale, 0, &read(0, 0, 32)));
        dues.push(model.submit(20 * MS * scale, 0, &Command::Reset(ZoneId(0))));
        dues
    };
    same("ten times slower", script(10), script(1).iter().map(|due| due * 10).collect())
}
