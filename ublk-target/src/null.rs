//! A device that keeps nothing: the ceiling of every benchmark, and the target that tests the lifecycle.
//!
//! Reads give zeroes. It can be told to complete each request only after a while, to fail or panic every so often, or to
//! fail or hang at the start, so that the promise "every request is completed, at its time" can be tested on a real
//! kernel.

use crate::{DataPath, DeviceSpec, Done, Errno, Op, Payload, QueueHandler, Recovery, Reply, Request, Target};
use serde::{Deserialize, Serialize};

/// What the device is and how it misbehaves. 0 means never.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NullOptions {
    /// Capacity in bytes.
    pub size_bytes: u64,
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Copy data with pread/pwrite instead of buffers.
    pub user_copy: bool,
    /// Survive the daemon's death.
    pub recovery: bool,
    /// Fail every n-th request with EIO.
    pub fail_every: u64,
    /// Panic on every n-th request.
    pub panic_every: u64,
    /// Refuse to open the last queue.
    pub fail_start: bool,
    /// Never open the last queue.
    #[serde(default)]
    pub hang_start: bool,
    /// Survive the daemon's death, and have requests that it held sent again.
    #[serde(default)]
    pub reissue: bool,
    /// Complete every request this long after it was fetched, in ns.
    #[serde(default)]
    pub latency_ns: u64,
    /// As [`DeviceSpec::completion_spin_ns`].
    #[serde(default)]
    pub spin_ns: u32,
    /// As [`DeviceSpec::latency_stats`], the other way round.
    #[serde(default)]
    pub no_latency_stats: bool,
}

/// The null target.
pub struct Null(NullOptions);

impl Null {
    /// A null device as `options` say.
    pub fn new(options: NullOptions) -> Null {
        Null(options)
    }
}

/// A queue of the null target.
pub struct NullQueue {
    options: NullOptions,
    served: u64,
    zeroes: Vec<u8>,
}

impl Target for Null {
    type Queue = NullQueue;

    fn kind(&self) -> &'static str {
        "null"
    }

    fn spec(&self) -> DeviceSpec {
        DeviceSpec {
            queues: self.0.queues,
            depth: self.0.depth,
            logical_block_bytes: 512,
            data_path: if self.0.user_copy { DataPath::UserCopy } else { DataPath::Buffers },
            recovery: match (self.0.recovery, self.0.reissue) {
                (_, true) => Recovery::Reissue,
                (true, false) => Recovery::Abort,
                (false, false) => Recovery::None,
            },
            completion_spin_ns: self.0.spin_ns,
            latency_stats: !self.0.no_latency_stats,
            ..DeviceSpec::new(self.0.size_bytes)
        }
    }

    fn open_queue(&self, queue: u16) -> Result<NullQueue, Box<dyn std::error::Error + Send + Sync>> {
        let last = queue + 1 >= self.0.queues;
        if last && self.0.hang_start {
            loop {
                std::thread::park();
            }
        }
        if last && self.0.fail_start {
            return Err("--fail-start was given".into());
        }
        let zeroes = vec![0; self.spec().max_io_bytes as usize];
        Ok(NullQueue { options: self.0.clone(), served: 0, zeroes })
    }
}

impl QueueHandler for NullQueue {
    fn handle(&mut self, request: &Request, payload: &mut Payload<'_>) -> Reply {
        let outcome = self.execute(request, payload);
        let due_ns = match self.options.latency_ns {
            0 => 0,
            latency_ns => request.fetched_ns.saturating_add(latency_ns),
        };
        Reply::at(outcome, due_ns)
    }

    fn wants_time(&self) -> bool {
        self.options.latency_ns != 0
    }
}

impl NullQueue {
    fn execute(&mut self, request: &Request, payload: &mut Payload<'_>) -> Result<Done, Errno> {
        self.served += 1;
        let due = |every: u64| every != 0 && self.served.is_multiple_of(every);
        if due(self.options.panic_every) {
            panic!("--panic-every {} was given", self.options.panic_every);
        }
        if due(self.options.fail_every) {
            return Err(Errno::EIO);
        }
        match request.op {
            Op::Read => {
                let zeroes = self.zeroes.get(..request.len_bytes()).ok_or(Errno::EIO)?;
                payload.store(0, zeroes)?;
            }
            // With user copy the data is fetched, so that the ceiling includes the copy a real target pays.
            Op::Write if self.options.user_copy => {
                let sink = self.zeroes.get_mut(..request.len_bytes()).ok_or(Errno::EIO)?;
                payload.fetch(0, sink)?;
                sink.fill(0);
            }
            _ => {}
        }
        Ok(Done::Whole)
    }
}
