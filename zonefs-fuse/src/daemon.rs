//! From a mount request to a process that serves it.
//!
//! The parent forks before anything is opened, and waits: the child opens the device, recovers, mounts, and only
//! then lets the parent go, with its own verdict. So `mount` fails when the file system does.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};
use zonefs_fuse::engine::{Fs, MountOptions, SystemClock};
use zonefs_fuse::front::{Mounted, mount as mount_front};

use crate::cli::MountRequest;

/// How long files may stay open after SIGTERM before the process goes anyway.
const LAST_FILES: Duration = Duration::from_secs(5);

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
    let (mut verdict, told) = pipe().map(|(r, w)| (std::fs::File::from(r), w)).context("pipe")?;
    // SAFETY: the process has one thread here, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { .. } => {
            drop(told);
            let mut text = String::new();
            verdict.read_to_string(&mut text).context("waiting for the mount")?;
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
    let mut told = Some(std::fs::File::from(told));
    let result = serve(request, |_| {
        setsid().context("setsid")?;
        std::env::set_current_dir("/").context("/")?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
        let log = match &request.log {
            Some(path) => OpenOptions::new().create(true).append(true).open(path),
            None => null.try_clone(),
        };
        let log = log.with_context(|| format!("{:?}", request.log))?;
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
