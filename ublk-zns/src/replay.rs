//! Requests that come a second time: what a dead daemon had placed and not completed.
//!
//! With `UBLK_F_USER_RECOVERY_REISSUE` the kernel sends every request that its dead daemon held again. A write that had
//! taken its place would then be refused (the write pointer has passed it), and an append would be done twice. So each
//! write notes its place in its tag's slot before the write pointer moves ([`crate::media`]); the successor finds the notes
//! and gives the same places again. The data is copied again, so that it does not matter how far the first copy got.
//!
//! The invariant: a place is given at most once. An append has no identity before it completes, so any append of the same
//! length to the same zone may have the place of one that was not completed. One whose completion was just on its way
//! may have been completed: it is only known again by its tag, by the same place in the queue.

use crate::{
    cache::locked,
    geometry::{Geometry, Sector, ZoneId},
    media::{Media, Placed, SlotId},
};
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// The places that a dead daemon left.
#[derive(Default)]
pub(crate) struct Replays {
    any: AtomicBool,
    left: Mutex<Vec<LeftWrite>>,
}

#[derive(Debug, Clone, Copy)]
struct LeftWrite {
    /// Its place in the media's bank.
    index: usize,
    zone: ZoneId,
    placed: Placed,
}

impl Replays {
    /// Takes over what the slots of a dead daemon say.
    pub(crate) fn inherit(media: &Media, geometry: &Geometry) -> Replays {
        let mut left: Vec<LeftWrite> = Vec::new();
        for (index, placed) in media.inherit() {
            let zone = place_of(media, geometry, &placed);
            match zone.filter(|_| !left.iter().any(|other| overlaps(&other.placed, &placed))) {
                Some(zone) => left.push(LeftWrite { index, zone, placed }),
                None => media.forget_left(index),
            }
        }
        log::debug!("{} writes of the dead daemon may come again", left.len());
        Replays { any: AtomicBool::new(!left.is_empty()), left: Mutex::new(left) }
    }

    fn lock(&self) -> Option<MutexGuard<'_, Vec<LeftWrite>>> {
        // Almost always there is nothing: no lock then.
        self.any.load(Relaxed).then(|| locked(&self.left))
    }

    fn take(
        &self,
        media: &Media,
        fits: impl Fn(&LeftWrite) -> bool,
        better: impl Fn(&LeftWrite) -> bool,
    ) -> Option<LeftWrite> {
        let mut left = self.lock()?;
        let found =
            left.iter().position(|one| fits(one) && better(one)).or_else(|| left.iter().position(&fits))?;
        let one = left.swap_remove(found);
        media.forget_left(one.index);
        self.any.store(!left.is_empty(), Relaxed);
        Some(one)
    }

    /// Whether a write to exactly this range was the last one of its zone when the daemon died, and may be done again.
    pub(crate) fn take_write(&self, media: &Media, zone: ZoneId, sector: Sector, sectors: u64) -> bool {
        if !self.any.load(Relaxed) {
            return false;
        }
        let fits = |one: &LeftWrite| {
            let Placed { append, start_sector, sectors: length, .. } = one.placed;
            one.zone == zone && !append && (start_sector, length) == (sector.0, sectors)
        };
        self.take(media, fits, |_| true).is_some()
    }

    /// The offset in the zone that an append of this length had taken.
    pub(crate) fn take_append(
        &self,
        media: &Media,
        slot: Option<SlotId>,
        zone: ZoneId,
        geometry: &Geometry,
        sectors: u64,
    ) -> Option<u64> {
        if !self.any.load(Relaxed) {
            return None;
        }
        let own = |one: &LeftWrite| Some(one.placed.slot) == slot;
        let fits = |one: &LeftWrite| {
            let Placed { append, committing, sectors: length, .. } = one.placed;
            one.zone == zone && append && length == sectors && (!committing || own(one))
        };
        let one = self.take(media, fits, own)?;
        Some(one.placed.start_sector - geometry.start(zone).0)
    }

    /// A zone was emptied: nothing that was placed in it counts.
    pub(crate) fn forget_zone(&self, media: &Media, zone: ZoneId) {
        while self.take(media, |one| one.zone == zone, |_| true).is_some() {}
    }
}

/// The zone of a write that took its place: one whose zone's write pointer has passed it.
fn place_of(media: &Media, geometry: &Geometry, placed: &Placed) -> Option<ZoneId> {
    let (zone, offset) = geometry.locate(Sector(placed.start_sector))?;
    let (_, written) = media.load(zone).ok()?;
    let end = offset.checked_add(placed.sectors)?;
    let counts = placed.sectors > 0 && end <= written && !geometry.is_conventional(zone);
    // A write that is not its zone's last was completed: the kernel has one at a time in flight.
    (counts && (placed.append || end == written)).then_some(zone)
}

fn overlaps(a: &Placed, b: &Placed) -> bool {
    a.start_sector < b.start_sector + b.sectors && b.start_sector < a.start_sector + a.sectors
}
