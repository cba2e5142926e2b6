//! A device's life: add or recover, serve, stop, delete; and `del`, `list`, `stat` from other processes.
//!
//! The order at the start: build the target, add the kernel device, bind the target to its number, open every queue on
//! its own thread, fetch, start, remember the device, tell the parent. A failure at any step undoes the ones before it.
//! At the end (SIGTERM, `del`, or the device taken away): stop the device while the queues still serve, join them,
//! close the character device, delete the kernel device, forget the state.

use crate::{
    Target,
    adapter::{CharDevice, Control, DeviceInfo, DeviceState, IoQueue, device_ids},
    control,
    daemon::{self, Notifier, Side},
    error::{Error, Result},
    queue,
    spec::DeviceSpec,
    state::{DeviceRecord, StateDir},
    stats::{self, QueueStats},
};
use serde_json::{Value, json};
use std::{
    io,
    os::unix::fs::OpenOptionsExt,
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
    match daemon::split(options.patience + COMMAND_LIMIT)? {
        Side::Parent(Ok(news)) => match news.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(id),
            None => Err(Error::Child(format!("the background process said {news}"))),
        },
        Side::Parent(Err(error)) if error.usage => Err(Error::Target(Box::new(UsageError(error.message)))),
        Side::Parent(Err(error)) => Err(Error::Child(error.message)),
        Side::Daemon(notifier) => match run(options, &state, make, notifier, |_| {}) {
            Ok(_) => std::process::exit(0),
            // The parent, or the log, has the reason.
            Err(_) => std::process::exit(1),
        },
    }
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
    let started = make().map_err(Error::Target).and_then(|target| Running::start(options, state, target));
    match started {
        Ok(running) => {
            let id = running.id();
            if notifier.in_background() {
                daemon::detach(&state.log(id))?;
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
    added: Added,
    device: Arc<CharDevice>,
    threads: Vec<JoinHandle<()>>,
}

impl<T: Target> Running<T> {
    fn start(options: &RunOptions, state: &StateDir, target: T) -> Result<Running<T>> {
        let spec = target.spec();
        spec.validate()?;
        set_io_flusher()?;
        daemon::block_signals()?;
        let mut added = take_device(options, &spec)?;
        let id = added.info.id;
        target.bind(id).map_err(Error::Target)?;
        let target = Arc::new(target);
        let device = Arc::new(CharDevice::open(added.info, spec.data_path)?);
        let queues: Vec<_> = (0..added.info.queues).map(|_| Arc::new(QueueStats::default())).collect();
        let mut running = Running { target, added, device, threads: Vec::new() };
        let opened = running.open_queues(&queues);
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
        // The queue threads end once the device is stopped; the character device must be closed before it is deleted.
        match self.added.control.stop(id) {
            Ok(()) => self.join(),
            Err(stop) => log::warn!("{stop}"),
        }
        let Running { device, added, .. } = self;
        drop(device);
        drop(added);
        state.forget(id);
        error
    }

    fn id(&self) -> u32 {
        self.added.info.id
    }

    fn open_queues(&mut self, stats: &[Arc<QueueStats>]) -> Result<()> {
        let (tell, told) = mpsc::channel();
        for (index, stats) in (0..).zip(stats) {
            let affinity = self.added.control.queue_affinity(self.id(), index).ok();
            let (target, device) = (Arc::clone(&self.target), Arc::clone(&self.device));
            let (stats, tell) = (Arc::clone(stats), tell.clone());
            let thread = std::thread::Builder::new()
                .name(format!("ublkq{index}"))
                .stack_size(QUEUE_STACK_BYTES)
                .spawn(move || queue_thread(&*target, &device, index, affinity, &stats, &tell))
                .map_err(|source| Error::System { what: "starting a queue thread", source })?;
            self.threads.push(thread);
        }
        drop(tell);
        for _ in 0..self.threads.len() {
            match told.recv_timeout(COMMAND_LIMIT) {
                Ok(result) => result?,
                Err(_) => return Err(Error::Child("a queue thread ended before it was ready".into())),
            }
        }
        Ok(())
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
        let target = Arc::clone(&self.target);
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                listener.serve(|request| match request["op"].as_str() {
                    Some("stat") => {
                        let mut report = stats::report(&queues);
                        report["target"] = target.stats();
                        Ok(report)
                    }
                    _ => target.control(request),
                });
            })
            .map_err(|source| Error::System { what: "starting the control thread", source })?;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || stop_on_signal(id))
            .map_err(|source| Error::System { what: "starting the signal thread", source })?;
        state.save(&DeviceRecord::of_this_process(id, self.target.kind(), options.options.clone()))
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
        let Running { mut added, device, target, .. } = self;
        let _ = added.control.stop(id);
        drop(device);
        let deleted = added.control.delete(id);
        state.forget(id);
        drop(target);
        match deleted {
            Ok(()) | Err(Error::NoDevice(_)) => Ok(id),
            Err(error) => Err(error),
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
        let handler = target.open_queue(index).map_err(Error::Target)?;
        let mut queue = IoQueue::open(device, index).map_err(|e| fail("opening", e))?;
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
            if let Err(error) = queue::serve(&mut queue, device.info().depth, &mut handler, stats) {
                log::error!("{}", fail("serving", error));
            }
        }
    }
}

/// `PR_SET_IO_FLUSHER`: this thread's own memory allocations never wait for I/O on the device it serves
/// (Linux 5.6, kernel/sys.c). libublk before 0.4.7 cleared it by mistake, so it is read back.
fn set_io_flusher() -> Result<()> {
    const PR_SET_IO_FLUSHER: i32 = 57;
    const PR_GET_IO_FLUSHER: i32 = 58;
    // SAFETY: prctl with plain numbers.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } < 0 {
        return Err(Error::last("PR_SET_IO_FLUSHER (needs CAP_SYS_RESOURCE)"));
    }
    // SAFETY: as above.
    match unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) } {
        1 => Ok(()),
        _ => Err(Error::System {
            what: "PR_SET_IO_FLUSHER did not hold",
            source: io::Error::from_raw_os_error(libc::EPERM),
        }),
    }
}

fn stop_on_signal(id: u32) {
    let stop = || -> Result<()> {
        let signal = daemon::wait_for_signal()?;
        log::info!("device {id}: {signal}: deleting the device");
        Control::open(COMMAND_LIMIT)?.stop(id)
    };
    if let Err(error) = stop() {
        log::error!("{error}");
    }
}

/// Stops and deletes device `id`, from any process.
///
/// # Errors
/// [`Error::NoDevice`]; [`Error::InUse`] unless `force`; the kernel's refusal.
pub fn del(id: u32, force: bool) -> Result<()> {
    let state = StateDir::open()?;
    let mut control = Control::open(COMMAND_LIMIT)?;
    if !present(&mut control, id) {
        state.forget(id);
        return Err(Error::NoDevice(id));
    }
    if !force && in_use(id) {
        return Err(Error::InUse(id));
    }
    match control.stop(id) {
        Err(Error::NoDevice(_)) => {}
        other => other?,
    }
    // The daemon deletes the device itself once its queues have ended; without a daemon nobody does.
    let alive = state.load(id).ok().flatten().is_some_and(|record| record.daemon_alive());
    let delete_at = Instant::now() + if alive { DAEMON_PATIENCE } else { Duration::ZERO };
    let leave_at = delete_at + HOLDER_PATIENCE;
    let mut deleted = false;
    while present(&mut control, id) {
        if !deleted && Instant::now() >= delete_at {
            match control.delete(id) {
                Err(Error::NoDevice(_)) => break,
                other => other?,
            }
            deleted = true;
        }
        if Instant::now() >= leave_at {
            log::warn!(
                "device {id} is stopped, but something holds it open: its number is free once that is closed"
            );
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    state.forget(id);
    Ok(())
}

/// Whether the kernel still has device `id`: its node goes first, its number only when the last user has let go.
fn present(control: &mut Control, id: u32) -> bool {
    device_ids().contains(&id) || control.info(id).is_ok()
}

/// A block device that is mounted or swapped on cannot be opened exclusively.
fn in_use(id: u32) -> bool {
    let open =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(format!("/dev/ublkb{id}"));
    matches!(open, Err(error) if error.raw_os_error() == Some(libc::EBUSY))
}

/// One line of `list`.
#[derive(Debug, serde::Serialize)]
pub struct Listed {
    /// The number N of /dev/ublkbN.
    pub id: u32,
    /// The block device.
    pub device: String,
    /// The target's kind, if it is one of ours.
    pub target: Option<String>,
    /// The driver's state.
    pub state: DeviceState,
    /// The daemon, if it runs.
    pub pid: Option<u32>,
    /// Capacity in bytes.
    pub size_bytes: u64,
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
}

/// All ublk devices of this machine; with `kind`, those of one target.
///
/// # Errors
/// [`Error::NoDriver`] and the like.
pub fn list(kind: Option<&str>) -> Result<Vec<Listed>> {
    let state = StateDir::open()?;
    let mut control = Control::open(COMMAND_LIMIT)?;
    let mut listed = Vec::new();
    for id in device_ids() {
        let record = state.load(id).unwrap_or_else(|error| {
            log::warn!("{error}");
            None
        });
        if kind.is_some() && record.as_ref().map(|record| record.target.as_str()) != kind {
            continue;
        }
        // A device may go away between the listing and the question.
        let (Ok(info), Ok(size_bytes)) = (control.info(id), control.size_bytes(id)) else { continue };
        listed.push(Listed {
            id,
            device: format!("/dev/ublkb{id}"),
            pid: record.as_ref().filter(|record| record.daemon_alive()).map(|record| record.pid),
            target: record.map(|record| record.target),
            state: info.state,
            size_bytes,
            queues: info.queues,
            depth: info.depth,
        });
    }
    Ok(listed)
}

/// Asks device `id`'s daemon, after checking that the device is `kind`'s.
///
/// # Errors
/// [`Error::NoDevice`], [`Error::Daemon`], [`Error::Refused`].
pub fn ask(kind: &str, id: u32, request: &Value) -> Result<Value> {
    let state = StateDir::open()?;
    match state.load(id)? {
        Some(record) if record.target == kind => control::ask(&state.socket(id), id, request),
        Some(record) => {
            let message = format!("it is a {} device, not a {kind} device", record.target);
            Err(Error::Refused { id, message })
        }
        None => Err(Error::NoDevice(id)),
    }
}

/// The options device `id` was added with, for `recover`.
///
/// # Errors
/// [`Error::NotRecoverable`] with the reason.
pub fn recoverable_options(kind: &str, id: u32) -> Result<Value> {
    let state = StateDir::open()?;
    let not = |why: String| Err(Error::NotRecoverable { id, why });
    match state.load(id)? {
        None if !device_ids().contains(&id) => Err(Error::NoDevice(id)),
        None => not("it is not a device of storlab".into()),
        Some(record) if record.target != kind => not(format!("it is a {} device", record.target)),
        Some(record) if record.daemon_alive() => {
            not(format!("its daemon (process {}) still runs", record.pid))
        }
        Some(_) if !device_ids().contains(&id) => {
            state.forget(id);
            not("the kernel no longer has it (a restart?): add it again".into())
        }
        Some(record) => Ok(record.options),
    }
}
