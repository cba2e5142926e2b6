//! Memory that outlives the daemon and is never swapped: a file on a tmpfs of the device's own, mounted `noswap`.
//!
//! A daemon that serves swap may be killed at any moment; what it had acknowledged must still be there for its successor.
//! A plain tmpfs would do, but for its pages being swapped out once nobody locks them, to the very device that nobody serves
//! then. `noswap` (Linux 6.4) rules that out without a second process that holds the memory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::Error;
use crate::memory::Memory;

/// The file in the mount.
const STATE: &str = "state";

/// The memory of one device.
#[derive(Debug)]
pub struct Durable {
    directory: PathBuf,
    file: File,
}

fn directory(id: u32) -> PathBuf {
    let run = std::env::var_os("STORLAB_RUN_DIR").map_or("/run/storlab".into(), PathBuf::from);
    run.join(format!("dpuswap-{id}"))
}

impl Durable {
    /// Makes the memory of device `id`: `bytes` of zeros. What a device of that number left behind is gone then.
    ///
    /// # Errors
    /// The tmpfs cannot be mounted (`noswap` needs Linux 6.4) or has no room.
    pub fn create(id: u32, bytes: usize) -> Result<Self, Error> {
        let directory = directory(id);
        remove(&directory);
        let failed = |what: &str| {
            let what = format!("{}: {what}", directory.display());
            move |source: io::Error| Error::System { what, source }
        };
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(failed("making the directory"))?;
        let size = (bytes as u64).next_multiple_of(1 << 20) + (1 << 20);
        let data = format!("noswap,mode=0700,size={size}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mounted = mount(Some("dpuswap"), &directory, Some("tmpfs"), flags, Some(data.as_str()));
        if let Err(errno) = mounted {
            let _ = fs::remove_dir(&directory);
            return Err(failed("mounting a tmpfs that is never swapped (Linux 6.4 has it)")(errno.into()));
        }
        let make = || -> io::Result<File> {
            let file = options().create_new(true).open(directory.join(STATE))?;
            // All of it now: a page that is first touched under pressure is too late.
            nix::fcntl::posix_fallocate(&file, 0, bytes as i64)?;
            Ok(file)
        };
        match make() {
            Ok(file) => Ok(Self { directory, file }),
            Err(source) => {
                remove(&directory);
                Err(failed(&format!("{bytes} bytes of memory for the device's tables and cache"))(source))
            }
        }
    }

    /// The memory that the last daemon of device `id` left.
    ///
    /// # Errors
    /// There is none.
    pub fn reopen(id: u32) -> Result<Self, Error> {
        let directory = directory(id);
        let path = directory.join(STATE);
        let file = options().open(&path).map_err(|source| Error::System {
            what: format!("{}: the memory that the last daemon left", path.display()),
            source,
        })?;
        Ok(Self { directory, file })
    }

    /// The mapping.
    ///
    /// # Errors
    /// The system's.
    pub fn memory(&self, bytes: usize) -> Result<Memory, Error> {
        Memory::shared(&self.file, bytes).map_err(|source| Error::System {
            what: format!("{}: mapping {bytes} bytes", self.directory.display()),
            source,
        })
    }

    /// Gives the memory back; what is mapped stays mapped.
    pub fn remove(&self) {
        remove(&self.directory);
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_CLOEXEC);
    options
}

fn remove(directory: &Path) {
    if umount2(directory, MntFlags::MNT_DETACH).is_ok() || directory.exists() {
        let _ = fs::remove_dir(directory);
    }
}

/// Gives back the memory of device `id`, which is gone.
pub fn forget(id: u32) {
    remove(&directory(id));
}

/// Numbers of the devices that have left memory here.
pub fn left_behind() -> Vec<u32> {
    let here = directory(0);
    let Some(entries) = here.parent().and_then(|run| fs::read_dir(run).ok()) else { return Vec::new() };
    let id_of = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("dpuswap-")?.parse().ok();
    entries.flatten().filter_map(id_of).collect()
}
