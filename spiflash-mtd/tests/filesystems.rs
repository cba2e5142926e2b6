//! File systems on the chip, above a driver that firmware uses, through power cuts: what they promise to keep is there.
//!
//! - littlefs, above the driver `w25q32jv`: a file is what it was at the last close that came back, or, where the power went
//!   in a write, what it was before or what was being written, never a mixture; a rename is done or not;
//! - sequential-storage's map, above the same driver's async form: a value whose store came back is read back; one that was
//!   cut is the old or the new one.
//!
//! A cut falls within a program, an erase or a frame of the workload, picked at random from a seed. A third of the cuts is
//! followed by another one while the file system is mounted again.
//!
//! `STORLAB_CUTS` sets how many cuts there are in all (300 if it is not set).
#![allow(clippy::unwrap_used)]

use embedded_storage_async::nor_flash::{MultiwriteNorFlash, NorFlash, ReadNorFlash};
use littlefs2::fs::Filesystem;
use littlefs2::io::Error as LfsError;
use littlefs2::path::{Path, PathBuf};
use sequential_storage::cache::Cache;
use sequential_storage::map::{MapConfig, MapStorage};
use spiflash_mtd::fronts::SharedBus;
use spiflash_mtd::hal::{HalDevice, HalError, HalPin, HostPower};
use spiflash_mtd::{Chip, FrameReport, Observer, Setup, SimBus, TimeMode, part};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use w25q32jv::{SECTOR_SIZE, W25q32jv};

type Flash = W25q32jv<HalDevice, HalPin, HalPin>;
type FlashError = w25q32jv::Error<HalError, HalError>;

fn cuts() -> u64 {
    match std::env::var("STORLAB_CUTS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("STORLAB_CUTS={text:?}: it must be a number")),
        Err(_) => 300,
    }
}

/// Futures above the model are done when they are polled once.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the model never waits"),
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// When each frame of the workload began and rose, and when what it began was over.
#[derive(Default)]
struct Operations {
    begin_ns: u64,
    /// Begin, rise and end of programs and erases.
    all: Vec<(u64, u64, u64)>,
}

struct Watch(Arc<Mutex<Operations>>);

impl Observer for Watch {
    fn selected(&mut self, _select: u8, now_ns: u64) {
        self.0.lock().unwrap().begin_ns = now_ns;
    }

    fn deselected(&mut self, _select: u8, chip: &mut Chip, _report: Option<&FrameReport>) {
        let mut operations = self.0.lock().unwrap();
        if let Some(end_ns) = chip.busy_until_ns() {
            let (begin_ns, rise_ns) = (operations.begin_ns, chip.now_ns());
            // A poll while something is under way begins nothing.
            if operations.all.last().is_none_or(|last| last.2 != end_ns) {
                operations.all.push((begin_ns, rise_ns, end_ns));
            }
        }
    }
}

/// A board: the chip, and firmware's driver for it.
struct Board {
    sim: Arc<Mutex<SimBus>>,
    power: HostPower,
}

impl Board {
    fn new(chip: Chip) -> Board {
        let bus = SimBus::new(vec![chip], TimeMode::PollSkip { polls: 1 }, || 0);
        Board { sim: Arc::new(Mutex::new(bus)), power: HostPower::on() }
    }

    fn flash(&self) -> Flash {
        let bus: SharedBus = self.sim.clone();
        let device = HalDevice::new(bus.clone(), 0).with_power(self.power.clone());
        W25q32jv::new(device, HalPin::Unconnected, HalPin::WriteProtect { bus, select: 0 }).unwrap()
    }

    fn now_ns(&self) -> u64 {
        spiflash_mtd::SpiBus::now_ns(&mut *self.sim.lock().unwrap())
    }

    /// The power of chip and firmware goes at this time.
    fn cut_at(&self, at_ns: u64) {
        self.sim.lock().unwrap().chip_mut(0).unwrap().set_cut_at_ns(Some(at_ns));
        self.power.cut_at_ns(Some(at_ns));
    }

    /// Power is back: the chip as it is now. Nothing if the cut never came.
    fn power_up(&self) {
        let mut sim = self.sim.lock().unwrap();
        self.power.cut_at_ns(None);
        let chip = sim.chip_mut(0).unwrap();
        chip.set_cut_at_ns(None);
        chip.set_power(true);
        spiflash_mtd::SpiBus::delay_ns(&mut *sim, 10_000_000);
    }
}

/// What is to hold: the value of each name, and what one name may hold instead.
#[derive(Debug, Clone, Default, PartialEq)]
struct Promise {
    values: BTreeMap<u8, Vec<u8>>,
    /// A change that was under way: any of these states of the names in them is right.
    under_way: Vec<BTreeMap<u8, Option<Vec<u8>>>>,
}

impl Promise {
    fn check(&self, found: &BTreeMap<u8, Vec<u8>>) -> Result<(), String> {
        let is = |changes: &BTreeMap<u8, Option<Vec<u8>>>| {
            let mut wanted = self.values.clone();
            for (name, value) in changes {
                match value {
                    Some(value) => wanted.insert(*name, value.clone()),
                    None => wanted.remove(name),
                };
            }
            wanted == *found
        };
        if is(&BTreeMap::new()) || self.under_way.iter().any(is) {
            return Ok(());
        }
        let short = |values: &BTreeMap<u8, Vec<u8>>| {
            values
                .iter()
                .map(|(name, value)| format!("{name}: {} of {:02x?}", value.len(), value.first()))
                .collect::<Vec<_>>()
        };
        Err(format!(
            "found {:?}, promised {:?} or {} others",
            short(found),
            short(&self.values),
            self.under_way.len()
        ))
    }

    /// After the check: what is there now is what was found.
    fn settle(&mut self, found: BTreeMap<u8, Vec<u8>>) {
        self.values = found;
        self.under_way.clear();
    }

    fn change(&mut self, changes: &[(u8, Option<Vec<u8>>)]) {
        for (name, value) in changes {
            match value {
                Some(value) => self.values.insert(*name, value.clone()),
                None => self.values.remove(name),
            };
        }
        self.under_way.clear();
    }

    fn begin(&mut self, changes: &[(u8, Option<Vec<u8>>)]) {
        self.under_way = vec![changes.iter().cloned().collect()];
    }
}

/// A file system under test: one mount, from `mount` to the first error.
trait Subject {
    /// Makes an empty one.
    fn format(board: &Board);
    /// Mounts, and carries `steps` random changes out; `Ok` when all were done. `promise` follows them.
    fn work(board: &Board, random: &mut Random, steps: u32, promise: &mut Promise) -> Result<(), String>;
    /// Mounts and reads all.
    ///
    /// An error is a file system that does not mount, or a name that cannot be read, with power.
    fn read_all(board: &Board) -> Result<BTreeMap<u8, Vec<u8>>, String>;
}

fn value(random: &mut Random, most: u64) -> Vec<u8> {
    let (tag, bytes) = (random.next() as u8, 1 + random.below(most) as usize);
    (0..bytes).map(|n| tag.wrapping_add((n * 7) as u8)).collect()
}

/// The driver, but for its erase of a range: that of `w25q32jv` 0.5.1 unwraps the error of each sector's erase, so a bus
/// that fails, as ours does once the power is gone, ends the program. Its erase of one sector gives the error back.
struct Firmware(Flash);

impl Firmware {
    fn erase(&mut self, from: u32, to: u32) -> Result<(), FlashError> {
        (from / SECTOR_SIZE..to / SECTOR_SIZE).try_for_each(|sector| self.0.erase_sector(sector))
    }
}

impl embedded_storage::nor_flash::ErrorType for Firmware {
    type Error = FlashError;
}

impl ReadNorFlash for Firmware {
    const READ_SIZE: usize = 1;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), FlashError> {
        self.0.read_async(offset, bytes).await
    }

    fn capacity(&self) -> usize {
        Flash::capacity()
    }
}

impl NorFlash for Firmware {
    const WRITE_SIZE: usize = 1;
    const ERASE_SIZE: usize = SECTOR_SIZE as usize;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), FlashError> {
        for sector in from / SECTOR_SIZE..to / SECTOR_SIZE {
            self.0.erase_sector_async(sector).await?;
        }
        Ok(())
    }

    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), FlashError> {
        self.0.write_async(offset, bytes).await
    }
}

impl MultiwriteNorFlash for Firmware {}

struct Little;

struct LittleFlash(Firmware);

const BLOCK_BYTES: usize = 4096;
const BLOCKS: usize = 24;

/// A block that does not hold what was written is one that littlefs is to give up and go to another; any other error ends
/// what it does.
fn lfs_error(error: FlashError) -> LfsError {
    match error {
        FlashError::ReadbackFail => LfsError::CORRUPTION,
        _ => LfsError::IO,
    }
}

#[allow(non_camel_case_types)]
impl littlefs2::driver::Storage for LittleFlash {
    const READ_SIZE: usize = 16;
    const WRITE_SIZE: usize = 16;
    const BLOCK_SIZE: usize = BLOCK_BYTES;
    const BLOCK_COUNT: usize = BLOCKS;
    const BLOCK_CYCLES: isize = 100;
    type CACHE_SIZE = littlefs2::consts::U256;
    type LOOKAHEAD_SIZE = littlefs2::consts::U1;

    fn read(&mut self, off: usize, buf: &mut [u8]) -> littlefs2::io::Result<usize> {
        self.0.0.read(off as u32, buf).map_err(lfs_error)?;
        Ok(buf.len())
    }

    fn write(&mut self, off: usize, data: &[u8]) -> littlefs2::io::Result<usize> {
        embedded_storage::nor_flash::NorFlash::write(&mut self.0.0, off as u32, data).map_err(lfs_error)?;
        Ok(data.len())
    }

    fn erase(&mut self, off: usize, len: usize) -> littlefs2::io::Result<usize> {
        self.0.erase(off as u32, (off + len) as u32).map_err(lfs_error)?;
        Ok(len)
    }
}

fn file_name(name: u8) -> PathBuf {
    PathBuf::try_from(format!("f{name:03}").as_str()).unwrap()
}

const LITTLE_FILES: u64 = 6;

impl Subject for Little {
    fn format(board: &Board) {
        Filesystem::format(&mut LittleFlash(Firmware(board.flash()))).unwrap();
    }

    fn work(board: &Board, random: &mut Random, steps: u32, promise: &mut Promise) -> Result<(), String> {
        let mut flash = LittleFlash(Firmware(board.flash()));
        let result = Filesystem::mount_and_then(&mut flash, |fs| {
            for _ in 0..steps {
                let name = random.below(LITTLE_FILES) as u8;
                let other = (name + 1 + random.below(LITTLE_FILES - 1) as u8) % LITTLE_FILES as u8;
                let here = promise.values.get(&name).cloned();
                match (random.below(8), here) {
                    (0, Some(_)) => {
                        promise.begin(&[(name, None)]);
                        fs.remove(&file_name(name))?;
                        promise.change(&[(name, None)]);
                    }
                    (1, Some(value)) => {
                        let changes = [(name, None), (other, Some(value))];
                        promise.begin(&changes);
                        fs.rename(&file_name(name), &file_name(other))?;
                        promise.change(&changes);
                    }
                    _ => {
                        let changes = [(name, Some(value(random, 6000)))];
                        promise.begin(&changes);
                        // Opening a file that is not there makes an empty one: a commit of its own, before the close's.
                        if !promise.values.contains_key(&name) {
                            promise.under_way.push(BTreeMap::from([(name, Some(Vec::new()))]));
                        }
                        fs.write(&file_name(name), changes[0].1.as_ref().unwrap())?;
                        promise.change(&changes);
                    }
                }
            }
            Ok(())
        });
        result.map_err(|error| format!("littlefs error {}", error.code()))
    }

    fn read_all(board: &Board) -> Result<BTreeMap<u8, Vec<u8>>, String> {
        let mut flash = LittleFlash(Firmware(board.flash()));
        let mut found = BTreeMap::new();
        Filesystem::mount_and_then(&mut flash, |fs| {
            let mut names = Vec::new();
            fs.read_dir_and_then(Path::from_bytes_with_nul(b"/\0").unwrap(), |entries| {
                for entry in entries {
                    let text = entry?.file_name().as_str().to_owned();
                    names.extend(text.strip_prefix('f').and_then(|number| number.parse::<u8>().ok()));
                }
                Ok(())
            })?;
            for name in names {
                found.insert(name, fs.read::<8192>(&file_name(name))?.to_vec());
            }
            Ok(())
        })
        .map_err(|error| format!("mount or read: littlefs error {}", error.code()))?;
        Ok(found)
    }
}

struct Map;

const MAP_KEYS: u64 = 12;
const MAP_BYTES: u32 = 4 * 4096;

fn map(board: &Board) -> MapStorage<u8, Firmware, impl sequential_storage::cache::CacheImpl<u8>> {
    MapStorage::new(Firmware(board.flash()), MapConfig::new(0..MAP_BYTES), Cache::new_uncached())
}

impl Subject for Map {
    fn format(board: &Board) {
        now(map(board).erase_all()).unwrap();
    }

    fn work(board: &Board, random: &mut Random, steps: u32, promise: &mut Promise) -> Result<(), String> {
        let mut map = map(board);
        let mut buffer = [0; 512];
        for _ in 0..steps {
            let key = random.below(MAP_KEYS) as u8;
            let changes = [(key, Some(value(random, 300)))];
            promise.begin(&changes);
            let data = changes[0].1.as_ref().unwrap();
            now(map.store_item(&mut buffer, &key, &data.as_slice())).map_err(|error| format!("{error:?}"))?;
            promise.change(&changes);
        }
        Ok(())
    }

    fn read_all(board: &Board) -> Result<BTreeMap<u8, Vec<u8>>, String> {
        let mut map = map(board);
        let mut buffer = [0; 512];
        let mut found = BTreeMap::new();
        for key in 0..MAP_KEYS as u8 {
            let item = now(map.fetch_item::<&[u8]>(&mut buffer, &key))
                .map_err(|error| format!("{key}: {error:?}"))?;
            found.extend(item.map(|item| (key, item.to_vec())));
        }
        Ok(found)
    }
}

/// A store that makes no promise: a sector for each key, erased and written in place.
struct Naive;

impl Subject for Naive {
    fn format(board: &Board) {
        Firmware(board.flash()).erase(0, 4 * SECTOR_SIZE).unwrap();
    }

    fn work(board: &Board, random: &mut Random, steps: u32, promise: &mut Promise) -> Result<(), String> {
        let mut flash = Firmware(board.flash());
        for _ in 0..steps {
            let (key, value) = (random.below(4) as u8, value(random, 250));
            let changes = [(key, Some(value.clone()))];
            promise.begin(&changes);
            let at = u32::from(key) * SECTOR_SIZE;
            let bytes = [&[value.len() as u8][..], &value].concat();
            flash.erase(at, at + SECTOR_SIZE).map_err(|error| format!("{error:?}"))?;
            now(flash.write(at, &bytes)).map_err(|error| format!("{error:?}"))?;
            promise.change(&changes);
        }
        Ok(())
    }

    fn read_all(board: &Board) -> Result<BTreeMap<u8, Vec<u8>>, String> {
        let mut flash = Firmware(board.flash());
        let mut found = BTreeMap::new();
        for key in 0..4u8 {
            let mut bytes = [0; 256];
            now(flash.read(u32::from(key) * SECTOR_SIZE, &mut bytes))
                .map_err(|error| format!("{error:?}"))?;
            let length = usize::from(bytes[0]);
            if length < 255 {
                found.insert(key, bytes[1..1 + length].to_vec());
            }
        }
        Ok(found)
    }
}

/// Runs a workload to its end, and then again and again with the power cut somewhere in it.
fn survive<S: Subject>(seed: u64, cuts: u64) {
    const STEPS: u32 = 12;
    // Workloads of several lengths of life, so that cuts meet full and compacted file systems.
    let per_base = 25;
    let mut random = Random(seed);
    let (mut done, mut hit, mut second, mut base_number) = (0, 0, 0, 0);
    let setup = Setup { seed, ..Setup::default() };
    let chip = Chip::new(Arc::new(part::find("W25Q128JV").unwrap().clone()), &setup).unwrap();
    let board = Board::new(chip);
    S::format(&board);
    let mut promise = Promise::default();
    while done < cuts {
        base_number += 1;
        S::work(&board, &mut random, STEPS * base_number.min(4), &mut promise).unwrap();
        let base = board.sim.lock().unwrap().chip(0).unwrap().clone();
        let work_seed = random.next();
        let operations = Arc::new(Mutex::new(Operations::default()));
        {
            let whole = Board::new(base.clone());
            whole.sim.lock().unwrap().observe(Box::new(Watch(operations.clone())));
            S::work(&whole, &mut Random(work_seed), STEPS, &mut promise.clone()).unwrap();
        }
        let operations = std::mem::take(&mut operations.lock().unwrap().all);
        assert!(operations.len() > STEPS as usize, "a workload without programs");
        for _ in 0..per_base.min(cuts - done) {
            done += 1;
            let (begin_ns, rise_ns, end_ns) = operations[random.below(operations.len() as u64) as usize];
            // Most cuts fall into what the chip does on its own, some into the frame that asks for it.
            let from = if random.below(5) == 0 { begin_ns } else { rise_ns };
            let to = if from == begin_ns { rise_ns } else { end_ns };
            let at_ns = from + random.below((to - from).max(1));
            let board = Board::new(base.clone());
            board.cut_at(at_ns);
            let mut after = promise.clone();
            let what = format!(
                "seed {seed}, base {base_number}, cut {done} at {at_ns} ns ({begin_ns}, {rise_ns}, {end_ns})"
            );
            let result = S::work(&board, &mut Random(work_seed), STEPS, &mut after);
            assert!(result.is_err(), "{what}: the workload did not meet its cut");
            hit += u64::from(
                board.sim.lock().unwrap().chip(0).unwrap().stats().interrupted > base.stats().interrupted,
            );
            board.power_up();
            if random.below(3) == 0 {
                // Again, while it is mounted and repaired.
                board.cut_at(board.now_ns() + random.below(3_000_000));
                // What was under way when the first cut came may be done or undone now, and nothing else changed.
                let _ = S::read_all(&board);
                second += 1;
                board.power_up();
            }
            let found = S::read_all(&board).unwrap_or_else(|error| panic!("{what}: {error}"));
            after.check(&found).unwrap_or_else(|error| panic!("{what}: {error}"));
            // It still takes changes, and keeps them.
            after.settle(found);
            S::work(&board, &mut random, 3, &mut after)
                .unwrap_or_else(|error| panic!("{what}: afterwards: {error}"));
            let found = S::read_all(&board).unwrap_or_else(|error| panic!("{what}: afterwards: {error}"));
            after.check(&found).unwrap_or_else(|error| panic!("{what}: afterwards: {error}"));
        }
    }
    eprintln!(
        "{done} cuts, {hit} within a program or an erase, {second} followed by another, {base_number} bases"
    );
    assert!(hit * 3 >= done, "only {hit} of {done} cuts met a program or an erase");
}

#[test]
fn littlefs_keeps_its_promises_through_power_cuts() {
    survive::<Little>(0x11, cuts() / 2);
}

#[test]
fn sequential_storage_keeps_its_promises_through_power_cuts() {
    survive::<Map>(0x22, cuts() / 2);
}

#[test]
#[should_panic(expected = "promised")]
fn a_store_that_writes_in_place_is_caught() {
    survive::<Naive>(0x33, 25);
}

#[test]
fn a_promise_that_is_broken_is_seen() {
    let mut promise = Promise::default();
    promise.change(&[(1, Some(vec![1])), (2, Some(vec![2]))]);
    promise.begin(&[(1, Some(vec![9]))]);
    let map = |pairs: &[(u8, u8)]| {
        pairs.iter().map(|(name, value)| (*name, vec![*value])).collect::<BTreeMap<_, _>>()
    };
    assert!(promise.check(&map(&[(1, 1), (2, 2)])).is_ok());
    assert!(promise.check(&map(&[(1, 9), (2, 2)])).is_ok());
    for broken in [&[(1, 3), (2, 2)][..], &[(2, 2)], &[(1, 1), (2, 2), (3, 3)], &[(1, 9)]] {
        assert!(promise.check(&map(broken)).is_err(), "{broken:?}");
    }
}
