//! Entries: what the snapshot and the log are made of. Each changes the name space or a file by one step.
//!
//! An entry is a tag, its body's length, and the body. A tag with [`SKIPPABLE`] set may be skipped by a
//! program that does not know it; any other unknown tag makes the file system unreadable for that program.
//! A known tag's body has exactly the fields below: new fields come as new tags.

use super::codec::{Reader, Writer};
use crate::device::ZoneId;
use crate::model::{Attrs, Extent, Time};

/// The bit of a tag that allows skipping it.
pub const SKIPPABLE: u16 = 0x8000;
/// The length of tag, reserved field and body length.
pub const ENTRY_HEADER_BYTES: usize = 8;
/// The length of one extent.
pub const EXTENT_BYTES: usize = 20;
/// No entry carries more extents than this; a longer list takes several entries.
pub const MAX_ENTRY_EXTENTS: usize = 128;

/// One step of the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A new inode of any kind, under a new name.
    Create {
        /// The directory.
        parent: u64,
        /// The name in it.
        name: Vec<u8>,
        /// The new inode's number, never used before.
        ino: u64,
        /// Its attributes; the kind is in the mode.
        attrs: Attrs,
        /// The device number of a device node.
        rdev: u32,
        /// The target of a symbolic link.
        target: Vec<u8>,
    },
    /// One more name for a file.
    Link {
        /// The file.
        ino: u64,
        /// The directory.
        parent: u64,
        /// The name in it.
        name: Vec<u8>,
        /// When.
        time: Time,
    },
    /// A name of something other than a directory goes; with the last name, the inode.
    Unlink {
        /// The directory.
        parent: u64,
        /// The name in it.
        name: Vec<u8>,
        /// When.
        time: Time,
    },
    /// An empty directory goes.
    Rmdir {
        /// The directory it is in.
        parent: u64,
        /// Its name.
        name: Vec<u8>,
        /// When.
        time: Time,
    },
    /// A name moves, over whatever had the new one.
    Rename {
        /// The directory it is in.
        parent: u64,
        /// Its name there.
        name: Vec<u8>,
        /// The directory it moves to.
        new_parent: u64,
        /// Its name there.
        new_name: Vec<u8>,
        /// When.
        time: Time,
    },
    /// New attributes; the kind in the mode stays.
    SetAttr {
        /// The inode.
        ino: u64,
        /// All its attributes.
        attrs: Attrs,
    },
    /// A file keeps its first bytes and continues with these extents.
    Extents {
        /// The file.
        ino: u64,
        /// How many bytes stay.
        keep_bytes: u64,
        /// The file's times.
        mtime: Time,
        /// The inode's time.
        ctime: Time,
        /// What follows the bytes that stay.
        extents: Vec<Extent>,
    },
    /// Of a snapshot: an inode, without names.
    Inode {
        /// Its number.
        ino: u64,
        /// Its attributes.
        attrs: Attrs,
        /// The device number of a device node.
        rdev: u32,
        /// The target of a symbolic link.
        target: Vec<u8>,
    },
    /// Of a snapshot: a name.
    Dirent {
        /// The directory.
        parent: u64,
        /// The name in it.
        name: Vec<u8>,
        /// What it names.
        ino: u64,
    },
    /// The end of a snapshot; without it there is none.
    SnapshotEnd {
        /// The number of the next new inode.
        next_ino: u64,
        /// How many inodes the snapshot has.
        inodes: u64,
        /// How many names.
        dirents: u64,
    },
}

/// What one entry of a payload turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// An entry of this version.
    Known(Entry),
    /// An unknown one that may be skipped.
    Skipped(u16),
}

fn put_attrs(out: &mut Writer, attrs: &Attrs) {
    out.u32(attrs.mode);
    out.u32(attrs.uid);
    out.u32(attrs.gid);
    out.time(attrs.atime);
    out.time(attrs.mtime);
    out.time(attrs.ctime);
}

fn get_attrs(fields: &mut Reader<'_>) -> Option<Attrs> {
    Some(Attrs {
        mode: fields.u32()?,
        uid: fields.u32()?,
        gid: fields.u32()?,
        atime: fields.time()?,
        mtime: fields.time()?,
        ctime: fields.time()?,
    })
}

impl Entry {
    fn tag(&self) -> u16 {
        match self {
            Entry::Create { .. } => 1,
            Entry::Link { .. } => 2,
            Entry::Unlink { .. } => 3,
            Entry::Rmdir { .. } => 4,
            Entry::Rename { .. } => 5,
            Entry::SetAttr { .. } => 6,
            Entry::Extents { .. } => 7,
            Entry::Inode { .. } => 16,
            Entry::Dirent { .. } => 17,
            Entry::SnapshotEnd { .. } => 18,
        }
    }

    /// Whether the entry belongs into snapshots only.
    pub fn is_of_a_snapshot(&self) -> bool {
        matches!(self, Entry::Inode { .. } | Entry::Dirent { .. } | Entry::SnapshotEnd { .. })
    }

    /// The entry's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::default();
        self.put_body(&mut body);
        let mut out = Writer::default();
        out.u16(self.tag());
        out.u16(0);
        out.u32(u32::try_from(body.0.len()).unwrap_or(u32::MAX));
        out.bytes(&body.0);
        out.0
    }

    fn put_body(&self, out: &mut Writer) {
        match self {
            Entry::Create { parent, name, ino, attrs, rdev, target } => {
                out.u64(*parent);
                out.u64(*ino);
                put_attrs(out, attrs);
                out.u32(*rdev);
                out.name(name);
                out.name(target);
            }
            Entry::Link { ino, parent, name, time } => {
                out.u64(*ino);
                out.u64(*parent);
                out.time(*time);
                out.name(name);
            }
            Entry::Unlink { parent, name, time } | Entry::Rmdir { parent, name, time } => {
                out.u64(*parent);
                out.time(*time);
                out.name(name);
            }
            Entry::Rename { parent, name, new_parent, new_name, time } => {
                out.u64(*parent);
                out.u64(*new_parent);
                out.time(*time);
                out.name(name);
                out.name(new_name);
            }
            Entry::SetAttr { ino, attrs } => {
                out.u64(*ino);
                put_attrs(out, attrs);
            }
            Entry::Extents { ino, keep_bytes, mtime, ctime, extents } => {
                out.u64(*ino);
                out.u64(*keep_bytes);
                out.time(*mtime);
                out.time(*ctime);
                out.u32(u32::try_from(extents.len()).unwrap_or(u32::MAX));
                for extent in extents {
                    out.u32(extent.zone.0);
                    out.u64(extent.offset_bytes);
                    out.u64(extent.length_bytes);
                }
            }
            Entry::Inode { ino, attrs, rdev, target } => {
                out.u64(*ino);
                put_attrs(out, attrs);
                out.u32(*rdev);
                out.name(target);
            }
            Entry::Dirent { parent, name, ino } => {
                out.u64(*parent);
                out.u64(*ino);
                out.name(name);
            }
            Entry::SnapshotEnd { next_ino, inodes, dirents } => {
                out.u64(*next_ino);
                out.u64(*inodes);
                out.u64(*dirents);
            }
        }
    }

    fn get_body(tag: u16, fields: &mut Reader<'_>) -> Option<Entry> {
        Some(match tag {
            1 => {
                let (parent, ino) = (fields.u64()?, fields.u64()?);
                let (attrs, rdev) = (get_attrs(fields)?, fields.u32()?);
                Entry::Create { parent, ino, attrs, rdev, name: fields.name()?, target: fields.name()? }
            }
            2 => {
                let (ino, parent, time) = (fields.u64()?, fields.u64()?, fields.time()?);
                Entry::Link { ino, parent, time, name: fields.name()? }
            }
            3 => Entry::Unlink { parent: fields.u64()?, time: fields.time()?, name: fields.name()? },
            4 => Entry::Rmdir { parent: fields.u64()?, time: fields.time()?, name: fields.name()? },
            5 => {
                let (parent, new_parent, time) = (fields.u64()?, fields.u64()?, fields.time()?);
                Entry::Rename { parent, new_parent, time, name: fields.name()?, new_name: fields.name()? }
            }
            6 => Entry::SetAttr { ino: fields.u64()?, attrs: get_attrs(fields)? },
            7 => {
                let (ino, keep_bytes) = (fields.u64()?, fields.u64()?);
                let (mtime, ctime, count) = (fields.time()?, fields.time()?, fields.u32()?);
                if count as usize > MAX_ENTRY_EXTENTS {
                    return None;
                }
                let mut extents = Vec::with_capacity(count as usize);
                for _ in 0..count {
                    extents.push(Extent {
                        zone: ZoneId(fields.u32()?),
                        offset_bytes: fields.u64()?,
                        length_bytes: fields.u64()?,
                    });
                }
                Entry::Extents { ino, keep_bytes, mtime, ctime, extents }
            }
            16 => {
                let (ino, attrs, rdev) = (fields.u64()?, get_attrs(fields)?, fields.u32()?);
                Entry::Inode { ino, attrs, rdev, target: fields.name()? }
            }
            17 => Entry::Dirent { parent: fields.u64()?, ino: fields.u64()?, name: fields.name()? },
            18 => {
                Entry::SnapshotEnd { next_ino: fields.u64()?, inodes: fields.u64()?, dirents: fields.u64()? }
            }
            _ => return None,
        })
    }

    /// Reads all entries of a frame's payload.
    ///
    /// # Errors
    /// What is wrong, in words: a body that does not parse, or an unknown tag that must not be skipped.
    pub fn decode_all(payload: &[u8]) -> Result<Vec<Decoded>, String> {
        let mut fields = Reader(payload);
        let mut entries = Vec::new();
        while !fields.0.is_empty() {
            let at = payload.len() - fields.0.len();
            let cut = || format!("the entry at byte {at} of the payload is cut short");
            let tag = fields.u16().ok_or_else(cut)?;
            fields.u16().ok_or_else(cut)?;
            let length = fields.u32().ok_or_else(cut)?;
            let mut body = Reader(fields.bytes(length as usize).ok_or_else(cut)?);
            let known = matches!(tag, 1..=7 | 16..=18);
            entries.push(match Entry::get_body(tag, &mut body) {
                Some(entry) if body.0.is_empty() => Decoded::Known(entry),
                _ if known => {
                    return Err(format!("the entry at byte {at} of the payload (tag {tag}) is not valid"));
                }
                _ if tag & SKIPPABLE != 0 => Decoded::Skipped(tag),
                _ => return Err(format!("unknown entry (tag {tag}): a newer program wrote this")),
            });
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time() -> impl Strategy<Value = Time> {
        (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds })
    }

    fn attrs() -> impl Strategy<Value = Attrs> {
        (any::<(u32, u32, u32)>(), time(), time(), time())
            .prop_map(|((mode, uid, gid), atime, mtime, ctime)| Attrs { mode, uid, gid, atime, mtime, ctime })
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..300)
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let extent = any::<(u32, u64, u64)>().prop_map(|(zone, offset_bytes, length_bytes)| Extent {
            zone: ZoneId(zone),
            offset_bytes,
            length_bytes,
        });
        let extents = prop::collection::vec(extent, 0..MAX_ENTRY_EXTENTS);
        let ids = any::<(u64, u64)>();
        prop_oneof![
            (ids, bytes(), attrs(), any::<u32>(), bytes()).prop_map(
                |((parent, ino), name, attrs, rdev, target)| {
                    Entry::Create { parent, ino, name, attrs, rdev, target }
                }
            ),
            (ids, bytes(), time()).prop_map(|((ino, parent), name, time)| Entry::Link {
                ino,
                parent,
                name,
                time
            }),
            (any::<u64>(), bytes(), time()).prop_map(|(parent, name, time)| Entry::Unlink {
                parent,
                name,
                time
            }),
            (any::<u64>(), bytes(), time()).prop_map(|(parent, name, time)| Entry::Rmdir {
                parent,
                name,
                time
            }),
            (ids, bytes(), bytes(), time()).prop_map(|((parent, new_parent), name, new_name, time)| {
                Entry::Rename { parent, new_parent, name, new_name, time }
            }),
            (any::<u64>(), attrs()).prop_map(|(ino, attrs)| Entry::SetAttr { ino, attrs }),
            (ids, time(), time(), extents).prop_map(|((ino, keep_bytes), mtime, ctime, extents)| {
                Entry::Extents { ino, keep_bytes, mtime, ctime, extents }
            }),
            (any::<(u64, u32)>(), attrs(), bytes()).prop_map(|((ino, rdev), attrs, target)| Entry::Inode {
                ino,
                rdev,
                attrs,
                target
            }),
            (ids, bytes()).prop_map(|((parent, ino), name)| Entry::Dirent { parent, ino, name }),
            any::<(u64, u64, u64)>().prop_map(|(next_ino, inodes, dirents)| Entry::SnapshotEnd {
                next_ino,
                inodes,
                dirents
            }),
        ]
    }

    #[test]
    fn an_unknown_entry_is_skipped_only_when_its_tag_allows_it() {
        let skippable = [0x34, 0x80, 0, 0, 3, 0, 0, 0, 1, 2, 3];
        assert_eq!(Entry::decode_all(&skippable), Ok(vec![Decoded::Skipped(0x8034)]));
        let needed = [0x34, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3];
        assert!(Entry::decode_all(&needed).unwrap_err().contains("unknown entry (tag 52)"));
    }

    #[test]
    fn a_known_entry_with_bytes_left_over_is_not_valid() {
        let mut bytes = Entry::SnapshotEnd { next_ino: 2, inodes: 1, dirents: 0 }.encode();
        bytes[4] += 1;
        bytes.push(0);
        assert!(Entry::decode_all(&bytes).unwrap_err().contains("not valid"));
    }

    proptest! {
        #[test]
        fn entries_read_back_as_they_were_written(entries in prop::collection::vec(entry(), 0..8)) {
            let payload: Vec<u8> = entries.iter().flat_map(Entry::encode).collect();
            let back = Entry::decode_all(&payload).unwrap();
            let expected: Vec<_> = entries.into_iter().map(Decoded::Known).collect();
            prop_assert_eq!(back, expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(tag in 0..20_u8, mut bytes in prop::collection::vec(any::<u8>(), 8..400)) {
            let _ = Entry::decode_all(&bytes);
            let length = (bytes.len() - 8) as u32;
            bytes[0] = tag;
            bytes[1] = 0;
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            let _ = Entry::decode_all(&bytes);
        }
    }
}
