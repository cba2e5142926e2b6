//! The remote reads of one queue: each is one message to a node for records that lie side by side, and may be asked of a
//! second node when the first is slow.
//!
//! Invariant: an operation holds one pin on its block from its start to its end, and counts in its request's `left` from
//! its start until it ended or was overtaken by its twin; the request's page is restored from at most one of them.

use std::sync::atomic::Ordering;

use super::queue::Requests;
use super::{Shared, State};
use crate::codec::Decompressor;
use crate::error::IoError;
use crate::links::{Arrival, Links};
use crate::model::Mapping;
use crate::proto::Status;
use crate::record::{self, RecordError, RecordHeader};
use crate::remote::RemoteError;
use crate::seal::{PageKey, Place};
use crate::units::{BlockId, Location, MAX_NODES, NodeId, PAGE_BYTES, PageNo, RemoteBlock};
use ublk_target::QueueIo;

/// Most pages of one operation; longer runs are several.
pub(super) const OP_PAGES: usize = 32;
/// Records of one block that are no further apart than this are read together.
const READ_GAP_BYTES: usize = 4096;
/// A page of an operation that nobody asked for.
const AHEAD: u32 = u32::MAX;
/// How often each copy is asked for what it gives back badly.
const MAX_TRIES: usize = 4;
/// No twin.
const ALONE: u32 = u32::MAX;
/// A read is asked of another copy when it takes this many times as long as reads usually do.
const HEDGE_FACTOR: u64 = 8;
/// One read cannot raise the average by more than an eighth of this.
const MOST_USUAL_NS: u64 = 100_000_000;
/// But not sooner than this.
const HEDGE_LEAST_NS: u64 = 300_000;

/// A remote page of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) at: Location,
    pub(super) page: PageNo,
    /// Which page of the request.
    pub(super) index: u32,
}

/// One read under way.
#[derive(Clone, Copy)]
struct ReadOp {
    active: bool,
    /// The request does not wait for it any more.
    abandoned: bool,
    /// Other copies were tried, or there are none.
    hedged: bool,
    /// It is the other try.
    second: bool,
    tag: u16,
    node: NodeId,
    remote: RemoteBlock,
    /// Of the node's connection.
    connection: u32,
    block: BlockId,
    /// Of the block.
    generation: u64,
    base_bytes: u32,
    len_bytes: u32,
    issued_ns: u64,
    /// When its answer counts, over a link that is only modelled.
    due_ns: u64,
    twin: u32,
    count: u32,
    pages: [(Location, PageNo, u32); OP_PAGES],
}

const IDLE: ReadOp = ReadOp {
    active: false,
    abandoned: false,
    hedged: false,
    second: false,
    tag: 0,
    node: NodeId(0),
    remote: RemoteBlock::numbered(0),
    connection: 0,
    block: BlockId(0),
    generation: 0,
    base_bytes: 0,
    len_bytes: 0,
    issued_ns: 0,
    due_ns: 0,
    twin: ALONE,
    count: 0,
    pages: [(Location { block: BlockId(0), offset_units: 0, len_bytes: 0 }, PageNo(0), AHEAD); OP_PAGES],
};

/// The node that a read goes to.
#[derive(Debug, Clone, Copy)]
struct Source {
    node: NodeId,
    remote: RemoteBlock,
    connection: u32,
}

/// Why no read was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRead {
    /// Every operation is in use.
    NoOp,
    /// No copy can be asked now; one of them is on this node.
    NoCopy(NodeId),
    /// There is no copy any more.
    Lost,
}

/// The reads of one queue, their buffers allocated once.
pub(super) struct Reads {
    ops: Box<[ReadOp]>,
    free: Vec<u32>,
    opened: Vec<(RecordHeader, Location, bool, usize, usize)>,
    around: Vec<(PageNo, Location)>,
    load: [u32; MAX_NODES],
    decompressor: Decompressor,
    key: Option<PageKey>,
    /// Moving average of what a read takes.
    usual_ns: u64,
    /// Nodes on which operations have ended, so that others may begin, by bit.
    ended: u64,
    pub(super) links: Links,
    pub(super) link_generation: [u32; MAX_NODES],
}

impl Reads {
    pub(super) fn new(shared: &Shared, links: Links, ops: usize) -> Self {
        Self {
            ops: vec![IDLE; ops].into_boxed_slice(),
            free: (0..ops as u32).rev().collect(),
            opened: Vec::with_capacity(OP_PAGES),
            around: Vec::with_capacity(OP_PAGES),
            load: [0; MAX_NODES],
            decompressor: Decompressor::new(),
            key: shared.page_key.as_ref().map(PageKey::new),
            usual_ns: 50_000,
            ended: 0,
            links,
            link_generation: [0; MAX_NODES],
        }
    }

    pub(super) fn decompressor(&mut self) -> &mut Decompressor {
        &mut self.decompressor
    }

    fn is_able(&self, state: &State, (node, _, up): &(NodeId, RemoteBlock, bool)) -> bool {
        let generation = self.link_generation.get(usize::from(node.0));
        *up && self.links.is_open(*node) && generation == Some(&state.generation(*node))
    }

    fn source(&self, state: &State, block: BlockId, not: Option<NodeId>) -> Option<Source> {
        let able = |copy: &(NodeId, RemoteBlock, bool)| Some(copy.0) != not && self.is_able(state, copy);
        let load = |node: NodeId| self.load.get(usize::from(node.0)).copied().unwrap_or(0);
        let best = state.model.blocks.copies(block).filter(able).min_by_key(|(node, ..)| load(*node));
        best.map(|(node, remote, _)| Source { node, remote, connection: state.generation(node) })
    }

    /// The copy whose turn it is, of those that can be asked.
    fn source_in_turn(&self, state: &State, block: BlockId, turn: u32) -> Option<Source> {
        let able = || state.model.blocks.copies(block).filter(|copy| self.is_able(state, copy));
        let (node, remote, _) = able().nth(turn as usize % able().count().max(1))?;
        Some(Source { node, remote, connection: state.generation(node) })
    }

    /// Begins the read for the first of `wanted` (sorted by place) and those that lie close behind it. Gives how many of
    /// them it covers. The caller sends it ([`Reads::send`]) without the lock.
    pub(super) fn begin(
        &mut self,
        state: &mut State,
        tag: u16,
        wanted: &[Wanted],
        ahead_bytes: u32,
        turn: u32,
    ) -> Result<(u32, usize), NoRead> {
        let first = wanted.first().ok_or(NoRead::NoOp)?;
        let block = first.at.block;
        let op_number = *self.free.last().ok_or(NoRead::NoOp)?;
        let source = match turn {
            0 => self.source(state, block, None),
            turn => self.source_in_turn(state, block, turn),
        };
        let Some(source) = source else {
            let holder = state.model.blocks.copies(block).next();
            return Err(holder.map_or(NoRead::Lost, |(node, ..)| NoRead::NoCopy(node)));
        };
        let mut op = ReadOp { active: true, tag, block, ..IDLE };
        (op.node, op.remote, op.connection) = (source.node, source.remote, source.connection);
        op.generation = state.model.blocks.generation(block);
        let mut end = first.at.offset_bytes();
        let mut covered = 0;
        for next in wanted.iter().take(OP_PAGES) {
            if next.at.block != block || next.at.offset_bytes() > end + READ_GAP_BYTES {
                break;
            }
            end = next.at.offset_bytes() + next.at.len_bytes as usize;
            op.pages[covered] = (next.at, next.page, next.index);
            covered += 1;
        }
        op.count = covered as u32;
        let mut start = first.at.offset_bytes();
        if ahead_bytes > 0 && covered == wanted.len() {
            (start, end) = self.look_around(state, &mut op, wanted, ahead_bytes, start, end);
        }
        (op.base_bytes, op.len_bytes) = (start as u32, (end - start) as u32);
        self.free.pop();
        state.model.blocks.pin(block);
        if let Some(load) = self.load.get_mut(usize::from(op.node.0)) {
            *load += 1;
        }
        if let Some(slot) = self.ops.get_mut(op_number as usize) {
            *slot = op;
        }
        Ok((op_number, covered))
    }

    /// Takes the records around the wanted ones along, as far as the window and the operation reach.
    fn look_around(
        &mut self,
        state: &State,
        op: &mut ReadOp,
        wanted: &[Wanted],
        ahead_bytes: u32,
        mut start: usize,
        mut end: usize,
    ) -> (usize, usize) {
        let Some(first) = wanted.first() else { return (start, end) };
        self.around.clear();
        state.model.neighbours(first.page, first.at, ahead_bytes, &mut self.around);
        for (page, at) in &self.around {
            let known = wanted.iter().any(|wanted| wanted.page == *page);
            let Some(slot) = op.pages.get_mut(op.count as usize).filter(|_| !known) else { continue };
            *slot = (*at, *page, AHEAD);
            op.count += 1;
            start = start.min(at.offset_bytes());
            end = end.max(at.offset_bytes() + at.len_bytes as usize);
        }
        (start, end)
    }

    /// Hands a begun read to its link. One that cannot be sent ends as if the node had failed.
    pub(super) fn send(&mut self, shared: &Shared, requests: &mut Requests, number: u32, now_ns: u64) {
        let Some(op) = self.ops.get_mut(number as usize) else { return };
        shared.counters.remote_reads.fetch_add(1, Ordering::Relaxed);
        op.issued_ns = now_ns;
        op.due_ns = shared.link_due_ns(op.node, now_ns, 0, op.len_bytes as usize);
        let op = *op;
        let sent = self.links.read(op.node, op.remote, op.base_bytes, op.len_bytes, number);
        match sent {
            Ok(()) => {}
            // As many are under way there as fit: no fault of the node's.
            Err(RemoteError::Refused(_, Status::Busy)) => {
                // A second try is not needed.
                if !op.second {
                    requests.wait_for_link(op.tag, op.node);
                }
                let ended = self.ended;
                self.give_up(shared, requests, number, &op);
                // What was never under way makes no room for others.
                self.ended = ended;
            }
            Err(error) => self.failed(shared, requests, number, error),
        }
    }

    /// Takes in everything that has arrived.
    pub(super) fn take_arrivals(
        &mut self,
        shared: &Shared,
        requests: &mut Requests,
        now_ns: u64,
        io: &mut dyn QueueIo,
    ) {
        loop {
            let Self { links, ops, opened, decompressor, key, .. } = self;
            let Some(Arrival { op: number, result, .. }) = links.next() else { return };
            let Some(op) = ops.get(number as usize).filter(|op| op.active).copied() else { continue };
            let outcome = match result {
                Err(error) => Err(Failure::Remote(error)),
                Ok(_) if op.abandoned => Ok(()),
                Ok(bytes) => {
                    let restored = restore(&op, bytes, opened, decompressor, key.as_ref(), io);
                    if restored.is_ok() {
                        keep_copies(shared, &op, bytes, opened);
                    }
                    restored.map_err(|(page, at, error)| Failure::Record(page, at, error))
                }
            };
            match outcome {
                Ok(()) => self.succeeded(shared, requests, number, now_ns),
                Err(Failure::Remote(error)) => self.failed(shared, requests, number, error),
                Err(Failure::Record(page, at, error)) => {
                    self.damaged(shared, requests, number, page, at, error);
                }
            }
        }
    }

    fn succeeded(&mut self, shared: &Shared, requests: &mut Requests, number: u32, now_ns: u64) {
        let Some(op) = self.ops.get(number as usize).copied() else { return };
        let took_ns = now_ns.saturating_sub(op.issued_ns);
        self.usual_ns = self.usual_ns - self.usual_ns / 8 + took_ns.min(MOST_USUAL_NS) / 8;
        shared.counters.count_read(op.node, op.len_bytes as usize);
        if !op.abandoned {
            if let Some(twin) = self.ops.get_mut(op.twin as usize) {
                // Overtaken: its answer changes nothing.
                (twin.abandoned, twin.twin) = (true, ALONE);
                requests.ended(op.tag);
                if op.second {
                    shared.counters.hedges_won.fetch_add(1, Ordering::Relaxed);
                }
            }
            for (_, _, index) in &op.pages[..op.count as usize] {
                if *index != AHEAD {
                    requests.got(op.tag, *index);
                }
            }
            requests.not_before(op.tag, op.due_ns);
            requests.ended(op.tag);
        }
        self.end(shared, number);
    }

    fn failed(&mut self, shared: &Shared, requests: &mut Requests, number: u32, error: RemoteError) {
        let Some(op) = self.ops.get(number as usize).copied() else { return };
        shared.call_failed(op.block, op.node, op.connection, error);
        self.give_up(shared, requests, number, &op);
    }

    /// The answer is not what was written there. When another copy can be asked, it is.
    fn damaged(
        &mut self,
        shared: &Shared,
        requests: &mut Requests,
        number: u32,
        page: PageNo,
        at: Location,
        error: RecordError,
    ) {
        let Some(op) = self.ops.get(number as usize).copied() else { return };
        shared.counters.bad_records.fetch_add(1, Ordering::Relaxed);
        let (stays, copies) = {
            let state = shared.state();
            (state.model.mapping(page) == Mapping::Remote(at), state.model.blocks.copies(op.block).count())
        };
        // Each copy of each block of the request was asked, and once more.
        let tried = requests.damaged(op.tag) as usize > copies.max(1) * MAX_TRIES;
        if stays && !op.abandoned && (tried || copies <= 1) {
            requests.fail(op.tag, IoError::Record(op.node, error));
        }
        self.give_up(shared, requests, number, &op);
    }

    fn give_up(&mut self, shared: &Shared, requests: &mut Requests, number: u32, op: &ReadOp) {
        if !op.abandoned {
            if let Some(twin) = self.ops.get_mut(op.twin as usize) {
                twin.twin = ALONE;
            } else {
                requests.plan_again(op.tag);
            }
            requests.ended(op.tag);
        }
        self.end(shared, number);
    }

    fn end(&mut self, shared: &Shared, number: u32) {
        let Some(op) = self.ops.get_mut(number as usize) else { return };
        if let Some(load) = self.load.get_mut(usize::from(op.node.0)) {
            *load = load.saturating_sub(1);
        }
        shared.state().model.blocks.unpin(op.block);
        self.ended |= 1u64.checked_shl(op.node.0.into()).unwrap_or(0);
        *op = IDLE;
        self.free.push(number);
    }

    /// The nodes on which operations have ended since this was asked last, a bit each.
    pub(super) fn take_ended(&mut self) -> u64 {
        std::mem::take(&mut self.ended)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended != 0
    }

    /// Whether nothing is under way on a node's link.
    pub(super) fn is_quiet(&self, node: NodeId) -> bool {
        self.load.get(usize::from(node.0)).is_none_or(|load| *load == 0)
    }

    /// The request of a tag has ended without its operations, because this thread panicked. Those that no link knows (not
    /// sent yet, or the answer was just being taken) will never arrive: they end now, whoever's they are.
    pub(super) fn forget(&mut self, shared: &Shared, tag: u16) {
        for op in self.ops.iter_mut().filter(|op| op.active && op.tag == tag) {
            (op.abandoned, op.twin) = (true, ALONE);
        }
        for number in 0..self.ops.len() as u32 {
            if self.is_stray(number) {
                self.end(shared, number);
            }
        }
    }

    /// Whether an operation was begun, and nothing of it is under way.
    fn is_stray(&self, number: u32) -> bool {
        let active = self.ops.get(number as usize).is_some_and(|op| op.active);
        active && !self.links.is_under_way(number)
    }

    fn hedge_ns(&self, shared: &Shared) -> u64 {
        let most = shared.config.hedge.as_nanos() as u64;
        (HEDGE_FACTOR * self.usual_ns).clamp(HEDGE_LEAST_NS.min(most), most)
    }

    /// Asks another copy where the first takes long, and gives nodes up that take too long. Gives when to look again.
    pub(super) fn look_at_time(&mut self, shared: &Shared, requests: &mut Requests, now_ns: u64) -> u64 {
        let timeout_ns = shared.config.node_timeout.as_nanos() as u64;
        let hedge_ns = self.hedge_ns(shared);
        let mut next_ns = u64::MAX;
        for number in 0..self.ops.len() as u32 {
            let Some(op) = self.ops.get(number as usize).filter(|op| op.active).copied() else { continue };
            if now_ns >= op.issued_ns + timeout_ns && self.is_stray(number) {
                // Lost in a panic: no fault of the node's.
                self.give_up(shared, requests, number, &op);
                continue;
            }
            if now_ns >= op.issued_ns + timeout_ns {
                shared.node_failed(op.node, op.connection, RemoteError::TimedOut);
                if self.link_generation.get(usize::from(op.node.0)) == Some(&op.connection) {
                    self.links.close(op.node);
                }
                // Its operations have ended: they are there to be taken.
                next_ns = now_ns;
                continue;
            }
            next_ns = next_ns.min(op.issued_ns + timeout_ns);
            if op.hedged || op.abandoned {
                continue;
            }
            if now_ns < op.issued_ns + hedge_ns {
                next_ns = next_ns.min(op.issued_ns + hedge_ns);
            } else {
                self.hedge(shared, requests, number, now_ns);
            }
        }
        next_ns
    }

    fn hedge(&mut self, shared: &Shared, requests: &mut Requests, number: u32, now_ns: u64) {
        let Some(op) = self.ops.get_mut(number as usize) else { return };
        op.hedged = true;
        let op = *op;
        let mut state = shared.state();
        let Some(source) = self.source(&state, op.block, Some(op.node)) else { return };
        let Some(twin_number) = self.free.pop() else { return };
        state.model.blocks.pin(op.block);
        drop(state);
        let twin = ReadOp {
            node: source.node,
            remote: source.remote,
            connection: source.connection,
            hedged: true,
            second: true,
            twin: number,
            ..op
        };
        if let Some(load) = self.load.get_mut(usize::from(twin.node.0)) {
            *load += 1;
        }
        self.ops[twin_number as usize] = twin;
        self.ops[number as usize].twin = twin_number;
        requests.started(op.tag);
        shared.counters.hedges.fetch_add(1, Ordering::Relaxed);
        self.send(shared, requests, twin_number, now_ns);
    }

    /// Reads under way.
    pub(super) fn under_way(&self) -> usize {
        self.ops.len() - self.free.len()
    }
}

enum Failure {
    Remote(RemoteError),
    Record(PageNo, Location, RecordError),
}

/// Opens every record of an answer and restores the pages that were asked for. What was only brought along may be bad.
fn restore(
    op: &ReadOp,
    bytes: &mut [u8],
    opened: &mut Vec<(RecordHeader, Location, bool, usize, usize)>,
    decompressor: &mut Decompressor,
    key: Option<&PageKey>,
    io: &mut dyn QueueIo,
) -> Result<(), (PageNo, Location, RecordError)> {
    opened.clear();
    let mut payload = io.payload(op.tag);
    let data = payload.buffer_mut().unwrap_or_default();
    for (at, page, index) in &op.pages[..op.count as usize] {
        let from = at.offset_bytes().wrapping_sub(op.base_bytes as usize);
        let fail = |error| (*page, *at, error);
        let record = bytes.get_mut(from..).and_then(|rest| rest.get_mut(..at.len_bytes as usize));
        let place = Place { generation: op.generation, offset_units: at.offset_units };
        let good = record.ok_or(RecordError::Short).and_then(|record| {
            let start = record.as_ptr() as usize;
            let (header, content) = record::open(record, key, place)?;
            if header.page != *page {
                return Err(RecordError::Page(header.page.0));
            }
            if *index != AHEAD {
                let target = data.chunks_exact_mut(PAGE_BYTES).nth(*index as usize);
                let restored = target.is_some_and(|out| decompressor.decompress(header.codec, content, out));
                restored.then_some(()).ok_or(RecordError::Field)?;
            }
            Ok((header, from + (content.as_ptr() as usize - start), content.len()))
        });
        match good {
            Ok((header, at_byte, len)) => opened.push((header, *at, *index == AHEAD, at_byte, len)),
            Err(_) if *index == AHEAD => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(())
}

/// Puts what was read into the cache.
fn keep_copies(
    shared: &Shared,
    op: &ReadOp,
    bytes: &[u8],
    opened: &[(RecordHeader, Location, bool, usize, usize)],
) {
    let mut state = shared.state();
    debug_assert!(op.active);
    for (header, at, ahead, from, len) in opened {
        let Some(payload) = bytes.get(*from..*from + *len) else { continue };
        let kept = state.model.fill(header, *at, payload, *ahead);
        shared.counters.fills.fetch_add(u64::from(kept), Ordering::Relaxed);
        shared.counters.fills_ahead.fetch_add(u64::from(kept && *ahead), Ordering::Relaxed);
    }
}
