//! The chips that a command works with: parts, error models, time.

use crate::Usage;
use anyhow::Context;
use clap::Args;
use spiflash_mtd::reliability::ReliabilityParams;
use spiflash_mtd::{Chip, Setup, TimeMode, part, part::Part, units};
use std::sync::Arc;

/// A part by its name, or its file.
pub(crate) fn part(name: &str) -> anyhow::Result<Arc<Part>> {
    if let Some(part) = part::find(name) {
        return Ok(Arc::new(part.clone()));
    }
    if !name.contains(['.', '/']) {
        let names: Vec<&str> = part::all().iter().map(|part| part.name.as_str()).collect();
        return Err(Usage(format!(
            "--part {name}: no such part and no file; there are {}",
            names.join(", ")
        ))
        .into());
    }
    let text =
        std::fs::read_to_string(name).with_context(|| format!("the part file {name} cannot be read"))?;
    Ok(Arc::new(Part::from_toml(&text, name)?))
}

/// The text of a part's file.
pub(crate) fn part_text(name: &str) -> anyhow::Result<String> {
    match part::text(name) {
        Some(text) => Ok(text.to_owned()),
        None => std::fs::read_to_string(name).with_context(|| format!("the part file {name} cannot be read")),
    }
}

/// A time on a command line.
pub(crate) fn time_ns(text: &str) -> Result<u64, String> {
    units::parse_ns(text).map_err(str::to_owned)
}

/// `real`, `bits`, `delays`, `poll-skip` or `poll-skip:N`.
pub(crate) fn time_mode(text: &str) -> Result<TimeMode, String> {
    match text.split_once(':').map_or((text, None), |(mode, polls)| (mode, Some(polls))) {
        ("real", None) => Ok(TimeMode::Real),
        ("bits", None) => Ok(TimeMode::Bits),
        ("delays", None) => Ok(TimeMode::Delays),
        ("poll-skip", None) => Ok(TimeMode::PollSkip { polls: 1 }),
        ("poll-skip", Some(polls)) => match polls.parse() {
            Ok(polls) => Ok(TimeMode::PollSkip { polls }),
            Err(_) => Err(format!("{polls:?} is no number of status reads")),
        },
        _ => Err("it is real, bits, delays, poll-skip, or poll-skip:N".into()),
    }
}

/// How chips err and wear, and what is drawn.
#[derive(Args, Clone, Debug)]
pub(crate) struct Model {
    /// The error and wear model: none, part (the one that fits each part), one of `rber --list`, or a file
    #[arg(long, default_value = "none", value_name = "NAME|FILE")]
    errors: String,
    /// Change a number of the error model; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of times, bit errors, bad blocks and unique IDs
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

impl Model {
    /// A chip as delivered, with power.
    pub(crate) fn chip(&self, part: &Arc<Part>, number: u64) -> anyhow::Result<Chip> {
        let name = if self.errors == "part" { part.endurance.errors.as_str() } else { self.errors.as_str() };
        let mut reliability = ReliabilityParams::load(name)
            .and_then(|found| found.with(&self.set))
            .map_err(crate::rber::asked)?;
        if self.errors == "part"
            && part.endurance.cycles > 0
            && !self.set.iter().any(|set| set.starts_with("endurance_cycles"))
        {
            // The data sheet's cycles are what every block should reach: the model's number is the median.
            reliability = reliability.with(&[format!("endurance_cycles={}.0", part.endurance.cycles * 3)])?;
        }
        let setup = Setup { seed: self.seed.wrapping_add(number), reliability, powered: true };
        Ok(Chip::new(Arc::clone(part), &setup)?)
    }
}
