//! The queue in its real loop, over a file that behaves like a zoned SSD.

#![allow(clippy::unwrap_used)]

use super::*;
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use ublk_target::{Done, Errno, Op, local::LocalQueue};

const PAGE: usize = PAGE_BYTES;
const ZONE_PAGES: u32 = 64;

/// A file; a reset spoils the zone's bytes, so that a page that is still needed is seen to be gone.
struct FileMedia {
    file: File,
    resets: AtomicU64,
    broken: AtomicBool,
}

impl Media for FileMedia {
    fn file(&self) -> &File {
        &self.file
    }
    fn zone_bytes(&self) -> u64 {
        u64::from(ZONE_PAGES) * PAGE as u64
    }
    fn reset(&self, zone: u32) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.file.write_all_at(&vec![0xee; self.zone_bytes() as usize], u64::from(zone) * self.zone_bytes())
    }
}

fn shape(pages: u32, zones: u32) -> Shape {
    Shape { pages, zones, zone_pages: ZONE_PAGES, writers: 2, reserve_zones: 2 }
}

struct Bench {
    queue: LocalQueue<ZnQueue>,
    media: Arc<FileMedia>,
    device: Znswap,
}

fn bench(shape: Shape) -> Bench {
    let file = tempfile::tempfile().unwrap();
    file.set_len(u64::from(shape.zones * ZONE_PAGES) * PAGE as u64).unwrap();
    let media = Arc::new(FileMedia { file, resets: AtomicU64::new(0), broken: AtomicBool::new(false) });
    let device = Znswap::new(Arc::clone(&media) as Arc<dyn Media>, shape, 16);
    let handler = device.open_queue(0).unwrap();
    let queue = LocalQueue::new(handler, 16, MAX_IO_PAGES as usize * PAGE).unwrap();
    Bench { queue, media, device }
}

impl Bench {
    /// Runs one request to its end.
    fn run(&mut self, op: Op, page: u32, count: u32, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let tag = self.queue.submit(op, u64::from(page) * 8, count * 8, Some(data)).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            self.queue.turn(Duration::from_millis(50)).unwrap();
            if let Some((done, result)) = self.queue.take_done() {
                assert_eq!(done, tag);
                assert_eq!(result.is_ok(), result == Ok(Done::Whole));
                return result.map(|_| self.queue.data(tag).to_vec());
            }
            assert!(Instant::now() < end, "the request hangs");
        }
    }

    fn stat(&self, name: &str) -> u64 {
        let stats = self.device.stats();
        stats[name].as_u64().or(stats["counters"][name].as_u64()).unwrap()
    }
}

fn content(page: u32, version: u32) -> Vec<u8> {
    let word = (u64::from(page) << 32 | u64::from(version)).to_le_bytes();
    word.repeat(PAGE / 8)
}

#[test]
fn pages_read_back_and_pages_never_written_or_discarded_read_as_zeros() {
    let mut bench = bench(shape(512, 24));
    let data: Vec<u8> = (10..30).flat_map(|page| content(page, 1)).collect();
    bench.run(Op::Write, 10, 20, &data).unwrap();
    assert_eq!(bench.run(Op::Read, 10, 20, &[]).unwrap(), data);
    assert_eq!(bench.run(Op::Read, 100, 3, &[1; 3 * PAGE]).unwrap(), vec![0; 3 * PAGE]);
    bench.run(Op::Discard, 12, 2, &[]).unwrap();
    let read = bench.run(Op::Read, 8, 8, &[]).unwrap();
    let expected: Vec<u8> = [vec![0; 2 * PAGE], content(10, 1), content(11, 1), vec![0; 2 * PAGE]].concat();
    assert_eq!(read[..6 * PAGE], expected);
    assert_eq!(read[6 * PAGE..], [content(14, 1), content(15, 1)].concat());
    assert_eq!(bench.run(Op::Read, 511, 2, &[]), Err(Errno::new(libc::EINVAL)));
}

#[test]
fn overwriting_a_full_device_for_long_moves_pages_and_loses_none() {
    let shape = shape(Shape { zones: 14, ..shape(0, 14) }.most_pages(), 14);
    let mut bench = bench(shape);
    let mut known = HashMap::new();
    let mut random = crate::units::Choices::new(7);
    for page in (0..shape.pages).step_by(16) {
        let data: Vec<u8> = (page..page + 16).flat_map(|page| content(page, 0)).collect();
        bench.run(Op::Write, page, 16, &data).unwrap();
    }
    for version in 1..3000 {
        let page = random.below(shape.pages - 4);
        let count = 1 + random.below(4);
        let data: Vec<u8> = (page..page + count).flat_map(|page| content(page, version)).collect();
        bench.run(Op::Write, page, count, &data).unwrap();
        known.extend((page..page + count).map(|page| (page, version)));
        let page = random.below(shape.pages);
        let version = known.get(&page).copied().unwrap_or(0);
        assert_eq!(bench.run(Op::Read, page, 1, &[]).unwrap(), content(page, version), "page {page}");
    }
    for page in 0..shape.pages {
        let version = known.get(&page).copied().unwrap_or(0);
        assert_eq!(bench.run(Op::Read, page, 1, &[]).unwrap(), content(page, version), "page {page}");
    }
    assert!(bench.media.resets.load(Ordering::Relaxed) > 20);
    assert!(bench.stat("moved_pages") > 0 && bench.stat("mapped_pages") == u64::from(shape.pages));
}

#[test]
fn many_requests_at_once_are_all_answered_with_their_own_data() {
    let mut bench = bench(shape(512, 24));
    let mut random = crate::units::Choices::new(3);
    let mut versions = vec![0_u32; 512];
    for round in 1..40 {
        // Disjoint ranges of 32 pages, as the kernel never has two requests for one page.
        let mut asked = HashMap::new();
        for slot in 0..12_u32 {
            let (page, count) = (slot * 40, 1 + random.below(32));
            let writes = random.below(2) == 0;
            let data: Vec<u8> = (page..page + count).flat_map(|page| content(page, round)).collect();
            let op = if writes { Op::Write } else { Op::Read };
            let tag = bench.queue.submit(op, u64::from(page) * 8, count * 8, Some(&data)).unwrap();
            asked.insert(tag, (page, count, writes));
        }
        let end = Instant::now() + Duration::from_secs(20);
        while !asked.is_empty() {
            assert!(Instant::now() < end, "{asked:?} hang");
            bench.queue.turn(Duration::from_millis(50)).unwrap();
            while let Some((tag, result)) = bench.queue.take_done() {
                result.unwrap();
                let (page, count, writes) = asked.remove(&tag).unwrap();
                for n in 0..count {
                    let version = &mut versions[(page + n) as usize];
                    if writes {
                        *version = round;
                    } else {
                        let expected =
                            if *version == 0 { vec![0; PAGE] } else { content(page + n, *version) };
                        let at = n as usize * PAGE;
                        assert_eq!(bench.queue.data(tag)[at..at + PAGE], expected, "page {}", page + n);
                    }
                }
            }
        }
    }
}

#[test]
fn when_no_zone_can_be_emptied_writes_fail_with_no_space_and_reads_go_on() {
    let mut bench = bench(shape(512, 24));
    bench.media.broken.store(true, Ordering::Relaxed);
    let mut failed = None;
    for version in 0..3000 {
        let page = version % 512;
        match bench.run(Op::Write, page, 1, &content(page, version)) {
            Ok(_) => {}
            Err(errno) => {
                failed = Some((version, errno));
                break;
            }
        }
    }
    let (version, errno) = failed.expect("the device is smaller than what was written");
    assert_eq!(errno, Errno::ENOSPC);
    for earlier in version - 512..version {
        assert_eq!(bench.run(Op::Read, earlier % 512, 1, &[]).unwrap(), content(earlier % 512, earlier));
    }
    assert_eq!(bench.stat("write_errors"), 1);
}
