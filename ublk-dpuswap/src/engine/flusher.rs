//! Write-back: dirty groups are packed into runs and sent to every copy of the open block, several runs at a time.
//!
//! One thread does this, and the cleaning between ([`super::cleaner`]): nobody else writes records. A run counts as written
//! when each copy has acknowledged it. Answers come in the order of the runs, so that they are waited for in that order too.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ublk_target::clock::monotonic_ns;

use super::cleaner::{CLEAN_AT_MOST_UNITS, CleanerBuffers};
use super::{Shared, State, wait};
use crate::alloc;
use crate::error::{Error, IoError};
use crate::model::{Batch, Item, Next, Stream};
use crate::record;
use crate::remote::Lane;
use crate::seal::{PageKey, Place};
use crate::units::{BlockId, MAX_REPLICAS, NodeId, RemoteBlock, UNIT_BYTES};

/// Runs on their way at once.
const RUNS: usize = 4;
/// Most blocks cleaned to make room for one run.
const CLEAN_MOST: usize = 64;
/// How late a sleeper may wake up.
const SLEEP_LATE_NS: u64 = 1_000_000;
/// Pause after a write-back that failed.
const BACK_OFF: Duration = Duration::from_millis(200);
/// Stacks are locked in memory: small ones.
pub(super) const STACK_BYTES: usize = 256 << 10;

/// A copy of a block that is written to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) node: NodeId,
    pub(super) remote: RemoteBlock,
    /// Of the node's connection.
    pub(super) connection: u32,
    /// The ticket of its write, whose answer is to be waited for.
    begun: Option<u64>,
    /// When the answer counts, over a link that is only modelled.
    due_ns: u64,
}

/// The copies of a block that is written to.
pub(super) type Targets = [Option<Target>; MAX_REPLICAS];

struct Run {
    staging: Box<[u8]>,
    items: Vec<Item>,
    batch: Option<Batch>,
    targets: Targets,
}

/// Buffers of the flusher, allocated once.
pub(super) struct Writer {
    runs: [Run; RUNS],
    /// The oldest run under way.
    oldest: usize,
    under_way: usize,
    pub(super) cleaner: CleanerBuffers,
    pub(super) key: Option<PageKey>,
}

impl Writer {
    pub(super) fn new(shared: &Shared) -> Self {
        let bytes = shared.config.staging_bytes();
        let run = || Run {
            staging: vec![0; bytes].into_boxed_slice(),
            items: Vec::with_capacity(bytes / UNIT_BYTES),
            batch: None,
            targets: [None; MAX_REPLICAS],
        };
        Self {
            runs: std::array::from_fn(|_| run()),
            oldest: 0,
            under_way: 0,
            cleaner: CleanerBuffers::new(shared),
            key: shared.page_key.as_ref().map(PageKey::new),
        }
    }
}

/// Starts the flusher's thread.
pub(super) fn spawn(shared: &Arc<Shared>) -> Result<JoinHandle<()>, Error> {
    spawn_thread(shared, "dpuswap-flush", |shared| {
        let mut writer = Writer::new(shared);
        alloc::watch_this_thread();
        shared.flusher(&mut writer);
    })
}

/// Starts a thread on the path of swap.
pub(super) fn spawn_thread(
    shared: &Arc<Shared>,
    name: &str,
    run: impl FnOnce(&Shared) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
    let run = move || {
        shared.protect_thread();
        run(&shared);
    };
    thread.spawn(run).map_err(|source| Error::System { what: format!("thread {name}"), source })
}

/// What became of the attempt to begin a run.
enum Begun {
    Yes,
    /// Nothing is dirty.
    Clean,
    /// Something else had to be done first.
    Again,
}

impl Shared {
    /// Waits until the cache is too dirty, then writes back until it is clean enough; cleans blocks when they run low.
    fn flusher(&self, writer: &mut Writer) {
        let mut failed = false;
        while !self.stopping() {
            {
                let state = self.state();
                if failed || !state.flush_wanted {
                    let pause = if failed { BACK_OFF } else { self.config.heartbeat };
                    wait(&self.flush, state, pause).flush_wanted = true;
                }
            }
            self.state().flush_wanted = false;
            failed = !self.flush_once(writer);
        }
        while writer.under_way > 0 {
            self.finish_oldest(writer);
        }
    }

    /// `false` when write-back failed.
    pub(super) fn flush_once(&self, writer: &mut Writer) -> bool {
        while !self.stopping() {
            let (dirty, wanted) = {
                let state = self.state();
                (state.model.cache().dirty_permille(), state.room_wanted)
            };
            if dirty > self.config.flush_stop_permille || wanted {
                match self.write_some(writer) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.tell_room(None);
                        return true;
                    }
                    Err(error) => {
                        self.drain(writer);
                        self.tell_room(Some(error));
                        return false;
                    }
                }
            } else {
                self.drain(writer);
                if !self.clean_early(writer) {
                    return true;
                }
            }
        }
        true
    }

    /// Begins runs until enough are under way, then ends the oldest. `false` when nothing is dirty and nothing under way.
    ///
    /// # Errors
    /// No node answers, or none has space and cleaning gives none. The pages stay in the cache.
    pub(super) fn write_some(&self, writer: &mut Writer) -> Result<bool, IoError> {
        let mut tries = 4 * self.state().nodes.len() + 8 + CLEAN_MOST;
        while writer.under_way < RUNS {
            match self.begin_run(writer)? {
                Begun::Yes => {}
                Begun::Clean => break,
                Begun::Again if tries == 0 => return Err(self.no_place()),
                Begun::Again => tries -= 1,
            }
        }
        if writer.under_way == 0 {
            return Ok(false);
        }
        self.finish_oldest(writer);
        Ok(true)
    }

    /// Ends all runs under way.
    pub(super) fn drain(&self, writer: &mut Writer) {
        while writer.under_way > 0 {
            self.finish_oldest(writer);
        }
    }

    /// Lets those who wait for room look again; they fail when there is none to be had for long.
    fn tell_room(&self, no_room: Option<IoError>) {
        let mut state = self.state();
        state.no_room =
            no_room.map(|error| (error, state.no_room.map_or_else(Instant::now, |(_, since)| since)));
        let wanted = std::mem::take(&mut state.room_wanted);
        drop(state);
        if wanted {
            self.wake_queues();
        }
    }

    fn no_place(&self) -> IoError {
        if self.state().nodes.iter().any(|node| node.up) { IoError::NoSpace } else { IoError::NoNode }
    }

    /// Opens a block when the current one has no room for the next group, and sends a run into it.
    fn begin_run(&self, writer: &mut Writer) -> Result<Begun, IoError> {
        let at = (writer.oldest + writer.under_way) % RUNS;
        let next = {
            let mut guard = self.state();
            let state = &mut *guard;
            let Some(need) = state.model.next_run_units() else { return Ok(Begun::Clean) };
            let fits = state.model.blocks.open_block(Stream::New).is_some_and(|(.., left)| left >= need);
            let next = if fits {
                Next::Opened
            } else {
                state.model.blocks.open_next(Stream::New, &mut state.choices)
            };
            let Some(run) = writer.runs.get_mut(at).filter(|_| next == Next::Opened) else {
                drop(guard);
                return self.get_block(writer, next);
            };
            let open = state.model.blocks.open_block(Stream::New);
            let Some(targets) = open.and_then(|(block, ..)| state.targets(block)) else {
                state.model.blocks.seal(Stream::New);
                return Ok(Begun::Again);
            };
            run.targets = targets;
            run.batch = state.model.begin_batch(&mut run.staging, &mut run.items);
            run.batch.is_some()
        };
        if !next {
            return Ok(Begun::Clean);
        }
        let Some(run) = writer.runs.get_mut(at) else { return Ok(Begun::Clean) };
        self.send_run(run, writer.key.as_ref());
        writer.under_way += 1;
        Ok(Begun::Yes)
    }

    /// Gets what is needed before a block can be opened.
    fn get_block(&self, writer: &mut Writer, next: Next) -> Result<Begun, IoError> {
        match next {
            Next::Reserve(node) => {
                // Answers come in order: those of the runs are before that of the reservation.
                self.drain(writer);
                self.reserve_from(node, Lane::WRITER);
                Ok(Begun::Again)
            }
            _ if writer.under_way > 0 => {
                self.drain(writer);
                Ok(Begun::Again)
            }
            _ if self.clean_one(writer, CLEAN_AT_MOST_UNITS) => Ok(Begun::Again),
            _ => Err(self.no_place()),
        }
    }

    fn send_run(&self, run: &mut Run, key: Option<&PageKey>) {
        let Run { staging, items, batch, targets } = run;
        let Some(batch) = batch else { return };
        for item in items.iter() {
            let from = (item.new.offset_units - batch.offset_units) as usize * UNIT_BYTES;
            let place = Place { generation: batch.generation, offset_units: item.new.offset_units };
            if let Some(record) = staging.get_mut(from..from + item.new.len_bytes as usize) {
                record::seal(record, key, place);
            }
        }
        let bytes = staging.get(..batch.units as usize * UNIT_BYTES).unwrap_or_default();
        self.begin_writes(targets, batch, bytes);
    }

    /// Sends a run to every copy.
    pub(super) fn begin_writes(&self, targets: &mut Targets, batch: &Batch, bytes: &[u8]) {
        let offset_bytes = batch.offset_units * UNIT_BYTES as u32;
        for target in targets.iter_mut().flatten() {
            let Some(remote) = self.remote(target.node) else { continue };
            target.due_ns = self.link_due_ns(target.node, self.link_now_ns(), bytes.len(), 0);
            match remote.start_write(Lane::WRITER, target.remote, offset_bytes, bytes) {
                Ok(ticket) => target.begun = Some(ticket),
                Err(error) => self.call_failed(batch.block, target.node, target.connection, error),
            }
        }
    }

    /// Waits for the answers to [`Shared::begin_writes`]. Gives whether every copy has the run.
    pub(super) fn end_writes(&self, targets: &mut Targets, batch: &Batch) -> bool {
        let bytes = batch.units as usize * UNIT_BYTES;
        let mut written = targets.iter().any(Option::is_some);
        for target in targets.iter_mut().flatten() {
            let Some((remote, ticket)) = self.remote(target.node).zip(target.begun.take()) else {
                written = false;
                continue;
            };
            let answer = remote.finish_write(Lane::WRITER, ticket);
            self.wait_for_link(target.due_ns);
            match answer {
                Ok(()) => self.counters.count_written(target.node, bytes),
                Err(error) => {
                    written = false;
                    self.call_failed(batch.block, target.node, target.connection, error);
                }
            }
        }
        written
    }

    fn link_now_ns(&self) -> u64 {
        if self.link.is_some() { monotonic_ns() } else { 0 }
    }

    /// Waits for a link that is only modelled. Sleepers wake up late, by more than a link takes: the last part is polled.
    fn wait_for_link(&self, due_ns: u64) {
        if due_ns == 0 {
            return;
        }
        loop {
            let left_ns = due_ns.saturating_sub(monotonic_ns());
            if left_ns == 0 {
                return;
            }
            if left_ns < SLEEP_LATE_NS {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_nanos(left_ns - SLEEP_LATE_NS));
            }
        }
    }

    fn finish_oldest(&self, writer: &mut Writer) {
        let Some(run) = writer.runs.get_mut(writer.oldest) else { return };
        writer.oldest = (writer.oldest + 1) % RUNS;
        writer.under_way -= 1;
        let Some(batch) = run.batch.take() else { return };
        let written = self.end_writes(&mut run.targets, &batch);
        let wanted = {
            let mut state = self.state();
            state.model.finish_batch(&batch, &run.items, written);
            if written {
                state.no_room = None;
            }
            written && std::mem::take(&mut state.room_wanted)
        };
        if wanted {
            self.wake_queues();
        }
        if written {
            self.counters.batches.fetch_add(1, Ordering::Relaxed);
            let bytes = u64::from(batch.units) * UNIT_BYTES as u64;
            self.counters.bytes_written_back.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl State {
    /// The copies of a block that is to be written to; `None` unless all are up.
    pub(super) fn targets(&self, block: BlockId) -> Option<Targets> {
        let mut targets = [None; MAX_REPLICAS];
        let mut any = false;
        for (slot, (node, remote, up)) in targets.iter_mut().zip(self.model.blocks.copies(block)) {
            if !up {
                return None;
            }
            any = true;
            *slot = Some(Target { node, remote, connection: self.generation(node), begun: None, due_ns: 0 });
        }
        any.then_some(targets)
    }

    /// A copy of a block that can be read.
    pub(super) fn readable_copy(&self, block: BlockId) -> Option<Target> {
        let (node, remote, _) = self.model.blocks.copies(block).find(|(.., up)| *up)?;
        Some(Target { node, remote, connection: self.generation(node), begun: None, due_ns: 0 })
    }
}

#[cfg(test)]
impl Shared {
    /// Writes back everything that is dirty.
    pub(super) fn flush_for_test(&self, writer: &mut Writer) -> Result<(), IoError> {
        while self.write_some(writer)? {}
        Ok(())
    }
}
