//! flashrom, unmodified, on every SPI NOR part over serprog: it finds each by name, writes, verifies and erases it, and its own
//! maths of protected ranges is ours.
//!
//! The whole array of every part is many minutes of work: `STORLAB_FLASHROM=full` asks for it. Else a region of 64 KiB of each is
//! written and erased. Without flashrom on this machine the tests say so and pass.
#![allow(clippy::unwrap_used, missing_docs)]

use spiflash_mtd::fronts::SharedBus;
use spiflash_mtd::fronts::serprog::{Options, TcpServer};
use spiflash_mtd::{Chip, Setup, SimBus, TimeMode, part};
use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

/// Our parts and flashrom 1.3.0's names of them.
const PARTS: [(&str, &str); 10] = [
    ("W25Q128JV", "W25Q128.V"),
    ("W25Q256JV", "W25Q256JV_Q"),
    ("W25Q512JV", "W25Q512JV"),
    ("MX25L25645G", "MX25L25635F/MX25L25645G"),
    ("MT25QL256", "MT25QL256"),
    ("S25FL256S", "S25FL256S......0"),
    ("GD25Q128", "GD25Q127C/GD25Q128C"),
    ("IS25LP128", "IS25LP128"),
    ("SST25VF016B", "SST25VF016B"),
    ("SST26VF064B", "SST26VF064B(A)"),
];

const REGION: std::ops::Range<usize> = 0x4_0000..0x5_0000;
/// Of a part that is programmed word by word.
const SMALL_REGION: std::ops::Range<usize> = 0x4_0000..0x4_1000;

struct Bench {
    bus: Arc<Mutex<SimBus>>,
    server: TcpServer,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let part = Arc::new(part::find(name).unwrap().clone());
        let chip = Chip::new(part, &Setup::default()).unwrap();
        let bus = Arc::new(Mutex::new(SimBus::new(vec![chip], TimeMode::PollSkip { polls: 1 }, || 0)));
        let shared: SharedBus = bus.clone();
        let server = TcpServer::bind("127.0.0.1:0".parse().unwrap(), shared, Options::default()).unwrap();
        Bench { bus, server }
    }

    fn flashrom(&self, args: &[&str]) -> Output {
        let programmer = format!("serprog:ip=127.0.0.1:{}", self.server.address().port());
        let mut last = None;
        for _ in 0..4 {
            let mut command = Command::new("timeout");
            command.args(["-k", "5", "600", "flashrom", "-p", &programmer]).args(args);
            let output = command.output().unwrap();
            // flashrom finds the begin of the stream by sleeping for some milliseconds: on a busy machine not at once.
            let lost = said(&output).contains("Programmer initialization failed");
            last = Some(output);
            if !lost {
                break;
            }
        }
        last.unwrap()
    }

    fn content(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        self.bus.lock().unwrap().chip(0).unwrap().array().read(range.start as u64, &mut bytes);
        bytes
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn flashrom_is_here() -> bool {
    let here = Command::new("flashrom").arg("--version").output().is_ok_and(|output| output.status.success());
    if !here {
        eprintln!("skipped: flashrom is not installed (scripts/setup)");
    }
    here
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn flashrom_finds_every_part_by_name() {
    if !flashrom_is_here() {
        return;
    }
    for (name, known_as) in PARTS {
        let output = Bench::new(name).flashrom(&[]);
        let said = said(&output);
        assert!(said.contains(&format!("flash chip \"{known_as}\"")), "{name}: {said}");
    }
}

#[test]
fn flashrom_writes_verifies_and_erases_every_part() {
    if !flashrom_is_here() {
        return;
    }
    let all = std::env::var("STORLAB_FLASHROM").is_ok_and(|value| value == "full");
    // Each of its runs waits more than it works: side by side.
    for (lot, parts) in (0u64..).zip(PARTS.chunks(3)) {
        std::thread::scope(|scope| {
            for (number, (name, known_as)) in (0u64..).zip(parts) {
                scope.spawn(move || write_verify_erase(name, known_as, lot * 3 + number, all));
            }
        });
    }
}

fn write_verify_erase(name: &str, known_as: &str, seed: u64, whole: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (file, layout) = (dir.path().join("content"), dir.path().join("layout"));
    let region = if part::find(name).unwrap().geometry.page_bytes > 1 { REGION } else { SMALL_REGION };
    std::fs::write(&layout, format!("{:x}:{:x} region\n", region.start, region.end - 1)).unwrap();
    let bench = Bench::new(name);
    let size = part::find(name).unwrap().geometry.size_bytes as usize;
    let range = if whole { 0..size } else { region };
    let region = ["-l", layout.to_str().unwrap(), "-i", "region"];
    let run = |args: &[&str]| {
        let more: &[&str] = if whole { &[] } else { &region };
        let begun = std::time::Instant::now();
        let output = bench.flashrom(&[&["-c", known_as], args, more].concat());
        assert!(output.status.success(), "{name} {args:?}: {}", said(&output));
        (said(&output), begun.elapsed())
    };
    let mut times = Vec::new();
    // The second time over what is there: it must erase first.
    for round in 0..2 {
        let content = noise(size, seed + 100 * round);
        std::fs::write(&file, &content).unwrap();
        let (written, took) = run(&["-w", file.to_str().unwrap()]);
        assert!(written.contains("VERIFIED"), "{name}: {written}");
        assert!(bench.content(range.clone()) == content[range.clone()], "{name}: it holds other bytes");
        times.push(format!("{took:.1?}"));
    }
    run(&["-E"]);
    assert!(bench.content(range.clone()).iter().all(|byte| *byte == 0xFF), "{name}: it is not erased");
    println!(
        "{name}: {} bytes written, verified, written again and erased; writes took {times:?}",
        range.len()
    );
}

/// The ranges that flashrom can set, as (start, length).
fn flashrom_ranges(bench: &Bench, known_as: &str) -> Option<BTreeSet<(u64, u64)>> {
    let output = bench.flashrom(&["-c", known_as, "--wp-list"]);
    let said = said(&output);
    if !output.status.success() {
        println!("{known_as}: {}", said.lines().last().unwrap_or(""));
        return None;
    }
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let ranges = said.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let start = words.next()?.strip_prefix("start=")?;
        Some((number(start), number(words.next()?.strip_prefix("length=")?)))
    });
    Some(ranges.collect())
}

#[test]
fn flashrom_lists_the_protected_ranges_that_we_decode() {
    if !flashrom_is_here() {
        return;
    }
    let mut compared = Vec::new();
    for (name, known_as) in PARTS {
        let part = part::find(name).unwrap();
        let bench = Bench::new(name);
        let (Some(rules), Some(theirs)) = (&part.ranges, flashrom_ranges(&bench, known_as)) else { continue };
        let ours = rules.combinations().map(|bits| rules.range(part.geometry.size_bytes, bits));
        let ours: BTreeSet<(u64, u64)> = ours.map(|range| (range.start, range.end - range.start)).collect();
        // A range of no bytes has no place.
        let placed = |ranges: BTreeSet<(u64, u64)>| -> BTreeSet<(u64, u64)> {
            ranges
                .into_iter()
                .map(|(start, length)| if length == 0 { (0, 0) } else { (start, length) })
                .collect()
        };
        let (ours, theirs) = (placed(ours), placed(theirs));
        let only = |a: &BTreeSet<(u64, u64)>, b| {
            a.difference(b).map(|(s, l)| format!("{s:#x}+{l:#x}")).collect::<Vec<_>>()
        };
        assert_eq!(
            ours,
            theirs,
            "{name}: only ours {:?}, only theirs {:?}",
            only(&ours, &theirs),
            only(&theirs, &ours)
        );
        compared.push(format!("{name} ({})", ours.len()));
    }
    println!("the same ranges: {}", compared.join(", "));
    assert!(compared.len() >= 3, "{compared:?}");
}

#[test]
fn flashrom_sets_a_range_and_the_chip_honours_it() {
    if !flashrom_is_here() {
        return;
    }
    for (name, known_as) in
        [("W25Q128JV", "W25Q128.V"), ("W25Q256JV", "W25Q256JV_Q"), ("GD25Q128", "GD25Q127C/GD25Q128C")]
    {
        let bench = Bench::new(name);
        let output = bench.flashrom(&["-c", known_as, "--wp-range", "0,0x100000"]);
        assert!(output.status.success(), "{name}: {}", said(&output));
        assert_eq!(bench.bus.lock().unwrap().chip(0).unwrap().protected_range(), 0..0x10_0000, "{name}");
        let output = bench.flashrom(&["-c", known_as, "--wp-status"]);
        assert!(said(&output).contains("start=0x00000000 length=0x00100000"), "{name}: {}", said(&output));
        let output = bench.flashrom(&["-c", known_as, "--wp-range", "0,0"]);
        assert!(output.status.success(), "{name}: {}", said(&output));
        assert_eq!(bench.bus.lock().unwrap().chip(0).unwrap().protected_range(), 0..0, "{name}");
    }
}
