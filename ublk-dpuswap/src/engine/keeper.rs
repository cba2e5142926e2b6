//! A thread per node: connects it again, asks how it is, and says in the log what happened to it. It may allocate; nobody
//! waits for it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::flusher::STACK_BYTES;
use super::{Shared, wait};
use crate::error::Error;
use crate::remote::{Lane, RemoteError};
use crate::units::NodeId;

/// Starts the keeper of a node.
pub(super) fn spawn(shared: &Arc<Shared>, node: NodeId) -> Result<JoinHandle<()>, Error> {
    let shared = Arc::clone(shared);
    let name = format!("dpuswap-node{}", node.0);
    let thread = std::thread::Builder::new().name(name.clone()).stack_size(STACK_BYTES);
    let run = move || {
        shared.protect_thread();
        shared.keeper(node);
    };
    thread.spawn(run).map_err(|source| Error::System { what: format!("thread {name}"), source })
}

impl Shared {
    fn keeper(&self, node: NodeId) {
        let mut late_since: Option<Instant> = None;
        while !self.stopping() {
            self.keep_node(node);
            self.tell_late(node, &mut late_since);
            let next = Instant::now() + self.config.heartbeat;
            // Others are woken by the same signal: only what concerns this node ends the wait early.
            let mut state = self.state();
            while !self.stopping() {
                let news = state.nodes.get(usize::from(node.0)).is_some_and(|known| known.unlogged.is_some());
                let left = next.saturating_duration_since(Instant::now());
                if news || left.is_zero() {
                    break;
                }
                state = wait(&self.keep, state, left);
            }
        }
    }

    /// Logs what happened to the node, reconnects it or asks how it is.
    pub(super) fn keep_node(&self, node: NodeId) {
        let (up, generation, unlogged, disowned, bad) = {
            let mut state = self.state();
            let bad = state.bad_record.take();
            let Some(known) = state.nodes.get_mut(usize::from(node.0)) else { return };
            (known.up, known.generation, known.unlogged.take(), std::mem::take(&mut known.disowned), bad)
        };
        let name = self.node_name(node);
        if let Some((error, saved)) = unlogged {
            let fate = if self.config.replicas > 1 {
                "pages are read from their other copies"
            } else {
                "its pages give I/O errors until it is back"
            };
            log::error!(
                "node {name}: {error}; {fate} ({saved} that were only there are still in the cache and go to another node)"
            );
        }
        if disowned > 0 {
            log::error!(
                "node {name}: {disowned} blocks are not ours, it says; what was only in them is lost"
            );
        }
        if let Some((block, offset, error)) = bad {
            log::error!("block {}: the record at byte {offset}: {error}", block.0);
        }
        let failed = self.counters.take_failed_reads(node);
        if failed > 0 {
            log::error!(
                "node {name}: {failed} swap-ins failed because the node is down or gave something else back"
            );
        }
        if up {
            self.heartbeat(node, generation);
        } else {
            self.reconnect(node);
        }
        self.reserve_ahead(Lane::CONTROL);
    }

    fn heartbeat(&self, node: NodeId, generation: u32) {
        let Some(remote) = self.remote(node) else { return };
        match remote.stat(Lane::CONTROL) {
            Ok(info) => {
                let mut state = self.state();
                if state.generation(node) == generation {
                    state.heard(node, &info);
                }
                let wanted = state.copy_wanted;
                drop(state);
                if wanted {
                    self.copy.notify_one();
                }
            }
            Err(error) => self.node_failed(node, generation, error),
        }
    }

    fn reconnect(&self, node: NodeId) {
        let name = self.node_name(node);
        let lives_before = self.state().node_life(node);
        match self.connect(node, true) {
            Ok(()) => {
                let lives_now = self.state().node_life(node);
                match (lives_before, lives_before == lives_now) {
                    (None, _) => log::info!("node {name}: connected"),
                    (_, true) => log::warn!("node {name}: back, with our pages"),
                    (_, false) => log::warn!("node {name}: back, with nothing left of our pages"),
                }
            }
            Err(error) => {
                log::debug!("node {name}: still down: {error}");
                if matches!(&error, RemoteError::Connect(error) if error.kind() == ErrorKind::ConnectionRefused)
                {
                    if let Some(known) = self.state().nodes.get_mut(usize::from(node.0)) {
                        known.refused = true;
                    }
                    // They wait less long now.
                    self.wake_queues();
                }
            }
        }
    }

    /// Says once that a node has not got its memory back in time, and when it has.
    fn tell_late(&self, node: NodeId, late_since: &mut Option<Instant>) {
        let (wanted, late) = {
            let state = self.state();
            let Some(known) = state.nodes.get(usize::from(node.0)) else { return };
            let due = known.reclaim_by.filter(|_| known.reclaim > 0);
            (known.reclaim, due.is_some_and(|due| Instant::now() > due))
        };
        match (late, *late_since) {
            (true, None) => {
                log::warn!(
                    "node {}: it still waits for {wanted} MiB that it wants back; there is no room elsewhere yet",
                    self.node_name(node)
                );
                *late_since = Some(Instant::now());
            }
            (false, Some(since)) if wanted == 0 => {
                let late: Duration = since.elapsed();
                log::warn!("node {}: has its memory back, {} s late", self.node_name(node), late.as_secs());
                *late_since = None;
            }
            _ => {}
        }
    }
}
