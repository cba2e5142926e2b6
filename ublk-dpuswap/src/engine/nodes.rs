//! What the engine knows of its nodes: who is up, who failed, what they lend and want back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Shared, State};
use crate::error::Error;
use crate::memory::barrier;
use crate::model::CLEANING_RESERVE;
use crate::proto::{INFO_DRAINING, Info, Status};
use crate::remote::{Lane, RemoteError, RemoteNode};
use crate::units::{BlockId, MAX_NODES, NodeId, RemoteBlock};

/// A node that refuses connections is not running: it is waited for no longer than this.
pub(super) const REFUSED_PATIENCE: Duration = Duration::from_secs(2);
/// Blocks asked for in one RESERVE.
const RESERVE_BLOCKS: usize = 8;

/// What the engine knows of a node besides its blocks.
pub(super) struct NodeState {
    pub(super) info: Info,
    pub(super) up: bool,
    /// When it went down; means something only while it is.
    pub(super) down_since: Instant,
    /// Whether it has refused a connection since.
    pub(super) refused: bool,
    /// Counts connections, so that a late error of an old one does not bring the new one down.
    pub(super) generation: u32,
    /// The error that brought the node down, until its keeper has logged it, and the pages that the cache still had.
    pub(super) unlogged: Option<(RemoteError, u32)>,
    /// Blocks that the node said are not ours, until its keeper has logged it.
    pub(super) disowned: u32,
    pub(super) failures: u64,
    /// It is to leave: nothing is put there, and all that is there moves away.
    pub(super) leaving: bool,
    /// Blocks that it wants back, as far as is known.
    pub(super) reclaim: u32,
    /// Until when.
    pub(super) reclaim_by: Option<Instant>,
}

impl NodeState {
    fn new() -> Self {
        Self {
            info: Info::default(),
            up: false,
            down_since: Instant::now(),
            refused: false,
            generation: 0,
            unlogged: None,
            disowned: 0,
            failures: 0,
            leaving: false,
            reclaim: 0,
            reclaim_by: None,
        }
    }

    /// Whether blocks have to move off this node.
    pub(super) fn gives_back(&self) -> bool {
        self.up && (self.reclaim > 0 || self.leaving)
    }
}

impl State {
    pub(super) fn generation(&self, node: NodeId) -> u32 {
        self.nodes.get(usize::from(node.0)).map_or(0, |node| node.generation)
    }

    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.nodes.get(usize::from(node.0)).is_some_and(|node| node.up)
    }

    /// The node's epoch and our lease there, when it was connected last; in this daemon's life or an earlier one.
    pub(super) fn node_life(&self, node: NodeId) -> Option<(u64, u64)> {
        let known = self.model.identity().nodes.get(usize::from(node.0))?;
        (known.wanted != 0).then_some((known.epoch, known.lease))
    }

    /// Puts blocks that the node holds for us, and that are nowhere in the books, into its pool. `held` is sorted, and `known`
    /// as long and all false.
    fn take_held(&mut self, slot: NodeId, held: &[RemoteBlock], known: &mut [bool]) {
        let whole = self.model.blocks.cross_out_known(slot, |block| {
            if let Some(known) = held.binary_search(&block).ok().and_then(|at| known.get_mut(at)) {
                *known = true;
            }
        });
        for (block, _) in held.iter().zip(known).filter(|(_, known)| whole && !**known) {
            self.model.blocks.add_reserved(slot, *block);
        }
    }

    /// Takes over what a node said of itself.
    pub(super) fn heard(&mut self, node: NodeId, info: &Info) {
        self.model.blocks.set_remote_free(node, info.free_blocks);
        let Some(known) = self.nodes.get_mut(usize::from(node.0)) else { return };
        known.info = *info;
        let draining = info.flags & INFO_DRAINING != 0;
        known.reclaim = if draining { info.held_blocks } else { info.reclaim_blocks };
        known.reclaim_by = (known.reclaim > 0)
            .then(|| Instant::now() + Duration::from_millis(info.reclaim_deadline_ms.into()));
        let accepting = !draining && known.reclaim == 0 && !known.leaving;
        self.copy_wanted |= known.gives_back();
        self.model.blocks.set_accepting(node, accepting);
    }
}

impl Shared {
    /// The slot of the node with this name.
    pub(super) fn slot_of(&self, name: &str) -> Option<NodeId> {
        let known = |node: &Arc<dyn RemoteNode>| node.name() == name;
        let slot = self.nodes.iter().position(|node| node.get().is_some_and(known))?;
        Some(NodeId(slot as u16))
    }

    /// Gives a node its slot. It is down until it is connected.
    pub(super) fn add_slot(&self, node: Arc<dyn RemoteNode>) -> Result<NodeId, Error> {
        let mut state = self.state();
        let slot = state.nodes.len();
        let full = || Error::Option(format!("more than {MAX_NODES} nodes"));
        let place = self.nodes.get(slot).ok_or_else(full)?;
        let id = NodeId(slot as u16);
        let named =
            state.model.identity_mut().nodes.get_mut(slot).is_some_and(|known| known.set_name(node.name()));
        if !named {
            return Err(Error::Option(format!("node {}: its name is too long", node.name())));
        }
        state.model.blocks.set_up(id, false);
        state.model.blocks.set_accepting(id, true);
        state.model.blocks.set_last_resort(id, node.is_last_resort());
        state.nodes.push(NodeState::new());
        place.set(node).map_err(|_| full())?;
        Ok(id)
    }

    /// Connects a node and takes it up; `recovering` asks it what it holds for us that no block of ours names.
    pub(super) fn connect(&self, slot: NodeId, recovering: bool) -> Result<(), RemoteError> {
        let node = Arc::clone(self.remote(slot).ok_or(RemoteError::NotConnected)?);
        let incarnation = {
            let mut state = self.state();
            let identity = state.model.identity_mut();
            identity.incarnation += 1;
            identity.incarnation
        };
        node.set_incarnation(incarnation);
        let info = node.connect()?;
        // Asked, and allocated for, before the lock is taken (swap waits for it) and before the node is up: a reservation of
        // now is either in the books already, or of the last connection and will be dropped.
        let mut held: Vec<RemoteBlock> = Vec::new();
        if recovering {
            node.held(Lane::CONTROL, &mut |block| held.push(block))?;
            held.sort_unstable();
        }
        let mut known = vec![false; held.len()];
        let generation = {
            let mut guard = self.state();
            let state = &mut *guard;
            let life = (info.epoch, info.lease);
            let forgotten = state.node_life(slot).is_some_and(|before| before != life);
            let Some(node) = state.nodes.get_mut(usize::from(slot.0)) else { return Ok(()) };
            node.generation = node.generation.wrapping_add(1);
            node.up = true;
            let generation = node.generation;
            state.model.node_up(slot, forgotten, info.free_blocks);
            // A process that ends before this drops the old copies again in its next life, and not never.
            barrier();
            if let Some(node) = state.model.identity_mut().nodes.get_mut(usize::from(slot.0)) {
                (node.epoch, node.lease, node.wanted) = (life.0, life.1, 1);
            }
            (state.no_room, state.flush_wanted, state.copy_wanted) = (None, true, true);
            state.heard(slot, &info);
            state.take_held(slot, &held, &mut known);
            generation
        };
        for (queue, waker) in (0..).zip(&self.wakers) {
            match node.open_link(queue) {
                Ok(start) => waker.post(slot, generation, start),
                Err(error) => {
                    self.node_failed(slot, generation, RemoteError::NotConnected);
                    return Err(error);
                }
            }
        }
        self.tell_nodes_changed();
        self.flush.notify_one();
        self.copy.notify_one();
        Ok(())
    }

    pub(super) fn set_leaving(&self, slot: NodeId, leaving: bool) {
        let mut state = self.state();
        if let Some(known) = state.nodes.get_mut(usize::from(slot.0)) {
            known.leaving = leaving;
        }
        state.model.blocks.set_accepting(slot, !leaving);
        state.copy_wanted = true;
        drop(state);
        self.copy.notify_one();
    }

    /// Records that a call for a block failed. A copy that is not ours is dropped; anything else is the node's failure.
    /// The caller holds a pin on the block.
    pub(super) fn call_failed(&self, block: BlockId, node: NodeId, generation: u32, error: RemoteError) {
        if !matches!(error, RemoteError::Refused(_, Status::NotYours | Status::Reused)) {
            return self.node_failed(node, generation, error);
        }
        let mut guard = self.state();
        let state = &mut *guard;
        if state.generation(node) == generation && state.model.disown(block, node) {
            self.counters.blocks_disowned.fetch_add(1, Ordering::Relaxed);
            if let Some(known) = state.nodes.get_mut(usize::from(node.0)) {
                known.disowned += 1;
            }
            state.flush_wanted = true;
            drop(guard);
            self.flush.notify_one();
            self.keep.notify_all();
        }
    }

    /// Records that a call on connection `generation` of a node failed: the node counts as down from now on, until its
    /// keeper has reconnected. What the cache still has of pages that are nowhere else is dirty again.
    pub(super) fn node_failed(&self, node: NodeId, generation: u32, error: RemoteError) {
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
        if let Some(known) = state.nodes.get_mut(usize::from(node.0)) {
            known.unlogged = Some((error, saved));
        }
        state.flush_wanted = true;
        state.copy_wanted = true;
        drop(guard);
        self.keep.notify_all();
        self.flush.notify_one();
        self.copy.notify_one();
        self.tell_nodes_changed();
    }

    /// Borrows some blocks of a node. Gives whether there are more blocks than before.
    pub(super) fn reserve_from(&self, node: NodeId, lane: Lane) -> bool {
        let (room, generation) = {
            let state = self.state();
            (state.model.blocks.room(), state.generation(node))
        };
        let mut blocks = [RemoteBlock::default(); RESERVE_BLOCKS];
        let want = RESERVE_BLOCKS.min(room as usize);
        let Some(remote) = self.remote(node) else { return false };
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
    pub(super) fn reserve_ahead(&self, lane: Lane) {
        for _ in 0..2 * self.nodes.len() {
            let lacking = {
                let state = self.state();
                let blocks = &state.model.blocks;
                let able =
                    blocks.nodes().filter(|(_, node)| node.up && node.accepting && node.remote_free > 0);
                let best = able.max_by_key(|(_, node)| node.remote_free).map(|(id, _)| id);
                best.filter(|_| blocks.local_free() <= CLEANING_RESERVE)
            };
            match lacking {
                Some(node) => self.reserve_from(node, lane),
                None => return,
            };
        }
    }
}
