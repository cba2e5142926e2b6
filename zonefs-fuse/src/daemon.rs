//! From a mount request to a process that serves it.
//!
//! The parent forks before anything is opened, and waits: the child opens the device, recovers, mounts, and only
//! then lets the parent go, with its own verdict. So `mount` fails when the file system does. A device that does
//! not answer ends the wait, and the child with it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};
use zonefs_fuse::engine::{Fs, MountOptions, SystemClock};
use zonefs_fuse::front::{Mounted, mount as mount_front};

use crate::cli::MountRequest;

/// How long files may stay open after SIGTERM before the process goes anyway.
const LAST_FILES: Duration = Duration::from_secs(5);
/// How long a mount may take, recovery included.
const MOUNT_PATIENCE: Duration = Duration::from_secs(120);
/// How long a killed process may take to be gone; one that waits for a device cannot be killed.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// A log that has grown beyond this is started anew by the next mount.
const LOG_LIMIT_BYTES: u64 = 1 << 20;

/// Mounts; returns when the mount is live, or in the foreground when it is gone.
pub(crate) fn mount(name: &str, request: &MountRequest, foreground: bool) -> anyhow::Result<()> {
    let place = || request.mountpoint.display().to_string();
    let meta = std::fs::metadata(&request.mountpoint).with_context(place)?;
    if !meta.is_dir() {
        return Err(anyhow!("{}: not a directory", place()));
    }
    if foreground {
        return serve(request, |_| Ok(()));
    }
    let (verdict, told) = pipe().map(|(r, w)| (File::from(r), w)).context("pipe")?;
    // Resolved now: nothing may touch a mount that does not answer.
    let there = request.mountpoint.canonicalize().with_context(place)?;
    let mounted_before = request.mounts_on(&there);
    // SAFETY: the process has one thread here, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => {
            drop(told);
            let Some(text) = await_verdict(verdict, MOUNT_PATIENCE).context("waiting for the mount")? else {
                let ended = end(child);
                if request.mounts_on(&there) > mounted_before {
                    let _ = umount2(&there, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
                }
                let device = request.device.display();
                let (limit, what) =
                    (MOUNT_PATIENCE.as_secs(), if ended { "was ended" } else { "cannot be ended" });
                return Err(anyhow!(
                    "{device}: no answer for {limit} s; the mounting process, {child}, {what} (-f waits on)"
                ));
            };
            match text.split_first_char() {
                Some(('+', _)) => Ok(()),
                Some(('-', why)) => Err(anyhow!("{why}")),
                _ => Err(anyhow!("{}: the mounting process ended without a word", place())),
            }
        }
        ForkResult::Child => {
            drop(verdict);
            child(name, request, told)
        }
    }
}

/// What the child says until it closes its end; none when it takes longer than the limit.
fn await_verdict(mut verdict: File, limit: Duration) -> io::Result<Option<String>> {
    let (said, hear) = channel();
    std::thread::Builder::new().name("verdict".into()).spawn(move || {
        let mut text = String::new();
        let _ = said.send(verdict.read_to_string(&mut text).map(|_| text));
    })?;
    match hear.recv_timeout(limit) {
        Ok(text) => text.map(Some),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the waiting thread ended")),
    }
}

/// Kills a child; true when it is gone.
fn end(child: Pid) -> bool {
    if kill(child, Signal::SIGKILL).is_err() {
        return false;
    }
    let start = Instant::now();
    while start.elapsed() < KILL_PATIENCE {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(20)),
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
    false
}

/// Where the logs are when nobody says: next to those of the devices.
fn log_dir() -> PathBuf {
    std::env::var_os("STORLAB_RUN_DIR").map_or("/run/storlab".into(), PathBuf::from)
}

/// Opens a device's log in a directory that nobody else can write in; makes the directory when it is missing.
fn open_log(dir: &Path, device: &Path) -> io::Result<File> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(dir)?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(io::Error::other("not a directory that only this user can write in"));
    }
    let name = device.file_name().unwrap_or(device.as_os_str()).to_string_lossy();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(dir.join(format!("zonefs-{name}.log")))?;
    if log.metadata()?.len() > LOG_LIMIT_BYTES {
        log.set_len(0)?;
    }
    Ok(log)
}

trait SplitFirst {
    fn split_first_char(&self) -> Option<(char, &str)>;
}

impl SplitFirst for String {
    fn split_first_char(&self) -> Option<(char, &str)> {
        let mut chars = self.chars();
        chars.next().map(|first| (first, chars.as_str()))
    }
}

/// Never returns: the parent has told the caller already.
fn child(name: &str, request: &MountRequest, told: OwnedFd) -> ! {
    let mut told = Some(File::from(told));
    let result = serve(request, |_| {
        setsid().context("setsid")?;
        std::env::set_current_dir("/").context("/")?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
        let log = match &request.log {
            Some(path) => OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("-o log={}", path.display()))?,
            None => match open_log(&log_dir(), &request.device) {
                Ok(log) => log,
                Err(error) => {
                    log::warn!("{}: no log there ({error}), so there is none", log_dir().display());
                    null.try_clone().context("/dev/null")?
                }
            },
        };
        dup2_stdin(&null).context("dup2")?;
        dup2_stdout(&null).context("dup2")?;
        dup2_stderr(&log).context("dup2")?;
        if let Some(mut told) = told.take() {
            told.write_all(b"+").context("telling the parent")?;
        }
        Ok(())
    });
    match (result, told) {
        (Ok(()), _) => std::process::exit(0),
        (Err(error), Some(mut told)) => {
            let _ = told.write_all(format!("-{error:#}").as_bytes());
            std::process::exit(1)
        }
        (Err(error), None) => {
            log::error!("{name}: {error:#}");
            std::process::exit(1)
        }
    }
}

/// Mounts, says so, and serves until the end.
fn serve(request: &MountRequest, live: impl FnOnce(&Mounted) -> anyhow::Result<()>) -> anyhow::Result<()> {
    // Before any thread starts, so that all of them leave these signals to the one that waits for them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("sigprocmask")?;
    let device = request.open()?;
    let options = MountOptions { read_only: request.read_only };
    let fs = Arc::new(Fs::mount(device, Arc::new(SystemClock), options)?);
    let place = || format!("mounting on {}", request.mountpoint.display());
    let mounted = mount_front(&fs, &request.mountpoint, &request.flags).with_context(place)?;
    if let Err(error) = live(&mounted) {
        let _ = mounted.unmounter().unmount();
        return Err(error);
    }
    let (ended, end) = channel();
    on_signal(signals, fs.clone(), mounted.unmounter(), end)?;
    let session = mounted.wait();
    let last = fs.sync();
    drop(ended);
    session.context("serving FUSE")?;
    last.context("the last sync")?;
    Ok(())
}

fn on_signal(
    signals: SigSet,
    fs: Arc<Fs>,
    unmounter: zonefs_fuse::front::Unmounter,
    end: Receiver<()>,
) -> anyhow::Result<()> {
    let wait = move || {
        let Ok(signal) = signals.wait() else { return };
        log::info!("{signal}: unmounting");
        if let Err(error) = fs.sync() {
            log::error!("the last sync: {error}");
        }
        if let Err(error) = unmounter.unmount() {
            log::error!("unmounting: {error}");
        }
        // The main thread goes when the last file is closed; nobody can count on that.
        let _ = end.recv_timeout(LAST_FILES);
        let code = match fs.sync() {
            Ok(()) => 0,
            Err(error) => {
                log::error!("the last sync: {error}");
                1
            }
        };
        std::process::exit(code);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("a thread for signals")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_mounting_process_that_says_nothing_is_given_up_and_ended() {
        let (hear, _told) = pipe().unwrap();
        assert_eq!(await_verdict(File::from(hear), Duration::from_millis(50)).unwrap(), None);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(end(Pid::from_raw(child.id() as i32)));
        assert_eq!(child.wait().unwrap_err().raw_os_error(), Some(libc::ECHILD), "it is gone already");
    }

    #[test]
    fn a_verdict_is_all_that_was_said() {
        let (hear, told) = pipe().unwrap();
        let mut told = File::from(told);
        told.write_all(b"-no such").unwrap();
        told.write_all(b" device").unwrap();
        drop(told);
        let text = await_verdict(File::from(hear), Duration::from_secs(60)).unwrap();
        assert_eq!(text.as_deref(), Some("-no such device"));
    }

    #[test]
    fn the_log_of_a_device_is_in_a_directory_of_its_own_and_kept_from_mount_to_mount() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("storlab");
        for _ in 0..2 {
            open_log(&dir, Path::new("/dev/ublkb7")).unwrap().write_all(b"line\n").unwrap();
        }
        let path = dir.join("zonefs-ublkb7.log");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line\nline\n");
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        File::options().write(true).open(&path).unwrap().set_len(LOG_LIMIT_BYTES + 1).unwrap();
        open_log(&dir, Path::new("/dev/ublkb7")).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "one that grew too long starts anew");
    }

    #[test]
    fn no_log_is_opened_where_others_can_write() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("open");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        let device = Path::new("/dev/ublkb7");
        assert!(open_log(&dir, device).is_err());
        let link = base.path().join("link");
        symlink(base.path(), &link).unwrap();
        assert!(open_log(&link, device).is_err());
        assert!(open_log(Path::new("/proc/no/such"), device).is_err());
    }
}
