//! Where each page lies on a zoned SSD, and which zone is emptied next (pure).
//!
//! A page is written where a zone's write pointer is, and its older place becomes invalid; a zone is emptied by moving what
//! is valid in it, the zone with the least first (greedy), and then reset. Since the host does this itself it knows at once
//! which pages the kernel has given up (discards), which is the point of ZNSwap (USENIX ATC 2022): no copy of a dead page is
//! ever moved.
//!
//! The invariant: **a page's place holds what was last written to it until the page is written again or discarded**: a zone
//! is reset only when it has no valid page, no write under way and no reader.

/// No page, no place.
const NONE: u32 = u32::MAX;

/// How large everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Pages of the swap device.
    pub pages: u32,
    /// Zones of the SSD.
    pub zones: u32,
    /// Writable pages of a zone.
    pub zone_pages: u32,
    /// Zones that are written at once for the kernel; one more takes what is moved.
    pub writers: u16,
    /// Empty zones that only the moving of pages may take, at least one.
    pub reserve_zones: u32,
}

impl Shape {
    /// The most pages that can be promised: with that many there is always a zone that is worth emptying.
    pub fn most_pages(&self) -> u32 {
        let kept = self.reserve_zones.saturating_add(u32::from(self.writers)).saturating_add(2);
        let most = u64::from(self.zones.saturating_sub(kept)) * u64::from(self.zone_pages);
        u32::try_from(most).unwrap_or(u32::MAX)
    }

    /// Whether the device can be that large.
    ///
    /// # Errors
    /// A line that says which number is wrong and what would be right.
    pub fn check(&self) -> Result<(), String> {
        if self.writers == 0 || self.reserve_zones == 0 || self.zone_pages == 0 || self.pages == 0 {
            return Err(
                "a writer, a zone in reserve, and zones and a device with pages are needed".to_owned()
            );
        }
        if u64::from(self.zones) * u64::from(self.zone_pages) >= u64::from(NONE) {
            return Err(format!(
                "{} zones of {} pages: less than 16 TiB is needed",
                self.zones, self.zone_pages
            ));
        }
        if self.pages > self.most_pages() {
            return Err(format!(
                "{} MiB do not fit: the zoned device has {} zones of {} MiB, {} are needed to reclaim, so at most {} MiB",
                u64::from(self.pages) * 4 / 1024,
                self.zones,
                u64::from(self.zone_pages) * 4 / 1024,
                self.reserve_zones + u32::from(self.writers) + 2,
                u64::from(self.most_pages()) * 4 / 1024,
            ));
        }
        Ok(())
    }
}

/// A place on the SSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The zone.
    pub zone: u32,
    /// The page within it.
    pub offset: u32,
}

/// Places one after the other, to be written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: Place,
    /// How many.
    pub pages: u32,
}

impl Run {
    /// The place of the run's page `n`.
    pub fn place(&self, n: u32) -> Place {
        Place { offset: self.first.offset + n, ..self.first }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Open,
    Full,
    Resetting,
    /// Cannot be written or read any more: what is in it stays there.
    Bad,
}

#[derive(Debug, Clone, Copy)]
struct Zone {
    state: State,
    /// Pages from the start that were given out.
    written: u32,
    /// Pages that are some page's current place.
    valid: u32,
    /// Places given out and not settled.
    pending: u32,
    /// Reads under way.
    readers: u32,
}

/// What was done, in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Written for the kernel.
    pub user_pages: u64,
    /// Moved to empty zones.
    pub moved_pages: u64,
    /// Given up by the kernel.
    pub discarded_pages: u64,
    /// Zones reset.
    pub resets: u64,
    /// Places of failed writes.
    pub failed_pages: u64,
}

/// The tables. All are allocated by [`Model::new`].
#[derive(Debug)]
pub struct Model {
    shape: Shape,
    /// Page to place, as `zone * zone_pages + offset`.
    places: Vec<u32>,
    /// Place to page: set exactly where the page's current place is.
    owners: Vec<u32>,
    zones: Vec<Zone>,
    /// The open zone of each writer; the last one is the mover's.
    open: Vec<u32>,
    empty: u32,
    mapped: u64,
    counters: Counters,
}

impl Model {
    /// An SSD whose zones are all empty.
    ///
    /// # Errors
    /// As [`Shape::check`].
    pub fn new(shape: Shape) -> Result<Self, String> {
        shape.check()?;
        let zone = Zone { state: State::Empty, written: 0, valid: 0, pending: 0, readers: 0 };
        Ok(Self {
            shape,
            places: vec![NONE; shape.pages as usize],
            owners: vec![NONE; shape.zones as usize * shape.zone_pages as usize],
            zones: vec![zone; shape.zones as usize],
            open: vec![NONE; usize::from(shape.writers) + 1],
            empty: shape.zones,
            mapped: 0,
            counters: Counters::default(),
        })
    }

    /// The writer that takes what is moved.
    pub fn mover(&self) -> usize {
        usize::from(self.shape.writers)
    }

    /// How large everything is.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What was done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Zones that are empty.
    pub fn empty_zones(&self) -> u32 {
        self.empty
    }

    /// Pages that have a place.
    pub fn mapped(&self) -> u64 {
        self.mapped
    }

    fn flat(&self, place: Place) -> usize {
        place.zone as usize * self.shape.zone_pages as usize + place.offset as usize
    }

    fn place_of(&self, flat: u32) -> Place {
        Place { zone: flat / self.shape.zone_pages, offset: flat % self.shape.zone_pages }
    }

    /// Where a page lies; `None` when it was never written, was discarded, or is beyond the device.
    pub fn lookup(&self, page: u32) -> Option<Place> {
        let flat = *self.places.get(page as usize)?;
        (flat != NONE).then(|| self.place_of(flat))
    }

    /// The page whose current place this is.
    pub fn owner(&self, place: Place) -> Option<u32> {
        self.owners.get(self.flat(place)).copied().filter(|page| *page != NONE)
    }

    /// Up to `most` places at a writer's write pointer, to be settled one by one. A writer without a zone takes an empty one;
    /// `None` when there is none for it: then pages must be moved first. `most` of 0 gives `None`.
    pub fn allocate(&mut self, writer: usize, most: u32) -> Option<Run> {
        if most == 0 {
            return None;
        }
        if *self.open.get(writer)? == NONE {
            let kept = if writer == self.mover() { 0 } else { self.shape.reserve_zones };
            if self.empty <= kept {
                return None;
            }
            let found = self.zones.iter().position(|zone| zone.state == State::Empty)?;
            self.zones[found].state = State::Open;
            self.empty -= 1;
            self.open[writer] = found as u32;
        }
        let number = self.open[writer];
        let zone = &mut self.zones[number as usize];
        let pages = most.min(self.shape.zone_pages - zone.written);
        let first = Place { zone: number, offset: zone.written };
        zone.written += pages;
        zone.pending += pages;
        if zone.written == self.shape.zone_pages {
            zone.state = State::Full;
            self.open[writer] = NONE;
        }
        Some(Run { first, pages })
    }

    fn settle(&mut self, place: Place) {
        self.zones[place.zone as usize].pending -= 1;
    }

    fn invalidate(&mut self, page: u32) -> bool {
        let Some(place) = self.lookup(page) else { return false };
        let flat = self.flat(place);
        self.owners[flat] = NONE;
        self.places[page as usize] = NONE;
        self.zones[place.zone as usize].valid -= 1;
        self.mapped -= 1;
        true
    }

    fn set(&mut self, page: u32, place: Place) {
        self.invalidate(page);
        let flat = self.flat(place);
        self.places[page as usize] = flat as u32;
        self.owners[flat] = page;
        self.zones[place.zone as usize].valid += 1;
        self.mapped += 1;
    }

    /// The page was written to a place that [`Model::allocate`] gave: it lies there now.
    pub fn written(&mut self, page: u32, place: Place) {
        self.settle(place);
        self.set(page, place);
        self.counters.user_pages += 1;
    }

    /// A page's copy was written; it lies there now if it still was where it was read, else the copy is dead. Says which.
    pub fn moved(&mut self, page: u32, from: Place, to: Place) -> bool {
        self.settle(to);
        let current = self.lookup(page) == Some(from);
        if current {
            self.set(page, to);
            self.counters.moved_pages += 1;
        }
        current
    }

    /// Writing a place failed: nothing lies there.
    pub fn failed(&mut self, place: Place) {
        self.settle(place);
        self.counters.failed_pages += 1;
    }

    /// The zone's write pointer is not known any more (a write failed): nothing more is written there before a reset.
    pub fn seal(&mut self, number: u32) {
        for open in self.open.iter_mut().filter(|open| **open == number) {
            *open = NONE;
        }
        let zone_pages = self.shape.zone_pages;
        if let Some(zone) = self.zones.get_mut(number as usize).filter(|zone| zone.state == State::Open) {
            zone.state = State::Full;
            zone.written = zone_pages;
        }
    }

    /// The zone can not be read or reset any more: it is left as it is.
    pub fn spoil(&mut self, number: u32) {
        self.seal(number);
        if let Some(zone) = self.zones.get_mut(number as usize) {
            zone.state = State::Bad;
        }
    }

    /// The kernel has given up a page. Says whether it had a place.
    pub fn discard(&mut self, page: u32) -> bool {
        let had = self.invalidate(page);
        self.counters.discarded_pages += u64::from(had);
        had
    }

    /// A read of the zone begins: it is not reset before [`Model::unpin`].
    pub fn pin(&mut self, zone: u32) {
        self.zones[zone as usize].readers += 1;
    }

    /// A read of the zone has ended.
    pub fn unpin(&mut self, zone: u32) {
        self.zones[zone as usize].readers -= 1;
    }

    /// Whether empty zones are so few that pages should be moved: before a writer has to wait for one.
    pub fn wants_reclaim(&self) -> bool {
        self.empty <= self.shape.reserve_zones + u32::from(self.shape.writers)
    }

    /// The zone to empty: of those that are full, all settled and not entirely valid, the one with the least to move.
    pub fn victim(&self) -> Option<u32> {
        let zones = self.zones.iter().enumerate();
        zones
            .filter(|(_, zone)| zone.state == State::Full && zone.pending == 0)
            .filter(|(_, zone)| zone.valid > 0 && zone.valid < self.shape.zone_pages)
            .min_by_key(|(_, zone)| zone.valid)
            .map(|(number, _)| number as u32)
    }

    /// The next valid page of a zone from an offset on, with its place.
    pub fn next_valid(&self, zone: u32, from: u32) -> Option<(u32, Place)> {
        (from..self.shape.zone_pages).find_map(|offset| {
            let place = Place { zone, offset };
            self.owner(place).map(|page| (page, place))
        })
    }

    /// A zone in which nothing is left, to be reset; [`Model::reset_done`] ends it.
    pub fn take_reset(&mut self) -> Option<u32> {
        let idle = |zone: &Zone| zone.valid == 0 && zone.pending == 0 && zone.readers == 0;
        let found = self.zones.iter().position(|zone| zone.state == State::Full && idle(zone))?;
        self.zones[found].state = State::Resetting;
        Some(found as u32)
    }

    /// The reset of a zone has ended; one that cannot be reset is not used any more.
    pub fn reset_done(&mut self, number: u32, done: bool) {
        let Some(zone) = self.zones.get_mut(number as usize).filter(|zone| zone.state == State::Resetting)
        else {
            return;
        };
        zone.state = if done { State::Empty } else { State::Bad };
        if done {
            zone.written = 0;
            self.empty += 1;
            self.counters.resets += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn shape(pages: u32) -> Shape {
        Shape { pages, zones: 12, zone_pages: 8, writers: 2, reserve_zones: 2 }
    }

    #[test]
    fn a_device_that_leaves_no_room_to_reclaim_is_refused_with_the_most_that_fits() {
        assert_eq!(shape(1).most_pages(), 48);
        assert!(shape(48).check().is_ok());
        let refused = Shape { pages: 49 << 8, zone_pages: 2 << 8, zones: 30, ..shape(0) };
        let text = refused.check().unwrap_err();
        assert!(text.contains("30 zones of 2 MiB") && text.contains("at most 48 MiB"), "{text}");
    }

    #[test]
    fn a_page_that_is_written_again_while_it_is_moved_stays_where_it_was_written() {
        let mut model = Model::new(shape(40)).unwrap();
        let old = model.allocate(0, 1).unwrap().first;
        model.written(7, old);
        let copy = model.allocate(model.mover(), 1).unwrap().first;
        let new = model.allocate(0, 1).unwrap().first;
        model.written(7, new);
        assert!(!model.moved(7, old, copy));
        assert_eq!((model.lookup(7), model.owner(copy), model.mapped()), (Some(new), None, 1));
    }

    #[test]
    fn a_zone_with_a_reader_or_a_write_under_way_is_not_reset() {
        let mut model = Model::new(shape(40)).unwrap();
        let run = model.allocate(0, 8).unwrap();
        assert_eq!(run.pages, 8);
        for n in 0..8 {
            assert_eq!(model.take_reset(), None);
            model.failed(run.place(n));
        }
        model.pin(run.first.zone);
        assert_eq!(model.take_reset(), None);
        model.unpin(run.first.zone);
        assert_eq!(model.take_reset(), Some(run.first.zone));
        assert_eq!(model.empty_zones(), 11);
        model.reset_done(run.first.zone, true);
        assert_eq!(model.empty_zones(), 12);
    }

    /// An SSD in the test's memory: what each place holds, and each zone's write pointer.
    struct Flash {
        content: HashMap<Place, (u32, u64)>,
        pointers: Vec<u32>,
        zone_pages: u32,
    }

    impl Flash {
        fn write(&mut self, place: Place, what: (u32, u64)) {
            assert_eq!(self.pointers[place.zone as usize], place.offset, "not at the write pointer");
            self.pointers[place.zone as usize] += 1;
            self.content.insert(place, what);
        }

        fn reset(&mut self, zone: u32) {
            self.pointers[zone as usize] = 0;
            for offset in 0..self.zone_pages {
                self.content.remove(&Place { zone, offset });
            }
        }
    }

    /// Moves the pages of victims and resets zones until a user's writer can go on.
    fn reclaim(model: &mut Model, flash: &mut Flash) {
        while let Some(zone) = model.take_reset() {
            flash.reset(zone);
            model.reset_done(zone, true);
        }
        let Some(victim) = model.victim() else { return };
        let mut from = 0;
        while let Some((page, place)) = model.next_valid(victim, from) {
            let copy = flash.content[&place];
            assert_eq!(copy.0, page);
            let to = model.allocate(model.mover(), 1).expect("the reserve is for this").first;
            flash.write(to, copy);
            assert!(model.moved(page, place, to));
            from = place.offset + 1;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Against a plain map: every page reads as last written, whatever is overwritten, discarded and moved, with the device
        /// as full as it may be; and no writer ever waits for ever.
        #[test]
        fn every_page_reads_as_it_was_last_written(ops in prop::collection::vec((0u32..48, 1u32..6, 0usize..2, 0u8..8), 1..600)) {
            let mut model = Model::new(shape(48)).unwrap();
            let mut flash = Flash { content: HashMap::new(), pointers: vec![0; 12], zone_pages: 8 };
            let mut known: HashMap<u32, u64> = HashMap::new();
            for (turn, (page, count, writer, what)) in ops.into_iter().enumerate() {
                let count = count.min(48 - page);
                if what == 0 {
                    for page in page..page + count {
                        prop_assert_eq!(model.discard(page), known.remove(&page).is_some());
                    }
                } else {
                    let mut done = 0;
                    let mut patience = 0;
                    while done < count {
                        if let Some(run) = model.allocate(writer, count - done) {
                            for n in 0..run.pages {
                                flash.write(run.place(n), (page + done + n, turn as u64));
                                model.written(page + done + n, run.place(n));
                                known.insert(page + done + n, turn as u64);
                            }
                            done += run.pages;
                        } else {
                            reclaim(&mut model, &mut flash);
                            patience += 1;
                            prop_assert!(patience < 100, "no zone becomes empty");
                        }
                    }
                }
                prop_assert_eq!(model.mapped(), known.len() as u64);
                for page in 0..48 {
                    let found = model.lookup(page).map(|place| flash.content[&place]);
                    prop_assert_eq!(found, known.get(&page).map(|turn| (page, *turn)));
                }
            }
        }
    }
}
