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

/// Failed swap-ins are reported no sooner than this after the last time.
const FAILED_AGAIN: Duration = Duration::from_secs(10);

/// What a keeper has said already.
#[derive(Default)]
struct Told {
    refusal: String,
    failed_at: Option<Instant>,
}

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
        let mut told = Told::default();
        while !self.stopping() {
            let refused = self.keep_node(node);
            self.tell_refused(node, refused, &mut told);
            self.tell_failed(node, &mut told);
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

    /// Logs what happened to the node, reconnects it or asks how it is. Gives why it could not be reconnected.
    pub(super) fn keep_node(&self, node: NodeId) -> Option<RemoteError> {
        let (up, generation, unlogged, disowned, bad) = {
            let mut state = self.state();
            let bad = state.bad_record.take();
            let known = state.nodes.get_mut(usize::from(node.0))?;
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
        let refused = if up {
            self.heartbeat(node, generation);
            None
        } else {
            self.reconnect(node).err()
        };
        self.reserve_ahead(Lane::CONTROL);
        refused
    }

    /// Says why a node that can be reached is not taken back: each reason once.
    fn tell_refused(&self, node: NodeId, refused: Option<RemoteError>, told: &mut Told) {
        match refused {
            None => told.refusal.clear(),
            // Nobody there: that it is down has been said.
            Some(RemoteError::Connect(_)) => {}
            Some(error) => {
                let text = error.to_string();
                if text != told.refusal {
                    log::error!("node {}: not taken back: {text}", self.node_name(node));
                    told.refusal = text;
                }
            }
        }
    }

    /// Says how many swap-ins have failed because of the node; not every second anew.
    fn tell_failed(&self, node: NodeId, told: &mut Told) {
        if told.failed_at.is_some_and(|at| at.elapsed() < FAILED_AGAIN) {
            return;
        }
        let failed = self.counters.take_failed_reads(node);
        if failed > 0 {
            told.failed_at = Some(Instant::now());
            log::error!(
                "node {}: {failed} swap-ins failed because the node is down or gave something else back",
                self.node_name(node)
            );
        }
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

    fn reconnect(&self, node: NodeId) -> Result<(), RemoteError> {
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
                Ok(())
            }
            Err(error) => {
                log::debug!("node {name}: still down: {error}");
                if matches!(&error, RemoteError::Connect(error) if error.kind() == ErrorKind::ConnectionRefused)
                {
                    let known_before = {
                        let mut state = self.state();
                        let known = state.nodes.get_mut(usize::from(node.0));
                        known.is_none_or(|known| std::mem::replace(&mut known.refused, true))
                    };
                    if !known_before {
                        // They wait less long now.
                        self.tell_nodes_changed();
                    }
                }
                Err(error)
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
