//! Bugs planted in the model on purpose, to see that the checks find them. Nothing of this is in a built program.

/// `true` where the bug is planted; a constant `false` outside tests, so that the branch is not even compiled in.
macro_rules! planted {
    ($holder:expr, $name:ident) => {{
        #[cfg(test)]
        {
            $holder.mutant == Some($crate::nand::planted::Mutant::$name)
        }
        #[cfg(not(test))]
        {
            false
        }
    }};
}
pub(crate) use planted;

/// Declares the mutants with what each does, for the table in docs/nand-model.md.
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
    GroupsOverlap: "zone z starts at die z, not at die z × dies_per_zone",
    StripeStandsStill: "every unit of a zone lies on the zone's first die",
    AppendAtZoneStart: "an append's die is that of the zone's start (as ConfZNS had it)",
    SharedWritePointer: "one write pointer for all zones (as FEMU had it)",
    UnitOnePageLate: "a unit is taken to be one page longer than it is",
    SharedChannel: "all dies are on channel 0",
    ReadTransferForgotten: "a read does not use its channel",
    WriteTransferForgotten: "a program does not use its channel",
    DieFreeTooEarly: "a die without cache register senses while its last page is still being transferred",
    CacheProgramIgnored: "a transfer always waits for the program before it",
    PlaneReadsSerial: "planes never sense on their own",
    ReadIgnoresDie: "a read does not wait for the die",
    SmallReadIgnored: "a 4 KiB read takes as long as a page",
    RetryForgotten: "read retries cost nothing",
    ProgramPerPage: "tPROG is charged per page, not per unit",
    EraseNextZone: "a reset erases on the dies of the next zone",
    EraseFirstDie: "a reset erases on the first die only",
    EraseWholeZone: "a reset erases blocks that were never written",
    EraseForgottenWhenDeferred: "a deferred erase is never charged",
    FinishFree: "a finish costs nothing",
    FinishOneShort: "a finish fills one unit too few",
    FinishNeverYields: "a fill lets nothing in between its programs",
    PaddingNotCounted: "padding is not in the statistics",
    BufferNeverFull: "a write never waits for buffer space",
    BufferFreedOnEntry: "buffer space is free again when the program starts",
    BufferNotRead: "buffered data is read from the die",
    PartialUnitLost: "a unit begun by one write and completed by the next is never programmed",
    EarlyAlways: "a write completes in the buffer even if the profile says it does not",
    FlushDoesNotDrain: "a flush does not wait for programs",
    LinkForgotten: "the host link takes no time",
    LinkHalfDuplex: "both directions of the host link share one line",
    CoresIgnored: "the firmware has as many cores as it has commands",
    RoundRobinIsFifo: "round-robin arbitration is first come, first served",
    ScaleForgetsTransfers: "time_scale does not reach transfers",
}
