//! The tools of mtd-utils on the chip as an MTD, every cell of docs/spi-mtd-matrix.md: on the FUSE file, on the CUSE device,
//! and on the CUSE device with a made-up /sys/class/mtd in a mount namespace of the tool's own.
//!
//! Each cell begins with a new chip. A cell is "ok" when the tool succeeds *and* the chip holds, or the tool printed, what it
//! should; else it says how it fails, in the words of this file.

use spiflash_mtd::fronts::SharedBus;
use spiflash_mtd::fronts::cuse::CuseServer;
use spiflash_mtd::fronts::cuse::mtd::CuseMtd;
use spiflash_mtd::fronts::mtd::{ChipControl, MountOptions, Mounted, MtdDevice, MtdEntry, mount};
use spiflash_mtd::{Chip, Setup, SimBus, TimeMode, part};
use std::fmt::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tests::{Outcome, run, sh};

const PART: &str = "W25Q128JV";
/// The kernel's own MTDs begin with 0.
const CUSE_NAME: &str = "mtd7";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Fuse,
    Cuse,
    CuseSysfs,
}

/// A chip behind one of the files.
struct Subject {
    column: Column,
    sim: Arc<Mutex<SimBus>>,
    path: PathBuf,
    /// Ends with the subject.
    _cuse: Option<CuseServer>,
    fuse: Option<Mounted>,
}

impl Subject {
    fn new(column: Column, work: &Path) -> Subject {
        let chip_part = Arc::new(part::find(PART).unwrap().clone());
        let chip = Chip::new(chip_part.clone(), &Setup::default()).unwrap();
        let sim = Arc::new(Mutex::new(SimBus::new(vec![chip], TimeMode::PollSkip { polls: 1 }, || 0)));
        let bus: SharedBus = sim.clone();
        let control: Arc<Mutex<dyn ChipControl + Send>> = sim.clone();
        let name = if column == Column::Fuse { "mtd0" } else { CUSE_NAME };
        let device = Arc::new(MtdDevice::new(name, bus, chip_part, 0).unwrap());
        if column == Column::Fuse {
            let at = work.join("mount");
            std::fs::create_dir_all(&at).unwrap();
            let entry = MtdEntry { device, control, part_text: String::new() };
            let fuse = Some(mount(vec![entry], &at, &MountOptions::default()).unwrap());
            return Subject { column, sim, path: at.join(name), _cuse: None, fuse };
        }
        let server = CuseServer::start(name, Box::new(CuseMtd::new(device))).unwrap();
        let path = server.node().to_owned();
        assert!(path.metadata().unwrap().file_type().is_char_device());
        Subject { column, sim, path, _cuse: Some(server), fuse: None }
    }

    /// The array from an address on.
    fn array(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.sim.lock().unwrap().chip(0).unwrap().array().read(address, &mut data);
        data
    }

    /// Puts bytes into the array beside the bus.
    fn fill(&self, address: u64, data: &[u8]) {
        let mut sim = self.sim.lock().unwrap();
        let array = sim.chip_mut(0).unwrap().array_mut();
        for (n, page) in data.chunks(256).enumerate() {
            array.program(address + 256 * n as u64, page, 0);
        }
    }

    /// Runs a tool; `MTD` is the file or device.
    fn tool(&self, script: &str) -> Outcome {
        let path = self.path.display();
        let script = format!("MTD={path}; {script}");
        if self.column != Column::CuseSysfs {
            return sh(60, &script);
        }
        let (major, minor) = {
            let rdev = self.path.metadata().unwrap().rdev();
            (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev))
        };
        // What libmtd reads of sysfs.
        let facts = [
            ("name", "spiflash".into()),
            ("dev", format!("{major}:{minor}")),
            ("type", "nor".into()),
            ("flags", "0xc00".into()),
            ("size", (16u32 << 20).to_string()),
            ("erasesize", "4096".into()),
            ("writesize", "1".into()),
            ("subpagesize", "1".into()),
            ("oobsize", "0".into()),
            ("oobavail", "0".into()),
            ("numeraseregions", "0".into()),
            ("ecc_strength", "0".into()),
            ("bitflip_threshold", "0".into()),
        ];
        let mut setup = format!("mount -t tmpfs sys /sys; d=/sys/class/mtd/{CUSE_NAME}; mkdir -p $d; ");
        for (name, value) in facts {
            let _ = write!(setup, "echo {value} > $d/{name}; ");
        }
        let inner = format!("set -euo pipefail; {setup}{script}");
        run(60, "unshare", &["--mount", "--propagation", "private", "bash", "-c", &inner])
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(mounted) = self.fuse.take() {
            mounted.unmounter().unmount().unwrap();
            mounted.wait().unwrap();
        }
    }
}

fn image(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 131 + n / 256 * 7) as u8).collect()
}

/// What a failed tool's words mean.
const REASONS: &[(&str, &str)] = &[
    ("is not a character device", "no libmtd"),
    ("MTD is not present", "no libmtd"),
    ("MTD subsystem is not present", "no libmtd"),
    ("cannot find MTD device", "no libmtd"),
    ("can't initialize libmtd", "no libmtd"),
    ("does not correspond to any existing MTD device", "no libmtd"),
    ("mtd_get_dev_info failed", "no libmtd"),
    ("Operation not supported", "EOPNOTSUPP"),
    ("not supported", "EOPNOTSUPP"),
    ("lseek", "no seek"),
    ("cannot seek", "no seek"),
    ("does not match", "wrong data"),
    ("verif", "wrong data"),
    ("Inappropriate ioctl", "ENOTTY"),
    ("Invalid argument", "EINVAL"),
];

fn reason(outcome: &Outcome) -> String {
    if outcome.timed_out {
        return "hangs".into();
    }
    let text = format!("{}{}", outcome.err, outcome.out);
    let known = REASONS.iter().find(|(words, _)| text.contains(words));
    known.map_or_else(
        || format!("fails: {}", text.lines().next().unwrap_or("")),
        |(_, reason)| (*reason).into(),
    )
}

/// One row: what is run, and whether the chip and the output are right after it.
struct Row {
    tool: &'static str,
    cell: fn(&Subject, &Path) -> String,
}

fn judge(outcome: &Outcome, right: impl FnOnce(&Outcome) -> bool) -> String {
    if outcome.status != Some(0) {
        return reason(outcome);
    }
    if right(outcome) { "ok".into() } else { "wrong data".into() }
}

/// The same for a tool that lists what there is.
fn lists(outcome: &Outcome, words: &str) -> String {
    if outcome.status == Some(0) && !outcome.out.contains(words) {
        return "no libmtd".into();
    }
    judge(outcome, |_| true)
}

fn has(words: &'static str) -> impl Fn(&Outcome) -> bool {
    move |outcome| outcome.out.contains(words) || outcome.err.contains(words)
}

fn write_at(subject: &Subject, work: &Path, address: u64) -> String {
    let data = image(5000);
    std::fs::write(work.join("data"), &data).unwrap();
    let data_file = work.join("data").display().to_string();
    let outcome = subject.tool(&format!("mtd_debug write $MTD {address} 5000 {data_file}"));
    judge(&outcome, |_| subject.array(address, 5000) == data)
}

fn read_at(subject: &Subject, work: &Path, address: u64) -> String {
    let data = image(5000);
    subject.fill(address & !0xFF, &data);
    let want = subject.array(address, 4000);
    let to = work.join("read");
    let outcome = subject.tool(&format!("mtd_debug read $MTD {address} 4000 {}", to.display()));
    judge(&outcome, |_| std::fs::read(&to).is_ok_and(|read| read == want))
}

fn flashcp(subject: &Subject, work: &Path) -> String {
    let data = image(100_000);
    std::fs::write(work.join("image"), &data).unwrap();
    subject.fill(0, &[0x55; 20_000]);
    let outcome = subject.tool(&format!("flashcp -v {} $MTD", work.join("image").display()));
    judge(&outcome, |_| subject.array(0, 100_000) == data)
}

/// It leaves what it has written.
fn nandtest(subject: &Subject, address: u64) -> String {
    let outcome = subject.tool(&format!("nandtest -o {address} -l 8192 $MTD"));
    judge(&outcome, |_| {
        let blank = |address| subject.array(address, 8192).iter().all(|byte| *byte == 0xFF);
        !blank(address) && blank(if address == 0 { 8192 } else { 0 })
    })
}

/// Some sectors hold the image already: `-p` leaves them as they are.
fn flashcp_partly(subject: &Subject, work: &Path) -> String {
    let data = image(100_000);
    std::fs::write(work.join("image"), &data).unwrap();
    subject.fill(0, &data);
    subject.fill(40_960, &[0; 5000]);
    let outcome = subject.tool(&format!("flashcp -v -p {} $MTD", work.join("image").display()));
    judge(&outcome, |_| subject.array(0, 100_000) == data)
}

fn locked(subject: &Subject) -> bool {
    !subject.sim.lock().unwrap().chip(0).unwrap().protected_range().is_empty()
}

const OTP_TEXT: &str = "printf 'once and for all' > $W/once";

fn with_work(work: &Path, script: &str) -> String {
    format!("W={}; {script}", work.display())
}

const ROWS: &[Row] = &[
    Row {
        tool: "mtd_debug info",
        cell: |s, _| judge(&s.tool("mtd_debug info $MTD"), has("mtd.size = 16777216 (16M)")),
    },
    Row { tool: "mtd_debug read at 0", cell: |s, w| read_at(s, w, 0) },
    Row { tool: "mtd_debug read at 4096", cell: |s, w| read_at(s, w, 4096) },
    Row { tool: "mtd_debug write at 0", cell: |s, w| write_at(s, w, 0) },
    Row { tool: "mtd_debug write at 4096", cell: |s, w| write_at(s, w, 4096) },
    Row {
        tool: "mtd_debug erase",
        cell: |s, _| {
            s.fill(0, &[0; 12288]);
            let outcome = s.tool("mtd_debug erase $MTD 4096 4096");
            judge(&outcome, |_| {
                let array = s.array(0, 12288);
                array[4096..8192] == [0xFF; 4096] && array[..4096] == [0; 4096] && array[8192..] == [0; 4096]
            })
        },
    },
    Row { tool: "flashcp", cell: flashcp },
    Row { tool: "flashcp -p", cell: flashcp_partly },
    Row { tool: "flash_lock", cell: |s, _| judge(&s.tool("flash_lock $MTD 0 64"), |_| locked(s)) },
    Row {
        tool: "flash_unlock",
        cell: |s, _| judge(&s.tool("flash_lock $MTD; flash_unlock $MTD"), |_| !locked(s)),
    },
    Row {
        tool: "flash_lock -i, all alike",
        cell: |s, _| judge(&s.tool("flash_lock $MTD; flash_lock -i $MTD 0 64"), has("Return code: 1")),
    },
    Row {
        tool: "flash_lock -i, a part locked",
        cell: |s, _| judge(&s.tool("flash_lock $MTD 0 64; flash_lock -i $MTD 0 64"), has("Return code: 1")),
    },
    Row {
        tool: "flash_otp_info -u",
        cell: |s, _| judge(&s.tool("flash_otp_info -u $MTD"), has("Number of OTP user blocks")),
    },
    Row {
        tool: "flash_otp_write, flash_otp_dump",
        cell: |s, w| {
            let write = format!("{OTP_TEXT}; flash_otp_write -u $MTD 0 < $W/once; flash_otp_dump -u $MTD");
            judge(&s.tool(&with_work(w, &write)), has("6f 6e 63 65"))
        },
    },
    Row { tool: "flash_otp_erase", cell: |s, _| judge(&s.tool("flash_otp_erase -u $MTD 0 256"), |_| true) },
    Row {
        tool: "flash_otp_lock",
        cell: |s, _| {
            let script =
                "yes | flash_otp_lock -u $MTD 0 256 || test ${PIPESTATUS[1]} = 0; flash_otp_info -u $MTD";
            judge(&s.tool(script), has("[locked]"))
        },
    },
    Row { tool: "nandtest from 0", cell: |s, _| nandtest(s, 0) },
    Row { tool: "nandtest from 8192", cell: |s, _| nandtest(s, 8192) },
    Row { tool: "mtdinfo", cell: |s, _| judge(&s.tool("mtdinfo $MTD"), has("4096")) },
    Row { tool: "mtdinfo -a", cell: |s, _| lists(&s.tool("mtdinfo -a"), "spiflash") },
    Row { tool: "lsmtd", cell: |s, _| lists(&s.tool("lsmtd"), "spiflash") },
    Row {
        tool: "flash_erase",
        cell: |s, _| {
            s.fill(0, &[0; 8192]);
            judge(&s.tool("flash_erase $MTD 4096 1"), |_| {
                let array = s.array(0, 8192);
                array[4096..] == [0xFF; 4096] && array[..4096] == [0; 4096]
            })
        },
    },
    Row {
        tool: "nanddump from 0",
        cell: |s, w| {
            s.fill(0, &image(4096));
            let outcome = s.tool(&with_work(w, "nanddump -l 4096 -f $W/dump $MTD"));
            judge(&outcome, |_| std::fs::read(w.join("dump")).is_ok_and(|dump| dump == image(4096)))
        },
    },
    Row {
        tool: "nanddump from 4096",
        cell: |s, w| {
            s.fill(4096, &image(4096));
            let outcome = s.tool(&with_work(w, "nanddump -s 4096 -l 4096 -f $W/dump $MTD"));
            judge(&outcome, |_| std::fs::read(w.join("dump")).is_ok_and(|dump| dump == image(4096)))
        },
    },
    Row {
        tool: "nandwrite",
        cell: |s, w| {
            std::fs::write(w.join("nand"), image(4096)).unwrap();
            judge(&s.tool(&with_work(w, "nandwrite -s 4096 $MTD $W/nand")), |_| {
                s.array(4096, 4096) == image(4096)
            })
        },
    },
    Row {
        tool: "cat, dd",
        cell: |s, w| {
            std::fs::write(w.join("stream"), image(20_000)).unwrap();
            let script = "dd if=$W/stream of=$MTD bs=1000 status=none; cat $MTD > $W/all; cmp -n 20000 $W/all $W/stream";
            judge(&s.tool(&with_work(w, script)), |_| s.array(0, 20_000) == image(20_000))
        },
    },
];

/// The cells of a column.
fn column(column: Column) -> Vec<(&'static str, String)> {
    let work = std::env::temp_dir().join(format!("spi-mtd-{column:?}-{}", std::process::id()));
    std::fs::create_dir_all(&work).unwrap();
    let cell = |row: &Row| {
        let subject = Subject::new(column, &work);
        (row.tool, (row.cell)(&subject, &work))
    };
    let cells: Vec<_> = ROWS.iter().map(cell).collect();
    let _ = std::fs::remove_dir_all(&work);
    for (tool, cell) in &cells {
        println!("{column:?} | {tool} | {cell}");
    }
    cells
}

/// The column of the matrix in docs/spi-mtd-matrix.md.
fn documented(number: usize) -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/spi-mtd-matrix.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| tool") && !line.starts_with("| -"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        (cells[0].to_owned(), cells[number].trim_end_matches('|').trim().to_owned())
    })
    .collect()
}

#[track_caller]
fn as_documented(which: Column, number: usize) {
    let found: Vec<_> = column(which).into_iter().map(|(tool, cell)| (tool.to_owned(), cell)).collect();
    assert_eq!(found, documented(number), "docs/spi-mtd-matrix.md says otherwise");
}

#[test]
#[ignore = "needs root and FUSE (scripts/test)"]
fn the_fuse_column_of_the_mtd_matrix_is_as_documented() {
    as_documented(Column::Fuse, 1);
}

#[test]
#[ignore = "needs a kernel with CUSE (scripts/test)"]
fn the_cuse_column_of_the_mtd_matrix_is_as_documented() {
    as_documented(Column::Cuse, 2);
}

#[test]
#[ignore = "needs a kernel with CUSE (scripts/test)"]
fn the_cuse_column_with_a_made_up_sysfs_is_as_documented() {
    as_documented(Column::CuseSysfs, 3);
}
