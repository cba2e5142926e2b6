//! What a zoned device is, for everything above it.
//!
//! All offsets and lengths are bytes and whole logical blocks; a transfer stays inside one zone. A device
//! answers a wrong request with an error and changes nothing. What was written is durable only after
//! [`ZonedDevice::flush`]; without it a power cut keeps, zone by zone, any prefix of what was done.
//!
//! The zone rules are those of NVMe ZNS and of Linux' zoned block devices: a sequential zone is written at
//! its write pointer only, up to its capacity; opening takes an *open* and an *active* resource; a full,
//! empty, read-only or offline zone holds neither.

mod kernel;
mod model;

use std::fmt;

use serde::Serialize;

use crate::Result;

pub use kernel::{Access, KernelZoned};
pub use model::ModelZoned;

/// The number of a zone, from 0 at the start of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ZoneId(pub u32);

impl fmt::Display for ZoneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What does not change while a device is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Geometry {
    /// The logical block: the unit of every transfer.
    pub block_size_bytes: u32,
    /// The distance from one zone's start to the next.
    pub zone_size_bytes: u64,
    /// How much of a sequential zone can be written.
    pub zone_capacity_bytes: u64,
    /// How many zones, conventional ones included.
    pub nr_zones: u32,
    /// How many zones may be open at once; 0 is no limit.
    pub max_open_zones: u32,
    /// How many zones may be open or closed at once; 0 is no limit.
    pub max_active_zones: u32,
}

impl Geometry {
    /// The device's size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.zone_size_bytes.saturating_mul(u64::from(self.nr_zones))
    }

    /// The byte at which a zone starts.
    pub fn zone_start(&self, zone: ZoneId) -> u64 {
        self.zone_size_bytes.saturating_mul(u64::from(zone.0))
    }

    /// The zone a byte of the device lies in.
    pub fn zone_of(&self, offset_bytes: u64) -> ZoneId {
        ZoneId(u32::try_from(offset_bytes / self.zone_size_bytes.max(1)).unwrap_or(u32::MAX))
    }

    /// Whether a transfer is whole blocks, not empty, and inside one zone of the device.
    pub fn range_is_valid(&self, offset_bytes: u64, length_bytes: u64) -> bool {
        let block = u64::from(self.block_size_bytes);
        let Some(end) = offset_bytes.checked_add(length_bytes) else { return false };
        length_bytes > 0
            && offset_bytes.is_multiple_of(block)
            && length_bytes.is_multiple_of(block)
            && end <= self.size_bytes()
            && self.zone_of(offset_bytes) == self.zone_of(end - 1)
    }
}

/// Whether a zone has a write pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZoneType {
    /// Written anywhere, like an ordinary disk.
    Conventional,
    /// Written at the write pointer only.
    Sequential,
}

/// A zone's condition, as `blkzone report` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZoneCond {
    /// A conventional zone.
    NotWp,
    /// Nothing written.
    Empty,
    /// Opened by a write.
    ImplicitOpen,
    /// Opened by a command.
    ExplicitOpen,
    /// Active, not open.
    Closed,
    /// Nothing more can be written.
    Full,
    /// Can be read, not written.
    ReadOnly,
    /// Can be neither read nor written.
    Offline,
}

impl ZoneCond {
    /// Whether the zone holds an open resource.
    pub fn is_open(self) -> bool {
        matches!(self, ZoneCond::ImplicitOpen | ZoneCond::ExplicitOpen)
    }

    /// Whether the zone holds an active resource.
    pub fn is_active(self) -> bool {
        self.is_open() || self == ZoneCond::Closed
    }
}

impl fmt::Display for ZoneCond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ZoneCond::NotWp => "not-wp",
            ZoneCond::Empty => "empty",
            ZoneCond::ImplicitOpen => "implicit-open",
            ZoneCond::ExplicitOpen => "explicit-open",
            ZoneCond::Closed => "closed",
            ZoneCond::Full => "full",
            ZoneCond::ReadOnly => "read-only",
            ZoneCond::Offline => "offline",
        })
    }
}

/// One zone of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Zone {
    /// Which.
    pub id: ZoneId,
    /// Conventional or sequential.
    pub kind: ZoneType,
    /// Its condition.
    pub cond: ZoneCond,
    /// How much can be written, in bytes.
    pub capacity_bytes: u64,
    /// The write pointer, in bytes from the zone's start; the capacity when the zone is full, 0 where a zone
    /// has none (conventional, read-only, offline).
    pub written_bytes: u64,
}

/// A zoned device. Methods may be called from several threads; one write per zone is in flight at a time.
pub trait ZonedDevice: Send + Sync {
    /// The name that error messages give it.
    fn name(&self) -> &str;

    /// What does not change.
    fn geometry(&self) -> Geometry;

    /// Every zone, in order.
    fn report(&self) -> Result<Vec<Zone>>;

    /// One zone.
    fn report_zone(&self, zone: ZoneId) -> Result<Zone>;

    /// Fills `buf` from the device. What was never written reads as the device likes.
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes at a sequential zone's write pointer, or anywhere in a conventional zone.
    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<()>;

    /// Writes at a zone's write pointer, wherever it is, and says where that was (in bytes).
    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<u64>;

    /// Empties a zone.
    fn reset(&self, zone: ZoneId) -> Result<()>;

    /// Makes a zone full.
    fn finish(&self, zone: ZoneId) -> Result<()>;

    /// Opens a zone explicitly.
    fn open(&self, zone: ZoneId) -> Result<()>;

    /// Closes an open zone.
    fn close(&self, zone: ZoneId) -> Result<()>;

    /// Makes everything that was completed before durable.
    fn flush(&self) -> Result<()>;
}
