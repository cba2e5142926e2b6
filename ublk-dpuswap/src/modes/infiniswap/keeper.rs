//! The thread beside the queue: connects nodes, asks whether they live, maps slabs and gives them back.
//!
//! The invariant: the queue learns of every change here through [`Shared`], and only this thread talks to nodes in a way that
//! can wait.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::slabs::{Slabs, choose};
use crate::Error;
use crate::links::LinkStart;
use crate::proto::INFO_DRAINING;
use crate::remote::{Lane, RemoteError, RemoteNode};
use crate::units::{Choices, NodeId, RemoteBlock};

/// Between two looks at the nodes.
const STEP: Duration = Duration::from_millis(200);

/// What the queue counts.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) remote_reads: AtomicU64,
    pub(super) remote_writes: AtomicU64,
    pub(super) backup_reads: AtomicU64,
    pub(super) backup_writes: AtomicU64,
    pub(super) backup_errors: AtomicU64,
    pub(super) zero_reads: AtomicU64,
    pub(super) read_errors: AtomicU64,
    pub(super) write_errors: AtomicU64,
    pub(super) discarded_pages: AtomicU64,
    pub(super) waits: AtomicU64,
}

/// A node and what is known of it.
pub(super) struct Peer {
    node: Arc<dyn RemoteNode>,
    up: AtomicBool,
    /// Set by the queue: its link broke.
    pub(super) lost: AtomicBool,
    /// Set by the keeper: the queue's link is to be closed.
    pub(super) close: AtomicBool,
    /// A new link for the queue.
    pub(super) start: Mutex<Option<LinkStart>>,
    free_blocks: AtomicU32,
    /// Epoch and lease of the blocks that are held.
    known: Mutex<Option<(u64, u64)>>,
}

/// What the keeper and the queue share.
pub(super) struct Shared {
    pub(super) peers: Vec<Peer>,
    pub(super) slabs: Mutex<Slabs>,
    pub(super) counters: Counters,
    has_backup: bool,
    choices: Mutex<Choices>,
    stop: Mutex<bool>,
    wake: Condvar,
}

/// A lock that outlives a panic elsewhere.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        nodes: Vec<Arc<dyn RemoteNode>>,
        pages: u32,
        slab_blocks: u32,
        has_backup: bool,
        seed: u64,
    ) -> Self {
        let peer = |node| Peer {
            node,
            up: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            close: AtomicBool::new(false),
            start: Mutex::new(None),
            free_blocks: AtomicU32::new(0),
            known: Mutex::new(None),
        };
        Self {
            peers: nodes.into_iter().map(peer).collect(),
            slabs: Mutex::new(Slabs::new(pages, slab_blocks)),
            counters: Counters::default(),
            has_backup,
            choices: Mutex::new(Choices::new(seed)),
            stop: Mutex::new(false),
            wake: Condvar::new(),
        }
    }

    /// One round: every node is looked at, then slabs that are nowhere are mapped. Gives the last error.
    pub(super) fn round(&self) -> Result<(), (usize, RemoteError)> {
        let mut trouble = Ok(());
        for number in 0..self.peers.len() {
            if let Err(error) = self.look_at(number) {
                trouble = Err((number, error));
            }
        }
        self.map_slabs();
        trouble
    }

    fn look_at(&self, number: usize) -> Result<(), RemoteError> {
        let Some(peer) = self.peers.get(number) else { return Ok(()) };
        if peer.up.load(Relaxed) && !peer.lost.load(Relaxed) {
            match peer.node.stat(Lane::CONTROL) {
                Ok(info) => {
                    peer.free_blocks.store(info.free_blocks, Relaxed);
                    let draining = info.flags & INFO_DRAINING != 0;
                    let wanted = if draining { info.held_blocks } else { info.reclaim_blocks };
                    if draining {
                        peer.free_blocks.store(0, Relaxed);
                    }
                    self.give_back(number, wanted);
                    return Ok(());
                }
                Err(error) => self.down(number, &error.to_string()),
            }
        } else if peer.up.load(Relaxed) {
            self.down(number, "its connection is broken");
        }
        let info = peer.node.connect()?;
        let now = (info.epoch, info.lease);
        let before = lock(&peer.known).replace(now);
        if before.is_some_and(|before| before != now) {
            self.forget(number);
        }
        let start = peer.node.open_link(0)?;
        peer.free_blocks.store(info.free_blocks, Relaxed);
        *lock(&peer.start) = Some(start);
        peer.lost.store(false, Relaxed);
        peer.up.store(true, Relaxed);
        Ok(())
    }

    /// Pages on a node that is gone are read from the backup; without one, the node may come back with them.
    fn down(&self, number: usize, why: &str) {
        let Some(peer) = self.peers.get(number) else { return };
        log::error!("node {} is down: {why}", peer.node.name());
        peer.up.store(false, Relaxed);
        peer.close.store(true, Relaxed);
        if self.has_backup {
            self.forget(number);
        }
    }

    /// Slabs of the node are nowhere from now on.
    fn forget(&self, number: usize) {
        let mut slabs = lock(&self.slabs);
        while let Some(slab) = slabs.next_on(NodeId(number as u16)) {
            slabs.unmap(slab);
        }
    }

    /// The node wants blocks back: whole slabs, of which the backup has every page. Without a backup nothing is given.
    fn give_back(&self, number: usize, blocks: u32) {
        let Some(peer) = self.peers.get(number).filter(|_| self.has_backup) else { return };
        let mut given = 0;
        while given < blocks as usize {
            let taken = {
                let mut slabs = lock(&self.slabs);
                let Some(slab) = slabs.next_on(NodeId(number as u16)) else { return };
                slabs.unmap(slab)
            };
            given += taken.len();
            if let Err(error) = peer.node.release(Lane::CONTROL, &taken) {
                return self.down(number, &error.to_string());
            }
        }
    }

    fn map_slabs(&self) {
        let mut from = 0;
        loop {
            let (slab, blocks) = {
                let slabs = lock(&self.slabs);
                let Some(slab) = slabs.next_unmapped(from) else { return };
                (slab, slabs.blocks_each())
            };
            let free: Vec<u32> = self.peers.iter().map(Peer::room).collect();
            let Some(node) = choose(&free, blocks, &mut lock(&self.choices)) else { return };
            if let Some(found) = self.reserve(node, blocks) {
                lock(&self.slabs).map(slab, node, found);
                from = slab + 1;
            }
        }
    }

    /// All blocks of a slab, or none.
    fn reserve(&self, node: NodeId, count: u32) -> Option<Vec<RemoteBlock>> {
        let peer = self.peers.get(usize::from(node.0))?;
        let mut blocks = vec![RemoteBlock::default(); count as usize];
        let mut got = 0;
        while got < blocks.len() {
            // A message carries so many at most.
            let end = blocks.len().min(got + 64);
            match peer.node.reserve(Lane::CONTROL, &mut blocks[got..end]) {
                Ok(reserved) if reserved.granted > 0 => {
                    got += reserved.granted;
                    peer.free_blocks.store(reserved.free_blocks, Relaxed);
                }
                Ok(_) => break,
                Err(error) => {
                    self.down(usize::from(node.0), &error.to_string());
                    return None;
                }
            }
        }
        if got == blocks.len() {
            return Some(blocks);
        }
        // It has promised more than it gives: not to be asked again in this round.
        peer.free_blocks.store(0, Relaxed);
        if got > 0
            && let Err(error) = peer.node.release(Lane::CONTROL, &blocks[..got])
        {
            self.down(usize::from(node.0), &error.to_string());
        }
        None
    }

    pub(super) fn report(&self) -> serde_json::Value {
        let c = &self.counters;
        let slabs = lock(&self.slabs);
        let nodes = self.peers.iter().enumerate().map(|(number, peer)| {
            serde_json::json!({
                "name": peer.node.name(), "up": peer.up.load(Relaxed), "free_blocks": peer.free_blocks.load(Relaxed),
                "slabs": slabs.count_on(NodeId(number as u16)),
            })
        });
        let nodes: Vec<_> = nodes.collect();
        serde_json::json!({
            "mode": "infiniswap", "slab_blocks": slabs.blocks_each(), "slabs": slabs.len(), "nodes": nodes,
            "counters": {
                "remote_reads": c.remote_reads.load(Relaxed), "remote_writes": c.remote_writes.load(Relaxed),
                "backup_reads": c.backup_reads.load(Relaxed), "backup_writes": c.backup_writes.load(Relaxed),
                "backup_errors": c.backup_errors.load(Relaxed), "zero_reads": c.zero_reads.load(Relaxed),
                "read_errors": c.read_errors.load(Relaxed), "write_errors": c.write_errors.load(Relaxed),
                "discarded_pages": c.discarded_pages.load(Relaxed), "waits": c.waits.load(Relaxed),
            },
        })
    }
}

impl Peer {
    fn room(&self) -> u32 {
        if self.up.load(Relaxed) { self.free_blocks.load(Relaxed) } else { 0 }
    }
}

/// The thread.
#[derive(Default)]
pub(super) struct Keeper {
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Connects the nodes and maps the slabs, then goes on with that on a thread of its own.
    pub(super) fn start(&self, shared: &Arc<Shared>) -> Result<(), Error> {
        let trouble = shared.round();
        let alive = shared.peers.iter().any(|peer| peer.up.load(Relaxed));
        if let (false, Err((number, source))) = (alive, trouble) {
            let node = shared.peers.get(number).map(|peer| peer.node.name().to_owned()).unwrap_or_default();
            return Err(Error::Node { node, source });
        }
        let served = Arc::clone(shared);
        let thread = std::thread::Builder::new().name("infini-keeper".to_owned()).stack_size(512 << 10);
        let thread = thread.spawn(move || {
            let mut stop = lock(&served.stop);
            while !*stop {
                stop = served.wake.wait_timeout(stop, STEP).unwrap_or_else(PoisonError::into_inner).0;
                if !*stop {
                    drop(stop);
                    // Whatever is wrong now is tried again in the next round; nodes going down are in the log.
                    let _ = served.round();
                    stop = lock(&served.stop);
                }
            }
        });
        let thread =
            thread.map_err(|source| Error::System { what: "the keeper's thread".to_owned(), source })?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Ends the thread and gives everything back to the nodes.
    pub(super) fn stop(&self, shared: &Shared) {
        *lock(&shared.stop) = true;
        shared.wake.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
        for peer in &shared.peers {
            peer.node.disconnect();
        }
    }
}
