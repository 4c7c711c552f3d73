#!/usr/bin/env python3
"""Runs one case of tests/tracees: at rest (no migration at all), or moved between two nodes.

    run_tracee.py rest  --programs DIR [--user UID] CASE
    run_tracee.py moved --programs DIR --godwit PATH [--user UID] [--modes stop,...] [--nodes n1,n2]
                  CASE

A moved case goes n1 -> n2 -> n1 ... once in each mode, then checks itself. One that must be refused
is asked to move, and then checks itself where it is. When a case fails after several modes it is run
again in each mode alone, so that the output says which one breaks it. Exit status 77: skipped.
"""
import argparse
import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import cluster as clusters
import manifest
from program import SKIP_EXIT_CODE, Failed, NeverReady, Program, Skipped

MODES = ("stop", "precopy", "postcopy", "hybrid")
NOBODY = 65534
REST_S = 0.3
PS_TRIES_MAX = 20
MOVE_TRIES_MAX = 20


class Run:
    """One case, as one user, in one way."""

    def __init__(self, case, options):
        self.case = case
        self.uid = options.user
        self.path = os.path.join(options.programs, case.program)
        self.first, self.second = options.nodes.split(",")
        self.kernels_differ = options.kernels_differ
        self.events = []

    def rest(self):
        with tempfile.TemporaryDirectory(prefix="godwit-tracee-") as directory:
            os.chmod(directory, 0o777)
            env = {"PATH": os.environ["PATH"], "TMPDIR": directory}
            with Program([self.path, *self.case.args], env=env, uid=self.uid,
                         terminal=self.case.terminal, limit_s=self.case.limit_s) as program:
                self.drive(program, lambda: program.pause(REST_S))

    def moved(self, cluster, modes):
        # Machines count processes each for itself, hence the node.
        name = f"t{os.getpid()}-{self.first}-{self.uid}-{'-'.join(m[:2] for m in modes)}"
        with contextlib.ExitStack() as undo:
            argv = [cluster.godwit, "run", "--name", name, "--node", self.first]
            if self.case.terminal:
                argv.append("--tty")
            if self.case.in_shared_dir:
                directory = tempfile.mkdtemp(prefix="tracee-", dir=cluster.shared_dir())
                undo.callback(shutil.rmtree, directory, ignore_errors=True)
                os.chmod(directory, 0o777)
                argv += ["--env", f"TMPDIR={directory}"]
            undo.callback(cluster.run, "kill", name)
            program = undo.enter_context(
                Program([*argv, "--", self.path, *self.case.args], env=cluster.env, uid=self.uid,
                        terminal=self.case.terminal, limit_s=self.case.limit_s))
            self.drive(program, lambda: self.migrate(cluster, name, modes))

    def drive(self, program, between):
        try:
            program.wait_ready()
            if "stdin" in self.case.lines:
                program.feed_numbered_lines()
            between()
            program.check(self.case.lines)
        except Failed:
            self.events.append(program.transcript())
            raise

    def migrate(self, cluster, name, modes):
        if self.case.refused and not self.case.may_be_refused:
            self.expect_refusal(cluster, name)
            return
        for index, mode in enumerate(modes if len(modes) % 2 == 0 else (*modes, modes[-1])):
            source, target = self.first, self.second
            if index % 2 == 1:
                source, target = target, source
            result = self.ask_to_move(cluster, name, target, mode)
            if result.status == 0:
                self.expect_at(cluster, name, target)
                continue
            # Where kernels differ, the second may not tell what the first one does.
            if (self.case.may_be_refused and (index == 0 or self.kernels_differ) and
                    re.search(self.case.refused, result.text())):
                self.expect_at(cluster, name, source)
                return
            raise Failed(f"migrate to {target} in mode {mode} failed: {result.text()}")

    def ask_to_move(self, cluster, name, target, mode):
        for _ in range(MOVE_TRIES_MAX):
            result = cluster.run("migrate", name, target, "--mode", mode, "--json", uid=self.uid)
            self.events.append(f"  migrate {target} --mode {mode}: status {result.status} "
                               f"{summary(result)}")
            if result.status == 0 or not (self.case.retry and
                                          re.search(self.case.retry, result.text())):
                break
        return result

    def expect_refusal(self, cluster, name):
        for command in (("can-migrate", name, self.second),
                        ("migrate", name, self.second, "--mode", "stop")):
            result = cluster.run(*command, uid=self.uid)
            self.events.append(f"  {command[0]}: status {result.status} {result.text()}")
            if result.status == 0:
                raise Failed(f"{command[0]} doesn't refuse")
            if not re.search(self.case.refused, result.text()):
                raise Failed(f"{command[0]} doesn't name /{self.case.refused}/: {result.text()}")
        self.expect_at(cluster, name, self.first)

    def expect_at(self, cluster, name, node):
        # A node that is busy may not answer in time; `ps` says so by a warning, and shows the rest.
        for _ in range(PS_TRIES_MAX):
            result = cluster.must("ps", "--json", uid=self.uid)
            rows = json.loads(result.stdout)
            rows = rows["capsules"] if isinstance(rows, dict) else rows
            mine = [row for row in rows if row["name"] == name]
            if mine or not result.stderr:
                break
        if [(row["node"], row["state"]) for row in mine] != [(node, "running")]:
            raise Failed(f"expected {name} running on {node}, ps shows {mine}")


def summary(result):
    """Of what `migrate --json` printed: one line, with the phases; or what it printed instead."""
    try:
        report = json.loads(result.stdout)
        phases = " ".join(f"{p['name'].replace(' ', '_')}={p['us']}" for p in report["phases"])
        return (f"{report['outcome']} ({report['reason']}), downtime {report['downtime_us']} us, "
                f"total {report['total_us']} us: {phases} {result.stderr.strip()}")
    except (json.JSONDecodeError, KeyError, TypeError):
        return result.text()


@contextlib.contextmanager
def usable_directory(directory, program, uid):
    """`directory`, or one below /var/tmp with a copy where `uid` may not look into a build tree."""
    path = os.path.join(directory, program)
    if uid == os.geteuid() or subprocess.run(["test", "-x", path], user=uid, group=uid,
                                             extra_groups=[], check=False).returncode == 0:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="godwit-tracee-", dir="/var/tmp") as copy:
        os.chmod(copy, 0o755)
        shutil.copy2(path, copy)
        yield copy


@contextlib.contextmanager
def cluster_to_use(godwit):
    cluster = clusters.of_this_ctest(godwit) or clusters.of_this_machine(godwit)
    if cluster:
        yield cluster
        return
    cluster = clusters.Cluster(godwit, f"t-{os.getpid()}")
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def need_its_kind(path):
    """Not every machine runs programs of 32 bits."""
    with open(path, "rb") as program:
        if program.read(5) != b"\x7fELF\x01":
            return
    try:
        subprocess.run([path], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        raise Skipped("this machine runs no programs of 32 bits") from error


def run_at_rest(case, options):
    run = Run(case, options)
    try:
        run.rest()
    except Failed:
        print("\n".join(run.events))
        raise


def run_moved(case, options):
    modes = tuple(options.modes.split(","))
    with cluster_to_use(options.godwit) as cluster:
        run = Run(case, options)
        try:
            run.moved(cluster, modes)
            return
        except Failed as failure:
            print("\n".join(run.events))
            print(f"FAILED: {failure}")
            if len(modes) == 1 or isinstance(failure, NeverReady):
                raise
        for mode in dict.fromkeys(modes):
            alone = Run(case, options)
            try:
                alone.moved(cluster, (mode,))
                print(f"in mode {mode} alone: ok")
            except Failed as failure:
                print("\n".join(alone.events))
                print(f"in mode {mode} alone: {failure}")
        raise Failed(f"in modes {options.modes} one after the other")


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=["rest", "moved"])
    parser.add_argument("case")
    parser.add_argument("--programs", required=True)
    parser.add_argument("--godwit")
    parser.add_argument("--nodes", default="n1,n2", help="where it starts, where it goes")
    parser.add_argument("--kernels-differ", action="store_true", help="between these nodes")
    parser.add_argument("--user", type=int, default=os.geteuid())
    parser.add_argument("--modes", default=os.environ.get("GODWIT_TEST_MODES") or ",".join(MODES))
    options = parser.parse_args()
    options.programs = os.path.abspath(options.programs)  # Children start in another directory.
    options.godwit = options.godwit and os.path.abspath(options.godwit)
    return options


def main():
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Runs every `finally` on the way.
    case = manifest.find_case(options.case)
    case = dataclasses.replace(case, limit_s=case.limit_s * clusters.LIMIT_FACTOR)
    if os.geteuid() != 0 and (options.how == "moved" or options.user != os.geteuid()):
        print("skip: needs root")
        return SKIP_EXIT_CODE
    try:
        with usable_directory(options.programs, case.program, options.user) as directory:
            options.programs = directory
            need_its_kind(os.path.join(directory, case.program))
            if options.how == "rest":
                run_at_rest(case, options)
            else:
                run_moved(case, options)
    except Skipped as reason:
        print(f"skip: {reason}")
        return SKIP_EXIT_CODE
    except (Failed, clusters.CommandFailed) as failure:
        print(f"FAILED: {case.name}: {failure}")
        return 1
    print(f"ok: {case.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
