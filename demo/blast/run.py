#!/usr/bin/env python3
"""The demo: a BLAST search moves between three nodes, four times, while it runs.

    run.py --cluster NAME [--godwit PATH] [--seconds 60] [--seed 1] [--threads 2]

1. Makes a database and queries from the seed (sequences.py) in the cluster's shared directory, and
   tries how fast this machine searches, so that the search takes about --seconds.
2. Runs the search once as an ordinary process: the result to compare with.
3. Runs the same command in a capsule and moves it once in each mode while it runs.
4. Prints a table of the four moves and both results' SHA-256.

Exit status: 0 if all four moves succeeded and the results are equal, 1 if not, 2 usage.
"""
import argparse
import hashlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
MODES = ["stop", "precopy", "postcopy", "hybrid"]
ROUTE = ["n1", "n2", "n3", "n1", "n2"]
TRIAL_QUERIES = 40
QUERIES_LEAST, QUERIES_MOST = 80, 6000
# A search that is slow to end on a loaded machine is waited for this many times its usual time.
PATIENCE = 6
START = time.monotonic()


class Failure(Exception):
    pass


def say(text):
    print(f"[{time.monotonic() - START:5.0f} s] {text}", flush=True)


def checked(argv, **kwargs):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **kwargs)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Search:
    """The search; everything that it reads is in `directory`."""

    def __init__(self, directory, threads):
        self.directory, self.threads = directory, threads

    def argv(self):
        return ["blastn", "-task", "blastn", "-word_size", "7", "-evalue", "10", "-outfmt", "6",
                "-num_threads", str(self.threads), "-db", str(self.directory / "db"),
                "-query", str(self.directory / "queries.fa")]

    def make(self, seed, queries):
        checked([sys.executable, str(HERE / "sequences.py"), "--seed", str(seed),
                 "--queries", str(queries), str(self.directory)])

    def make_database(self):
        checked(["makeblastdb", "-in", str(self.directory / "database.fa"), "-dbtype", "nucl",
                 "-out", str(self.directory / "db")], stdout=subprocess.DEVNULL)

    def run_here(self, output):
        """As an ordinary process of this machine. Returns the seconds it took."""
        begin = time.monotonic()
        with open(output, "wb") as out:
            checked(self.argv(), stdout=out)
        return time.monotonic() - begin


class Godwit:
    """The command, as asked on a given node: GODWIT_SOCKET says which."""

    def __init__(self, program, cluster):
        self.program = program
        status = json.loads(checked([program, "local", "status", "--name", cluster, "--json"],
                                    stdout=subprocess.PIPE))
        self.shared = pathlib.Path(status["shared_dir"])
        self.sockets = {node["node"]: node["socket"] for node in status["nodes"]}

    def environment(self, node):
        return {**os.environ, "GODWIT_SOCKET": self.sockets[node]}

    def run(self, node, name, argv, out):
        return subprocess.Popen([self.program, "run", "--name", name, "--cwd", "/", "--", *argv],
                                stdin=subprocess.DEVNULL, stdout=out, env=self.environment(node))

    def migrate(self, capsule, source, target, mode):
        """Returns what `migrate --json` says, also of a migration that failed."""
        done = subprocess.run([self.program, "migrate", capsule, target, "--mode", mode, "--json"],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              env=self.environment(source))
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            raise Failure(f"migrate to {target}, mode {mode}: exit {done.returncode}: "
                          f"{done.stderr.strip()} {done.stdout.strip()}") from None


def wait_unless_it_ends(process, seconds):
    """Waits that long, or less if the process ends; then that is an error: it was to be moved."""
    pidfd = os.pidfd_open(process.pid)
    try:
        ended, _, _ = select.select([pidfd], [], [], max(0.0, seconds))
    finally:
        os.close(pidfd)
    if ended:
        raise Failure(f"the search ended (exit {process.wait()}) before it could be moved")


def run_and_move(godwit, search, output, seconds):
    """The search in a capsule, moved at even distances. Returns the four migrations."""
    name = f"blast-{os.getpid()}"
    moves = []
    with open(output, "wb") as out:
        begin = time.monotonic()
        process = godwit.run(ROUTE[0], name, search.argv(), out)
        try:
            for step, mode in enumerate(MODES):
                due = begin + seconds * (step + 1) / (len(MODES) + 1)
                wait_unless_it_ends(process, due - time.monotonic())
                source, target = ROUTE[step], ROUTE[step + 1]
                move = godwit.migrate(name, source, target, mode)
                moves.append(move)
                say(f"moved {source} -> {target}, {mode}: {move['outcome']}, "
                    f"down {move['downtime_us'] / 1000:.2f} ms" +
                    (f" ({move['reason']})" if move.get("reason") else ""))
                if move["outcome"] != "moved":
                    raise Failure(f"the {mode} migration did not complete: {move.get('reason')}")
            code = process.wait(timeout=seconds * PATIENCE + 60)
        except subprocess.TimeoutExpired:
            raise Failure("the search did not end") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != 0:
        raise Failure(f"the search in the capsule ended with exit status {code}")
    say(f"the search ended on {ROUTE[-1]} after {time.monotonic() - begin:.1f} s")
    return moves


def print_table(moves):
    rows = [("mode", "from", "to", "total", "downtime", "sent", "pages", "zero", "rounds")]
    for move in moves:
        rows.append((move["mode_asked"], move["source"], move["target"], f"{move['total_us'] / 1000:.1f} ms",
                     f"{move['downtime_us'] / 1000:.2f} ms", f"{move['bytes_sent'] / 2**20:.1f} MiB",
                     str(move["pages_sent"]), str(move["pages_zero"]), str(len(move["rounds"]))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) if i < 3 else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths))]
        print("  " + "  ".join(cells).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    print()


def demo(args):
    if shutil.which("blastn") is None:
        raise Failure("blastn is missing: apt-get install ncbi-blast+")
    godwit = Godwit(args.godwit, args.cluster)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="blast-", dir=godwit.shared))
    try:
        search = Search(directory, args.threads)
        search.make(args.seed, TRIAL_QUERIES)
        search.make_database()
        trial_s = search.run_here(directory / "trial.tsv")
        queries = round(TRIAL_QUERIES * args.seconds / trial_s)
        queries = min(max(queries, QUERIES_LEAST), QUERIES_MOST)
        search.make(args.seed, queries)
        say(f"made 2000 sequences of 10000 bases and {queries} queries from seed {args.seed}")

        say(f"the search without moving, as an ordinary process: about {args.seconds} s ...")
        seconds = search.run_here(directory / "never_moved.tsv")
        say(f"took {seconds:.1f} s")

        say(f"the same search in a capsule, moving {' -> '.join(ROUTE)} ...")
        moves = run_and_move(godwit, search, directory / "moved.tsv", seconds)

        print_table(moves)
        expected, got = sha256(directory / "never_moved.tsv"), sha256(directory / "moved.tsv")
        lines = (directory / "moved.tsv").read_bytes().count(b"\n")
        print(f"  never moved:      {expected}")
        print(f"  moved four times: {got}")
        if expected != got:
            raise Failure("the results differ")
        print(f"  equal, {lines} alignments\n", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", required=True, help="name of a local cluster of three nodes")
    parser.add_argument("--godwit", default="godwit", help="the godwit command")
    parser.add_argument("--seconds", type=float, default=60, help="about how long the search shall take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    try:
        demo(args)
    except Failure as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
