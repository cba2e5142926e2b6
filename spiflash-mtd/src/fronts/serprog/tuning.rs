//! Socket options that nix has not: how a client that waits for each answer is served fast.
//!
//! The invariant: these are only hints. Where the kernel refuses one, all works, slower.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long after the last command a CPU is kept awake.
const AWAKE: Duration = Duration::from_millis(2);

/// Keeps an idle CPU from being halted while commands come one after the other.
///
/// Client and server wake each other for every command. To wake a CPU that a virtual machine has halted takes some hundred
/// microseconds, one that is awake some few. So while commands come, a thread of the lowest class (SCHED_IDLE: anything else goes
/// before it at once) takes the time that nobody wants.
pub(super) struct KeepAwake {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    commands: AtomicU32,
    ended: AtomicBool,
}

impl KeepAwake {
    /// Starts the thread; `None` where the kernel does not let it be of the lowest class.
    pub(super) fn start() -> Option<KeepAwake> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("serprog awake".into()).spawn(move || {
            if is_idle_class() {
                theirs.run();
            }
        });
        Some(KeepAwake { shared, thread: Some(thread.ok()?) })
    }

    /// A command came.
    pub(super) fn touch(&self) {
        let before = self.shared.commands.fetch_add(1, Ordering::Relaxed);
        // The thread looks now and then; a burst need not wake it at its first command.
        if before.is_multiple_of(32)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
    }
}

impl Drop for KeepAwake {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does nothing that could fail.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        while !self.ended.load(Ordering::Acquire) {
            std::thread::park();
            let (mut seen, mut since) = (self.commands.load(Ordering::Relaxed), Instant::now());
            while !self.ended.load(Ordering::Acquire) {
                for _ in 0..1000 {
                    std::hint::spin_loop();
                }
                let now = self.commands.load(Ordering::Relaxed);
                if now != seen {
                    (seen, since) = (now, Instant::now());
                } else if since.elapsed() > AWAKE {
                    break;
                }
            }
        }
    }
}

/// Puts this thread into the lowest class.
fn is_idle_class() -> bool {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live over the call, which reads them; 0 is this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) == 0 }
}

/// A read waits, up to its timeout, until so many bytes are there.
pub(super) fn set_low_water(socket: BorrowedFd<'_>, bytes: i32) {
    let size = size_of::<i32>() as libc::socklen_t;
    let value: *const i32 = &bytes;
    // SAFETY: the descriptor is open for as long as it is borrowed; the value lives over the call and has the size that
    // is given.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value.cast(), size);
    }
}

/// The CPU on which the last packet came in; over the loopback interface that is the client's.
pub(super) fn incoming_cpu(socket: BorrowedFd<'_>) -> Option<usize> {
    let mut cpu: i32 = -1;
    let mut size = size_of::<i32>() as libc::socklen_t;
    let value: *mut i32 = &mut cpu;
    // SAFETY: as above; the kernel writes at most the size that is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_CPU,
            value.cast(),
            &raw mut size,
        )
    };
    if result == 0 { usize::try_from(cpu).ok() } else { None }
}
