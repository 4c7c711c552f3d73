#!/usr/bin/env python3
"""godwitd and godwit together, hardly any migration: run, streams, signals, users, restarts of the daemon.

    test_daemon.py --godwit PATH [NAME...]
"""
import argparse
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time

from cluster import Cluster, CommandFailed

USER = 65534
LIMIT_S = 120
COPY_BYTES = 20_000_000
SPEEDS = "1.0,0.5"  # Of n1 and n2.


class Failed(Exception):
    pass


def expect(condition, text):
    if not condition:
        raise Failed(text)


def wait_until(condition, what, limit_s=LIMIT_S):
    deadline = time.monotonic() + limit_s
    while not condition():
        expect(time.monotonic() < deadline, f"{what}: not within {limit_s} s")
        threading.Event().wait(0.02)


def start(cluster, *args, uid=0, **how):
    ids = {} if uid == 0 else {"user": uid, "group": uid, "extra_groups": []}
    return subprocess.Popen([cluster.godwit, *args], env=cluster.env, cwd="/", **ids, **how)


def capsule(cluster, name, uid=0):
    for one in json.loads(cluster.must("ps", "-a", "--json", uid=uid).stdout):
        if one["name"] == name:
            return one
    return None


def restart_daemon(cluster, node="n1"):
    cluster.must("local", "node", node, "kill-daemon", "--name", cluster.name)
    cluster.must("local", "node", node, "start-daemon", "--name", cluster.name)


def exit_codes_pass_through(cluster, uid):
    for script, code in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 128 + 15)]:
        got = cluster.run("run", "--", "sh", "-c", script, uid=uid)
        expect(got.status == code, f"{script}: {got.status} {got.text()}")
    expect(cluster.run("run", "--", "/no/such", uid=uid).status == 127, "missing program")
    expect(cluster.run("run", "--", "/etc/passwd", uid=uid).status == 126, "not executable")
    expect(cluster.run("run", uid=uid).status == 2, "no program")


def streams_pass_through(cluster, uid):
    data = random.Random(1).randbytes(300_000)
    child = start(cluster, "run", "--", "sh", "-c", "cat; echo error >&2", uid=uid,
                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = child.communicate(data, timeout=LIMIT_S)
    expect(out == data, f"{len(out)} of {len(data)} bytes")
    expect(err == b"error\n", f"stderr {err!r}")
    expect(child.returncode == 0, f"status {child.returncode}")


def arguments_need_not_be_utf8(cluster, uid):
    name = f"u{uid}"
    child = start(cluster, "run", "--name", name, "--env", b"ODD=\xff", "--", "sh", "-c",
                  'printf %s "$1$ODD"; cat', b"\xfe", b"caf\xe9", uid=uid,
                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out = child.stdout.read(len(b"caf\xe9\xff"))
    expect(out == b"caf\xe9\xff", f"{out!r}")
    expect(capsule(cluster, name, uid)["state"] == "running", "ps")  # JSON, whatever they are.
    child.communicate(timeout=LIMIT_S)
    expect(child.returncode == 0, f"status {child.returncode}")


def signals_pass_through(cluster, uid):
    child = start(cluster, "run", "--", "sh", "-c",
                  "trap 'echo got; exit 9' USR1; echo ready; while :; do read x || :; done", uid=uid,
                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    expect(child.stdout.readline() == b"ready\n", "not ready")
    child.send_signal(10)
    child.stdin.write(b"\n")  # The shell runs traps between commands.
    child.stdin.flush()
    expect(child.stdout.readline() == b"got\n", "no signal")
    expect(child.wait(LIMIT_S) == 9, f"status {child.returncode}")


def programs_run_as_their_users(cluster, uid):
    got = cluster.must("run", "--", "id", "-u", uid=uid)
    expect(got.stdout.strip() == str(uid), got.text())
    if uid == 0:
        got = cluster.must("run", "--user", "nobody", "--", "id", "-u")
        expect(got.stdout.strip() == str(USER), got.text())
    else:
        expect(cluster.run("run", "--user", "root", "--", "id", uid=uid).status == 125, "became root")


def detached_ones_are_waited_for(cluster, uid):
    name = f"d{uid}"
    expect(cluster.must("run", "-d", "--node", "n2", "--name", name, "--", "sh", "-c",
                        "echo out; sleep 0.2; exit 5", uid=uid).stdout == name + "\n", "name")
    expect(cluster.run("wait", name, uid=uid).status == 5, "exit code of wait")
    expect(cluster.run("wait", name, uid=uid).status == 5, "asked again")
    expect(cluster.must("logs", name, uid=uid).stdout == "out\n", "logs of an ended one")
    one = capsule(cluster, name, uid)
    expect(one["state"] == "exited" and one["exit_code"] == 5 and one["node"] == "n2", str(one))
    cluster.must("rm", name, uid=uid)
    expect(capsule(cluster, name, uid) is None, "removed but still there")


def kill_and_signal(cluster, uid):
    name = f"k{uid}"
    cluster.must("run", "-d", "--name", name, "--", "sleep", "1000", uid=uid)
    expect(cluster.run("run", "-d", "--name", name, "--", "true", uid=uid).status == 125,
           "two of one name")
    expect(cluster.run("rm", name, uid=uid).status == 1, "removed while running")
    cluster.must("signal", name, "TERM", uid=uid)
    expect(cluster.run("wait", name, uid=uid).status == 128 + 15, "signal")
    cluster.must("run", "-d", "--name", name, "--", "sleep", "1000", uid=uid)
    expect(cluster.run("wait", "--timeout", "0.1", name, uid=uid).status == 124, "timeout")
    cluster.must("--node", "n2", "kill", name, uid=uid)
    expect(cluster.run("wait", name, uid=uid).status == 128 + 9, "kill")


def others_are_not_found(cluster, uid):
    del uid
    cluster.must("run", "-d", "--name", "secret", "--", "sleep", "1000")
    try:
        for node in ["n1", "n2"]:
            expect("secret" not in cluster.must("--node", node, "ps", "-a", uid=USER).stdout, "ps")
            for command in [["logs"], ["kill"], ["wait"], ["attach"], ["freeze"], ["rm"],
                            ["migrate"], ["can-migrate"], ["signal"]]:
                extra = ["TERM"] if command == ["signal"] else []
                got = cluster.run("--node", node, *command, "secret", *extra, uid=USER)
                nobody = cluster.run("--node", node, *command, "no-such", *extra, uid=USER)
                expect(got.status == 4, f"{command}: {got.status} {got.text()}")
                expect(got.text().replace("secret", "no-such") == nobody.text(), "it leaks")
        expect(cluster.run("resolve", "secret", "--lost-node", "n2", uid=USER).status == 5, "resolve")
    finally:
        cluster.must("kill", "secret")


def a_killed_daemon_loses_no_byte(cluster, uid):
    """20 MB from stdin to stdout; the daemon is killed again and again on the way."""
    data = random.Random(2).randbytes(COPY_BYTES)
    child = start(cluster, "run", "--", "cat", uid=uid, stdin=subprocess.PIPE,
                  stdout=subprocess.PIPE, bufsize=0)
    received = []
    progress = [0]
    ended = threading.Event()

    def feed():
        child.stdin.write(data)
        child.stdin.close()

    def drain():
        while chunk := child.stdout.read(1 << 16):
            received.append(chunk)
            progress[0] += len(chunk)
        ended.set()

    threads = [threading.Thread(target=feed), threading.Thread(target=drain)]
    for thread in threads:
        thread.start()
    kills = 0
    for part in range(1, 6):
        wait_until(lambda part=part: progress[0] >= part * COPY_BYTES // 8 or ended.is_set(), "progress")
        if not ended.is_set():
            restart_daemon(cluster)
            kills += 1
    for thread in threads:
        thread.join(LIMIT_S)
    expect(child.wait(LIMIT_S) == 0, f"status {child.returncode}")
    got = b"".join(received)
    expect(len(got) == COPY_BYTES, f"{len(got)} bytes instead of {COPY_BYTES}")
    expect(hashlib.sha256(got).digest() == hashlib.sha256(data).digest(), "another content")
    expect(kills >= 1, "it was over before a daemon could be killed")


def a_restarted_daemon_knows_all(cluster, uid):
    names = [f"r{uid}-{i}" for i in range(3)]
    for name in names:
        cluster.must("run", "-d", "--name", name, "--", "sleep", "1000", uid=uid)
    cluster.run("run", "--name", f"r{uid}-ended", "--", "sh", "-c", "echo last; exit 3", uid=uid)
    before = {name: capsule(cluster, name, uid)["pid"] for name in names}
    restart_daemon(cluster)
    for name in names:
        one = capsule(cluster, name, uid)
        expect(one["state"] == "running" and one["pid"] == before[name], str(one))
    expect(cluster.run("wait", f"r{uid}-ended", uid=uid).status == 3, "status forgotten")
    expect(cluster.must("logs", f"r{uid}-ended", uid=uid).stdout == "last\n", "output forgotten")
    for name in names:
        cluster.must("kill", name, uid=uid)
        expect(cluster.run("wait", name, uid=uid).status == 137, "end")


def a_dead_client_blocks_nobody(cluster, uid):
    """More output than fits anywhere: the program goes on once its client is dead."""
    name = f"c{uid}"
    child = start(cluster, "run", "--name", name, "--", "sh", "-c",
                  "head -c 8000000 /dev/zero; exit 6", uid=uid, stdin=subprocess.DEVNULL,
                  stdout=subprocess.PIPE)
    expect(child.stdout.read(1) == b"\0", "no output")
    child.kill()
    child.wait()
    expect(cluster.run("wait", name, uid=uid).status == 6, "it never ended")


def attach_takes_over(cluster, uid):
    name = f"a{uid}"
    first = start(cluster, "run", "--name", name, "--", "cat", uid=uid, stdin=subprocess.PIPE,
                  stdout=subprocess.PIPE)
    first.stdin.write(b"one\n")
    first.stdin.flush()
    expect(first.stdout.readline() == b"one\n", "first client")
    expect(cluster.run("attach", name, uid=uid).status == 125, "a second one was let in")
    second = start(cluster, "--node", "n2", "attach", "--take-over", name, uid=uid,
                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    expect(first.wait(LIMIT_S) == 125, f"first ended with {first.returncode}")
    second.stdin.write(b"two\n")
    second.stdin.flush()
    expect(second.stdout.readline() == b"two\n", "second client")
    second.stdin.close()
    expect(second.wait(LIMIT_S) == 0, f"second ended with {second.returncode}")


BUSY = """import time
while True:
    wall, cpu = time.time(), time.process_time()
    while time.time() - wall < 2:
        pass
    print((time.process_time() - cpu) / (time.time() - wall), flush=True)
"""
# The kernel gives out quotas for 0.1 s at a time.
QUOTA_SLACK = 0.1


def cpus_are_as_fast_as_the_nodes(cluster, uid):
    name = f"cpus{uid}"
    busy = start(cluster, "run", "--node", "n1", "--name", name, "--cpus", "0.5", "--", "python3", "-c",
                 BUSY, uid=uid, stdout=subprocess.PIPE)
    share = float(busy.stdout.readline())
    expect(share <= 0.5 + QUOTA_SLACK, f"half a core of speed 1 gave {share}")
    cluster.must("migrate", name, "n2", uid=uid)
    busy.stdout.readline()  # Partly there, partly here.
    busy.stdout.readline()
    share = float(busy.stdout.readline())
    expect(share <= 0.25 + QUOTA_SLACK, f"half a core of speed 0.5 gave {share}")
    cluster.must("kill", name, uid=uid)
    busy.wait(LIMIT_S)


TESTS = [exit_codes_pass_through, streams_pass_through, arguments_need_not_be_utf8,
         signals_pass_through,
         programs_run_as_their_users, detached_ones_are_waited_for, kill_and_signal,
         others_are_not_found, a_killed_daemon_loses_no_byte, a_restarted_daemon_knows_all,
         a_dead_client_blocks_nobody, attach_takes_over,
         cpus_are_as_fast_as_the_nodes]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--godwit", required=True)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("skip: a local cluster needs root")
        return 77
    cluster = Cluster(options.godwit, f"td-{os.getpid()}")
    failures = 0
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.down)
        cluster.up("--speed", SPEEDS)
        for test in TESTS:
            if options.names and test.__name__ not in options.names:
                continue
            for uid in [0] if test is others_are_not_found else [0, USER]:
                began = time.monotonic()
                try:
                    test(cluster, uid)
                    verdict = "ok"
                except (Failed, CommandFailed, subprocess.TimeoutExpired) as error:
                    verdict = f"FAILED: {error}"
                    failures += 1
                print(f"{test.__name__} uid={uid}: {verdict} ({time.monotonic() - began:.2f} s)",
                      flush=True)
        if failures:
            status = json.loads(cluster.must("local", "status", "--json").stdout)
            for node in status["nodes"]:
                with open(node["log_path"], encoding="utf-8", errors="replace") as log:
                    print(f"--- {node['log_path']}\n" + "".join(log.readlines()[-60:]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
