//! The engine: swap-out, swap-in and discard over the model, with write-back, cleaning and node failures.
//!
//! Two locks. `writer` is held by whoever writes back or cleans, network included: one at a time. `state` is held for
//! moments and never during I/O. The order is writer, then state, then a lane of a node; a thread that holds `state`
//! takes nothing else. So nothing can deadlock.
//!
//! How long a request may take: a swap-in waits for a node that is down until [`Config::node_patience`] after its first
//! trouble, and no longer than that after the node went down; a swap-out waits for room until [`Config::room_patience`]
//! after it first found none. Either then fails, or ends with the calls that were under way, each of which has the
//! node's time-out.
//!
//! Invariants: an acknowledged write stays in the cache until a node has acknowledged its record; a write that cannot
//! be placed fails (the kernel then keeps the page); a read gives the newest acknowledged content, or an error, never
//! anything else. Nothing on the paths of swap-out, write-back and cleaning allocates.

mod background;
mod io;
mod report;
mod writeback;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, IoError};
use crate::model::{CLEANING_RESERVE, Model, Shape};
use crate::proto::{Info, Status};
use crate::record::MAX_RECORD_BYTES;
use crate::remote::{Lane, RemoteError, RemoteNode};
use crate::units::{
    BlockId, Choices, NodeId, PAGE_BYTES, RemoteBlock, UNIT_BYTES, UNITS_PER_BLOCK, units_of,
};
pub use io::QueueContext;
pub use report::{Counted, Counters, NodeReport, Report};
use writeback::Writer;

/// Most pages of a block group: its records must fit in one block even when nothing compresses.
pub const MAX_GROUP_PAGES: u32 = 128;
/// Most pages of a device (4 TiB): its tables take 8.4 GiB then.
pub const MAX_PAGES: u32 = 1 << 30;
/// Most bytes of cache (64 GiB).
pub const MAX_CACHE_BYTES: u64 = 64 << 30;
/// A node that refuses connections is not running: it is waited for no longer than this.
const REFUSED_PATIENCE: Duration = Duration::from_secs(2);
/// Blocks asked for in one RESERVE.
const RESERVE_BLOCKS: usize = 8;

/// How an engine is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pages of the device.
    pub pages: u32,
    /// Pages per block group: a power of two up to [`MAX_GROUP_PAGES`].
    pub group_pages: u32,
    /// Bytes of cache.
    pub cache_bytes: u64,
    /// Queues, each with its own connection to every node.
    pub queues: u16,
    /// Seed of the placement's choices.
    pub seed: u64,
    /// Write-back starts when this share of the cache is dirty, in thousandths.
    pub flush_start_permille: u32,
    /// Write-back stops when no more than this is.
    pub flush_stop_permille: u32,
    /// Time between heartbeats, and between attempts to reconnect.
    pub heartbeat: Duration,
    /// How long a swap-in waits for a node that went down to come back, before it is an error. Counted from when the
    /// node went down; at most 2 s when it refuses connections.
    pub node_patience: Duration,
    /// How long a swap-out waits for room in the cache, before it is an error.
    pub room_patience: Duration,
}

impl Config {
    /// The usual settings for a device of `pages` pages.
    pub fn new(pages: u32) -> Self {
        Self {
            pages,
            group_pages: 16,
            cache_bytes: 256 << 20,
            queues: 1,
            seed: 1,
            flush_start_permille: 250,
            flush_stop_permille: 125,
            heartbeat: Duration::from_secs(1),
            node_patience: Duration::from_secs(5),
            room_patience: Duration::from_secs(30),
        }
    }

    /// Most blocks the device may hold: all pages raw, with headers, and a quarter more for dead records.
    pub fn max_blocks(&self) -> u32 {
        let units = u64::from(self.pages) * u64::from(units_of(MAX_RECORD_BYTES));
        let blocks = units.div_ceil(u64::from(UNITS_PER_BLOCK));
        (blocks + blocks / 4 + 16).min(u64::from(u32::MAX / 2)) as u32
    }

    /// Checks the options that can be wrong.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn check(&self) -> Result<(), Error> {
        if !self.group_pages.is_power_of_two() || self.group_pages > MAX_GROUP_PAGES {
            let given = self.group_pages;
            return Err(Error::Option(format!(
                "group-pages {given}: a power of two from 1 to {MAX_GROUP_PAGES} is needed"
            )));
        }
        if self.pages == 0 {
            return Err(Error::Option("size: at least one page of 4 KiB is needed".to_owned()));
        }
        if self.pages > MAX_PAGES {
            let given = u64::from(self.pages) * PAGE_BYTES as u64;
            return Err(Error::Option(format!("size {given}: at most 4 TiB is possible")));
        }
        if self.cache_bytes > MAX_CACHE_BYTES {
            return Err(Error::Option(format!("cache {}: at most 64 GiB is possible", self.cache_bytes)));
        }
        Ok(())
    }
}

/// What the engine knows of a node besides its blocks.
struct NodeState {
    info: Info,
    up: bool,
    /// When it went down; means something only while it is.
    down_since: Instant,
    /// Whether it has refused a connection since.
    refused: bool,
    /// Counts connections, so that a late error of an old one does not bring the new one down.
    generation: u32,
    /// The error that brought the node down, until the keeper has logged it.
    unlogged: Option<(RemoteError, u32)>,
    /// Blocks that the node said are not ours, until the keeper has logged it.
    disowned: u32,
    failures: u64,
}

struct State {
    model: Model,
    choices: Choices,
    nodes: Vec<NodeState>,
    flush_wanted: bool,
    keep_wanted: bool,
}

struct Shared {
    config: Config,
    nodes: Vec<Box<dyn RemoteNode>>,
    state: Mutex<State>,
    writer: Mutex<Writer>,
    flush: Condvar,
    keep: Condvar,
    room: Condvar,
    /// A node is back, or is not expected any more.
    back: Condvar,
    stop: AtomicBool,
    counters: Counters,
}

/// A running engine, shared by the queues.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Connects to the nodes and allocates everything. Starts no thread: see [`Engine::start`].
    ///
    /// # Errors
    /// A node cannot be used (named), or an option is wrong. No node keeps anything reserved then.
    pub fn open(config: Config, nodes: Vec<Box<dyn RemoteNode>>) -> Result<Self, Error> {
        config.check()?;
        let mut known = Vec::new();
        for node in &nodes {
            let info =
                node.connect().map_err(|source| Error::Node { node: node.name().to_owned(), source })?;
            known.push(NodeState::up(info));
        }
        let shape = Shape {
            pages: config.pages,
            group_pages: config.group_pages,
            cache_bytes: config.cache_bytes,
            max_blocks: config.max_blocks(),
            nodes: nodes.len() as u16,
        };
        let mut model = Model::new(&shape);
        for (index, node) in known.iter().enumerate() {
            model.blocks.set_remote_free(NodeId(index as u16), node.info.free_blocks);
        }
        let state = State {
            model,
            choices: Choices::new(config.seed),
            nodes: known,
            flush_wanted: false,
            keep_wanted: false,
        };
        let shared = Shared {
            writer: Mutex::new(Writer::new(config.group_pages)),
            counters: Counters::new(nodes.len()),
            config,
            nodes,
            state: Mutex::new(state),
            flush: Condvar::new(),
            keep: Condvar::new(),
            room: Condvar::new(),
            back: Condvar::new(),
            stop: AtomicBool::new(false),
        };
        shared.reserve_ahead();
        Ok(Self { shared: Arc::new(shared), threads: Mutex::new(Vec::new()) })
    }

    /// Starts write-back and heartbeats, each on a thread of its own. After a fork, not before.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(&self) -> Result<(), Error> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.push(background::spawn(&self.shared, "dpuswap-flush", Shared::flusher)?);
        threads.push(background::spawn(&self.shared, "dpuswap-keep", Shared::keeper)?);
        Ok(())
    }

    /// Stops the threads and gives everything back to the nodes. The content is gone.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.state());
        self.shared.flush.notify_all();
        self.shared.keep.notify_all();
        self.shared.back.notify_all();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
        for node in &self.shared.nodes {
            node.disconnect();
        }
    }

    /// What a queue's thread needs for its own: call once per queue.
    pub fn queue(&self, queue: u16) -> QueueContext {
        QueueContext::new(queue)
    }

    /// Pages of the device.
    pub fn pages(&self) -> u32 {
        self.shared.config.pages
    }

    /// The address of a node.
    pub fn node_name(&self, node: NodeId) -> &str {
        self.shared.node_name(node)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn node_name(&self, node: NodeId) -> &str {
        self.nodes.get(usize::from(node.0)).map_or("?", |node| node.name())
    }

    fn remote(&self, node: NodeId) -> Result<&dyn RemoteNode, IoError> {
        self.nodes.get(usize::from(node.0)).map(Box::as_ref).ok_or(IoError::NodeDown(node))
    }

    /// Records that a call for a block failed. A block that is not ours is dropped; anything else is the node's failure.
    /// The caller holds a pin on the block.
    fn call_failed(&self, block: BlockId, node: NodeId, generation: u32, error: RemoteError) {
        if !matches!(error, RemoteError::Refused(_, Status::NotYours)) {
            return self.node_failed(node, generation, error);
        }
        let mut guard = self.state();
        let state = &mut *guard;
        if state.model.disown(block) {
            self.counters.blocks_disowned.fetch_add(1, Ordering::Relaxed);
            if let Some(known) = state.nodes.get_mut(usize::from(node.0)) {
                known.disowned += 1;
            }
            state.keep_wanted = true;
            drop(guard);
            self.keep.notify_one();
        }
    }

    /// Waits until a node that is down is up again. `false` when it is not expected any more, or the deadline is past.
    fn wait_for_node(&self, node: NodeId, deadline: Instant) -> bool {
        let mut state = self.state();
        while let Some(known) = state.nodes.get(usize::from(node.0)) {
            let now = Instant::now();
            // Before all else: a node that comes and goes must not keep a request for ever.
            if now >= deadline || self.stopping() {
                return false;
            }
            if known.up {
                return true;
            }
            let patience = self.config.node_patience;
            let patience = if known.refused { patience.min(REFUSED_PATIENCE) } else { patience };
            let left = deadline.min(known.down_since + patience).saturating_duration_since(now);
            if left.is_zero() {
                return false;
            }
            state = self.back.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// Records that a call on connection `generation` of a node failed: the node counts as down from now on, until
    /// the keeper has reconnected. What the cache still has of its pages is dirty again.
    fn node_failed(&self, node: NodeId, generation: u32, error: RemoteError) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(known) = state.nodes.get_mut(usize::from(node.0)) else { return };
        if !known.up || known.generation != generation {
            return;
        }
        known.up = false;
        (known.down_since, known.refused) = (Instant::now(), false);
        known.failures += 1;
        let saved = state.model.node_down(node);
        known.unlogged = Some((error, saved));
        state.keep_wanted = true;
        state.flush_wanted = true;
        drop(guard);
        self.keep.notify_one();
        self.flush.notify_one();
    }

    /// Borrows some blocks of a node. Gives whether the table has more blocks than before.
    fn reserve_from(&self, node: NodeId, lane: Lane) -> bool {
        let (room, generation) = {
            let state = self.state();
            (state.model.blocks.room(), state.generation(node))
        };
        let mut blocks = [RemoteBlock::numbered(0); RESERVE_BLOCKS];
        let want = RESERVE_BLOCKS.min(room as usize);
        let Ok(remote) = self.remote(node) else { return false };
        if want == 0 {
            return false;
        }
        match remote.reserve(lane, &mut blocks[..want]) {
            Ok(reserved) => {
                let mut state = self.state();
                let mut added = false;
                if state.generation(node) == generation {
                    state.model.blocks.set_remote_free(node, reserved.free_blocks);
                    for block in &blocks[..reserved.granted.min(want)] {
                        added |= state.model.blocks.add_reserved(node, *block);
                    }
                    if reserved.granted == 0 {
                        state.model.blocks.set_remote_free(node, 0);
                    }
                }
                added
            }
            Err(error) => {
                self.node_failed(node, generation, error);
                false
            }
        }
    }

    /// Makes sure that the cleaner's reserve is at hand and not only promised.
    fn reserve_ahead(&self) {
        for _ in 0..self.nodes.len() {
            let lacking = {
                let state = self.state();
                let blocks = &state.model.blocks;
                let able = blocks.nodes().filter(|(_, node)| node.up && node.remote_free > 0);
                let best = able.max_by_key(|(_, node)| node.remote_free).map(|(id, _)| id);
                best.filter(|_| blocks.local_free() <= CLEANING_RESERVE)
            };
            match lacking {
                Some(node) => self.reserve_from(node, Lane::CONTROL),
                None => return,
            };
        }
    }
}

impl NodeState {
    fn up(info: Info) -> Self {
        Self {
            info,
            up: true,
            down_since: Instant::now(),
            refused: false,
            generation: 0,
            unlogged: None,
            disowned: 0,
            failures: 0,
        }
    }
}

impl State {
    fn generation(&self, node: NodeId) -> u32 {
        self.nodes.get(usize::from(node.0)).map_or(0, |node| node.generation)
    }
}

/// Bytes of the buffer for a run of whole groups: 256 KiB, or one group when that is more.
fn staging_bytes(group_pages: u32) -> usize {
    let record = units_of(MAX_RECORD_BYTES) as usize * UNIT_BYTES;
    (group_pages as usize * record).max(64 * PAGE_BYTES)
}

#[cfg(test)]
mod tests;
