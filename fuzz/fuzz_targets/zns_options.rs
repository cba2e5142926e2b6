//! What a user says to ublk-zns: sizes, profiles, error parameters, faults, measurements.
//!
//! Input: a byte that chooses what is parsed, then the text. What is accepted is used: a profile times commands at the end of
//! the clock, error parameters read and wear a zone, faults judge commands. Nothing may panic, and no command may be due before
//! it arrived.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ublk_zns::{
    Geometry, Sector, ZnsConfig, ZoneId,
    faults::{FaultAction, Faults, IoOp},
    faults_cli::parse_script,
    nand::{Command, NandModel, Profile},
    reliability::{ErrorParams, Pattern, Reliability, read_csv},
};

fn geometry() -> Geometry {
    let config = ZnsConfig { size_bytes: 64 << 20, zone_size_bytes: 4 << 20, ..ZnsConfig::default() };
    Geometry::new(&config).unwrap()
}

fn use_profile(profile: &Profile) {
    let Ok(mut model) = NandModel::new(profile, &geometry(), 2) else { return };
    for now_ns in [0, 1_000_000, 1 << 60, u64::MAX] {
        for command in [
            Command::Write { zone: ZoneId(1), offset_sectors: 0, sectors: 1024 },
            Command::Read { zone: ZoneId(1), offset_sectors: 0, sectors: 8, retry_ns: 7 },
            Command::Finish { zone: ZoneId(1), written_sectors: 1024 },
            Command::Reset(ZoneId(1)),
            Command::Flush,
        ] {
            assert!(model.submit(now_ns, 1, &command) >= now_ns);
        }
    }
}

fn use_errors(params: &ErrorParams) {
    let Ok(mut model) = Reliability::new(params, 1, &geometry()) else { return };
    for now_ns in [1, 1 << 40, u64::MAX] {
        model.programmed(now_ns, ZoneId(1));
        model.read(now_ns, ZoneId(1), 0, 64, Pattern::RANDOM);
        model.reset(ZoneId(1));
    }
}

fn use_fault(action: FaultAction) {
    let mut faults = Faults::new(1, &geometry());
    if let FaultAction::Add { rule } = action
        && faults.add(5, rule).is_ok()
    {
        for op in [IoOp::Read, IoOp::Write, IoOp::Flush, IoOp::Manage] {
            let verdict = faults.check(u64::MAX - 1, op, Sector(8), 64);
            assert!(verdict.landed_sectors(Sector(8), 64, 8) <= 64);
        }
        faults.list(u64::MAX);
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match choice % 8 {
        0 => {
            if let Ok(profile) = Profile::parse("input", text) {
                use_profile(&profile);
            }
        }
        1 => {
            let mut profile = Profile::builtin("femu-tlc").unwrap();
            for line in text.lines() {
                let _ = profile.set(line);
            }
            use_profile(&profile);
        }
        2 => {
            if let Ok(params) = ErrorParams::parse(text, "input") {
                use_errors(&params);
            }
        }
        3 => {
            let lines: Vec<&str> = text.lines().collect();
            if let Ok(params) = ErrorParams::built_in("tlc-3d").unwrap().with(&lines) {
                use_errors(&params);
            }
        }
        4 => {
            for step in parse_script(text).unwrap_or_default() {
                use_fault(step.action);
            }
        }
        5 => {
            if let Ok(action) = serde_json::from_str(text) {
                use_fault(action);
            }
        }
        6 => {
            let _ = read_csv(text.as_bytes(), "input");
        }
        _ => {
            let mut numbers = text.split(' ').map(|word| word.parse::<u64>().unwrap_or(0));
            let mut next = || numbers.next().unwrap_or(0);
            let config = ZnsConfig {
                size_bytes: next(),
                zone_size_bytes: next(),
                zone_capacity_bytes: Some(next()).filter(|bytes| *bytes != 0),
                conventional_zones: next() as u32,
                max_open_zones: Some(next() as u32),
                max_active_zones: Some(next() as u32),
                block_bytes: next() as u32,
                max_append_bytes: next() as u32,
            };
            if let Ok(geometry) = Geometry::new(&config) {
                assert!(geometry.sectors() > 0 && geometry.locate(Sector(geometry.sectors())).is_none());
            }
        }
    }
});
