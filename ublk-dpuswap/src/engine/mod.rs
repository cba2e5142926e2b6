//! The engine: swap-out, swap-in and discard over the model, with write-back, cleaning, copies and node failures.
//!
//! Who does what: each queue's thread ([`QueueWorker`]) stores pages in the cache and reads remote ones over its own
//! connections, many at a time, on the ring of its ublk queue; the *flusher* writes dirty pages back and cleans blocks; the
//! *copier* moves whole blocks (a node takes memory back, or a copy is missing); one *keeper* per node connects, asks and
//! releases. They meet in `state`, a lock that is held for moments and never during I/O; a thread that holds it takes nothing
//! else, but the mailbox of a queue. So nothing can deadlock.
//!
//! How long a request may take: a swap-in whose pages have a copy on a node that answers is sent there after
//! [`Config::hedge`] at the latest, so a node's death costs that and a round trip. Without another copy it waits for the
//! node until [`Config::node_patience`] after it went down. A swap-out waits for room until [`Config::room_patience`].
//! Either then fails.
//!
//! Invariants: an acknowledged write stays in the cache until every copy of its block has acknowledged its record; a write
//! that cannot be placed fails (the kernel then keeps the page); a read gives the newest acknowledged content, or an error,
//! never anything else. Nothing on the paths of swap-out, write-back, cleaning and copying allocates ([`crate::alloc`]).

mod cleaner;
mod config;
mod copier;
mod flusher;
mod keeper;
mod nodes;
mod queue;
mod readahead;
mod reads;
mod report;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::error::{Error, IoError};
use crate::link::{LinkKind, LinkModel, LinkOverrides};
use crate::lock;
use crate::memory::Memory;
use crate::model::{Model, Recovered, Shape};
use crate::remote::{Lane, RemoteNode};
use crate::units::{BlockId, Choices, MAX_NODES, NodeId};
pub use config::{Config, MAX_CACHE_BYTES, MAX_GROUP_PAGES, MAX_PAGES};
use nodes::NodeState;
use queue::Waker;
pub use queue::{MAX_REQUEST_PAGES, QueueWorker};
pub use report::{Counted, Counters, NodeReport, Report};

struct State {
    model: Model,
    choices: Choices,
    /// By slot. Its capacity is [`MAX_NODES`] from the start.
    nodes: Vec<NodeState>,
    flush_wanted: bool,
    copy_wanted: bool,
    /// A node wants memory back for which there is no room elsewhere.
    clean_wanted: bool,
    /// A queue waits for room in the cache.
    room_wanted: bool,
    /// Why write-back finds no place, and since when; `None` since it did.
    no_room: Option<(IoError, Instant)>,
    /// A bad record that the cleaner met, until a keeper has logged it.
    bad_record: Option<(BlockId, usize, crate::record::RecordError)>,
}

struct Shared {
    config: Config,
    /// By slot; a node keeps its slot for ever.
    nodes: Box<[OnceLock<Arc<dyn RemoteNode>>]>,
    state: Mutex<State>,
    flush: Condvar,
    keep: Condvar,
    copy: Condvar,
    wakers: Box<[Waker]>,
    /// Grows with every change of a node that queues must hear of.
    changes: AtomicU32,
    page_key: Option<[u8; 32]>,
    /// The links that the nodes are to seem to be behind; `None` when they are what they are.
    link: Option<Mutex<LinkModel>>,
    stop: AtomicBool,
    counters: Counters,
}

/// A running engine, shared by the queues.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Bytes of the mapping that an engine of this configuration keeps everything in.
pub fn memory_bytes(config: &Config) -> usize {
    Model::memory_bytes(shape(config))
}

fn shape(config: &Config) -> Shape {
    Shape {
        pages: config.pages,
        group_pages: config.group_pages,
        cache_bytes: config.cache_bytes,
        max_blocks: config.max_blocks(),
        nodes: MAX_NODES as u16,
        replicas: config.replicas,
        sealed: config.sealed,
    }
}

impl Engine {
    /// Makes an empty device in `memory`, connects to the nodes and allocates everything. Starts no thread: see
    /// [`Engine::start`].
    ///
    /// # Errors
    /// A node cannot be used (named), or an option is wrong. No node keeps anything reserved then.
    pub fn open(
        config: Config,
        memory: Memory,
        client_id: u64,
        page_key: [u8; 32],
        nodes: Vec<Arc<dyn RemoteNode>>,
    ) -> Result<Self, Error> {
        config.check()?;
        let mut model = Model::create(shape(&config), memory)?;
        let identity = model.identity_mut();
        identity.client_id = client_id;
        identity.page_key = page_key;
        let engine = Self::with_model(config, model)?;
        for node in nodes {
            let name = node.name().to_owned();
            let slot = engine.shared.add_slot(node)?;
            engine.shared.connect(slot, false).map_err(|source| Error::Node { node: name, source })?;
        }
        engine.shared.reserve_ahead(Lane::CONTROL);
        Ok(engine)
    }

    /// Goes on with what an engine that was killed left in `memory`. `remake` makes the node of a name again, for a client
    /// id. A node that cannot be reached is tried again by its keeper.
    ///
    /// # Errors
    /// The memory is not one that an engine left, or contradicts `config`.
    pub fn recover(
        config: Config,
        memory: Memory,
        remake: impl Fn(&str, u64) -> Result<Arc<dyn RemoteNode>, Error>,
    ) -> Result<(Self, Recovered), Error> {
        config.check()?;
        let (model, recovered) = Model::recover(memory)?;
        if *model.shape() != shape(&config) {
            return Err(Error::Option("the device's memory was made with other options".to_owned()));
        }
        let client_id = model.identity().client_id;
        let names: Vec<String> = model.identity().nodes.iter().map(|node| node.name().to_owned()).collect();
        let engine = Self::with_model(config, model)?;
        for name in names.into_iter().take_while(|name| !name.is_empty()) {
            let slot = engine.shared.add_slot(remake(&name, client_id)?)?;
            if let Err(error) = engine.shared.connect(slot, true) {
                log::warn!("node {name}: {error}; it is tried again");
            }
        }
        {
            let mut guard = engine.shared.state();
            let state = &mut *guard;
            for slot in (0..state.nodes.len() as u16).map(NodeId) {
                if !state.is_up(slot) {
                    // What the cache still has of its pages must not be given up for a copy that nobody can read.
                    state.model.node_down(slot);
                }
            }
            state.flush_wanted = true;
        }
        Ok((engine, recovered))
    }

    fn with_model(config: Config, model: Model) -> Result<Self, Error> {
        let wakers = (0..config.queues).map(|_| Waker::new()).collect::<Result<_, _>>()?;
        let page_key = config.sealed.then_some(model.identity().page_key);
        let state = State {
            model,
            choices: Choices::new(config.seed),
            nodes: Vec::with_capacity(MAX_NODES),
            flush_wanted: false,
            copy_wanted: false,
            clean_wanted: false,
            room_wanted: false,
            no_room: None,
            bad_record: None,
        };
        let shared = Shared {
            counters: Counters::new(MAX_NODES),
            nodes: (0..MAX_NODES).map(|_| OnceLock::new()).collect(),
            state: Mutex::new(state),
            flush: Condvar::new(),
            keep: Condvar::new(),
            copy: Condvar::new(),
            wakers,
            changes: AtomicU32::new(0),
            page_key,
            link: (config.link != LinkKind::None)
                .then(|| Mutex::new(LinkModel::new(config.link, LinkOverrides::default()))),
            config,
            stop: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared), threads: Mutex::new(Vec::new()) })
    }

    /// Starts write-back, copying and the keepers, each on a thread of its own. After a fork, not before.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(&self) -> Result<(), Error> {
        let shared = &self.shared;
        self.keep_thread(flusher::spawn(shared)?);
        self.keep_thread(copier::spawn(shared)?);
        let slots = shared.state().nodes.len() as u16;
        for slot in 0..slots {
            self.keep_thread(keeper::spawn(shared, NodeId(slot))?);
        }
        Ok(())
    }

    fn keep_thread(&self, thread: JoinHandle<()>) {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Takes a node in while the engine runs; its keeper connects it. One that is known by that name already is left.
    ///
    /// # Errors
    /// There are [`MAX_NODES`] nodes already, or a thread cannot be started.
    pub fn join(&self, node: Arc<dyn RemoteNode>) -> Result<bool, Error> {
        if self.shared.slot_of(node.name()).is_some() {
            return Ok(false);
        }
        let slot = self.shared.add_slot(node)?;
        self.keep_thread(keeper::spawn(&self.shared, slot)?);
        Ok(true)
    }

    /// Says that a node is about to leave: nothing more is put there, and what is there moves away.
    pub fn leave(&self, name: &str) {
        if let Some(slot) = self.shared.slot_of(name) {
            self.shared.set_leaving(slot, true);
        }
    }

    /// Names of all nodes, by slot.
    pub fn node_names(&self) -> Vec<String> {
        self.shared.nodes.iter().filter_map(OnceLock::get).map(|node| node.name().to_owned()).collect()
    }

    /// Whether the engine has been told to stop.
    pub fn is_stopping(&self) -> bool {
        self.shared.stopping()
    }

    /// The number by which nodes know this device.
    pub fn client_id(&self) -> u64 {
        self.shared.state().model.identity().client_id
    }

    /// Stops the threads and gives everything back to the nodes. The content is gone.
    pub fn stop(&self) {
        self.halt();
        for node in self.shared.nodes.iter().filter_map(OnceLock::get) {
            node.disconnect();
        }
    }

    /// Stops the threads and leaves everything as it is, for [`Engine::recover`].
    pub fn halt(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.state());
        self.shared.flush.notify_all();
        self.shared.keep.notify_all();
        self.shared.copy.notify_all();
        let threads: Vec<_> = self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// The handler of a queue.
    pub fn queue(&self, queue: u16, depth: u16) -> QueueWorker {
        QueueWorker::new(&self.shared, queue, depth)
    }

    /// Pages of the device.
    pub fn pages(&self) -> u32 {
        self.shared.config.pages
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn remote(&self, node: NodeId) -> Option<&Arc<dyn RemoteNode>> {
        self.nodes.get(usize::from(node.0)).and_then(OnceLock::get)
    }

    fn node_name(&self, node: NodeId) -> &str {
        self.remote(node).map_or("?", |node| node.name())
    }

    /// Marks the calling thread as one that swap waits for. Where that is not allowed the process could not be protected
    /// either, and somebody has asked for that.
    fn protect_thread(&self) {
        if !self.config.safeguards.flusher {
            lock::stop_being_io_flusher();
        } else if let Err(error) = lock::become_io_flusher() {
            log::debug!("{error}");
        }
    }

    /// When an answer counts that a real node gave sooner: 0 for at once.
    fn link_due_ns(&self, node: NodeId, now_ns: u64, bytes_out: usize, bytes_in: usize) -> u64 {
        let Some(link) = &self.link else { return 0 };
        let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
        link.due_ns(node.0, now_ns, bytes_out as u64, bytes_in as u64)
    }

    /// Tells the queues that there may be room in the cache, or none for so long that waiting for it is over.
    fn wake_queues(&self) {
        self.wakers.iter().for_each(Waker::wake_for_room);
    }

    /// Tells the queues that a node has come or gone.
    fn tell_nodes_changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        self.wakers.iter().for_each(Waker::wake);
    }
}

/// Waits on a condition variable without caring why it ends.
fn wait<'a>(
    condvar: &Condvar,
    state: MutexGuard<'a, State>,
    limit: std::time::Duration,
) -> MutexGuard<'a, State> {
    condvar.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
}

/// Whether `since` is at least `patience` ago.
fn over(since: Instant, patience: std::time::Duration) -> bool {
    since.elapsed() >= patience
}

#[cfg(test)]
mod tests;
