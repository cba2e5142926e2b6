"""The measuring part of scripts/bench/swap: systems take turns at workloads; what each did, as a table and a document.

The invariant: numbers are compared only within one run, turn by turn in the same round; each turn has a device made anew. What
takes long and tells nothing (making devices, filling them, loading rows) is done once per turn, and a turn has many workloads.
"""

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import storlab_swap_charts as charts
import storlab_swap_systems as systems
import storlab_zoned as zoned

OURS = "dpuswap"
PEERS = ("infiniswap", "znswap")
GROUP = "/sys/fs/cgroup/swapbench"
# Beyond its own time a turn may need so long.
GRACE_SECONDS = 240
# What a row of the Redis workload takes in the server's memory, about.
ROW_BYTES = 1400
YCSB = "ABCDEF"
FIO = {"randread": ("randread", 4, 16), "randwrite": ("randwrite", 4, 16), "read": ("read", 128, 4),
       "write": ("write", 128, 4), "randread-qd1": ("randread", 4, 1)}
WORKLOADS = [*(f"fio-{name}" for name in FIO), *(f"ycsb-{letter.lower()}" for letter in YCSB), "sort", "pagerank",
             "stress", "verify"]


# --- Under a limit of memory ---------------------------------------------------------------------


class Group:
    """A control group: what runs in it has so much memory, and the rest is swapped."""

    def __init__(self, limit_bytes=None, swap_bytes=None):
        os.makedirs(GROUP, exist_ok=True)
        zoned.write_file(f"{GROUP}/memory.max", limit_bytes or "max")
        zoned.write_file(f"{GROUP}/memory.swap.max", swap_bytes or "max")

    def __enter__(self):
        return self

    def words(self, command):
        """The command, to be run in the group."""
        return ["sh", "-c", f'echo $$ > {GROUP}/cgroup.procs && exec "$@"', "sh", *map(str, command)]

    def limit(self, limit_bytes):
        """Another limit. What is over it is swapped before this returns."""
        zoned.write_file(f"{GROUP}/memory.max", limit_bytes)

    def peak(self):
        with open(f"{GROUP}/memory.peak", encoding="ascii") as file:
            return int(file.read())

    def counts(self):
        with open(f"{GROUP}/memory.stat", encoding="ascii") as file:
            stat = systems.sorted_numbers(file.read())
        with open(f"{GROUP}/memory.events", encoding="ascii") as file:
            stat["oom_kill"] = systems.sorted_numbers(file.read()).get("oom_kill", 0)
        return {name: stat[name] for name in ("pswpin", "pswpout", "pgmajfault", "oom_kill", "swpin_zero", "swpout_zero")
                if name in stat}

    def __exit__(self, *_):
        zoned.write_file(f"{GROUP}/cgroup.kill", 1)
        for _ in range(300):
            try:
                os.rmdir(GROUP)
                return
            except OSError:
                time.sleep(0.1)
        raise zoned.Failed(f"{GROUP} does not become empty")


class Redis:
    """A server in the group, without files."""

    def __init__(self, group):
        self.directory = tempfile.TemporaryDirectory(prefix="swapbench.")
        self.socket = os.path.join(self.directory.name, "redis.sock")
        if zoned.shutil.which("redis-server") is None:
            raise zoned.Missing("redis-server is not installed (scripts/setup)")
        command = ["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no",
                   "--dir", self.directory.name]
        self.process = subprocess.Popen(group.words(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, start_new_session=True)
        for _ in range(200):
            if os.path.exists(self.socket):
                return
            time.sleep(0.05)
        self.close()
        raise zoned.Failed("redis-server does not start")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.directory.cleanup()


def swapload(*words):
    return [zoned.binary("swapload"), *map(str, words)]


def answer(done, what):
    """The JSON object that a command printed."""
    if done.status != 0:
        raise zoned.Failed(f"{what}: {done.why()}")
    found = json.loads(done.out.strip().splitlines()[-1])
    if found.get("wrong"):
        raise zoned.Failed(f"{what}: {found['wrong']} of what was read is WRONG")
    return found


def run_program(work, options, group):
    """One of the programs that compute, in the group: what it printed."""
    limit = options.seconds * 6 + GRACE_SECONDS
    if work == "stress":
        done = zoned.limited(group.words(
            ["stress-ng", "--vm", 1, "--vm-bytes", f"{options.mib}M", "--vm-keep", "--vm-method", "rand-set", "--verify",
             "--timeout", max(1, int(options.seconds)), "--metrics-brief", "--temp-path", "/tmp"]), limit, merged=True)
        line = re.search(r"\] vm +(\d+) +([\d.]+) +[\d.]+ +[\d.]+ +([\d.]+)", done.out)
        if done.status != 0 or not line:
            raise zoned.Failed(f"stress-ng: {done.why()}")
        return {"operations": int(line[1]), "seconds": float(line[2]), "per_s": float(line[3])}
    words = {"sort": ["sort", "--mib", options.compute_mib], "pagerank": ["pagerank", "--mib", options.compute_mib],
             "verify": ["verify", "--mib", options.mib, "--seconds", options.seconds, "--discards", 5]}[work]
    found = answer(zoned.limited(group.words(swapload(*words)), limit), work)
    found["completion_s"] = found["seconds"]
    return found


class Ycsb:
    """A server with its rows, loaded once; every workload and every limit after that finds them there."""

    def __init__(self, options, group):
        self.options = options
        self.records = options.mib * (1 << 20) // ROW_BYTES
        self.server = Redis(group)
        try:
            self.words("A", 0, "--load-only")
        except BaseException:
            self.close()
            raise

    def words(self, letter, operations, *more):
        limit = self.options.seconds * 6 + GRACE_SECONDS
        done = zoned.limited(swapload("ycsb", "--server", self.server.socket, "--workload", letter, "--records", self.records,
                                      "--operations", operations, "--seconds", self.options.seconds, *more), limit)
        return answer(done, f"ycsb-{letter.lower()}")

    def run(self, work):
        letter = work[-1].upper()
        # A scan is fifty rows in the mean.
        operations = max(1, self.options.operations // (20 if letter == "E" else 1))
        found = self.words(letter, operations, "--loaded")
        # What all the operations take at that rate: the time may have ended sooner.
        found["completion_s"] = operations / found["per_s"]
        return found

    def close(self):
        self.server.close()


# --- Turns ---------------------------------------------------------------------------------------
# A turn is one system's with one device: several workloads, each a part of the result. It yields (part, what was found), so
# that what was measured before something failed stays.


def ycsb_turn(name, works, peaks, options):
    """Redis on the system, with less and less of the memory that it needs."""
    with systems.Swap(systems.SYSTEMS[name](options)) as system, Group(swap_bytes=options.size << 20) as group:
        served = Ycsb(options, group)
        try:
            for share in sorted(options.memory, reverse=True):
                group.limit(int(peaks["ycsb"]["bytes"] * share / 100))
                for work in works:
                    before = group.counts()
                    found = served.run(work)
                    found.update({key: value - before.get(key, 0) for key, value in group.counts().items()})
                    if found.get("oom_kill"):
                        raise zoned.Failed(f"{work}: {found['oom_kill']} processes were killed for lack of memory")
                    yield f"{work} {share} %", {**found, "device": system.stat()}
        finally:
            served.close()


def compute_turn(name, works, peaks, options):
    """Programs on the system, each with shares of the memory that it needs."""
    with systems.Swap(systems.SYSTEMS[name](options)) as system:
        for work in works:
            for share in options.memory:
                with Group(int(peaks[work]["bytes"] * share / 100), options.size << 20) as group:
                    try:
                        found = run_program(work, options, group)
                    except zoned.Failed as error:
                        raise zoned.Failed(f"{error}; the group's counts: {group.counts()}; the device's: "
                                           f"{json.dumps(system.stat().get('counters', {}))}") from error
                    found.update(group.counts())
                if found.get("oom_kill"):
                    raise zoned.Failed(f"{work}: {found['oom_kill']} processes were killed for lack of memory")
                yield f"{work} {share} %", {**found, "device": system.stat()}


def fio_turn(name, works, _, options):
    """Requests to the device itself, of which half of each buffer compresses, and none is like another."""
    system = systems.SYSTEMS[name](options)
    path = system.open()
    try:
        systems.no_scheduler(path)
        common = ["fio", "--output-format=json", "--direct=1", "--ioengine=libaio", "--thread", "--allow_file_create=0",
                  f"--filename={path}", f"--size={options.mib}M", "--randseed=1", "--refill_buffers",
                  "--buffer_compress_percentage=50", "--buffer_compress_chunk=4096", "--randrepeat=1", "--norandommap"]
        fill = zoned.limited([*common, "--name=fill", "--rw=write", "--bs=128k", "--iodepth=4"], GRACE_SECONDS)
        if fill.status != 0:
            raise zoned.Failed(f"fio: {fill.why()}")
        for work in works:
            mode, kib, depth = FIO[work.removeprefix("fio-")]
            done = zoned.limited([*common, f"--name={mode}", f"--rw={mode}", f"--bs={kib}k", f"--iodepth={depth}",
                                  "--time_based", f"--runtime={int(options.seconds * 1000)}ms"],
                                 options.seconds + GRACE_SECONDS)
            if done.status != 0:
                raise zoned.Failed(f"fio: {done.why()}")
            job = json.loads(re.sub(r"^[^{]*", "", done.out, count=1))["jobs"][0]
            verb = job["read" if "read" in mode else "write"]
            if job["error"] or not verb["total_ios"]:
                raise zoned.Failed(f"fio: error {job['error']}, {verb['total_ios']} requests done")
            places = verb["clat_ns"].get("percentile", {})
            yield work, {"operations": verb["total_ios"], "per_s": verb["iops"], "bytes_per_s": verb["bw_bytes"],
                         "mean_us": verb["clat_ns"]["mean"] / 1000, "p50_us": places.get("50.000000", 0) / 1000,
                         "p99_us": places.get("99.000000", 0) / 1000, "device": system.stat()}
    finally:
        system.close()


# --- Numbers -------------------------------------------------------------------------------------


def median(turns, key):
    values = [turn[key] for turn in turns if turn.get(key) is not None]
    return statistics.median(values) if values else None


def spread(turns, key):
    """Half the distance of the least and the greatest, of the median, in %."""
    values = [turn[key] for turn in turns if turn.get(key) is not None]
    middle = statistics.median(values) if values else 0
    return (max(values) - min(values)) / 2 / middle * 100 if middle else None


def ratio(turns, other, key):
    """The median over rounds of this system's number over the other's in the same round."""
    theirs = {turn["round"]: turn[key] for turn in other or [] if turn.get(key)}
    both = [turn[key] / theirs[turn["round"]] for turn in turns or [] if turn.get(key) and turn["round"] in theirs]
    return statistics.median(both) if both else None


def mean_ratio(samples, parts, peer, key):
    """The geometric mean of the ratios over several workloads: each counts alike."""
    found = [ratio(samples[part].get(OURS), samples[part].get(peer), key) for part in parts if part in samples]
    found = [value for value in found if value]
    return math.exp(statistics.fmean(map(math.log, found))) if found else None


def talk_ratio(samples):
    """For storlab_swap_charts: which of our numbers stand beside which of the talk's."""
    def find(name, quantity, peer):
        if name in ("S1", "S2"):
            return mean_ratio(samples, ["fio-randread" if name == "S1" else "fio-randwrite"], peer, "bytes_per_s")
        share = 75 if name in ("S3", "S5") else 50
        served = [f"ycsb-{letter.lower()} {share} %" for letter in YCSB]
        key = {"throughput": "per_s", "completion": "completion_s", "mean": "mean_us", "p99": "p99_us"}[quantity]
        more = [f"sort {share} %", f"pagerank {share} %"] if quantity == "completion" else []
        return mean_ratio(samples, [*served, *more], peer, key)
    return find


def goals(samples):
    """The goals of the comparison: (label, the least ratio, the ratio or None)."""
    served = [f"ycsb-{letter.lower()} 50 %" for letter in YCSB]

    def fast(work, peer):
        return mean_ratio(samples, [work], peer, "bytes_per_s")

    tail = mean_ratio(samples, served, "infiniswap", "p99_us")
    yield "random read, of infiniswap", 1.5, fast("fio-randread", "infiniswap")
    yield "random write, of infiniswap", 1.5, fast("fio-randwrite", "infiniswap")
    yield "YCSB throughput at 50 % memory, of infiniswap", 1.8, mean_ratio(samples, served, "infiniswap", "per_s")
    yield "YCSB P99 at 50 % memory, infiniswap's of ours", 2.0, 1 / tail if tail else None
    yield "YCSB throughput at 50 % memory, of znswap", 2.5, mean_ratio(samples, served, "znswap", "per_s")


COLUMNS = ["workload", "system", "ops/s", "± %", "MiB/s", "completion s", "mean us", "p50 us", "p99 us", "of infiniswap",
           "of znswap", "swapped in", "swapped out", "failed"]
DIGITS = {"ops/s": 0, "± %": 0, "MiB/s": 1, "completion s": 2, "mean us": 1, "p50 us": 1, "p99 us": 0, "of infiniswap": 2,
          "of znswap": 2, "swapped in": 0, "swapped out": 0}


def rows(samples):
    for part, by_system in samples.items():
        for name, turns in by_system.items():
            bandwidth = median(turns, "bytes_per_s")
            yield [part, name, median(turns, "per_s"), spread(turns, "per_s"), bandwidth and bandwidth / (1 << 20),
                   median(turns, "completion_s"), median(turns, "mean_us"), median(turns, "p50_us"), median(turns, "p99_us"),
                   *(ratio(turns, by_system.get(peer), "per_s") for peer in PEERS), median(turns, "pswpin"),
                   median(turns, "pswpout"), sum("failed" in turn for turn in turns)]


def show(table):
    def text(column, value):
        if value is None:
            return "-"
        return f"{value:,.{DIGITS[column]}f}" if column in DIGITS else str(value)

    lines = [COLUMNS, *([text(column, value) for column, value in zip(COLUMNS, row)] for row in table)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(w) if n < 2 else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths))).rstrip())


def figures(samples):
    """Beside the talk's: what every system did."""
    names = list(dict.fromkeys(name for turns in samples.values() for name in turns))
    for figure, title, key, unit, pick in (
            ("bandwidth", "Bandwidth of the device itself", "bytes_per_s", "B/s", "fio-"),
            ("throughput", "Throughput of YCSB on Redis", "per_s", "operations/s", "ycsb-"),
            ("p99", "P99 latency of YCSB on Redis", "p99_us", "us", "ycsb-"),
            ("completion", "Completion time of sort and PageRank", "completion_s", "s", ("sort", "pagerank"))):
        parts = [part for part in samples if part.startswith(pick)]
        series = [{"name": name, "x": parts, "y": [median(samples[part].get(name, []), key) for part in parts]}
                  for name in names]
        if any(y is not None for one in series for y in one["y"]):
            yield {"id": figure, "kind": "bar", "title": title, "x": {"label": "workload", "unit": ""},
                   "y": {"label": title.split(" of ")[0].lower(), "unit": unit}, "series": series}


# --- The run -------------------------------------------------------------------------------------


def say(text):
    print(text, file=sys.stderr, flush=True)


def stop_at_signals():
    def stop(number, _):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def available(options):
    """The systems that can be had here, and why others cannot: each is made once."""
    found, missing = [], {}
    for name in options.systems:
        system = systems.SYSTEMS[name](options)
        try:
            system.open()
            found.append(name)
        except (zoned.Missing, zoned.Failed) as error:
            missing[name] = str(error)
            say(f"MISSING {name}: {error}")
        finally:
            system.close()
    return found, missing


def peak_of(works, options):
    """The memory that a program needs, measured without a limit and without swap; and how fast it is then."""
    with Group() as group:
        if works[0].startswith("ycsb-"):
            served = Ycsb(options, group)
            try:
                free = {work: served.run(work) for work in works}
            finally:
                served.close()
        else:
            free = {works[0]: run_program(works[0], options, group)}
        return {"bytes": group.peak(), **{work: {key: found.get(key) for key in ("per_s", "completion_s", "mean_us", "p99_us")}
                                          for work, found in free.items()}}


class TimeIsUp(Exception):
    """The turns that are still to come are left out."""


def can_take(turn, name):
    """zswap is no device: requests to the disk behind it would be measured."""
    return turn is not fio_turn or systems.SYSTEMS[name].has_device


class Run:
    """The turns of a run, and what they gave."""

    def __init__(self, options, names):
        self.options, self.names = options, names
        self.samples, self.peaks, self.seconds = {}, {}, {}
        self.deadline = time.monotonic() + options.minutes * 60 if options.minutes else math.inf
        self.left_out = 0

    def stages(self):
        """(kind of turn, its workloads): the workloads of one stage share a device, and a turn of it is one system's."""
        chosen = self.options.workloads
        fio = [work for work in chosen if work.startswith("fio-")]
        # Reads first: they find what the fill has left.
        yield fio_turn, sorted(fio, key=lambda work: "write" in work)
        yield ycsb_turn, [work for work in chosen if work.startswith("ycsb-")]
        yield compute_turn, [work for work in chosen if not work.startswith(("fio-", "ycsb-"))]

    def parts(self, turn, works):
        shares = [] if turn is fio_turn else sorted(self.options.memory, reverse=True)
        return [f"{work} {share} %" for work in works for share in shares] if shares else list(works)

    def find_peaks(self, turn, works):
        """Gives the workloads that can run here."""
        if turn is fio_turn:
            return works
        groups = [works] if turn is ycsb_turn else [[work] for work in works]
        able = []
        for group in groups:
            key = "ycsb" if turn is ycsb_turn else group[0]
            try:
                self.peaks[key] = peak_of(group, self.options)
                able += group
                say(f"{key}: {self.peaks[key]['bytes'] >> 20} MiB without a limit")
            except (zoned.Failed, zoned.Missing) as error:
                say(f"FAILED {key} without a limit: {error}")
                for work in group:
                    self.samples[work] = {"without swap": [{"round": 0, "failed": str(error)}]}
        return able

    def take(self, turn, works, name, number):
        begun = time.monotonic()
        if begun > self.deadline:
            raise TimeIsUp
        missing = self.parts(turn, works)
        try:
            for part, found in turn(name, works, self.peaks, self.options):
                missing.remove(part)
                self.samples[part][name].append({"round": number, **found})
        except (zoned.Failed, zoned.Missing, OSError) as error:
            say(f"FAILED {name} at {missing[0] if missing else 'its end'}, round {number + 1}: {error}")
            for part in missing or self.parts(turn, works)[-1:]:
                self.samples[part][name].append({"round": number, "failed": str(error)})
        kind = turn.__name__.removesuffix("_turn")
        took = time.monotonic() - begun
        self.seconds.setdefault(kind, []).append(took)
        say(f"round {number + 1}, {kind}, {name}: {took:.0f} s")

    def measure(self):
        stages = []
        for turn, works in self.stages():
            works = self.find_peaks(turn, works) if works else []
            if works:
                stages.append((turn, works))
                names = [name for name in self.names if can_take(turn, name)]
                self.samples.update({part: {name: [] for name in names} for part in self.parts(turn, works)})
        # Rounds outermost: a run that ends early has whole rounds, and systems that are compared have had turns alike.
        for number in range(self.options.rounds):
            order = self.names[number % len(self.names):] + self.names[:number % len(self.names)]
            for turn, works in stages:
                for name in order:
                    if not can_take(turn, name):
                        continue
                    try:
                        self.take(turn, works, name, number)
                    except TimeIsUp:
                        self.left_out += 1
        if self.left_out:
            say(f"the time (--minutes) was up: {self.left_out} turns are left out")


def run(options):
    stop_at_signals()
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    names, missing = available(options)
    if not names:
        raise zoned.Failed("none of the systems can be had here")
    turns = Run(options, names)
    samples, peaks = turns.samples, turns.peaks
    try:
        turns.measure()
    except KeyboardInterrupt:
        say("interrupted: what was measured until now follows")
    table = list(rows(samples))
    document = {
        "schema": "storlab-result-1", "name": "bench/swap", "title": "Swap to remote memory, and its peers",
        "started": started, "seed": 1,
        "about": "Swap devices take turns at workloads on one kernel, each turn with a device made anew: one for all of fio, one "
                 "for Redis, which is loaded once and then gets less and less memory, one for the programs. They run in a "
                 "control group with a share of the memory that they need. Medians of rounds; ratios are medians of the ratio "
                 "in each round, and over several workloads their geometric mean.",
        "parameters": {"rounds": options.rounds, "seconds": options.seconds, "size_mib": options.size, "mib": options.mib,
                       "compute_mib": options.compute_mib,
                       "cache_mib": options.cache, "link": options.link, "nodes": options.nodes,
                       "operations": options.operations, "turns_left_out": turns.left_out,
                       "turn_seconds": {kind: statistics.median(took) for kind, took in turns.seconds.items()},
                       "fio": zoned.must(["fio", "--version"]), "peak": peaks,
                       **{name: systems.SYSTEMS[name].about for name in names},
                       **{name: f"missing: {why}" for name, why in missing.items()}},
        "machine": zoned.machine(), "summary": list(charts.summary(talk_ratio(samples))),
        "tables": [{"title": f"Medians, {options.rounds} rounds", "columns": COLUMNS, "rows": table}],
        "figures": [*charts.figures(talk_ratio(samples)), *figures(samples)],
        "samples": {**samples, **({"missing": missing} if missing else {})}}
    print(f"\nlink {options.link}, nodes {options.nodes}, {options.rounds} rounds; ± is half the range of the rounds")
    show(table)
    for line in document["summary"]:
        print(f"{line['label']}: {line['value']:+.1f} % (the talk: {line['talk']:+.1f} %)")
    for label, goal, value in goals(samples):
        if value is not None:
            print(f"goal: {label}: at least {goal:g}: {value:.2f}, {'reached' if value >= goal else 'NOT REACHED'}")
            document["summary"].append({"label": f"{label} (goal {goal:g})", "value": value, "unit": "", "talk": None})
    for name, why in missing.items():
        print(f"missing: {name}: {why}")
    if options.out:
        os.makedirs(os.path.dirname(os.path.abspath(options.out)), exist_ok=True)
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
    if not any(row[2] for row in table):
        raise zoned.Failed("nothing could be measured")
    return 1 if any(row[-1] for row in table) else 0
