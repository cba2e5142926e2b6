//! Character devices from user space: the CUSE protocol of the kernel, and the devices that speak it.
//!
//! [`wire`] is pure: messages of the kernel in, answers out. [`CuseServer`] moves them. A device is a [`CuseDevice`].
//! The invariant: every message that wants an answer gets exactly one, whatever the device says.
//!
//! Needs Linux with CUSE, a /dev/cuse that may be opened, and, for the node, a devtmpfs on /dev. The kernel hands no file
//! position on: a device reads and writes as a stream (fs/fuse/cuse.c: position 0 always, no seek).

mod channel;
pub mod message;
pub mod mtd;
pub mod spidev;
pub mod wire;

pub use channel::CuseServer;
pub use nix::errno::Errno;
use wire::{Fault, Message, Reply, Request};

/// An ioctl, as far as the kernel has fetched what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ioctl<'a> {
    /// Which open file.
    pub handle: u64,
    /// The request's number.
    pub cmd: u32,
    /// Its argument: mostly an address in the caller.
    pub arg: u64,
    /// The bytes of the regions that were asked for with [`IoctlReply::Retry`], in that order; empty at first.
    pub input: &'a [u8],
    /// How many bytes may be answered: the sum of the regions that were asked for; 0 at first.
    pub output_bytes: u32,
}

/// A region of the caller's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The address.
    pub base: u64,
    /// How many bytes.
    pub len: u64,
}

/// The answer to an ioctl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IoctlReply {
    /// It is done: the call's result (not negative), and what goes to the output regions, in their order.
    Done {
        /// What ioctl(2) returns.
        result: i32,
        /// At most as many bytes as there is room for.
        output: Vec<u8>,
    },
    /// Come again, with the bytes of these regions of the caller, and with room for those. At most
    /// [`wire::MAX_REGIONS`] in all, and [`wire::MAX_REGION_BYTES`] each way.
    Retry {
        /// To read from.
        input: Vec<Region>,
        /// To write to.
        output: Vec<Region>,
    },
}

/// A character device. Each call is one request of one caller; they come one after the other.
pub trait CuseDevice: Send {
    /// A file is opened; what is returned comes back as the handle of everything that is done with it.
    ///
    /// # Errors
    /// The errno of open(2).
    fn open(&mut self, flags: u32) -> Result<u64, Errno>;

    /// The last descriptor of a file is closed.
    fn release(&mut self, handle: u64);

    /// Appends at most `size_bytes` to `data`.
    ///
    /// # Errors
    /// The errno of read(2).
    fn read(&mut self, handle: u64, size_bytes: u32, data: &mut Vec<u8>) -> Result<(), Errno>;

    /// Takes bytes, and says how many.
    ///
    /// # Errors
    /// The errno of write(2).
    fn write(&mut self, handle: u64, data: &[u8]) -> Result<u32, Errno>;

    /// An ioctl.
    ///
    /// # Errors
    /// The errno of ioctl(2).
    fn ioctl(&mut self, ioctl: Ioctl<'_>) -> Result<IoctlReply, Errno>;
}

/// What to do after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// Send the answer.
    Answer,
    /// There is none.
    Silent,
}

/// Lets a device carry out a message, and writes the answer into `answer`, which is emptied first.
///
/// # Errors
/// The message is none of the kernel's.
pub fn handle(device: &mut dyn CuseDevice, bytes: &[u8], answer: &mut Vec<u8>) -> Result<Handled, Fault> {
    let Message { unique, request } = wire::parse(bytes)?;
    let mut reply = Reply::new(unique, answer);
    let result = match request {
        Request::Open { flags } => device.open(flags).map(|handle| reply.opened(handle)),
        Request::Read { handle, size_bytes } => {
            let result = device.read(handle, size_bytes, reply.body());
            result.map(|()| reply.cut_to(size_bytes as usize))
        }
        Request::Write { handle, data } => {
            let most = u32::try_from(data.len()).unwrap_or(u32::MAX);
            device.write(handle, data).map(|taken| reply.written(taken.min(most)))
        }
        Request::Release { handle } => {
            device.release(handle);
            Ok(())
        }
        Request::Flush => Ok(()),
        Request::Interrupt => return Ok(Handled::Silent),
        Request::Ioctl(ioctl) => device.ioctl(ioctl).and_then(|done| reply.ioctl(&done, ioctl.output_bytes)),
        // The kernel takes ENOSYS of a poll as "always ready" and does not ask again.
        Request::Poll | Request::Init { .. } | Request::Unknown { .. } => Err(Errno::ENOSYS),
    };
    if let Err(errno) = result {
        reply.refuse(errno);
    }
    reply.finish();
    Ok(Handled::Answer)
}
