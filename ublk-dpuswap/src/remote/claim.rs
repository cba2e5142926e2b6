//! Storage that belongs to one client alone, and knows it only by what the client writes there: an NBD export, a file.
//!
//! Such storage has no idea of reserving: the client cuts it into blocks of 1 MiB and keeps the books itself ([`Extents`]).
//! Block 0 is never lent. Its first bytes are the client's [`Signature`]: who it belongs to and an epoch, a random number
//! chosen when it was written. It is read back at every connection and every heartbeat: as long as it is there, so is what was
//! written after it; when it is gone (a server of memory was restarted), a new one with another epoch is written, and with
//! that all blocks count as forgotten. Somebody else's signature, or data, is never overwritten unasked.
//!
//! The books die with the process. A client that is recovered finds its signature, and then holds every block: its own
//! block table names those in use, and it releases the others.
//!
//! | bytes of the signature | field, little-endian |
//! |---|---|
//! | 0..8 | magic `DPSWCLM1` |
//! | 8..16 | the client's number |
//! | 16..24 | epoch, not 0 |
//! | 24..32 | bytes of the storage |
//! | 32..48 | boot id of the machine, where the storage is its own; else 0 |
//! | 48..52 | crc32c of the bytes before |
//! | 52..512 | 0 |

use std::time::{Duration, Instant};

use super::{RemoteError, Reserved};
use crate::units::RemoteBlock;

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 512;
/// So much of storage without a signature must be zeros before it is taken: no file system, partition table or RAID member
/// begins so.
pub const LOOKED_AT_BYTES: usize = 128 << 10;
/// How long after a connection was lost its requests may still be carried out: blocks that are released meanwhile are
/// lent again only then. NBD sets no such limit; a server that takes longer breaks a page, which its checksum or seal shows.
pub const FENCE: Duration = Duration::from_secs(30);
const MAGIC: [u8; 8] = *b"DPSWCLM1";

/// Why storage is not, or no longer, this client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Another client's signature.
    #[error(
        "it belongs to another client ({0:016x}); if that one is gone for good, say take=yes in its name"
    )]
    Foreign(u64),
    /// Something else is stored there.
    #[error("it holds other data; if they may be overwritten, say take=yes in its name")]
    Data,
    /// The signature was there, and is not any more.
    #[error("it was emptied or taken by another client meanwhile")]
    Lost,
}

/// Whose storage it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The client's number.
    pub client_id: u64,
    /// Random; 0 is none.
    pub epoch: u64,
    /// Bytes of the storage.
    pub size_bytes: u64,
    /// Boot id of the machine, or 0.
    pub boot: [u8; 16],
}

impl Signature {
    /// Its bytes.
    pub fn encode(&self) -> [u8; SIGNATURE_BYTES] {
        let mut out = [0; SIGNATURE_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.client_id.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..32].copy_from_slice(&self.size_bytes.to_le_bytes());
        out[32..48].copy_from_slice(&self.boot);
        let crc = crc32c::crc32c(&out[..48]);
        out[48..52].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a signature; `None` when there is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<SIGNATURE_BYTES>()?;
        let number = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let mut found =
            Self { client_id: number(8), epoch: number(16), size_bytes: number(24), boot: [0; 16] };
        found.boot.copy_from_slice(&bytes[32..48]);
        // Every byte counts: what differs anywhere is no signature.
        (found.epoch != 0 && found.encode() == *bytes).then_some(found)
    }

    /// What `first`, the first [`LOOKED_AT_BYTES`] of the storage, means for the client of this signature (whose epoch does
    /// not matter): the epoch under which its blocks are still there, or `None`: it may sign.
    ///
    /// # Errors
    /// It is not ours, and `take` does not say that it may be taken.
    pub fn look(&self, first: &[u8], take: bool) -> Result<Option<u64>, ClaimError> {
        match Self::decode(first) {
            Some(found) if found.client_id != self.client_id => match take {
                true => Ok(None),
                false => Err(ClaimError::Foreign(found.client_id)),
            },
            // Resized, or from before the machine was restarted: ours, but nothing to rely on.
            Some(found) => Ok((Self { epoch: found.epoch, ..*self } == found).then_some(found.epoch)),
            None if take || first.iter().all(|byte| *byte == 0) => Ok(None),
            None => Err(ClaimError::Data),
        }
    }
}

/// A random epoch.
///
/// # Errors
/// The system has no random numbers.
pub fn new_epoch() -> Result<u64, RemoteError> {
    let random = ring::rand::generate::<[u8; 8]>(&ring::rand::SystemRandom::new());
    let missing = |_| RemoteError::Local("random numbers", std::io::ErrorKind::Unsupported.into());
    Ok(u64::from_le_bytes(random.map_err(missing)?.expose()).max(1))
}

/// Which blocks of the storage are lent. Numbers go from 1 to the capacity.
#[derive(Debug, Default)]
pub struct Extents {
    held: Vec<u64>,
    /// Released, but requests of a lost connection may still reach them.
    cooling: Vec<u64>,
    capacity: u32,
    held_blocks: u32,
    cooling_blocks: u32,
    fence: Option<Instant>,
    /// Word at which the search for a free block goes on.
    hint: usize,
}

impl Extents {
    /// Starts anew with `capacity` blocks, all lent or none. Allocates.
    pub fn reset(&mut self, capacity: u32, all_held: bool) {
        let words = capacity as usize / 64 + 1;
        *self = Self {
            held: vec![0; words],
            cooling: vec![0; words],
            capacity,
            fence: self.fence,
            ..Self::default()
        };
        if all_held {
            self.held.fill(u64::MAX);
            self.held_blocks = capacity;
        }
    }

    /// Blocks there are.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Blocks lent.
    pub fn held_blocks(&self) -> u32 {
        self.held_blocks
    }

    /// Blocks that can be lent now.
    pub fn free_blocks(&mut self, now: Instant) -> u32 {
        self.thaw(now);
        self.capacity - self.held_blocks - self.cooling_blocks
    }

    /// From now on until `until`, released blocks are not lent again.
    pub fn fence(&mut self, until: Instant) {
        self.fence = self.fence.max(Some(until));
    }

    fn thaw(&mut self, now: Instant) {
        if self.fence.is_some_and(|fence| now >= fence) {
            self.fence = None;
            self.cooling.fill(0);
            self.cooling_blocks = 0;
        }
    }

    /// Whether a block is lent.
    pub fn is_held(&self, number: u32) -> bool {
        (1..=self.capacity).contains(&number)
            && self.held.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// Lends up to `blocks.len()` blocks.
    pub fn reserve(&mut self, blocks: &mut [RemoteBlock], now: Instant) -> Reserved {
        let mut free_blocks = self.free_blocks(now);
        let mut granted = 0;
        for slot in blocks.iter_mut().take(free_blocks as usize) {
            let Some(number) = self.find_free() else { break };
            self.held[number as usize / 64] |= 1 << (number % 64);
            self.held_blocks += 1;
            *slot = RemoteBlock::numbered(number);
            (granted, free_blocks) = (granted + 1, free_blocks - 1);
        }
        Reserved { granted, free_blocks }
    }

    fn find_free(&mut self) -> Option<u32> {
        let words = self.held.len();
        for _ in 0..=words {
            let at = self.hint % words;
            let mut taken = self.held[at] | self.cooling[at];
            if at == 0 {
                taken |= 1;
            }
            let number = at as u32 * 64 + taken.trailing_ones();
            if taken != u64::MAX && number <= self.capacity {
                return Some(number);
            }
            self.hint = at + 1;
        }
        None
    }

    /// Takes a block back. False when it was not lent.
    pub fn release(&mut self, number: u32, now: Instant) -> bool {
        if !self.is_held(number) {
            return false;
        }
        self.thaw(now);
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        self.held[word] &= !bit;
        self.held_blocks -= 1;
        if self.fence.is_some() {
            self.cooling[word] |= bit;
            self.cooling_blocks += 1;
        }
        true
    }

    /// The first block from `from` on that is lent.
    pub fn next_held(&self, from: u32) -> Option<u32> {
        let from = from.max(1);
        for at in from as usize / 64..self.held.len() {
            let skipped = if at == from as usize / 64 { (1u64 << (from % 64)) - 1 } else { 0 };
            let number = at as u32 * 64 + (self.held[at] & !skipped).trailing_zeros();
            if self.held[at] & !skipped != 0 {
                return (number <= self.capacity).then_some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const MINE: Signature = Signature { client_id: 7, epoch: 0, size_bytes: 4 << 20, boot: [3; 16] };

    fn storage(signature: Signature) -> Vec<u8> {
        let mut first = signature.encode().to_vec();
        first.resize(LOOKED_AT_BYTES, 0x5a);
        first
    }

    #[test]
    fn only_the_clients_own_signature_keeps_its_blocks() {
        let signed = Signature { epoch: 99, ..MINE };
        assert_eq!(MINE.look(&storage(signed), false), Ok(Some(99)));
        let resized = Signature { size_bytes: 5 << 20, ..signed };
        assert_eq!(MINE.look(&storage(resized), false), Ok(None));
        let rebooted = Signature { boot: [4; 16], ..signed };
        assert_eq!(MINE.look(&storage(rebooted), false), Ok(None));
        let foreign = storage(Signature { client_id: 8, ..signed });
        assert_eq!(MINE.look(&foreign, false), Err(ClaimError::Foreign(8)));
        assert_eq!(MINE.look(&foreign, true), Ok(None));
    }

    #[test]
    fn other_data_is_not_overwritten_unasked() {
        let mut first = vec![0; LOOKED_AT_BYTES];
        assert_eq!(MINE.look(&first, false), Ok(None));
        // Where btrfs has its superblock.
        first[65600] = b'_';
        assert_eq!(MINE.look(&first, false), Err(ClaimError::Data));
        assert_eq!(MINE.look(&first, true), Ok(None));
    }

    #[test]
    fn a_block_released_behind_a_fence_is_lent_again_only_after_it() {
        let start = Instant::now();
        let mut extents = Extents::default();
        extents.reset(2, false);
        let mut blocks = [RemoteBlock::default(); 3];
        assert_eq!(extents.reserve(&mut blocks, start), Reserved { granted: 2, free_blocks: 0 });
        extents.fence(start + FENCE);
        assert!(extents.release(1, start) && !extents.release(1, start));
        assert_eq!(extents.reserve(&mut blocks, start).granted, 0);
        assert_eq!(extents.free_blocks(start + FENCE / 2), 0);
        assert_eq!(extents.reserve(&mut blocks, start + FENCE).granted, 1);
        assert_eq!(blocks[0], RemoteBlock::numbered(1));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_no_signature(client_id: u64, epoch in 1u64.., bit in 0usize..SIGNATURE_BYTES * 8) {
            let signature = Signature { client_id, epoch, ..MINE };
            let mut bytes = signature.encode();
            prop_assert_eq!(Signature::decode(&bytes), Some(signature));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Signature::decode(&bytes), None);
        }

        #[test]
        fn the_books_agree_with_a_set(
            capacity in 1u32..300, all: bool, steps in proptest::collection::vec((any::<bool>(), 0u32..320), 0..200),
        ) {
            let now = Instant::now();
            let mut extents = Extents::default();
            extents.reset(capacity, all);
            let mut set: BTreeSet<u32> = if all { (1..=capacity).collect() } else { BTreeSet::new() };
            for (reserve, n) in steps {
                if reserve {
                    let mut blocks = vec![RemoteBlock::default(); n as usize % 20];
                    let got = extents.reserve(&mut blocks, now);
                    prop_assert_eq!(got.granted, blocks.len().min(capacity as usize - set.len()));
                    for block in &blocks[..got.granted] {
                        prop_assert!((1..=capacity).contains(&block.number) && set.insert(block.number));
                    }
                    prop_assert_eq!(got.free_blocks as usize, capacity as usize - set.len());
                } else {
                    prop_assert_eq!(extents.release(n, now), set.remove(&n));
                }
                prop_assert_eq!(extents.held_blocks() as usize, set.len());
                prop_assert_eq!(extents.is_held(n), set.contains(&n));
            }
            let mut walked = Vec::new();
            let mut from = 0;
            while let Some(number) = extents.next_held(from) {
                walked.push(number);
                from = number + 1;
            }
            prop_assert_eq!(walked, set.into_iter().collect::<Vec<_>>());
        }
    }
}
