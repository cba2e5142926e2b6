//! A plain reference file system, and random workloads that run over it and over the real one.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::sync::Arc;

use zonefs_fuse::Error;
use zonefs_fuse::device::ZonedDevice;
use zonefs_fuse::engine::{Fs, MkfsOptions, MountOptions, NewInode, SetAttr, mkfs};
use zonefs_fuse::model::{ROOT_INO, Time};
use zonefs_fuse::testing::{MemGeometry, MemZoned, Rng, TestClock};

pub const SMALL: MemGeometry = MemGeometry {
    block_size_bytes: 512,
    zone_size_bytes: 256 << 10,
    zone_capacity_bytes: 128 << 10,
    conventional: 1,
    sequential: 10,
    max_open_zones: 3,
    max_active_zones: 4,
};

pub fn mkfs_options() -> MkfsOptions {
    MkfsOptions {
        force: false,
        label: "test".into(),
        uuid: *b"0123456789abcdef",
        now: Time { seconds: 1_700_000_000, nanoseconds: 0 },
        uid: 0,
        gid: 0,
    }
}

pub fn formatted(shape: MemGeometry) -> Arc<MemZoned> {
    let device = Arc::new(MemZoned::new(shape));
    mkfs(&*device, &mkfs_options()).unwrap();
    device
}

pub fn mount(device: &Arc<MemZoned>) -> Result<Fs, Error> {
    let device: Arc<dyn ZonedDevice> = device.clone();
    Fs::mount(device, Arc::new(TestClock::default()), MountOptions::default())
}

pub fn file(fs: &Fs, name: &str) -> u64 {
    let new = NewInode { mode: 0o100_644, uid: 1, gid: 2, rdev: 0, target: b"" };
    fs.create(ROOT_INO, name.as_bytes(), &new).unwrap().ino
}

pub fn content(fs: &Fs, ino: u64) -> Vec<u8> {
    let size = fs.getattr(ino).unwrap().size_bytes;
    fs.read(ino, 0, size as usize + 100).unwrap()
}

/// One step of a workload; the numbers choose among what there is.
#[derive(Clone, Debug)]
pub enum Op {
    Create(u8, u8),
    Mkdir(u8, u8),
    Symlink(u8, u8),
    Link(u8, u8, u8),
    Append(u8, u32),
    Truncate(u8, u8),
    Rename(u8, u8, u8, u8),
    Unlink(u8),
    Rmdir(u8),
    Chmod(u8, u16),
    Fsync(u8),
    Sync,
    Remount,
    OpenUnlinkClose(u8, u32),
}

pub fn random_op(rng: &mut Rng, remounts: bool) -> Op {
    let mut byte = || rng.next_u64() as u8;
    let (a, b, c, d) = (byte(), byte(), byte(), byte());
    let size = match rng.below(10) {
        0..=4 => rng.below(700) as u32,
        5..=7 => rng.below(9000) as u32,
        8 => 4096 * rng.below(4) as u32,
        _ => rng.below(60_000) as u32,
    };
    match rng.below(100) {
        0..=11 => Op::Create(a, b),
        12..=16 => Op::Mkdir(a, b),
        17..=18 => Op::Symlink(a, b),
        19..=21 => Op::Link(a, b, c),
        22..=51 => Op::Append(a, size),
        52..=55 => Op::Truncate(a, b),
        56..=65 => Op::Rename(a, b, c, d),
        66..=72 => Op::Unlink(a),
        73..=75 => Op::Rmdir(a),
        76..=77 => Op::Chmod(a, u16::from(b) << 1),
        78..=92 => Op::Fsync(a),
        93..=94 => Op::Sync,
        95..=96 if remounts => Op::Remount,
        _ => Op::OpenUnlinkClose(a, size),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    File,
    Dir,
    Symlink,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: NodeKind,
    pub ino: u64,
    pub mode: u32,
    /// All contents it had, the present one last.
    pub versions: Vec<Vec<u8>>,
    /// The version that the last completed fsync saw.
    pub synced: usize,
}

/// Paths to nodes; the root is node 0 and has the empty path.
pub type Names = BTreeMap<String, usize>;

/// The reference: what a file system with all its bytes in memory would hold.
#[derive(Clone, Debug)]
pub struct Reference {
    pub nodes: Vec<Node>,
    pub names: Names,
    /// The names after every step, and from which step on they are durable.
    pub history: Vec<Names>,
    pub durable_from: usize,
}

const NAMES: [&str; 6] = ["a", "b", "c", "dd", "a-somewhat-longer-name", "f"];

impl Default for Reference {
    fn default() -> Self {
        let root =
            Node { kind: NodeKind::Dir, ino: ROOT_INO, mode: 0o040_755, versions: vec![vec![]], synced: 0 };
        let names = Names::from([(String::new(), 0)]);
        Reference { nodes: vec![root], history: vec![names.clone()], names, durable_from: 0 }
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap()
}

impl Reference {
    fn of_kind(&self, kind: &NodeKind) -> Vec<String> {
        self.names.iter().filter(|(_, n)| self.nodes[**n].kind == *kind).map(|(p, _)| p.clone()).collect()
    }

    fn choose(&self, kind: &NodeKind, which: u8) -> Option<String> {
        let all = self.of_kind(kind);
        (!all.is_empty()).then(|| all[usize::from(which) % all.len()].clone())
    }

    fn any(&self, which: u8) -> Option<String> {
        let all: Vec<&String> = self.names.keys().filter(|p| !p.is_empty()).collect();
        (!all.is_empty()).then(|| all[usize::from(which) % all.len()].clone())
    }

    fn dir(&self, which: u8) -> String {
        let dirs: Vec<String> =
            self.of_kind(&NodeKind::Dir).into_iter().filter(|d| d.matches('/').count() < 3).collect();
        dirs[usize::from(which) % dirs.len()].clone()
    }

    pub fn ino(&self, path: &str) -> u64 {
        self.nodes[self.names[path]].ino
    }

    fn is_empty_dir(&self, path: &str) -> bool {
        let below = format!("{path}/");
        !self.names.keys().any(|p| p.starts_with(&below))
    }

    fn add(&mut self, path: String, kind: NodeKind, mode: u32, ino: u64, data: Vec<u8>) {
        self.nodes.push(Node { kind, ino, mode, versions: vec![data], synced: 0 });
        self.names.insert(path, self.nodes.len() - 1);
    }

    fn version(&mut self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let node = &mut self.nodes[self.names[path]];
        let mut data = node.versions.last().unwrap().clone();
        change(&mut data);
        node.versions.push(data);
    }

    fn all_synced(&mut self) {
        for node in &mut self.nodes {
            node.synced = node.versions.len() - 1;
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        let below = format!("{from}/");
        let moved: Vec<String> =
            self.names.keys().filter(|p| *p == from || p.starts_with(&below)).cloned().collect();
        for old in moved {
            let node = self.names.remove(&old).unwrap();
            self.names.insert(format!("{to}{}", &old[from.len()..]), node);
        }
    }
}

/// The bytes of an append: different everywhere.
fn data(seed: usize, length: u32) -> Vec<u8> {
    let mut rng = Rng::new(seed as u64);
    (0..length).map(|_| rng.next_u64() as u8).collect()
}

/// What a step came to.
#[derive(Debug)]
pub enum Outcome {
    /// Done, or refused as the reference refuses it.
    Done,
    /// The device failed in the middle of it.
    Failed(Error),
}

/// Whether an error is the power cut, not an answer.
fn power_cut(error: &Error) -> bool {
    matches!(error, Error::Io { .. } | Error::ReadOnly)
}

/// Does one step on both, and asks that both answer alike. When the device fails, the reference has done the
/// step: it may be on the medium or not.
pub fn step(fs: &Fs, reference: &mut Reference, number: usize, op: &Op) -> Outcome {
    let result = run(fs, reference, number, op);
    reference.history.push(reference.names.clone());
    match result {
        Ok(durable) => {
            if durable {
                reference.durable_from = reference.history.len() - 1;
            }
            Outcome::Done
        }
        // A cut during the reset of a dead zone leaves a device that has no room, as far as one can see.
        Err(error) if power_cut(&error) || fs.device().report().is_err() => Outcome::Failed(error),
        Err(error) => panic!("step {number}, {op:?}: {error}"),
    }
}

/// Checks that the answer is the expected one; an unexpected device error goes up.
fn expect<T: std::fmt::Debug>(result: Result<T, Error>, wanted: &str) -> Result<(), Error> {
    match result {
        Err(error) if power_cut(&error) => Err(error),
        Err(error) => {
            let name = format!("{error:?}");
            assert!(name.starts_with(wanted), "{name} instead of {wanted}");
            Ok(())
        }
        Ok(value) => panic!("{value:?} instead of {wanted}"),
    }
}

/// Makes a node on both sides; a full file system refuses it, and then the reference does not have it.
fn make(
    fs: &Fs,
    reference: &mut Reference,
    (dir, name): (&str, &str),
    (kind, mode, target): (NodeKind, u32, &[u8]),
) -> Result<(), Error> {
    let path = format!("{dir}/{name}");
    let new = NewInode { mode, uid: 3, gid: 4, rdev: 0, target };
    let result = fs.create(reference.ino(dir), name.as_bytes(), &new);
    if reference.names.contains_key(&path) {
        return expect(result, "Exists");
    }
    match result {
        Ok(stat) => reference.add(path, kind, mode, stat.ino, target.to_vec()),
        Err(Error::NoSpace(_)) => {}
        Err(error) => {
            reference.add(path, kind, mode, 0, target.to_vec());
            return Err(error);
        }
    }
    Ok(())
}

fn run(fs: &Fs, reference: &mut Reference, number: usize, op: &Op) -> Result<bool, Error> {
    match op {
        Op::Create(dir, name) => {
            let (dir, name) = (reference.dir(*dir), NAMES[usize::from(*name) % NAMES.len()]);
            make(fs, reference, (&dir, name), (NodeKind::File, 0o100_640, b""))?;
        }
        Op::Mkdir(dir, name) => {
            let (dir, name) = (reference.dir(*dir), NAMES[usize::from(*name) % NAMES.len()]);
            make(fs, reference, (&dir, name), (NodeKind::Dir, 0o040_750, b""))?;
        }
        Op::Symlink(dir, name) => {
            let (dir, name) = (reference.dir(*dir), NAMES[usize::from(*name) % NAMES.len()]);
            let target = data(number, u32::from(name.len() as u8) * 20);
            make(fs, reference, (&dir, name), (NodeKind::Symlink, 0o120_777, &target))?;
        }
        Op::Link(which, dir, name) => {
            let Some(from) = reference.choose(&NodeKind::File, *which) else { return Ok(false) };
            let (dir, name) = (reference.dir(*dir), NAMES[usize::from(*name) % NAMES.len()]);
            let path = format!("{dir}/{name}");
            let node = reference.names[&from];
            let exists = reference.names.contains_key(&path);
            let result = fs.link(reference.ino(&from), reference.ino(&dir), name.as_bytes());
            if exists {
                expect(result, "Exists")?;
            } else if !matches!(result, Err(Error::NoSpace(_))) {
                reference.names.insert(path, node);
                result?;
            }
        }
        Op::Append(which, length) => {
            let Some(path) = reference.choose(&NodeKind::File, *which) else { return Ok(false) };
            return append(fs, reference, number, &path, *length).map(|()| false);
        }
        Op::Truncate(which, part) => {
            let Some(path) = reference.choose(&NodeKind::File, *which) else { return Ok(false) };
            let size = reference.nodes[reference.names[&path]].versions.last().unwrap().len() as u64;
            let grow = SetAttr { size_bytes: Some(size + 1), ..SetAttr::default() };
            expect(fs.setattr(reference.ino(&path), &grow), "Invalid")?;
            let size = size * u64::from(*part) / 255;
            let change = SetAttr { size_bytes: Some(size), ..SetAttr::default() };
            let result = fs.setattr(reference.ino(&path), &change);
            reference.version(&path, |d| d.truncate(size as usize));
            result?;
        }
        Op::Rename(..) => return rename(fs, reference, op).map(|()| false),
        Op::Unlink(which) => {
            let Some(path) = reference.any(*which) else { return Ok(false) };
            let (dir, name) = split(&path);
            let result = fs.unlink(reference.ino(dir), name.as_bytes());
            if reference.nodes[reference.names[&path]].kind == NodeKind::Dir {
                expect(result, "IsDir")?;
            } else {
                reference.names.remove(&path);
                result?;
            }
        }
        Op::Rmdir(which) => {
            let Some(path) = reference.any(*which) else { return Ok(false) };
            let (dir, name) = split(&path);
            let result = fs.rmdir(reference.ino(dir), name.as_bytes());
            if reference.nodes[reference.names[&path]].kind != NodeKind::Dir {
                expect(result, "NotDir")?;
            } else if !reference.is_empty_dir(&path) {
                expect(result, "NotEmpty")?;
            } else {
                reference.names.remove(&path);
                result?;
            }
        }
        Op::Chmod(which, mode) => {
            let Some(path) = reference.any(*which) else { return Ok(false) };
            let mode = u32::from(*mode) & 0o777;
            let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
            let result = fs.setattr(reference.ino(&path), &change);
            let node = &mut reference.nodes[reference.names[&path]];
            node.mode = (node.mode & 0o170_000) | mode;
            result?;
        }
        Op::Fsync(which) => {
            let Some(path) = reference.choose(&NodeKind::File, *which) else { return Ok(false) };
            match fs.fsync(reference.ino(&path)) {
                Ok(()) => {}
                Err(error) => return Err(error),
            }
            let node = &mut reference.nodes[reference.names[&path]];
            node.synced = node.versions.len() - 1;
            return Ok(true);
        }
        Op::Sync | Op::Remount => {
            fs.sync()?;
            reference.all_synced();
            return Ok(true);
        }
        Op::OpenUnlinkClose(which, length) => {
            let Some(path) = reference.choose(&NodeKind::File, *which) else { return Ok(false) };
            return open_unlink_close(fs, reference, number, &path, *length).map(|()| false);
        }
    }
    Ok(false)
}

fn append(fs: &Fs, reference: &mut Reference, number: usize, path: &str, length: u32) -> Result<(), Error> {
    let ino = reference.ino(path);
    let size = reference.nodes[reference.names[path]].versions.last().unwrap().len() as u64;
    expect(fs.write(ino, size + 1, b"x"), "NotAppend")?;
    let bytes = data(number, length);
    let result = fs.write(ino, size, &bytes);
    let taken = match &result {
        Ok(taken) => *taken,
        Err(Error::NoSpace(_)) => 0,
        Err(_) => bytes.len(),
    };
    reference.version(path, |d| d.extend_from_slice(&bytes[..taken]));
    match result {
        Err(error) if power_cut(&error) => Err(error),
        _ => Ok(()),
    }
}

fn rename(fs: &Fs, reference: &mut Reference, op: &Op) -> Result<(), Error> {
    let Op::Rename(which, dir, name, keep) = op else { return Ok(()) };
    let Some(from) = reference.any(*which) else { return Ok(()) };
    let (dir, name) = (reference.dir(*dir), NAMES[usize::from(*name) % NAMES.len()]);
    let to = format!("{dir}/{name}");
    let keep = *keep < 40;
    let (from_dir, from_name) = split(&from);
    let source = (reference.ino(from_dir), from_name.as_bytes());
    let result = fs.rename(source, (reference.ino(&dir), name.as_bytes()), keep);
    let kind = |path: &str| reference.nodes[reference.names[path]].kind == NodeKind::Dir;
    let target = reference.names.get(&to).copied();
    let inside = to.starts_with(&format!("{from}/"));
    let wanted = match target {
        Some(_) if keep => Some("Exists"),
        Some(node) if node == reference.names[&from] => None,
        _ if inside => Some("Invalid"),
        Some(_) if kind(&from) && !kind(&to) => Some("NotDir"),
        Some(_) if !kind(&from) && kind(&to) => Some("IsDir"),
        Some(_) if kind(&to) && !reference.is_empty_dir(&to) => Some("NotEmpty"),
        _ => None,
    };
    if let Some(wanted) = wanted {
        return expect(result, wanted);
    }
    if matches!(result, Err(Error::NoSpace(_))) {
        return Ok(());
    }
    if target != Some(reference.names[&from]) {
        reference.names.remove(&to);
        reference.rename(&from, &to);
    }
    result
}

/// A file that is written to and read while it has no name any more.
fn open_unlink_close(
    fs: &Fs,
    reference: &mut Reference,
    number: usize,
    path: &str,
    length: u32,
) -> Result<(), Error> {
    let (node, ino) = (reference.names[path], reference.ino(path));
    fs.open(ino)?;
    let (dir, name) = split(path);
    let result = fs.unlink(reference.ino(dir), name.as_bytes());
    reference.names.remove(path);
    result?;
    let before = reference.nodes[node].versions.last().unwrap().clone();
    if !reference.names.values().any(|n| *n == node) {
        let bytes = data(number, length);
        let taken = match fs.write(ino, before.len() as u64, &bytes) {
            Ok(taken) => taken,
            Err(Error::NoSpace(_)) => 0,
            Err(error) => return Err(error),
        };
        fs.fsync(ino)?;
        let all = [&before[..], &bytes[..taken]].concat();
        assert_eq!(fs.read(ino, 0, all.len() + 1)?, all, "a file without a name is still whole");
    }
    fs.close(ino);
    Ok(())
}

/// All paths of the real file system, with inode and mode.
pub fn paths(fs: &Fs) -> BTreeMap<String, (u64, u32)> {
    let mut found = BTreeMap::from([(String::new(), (ROOT_INO, 0o040_000))]);
    let mut todo = vec![(String::new(), ROOT_INO)];
    while let Some((path, ino)) = todo.pop() {
        let entries = fs.readdir(ino).unwrap();
        let subdirs = entries.iter().filter(|e| e.mode == 0o040_000).count() as u32;
        assert_eq!(fs.getattr(ino).unwrap().nlink, 2 + subdirs, "links of {path:?}");
        for entry in entries {
            let below = format!("{path}/{}", String::from_utf8(entry.name.clone()).unwrap());
            assert_eq!(fs.lookup(ino, &entry.name).unwrap().ino, entry.ino);
            if entry.mode == 0o040_000 {
                assert_eq!(fs.parent(entry.ino).unwrap(), ino);
                todo.push((below.clone(), entry.ino));
            }
            found.insert(below, (entry.ino, entry.mode));
        }
    }
    found
}

/// Asks that the file system holds exactly what the reference does.
pub fn assert_same(fs: &Fs, reference: &Reference) {
    let found = paths(fs);
    assert!(found.keys().eq(reference.names.keys()), "{found:?}\ninstead of\n{:?}", reference.names);
    for (path, node) in &reference.names {
        let node = &reference.nodes[*node];
        let (ino, _) = found[path];
        let stat = fs.getattr(ino).unwrap();
        assert_eq!(stat.attrs.mode, node.mode, "mode of {path:?}");
        match node.kind {
            NodeKind::File => {
                let data = node.versions.last().unwrap();
                assert_eq!(stat.size_bytes, data.len() as u64, "size of {path:?}");
                assert!(content(fs, ino) == *data, "content of {path:?}");
                let links = reference.names.values().filter(|n| reference.nodes[**n].ino == node.ino).count();
                assert_eq!(stat.nlink as usize, links, "links of {path:?}");
                if let Some(middle) = data.get(data.len() / 3..data.len() / 2) {
                    assert!(fs.read(ino, (data.len() / 3) as u64, middle.len()).unwrap() == middle);
                }
            }
            NodeKind::Symlink => assert_eq!(fs.readlink(ino).unwrap(), node.versions[0]),
            NodeKind::Dir => {}
        }
    }
}

/// After a crash: the names are those after some step that is not older than what was synced, and every file
/// reads as something it was, or the beginning of it, at or after its last fsync.
pub fn assert_recovered(fs: &Fs, reference: &Reference) {
    let found = paths(fs);
    let candidates = &reference.history[reference.durable_from..];
    let fits = |names: &&Names| {
        let mut inos = BTreeMap::new();
        found.len() == names.len()
            && names.iter().all(|(path, node)| {
                found.get(path).is_some_and(|(ino, mode)| {
                    let same_kind = mode & 0o170_000 == reference.nodes[*node].mode & 0o170_000;
                    same_kind
                        && *inos.entry(*node).or_insert(*ino) == *ino
                        && content_fits(fs, reference, *node, *ino)
                })
            })
    };
    assert!(
        candidates.iter().any(|names| fits(&names)),
        "{found:#?}\nis no state from step {} to {}: {:#?}",
        reference.durable_from,
        reference.history.len() - 1,
        candidates
    );
}

fn content_fits(fs: &Fs, reference: &Reference, node: usize, ino: u64) -> bool {
    let node = &reference.nodes[node];
    match node.kind {
        NodeKind::Dir => true,
        NodeKind::Symlink => fs.readlink(ino).unwrap() == node.versions[0],
        NodeKind::File => {
            let data = content(fs, ino);
            let mut shortest = usize::MAX;
            node.versions[node.synced..].iter().any(|version| {
                shortest = shortest.min(version.len());
                version.starts_with(&data) && data.len() >= shortest
            })
        }
    }
}
