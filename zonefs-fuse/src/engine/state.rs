//! The state behind the lock: what is in memory, what is on the way to the log, and the commit.
//!
//! The order of a commit, which is what makes a crash harmless:
//!
//! 1. tails are written to data zones, and the device is flushed;
//! 2. only then do entries that point at the new extents join the pending entries;
//! 3. the pending entries are appended to the log, all in the order they happened, and the device is flushed;
//! 4. only then are blocks that the entries gave up free, and zones without live blocks reset.

use std::collections::BTreeMap;

use super::log::MetaLog;
use super::zones::Zones;
use crate::device::{ZoneId, ZonedDevice};
use crate::format::Entry;
use crate::model::tree::extents_entries;
use crate::model::{Extent, ExtentMap, Inode, Kind, Removed, Tree};
use crate::{Error, Result};

/// Pending entries beyond this are committed without being asked for.
pub(super) const PENDING_LIMIT_BYTES: usize = 256 << 10;

/// The end of a file that is being written, from the last whole block on.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    /// The file offset of its first byte; whole blocks.
    pub(super) start: u64,
    /// Less than a block. The first bytes may also be on the device, in a padded block.
    pub(super) bytes: Vec<u8>,
}

/// What is known of a file beyond its inode, while it is open or not yet committed.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    /// Open handles.
    pub(super) opens: u64,
    /// Loaded by the first write.
    pub(super) tail: Option<Tail>,
    /// From this file offset on, the log does not know the extents.
    pub(super) dirty_from: Option<u64>,
    /// Blocks the file no longer uses, but that the log still points at.
    pub(super) stale: Vec<Extent>,
    /// The zone it continues in.
    pub(super) zone: Option<ZoneId>,
    /// Whether a block is set aside for its tail.
    pub(super) reserved: bool,
}

impl Live {
    /// The size, when the tail knows it.
    pub(super) fn size(&self) -> Option<u64> {
        self.tail.as_ref().map(|t| t.start + t.bytes.len() as u64)
    }

    fn is_clean(&self) -> bool {
        self.dirty_from.is_none() && self.stale.is_empty() && !self.reserved
    }

    pub(super) fn dirty(&mut self, from: u64) {
        self.dirty_from = Some(self.dirty_from.map_or(from, |d| d.min(from)));
    }
}

/// Everything behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) tree: Tree,
    /// Inodes without names that are still open.
    pub(super) orphans: BTreeMap<u64, Inode>,
    pub(super) files: BTreeMap<u64, Live>,
    pub(super) zones: Zones,
    pub(super) log: MetaLog,
    pub(super) pending: Vec<Vec<u8>>,
    pub(super) pending_bytes: usize,
    /// The pending bytes from which on they are committed without being asked for. More than
    /// [`PENDING_LIMIT_BYTES`] after a commit that failed, so that not every operation tries again.
    pub(super) commit_at_bytes: usize,
    /// Why nothing may be changed, when that is so.
    pub(super) read_only: Option<String>,
    /// Whether a panic left it half changed: then nothing of it may reach the device any more.
    pub(super) half_changed: bool,
}

impl State {
    pub(super) fn block_size(&self) -> u64 {
        u64::from(self.log.superblock.block_size_bytes)
    }

    pub(super) fn writable(&self) -> Result<()> {
        if self.read_only.is_some() { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// An inode with or without a name.
    pub(super) fn inode(&self, ino: u64) -> Result<&Inode> {
        match self.orphans.get(&ino) {
            Some(inode) => Ok(inode),
            None => self.tree.get(ino),
        }
    }

    /// A file's extents.
    pub(super) fn map(&self, ino: u64) -> Result<&ExtentMap> {
        match &self.inode(ino)?.kind {
            Kind::File(map) => Ok(map),
            Kind::Dir { .. } => Err(Error::IsDir),
            _ => Err(Error::Invalid("not a regular file")),
        }
    }

    pub(super) fn with_extents<R>(
        &mut self,
        ino: u64,
        change: impl FnOnce(&mut ExtentMap) -> R,
    ) -> Result<R> {
        match self.orphans.get_mut(&ino).map(|inode| &mut inode.kind) {
            Some(Kind::File(map)) => Ok(change(map)),
            _ => self.tree.with_extents(ino, change),
        }
    }

    /// A file's size, unwritten tail included.
    pub(super) fn size(&self, ino: u64) -> Result<u64> {
        let written = self.map(ino)?.length_bytes();
        Ok(self.files.get(&ino).and_then(Live::size).unwrap_or(written))
    }

    /// Makes sure that the metadata can grow by so many bytes.
    pub(super) fn metadata_can_grow(&self, bytes: u64) -> Result<()> {
        if self.tree.snapshot_bytes() + bytes > self.log.snapshot_limit() {
            return Err(Error::NoSpace("the metadata zones hold no more names and extents"));
        }
        Ok(())
    }

    /// An operation panicked while it changed the state: it is only looked at from now on.
    pub(super) fn distrust(&mut self) {
        if self.half_changed {
            return;
        }
        let why = "an operation panicked in the middle of a change (a bug of this program)";
        log::error!("{why}; the file system is read-only from now on, and what was not synced is lost");
        self.half_changed = true;
        // More than any other reason there was: not even what is pending is committed.
        self.read_only = Some(why.to_owned());
    }

    fn trusted(&self) -> Result<()> {
        if self.half_changed { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// Does an entry and puts it on the way to the log. An error means that it was not done.
    pub(super) fn apply(&mut self, device: &dyn ZonedDevice, entry: Entry) -> Result<()> {
        if let Some(removed) = self.tree.apply(&entry, &self.log.superblock)? {
            self.forget(removed);
        }
        self.push(&entry);
        if self.pending_bytes > self.commit_at_bytes
            && let Err(error) = self.commit(device)
        {
            // The operation is done, only not durable, which nobody asked for yet: fsync tries again, and says so.
            log::error!("committing on the side: {error}");
            self.commit_at_bytes = self.pending_bytes + PENDING_LIMIT_BYTES;
        }
        Ok(())
    }

    fn committed(&mut self) {
        self.pending.clear();
        self.pending_bytes = 0;
        self.commit_at_bytes = PENDING_LIMIT_BYTES;
    }

    fn push(&mut self, entry: &Entry) {
        let bytes = entry.encode();
        self.pending_bytes += bytes.len();
        self.pending.push(bytes);
    }

    /// An inode lost its last name: it stays while it is open, else its blocks go with the next commit.
    fn forget(&mut self, removed: Removed) {
        if self.files.get(&removed.ino).is_some_and(|live| live.opens > 0) {
            self.orphans.insert(removed.ino, removed.inode);
            return;
        }
        self.drop_inode(removed.ino, &removed.inode);
    }

    fn drop_inode(&mut self, ino: u64, inode: &Inode) {
        if let Some(live) = self.files.remove(&ino) {
            self.zones.freeing(&live.stale);
            self.release_zone(live.zone);
            self.zones.reserved_blocks -= u64::from(live.reserved);
        }
        if let Kind::File(map) = &inode.kind {
            let extents: Vec<Extent> = map.iter().collect();
            self.zones.freeing(&extents);
        }
    }

    fn release_zone(&mut self, zone: Option<ZoneId>) {
        if let Some(zone) = zone.and_then(|id| self.zones.get_mut(id)) {
            zone.writers = zone.writers.saturating_sub(1);
        }
    }

    /// One more handle.
    pub(super) fn open(&mut self, ino: u64) -> Result<()> {
        self.inode(ino)?;
        self.files.entry(ino).or_default().opens += 1;
        Ok(())
    }

    /// One handle less; the last one of a nameless inode takes it along.
    pub(super) fn close(&mut self, ino: u64) {
        let Some(live) = self.files.get_mut(&ino) else { return };
        live.opens = live.opens.saturating_sub(1);
        if live.opens > 0 {
            return;
        }
        let zone = live.zone.take();
        let clean = live.is_clean();
        self.release_zone(zone);
        if let Some(inode) = self.orphans.remove(&ino) {
            self.drop_inode(ino, &inode);
        } else if clean {
            self.files.remove(&ino);
        }
    }

    /// Puts on the way to the log what it does not know of a file's extents. Their data must be flushed.
    fn push_extents(&mut self, ino: u64) -> Result<()> {
        let Some(live) = self.files.get_mut(&ino) else { return Ok(()) };
        if self.orphans.contains_key(&ino) {
            return Ok(());
        }
        let inode = self.tree.get(ino)?;
        let Kind::File(map) = &inode.kind else { return Ok(()) };
        let stale = std::mem::take(&mut live.stale);
        let entries = match live.dirty_from.take() {
            Some(from) => extents_entries(ino, from, &map.from(from), &inode.attrs),
            None => Vec::new(),
        };
        for entry in &entries {
            self.push(entry);
        }
        self.zones.freeing(&stale);
        Ok(())
    }

    /// Writes the tails of these files and lets the log know of their extents; not yet durable.
    fn persist(&mut self, device: &dyn ZonedDevice, inos: &[u64]) -> Result<()> {
        let mut result = Ok(());
        for ino in inos {
            if let Err(error) = self.write_tail(device, *ino) {
                log::error!("inode {ino}: its end could not be written: {error}");
                result = result.and(Err(error));
            }
        }
        let dirty = |state: &State, ino: &u64| state.files.get(ino).is_some_and(|l| l.dirty_from.is_some());
        if inos.iter().any(|ino| dirty(self, ino)) {
            self.flush(device)?;
        }
        for ino in inos {
            self.push_extents(*ino)?;
        }
        result
    }

    fn flush(&mut self, device: &dyn ZonedDevice) -> Result<()> {
        // After a failed flush nobody knows what is durable; going on would build on sand.
        device.flush().inspect_err(|error| self.give_up(error))
    }

    fn give_up(&mut self, error: &Error) {
        if self.read_only.is_none() {
            log::error!("{error}; the file system is read-only from now on");
            self.read_only = Some(error.to_string());
        }
    }

    /// Makes one file and all changes of names so far durable.
    pub(super) fn fsync(&mut self, device: &dyn ZonedDevice, ino: u64) -> Result<()> {
        self.trusted()?;
        self.inode(ino)?;
        if self.orphans.contains_key(&ino) {
            return Ok(());
        }
        let result = match self.inode(ino)?.kind {
            Kind::File(_) => self.persist(device, &[ino]),
            _ => Ok(()),
        };
        result.and(self.commit(device))
    }

    /// A file is about to take another one's place: its data goes first, as the callers of `rename` expect.
    pub(super) fn persist_before_rename(&mut self, device: &dyn ZonedDevice, ino: u64) -> Result<()> {
        match self.inode(ino)?.kind {
            Kind::File(_) => self.persist(device, &[ino]),
            _ => Ok(()),
        }
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self, device: &dyn ZonedDevice) -> Result<()> {
        self.trusted()?;
        let inos: Vec<u64> =
            self.files.keys().copied().filter(|ino| !self.orphans.contains_key(ino)).collect();
        let result = self.persist(device, &inos);
        let result = result.and(self.commit(device));
        self.files.retain(|_, live| live.opens > 0 || !live.is_clean());
        result
    }

    /// Appends the pending entries to the log and makes them durable; then frees what they gave up.
    pub(super) fn commit(&mut self, device: &dyn ZonedDevice) -> Result<()> {
        self.trusted()?;
        if !self.pending.is_empty() {
            self.writable()?;
            match self.log.append(device, &self.pending) {
                Ok(true) => {
                    self.flush(device)?;
                    self.committed();
                }
                Ok(false) => self.roll(device)?,
                Err(error) => {
                    log::error!("{error}; trying the other metadata zone");
                    self.roll(device)?;
                }
            }
        }
        self.zones.freed();
        if self.read_only.is_none() {
            self.zones.reset_dead(device, false);
        }
        Ok(())
    }

    /// Starts the log anew in the other zone; the snapshot holds everything that is pending.
    pub(super) fn roll(&mut self, device: &dyn ZonedDevice) -> Result<()> {
        self.flush(device)?;
        match self.log.roll(device, &self.tree) {
            Ok(()) => {}
            Err(error @ Error::NoSpace(_)) => return Err(error),
            Err(error) => {
                self.give_up(&error);
                return Err(error);
            }
        }
        self.committed();
        for (ino, live) in &mut self.files {
            if !self.orphans.contains_key(ino) {
                live.dirty_from = None;
                self.zones.freeing(&std::mem::take(&mut live.stale));
            }
        }
        Ok(())
    }

    /// When room is short: gets back all blocks that a commit can free. True when there may be more room now.
    pub(super) fn reclaim(&mut self, device: &dyn ZonedDevice) -> Result<bool> {
        let before = self.zones.available_blocks();
        if self.files.values().any(|live| !live.stale.is_empty()) {
            self.sync(device)?;
        } else {
            self.commit(device)?;
        }
        let reset = self.zones.reset_dead(device, true);
        Ok(reset > 0 || self.zones.available_blocks() > before)
    }
}
