//! The frame decoder: arbitrary and damaged frames against an independent reference, and each rule by name.
#![allow(clippy::unwrap_used, missing_docs)]

mod reference;

use proptest::prelude::*;
use reference::{Beat, Decoded, Flow, Verdict, lines};
use spiflash_mtd::{
    AddressMode, AddressPhase, Command, CommandSpec, CommandTable, DataPhase, Event, FrameDecoder,
    FrameError, Lines, Payload, Phase, Request, SpiError, catalogue,
};

fn decoder() -> FrameDecoder {
    FrameDecoder::new(CommandTable::jedec())
}

fn mode(wide: bool) -> AddressMode {
    if wide { AddressMode::FourByte } else { AddressMode::ThreeByte }
}

/// One frame through a decoder.
fn run(
    chip: &mut FrameDecoder,
    frame: &[Beat],
    stray_clocks: u8,
    wide: bool,
) -> (Vec<Event>, Option<Command>) {
    chip.select(mode(wide));
    let events = frame.iter().map(|(byte, count)| chip.clock(*byte, lines(*count))).collect();
    (events, chip.deselect(stray_clocks))
}

/// One frame of whole bytes, all on one line, to a fresh chip in the 3-byte mode.
fn single(bytes: &[u8]) -> (Vec<Event>, Option<Command>) {
    let frame: Vec<Beat> = bytes.iter().map(|byte| (*byte, 1)).collect();
    run(&mut decoder(), &frame, 0, false)
}

fn outcome(bytes: &[u8]) -> Result<(), FrameError> {
    single(bytes).1.unwrap().outcome
}

/// A command in the reference's terms.
fn plain(command: &Command) -> Decoded {
    let verdict = match command.outcome {
        Ok(()) => Verdict::Counts,
        Err(FrameError::CutShort { .. }) => Verdict::Short,
        Err(FrameError::TooLong { bytes }) => Verdict::Long(bytes),
        Err(FrameError::WithinByte { clocks }) => Verdict::WithinByte(clocks),
        Err(FrameError::UnknownOpcode { .. }) => Verdict::Unknown,
        Err(FrameError::WrongLines { .. }) => Verdict::WrongLines,
        Err(FrameError::Misaligned { .. }) => Verdict::Misaligned,
    };
    Decoded {
        opcode: command.opcode,
        address: command.address,
        mode: command.mode,
        data: (command.data.start as usize, command.data.end as usize),
        verdict,
    }
}

fn opcodes() -> impl Strategy<Value = u8> {
    let known: Vec<u8> = catalogue::jedec().map(|command| command.opcode).collect();
    prop_oneof![12 => prop::sample::select(known), 1 => any::<u8>()]
}

fn counts() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(1u8), 1 => Just(2u8), 1 => Just(4u8)]
}

/// Frames that follow the layout of their opcode, then are cut, lengthened or given a byte on other lines.
fn frames() -> impl Strategy<Value = (Vec<Beat>, u8, bool)> {
    let shaped = (
        opcodes(),
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 64),
        0usize..12,
        prop::option::weighted(0.3, 0usize..24),
        prop::option::weighted(0.2, (0usize..24, counts())),
        counts(),
        prop_oneof![4 => Just(0u8), 1 => 1u8..8],
    )
        .prop_map(|(opcode, wide, noise, data, cut, damage, dummy_lines, stray)| {
            let mut frame: Vec<Beat> = vec![(opcode, 1)];
            let mut noise = noise.into_iter();
            let mut push = |n: usize, count: u8| frame.extend(noise.by_ref().take(n).map(|b| (b, count)));
            if let Some(layout) = reference::layout(opcode, wide) {
                push(layout.address_bytes + layout.mode_bytes, layout.address_lines);
                push((layout.dummy_clocks * u32::from(dummy_lines)).div_ceil(8) as usize, dummy_lines);
                let count = match layout.flow {
                    Flow::Nothing => 1,
                    Flow::ToChip(count, _) | Flow::FromChip(count) => count,
                };
                let data = if layout.flow == Flow::Nothing { data.saturating_sub(8) } else { data };
                push(data, count);
            } else {
                push(data, 1);
            }
            if let Some(cut) = cut {
                frame.truncate(cut);
            }
            if let Some((at, count)) = damage
                && let Some(beat) = frame.get_mut(at)
            {
                beat.1 = count;
            }
            (frame, stray, wide)
        });
    let arbitrary =
        (prop::collection::vec((any::<u8>(), counts()), 0..40), 0u8..=255, any::<bool>()).prop_map(|f| f);
    prop_oneof![4 => shaped, 1 => arbitrary]
}

/// A request that the table can encode, for any of its commands.
fn requests() -> impl Strategy<Value = (CommandSpec, u32, u8, Vec<u8>, bool)> {
    (
        prop::sample::select(catalogue::jedec().collect::<Vec<_>>()),
        any::<u32>(),
        any::<u8>(),
        prop::collection::vec(any::<u8>(), 1..300),
        any::<bool>(),
    )
        .prop_map(|(spec, address, mode_byte, mut data, wide)| {
            if let DataPhase::In { max_bytes, .. } = spec.data {
                data.truncate(max_bytes as usize);
            }
            let address = if spec.address.bytes(mode(wide)) == 3 { address >> 8 } else { address };
            (spec, address, mode_byte, data, wide)
        })
}

fn encoded(spec: &CommandSpec, address: u32, mode_byte: u8, data: &[u8], wide: bool) -> Vec<Beat> {
    let payload = match spec.data {
        DataPhase::None => Payload::None,
        DataPhase::In { .. } => Payload::In(data),
        DataPhase::Out { .. } => Payload::Out(data.len()),
    };
    let request = Request {
        opcode: spec.opcode,
        address: (spec.address != AddressPhase::None).then_some(address),
        mode: spec.mode_byte.then_some(mode_byte),
        payload,
    };
    let segments = CommandTable::jedec().encode(&request, mode(wide)).unwrap();
    segments
        .iter()
        .flat_map(|segment| segment.bytes.iter().map(|byte| (*byte, segment.lines.count())))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_frame_decodes_as_the_reference_decodes_it_whole((frame, stray, wide) in frames()) {
        let (events, command) = run(&mut decoder(), &frame, stray, wide);
        let expected = reference::decode(&frame, stray, wide);
        prop_assert_eq!(command.as_ref().map(plain), expected.clone(), "{:?}", frame);
        // The events must tell the same story as the command.
        prop_assert_eq!(events.len(), frame.len());
        let Some(expected) = expected else { return Ok(()) };
        let mut data = Vec::new();
        for (at, event) in events.iter().enumerate() {
            match *event {
                Event::DataIn { index, byte } => {
                    prop_assert_eq!(byte, frame[at].0);
                    data.push((at, index));
                }
                Event::DataOut { index } => data.push((at, index)),
                Event::Address(address) => prop_assert_eq!(Some(address), expected.address),
                Event::Mode(mode) => prop_assert_eq!(Some(mode), expected.mode),
                _ => {}
            }
        }
        let positions: Vec<(usize, u64)> = (expected.data.0..expected.data.1).zip(0..).collect();
        prop_assert_eq!(data, positions);
        prop_assert_eq!(
            events.iter().filter(|event| matches!(event, Event::Address(_))).count(),
            usize::from(expected.address.is_some())
        );
    }

    #[test]
    fn bytes_decode_the_same_however_they_are_cut_into_pieces(
        (frame, stray, wide) in frames(), cuts in prop::collection::vec(0usize..40, 0..6),
    ) {
        let mut chip = decoder();
        let expected = run(&mut chip, &frame, stray, wide);
        chip.select(mode(wide));
        let mut events = Vec::new();
        let mut start = 0;
        while start < frame.len() {
            // A piece ends where the lines change, and wherever a cut says so.
            let same = |at: &usize| frame[*at].1 == frame[start].1 && !cuts.contains(at);
            let end = start + 1 + (start + 1..frame.len()).take_while(same).count();
            let bytes: Vec<u8> = frame[start..end].iter().map(|(byte, _)| *byte).collect();
            chip.transfer(&bytes, lines(frame[start].1), |event| events.push(event));
            chip.transfer(&[], Lines::Quad, |event| events.push(event));
            start = end;
        }
        prop_assert_eq!((events, chip.deselect(stray)), expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_leave_nothing_for_the_next_frame(
        steps in prop::collection::vec((any::<u8>(), counts(), 0u8..12, any::<bool>()), 0..120),
        (frame, stray, wide) in frames(),
    ) {
        let mut chip = decoder();
        for (byte, count, dice, wide) in steps {
            match dice {
                0 => chip.select(mode(wide)),
                1 => drop(chip.deselect(byte)),
                _ => drop(chip.clock(byte, lines(count))),
            }
        }
        prop_assert_eq!(run(&mut chip, &frame, stray, wide), run(&mut decoder(), &frame, stray, wide));
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same_command((spec, address, mode_byte, data, wide) in requests()) {
        let frame = encoded(&spec, address, mode_byte, &data, wide);
        let (events, command) = run(&mut decoder(), &frame, 0, wide);
        let command = command.unwrap();
        prop_assert_eq!(command.outcome, Ok(()));
        prop_assert_eq!((command.opcode, command.spec), (spec.opcode, Some(spec)));
        prop_assert_eq!(command.address, (spec.address != AddressPhase::None).then_some(address));
        prop_assert_eq!(command.mode, spec.mode_byte.then_some(mode_byte));
        let length = if spec.data == DataPhase::None { 0 } else { data.len() as u64 };
        prop_assert_eq!(command.data.end - command.data.start, length);
        prop_assert!(length == 0 || command.data.end == frame.len() as u64);
        if let DataPhase::In { .. } = spec.data {
            let arrived = events.iter().filter_map(|event| match event {
                Event::DataIn { byte, .. } => Some(*byte),
                _ => None,
            });
            prop_assert_eq!(arrived.collect::<Vec<u8>>(), data);
        }
    }

    #[test]
    fn a_part_with_other_dummy_clocks_decodes_by_its_own_table(
        dummy_bytes in 0u8..16, data in 0usize..8, wide in any::<bool>(),
    ) {
        // Micron's quad I/O read: 10 clocks after the address, none of them a mode byte.
        let mut table = CommandTable::jedec();
        let quad = AddressPhase::ByMode(Lines::Quad);
        let own = CommandSpec::read(0xEB, "Quad I/O Fast Read", quad, dummy_bytes * 2, Lines::Quad);
        prop_assert_eq!(table.replace(own).unwrap().unwrap().dummy_clocks, 4);
        let request =
            Request { opcode: 0xEB, address: Some(0x12_3456), mode: None, payload: Payload::Out(data) };
        let segments = table.encode(&request, mode(wide)).unwrap();
        let mut chip = FrameDecoder::new(table);
        chip.select(mode(wide));
        for segment in &segments {
            chip.transfer(&segment.bytes, segment.lines, |_| {});
        }
        prop_assert_eq!(chip.phase(), Phase::DataOut);
        let command = chip.deselect(0).unwrap();
        prop_assert_eq!((command.outcome, command.address), (Ok(()), Some(0x12_3456)));
        prop_assert_eq!(command.data.end - command.data.start, data as u64);
    }
}

#[test]
fn the_table_is_one_that_would_be_accepted_and_the_reference_knows_the_same_opcodes() {
    assert_eq!(CommandTable::new(catalogue::jedec()).unwrap(), CommandTable::jedec());
    assert_eq!(CommandTable::jedec().iter().count(), catalogue::jedec().count());
    for opcode in 0..=255 {
        let known = CommandTable::jedec().get(opcode).is_some();
        assert_eq!(known, reference::layout(opcode, false).is_some(), "{opcode:02X}h");
    }
}

#[test]
fn the_clocks_before_the_data_are_those_that_the_parts_state_in_their_sfdp() {
    // Basic flash parameter table, dwords 3 and 4, as read from W25Q512JV, MX25L25635F and IS25WP256:
    // for each fast read, mode clocks in bits 7-5 and wait states in bits 4-0, then the opcode.
    let parts = [
        [0x44, 0xEB, 0x08, 0x6B, 0x08, 0x3B, 0x42, 0xBB],
        [0x44, 0xEB, 0x08, 0x6B, 0x08, 0x3B, 0x04, 0xBB],
        [0x44, 0xEB, 0x08, 0x6B, 0x08, 0x3B, 0x80, 0xBB],
    ];
    let table = CommandTable::jedec();
    for part in parts {
        for read in part.chunks_exact(2) {
            let (stated, opcode): (u8, u8) = (read[0], read[1]);
            let spec = table.get(opcode).unwrap();
            let mode_clocks = if spec.mode_byte { spec.address.lines().clocks_per_byte() } else { 0 };
            assert_eq!(mode_clocks + spec.dummy_clocks, (stated >> 5) + (stated & 31), "{opcode:02X}h");
        }
    }
}

#[test]
fn no_write_program_or_erase_frame_that_is_cut_short_counts() {
    let commands = catalogue::jedec().filter(|spec| !matches!(spec.data, DataPhase::Out { .. }));
    for (spec, wide) in commands.flat_map(|spec| [(spec, false), (spec, true)]) {
        let frame = encoded(&spec, 0x12_3456, 0, &[0xA5], wide);
        assert_eq!(run(&mut decoder(), &frame, 0, wide).1.unwrap().outcome, Ok(()), "{}", spec.name);
        for cut in 1..frame.len() {
            let command = run(&mut decoder(), &frame[..cut], 0, wide).1.unwrap();
            let cut_short = matches!(command.outcome, Err(FrameError::CutShort { .. }));
            assert!(cut_short, "{} cut to {cut}: {:?}", spec.name, command.outcome);
        }
        for clocks in 1..8 {
            let command = run(&mut decoder(), &frame, clocks, wide).1.unwrap();
            assert_eq!(command.outcome, Err(FrameError::WithinByte { clocks }), "{}", spec.name);
        }
    }
}

#[test]
fn an_erase_whose_address_is_not_whole_says_where_it_was_cut() {
    // QEMU's m25p80 carries it out.
    assert_eq!(outcome(&[0x20, 0, 0x10]), Err(FrameError::CutShort { phase: Phase::Address }));
    assert_eq!(outcome(&[0x20, 0, 0x10, 0]), Ok(()));
    let message = outcome(&[0x20, 0, 0x10]).unwrap_err().to_string();
    assert_eq!(message, "CS# rose in the Address phase, before the command was whole");
}

#[test]
fn a_page_program_without_data_does_nothing() {
    let (_, command) = single(&[0x02, 0, 1, 0]);
    let command = command.unwrap();
    assert_eq!(command.outcome, Err(FrameError::CutShort { phase: Phase::DataIn }));
    assert_eq!((command.address, command.data), (Some(0x100), 0..0));
}

#[test]
fn what_follows_a_command_in_its_frame_is_not_another_command() {
    // QEMU's m25p80 decodes WREN and the erase behind it in one frame.
    let (events, command) = single(&[0x06, 0xC7]);
    assert_eq!(events, [Event::Opcode { opcode: 0x06, known: true }, Event::Excess]);
    let command = command.unwrap();
    assert_eq!((command.opcode, command.outcome), (0x06, Err(FrameError::TooLong { bytes: 1 })));
    assert_eq!(outcome(&[0xD8, 1, 0, 0, 9, 9]), Err(FrameError::TooLong { bytes: 2 }));
}

#[test]
fn a_status_register_write_takes_as_many_bytes_as_the_table_says() {
    assert_eq!(outcome(&[0x01]), Err(FrameError::CutShort { phase: Phase::DataIn }));
    assert_eq!((outcome(&[0x01, 0]), outcome(&[0x01, 0, 2])), (Ok(()), Ok(())));
    assert_eq!(outcome(&[0x01, 0, 2, 0]), Err(FrameError::TooLong { bytes: 1 }));
    assert_eq!(outcome(&[0x31, 2, 0]), Err(FrameError::TooLong { bytes: 1 }));
}

#[test]
fn an_unknown_opcode_is_ignored_with_all_that_follows() {
    let (events, command) = single(&[0xFE, 0x06, 0x20]);
    assert_eq!(events, [Event::Opcode { opcode: 0xFE, known: false }, Event::Ignored, Event::Ignored]);
    let command = command.unwrap();
    assert_eq!((command.spec, command.data.clone()), (None, 0..0));
    assert_eq!(command.outcome, Err(FrameError::UnknownOpcode { opcode: 0xFE }));
}

#[test]
fn dummy_clocks_are_clocks_and_not_bytes() {
    // Eight clocks are one byte on one line, and four on four: the data of a fast read begins after either.
    let mut chip = decoder();
    for (dummies, count) in [(1, 1), (2, 2), (4, 4)] {
        let mut frame: Vec<Beat> = vec![(0x0B, 1), (0, 1), (0, 1), (0, 1)];
        frame.extend(std::iter::repeat_n((0, count), dummies));
        frame.push((0, 1));
        let (events, command) = run(&mut chip, &frame, 0, false);
        assert_eq!(events.last(), Some(&Event::DataOut { index: 0 }));
        assert_eq!(command.unwrap().data, 4 + dummies as u64..5 + dummies as u64);
    }
}

#[test]
fn a_byte_that_goes_over_the_end_of_the_dummy_clocks_breaks_the_frame() {
    let mut frame: Vec<Beat> = vec![(0xEB, 1)];
    frame.extend([(0, 4); 4]);
    frame.push((0, 1));
    let (events, command) = run(&mut decoder(), &frame, 0, false);
    let misaligned = FrameError::Misaligned { clocks_left: 4, byte_clocks: 8 };
    assert_eq!(events.last(), Some(&Event::Broken(misaligned)));
    assert_eq!(command.unwrap().outcome, Err(misaligned));
}

#[test]
fn a_phase_on_the_wrong_lines_breaks_the_frame_and_says_which() {
    let wrong = |phase, expected, got| Err(FrameError::WrongLines { phase, expected, got });
    assert_eq!(outcome(&[0xEB, 0, 0]), wrong(Phase::Address, Lines::Quad, Lines::Single));
    assert_eq!(outcome(&[0x32, 0, 0, 0, 7]), wrong(Phase::DataIn, Lines::Quad, Lines::Single));
    let (events, command) = run(&mut decoder(), &[(0x06, 4), (0x06, 1)], 0, false);
    let error = FrameError::WrongLines { phase: Phase::Opcode, expected: Lines::Single, got: Lines::Quad };
    assert_eq!(events, [Event::Broken(error), Event::Ignored]);
    assert_eq!(command, None);
}

#[test]
fn the_address_mode_counts_only_for_commands_that_leave_it_to_the_mode() {
    let frame: Vec<Beat> = [0x5A, 0, 0, 0x10, 0xFF, 0].map(|byte| (byte, 1)).to_vec();
    for wide in [false, true] {
        let command = run(&mut decoder(), &frame, 0, wide).1.unwrap();
        assert_eq!((command.address, command.data), (Some(0x10), 5..6), "SFDP is always 3 bytes");
    }
    let frame: Vec<Beat> = [0x20, 1, 2, 3, 4].map(|byte| (byte, 1)).to_vec();
    let long = run(&mut decoder(), &frame, 0, false).1.unwrap();
    assert_eq!((long.address, long.outcome), (Some(0x01_0203), Err(FrameError::TooLong { bytes: 1 })));
    let whole = run(&mut decoder(), &frame, 0, true).1.unwrap();
    assert_eq!((whole.address, whole.outcome), (Some(0x0102_0304), Ok(())));
}

#[test]
fn a_wake_up_counts_with_its_opcode_and_reads_the_id_after_three_dummy_bytes() {
    for bytes in [&[0xAB][..], &[0xAB, 0], &[0xAB, 0, 0, 0], &[0xAB, 0, 0, 0, 0]] {
        assert_eq!(outcome(bytes), Ok(()));
    }
    assert_eq!(single(&[0xAB, 0, 0, 0, 0, 0]).1.unwrap().data, 4..6);
    let request = Request { opcode: 0xAB, address: None, mode: None, payload: Payload::None };
    let segments = CommandTable::jedec().encode(&request, AddressMode::ThreeByte).unwrap();
    assert_eq!(segments.iter().map(|segment| segment.bytes.len()).sum::<usize>(), 1);
}

#[test]
fn a_read_may_end_at_any_clock_once_its_data_has_begun() {
    let frame: Vec<Beat> = [0x03, 0, 0, 0].map(|byte| (byte, 1)).to_vec();
    for clocks in 0..8 {
        assert_eq!(run(&mut decoder(), &frame, clocks, false).1.unwrap().outcome, Ok(()));
    }
    assert_eq!(outcome(&[0x03, 0, 0]), Err(FrameError::CutShort { phase: Phase::Address }));
    assert_eq!(outcome(&[0x0B, 0, 0, 0]), Err(FrameError::CutShort { phase: Phase::Dummy }));
}

#[test]
fn a_chip_that_is_not_selected_hears_nothing_and_an_empty_frame_is_no_command() {
    let mut chip = decoder();
    assert_eq!(chip.clock(0x06, Lines::Single), Event::NotSelected);
    assert_eq!(chip.deselect(0), None);
    chip.select(AddressMode::ThreeByte);
    assert_eq!((chip.phase(), chip.deselect(5)), (Phase::Opcode, None));
    assert_eq!(chip.phase(), Phase::Standby);
    chip.select(AddressMode::ThreeByte);
    chip.transfer(&[0x06], Lines::Single, |_| {});
    assert!(chip.deselect(0).is_some());
    assert_eq!(chip.deselect(0), None, "a command is carried out once");
}

#[test]
fn a_second_fall_of_chip_select_forgets_the_frame_before_it() {
    let mut chip = decoder();
    chip.select(AddressMode::ThreeByte);
    chip.transfer(&[0x20, 1, 2], Lines::Single, |_| {});
    chip.select(AddressMode::ThreeByte);
    chip.transfer(&[0x06], Lines::Single, |_| {});
    let command = chip.deselect(0).unwrap();
    assert_eq!((command.opcode, command.address, command.outcome), (0x06, None, Ok(())));
}

#[test]
fn layouts_that_no_frame_can_satisfy_are_refused() {
    let read = CommandSpec::read(0xEB, "a", AddressPhase::ByMode(Lines::Quad), 5, Lines::Quad);
    let refused = SpiError::BrokenDummy { opcode: 0xEB, clocks: 5, clocks_per_byte: 2 };
    assert_eq!(CommandTable::new([read]), Err(refused));
    let mode = CommandSpec::register_read(0x9F, "b").with_mode_byte();
    assert_eq!(CommandTable::new([mode]), Err(SpiError::ModeWithoutAddress { opcode: 0x9F }));
    let empty = CommandSpec::register_write(0x01, "c", 0);
    let refused = SpiError::BrokenData { opcode: 0x01, min_bytes: 1, max_bytes: 0 };
    assert_eq!(CommandTable::new([empty]), Err(refused));
    let twice = [CommandSpec::control(0x06, "d"), CommandSpec::control(0x06, "e")];
    let refused = SpiError::DuplicateOpcode { opcode: 0x06, first: "d", second: "e" };
    assert_eq!(CommandTable::new(twice), Err(refused));
    let mut table = CommandTable::jedec();
    assert!(table.replace(read).is_err());
    assert_eq!(table, CommandTable::jedec());
    assert_eq!(table.remove(0xEB).unwrap().opcode, 0xEB);
    assert_eq!(table.get(0xEB), None);
    assert_eq!(table.remove(0xEB), None);
}

#[test]
fn requests_that_do_not_fit_their_command_are_refused_and_say_why() {
    let table = CommandTable::jedec();
    let why = |opcode, address, mode, payload| {
        let request = Request { opcode, address, mode, payload };
        table.encode(&request, AddressMode::ThreeByte).unwrap_err().to_string()
    };
    let cases = [
        (why(0xFE, None, None, Payload::None), "opcode FEh: the table has no such command"),
        (
            why(0x20, None, None, Payload::None),
            "opcode 20h: the command takes an address, which the request must match",
        ),
        (
            why(0x06, Some(1), None, Payload::None),
            "opcode 06h: the command takes no address, which the request must match",
        ),
        (
            why(0x20, Some(0x100_0000), None, Payload::None),
            "opcode 20h: address 0x1000000 does not fit 3 address bytes",
        ),
        (
            why(0xEB, Some(0), None, Payload::Out(1)),
            "opcode EBh: the command takes a mode byte, which the request must match",
        ),
        (
            why(0x03, Some(0), Some(0), Payload::Out(1)),
            "opcode 03h: the command takes no mode byte, which the request must match",
        ),
        (
            why(0x06, None, None, Payload::In(&[1])),
            "opcode 06h: the command takes no data, which the request must match",
        ),
        (
            why(0x02, Some(0), None, Payload::Out(1)),
            "opcode 02h: the command takes data for the chip, which the request must match",
        ),
        (
            why(0x03, Some(0), None, Payload::None),
            "opcode 03h: the command takes data from the chip, which the request must match",
        ),
        (why(0x31, None, None, Payload::In(&[1, 2])), "opcode 31h: 2 data bytes: the command takes 1 to 1"),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}
