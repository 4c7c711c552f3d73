#!/usr/bin/env python3
"""Whatever fails in a migration: never two copies, and exactly one once the nodes can talk.

    test_faults.py --godwit PATH [NAME...]

The program counts into a file that both nodes share. A second copy that ran for a moment would write
a number twice, a copy that went back in time would too; it also checks a pattern in its memory, so a
page lost on the way, or read as zeros, shows itself.
"""
import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

from cluster import Cluster, CommandFailed

LIMIT_S = 60
MODES = ["stop", "precopy", "postcopy", "hybrid"]
MEMORY_MIB = 32

PROGRAM = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
pages = int(sys.argv[2]) * 256
memory = bytearray(pages * 4096)
for page in range(pages):
    memory[page * 4096:page * 4096 + 8] = page.to_bytes(8, "little")
i = 0
while True:
    at = i * 7919 % pages * 4096
    value = int.from_bytes(memory[at:at + 8], "little")
    if value != at // 4096 + i // pages * pages:
        os.write(fd, b"page %d holds %d\\n" % (at // 4096, value))
        sys.exit(1)
    memory[at:at + 8] = (value + pages).to_bytes(8, "little")
    os.write(fd, b"%d\\n" % i)
    i += 1
    time.sleep(0.0003)  # Polls.
"""


class Failed(Exception):
    pass


def expect(condition, text):
    if not condition:
        raise Failed(text)


def pause(seconds):
    """Between two looks, and for choosing the moment of a fault; nothing is waited for by it."""
    threading.Event().wait(seconds)


def wait_until(condition, what, limit_s=LIMIT_S):
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        expect(time.monotonic() < deadline, f"{what}: not within {limit_s} s")
        pause(0.02)
    return value


class Witness:
    """The program in a capsule, and what it has told the outside."""

    count = 0

    def __init__(self, cluster, node="n1"):
        Witness.count += 1
        self.cluster = cluster
        self.name = f"w{Witness.count}"
        self.path = os.path.join(cluster.shared_dir(), f"witness-{self.name}")
        cluster.must("run", "-d", "--node", node, "--name", self.name, "--", sys.executable, "-c",
                     PROGRAM, self.path, str(MEMORY_MIB))
        wait_until(lambda: self.lines() > 0, "first count")

    def lines(self):
        """How far it has counted; every number once, in order."""
        if not os.path.exists(self.path):
            return 0
        with open(self.path, encoding="ascii") as file:
            lines = file.read().split("\n")[:-1]
        for i, line in enumerate(lines):
            expect(line == str(i), f"{self.name}: line {i} is {line!r}")
        return len(lines)

    def copies(self):
        """[(node, state)] wherever a live one is known; asks each node that answers for its own."""
        found = []
        for node in ["n1", "n2"]:
            got = self.cluster.run("--node", node, "ps", "-a", "--json")
            if got.status == 0:
                found += [(one["node"], one["state"]) for one in json.loads(got.stdout)
                          if one["name"] == self.name and one["node"] == node]
        return found

    def goes_on(self):
        """It runs, on exactly one node; answers which."""
        before = self.lines()
        wait_until(lambda: self.lines() > before + 20, f"{self.name} goes on")

        def alone():
            found = self.copies()
            return found[0][0] if len(found) == 1 and found[0][1] == "running" else None
        return wait_until(alone, f"{self.name} is one ({self.copies()})")

    def end(self):
        self.cluster.run("kill", self.name)
        wait_until(lambda: self.cluster.run("wait", "--timeout", "20", self.name).status != 124, "end")
        self.lines()


class Migration:
    """`godwit migrate` in the background."""

    def __init__(self, witness, target, mode):
        cluster = witness.cluster
        self.child = subprocess.Popen(
            [cluster.godwit, "migrate", witness.name, target, "--mode", mode, "--json"],
            env=cluster.env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)

    def result(self):
        out, err = self.child.communicate(timeout=LIMIT_S)
        return (out + err).decode(errors="replace")


def processes(cluster, node, name):
    """Pids of this node's processes of that name; a node's control group tells them."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/comm", encoding="ascii") as comm:
                if comm.read().strip() != name:
                    continue
            with open(f"/proc/{pid}/cgroup", encoding="ascii") as groups:
                if f"/godwit-{cluster.name}/{node}" in groups.read():
                    found.append(int(pid))
    return found


def kill_worker(cluster, node):
    for pid in processes(cluster, node, "godwit-worker"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def restart_daemon(cluster, node):
    cluster.must("local", "node", node, "kill-daemon", "--name", cluster.name)
    cluster.must("local", "node", node, "start-daemon", "--name", cluster.name)


def other(node):
    return "n2" if node == "n1" else "n1"


def delays(cluster, witness, mode, points):
    """Moments spread over a whole migration, beginning with its start."""
    at = witness.goes_on()
    began = time.monotonic()
    result = cluster.must("migrate", witness.name, other(at), "--mode", mode, "--json")
    took = time.monotonic() - began
    expect(json.loads(result.stdout)["outcome"] == "moved", result.text())
    return [took * (i + 0.5) / points for i in range(points)]


def at_each_moment(cluster, points, strike):
    tried = 0
    witness = Witness(cluster)
    for mode in MODES:
        for delay in delays(cluster, witness, mode, points):
            source = witness.goes_on()
            migration = Migration(witness, other(source), mode)
            pause(delay)
            tried += bool(strike(source, other(source)))
            migration.result()
            try:
                witness.goes_on()
            except Failed as failed:
                raise Failed(f"{mode}, after {delay * 1000:.0f} ms from {source}: {failed}") from failed
    witness.end()
    return f"{tried} strikes"


def source_worker_killed(cluster):
    return at_each_moment(cluster, 4, lambda source, target: kill_worker(cluster, source))


def target_worker_killed(cluster):
    return at_each_moment(cluster, 4, lambda source, target: kill_worker(cluster, target))


def both_workers_killed(cluster):
    return at_each_moment(cluster, 2, lambda source, target: kill_worker(cluster, source) +
                          kill_worker(cluster, target))


def source_daemon_killed(cluster):
    def strike(source, target):
        del target
        restart_daemon(cluster, source)
        return True
    return at_each_moment(cluster, 2, strike)


def target_daemon_killed(cluster):
    def strike(source, target):
        del source
        restart_daemon(cluster, target)
        return True
    return at_each_moment(cluster, 2, strike)


def link_cut(cluster):
    """For longer than the engine's patience: in doubt is shown, and ends with the cut."""
    seen = set()
    witness = Witness(cluster)
    for mode in ["stop", "postcopy"]:
        for delay in delays(cluster, witness, mode, 2):
            source = witness.goes_on()
            migration = Migration(witness, other(source), mode)
            pause(delay)
            cluster.must("local", "link", other(source), "down", "--name", cluster.name)
            try:
                deadline = time.monotonic() + 14
                while time.monotonic() < deadline and "in-doubt" not in seen:
                    seen |= {state for _, state in witness.copies()}
                    pause(0.3)
            finally:
                cluster.must("local", "link", other(source), "up", "--name", cluster.name)
            migration.result()
            witness.goes_on()
    witness.end()
    return f"states seen: {', '.join(sorted(seen))}"


def node_switched_off(cluster):
    """The survivor is one or none, never two, and says why."""
    outcomes = []
    for mode in ["precopy", "postcopy"]:
        for which in ["source", "target"]:
            witness = Witness(cluster)
            delay = delays(cluster, witness, mode, 2)[len(outcomes) % 2]
            source = witness.goes_on()
            victim = source if which == "source" else other(source)
            migration = Migration(witness, other(source), mode)
            pause(delay)
            cluster.must("local", "node", victim, "stop", "--name", cluster.name)
            cluster.must("local", "node", victim, "start", "--name", cluster.name)
            migration.result()
            found = wait_until(lambda w=witness: [s for _, s in w.copies()
                                                  if s not in ("migrating", "in-doubt")] or
                               (not w.copies() and ["gone"]), "a conclusion")
            expect(len(found) == 1, str(found))
            if found == ["running"]:
                witness.goes_on()
            outcomes.append(f"{mode}/{which}: {found[0]}")
            witness.end()
    return "; ".join(outcomes)


def the_lost_node_is_resolved(cluster):
    """In doubt until a human says that the target is lost for good."""
    witness = Witness(cluster)
    for delay in delays(cluster, witness, "stop", 12)[6:]:
        source = witness.goes_on()
        target = other(source)
        migration = Migration(witness, target, "stop")
        pause(delay)
        cluster.must("local", "link", target, "down", "--name", cluster.name)
        wait_until(lambda s=source: ("migrating" not in dict([(n, st) for n, st in witness.copies()]).get(s, "")),
                   "an answer or doubt", 40)
        doubt = (source, "in-doubt") in witness.copies()
        if doubt:
            # The target is off for good: what it may run must not go on.
            cluster.must("local", "node", target, "stop", "--name", cluster.name)
            cluster.must("--node", source, "resolve", witness.name, "--lost-node", target)
        cluster.must("local", "link", target, "up", "--name", cluster.name)
        migration.result()
        if doubt:
            before = witness.lines()
            wait_until(lambda b=before: witness.lines() > b, "it goes on after resolve")
            cluster.must("local", "node", target, "start", "--name", cluster.name)
            witness.goes_on()
            witness.end()
            return "resolved"
        witness.goes_on()
    witness.end()
    return "no cut fell into the doubt"


def the_program_is_killed(cluster):
    for mode in MODES:
        for part in (0.3, 0.8):
            witness = Witness(cluster)
            source = witness.goes_on()
            migration = Migration(witness, other(source), mode)
            pause(part * 0.5)
            wait_until(lambda w=witness: cluster.run("kill", w.name).status == 0, "kill")
            migration.result()
            wait_until(lambda w=witness: all(s == "exited" for _, s in w.copies()), "its end")
            witness.lines()
    return ""


def full_disk(cluster):
    """The target can't write what it must: the program stays, with a reason."""
    witness = Witness(cluster)
    daemon = processes(cluster, "n2", "godwitd")
    expect(len(daemon) == 1, f"daemons of n2: {daemon}")
    inside = ["nsenter", "-t", str(daemon[0]), "-m", "--"]
    place = "/var/lib/godwit/grants"
    subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", "size=4k", "full", place], check=True)
    try:
        subprocess.run([*inside, "sh", "-c", f"cat /dev/zero > {place}/full"], check=False,
                       stderr=subprocess.DEVNULL)
        got = cluster.run("migrate", witness.name, "n2", "--json")
        expect(got.status != 0, got.text())
        expect("space" in got.text(), got.text())
        expect(witness.goes_on() == "n1", "it moved")
    finally:
        subprocess.run([*inside, "umount", place], check=True)
    cluster.must("migrate", witness.name, "n2")
    expect(witness.goes_on() == "n2", "it stayed")
    witness.end()
    return ""


def init_killed(cluster):
    """A capsule without its init is at its end; the other side's copy isn't touched by it."""
    for where in ["source", "target"]:
        witness = Witness(cluster)
        source = witness.goes_on()
        node = source if where == "source" else other(source)
        migration = Migration(witness, other(source), "precopy")
        inits = wait_until(lambda n=node: processes(cluster, n, "godwit-init"), "init", 10)
        for pid in inits:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        migration.result()
        wait_until(lambda w=witness: all(s in ("running", "exited") for _, s in w.copies()), "an end")
        running = [node for node, state in witness.copies() if state == "running"]
        expect(len(running) <= 1, str(running))
        if where == "target":
            witness.goes_on()
        witness.end()
    return ""


TESTS = [source_worker_killed, target_worker_killed, both_workers_killed, source_daemon_killed,
         target_daemon_killed, link_cut, node_switched_off, the_lost_node_is_resolved,
         the_program_is_killed, full_disk, init_killed]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--godwit", required=True)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("skip: a local cluster needs root")
        return 77
    failures = 0
    with contextlib.ExitStack() as stack:
        for test in TESTS:
            if options.names and test.__name__ not in options.names:
                continue
            cluster = Cluster(options.godwit, f"faults-{os.getpid()}-{len(test.__name__)}")
            stack.callback(cluster.run, "local", "down", "--name", cluster.name)
            cluster.up()
            began = time.monotonic()
            try:
                verdict = "ok " + test(cluster)
            except (Failed, CommandFailed, subprocess.SubprocessError, OSError) as error:
                verdict = f"FAILED: {error}"
                failures += 1
            print(f"{test.__name__}: {verdict} ({time.monotonic() - began:.1f} s)", flush=True)
            if verdict.startswith("FAILED"):
                status = json.loads(cluster.must("local", "status", "--json").stdout)
                for node in status["nodes"]:
                    with open(node["log_path"], encoding="utf-8", errors="replace") as log:
                        print(f"--- {node['log_path']}\n" + "".join(log.readlines()[-40:]))
            cluster.down()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
