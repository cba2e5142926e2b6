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

/// What keeps a swap daemon from waiting for itself. All of them, but where an experiment is to show what one is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Safeguards {
    /// Memory is locked.
    pub lock: bool,
    /// Threads are I/O flushers.
    pub flusher: bool,
    /// The OOM killer looks elsewhere.
    pub oom: bool,
    /// The swap path allocates nothing.
    pub no_alloc: bool,
}

impl Safeguards {
    /// All of them.
    pub const ALL: Safeguards = Safeguards { lock: true, flusher: true, oom: true, no_alloc: true };

    /// All but those named in `names`: lock, flusher, oom, alloc.
    ///
    /// # Errors
    /// [`Error::Option`] for another name.
    pub fn without(names: &[String]) -> Result<Self, Error> {
        let mut these = Self::ALL;
        for name in names {
            match name.as_str() {
                "lock" => these.lock = false,
                "flusher" => these.flusher = false,
                "oom" => these.oom = false,
                "alloc" => these.no_alloc = false,
                other => {
                    return Err(Error::Option(format!("--without {other}: lock, flusher, oom or alloc")));
                }
            }
        }
        Ok(these)
    }
}

/// Locks all memory, present and future, and takes the process out of the OOM killer's reach.
///
/// # Errors
/// The kernel refuses: the process needs root, or CAP_IPC_LOCK and CAP_SYS_RESOURCE.
pub fn protect(with: Safeguards) -> Result<(), Error> {
    const REMEDY: &str = "run as root, or with CAP_IPC_LOCK and CAP_SYS_RESOURCE";
    // One malloc arena, never trimmed: what is freed stays locked and is used again.
    // SAFETY: mallopt with plain numbers; both parameters exist in every glibc since 2.10.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
    // SAFETY: mlockall takes flags only. Not MCL_ONFAULT: a page that is first touched under pressure is too late.
    if with.lock && unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } < 0 {
        return Err(Error::Protect {
            what: "locking memory",
            source: io::Error::last_os_error(),
            remedy: REMEDY,
        });
    }
    if !with.oom {
        return Ok(());
    }
    std::fs::write("/proc/self/oom_score_adj", "-1000").map_err(|source| Error::Protect {
        what: "setting /proc/self/oom_score_adj to -1000",
        source,
        remedy: REMEDY,
    })
}

/// Takes the mark of an I/O flusher off the calling thread, to show what it is for.
pub fn stop_being_io_flusher() {
    /// `PR_SET_IO_FLUSHER` of linux/prctl.h.
    const SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: prctl with plain numbers.
    unsafe { libc::prctl(SET_IO_FLUSHER, 0, 0, 0, 0) };
}

/// What could still slow the process down under pressure and is the administrator's to decide: one line each.
pub fn advice() -> Vec<String> {
    let mut lines = Vec::new();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim().to_owned();
    let limit = std::fs::read_to_string(format!("/sys/fs/cgroup{group}/memory.max"));
    if limit.is_ok_and(|limit| limit.trim() != "max") {
        lines.push(format!(
            "the daemon is in cgroup {group}, which has a memory.max: what reclaims there may wait for the daemon; \
             start it in a group without a limit"
        ));
    }
    let reserve = std::fs::read_to_string("/proc/sys/vm/min_free_kbytes").ok();
    if let Some(kib) = reserve.and_then(|text| text.trim().parse::<u64>().ok()).filter(|kib| *kib < 16 << 10)
    {
        lines.push(format!(
            "vm.min_free_kbytes is {kib}: swap over the network goes on more smoothly under pressure with 16384 or more"
        ));
    }
    lines
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
