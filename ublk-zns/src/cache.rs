//! The volatile write cache: what a flush makes durable, and what a power cut takes.
//!
//! A device with such a cache may lose what was written since the last flush, block by block: a sequential zone loses its
//! tail from some block on, a block of a conventional zone its last overwrites. A flush makes everything durable that was
//! completed before it; a write with FUA makes itself, and with it all that lies before it in its zone, durable. Zone
//! management (finish, reset) is durable when it completes: a zone that were full again after a reset would promise data
//! that is gone.
//!
//! The invariants: what is called durable is in the media, and for media that lasts in its journal, and survives
//! [`ZnsDevice::power_cut`]; a zone's durable sectors never exceed its written ones. Flushes, finishes and resets are done
//! one at a time (`settling`).

use crate::{
    engine::{CacheMode, ZnsDevice},
    error::ZnsError,
    geometry::{Geometry, SECTOR_BYTES, ZoneId},
    media::{Media, ZoneField, journal::Entry},
    rng::SplitMix64,
    zones::{self, ZoneState},
};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A block of a conventional zone: the zone and the block's number in it.
type BlockAt = (ZoneId, u64);
type OldBlocks = HashMap<BlockAt, Box<[u8]>>;

/// What is not durable yet.
pub(crate) struct Cache {
    mode: CacheMode,
    lasts: bool,
    settling: Mutex<()>,
    dirty: Mutex<Vec<ZoneId>>,
    old: Mutex<OldBlocks>,
}

/// Proof that no other flush, finish or reset runs.
pub(crate) struct Settling<'c>(#[allow(dead_code)] MutexGuard<'c, ()>);

/// A lock whose holders leave nothing half changed, so that a panic of one is no reason for others to fail.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    pub(crate) fn new(mode: CacheMode, lasts: bool) -> Cache {
        Cache {
            mode,
            lasts,
            settling: Mutex::new(()),
            dirty: Mutex::new(Vec::new()),
            old: Mutex::new(HashMap::new()),
        }
    }

    /// Whether there is anything to flush: memory with a durable cache has not.
    pub(crate) fn tracks(&self) -> bool {
        self.lasts || self.mode == CacheMode::Volatile
    }

    /// Whether every command is durable when it completes, at the price of a sync.
    pub(crate) fn writes_through(&self) -> bool {
        self.lasts && self.mode == CacheMode::Durable
    }

    pub(crate) fn settling(&self) -> Settling<'_> {
        Settling(locked(&self.settling))
    }

    pub(crate) fn add_dirty(&self, zone: ZoneId) {
        locked(&self.dirty).push(zone);
    }

    /// Keeps what an overwrite of a conventional zone replaces, unless an older block is kept already.
    pub(crate) fn keep_old_blocks(
        &self,
        media: &Media,
        geometry: &Geometry,
        zone: ZoneId,
        offset: u64,
        sectors: u64,
    ) {
        if self.mode != CacheMode::Volatile {
            return;
        }
        let block = geometry.block_sectors();
        let mut old = locked(&self.old);
        for number in offset / block..(offset + sectors).div_ceil(block) {
            old.entry((zone, number)).or_insert_with(|| {
                let mut kept = vec![0; (block * SECTOR_BYTES) as usize].into_boxed_slice();
                if let Some((from, bytes)) = media.data(zone, number * block, block) {
                    let bytes = bytes.min(kept.len());
                    // SAFETY: valid for `bytes`, which is the block's length; a torn value is one the cut may leave.
                    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), kept.as_mut_ptr(), bytes) };
                }
                kept
            });
        }
    }

    fn take_old_blocks(&self, zone: ZoneId) -> OldBlocks {
        let mut old = locked(&self.old);
        if old.is_empty() {
            return HashMap::new();
        }
        let (taken, kept) = std::mem::take(&mut *old).into_iter().partition(|((of, _), _)| *of == zone);
        *old = kept;
        taken
    }
}

impl ZnsDevice {
    /// Makes everything that was completed so far durable.
    ///
    /// # Errors
    /// [`ZnsError::Media`]: it may not be; [`ZnsError::NoPower`].
    pub fn flush(&self) -> Result<(), ZnsError> {
        if !self.is_powered() {
            return Err(ZnsError::NoPower);
        }
        if !self.cache.tracks() {
            return Ok(());
        }
        let settling = self.cache.settling();
        let dirty = std::mem::take(&mut *locked(&self.cache.dirty));
        self.settle(&settling, dirty)
    }

    /// Makes what was completed so far in one zone durable (FUA).
    ///
    /// # Errors
    /// As [`ZnsDevice::flush`].
    pub fn flush_zone(&self, zone: ZoneId) -> Result<(), ZnsError> {
        if !self.cache.tracks() {
            return Ok(());
        }
        let settling = self.cache.settling();
        self.settle(&settling, [zone])
    }

    pub(crate) fn settle(
        &self,
        _: &Settling<'_>,
        zones: impl IntoIterator<Item = ZoneId>,
    ) -> Result<(), ZnsError> {
        if !self.cache.tracks() {
            return Ok(());
        }
        let (mut entries, mut old) = (Vec::new(), HashMap::new());
        for zone in zones {
            // Alone with the zone, no write is half copied: what its word says is there.
            let _alone = self.alone(zone);
            self.note(zone, &mut entries, &mut old);
        }
        self.commit(&entries, old)
    }

    /// [`ZnsDevice::settle`] of one zone that the caller has alone.
    pub(crate) fn settle_alone(&self, _: &Settling<'_>, zone: ZoneId) -> Result<(), ZnsError> {
        if !self.cache.tracks() {
            return Ok(());
        }
        let (mut entries, mut old) = (Vec::new(), HashMap::new());
        self.note(zone, &mut entries, &mut old);
        self.commit(&entries, old)
    }

    fn note(&self, zone: ZoneId, entries: &mut Vec<Entry>, old: &mut OldBlocks) {
        // Before the look: a change from here on makes it dirty again.
        self.clear_dirty(zone);
        entries.push(self.media().entry(zone));
        old.extend(self.cache.take_old_blocks(zone));
    }

    fn commit(&self, entries: &[Entry], old: OldBlocks) -> Result<(), ZnsError> {
        let done = self.media().commit(entries);
        if done.is_err() {
            // The older content is the one that counts.
            locked(&self.cache.old).extend(old);
        }
        for entry in entries {
            match done {
                Ok(()) => self.media().set_field(entry.zone, ZoneField::Durable, entry.written),
                Err(_) => self.mark_dirty(entry.zone),
            }
        }
        done
    }

    /// Cuts the power: what was not flushed is lost or torn as `seed` decides, open zones are closed, and until
    /// [`ZnsDevice::power_on`] every command fails. With a durable cache nothing that was completed is lost.
    ///
    /// # Errors
    /// [`ZnsError::Media`] if what is left could not be noted.
    pub fn power_cut(&self, seed: u64) -> Result<(), ZnsError> {
        let settling = self.cache.settling();
        self.set_powered(false);
        let mut rng = SplitMix64::new(seed);
        // Whoever saw power before is done with a zone when we have it alone, and nobody sees power after.
        let states = (0..self.geometry().zones())
            .map(|zone| self.cut_zone(ZoneId(zone), &mut rng))
            .collect::<Result<Vec<_>, _>>()?;
        locked(&self.cache.dirty).clear();
        locked(&self.cache.old).clear();
        self.replace_zones(states.clone())?;
        for (zone, (_, kept)) in (0..).map(ZoneId).zip(states) {
            self.media().set_field(zone, ZoneField::Durable, kept);
        }
        self.settle(&settling, (0..self.geometry().zones()).map(ZoneId))
    }

    fn cut_zone(&self, zone: ZoneId, rng: &mut SplitMix64) -> Result<(ZoneState, u64), ZnsError> {
        let _alone = self.alone(zone);
        let (state, written) = self.media().load(zone)?;
        let conventional = self.geometry().is_conventional(zone);
        if conventional {
            for ((_, number), old) in sorted(self.cache.take_old_blocks(zone)) {
                if rng.below(2) == 0 {
                    self.put_back(zone, number, &old);
                }
            }
        }
        let block = self.geometry().block_sectors();
        let durable = self.media().field(zone, ZoneField::Durable).min(written);
        let kept = match self.cache.mode {
            CacheMode::Volatile if !conventional => {
                durable + rng.below((written - durable) / block + 1) * block
            }
            _ => written,
        };
        Ok(zones::after_power_cut(state, conventional, kept))
    }

    fn put_back(&self, zone: ZoneId, number: u64, old: &[u8]) {
        let block = self.geometry().block_sectors();
        if let Some((to, bytes)) = self.media().data(zone, number * block, block) {
            // SAFETY: valid for `bytes`; the caller has the zone alone.
            unsafe { std::ptr::copy_nonoverlapping(old.as_ptr(), to.as_ptr(), bytes.min(old.len())) };
        }
    }

    /// Power is back.
    pub fn power_on(&self) {
        self.set_powered(true);
    }
}

/// In an order that does not depend on the hash: the same seed does the same.
fn sorted(old: OldBlocks) -> Vec<(BlockAt, Box<[u8]>)> {
    let mut blocks: Vec<_> = old.into_iter().collect();
    blocks.sort_unstable_by_key(|(at, _)| *at);
    blocks
}
