//! One queue's loop: fetch, handle, complete, each completion at its time.
//!
//! The invariant: a tag that the kernel handed over is given back exactly once, with a result, whatever the handler
//! does, and not before the time that the handler named. A panic becomes `EIO`; an operation nobody knows becomes
//! `EOPNOTSUPP`; a completion that the kernel refuses is sent again as `EIO` without the append sector, which is the only
//! part it can refuse; and if even that is refused, or the ring fails, `serve` ends with an error and its caller ends the
//! process: only then does the kernel fail the requests (or keep them for `recover`), whatever other queues still do.
//!
//! A pending request is one whose handler has not answered yet ([`crate::Reply::pending`]); its tag is given back when it does, or
//! with `EIO` when the handler panics. Answers that come during a hook are taken after it. The handler's own operations are
//! in the same ring; when `serve` returns without an error, all of them have ended, so that their buffers may go.
//!
//! A stopping device changes nothing: the kernel takes a tag away only after its request's completion, so that the loop
//! goes on until the last waiting completion was due.
//!
//! The clock is read at most once per wake-up and once before each wait, and not at all when nobody needs it. Where a
//! reading is a system call (User-Mode Linux), latency statistics look at one wake-up in `SLOW_CLOCK_SAMPLING` only.

mod deadlines;
mod pending;
pub(crate) mod ring;
#[cfg(test)]
mod tests;

use crate::{
    QueueHandler, QueueIo,
    adapter::{Event, Tags},
    clock,
    latency::Samples,
    request::{Done, Errno, Op, Request},
    spec::DeviceSpec,
    stats::QueueStats,
};
use deadlines::Deadlines;
use pending::{Io, Pending};
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

/// While it polls, the loop looks at the clock after this many looks at the ring.
const POLLS_BETWEEN_LOOKS: usize = 16;

/// A stopping queue cancels its handler's operations again after this time: one that was on its way may have been missed.
const CANCEL_AGAIN: Duration = Duration::from_millis(50);

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
    /// Room in the ring for operations of the handler.
    pub(crate) ring_entries: u16,
}

impl Settings {
    /// As `spec` says, for a queue of `depth` (the kernel's word).
    pub(crate) fn new(spec: &DeviceSpec, depth: u16) -> Settings {
        let latency_sampling = match (spec.latency_stats, clock::read_cost_ns()) {
            (false, _) => 0,
            (true, ..=SLOW_CLOCK_NS) => 1,
            (true, _) => SLOW_CLOCK_SAMPLING,
        };
        Settings {
            depth,
            spin_ns: spec.completion_spin_ns.into(),
            latency_sampling,
            ring_entries: spec.ring_entries,
        }
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

impl Finished {
    fn new(request: &Request, outcome: Result<Done, Errno>) -> Finished {
        if let Err(errno) = outcome {
            log::debug!("{request:?}: {errno:?}");
        }
        Finished {
            tag: request.tag,
            op: Some(request.op),
            bytes: if request.op.moves_data() { request.len_bytes() as u64 } else { 0 },
            failed: outcome.is_err(),
            fetched_ns: request.fetched_ns,
            completion: completion(request, outcome),
        }
    }
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
    let mut state = State::new(settings, stats);
    let mut server = Server { queue, handler, stats, state: &mut state };
    let mut serving = usize::from(settings.depth);
    server.start()?;
    while serving > 0 {
        server.turn()?;
        let now_ns = server.complete_due()?;
        server.wait(now_ns, u64::MAX)?;
        serving = serving.saturating_sub(server.take_events()?);
    }
    server.end()
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

    fn record(&mut self, now_ns: u64, samples: &mut Samples) {
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

/// What the loop remembers from one turn to the next.
pub(crate) struct State {
    settings: Settings,
    deadlines: Deadlines,
    sampling: Sampling,
    samples: Samples,
    batch: Batch,
    /// Completions were put in the ring, and the handler does not know yet that the kernel has them.
    announced: bool,
    /// By tag: its completion was refused and sent again.
    refused_before: Vec<bool>,
    pending: Pending,
    /// The handler panicked, and its pending requests are still to fail.
    broken: bool,
    /// Operations of the handler that have not ended.
    own_in_flight: usize,
    /// The handler may start no more operations.
    ending: bool,
}

impl State {
    /// Before the first turn.
    pub(crate) fn new(settings: Settings, stats: &QueueStats) -> State {
        let depth = usize::from(settings.depth);
        State {
            settings,
            deadlines: Deadlines::new(depth),
            sampling: Sampling::new(settings.latency_sampling),
            samples: Samples::new(&stats.histograms),
            batch: Batch::default(),
            announced: false,
            refused_before: vec![false; depth],
            pending: Pending::new(depth),
            broken: false,
            own_in_flight: 0,
            ending: false,
        }
    }
}

/// A queue at work: the loop's steps.
pub(crate) struct Server<'s, Q, H> {
    pub(crate) queue: &'s mut Q,
    pub(crate) handler: &'s mut H,
    pub(crate) stats: &'s QueueStats,
    pub(crate) state: &'s mut State,
}

impl<Q: Tags, H: QueueHandler> Server<'_, Q, H> {
    /// Before the first turn: the handler's own operations.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        self.hook("start", |handler, io| handler.started(io));
        self.settle()
    }

    /// The handler's turn, before the queue waits.
    pub(crate) fn turn(&mut self) -> io::Result<()> {
        self.hook("turn", |handler, io| handler.turn(io));
        self.settle()
    }

    /// After the last request: returns when the handler has nothing in flight any more, so that its buffers may go.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.state.samples.drain();
        if !self.state.ending {
            self.hook("stop", |handler, io| handler.stopping(io));
            self.state.ending = true;
        }
        while self.state.own_in_flight > 0 {
            self.queue.cancel_own()?;
            self.queue.wait(Some(CANCEL_AGAIN))?;
            while let Some(event) = self.queue.next_event() {
                if let Event::Own { token, result, more } = event {
                    self.own_ended(token, result, more);
                }
            }
        }
        self.settle()
    }

    /// Calls a hook. The handler's state after a panic is its own business: targets share state behind locks that survive
    /// poisoning.
    fn hook(&mut self, what: &str, run: impl FnOnce(&mut H, &mut dyn QueueIo)) {
        let handler = &mut *self.handler;
        let mut io = Io { queue: &mut *self.queue, state: &mut *self.state };
        if catch_unwind(AssertUnwindSafe(|| run(handler, &mut io))).is_err() {
            self.panicked(what);
        }
    }

    /// Asks the handler something; `otherwise` if it panics.
    fn ask(&mut self, what: &str, otherwise: u64, run: impl FnOnce(&H) -> u64) -> u64 {
        let handler = &*self.handler;
        catch_unwind(AssertUnwindSafe(|| run(handler))).unwrap_or_else(|_| {
            self.panicked(what);
            otherwise
        })
    }

    /// The handler has lost count of what it was doing: its pending requests fail, soon.
    fn panicked(&mut self, what: &str) {
        log::error!("the handler panicked ({what}): EIO for what it had pending");
        self.stats.panicked();
        self.state.broken = true;
    }

    fn own_ended(&mut self, token: u64, result: i32, more: bool) {
        if !more {
            self.state.own_in_flight = self.state.own_in_flight.saturating_sub(1);
        }
        self.hook("operation", |handler, io| handler.completed(token, result, io));
    }

    /// Takes the answers to pending requests.
    fn settle(&mut self) -> io::Result<()> {
        let mut now_ns = 0;
        loop {
            if std::mem::take(&mut self.state.broken) {
                self.state.pending.fail_all();
            }
            let Some((request, reply)) = self.state.pending.take_answered() else { return Ok(()) };
            let finished = Finished::new(&request, reply.outcome);
            if reply.due_ns != 0 {
                if now_ns == 0 {
                    now_ns = self.queue.now_ns();
                }
                let due_ns = self.bounded(reply.due_ns, now_ns);
                self.state.deadlines.push(due_ns, finished);
                continue;
            }
            if let (true, Some(op)) = (self.records(&finished), finished.op) {
                if now_ns == 0 {
                    now_ns = self.queue.now_ns();
                }
                self.state.samples.latency(op, now_ns.saturating_sub(finished.fetched_ns), 1);
            }
            self.commit(finished)?;
        }
    }

    /// Completes what is due; gives the time if it had to know it.
    pub(crate) fn complete_due(&mut self) -> io::Result<Option<u64>> {
        if !self.state.batch.any && self.state.deadlines.is_empty() {
            return Ok(None);
        }
        let now_ns = self.queue.now_ns();
        if self.state.batch.any {
            self.state.batch.record(now_ns, &mut self.state.samples);
        }
        while let Some((due_ns, finished)) = self.state.deadlines.pop(now_ns) {
            self.state.samples.lateness(now_ns - due_ns);
            if let (true, Some(op)) = (self.records(&finished), finished.op) {
                self.state.samples.latency(op, now_ns.saturating_sub(finished.fetched_ns), 1);
            }
            self.commit(finished)?;
        }
        Ok(Some(now_ns))
    }

    /// Whether the latency of a request goes into the statistics: when they are kept and its time was taken.
    fn records(&self, finished: &Finished) -> bool {
        self.state.settings.latency_sampling != 0 && finished.fetched_ns != 0
    }

    /// Waits for the kernel, or until the next completion is due, the handler's timer, or `limit_ns`.
    pub(crate) fn wait(&mut self, now_ns: Option<u64>, limit_ns: u64) -> io::Result<()> {
        let timer_ns = self.ask("timer", u64::MAX, QueueHandler::timer_ns);
        let spin_ns = self.ask("spin", 0, QueueHandler::spin_ns);
        if self.state.broken {
            self.settle()?;
        }
        if self.state.announced && self.handler.commits_first() {
            self.queue.submit()?;
            self.tell_committed()?;
        }
        let due_ns = self.state.deadlines.next_ns().unwrap_or(u64::MAX);
        let wake_ns = due_ns.saturating_sub(self.state.settings.spin_ns);
        let wake_ns = if due_ns == u64::MAX { due_ns } else { wake_ns }.min(timer_ns).min(limit_ns);
        if wake_ns == u64::MAX && spin_ns == 0 {
            self.state.samples.drain();
            self.queue.wait(None)?;
        } else {
            let now_ns = now_ns.unwrap_or_else(|| self.queue.now_ns());
            self.wait_until(now_ns, wake_ns, spin_ns)?;
        }
        self.tell_committed()
    }

    /// Waits until `wake_ns` at most, by polling for the first `spin_ns`.
    fn wait_until(&mut self, mut now_ns: u64, wake_ns: u64, spin_ns: u64) -> io::Result<()> {
        if wake_ns <= now_ns {
            std::hint::spin_loop();
            return self.queue.poll();
        }
        if spin_ns > 0 {
            match self.spin(now_ns.saturating_add(spin_ns).min(wake_ns))? {
                Some(spun_ns) if spun_ns < wake_ns => now_ns = spun_ns,
                _ => return Ok(()),
            }
        }
        self.state.samples.drain();
        let limit = (wake_ns != u64::MAX).then(|| Duration::from_nanos(wake_ns - now_ns));
        self.queue.wait(limit)
    }

    /// Polls until the kernel has said something (`None`) or the time is up (the time).
    fn spin(&mut self, until_ns: u64) -> io::Result<Option<u64>> {
        loop {
            for _ in 0..POLLS_BETWEEN_LOOKS {
                self.queue.poll()?;
                if self.queue.ready() {
                    return Ok(None);
                }
                std::hint::spin_loop();
            }
            let now_ns = self.queue.now_ns();
            if now_ns >= until_ns {
                return Ok(Some(now_ns));
            }
        }
    }

    /// Tells the handler that the kernel has what was announced, once it has.
    fn tell_committed(&mut self) -> io::Result<()> {
        if self.state.announced && self.queue.all_submitted() {
            self.state.announced = false;
            if catch_unwind(AssertUnwindSafe(|| self.handler.committed())).is_err() {
                self.panicked("after completions");
                return self.settle();
            }
        }
        Ok(())
    }

    /// Handles what the kernel said; tells how many tags it took away.
    pub(crate) fn take_events(&mut self) -> io::Result<usize> {
        let wants_time = self.state.sampling.chooses() | self.handler.wants_time();
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
                Event::Own { token, result, more } => self.own_ended(token, result, more),
            }
            taken += 1;
            if taken >= EVENTS_BETWEEN_LOOKS && !self.state.deadlines.is_empty() {
                break;
            }
        }
        self.settle()?;
        Ok(stopped)
    }

    fn serve_one(&mut self, tag: u16, fetched_ns: u64) -> io::Result<()> {
        if let Some(flag) = self.state.refused_before.get_mut(usize::from(tag)) {
            *flag = false;
        }
        let Some((finished, due_ns)) = self.handle(tag, fetched_ns) else { return Ok(()) };
        if due_ns != 0 {
            let due_ns = self.bounded(due_ns, fetched_ns);
            self.state.deadlines.push(due_ns, finished);
            return Ok(());
        }
        if let (true, Some(op)) = (self.records(&finished), finished.op) {
            self.state.batch.count(op, fetched_ns);
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
            self.state.announced = true;
            // The request is finished whatever the hook does.
            if catch_unwind(AssertUnwindSafe(|| self.handler.committing(tag))).is_err() {
                self.panicked("before a completion");
            }
            self.stats.finished(op, bytes, failed);
        }
        self.queue.commit(tag, completion.result, completion.append_sector)
    }

    fn send_again(&mut self, tag: u16, errno: i32) -> io::Result<()> {
        self.stats.refused();
        log::error!("tag {tag}: the kernel refused a completion (errno {})", -errno);
        match self.state.refused_before.get_mut(usize::from(tag)) {
            Some(flag) if !*flag => *flag = true,
            _ => return Err(io::Error::from_raw_os_error(-errno)),
        }
        self.queue.commit(tag, -libc::EIO, None)
    }

    /// Lets the handler do the request on `tag`; gives it finished, and when it is due (0 for at once), or nothing if the
    /// handler will answer later.
    fn handle(&mut self, tag: u16, fetched_ns: u64) -> Option<(Finished, u64)> {
        let request = match self.queue.request(tag) {
            Ok(request) => Request { fetched_ns, ..request },
            Err(code) => {
                log::warn!("operation {code} is not known: EOPNOTSUPP");
                self.stats.unknown();
                let completion = Completion { result: -libc::EOPNOTSUPP, append_sector: None };
                return Some((Finished { tag, op: None, bytes: 0, failed: true, fetched_ns, completion }, 0));
            }
        };
        let handler = &mut *self.handler;
        let mut payload = self.queue.payload(&request);
        // As for hooks.
        let reply = catch_unwind(AssertUnwindSafe(|| handler.handle(&request, &mut payload)));
        let reply = reply.unwrap_or_else(|_| {
            log::error!("the handler panicked on {request:?}: EIO");
            self.panicked("request");
            Err(Errno::EIO).into()
        });
        if reply.is_pending() {
            self.state.pending.add(request);
            return None;
        }
        Some((Finished::new(&request, reply.outcome), reply.due_ns))
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
