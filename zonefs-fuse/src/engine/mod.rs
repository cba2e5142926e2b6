//! The file system: [`Fs`], without FUSE.
//!
//! One lock holds the state: readers share it, so reads run side by side; changes are one at a time. Files only
//! grow at their end. What `fsync` returned for is there after any crash; what was not synced may be missing,
//! but never in the middle: a file reads as some earlier end of what was written to it, and the names are
//! those after some operation in the order they were done. The `state` module has the order that ensures it.
//!
//! A panic while the state is being changed leaves the lock poisoned: from then on the file system is read-only,
//! and nothing of the half-changed state reaches the device, so the next mount finds the last commit.

mod file;
mod inspect;
mod log;
mod mkfs;
mod recover;
mod state;
mod zones;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::device::ZonedDevice;
use crate::format::Entry;
use crate::model::tree::{check_name, dirent_bytes};
use crate::model::{Attrs, Kind, MAX_TARGET_BYTES, Time};
use crate::{Error, Result};

pub use inspect::{Df, FileInfo, Inspection, ZoneInfo, inspect};
pub use mkfs::{MkfsOptions, MkfsReport, mkfs};
pub use recover::RecoveryReport;

use self::log::MetaLog;
use self::state::{PENDING_LIMIT_BYTES, State};
use self::zones::Zones;

const S_ISGID: u32 = 0o2000;
const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
/// What an inode and a name take in a snapshot at most, without name and target.
const INODE_METADATA_BYTES: u64 = 128;

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Time;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Time {
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => Time {
                seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                nanoseconds: since.subsec_nanos(),
            },
            Err(_) => Time::default(),
        }
    }
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The inode.
    pub ino: u64,
    /// Mode, owner and times.
    pub attrs: Attrs,
    /// Links.
    pub nlink: u32,
    /// Content bytes; a symlink's target, 0 for a directory.
    pub size_bytes: u64,
    /// Blocks of 512 bytes on the device.
    pub blocks_512: u64,
    /// The device number of a device node.
    pub rdev: u32,
}

/// A change of attributes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permissions; the kind stays.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// A size not above the present one.
    pub size_bytes: Option<u64>,
    /// Access time.
    pub atime: Option<Time>,
    /// Content time.
    pub mtime: Option<Time>,
}

/// A new inode.
#[derive(Clone, Copy, Debug)]
pub struct NewInode<'a> {
    /// Kind and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group; a set-group-id directory overrides it.
    pub gid: u32,
    /// The device number of a device node.
    pub rdev: u32,
    /// The target of a symbolic link.
    pub target: &'a [u8],
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// The unit of the numbers below.
    pub block_size_bytes: u32,
    /// Data blocks.
    pub total_blocks: u64,
    /// Blocks that can be written. Dead blocks in zones that also hold live ones are not among them.
    pub free_blocks: u64,
    /// Inodes there are.
    pub inodes: u64,
    /// Inodes there can still be, with names of middle length.
    pub free_inodes: u64,
}

/// How to mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountOptions {
    /// Write nothing at all, not even to get rid of a torn tail.
    pub read_only: bool,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Vec<u8>,
    /// What it names.
    pub ino: u64,
    /// The kind, as in `st_mode`.
    pub mode: u32,
}

/// A mounted file system.
pub struct Fs {
    device: Arc<dyn ZonedDevice>,
    clock: Arc<dyn Clock>,
    state: RwLock<State>,
    recovery: RecoveryReport,
}

impl Fs {
    /// Mounts what is on a device. The device must not be used by anybody else.
    ///
    /// # Errors
    /// [`Error::NoFileSystem`], [`Error::Corrupt`] with the place of the damage, or what the device said.
    pub fn mount(device: Arc<dyn ZonedDevice>, clock: Arc<dyn Clock>, options: MountOptions) -> Result<Fs> {
        let dev = &*device;
        // What is read now may not be durable yet (the last user was killed): nothing may build on it before.
        dev.flush()?;
        let loaded = recover::load(dev)?;
        let live = recover::live_blocks(dev, &loaded)?;
        let mut zones = Zones::new(&dev.geometry(), &loaded.zones, &loaded.superblock);
        for zone in &mut zones.zones {
            zone.live_blocks = live.get(&zone.id).copied().unwrap_or(0);
        }
        let must_roll = !loaded.can_append || loaded.highest_sequence != loaded.report.sequence;
        let mut state = State {
            tree: loaded.tree,
            orphans: BTreeMap::new(),
            files: BTreeMap::new(),
            zones,
            log: MetaLog {
                superblock: loaded.superblock,
                active: loaded.active,
                sequence: loaded.highest_sequence,
                next_index: loaded.next_index,
                end_bytes: loaded.end_bytes,
            },
            pending: Vec::new(),
            pending_bytes: 0,
            commit_at_bytes: PENDING_LIMIT_BYTES,
            read_only: options.read_only.then(|| "mounted read-only".to_owned()),
            half_changed: false,
        };
        for note in &loaded.report.notes {
            ::log::warn!("{}: {note}", dev.name());
        }
        if loaded.report.torn_bytes > 0 {
            let torn = loaded.report.torn_bytes;
            ::log::warn!("{}: {torn} bytes at the end of the log were cut off and are left out", dev.name());
        }
        if !options.read_only {
            state.zones.finish_surplus(dev);
            if must_roll {
                state.roll(dev)?;
            }
            state.zones.reset_dead(dev, false);
        }
        Ok(Fs { device, clock, state: RwLock::new(state), recovery: loaded.report })
    }

    /// What was noticed while mounting.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn ZonedDevice> {
        &self.device
    }

    fn shared(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a panic in the middle of a change the state is only good for looking at it.
    fn exclusive(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| {
            let mut state = poisoned.into_inner();
            state.distrust();
            state
        })
    }

    /// The inode a name names.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Stat> {
        let state = self.shared();
        let ino = state.tree.lookup(parent, name)?;
        stat(&state, ino)
    }

    /// An inode's attributes.
    pub fn getattr(&self, ino: u64) -> Result<Stat> {
        stat(&self.shared(), ino)
    }

    /// Changes an inode's attributes; a smaller size cuts a file off.
    pub fn setattr(&self, ino: u64, change: &SetAttr) -> Result<Stat> {
        let now = self.clock.now();
        let mut state = self.exclusive();
        state.writable()?;
        let mut attrs = state.inode(ino)?.attrs;
        if let Some(size) = change.size_bytes {
            state.truncate(&*self.device, ino, size, now)?;
            attrs = state.inode(ino)?.attrs;
        }
        let only_size = change.mode.is_none()
            && change.uid.is_none()
            && change.gid.is_none()
            && change.atime.is_none()
            && change.mtime.is_none();
        if !only_size {
            attrs.mode = change.mode.map_or(attrs.mode, |m| (attrs.mode & S_IFMT) | (m & !S_IFMT));
            attrs.uid = change.uid.unwrap_or(attrs.uid);
            attrs.gid = change.gid.unwrap_or(attrs.gid);
            attrs.atime = change.atime.unwrap_or(attrs.atime);
            attrs.mtime = change.mtime.unwrap_or(attrs.mtime);
            attrs.ctime = now;
            match state.orphans.get_mut(&ino) {
                Some(inode) => inode.attrs = attrs,
                None => state.apply(&*self.device, Entry::SetAttr { ino, attrs })?,
            }
        }
        stat(&state, ino)
    }

    /// A new inode under a new name.
    pub fn create(&self, parent: u64, name: &[u8], new: &NewInode<'_>) -> Result<Stat> {
        let now = self.clock.now();
        let mut state = self.exclusive();
        create(&mut state, &*self.device, parent, name, new, now)
    }

    /// A new file under a new name, opened in the same step.
    pub fn create_and_open(&self, parent: u64, name: &[u8], new: &NewInode<'_>) -> Result<Stat> {
        let now = self.clock.now();
        let mut state = self.exclusive();
        let made = create(&mut state, &*self.device, parent, name, new, now)?;
        state.open(made.ino)?;
        Ok(made)
    }

    /// One more name for a file.
    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Stat> {
        let time = self.clock.now();
        let mut state = self.exclusive();
        state.writable()?;
        check_name(name)?;
        state.metadata_can_grow(dirent_bytes(name))?;
        state.apply(&*self.device, Entry::Link { ino, parent, name: name.to_vec(), time })?;
        stat(&state, ino)
    }

    /// Takes a name away; with the last one the file goes, once nobody has it open.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let time = self.clock.now();
        let mut state = self.exclusive();
        state.writable()?;
        state.apply(&*self.device, Entry::Unlink { parent, name: name.to_vec(), time })
    }

    /// Takes an empty directory away.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        let time = self.clock.now();
        let mut state = self.exclusive();
        state.writable()?;
        state.apply(&*self.device, Entry::Rmdir { parent, name: name.to_vec(), time })
    }

    /// Moves a name, over whatever has the new one unless `keep_existing`. The replaced file's content is never
    /// lost to a crash before the new one's is durable.
    pub fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), keep_existing: bool) -> Result<()> {
        let time = self.clock.now();
        let mut state = self.exclusive();
        state.writable()?;
        let ino = state.tree.lookup(from.0, from.1)?;
        check_name(to.1)?;
        match state.tree.lookup(to.0, to.1) {
            Ok(_) if keep_existing => return Err(Error::Exists),
            Ok(other) if other == ino => return Ok(()),
            Ok(_) => state.persist_before_rename(&*self.device, ino)?,
            Err(Error::NotFound) => {
                state.metadata_can_grow(dirent_bytes(to.1).saturating_sub(dirent_bytes(from.1)))?;
            }
            Err(error) => return Err(error),
        }
        let (name, new_name) = (from.1.to_vec(), to.1.to_vec());
        state.apply(&*self.device, Entry::Rename { parent: from.0, name, new_parent: to.0, new_name, time })
    }

    /// A directory's entries, without `.` and `..`.
    pub fn readdir(&self, ino: u64) -> Result<Vec<DirEntry>> {
        let state = self.shared();
        let entry = |(name, ino): (&Vec<u8>, &u64)| {
            let mode = state.tree.get(*ino)?.attrs.mode & S_IFMT;
            Ok(DirEntry { name: name.clone(), ino: *ino, mode })
        };
        state.tree.entries(ino)?.iter().map(entry).collect()
    }

    /// What `..` of a directory is.
    pub fn parent(&self, ino: u64) -> Result<u64> {
        self.shared().tree.parent(ino)
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        match &self.shared().inode(ino)?.kind {
            Kind::Symlink(target) => Ok(target.clone()),
            _ => Err(Error::Invalid("not a symbolic link")),
        }
    }

    /// One more handle: until [`Fs::close`] the inode stays, even without a name.
    pub fn open(&self, ino: u64) -> Result<()> {
        self.exclusive().open(ino)
    }

    /// One handle less.
    pub fn close(&self, ino: u64) {
        self.exclusive().close(ino);
    }

    /// Reads; less at the end of the file.
    pub fn read(&self, ino: u64, offset_bytes: u64, length: usize) -> Result<Vec<u8>> {
        self.shared().read(&*self.device, ino, offset_bytes, length)
    }

    /// Writes at the end of a file; takes less than all when the space ends inside it.
    ///
    /// # Errors
    /// [`Error::NotAppend`] for any other offset.
    pub fn write(&self, ino: u64, offset_bytes: u64, data: &[u8]) -> Result<usize> {
        let now = self.clock.now();
        self.exclusive().write(&*self.device, ino, offset_bytes, data, now)
    }

    /// Makes a file, and every change of names so far, durable.
    pub fn fsync(&self, ino: u64) -> Result<()> {
        self.exclusive().fsync(&*self.device, ino)
    }

    /// Makes everything durable. Also the end of a mount: there is nothing else to do before dropping it.
    pub fn sync(&self) -> Result<()> {
        self.exclusive().sync(&*self.device)
    }

    /// How much space there is.
    pub fn statfs(&self) -> StatFs {
        let state = self.shared();
        let room = state.log.snapshot_limit().saturating_sub(state.tree.snapshot_bytes());
        StatFs {
            block_size_bytes: state.log.superblock.block_size_bytes,
            total_blocks: state.zones.total_blocks(),
            free_blocks: state.zones.available_after_commit().saturating_sub(state.zones.reserved_blocks),
            inodes: state.tree.inodes(),
            free_inodes: room / (INODE_METADATA_BYTES + 32),
        }
    }

    /// Why nothing can be changed, when that is so.
    pub fn read_only_reason(&self) -> Option<String> {
        if self.state.is_poisoned() {
            return self.exclusive().read_only.clone();
        }
        self.shared().read_only.clone()
    }
}

fn create(
    state: &mut State,
    device: &dyn ZonedDevice,
    parent: u64,
    name: &[u8],
    new: &NewInode<'_>,
    now: Time,
) -> Result<Stat> {
    state.writable()?;
    check_name(name)?;
    if new.target.len() > MAX_TARGET_BYTES {
        return Err(Error::NameTooLong);
    }
    let bytes = INODE_METADATA_BYTES + dirent_bytes(name) + new.target.len() as u64;
    if state.tree.lookup(parent, name).is_err() {
        state.metadata_can_grow(bytes)?;
    }
    let directory = state.tree.get(parent)?.attrs;
    let (mut mode, mut gid) = (new.mode, new.gid);
    if directory.mode & S_ISGID != 0 {
        gid = directory.gid;
        if mode & S_IFMT == S_IFDIR {
            mode |= S_ISGID;
        }
    }
    let ino = state.tree.next_ino();
    let entry = Entry::Create {
        parent,
        name: name.to_vec(),
        ino,
        attrs: Attrs { mode, uid: new.uid, gid, atime: now, mtime: now, ctime: now },
        rdev: new.rdev,
        target: new.target.to_vec(),
    };
    state.apply(device, entry)?;
    stat(state, ino)
}

fn stat(state: &State, ino: u64) -> Result<Stat> {
    let inode = state.inode(ino)?;
    let block = state.block_size();
    let (size_bytes, blocks, rdev) = match &inode.kind {
        Kind::File(map) => (state.size(ino)?, map.iter().map(|e| e.blocks(block)).sum::<u64>(), 0),
        Kind::Symlink(target) => (target.len() as u64, 0, 0),
        Kind::Special(rdev) => (0, 0, *rdev),
        Kind::Dir { .. } => (0, 0, 0),
    };
    Ok(Stat {
        ino,
        attrs: inode.attrs,
        nlink: inode.nlink,
        size_bytes,
        blocks_512: blocks * (block / 512),
        rdev,
    })
}
