//! A map of a chip's array: what each of its sectors holds, how worn it is, what protects it.
//!
//! The invariant: the map is of the cells as they are, without the errors of a read.

use crate::array::Unit;
use crate::chip::Chip;
use crate::op::EraseUnit;
use crate::reliability::Marginal;
use serde::Serialize;
use std::fmt;

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// Every byte is FFh.
    Erased,
    /// Some pages hold something else.
    Partly,
    /// Every page does.
    Programmed,
}

/// A sector: what the smallest erase erases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sector {
    /// Its first address.
    pub address: u64,
    /// What it holds.
    pub content: Content,
    /// Bytes that are not FFh.
    pub bytes_used: u64,
    /// Erases.
    pub cycles: u32,
    /// Whether it has had as many erases as it endures.
    pub worn: bool,
    /// Whether any of it is protected against program and erase.
    pub protected: bool,
    /// Pages with cells near the read level, left by an interrupted program or erase.
    pub marginal_pages: u32,
}

/// The map.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArrayMap {
    /// The part's name.
    pub part: String,
    /// Bytes that a sector covers (of a NAND: without the spare bytes).
    pub sector_bytes: u64,
    /// The sectors, by address.
    pub sectors: Vec<Sector>,
}

/// Sectors in a line of the text.
const COLUMNS: usize = 64;

impl ArrayMap {
    /// The map of a chip.
    pub fn of(chip: &Chip) -> ArrayMap {
        let (part, array) = (chip.part(), chip.array());
        // Spare bytes have no addresses of their own.
        let sector_bytes = match &part.nand {
            Some(_) => part.erase_bytes(EraseUnit::NandBlock).unwrap_or(array.unit_bytes() as u64),
            None => array.unit_bytes() as u64,
        };
        let locks = chip.locks();
        let range = chip.protected_range();
        let ranged = !range.is_empty();
        let sectors = (0..array.unit_count()).map(|index| {
            let address = u64::from(index) * sector_bytes;
            let place = address..address + sector_bytes;
            let protected = if ranged || locks.is_empty() {
                range.start < place.end && place.start < range.end
            } else {
                chip.is_protected(&place)
            };
            let fresh = Unit::default();
            let unit = array.unit(index).unwrap_or(&fresh);
            let (bytes_used, pages_used) = used(unit, array.page_bytes());
            let pages = array.unit_bytes().div_ceil(array.page_bytes());
            let content = match pages_used {
                0 => Content::Erased,
                used if used == pages => Content::Programmed,
                _ => Content::Partly,
            };
            let endures = chip.reliability().endurance(index).unwrap_or(part.endurance.cycles as f64);
            let is_marginal = |page: &&crate::array::PageMeta| page.marginal != Marginal::None;
            Sector {
                address,
                content,
                bytes_used,
                cycles: unit.cycles,
                worn: endures > 0.0 && f64::from(unit.cycles) >= endures,
                protected,
                marginal_pages: unit.pages().unwrap_or(&[]).iter().filter(is_marginal).count() as u32,
            }
        });
        ArrayMap { part: part.name.clone(), sector_bytes, sectors: sectors.collect() }
    }
}

/// Bytes that are not FFh, and pages with such.
fn used(unit: &Unit, page_bytes: usize) -> (u64, usize) {
    let Some(data) = unit.data() else { return (0, 0) };
    let in_page = |page: &[u8]| page.iter().filter(|byte| **byte != 0xFF).count() as u64;
    let counts: Vec<u64> = data.chunks(page_bytes).map(in_page).collect();
    (counts.iter().sum(), counts.iter().filter(|count| **count > 0).count())
}

impl Sector {
    /// One character; the first that is true: marginal, worn, protected, what it holds.
    fn symbol(&self) -> char {
        let (plain, protected) = match self.content {
            Content::Erased => ('.', 'e'),
            Content::Partly => ('+', 'p'),
            Content::Programmed => ('#', 'P'),
        };
        match self {
            sector if sector.marginal_pages > 0 => '?',
            sector if sector.worn => 'w',
            sector if sector.protected => protected,
            _ => plain,
        }
    }
}

impl fmt::Display for ArrayMap {
    /// Lines of 64 sectors; lines that repeat the one before are left out, and a `*` says so.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "{}: {} sectors of {} bytes", self.part, self.sectors.len(), self.sector_bytes)?;
        writeln!(to, ". erased  + partly programmed  # programmed  (protected: e p P)  w worn  ? marginal")?;
        let width = format!("{:x}", self.sectors.len() as u64 * self.sector_bytes).len();
        let (mut last, mut skipped) = (String::new(), false);
        let lines = self.sectors.chunks(COLUMNS).count();
        for (number, row) in self.sectors.chunks(COLUMNS).enumerate() {
            let line: String = row.iter().map(Sector::symbol).collect();
            if line == last && number + 1 < lines {
                if !std::mem::replace(&mut skipped, true) {
                    writeln!(to, "*")?;
                }
                continue;
            }
            skipped = false;
            let address = row.first().map_or(0, |sector| sector.address);
            writeln!(to, "{address:0width$x} {line}")?;
            last = line;
        }
        let count = |is: fn(&Sector) -> bool| self.sectors.iter().filter(|sector| is(sector)).count();
        let most = self.sectors.iter().map(|sector| sector.cycles).max().unwrap_or(0);
        write!(
            to,
            "{} erased, {} partly programmed, {} programmed; {} protected, {} worn, {} marginal; at most {most} erases",
            count(|sector| sector.content == Content::Erased),
            count(|sector| sector.content == Content::Partly),
            count(|sector| sector.content == Content::Programmed),
            count(|sector| sector.protected),
            count(|sector| sector.worn),
            count(|sector| sector.marginal_pages > 0),
        )
    }
}
