//! What an interrupted program or erase leaves: contents, and cells near the read level.
//!
//! Every cell has its own moment within an operation at which it crosses the read level. Before it, the cell holds what it did;
//! after it, what it should. Cells whose moment is within `marginal_band` of the interruption read now so, now so: the sooner
//! they would have crossed, the more often as they should. A vendor promises nothing of this; the phases of a NOR erase are
//! those that vendors describe. docs/spi-error-model.md has the half states.
//!
//! The invariant: an interrupted program clears bits of its request and no others, and a read of a page with a [`Marginal`]
//! state flips no bit outside what the operation worked on. The same interruption with the same draw leaves the same.

use super::random::{Use, hash, unit};
use super::{PagePlace, Reliability};
use serde::{Deserialize, Serialize};

/// What an interrupted operation left in a page: cells near the read level. It ends with a complete erase of the block; that of a
/// program also with a complete program of the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub enum Marginal {
    /// Nothing.
    #[default]
    None,
    /// A program of the bytes `start..end` of the page was interrupted. A cell there that holds 0 may read 1: also one that
    /// held 0 before, if the program wrote a 0 over it.
    Program {
        /// How far it was, 0 to 1.
        fraction: f32,
        /// The first byte in which it had bits to clear.
        start: u32,
        /// The byte after the last such.
        end: u32,
        /// The draw it was interrupted with.
        draw: u64,
    },
    /// An erase was interrupted.
    Erase {
        /// How far it was, 0 to 1.
        fraction: f32,
        /// The draw it was interrupted with.
        draw: u64,
    },
}

impl Marginal {
    /// Both states of a page in one: an erase's outweighs a program's, since it is everywhere; of two programs the later draw
    /// stays, over the bytes of both.
    pub fn merged_with(self, later: Marginal) -> Marginal {
        use Marginal::{Erase, None, Program};
        match (self, later) {
            (Program { start: s1, end: e1, .. }, Program { fraction, start: s2, end: e2, draw }) => {
                Program { fraction, start: s1.min(s2), end: e1.max(e2), draw }
            }
            (erase @ Erase { .. }, None | Program { .. }) => erase,
            (earlier, None) => earlier,
            (_, later) => later,
        }
    }
}

/// Where an interrupted erase was.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Cells that hold 1 are being programmed, so that all are alike. How far, 0 to 1.
    Preprogram(f64),
    /// All cells are on their way from 0 to 1.
    Pulse(f64),
    /// All cells are at 1; those erased too far are being recovered.
    Recovery(f64),
}

/// A fraction that came from anywhere.
fn sane(fraction: f64) -> f64 {
    if fraction.is_nan() { 0.0 } else { fraction.clamp(0.0, 1.0) }
}

impl Reliability {
    fn phase(&self, fraction: f64) -> Phase {
        let (before, after) = (self.params().erase_preprogram_share, self.params().erase_recovery_share);
        if fraction < before {
            Phase::Preprogram(fraction / before)
        } else if fraction < 1.0 - after {
            Phase::Pulse((fraction - before) / (1.0 - before - after))
        } else {
            Phase::Recovery((fraction - (1.0 - after)) / after)
        }
    }

    /// When a program of `start..end` brings a bit of the page across the read level, from 0 to 1 of its time.
    fn program_moment(&self, place: PagePlace, draw: u64, (start, end): (u32, u32), bit: u64) -> f64 {
        let own = unit(hash(self.seed, Use::CutProgram, [u64::from(place.page), draw, bit]));
        let byte = (bit / 8) as f64 - f64::from(start);
        let in_turn = (byte + own) / f64::from(end.saturating_sub(start).max(1));
        let share = self.params().program_sequential_share;
        share * in_turn + (1.0 - share) * own
    }

    fn erase_moment(&self, place: PagePlace, draw: u64, bit: u64) -> f64 {
        unit(hash(self.seed, Use::CutErase, [u64::from(place.page), draw, bit]))
    }

    /// What is in a page after `fraction` of a program that was to make `old` into `new` (both the page from its first byte;
    /// bits that `new` has and `old` has not are no request: programming only clears). 0 and below has done nothing, 1 and
    /// above all. `draw` tells interruptions apart.
    pub fn interrupted_program(
        &self,
        place: PagePlace,
        old: &[u8],
        new: &[u8],
        fraction: f64,
        draw: u64,
    ) -> (Vec<u8>, Marginal) {
        let fraction = sane(fraction);
        let mut page = old.to_vec();
        let request = |at: usize| old.get(at).zip(new.get(at)).map_or(0, |(old, new)| old & !new);
        let bytes = || (0..old.len()).filter(|at| request(*at) != 0);
        let (Some(first), Some(last)) = (bytes().next(), bytes().next_back()) else {
            return (page, Marginal::None);
        };
        let range = (first as u32, last as u32 + 1);
        if fraction == 0.0 {
            return (page, Marginal::None);
        }
        let band = self.params().marginal_band;
        let mut is_marginal = false;
        for at in bytes() {
            for bit in (0..8).filter(|bit| request(at) >> bit & 1 == 1) {
                let ahead = self.program_moment(place, draw, range, at as u64 * 8 + bit) - fraction;
                let near = ahead.abs() < band && fraction < 1.0;
                is_marginal |= near;
                if near || ahead < 0.0 || fraction == 1.0 {
                    // A cell near the level is held as the 0 it was to be; reading it tells otherwise at times.
                    page[at] &= !(1 << bit);
                }
            }
        }
        let state = Marginal::Program { fraction: fraction as f32, start: range.0, end: range.1, draw };
        (page, if is_marginal { state } else { Marginal::None })
    }

    /// What is in a page, given from its first byte, after `fraction` of its block's erase. Call it for each page of the block
    /// with the same draw. 0 and below has done nothing, and what the page had stays; 1 and above has done all. Between, three half
    /// states:
    ///
    /// - before `erase_preprogram_share`: more and more bits are 0, those that were stay so;
    /// - then, before 1 - `erase_recovery_share`: every cell came from 0, and more and more are 1;
    /// - then: all bits are 1, and some cells read now so, now so, less with time.
    pub fn interrupted_erase(&self, place: PagePlace, page: &mut [u8], fraction: f64, draw: u64) -> Marginal {
        let fraction = sane(fraction);
        if fraction == 0.0 {
            return Marginal::None;
        }
        if fraction == 1.0 {
            page.fill(0xff);
            return Marginal::None;
        }
        let phase = self.phase(fraction);
        for (at, byte) in page.iter_mut().enumerate() {
            let across = |progress: f64| {
                (0..8).fold(0u8, |mask, bit| {
                    let crossed = self.erase_moment(place, draw, at as u64 * 8 + bit) < progress;
                    mask | u8::from(crossed) << bit
                })
            };
            *byte = match phase {
                Phase::Preprogram(progress) => *byte & !across(progress),
                Phase::Pulse(progress) => across(progress),
                Phase::Recovery(_) => 0xff,
            };
        }
        let noisy = match phase {
            Phase::Recovery(_) => self.params().erase_weak_share > 0.0,
            _ => self.params().marginal_band > 0.0,
        };
        if noisy { Marginal::Erase { fraction: fraction as f32, draw } } else { Marginal::None }
    }

    /// Adds the bits of `data` that a marginal state makes read the other way in this read.
    pub(super) fn flickering_bits(
        &self,
        place: PagePlace,
        marginal: Marginal,
        offset: usize,
        data: &[u8],
        read_index: u64,
        wrong: &mut Vec<u64>,
    ) {
        let bytes = |start: u64, end: u64| {
            (0..data.len() as u64).filter(move |at| (start..end).contains(&at.saturating_add(offset as u64)))
        };
        let (draw, range) = match marginal {
            Marginal::None => return,
            Marginal::Program { start, end, draw, .. } => (draw, bytes(start.into(), end.into())),
            Marginal::Erase { draw, .. } => (draw, bytes(0, u64::MAX)),
        };
        for at in range {
            let Some(byte) = data.get(at as usize) else { continue };
            for bit in 0..8 {
                let cell = at.saturating_add(offset as u64).saturating_mul(8).saturating_add(bit);
                let holds_one = byte >> bit & 1 == 1;
                let share = self.share_of_wrong_reads(place, marginal, cell, holds_one);
                let parts = [u64::from(place.page), draw, cell, read_index];
                if share > 0.0 && unit(hash(self.seed, Use::Flicker, parts)) < share {
                    wrong.push(at * 8 + bit);
                }
            }
        }
    }

    /// How often a cell of the page reads other than what it is held to hold.
    fn share_of_wrong_reads(&self, place: PagePlace, marginal: Marginal, cell: u64, holds_one: bool) -> f64 {
        let band = self.params().marginal_band;
        // From 1, just about to leave the old state, to 0, just arrived in the new one; none outside the band.
        let old_share =
            |ahead: f64| if ahead.abs() < band { Some((ahead + band) / (2.0 * band)) } else { None };
        match marginal {
            Marginal::None => 0.0,
            Marginal::Program { fraction, start, end, draw } => {
                let ahead = self.program_moment(place, draw, (start, end), cell) - f64::from(fraction);
                if holds_one { 0.0 } else { old_share(ahead).unwrap_or(0.0) }
            }
            Marginal::Erase { fraction, draw } => {
                let moment = self.erase_moment(place, draw, cell);
                match self.phase(sane(f64::from(fraction))) {
                    // The share of reads as 1: the old state here, the new one in the pulse.
                    Phase::Preprogram(progress) => old_share(moment - progress),
                    Phase::Pulse(progress) => old_share(moment - progress).map(|share| 1.0 - share),
                    Phase::Recovery(progress) => {
                        let weak = moment < self.params().erase_weak_share * (1.0 - progress);
                        weak.then_some(0.5)
                    }
                }
                .map_or(0.0, |ones| if holds_one { 1.0 - ones } else { ones })
            }
        }
    }
}
