"""Zoned devices for suites and benchmarks: how each is made and removed, and commands that cannot hang the caller.

The invariant: nothing here waits without a limit. A device that stops answering leaves processes that no signal ends;
they are found, named, and their device's daemon is killed, which fails what they wait for.
"""

import ctypes
import dataclasses
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
# Enough for any command that only makes or removes a device, on a busy machine.
PATIENCE_SECONDS = 90
# A killed process that is still there after so long is stuck in the kernel.
KILL_SECONDS = 10


class Missing(Exception):
    """A device cannot be had here; the text says why and what would help."""


class Failed(Exception):
    """A command that had to succeed did not; the text names it."""


# --- Commands under a limit --------------------------------------------------------------------


@dataclasses.dataclass
class Done:
    """A command that has ended, or was ended."""

    argv: list
    status: int | None  # None when it was ended at the limit.
    out: str
    err: str
    seconds: float
    stuck: list  # What no signal ended: "name (pid, state)".

    @property
    def hung(self):
        return self.status is None

    def why(self):
        said = (self.err or self.out).strip().splitlines()
        if self.hung:
            stuck = f"; stuck in the kernel: {', '.join(self.stuck)}" if self.stuck else ""
            return f"not done after {self.seconds:.0f} s{stuck}"
        return f"exit status {self.status}: {said[-1] if said else 'no message'}"


def session_of(leader):
    """The processes of a session, with their state."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                head, _, rest = file.read().rpartition(")")
        except OSError:
            continue  # It has ended meanwhile.
        state, _, _, session = rest.split()[:4]
        if session == str(leader) and state not in "XZ":
            yield int(entry), head.partition("(")[2], state


def end_session(leader, reap):
    """Kill a session. What is left after KILL_SECONDS is stuck, and is named."""
    deadline = time.monotonic() + KILL_SECONDS
    while True:
        left = list(session_of(leader))
        for pid, _, _ in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        reap()
        if not left:
            return []
        if time.monotonic() > deadline:
            return [f"{name} ({pid}, state {state})" for pid, name, state in left]
        time.sleep(0.05)


def limited(argv, seconds, cwd="/tmp", env=None, merged=False):
    """Run a command as a session of its own, for at most so many seconds."""
    argv = [str(word) for word in argv]
    begun = time.monotonic()
    # Files and not pipes: a stuck process would keep a pipe open for ever.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out if merged else err,
                                   start_new_session=True, cwd=cwd, env=env)
        try:
            status, stuck = process.wait(seconds), []
        except subprocess.TimeoutExpired:
            status, stuck = None, end_session(process.pid, process.poll)
        except BaseException:
            end_session(process.pid, process.poll)
            raise
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Done(argv, status, *texts, time.monotonic() - begun, stuck)


def must(argv, seconds=PATIENCE_SECONDS, **more):
    """The output of a command that has to succeed."""
    done = limited(argv, seconds, **more)
    if done.status != 0:
        raise Failed(f"{' '.join(done.argv)}: {done.why()}")
    return done.out.strip()


def adopt_orphans():
    """Processes of a session whose parent ends become ours, so that ending a session leaves none."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


# --- What devices share ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes in MiB; limits in zones, 0 for none."""

    size: int = 512
    zone: int = 4
    capacity: int = 0  # 0: the zone size.
    conv: int = 0
    max_open: int = 0
    max_active: int = 0
    queues: int = 1
    depth: int = 128
    block: int = 4096

    @property
    def zones(self):
        return self.size // self.zone

    def told(self):
        limits = f"{self.max_open or 'any number'} open, {self.max_active or 'any number'} active"
        return (f"{self.zones} zones of {self.zone} MiB, {self.capacity or self.zone} MiB writable, {self.conv} conventional, "
                f"{limits}, {self.queues} queue{'s' if self.queues > 1 else ''}")


def write_file(path, text):
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(text))
    except OSError as error:
        raise Failed(f"{path}: cannot write {text}: {error.strerror}") from error


def sysfs(path, name):
    with open(f"/sys/block/{os.path.basename(path)}/{name}", encoding="ascii") as file:
        return file.read().strip()


def binary(name):
    """A binary of this repository."""
    directory = os.environ.get("STORLAB_BIN") or os.path.join(
        os.environ.get("CARGO_TARGET_DIR") or os.path.join(TOP, "target"), "release")
    path = os.path.abspath(os.path.join(directory, name))
    if not os.path.exists(path):
        raise Missing(f"{path} is not built (scripts/build)")
    return path


def peer(name):
    """A program that `scripts/setup --peers` installs."""
    for path in (os.path.join(TOP, "target/peers/bin", name), shutil.which(name)):
        if path and os.access(path, os.X_OK):
            return path
    raise Missing(f"{name} is not installed (scripts/setup --peers)")


def kernel_at_least(major, minor):
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return bool(found) and (int(found[1]), int(found[2])) >= (major, minor)


class Target:
    """A kind of device. `open` gives its path; `close` removes it, whatever state it is in."""

    name = about = ""
    zoned = True
    path = None

    def open(self, geometry):
        raise NotImplementedError

    def close(self):
        raise NotImplementedError

    def daemon(self):
        """The process that serves the device, if one does."""
        return None

    def kill(self):
        """End the daemon, which fails what waits for it."""
        pid = self.daemon()
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def version(self):
        return f"Linux {platform.release()}"


class Ublk(Target):
    """A ublk device of this repository."""

    program = ""

    def arguments(self, geometry):
        raise NotImplementedError

    def open(self, geometry):
        self.path = must([binary(self.program), "add", "--queues", geometry.queues, "--depth", geometry.depth,
                          *self.arguments(geometry)])
        self.number = self.path.removeprefix("/dev/ublkb")
        return self.path

    def close(self):
        if self.path:
            must([binary(self.program), "del", self.number, "--force"])
            self.path = None

    def daemon(self):
        for one in json.loads(must([binary("ublk-target"), "list", "--json"])):
            if one["id"] == int(self.number):
                return one.get("pid")
        return None

    def version(self):
        return must([binary(self.program), "--version"]).split()[-1]


class Zns(Ublk):
    name, about, program = "ublk-zns", "the ZNS device of this repository", "ublk-zns"

    def __init__(self, more=()):
        self.more = list(more)

    def arguments(self, geometry):
        return ["--size", f"{geometry.size}MiB", "--zone-size", f"{geometry.zone}MiB", "--zone-capacity",
                f"{geometry.capacity or geometry.zone}MiB", "--conv-zones", geometry.conv, "--max-open", geometry.max_open,
                "--max-active", geometry.max_active, "--block-size", geometry.block, *self.more]


class Ceiling(Ublk):
    name, about, program = "ublk-null", "a ublk target that stores nothing, with user copy: the ceiling", "ublk-target"
    zoned = False

    def arguments(self, geometry):
        return ["--size", f"{geometry.size}MiB", "--user-copy"]


class Rublk(Target):
    name, about = "rublk", "rublk's zoned target, in memory"

    def open(self, geometry):
        if geometry.capacity not in (0, geometry.zone):
            raise Missing("rublk has no zone capacity below the zone size")
        program = peer("rublk")
        before = set(self.devices())
        must([program, "add", "zoned", "-q", geometry.queues, "-d", geometry.depth, "--size", f"{geometry.size}MiB",
              "--zone-size", f"{geometry.zone}MiB", "--conv-zones", geometry.conv, "--max-open-zones", geometry.max_open,
              "--max-active-zones", geometry.max_active, "--logical-block-size", geometry.block])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (new := set(self.devices()) - before):
            if time.monotonic() > deadline:
                raise Failed("rublk add zoned: no device appeared")
            time.sleep(0.05)
        self.path = "/dev/" + new.pop()
        self.number = self.path.removeprefix("/dev/ublkb")
        return self.path

    @staticmethod
    def devices():
        return (name for name in os.listdir("/sys/block") if name.startswith("ublkb"))

    def daemon(self):
        found = re.search(r"pid:? *(\d+)", must([peer("rublk"), "list", "-n", self.number]))
        return int(found[1]) if found and int(found[1]) > 0 else None

    def close(self):
        if not self.path:
            return
        done = limited([peer("rublk"), "del", "-n", self.number], 20)
        if done.status != 0:
            self.kill()
            must([peer("rublk"), "del", "-n", self.number], 40)
        self.path = None

    def version(self):
        return must([peer("rublk"), "--version"]).split()[-1]


class NullBlk(Target):
    """null_blk through configfs."""

    name, about = "null_blk", "the kernel's null_blk, zoned, in memory"
    memory_backed = 1
    made = itertools.count()

    def open(self, geometry):
        top = "/sys/kernel/config/nullb"
        if not os.path.isdir(top):
            limited(["modprobe", "null_blk", "nr_devices=0"], 30)
        if not os.path.isdir(top):
            raise Missing("this kernel has no null_blk with configfs")
        self.directory = f"{top}/storlab{next(self.made)}_{os.getpid()}"
        os.mkdir(self.directory)
        values = {"size": geometry.size, "memory_backed": self.memory_backed, "zoned": 1, "zone_size": geometry.zone,
                  "zone_capacity": geometry.capacity or geometry.zone, "zone_nr_conv": geometry.conv,
                  "zone_max_open": geometry.max_open, "zone_max_active": geometry.max_active, "blocksize": geometry.block,
                  "queue_mode": 2, "submit_queues": geometry.queues, "hw_queue_depth": geometry.depth, "irqmode": 0,
                  "power": 1}
        try:
            for key, value in values.items():
                write_file(f"{self.directory}/{key}", value)
        except Failed:
            os.rmdir(self.directory)
            raise
        # Newer kernels name the disk after the directory, older ones by its number.
        name = os.path.basename(self.directory)
        if not os.path.exists(f"/sys/block/{name}"):
            with open(f"{self.directory}/index", encoding="ascii") as file:
                name = "nullb" + file.read().strip()
        self.path = "/dev/" + name
        return self.path

    def close(self):
        if self.path:
            write_file(f"{self.directory}/power", 0)
            os.rmdir(self.directory)
            self.path = None


class NullBlkNoData(NullBlk):
    name, about, memory_backed = "null_blk, no data", "the kernel's null_blk, zoned, storing nothing", 0


class Zloop(Target):
    name, about = "zloop", "the kernel's zloop on tmpfs"

    def open(self, geometry):
        if not os.path.exists("/dev/zloop-control"):
            limited(["modprobe", "zloop"], 30)
        if not os.path.exists("/dev/zloop-control"):
            raise Missing("this kernel has no zloop (Linux 6.17 or later)")
        used = {name.removeprefix("zloop") for name in os.listdir("/sys/block") if name.startswith("zloop")}
        self.number = next(n for n in range(64) if str(n) not in used)
        self.base = f"/dev/shm/zloop.{os.getpid()}"
        os.makedirs(f"{self.base}/{self.number}", exist_ok=True)
        options = [f"id={self.number}", f"capacity_mb={geometry.size}", f"zone_size_mb={geometry.zone}",
                   f"zone_capacity_mb={geometry.capacity or geometry.zone}", f"conv_zones={geometry.conv}",
                   f"base_dir={self.base}", f"nr_queues={geometry.queues}", f"queue_depth={geometry.depth}"]
        if geometry.max_open:
            options.append(f"max_open_zones={geometry.max_open}")
        # tmpfs takes direct I/O since Linux 6.6; a zone then needs no page cache of its own above it.
        for more in ([], ["buffered_io"]):
            try:
                write_file("/dev/zloop-control", "add " + ",".join(options + more))
                break
            except Failed as error:
                problem = error
        else:
            shutil.rmtree(self.base, ignore_errors=True)
            raise Missing(str(problem))
        self.path = f"/dev/zloop{self.number}"
        return self.path

    def close(self):
        if self.path:
            write_file("/dev/zloop-control", f"remove id={self.number}")
            shutil.rmtree(self.base, ignore_errors=True)
            self.path = None


def machine():
    """What a result document says about where it was made."""
    cpu = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "host")):
                cpu = line.split(":", 1)[1].strip()
                break
    runner = os.environ.get("STORLAB_RUNNER")
    if not runner:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            text = file.read()
        runner = "uml" if "User Mode Linux" in text else "tcg" if "QEMU TCG" in text else "host"
    return {"kernel": platform.release(), "cpu": cpu, "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "runner": runner}
