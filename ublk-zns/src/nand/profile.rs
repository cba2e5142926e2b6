//! A NAND profile: every number of the timing model, read from TOML, checked, and with single numbers overridden.
//!
//! The invariant: a profile that [`Profile::validate`] accepts makes a model that can neither overflow nor divide by zero.
//! Times are in ns, sizes in bytes, rates in bytes per second; 0 stands for "none" where a field says so.

use super::error::NandError;
use serde::{Deserialize, Serialize};
use std::fs;

/// Everything the model needs to know of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Short name.
    pub name: String,
    /// Where the numbers come from.
    pub source: String,
    /// Every time of the model is multiplied by it: 10 for a run in slow motion, where the host is fast enough.
    #[serde(default = "one")]
    pub time_scale: f64,
    /// Chips and their sizes.
    pub geometry: NandGeometry,
    /// How long the chips and channels take.
    pub timing: NandTiming,
    /// Between host and controller.
    #[serde(default)]
    pub link: HostLink,
    /// What the controller's processors do per command.
    #[serde(default)]
    pub firmware: Firmware,
    /// Who is served next.
    #[serde(default)]
    pub arbitration: Arbitration,
    /// How zones lie on dies, are buffered, reset and finished.
    #[serde(default)]
    pub zones: ZonePolicy,
}

fn one() -> f64 {
    1.0
}

/// Chips and their sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NandGeometry {
    /// Channels (buses), 1 to 256.
    pub channels: u32,
    /// Dies that share a channel, 1 to 256.
    pub dies_per_channel: u32,
    /// Planes of a die, 1 to 16. All take part in a program and an erase.
    pub planes_per_die: u32,
    /// What one sense (tR) reads of a plane, in bytes.
    pub page_bytes: u64,
    /// What one program (tPROG) writes to a plane, in bytes: a multiple of the page (three pages for one-shot TLC).
    pub program_bytes: u64,
    /// The erase block of a plane in bytes: a multiple of `program_bytes`.
    pub erase_block_bytes: u64,
}

/// How long chips and channels take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NandTiming {
    /// Sense of a page (tR) in ns.
    pub read_ns: u64,
    /// Sense in ns when at most 4 KiB of the page are wanted; 0 for the same as `read_ns`.
    #[serde(default)]
    pub read_4k_ns: u64,
    /// Program of one unit on all planes (tPROG) in ns.
    pub program_ns: u64,
    /// Erase of one block on all planes (tBERS) in ns.
    pub erase_ns: u64,
    /// Rate of one channel in bytes per second; 0 for no limit.
    pub channel_bytes_per_s: u64,
    /// Whether a transfer into a die may overlap the program before it (cache register).
    #[serde(default)]
    pub cache_program: bool,
    /// Whether a die may sense while the page before is still being transferred (cache register).
    #[serde(default)]
    pub cache_read: bool,
    /// Whether each plane senses on its own; otherwise a sense occupies the die.
    #[serde(default)]
    pub independent_plane_reads: bool,
}

/// The link between host and controller: one rate, each direction on its own.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostLink {
    /// Bytes per second in each direction; 0 for no limit.
    pub bytes_per_s: u64,
}

/// What the controller's processors do per command, in ns.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Firmware {
    /// A read, before the first die starts.
    pub read_ns: u64,
    /// A read of at most 4 KiB; 0 for the same as `read_ns`.
    pub read_4k_ns: u64,
    /// A write, before its data is fetched.
    pub write_ns: u64,
    /// Added to a write or append per 4 KiB begun.
    pub write_per_4k_ns: u64,
    /// An append, before its data is fetched.
    pub append_ns: u64,
    /// Open, close, reset, finish and report; the zone's own costs come on top.
    pub manage_ns: u64,
    /// A flush.
    pub flush_ns: u64,
    /// Added to a read for data found in the write buffer, or never written, in place of the die's time.
    pub buffer_read_ns: u64,
    /// Commands processed at a time; 0 for no limit.
    pub cores: u32,
}

/// Who is served next when the firmware's cores are busy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Arbitration {
    /// The rule.
    pub kind: ArbitrationKind,
}

/// How submission queues share the firmware's cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArbitrationKind {
    /// In order of arrival, whatever the queue.
    #[default]
    Fifo,
    /// Every queue with work gets the same share: processor sharing (`nand/firmware.rs` says exactly how).
    RoundRobin,
}

/// In what order dies are numbered, and so which dies are neighbours in a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Die `d` is on channel `d % channels`: a narrow zone spans channels.
    #[default]
    ChannelFirst,
    /// Die `d` is on channel `d / dies_per_channel`: a narrow zone stays on a channel.
    DieFirst,
}

/// How zones lie on dies, are buffered, reset and finished.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZonePolicy {
    /// Dies a zone is striped over: a divisor of all dies; 0 for all of them.
    pub dies_per_zone: u32,
    /// How dies are numbered.
    pub placement: Placement,
    /// Write buffer of each zone in bytes, at least one unit (planes × `program_bytes`); 0 for none.
    pub buffer_bytes: u64,
    /// Whether a write completes when its data is in the buffer; otherwise when the units it filled are programmed.
    pub early_completion: bool,
    /// Whether a flush waits for every program on the way.
    pub flush_drains: bool,
    /// Added to an open, in ns.
    pub open_ns: u64,
    /// Added to a close, in ns.
    pub close_ns: u64,
    /// Added to a reset, in ns.
    pub reset_ns: u64,
    /// Whether a reset erases and waits for it; otherwise the first program of each used block erases it.
    pub erase_on_reset: bool,
    /// Added to a finish, in ns.
    pub finish_ns: u64,
    /// Whether a finish programs the rest of the capacity and waits for it.
    pub finish_fills: bool,
    /// Whether other work may run on a die between the programs of a fill.
    pub finish_yields: bool,
}

const BUILTINS: [(&str, &str); 6] = [
    ("femu-slc", include_str!("../../profiles/femu-slc.toml")),
    ("femu-tlc", include_str!("../../profiles/femu-tlc.toml")),
    ("femu-qlc", include_str!("../../profiles/femu-qlc.toml")),
    ("nvmevirt-zn540", include_str!("../../profiles/nvmevirt-zn540.toml")),
    ("nvmevirt-prototype", include_str!("../../profiles/nvmevirt-prototype.toml")),
    ("confzns", include_str!("../../profiles/confzns.toml")),
];

impl Profile {
    /// The name of the profile without timing, for which there is no [`Profile`].
    pub const NONE: &str = "none";

    /// Every built-in profile's name, [`Profile::NONE`] first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        std::iter::once(Profile::NONE).chain(BUILTINS.iter().map(|(name, _)| *name))
    }

    /// The file of the built-in profile `name`, with its sources; `None` if there is none.
    pub fn builtin_text(name: &str) -> Option<&'static str> {
        BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// The built-in profile `name`; `None` if there is none of that name, or if it is [`Profile::NONE`].
    pub fn builtin(name: &str) -> Option<Profile> {
        let (name, text) = BUILTINS.iter().find(|(known, _)| *known == name)?;
        Profile::parse(name, text).ok()
    }

    /// The profile of a built-in's name or a TOML file, not yet validated: overrides may follow. `None` is "no timing".
    ///
    /// # Errors
    /// [`NandError::Read`], [`NandError::Parse`].
    pub fn load(name_or_path: &str) -> Result<Option<Profile>, NandError> {
        if name_or_path == Profile::NONE {
            return Ok(None);
        }
        if let Some((name, text)) = BUILTINS.iter().find(|(known, _)| *known == name_or_path) {
            return Profile::parse(name, text).map(Some);
        }
        let text = fs::read_to_string(name_or_path).map_err(|source| NandError::Read {
            path: name_or_path.to_owned(),
            source,
            names: Profile::names().collect::<Vec<_>>().join(", "),
        })?;
        Profile::parse(name_or_path, &text).map(Some)
    }

    /// The profile in `text`; `path` is for the error.
    ///
    /// # Errors
    /// [`NandError::Parse`] with the line.
    pub fn parse(path: &str, text: &str) -> Result<Profile, NandError> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count();
            let why = error.message().lines().map(str::trim).collect::<Vec<_>>().join(" ");
            NandError::Parse { path: path.to_owned(), line, why }
        })
    }

    /// All dies.
    pub fn dies(&self) -> u32 {
        self.geometry.channels.saturating_mul(self.geometry.dies_per_channel)
    }

    /// Dies a zone is striped over.
    pub fn dies_per_zone(&self) -> u32 {
        if self.zones.dies_per_zone == 0 { self.dies() } else { self.zones.dies_per_zone }
    }

    /// What one program writes to a die in bytes: the stripe unit.
    pub fn unit_bytes(&self) -> u64 {
        self.geometry.program_bytes.saturating_mul(u64::from(self.geometry.planes_per_die))
    }

    /// Checks every number and how they fit.
    ///
    /// # Errors
    /// [`NandError::Field`] naming the first that is wrong, and what would be right.
    pub fn validate(&self) -> Result<(), NandError> {
        let scale = self.time_scale;
        if !(0.001..=100_000.0).contains(&scale) {
            return self.bad("time_scale", scale.to_string(), "it must be 0.001 to 100000".into());
        }
        self.validate_geometry()?;
        self.validate_times()?;
        self.validate_zones()
    }

    fn bad<T>(&self, field: &'static str, value: String, rule: String) -> Result<T, NandError> {
        Err(NandError::Field { profile: self.name.clone(), field, value, rule })
    }

    fn within(&self, field: &'static str, value: u64, least: u64, most: u64) -> Result<(), NandError> {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        self.bad(field, value.to_string(), format!("it must be {least} to {most}"))
    }

    fn multiple(&self, field: &'static str, value: u64, of: u64, name: &str) -> Result<(), NandError> {
        if value.is_multiple_of(of) {
            return Ok(());
        }
        self.bad(field, value.to_string(), format!("it must be a multiple of {name}, {of} bytes"))
    }

    fn validate_geometry(&self) -> Result<(), NandError> {
        let g = &self.geometry;
        self.within("geometry.channels", g.channels.into(), 1, 256)?;
        self.within("geometry.dies_per_channel", g.dies_per_channel.into(), 1, 256)?;
        self.within("geometry.planes_per_die", g.planes_per_die.into(), 1, 16)?;
        if self.dies() > 4096 {
            let rule = format!("with {} channels that is more than 4096 dies", g.channels);
            return self.bad("geometry.dies_per_channel", g.dies_per_channel.to_string(), rule);
        }
        self.within("geometry.page_bytes", g.page_bytes, 512, 16 << 20)?;
        self.multiple("geometry.page_bytes", g.page_bytes, 512, "a sector")?;
        self.within("geometry.program_bytes", g.program_bytes, g.page_bytes, 16 << 20)?;
        self.multiple("geometry.program_bytes", g.program_bytes, g.page_bytes, "geometry.page_bytes")?;
        self.within("geometry.erase_block_bytes", g.erase_block_bytes, g.program_bytes, 1 << 40)?;
        let (field, of) = ("geometry.erase_block_bytes", "geometry.program_bytes");
        self.multiple(field, g.erase_block_bytes, g.program_bytes, of)
    }

    fn validate_times(&self) -> Result<(), NandError> {
        let (t, f, z) = (&self.timing, &self.firmware, &self.zones);
        // 10 s each, times 100000 by the scale: sums of a few thousand stay far from the end of a u64.
        for (field, value) in [
            ("timing.read_ns", t.read_ns),
            ("timing.read_4k_ns", t.read_4k_ns),
            ("timing.program_ns", t.program_ns),
            ("timing.erase_ns", t.erase_ns),
            ("firmware.read_ns", f.read_ns),
            ("firmware.read_4k_ns", f.read_4k_ns),
            ("firmware.write_ns", f.write_ns),
            ("firmware.write_per_4k_ns", f.write_per_4k_ns),
            ("firmware.append_ns", f.append_ns),
            ("firmware.manage_ns", f.manage_ns),
            ("firmware.flush_ns", f.flush_ns),
            ("firmware.buffer_read_ns", f.buffer_read_ns),
            ("zones.open_ns", z.open_ns),
            ("zones.close_ns", z.close_ns),
            ("zones.reset_ns", z.reset_ns),
            ("zones.finish_ns", z.finish_ns),
        ] {
            self.within(field, value, 0, 10_000_000_000)?;
        }
        for (field, value) in [
            ("timing.channel_bytes_per_s", t.channel_bytes_per_s),
            ("link.bytes_per_s", self.link.bytes_per_s),
        ] {
            if value != 0 && !(100_000..=1_000_000_000_000_000).contains(&value) {
                let rule = "it must be 0 (no limit) or 100000 to 10^15".to_owned();
                return self.bad(field, value.to_string(), rule);
            }
        }
        self.within("firmware.cores", f.cores.into(), 0, 256)?;
        if self.arbitration.kind == ArbitrationKind::RoundRobin && f.cores == 0 {
            let rule = "it needs firmware.cores of 1 or more (0 is no limit, and no queue waits)".to_owned();
            return self.bad("arbitration.kind", "round-robin".into(), rule);
        }
        Ok(())
    }

    fn validate_zones(&self) -> Result<(), NandError> {
        let z = &self.zones;
        if z.dies_per_zone != 0 && !self.dies().is_multiple_of(z.dies_per_zone) {
            let rule = format!("it must divide the {} dies (0 for all of them)", self.dies());
            return self.bad("zones.dies_per_zone", z.dies_per_zone.to_string(), rule);
        }
        let unit = self.unit_bytes();
        if z.buffer_bytes != 0 && !(unit..=unit.saturating_mul(1024)).contains(&z.buffer_bytes) {
            let rule = format!("it must be 0 (no buffer) or 1 to 1024 program units of {unit} bytes");
            return self.bad("zones.buffer_bytes", z.buffer_bytes.to_string(), rule);
        }
        if z.early_completion && z.buffer_bytes == 0 {
            let rule =
                "it needs zones.buffer_bytes (without a buffer, data is safe when programmed)".to_owned();
            return self.bad("zones.early_completion", "true".into(), rule);
        }
        Ok(())
    }
}
