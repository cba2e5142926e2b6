//! serprog over a pseudo-terminal, for clients that want a serial port: `flashrom -p serprog:dev=PATH:115200`.
//!
//! The invariant: the terminal lives as long as the server. Clients open and close it; each finds it raw and empty, and
//! the chips as the protocol promises. A client that opens it in the very moment in which another closes it may find the
//! other's half command, as on a real serial line; flashrom's synchronisation gets past that.

use super::{
    protocol::Options,
    session::{End, Line, serve},
};
use crate::fronts::{FrontError, Running, SharedBus, Stop, Woken};
use nix::{
    fcntl::OFlag,
    poll::PollFlags,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::termios::{FlushArg, SetArg, cfmakeraw, tcflush, tcgetattr, tcsetattr},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};

/// How often a closed terminal is looked at: it has no event for its opening.
const CLOSED_WAIT_MS: u16 = 10;

/// A serprog server on a pseudo-terminal, with a symbolic link that leads to it. Both end when it is dropped.
#[derive(Debug)]
pub struct PtyServer {
    terminal: PathBuf,
    running: Running,
    // Goes after the thread.
    _link: Link,
}

impl PtyServer {
    /// Opens a terminal and makes `path` lead to it; clients are served from now on.
    ///
    /// A link of that name to a terminal, left by a server that was killed, is replaced.
    ///
    /// # Errors
    /// There is no terminal to be had, or something else has that name.
    pub fn open(path: &Path, bus: SharedBus, options: Options) -> Result<PtyServer, FrontError> {
        let (master, terminal) =
            terminal().map_err(FrontError::system("serprog: opening a pseudo-terminal"))?;
        let link = Link::make(path, &terminal)?;
        let name = format!("serprog on {}", terminal.display());
        let running = Running::start(name, Stop::new()?, {
            let terminal = terminal.clone();
            move |stop| run(stop, &master, &terminal, &bus, &options)
        })?;
        Ok(PtyServer { terminal, running, _link: link })
    }

    /// The terminal itself: /dev/pts/N.
    pub fn terminal(&self) -> &Path {
        &self.terminal
    }

    /// Whether clients are served.
    pub fn is_running(&self) -> bool {
        self.running.is_running()
    }

    /// Ends it, and its client's session, and waits until that is done.
    ///
    /// # Errors
    /// It had ended by itself, by this.
    pub fn stop(mut self) -> Result<(), FrontError> {
        self.running.stop()
    }
}

fn terminal() -> io::Result<(File, PathBuf)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname_r(&master)?;
    let master = File::from(OwnedFd::from(master));
    make_raw(&master)?;
    Ok((master, path.into()))
}

/// The server's end. It does not block.
struct Master<'a>(&'a File);

impl AsFd for Master<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Line for Master<'_> {
    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut file = self.0;
        file.read(bytes)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.0;
        file.write(bytes)
    }
}

/// No echo, no line editing, all eight bits. Set at the master it holds for the clients' end.
fn make_raw(master: &File) -> io::Result<()> {
    let mut settings = tcgetattr(master)?;
    cfmakeraw(&mut settings);
    Ok(tcsetattr(master, SetArg::TCSANOW, &settings)?)
}

/// Answers that nobody fetched are not for the next client: those on their way, and those at the clients' end.
fn discard_answers(master: &File, terminal: &Path) -> io::Result<()> {
    tcflush(master, FlushArg::TCOFLUSH)?;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits());
    Ok(tcflush(options.open(terminal)?, FlushArg::TCIFLUSH)?)
}

fn run(
    stop: &Stop,
    master: &File,
    terminal: &Path,
    bus: &SharedBus,
    options: &Options,
) -> Result<(), FrontError> {
    let told = |what: &str| FrontError::system(format!("serprog: {what} the pseudo-terminal"));
    loop {
        make_raw(master).map_err(told("setting up"))?;
        let empty = || {
            if let Err(error) = discard_answers(master, terminal) {
                log::warn!("serprog: emptying the pseudo-terminal: {error}");
            }
        };
        if serve(stop, &Master(master), bus, options, empty) == End::Stop {
            return Ok(());
        }
        log::info!("serprog: the terminal's client has left");
        loop {
            let flags = match stop.wait(Some(master.as_fd()), PollFlags::POLLIN, Some(CLOSED_WAIT_MS)) {
                Ok(Woken::Stop) => return Ok(()),
                Ok(Woken::Ready(flags)) => flags,
                Ok(Woken::Timeout) => PollFlags::empty(),
                Err(error) => return Err(told("waiting for a client of")(error)),
            };
            // A closed terminal is ready at once, with a hang-up: time has to pass by itself.
            if flags.contains(PollFlags::POLLIN) || !flags.contains(PollFlags::POLLHUP) {
                break;
            }
            match stop.wait(None, PollFlags::empty(), Some(CLOSED_WAIT_MS)) {
                Ok(Woken::Stop) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(told("waiting for a client of")(error)),
            }
        }
    }
}

/// A symbolic link that goes away with this, unless it leads elsewhere by then.
#[derive(Debug)]
struct Link {
    path: PathBuf,
    target: PathBuf,
}

impl Link {
    fn make(path: &Path, target: &Path) -> Result<Link, FrontError> {
        if fs::read_link(path).is_ok_and(|old| old.starts_with("/dev/pts")) {
            let what = format!("serprog: replacing the old link {}", path.display());
            fs::remove_file(path).map_err(FrontError::system(what))?;
        }
        let what = format!("serprog: making the link {} to {}", path.display(), target.display());
        symlink(target, path).map_err(FrontError::system(what))?;
        Ok(Link { path: path.to_owned(), target: target.to_owned() })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if fs::read_link(&self.path).is_ok_and(|target| target == self.target)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("serprog: removing the link {}: {error}", self.path.display());
        }
    }
}
