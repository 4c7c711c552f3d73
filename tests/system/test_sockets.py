#!/usr/bin/env python3
"""TCP connections between capsules, and from a capsule to its node, while either end moves.

    test_sockets.py --godwit PATH [TEST...]

The client sends numbers, the server sends them back; every one must come once and in order, by connections
that were made before the moves, between them and in their middle.
"""
import json
import os
import sys
import threading

from faults import (MODES, Failed, Migration, expect, kill_worker, other, pause, run_tests,
                    wait_until)

PORT = 5000
PYTHON = "/usr/bin/python3"
MOMENTS, LAST_MOMENT_S = 6, 0.15  # Of faults: a move takes about 0.1 s.

SERVER = """
import socket, sys, threading
def serve(link):
    try:
        while data := link.recv(1 << 16):
            link.sendall(data)
    except OSError as error:
        print("server:", error, flush=True)
    link.close()
listener = socket.create_server(("", int(sys.argv[1])), backlog=64)
print("listens", flush=True)
while True:
    link, _ = listener.accept()
    threading.Thread(target=serve, args=(link,), daemon=True).start()
"""

# Tells how many blocks have come back, how many short connections were made, and the longest wait in ms.
CLIENT = """
import os, socket, sys, threading, time
path, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
words = 512
def block(i):
    return b"".join(n.to_bytes(8, "big") for n in range(i * words, (i + 1) * words))
def fail(text):
    tell(f"FAILED: {text}")
    os._exit(1)
def tell(text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)
link = socket.create_connection((host, port))
came = short = 0
longest = 0.0
def send():
    i = 0
    try:
        while True:
            link.sendall(block(i))
            i += 1
            time.sleep(0.002)  # Polls: a pace that leaves processors to others.
    except OSError as error:
        fail(f"send: {error}")
def meet():
    global short
    while True:
        try:
            with socket.create_connection((host, port)) as new:
                new.sendall(b"hello")
                got = new.recv(5, socket.MSG_WAITALL)
        except OSError as error:
            fail(f"short connection {short}: {error}")
        if got != b"hello":
            fail(f"short connection {short}: {got}")
        short += 1
        time.sleep(0.02)  # Polls, as above.
for work in (send, meet):
    threading.Thread(target=work, daemon=True).start()
last = time.time()
while True:
    try:
        got = link.recv(words * 8, socket.MSG_WAITALL)
    except OSError as error:
        fail(f"recv: {error}")
    if got != block(came):
        fail(f"block {came} is wrong, {len(got)} bytes")
    came += 1
    now = time.time()
    longest, last = max(longest, now - last), now
    if came % 16 == 0:
        tell(f"{came} {short} {longest * 1000:.1f}")
"""


class Program:
    """A capsule, with what the moves of faults.py ask of one."""

    def __init__(self, cluster, name, node, *argv):
        self.cluster, self.name = cluster, name
        cluster.must("run", "-d", "--node", node, "--name", name, "--", PYTHON, "-c", *argv)

    def where(self):
        found = [one for one in json.loads(self.cluster.must("ps", "--json").stdout)
                 if one["name"] == self.name]
        expect(len(found) == 1, f"{self.name}: {found}")
        return found[0]

    def settles(self):
        """Where it is, once it is one again."""
        def alone():
            found = [one for one in json.loads(self.cluster.must("ps", "--json").stdout)
                     if one["name"] == self.name]
            return found[0] if len(found) == 1 and found[0]["state"] == "running" else None
        return wait_until(alone, f"{self.name} settles")

    def move(self, mode):
        text, outcome = Migration(self, other(self.where()["node"]), mode).result()
        expect(outcome == "moved", f"{self.name}, {mode}: {text}")


class Talk:
    """A client and its server."""

    def __init__(self, cluster, host, node="n1"):
        self.path = os.path.join(cluster.shared_dir(), "talk")
        self.program = Program(cluster, "client", node, CLIENT, self.path, host, str(PORT))
        self.goes_on()

    def told(self):
        try:
            with open(self.path, encoding="ascii") as file:
                text = file.read()
        except FileNotFoundError:
            return 0, 0, 0.0
        expect(not text.startswith("FAILED"), text)
        came, short, longest = text.split()
        return int(came), int(short), float(longest)

    def goes_on(self):
        came, short, _ = self.told()
        wait_until(lambda: self.told()[0] > came + 100 and self.told()[1] > short + 2,
                   lambda: f"the talk goes on: {self.told()} after {came} {short}")


def start_server(cluster, node):
    server = Program(cluster, "server", node, SERVER, str(PORT))
    wait_until(lambda: "listens" in cluster.must("logs", "server").stdout, "the server listens")
    return server


def either_end_moves(cluster):
    """One after the other, in every mode, to where the other one is and away from there."""
    server = start_server(cluster, "n1")
    talk = Talk(cluster, server.where()["ip"])
    for program in (server, talk.program, server, talk.program):
        for mode in MODES:
            program.move(mode)
            talk.goes_on()
    return f"{len(MODES) * 4} moves, longest wait {talk.told()[2]} ms"


def both_ends_move_at_once(cluster):
    """So that neither finds the other where it was."""
    server = start_server(cluster, "n1")
    talk = Talk(cluster, server.where()["ip"], "n2")
    for mode in MODES * 2:
        failures = []

        def move(program, how=mode):
            try:
                program.move(how)
            except (Failed, OSError) as failed:
                failures.append(str(failed))
        threads = [threading.Thread(target=move, args=(one,)) for one in (server, talk.program)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        talk.told()  # What the client noticed says more.
        expect(not failures, "; ".join(failures))
        talk.goes_on()
    return f"{len(MODES) * 2} moves of both, longest wait {talk.told()[2]} ms"


def workers_die(cluster):
    """Of the server's move, at any moment, on either side: the client sees a pause, at most."""
    server = start_server(cluster, "n1")
    talk = Talk(cluster, server.where()["ip"], "n2")
    outcomes = {}
    for mode in MODES:
        for moment in range(MOMENTS):
            for victim in ("source", "target"):
                source = server.settles()["node"]
                migration = Migration(server, other(source), mode)
                pause(LAST_MOMENT_S * moment / MOMENTS)
                kill_worker(cluster, source if victim == "source" else other(source))
                _, outcome = migration.result()
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                server.settles()
                talk.goes_on()
    told = ", ".join(f"{count} {outcome or 'unknown'}" for outcome, count in sorted(outcomes.items()))
    return f"{told}; longest wait {talk.told()[2]} ms"


TESTS = [either_end_moves, both_ends_move_at_once, workers_die]

if __name__ == "__main__":
    sys.exit(run_tests(TESTS))
