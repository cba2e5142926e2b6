//! What happens to one page's bytes: same-filled check, LZ4, zstd for pages that stay long, and back.
//!
//! Invariant: `decompress(compress(page)) == page`, and neither direction allocates.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use zstd_safe::{CCtx, DCtx};

use crate::units::{PAGE_BYTES, UNIT_BYTES};

/// Higher levels need many times the time for a few per cent.
const ZSTD_LEVEL: i32 = 1;

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
    /// One zstd frame: smaller and slower, for pages that nobody has asked for in a while.
    Zstd = 2,
}

impl Codec {
    /// The codec with this number, if there is one.
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
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

/// One thread's decompressor: zstd needs a context, which is allocated once.
pub struct Decompressor {
    zstd: DCtx<'static>,
}

impl Default for Decompressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Decompressor {
    /// A decompressor for pages.
    pub fn new() -> Self {
        Self { zstd: DCtx::create() }
    }

    /// Restores a page into `page`. `false` when the payload does not give exactly one page.
    #[must_use]
    pub fn decompress(&mut self, codec: Codec, payload: &[u8], page: &mut [u8]) -> bool {
        match codec {
            Codec::Raw if payload.len() == page.len() => {
                page.copy_from_slice(payload);
                true
            }
            Codec::Raw => false,
            Codec::Lz4 => decompress_into(payload, page).is_ok_and(|len| len == page.len()),
            Codec::Zstd => self.zstd.decompress(page, payload).is_ok_and(|len| len == page.len()),
        }
    }
}

/// Compresses cold pages once more: zstd level 1, whose context is allocated and warm from the start.
pub struct Recompressor {
    zstd: CCtx<'static>,
    output: Box<[u8]>,
    page: Box<[u8; PAGE_BYTES]>,
}

impl Default for Recompressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Recompressor {
    /// A recompressor for pages.
    pub fn new() -> Self {
        let output = vec![0; zstd_safe::compress_bound(PAGE_BYTES)].into_boxed_slice();
        let mut new = Self { zstd: CCtx::create(), output, page: Box::new([0; PAGE_BYTES]) };
        // The first page makes the context allocate its tables; every later one is of the same size.
        for (index, byte) in new.page.iter_mut().enumerate() {
            *byte = ((index * index) >> 3) as u8;
        }
        let _ = new.zstd.compress(&mut new.output[..], &new.page[..], ZSTD_LEVEL);
        new
    }

    /// The zstd form of `page`, when it is at most [`RAW_ABOVE_BYTES`] long and shorter than `than_bytes`.
    pub fn compress(&mut self, page: &[u8], than_bytes: usize) -> Option<&[u8]> {
        let len = self.zstd.compress(&mut self.output[..], page, ZSTD_LEVEL).ok()?;
        if len > RAW_ABOVE_BYTES || len >= than_bytes { None } else { self.output.get(..len) }
    }

    /// Replaces a payload that is not zstd yet by its zstd form, in place, when that saves at least a unit of remote
    /// memory. Gives its new length.
    pub fn recompress(
        &mut self,
        decompressor: &mut Decompressor,
        codec: Codec,
        payload: &mut [u8],
    ) -> Option<usize> {
        if codec == Codec::Zstd || payload.len() <= UNIT_BYTES {
            return None;
        }
        if !decompressor.decompress(codec, payload, &mut self.page[..]) {
            return None;
        }
        let len = self.zstd.compress(&mut self.output[..], &self.page[..], ZSTD_LEVEL).ok()?;
        if len > RAW_ABOVE_BYTES || len + UNIT_BYTES > payload.len() {
            return None;
        }
        payload[..len].copy_from_slice(&self.output[..len]);
        Some(len)
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
            let mut decompressor = Decompressor::new();
            prop_assert!(decompressor.decompress(codec, payload, &mut back));
            prop_assert_eq!(&back, &page);
            let mut again = payload.to_vec();
            if let Some(len) = Recompressor::new().recompress(&mut decompressor, codec, &mut again) {
                prop_assert!(len + UNIT_BYTES <= payload.len());
                back.fill(0xaa);
                prop_assert!(decompressor.decompress(Codec::Zstd, &again[..len], &mut back));
                prop_assert_eq!(&back, &page);
            }
        }

        #[test]
        fn arbitrary_payloads_never_panic(payload in any::<Vec<u8>>()) {
            let mut page = vec![0; PAGE_BYTES];
            for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
                let _ = Decompressor::new().decompress(codec, &payload, &mut page);
            }
        }
    }
}
