//! What a ublk device needs besides its I/O: lifecycle, queues, recovery, statistics.
