//! The mount: `mount(2)`, the session's threads, and the way out.
//!
//! `fuser` can mount too, but at the end of a session it unmounts by path, and may hit another mount that came there since;
//! so the system call is made here and `fuser` only gets the open `/dev/fuse`.

use super::fuse::{Front, MtdEntry};
use fuser::{Config, Session, SessionACL};
use nix::mount::{MntFlags, MsFlags};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The file system type in /proc/mounts.
const TYPE: &str = "fuse.spiflash-mtd";
/// Requests that are read side by side; the chips themselves take one frame after the other.
const THREADS: usize = 2;

/// How the directory is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What /proc/mounts names as the source.
    pub source: String,
    /// Whether other users than the mounting one may use it, as far as the files' modes let them.
    pub allow_other: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions { source: "spiflash-mtd".into(), allow_other: nix::unistd::geteuid().is_root() }
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
}

/// Mounts a directory with these MTDs. It answers when this returns.
///
/// # Errors
/// What mount(2) or the kernel's FUSE says; nothing is left mounted then.
pub fn mount(entries: Vec<MtdEntry>, mountpoint: &Path, options: &MountOptions) -> io::Result<Mounted> {
    let mountpoint = mountpoint.canonicalize()?;
    let mode = std::fs::metadata(&mountpoint)?.mode() & 0o170_000;
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let fd = fuse.as_raw_fd();
    let mut data = format!("fd={fd},rootmode={mode:o},user_id={uid},group_id={gid},default_permissions");
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some(options.source.as_str()), &mountpoint, Some(TYPE), flags, Some(data.as_str()))?;
    let result = serve(entries, fuse.into(), &mountpoint, options);
    if result.is_err() {
        let _ = nix::mount::umount2(&mountpoint, MntFlags::MNT_DETACH);
    }
    result
}

fn serve(
    entries: Vec<MtdEntry>,
    fuse: OwnedFd,
    mountpoint: &Path,
    options: &MountOptions,
) -> io::Result<Mounted> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let session = Session::from_fd(Front::new(entries), fuse, config.acl, config)?;
    let session = std::thread::Builder::new().name("mtd-fuse".into()).spawn(move || session.run())?;
    let device = std::fs::metadata(mountpoint)?.dev();
    let device = Arc::new(Mutex::new(Some(device)));
    Ok(Mounted { unmounter: Unmounter { mountpoint: mountpoint.to_owned(), device }, session })
}

impl Mounted {
    /// What takes the mount away.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Waits until it is unmounted, by whomever.
    ///
    /// # Errors
    /// What ended the session, when that was not an unmount.
    pub fn wait(self) -> io::Result<()> {
        let result = self.session.join().unwrap_or_else(|_| Err(io::Error::other("a FUSE thread panicked")));
        // From here on the path may be somebody else's.
        *self.unmounter.device.lock().unwrap_or_else(PoisonError::into_inner) = None;
        result
    }
}
