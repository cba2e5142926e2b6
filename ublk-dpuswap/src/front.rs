//! The ublk front: block requests to page operations, and errors to errnos (here and nowhere else).

use std::sync::Arc;

use ublk_target::{DeviceSpec, DiscardSpec, Done, Errno, Op, Payload, QueueHandler, Reply, Request, Target};

use crate::engine::{Engine, QueueContext};
use crate::error::IoError;
use crate::units::{PAGE_BYTES, PageNo};

/// Sectors (512 bytes) of a page.
const PAGE_SECTORS: u64 = PAGE_BYTES as u64 / 512;
/// The longest discard taken in one request; the kernel splits longer ones.
const MAX_DISCARD_BYTES: u64 = 1 << 30;

/// The swap device as a ublk target.
pub struct SwapDevice {
    engine: Arc<Engine>,
    queues: u16,
    depth: u16,
}

impl SwapDevice {
    /// A device over an engine whose threads do not run yet: [`Target::bind`] starts them.
    pub fn new(engine: Engine, queues: u16, depth: u16) -> Self {
        Self { engine: Arc::new(engine), queues, depth }
    }
}

/// One queue of the device.
pub struct SwapQueue {
    engine: Arc<Engine>,
    context: QueueContext,
}

impl Target for SwapDevice {
    type Queue = SwapQueue;

    fn kind(&self) -> &'static str {
        "dpuswap"
    }

    fn spec(&self) -> DeviceSpec {
        let size_bytes = u64::from(self.engine.pages()) * PAGE_BYTES as u64;
        let most = size_bytes.min(MAX_DISCARD_BYTES);
        let granularity_bytes = PAGE_BYTES as u32;
        DeviceSpec {
            queues: self.queues,
            depth: self.depth,
            discard: Some(DiscardSpec { granularity_bytes, max_bytes: most, max_write_zeroes_bytes: most }),
            ..DeviceSpec::new(size_bytes)
        }
    }

    fn bind(&self, _: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.engine.start()?)
    }

    fn open_queue(&self, queue: u16) -> Result<SwapQueue, Box<dyn std::error::Error + Send + Sync>> {
        Ok(SwapQueue { engine: Arc::clone(&self.engine), context: self.engine.queue(queue) })
    }

    fn stats(&self) -> serde_json::Value {
        serde_json::to_value(self.engine.report()).unwrap_or_default()
    }

    fn stopped(&self) {
        self.engine.stop();
    }
}

/// The pages of a request: the device's logical block is a page, so anything else is the kernel's error.
fn pages_of(request: &Request) -> Result<(PageNo, u32), Errno> {
    let whole = request.sector.is_multiple_of(PAGE_SECTORS)
        && u64::from(request.sectors).is_multiple_of(PAGE_SECTORS);
    let first = u32::try_from(request.sector / PAGE_SECTORS).ok().filter(|_| whole);
    let first = first.ok_or(Errno::new(libc::EINVAL))?;
    Ok((PageNo(first), request.sectors / PAGE_SECTORS as u32))
}

impl QueueHandler for SwapQueue {
    fn handle(&mut self, request: &Request, payload: &mut Payload<'_>) -> Reply {
        self.execute(request, payload).into()
    }
}

impl SwapQueue {
    fn execute(&mut self, request: &Request, payload: &mut Payload<'_>) -> Result<Done, Errno> {
        if request.op == Op::Flush {
            return Ok(Done::Whole);
        }
        let (first, count) = pages_of(request)?;
        let done = match request.op {
            Op::Read => {
                self.engine.swap_in(&mut self.context, first, payload.buffer_mut().ok_or(Errno::EIO)?)
            }
            Op::Write => {
                self.engine.swap_out(&mut self.context, first, payload.buffer_mut().ok_or(Errno::EIO)?)
            }
            // A dropped page reads as zeros, which is all that write-zeroes asks.
            Op::Discard | Op::WriteZeroes => self.engine.discard(first, count),
            _ => return Err(Errno::EOPNOTSUPP),
        };
        done.map(|()| Done::Whole).map_err(errno)
    }
}

/// What the kernel is told. It keeps a page whose swap-out failed, and ends the process whose swap-in failed.
fn errno(error: IoError) -> Errno {
    match error {
        IoError::Range => Errno::new(libc::EINVAL),
        IoError::NoSpace => Errno::ENOSPC,
        IoError::NodeDown(_)
        | IoError::Lost(_)
        | IoError::Record(..)
        | IoError::NoNode
        | IoError::Retries => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sector: u64, sectors: u32) -> Request {
        Request { op: Op::Read, sector, sectors, fua: false, tag: 0, fetched_ns: 0 }
    }

    #[test]
    fn requests_become_pages_and_unaligned_ones_are_refused() {
        assert_eq!(pages_of(&request(16, 24)), Ok((PageNo(2), 3)));
        assert_eq!(pages_of(&request(1, 8)), Err(Errno::new(libc::EINVAL)));
        assert_eq!(pages_of(&request(8, 7)), Err(Errno::new(libc::EINVAL)));
        assert_eq!(pages_of(&request(u64::MAX / 8 * 8, 8)), Err(Errno::new(libc::EINVAL)));
    }
}
