//! Inodes and names, changed by entries.
//!
//! Invariants: every inode but the root has a name; a directory has exactly one and is reachable from the
//! root; link counts are those that `stat` shows. [`Tree::apply`] either does all of an entry or nothing.

use std::collections::BTreeMap;

use super::{Attrs, Extent, ExtentMap, Time};
use crate::format::entry::{ENTRY_HEADER_BYTES, EXTENT_BYTES, MAX_ENTRY_EXTENTS};
use crate::format::{Entry, Superblock};
use crate::{Error, Result};

/// The root directory's number.
pub const ROOT_INO: u64 = 1;
/// The number of the first inode after it.
pub const FIRST_INO: u64 = 2;
/// The longest name.
pub const MAX_NAME_BYTES: usize = 255;
/// The longest target of a symbolic link.
pub const MAX_TARGET_BYTES: usize = 4095;
/// The most names of one file.
pub const MAX_LINKS: u32 = 65_000;

const S_IFMT: u32 = 0o170_000;

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file and where its bytes are.
    File(ExtentMap),
    /// A directory: names to inodes, and the directory it is in (itself for the root).
    Dir {
        /// Its entries, without `.` and `..`.
        entries: BTreeMap<Vec<u8>, u64>,
        /// What `..` is.
        parent: u64,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A device node, FIFO or socket, with the device number.
    Special(u32),
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Mode, owner and times.
    pub attrs: Attrs,
    /// How many names it has; for a directory also `.` and its subdirectories' `..`.
    pub nlink: u32,
    /// What it is, with its content's place.
    pub kind: Kind,
}

impl Inode {
    fn new(attrs: Attrs, rdev: u32, target: &[u8]) -> Option<Inode> {
        let kind = match attrs.mode & S_IFMT {
            0o100_000 => Kind::File(ExtentMap::default()),
            0o040_000 => Kind::Dir { entries: BTreeMap::new(), parent: 0 },
            0o120_000 => Kind::Symlink(target.to_vec()),
            0o010_000 | 0o020_000 | 0o060_000 | 0o140_000 => Kind::Special(rdev),
            _ => return None,
        };
        if target.len() > MAX_TARGET_BYTES || (!target.is_empty() && !matches!(kind, Kind::Symlink(_))) {
            return None;
        }
        Some(Inode { attrs, nlink: 0, kind })
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir { .. })
    }

    /// What the inode takes in a snapshot, without its names, in bytes.
    pub fn snapshot_bytes(&self) -> u64 {
        let (target, extents) = match &self.kind {
            Kind::Symlink(target) => (target.len(), 0),
            Kind::File(map) => (0, map.count()),
            _ => (0, 0),
        };
        let extent_entries = extents.div_ceil(MAX_ENTRY_EXTENTS);
        let bytes = ENTRY_HEADER_BYTES + 62 + target + extents * EXTENT_BYTES;
        (bytes + extent_entries * (ENTRY_HEADER_BYTES + 44)) as u64
    }
}

/// What a name takes in a snapshot, in bytes.
pub(crate) fn dirent_bytes(name: &[u8]) -> u64 {
    (ENTRY_HEADER_BYTES + 18 + name.len()) as u64
}

/// An inode that lost its last name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its number.
    pub ino: u64,
    /// What it was.
    pub inode: Inode,
}

/// All inodes that have names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    inodes: BTreeMap<u64, Inode>,
    next_ino: u64,
    dirents: u64,
    /// What a snapshot of all this takes, without frames.
    snapshot_bytes: u64,
}

impl Tree {
    /// A tree with a root directory and nothing else.
    pub fn with_root(attrs: Attrs) -> Tree {
        let attrs = Attrs { mode: 0o040_000 | (attrs.mode & 0o7777), ..attrs };
        let kind = Kind::Dir { entries: BTreeMap::new(), parent: ROOT_INO };
        let root = Inode { attrs, nlink: 2, kind };
        let snapshot_bytes = root.snapshot_bytes();
        Tree { inodes: BTreeMap::from([(ROOT_INO, root)]), next_ino: FIRST_INO, dirents: 0, snapshot_bytes }
    }

    /// An inode.
    pub fn get(&self, ino: u64) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or(Error::NotFound)
    }

    fn get_mut(&mut self, ino: u64) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(Error::NotFound)
    }

    /// A directory's entries.
    pub fn entries(&self, ino: u64) -> Result<&BTreeMap<Vec<u8>, u64>> {
        match &self.get(ino)?.kind {
            Kind::Dir { entries, .. } => Ok(entries),
            _ => Err(Error::NotDir),
        }
    }

    /// The directory a directory is in.
    pub fn parent(&self, ino: u64) -> Result<u64> {
        match &self.get(ino)?.kind {
            Kind::Dir { parent, .. } => Ok(*parent),
            _ => Err(Error::NotDir),
        }
    }

    /// What a name in a directory names.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<u64> {
        self.entries(parent)?.get(name).copied().ok_or(Error::NotFound)
    }

    /// All inodes in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Inode)> {
        self.inodes.iter().map(|(ino, inode)| (*ino, inode))
    }

    /// How many inodes there are, the root included.
    pub fn inodes(&self) -> u64 {
        self.inodes.len() as u64
    }

    /// The number the next new inode gets.
    pub fn next_ino(&self) -> u64 {
        self.next_ino
    }

    /// What a snapshot of all this takes, in bytes, without frames.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }

    /// Changes a file's extents, and keeps the account of the snapshot's size.
    pub fn with_extents<R>(&mut self, ino: u64, change: impl FnOnce(&mut ExtentMap) -> R) -> Result<R> {
        let inode = self.get_mut(ino)?;
        let before = inode.snapshot_bytes();
        let Kind::File(map) = &mut inode.kind else { return Err(Error::Invalid("not a regular file")) };
        let result = change(map);
        let after = inode.snapshot_bytes();
        self.snapshot_bytes = self.snapshot_bytes + after - before;
        Ok(result)
    }

    /// Sets a file's times after a write; the log learns of them with the file's extents.
    pub fn touch(&mut self, ino: u64, time: Time) -> Result<()> {
        let attrs = &mut self.get_mut(ino)?.attrs;
        (attrs.mtime, attrs.ctime) = (time, time);
        Ok(())
    }

    /// Does what an entry says, or nothing. An inode that lost its last name is handed back.
    ///
    /// # Errors
    /// What POSIX gives the operation: the caller passes them on, or calls the log damaged when it replays.
    pub fn apply(&mut self, entry: &Entry, superblock: &Superblock) -> Result<Option<Removed>> {
        match entry {
            Entry::Create { parent, name, ino, attrs, rdev, target } => {
                self.create(*parent, name, *ino, *attrs, *rdev, target)?;
                Ok(None)
            }
            Entry::Link { ino, parent, name, time } => self.link(*ino, *parent, name, *time).map(|()| None),
            Entry::Unlink { parent, name, time } => self.unlink(*parent, name, *time),
            Entry::Rmdir { parent, name, time } => self.rmdir(*parent, name, *time),
            Entry::Rename { parent, name, new_parent, new_name, time } => {
                self.rename((*parent, name), (*new_parent, new_name), *time)
            }
            Entry::SetAttr { ino, attrs } => {
                let inode = self.get_mut(*ino)?;
                let mode = (inode.attrs.mode & S_IFMT) | (attrs.mode & !S_IFMT);
                inode.attrs = Attrs { mode, ..*attrs };
                Ok(None)
            }
            Entry::Extents { ino, keep_bytes, mtime, ctime, extents } => {
                self.replay_extents(*ino, *keep_bytes, extents, superblock)?;
                let inode = self.get_mut(*ino)?;
                (inode.attrs.mtime, inode.attrs.ctime) = (*mtime, *ctime);
                Ok(None)
            }
            Entry::Inode { ino, attrs, rdev, target } => {
                let mut inode = Inode::new(*attrs, *rdev, target).ok_or(Error::Invalid("kind of inode"))?;
                if *ino == 0 || self.inodes.contains_key(ino) || (*ino == ROOT_INO) != self.inodes.is_empty()
                {
                    return Err(Error::Exists);
                }
                if let Kind::Dir { parent, .. } = &mut inode.kind {
                    inode.nlink = 2;
                    *parent = if *ino == ROOT_INO { ROOT_INO } else { 0 };
                }
                self.snapshot_bytes += inode.snapshot_bytes();
                self.inodes.insert(*ino, inode);
                Ok(None)
            }
            Entry::Dirent { parent, name, ino } => self.dirent(*parent, name, *ino).map(|()| None),
            Entry::SnapshotEnd { next_ino, inodes, dirents } => {
                let last = self.inodes.last_key_value().map_or(0, |(ino, _)| *ino);
                let orphan = self.inodes.iter().any(|(_, inode)| match inode.kind {
                    Kind::Dir { parent, .. } => parent == 0,
                    _ => inode.nlink == 0,
                });
                if (*inodes, *dirents) != (self.inodes(), self.dirents)
                    || orphan
                    || *next_ino <= last
                    || last == 0
                {
                    return Err(Error::Invalid("end of the snapshot: names or inodes are missing"));
                }
                self.next_ino = *next_ino;
                Ok(None)
            }
        }
    }

    fn name_is_free(&self, parent: u64, name: &[u8]) -> Result<()> {
        let entries = self.entries(parent)?;
        check_name(name)?;
        if entries.contains_key(name) { Err(Error::Exists) } else { Ok(()) }
    }

    fn insert_name(&mut self, parent: u64, name: &[u8], ino: u64, time: Option<Time>) -> Result<()> {
        let dir = self.get_mut(parent)?;
        let Kind::Dir { entries, .. } = &mut dir.kind else { return Err(Error::NotDir) };
        entries.insert(name.to_vec(), ino);
        if let Some(time) = time {
            (dir.attrs.mtime, dir.attrs.ctime) = (time, time);
        }
        self.dirents += 1;
        self.snapshot_bytes += dirent_bytes(name);
        Ok(())
    }

    fn remove_name(&mut self, parent: u64, name: &[u8], time: Time) -> Result<()> {
        let dir = self.get_mut(parent)?;
        let Kind::Dir { entries, .. } = &mut dir.kind else { return Err(Error::NotDir) };
        entries.remove(name).ok_or(Error::NotFound)?;
        (dir.attrs.mtime, dir.attrs.ctime) = (time, time);
        self.dirents -= 1;
        self.snapshot_bytes -= dirent_bytes(name);
        Ok(())
    }

    fn remove_inode(&mut self, ino: u64) -> Option<Removed> {
        let mut inode = self.inodes.remove(&ino)?;
        inode.nlink = 0;
        self.snapshot_bytes -= inode.snapshot_bytes();
        Some(Removed { ino, inode })
    }

    fn create(
        &mut self,
        parent: u64,
        name: &[u8],
        ino: u64,
        attrs: Attrs,
        rdev: u32,
        target: &[u8],
    ) -> Result<()> {
        self.name_is_free(parent, name)?;
        if ino < self.next_ino || ino == u64::MAX {
            return Err(Error::Invalid("inode number: used before"));
        }
        let mut inode = Inode::new(attrs, rdev, target).ok_or(Error::Invalid("kind of inode"))?;
        inode.nlink = 1;
        if let Kind::Dir { parent: up, .. } = &mut inode.kind {
            *up = parent;
            inode.nlink = 2;
            self.get_mut(parent)?.nlink += 1;
        }
        self.snapshot_bytes += inode.snapshot_bytes();
        self.inodes.insert(ino, inode);
        self.next_ino = ino + 1;
        self.insert_name(parent, name, ino, Some(attrs.ctime))
    }

    fn link(&mut self, ino: u64, parent: u64, name: &[u8], time: Time) -> Result<()> {
        self.name_is_free(parent, name)?;
        let inode = self.get_mut(ino)?;
        if inode.is_dir() {
            return Err(Error::NotPermitted("a directory has one name"));
        }
        if inode.nlink >= MAX_LINKS {
            return Err(Error::TooManyLinks);
        }
        inode.nlink += 1;
        inode.attrs.ctime = time;
        self.insert_name(parent, name, ino, Some(time))
    }

    fn unlink(&mut self, parent: u64, name: &[u8], time: Time) -> Result<Option<Removed>> {
        let ino = self.lookup(parent, name)?;
        if self.get(ino)?.is_dir() {
            return Err(Error::IsDir);
        }
        self.remove_name(parent, name, time)?;
        self.drop_link(ino, time)
    }

    fn drop_link(&mut self, ino: u64, time: Time) -> Result<Option<Removed>> {
        let inode = self.get_mut(ino)?;
        inode.nlink = inode.nlink.saturating_sub(1);
        inode.attrs.ctime = time;
        Ok(if inode.nlink == 0 { self.remove_inode(ino) } else { None })
    }

    fn rmdir(&mut self, parent: u64, name: &[u8], time: Time) -> Result<Option<Removed>> {
        let ino = self.lookup(parent, name)?;
        if !self.entries(ino)?.is_empty() {
            return Err(Error::NotEmpty);
        }
        self.remove_name(parent, name, time)?;
        self.get_mut(parent)?.nlink -= 1;
        Ok(self.remove_inode(ino))
    }

    fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), time: Time) -> Result<Option<Removed>> {
        let ino = self.lookup(from.0, from.1)?;
        let is_dir = self.get(ino)?.is_dir();
        check_name(to.1)?;
        let target = self.entries(to.0)?.get(to.1).copied();
        if target == Some(ino) {
            return Ok(None);
        }
        if is_dir {
            let mut up = to.0;
            while up != ROOT_INO {
                if up == ino {
                    return Err(Error::Invalid("a directory cannot move into itself"));
                }
                up = self.parent(up)?;
            }
        }
        let mut removed = None;
        if let Some(target) = target {
            let target_is_dir = self.get(target)?.is_dir();
            match (is_dir, target_is_dir) {
                (true, false) => return Err(Error::NotDir),
                (false, true) => return Err(Error::IsDir),
                (true, true) => removed = self.rmdir(to.0, to.1, time)?,
                (false, false) => removed = self.unlink(to.0, to.1, time)?,
            }
        }
        self.remove_name(from.0, from.1, time)?;
        self.insert_name(to.0, to.1, ino, Some(time))?;
        if is_dir && from.0 != to.0 {
            self.get_mut(from.0)?.nlink -= 1;
            self.get_mut(to.0)?.nlink += 1;
        }
        let inode = self.get_mut(ino)?;
        inode.attrs.ctime = time;
        if let Kind::Dir { parent, .. } = &mut inode.kind {
            *parent = to.0;
        }
        Ok(removed)
    }

    fn dirent(&mut self, parent: u64, name: &[u8], ino: u64) -> Result<()> {
        self.name_is_free(parent, name)?;
        let inode = self.get_mut(ino)?;
        match &mut inode.kind {
            // Numbers only grow with depth when nothing was renamed, so a loop is looked for, not excluded.
            Kind::Dir { parent: up, .. } if *up == 0 => *up = parent,
            Kind::Dir { .. } => return Err(Error::Invalid("a directory with two names")),
            _ => inode.nlink += 1,
        }
        if inode.is_dir() {
            self.get_mut(parent)?.nlink += 1;
        }
        self.insert_name(parent, name, ino, None)
    }

    fn replay_extents(
        &mut self,
        ino: u64,
        keep: u64,
        extents: &[Extent],
        superblock: &Superblock,
    ) -> Result<()> {
        let Kind::File(map) = &self.get(ino)?.kind else { return Err(Error::Invalid("not a regular file")) };
        let block = u64::from(superblock.block_size_bytes);
        if keep > map.length_bytes() {
            return Err(Error::Invalid("an extent behind the end of the file"));
        }
        let mut at = keep;
        for extent in extents {
            let end = extent.offset_bytes.checked_add(extent.length_bytes);
            let inside = end.is_some_and(|end| end <= superblock.zone_capacity_bytes);
            if !at.is_multiple_of(block)
                || !extent.offset_bytes.is_multiple_of(block)
                || extent.length_bytes == 0
                || extent.zone.0 >= superblock.nr_zones
                || superblock.meta_zones.contains(&extent.zone)
                || !inside
            {
                return Err(Error::Invalid("an extent that is not blocks of a data zone"));
            }
            at = at.checked_add(extent.length_bytes).ok_or(Error::Invalid("the length of a file"))?;
        }
        self.with_extents(ino, |map| {
            map.truncate(keep, block);
            for extent in extents {
                map.push(*extent, block);
            }
        })
    }

    /// Whether every directory leads up to the root (a damaged snapshot could hold a loop).
    pub fn is_connected(&self) -> bool {
        let dirs: Vec<u64> = self.iter().filter(|(_, inode)| inode.is_dir()).map(|(ino, _)| ino).collect();
        let mut good = std::collections::BTreeSet::from([ROOT_INO]);
        for dir in &dirs {
            let (mut path, mut up) = (Vec::new(), *dir);
            while !good.contains(&up) {
                if path.len() > dirs.len() {
                    return false;
                }
                path.push(up);
                up = match self.parent(up) {
                    Ok(parent) => parent,
                    Err(_) => return false,
                };
            }
            good.extend(path);
        }
        true
    }

    /// The entries that make this tree from nothing.
    pub fn snapshot(&self) -> impl Iterator<Item = Entry> + '_ {
        let inodes = self.iter().flat_map(|(ino, inode)| inode_entries(ino, inode));
        let dirents = self.iter().flat_map(|(parent, inode)| {
            let entries = match &inode.kind {
                Kind::Dir { entries, .. } => Some(entries),
                _ => None,
            };
            entries.into_iter().flatten().map(move |(name, ino)| Entry::Dirent {
                parent,
                name: name.clone(),
                ino: *ino,
            })
        });
        let (next_ino, inodes_count, dirents_count) = (self.next_ino, self.inodes(), self.dirents);
        let end = Entry::SnapshotEnd { next_ino, inodes: inodes_count, dirents: dirents_count };
        inodes.chain(dirents).chain(std::iter::once(end))
    }
}

fn inode_entries(ino: u64, inode: &Inode) -> Vec<Entry> {
    let (rdev, target) = match &inode.kind {
        Kind::Special(rdev) => (*rdev, Vec::new()),
        Kind::Symlink(target) => (0, target.clone()),
        _ => (0, Vec::new()),
    };
    let mut entries = vec![Entry::Inode { ino, attrs: inode.attrs, rdev, target }];
    if let Kind::File(map) = &inode.kind {
        entries.extend(extents_entries(ino, 0, &map.from(0), &inode.attrs));
    }
    entries
}

/// The entries that say how a file continues after `keep_bytes`; at least one.
pub(crate) fn extents_entries(ino: u64, keep_bytes: u64, extents: &[Extent], attrs: &Attrs) -> Vec<Entry> {
    let entry = |keep_bytes, extents: &[Extent]| Entry::Extents {
        ino,
        keep_bytes,
        mtime: attrs.mtime,
        ctime: attrs.ctime,
        extents: extents.to_vec(),
    };
    if extents.is_empty() {
        return vec![entry(keep_bytes, extents)];
    }
    let mut at = keep_bytes;
    let mut entries = Vec::new();
    for part in extents.chunks(MAX_ENTRY_EXTENTS) {
        entries.push(entry(at, part));
        at += part.iter().map(|e| e.length_bytes).sum::<u64>();
    }
    entries
}

/// Whether a name may be a directory entry.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::Invalid("a name is not empty, not . or .., and has no / or NUL"));
    }
    Ok(())
}
