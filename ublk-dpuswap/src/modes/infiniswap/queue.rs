//! The queue: each request is a page, and each page an operation on a node or on the backup.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use io_uring::{opcode, types};
use ublk_target::{Done, Errno, Op, Payload, QueueHandler, QueueIo, Reply, Request};

use super::Config;
use super::backup::Staging;
use super::keeper::{Shared, lock};
use super::slabs::Spot;
use crate::link::LinkModel;
use crate::links::Links;
use crate::modes::{PageBuffer, buffers, pages_of};
use crate::units::{NodeId, PAGE_BYTES};

/// Tokens of the backup's writes begin here; its reads' are the tags; the links' begin at [`LINKS`].
const STAGED: u64 = 1 << 16;
const LINKS: u64 = 1 << 17;
/// How long until what could not be started is tried again when nothing else happens.
const RETRY_NS: u64 = 200_000;
/// How often the queue looks for links to close while operations are in flight.
const LOOK_NS: u64 = 100_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not a request at work.
    Idle,
    /// On its way to or from a node, in a slab of this generation.
    Remote { generation: u32 },
    /// On its way from the backup, or waits until it is written there.
    Backup,
    /// Waits for room.
    Parked,
}

#[derive(Clone, Copy)]
struct Task {
    phase: Phase,
    op: Op,
    page: u32,
    fetched_ns: u64,
    due_ns: u64,
}

/// A bit per page.
struct Bits(Vec<u64>);

impl Bits {
    fn new(pages: u32) -> Self {
        Self(vec![0; pages.div_ceil(64) as usize])
    }
    fn get(&self, page: u32) -> bool {
        self.0[page as usize / 64] >> (page % 64) & 1 == 1
    }
    fn set(&mut self, page: u32, value: bool) {
        let (word, bit) = (&mut self.0[page as usize / 64], 1 << (page % 64));
        *word = if value { *word | bit } else { *word & !bit };
    }
}

/// The handler.
pub struct InfiniQueue {
    shared: Arc<Shared>,
    links: Links,
    link: LinkModel,
    backup: Option<Arc<File>>,
    staging: Staging,
    tasks: Vec<Task>,
    pages: Vec<PageBuffer>,
    parked: VecDeque<u16>,
    /// The page was written and not discarded.
    written: Bits,
    /// Its slab's node has it.
    remote: Bits,
    /// The backup has it.
    backed: Bits,
    /// The slabs' generations as this queue knows them.
    generations: Vec<u32>,
    count: u32,
    timer_ns: u64,
    spin_ns: u64,
    stopping: bool,
}

impl InfiniQueue {
    pub(super) fn new(config: &Config, shared: Arc<Shared>, backup: Option<Arc<File>>) -> Self {
        let depth = usize::from(config.depth);
        let task = Task { phase: Phase::Idle, op: Op::Flush, page: 0, fetched_ns: 0, due_ns: 0 };
        let generations = {
            let slabs = lock(&shared.slabs);
            (0..slabs.len()).map(|slab| slabs.generation(slab)).collect()
        };
        let staged = if backup.is_some() { config.staged_pages } else { 0 };
        let pages = if backup.is_some() { config.pages } else { 0 };
        Self {
            links: Links::new(shared.peers.len(), depth, LINKS),
            link: config.link.clone(),
            staging: Staging::new(pages, staged),
            backup,
            tasks: vec![task; depth],
            pages: buffers(depth),
            parked: VecDeque::with_capacity(depth),
            written: Bits::new(config.pages),
            remote: Bits::new(config.pages),
            backed: Bits::new(config.pages),
            generations,
            count: config.pages,
            timer_ns: u64::MAX,
            spin_ns: config.spin_ns,
            stopping: false,
            shared,
        }
    }

    fn count(&self, counter: impl Fn(&super::keeper::Counters) -> &AtomicU64) {
        counter(&self.shared.counters).fetch_add(1, Relaxed);
    }

    /// Where the page is or goes, and its slab's generation. What an older place of the slab had is forgotten here.
    fn spot(&mut self, page: u32) -> (Option<Spot>, u32) {
        let shared = Arc::clone(&self.shared);
        let slabs = lock(&shared.slabs);
        let slab = slabs.slab_of(page);
        let generation = slabs.generation(slab);
        if let Some(known) = self.generations.get_mut(slab).filter(|known| **known != generation) {
            *known = generation;
            let first = slab as u32 * slabs.pages_each();
            for page in first..(first.saturating_add(slabs.pages_each())).min(self.count) {
                self.remote.set(page, false);
            }
        }
        (slabs.spot(page), generation)
    }

    fn end(&mut self, tag: u16, outcome: Result<(), Errno>, io: &mut dyn QueueIo) {
        let task = &mut self.tasks[usize::from(tag)];
        if task.phase == Phase::Idle {
            return;
        }
        task.phase = Phase::Idle;
        let task = *task;
        if outcome.is_err() {
            self.count(|c| if task.op == Op::Read { &c.read_errors } else { &c.write_errors });
        }
        io.complete(tag, Reply::at(outcome.map(|()| Done::Whole), task.due_ns));
    }

    fn park(&mut self, tag: u16) {
        self.tasks[usize::from(tag)].phase = Phase::Parked;
        self.parked.push_back(tag);
        self.count(|c| &c.waits);
    }

    /// Begins a request, anew if it was parked. `data` is the page to write. Ends at most with an error.
    fn begin(&mut self, tag: u16, io: &mut dyn QueueIo) {
        let outcome = match self.tasks[usize::from(tag)].op {
            Op::Read => self.begin_read(tag, io),
            _ => self.begin_write(tag, io),
        };
        match outcome {
            Ok(true) => self.end(tag, Ok(()), io),
            Ok(false) => {}
            Err(errno) => self.end(tag, Err(errno), io),
        }
    }

    fn begin_read(&mut self, tag: u16, io: &mut dyn QueueIo) -> Result<bool, Errno> {
        let task = self.tasks[usize::from(tag)];
        if !self.written.get(task.page) {
            io.payload(tag).store(0, &[0; PAGE_BYTES])?;
            self.count(|c| &c.zero_reads);
            return Ok(true);
        }
        let (spot, generation) = self.spot(task.page);
        if let Some(spot) = spot.filter(|spot| self.remote.get(task.page) && self.links.is_open(spot.node)) {
            let started =
                self.links.read(spot.node, spot.block, spot.offset_bytes, PAGE_BYTES as u32, u32::from(tag));
            if started.is_ok() {
                let due_ns = self.link.due_ns(spot.node.0, task.fetched_ns, 0, PAGE_BYTES as u64);
                let task = &mut self.tasks[usize::from(tag)];
                (task.phase, task.due_ns) = (Phase::Remote { generation }, due_ns);
                self.count(|c| &c.remote_reads);
                return Ok(false);
            }
            if self.links.is_open(spot.node) && self.links.in_flight() > 0 {
                self.park(tag);
                return Ok(false);
            }
        }
        self.read_backup(tag, io)
    }

    fn read_backup(&mut self, tag: u16, io: &mut dyn QueueIo) -> Result<bool, Errno> {
        let page = self.tasks[usize::from(tag)].page;
        let Some(file) = &self.backup else { return Err(Errno::EIO) };
        if let Some(staged) = self.staging.staged(page) {
            io.payload(tag).store(0, staged)?;
            return Ok(true);
        }
        if !self.backed.get(page) {
            return Err(Errno::EIO);
        }
        let buffer = self.pages[usize::from(tag)].0.as_mut_ptr();
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), buffer, PAGE_BYTES as u32)
            .offset(u64::from(page) * PAGE_BYTES as u64)
            .build();
        // SAFETY: the buffer is the tag's, whose request does not end before; the file is ours.
        unsafe { io.push(entry, u64::from(tag)) }?;
        self.tasks[usize::from(tag)].phase = Phase::Backup;
        self.count(|c| &c.backup_reads);
        Ok(false)
    }

    fn begin_write(&mut self, tag: u16, io: &mut dyn QueueIo) -> Result<bool, Errno> {
        let task = self.tasks[usize::from(tag)];
        let data = io.payload(tag);
        if self.backup.is_some() {
            let mut copied = Ok(());
            if !self.staging.stage(task.page, |slot| copied = data.fetch(0, slot)) {
                self.park(tag);
                return Ok(false);
            }
            copied?;
        }
        let (spot, generation) = self.spot(task.page);
        self.written.set(task.page, true);
        self.remote.set(task.page, false);
        self.backed.set(task.page, false);
        let Some(spot) = spot.filter(|spot| self.links.is_open(spot.node)) else {
            return self.wait_for_backup(tag, if spot.is_none() { Errno::ENOSPC } else { Errno::EIO });
        };
        data.fetch(0, &mut self.pages[usize::from(tag)].0)?;
        let bytes = &self.pages[usize::from(tag)].0;
        if self.links.write(spot.node, spot.block, spot.offset_bytes, bytes, u32::from(tag)).is_ok() {
            let due_ns = self.link.due_ns(spot.node.0, task.fetched_ns, PAGE_BYTES as u64, 0);
            let task = &mut self.tasks[usize::from(tag)];
            (task.phase, task.due_ns) = (Phase::Remote { generation }, due_ns);
            self.count(|c| &c.remote_writes);
            return Ok(false);
        }
        if self.links.is_open(spot.node) && self.links.in_flight() > 0 {
            self.park(tag);
            return Ok(false);
        }
        self.wait_for_backup(tag, Errno::EIO)
    }

    /// The write ends when the backup has the page; without one it fails with `otherwise`.
    fn wait_for_backup(&mut self, tag: u16, otherwise: Errno) -> Result<bool, Errno> {
        let task = &mut self.tasks[usize::from(tag)];
        task.phase = Phase::Backup;
        if self.backup.is_none() {
            return Err(otherwise);
        }
        let page = task.page;
        if self.staging.wait_for(page, tag) {
            return Ok(false);
        }
        // It was written meanwhile.
        if self.backed.get(page) { Ok(true) } else { Err(otherwise) }
    }

    /// What the links have brought.
    fn arrivals(&mut self, io: &mut dyn QueueIo) {
        while let Some(arrival) = self.links.next() {
            let (tag, node) = (arrival.op as u16, arrival.node);
            let Some(task) = self.tasks.get(usize::from(tag)).copied() else { continue };
            let Phase::Remote { generation } = task.phase else { continue };
            let mut good = arrival.result.is_ok();
            if let (Ok(data), Op::Read) = (&arrival.result, task.op) {
                good = data.len() == PAGE_BYTES && io.payload(tag).store(0, data).is_ok();
            }
            if !self.links.is_open(node)
                && let Some(peer) = self.shared.peers.get(usize::from(node.0))
            {
                peer.lost.store(true, Relaxed);
            }
            let (_, now) = self.spot(task.page);
            let outcome = match (task.op, good) {
                (Op::Read, true) => Ok(true),
                (Op::Read, false) => self.read_backup(tag, io),
                (_, true) if now == generation => {
                    self.remote.set(task.page, true);
                    Ok(true)
                }
                _ => self.wait_for_backup(tag, Errno::EIO),
            };
            match outcome {
                Ok(true) => self.end(tag, Ok(()), io),
                Ok(false) => {}
                Err(errno) => self.end(tag, Err(errno), io),
            }
        }
    }

    fn write_backup(&mut self, io: &mut dyn QueueIo) {
        let Some(file) = self.backup.clone() else { return };
        while let Some((slot, page, bytes)) = self.staging.take() {
            let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), bytes, PAGE_BYTES as u32)
                .offset(u64::from(page) * PAGE_BYTES as u64)
                .build();
            // SAFETY: the slot's buffer is not touched until its write has ended, and lives as long as the queue; the file too.
            if unsafe { io.push(entry, STAGED + u64::from(slot)) }.is_err() {
                self.staging.put_back(slot);
                return;
            }
        }
    }

    fn staged_ended(&mut self, slot: u16, good: bool, io: &mut dyn QueueIo) {
        let Some(ended) = self.staging.ended(slot) else { return };
        self.count(|c| if good { &c.backup_writes } else { &c.backup_errors });
        if ended.current {
            self.backed.set(ended.page, good);
        }
        if let Some(tag) = ended.waiter {
            self.end(tag, if good { Ok(()) } else { Err(Errno::EIO) }, io);
        }
    }

    fn discard(&mut self, page: u32) {
        for bits in [&mut self.written, &mut self.remote, &mut self.backed] {
            bits.set(page, false);
        }
        if self.backup.is_some() {
            self.staging.discard(page);
        }
        self.count(|c| &c.discarded_pages);
    }

    fn accept(&mut self, request: &Request) -> Result<Option<Done>, Errno> {
        if request.op == Op::Flush {
            return Ok(Some(Done::Whole));
        }
        let (page, count) = pages_of(request, self.count)?;
        match request.op {
            Op::Discard | Op::WriteZeroes => {
                (page..page + count).for_each(|page| self.discard(page));
                return Ok(Some(Done::Whole));
            }
            Op::Read | Op::Write => {}
            _ => return Err(Errno::EOPNOTSUPP),
        }
        let task = self.tasks.get_mut(usize::from(request.tag)).ok_or(Errno::EIO)?;
        if count != 1 || task.phase != Phase::Idle {
            return Err(Errno::EIO);
        }
        let fetched_ns = request.fetched_ns;
        *task = Task { phase: Phase::Parked, op: request.op, page, fetched_ns, due_ns: 0 };
        self.parked.push_back(request.tag);
        Ok(None)
    }
}

impl QueueHandler for InfiniQueue {
    fn handle(&mut self, request: &Request, _: &mut Payload<'_>) -> Reply {
        // It begins in this turn's end, where there is a ring to send with.
        match self.accept(request) {
            Ok(None) => Reply::pending(),
            Ok(Some(done)) => Ok(done).into(),
            Err(errno) => Err(errno).into(),
        }
    }

    fn wants_time(&self) -> bool {
        !self.link.is_none()
    }

    fn committing(&mut self, tag: u16) {
        if let Some(task) = self.tasks.get_mut(usize::from(tag)) {
            task.phase = Phase::Idle;
        }
    }

    fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
        let good = usize::try_from(result) == Ok(PAGE_BYTES);
        if self.links.owns(token) {
            self.links.completed(token, result, io);
        } else if token >= STAGED {
            self.staged_ended((token - STAGED) as u16, good, io);
        } else if let Some(page) = self.pages.get(token as usize) {
            let tag = token as u16;
            let stored = good && io.payload(tag).store(0, &page.0).is_ok();
            self.end(tag, if stored { Ok(()) } else { Err(Errno::EIO) }, io);
        }
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        if self.stopping {
            return;
        }
        for (number, peer) in Arc::clone(&self.shared).peers.iter().enumerate() {
            let node = NodeId(number as u16);
            if peer.close.swap(false, Relaxed) {
                self.links.close(node);
            }
            if let Some(start) = peer.start.try_lock().ok().and_then(|mut start| start.take())
                && let Err(error) = self.links.open(node, start, io)
            {
                log::error!("a link to node number {number} cannot be opened: {error}");
                peer.lost.store(true, Relaxed);
            }
        }
        self.arrivals(io);
        for _ in 0..self.parked.len() {
            let Some(tag) = self.parked.pop_front() else { break };
            if self.tasks.get(usize::from(tag)).is_some_and(|task| task.phase == Phase::Parked) {
                self.begin(tag, io);
            }
        }
        self.links.submit(io);
        self.arrivals(io);
        self.write_backup(io);
        self.timer_ns = match (self.parked.is_empty(), self.links.in_flight()) {
            (true, 0) => u64::MAX,
            (true, _) => io.now_ns().saturating_add(LOOK_NS),
            (false, _) => io.now_ns().saturating_add(RETRY_NS),
        };
    }

    fn timer_ns(&self) -> u64 {
        self.timer_ns
    }

    fn spin_ns(&self) -> u64 {
        if self.links.in_flight() > 0 { self.spin_ns } else { 0 }
    }

    fn stopping(&mut self, _: &mut dyn QueueIo) {
        self.stopping = true;
        for number in 0..self.shared.peers.len() {
            self.links.close(NodeId(number as u16));
        }
    }
}
