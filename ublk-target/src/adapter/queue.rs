//! One queue's ring, descriptors and buffers, and the character device behind them.

use super::DeviceInfo;
use crate::{
    clock::monotonic_ns,
    error::{Error, Result},
    queue::ring::{Completed, Ring},
    request::{Op, Payload, Request, UserCopy},
    spec::DataPath,
};
use io_uring::{opcode, squeue, types};
use libublk::{helpers::IoBuf, sys};
use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

/// A device's character device, through which its daemon serves it.
pub struct CharDevice {
    file: File,
    info: DeviceInfo,
    data_path: DataPath,
}

impl CharDevice {
    /// Opens /dev/ublkcN; waits a while for the node to appear.
    ///
    /// # Errors
    /// The open's.
    pub fn open(info: DeviceInfo, data_path: DataPath) -> Result<CharDevice> {
        let path = format!("/dev/ublkc{}", info.id);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => return Ok(CharDevice { file, info, data_path }),
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                Err(source) => return Err(Error::System { what: "opening /dev/ublkcN", source }),
            }
        }
    }

    /// What the driver said of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }
}

/// What the kernel said through a queue's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A request waits on this tag.
    Request(u16),
    /// The tag will get no more requests: the device is stopping.
    Stopped,
    /// The kernel refused this tag's last command.
    Refused(u16, i32),
    /// An operation of the handler ended.
    Own {
        /// The handler's number.
        token: u64,
        /// A number or a negative errno.
        result: i32,
        /// It will end again.
        more: bool,
    },
}

/// The tags of one queue, as the loop in [`crate::queue`] needs them; its tests have another implementation.
pub(crate) trait Tags {
    /// Completes `tag`'s request and asks for the tag's next one. `result` is the bytes done or a negative errno;
    /// `append_sector` only for a zone append: the kernel refuses it on others.
    fn commit(&mut self, tag: u16, result: i32, append_sector: Option<u64>) -> io::Result<()>;

    /// Submits what was committed and waits until the kernel has said something, for at most `limit`.
    fn wait(&mut self, limit: Option<Duration>) -> io::Result<()>;

    /// Submits what was committed.
    fn submit(&mut self) -> io::Result<()>;

    /// Whether the kernel has everything that was committed.
    fn all_submitted(&mut self) -> bool;

    /// Submits what was committed and looks, without waiting, whether the kernel has said something. Free when it has not.
    fn poll(&mut self) -> io::Result<()>;

    /// Whether [`Tags::next_event`] has something.
    fn ready(&mut self) -> bool;

    /// Queues an operation of the handler.
    ///
    /// # Safety
    /// As [`crate::QueueIo::push`].
    unsafe fn push_own(&mut self, entry: squeue::Entry, token: u64) -> io::Result<()>;

    /// Asks the kernel to end the handler's operations early. Only when no command is in flight.
    fn cancel_own(&mut self) -> io::Result<()>;

    /// The time, as [`crate::clock::monotonic_ns`] tells it.
    fn now_ns(&self) -> u64;

    /// The next thing the kernel said, if it said more.
    fn next_event(&mut self) -> Option<Event>;

    /// The request on `tag`, without a time; `Err` with the raw operation if it is one this crate does not know.
    fn request(&self, tag: u16) -> std::result::Result<Request, u8>;

    /// The data of `request`. For a zone report that is the whole report buffer.
    fn payload(&mut self, request: &Request) -> Payload<'_>;
}

/// One queue's ring, descriptors and buffers; lives on its thread.
pub(crate) struct IoQueue<'d> {
    ring: Ring,
    device: &'d CharDevice,
    queue: u16,
    descriptors: *const sys::ublksrv_io_desc,
    mapped: usize,
    buffers: Vec<IoBuf<u8>>,
}

impl<'d> IoQueue<'d> {
    /// Queue `queue` of `device`; `ring_entries` as [`crate::DeviceSpec::ring_entries`].
    pub(crate) fn open(device: &'d CharDevice, queue: u16, ring_entries: u16) -> io::Result<IoQueue<'d>> {
        let depth = u32::from(device.info.depth);
        let ring = Ring::new(device.info.depth, ring_entries)?;
        ring.submitter().register_files(&[device.file.as_raw_fd()])?;
        let page = page_bytes();
        let entry = size_of::<sys::ublksrv_io_desc>();
        let mapped = (depth as usize * entry).next_multiple_of(page);
        let stride = (sys::UBLK_MAX_QUEUE_DEPTH as usize * entry).next_multiple_of(page);
        let offset = sys::UBLKSRV_CMD_BUF_OFFSET as usize + usize::from(queue) * stride;
        // SAFETY: a fresh shared read-only mapping of the queue's descriptors, unmapped in drop.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                device.file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let buffers = match device.data_path {
            DataPath::UserCopy => Vec::new(),
            DataPath::Buffers => (0..depth).map(|_| zeroed(device.info.max_io_bytes as usize)).collect(),
        };
        Ok(IoQueue { ring, device, queue, descriptors: at.cast(), mapped, buffers })
    }

    fn push(&mut self, op: u32, tag: u16, result: i32, addr: u64) -> io::Result<()> {
        let command = sys::ublksrv_io_cmd { q_id: self.queue, tag, result, addr };
        // SAFETY: both are 16 bytes of plain integers.
        let bytes = unsafe { std::mem::transmute::<sys::ublksrv_io_cmd, [u8; 16]>(command) };
        let entry = opcode::UringCmd16::new(types::Fixed(0), op).cmd(bytes).build().user_data(tag.into());
        // SAFETY: the command is copied into the entry; a buffer it names lives as long as the queue.
        unsafe { self.ring.push(&entry) }
    }

    fn buffer_addr(&self, tag: u16) -> u64 {
        self.buffers.get(usize::from(tag)).map_or(0, |buffer| buffer.as_ptr() as u64)
    }

    /// Asks for the first request of every tag.
    pub(crate) fn fetch_all(&mut self) -> io::Result<()> {
        for tag in 0..self.device.info.depth {
            let addr = self.buffer_addr(tag);
            self.push(sys::UBLK_U_IO_FETCH_REQ, tag, -1, addr)?;
        }
        self.ring.submit()?;
        Ok(())
    }
}

impl Tags for IoQueue<'_> {
    fn commit(&mut self, tag: u16, result: i32, append_sector: Option<u64>) -> io::Result<()> {
        let addr = append_sector.unwrap_or_else(|| self.buffer_addr(tag));
        self.push(sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, result, addr)
    }

    fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.ring.wait(limit)
    }

    fn submit(&mut self) -> io::Result<()> {
        self.ring.submit()
    }

    fn all_submitted(&mut self) -> bool {
        self.ring.all_submitted()
    }

    fn poll(&mut self) -> io::Result<()> {
        self.ring.poll()
    }

    fn ready(&mut self) -> bool {
        self.ring.ready()
    }

    unsafe fn push_own(&mut self, entry: squeue::Entry, token: u64) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.ring.push_own(entry, token) }
    }

    fn cancel_own(&mut self) -> io::Result<()> {
        self.ring.cancel_all()
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn next_event(&mut self) -> Option<Event> {
        Some(match self.ring.next()? {
            Completed::Own { token, result, more } => Event::Own { token, result, more },
            Completed::Command(tag, 0) => Event::Request(tag as u16),
            Completed::Command(_, sys::UBLK_IO_RES_ABORT) => Event::Stopped,
            Completed::Command(tag, other) => Event::Refused(tag as u16, other),
        })
    }

    fn request(&self, tag: u16) -> std::result::Result<Request, u8> {
        debug_assert!(tag < self.device.info.depth);
        // SAFETY: the mapping holds `depth` descriptors and the kernel only names tags below it; it writes a tag's
        // descriptor only while the tag is the kernel's, and this tag is ours now.
        let raw = unsafe { self.descriptors.add(usize::from(tag)).read_volatile() };
        let code = (raw.op_flags & 0xff) as u8;
        let op = Op::from_kernel(code).ok_or(code)?;
        Ok(Request {
            op,
            sector: raw.start_sector,
            sectors: raw.nr_sectors,
            fua: raw.op_flags & sys::UBLK_IO_F_FUA != 0,
            tag,
            fetched_ns: 0,
        })
    }

    fn payload(&mut self, request: &Request) -> Payload<'_> {
        let limit = self.device.info.max_io_bytes as usize;
        let len = match request.op {
            Op::Read | Op::Write | Op::ZoneAppend => request.len_bytes(),
            Op::ReportZones => request.sectors as usize * size_of::<sys::blk_zone>(),
            _ => 0,
        };
        match self.buffers.get_mut(usize::from(request.tag)) {
            Some(buffer) => {
                let len = len.min(limit);
                Payload::Buffer(buffer.as_mut_slice().get_mut(..len).unwrap_or_default())
            }
            None => Payload::UserCopy(UserCopy {
                fd: self.device.file.as_raw_fd(),
                position: user_copy_position(self.queue, request.tag),
                len,
            }),
        }
    }
}

/// Where a tag's data starts in the character device (`ublk_pos_to_...` in the driver).
fn user_copy_position(queue: u16, tag: u16) -> u64 {
    u64::from(sys::UBLKSRV_IO_BUF_OFFSET)
        + (u64::from(queue) << sys::UBLK_QID_OFF)
        + (u64::from(tag) << sys::UBLK_TAG_OFF)
}

/// A buffer without what the heap held before: a handler may fill less than it promised.
fn zeroed(bytes: usize) -> IoBuf<u8> {
    let mut buffer = IoBuf::new(bytes);
    buffer.zero_buf();
    buffer
}

fn page_bytes() -> usize {
    // SAFETY: no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

impl Drop for IoQueue<'_> {
    fn drop(&mut self) {
        // SAFETY: mapped in `open` with this length, and no descriptor outlives the queue.
        unsafe { libc::munmap(self.descriptors.cast_mut().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_copy_positions_of_tags_and_queues_do_not_overlap() {
        let first = user_copy_position(0, 0);
        assert_eq!(first, 0x8000_0000);
        assert_eq!(user_copy_position(0, 1) - first, 32 << 20);
        assert_eq!(user_copy_position(1, 0) - first, 65536 * (32 << 20));
    }
}
