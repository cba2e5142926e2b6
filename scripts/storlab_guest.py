"""The guests that scripts/kernel runs a command in: what they share, and how each is started.

Whatever happens to the command, the guest or the caller, no process and no file of a guest is left:
everything of a guest is one session, and `Job.close` ends it. See guest-init for the other side.
"""

import collections
import ctypes
import hashlib
import lzma
import os
import re
import secrets
import select
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.realpath(__file__))
CONSOLE_LINES_SHOWN = 30
CONSOLE_LINES_KEPT = 400
# What a kernel takes at most on its command line (x86).
COMMAND_LINE_MAX_BYTES = 2047
# A guest whose host was killed outright ends itself, so long after its time is over.
ORPHAN_SECONDS = 30
# The path of a job goes on a kernel command line and into socket addresses of 108 bytes.
PLAIN_PATH = r"[A-Za-z0-9/._-]{1,60}"
# Variables that mean something only on the machine they come from.
NOT_PASSED_ON = {
    "TMPDIR", "TMP", "TEMP", "PWD", "OLDPWD", "SHLVL", "_", "STORLAB_KERNEL", "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "DISPLAY", "WAYLAND_DISPLAY",
}
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Refused(Exception):
    """The command cannot be run; the text says why."""


def say(text):
    print(f"kernel: {text}", file=sys.stderr, flush=True)


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("STORLAB_CACHE") or os.path.join(base, "storlab")


# --- Processes --------------------------------------------------------------------------------


def ignore_signals():
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def start_session(argv, **more):
    """Start a program as the leader of a session of its own, which ends when this process does."""

    def prepare():
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    # A signal in between would leave a process that nobody knows.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare, **more
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def adopt_orphans():
    """Processes whose parent ends before them become ours, and not those of an init that may never
    ask how they ended."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def session_members(leader):
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                state, _, _, session = file.read().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # It has ended meanwhile.
        if session == str(leader) and state != "X":
            yield int(entry)


def end_session(process):
    """Kill every process of the session that `process` leads, and wait until none is left."""
    for _ in range(500):
        left = list(session_members(process.pid))
        if not left:
            break
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                if pid != process.pid:
                    os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):
                pass  # It has ended, or is not ours yet.
        process.poll()
        time.sleep(0.01)
    process.wait()


# --- Streams ----------------------------------------------------------------------------------


class Console:
    """The last lines of a guest's console, for when it fails."""

    def __init__(self):
        self.lines = collections.deque(maxlen=CONSOLE_LINES_KEPT)
        self.partial = b""

    def add(self, data):
        *lines, self.partial = (self.partial + data).split(b"\n")
        self.lines.extend(lines)

    def show(self):
        lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()c].?|\r", "", line.decode(errors="replace"))
                 for line in (*self.lines, self.partial)]
        lines = [line for line in lines if line.strip()]
        before, lines = lines[:-CONSOLE_LINES_SHOWN], lines[-CONSOLE_LINES_SHOWN:]
        if not lines:
            say("the guest's console is empty")
            return
        # The trace of a panic is longer than what is shown, and ends with what nobody needs.
        for line in before:
            if re.search(r"Kernel panic|Oops|\bBUG\b", line):
                say(f"the guest's console: {line}")
        say(f"the last {len(lines)} lines of the guest's console:")
        for line in lines:
            print(f"  | {line}", file=sys.stderr, flush=True)


def write_all(target, data):
    while data:
        try:
            data = data[os.write(target, data):]
        except BlockingIOError:  # Whoever shares the file with us made it so.
            select.select([], [target], [])


class Stream:
    """One of the command's two output streams, copied to ours until its end mark."""

    def __init__(self, target, end):
        self.target, self.end, self.held, self.ended = target, end, b"", False

    def add(self, data):
        if self.ended:
            return
        before, mark, _ = (self.held + data).partition(self.end)
        self.held, self.ended = b"", bool(mark)
        # A beginning of the mark, which may go on in the next piece, starts with its only NUL.
        start = before.rfind(self.end[:1], -len(self.end)) if not mark else -1
        if start >= 0 and self.end.startswith(before[start:]):
            before, self.held = before[:start], before[start:]
        write_all(self.target, before)

    def flush(self):
        rest, self.held = self.held, b""
        write_all(self.target, rest)


# --- A running guest --------------------------------------------------------------------------


def working_tree():
    """The current directory, or the repository when that is inside it: a test's directory is its
    crate's, and its binaries are in target/."""
    top, current = os.path.dirname(HERE), os.getcwd()
    return top if os.path.commonpath([top, current]) == top else current


class Job:
    """A guest that runs one command: its directory, process, console and streams."""

    def __init__(self, kind, options):
        base = tempfile.gettempdir()
        self.directory = tempfile.mkdtemp(
            prefix="storlab-guest.", dir=base if re.fullmatch(PLAIN_PATH, base) else "/tmp"
        )
        self.options = options
        self.process = None
        self.console = Console()
        self.selector = selectors.DefaultSelector()
        end = secrets.token_hex(16)
        self.streams = {
            name: Stream(target, b"\0" + end.encode()) for name, target in (("stdout", 1), ("stderr", 2))
        }
        self.shared = []
        for directory in sorted({working_tree(), *options.rw}):
            if not any(os.path.commonpath([directory, outer]) == outer for outer in self.shared):
                self.shared.append(directory)
        environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        environment["STORLAB_KERNEL"] = "host"
        words = [*(f"{name}={value}" for name, value in environment.items()), *options.command]
        self.write("vars", f"guest={'uml' if kind == 'uml' else 'qemu'}\nend={end}\n"
                           f"limit={int(options.timeout) + ORPHAN_SECONDS}\n")
        self.write("shares", "".join(f"share {n} {shlex.quote(path)}\n" for n, path in enumerate(self.shared)))
        self.write("command", f"cd {shlex.quote(os.getcwd())} || exit 125\nexec /usr/bin/env -i {shlex.join(words)}\n")
        shutil.copy(os.path.join(HERE, "guest-init"), self.init)
        os.chmod(self.init, 0o755)

    @property
    def init(self):
        return os.path.join(self.directory, "init")

    def write(self, name, text):
        with open(os.path.join(self.directory, name), "wb") as file:
            file.write(os.fsencode(text))

    def read(self, file, take):
        """Give what comes from `file` to `take`, until it ends."""

        def copy():
            try:
                data = os.read(file.fileno(), 65536)
            except BlockingIOError:
                return
            except OSError:  # The other side is gone, as when a socket is reset.
                data = b""
            if data:
                take(data)
            else:
                self.selector.unregister(file)
                file.close()

        os.set_blocking(file.fileno(), False)
        self.selector.register(file, selectors.EVENT_READ, copy)

    def listen(self, name):
        """A socket that the guest's machine connects to; what comes in is the stream `name`."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.join(self.directory, name))
        listener.listen(1)

        def accept():
            connection, _ = listener.accept()
            self.selector.unregister(listener)
            listener.close()
            self.read(connection, self.streams[name].add)

        self.selector.register(listener, selectors.EVENT_READ, accept)

    def pump(self, seconds):
        """Copy what has arrived, or wait for it at most so long. False when nothing came."""
        events = self.selector.select(seconds)
        for key, _ in events:
            key.data()
        return bool(events)

    def status(self):
        try:
            with open(os.path.join(self.directory, "status"), encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            return None

    def run(self):
        """Until the command has ended, the guest has, or the time is over: the exit status."""
        deadline = time.monotonic() + self.options.timeout
        while not all(stream.ended for stream in self.streams.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                self.flush()
                self.console.show()
                say(f"stopped: the time ran out after {self.options.timeout:g} s (--timeout)")
                return 124
            self.pump(min(left, 0.2))
            if self.process.poll() is not None:
                while self.pump(0.2):
                    pass
                break
        self.flush()
        status = self.status()
        if status is not None:
            return status
        self.console.show()
        say("the guest ended before the command did")
        return 125

    def flush(self):
        for stream in self.streams.values():
            stream.flush()

    def close(self):
        if self.process:
            end_session(self.process)
        shutil.rmtree(self.directory, ignore_errors=True)


def check_command_line(text):
    if len(text.encode()) > COMMAND_LINE_MAX_BYTES:
        raise Refused(f"the kernel's command line is longer than {COMMAND_LINE_MAX_BYTES} bytes (--append)")
    return text


# --- Virtual machines -------------------------------------------------------------------------


def start_virtual_machine(job, virtme_run, image, directory, kvm):
    """Boot the kernel `image`, whose modules are in `directory`/lib/modules."""
    options = job.options
    cpus = options.cpus or 2
    if not kvm and cpus > 1:
        # QEMU's multi-threaded TCG has been seen to panic the guest at boot.
        if options.cpus:
            say("one CPU instead of several: this guest is emulated")
        cpus = 1

    def share(number, path, tag, *flags):
        fields = [f"local,id=storlab{number}", "path=" + path.replace(",", ",,"), "security_model=none",
                  "multidevs=remap", *flags]
        return ["-fsdev", ",".join(fields), "-device", f"virtio-9p-pci,fsdev=storlab{number},mount_tag={tag}"]

    devices = [
        *share("r", "/", "storlab.root", "readonly=on"),
        *share("m", directory, "storlab.modules", "readonly=on"),
        *share("j", job.directory, "storlab.job"),
        "-device", "virtio-serial-pci,id=storlab",
    ]
    for number, path in enumerate(job.shared):
        devices += share(number, path, f"storlab.rw{number}")
    for name in job.streams:
        job.listen(name)
        devices += ["-chardev", f"socket,id=storlab-{name},path={job.directory}/{name}",
                    "-device", f"virtserialport,bus=storlab.0,chardev=storlab-{name},name=storlab.{name}"]
    # virtme-ng makes the machine, and an initramfs that mounts this machine's root and executes
    # init=. Its own init starts systemd-tmpfiles and udev, which takes 20 s under TCG and gives
    # what other guests do not have: so the command line, of which QEMU takes the last, names ours.
    arguments = f"console=ttyS0 earlyprintk=serial,ttyS0,115200 loglevel=4 panic=-1 ro {options.append}"
    arguments += f" {'' if kvm else 'mitigations=off '}init={job.init}"
    job.process = start_session(
        [virtme_run, "--kimg", image, "--mods", "auto", "--force-9p", "--memory", options.mem, "--cpus", str(cpus),
         *([] if kvm else ["--disable-kvm"]),
         "--qemu-opts", "-no-reboot", *devices, "-append", check_command_line(arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
    )
    job.read(job.process.stdout, job.console.add)
    job.read(job.process.stderr, job.console.add)


def why_no_kvm(image, limit_seconds):
    """Start a small guest with KVM: None when it runs, else the reason. Takes at most the limit."""
    busybox = shutil.which("busybox")
    if not busybox or not shutil.which("cpio"):
        return "busybox or cpio is not installed, which trying KVM needs; scripts/setup installs them"
    with tempfile.TemporaryDirectory(prefix="storlab-kvm.") as job:
        shutil.copy(busybox, os.path.join(job, "busybox"))
        with open(os.path.join(job, "init"), "w", encoding="ascii") as file:
            file.write("#!/busybox sh\n/busybox echo guest-runs\n/busybox poweroff -f\n")
        os.chmod(os.path.join(job, "init"), 0o755)
        os.makedirs(os.path.join(job, "dev"))
        archive = os.path.join(job, "initramfs")
        with open(archive, "wb") as file:
            subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=job, stdout=file, check=True,
                           input=b"init\nbusybox\ndev\n")
        # The machine and the CPU are those that virtme-ng asks for.
        guest = start_session(
            ["qemu-system-x86_64", "-machine", "accel=kvm", "-cpu", "host,topoext=on", "-m", "512M", "-nodefaults",
             "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", image, "-initrd", archive,
             "-append", "console=ttyS0 panic=-1 loglevel=4"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        try:
            console, errors = guest.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            return f"a guest did not start within {limit_seconds} s"
        finally:
            end_session(guest)
    if b"guest-runs" in console:
        return None
    lines = (errors or console).decode(errors="replace").strip().splitlines()
    return "a guest did not run: " + (lines[-1].strip()[:160] if lines else f"QEMU ended with {guest.returncode}")


# --- User-Mode Linux --------------------------------------------------------------------------


def uml_kernel(path):
    """The executable itself, or the one that its .xz holds, unpacked into the cache."""
    with open(path, "rb") as file:
        packed = file.read()
    if packed[:6] == b"\xfd7zXZ\0":
        name = re.sub(r"\.xz$", "", os.path.basename(path))
        unpacked = os.path.join(cache_dir(), "uml", f"{name}-{hashlib.sha256(packed).hexdigest()[:16]}")
        if not os.path.exists(unpacked):
            try:
                kernel = lzma.decompress(packed)
            except (lzma.LZMAError, EOFError) as error:
                raise Refused(f"{path} cannot be unpacked: {error}") from error
            os.makedirs(os.path.dirname(unpacked), exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=os.path.dirname(unpacked), delete=False) as file:
                file.write(kernel)
            os.chmod(file.name, 0o755)
            os.replace(file.name, unpacked)
        path = unpacked
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF" or not os.access(path, os.X_OK):
            raise Refused(f"{path} is not an executable User-Mode Linux kernel")
    return path


def memory_dir(mem):
    """Where UML keeps the guest's memory: in memory, when there is room, and not on a disk."""
    needed = int(mem[:-1]) << {"K": 10, "M": 20, "G": 30}[mem[-1]]
    try:
        space = os.statvfs("/dev/shm")
        if space.f_bavail * space.f_frsize > needed and os.access("/dev/shm", os.W_OK | os.X_OK):
            return "/dev/shm"
    except OSError:
        pass
    return tempfile.gettempdir()


def start_uml(job, path):
    kernel = uml_kernel(path)
    options = job.options
    arguments = [
        f"mem={options.mem}", f"ncpus={options.cpus or 2}", "seccomp=auto", "loglevel=4", f"uml_dir={job.directory}",
        "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={job.init}",
        "null_blk.nr_devices=0", "zram.num_devices=0", *shlex.split(options.append), "con=null",
    ]
    writers = []
    for number, take in enumerate((job.console.add, job.streams["stdout"].add, job.streams["stderr"].add)):
        reader, writer = os.pipe()
        job.read(os.fdopen(reader, "rb", buffering=0), take)
        writers.append(writer)
        arguments.append(f"con{number}=null,fd:{writer}")
    check_command_line(" ".join(arguments))
    job.process = start_session(
        [kernel, *arguments], stdout=writers[0], stderr=writers[0], pass_fds=writers, cwd="/",
        env={**os.environ, "TMPDIR": memory_dir(options.mem)},
    )
    for writer in writers:
        os.close(writer)
