//! A device's life: add or recover, serve, stop, delete; and `del`, `list`, `stat` from other processes.
//!
//! The order at the start: build the target, add the kernel device, bind the target to its number, open every queue on
//! its own thread, fetch, start, remember the device, tell the parent. A failure at any step undoes the ones before it.
//! At the end (SIGTERM, `del`, or the device taken away): stop the device while the queues still serve, join them,
//! close the character device, delete the kernel device, forget the state.

mod others;

pub use others::{Listed, ask, ask_each, check_kind, del, list, recoverable_options};

use crate::{
    Answer, Target,
    adapter::{CharDevice, Control, DeviceInfo, IoQueue},
    control,
    daemon::{self, Notifier, Side},
    error::{Error, Result},
    queue::{self, Settings},
    spec::DeviceSpec,
    state::{DeviceRecord, StateDir},
    stats::{self, QueueStats},
};
use serde_json::{Value, json};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How to bring up a device.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The number to use; the kernel chooses without.
    pub id: Option<u32>,
    /// Take over this existing device instead of adding one.
    pub recover: bool,
    /// Stay in the foreground.
    pub foreground: bool,
    /// How long adding may take before it counts as hung.
    pub patience: Duration,
    /// What `recover` will need, kept in the state file.
    pub options: Value,
}

/// The longest any one control command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long the news of the child may come after its own limit.
const NEWS_MARGIN: Duration = Duration::from_secs(3);
/// The limit of a command that cleans up after a daemon that was ended.
const ORPHAN_LIMIT: Duration = Duration::from_secs(5);
/// How long queue threads may take to end after a failed start.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a daemon may take to delete its stopped device.
const DAEMON_PATIENCE: Duration = Duration::from_secs(3);
/// How long `del` waits for the last user of a deleted device.
const HOLDER_PATIENCE: Duration = Duration::from_secs(2);
/// Stack of a queue thread: small, since a daemon under mlockall pays for all of it.
const QUEUE_STACK_BYTES: usize = 512 << 10;

/// Brings a device up and serves it.
///
/// In the background (the default) this returns the device's number in the parent as soon as the device is live, and the
/// child process ends inside. In the foreground it calls `live` with the number, and returns it when the device is gone.
/// `make` builds the target, after the fork and before any thread.
///
/// # Errors
/// Whatever stopped the device from going live; nothing stays loaded then.
pub fn serve<T: Target>(
    options: &RunOptions,
    make: impl FnOnce() -> std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>,
    live: impl FnOnce(u32),
) -> Result<u32> {
    let state = StateDir::open()?;
    if options.foreground {
        return run(options, &state, make, Notifier::foreground(), live);
    }
    match daemon::split(options.patience + NEWS_MARGIN)? {
        Side::Parent(Ok(news)) => match news.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(id),
            None => Err(Error::Child(format!("the background process said {news}"))),
        },
        Side::Parent(Err(error)) => {
            if let Some(id) = error.orphan.filter(|_| !options.recover) {
                remove_orphan(id, &state);
            }
            Err(match error.usage {
                true => Error::Target(Box::new(UsageError(error.message))),
                false => Error::Child(error.message),
            })
        }
        Side::Daemon(notifier) => match run(options, &state, make, notifier, |_| {}) {
            Ok(_) => std::process::exit(0),
            // The parent, or the log, has the reason.
            Err(_) => std::process::exit(1),
        },
    }
}

/// Removes a device whose daemon was ended before it was live.
fn remove_orphan(id: u32, state: &StateDir) {
    let removed = Control::open(ORPHAN_LIMIT).and_then(|mut control| {
        control.stop(id)?;
        control.delete(id)
    });
    if let Err(error) = removed
        && !matches!(error, Error::NoDevice(_))
    {
        log::warn!("{error}");
    }
    state.forget(id);
}

/// An error in what was asked: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

fn run<T: Target>(
    options: &RunOptions,
    state: &StateDir,
    make: impl FnOnce() -> std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>,
    mut notifier: Notifier,
    live: impl FnOnce(u32),
) -> Result<u32> {
    let started = make()
        .map_err(Error::Target)
        .and_then(|target| Running::start(options, state, target, &mut notifier));
    match started {
        Ok(running) => {
            let id = running.id();
            if let Some(log) = &running.log
                && let Err(error) = daemon::detach(log)
            {
                log::warn!("{error}");
            }
            notifier.ready(&json!(id));
            live(id);
            running.until_stopped(state).inspect_err(|error| log::error!("{error}"))
        }
        Err(error) => {
            notifier.failed(&error.to_string(), usage(&error));
            Err(error)
        }
    }
}

/// Whether `error` should end the command with status 2.
pub fn usage(error: &Error) -> bool {
    error.is_usage() || matches!(error, Error::Target(inner) if inner.is::<UsageError>())
}

/// A kernel device that is deleted again unless it is kept.
struct Added {
    control: Control,
    info: DeviceInfo,
    keep: bool,
}

impl Drop for Added {
    fn drop(&mut self) {
        if !self.keep {
            let id = self.info.id;
            let _ = self.control.stop(id);
            if let Err(error) = self.control.delete(id) {
                log::warn!("{error}");
            }
        }
    }
}

struct Running<T> {
    target: Arc<T>,
    log: Option<std::fs::File>,
    record: DeviceRecord,
    added: Added,
    device: Arc<CharDevice>,
    threads: Vec<JoinHandle<()>>,
}

impl<T: Target> Running<T> {
    fn start(
        options: &RunOptions,
        state: &StateDir,
        target: T,
        notifier: &mut Notifier,
    ) -> Result<Running<T>> {
        let spec = target.spec();
        spec.validate()?;
        set_io_flusher()?;
        daemon::block_signals()?;
        let mut added = take_device(options, &spec)?;
        let id = added.info.id;
        notifier.added(id);
        let log = match notifier.in_background() {
            true => Some(daemon::open_log(&state.log(id))?),
            false => None,
        };
        target.bind(id).map_err(Error::Target)?;
        let target = Arc::new(target);
        let record = DeviceRecord::of_this_process(id, target.kind(), options.options.clone());
        let device = CharDevice::open(added.info, spec.data_path);
        let device = Arc::new(device.inspect_err(|_| {
            if !options.recover {
                target.stopped();
            }
        })?);
        let settings = Settings::new(&spec, added.info.depth);
        let queues: Vec<_> =
            (0..added.info.queues).map(|_| Arc::new(QueueStats::new(settings.latency_sampling))).collect();
        let mut running = Running { target, log, record, added, device, threads: Vec::new() };
        let opened = running.open_queues(&queues, settings, options.patience);
        if let Err(error) = opened.and_then(|()| running.go_live(options, state, queues)) {
            return Err(running.give_up(options.recover, state, error));
        }
        added = running.added;
        added.keep = true;
        Ok(Running { added, ..running })
    }

    /// Undoes a start that failed. A device that is being recovered is left as it was: this process ends, its rings
    /// close, and the device waits for the next attempt.
    fn give_up(mut self, recovering: bool, state: &StateDir, error: Error) -> Error {
        let id = self.id();
        if recovering {
            return error;
        }
        // The queue threads end once the device is stopped. One that does not must not keep the user waiting: the device
        // is deleted when this process ends.
        if let Err(stop) = self.added.control.stop(id) {
            log::warn!("{stop}");
        }
        let deadline = Instant::now() + JOIN_PATIENCE;
        while Instant::now() < deadline && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.target.stopped();
        state.forget_if(&self.record);
        let Running { device, added, .. } = self;
        drop(device);
        drop(added);
        error
    }

    fn id(&self) -> u32 {
        self.added.info.id
    }

    fn open_queues(
        &mut self,
        stats: &[Arc<QueueStats>],
        settings: Settings,
        patience: Duration,
    ) -> Result<()> {
        let (tell, told) = mpsc::channel();
        let mut first_error = None;
        for (index, stats) in (0..).zip(stats) {
            let affinity = self.added.control.queue_affinity(self.id(), index).ok();
            let (target, device) = (Arc::clone(&self.target), Arc::clone(&self.device));
            let (stats, tell) = (Arc::clone(stats), tell.clone());
            let spawned = std::thread::Builder::new()
                .name(format!("ublkq{index}"))
                .stack_size(QUEUE_STACK_BYTES)
                .spawn(move || queue_thread(&*target, &device, index, settings, affinity, &stats, &tell));
            match spawned {
                Ok(thread) => self.threads.push(thread),
                Err(source) => {
                    first_error = Some(Error::System { what: "starting a queue thread", source });
                    break;
                }
            }
        }
        drop(tell);
        // Every thread's answer, also after an error: one that fetches after the device was stopped would wait for ever.
        let deadline = Instant::now() + patience;
        for _ in 0..self.threads.len() {
            let answer = match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(answer) => answer,
                Err(_) => Err(Error::Child("a queue did not open in time".into())),
            };
            if let Err(error) = answer {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn go_live(
        &mut self,
        options: &RunOptions,
        state: &StateDir,
        queues: Vec<Arc<QueueStats>>,
    ) -> Result<()> {
        let id = self.id();
        if options.recover {
            self.added.control.end_recovery(id)?;
        } else {
            self.added.control.start(id)?;
        }
        let listener = control::Listener::bind(&state.socket(id))?;
        let daemon = Daemon { target: Arc::clone(&self.target), queues };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || listener.serve(daemon))
            .map_err(|source| Error::System { what: "starting the control thread", source })?;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || stop_on_signal(id))
            .map_err(|source| Error::System { what: "starting the signal thread", source })?;
        state.save(&self.record)
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a queue thread panicked outside a request");
            }
        }
    }

    fn until_stopped(mut self, state: &StateDir) -> Result<u32> {
        let id = self.id();
        self.join();
        log::info!("device {id}: stopped");
        self.target.stopped();
        // Before the number is free: a successor may have it a moment later.
        state.forget_if(&self.record);
        let Running { mut added, device, target, .. } = self;
        let _ = added.control.stop(id);
        drop(device);
        let deleted = added.control.delete(id);
        drop(target);
        match deleted {
            Ok(()) | Err(Error::NoDevice(_)) => Ok(id),
            Err(error) => Err(error),
        }
    }
}

/// What answers the control socket.
struct Daemon<T> {
    target: Arc<T>,
    queues: Vec<Arc<QueueStats>>,
}

impl<T: Target> control::Responder for Daemon<T> {
    fn answer(&self, request: &Value) -> std::result::Result<Answer<'_>, String> {
        match request["op"].as_str() {
            Some("stat") => {
                let buckets = request["buckets"].as_bool().unwrap_or(false);
                let mut report = stats::report(&self.queues, buckets);
                report["target"] = self.target.stats();
                Ok(report.into())
            }
            _ => self.target.control(request),
        }
    }
}

fn take_device(options: &RunOptions, spec: &DeviceSpec) -> Result<Added> {
    let mut control = Control::open(options.patience)?;
    match (options.recover, options.id) {
        (true, Some(id)) => {
            let info = control.info(id)?;
            if !info.recoverable() {
                return Err(Error::NotRecoverable { id, why: "it was not added with recovery".into() });
            }
            control.start_recovery(id)?;
            // A device that is being recovered is somebody's data: a failed attempt leaves it for the next.
            Ok(Added { control, info, keep: true })
        }
        (_, id) => {
            let info = control.add(id, spec)?;
            let mut added = Added { control, info, keep: false };
            added.control.set_params(added.info.id, spec)?;
            Ok(added)
        }
    }
}

fn queue_thread<T: Target>(
    target: &T,
    device: &CharDevice,
    index: u16,
    settings: Settings,
    affinity: Option<libc::cpu_set_t>,
    stats: &QueueStats,
    tell: &mpsc::Sender<Result<()>>,
) {
    let id = device.info().id;
    let fail = |what, source| Error::Queue { id, queue: index, what, source };
    let open = || -> Result<(IoQueue<'_>, T::Queue)> {
        set_io_flusher()?;
        if let Some(set) = affinity {
            // SAFETY: a whole cpu_set_t for the calling thread. A CPU that went away only costs speed.
            unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
        }
        // A timed completion is not to be 50 us late to save a wake-up. A kernel that refuses only costs punctuality.
        // SAFETY: prctl with plain numbers, for the calling thread.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
        let handler = target.open_queue(index).map_err(Error::Target)?;
        let mut queue =
            IoQueue::open(device, index, settings.ring_entries).map_err(|e| fail("opening", e))?;
        queue.fetch_all().map_err(|e| fail("fetching", e))?;
        Ok((queue, handler))
    };
    match open() {
        Err(error) => {
            // Nobody listens only when another queue failed first.
            let _ = tell.send(Err(error));
        }
        Ok((mut queue, mut handler)) => {
            let _ = tell.send(Ok(()));
            let serve = || queue::serve(&mut queue, settings, &mut handler, stats);
            match catch_unwind(AssertUnwindSafe(serve)) {
                Ok(Ok(())) => {}
                // Requests are open that nobody will complete: the kernel takes them back only when this process is gone.
                Ok(Err(error)) => end_process(&fail("serving", error).to_string()),
                Err(_) => end_process(&format!("device {id} queue {index}: the queue thread panicked")),
            }
        }
    }
}

/// Ends the process at once, without any farewell: the device stays as it is, for `recover` or `del`.
fn end_process(why: &str) -> ! {
    log::error!("{why}: the daemon ends");
    // SAFETY: ends the process; nothing of it is used any more.
    unsafe { libc::_exit(1) }
}

/// `PR_SET_IO_FLUSHER`: the calling thread's own memory allocations never wait for I/O on the device it serves
/// (Linux 5.6, kernel/sys.c). libublk up to 0.4.6 cleared it by mistake, so it is read back.
///
/// # Errors
/// The kernel's, without CAP_SYS_RESOURCE; `EPERM` if the flag did not hold.
pub fn become_io_flusher() -> io::Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    const PR_GET_IO_FLUSHER: libc::c_int = 58;
    // SAFETY: prctl with plain numbers.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    match unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) } {
        1 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

fn set_io_flusher() -> Result<()> {
    let what = "PR_SET_IO_FLUSHER (needs CAP_SYS_RESOURCE)";
    become_io_flusher().map_err(|source| Error::System { what, source })
}

fn stop_on_signal(id: u32) {
    loop {
        let stop = || -> Result<()> {
            let signal = daemon::wait_for_signal()?;
            log::info!("device {id}: {signal}: deleting the device");
            Control::open(COMMAND_LIMIT)?.stop(id)
        };
        match stop() {
            Ok(()) => return,
            // Another signal is another try.
            Err(error) => log::error!("{error}"),
        }
    }
}
