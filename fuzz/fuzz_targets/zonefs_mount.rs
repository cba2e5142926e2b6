//! A whole file system whose log holds anything: well-formed frames around entries from outside, or plain garbage.
//!
//! Input: a byte of switches, then a list of entries in short form, or what is written behind a fresh file system's snapshot. What opens must read without
//! a panic, must be the same when it is opened again, and must take a new file. What does not open must not have been
//! written to, and the error must say why.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use zonefs_fuse::Error;
use zonefs_fuse::device::{ZoneId, ZonedDevice};
use zonefs_fuse::engine::{Fs, Inspection, MkfsOptions, MountOptions, NewInode, inspect, mkfs};
use zonefs_fuse::format::frame::encode;
use zonefs_fuse::format::{Entry, FrameHeader, FrameKind, Superblock};
use zonefs_fuse::model::{Attrs, Extent, ROOT_INO, Time, Tree};
use zonefs_fuse::testing::{MemGeometry, MemZoned, TestClock};

const BLOCK: usize = 4096;

/// A new file system; made once, then copied.
fn device() -> Arc<MemZoned> {
    static FRESH: OnceLock<MemZoned> = OnceLock::new();
    Arc::new(FRESH.get_or_init(format).fork())
}

fn format() -> MemZoned {
    let device = MemZoned::new(MemGeometry {
        zone_capacity_bytes: 128 << 10,
        sequential: 4,
        ..MemGeometry::default()
    });
    let options = MkfsOptions {
        force: false,
        label: "fuzz".into(),
        uuid: *b"0123456789abcdef",
        now: Time::default(),
        uid: 0,
        gid: 0,
    };
    mkfs(&device, &options).unwrap();
    // Blocks that extents can point at.
    device.append(ZoneId(2), &[7; 4 * BLOCK]).unwrap();
    device.flush().unwrap();
    device
}

fn mount(device: &Arc<MemZoned>, read_only: bool) -> Result<Fs, Error> {
    let device: Arc<dyn ZonedDevice> = device.clone();
    Fs::mount(device, Arc::new(TestClock::default()), MountOptions { read_only })
}

/// Reads everything there is; gives the paths.
fn read_all(fs: &Fs) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut todo = vec![(Vec::new(), ROOT_INO)];
    while let Some((path, ino)) = todo.pop() {
        for entry in fs.readdir(ino).unwrap() {
            let below = [&path[..], b"/", &entry.name[..]].concat();
            let stat = fs.getattr(entry.ino).unwrap();
            match entry.mode & 0o170_000 {
                0o040_000 => todo.push((below.clone(), entry.ino)),
                0o120_000 => drop(fs.readlink(entry.ino).unwrap()),
                0o100_000 => {
                    let data = fs.read(entry.ino, 0, stat.size_bytes as usize + 1).unwrap();
                    assert_eq!(data.len() as u64, stat.size_bytes);
                }
                _ => {}
            }
            found.push(below);
        }
    }
    found.sort();
    found
}

/// An entry from eight bytes: well-formed, with numbers and names that often meet.
fn entry(short: &[u8; 8]) -> Entry {
    const KINDS: [u32; 6] = [0o100_644, 0o040_755, 0o120_777, 0o020_600, 0o100_600, 0];
    let [tag, a, b, c, d, e, f, g] = *short;
    let number = |byte: u8| match byte {
        255 => u64::MAX,
        254 => u64::MAX - 1,
        byte => u64::from(byte % 8),
    };
    let name = |byte: u8| match byte {
        0 => Vec::new(),
        1 => b"..".to_vec(),
        2 => vec![b'x'; 256],
        byte => vec![b'a' + byte % 4],
    };
    let time = Time { seconds: i64::from(g) - 100, nanoseconds: 0 };
    let attrs = Attrs { mode: KINDS[usize::from(d) % KINDS.len()], atime: time, ..Attrs::default() };
    let target = vec![b't'; usize::from(e) * 20];
    match tag % 10 {
        0 | 1 => {
            let target = if attrs.mode == 0o120_777 || g == 9 { target } else { Vec::new() };
            Entry::Create {
                parent: number(a),
                name: name(b),
                ino: number(c),
                attrs,
                rdev: u32::from(f),
                target,
            }
        }
        2 => Entry::Link { ino: number(a), parent: number(c), name: name(b), time },
        3 => Entry::Unlink { parent: number(a), name: name(b), time },
        4 => Entry::Rmdir { parent: number(a), name: name(b), time },
        5 => {
            Entry::Rename { parent: number(a), name: name(b), new_parent: number(c), new_name: name(d), time }
        }
        6 => Entry::SetAttr { ino: number(a), attrs },
        7 | 8 => {
            let wide = |byte: u8, unit: u64| match byte {
                240.. => u64::MAX - u64::from(255 - byte),
                byte => u64::from(byte % 8) * unit + u64::from(byte / 128),
            };
            let extent = Extent {
                zone: ZoneId(u32::from(d % 6)),
                offset_bytes: wide(e, BLOCK as u64),
                length_bytes: wide(f, BLOCK as u64),
            };
            let extents = vec![extent; usize::from(g % 3)];
            Entry::Extents { ino: number(a), keep_bytes: wide(b, 1024), mtime: time, ctime: time, extents }
        }
        _ if c & 1 == 0 => Entry::Dirent { parent: number(a), name: name(b), ino: number(d) },
        _ => Entry::Inode { ino: number(a), attrs, rdev: 0, target },
    }
}

/// A log of entries of which all but the last can be applied; checks on the way that an entry is done or does nothing.
fn log_of(input: &[u8]) -> Vec<u8> {
    let geometry = device().geometry();
    let superblock = Superblock {
        uuid: [0; 16],
        label: String::new(),
        block_size_bytes: BLOCK as u32,
        zone_size_bytes: geometry.zone_size_bytes,
        zone_capacity_bytes: geometry.zone_capacity_bytes,
        nr_zones: geometry.nr_zones,
        meta_zones: [ZoneId(0), ZoneId(1)],
        created_seconds: 0,
        features: 0,
    };
    let mut tree = Tree::with_root(Attrs { mode: 0o755, ..Attrs::default() });
    let mut log = Vec::new();
    let shorts = input.as_chunks::<8>().0;
    for (index, short) in shorts.iter().enumerate() {
        let entry = entry(short);
        let before = tree.clone();
        let applied = !entry.is_of_a_snapshot() && tree.apply(&entry, &superblock).is_ok();
        if applied || index + 1 == shorts.len() {
            log.extend(entry.encode());
        }
        assert!(applied || tree == before, "an entry that is refused changes nothing: {entry:?}");
    }
    log
}

fn names(found: &Inspection) -> Vec<(u64, u64)> {
    found.files.iter().map(|file| (file.ino, file.size_bytes)).collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((&switches, input)) = input.split_first() else { return };
    let device = device();
    let written = device.report_zone(ZoneId(0)).unwrap().written_bytes;
    let mut bytes = match switches & 4 {
        0 => log_of(input),
        _ => input.to_vec(),
    };
    if switches & 1 == 0 {
        // The sequence number of a new file system is 1; the superblock and the snapshot are its first two frames.
        let salt = u64::from_le_bytes(*b"01234567");
        let mut framed = Vec::new();
        let half = if switches & 2 == 0 { bytes.len() } else { bytes.len() / 2 };
        for (index, payload) in [bytes.get(..half), bytes.get(half..).filter(|rest| !rest.is_empty())]
            .into_iter()
            .flatten()
            .enumerate()
        {
            let index = 2 + index as u64;
            let header = FrameHeader { kind: FrameKind::Log, payload_bytes: 0, sequence: 1, index, salt };
            framed.extend(encode(header, payload, BLOCK).unwrap_or_default());
        }
        bytes = framed;
    }
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes.truncate((128 << 10) - written as usize);
    if !bytes.is_empty() {
        device.append(ZoneId(0), &bytes).unwrap();
        device.flush().unwrap();
    }

    let operations = device.operations();
    let Ok(found) = inspect(&*device) else {
        let error = match mount(&device, false) {
            Ok(_) => panic!("what inspect refuses is not mounted"),
            Err(error) => error.to_string(),
        };
        assert!(!error.is_empty());
        // A mount flushes first; nothing else may have happened.
        assert!(device.operations() <= operations + 1, "nothing is written before a refusal");
        return;
    };
    let before = {
        let Ok(fs) = mount(&device, true) else { return };
        read_all(&fs)
    };
    let fs = mount(&device, false).expect("what can be read can be mounted");
    assert_eq!(read_all(&fs), before);
    let new = NewInode { mode: 0o100_644, uid: 0, gid: 0, rdev: 0, target: b"" };
    let made = fs.create(ROOT_INO, b"a new file", &new);
    if let Ok(stat) = &made {
        if let Ok(taken) = fs.write(stat.ino, 0, &[9; 5000]) {
            fs.fsync(stat.ino).unwrap();
            assert_eq!(fs.read(stat.ino, 0, 6000).unwrap(), vec![9; taken]);
        }
    }
    drop(fs);
    let later = inspect(&*device).expect("what was mounted opens again");
    if made.is_err() {
        assert_eq!(names(&later), names(&found));
    }
    assert_eq!(device.violations(), Vec::<String>::new());
});
