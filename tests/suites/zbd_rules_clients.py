"""Other programs as clients: blkzone of util-linux and zbd of zbd-utils do what they are told, and all readers agree.

The readers: the report ioctl, `blkzone report`, `zbd report` and, for a device of ours, `ublk-zns report`.
"""

import json
import os
import re
import shutil

from storlab_suite import Skip, zoned
from zbd_device import SECTOR, STATES, pattern
from zbd_rules_model import CLOSED_WITHOUT_DATA, block, done, equal, limit, one_of, some

TESTS = {}
# A pointer means something in these states only.
POINTED = ("empty", "implicitly open", "explicitly open", "closed")
SECONDS = 20


def rule(test):
    TESTS[test.__name__] = test
    return test


def must(*argv):
    return zoned.must(argv, SECONDS)


def need(name):
    if not shutil.which(name):
        raise Skip(f"{name} is not installed")


def line(start, length, capacity, pointer, state):
    """A zone as every reader can tell it, in sectors."""
    return start, length, capacity, pointer if state in POINTED else None, state


def of_ioctl(device, start=0, count=None):
    return [line(z.start, z.length, z.capacity, z.pointer, z.state) for z in device.report(start, count)]


def of_blkzone(device, *more):
    zones = []
    for text in must("blkzone", "report", *more, device.path).splitlines():
        found = re.search(r"start: (\w+), len (\w+), cap (\w+), wptr (\S+) .*zcond: *(\d+)\(", text)
        assert found, f"blkzone report says {text!r}"
        start, length, capacity = (int(found[n], 16) for n in (1, 2, 3))
        pointer = start + int(found[4], 16) if found[4] != "N/A" else None
        zones.append(line(start, length, capacity, pointer, STATES[int(found[5])]))
    return zones


def of_zbd(device, *more):
    zones = []
    for text in must("zbd", "report", "-csv", *more, device.path).splitlines():
        cells = [cell.strip() for cell in text.split(",")]
        if not cells[0].isdigit():
            continue
        start, length, capacity, pointer = (int(cell) // SECTOR for cell in cells[2:6])
        zones.append(line(start, length, capacity, pointer, STATES[int(cells[6], 16)]))
    return zones


def of_ours(device):
    states = {"read_only": "read-only", "readonly": "read-only"}
    zones = []
    for zone in json.loads(must(zoned.binary("ublk-zns"), "report", device.name.removeprefix("ublkb"), "--json")):
        state = states.get(zone["state"], zone["state"].replace("_", " "))
        zones.append(line(zone["start_sectors"], zone["size_sectors"], zone["capacity_sectors"],
                          zone["write_pointer_sectors"], state))
    return zones


def agreed(device, target, what):
    """What all readers say, when they say the same."""
    right = of_ioctl(device)
    readers = {"blkzone": of_blkzone, "zbd": of_zbd, **({"ublk-zns": of_ours} if target.name == "ublk-zns" else {})}
    for name, reader in readers.items():
        found = reader(device)
        for n, (one, other) in enumerate(zip(found, right)):
            equal(one, other, f"{what}: zone {n} as {name} reports it (start, length, capacity, pointer, state)")
        equal(len(found), len(right), f"{what}: zones that {name} reports")
    return right


def zones_in_many_states(device):
    """Bring zones into every state that a host can; their indexes by state."""
    room = [n for n in (limit(device, "open"), limit(device, "active")) if n]
    if room and min(room) < 3:
        raise Skip("fewer than three zones may be open")
    zones = some(device.sequential(5), "five sequential zones")
    done(device.write(zones[0] * device.zone_sectors, block(device, 1, 3)), "the write")
    done(device.manage("open", zones[1]), "open")
    done(device.write(zones[2] * device.zone_sectors, block(device, 2, 2)), "the write")
    done(device.manage("close", zones[2]), "close")
    done(device.manage("finish", zones[3]), "finish")
    return dict(zip(("implicitly open", "explicitly open", "closed", "full", "empty"), zones))


@rule
def all_readers_agree_on_every_state(device, target):
    """Zones in every state that a host can bring about are the same to every reader, in whole and in part."""
    need("blkzone")
    need("zbd")
    zones = zones_in_many_states(device)
    report = agreed(device, target, "zones in every state")
    for state, index in zones.items():
        equal(report[index][4], state, f"state of zone {index}")
    first = zones["implicitly open"]
    start = first * device.zone_sectors
    equal(of_blkzone(device, "-o", str(start), "-c", "3"), report[first:first + 3], "three zones by blkzone")
    equal(of_zbd(device, "-ofst", str(start * SECTOR), "-len", str(3 * device.zone_sectors * SECTOR)), report[first:first + 3],
          "three zones by zbd")
    for state, short in (("implicitly open", "oi"), ("explicitly open", "oe"), ("closed", "cl"), ("full", "fu"), ("empty", "em")):
        equal(of_zbd(device, "-ro", short), [zone for zone in report if zone[4] == state], f"the zones that zbd finds {state}")


@rule
def sums_of_both_clients_agree(device, _):
    """The number of zones and the sum of capacities, as each client counts them."""
    need("blkzone")
    need("zbd")
    zones = device.report()
    capacity = sum(zone.capacity for zone in zones)
    equal(int(must("blkzone", "capacity", device.path), 16), capacity, "blkzone capacity, in sectors")
    counted = re.search(r"(\d+) zones", must("zbd", "report", "-n", device.path))
    equal(counted and int(counted[1]), len(zones), "zbd report -n")
    summed = re.search(r"(\d+) B", must("zbd", "report", "-c", device.path))
    equal(summed and int(summed[1]), capacity * SECTOR, "zbd report -c")


def commands(device, target, act):
    """The same for both clients: `act(operation, index, zones)`, looked at by all readers after each step."""
    room = [n for n in (limit(device, "open"), limit(device, "active")) if n]
    if room and min(room) < 2:
        raise Skip("fewer than two zones may be open")
    zones = some(device.sequential(4), "four sequential zones")
    steps = [("open", 0, 2, ("explicitly open", "explicitly open", "empty")), ("close", 0, 1, (CLOSED_WITHOUT_DATA, "explicitly open", "empty")),
             ("finish", 1, 1, (CLOSED_WITHOUT_DATA, "full", "empty")),
             ("reset", 1, 1, (CLOSED_WITHOUT_DATA, "empty", "empty")),
             ("finish", 0, 3, ("full", "full", "full")), ("reset", 0, 2, ("empty", "empty", "full")),
             ("reset", 0, 3, ("empty", "empty", "empty"))]
    for operation, first, count, states in steps:
        act(operation, zones[first], count)
        report = agreed(device, target, f"after {operation} of {count} zones from zone {zones[first]}")
        for index, right in zip(zones, states):
            one_of(report[index][4], right if isinstance(right, tuple) else (right,), f"state of zone {index} after {operation}")


@rule
def blkzone_manages_zones(device, target):
    """Each command of blkzone, over one zone and over several, does what it says to these zones alone."""
    need("blkzone")
    need("zbd")

    def act(operation, index, count):
        must("blkzone", operation, "-o", str(index * device.zone_sectors), "-c", str(count), device.path)

    commands(device, target, act)


@rule
def zbd_manages_zones(device, target):
    """Each command of zbd, over one zone and over several, does what it says to these zones alone."""
    need("blkzone")
    need("zbd")

    def act(operation, index, count):
        size = device.zone_sectors * SECTOR
        must("zbd", operation, "-ofst", str(index * size), "-len", str(count * size), device.path)

    commands(device, target, act)


@rule
def zbd_restores_what_it_has_dumped(device, target):
    """A dump of zones and data, a reset of everything, and a restore give the same pointers and the same data."""
    need("blkzone")
    need("zbd")
    zones = zones_in_many_states(device)
    place = f"/tmp/zbd-dump.{os.getpid()}"
    os.mkdir(place)
    try:
        must("zbd", "dump", "-d", place, "-f", "zones", device.path)
        done(device.reset_all(), "reset")
        must("zbd", "restore", "-d", place, "-f", "zones", device.path)
    finally:
        shutil.rmtree(place)
    report = agreed(device, target, "after the restore")
    blocks = device.block // SECTOR
    for state, written in (("implicitly open", 3), ("closed", 2)):
        start = zones[state] * device.zone_sectors
        equal(report[zones[state]][3], start + written * blocks, f"pointer of the zone that was {state}")
    equal(report[zones["full"]][4], "full", "the zone that was full")
    start = zones["implicitly open"] * device.zone_sectors
    equal(device.read(start, 3 * device.block), pattern(1, 3 * device.block), "the data of the open zone")


@rule
def a_refused_command_of_a_client_ends(device, _):
    """Closing an empty zone, opening a full one and a dd into the middle of an empty zone fail at once, as programs."""
    need("blkzone")
    index = some(device.sequential(2), "two sequential zones")[0]
    start = index * device.zone_sectors
    ran = zoned.limited(["blkzone", "close", "-o", start, "-c", "1", device.path], SECONDS)
    assert not ran.hung, f"blkzone close of an empty zone: {ran.why()}"
    done(device.manage("finish", index), "finish")
    ran = zoned.limited(["blkzone", "open", "-o", start, "-c", "1", device.path], SECONDS)
    assert ran.status == 1, f"blkzone open of a full zone: {ran.why()}"
    done(device.manage("reset", index), "reset")
    middle = (start + device.zone_sectors // 2) * SECTOR // 4096
    ran = zoned.limited(["dd", "if=/dev/zero", f"of={device.path}", "bs=4k", "count=1", f"seek={middle}", "oflag=direct"], SECONDS)
    assert ran.status == 1 and "error" in ran.err, f"dd into the middle of an empty zone: {ran.why()}"
    equal(device.zone(index).state, "empty", "the zone after it")
