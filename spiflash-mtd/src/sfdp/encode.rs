//! The tables as bytes.

use super::{
    AddressBytes, BYTE, Basic, CHIP_ERASE, ERASE, EraseType, Extended, FastRead, FourByte, INTERVAL, LATENCY,
    PAGE, ReadMode, Region, Tables,
};

/// Where the basic table is; before it is room for five headers.
const BASIC_AT: u32 = 0x30;
/// Where the others follow: after 20 dwords.
const OTHERS_AT: u32 = 0x80;
/// What is read is at least so long, and a multiple of it.
const BLOCK: usize = 256;

impl Tables {
    /// The bytes from address 0 on; unused ones are FFh.
    pub fn encode(&self) -> Vec<u8> {
        let minor = self.revision_minor;
        let mut tables = vec![(0xFF00u16, BASIC_AT, self.basic.dwords(minor))];
        let mut at = OTHERS_AT;
        if let Some(four_byte) = &self.four_byte {
            tables.push((0xFF84, at, four_byte.dwords(minor)));
            at += 16;
        }
        if !self.map.is_empty() {
            tables.push((0xFF81, at, map_dwords(&self.map)));
        }
        let mut bytes = vec![0xFF; BLOCK];
        bytes.splice(0..8, [0x53, 0x46, 0x44, 0x50, minor, 1, tables.len() as u8 - 1, 0xFF]);
        for (index, (id, at, dwords)) in tables.iter().enumerate() {
            let [low, high] = id.to_le_bytes();
            // The minor revision of the other two tables is their own: both are at 1.0.
            let own = if *id == 0xFF00 { minor } else { 0 };
            let [p0, p1, p2, _] = at.to_le_bytes();
            let header = [low, own, 1, dwords.len() as u8, p0, p1, p2, high];
            bytes.splice(8 + 8 * index..16 + 8 * index, header);
            let end = *at as usize + 4 * dwords.len();
            bytes.resize(bytes.len().max(end.next_multiple_of(BLOCK)), 0xFF);
            bytes.splice(*at as usize..end, dwords.iter().flat_map(|dword| dword.to_le_bytes()));
        }
        bytes
    }
}

fn half(read: Option<&FastRead>) -> u32 {
    read.map_or(0, |read| {
        u32::from(read.opcode) << 8 | u32::from(read.mode_clocks & 7) << 5 | u32::from(read.wait_clocks & 31)
    })
}

fn kind(erase: Option<&EraseType>) -> u32 {
    erase.map_or(0, |erase| u32::from(erase.opcode) << 8 | u32::from(erase.log2_bytes))
}

fn bit(set: bool, place: u32) -> u32 {
    u32::from(set) << place
}

impl Basic {
    fn dwords(&self, minor: u8) -> Vec<u32> {
        let read = |mode: ReadMode| self.reads.get(mode as usize).and_then(Option::as_ref);
        let has = |mode: ReadMode| read(mode).is_some();
        let address = match self.address {
            AddressBytes::Three => 0,
            AddressBytes::ThreeOrFour => 1,
            AddressBytes::Four => 2,
        };
        let volatile = match self.volatile_protection {
            None => 0,
            Some(0x50) => 0b01,
            Some(_) => 0b11,
        };
        let first = if self.erase_4k.is_some() { 0b01 } else { 0b11 }
            | bit(self.buffered_program, 2)
            | volatile << 3
            | 0b111 << 5
            | u32::from(self.erase_4k.unwrap_or(0xFF)) << 8
            | bit(has(ReadMode::Dual112), 16)
            | address << 17
            | bit(has(ReadMode::Dual122), 20)
            | bit(has(ReadMode::Quad144), 21)
            | bit(has(ReadMode::Quad114), 22)
            | 0xFF80_0000;
        let bits = self.size_bytes.saturating_mul(8);
        // Up to 2 Gbit the last bit's address; above, a power of two.
        let density =
            if bits <= 1 << 31 { bits.saturating_sub(1) as u32 } else { 1 << 31 | bits.trailing_zeros() };
        let mut dwords = vec![
            first,
            density,
            half(read(ReadMode::Quad144)) | half(read(ReadMode::Quad114)) << 16,
            half(read(ReadMode::Dual112)) | half(read(ReadMode::Dual122)) << 16,
            0xFFFF_FFEE | bit(has(ReadMode::Dual222), 0) | bit(has(ReadMode::Quad444), 4),
            0xFFFF | half(read(ReadMode::Dual222)) << 16,
            0xFFFF | half(read(ReadMode::Quad444)) << 16,
            kind(self.erases[0].as_ref()) | kind(self.erases[1].as_ref()) << 16,
            kind(self.erases[2].as_ref()) | kind(self.erases[3].as_ref()) << 16,
        ];
        if let Some(extended) = &self.extended {
            dwords.extend(extended.dwords(&self.erases));
            if minor >= 7 {
                // No octal lines; the clocks of the modes are not stated.
                dwords.extend([0, 0, 0, 0xFFFF_FFFF]);
            }
        }
        dwords
    }
}

impl Extended {
    fn dwords(&self, erases: &[Option<EraseType>; 4]) -> [u32; 7] {
        let factor = |factor: u8| u32::from(factor / 2).saturating_sub(1) & 0xF;
        let mut tenth = factor(self.erase_max_factor);
        for (at, erase) in erases.iter().enumerate() {
            tenth |= erase.map_or(0, |erase| ERASE.encode(erase.typical_ns)) << (4 + 7 * at);
        }
        let eleventh = factor(self.program_max_factor)
            | u32::from(self.log2_page_bytes & 0xF) << 4
            | PAGE.encode(self.page_program_ns) << 8
            | BYTE.encode(self.first_byte_ns) << 14
            | BYTE.encode(self.next_byte_ns) << 19
            | CHIP_ERASE.encode(self.chip_erase_ns) << 24
            | 1 << 31;
        let polls = bit(self.poll_status, 2) | bit(self.poll_flag, 3);
        let power_down = self.power_down.map_or(1 << 31, |down| {
            LATENCY.encode(down.exit_ns) << 8 | u32::from(down.exit) << 15 | u32::from(down.enter) << 23
        });
        [
            tenth,
            eleventh,
            self.twelfth(),
            self.suspend.map_or(0, |suspend| {
                u32::from_le_bytes([
                    suspend.program_resume,
                    suspend.program_suspend,
                    suspend.erase_resume,
                    suspend.erase_suspend,
                ])
            }),
            0xF3 | polls | power_down,
            self.fifteenth(),
            u32::from(self.status_keeps & 0x1F)
                | 0b111 << 5
                | u32::from(self.resets & 0x3F) << 8
                | u32::from(self.four_byte_exit) << 14
                | 0b11 << 22
                | u32::from(self.four_byte_enter & 0x7F) << 24
                | 1 << 31,
        ]
    }

    /// While a program is suspended no new erase or program begins (Ch); while an erase is, none where it was (Eh).
    fn twelfth(&self) -> u32 {
        let Some(suspend) = &self.suspend else { return 1 << 31 | 1 << 8 };
        0xEC | 1 << 8
            | INTERVAL.encode(suspend.program_interval_ns) << 9
            | LATENCY.encode(suspend.program_latency_ns) << 13
            | INTERVAL.encode(suspend.erase_interval_ns) << 20
            | LATENCY.encode(suspend.erase_latency_ns) << 24
    }

    fn fifteenth(&self) -> u32 {
        let qpi = u32::from(self.qpi_exit & 0xF) | u32::from(self.qpi_enter & 0x1F) << 4;
        let continuous = self
            .continuous
            .map_or(0, |(exit, entry)| 1 << 9 | u32::from(exit & 0x3F) << 10 | u32::from(entry & 0xF) << 16);
        qpi | continuous | u32::from(self.quad_enable & 7) << 20 | 0xFF00_0000
    }
}

impl FourByte {
    fn dwords(&self, minor: u8) -> Vec<u32> {
        // Reserved bits are 1; revision D gave bits 20 to 24 to commands on eight lines.
        let reserved = if minor >= 8 { 0xFE00_0000 } else { 0xFFF0_0000 };
        vec![self.supported & 0x000F_FFFF | reserved, u32::from_le_bytes(self.erases)]
    }
}

/// One map, the last and only one: no configuration is asked for.
fn map_dwords(map: &[Region]) -> Vec<u32> {
    let count = (map.len() as u32 - 1) & 0xFF;
    let head = 0b11 | 0xFF << 24 | count << 16;
    let region = |region: &Region| {
        let bytes = (region.bytes / 256).saturating_sub(1) as u32 & 0x00FF_FFFF;
        bytes << 8 | 0xF0 | u32::from(region.erases & 0xF)
    };
    std::iter::once(head).chain(map.iter().map(region)).collect()
}
