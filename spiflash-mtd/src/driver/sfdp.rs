//! What a driver wants of the SFDP tables: the basic flash parameter table's size, page and 4 KiB erase.
//!
//! Source: JEDEC JESD216, 6.2 (SFDP header), 6.3 (parameter headers), 6.4 (basic flash parameter table: dword 1 the 4 KiB
//! erase, dword 2 the density, dword 11 of JESD216A the page size).

/// What the tables say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SfdpFacts {
    /// The revision of the header: major and minor.
    pub revision: (u8, u8),
    /// Bytes of the array; `None`: the number is no size.
    pub size_bytes: Option<u64>,
    /// Bytes of a page, from revision A on.
    pub page_bytes: Option<u32>,
    /// The opcode of the 4 KiB erase, if there is one on the whole array.
    pub erase_4k: Option<u8>,
}

/// Bytes of the header with the first parameter header, which is the basic table's.
pub(super) const HEADER_BYTES: usize = 16;
/// The most of the basic table that is looked at.
pub(super) const BASIC_BYTES: usize = 64;

/// Where the basic table is, and how many bytes of it to read; `None`: there are no SFDP tables.
pub(super) fn basic_table(header: &[u8; HEADER_BYTES]) -> Option<(u32, usize)> {
    let (signature, rest) = header.split_first_chunk::<4>()?;
    if signature != b"SFDP" {
        return None;
    }
    let (_, parameter) = rest.split_at_checked(4)?;
    let [_, _, _, dwords, low, middle, high, _] = *parameter.first_chunk::<8>()?;
    let bytes = (usize::from(dwords) * 4).min(BASIC_BYTES);
    (bytes >= 8).then_some((u32::from_le_bytes([low, middle, high, 0]), bytes))
}

/// What the header and the basic table say.
pub(super) fn facts(header: &[u8; HEADER_BYTES], table: &[u8]) -> Option<SfdpFacts> {
    let dword = |n: usize| Some(u32::from_le_bytes(*table.get((n - 1) * 4..)?.first_chunk::<4>()?));
    let (minor, major) = (*header.get(4)?, *header.get(5)?);
    let (first, density) = (dword(1)?, dword(2)?);
    let bits = if density >> 31 == 0 {
        Some(u64::from(density) + 1)
    } else {
        1u64.checked_shl(density & 0x7FFF_FFFF)
    };
    let size_bytes = bits.filter(|bits| *bits >= 8).map(|bits| bits / 8);
    let page_bytes = dword(11).map(|dword| 1u32 << (dword >> 4 & 0xF));
    let erase_4k = (first & 3 == 1).then_some((first >> 8) as u8);
    Some(SfdpFacts { revision: (major, minor), size_bytes, page_bytes, erase_4k })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(signature: &[u8; 4], dwords: u8, at: u32) -> [u8; HEADER_BYTES] {
        let [low, middle, high, _] = at.to_le_bytes();
        let [a, b, c, d] = *signature;
        [a, b, c, d, 6, 1, 0, 0xFF, 0, 6, 1, dwords, low, middle, high, 0xFF]
    }

    #[test]
    fn the_size_is_read_in_both_forms() {
        let mut table = [0u8; 64];
        table[0..4].copy_from_slice(&0xFFF9_20E5u32.to_le_bytes());
        table[4..8].copy_from_slice(&0x07FF_FFFFu32.to_le_bytes());
        table[40..44].copy_from_slice(&0x0000_0082u32.to_le_bytes());
        let facts_of = |table: &[u8]| facts(&header(b"SFDP", 16, 0x80), table).expect("tables");
        let small = facts_of(&table);
        assert_eq!(small.revision, (1, 6));
        assert_eq!(
            (small.size_bytes, small.page_bytes, small.erase_4k),
            (Some(16 << 20), Some(256), Some(0x20))
        );
        table[4..8].copy_from_slice(&0x8000_0023u32.to_le_bytes());
        assert_eq!(facts_of(&table).size_bytes, Some(1 << 32), "2^35 bits");
        table[4..8].copy_from_slice(&0xFFFF_FFFFu32.to_le_bytes());
        assert_eq!(facts_of(&table).size_bytes, None, "2^(2^31-1) bits are no size");
        table[4..8].copy_from_slice(&0u32.to_le_bytes());
        assert_eq!(facts_of(&table).size_bytes, None, "a single bit is no size");
    }

    #[test]
    fn a_chip_without_tables_or_with_too_short_ones_has_none() {
        assert_eq!(basic_table(&[0xFF; 16]), None);
        assert_eq!(basic_table(&header(b"SFDP", 1, 0x30)), None);
        assert_eq!(basic_table(&header(b"SFDP", 9, 0x30)), Some((0x30, 36)));
        assert_eq!(basic_table(&header(b"SFDP", 255, 0xABCDEF)), Some((0xAB_CDEF, 64)));
        assert_eq!(facts(&header(b"SFDP", 9, 0), &[0; 7]), None);
        assert_eq!(facts(&header(b"SFDP", 9, 0), &[0; 36]).and_then(|f| f.page_bytes), None, "revision 1.0");
    }
}
