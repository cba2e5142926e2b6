//! The registers of a chip: working values, stored values, and which bit is what.
//!
//! The invariant: a bit changes only as its [`Keep`] allows: one-time bits leave their factory value once and never return,
//! read-only bits are the chip's, volatile bits never reach what survives the power.

use crate::op::Reg;
use crate::part::{Keep, Part, RegisterSpec};
use serde::{Deserialize, Serialize};

/// How many registers [`Reg`] names.
const REGISTERS: usize = 15;

macro_rules! roles {
    ($($(#[$doc:meta])* $role:ident = $name:literal),* $(,)?) => {
        /// What a bit of a register does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Role { $($(#[$doc])* $role),* }

        /// The names that part files give to the bits that the model knows.
        pub const KNOWN: &[(&str, Role)] = &[$(($name, Role::$role)),*];
    };
}

roles! {
    /// 1 while a program, erase or write is under way.
    Busy = "busy",
    /// The same again (SST26).
    BusyToo = "busy_too",
    /// Its inverse (Micron's flag status register).
    Ready = "ready",
    /// Write enable latch.
    Wel = "wel",
    /// Block protection.
    Bp0 = "bp0",
    /// Block protection.
    Bp1 = "bp1",
    /// Block protection.
    Bp2 = "bp2",
    /// Block protection.
    Bp3 = "bp3",
    /// Block protection.
    Bp4 = "bp4",
    /// The protected range is at the bottom.
    Tb = "tb",
    /// The protected range counts in 4 KiB sectors.
    Sec = "sec",
    /// All but the range is protected.
    Cmp = "cmp",
    /// Status register protection: with WP# low (SRP0, SRWD).
    Srp0 = "srp0",
    /// Status register protection until power is lost, or for good.
    Srp1 = "srp1",
    /// Block-protection lock-down of SST25: with WP# low, the protection bits cannot change.
    Bpl = "bpl",
    /// Single locks instead of a range.
    Wps = "wps",
    /// Commands on four lines are enabled.
    Qe = "qe",
    /// Something is suspended.
    Sus = "sus",
    /// An erase is suspended.
    SusErase = "sus_e",
    /// A program is suspended.
    SusProgram = "sus_p",
    /// 4-byte addresses after power-up.
    Adp = "adp",
    /// 4-byte addresses now.
    Ads = "ads",
    /// The same, as Macronix calls it.
    FourByte = "4byte",
    /// The last erase failed.
    EraseError = "e_err",
    /// The last program failed.
    ProgramError = "p_err",
    /// The last program or erase met a protected block.
    ProtectionError = "prot_err",
    /// Auto address increment.
    Aai = "aai",
    /// QPI mode.
    Qpi = "qpi",
    /// The lowest bit of the extended address; the others follow it.
    Ea0 = "ea0",
    /// The secured one-time area is locked by its user.
    SecLock = "sec_lock",
    /// NAND: the last erase failed.
    EraseFail = "e_fail",
    /// NAND: the last program failed.
    ProgramFail = "p_fail",
    /// NAND: what the code found, its low bit.
    Ecc0 = "ecc0",
    /// Its high bit.
    Ecc1 = "ecc1",
    /// NAND: the table of links is full.
    LinksFull = "lut_f",
    /// NAND: the one-time pages are locked.
    OtpLock = "otp_l",
    /// NAND: page accesses go to the one-time pages.
    OtpEnable = "otp_e",
    /// NAND: the code is on.
    EccEnable = "ecc_e",
    /// NAND: a read ends with the page (1) or goes on to the next (0).
    Buffer = "buf",
}

const ROLES: usize = KNOWN.len();

/// A bit of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitRef {
    /// The register.
    pub register: Reg,
    /// 0 to 7.
    pub bit: u8,
}

/// Where each role is in a part.
#[derive(Debug, Clone)]
pub struct RoleMap([Option<BitRef>; ROLES]);

impl RoleMap {
    /// The bits of a part, by name.
    pub fn new(part: &Part) -> RoleMap {
        let mut map = [None; ROLES];
        for (slot, (name, _)) in map.iter_mut().zip(KNOWN) {
            *slot = find_bit(part, name);
        }
        RoleMap(map)
    }

    /// Where a role is, if the part has it.
    pub fn get(&self, role: Role) -> Option<BitRef> {
        self.0.get(role as usize).copied().flatten()
    }
}

/// The bit of a name in a part.
pub fn find_bit(part: &Part, name: &str) -> Option<BitRef> {
    part.registers.iter().find_map(|(register, spec)| {
        let bit = spec.bits.iter().position(|bit| bit.name == name)?;
        Some(BitRef { register: *register, bit: bit as u8 })
    })
}

/// The values of all registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    working: [u8; REGISTERS],
    stored: [u8; REGISTERS],
}

impl Registers {
    /// As delivered.
    pub fn new(part: &Part) -> Registers {
        let mut registers = Registers { working: [0; REGISTERS], stored: [0; REGISTERS] };
        for (register, spec) in &part.registers {
            registers.stored[*register as usize] = spec.factory;
        }
        registers.power_up(part);
        registers
    }

    /// Power comes, or a reset: what is stored, and volatile bits as delivered.
    pub fn power_up(&mut self, part: &Part) {
        for (register, spec) in &part.registers {
            let at = *register as usize;
            self.working[at] = spec.bits.iter().enumerate().fold(0, |value, (bit, what)| {
                let from = match what.keep {
                    Keep::Nonvolatile | Keep::Otp => self.stored[at],
                    Keep::Volatile | Keep::ReadOnly => spec.factory,
                };
                value | (from & 1 << bit)
            });
        }
    }

    /// Whether what is stored is the same.
    pub fn same_stored(&self, other: &Registers) -> bool {
        self.stored == other.stored
    }

    /// What a register reads as.
    pub fn value(&self, register: Reg) -> u8 {
        self.working[register as usize]
    }

    /// What of a register survives the power.
    pub fn stored(&self, register: Reg) -> u8 {
        self.stored[register as usize]
    }

    /// A bit.
    pub fn bit(&self, at: BitRef) -> bool {
        self.value(at.register) >> at.bit & 1 == 1
    }

    /// A bit, as it is after the power was gone.
    pub fn stored_bit(&self, at: BitRef) -> bool {
        self.stored[at.register as usize] >> at.bit & 1 == 1
    }

    /// The chip sets a bit of its own: read-only ones, and those that follow its state.
    pub fn set_bit(&mut self, at: BitRef, on: bool) {
        let value = &mut self.working[at.register as usize];
        *value = *value & !(1 << at.bit) | u8::from(on) << at.bit;
    }

    /// The chip sets a nonvolatile bit of its own.
    pub fn store_bit(&mut self, at: BitRef, on: bool) {
        self.set_bit(at, on);
        let value = &mut self.stored[at.register as usize];
        *value = *value & !(1 << at.bit) | u8::from(on) << at.bit;
    }

    /// All bits, whatever their keep.
    #[cfg(test)]
    pub(crate) fn force(&mut self, register: Reg, value: u8) {
        (self.working[register as usize], self.stored[register as usize]) = (value, value);
    }

    /// What a write of `value` would leave: working and stored value.
    fn after_write(&self, spec: &RegisterSpec, register: Reg, value: u8, volatile: bool) -> (u8, u8) {
        let (mut working, mut stored) = (self.working[register as usize], self.stored[register as usize]);
        for (bit, what) in spec.bits.iter().enumerate() {
            let mask = 1 << bit;
            let set = |old: u8| old & !mask | value & mask;
            match what.keep {
                Keep::ReadOnly => {}
                Keep::Volatile => working = set(working),
                Keep::Nonvolatile if volatile => working = set(working),
                Keep::Nonvolatile => (working, stored) = (set(working), set(stored)),
                Keep::Otp if volatile || (stored ^ spec.factory) & mask != 0 => {}
                Keep::Otp => (working, stored) = (set(working), set(stored)),
            }
        }
        (working, stored)
    }

    /// Whether a write would change what survives the power: then it takes the time of a status write. A write of the same
    /// value takes it too; only a register without a nonvolatile bit does not.
    pub fn is_nonvolatile(part: &Part, register: Reg) -> bool {
        let keeps = |what: &crate::part::BitSpec| matches!(what.keep, Keep::Nonvolatile | Keep::Otp);
        part.registers.get(&register).is_some_and(|spec| spec.bits.iter().any(keeps))
    }

    /// A write by the host; of the working value alone if `volatile`.
    pub fn write(&mut self, part: &Part, register: Reg, value: u8, volatile: bool) {
        if let Some(spec) = part.registers.get(&register) {
            let (working, stored) = self.after_write(spec, register, value, volatile);
            self.working[register as usize] = working;
            self.stored[register as usize] = stored;
        }
    }
}
