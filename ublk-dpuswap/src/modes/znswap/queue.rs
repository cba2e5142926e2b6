//! The queue of the zoned swap device: requests to reads and writes of zones, and the moving of pages beside them.
//!
//! Everything runs on the queue's thread, in its ring; only resets have a thread of their own. Data passes through buffers of
//! this queue, since direct I/O wants them aligned. The invariant: a writer has one write in flight, so what reaches a zone
//! reaches it at its write pointer.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::{opcode, squeue, types};
use ublk_target::{Done, Errno, Op, Payload, QueueHandler, QueueIo, Reply, Request};

use super::model::{Model, Place, Run};
use super::resets::Resets;
use super::{MAX_IO_PAGES, Media, OPERATIONS, Report};
use crate::modes::{PageBuffer, buffers, pages_of};
use crate::units::PAGE_BYTES;

/// Pages moved at a time (256 KiB).
const MOVE_PAGES: usize = 64;
/// Failed writes of moved pages, one after the other, until the SSD counts as unusable.
const MOST_FAILURES: u32 = 8;
const NONE: u32 = u32::MAX;

/// A request at work.
#[derive(Clone, Copy)]
struct Task {
    active: bool,
    op: Op,
    page: u32,
    count: u32,
    /// Pages whose I/O was started.
    next: u32,
    /// Operations in flight.
    flying: u32,
    failed: Option<Errno>,
}

/// An operation in flight.
#[derive(Clone, Copy)]
enum Work {
    Free,
    Event,
    Read { tag: u16, zone: u32, bytes: u32 },
    Write { tag: u16, writer: u16, page: u32, run: Run },
    MoveRead { bytes: u32 },
    MoveWrite { run: Run },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Reading,
    Writing,
}

/// The moving of pages out of a victim.
struct Mover {
    victim: u32,
    /// Where in the victim to look next.
    from: u32,
    phase: Phase,
    items: Vec<(u32, Place)>,
    /// Items whose copy was written.
    written: usize,
    flying: u32,
    failed: bool,
    failures: u32,
}

/// The handler.
pub struct ZnQueue {
    media: Arc<dyn Media>,
    model: Model,
    tasks: Vec<Task>,
    /// Per tag [`MAX_IO_PAGES`], then the mover's, then one for the event.
    pages: Vec<PageBuffer>,
    works: Vec<Work>,
    free: Vec<u16>,
    reads: VecDeque<u16>,
    writes: VecDeque<u16>,
    busy: Vec<bool>,
    mover: Mover,
    resets: Resets,
    listening: bool,
    stopping: bool,
    /// A hook panicked: what is in flight is not known any more.
    poisoned: bool,
    stalled: bool,
    report: Report,
    shown: Arc<Mutex<Report>>,
}

impl ZnQueue {
    /// A queue over an SSD whose zones are empty.
    ///
    /// # Errors
    /// No eventfd, or no thread.
    pub(super) fn new(
        media: Arc<dyn Media>,
        model: Model,
        depth: u16,
        shown: Arc<Mutex<Report>>,
    ) -> io::Result<Self> {
        let depth = usize::from(depth);
        let idle = Task { active: false, op: Op::Flush, page: 0, count: 0, next: 0, flying: 0, failed: None };
        let shape = model.shape();
        let mover = Mover {
            victim: NONE,
            from: 0,
            phase: Phase::Idle,
            items: Vec::with_capacity(MOVE_PAGES),
            written: 0,
            flying: 0,
            failed: false,
            failures: 0,
        };
        Ok(Self {
            resets: Resets::start(Arc::clone(&media), shape.zones)?,
            media,
            tasks: vec![idle; depth],
            pages: buffers(depth * MAX_IO_PAGES as usize + MOVE_PAGES + 1),
            works: vec![Work::Free; OPERATIONS],
            free: (0..OPERATIONS as u16).rev().collect(),
            reads: VecDeque::with_capacity(depth),
            writes: VecDeque::with_capacity(depth),
            busy: vec![false; usize::from(shape.writers)],
            mover,
            listening: false,
            stopping: false,
            poisoned: false,
            stalled: false,
            report: Report::default(),
            shown,
            model,
        })
    }

    fn move_buffer(&self) -> usize {
        self.tasks.len() * MAX_IO_PAGES as usize
    }

    fn offset(&self, place: Place) -> u64 {
        u64::from(place.zone) * self.media.zone_bytes() + u64::from(place.offset) * PAGE_BYTES as u64
    }

    /// Starts an operation on the buffers from number `buffer` on; `false` when there is no room for it now.
    fn start(
        &mut self,
        io: &mut dyn QueueIo,
        work: Work,
        buffer: usize,
        pages: u32,
        place: Place,
        write: bool,
    ) -> bool {
        let fd = types::Fd(self.media.file().as_raw_fd());
        let (offset, len) = (self.offset(place), pages * PAGE_BYTES as u32);
        let Some(room) = self.pages.get_mut(buffer..buffer + pages as usize) else { return false };
        let bytes = room.as_mut_ptr().cast::<u8>();
        let entry = if write {
            opcode::Write::new(fd, bytes.cast_const(), len).offset(offset).build()
        } else {
            opcode::Read::new(fd, bytes, len).offset(offset).build()
        };
        self.push(io, work, entry)
    }

    fn push(&mut self, io: &mut dyn QueueIo, work: Work, entry: squeue::Entry) -> bool {
        let Some(slot) = self.free.pop() else { return false };
        // SAFETY: the buffers live as long as the queue and are this operation's until it has completed: a tag's belong to a
        // request that does not end before, the mover's to its one batch. The file is the media's, which we hold.
        if unsafe { io.push(entry, u64::from(slot)) }.is_err() {
            self.free.push(slot);
            return false;
        }
        self.works[usize::from(slot)] = work;
        true
    }

    fn in_flight(&self) -> usize {
        self.works.len() - self.free.len() - usize::from(self.listening)
    }

    fn pump(&mut self, io: &mut dyn QueueIo) {
        if self.stopping {
            return;
        }
        while let Some((zone, done)) = self.resets.take() {
            self.model.reset_done(zone, done);
        }
        self.start_reads(io);
        self.start_writes(io);
        self.move_on(io);
        while let Some(zone) = self.model.take_reset() {
            self.resets.ask(zone);
        }
        self.listen(io);
        self.give_up_if_stuck(io);
        self.report.counters = self.model.counters();
        self.report.empty_zones = self.model.empty_zones();
        self.report.mapped_pages = self.model.mapped();
        if let Ok(mut shown) = self.shown.try_lock() {
            *shown = self.report;
        }
    }

    /// Waits for the next reset to be done, if one is under way.
    fn listen(&mut self, io: &mut dyn QueueIo) {
        if self.listening || self.resets.under_way() == 0 {
            return;
        }
        let last = self.pages.len() - 1;
        let bytes = self.pages[last].0.as_mut_ptr();
        let entry = opcode::Read::new(types::Fd(self.resets.event()), bytes, size_of::<u64>() as u32).build();
        self.listening = self.push(io, Work::Event, entry);
    }

    fn start_reads(&mut self, io: &mut dyn QueueIo) {
        while let Some(&tag) = self.reads.front() {
            while let Some(task) = self.tasks.get(usize::from(tag)).filter(|task| task.next < task.count) {
                let first = task.next;
                let buffer = usize::from(tag) * MAX_IO_PAGES as usize + first as usize;
                let Some(place) = self.model.lookup(task.page + first) else {
                    self.pages[buffer].0.fill(0);
                    self.tasks[usize::from(tag)].next += 1;
                    continue;
                };
                let mut run = 1;
                while first + run < task.count && self.follows(task.page + first, place, run) {
                    run += 1;
                }
                let work = Work::Read { tag, zone: place.zone, bytes: run * PAGE_BYTES as u32 };
                if !self.start(io, work, buffer, run, place, false) {
                    return;
                }
                self.model.pin(place.zone);
                let task = &mut self.tasks[usize::from(tag)];
                task.next += run;
                task.flying += 1;
            }
            self.reads.pop_front();
            self.end_if_over(tag, io);
        }
    }

    /// Whether the page `n` after `page` lies as far behind it.
    fn follows(&self, page: u32, place: Place, n: u32) -> bool {
        self.model.lookup(page + n) == Some(Place { offset: place.offset + n, ..place })
    }

    fn start_writes(&mut self, io: &mut dyn QueueIo) {
        while let Some(&tag) = self.writes.front() {
            let Some(writer) = self.busy.iter().position(|busy| !busy) else { return };
            if self.free.is_empty() {
                return;
            }
            let task = self.tasks[usize::from(tag)];
            // With an empty zone for one writer only, another's open zone may still have room.
            let mut writers = (writer..self.busy.len()).filter(|writer| !self.busy[*writer]);
            let found = writers
                .find_map(|writer| Some((writer, self.model.allocate(writer, task.count - task.next)?)));
            let Some((writer, run)) = found else {
                self.report.stalls += u64::from(!self.stalled);
                self.stalled = true;
                return;
            };
            self.stalled = false;
            let page = task.page + task.next;
            let buffer = usize::from(tag) * MAX_IO_PAGES as usize + task.next as usize;
            let work = Work::Write { tag, writer: writer as u16, page, run };
            let started = self.start(io, work, buffer, run.pages, run.first, true);
            let task = &mut self.tasks[usize::from(tag)];
            task.next += run.pages;
            if started {
                task.flying += 1;
                self.busy[writer] = true;
            } else {
                self.lose(run);
                let task = &mut self.tasks[usize::from(tag)];
                task.failed = Some(Errno::EIO);
                task.next = task.count;
            }
            let task = self.tasks[usize::from(tag)];
            if task.next == task.count {
                self.writes.pop_front();
                self.end_if_over(tag, io);
            }
        }
    }

    /// Places that were not written: their zone's write pointer is not where the model has it.
    fn lose(&mut self, run: Run) {
        for n in 0..run.pages {
            self.model.failed(run.place(n));
        }
        self.model.seal(run.first.zone);
    }

    fn move_on(&mut self, io: &mut dyn QueueIo) {
        loop {
            let more = match self.mover.phase {
                _ if self.mover.flying > 0 => false,
                Phase::Idle => self.move_next(io),
                Phase::Reading => {
                    self.model.unpin(self.mover.victim);
                    self.mover.written = 0;
                    self.mover.phase = Phase::Writing;
                    if self.mover.failed {
                        log::error!(
                            "zone {} cannot be read: its pages stay where they are",
                            self.mover.victim
                        );
                        self.model.spoil(self.mover.victim);
                        self.move_stop();
                    }
                    true
                }
                Phase::Writing => self.move_write(io),
            };
            if !more {
                return;
            }
        }
    }

    fn move_stop(&mut self) {
        self.mover.phase = Phase::Idle;
        self.mover.victim = NONE;
        self.mover.failed = false;
    }

    /// Begins with the next pages of the victim, or with another one. Says whether there is more to do at once.
    fn move_next(&mut self, io: &mut dyn QueueIo) -> bool {
        if self.mover.victim == NONE {
            if !self.model.wants_reclaim() || self.mover.failures >= MOST_FAILURES {
                return false;
            }
            let Some(victim) = self.model.victim() else { return false };
            (self.mover.victim, self.mover.from) = (victim, 0);
        }
        let victim = self.mover.victim;
        self.mover.items.clear();
        let mut from = self.mover.from;
        while self.mover.items.len() < MOVE_PAGES {
            let Some((page, place)) = self.model.next_valid(victim, from) else { break };
            self.mover.items.push((page, place));
            from = place.offset + 1;
        }
        if self.mover.items.is_empty() {
            self.move_stop();
            return true;
        }
        let mut first = 0;
        while first < self.mover.items.len() {
            let place = self.mover.items[first].1;
            let mut run = 1;
            while self
                .mover
                .items
                .get(first + run)
                .is_some_and(|item| item.1.offset == place.offset + run as u32)
            {
                run += 1;
            }
            let work = Work::MoveRead { bytes: (run * PAGE_BYTES) as u32 };
            if !self.start(io, work, self.move_buffer() + first, run as u32, place, false) {
                self.mover.items.truncate(first);
                break;
            }
            self.mover.flying += 1;
            first += run;
        }
        let Some((_, last)) = self.mover.items.last() else { return false };
        self.mover.from = last.offset + 1;
        self.mover.phase = Phase::Reading;
        self.model.pin(victim);
        false
    }

    fn move_write(&mut self, io: &mut dyn QueueIo) -> bool {
        let left = self.mover.items.len() - self.mover.written;
        if left == 0 {
            self.mover.phase = Phase::Idle;
            return true;
        }
        if self.free.is_empty() {
            return false;
        }
        let Some(run) = self.model.allocate(self.model.mover(), left as u32) else { return false };
        let buffer = self.move_buffer() + self.mover.written;
        if self.start(io, Work::MoveWrite { run }, buffer, run.pages, run.first, true) {
            self.mover.flying += 1;
        } else {
            self.lose(run);
            self.move_stop();
        }
        false
    }

    fn moved(&mut self, run: Run, good: bool) {
        self.mover.flying -= 1;
        if !good {
            self.lose(run);
            self.mover.failures += 1;
            self.move_stop();
            return;
        }
        self.mover.failures = 0;
        for n in 0..run.pages {
            if let Some((page, from)) = self.mover.items.get(self.mover.written + n as usize) {
                self.model.moved(*page, *from, run.place(n));
            }
        }
        self.mover.written += run.pages as usize;
    }

    /// Writes for which no zone will become empty by itself fail: the kernel keeps the pages.
    fn give_up_if_stuck(&mut self, io: &mut dyn QueueIo) {
        if !self.stalled || self.in_flight() > 0 || self.resets.under_way() > 0 {
            return;
        }
        self.stalled = false;
        while let Some(tag) = self.writes.pop_front() {
            let task = &mut self.tasks[usize::from(tag)];
            (task.failed, task.next) = (Some(Errno::ENOSPC), task.count);
            self.end_if_over(tag, io);
        }
    }

    fn end_if_over(&mut self, tag: u16, io: &mut dyn QueueIo) {
        let Some(task) = self.tasks.get_mut(usize::from(tag)) else { return };
        if !task.active || task.flying > 0 || task.next < task.count {
            return;
        }
        task.active = false;
        let task = *task;
        let mut outcome = task.failed.map_or(Ok(Done::Whole), Err);
        if task.op == Op::Read && outcome.is_ok() {
            let first = usize::from(tag) * MAX_IO_PAGES as usize;
            let mut payload = io.payload(tag);
            for (n, page) in self.pages[first..first + task.count as usize].iter().enumerate() {
                if let Err(error) = payload.store(n * PAGE_BYTES, &page.0) {
                    outcome = Err(error.into());
                    break;
                }
            }
        }
        match (task.op, outcome.is_err()) {
            (Op::Read, true) => self.report.read_errors += 1,
            (_, true) => self.report.write_errors += 1,
            _ => {}
        }
        io.complete(tag, outcome.into());
    }

    fn accept(&mut self, request: &Request, payload: &mut Payload<'_>) -> Result<Option<Done>, Errno> {
        if self.poisoned {
            return Err(Errno::EIO);
        }
        if request.op == Op::Flush {
            return Ok(Some(Done::Whole));
        }
        let (page, count) = pages_of(request, self.model.shape().pages)?;
        match request.op {
            Op::Discard | Op::WriteZeroes => {
                for page in page..page + count {
                    self.model.discard(page);
                }
                return Ok(Some(Done::Whole));
            }
            Op::Read | Op::Write => {}
            _ => return Err(Errno::EOPNOTSUPP),
        }
        let task = self.tasks.get_mut(usize::from(request.tag)).ok_or(Errno::EIO)?;
        if count > MAX_IO_PAGES || task.active {
            return Err(Errno::EIO);
        }
        if request.op == Op::Write {
            let first = usize::from(request.tag) * MAX_IO_PAGES as usize;
            for (n, buffer) in self.pages[first..first + count as usize].iter_mut().enumerate() {
                payload.fetch(n * PAGE_BYTES, &mut buffer.0)?;
            }
        }
        *task = Task { active: true, op: request.op, page, count, next: 0, flying: 0, failed: None };
        let list = if request.op == Op::Read { &mut self.reads } else { &mut self.writes };
        list.push_back(request.tag);
        Ok(None)
    }
}

impl QueueHandler for ZnQueue {
    fn handle(&mut self, request: &Request, payload: &mut Payload<'_>) -> Reply {
        match self.accept(request, payload) {
            Ok(None) => Reply::pending(),
            Ok(Some(done)) => Ok(done).into(),
            Err(errno) => Err(errno).into(),
        }
    }

    fn committing(&mut self, tag: u16) {
        if let Some(task) = self.tasks.get_mut(usize::from(tag)).filter(|task| task.active) {
            task.active = false;
            self.poisoned = true;
        }
    }

    fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
        let Some(work) = usize::try_from(token).ok().and_then(|slot| self.works.get_mut(slot)) else {
            return;
        };
        let work = std::mem::replace(work, Work::Free);
        if !matches!(work, Work::Free) {
            self.free.push(token as u16);
        }
        let whole = |bytes: u32| u32::try_from(result) == Ok(bytes);
        match work {
            Work::Free => {}
            Work::Event => self.listening = false,
            Work::Read { tag, zone, bytes } => {
                self.model.unpin(zone);
                if let Some(task) = self.tasks.get_mut(usize::from(tag)) {
                    task.flying -= 1;
                    if !whole(bytes) {
                        task.failed = Some(Errno::EIO);
                    }
                }
                self.end_if_over(tag, io);
            }
            Work::Write { tag, writer, page, run } => {
                self.busy[usize::from(writer)] = false;
                let good = whole(run.pages * PAGE_BYTES as u32);
                if good {
                    for n in 0..run.pages {
                        self.model.written(page + n, run.place(n));
                    }
                } else {
                    self.lose(run);
                }
                if let Some(task) = self.tasks.get_mut(usize::from(tag)) {
                    task.flying -= 1;
                    if !good {
                        task.failed = Some(Errno::EIO);
                    }
                }
                self.end_if_over(tag, io);
            }
            Work::MoveRead { bytes } => {
                self.mover.flying -= 1;
                self.mover.failed |= !whole(bytes);
            }
            Work::MoveWrite { run } => self.moved(run, whole(run.pages * PAGE_BYTES as u32)),
        }
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        self.pump(io);
    }

    fn stopping(&mut self, _: &mut dyn QueueIo) {
        self.stopping = true;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = self.report;
    }
}
