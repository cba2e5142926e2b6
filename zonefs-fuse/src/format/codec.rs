//! Little-endian fields, one after the other.

use crate::model::Time;

/// Writes fields.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
    }

    /// A length in two bytes, then the bytes.
    pub(super) fn name(&mut self, value: &[u8]) {
        self.u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
        self.bytes(value.get(..usize::from(u16::MAX)).unwrap_or(value));
    }

    pub(super) fn time(&mut self, value: Time) {
        self.bytes(&value.seconds.to_le_bytes());
        self.u32(value.nanoseconds);
    }
}

/// Reads fields; `None` when the bytes end early.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn name(&mut self) -> Option<Vec<u8>> {
        let length = self.u16()?;
        self.bytes(usize::from(length)).map(<[u8]>::to_vec)
    }

    pub(super) fn time(&mut self) -> Option<Time> {
        let seconds = i64::from_le_bytes(self.array()?);
        let nanoseconds = self.u32()?;
        (nanoseconds < 1_000_000_000).then_some(Time { seconds, nanoseconds })
    }
}
