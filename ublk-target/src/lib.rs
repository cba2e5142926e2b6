//! What a ublk device needs besides its I/O: lifecycle, queues, recovery, statistics.
//!
//! A driver implements [`Target`] (what the device is, and one [`QueueHandler`] per queue) and hands it to
//! [`lifecycle::serve`]; this crate adds the kernel device, runs one thread and one io_uring per queue, keeps the
//! state that `list`, `stat`, `del` and `recover` need, and deletes the device when it is told to.
//!
//! The invariant: **every request that the kernel hands over is completed**, with its result or an errno, also when
//! the handler panics ([`queue`]). A driver that drops a request hangs every process that waits for it, and ublk has
//! no request timeout for privileged devices.
//!
//! A handler may say when a request is to complete ([`Reply::due_ns`]): the queue's loop keeps it until then, and counts
//! how late it was. It may also leave a request pending ([`Reply::pending`]), do operations of its own on the queue's
//! io_uring ([`QueueIo::push`]), and answer when they have ended.
//!
//! Layers: [`spec`], [`request`], [`latency`] are pure; [`queue`], [`state`], [`control`], [`lifecycle`] are the engine;
//! [`adapter`] alone knows the kernel's ABI (through libublk's bindings); [`cli`] and [`watch`] are the shared command
//! line.

pub mod adapter;
pub mod cli;
pub mod clock;
pub mod control;
pub mod daemon;
pub mod error;
pub mod latency;
pub mod lifecycle;
pub mod local;
pub mod null;
pub mod queue;
pub mod request;
pub mod spec;
pub mod state;
pub mod stats;
pub mod watch;

pub use control::Answer;
pub use error::{Error, Result};
pub use request::{Done, Errno, Op, Payload, Reply, Request};
pub use spec::{DataPath, DeviceSpec, DiscardSpec, Recovery, WriteCache, ZonedSpec};

/// A ublk device: what it looks like to the kernel and who handles its queues.
///
/// One value serves the whole device; it is shared by the queue threads and the control thread.
pub trait Target: Send + Sync + 'static {
    /// What one queue thread owns.
    type Queue: QueueHandler;

    /// The name in `list` and in the state file: `zns`, `dpuswap`, `null`.
    fn kind(&self) -> &'static str;

    /// The device's size, limits and features. Asked once, before the device is added.
    fn spec(&self) -> DeviceSpec;

    /// Called once the device's number is known and before its queues start (also on recovery).
    ///
    /// # Errors
    /// Any error stops the start and leaves nothing loaded.
    fn bind(&self, _id: u32) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }

    /// Makes the handler of queue `queue`; called on that queue's own thread.
    ///
    /// # Errors
    /// Any error stops the start and leaves nothing loaded.
    fn open_queue(
        &self,
        queue: u16,
    ) -> std::result::Result<Self::Queue, Box<dyn std::error::Error + Send + Sync>>;

    /// The target's own statistics, merged under `"target"` into what `stat` prints.
    fn stats(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Answers a target's own control request (`{"op": ...}`), such as a zone report or a fault. Called from several threads
    /// at once, beside the queues; long lists go out as [`Answer::items`], one by one. A panic is the client's error.
    ///
    /// # Errors
    /// A one-line reason, printed by the command that asked.
    fn control(&self, request: &serde_json::Value) -> std::result::Result<Answer<'_>, String> {
        Err(format!("unknown request {request}"))
    }

    /// Called after the last request, before the device is deleted.
    fn stopped(&self) {}
}

/// Handles the requests of one queue, on that queue's thread.
pub trait QueueHandler {
    /// Does one request and says when it completes: a plain `Result` becomes a reply at once with `.into()`.
    ///
    /// The data moves now, also when the completion is for later: until then the kernel waits, so that nobody can tell.
    fn handle(&mut self, request: &Request, payload: &mut Payload<'_>) -> Reply;

    /// Whether [`Request::fetched_ns`] must hold the time. Asked once per wake-up of the queue, since reading the clock is a
    /// system call on some kernels. Without it the time is there when the device keeps latency statistics.
    fn wants_time(&self) -> bool {
        false
    }

    /// Called right before the completion of `tag` is put in the ring, once per request that [`QueueHandler::handle`] saw.
    ///
    /// For targets that must recognise requests that are sent again after the daemon's death ([`Recovery::Reissue`]): from
    /// here until [`QueueHandler::committed`] it is open whether the kernel has the completion.
    fn committing(&mut self, _tag: u16) {}

    /// Whether the completions of this batch are to be given to the kernel before the queue waits, and not with the wait: it
    /// costs a system call per batch, and [`QueueHandler::committed`] is called before anything else can happen. Asked once per
    /// batch.
    fn commits_first(&self) -> bool {
        false
    }

    /// Every completion that [`QueueHandler::committing`] announced is the kernel's now.
    fn committed(&mut self) {}

    /// Once before the first request, on the queue's thread: the handler may push its first operations.
    fn started(&mut self, _io: &mut dyn QueueIo) {}

    /// One of the handler's own operations ended; `result` as in its CQE: a number, or a negative errno. Called once for every
    /// operation that was pushed, also while the device stops (with `-ECANCELED`, mostly).
    fn completed(&mut self, _token: u64, _result: i32, _io: &mut dyn QueueIo) {}

    /// At the end of every turn, before the queue waits: submit what was queued, expire timers, complete pending requests.
    fn turn(&mut self, _io: &mut dyn QueueIo) {}

    /// The queue does not sleep past this time, in ns of [`clock::monotonic_ns`]; `u64::MAX` for no timer. A time that has
    /// passed keeps the queue awake. Asked before every wait.
    fn timer_ns(&self) -> u64 {
        u64::MAX
    }

    /// How long to poll before sleeping, in ns: as long as an answer is likely to come sooner than a sleeper wakes up. 0 to
    /// sleep at once. Asked before every wait.
    fn spin_ns(&self) -> u64 {
        0
    }

    /// The device stops; every request was answered. Close connections here: what is still in flight afterwards is
    /// cancelled, and [`QueueIo::push`] refuses more.
    fn stopping(&mut self, _io: &mut dyn QueueIo) {}
}

/// What a handler's hooks can do with their queue.
///
/// A handler that panics, in any hook, has lost count of what it was doing: every request of its queue that is pending then
/// fails with `EIO`. It hears of each through [`QueueHandler::committing`], and is to forget it there: the tag may come again.
pub trait QueueIo {
    /// Queues an operation in the ring that the queue shares with the kernel's device. It goes to the kernel before the
    /// queue waits; then [`QueueHandler::completed`] is called with `token` and the result, from the loop, never from here.
    ///
    /// # Errors
    /// `EINVAL` for a token of 2^48 or more, `ECANCELED` once the device has stopped, or the ring's. Nothing was queued then.
    ///
    /// # Safety
    /// Memory that `entry` names stays valid, and is not touched against its use, until `completed(token)`; so do open files.
    /// The entry ends with exactly one CQE: none that is skipped, and several only if each may call `completed`. Its user
    /// data is set here.
    unsafe fn push(&mut self, entry: io_uring::squeue::Entry, token: u64) -> std::io::Result<()>;

    /// The data of a pending request; empty when `tag` is not pending.
    fn payload(&mut self, tag: u16) -> Payload<'_>;

    /// Answers a pending request, at `reply.due_ns` if that is set. Does nothing but complain when `tag` is not pending.
    fn complete(&mut self, tag: u16, reply: Reply);

    /// The time, as [`clock::monotonic_ns`] tells it.
    fn now_ns(&self) -> u64;
}
