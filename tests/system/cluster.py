#!/usr/bin/env python3
"""The local cluster that tests run on: one for all tests of a ctest run, or one's own.

    cluster.py up --godwit PATH      fixture of ctest: starts a cluster for the ctest that calls it
    cluster.py down --godwit PATH    and removes it

Its name holds the pid of that ctest, so any number of runs work side by side. A keeper process
waits for the death of that ctest and removes the cluster then, if `down` was never called.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile

NODES = 2
# Emulated machines are slower than any limit that would be a limit elsewhere.
LIMIT_FACTOR = float(os.environ.get("GODWIT_TEST_LIMIT_FACTOR", "1"))
COMMAND_LIMIT_S = 120 * LIMIT_FACTOR
LOG_LINES = 60


class CommandFailed(Exception):
    pass


@dataclasses.dataclass
class Result:
    status: int
    stdout: str
    stderr: str

    def text(self):
        return (self.stdout + self.stderr).strip()


class Cluster:
    """Runs `godwit` commands against one cluster, as root or as another user."""

    def __init__(self, godwit, name):
        self.godwit = godwit
        self.name = name
        self.env = {"PATH": os.environ["PATH"], "GODWIT_CLUSTER": name}

    def run(self, *args, uid=0, limit_s=COMMAND_LIMIT_S):
        ids = {} if uid == os.geteuid() else {"user": uid, "group": uid, "extra_groups": []}
        done = subprocess.run([self.godwit, *args], env=self.env, cwd="/", timeout=limit_s,
                              stdin=subprocess.DEVNULL, capture_output=True, check=False, **ids)
        return Result(done.returncode, done.stdout.decode(errors="replace"),
                      done.stderr.decode(errors="replace"))

    def must(self, *args, **how):
        result = self.run(*args, **how)
        if result.status != 0:
            raise CommandFailed(f"godwit {' '.join(args)}: status {result.status}\n{result.text()}")
        return result

    def up(self, *options):
        self.must("local", "up", "--nodes", str(NODES), "--name", self.name, *options)

    def down(self):
        self.must("local", "down", "--name", self.name)

    def dead_daemons(self):
        """For each daemon that has ended by itself: its node and what it said last."""
        status = json.loads(self.must("local", "status", "--name", self.name, "--json").stdout)
        return [f"the daemon of {node['node']} has ended:\n" +
                "".join(pathlib.Path(node["log_path"]).read_text(errors="replace")
                        .splitlines(keepends=True)[-LOG_LINES:])
                for node in status["nodes"] if not node["daemon_running"]]

    def shared_dir(self):
        """The directory that all nodes share, at the same path on each."""
        status = json.loads(self.must("local", "status", "--name", self.name, "--json").stdout)
        return status["shared_dir"]


def state_path(ctest_pid):
    return pathlib.Path(tempfile.gettempdir()) / f"godwit-test-cluster-{ctest_pid}.json"


def of_this_ctest(godwit):
    """The cluster that the fixture has started for the ctest that runs us; None without one."""
    path = state_path(os.getppid())
    if not path.exists():
        return None
    return Cluster(godwit, json.loads(path.read_text())["name"])


def of_this_machine(godwit):
    """The real nodes n1 (here) and n2 whose daemon GODWIT_SOCKET names; None without one."""
    socket = os.environ.get("GODWIT_SOCKET")
    if not socket:
        return None
    cluster = Cluster(godwit, None)
    cluster.env = {"PATH": os.environ["PATH"], "GODWIT_SOCKET": socket}
    return cluster


def fixture_up(godwit):
    ctest_pid = os.getppid()
    cluster = Cluster(godwit, f"t-{ctest_pid}")
    # The keeper first: from here on nothing is left behind, whoever is killed.
    subprocess.Popen([sys.executable, __file__, "keep", "--godwit", godwit, "--pid", str(ctest_pid)],
                     start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
    state_path(ctest_pid).write_text(json.dumps({"name": cluster.name}))
    cluster.up()


def fixture_down(godwit, ctest_pid):
    path = state_path(ctest_pid)
    if not path.exists():
        return
    cluster = Cluster(godwit, json.loads(path.read_text())["name"])
    try:
        dead = cluster.dead_daemons()
        cluster.down()
    finally:
        path.unlink()
    if dead:
        raise CommandFailed("\n".join(dead))


def keep(godwit, ctest_pid):
    try:
        pidfd = os.pidfd_open(ctest_pid)
    except ProcessLookupError:
        pidfd = None
    if pidfd is not None:
        select.select([pidfd], [], [])
    fixture_down(godwit, ctest_pid)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["up", "down", "keep"])
    parser.add_argument("--godwit", required=True)
    parser.add_argument("--pid", type=int)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("skip: a local cluster needs root")
        return 77
    try:
        if options.what == "up":
            fixture_up(options.godwit)
        elif options.what == "down":
            fixture_down(options.godwit, os.getppid())
        else:
            keep(options.godwit, options.pid)
    except CommandFailed as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
