//! A node's own entry in etcd: put under a lease that a thread keeps alive, and taken back at the end.
//!
//! Invariant: a node that dies is listed for at most [`TTL_S`] more; etcd being away never disturbs the node.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::etcd::{Etcd, EtcdUrl, Lease};
use super::{Description, DiscoverError, is_id};

/// Seconds that an entry outlives its node.
pub const TTL_S: u64 = 10;
/// Three tries within the lease.
const PERIOD: Duration = Duration::from_secs(3);

/// Keeps a node listed until it is dropped.
pub struct Registration {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Registration {
    /// Lists node `id`; `describe` is asked every few seconds, on a thread of its own.
    ///
    /// # Errors
    /// The name or the description cannot be, or no thread can be started. That etcd is away is none.
    pub fn start(
        url: EtcdUrl,
        id: &str,
        describe: impl Fn() -> Description + Send + 'static,
    ) -> Result<Self, DiscoverError> {
        Self::start_with(url, id, describe, TTL_S, PERIOD)
    }

    /// As [`Registration::start`], with a lease of `ttl_s` seconds that is renewed every `period`.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        url: EtcdUrl,
        id: &str,
        describe: impl Fn() -> Description + Send + 'static,
        ttl_s: u64,
        period: Duration,
    ) -> Result<Self, DiscoverError> {
        if !is_id(id) {
            return Err(DiscoverError::Option(format!(
                "{id:?} cannot name a node: up to 64 letters, digits and . _ : -"
            )));
        }
        describe().check().map_err(DiscoverError::Option)?;
        let (stop, stopped) = channel();
        let mut keeper = Keeper { etcd: Etcd::new(url), id: id.to_owned(), ttl_s, lease: None, listed: None };
        let work = move || keeper.run(&describe, &stopped, period);
        let thread =
            std::thread::Builder::new().name("register".to_owned()).stack_size(256 << 10).spawn(work);
        Ok(Self { stop: Some(stop), thread: Some(thread.map_err(DiscoverError::Thread)?) })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Keeper {
    etcd: Etcd,
    id: String,
    ttl_s: u64,
    lease: Option<Lease>,
    /// What etcd has, as far as we know.
    listed: Option<Description>,
}

impl Keeper {
    fn run(&mut self, describe: &impl Fn() -> Description, stopped: &Receiver<()>, period: Duration) {
        let mut away = false;
        loop {
            match self.keep(describe()) {
                Ok(()) if std::mem::replace(&mut away, false) => log::info!("{} is listed again", self.id),
                Ok(()) => {}
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        log::warn!("{} is not listed for now: {error}", self.id);
                    }
                }
            }
            if stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout) {
                break;
            }
        }
        if let Some(lease) = self.lease
            && let Err(error) = self.etcd.revoke(lease)
        {
            log::warn!("{} stays listed for up to {} s: {error}", self.id, self.ttl_s);
        }
    }

    fn keep(&mut self, node: Description) -> Result<(), DiscoverError> {
        if let Some(lease) = self.lease
            && !self.etcd.keep_alive(lease)?
        {
            self.lease = None;
        }
        let lease = match self.lease {
            Some(lease) => lease,
            None => {
                self.listed = None;
                *self.lease.insert(self.etcd.grant(self.ttl_s)?)
            }
        };
        if self.listed.as_ref() == Some(&node) {
            return Ok(());
        }
        match self.etcd.put(&self.id, &node, lease)? {
            true => self.listed = Some(node),
            // It ended between the two requests; the next turn gets a new one.
            false => self.lease = None,
        }
        Ok(())
    }
}
