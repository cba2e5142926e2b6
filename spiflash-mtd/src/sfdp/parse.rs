//! From bytes to tables.
//!
//! The invariant: no bytes make it fail otherwise than by an error, and an error names where the bytes are wrong.

use super::{
    AddressBytes, BYTE, Basic, CHIP_ERASE, ERASE, EraseType, Extended, FastRead, FourByte, INTERVAL, LATENCY,
    PAGE, PowerDown, Region, Suspend, Tables,
};

/// Why bytes are no SFDP tables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SfdpError {
    /// They do not begin with "SFDP".
    #[error("SFDP byte 0: {found:02X?}: it begins with 53 46 44 50, \"SFDP\"")]
    Signature {
        /// What is there.
        found: Vec<u8>,
    },
    /// Another major revision.
    #[error("SFDP byte 5: revision {major}.{minor}: only 1 is known")]
    Revision {
        /// The major revision.
        major: u8,
        /// The minor revision.
        minor: u8,
    },
    /// A header or table is not in the bytes.
    #[error("SFDP {what}: bytes {at:#x} to {end:#x}: there are only {length:#x}")]
    Short {
        /// What was looked for.
        what: &'static str,
        /// Its first byte.
        at: usize,
        /// The byte after its last.
        end: usize,
        /// How many bytes there are.
        length: usize,
    },
    /// There is no basic table.
    #[error("SFDP byte 8: the first table has ID {id:04X}h: it is FF00h, the basic one")]
    NoBasic {
        /// The ID that is there.
        id: u16,
    },
    /// A field has no meaning.
    #[error("SFDP {what}: {value:#x}: {rule}")]
    Field {
        /// Which one.
        what: &'static str,
        /// Its value.
        value: u32,
        /// What it must be.
        rule: &'static str,
    },
}

struct Header {
    id: u16,
    minor: u8,
    dwords: usize,
    at: usize,
}

fn slice<'a>(bytes: &'a [u8], what: &'static str, at: usize, count: usize) -> Result<&'a [u8], SfdpError> {
    let end = at.saturating_add(count);
    bytes.get(at..end).ok_or(SfdpError::Short { what, at, end, length: bytes.len() })
}

fn dwords(bytes: &[u8], what: &'static str, at: usize, count: usize) -> Result<Vec<u32>, SfdpError> {
    let bytes = slice(bytes, what, at, 4 * count)?;
    let dword = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |dword, byte| dword << 8 | u32::from(*byte));
    Ok(bytes.chunks_exact(4).map(dword).collect())
}

/// Reads the tables: the basic one, and of the others the 4-byte address instruction table and a sector map of one
/// configuration.
///
/// # Errors
/// The bytes are cut short, or no tables of major revision 1.
pub fn parse(bytes: &[u8]) -> Result<Tables, SfdpError> {
    let start = slice(bytes, "header", 0, 8)?;
    if !start.starts_with(b"SFDP") {
        return Err(SfdpError::Signature { found: start.iter().take(4).copied().collect() });
    }
    let [minor, major, last, _] = [start[4], start[5], start[6], start[7]];
    if major != 1 {
        return Err(SfdpError::Revision { major, minor });
    }
    let mut headers = Vec::new();
    for index in 0..=usize::from(last) {
        let header = slice(bytes, "parameter header", 8 + 8 * index, 8)?;
        headers.push(Header {
            id: u16::from_le_bytes([header[0], header[7]]),
            minor: header[1],
            dwords: usize::from(header[3]),
            at: u32::from_le_bytes([header[4], header[5], header[6], 0]) as usize,
        });
    }
    // Of more basic tables the last one is the newest.
    let basic_header = headers.iter().rev().find(|header| header.id == 0xFF00);
    let Some(basic_header) = basic_header else {
        return Err(SfdpError::NoBasic { id: headers.first().map_or(0, |header| header.id) });
    };
    let basic = basic(&dwords(bytes, "basic table", basic_header.at, basic_header.dwords)?)?;
    let mut tables = Tables { revision_minor: basic_header.minor, basic, four_byte: None, map: Vec::new() };
    for header in &headers {
        match header.id {
            0xFF84 => {
                let table = dwords(bytes, "4-byte address instruction table", header.at, header.dwords)?;
                let [first, second] = table[..] else {
                    return Err(length("4-byte address instruction table", header.dwords, "two dwords"));
                };
                tables.four_byte = Some(FourByte { supported: first & 0x1FFF, erases: second.to_le_bytes() });
            }
            0xFF81 => tables.map = map(&dwords(bytes, "sector map", header.at, header.dwords)?)?,
            _ => {}
        }
    }
    Ok(tables)
}

fn length(what: &'static str, dwords: usize, rule: &'static str) -> SfdpError {
    SfdpError::Field { what, value: dwords as u32, rule }
}

fn fast_read(half: u32) -> FastRead {
    FastRead {
        opcode: (half >> 8 & 0xFF) as u8,
        mode_clocks: (half >> 5 & 7) as u8,
        wait_clocks: (half & 31) as u8,
    }
}

fn basic(table: &[u32]) -> Result<Basic, SfdpError> {
    let [d1, d2, d3, d4, d5, d6, d7, d8, d9, rest @ ..] = table else {
        return Err(length("basic table", table.len(), "at least nine dwords"));
    };
    let address = match d1 >> 17 & 3 {
        0 => AddressBytes::Three,
        1 => AddressBytes::ThreeOrFour,
        2 => AddressBytes::Four,
        value => {
            return Err(SfdpError::Field { what: "dword 1, bits 18 to 17", value, rule: "0, 1 or 2" });
        }
    };
    let size_bytes = match d2 >> 31 {
        0 => (u64::from(*d2) + 1) / 8,
        _ => {
            let power = d2 & !(1 << 31);
            if power > 63 {
                return Err(SfdpError::Field {
                    what: "dword 2",
                    value: *d2,
                    rule: "a power of two of at most 63",
                });
            }
            1u64 << power.saturating_sub(3)
        }
    };
    let read = |has: u32, place: u32, half: u32| (has >> place & 1 == 1).then(|| fast_read(half));
    let reads = [
        read(*d1, 16, *d4),
        read(*d1, 20, d4 >> 16),
        read(*d5, 0, d6 >> 16),
        read(*d1, 22, d3 >> 16),
        read(*d1, 21, *d3),
        read(*d5, 4, d7 >> 16),
    ];
    let mut erases = [*d8, d8 >> 16, *d9, d9 >> 16].map(|half| {
        let (opcode, log2_bytes) = ((half >> 8 & 0xFF) as u8, (half & 0xFF) as u8);
        (log2_bytes != 0).then_some(EraseType { opcode, log2_bytes, typical_ns: 0 })
    });
    if let Some(wrong) = erases.iter().flatten().find(|erase| erase.log2_bytes > 63) {
        let value = u32::from(wrong.log2_bytes);
        return Err(SfdpError::Field {
            what: "dwords 8 and 9",
            value,
            rule: "an erase is at most 2^63 bytes",
        });
    }
    let extended = extended(rest, &mut erases);
    let volatile_protection = match d1 >> 3 & 3 {
        0b01 => Some(0x50),
        0b11 => Some(0x06),
        _ => None,
    };
    Ok(Basic {
        erase_4k: (d1 & 3 == 1).then_some((d1 >> 8 & 0xFF) as u8),
        buffered_program: d1 >> 2 & 1 == 1,
        volatile_protection,
        address,
        size_bytes,
        reads,
        erases,
        extended,
    })
}

/// Dwords 10 to 16; a table of ten to fifteen is none of a published revision and is taken as nine.
fn extended(rest: &[u32], erases: &mut [Option<EraseType>; 4]) -> Option<Extended> {
    let [d10, d11, d12, d13, d14, d15, d16, ..] = rest else { return None };
    for (at, erase) in erases.iter_mut().enumerate() {
        if let Some(erase) = erase {
            erase.typical_ns = ERASE.decode(d10 >> (4 + 7 * at) & 0x7F);
        }
    }
    let suspend = (d12 >> 31 == 0).then(|| {
        let [program_resume, program_suspend, erase_resume, erase_suspend] = d13.to_le_bytes();
        Suspend {
            program_suspend,
            program_resume,
            erase_suspend,
            erase_resume,
            program_latency_ns: LATENCY.decode(d12 >> 13 & 0x7F),
            erase_latency_ns: LATENCY.decode(d12 >> 24 & 0x7F),
            program_interval_ns: INTERVAL.decode(d12 >> 9 & 0xF),
            erase_interval_ns: INTERVAL.decode(d12 >> 20 & 0xF),
        }
    });
    let power_down = (d14 >> 31 == 0).then(|| PowerDown {
        enter: (d14 >> 23 & 0xFF) as u8,
        exit: (d14 >> 15 & 0xFF) as u8,
        exit_ns: LATENCY.decode(d14 >> 8 & 0x7F),
    });
    let factor = |dword: &u32| ((dword & 0xF) as u8 + 1) * 2;
    Some(Extended {
        erase_max_factor: factor(d10),
        program_max_factor: factor(d11),
        log2_page_bytes: (d11 >> 4 & 0xF) as u8,
        page_program_ns: PAGE.decode(d11 >> 8 & 0x3F),
        first_byte_ns: BYTE.decode(d11 >> 14 & 0x1F),
        next_byte_ns: BYTE.decode(d11 >> 19 & 0x1F),
        chip_erase_ns: CHIP_ERASE.decode(d11 >> 24 & 0x7F),
        suspend,
        poll_status: d14 >> 2 & 1 == 1,
        poll_flag: d14 >> 3 & 1 == 1,
        power_down,
        qpi_exit: (d15 & 0xF) as u8,
        qpi_enter: (d15 >> 4 & 0x1F) as u8,
        continuous: (d15 >> 9 & 1 == 1).then_some(((d15 >> 10 & 0x3F) as u8, (d15 >> 16 & 0xF) as u8)),
        quad_enable: (d15 >> 20 & 7) as u8,
        status_keeps: (d16 & 0x1F) as u8,
        resets: (d16 >> 8 & 0x3F) as u8,
        four_byte_exit: (d16 >> 14 & 0xFF) as u8,
        four_byte_enter: (d16 >> 24 & 0x7F) as u8,
    })
}

fn map(table: &[u32]) -> Result<Vec<Region>, SfdpError> {
    let Some((head, regions)) = table.split_first() else {
        return Err(length("sector map", 0, "at least a dword"));
    };
    if head & 0b10 == 0 {
        // Commands that ask for the configuration come first: which map holds cannot be said from the bytes alone.
        return Ok(Vec::new());
    }
    let count = (head >> 16 & 0xFF) as usize + 1;
    let Some(regions) = regions.get(..count) else {
        return Err(length("sector map", table.len(), "a dword for each region, and one before them"));
    };
    let region =
        |dword: &u32| Region { bytes: (u64::from(dword >> 8) + 1) * 256, erases: (dword & 0xF) as u8 };
    Ok(regions.iter().map(region).collect())
}
