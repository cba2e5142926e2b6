//! The fronts: what brings frames from a client to the bus. They translate and hold no policy.
//!
//! The invariant: a frame is atomic. A front takes the bus's lock before CS# falls and gives it back after CS# has risen,
//! so that several fronts can share one bus, and none ever sees a chip that another has selected.

pub mod cuse;
pub mod mtd;
pub mod serprog;

use crate::bus::SpiBus;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

/// A bus that several fronts share.
pub type SharedBus = Arc<Mutex<dyn SpiBus + Send>>;

/// The lock of a bus.
pub type BusGuard<'a> = MutexGuard<'a, dyn SpiBus + Send + 'static>;

/// Takes the bus for one frame or more.
///
/// A front that panicked with the lock may have left a chip selected: its frame is ended here.
pub fn lock(bus: &SharedBus) -> BusGuard<'_> {
    bus.lock().unwrap_or_else(|poisoned: PoisonError<BusGuard<'_>>| {
        bus.clear_poison();
        let mut bus = poisoned.into_inner();
        // An error here says that no chip was left selected.
        let _ = bus.deselect();
        bus
    })
}

/// Why a front could not be started, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The system refused something.
    #[error("{what}")]
    System {
        /// What was tried, and with what.
        what: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// An option that cannot be.
    #[error("{what}: {value:?}: {rule}")]
    Option {
        /// Which one.
        what: &'static str,
        /// What it was.
        value: String,
        /// What would be right.
        rule: String,
    },
    /// The other side does not keep to the protocol.
    #[error("{what}")]
    Protocol {
        /// Which side, and how.
        what: String,
    },
    /// A fault in the program.
    #[error("{front} ended by a panic; this is a fault in the program")]
    Panicked {
        /// The front.
        front: String,
    },
}

impl FrontError {
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> FrontError {
        let what = what.into();
        move |source| FrontError::System { what, source }
    }
}

/// Ends the waits of a front's thread, once and for good.
#[derive(Debug)]
pub(crate) struct Stop {
    event: EventFd,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The front is to end.
    Stop,
    /// The file has something: the events that were asked for, or an error or a hang-up.
    Ready(PollFlags),
    /// Nothing for this long.
    Timeout,
}

impl Stop {
    pub(crate) fn new() -> Result<Arc<Stop>, FrontError> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let event =
            event.map_err(io::Error::from).map_err(FrontError::system("an event to stop a front by"))?;
        Ok(Arc::new(Stop { event }))
    }

    /// All waits from now on end, and the one under way.
    pub(crate) fn request(&self) {
        // It fails only when the counter is full: then it is readable, which is all that is wanted.
        let _ = self.event.write(1);
    }

    /// Waits for events of a file (or only for time to pass), for at most `timeout_ms`.
    pub(crate) fn wait(
        &self,
        file: Option<BorrowedFd<'_>>,
        events: PollFlags,
        timeout_ms: Option<u16>,
    ) -> io::Result<Woken> {
        let stop = PollFd::new(self.event.as_fd(), PollFlags::POLLIN);
        let mut both = [stop, PollFd::new(file.unwrap_or(self.event.as_fd()), events)];
        let watched = if file.is_some() { 2 } else { 1 };
        let polled = both.get_mut(..watched).unwrap_or_default();
        let timeout = timeout_ms.map_or(PollTimeout::NONE, PollTimeout::from);
        loop {
            match poll(polled, timeout) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(0) => return Ok(Woken::Timeout),
                Ok(_) => break,
            }
        }
        let seen = |index: usize| polled.get(index).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        if !seen(0).is_empty() {
            return Ok(Woken::Stop);
        }
        Ok(Woken::Ready(seen(1)))
    }
}

/// The thread of a front. It ends with this.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<Result<(), FrontError>>>,
}

impl Running {
    pub(crate) fn start(
        name: String,
        stop: Arc<Stop>,
        body: impl FnOnce(&Stop) -> Result<(), FrontError> + Send + 'static,
    ) -> Result<Running, FrontError> {
        let (its_name, its_stop) = (name.clone(), Arc::clone(&stop));
        // The kernel keeps 15 bytes of a thread's name.
        let builder = std::thread::Builder::new().name(name.chars().take(15).collect());
        let thread = builder.spawn(move || {
            let result = body(&its_stop);
            if let Err(error) = &result {
                log::error!("{its_name}: {error}");
            }
            result
        });
        let thread = thread.map_err(FrontError::system(format!("a thread for {name}")))?;
        Ok(Running { name, stop, thread: Some(thread) })
    }

    pub(crate) fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the thread and says how it ended.
    pub(crate) fn stop(&mut self) -> Result<(), FrontError> {
        self.stop.request();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(FrontError::Panicked { front: self.name.clone() }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What went wrong was logged by the thread.
        let _ = self.stop();
    }
}
