//! What the system tests share: running commands under a time limit, and devices that go away with their test.
//!
//! The invariant: nothing here waits without a limit. A hang is the failure these tests look for, so it must end as
//! one, with what was said until then.

use serde_json::Value;
use std::{
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A finished command.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command line, for messages.
    pub line: String,
    /// Exit status; `None` when it was killed by a signal or the limit.
    pub status: Option<i32>,
    /// Whether it was ended at the limit.
    pub timed_out: bool,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Outcome {
    /// The output of a command that must succeed.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert!(self.status == Some(0), "{self:#?}");
        self.out.trim_end()
    }

    /// The one line on standard error of a command that must fail with `status`.
    ///
    /// # Panics
    /// When it succeeded, hung, or said more or less than one line.
    #[track_caller]
    pub fn refused(&self, status: i32) -> &str {
        assert!(self.status == Some(status), "expected exit status {status}: {self:#?}");
        let line = self.err.trim_end();
        assert!(!line.is_empty() && !line.contains('\n'), "expected one line: {self:#?}");
        line
    }

    /// The report of a command that must succeed.
    ///
    /// # Panics
    /// When it did not, or did not print JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(self.ok()).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// How slow this kernel is compared with a usual machine: emulation needs more patience.
fn patience() -> u32 {
    let emulated = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU TCG"));
    if emulated { 6 } else { 2 }
}

/// Runs `program args...` (a binary of this workspace by its name, or any other) for at most `seconds`, more on slow
/// kernels.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn run(seconds: u32, program: &str, args: &[&str]) -> Outcome {
    let line = format!("{program} {}", args.join(" "));
    let mut command = Command::new(binary(program));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
    let out = collect(child.stdout.take());
    let err = collect(child.stderr.take());
    let (status, timed_out) = wait(&mut child, Duration::from_secs((seconds * patience()).into()));
    // What still holds the pipes after the command ended (a daemon) must not hold the test.
    let text = |from: Receiver| from.recv_timeout(Duration::from_secs(5)).unwrap_or_default();
    Outcome { line, status, timed_out, out: text(out), err: text(err) }
}

/// Runs a shell script for at most `seconds`.
#[track_caller]
pub fn sh(seconds: u32, script: &str) -> Outcome {
    run(seconds, "bash", &["-c", &format!("set -euo pipefail; {script}")])
}

type Receiver = std::sync::mpsc::Receiver<String>;

fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // An error ends the text early; the status tells the rest.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}

fn wait(child: &mut Child, limit: Duration) -> (Option<i32>, bool) {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return (status.code(), false),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let group = nix::unistd::Pid::from_raw(child.id() as i32);
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                return (None, true);
            }
        }
    }
}

/// Waits until `check` holds, for at most `seconds`, more on slow kernels.
///
/// # Panics
/// When it does not come to hold.
#[track_caller]
pub fn until(seconds: u32, what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs((seconds * patience()).into());
    while !check() {
        assert!(Instant::now() < deadline, "not in {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The binaries are those built beside this test, or in `STORLAB_BIN`; other programs come from the PATH.
pub fn binary(program: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.to_owned()));
    let dirs = [std::env::var_os("STORLAB_BIN").map(PathBuf::from), beside];
    let found = dirs.into_iter().flatten().map(|dir| dir.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| program.into())
}

/// A ublk device that is deleted with its test.
pub struct Device {
    program: &'static str,
    /// Its number.
    pub id: u32,
    /// /dev/ublkbN.
    pub path: String,
}

impl Device {
    /// `program add args...`.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn add(program: &'static str, args: &[&str]) -> Device {
        let args = [&["add"], args].concat();
        let path = run(60, program, &args).ok().to_owned();
        let id = path.strip_prefix("/dev/ublkb").and_then(|id| id.parse().ok());
        let id = id.unwrap_or_else(|| panic!("{program} add printed {path:?}"));
        Device { program, id, path }
    }

    /// `program verb N args...`.
    #[track_caller]
    pub fn run(&self, seconds: u32, verb: &str, args: &[&str]) -> Outcome {
        let id = self.id.to_string();
        run(seconds, self.program, &[&[verb, id.as_str()], args].concat())
    }

    /// The device's statistics.
    #[track_caller]
    pub fn stat(&self) -> Value {
        self.run(20, "stat", &["--json"]).json()
    }

    /// The daemon's process.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn daemon(&self) -> nix::unistd::Pid {
        let list = run(20, "ublk-target", &["list", "--json"]).json();
        let pid =
            list.as_array().and_then(|all| all.iter().find(|one| one["id"] == self.id)?["pid"].as_i64());
        nix::unistd::Pid::from_raw(pid.unwrap_or_else(|| panic!("no daemon: {list}")) as i32)
    }

    /// Kills the daemon and waits until the kernel has noticed.
    #[track_caller]
    pub fn kill(&self) {
        let pid = self.daemon();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap_or_else(|e| panic!("{e}"));
        until(20, "the daemon is gone", || !Path::new(&format!("/proc/{pid}/stat")).exists());
        until(20, "the device waits for recovery or is gone", || {
            let list = run(20, "ublk-target", &["list", "--json"]).json();
            let live = |one: &Value| one["id"] == self.id && one["state"] == "live";
            !list.as_array().is_some_and(|all| all.iter().any(live))
        });
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let id = self.id.to_string();
        let outcome = run(60, self.program, &["del", &id, "--force"]);
        if outcome.status != Some(0) && !outcome.err.contains("no ublk device") {
            eprintln!("{outcome:#?}");
        }
    }
}

/// No ublk device is left, and no file of one.
///
/// # Panics
/// When there is.
#[track_caller]
pub fn nothing_is_loaded() {
    assert_eq!(run(20, "ublk-target", &["list", "--json"]).json(), serde_json::json!([]));
    let left = sh(20, "ls /dev | grep -E '^ublk[bc][0-9]' || true; ls /dev/shm | grep storlab || true");
    assert_eq!(left.ok(), "");
}

/// A directory that is removed with its test, and unmounted first.
pub struct MountPoint(pub PathBuf);

impl MountPoint {
    /// A new empty directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn new(name: &str) -> MountPoint {
        let path = PathBuf::from(format!("/tmp/storlab-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        MountPoint(path)
    }

    /// The directory as text.
    pub fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        let path = self.text();
        let _ = run(30, "bash", &["-c", &format!("mountpoint -q {path} && umount {path}; rmdir {path}")]);
    }
}
