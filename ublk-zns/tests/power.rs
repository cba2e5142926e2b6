//! Power cuts and restarts of the device as a library: nothing that was flushed is lost, and nothing is what ZNS forbids.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use std::{collections::HashMap, path::Path};
use ublk_zns::{
    Sector, ZnsConfig, ZnsDevice, ZoneId, ZoneState,
    engine::{CacheMode, DeviceOptions},
    media::MediaPlace,
};

const ZONE: u64 = 64;
const CAPACITY: u64 = 48;
const ZONES: u32 = 8;
const CONVENTIONAL: u32 = 2;

fn config() -> ZnsConfig {
    ZnsConfig {
        size_bytes: u64::from(ZONES) * ZONE * 512,
        zone_size_bytes: ZONE * 512,
        zone_capacity_bytes: Some(CAPACITY * 512),
        conventional_zones: CONVENTIONAL,
        max_open_zones: Some(2),
        max_active_zones: Some(3),
        block_bytes: 4096,
        max_append_bytes: 16 << 10,
    }
}

fn options(place: MediaPlace, cache: CacheMode) -> DeviceOptions {
    DeviceOptions { cache, ..DeviceOptions::new(config(), place) }
}

/// What the host knows: the last content of each block, and what may still be there instead.
#[derive(Default)]
struct Host {
    /// Sector of a block to the contents it may have after a cut; the last one is current.
    blocks: HashMap<u64, Vec<u8>>,
    serial: u8,
}

impl Host {
    /// A content that the block at `sector` has not had.
    fn next(&mut self) -> u8 {
        self.serial = self.serial.wrapping_add(1).max(1);
        self.serial
    }

    fn wrote(&mut self, sector: u64, value: u8) {
        self.blocks.entry(sector).or_insert_with(|| vec![0]).push(value);
    }

    fn flushed(&mut self, which: impl Fn(u64) -> bool) {
        for (sector, values) in &mut self.blocks {
            if which(*sector) {
                values.drain(..values.len() - 1);
            }
        }
    }

    fn reset(&mut self, zone: u64) {
        self.blocks.retain(|sector, _| sector / ZONE != zone);
    }

    /// The device has one of the contents that each block may have; from here on exactly that one.
    fn check_and_settle(&mut self, device: &ZnsDevice) -> Result<(), TestCaseError> {
        for sector in (0..u64::from(ZONES) * ZONE).step_by(8) {
            let mut back = [0xee; 4096];
            device.read(Sector(sector), &mut back).unwrap();
            prop_assert!(back.iter().all(|byte| *byte == back[0]), "a block is torn at {sector}");
            let may = self.blocks.get(&sector).cloned().unwrap_or_else(|| vec![0]);
            prop_assert!(may.contains(&back[0]), "sector {sector}: {} of {may:?}", back[0]);
            self.blocks.insert(sector, vec![back[0]]);
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { zone: u32, blocks: u64 },
    Overwrite { block: u64, blocks: u64 },
    Append { zone: u32, blocks: u64 },
    Open(u32),
    Close(u32),
    Finish(u32),
    Reset(u32),
    Flush,
    FlushZone(u32),
    Cut(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let zone = || CONVENTIONAL..ZONES;
    let step = prop_oneof![
        6 => (zone(), 1u64..4).prop_map(|(zone, blocks)| Step::Write { zone, blocks }),
        4 => (0u64..14, 1u64..3).prop_map(|(block, blocks)| Step::Overwrite { block, blocks }),
        4 => (zone(), 1u64..4).prop_map(|(zone, blocks)| Step::Append { zone, blocks }),
        1 => zone().prop_map(Step::Open),
        1 => zone().prop_map(Step::Close),
        1 => zone().prop_map(Step::Finish),
        2 => zone().prop_map(Step::Reset),
        2 => Just(Step::Flush),
        1 => (0..ZONES).prop_map(Step::FlushZone),
        2 => any::<u64>().prop_map(Step::Cut),
    ];
    prop::collection::vec(step, 1..60)
}

fn put(device: &ZnsDevice, host: &mut Host, sector: u64, blocks: u64) {
    let values: Vec<u8> = (0..blocks).map(|_| host.next()).collect();
    let data: Vec<u8> = values.iter().flat_map(|value| [*value; 4096]).collect();
    if device.write(Sector(sector), &data).is_ok() {
        (0..).zip(values).for_each(|(n, value)| host.wrote(sector + n * 8, value));
    }
}

fn run(device: &ZnsDevice, host: &mut Host, step: &Step, volatile: bool) -> Result<(), TestCaseError> {
    match *step {
        Step::Write { zone, blocks } => {
            let at = device.describe(ZoneId(zone)).unwrap().write_pointer.0;
            put(device, host, at, blocks);
        }
        Step::Overwrite { block, blocks } => put(device, host, block * 8, blocks),
        Step::Append { zone, blocks } => {
            let values: Vec<u8> = (0..blocks).map(|_| host.next()).collect();
            let data: Vec<u8> = values.iter().flat_map(|value| [*value; 4096]).collect();
            if let Ok(at) = device.append(ZoneId(zone), &data) {
                (0..).zip(values).for_each(|(n, value)| host.wrote(at.0 + n * 8, value));
            }
        }
        Step::Open(zone) => drop(device.open_zone(ZoneId(zone))),
        Step::Close(zone) => drop(device.close_zone(ZoneId(zone))),
        Step::Finish(zone) => {
            device.finish_zone(ZoneId(zone)).unwrap();
            host.flushed(|sector| sector / ZONE == u64::from(zone));
        }
        Step::Reset(zone) => {
            device.reset_zone(ZoneId(zone)).unwrap();
            host.reset(zone.into());
        }
        Step::Flush => {
            device.flush().unwrap();
            host.flushed(|_| true);
        }
        Step::FlushZone(zone) => {
            device.flush_zone(ZoneId(zone)).unwrap();
            host.flushed(|sector| sector / ZONE == u64::from(zone));
        }
        Step::Cut(seed) => {
            let before = device.report();
            device.power_cut(seed).unwrap();
            prop_assert!(device.write(Sector(0), &[1; 4096]).is_err(), "a write without power");
            prop_assert!(device.read(Sector(0), &mut [0; 4096]).is_err(), "a read without power");
            prop_assert!(device.flush().is_err() && device.open_zone(ZoneId(3)).is_err());
            device.power_on();
            if !volatile {
                host.flushed(|_| true);
            }
            host.check_and_settle(device)?;
            check_states(device, &before)?;
        }
    }
    Ok(())
}

fn check_states(device: &ZnsDevice, before: &[ublk_zns::ZoneDescriptor]) -> Result<(), TestCaseError> {
    for (now, before) in device.report().iter().zip(before).skip(CONVENTIONAL as usize) {
        prop_assert!(!now.state.is_open(), "no zone is open when power comes back");
        match now.state {
            ZoneState::Closed => {
                let written = now.write_pointer.0 - now.start.0;
                prop_assert!(written > 0 && written < CAPACITY);
                prop_assert!(before.state.is_active());
                prop_assert!(now.write_pointer <= before.write_pointer);
            }
            ZoneState::Full => prop_assert_eq!(before.state, ZoneState::Full),
            state => prop_assert_eq!(state, ZoneState::Empty),
        }
    }
    let (open, active) = device.resources();
    prop_assert!(open == 0 && active <= 3);
    Ok(())
}

/// A directory where a sync costs nothing.
fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// As if the machine had lost its memory: the live table belongs to another boot.
fn forget_the_boot(dir: &Path) {
    let mut table = std::fs::read(dir.join("zones")).unwrap();
    table[4096..8192].fill(0);
    // And what it said of the zones may be anything.
    table[8192..8192 + 64 * ZONES as usize].fill(0xa5);
    std::fs::write(dir.join("zones"), table).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_power_cut_takes_only_what_was_not_flushed_and_leaves_states_that_zns_knows(steps in steps()) {
        let device = ZnsDevice::create(&options(MediaPlace::Anonymous, CacheMode::Volatile)).unwrap();
        let mut host = Host::default();
        for step in &steps {
            run(&device, &mut host, step, true)?;
        }
    }

    #[test]
    fn with_a_durable_cache_a_power_cut_takes_nothing(steps in steps()) {
        let device = ZnsDevice::create(&options(MediaPlace::Anonymous, CacheMode::Durable)).unwrap();
        let mut host = Host::default();
        for step in &steps {
            run(&device, &mut host, step, false)?;
        }
    }

    #[test]
    fn a_cut_with_the_same_seed_leaves_the_same_device(steps in steps(), seed: u64) {
        let left = || {
            let device = ZnsDevice::create(&options(MediaPlace::Anonymous, CacheMode::Volatile)).unwrap();
            let mut host = Host::default();
            steps.iter().try_for_each(|step| run(&device, &mut host, step, true))?;
            device.power_cut(seed).unwrap();
            device.power_on();
            let mut blocks = vec![0; (u64::from(ZONES) * ZONE * 512) as usize];
            for (sector, block) in (0..).step_by(8).zip(blocks.chunks_mut(4096)) {
                device.read(Sector(sector), block).unwrap();
            }
            Ok::<_, TestCaseError>((device.report(), blocks))
        };
        prop_assert_eq!(left()?, left()?);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn after_a_restart_the_journal_has_everything_that_was_flushed(steps in steps(), volatile: bool) {
        let tmp = memory_dir();
        let path = tmp.path().join("device");
        let mode = if volatile { CacheMode::Volatile } else { CacheMode::Durable };
        let options = options(MediaPlace::Dir(path.clone()), mode);
        let mut device = ZnsDevice::create(&options).unwrap();
        let mut host = Host::default();
        for chunk in steps.chunks(12) {
            for step in chunk {
                run(&device, &mut host, step, volatile)?;
            }
            let before = device.report();
            drop(device);
            forget_the_boot(&path);
            device = ZnsDevice::open(&options, false).unwrap();
            if !volatile {
                host.flushed(|_| true);
                // Open and closed zones are still that.
                prop_assert_eq!(device.report(), before);
            }
            host.check_and_settle(&device)?;
            let (open, active) = device.resources();
            prop_assert!(open <= 2 && active <= 3);
        }
    }
}

#[test]
fn a_device_in_a_directory_serves_one_process_at_a_time_and_only_its_own_geometry() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("device");
    let options = options(MediaPlace::Dir(path.clone()), CacheMode::Volatile);
    let device = ZnsDevice::create(&options).unwrap();
    let error = ZnsDevice::open(&options, false).err().unwrap().to_string();
    assert!(error.contains("another process is using it"), "{error}");
    drop(device);
    let error = ZnsDevice::create(&options).err().unwrap().to_string();
    assert!(error.contains("not empty"), "{error}");
    assert!(path.join("journal").exists(), "what was there stays");
    let other = DeviceOptions { config: ZnsConfig { conventional_zones: 1, ..config() }, ..options.clone() };
    let error = ZnsDevice::open(&other, false).err().unwrap().to_string();
    assert!(error.contains("2 conventional zones, not 1"), "{error}");
    std::fs::remove_file(path.join("journal")).unwrap();
    let error = ZnsDevice::open(&options, false).err().unwrap().to_string();
    assert!(error.contains("journal"), "{error}");
}

#[test]
fn the_journal_stays_short_however_often_it_is_written() {
    let tmp = memory_dir();
    let path = tmp.path().join("device");
    let options = options(MediaPlace::Dir(path.clone()), CacheMode::Volatile);
    let device = ZnsDevice::create(&options).unwrap();
    let mut longest = 0;
    for round in 0..20_000u64 {
        let zone = ZoneId(2 + (round % 2) as u32);
        if device.append(zone, &[round as u8; 4096]).is_err() {
            device.reset_zone(zone).unwrap();
        }
        device.flush_zone(zone).unwrap();
        if round % 512 == 0 {
            longest = longest.max(std::fs::metadata(path.join("journal")).unwrap().len());
        }
    }
    assert!(longest < 2 << 20, "{longest}");
    let before = device.report();
    drop(device);
    forget_the_boot(&path);
    assert_eq!(ZnsDevice::open(&options, false).unwrap().report(), before);
}
