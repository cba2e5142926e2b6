//! Frames of one chip, on one line: the bytes of a command before its data, and the transfers.
//!
//! The invariant: a frame that is sent has the address bytes and the dummy clocks that its [`CommandSpec`] says.

use super::DriverError;
use crate::bus::{SpiBus, Transfer};
use crate::command::{AddressMode, AddressPhase, CommandSpec, DataPhase, Lines};

/// What comes before the data: opcode, address, mode byte, dummy bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    bytes: [u8; Header::MOST],
    used: usize,
}

impl Header {
    /// An opcode, four address bytes, a mode byte, and up to 31 dummy bytes.
    const MOST: usize = 40;

    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.used) {
            *slot = byte;
            self.used += 1;
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

/// Whether all of a command goes on one line, so that whole bytes of it can be sent as they are.
pub(super) fn single(spec: &CommandSpec) -> bool {
    let data = match spec.data {
        DataPhase::None => true,
        DataPhase::In { lines, .. } | DataPhase::Out { lines } => lines == Lines::Single,
    };
    data && !spec.mode_byte && spec.address.lines() == Lines::Single
}

/// The header of a command on one line, with the dummy clocks that the chip has for it now.
pub(super) fn header(
    spec: &CommandSpec,
    address: u64,
    mode: AddressMode,
    dummy_clocks: u8,
) -> Result<Header, DriverError> {
    let mut header = Header { bytes: [0; Header::MOST], used: 0 };
    header.push(spec.opcode);
    let count = spec.address.bytes(mode);
    if spec.address != AddressPhase::None && address >> (8 * u32::from(count)) != 0 {
        return Err(DriverError::AddressTooLarge { command: spec.name, address, bytes: count });
    }
    for at in (0..count).rev() {
        header.push((address >> (8 * u32::from(at))) as u8);
    }
    if !dummy_clocks.is_multiple_of(8) {
        return Err(DriverError::BrokenDummy { command: spec.name, clocks: dummy_clocks });
    }
    for _ in 0..dummy_clocks / 8 {
        header.push(0);
    }
    Ok(header)
}

/// A chip on a bus.
pub(super) struct Wire<'b> {
    /// The bus.
    pub(super) bus: &'b mut dyn SpiBus,
    /// The chip select.
    pub(super) select: u8,
}

impl Wire<'_> {
    /// A command that is only an opcode.
    pub(super) fn control(&mut self, spec: &CommandSpec) -> Result<(), DriverError> {
        Ok(self.bus.frame(self.select, &mut [Transfer::write(&[spec.opcode])])?)
    }

    /// A frame with data for the chip, which may be none.
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) -> Result<(), DriverError> {
        let mut both = [Transfer::write(header.bytes()), Transfer::write(data)];
        let transfers = if data.is_empty() { &mut both[..1] } else { &mut both[..] };
        Ok(self.bus.frame(self.select, transfers)?)
    }

    /// A frame with data from the chip.
    pub(super) fn receive(&mut self, header: &Header, data: &mut [u8]) -> Result<(), DriverError> {
        let mut both = [Transfer::write(header.bytes()), Transfer::read(data)];
        Ok(self.bus.frame(self.select, &mut both)?)
    }

    /// A command without an address whose data are read.
    pub(super) fn receive_plain(&mut self, spec: &CommandSpec, data: &mut [u8]) -> Result<(), DriverError> {
        let header = header(spec, 0, AddressMode::ThreeByte, spec.dummy_clocks)?;
        self.receive(&header, data)
    }
}

/// A header that is only the opcode, for the frames that a chip takes without the address that their command has.
pub(super) fn opcode(spec: &CommandSpec) -> Header {
    let mut header = Header { bytes: [0; Header::MOST], used: 0 };
    header.push(spec.opcode);
    header
}
