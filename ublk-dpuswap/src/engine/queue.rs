//! One ublk queue: requests become operations on pages, and wait for remote ones without holding anybody up.
//!
//! A write stores its pages in the cache one after the other, and waits where there is no room. A read serves what is here,
//! asks nodes for the rest and completes when every page is there; what fails is planned again, since the page may be
//! somewhere else by then.
//!
//! Invariant: a request that waits is in `waiting` with a deadline, or has operations under way that end. It is planned again
//! when what it waits for has happened ([`Causes`]), so that a thousand of them cost nothing; the clock is only for deadlines,
//! and for causes that nobody tells.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::nodes::REFUSED_PATIENCE;
use super::readahead::ReadAhead;
use super::reads::{NoRead, Reads, Wanted};
use super::{Shared, State};
use crate::alloc;
use crate::codec::{self, Codec, Compressor};
use crate::error::{Error, IoError};
use crate::links::{LinkStart, Links};
use crate::model::Mapping;
use crate::units::{MAX_NODES, NodeId, PAGE_BYTES, PageNo};
use ublk_target::clock::monotonic_ns;
use ublk_target::{Done, Errno, Op, Payload, QueueHandler, QueueIo, Reply, Request};

/// Most pages of a request (512 KiB).
pub const MAX_REQUEST_PAGES: usize = 128;
/// Sectors (512 bytes) of a page.
const PAGE_SECTORS: u64 = PAGE_BYTES as u64 / 512;
/// Reads under way at once, over all nodes.
const OPS: usize = 512;
/// Pages dropped per hold of the lock.
const DISCARD_PAGES: u32 = 1024;
/// The token of the eventfd's reads; those of the links come after it.
const EVENT_TOKEN: u64 = 1;
const FIRST_LINK_TOKEN: u64 = 2;
/// While requests wait, their deadlines are looked at this often.
const LOOK_AGAIN_NS: u64 = 100_000_000;
/// One that waits for a node is planned again after this long, whatever has not been said.
const PLAN_AGAIN_NS: u64 = 1_000_000_000;
/// How often one request may be planned again.
const ATTEMPTS: u32 = 4096;

/// How other threads reach a queue: a mailbox of new connections, and an eventfd that its ring reads.
pub(super) struct Waker {
    event: OwnedFd,
    /// It is woken because there may be room in the cache.
    room: AtomicBool,
    mail: Mutex<Vec<(NodeId, u32, LinkStart)>>,
}

impl Waker {
    pub(super) fn new() -> Result<Self, Error> {
        // SAFETY: eventfd takes plain numbers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            let source = std::io::Error::last_os_error();
            return Err(Error::System { what: "an eventfd".to_owned(), source });
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { event, room: AtomicBool::new(false), mail: Mutex::new(Vec::with_capacity(MAX_NODES)) })
    }

    pub(super) fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes of a live array. A full counter has woken the queue already.
        unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub(super) fn wake_for_room(&self) {
        self.room.store(true, Ordering::Release);
        self.wake();
    }

    /// Leaves a new connection for the queue.
    pub(super) fn post(&self, node: NodeId, generation: u32, start: LinkStart) {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        mail.retain(|(known, ..)| *known != node);
        mail.push((node, generation, start));
    }

    fn take(&self) -> Option<(NodeId, u32, LinkStart)> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Idle,
    Read,
    Write,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// For operations under way, if anything.
    No,
    /// Must be planned again at once.
    Plan,
    /// For room in the cache.
    Room,
    /// For an operation to be free.
    Op,
    /// For an operation on this node's link to end: it takes no more.
    Link(NodeId),
    /// For a node.
    Node(NodeId),
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    kind: Kind,
    first: PageNo,
    count: u32,
    /// Pages of a read that are still to be had, by bit.
    todo: u128,
    /// The next page of a write.
    next: u32,
    /// Operations under way.
    left: u32,
    waiting: Waiting,
    /// When waiting has lasted too long; 0 while it has not begun.
    deadline_ns: u64,
    /// When one that waits for a node is planned again without a cause.
    plan_by_ns: u64,
    attempts: u32,
    /// It completes no earlier than this.
    due_ns: u64,
    /// How many answers were not what was written.
    damaged: u32,
    error: Option<IoError>,
}

const NOTHING: Pending = Pending {
    kind: Kind::Idle,
    first: PageNo(0),
    count: 0,
    todo: 0,
    next: 0,
    left: 0,
    waiting: Waiting::No,
    deadline_ns: 0,
    plan_by_ns: 0,
    attempts: 0,
    due_ns: 0,
    damaged: 0,
    error: None,
};

/// The requests of a queue, by tag.
pub(super) struct Requests {
    pending: Box<[Pending]>,
    /// Tags that may be able to go on, or to end, by bit; looked at once per turn.
    touched: Box<[u64]>,
}

impl Requests {
    fn new(depth: u16) -> Self {
        let pending = vec![NOTHING; usize::from(depth)].into_boxed_slice();
        Self { pending, touched: vec![0; usize::from(depth).div_ceil(64)].into_boxed_slice() }
    }

    fn get(&mut self, tag: u16) -> Option<&mut Pending> {
        self.pending.get_mut(usize::from(tag))
    }

    fn touch(&mut self, tag: u16) {
        if let Some(word) = self.touched.get_mut(usize::from(tag) / 64) {
            *word |= 1 << (tag % 64);
        }
    }

    fn any_touched(&self) -> bool {
        self.touched.iter().any(|word| *word != 0)
    }

    fn take_touched(&mut self) -> Option<u16> {
        let (at, word) = (0u16..).zip(&mut self.touched).find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros() as u16;
        *word &= *word - 1;
        Some(at * 64 + bit)
    }

    pub(super) fn started(&mut self, tag: u16) {
        if let Some(pending) = self.get(tag) {
            pending.left += 1;
        }
    }

    pub(super) fn ended(&mut self, tag: u16) {
        if let Some(pending) = self.get(tag) {
            pending.left = pending.left.saturating_sub(1);
        }
        self.touch(tag);
    }

    pub(super) fn got(&mut self, tag: u16, index: u32) {
        if let Some(pending) = self.get(tag) {
            pending.todo &= !(1u128.checked_shl(index).unwrap_or(0));
        }
    }

    pub(super) fn not_before(&mut self, tag: u16, due_ns: u64) {
        if let Some(pending) = self.get(tag) {
            pending.due_ns = pending.due_ns.max(due_ns);
        }
    }

    pub(super) fn fail(&mut self, tag: u16, error: IoError) {
        if let Some(pending) = self.get(tag) {
            pending.error.get_or_insert(error);
        }
    }

    /// Counts a bad answer; gives how many there were.
    pub(super) fn damaged(&mut self, tag: u16) -> u32 {
        let Some(pending) = self.get(tag) else { return 0 };
        pending.damaged += 1;
        pending.damaged
    }

    /// The request waits until operations on a node's link have ended.
    pub(super) fn wait_for_link(&mut self, tag: u16, node: NodeId) {
        if let Some(pending) = self.get(tag) {
            pending.waiting = Waiting::Link(node);
        }
    }

    pub(super) fn plan_again(&mut self, tag: u16) {
        if let Some(pending) = self.get(tag).filter(|pending| pending.waiting == Waiting::No) {
            pending.waiting = Waiting::Plan;
        }
        self.touch(tag);
    }
}

/// A cached payload, copied out and still to be restored.
#[derive(Debug, Clone, Copy)]
struct Copied {
    index: u32,
    codec: Codec,
    from: usize,
    len: usize,
}

/// What is to become of a request.
enum Step {
    Done(Result<(), IoError>),
    Wait,
}

/// What may let requests that wait go on.
#[derive(Debug, Clone, Copy)]
struct Causes {
    /// There may be room in the cache.
    room: bool,
    /// A node has come or gone.
    node: bool,
    /// Operations have ended: by node, a bit each.
    ended: u64,
    /// Deadlines are to be looked at.
    time: bool,
}

/// The handler of one queue.
pub struct QueueWorker {
    shared: Arc<Shared>,
    queue: u16,
    requests: Requests,
    reads: Reads,
    read_ahead: ReadAhead,
    compressor: Compressor,
    /// Cached payloads on their way out of the lock.
    buffer: Box<[u8]>,
    wanted: Vec<Wanted>,
    copied: Vec<Copied>,
    begun: Vec<u32>,
    event_word: Box<u64>,
    changes_seen: u32,
    woken: bool,
    /// Listening to other threads has failed: it is tried again when there is time.
    deaf: bool,
    /// A connection may have ended, with nothing under way on it that would say so.
    link_ended: bool,
    /// When reads under way, or touched requests, are to be looked at.
    look_at_ns: u64,
    /// When requests that wait are.
    wait_look_ns: u64,
    /// Where to begin among those that wait for room, and for an operation: the first of them goes first the next time too.
    first_for_room: u16,
    first_for_op: u16,
    /// The time, as far as it was asked for since the queue slept last; 0 when it was not. Where a reading is a system call it
    /// costs more than all that is done for a page ([`QueueWorker::now_ns`]).
    known_ns: u64,
    #[cfg(test)]
    last_error: Option<IoError>,
    #[cfg(test)]
    planned_again: u64,
    #[cfg(test)]
    panic_before_send: bool,
}

impl QueueWorker {
    pub(super) fn new(shared: &Arc<Shared>, queue: u16, depth: u16) -> Self {
        let links = Links::new(MAX_NODES, OPS, FIRST_LINK_TOKEN);
        Self {
            reads: Reads::new(shared, links, OPS),
            read_ahead: ReadAhead::new(shared.config.read_ahead),
            shared: Arc::clone(shared),
            queue,
            requests: Requests::new(depth),
            compressor: Compressor::new(),
            buffer: vec![0; MAX_REQUEST_PAGES * PAGE_BYTES].into_boxed_slice(),
            wanted: Vec::with_capacity(MAX_REQUEST_PAGES),
            copied: Vec::with_capacity(MAX_REQUEST_PAGES),
            begun: Vec::with_capacity(MAX_REQUEST_PAGES),
            event_word: Box::new(0),
            changes_seen: u32::MAX,
            woken: true,
            link_ended: false,
            deaf: false,
            look_at_ns: u64::MAX,
            wait_look_ns: u64::MAX,
            first_for_room: 0,
            first_for_op: 0,
            known_ns: 0,
            #[cfg(test)]
            last_error: None,
            #[cfg(test)]
            planned_again: 0,
            #[cfg(test)]
            panic_before_send: false,
        }
    }

    /// The time, read once per wake-up at most.
    fn now_ns(&mut self) -> u64 {
        if self.known_ns == 0 {
            self.known_ns = monotonic_ns();
        }
        self.known_ns
    }

    fn listen(&mut self, io: &mut dyn QueueIo) {
        let Some(waker) = self.shared.wakers.get(usize::from(self.queue)) else { return };
        let into: *mut u64 = &raw mut *self.event_word;
        let read = opcode::Read::new(types::Fd(waker.event.as_raw_fd()), into.cast(), 8).build();
        // SAFETY: the word is on the heap and lives as long as the handler, which outlives its operations.
        if let Err(error) = unsafe { io.push(read, EVENT_TOKEN) } {
            log::error!("queue {}: cannot listen to other threads: {error}", self.queue);
        }
    }

    /// Takes up new connections and drops those whose node is down. Gives whether a node has changed.
    fn follow_nodes(&mut self, io: &mut dyn QueueIo) -> bool {
        let changes = self.shared.changes.load(Ordering::Acquire);
        if changes == self.changes_seen {
            return false;
        }
        self.changes_seen = changes;
        let shared = Arc::clone(&self.shared);
        let Some(waker) = shared.wakers.get(usize::from(self.queue)) else { return true };
        {
            let state = shared.state();
            for (slot, generation) in (0u16..).map(NodeId).zip(self.reads.link_generation) {
                let current = state.is_up(slot) && state.generation(slot) == generation;
                if !current && self.reads.links.is_open(slot) {
                    self.reads.links.close(slot);
                }
            }
        }
        while let Some((node, generation, start)) = waker.take() {
            if self.reads.links.is_open(node) {
                self.reads.links.close(node);
            }
            let opened = alloc::allowed(|| self.reads.links.open(node, start, io));
            match opened {
                Ok(()) => {
                    if let Some(known) = self.reads.link_generation.get_mut(usize::from(node.0)) {
                        *known = generation;
                    }
                }
                Err(source) => {
                    let failed = crate::remote::RemoteError::Connect(source);
                    shared.node_failed(node, generation, failed);
                }
            }
        }
        true
    }

    /// A connection that ended while nothing was under way on it says so to nobody: its node is down, and its keeper connects
    /// it again.
    fn tell_broken_links(&self) {
        for (slot, generation) in (0u16..).map(NodeId).zip(self.reads.link_generation) {
            let current = {
                let state = self.shared.state();
                state.is_up(slot) && state.generation(slot) == generation
            };
            if current && !self.reads.links.is_open(slot) {
                self.shared.node_failed(slot, generation, crate::remote::RemoteError::Closed);
            }
        }
    }

    fn begin(&mut self, request: &Request, payload: &mut Payload<'_>) -> Result<Step, Errno> {
        if request.op == Op::Flush {
            return Ok(Step::Done(Ok(())));
        }
        let (first, count) = pages_of(request)?;
        if u64::from(first.0) + u64::from(count) > u64::from(self.shared.config.pages) {
            return Err(errno(IoError::Range));
        }
        let kind = match request.op {
            Op::Read => Kind::Read,
            Op::Write => Kind::Write,
            // A dropped page reads as zeros, which is all that write-zeroes asks.
            Op::Discard | Op::WriteZeroes => {
                self.discard(first, count);
                return Ok(Step::Done(Ok(())));
            }
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let data = payload.buffer_mut().ok_or(Errno::EIO)?;
        if count as usize > MAX_REQUEST_PAGES || data.len() != count as usize * PAGE_BYTES {
            return Err(errno(IoError::Range));
        }
        let todo = if count as usize == MAX_REQUEST_PAGES { u128::MAX } else { (1 << count) - 1 };
        let pending = self.requests.get(request.tag).ok_or(Errno::EIO)?;
        *pending = Pending { kind, first, count, todo, ..NOTHING };
        Ok(self.go_on(request.tag, data, true))
    }

    /// Does what can be done of a request now.
    fn go_on(&mut self, tag: u16, data: &mut [u8], fresh: bool) -> Step {
        let step = match self.requests.get(tag).map(|pending| pending.kind) {
            Some(Kind::Read) => self.plan(tag, data, fresh),
            Some(Kind::Write) => self.store(tag, data),
            _ => Step::Done(Err(IoError::Retries)),
        };
        let Some(pending) = self.requests.get(tag) else { return step };
        let waiting = pending.waiting;
        if matches!(step, Step::Done(_)) {
            *pending = NOTHING;
        } else if waiting != Waiting::No {
            let now_ns = self.now_ns();
            if let Some(pending) = self.requests.get(tag) {
                pending.plan_by_ns = now_ns + PLAN_AGAIN_NS;
            }
            self.wait_look_ns = self.wait_look_ns.min(now_ns + LOOK_AGAIN_NS);
        }
        step
    }

    fn discard(&self, first: PageNo, count: u32) {
        let end = first.0 + count;
        let mut next = first.0;
        while next < end {
            let stop = end.min(next.saturating_add(DISCARD_PAGES));
            let mut state = self.shared.state();
            (next..stop).for_each(|page| state.model.discard(PageNo(page)));
            let wanted = std::mem::take(&mut state.room_wanted);
            drop(state);
            if wanted {
                self.shared.wake_queues();
            }
            next = stop;
        }
        self.shared.counters.pages_discarded.fetch_add(u64::from(count), Ordering::Relaxed);
    }

    /// Stores the pages of a write, from where it stopped.
    fn store(&mut self, tag: u16, data: &[u8]) -> Step {
        let Some(pending) = self.requests.pending.get_mut(usize::from(tag)) else {
            return Step::Done(Err(IoError::Retries));
        };
        let (shared, counters) = (&self.shared, &self.shared.counters);
        for page in data.chunks_exact(PAGE_BYTES).skip(pending.next as usize) {
            let number = PageNo(pending.first.0 + pending.next);
            if !shared.config.safeguards.no_alloc {
                std::hint::black_box(vec![0u8; PAGE_BYTES]);
            }
            if let Some(pattern) = codec::same_filled(page) {
                shared.state().model.put_same_filled(number, pattern);
                counters.same_filled_written.fetch_add(1, Ordering::Relaxed);
            } else {
                let (codec, payload) = self.compressor.compress(page);
                let mut state = shared.state();
                if state.model.put(number, codec, payload).is_err() {
                    state.room_wanted = true;
                    state.flush_wanted = true;
                    let no_room = state.no_room;
                    drop(state);
                    shared.flush.notify_one();
                    counters.waited_for_room.fetch_add(1, Ordering::Relaxed);
                    pending.waiting = Waiting::Room;
                    return self.wait_for_room(tag, no_room);
                }
                shared.wake_flusher(&mut state);
                drop(state);
                counters.raw_written.fetch_add(u64::from(codec == Codec::Raw), Ordering::Relaxed);
                counters.payload_bytes_written.fetch_add(payload.len() as u64, Ordering::Relaxed);
            }
            pending.next += 1;
            pending.deadline_ns = 0;
        }
        counters.pages_written.fetch_add(u64::from(pending.count), Ordering::Relaxed);
        Step::Done(Ok(()))
    }

    /// Where nobody has had room for a while, a write fails at once: the kernel keeps the page, and is not held up besides.
    fn wait_for_room(&mut self, tag: u16, no_room: Option<(IoError, Instant)>) -> Step {
        let now_ns = self.now_ns();
        let config = &self.shared.config;
        let Some(pending) = self.requests.pending.get_mut(usize::from(tag)) else {
            return Step::Done(Err(IoError::Retries));
        };
        if pending.deadline_ns == 0 {
            pending.deadline_ns = now_ns + config.room_patience.as_nanos() as u64;
        }
        match no_room {
            Some((error, since)) if super::over(since, config.no_room_patience) => Step::Done(Err(error)),
            _ if now_ns >= pending.deadline_ns => {
                Step::Done(Err(no_room.map_or(IoError::Retries, |(error, _)| error)))
            }
            _ => Step::Wait,
        }
    }

    /// Serves the pages of a read that are here and begins reads for the others.
    fn plan(&mut self, tag: u16, data: &mut [u8], fresh: bool) -> Step {
        let shared = Arc::clone(&self.shared);
        let Some(pending) = self.requests.pending.get_mut(usize::from(tag)) else {
            return Step::Done(Err(IoError::Retries));
        };
        pending.waiting = Waiting::No;
        if pending.attempts > ATTEMPTS {
            return Step::Done(Err(IoError::Retries));
        }
        // After a bad answer the copies are asked in turn.
        let turn = pending.damaged;
        let mut trouble = None;
        self.begun.clear();
        let copied;
        {
            let mut guard = shared.state();
            let state = &mut *guard;
            copied = self.look_up(state, tag, data, fresh);
            self.wanted.sort_unstable_by_key(|wanted| (wanted.at.block, wanted.at.offset_units));
            let cache = state.model.cache();
            let (used, wasted) = (cache.ahead_used, cache.ahead_wasted);
            let mut done = 0;
            while copied && done < self.wanted.len() {
                let ahead = self.read_ahead.window_bytes(used, wasted);
                match self.reads.begin(state, tag, &self.wanted[done..], ahead, turn) {
                    Ok((op, covered)) => {
                        self.begun.push(op);
                        done += covered;
                    }
                    Err(why) => {
                        trouble = Some((why, self.wanted[done].at.block));
                        break;
                    }
                }
            }
        }
        let mut restored = self.restore_copied(tag, data);
        if !copied {
            restored = Err(IoError::Retries);
        }
        if let Some(pending) = self.requests.get(tag).filter(|_| !self.begun.is_empty()) {
            pending.attempts += 1;
            pending.deadline_ns = 0;
        }
        for _ in &self.begun {
            self.requests.started(tag);
        }
        #[cfg(test)]
        assert!(!std::mem::take(&mut self.panic_before_send), "on purpose, before a read is sent");
        for at in 0..self.begun.len() {
            let now_ns = self.now_ns();
            self.reads.send(&shared, &mut self.requests, self.begun[at], now_ns);
        }
        self.outcome_of_plan(tag, restored, trouble.map(|(why, _)| why))
    }

    fn outcome_of_plan(&mut self, tag: u16, restored: Result<(), IoError>, trouble: Option<NoRead>) -> Step {
        let now_ns = if trouble.is_some() { self.now_ns() } else { 0 };
        let shared = Arc::clone(&self.shared);
        let Some(pending) = self.requests.get(tag) else { return Step::Done(Err(IoError::Retries)) };
        if let Err(error) = restored {
            pending.error.get_or_insert(error);
        }
        match trouble {
            None => {}
            Some(NoRead::Lost) => {
                pending.error.get_or_insert(IoError::Lost);
            }
            Some(NoRead::NoOp) => pending.waiting = Waiting::Op,
            Some(NoRead::NoCopy(node)) => {
                self.link_ended = true;
                pending.waiting = Waiting::Node(node);
                if pending.deadline_ns == 0 {
                    pending.deadline_ns = now_ns + shared.config.node_patience.as_nanos() as u64;
                }
                if shared.given_up(node, now_ns >= pending.deadline_ns) {
                    pending.error.get_or_insert(IoError::NodeDown(node));
                }
            }
        }
        self.finish_if_done(tag)
    }

    /// Whether a read is at its end: nothing under way, and every page there or an error.
    fn finish_if_done(&mut self, tag: u16) -> Step {
        let Some(pending) = self.requests.get(tag) else { return Step::Wait };
        if pending.left > 0 {
            return Step::Wait;
        }
        match (pending.error, pending.todo) {
            (Some(error), _) => Step::Done(Err(error)),
            (None, 0) => Step::Done(Ok(())),
            (None, _) => Step::Wait,
        }
    }

    /// Sorts the pages that are still to be had by where they are. `false` when a cached one could not be copied.
    fn look_up(&mut self, state: &mut State, tag: u16, data: &mut [u8], fresh: bool) -> bool {
        let Some(pending) = self.requests.pending.get_mut(usize::from(tag)) else { return false };
        let counters = &self.shared.counters;
        let count = |counter: &std::sync::atomic::AtomicU64| {
            counter.fetch_add(u64::from(fresh), Ordering::Relaxed);
        };
        self.wanted.clear();
        self.copied.clear();
        let mut used = 0;
        for (index, page) in (0u32..).zip(data.chunks_exact_mut(PAGE_BYTES)) {
            let bit = 1u128 << index;
            if pending.todo & bit == 0 {
                continue;
            }
            let number = PageNo(pending.first.0 + index);
            match state.model.mapping(number) {
                Mapping::Absent => {
                    page.fill(0);
                    count(&counters.reads_absent);
                }
                Mapping::SameFilled(pattern) => {
                    codec::fill(page, pattern);
                    count(&counters.reads_same_filled);
                }
                Mapping::Cached(id) => {
                    let room = self.buffer.get_mut(used..).unwrap_or_default();
                    let Some(entry) = state.model.read_cached(id, room) else { return false };
                    let len = entry.payload_bytes as usize;
                    self.copied.push(Copied { index, codec: entry.codec, from: used, len });
                    used += len;
                    count(match (entry.dirty, entry.filled, entry.ahead) {
                        (true, ..) => &counters.hits_dirty,
                        (false, false, _) => &counters.hits_written,
                        (false, true, false) => &counters.hits_filled,
                        (false, true, true) => &counters.hits_ahead,
                    });
                }
                Mapping::Remote(at) => {
                    self.wanted.push(Wanted { at, page: number, index });
                    count(&counters.misses);
                    continue;
                }
            }
            pending.todo &= !bit;
        }
        true
    }

    fn restore_copied(&mut self, tag: u16, data: &mut [u8]) -> Result<(), IoError> {
        for copied in &self.copied {
            let page = data.chunks_exact_mut(PAGE_BYTES).nth(copied.index as usize);
            let payload = self.buffer.get(copied.from..copied.from + copied.len);
            let decompressor = self.reads.decompressor();
            let restored = page
                .zip(payload)
                .is_some_and(|(page, payload)| decompressor.decompress(copied.codec, payload, page));
            if !restored {
                let number = self.requests.get(tag).map_or(0, |pending| pending.first.0) + copied.index;
                log::error!("page {number}: its copy in the cache cannot be restored");
                return Err(IoError::Retries);
            }
        }
        Ok(())
    }

    /// The error of the last request, which the kernel sees as an errno only.
    #[cfg(test)]
    pub(super) fn take_error(&mut self) -> Option<IoError> {
        self.last_error.take()
    }

    /// How often a waiting request was planned again.
    #[cfg(test)]
    pub(super) fn planned_again(&self) -> u64 {
        self.planned_again
    }

    /// The next plan panics between the beginning of its reads and their sending.
    #[cfg(test)]
    pub(super) fn panic_before_send(&mut self) {
        self.panic_before_send = true;
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.reads.under_way()
    }

    fn count_end(&mut self, pending: &Pending, result: &Result<(), IoError>) {
        #[cfg(test)]
        {
            self.last_error = result.as_ref().err().copied();
        }
        let counters = &self.shared.counters;
        match (pending.kind, result) {
            (Kind::Read, Ok(())) => {
                counters.pages_read.fetch_add(u64::from(pending.count), Ordering::Relaxed);
            }
            (Kind::Read, Err(error)) => {
                counters.read_errors.fetch_add(1, Ordering::Relaxed);
                if let IoError::NodeDown(node) | IoError::Record(node, _) = error {
                    counters.count_failed_read(*node);
                }
            }
            (Kind::Write, Err(_)) => {
                counters.write_errors.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Goes on with the requests that something has happened to, and with those whose waiting may be over.
    fn attend(&mut self, io: &mut dyn QueueIo, causes: Causes) {
        while let Some(tag) = self.requests.take_touched() {
            let waits_for_op = self.requests.get(tag).is_some_and(|pending| {
                let waits = matches!(pending.waiting, Waiting::Op | Waiting::Link(_));
                waits && pending.left == 0 && pending.todo != 0 && pending.error.is_none()
            });
            // Planned again when operations have ended: now nothing is free.
            if !waits_for_op {
                self.attend_one(tag, io);
            }
        }
        if causes.node || causes.time {
            self.attend_late(io, causes);
        }
        let ended = if causes.time { u64::MAX } else { causes.ended };
        if ended != 0 {
            self.attend_links(io, ended);
            self.first_for_op = self.attend_in_turn(io, self.first_for_op, Waiting::Op);
        }
        if causes.room || causes.time {
            self.first_for_room = self.attend_in_turn(io, self.first_for_room, Waiting::Room);
        }
        if causes.time && self.requests.pending.iter().any(|pending| pending.waiting != Waiting::No) {
            self.wait_look_ns = self.wait_look_ns.min(self.now_ns() + LOOK_AGAIN_NS);
        }
    }

    /// Those that wait for what is shared out, one after the other, until one finds nothing left. Gives that one.
    fn attend_in_turn(&mut self, io: &mut dyn QueueIo, first: u16, what: Waiting) -> u16 {
        let count = self.requests.pending.len() as u16;
        for tag in (first..count).chain(0..first) {
            let waits = |pending: &mut Pending| pending.waiting == what && pending.left == 0;
            if !self.requests.get(tag).is_some_and(waits) {
                continue;
            }
            self.attend_one(tag, io);
            if self.requests.get(tag).is_some_and(waits) {
                return tag;
            }
        }
        first
    }

    /// Those that wait for links on which operations have ended, or nothing is under way; of each until it takes no more.
    fn attend_links(&mut self, io: &mut dyn QueueIo, ended: u64) {
        let (count, first) = (self.requests.pending.len() as u16, self.first_for_op);
        let mut open = ended;
        for tag in (first..count).chain(0..first) {
            let Some(pending) = self.requests.get(tag).copied() else { return };
            let Waiting::Link(node) = pending.waiting else { continue };
            let bit = 1u64.checked_shl(node.0.into()).unwrap_or(0);
            if pending.left > 0 || open & bit == 0 && !self.reads.is_quiet(node) {
                continue;
            }
            self.attend_one(tag, io);
            if self.requests.get(tag).is_some_and(|pending| pending.waiting == Waiting::Link(node)) {
                open &= !bit;
            }
        }
    }

    /// Those that wait for a node, when one has changed; and all that have waited too long.
    fn attend_late(&mut self, io: &mut dyn QueueIo, causes: Causes) {
        let no_room = self.shared.state().no_room;
        let patience = self.shared.config.no_room_patience;
        let no_room = no_room.is_some_and(|(_, since)| super::over(since, patience));
        let now_ns = self.now_ns();
        for tag in 0..self.requests.pending.len() as u16 {
            let Some(pending) = self.requests.get(tag).copied() else { return };
            let over = causes.time && pending.deadline_ns != 0 && now_ns >= pending.deadline_ns;
            let ready = match pending.waiting {
                Waiting::No | Waiting::Op | Waiting::Link(_) => false,
                Waiting::Plan => true,
                Waiting::Room => over || causes.time && no_room,
                Waiting::Node(node) => {
                    let late = now_ns >= pending.plan_by_ns;
                    causes.node || over || late || self.shared.given_up(node, false)
                }
            };
            if ready {
                self.attend_one(tag, io);
            }
        }
    }

    fn attend_one(&mut self, tag: u16, io: &mut dyn QueueIo) {
        let Some(pending) = self.requests.get(tag).copied().filter(|pending| pending.kind != Kind::Idle)
        else {
            return;
        };
        // With operations under way it is too early to plan: the pages that they bring are still to be had, too.
        let step = if pending.waiting != Waiting::No && pending.error.is_none() {
            if pending.left > 0 {
                return;
            }
            let mut payload = io.payload(tag);
            match payload.buffer_mut() {
                Some(data) => {
                    #[cfg(test)]
                    {
                        self.planned_again += 1;
                    }
                    self.go_on(tag, data, false)
                }
                None => Step::Done(Err(IoError::Retries)),
            }
        } else {
            self.finish_if_done(tag)
        };
        if let Step::Done(result) = step {
            self.count_end(&pending, &result);
            let due_ns = self.requests.get(tag).map_or(0, |pending| pending.due_ns).max(pending.due_ns);
            if let Some(pending) = self.requests.get(tag) {
                *pending = NOTHING;
            }
            io.complete(tag, Reply::at(result.map(|()| Done::Whole).map_err(errno), due_ns));
        }
    }
}

impl QueueHandler for QueueWorker {
    fn handle(&mut self, request: &Request, payload: &mut Payload<'_>) -> Reply {
        if request.fetched_ns != 0 {
            self.known_ns = request.fetched_ns;
        }
        match self.begin(request, payload) {
            Err(errno) => Err(errno).into(),
            Ok(Step::Wait) => Reply::pending(),
            Ok(Step::Done(result)) => {
                let kind = if request.op == Op::Read { Kind::Read } else { Kind::Write };
                let count = request.sectors / PAGE_SECTORS as u32;
                self.count_end(&Pending { kind, count, ..NOTHING }, &result);
                result.map(|()| Done::Whole).map_err(errno).into()
            }
        }
    }

    /// A request that was answered behind our back, because we panicked: its operations must not meet the tag's next one.
    fn committing(&mut self, tag: u16) {
        if let Some(pending) = self.requests.get(tag).filter(|pending| pending.kind != Kind::Idle) {
            *pending = NOTHING;
            self.reads.forget(&self.shared, tag);
            // Answers to others may lie there, and nobody else says so.
            self.look_at_ns = self.now_ns();
        }
    }

    fn started(&mut self, io: &mut dyn QueueIo) {
        self.shared.protect_thread();
        self.listen(io);
        self.follow_nodes(io);
        self.reads.links.submit(io);
        alloc::watch_this_thread();
    }

    fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
        if token == EVENT_TOKEN {
            self.woken = true;
            self.deaf = result < 0;
            if result >= 0 && !self.shared.stopping() {
                self.listen(io);
            }
        } else {
            self.reads.links.completed(token, result, io);
            self.link_ended |= result <= 0;
        }
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        let node = self.woken && self.follow_nodes(io);
        let busy = self.reads.under_way() > 0;
        let idle = !busy && !self.woken && !self.link_ended && !self.deaf;
        if idle && !self.requests.any_touched() && self.timer_ns() == u64::MAX {
            self.known_ns = 0;
            return;
        }
        let now_ns = self.now_ns();
        let shared = Arc::clone(&self.shared);
        self.reads.take_arrivals(&shared, &mut self.requests, now_ns, io);
        if now_ns >= self.look_at_ns {
            self.look_at_ns = u64::MAX;
        }
        let time = now_ns >= self.wait_look_ns;
        if time {
            self.wait_look_ns = u64::MAX;
        }
        if std::mem::take(&mut self.link_ended) {
            self.tell_broken_links();
        }
        if self.deaf && !shared.stopping() {
            if time {
                self.deaf = false;
                self.listen(io);
            } else {
                self.wait_look_ns = self.wait_look_ns.min(now_ns + LOOK_AGAIN_NS);
            }
        }
        let waker = self.shared.wakers.get(usize::from(self.queue));
        let room = self.woken && waker.is_some_and(|waker| waker.room.swap(false, Ordering::Acquire));
        let ended = self.reads.take_ended();
        self.woken = false;
        self.attend(io, Causes { room, node, ended, time });
        if self.reads.under_way() > 0 {
            let next_ns = self.reads.look_at_time(&shared, &mut self.requests, now_ns);
            self.look_at_ns = self.look_at_ns.min(next_ns);
        }
        self.reads.links.submit(io);
        if self.requests.any_touched() || self.reads.has_ended() {
            self.look_at_ns = now_ns;
        }
        self.known_ns = 0;
    }

    fn timer_ns(&self) -> u64 {
        self.look_at_ns.min(self.wait_look_ns)
    }

    fn spin_ns(&self) -> u64 {
        if self.reads.under_way() > 0 { self.shared.config.spin.as_nanos() as u64 } else { 0 }
    }

    fn stopping(&mut self, _: &mut dyn QueueIo) {
        for slot in (0..MAX_NODES as u16).map(NodeId) {
            if self.reads.links.is_open(slot) {
                self.reads.links.close(slot);
            }
        }
    }
}

impl Shared {
    fn wake_flusher(&self, state: &mut State) {
        if !state.flush_wanted && state.model.cache().dirty_permille() >= self.config.flush_start_permille {
            state.flush_wanted = true;
            self.flush.notify_one();
        }
    }

    /// Whether a node that is down has been waited for long enough. One that is up will be connected in a moment.
    fn given_up(&self, node: NodeId, waited: bool) -> bool {
        let state = self.state();
        let Some(known) = state.nodes.get(usize::from(node.0)) else { return true };
        let patience = self.config.node_patience;
        let patience: Duration = if known.refused { patience.min(REFUSED_PATIENCE) } else { patience };
        !known.up && (waited || super::over(known.down_since, patience))
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

/// What the kernel is told. It keeps a page whose swap-out failed, and ends the process whose swap-in failed.
fn errno(error: IoError) -> Errno {
    match error {
        IoError::Range => Errno::new(libc::EINVAL),
        IoError::NoSpace => Errno::ENOSPC,
        IoError::NodeDown(_) | IoError::Lost | IoError::Record(..) | IoError::NoNode | IoError::Retries => {
            Errno::EIO
        }
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
