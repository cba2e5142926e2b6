//! The records of an image file (docs/formats.md, "spiflash-mtd").
//!
//! The invariant: what [`encode`] writes [`Reader`] reads back; bytes that were not written whole are never taken for a record,
//! since each record carries the crc32c of its tag, length and body.

use crate::array::{PageMeta, Unit};
use crate::reliability::Marginal;

/// The first bytes of an image file.
pub const MAGIC: [u8; 8] = *b"SPIFLIMG";
/// The version that this code writes, and the only one it reads.
pub const VERSION: u32 = 1;
/// Bytes of the file's head: magic, version, crc32c of both.
pub const HEAD_BYTES: usize = 16;
/// Bytes before a record's body: tag, length, crc32c.
const RECORD_HEAD_BYTES: usize = 12;
/// No record is longer: a unit of the largest part, with its pages.
const MOST_BODY_BYTES: u32 = 16 << 20;
/// Tags with this bit set must be understood; others may be skipped.
const MUST: u32 = 1 << 31;

const TAG_LASTING: u32 = MUST | 1;
const TAG_UNIT: u32 = MUST | 2;
const TAG_PAGE: u32 = MUST | 3;
const TAG_WHOLE: u32 = MUST | 4;
const TAG_STATE: u32 = MUST | 5;

/// A record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// What survives the loss of power besides the array, as JSON ([`crate::chip::Lasting`]).
    Lasting(Vec<u8>),
    /// A unit of the array.
    Unit {
        /// Its number.
        unit: u32,
        /// Its content.
        content: Unit,
    },
    /// A page of the array.
    Page {
        /// Its unit.
        unit: u32,
        /// Its number in the unit.
        page: u32,
        /// What is known of it.
        meta: PageMeta,
        /// Its bytes.
        data: Vec<u8>,
    },
    /// All that came before is a whole image: a file without one was not finished.
    Whole,
    /// The state of a snapshot in the middle of things, as JSON ([`crate::chip::ChipState`]).
    State(Vec<u8>),
    /// A record of a later version that may be skipped.
    Unknown {
        /// Its tag.
        tag: u32,
    },
}

/// What is wrong with the bytes of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is something else.
    #[error("it does not begin with the magic {:?}: it is no flash image of spiflash-mtd", String::from_utf8_lossy(&MAGIC))]
    Magic,
    /// A version that this code does not know.
    #[error("version {found}: this program reads version {VERSION}")]
    Version {
        /// The version of the file.
        found: u32,
    },
    /// A record that is wrong although more follows.
    #[error("byte {at}: {what}")]
    Record {
        /// Where the record begins.
        at: u64,
        /// What is wrong.
        what: String,
    },
}

/// The head of a file.
pub fn head() -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Appends a record to `out`. [`Record::Unknown`] is not written.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEAD_BYTES]);
    let tag = match record {
        Record::Lasting(json) => {
            out.extend_from_slice(json);
            TAG_LASTING
        }
        Record::State(json) => {
            out.extend_from_slice(json);
            TAG_STATE
        }
        Record::Whole => TAG_WHOLE,
        Record::Unit { unit, content } => {
            put_unit(*unit, content, out);
            TAG_UNIT
        }
        Record::Page { unit, page, meta, data } => {
            out.extend_from_slice(&unit.to_le_bytes());
            out.extend_from_slice(&page.to_le_bytes());
            put_meta(meta, out);
            out.extend_from_slice(data);
            TAG_PAGE
        }
        Record::Unknown { .. } => return out.truncate(start),
    };
    let length = (out.len() - start - RECORD_HEAD_BYTES) as u32;
    let mut head = [0; 8];
    head[..4].copy_from_slice(&tag.to_le_bytes());
    head[4..].copy_from_slice(&length.to_le_bytes());
    let body = out.get(start + RECORD_HEAD_BYTES..).unwrap_or(&[]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), body);
    if let Some(place) = out.get_mut(start..start + RECORD_HEAD_BYTES) {
        place[..8].copy_from_slice(&head);
        place[8..].copy_from_slice(&crc.to_le_bytes());
    }
}

fn put_unit(unit: u32, content: &Unit, out: &mut Vec<u8>) {
    let (data, pages) = (content.data().unwrap_or(&[]), content.pages().unwrap_or(&[]));
    out.extend_from_slice(&unit.to_le_bytes());
    out.extend_from_slice(&content.cycles.to_le_bytes());
    out.extend_from_slice(&content.reads.to_le_bytes());
    out.extend_from_slice(&(pages.len() as u32).to_le_bytes());
    pages.iter().for_each(|meta| put_meta(meta, out));
    out.extend_from_slice(data);
}

fn put_meta(meta: &PageMeta, out: &mut Vec<u8>) {
    let (kind, fraction, start, end, draw) = match meta.marginal {
        Marginal::None => (0u32, 0.0, 0, 0, 0),
        Marginal::Program { fraction, start, end, draw } => (1, fraction, start, end, draw),
        Marginal::Erase { fraction, draw } => (2, fraction, 0, 0, draw),
    };
    out.extend_from_slice(&meta.written_at_ns.to_le_bytes());
    out.extend_from_slice(&meta.epoch.to_le_bytes());
    out.extend_from_slice(&meta.programs.to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&fraction.to_le_bytes());
    out.extend_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&end.to_le_bytes());
    out.extend_from_slice(&draw.to_le_bytes());
}

/// Takes numbers off the front of bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (now, later) = self.0.split_first_chunk::<N>()?;
        self.0 = later;
        Some(*now)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn meta(&mut self) -> Option<PageMeta> {
        let (written_at_ns, epoch, programs, kind) = (self.u64()?, self.u64()?, self.u32()?, self.u32()?);
        let fraction = f32::from_le_bytes(self.bytes()?);
        let (start, end, draw) = (self.u32()?, self.u32()?, self.u64()?);
        let sane = fraction.is_finite() && (0.0..=1.0).contains(&fraction);
        let marginal = match kind {
            0 => Marginal::None,
            1 if sane => Marginal::Program { fraction, start, end, draw },
            2 if sane => Marginal::Erase { fraction, draw },
            _ => return None,
        };
        Some(PageMeta { written_at_ns, epoch, programs, marginal })
    }
}

fn decode(tag: u32, body: &[u8]) -> Option<Record> {
    let mut fields = Fields(body);
    Some(match tag {
        TAG_LASTING => Record::Lasting(body.to_vec()),
        TAG_STATE => Record::State(body.to_vec()),
        TAG_WHOLE if body.is_empty() => Record::Whole,
        TAG_PAGE => {
            let (unit, page, meta) = (fields.u32()?, fields.u32()?, fields.meta()?);
            Record::Page { unit, page, meta, data: fields.0.to_vec() }
        }
        TAG_UNIT => {
            let (unit, cycles, reads, count) = (fields.u32()?, fields.u32()?, fields.u64()?, fields.u32()?);
            let most = fields.0.len() / 4;
            let pages = (0..count).take(most).map(|_| fields.meta()).collect::<Option<Vec<_>>>()?;
            if pages.len() != count as usize {
                return None;
            }
            let content = Unit::from_parts(fields.0.to_vec(), pages, cycles, reads);
            Record::Unit { unit, content }
        }
        tag if tag & MUST == 0 => Record::Unknown { tag },
        _ => return None,
    })
}

/// Reads the records of an image.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Checks the head.
    ///
    /// # Errors
    /// Something else, or another version.
    pub fn new(bytes: &'a [u8]) -> Result<Reader<'a>, FormatError> {
        let expected = head();
        let found = bytes.get(..HEAD_BYTES).ok_or(FormatError::Magic)?;
        if found.get(..8) != Some(&MAGIC) {
            return Err(FormatError::Magic);
        }
        let version = Fields(found.get(8..).unwrap_or(&[])).u32().unwrap_or(0);
        if version != VERSION {
            return Err(FormatError::Version { found: version });
        }
        if found != expected {
            return Err(FormatError::Record { at: 0, what: "the head's checksum does not match".into() });
        }
        Ok(Reader { bytes, at: HEAD_BYTES })
    }

    /// Where the next record begins: after the last one, the length of what is good.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The next record; `None` at the end, and at a tail that was not written whole.
    ///
    /// # Errors
    /// A record that is wrong although a whole one follows it, or one that this version must understand and does not.
    pub fn next_record(&mut self) -> Result<Option<Record>, FormatError> {
        let at = self.at;
        let Some((tag, body, next)) = self.whole_at(at) else {
            return if self.is_torn_tail(at) {
                Ok(None)
            } else {
                let what = "a record whose checksum does not match, with whole records after it".into();
                Err(FormatError::Record { at: at as u64, what })
            };
        };
        let record = decode(tag, body).ok_or_else(|| {
            let what =
                format!("a record of tag {tag:#x} with {} bytes that this version cannot read", body.len());
            FormatError::Record { at: at as u64, what }
        })?;
        self.at = next;
        Ok(Some(record))
    }

    /// The tag and body of a record that is whole at `at`, and where the next begins.
    fn whole_at(&self, at: usize) -> Option<(u32, &'a [u8], usize)> {
        let mut fields = Fields(self.bytes.get(at..)?);
        let head = fields.0.get(..8)?;
        let (tag, length, crc) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if length > MOST_BODY_BYTES {
            return None;
        }
        let body = fields.0.get(..length as usize)?;
        let right = crc32c::crc32c_append(crc32c::crc32c(head), body) == crc;
        right.then_some((tag, body, at + RECORD_HEAD_BYTES + length as usize))
    }

    /// Whether nothing whole follows the wrong record at `at`: neither where it says it ends, nor in the next bytes.
    fn is_torn_tail(&self, at: usize) -> bool {
        const SEARCHED: usize = 64 << 10;
        let end = self.bytes.len().min(at.saturating_add(SEARCHED));
        (at + 1..end).all(|at| self.whole_at(at).is_none())
    }
}
