//! Where the model is known to go its own way.

/// Where the data sheet can be read in two ways, or the model is known to differ from it: `true` is the sheet's way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// WEL stays after 36h, 39h, 7Eh and 98h.
    pub(crate) locks_keep_wel: bool,
    /// SUS is 1 from the rise of CS# of 75h on, not from the end of tSUS on.
    pub(crate) sus_at_once: bool,
    /// 42h and 44h cannot be suspended.
    pub(crate) security_goes_on: bool,
    /// 50h with 01h, 31h or 11h does nothing during a suspend, as 06h with them.
    pub(crate) no_volatile_write_in_suspend: bool,
    /// 32h, 6Bh, EBh and 77h are ignored while QE is 0.
    pub(crate) quad_needs_qe: bool,
    /// WP# protects nothing while QE is 1: the pin is IO2.
    pub(crate) qe_takes_wp: bool,
    /// 50h with 01h or 31h sets LB1 to LB3 until power-down or reset.
    pub(crate) volatile_lock_bits: bool,
    /// CS# going low and high without a clock between 66h and 99h is no command.
    pub(crate) empty_frame_is_none: bool,
    /// B9h is heard while something is suspended.
    pub(crate) sleeps_in_suspend: bool,
    /// A security register whose erase is suspended is not programmed.
    pub(crate) suspended_register_is_barred: bool,
    /// SRP1 (SRL in revision F) locks the status registers until the next power-down, whatever SRP0 is; else both set lock
    /// them for good.
    pub(crate) lock_ends_with_power: bool,
}

impl Rules {
    /// As the model has them.
    pub(crate) const MODEL: Rules = Rules {
        locks_keep_wel: false,
        sus_at_once: false,
        security_goes_on: false,
        no_volatile_write_in_suspend: true,
        quad_needs_qe: true,
        qe_takes_wp: true,
        volatile_lock_bits: false,
        empty_frame_is_none: false,
        sleeps_in_suspend: false,
        suspended_register_is_barred: true,
        lock_ends_with_power: false,
    };
}
