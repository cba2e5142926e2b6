//! Everything that can go wrong with a ublk device's lifecycle, each naming the thing, the place and the remedy.

use std::{io, path::PathBuf};

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ublk driver is not loaded or not built.
    #[error(
        "/dev/ublk-control is missing: load the driver with `modprobe ublk_drv` (Linux 6.6 or later, CONFIG_BLK_DEV_UBLK)"
    )]
    NoDriver,
    /// The control device could not be opened.
    #[error("cannot open /dev/ublk-control: {0} (run as root)")]
    OpenControl(#[source] io::Error),
    /// A control command was refused by the kernel.
    #[error("device {id}: the kernel refused {command}: {source}")]
    Control {
        /// The command, as in the kernel's `include/uapi/linux/ublk_cmd.h`.
        command: &'static str,
        /// The device, or "new".
        id: String,
        /// The kernel's errno.
        source: io::Error,
    },
    /// A control command did not return in time.
    #[error("device {id}: {command} did not finish within {seconds} s; the kernel log (dmesg) may say why")]
    Timeout {
        /// The command.
        command: &'static str,
        /// The device, or "new".
        id: String,
        /// The limit.
        seconds: u64,
    },
    /// A device's description breaks a rule of the kernel's.
    #[error("{field} is {value}: {rule}")]
    Spec {
        /// The option or field.
        field: &'static str,
        /// What it was.
        value: String,
        /// What would be right.
        rule: String,
    },
    /// The running kernel lacks a feature.
    #[error("this kernel's ublk driver lacks {feature} (it has {has:#x}): {needs}")]
    MissingFeature {
        /// The feature flag.
        feature: &'static str,
        /// The driver's feature mask.
        has: u64,
        /// Which kernel has it.
        needs: &'static str,
    },
    /// There is no such device.
    #[error("there is no ublk device {0} (`list` shows those there are)")]
    NoDevice(u32),
    /// The number is taken.
    #[error("ublk device {0} exists already: choose another --id, or delete it first")]
    IdTaken(u32),
    /// The device is mounted, swapped on or held open.
    #[error(
        "/dev/ublkb{0} is in use (mounted, swapped on or opened exclusively): unmount or swapoff first, or use --force"
    )]
    InUse(u32),
    /// The device cannot be recovered.
    #[error("device {id} cannot be recovered: {why}")]
    NotRecoverable {
        /// The device.
        id: u32,
        /// Why.
        why: String,
    },
    /// The state directory or a file in it.
    #[error("{path}: {what}: {source}")]
    State {
        /// Which file.
        path: PathBuf,
        /// Doing what.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A state file that does not parse.
    #[error("{path}: not a state file of storlab: {why}; remove it if the device is gone")]
    StateFormat {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The state directory is not ours alone.
    #[error("{path} must be a directory of this user with mode 0700: {why}")]
    StateDir {
        /// Which directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Talking to a device's daemon.
    #[error("device {id}: its daemon does not answer: {source}")]
    Daemon {
        /// The device.
        id: u32,
        /// Why.
        source: io::Error,
    },
    /// The daemon answered with an error.
    #[error("device {id}: {message}")]
    Refused {
        /// The device.
        id: u32,
        /// What it said.
        message: String,
    },
    /// The background process failed before the device was live.
    #[error("{0}")]
    Child(String),
    /// A queue could not be opened or stopped serving.
    #[error("device {id} queue {queue}: {what}: {source}")]
    Queue {
        /// The device.
        id: u32,
        /// The queue.
        queue: u16,
        /// Doing what.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// Doing what.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The target itself failed to start.
    #[error("{0}")]
    Target(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether the fault is in what was asked (exit status 2) rather than in doing it (1).
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::Spec { .. })
    }

    /// Wraps the last errno of a failed system call.
    pub(crate) fn last(what: &'static str) -> Self {
        Error::System { what, source: io::Error::last_os_error() }
    }
}
