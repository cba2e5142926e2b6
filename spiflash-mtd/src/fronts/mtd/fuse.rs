//! The adapter to the `fuser` crate: a directory with the MTDs and their control files.
//!
//! The invariant: every request is answered, a panic in the model with EIO. Files are opened with DIRECT_IO: each read and
//! write of a program is one request, with nothing of the kernel's cache between.

use super::control::{ChipControl, ControlFile, PowerCommand, parse_duration_ns, parse_power, parse_switch};
use super::device::MtdDevice;
use super::ioctl::{self, FileMode};
use crate::fronts::lock;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Names and attributes change only with the power (`otp` apart, never): a second is short enough.
const TTL: Duration = Duration::from_secs(1);
/// Inodes of an MTD begin at a multiple of this: the file, its directory, the control files.
const STRIDE: u64 = 16;
const ROOT: u64 = 1;

/// One MTD of a mount.
pub struct MtdEntry {
    /// The MTD; its name is its file's.
    pub device: Arc<MtdDevice>,
    /// The chip's owner.
    pub control: Arc<Mutex<dyn ChipControl + Send>>,
    /// The part file's text.
    pub part_text: String,
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Root,
    Mtd(usize),
    Directory(usize),
    Control(usize, ControlFile),
}

impl Node {
    fn ino(self) -> u64 {
        let base = |index: usize| (index as u64 + 1) * STRIDE;
        match self {
            Node::Root => ROOT,
            Node::Mtd(index) => base(index),
            Node::Directory(index) => base(index) + 1,
            Node::Control(index, file) => {
                base(index) + 2 + ControlFile::ALL.iter().position(|one| *one == file).unwrap_or(0) as u64
            }
        }
    }

    fn kind(self) -> FileType {
        match self {
            Node::Root | Node::Directory(_) => FileType::Directory,
            Node::Mtd(_) | Node::Control(..) => FileType::RegularFile,
        }
    }
}

/// An open file.
struct Open {
    mode: FileMode,
    writable: bool,
    /// A control file's text, as it was when it was opened.
    text: Vec<u8>,
}

/// The file system as `fuser` calls it.
pub(super) struct Front {
    entries: Vec<MtdEntry>,
    open: Mutex<(u64, HashMap<u64, Open>)>,
    owner: (u32, u32),
}

impl Front {
    pub(super) fn new(entries: Vec<MtdEntry>) -> Front {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Front { entries, open: Mutex::default(), owner }
    }

    fn open_files(&self) -> MutexGuard<'_, (u64, HashMap<u64, Open>)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, ino: INodeNo) -> Result<Node, Errno> {
        if ino.0 == ROOT {
            return Ok(Node::Root);
        }
        let index = (ino.0 / STRIDE).checked_sub(1).and_then(|index| usize::try_from(index).ok());
        let index = index.filter(|index| *index < self.entries.len()).ok_or(Errno::ENOENT)?;
        Ok(match ino.0 % STRIDE {
            0 => Node::Mtd(index),
            1 => Node::Directory(index),
            n => {
                let file = ControlFile::ALL.get(n as usize - 2).ok_or(Errno::ENOENT)?;
                Node::Control(index, *file)
            }
        })
    }

    fn entry(&self, index: usize) -> Result<&MtdEntry, Errno> {
        self.entries.get(index).ok_or(Errno::ENOENT)
    }

    fn children(&self, node: Node) -> Result<Vec<(String, Node)>, Errno> {
        match node {
            Node::Root => {
                let named = |(index, entry): (usize, &MtdEntry)| {
                    let name = entry.device.name();
                    [(name.to_owned(), Node::Mtd(index)), (format!("{name}.d"), Node::Directory(index))]
                };
                Ok(self.entries.iter().enumerate().flat_map(named).collect())
            }
            Node::Directory(index) => {
                let files = ControlFile::ALL.iter();
                Ok(files.map(|file| (file.name().to_owned(), Node::Control(index, *file))).collect())
            }
            Node::Mtd(_) | Node::Control(..) => Err(Errno::ENOTDIR),
        }
    }

    fn attr(&self, node: Node) -> Result<FileAttr, Errno> {
        let (size, perm) = match node {
            Node::Root | Node::Directory(_) => (0, 0o755),
            Node::Mtd(index) => (self.entry(index)?.device.size_bytes(), 0o660),
            Node::Control(index, ControlFile::Otp) => (self.entry(index)?.device.otp_bytes(), 0o660),
            // Read to their end, which is found by reading.
            Node::Control(_, file) => (0, if file.is_writable() { 0o660 } else { 0o440 }),
        };
        let directory = node.kind() == FileType::Directory;
        Ok(FileAttr {
            ino: INodeNo(node.ino()),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: node.kind(),
            perm,
            nlink: if directory { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn control_text(&self, index: usize, file: ControlFile) -> Result<Vec<u8>, Errno> {
        let entry = self.entry(index)?;
        let select = entry.device.select();
        let control = || entry.control.lock().unwrap_or_else(PoisonError::into_inner);
        let switch = |on: bool| format!("{}\n", u8::from(on)).into_bytes();
        Ok(match file {
            ControlFile::Stats => {
                let chip = control().stats(select);
                let all = serde_json::json!({
                    "name": entry.device.name(), "part": entry.device.part().name,
                    "mtd": entry.device.stats(), "chip": chip,
                });
                let mut text = serde_json::to_vec_pretty(&all).map_err(|_| Errno::EIO)?;
                text.push(b'\n');
                text
            }
            ControlFile::Part => entry.part_text.clone().into_bytes(),
            ControlFile::Time => format!("{}\n", lock(entry.device.bus()).now_ns()).into_bytes(),
            ControlFile::WriteProtect => switch(control().is_write_protected(select)),
            ControlFile::Power => switch(control().is_powered(select)),
            ControlFile::Map => control().map(select).into_bytes(),
            ControlFile::Otp => Vec::new(),
        })
    }

    fn write_control(&self, index: usize, file: ControlFile, data: &[u8]) -> Result<(), Errno> {
        let entry = self.entry(index)?;
        let (name, select) = (entry.device.name(), entry.device.select());
        let refuse = |error: &dyn std::fmt::Display| {
            log::warn!("{name}.d: {error}");
            Errno::EINVAL
        };
        let bus_error = |error: crate::bus::BusError| {
            log::error!("{name}.d: {error}");
            Errno::EIO
        };
        let text = std::str::from_utf8(data).map_err(|error| refuse(&error))?;
        match file {
            ControlFile::Time => {
                let delay_ns = parse_duration_ns(text).map_err(|error| refuse(&error))?;
                lock(entry.device.bus()).delay_ns(delay_ns);
            }
            ControlFile::WriteProtect => {
                let low = parse_switch("wp", text).map_err(|error| refuse(&error))?;
                lock(entry.device.bus()).set_write_protect(select, low).map_err(bus_error)?;
            }
            ControlFile::Power => match parse_power(text).map_err(|error| refuse(&error))? {
                PowerCommand::Set(on) => {
                    lock(entry.device.bus()).set_power(select, on).map_err(bus_error)?;
                    if on {
                        entry.device.restart().map_err(|error| {
                            log::error!("{name}: {error}");
                            Errno::EIO
                        })?;
                    }
                }
                PowerCommand::CutAfter(delay_ns) => {
                    let mut control = entry.control.lock().unwrap_or_else(PoisonError::into_inner);
                    control.cut_after(select, Some(delay_ns)).map_err(bus_error)?;
                }
            },
            _ => return Err(Errno::EACCES),
        }
        Ok(())
    }

    fn do_open(&self, ino: INodeNo, flags: OpenFlags) -> Result<u64, Errno> {
        let node = self.node(ino)?;
        let writable = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        let (mode, text) = match node {
            Node::Mtd(_) => (FileMode::Normal, Vec::new()),
            Node::Control(_, ControlFile::Otp) => (FileMode::OtpUser, Vec::new()),
            Node::Control(_, file) if writable && !file.is_writable() => return Err(Errno::EACCES),
            Node::Control(index, file) => (FileMode::Normal, self.control_text(index, file)?),
            Node::Root | Node::Directory(_) => return Err(Errno::EISDIR),
        };
        let (next, files) = &mut *self.open_files();
        *next += 1;
        files.insert(*next, Open { mode, writable, text });
        Ok(*next)
    }

    fn do_read(&self, ino: INodeNo, fh: FileHandle, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let (mode, index) = match self.node(ino)? {
            Node::Mtd(index) => (FileMode::Normal, index),
            Node::Control(index, ControlFile::Otp) => (FileMode::OtpUser, index),
            _ => {
                let files = self.open_files();
                let text = files.1.get(&fh.0).map_or(&[][..], |open| &open.text);
                let rest =
                    usize::try_from(offset).ok().and_then(|offset| text.get(offset..)).unwrap_or_default();
                return Ok(rest.get(..size as usize).unwrap_or(rest).to_vec());
            }
        };
        let device = &self.entry(index)?.device;
        let room = device.bytes_of(mode).saturating_sub(offset).min(u64::from(size));
        let mut data = vec![0; room as usize];
        let read = device.read(mode, offset, &mut data).map_err(errno)?;
        data.truncate(read);
        Ok(data)
    }

    fn do_write(&self, ino: INodeNo, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let (mode, index) = match self.node(ino)? {
            Node::Mtd(index) => (FileMode::Normal, index),
            Node::Control(index, ControlFile::Otp) => (FileMode::OtpUser, index),
            Node::Control(index, file) => {
                return self.write_control(index, file, data).map(|()| data.len());
            }
            Node::Root | Node::Directory(_) => return Err(Errno::EISDIR),
        };
        self.entry(index)?.device.write(mode, offset, data).map_err(errno)
    }

    fn do_ioctl(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        number: u32,
        input: &[u8],
        out_size: u32,
    ) -> Result<(i32, Vec<u8>), Errno> {
        let Node::Mtd(index) = self.node(ino)? else { return Err(Errno::ENOTTY) };
        let shape = ioctl::shape(number).ok_or(Errno::ENOTTY)?;
        // The kernel copies by the number's direction bits. What it has lost cannot be made up, but for MEMISLOCKED, whose
        // answer may be the same for every range.
        let blind = shape.name == "MEMISLOCKED";
        if !ioctl::whole_by_number(number) && !blind {
            return Err(Errno::EOPNOTSUPP);
        }
        let (mut mode, writable) = match self.open_files().1.get(&fh.0) {
            Some(open) => (open.mode, open.writable),
            None => return Err(Errno::EBADF),
        };
        let device = &self.entry(index)?.device;
        let answer = device.ioctl(&mut mode, writable, number, None, input).map_err(errno)?;
        if let Some(open) = self.open_files().1.get_mut(&fh.0) {
            open.mode = mode;
        }
        let mut bytes = answer.bytes;
        bytes.truncate(out_size as usize);
        Ok((answer.result, bytes))
    }
}

fn errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_i32(errno as i32)
}

/// Does something; a panic in it is EIO, not the end of the thread.
fn guarded<R>(what: &'static str, call: impl FnOnce() -> Result<R, Errno>) -> Result<R, Errno> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        log::error!("{what}: a panic; this is a fault in the program");
        Err(Errno::EIO)
    })
}

impl Filesystem for Front {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = guarded("lookup", || {
            let children = self.children(self.node(parent)?)?;
            let child = children.iter().find(|(known, _)| name == OsStr::new(known)).ok_or(Errno::ENOENT)?;
            self.attr(child.1)
        });
        match found {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match guarded("getattr", || self.attr(self.node(ino)?)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // As on a device: a shell's `>` truncates nothing, and there are no times to set.
        match guarded("setattr", || self.attr(self.node(ino)?)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match guarded("open", || self.do_open(ino, flags)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match guarded("read", || self.do_read(ino, fh, offset, size)) {
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
        match guarded("write", || self.do_write(ino, offset, data)) {
            Ok(taken) => reply.written(u32::try_from(taken).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.open_files().1.remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // A write is in the chip when it returns.
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = guarded("readdir", || {
            let node = self.node(ino)?;
            let mut all = vec![(".".to_owned(), node), ("..".to_owned(), Node::Root)];
            all.extend(self.children(node)?);
            Ok(all)
        });
        let all = match listed {
            Ok(all) => all,
            Err(errno) => return reply.error(errno),
        };
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (name, node)) in all.iter().enumerate().skip(first) {
            if reply.add(INodeNo(node.ino()), index as u64 + 1, node.kind(), name) {
                break;
            }
        }
        reply.ok();
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        match guarded("ioctl", || self.do_ioctl(ino, fh, cmd, in_data, out_size)) {
            Ok((result, bytes)) => reply.ioctl(result, &bytes),
            Err(errno) => reply.error(errno),
        }
    }

    // ENOSYS tells the kernel not to ask again.
    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
