#!/usr/bin/env python3
"""Moves tracees between two QEMU machines with kernels 6.12 and 6.1, in both directions.

    run.py short|full [--build DIR] [--cases REGEX] [--modes stop,...] [--users root,user] [--keep]
    run.py image      makes the machines' file system (otherwise done when it's needed)

short: three tracees in all modes, for ctest. full: all of them. Exit status 77: skipped.
"""
import argparse
import collections
import concurrent.futures
import math
import pathlib
import re
import resource
import signal
import shutil
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "system")]

import image as images          # noqa: E402
import manifest                 # noqa: E402
from machine import MEMORY_MIB, EmulatorCrashed, MachineFailed   # noqa: E402
from pair import CPUS, NODES, Pair    # noqa: E402

SKIP = 77
NOBODY = 65534
MODES = ("stop", "precopy", "postcopy", "hybrid", "auto")
# What kernels differ in most: the vdso, tracking of writes, interrupted calls. The worthiest first:
# no more are begun when the time for them is over.
SHORT = ("vdso_calls_survive", "private_anonymous_keeps_every_byte", "nanosleep_keeps_its_time")
SHORT_S = 300
CASE_S = 900
JOBS = 2
CRASHES_MAX = 3  # Of QEMU: it loses a race in its own emulation now and then, mostly while it boots.
BINARIES = ("godwitd", "godwit", "godwit-worker", "godwit-init")
# What `godwit doctor` must say of each kernel: the start of a probe's name, and its status.
DOCTOR = {"n1": (("PAGEMAP_SCAN", "ok"), ("userfaultfd WP_ASYNC", "ok"),
                 ("tracking of writes", "ok"), ("memory-deny-write-execute", "ok")),
          "n2": (("PAGEMAP_SCAN", "degraded"), ("userfaultfd WP_ASYNC", "degraded"),
                 ("tracking of writes", "degraded"), ("memory-deny-write-execute", "degraded"))}


class Skip(Exception):
    pass


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["short", "full", "image"])
    parser.add_argument("--build", type=pathlib.Path, default=HERE.parent.parent / "build/release")
    parser.add_argument("--cache", type=pathlib.Path, default=HERE.parent.parent / "build/qemu")
    parser.add_argument("--cases", help="only those whose name matches")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--starts", default=None, help="n1,n2: where programs start; short: n1")
    parser.add_argument("--cpus", choices=CPUS, default=None,
                        help="lesser: n1's processor has no AVX (short); same (full)")
    parser.add_argument("--users", default=None, help="root,user; short: root")
    parser.add_argument("--keep", action="store_true", help="don't remove logs of a failure")
    options = parser.parse_args()
    short = options.what == "short"
    options.cpus = options.cpus or ("lesser" if short else "same")
    # From n2 to a lesser n1 nothing may go that began there.
    options.starts = options.starts or ("n1,n2" if options.cpus == "same" else "n1")
    return options


def available_mib():
    text = pathlib.Path("/proc/meminfo").read_text(encoding="ascii")
    return int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) >> 10


def check_machine(options):
    import os
    if os.geteuid() != 0:
        raise Skip("making the machines' file system needs root")
    if missing := images.missing_tools():
        raise Skip(f"not installed: {', '.join(missing)}")
    wanted = 2 * MEMORY_MIB + 512
    if available_mib() < wanted:
        raise Skip(f"two machines need {wanted} MiB of memory, {available_mib()} are free")
    binaries = [options.build / "bin" / name for name in BINARIES]
    if missing := [str(path) for path in binaries if not path.exists()]:
        raise Skip(f"not built: {', '.join(missing)}")
    return binaries


def wanted_cases(options):
    # Machines share no directory and no kernel.
    cases = [case for case in manifest.load()[1]
             if not case.in_shared_dir and not case.same_kernel]
    if options.cases:
        return [case for case in cases if re.search(options.cases, case.name)]
    if options.what == "short":
        return [case for name in SHORT for case in cases if case.name == name]
    return cases


def wanted_users(options, case):
    names = (options.users or ("root" if options.what == "short" else "root,user")).split(",")
    users = {"root": 0, "user": NOBODY}
    return [(name, users[name]) for name in names if name == "root" or not case.root]


def check_doctor(pair, say):
    """Each kernel offers what it is here for; else the test would not test what it says."""
    wrong = []
    for node, expectations in DOCTOR.items():
        report = pair.doctor(node)
        probes = report["probes"] if isinstance(report, dict) else report
        for name, status in expectations:
            found = [probe for probe in probes if probe["name"].startswith(name)]
            if [probe["status"] for probe in found] != [status]:
                wrong.append(f"doctor of {node}: {name} should be {status}: {found}")
        lacks = [f"{probe['name']} ({probe['status']})" for probe in probes
                 if probe["status"] != "ok"]
        say(f"{node}: doctor: {len(probes)} probes; {', '.join(lacks) or 'nothing lacks'}")
    return wrong


def check_refusal(pair, say):
    """A program that began with AVX can't go where there is none, and is told so by name."""
    reasons = pair.can_migrate("n2", "n1")
    say(f"n2 -> n1: refused: {'; '.join(reasons)}")
    if any(re.search(r"processor of n1 lacks avx$", reason) for reason in reasons):
        return []
    return [f"n1 has no AVX, and can-migrate doesn't say so: {reasons}"]


def report_ways(pair, say):
    """What became of each mode in each direction, as both nodes remember it."""
    ways = {}
    for node in NODES:
        for move in pair.history(node):
            if move["source"] != node:
                continue
            done = f"{move['mode']}, {len(move['rounds'])} rounds"
            way = (node, move["target"], move["mode_asked"])
            ways.setdefault(way, {}).setdefault((move["outcome"], done), []).append(
                move["downtime_us"])
    for (source, target, asked), outcomes in sorted(ways.items()):
        for (outcome, done), downtimes in sorted(outcomes.items()):
            say(f"{source} -> {target} {asked}: {len(downtimes)} {outcome} ({done}), downtime "
                f"{sorted(downtimes)[len(downtimes) // 2] / 1000:.0f} ms (median)")


class Tally:
    """What became of each case. Called by several threads, one at a time."""

    def __init__(self, say):
        self.say = say
        self.passed = self.skipped = 0
        self.failures = []

    def add(self, what, result, took_s):
        if result.status not in (0, SKIP):
            self.failures.append(what)
            self.say(f"{what}: FAILED, status {result.status}, {took_s:.1f} s\n{result.text()}")
            return
        self.passed += result.status == 0
        self.skipped += result.status == SKIP
        self.say(f"{what}: {result.text().splitlines()[-1]}, {took_s:.1f} s")


def run_cases(pair, options, cases, say):
    modes = [mode for mode in options.modes.split(",") for _ in range(2)]  # There and back.
    tally = Tally(say)
    tally.failures += check_doctor(pair, say)
    if options.cpus == "lesser":
        tally.failures += check_refusal(pair, say)
    runs = [(case, *user, start) for case in cases for user in wanted_users(options, case)
            for start in options.starts.split(",")]
    todo = collections.deque(runs)
    deadline = time.monotonic() + (SHORT_S if options.what == "short" else math.inf)
    lock = threading.Lock()

    def take_cases():
        while todo and time.monotonic() < deadline:
            case, user, uid, start = todo.popleft()
            began = time.monotonic()
            result = pair.run_case(case, uid, modes, start, CASE_S)
            with lock:
                tally.add(f"{case.name} ({user}, from {start})", result, time.monotonic() - began)

    # A move uses one machine after the other, so two of them keep both processors busy.
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        jobs = [pool.submit(take_cases) for _ in range(JOBS)]
        try:
            for job in jobs:
                job.result()
        except BaseException:  # Also a signal: the pool waits for its threads, they for machines.
            pair.end()
            raise
    if todo:
        say(f"the time is over: {len(todo)} of {len(runs)} cases are left out")
    report_ways(pair, say)
    if tally.failures:
        print(pair.logs())
    say(f"{tally.passed} passed, {tally.skipped} skipped, {len(tally.failures)} failed")
    for failure in tally.failures:
        print(f"FAILED: {failure}")
    if tally.failures:
        return 1
    if todo:
        raise Skip("too slow a machine: not all cases were run")
    return 0


def work(options):
    began = time.monotonic()

    def cpu_s():
        """Of all processes that have ended: what this costs, however busy the machine is."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def say(text):
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    binaries = check_machine(options)
    try:
        image = images.get(options.cache, binaries, say)
    except images.NoImage as error:
        raise Skip(f"the machines' file system can't be made here: {error}") from None
    image_s = cpu_s()
    if options.what == "image":
        say(image.root)
        return 0
    cases = wanted_cases(options)
    directory = tempfile.mkdtemp(prefix="godwit-qemu-")
    try:
        with Pair(image, options.cpus, directory, say) as pair:
            pair.start(binaries, options.build / "tests/tracees", cases)
            return run_cases(pair, options, cases, say)
    finally:
        say(f"processor time: image {image_s:.0f} s, machines {cpu_s() - image_s:.0f} s")
        if options.keep:
            say(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Runs every `finally` on the way.
    options = parse()
    for _ in range(CRASHES_MAX):
        try:
            return judge(options)
        except EmulatorCrashed as crash:
            print(f"QEMU itself crashed, once more: {crash}", flush=True)
    print(f"FAILED: QEMU crashed {CRASHES_MAX} times")
    return 1


def judge(options):
    try:
        return work(options)
    except Skip as reason:
        print(f"skip: {reason}")
        return SKIP
    except EmulatorCrashed:
        raise
    except MachineFailed as failure:
        print(f"FAILED: {failure}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
