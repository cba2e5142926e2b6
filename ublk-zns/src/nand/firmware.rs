//! The controller's processors: how long a command waits for one, and what it takes.
//!
//! With `cores` = 0 a command only takes its own time. Otherwise:
//!
//! - **fifo**: commands take the first free core in order of arrival (a queue with `cores` servers);
//! - **round-robin**: processor sharing, the share fixed at arrival. At a command's arrival let `A` be the number of queues with
//!   work not yet done, its own included. Its queue then has `cores / A` cores: the queue's backlog ends `s × A / cores` later
//!   than it did (or than now), and the command is done at that time, but not before `s` from now. So a queue with one
//!   command waits for at most `A` services and not for the other queues' backlogs. Commands already promised are not moved:
//!   where a queue wakes up beside one that had the cores alone, more than `cores` are in use for a moment, and a steady
//!   mix is right on average.
//!
//! The invariant: a command is never done before its own service time is over.

use super::{
    flash::Scale,
    profile::{ArbitrationKind, Profile},
};

/// The cores, and per queue when its backlog ends.
#[derive(Debug)]
pub(crate) struct Firmware {
    pub(super) kind: ArbitrationKind,
    pub(super) cores: Vec<u64>,
    queues: Vec<u64>,
}

impl Firmware {
    /// Idle cores for `queues` submission queues.
    pub(crate) fn new(profile: &Profile, queues: u16) -> Firmware {
        Firmware {
            kind: profile.arbitration.kind,
            cores: vec![0; profile.firmware.cores as usize],
            queues: vec![0; usize::from(queues).max(1)],
        }
    }

    /// When a command of `queue` that arrives now and takes `service_ns` is through.
    pub(crate) fn run(&mut self, now_ns: u64, queue: u16, service_ns: u64) -> u64 {
        let alone = now_ns.saturating_add(service_ns);
        if self.cores.is_empty() || service_ns == 0 {
            return alone;
        }
        if self.kind == ArbitrationKind::RoundRobin {
            return self.share(now_ns, queue, service_ns).max(alone);
        }
        match self.cores.iter_mut().min() {
            Some(core) => {
                *core = now_ns.max(*core).saturating_add(service_ns);
                *core
            }
            None => alone,
        }
    }

    fn share(&mut self, now_ns: u64, queue: u16, service_ns: u64) -> u64 {
        let own = usize::from(queue) % self.queues.len();
        let others = self.queues.iter().enumerate().filter(|(at, end)| *at != own && **end > now_ns).count();
        let cores = self.cores.len() as u64;
        let slice = service_ns.saturating_mul(others as u64 + 1).div_ceil(cores);
        let end = &mut self.queues[own];
        *end = now_ns.max(*end).saturating_add(slice);
        *end
    }
}

/// What each kind of command takes, in model ns.
#[derive(Debug, Clone)]
pub(crate) struct Costs {
    pub(crate) read: u64,
    pub(crate) read_4k: u64,
    pub(crate) write: u64,
    pub(crate) append: u64,
    pub(crate) write_per_4k: u64,
    pub(crate) manage: u64,
    pub(crate) flush: u64,
    pub(crate) buffer_read: u64,
    pub(crate) open: u64,
    pub(crate) close: u64,
    pub(crate) reset: u64,
    pub(crate) finish: u64,
}

impl Costs {
    /// The costs of `profile`, scaled.
    pub(crate) fn new(profile: &Profile, scale: Scale) -> Costs {
        let (f, z) = (&profile.firmware, &profile.zones);
        let read = scale.time(f.read_ns);
        Costs {
            read,
            read_4k: if f.read_4k_ns == 0 { read } else { scale.time(f.read_4k_ns) },
            write: scale.time(f.write_ns),
            append: scale.time(f.append_ns),
            write_per_4k: scale.time(f.write_per_4k_ns),
            manage: scale.time(f.manage_ns),
            flush: scale.time(f.flush_ns),
            buffer_read: scale.time(f.buffer_read_ns),
            open: scale.time(z.open_ns),
            close: scale.time(z.close_ns),
            reset: scale.time(z.reset_ns),
            finish: scale.time(z.finish_ns),
        }
    }
}
