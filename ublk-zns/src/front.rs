//! The ublk front: block requests to zone commands, and every error to its errno, in this place only.

use crate::{
    engine::{CacheMode, DeviceOptions},
    error::ZnsError,
    faults::FaultAction,
    geometry::{Geometry, SECTOR_BYTES, Sector, ZnsConfig, ZoneId},
    media::{self, MediaPlace, SlotId, SlotShape, ZoneField},
    ssd::{Arrival, Models, Ssd, Timed},
    zones::{ZoneDescriptor, ZoneError, ZoneState, ZoneType},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    ptr::NonNull,
    sync::{Arc, OnceLock},
};
use ublk_target::{
    Answer, DataPath, DeviceSpec, Done, Errno, Op, Payload, QueueHandler, Recovery, Reply, Request, Target,
    WriteCache, ZonedSpec, clock,
};

/// Bytes of the kernel's `struct blk_zone` (include/uapi/linux/blkzoned.h).
const BLK_ZONE_BYTES: usize = 64;
/// What a read of unwritten sectors is filled from.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// How a device is served, kept for `recover`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrontOptions {
    /// The device.
    pub config: ZnsConfig,
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// The directory of media that lasts; without, it is in memory.
    #[serde(default)]
    pub media_dir: Option<PathBuf>,
    /// What a completed write means.
    #[serde(default)]
    pub cache: CacheMode,
    /// What a daemon's death means for the requests it held.
    #[serde(default)]
    pub recovery: RecoveryMode,
    /// The flash behind the zones.
    #[serde(default)]
    pub models: Models,
    /// How long before a completion is due its queue polls the clock, in ns.
    #[serde(default)]
    pub spin_ns: u32,
}

/// What happens to the requests that a dead daemon held, once there is a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryMode {
    /// They are done by the new daemon, and none twice.
    #[default]
    Reissue,
    /// They fail.
    Abort,
}

impl FrontOptions {
    fn device(&self, id: u32) -> DeviceOptions {
        let place = match &self.media_dir {
            Some(dir) => MediaPlace::Dir(dir.clone()),
            None => MediaPlace::Ram(media_path(id)),
        };
        let slots = SlotShape { queues: self.queues, depth: self.depth };
        DeviceOptions { config: self.config.clone(), place, cache: self.cache, slots }
    }
}

/// The ublk target.
pub struct ZnsTarget {
    options: FrontOptions,
    geometry: Geometry,
    recover: bool,
    ssd: OnceLock<Arc<Ssd>>,
}

impl ZnsTarget {
    /// A target for a new device, or with `recover` for the one its daemon left behind.
    ///
    /// # Errors
    /// [`ZnsError::Config`].
    pub fn new(options: FrontOptions, recover: bool) -> Result<ZnsTarget, ZnsError> {
        let geometry = Geometry::new(&options.config)?;
        options.models.check(&geometry)?;
        Ok(ZnsTarget { options, geometry, recover, ssd: OnceLock::new() })
    }

    fn ssd(&self) -> Result<&Arc<Ssd>, String> {
        self.ssd.get().ok_or_else(|| "the device is not up yet".into())
    }
}

/// The media of device `id` in memory: a file in tmpfs, so that it survives its daemon.
pub fn media_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/shm/storlab-zns-{id}"))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Target for ZnsTarget {
    type Queue = ZnsQueue;

    fn kind(&self) -> &'static str {
        "zns"
    }

    fn spec(&self) -> DeviceSpec {
        DeviceSpec {
            logical_block_bytes: self.geometry.block_bytes(),
            physical_block_bytes: self.geometry.block_bytes().max(4096),
            queues: self.options.queues,
            depth: self.options.depth,
            write_cache: match self.options.cache {
                CacheMode::Durable => WriteCache::Durable,
                CacheMode::Volatile => WriteCache::Volatile { fua: true },
            },
            zoned: Some(ZonedSpec {
                zone_size_bytes: self.geometry.zone_sectors() * SECTOR_BYTES,
                max_open_zones: self.geometry.max_open(),
                max_active_zones: self.geometry.max_active(),
                max_append_bytes: (self.geometry.max_append_sectors() * SECTOR_BYTES) as u32,
            }),
            data_path: DataPath::UserCopy,
            recovery: match self.options.recovery {
                RecoveryMode::Reissue => Recovery::Reissue,
                RecoveryMode::Abort => Recovery::Abort,
            },
            completion_spin_ns: self.options.spin_ns,
            ..DeviceSpec::new(self.geometry.sectors() * SECTOR_BYTES)
        }
    }

    fn bind(&self, id: u32) -> Result<(), BoxError> {
        let options = self.options.device(id);
        let there = matches!(&options.place, MediaPlace::Dir(dir) if media::is_device(dir));
        let models = Models { queues: self.options.queues, ..self.options.models.clone() };
        let ssd = match self.recover || there {
            true => Ssd::open(&options, models, self.recover),
            false => Ssd::create(&options, models),
        }?;
        ssd.set_clock_offset_ns(since_1970_ns().saturating_sub(clock::monotonic_ns()));
        self.ssd.set(Arc::new(ssd)).map_err(|_| "a target serves one device".into())
    }

    fn open_queue(&self, queue: u16) -> Result<ZnsQueue, BoxError> {
        Ok(ZnsQueue::new(Arc::clone(self.ssd()?), queue))
    }

    fn stats(&self) -> Value {
        let Ok(ssd) = self.ssd() else { return Value::Null };
        let device = ssd.device();
        let (open, active) = device.resources();
        let mut states = serde_json::Map::new();
        for zone in device.report() {
            let count = states.entry(state_name(&zone)).or_insert(json!(0));
            *count = json!(count.as_u64().unwrap_or(0) + 1);
        }
        let mut report = ssd.statistics();
        report["zones"] = states.into();
        report["open"] = json!(open);
        report["active"] = json!(active);
        report["max_open"] = json!(self.geometry.max_open());
        report["max_active"] = json!(self.geometry.max_active());
        report
    }

    fn control(&self, request: &Value) -> Result<Answer<'_>, String> {
        let ssd = self.ssd()?;
        match request["op"].as_str() {
            Some("report") => {
                let zones = (0..self.geometry.zones()).map(ZoneId);
                let known = zones.filter_map(|zone| ssd.device().describe(zone).ok());
                Ok(Answer::items(known.map(|zone| zone_json(ssd, &zone))))
            }
            Some("fault") => {
                let action =
                    FaultAction::deserialize(&request["fault"]).map_err(|e| format!("the fault: {e}"))?;
                ssd.fault(clock::monotonic_ns(), &action).map(Answer::Value)
            }
            _ => Err(format!("unknown request {request}")),
        }
    }

    fn stopped(&self) {
        let Ok(ssd) = self.ssd() else { return };
        // Without power there is nothing to save.
        if ssd.device().is_powered()
            && let Err(error) = ssd.device().flush()
        {
            log::error!("the last flush: {error}");
        }
        if let place @ MediaPlace::Ram(_) = ssd.device().media().place() {
            media::remove(place);
        }
    }
}

fn since_1970_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn state_name(zone: &ZoneDescriptor) -> &'static str {
    match (zone.kind, zone.state) {
        (_, ZoneState::ReadOnly) => "read_only",
        (_, ZoneState::Offline) => "offline",
        (ZoneType::Conventional, _) => "conventional",
        (_, ZoneState::Empty) => "empty",
        (_, ZoneState::ImplicitlyOpen) => "implicitly_open",
        (_, ZoneState::ExplicitlyOpen) => "explicitly_open",
        (_, ZoneState::Closed) => "closed",
        (_, ZoneState::Full) => "full",
    }
}

fn zone_json(ssd: &Ssd, zone: &ZoneDescriptor) -> Value {
    let field = |field| ssd.device().media().field(zone.zone, field);
    let write_pointer = match zone.write_pointer {
        crate::zones::NO_WRITE_POINTER => Value::Null,
        Sector(sector) => json!(sector),
    };
    json!({
        "zone": zone.zone.0,
        "type": match zone.kind {
            ZoneType::Conventional => "conventional",
            ZoneType::SequentialWriteRequired => "sequential",
        },
        "state": state_name(zone),
        "start_sectors": zone.start.0,
        "size_sectors": zone.sectors,
        "capacity_sectors": zone.capacity_sectors,
        "write_pointer_sectors": write_pointer,
        "host_written_sectors": field(ZoneField::HostSectors),
        "resets": field(ZoneField::Cycles),
        "reads_since_reset": field(ZoneField::Reads),
    })
}

/// One queue of a device: nothing of its own, the device is shared.
pub struct ZnsQueue {
    ssd: Arc<Ssd>,
    queue: u16,
    /// Tags whose completions were announced, and whether an append is among them.
    announced: Vec<u16>,
    appended: bool,
}

impl QueueHandler for ZnsQueue {
    fn handle(&mut self, request: &Request, payload: &mut Payload<'_>) -> Reply {
        let Timed { result, due_ns } = self.execute(request, payload);
        let outcome = result.map_err(|error| {
            log::debug!("{error}");
            errno(&error, request.op)
        });
        Reply::at(outcome, due_ns)
    }

    fn wants_time(&self) -> bool {
        self.ssd.wants_time()
    }

    fn committing(&mut self, tag: u16) {
        if let Some(append) = self.ssd.device().committing(SlotId { queue: self.queue, tag }) {
            self.announced.push(tag);
            self.appended |= append;
        }
    }

    /// An append that the kernel has and the slot does not know of would be given its place again: to another append.
    fn commits_first(&self) -> bool {
        self.appended
    }

    fn committed(&mut self) {
        for tag in self.announced.drain(..) {
            self.ssd.device().committed(SlotId { queue: self.queue, tag });
        }
        self.appended = false;
    }
}

impl ZnsQueue {
    /// A queue of `ssd`, for who drives it without a kernel.
    pub fn new(ssd: Arc<Ssd>, queue: u16) -> ZnsQueue {
        let depth = usize::from(ssd.device().media().slots().depth);
        ZnsQueue { ssd, queue, announced: Vec::with_capacity(depth), appended: false }
    }

    fn execute(&self, request: &Request, payload: &mut Payload<'_>) -> Timed<Done> {
        let ssd = &*self.ssd;
        let (sector, sectors) = (Sector(request.sector), u64::from(request.sectors));
        let slot = Some(SlotId { queue: self.queue, tag: request.tag });
        // A fault may have come after the batch was fetched.
        let untimed = request.fetched_ns == 0 && ssd.wants_time();
        let now_ns = if untimed { clock::monotonic_ns() } else { request.fetched_ns };
        let arrival = Arrival { now_ns, queue: self.queue, slot };
        let zone = || ssd.device().geometry().locate(sector).map_or(ZoneId(u32::MAX), |(zone, _)| zone);
        match request.op {
            Op::Read => self.read(arrival, sector, sectors, payload),
            Op::Write => {
                let copy = |to: NonNull<u8>, bytes| fetch(payload, to, bytes);
                whole(ssd.write_with(arrival, sector, sectors, request.fua, copy))
            }
            Op::ZoneAppend => {
                let copy = |to: NonNull<u8>, bytes| fetch(payload, to, bytes);
                let Timed { result, due_ns } = ssd.append_with(arrival, sector, sectors, request.fua, copy);
                Timed { result: result.map(|at| Done::AppendedAt(at.0)), due_ns }
            }
            Op::Flush => whole(ssd.flush(arrival)),
            Op::ZoneOpen => whole(ssd.open_zone(arrival, zone())),
            Op::ZoneClose => whole(ssd.close_zone(arrival, zone())),
            Op::ZoneFinish => whole(ssd.finish_zone(arrival, zone())),
            Op::ZoneReset => whole(ssd.reset_zone(arrival, zone())),
            Op::ZoneResetAll => whole(ssd.reset_all(arrival)),
            Op::ReportZones => {
                let Timed { result, due_ns } = ssd.report(arrival, zone());
                let result = result.and_then(|()| self.report(zone(), request.sectors, payload));
                whole(Timed { result, due_ns })
            }
            // Never advertised: reset is what discards a zone.
            Op::Discard | Op::WriteZeroes => {
                Timed { result: Err(ZnsError::Unsupported(request.op.name())), due_ns: 0 }
            }
        }
    }

    fn read(&self, arrival: Arrival, sector: Sector, sectors: u64, payload: &mut Payload<'_>) -> Timed<Done> {
        let mut at = 0;
        let Timed { result, due_ns } = self.ssd.read_with(arrival, sector, sectors, |from, bytes| {
            at = bytes;
            match payload {
                // SAFETY: the engine hands out memory valid for `bytes`; the kernel does the copy.
                Payload::UserCopy(copy) => unsafe { copy.store_raw(0, from.as_ptr(), bytes) },
                Payload::Buffer(buffer) => copy_out(from, bytes, buffer),
            }
        });
        let result = result.and_then(|found| {
            let len = (sectors * SECTOR_BYTES) as usize;
            while at < len {
                let zeroes = ZEROES.get(..len - at).unwrap_or(&ZEROES);
                let failed = |source| ZnsError::Transfer { zone: found.zone.0, bytes: zeroes.len(), source };
                payload.store(at, zeroes).map_err(failed)?;
                at += zeroes.len();
            }
            Ok(Done::Whole)
        });
        Timed { result, due_ns }
    }

    /// Fills the payload with `count` zones from `first` on; an entry of zeroes ends a shorter report.
    fn report(&self, first: ZoneId, count: u32, payload: &mut Payload<'_>) -> Result<(), ZnsError> {
        let mut chunk = [0u8; 64 * BLK_ZONE_BYTES];
        let mut next = first.0;
        let mut at = 0;
        let mut left = count as usize;
        while left > 0 {
            let entries = left.min(64);
            let Some(chunk) = chunk.get_mut(..entries * BLK_ZONE_BYTES) else { break };
            for entry in chunk.chunks_exact_mut(BLK_ZONE_BYTES) {
                match self.ssd.device().describe(ZoneId(next)) {
                    Ok(zone) => entry.copy_from_slice(&blk_zone(&zone)),
                    Err(_) => entry.fill(0),
                }
                next = next.saturating_add(1);
            }
            payload.store(at, chunk).map_err(|source| ZnsError::Transfer {
                zone: first.0,
                bytes: chunk.len(),
                source,
            })?;
            at += chunk.len();
            left -= entries;
        }
        Ok(())
    }
}

fn whole(timed: Timed<()>) -> Timed<Done> {
    Timed { result: timed.result.map(|()| Done::Whole), due_ns: timed.due_ns }
}

fn fetch(payload: &Payload<'_>, to: NonNull<u8>, bytes: usize) -> std::io::Result<()> {
    match payload {
        // SAFETY: the engine hands out memory valid for `bytes`; the kernel does the copy.
        Payload::UserCopy(copy) => unsafe { copy.fetch_raw(0, to.as_ptr(), bytes) },
        Payload::Buffer(buffer) => {
            let from = buffer.get(..bytes).ok_or(std::io::Error::from_raw_os_error(libc::EINVAL))?;
            // SAFETY: valid for `bytes`, and no part of the buffer. A device with buffers is one that tests and benchmarks drive
            // on one thread: the device itself asks for user copy.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), bytes) };
            Ok(())
        }
    }
}

fn copy_out(from: NonNull<u8>, bytes: usize, buffer: &mut [u8]) -> std::io::Result<()> {
    let to = buffer.get_mut(..bytes).ok_or(std::io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: as in `fetch`.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), bytes) };
    Ok(())
}

/// A zone as the kernel's `struct blk_zone`.
fn blk_zone(zone: &ZoneDescriptor) -> [u8; BLK_ZONE_BYTES] {
    let kind = match zone.kind {
        ZoneType::Conventional => 1u8,
        ZoneType::SequentialWriteRequired => 2,
    };
    let condition = match zone.state {
        ZoneState::ReadOnly => 13u8,
        ZoneState::Offline => 15,
        _ if zone.kind == ZoneType::Conventional => 0,
        ZoneState::Empty => 1,
        ZoneState::ImplicitlyOpen => 2,
        ZoneState::ExplicitlyOpen => 3,
        ZoneState::Closed => 4,
        ZoneState::Full => 14,
    };
    // Linux wants a number also where there is no write pointer; null_blk gives a conventional zone's end.
    let write_pointer = match zone.kind {
        ZoneType::Conventional => zone.start.0 + zone.sectors,
        ZoneType::SequentialWriteRequired => zone.write_pointer.0,
    };
    let mut entry = [0; BLK_ZONE_BYTES];
    entry[0..8].copy_from_slice(&zone.start.0.to_ne_bytes());
    entry[8..16].copy_from_slice(&zone.sectors.to_ne_bytes());
    entry[16..24].copy_from_slice(&write_pointer.to_ne_bytes());
    entry[24] = kind;
    entry[25] = condition;
    entry[32..40].copy_from_slice(&zone.capacity_sectors.to_ne_bytes());
    entry
}

/// What the block layer is told. Linux has words of its own for the two resource limits (`BLK_STS_ZONE_OPEN_RESOURCE`,
/// `BLK_STS_ZONE_ACTIVE_RESOURCE`); every other refusal of a zone rule is an I/O error there, as from an NVMe drive.
fn errno(error: &ZnsError, op: Op) -> Errno {
    match error {
        ZnsError::Zone(ZoneError::TooManyOpen { .. }) => Errno::ETOOMANYREFS,
        ZnsError::Zone(ZoneError::TooManyActive { .. }) => Errno::EOVERFLOW,
        // The kernel could not put a page behind the media: the memory is full.
        ZnsError::Transfer { source, .. }
            if op != Op::Read && source.raw_os_error() == Some(libc::EFAULT) =>
        {
            Errno::ENOSPC
        }
        // The block layer's own word for lost data (BLK_STS_MEDIUM).
        ZnsError::Medium(_) => Errno::ENODATA,
        ZnsError::Unsupported(_) => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ZnsDevice;

    #[test]
    fn the_limits_have_errnos_of_their_own_and_other_rules_are_io_errors() {
        let errno = |error: ZoneError| super::errno(&ZnsError::Zone(error), Op::Write).code();
        assert_eq!(errno(ZoneError::TooManyOpen { zone: 1, limit: 2 }), libc::ETOOMANYREFS);
        assert_eq!(errno(ZoneError::TooManyActive { zone: 1, limit: 2 }), libc::EOVERFLOW);
        assert_eq!(errno(ZoneError::Full(1)), libc::EIO);
        assert_eq!(errno(ZoneError::Offline(1)), libc::EIO);
        let full = || {
            let source = std::io::Error::from_raw_os_error(libc::EFAULT);
            ZnsError::Transfer { zone: 0, bytes: 4096, source }
        };
        assert_eq!(super::errno(&full(), Op::Write).code(), libc::ENOSPC);
        assert_eq!(super::errno(&full(), Op::Read).code(), libc::EIO);
        assert_eq!(super::errno(&ZnsError::Unsupported("discard"), Op::Discard).code(), libc::EOPNOTSUPP);
    }

    #[test]
    fn the_kernels_zone_entry_has_its_fields_where_blkzoned_h_puts_them() {
        let config = ZnsConfig {
            size_bytes: 4 << 20,
            zone_size_bytes: 1 << 20,
            zone_capacity_bytes: Some(768 << 10),
            conventional_zones: 1,
            ..Default::default()
        };
        let device = ZnsDevice::new(&config).unwrap();
        device.write(Sector(2048), &[0; 4096]).unwrap();
        let word = |entry: &[u8; 64], at: usize| u64::from_ne_bytes(entry[at..at + 8].try_into().unwrap());
        let entry = blk_zone(&device.describe(ZoneId(1)).unwrap());
        assert_eq!((word(&entry, 0), word(&entry, 8), word(&entry, 16)), (2048, 2048, 2056));
        assert_eq!((entry[24], entry[25], word(&entry, 32)), (2, 2, 1536));
        let conventional = blk_zone(&device.describe(ZoneId(0)).unwrap());
        assert_eq!((conventional[24], conventional[25], word(&conventional, 32)), (1, 0, 2048));
    }

    #[test]
    fn a_handler_answers_reports_reads_and_errors_without_a_kernel() {
        let config = ZnsConfig { size_bytes: 4 << 20, zone_size_bytes: 1 << 20, ..Default::default() };
        let options = DeviceOptions::new(config, MediaPlace::Anonymous);
        let mut queue = ZnsQueue::new(Arc::new(Ssd::create(&options, Models::default()).unwrap()), 0);
        let request =
            |op, sector, sectors| Request { op, sector, sectors, fua: false, tag: 0, fetched_ns: 0 };
        let mut bytes = vec![9; 6 * BLK_ZONE_BYTES];
        let done = queue.handle(&request(Op::ReportZones, 2048, 6), &mut Payload::Buffer(&mut bytes)).outcome;
        assert_eq!(done, Ok(Done::Whole));
        assert_eq!(bytes[64 * 2..64 * 2 + 8], 6144u64.to_ne_bytes());
        assert!(bytes[64 * 3..].iter().all(|byte| *byte == 0));
        let mut bytes = vec![9; 4096];
        let done = queue.handle(&request(Op::Read, 0, 8), &mut Payload::Buffer(&mut bytes)).outcome;
        assert_eq!(done, Ok(Done::Whole));
        assert_eq!(bytes, [0; 4096]);
        let stray = queue.handle(&request(Op::Write, 64, 8), &mut Payload::Buffer(&mut bytes)).outcome;
        assert_eq!(stray, Err(Errno::EIO));
        let close = queue.handle(&request(Op::ZoneClose, 0, 0), &mut Payload::Buffer(&mut [])).outcome;
        assert_eq!(close, Err(Errno::EIO));
        let beyond =
            queue.handle(&request(Op::ZoneReset, u64::MAX, 0), &mut Payload::Buffer(&mut [])).outcome;
        assert_eq!(beyond, Err(Errno::EIO));
        let discard = queue.handle(&request(Op::Discard, 0, 8), &mut Payload::Buffer(&mut [])).outcome;
        assert_eq!(discard, Err(Errno::EOPNOTSUPP));
    }
}
