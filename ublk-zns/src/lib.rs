//! A ZNS SSD in user space: zone state machine, media, and the ublk front.
