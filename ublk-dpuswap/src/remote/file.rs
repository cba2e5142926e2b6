//! The last resort: a file or a block device of this machine, for when no other node has room.
//!
//! Block `i` is the `i`-th MiB; the first begins with the client's [signature](super::claim), which holds for one boot of the
//! machine: after a restart nothing is found, for the page table that named the content is gone too. A lock keeps a second
//! process out. A block's room in the file system is taken when it is lent and given back when it is released, so that a full
//! file system shows where blocks are reserved and not where pages are written.
//!
//! Invariant: nothing is written to a file that holds other data, unless its name says `take=yes`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::claim::{ClaimError, Extents, LOOKED_AT_BYTES, SIGNATURE_BYTES, Signature, new_epoch};
use super::nbd::url::MAX_NODE_NAME_BYTES;
use super::nbd::wire::MAX_BLOCKS;
use super::{Lane, LinkStart, RemoteError, RemoteNode, Reserved};
use crate::error::Error;
use crate::links::nbd::position;
use crate::proto::{Info, Opcode, Status};
use crate::units::{BLOCK_BYTES, RemoteBlock};

/// How often the lock is tried: the kernel may still be closing the files of a process that was killed.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A local file or block device.
pub struct FileNode {
    name: String,
    path: PathBuf,
    size_bytes: Option<u64>,
    take: bool,
    client_id: u64,
    boot: [u8; 16],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    extents: Extents,
}

struct Open {
    file: File,
    signature: Signature,
    /// A regular file on a file system that can set room aside.
    allocates: bool,
    /// A regular file.
    regular: bool,
}

impl FileNode {
    /// The file that `name` says: `file:PATH`, with `?size=SIZE` unless it is there and has its size, and `take=yes` when
    /// it may be overwritten. Opens nothing.
    ///
    /// # Errors
    /// Says what is wrong with the name.
    pub fn new(name: &str, client_id: u64) -> Result<Self, Error> {
        let bad = |what: &str| {
            Error::Option(format!(
                "node {name}: {what}; it looks like file:PATH?size=SIZE, with at least 2 MiB"
            ))
        };
        if name.len() > MAX_NODE_NAME_BYTES {
            return Err(bad(&format!("longer than {MAX_NODE_NAME_BYTES} bytes")));
        }
        let rest = name.strip_prefix("file:").ok_or_else(|| bad("no file"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.is_empty() || path.contains('\0') {
            return Err(bad("no path"));
        }
        let (mut size_bytes, mut take) = (None, false);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("take", "yes")) => take = true,
                Some(("take", "no")) => take = false,
                Some(("size", size)) => {
                    let size: ByteSize = size.parse().map_err(|_| bad(&format!("{size} is no size")))?;
                    size_bytes = Some(size.as_u64());
                }
                _ => return Err(bad(&format!("unknown parameter {part}"))),
            }
        }
        if size_bytes.is_some_and(|size| size < 2 * BLOCK_BYTES as u64 || size > i64::MAX as u64) {
            return Err(bad("a size that cannot be"));
        }
        Ok(Self {
            name: name.to_owned(),
            path: path.into(),
            size_bytes,
            take,
            client_id,
            boot: boot_id(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<(Open, bool), RemoteError> {
        let (file, regular) = self.open_file()?;
        lock(&file)?;
        let now = (&file).seek(SeekFrom::End(0)).map_err(|error| RemoteError::Local("size", error))?;
        let size_bytes = match (self.size_bytes, regular) {
            (Some(size), true) => size,
            (Some(size), false) if size > now => {
                return Err(invalid("the device is smaller than the size in its name"));
            }
            (Some(size), false) => size,
            (None, _) => now,
        };
        if size_bytes < 2 * BLOCK_BYTES as u64 {
            return Err(invalid("it has less than 2 MiB; say size=SIZE in its name"));
        }
        let mut mine = Signature { client_id: self.client_id, epoch: 0, size_bytes, boot: self.boot };
        let mut first = vec![0; LOOKED_AT_BYTES.min(now as usize)];
        file.read_exact_at(&mut first, 0).map_err(|error| RemoteError::Io(Opcode::Read, error))?;
        // The lock shows that the owner of another signature is gone: a crash must not need a hand.
        let abandoned = Signature::decode(&first).is_some();
        let found = mine.look(&first, self.take || abandoned)?;
        mine.epoch = match found {
            Some(epoch) => epoch,
            None => new_epoch()?,
        };
        if regular && now < size_bytes {
            file.set_len(size_bytes).map_err(|error| RemoteError::Local("grow the file", error))?;
        }
        if found.is_none() {
            let written = file.write_all_at(&mine.encode(), 0);
            written.map_err(|error| RemoteError::Io(Opcode::Write, error))?;
        }
        Ok((Open { file, signature: mine, allocates: regular, regular }, found.is_some()))
    }

    /// The file, and whether it is a regular one.
    fn open_file(&self) -> Result<(File, bool), RemoteError> {
        let failed = |error| RemoteError::Local("open", error);
        // Not made where something else stands: opening a FIFO or a tape drive can have effects.
        match std::fs::metadata(&self.path) {
            Ok(there) if !there.is_file() && !there.file_type().is_block_device() => {
                return Err(invalid("it is neither a regular file nor a block device"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound && self.size_bytes.is_some() => {}
            Err(error) => return Err(failed(error)),
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(self.size_bytes.is_some()).truncate(false).mode(0o600);
        let file = options.open(&self.path).map_err(failed)?;
        let regular = file.metadata().map_err(failed)?.is_file();
        Ok((file, regular))
    }

    /// Does something with the open file.
    fn with<T>(
        &self,
        work: impl FnOnce(&mut Open, &mut Extents) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let mut state = self.state();
        let State { open, extents } = &mut *state;
        work(open.as_mut().ok_or(RemoteError::NotConnected)?, extents)
    }

    fn place(
        extents: &Extents,
        opcode: Opcode,
        block: RemoteBlock,
        offset: u32,
        len: usize,
    ) -> Result<u64, RemoteError> {
        if len == 0 || offset as usize > BLOCK_BYTES || len > BLOCK_BYTES - offset as usize {
            return Err(RemoteError::Refused(opcode, Status::BadRequest));
        }
        match extents.is_held(block.number) {
            true => Ok(position(block, offset)),
            false => Err(RemoteError::Refused(opcode, Status::NotYours)),
        }
    }
}

fn invalid(what: &'static str) -> RemoteError {
    RemoteError::Local("not usable", io::Error::new(ErrorKind::InvalidInput, what))
}

fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes()
}

fn lock(file: &File) -> Result<(), RemoteError> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(RemoteError::Local("lock", error)),
        }
    }
    let held = io::Error::new(ErrorKind::ResourceBusy, "another process uses it");
    Err(RemoteError::Local("lock", held))
}

impl Open {
    fn still(&self) -> Result<(), RemoteError> {
        let mut bytes = [0; SIGNATURE_BYTES];
        self.file.read_exact_at(&mut bytes, 0).map_err(|error| RemoteError::from_io(Opcode::Read, error))?;
        match Signature::decode(&bytes) == Some(self.signature) {
            true => Ok(()),
            false => Err(ClaimError::Lost.into()),
        }
    }

    /// Takes room for a block. False when there is none.
    fn allocate(&mut self, number: u32) -> Result<bool, RemoteError> {
        if !self.allocates {
            return Ok(true);
        }
        let at = position(RemoteBlock::numbered(number), 0) as libc::off_t;
        match fallocate(&self.file, FallocateFlags::empty(), at, BLOCK_BYTES as libc::off_t) {
            Ok(()) => Ok(true),
            Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => Ok(false),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                self.allocates = false;
                Ok(true)
            }
            Err(error) => Err(RemoteError::Io(Opcode::Reserve, error.into())),
        }
    }

    /// Gives room back. Where that cannot be done the room is used again, and no more.
    fn punch(&self, number: u32, blocks: u32) {
        let at = position(RemoteBlock::numbered(number), 0) as libc::off_t;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let _ = fallocate(&self.file, flags, at, libc::off_t::from(blocks) * BLOCK_BYTES as libc::off_t);
    }

    /// Blocks that the file system still has room for.
    fn room_blocks(&self) -> u32 {
        if !self.regular {
            return u32::MAX;
        }
        let room = nix::sys::statvfs::fstatvfs(&self.file)
            .map(|fs| fs.blocks_available() * fs.fragment_size() / BLOCK_BYTES as u64);
        room.map_or(u32::MAX, |room| u32::try_from(room).unwrap_or(u32::MAX))
    }

    fn info(&self, extents: &mut Extents) -> Info {
        Info {
            epoch: self.signature.epoch,
            lease: 1,
            capacity_blocks: extents.capacity(),
            free_blocks: extents.free_blocks(Instant::now()).min(self.room_blocks()),
            held_blocks: extents.held_blocks(),
            ..Info::default()
        }
    }
}

impl RemoteNode for FileNode {
    fn name(&self) -> &str {
        &self.name
    }

    fn connect(&self) -> Result<Info, RemoteError> {
        let mut state = self.state();
        let State { open, extents } = &mut *state;
        if let Some(there) = open {
            // Kept open: the queues' links share its lock.
            match there.still() {
                Ok(()) => return Ok(there.info(extents)),
                Err(error) => {
                    *open = None;
                    return Err(error);
                }
            }
        }
        let (new, found) = self.open()?;
        let blocks = (new.signature.size_bytes / BLOCK_BYTES as u64).min(u64::from(MAX_BLOCKS)) as u32;
        extents.reset(blocks - 1, found);
        Ok(open.insert(new).info(extents))
    }

    fn disconnect(&self) {
        let mut state = self.state();
        let Some(open) = state.open.take() else { return };
        let mut from = 0;
        while let Some(first) = state.extents.next_held(from) {
            let mut end = first + 1;
            while state.extents.is_held(end) {
                end += 1;
            }
            open.punch(first, end - first);
            from = end;
        }
        if let Err(error) = open.file.write_all_at(&[0; SIGNATURE_BYTES], 0) {
            log::warn!("node {}: its signature stays: {error}", self.name);
        }
        state.extents.reset(0, false);
    }

    fn reserve(&self, _: Lane, blocks: &mut [RemoteBlock]) -> Result<Reserved, RemoteError> {
        self.with(|open, extents| {
            let now = Instant::now();
            let mut reserved = extents.reserve(blocks, now);
            for at in 0..reserved.granted {
                let room = open.allocate(blocks[at].number);
                if matches!(room, Ok(true)) {
                    continue;
                }
                for block in &blocks[at..reserved.granted] {
                    extents.release(block.number, now);
                }
                room?;
                reserved = Reserved { granted: at, free_blocks: 0 };
                break;
            }
            Ok(reserved)
        })
    }

    fn release(&self, _: Lane, blocks: &[RemoteBlock]) -> Result<u32, RemoteError> {
        self.with(|open, extents| {
            for block in blocks {
                Self::place(extents, Opcode::Release, *block, 0, BLOCK_BYTES)?;
                open.punch(block.number, 1);
                extents.release(block.number, Instant::now());
            }
            Ok(extents.free_blocks(Instant::now()).min(open.room_blocks()))
        })
    }

    fn start_write(
        &self,
        _: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
    ) -> Result<u64, RemoteError> {
        self.with(|open, extents| {
            let at = Self::place(extents, Opcode::Write, block, offset_bytes, data.len())?;
            let written = open.file.write_all_at(data, at);
            written.map(|()| 0).map_err(|error| RemoteError::Io(Opcode::Write, error))
        })
    }

    fn finish_write(&self, _: Lane, _: u64) -> Result<(), RemoteError> {
        // A write to a file is over when it returns.
        self.with(|_, _| Ok(()))
    }

    fn read_at(
        &self,
        _: Lane,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &mut [u8],
    ) -> Result<(), RemoteError> {
        self.with(|open, extents| {
            let at = Self::place(extents, Opcode::Read, block, offset_bytes, data.len())?;
            open.file.read_exact_at(data, at).map_err(|error| RemoteError::from_io(Opcode::Read, error))
        })
    }

    fn stat(&self, _: Lane) -> Result<Info, RemoteError> {
        self.with(|open, extents| open.still().map(|()| open.info(extents)))
    }

    fn held(&self, _: Lane, found: &mut dyn FnMut(RemoteBlock)) -> Result<(), RemoteError> {
        let mut from = 0;
        loop {
            let next = self.with(|_, extents| Ok(extents.next_held(from)))?;
            let Some(number) = next else { return Ok(()) };
            found(RemoteBlock::numbered(number));
            from = number + 1;
        }
    }

    fn open_link(&self, _: u16) -> Result<LinkStart, RemoteError> {
        self.with(|open, _| {
            open.file.try_clone().map(|file| LinkStart::File(file.into())).map_err(RemoteError::Connect)
        })
    }

    fn is_last_resort(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn node(path: &std::path::Path, query: &str, client: u64) -> FileNode {
        FileNode::new(&format!("file:{}{query}", path.display()), client).unwrap()
    }

    #[test]
    fn blocks_take_room_when_lent_and_give_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let node = node(&path, "?size=8MiB", 1);
        assert_eq!(node.connect().unwrap().free_blocks, 7);
        let mut blocks = [RemoteBlock::default(); 9];
        assert_eq!(node.reserve(Lane::WRITER, &mut blocks).unwrap(), Reserved { granted: 7, free_blocks: 0 });
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8 << 20);
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 >= 7 << 20);
        for (n, block) in blocks[..7].iter().enumerate() {
            node.write_at(Lane::WRITER, *block, 64, &[n as u8 + 1; 1000]).unwrap();
        }
        let mut back = [0; 1000];
        node.read_at(Lane::COPIER, blocks[3], 64, &mut back).unwrap();
        assert_eq!(back, [4; 1000]);
        assert_eq!(node.release(Lane::CONTROL, &blocks[..6]).unwrap(), 6);
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 3 << 20);
        let gone = node.read_at(Lane::COPIER, blocks[3], 64, &mut back);
        assert!(matches!(gone, Err(RemoteError::Refused(Opcode::Read, Status::NotYours))), "{gone:?}");
        let outside = node.write_at(Lane::WRITER, blocks[6], 1 << 20, &[1]);
        assert!(
            matches!(outside, Err(RemoteError::Refused(Opcode::Write, Status::BadRequest))),
            "{outside:?}"
        );
        let LinkStart::File(link) = node.open_link(0).unwrap() else { panic!("a file") };
        let seen = File::from(link);
        seen.read_exact_at(&mut back, position(blocks[6], 64)).unwrap();
        assert_eq!(back, [7; 1000]);
        node.disconnect();
        assert!(matches!(node.stat(Lane::CONTROL), Err(RemoteError::NotConnected)));
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_recovered_client_finds_its_blocks_and_another_or_a_later_boot_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let epoch = {
            let first = node(&path, "?size=4MiB", 1);
            let info = first.connect().unwrap();
            let mut blocks = [RemoteBlock::default()];
            first.reserve(Lane::WRITER, &mut blocks).unwrap();
            first.write_at(Lane::WRITER, blocks[0], 0, b"still there").unwrap();
            info.epoch
        };
        let recovered = node(&path, "?size=4MiB", 1);
        assert_eq!(recovered.connect().unwrap().epoch, epoch);
        let mut held = Vec::new();
        recovered.held(Lane::CONTROL, &mut |block| held.push(block.number)).unwrap();
        assert_eq!(held, [1, 2, 3], "its own table says which are in use");
        let mut back = [0; 11];
        recovered.read_at(Lane::WRITER, RemoteBlock::numbered(1), 0, &mut back).unwrap();
        assert_eq!(&back, b"still there");
        drop(recovered);
        let rebooted = FileNode { boot: [9; 16], ..node(&path, "?size=4MiB", 1) };
        let info = rebooted.connect().unwrap();
        assert!(info.epoch != epoch && info.held_blocks == 0, "{info:?}");
        drop(rebooted);
        // The lock is free, so the client that signed is gone.
        let other = node(&path, "?size=4MiB", 2).connect().unwrap();
        assert!(other.epoch != info.epoch && other.held_blocks == 0);
    }

    #[test]
    fn a_file_that_is_in_use_or_holds_other_data_or_cannot_be_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let first = node(&path, "?size=4MiB", 1);
        first.connect().unwrap();
        let second = node(&path, "?size=4MiB", 2).connect().unwrap_err().to_string();
        assert!(second.contains("another process uses it"), "{second}");
        let letter = dir.path().join("letter");
        std::fs::write(&letter, "dear reader").unwrap();
        let refused = node(&letter, "?size=4MiB", 1).connect().unwrap_err().to_string();
        assert!(refused.contains("holds other data"), "{refused}");
        assert_eq!(std::fs::read(&letter).unwrap(), b"dear reader");
        assert!(node(&letter, "?size=4MiB&take=yes", 1).connect().is_ok());
        let refused = node(dir.path(), "?size=4MiB", 1).connect().unwrap_err().to_string();
        assert!(refused.contains("neither a regular file nor a block device"), "{refused}");
        let refused = node(&dir.path().join("none"), "", 1).connect().unwrap_err().to_string();
        assert!(refused.contains("No such file"), "{refused}");
        let refused = node(&dir.path().join("no/where"), "?size=4MiB", 1).connect().unwrap_err().to_string();
        assert!(refused.contains("No such file"), "{refused}");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        let refused = node(&empty, "", 1).connect().unwrap_err().to_string();
        assert!(refused.contains("less than 2 MiB"), "{refused}");
    }

    #[test]
    fn a_signature_that_vanishes_is_noticed_by_the_heartbeat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let node = node(&path, "?size=4MiB", 1);
        let epoch = node.connect().unwrap().epoch;
        assert_eq!(node.stat(Lane::CONTROL).unwrap().epoch, epoch);
        File::options().write(true).open(&path).unwrap().write_all_at(&[0; 4096], 0).unwrap();
        assert!(matches!(node.stat(Lane::CONTROL), Err(RemoteError::Claim(ClaimError::Lost))));
        assert!(matches!(node.connect(), Err(RemoteError::Claim(ClaimError::Lost))));
        assert_ne!(node.connect().unwrap().epoch, epoch);
    }

    #[test]
    fn a_full_file_system_shows_where_blocks_are_reserved() {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        // The mounts of a thread of its own go with it.
        let test = move || {
            let none: Option<&str> = None;
            let private = unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
                .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
                .and_then(|()| mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=5m")));
            if let Err(error) = private {
                println!("skipped: cannot mount a small file system: {error}");
                return;
            }
            let node = node(&path.join("swap"), "?size=64MiB", 1);
            let info = node.connect().unwrap();
            assert!(info.capacity_blocks == 63 && info.free_blocks == 4, "{info:?}");
            let mut blocks = [RemoteBlock::default(); 9];
            let reserved = node.reserve(Lane::CONTROL, &mut blocks).unwrap();
            assert_eq!(reserved, Reserved { granted: 4, free_blocks: 0 });
            for block in &blocks[..4] {
                node.write_at(Lane::WRITER, *block, 0, &[1; BLOCK_BYTES]).unwrap();
            }
            assert_eq!(node.reserve(Lane::CONTROL, &mut blocks[4..]).unwrap().granted, 0);
            assert_eq!(node.release(Lane::CONTROL, &blocks[..2]).unwrap(), 2);
            assert_eq!(node.reserve(Lane::CONTROL, &mut blocks).unwrap().granted, 2);
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_name_is_said() {
        for (name, what) in [
            ("swap", "no file"),
            ("file:", "no path"),
            ("file:/x?size=lots", "lots is no size"),
            ("file:/x?size=1MiB", "a size that cannot be"),
            ("file:/x?size=18446744073709551615", "a size that cannot be"),
            ("file:/x?colour=blue", "unknown parameter colour=blue"),
        ] {
            let error = FileNode::new(name, 1).err().unwrap().to_string();
            assert!(error.contains(what) && error.contains(name), "{error}");
        }
    }
}
