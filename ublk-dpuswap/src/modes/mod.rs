//! Other ways to swap, to compare with: what Infiniswap and what ZNSwap do, behind the same block device, on the same nodes,
//! links and rings as the swap device itself.
//!
//! The invariant of both: every request ends, with its data, zeros for a page that was never written, or an errno; and no
//! request allocates.

pub mod infiniswap;
pub mod znswap;

use ublk_target::{Errno, Request};

use crate::units::PAGE_BYTES;

/// Sectors (512 bytes) of a page.
const PAGE_SECTORS: u64 = PAGE_BYTES as u64 / 512;

/// A buffer that direct I/O takes.
#[repr(C, align(4096))]
#[derive(Clone)]
pub(crate) struct PageBuffer(pub(crate) [u8; PAGE_BYTES]);

/// So many buffers, one after the other, all zero.
pub(crate) fn buffers(count: usize) -> Vec<PageBuffer> {
    vec![PageBuffer([0; PAGE_BYTES]); count]
}

/// The pages of a request: the device's logical block is a page, so anything else is the kernel's error.
pub(crate) fn pages_of(request: &Request, pages: u32) -> Result<(u32, u32), Errno> {
    let sectors = u64::from(request.sectors);
    let whole = request.sector.is_multiple_of(PAGE_SECTORS) && sectors.is_multiple_of(PAGE_SECTORS);
    let (first, count) = (request.sector / PAGE_SECTORS, sectors / PAGE_SECTORS);
    if !whole || first.saturating_add(count) > u64::from(pages) {
        return Err(Errno::new(libc::EINVAL));
    }
    Ok((first as u32, count as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_target::Op;

    #[test]
    fn requests_become_pages_and_what_is_not_within_the_device_is_refused() {
        let ask = |sector, sectors| {
            let request = Request { op: Op::Read, sector, sectors, fua: false, tag: 0, fetched_ns: 0 };
            pages_of(&request, 10).map_err(|errno| errno.code())
        };
        assert_eq!(ask(16, 24), Ok((2, 3)));
        assert_eq!(ask(72, 8), Ok((9, 1)));
        for (sector, sectors) in [(1, 8), (8, 7), (72, 16), (u64::MAX / 8 * 8, 8)] {
            assert_eq!(ask(sector, sectors), Err(libc::EINVAL));
        }
    }
}
