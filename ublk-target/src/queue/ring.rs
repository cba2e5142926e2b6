//! The io_uring of one queue: commands of the kernel's device and operations of the handler share it.
//!
//! The invariant: whose a completion is can be told from its user data alone. The handler's own operations have the
//! highest bit set (a token is below 2^48), a cancellation also the next; what is left belongs to the device's tags.

use io_uring::{IoUring, opcode, squeue, types};
use std::{io, time::Duration};

/// User data of the handler's own operations.
const OWN: u64 = 1 << 63;
/// With [`OWN`]: a cancellation, whose own end interests nobody.
const CANCEL: u64 = 1 << 62;
/// Tokens are below this.
pub(crate) const TOKENS: u64 = 1 << 48;
/// `IORING_CQE_F_MORE`: the operation will say more.
const MORE: u32 = 1 << 1;
/// How often to try to make room in the ring before that is an error.
const TRIES: usize = 100;

/// A completion, by owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completed {
    /// A command with this user data.
    Command(u64, i32),
    /// An operation of the handler.
    Own {
        /// The handler's number.
        token: u64,
        /// Its result.
        result: i32,
        /// The operation is not over: it will complete again.
        more: bool,
    },
}

/// A ring that one thread uses.
pub(crate) struct Ring(IoUring);

impl Ring {
    /// Room for `commands` and `own` operations in flight. Only the calling thread may use the ring.
    pub(crate) fn new(commands: u16, own: u16) -> io::Result<Ring> {
        let entries = u32::from(commands) + u32::from(own);
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag() // so that `poll` enters the kernel only when it has something
            .setup_submit_all()
            .setup_cqsize(entries * 2)
            .build(entries)?;
        Ok(Ring(ring))
    }

    /// The ring's submitter, to register files.
    pub(crate) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.0.submitter()
    }

    /// Queues a command.
    ///
    /// # Safety
    /// What `entry` names stays valid until its completion.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        for _ in 0..TRIES {
            // SAFETY: the caller's promise.
            if unsafe { self.0.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// Queues an operation of the handler; `token` comes back with its completion.
    ///
    /// # Safety
    /// As [`Ring::push`].
    pub(crate) unsafe fn push_own(&mut self, entry: squeue::Entry, token: u64) -> io::Result<()> {
        if token >= TOKENS {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(OWN | token)) }
    }

    /// Asks the kernel to cancel whatever is in flight.
    pub(crate) fn cancel_all(&mut self) -> io::Result<()> {
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry.user_data(OWN | CANCEL)) }
    }

    /// Submits, and waits for a completion for at most `limit`.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let submitter = self.0.submitter();
        let entered = match limit {
            None => submitter.submit_and_wait(1),
            Some(limit) => {
                let limit = types::Timespec::from(limit);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&limit))
            }
        };
        entered.map(drop).or_else(passing)
    }

    /// Submits.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.0.submit().map(drop).or_else(passing)
    }

    /// Whether the kernel has everything that was pushed.
    pub(crate) fn all_submitted(&mut self) -> bool {
        self.0.submission().is_empty()
    }

    /// Submits, and has the kernel post what it has. Free when there is neither.
    pub(crate) fn poll(&mut self) -> io::Result<()> {
        let submission = self.0.submission();
        let due = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if due { self.submit() } else { Ok(()) }
    }

    /// Whether [`Ring::next`] has something.
    pub(crate) fn ready(&mut self) -> bool {
        !self.0.completion().is_empty()
    }

    /// The next completion.
    pub(crate) fn next(&mut self) -> Option<Completed> {
        loop {
            let answer = self.0.completion().next()?;
            let (data, result) = (answer.user_data(), answer.result());
            if data & OWN == 0 {
                return Some(Completed::Command(data, result));
            }
            if data & CANCEL == 0 {
                return Some(Completed::Own { token: data & !OWN, result, more: answer.flags() & MORE != 0 });
            }
        }
    }
}

/// Errors of entering the ring that pass: the time is up, a signal came, or the kernel lacks something for a moment. What
/// was not submitted stays in the ring.
fn passing(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ETIME | libc::EINTR) => Ok(()),
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        }
        _ => Err(error),
    }
}
