//! What is remembered of each device outside its daemon: /run/storlab/N.json, its control socket and its log.
//!
//! The invariant: the directory belongs to this user alone (0700), so that nobody else can plant a state file or talk
//! to a daemon; a file is replaced in one step, so that a reader never sees half of it.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Version of the state file; a file of another version is refused.
const VERSION: u32 = 1;

/// The directory of state files.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// What is remembered of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceRecord {
    version: u32,
    /// The number N of /dev/ublkbN.
    pub id: u32,
    /// The target's kind.
    pub target: String,
    /// The daemon's process id.
    pub pid: u32,
    /// When that process started, in clock ticks since boot: tells it from a later process with its number.
    pub pid_start_ticks: u64,
    /// The options it was added with, for `recover`.
    pub options: serde_json::Value,
}

impl DeviceRecord {
    /// The record of this process serving device `id`.
    pub fn of_this_process(id: u32, target: &str, options: serde_json::Value) -> Self {
        let pid = std::process::id();
        let pid_start_ticks = start_ticks(pid).unwrap_or(0);
        DeviceRecord { version: VERSION, id, target: target.to_owned(), pid, pid_start_ticks, options }
    }

    /// Whether both are of the same daemon's life.
    pub fn same_daemon(&self, other: &DeviceRecord) -> bool {
        (self.pid, self.pid_start_ticks) == (other.pid, other.pid_start_ticks)
    }

    /// Whether the daemon that wrote this record still runs.
    pub fn daemon_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.pid_start_ticks)
    }
}

/// Field 22 of /proc/PID/stat; the command name before it may hold spaces and parentheses.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

impl StateDir {
    /// The directory that `STORLAB_RUN_DIR` names, or /run/storlab; made if it is missing.
    ///
    /// # Errors
    /// [`Error::StateDir`] if somebody else could write in it.
    pub fn open() -> Result<StateDir> {
        let path = std::env::var_os("STORLAB_RUN_DIR").map_or("/run/storlab".into(), PathBuf::from);
        StateDir::at(&path)
    }

    /// The directory at `path`; made if it is missing.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub fn at(path: &Path) -> Result<StateDir> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(path, "making the directory", error));
            }
            _ => {}
        }
        let bad = |why: &str| Error::StateDir { path: path.to_owned(), why: why.to_owned() };
        let meta = fs::symlink_metadata(path).map_err(|e| failed(path, "looking at it", e))?;
        if !meta.is_dir() {
            return Err(bad("it is not a directory"));
        }
        if meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(bad("it belongs to another user"));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(bad("others may enter it"));
        }
        Ok(StateDir(path.to_owned()))
    }

    fn file(&self, id: u32) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }

    /// The control socket of device `id`.
    pub fn socket(&self, id: u32) -> PathBuf {
        self.0.join(format!("{id}.sock"))
    }

    /// The log of device `id`'s daemon.
    pub fn log(&self, id: u32) -> PathBuf {
        self.0.join(format!("{id}.log"))
    }

    /// Remembers a device.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, record: &DeviceRecord) -> Result<()> {
        let path = self.file(record.id);
        let fresh = path.with_extension("json.new");
        let text =
            serde_json::to_vec_pretty(record).map_err(|e| failed(&path, "encoding", io::Error::other(e)))?;
        let write = || -> io::Result<()> {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            io::Write::write_all(&mut file, &text)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|e| failed(&path, "writing", e))
    }

    /// What is remembered of device `id`, `None` if nothing is.
    ///
    /// # Errors
    /// [`Error::StateFormat`] for a file that is not one of ours.
    pub fn load(&self, id: u32) -> Result<Option<DeviceRecord>> {
        let path = self.file(id);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path, "reading", error)),
        };
        let bad = |why: String| Error::StateFormat { path: path.clone(), why };
        let record: DeviceRecord = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if record.version != VERSION {
            return Err(bad(format!("version {} where {VERSION} is known", record.version)));
        }
        if record.id != id {
            return Err(bad(format!("it is device {}'s", record.id)));
        }
        Ok(Some(record))
    }

    /// Forgets what `record` says, unless another daemon serves that number by now.
    pub fn forget_if(&self, record: &DeviceRecord) {
        if matches!(self.load(record.id), Ok(Some(now)) if now.same_daemon(record)) {
            self.forget(record.id);
        }
    }

    /// Forgets device `id`, its socket included; its log stays for reading.
    pub fn forget(&self, id: u32) {
        for path in [self.file(id), self.socket(id)] {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("{}: {error}", path.display());
            }
        }
    }

    /// The numbers of all remembered devices, in order.
    pub fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok())
            .collect();
        ids.sort_unstable();
        ids
    }
}

fn failed(path: &Path, what: &'static str, source: io::Error) -> Error {
    Error::State { path: path.to_owned(), what, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn dir() -> (tempfile::TempDir, StateDir) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(&tmp.path().join("state")).unwrap();
        (tmp, dir)
    }

    #[test]
    fn a_record_comes_back_as_it_was_and_is_gone_after_forget() {
        let (_tmp, dir) = dir();
        let record = DeviceRecord::of_this_process(7, "null", serde_json::json!({"size": 5}));
        dir.save(&record).unwrap();
        assert_eq!(dir.load(7).unwrap().unwrap(), record);
        assert_eq!(dir.ids(), [7]);
        dir.forget(7);
        assert_eq!(dir.load(7).unwrap(), None);
        dir.forget(7);
    }

    #[test]
    fn a_daemon_forgets_only_its_own_record() {
        let (_tmp, dir) = dir();
        let old = DeviceRecord::of_this_process(7, "null", serde_json::Value::Null);
        let mut new = old.clone();
        new.pid_start_ticks += 1;
        dir.save(&new).unwrap();
        dir.forget_if(&old);
        assert_eq!(dir.load(7).unwrap(), Some(new.clone()));
        dir.forget_if(&new);
        assert_eq!(dir.load(7).unwrap(), None);
    }

    #[test]
    fn this_process_is_alive_and_another_with_its_number_is_not() {
        let mut record = DeviceRecord::of_this_process(1, "null", serde_json::Value::Null);
        assert!(record.daemon_alive());
        record.pid_start_ticks += 1;
        assert!(!record.daemon_alive());
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let error = StateDir::at(&path).unwrap_err().to_string();
        assert!(error.contains("0700") && error.contains("others may enter"), "{error}");
    }

    #[test]
    fn a_link_in_the_directorys_place_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("link");
        std::os::unix::fs::symlink(tmp.path(), &path).unwrap();
        assert!(StateDir::at(&path).unwrap_err().to_string().contains("not a directory"));
    }

    #[test]
    fn garbage_in_a_state_file_is_an_error_that_names_the_file() {
        let (_tmp, dir) = dir();
        for garbage in ["", "{", "[]", "{\"version\":2}", "\u{0}\u{1}"] {
            fs::write(dir.file(3), garbage).unwrap();
            let error = dir.load(3).unwrap_err().to_string();
            assert!(error.contains("3.json"), "{error}");
        }
        let other = DeviceRecord::of_this_process(4, "null", serde_json::Value::Null);
        fs::write(dir.file(3), serde_json::to_vec(&other).unwrap()).unwrap();
        assert!(dir.load(3).unwrap_err().to_string().contains("device 4's"));
    }
}
