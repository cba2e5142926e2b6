//! Reports for people, and the same as JSON.

use std::io::{self, Write};

use bytesize::ByteSize;
use serde::Serialize;
use zonefs_fuse::engine::{Inspection, MkfsReport};

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    Ok(writeln!(out)?)
}

/// What mkfs made.
pub(crate) fn mkfs(made: &MkfsReport, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(made);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}: zonefs-fuse {} {:?}", made.device, made.uuid, made.label)?;
    writeln!(
        out,
        "{} data zones of {} ({} in all), blocks of {}, metadata in zones {} and {}",
        made.data_zones,
        size(made.zone_capacity_bytes),
        size(made.data_bytes),
        size(u64::from(made.block_size_bytes)),
        made.meta_zones[0],
        made.meta_zones[1]
    )?;
    if made.unused_conventional_zones > 0 {
        writeln!(out, "{} conventional zones are not used", made.unused_conventional_zones)?;
    }
    Ok(())
}

fn recovery(out: &mut impl Write, found: &Inspection) -> io::Result<()> {
    let r = &found.recovery;
    if r.torn_bytes > 0 {
        writeln!(out, "torn tail: {} bytes at the end of the log are left out", r.torn_bytes)?;
    }
    r.notes.iter().try_for_each(|note| writeln!(out, "note: {note}"))
}

/// Everything.
pub(crate) fn dump(found: &Inspection, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(found);
    }
    let mut out = io::stdout().lock();
    let r = &found.recovery;
    writeln!(out, "{}: zonefs-fuse {} {:?}", found.device, found.uuid, found.label)?;
    writeln!(
        out,
        "metadata zone {}, sequence {}, {} log frames since the snapshot",
        r.meta_zone, r.sequence, r.log_frames
    )?;
    recovery(&mut out, found)?;
    writeln!(out, "{:>8} {:>7} {:>5} {:>12}  PATH  ZONE:OFFSET+LENGTH", "INODE", "MODE", "LINKS", "SIZE")?;
    for file in &found.files {
        write!(
            out,
            "{:>8} {:>7} {:>5} {:>12}  {}",
            file.ino, file.mode, file.nlink, file.size_bytes, file.path
        )?;
        for (zone, offset, length) in &file.extents {
            write!(out, "  {zone}:{offset}+{length}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The space.
pub(crate) fn df(found: &Inspection, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(&found.df);
    }
    let mut out = io::stdout().lock();
    let df = &found.df;
    recovery(&mut out, found)?;
    writeln!(
        out,
        "{:<20} {:>12} {:>12} {:>12} {:>12} {:>8}",
        "DEVICE", "TOTAL", "LIVE", "DEAD", "FREE", "INODES"
    )?;
    writeln!(
        out,
        "{:<20} {:>12} {:>12} {:>12} {:>12} {:>8}",
        found.device,
        size(df.total_bytes),
        size(df.live_bytes),
        size(df.dead_bytes),
        size(df.free_bytes),
        df.inodes
    )?;
    writeln!(out, "metadata: {} of {}", size(df.snapshot_bytes), size(df.snapshot_limit_bytes))?;
    Ok(())
}

/// The zones.
pub(crate) fn zones(found: &Inspection, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(&found.zones);
    }
    let mut out = io::stdout().lock();
    recovery(&mut out, found)?;
    let (zone, role, cond) = ("ZONE", "ROLE", "CONDITION");
    writeln!(out, "{zone:>6} {role:<16} {cond:<13} {:>12} {:>12} {:>12}", "WRITTEN", "LIVE", "DEAD")?;
    for z in &found.zones {
        let (zone, role, cond) = (z.zone.0, z.role, z.cond);
        let (written, live, dead) = (size(z.written_bytes), size(z.live_bytes), size(z.dead_bytes));
        writeln!(out, "{zone:>6} {role:<16} {cond:<13} {written:>12} {live:>12} {dead:>12}")?;
    }
    Ok(())
}
