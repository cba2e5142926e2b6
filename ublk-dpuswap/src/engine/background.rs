//! The two threads of an engine: the flusher writes back and cleans, the keeper watches the nodes and speaks.
//!
//! The flusher is part of the swap-out path and allocates nothing. The keeper may (it formats log lines and opens
//! connections); nobody waits for it.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Shared;
use crate::error::Error;
use crate::lock;
use crate::proto::Status;
use crate::remote::{Lane, RemoteError};
use crate::units::{NodeId, RemoteBlock};

/// Empty blocks kept of every node before the rest is given back.
const KEEP_FREE_BLOCKS: u32 = 16;
/// Pause after a write-back that failed.
const BACK_OFF: Duration = Duration::from_millis(200);
/// Stacks are locked in memory: small ones.
const STACK_BYTES: usize = 256 << 10;

pub(super) fn spawn(shared: &Arc<Shared>, name: &str, run: fn(&Shared)) -> Result<JoinHandle<()>, Error> {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
    let run = move || {
        if let Err(error) = lock::become_io_flusher() {
            log::debug!("{error}");
        }
        run(&shared);
    };
    thread.spawn(run).map_err(|source| Error::System { what: format!("thread {name}"), source })
}

impl Shared {
    /// Waits until the cache is too dirty, then writes back until it is clean enough; cleans blocks when they run low.
    pub(super) fn flusher(&self) {
        let mut failed = false;
        while !self.stopping() {
            {
                let state = self.state();
                if failed || !state.flush_wanted {
                    let pause = if failed { BACK_OFF } else { self.config.heartbeat };
                    let waited = self.flush.wait_timeout(state, pause);
                    waited.unwrap_or_else(PoisonError::into_inner).0.flush_wanted = true;
                }
            }
            failed = !self.flush_once();
            self.state().flush_wanted = false;
        }
    }

    /// `false` when write-back failed.
    pub(super) fn flush_once(&self) -> bool {
        while !self.stopping() {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let dirty = self.state().model.cache().dirty_permille();
            if dirty > self.config.flush_stop_permille {
                match self.write_back(&mut writer) {
                    Ok(true) => {}
                    Ok(false) => return true,
                    Err(_) => return false,
                }
            } else if !self.clean_early(&mut writer) {
                return true;
            }
        }
        true
    }

    /// Logs what happened to nodes, reconnects them, keeps their numbers fresh and gives surplus blocks back.
    pub(super) fn keeper(&self) {
        while !self.stopping() {
            {
                let mut state = self.state();
                if !state.keep_wanted {
                    let waited = self.keep.wait_timeout(state, self.config.heartbeat);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                state.keep_wanted = false;
            }
            for index in 0..self.nodes.len() as u16 {
                if self.stopping() {
                    return;
                }
                self.keep_node(NodeId(index));
            }
            self.reserve_ahead();
        }
    }

    pub(super) fn keep_node(&self, node: NodeId) {
        let (up, generation, unlogged, disowned) = {
            let mut state = self.state();
            let Some(known) = state.nodes.get_mut(usize::from(node.0)) else { return };
            (known.up, known.generation, known.unlogged.take(), std::mem::take(&mut known.disowned))
        };
        let name = self.node_name(node);
        if let Some((error, saved)) = unlogged {
            log::error!(
                "node {name}: {error}; its pages give I/O errors until it is back ({saved} of them are still in the \
                 cache and go to another node)"
            );
        }
        if disowned > 0 {
            log::error!(
                "node {name}: {disowned} blocks are not ours, it says; what was only in them is lost"
            );
        }
        let failed = self.counters.take_failed_reads(node);
        if failed > 0 {
            log::error!(
                "node {name}: {failed} swap-ins failed because the node is down or has lost their pages"
            );
        }
        if up {
            self.heartbeat(node, generation);
        } else {
            self.reconnect(node);
        }
    }

    fn heartbeat(&self, node: NodeId, generation: u32) {
        let Ok(remote) = self.remote(node) else { return };
        match remote.stat(Lane::CONTROL) {
            Ok(info) => {
                let mut state = self.state();
                if state.generation(node) == generation {
                    state.model.blocks.set_remote_free(node, info.free_blocks);
                    if let Some(known) = state.nodes.get_mut(usize::from(node.0)) {
                        known.info = info;
                    }
                }
            }
            Err(error) => self.node_failed(node, generation, error),
        }
        self.release_surplus(node, generation);
    }

    fn reconnect(&self, node: NodeId) {
        let Ok(remote) = self.remote(node) else { return };
        let info = match remote.connect() {
            Ok(info) => info,
            Err(error) => {
                log::debug!("node {}: still down: {error}", remote.name());
                if matches!(&error, RemoteError::Connect(error) if error.kind() == ErrorKind::ConnectionRefused)
                {
                    if let Some(known) = self.state().nodes.get_mut(usize::from(node.0)) {
                        known.refused = true;
                    }
                    // They wait less long now.
                    self.back.notify_all();
                }
                return;
            }
        };
        let (forgotten, held) = {
            let mut guard = self.state();
            let state = &mut *guard;
            let Some(known) = state.nodes.get_mut(usize::from(node.0)) else { return };
            let forgotten = (known.info.epoch, known.info.lease) != (info.epoch, info.lease);
            known.generation = known.generation.wrapping_add(1);
            (known.up, known.info) = (true, info);
            state.model.node_up(node, forgotten, info.free_blocks);
            (forgotten, state.model.blocks.node(node).map_or(0, |node| node.held))
        };
        self.back.notify_all();
        let content = if forgotten { "with nothing left of our pages" } else { "with our pages" };
        log::warn!("node {}: back, {content}", remote.name());
        if info.held_blocks > held {
            // Those whose reservation or release got no answer. They are not lost for good: the lease's end frees them.
            let more = info.held_blocks - held;
            log::warn!("node {}: lends us {more} blocks that we do not know", remote.name());
        }
    }

    fn release_surplus(&self, node: NodeId, generation: u32) {
        let mut blocks = [RemoteBlock::numbered(0); 64];
        loop {
            let mut count = 0;
            {
                let mut state = self.state();
                if state.generation(node) != generation {
                    return;
                }
                for slot in &mut blocks {
                    let Some(block) = state.model.blocks.take_free(node, KEEP_FREE_BLOCKS) else { break };
                    *slot = block;
                    count += 1;
                }
            }
            let Ok(remote) = self.remote(node) else { return };
            if count == 0 {
                return;
            }
            let released = remote.release(Lane::CONTROL, &blocks[..count]);
            let mut state = self.state();
            match released {
                Ok(free) => {
                    state.model.blocks.set_remote_free(node, free);
                    self.counters.blocks_released.fetch_add(count as u64, Ordering::Relaxed);
                }
                // Whether they are still ours is not known, so they are not used again: at worst the node keeps them for
                // nobody until the lease ends. A block used without being ours would fail every write to it.
                Err(RemoteError::Refused(_, Status::NotYours)) => {
                    drop(state);
                    log::warn!(
                        "node {}: some of {count} released blocks are not ours, it says",
                        remote.name()
                    );
                    return;
                }
                Err(error) => {
                    drop(state);
                    return self.node_failed(node, generation, error);
                }
            }
        }
    }
}
