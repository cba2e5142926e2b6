//! A second frame decoder, written from the data sheets' instruction tables and not from `src/`: it looks at a whole frame
//! at once and cuts it into slices. Its table of layouts is its own. What the property tests compare with.

use spiflash_mtd::Lines;

/// One byte on the bus, and the number of lines it went over.
pub(crate) type Beat = (u8, u8);

/// The data of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Nothing,
    /// Lines, and the most bytes if there is a limit.
    ToChip(u8, Option<usize>),
    FromChip(u8),
}

pub(crate) struct Layout {
    pub(crate) address_bytes: usize,
    pub(crate) address_lines: u8,
    pub(crate) mode_bytes: usize,
    pub(crate) dummy_clocks: u32,
    pub(crate) flow: Flow,
}

/// What a frame was, as far as a client can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Counts,
    Short,
    Long(u64),
    WithinByte(u8),
    Unknown,
    WrongLines,
    Misaligned,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) opcode: u8,
    pub(crate) address: Option<u32>,
    pub(crate) mode: Option<u8>,
    pub(crate) data: (usize, usize),
    pub(crate) verdict: Verdict,
}

pub(crate) fn lines(count: u8) -> Lines {
    match count {
        1 => Lines::Single,
        2 => Lines::Dual,
        _ => Lines::Quad,
    }
}

/// The rows of the instruction tables; `wide` is the 4-byte address mode.
pub(crate) fn layout(opcode: u8, wide: bool) -> Option<Layout> {
    let by_mode = if wide { 4 } else { 3 };
    let row = |address_bytes, address_lines, mode_bytes, dummy_clocks, flow| {
        Some(Layout { address_bytes, address_lines, mode_bytes, dummy_clocks, flow })
    };
    match opcode {
        0x04 | 0x06 | 0x60 | 0xC7 | 0x66 | 0x99 | 0x75 | 0x7A | 0xB7 | 0xE9 | 0xB9 => {
            row(0, 1, 0, 0, Flow::Nothing)
        }
        0x05 | 0x35 | 0x15 | 0x9F => row(0, 1, 0, 0, Flow::FromChip(1)),
        0x01 => row(0, 1, 0, 0, Flow::ToChip(1, Some(2))),
        0x31 | 0x11 => row(0, 1, 0, 0, Flow::ToChip(1, Some(1))),
        0xAB => row(0, 1, 0, 24, Flow::FromChip(1)),
        0x5A => row(3, 1, 0, 8, Flow::FromChip(1)),
        0x03 => row(by_mode, 1, 0, 0, Flow::FromChip(1)),
        0x0B => row(by_mode, 1, 0, 8, Flow::FromChip(1)),
        0x3B => row(by_mode, 1, 0, 8, Flow::FromChip(2)),
        0x6B => row(by_mode, 1, 0, 8, Flow::FromChip(4)),
        0xBB => row(by_mode, 2, 1, 0, Flow::FromChip(2)),
        0xEB => row(by_mode, 4, 1, 4, Flow::FromChip(4)),
        0x13 => row(4, 1, 0, 0, Flow::FromChip(1)),
        0x0C => row(4, 1, 0, 8, Flow::FromChip(1)),
        0x3C => row(4, 1, 0, 8, Flow::FromChip(2)),
        0x6C => row(4, 1, 0, 8, Flow::FromChip(4)),
        0xBC => row(4, 2, 1, 0, Flow::FromChip(2)),
        0xEC => row(4, 4, 1, 4, Flow::FromChip(4)),
        0x02 => row(by_mode, 1, 0, 0, Flow::ToChip(1, None)),
        0x32 => row(by_mode, 1, 0, 0, Flow::ToChip(4, None)),
        0x12 => row(4, 1, 0, 0, Flow::ToChip(1, None)),
        0x34 => row(4, 1, 0, 0, Flow::ToChip(4, None)),
        0x20 | 0x52 | 0xD8 => row(by_mode, 1, 0, 0, Flow::Nothing),
        0x21 | 0x5C | 0xDC => row(4, 1, 0, 0, Flow::Nothing),
        _ => None,
    }
}

/// Decodes a whole frame, `None` when there is nothing in it. A first byte that is not on one line is no opcode.
pub(crate) fn decode(frame: &[Beat], stray_clocks: u8, wide: bool) -> Option<Decoded> {
    let (opcode, opcode_lines) = *frame.first()?;
    if opcode_lines != 1 {
        return None;
    }
    let mut decoded = Decoded { opcode, address: None, mode: None, data: (0, 0), verdict: Verdict::Unknown };
    let Some(layout) = layout(opcode, wide) else { return Some(decoded) };
    decoded.verdict = body(&layout, frame, stray_clocks, &mut decoded);
    if opcode == 0xAB {
        decoded.verdict = Verdict::Counts;
    }
    Some(decoded)
}

fn body(layout: &Layout, frame: &[Beat], stray_clocks: u8, decoded: &mut Decoded) -> Verdict {
    let address_end = 1 + layout.address_bytes;
    let mode_end = address_end + layout.mode_bytes;
    let header = &frame[1..mode_end.min(frame.len())];
    if header.iter().any(|(_, lines)| *lines != layout.address_lines) {
        let good = header.iter().take_while(|(_, lines)| *lines == layout.address_lines).count();
        take_header(layout, &header[..good], decoded);
        return Verdict::WrongLines;
    }
    take_header(layout, header, decoded);
    if frame.len() < mode_end {
        return Verdict::Short;
    }
    let mut at = mode_end;
    let mut clocks = 0;
    while clocks < layout.dummy_clocks {
        let Some((_, lines)) = frame.get(at) else { return Verdict::Short };
        clocks += 8 / u32::from(*lines);
        at += 1;
    }
    if clocks > layout.dummy_clocks {
        // The last byte is dummy at first and data after.
        match layout.flow {
            Flow::FromChip(lines) if frame[at - 1].1 == lines => at -= 1,
            _ => return Verdict::Misaligned,
        }
    }
    let rest = &frame[at..];
    let (data_lines, limit) = match layout.flow {
        Flow::Nothing => (0, 0),
        Flow::ToChip(lines, limit) => (lines, limit.unwrap_or(usize::MAX)),
        Flow::FromChip(lines) => (lines, usize::MAX),
    };
    let data = &rest[..rest.len().min(limit)];
    let good = data.iter().take_while(|(_, lines)| *lines == data_lines).count();
    if good > 0 {
        decoded.data = (at, at + good);
    }
    let excess = rest.len() - data.len();
    match layout.flow {
        _ if good < data.len() => Verdict::WrongLines,
        Flow::FromChip(_) => Verdict::Counts,
        _ if excess > 0 => Verdict::Long(excess as u64),
        Flow::ToChip(..) if data.is_empty() => Verdict::Short,
        _ if stray_clocks > 0 => Verdict::WithinByte(stray_clocks),
        _ => Verdict::Counts,
    }
}

fn take_header(layout: &Layout, header: &[Beat], decoded: &mut Decoded) {
    let n = layout.address_bytes;
    if n > 0 && header.len() >= n {
        decoded.address = Some(header[..n].iter().fold(0, |value, (byte, _)| value * 256 + u32::from(*byte)));
    }
    if layout.mode_bytes > 0 && header.len() > n {
        decoded.mode = Some(header[n].0);
    }
}
