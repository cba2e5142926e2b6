//! Bit errors, wear, operation times and interrupted operations of the chip's cells (pure).
//!
//! - [`ReliabilityParams`]: the numbers, from TOML files; [`Rates`]: the formula; [`Reliability`]: what the chip asks;
//! - [`tables`] measures a chip of the model as a test board does, [`fit`] finds the parameters of a measured one.
//!
//! docs/spi-error-model.md has the formulas. The invariant: every answer is a function of the parameters, the seed and the
//! arguments; data read again under the same conditions errs in the same bits, and under worse ones in those and more.
//!
//! **How errors are found.** Each bit of a page has a level, exponentially distributed with mean 1, that stays from program to
//! erase; it reads wrong while its level is below `G × H(p)`. Here p is its present rate (conditions, place, value, neighbours),
//! G is the page's luck, gamma distributed with mean 1 and variance `dispersion` d, and H(p) = ((1 − p)^−d − 1) / d, which makes
//! the probability exactly p once G is averaged out. Levels are not stored, and not drawn for every bit: the weakest bits of
//! the page come one after another, with exponential spacings of mean 1 / bits, each at a uniform place, until a level is above
//! that of the largest rate any bit can have. A page without errors costs one such draw.

mod endurance;
mod error;
pub mod fit;
mod interrupted;
mod measurements;
mod memory;
mod params;
mod random;
mod rates;
pub mod tables;
mod times;

pub use endurance::StuckBits;
pub use error::ReliabilityError;
pub use interrupted::Marginal;
pub use measurements::{Measurement, read_csv};
pub use params::ReliabilityParams;
pub use rates::{Conditions, MAX_RATE, Rates, ThermalHistory, acceleration, differing_neighbours};

use random::{Stream, Use, WeakestFirst, factor_of_mean_one, hash, unit};
use std::sync::Arc;

/// Above this level no bit of a page is left: exp(-30) of them would be.
const MAX_LEVEL: f64 = 30.0;

/// The chip's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Smallest erase units: sectors of 4 KiB on NOR, blocks on NAND.
    pub blocks: u32,
    /// Pages of the whole device, a multiple of `blocks`.
    pub pages: u32,
    /// Bytes of a page.
    pub page_bytes: u32,
}

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagePlace {
    /// Its smallest erase unit.
    pub block: u32,
    /// The page, counted over the device.
    pub page: u32,
}

/// What has happened to a page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PageState {
    /// Erases of its block.
    pub cycles: u32,
    /// When it was programmed, or erased if it was not since.
    pub programmed_at_ns: u64,
    /// Now, on the same clock.
    pub now_ns: u64,
    /// Reads of its block since the erase.
    pub block_reads: u64,
    /// A number that changes with each erase of the page: its bits' luck is new. Who changes it with each program too makes a
    /// page that is programmed in parts draw anew each time.
    pub epoch: u64,
    /// What an interrupted operation left.
    pub marginal: Marginal,
}

/// How many bits read wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BitErrors {
    /// Bits that hold 0 and read 1.
    pub zero_to_one: u32,
    /// Bits that hold 1 and read 0.
    pub one_to_zero: u32,
}

impl BitErrors {
    /// Both kinds.
    pub fn total(&self) -> u32 {
        self.zero_to_one.saturating_add(self.one_to_zero)
    }
}

/// The reliability model of one chip. A clone is cheap: what is large is shared.
#[derive(Debug, Clone)]
pub struct Reliability {
    params: Arc<ReliabilityParams>,
    seed: u64,
    layout: Layout,
    block_factors: Arc<[f32]>,
    history: Arc<ThermalHistory>,
    is_perfect: bool,
    has_no_rates: bool,
}

impl Reliability {
    /// Blocks at most.
    const MAX_BLOCKS: u32 = 1 << 24;

    /// The model of a chip.
    ///
    /// # Errors
    /// [`ReliabilityError::Value`] for parameters out of range, or a shape that cannot be.
    pub fn new(
        params: &ReliabilityParams,
        seed: u64,
        layout: Layout,
    ) -> Result<Reliability, ReliabilityError> {
        params.check("reliability parameters")?;
        let wrong = |field: &str, value: u32, rule: String| {
            let place = "the chip's layout".into();
            Err(ReliabilityError::Value { place, field: field.into(), value: value.to_string(), rule })
        };
        if !(1..=Reliability::MAX_BLOCKS).contains(&layout.blocks) {
            return wrong("blocks", layout.blocks, format!("it must be 1 to {}", Reliability::MAX_BLOCKS));
        }
        if layout.pages == 0 || !layout.pages.is_multiple_of(layout.blocks) {
            let rule = format!("it must be a multiple of the {} blocks, and not 0", layout.blocks);
            return wrong("pages", layout.pages, rule);
        }
        if !(1..=65536).contains(&layout.page_bytes) {
            return wrong("page_bytes", layout.page_bytes, "it must be 1 to 65536".into());
        }
        let sigma = params.block_sigma;
        let factor = |block: u32| {
            factor_of_mean_one(hash(seed, Use::BlockRate, [u64::from(block)]), sigma).clamp(1e-30, 1e30)
                as f32
        };
        Ok(Reliability {
            seed,
            layout,
            block_factors: (0..layout.blocks).map(factor).collect(),
            history: Arc::new(ThermalHistory::new(params)),
            is_perfect: params.is_perfect(),
            has_no_rates: params.has_no_rates(),
            params: Arc::new(params.clone()),
        })
    }

    /// Whether the chip never errs, never wears, and takes exactly the typical times: then only
    /// [`Reliability::interrupted_program`] and [`Reliability::interrupted_erase`] have anything to say.
    pub fn is_perfect(&self) -> bool {
        self.is_perfect
    }

    /// The parameters.
    pub fn params(&self) -> &ReliabilityParams {
        &self.params
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The temperature now, in degrees Celsius.
    pub fn temperature_c(&self) -> f64 {
        self.history.temperature_c()
    }

    /// From `now_ns` on the chip has this temperature. Time that has passed keeps what it did.
    ///
    /// # Errors
    /// [`ReliabilityError::Value`] for a temperature outside -55 to 200 degrees Celsius.
    pub fn set_temperature_c(&mut self, now_ns: u64, temperature_c: f64) -> Result<(), ReliabilityError> {
        if !(-55.0..=200.0).contains(&temperature_c) {
            return Err(ReliabilityError::Value {
                place: "the chip".into(),
                field: "temperature_c".into(),
                value: temperature_c.to_string(),
                rule: "it must be -55 to 200".into(),
            });
        }
        let factor = acceleration(&self.params, temperature_c);
        Arc::make_mut(&mut self.history).change(now_ns, temperature_c, factor);
        Ok(())
    }

    /// The temperatures so far, to save.
    pub fn thermal_history(&self) -> &ThermalHistory {
        &self.history
    }

    /// Puts back saved temperatures.
    ///
    /// # Errors
    /// [`ReliabilityError::Value`] for a history that cannot be: times that do not rise, numbers that are none.
    pub fn restore_thermal_history(&mut self, saved: ThermalHistory) -> Result<(), ReliabilityError> {
        if !saved.is_sound() {
            return Err(ReliabilityError::Value {
                place: "the saved state".into(),
                field: "thermal_history".into(),
                value: "inconsistent".into(),
                rule: "its times must rise, its temperatures be -55 to 200, and its hours not negative"
                    .into(),
            });
        }
        self.history = Arc::new(saved);
        Ok(())
    }

    /// What a page has been through, in the formula's terms.
    pub fn conditions(&self, state: &PageState) -> Conditions {
        let hours = self.history.hours_between(state.programmed_at_ns, state.now_ns);
        Conditions {
            cycles: f64::from(state.cycles),
            retention_hours: hours * self.params.time_acceleration,
            reads: state.block_reads as f64,
        }
    }

    /// The factor of a page's place on its rate: block, layer and page.
    pub fn place_factor(&self, place: PagePlace) -> f64 {
        let block = self.block_factors.get(place.block as usize).map_or(1.0, |factor| f64::from(*factor));
        let page_key = hash(self.seed, Use::PageRate, [u64::from(place.page)]);
        block * self.layer_factor(place.page) * factor_of_mean_one(page_key, self.params.page_sigma)
    }

    /// The layer of a page; 0 in a planar chip.
    pub fn layer(&self, page: u32) -> u32 {
        let in_block = u64::from(self.layout.pages / self.layout.blocks);
        (u64::from(page) % in_block * u64::from(self.params.layers) / in_block) as u32
    }

    fn layer_factor(&self, page: u32) -> f64 {
        if self.params.layers == 0 {
            return 1.0;
        }
        let key = hash(self.seed, Use::LayerRate, [u64::from(self.layer(page))]);
        factor_of_mean_one(key, self.params.layer_sigma)
    }

    /// Reads part of a page: `data` is what its cells were made to hold from byte `offset` on, and comes back as it reads.
    /// `read_index` tells reads apart: only cells at the very edge differ between them. Counts are against what was held.
    pub fn read(
        &self,
        place: PagePlace,
        state: &PageState,
        offset: usize,
        data: &mut [u8],
        read_index: u64,
    ) -> BitErrors {
        let mut wrong = Vec::new();
        if !self.has_no_rates {
            let rates = Rates::of(&self.params, &self.conditions(state));
            self.weak_bits(place, state.epoch, &rates, offset, data, read_index, &mut wrong);
        }
        self.flickering_bits(place, state.marginal, offset, data, read_index, &mut wrong);
        flip(data, &mut wrong)
    }

    /// Finds the bits of `data` that read wrong at these rates; each once.
    #[expect(clippy::too_many_arguments, reason = "what a read is made of")]
    fn weak_bits(
        &self,
        place: PagePlace,
        epoch: u64,
        rates: &Rates,
        offset: usize,
        data: &[u8],
        read_index: u64,
        wrong: &mut Vec<u64>,
    ) {
        let params = &*self.params;
        let factor = self.place_factor(place);
        let most = rates.most(factor, params.interference);
        if most == 0.0 {
            return;
        }
        let of_page = [u64::from(place.page), epoch];
        let luck = match params.dispersion {
            0.0 => 1.0,
            dispersion => {
                Stream::new(hash(self.seed, Use::PageLuck, of_page)).gamma_of_mean_one(1.0 / dispersion)
            }
        };
        let reach = luck * level_of(most, params.dispersion) * (1.0 + params.read_noise);
        let bits = u64::from(self.layout.page_bytes) * 8;
        let first = (offset as u64).saturating_mul(8);
        let end = first.saturating_add(data.len() as u64 * 8);
        let key = hash(self.seed, Use::WeakCells, of_page);
        for (level, bit) in
            WeakestFirst::new(key, bits).take_while(|(level, _)| *level < reach.min(MAX_LEVEL))
        {
            if !(first..end).contains(&bit) {
                continue;
            }
            let at = bit - first;
            let Some(byte) = data.get((at / 8) as usize) else { continue };
            let rate = rates.of_bit(factor, params.interference, *byte, (at % 8) as u32);
            let noise = match params.read_noise {
                0.0 => 1.0,
                width => {
                    let parts = [of_page[0], epoch, bit, read_index];
                    1.0 + width * (2.0 * unit(hash(self.seed, Use::ReadNoise, parts)) - 1.0)
                }
            };
            if level < luck * level_of(rate, params.dispersion) * noise {
                wrong.push(at);
            }
        }
        // A bit that came again is the same bit.
        wrong.sort_unstable();
        wrong.dedup();
    }
}

/// Flips bits, those that are there twice not at all, and counts what that did.
fn flip(data: &mut [u8], wrong: &mut [u64]) -> BitErrors {
    wrong.sort_unstable();
    let mut errors = BitErrors::default();
    for same in wrong.chunk_by(|a, b| a == b).filter(|same| same.len() % 2 == 1) {
        let Some(byte) = data.get_mut((same[0] / 8) as usize) else { continue };
        let mask = 1 << (same[0] % 8);
        if *byte & mask == 0 {
            errors.zero_to_one += 1;
        } else {
            errors.one_to_zero += 1;
        }
        *byte ^= mask;
    }
    errors
}

/// H of the module's head: the level below which a bit of this rate is wrong, for a page of luck 1.
fn level_of(rate: f64, dispersion: f64) -> f64 {
    let plain = -(-rate).ln_1p();
    if dispersion < 1e-9 { plain } else { (dispersion * plain).exp_m1() / dispersion }
}
