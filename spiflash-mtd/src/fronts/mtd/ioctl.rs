//! The MTD ioctls, as bytes: what a request asks, and what its answer looks like. Pure.
//!
//! The invariant: the sizes here are those of the structures of `<mtd/mtd-abi.h>`, whatever the ioctl numbers say: some MTD
//! numbers name the wrong direction (`OTPSELECT` is declared as an output and is an input), and a FUSE file only gets what
//! the number says, where a CUSE device gets all. Numbers in them are of this machine's byte order.

use nix::errno::Errno;

/// Type of a `struct mtd_info_user`.
pub mod mtd_type {
    /// Memory that is written like RAM.
    pub const RAM: u8 = 1;
    /// NOR flash.
    pub const NOR: u8 = 3;
    /// NAND flash.
    pub const NAND: u8 = 4;
}

/// Flags of a `struct mtd_info_user`.
pub mod flag {
    /// Can be written.
    pub const WRITEABLE: u32 = 0x400;
    /// Single bits can be written.
    pub const BIT_WRITEABLE: u32 = 0x800;
    /// No erase is needed.
    pub const NO_ERASE: u32 = 0x1000;
    /// All is locked after power-up.
    pub const POWERUP_LOCK: u32 = 0x2000;
}

/// What a file of an MTD gives access to (`MTDFILEMODE`, `OTPSELECT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FileMode {
    /// The array.
    #[default]
    Normal,
    /// What the maker programmed once.
    OtpFactory,
    /// What the user programs once.
    OtpUser,
    /// The array, without error correction.
    Raw,
}

impl FileMode {
    fn from_number(number: i64) -> Option<FileMode> {
        Some(match number {
            0 => FileMode::Normal,
            1 => FileMode::OtpFactory,
            2 => FileMode::OtpUser,
            3 => FileMode::Raw,
            _ => return None,
        })
    }
}

/// A request, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtdRequest {
    /// `MEMGETINFO`.
    GetInfo,
    /// `MEMERASE` and `MEMERASE64`.
    Erase {
        /// The first byte.
        start: u64,
        /// How many.
        length: u64,
    },
    /// `MEMLOCK`.
    Lock {
        /// The first byte.
        start: u64,
        /// How many; FFFFFFFFh is what `flash_lock` sends for "to the end".
        length: u64,
    },
    /// `MEMUNLOCK`.
    Unlock {
        /// The first byte.
        start: u64,
        /// How many.
        length: u64,
    },
    /// `MEMISLOCKED`; `None` where the front cannot see which bytes.
    IsLocked {
        /// The first byte and how many.
        range: Option<(u64, u64)>,
    },
    /// `MEMGETREGIONCOUNT`.
    GetRegionCount,
    /// `MEMGETREGIONINFO`.
    GetRegionInfo {
        /// The region, counted from 0.
        index: u32,
    },
    /// `MEMGETBADBLOCK`.
    GetBadBlock {
        /// A byte of the block.
        offset: i64,
    },
    /// `MEMSETBADBLOCK`.
    SetBadBlock {
        /// A byte of the block.
        offset: i64,
    },
    /// `OTPSELECT` with a mode, which none of the named ones may be.
    OtpSelect {
        /// The mode.
        mode: Option<FileMode>,
    },
    /// `OTPGETREGIONCOUNT`.
    OtpGetRegionCount,
    /// `OTPGETREGIONINFO`.
    OtpGetRegionInfo,
    /// `OTPLOCK`.
    OtpLock {
        /// The first byte.
        start: u64,
        /// How many.
        length: u64,
    },
    /// `OTPERASE`.
    OtpErase {
        /// The first byte.
        start: u64,
        /// How many.
        length: u64,
    },
    /// `ECCGETSTATS`.
    EccGetStats,
    /// `MTDFILEMODE`.
    FileMode {
        /// The mode.
        mode: Option<FileMode>,
    },
    /// What is for spare bytes (`MEMREADOOB`, `MEMWRITE`...) or was given up.
    Unsupported,
}

/// How many bytes an ioctl really takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Its name.
    pub name: &'static str,
    /// Bytes in.
    pub input_bytes: usize,
    /// Bytes out. `OTPGETREGIONINFO` gives as many as it has: the most is here.
    pub output_bytes: usize,
    /// Whether the file must be open for writing (mtdchar.c: else EPERM).
    pub writes: bool,
}

/// Bytes of a `struct mtd_info_user`.
pub const INFO_BYTES: usize = 32;
/// Bytes of a `struct region_info_user`.
pub const REGION_BYTES: usize = 16;
/// Bytes of a `struct otp_info`.
pub const OTP_INFO_BYTES: usize = 12;
/// The most bytes of an answer to `OTPGETREGIONINFO` (mtdchar.c: one buffer of this size).
pub const OTP_INFO_MOST_BYTES: usize = 4096;
/// Bytes of a `struct mtd_ecc_stats`.
pub const ECC_STATS_BYTES: usize = 16;

/// The ioctls: number, name, bytes in, bytes out, whether it writes.
const IOCTLS: &[(u8, &str, usize, usize, bool)] = &[
    (1, "MEMGETINFO", 0, INFO_BYTES, false),
    (2, "MEMERASE", 8, 0, true),
    (3, "MEMWRITEOOB", 16, 16, true),
    (4, "MEMREADOOB", 16, 16, false),
    (5, "MEMLOCK", 8, 0, true),
    (6, "MEMUNLOCK", 8, 0, true),
    (7, "MEMGETREGIONCOUNT", 0, 4, false),
    (8, "MEMGETREGIONINFO", REGION_BYTES, REGION_BYTES, false),
    (10, "MEMGETOOBSEL", 0, 200, false),
    (11, "MEMGETBADBLOCK", 8, 0, false),
    (12, "MEMSETBADBLOCK", 8, 0, true),
    (13, "OTPSELECT", 4, 0, false),
    (14, "OTPGETREGIONCOUNT", 0, 4, false),
    (15, "OTPGETREGIONINFO", 0, OTP_INFO_MOST_BYTES, false),
    (16, "OTPLOCK", OTP_INFO_BYTES, 0, true),
    (17, "ECCGETLAYOUT", 0, 328, false),
    (18, "ECCGETSTATS", 0, ECC_STATS_BYTES, false),
    (19, "MTDFILEMODE", 0, 0, false),
    (20, "MEMERASE64", 16, 0, true),
    (21, "MEMWRITEOOB64", 24, 24, true),
    (22, "MEMREADOOB64", 24, 24, false),
    (23, "MEMISLOCKED", 8, 0, false),
    (24, "MEMWRITE", 48, 48, true),
    (25, "OTPERASE", OTP_INFO_BYTES, 0, true),
    (26, "MEMREAD", 64, 64, false),
];

/// The letter of all MTD ioctls.
const LETTER: u32 = b'M' as u32;
/// Direction bits of a number: the program writes (the kernel copies in), the program reads (it copies out).
const COPY_IN: u32 = 1 << 30;
const COPY_OUT: u32 = 2 << 30;

/// Bytes that the number itself names.
pub const fn size_in_number(number: u32) -> usize {
    (number >> 16 & 0x3FFF) as usize
}

/// What an ioctl takes and gives; `None`: it is none of MTD's. The number's letter and count say which one it is, not its
/// size and direction.
pub fn shape(number: u32) -> Option<Shape> {
    if number >> 8 & 0xFF != LETTER {
        return None;
    }
    let found = IOCTLS.iter().find(|(nr, ..)| u32::from(*nr) == number & 0xFF)?;
    let (_, name, input_bytes, output_bytes, writes) = *found;
    Some(Shape { name, input_bytes, output_bytes, writes })
}

/// Whether the kernel's copying by the number's direction bits brings all that the ioctl takes and gives: what a FUSE file
/// gets. Where it does not, a FUSE file cannot serve it.
pub fn whole_by_number(number: u32) -> bool {
    shape(number).is_some_and(|shape| {
        let size = size_in_number(number);
        let input = shape.input_bytes == 0 || (number & COPY_IN != 0 && shape.input_bytes <= size);
        let output = shape.output_bytes == 0 || (number & COPY_OUT != 0 && shape.output_bytes <= size);
        input && output
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Errno> {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    four.map(|four| u32::from_ne_bytes(*four)).ok_or(Errno::EFAULT)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Errno> {
    let eight = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    eight.map(|eight| u64::from_ne_bytes(*eight)).ok_or(Errno::EFAULT)
}

/// Decodes an ioctl from its number, its argument (where the front can see it), and the bytes that the argument points to.
///
/// # Errors
/// `ENOTTY`: it is none of MTD's. `EFAULT`: fewer bytes than it takes.
pub fn decode(number: u32, argument: Option<u64>, input: &[u8]) -> Result<MtdRequest, Errno> {
    let shape = shape(number).ok_or(Errno::ENOTTY)?;
    let blind = number & 0xFF == 23 && input.is_empty();
    if input.len() < shape.input_bytes && !blind {
        return Err(Errno::EFAULT);
    }
    let pair = || Ok::<_, Errno>((u64::from(u32_at(input, 0)?), u64::from(u32_at(input, 4)?)));
    Ok(match number & 0xFF {
        1 => MtdRequest::GetInfo,
        2 => {
            let (start, length) = pair()?;
            MtdRequest::Erase { start, length }
        }
        5 => {
            let (start, length) = pair()?;
            MtdRequest::Lock { start, length }
        }
        6 => {
            let (start, length) = pair()?;
            MtdRequest::Unlock { start, length }
        }
        7 => MtdRequest::GetRegionCount,
        8 => MtdRequest::GetRegionInfo { index: u32_at(input, 12)? },
        11 => MtdRequest::GetBadBlock { offset: u64_at(input, 0)? as i64 },
        12 => MtdRequest::SetBadBlock { offset: u64_at(input, 0)? as i64 },
        13 => MtdRequest::OtpSelect { mode: FileMode::from_number(i64::from(u32_at(input, 0)? as i32)) },
        14 => MtdRequest::OtpGetRegionCount,
        15 => MtdRequest::OtpGetRegionInfo,
        16 => {
            let (start, length) = pair()?;
            MtdRequest::OtpLock { start, length }
        }
        18 => MtdRequest::EccGetStats,
        19 => {
            let number = argument.and_then(|argument| i64::try_from(argument).ok());
            MtdRequest::FileMode { mode: number.and_then(FileMode::from_number) }
        }
        20 => MtdRequest::Erase { start: u64_at(input, 0)?, length: u64_at(input, 8)? },
        23 if input.is_empty() => MtdRequest::IsLocked { range: None },
        23 => MtdRequest::IsLocked { range: Some(pair()?) },
        25 => {
            let (start, length) = pair()?;
            MtdRequest::OtpErase { start, length }
        }
        _ => MtdRequest::Unsupported,
    })
}

/// A `struct mtd_info_user`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MtdInfo {
    /// See [`mtd_type`].
    pub mtd_type: u8,
    /// See [`flag`].
    pub flags: u32,
    /// Bytes of it all; what does not fit 32 bits is cut off, as the kernel does.
    pub size: u32,
    /// Bytes of an erase.
    pub erase_size: u32,
    /// Bytes of the smallest write.
    pub write_size: u32,
    /// Spare bytes of a page.
    pub oob_size: u32,
}

impl MtdInfo {
    /// As bytes.
    pub fn encode(&self) -> [u8; INFO_BYTES] {
        let words = [
            u32::from(self.mtd_type),
            self.flags,
            self.size,
            self.erase_size,
            self.write_size,
            self.oob_size,
        ];
        let mut bytes = [0; INFO_BYTES];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        // The type is one byte, and three that mean nothing.
        if let Some((first, _)) = bytes.split_first_chunk_mut::<4>() {
            *first = [self.mtd_type, 0, 0, 0];
        }
        bytes
    }
}

/// A `struct region_info_user`: offset, bytes of an erase, how many, index.
pub fn encode_region(offset: u32, erase_size: u32, blocks: u32, index: u32) -> Vec<u8> {
    [offset, erase_size, blocks, index].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A `struct otp_info`.
pub fn encode_otp(start: u32, length: u32, locked: bool) -> Vec<u8> {
    [start, length, u32::from(locked)].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A `struct mtd_ecc_stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EccStats {
    /// Corrected errors.
    pub corrected: u32,
    /// Reads with more errors than can be corrected.
    pub failed: u32,
    /// Blocks that are marked bad.
    pub bad_blocks: u32,
}

impl EccStats {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        [self.corrected, self.failed, self.bad_blocks, 0].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The numbers as `<mtd/mtd-abi.h>` has them on 64-bit machines.
    const NUMBERS: &[(&str, u32)] = &[
        ("MEMGETINFO", 0x8020_4d01),
        ("MEMERASE", 0x4008_4d02),
        ("MEMWRITEOOB", 0xc010_4d03),
        ("MEMREADOOB", 0xc010_4d04),
        ("MEMLOCK", 0x4008_4d05),
        ("MEMUNLOCK", 0x4008_4d06),
        ("MEMGETREGIONCOUNT", 0x8004_4d07),
        ("MEMGETREGIONINFO", 0xc010_4d08),
        ("MEMGETOOBSEL", 0x80c8_4d0a),
        ("MEMGETBADBLOCK", 0x4008_4d0b),
        ("MEMSETBADBLOCK", 0x4008_4d0c),
        ("OTPSELECT", 0x8004_4d0d),
        ("OTPGETREGIONCOUNT", 0x4004_4d0e),
        ("OTPGETREGIONINFO", 0x400c_4d0f),
        ("OTPLOCK", 0x800c_4d10),
        ("ECCGETLAYOUT", 0x8148_4d11),
        ("ECCGETSTATS", 0x8010_4d12),
        ("MTDFILEMODE", 0x4d13),
        ("MEMERASE64", 0x4010_4d14),
        ("MEMWRITEOOB64", 0xc018_4d15),
        ("MEMREADOOB64", 0xc018_4d16),
        ("MEMISLOCKED", 0x8008_4d17),
        ("MEMWRITE", 0xc030_4d18),
        ("OTPERASE", 0x400c_4d19),
        ("MEMREAD", 0xc040_4d1a),
    ];

    fn number(name: &str) -> u32 {
        NUMBERS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}")).1
    }

    #[test]
    fn sizes_are_those_that_the_numbers_name() {
        for (name, number) in NUMBERS {
            let shape = shape(*number).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(shape.name, *name);
            let size = shape.input_bytes.max(shape.output_bytes);
            // OTPGETREGIONINFO names one structure and gives an array.
            let exception = *name == "OTPGETREGIONINFO" && size_in_number(*number) == OTP_INFO_BYTES;
            assert!(exception || size == size_in_number(*number), "{name}");
        }
        assert_eq!(NUMBERS.len(), IOCTLS.len());
    }

    #[test]
    fn the_ioctls_whose_numbers_lie_are_the_five_known_ones() {
        let lost: Vec<&str> =
            NUMBERS.iter().filter(|(_, number)| !whole_by_number(*number)).map(|(name, _)| *name).collect();
        assert_eq!(lost, ["OTPSELECT", "OTPGETREGIONCOUNT", "OTPGETREGIONINFO", "OTPLOCK", "MEMISLOCKED"]);
    }

    #[test]
    fn requests_are_read_from_their_places() {
        let pair = [4096u32.to_ne_bytes(), 8192u32.to_ne_bytes()].concat();
        let erase = MtdRequest::Erase { start: 4096, length: 8192 };
        assert_eq!(decode(number("MEMERASE"), None, &pair), Ok(erase));
        let wide = [4096u64.to_ne_bytes(), 8192u64.to_ne_bytes()].concat();
        assert_eq!(decode(number("MEMERASE64"), None, &wide), Ok(erase));
        let region = [1u32, 2, 3, 7].map(u32::to_ne_bytes).concat();
        assert_eq!(
            decode(number("MEMGETREGIONINFO"), None, &region),
            Ok(MtdRequest::GetRegionInfo { index: 7 })
        );
        assert_eq!(decode(number("MEMISLOCKED"), None, &[]), Ok(MtdRequest::IsLocked { range: None }));
        let locked = MtdRequest::IsLocked { range: Some((4096, 8192)) };
        assert_eq!(decode(number("MEMISLOCKED"), None, &pair), Ok(locked));
        let user = MtdRequest::OtpSelect { mode: Some(FileMode::OtpUser) };
        assert_eq!(decode(number("OTPSELECT"), None, &2u32.to_ne_bytes()), Ok(user));
        assert_eq!(decode(number("MTDFILEMODE"), Some(9), &[]), Ok(MtdRequest::FileMode { mode: None }));
        let before = MtdRequest::GetBadBlock { offset: -1 };
        assert_eq!(decode(number("MEMGETBADBLOCK"), None, &[0xFF; 8]), Ok(before));
        assert_eq!(decode(0x5401, None, &[]), Err(Errno::ENOTTY), "TCGETS");
        assert_eq!(decode(number("MEMERASE"), None, &pair[..7]), Err(Errno::EFAULT));
        assert_eq!(decode(number("MEMWRITE"), None, &[0; 47]), Err(Errno::EFAULT));
        assert_eq!(decode(number("MEMWRITE"), None, &[0; 48]), Ok(MtdRequest::Unsupported));
    }

    #[test]
    fn an_info_has_its_fields_where_the_structure_has_them() {
        let info = MtdInfo {
            mtd_type: mtd_type::NOR,
            flags: flag::WRITEABLE | flag::BIT_WRITEABLE,
            size: 0x0100_0000,
            erase_size: 4096,
            write_size: 1,
            oob_size: 64,
        };
        let bytes = info.encode();
        assert_eq!(bytes[..4], [3, 0, 0, 0]);
        for (at, value) in [(4, 0xC00), (8, 0x0100_0000), (12, 4096), (16, 1), (20, 64), (24, 0), (28, 0)] {
            assert_eq!(u32_at(&bytes, at), Ok(value), "at {at}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_program_sends_is_read_beyond_its_end(
            number: u32,
            mtd: bool,
            argument: Option<u64>,
            input in proptest::collection::vec(any::<u8>(), 0..70),
        ) {
            let number = if mtd { number & 0xFFFF_00FF | LETTER << 8 } else { number };
            let request = decode(number, argument, &input);
            prop_assert_eq!(request == Err(Errno::ENOTTY), shape(number).is_none());
            if let (Ok(request), Some(shape)) = (request, shape(number)) {
                let blind = request == MtdRequest::IsLocked { range: None };
                prop_assert!(blind || input.len() >= shape.input_bytes);
            }
        }
    }
}
