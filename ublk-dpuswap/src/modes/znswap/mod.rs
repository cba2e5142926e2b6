//! What ZNSwap (USENIX ATC 2022) does, as a block device: swap on a zoned SSD that the host itself keeps free.
//!
//! ZNSwap is a change of the kernel's swap code: it appends pages to zones and reclaims zones, knowing which slots are free.
//! Here the same happens behind a block device, so the knowledge is what the kernel tells of itself: overwriting, and
//! discards (2 MiB at a time). [`model`] decides where pages lie and what is moved; [`queue`] does the I/O; [`zoned`] knows
//! the kernel's zoned devices. One queue: one thread owns the tables, and a zone has one writer, with one write in flight.
//!
//! Memory: 4 bytes per page of the device and 4 per page of the SSD, 256 KiB per request in flight.

pub mod model;
pub mod queue;
mod resets;
#[cfg(test)]
mod tests;
pub mod zoned;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ublk_target::{DeviceSpec, DiscardSpec, Target};

use crate::Error;
use crate::units::PAGE_BYTES;
use model::{Counters, Model, Shape};
use queue::ZnQueue;
use zoned::Zoned;

/// The longest request, in pages (256 KiB).
pub const MAX_IO_PAGES: u32 = 64;
/// Zones written at once, if the SSD allows so many to be open.
const MOST_WRITERS: u16 = 4;
/// Empty zones kept for moving pages.
const RESERVE_ZONES: u32 = 2;
/// Operations in flight, in which the kernel's ring has room for all.
pub(crate) const OPERATIONS: usize = 512;

/// What the device is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pages of the swap device.
    pub pages: u32,
    /// Requests in flight.
    pub depth: u16,
    /// The zoned block device; its content is lost.
    pub zoned: PathBuf,
    /// Go on when the zones are not empty, by resetting them.
    pub overwrite: bool,
}

/// A zoned SSD: the kernel's, or a test's.
pub trait Media: Send + Sync + 'static {
    /// Read and written at `zone * zone_bytes + offset`.
    fn file(&self) -> &File;
    /// Distance of the zones' beginnings.
    fn zone_bytes(&self) -> u64;
    /// Empties a zone.
    ///
    /// # Errors
    /// What the kernel says.
    fn reset(&self, zone: u32) -> io::Result<()>;
}

impl Media for Zoned {
    fn file(&self) -> &File {
        self.file()
    }
    fn zone_bytes(&self) -> u64 {
        self.zone_bytes()
    }
    fn reset(&self, zone: u32) -> io::Result<()> {
        Zoned::reset(self, zone, 1)
    }
}

/// What `stat` shows, as the queue last left it.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Report {
    /// What was moved and why.
    pub counters: Counters,
    /// Pages with a place.
    pub mapped_pages: u64,
    /// Zones that are empty.
    pub empty_zones: u32,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Times that a write found no zone and had to wait.
    pub stalls: u64,
}

/// The device as a ublk target.
pub struct Znswap {
    media: Arc<dyn Media>,
    shape: Shape,
    depth: u16,
    report: Arc<Mutex<Report>>,
}

/// Opens the zoned device and empties it.
///
/// # Errors
/// The zoned device cannot be used or does not hold the swap device, or is in use and may not be overwritten.
pub fn open(config: &Config) -> Result<Znswap, Error> {
    let name = config.zoned.display();
    let zoned = Zoned::open(Path::new(&config.zoned))?;
    if zoned.used() > 0 && !config.overwrite {
        let (used, zones) = (zoned.used(), zoned.zones());
        return Err(Error::Option(format!(
            "--zoned {name}: {used} of {zones} zones hold data, which swap would overwrite; `blkzone reset {name}` empties them"
        )));
    }
    if zoned.max_open() < 2 {
        return Err(Error::Option(format!("--zoned {name}: two zones must be open at once, it allows one")));
    }
    let writers = u32::from(MOST_WRITERS).min(zoned.max_open() - 1) as u16;
    let zone_pages = u32::try_from(zoned.capacity_bytes() / PAGE_BYTES as u64).unwrap_or(u32::MAX);
    let shape = Shape {
        pages: config.pages,
        zones: zoned.zones(),
        zone_pages,
        writers,
        reserve_zones: RESERVE_ZONES,
    };
    shape.check().map_err(|why| Error::Option(format!("--size with --zoned {name}: {why}")))?;
    if zoned.used() > 0 {
        let what = format!("--zoned {name}: reset");
        zoned.reset(0, zoned.zones()).map_err(|source| Error::System { what, source })?;
    }
    Ok(Znswap::new(Arc::new(zoned), shape, config.depth))
}

impl Znswap {
    fn new(media: Arc<dyn Media>, shape: Shape, depth: u16) -> Self {
        Self { media, shape, depth, report: Arc::default() }
    }
}

impl Target for Znswap {
    type Queue = ZnQueue;

    fn kind(&self) -> &'static str {
        "dpuswap"
    }

    fn spec(&self) -> DeviceSpec {
        let size_bytes = u64::from(self.shape.pages) * PAGE_BYTES as u64;
        let most = size_bytes.min(1 << 30);
        DeviceSpec {
            queues: 1,
            depth: self.depth,
            max_io_bytes: MAX_IO_PAGES * PAGE_BYTES as u32,
            ring_entries: OPERATIONS as u16,
            discard: Some(DiscardSpec {
                granularity_bytes: PAGE_BYTES as u32,
                max_bytes: most,
                max_write_zeroes_bytes: most,
            }),
            ..DeviceSpec::new(size_bytes)
        }
    }

    fn open_queue(&self, queue: u16) -> Result<ZnQueue, Box<dyn std::error::Error + Send + Sync>> {
        if queue != 0 {
            return Err("this mode has one queue".into());
        }
        let model = Model::new(self.shape)?;
        Ok(ZnQueue::new(Arc::clone(&self.media), model, self.depth, Arc::clone(&self.report))?)
    }

    fn stats(&self) -> serde_json::Value {
        let report = *self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = report.counters;
        let mut shown = serde_json::to_value(report).unwrap_or_default();
        if let Some(shown) = shown.as_object_mut() {
            let amplification = (counters.user_pages > 0)
                .then(|| (counters.user_pages + counters.moved_pages) as f64 / counters.user_pages as f64);
            shown.insert("mode".to_owned(), "znswap".into());
            shown.insert("write_amplification".to_owned(), amplification.into());
        }
        shown
    }
}
