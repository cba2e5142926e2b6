//! Sealing of pages before they leave the machine: AES-256-GCM, in place, without allocation.
//!
//! The nonce is the place of the record: the block's generation and the unit in it. A block is written once per
//! generation and never in place, and generations are never used again, so no nonce is used twice with a key.
//! Invariant: what is opened was sealed with this key for this very place, unaltered. So a node can
//! neither read, forge, move nor replay a page. (NIST SP 800-38D, section 8.2.1: the deterministic construction.)

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Bytes of the tag behind a sealed payload.
pub const TAG_BYTES: usize = 16;

/// The key of a device's pages. It never leaves the machine.
pub struct PageKey(LessSafeKey);

/// Where a record lies, as no other record ever does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The block's generation: counts up each time a block is opened.
    pub generation: u64,
    /// The record's first unit in the block.
    pub offset_units: u32,
}

impl Place {
    pub(crate) fn bytes(self) -> [u8; NONCE_LEN] {
        let mut bytes = [0; NONCE_LEN];
        bytes[..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8..].copy_from_slice(&self.offset_units.to_le_bytes());
        bytes
    }
}

impl PageKey {
    /// A key of these bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        // A key of AES-256 is 32 bytes, whatever they are: ring can refuse only another length.
        let key = UnboundKey::new(&AES_256_GCM, bytes).unwrap_or_else(|_| unreachable!("32 bytes are a key"));
        Self(LessSafeKey::new(key))
    }

    /// Encrypts `payload` in place; gives the tag. `None` when it is too long for the cipher (never for a page).
    pub(crate) fn seal(&self, place: Place, aad: &[u8], payload: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        let nonce = Nonce::assume_unique_for_key(place.bytes());
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), payload).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Verifies and decrypts payload and tag in place; gives the payload. After a failure the bytes mean nothing.
    pub(crate) fn open<'a>(&self, place: Place, aad: &[u8], sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let nonce = Nonce::assume_unique_for_key(place.bytes());
        self.0.open_in_place(nonce, Aad::from(aad), sealed).ok()
    }
}

impl std::fmt::Debug for PageKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageKey(..)")
    }
}
