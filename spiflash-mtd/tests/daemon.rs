//! The program itself: it goes into the background when it serves, says what is wrong in one line, and loses nothing that the
//! chip had finished when it is killed.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn program(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spiflash-mtd"));
    // A program that does not come back is killed by `timeout`.
    let program = command.get_program().to_owned();
    command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(program).args(args).env("RUST_LOG", "info").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server in the background, killed when the test ends.
struct Server {
    pid: i32,
    address: String,
}

impl Server {
    fn start(dir: &Path, args: &[&str]) -> Server {
        let pid_file = dir.join("pid");
        let log = dir.join("log");
        let common = ["run", "--serprog", "127.0.0.1:0", "--pid-file", pid_file.to_str().unwrap()];
        let log = ["--log-file", log.to_str().unwrap()];
        let out = program(&[&common[..], &log, args].concat());
        assert!(out.status.success(), "{}", text(&out.stderr));
        let said = text(&out.stdout);
        let address = said.split("serprog on ").nth(1).unwrap().split([',', ' ']).next().unwrap();
        let pid = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        Server { pid, address: address.to_owned() }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal);
    }

    fn ended(&self) -> bool {
        let alive = std::fs::read_to_string(format!("/proc/{}/stat", self.pid));
        alive.map_or(true, |stat| stat.rsplit(") ").next().unwrap().starts_with('Z'))
    }

    fn wait_for_end(&self) {
        let begun = Instant::now();
        while !self.ended() {
            assert!(begun.elapsed() < Duration::from_secs(30), "process {} does not end", self.pid);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
    }
}

/// A client of serprog's O_SPIOP.
struct Client(TcpStream);

impl Client {
    fn new(server: &Server) -> Client {
        let stream = TcpStream::connect(&server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client(stream)
    }

    fn frame(&mut self, send: &[u8], receive: usize) -> std::io::Result<Vec<u8>> {
        let u24 = |n: usize| n.to_le_bytes()[..3].to_vec();
        self.0.write_all(&[vec![0x13], u24(send.len()), u24(receive), send.to_vec()].concat())?;
        let mut answer = vec![0; receive + 1];
        self.0.read_exact(&mut answer)?;
        assert_eq!(answer.remove(0), 0x06);
        Ok(answer)
    }

    fn program(&mut self, page: u32, data: &[u8; 256]) -> std::io::Result<()> {
        self.frame(&[0x06], 0)?;
        let [_, a, b, c] = (page * 256).to_be_bytes();
        self.frame(&[&[0x02, a, b, c][..], data].concat(), 0)?;
        while self.frame(&[0x05], 1)?[0] & 1 == 1 {}
        Ok(())
    }
}

#[test]
fn what_the_chip_had_finished_is_there_after_a_kill_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("chip.flash");
    let args = ["--image", image.to_str().unwrap()];
    let mut written = 0u32;
    for round in 0..8u64 {
        let server = Server::start(dir.path(), &args);
        let mut client = Client::new(&server);
        for page in 0..written {
            let [_, a, b, c] = (page * 256).to_be_bytes();
            assert_eq!(
                client.frame(&[0x03, a, b, c], 256).unwrap(),
                [page as u8; 256],
                "page {page}, round {round}"
            );
        }
        let (pid, delay) = (server.pid, Duration::from_millis(3 + round * 7));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(delay);
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        });
        while client.program(written, &[written as u8; 256]).is_ok() {
            written += 1;
        }
        killer.join().unwrap();
        server.wait_for_end();
        // The page that was under way may be there or not: it is programmed again, with the same bytes.
    }
    assert!(written > 20, "only {written} pages were programmed");
}

#[test]
fn sigterm_puts_the_image_and_the_pid_file_away() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("chip.flash");
    let server = Server::start(dir.path(), &["--image", image.to_str().unwrap(), "--time", "bits"]);
    Client::new(&server).program(3, &[0xA5; 256]).unwrap();
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.wait_for_end();
    assert!(!dir.path().join("pid").exists());
    let check = program(&["image", "check", image.to_str().unwrap(), "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!((&report["sectors_with_data"], &report["torn_bytes"]), (&1.into(), &0.into()), "{report}");
    assert!(report["chip_time_ns"].as_u64().unwrap() > 400_000, "{report}");
    let raw = dir.path().join("raw.bin");
    let out = program(&["image", "export", image.to_str().unwrap(), "--to", raw.to_str().unwrap()]);
    assert!(out.status.success());
    let raw = std::fs::read(raw).unwrap();
    assert_eq!((raw.len(), raw[767], raw[768], raw[1023], raw[1024]), (16 << 20, 0xFF, 0xA5, 0xA5, 0xFF));
}

#[test]
fn what_was_asked_wrongly_is_one_line_and_exit_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let log = log.to_str().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["--part", "W25Q129"], "no such part"),
        (&["--serprog", "nowhere"], "serprog"),
        (&["--time", "slow"], "poll-skip"),
        (&["--cut-at", "5 parsecs"], "0.4ms"),
        (&["--image", "a", "--image", "b"], "--image"),
        (&["--errors", "none", "--set", "base_rber=lots"], "base_rber"),
    ];
    for (args, said) in cases {
        let out = program(&[&["run", "--log-file", log][..], args].concat());
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(said), "{args:?}: {}", text(&out.stderr));
        assert!(out.stdout.is_empty());
    }
    // What cannot be done is exit status 1.
    let out = program(&["run", "--log-file", log, "--image", "/proc/none/x"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert_eq!(text(&out.stderr).lines().count(), 1, "{}", text(&out.stderr));
}

#[test]
fn every_part_is_served_side_by_side_on_its_chip_select() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--part", "W25Q128JV", "--part", "FM25V20A"]);
    let mut client = Client::new(&server);
    assert_eq!(client.frame(&[0x9F], 3).unwrap(), [0xEF, 0x40, 0x18]);
    client.0.write_all(&[0x16, 1]).unwrap();
    let mut ack = [0];
    client.0.read_exact(&mut ack).unwrap();
    assert_eq!(ack, [0x06]);
    assert_eq!(client.frame(&[0x9F], 9).unwrap()[6..], [0xC2, 0x25, 0x08]);
}

#[test]
fn a_report_whose_reader_has_gone_ends_quietly() {
    let program = env!("CARGO_BIN_EXE_spiflash-mtd");
    let shell = format!("{program} part show W25Q128JV --json | true; echo ${{PIPESTATUS[0]}}");
    let out = Command::new("bash").args(["-c", &shell]).output().unwrap();
    assert!(out.stderr.is_empty(), "{}", text(&out.stderr));
    let status = text(&out.stdout);
    // 141 is SIGPIPE; 0 when it was faster than its reader.
    assert!(["0", "141"].contains(&status.trim()), "{status}");
}
