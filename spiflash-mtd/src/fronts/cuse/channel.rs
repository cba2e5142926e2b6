//! /dev/cuse: one open file of it is one device.
//!
//! The invariant: the device is there when a server has been made, and gone when it has ended.

use super::{
    CuseDevice, Handled, handle,
    wire::{MAX_NAME_BYTES, MESSAGE_BYTES, answer_init},
};
use crate::fronts::{FrontError, Running, Stop, Woken};
use nix::{errno::Errno, fcntl::OFlag, poll::PollFlags};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

const CHANNEL: &str = "/dev/cuse";
/// The kernel sends its greeting when the channel is opened.
const INIT_WAIT_MS: u16 = 5000;

/// A character device and the thread that serves it. Both end when it is dropped.
#[derive(Debug)]
pub struct CuseServer {
    node: PathBuf,
    running: Running,
}

impl CuseServer {
    /// Makes /dev/`name`; it is there, and served, when this returns.
    ///
    /// # Errors
    /// A name that cannot be or is taken; no CUSE, or no right to use it.
    pub fn start(name: &str, device: Box<dyn CuseDevice>) -> Result<CuseServer, FrontError> {
        check_name(name)?;
        let class = Path::new("/sys/class/cuse").join(name);
        let node = Path::new("/dev").join(name);
        if class.exists() || node.exists() {
            let rule = format!("{} is there already", node.display());
            return Err(FrontError::Option { what: "device name", value: name.to_owned(), rule });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let mut channel = Channel { file: options.open(CHANNEL).map_err(FrontError::system(no_channel()))? };
        let stop = Stop::new()?;
        channel.greet(&stop, name)?;
        if !class.exists() {
            let what = format!("the kernel refused the CUSE device {name}: see its log");
            return Err(FrontError::Protocol { what });
        }
        let what = format!("CUSE device {name}");
        let running = Running::start(what, stop, move |stop| channel.serve(stop, device))?;
        Ok(CuseServer { node, running })
    }

    /// The device's node. Where /dev is no devtmpfs, its number is in /sys/class/cuse/NAME/dev.
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Whether it is served: the device can be ended from outside by /sys/class/cuse/NAME/abort.
    pub fn is_running(&self) -> bool {
        self.running.is_running()
    }

    /// Ends it and waits until the device is gone. Files that are still open give errors from then on.
    ///
    /// # Errors
    /// It had ended by itself, by this.
    pub fn stop(mut self) -> Result<(), FrontError> {
        self.running.stop()
    }
}

fn no_channel() -> String {
    format!("opening {CHANNEL} (it takes root and a kernel with CUSE; `modprobe cuse` may help)")
}

fn check_name(name: &str) -> Result<(), FrontError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('.') {
        return Ok(());
    }
    let rule = format!("it must be 1 to {MAX_NAME_BYTES} letters, digits, '.', '_' and '-', not '.' first");
    Err(FrontError::Option { what: "device name", value: name.to_owned(), rule })
}

struct Channel {
    file: File,
}

enum Received {
    Message(usize),
    Stop,
    /// The device was ended from outside.
    Gone,
}

impl Channel {
    fn greet(&mut self, stop: &Stop, name: &str) -> Result<(), FrontError> {
        let mut message = vec![0; MESSAGE_BYTES];
        let mut answer = Vec::new();
        let received = self.receive(stop, &mut message, Some(INIT_WAIT_MS));
        let received = received.map_err(FrontError::system(format!("{CHANNEL}: reading the greeting")))?;
        let Received::Message(count) = received else {
            return Err(FrontError::Protocol { what: format!("{CHANNEL}: the kernel sent no greeting") });
        };
        let message = message.get(..count).unwrap_or_default();
        answer_init(message, name, &mut answer)
            .map_err(|fault| FrontError::Protocol { what: format!("{CHANNEL}: {fault}") })?;
        self.send(&answer).map_err(FrontError::system(format!("{CHANNEL}: making the device {name}")))
    }

    fn serve(mut self, stop: &Stop, mut device: Box<dyn CuseDevice>) -> Result<(), FrontError> {
        let mut message = vec![0; MESSAGE_BYTES];
        let mut answer = Vec::new();
        loop {
            let received = self.receive(stop, &mut message, None);
            let count = match received.map_err(FrontError::system(format!("{CHANNEL}: reading")))? {
                Received::Message(count) => count,
                Received::Stop | Received::Gone => return Ok(()),
            };
            match handle(device.as_mut(), message.get(..count).unwrap_or_default(), &mut answer) {
                Ok(Handled::Silent) => {}
                Ok(Handled::Answer) => {
                    self.send(&answer).map_err(FrontError::system(format!("{CHANNEL}: answering")))?;
                }
                Err(fault) => {
                    return Err(FrontError::Protocol { what: format!("{CHANNEL}: {fault}") });
                }
            }
        }
    }

    fn receive(&mut self, stop: &Stop, message: &mut [u8], limit_ms: Option<u16>) -> io::Result<Received> {
        loop {
            match self.file.read(message) {
                Ok(count) => return Ok(Received::Message(count)),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    // ENOENT: the caller went away while its message was on its way.
                    Some(Errno::EINTR | Errno::ENOENT) => continue,
                    Some(Errno::ENODEV | Errno::ECONNABORTED) => return Ok(Received::Gone),
                    Some(Errno::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
            match stop.wait(Some(self.file.as_fd()), PollFlags::POLLIN, limit_ms)? {
                Woken::Ready(_) => {}
                Woken::Stop => return Ok(Received::Stop),
                Woken::Timeout => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// One answer is one write.
    fn send(&mut self, answer: &[u8]) -> io::Result<()> {
        loop {
            match self.file.write(answer) {
                Ok(count) if count == answer.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => {}
                    // The caller went away, or the device: the next read tells which.
                    Some(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }
}
