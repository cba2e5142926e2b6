//! Traces: what they say is what was on the bus, and nothing on the bus depends on them.
#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use spiflash_mtd::map::{ArrayMap, Content};
use spiflash_mtd::script::Script;
use spiflash_mtd::trace::{JsonLog, JsonLogOptions, Timescale, VcdOptions, VcdTrace};
use spiflash_mtd::{Chip, Lines, Setup, SimBus, SpiBus, TimeMode, Transfer, part};
use std::io::Write;
use std::sync::{Arc, Mutex};

fn chip() -> Chip {
    Chip::new(Arc::new(part::find("W25Q128JV").unwrap().clone()), &Setup::default()).unwrap()
}

/// A file in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Memory {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// What a bus does under a VCD trace.
fn traced(mut bus: SimBus, options: VcdOptions, run: impl FnOnce(&mut SimBus)) -> Vcd {
    let memory = Memory::default();
    let trace = VcdTrace::new(&mut bus, memory.clone(), "memory", options);
    bus.observe(Box::new(trace));
    run(&mut bus);
    drop(bus);
    Vcd::read(&memory.text())
}

fn logged(mut bus: SimBus, options: JsonLogOptions, run: impl FnOnce(&mut SimBus)) -> Vec<Value> {
    let memory = Memory::default();
    bus.observe(Box::new(JsonLog::new(memory.clone(), "memory", options)));
    run(&mut bus);
    drop(bus);
    memory.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn script(text: &str) -> impl FnOnce(&mut SimBus) {
    move |bus| {
        Script::parse(text, "test").unwrap().run(bus, |result| assert_eq!(result.failure, None)).unwrap();
    }
}

/// A rise of SCK: its time and the levels of io0 to io3.
type Edge = (u64, [char; 4]);

/// A value change dump, as changes in order.
struct Vcd {
    unit: String,
    changes: Vec<(u64, String, char)>,
}

impl Vcd {
    fn read(text: &str) -> Vcd {
        let (mut unit, mut names, mut now, mut changes) =
            (String::new(), Vec::new(), None::<u64>, Vec::new());
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["$timescale", number, scale, "$end"] => unit = format!("{number} {scale}"),
                ["$var", "wire", "1", code, name, "$end"] => names.push((code.to_string(), name.to_string())),
                [word] if word.starts_with('#') => {
                    let at = word[1..].parse().unwrap();
                    assert!(now.is_none_or(|now| now < at), "{at} after {now:?}");
                    now = Some(at);
                }
                [word] if !word.starts_with('$') => {
                    let (level, code) = word.split_at(1);
                    let name = &names.iter().find(|(known, _)| known == code).unwrap().1;
                    changes.push((now.unwrap(), name.clone(), level.chars().next().unwrap()));
                }
                _ => assert!(line.starts_with('$'), "{line}"),
            }
        }
        Vcd { unit, changes }
    }

    fn of(&self, name: &str) -> Vec<(u64, char)> {
        self.changes.iter().filter(|(_, of, _)| of == name).map(|(at, _, level)| (*at, *level)).collect()
    }

    /// For each frame: when CS# fell and rose, and for each rise of SCK its time and the levels of io0 to io3.
    fn frames(&self) -> Vec<(u64, u64, Vec<Edge>)> {
        let (mut io, mut low, mut frames, mut edges) = (['z'; 4], None, Vec::new(), Vec::new());
        for (at, name, level) in &self.changes {
            match (name.as_str(), level) {
                ("cs#", '0') => (low, edges) = (Some(*at), Vec::new()),
                ("cs#", '1') => {
                    if let Some(begin) = low.take() {
                        frames.push((begin, *at, std::mem::take(&mut edges)));
                    }
                }
                ("sck", '1') => edges.push((*at, io)),
                (name, level) if name.starts_with("io") => io[name[2..].parse::<usize>().unwrap()] = *level,
                _ => {}
            }
        }
        frames
    }
}

/// The bytes of edges, on one line (`at` tells which) or on several, the highest first.
fn bytes(edges: &[Edge], lines: &[usize]) -> Vec<u8> {
    let bits: Vec<u8> =
        edges.iter().flat_map(|(_, io)| lines.iter().map(|line| u8::from(io[*line] == '1'))).collect();
    bits.chunks(8).map(|byte| byte.iter().fold(0, |value, bit| value << 1 | bit)).collect()
}

const SESSION: &str = "frame 9f >3 = ef 40 18\n\
    frame 06\n\
    frame 05 >1 = 02\n\
    frame 02 001000 deadbeef\n\
    frame 05 >2 = 03 03\n\
    ready 3ms\n\
    frame 03 001000 >4 = deadbeef\n\
    frame 0b 001002 00 >3 = beefff\n\
    frame 06\n\
    frame 04\n\
    frame 06\n\
    frame 20 001000\n\
    wait 100us\n\
    power off\n\
    power on\n\
    ready\n\
    frame ab\n";

#[test]
fn the_bits_of_a_trace_are_the_bytes_of_the_bus_on_their_lines() {
    let vcd = traced(SimBus::of(chip()), VcdOptions::default(), |bus| {
        bus.frame(0, &mut [Transfer::write(&[0x06])]).unwrap();
        bus.frame(
            0,
            &mut [
                Transfer::write(&[0x32, 0, 0, 0]),
                Transfer::Write { lines: Lines::Quad, bytes: &[0x12, 0xA5] },
            ],
        )
        .unwrap();
        bus.delay_ns(1_000_000);
        let mut out = [0; 3];
        bus.frame(
            0,
            &mut [
                Transfer::write(&[0x3B, 0, 0, 0, 0]),
                Transfer::Read { lines: Lines::Dual, bytes: &mut out },
            ],
        )
        .unwrap();
        let mut both = [0x9F, 0x55, 0];
        bus.frame(0, &mut [Transfer::Both { bytes: &mut both }]).unwrap();
    });
    assert_eq!(vcd.unit, "1 ns");
    let frames = vcd.frames();
    assert_eq!(bytes(&frames[0].2, &[0]), [0x06]);
    let (single, quad) = frames[1].2.split_at(32);
    assert_eq!((bytes(single, &[0]), bytes(quad, &[3, 2, 1, 0])), (vec![0x32, 0, 0, 0], vec![0x12, 0xA5]));
    let (single, dual) = frames[2].2.split_at(40);
    assert_eq!((bytes(single, &[0]), bytes(dual, &[1, 0])), (vec![0x3B, 0, 0, 0, 0], vec![0x12, 0xA5, 0xFF]));
    assert_eq!(
        (bytes(&frames[3].2, &[0]), bytes(&frames[3].2, &[1])),
        (vec![0x9F, 0x55, 0], vec![0xFF, 0xEF, 0x40])
    );
    // 50 MHz: a rise in the middle of each 20 ns.
    assert!(
        frames[1].2.iter().enumerate().all(|(n, (at, _))| *at == 160 + 10 + 20 * n as u64),
        "{:?}",
        frames[1].2
    );
}

#[test]
fn bits_at_133_mhz_come_out_evenly() {
    let mut bus = SimBus::of(chip());
    let clock_hz = bus.set_clock_hz(133_000_000).unwrap();
    assert_eq!(Timescale::for_clock(clock_hz), Timescale::Picoseconds);
    let vcd = traced(bus, VcdOptions { clock_hz, timescale: None }, |bus| {
        bus.frame(0, &mut [Transfer::write(&[0x5A; 100])]).unwrap();
    });
    assert_eq!(vcd.unit, "1 ps");
    let frames = vcd.frames();
    let periods: Vec<u64> = frames[0].2.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    let (least, most) = (periods.iter().min().unwrap(), periods.iter().max().unwrap());
    assert!(most - least <= 1 && (7510..=7525).contains(least), "{least} to {most} ps");
}

#[test]
fn busy_rises_with_cs_and_falls_at_its_time_and_is_unknown_without_power() {
    let vcd = traced(
        SimBus::of(chip()),
        VcdOptions::default(),
        script(
            "frame 06\nframe 20 000000\nwait 100ms\nframe 06\nframe 20 000000\nwp low\ncut-after 1ms\nwait 2ms\nwp high\npower on\nready\n",
        ),
    );
    let rose: Vec<u64> = vcd.frames().iter().map(|frame| frame.1).collect();
    let cut = rose[3] + 1_000_000;
    let on = cut + 1_000_000;
    let busy = [
        (0, '0'),
        (rose[1], '1'),
        (rose[1] + 45_000_000, '0'),
        (rose[3], '1'),
        (cut, 'x'),
        (on, '1'),
        (on + 20_000, '0'),
    ];
    assert_eq!(vcd.of("busy"), busy);
    assert_eq!(vcd.of("wp#"), [(0, '1'), (rose[3], '0'), (on, '1')]);
}

#[test]
fn frames_that_take_no_time_are_traced_all_the_same() {
    for time in [TimeMode::Delays, TimeMode::Real, TimeMode::PollSkip { polls: 1 }] {
        let bus = SimBus::new(vec![chip()], time, || 7);
        let vcd = traced(bus, VcdOptions::default(), |bus| {
            for _ in 0..3 {
                let mut out = [0; 2];
                bus.frame(0, &mut [Transfer::write(&[0x06])]).unwrap();
                bus.frame(0, &mut [Transfer::write(&[0x20, 0, 0, 0])]).unwrap();
                bus.frame(0, &mut [Transfer::write(&[0x05]), Transfer::read(&mut out)]).unwrap();
                bus.delay_ns(50_000_000);
            }
        });
        let frames = vcd.frames();
        assert_eq!(frames.len(), 9);
        for frames in frames.chunks(3) {
            assert_eq!(bytes(&frames[0].2, &[0]), [0x06]);
            assert_eq!(bytes(&frames[1].2, &[0]), [0x20, 0, 0, 0]);
            assert_eq!(bytes(&frames[2].2, &[0]), [0x05, 0, 0]);
            assert_eq!(bytes(&frames[2].2, &[1])[1], 0x03, "{time:?}");
        }
    }
}

#[test]
fn two_chips_have_their_own_select_and_busy() {
    let vcd = traced(
        SimBus::new(vec![chip(), chip()], TimeMode::Bits, || 0),
        VcdOptions::default(),
        script("frame 06\nchip 1\nframe 06\nframe 20 000000\n"),
    );
    assert_eq!(vcd.of("cs0#"), [(0, '1'), (0, '0'), (160, '1')]);
    assert_eq!(vcd.of("cs1#"), [(0, '1'), (161, '0'), (320, '1'), (321, '0'), (960, '1')]);
    assert_eq!((vcd.of("busy0"), vcd.of("busy1")), (vec![(0, '0')], vec![(0, '0'), (960, '1')]));
}

/// A disk that is full after so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| std::io::Error::other("the disk is full"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_trace_that_cannot_be_written_ends_and_the_bus_goes_on() {
    for room in [0, 100_000] {
        let mut bus = SimBus::of(chip());
        let vcd = VcdTrace::new(&mut bus, Full(room), "full.vcd", VcdOptions::default());
        let log = JsonLog::new(Full(room), "full.jsonl", JsonLogOptions::default());
        let (vcd_status, log_status) = (vcd.status(), log.status());
        bus.observe(Box::new(vcd));
        bus.observe(Box::new(log));
        assert!(!vcd_status.has_failed() && !log_status.has_failed());
        for _ in 0..2000 {
            let mut id = [0; 3];
            bus.frame(0, &mut [Transfer::write(&[0x9F]), Transfer::read(&mut id)]).unwrap();
            assert_eq!(id, [0xEF, 0x40, 0x18]);
        }
        assert!(vcd_status.has_failed() && log_status.has_failed());
    }
}

#[test]
fn the_log_says_what_each_frame_meant() {
    let log = logged(SimBus::of(chip()), JsonLogOptions::default(), script(SESSION));
    let meanings: Vec<&str> = log
        .iter()
        .map(|line| line["meaning"].as_str().unwrap_or(line["event"].as_str().unwrap_or("")))
        .collect();
    let expected = [
        "JEDEC ID ef 40 18",
        "Write Enable",
        "status 0x02: WEL",
        "program 4 bytes at 0x1000",
        "status 0x03: BUSY WEL",
        "read 4 bytes at 0x1000",
        "read 3 bytes at 0x1002",
        "Write Enable",
        "Write Disable",
        "Write Enable",
        "erase 4 KiB at 0x1000",
        "power off",
        "power on",
        "Release Power-down / Device ID",
    ];
    assert_eq!(meanings, expected);
    let program = &log[3];
    let of = |key: &str| program[key].clone();
    assert_eq!(
        (of("opcode"), of("address"), of("data"), of("lines")),
        ("02".into(), 0x1000.into(), "deadbeef".into(), "1-1-1".into())
    );
    assert_eq!(
        (of("effect"), of("status"), of("state"), of("chip")),
        ("begun".into(), "03".into(), "program".into(), 0.into())
    );
    // 30 us for the first byte, 2.5 us for each further one.
    assert_eq!(of("until_ns").as_u64().unwrap() - of("t_ns").as_u64().unwrap(), 37_500);
}

#[test]
fn the_log_says_why_a_frame_was_ignored_and_keeps_a_bounded_part_of_it() {
    let log = logged(SimBus::of(chip()), JsonLogOptions { data_bytes: 4 }, |bus| {
        let long = [&[0x02, 0, 0, 0][..], &[0xAB; 1000]].concat();
        bus.frame(0, &mut [Transfer::write(&long)]).unwrap();
        bus.frame(0, &mut [Transfer::write(&[0xA3, 1])]).unwrap();
        bus.frame(0, &mut []).unwrap();
        bus.set_power(0, false).unwrap();
        bus.frame(0, &mut [Transfer::write(&[0x06])]).unwrap();
        bus.set_power(0, true).unwrap();
        bus.delay_ns(20_000);
        let mut polls = [0; 500];
        bus.frame(0, &mut [Transfer::write(&[0x05]), Transfer::read(&mut polls)]).unwrap();
        bus.frame(
            0,
            &mut [Transfer::write(&[0xBB]), Transfer::Write { lines: Lines::Dual, bytes: &[0, 0, 1, 0xFF] }],
        )
        .unwrap();
        bus.frame(0, &mut [Transfer::write(&[0x01, 0x1C])]).unwrap();
    });
    let meaning = |at: usize| log[at]["meaning"].as_str().unwrap();
    assert_eq!(meaning(0), "ignored (WEL is 0: a write enable must come first): program 1000 bytes at 0x0");
    assert_eq!((&log[0]["data"], &log[0]["data_bytes"]), (&"abababab".into(), &1000.into()));
    assert_eq!(meaning(1), "opcode A3h, which W25Q128JV does not know");
    assert_eq!((meaning(2), &log[2]["reason"]), ("no command", &"CS# fell and rose without a clock".into()));
    assert_eq!(log[3]["event"], "power off");
    assert_eq!(log[4]["reason"], "the chip has no power, or is starting, waking up or resetting");
    assert_eq!(log[4].get("status"), None);
    assert_eq!((&log[6]["data"], meaning(6)), (&"00000000".into(), "status 0x00"));
    assert_eq!(
        (&log[7]["lines"], &log[7]["mode"], &log[7]["effect"]),
        (&"1-2-0".into(), &"ff".into(), &"done".into())
    );
    assert_eq!(
        meaning(8),
        "ignored (WEL is 0: a write enable must come first): status becomes 0x1c: BP0 BP1 BP2"
    );
}

#[test]
fn a_map_shows_what_is_erased_programmed_protected_and_marginal() {
    let mut bus = SimBus::of(chip());
    // The middle of a page, a whole sector, an interrupted erase in the second line, protection of the highest 256 KiB.
    let mut text = String::from("frame 06\nframe 02 000080 00\nready\n");
    for page in 0..16 {
        text += &format!("frame 06\nframe 02 001{page:x}00 00*256\nready\n");
    }
    text += "frame 06\nframe 01 04\nready\nframe 06\nframe 20 041000\ncut-after 20ms\nwait 20ms\npower on\nready\n";
    script(&text)(&mut bus);
    let map = ArrayMap::of(bus.chip(0).unwrap());
    let contents: Vec<Content> = map.sectors.iter().take(3).map(|sector| sector.content).collect();
    assert_eq!(contents, [Content::Partly, Content::Programmed, Content::Erased]);
    assert_eq!((map.sectors[0].bytes_used, map.sectors[1].bytes_used), (1, 4096));
    assert_eq!(
        map.sectors.iter().filter(|sector| sector.protected).map(|sector| sector.address).min(),
        Some(0xFC_0000)
    );
    assert_eq!((map.sectors[0x41].cycles, map.sectors[0x41].content), (1, Content::Programmed));
    let shown = map.to_string();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "W25Q128JV: 4096 sectors of 4096 bytes");
    assert_eq!(lines[2], format!("0000000 +#{}", ".".repeat(62)));
    assert_eq!(lines[3], format!("0040000 .#{}", ".".repeat(62)));
    assert_eq!(lines[5], "*");
    assert_eq!(lines[6], format!("0fc0000 {}", "e".repeat(64)));
    assert_eq!(
        lines[7],
        "4093 erased, 1 partly programmed, 2 programmed; 64 protected, 0 worn, 0 marginal; at most 1 erases"
    );
    let json = serde_json::to_value(&map).unwrap();
    assert_eq!(
        (&json["sectors"][1]["content"], &json["sectors"][4095]["protected"]),
        (&"programmed".into(), &true.into())
    );
}

#[test]
fn a_map_shows_wear_and_cells_near_the_read_level() {
    let reliability = spiflash_mtd::reliability::ReliabilityParams::load("nor-65nm").unwrap();
    let part = part::find("W25Q128JV").unwrap().clone();
    let mut bus = SimBus::of(Chip::new(Arc::new(part), &Setup { reliability, ..Setup::default() }).unwrap());
    script(
        "frame 06\nframe 02 000000 00\nready\nframe 06\nframe 20 000000\ncut-after 20ms\nwait 20ms\npower on\nready\n",
    )(&mut bus);
    let chip = bus.chip_mut(0).unwrap();
    let mut worn = spiflash_mtd::array::Unit::default();
    worn.cycles = 10_000_000;
    chip.array_mut().restore_unit(2, worn);
    let map = ArrayMap::of(chip);
    assert_eq!((map.sectors[0].marginal_pages, map.sectors[2].worn, map.sectors[1].worn), (16, true, false));
    assert!(map.to_string().contains("000000 ?.w.."), "{map}");
}
