//! The queue's loop without a kernel device, to test and measure handlers: requests come from [`LocalQueue::submit`].
//!
//! The handler has a real io_uring and real time, as behind a device; only the tags are the caller's. The invariant is the
//! loop's: every request that was submitted is done once, and nothing of the handler is in flight when the queue is gone.

use crate::{
    QueueHandler,
    adapter::{Event, Tags},
    clock::monotonic_ns,
    queue::{
        Server, Settings, State,
        ring::{Completed, Ring},
    },
    request::{Done, Errno, Op, Payload, Request},
    stats::QueueStats,
};
use io_uring::squeue;
use std::{collections::VecDeque, io, marker::PhantomData, mem::ManuallyDrop, time::Duration};

/// Room for the handler's operations.
const RING_ENTRIES: u16 = 256;
/// How long [`LocalQueue::finish`] sleeps at most before it looks again.
const FINISH_STEP: Duration = Duration::from_millis(100);

/// The tags: their buffers, and which requests are new, at work, done.
struct LocalTags {
    ring: Ring,
    requests: Vec<Request>,
    data: Vec<Vec<u8>>,
    free: VecDeque<u16>,
    arrived: VecDeque<u16>,
    done: VecDeque<(u16, Result<Done, Errno>)>,
}

/// A handler and its loop. It belongs to the thread that made it, as its ring does.
pub struct LocalQueue<H: QueueHandler> {
    tags: LocalTags,
    handler: ManuallyDrop<H>,
    stats: QueueStats,
    state: State,
    /// The handler was taken out or has to stay.
    over: bool,
    _of_one_thread: PhantomData<*mut ()>,
}

impl<H: QueueHandler> LocalQueue<H> {
    /// A queue of `depth` tags with `max_io_bytes` of buffer each. Calls [`QueueHandler::started`].
    ///
    /// # Errors
    /// The kernel has no io_uring for us, or its ring failed.
    pub fn new(handler: H, depth: u16, max_io_bytes: usize) -> io::Result<Self> {
        let stats = QueueStats::new(0);
        let settings = Settings { depth, spin_ns: 0, latency_sampling: 0, ring_entries: RING_ENTRIES };
        let idle = Request { op: Op::Flush, sector: 0, sectors: 0, fua: false, tag: 0, fetched_ns: 0 };
        let tags = LocalTags {
            ring: Ring::new(depth, RING_ENTRIES)?,
            requests: vec![idle; depth.into()],
            data: vec![vec![0; max_io_bytes]; depth.into()],
            free: (0..depth).collect(),
            arrived: VecDeque::with_capacity(depth.into()),
            done: VecDeque::with_capacity(depth.into()),
        };
        let state = State::new(settings, &stats);
        let handler = ManuallyDrop::new(handler);
        let mut queue = LocalQueue { tags, handler, stats, state, over: false, _of_one_thread: PhantomData };
        queue.server().start()?;
        queue.tags.ring.submit()?;
        Ok(queue)
    }

    fn server(&mut self) -> Server<'_, impl Tags, H> {
        Server {
            queue: &mut self.tags,
            handler: &mut self.handler,
            stats: &self.stats,
            state: &mut self.state,
        }
    }

    /// Hands in a request; `data` is what a write writes, and is cut or filled with zeroes to its length. The handler sees it
    /// in the next [`LocalQueue::turn`]. `None`: no tag is free, or the request is longer than a buffer.
    pub fn submit(&mut self, op: Op, sector: u64, sectors: u32, data: Option<&[u8]>) -> Option<u16> {
        let tag = *self.tags.free.front()?;
        let index = usize::from(tag);
        let request = Request { op, sector, sectors, fua: false, tag, fetched_ns: 0 };
        let buffer = self.tags.data.get_mut(index)?;
        if op.moves_data() {
            let buffer = buffer.get_mut(..request.len_bytes())?;
            if let Some(data) = data {
                let len = data.len().min(buffer.len());
                let (filled, rest) = buffer.split_at_mut(len);
                filled.copy_from_slice(data.get(..len)?);
                rest.fill(0);
            }
        }
        *self.tags.requests.get_mut(index)? = request;
        self.tags.free.pop_front();
        self.tags.arrived.push_back(tag);
        Some(tag)
    }

    /// One turn of the loop: handles what was submitted and what the ring has. If there is neither, and nothing done to be
    /// taken, it waits for the ring once (polling or asleep, as the handler says, for at most `limit`) and handles what came.
    ///
    /// # Errors
    /// The ring's.
    pub fn turn(&mut self, limit: Duration) -> io::Result<()> {
        self.tags.ring.poll()?;
        let busy = self.tags.ready();
        let mut server = self.server();
        server.take_events()?;
        server.turn()?;
        let now_ns = server.complete_due()?;
        if !busy && self.tags.done.is_empty() && !limit.is_zero() {
            let limit_ns = monotonic_ns().saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
            let mut server = self.server();
            server.wait(now_ns, limit_ns)?;
            server.take_events()?;
            server.turn()?;
            server.complete_due()?;
        }
        self.tags.ring.poll()
    }

    /// The next request that is done. Its tag is free again.
    pub fn take_done(&mut self) -> Option<(u16, Result<Done, Errno>)> {
        let (tag, result) = self.tags.done.pop_front()?;
        self.tags.free.push_back(tag);
        Some((tag, result))
    }

    /// The buffer of `tag`: what a read that is done has read. Valid until the tag is submitted again, which happens only
    /// after all others that are free. Empty for a tag that is not there.
    pub fn data(&self, tag: u16) -> &[u8] {
        let index = usize::from(tag);
        let len = self.tags.requests.get(index).map_or(0, Request::len_bytes);
        self.tags.data.get(index).and_then(|data| data.get(..len)).unwrap_or_default()
    }

    /// The handler.
    pub fn handler(&mut self) -> &mut H {
        &mut self.handler
    }

    /// How often the handler has panicked.
    pub fn panics(&self) -> u64 {
        self.stats.panics()
    }

    /// Stops as a device does: waits until every request is done, stops the handler and gives it back.
    ///
    /// # Errors
    /// The ring's; the handler is lost then, since the kernel may still use its buffers.
    pub fn finish(mut self) -> io::Result<H> {
        while self.tags.busy() {
            self.turn(FINISH_STEP)?;
        }
        self.server().end()?;
        self.over = true;
        // SAFETY: taken once: `over` keeps drop from it.
        Ok(unsafe { ManuallyDrop::take(&mut self.handler) })
    }
}

impl<H: QueueHandler> Drop for LocalQueue<H> {
    /// Stops at once: requests that are not done never will be.
    fn drop(&mut self) {
        // Without the end of its operations the kernel may still write to its buffers: better lost than written to.
        if !self.over && self.server().end().is_ok() {
            // SAFETY: dropped once: this is drop, and nobody has taken it.
            unsafe { ManuallyDrop::drop(&mut self.handler) };
        }
    }
}

impl LocalTags {
    /// Whether a request is not done.
    fn busy(&self) -> bool {
        self.free.len() + self.done.len() < self.requests.len()
    }
}

impl Tags for LocalTags {
    fn commit(&mut self, tag: u16, result: i32, append_sector: Option<u64>) -> io::Result<()> {
        let result = match (result, append_sector) {
            (..0, _) => Err(Errno::new(result.saturating_neg())),
            (_, Some(sector)) => Ok(Done::AppendedAt(sector)),
            (_, None) => Ok(Done::Whole),
        };
        self.done.push_back((tag, result));
        Ok(())
    }

    fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        if self.ready() || !self.done.is_empty() { self.ring.poll() } else { self.ring.wait(limit) }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.ring.submit()
    }

    fn all_submitted(&mut self) -> bool {
        self.ring.all_submitted()
    }

    fn poll(&mut self) -> io::Result<()> {
        self.ring.poll()
    }

    fn ready(&mut self) -> bool {
        !self.arrived.is_empty() || self.ring.ready()
    }

    unsafe fn push_own(&mut self, entry: squeue::Entry, token: u64) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.ring.push_own(entry, token) }
    }

    fn cancel_own(&mut self) -> io::Result<()> {
        self.ring.cancel_all()
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn next_event(&mut self) -> Option<Event> {
        if let Some(tag) = self.arrived.pop_front() {
            return Some(Event::Request(tag));
        }
        match self.ring.next()? {
            Completed::Own { token, result, more } => Some(Event::Own { token, result, more }),
            Completed::Command(..) => None, // nobody gives any
        }
    }

    fn request(&self, tag: u16) -> Result<Request, u8> {
        self.requests.get(usize::from(tag)).copied().ok_or(u8::MAX)
    }

    fn payload(&mut self, request: &Request) -> Payload<'_> {
        let buffer = self.data.get_mut(usize::from(request.tag)).map_or(&mut [][..], Vec::as_mut_slice);
        let len = match request.op {
            Op::Read | Op::Write | Op::ZoneAppend => request.len_bytes(),
            Op::ReportZones => (request.sectors as usize).saturating_mul(ZONE_BYTES).min(buffer.len()),
            _ => 0,
        };
        Payload::Buffer(buffer.get_mut(..len).unwrap_or_default())
    }
}

/// `sizeof(struct blk_zone)`.
const ZONE_BYTES: usize = 64;

#[cfg(test)]
mod tests;
