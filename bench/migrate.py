#!/usr/bin/env python3
"""bench/migrate: what a migration costs the program, measured from inside the program.

Starts a local cluster of two nodes, runs the memory hammer (tests/tracees/load/hammer.cc) in a capsule
and moves it there and back. Downtime is the largest gap of a heartbeat that a thread of the hammer
writes every 100 us on CLOCK_REALTIME, less the largest gap of an equal time without a move. `raw` is
a plain copy of as many bytes over two TCP connections across the same bridge into memory that is
there already (bench/raw_copy.cc), measured in turn with the moves.

    bench/migrate.py [--runs 10] [--only NAME[,NAME]] [--json FILE] [--build build/release]

Prints a table in Markdown: medians, with minimum and maximum. Nothing here fails on a slow day: it
measures, it doesn't judge. Exit status: 0 measured, 1 something went wrong, 2 usage.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

# CRIU 4.2 on a machine like the one that these were first measured on (2 cores, kernel 6.18): downtime
# in ms; stop: page server, postcopy: lazy pages. It has no pre-copy there (no soft-dirty).
CRIU = {"stop-1g": "1985", "precopy-1g-idle": "1985", "precopy-1g-100": "1920", "auto-1g-100": "1920",
        "postcopy-4g-100": "500", "stop-1m": "50"}


class Case:
    def __init__(self, name, what, args, mode, goal, tracee="hammer", extra=()):
        self.name, self.what, self.args, self.mode, self.goal = name, what, args, mode, goal
        self.tracee, self.extra = tracee, extra
        self.mib = int(args[args.index("--mib") + 1]) if "--mib" in args else 0


CASES = [
    Case("stop-1g", "1 GiB random, 4K pages, stop", ["--mib", "1024"], "stop", "total <= 3 x raw"),
    Case("stop-1g-huge", "1 GiB random, huge pages, stop", ["--mib", "1024", "--huge"], "stop",
         "total <= 1.5 x raw + 20 ms"),
    Case("precopy-1g-idle", "1 GiB idle, precopy", ["--mib", "1024"], "precopy", "downtime <= 2 ms"),
    Case("precopy-1g-100", "1 GiB, 100 MB/s, precopy", ["--mib", "1024", "--rate-mb-s", "100"],
         "precopy", "downtime <= 4 ms"),
    Case("auto-1g-100", "1 GiB, 100 MB/s, auto", ["--mib", "1024", "--rate-mb-s", "100"], "auto",
         "downtime <= 4 ms"),
    Case("postcopy-4g-100", "4 GiB, 100 MB/s, postcopy",
         ["--mib", "4096", "--rate-mb-s", "100"], "postcopy",
         "downtime <= 3 ms, fault p99 <= 1 ms"),
    Case("auto-1g-max", "1 GiB, faster than the link, auto",
         ["--mib", "1024", "--rate-mb-s", "max"], "auto", "ends in hybrid, downtime <= 10 ms"),
    Case("stop-1m", "1 MiB, stop", ["--mib", "1"], "stop", "downtime <= 3 ms, total <= 15 ms"),
    Case("threads-64", "64 threads, 256 MiB, precopy", ["--mib", "256", "--threads", "64",
         "--rate-mb-s", "10"], "precopy", "downtime <= 6 ms"),
    Case("mappings-10k", "10,000 mappings, precopy", ["--mib", "64", "--mappings", "10000"],
         "precopy", "downtime <= 20 ms"),
]


class Failure(Exception):
    pass


def run(argv, **kwargs):
    done = subprocess.run(argv, capture_output=True, text=True, **kwargs)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr.strip()}"
                      f" {done.stdout.strip()}")
    return done.stdout


class Cluster:
    def __init__(self, build, name):
        self.godwit, self.name = str(build / "bin/godwit"), name
        run([self.godwit, "local", "up", "--nodes", "2", "--name", name])
        self.nodes = {n["node"]: n for n in json.loads(self.call("local", "status", "--json"))["nodes"]}

    def call(self, *args):
        return run([self.godwit, *args], env=dict(os.environ, GODWIT_CLUSTER=self.name))

    def down(self):
        self.call("local", "down", "--name", self.name)

    def inside(self, node, *argv):
        return ["nsenter", "-t", str(self.nodes[node]["init_pid"]), "-n", "--", *map(str, argv)]


def raw_us(cluster, build, mib, port=7999):
    """Two TCP streams, prefaulted memory, n1 to n2."""
    tool = build / "bin/raw_copy"
    receiver = subprocess.Popen(cluster.inside("n2", tool, "receive", port, mib),
                                stdout=subprocess.PIPE, text=True)
    try:
        if receiver.stdout.readline().strip() != "ready":
            raise Failure("raw_copy did not come up")
        run(cluster.inside("n1", tool, "send", cluster.nodes["n2"]["address"], port, mib))
        answer = json.loads(receiver.stdout.readline())
    finally:
        receiver.kill()
        receiver.wait()
    return answer["us"]


class Hammer:
    def __init__(self, cluster, build, case, serial):
        self.cluster, self.name = cluster, f"bench{serial}"
        env = dict(os.environ, GODWIT_CLUSTER=cluster.name)
        path = next((build / "tests/tracees").rglob(case.tracee))
        self.process = subprocess.Popen(
            [cluster.godwit, "run", "--node", "n1", "--name", self.name, "--", str(path), *case.args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.expect("ready")

    def expect(self, start):
        while True:
            line = self.process.stdout.readline()
            if line == "":
                raise Failure(f"the program ended before it said {start!r}")
            if line.startswith(start):
                return line

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.expect("{"))

    def check(self):
        answer = self.ask("check")
        self.expect("ok")
        self.process.stdin.close()
        if self.process.wait(timeout=60) != 0:
            raise Failure("the program did not end well")
        return answer

    def migrate(self, target, mode, extra):
        return json.loads(self.cluster.call("migrate", self.name, target, "--mode", mode, "--json", *extra))


def worst_gap_us(report):
    return max((g["us"] for g in report["gaps"]), default=0)


def measure(cluster, build, case, runs, serial):
    hammer = Hammer(cluster, build, case, serial)
    rows = []
    location = "n1"
    try:
        for _ in range(runs):
            raw = raw_us(cluster, build, case.mib) if case.mib >= 64 else None
            hammer.ask("report")
            target = "n2" if location == "n1" else "n1"
            began = time.monotonic()
            answer = hammer.migrate(target, case.mode, case.extra)
            took = time.monotonic() - began
            moved = hammer.ask("report")
            location = target
            time_without_a_move(took)
            still = hammer.ask("report")
            rows.append({"raw_us": raw, "answer": answer, "gap_us": worst_gap_us(moved),
                         "still_gap_us": worst_gap_us(still)})
        hammer.check()
    except BaseException:
        hammer.process.kill()
        hammer.process.wait()
        raise
    return rows


def time_without_a_move(seconds):
    """An equal time for the comparison; a measurement's length, not a wait for something."""
    threading.Event().wait(seconds)


def spread(values, digits=1):
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    m = statistics.median(values)
    return f"{m:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def row_of(case, rows):
    still = statistics.median(r["still_gap_us"] for r in rows)
    downtime = [max(0, r["gap_us"] - still) / 1000 for r in rows]
    total = [r["answer"]["total_us"] / 1000 for r in rows]
    raw = [r["raw_us"] / 1000 if r["raw_us"] else None for r in rows]
    ratio = [t / r if r else None for t, r in zip(total, raw)]
    p99 = [r["answer"].get("fault_p99_us") for r in rows if r["answer"].get("fault_p99_us")]
    modes = sorted({r["answer"]["mode"] for r in rows})
    return {
        "case": case.what, "goal": case.goal, "mode": "/".join(modes),
        "downtime_ms": spread(downtime, 2), "total_ms": spread(total), "raw_ms": spread(raw),
        "total/raw": spread(ratio, 2), "fault_p99_us": spread(p99, 0),
        "rounds": statistics.median(len(r["answer"]["rounds"]) for r in rows),
        "criu_downtime_ms": CRIU.get(case.name, "-"), "runs": len(rows),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", default="")
    parser.add_argument("--build", default=str(ROOT / "build/release"))
    options = parser.parse_args()
    build = pathlib.Path(options.build).resolve()
    wanted = [c for c in CASES if not options.only or c.name in options.only.split(",")]
    if not wanted:
        parser.error("no such case; known: " + ", ".join(c.name for c in CASES))
    if re.search(r"[^a-z0-9-]", name := f"bench-{os.getpid()}"):
        raise AssertionError(name)
    cluster = Cluster(build, name)
    results, raw_results, failed = [], {}, False
    try:
        for serial, case in enumerate(wanted):
            print(f"{case.name}: {options.runs} moves ...", file=sys.stderr)
            try:
                rows = measure(cluster, build, case, options.runs, serial)
            except (Failure, subprocess.TimeoutExpired, StopIteration, json.JSONDecodeError) as error:
                print(f"{case.name}: {error!r}", file=sys.stderr)
                failed = True
                continue
            raw_results[case.name] = rows
            results.append(row_of(case, rows))
    finally:
        cluster.down()
    if results:
        columns = list(results[0])
        print("| " + " | ".join(columns) + " |")
        print("|" + "---|" * len(columns))
        for row in results:
            print("| " + " | ".join(str(row[c]) for c in columns) + " |")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(raw_results, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
