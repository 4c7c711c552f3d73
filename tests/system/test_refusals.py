#!/usr/bin/env python3
"""What can't be moved, or not there, or not by this user, is refused by name before anything is touched.

    test_refusals.py --godwit PATH [NAME...]
"""
import json
import os
import signal
import socket
import struct
import subprocess
import sys

import faults
from faults import (SLOW_LINK, USER, Migration, Witness, daemon, expect, kill_each, other,
                    processes, restart_daemon, wait_until)

OTHER_USER = 1
CRAWLING_LINK = "20mbit"  # So that a program of 40 MiB is at it for more than 15 s.
NODE_MEMORY = "384M"
LISTENING = "0A"  # In /proc/net/tcp.


def refused(cluster, witness, target, text, uid=0, can_migrate=True):
    """By `migrate`, and by `can-migrate` in the same words, and the program goes on where it is."""
    at = witness.goes_on()
    got = cluster.run("migrate", witness.name, target, "--json", uid=uid)
    expect(got.status != 0 and text in got.text(), f"migrate: {got.status} {got.text()}")
    if can_migrate:
        asked = cluster.run("can-migrate", witness.name, target, uid=uid)
        expect(asked.status != 0 and text in asked.text(), f"can-migrate: {asked.status} {asked.text()}")
    expect(witness.goes_on() == at, "it moved")
    return got


def inside(cluster, node, *command):
    return subprocess.run(["nsenter", "-t", str(daemon(cluster, node)), "-m", "--", *command],
                          check=True, capture_output=True)


def configure(cluster, node, line):
    path = f"/proc/{daemon(cluster, node)}/root/etc/godwit/godwit.toml"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(line + "\n" + text)
    restart_daemon(cluster, node)


def to_itself_and_to_nowhere(cluster):
    witness = Witness(cluster)
    refused(cluster, witness, "n1", "is on n1 already")
    refused(cluster, witness, "n9", "there is no node n9", can_migrate=False)
    got = cluster.run("migrate", "nobody-knows", "n2")
    expect(got.status != 0 and "there is no capsule nobody-knows" in got.text(), got.text())
    witness.end()


def twice_at_the_same_time(cluster):
    cluster.must("local", "bandwidth", SLOW_LINK, "--name", cluster.name)
    witness = Witness(cluster)
    for mode in faults.MODES:
        source = witness.goes_on()
        first = Migration(witness, other(source), mode)
        state = lambda: dict(witness.copies()).get(source, "")
        wait_until(lambda: state() == "migrating" or not first.running(), "the first one is at it")
        second = cluster.run("migrate", witness.name, other(source), "--json")
        text, outcome = first.result()
        expect(outcome == "moved", text)
        # Where the first had just ended, the second finds it there already.
        expect(second.status != 0 and ("is being migrated" in second.text() or
                                       "already" in second.text() or
                                       "still gets its pages" in second.text()), second.text())
        expect(witness.goes_on() == other(source), "it stayed")
    witness.end()


def another_users_capsule(cluster):
    witness = Witness(cluster, uid=USER)
    for command in [["migrate", witness.name, "n2"], ["can-migrate", witness.name, "n2"],
                    ["kill", witness.name], ["signal", witness.name, "TERM"], ["logs", witness.name],
                    ["freeze", witness.name], ["thaw", witness.name], ["attach", witness.name],
                    ["wait", "--timeout", "1", witness.name], ["rm", witness.name]]:
        for node in ["n1", "n2"]:
            got = cluster.run("--node", node, *command, uid=OTHER_USER)
            expect(got.status != 0 and "there is no capsule" in got.text(), f"{command}: {got.text()}")
    got = cluster.run("resolve", witness.name, "--lost-node", "n2", uid=USER)
    expect(got.status != 0 and "only root" in got.text(), got.text())
    for command in [["ps", "-a", "--json"], ["history", "--json"]]:
        got = cluster.must(*command, uid=OTHER_USER)
        expect(json.loads(got.stdout) == [], got.text())
    cluster.must("migrate", witness.name, "n2", uid=USER)
    expect(witness.goes_on() == "n2", "its own user moves it")
    expect(json.loads(cluster.must("history", "--json", uid=OTHER_USER).stdout) == [], "history")
    witness.end()


def another_processor(cluster):
    """The target's lacks what the program may have seen at its start."""
    flags = open("/proc/cpuinfo", encoding="ascii").read().split()
    feature = next(name for name in ["avx512f", "avx2", "sse4_2"] if name in flags)
    configure(cluster, "n2", f'hidden_cpu_features = ["{feature}"]')
    witness = Witness(cluster)
    got = refused(cluster, witness, "n2", f"the processor of n2 lacks {feature}")
    expect(json.loads(got.stdout)["outcome"] == "refused", got.text())
    witness.end()


def a_missing_program(cluster):
    here = inside(cluster, "n1", "cp", "/usr/bin/python3", "/usr/local/bin/only-here")
    expect(here.returncode == 0, str(here))
    witness = Witness(cluster, python="/usr/local/bin/only-here")
    got = refused(cluster, witness, "n2", "/usr/local/bin/only-here does not exist on the target")
    expect(json.loads(got.stdout)["outcome"] == "refused", got.text())
    witness.end()


def another_libc(cluster):
    witness = Witness(cluster)
    libc = os.path.realpath("/lib/x86_64-linux-gnu/libc.so.6")
    inside(cluster, "n2", "sh", "-c", f"cp {libc} {libc}.new && echo >> {libc}.new && mv {libc}.new {libc}")
    refused(cluster, witness, "n2", "libc.so.6 has")
    witness.end()


def too_little_memory(cluster):
    """Told before anything is copied."""
    filler = Witness(cluster, "n2", mib=220)
    witness = Witness(cluster, mib=220)
    # The nodes look at their groups once a second.
    wait_until(lambda: all(one["memory_bytes"] > 200 << 20 for one in
                           json.loads(cluster.must("ps", "--json").stdout)), "memory is known")
    got = refused(cluster, witness, "n2", "n2 has too little memory")
    expect(json.loads(got.stdout)["outcome"] == "refused", got.text())
    filler.end()
    witness.end()


too_little_memory.cluster_options = ["--memory", NODE_MEMORY]


def memory_ends_during_the_copy(cluster):
    """It grows while it moves: the copy is the victim, not the node's other programs."""
    filler = Witness(cluster, "n2", mib=220)
    for mode in ["precopy", "hybrid"]:
        witness = Witness(cluster, mib=40)
        cluster.must("local", "bandwidth", CRAWLING_LINK, "--name", cluster.name)
        migration = Migration(witness, "n2", mode)
        wait_until(lambda w=witness: dict(w.copies()).get("n1") == "migrating" or not migration.running(),
                   "it is at it")
        witness.tell("grow 220")
        wait_until(witness.told, "it grows")
        before = witness.lines()  # It doesn't count meanwhile.
        wait_until(lambda w=witness, n=before: w.lines() > n, "it has grown")
        cluster.must("local", "bandwidth", SLOW_LINK, "--name", cluster.name)
        text, outcome = migration.result()
        expect(outcome in ("stayed", "refused") and "memory ends" in text, text)
        expect(witness.goes_on() == "n1", "it moved")
        expect(filler.goes_on() == "n2", "the filler is hurt")
        witness.end()
    filler.end()


memory_ends_during_the_copy.cluster_options = ["--memory", NODE_MEMORY]


def listening_port(pid):
    """Of the only listening socket of a process, with its address."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    with open(f"/proc/{pid}/net/tcp", encoding="ascii") as table:
        for fields in map(str.split, table.readlines()[1:]):
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                return socket.inet_ntoa(struct.pack("<I", int(address, 16))), int(port, 16)
    return None


# Speaks the handshake (src/transport/handshake.h) with a token of its own.
STRANGER = """
import hashlib, hmac, os, socket, struct, sys
address, port = sys.argv[1], int(sys.argv[2])
def talk(first, token):
    link = socket.create_connection((address, port), 20)
    link.settimeout(30)
    link.sendall(first)
    try:
        challenge = b""
        while len(challenge) < 64:
            got = link.recv(64 - len(challenge))
            if not got:
                return "closed"
            challenge += got
        link.sendall(hmac.new(token, b"godwit source" + first + challenge[:32], hashlib.sha256).digest())
        return "accepted" if link.recv(1) else "closed"
    except ConnectionError:
        return "closed"
hello = lambda kind: b"GWLK" + bytes([1, kind, 0, 0]) + struct.pack("<I", 0) + os.urandom(32)
print(talk(os.urandom(256), os.urandom(32)), talk(hello(1), os.urandom(32)), talk(hello(2), bytes(32)),
      talk(hello(3), os.urandom(32)))
"""


def a_stranger_on_the_data_port(cluster):
    """Without the migration's token nobody gets in, and nobody is in the way."""
    witness = Witness(cluster)
    for _ in range(20):
        source = witness.goes_on()
        migration = Migration(witness, other(source), "precopy")
        # Held up before it connects, so that the port is open when the strangers come.
        ours = wait_until(lambda s=source: processes(cluster, s, "godwit-worker") or
                          not migration.running(), "the source's worker")
        if ours is True:
            continue
        kill_each(ours, signal.SIGSTOP)
        try:
            theirs = processes(cluster, other(source), "godwit-worker")
            place = listening_port(theirs[0]) if theirs else None
            if place:
                said = subprocess.run(["nsenter", "-t", str(daemon(cluster, source)), "-n", "--",
                                       sys.executable, "-c", STRANGER, place[0], str(place[1])],
                                      capture_output=True, check=False, text=True)
        finally:
            kill_each(ours, signal.SIGCONT)
        text, outcome = migration.result()
        expect(outcome == "moved", text)
        if place and said.returncode == 0:
            expect(said.stdout.split() == ["closed"] * 4, said.stdout + said.stderr)
            expect(witness.goes_on() == other(source), "it stayed")
            witness.end()
            return "four strangers"
    raise faults.Failed("the port was never found while it listened")


TESTS = [to_itself_and_to_nowhere, twice_at_the_same_time, another_users_capsule, another_processor,
         a_missing_program, another_libc, too_little_memory, memory_ends_during_the_copy,
         a_stranger_on_the_data_port]

if __name__ == "__main__":
    sys.exit(faults.run_tests(TESTS))
