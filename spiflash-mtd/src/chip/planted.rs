//! Bugs planted in the chip on purpose, to see that the rules' tests find them. Nothing of this is in a built program.

/// `true` where the bug is planted; a constant `false` outside tests, so that the branch is not even compiled in.
macro_rules! planted {
    ($chip:expr, $name:ident) => {{
        #[cfg(test)]
        {
            $chip.mutant == Some($crate::chip::planted::Mutant::$name)
        }
        #[cfg(not(test))]
        {
            $crate::chip::planted::absent()
        }
    }};
}
pub(super) use planted;

/// No bug is planted. (A function, so that conditions with it read as conditions.)
#[cfg(not(test))]
#[inline(always)]
pub(super) const fn absent() -> bool {
    false
}

/// Declares the mutants with what each does, for the table in docs/spi-states.md.
#[cfg(test)]
macro_rules! mutants {
    ($($name:ident: $what:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Mutant { $($name,)* }
        impl Mutant {
            pub(crate) const ALL: &[(Mutant, &str)] = &[$((Mutant::$name, $what),)*];
        }
    };
}

#[cfg(test)]
mutants! {
    WelStays: "WEL is not cleared by a program, erase or register write (QEMU m25p80)",
    WelNotNeeded: "a program needs no write enable",
    NoPageWrap: "a program goes on into the next page (QEMU m25p80)",
    ProgramOverwrites: "a program sets bits too (flashrom's dummy)",
    EraseIgnoresProtection: "an erase ignores block protection (QEMU m25p80)",
    ProgramIgnoresProtection: "a program ignores block protection",
    FrameNotChecked: "a frame cut short or too long is carried out (QEMU m25p80)",
    NeverBusy: "operations take no time (most models)",
    HearsWhileBusy: "a busy chip listens to everything",
    SuspendsRegisterWrites: "a suspend is taken as done at once, without tSUS",
    ResumeStartsOver: "a resumed erase takes its whole time again",
    ResumeForgets: "a resumed erase is done at once",
    ProgramsIntoSuspended: "a program into the sector whose erase is suspended is taken",
    SuspendWithoutProgressRule: "an erase that is suspended too soon makes progress all the same",
    ResetNeedsNoEnable: "99h resets without 66h",
    EnableLastsForever: "66h arms the reset also over other frames",
    ResetKeepsModes: "a reset keeps WEL and the address mode",
    SleepHears: "deep power-down hears status reads",
    WakesAtOnce: "a release takes no time",
    EraseNotAligned: "an erase begins at its address, not at its sector",
    EraseTooLarge: "a sector erase erases 64 KiB",
    ReadStopsAtEnd: "a read ends at the end of the array, and does not go on at 0",
    QuadWithoutEnable: "commands on four lines work with QE = 0",
    VolatileIsStored: "a register write after 50h survives the power",
    OneTimeRewritable: "one-time bits can be set back",
    PinIgnored: "WP# low does not protect the registers",
    SecurityNotLocked: "a locked security register can be programmed",
    PowerLossFinishes: "what is under way when power goes is finished",
    PowerLossForgets: "what is under way when power goes leaves no trace",
    PowerKeepsModes: "a loss of power keeps WEL and the address mode",
    ExtendedAddressIgnored: "the extended address register is ignored",
    FourByteModeIgnored: "B7h does not change the address bytes",
    LocksIgnored: "single locks do not protect",
    ComplementIgnored: "CMP is ignored",
    BurstIgnored: "77h does not wrap reads",
    WordsStay: "AAI programs every word at the first one's address",
    DummyIgnored: "the dummy clocks of a tuned read are those of the reset state",
    SkewIgnored: "dummy clocks that are not whole bytes are rounded up",
    WordBreaksWel: "WEL falls after each AAI word",
    RamNeedsErase: "an MRAM only clears bits",
}
