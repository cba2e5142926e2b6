//! A zoned block device of the kernel, as far as swap needs it: its zones, resetting them, and a descriptor for direct I/O.
//!
//! The device is held exclusively for as long as the value lives.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::Error;

const SECTOR_BYTES: u64 = 512;
/// Zones that one report asks for.
const REPORT_ZONES: usize = 256;
/// `BLK_ZONE_TYPE_SEQWRITE_REQ` and `BLK_ZONE_COND_EMPTY` of linux/blkzoned.h.
const SEQUENTIAL: u8 = 2;
const EMPTY: u8 = 1;
/// `BLK_ZONE_COND_READONLY` and `BLK_ZONE_COND_OFFLINE`.
const READ_ONLY: u8 = 0xd;
const OFFLINE: u8 = 0xf;
/// The report says how much of each zone can be written (`BLK_ZONE_REP_CAPACITY`).
const HAS_CAPACITY: u32 = 1;

/// `struct blk_zone` of linux/blkzoned.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct BlkZone {
    start: u64,
    len: u64,
    wp: u64,
    kind: u8,
    cond: u8,
    non_seq: u8,
    reset: u8,
    resv: [u8; 4],
    capacity: u64,
    reserved: [u8; 24],
}

/// `struct blk_zone_report` with the zones behind it.
#[repr(C)]
pub(crate) struct Report {
    sector: u64,
    nr_zones: u32,
    flags: u32,
    zones: [BlkZone; REPORT_ZONES],
}

/// `struct blk_zone_range`.
#[repr(C)]
pub(crate) struct Range {
    sector: u64,
    nr_sectors: u64,
}

mod ioctls {
    // The numbers name the size of the report's head alone, 16 bytes.
    nix::ioctl_readwrite!(report, 0x12, 130, [u64; 2]);
    nix::ioctl_write_ptr!(reset, 0x12, 131, super::Range);
    nix::ioctl_read!(zone_sectors, 0x12, 132, u32);
    nix::ioctl_read!(nr_zones, 0x12, 133, u32);
}

/// The sequential zones of a device, which are all it has.
pub struct Zoned {
    file: File,
    zone_bytes: u64,
    zones: u32,
    capacity_bytes: u64,
    max_open: u32,
    used: u32,
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::System { what, source }
}

impl Zoned {
    /// Opens `path` for direct I/O, with nobody else holding it.
    ///
    /// # Errors
    /// It cannot be opened or is held, is not zoned, or has conventional, read-only or unequal zones.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let flags = libc::O_DIRECT | libc::O_EXCL | libc::O_CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .map_err(system(format!("--zoned {name}: open")))?;
        let bad = |why: String| Error::Option(format!("--zoned {name}: {why}"));
        let kind = file.metadata().map_err(system(format!("--zoned {name}: stat")))?.file_type();
        if !kind.is_block_device() {
            return Err(bad("is no block device; one that `ublk-zns add` made is needed".to_owned()));
        }
        let (mut sectors, mut zones) = (0_u32, 0_u32);
        // SAFETY: each writes one integer of that type, which lives on this stack.
        let asked = unsafe {
            ioctls::zone_sectors(file.as_raw_fd(), &raw mut sectors)
                .and_then(|_| ioctls::nr_zones(file.as_raw_fd(), &raw mut zones))
        };
        if asked.is_err() || sectors == 0 || zones == 0 {
            return Err(bad("is not zoned; one that `ublk-zns add` made is needed".to_owned()));
        }
        let zone_bytes = u64::from(sectors) * SECTOR_BYTES;
        let max_open = Self::limit(path, "max_open_zones").min(Self::limit(path, "max_active_zones"));
        let mut zoned = Self { file, zone_bytes, zones, capacity_bytes: 0, max_open, used: 0 };
        zoned.survey(&name)?;
        Ok(zoned)
    }

    /// A limit that sysfs tells; without one there is none.
    fn limit(path: &Path, name: &str) -> u32 {
        let device = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let device = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(format!("/sys/block/{device}/queue/{name}")).unwrap_or_default();
        text.trim().parse().ok().filter(|limit| *limit > 0).unwrap_or(u32::MAX)
    }

    fn survey(&mut self, name: &str) -> Result<(), Error> {
        let bad = |why: String| Error::Option(format!("--zoned {name}: {why}"));
        let mut next = 0;
        while next < self.zones {
            let start = u64::from(next) * self.zone_bytes / SECTOR_BYTES;
            let mut report = Box::new(Report {
                sector: start,
                nr_zones: REPORT_ZONES as u32,
                flags: 0,
                zones: [BlkZone::default(); REPORT_ZONES],
            });
            // SAFETY: the head says how many zones there is room for behind it, in the same allocation.
            unsafe { ioctls::report(self.file.as_raw_fd(), (&raw mut *report).cast()) }
                .map_err(|errno| system(format!("--zoned {name}: zone report"))(errno.into()))?;
            let got = (report.nr_zones as usize).min(REPORT_ZONES).min((self.zones - next) as usize);
            if got == 0 {
                return Err(bad(format!("the kernel reports no zone from number {next} on")));
            }
            for zone in report.zones.iter().take(got) {
                if zone.kind != SEQUENTIAL || matches!(zone.cond, READ_ONLY | OFFLINE) {
                    return Err(bad(format!("zone {next} cannot be written sequentially; all must be")));
                }
                let sectors = if report.flags & HAS_CAPACITY != 0 { zone.capacity } else { zone.len };
                let capacity = sectors.saturating_mul(SECTOR_BYTES);
                if self.capacity_bytes != 0 && capacity != self.capacity_bytes {
                    return Err(bad(format!("zone {next} is not as large as the others")));
                }
                self.capacity_bytes = capacity;
                self.used += u32::from(zone.cond != EMPTY);
                next += 1;
            }
        }
        Ok(())
    }

    /// Distance of the zones' beginnings, in bytes.
    pub fn zone_bytes(&self) -> u64 {
        self.zone_bytes
    }

    /// Bytes of each zone that can be written.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// How many zones there are.
    pub fn zones(&self) -> u32 {
        self.zones
    }

    /// Zones that may be open at once; `u32::MAX` for no limit.
    pub fn max_open(&self) -> u32 {
        self.max_open
    }

    /// Zones that were not empty when the device was opened.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// The device's descriptor, for reads and writes with buffers and lengths that are multiples of a page.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Empties zones `first..first + count`; returns when the SSD has done it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn reset(&self, first: u32, count: u32) -> io::Result<()> {
        let range = Range {
            sector: u64::from(first) * self.zone_bytes / SECTOR_BYTES,
            nr_sectors: u64::from(count) * self.zone_bytes / SECTOR_BYTES,
        };
        // SAFETY: reads one range, which lives on this stack.
        unsafe { ioctls::reset(self.file.as_raw_fd(), &raw const range) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_kernels_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<BlkZone>(), 64);
        assert_eq!(std::mem::offset_of!(Report, zones), 16);
        assert_eq!(size_of::<Range>(), 16);
    }

    #[test]
    fn what_is_no_zoned_device_is_refused_with_its_name_and_what_would_be_right() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let told = Zoned::open(file.path()).err().unwrap().to_string();
        assert!(told.contains(file.path().to_str().unwrap()), "{told}");
        let told = Zoned::open(Path::new("/no/such")).err().unwrap().to_string();
        assert_eq!(told, "--zoned /no/such: open: No such file or directory (os error 2)");
    }
}
