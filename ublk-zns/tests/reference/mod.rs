//! A second zone state machine, written from the rules and not from `zones.rs`: no counters, no lists, everything is
//! recomputed from the zones by scanning. Slow and plain; it is what the property tests compare with.

pub(crate) mod drive;

/// What a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Conv,
    Empty,
    /// Since when (a tick), for the order of implicit closing.
    Implicit(u64),
    Explicit,
    Closed,
    Full,
    ReadOnly,
    Offline,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct RefZone {
    pub(crate) kind: Kind,
    pub(crate) data: u64,
}

/// Why a command is refused; only what a client can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum No {
    Bounds,
    Pointer,
    Full,
    ReadOnly,
    Offline,
    Transition,
    Open,
    Active,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Cmd {
    Write { zone: usize, at: u64, len: u64 },
    Append { zone: usize, len: u64 },
    Open(usize),
    Close(usize),
    Finish(usize),
    Reset(usize),
    ResetAll,
    WearOut(usize),
    Fail(usize),
}

pub(crate) struct Reference {
    pub(crate) zones: Vec<RefZone>,
    conv: usize,
    pub(crate) size: u64,
    pub(crate) capacity: u64,
    pub(crate) block: u64,
    pub(crate) max_append: u64,
    pub(crate) max_open: usize,
    pub(crate) max_active: usize,
    tick: u64,
}

impl Reference {
    pub(crate) fn new(
        (zones, conv): (usize, usize),
        (size, capacity, block, max_append): (u64, u64, u64, u64),
        (max_open, max_active): (usize, usize),
    ) -> Self {
        let zones = (0..zones)
            .map(|n| RefZone { kind: if n < conv { Kind::Conv } else { Kind::Empty }, data: 0 })
            .collect();
        Reference { zones, conv, size, capacity, block, max_append, max_open, max_active, tick: 0 }
    }

    pub(crate) fn open(&self) -> usize {
        self.zones.iter().filter(|z| matches!(z.kind, Kind::Implicit(_) | Kind::Explicit)).count()
    }

    pub(crate) fn active(&self) -> usize {
        self.open() + self.zones.iter().filter(|z| z.kind == Kind::Closed).count()
    }

    /// May a zone that is not open become open? Closes another if that is the only way.
    fn make_room(&mut self, zone: usize) -> Result<(), No> {
        let needs_active = self.zones[zone].kind == Kind::Empty;
        if needs_active && self.max_active > 0 && self.active() + 1 > self.max_active {
            return Err(No::Active);
        }
        if self.max_open == 0 || self.open() < self.max_open {
            return Ok(());
        }
        let oldest = (0..self.zones.len())
            .filter_map(|n| match self.zones[n].kind {
                Kind::Implicit(since) => Some((since, n)),
                _ => None,
            })
            .min();
        match oldest {
            Some((_, n)) => {
                self.zones[n].kind = Kind::Closed;
                Ok(())
            }
            None => Err(No::Open),
        }
    }

    fn put(&mut self, zone: usize, at: Option<u64>, len: u64) -> Result<u64, No> {
        if len == 0 || !len.is_multiple_of(self.block) || at.is_some_and(|at| !at.is_multiple_of(self.block))
        {
            return Err(No::Bounds);
        }
        let z = self.zones[zone];
        if zone < self.conv {
            return match (at, z.kind) {
                (None, _) => Err(No::Transition),
                (Some(at), _) if at + len > self.size => Err(No::Bounds),
                (_, Kind::ReadOnly) => Err(No::ReadOnly),
                (_, Kind::Offline) => Err(No::Offline),
                (Some(at), _) => Ok(at),
            };
        }
        // A write is bounded before the state is looked at; an append has no place before it.
        if at.is_some_and(|at| at + len > self.capacity) || (at.is_none() && len > self.max_append) {
            return Err(No::Bounds);
        }
        match z.kind {
            Kind::Full => return Err(No::Full),
            Kind::ReadOnly => return Err(No::ReadOnly),
            Kind::Offline => return Err(No::Offline),
            _ => {}
        }
        if at.is_some_and(|at| at != z.data) {
            return Err(No::Pointer);
        }
        if z.data + len > self.capacity {
            return Err(No::Bounds);
        }
        if matches!(z.kind, Kind::Empty | Kind::Closed) {
            self.make_room(zone)?;
            self.tick += 1;
            self.zones[zone].kind = Kind::Implicit(self.tick);
        }
        self.zones[zone].data += len;
        if self.zones[zone].data == self.capacity {
            self.zones[zone].kind = Kind::Full;
        }
        Ok(z.data)
    }

    /// Does a command; answers where its data went (0 for those without).
    pub(crate) fn run(&mut self, cmd: Cmd) -> Result<u64, No> {
        use Kind::*;
        match cmd {
            Cmd::Write { zone, at, len } => return self.put(zone, Some(at), len),
            Cmd::Append { zone, len } => return self.put(zone, None, len),
            Cmd::Open(n) => match self.zones[n].kind {
                Empty | Closed => {
                    self.make_room(n)?;
                    self.zones[n].kind = Explicit;
                }
                Implicit(_) | Explicit => self.zones[n].kind = Explicit,
                Conv | Full | ReadOnly | Offline => return Err(No::Transition),
            },
            Cmd::Close(n) => match self.zones[n].kind {
                Implicit(_) | Explicit | Closed => self.zones[n].kind = Closed,
                Conv | Empty | Full | ReadOnly | Offline => return Err(No::Transition),
            },
            Cmd::Finish(n) => match self.zones[n].kind {
                Conv | ReadOnly | Offline => return Err(No::Transition),
                _ => self.zones[n].kind = Full,
            },
            Cmd::Reset(n) => match self.zones[n].kind {
                Conv | ReadOnly | Offline => return Err(No::Transition),
                _ => self.zones[n] = RefZone { kind: Empty, data: 0 },
            },
            Cmd::ResetAll => {
                for z in &mut self.zones {
                    if !matches!(z.kind, Conv | ReadOnly | Offline) {
                        *z = RefZone { kind: Empty, data: 0 };
                    }
                }
            }
            Cmd::WearOut(n) => match self.zones[n].kind {
                Offline => return Err(No::Transition),
                _ => self.zones[n].kind = ReadOnly,
            },
            Cmd::Fail(n) => self.zones[n].kind = Offline,
        }
        Ok(0)
    }
}
