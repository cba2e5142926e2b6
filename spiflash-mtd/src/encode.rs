//! The host's side of a frame: the bytes, and the lines they go on, that ask for a command.
//!
//! The invariant: what is encoded decodes to the same command, and counts.

use crate::command::{AddressMode, AddressPhase, CommandSpec, CommandTable, Counts, DataPhase, Lines};
use crate::error::SpiError;

/// Bytes of a frame that go on the same lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The lines.
    pub lines: Lines,
    /// The bytes. While the chip drives the lines, what is here means nothing.
    pub bytes: Vec<u8>,
}

/// The data of a request, as the chip sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// None.
    None,
    /// Bytes for the chip.
    In(&'a [u8]),
    /// So many bytes from the chip.
    Out(usize),
}

/// A command to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The command.
    pub opcode: u8,
    /// Its address, exactly when it has one.
    pub address: Option<u32>,
    /// Its mode byte, exactly when it has one. FFh asks for nothing special of any part.
    pub mode: Option<u8>,
    /// Its data.
    pub payload: Payload<'a>,
}

impl CommandTable {
    /// The frame of a request to a chip in `mode`: a segment for each phase.
    ///
    /// # Errors
    /// An opcode that the table has not; an address, mode byte or payload that the command does not take, or does and is
    /// not there; an address or a payload that does not fit.
    pub fn encode(&self, request: &Request<'_>, mode: AddressMode) -> Result<Vec<Segment>, SpiError> {
        let opcode = request.opcode;
        let spec = self.get(opcode).ok_or(SpiError::UnknownOpcode { opcode })?;
        let mut segments = vec![Segment { lines: Lines::Single, bytes: vec![opcode] }];
        let address = address_bytes(spec, request.address, mode)?;
        if request.mode.is_some() != spec.mode_byte {
            let takes = if spec.mode_byte { "a" } else { "no" };
            return Err(SpiError::Mode { opcode, takes });
        }
        let data = data_segment(spec, request.payload)?;
        if spec.counts == Counts::WithOpcode && request.payload == Payload::None {
            return Ok(segments);
        }
        let lines = spec.address.lines();
        let dummy = vec![0; usize::from(spec.dummy_clocks / lines.clocks_per_byte())];
        let mode_byte = request.mode.into_iter().collect();
        segments.extend([address, mode_byte, dummy].map(|bytes| Segment { lines, bytes }));
        segments.extend(data);
        segments.retain(|segment| !segment.bytes.is_empty());
        Ok(segments)
    }
}

fn address_bytes(spec: &CommandSpec, address: Option<u32>, mode: AddressMode) -> Result<Vec<u8>, SpiError> {
    let opcode = spec.opcode;
    let takes_one = spec.address != AddressPhase::None;
    if address.is_some() != takes_one {
        return Err(SpiError::Address { opcode, takes: if takes_one { "an" } else { "no" } });
    }
    let Some(address) = address else { return Ok(Vec::new()) };
    let bytes = spec.address.bytes(mode);
    let all = address.to_be_bytes();
    let (above, sent) = all.split_at(all.len().saturating_sub(usize::from(bytes)));
    if above.iter().any(|byte| *byte != 0) {
        return Err(SpiError::AddressTooLarge { opcode, address, bytes });
    }
    Ok(sent.to_vec())
}

fn data_segment(spec: &CommandSpec, payload: Payload<'_>) -> Result<Option<Segment>, SpiError> {
    let opcode = spec.opcode;
    match (spec.data, payload) {
        (DataPhase::None, Payload::None) => Ok(None),
        (DataPhase::Out { .. }, Payload::None) if spec.counts == Counts::WithOpcode => Ok(None),
        (DataPhase::Out { lines }, Payload::Out(bytes)) => Ok(Some(Segment { lines, bytes: vec![0; bytes] })),
        (DataPhase::In { lines, min_bytes, max_bytes }, Payload::In(data)) => {
            let fits = u32::try_from(data.len()).is_ok_and(|n| (min_bytes..=max_bytes).contains(&n));
            if !fits {
                return Err(SpiError::DataLength { opcode, bytes: data.len(), min_bytes, max_bytes });
            }
            Ok(Some(Segment { lines, bytes: data.to_vec() }))
        }
        (DataPhase::None, _) => Err(SpiError::Payload { opcode, takes: "no data" }),
        (DataPhase::In { .. }, _) => Err(SpiError::Payload { opcode, takes: "data for the chip" }),
        (DataPhase::Out { .. }, _) => Err(SpiError::Payload { opcode, takes: "data from the chip" }),
    }
}
