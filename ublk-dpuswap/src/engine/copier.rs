//! Whole blocks on the move: off a node that wants its memory back, or to another node because a copy is missing.
//!
//! A block's bytes go as they are (they are sealed for the block, not for the node), so that no page table changes. What a
//! node wants back is moved, however late: nothing is ever dropped because a deadline has passed. Blocks that are empty, or
//! have moved, are released at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::flusher::spawn_thread;
use super::{Shared, wait};
use crate::alloc;
use crate::error::Error;
use crate::model::{CopyPlan, CopyStep};
use crate::proto::Status;
use crate::remote::{Lane, RemoteError};
use crate::units::{BLOCK_BYTES, NodeId, RemoteBlock};

/// Bytes read and written at a time: a lane is not busy for long with one message.
const PIECE_BYTES: usize = 256 << 10;
/// Pause when there is no place for a block that must move.
const BACK_OFF: Duration = Duration::from_millis(200);
/// Empty blocks kept of every node before the rest is given back.
const KEEP_FREE_BLOCKS: u32 = 16;
/// Blocks released in one message.
const RELEASE_AT_ONCE: usize = 64;

/// Starts the copier's thread.
pub(super) fn spawn(shared: &Arc<Shared>) -> Result<JoinHandle<()>, Error> {
    spawn_thread(shared, "dpuswap-copy", |shared| {
        let mut buffer = vec![0; BLOCK_BYTES].into_boxed_slice();
        alloc::watch_this_thread();
        shared.copier(&mut buffer);
    })
}

/// What one look of the copier came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// A block was copied, or something else done on the way to that.
    Something,
    /// There is nothing to copy.
    Nothing,
    /// There is, but no place for it.
    NoPlace,
}

impl Shared {
    fn copier(&self, buffer: &mut [u8]) {
        let mut pause = Duration::ZERO;
        while !self.stopping() {
            {
                let state = self.state();
                if !pause.is_zero() || !state.copy_wanted {
                    let limit = if pause.is_zero() { self.config.heartbeat } else { pause };
                    wait(&self.copy, state, limit).copy_wanted = true;
                }
            }
            self.state().copy_wanted = false;
            pause = Duration::ZERO;
            while !self.stopping() {
                match self.copy_once(buffer) {
                    Copied::Something => {}
                    Copied::Nothing => break,
                    Copied::NoPlace => {
                        pause = BACK_OFF;
                        break;
                    }
                }
            }
            self.release_all();
        }
    }

    /// Copies one block that has to move, or that lacks a copy.
    pub(super) fn copy_once(&self, buffer: &mut [u8]) -> Copied {
        let step = {
            let mut guard = self.state();
            let state = &mut *guard;
            let blocks = &mut state.model.blocks;
            let givers = || {
                (0u16..).map(NodeId).zip(&state.nodes).filter(|(_, node)| node.gives_back()).map(|(id, _)| id)
            };
            let from_giver = givers().find_map(|node| Some((blocks.next_on(node)?, Some(node))));
            let job = from_giver.or_else(|| Some((blocks.next_thin()?, None)));
            let Some((block, away_from)) = job else {
                if !givers().any(|node| blocks.waits_for_room(node)) {
                    return Copied::Nothing;
                }
                // Cleaning empties blocks of all nodes, and so of those that want them back.
                state.clean_wanted = true;
                state.flush_wanted = true;
                self.flush.notify_one();
                return Copied::NoPlace;
            };
            state.model.blocks.begin_copy(block, away_from, &mut state.choices)
        };
        match step {
            CopyStep::Copy(plan) => {
                let done = self.copy_block(&plan, buffer);
                self.state().model.blocks.finish_copy(&plan, done);
                if done {
                    self.counters.blocks_copied.fetch_add(1, Ordering::Relaxed);
                    self.counters.bytes_copied.fetch_add(plan.used_bytes as u64, Ordering::Relaxed);
                }
                if let Some(node) = plan.replaces {
                    self.release_of(node);
                }
                if done { Copied::Something } else { Copied::NoPlace }
            }
            CopyStep::Reserve(node) => {
                if self.reserve_from(node, Lane::COPIER) {
                    Copied::Something
                } else {
                    Copied::NoPlace
                }
            }
            CopyStep::NoPlace => Copied::NoPlace,
        }
    }

    fn copy_block(&self, plan: &CopyPlan, buffer: &mut [u8]) -> bool {
        let (Some(source), Some(target)) = (self.remote(plan.from.0), self.remote(plan.to.0)) else {
            return false;
        };
        let (from, to) = {
            let state = self.state();
            (state.generation(plan.from.0), state.generation(plan.to.0))
        };
        for start in (0..plan.used_bytes).step_by(PIECE_BYTES) {
            let len = PIECE_BYTES.min(plan.used_bytes - start);
            let Some(piece) = buffer.get_mut(..len) else { return false };
            if let Err(error) = source.read_at(Lane::COPIER, plan.from.1, start as u32, piece) {
                self.call_failed(plan.block, plan.from.0, from, error);
                return false;
            }
            if let Err(error) = target.write_at(Lane::COPIER, plan.to.1, start as u32, piece) {
                // The new block is not a copy yet, so that nothing is lost with it.
                self.node_failed(plan.to.0, to, error);
                return false;
            }
        }
        true
    }

    /// Gives back what is empty or has moved away, of every node.
    pub(super) fn release_all(&self) {
        let nodes = self.state().nodes.len() as u16;
        (0..nodes).for_each(|node| self.release_of(NodeId(node)));
    }

    fn release_of(&self, node: NodeId) {
        loop {
            let mut blocks = [RemoteBlock::default(); RELEASE_AT_ONCE];
            let mut count = 0;
            let generation = {
                let mut state = self.state();
                if !state.is_up(node) {
                    return;
                }
                let gives_back =
                    state.nodes.get(usize::from(node.0)).is_some_and(super::nodes::NodeState::gives_back);
                let keep = if gives_back { 0 } else { KEEP_FREE_BLOCKS };
                for slot in &mut blocks {
                    let taken = state.model.blocks.take_retired(node);
                    let taken = taken.or_else(|| state.model.blocks.take_spare(node, keep));
                    let Some(block) = taken else { break };
                    *slot = block;
                    count += 1;
                }
                state.generation(node)
            };
            let Some(remote) = self.remote(node).filter(|_| count > 0) else { return };
            let released = remote.release(Lane::COPIER, &blocks[..count]);
            match released {
                Ok(free) => {
                    let mut state = self.state();
                    state.model.blocks.set_remote_free(node, free);
                    if let Some(known) = state.nodes.get_mut(usize::from(node.0)) {
                        known.reclaim = known.reclaim.saturating_sub(count as u32);
                    }
                    self.counters.blocks_released.fetch_add(count as u64, Ordering::Relaxed);
                }
                // Whether they are still ours is not known, so they are not used again: at worst the node keeps them for
                // nobody until the lease ends. A block used without being ours would fail every write to it.
                Err(RemoteError::Refused(_, Status::NotYours | Status::Reused)) => {
                    self.counters.blocks_disowned.fetch_add(count as u64, Ordering::Relaxed);
                    return;
                }
                Err(error) => return self.node_failed(node, generation, error),
            }
        }
    }
}
