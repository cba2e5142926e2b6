"""The peers' part of scripts/bench/zns: targets take turns at fio workloads; what each did, as a table and a document.

The invariant: numbers are compared only within one part (one number of queues) of one run, round by round.
"""

import json
import os
import re
import signal
import statistics
import sys
import time

import storlab_zoned as zoned

TARGETS = {target.name.replace(", no data", "-nodata"): target
           for target in (zoned.Zns, zoned.Rublk, zoned.Ceiling, zoned.NullBlk, zoned.NullBlkNoData, zoned.Zloop)}
OURS, PEER, CEILING = "ublk-zns", "rublk", "ublk-null"
WORKLOADS = ("randread-4k-qd32", "write-4k-N-zones", "write-128k-N-zones")
# Zones that reads are spread over.
READ_ZONES = 8
# Beyond its own time a run may need so long to start and to end.
GRACE_SECONDS = 30
MIB = 1 << 20


class Work:
    """A fio workload: reads over written zones, or a sequential writer for each of several zones."""

    def __init__(self, name, block_kib, zones, depth, reads=False):
        self.name, self.block_kib, self.zones, self.depth, self.reads = name, block_kib, zones, depth, reads

    def fio(self, path, seconds, zone_mib, is_zoned):
        command = ["fio", "--output-format=json", "--direct=1", "--group_reporting", "--thread", "--randseed=1",
                   "--allow_file_create=0", f"--bs={self.block_kib}k", f"--filename={path}", "--time_based",
                   f"--runtime={int(seconds * 1000)}ms", "--ioengine=libaio", f"--iodepth={self.depth}",
                   *(["--zonemode=zbd"] if is_zoned else [])]
        if self.reads:
            return [*command, "--rw=randread", "--name=read", "--offset=0", f"--size={self.zones * zone_mib}M"]
        command.append("--rw=write")
        for zone in range(self.zones):
            command += [f"--name=zone{zone}", f"--offset={zone * zone_mib}M", f"--size={zone_mib}M"]
        return command


def workloads(options):
    found = [Work("randread-4k-qd32", 4, min(READ_ZONES, options.size // options.zone_size), 32, reads=True)]
    for block in (4, 128):
        for zones in options.jobs:
            found.append(Work(f"write-{block}k-{zones}-zone{'s' if zones > 1 else ''}", block, zones, options.write_depth))
    return {work.name: work for work in found}


def process_clock(pid):
    """CPU seconds that a process has used, all threads, to the nanosecond (the clock that clock_getcpuclockid gives)."""
    return time.clock_gettime((~pid << 3) | 2)


def user_and_system(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


class Runner:
    """A target with its device."""

    def __init__(self, name, geometry, options):
        self.name, self.geometry, self.options = name, geometry, options
        self.target = TARGETS[name]()
        self.path = None

    def open(self):
        self.path = self.target.open(self.geometry)
        self.filled = False
        self.pid = self.target.daemon()
        queue = f"/sys/block/{os.path.basename(self.path)}/queue"
        # Merging would make large requests of the small ones that are to be measured.
        zoned.write_file(f"{queue}/nomerges", 2)
        if zoned.kernel_at_least(6, 10) or not self.target.zoned:
            zoned.write_file(f"{queue}/scheduler", "none")

    def close(self):
        if self.path:
            self.target.close()
            self.path = None

    def restart(self):
        """After a hang: without its daemon nothing waits for ever. A device that cannot be made again stays away."""
        if not self.path:
            return
        self.target.kill()
        try:
            self.close()
            self.open()
        except (zoned.Failed, zoned.Missing):
            self.path = None
            raise

    def prepare(self, work):
        if not self.target.zoned or (work.reads and self.filled):
            return
        self.must(["blkzone", "reset", self.path])
        self.filled = work.reads
        if work.reads:
            zone = self.options.zone_size
            jobs = [word for n in range(work.zones) for word in
                    (f"--name=z{n}", f"--offset={n * zone}M", f"--size={zone}M")]
            self.must(["fio", f"--filename={self.path}", "--rw=write", "--bs=256k", "--direct=1", "--zonemode=zbd",
                       "--ioengine=psync", "--thread", "--allow_file_create=0", *jobs])

    def must(self, command):
        done = zoned.limited(command, 60 + GRACE_SECONDS)
        if done.status != 0:
            raise zoned.Failed(f"{self.name}: {command[0]}: {done.why()}")

    def clocks(self):
        if not self.pid:
            return None
        try:
            return process_clock(self.pid), *user_and_system(self.pid)
        except OSError as error:
            raise zoned.Failed(f"{self.name}: its daemon (process {self.pid}) is gone: {error.strerror}") from error

    def turn(self, work):
        if not self.path:
            raise zoned.Failed(f"{self.name}: there is no device any more")
        self.prepare(work)
        before = self.clocks()
        done = zoned.limited(work.fio(self.path, self.options.seconds, self.options.zone_size, self.target.zoned),
                             self.options.seconds + GRACE_SECONDS)
        after = self.clocks() if done.status == 0 else None
        if done.status != 0:
            raise zoned.Failed(f"{self.name}: fio: {done.why()}")
        job = json.loads(re.sub(r"^[^{]*", "", done.out, count=1))["jobs"][0]
        verb = job["read" if work.reads else "write"]
        if job["error"] or not verb["total_ios"]:
            raise zoned.Failed(f"{self.name}: fio: error {job['error']}, {verb['total_ios']} requests done")
        # In microseconds per request.
        cpu = [(b - a) / verb["total_ios"] * 1e6 for a, b in zip(before, after)] if self.pid else [None] * 3
        places = verb["clat_ns"].get("percentile", {})
        return {"iops": verb["iops"], "bytes_per_s": verb["bw_bytes"], "requests": verb["total_ios"],
                "mean_us": verb["clat_ns"]["mean"] / 1000, "p50_us": places.get("50.000000", 0) / 1000,
                "p99_us": places.get("99.000000", 0) / 1000, "daemon_us": cpu[0], "daemon_user_us": cpu[1],
                "daemon_system_us": cpu[2]}


def stop_at_signals():
    def stop(number, _):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def measure(options, works, queues, say):
    """All turns with so many queues: samples by workload and target, and why something is missing."""
    geometry = zoned.Geometry(size=options.size, zone=options.zone_size, max_open=0, max_active=0, queues=queues,
                              depth=options.depth)
    runners, missing, samples = [], {}, {}
    try:
        for name in options.targets:
            runner = Runner(name, geometry, options)
            try:
                runner.open()
                runners.append(runner)
            except (zoned.Missing, zoned.Failed) as error:
                if runner.target.path:
                    runner.target.close()
                missing[name] = str(error)
                say(f"MISSING {name}: {error}")
        for work in works:
            samples[work.name] = {runner.name: [] for runner in runners}
            for number in range(options.rounds):
                order = runners[number % len(runners):] + runners[:number % len(runners)] if runners else []
                for runner in order:
                    try:
                        samples[work.name][runner.name].append({"round": number, **runner.turn(work)})
                    except zoned.Failed as error:
                        samples[work.name][runner.name].append({"round": number, "failed": str(error)})
                        say(f"FAILED {error} ({work.name}, round {number + 1})")
                        try:
                            runner.restart()
                        except (zoned.Failed, zoned.Missing) as problem:
                            say(f"FAILED {runner.name} is not measured any further: {problem}")
            say(f"{queues} queue{'s' if queues > 1 else ''}, {work.name}: " + ", ".join(
                f"{name} {median(turns, 'iops'):,.0f}" for name, turns in samples[work.name].items() if median(turns, "iops"))
                + " IO/s")
    finally:
        for runner in runners:
            try:
                runner.close()
            except zoned.Failed as error:
                say(f"FAILED to remove {runner.name}: {error}")
    return samples, missing


def good(turns, key):
    return [turn[key] for turn in turns if turn.get(key) is not None]


def median(turns, key):
    values = good(turns, key)
    return statistics.median(values) if values else None


def spread(turns, key):
    """Half the distance of the fastest and the slowest round, of the median, in %."""
    values = good(turns, key)
    middle = statistics.median(values) if values else 0
    return (max(values) - min(values)) / 2 / middle * 100 if middle else None


def ratio(turns, other):
    """The median over rounds of this target's speed over the other's in the same round."""
    theirs = {turn["round"]: turn["iops"] for turn in other or [] if turn.get("iops")}
    both = [turn["iops"] / theirs[turn["round"]] for turn in turns if turn.get("iops") and turn["round"] in theirs]
    return statistics.median(both) if both else None


COLUMNS = ["workload", "target", "IO/s", "MiB/s", "± %", "of rublk", "of the ceiling", "p50 us", "p99 us", "daemon us/IO",
           "user", "system", "failed"]


def rows(samples):
    for work, targets in samples.items():
        for name, turns in targets.items():
            bandwidth = median(turns, "bytes_per_s")
            yield [work, name, median(turns, "iops"), bandwidth and bandwidth / MIB, spread(turns, "iops"),
                   ratio(turns, targets.get(PEER)), ratio(turns, targets.get(CEILING)), median(turns, "p50_us"),
                   median(turns, "p99_us"), median(turns, "daemon_us"), median(turns, "daemon_user_us"),
                   median(turns, "daemon_system_us"), sum("failed" in turn for turn in turns)]


def show(table):
    digits = {"IO/s": 0, "MiB/s": 1, "± %": 0, "of rublk": 2, "of the ceiling": 2, "p50 us": 0, "p99 us": 0,
              "daemon us/IO": 1, "user": 1, "system": 1}

    def text(column, value):
        if value is None:
            return "-"
        return f"{value:,.{digits[column]}f}" if column in digits else str(value)

    lines = [COLUMNS, *([text(column, value) for column, value in zip(COLUMNS, row)] for row in table)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(w) if n < 2 else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths))).rstrip())


def goals(samples):
    """The goals of the comparison, each with the worst ratio that counts for it: (label, goal, value or None)."""
    def worst(pick, other):
        found = [value for work, targets in samples.items() if pick(work) and OURS in targets
                 and (value := ratio(targets[OURS], targets.get(other))) is not None]
        return min(found) if found else None

    def several(work):
        return work.startswith("write-128k") and not work.endswith("-1-zone")

    return [("the worst workload, of rublk", 1.0, worst(lambda work: True, PEER)),
            ("4k, of the ceiling", 0.9, worst(lambda work: "4k" in work.split("-"), CEILING)),
            ("128k writes over several zones, of rublk", 1.3, worst(several, PEER))]


def figures(samples, queues):
    names = list(dict.fromkeys(name for targets in samples.values() for name in targets))
    known = list(samples)

    def bars(value):
        return [{"name": name, "x": known, "y": [value(samples[work], name) for work in known]} for name in names]

    part = f"{queues} queue{'s' if queues > 1 else ''}"
    yield {"id": f"requests-{queues}", "kind": "bar", "title": f"Requests per second, {part}", "x": {"label": "workload", "unit": ""},
           "y": {"label": "requests", "unit": "IO/s"}, "series": bars(lambda t, n: median(t.get(n, []), "iops"))}
    if any(CEILING in targets for targets in samples.values()):
        yield {"id": f"ceiling-{queues}", "kind": "bar", "title": f"Speed in proportion to the ceiling, {part}",
               "x": {"label": "workload", "unit": ""}, "y": {"label": "of the null target", "unit": ""},
               "series": bars(lambda t, n: ratio(t.get(n, []), t.get(CEILING)))}
    served = [one for one in bars(lambda t, n: median(t.get(n, []), "daemon_us")) if any(y is not None for y in one["y"])]
    if served:
        yield {"id": f"daemon-{queues}", "kind": "bar", "title": f"The daemon's CPU time per request, {part}",
               "x": {"label": "workload", "unit": ""}, "y": {"label": "CPU time", "unit": "us"}, "series": served}


def run(options):
    stop_at_signals()
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    known = workloads(options)
    works = [known[name] for name in options.workloads]

    def say(text):
        print(text, file=sys.stderr, flush=True)

    document = {
        "schema": "storlab-result-1", "name": "bench/zns", "title": "ublk-zns and its peers", "started": started, "seed": 1,
        "about": "Targets of the same geometry take turns at fio workloads on one kernel. Medians of rounds; ratios are medians "
                 "of the ratio in each round. The ceiling stores nothing.",
        "parameters": {"rounds": options.rounds, "seconds": options.seconds, "size_mib": options.size,
                       "zone_size_mib": options.zone_size, "queue_depth": options.depth, "write_depth": options.write_depth,
                       "fio": zoned.must(["fio", "--version"])},
        "machine": zoned.machine(), "summary": [], "tables": [], "figures": [], "samples": {}}
    for name in options.targets:
        try:
            document["parameters"][name] = f"{TARGETS[name]().version()}: {TARGETS[name].about}"
        except zoned.Missing as error:
            document["parameters"][name] = f"missing: {error}"
    measured, failed = False, False
    for queues in options.queues:
        samples, missing = measure(options, works, queues, say)
        part = f"{queues} queue{'s' if queues > 1 else ''}"
        table = list(rows(samples))
        measured = measured or any(row[2] for row in table)
        failed = failed or any(row[-1] for row in table if row[1] == OURS)
        print(f"\n{part}, {options.rounds} rounds of {options.seconds:g} s; ± is half the range of the rounds")
        show(table)
        for name, why in missing.items():
            print(f"missing: {name}: {why}")
        for label, goal, value in goals(samples):
            verdict = "not measured" if value is None else f"{value:.2f}, {'reached' if value >= goal else 'NOT REACHED'}"
            print(f"goal, {part}: {label}: at least {goal:g}: {verdict}")
            if value is not None:
                document["summary"].append({"label": f"{label} ({part}; goal {goal:g})", "value": value, "unit": "", "talk": None})
        document["tables"].append({"title": f"Medians, {part}", "columns": COLUMNS, "rows": table})
        if table:
            document["figures"] += figures(samples, queues)
        document["samples"][part] = {**samples, **({"missing": missing} if missing else {})}
    if options.out:
        os.makedirs(os.path.dirname(os.path.abspath(options.out)), exist_ok=True)
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
    if not measured:
        raise zoned.Failed("nothing could be measured")
    return 1 if failed else 0
