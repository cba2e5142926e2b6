//! The clock of timed completions.

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock by which io_uring's waits end too. Never 0.
///
/// Some 20 ns through the vDSO, but a system call on kernels without one (User-Mode Linux): read it once per batch, not
/// once per request.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec. With this clock and a valid address it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos).max(1)
}

/// What reading the clock costs here, in ns: the shortest of a few times between two readings.
pub fn read_cost_ns() -> u64 {
    let between = (0..32).map(|_| {
        let first = monotonic_ns();
        monotonic_ns().saturating_sub(first)
    });
    between.min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{monotonic_ns, read_cost_ns};

    #[test]
    fn the_clock_agrees_with_the_standard_librarys_and_never_goes_back() {
        let (start, instant) = (monotonic_ns(), std::time::Instant::now());
        std::thread::sleep(std::time::Duration::from_millis(2));
        let (passed, between) = (instant.elapsed().as_nanos() as u64, monotonic_ns() - start);
        assert!(between >= passed && start > 0, "{between} ns around {passed} ns");
    }
    #[test]
    fn a_reading_costs_less_than_the_time_it_takes_to_make_many() {
        let start = monotonic_ns();
        let cost = read_cost_ns();
        assert!(cost <= (monotonic_ns() - start) / 32, "{cost} ns");
    }
}
