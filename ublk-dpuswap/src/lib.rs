//! A swap device on compressed remote memory (RMML), and the memory node it borrows from.
//!
//! The kernel swaps to a ublk block device. Every 4 KiB page is compressed (LZ4), kept in a bounded local cache, packed
//! with its neighbours into 1 MiB blocks that other machines lend, and read back from there. From the inside out:
//!
//! - model: [`units`], [`codec`], [`record`], [`cache`], [`model`], [`proto`]: pure, no threads, no sockets;
//! - engine: [`engine`] over [`remote`] (what a node can do), and [`node`], the lending side;
//! - fronts: [`front`] (the ublk target), and the two programs.
//!
//! Memory: 2 MiB of page table and 64 KiB of group queue (at 16 pages per group) per GiB of device, the cache and 8 %
//! of it, about 40 KiB of block table per GiB, 1 MiB per queue.

pub mod cache;
pub mod codec;
pub mod engine;
pub mod error;
pub mod front;
pub mod lock;
pub mod model;
pub mod node;
pub mod proto;
pub mod record;
pub mod remote;
pub mod units;
mod wire;

pub use error::{Error, IoError};
