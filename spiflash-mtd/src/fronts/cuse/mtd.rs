//! `/dev/mtdN` by CUSE: every MTD ioctl whole, and a data path without a position.
//!
//! The kernel hands a CUSE device no file position: lseek(2) does nothing and says 0, pread(2) and pwrite(2) come as if at
//! 0 (fs/fuse/cuse.c). So each open file has a position for reads and one for writes here, which go on from 0 by themselves:
//! what reads or writes from the beginning to the end in order works (`cat`, `dd`, `flashcp` without `-p`); what seeks does
//! not. The FUSE file ([`crate::fronts::mtd`]) has the data path and lacks some ioctls; this has the ioctls.

use super::{CuseDevice, Errno, Ioctl, IoctlReply, Region};
use crate::fronts::mtd::MtdDevice;
use crate::fronts::mtd::ioctl::{FileMode, shape};
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Debug)]
struct Open {
    mode: FileMode,
    writable: bool,
    read_at: u64,
    write_at: u64,
}

/// An MTD as a CUSE device.
pub struct CuseMtd {
    device: Arc<MtdDevice>,
    open: HashMap<u64, Open>,
    last: u64,
}

impl CuseMtd {
    /// A device for an MTD.
    pub fn new(device: Arc<MtdDevice>) -> CuseMtd {
        CuseMtd { device, open: HashMap::new(), last: 0 }
    }

    fn file(&mut self, handle: u64) -> Result<(&MtdDevice, &mut Open), Errno> {
        let open = self.open.get_mut(&handle).ok_or(Errno::EBADF)?;
        Ok((&self.device, open))
    }
}

impl CuseDevice for CuseMtd {
    fn open(&mut self, flags: u32) -> Result<u64, Errno> {
        let writable = flags as i32 & libc::O_ACCMODE != libc::O_RDONLY;
        self.last += 1;
        let open = Open { mode: FileMode::Normal, writable, read_at: 0, write_at: 0 };
        self.open.insert(self.last, open);
        Ok(self.last)
    }

    fn release(&mut self, handle: u64) {
        self.open.remove(&handle);
    }

    fn read(&mut self, handle: u64, size_bytes: u32, data: &mut Vec<u8>) -> Result<(), Errno> {
        let (device, open) = self.file(handle)?;
        let room = device.bytes_of(open.mode).saturating_sub(open.read_at).min(u64::from(size_bytes));
        let begin = data.len();
        data.resize(begin + room as usize, 0);
        let bytes = device.read(open.mode, open.read_at, data.get_mut(begin..).unwrap_or_default());
        data.truncate(begin + bytes.unwrap_or(0));
        open.read_at += bytes? as u64;
        Ok(())
    }

    fn write(&mut self, handle: u64, data: &[u8]) -> Result<u32, Errno> {
        let (device, open) = self.file(handle)?;
        let bytes = device.write(open.mode, open.write_at, data)?;
        open.write_at += bytes as u64;
        Ok(u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    fn ioctl(&mut self, ioctl: Ioctl<'_>) -> Result<IoctlReply, Errno> {
        let shape = shape(ioctl.cmd).ok_or(Errno::ENOTTY)?;
        let lacks_input = ioctl.input.len() < shape.input_bytes;
        let lacks_room = (ioctl.output_bytes as usize) < shape.output_bytes;
        if lacks_input || lacks_room {
            // Asked again without what was asked for: the kernel could not fetch it.
            if !ioctl.input.is_empty() || ioctl.output_bytes != 0 {
                return Err(Errno::EFAULT);
            }
            let region = |bytes: usize| (bytes > 0).then_some(Region { base: ioctl.arg, len: bytes as u64 });
            let input = region(shape.input_bytes).into_iter().collect();
            let output = region(shape.output_bytes).into_iter().collect();
            return Ok(IoctlReply::Retry { input, output });
        }
        let (device, open) = self.file(ioctl.handle)?;
        let before = open.mode;
        let (writable, argument) = (open.writable, Some(ioctl.arg));
        let answer = device.ioctl(&mut open.mode, writable, ioctl.cmd, argument, ioctl.input)?;
        if open.mode != before {
            // mtdchar.c: another area begins at its beginning.
            (open.read_at, open.write_at) = (0, 0);
        }
        Ok(IoctlReply::Done { result: answer.result, output: answer.bytes })
    }
}
