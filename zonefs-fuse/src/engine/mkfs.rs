//! Making a file system.

use serde::Serialize;

use super::log::MetaLog;
use super::recover;
use super::zones::active_limit;
use crate::device::{ZoneCond, ZoneId, ZoneType, ZonedDevice};
use crate::format::Superblock;
use crate::format::superblock::MAX_LABEL_BYTES;
use crate::model::{Attrs, Time, Tree};
use crate::{Error, Result};

/// The block of the file system, unless the device's is larger or does not divide its zones.
const BLOCK_BYTES: u32 = 4096;
/// Two for metadata, one for data.
const MIN_SEQUENTIAL_ZONES: usize = 3;
/// A snapshot of a few names must fit, with its frames an eighth of the zone each.
const MIN_CAPACITY_BYTES: u64 = 128 << 10;

/// What mkfs is told.
#[derive(Clone, Debug)]
pub struct MkfsOptions {
    /// Overwrite a file system of this kind.
    pub force: bool,
    /// A name for people, at most 63 bytes.
    pub label: String,
    /// A number nobody else has.
    pub uuid: [u8; 16],
    /// When.
    pub now: Time,
    /// The owner of the root directory.
    pub uid: u32,
    /// The group of the root directory.
    pub gid: u32,
}

/// What mkfs made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MkfsReport {
    /// The device.
    pub device: String,
    /// The file system's identity.
    pub uuid: String,
    /// Its name.
    pub label: String,
    /// Its block.
    pub block_size_bytes: u32,
    /// The device's zone size.
    pub zone_size_bytes: u64,
    /// The device's zone capacity.
    pub zone_capacity_bytes: u64,
    /// The metadata zones.
    pub meta_zones: [ZoneId; 2],
    /// How many zones hold data.
    pub data_zones: u64,
    /// How much data they hold.
    pub data_bytes: u64,
    /// Conventional zones, which are not used.
    pub unused_conventional_zones: u64,
    /// Zones that were emptied.
    pub reset_zones: u64,
}

/// Makes a file system; every sequential zone of the device is emptied.
///
/// # Errors
/// [`Error::HasFileSystem`] without `force`, [`Error::Unusable`] when the device is too small; nothing is
/// changed then.
pub fn mkfs(device: &dyn ZonedDevice, options: &MkfsOptions) -> Result<MkfsReport> {
    let unusable = |what: String| Error::Unusable { device: device.name().into(), what };
    let geometry = device.geometry();
    let report = device.report()?;
    let sequential: Vec<_> = report.iter().filter(|z| z.kind == ZoneType::Sequential).collect();
    if sequential.len() < MIN_SEQUENTIAL_ZONES {
        let what =
            format!("{} sequential zones, at least {MIN_SEQUENTIAL_ZONES} are needed", sequential.len());
        return Err(unusable(what));
    }
    if geometry.zone_capacity_bytes < MIN_CAPACITY_BYTES {
        let what = format!(
            "zones of {} bytes, at least {MIN_CAPACITY_BYTES} are needed",
            geometry.zone_capacity_bytes
        );
        return Err(unusable(what));
    }
    if active_limit(&geometry) == 0 {
        return Err(unusable("only one zone may be open at a time, at least 2 are needed".into()));
    }
    if options.label.len() > MAX_LABEL_BYTES {
        return Err(unusable(format!(
            "a label of {} bytes, at most {MAX_LABEL_BYTES} fit",
            options.label.len()
        )));
    }
    let meta_zones = [sequential[0].id, sequential[1].id];
    if let Some(bad) =
        sequential.iter().take(2).find(|z| matches!(z.cond, ZoneCond::ReadOnly | ZoneCond::Offline))
    {
        return Err(unusable(format!("zone {} is {} and the metadata must be there", bad.id, bad.cond)));
    }
    match recover::load(device) {
        Err(Error::NoFileSystem { .. }) => {}
        Err(error @ Error::Io { .. }) => return Err(error),
        _ if options.force => {}
        _ => return Err(Error::HasFileSystem { device: device.name().into() }),
    }
    // The metadata zones come first: after that there is no file system any more, whatever happens.
    let mut reset_zones = 0;
    for zone in &sequential {
        if matches!(zone.cond, ZoneCond::Empty | ZoneCond::ReadOnly | ZoneCond::Offline) {
            continue;
        }
        device.reset(zone.id)?;
        reset_zones += 1;
        if zone.id == meta_zones[1] {
            device.flush()?;
        }
    }
    device.flush()?;
    let superblock = Superblock {
        uuid: options.uuid,
        label: options.label.clone(),
        block_size_bytes: block_size(geometry.block_size_bytes, geometry.zone_capacity_bytes),
        zone_size_bytes: geometry.zone_size_bytes,
        zone_capacity_bytes: geometry.zone_capacity_bytes,
        nr_zones: geometry.nr_zones,
        meta_zones,
        created_seconds: u64::try_from(options.now.seconds).unwrap_or(0),
        features: 0,
    };
    let attrs = Attrs {
        mode: 0o755,
        uid: options.uid,
        gid: options.gid,
        atime: options.now,
        mtime: options.now,
        ctime: options.now,
    };
    let log = MetaLog::create(device, superblock, &Tree::with_root(attrs))?;
    let superblock = log.superblock;
    let data_zones = (sequential.len() - 2) as u64;
    Ok(MkfsReport {
        device: device.name().into(),
        uuid: superblock.uuid_text(),
        label: superblock.label,
        block_size_bytes: superblock.block_size_bytes,
        zone_size_bytes: superblock.zone_size_bytes,
        zone_capacity_bytes: superblock.zone_capacity_bytes,
        meta_zones,
        data_zones,
        data_bytes: data_zones * geometry.zone_capacity_bytes,
        unused_conventional_zones: (report.len() - sequential.len()) as u64,
        reset_zones,
    })
}

fn block_size(device_block: u32, capacity_bytes: u64) -> u32 {
    let wanted = device_block.max(BLOCK_BYTES);
    if capacity_bytes.is_multiple_of(u64::from(wanted)) { wanted } else { device_block }
}
