//! The command line.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use nix::mount::MsFlags;
use zonefs_fuse::Error;
use zonefs_fuse::device::{Access, KernelZoned};
use zonefs_fuse::engine::{Clock, MkfsOptions, SystemClock, inspect, mkfs};
use zonefs_fuse::front::MountFlags;

use crate::{daemon, report};

/// How long a mount waits for a device that the last mount is still writing back to.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);
const TYPE: &str = "fuse.zonefs-fuse";

/// An option that makes no sense: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct AskedWrongly(String);

/// A file system on a zoned block device, mounted through FUSE. Files grow at their end only.
#[derive(Parser)]
#[command(
    name = "zonefs-fuse",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = "Example: zonefs-fuse mkfs /dev/ublkb0 && zonefs-fuse /dev/ublkb0 /mnt -o noatime\n\
                  Unmount with umount or fusermount3 -u; SIGTERM does it too. What fsync returned for, and \
                  everything 5 seconds after it was written, survives a crash.\n\
                  sync without a file and sync -f do not reach a FUSE file system (the kernel keeps syncfs and sync \
                  to itself): name the files, as in `sync FILE...`.\n\
                  umount returns before the last write-back: the process keeps the device until it has ended, so \
                  wait for that before the device is deleted (a mount waits by itself), as in\n  \
                  umount /mnt && while fuser -s /dev/ublkb0; do sleep 0.1; done; ublk-zns del 0"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    mount: MountArgs,
}

#[derive(Args)]
struct MountArgs {
    /// The zoned block device
    #[arg(required = true)]
    device: Option<PathBuf>,
    /// The directory to mount it on
    #[arg(required = true)]
    mountpoint: Option<PathBuf>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Comma-separated mount options: those of mount(8), allow_other, no_allow_other, no_default_permissions,
    /// commit=SECONDS (0: never), log=FILE (in the background; else /run/storlab/zonefs-DEVICE.log)
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Make a file system; everything on the device's sequential zones is lost
    #[command(after_help = "Example: zonefs-fuse mkfs --label scratch /dev/ublkb0")]
    Mkfs {
        /// The zoned block device
        device: PathBuf,
        /// Overwrite a file system of this kind
        #[arg(short, long)]
        force: bool,
        /// A name, at most 63 bytes
        #[arg(short = 'L', long, default_value = "")]
        label: String,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the metadata: superblock, how it was recovered, every inode and where it is
    #[command(after_help = "Example: zonefs-fuse dump /dev/ublkb0 --json | jq .files")]
    Dump(ReportArgs),
    /// Show the space: live, dead and free
    #[command(after_help = "Example: zonefs-fuse df /dev/ublkb0")]
    Df(ReportArgs),
    /// Show each zone: condition, how much is written, how much of it is live
    #[command(after_help = "Example: zonefs-fuse zones /dev/ublkb0")]
    Zones(ReportArgs),
}

#[derive(Args)]
struct ReportArgs {
    /// The zoned block device, or where it is mounted (then: the state of the last commit)
    device: PathBuf,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Does what the command line says.
pub(crate) fn run(name: &str, args: Vec<OsString>) -> anyhow::Result<()> {
    let cli = Cli::parse_from(args);
    match cli.command {
        Some(Command::Mkfs { device, force, label, json }) => {
            let device = KernelZoned::open(&device, Access::Exclusive)?;
            let options = MkfsOptions {
                force,
                label,
                uuid: new_uuid()?,
                now: SystemClock.now(),
                uid: nix::unistd::geteuid().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
            };
            report::mkfs(&mkfs(&device, &options)?, json)
        }
        Some(Command::Dump(args)) => look(&args, report::dump),
        Some(Command::Df(args)) => look(&args, report::df),
        Some(Command::Zones(args)) => look(&args, report::zones),
        None => {
            let (Some(device), Some(mountpoint)) = (cli.mount.device, cli.mount.mountpoint) else {
                return Err(AskedWrongly("a device and a mount point are needed".into()).into());
            };
            let request = MountRequest::new(&device, mountpoint, &cli.mount.options)?;
            daemon::mount(name, &request, cli.mount.foreground)
        }
    }
}

type Report = fn(&zonefs_fuse::engine::Inspection, bool) -> anyhow::Result<()>;

fn look(args: &ReportArgs, show: Report) -> anyhow::Result<()> {
    let path = if args.device.is_dir() {
        mounted_there(&args.device)?.with_context(|| {
            format!("{}: a directory where no zonefs-fuse file system is mounted", args.device.display())
        })?
    } else {
        args.device.clone()
    };
    let device = KernelZoned::open(&path, Access::Read)?;
    show(&inspect(&device)?, args.json)
}

/// Fields of /proc/self/mounts have spaces and backslashes as octal escapes.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, plain);
    }
    text
}

/// All mounts of this type: source and mount point.
fn mounts() -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let table = std::fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let ours = fields.filter_map(|fields| match fields[..] {
        [source, at, TYPE, ..] => Some((unescape(source).into(), unescape(at).into())),
        _ => None,
    });
    Ok(ours.collect())
}

fn mounted_there(dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
    Ok(mounts()?.into_iter().rfind(|(_, at)| *at == dir).map(|(source, _)| source))
}

fn new_uuid() -> anyhow::Result<[u8; 16]> {
    let mut uuid = [0; 16];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut uuid)).context("/dev/urandom")?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// A mount as it was asked for.
#[derive(Debug)]
pub(crate) struct MountRequest {
    pub(crate) device: PathBuf,
    pub(crate) mountpoint: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) flags: MountFlags,
    pub(crate) log: Option<PathBuf>,
}

impl MountRequest {
    fn new(device: &Path, mountpoint: PathBuf, options: &[String]) -> anyhow::Result<MountRequest> {
        let device = device.canonicalize().with_context(|| device.display().to_string())?;
        let flags = MountFlags { source: device.display().to_string(), ..MountFlags::default() };
        let mut request = MountRequest { device, mountpoint, read_only: false, flags, log: None };
        for option in options {
            request.option(option)?;
        }
        Ok(request)
    }

    fn option(&mut self, option: &str) -> anyhow::Result<()> {
        let flags = &mut self.flags.flags;
        let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
        match (name, value) {
            ("rw" | "ro", None) => {
                self.read_only = name == "ro";
                flags.set(MsFlags::MS_RDONLY, self.read_only);
            }
            ("suid" | "nosuid", None) => flags.set(MsFlags::MS_NOSUID, name == "nosuid"),
            ("dev" | "nodev", None) => flags.set(MsFlags::MS_NODEV, name == "nodev"),
            ("exec" | "noexec", None) => flags.set(MsFlags::MS_NOEXEC, name == "noexec"),
            ("atime" | "noatime", None) => flags.set(MsFlags::MS_NOATIME, name == "noatime"),
            ("diratime" | "nodiratime", None) => flags.set(MsFlags::MS_NODIRATIME, name == "nodiratime"),
            ("sync" | "async", None) => flags.set(MsFlags::MS_SYNCHRONOUS, name == "sync"),
            ("dirsync", None) => flags.insert(MsFlags::MS_DIRSYNC),
            ("allow_other", None) => self.flags.allow_other = true,
            ("no_allow_other", None) => self.flags.allow_other = false,
            ("default_permissions", None) => self.flags.default_permissions = true,
            ("no_default_permissions", None) => self.flags.default_permissions = false,
            ("commit", Some(value)) => {
                let seconds: u64 = value
                    .parse()
                    .map_err(|_| AskedWrongly(format!("-o {option}: seconds are a whole number")))?;
                self.flags.commit_interval = (seconds > 0).then(|| Duration::from_secs(seconds));
            }
            ("log", Some(file)) => {
                // The daemon changes to / before it opens it.
                let file = std::path::absolute(file).with_context(|| format!("-o {option}"))?;
                self.log = Some(file);
            }
            ("fsname", Some(source)) => self.flags.source = source.into(),
            // What mount(8) and fstab leave in the options, and nothing here depends on.
            (
                "" | "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "group" | "owner"
                | "nofail" | "_netdev" | "relatime" | "norelatime" | "strictatime" | "lazytime"
                | "nolazytime" | "silent" | "loud" | "subtype",
                _,
            ) => {}
            (other, _) if other.starts_with("x-") || other.starts_with("X-") => {}
            _ => return Err(AskedWrongly(format!("-o {option}: no such mount option")).into()),
        }
        Ok(())
    }

    /// Read-only too, nobody else may hold the device: a file's zones could be reset and used again meanwhile.
    fn access(&self) -> Access {
        if self.read_only { Access::ExclusiveRead } else { Access::Exclusive }
    }

    /// Opens the device; waits for the last mount to finish writing back, which `umount` does not wait for.
    pub(crate) fn open(&self) -> Result<Arc<KernelZoned>, Error> {
        let access = self.access();
        let start = Instant::now();
        loop {
            match KernelZoned::open(&self.device, access) {
                Err(Error::Busy { .. }) if start.elapsed() < BUSY_PATIENCE && !self.is_mounted() => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return other.map(Arc::new),
            }
        }
    }

    /// How often this source is mounted on a directory.
    pub(crate) fn mounts_on(&self, at: &Path) -> usize {
        let source = Path::new(&self.flags.source);
        mounts().map_or(0, |mounts| mounts.iter().filter(|(s, a)| s == source && a == at).count())
    }

    fn is_mounted(&self) -> bool {
        mounts().is_ok_and(|mounts| mounts.iter().any(|(source, _)| *source == self.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> anyhow::Result<MountRequest> {
        let options: Vec<String> = options.split(',').map(str::to_owned).collect();
        MountRequest::new(Path::new("/dev/null"), "/mnt".into(), &options)
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn what_mount_fuse_passes_is_understood() {
        let request = parse("rw,noatime,commit=3,dev,suid,x-systemd.automount,nofail").unwrap();
        assert_eq!(request.flags.flags, MsFlags::MS_NOATIME);
        assert_eq!(request.flags.commit_interval, Some(Duration::from_secs(3)));
        assert!(parse("ro").unwrap().read_only);
        assert_eq!(
            parse("log=zonefs.log").unwrap().log,
            Some(std::env::current_dir().unwrap().join("zonefs.log"))
        );
    }

    #[test]
    fn a_read_only_mount_holds_the_device_as_well() {
        assert_eq!(parse("ro").unwrap().access(), Access::ExclusiveRead);
        assert_eq!(parse("rw").unwrap().access(), Access::Exclusive);
    }

    #[test]
    fn an_unknown_option_is_asked_wrongly() {
        for option in ["turbo", "commit=soon", "commit"] {
            let error = parse(option).unwrap_err();
            assert!(error.is::<AskedWrongly>(), "{error}");
            assert!(error.to_string().contains(option));
        }
    }
}
