"""A zoned block device as the kernel's zone ioctls and direct I/O show it (linux/blkzoned.h).

Every call goes to the device: no answer is kept.
"""

import collections
import fcntl
import mmap
import os
import struct

SECTOR = 512
# ioctls of the block layer, <linux/blkzoned.h> and <linux/fs.h>; the second word of each is its argument's size.
BLKREPORTZONE, BLKRESETZONE, BLKGETZONESZ, BLKGETNRZONES = 0xC0101282, 0x40101283, 0x80041284, 0x80041285
BLKOPENZONE, BLKCLOSEZONE, BLKFINISHZONE, BLKGETSIZE64 = 0x40101286, 0x40101287, 0x40101288, 0x80081272
OPERATIONS = {"reset": BLKRESETZONE, "open": BLKOPENZONE, "close": BLKCLOSEZONE, "finish": BLKFINISHZONE}
REPORT_HAS_CAPACITY = 1
HEADER = struct.Struct("=QII")
# start, len, wp, type, cond, non_seq, reset, reserved, capacity, reserved
ENTRY = struct.Struct("=QQQBBBB4xQ24x")
CONVENTIONAL, SEQUENTIAL = 1, 2
STATES = {0: "conventional", 1: "empty", 2: "implicitly open", 3: "explicitly open", 4: "closed", 13: "read-only",
          14: "full", 15: "offline"}

Zone = collections.namedtuple("Zone", "start length pointer kind state capacity")


def pattern(seed, length):
    """Bytes that tell their place: each 16 name the seed and their offset."""
    return b"".join(struct.pack("=QQ", seed, at) for at in range(0, length, 16))


class Device:
    """An open device. Sectors are of 512 bytes everywhere."""

    def __init__(self, path):
        self.path, self.name = path, os.path.basename(path)
        self.file = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.block = int(self.sysfs("queue/logical_block_size"))
        self.zone_sectors = self.number(BLKGETZONESZ, "=I")
        self.zone_count = self.number(BLKGETNRZONES, "=I")

    def sysfs(self, name):
        with open(f"/sys/block/{self.name}/{name}", encoding="ascii") as file:
            return file.read().strip()

    def number(self, request, form):
        return struct.unpack(form, fcntl.ioctl(self.file, request, bytes(struct.calcsize(form))))[0]

    def report(self, start=0, count=None):
        """Zones from the one that holds a sector on, at most `count`."""
        count = self.zone_count if count is None else count
        buffer = bytearray(HEADER.size + count * ENTRY.size)
        HEADER.pack_into(buffer, 0, start, count, 0)
        fcntl.ioctl(self.file, BLKREPORTZONE, buffer, True)
        _, found, flags = HEADER.unpack_from(buffer)
        zones = []
        for n in range(found):
            first, length, pointer, kind, state, _, _, capacity = ENTRY.unpack_from(buffer, HEADER.size + n * ENTRY.size)
            zones.append(Zone(first, length, pointer, kind, STATES.get(state, f"state {state}"),
                              capacity if flags & REPORT_HAS_CAPACITY else length))
        return zones

    def zone(self, index):
        return self.report(index * self.zone_sectors, 1)[0]

    def sequential(self, count, but=0):
        """The indexes of the first `count` sequential zones."""
        found = [n for n, zone in enumerate(self.report()) if zone.kind == SEQUENTIAL]
        return found[but:but + count] if len(found) >= but + count else None

    def conventional(self):
        return [n for n, zone in enumerate(self.report()) if zone.kind == CONVENTIONAL]

    def command(self, operation, start, length):
        """A zone command over sectors: None, or its errno."""
        try:
            fcntl.ioctl(self.file, OPERATIONS[operation], struct.pack("=QQ", start, length))
        except OSError as error:
            return error.errno
        return None

    def manage(self, operation, index, count=1):
        return self.command(operation, index * self.zone_sectors, count * self.zone_sectors)

    def reset_all(self):
        return self.command("reset", 0, self.zone_sectors * self.zone_count)

    def write(self, sector, data):
        """A direct write: None, or its errno. A part of it done counts as done so far, and is tried no further."""
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            try:
                done = os.pwritev(self.file, [buffer], sector * SECTOR)
            except OSError as error:
                return error.errno
        return None if done == len(data) else f"only {done} of {len(data)} bytes"

    def read(self, sector, length):
        """A direct read: the bytes, or its errno."""
        with mmap.mmap(-1, length) as buffer:
            try:
                done = os.preadv(self.file, [buffer], sector * SECTOR)
            except OSError as error:
                return error.errno
            return buffer[:done]

    def fill(self, index, seed=None):
        """Write a zone from its start to its capacity, 256 KiB at a time."""
        zone = self.zone(index)
        step = 256 << 10
        for at in range(0, zone.capacity * SECTOR, step):
            length = min(step, zone.capacity * SECTOR - at)
            data = bytes(length) if seed is None else pattern(seed + at, length)
            problem = self.write(zone.start + at // SECTOR, data)
            if problem is not None:
                return problem
        return None
