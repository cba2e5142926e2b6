//! Where a byte of a zone lies: unit, die, plane, page, erase block (pure arithmetic).
//!
//! A zone is striped over its dies in program units: unit `u` of zone `z` lies on die `group(z) × D + u mod D`, where `D` is
//! `dies_per_zone` and zones take the groups of dies round robin. Inside a unit the planes follow each other, each holding
//! `program_bytes`. The invariant: every die a zone uses is in its group, and every byte has exactly one place.

use super::profile::{Placement, Profile};

/// The arithmetic of one profile.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// All dies.
    pub(crate) dies: usize,
    /// Dies of a zone (D).
    pub(crate) stripe: u64,
    groups: u64,
    /// Bytes of a program unit on one die.
    pub(crate) unit_bytes: u64,
    program_bytes: u64,
    page_bytes: u64,
    units_per_block: u64,
}

impl Layout {
    /// The layout of `profile`, which is valid.
    pub(crate) fn new(profile: &Profile) -> Layout {
        let stripe = u64::from(profile.dies_per_zone()).max(1);
        let program_bytes = profile.geometry.program_bytes.max(1);
        Layout {
            dies: profile.dies() as usize,
            stripe,
            groups: (u64::from(profile.dies()) / stripe).max(1),
            unit_bytes: profile.unit_bytes().max(1),
            program_bytes,
            page_bytes: profile.geometry.page_bytes.max(1),
            units_per_block: (profile.geometry.erase_block_bytes / program_bytes).max(1),
        }
    }

    /// The channel of every die.
    pub(crate) fn channels(profile: &Profile) -> Vec<usize> {
        let geometry = &profile.geometry;
        let (channels, per_channel) = (geometry.channels as usize, geometry.dies_per_channel as usize);
        let channel = |die: usize| match profile.zones.placement {
            Placement::ChannelFirst => die % channels.max(1),
            Placement::DieFirst => die / per_channel.max(1),
        };
        (0..profile.dies() as usize).map(channel).collect()
    }

    /// The group of dies of a zone.
    pub(crate) fn group(&self, zone: u32) -> usize {
        (u64::from(zone) % self.groups) as usize
    }

    /// How many groups there are.
    pub(crate) fn groups(&self) -> usize {
        self.groups as usize
    }

    /// The die of unit `unit` of a zone of `group`.
    pub(crate) fn die(&self, group: usize, unit: u64) -> usize {
        group * self.stripe as usize + (unit % self.stripe) as usize
    }

    /// The plane of the byte at `in_unit` of a unit.
    pub(crate) fn plane(&self, in_unit: u64) -> usize {
        (in_unit / self.program_bytes) as usize
    }

    /// Bytes from `in_unit` to the end of its page.
    pub(crate) fn left_in_page(&self, in_unit: u64) -> u64 {
        self.page_bytes - in_unit % self.program_bytes % self.page_bytes
    }

    /// Of the first `units` units of a zone, how many lie on the `slot`th of its dies.
    pub(crate) fn units_on(&self, units: u64, slot: u64) -> u64 {
        units / self.stripe + u64::from(units % self.stripe > slot)
    }

    /// The erase blocks that the first `units` units of a die touch.
    pub(crate) fn blocks(&self, units: u64) -> u64 {
        units.div_ceil(self.units_per_block)
    }

    /// Whether a unit is the first of an erase block on its die.
    pub(crate) fn begins_block(&self, unit: u64) -> bool {
        (unit / self.stripe).is_multiple_of(self.units_per_block)
    }
}

/// Consecutive pieces of a range, cut where units (or pages) end.
pub(crate) fn pieces(mut at: u64, end: u64, left: impl Fn(u64) -> u64) -> impl Iterator<Item = (u64, u64)> {
    std::iter::from_fn(move || {
        let bytes = left(at).max(1).min(end.checked_sub(at)?);
        let piece = (bytes > 0).then_some((at, bytes));
        at = at.saturating_add(bytes);
        piece
    })
}
