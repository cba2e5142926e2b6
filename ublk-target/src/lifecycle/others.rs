//! What other processes do with devices: delete, list, ask their daemons, find what `recover` needs.

use super::{COMMAND_LIMIT, DAEMON_PATIENCE, HOLDER_PATIENCE};
use crate::{
    adapter::{Control, DeviceInfo, DeviceState, device_ids},
    control,
    error::{Error, Result},
    state::{DeviceRecord, StateDir},
};
use serde_json::Value;
use std::{
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long `recover` waits for a daemon that was just killed.
const DYING_PATIENCE: Duration = Duration::from_secs(1);

/// Stops and deletes device `id`, from any process.
///
/// # Errors
/// [`Error::NoDevice`]; [`Error::InUse`] unless `force`; the kernel's refusal.
pub fn del(id: u32, force: bool) -> Result<()> {
    let state = StateDir::open()?;
    let mut control = Control::open(COMMAND_LIMIT)?;
    let Ok(info) = control.info(id) else {
        state.forget(id);
        return Err(Error::NoDevice(id));
    };
    let record = state.load(id).ok().flatten();
    if !force && in_use(id) {
        return Err(Error::InUse(id));
    }
    match control.stop(id) {
        Err(Error::NoDevice(_)) => {}
        other => other?,
    }
    // The daemon deletes the device itself once its queues have ended; without a daemon nobody does.
    let alive = record.as_ref().is_some_and(DeviceRecord::daemon_alive);
    let delete_at = Instant::now() + if alive { DAEMON_PATIENCE } else { Duration::ZERO };
    let leave_at = delete_at + HOLDER_PATIENCE;
    let mut deleted = false;
    while still_there(&mut control, &info) {
        if !deleted && Instant::now() >= delete_at {
            match control.delete(id) {
                Err(Error::NoDevice(_)) => break,
                other => other?,
            }
            deleted = true;
        }
        if Instant::now() >= leave_at {
            log::warn!(
                "device {id} is stopped, but something holds it open: its number is free once that is closed"
            );
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    state.forget(id);
    Ok(())
}

/// Whether the kernel still has this device: its node goes first, its number only when the last user has let go. A live
/// device of another daemon under its number is not this one.
fn still_there(control: &mut Control, device: &DeviceInfo) -> bool {
    match control.info(device.id) {
        Ok(now) => now.state != DeviceState::Live || now.pid == device.pid,
        Err(_) => false,
    }
}

/// A block device that is mounted or swapped on cannot be opened exclusively.
fn in_use(id: u32) -> bool {
    let open =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(format!("/dev/ublkb{id}"));
    matches!(open, Err(error) if error.raw_os_error() == Some(libc::EBUSY))
}

/// One line of `list`.
#[derive(Debug, serde::Serialize)]
pub struct Listed {
    /// The number N of /dev/ublkbN.
    pub id: u32,
    /// The block device.
    pub device: String,
    /// The target's kind, if it is one of ours.
    pub target: Option<String>,
    /// The driver's state.
    pub state: DeviceState,
    /// The daemon, if it runs.
    pub pid: Option<u32>,
    /// Capacity in bytes.
    pub size_bytes: u64,
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
}

/// All ublk devices of this machine; with `kind`, those of one target.
///
/// # Errors
/// [`Error::NoDriver`] and the like.
pub fn list(kind: Option<&str>) -> Result<Vec<Listed>> {
    let state = StateDir::open()?;
    let mut control = Control::open(COMMAND_LIMIT)?;
    let mut listed = Vec::new();
    for id in device_ids() {
        let record = state.load(id).unwrap_or_else(|error| {
            log::warn!("{error}");
            None
        });
        if kind.is_some() && record.as_ref().map(|record| record.target.as_str()) != kind {
            continue;
        }
        // A device may go away between the listing and the question.
        let (Ok(info), Ok(size_bytes)) = (control.info(id), control.size_bytes(id)) else { continue };
        listed.push(Listed {
            id,
            device: format!("/dev/ublkb{id}"),
            pid: record.as_ref().filter(|record| record.daemon_alive()).map(|record| record.pid),
            target: record.map(|record| record.target),
            state: info.state,
            size_bytes,
            queues: info.queues,
            depth: info.depth,
        });
    }
    Ok(listed)
}

/// Refuses a device that is known to be of another kind.
///
/// # Errors
/// [`Error::Refused`] naming its kind.
pub fn check_kind(kind: Option<&str>, id: u32) -> Result<()> {
    match (kind, StateDir::open()?.load(id)?) {
        (Some(kind), Some(record)) if record.target != kind => {
            let message = format!("it is a {} device, not a {kind} device", record.target);
            Err(Error::Refused { id, message })
        }
        _ => Ok(()),
    }
}

/// The control socket of device `id`, after checking that the device is `kind`'s, or anyone's with `None`.
fn socket<'k>(kind: impl Into<Option<&'k str>>, id: u32) -> Result<PathBuf> {
    let state = StateDir::open()?;
    match (state.load(id)?, kind.into()) {
        (Some(record), Some(kind)) if record.target != kind => {
            let message = format!("it is a {} device, not a {kind} device", record.target);
            Err(Error::Refused { id, message })
        }
        (Some(_), _) => Ok(state.socket(id)),
        (None, _) => Err(Error::NoDevice(id)),
    }
}

/// Asks device `id`'s daemon, after checking that the device is `kind`'s (with `None`, of any kind).
///
/// # Errors
/// [`Error::NoDevice`], [`Error::Daemon`], [`Error::Refused`].
pub fn ask<'k>(kind: impl Into<Option<&'k str>>, id: u32, request: &Value) -> Result<Value> {
    control::ask(&socket(kind, id)?, id, request)
}

/// As [`ask`], for a list that may be long: `each` gets its items as they come, and the answer is `None` then.
///
/// # Errors
/// As [`ask`], and what `each` says.
pub fn ask_each<'k>(
    kind: impl Into<Option<&'k str>>,
    id: u32,
    request: &Value,
    each: impl FnMut(Value) -> Result<()>,
) -> Result<Option<Value>> {
    control::ask_each(&socket(kind, id)?, id, request, each)
}

/// The options device `id` was added with, for `recover`.
///
/// # Errors
/// [`Error::NotRecoverable`] with the reason.
pub fn recoverable_options(kind: &str, id: u32) -> Result<Value> {
    let state = StateDir::open()?;
    // A daemon that was killed a moment ago may still be on its way out.
    let deadline = Instant::now() + DYING_PATIENCE;
    while state.load(id)?.is_some_and(|record| record.target == kind && record.daemon_alive())
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    let not = |why: String| Err(Error::NotRecoverable { id, why });
    match state.load(id)? {
        None if !device_ids().contains(&id) => Err(Error::NoDevice(id)),
        None => not("it is not a device of storlab".into()),
        Some(record) if record.target != kind => not(format!("it is a {} device", record.target)),
        Some(record) if record.daemon_alive() => {
            not(format!("its daemon (process {}) still runs", record.pid))
        }
        Some(_) if !device_ids().contains(&id) => {
            state.forget(id);
            not("the kernel no longer has it (a restart?): add it again".into())
        }
        Some(record) => Ok(record.options),
    }
}
