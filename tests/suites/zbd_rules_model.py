"""The rules a host sees through ioctls and direct I/O. What is right is what the ZNS command set says and Linux passes on.

Each test gets a `Device` whose zones were just reset, and raises AssertionError with what is wrong.
"""

import errno
import os
import random
import threading

from storlab_suite import Skip, zoned
from zbd_device import CONVENTIONAL, SECTOR, SEQUENTIAL, Device, pattern

# What a rejected command looks like to a program: EIO, or EINVAL where the block layer knows the status (Linux 7).
REJECTED = (errno.EIO, errno.EINVAL)
TESTS = {}


def rule(test):
    TESTS[test.__name__] = test
    return test


def told(value):
    """Data in short."""
    if not isinstance(value, bytes):
        return repr(value)
    return f"{len(value)} bytes {value[:8].hex()}..." if len(value) > 8 else value.hex()


def equal(found, right, what):
    if isinstance(found, bytes) and isinstance(right, bytes) and found != right and len(found) == len(right):
        at = next(n for n, (one, other) in enumerate(zip(found, right)) if one != other)
        raise AssertionError(f"{what}: at byte {at} found {told(found[at:])}, right is {told(right[at:])}")
    assert found == right, f"{what}: found {told(found)}, right is {told(right)}"


def one_of(found, right, what):
    assert found in right, f"{what}: found {told(found)}, right is one of {', '.join(map(told, right))}"


def done(problem, what):
    assert problem is None, f"{what} failed: {os.strerror(problem) if isinstance(problem, int) else problem}"


def refused(problem, what, numbers=REJECTED):
    assert problem is not None, f"{what} succeeded, and must be refused"
    names = [errno.errorcode[number] for number in numbers]
    assert problem in numbers, f"{what} failed with {errno.errorcode.get(problem, problem)}, and should with {names}"


def some(zones, what):
    if not zones:
        raise Skip(f"the device has not {what}")
    return zones


def block(device, seed=1, count=1):
    return pattern(seed, device.block * count)


def limit(device, name):
    """A limit of zones. 0 is none; what the kernel only recommends (above the zones there are) is none too."""
    found = int(device.sysfs(f"queue/max_{name}_zones"))
    return found if found < len(device.report()) - len(device.conventional()) else 0


# --- What the device says of itself --------------------------------------------------------------


@rule
def sysfs_and_ioctls_agree(device, _):
    """Zone size, number of zones and capacity are the same in sysfs, by ioctl and in the report."""
    size = device.number(0x80081272, "=Q")  # BLKGETSIZE64
    equal(int(device.sysfs("size")) * SECTOR, size, "capacity in sysfs")
    equal(int(device.sysfs("queue/chunk_sectors")), device.zone_sectors, "chunk_sectors")
    equal(int(device.sysfs("queue/nr_zones")), device.zone_count, "nr_zones in sysfs")
    equal(-(-size // (device.zone_sectors * SECTOR)), device.zone_count, "zones that cover the capacity")
    equal(len(device.report()), device.zone_count, "zones in the report")
    equal(device.sysfs("queue/zoned"), "host-managed", "the zone model")
    most_open, most_active = (int(device.sysfs(f"queue/max_{name}_zones")) for name in ("open", "active"))
    assert not most_active or most_open <= most_active, f"{most_open} may be open, and {most_active} active"
    append = int(device.sysfs("queue/zone_append_max_bytes"))
    assert 0 < append <= device.zone_sectors * SECTOR, f"zone_append_max_bytes is {append}"
    assert append % device.block == 0, f"zone_append_max_bytes is {append}, with blocks of {device.block}"


@rule
def a_report_is_consistent(device, _):
    """Zones follow each other without a gap and cover the device; every field fits the zone's type and state."""
    at = 0
    for n, zone in enumerate(device.report()):
        equal(zone.start, at, f"start of zone {n}")
        equal(zone.length, device.zone_sectors, f"length of zone {n}")
        assert 0 < zone.capacity <= zone.length, f"zone {n} has a capacity of {zone.capacity} sectors"
        assert zone.kind in (CONVENTIONAL, SEQUENTIAL), f"zone {n} is of type {zone.kind}"
        equal(zone.state, "conventional" if zone.kind == CONVENTIONAL else "empty", f"state of zone {n}")
        if zone.kind == SEQUENTIAL:
            equal(zone.pointer, zone.start, f"write pointer of the empty zone {n}")
        at += zone.length
    equal(at, int(device.sysfs("size")), "sectors in all zones")


@rule
def a_part_of_a_report_is_the_same_as_the_whole(device, _):
    """Reports that start inside a zone, at the last zone, or are short agree with the report of everything."""
    whole = device.report()
    draw = random.Random(1)
    for _ in range(40):
        first = draw.randrange(device.zone_count)
        count = draw.randint(1, device.zone_count)
        inside = draw.randrange(device.zone_sectors)
        equal(device.report(first * device.zone_sectors + inside, count), whole[first:first + count],
              f"{count} zones from sector {inside} of zone {first}")
    equal(device.report((device.zone_count - 1) * device.zone_sectors, 8), whole[-1:], "zones from the last on")


# --- Writes and the write pointer ----------------------------------------------------------------


@rule
def a_write_moves_the_write_pointer_and_opens_the_zone(device, _):
    """A write at the pointer succeeds, moves it by what was written, and opens the zone implicitly."""
    index = some(device.sequential(1), "a sequential zone")[0]
    zone = device.zone(index)
    at = zone.start
    for count in (1, 3, 1, 16):
        done(device.write(at, block(device, at, count)), f"the write of {count} blocks at sector {at}")
        at += count * device.block // SECTOR
        now = device.zone(index)
        equal((now.pointer, now.state), (at, "implicitly open"), "pointer and state")
    equal(device.read(zone.start, device.block), block(device, zone.start), "what was written first")


@rule
def a_write_elsewhere_is_refused_and_ends(device, _):
    """Writes ahead of the pointer, behind it, and into a full zone are refused, each ends, and nothing changes. The first
    is the one that the kernel cannot judge itself: it knows no pointer yet."""
    first, second, third = some(device.sequential(3), "three sequential zones")
    blocks = device.block // SECTOR
    start = first * device.zone_sectors
    refused(device.write(start + 8 * blocks, block(device)), "a write into the middle of an empty zone")
    now = device.zone(first)
    equal((now.pointer, now.state), (start, "empty"), "the empty zone after it")
    done(device.write(start, block(device)), "the write at the pointer after it")
    start = second * device.zone_sectors
    done(device.write(start, block(device, 1, 4)), "the write of 4 blocks")
    refused(device.write(start, block(device, 2)), "a write behind the pointer")
    refused(device.write(start + 6 * blocks, block(device, 2)), "a write ahead of the pointer")
    now = device.zone(second)
    equal((now.pointer, now.state), (start + 4 * blocks, "implicitly open"), "the open zone after them")
    equal(device.read(start, 4 * device.block), block(device, 1, 4), "what the zone holds")
    done(device.write(start + 4 * blocks, block(device, 3)), "the write at the pointer after them")
    done(device.manage("finish", third), "finish")
    refused(device.write(third * device.zone_sectors, block(device)), "a write into a full zone")
    equal(device.zone(third).state, "full", "the full zone after it")


@rule
def a_zone_is_full_at_its_capacity(device, _):
    """A zone becomes full with its last writable block, and what follows up to the zone's end cannot be written."""
    index = some(device.sequential(1), "a sequential zone")[0]
    zone = device.zone(index)
    done(device.fill(index, 11), "filling the zone")
    equal(device.zone(index).state, "full", "state at the capacity")
    equal(device.read(zone.start + zone.capacity - 8, 4096), pattern(11 + ((zone.capacity * SECTOR - 1) >> 18 << 18), 256 << 10)[-4096:],
          "the last 4 KiB")
    if zone.capacity < zone.length:
        refused(device.write(zone.start + zone.capacity, block(device)), "a write between capacity and zone end")


@rule
def a_write_over_the_capacity_is_refused(device, _):
    """A request that starts below a zone's capacity and ends above it is refused as a whole."""
    index = some(device.sequential(1), "a sequential zone")[0]
    zone = device.zone(index)
    if zone.capacity == zone.length:
        raise Skip("the zone capacity is the zone size")
    last = zone.capacity - device.block // SECTOR
    for at in range(0, last, 512):
        done(device.write(zone.start + at, bytes(min(512, last - at) * SECTOR)), "filling")
    refused(device.write(zone.start + last, block(device, 1, 2)), "a write of two blocks where one is left")
    now = device.zone(index)
    equal((now.pointer, now.state), (zone.start + last, "implicitly open"), "the zone after it")


@rule
def the_kernel_splits_a_write_at_a_zone_border(device, _):
    """One write over the border of two zones, the first of which has one block left, fills it and opens the second."""
    first, second = some(device.sequential(2), "two sequential zones")
    zone = device.zone(first)
    if zone.capacity != zone.length:
        raise Skip("the zone capacity is below the zone size")
    blocks = device.block // SECTOR
    last = zone.length - blocks
    for at in range(0, last, 512):
        done(device.write(zone.start + at, bytes(min(512, last - at) * SECTOR)), "filling")
    data = pattern(7, 2 * device.block)
    done(device.write(zone.start + last, data), "the write over the border")
    equal(device.zone(first).state, "full", "the first zone")
    now = device.zone(second)
    equal((now.pointer - now.start, now.state), (blocks, "implicitly open"), "the second zone")
    equal(device.read(zone.start + last, 2 * device.block), data, "what was written")


@rule
def what_was_not_written_reads_as_nothing(device, _):
    """Reads above the pointer, of empty zones and of reset zones end, and give zeroes (or ones throughout, which ZNS
    allows too, and null_blk does), never old data."""
    index = some(device.sequential(1), "a sequential zone")[0]
    start, four = index * device.zone_sectors, 4 * device.block
    nothing = [bytes(four), b"\xff" * four]
    one_of(device.read(start, four), nothing, "an empty zone")
    done(device.write(start, block(device, 1, 2)), "the write")
    found = device.read(start, four)
    equal(found[:four // 2], block(device, 1, 2), "below the pointer")
    one_of(found[four // 2:] * 2, nothing, "above the pointer")
    done(device.manage("reset", index), "the reset")
    one_of(device.read(start, four), nothing, "a zone that was reset")


@rule
def every_zone_holds_its_own_data(device, _):
    """Zones written in turns, over several rounds, give back what each was given."""
    zones = some(device.sequential(3), "three sequential zones")
    step = 64 << 10
    for turn in range(4):
        for index in zones:
            start = index * device.zone_sectors
            done(device.write(start + turn * step // SECTOR, pattern(index * 100 + turn, step)), f"a write to zone {index}")
    for index in zones:
        for turn in range(4):
            data = device.read(index * device.zone_sectors + turn * step // SECTOR, step)
            assert data == pattern(index * 100 + turn, step), f"zone {index} does not hold what round {turn} wrote"


# --- States --------------------------------------------------------------------------------------


def reach(device, index, state):
    """Bring an empty zone into a state."""
    start = index * device.zone_sectors
    if state == "full":
        done(device.manage("finish", index), "finish")
    elif state == "explicitly open":
        done(device.manage("open", index), "open")
    elif state in ("implicitly open", "closed"):
        done(device.write(start, block(device)), "write")
        if state == "closed":
            done(device.manage("close", index), "close")
    equal(device.zone(index).state, state, "the state to begin with")


# None: the command is refused and the zone stays what it is. Whether a close of an empty or a full zone is refused
# or does nothing differs between devices; that it ends, and that the zone stays what it is, does not.
ANY = "refused or nothing"
# A zone without data that was open: NVMe closes it, and it stays active; ZBC, and the kernel's own devices, empty it.
CLOSED_WITHOUT_DATA = ("closed", "empty")
TRANSITIONS = {
    ("empty", "open"): "explicitly open", ("empty", "close"): ANY, ("empty", "finish"): "full", ("empty", "reset"): "empty",
    ("implicitly open", "open"): "explicitly open", ("implicitly open", "close"): "closed",
    ("implicitly open", "finish"): "full", ("implicitly open", "reset"): "empty",
    ("explicitly open", "open"): "explicitly open", ("explicitly open", "close"): CLOSED_WITHOUT_DATA,
    ("explicitly open", "finish"): "full", ("explicitly open", "reset"): "empty",
    ("closed", "open"): "explicitly open", ("closed", "close"): "closed", ("closed", "finish"): "full",
    ("closed", "reset"): "empty",
    ("full", "open"): None, ("full", "close"): ANY, ("full", "finish"): "full", ("full", "reset"): "empty",
}


@rule
def every_transition_ends_in_the_right_state(device, _):
    """Each of open, close, finish and reset, in each of the states that a host can bring a zone into."""
    index = some(device.sequential(1), "a sequential zone")[0]
    for (before, operation), after in TRANSITIONS.items():
        done(device.manage("reset", index), "reset")
        reach(device, index, before)
        problem = device.manage(operation, index)
        what = f"{operation} of a zone that is {before}"
        if after is None:
            refused(problem, what)
        elif after != ANY:
            done(problem, what)
        right = before if after in (None, ANY) else after
        one_of(device.zone(index).state, right if isinstance(right, tuple) else (right,), f"the state after {what}")


@rule
def a_close_keeps_the_write_pointer(device, _):
    """A zone that was opened explicitly, written and closed is closed, goes on where it was, and is then open implicitly."""
    index = some(device.sequential(1), "a sequential zone")[0]
    start, blocks = index * device.zone_sectors, device.block // SECTOR
    done(device.manage("open", index), "open")
    done(device.write(start, block(device, 1, 2)), "the write")
    equal(device.zone(index).state, "explicitly open", "the state after a write")
    done(device.manage("close", index), "close")
    now = device.zone(index)
    equal((now.pointer, now.state), (start + 2 * blocks, "closed"), "pointer and state after close")
    done(device.write(start + 2 * blocks, block(device, 2)), "the write after close")
    equal(device.zone(index).state, "implicitly open", "the state after it")
    equal(device.read(start, 3 * device.block), block(device, 1, 2) + block(device, 2), "what the zone holds")


@rule
def a_finished_zone_keeps_its_data(device, _):
    """Finish keeps what was written; what was not reads as zeroes."""
    index = some(device.sequential(1), "a sequential zone")[0]
    start = index * device.zone_sectors
    done(device.write(start, block(device, 5, 2)), "the write")
    done(device.manage("finish", index), "finish")
    equal(device.read(start, 4 * device.block), block(device, 5, 2) + bytes(2 * device.block), "what the zone holds")


@rule
def a_reset_of_two_zones_leaves_their_neighbours(device, _):
    """One reset over two written zones empties these two, and neither of those beside them."""
    zones = some(device.sequential(4), "four sequential zones")
    if zones != list(range(zones[0], zones[0] + 4)):
        raise Skip("the first sequential zones do not follow each other")
    for index in zones:
        done(device.write(index * device.zone_sectors, pattern(index, 4096)), f"the write to zone {index}")
    equal([device.zone(n).pointer - device.zone(n).start for n in zones], [8] * 4, "pointers after 4 KiB each")
    done(device.manage("reset", zones[1], 2), "the reset of two zones")
    equal([device.zone(n).pointer - device.zone(n).start for n in zones], [8, 0, 0, 8], "pointers after the reset")
    equal(device.zone(zones[1]).state, "empty", "the state of a reset zone")
    for index in (zones[0], zones[3]):
        equal(device.read(index * device.zone_sectors, 4096), pattern(index, 4096), f"what zone {index} holds")


@rule
def a_reset_of_everything_spares_conventional_zones(device, _):
    """A reset over the whole device empties every sequential zone, in whatever state, and keeps conventional data."""
    zones = some(device.sequential(4), "four sequential zones")
    conventional = device.conventional()
    for index in conventional[:1]:
        done(device.write(index * device.zone_sectors, block(device, 9)), "the write to a conventional zone")
    for index, state in zip(zones, ("implicitly open", "explicitly open", "closed", "full")):
        reach(device, index, state)
    done(device.reset_all(), "the reset of everything")
    states = {zone.state for zone in device.report() if zone.kind == SEQUENTIAL}
    equal(states, {"empty"}, "states after it")
    for index in conventional[:1]:
        equal(device.read(index * device.zone_sectors, device.block), block(device, 9), "conventional data after it")


@rule
def conventional_zones_take_writes_anywhere(device, _):
    """Conventional zones are written in any order and again, and have no state to manage."""
    index = some(device.conventional(), "a conventional zone")[0]
    start, blocks = index * device.zone_sectors, device.block // SECTOR
    places = list(range(0, 32))
    random.Random(3).shuffle(places)
    for seed in (1, 2):
        for place in places:
            done(device.write(start + place * blocks, block(device, seed * 100 + place)), f"the write of block {place}")
    for place in places:
        equal(device.read(start + place * blocks, device.block), block(device, 200 + place), f"block {place}")
    for operation in ("open", "close", "finish"):
        refused(device.manage(operation, index), f"{operation} of a conventional zone")
    equal(device.zone(index).state, "conventional", "its state")


@rule
def ranges_that_are_not_zones_are_refused(device, _):
    """Zone commands take whole zones inside the device and nothing else."""
    last, size = device.zone_count * device.zone_sectors, device.zone_sectors
    for operation in ("reset", "open", "close", "finish"):
        for start, length in ((8, size), (0, size - 8), (last, size), (last - size, 2 * size), (0, 0), (2**63, size)):
            refused(device.command(operation, start, length), f"{operation} of {length} sectors from {start}",
                    (errno.EINVAL, errno.EIO))
    equal({zone.state for zone in device.report()} - {"conventional"}, {"empty"}, "states after them")


# --- Limits --------------------------------------------------------------------------------------


@rule
def no_more_zones_are_open_than_the_limit(device, _):
    """As many zones as the limit says can be opened; one more is refused and stays empty; a close makes room."""
    most = limit(device, "open")
    if not most:
        raise Skip("there is no limit of open zones")
    zones = some(device.sequential(most + 1), "more sequential zones than may be open")
    for index in zones[:most]:
        done(device.manage("open", index), f"open of zone {index}")
    refused(device.manage("open", zones[most]), "one open more", (errno.ETOOMANYREFS, errno.EOVERFLOW, errno.EIO))
    refused(device.write(zones[most] * device.zone_sectors, block(device)), "a write that would open one more",
            (errno.ETOOMANYREFS, errno.EOVERFLOW, errno.EIO))
    equal(device.zone(zones[most]).state, "empty", "the zone that was not opened")
    done(device.manage("reset", zones[0]), "reset of an open zone")
    done(device.write(zones[most] * device.zone_sectors, block(device)), "the write after it")


@rule
def a_zone_that_is_open_implicitly_makes_room(device, _):
    """Where every open zone was opened by a write, a write to one more closes one of them."""
    most = limit(device, "open")
    active = limit(device, "active")
    if not most or (active and active <= most):
        raise Skip("there is no limit of open zones below that of active ones")
    zones = some(device.sequential(most + 1), "more sequential zones than may be open")
    for index in zones:
        done(device.write(index * device.zone_sectors, block(device, index)), f"the write to zone {index}")
    states = [device.zone(index).state for index in zones]
    equal(states[-1], "implicitly open", "the zone that was written last")
    equal((states.count("implicitly open"), states.count("closed")), (most, 1), "open and closed zones")
    for index in zones:
        done(device.write(index * device.zone_sectors + device.block // SECTOR, block(device, index)), "the second write")


@rule
def no_more_zones_are_active_than_the_limit(device, _):
    """Closed zones count as active: at the limit neither open nor write takes one more; finish and reset make room."""
    most = limit(device, "active")
    if not most:
        raise Skip("there is no limit of active zones")
    zones = some(device.sequential(most + 1), "more sequential zones than may be active")
    for index in zones[:most]:
        done(device.write(index * device.zone_sectors, block(device)), f"the write to zone {index}")
        done(device.manage("close", index), f"close of zone {index}")
    numbers = (errno.EOVERFLOW, errno.ETOOMANYREFS, errno.EIO)
    start = zones[most] * device.zone_sectors
    refused(device.write(start, block(device)), "a write to one zone more", numbers)
    refused(device.manage("open", zones[most]), "open of one zone more", numbers)
    equal(device.zone(zones[most]).state, "empty", "the zone that was not opened")
    done(device.manage("finish", zones[0]), "finish of a closed zone")
    done(device.write(start, block(device)), "the write after finish")


@rule
def a_closed_zone_can_be_written_at_the_active_limit(device, _):
    """At the limit of active zones a write to a closed zone opens it again: it is active already."""
    most = limit(device, "active")
    if not most:
        raise Skip("there is no limit of active zones")
    zones = some(device.sequential(most), "as many sequential zones as may be active")
    for index in zones:
        done(device.write(index * device.zone_sectors, block(device)), f"the write to zone {index}")
    first = zones[0]
    done(device.manage("close", first), "close")
    done(device.write(first * device.zone_sectors + device.block // SECTOR, block(device)), "the write to the closed zone")
    equal(device.zone(first).state, "implicitly open", "its state")


@rule
def finish_of_an_empty_zone_ends_at_the_active_limit(device, _):
    """At the limit of active zones a finish of an empty zone fills it or is refused; no zone is active after it that was
    not before."""
    most = limit(device, "active")
    if not most:
        raise Skip("there is no limit of active zones")
    zones = some(device.sequential(most + 1), "more sequential zones than may be active")
    for index in zones[:most]:
        done(device.write(index * device.zone_sectors, block(device)), f"the write to zone {index}")
    problem = device.manage("finish", zones[most])
    equal(device.zone(zones[most]).state, "full" if problem is None else "empty", "the zone after finish")
    active = [zone.state for zone in device.report()].count
    equal(active("implicitly open") + active("closed"), most, "active zones")


# --- Deep queues, and several at once ------------------------------------------------------------


def fio(device, *more, seconds=50):
    ran = zoned.limited(["fio", "--name=job", f"--filename={device.path}", "--direct=1", "--zonemode=zbd", "--group_reporting",
                         "--ioengine=libaio", "--randseed=7", "--allow_file_create=0", *more], seconds)
    assert ran.status == 0, f"fio: {ran.why()}"
    assert "error" not in ran.err.lower(), ran.err[-300:]


@rule
def deep_sequential_writes_keep_their_order(device, _):
    """128 writes of 256 KiB in flight, with each scheduler: every one succeeds and all data is where it belongs."""
    zones = some(device.sequential(8), "eight sequential zones")
    chosen = device.sysfs("queue/scheduler")
    if device.zone(zones[0]).capacity * SECTOR < 1 << 20:
        raise Skip("zones are smaller than four writes")
    names = ["mq-deadline"] + (["none"] if zoned.kernel_at_least(6, 10) else [])
    try:
        for name in [name for name in names if name in chosen]:
            zoned.write_file(f"/sys/block/{device.name}/queue/scheduler", name)
            done(device.reset_all(), "reset")
            size = 8 * device.zone_sectors * SECTOR
            fio(device, "--rw=write", "--bs=256k", "--iodepth=128", f"--offset={zones[0] * device.zone_sectors * SECTOR}",
                f"--size={size}", "--verify=crc32c", "--verify_fatal=1", "--max_open_zones=1")
            states = [device.zone(index).state for index in zones]
            equal(states, ["full"] * 8, f"states with {name}")
    finally:
        zoned.write_file(f"/sys/block/{device.name}/queue/scheduler", chosen.split("[")[1].split("]")[0])


@rule
def random_writes_in_many_zones_verify(device, _):
    """Random zone writes with resets between, 32 in flight, read back and compared."""
    zones = some(device.sequential(4), "four sequential zones")
    most = limit(device, "open") or 8
    fio(device, "--rw=randwrite", "--bs=16k", "--iodepth=32", f"--offset={zones[0] * device.zone_sectors * SECTOR}",
        f"--max_open_zones={min(most, limit(device, 'active') or most, 8)}", "--io_size=24M", "--verify=crc32c",
        "--verify_fatal=1")


@rule
def reports_and_openings_beside_writes_disturb_nothing(device, _):
    """While one zone is rewritten over and over, the device is opened, closed, and its zones are read."""
    index = some(device.sequential(1), "a sequential zone")[0]
    over, problems, seen = threading.Event(), [], []

    def look():
        while not over.is_set():
            try:
                other = Device(device.path)
                zone = other.zone(index)
                # The pointer of a full zone means nothing.
                if zone.state != "full" and not zone.start <= zone.pointer < zone.start + zone.capacity:
                    problems.append(f"the pointer of the {zone.state} zone was at {zone.pointer}")
                seen.append(zone.state)
                os.close(other.file)
            except OSError as error:
                problems.append(str(error))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    fio(device, "--rw=randwrite", "--bs=4k", "--iodepth=8", f"--offset={index * device.zone_sectors * SECTOR}",
        f"--size={device.zone_sectors * SECTOR}", "--loops=4")
    over.set()
    watcher.join(10)
    assert not problems, f"{len(problems)} problems, the first: {problems[0]}"
    assert len(seen) > 3, f"the device was looked at only {len(seen)} times"


@rule
def writers_of_different_zones_do_not_disturb_each_other(device, _):
    """Four processes write a zone each at the same time, block by block, with a neighbour that resets its own zone."""
    zones = some(device.sequential(4), "four sequential zones")
    most = min(limit(device, "open") or 4, limit(device, "active") or 4)
    if most < 4:
        raise Skip("fewer than four zones may be open")
    count, children = 200, []
    for number, index in enumerate(zones):
        child = os.fork()
        if child == 0:
            own, start, blocks = Device(device.path), index * device.zone_sectors, device.block // SECTOR
            good = True
            for n in range(count):
                if number == 3 and n % 50 == 0:
                    good = good and own.manage("reset", index) is None
                good = good and own.write(start + n % (50 if number == 3 else count) * blocks, block(own, n)) is None
            os._exit(0 if good else 1)
        children.append(child)
    for child in children:
        equal(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0, "exit status of a writer")
    for index in zones[:3]:
        start, blocks = index * device.zone_sectors, device.block // SECTOR
        equal(device.zone(index).pointer - start, count * blocks, f"pointer of zone {index}")
        for n in (0, count // 2, count - 1):
            equal(device.read(start + n * blocks, device.block), block(device, n), f"block {n} of zone {index}")
