#!/usr/bin/env python3
"""One capsule that moves many times in a row between two nodes, in all modes, and verifies itself.

    soak.py --godwit PATH --program PATH [--user UID] [--modes stop,...] [COUNT]

Afterwards nothing may be left on either node: processes, threads and descriptors of godwitd,
namespaces, control groups, mounts, links and files are counted before and after, both times with
the capsule at n1 and after moves in every mode, so that what is made once isn't taken for a leak.
A namespace without a process shows as the descriptor or the mount that keeps it.
Prints the spread of total time and downtime. Exit status 77: skipped.
"""
import argparse
import collections
import json
import os
import pathlib
import signal
import statistics
import sys
import time

import cluster as clusters
from program import Failed, Program

MODES = ("stop", "precopy", "postcopy", "hybrid")
COUNT = 500
SETTLE_S = 60
# gRPC's threads, which come and go as it likes: not more than these, however many moves there were.
POOLS = ["threads " + name for name in (
    "default-executo", "resolver-execut", "grpc_global_tim", "event_engine", "timer_manager",
    "grpcpp_sync_ser")]
POOL_GROWTH_MAX = 6
# A move sets CLOCK_MONOTONIC by probes of the other node's, behind by the quickest one's way
# (tens of microseconds; more where every probe waits for a processor), and never ahead.
CLOCK_ERROR_US_MAX = 500
MOVE_S = 10  # Generous: only a program that hangs needs as long.
DAEMON_GROWTH_BYTES_MAX = 24 << 20  # malloc's arenas of new threads; 500 moves may not add up.


def processes_of(name):
    """Pids of everything in the control groups of each node."""
    found = collections.defaultdict(list)
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            groups = (entry / "cgroup").read_text()
        except OSError:
            continue
        for node in ("n1", "n2"):
            if f"/godwit-{name}/{node}" in groups:
                found[node].append(int(entry.name))
    return found


def entries(path):
    try:
        return os.listdir(path)
    except OSError:
        return []


def namespaces_of(pids):
    found = set()
    for pid in pids:
        for kind in entries(f"/proc/{pid}/ns"):
            try:
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except OSError:
                pass
    return found


def files_below(root):
    return sum(len(files) + len(dirs) for _, dirs, files in os.walk(root))


def groups_of(name, node):
    # Of each hierarchy, wherever it is mounted; os.walk bears with groups that go away meanwhile.
    mounts = [line.split() for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    tops = {fields[4] for fields in mounts if " - cgroup" in " ".join(fields)}
    return sum(1 for top in tops for _ in os.walk(f"{top}/godwit-{name}/{node}"))


def resident_bytes(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def threads_of(proc):
    """By name. Every thread of godwitd's own has one of ours."""
    names = collections.Counter()
    for tid in entries(proc / "task"):
        try:
            names[(proc / "task" / tid / "comm").read_text().strip()] += 1
        except OSError:
            pass  # On its way out.
    return {f"threads {name}": number for name, number in names.items()}


def count(cluster):
    """What exists on each node, by name; and the memory of its daemon."""
    status = json.loads(cluster.must("local", "status", "--name", cluster.name, "--json").stdout)
    processes = processes_of(cluster.name)
    counts, memory = {}, {}
    for node in status["nodes"]:
        name, pid = node["node"], node["daemon_pid"]
        proc = pathlib.Path(f"/proc/{pid}")
        counts[name] = {
            "processes": len(processes[name]),
            **threads_of(proc),
            "descriptors of godwitd": len(entries(proc / "fd")),
            "namespaces": len(namespaces_of(processes[name])),
            "control groups": groups_of(cluster.name, name),
            "mounts": len((proc / "mountinfo").read_text().splitlines()),
            "links": len((proc / "net/dev").read_text().splitlines()),
            "files in /run/godwit": files_below(proc / "root/run/godwit"),
        }
        memory[name] = resident_bytes(pid)
    return counts, memory


def settled(cluster, limit_s=SETTLE_S):
    """Counts that stay the same: threads of the last move may still be on their way out."""
    deadline = time.monotonic() + limit_s
    last = None
    while time.monotonic() < deadline:
        now = count(cluster)
        if last and now[0] == last[0]:
            return now
        last = now
        time.sleep(1)  # Polls: the counts settle.
    return last


def grown(before, after):
    return [f"{node}: {what}: {before[node].get(what, 0)} before, {number} after"
            for node, counts in after.items() for what, number in counts.items()
            if number > before[node].get(what, 0) + (POOL_GROWTH_MAX if what in POOLS else 0)]


def await_no_growth(cluster, before):
    deadline = time.monotonic() + SETTLE_S
    while True:
        after, memory = count(cluster)
        leaks = grown(before, after)
        if not leaks or time.monotonic() > deadline:
            return leaks, after, memory
        time.sleep(0.5)  # Polls until nothing is left over.


def move(cluster, name, index, modes, uid):
    target, mode = ("n2", "n1")[index % 2], modes[index // 2 % len(modes)]
    result = cluster.run("migrate", name, target, "--mode", mode, "--json", uid=uid)
    if result.status != 0:
        raise Failed(f"move {index} to {target} in mode {mode}: {result.text()}")
    answer = json.loads(result.stdout)
    return mode, answer["total_us"], answer["downtime_us"]


def spread(label, values_us):
    values = sorted(values_us)
    at = lambda part: values[min(len(values) - 1, int(part * len(values)))] / 1000
    print(f"{label:22} n={len(values):<4} min {values[0] / 1000:9.2f}  median "
          f"{statistics.median(values) / 1000:9.2f}  p90 {at(.9):9.2f}  p99 {at(.99):9.2f}  "
          f"max {values[-1] / 1000:9.2f} ms")


AHEAD_US_MAX = 500  # CLOCK_REALTIME may be set by others, by a little.


def check_clocks(program, moves):
    """Over all moves CLOCK_MONOTONIC has gone on as CLOCK_REALTIME has."""
    said = [line for line in program.lines["stdout"] if line.startswith("{")]
    behind_us = json.loads(said[-1])["monotonic_behind_us"]
    print(f"CLOCK_MONOTONIC lost {behind_us / moves:.1f} us a move against CLOCK_REALTIME")
    if not -AHEAD_US_MAX < behind_us < CLOCK_ERROR_US_MAX * moves:
        raise Failed(f"CLOCK_MONOTONIC is {behind_us} us behind CLOCK_REALTIME after {moves} moves")


def soak(cluster, options):
    modes = options.modes.split(",")
    name = "soak"
    moves = []
    with Program([cluster.godwit, "run", "--name", name, "--node", "n1", "--", options.program],
                 env=cluster.env, uid=options.user, terminal=False,
                 limit_s=300 + MOVE_S * options.count) as program:
        try:
            program.wait_ready()
            for index in range(2 * len(modes)):
                move(cluster, name, index, modes, options.user)
            before, memory_before = settled(cluster)
            started = time.monotonic()
            for index in range(options.count):
                moves.append(move(cluster, name, index, modes, options.user))
                if (index + 1) % 25 == 0:
                    print(f"{index + 1} moves in {time.monotonic() - started:.0f} s", flush=True)
            took_s = time.monotonic() - started
            leaks, after, memory_after = await_no_growth(cluster, before)
            program.check(frozenset())
            check_clocks(program, options.count + 2 * len(modes))
        except Failed:
            print(program.transcript())
            raise
    print(f"{options.count} moves in {took_s:.1f} s")
    spread("total", [total for _, total, _ in moves])
    spread("downtime", [downtime for _, _, downtime in moves])
    for mode in dict.fromkeys(modes):
        spread(f"downtime, {mode}", [d for m, _, d in moves if m == mode])
    print(program.transcript())
    for node in after:
        print(f"{node}: {after[node]}, godwitd {memory_before[node] >> 10} -> "
              f"{memory_after[node] >> 10} KiB")
    leaks += [f"{node}: godwitd grew by {memory_after[node] - memory_before[node]} bytes"
              for node in after
              if memory_after[node] - memory_before[node] > DAEMON_GROWTH_BYTES_MAX]
    if leaks:
        raise Failed("left behind: " + "; ".join(leaks))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=COUNT)
    parser.add_argument("--godwit", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--user", type=int, default=os.geteuid())
    parser.add_argument("--modes", default=",".join(MODES))
    options = parser.parse_args()
    options.count += options.count % 2  # It ends where it began.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Runs every `finally` on the way.
    if os.geteuid() != 0:
        print("skip: a local cluster needs root")
        return 77
    cluster = clusters.Cluster(os.path.abspath(options.godwit), f"soak-{os.getpid()}")
    options.program = os.path.abspath(options.program)
    try:
        cluster.up()
        soak(cluster, options)
    except (Failed, clusters.CommandFailed) as failure:
        print(f"FAILED: {failure}")
        return 1
    finally:
        cluster.down()
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
