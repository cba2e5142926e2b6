//! The kernel's ublk ABI, and the only module that names libublk.
//!
//! libublk 0.4.8 gives the ABI's types and numbers and page-aligned buffers. Its control and queue objects are not
//! used; what they do wrong for a daemon, and what this module does instead:
//!
//! | libublk 0.4.8 | here |
//! |---|---|
//! | the control ring is a thread-local; using a `UblkCtrl` on another thread panics | [`Control`] owns its ring |
//! | `EBUSY` from a control command is returned as success (`Ok(-16)`) | every negative result is an error |
//! | a signal while a command waits makes it return `EAGAIN`, and its late answer is taken for the next command's | `Control::command` waits for its own answer, across signals |
//! | (the kernel's) a daemon that is the last process of a mount namespace with its device mounted waits for itself | said in [`crate::daemon`] |
//! | no limit on how long a command may take; `ADD_DEV` and `START_DEV` have hung on some kernels | each command has a deadline |
//! | flags it does not list are refused | flags go to the kernel, which refuses what it lacks |
//! | state in /run/ublksrvd, made with mode 0777, and noise on stderr when it is missing | [`crate::state`], mode 0700 |
//! | queue rings lack `SINGLE_ISSUER`, `DEFER_TASKRUN` | `IoQueue` sets both |
//! | its default parameters give 4 KiB as the optimal I/O size, which Linux 7 takes for a limit | `params` gives the longest request |
//! | `unwrap` and `assert` on ring errors on the I/O path | errors end the queue, which fails its requests |
//!
//! Sources: Linux `Documentation/block/ublk.rst`, `include/uapi/linux/ublk_cmd.h`, `drivers/block/ublk_drv.c`.

mod params;
mod queue;

pub use queue::CharDevice;
pub(crate) use queue::{Event, IoQueue, Tags};

use crate::{
    error::{Error, Result},
    spec::{DeviceSpec, SECTOR_BYTES},
};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use libublk::sys;
use params::{flags, params};
use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::Path,
    time::{Duration, Instant},
};

/// How long a number may stay taken after its device is gone.
const REUSE_PATIENCE: Duration = Duration::from_secs(2);
const CONTROL_PATH: &str = "/dev/ublk-control";

/// Names of the driver's feature bits, in order (`UBLK_F_*`).
pub const FEATURES: [(&str, u64); 20] = [
    ("SUPPORT_ZERO_COPY", 1 << 0),
    ("URING_CMD_COMP_IN_TASK", 1 << 1),
    ("NEED_GET_DATA", 1 << 2),
    ("USER_RECOVERY", 1 << 3),
    ("USER_RECOVERY_REISSUE", 1 << 4),
    ("UNPRIVILEGED_DEV", 1 << 5),
    ("CMD_IOCTL_ENCODE", 1 << 6),
    ("USER_COPY", 1 << 7),
    ("ZONED", 1 << 8),
    ("USER_RECOVERY_FAIL_IO", 1 << 9),
    ("UPDATE_SIZE", 1 << 10),
    ("AUTO_BUF_REG", 1 << 11),
    ("QUIESCE", 1 << 12),
    ("PER_IO_DAEMON", 1 << 13),
    ("BUF_REG_OFF_DAEMON", 1 << 14),
    ("BATCH_IO", 1 << 15),
    ("INTEGRITY", 1 << 16),
    ("SAFE_STOP_DEV", 1 << 17),
    ("NO_AUTO_PART_SCAN", 1 << 18),
    ("SHMEM_ZC", 1 << 19),
];

/// A device's state in the driver (`UBLK_S_DEV_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// Added, not started, or stopped.
    Dead,
    /// Serving I/O.
    Live,
    /// Its daemon died; requests wait for `recover`.
    Quiesced,
    /// Its daemon died; requests fail until `recover`.
    FailIo,
    /// A state this crate does not know.
    Unknown,
}

/// What the driver says of a device.
#[derive(Debug, Clone, Copy)]
pub struct DeviceInfo {
    /// The number N of /dev/ublkbN.
    pub id: u32,
    /// Its state.
    pub state: DeviceState,
    /// The daemon's process id, -1 when there is none.
    pub pid: i32,
    /// Hardware queues (the kernel caps them at the number of CPUs).
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// The longest request in bytes.
    pub max_io_bytes: u32,
    /// `UBLK_F_*` in force.
    pub flags: u64,
}

impl DeviceInfo {
    fn from_kernel(info: &sys::ublksrv_ctrl_dev_info) -> Self {
        DeviceInfo {
            id: info.dev_id,
            state: match u32::from(info.state) {
                sys::UBLK_S_DEV_DEAD => DeviceState::Dead,
                sys::UBLK_S_DEV_LIVE => DeviceState::Live,
                sys::UBLK_S_DEV_QUIESCED => DeviceState::Quiesced,
                sys::UBLK_S_DEV_FAIL_IO => DeviceState::FailIo,
                _ => DeviceState::Unknown,
            },
            pid: info.ublksrv_pid,
            queues: info.nr_hw_queues,
            depth: info.queue_depth,
            max_io_bytes: info.max_io_buf_bytes,
            flags: info.flags,
        }
    }

    /// Whether a new daemon may take the device over.
    pub fn recoverable(&self) -> bool {
        self.flags & u64::from(sys::UBLK_F_USER_RECOVERY) != 0
    }
}

/// The driver's control device.
pub struct Control {
    file: File,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    token: u64,
    limit: Duration,
}

impl Control {
    /// Opens the control device; each command may then take up to `limit`.
    ///
    /// # Errors
    /// [`Error::NoDriver`] without the driver, [`Error::OpenControl`] without the right to use it.
    pub fn open(limit: Duration) -> Result<Control> {
        if !Path::new(CONTROL_PATH).exists() {
            return Err(Error::NoDriver);
        }
        let file =
            OpenOptions::new().read(true).write(true).open(CONTROL_PATH).map_err(Error::OpenControl)?;
        let ring = IoUring::builder()
            .build(4)
            .map_err(|source| Error::System { what: "making the control io_uring", source })?;
        Ok(Control { file, ring, token: 0, limit })
    }

    /// Sends one command and waits for its answer.
    fn command(
        &mut self,
        name: &'static str,
        op: u32,
        id: Option<u32>,
        fill: impl FnOnce(&mut sys::ublksrv_ctrl_cmd),
    ) -> Result<i32> {
        let mut cmd = sys::ublksrv_ctrl_cmd {
            dev_id: id.unwrap_or(u32::MAX),
            queue_id: u16::MAX,
            ..Default::default()
        };
        fill(&mut cmd);
        let shown = || id.map_or("new".into(), |id| id.to_string());
        let system = |source| Error::System { what: "submitting a control command", source };
        self.token += 1;
        let mut bytes = [0u8; 80];
        // SAFETY: the command is 32 bytes of plain integers without padding, the SQE's space is 80 bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(&cmd).cast::<u8>(),
                bytes.as_mut_ptr(),
                size_of_val(&cmd),
            );
        }
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), op)
            .cmd(bytes)
            .build()
            .user_data(self.token);
        // SAFETY: what the command points at outlives it: `exchange` owns it, and gives it up when a command times out.
        unsafe { self.ring.submission().push(&entry) }.map_err(|full| system(io::Error::other(full)))?;
        let deadline = Instant::now() + self.limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let time = types::Timespec::from(left);
            let args = types::SubmitArgs::new().timespec(&time);
            match self.ring.submitter().submit_with_args(1, &args) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ETIME | libc::EINTR) => {}
                    _ => return Err(system(error)),
                },
            }
            while let Some(answer) = self.ring.completion().next() {
                if answer.user_data() != self.token {
                    continue; // the late answer of a command that timed out
                }
                return match answer.result() {
                    0.. => Ok(answer.result()),
                    errno => Err(Error::Control {
                        command: name,
                        id: shown(),
                        source: io::Error::from_raw_os_error(-errno),
                    }),
                };
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout { command: name, id: shown(), seconds: self.limit.as_secs() });
            }
        }
    }

    /// Sends one command with a buffer that the kernel reads or fills, and gives the buffer back. After a time-out the
    /// kernel may still write to it, so that it is never freed then.
    fn exchange<T>(
        &mut self,
        name: &'static str,
        op: u32,
        id: Option<u32>,
        buffer: T,
        fill: impl FnOnce(&mut sys::ublksrv_ctrl_cmd),
    ) -> Result<T> {
        let mut buffer = Box::new(buffer);
        let at = std::ptr::from_mut(&mut *buffer) as u64;
        let sent = self.command(name, op, id, |cmd| {
            cmd.addr = at;
            cmd.len = size_of::<T>() as u16;
            fill(cmd);
        });
        match sent {
            Ok(_) => Ok(*buffer),
            Err(error @ Error::Timeout { .. }) => {
                Box::leak(buffer);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The driver's feature mask (`UBLK_F_*`).
    ///
    /// # Errors
    /// The kernel's, if it is older than 6.5.
    pub fn features(&mut self) -> Result<u64> {
        self.exchange("GET_FEATURES", sys::UBLK_U_CMD_GET_FEATURES, None, 0u64, |_| {})
    }

    /// Adds a device as `spec` says and returns what it became.
    ///
    /// # Errors
    /// [`Error::MissingFeature`], [`Error::IdTaken`], or the kernel's refusal.
    pub fn add(&mut self, id: Option<u32>, spec: &DeviceSpec) -> Result<DeviceInfo> {
        spec.validate()?;
        let flags = flags(spec);
        self.check_features(flags)?;
        let wish = sys::ublksrv_ctrl_dev_info {
            nr_hw_queues: spec.queues,
            queue_depth: spec.depth,
            max_io_buf_bytes: spec.max_io_bytes,
            dev_id: id.unwrap_or(u32::MAX),
            flags,
            ..Default::default()
        };
        let deadline = Instant::now() + REUSE_PATIENCE;
        loop {
            let added = self.exchange("ADD_DEV", sys::UBLK_U_CMD_ADD_DEV, id, wish, |_| {});
            match (added, id) {
                (Ok(info), _) => return Ok(DeviceInfo::from_kernel(&info)),
                (Err(Error::Control { source, .. }), Some(id))
                    if source.raw_os_error() == Some(libc::EEXIST) =>
                {
                    // The number of a deleted device is free a moment after its node is gone.
                    if device_ids().contains(&id) || Instant::now() >= deadline {
                        return Err(Error::IdTaken(id));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                (Err(error), _) => return Err(error),
            }
        }
    }

    fn check_features(&mut self, wanted: u64) -> Result<()> {
        let has = self.features()?;
        match FEATURES.iter().find(|(_, bit)| wanted & bit != 0 && has & bit == 0) {
            Some(("ZONED", _)) => Err(Error::MissingFeature {
                feature: "ZONED",
                has,
                needs: "Linux 6.6 or later built with CONFIG_BLK_DEV_ZONED",
            }),
            Some((feature, _)) => Err(Error::MissingFeature { feature, has, needs: "Linux 6.6 or later" }),
            None => Ok(()),
        }
    }

    /// Tells the kernel the device's parameters; between [`Control::add`] and [`Control::start`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_params(&mut self, id: u32, spec: &DeviceSpec) -> Result<()> {
        self.exchange("SET_PARAMS", sys::UBLK_U_CMD_SET_PARAMS, Some(id), params(spec), |_| {})?;
        Ok(())
    }

    /// The device's capacity in bytes, as the kernel was told.
    ///
    /// # Errors
    /// [`Error::NoDevice`], or the kernel's refusal.
    pub fn size_bytes(&mut self, id: u32) -> Result<u64> {
        let empty = sys::ublk_params { len: size_of::<sys::ublk_params>() as u32, ..Default::default() };
        let params = self
            .exchange("GET_PARAMS", sys::UBLK_U_CMD_GET_PARAMS, Some(id), empty, |_| {})
            .map_err(|error| no_device(error, id))?;
        Ok(params.basic.dev_sectors.saturating_mul(SECTOR_BYTES))
    }

    /// What the driver says of device `id`.
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub fn info(&mut self, id: u32) -> Result<DeviceInfo> {
        let empty = sys::ublksrv_ctrl_dev_info::default();
        let info = self
            .exchange("GET_DEV_INFO", sys::UBLK_U_CMD_GET_DEV_INFO, Some(id), empty, |_| {})
            .map_err(|error| no_device(error, id))?;
        Ok(DeviceInfo::from_kernel(&info))
    }

    /// The CPUs that submit to queue `queue`, as a mask for `sched_setaffinity`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn queue_affinity(&mut self, id: u32, queue: u16) -> Result<libc::cpu_set_t> {
        // SAFETY: an all-zero cpu_set_t is the empty set.
        let empty: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        let op = sys::UBLK_U_CMD_GET_QUEUE_AFFINITY;
        self.exchange("GET_QUEUE_AFFINITY", op, Some(id), empty, |cmd| cmd.data = [u64::from(queue)])
    }

    /// Starts the device: /dev/ublkbN appears. All queues must be fetching. The kernel reads the partition table and
    /// the zone report before this returns.
    ///
    /// # Errors
    /// The kernel's refusal, or [`Error::Timeout`].
    pub fn start(&mut self, id: u32) -> Result<()> {
        let pid = u64::from(std::process::id());
        self.command("START_DEV", sys::UBLK_U_CMD_START_DEV, Some(id), |cmd| cmd.data = [pid])?;
        Ok(())
    }

    /// Stops the device: /dev/ublkbN goes away after its last request.
    ///
    /// # Errors
    /// [`Error::NoDevice`], the kernel's refusal, or [`Error::Timeout`].
    pub fn stop(&mut self, id: u32) -> Result<()> {
        self.command("STOP_DEV", sys::UBLK_U_CMD_STOP_DEV, Some(id), |_| {})
            .map_err(|error| no_device(error, id))?;
        Ok(())
    }

    /// Deletes a stopped device. It is gone when its last user has closed it, which this does not wait for where the
    /// kernel can do without (Linux 6.9).
    ///
    /// # Errors
    /// [`Error::NoDevice`], the kernel's refusal, or [`Error::Timeout`].
    pub fn delete(&mut self, id: u32) -> Result<()> {
        let sent = self.command("DEL_DEV_ASYNC", sys::UBLK_U_CMD_DEL_DEV_ASYNC, Some(id), |_| {});
        let sent = match sent {
            Err(Error::Control { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.command("DEL_DEV", sys::UBLK_U_CMD_DEL_DEV, Some(id), |_| {})
            }
            sent => sent,
        };
        sent.map(drop).map_err(|error| no_device(error, id))
    }

    /// Begins to take over a device whose daemon died; waits for the kernel to notice the death.
    ///
    /// # Errors
    /// [`Error::NotRecoverable`] when it is not waiting for a new daemon.
    pub fn start_recovery(&mut self, id: u32) -> Result<()> {
        let deadline = Instant::now() + self.limit;
        loop {
            let sent =
                self.command("START_USER_RECOVERY", sys::UBLK_U_CMD_START_USER_RECOVERY, Some(id), |_| {});
            match sent {
                Ok(_) => return Ok(()),
                Err(Error::Control { source, .. })
                    if source.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(Error::Control { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                    return Err(Error::NotRecoverable { id, why: "its daemon still runs".into() });
                }
                Err(Error::Control { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                    let why = "it was not added with recovery".into();
                    return Err(Error::NotRecoverable { id, why });
                }
                Err(error) => return Err(no_device(error, id)),
            }
        }
    }

    /// Completes a recovery: all queues must be fetching.
    ///
    /// # Errors
    /// The kernel's refusal, or [`Error::Timeout`].
    pub fn end_recovery(&mut self, id: u32) -> Result<()> {
        let pid = u64::from(std::process::id());
        self.command("END_USER_RECOVERY", sys::UBLK_U_CMD_END_USER_RECOVERY, Some(id), |cmd| {
            cmd.data = [pid];
        })?;
        Ok(())
    }
}

/// The driver answers an unknown number with EINVAL or ENODEV, depending on the command and kernel.
fn no_device(error: Error, id: u32) -> Error {
    match &error {
        Error::Control { source, .. }
            if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT))
                && !Path::new(&format!("/sys/class/ublk-char/ublkc{id}")).exists() =>
        {
            Error::NoDevice(id)
        }
        _ => error,
    }
}

/// The numbers of all ublk devices on this machine, in order.
pub fn device_ids() -> Vec<u32> {
    let mut ids: Vec<u32> = std::fs::read_dir("/sys/class/ublk-char")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok())
        .collect();
    ids.sort_unstable();
    ids
}
