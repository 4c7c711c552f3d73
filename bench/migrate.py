#!/usr/bin/env python3
"""bench/migrate: what a migration costs the program, measured from inside the program.

Starts a local cluster of two nodes, runs the memory hammer (tests/tracees/load/hammer.cc) in a capsule
and moves it there and back.

downtime   the largest gap of a heartbeat that a thread of the hammer writes every 100 us on
           CLOCK_REALTIME, less the largest gap of an equal time without a move
total      from the request to the release of the source, as `godwit migrate --json` tells it
raw        a plain copy of as many bytes over two TCP connections across the same bridge into memory
           that is there already (bench/raw_copy.cc), in turn with the moves
uffd       what UFFDIO_COPY alone takes for as many bytes (bench/uffd_copy.cc), in turn with the moves
brownout   how long the program made less than 90 % of its normal progress (samples of 10 ms), before
           the freeze (rounds) and after it (drain), beyond what an equal time without a move shows
cpu, extra memory
           of each node's control group during the move, beyond what the program itself uses

    bench/migrate.py [--runs 10] [--only NAME[,NAME]] [--json FILE] [--build build/release]

Prints a table in Markdown: medians, with minimum and maximum. Nothing here fails on a slow day: it
measures, it doesn't judge. Exit status: 0 measured, 1 something went wrong, 2 usage.
"""
import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

# CRIU 4.2 on a machine like the one that these were first measured on (2 cores, kernel 6.18), with a
# heartbeat of 1 ms: downtime / total in ms. stop: page server, postcopy: lazy pages (until all is
# there). It has no pre-copy there (no soft-dirty).
CRIU = {"stop-1g": "1985 / 1990", "stop-1g-huge": "1985 / 1990", "precopy-1g-idle": "not possible",
        "precopy-1g-100": "not possible", "auto-1g-100": "not possible",
        "postcopy-4g-100": "500 / 8068", "stop-1m": "50 / -"}

NORMAL_PROGRESS = 0.9


class Case:
    """What is run, and the goals: (words, function of the medians that tells whether it's reached)."""

    def __init__(self, name, what, args, mode, goals, yardsticks=()):
        self.name, self.what, self.args, self.mode = name, what, args, mode
        self.goals, self.yardsticks = goals, yardsticks
        self.mib = int(args[args.index("--mib") + 1])


def downtime_at_most(ms):
    return (f"downtime <= {ms} ms", lambda m: m["downtime_ms"] <= ms)


def total_at_most(words, limit):
    return (f"total <= {words}", lambda m: m["total_ms"] <= limit(m))


CASES = [
    Case("stop-1g", "1 GiB random, 4K pages, stop", ["--mib", "1024"], "stop",
         [total_at_most("3 x raw", lambda m: 3 * m["raw_ms"])], ["raw"]),
    Case("stop-1g-huge", "1 GiB random, huge pages, stop", ["--mib", "1024", "--huge"], "stop",
         [total_at_most("1.5 x raw + 20 ms", lambda m: 1.5 * m["raw_ms"] + 20)], ["raw"]),
    Case("precopy-1g-idle", "1 GiB idle, precopy", ["--mib", "1024"], "precopy",
         [downtime_at_most(2)]),
    Case("precopy-1g-100", "1 GiB, 100 MB/s, precopy", ["--mib", "1024", "--rate-mb-s", "100"],
         "precopy", [downtime_at_most(4)]),
    Case("auto-1g-100", "1 GiB, 100 MB/s, auto", ["--mib", "1024", "--rate-mb-s", "100"], "auto",
         [downtime_at_most(4)]),
    Case("postcopy-4g-100", "4 GiB, 100 MB/s, postcopy", ["--mib", "4096", "--rate-mb-s", "100"],
         "postcopy",
         [downtime_at_most(3), ("fault p99 <= 1 ms", lambda m: m["fault_p99_us"] <= 1000),
          total_at_most("1.5 x uffd", lambda m: 1.5 * m["uffd_ms"])], ["uffd"]),
    Case("auto-1g-max", "1 GiB, faster than the link, auto",
         ["--mib", "1024", "--rate-mb-s", "max"], "auto",
         [("ends in hybrid", lambda m: m["postcopy"] > 0.5), downtime_at_most(10)]),
    Case("stop-1m", "1 MiB, stop", ["--mib", "1"], "stop",
         [downtime_at_most(3), total_at_most("15 ms", lambda m: 15)]),
    Case("threads-64", "64 threads, 256 MiB, 10 MB/s, precopy",
         ["--mib", "256", "--threads", "64", "--rate-mb-s", "10"], "precopy", [downtime_at_most(6)]),
    Case("mappings-10k", "10,000 mappings, 64 MiB, precopy", ["--mib", "64", "--mappings", "10000"],
         "precopy", [downtime_at_most(20)]),
    Case("mappings-60k", "60,000 mappings, 64 MiB, precopy", ["--mib", "64", "--mappings", "60000"],
         "precopy", [total_at_most("10 s", lambda m: 10_000)]),
    Case("sparse-100g", "64 MiB and a sparse reservation of 100 GB, precopy",
         ["--mib", "64", "--sparse-gib", "100"], "precopy", [downtime_at_most(2)]),
]
RUN_TIME_COST = "run-time-cost"


class Failure(Exception):
    pass


def run(argv, **kwargs):
    done = subprocess.run(argv, capture_output=True, text=True, **kwargs)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr.strip()}"
                      f" {done.stdout.strip()}")
    return done.stdout


class Accounts:
    """CPU and memory of a node's control group, v1 or v2; None where the machine doesn't tell."""

    def __init__(self, group):
        self.cpu_file = self.memory_dir = None
        self.cpu_unit_us = 1
        for line in pathlib.Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, options = line.split()[:4]
            at = pathlib.Path(mount) / group
            names = options.split(",")
            if kind == "cgroup" and "cpuacct" in names and (at / "cpuacct.usage").exists():
                self.cpu_file, self.cpu_unit_us = at / "cpuacct.usage", 1000
            if kind == "cgroup" and "memory" in names and (at / "memory.usage_in_bytes").exists():
                self.memory_dir = at
            if kind == "cgroup2" and self.cpu_file is None and (at / "cpu.stat").exists():
                self.cpu_file = at / "cpu.stat"

    def cpu_us(self):
        if self.cpu_file is None:
            return None
        text = self.cpu_file.read_text()
        if self.cpu_file.name == "cpu.stat":
            return int(dict(line.split() for line in text.splitlines())["usage_usec"])
        return int(text) // self.cpu_unit_us

    def memory(self):
        return self._read("memory.usage_in_bytes")

    def peak(self):
        return self._read("memory.max_usage_in_bytes")

    def reset_peak(self):
        if self.memory_dir is not None:
            (self.memory_dir / "memory.max_usage_in_bytes").write_text("0")

    def _read(self, name):
        return None if self.memory_dir is None else int((self.memory_dir / name).read_text())


class Cluster:
    def __init__(self, build, name):
        self.godwit, self.name, self.build = str(build / "bin/godwit"), name, build
        run([self.godwit, "local", "up", "--nodes", "2", "--name", name])
        try:
            self.nodes = {n["node"]: n for n in
                          json.loads(self.call("local", "status", "--json"))["nodes"]}
            self.accounts = {name: Accounts(n["cgroup"]) for name, n in self.nodes.items()}
        except BaseException:
            self.down()
            raise

    def call(self, *args):
        return run([self.godwit, *args], env=dict(os.environ, GODWIT_CLUSTER=self.name))

    def down(self):
        self.call("local", "down", "--name", self.name)

    def inside(self, node, *argv):
        return ["nsenter", "-t", str(self.nodes[node]["init_pid"]), "-n", "--", *map(str, argv)]


def raw_us(cluster, mib, port=7999):
    """Two TCP streams, prefaulted memory, n1 to n2."""
    tool = cluster.build / "bin/raw_copy"
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


def uffd_us(cluster, mib):
    return json.loads(run([str(cluster.build / "bin/uffd_copy"), str(mib)]))["us"]


YARDSTICKS = {"raw": raw_us, "uffd": uffd_us}


class Hammer:
    """The program: in a capsule, or (without a cluster) as it is."""

    def __init__(self, build, args, cluster=None, name=None):
        self.cluster, self.name = cluster, name
        argv = [str(next((build / "tests/tracees").rglob("hammer"))), *args]
        if cluster is not None:
            argv = [cluster.godwit, "run", "--node", "n1", "--name", name, "--", *argv]
        env = dict(os.environ, GODWIT_CLUSTER=cluster.name) if cluster is not None else None
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=env)
        self.expect("ready")

    def expect(self, start):
        while True:
            line = self.process.stdout.readline()
            if line == "":
                raise Failure(f"the program ended before it said {start!r}")
            if line.startswith("FAIL"):
                raise Failure(f"the program: {line.strip()}")
            if line.startswith(start):
                return line

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.expect("{"))

    def check(self):
        self.ask("check")
        self.expect("ok")
        self.process.stdin.close()
        if self.process.wait(timeout=60) != 0:
            raise Failure("the program did not end well")

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def migrate(self, target, mode):
        return json.loads(self.cluster.call("migrate", self.name, target, "--mode", mode, "--json"))


def worst_gap(report):
    return max(report["gaps"], key=lambda g: g["us"], default={"at_us": 0, "us": 0})


def measure_a_time_of(seconds):
    """A measurement's length, not a wait for something."""
    threading.Event().wait(seconds)


def normal_rate(still):
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(still, still[1:]) if b[0] > a[0]]
    return statistics.median(rates) if rates else 0


def time_below_us(samples, rate, gap=None):
    """Before and after the gap, itself left out."""
    before = after = 0
    for (t0, w0), (t1, w1) in zip(samples, samples[1:]):
        if t1 <= t0 or (w1 - w0) / (t1 - t0) >= NORMAL_PROGRESS * rate:
            continue
        if gap is None or t1 <= gap["at_us"]:
            before += t1 - t0
        elif t0 >= gap["at_us"] + gap["us"]:
            after += t1 - t0
        else:
            before += max(0, gap["at_us"] - t0)
            after += max(0, t1 - gap["at_us"] - gap["us"])
    return before, after


def brownout_us(moved, still, took_us):
    rate = normal_rate(still["progress"])
    if rate == 0:
        return None, None
    rounds, drain = time_below_us(moved["progress"], rate, worst_gap(moved))
    anyway = time_below_us(still["progress"], rate)[0] / max(1, took_us)
    gap = worst_gap(moved)
    samples = moved["progress"]
    length_before = max(0, gap["at_us"] - samples[0][0]) if samples else 0
    length_after = max(0, samples[-1][0] - gap["at_us"] - gap["us"]) if samples else 0
    return max(0, rounds - anyway * length_before), max(0, drain - anyway * length_after)


class Meter:
    """CPU and extra memory of both nodes around something."""

    def __init__(self, cluster, source, target):
        self.accounts = cluster.accounts[source], cluster.accounts[target]
        for account in self.accounts:
            account.reset_peak()
        self.memory = [a.memory() for a in self.accounts]
        self.cpu = [a.cpu_us() for a in self.accounts]
        self.began = time.monotonic()

    def read(self):
        return {"seconds": time.monotonic() - self.began,
                "cpu_us": [None if c is None else a.cpu_us() - c
                           for a, c in zip(self.accounts, self.cpu)],
                "peak": [a.peak() for a in self.accounts],
                "memory_before": self.memory, "memory_after": [a.memory() for a in self.accounts]}


def extras(moved, still, answer):
    """The program's own share is what it uses where it is while nothing moves."""
    out = {"cpu_source_ms": None, "cpu_target_ms": None, "memory_source_mib": None,
           "memory_target_mib": None}
    if moved["cpu_us"][0] is not None:
        own = still["cpu_us"][1] / still["seconds"]  # us a second; it is on the target then
        freeze = next((p["begin_us"] for p in answer["phases"] if p["name"] == "freeze"), 0) / 1e6
        there = max(0.0, moved["seconds"] - freeze - answer["downtime_us"] / 1e6)
        out["cpu_source_ms"] = max(0, moved["cpu_us"][0] - own * freeze) / 1e3
        out["cpu_target_ms"] = max(0, moved["cpu_us"][1] - own * there) / 1e3
    if moved["peak"][0] is not None:
        out["memory_source_mib"] = (moved["peak"][0] - moved["memory_before"][0]) / 2**20
        out["memory_target_mib"] = max(0, moved["peak"][1] - moved["memory_after"][1]) / 2**20
    return out


def measure(cluster, case, runs, serial):
    hammer = Hammer(cluster.build, case.args, cluster, f"bench{serial}")
    rows = []
    source, target = "n1", "n2"
    try:
        for _ in range(runs):
            row = {f"{y}_us": YARDSTICKS[y](cluster, case.mib) for y in case.yardsticks}
            hammer.ask("progress")
            meter = Meter(cluster, source, target)
            answer = hammer.migrate(target, case.mode)
            moved_use = meter.read()
            moved = hammer.ask("progress")
            if answer["outcome"] != "moved":
                raise Failure(f"it did not move: {answer['reason']}")
            meter = Meter(cluster, source, target)
            measure_a_time_of(moved_use["seconds"])
            still_use = meter.read()
            still = hammer.ask("progress")
            rounds, drain = brownout_us(moved, still, still_use["seconds"] * 1e6)
            row.update(answer=answer, gap_us=worst_gap(moved)["us"],
                       still_gap_us=worst_gap(still)["us"], brownout_rounds_us=rounds,
                       brownout_drain_us=drain, **extras(moved_use, still_use, answer))
            rows.append(row)
            source, target = target, source
        hammer.check()
    finally:
        hammer.end()
    return rows


def run_time_cost(cluster, runs, seconds=2.0):
    """Progress of a program that only computes and writes memory: plain, and in a capsule."""
    args = ["--mib", "16", "--rate-mb-s", "max"]
    rows = []
    for i in range(runs):
        speed = {}
        for where in ("plain", "capsule"):
            hammer = (Hammer(cluster.build, args) if where == "plain"
                      else Hammer(cluster.build, args, cluster, f"cost{i}"))
            try:
                first = hammer.ask("report")
                measure_a_time_of(seconds)
                last = hammer.ask("report")
                hammer.check()
            finally:
                hammer.end()
            speed[where] = (last["writes"] - first["writes"]) / (last["us"] - first["us"])
        rows.append({"plain": speed["plain"], "capsule": speed["capsule"],
                     "ratio": speed["plain"] / speed["capsule"]})
    return rows


def spread(values, digits=1):
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    m = statistics.median(values)
    return f"{m:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def largest_phases(rows, since):
    """The three phases that take longest, from the named one on; medians in ms."""
    times = {}
    for row in rows:
        phases = row["answer"]["phases"]
        names = [p["name"] for p in phases]
        start = names.index(since) if since in names else 0
        for phase in phases[start:]:
            times.setdefault(phase["name"], []).append(phase["us"])
    largest = sorted(times, key=lambda n: -statistics.median(times[n]))[:3]
    return ", ".join(f"{n} {statistics.median(times[n]) / 1000:.1f}" for n in largest)


def row_of(case, rows):
    still = statistics.median(r["still_gap_us"] for r in rows)
    answers = [r["answer"] for r in rows]
    figures = {
        "downtime_ms": [max(0, r["gap_us"] - still) / 1000 for r in rows],
        "total_ms": [a["total_us"] / 1000 for a in answers],
        "fault_p99_us": [a.get("fault_p99_us") or None for a in answers],
        "postcopy": [1.0 if a.get("faults") or a.get("drain_us") else 0.0 for a in answers],
    }
    for yardstick in case.yardsticks:
        figures[f"{yardstick}_ms"] = [r[f"{yardstick}_us"] / 1000 for r in rows]
    medians = {name: median(values) for name, values in figures.items()}
    reached = []
    late = set()
    for words, holds in case.goals:
        ok = all(v is not None for n, v in medians.items() if n in words) and holds(medians)
        reached.append(f"{words}: {'yes' if ok else 'no'}")
        if not ok:
            late.add("freeze" if "downtime" in words else "")
    where = "; ".join(largest_phases(rows, since) for since in sorted(late))
    yard = case.yardsticks[0] if case.yardsticks else None
    ratio = [t / y for t, y in zip(figures["total_ms"], figures[f"{yard}_ms"])] if yard else []
    both = lambda a, b, scale, digits: " / ".join(
        "-" if m is None else f"{m * scale:.{digits}f}"
        for m in (median([r[a] for r in rows]), median([r[b] for r in rows])))
    return {
        "case": case.what, "moves": len(rows),
        "mode": "/".join(sorted({a["mode"] for a in answers})),
        "downtime ms": spread(figures["downtime_ms"], 2), "total ms": spread(figures["total_ms"]),
        "yardstick ms": f"{yard} {spread(figures[yard + '_ms'])}" if yard else "-",
        "total / yardstick": spread(ratio, 2), "fault p99 us": spread(figures["fault_p99_us"], 0),
        "rounds": f"{statistics.median(len(a['rounds']) for a in answers):.0f}",
        "brownout ms, rounds / drain": both("brownout_rounds_us", "brownout_drain_us", 1e-3, 0),
        "cpu ms, source / target": both("cpu_source_ms", "cpu_target_ms", 1, 0),
        "extra MiB, source / target": both("memory_source_mib", "memory_target_mib", 1, 0),
        "CRIU 4.2, downtime / total ms": CRIU.get(case.name, "-"),
        "goal": "; ".join(reached), "longest phases ms, where not reached": where or "-",
    }


def print_table(rows):
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row[c]) for c in columns) + " |")
    print(flush=True)


def measure_all(cluster, cases, with_cost, runs):
    """Rows of the table, everything that was measured, and whether something went wrong."""
    table, everything, failed = [], {}, False
    for serial, case in enumerate(cases):
        print(f"{case.name}: {runs} moves ...", file=sys.stderr)
        try:
            rows = measure(cluster, case, runs, serial)
        except (Failure, subprocess.TimeoutExpired, json.JSONDecodeError, OSError) as error:
            print(f"{case.name}: {error}", file=sys.stderr)
            failed = True
            continue
        everything[case.name] = rows
        table.append(row_of(case, rows))
    if with_cost:
        print(f"{RUN_TIME_COST}: {runs} pairs ...", file=sys.stderr)
        try:
            everything[RUN_TIME_COST] = run_time_cost(cluster, runs)
        except (Failure, subprocess.TimeoutExpired, json.JSONDecodeError, OSError) as error:
            print(f"{RUN_TIME_COST}: {error}", file=sys.stderr)
            failed = True
    return table, everything, failed


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Runs every `finally` on the way.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", default="")
    parser.add_argument("--build", default=str(ROOT / "build/release"))
    options = parser.parse_args()
    build = pathlib.Path(options.build).resolve()
    names = [c.name for c in CASES] + [RUN_TIME_COST]
    asked = options.only.split(",") if options.only else names
    if options.runs < 1 or not set(asked) <= set(names):
        parser.error("known cases: " + ", ".join(names))
    cluster = Cluster(build, f"bench-{os.getpid()}")
    try:
        table, everything, failed = measure_all(
            cluster, [c for c in CASES if c.name in asked], RUN_TIME_COST in asked, options.runs)
    finally:
        cluster.down()
    if table:
        print_table(table)
    if RUN_TIME_COST in everything:
        ratios = [r["ratio"] for r in everything[RUN_TIME_COST]]
        print_table([{"run-time cost when not migrating": spread(ratios, 3), "pairs": len(ratios),
                      "goal": f"1.00: {'yes' if round(statistics.median(ratios), 2) <= 1 else 'no'}"}])
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(everything, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
