#!/usr/bin/env python3
"""The part of scripts/demo that runs on the kernel with ublk: load, use, measure, tear down.

Every step runs under a time limit, and whatever happens, what was loaded is unloaded at the end. Writes one result
document per part into OUT/results, their summary into OUT/report.json, and a table on the terminal.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time

# The guest's /etc is read-only.
SWAP_KEY = "/tmp/dpuswap.key"
MIB = 1 << 20
STEPS = 9


class Failed(Exception):
    """A step failed; the text says which and why."""


def progress(number, text):
    print(f"[{number}/{STEPS}] {text}", flush=True)


def run(*command, limit=120, shown=True, check=True, **more):
    """Runs a command and returns what it printed."""
    if shown:
        print("    $ " + " ".join([os.path.basename(command[0]), *command[1:]]), flush=True)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=limit, **more)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)}: not done after {limit} s") from None
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or "no message"
        raise Failed(f"{' '.join(command)}: exit status {done.returncode}: {said}")
    return done.stdout if check else done


def indent(text, lines):
    shown = text.rstrip().splitlines()
    for line in shown[:lines]:
        print("      " + line)
    if len(shown) > lines:
        print(f"      ... {len(shown) - lines} more lines")
    sys.stdout.flush()


def machine():
    cpu = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "host")):
                cpu = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"kernel": platform.release(), "cpu": cpu, "cpus": os.cpu_count(), "memory_bytes": memory,
            "runner": os.environ.get("STORLAB_RUNNER", "host")}


class Demo:
    """What was started, to be undone in reverse."""

    def __init__(self, options):
        self.bin = options.bin
        self.out = options.out
        self.seconds = options.seconds
        self.slow = "TCG" in machine()["cpu"]
        self.undo = []
        self.documents = []
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def tool(self, name):
        return os.path.join(self.bin, name)

    def later(self, action):
        self.undo.append(action)
        return action

    def undo_now(self, action):
        self.undo.remove(action)
        action()

    def tear_down(self):
        problems = []
        while self.undo:
            try:
                self.undo.pop()()
            except (Failed, OSError) as error:
                problems.append(str(error))
        return problems

    def document(self, name, title, about, parameters, summary, **more):
        self.documents.append({
            "schema": "storlab-result-1", "name": "demo/" + name, "title": title, "about": about,
            "started": self.started, "parameters": parameters, "seed": 1, "machine": machine(),
            "summary": [{"label": label, "value": value, "unit": unit, "talk": None} for label, value, unit in summary],
            "tables": more.get("tables", []), "figures": more.get("figures", []), "samples": more.get("samples", {}),
        })

    # --- The ZNS device ---

    def load_zns(self):
        progress(1, "load a ZNS SSD: 1 GiB of RAM in zones of 64 MiB, 48 MiB of each writable")
        self.zns = run(self.tool("ublk-zns"), "add", "--size", "1GiB", "--zone-size", "64MiB", "--zone-capacity",
                       "48MiB", limit=90).strip()
        self.zns_id = self.zns.removeprefix("/dev/ublkb")
        self.drop_zns = self.later(lambda: run(self.tool("ublk-zns"), "del", self.zns_id, "--force", shown=False))
        print(f"      {self.zns}")
        indent(run("blkzone", "report", self.zns), 3)

    def fio_zns(self):
        progress(2, "fio: random zoned writes, read back and verified")
        size = 48 if self.slow else 192
        parameters = ["--name=zns", f"--filename={self.zns}", "--direct=1", "--zonemode=zbd", "--rw=randwrite", "--bs=64k",
                      "--size=576M", f"--io_size={size}M", "--max_open_zones=8", "--ioengine=libaio", "--iodepth=16",
                      "--randseed=1", "--verify=crc32c", "--verify_fatal=1", "--output-format=json"]
        # In /tmp, where fio leaves the state of its verification.
        said = run("fio", *parameters, limit=400, cwd="/tmp")
        job = json.loads(re.sub(r"^[^{]*", "", said, count=1))["jobs"][0]
        if job["error"]:
            raise Failed(f"fio: error {job['error']}")
        rates = []
        for verb in ("write", "read"):
            done = job[verb]
            p99 = done["clat_ns"].get("percentile", {}).get("99.000000", 0) / 1000
            rates.append((verb, done["bw_bytes"] / MIB, done["iops"], p99))
            print(f"      {verb}: {done['bw_bytes'] / MIB:.1f} MiB/s, {done['iops']:.0f} IO/s, p99 {p99:.0f} us")
        zones = json.loads(run(self.tool("ublk-zns"), "report", self.zns_id, "--json", shown=False))
        filled = [((zone["write_pointer_sectors"] or zone["start_sectors"]) - zone["start_sectors"]) / 2048
                  if zone["state"] != "full" else zone["capacity_sectors"] / 2048 for zone in zones]
        stat = json.loads(run(self.tool("ublk-zns"), "stat", self.zns_id, "--json", shown=False))
        wrong = sum(op["errors"] for op in stat["ops"].values())
        if wrong or stat["handler_panics"]:
            raise Failed(f"the ZNS device counted {wrong} errors and {stat['handler_panics']} panics")
        self.document(
            "zns-fio", "fio on the ZNS device",
            "64 KiB writes to random zones at their write pointers, then every block read and its checksum verified.",
            {"size": "1 GiB", "zone_size": "64 MiB", "zone_capacity": "48 MiB", "written": f"{size} MiB", "iodepth": 16},
            [(f"{verb} bandwidth", round(rate, 1), "MiB/s") for verb, rate, _, _ in rates]
            + [(f"{verb} latency p99", round(p99), "us") for verb, _, _, p99 in rates]
            + [("verify errors", 0, "")],
            figures=[{"id": "zones", "kind": "bar", "title": "Written to each zone", "x": {"label": "zone", "unit": ""},
                      "y": {"label": "written", "unit": "MiB"},
                      "series": [{"name": "ublk-zns", "x": [str(z["zone"]) for z in zones], "y": filled}]}],
            samples={"fio": {verb: {"bw_bytes": job[verb]["bw_bytes"], "iops": job[verb]["iops"]} for verb in ("read", "write")},
                     "device": stat})

    # --- The zone file system ---

    def mount(self):
        run(self.tool("zonefs-fuse"), self.zns, self.mountpoint, limit=90)
        return self.later(lambda: run("umount", self.mountpoint, limit=90))

    def zonefs(self):
        progress(3, "make a zone file system on it, mount it, write files")
        run("blkzone", "reset", self.zns)
        indent(run(self.tool("mkfs.zonefs-fuse"), self.zns, limit=90), 4)
        self.mountpoint = "/tmp/storlab-demo"
        os.makedirs(self.mountpoint, exist_ok=True)
        unmount = self.mount()
        generator = random.Random(1)
        sums, total, begun = {}, 0, time.monotonic()
        for number in range(24):
            folder = os.path.join(self.mountpoint, f"dir{number % 4}")
            os.makedirs(folder, exist_ok=True)
            data = generator.randbytes(generator.randrange(1, (MIB if self.slow else 4 * MIB)))
            path = os.path.join(folder, f"file{number:02d}")
            with open(path, "wb") as file:
                file.write(data)
                os.fsync(file.fileno())
            sums[os.path.relpath(path, self.mountpoint)] = hashlib.sha256(data).hexdigest()
            total += len(data)
        written_s = time.monotonic() - begun
        os.rename(os.path.join(self.mountpoint, "dir0/file00"), os.path.join(self.mountpoint, "dir1/renamed"))
        sums["dir1/renamed"] = sums.pop("dir0/file00")
        os.unlink(os.path.join(self.mountpoint, "dir3/file23"))
        del sums["dir3/file23"]
        print(f"      24 files, {total / MIB:.1f} MiB, each synced, in {written_s:.1f} s")
        progress(4, "unmount, mount again, verify every file by its checksum")
        self.undo_now(unmount)
        unmount = self.mount()
        found = {}
        begun = time.monotonic()
        for folder, _, names in os.walk(self.mountpoint):
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, self.mountpoint)] = hashlib.sha256(file.read()).hexdigest()
        read_s = time.monotonic() - begun
        if found != sums:
            wrong = sorted(set(found.items()) ^ set(sums.items()))
            raise Failed(f"files differ after mounting again: {wrong[:4]}")
        print(f"      {len(found)} files are as they were written, in {read_s:.1f} s")
        indent(run("df", "-h", self.mountpoint), 2)
        self.undo_now(unmount)
        self.document(
            "zonefs", "Files on the zone file system",
            "24 files of random sizes written and synced one by one, one renamed, one removed; unmounted, mounted again, "
            "each compared by SHA-256.",
            {"files": 24, "bytes": total, "seed": 1},
            [("written and synced", round(total / MIB / written_s, 1), "MiB/s"),
             ("read and hashed", round(total / MIB / read_s, 1), "MiB/s"), ("files verified", len(found), ""),
             ("files that differ", 0, "")])
        self.undo_now(self.drop_zns)

    # --- The swap device ---

    def load_swap(self):
        progress(5, "start two memory nodes and load a swap device over them")
        self.nodes = ["127.0.0.1:7001", "127.0.0.1:7002"]
        for node in self.nodes:
            pid_file = f"/tmp/node-{node.rsplit(':', 1)[1]}.pid"
            said = run(self.tool("dpuswap-node"), "--listen", node, "--memory", "256MiB", "--lock", "--pid-file", pid_file,
                       "--key-file", SWAP_KEY, "--drain-timeout", "0", limit=60)
            indent(said, 2)

            def stop(path=pid_file):
                with open(path, encoding="utf-8") as file:
                    os.kill(int(file.read()), signal.SIGTERM)
            self.later(stop)
        command = [self.tool("ublk-dpuswap"), "add", "--size", "512MiB", "--cache", "16MiB", "--key-file", SWAP_KEY]
        for node in self.nodes:
            command += ["--node", node]
        self.swap = run(*command, limit=90).strip()
        self.swap_id = self.swap.removeprefix("/dev/ublkb")
        self.drop_swap = self.later(lambda: run(self.tool("ublk-dpuswap"), "del", self.swap_id, "--force", shown=False))
        print(f"      {self.swap}")
        run("mkswap", self.swap)
        run("swapon", "-p", "100", "--discard", self.swap)
        self.swapoff = self.later(lambda: run("swapoff", self.swap, limit=300))

    def pressure(self):
        need = 64 if self.slow else 96
        progress(6, f"stress-ng for {self.seconds} s: {need} MiB with verification, in a cgroup with half of that")
        group = "/sys/fs/cgroup/storlab-demo"
        os.makedirs(group, exist_ok=True)

        def drop_group():
            os.rmdir(group)
        self.later(drop_group)
        for name, value in (("memory.max", need // 2 * MIB), ("memory.swap.max", 480 * MIB)):
            with open(os.path.join(group, name), "w", encoding="utf-8") as file:
                file.write(str(value))
        before = self.vmstat()
        # --vm-bytes is shared by the workers.
        command = ["stress-ng", "--vm", "2", "--vm-bytes", f"{need}M", "--vm-keep", "--vm-method", "rand-set", "--verify", "--seed", "1",
                   "--timeout", str(self.seconds), "--metrics-brief", "--temp-path", "/tmp"]
        script = f"echo $$ > {group}/cgroup.procs; exec " + " ".join(command)
        print("    $ " + " ".join(command), flush=True)
        begun = time.monotonic()
        child = subprocess.Popen(["bash", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True)
        samples = {"seconds": [], "pages_out": [], "pages_in": []}
        limit = self.seconds * 4 + 240
        while child.poll() is None:
            if time.monotonic() - begun > limit:
                child.kill()
                raise Failed(f"stress-ng: not done after {limit} s")
            now = self.vmstat()
            samples["seconds"].append(round(time.monotonic() - begun, 1))
            samples["pages_out"].append(now["pswpout"] - before["pswpout"])
            samples["pages_in"].append(now["pswpin"] - before["pswpin"])
            if len(samples["seconds"]) % 10 == 0:
                print(f"      {samples['seconds'][-1]:.0f} s: {samples['pages_out'][-1]} pages out, "
                      f"{samples['pages_in'][-1]} pages in", flush=True)
            time.sleep(1)
        said = child.stdout.read()
        if child.returncode != 0 or re.search(r"verif\w* (fail|error)|error detected", said):
            raise Failed(f"stress-ng: exit status {child.returncode}: {said.strip()[-400:]}")
        done = re.search(r"\] vm +(\d+)", said)
        self.bogo_ops = int(done.group(1)) if done else 0
        if not self.bogo_ops:
            raise Failed(f"stress-ng verified nothing: {said.strip()[-400:]}")
        after = self.vmstat()
        self.pages_out = after["pswpout"] - before["pswpout"]
        self.pages_in = after["pswpin"] - before["pswpin"]
        if not self.pages_out or not self.pages_in:
            raise Failed("nothing was swapped: the pressure did not reach the device")
        self.samples, self.need = samples, need
        print(f"      {self.bogo_ops} operations, no verify error; {self.pages_out} pages out, {self.pages_in} pages in")

    @staticmethod
    def vmstat():
        with open("/proc/vmstat", encoding="utf-8") as file:
            return {key: int(value) for key, value in (line.split() for line in file)}

    def swap_report(self):
        progress(7, "what the swap device did")
        stat = json.loads(run(self.tool("ublk-dpuswap"), "stat", self.swap_id, "--json", shown=False))
        target, counters = stat["target"], stat["target"]["counters"]
        hits = counters["hits_dirty"] + counters["hits_written"] + counters["hits_filled"]
        looked = hits + counters["misses"]
        hit_ratio = 100 * hits / looked if looked else 100.0
        payload = counters["payload_bytes_written"]
        compressed = (counters["pages_written"] - counters["same_filled_written"]) * 4096
        ratio = compressed / payload if payload else 1.0
        for label, value in (("pages written", counters["pages_written"]), ("pages read", counters["pages_read"]),
                             ("of one repeated word", counters["same_filled_written"]),
                             ("compression ratio (others)", f"{ratio:.2f}"), ("cache hits", f"{hit_ratio:.1f} %")):
            print(f"      {label}: {value}")
        for node in target["nodes"]:
            print(f"      {node['node']}: {node['bytes_out'] / MIB:.1f} MiB out, {node['bytes_in'] / MIB:.1f} MiB in, "
                  f"{node['held_blocks']} blocks held")
        if counters["write_errors"] or counters["read_errors"]:
            raise Failed(f"the swap device failed {counters['write_errors']} writes and {counters['read_errors']} reads")
        names = [node["node"] for node in target["nodes"]]
        self.document(
            "swap", "Memory pressure on the swap device",
            f"stress-ng writes and verifies {self.need} MiB in a cgroup that may use half of it; the rest is swapped to "
            "two memory nodes, compressed.",
            {"size": "512 MiB", "cache": "16 MiB", "nodes": 2, "memory_needed_mib": self.need,
             "memory_allowed_mib": self.need // 2, "seconds": self.seconds},
            [("operations verified", self.bogo_ops, ""), ("pages swapped out", self.pages_out, ""), ("pages swapped in", self.pages_in, ""),
             ("same-filled pages", counters["same_filled_written"], ""), ("compression ratio", round(ratio, 2), ""),
             ("cache hits", round(hit_ratio, 1), "%")]
            + [(f"{node['node']} out", round(node["bytes_out"] / MIB, 1), "MiB") for node in target["nodes"]]
            + [(f"{node['node']} in", round(node["bytes_in"] / MIB, 1), "MiB") for node in target["nodes"]]
            + [("verify errors", 0, "")],
            figures=[
                {"id": "swapped", "kind": "line", "title": "Pages swapped", "x": {"label": "time", "unit": "s"},
                 "y": {"label": "pages", "unit": ""},
                 "series": [{"name": "out", "x": self.samples["seconds"], "y": self.samples["pages_out"]},
                            {"name": "in", "x": self.samples["seconds"], "y": self.samples["pages_in"]}]},
                {"id": "nodes", "kind": "bar", "title": "Bytes moved by each node", "x": {"label": "node", "unit": ""},
                 "y": {"label": "moved", "unit": "MiB"},
                 "series": [{"name": "out", "x": names, "y": [n["bytes_out"] / MIB for n in target["nodes"]]},
                            {"name": "in", "x": names, "y": [n["bytes_in"] / MIB for n in target["nodes"]]}]}],
            samples={"vmstat": self.samples, "device": stat})

    def finish(self):
        progress(8, "swap off, delete the devices, stop the nodes")
        self.undo_now(self.swapoff)
        self.undo_now(self.drop_swap)
        problems = self.tear_down()
        if problems:
            raise Failed("; ".join(problems))
        left = run(self.tool("ublk-target"), "list", "--json", shown=False).strip()
        if left != "[]":
            raise Failed(f"still loaded: {left}")

    def report(self):
        progress(9, "report")
        results = os.path.join(self.out, "results")
        os.makedirs(results, exist_ok=True)
        for number, document in enumerate(self.documents, 1):
            name = document["name"].rsplit("/", 1)[1]
            with open(os.path.join(results, f"{number}-{name}.json"), "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
        parts = {document["name"]: document["summary"] for document in self.documents}
        with open(os.path.join(self.out, "report.json"), "w", encoding="utf-8") as file:
            json.dump({"schema": "storlab-report-1", "started": self.started, "machine": machine(), "parts": parts}, file,
                      indent=1)
        print()
        for document in self.documents:
            print(document["title"])
            for line in document["summary"]:
                print(f"  {line['label']:<28} {line['value']:>12} {line['unit']}")
        sys.stdout.flush()

    def all(self):
        for step in (self.load_zns, self.fio_zns, self.zonefs, self.load_swap, self.pressure, self.swap_report, self.finish,
                     self.report):
            step()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=int, default=30)
    demo = Demo(parser.parse_args())
    try:
        demo.all()
    except (Failed, OSError, KeyError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        for problem in demo.tear_down():
            print(f"demo: while tearing down: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
