//! The MTD files on a real mount, with the tools of mtd-utils. It needs to be root and to have /dev/fuse and mtd-utils.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use spiflash_mtd::fronts::SharedBus;
use spiflash_mtd::fronts::mtd::ioctl::{FileMode, shape};
use spiflash_mtd::fronts::mtd::{ChipControl, MountOptions, Mounted, MtdDevice, MtdEntry, mount};
use spiflash_mtd::{Chip, Setup, SimBus, TimeMode, part};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// A mount that goes away with its test.
struct Files {
    dir: tempfile::TempDir,
    mounted: Option<Mounted>,
    sim: Arc<Mutex<SimBus>>,
}

impl Files {
    fn new(parts: &[&str]) -> Files {
        let chips = parts
            .iter()
            .map(|name| Chip::new(Arc::new(part::find(name).unwrap().clone()), &Setup::default()).unwrap());
        let sim = SimBus::new(chips.collect(), TimeMode::PollSkip { polls: 1 }, || 0);
        let sim = Arc::new(Mutex::new(sim));
        let (bus, control): (SharedBus, Arc<Mutex<dyn ChipControl + Send>>) = (sim.clone(), sim.clone());
        let entry = |(select, name): (usize, &&str)| MtdEntry {
            device: Arc::new(
                MtdDevice::new(
                    &format!("mtd{select}"),
                    bus.clone(),
                    Arc::new(part::find(name).unwrap().clone()),
                    select as u8,
                )
                .unwrap(),
            ),
            control: control.clone(),
            part_text: part::text(name).unwrap().to_owned(),
        };
        let entries = parts.iter().enumerate().map(entry).collect();
        let dir = tempfile::tempdir().unwrap();
        let mounted = mount(entries, dir.path(), &MountOptions::default()).unwrap();
        Files { dir, mounted: Some(mounted), sim }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) -> std::io::Result<()> {
        std::fs::write(self.path(name), text)
    }

    fn tool(&self, program: &str, args: &[&str]) -> (bool, String) {
        let args = args.iter().map(|arg| arg.replace("@", &format!("{}/", self.dir.path().display())));
        let out = Command::new("timeout").arg("60").arg(program).args(args).output().unwrap();
        let text = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    #[track_caller]
    fn ok(&self, program: &str, args: &[&str]) -> String {
        let (ok, text) = self.tool(program, args);
        assert!(ok, "{program} {args:?}: {text}");
        text
    }

    #[track_caller]
    fn fails(&self, program: &str, args: &[&str]) -> String {
        let (ok, text) = self.tool(program, args);
        assert!(!ok, "{program} {args:?}: {text}");
        text
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let mounted = self.mounted.take().unwrap();
        mounted.unmounter().unmount().unwrap();
        mounted.wait().unwrap();
    }
}

/// Whether this machine can run these tests; else they say so and pass.
fn possible() -> bool {
    let tools = Command::new("mtd_debug").output().is_ok();
    let fuse = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !(tools && fuse) {
        eprintln!("not run: mtd-utils {tools}, FUSE as root {fuse}");
    }
    tools && fuse
}

fn image(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 131 + n / 256 * 7) as u8).collect()
}

#[test]
fn mtd_debug_sees_erases_writes_and_reads_the_chip() {
    if !possible() {
        return;
    }
    let files = Files::new(&["W25Q128JV"]);
    let info = files.ok("mtd_debug", &["info", "@mtd0"]);
    for line in [
        "mtd.type = MTD_NORFLASH",
        "mtd.flags = MTD_CAP_NORFLASH",
        "mtd.size = 16777216 (16M)",
        "mtd.erasesize = 4096 (4K)",
        "mtd.writesize = 1",
        "regions = 0",
    ] {
        assert!(info.contains(line), "{line}: {info}");
    }
    let data = image(10_000);
    let (from, to) = (files.path("../from"), files.path("../to"));
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join(from.file_name().unwrap()), dir.path().join(to.file_name().unwrap()));
    std::fs::write(&from, &data).unwrap();
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    files.ok("mtd_debug", &["erase", "@mtd0", "0x10000", "0x4000"]);
    files.ok("mtd_debug", &["write", "@mtd0", "0x10001", "10000", from]);
    files.ok("mtd_debug", &["read", "@mtd0", "0x10001", "10000", to]);
    assert_eq!(std::fs::read(to).unwrap(), data);
    // A write does not erase: what comes out is the AND.
    std::fs::write(from, vec![0x0F; 10_000]).unwrap();
    files.ok("mtd_debug", &["write", "@mtd0", "0x10001", "10000", from]);
    files.ok("mtd_debug", &["read", "@mtd0", "0x10001", "10000", to]);
    assert!(std::fs::read(to).unwrap().iter().zip(&data).all(|(read, old)| *read == old & 0x0F));
    let error = files.fails("mtd_debug", &["erase", "@mtd0", "100", "4096"]);
    assert!(error.contains("Invalid argument"), "{error}");
    let error = files.fails("mtd_debug", &["erase", "@mtd0", "0x1000000", "4096"]);
    assert!(error.contains("Invalid argument"), "{error}");
}

#[test]
fn flashcp_writes_verifies_and_writes_only_what_differs() {
    if !possible() {
        return;
    }
    let files = Files::new(&["W25Q128JV", "FM25V20A"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut data = image(300_000);
    std::fs::write(&path, &data).unwrap();
    let path = path.to_str().unwrap();
    files.ok("flashcp", &["-v", path, "@mtd0"]);
    assert_eq!(std::fs::read(files.path("mtd0")).unwrap()[..data.len()], data);
    let erased = |files: &Files| {
        let stats: serde_json::Value = serde_json::from_str(&files.read("mtd0.d/stats.json")).unwrap();
        stats["mtd"]["erased_bytes"].as_u64().unwrap()
    };
    let before = erased(&files);
    data[200_000] ^= 0x55;
    std::fs::write(path, &data).unwrap();
    files.ok("flashcp", &["-v", "-p", path, "@mtd0"]);
    assert_eq!(erased(&files) - before, 4096, "one sector differs");
    assert_eq!(std::fs::read(files.path("mtd0")).unwrap()[..data.len()], data);
    let info = files.ok("mtd_debug", &["info", "@mtd1"]);
    assert!(info.contains("MTD_RAM") && info.contains("262144"), "{info}");
    data.truncate(200_000);
    std::fs::write(path, &data).unwrap();
    files.ok("flashcp", &["-v", path, "@mtd1"]);
    assert_eq!(std::fs::read(files.path("mtd1")).unwrap()[..data.len()], data);
}

#[test]
fn flash_lock_and_flash_unlock_change_the_protection_bits_and_writes_are_refused() {
    if !possible() {
        return;
    }
    let files = Files::new(&["W25Q128JV"]);
    files.ok("flash_lock", &["@mtd0", "0", "64"]);
    assert_eq!(files.sim.lock().unwrap().chip(0).unwrap().protected_range(), 0..0x40000);
    let error = files.fails("mtd_debug", &["erase", "@mtd0", "0", "4096"]);
    assert!(error.contains("Read-only file system"), "{error}");
    let write = std::fs::OpenOptions::new().write(true).open(files.path("mtd0"));
    let error = std::io::Write::write(&mut write.unwrap(), &[0]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    files.ok("mtd_debug", &["erase", "@mtd0", "0x40000", "4096"]);
    let map = files.read("mtd0.d/map");
    assert!(map.lines().nth(2).is_some_and(|line| line.ends_with(&"e".repeat(64))), "{map}");
    let error = files.fails("flash_lock", &["@mtd0", "0x80000", "1"]);
    assert!(error.contains("Invalid argument"), "{error}");
    files.ok("flash_unlock", &["@mtd0"]);
    files.ok("mtd_debug", &["erase", "@mtd0", "0", "4096"]);
    // The range of MEMISLOCKED does not reach a FUSE server: only where the answer is the same for all is there one.
    assert!(files.ok("flash_lock", &["-i", "@mtd0", "0", "64"]).contains("Return code: 0"));
    files.ok("flash_lock", &["@mtd0"]);
    assert!(files.ok("flash_lock", &["-i", "@mtd0", "0", "64"]).contains("Return code: 1"));
    files.ok("flash_unlock", &["@mtd0"]);
    files.ok("flash_lock", &["@mtd0", "0", "64"]);
    let error = files.fails("flash_lock", &["-i", "@mtd0", "0", "64"]);
    assert!(error.contains("not supported"), "{error}");
}

#[test]
fn the_files_beside_an_mtd_show_and_steer_the_chip() {
    if !possible() {
        return;
    }
    let files = Files::new(&["W25Q128JV", "MX25L25645G"]);
    let mut names: Vec<_> =
        std::fs::read_dir(files.path("mtd1.d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["map", "otp", "part.toml", "power", "stats.json", "time", "wp"]);
    assert!(files.read("mtd1.d/part.toml").contains("MX25L25645G"));
    let time = |files: &Files| files.read("mtd0.d/time").trim().parse::<u64>().unwrap();
    let before = time(&files);
    files.write("mtd0.d/time", "10ms\n").unwrap();
    assert!(time(&files) - before >= 10_000_000);
    assert!(files.write("mtd0.d/time", "soon").is_err());
    assert_eq!(files.read("mtd0.d/wp"), "0\n");
    files.write("mtd0.d/wp", "1").unwrap();
    assert_eq!(files.read("mtd0.d/wp"), "1\n");
    assert_eq!(files.read("mtd0.d/power"), "1\n");
    files.write("mtd0.d/power", "0").unwrap();
    assert_eq!(files.read("mtd0.d/power"), "0\n");
    files.fails("mtd_debug", &["erase", "@mtd0", "0", "4096"]);
    files.write("mtd0.d/power", "1").unwrap();
    files.ok("mtd_debug", &["erase", "@mtd0", "0", "4096"]);
    files.write("mtd0.d/power", "cut-after 20us").unwrap();
    files.fails("mtd_debug", &["erase", "@mtd0", "0", "0x10000"]);
    assert_eq!(files.read("mtd0.d/power"), "0\n", "the power went while it erased");
    files.write("mtd0.d/power", "1").unwrap();
    files.ok("mtd_debug", &["erase", "@mtd0", "0", "0x10000"]);
    let stats: serde_json::Value = serde_json::from_str(&files.read("mtd0.d/stats.json")).unwrap();
    assert_eq!(stats["chip"]["commands"]["interrupted"], 1, "{stats:#}");
    let otp = image(256);
    std::fs::write(files.path("mtd0.d/otp"), &otp).unwrap();
    assert_eq!(std::fs::read(files.path("mtd0.d/otp")).unwrap()[..256], otp);
    assert!(std::fs::write(files.path("mtd0.d/map"), "x").is_err());
    assert!(std::fs::write(files.path("other"), "x").is_err());
}

#[test]
fn ioctls_have_the_errnos_of_the_kernel() {
    if !possible() {
        return;
    }
    use std::os::fd::AsRawFd;
    let files = Files::new(&["W25Q128JV", "S25FL256S", "W25N01GV"]);
    let open = |name: &str, write: bool| {
        std::fs::OpenOptions::new().read(true).write(write).open(files.path(name)).unwrap()
    };
    let call = |file: &std::fs::File, number: u32, bytes: &mut [u8]| {
        // SAFETY: the buffers are at least as large as the number says.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), number as libc::c_ulong, bytes.as_mut_ptr()) };
        if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(result) }
    };
    let pair = |start: u32, length: u32| [start.to_ne_bytes(), length.to_ne_bytes()].concat();
    let (read_only, nor, mixed, nand) =
        (open("mtd0", false), open("mtd0", true), open("mtd1", true), open("mtd2", true));
    let erase = 0x4008_4d02;
    assert_eq!(call(&read_only, erase, &mut pair(0, 4096)), Err(libc::EPERM));
    assert_eq!(call(&nor, erase, &mut pair(0, 4096)), Ok(0));
    assert_eq!(call(&nor, erase, &mut pair(1, 4096)), Err(libc::EINVAL));
    assert_eq!(call(&nor, erase, &mut pair(0, u32::MAX)), Err(libc::EINVAL));
    assert_eq!(call(&nor, 0x4010_4d14, &mut [4096u64.to_ne_bytes(), 8192u64.to_ne_bytes()].concat()), Ok(0));
    assert_eq!(call(&nor, 0x5401, &mut [0; 64]), Err(libc::ENOTTY));
    assert_eq!(call(&nor, 0xc030_4d18, &mut [0; 48]), Err(libc::EOPNOTSUPP), "MEMWRITE");
    assert_eq!(call(&nor, 0x4008_4d0b, &mut 0u64.to_ne_bytes()), Ok(0), "no block of NOR is bad");
    assert_eq!(call(&nor, 0x4008_4d0c, &mut 0u64.to_ne_bytes()), Err(libc::EOPNOTSUPP));
    assert_eq!(
        call(&nor, 0x8004_4d0d, &mut 2u32.to_ne_bytes()),
        Err(libc::EOPNOTSUPP),
        "OTPSELECT through FUSE"
    );
    let mut ecc = [0xFF; 16];
    assert_eq!(call(&nor, 0x8010_4d12, &mut ecc), Ok(0));
    assert_eq!(ecc, [0; 16]);
    let mut count = [0; 4];
    assert_eq!(call(&mixed, 0x8004_4d07, &mut count), Ok(0));
    let regions = u32::from_ne_bytes(count);
    assert!(regions >= 2, "parameter sectors and others");
    let (mut next, size) = (0, 32 << 20);
    for index in 0..regions {
        let mut region = [0, 0, 0, index].map(u32::to_ne_bytes).concat();
        assert_eq!(call(&mixed, 0xc010_4d08, &mut region), Ok(0));
        let word = |n: usize| u32::from_ne_bytes(region[n * 4..n * 4 + 4].try_into().unwrap());
        assert_eq!(word(0), next);
        next += word(1) * word(2);
    }
    assert_eq!(next, size);
    assert_eq!(
        call(&mixed, 0xc010_4d08, &mut [0, 0, 0, regions].map(u32::to_ne_bytes).concat()),
        Err(libc::EINVAL)
    );
    let bad =
        (0..1024u64).find(|block| call(&nand, 0x4008_4d0b, &mut (block * 0x20000).to_ne_bytes()) == Ok(1));
    if let Some(bad) = bad {
        assert_eq!(call(&nand, erase, &mut pair(bad as u32 * 0x20000, 0x20000)), Err(libc::EIO));
    }
    let good = (0..1024u64)
        .find(|block| call(&nand, 0x4008_4d0b, &mut (block * 0x20000).to_ne_bytes()) == Ok(0))
        .unwrap();
    assert_eq!(call(&nand, erase, &mut pair(good as u32 * 0x20000, 0x20000)), Ok(0));
    assert_eq!(call(&nand, 0x4008_4d0c, &mut (good * 0x20000).to_ne_bytes()), Ok(0));
    assert_eq!(call(&nand, 0x4008_4d0b, &mut (good * 0x20000).to_ne_bytes()), Ok(1));
    use std::os::unix::fs::FileExt;
    let size = nor.metadata().unwrap().len();
    assert_eq!(nor.write_at(&[0], size).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(nor.write_at(&[0; 10], size - 4).unwrap(), 4);
    assert_eq!(nor.read_at(&mut [0; 10], size - 4).unwrap(), 4);
    assert_eq!(nor.read_at(&mut [0; 10], size).unwrap(), 0);
    assert_eq!(nand.write_at(&[0; 10], 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

fn request() -> impl Strategy<Value = (u32, Option<u64>, Vec<u8>)> {
    // Numbers of the header's sizes and directions, and others with the same letter and count; small numbers in what they
    // point to, so that some of it makes sense.
    let numbers = prop_oneof![
        (1u32..27).prop_map(|count| 0x4010_4d00 | count),
        any::<u32>().prop_map(|any| any & 0xFFFF_00FF | 0x4d00),
        any::<u32>(),
    ];
    let word = prop_oneof![0u32..4, (0u32..8).prop_map(|n| n * 4096), Just(0x20000), any::<u32>()];
    let words = proptest::collection::vec(word, 0..17);
    let bytes = words.prop_map(|words| words.into_iter().flat_map(u32::to_ne_bytes).collect());
    (numbers, any::<Option<u64>>(), bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_ioctl_ends_in_a_panic_or_with_more_than_it_has_room_for(
        name in prop_oneof![Just("W25Q128JV"), Just("SST26VF064B"), Just("FM25V20A"), Just("W25N01GV")],
        requests in proptest::collection::vec(request(), 1..40),
        writable: bool,
    ) {
        let part = Arc::new(part::find(name).unwrap().clone());
        let chip = Chip::new(part.clone(), &Setup::default()).unwrap();
        let bus = SimBus::new(vec![chip], TimeMode::PollSkip { polls: 0 }, || 0);
        let device = MtdDevice::new("mtd0", Arc::new(Mutex::new(bus)), part, 0).unwrap();
        let mut mode = FileMode::Normal;
        for (number, argument, input) in requests {
            let answer = device.ioctl(&mut mode, writable, number, argument, &input);
            match (answer, shape(number)) {
                (Ok(answer), Some(shape)) => {
                    prop_assert!(answer.result >= 0 && answer.bytes.len() <= shape.output_bytes, "{}", shape.name);
                    prop_assert!(writable || !shape.writes, "{}", shape.name);
                }
                (answer, shape) => prop_assert!(answer.is_err(), "{shape:?}"),
            }
        }
    }
}

#[test]
fn the_structures_are_as_large_as_the_system_says() {
    let header = "/usr/include/mtd/mtd-abi.h";
    if !Path::new(header).exists() || Command::new("cc").arg("--version").output().is_err() {
        eprintln!("not run: no {header} or no C compiler");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("sizes.c"), dir.path().join("sizes"));
    let names = [
        "mtd_info_user",
        "region_info_user",
        "otp_info",
        "mtd_ecc_stats",
        "erase_info_user",
        "erase_info_user64",
        "mtd_write_req",
        "mtd_read_req",
    ];
    let prints: String =
        names.iter().map(|name| format!("printf(\"%zu \", sizeof(struct {name}));")).collect();
    let numbers = "printf(\"%lx %lx\", (long)MEMGETINFO & 0xffffffff, (long)MEMISLOCKED & 0xffffffff);";
    let text = format!(
        "#include <stdio.h>\n#include <sys/ioctl.h>\n#include <mtd/mtd-abi.h>\nint main(void) {{ {prints} {numbers} return 0; }}\n"
    );
    std::fs::write(&source, text).unwrap();
    assert!(Command::new("cc").arg(&source).arg("-o").arg(&program).status().unwrap().success());
    let out = Command::new(&program).output().unwrap().stdout;
    assert_eq!(String::from_utf8(out).unwrap(), "32 16 12 16 8 16 48 64 80204d01 80084d17");
}
