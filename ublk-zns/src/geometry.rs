//! Sizes and addresses of a zoned device (pure).
//!
//! The invariant of a [`Geometry`]: zones are a power of two in size and tile the device; capacity, limits and block
//! size are consistent, so that no later code has to doubt them.

use crate::error::ZnsError;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Bytes of a sector, the block layer's unit, whatever the logical block.
pub const SECTOR_BYTES: u64 = 512;

/// A position or length on the device in sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Sector(pub u64);

/// A zone's number, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ZoneId(pub u32);

/// What a device is asked to be. [`Geometry::new`] checks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZnsConfig {
    /// Sum of all zone sizes in bytes.
    pub size_bytes: u64,
    /// Zone size in bytes, a power of two.
    pub zone_size_bytes: u64,
    /// Writable part of each sequential zone in bytes; `None` for the whole zone.
    pub zone_capacity_bytes: Option<u64>,
    /// How many zones at the start are conventional: randomly writable, without a write pointer.
    pub conventional_zones: u32,
    /// Maximum open resources (MOR); 0 for no limit, `None` for the default.
    pub max_open_zones: Option<u32>,
    /// Maximum active resources (MAR); 0 for no limit, `None` for the default.
    pub max_active_zones: Option<u32>,
    /// Logical block in bytes: 512 to 4096.
    pub block_bytes: u32,
    /// The longest zone append in bytes.
    pub max_append_bytes: u32,
}

impl Default for ZnsConfig {
    /// 4 GiB in zones of 64 MiB, 14 of which may be open and active, as on the WD ZN540.
    fn default() -> Self {
        ZnsConfig {
            size_bytes: 4 << 30,
            zone_size_bytes: 64 << 20,
            zone_capacity_bytes: None,
            conventional_zones: 0,
            max_open_zones: None,
            max_active_zones: None,
            block_bytes: 4096,
            max_append_bytes: 512 << 10,
        }
    }
}

/// The default for both limits, where the device has as many zones.
const DEFAULT_LIMIT: u32 = 14;

/// A device's sizes, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    zones: u32,
    conventional: u32,
    zone_sectors: u64,
    capacity_sectors: u64,
    block_sectors: u64,
    max_append_sectors: u64,
    max_open: u32,
    max_active: u32,
}

impl Geometry {
    /// Checks `config`.
    ///
    /// # Errors
    /// [`ZnsError::Config`] naming the option, its value and what would be right.
    pub fn new(config: &ZnsConfig) -> Result<Geometry, ZnsError> {
        let show = |bytes: u64| ByteSize::b(bytes).display().iec().to_string();
        let bad = |option, value: String, rule: String| Err(ZnsError::Config { option, value, rule });
        let block = u64::from(config.block_bytes);
        if !block.is_power_of_two() || !(512..=4096).contains(&block) {
            return bad("--block-size", show(block), "it must be 512, 1024, 2048 or 4096 bytes".into());
        }
        let zone = config.zone_size_bytes;
        if !zone.is_power_of_two() || zone < block || zone > 1 << 40 {
            let below = 1u64 << zone.max(1).ilog2();
            let above = below.checked_mul(2);
            let rule = match above {
                Some(above) if zone > block && above <= 1 << 40 => format!(
                    "Linux takes only powers of two, such as {} or {} (use --zone-capacity for less)",
                    show(below),
                    show(above)
                ),
                _ => format!("it must be a power of two from {} to 1 TiB", show(block)),
            };
            return bad("--zone-size", show(zone), rule);
        }
        if config.size_bytes == 0 || !config.size_bytes.is_multiple_of(zone) {
            let rule = format!("it must be a whole number of zones of {}", show(zone));
            return bad("--size", show(config.size_bytes), rule);
        }
        let Ok(zones) = u32::try_from(config.size_bytes / zone) else {
            return bad("--size", show(config.size_bytes), "that is more than 2^32 zones".into());
        };
        let capacity = config.zone_capacity_bytes.unwrap_or(zone);
        if capacity == 0 || capacity > zone || !capacity.is_multiple_of(block) {
            let rule =
                format!("it must be a multiple of {} and at most the zone size {}", show(block), show(zone));
            return bad("--zone-capacity", show(capacity), rule);
        }
        if config.conventional_zones >= zones {
            let rule = format!("at least one of the {zones} zones must be sequential");
            return bad("--conv-zones", config.conventional_zones.to_string(), rule);
        }
        let append = u64::from(config.max_append_bytes);
        if append == 0 || !append.is_multiple_of(block) || append > 32 << 20 {
            let rule = format!("it must be a multiple of {} up to 32 MiB", show(block));
            return bad("--max-append", show(append), rule);
        }
        let (max_open, max_active) = limits(config, zones)?;
        Ok(Geometry {
            zones,
            conventional: config.conventional_zones,
            zone_sectors: zone / SECTOR_BYTES,
            capacity_sectors: capacity / SECTOR_BYTES,
            block_sectors: block / SECTOR_BYTES,
            max_append_sectors: append.min(capacity) / SECTOR_BYTES,
            max_open,
            max_active,
        })
    }

    /// How many zones there are.
    pub fn zones(&self) -> u32 {
        self.zones
    }

    /// How many of them, from the first, are conventional.
    pub fn conventional_zones(&self) -> u32 {
        self.conventional
    }

    /// Zone size in sectors, a power of two.
    pub fn zone_sectors(&self) -> u64 {
        self.zone_sectors
    }

    /// Writable sectors of zone `zone`: all of a conventional one.
    pub fn capacity_sectors(&self, zone: ZoneId) -> u64 {
        if self.is_conventional(zone) { self.zone_sectors } else { self.capacity_sectors }
    }

    /// Writable sectors of every sequential zone.
    pub fn sequential_capacity_sectors(&self) -> u64 {
        self.capacity_sectors
    }

    /// Logical block in sectors.
    pub fn block_sectors(&self) -> u64 {
        self.block_sectors
    }

    /// Logical block in bytes.
    pub fn block_bytes(&self) -> u32 {
        (self.block_sectors * SECTOR_BYTES) as u32
    }

    /// The longest append in sectors.
    pub fn max_append_sectors(&self) -> u64 {
        self.max_append_sectors
    }

    /// Maximum open resources; 0 for no limit.
    pub fn max_open(&self) -> u32 {
        self.max_open
    }

    /// Maximum active resources; 0 for no limit.
    pub fn max_active(&self) -> u32 {
        self.max_active
    }

    /// The device's size in sectors.
    pub fn sectors(&self) -> u64 {
        u64::from(self.zones) * self.zone_sectors
    }

    /// Whether `zone` is conventional.
    pub fn is_conventional(&self, zone: ZoneId) -> bool {
        zone.0 < self.conventional
    }

    /// Where `zone` starts.
    pub fn start(&self, zone: ZoneId) -> Sector {
        Sector(u64::from(zone.0) * self.zone_sectors)
    }

    /// The zone that holds `sector`, and the sectors before it in that zone; `None` past the device.
    pub fn locate(&self, sector: Sector) -> Option<(ZoneId, u64)> {
        let zone = sector.0 / self.zone_sectors;
        let zone = u32::try_from(zone).ok().filter(|zone| *zone < self.zones)?;
        Some((ZoneId(zone), sector.0 % self.zone_sectors))
    }
}

fn limits(config: &ZnsConfig, zones: u32) -> Result<(u32, u32), ZnsError> {
    let bad =
        |option, value: u32, rule: String| Err(ZnsError::Config { option, value: value.to_string(), rule });
    let active = config.max_active_zones.unwrap_or_else(|| match config.max_open_zones {
        Some(0) => 0,
        open => DEFAULT_LIMIT.max(open.unwrap_or(0)).min(zones),
    });
    if active > zones {
        return bad("--max-active", active, format!("the device has only {zones} zones (0 for no limit)"));
    }
    let open = config.max_open_zones.unwrap_or(match active {
        0 => DEFAULT_LIMIT.min(zones),
        active => DEFAULT_LIMIT.min(active),
    });
    if open > zones {
        return bad("--max-open", open, format!("the device has only {zones} zones (0 for no limit)"));
    }
    // An open zone is active, so "no limit" on open zones is above any limit on active ones.
    if active != 0 && (open > active || open == 0) {
        let rule = format!("every open zone is active, so it must be 1 to --max-active {active}");
        return bad("--max-open", open, rule);
    }
    Ok((open, active))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut ZnsConfig)) -> String {
        let mut config = ZnsConfig::default();
        change(&mut config);
        Geometry::new(&config).unwrap_err().to_string()
    }

    #[test]
    fn the_default_device_is_valid() {
        let geometry = Geometry::new(&ZnsConfig::default()).unwrap();
        assert_eq!((geometry.zones(), geometry.max_open(), geometry.max_active()), (64, 14, 14));
        assert_eq!(geometry.locate(Sector(131_072)), Some((ZoneId(1), 0)));
        assert_eq!(geometry.locate(Sector(geometry.sectors())), None);
        assert_eq!(geometry.locate(Sector(u64::MAX)), None);
    }

    #[test]
    fn a_small_device_takes_the_default_limits_it_has_zones_for() {
        let config = ZnsConfig { size_bytes: 256 << 20, ..Default::default() };
        let geometry = Geometry::new(&config).unwrap();
        assert_eq!((geometry.zones(), geometry.max_open(), geometry.max_active()), (4, 4, 4));
    }

    #[test]
    fn wrong_sizes_name_the_option_and_what_would_be_right() {
        assert_eq!(
            error(|c| c.zone_size_bytes = 48 << 20),
            "--zone-size is 48.0 MiB: Linux takes only powers of two, such as 32.0 MiB or 64.0 MiB (use --zone-capacity for less)"
        );
        assert!(error(|c| c.zone_size_bytes = 0).starts_with("--zone-size is 0 B"));
        assert!(error(|c| c.zone_size_bytes = u64::MAX).starts_with("--zone-size"));
        assert!(error(|c| c.size_bytes = (4 << 30) + 1).contains("whole number of zones"));
        assert!(error(|c| c.size_bytes = 0).starts_with("--size"));
        assert!(error(|c| c.zone_capacity_bytes = Some(65 << 20)).contains("at most the zone size 64.0 MiB"));
        assert!(error(|c| c.zone_capacity_bytes = Some(1000)).starts_with("--zone-capacity"));
        assert!(error(|c| c.zone_capacity_bytes = Some(0)).starts_with("--zone-capacity"));
        assert!(error(|c| c.block_bytes = 3000).starts_with("--block-size"));
        assert!(error(|c| c.conventional_zones = 64).contains("must be sequential"));
        assert!(error(|c| c.max_append_bytes = 5).starts_with("--max-append"));
    }

    #[test]
    fn limits_must_fit_each_other_and_the_device() {
        assert!(
            error(|c| (c.max_open_zones, c.max_active_zones) = (Some(9), Some(8))).contains("--max-active 8")
        );
        assert!(
            error(|c| (c.max_open_zones, c.max_active_zones) = (Some(0), Some(8)))
                .starts_with("--max-open is 0")
        );
        assert!(error(|c| c.max_active_zones = Some(65)).contains("only 64 zones"));
        assert!(error(|c| c.max_open_zones = Some(65)).contains("only 64 zones"));
        let limits = |open, active| {
            let config = ZnsConfig { max_open_zones: open, max_active_zones: active, ..Default::default() };
            let geometry = Geometry::new(&config).unwrap();
            (geometry.max_open(), geometry.max_active())
        };
        assert_eq!(limits(Some(0), None), (0, 0));
        assert_eq!(limits(Some(20), None), (20, 20));
        assert_eq!(limits(None, Some(8)), (8, 8));
        assert_eq!(limits(None, Some(0)), (14, 0));
        assert_eq!(limits(Some(12), Some(14)), (12, 14));
    }
}
