//! The NBD protocol as its client speaks it: negotiation, requests, simple replies. Over anything that reads and writes.
//!
//! Source: the document "The NBD protocol" of the NetworkBlockDevice project (`doc/proto.md`): "Newstyle negotiation", "Fixed
//! newstyle negotiation", "Option types" (`NBD_OPT_GO`, `NBD_OPT_ABORT`), "Option reply types" (`NBD_REP_ACK`,
//! `NBD_REP_INFO`, the errors), "Transmission flags", "Block size constraints", "Request message", "Simple reply message",
//! "Error values". All numbers are big-endian. Structured replies are never asked for, so a server that sends one breaks the
//! protocol; TLS and the oldstyle negotiation are not spoken.
//!
//! Invariant: no length from the server is believed before it is checked; a server that never ends its answers is left.

use std::io::{self, ErrorKind, Read, Write};

use crate::remote::RemoteError;
use crate::units::{BLOCK_BYTES, UNIT_BYTES};

/// The port that IANA gave to NBD.
pub const DEFAULT_PORT: u16 = 10809;
/// Bytes of a request, without the data of a write.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply, without the data of a read.
pub const REPLY_BYTES: usize = 16;
/// Longest name of an export ("Conventions": a string has at most 4096 bytes).
pub const MAX_NAME_BYTES: usize = 4096;
/// Most blocks of an export that are used: 16 TiB.
pub const MAX_BLOCKS: u32 = 1 << 24;

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPT_ABORT: u32 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// An error reply carries a string of at most 4096 bytes; everything else is shorter.
const MAX_OPTION_REPLY_BYTES: u32 = 8192;
/// `NBD_OPT_GO` has a handful of replies.
const MAX_OPTION_REPLIES: usize = 32;
/// What a server takes that names no limit ("Block size constraints").
const DEFAULT_MAX_PAYLOAD_BYTES: u32 = 32 << 20;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// `NBD_CMD_READ`.
    Read = 0,
    /// `NBD_CMD_WRITE`.
    Write = 1,
    /// `NBD_CMD_DISC`: no answer comes.
    Disconnect = 2,
    /// `NBD_CMD_TRIM`.
    Trim = 4,
}

/// Why a server cannot be used, or can no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NbdError {
    /// The first bytes are not `NBDMAGIC`.
    #[error("it does not speak NBD")]
    Magic,
    /// The negotiation of before 2011.
    #[error("it speaks only the oldstyle negotiation (nbdkit: leave out -o)")]
    Oldstyle,
    /// Newstyle, but no options can be negotiated.
    #[error("it does not speak the fixed newstyle negotiation")]
    NotFixed,
    /// A negotiation that contradicts the protocol.
    #[error("its negotiation breaks the protocol: {0}")]
    Negotiation(&'static str),
    /// `NBD_REP_ERR_UNKNOWN`.
    #[error("it has no export of that name")]
    UnknownExport,
    /// `NBD_REP_ERR_TLS_REQD`.
    #[error("it demands TLS, which is not spoken here (pages are sealed without it)")]
    Tls,
    /// `NBD_REP_ERR_POLICY`.
    #[error("its policy forbids this client")]
    Policy,
    /// `NBD_REP_ERR_UNSUP`.
    #[error("it does not know NBD_OPT_GO: too old")]
    NoGo,
    /// `NBD_REP_ERR_SHUTDOWN`.
    #[error("it is shutting down")]
    Shutdown,
    /// Any other error reply to `NBD_OPT_GO`.
    #[error("it refused the export (NBD_REP_ERR {0})")]
    Refused(u32),
    /// `NBD_FLAG_READ_ONLY`.
    #[error("the export is read-only")]
    ReadOnly,
    /// Fewer than two blocks.
    #[error("the export has {0} bytes; at least 2 MiB are needed")]
    TooSmall(u64),
    /// No `NBD_FLAG_CAN_MULTI_CONN`.
    #[error("it allows one connection only, several are needed (qemu-nbd: add --shared=0)")]
    OneConnection,
    /// A minimum block size above that of our records.
    #[error(
        "it reads and writes only in units of {0} bytes, {UNIT_BYTES} are needed (a raw file or memory has no such limit)"
    )]
    Granularity(u32),
    /// A maximum payload under that of our blocks.
    #[error("it takes at most {0} bytes at once, {BLOCK_BYTES} are needed")]
    Payload(u32),
    /// A structured reply, which was not negotiated.
    #[error("a structured reply, which was not asked for")]
    Structured,
    /// Bytes that are no reply.
    #[error("an answer that is none")]
    ReplyMagic,
    /// A reply to a request that was not made.
    #[error("an answer to a request that was not made")]
    Handle,
}

/// An error value of a reply ("Error values"): numbers that look like Linux's, whatever the server runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub u32);

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            1 => "EPERM (not permitted)",
            5 => "EIO (input/output error)",
            12 => "ENOMEM (out of memory)",
            22 => "EINVAL (invalid request)",
            28 => "ENOSPC (no space left)",
            75 => "EOVERFLOW (too long)",
            95 => "ENOTSUP (not supported)",
            108 => "ESHUTDOWN (it is shutting down)",
            other => return write!(f, "error {other}"),
        })
    }
}

/// What was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Offsets and lengths are multiples of this; 1 when the server says nothing.
    pub minimum_bytes: u32,
    /// Longest read or write.
    pub maximum_bytes: u32,
}

impl Export {
    /// Whether `NBD_CMD_TRIM` is taken.
    pub fn trims(&self) -> bool {
        self.flags & 1 << 5 != 0
    }

    /// Whole blocks of 1 MiB in the export, at most [`MAX_BLOCKS`].
    ///
    /// # Errors
    /// Says why the export cannot be borrowed from.
    pub fn blocks(&self) -> Result<u32, NbdError> {
        if self.flags & 1 << 1 != 0 {
            return Err(NbdError::ReadOnly);
        }
        if self.flags & 1 << 8 == 0 {
            return Err(NbdError::OneConnection);
        }
        // A power of two: what divides the one divides the other.
        if self.minimum_bytes as usize > UNIT_BYTES {
            return Err(NbdError::Granularity(self.minimum_bytes));
        }
        if (self.maximum_bytes as usize) < BLOCK_BYTES {
            return Err(NbdError::Payload(self.maximum_bytes));
        }
        match self.size_bytes / BLOCK_BYTES as u64 {
            0 | 1 => Err(NbdError::TooSmall(self.size_bytes)),
            blocks => Ok(blocks.min(u64::from(MAX_BLOCKS)) as u32),
        }
    }
}

fn connecting(error: io::Error) -> RemoteError {
    match error.kind() {
        ErrorKind::UnexpectedEof => RemoteError::Closed,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => RemoteError::TimedOut,
        _ => RemoteError::Connect(error),
    }
}

fn receive<const N: usize>(stream: &mut impl Read) -> Result<[u8; N], RemoteError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map_err(connecting)?;
    Ok(bytes)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn go(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    // One information is asked for; asking for block sizes promises to keep them.
    data.extend_from_slice(&1u16.to_be_bytes());
    data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    option(OPT_GO, &data)
}

/// Takes a fresh connection to the transmission phase of the export `name`.
///
/// # Errors
/// The connection failed; the peer is no NBD server of today; it refuses the export. The connection is of no use then.
pub fn negotiate(stream: &mut (impl Read + Write), name: &str) -> Result<Export, RemoteError> {
    if u64::from_be_bytes(receive::<8>(stream)?) != INIT_MAGIC {
        return Err(NbdError::Magic.into());
    }
    match u64::from_be_bytes(receive::<8>(stream)?) {
        OPTION_MAGIC => {}
        OLDSTYLE_MAGIC => return Err(NbdError::Oldstyle.into()),
        _ => return Err(NbdError::Magic.into()),
    }
    let flags = u16::from_be_bytes(receive::<2>(stream)?);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(NbdError::NotFixed.into());
    }
    // The client's flags have the numbers of the server's.
    let mut opening = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes().to_vec();
    opening.extend_from_slice(&go(name));
    stream.write_all(&opening).map_err(connecting)?;
    let result = await_export(stream);
    if matches!(result, Err(RemoteError::Nbd(_))) {
        // "Termination of the session during option haggling": a client that gives up says so.
        let _ = stream.write_all(&option(OPT_ABORT, &[]));
    }
    result
}

fn await_export(stream: &mut impl Read) -> Result<Export, RemoteError> {
    let (mut found, mut sizes) = (None, (1, DEFAULT_MAX_PAYLOAD_BYTES));
    for _ in 0..MAX_OPTION_REPLIES {
        let head = receive::<20>(stream)?;
        let field = |at| be32(&head, at).unwrap_or_default();
        if be64(&head, 0) != Some(OPTION_REPLY_MAGIC) || field(8) != OPT_GO {
            return Err(NbdError::Negotiation("no reply to NBD_OPT_GO").into());
        }
        let (kind, len) = (field(12), field(16));
        if len > MAX_OPTION_REPLY_BYTES {
            return Err(NbdError::Negotiation("an over-long reply").into());
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data).map_err(connecting)?;
        match kind {
            REP_ACK => {
                let (size_bytes, flags) = found.ok_or(NbdError::Negotiation("no NBD_INFO_EXPORT"))?;
                return Ok(Export { size_bytes, flags, minimum_bytes: sizes.0, maximum_bytes: sizes.1 });
            }
            REP_INFO => match be16(&data, 0) {
                Some(INFO_EXPORT) => found = Some(export_info(&data)?),
                Some(INFO_BLOCK_SIZE) => sizes = block_sizes(&data)?,
                Some(_) => {}
                None => return Err(NbdError::Negotiation("an empty NBD_REP_INFO").into()),
            },
            _ if kind & REP_ERROR != 0 => return Err(refusal(kind, &data).into()),
            _ => return Err(NbdError::Negotiation("an unknown reply to NBD_OPT_GO").into()),
        }
    }
    Err(NbdError::Negotiation("too many replies").into())
}

fn export_info(data: &[u8]) -> Result<(u64, u16), NbdError> {
    match (data.len(), be64(data, 2), be16(data, 10)) {
        (12, Some(size_bytes), Some(flags)) => Ok((size_bytes, flags)),
        _ => Err(NbdError::Negotiation("a malformed NBD_INFO_EXPORT")),
    }
}

/// "Block size constraints": the minimum is a power of two up to 64 KiB, the maximum no less than it.
fn block_sizes(data: &[u8]) -> Result<(u32, u32), NbdError> {
    match (data.len(), be32(data, 2), be32(data, 10)) {
        (14, Some(least), Some(most)) if least.is_power_of_two() && least <= 1 << 16 && most >= least => {
            Ok((least, most))
        }
        _ => Err(NbdError::Negotiation("a malformed NBD_INFO_BLOCK_SIZE")),
    }
}

fn refusal(kind: u32, text: &[u8]) -> NbdError {
    if !text.is_empty() {
        log::debug!("an NBD server refused: {}", String::from_utf8_lossy(text).escape_debug());
    }
    match kind & !REP_ERROR {
        1 => NbdError::NoGo,
        2 => NbdError::Policy,
        5 => NbdError::Tls,
        6 => NbdError::UnknownExport,
        7 => NbdError::Shutdown,
        other => NbdError::Refused(other),
    }
}

/// A request's bytes; the data of a write follows.
pub fn request(command: Command, handle: u64, offset_bytes: u64, len_bytes: u32) -> [u8; REQUEST_BYTES] {
    let mut out = [0; REQUEST_BYTES];
    out[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    out[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    out[8..16].copy_from_slice(&handle.to_be_bytes());
    out[16..24].copy_from_slice(&offset_bytes.to_be_bytes());
    out[24..28].copy_from_slice(&len_bytes.to_be_bytes());
    out
}

/// A simple reply's error (0 for none) and handle. Data follows when it answers a read without an error.
///
/// # Errors
/// Anything but a simple reply.
pub fn reply(bytes: &[u8; REPLY_BYTES]) -> Result<(Errno, u64), NbdError> {
    match be32(bytes, 0) {
        Some(SIMPLE_REPLY_MAGIC) => {}
        Some(STRUCTURED_REPLY_MAGIC) => return Err(NbdError::Structured),
        _ => return Err(NbdError::ReplyMagic),
    }
    Ok((Errno(be32(bytes, 4).unwrap_or_default()), be64(bytes, 8).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A server that says what is written here, `piece` bytes at a time, whatever the client says.
    struct Script {
        says: Vec<u8>,
        piece: usize,
        heard: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            let len = data.len().min(self.piece).min(self.says.len());
            data[..len].copy_from_slice(&self.says[..len]);
            self.says.drain(..len);
            Ok(len)
        }
    }

    impl Write for Script {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.heard.extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn greeting(flags: u16) -> Vec<u8> {
        [&b"NBDMAGICIHAVEOPT"[..], &flags.to_be_bytes()].concat()
    }

    fn answer(kind: u32, data: &[u8]) -> Vec<u8> {
        let head = [OPT_GO.to_be_bytes(), kind.to_be_bytes(), (data.len() as u32).to_be_bytes()].concat();
        [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &head, data].concat()
    }

    fn export(size_bytes: u64, flags: u16) -> Vec<u8> {
        answer(REP_INFO, &[&[0, 0][..], &size_bytes.to_be_bytes(), &flags.to_be_bytes()].concat())
    }

    fn sizes(least: u32, most: u32) -> Vec<u8> {
        let fields = [least.to_be_bytes(), 4096u32.to_be_bytes(), most.to_be_bytes()].concat();
        answer(REP_INFO, &[&[0, 3][..], &fields].concat())
    }

    fn hear(parts: &[Vec<u8>], piece: usize) -> (Result<Export, RemoteError>, Vec<u8>) {
        let mut script = Script { says: parts.concat(), piece, heard: Vec::new() };
        (negotiate(&mut script, "a"), script.heard)
    }

    fn refused(parts: &[Vec<u8>]) -> NbdError {
        match hear(parts, 99).0 {
            Err(RemoteError::Nbd(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_export_is_negotiated_however_the_answers_are_cut() {
        let parts = [
            greeting(3),
            sizes(1, 1 << 25),
            answer(REP_INFO, &[0, 1, b'a']),
            export(3 << 20, 0x121),
            answer(1, &[]),
        ];
        for piece in [1, 7, 1000] {
            let (result, heard) = hear(&parts, piece);
            let export = result.unwrap();
            assert_eq!((export.size_bytes, export.trims(), export.blocks()), (3 << 20, true, Ok(3)));
            // Flags, then NBD_OPT_GO with a name of one letter and one kind of information, as the document says.
            let wanted =
                [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 1, b'a', 0, 1, 0, 3]];
            assert_eq!(heard, wanted.concat());
        }
    }

    #[test]
    fn every_refusal_has_its_own_words() {
        let kinds = [
            (1, NbdError::NoGo),
            (2, NbdError::Policy),
            (5, NbdError::Tls),
            (6, NbdError::UnknownExport),
            (7, NbdError::Shutdown),
            (8, NbdError::Refused(8)),
        ];
        for (kind, wanted) in kinds {
            let parts = [greeting(1), answer(1 << 31 | kind, b"no\x1b[2J")];
            assert_eq!(refused(&parts), wanted);
            let (_, heard) = hear(&parts, 99);
            assert!(heard.ends_with(&[0, 0, 0, 2, 0, 0, 0, 0]), "says goodbye");
        }
        assert_eq!(refused(&[b"SSH-2.0-OpenSSH_9".to_vec()]), NbdError::Magic);
        assert_eq!(
            refused(&[b"NBDMAGIC".to_vec(), OLDSTYLE_MAGIC.to_be_bytes().to_vec()]),
            NbdError::Oldstyle
        );
        assert_eq!(refused(&[greeting(2)]), NbdError::NotFixed);
        let negotiation = |parts: &[Vec<u8>]| matches!(refused(parts), NbdError::Negotiation(_));
        assert!(negotiation(&[greeting(1), answer(1, &[])]), "no size");
        assert!(negotiation(&[greeting(1), sizes(3, 1 << 25)]));
        assert!(negotiation(&[greeting(1), sizes(4096, 512)]));
        assert!(negotiation(&[greeting(1), answer(9, &[])]));
        assert!(negotiation(&[greeting(1), answer(REP_INFO, &[])]));
        assert!(negotiation(&[greeting(1), vec![7; 20]]));
        assert!(negotiation(&[greeting(1), answer(REP_INFO, &[1; 9000])]));
        assert!(negotiation(&[greeting(1), answer(REP_INFO, &[9, 9]).repeat(40)]), "no end");
    }

    #[test]
    fn an_export_that_cannot_be_used_is_refused() {
        let good = Export { size_bytes: 5 << 20, flags: 0x101, minimum_bytes: 1, maximum_bytes: 1 << 20 };
        assert_eq!(good.blocks(), Ok(5));
        assert_eq!(Export { size_bytes: u64::MAX, ..good }.blocks(), Ok(MAX_BLOCKS));
        assert_eq!(Export { size_bytes: 2097151, ..good }.blocks(), Err(NbdError::TooSmall(2097151)));
        assert_eq!(Export { flags: 0x103, ..good }.blocks(), Err(NbdError::ReadOnly));
        assert_eq!(Export { flags: 1, ..good }.blocks(), Err(NbdError::OneConnection));
        assert_eq!(Export { minimum_bytes: 512, ..good }.blocks(), Err(NbdError::Granularity(512)));
        assert_eq!(Export { maximum_bytes: 65536, ..good }.blocks(), Err(NbdError::Payload(65536)));
    }

    proptest! {
        #[test]
        fn a_server_of_garbage_is_left_without_panic(
            depth in 0usize..3, garbage in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..40,
        ) {
            let parts: Vec<Vec<u8>> = [greeting(3), answer(REP_INFO, &garbage)].into_iter().take(depth).collect();
            let (result, heard) = hear(&[parts.concat(), garbage], piece);
            prop_assert!(result.is_err() && heard.len() < 100);
        }

        #[test]
        fn a_reply_is_a_simple_one_or_none(bytes: [u8; REPLY_BYTES], magic: bool) {
            let mut bytes = bytes;
            if magic {
                bytes[..4].copy_from_slice(&[0x67, 0x44, 0x66, 0x98]);
            }
            prop_assert_eq!(reply(&bytes).is_ok(), bytes[..4] == [0x67, 0x44, 0x66, 0x98]);
        }
    }
}
