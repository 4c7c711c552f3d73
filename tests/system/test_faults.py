#!/usr/bin/env python3
"""Whatever dies in a migration: never two copies, and exactly one once the nodes can talk.

    test_faults.py --godwit PATH [NAME...]

Each strikes once in every phase of a migration in every mode; GODWIT_FAULT_POINTS=4 takes four phases
of each mode instead.
"""
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys

import faults
from faults import (MODES, SLOW_LINK, Failed, Migration, Witness, at_each_moment, daemon, expect,
                    kill_each, kill_worker, moments, other, pause, processes, restart_daemon,
                    settled, wait_until)

POINTS = int(os.environ.get("GODWIT_FAULT_POINTS", "0"))
# The state in a commit record (migrate/commit.h), and where it stands (migrate/commit_record.cc).
OFFERED, GIVEN_UP, STATE_AT = 1, 2, 12
SILENCE_MS = 3000


def source_worker_killed(cluster):
    return at_each_moment(cluster, POINTS, lambda source, target: kill_worker(cluster, source))


def target_worker_killed(cluster):
    return at_each_moment(cluster, POINTS, lambda source, target: kill_worker(cluster, target))


def both_workers_killed(cluster):
    return at_each_moment(cluster, POINTS, lambda source, target: kill_worker(cluster, source) +
                          kill_worker(cluster, target))


def source_daemon_killed(cluster):
    return at_each_moment(cluster, POINTS, lambda source, target: restart_daemon(cluster, source))


def target_daemon_killed(cluster):
    return at_each_moment(cluster, POINTS, lambda source, target: restart_daemon(cluster, target))


def source_daemon_and_worker_killed(cluster):
    def strike(source, target):
        del target
        struck = kill_each(processes(cluster, source, "godwitd") +
                           processes(cluster, source, "godwit-worker"))
        wait_until(lambda: cluster.run("local", "node", source, "start-daemon", "--name",
                                       cluster.name).status == 0, "start of the daemon")
        return struck
    return at_each_moment(cluster, POINTS, strike)


def target_daemon_and_worker_killed(cluster):
    def strike(source, target):
        del source
        struck = kill_each(processes(cluster, target, "godwitd") +
                           processes(cluster, target, "godwit-worker"))
        wait_until(lambda: cluster.run("local", "node", target, "start-daemon", "--name",
                                       cluster.name).status == 0, "start of the daemon")
        return struck
    return at_each_moment(cluster, POINTS, strike)


def set_link(cluster, node, state):
    cluster.must("local", "link", node, state, "--name", cluster.name)


def link_cut_for_a_moment(cluster):
    """Shorter than anybody's patience."""
    def strike(source, target):
        set_link(cluster, (source, target)[strike.count % 2], "down")
        pause(0.7)
        set_link(cluster, (source, target)[strike.count % 2], "up")
        strike.count += 1
        return True
    strike.count = 0
    return at_each_moment(cluster, POINTS, strike)


def link_cut_for_long(cluster):
    """For longer than the engine's patience, in the freeze and in a drain."""
    def strike(source, target):
        set_link(cluster, target, "down")
        # Until the source's worker has noticed; what then goes on meets a cut link.
        wait_until(lambda: not processes(cluster, source, "godwit-worker"), "the source's worker ends")
        set_link(cluster, target, "up")
        return True
    return at_each_moment(cluster, 2, strike, modes=["stop", "postcopy"] if POINTS else MODES)


def record_state(pid, path):
    with contextlib.suppress(OSError, struct.error):
        with open(f"/proc/{pid}/root/{path}", "rb") as file:
            return struct.unpack_from("<I", file.read(), STATE_AT)[0]
    return 0


class Doubt:
    """A source that has given its copy up to a target whose worker stands still."""

    def __init__(self, cluster, mode="stop"):
        self.cluster = cluster
        self.witness = Witness(cluster)
        for _ in range(40):
            if self.attempt(mode):
                return
        raise Failed("no attempt was stopped between given_up and the grant")

    def attempt(self, mode):
        cluster, witness = self.cluster, self.witness
        self.source = witness.goes_on()
        self.target = other(self.source)
        capsule = [one for one in json.loads(cluster.must("ps", "--json").stdout)
                   if one["name"] == witness.name][0]
        daemons = [daemon(cluster, self.source), daemon(cluster, self.target)]
        given_up = lambda: record_state(daemons[0], f"run/godwit/journal/{capsule['id']}") == GIVEN_UP
        grant = f"var/lib/godwit/grants/{capsule['id']}"
        # Behind the cut nobody could tell how it went on.
        self.migration = Migration(witness, self.target, mode, ask=self.source)
        workers = wait_until(lambda: processes(cluster, self.target, "godwit-worker"), "target's worker")
        while self.migration.running():
            if given_up():
                kill_each(workers, signal.SIGSTOP)
                break
        if given_up() and record_state(daemons[1], grant) == OFFERED:
            self.workers = workers
            return True
        kill_each(workers, signal.SIGCONT)
        self.migration.result()
        return False

    def shown(self):
        """In doubt, once the link is cut and the source's worker is gone, and nothing runs."""
        cluster, witness = self.cluster, self.witness
        set_link(cluster, self.target, "down")
        expect(kill_worker(cluster, self.source), "the source's worker")
        wait_until(lambda: (self.source, "in-doubt") in witness.copies(), lambda: witness.copies())
        shown = cluster.must("--node", self.source, "ps").stdout
        expect("in-doubt" in shown, shown)
        text, outcome = self.migration.result()
        expect(outcome == "in-doubt", text)
        refused = cluster.run("--node", self.source, "kill", witness.name)
        expect(refused.status != 0 and "in doubt" in refused.text(), refused.text())
        before = witness.lines()
        pause(2)
        expect(witness.lines() == before, "it runs in doubt")


def doubt_ends_by_the_targets_answer(cluster):
    doubt = Doubt(cluster)
    doubt.shown()
    kill_each(doubt.workers, signal.SIGCONT)
    set_link(cluster, doubt.target, "up")
    where = doubt.witness.goes_on()
    doubt.witness.end()
    return f"on the {'source' if where == doubt.source else 'target'}"


def doubt_outlives_the_source_daemon(cluster):
    doubt = Doubt(cluster)
    doubt.shown()
    restart_daemon(cluster, doubt.source)
    wait_until(lambda: (doubt.source, "in-doubt") in doubt.witness.copies(), "still in doubt")
    # The target's daemon finds a silent worker: its record must answer nevertheless.
    kill_each(doubt.workers)
    set_link(cluster, doubt.target, "up")
    expect(doubt.witness.goes_on() == doubt.source, "the grant was never recorded")
    doubt.witness.end()


def doubt_ends_by_a_reboot_of_the_target(cluster):
    doubt = Doubt(cluster)
    doubt.shown()
    cluster.must("local", "node", doubt.target, "stop", "--name", cluster.name)
    cluster.must("local", "node", doubt.target, "start", "--name", cluster.name)
    set_link(cluster, doubt.target, "up")
    expect(doubt.witness.goes_on() == doubt.source, "it never started there")
    doubt.witness.end()


def the_lost_node_is_resolved(cluster):
    """In doubt until a human says that the target is lost for good."""
    doubt = Doubt(cluster)
    doubt.shown()
    resolve = ["--node", doubt.source, "resolve", doubt.witness.name, "--lost-node"]
    for args, uid, why in [(["n7"], 0, "not on n7"), ([doubt.target], faults.USER, "")]:
        got = cluster.run(*resolve, *args, uid=uid)
        expect(got.status != 0 and why in got.text(), got.text())
    cluster.must("local", "node", doubt.target, "stop", "--name", cluster.name)
    before = doubt.witness.lines()
    cluster.must(*resolve, doubt.target)
    wait_until(lambda: doubt.witness.lines() > before + 20, "it goes on after resolve")
    cluster.must("local", "node", doubt.target, "start", "--name", cluster.name)
    set_link(cluster, doubt.target, "up")
    expect(doubt.witness.goes_on() == doubt.source, "where it was resolved to")
    got = cluster.run("resolve", doubt.witness.name, "--lost-node", doubt.target)
    expect(got.status != 0 and "not in doubt" in got.text(), got.text())
    cluster.must("migrate", doubt.witness.name, doubt.target)
    expect(doubt.witness.goes_on() == doubt.target, "it moves again")
    doubt.witness.end()


def set_silence(cluster, node):
    """What a daemon calls silence, as its configuration may say; a minute is long for a test."""
    path = f"/proc/{daemon(cluster, node)}/root/etc/godwit/godwit.toml"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"worker_silence_ms = {SILENCE_MS}\n" + text)
    restart_daemon(cluster, node)


def worker_silent(cluster):
    """Stopped, not dead: it is killed after a while, and then that is a death like any other."""
    for node in ["n1", "n2"]:
        set_silence(cluster, node)

    def strike(source, target):
        node = (source, target)[strike.count % 2]
        strike.count += 1
        return kill_each(processes(cluster, node, "godwit-worker"), signal.SIGSTOP)
    strike.count = 0
    return at_each_moment(cluster, POINTS, strike)


def node_switched_off(cluster):
    """Nothing runs twice, what is left runs, and what is said of it is true."""
    said = []
    cluster.must("local", "bandwidth", SLOW_LINK, "--name", cluster.name)
    for mode in MODES if not POINTS else ["precopy", "postcopy"]:
        for which in ["source", "target"]:
            witness = Witness(cluster)
            for phase, delay in moments(witness, mode, 3)[1:]:
                source = witness.goes_on()
                victim = source if which == "source" else other(source)
                migration = Migration(witness, other(source), mode)
                pause(delay)
                cluster.must("local", "node", victim, "stop", "--name", cluster.name)
                cluster.must("local", "node", victim, "start", "--name", cluster.name)
                text, outcome = migration.result()
                copies = wait_until(lambda w=witness: settled(w), lambda w=witness: w.copies())
                live = [node for node, state in copies if state == "running"]
                label = f"{mode}, {which} in {phase}: {outcome or 'unknown'}, {copies} ({text})"
                expect(len(live) <= 1, label)
                # Its node was on all the time.
                expect(not (outcome == "stayed" and which == "target") or live == [source], label)
                said.append(f"{mode}/{which}/{phase}: {live[0] if live else 'lost'}")
                if not live:
                    witness.lines()
                    witness = Witness(cluster)
                    continue
                witness.goes_on()
            witness.end()
    return "; ".join(said)


def the_program_is_killed(cluster):
    """`kill` holds, whichever copy is the one."""
    struck = 0
    cluster.must("local", "bandwidth", SLOW_LINK, "--name", cluster.name)
    for mode in MODES:
        witness = Witness(cluster)
        planned = moments(witness, mode, POINTS)
        for phase, delay in planned:
            source = witness.goes_on()
            migration = Migration(witness, other(source), mode)
            pause(delay)
            cluster.must("kill", witness.name)
            text, _ = migration.result()
            try:
                witness.ended()
            except Failed as failed:
                raise Failed(f"{mode}, {phase}: {failed} ({text})") from failed
            struck += 1
            witness = Witness(cluster)
        witness.end()
    return f"{struck} times"


def the_program_is_killed_in_a_broken_drain(cluster):
    """Its pages are still at the source, and nobody brings them: that ends with the program."""
    cluster.must("local", "bandwidth", SLOW_LINK, "--name", cluster.name)
    for mode in ["postcopy", "hybrid"]:
        for _ in range(3):
            witness = Witness(cluster)
            source = witness.goes_on()
            migration = Migration(witness, other(source), mode)
            wait_until(lambda w=witness, s=source: (other(s), "running") in w.copies(), "it runs there")
            kill_worker(cluster, source)
            kill_worker(cluster, other(source))
            cluster.must("kill", witness.name)
            migration.result()
            witness.ended()


def the_program_changes(cluster):
    """It exits, executes another image or forks in the middle of a migration."""
    struck = 0
    cluster.must("local", "bandwidth", SLOW_LINK, "--name", cluster.name)
    for what in ["exec", "fork 0.4", "exit 7"]:
        for mode in MODES:
            witness = Witness(cluster)
            for phase, delay in moments(witness, mode, 2 if POINTS else 6):
                source = witness.goes_on()
                migration = Migration(witness, other(source), mode)
                pause(delay)
                witness.tell(what)
                text, _ = migration.result()
                struck += 1
                try:
                    wait_until(witness.told, "it was told")
                    if what != "exit 7":
                        witness.goes_on()
                        continue
                    witness.ended()
                    status = cluster.run("wait", witness.name)
                    expect(status.status == 7, f"exit status {status.status} {status.text()}")
                except Failed as failed:
                    raise Failed(f"{what}, {mode}, {phase}: {failed} ({text})") from failed
                witness = Witness(cluster)
            witness.end()
    return f"{struck} times"


def init_killed(cluster):
    """A capsule without its init is at its end; the other side's copy isn't touched by it."""
    for where in ["source", "target"]:
        for mode in MODES:
            witness = Witness(cluster)
            source = witness.goes_on()
            node = source if where == "source" else other(source)
            migration = Migration(witness, other(source), mode)
            inits = wait_until(lambda n=node: processes(cluster, n, "godwit-init"), "init", 10)
            kill_each(inits)
            text, outcome = migration.result()
            copies = wait_until(lambda w=witness: settled(w), lambda w=witness: w.copies())
            running = [node for node, state in copies if state == "running"]
            expect(len(running) <= 1, f"{where}, {mode}: {copies}")
            if where == "target" and outcome == "stayed":
                expect(witness.goes_on() == source, text)
            witness.end()
    return ""


def full_disk(cluster):
    """The target can't write what it must: the program stays, with a reason."""
    witness = Witness(cluster)
    inside = ["nsenter", "-t", str(daemon(cluster, "n2")), "-m", "--"]
    for place in ["/var/lib/godwit/grants", "/run/godwit"]:
        # A small file system over the directory, with what was there.
        subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "full",
                        "/mnt"], check=True)
        subprocess.run([*inside, "cp", "-a", f"{place}/.", "/mnt/"], check=True)
        subprocess.run([*inside, "mount", "--move", "/mnt", place], check=True)
        subprocess.run([*inside, "sh", "-c", f"cat /dev/zero > {place}/full"], check=False,
                       stderr=subprocess.DEVNULL)
        try:
            got = cluster.run("migrate", witness.name, "n2", "--json")
            expect(got.status != 0, f"{place}: {got.text()}")
            expect("space" in got.text(), f"{place}: {got.text()}")
            expect(witness.goes_on() == "n1", f"{place}: it moved")
        finally:
            subprocess.run([*inside, "umount", place], check=True)
    cluster.must("migrate", witness.name, "n2")
    expect(witness.goes_on() == "n2", "it stayed")
    witness.end()


TESTS = [source_worker_killed, target_worker_killed, both_workers_killed, source_daemon_killed,
         target_daemon_killed, source_daemon_and_worker_killed, target_daemon_and_worker_killed,
         link_cut_for_a_moment, link_cut_for_long, doubt_ends_by_the_targets_answer,
         doubt_outlives_the_source_daemon, doubt_ends_by_a_reboot_of_the_target,
         the_lost_node_is_resolved, worker_silent, node_switched_off, the_program_is_killed,
         the_program_is_killed_in_a_broken_drain, the_program_changes, init_killed, full_disk]

if __name__ == "__main__":
    sys.exit(faults.run_tests(TESTS))
