//! Protection of a process that serves swap against needing that swap itself.
//!
//! A swap daemon whose own page is swapped out, or whose allocation makes the kernel reclaim by swapping to it, waits
//! for itself: the machine hangs. So its memory is locked, now and in future, its threads are I/O flushers
//! (`PR_SET_IO_FLUSHER`: their allocations never wait for I/O), it is not the OOM killer's victim, and its swap path
//! allocates nothing at all.
//!
//! A node that lends to a device of its own machine is part of that device's path and needs the same.
//!
//! Order: [`protect`] in the process that serves (locks are not inherited over fork), before the large allocations;
//! [`become_io_flusher`] on every thread that does I/O.

use std::io;

use crate::error::Error;

/// Locks all memory, present and future, and takes the process out of the OOM killer's reach.
///
/// # Errors
/// The kernel refuses: the process needs root, or CAP_IPC_LOCK and CAP_SYS_RESOURCE.
pub fn protect() -> Result<(), Error> {
    const REMEDY: &str = "run as root, or with CAP_IPC_LOCK and CAP_SYS_RESOURCE";
    // One malloc arena, never trimmed: what is freed stays locked and is used again.
    // SAFETY: mallopt with plain numbers; both parameters exist in every glibc since 2.10.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
    // SAFETY: mlockall takes flags only. Not MCL_ONFAULT: a page that is first touched under pressure is too late.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } < 0 {
        return Err(Error::Protect {
            what: "locking memory",
            source: io::Error::last_os_error(),
            remedy: REMEDY,
        });
    }
    std::fs::write("/proc/self/oom_score_adj", "-1000").map_err(|source| Error::Protect {
        what: "setting /proc/self/oom_score_adj to -1000",
        source,
        remedy: REMEDY,
    })
}

/// Makes the calling thread an I/O flusher and checks that it is one: a library has cleared the flag by mistake before.
///
/// # Errors
/// The kernel refuses (CAP_SYS_RESOURCE is missing).
pub fn become_io_flusher() -> Result<(), Error> {
    const REMEDY: &str = "run as root, or with CAP_SYS_RESOURCE";
    ublk_target::lifecycle::become_io_flusher().map_err(|source| Error::Protect {
        what: "PR_SET_IO_FLUSHER",
        source,
        remedy: REMEDY,
    })
}
