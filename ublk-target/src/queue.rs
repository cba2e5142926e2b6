//! One queue's loop: fetch, handle, complete, each completion at its time.
//!
//! The invariant: a tag that the kernel handed over is given back exactly once, with a result, whatever the handler
//! does, and not before the time that the handler named. A panic becomes `EIO`; an operation nobody knows becomes
//! `EOPNOTSUPP`; a completion that the kernel refuses is sent again as `EIO` without the append sector, which is the only
//! part it can refuse; and if even that is refused, or the ring fails, `serve` ends with an error and its caller ends the
//! process: only then does the kernel fail the requests (or keep them for `recover`), whatever other queues still do.
//!
//! A stopping device changes nothing: the kernel takes a tag away only after its request's completion, so that the loop
//! goes on until the last waiting completion was due.
//!
//! The clock is read at most once per wake-up and once before each wait, and not at all when nobody needs it. Where a
//! reading is a system call (User-Mode Linux), latency statistics look at one wake-up in `SLOW_CLOCK_SAMPLING` only.

mod deadlines;
#[cfg(test)]
mod tests;

use crate::{
    QueueHandler,
    adapter::{Event, Tags},
    clock,
    latency::Samples,
    request::{Done, Errno, Op, Reply, Request},
    spec::DeviceSpec,
    stats::QueueStats,
};
use deadlines::Deadlines;
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// The furthest that a completion may be put off: one hour. Nobody waits for longer on purpose, and a device cannot stop
/// before its last completion.
pub const MAX_DELAY_NS: u64 = 3_600_000_000_000;

/// While completions wait for their time, the loop looks at the clock after this many events.
const EVENTS_BETWEEN_LOOKS: usize = 32;

/// Where reading the clock takes longer than this, in ns, it is a system call.
const SLOW_CLOCK_NS: u64 = 250;
/// With a slow clock, one wake-up in so many is timed for statistics, on average.
const SLOW_CLOCK_SAMPLING: u32 = 32;

/// What the loop needs to know of its device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Tags of the queue.
    pub(crate) depth: u16,
    /// How long before a due time to wake up and poll.
    pub(crate) spin_ns: u64,
    /// Record latency of one wake-up in so many, on average; 0 for never.
    pub(crate) latency_sampling: u32,
}

impl Settings {
    /// As `spec` says, for a queue of `depth` (the kernel's word).
    pub(crate) fn new(spec: &DeviceSpec, depth: u16) -> Settings {
        let latency_sampling = match (spec.latency_stats, clock::read_cost_ns()) {
            (false, _) => 0,
            (true, ..=SLOW_CLOCK_NS) => 1,
            (true, _) => SLOW_CLOCK_SAMPLING,
        };
        Settings { depth, spin_ns: spec.completion_spin_ns.into(), latency_sampling }
    }
}

/// A finished request as the kernel wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Completion {
    result: i32,
    append_sector: Option<u64>,
}

/// A handled request, until it is completed.
#[derive(Debug, Clone, Copy)]
struct Finished {
    tag: u16,
    /// `None` for one that nobody knows.
    op: Option<Op>,
    bytes: u64,
    failed: bool,
    fetched_ns: u64,
    completion: Completion,
}

/// Serves until the device stops.
///
/// # Errors
/// The ring's, or a completion refused twice. Requests are left open then: the process must end.
pub(crate) fn serve<H: QueueHandler>(
    queue: &mut impl Tags,
    settings: Settings,
    handler: &mut H,
    stats: &QueueStats,
) -> io::Result<()> {
    let depth = usize::from(settings.depth);
    let mut server = Server {
        queue,
        handler,
        stats,
        settings,
        deadlines: Deadlines::new(depth),
        sampling: Sampling::new(settings.latency_sampling),
        samples: Samples::new(&stats.histograms),
        batch: Batch::default(),
        announced: false,
        refused_before: vec![false; depth],
    };
    let mut serving = depth;
    while serving > 0 {
        let now_ns = server.complete_due()?;
        server.wait(now_ns)?;
        serving = serving.saturating_sub(server.take_events()?);
    }
    server.samples.drain();
    Ok(())
}

/// Requests completed at once since the last look at the clock: they were fetched together and are submitted together, so
/// that one latency is all of theirs.
#[derive(Default)]
struct Batch {
    any: bool,
    fetched_ns: u64,
    by_op: [u32; Op::ALL.len()],
}

impl Batch {
    fn count(&mut self, op: Op, fetched_ns: u64) {
        if let Some(count) = self.by_op.get_mut(op.index()) {
            *count += 1;
            self.fetched_ns = fetched_ns;
            self.any = true;
        }
    }

    fn record(&mut self, now_ns: u64, samples: &mut Samples<'_>) {
        let ns = now_ns.saturating_sub(self.fetched_ns);
        for (op, count) in Op::ALL.into_iter().zip(&mut self.by_op) {
            if *count > 0 {
                samples.latency(op, ns, std::mem::take(count));
            }
        }
        self.any = false;
    }
}

/// Chooses the wake-ups that are timed for statistics: at random distances, so that no rhythm of the load meets them.
struct Sampling {
    every: u32,
    until_next: u32,
    random: u64,
}

impl Sampling {
    fn new(every: u32) -> Sampling {
        Sampling { every, until_next: 0, random: 0x2545_f491_4f6c_dd1d }
    }

    fn chooses(&mut self) -> bool {
        match (self.every, self.until_next) {
            (0, _) => return false,
            (1, _) => return true,
            (every, 0) => {
                // Xorshift (Marsaglia 2003). The distance is uniform from 1 to 2 every - 1.
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.until_next = (self.random >> 32) as u32 % (2 * every - 1);
                return true;
            }
            _ => self.until_next -= 1,
        }
        false
    }
}

struct Server<'s, Q, H> {
    queue: &'s mut Q,
    handler: &'s mut H,
    stats: &'s QueueStats,
    settings: Settings,
    deadlines: Deadlines,
    sampling: Sampling,
    samples: Samples<'s>,
    batch: Batch,
    /// Completions were put in the ring, and the handler does not know yet that the kernel has them.
    announced: bool,
    /// By tag: its completion was refused and sent again.
    refused_before: Vec<bool>,
}

impl<Q: Tags, H: QueueHandler> Server<'_, Q, H> {
    /// Completes what is due; gives the time if it had to know it.
    fn complete_due(&mut self) -> io::Result<Option<u64>> {
        if !self.batch.any && self.deadlines.is_empty() {
            return Ok(None);
        }
        let now_ns = self.queue.now_ns();
        if self.batch.any {
            self.batch.record(now_ns, &mut self.samples);
        }
        while let Some((due_ns, finished)) = self.deadlines.pop(now_ns) {
            self.samples.lateness(now_ns - due_ns);
            if let (true, Some(op)) = (self.records(&finished), finished.op) {
                self.samples.latency(op, now_ns.saturating_sub(finished.fetched_ns), 1);
            }
            self.commit(finished)?;
        }
        Ok(Some(now_ns))
    }

    /// Whether the latency of a request goes into the statistics: when they are kept and its time was taken.
    fn records(&self, finished: &Finished) -> bool {
        self.settings.latency_sampling != 0 && finished.fetched_ns != 0
    }

    /// Waits for the kernel, or until the next completion is due.
    fn wait(&mut self, now_ns: Option<u64>) -> io::Result<()> {
        if self.announced && self.handler.commits_first() {
            self.queue.submit()?;
            self.tell_committed();
        }
        let left_ns =
            self.deadlines.next_ns().zip(now_ns).map(|(due_ns, now_ns)| due_ns.saturating_sub(now_ns));
        match left_ns {
            Some(left_ns) if left_ns <= self.settings.spin_ns => {
                std::hint::spin_loop();
                self.queue.poll()?;
            }
            left_ns => {
                self.samples.drain();
                let limit = left_ns.map(|left_ns| Duration::from_nanos(left_ns - self.settings.spin_ns));
                self.queue.wait(limit)?;
            }
        }
        self.tell_committed();
        Ok(())
    }

    /// Tells the handler that the kernel has what was announced, once it has.
    fn tell_committed(&mut self) {
        if self.announced && self.queue.all_submitted() {
            self.announced = false;
            if catch_unwind(AssertUnwindSafe(|| self.handler.committed())).is_err() {
                log::error!("the handler panicked after completions");
                self.stats.panicked();
            }
        }
    }

    /// Handles what the kernel said; tells how many tags it took away.
    fn take_events(&mut self) -> io::Result<usize> {
        let wants_time = self.sampling.chooses() | self.handler.wants_time();
        let mut fetched_ns = 0;
        let (mut taken, mut stopped) = (0, 0);
        while let Some(event) = self.queue.next_event() {
            match event {
                Event::Request(tag) => {
                    if wants_time && fetched_ns == 0 {
                        fetched_ns = self.queue.now_ns();
                    }
                    self.serve_one(tag, fetched_ns)?;
                }
                Event::Stopped => stopped += 1,
                Event::Refused(tag, errno) => self.send_again(tag, errno)?,
            }
            taken += 1;
            if taken >= EVENTS_BETWEEN_LOOKS && !self.deadlines.is_empty() {
                break;
            }
        }
        Ok(stopped)
    }

    fn serve_one(&mut self, tag: u16, fetched_ns: u64) -> io::Result<()> {
        if let Some(flag) = self.refused_before.get_mut(usize::from(tag)) {
            *flag = false;
        }
        let (finished, due_ns) = self.handle(tag, fetched_ns);
        if due_ns != 0 {
            let due_ns = self.bounded(due_ns, fetched_ns);
            self.deadlines.push(due_ns, finished);
            return Ok(());
        }
        if let (true, Some(op)) = (self.records(&finished), finished.op) {
            self.batch.count(op, fetched_ns);
        }
        self.commit(finished)
    }

    /// `due_ns`, not further away than [`MAX_DELAY_NS`].
    fn bounded(&self, due_ns: u64, fetched_ns: u64) -> u64 {
        let now_ns = if fetched_ns == 0 { self.queue.now_ns() } else { fetched_ns };
        let furthest_ns = now_ns.saturating_add(MAX_DELAY_NS);
        if due_ns > furthest_ns && self.stats.clamped() == 0 {
            let seconds = (due_ns - now_ns) / 1_000_000_000;
            log::warn!(
                "a completion was put off by {seconds} s; it comes after {} s, as do others like it",
                MAX_DELAY_NS / 1_000_000_000
            );
        }
        due_ns.min(furthest_ns)
    }

    fn commit(&mut self, finished: Finished) -> io::Result<()> {
        let Finished { tag, op, bytes, failed, completion, .. } = finished;
        if let Some(op) = op {
            self.announced = true;
            // The request is finished whatever the hook does.
            if catch_unwind(AssertUnwindSafe(|| self.handler.committing(tag))).is_err() {
                log::error!("the handler panicked while tag {tag} was completed");
                self.stats.panicked();
            }
            self.stats.finished(op, bytes, failed);
        }
        self.queue.commit(tag, completion.result, completion.append_sector)
    }

    fn send_again(&mut self, tag: u16, errno: i32) -> io::Result<()> {
        self.stats.refused();
        log::error!("tag {tag}: the kernel refused a completion (errno {})", -errno);
        match self.refused_before.get_mut(usize::from(tag)) {
            Some(flag) if !*flag => *flag = true,
            _ => return Err(io::Error::from_raw_os_error(-errno)),
        }
        self.queue.commit(tag, -libc::EIO, None)
    }

    /// Lets the handler do the request on `tag`; gives it finished, and when it is due (0 for at once).
    fn handle(&mut self, tag: u16, fetched_ns: u64) -> (Finished, u64) {
        let request = match self.queue.request(tag) {
            Ok(request) => Request { fetched_ns, ..request },
            Err(code) => {
                log::warn!("operation {code} is not known: EOPNOTSUPP");
                self.stats.unknown();
                let completion = Completion { result: -libc::EOPNOTSUPP, append_sector: None };
                return (Finished { tag, op: None, bytes: 0, failed: true, fetched_ns, completion }, 0);
            }
        };
        let handler = &mut *self.handler;
        let mut payload = self.queue.payload(&request);
        // The handler's state after a panic is its own business: targets share state behind locks that survive poisoning.
        let reply = catch_unwind(AssertUnwindSafe(|| handler.handle(&request, &mut payload)));
        let Reply { outcome, due_ns } = reply.unwrap_or_else(|_| {
            log::error!("the handler panicked on {request:?}: EIO");
            self.stats.panicked();
            Err(Errno::EIO).into()
        });
        if let Err(errno) = outcome {
            log::debug!("{request:?}: {errno:?}");
        }
        let bytes = if request.op.moves_data() { request.len_bytes() as u64 } else { 0 };
        let (op, failed) = (Some(request.op), outcome.is_err());
        let completion = completion(&request, outcome);
        (Finished { tag, op, bytes, failed, fetched_ns, completion }, due_ns)
    }
}

/// What the kernel is told. A read or write reports its bytes: a result of 0 would make the kernel fail the read and
/// send the write again for ever. A zone report claims the rest of its buffer for the same reason.
fn completion(request: &Request, outcome: Result<Done, Errno>) -> Completion {
    match outcome {
        Err(errno) => Completion { result: -errno.code(), append_sector: None },
        Ok(done) => {
            let result = match request.op {
                Op::Read | Op::Write | Op::ZoneAppend => {
                    i32::try_from(request.len_bytes()).unwrap_or(i32::MAX)
                }
                Op::ReportZones => i32::MAX,
                _ => 0,
            };
            match (request.op, done) {
                (Op::ZoneAppend, Done::AppendedAt(sector)) => {
                    Completion { result, append_sector: Some(sector) }
                }
                (Op::ZoneAppend, Done::Whole) => {
                    log::error!("an append completed without its sector: EIO");
                    Completion { result: -libc::EIO, append_sector: None }
                }
                _ => Completion { result, append_sector: None },
            }
        }
    }
}
