//! The swap device carries a machine under memory pressure. A dead node is an error and never a hang, or with copies nothing at
//! all; a dead daemon is recovered; a node that wants its memory back gets it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tests::{Device, nothing_is_loaded, run, sh, until};

/// Memory nodes on this machine, ended with the test.
struct Nodes {
    memory: &'static str,
    pids: Mutex<Vec<nix::unistd::Pid>>,
}

const ADDRESSES: [&str; 2] = ["127.0.0.1:7101", "127.0.0.1:7102"];
const HTTP: [&str; 2] = ["127.0.0.1:7201", "127.0.0.1:7202"];
const KEY: [&str; 2] = ["--key-file", "/tmp/dpuswap.key"];

impl Nodes {
    fn start(memory: &'static str) -> Nodes {
        let nodes = Nodes { memory, pids: Mutex::new(Vec::new()) };
        (0..ADDRESSES.len()).for_each(|index| nodes.start_one(index));
        nodes
    }

    fn start_one(&self, index: usize) {
        let file = format!("/tmp/node{index}.pid");
        let (address, http) = (ADDRESSES[index], HTTP[index]);
        // A node on the machine that swaps to it must never be swapped out itself.
        let args =
            ["--listen", address, "--memory", self.memory, "--lock", "--pid-file", &file, "--http", http];
        run(60, "dpuswap-node", &[&args[..], &["--no-pressure"], &KEY].concat()).ok();
        let pid = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        self.pids.lock().unwrap().push(nix::unistd::Pid::from_raw(pid));
    }

    fn kill(&self, index: usize) {
        let pid = self.pids.lock().unwrap().remove(index);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for pid in self.pids.lock().unwrap().iter() {
            let _ = nix::sys::signal::kill(*pid, nix::sys::signal::Signal::SIGTERM);
        }
        // To the very end: a process that still frees its locked memory has its sockets open, and no name any more.
        let pids = self.pids.lock().unwrap();
        until(40, "the nodes are gone", || {
            pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
        });
    }
}

/// The device with swap on; swapped off before it is deleted.
struct Swap(Device);

impl Swap {
    fn on(cache: &str, more: &[&str]) -> Swap {
        let args = ["--size", "512MiB", "--cache", cache, "--node", ADDRESSES[0], "--node", ADDRESSES[1]];
        let device = Device::add("ublk-dpuswap", &[&args[..], &KEY, more].concat());
        run(30, "mkswap", &[&device.path]).ok();
        run(30, "swapon", &["-p", "100", "--discard", &device.path]).ok();
        Swap(device)
    }

    fn target(&self, pointer: &str) -> u64 {
        let stat = self.0.stat();
        stat["target"]
            .pointer(pointer)
            .and_then(|value| value.as_u64())
            .unwrap_or_else(|| panic!("{pointer}: {stat}"))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let off = run(200, "swapoff", &[&self.0.path]);
        if off.status != Some(0) {
            eprintln!("{off:#?}");
        }
    }
}

const HOG: &str = "
import mmap, random
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
source = random.Random(1)
words = []
for page in range(0, size, 4096):
    half = source.randbytes(2048)
    memory[page:page + 2048] = half
    words.append(half[:8])
while True:
    for number, word in enumerate(words):
        if memory[number * 4096:number * 4096 + 8] != word:
            print('WRONG', number, flush=True)
            raise SystemExit(3)
    print('round', flush=True)
";

/// A program that holds more memory than it may have, and looks again and again whether all of it is right.
struct Hog {
    child: Child,
    rounds: Arc<AtomicU64>,
}

impl Hog {
    /// Holds `mib` in the cgroup of [`cgroup`], half of each page random.
    fn start(mib: u32) -> Hog {
        let script = format!("size = {mib} << 20\n{HOG}");
        std::fs::write("/tmp/hog.py", script).unwrap();
        let mut child = Command::new("bash")
            .args(["-c", "echo $$ > /sys/fs/cgroup/pressure/cgroup.procs; exec python3 /tmp/hog.py"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let rounds = Arc::new(AtomicU64::new(0));
        let (counted, out) = (Arc::clone(&rounds), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                println!("hog: {line}");
                counted.fetch_add(u64::from(line == "round"), Ordering::SeqCst);
            }
        });
        Hog { child, rounds }
    }

    /// Waits for two more rounds: one of them began after this call.
    #[track_caller]
    fn verifies(&mut self, what: &str) {
        let before = self.rounds.load(Ordering::SeqCst);
        until(120, what, || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{what}: the hog ended with {ended:?}");
            self.rounds.load(Ordering::SeqCst) >= before + 2
        });
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a cgroup that is slowed down above `mib` of memory. The hard limit is farther: on a slow machine a group at its
/// hard limit, all of whose pages are being written, is killed before the first write ends.
fn cgroup(mib: u64) {
    let group = "/sys/fs/cgroup/pressure";
    let limits = [("memory.high", mib), ("memory.max", mib * 3 / 2), ("memory.swap.max", 480)];
    sh(10, &format!("mkdir -p {group}")).ok();
    for (file, mib) in limits {
        sh(10, &format!("echo {mib}M > {group}/{file}")).ok();
    }
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn stress_ng_finds_no_wrong_byte_with_half_of_its_memory_swapped() {
    let _nodes = Nodes::start("256MiB");
    let swap = Swap::on("16MiB", &[]);
    cgroup(48);
    let pressure = sh(
        400,
        "echo $$ > /sys/fs/cgroup/pressure/cgroup.procs; \
         stress-ng --vm 2 --vm-bytes 96M --vm-keep --vm-method rand-set --verify --timeout 60 --metrics-brief --temp-path /tmp 2>&1",
    );
    let said = pressure.ok();
    let vm = said.lines().find(|line| line.contains("] vm ")).unwrap_or_else(|| panic!("{said}"));
    let operations: u64 =
        vm.split_whitespace().skip_while(|word| *word != "vm").nth(1).unwrap().parse().unwrap();
    assert!(operations > 0, "{said}");
    assert!(!said.contains("error"), "{said}");
    let stat = swap.0.stat();
    println!("{operations} operations; {}", stat["target"]["counters"]);
    let counter = |name: &str| stat["target"]["counters"][name].as_u64().unwrap();
    assert!(counter("pages_written") > 1000 && counter("misses") > 100, "{stat}");
    assert_eq!((counter("write_errors"), counter("read_errors")), (0, 0));
    assert_eq!(swap.target("/io_path_allocations"), 0, "swapping allocates nothing");
    for node in stat["target"]["nodes"].as_array().unwrap() {
        assert!(node["bytes_out"].as_u64().unwrap() > 0, "both nodes carry some: {stat}");
    }
    drop(swap);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_killed_node_is_an_io_error_that_names_it_and_never_a_hang() {
    let nodes = Nodes::start("256MiB");
    let swap = Swap::on("4MiB", &[]);
    cgroup(32);
    // Holds 96 MiB and reads it in circles: sooner or later it needs a page that is gone.
    let hog = "import mmap,random\nm=mmap.mmap(-1,96<<20,flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS)\nr=random.Random(1)\nfor i in range(0,96<<20,4096): m[i:i+2048]=r.randbytes(2048)\nprint('full',flush=True)\nwhile True:\n  for i in range(0,96<<20,4096): m[i]\n";
    std::fs::write("/tmp/hog.py", hog).unwrap();
    let mut child = Command::new("bash")
        .args(["-c", "echo $$ > /sys/fs/cgroup/pressure/cgroup.procs; exec python3 /tmp/hog.py"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    if std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).is_err() {
        let status = child.wait().unwrap();
        let said = sh(20, &format!("cat /run/storlab/{}.log; dmesg | tail -n 20", swap.0.id));
        panic!("the hog ended early with {status:?}: {}", said.out);
    }
    nodes.kill(0);
    let begun = Instant::now();
    until(60, "the hog gets its I/O error", || child.try_wait().unwrap().is_some());
    println!("SIGBUS after {:?}", Duration::from_millis(begun.elapsed().as_millis() as u64));
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGBUS), "{status:?}");
    let log = std::fs::read_to_string(format!("/run/storlab/{}.log", swap.0.id)).unwrap();
    let told = log.lines().find(|line| line.contains("ERROR") && line.contains(ADDRESSES[0]));
    println!("{}", told.unwrap_or_else(|| panic!("the log does not name the node: {log}")));
    // The device serves on with the other node, and is taken down in order.
    assert!(swap.0.stat()["target"]["counters"]["read_errors"].as_u64().unwrap() > 0);
    let Swap(device) = &swap;
    run(200, "swapoff", &[&device.path]).ok();
    device.run(60, "del", &[]).ok();
    drop(swap);
    drop(nodes);
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn with_two_copies_a_killed_node_costs_nothing_and_its_copies_are_made_again() {
    let nodes = Nodes::start("256MiB");
    let swap = Swap::on("2MiB", &["--replicas", "2"]);
    cgroup(8);
    let mut hog = Hog::start(20);
    hog.verifies("the hog reads what it wrote");
    nodes.kill(0);
    hog.verifies("the hog reads on without the node");
    nodes.start_one(0);
    until(60, "every block has two copies again", || swap.target("/thin_blocks") == 0);
    nodes.kill(0);
    hog.verifies("the hog reads on without the other node");
    assert_eq!(swap.target("/counters/read_errors"), 0);
    assert!(swap.target("/counters/blocks_copied") > 0);
    drop(hog);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_killed_daemon_is_recovered_and_every_page_is_there() {
    let _nodes = Nodes::start("256MiB");
    let swap = Swap::on("2MiB", &[]);
    cgroup(8);
    let mut hog = Hog::start(20);
    hog.verifies("the hog reads what it wrote");
    for round in 0..2 {
        swap.0.kill();
        run(60, "ublk-dpuswap", &["recover", &swap.0.id.to_string()]).ok();
        hog.verifies(&format!("the hog reads what it wrote, after death {round}"));
    }
    assert_eq!(swap.target("/counters/read_errors"), 0);
    drop(hog);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_node_that_wants_its_memory_back_gets_it_under_load() {
    let nodes = Nodes::start("256MiB");
    let swap = Swap::on("2MiB", &[]);
    cgroup(8);
    let mut hog = Hog::start(20);
    hog.verifies("the hog reads what it wrote");
    let held = |node: usize| swap.target(&format!("/nodes/{node}/held_blocks"));
    assert!(held(0) > 0 && held(1) > 0, "both nodes lend");
    sh(20, &format!("curl -sf -X POST 'http://{}/drain'", HTTP[0])).ok();
    until(60, "the node has everything back", || held(0) == 0);
    hog.verifies("the hog reads on");
    assert_eq!((swap.target("/counters/read_errors"), swap.target("/lost_blocks")), (0, 0));
    drop(hog);
    drop(swap);
    drop(nodes);
}
