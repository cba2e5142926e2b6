//! `swapverify`: keeps a known content in more memory than it may have, and looks whether it is still there.
//!
//! Every page holds words that follow from the seed, its number and how often it was written. Threads write, read and discard
//! pages at random; at the end all are read once more. A line of JSON every second is the heartbeat; the last one is the
//! verdict.
//!
//! The invariant: what says what a page must hold lies in locked memory, so that swap can not spoil both alike. A page that
//! swap can not give back (SIGBUS) is counted as lost and not as wrong.

use serde_json::json;
use std::cell::Cell;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
const WORDS: usize = PAGE_BYTES / 8;
/// Pages of a discard: what the kernel's swap clusters hold, of which alone a device hears.
const DISCARD_PAGES: usize = 512;
/// Of so many steps one discards.
const DISCARD_ONE_IN: u64 = 500;
/// Pages of a sequential step.
const RUN_PAGES: usize = 16;
const STACK_BYTES: usize = 256 << 10;

const USAGE: &str = "usage: swapverify --size MIB [--seconds N] [--seed N] [--threads N] [--random-bytes N] [--no-discards]
  --size MIB         memory to hold
  --seconds N        random access for so long, between filling and checking all (default 0)
  --seed N           of contents and choices (default 1)
  --threads N        each with its own part (default 2)
  --random-bytes N   of each 4096 that do not compress (default 1400)
  --no-discards      never give memory back
Exit status: 0 when every word is right, 1 when one is wrong, 2 when asked wrongly, 3 when pages are lost but none is wrong.";

#[derive(Debug, Clone, Copy)]
struct Options {
    pages: usize,
    seconds: u64,
    seed: u64,
    threads: usize,
    random_words: usize,
    discards: bool,
}

fn parse(args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options =
        Options { pages: 0, seconds: 0, seed: 1, threads: 2, random_words: 175, discards: true };
    let mut args = args;
    while let Some(name) = args.next() {
        if name == "--no-discards" {
            options.discards = false;
            continue;
        }
        let text = args.next().ok_or(format!("{name}: a number is needed"))?;
        let number = |least: u64, most: u64| match text.parse::<u64>() {
            Ok(value) if (least..=most).contains(&value) => Ok(value),
            _ => Err(format!("{name} {text}: a number from {least} to {most} is needed")),
        };
        match name.as_str() {
            "--size" => options.pages = number(4, 1 << 20)? as usize * (1 << 20) / PAGE_BYTES,
            "--seconds" => options.seconds = number(0, 1_000_000)?,
            "--seed" => options.seed = number(0, u64::MAX)?,
            "--threads" => options.threads = number(1, 64)? as usize,
            "--random-bytes" => options.random_words = number(8, 4096)? as usize / 8,
            other => return Err(format!("{other}: no such option")),
        }
    }
    if options.pages == 0 {
        return Err("--size is missing".to_owned());
    }
    Ok(options)
}

/// SplitMix64's finish: what a number becomes.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// The words that page `page` must hold when it was written `version` times (0: never, or discarded since).
fn content(options: &Options, page: usize, version: u32) -> impl Iterator<Item = u64> {
    let mut random = Random(mix(options.seed ^ mix(((page as u64) << 32) | u64::from(version))));
    let random_words = options.random_words;
    (0..WORDS).map(move |word| match (version, word < random_words) {
        (0, _) => 0,
        (_, true) => random.next(),
        (_, false) => page as u64,
    })
}

/// Where the memory is, for the signal handler.
static BASE: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Set by the handler: the page this thread has just touched is lost.
    static LOST: Cell<bool> = const { Cell::new(false) };
}

/// Puts an empty page in the place of one that swap could not give back, and notes that.
extern "C" fn lose(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo to a handler with SA_SIGINFO; mmap and _exit are system calls and nothing else.
    // The page that is replaced is in our own mapping, and the only thread that uses it is the one in this handler.
    unsafe {
        let address = (*info).si_addr() as usize & !(PAGE_BYTES - 1);
        if !(BASE.load(Relaxed)..END.load(Relaxed)).contains(&address) {
            libc::_exit(70);
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let place = address as *mut libc::c_void;
        if libc::mmap(place, PAGE_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) != place {
            libc::_exit(71);
        }
        // What is mapped from now on is locked, and this is to be swapped like the rest.
        libc::munlock(place, PAGE_BYTES);
    }
    LOST.set(true);
}

/// What a thread has done, for the heartbeat.
#[derive(Default)]
struct Progress {
    filled: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    discarded: AtomicU64,
    checked: AtomicU64,
    wrong_words: AtomicU64,
    wrong_pages: AtomicU64,
    lost_pages: AtomicU64,
    over_1ms: AtomicU64,
    over_100ms: AtomicU64,
    over_1s: AtomicU64,
    worst_ns: AtomicU64,
    /// Of the page that is being touched, since the start; 0 when none is.
    since_ns: AtomicU64,
    run_ns: AtomicU64,
    done: AtomicBool,
}

struct Worker {
    options: Options,
    base: usize,
    first: usize,
    versions: Vec<u32>,
    random: Random,
    progress: Arc<Progress>,
    start: Instant,
}

fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Relaxed);
}

impl Worker {
    fn at(&self, index: usize) -> *mut u64 {
        (self.base + (self.first + index) * PAGE_BYTES) as *mut u64
    }

    /// Touches a page through `work`, timed. A page that turns out to be lost is empty from now on.
    fn touch(&mut self, index: usize, work: impl FnOnce(&Self, *mut u64)) {
        let began = self.start.elapsed().as_nanos() as u64;
        self.progress.since_ns.store(began.max(1), Relaxed);
        work(self, self.at(index));
        let took = (self.start.elapsed().as_nanos() as u64).saturating_sub(began);
        let progress = &self.progress;
        progress.since_ns.store(0, Relaxed);
        progress.worst_ns.fetch_max(took, Relaxed);
        for (limit_ns, counter) in [
            (1_000_000, &progress.over_1ms),
            (100_000_000, &progress.over_100ms),
            (1_000_000_000, &progress.over_1s),
        ] {
            if took >= limit_ns {
                add(counter, 1);
            }
        }
    }

    fn write(&mut self, index: usize) {
        let version = self.versions[index].wrapping_add(1).max(1);
        loop {
            self.touch(index, |this, place| {
                for (word, value) in content(&this.options, this.first + index, version).enumerate() {
                    // SAFETY: the page is inside the mapping, and this thread's alone.
                    unsafe { place.add(word).write_volatile(value) };
                }
            });
            // A page that was lost in the middle has lost the words before that, too.
            if !LOST.replace(false) {
                break;
            }
            add(&self.progress.lost_pages, 1);
        }
        self.versions[index] = version;
    }

    fn check(&mut self, index: usize) {
        let version = self.versions[index];
        let wrong = Cell::new(0);
        self.touch(index, |this, place| {
            for (word, value) in content(&this.options, this.first + index, version).enumerate() {
                // SAFETY: as in `write`.
                if unsafe { place.add(word).read_volatile() } != value {
                    wrong.set(wrong.get() + 1);
                }
            }
        });
        if LOST.replace(false) {
            add(&self.progress.lost_pages, 1);
            self.versions[index] = 0;
        } else if wrong.get() > 0 {
            add(&self.progress.wrong_words, wrong.get());
            if self.progress.wrong_pages.fetch_add(1, Relaxed) < 20 {
                let found = [0, 1, self.options.random_words, WORDS - 1].map(|word| {
                    // SAFETY: as in `write`.
                    unsafe { self.at(index).add(word.min(WORDS - 1)).read_volatile() }
                });
                let page = self.first + index;
                eprintln!(
                    "page {page}, version {version}: {} of {WORDS} words wrong; words 0, 1, .., last: {found:x?}",
                    wrong.get()
                );
            }
            self.write(index);
        }
    }

    fn discard(&mut self) {
        let index = self.random.below(self.versions.len());
        let index = ((self.first + index) & !(DISCARD_PAGES - 1)).max(self.first) - self.first;
        let pages = DISCARD_PAGES.min(self.versions.len() - index);
        // SAFETY: the range is inside the mapping and this thread's alone.
        let done = unsafe { libc::madvise(self.at(index).cast(), pages * PAGE_BYTES, libc::MADV_DONTNEED) };
        if done == 0 {
            self.versions[index..index + pages].fill(0);
            add(&self.progress.discarded, pages as u64);
        }
    }

    fn step(&mut self) {
        if self.options.discards && self.random.next().is_multiple_of(DISCARD_ONE_IN) {
            self.discard();
        }
        let pages = if self.random.next().is_multiple_of(2) { 1 } else { RUN_PAGES.min(self.versions.len()) };
        let first = self.random.below(self.versions.len() + 1 - pages);
        let write = self.random.next() % 100 < 38;
        for index in first..first + pages {
            if write {
                self.write(index);
            } else {
                self.check(index);
            }
        }
        add(if write { &self.progress.written } else { &self.progress.read }, pages as u64);
    }

    fn run(mut self) {
        for index in 0..self.versions.len() {
            self.write(index);
            add(&self.progress.filled, 1);
        }
        let begun = Instant::now();
        let limit = Duration::from_secs(self.options.seconds);
        while begun.elapsed() < limit {
            self.step();
        }
        self.progress.run_ns.store(begun.elapsed().as_nanos() as u64, Relaxed);
        for index in 0..self.versions.len() {
            self.check(index);
            add(&self.progress.checked, 1);
        }
        self.progress.done.store(true, Relaxed);
    }
}

/// The heartbeat: sums over threads.
fn beat(threads: &[Arc<Progress>], start: Instant, done: bool, locked: bool) -> serde_json::Value {
    let sum =
        |pick: fn(&Progress) -> &AtomicU64| threads.iter().map(|one| pick(one).load(Relaxed)).sum::<u64>();
    let most = |pick: fn(&Progress) -> &AtomicU64| {
        threads.iter().map(|one| pick(one).load(Relaxed)).max().unwrap_or(0)
    };
    let now = start.elapsed().as_nanos() as u64;
    let since = threads.iter().map(|one| one.since_ns.load(Relaxed)).filter(|since| *since > 0);
    let oldest = since.map(|since| now.saturating_sub(since)).max().unwrap_or(0);
    let (run_ns, steps) = (most(|one| &one.run_ns), sum(|one| &one.read) + sum(|one| &one.written));
    let rate = if run_ns > 0 { steps as f64 * 1e9 / run_ns as f64 } else { 0.0 };
    json!({
        "second": now / 1_000_000_000,
        "done": done,
        "locked": locked,
        "pages": sum(|one| &one.filled) + steps + sum(|one| &one.checked),
        "filled": sum(|one| &one.filled),
        "read": sum(|one| &one.read),
        "written": sum(|one| &one.written),
        "discarded": sum(|one| &one.discarded),
        "checked": sum(|one| &one.checked),
        "wrong_words": sum(|one| &one.wrong_words),
        "wrong_pages": sum(|one| &one.wrong_pages),
        "lost_pages": sum(|one| &one.lost_pages),
        "over_1ms": sum(|one| &one.over_1ms),
        "over_100ms": sum(|one| &one.over_100ms),
        "over_1s": sum(|one| &one.over_1s),
        "worst_ms": most(|one| &one.worst_ns).max(oldest) / 1_000_000,
        "waiting_ms": oldest / 1_000_000,
        "pages_per_s": rate.round(),
    })
}

/// Maps the memory, and locks all that is not it, now and later. Gives whether that could be locked.
fn map(bytes: usize) -> Result<bool, String> {
    // SAFETY: a new private mapping at a place of the kernel's choice, which nobody uses yet; advice about it; a handler that
    // does only what its own comment says.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // Not accessible yet: locking all there is would fill it.
        let base = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0);
        if base == libc::MAP_FAILED {
            return Err(format!("{bytes} bytes of memory: {}", std::io::Error::last_os_error()));
        }
        let locked = libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) == 0;
        libc::munlock(base, bytes);
        if libc::mprotect(base, bytes, libc::PROT_READ | libc::PROT_WRITE) < 0 {
            return Err(format!("{bytes} bytes of memory: {}", std::io::Error::last_os_error()));
        }
        libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE);
        BASE.store(base as usize, Relaxed);
        END.store(base as usize + bytes, Relaxed);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = lose as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        if libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) < 0 {
            return Err(format!("SIGBUS: {}", std::io::Error::last_os_error()));
        }
        Ok(locked)
    }
}

fn verify(options: Options) -> Result<serde_json::Value, String> {
    let (start, barrier) = (Instant::now(), Arc::new(Barrier::new(options.threads + 1)));
    let mut threads = Vec::new();
    for number in 0..options.threads {
        let part = |number: usize| options.pages * number / options.threads;
        let (first, end) = (part(number), part(number + 1));
        let progress = Arc::new(Progress::default());
        threads.push(Arc::clone(&progress));
        let mut worker = Worker {
            options,
            base: 0,
            first,
            versions: vec![0; end - first],
            random: Random(mix(options.seed.wrapping_add(number as u64 + 1))),
            progress,
            start,
        };
        let barrier = Arc::clone(&barrier);
        let run = move || {
            barrier.wait();
            worker.base = BASE.load(Relaxed);
            worker.run();
        };
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run);
        thread.map_err(|error| format!("a thread: {error}"))?;
    }
    let locked = map(options.pages * PAGE_BYTES)?;
    barrier.wait();
    let mut next = start + Duration::from_secs(1);
    loop {
        let done = threads.iter().all(|one| one.done.load(Relaxed));
        if done || Instant::now() >= next {
            let beat = beat(&threads, start, done, locked);
            let mut out = std::io::stdout().lock();
            writeln!(out, "{beat}")
                .and_then(|()| out.flush())
                .map_err(|error| format!("standard output: {error}"))?;
            if done {
                return Ok(beat);
            }
            next += Duration::from_secs(1);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match parse(args.into_iter()) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("swapverify: {message} (--help)");
            return ExitCode::from(2);
        }
    };
    match verify(options) {
        Ok(verdict) if verdict["wrong_words"] != 0 => ExitCode::FAILURE,
        Ok(verdict) if verdict["lost_pages"] != 0 => ExitCode::from(3),
        Ok(_) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("swapverify: {message}");
            ExitCode::from(4)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<Options, String> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_that_are_no_numbers_in_range_are_refused_by_name() {
        for text in [
            "",
            "--size",
            "--size 3",
            "--size x",
            "--size 8 --threads 0",
            "--size 8 --speed 3",
            "--size 8 --random-bytes 4097",
        ] {
            let error = options(text).unwrap_err();
            assert!(error.starts_with("--"), "{text}: {error}");
        }
        assert_eq!(options("--size 8 --no-discards").unwrap().pages, 2048);
    }

    #[test]
    fn a_page_differs_from_every_other_and_from_its_own_past() {
        let options = options("--size 8").unwrap();
        let page = |page, version| content(&options, page, version).collect::<Vec<u64>>();
        assert_eq!(page(7, 3), page(7, 3));
        assert_ne!(page(7, 3), page(8, 3));
        assert_ne!(page(7, 3), page(7, 4));
        assert!(page(7, 0).iter().all(|word| *word == 0));
        assert_eq!(page(7, 3).len(), WORDS);
    }

    #[test]
    fn memory_that_nobody_takes_away_is_right() {
        let verdict = verify(Options { seconds: 1, ..options("--size 8").unwrap() }).unwrap();
        assert_eq!((&verdict["wrong_words"], &verdict["lost_pages"]), (&json!(0), &json!(0)));
        assert!(verdict["checked"] == 2048 && verdict["read"].as_u64() > Some(0), "{verdict}");
    }
}
