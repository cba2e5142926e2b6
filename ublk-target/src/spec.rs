//! What a device looks like to the kernel (pure): sizes, limits, zones, and which ublk features it needs.
//!
//! [`DeviceSpec::validate`] holds every rule the kernel would refuse with a bare `EINVAL`, so that a user reads a
//! sentence instead. Sources: Linux `drivers/block/ublk_drv.c` (`ublk_validate_params`, `ublk_dev_param_zoned_validate`)
//! and `block/blk-settings.c` (`blk_validate_limits`, `blk_validate_zoned_limits`).

use crate::error::{Error, Result};
use bytesize::ByteSize;

/// One sector of the block layer: 512 bytes, whatever the logical block.
pub const SECTOR_BYTES: u64 = 512;

/// How request data crosses between the kernel and the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    /// The kernel copies to and from a buffer per tag. Costs `queues × depth × max_io_bytes` of memory, no system call.
    Buffers,
    /// The handler copies with pread/pwrite on the character device (`UBLK_F_USER_COPY`, Linux 6.5): straight between
    /// the request and the media, no buffer.
    UserCopy,
}

/// What the kernel may assume about data it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteCache {
    /// A completed write is durable; no flushes are sent.
    Durable,
    /// A completed write may be lost until a flush; with `fua`, single writes can ask to be durable.
    Volatile {
        /// Whether FUA writes are sent as such.
        fua: bool,
    },
}

/// What happens to the device when its daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The device goes away.
    None,
    /// The device waits for `recover`; requests the daemon held fail, later ones wait (`UBLK_F_USER_RECOVERY`).
    Abort,
    /// The device waits for `recover`; requests the daemon held are sent again (`..._REISSUE`).
    Reissue,
}

/// Discard and write-zeroes limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscardSpec {
    /// Discards are aligned to this many bytes.
    pub granularity_bytes: u32,
    /// The longest discard, in bytes; 0 for none.
    pub max_bytes: u64,
    /// The longest write-zeroes, in bytes; 0 for none.
    pub max_write_zeroes_bytes: u64,
}

/// A zoned device's limits (`UBLK_F_ZONED`, Linux 6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZonedSpec {
    /// Zone size in bytes, a power of two.
    pub zone_size_bytes: u64,
    /// How many zones may be open at once; 0 for no limit.
    pub max_open_zones: u32,
    /// How many zones may be active at once; 0 for no limit.
    pub max_active_zones: u32,
    /// The longest zone append in bytes. The kernel requires one with ublk.
    pub max_append_bytes: u32,
}

/// Everything the kernel is told about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Capacity in bytes.
    pub size_bytes: u64,
    /// The smallest unit of I/O in bytes: a power of two from 512 to 4096.
    pub logical_block_bytes: u32,
    /// The preferred unit of I/O in bytes: a power of two, at least the logical block.
    pub physical_block_bytes: u32,
    /// Hardware queues, each with its own thread.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// The longest request in bytes, a power of two of at least a page; also told as the optimal one.
    pub max_io_bytes: u32,
    /// What a completed write means.
    pub write_cache: WriteCache,
    /// Discards, if the device takes them.
    pub discard: Option<DiscardSpec>,
    /// Zones, if it is a zoned device.
    pub zoned: Option<ZonedSpec>,
    /// How data crosses.
    pub data_path: DataPath,
    /// What a daemon's death means.
    pub recovery: Recovery,
    /// How long before a timed completion ([`crate::Reply::due_ns`]) the queue thread wakes up and polls the clock, in ns,
    /// up to [`MAX_SPIN_NS`]. 0 leaves it to the kernel's timer; more is more punctual and costs processor time.
    pub completion_spin_ns: u32,
    /// Whether the time of every request, from fetch to completion, goes into histograms. Reads the clock twice per
    /// wake-up of a queue.
    pub latency_stats: bool,
    /// Room in each queue's ring for the handler's own operations ([`crate::QueueIo::push`]) beside the depth, up to
    /// [`MAX_RING_ENTRIES`]. More may be in flight than that: it costs system calls then.
    pub ring_entries: u16,
}

/// The most [`DeviceSpec::ring_entries`]: with the greatest depth that is what the kernel makes of a ring (`IORING_MAX_ENTRIES`).
pub const MAX_RING_ENTRIES: u16 = 28672;

/// The longest [`DeviceSpec::completion_spin_ns`]: 1 ms.
pub const MAX_SPIN_NS: u32 = 1_000_000;

impl DeviceSpec {
    /// A plain device of `size_bytes` with usual limits: 4 KiB blocks, one queue of 128, 512 KiB requests.
    pub fn new(size_bytes: u64) -> Self {
        DeviceSpec {
            size_bytes,
            logical_block_bytes: 4096,
            physical_block_bytes: 4096,
            queues: 1,
            depth: 128,
            max_io_bytes: 512 << 10,
            write_cache: WriteCache::Durable,
            discard: None,
            zoned: None,
            data_path: DataPath::Buffers,
            recovery: Recovery::None,
            completion_spin_ns: 0,
            latency_stats: true,
            ring_entries: 0,
        }
    }

    /// Checks every rule the kernel has about these numbers.
    ///
    /// # Errors
    /// [`Error::Spec`] naming the field, its value and what would be right.
    pub fn validate(&self) -> Result<()> {
        let bad = |field, value: String, rule: &str| Err(Error::Spec { field, value, rule: rule.to_owned() });
        let bytes = |n: u64| ByteSize::b(n).display().iec().to_string();
        let logical = self.logical_block_bytes;
        if !logical.is_power_of_two() || !(512..=4096).contains(&logical) {
            return bad(
                "the logical block",
                bytes(logical.into()),
                "it must be 512, 1024, 2048 or 4096 bytes",
            );
        }
        if !self.physical_block_bytes.is_power_of_two() || self.physical_block_bytes < logical {
            return bad(
                "the physical block",
                bytes(self.physical_block_bytes.into()),
                "it must be a power of two and not smaller than the logical block",
            );
        }
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(logical.into()) {
            return bad(
                "the size",
                bytes(self.size_bytes),
                "it must be a positive multiple of the logical block",
            );
        }
        if self.queues == 0 || self.queues > 256 {
            return bad("--queues", self.queues.to_string(), "it must be between 1 and 256");
        }
        if self.depth == 0 || self.depth > 4096 {
            return bad("--depth", self.depth.to_string(), "it must be between 1 and 4096");
        }
        if !self.max_io_bytes.is_power_of_two() || !(4096..=32 << 20).contains(&self.max_io_bytes) {
            return bad(
                "the longest request",
                bytes(self.max_io_bytes.into()),
                "it must be a power of two from 4 KiB to 32 MiB",
            );
        }
        if self.completion_spin_ns > MAX_SPIN_NS {
            return bad(
                "--spin-ns",
                self.completion_spin_ns.to_string(),
                "it must be at most 1000000 (1 ms): longer waits are the timer's",
            );
        }
        if self.ring_entries > MAX_RING_ENTRIES {
            return bad(
                "the room for a handler's operations",
                self.ring_entries.to_string(),
                "it must be at most 28672: the kernel's rings have at most 32768 entries",
            );
        }
        match self.zoned {
            Some(zoned) => self.validate_zoned(zoned),
            None => Ok(()),
        }
    }

    fn validate_zoned(&self, zoned: ZonedSpec) -> Result<()> {
        let bad = |field, value: String, rule: String| Err(Error::Spec { field, value, rule });
        let size = zoned.zone_size_bytes;
        let text = ByteSize::b(size).display().iec().to_string();
        if !size.is_power_of_two() || size < u64::from(self.logical_block_bytes) {
            return bad("--zone-size", text, "the kernel takes only powers of two, such as 64MiB".into());
        }
        if size / SECTOR_BYTES > u64::from(u32::MAX) {
            return bad("--zone-size", text, "the kernel takes zones below 2 TiB".into());
        }
        if !self.size_bytes.is_multiple_of(size) {
            return bad(
                "--size",
                ByteSize::b(self.size_bytes).display().iec().to_string(),
                format!("it must be a whole number of zones of {text}"),
            );
        }
        let zones = self.size_bytes / size;
        for (field, limit) in [("--max-open", zoned.max_open_zones), ("--max-active", zoned.max_active_zones)]
        {
            if u64::from(limit) > zones {
                return bad(field, limit.to_string(), format!("the device has only {zones} zones"));
            }
        }
        if zoned.max_active_zones != 0 && zoned.max_open_zones > zoned.max_active_zones {
            return bad(
                "--max-open",
                zoned.max_open_zones.to_string(),
                format!(
                    "an open zone is active, so it cannot exceed --max-active {}",
                    zoned.max_active_zones
                ),
            );
        }
        if zoned.max_append_bytes == 0 || !zoned.max_append_bytes.is_multiple_of(self.logical_block_bytes) {
            return bad(
                "the longest append",
                zoned.max_append_bytes.to_string(),
                "the kernel needs a positive multiple of the logical block".into(),
            );
        }
        if self.data_path != DataPath::UserCopy {
            return bad("the data path", "buffers".into(), "a zoned ublk device needs user copy".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zoned() -> DeviceSpec {
        DeviceSpec {
            data_path: DataPath::UserCopy,
            zoned: Some(ZonedSpec {
                zone_size_bytes: 64 << 20,
                max_open_zones: 4,
                max_active_zones: 8,
                max_append_bytes: 512 << 10,
            }),
            ..DeviceSpec::new(1 << 30)
        }
    }

    fn message(spec: &DeviceSpec) -> String {
        spec.validate().unwrap_err().to_string()
    }

    #[test]
    fn usual_devices_are_valid() {
        DeviceSpec::new(1 << 30).validate().unwrap();
        zoned().validate().unwrap();
    }

    #[test]
    fn a_zone_size_that_is_no_power_of_two_is_named_with_the_option() {
        let mut spec = zoned();
        spec.zoned.as_mut().unwrap().zone_size_bytes = 48 << 20;
        assert!(message(&spec).starts_with("--zone-size is 48.0 MiB"), "{}", message(&spec));
    }

    #[test]
    fn more_open_than_active_zones_are_refused() {
        let mut spec = zoned();
        spec.zoned.as_mut().unwrap().max_open_zones = 9;
        assert!(message(&spec).contains("cannot exceed --max-active 8"), "{}", message(&spec));
    }

    #[test]
    fn limits_above_the_number_of_zones_are_refused() {
        let mut spec = zoned();
        spec.zoned.as_mut().unwrap().max_active_zones = 17;
        assert!(message(&spec).contains("only 16 zones"), "{}", message(&spec));
    }

    #[test]
    fn a_size_that_is_no_whole_number_of_zones_is_refused() {
        let mut spec = zoned();
        spec.size_bytes += 4096;
        assert!(message(&spec).contains("whole number of zones"), "{}", message(&spec));
    }

    #[test]
    fn zero_and_odd_sizes_are_refused() {
        assert!(DeviceSpec::new(0).validate().is_err());
        assert!(DeviceSpec::new(4097).validate().is_err());
        assert!(DeviceSpec { logical_block_bytes: 8192, ..DeviceSpec::new(1 << 20) }.validate().is_err());
        assert!(DeviceSpec { queues: 0, ..DeviceSpec::new(1 << 20) }.validate().is_err());
        assert!(DeviceSpec { depth: 5000, ..DeviceSpec::new(1 << 20) }.validate().is_err());
        assert!(DeviceSpec { max_io_bytes: 1000, ..DeviceSpec::new(1 << 20) }.validate().is_err());
        let spins = DeviceSpec { completion_spin_ns: MAX_SPIN_NS + 1, ..DeviceSpec::new(1 << 20) };
        assert!(message(&spins).starts_with("--spin-ns is 1000001"), "{}", message(&spins));
        let crowded = DeviceSpec { ring_entries: MAX_RING_ENTRIES + 1, ..DeviceSpec::new(1 << 20) };
        assert!(message(&crowded).contains("at most 28672"), "{}", message(&crowded));
    }
}
