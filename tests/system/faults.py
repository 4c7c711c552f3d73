"""For tests of failure: a program that witnesses its own moves, moments of a migration, and strikes.

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

LIMIT_S = 120
MODES = ["stop", "precopy", "postcopy", "hybrid"]
MEMORY_MIB = 24
USER = 65534
PYTHON = "/usr/bin/python3"  # Debian's, which every user may execute.
SLOW_LINK = "300mbit"  # So that each phase that sends pages is long enough to be hit.

# What it is told to do comes through a file beside the witness's own.
PROGRAM = """
import os, sys, time
path, mib, start = sys.argv[1], int(sys.argv[2]), int(os.environ.get("START", "0"))
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
pages = mib * 256
memory = bytearray(pages * 4096)
for page in range(pages):
    memory[page * 4096:page * 4096 + 8] = page.to_bytes(8, "little")
i, more = start, None
while True:
    j = i - start
    at = j * 7919 % pages * 4096
    value = int.from_bytes(memory[at:at + 8], "little")
    if value != at // 4096 + j // pages * pages:
        os.write(fd, b"page %d holds %d\\n" % (at // 4096, value))
        sys.exit(1)
    memory[at:at + 8] = (value + pages).to_bytes(8, "little")
    os.write(fd, b"%d\\n" % i)
    i += 1
    time.sleep(0.0003)  # Polls.
    if os.path.exists(path + ".do"):
        with open(path + ".do") as file:
            words = file.read().split()
        os.unlink(path + ".do")
        if words[0] == "exit":
            sys.exit(int(words[1]))
        if words[0] == "exec":
            argv = open("/proc/self/cmdline", "rb").read().split(bytes(1))[:-1]
            os.environ["START"] = str(i)
            os.execv(argv[0], argv)
        if words[0] == "fork":
            child = os.fork()
            if child == 0:
                time.sleep(float(words[1]))  # Polls: a child that is there for a while.
                os._exit(0)
            os.waitpid(child, 0)
        if words[0] == "grow":
            more = bytearray()
            for _ in range(int(words[1])):
                more += os.urandom(1 << 20)
"""


class Failed(Exception):
    pass


def expect(condition, text):
    if not condition:
        raise Failed(text)


def pause(seconds):
    """Between two looks, and for choosing the moment of a fault; nothing is waited for by it."""
    threading.Event().wait(max(seconds, 0))


def wait_until(condition, what, limit_s=LIMIT_S):
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        expect(time.monotonic() < deadline, f"{what() if callable(what) else what}: not within {limit_s} s")
        pause(0.02)
    return value


def other(node):
    return "n2" if node == "n1" else "n1"


class Witness:
    """The program in a capsule, and what it has told the outside."""

    count = 0

    def __init__(self, cluster, node="n1", uid=0, mib=MEMORY_MIB, python=PYTHON):
        Witness.count += 1
        self.cluster = cluster
        self.name = f"w{Witness.count}"
        self.path = os.path.join(cluster.shared_dir(), f"witness-{self.name}")
        with open(self.path, "w", encoding="ascii"):
            os.chmod(self.path, 0o666)
        cluster.must("run", "-d", "--node", node, "--name", self.name, "--", python, "-c",
                     PROGRAM, self.path, str(mib), uid=uid)
        wait_until(lambda: self.lines() > 0, "first count")

    def lines(self):
        """How far it has counted; every number once, in order."""
        with open(self.path, encoding="ascii") as file:
            lines = file.read().split("\n")[:-1]
        for i, line in enumerate(lines):
            expect(line == str(i), f"{self.name}: line {i} is {line!r}")
        return len(lines)

    def tell(self, what):
        with open(self.path + ".new", "w", encoding="ascii") as file:
            file.write(what)
        os.rename(self.path + ".new", self.path + ".do")

    def told(self):
        return not os.path.exists(self.path + ".do")

    def copies(self):
        """[(node, state)] wherever one is known; asks each node that answers for its own."""
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
        wait_until(lambda: self.lines() > before + 20, lambda: f"{self.name} goes on {self.copies()}")

        def alone():
            found = self.copies()
            return found[0][0] if len(found) == 1 and found[0][1] == "running" else None
        return wait_until(alone, lambda: f"{self.name} is one: {self.copies()}")

    def ended(self):
        wait_until(lambda: all(state == "exited" for _, state in self.copies()),
                   lambda: f"the end of {self.name}: {self.copies()}")
        return self.lines()

    def end(self):
        """By `kill`; it may be in an operation for a moment more."""
        wait_until(lambda: self.cluster.run("kill", self.name).status == 0 or not self.copies(), "kill")
        self.ended()


def settled(witness):
    """Its copies, once every one is known to be one or the other."""
    copies = witness.copies()
    if any(state in ("migrating", "in-doubt") for _, state in copies):
        return None
    return copies or [("nowhere", "gone")]


class Migration:
    """`godwit migrate` in the background; `ask`: of this node's daemon, not of any."""

    def __init__(self, witness, target, mode, ask=None):
        cluster = witness.cluster
        self.child = subprocess.Popen(
            [cluster.godwit, *(["--node", ask] if ask else []), "migrate", witness.name, target,
             "--mode", mode, "--json"],
            env=cluster.env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)

    def result(self):
        """All it said, and the outcome, if it knew one."""
        out, err = self.child.communicate(timeout=LIMIT_S)
        try:
            outcome = json.loads(out).get("outcome", "")
        except ValueError:
            outcome = ""
        return (out + err).decode(errors="replace"), outcome

    def running(self):
        return self.child.poll() is None


def processes(cluster, node, name):
    """Pids of this node's processes of that name; a node's control group tells them."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/comm", encoding="ascii") as comm:
                if comm.read().strip() != name:
                    continue
            with open(f"/proc/{pid}/cgroup", encoding="ascii") as groups:
                if f"/godwit-{cluster.name}/{node}/" in groups.read():
                    found.append(int(pid))
    return found


def daemon(cluster, node):
    return wait_until(lambda: processes(cluster, node, "godwitd"), f"godwitd of {node}")[0]


def kill_each(pids, number=signal.SIGKILL):
    struck = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            struck += 1
    return struck


def kill_worker(cluster, node):
    return kill_each(processes(cluster, node, "godwit-worker"))


def restart_daemon(cluster, node):
    cluster.must("local", "node", node, "kill-daemon", "--name", cluster.name)
    cluster.must("local", "node", node, "start-daemon", "--name", cluster.name)
    return 1


def moments(witness, mode, points):
    """[(phase, seconds after the request)] of a whole migration, by one that is left in peace: the
    middle of each of its phases, or of `points` of them, spread over all."""
    at = witness.goes_on()
    began = time.monotonic()
    text = witness.cluster.must("migrate", witness.name, other(at), "--mode", mode, "--json").stdout
    took = time.monotonic() - began
    result = json.loads(text)
    expect(result["outcome"] == "moved", text)
    lead = max(took - result["total_us"] / 1e6, 0)  # Request, reservation, worker.
    found = [("reserve", lead / 2)]
    found += [(phase["name"], lead + (phase["begin_us"] + phase["us"] / 2) / 1e6)
              for phase in result["phases"]]
    if points and points < len(found):
        step = len(found) / points
        found = [found[int((i + 0.5) * step)] for i in range(points)]
    return found


def at_each_moment(cluster, points, strike, modes=None, after=lambda witness, result: witness.goes_on()):
    """Strikes once in each of the moments; the program must be one and unharmed every time."""
    struck, outcomes = [], {}
    cluster.must("local", "bandwidth", SLOW_LINK, "--name", cluster.name)
    witness = Witness(cluster)
    for mode in modes or MODES:
        for phase, delay in moments(witness, mode, points):
            source = witness.goes_on()
            migration = Migration(witness, other(source), mode)
            pause(delay)
            if strike(source, other(source)):
                struck.append(phase)
            try:
                text, outcome = migration.result()
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                after(witness, text)
            except Failed as failed:
                raise Failed(f"{mode}, {phase}, after {delay * 1000:.0f} ms from {source}: {failed}"
                             ) from failed
    witness.end()
    told = ", ".join(f"{count} {outcome or 'unknown'}" for outcome, count in sorted(outcomes.items()))
    return f"{len(struck)} strikes in {len(set(struck))} phases: {told}"


def run_tests(tests, up=()):
    """The main program of a file of tests: each gets a cluster of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--godwit", required=True)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    unknown = set(options.names) - {test.__name__ for test in tests}
    if unknown:
        print(f"there is no test {', '.join(sorted(unknown))}")
        return 2
    if os.geteuid() != 0:
        print("skip: a local cluster needs root")
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Runs every `finally` on the way.
    failures = 0
    for index, test in enumerate(tests):
        if not options.names or test.__name__ in options.names:
            failures += not run_test(options.godwit, test, f"faults-{os.getpid()}-{index}", up)
    return 1 if failures else 0


def run_test(godwit, test, name, up):
    cluster = Cluster(os.path.abspath(godwit), name)
    began = time.monotonic()
    try:
        cluster.up(*up, *getattr(test, "cluster_options", ()))
        try:
            verdict = "ok " + (test(cluster) or "")
        except (Failed, CommandFailed, subprocess.SubprocessError, OSError) as error:
            verdict = f"FAILED: {error}"
        print(f"{test.__name__}: {verdict} ({time.monotonic() - began:.1f} s)", flush=True)
        if verdict.startswith("FAILED"):
            print_logs(cluster)
        return not verdict.startswith("FAILED")
    finally:
        cluster.run("local", "down", "--name", cluster.name)


def print_logs(cluster):
    status = json.loads(cluster.must("local", "status", "--name", cluster.name, "--json").stdout)
    for node in status["nodes"]:
        with open(node["log_path"], encoding="utf-8", errors="replace") as log:
            print(f"--- {node['log_path']}\n" + "".join(log.readlines()[-60:]))
