//! The FUSE front on this machine's own /dev/fuse, over the in-process model. Needs root.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, UNIX_EPOCH};

use ublk_zns::{ZnsConfig, ZnsDevice};
use zonefs_fuse::device::{ModelZoned, ZonedDevice};
use zonefs_fuse::engine::{Fs, MkfsOptions, MountOptions, SystemClock, mkfs};
use zonefs_fuse::front::{MountFlags, Mounted, mount};
use zonefs_fuse::model::Time;
use zonefs_fuse::testing::{Call, Panicking};

fn can_mount() -> bool {
    if !Path::new("/dev/fuse").exists() {
        println!("skipped: no /dev/fuse");
        return false;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: mounting needs root");
        return false;
    }
    true
}

fn device() -> Arc<ModelZoned> {
    let config = ZnsConfig {
        size_bytes: 256 << 20,
        zone_size_bytes: 8 << 20,
        zone_capacity_bytes: Some(6 << 20),
        max_open_zones: Some(6),
        max_active_zones: Some(6),
        ..ZnsConfig::default()
    };
    let device = Arc::new(ModelZoned::new(Arc::new(ZnsDevice::new(&config).unwrap()), "model"));
    let options = MkfsOptions {
        force: false,
        label: "mount".into(),
        uuid: [7; 16],
        now: Time::default(),
        uid: 0,
        gid: 0,
    };
    mkfs(&*device, &options).unwrap();
    device
}

/// A mount that goes away with the test, whatever happens.
struct Live {
    dir: tempfile::TempDir,
    mounted: Option<Mounted>,
}

impl Live {
    fn new<D: ZonedDevice + 'static>(device: &Arc<D>) -> Live {
        let fs = Fs::mount(device.clone(), Arc::new(SystemClock), MountOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mounted = mount(&Arc::new(fs), dir.path(), &MountFlags::default()).unwrap();
        Live { dir, mounted: Some(mounted) }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn unmount(mut self) {
        let mounted = self.mounted.take().unwrap();
        assert!(mounted.unmounter().unmount().unwrap());
        mounted.wait().unwrap();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            let _ = mounted.unmounter().unmount();
        }
    }
}

fn sh(dir: &Path, script: &str) -> String {
    let mut command = Command::new("timeout");
    let out = command.args(["60", "sh", "-euc", script]).current_dir(dir).output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{script}: {stderr}");
    String::from_utf8(out.stdout).unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    let mut rng = zonefs_fuse::testing::Rng::new(length as u64);
    (0..length).map(|_| rng.next_u64() as u8).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_and_attributes_survive_a_remount() {
    if !can_mount() {
        return;
    }
    let device = device();
    let live = Live::new(&device);
    let root = live.path();
    let big = noise((9 << 20) + 12_345);
    fs::create_dir_all(root.join("x/y/z")).unwrap();
    fs::write(root.join("x/y/big"), &big).unwrap();
    let mut log = OpenOptions::new().append(true).create(true).mode(0o600).open(root.join("log")).unwrap();
    for line in 0..200 {
        writeln!(log, "line {line}").unwrap();
        if line % 20 == 0 {
            log.sync_all().unwrap();
        }
    }
    fs::hard_link(root.join("log"), root.join("x/log2")).unwrap();
    symlink("y/big", root.join("x/link")).unwrap();
    fs::set_permissions(root.join("log"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(root.join("log"), Some(12), Some(34)).unwrap();
    let old = UNIX_EPOCH - Duration::new(86_400, 250_000_000);
    File::open(root.join("x/y/big")).unwrap().set_modified(old).unwrap();
    drop(log);
    live.unmount();

    let live = Live::new(&device);
    let root = live.path();
    assert!(fs::read(root.join("x/link")).unwrap() == big);
    assert_eq!(fs::metadata(root.join("x/y/big")).unwrap().modified().unwrap(), old);
    let lines: String = (0..200).map(|line| format!("line {line}\n")).collect();
    assert_eq!(fs::read_to_string(root.join("x/log2")).unwrap(), lines);
    let meta = fs::metadata(root.join("log")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.nlink()), (12, 34, 2));
    assert_eq!(meta.mode(), 0o100_711, "chown takes set-user-id away");
    assert_eq!(names(root), ["log", "x"]);
    assert_eq!(names(&root.join("x")), ["link", "log2", "y"]);
    live.unmount();
}

#[test]
fn coreutils_and_tar_work_in_it() {
    if !can_mount() {
        return;
    }
    let device = device();
    let live = Live::new(&device);
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("one"), noise(3_000_001)).unwrap();
    fs::write(source.path().join("two"), b"").unwrap();
    sh(
        source.path(),
        "mkdir -p tree/a/b; for i in $(seq 300); do echo $i > tree/a/f$i; done; ln -s ../one tree/a/b/l;
         mkfifo tree/p; tar cf tree.tar tree",
    );
    let sums = sh(source.path(), "sha256sum one two; cd tree && find . -type f -exec sha256sum {} + | sort");
    sh(live.path(), &format!("cp {0}/one {0}/two . ; tar xf {0}/tree.tar", source.path().display()));
    let script = "sha256sum one two; cd tree && find . -type f -exec sha256sum {} + | sort";
    assert_eq!(sh(live.path(), script), sums);
    sh(
        live.path(),
        "dd if=one of=copy bs=64k conv=fsync 2>/dev/null; cmp one copy; mv copy tree/a/moved; cmp one tree/a/moved;
         cat two one >> two2; cmp one two2; echo more >> two2; test $(tail -c5 two2) = more;
         cp -r tree tree2; diff -r --no-dereference tree/a tree2/a; cp -p one again; rm again; cp one two; cmp one two;
         rm -r tree2; test ! -e tree2; head -c 100 one > short; test $(stat -c %s short) = 100",
    );
    live.unmount();
    let live = Live::new(&device);
    let sums = sh(source.path(), "cd tree && find . -type f | sort | xargs sha256sum");
    sh(live.path(), "cmp one two; cmp one tree/a/moved; rm tree/a/moved");
    assert_eq!(sh(live.path(), "cd tree && find . -type f | sort | xargs sha256sum"), sums);
    sh(live.path(), "rm -r *; test -z \"$(ls -A)\"");
    live.unmount();
}

#[test]
fn a_file_grows_at_its_end_only() {
    if !can_mount() {
        return;
    }
    let device = device();
    let live = Live::new(&device);
    let path = live.path().join("f");
    fs::write(&path, b"0123456789").unwrap();
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(errno(file.write_all_at(b"x", 3)), Some(libc::EINVAL));
    assert_eq!(errno(file.write_all_at(b"x", 11)), Some(libc::EINVAL));
    assert_eq!(errno(file.set_len(11)), Some(libc::EINVAL));
    file.write_all_at(b"abc", 10).unwrap();
    file.set_len(5).unwrap();
    file.seek(SeekFrom::Start(5)).unwrap();
    file.write_all(b"-end").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"01234-end");
    // SAFETY: plain system calls on an open descriptor.
    let result = unsafe { libc::fallocate(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, 4096) };
    assert_eq!((result, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EOPNOTSUPP)));
    fs::write(&path, b"new").unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "new", "O_TRUNC is seen through an older handle");
    fs::remove_file(&path).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    text.clear();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "new", "a removed file is read as long as it is open");
    assert_eq!(fs::metadata(&path).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    drop(file);
    live.unmount();
}

#[test]
fn each_error_is_its_own_errno() {
    if !can_mount() {
        return;
    }
    let device = device();
    let live = Live::new(&device);
    let root = live.path();
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/f"), b"x").unwrap();
    fs::write(root.join("f"), b"x").unwrap();
    assert_eq!(errno(fs::create_dir(root.join("d"))), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(root.join("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(root.join("f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(root.join("d"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(root.join("d"), root.join("d/e"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(root.join("f"), root.join("d"))), libc::EISDIR);
    assert_eq!(errno(fs::create_dir(root.join("n".repeat(256)))), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::hard_link(root.join("d"), root.join("l"))), libc::EPERM);
    fs::create_dir(root.join("n".repeat(255))).unwrap();
    live.unmount();
}

#[test]
fn a_full_file_system_says_so_and_works_again_after_rm() {
    if !can_mount() {
        return;
    }
    let device = device();
    let live = Live::new(&device);
    let root = live.path();
    let free = |root: &Path| -> u64 { sh(root, "stat -f -c %a .").trim().parse().unwrap() };
    let all = free(root);
    assert_eq!(all, 30 * (6 << 20) / 4096, "30 data zones of 6 MiB");
    for round in 0..3 {
        let full = sh(root, "dd if=/dev/zero of=fill bs=1M 2>&1 || true");
        assert!(full.contains("No space left"), "{full}");
        assert_eq!(fs::metadata(root.join("fill")).unwrap().len(), 30 * (6 << 20), "round {round}");
        assert_eq!(free(root), 0);
        fs::remove_file(root.join("fill")).unwrap();
        assert_eq!(free(root), all);
    }
    sh(root, "echo still > alive; sync alive; grep -q still alive");
    live.unmount();
}

#[test]
fn many_readers_and_writers_at_once() {
    if !can_mount() {
        return;
    }
    let device = device();
    let live = Live::new(&device);
    let root = live.path();
    std::thread::scope(|scope| {
        for writer in 0..6_usize {
            let path = root.join(format!("w{writer}"));
            scope.spawn(move || {
                let data = noise(1_500_000 + writer * 777);
                let mut file = File::create(&path).unwrap();
                for part in data.chunks(50_001) {
                    file.write_all(part).unwrap();
                    if part[0] % 4 == 0 {
                        file.sync_data().unwrap();
                    }
                    let mut back = vec![0; part.len()];
                    let end = file.stream_position().unwrap();
                    File::open(&path).unwrap().read_exact_at(&mut back, end - part.len() as u64).unwrap();
                    assert!(back == part);
                }
                assert!(fs::read(&path).unwrap() == data);
            });
        }
    });
    live.unmount();
    let live = Live::new(&device);
    for writer in 0..6 {
        let path = live.path().join(OsStr::new(&format!("w{writer}")));
        assert!(fs::read(path).unwrap() == noise(1_500_000 + writer * 777));
    }
    live.unmount();
}

/// What a script says when it fails, as it must.
fn sh_fails(dir: &Path, script: &str) -> String {
    let mut command = Command::new("timeout");
    let out = command.args(["20", "sh", "-euc", script]).current_dir(dir).output().unwrap();
    assert!(!out.status.success(), "{script}");
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn the_lowest_time_there_is_does_not_end_the_mount() {
    if !can_mount() {
        return;
    }
    let device = device();
    let live = Live::new(&device);
    let path = live.path().join("f");
    fs::write(&path, b"x").unwrap();
    let file = File::open(&path).unwrap();
    let (done, answer) = channel();
    // In a thread, because a mount that ended would leave it waiting.
    std::thread::spawn(move || {
        for (seconds, nanoseconds) in
            [(i64::MIN, 0), (i64::MIN, 1), (i64::MIN + 1, 999_999_999), (i64::MAX, 7)]
        {
            let time = libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            // SAFETY: an open descriptor, and two times that live through the call.
            let result =
                unsafe { libc::futimens(std::os::fd::AsRawFd::as_raw_fd(&file), [time; 2].as_ptr()) };
            done.send((result, std::io::Error::last_os_error())).unwrap();
        }
    });
    for _ in 0..4 {
        let (result, error) = answer.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(result, 0, "{error}");
    }
    sh(live.path(), "stat f; test $(cat f) = x; echo y > g; sync g; touch f");
    live.unmount();
}

#[test]
fn a_panic_inside_a_change_is_eio_and_leaves_a_read_only_mount() {
    if !can_mount() {
        return;
    }
    let device = device();
    let panics = Arc::new(Panicking::new(device.clone()));
    let live = Live::new(&panics);
    let root = live.path();
    sh(root, "echo kept > kept; sync kept");
    panics.panic_in(Some(Call::Write));
    let said = sh_fails(root, "head -c 1000000 /dev/zero > new");
    assert!(said.contains("Input/output error"), "{said}");
    let said = sh_fails(root, "echo x > another");
    assert!(said.contains("Read-only file system"), "{said}");
    sh(root, "test $(cat kept) = kept; ls -l");
    assert!(sh_fails(root, "sync kept").contains("Read-only file system"));
    live.unmount();
    let live = Live::new(&device);
    sh(live.path(), "test $(cat kept) = kept; echo again > another");
    live.unmount();
}

#[test]
fn a_panic_inside_a_read_is_eio_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let device = device();
    let live = Live::new(&device);
    sh(live.path(), "head -c 100000 /dev/zero > f");
    live.unmount();
    let panics = Arc::new(Panicking::new(device));
    let live = Live::new(&panics);
    panics.panic_in(Some(Call::Read));
    let said = sh_fails(live.path(), "cat f > /dev/null");
    assert!(said.contains("Input/output error"), "{said}");
    panics.panic_in(None);
    sh(live.path(), "test $(cat f | wc -c) = 100000; echo more > g; sync g");
    live.unmount();
}
