//! NBD servers: real ones as processes, killed when dropped, and one in a thread that plays tricks.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Whether a program is there; says so when not.
pub fn has(program: &str) -> bool {
    let there =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        println!("skipped: there is no {program} (scripts/setup installs it)");
    }
    there
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that is killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command, mut ready: impl FnMut() -> bool) -> Self {
        let mut process = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let start = Instant::now();
        while !ready() {
            let ended = process.0.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            assert!(start.elapsed() < Duration::from_secs(20), "{command:?} is not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        process
    }

    pub fn nbdkit_tcp(port: u16, options: &[&str]) -> Self {
        let mut command = Command::new("nbdkit");
        command
            .args(["--foreground", "--exit-with-parent", "--ipaddr=127.0.0.1", &format!("--port={port}")])
            .args(options);
        Self::start(&mut command, || TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    pub fn nbdkit_unix(socket: &Path, options: &[&str]) -> Self {
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket).args(options);
        Self::start(&mut command, || UnixStream::connect(socket).is_ok())
    }

    pub fn qemu_nbd(socket: &Path, disk: &Path, options: &[&str]) -> Self {
        let _ = std::fs::remove_file(socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--format=raw", "--socket"]).arg(socket).args(options).arg(disk);
        // A connection would be the one that it takes without --shared.
        Self::start(&mut command, || socket.exists())
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the server in a thread does: always its answers in reverse and in pieces; or, once armed, to the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    Reversed,
    Structured,
    Handle,
    Garbage,
    Close,
    /// The third connection is closed at once.
    Third,
    /// Once armed: the next write is done, and its answer lost.
    LoseWrite,
}

const SIZE: usize = 4 << 20;

/// A server of 4 MiB.
pub struct Fake {
    address: String,
    armed: Arc<AtomicBool>,
}

impl Fake {
    pub fn start(trick: Trick) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let armed = Arc::new(AtomicBool::new(false));
        let (arm, store) = (Arc::clone(&armed), Arc::new(Mutex::new(vec![0; SIZE])));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for (n, socket) in listener.incoming().map_while(Result::ok).enumerate() {
                if trick == Trick::Third && n == 2 {
                    continue;
                }
                let (arm, store) = (Arc::clone(&arm), Arc::clone(&store));
                std::thread::spawn(move || serve(socket, trick, &arm, &store));
            }
        });
        Self { address, armed }
    }

    pub fn url(&self) -> String {
        format!("nbd://{}/", self.address)
    }

    /// The next request is tricked.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }
}

fn serve(mut socket: TcpStream, trick: Trick, armed: &AtomicBool, store: &Mutex<Vec<u8>>) -> Option<()> {
    socket.set_nodelay(true).ok()?;
    pieces(&mut socket, &[&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat())?;
    let mut option = [0; 4 + 16];
    socket.read_exact(&mut option).ok()?;
    let mut data = vec![0; u32::from_be_bytes(option[16..20].try_into().ok()?) as usize];
    socket.read_exact(&mut data).ok()?;
    let reply = [&0x0003_e889_0455_65a9u64.to_be_bytes()[..], &option[12..16]].concat();
    let info = [&[0, 0, 0, 3, 0, 0, 0, 12, 0, 0][..], &(SIZE as u64).to_be_bytes(), &[1, 1]].concat();
    pieces(&mut socket, &[&reply[..], &info, &reply, &[0, 0, 0, 1, 0, 0, 0, 0]].concat())?;
    let mut answers = Vec::new();
    loop {
        let mut request = [0; 28];
        socket.read_exact(&mut request).ok()?;
        let at = u64::from_be_bytes(request[16..24].try_into().ok()?) as usize;
        let len = u32::from_be_bytes(request[24..28].try_into().ok()?) as usize;
        let mut answer = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &request[8..16]].concat();
        match request[7] {
            0 => answer.extend_from_slice(&store.lock().ok()?[at..at + len]),
            1 => {
                let mut data = vec![0; len];
                socket.read_exact(&mut data).ok()?;
                store.lock().ok()?[at..at + len].copy_from_slice(&data);
            }
            _ => return None,
        }
        let spared = trick == Trick::LoseWrite && request[7] != 1;
        if !spared && armed.swap(false, Ordering::SeqCst) {
            match trick {
                Trick::Structured => answer[..4].copy_from_slice(&[0x66, 0x8e, 0x33, 0xef]),
                Trick::Handle => answer[15] ^= 0x55,
                Trick::Garbage => answer.fill(0xa5),
                _ => return None,
            }
        }
        answers.push(answer);
        socket.set_nonblocking(true).ok()?;
        let more = socket.peek(&mut [0]).is_ok_and(|got| got > 0);
        socket.set_nonblocking(false).ok()?;
        if !more || answers.len() == 64 {
            while let Some(answer) = answers.pop() {
                pieces(&mut socket, &answer)?;
            }
        }
    }
}

fn pieces(socket: &mut TcpStream, bytes: &[u8]) -> Option<()> {
    // Small pieces for the heads; the data of a long read may come whole.
    let (head, rest) = bytes.split_at(bytes.len().min(48));
    for piece in head.chunks(5) {
        socket.write_all(piece).ok()?;
    }
    socket.write_all(rest).ok()
}
