//! The messages of /dev/cuse: what the kernel says, and how it is answered. Pure.
//!
//! The invariant: no message makes this panic or allocate by a number that it carries, and an answer's length is right.
//!
//! Source: include/uapi/linux/fuse.h, protocol 7.11 and later (the layouts used here have not changed since 7.16);
//! fs/fuse/cuse.c and fs/fuse/ioctl.c for what the kernel makes of an answer. Numbers are in the machine's byte order.

use super::{Errno, Ioctl, IoctlReply, Region};

const HEADER_BYTES: usize = 40;
const REPLY_HEADER_BYTES: usize = 16;

const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INTERRUPT: u32 = 36;
const IOCTL: u32 = 39;
const POLL: u32 = 40;
const INIT: u32 = 4096;

/// The major version of the protocol.
const MAJOR: u32 = 7;
/// From this minor version on, regions are given as 64-bit numbers (`fuse_ioctl_iovec`).
const LEAST_MINOR: u32 = 16;
/// The minor version of the newest layouts that are known here.
const NEWEST_MINOR: u32 = 38;
const UNRESTRICTED_IOCTL: u32 = 1;
const IOCTL_RETRY: u32 = 1 << 2;

/// How many regions an ioctl may ask for, in and out together (FUSE_IOCTL_MAX_IOV).
pub const MAX_REGIONS: usize = 256;
/// How many bytes the regions of an ioctl may have, each way: 32 pages of 4 KiB (FUSE_DEFAULT_MAX_PAGES_PER_REQ).
pub const MAX_REGION_BYTES: u64 = 128 << 10;
/// How many bytes one read or write of a device may carry.
pub const MAX_IO_BYTES: u32 = 128 << 10;
/// Room for the longest message.
pub const MESSAGE_BYTES: usize = MAX_IO_BYTES as usize + (16 << 10);
/// The longest name of a device.
pub const MAX_NAME_BYTES: usize = 64;

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Shorter than its header, or than its opcode's parameters.
    #[error("a CUSE message of {bytes} bytes: it is cut short")]
    Short {
        /// How long it is.
        bytes: usize,
    },
    /// Its length is not what its header says.
    #[error("a CUSE message of {bytes} bytes says that it has {said}")]
    Length {
        /// How long it is.
        bytes: usize,
        /// What it says.
        said: u32,
    },
    /// The first message is not the kernel's greeting.
    #[error("CUSE message {opcode} came before CUSE_INIT")]
    NotInit {
        /// The opcode.
        opcode: u32,
    },
    /// A protocol that cannot be spoken.
    #[error("the kernel speaks CUSE {major}.{minor}; 7.16 or a later 7 is needed")]
    Version {
        /// Its major version.
        major: u32,
        /// Its minor version.
        minor: u32,
    },
    /// Every ioctl with a pointer would lose what it points at.
    #[error("the kernel offers no unrestricted ioctls over CUSE")]
    Restricted,
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its number, which the answer repeats.
    pub unique: u64,
    /// What it asks for.
    pub request: Request<'a>,
}

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// The kernel's greeting.
    Init {
        /// Protocol.
        major: u32,
        /// Protocol.
        minor: u32,
        /// CUSE_UNRESTRICTED_IOCTL.
        flags: u32,
    },
    /// open(2).
    Open {
        /// Its flags.
        flags: u32,
    },
    /// read(2).
    Read {
        /// Of open.
        handle: u64,
        /// How much.
        size_bytes: u32,
    },
    /// write(2).
    Write {
        /// Of open.
        handle: u64,
        /// What.
        data: &'a [u8],
    },
    /// The last close(2).
    Release {
        /// Of open.
        handle: u64,
    },
    /// Some close(2).
    Flush,
    /// The caller of an earlier message was interrupted. It gets no answer.
    Interrupt,
    /// ioctl(2).
    Ioctl(Ioctl<'a>),
    /// poll(2).
    Poll,
    /// Anything else.
    Unknown {
        /// Which.
        opcode: u32,
    },
}

/// Reads numbers off the front of a message.
struct Fields<'a> {
    rest: &'a [u8],
    fault: Fault,
}

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (first, rest) = self.rest.split_first_chunk::<N>().ok_or(self.fault)?;
        self.rest = rest;
        Ok(*first)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.bytes().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.bytes().map(u64::from_ne_bytes)
    }
}

/// Reads a message, as it came from one read of /dev/cuse.
///
/// # Errors
/// Its length is not what its header or its opcode says. What is unknown is no error here.
pub fn parse(bytes: &[u8]) -> Result<Message<'_>, Fault> {
    let mut fields = Fields { rest: bytes, fault: Fault::Short { bytes: bytes.len() } };
    let (said, opcode, unique) = (fields.u32()?, fields.u32()?, fields.u64()?);
    if usize::try_from(said) != Ok(bytes.len()) {
        return Err(Fault::Length { bytes: bytes.len(), said });
    }
    // Node, user, group, process, and the length of extensions, of which CUSE has none.
    fields.bytes::<{ HEADER_BYTES - 16 }>()?;
    let request = match opcode {
        INIT => {
            let (major, minor, _unused, flags) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
            Request::Init { major, minor, flags }
        }
        OPEN => Request::Open { flags: fields.u32()? },
        READ => {
            let (handle, _offset, size_bytes) = (fields.u64()?, fields.u64()?, fields.u32()?);
            Request::Read { handle, size_bytes }
        }
        WRITE => {
            let (handle, _offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
            // Write flags, lock owner, flags, padding.
            fields.bytes::<20>()?;
            let data = fields.rest.get(..size as usize).ok_or(fields.fault)?;
            Request::Write { handle, data }
        }
        RELEASE => Request::Release { handle: fields.u64()? },
        FLUSH => Request::Flush,
        INTERRUPT => Request::Interrupt,
        IOCTL => {
            let (handle, _flags, cmd, arg) = (fields.u64()?, fields.u32()?, fields.u32()?, fields.u64()?);
            let (in_size, output_bytes) = (fields.u32()?, fields.u32()?);
            let input = fields.rest.get(..in_size as usize).ok_or(fields.fault)?;
            Request::Ioctl(Ioctl { handle, cmd, arg, input, output_bytes })
        }
        POLL => Request::Poll,
        _ => Request::Unknown { opcode },
    };
    Ok(Message { unique, request })
}

/// The answer to the kernel's greeting: makes the device /dev/`name`.
///
/// # Errors
/// The message is another, or the kernel cannot do what is needed.
pub fn answer_init(bytes: &[u8], name: &str, answer: &mut Vec<u8>) -> Result<(), Fault> {
    let message = parse(bytes)?;
    let (major, minor, flags) = match message.request {
        Request::Init { major, minor, flags } => (major, minor, flags),
        _ => return Err(Fault::NotInit { opcode: opcode_of(bytes) }),
    };
    if major != MAJOR || minor < LEAST_MINOR {
        return Err(Fault::Version { major, minor });
    }
    if flags & UNRESTRICTED_IOCTL == 0 {
        return Err(Fault::Restricted);
    }
    let mut reply = Reply::new(message.unique, answer);
    // Device number 0: the kernel chooses one.
    let fields = [MAJOR, minor.min(NEWEST_MINOR), 0, UNRESTRICTED_IOCTL, MAX_IO_BYTES, MAX_IO_BYTES, 0, 0];
    fields.iter().for_each(|&field| reply.u32(field));
    reply.body().extend([0; 40]);
    reply.body().extend_from_slice(b"DEVNAME=");
    reply.body().extend_from_slice(name.as_bytes());
    reply.body().push(0);
    reply.finish();
    Ok(())
}

fn opcode_of(bytes: &[u8]) -> u32 {
    bytes.get(4..8).and_then(|field| field.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// An answer that is being written.
#[derive(Debug)]
pub struct Reply<'a> {
    bytes: &'a mut Vec<u8>,
    errno: i32,
}

impl<'a> Reply<'a> {
    /// The answer to the message of this number, in an emptied buffer.
    pub fn new(unique: u64, bytes: &'a mut Vec<u8>) -> Reply<'a> {
        bytes.clear();
        bytes.extend([0; 8]);
        bytes.extend(unique.to_ne_bytes());
        Reply { bytes, errno: 0 }
    }

    /// Where what follows the header goes; only to be appended to.
    pub fn body(&mut self) -> &mut Vec<u8> {
        self.bytes
    }

    fn u32(&mut self, number: u32) {
        self.bytes.extend(number.to_ne_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.bytes.extend(number.to_ne_bytes());
    }

    /// Drops what is beyond `most` bytes behind the header.
    pub fn cut_to(&mut self, most: usize) {
        self.bytes.truncate(REPLY_HEADER_BYTES.saturating_add(most));
    }

    /// A file was opened.
    pub fn opened(&mut self, handle: u64) {
        self.u64(handle);
        // No flags, padding.
        self.u64(0);
    }

    /// Bytes were written.
    pub fn written(&mut self, bytes: u32) {
        self.u32(bytes);
        self.u32(0);
    }

    /// An ioctl is done, or wants more.
    ///
    /// # Errors
    /// EIO: the device answers with more than there is room for, or with a negative result; EMSGSIZE: it wants more than
    /// the kernel fetches.
    pub fn ioctl(&mut self, reply: &IoctlReply, room_bytes: u32) -> Result<(), Errno> {
        match reply {
            IoctlReply::Done { result, output } => {
                if *result < 0 || output.len() > room_bytes as usize {
                    return Err(Errno::EIO);
                }
                self.bytes.extend(result.to_ne_bytes());
                [0, 0, 0].iter().for_each(|&field| self.u32(field));
                self.bytes.extend_from_slice(output);
            }
            IoctlReply::Retry { input, output } => {
                let count = |regions: &[Region]| {
                    let sum = regions.iter().fold(0u64, |sum, region| sum.saturating_add(region.len));
                    let count = u32::try_from(regions.len()).map_err(|_| Errno::EMSGSIZE)?;
                    if sum > MAX_REGION_BYTES { Err(Errno::EMSGSIZE) } else { Ok(count) }
                };
                if input.len() + output.len() > MAX_REGIONS {
                    return Err(Errno::EMSGSIZE);
                }
                let fields = [0, IOCTL_RETRY, count(input)?, count(output)?];
                fields.iter().for_each(|&field| self.u32(field));
                for region in input.iter().chain(output) {
                    self.u64(region.base);
                    self.u64(region.len);
                }
            }
        }
        Ok(())
    }

    /// The request failed: what was written so far is dropped.
    pub fn refuse(&mut self, errno: Errno) {
        self.cut_to(0);
        self.errno = -(errno as i32);
    }

    /// Writes the header.
    pub fn finish(self) {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Some((said, rest)) = self.bytes.split_first_chunk_mut::<4>() {
            *said = len.to_ne_bytes();
            if let Some(error) = rest.first_chunk_mut::<4>() {
                *error = self.errno.to_ne_bytes();
            }
        }
    }
}
