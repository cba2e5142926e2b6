//! Looking at a file system that may be mounted by somebody else: what the device says now, nothing written.

use serde::Serialize;

use super::recover::{self, RecoveryReport};
use crate::Result;
use crate::device::{Geometry, ZoneCond, ZoneId, ZoneType, ZonedDevice};
use crate::model::{Extent, Kind, ROOT_INO, Tree};

/// One zone and what the file system has in it.
#[derive(Clone, Debug, Serialize)]
pub struct ZoneInfo {
    /// Its number.
    pub zone: ZoneId,
    /// `unused` (conventional), `metadata`, `metadata-current` or `data`.
    pub role: &'static str,
    /// Its condition.
    pub cond: ZoneCond,
    /// How much can be written.
    pub capacity_bytes: u64,
    /// How much is written.
    pub written_bytes: u64,
    /// How much of that belongs to files.
    pub live_bytes: u64,
    /// How much of that belongs to nothing any more.
    pub dead_bytes: u64,
}

/// Space, as `df` shows it and more.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Df {
    /// The file system's block.
    pub block_size_bytes: u32,
    /// What data zones hold, without offline ones.
    pub total_bytes: u64,
    /// What files occupy, in whole blocks.
    pub live_bytes: u64,
    /// What can be written without moving anything.
    pub free_bytes: u64,
    /// Dead bytes in zones that also hold live ones.
    pub dead_bytes: u64,
    /// Inodes, the root directory included.
    pub inodes: u64,
    /// What a snapshot of the metadata takes.
    pub snapshot_bytes: u64,
    /// How large it may become.
    pub snapshot_limit_bytes: u64,
}

/// An inode with its path and place.
#[derive(Clone, Debug, Serialize)]
pub struct FileInfo {
    /// Its number.
    pub ino: u64,
    /// One of its paths.
    pub path: String,
    /// Kind and permissions, in octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links.
    pub nlink: u32,
    /// Size.
    pub size_bytes: u64,
    /// Content time in seconds.
    pub mtime_seconds: i64,
    /// Zone, offset in it, and length.
    pub extents: Vec<(u32, u64, u64)>,
}

/// Everything about a file system on a device.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The device.
    pub device: String,
    /// Its geometry.
    pub geometry: Geometry,
    /// The file system's identity.
    pub uuid: String,
    /// Its name.
    pub label: String,
    /// When it was made, in seconds since 1970.
    pub created_seconds: u64,
    /// How its metadata was read.
    pub recovery: RecoveryReport,
    /// Space.
    pub df: Df,
    /// Zones.
    pub zones: Vec<ZoneInfo>,
    /// Inodes.
    pub files: Vec<FileInfo>,
}

/// Reads all there is to know, without writing.
///
/// # Errors
/// As mounting.
pub fn inspect(device: &dyn ZonedDevice) -> Result<Inspection> {
    let loaded = recover::load(device)?;
    let live = recover::live_blocks(device, &loaded)?;
    let superblock = &loaded.superblock;
    let block = u64::from(superblock.block_size_bytes);
    let current = superblock.meta_zones[loaded.active];
    let mut zones = Vec::new();
    let mut df = Df {
        block_size_bytes: superblock.block_size_bytes,
        total_bytes: 0,
        live_bytes: 0,
        free_bytes: 0,
        dead_bytes: 0,
        inodes: loaded.tree.inodes(),
        snapshot_bytes: loaded.tree.snapshot_bytes(),
        snapshot_limit_bytes: superblock.zone_capacity_bytes / 2,
    };
    for zone in &loaded.zones {
        let data = zone.kind == ZoneType::Sequential && !superblock.meta_zones.contains(&zone.id);
        let live_bytes = live.get(&zone.id).copied().unwrap_or(0) * block;
        let dead_bytes = if data { zone.written_bytes.saturating_sub(live_bytes) } else { 0 };
        let role = match () {
            () if data => "data",
            () if zone.id == current => "metadata-current",
            () if zone.kind == ZoneType::Sequential => "metadata",
            () => "unused",
        };
        if data && zone.cond != ZoneCond::Offline {
            df.total_bytes += zone.capacity_bytes;
            df.live_bytes += live_bytes;
            let lost = zone.cond == ZoneCond::ReadOnly;
            if live_bytes == 0 && !lost {
                df.free_bytes += zone.capacity_bytes;
            } else {
                df.free_bytes += if lost { 0 } else { zone.capacity_bytes - zone.written_bytes };
                df.dead_bytes += dead_bytes;
            }
        }
        zones.push(ZoneInfo {
            zone: zone.id,
            role,
            cond: zone.cond,
            capacity_bytes: zone.capacity_bytes,
            written_bytes: zone.written_bytes,
            live_bytes,
            dead_bytes,
        });
    }
    let mut files = Vec::new();
    list(&loaded.tree, ROOT_INO, &mut files);
    Ok(Inspection {
        device: device.name().into(),
        geometry: device.geometry(),
        uuid: superblock.uuid_text(),
        label: superblock.label.clone(),
        created_seconds: superblock.created_seconds,
        recovery: loaded.report.clone(),
        df,
        zones,
        files,
    })
}

/// Lists all below the root, each directory before what is in it.
fn list(tree: &Tree, root: u64, files: &mut Vec<FileInfo>) {
    let mut todo = vec![(root, String::from("/"))];
    while let Some((ino, path)) = todo.pop() {
        let Ok(inode) = tree.get(ino) else { continue };
        let (size_bytes, extents): (u64, Vec<Extent>) = match &inode.kind {
            Kind::File(map) => (map.length_bytes(), map.iter().collect()),
            Kind::Symlink(target) => (target.len() as u64, Vec::new()),
            _ => (0, Vec::new()),
        };
        if let Kind::Dir { entries, .. } = &inode.kind {
            for (name, child) in entries.iter().rev() {
                let name = String::from_utf8_lossy(name);
                todo.push((*child, format!("{}/{name}", path.trim_end_matches('/'))));
            }
        }
        files.push(FileInfo {
            ino,
            path,
            mode: format!("{:o}", inode.attrs.mode),
            uid: inode.attrs.uid,
            gid: inode.attrs.gid,
            nlink: inode.nlink,
            size_bytes,
            mtime_seconds: inode.attrs.mtime.seconds,
            extents: extents.iter().map(|e| (e.zone.0, e.offset_bytes, e.length_bytes)).collect(),
        });
    }
}
