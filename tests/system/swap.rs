//! The swap device carries a machine under memory pressure, and a dead node is an error and never a hang.

use std::time::{Duration, Instant};
use tests::{Device, nothing_is_loaded, run, sh, until};

/// Two memory nodes on this machine, ended with the test.
struct Nodes {
    pids: Vec<nix::unistd::Pid>,
}

const ADDRESSES: [&str; 2] = ["127.0.0.1:7101", "127.0.0.1:7102"];

impl Nodes {
    fn start(memory: &str) -> Nodes {
        let mut pids = Vec::new();
        for (index, address) in ADDRESSES.iter().enumerate() {
            let file = format!("/tmp/node{index}.pid");
            // A node on the machine that swaps to it must never be swapped out itself.
            let args = ["--listen", address, "--memory", memory, "--lock", "--pid-file", &file];
            run(60, "dpuswap-node", &args).ok();
            let pid = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
            pids.push(nix::unistd::Pid::from_raw(pid));
        }
        Nodes { pids }
    }

    fn kill(&self, index: usize) {
        nix::sys::signal::kill(self.pids[index], nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for pid in &self.pids {
            let _ = nix::sys::signal::kill(*pid, nix::sys::signal::Signal::SIGTERM);
        }
        until(20, "the nodes are gone", || run(10, "pidof", &["dpuswap-node"]).status != Some(0));
    }
}

/// The device with swap on; swapped off before it is deleted.
struct Swap(Device);

impl Swap {
    fn on(cache: &str) -> Swap {
        let args = ["--size", "512MiB", "--cache", cache, "--node", ADDRESSES[0], "--node", ADDRESSES[1]];
        let device = Device::add("ublk-dpuswap", &args);
        run(30, "mkswap", &[&device.path]).ok();
        run(30, "swapon", &["-p", "100", "--discard", &device.path]).ok();
        Swap(device)
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
    let swap = Swap::on("16MiB");
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
    for node in stat["target"]["nodes"].as_array().unwrap() {
        assert!(node["bytes_out"].as_u64().unwrap() > 0, "both nodes carry some: {stat}");
    }
    drop(swap);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_killed_node_is_an_io_error_that_names_it_and_never_a_hang() {
    let nodes = Nodes::start("256MiB");
    let swap = Swap::on("4MiB");
    cgroup(32);
    // Holds 96 MiB and reads it in circles: sooner or later it needs a page that is gone.
    let hog = "import mmap,random\nm=mmap.mmap(-1,96<<20,flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS)\nr=random.Random(1)\nfor i in range(0,96<<20,4096): m[i:i+2048]=r.randbytes(2048)\nprint('full',flush=True)\nwhile True:\n  for i in range(0,96<<20,4096): m[i]\n";
    std::fs::write("/tmp/hog.py", hog).unwrap();
    let mut child = std::process::Command::new("bash")
        .args(["-c", "echo $$ > /sys/fs/cgroup/pressure/cgroup.procs; exec python3 /tmp/hog.py"])
        .stdout(std::process::Stdio::piped())
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
