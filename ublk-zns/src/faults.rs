//! Faults on demand (pure): a table of rules that commands are checked against, and the words for them.
//!
//! A [`Rule`] says which commands it is for (operation and area), what it does to them, how often (its *count*: how many
//! commands it may hit before it is spent) and with which probability. [`Faults::check`] is asked once per command.
//!
//! The invariants: rules are independent, each fires on every command that it is for as if the others were not there, and
//! counts it; a rule never fires more often than its count; and with one seed the same commands in the same order meet the
//! same faults, whatever rules were added or removed besides, since each rule draws from numbers of its own.
//!
//! How the effects of several rules on one command combine is said at [`Verdict`].

#[cfg(test)]
mod tests;

use crate::{
    geometry::{Geometry, Sector, ZoneId},
    rng::{SplitMix64, mix},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest stall in ns: one minute. The kernel's own patience with a device ends at some point.
pub const MAX_STALL_NS: u64 = 60_000_000_000;
/// The longest latency that one rule may add, in ns: one minute.
pub const MAX_ADDED_NS: u64 = 60_000_000_000;
/// The most rules at once: every command looks at all of them.
pub const MAX_RULES: usize = 256;

/// A rule that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option} is {value}: {rule}")]
pub struct FaultError {
    /// The option.
    pub option: &'static str,
    /// What it was.
    pub value: String,
    /// What would be right.
    pub rule: String,
}

impl FaultError {
    /// `option` cannot be `value`, because of `rule`.
    pub fn new(option: &'static str, value: impl fmt::Display, rule: impl Into<String>) -> FaultError {
        FaultError { option, value: value.to_string(), rule: rule.into() }
    }
}

/// What a command does, as far as faults care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoOp {
    /// Reads data.
    Read,
    /// Writes data: a write, or an append at the place where it lands.
    Write,
    /// Flushes the cache; is nowhere.
    Flush,
    /// Opens, closes, finishes, resets or reports zones; its place is the zone.
    Manage,
}

/// Which commands a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpFilter {
    /// Reads.
    Read,
    /// Writes and appends.
    Write,
    /// Flushes.
    Flush,
    /// Zone management and reports.
    Manage,
    /// Every command.
    Any,
}

impl OpFilter {
    fn takes(self, op: IoOp) -> bool {
        match self {
            OpFilter::Any => true,
            OpFilter::Read => op == IoOp::Read,
            OpFilter::Write => op == IoOp::Write,
            OpFilter::Flush => op == IoOp::Flush,
            OpFilter::Manage => op == IoOp::Manage,
        }
    }
}

/// Where a rule holds. A command is there if it shares a sector with it; a flush is only on the whole device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The whole device.
    Device,
    /// One zone.
    Zone(ZoneId),
    /// Some sectors of 512 bytes.
    Sectors {
        /// The first.
        first: Sector,
        /// How many.
        count: u64,
    },
}

/// How many commands a rule may hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Count {
    /// So many.
    Times(u64),
    /// No end.
    Always,
}

/// A probability above 0 and up to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Probability(f64);

impl Probability {
    /// Every time.
    pub const CERTAIN: Probability = Probability(1.0);
}

impl TryFrom<f64> for Probability {
    type Error = FaultError;

    fn try_from(value: f64) -> Result<Self, FaultError> {
        if value > 0.0 && value <= 1.0 {
            Ok(Probability(value))
        } else {
            Err(FaultError::new("--probability", value, "it must be above 0 and at most 1"))
        }
    }
}

impl From<Probability> for f64 {
    fn from(probability: Probability) -> f64 {
        probability.0
    }
}

impl Default for Probability {
    fn default() -> Self {
        Probability::CERTAIN
    }
}

/// One fault, and when it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rule {
    /// Reads or writes of bad sectors fail.
    MediaError {
        /// [`OpFilter::Read`], [`OpFilter::Write`] or [`OpFilter::Any`] of both.
        op: OpFilter,
        /// The bad sectors.
        area: Area,
        /// How many commands fail.
        count: Count,
        /// How likely each is to.
        #[serde(default)]
        probability: Probability,
    },
    /// Commands take longer.
    Latency {
        /// Which.
        op: OpFilter,
        /// Where.
        area: Area,
        /// How much longer, in ns, up to [`MAX_ADDED_NS`].
        added_ns: u64,
        /// How many.
        count: Count,
        /// How likely each is to.
        #[serde(default)]
        probability: Probability,
    },
    /// Writes fail after some of their blocks are on the media.
    TornWrite {
        /// Where.
        area: Area,
        /// How many logical blocks, from the first, still get there.
        landed_blocks: u64,
        /// How many writes.
        count: Count,
    },
    /// Flushes succeed and do nothing.
    DropFlush {
        /// How many.
        count: Count,
    },
    /// The controller does nothing for a while: every command that comes during it completes no earlier than its end.
    Stall {
        /// How long, in ns, up to [`MAX_STALL_NS`].
        duration_ns: u64,
    },
}

impl Rule {
    fn count(&self) -> Count {
        match *self {
            Rule::MediaError { count, .. }
            | Rule::Latency { count, .. }
            | Rule::TornWrite { count, .. }
            | Rule::DropFlush { count } => count,
            Rule::Stall { .. } => Count::Always,
        }
    }

    fn area(&self) -> Area {
        match *self {
            Rule::MediaError { area, .. } | Rule::Latency { area, .. } | Rule::TornWrite { area, .. } => area,
            Rule::DropFlush { .. } | Rule::Stall { .. } => Area::Device,
        }
    }

    fn probability(&self) -> Probability {
        match *self {
            Rule::MediaError { probability, .. } | Rule::Latency { probability, .. } => probability,
            _ => Probability::CERTAIN,
        }
    }

    fn takes(&self, op: IoOp) -> bool {
        match self {
            Rule::MediaError { op: filter, .. } => matches!(op, IoOp::Read | IoOp::Write) && filter.takes(op),
            Rule::Latency { op: filter, .. } => filter.takes(op),
            Rule::TornWrite { .. } => op == IoOp::Write,
            Rule::DropFlush { .. } => op == IoOp::Flush,
            Rule::Stall { .. } => true,
        }
    }

    /// Checks what the types leave open, against a device.
    fn check(&self, geometry: &Geometry) -> Result<(), FaultError> {
        if self.count() == Count::Times(0) {
            return Err(FaultError::new("--count", 0, "it must be once, always or a number above 0"));
        }
        match *self {
            Rule::MediaError { op: op @ (OpFilter::Flush | OpFilter::Manage), .. } => {
                let op = if op == OpFilter::Flush { "flush" } else { "manage" };
                return Err(FaultError::new("--op", op, "media errors are for read, write or any of both"));
            }
            Rule::Latency { op: OpFilter::Flush, area, .. } if area != Area::Device => {
                let rule = "a flush is for the whole device, so that --zone and --range never match";
                return Err(FaultError::new("--op", "flush", rule));
            }
            Rule::Latency { added_ns, .. } if added_ns == 0 || added_ns > MAX_ADDED_NS => {
                return Err(FaultError::new("--add", format!("{added_ns} ns"), "it must be from 1ns to 60s"));
            }
            Rule::Stall { duration_ns } if duration_ns == 0 || duration_ns > MAX_STALL_NS => {
                let value = format!("{duration_ns} ns");
                return Err(FaultError::new("--for", value, "a stall must be from 1ns to 60s"));
            }
            _ => {}
        }
        span(self.area(), geometry).map(drop)
    }
}

/// First sector and the one after the last; `None` for the whole device.
type Span = Option<(u64, u64)>;

fn span(area: Area, geometry: &Geometry) -> Result<Span, FaultError> {
    match area {
        Area::Device => Ok(None),
        Area::Zone(zone) if zone.0 < geometry.zones() => {
            let first = geometry.start(zone).0;
            Ok(Some((first, first.saturating_add(geometry.zone_sectors()))))
        }
        Area::Zone(zone) => {
            let rule = format!("the device has the zones 0 to {}", geometry.zones() - 1);
            Err(FaultError::new("--zone", zone.0, rule))
        }
        Area::Sectors { first, count } => {
            let end = first.0.checked_add(count).filter(|end| count > 0 && *end <= geometry.sectors());
            let rule = || {
                format!(
                    "it must be FIRST+COUNT, at least one sector, within the device's {}",
                    geometry.sectors()
                )
            };
            let value = format!("{}+{count}", first.0);
            end.map(|end| Some((first.0, end))).ok_or_else(|| FaultError::new("--range", value, rule()))
        }
    }
}

/// What the rules do to a command.
///
/// Several rules on one command: the lowest bad sector and the fewest landed blocks hold, added latencies add up, the
/// latest end of a stall holds. The effects on the data and those on the time do not depend on each other: a command that
/// fails does so after its added latency and no earlier than a stall's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The command fails with a media error; this is the first bad sector in it.
    pub media_error: Option<Sector>,
    /// The write fails, and so many of its first blocks are on the media (at most all but one).
    pub torn_blocks: Option<u64>,
    /// The command takes so much longer, in ns.
    pub added_ns: u64,
    /// The command completes no earlier than this, on the clock of `now_ns`; 0 for any time.
    pub not_before_ns: u64,
    /// The flush reports success without doing anything.
    pub drop_flush: bool,
}

impl Verdict {
    /// Whether the command fails.
    pub fn fails(&self) -> bool {
        self.media_error.is_some() || self.torn_blocks.is_some()
    }

    /// How many sectors, from the first, of a write of `sectors` at `sector` are on the media in the end: all of one that
    /// does not fail; of one that does, whole blocks of `block_sectors` before the first bad one, no more than a torn write
    /// lets land, and never all.
    pub fn landed_sectors(&self, sector: Sector, sectors: u64, block_sectors: u64) -> u64 {
        if !self.fails() {
            return sectors;
        }
        let block = block_sectors.max(1);
        let before_bad = self.media_error.map_or(u64::MAX, |bad| bad.0.saturating_sub(sector.0) / block);
        let torn = self.torn_blocks.unwrap_or(u64::MAX);
        let most = (sectors / block).saturating_sub(1);
        before_bad.min(torn).min(most).saturating_mul(block)
    }
}

/// The number of a rule, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FaultId(pub u64);

/// Which rules to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// One.
    Id(FaultId),
    /// Every one.
    All,
}

/// A rule as `list` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// Its number.
    pub id: FaultId,
    /// The rule.
    pub rule: Rule,
    /// How many commands it has hit.
    pub hits: u64,
    /// How many more it may hit; `None` for no end.
    pub remaining: Option<u64>,
    /// How much longer a stall lasts, in ns.
    pub remaining_ns: Option<u64>,
    /// Whether it may still hit one.
    pub active: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    id: FaultId,
    rule: Rule,
    span: Span,
    hits: u64,
    /// `u64::MAX` stands for no end: nobody counts that far.
    remaining: u64,
    /// When a stall ends.
    ends_ns: u64,
    draws: SplitMix64,
}

impl Entry {
    fn active(&self) -> bool {
        self.remaining > 0
    }

    /// The first sector of the command in the rule's area, if there is one.
    fn meets(&self, op: IoOp, sector: Sector, sectors: u64) -> Option<Sector> {
        match self.span {
            None => Some(sector),
            Some(_) if op == IoOp::Flush => None,
            Some((first, end)) => {
                let met = sector.0.max(first);
                (met < end.min(sector.0.saturating_add(sectors))).then_some(Sector(met))
            }
        }
    }

    /// Draws whether it strikes now.
    fn strikes(&mut self) -> bool {
        let Probability(probability) = self.rule.probability();
        if probability >= 1.0 {
            return true;
        }
        // 53 bits: every value has the same chance, and all are below 1.
        ((self.draws.next_u64() >> 11) as f64) / ((1u64 << 53) as f64) < probability
    }
}

/// The rules of one device.
#[derive(Debug, Clone)]
pub struct Faults {
    seed: u64,
    geometry: Geometry,
    entries: Vec<Entry>,
    next_id: u64,
    active: usize,
}

impl Faults {
    /// No rules yet, for a device of this geometry.
    pub fn new(seed: u64, geometry: &Geometry) -> Faults {
        Faults { seed, geometry: geometry.clone(), entries: Vec::new(), next_id: 1, active: 0 }
    }

    /// Adds a rule that holds from now on.
    ///
    /// # Errors
    /// [`FaultError`] naming the option that cannot be, or that there are too many rules.
    pub fn add(&mut self, now_ns: u64, rule: Rule) -> Result<FaultId, FaultError> {
        rule.check(&self.geometry)?;
        if self.entries.len() >= MAX_RULES {
            // A spent rule is only there to be listed.
            match self.entries.iter().position(|entry| !entry.active()) {
                Some(oldest) => drop(self.entries.remove(oldest)),
                None => {
                    let rule = format!("a device takes {MAX_RULES}: remove some first");
                    return Err(FaultError::new("the number of faults", MAX_RULES + 1, rule));
                }
            }
        }
        let id = FaultId(self.next_id);
        self.next_id = self.next_id.saturating_add(1);
        let entry = Entry {
            id,
            rule,
            span: span(rule.area(), &self.geometry)?,
            hits: 0,
            remaining: match rule.count() {
                Count::Times(times) => times,
                Count::Always => u64::MAX,
            },
            ends_ns: match rule {
                Rule::Stall { duration_ns } => now_ns.saturating_add(duration_ns),
                _ => 0,
            },
            draws: SplitMix64::new(mix(self.seed ^ mix(id.0))),
        };
        self.entries.push(entry);
        self.active += 1;
        Ok(id)
    }

    /// Removes rules; tells how many.
    ///
    /// # Errors
    /// [`FaultError`] if there is no such rule.
    pub fn remove(&mut self, which: Selection) -> Result<usize, FaultError> {
        let before = self.entries.len();
        match which {
            Selection::All => self.entries.clear(),
            Selection::Id(id) => self.entries.retain(|entry| entry.id != id),
        }
        self.active = self.entries.iter().filter(|entry| entry.active()).count();
        match (which, before - self.entries.len()) {
            (Selection::Id(id), 0) => Err(FaultError::new(
                "the fault",
                id.0,
                "there is none of this number (`list` shows those there are)",
            )),
            (_, removed) => Ok(removed),
        }
    }

    /// Every rule, in the order they were added, those that are spent too.
    pub fn list(&self, now_ns: u64) -> Vec<Listed> {
        let listed = |entry: &Entry| {
            let stall = matches!(entry.rule, Rule::Stall { .. });
            let left_ns = entry.ends_ns.saturating_sub(now_ns);
            Listed {
                id: entry.id,
                rule: entry.rule,
                hits: entry.hits,
                remaining: (entry.rule.count() != Count::Always).then_some(entry.remaining),
                remaining_ns: stall.then_some(left_ns),
                active: entry.active() && (!stall || left_ns > 0),
            }
        };
        self.entries.iter().map(listed).collect()
    }

    /// Whether no rule can hit anything any more. An engine mirrors it in an atomic after each `add`, `remove` and
    /// `check`, so that a device without faults pays one load per command. A stall counts as over at the first check
    /// after its end.
    pub fn is_empty(&self) -> bool {
        self.active == 0
    }

    /// What the rules do to a command that comes at `now_ns`, for `sectors` at `sector`.
    pub fn check(&mut self, now_ns: u64, op: IoOp, sector: Sector, sectors: u64) -> Verdict {
        let mut verdict = Verdict::default();
        let block = self.geometry.block_sectors();
        for entry in &mut self.entries {
            if !entry.active() {
                continue;
            }
            if matches!(entry.rule, Rule::Stall { .. }) && now_ns >= entry.ends_ns {
                entry.remaining = 0;
                self.active = self.active.saturating_sub(1);
                continue;
            }
            if !entry.rule.takes(op) {
                continue;
            }
            let Some(met) = entry.meets(op, sector, sectors) else { continue };
            if !entry.strikes() {
                continue;
            }
            entry.hits = entry.hits.saturating_add(1);
            if entry.rule.count() != Count::Always {
                entry.remaining -= 1;
                if entry.remaining == 0 {
                    self.active = self.active.saturating_sub(1);
                }
            }
            verdict.add(entry, met, sectors / block);
        }
        verdict
    }
}

impl Verdict {
    fn add(&mut self, entry: &Entry, met: Sector, blocks: u64) {
        match entry.rule {
            Rule::MediaError { .. } => {
                self.media_error = Some(self.media_error.map_or(met, |other| other.min(met)));
            }
            Rule::Latency { added_ns, .. } => self.added_ns = self.added_ns.saturating_add(added_ns),
            Rule::TornWrite { landed_blocks, .. } => {
                let landed = landed_blocks.min(blocks.saturating_sub(1));
                self.torn_blocks = Some(self.torn_blocks.map_or(landed, |other| other.min(landed)));
            }
            Rule::DropFlush { .. } => self.drop_flush = true,
            Rule::Stall { .. } => self.not_before_ns = self.not_before_ns.max(entry.ends_ns),
        }
    }
}

/// A state that a zone is forced into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForcedState {
    /// Data can be read, nothing written.
    ReadOnly,
    /// Neither.
    Offline,
}

/// Everything that `ublk-zns fault` asks a daemon for: the `"fault"` of a control request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FaultAction {
    /// Add a rule.
    Add {
        /// The rule.
        rule: Rule,
    },
    /// List the rules.
    List,
    /// Remove rules.
    Remove {
        /// Which.
        which: Selection,
    },
    /// Force a zone's state, at once.
    Zone {
        /// The zone.
        zone: ZoneId,
        /// Its new state.
        state: ForcedState,
    },
    /// Cut the device's power: what was not flushed may be lost or torn, and every command fails until power is on.
    PowerCut,
    /// Give the device its power back.
    PowerOn,
}
