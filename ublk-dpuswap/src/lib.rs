//! A swap device on compressed remote memory (RMML), and the memory node it borrows from.
//!
//! The kernel swaps to a ublk block device. Every 4 KiB page is compressed (LZ4), kept in a bounded local cache, packed
//! with its neighbours into 1 MiB blocks that other machines lend, sealed so that they can neither read nor change it, and read
//! back from there. From the inside out:
//!
//! - model: [`units`], [`codec`], [`seal`], [`record`], [`cache`], [`model`], [`proto`], [`link`]: pure, no threads, no sockets;
//! - engine: [`engine`] over [`remote`] (what a node can do) and [`links`] (its connections on a queue's ring), in [`memory`]
//!   that outlives the process ([`durable`]); [`node`], the lending side; [`discover`], who lends;
//! - fronts: [`front`] (the ublk target), [`modes`] (what it is compared with), and the two programs.
//!
//! Memory: 2 MiB of page table and 64 KiB of group queue (at 16 pages per group) per GiB of device, the cache and 8 %
//! of it, about 90 KiB of block table per GiB, and some MiB per queue and per connection.

pub mod alloc;
pub mod cache;
pub mod codec;
pub mod discover;
pub mod durable;
pub mod engine;
pub mod error;
pub mod front;
pub mod link;
pub mod links;
pub mod lock;
pub mod membership;
pub mod memory;
pub mod model;
pub mod modes;
pub mod node;
pub mod proto;
pub mod record;
pub mod remote;
pub mod seal;
pub mod secure;
pub mod units;
mod wire;

pub use error::{Error, IoError};
