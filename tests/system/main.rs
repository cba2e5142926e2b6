//! The system tests: real binaries, real tools, a real kernel. One file per promise.
//!
//! They need root and a kernel with ublk; `scripts/test` runs them under `scripts/kernel`. Elsewhere each is reported as
//! ignored, with this reason.
#![allow(missing_docs, clippy::unwrap_used)]

mod bad_input;
mod lifecycle;
mod mtd;
mod spidev;
mod swap;
mod timing;
mod zns;
mod zns_trust;
mod zoned_clients;
mod zonefs;
