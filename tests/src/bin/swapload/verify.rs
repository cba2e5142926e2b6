//! Known words in every page. The invariant checked: a page holds the words that were written to it last, or zeros after it was
//! discarded; whatever swap did with it meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::random::{Random, mix};
use crate::report::{Meter, Outcome};

const PAGE: usize = 4096;
/// Words of a page that are written and checked, one every 512 bytes.
const WORDS: usize = 8;
/// Pages that one discard covers: a swap cluster, so that the device hears of some.
const DISCARD_PAGES: u64 = 512;
/// Wrong words that are told one by one.
const TOLD: u64 = 10;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Memory, in MiB
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Seconds of random access after all pages were written once
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// End after so many operations, if that is earlier; 0 for none
    #[arg(long, default_value_t = 0)]
    operations: u64,
    /// Of 100 accesses, so many write
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(0..=100))]
    writes: u64,
    /// Of 10000 accesses, so many give 2 MiB back (MADV_DONTNEED)
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    discards: u64,
    /// Of 100 bytes of a page, so many do not compress
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(0..=100))]
    noise: u64,
    /// Seed of contents and accesses
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Say on standard error when all pages are written, and the number of operations every second
    #[arg(long)]
    progress: bool,
}

/// Anonymous memory.
struct Region {
    start: *mut u8,
    pages: u64,
}

impl Region {
    fn new(pages: u64) -> Result<Self> {
        let bytes = usize::try_from(pages * PAGE as u64)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context(format!("{bytes} bytes of memory"));
        }
        Ok(Self { start: start.cast(), pages })
    }

    fn page(&mut self, page: u64) -> &mut [u8; PAGE] {
        assert!(page < self.pages);
        // SAFETY: within the mapping, which is ours alone and readable and writable.
        unsafe { &mut *self.start.add(page as usize * PAGE).cast() }
    }

    fn discard(&mut self, page: u64, pages: u64) -> Result<()> {
        assert!(page + pages <= self.pages);
        // SAFETY: whole pages within the mapping; nothing refers to their content now.
        let done = unsafe {
            libc::madvise(
                self.start.add(page as usize * PAGE).cast(),
                pages as usize * PAGE,
                libc::MADV_DONTNEED,
            )
        };
        if done != 0 {
            return Err(std::io::Error::last_os_error()).context("madvise");
        }
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, of which nothing is referred to any more.
        unsafe { libc::munmap(self.start.cast(), self.pages as usize * PAGE) };
    }
}

/// Word `n` of a page's version; version 0 is the page of zeros.
fn word(page: u64, version: u32, n: usize) -> u64 {
    if version == 0 { 0 } else { mix(page << 32 | u64::from(version)).wrapping_add(n as u64) }
}

fn fill(bytes: &mut [u8; PAGE], page: u64, version: u32, noise: u64) {
    let mut random = Random::new(page << 32 | u64::from(version));
    let noisy = (512 * noise / 100) as usize;
    for (n, part) in bytes.chunks_exact_mut(512).enumerate() {
        part.fill(version as u8 | 1);
        part[..noisy].chunks_mut(8).for_each(|chunk| {
            let len = chunk.len();
            chunk.copy_from_slice(&random.next().to_le_bytes()[..len]);
        });
        part[..8].copy_from_slice(&word(page, version, n).to_le_bytes());
    }
}

/// How many of a page's words are wrong.
fn check(bytes: &[u8; PAGE], page: u64, version: u32) -> u64 {
    let words = bytes.chunks_exact(512).take(WORDS).enumerate();
    words.filter(|(n, part)| part[..8] != word(page, version, *n).to_le_bytes()).count() as u64
}

pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let pages = options.mib << 8;
    if pages < DISCARD_PAGES {
        bail!("--mib {}: at least 2 is needed", options.mib);
    }
    let mut region = Region::new(pages)?;
    let mut versions = vec![1_u32; pages as usize];
    let filling = Instant::now();
    for page in 0..pages {
        fill(region.page(page), page, 1, options.noise);
    }
    let fill_seconds = filling.elapsed().as_secs_f64();
    if options.progress {
        eprintln!("{pages} pages written");
    }
    let mut random = Random::new(options.seed);
    let (mut wrong, mut discarded, mut operations, mut told_s) = (0, 0, 0_u64, 0);
    let end = Duration::from_secs_f64(options.seconds);
    let mut meter = Meter::start()?;
    let mut see = |region: &mut Region, page: u64, version: u32| {
        let found = check(region.page(page), page, version);
        if found > 0 && wrong < TOLD {
            eprintln!("page {page}: {found} words are not those of version {version}");
        }
        wrong += found;
    };
    while meter.since_start() < end && (options.operations == 0 || operations < options.operations) {
        operations += 1;
        let page = random.below(pages);
        if random.below(10_000) < options.discards {
            let first = page / DISCARD_PAGES * DISCARD_PAGES;
            let count = DISCARD_PAGES.min(pages - first);
            region.discard(first, count)?;
            versions[first as usize..(first + count) as usize].fill(0);
            discarded += count;
            continue;
        }
        let write = random.below(100) < options.writes;
        let version = &mut versions[page as usize];
        let begun = Instant::now();
        see(&mut region, page, *version);
        if write {
            *version = version.wrapping_add(1).max(1);
            fill(region.page(page), page, *version, options.noise);
        }
        meter.count(begun.elapsed());
        let second = meter.since_start().as_secs();
        if options.progress && second > told_s {
            told_s = second;
            eprintln!("{operations} operations");
        }
    }
    let access_seconds = meter.since_start().as_secs_f64();
    for page in 0..pages {
        see(&mut region, page, versions[page as usize]);
    }
    let more = json!({
        "mib": options.mib, "fill_seconds": fill_seconds, "access_seconds": access_seconds,
        "seconds": fill_seconds + access_seconds, "discarded_pages": discarded,
    });
    Ok(meter.finish("verify", wrong, more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_own_words_and_no_others() {
        let mut bytes = [0; PAGE];
        assert_eq!(check(&bytes, 7, 0), 0);
        fill(&mut bytes, 7, 3, 40);
        assert_eq!(check(&bytes, 7, 3), 0);
        assert_eq!((check(&bytes, 7, 2), check(&bytes, 8, 3), check(&bytes, 7, 0)), (8, 8, 8));
        bytes[512] ^= 1;
        assert_eq!(check(&bytes, 7, 3), 1);
    }

    #[test]
    fn memory_that_is_not_disturbed_is_found_right_with_discards_and_writes() {
        let options = Options {
            mib: 4,
            seconds: 20.0,
            operations: 3000,
            writes: 50,
            discards: 100,
            noise: 40,
            seed: 5,
            progress: false,
        };
        let found = run(&options).map(|outcome| outcome.json());
        assert!(
            found.as_ref().is_ok_and(|f| f["wrong"] == 0 && f["discarded_pages"].as_u64() > Some(0)),
            "{found:?}"
        );
    }
}
