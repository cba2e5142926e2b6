"""What the suites share: verdicts of several devices side by side, and one result document of them.

The invariant: a test has one of five verdicts, and only PASS and SKIP are good. A failure that null_blk with the same
geometry shares is the test's or the kernel's; any other is ours.
"""

import json
import os
import signal
import sys
import time
import traceback

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../scripts"))
import storlab_zoned as zoned  # noqa: E402

PASS, SKIP, FAIL, HANG, NONE = "PASS", "SKIP", "FAIL", "HANG", "NONE"
GOOD = (PASS, SKIP)
# Longer reasons are cut: a traceback says what is wrong in its last lines.
REASON_CHARACTERS = 600


class Skip(Exception):
    """The test does not apply; the text says why."""


class Verdict:
    """How one test went on one device."""

    def __init__(self, kind, why="", seconds=0.0):
        self.kind, self.why, self.seconds = kind, why[-REASON_CHARACTERS:], seconds

    def document(self):
        return {"verdict": self.kind, "why": self.why, "seconds": round(self.seconds, 2)}


class Comparison:
    """Verdicts by case (a geometry) and device, then by test."""

    def __init__(self, ours="ublk-zns", reference="null_blk"):
        self.ours, self.reference, self.cases = ours, reference, {}

    def add(self, case, device, test, verdict):
        self.cases.setdefault(case, {}).setdefault(device, {})[str(test)] = verdict

    def alone(self):
        """What fails on our device and not, in the same way, on the reference."""
        for case, devices in self.cases.items():
            for test, verdict in devices.get(self.ours, {}).items():
                other = devices.get(self.reference, {}).get(test)
                if verdict.kind not in GOOD and (other is None or other.kind != verdict.kind or verdict.kind == HANG):
                    yield case, test, verdict, other

    def better(self):
        """What the reference fails and our device passes."""
        for case, devices in self.cases.items():
            for test, verdict in devices.get(self.reference, {}).items():
                mine = devices.get(self.ours, {}).get(test)
                if verdict.kind in (FAIL, HANG) and mine and mine.kind == PASS:
                    yield case, test, verdict

    def rows(self):
        for case, devices in self.cases.items():
            for device, tests in devices.items():
                kinds = [verdict.kind for verdict in tests.values()]
                failing = [test for test, verdict in tests.items() if verdict.kind in (FAIL, HANG)]
                yield [case, device, *(kinds.count(kind) for kind in (PASS, SKIP, FAIL, HANG)), " ".join(failing)]

    def show(self):
        """Print the table, then what is ours alone. True when nothing is."""
        rows = list(self.rows())
        width = [max(len(str(row[n])) for row in rows) for n in (0, 1)]
        print(f"\n{'case':{width[0]}} {'device':{width[1]}}  pass skip fail hang  failing tests")
        for row in rows:
            print(f"{row[0]:{width[0]}} {row[1]:{width[1]}}  {row[2]:4} {row[3]:4} {row[4]:4} {row[5]:4}  {row[6]}")
        for case, test, _ in self.better():
            print(f"{self.reference} alone fails {test} ({case})")
        mine = list(self.alone())
        for case, test, verdict, other in mine:
            against = f"{self.reference}: {other.kind}" if other else f"{self.reference} did not run it"
            print(f"\n{self.ours} alone fails {test} ({case}): {verdict.kind}; {against}")
            for line in verdict.why.splitlines()[-12:]:
                print(f"    {line}")
        kinds = [v.kind for devices in self.cases.values() for v in devices.get(self.ours, {}).values()]
        bad = sum(kind in (FAIL, HANG) for kind in kinds)
        print(f"\n{self.ours}: {kinds.count(PASS)} passed, {bad} failed, {kinds.count(SKIP)} skipped; "
              f"{bad - len(mine)} of the failures are {self.reference}'s too")
        return not mine and bool(kinds)

    def document(self, name, title, about, parameters, started):
        """A result document, as scripts/figures reads it."""
        columns = ["case", "device", "pass", "skip", "fail", "hang", "failing tests"]
        mine = [[case, test, v.kind, other.kind if other else None, v.why.splitlines()[-1] if v.why else ""]
                for case, test, v, other in self.alone()]
        kinds = [v.kind for devices in self.cases.values() for v in devices.get(self.ours, {}).values()]
        counts = [("Passed", kinds.count(PASS)), ("Skipped", kinds.count(SKIP)),
                  ("Failed", kinds.count(FAIL) + kinds.count(HANG)), ("Failed, and the reference does not", len(mine))]
        return {
            "schema": "storlab-result-1", "name": name, "title": title, "about": about, "started": started, "seed": None,
            "parameters": parameters, "machine": zoned.machine(),
            "summary": [{"label": label, "value": value, "unit": "tests", "talk": None} for label, value in counts],
            "tables": [{"title": "Verdicts", "columns": columns, "rows": list(self.rows())},
                       {"title": f"What {self.ours} alone fails", "columns": ["case", "test", "verdict", self.reference, "why"],
                        "rows": mine}],
            "figures": [],
            "samples": {case: {device: {test: v.document() for test, v in tests.items()} for device, tests in devices.items()}
                        for case, devices in self.cases.items()},
        }


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_document(path, document):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.write("\n")


def in_a_child(test, seconds):
    """Run `test()` in a process of its own: its verdict. It can hang, die or be stuck in the kernel."""
    begun = time.monotonic()
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(reader)
        try:
            test()
            said = {"kind": PASS, "why": ""}
        except Skip as skip:
            said = {"kind": SKIP, "why": str(skip)}
        except BaseException as error:  # pylint: disable=broad-except
            where = traceback.extract_tb(error.__traceback__)[-1]
            unexpected = "" if isinstance(error, AssertionError) else f"{type(error).__name__} at line {where.lineno}: "
            said = {"kind": FAIL, "why": unexpected + (str(error) or where.line or "no message")}
        os.write(writer, json.dumps(said).encode()[:60000])
        os._exit(0)
    os.close(writer)
    gone = []

    def reap():
        if not gone:
            pid, _ = os.waitpid(child, os.WNOHANG)
            gone.extend([pid] if pid else [])

    deadline = begun + seconds
    while not gone and time.monotonic() < deadline:
        reap()
        time.sleep(0.01)
    if not gone:
        stuck = zoned.end_session(child, reap)
        os.close(reader)
        why = f"not done after {seconds} s" + (f"; stuck in the kernel: {', '.join(stuck)}" if stuck else "")
        return Verdict(HANG, why, time.monotonic() - begun)
    zoned.end_session(child, lambda: None)  # What the test has left running.
    os.set_blocking(reader, False)
    try:
        text = os.read(reader, 65536)
    except BlockingIOError:
        text = b""
    os.close(reader)
    said = json.loads(text) if text else {"kind": FAIL, "why": "the test's process died"}
    return Verdict(said["kind"], said["why"], time.monotonic() - begun)


def stop_at_signals():
    """So that devices are removed when the run is ended."""
    def stop(number, _):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
