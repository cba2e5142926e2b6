//! Going into the background once the device is live.
//!
//! The process forks before it has threads. The child does everything; the parent waits for one line through a pipe
//! (the device's number, or the error) and ends with it. So `add` returns when the device is usable, and a failure in
//! the child is the command's failure. If the child says nothing in time, the parent ends it and says so: adding a
//! device has hung in some kernels.
//!
//! The daemon stays in the mount namespace it was started in. One of its own would keep a copy of every mount busy that
//! is not shared: a file system that is unmounted would live on in the daemon. The price: as the last process of a
//! namespace (a container's, `unshare -m`) in which its own device is mounted, a daemon that ends waits for itself; unmount
//! there first.

use crate::error::{Error, Result};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, setsid},
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

/// The child's end of the pipe to the waiting parent; without a parent, its news goes nowhere.
pub struct Notifier(Option<File>);

impl Notifier {
    /// A notifier for a process that stays in the foreground.
    pub fn foreground() -> Notifier {
        Notifier(None)
    }

    /// Whether a parent waits for news.
    pub fn in_background(&self) -> bool {
        self.0.is_some()
    }

    /// Tells the parent which device was added, so that it can be removed if this process does not get further.
    pub fn added(&mut self, id: u32) {
        if let Some(pipe) = &mut self.0 {
            // A parent that is gone needs no news; `ready` will say so in the log.
            let _ = pipe.write_all(format!("{}\n", json!({ "added": id })).as_bytes());
        }
    }

    /// Tells the parent that the device is live.
    pub fn ready(&mut self, news: &Value) {
        self.send(&json!({ "ok": news }));
    }

    /// Tells the parent why it is not.
    pub fn failed(&mut self, message: &str, usage: bool) {
        self.send(&json!({ "error": message, "usage": usage }));
    }

    fn send(&mut self, news: &Value) {
        if let Some(mut pipe) = self.0.take()
            && let Err(error) = pipe.write_all(format!("{news}\n").as_bytes())
        {
            log::warn!("the command that started this daemon is gone: {error}");
        }
    }
}

/// Which side of the fork this process is.
pub enum Side {
    /// The child, which goes on to serve.
    Daemon(Notifier),
    /// The parent, with what the child said: `Ok` of its news, or its error.
    Parent(std::result::Result<Value, ChildError>),
}

/// The child's failure, as the parent reports it.
#[derive(Debug)]
pub struct ChildError {
    /// One line.
    pub message: String,
    /// Whether the fault is in what was asked (exit status 2).
    pub usage: bool,
    /// A device that the child added and could not remove: it was ended at the limit.
    pub orphan: Option<u32>,
}

impl ChildError {
    fn new(message: String) -> ChildError {
        ChildError { message, usage: false, orphan: None }
    }
}

/// Forks. Must be called before the process has threads.
///
/// # Errors
/// The fork's or the pipe's.
pub fn split(patience: Duration) -> Result<Side> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|e| Error::System { what: "pipe", source: e.into() })?;
    // SAFETY: the process has one thread, so that the child inherits no lock held by another.
    match unsafe { fork() }.map_err(|e| Error::System { what: "fork", source: e.into() })? {
        ForkResult::Parent { child } => {
            drop(write);
            Ok(Side::Parent(wait_for_child(child, File::from(read), patience)))
        }
        ForkResult::Child => {
            drop(read);
            setsid().map_err(|e| Error::System { what: "setsid", source: e.into() })?;
            Ok(Side::Daemon(Notifier(Some(File::from(write)))))
        }
    }
}

fn wait_for_child(child: Pid, pipe: File, patience: Duration) -> std::result::Result<Value, ChildError> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe.take(1 << 20)).lines().map_while(std::io::Result::ok) {
            // The receiver is gone only after the time-out, when nobody needs the line.
            let _ = tell.send(line);
        }
    });
    let deadline = Instant::now() + patience;
    let mut orphan = None;
    loop {
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => match parse_news(&line)? {
                News::Added(id) => orphan = Some(id),
                News::Live(news) => return Ok(news),
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let end = end_of(child);
                let message = format!("the background process ended before the device was live ({end})");
                return Err(ChildError { orphan, ..ChildError::new(message) });
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _ = kill(child, Signal::SIGKILL);
                let seconds = patience.as_secs();
                let message =
                    format!("the device was not live after {seconds} s; the kernel log (dmesg) may say why");
                end_of(child);
                return Err(ChildError { orphan, ..ChildError::new(message) });
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum News {
    Added(u32),
    Live(Value),
}

fn parse_news(line: &str) -> std::result::Result<News, ChildError> {
    let mut news: Value = serde_json::from_str(line)
        .map_err(|e| ChildError::new(format!("the background process said: {e}")))?;
    if let Some(id) = news["added"].as_u64().and_then(|id| u32::try_from(id).ok()) {
        return Ok(News::Added(id));
    }
    match news.get_mut("ok").map(Value::take) {
        Some(value) => Ok(News::Live(value)),
        None => Err(ChildError {
            message: news.get("error").and_then(Value::as_str).unwrap_or("unknown error").to_owned(),
            usage: news.get("usage").and_then(Value::as_bool).unwrap_or(false),
            orphan: None,
        }),
    }
}

fn end_of(child: Pid) -> String {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return format!("exit status {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => return format!("killed by {signal}"),
            Ok(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            _ => return "it is still there".into(),
        }
    }
}

/// Opens the log at `path` for a daemon's standard error.
///
/// # Errors
/// The open's.
pub fn open_log(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |source| Error::State { path: path.to_owned(), what: "opening the log", source };
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(failed)
}

/// Turns standard input and output away and standard error to `log`, once the parent has its news.
///
/// # Errors
/// The system's.
pub fn detach(log: &File) -> Result<()> {
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|source| Error::System { what: "opening /dev/null", source })?;
    for (from, to) in [(null.as_fd(), 0), (null.as_fd(), 1), (log.as_fd(), 2)] {
        // SAFETY: dup2 onto the three standard descriptors, which nothing in this process owns.
        if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
            return Err(Error::last("dup2"));
        }
    }
    let _ = std::env::set_current_dir("/");
    Ok(())
}

/// Blocks the signals that end a daemon, for this thread and those it makes; [`wait_for_signal`] takes them.
///
/// # Errors
/// The system's.
pub fn block_signals() -> Result<()> {
    ending_signals().thread_block().map_err(|e| Error::System { what: "blocking signals", source: e.into() })
}

/// Waits for SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
/// The system's.
pub fn wait_for_signal() -> Result<Signal> {
    ending_signals().wait().map_err(|e| Error::System { what: "waiting for signals", source: e.into() })
}

fn ending_signals() -> nix::sys::signal::SigSet {
    let mut set = nix::sys::signal::SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_gets_the_childs_news_or_its_error_with_its_kind() {
        assert_eq!(parse_news("{\"added\": 3}").unwrap(), News::Added(3));
        assert_eq!(parse_news("{\"ok\": 3}").unwrap(), News::Live(json!(3)));
        let error = parse_news("{\"error\": \"no\", \"usage\": true}").unwrap_err();
        assert_eq!((error.message.as_str(), error.usage), ("no", true));
        assert!(parse_news("nonsense").unwrap_err().message.contains("said"));
        assert_eq!(parse_news("{}").unwrap_err().message, "unknown error");
    }
}
