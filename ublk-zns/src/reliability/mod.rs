//! Bit errors and wear of the flash behind the zones (pure).
//!
//! - [`ErrorParams`]: the numbers, from TOML files;
//! - [`Chip`]: the raw bit-error rate of a place, and the way of a codeword through error correction and read-retry;
//! - [`Wear`]: cycles, reads and the end of life of zones;
//! - [`Reliability`]: all of it for a device, which is what an engine calls;
//! - [`tables`] measures a simulated chip as one measures a real one, [`fit`] finds the parameters of measurements.
//!
//! docs/error-model.md has the formulas. The invariant: all of it is a function of the parameters, the seed, and the calls
//! made with the times given in them; nothing reads a clock, and no two devices with the same seed and calls differ.

mod chip;
mod error;
pub mod fit;
mod measurements;
mod params;
mod random;
pub mod tables;
mod wear;

pub use chip::{Chip, CodewordRead, Conditions, PageAddress, PagePlace, Pattern, page_type_name};
pub use error::ReliabilityError;
pub use measurements::{Measurement, read_csv};
pub use params::ErrorParams;
pub use wear::{Health, Wear, WearEvent, ZoneCounters};

use crate::geometry::{Geometry, SECTOR_BYTES, ZoneId};

const NS_PER_HOUR: f64 = 3.6e12;
/// Blocks of a device at most: their read counters are 4 bytes each.
const MAX_BLOCKS: u64 = 1 << 26;

/// What a read met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOutcome {
    /// Bit errors at the first try, in all codewords that the read touches.
    pub raw_bit_errors: u64,
    /// Steps of read-retry, over all pages.
    pub retry_steps: u32,
    /// What they add to the read's latency: pages of one block one after another, blocks side by side.
    pub extra_latency_ns: u64,
    /// Codewords whose data is lost. Above 0, the read fails.
    pub uncorrectable_codewords: u32,
    /// The first sector of the read that such a codeword holds, from the zone's start.
    pub first_bad_sector: Option<u64>,
    /// Whether it was one failure too many for a read-only zone.
    pub event: WearEvent,
}

impl ReadOutcome {
    /// Whether data is lost.
    pub fn is_uncorrectable(&self) -> bool {
        self.uncorrectable_codewords > 0
    }
}

/// The error and wear model of a device.
///
/// A zone's pages are striped over its blocks: page `i` of the zone is page `i / blocks` of block `i % blocks`. Conventional
/// zones read without errors and do not wear: their cells move under a mapping layer that is not modelled.
#[derive(Debug, Clone)]
pub struct Reliability {
    chip: Chip,
    wear: Wear,
    conventional_zones: u32,
    capacity_sectors: u64,
    page_sectors: u64,
    codeword_sectors: u64,
    blocks_per_zone: u32,
    no_errors: bool,
}

/// What a read wants of its zone, in sectors, and the pattern there.
struct Span {
    offset: u64,
    end: u64,
    pattern: Pattern,
}

/// What the pages of one block add to a read.
#[derive(Default)]
struct BlockRead {
    page_reads: u32,
    bits: u64,
    latency_ns: u64,
}

impl Reliability {
    /// The model of a device. The page's size and the pages of a block are those of `params`; to follow another geometry,
    /// set them there.
    ///
    /// # Errors
    /// [`ReliabilityError::Parameter`] for parameters that cannot be, or blocks so small that there are too many.
    pub fn new(
        params: &ErrorParams,
        seed: u64,
        geometry: &Geometry,
    ) -> Result<Reliability, ReliabilityError> {
        let chip = Chip::new(params, seed)?;
        let block_bytes = u64::from(params.page_bytes) * u64::from(params.pages_per_block);
        let capacity_bytes = geometry.sequential_capacity_sectors().saturating_mul(SECTOR_BYTES);
        let blocks = capacity_bytes.div_ceil(block_bytes);
        if blocks.saturating_mul(u64::from(geometry.zones())) > MAX_BLOCKS {
            return Err(ReliabilityError::Parameter {
                place: "error parameters".into(),
                field: "pages_per_block".into(),
                value: params.pages_per_block.to_string(),
                rule: format!(
                    "the device would have {blocks} blocks in each of {} zones: more than {MAX_BLOCKS} in all",
                    geometry.zones()
                ),
            });
        }
        let sectors = |bytes: u32| u64::from(bytes) / SECTOR_BYTES;
        Ok(Reliability {
            wear: Wear::new(params, seed, geometry.zones(), blocks as u32),
            conventional_zones: geometry.conventional_zones(),
            capacity_sectors: geometry.sequential_capacity_sectors(),
            page_sectors: sectors(params.page_bytes),
            codeword_sectors: sectors(params.codeword_bytes),
            blocks_per_zone: blocks as u32,
            no_errors: params.has_no_errors(),
            chip,
        })
    }

    /// The chips.
    pub fn chip(&self) -> &Chip {
        &self.chip
    }

    /// The wear of the zones.
    pub fn wear(&self) -> &Wear {
        &self.wear
    }

    /// A zone's numbers; `None` for a zone that is not there.
    pub fn counters(&self, zone: ZoneId) -> Option<&ZoneCounters> {
        self.wear.counters(zone)
    }

    /// Puts back a zone's numbers after a restart, see [`Wear::restore`]. The clock must go on where it was.
    pub fn restore(&mut self, zone: ZoneId, saved: ZoneCounters) {
        self.wear.restore(zone, saved);
    }

    /// Whether [`Reliability::read`] looks at the pattern of the data: if not, [`Pattern::RANDOM`] will do.
    pub fn wants_pattern(&self) -> bool {
        let params = self.chip.params();
        !params.randomizer && (params.zero_bias != 0.0 || params.interference != 0.0) && !self.no_errors
    }

    /// Something was written to `zone`. Its retention time counts from the first such call after a reset.
    pub fn programmed(&mut self, now_ns: u64, zone: ZoneId) {
        if zone.0 >= self.conventional_zones {
            self.wear.on_program(zone, now_ns);
        }
    }

    /// `zone` was reset.
    pub fn reset(&mut self, zone: ZoneId) -> WearEvent {
        if zone.0 < self.conventional_zones { WearEvent::None } else { self.wear.on_reset(zone) }
    }

    /// What a block has been through; `None` for one that holds no data.
    pub fn conditions(&self, now_ns: u64, zone: ZoneId, block: u32) -> Option<Conditions> {
        let counters = self.wear.counters(zone)?;
        let age_ns = now_ns.saturating_sub(counters.programmed_at_ns?);
        Some(Conditions {
            pe_cycles: f64::from(counters.pe_cycles),
            retention_hours: age_ns as f64 / NS_PER_HOUR,
            reads: f64::from(self.wear.block_reads(zone, block)),
        })
    }

    /// Reads `sectors` at `offset_sectors` of `zone`, all of which hold data of the given pattern. What is past the zone, or
    /// in a zone that was not programmed since its reset, is read without errors.
    pub fn read(
        &mut self,
        now_ns: u64,
        zone: ZoneId,
        offset_sectors: u64,
        sectors: u64,
        pattern: Pattern,
    ) -> ReadOutcome {
        let end = offset_sectors.saturating_add(sectors).min(self.capacity_sectors);
        let mut outcome = ReadOutcome::default();
        if offset_sectors >= end || zone.0 < self.conventional_zones {
            return outcome;
        }
        let span = Span { offset: offset_sectors, end, pattern };
        let blocks = u64::from(self.blocks_per_zone);
        let (first, last) = (offset_sectors / self.page_sectors, (end - 1) / self.page_sectors);
        let mut bits = 0;
        for start in first..=last.min(first + blocks - 1) {
            let block = (start % blocks) as u32;
            let Some(conditions) = self.conditions(now_ns, zone, block) else { return outcome };
            let pages = (start..=last).step_by(self.blocks_per_zone as usize);
            let read = self.read_block(zone, block, pages, &conditions, &span, &mut outcome);
            self.wear.on_page_reads(zone, block, read.page_reads);
            bits += read.bits;
            outcome.extra_latency_ns = outcome.extra_latency_ns.max(read.latency_ns);
        }
        outcome.event = self.wear.on_read(
            zone,
            bits,
            outcome.raw_bit_errors,
            outcome.retry_steps,
            outcome.uncorrectable_codewords,
        );
        outcome
    }

    /// Reads what `span` holds of some pages (counted over the zone) of one block.
    fn read_block(
        &self,
        zone: ZoneId,
        block: u32,
        pages: impl Iterator<Item = u64>,
        conditions: &Conditions,
        span: &Span,
        outcome: &mut ReadOutcome,
    ) -> BlockRead {
        let chip = &self.chip;
        let block_rber = match self.no_errors {
            true => 0.0,
            false => {
                chip.mean_rber(conditions)
                    * chip.block_factor(zone.0, block)
                    * chip.pattern_factor(&span.pattern)
            }
        };
        let generation = conditions.pe_cycles as u64;
        let mut read = BlockRead::default();
        for zone_page in pages {
            let page = (zone_page / u64::from(self.blocks_per_zone)) as u32;
            let start = zone_page * self.page_sectors;
            let from = span.offset.max(start);
            let (low, high) = (from - start, span.end.min(start + self.page_sectors) - start - 1);
            let codewords = low / self.codeword_sectors..=high / self.codeword_sectors;
            read.bits += (codewords.end() - codewords.start() + 1) * chip.codeword_bits();
            read.page_reads += 1;
            if block_rber == 0.0 {
                continue;
            }
            let rber = chip.page_rber(block_rber, page);
            let luck =
                chip.luck(&PageAddress { zone: zone.0, block, page, generation }, conditions.reads as u64);
            let mut steps = 0;
            for codeword in codewords {
                let found = chip.decode(luck, rber, codeword as u32);
                outcome.raw_bit_errors += found.raw_bit_errors;
                steps = steps.max(found.retry_steps);
                if found.uncorrectable {
                    outcome.uncorrectable_codewords += 1;
                    let bad = from.max(start + codeword * self.codeword_sectors);
                    outcome.first_bad_sector =
                        Some(outcome.first_bad_sector.map_or(bad, |first| first.min(bad)));
                }
            }
            // A step reads the whole page again.
            let latencies = chip.params().retry_latency_ns.iter().take(steps as usize);
            read.latency_ns = latencies.fold(read.latency_ns, |sum, step| sum.saturating_add(*step));
            read.page_reads = read.page_reads.saturating_add(steps);
            outcome.retry_steps = outcome.retry_steps.saturating_add(steps);
        }
        read
    }
}
