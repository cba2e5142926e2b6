//! Which bytes are protected: the ranges of the block-protection bits, and the locks of single blocks.
//!
//! The invariant: a range lies within the array and is one run of bytes that begins or ends with the array; the units of
//! the locks cover the array without gaps, in order.
//!
//! Sources: the tables "Status Register Memory Protection" of Winbond's data sheets, "Protected Area Sizes" of Macronix,
//! Micron and GigaDevice, "Block Protection" of Infineon, ISSI, SST, Everspin, Infineon (FRAM) and Fujitsu. All of them
//! follow one rule: a BP value of n protects the n-th power of two of some unit, the greatest value all.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How a part's block-protection bits name a range; what differs between parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeRules {
    /// How many BP bits there are.
    pub bp_bits: u8,
    /// What a BP value of 1 protects, in bytes; each further value protects twice as much, the greatest all.
    pub unit_bytes: u64,
    /// Whether there is a TB bit, which moves the range to the other end.
    #[serde(default)]
    pub tb: bool,
    /// Whether the range begins with address 0 while TB is 0 (or missing); else it ends with the array.
    #[serde(default)]
    pub from_zero: bool,
    /// Whether there is a SEC bit, which makes the unit small.
    #[serde(default)]
    pub sec: bool,
    /// The unit while SEC is 1.
    #[serde(default = "four_kib")]
    pub sec_unit_bytes: u64,
    /// The most that is protected while SEC is 1, but for the greatest BP value.
    #[serde(default = "thirty_two_kib")]
    pub sec_most_bytes: u64,
    /// What the CMP bit does.
    #[serde(default)]
    pub cmp: Complement,
}

fn four_kib() -> u64 {
    4096
}

fn thirty_two_kib() -> u64 {
    32 * 1024
}

/// What a CMP bit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Complement {
    /// There is none.
    #[default]
    None,
    /// What was protected is not, and the rest is.
    Range,
    /// It inverts the BP bits before they are looked at.
    Bits,
}

/// The values of the bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RangeBits {
    /// BP, bit 0 lowest.
    pub bp: u8,
    /// Top or bottom.
    pub tb: bool,
    /// Sectors instead of blocks.
    pub sec: bool,
    /// Complement.
    pub cmp: bool,
}

impl RangeRules {
    /// The greatest BP value.
    pub fn most_bp(&self) -> u8 {
        u8::MAX.checked_shr(8u32.saturating_sub(u32::from(self.bp_bits))).unwrap_or(0)
    }

    /// The protected bytes of an array of `size_bytes`; empty where nothing is. Bits that the part has not are not looked at.
    pub fn range(&self, size_bytes: u64, bits: RangeBits) -> Range<u64> {
        let mut bp = bits.bp & self.most_bp();
        if self.cmp == Complement::Bits && bits.cmp {
            bp ^= self.most_bp();
        }
        let bytes = self.bytes(size_bytes, bp, self.sec && bits.sec);
        let from_zero = self.from_zero ^ (self.tb && bits.tb);
        if self.cmp == Complement::Range && bits.cmp {
            run(size_bytes, size_bytes - bytes, !from_zero)
        } else {
            run(size_bytes, bytes, from_zero)
        }
    }

    /// How many bytes a BP value protects.
    fn bytes(&self, size_bytes: u64, bp: u8, sec: bool) -> u64 {
        if bp == 0 {
            return 0;
        }
        if bp == self.most_bp() {
            return size_bytes;
        }
        let (unit, most) =
            if sec { (self.sec_unit_bytes, self.sec_most_bytes) } else { (self.unit_bytes, size_bytes) };
        let factor = 1u64.checked_shl(u32::from(bp) - 1).unwrap_or(u64::MAX);
        unit.saturating_mul(factor).min(most).min(size_bytes)
    }

    /// All combinations of the bits that the part has.
    pub fn combinations(&self) -> impl Iterator<Item = RangeBits> + '_ {
        let flag = |has: bool| if has { &[false, true][..] } else { &[false][..] };
        (0..=self.most_bp()).flat_map(move |bp| {
            flag(self.tb).iter().flat_map(move |tb| {
                flag(self.sec).iter().flat_map(move |sec| {
                    let cmps = flag(self.cmp != Complement::None).iter();
                    cmps.map(move |cmp| RangeBits { bp, tb: *tb, sec: *sec, cmp: *cmp })
                })
            })
        })
    }
}

/// A run of bytes at one end of the array.
fn run(size_bytes: u64, bytes: u64, from_zero: bool) -> Range<u64> {
    match bytes {
        0 => 0..0,
        _ if from_zero => 0..bytes,
        _ => size_bytes - bytes..size_bytes,
    }
}

/// The locks of single blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LockRules {
    /// One volatile bit for each 4 KiB sector of the first and the last 64 KiB block, and for each 64 KiB block between
    /// (Winbond W25Q128JV, GigaDevice; data sheet section "Individual Block Memory Protection").
    Volatile {
        /// The register bit that, when 1, makes these locks count instead of the ranges. None: they count always.
        selected_by: Option<String>,
    },
    /// The block-protection register of SST26: a bit that locks writes for each erase block, and one that locks reads for
    /// each of the 8 KiB blocks. 42h writes it, most significant byte first.
    Register,
}

/// The bits of a block in the block-protection register of SST26.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockBits {
    /// The bit that locks programs and erases.
    pub write: u16,
    /// The bit that locks reads; the 8 KiB blocks only.
    pub read: Option<u16>,
}

const SECTOR: u64 = 4096;
const BLOCK: u64 = 64 * 1024;
const PARAMETER: u64 = 8 * 1024;

impl LockRules {
    /// The blocks that have a lock each, by address.
    pub fn units(&self, size_bytes: u64) -> Vec<Range<u64>> {
        let mut units = Vec::new();
        let mut add = |bytes: u64, to: u64| {
            let mut at = units.last().map_or(0, |last: &Range<u64>| last.end);
            while at < to {
                units.push(at..at.saturating_add(bytes).min(to));
                at = at.saturating_add(bytes);
            }
        };
        let after_last_block = size_bytes.saturating_sub(BLOCK);
        match self {
            LockRules::Volatile { .. } => {
                add(SECTOR, BLOCK.min(size_bytes));
                add(BLOCK, after_last_block);
            }
            LockRules::Register => {
                add(PARAMETER, (BLOCK / 2).min(size_bytes));
                add(BLOCK / 2, BLOCK.min(size_bytes));
                add(BLOCK, after_last_block);
                add(BLOCK / 2, size_bytes.saturating_sub(BLOCK / 2));
            }
        }
        let smallest = if matches!(self, LockRules::Register) { PARAMETER } else { SECTOR };
        add(smallest, size_bytes);
        units
    }

    /// Whether all blocks are locked after power-up and reset. They are, in all parts known.
    pub fn power_up_locked(&self) -> bool {
        true
    }

    /// The register bit that makes these locks count; `None`: they count always.
    pub fn selected_by(&self) -> Option<&str> {
        match self {
            LockRules::Volatile { selected_by } => selected_by.as_deref(),
            LockRules::Register => None,
        }
    }

    /// For each unit, its bits in the block-protection register (SST26VF064B, table "Block-Protection Register"): from bit
    /// 0 on the 64 KiB blocks by address, then the lower and the upper 32 KiB block, then the 8 KiB blocks by address with
    /// two bits each, the write lock first. Empty where there is no such register.
    pub fn register_bits(&self, size_bytes: u64) -> Vec<LockBits> {
        if !matches!(self, LockRules::Register) {
            return Vec::new();
        }
        let units = self.units(size_bytes);
        let count = |bytes: u64| units.iter().filter(|unit| unit.end - unit.start == bytes).count() as u16;
        let (mut next_block, mut next_half) = (0, count(BLOCK));
        let mut next_parameter = count(BLOCK) + count(BLOCK / 2);
        let mut take = |unit: &Range<u64>| match unit.end - unit.start {
            PARAMETER => {
                next_parameter += 2;
                LockBits { write: next_parameter - 2, read: Some(next_parameter - 1) }
            }
            bytes => {
                let next = if bytes == BLOCK { &mut next_block } else { &mut next_half };
                *next += 1;
                LockBits { write: *next - 1, read: None }
            }
        };
        units.iter().map(&mut take).collect()
    }

    /// The block-protection register of these locks, most significant byte first; read locks read 0.
    pub fn to_register(&self, size_bytes: u64, locks: &[bool]) -> Vec<u8> {
        let mut bytes = vec![0; self.register_bytes(size_bytes)];
        for (bits, locked) in self.register_bits(size_bytes).iter().zip(locks) {
            let at = bytes.len().wrapping_sub(1 + usize::from(bits.write / 8));
            if let Some(byte) = bytes.get_mut(at) {
                *byte |= u8::from(*locked) << (bits.write % 8);
            }
        }
        bytes
    }

    /// The locks of a written block-protection register, most significant byte first; bytes that did not come are 0.
    pub fn from_register(&self, size_bytes: u64, bytes: &[u8]) -> Vec<bool> {
        let count = self.register_bytes(size_bytes);
        let bit_of = |bits: &LockBits| {
            let at = count.wrapping_sub(1 + usize::from(bits.write / 8));
            bytes.get(at).is_some_and(|byte| byte >> (bits.write % 8) & 1 == 1)
        };
        self.register_bits(size_bytes).iter().map(bit_of).collect()
    }

    /// The bytes of the block-protection register; 0 where there is none.
    pub fn register_bytes(&self, size_bytes: u64) -> usize {
        let bits = self.register_bits(size_bytes);
        let count: usize = bits.iter().map(|bits| 1 + usize::from(bits.read.is_some())).sum();
        count.div_ceil(8)
    }
}
