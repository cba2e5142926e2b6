//! Resetting zones beside the queue: the ioctl returns when the SSD has erased, which takes milliseconds.
//!
//! The invariant: every zone that is asked for is answered once, in order, and the queue hears of it through an eventfd.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::Media;

struct Lists {
    asked: VecDeque<u32>,
    done: VecDeque<(u32, bool)>,
    stop: bool,
}

struct Shared {
    lists: Mutex<Lists>,
    wake: Condvar,
    event: OwnedFd,
}

impl Shared {
    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, media: &dyn Media) {
        let mut lists = self.lists();
        while !lists.stop {
            let Some(zone) = lists.asked.pop_front() else {
                lists = self.wake.wait(lists).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(lists);
            let reset = media.reset(zone);
            if let Err(error) = &reset {
                log::error!("zone {zone} cannot be reset and is not used any more: {error}");
            }
            lists = self.lists();
            lists.done.push_back((zone, reset.is_ok()));
            let one = 1_u64;
            // SAFETY: writes the eight bytes of a live integer to a descriptor of ours. Its counter cannot overflow.
            unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
        }
    }
}

/// The thread that resets.
pub(super) struct Resets {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    under_way: u32,
}

impl Resets {
    /// Starts it, with room for every zone.
    pub(super) fn start(media: Arc<dyn Media>, zones: u32) -> io::Result<Self> {
        // SAFETY: makes a descriptor, or fails.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open and nobody else's.
        let event = unsafe { OwnedFd::from_raw_fd(event) };
        let room = || zones as usize;
        let lists = Lists {
            asked: VecDeque::with_capacity(room()),
            done: VecDeque::with_capacity(room()),
            stop: false,
        };
        let shared = Arc::new(Shared { lists: Mutex::new(lists), wake: Condvar::new(), event });
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("znswap-reset".to_owned())
            .stack_size(256 << 10)
            .spawn(move || served.run(&*media))?;
        Ok(Self { shared, thread: Some(thread), under_way: 0 })
    }

    /// The descriptor that becomes readable (eight bytes) when a reset is done.
    pub(super) fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// Resets asked for and not taken.
    pub(super) fn under_way(&self) -> u32 {
        self.under_way
    }

    /// Has a zone reset.
    pub(super) fn ask(&mut self, zone: u32) {
        self.under_way += 1;
        self.shared.lists().asked.push_back(zone);
        self.shared.wake.notify_one();
    }

    /// A zone whose reset has ended, and whether it was reset.
    pub(super) fn take(&mut self) -> Option<(u32, bool)> {
        let done = self.shared.lists().done.pop_front()?;
        self.under_way -= 1;
        Some(done)
    }
}

impl Drop for Resets {
    fn drop(&mut self) {
        self.shared.lists().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
