//! What happens to one page's bytes: same-filled check, LZ4, and back.
//!
//! Invariant: `decompress(compress(page)) == page`, and neither direction allocates.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::units::PAGE_BYTES;

/// A page whose LZ4 form is longer than this is kept raw: little would be saved, and every read would pay for it.
pub const RAW_ABOVE_BYTES: usize = PAGE_BYTES * 3 / 4;

/// How a stored payload is coded. The numbers are part of the record format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// The page's 4096 bytes as they are.
    Raw = 0,
    /// One LZ4 block.
    Lz4 = 1,
}

impl Codec {
    /// The codec with this number, if there is one.
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            _ => None,
        }
    }
}

/// The pattern of a page that repeats one 32-bit word from start to end.
///
/// Looks at the last word first: most pages that are not same-filled differ there, so a miss costs nanoseconds.
pub fn same_filled(page: &[u8]) -> Option<u32> {
    let (words, rest) = page.as_chunks::<8>();
    let first = *words.first()?;
    let (low, high) = (&first[..4], &first[4..]);
    if !rest.is_empty() || low != high || words.last() != Some(&first) {
        return None;
    }
    let first_word = u64::from_ne_bytes(first);
    if words.iter().any(|word| u64::from_ne_bytes(*word) != first_word) {
        return None;
    }
    Some(first_word as u32)
}

/// Fills `page` with the pattern that [`same_filled`] found.
pub fn fill(page: &mut [u8], pattern: u32) {
    let bytes = pattern.to_ne_bytes();
    for word in page.chunks_mut(4) {
        let len = word.len();
        word.copy_from_slice(&bytes[..len]);
    }
}

/// One thread's compressor, with its hash table and output buffer allocated once.
pub struct Compressor {
    table: CompressTable,
    output: Box<[u8]>,
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Compressor {
    /// A compressor for pages.
    pub fn new() -> Self {
        let output = vec![0; get_maximum_output_size(PAGE_BYTES)].into_boxed_slice();
        Self { table: CompressTable::small(), output }
    }

    /// The form in which `page` is to be stored: LZ4 when that saves at least a quarter, else raw.
    pub fn compress<'a>(&'a mut self, page: &'a [u8]) -> (Codec, &'a [u8]) {
        match compress_into_with_table(page, &mut self.output, &mut self.table) {
            Ok(len) if len <= RAW_ABOVE_BYTES => (Codec::Lz4, &self.output[..len]),
            _ => (Codec::Raw, page),
        }
    }
}

/// Restores a page into `page`. `false` when the payload does not give exactly one page.
#[must_use]
pub fn decompress(codec: Codec, payload: &[u8], page: &mut [u8]) -> bool {
    match codec {
        Codec::Raw if payload.len() == page.len() => {
            page.copy_from_slice(payload);
            true
        }
        Codec::Raw => false,
        Codec::Lz4 => decompress_into(payload, page).is_ok_and(|len| len == page.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn same_filled_pages_are_found_and_others_are_not() {
        for pattern in [0, 0x0707_0707, 0x1234_5678] {
            let mut page = vec![0; PAGE_BYTES];
            fill(&mut page, pattern);
            assert_eq!(same_filled(&page), Some(pattern));
            for at in [0, 5, 2048, PAGE_BYTES - 1] {
                let mut other = page.clone();
                other[at] ^= 1;
                assert_eq!(same_filled(&other), None, "differs at {at}");
            }
        }
        assert_eq!(
            same_filled(&[1, 2, 3, 4, 5, 6, 7, 8].repeat(512)),
            None,
            "an 8-byte pattern has no short form"
        );
    }

    proptest! {
        #[test]
        fn a_page_comes_back_as_it_was(seed in any::<Vec<u8>>(), stretch in 1usize..64) {
            let page: Vec<u8> = seed.iter().flat_map(|b| std::iter::repeat_n(*b, stretch)).chain(std::iter::repeat(0))
                .take(PAGE_BYTES).collect();
            let mut compressor = Compressor::new();
            let (codec, payload) = compressor.compress(&page);
            prop_assert!(payload.len() <= PAGE_BYTES);
            let mut back = vec![0xaa; PAGE_BYTES];
            prop_assert!(decompress(codec, payload, &mut back));
            prop_assert_eq!(back, page);
        }

        #[test]
        fn arbitrary_payloads_never_panic(payload in any::<Vec<u8>>()) {
            let mut page = vec![0; PAGE_BYTES];
            let _ = decompress(Codec::Lz4, &payload, &mut page);
            let _ = decompress(Codec::Raw, &payload, &mut page);
        }
    }
}
