//! The mount itself: `mount(2)`, the session's threads, the periodic commit, and the way out.
//!
//! `fuser` can mount too, but at the end of a session it unmounts by path, and may hit another mount that came
//! there since; so the system call is made here and `fuser` only gets the open `/dev/fuse`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use nix::mount::{MntFlags, MsFlags};

use super::fuse::Front;
use super::guarded;
use crate::engine::Fs;

/// The file system type in /proc/mounts.
const TYPE: &str = "fuse.zonefs-fuse";
/// Requests that are answered side by side.
const THREADS: usize = 4;

/// How a file system is mounted.
#[derive(Clone, Debug)]
pub struct MountFlags {
    /// What /proc/mounts names as the source.
    pub source: String,
    /// Flags of mount(2).
    pub flags: MsFlags,
    /// Whether other users than the mounting one may use it.
    pub allow_other: bool,
    /// Whether the kernel checks permissions.
    pub default_permissions: bool,
    /// How often everything is made durable without being asked; none is never.
    pub commit_interval: Option<Duration>,
}

impl Default for MountFlags {
    fn default() -> Self {
        MountFlags {
            source: "zonefs-fuse".into(),
            flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            allow_other: nix::unistd::geteuid().is_root(),
            default_permissions: true,
            commit_interval: Some(Duration::from_secs(5)),
        }
    }
}

/// Takes a mount away, from any thread.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mountpoint: PathBuf,
    /// The mount's own device number: whatever else is mounted at the path is left alone.
    device: Arc<Mutex<Option<u64>>>,
}

impl Unmounter {
    /// Unmounts; when files are open the mount only leaves the tree. True when it was still there.
    ///
    /// # Errors
    /// What umount2(2) says.
    pub fn unmount(&self) -> io::Result<bool> {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ours) = *device else { return Ok(false) };
        if std::fs::metadata(&self.mountpoint)?.dev() != ours {
            return Ok(false);
        }
        match nix::mount::umount2(&self.mountpoint, MntFlags::UMOUNT_NOFOLLOW) {
            Err(nix::Error::EBUSY) => {
                nix::mount::umount2(&self.mountpoint, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
            }
            other => other?,
        }
        *device = None;
        Ok(true)
    }
}

/// A live mount.
#[derive(Debug)]
pub struct Mounted {
    unmounter: Unmounter,
    session: JoinHandle<io::Result<()>>,
    committer: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Mounts a file system. It answers when this returns.
///
/// # Errors
/// What mount(2) or the kernel's FUSE says; nothing is left mounted then.
pub fn mount(fs: &Arc<Fs>, mountpoint: &Path, options: &MountFlags) -> io::Result<Mounted> {
    let mountpoint = mountpoint.canonicalize()?;
    let meta = std::fs::metadata(&mountpoint)?;
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={}",
        fuse.as_raw_fd(),
        meta.mode() & 0o170_000,
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    if options.default_permissions {
        data.push_str(",default_permissions");
    }
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let source = options.source.as_str();
    nix::mount::mount(Some(source), &mountpoint, Some(TYPE), options.flags, Some(data.as_str()))?;
    let result = serve(fs, fuse, &mountpoint, options);
    if result.is_err() {
        let _ = nix::mount::umount2(&mountpoint, MntFlags::MNT_DETACH);
    }
    result
}

fn serve(fs: &Arc<Fs>, fuse: File, mountpoint: &Path, options: &MountFlags) -> io::Result<Mounted> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let session = Session::from_fd(Front::new(fs.clone()), OwnedFd::from(fuse), config.acl, config)?;
    let session = std::thread::Builder::new().name("fuse".into()).spawn(move || session.run())?;
    let device = std::fs::metadata(mountpoint)?.dev();
    let unmounter =
        Unmounter { mountpoint: mountpoint.to_owned(), device: Arc::new(Mutex::new(Some(device))) };
    let committer = options.commit_interval.map(|interval| commit_every(fs, interval)).transpose()?;
    Ok(Mounted { unmounter, session, committer })
}

fn commit_every(fs: &Arc<Fs>, interval: Duration) -> io::Result<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = channel();
    let fs = fs.clone();
    let thread = std::thread::Builder::new().name("commit".into()).spawn(move || {
        while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            if fs.read_only_reason().is_none()
                && let Err(error) = guarded("periodic commit", || fs.sync())
            {
                log::error!("periodic commit: {error}");
            }
        }
    })?;
    Ok((stop, thread))
}

impl Mounted {
    /// What takes the mount away.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Waits until it is unmounted, by whomever. Everything is durable when this returns without an error of
    /// the file system in the log.
    ///
    /// # Errors
    /// What ended the session, when that was not an unmount.
    pub fn wait(self) -> io::Result<()> {
        let result = self.session.join().unwrap_or_else(|_| Err(io::Error::other("a FUSE thread panicked")));
        // From here on the path may be somebody else's.
        *self.unmounter.device.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some((stop, thread)) = self.committer {
            drop(stop);
            let _ = thread.join();
        }
        result
    }
}
