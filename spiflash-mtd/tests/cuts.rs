//! Power cut everywhere: what a chip must keep to, whatever was under way.
#![allow(clippy::unwrap_used, missing_docs)]

use spiflash_mtd::cuts::{Cut, CutOptions, CutReport, CutSearch, HalfState, Place};
use spiflash_mtd::reliability::ReliabilityParams;
use spiflash_mtd::script::Script;
use spiflash_mtd::states::State;
use spiflash_mtd::{Chip, Reg, Setup, SpiBus, Transfer, part};
use std::collections::BTreeSet;
use std::sync::Arc;

const SCRIPT: &str = "frame 06\nframe 02 001000 5a*256\nready\nframe 06\nframe 20 001000\nready\n";

fn chip(errors: &str) -> Chip {
    let setup = Setup { reliability: ReliabilityParams::load(errors).unwrap(), ..Setup::default() };
    Chip::new(Arc::new(part::find("W25Q128JV").unwrap().clone()), &setup).unwrap()
}

fn search(
    text: &str,
    points: u32,
    check: impl FnMut(&mut Chip, &Cut) -> Result<(), String>,
) -> (Chip, CutReport) {
    let mut search = CutSearch::new(chip("none"), CutOptions { points, between_bytes: true }, check);
    let script = Script::parse(text, "test").unwrap();
    script.run(&mut search, |result| assert_eq!(result.failure, None)).unwrap();
    search.finish()
}

fn halves(report: &CutReport, operation: &str) -> BTreeSet<HalfState> {
    report.left[operation].keys().copied().collect()
}

#[test]
fn every_byte_and_every_point_is_cut_and_all_half_states_of_program_and_erase_appear() {
    let (_, report) = search(SCRIPT, 20, |_, _| Ok(()));
    // Frames of 1, 260, 1 and 4 bytes: after CS# fell and after each byte.
    assert_eq!(report.in_frames, 2 + 261 + 2 + 5);
    // Program: begin, begin + 1, end - 1, end, end + 1 and 20 steps; erase: 6 more at two thresholds, of which the first, at a
    // quarter of the time, is none of the 20 steps.
    assert_eq!(report.while_busy, 25 + 31);
    assert_eq!(report.cuts, report.in_frames + report.while_busy);
    use HalfState::{Done, Mixed, OverErased, PartlyProgrammed, PreProgrammed, Untouched};
    assert_eq!(halves(&report, "program"), BTreeSet::from([Untouched, PartlyProgrammed, Done]));
    let all = [Untouched, PartlyProgrammed, PreProgrammed, Mixed, OverErased, Done];
    assert_eq!(halves(&report, "erase"), BTreeSet::from(all));
    // Empty, partly and wholly programmed, each step of the erase its own.
    assert!(report.distinct_arrays > 20, "{}", report.distinct_arrays);
    assert_eq!(report.failed, 0);
}

#[test]
fn a_cut_within_a_frame_changes_nothing() {
    let mut seen = 0;
    let (_, report) = search(SCRIPT, 0, |chip, cut| {
        let Place::Frame { .. } = cut.place else { return Ok(()) };
        seen += 1;
        let mut bytes = [0; 256];
        chip.array().read(0x1000, &mut bytes);
        let expected = if cut.frame < 2 { 0xFF } else { 0x5A };
        match bytes.iter().all(|byte| *byte == expected) && chip.stats().interrupted == 0 {
            true => Ok(()),
            false => Err(format!("{cut:?}")),
        }
    });
    assert_eq!((report.failed, &report.failures), (0, &vec![]));
    assert_eq!(seen, report.in_frames);
}

#[test]
fn an_interrupted_program_clears_bits_of_its_request_only_and_more_with_time() {
    let mut cleared = Vec::new();
    search(SCRIPT, 30, |chip, cut| {
        if let Place::Busy { state: State::Program, .. } = cut.place {
            let mut bytes = [0; 256];
            chip.array().read(0x1000, &mut bytes);
            assert!(bytes.iter().all(|byte| byte & 0x5A == 0x5A));
            cleared.push(bytes.iter().map(|byte| byte.count_zeros()).sum::<u32>());
            let mut others = vec![0; 4096 - 256];
            chip.array().read(0x1100, &mut others);
            assert!(others.iter().all(|byte| *byte == 0xFF));
        }
        Ok(())
    });
    assert!(cleared.is_sorted(), "{cleared:?}");
    assert_eq!((cleared.first(), cleared.last()), (Some(&0), Some(&(256 * 4))));
}

#[test]
fn registers_written_are_old_or_new_per_bit_and_what_was_volatile_is_lost() {
    // 04h is put into the working value alone; then 48h is to be stored over 80h.
    let text = "frame 06\nframe 01 20\nready\nframe 50\nframe 01 04\nframe 06\nframe 01 48\nready\n";
    let mut values = BTreeSet::new();
    let (_, report) = search(text, 40, |chip, cut| {
        if cut.frame == 5 && matches!(cut.place, Place::Busy { state: State::WriteStatus, .. }) {
            values.insert(chip.register(Reg::Sr1));
        }
        Ok(())
    });
    for value in &values {
        assert_eq!((value ^ 0x20) & (value ^ 0x48), 0, "{value:#04x} is neither 20h nor 48h in a bit");
    }
    assert!(values.contains(&0x20) && values.contains(&0x48) && values.len() > 2, "{values:02x?}");
    use HalfState::{Done, Mixed, Untouched};
    assert_eq!(halves(&report, "write-status"), BTreeSet::from([Untouched, Mixed, Done]));
}

#[test]
fn the_workload_sees_the_chip_that_it_would_see_without_the_search() {
    let text = format!(
        "{SCRIPT}frame 06\nframe 20 000000\nwait 20ms\nframe 75\nready\nframe 03 010000 >4\nframe 7a\nready\nframe 9f >3"
    );
    let script = Script::parse(&text, "test").unwrap();
    let (searched, report) = search(&text, 3, |_, _| Ok(()));
    let mut bus = spiflash_mtd::SimBus::of(chip("none"));
    let mut alone = Vec::new();
    script.run(&mut bus, |result| alone.push(result)).unwrap();
    let plain = bus.chip(0).unwrap();
    assert_eq!(
        serde_json::to_string(&searched.save()).unwrap(),
        serde_json::to_string(&plain.save()).unwrap()
    );
    assert_eq!(searched.array().unit(1), plain.array().unit(1));
    // The erase twice: to its suspend, and from its resume.
    assert!(
        report.left["erase"][&HalfState::Done] >= 2
            && !report.left["erase"].contains_key(&HalfState::Foreign)
    );
}

/// A program of one page by a driver that polls, so that cuts fall while bytes go over the lines.
fn poll(bus: &mut dyn SpiBus) {
    bus.frame(0, &mut [Transfer::write(&[0x06])]).unwrap();
    bus.frame(0, &mut [Transfer::write(&[0x02, 0, 0, 0, 0x00])]).unwrap();
    for _ in 0..10_000 {
        let mut status = [0xFF];
        bus.frame(0, &mut [Transfer::write(&[0x05]), Transfer::read(&mut status)]).unwrap();
        if status[0] & 1 == 0 {
            return;
        }
    }
    panic!("it is busy for ever");
}

#[test]
fn a_driver_that_polls_is_cut_while_it_polls() {
    let options = CutOptions { points: 100, between_bytes: false };
    let mut search = CutSearch::new(chip("none"), options, |chip, _| {
        let mut byte = [0];
        chip.array().read(0, &mut byte);
        // What is not asked for is a failure: here, that nothing was lost.
        if byte == [0xFF] { Err("the byte is not there".into()) } else { Ok(()) }
    });
    poll(&mut search);
    let (_, report) = search.finish();
    // The last point, 1 ns after the end, is after the frame that saw the end, or in it.
    assert_eq!((report.in_frames, report.while_busy), (0, 105));
    assert!(report.failed > 0 && report.failed < 105, "{}", report.failed);
    assert!(report.failures[0].starts_with("cut at "), "{}", report.failures[0]);
}

#[test]
fn an_erase_that_was_cut_while_it_recovered_reads_now_so_now_so() {
    let script = Script::parse(SCRIPT, "test").unwrap();
    let mut noisy = 0;
    let options = CutOptions { points: 40, between_bytes: false };
    let mut search = CutSearch::new(chip("nor-65nm"), options, |chip, cut| {
        if let Place::Busy { left: Some(HalfState::OverErased), fraction, .. } = cut.place
            && fraction < 0.9
        {
            let mut once = || {
                let mut out = vec![0; 4096];
                chip.select();
                chip.transfer(Transfer::write(&[0x03, 0, 0x10, 0]));
                chip.transfer(Transfer::read(&mut out));
                chip.deselect(0);
                out
            };
            noisy += u32::from(once() != once());
        }
        Ok(())
    });
    script.run(&mut search, |_| {}).unwrap();
    search.finish();
    assert!(noisy > 0);
}

#[test]
fn a_workload_that_loses_its_power_is_not_cut_after_that() {
    let mut after = 0;
    let text =
        "frame 06\nframe 20 000000\ncut-after 10ms\nwait 20ms\npower on\nready\nframe 9f >3 = ef 40 18\n";
    let (chip, report) = search(text, 8, |_, cut| {
        after +=
            u32::from(matches!(cut.place, Place::Busy { state: State::Erase, .. }) && cut.at_ns > 25_000_000);
        Ok(())
    });
    assert_eq!((after, chip.state()), (0, State::Idle));
    assert!(
        report.left["erase"].values().sum::<u64>() > 3
            && !report.left["erase"].contains_key(&HalfState::Done)
    );
}
