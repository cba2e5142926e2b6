"""What scripts/bench/swap compares: how each swap device is made, what it says of itself, and how it goes away.

The invariant: one system is there at a time, and a system that cannot be had here says why and what would help.
"""

import json
import os
import re
import subprocess
import tempfile
import time

import storlab_zoned as zoned

NODE_PORTS = (7201, 7202)
ZONE_MIB = 16
# Beyond the swap device's size, for zones that are open, in reserve, or being emptied: half as much again, or so many zones.
ZNS_EXTRA = 1.5
ZNS_EXTRA_ZONES = 10
NBD_DEVICE = "/dev/nbd0"


def no_scheduler(path):
    """Requests go to the device as they come; some devices never have anything else."""
    file = f"/sys/block/{os.path.basename(path)}/queue/scheduler"
    if os.path.exists(file):
        zoned.write_file(file, "none")


class System:
    """A swap device. `open` gives its path; `close` removes it, whatever state it is in."""

    name = about = ""
    # Whether it can be measured as a block device, too.
    has_device = True

    def __init__(self, options):
        self.options = options
        self.path = None

    def open(self):
        raise NotImplementedError

    def close(self):
        raise NotImplementedError

    def stat(self):
        """What the device counts, or nothing."""
        return {}


def add_options():
    """What `ublk-dpuswap add` and `dpuswap-node` of this build understand."""
    return (zoned.must([zoned.binary("ublk-dpuswap"), "add", "--help"]),
            zoned.must([zoned.binary("dpuswap-node"), "--help"]))


class Ublk(System):
    """`ublk-dpuswap` in one of its modes, over nodes in its own process or over TCP."""

    mode = "dpuswap"
    needs_nodes = True

    def __init__(self, options):
        super().__init__(options)
        self.nodes = []
        self.number = None

    def node_mib(self):
        return -(-self.options.size * 3 // 4 // 16) * 16

    def arguments(self):
        """Beside the size; with what has to be there before."""
        known, node_known = add_options()
        words = []
        if "--mode" in known:
            words += ["--mode", self.mode]
        elif self.mode != "dpuswap":
            raise zoned.Missing(f"this build's ublk-dpuswap has no --mode {self.mode}")
        if self.options.link != "none" and "--link" not in known:
            raise zoned.Missing("this build's ublk-dpuswap has no --link: only --link none can be measured")
        if "--link" in known:
            words += ["--link", self.options.link]
        if not self.needs_nodes:
            return words
        if self.mode == "dpuswap":
            words += ["--cache", f"{self.options.cache}MiB"]
        if self.options.nodes == "mem":
            # Names must differ, and in the process the size is the name.
            return [*words, "--node", f"mem:{self.node_mib()}MiB", "--node", f"mem:{self.node_mib() + 16}MiB"]
        for port in NODE_PORTS:
            self.start_node(port, node_known)
            words += ["--node", f"127.0.0.1:{port}"]
        return [*words, *(["--insecure-plaintext"] if "--insecure-plaintext" in known else [])]

    def start_node(self, port, known):
        plain = ["--insecure-plaintext"] if "--insecure-plaintext" in known else []
        pid_file = f"/tmp/swapbench-node-{port}.pid"
        zoned.must([zoned.binary("dpuswap-node"), "--listen", f"127.0.0.1:{port}", "--memory", f"{self.node_mib()}MiB",
                    "--lock", "--pid-file", pid_file, *plain])
        with open(pid_file, encoding="ascii") as file:
            self.nodes.append(int(file.read()))

    def open(self):
        self.path = zoned.must([zoned.binary("ublk-dpuswap"), "add", "--size", f"{self.options.size}MiB",
                                *self.arguments()]).splitlines()[-1]
        self.number = self.path.removeprefix("/dev/ublkb")
        return self.path

    def close(self):
        try:
            if self.path:
                self.path = None
                zoned.must([zoned.binary("ublk-dpuswap"), "del", self.number, "--force"])
        finally:
            for pid in self.nodes:
                try:
                    os.kill(pid, 15)
                except ProcessLookupError:
                    pass
            for _ in range(100):
                if not any(os.path.exists(f"/proc/{pid}") for pid in self.nodes):
                    break
                time.sleep(0.1)
            self.nodes = []

    def stat(self):
        return json.loads(zoned.must([zoned.binary("ublk-dpuswap"), "stat", self.number, "--json"])).get("target", {})


class Dpuswap(Ublk):
    name, about = "dpuswap", "compressed remote memory with a local cache"


class Ssd:
    """A disk as null_blk models it: so long for a request, so much a second; its content is in memory."""

    # A SATA SSD: what its interface carries, and a usual time of a 4 KiB request.
    LATENCY_NS, MIB_PER_S = 80_000, 500

    def __init__(self, size_mib, name="storlab-swapbench", fast=False):
        latency_ns, mib_per_s = (0, 0) if fast else (self.LATENCY_NS, self.MIB_PER_S)
        top = "/sys/kernel/config/nullb"
        if not os.path.exists(top):
            zoned.limited(["modprobe", "null_blk", "nr_devices=0"], 30)
        if not os.path.exists(top):
            raise zoned.Missing("this kernel has no null_blk with configfs (the disk of infiniswap: see --disk, and of zswap and nvme-tcp)")
        self.directory = os.path.join(top, name)
        os.mkdir(self.directory)
        try:
            for attribute, value in (("size", size_mib), ("blocksize", 4096), ("memory_backed", 1),
                                     ("irqmode", 0 if fast else 2), ("completion_nsec", latency_ns), ("mbps", mib_per_s),
                                     ("power", 1)):
                zoned.write_file(os.path.join(self.directory, attribute), value)
            with open(os.path.join(self.directory, "index"), encoding="ascii") as file:
                index = file.read().strip()
            # Newer kernels name the device after its directory.
            self.path = next(path for path in (f"/dev/{name}", f"/dev/nullb{index}") if os.path.exists(path))
        except BaseException:
            self.close()
            raise

    def close(self):
        zoned.write_file(os.path.join(self.directory, "power"), 0)
        os.rmdir(self.directory)


class Infiniswap(Ublk):
    name, mode = "infiniswap", "infiniswap"
    about = "remote memory a page at a time with a backup on an SSD (null_blk: 80 us, 500 MiB/s), as Infiniswap does it"

    def __init__(self, options):
        super().__init__(options)
        self.disk = None

    def arguments(self):
        words = super().arguments()
        if self.options.disk == "none":
            return words
        self.disk = Ssd(self.options.size)
        return [*words, "--backup", self.disk.path]

    def close(self):
        super().close()
        if self.disk:
            disk, self.disk = self.disk, None
            disk.close()


class Znswap(Ublk):
    name, mode, about = "znswap", "znswap", "a zoned TLC SSD (model of FEMU's) with reclaim by the host, as ZNSwap does it"
    needs_nodes = False

    def __init__(self, options):
        super().__init__(options)
        self.zns = None

    def arguments(self):
        words = super().arguments()
        zones = max(-(-int(self.options.size * ZNS_EXTRA) // ZONE_MIB), -(-self.options.size // ZONE_MIB) + ZNS_EXTRA_ZONES)
        size = zones * ZONE_MIB
        self.zns = zoned.must([zoned.binary("ublk-zns"), "add", "--size", f"{size}MiB", "--zone-size", f"{ZONE_MIB}MiB",
                               "--profile", "femu-tlc"]).splitlines()[-1]
        no_scheduler(self.zns)
        # The link is that to the nodes, and an SSD has none.
        words[words.index("--link") + 1:words.index("--link") + 2] = ["none"]
        return [*words, "--zoned", self.zns]

    def close(self):
        super().close()
        if self.zns:
            number, self.zns = self.zns.removeprefix("/dev/ublkb"), None
            zoned.must([zoned.binary("ublk-zns"), "del", number, "--force"])


class Zram(System):
    name, about = "zram", "the kernel's compressed memory (LZ4), of this machine"

    def open(self):
        control = "/sys/class/zram-control/hot_add"
        if not os.path.exists(control):
            raise zoned.Missing("this kernel has no zram")
        with open(control, encoding="ascii") as file:
            number = file.read().strip()
        self.path = f"/dev/zram{number}"
        zoned.write_file(f"/sys/block/zram{number}/comp_algorithm", "lz4")
        zoned.write_file(f"/sys/block/zram{number}/disksize", f"{self.options.size}M")
        return self.path

    def close(self):
        if self.path:
            number, self.path = self.path.removeprefix("/dev/zram"), None
            zoned.write_file(f"/sys/block/zram{number}/reset", 1)
            zoned.write_file("/sys/class/zram-control/hot_remove", number)

    def stat(self):
        names = ("orig_data_bytes", "compressed_bytes", "used_bytes")
        values = zoned.sysfs(self.path, "mm_stat").split()
        return dict(zip(names, map(int, values)))


class Nbd(System):
    name, about = "nbd", "the kernel's NBD client and nbdkit's memory, over a socket of this machine"

    def __init__(self, options):
        super().__init__(options)
        self.server = None
        self.directory = None

    def open(self):
        if not os.path.exists(NBD_DEVICE):
            raise zoned.Missing("this kernel has no nbd")
        for program in ("nbdkit", "nbd-client"):
            if zoned.shutil.which(program) is None:
                raise zoned.Missing(f"{program} is not installed (scripts/setup)")
        self.directory = tempfile.TemporaryDirectory(prefix="swapbench.")
        socket = os.path.join(self.directory.name, "nbd.sock")
        self.server = subprocess.Popen(["nbdkit", "--foreground", "--swap", "-U", socket, "memory", f"{self.options.size}M"],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(100):
            if os.path.exists(socket):
                break
            if self.server.poll() is not None:
                raise zoned.Failed(f"nbdkit: {self.server.stderr.read().decode(errors='replace').strip()}")
            time.sleep(0.05)
        self.path = NBD_DEVICE
        zoned.must(["nbd-client", "-unix", socket, NBD_DEVICE, "-swap", "-block-size", "4096"])
        return self.path

    def close(self):
        if self.path:
            self.path = None
            zoned.limited(["nbd-client", "-d", NBD_DEVICE], 30)
        if self.server:
            self.server.terminate()
            try:
                self.server.wait(20)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
            self.server.stderr.close()
            self.server = None
        if self.directory:
            self.directory.cleanup()
            self.directory = None


class Zswap(System):
    """The kernel's compressed cache in front of swap on an SSD. Only swap goes through it, not requests to the device."""

    name, has_device = "zswap", False
    about = "zswap (LZ4, or the kernel's default where it has no LZ4) in front of an SSD (null_blk: 80 us, 500 MiB/s)"
    PARAMETERS = "/sys/module/zswap/parameters"
    # The rest as the kernel has it: a fifth of memory at most.
    WANTED = {"compressor": "lz4", "enabled": "Y"}

    def __init__(self, options):
        super().__init__(options)
        self.disk, self.before = None, {}

    def open(self):
        if not os.path.exists(self.PARAMETERS):
            raise zoned.Missing("this kernel has no zswap")
        self.disk = Ssd(self.options.size)
        for name, value in self.WANTED.items():
            path = os.path.join(self.PARAMETERS, name)
            with open(path, encoding="ascii") as file:
                self.before[path] = file.read().strip()
            try:
                zoned.write_file(path, value)
            except zoned.Failed:
                if name != "compressor":
                    raise
        self.path = self.disk.path
        return self.path

    def close(self):
        self.path = None
        while self.before:
            path, value = self.before.popitem()
            zoned.write_file(path, value)
        if self.disk:
            disk, self.disk = self.disk, None
            disk.close()


class NvmeTcp(System):
    name, about = "nvme-tcp", "the kernel's NVMe over TCP client and target, memory behind it (null_blk), over loopback"
    NQN, PORT, TOP = "nqn.2026-11.org.storlab:swapbench", 7220, "/sys/kernel/config/nvmet"

    def __init__(self, options):
        super().__init__(options)
        self.disk, self.controller, self.made = None, None, []

    def make(self, path):
        os.mkdir(path)
        self.made.append(path)
        return path

    def open(self):
        for module in ("nvmet-tcp", "nvme-tcp"):
            zoned.limited(["modprobe", module], 30)
        if not os.path.exists(self.TOP) or not os.path.exists("/dev/nvme-fabrics"):
            raise zoned.Missing("this kernel has no NVMe over fabrics (nvmet, nvmet-tcp, nvme-tcp)")
        self.disk = Ssd(self.options.size, fast=True)
        subsystem = self.make(f"{self.TOP}/subsystems/{self.NQN}")
        zoned.write_file(f"{subsystem}/attr_allow_any_host", 1)
        namespace = self.make(f"{subsystem}/namespaces/1")
        zoned.write_file(f"{namespace}/device_path", self.disk.path)
        zoned.write_file(f"{namespace}/enable", 1)
        port = self.make(f"{self.TOP}/ports/1")
        for name, value in (("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", "127.0.0.1"), ("trsvcid", self.PORT)):
            zoned.write_file(f"{port}/addr_{name}", value)
        link = f"{port}/subsystems/{self.NQN}"
        os.symlink(subsystem, link)
        self.made.append(link)
        # Not through a file object: those want to seek.
        fabrics = os.open("/dev/nvme-fabrics", os.O_RDWR)
        try:
            os.write(fabrics, f"transport=tcp,traddr=127.0.0.1,trsvcid={self.PORT},nqn={self.NQN}".encode())
            instance = re.search(r"instance=(\d+)", os.read(fabrics, 4096).decode())
        except OSError as error:
            raise zoned.Failed(f"nvme-tcp: connect to 127.0.0.1:{self.PORT}: {error.strerror}") from error
        finally:
            os.close(fabrics)
        if not instance:
            raise zoned.Failed("the NVMe over TCP client did not say which controller it made")
        self.controller = f"/sys/class/nvme/nvme{instance[1]}"
        for _ in range(100):
            found = [name for name in os.listdir("/sys/block") if self.is_ours(name) and os.path.exists(f"/dev/{name}")]
            if found:
                self.path = f"/dev/{found[0]}"
                return self.path
            time.sleep(0.05)
        raise zoned.Failed("no block device of the NVMe controller appeared")

    def is_ours(self, name):
        """A machine may have other NVMe disks, which are somebody's."""
        try:
            with open(f"/sys/block/{name}/device/subsysnqn", encoding="ascii") as file:
                return name.startswith("nvme") and file.read().strip() == self.NQN
        except OSError:
            return False

    def close(self):
        self.path = None
        if self.controller:
            controller, self.controller = self.controller, None
            zoned.write_file(f"{controller}/delete_controller", 1)
        while self.made:
            path = self.made.pop()
            if os.path.islink(path):
                os.unlink(path)
                continue
            if os.path.exists(f"{path}/enable"):
                zoned.write_file(f"{path}/enable", 0)
            os.rmdir(path)
        if self.disk:
            disk, self.disk = self.disk, None
            disk.close()


SYSTEMS = {system.name: system for system in (Dpuswap, Infiniswap, Znswap, Zram, Zswap, Nbd, NvmeTcp)}


class Swap:
    """A system with swap on it."""

    def __init__(self, system):
        self.system = system

    def __enter__(self):
        try:
            path = self.system.open()
            no_scheduler(path)
            zoned.must(["mkswap", path])
            zoned.must(["swapon", "-p", "100", "--discard", path])
        except BaseException:
            self.system.close()
            raise
        return self.system

    def __exit__(self, *_):
        path = self.system.path
        off = zoned.limited(["swapoff", path], 180)
        self.system.close()
        if off.status != 0:
            raise zoned.Failed(f"{self.system.name}: swapoff: {off.why()}")


def sorted_numbers(text):
    """Numbers of a kernel's file of `name value` lines."""
    return {name: int(value) for name, value in re.findall(r"^(\S+) (\d+)$", text, re.M)}
