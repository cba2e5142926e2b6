"""The model's part of scripts/bench/zns: what fio measures on a device with timing, against `ublk-zns predict`.

The invariant: a device is measured with the profile and the numbers that were predicted, nothing else differing; a
deviation is of the measured from the predicted, in % of the predicted.
"""

import json
import os
import re
import statistics
import sys
import time

import storlab_zns_bench as bench
import storlab_zoned as zoned

# fio's verb, KiB per request, requests in flight.
CASES = (("randread", 4, 1), ("randread", 4, 32), ("write", 4, 1), ("write", 128, 1), ("write", 128, 4))
FIELDS = ("iops", "bytes_per_s", "mean_ns", "p50_ns", "p99_ns")
# A request of fio costs this host some tenths of a millisecond, and now and then it is away for milliseconds: slow motion
# until that is little beside the model.
REQUESTS_PER_S = 100
LATENCY_NS = 40e6
RAMP_SECONDS = 2
SPIN_US = 500
# Zones that are read: small, since they are written in slow motion too.
READ_ZONES, READ_ZONE_KIB, SIZE_MIB = 4, 512, 16
COLUMNS = ["profile", "workload", "time scale", "predicted IO/s", "measured IO/s", "off %", "predicted mean us", "measured mean us", "off %",
           "p50 off %", "p99 off %", "late p50 us", "late p99 us", "late max us", "± %"]


def check():
    """Refuses where the program cannot model or predict."""
    program = zoned.binary("ublk-zns")
    if zoned.limited([program, "predict", "--help"], 20).status != 0:
        raise zoned.Missing("this ublk-zns has no command `predict`: --model needs it")
    offers = zoned.must([program, "add", "--help"])
    for option in ("--profile", "--time-scale"):
        if option not in offers:
            raise zoned.Missing(f"this ublk-zns has no option {option} of `add`: --model needs it")


def layout(verb, options):
    """Zone size in KiB, size in MiB, zones that the job uses."""
    return (READ_ZONE_KIB, SIZE_MIB, READ_ZONES) if verb == "randread" else (options.zone_size * 1024, options.size, 1)


def predict(profile, case, scale, options):
    verb, block_kib, depth = case
    zone_kib, size, zones = layout(verb, options)
    said = zoned.must([zoned.binary("ublk-zns"), "predict", "--profile", profile, "--time-scale", f"{scale:g}", "--rw", verb,
                       "--bs", f"{block_kib}KiB", "--iodepth", depth, "--zones", zones, "--size", f"{size}MiB", "--zone-size",
                       f"{zone_kib}KiB", "--runtime", max(1, round(options.seconds)), "--ramp-time", RAMP_SECONDS, "--json"])
    try:
        found = json.loads(said)
        return {field: float(found[field]) for field in FIELDS}
    except (ValueError, KeyError, TypeError) as error:
        raise zoned.Failed(f"ublk-zns predict: {type(error).__name__}: {error} in {said[:120]!r}") from error


def slow_motion(profile, case, options):
    """The time scale at which this host is not what is measured."""
    if options.time_scale:
        return options.time_scale
    real = predict(profile, case, 1, options)
    depth = case[2] if case[0] == "randread" else 1
    wanted = max(1, real["iops"] / REQUESTS_PER_S, LATENCY_NS / max(real["mean_ns"], 1) / depth)
    return min(100000, round(wanted, 1))


def wait_until_programmed(number, begun):
    """Until every read finds its data on the flash: what is still in a write buffer comes from there, and is not what was
    predicted. The model's window ends with its last program."""
    window_ns = json.loads(zoned.must([zoned.binary("ublk-zns"), "stat", number, "--json"]))["target"]["nand"]["window_ns"]
    time.sleep(min(120, max(0, window_ns / 1e9 - (time.monotonic() - begun) + 0.1)))


def fio(path, case, options):
    verb, block_kib, depth = case
    zone_kib, _, zones = layout(verb, options)
    if verb == "randread":
        begun = time.monotonic()
        zoned.must(["fio", f"--filename={path}", "--name=fill", "--rw=write", "--bs=128k", "--direct=1", "--zonemode=zbd",
                    "--ioengine=psync", "--thread", "--allow_file_create=0", f"--size={zones * zone_kib}k"], 600)
        wait_until_programmed(re.sub(r"\D", "", path), begun)
    done = zoned.limited(
        ["fio", "--output-format=json", "--name=job", f"--filename={path}", "--direct=1", "--zonemode=zbd", f"--rw={verb}",
         f"--bs={block_kib}k", "--ioengine=libaio", f"--iodepth={depth}", "--offset=0", f"--size={zones * zone_kib}k",
         "--time_based", f"--ramp_time={RAMP_SECONDS}", f"--runtime={max(1, round(options.seconds))}", "--randseed=1",
         "--allow_file_create=0", "--thread"], options.seconds + RAMP_SECONDS + bench.GRACE_SECONDS)
    if done.status != 0:
        raise zoned.Failed(f"fio: {done.why()}")
    job = json.loads(re.sub(r"^[^{]*", "", done.out, count=1))["jobs"][0]
    got = job["read" if verb == "randread" else "write"]
    if job["error"] or not got["total_ios"]:
        raise zoned.Failed(f"fio: error {job['error']}, {got['total_ios']} requests done")
    places = got["clat_ns"].get("percentile", {})
    return {"iops": got["iops"], "bytes_per_s": got["bw_bytes"], "mean_ns": got["clat_ns"]["mean"],
            "p50_ns": places.get("50.000000", 0), "p99_ns": places.get("99.000000", 0)}


def turn(profile, case, scale, options):
    """One device, made for it, so that lateness is of this workload alone."""
    zone_kib, size, _ = layout(case[0], options)
    program = zoned.binary("ublk-zns")
    path = zoned.must([program, "add", "--profile", profile, "--time-scale", f"{scale:g}", "--spin-us", SPIN_US, "--size",
                       f"{size}MiB", "--zone-size", f"{zone_kib}KiB"]).strip()
    number = re.sub(r"\D", "", path)
    # A request of fio is a request of the device: no scheduler, no merging.
    for setting, value in (("scheduler", "none"), ("nomerges", "2")):
        try:
            with open(f"/sys/block/ublkb{number}/queue/{setting}", "w", encoding="ascii") as file:
                file.write(value)
        except OSError as error:
            print(f"{path}: {setting}: {error.strerror}", file=sys.stderr)
    try:
        found = fio(path, case, options)
        stat = json.loads(zoned.must([program, "stat", number, "--json"]))
    finally:
        zoned.limited([program, "del", number], 120)
    late = stat.get("lateness_ns")
    if not late:
        raise zoned.Failed("ublk-zns stat has no lateness_ns")
    return {**found, "late_p50_ns": late["p50"], "late_p99_ns": late["p99"], "late_max_ns": late["max"],
            "late_count": late["count"]}


def off(found, right):
    return (found - right) / right * 100 if right else None


def row(profile, name, scale, right, turns):
    def middle(key):
        return statistics.median(one[key] for one in turns)

    rates = [one["iops"] for one in turns]
    return [profile, name, scale, right["iops"], middle("iops"), off(middle("iops"), right["iops"]), right["mean_ns"] / 1000,
            middle("mean_ns") / 1000, off(middle("mean_ns"), right["mean_ns"]), off(middle("p50_ns"), right["p50_ns"]),
            off(middle("p99_ns"), right["p99_ns"]), middle("late_p50_ns") / 1000, middle("late_p99_ns") / 1000,
            max(one["late_max_ns"] for one in turns) / 1000, (max(rates) - min(rates)) / 2 / middle("iops") * 100]


def show(table):
    lines = [COLUMNS, *([cell if isinstance(cell, str) else "-" if cell is None else f"{cell:,.1f}" for cell in one] for one in table)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(w) if n < 2 else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths))).rstrip())


def run(options):
    bench.stop_at_signals()
    check()
    started, table, samples, failed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), [], {}, 0
    for profile in options.profiles:
        for case in CASES:
            name = f"{case[0]}-{case[1]}k-qd{case[2]}"
            try:
                scale = slow_motion(profile, case, options)
                right = predict(profile, case, scale, options)
                turns = [turn(profile, case, scale, options) for _ in range(options.rounds)]
            except zoned.Failed as error:
                print(f"FAILED {profile}, {name}: {error}", file=sys.stderr)
                failed += 1
                continue
            samples.setdefault(profile, {})[name] = {"predicted": right, "measured": turns}
            table.append(row(profile, name, scale, right, turns))
            print(f"{profile}, {name}: {table[-1][5]:+.1f} %", file=sys.stderr, flush=True)
    print(f"\nMeasured against predicted, {options.rounds} rounds of {options.seconds:g} s")
    show(table)
    if not table:
        raise zoned.Failed("nothing could be measured")
    worst = max(table, key=lambda one: abs(one[5]))
    print(f"goal: within 3 % of the prediction: the worst is {worst[5]:+.1f} % ({worst[0]}, {worst[1]})")
    if options.out:
        cases = list(dict.fromkeys(one[1] for one in table))
        bars = [{"name": profile, "x": cases, "y": [next((one[5] for one in table if one[:2] == [profile, case]), None)
                                                  for case in cases]} for profile in samples]
        late = [{**bar, "y": [next((one[12] for one in table if one[:2] == [bar["name"], case]), None) for case in cases]}
                for bar in bars]
        document = {
            "schema": "storlab-result-1", "name": "bench/zns-model", "title": "The model of ublk-zns, measured", "seed": 1,
            "about": "What fio measures on devices with timing, against what ublk-zns predicts for the same profile.",
            "started": started, "machine": zoned.machine(),
            "parameters": {"rounds": options.rounds, "seconds": options.seconds, "time_scale": options.time_scale,
                           "queues": options.queues[-1], "size_mib": options.size, "zone_size_mib": options.zone_size},
            "summary": [{"label": f"Largest deviation of requests per second ({worst[0]}, {worst[1]})", "value": worst[5],
                         "unit": "%", "talk": None},
                        {"label": "Largest p99 of lateness", "value": max(one[12] for one in table), "unit": "us", "talk": None}],
            "tables": [{"title": "Measured against predicted", "columns": COLUMNS, "rows": table}],
            "figures": [{"id": "deviation", "kind": "bar", "title": "Requests per second, measured against predicted",
                         "x": {"label": "workload", "unit": ""}, "y": {"label": "deviation", "unit": "%"}, "series": bars},
                        {"id": "lateness", "kind": "bar", "title": "Lateness of completions, p99",
                         "x": {"label": "workload", "unit": ""}, "y": {"label": "lateness", "unit": "us"}, "series": late}],
            "samples": samples}
        os.makedirs(os.path.dirname(os.path.abspath(options.out)), exist_ok=True)
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
    return 1 if failed else 0
