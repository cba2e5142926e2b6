//! The superblock: what the file system is, and which device it was made for.

use super::codec::{Reader, Writer};
use crate::device::{Geometry, ZoneId};

/// The first eight bytes of a superblock.
pub const MAGIC: [u8; 8] = *b"ZONEFUSE";
/// A label's greatest length in bytes.
pub const MAX_LABEL_BYTES: usize = 63;
/// The features that change what older programs would do wrong; none yet.
pub const KNOWN_FEATURES: u64 = 0;

/// The superblock, written anew at the start of a metadata zone whenever the log rolls over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Chosen by mkfs; its first eight bytes are the salt of the frames.
    pub uuid: [u8; 16],
    /// A name for people.
    pub label: String,
    /// The file system's block: a multiple of the device's.
    pub block_size_bytes: u32,
    /// The device's zone size.
    pub zone_size_bytes: u64,
    /// The device's zone capacity.
    pub zone_capacity_bytes: u64,
    /// The device's number of zones.
    pub nr_zones: u32,
    /// The two metadata zones.
    pub meta_zones: [ZoneId; 2],
    /// When mkfs ran, in seconds since 1970.
    pub created_seconds: u64,
    /// Features that a program must know to read the file system.
    pub features: u64,
}

impl Superblock {
    /// The salt of every frame of this file system.
    pub fn salt(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.uuid[..8]);
        u64::from_le_bytes(first)
    }

    /// The uuid as people write it.
    pub fn uuid_text(&self) -> String {
        let hex: String = self.uuid.iter().map(|b| format!("{b:02x}")).collect();
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        parts.join("-")
    }

    /// Whether the file system was made for a device like this one; else the difference.
    pub fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let ours = (self.zone_size_bytes, self.zone_capacity_bytes, self.nr_zones);
        let theirs = (geometry.zone_size_bytes, geometry.zone_capacity_bytes, geometry.nr_zones);
        let block = self.block_size_bytes;
        if ours != theirs {
            return Err(format!(
                "made for {} zones of {} bytes (capacity {}), the device has {} of {} ({})",
                ours.2, ours.0, ours.1, theirs.2, theirs.0, theirs.1
            ));
        }
        if !block.is_power_of_two()
            || block > 1 << 16
            || !block.is_multiple_of(geometry.block_size_bytes.max(1))
            || !self.zone_capacity_bytes.is_multiple_of(u64::from(block))
        {
            return Err(format!("its block of {block} bytes does not fit the device's"));
        }
        if self.meta_zones[0] == self.meta_zones[1] || self.meta_zones.iter().any(|z| z.0 >= self.nr_zones) {
            return Err("its metadata zones are not zones of the device".into());
        }
        Ok(())
    }

    /// The payload of a superblock frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(&MAGIC);
        out.u64(self.features);
        out.bytes(&self.uuid);
        out.u32(self.block_size_bytes);
        out.u32(self.nr_zones);
        out.u64(self.zone_size_bytes);
        out.u64(self.zone_capacity_bytes);
        out.u32(self.meta_zones[0].0);
        out.u32(self.meta_zones[1].0);
        out.u64(self.created_seconds);
        out.name(self.label.as_bytes());
        out.0
    }

    /// Reads a superblock frame's payload. Bytes behind the known fields are left for later versions.
    pub fn decode(payload: &[u8]) -> Option<Superblock> {
        let mut fields = Reader(payload);
        if fields.bytes(8)? != MAGIC {
            return None;
        }
        let features = fields.u64()?;
        let uuid = fields.bytes(16)?.try_into().ok()?;
        let block_size_bytes = fields.u32()?;
        let nr_zones = fields.u32()?;
        let zone_size_bytes = fields.u64()?;
        let zone_capacity_bytes = fields.u64()?;
        let meta_zones = [ZoneId(fields.u32()?), ZoneId(fields.u32()?)];
        let created_seconds = fields.u64()?;
        let label = String::from_utf8(fields.name()?).ok()?;
        if label.len() > MAX_LABEL_BYTES {
            return None;
        }
        Some(Superblock {
            uuid,
            label,
            block_size_bytes,
            zone_size_bytes,
            zone_capacity_bytes,
            nr_zones,
            meta_zones,
            created_seconds,
            features,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_superblock_reads_back_as_it_was_written(
            uuid: [u8; 16], label in "[a-zA-Z0-9 ]{0,63}", sizes: (u32, u32, u64, u64), meta: (u32, u32),
            created_seconds: u64, features: u64,
        ) {
            let (block_size_bytes, nr_zones, zone_size_bytes, zone_capacity_bytes) = sizes;
            let meta_zones = [ZoneId(meta.0), ZoneId(meta.1)];
            let superblock = Superblock {
                uuid, label, block_size_bytes, zone_size_bytes, zone_capacity_bytes, nr_zones, meta_zones,
                created_seconds, features,
            };
            prop_assert_eq!(Superblock::decode(&superblock.encode()), Some(superblock));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Superblock::decode(&bytes);
            let mut with_magic = MAGIC.to_vec();
            with_magic.extend(bytes);
            let _ = Superblock::decode(&with_magic);
        }
    }
}
