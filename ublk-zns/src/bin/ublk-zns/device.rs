//! `add`, `create`, `recover` and `del`: what a device is, and bringing it up.

use crate::models::ModelArgs;
use bytesize::ByteSize;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use ublk_target::{
    Error, cli,
    lifecycle::{self, RunOptions, UsageError},
};
use ublk_zns::{
    ZnsConfig, ZnsDevice, ZnsError,
    engine::{CacheMode, DeviceOptions},
    front::{FrontOptions, RecoveryMode, ZnsTarget, media_path},
    media::{self, Media, MediaPlace},
};

/// What a device is. Options that are not given come from the device that is there, or else are the defaults.
#[derive(Args)]
pub(crate) struct Shape {
    /// Sum of all zone sizes [default: 4GiB]
    #[arg(long)]
    size: Option<ByteSize>,
    /// Zone size, a power of two [default: 64MiB]
    #[arg(long)]
    zone_size: Option<ByteSize>,
    /// Writable part of each zone [default: the zone size]
    #[arg(long)]
    zone_capacity: Option<ByteSize>,
    /// Conventional zones at the start [default: 0]
    #[arg(long, value_name = "ZONES")]
    conv_zones: Option<u32>,
    /// Maximum open zones, 0 for no limit [default: 14, or fewer if there are fewer zones]
    #[arg(long, value_name = "ZONES")]
    max_open: Option<u32>,
    /// Maximum active zones, 0 for no limit [default: 14, or fewer if there are fewer zones]
    #[arg(long, value_name = "ZONES")]
    max_active: Option<u32>,
    /// The longest zone append [default: 512KiB]
    #[arg(long)]
    max_append: Option<ByteSize>,
    /// Logical block: 512 to 4096 bytes [default: 4KiB]
    #[arg(long)]
    block_size: Option<ByteSize>,
}

/// A size that does not fit is far beyond what the rules allow, which then say so.
fn small(size: ByteSize) -> u32 {
    u32::try_from(size.as_u64()).unwrap_or(u32::MAX)
}

impl Shape {
    /// `base` with what was asked for in its place.
    pub(crate) fn config(&self, base: &ZnsConfig) -> ZnsConfig {
        let bytes = |size: Option<ByteSize>, base: u64| size.map_or(base, |size| size.as_u64());
        ZnsConfig {
            size_bytes: bytes(self.size, base.size_bytes),
            zone_size_bytes: bytes(self.zone_size, base.zone_size_bytes),
            zone_capacity_bytes: self.zone_capacity.map(|size| size.as_u64()).or(base.zone_capacity_bytes),
            conventional_zones: self.conv_zones.unwrap_or(base.conventional_zones),
            max_open_zones: self.max_open.or(base.max_open_zones),
            max_active_zones: self.max_active.or(base.max_active_zones),
            block_bytes: self.block_size.map_or(base.block_bytes, small),
            max_append_bytes: self.max_append.map_or(base.max_append_bytes, small),
        }
    }
}

/// `--media`.
#[derive(Clone)]
enum MediaChoice {
    Ram,
    File(PathBuf),
}

fn media_choice(text: &str) -> Result<MediaChoice, String> {
    match text.strip_prefix("file:") {
        Some("") => Err("file: needs a directory, as in file:/var/lib/zns0".into()),
        // The daemon changes its directory.
        Some(dir) => std::path::absolute(dir).map(MediaChoice::File).map_err(|e| e.to_string()),
        None if text == "ram" => Ok(MediaChoice::Ram),
        None => Err("it is ram or file:DIR".into()),
    }
}

#[derive(Args)]
pub(crate) struct Add {
    #[command(flatten)]
    common: cli::AddArgs,
    #[command(flatten)]
    shape: Shape,
    /// Where the data lives: "ram", kept while the machine runs, also over a daemon's death; or "file:DIR", kept in a
    /// directory, which is made if it is not there, and which `del` leaves
    #[arg(long, default_value = "ram", value_name = "ram|file:DIR", value_parser = media_choice)]
    media: MediaChoice,
    /// What a completed write means: "durable", or "volatile" until it is flushed [default: durable in memory, volatile in a
    /// directory, where durable costs a sync per write]
    #[arg(long, value_name = "MODE")]
    write_cache: Option<CacheMode>,
    /// What becomes of the requests that a daemon holds when it dies, once there is a new one: done by it, or failed
    #[arg(long, default_value = "reissue", value_name = "MODE")]
    recovery: RecoveryMode,
    #[command(flatten)]
    models: ModelArgs,
    /// How long before a completion is due its queue polls the clock, in microseconds: more is more punctual and costs
    /// processor time
    #[arg(long, default_value_t = 0, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u32).range(0..=1000))]
    spin_us: u32,
}

impl Add {
    fn options(&self) -> Result<FrontOptions, ZnsError> {
        let (media_dir, base) = match &self.media {
            MediaChoice::File(dir) if media::is_device(dir) => {
                (Some(dir.clone()), Media::probe(&MediaPlace::Dir(dir.clone()))?)
            }
            MediaChoice::File(dir) => (Some(dir.clone()), ZnsConfig::default()),
            MediaChoice::Ram => (None, ZnsConfig::default()),
        };
        let usual = if media_dir.is_some() { CacheMode::Volatile } else { CacheMode::Durable };
        Ok(FrontOptions {
            config: self.shape.config(&base),
            queues: self.common.queues,
            depth: self.common.depth,
            media_dir,
            cache: self.write_cache.unwrap_or(usual),
            recovery: self.recovery,
            models: self.models.models(self.common.queues)?,
            spin_ns: self.spin_us * 1000,
        })
    }
}

#[derive(Args)]
pub(crate) struct Create {
    /// The directory; it must be empty or not exist
    dir: PathBuf,
    #[command(flatten)]
    shape: Shape,
}

pub(crate) fn target_error(error: ZnsError) -> Error {
    match error {
        ZnsError::Config { .. } | ZnsError::Nand(_) | ZnsError::Reliability(_) => {
            Error::Target(Box::new(UsageError(error.to_string())))
        }
        other => Error::Target(Box::new(other)),
    }
}

fn serve(run: &RunOptions, options: FrontOptions) -> Result<(), Error> {
    let shown = |id| println!("/dev/ublkb{id}");
    // Checked here too, so that wrong options never get as far as a second process.
    let target = ZnsTarget::new(options, run.recover).map_err(target_error)?;
    let id = lifecycle::serve(run, || Ok(target), shown)?;
    if !run.foreground {
        shown(id);
    }
    Ok(())
}

pub(crate) fn add(args: &Add) -> Result<(), Error> {
    let options = args.options().map_err(target_error)?;
    serve(&args.common.run_options(json!(options)), options)
}

pub(crate) fn create(args: &Create) -> Result<(), Error> {
    let config = args.shape.config(&ZnsConfig::default());
    let options = DeviceOptions::new(config, MediaPlace::Dir(args.dir.clone()));
    ZnsDevice::create(&options).map_err(target_error)?;
    Ok(())
}

pub(crate) fn recover(args: &cli::RecoverArgs) -> Result<(), Error> {
    let saved = lifecycle::recoverable_options("zns", args.id)?;
    let options = serde_json::from_value(saved.clone())
        .map_err(|e| Error::NotRecoverable { id: args.id, why: format!("its options: {e}") })?;
    serve(&args.run_options(saved), options)
}

pub(crate) fn del(args: &cli::DelArgs) -> Result<(), Error> {
    let ids = match args.id {
        Some(id) => vec![id],
        None => lifecycle::list(Some("zns"))?.iter().map(|listed| listed.id).collect(),
    };
    let result = cli::del(args, Some("zns"));
    // A daemon that was killed could not remove its media.
    for id in ids {
        if !ublk_target::adapter::device_ids().contains(&id) {
            let _ = std::fs::remove_file(media_path(id));
        }
    }
    result
}
