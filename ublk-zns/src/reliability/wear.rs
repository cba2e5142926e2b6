//! The life of each zone: its cycles, the reads of its blocks, and its end.
//!
//! The invariant: a zone's health only gets worse (good, read-only, offline), by erases, or by uncorrectable reads of a
//! read-only zone; everything in here follows from the parameters, the seed, and the calls made.

use super::{ErrorParams, random::Key};
use crate::geometry::ZoneId;

/// What the random numbers here are for, see `chip.rs`.
const ENDURANCE: u64 = 5;

/// How a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Health {
    /// It can be written.
    #[default]
    Good,
    /// A block no longer takes a program: what it holds can still be read.
    ReadOnly,
    /// It can be neither written nor read.
    Offline,
}

/// What a call did to a zone's health. The engine moves the zone's state accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WearEvent {
    /// Nothing.
    #[default]
    None,
    /// It became read-only.
    ReadOnly,
    /// It went offline.
    Offline,
}

/// A zone's numbers since it was new: for statistics, and to keep across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZoneCounters {
    /// Program/erase cycles, those it began with included.
    pub pe_cycles: u32,
    /// When its oldest data was programmed, on the clock the device is given; `None` for an erased zone.
    pub programmed_at_ns: Option<u64>,
    /// Page reads since its last erase, over all its blocks; steps of read-retry are reads too.
    pub page_reads: u64,
    /// Bit errors at the first try, of all reads.
    pub raw_bit_errors: u64,
    /// Bits that were read, whole codewords.
    pub bits_read: u64,
    /// Steps of read-retry.
    pub retry_steps: u64,
    /// Codewords that could not be corrected.
    pub uncorrectable_codewords: u64,
    /// Uncorrectable reads since it became read-only.
    pub read_only_failures: u32,
    /// How it is.
    pub health: Health,
}

/// The wear of all zones.
#[derive(Debug, Clone)]
pub struct Wear {
    seed: u64,
    blocks_per_zone: u32,
    endurance_cycles: f64,
    endurance_sigma: f64,
    offline_factor: f64,
    offline_reads: u32,
    zones: Vec<ZoneCounters>,
    /// Page reads since the erase, of each block of each zone.
    block_reads: Vec<u32>,
}

impl Wear {
    /// New zones, each of `blocks_per_zone` erase blocks that are erased together. Each block takes 4 bytes:
    /// [`super::Reliability::new`] bounds how many there are.
    pub fn new(params: &ErrorParams, seed: u64, zones: u32, blocks_per_zone: u32) -> Wear {
        let mut wear = Wear {
            seed,
            blocks_per_zone: blocks_per_zone.max(1),
            endurance_cycles: params.endurance_cycles,
            endurance_sigma: params.endurance_sigma,
            offline_factor: params.offline_factor,
            offline_reads: params.offline_uncorrectable_reads,
            zones: vec![
                ZoneCounters { pe_cycles: params.initial_pe_cycles, ..Default::default() };
                zones as usize
            ],
            block_reads: vec![0; zones as usize * blocks_per_zone.max(1) as usize],
        };
        if params.initial_pe_cycles > 0 {
            for zone in 0..zones {
                wear.age(ZoneId(zone));
            }
        }
        wear
    }

    /// How many zones there are.
    pub fn zones(&self) -> u32 {
        self.zones.len() as u32
    }

    /// The cycles that a zone endures: those of its weakest block. Infinite if nothing wears out.
    pub fn endurance(&self, zone: ZoneId) -> f64 {
        if self.endurance_cycles == 0.0 {
            return f64::INFINITY;
        }
        let key = Key::new(self.seed, ENDURANCE).with(u64::from(zone.0));
        let weakest = (0..self.blocks_per_zone)
            .map(|block| key.with(u64::from(block)).normal())
            .fold(f64::INFINITY, f64::min);
        self.endurance_cycles * (self.endurance_sigma * weakest).exp()
    }

    /// A zone's numbers; `None` for a zone that is not there.
    pub fn counters(&self, zone: ZoneId) -> Option<&ZoneCounters> {
        self.zones.get(zone.0 as usize)
    }

    /// Page reads of a block since its erase.
    pub fn block_reads(&self, zone: ZoneId, block: u32) -> u32 {
        self.slot(zone, block).and_then(|slot| self.block_reads.get(slot)).copied().unwrap_or(0)
    }

    fn slot(&self, zone: ZoneId, block: u32) -> Option<usize> {
        let fits = block < self.blocks_per_zone;
        fits.then(|| zone.0 as usize * self.blocks_per_zone as usize + block as usize)
    }

    fn blocks(&mut self, zone: ZoneId) -> &mut [u32] {
        let first = zone.0 as usize * self.blocks_per_zone as usize;
        self.block_reads.get_mut(first..first + self.blocks_per_zone as usize).unwrap_or(&mut [])
    }

    /// The zone was erased: one more cycle for its blocks. Says whether that was one too many.
    pub fn on_reset(&mut self, zone: ZoneId) -> WearEvent {
        self.blocks(zone).fill(0);
        let Some(counters) = self.zones.get_mut(zone.0 as usize) else { return WearEvent::None };
        counters.pe_cycles = counters.pe_cycles.saturating_add(1);
        counters.programmed_at_ns = None;
        counters.page_reads = 0;
        self.age(zone)
    }

    /// Something was written to the zone. Its retention time counts from the first of it: that of its oldest data.
    pub fn on_program(&mut self, zone: ZoneId, now_ns: u64) {
        if let Some(counters) = self.zones.get_mut(zone.0 as usize) {
            counters.programmed_at_ns.get_or_insert(now_ns);
        }
    }

    /// Pages of a block were read so often.
    pub(super) fn on_page_reads(&mut self, zone: ZoneId, block: u32, reads: u32) {
        if let Some(count) = self.slot(zone, block).and_then(|slot| self.block_reads.get_mut(slot)) {
            *count = count.saturating_add(reads);
        }
        if let Some(counters) = self.zones.get_mut(zone.0 as usize) {
            counters.page_reads = counters.page_reads.saturating_add(u64::from(reads));
        }
    }

    /// A read of the zone ended: what it found, for its numbers and its health.
    pub fn on_read(
        &mut self,
        zone: ZoneId,
        bits: u64,
        raw_bit_errors: u64,
        retry_steps: u32,
        uncorrectable_codewords: u32,
    ) -> WearEvent {
        let offline_reads = self.offline_reads;
        let Some(counters) = self.zones.get_mut(zone.0 as usize) else { return WearEvent::None };
        counters.bits_read = counters.bits_read.saturating_add(bits);
        counters.raw_bit_errors = counters.raw_bit_errors.saturating_add(raw_bit_errors);
        counters.retry_steps = counters.retry_steps.saturating_add(u64::from(retry_steps));
        counters.uncorrectable_codewords =
            counters.uncorrectable_codewords.saturating_add(u64::from(uncorrectable_codewords));
        if uncorrectable_codewords == 0 || counters.health != Health::ReadOnly {
            return WearEvent::None;
        }
        counters.read_only_failures = counters.read_only_failures.saturating_add(1);
        if offline_reads == 0 || counters.read_only_failures < offline_reads {
            return WearEvent::None;
        }
        counters.health = Health::Offline;
        WearEvent::Offline
    }

    /// Puts back what [`Wear::counters`] said before a restart. The reads are spread evenly over the zone's blocks.
    pub fn restore(&mut self, zone: ZoneId, saved: ZoneCounters) {
        let blocks = u64::from(self.blocks_per_zone);
        let reads = u32::try_from(saved.page_reads.div_ceil(blocks)).unwrap_or(u32::MAX);
        self.blocks(zone).fill(reads);
        if let Some(counters) = self.zones.get_mut(zone.0 as usize) {
            *counters = saved;
        }
        // Cycles beyond the end of life cannot be a good zone, whatever was saved.
        self.age(zone);
    }

    /// Brings a zone's health up to its cycles.
    fn age(&mut self, zone: ZoneId) -> WearEvent {
        if self.endurance_cycles == 0.0 {
            return WearEvent::None;
        }
        let endurance = self.endurance(zone);
        let offline = endurance * self.offline_factor;
        let Some(counters) = self.zones.get_mut(zone.0 as usize) else { return WearEvent::None };
        let cycles = f64::from(counters.pe_cycles);
        let (health, event) = match cycles {
            _ if cycles > offline => (Health::Offline, WearEvent::Offline),
            _ if cycles > endurance => (Health::ReadOnly, WearEvent::ReadOnly),
            _ => (Health::Good, WearEvent::None),
        };
        if health <= counters.health {
            return WearEvent::None;
        }
        counters.health = health;
        event
    }
}
