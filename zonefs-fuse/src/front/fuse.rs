//! The adapter to the `fuser` crate, and the only module that follows its changes.
//!
//! Every request is answered: a panic in the file system becomes EIO. `syncfs(2)` and `sync(2)` do not reach a
//! FUSE server (the kernel passes them on to virtiofs only), and neither does the end of the mount before
//! `umount(2)` returns: only fsync makes a program wait until its data are durable.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use super::errno::errno;
use super::guarded;
use crate::Error;
use crate::engine::{DirEntry, Fs, NewInode, SetAttr, Stat};
use crate::model::{MAX_NAME_BYTES, Time};

/// How long the kernel may keep names and attributes. Only the kernel itself changes them, so this could be for
/// ever; a second keeps a mistake from lasting.
const TTL: Duration = Duration::from_secs(1);
/// The largest write request, what the kernel allows by default.
const MAX_WRITE_BYTES: u32 = 1 << 20;

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// The file system as `fuser` calls it.
pub(super) struct Front {
    fs: Arc<Fs>,
    /// Open directories: what they had when they were opened or rewound, so that `rm -r` misses nothing.
    dirs: Mutex<HashMap<u64, Arc<Vec<DirEntry>>>>,
    next_handle: AtomicU64,
}

impl Front {
    pub(super) fn new(fs: Arc<Fs>) -> Front {
        Front { fs, dirs: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    fn dirs(&self) -> MutexGuard<'_, HashMap<u64, Arc<Vec<DirEntry>>>> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call of the file system on behalf of a program; what goes wrong is on its way there, and logged.
    fn call<R>(&self, what: &'static str, call: impl FnOnce(&Fs) -> Result<R, Error>) -> Result<R, Errno> {
        guarded(what, || call(&self.fs)).map_err(|error| refuse(what, &error))
    }

    fn list(&self, what: &'static str, ino: INodeNo) -> Result<Arc<Vec<DirEntry>>, Errno> {
        let named = |name: &[u8], ino| DirEntry { name: name.to_vec(), ino, mode: S_IFDIR };
        self.call(what, |fs| {
            let mut entries = vec![named(b".", ino.0), named(b"..", fs.parent(ino.0)?)];
            entries.extend(fs.readdir(ino.0)?);
            Ok(Arc::new(entries))
        })
    }
}

fn kind(mode: u32) -> FileType {
    match mode & S_IFMT {
        S_IFDIR => FileType::Directory,
        S_IFLNK => FileType::Symlink,
        0o010_000 => FileType::NamedPipe,
        0o020_000 => FileType::CharDevice,
        0o060_000 => FileType::BlockDevice,
        0o140_000 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let base = if time.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let part = Duration::from_nanos(u64::from(time.nanoseconds));
    base.and_then(|base| base.checked_add(part)).unwrap_or(UNIX_EPOCH)
}

/// What the kernel sent as seconds and nanoseconds. Before 1970 `fuser` 0.18 subtracts both, though the
/// nanoseconds count forward; so they are taken apart again the same way.
fn time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        Err(before) => Time {
            seconds: i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
            nanoseconds: before.duration().subsec_nanos(),
        },
    }
}

fn time_or_now(given: Option<TimeOrNow>) -> Option<Time> {
    given.map(|given| match given {
        TimeOrNow::SpecificTime(at) => time(at),
        TimeOrNow::Now => time(SystemTime::now()),
    })
}

fn attr(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.ino),
        size: stat.size_bytes,
        blocks: stat.blocks_512,
        atime: system_time(stat.attrs.atime),
        mtime: system_time(stat.attrs.mtime),
        ctime: system_time(stat.attrs.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(stat.attrs.mode),
        perm: (stat.attrs.mode & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.attrs.uid,
        gid: stat.attrs.gid,
        rdev: stat.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// Whether this second has no line yet about what any program can cause at will: the log is not theirs to fill.
fn may_complain() -> bool {
    static LAST_SECOND: AtomicU64 = AtomicU64::new(0);
    let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    LAST_SECOND.swap(second, Ordering::Relaxed) != second
}

/// An error on its way to a program. What is the device's fault, or needs a word, is logged.
fn refuse(what: &str, error: &Error) -> Errno {
    match error {
        Error::NotAppend { .. } | Error::NoSpace(_) if may_complain() => log::warn!("{what}: {error}"),
        Error::Io { .. } | Error::Corrupt { .. } | Error::ZoneState { .. } | Error::Panicked(_) => {
            log::error!("{what}: {error}");
        }
        _ => log::debug!("{what}: {error}"),
    }
    errno(error)
}

fn entry(reply: ReplyEntry, result: Result<Stat, Errno>) {
    match result {
        Ok(stat) => reply.entry(&TTL, &attr(&stat), Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn done(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Front {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The answer names the nearest size that works.
        if let Err(nearest) = config.set_max_write(MAX_WRITE_BYTES) {
            let _ = config.set_max_write(nearest);
        }
        // O_TRUNC comes with the open; without this the kernel sends a second request for it.
        let _ = config.add_capabilities(fuser::InitFlags::FUSE_ATOMIC_O_TRUNC);
        let _ = config.add_capabilities(fuser::InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn destroy(&mut self) {
        if let Err(error) = guarded("the last sync", || self.fs.sync()) {
            log::error!("the last sync: {error}");
        }
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.call("lookup", |fs| fs.lookup(parent.0, name.as_bytes())));
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.call("getattr", |fs| fs.getattr(ino.0)) {
            Ok(stat) => reply.attr(&TTL, &attr(&stat)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (time_or_now(atime), time_or_now(mtime));
        let change = SetAttr { mode, uid, gid, size_bytes: size, atime, mtime };
        match self.call("setattr", |fs| fs.setattr(ino.0, &change)) {
            Ok(stat) => reply.attr(&TTL, &attr(&stat)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.call("readlink", |fs| fs.readlink(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let new = NewInode { mode: mode & !umask, uid: req.uid(), gid: req.gid(), rdev, target: b"" };
        entry(reply, self.call("mknod", |fs| fs.create(parent.0, name.as_bytes(), &new)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mode = S_IFDIR | (mode & 0o7777 & !umask);
        let new = NewInode { mode, uid: req.uid(), gid: req.gid(), rdev: 0, target: b"" };
        entry(reply, self.call("mkdir", |fs| fs.create(parent.0, name.as_bytes(), &new)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.call("unlink", |fs| fs.unlink(parent.0, name.as_bytes())));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.call("rmdir", |fs| fs.rmdir(parent.0, name.as_bytes())));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let new = NewInode { mode: S_IFLNK | 0o777, uid: req.uid(), gid: req.gid(), rdev: 0, target };
        entry(reply, self.call("symlink", |fs| fs.create(parent.0, link_name.as_bytes(), &new)));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let keep = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let (from, to) = ((parent.0, name.as_bytes()), (newparent.0, newname.as_bytes()));
        done(reply, self.call("rename", |fs| fs.rename(from, to, keep)));
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        entry(reply, self.call("link", |fs| fs.link(ino.0, newparent.0, newname.as_bytes())));
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let result = self.call("open", |fs| {
            fs.open(ino.0)?;
            if flags.0 & libc::O_TRUNC != 0 {
                let change = SetAttr { size_bytes: Some(0), ..SetAttr::default() };
                fs.setattr(ino.0, &change).inspect_err(|_| fs.close(ino.0))?;
            }
            Ok(())
        });
        match result {
            // Nobody but the kernel changes a file, so its cache stays good from one open to the next; O_TRUNC
            // is not the kernel's own doing, so after it the cache goes.
            Ok(()) if flags.0 & libc::O_TRUNC == 0 => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.call("read", |fs| fs.read(ino.0, offset, size as usize)) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.call("write", |fs| fs.write(ino.0, offset, data)) {
            Ok(taken) => reply.written(u32::try_from(taken).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Closing a file promises nothing; fsync does.
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let closed = self.call("release", |fs| {
            fs.close(ino.0);
            Ok(())
        });
        done(reply, closed);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        done(reply, self.call("fsync", |fs| fs.fsync(ino.0)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.list("opendir", ino) {
            Ok(entries) => {
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                self.dirs().insert(handle, entries);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let fresh = if offset == 0 { self.list("readdir", ino).ok() } else { None };
        let entries = match fresh {
            Some(entries) => {
                self.dirs().insert(fh.0, entries.clone());
                entries
            }
            None => self.dirs().get(&fh.0).cloned().unwrap_or_default(),
        };
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, found) in entries.iter().enumerate().skip(first) {
            let name = OsStr::from_bytes(&found.name);
            if reply.add(INodeNo(found.ino), index as u64 + 1, kind(found.mode), name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.dirs().remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        done(reply, self.call("fsyncdir", |fs| fs.fsync(ino.0)));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let s = match self.call("statfs", |fs| Ok(fs.statfs())) {
            Ok(s) => s,
            Err(errno) => return reply.error(errno),
        };
        let files = s.inodes + s.free_inodes;
        let (block, name) = (s.block_size_bytes, MAX_NAME_BYTES as u32);
        reply.statfs(s.total_blocks, s.free_blocks, s.free_blocks, files, s.free_inodes, block, name, block);
    }

    // ENOSYS tells the kernel not to ask again, which saves a request before every write.
    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mode = S_IFREG | (mode & 0o7777 & !umask);
        let new = NewInode { mode, uid: req.uid(), gid: req.gid(), rdev: 0, target: b"" };
        match self.call("create", |fs| fs.create_and_open(parent.0, name.as_bytes(), &new)) {
            Ok(stat) => {
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&TTL, &attr(&stat), Generation(0), FileHandle(0), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        // There are no holes: the kernel's own answer is right.
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
