//! A zoned block device of the kernel: the zone ioctls, and direct I/O.
//!
//! Sequential zones must be written with direct I/O (through the page cache the kernel may reorder), and one
//! write per zone may be in flight: a lock per zone holds it, and a write is cut into pieces that fit one
//! request. There is no system call to append to a block device, so append is a write at the write pointer
//! under that lock. The write pointers are cached, because the device is held exclusively; a failed write
//! drops the cached one.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Geometry, Zone, ZoneCond, ZoneId, ZoneType, ZonedDevice};
use crate::{Error, Result};

const SECTOR: u64 = 512;
/// How many zones one report ioctl asks for.
const REPORT_ZONES: usize = 512;
/// The alignment of direct I/O buffers: enough for every logical block size in use.
const ALIGN: usize = 4096;
/// Set in a report when its capacities are valid (`BLK_ZONE_REP_CAPACITY`).
const REP_CAPACITY: u32 = 1;

/// `struct blk_zone` of linux/blkzoned.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct BlkZone {
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

/// `struct blk_zone_report` of linux/blkzoned.h, without its array.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct BlkZoneReport {
    sector: u64,
    nr_zones: u32,
    flags: u32,
}

/// A report's header with room for the zones behind it.
#[repr(C)]
struct ReportBuffer {
    header: BlkZoneReport,
    zones: [BlkZone; REPORT_ZONES],
}

/// `struct blk_zone_range` of linux/blkzoned.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BlkZoneRange {
    sector: u64,
    nr_sectors: u64,
}

mod ioctls {
    use super::{BlkZoneRange, BlkZoneReport};
    nix::ioctl_readwrite!(blk_report_zone, 0x12, 130, BlkZoneReport);
    nix::ioctl_write_ptr!(blk_reset_zone, 0x12, 131, BlkZoneRange);
    nix::ioctl_read!(blk_get_zone_sectors, 0x12, 132, u32);
    nix::ioctl_read!(blk_get_nr_zones, 0x12, 133, u32);
    nix::ioctl_write_ptr!(blk_open_zone, 0x12, 134, BlkZoneRange);
    nix::ioctl_write_ptr!(blk_close_zone, 0x12, 135, BlkZoneRange);
    nix::ioctl_write_ptr!(blk_finish_zone, 0x12, 136, BlkZoneRange);
    nix::ioctl_read_bad!(blk_logical_block_size, 0x1268, libc::c_int);
}

type ZoneIoctl = unsafe fn(libc::c_int, *const BlkZoneRange) -> nix::Result<libc::c_int>;

/// How a device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To look at it; it may be in use, and change meanwhile.
    Read,
    /// To read what stays as it is: nobody else holds it. The kernel lets one holder in, reading or writing.
    ExclusiveRead,
    /// To write, with nobody else holding it.
    Exclusive,
}

impl Access {
    fn writes(self) -> bool {
        self == Access::Exclusive
    }

    /// The flags of open(2), beside those for reading and writing.
    fn open_flags(self) -> libc::c_int {
        let exclusive = match self {
            Access::Read => 0,
            // On a block device: EBUSY when anybody else opened it so, whatever for.
            Access::ExclusiveRead | Access::Exclusive => libc::O_EXCL,
        };
        libc::O_DIRECT | libc::O_CLOEXEC | exclusive
    }
}

/// A zoned block device of the kernel (`/dev/nullb0`, `/dev/ublkb0`, a real drive).
#[derive(Debug)]
pub struct KernelZoned {
    file: File,
    name: String,
    geometry: Geometry,
    /// The largest transfer of one request.
    max_io_bytes: usize,
    /// Each zone's write pointer in bytes from its start, when it is known.
    write_pointers: Vec<Mutex<Option<u64>>>,
}

impl KernelZoned {
    /// Opens a zoned block device.
    ///
    /// # Errors
    /// [`Error::NotZoned`] for anything else, [`Error::Busy`] when it is held, [`Error::Unusable`] for a
    /// geometry this program does not know.
    pub fn open(path: &Path, access: Access) -> Result<KernelZoned> {
        let name = path.display().to_string();
        let open_error = |what| {
            let device = name.clone();
            move |source: io::Error| Error::Open { device, what, source }
        };
        let meta = std::fs::metadata(path).map_err(open_error("cannot open"))?;
        if !meta.file_type().is_block_device() {
            let what = if meta.is_dir() { "a directory" } else { "not a block device" };
            return Err(Error::NotZoned { device: name, what: what.into() });
        }
        let sysfs = PathBuf::from(format!(
            "/sys/dev/block/{}:{}/queue",
            libc::major(meta.rdev()),
            libc::minor(meta.rdev())
        ));
        let zoned = std::fs::read_to_string(sysfs.join("zoned")).unwrap_or_default();
        if !matches!(zoned.trim(), "host-managed" | "host-aware") {
            let what = match zoned.trim() {
                "" => "the kernel does not say what it is: a partition, or a kernel without zoned devices"
                    .into(),
                other => format!("queue/zoned says {other}"),
            };
            return Err(Error::NotZoned { device: name, what });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(access.writes())
            .custom_flags(access.open_flags())
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => Error::Busy { device: name.clone() },
                _ => Error::Open { device: name.clone(), what: "cannot open", source },
            })?;
        let mut device = KernelZoned {
            geometry: Geometry {
                block_size_bytes: 0,
                zone_size_bytes: 0,
                zone_capacity_bytes: 0,
                nr_zones: 0,
                max_open_zones: queue_number(&sysfs, "max_open_zones").unwrap_or(0),
                max_active_zones: queue_number(&sysfs, "max_active_zones").unwrap_or(0),
            },
            // Whole blocks of any size: the kernel's limit may be odd (127 KiB).
            max_io_bytes: queue_number(&sysfs, "max_sectors_kb").unwrap_or(128).clamp(4, 1024) as usize
                * 1024
                / ALIGN
                * ALIGN,
            write_pointers: Vec::new(),
            file,
            name,
        };
        device.read_geometry()?;
        Ok(device)
    }

    fn read_geometry(&mut self) -> Result<()> {
        let fd = self.file.as_raw_fd();
        let (mut zone_sectors, mut nr_zones, mut block) = (0_u32, 0_u32, 0 as libc::c_int);
        let fail = |what| {
            let device = self.name.clone();
            move |errno: nix::Error| Error::Open { device, what, source: errno.into() }
        };
        // SAFETY: each ioctl writes one integer of the pointed-to type, which lives on this stack.
        unsafe {
            ioctls::blk_get_zone_sectors(fd, &mut zone_sectors).map_err(fail("BLKGETZONESZ"))?;
            ioctls::blk_get_nr_zones(fd, &mut nr_zones).map_err(fail("BLKGETNRZONES"))?;
            ioctls::blk_logical_block_size(fd, &mut block).map_err(fail("BLKSSZGET"))?;
        }
        let unusable = |what: String| Error::Unusable { device: self.name.clone(), what };
        let block_size_bytes = u32::try_from(block).unwrap_or(0);
        if !block_size_bytes.is_power_of_two() || block_size_bytes < 512 || block_size_bytes as usize > ALIGN
        {
            return Err(unusable(format!("logical blocks of {block} bytes, 512 to {ALIGN} are supported")));
        }
        if zone_sectors == 0 || nr_zones == 0 {
            return Err(unusable("the kernel reports no zones".into()));
        }
        self.geometry.block_size_bytes = block_size_bytes;
        self.geometry.zone_size_bytes = u64::from(zone_sectors) * SECTOR;
        self.geometry.nr_zones = nr_zones;
        let zones = self.report()?;
        let sequential = zones.iter().find(|z| z.kind == ZoneType::Sequential);
        self.geometry.zone_capacity_bytes =
            sequential.map_or(self.geometry.zone_size_bytes, |z| z.capacity_bytes);
        self.write_pointers = zones.iter().map(|_| Mutex::new(None)).collect();
        Ok(())
    }

    fn io(&self, what: &'static str, offset_bytes: u64) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error::Io { device: self.name.clone(), what, offset_bytes, source }
    }

    fn report_from(&self, first: u32, most: usize) -> Result<Vec<Zone>> {
        let geometry = self.geometry;
        let mut zones = Vec::new();
        let mut buffer = Box::new(ReportBuffer {
            header: BlkZoneReport::default(),
            zones: [BlkZone::default(); REPORT_ZONES],
        });
        let mut next = first;
        while next < geometry.nr_zones && zones.len() < most {
            let start = geometry.zone_start(ZoneId(next));
            let ask = REPORT_ZONES.min(most - zones.len());
            buffer.header = BlkZoneReport { sector: start / SECTOR, nr_zones: ask as u32, flags: 0 };
            // SAFETY: the pointer covers the whole buffer: a header and room for the `nr_zones` zones asked for.
            unsafe {
                let whole: *mut ReportBuffer = &mut *buffer;
                ioctls::blk_report_zone(self.file.as_raw_fd(), whole.cast::<BlkZoneReport>())
            }
            .map_err(|errno| self.io("zone report", start)(errno.into()))?;
            let got = (buffer.header.nr_zones as usize).min(ask);
            if got == 0 {
                return Err(self.io("zone report", start)(io::Error::other("the kernel reported no zones")));
            }
            let has_capacity = buffer.header.flags & REP_CAPACITY != 0;
            for raw in buffer.zones.iter().take(got) {
                zones.push(convert(raw, ZoneId(next), has_capacity));
                next += 1;
            }
        }
        Ok(zones)
    }

    fn pointer(&self, zone: ZoneId) -> Result<MutexGuard<'_, Option<u64>>> {
        let lock = self.write_pointers.get(zone.0 as usize).ok_or_else(|| Error::NoSuchZone {
            device: self.name.clone(),
            zone,
            what: "past the end of the device",
        })?;
        Ok(lock.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The zone's write pointer, asked of the kernel when it is not known.
    fn known(&self, zone: ZoneId, pointer: &mut Option<u64>) -> Result<u64> {
        if let Some(written) = *pointer {
            return Ok(written);
        }
        let report = self.report_zone(zone)?;
        match report.cond {
            ZoneCond::NotWp | ZoneCond::ReadOnly | ZoneCond::Offline => {
                Err(Error::ZoneState { device: self.name.clone(), zone, what: "write", cond: report.cond })
            }
            _ => {
                *pointer = Some(report.written_bytes);
                Ok(report.written_bytes)
            }
        }
    }

    /// Writes whole blocks in pieces of one request each.
    fn write_pieces(&self, offset_bytes: u64, data: &[u8]) -> Result<()> {
        let mut buffer = Aligned::new(data.len().min(self.max_io_bytes));
        let mut at = offset_bytes;
        for piece in data.chunks(self.max_io_bytes) {
            let mut rest = piece;
            while !rest.is_empty() {
                let buf = &mut buffer.as_mut()[..rest.len()];
                buf.copy_from_slice(rest);
                let done = match self.file.write_at(buf, at) {
                    Ok(0) => return Err(self.io("write", at)(io::ErrorKind::WriteZero.into())),
                    Ok(done) if done % self.geometry.block_size_bytes as usize != 0 => {
                        return Err(self.io("write", at)(io::Error::other(
                            "the kernel wrote part of a block",
                        )));
                    }
                    Ok(done) => done,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(self.io("write", at)(e)),
                };
                at += done as u64;
                rest = &rest[done.min(rest.len())..];
            }
        }
        Ok(())
    }

    fn write_at_pointer(&self, zone: ZoneId, at: Option<u64>, data: &[u8]) -> Result<u64> {
        let geometry = self.geometry;
        let start = geometry.zone_start(zone);
        let mut pointer = self.pointer(zone)?;
        let written = self.known(zone, &mut pointer)?;
        let length_bytes = data.len() as u64;
        let offset_bytes = at.unwrap_or(start + written);
        if !geometry.range_is_valid(offset_bytes.min(start), length_bytes) {
            return Err(Error::BadRange {
                device: self.name.clone(),
                what: "append",
                offset_bytes,
                length_bytes,
            });
        }
        if offset_bytes != start + written {
            return Err(Error::NotAtWritePointer {
                device: self.name.clone(),
                zone,
                offset_bytes,
                write_pointer_bytes: start + written,
            });
        }
        let room_bytes = geometry.zone_capacity_bytes.saturating_sub(written);
        if length_bytes > room_bytes {
            return Err(Error::ZoneFull { device: self.name.clone(), zone, room_bytes, length_bytes });
        }
        *pointer = None;
        self.write_pieces(offset_bytes, data)?;
        *pointer = Some(written + length_bytes);
        Ok(offset_bytes)
    }

    fn manage(&self, zone: ZoneId, what: &'static str, ioctl: ZoneIoctl) -> Result<()> {
        let mut pointer = self.pointer(zone)?;
        let report = self.report_zone(zone)?;
        if report.kind == ZoneType::Conventional {
            return Err(Error::ZoneState { device: self.name.clone(), zone, what, cond: report.cond });
        }
        *pointer = None;
        let start = self.geometry.zone_start(zone);
        let range =
            BlkZoneRange { sector: start / SECTOR, nr_sectors: self.geometry.zone_size_bytes / SECTOR };
        // SAFETY: the ioctl reads one range, which lives on this stack.
        unsafe { ioctl(self.file.as_raw_fd(), &range) }
            .map_err(|errno| self.io(what, start)(errno.into()))?;
        Ok(())
    }
}

impl ZonedDevice for KernelZoned {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn report(&self) -> Result<Vec<Zone>> {
        self.report_from(0, usize::MAX)
    }

    fn report_zone(&self, zone: ZoneId) -> Result<Zone> {
        self.report_from(zone.0, 1)?.into_iter().next().ok_or_else(|| Error::NoSuchZone {
            device: self.name.clone(),
            zone,
            what: "past the end of the device",
        })
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let length_bytes = buf.len() as u64;
        if !self.geometry.range_is_valid(offset_bytes, length_bytes) {
            return Err(Error::BadRange {
                device: self.name.clone(),
                what: "read",
                offset_bytes,
                length_bytes,
            });
        }
        let mut buffer = Aligned::new(buf.len().min(self.max_io_bytes));
        let mut at = offset_bytes;
        for piece in buf.chunks_mut(self.max_io_bytes) {
            let mut filled = 0;
            while filled < piece.len() {
                let part = &mut buffer.as_mut()[..piece.len() - filled];
                match self.file.read_at(part, at) {
                    Ok(0) => return Err(self.io("read", at)(io::ErrorKind::UnexpectedEof.into())),
                    Ok(done) => {
                        piece[filled..filled + done].copy_from_slice(&part[..done]);
                        filled += done;
                        at += done as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(self.io("read", at)(e)),
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<()> {
        let length_bytes = data.len() as u64;
        if !self.geometry.range_is_valid(offset_bytes, length_bytes) {
            return Err(Error::BadRange {
                device: self.name.clone(),
                what: "write",
                offset_bytes,
                length_bytes,
            });
        }
        let zone = self.geometry.zone_of(offset_bytes);
        if self.report_is_conventional(zone)? {
            return self.write_pieces(offset_bytes, data);
        }
        self.write_at_pointer(zone, Some(offset_bytes), data).map(|_| ())
    }

    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<u64> {
        self.write_at_pointer(zone, None, data)
    }

    fn reset(&self, zone: ZoneId) -> Result<()> {
        self.manage(zone, "reset", ioctls::blk_reset_zone)
    }

    fn finish(&self, zone: ZoneId) -> Result<()> {
        self.manage(zone, "finish", ioctls::blk_finish_zone)
    }

    fn open(&self, zone: ZoneId) -> Result<()> {
        self.manage(zone, "open", ioctls::blk_open_zone)
    }

    fn close(&self, zone: ZoneId) -> Result<()> {
        self.manage(zone, "close", ioctls::blk_close_zone)
    }

    fn flush(&self) -> Result<()> {
        // On a block device this sends a cache flush to the device.
        self.file.sync_data().map_err(self.io("flush", 0))
    }
}

impl KernelZoned {
    fn report_is_conventional(&self, zone: ZoneId) -> Result<bool> {
        // A cached write pointer means a sequential zone; only an unknown one costs a report.
        if self.pointer(zone)?.is_some() {
            return Ok(false);
        }
        Ok(self.report_zone(zone)?.kind == ZoneType::Conventional)
    }
}

fn queue_number(sysfs: &Path, name: &str) -> Option<u32> {
    std::fs::read_to_string(sysfs.join(name)).ok()?.trim().parse().ok()
}

/// The kernel's numbers of linux/blkzoned.h as ours.
fn convert(raw: &BlkZone, id: ZoneId, has_capacity: bool) -> Zone {
    let kind = if raw.kind == 1 { ZoneType::Conventional } else { ZoneType::Sequential };
    let cond = match raw.cond {
        0 => ZoneCond::NotWp,
        1 => ZoneCond::Empty,
        3 => ZoneCond::ExplicitOpen,
        4 => ZoneCond::Closed,
        13 => ZoneCond::ReadOnly,
        14 => ZoneCond::Full,
        15 => ZoneCond::Offline,
        // 2 is implicitly open; 0xff is "active", what a cached report of newer kernels says.
        _ => ZoneCond::ImplicitOpen,
    };
    let capacity_bytes = if has_capacity { raw.capacity } else { raw.len } * SECTOR;
    let written_bytes = match cond {
        ZoneCond::NotWp | ZoneCond::ReadOnly | ZoneCond::Offline | ZoneCond::Empty => 0,
        ZoneCond::Full => capacity_bytes,
        _ => (raw.wp.saturating_sub(raw.start) * SECTOR).min(capacity_bytes),
    };
    Zone { id, kind, cond, capacity_bytes, written_bytes }
}

/// A buffer aligned for direct I/O.
struct Aligned {
    start: NonNull<u8>,
    layout: Layout,
}

impl Aligned {
    fn new(length: usize) -> Aligned {
        let layout = Layout::from_size_align(length.max(ALIGN).next_multiple_of(ALIGN), ALIGN)
            .unwrap_or(Layout::new::<[u8; ALIGN]>());
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { std::alloc::handle_alloc_error(layout) };
        Aligned { start, layout }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: the allocation is `layout.size()` initialised bytes, and `&mut self` is the only way to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
