#!/usr/bin/env python3
"""Several capsules move all the time while workers and daemons die at random, and links are cut.

    chaos.py --godwit PATH [--seconds 120] [--capsules 4] [--seed N]

Afterwards: nothing hangs, every capsule is one, has counted every number once and found its memory
unharmed, and when all have ended nothing is left of them on either node. A seed repeats the order of
moves and strikes, not their moments.
"""
import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import threading
import time

import soak
from cluster import Cluster, CommandFailed
from faults import (MODES, SLOW_LINK, Failed, Migration, Witness, expect, kill_each, other, pause,
                    print_logs, processes, settled, wait_until)

SETTLE_S = 180
LEFT = ["processes", "namespaces", "control groups", "mounts", "links"]


class Mover(threading.Thread):
    """One capsule, back and forth."""

    def __init__(self, witness, seed, stop):
        super().__init__()
        self.witness, self.random, self.stopped = witness, random.Random(seed), stop
        self.outcomes, self.failure = collections.Counter(), None

    def run(self):
        try:
            while not self.stopped.is_set():
                live = [node for node, state in self.witness.copies() if state == "running"]
                if not live:
                    pause(0.2)
                    continue
                migration = Migration(self.witness, other(live[0]), self.random.choice(MODES))
                _, outcome = migration.result()
                self.outcomes[outcome or "unknown"] += 1
                self.witness.lines()
        except (Failed, subprocess.SubprocessError, OSError) as failure:
            self.failure = failure


def kill_one(chance, pids):
    return kill_each([chance.choice(pids)] if pids else [])


def start_daemon(cluster, node):
    wait_until(lambda: cluster.run("local", "node", node, "start-daemon", "--name",
                                   cluster.name).status == 0 or
               processes(cluster, node, "godwitd"), f"start of godwitd of {node}")


def strike(cluster, chance):
    """One of them, at random; says which."""
    node = chance.choice(["n1", "n2"])
    kind = chance.choices(["worker", "daemon", "both", "link"], [6, 3, 2, 1])[0]
    if kind in ("worker", "both") and not kill_one(chance, processes(cluster, node, "godwit-worker")):
        return ""
    if kind in ("daemon", "both"):
        kill_each(processes(cluster, node, "godwitd"))
        start_daemon(cluster, node)
    if kind == "link":
        cluster.must("local", "link", node, "down", "--name", cluster.name)
        pause(chance.uniform(0.1, 3))
        cluster.must("local", "link", node, "up", "--name", cluster.name)
    return kind


def chaos(cluster, options):
    cluster.must("local", "bandwidth", SLOW_LINK, "--name", cluster.name)
    before, _ = soak.settled(cluster)
    witnesses = [Witness(cluster, chance) for chance in ["n1", "n2"] * (options.capsules // 2)]
    stop = threading.Event()
    movers = [Mover(witness, options.seed + i, stop) for i, witness in enumerate(witnesses)]
    for mover in movers:
        mover.start()
    chance, strikes = random.Random(options.seed), collections.Counter()
    until = time.monotonic() + options.seconds
    try:
        while time.monotonic() < until and not any(mover.failure for mover in movers):
            strikes[strike(cluster, chance) or "nobody was there"] += 1
            pause(chance.uniform(0.02, 1.2))
    finally:
        stop.set()
    for mover in movers:
        mover.join(SETTLE_S)
        expect(not mover.is_alive(), f"{mover.witness.name}: a migration hangs")
        expect(not mover.failure, str(mover.failure))
    for witness in witnesses:
        wait_until(lambda w=witness: settled(w), lambda w=witness: w.copies(), SETTLE_S)
        witness.goes_on()
    counted = sum(witness.lines() for witness in witnesses)
    for witness in witnesses:
        witness.end()
    nothing_left(cluster, before)
    outcomes = sum((mover.outcomes for mover in movers), collections.Counter())
    return f"strikes: {dict(strikes)}; migrations: {dict(outcomes)}; {counted} numbers"


def nothing_left(cluster, before):
    def leaks():
        after, _ = soak.count(cluster)
        return [f"{node}: {what}: {before[node][what]} before, {after[node][what]} after"
                for node in before for what in LEFT if after[node][what] > before[node][what]]
    deadline = time.monotonic() + SETTLE_S
    while found := leaks():
        expect(time.monotonic() < deadline, "left behind: " + "; ".join(found))
        pause(0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--godwit", required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--capsules", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("skip: a local cluster needs root")
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Runs every `finally` on the way.
    cluster = Cluster(os.path.abspath(options.godwit), f"chaos-{os.getpid()}")
    print(f"seed {options.seed}", flush=True)
    try:
        cluster.up()
        try:
            print("ok " + chaos(cluster, options))
        except (Failed, CommandFailed, subprocess.SubprocessError) as failure:
            print(f"FAILED: {failure}")
            print_logs(cluster)
            return 1
    finally:
        cluster.run("local", "down", "--name", cluster.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
