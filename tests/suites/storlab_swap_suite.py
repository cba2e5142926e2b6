"""What the swap suites share: memory nodes, the swap device on them, a cgroup, the verifier, and one result document.

The invariant: nothing waits without a limit, and everything that was started is ended by its process id, whatever state
it is in. What cannot be ended is named, not waited for.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time

import storlab_suite as suite
from storlab_suite import zoned

MIB = 1 << 20
PAGE_BYTES = 4096
# No progress for so long is a hang. The longest that a page may wait on purpose is the daemon's patience with nodes.
HANG_SECONDS = 60
FIRST_PORT = 7101
RUN_DIR = "/run/storlab"
KEY_FILE = "/tmp/storlab-swap.key"
# Emulation is slower than anything that is waited for here on a usual machine.
SLOW = 6 if zoned.machine()["runner"] == "tcg" else 1


class Failed(Exception):
    """What the suite looks for has happened; the text is the verdict."""


class Hang(Failed):
    """No progress."""


def until(check, seconds, what):
    """Wait until `check()` is true: its value."""
    deadline = time.monotonic() + seconds * SLOW
    while not (value := check()):
        if time.monotonic() > deadline:
            raise Failed(f"not in {seconds * SLOW} s: {what}")
        time.sleep(0.05)
    return value


def alive(pid):
    """Whether the process is there and not only waits for its parent."""
    # A daemon's parent has ended; then it is ours (adopt_orphans) and we are asked.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
        # Its first thread may have ended while others still hold its sockets.
        return state not in "ZX" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def end(pid, number=signal.SIGKILL, seconds=20):
    """Send the signal and wait until the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    until(lambda: not alive(pid), seconds, f"the end of process {pid}")


def peak_kib(pid):
    """The most memory that the process ever had, in KiB; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return int(re.search(r"^VmHWM:\s*(\d+)", file.read(), re.M)[1])
    except (OSError, TypeError):
        return 0


def new_key(path):
    """A key file of its own."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
        file.write(f"storlab-dpuswap-key 1\n{os.urandom(32).hex()}\n")
    return path


# --- Nodes ---------------------------------------------------------------------------------------


class Node:
    """A dpuswap-node, on loopback or in a network namespace."""

    def __init__(self, number, memory_mib, address="127.0.0.1", namespace=None, key=KEY_FILE, lock=True, more=()):
        self.number, self.memory_mib, self.namespace, self.key = number, memory_mib, namespace, key
        self.lock, self.more, self.pid, self.deaths = lock, list(more), None, 0
        self.name = f"{address}:{FIRST_PORT + number}"
        self.page = ("127.0.0.1", FIRST_PORT + 100 + number)
        self.log = f"/tmp/node-{FIRST_PORT + number}.log"

    def start(self):
        if not self.deaths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.log)
        pid_file = f"/tmp/node-{FIRST_PORT + self.number}.pid"
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        security = ["--key-file", self.key] if self.key else ["--insecure-plaintext"]
        zoned.must([*inside, zoned.binary("dpuswap-node"), "--listen", self.name, "--memory", f"{self.memory_mib}MiB",
                    "--http", f"{self.page[0]}:{self.page[1]}", "--pid-file", pid_file, "--log", self.log, *security,
                    *(["--lock"] if self.lock else []), *self.more], 60 * SLOW)
        with open(pid_file, encoding="ascii") as file:
            self.pid = int(file.read())
        return self

    @property
    def up(self):
        return self.pid is not None and alive(self.pid)

    def kill(self, number=signal.SIGKILL, seconds=60):
        if self.pid is not None:
            if self.up:
                end(self.pid, number, seconds)
            self.pid, self.deaths = None, self.deaths + 1

    def http(self, method, path, seconds=10):
        """The body of the node's answer. Only for nodes that are in no namespace."""
        with socket.create_connection(self.page, seconds) as link:
            link.sendall(f"{method} {path} HTTP/1.0\r\nHost: node\r\nContent-Length: 0\r\n\r\n".encode())
            said = b""
            while piece := link.recv(65536):
                said += piece
        head, _, body = said.decode(errors="replace").partition("\r\n\r\n")
        if " 200 " not in head.splitlines()[0]:
            raise Failed(f"node {self.name}: {method} {path}: {head.splitlines()[0]}")
        return body

    def close(self):
        with contextlib.suppress(Failed):
            self.kill(signal.SIGKILL)


# --- The device ----------------------------------------------------------------------------------


class Device:
    """A ublk-dpuswap device, swapped on; swapped off before it is deleted."""

    def __init__(self, nodes, size_mib, cache_mib=16, replicas=1, key=KEY_FILE, more=()):
        self.size_mib, self.id, self.swapped = size_mib, None, False
        self.arguments = ["--size", f"{size_mib}MiB", "--cache", f"{cache_mib}MiB", "--replicas", replicas,
                          *(["--key-file", key] if key else ["--insecure-plaintext"]), *more,
                          *(word for node in nodes for word in ("--node", getattr(node, "name", node)))]
        # Of the daemons that are gone: what they had counted when they were last asked, and their most memory.
        self.before, self.peak_kib, self.lives = {}, 0, 0

    def program(self, *words, seconds=60):
        return zoned.limited([zoned.binary("ublk-dpuswap"), *words], seconds * SLOW)

    def must(self, *words, seconds=60):
        return zoned.must([zoned.binary("ublk-dpuswap"), *words], seconds * SLOW)

    def add(self):
        # Logs are appended to, by one device after another.
        logs = {one: os.path.getsize(f"{RUN_DIR}/{one}") for one in os.listdir(RUN_DIR)} if os.path.isdir(RUN_DIR) else {}
        self.path = self.must("add", *self.arguments, seconds=90)
        self.id = self.path.removeprefix("/dev/ublkb")
        self.log_start = logs.get(f"{self.id}.log", 0)
        self.lives = 1
        return self

    def swap_on(self):
        zoned.must(["mkswap", self.path], 60 * SLOW)
        zoned.must(["swapon", "-p", "100", "--discard", self.path], 60 * SLOW)
        self.swapped = True
        return self

    def stat(self, seconds=20):
        said = json.loads(self.must("stat", self.id, "--json", seconds=seconds))
        with contextlib.suppress(Failed):
            self.peak_kib = max(self.peak_kib, peak_kib(self.daemon()))
        return said

    def counters(self):
        return self.stat()["target"]["counters"]

    def daemon(self):
        listed = json.loads(self.must("list", "--json", seconds=20))
        pid = next((one.get("pid") for one in listed if str(one["id"]) == self.id), None)
        if not pid:
            raise Failed(f"{self.path} has no daemon: {listed}")
        return pid

    def kill(self):
        """kill -9 of the daemon, and until the kernel has noticed."""
        with contextlib.suppress(zoned.Failed):
            for name, value in self.counters().items():
                self.before[name] = self.before.get(name, 0) + value
        end(self.daemon())

        def noticed():
            listed = json.loads(self.must("list", "--json", seconds=20))
            return all(str(one["id"]) != self.id or one["state"] != "live" for one in listed)
        until(noticed, 30, f"{self.path} is no longer live once its daemon is killed")

    def recover(self):
        self.must("recover", self.id, seconds=90)
        self.lives += 1

    def total(self, name, counters):
        """Over all daemons that the device has had."""
        return self.before.get(name, 0) + counters.get(name, 0)

    def log(self):
        try:
            with open(f"{RUN_DIR}/{self.id}.log", "rb") as file:
                file.seek(self.log_start)
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def swap_off(self, seconds=120):
        done = zoned.limited(["swapoff", self.path], seconds * SLOW)
        self.swapped = done.status != 0
        if self.swapped:
            raise Hang(f"swapoff {self.path}: {done.why()}") if done.hung else Failed(f"swapoff {self.path}: {done.why()}")

    def close(self):
        """Whatever state it is in. False when something is left."""
        if self.id is None:
            return True
        good = True
        if self.swapped:
            try:
                self.swap_off()
            except (Failed, zoned.Failed) as error:
                print(f"  {error}", flush=True)
                good = False
        done = self.program("del", self.id, *([] if good else ["--force"]))
        if done.status != 0:
            with contextlib.suppress(Failed, zoned.Failed):
                end(self.daemon())
            done = self.program("del", self.id, "--force")
        if done.status != 0:
            print(f"  ublk-dpuswap del {self.id}: {done.why()}", flush=True)
        self.id = None
        return good and done.status == 0


def nothing_is_left():
    """Fails when a device, or the memory of one, is."""
    listed = json.loads(zoned.must([zoned.binary("ublk-dpuswap"), "list", "--json"]))
    with open("/proc/mounts", encoding="utf-8") as file:
        mounts = [line.split()[1] for line in file if "dpuswap-" in line]
    with open("/proc/swaps", encoding="utf-8") as file:
        swaps = [line.split()[0] for line in file if "ublk" in line]
    if listed or mounts or swaps:
        raise Failed(f"left behind: devices {listed}, mounts {mounts}, swaps {swaps}")


# --- Pressure ------------------------------------------------------------------------------------


class Cgroup:
    """A cgroup with little memory."""

    def __init__(self, high_mib, max_mib=None, name="storlab-swap"):
        self.path = f"/sys/fs/cgroup/{name}-{os.getpid()}"
        if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            raise zoned.Missing("no cgroup 2 at /sys/fs/cgroup")
        os.makedirs(self.path, exist_ok=True)
        zoned.write_file(f"{self.path}/memory.high", f"{high_mib}M")
        zoned.write_file(f"{self.path}/memory.max", f"{max_mib}M" if max_mib else "max")

    def read(self, name):
        with open(f"{self.path}/{name}", encoding="ascii") as file:
            return file.read().strip()

    def killed(self):
        """How many processes the kernel has killed here for want of memory."""
        found = re.search(r"^oom_kill (\d+)", self.read("memory.events"), re.M)
        return int(found[1]) if found else 0

    def close(self):
        if not os.path.isdir(self.path):
            return
        with contextlib.suppress(zoned.Failed):
            zoned.write_file(f"{self.path}/cgroup.kill", 1)
        deadline = time.monotonic() + 20 * SLOW
        while time.monotonic() < deadline:
            try:
                os.rmdir(self.path)
                return
            except OSError:
                time.sleep(0.1)
        print(f"  {self.path} cannot be removed: processes {self.read('cgroup.procs').split()}", flush=True)


class Verifier:
    """`swapverify`, in a cgroup if one is given; its last heartbeat, and since when it makes no progress."""

    def __init__(self, size_mib, seconds, seed, cgroup=None, discards=True, random_bytes=1400, threads=2):
        self.out_path, self.err_path = f"/tmp/swapverify.{os.getpid()}.out", f"/tmp/swapverify.{os.getpid()}.err"
        words = [zoned.binary("swapverify"), "--size", size_mib, "--seconds", seconds, "--seed", seed, "--threads", threads,
                 "--random-bytes", random_bytes, *([] if discards else ["--no-discards"])]
        enter = f"echo $$ > {cgroup.path}/cgroup.procs && " if cgroup else ""
        with open(self.out_path, "w", encoding="ascii") as out, open(self.err_path, "w", encoding="ascii") as err:
            self.process = subprocess.Popen(["sh", "-c", f'{enter}exec "$0" "$@"', *map(str, words)], stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=err, start_new_session=True, cwd="/tmp")
        self.out, self.rest = open(self.out_path, encoding="ascii"), ""
        self.last, self.pages, self.begun = {}, -1, time.monotonic()
        self.moved, self.longest_stall = self.begun, 0.0
        self.size_pages = size_mib * MIB // PAGE_BYTES

    def look(self):
        """The last heartbeat; raises Hang when there is none any more, or no progress in it."""
        text = self.rest + self.out.read()
        *lines, self.rest = text.split("\n")
        for line in lines:
            self.last = json.loads(line)
        now = time.monotonic()
        if self.last.get("pages", -1) != self.pages:
            self.pages, self.moved = self.last["pages"], now
        self.longest_stall = max(self.longest_stall, now - self.moved)
        if now - self.moved > HANG_SECONDS * SLOW and self.status() is None:
            raise Hang(f"no progress for {now - self.moved:.0f} s at second {self.last.get('second')}: "
                       f"{self.last.get('filled', 0)} of {self.size_pages} pages filled; {self.states()}")
        return self.last

    def states(self):
        """What its threads do, for the message."""
        told = []
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{self.process.pid}/task"):
                with open(f"/proc/{self.process.pid}/task/{thread}/stat", encoding="ascii") as file:
                    state = file.read().rpartition(")")[2].split()[0]
                with contextlib.suppress(OSError), open(f"/proc/{self.process.pid}/task/{thread}/wchan", encoding="ascii") as file:
                    state += " " + file.read()
                told.append(state.strip())
        return "threads: " + ", ".join(told) if told else "its process is gone"

    def status(self):
        return self.process.poll()

    @property
    def filled(self):
        return self.last.get("filled", 0) >= self.size_pages

    def wait(self, seconds, each=lambda: None):
        """Until it has ended: its last word. `each` is called again and again."""
        deadline = time.monotonic() + seconds * SLOW
        while self.status() is None:
            self.look()
            each()
            if time.monotonic() > deadline:
                raise Hang(f"not done after {seconds * SLOW} s, though it goes on: {json.dumps(self.last)}")
            time.sleep(0.1)
        last = self.look()
        if not last.get("done"):
            with open(self.err_path, encoding="utf-8", errors="replace") as file:
                said = file.read().strip().splitlines()
            status = self.status()
            ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            raise Failed(f"the verifier ended early: {ended}{': ' + said[-1] if said else ''}")
        return last

    def wrong(self):
        """The verifier's own words on wrong pages."""
        with open(self.err_path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()

    def close(self):
        zoned.end_session(self.process.pid, self.process.poll)
        self.out.close()
        for path in (self.out_path, self.err_path):
            os.unlink(path)


# --- Results -------------------------------------------------------------------------------------


def ms(value):
    """A time of ns, short."""
    if value is None:
        return "-"
    milliseconds = value / 1e6
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def markdown(columns, rows):
    """A table for a document."""
    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, rows)])


def document(name, title, about, parameters, started, seed, summary, tables, samples):
    """A result document, as scripts/figures reads it. `summary`: (label, value, unit); `tables`: (title, columns, rows)."""
    return {
        "schema": "storlab-result-1", "name": name, "title": title, "about": about, "started": started, "seed": seed,
        "parameters": parameters, "machine": zoned.machine(),
        "summary": [{"label": label, "value": value, "unit": unit, "talk": None} for label, value, unit in summary],
        "tables": [{"title": title, "columns": columns, "rows": rows} for title, columns, rows in tables],
        "figures": [], "samples": samples,
    }


__all__ = ["suite", "zoned"]
