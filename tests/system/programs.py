#!/usr/bin/env python3
"""Real programs that nobody here wrote, migrated mid-run; their results are those of a run that never moved.

    programs.py --godwit PATH [--moves N] NAME     one of them, on the cluster of this ctest or one of its own
    programs.py list                               their names

Each runs once outside of any cluster, then in a capsule that is moved between two nodes in mixed modes.
Between two moves the program must have used the processor again, so every move finds it at work. All
of its files are in the directory that the nodes share. Exit status 77: the program isn't installed.
"""
import argparse
import contextlib
import dataclasses
import glob
import hashlib
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import cluster as clusters
from program import SKIP_EXIT_CODE, Failed, Skipped
from run_tracee import cluster_to_use

MODES = ("precopy", "stop", "postcopy", "hybrid", "auto")
MOVES = 6
MOVES_MIN = 5
WORK_TICKS = 3          # Of processor time between two moves; a tick is 10 ms.
SECONDS_MIN = 4         # A run shorter than this ends before its moves do: it gets more to do.
SCALE_MAX = 32
LIMIT_S = 200           # For each of the two runs, also on a busy machine.
SEED = 20260


@dataclasses.dataclass
class Spec:
    argv: list
    outputs: list                    # Files that are compared, besides stdout and the exit status.
    env: dict = dataclasses.field(default_factory=dict)
    normalize: object = None         # Takes what may differ between any two runs out of stdout.
    normalize_file: object = None    # The same of a file's bytes.


def need(*paths):
    for path in paths:
        if not os.access(path, os.X_OK):
            raise Skipped(f"{path} is not installed")


def text_of_words(size, seed=SEED):
    """Compressible, but not trivially so."""
    rng = random.Random(seed)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 11)))
             for _ in range(4000)]
    block = " ".join(rng.choices(words, k=200_000)).encode()
    parts, total = [], 0
    while total < size:
        at = rng.randrange(len(block) // 2)
        part = block[at:at + rng.randrange(1000, 60_000)]
        parts.append(part)
        total += len(part)
    return b"".join(parts)[:size]


def blastn(directory, scale):
    need("/usr/bin/blastn", "/usr/bin/makeblastdb")
    rng = random.Random(SEED)
    genome = "".join(rng.choices("ACGT", k=6_000_000))
    with open(directory / "genome.fa", "w", encoding="ascii") as file:
        for n in range(60):
            file.write(f">g{n}\n{genome[n * 100_000:(n + 1) * 100_000]}\n")
    with open(directory / "query.fa", "w", encoding="ascii") as file:
        for n in range(150 * scale):
            at = rng.randrange(len(genome) - 3000)
            piece = list(genome[at:at + 3000])
            for _ in range(300):
                piece[rng.randrange(3000)] = rng.choice("ACGT")
            file.write(f">q{n}\n{''.join(piece)}\n")
    subprocess.run(["/usr/bin/makeblastdb", "-in", "genome.fa", "-dbtype", "nucl", "-out", "genome"],
                   cwd=directory, check=True, stdout=subprocess.DEVNULL)
    return Spec(["/usr/bin/blastn", "-task", "blastn", "-word_size", "11", "-num_threads", "2",
                 "-db", "genome", "-query", "query.fa", "-outfmt", "6", "-out", "OUT/hits"],
                ["hits"])


def python3(directory, scale):
    need("/usr/bin/python3")
    if subprocess.run(["/usr/bin/python3", "-c", "import numpy"], check=False,
                      stderr=subprocess.DEVNULL).returncode != 0:
        raise Skipped("numpy is not installed")
    (directory / "work.py").write_text(f"STEPS = {280 * scale}" + """
import hashlib, sys
import numpy
out = sys.argv[1]
rng = numpy.random.default_rng(7)
matrix = rng.standard_normal((300, 300))
digest = hashlib.sha256()
with open(out + "/rows", "w+b") as rows:
    for step in range(STEPS):
        matrix = numpy.tanh(matrix @ matrix.T / 300 + rng.standard_normal(matrix.shape))
        values = numpy.sort(matrix, axis=None)[::3000]
        rows.write(values.tobytes())
        for _ in range(12):
            digest.update(matrix.tobytes())
    rows.seek(0)
    print(hashlib.md5(rows.read()).hexdigest(), digest.hexdigest(), repr(float(matrix.sum())))
""")
    return Spec(["/usr/bin/python3", "work.py", "OUT"], ["rows"],
                env={"OPENBLAS_NUM_THREADS": "2"})


def zstd(directory, scale):
    need("/usr/bin/zstd")
    (directory / "text").write_bytes(text_of_words(scale * 24 << 20))
    return Spec(["/usr/bin/zstd", "-q", "-f", "-T2", "-13", "text", "-o", "OUT/text.zst"], ["text.zst"])


def xz(directory, scale):
    """xz makes a pipe to itself at its start, for signals, whatever it is asked to do."""
    need("/usr/bin/xz")
    (directory / "text").write_bytes(text_of_words(scale * 12 << 20))
    return Spec(["/bin/sh", "-c", "exec /usr/bin/xz -T2 -6 -c text > OUT/text.xz"], ["text.xz"])


def sqlite3(directory, scale):
    """Without file locks (unix-none), which can't move yet; each transaction goes through a journal."""
    need("/usr/bin/sqlite3")
    lines = ["pragma temp_store=memory;", "pragma cache_size=200;", "pragma synchronous=off;",
             "create table t(k integer primary key, a text, b integer);", "create index i on t(b);"]
    for n in range(120 * scale):
        lines += ["begin;",
                  f"with recursive c(x) as (select 1 union all select x+1 from c where x<1200) "
                  f"insert into t(a,b) select hex(x*{n + 7}) || printf('%08d', x*{n}), "
                  f"(x*7919+{n}*104729)%65537 from c;",
                  f"update t set b=b+1 where b%97={n % 97};",
                  f"delete from t where b%101={n % 101};", "commit;"]
    lines += ["pragma integrity_check;", "select count(*), sum(b), sum(length(a)) from t;",
              "select * from t order by b, k limit 50;"]
    (directory / "script.sql").write_text("\n".join(lines) + "\n")
    return Spec(["/usr/bin/sqlite3", "-batch", "-vfs", "unix-none", "OUT/data.db", ".read script.sql"],
                ["data.db"])


def cc1(directory, scale):
    found = sorted(glob.glob("/usr/lib/gcc/x86_64-linux-gnu/*/cc1"))
    if not found:
        raise Skipped("cc1 is not installed")
    rng = random.Random(SEED)
    with open(directory / "big.c", "w", encoding="ascii") as file:
        for n in range(550 * scale):
            file.write(f"int f{n}(int *p, int n, double x) {{\n  int s = {rng.randrange(1000)};\n"
                       f"  for (int i = 0; i < n; i++) {{\n"
                       f"    p[i] = p[i] * {rng.randrange(2, 99)} + s; s ^= p[i] >> {rng.randrange(1, 9)};\n"
                       f"    if (s > {rng.randrange(9999)}) x = x * {rng.random():.6f} + i; else x += s;\n"
                       f"  }}\n  switch (s & 7) {{")
            for case in range(8):
                file.write(f" case {case}: s += p[{case}] * {rng.randrange(50)}; break;")
            file.write(f" }}\n  return s + (int)x{f' + f{n - 1}(p, s, x)' if n else ''};\n}}\n")
    return Spec([found[-1], "-quiet", "-O2", "big.c", "-o", "OUT/big.s"], ["big.s"])


def povray(directory, scale):
    need("/usr/bin/povray")
    rng = random.Random(SEED)
    scene = ["#version 3.7; global_settings { assumed_gamma 1.0 }",
             "camera { location <0,4,-12> look_at <0,1,0> }",
             "light_source { <10,20,-10> rgb 1 } light_source { <-12,9,-4> rgb 0.4 }",
             "plane { y,0 pigment { checker rgb 0.9 rgb 0.2 } finish { reflection 0.2 } }"]
    for _ in range(70):
        x, y, z = (rng.uniform(-5, 5), rng.uniform(0.3, 4), rng.uniform(-3, 6))
        scene.append(f"sphere {{ <{x:.4f},{y:.4f},{z:.4f}>, {rng.uniform(0.2, 0.8):.4f} pigment {{ rgbt "
                     f"<{rng.random():.3f},{rng.random():.3f},{rng.random():.3f},0.3> }} "
                     f"finish {{ reflection 0.3 phong 0.7 }} interior {{ ior 1.3 }} }}")
    (directory / "scene.pov").write_text("\n".join(scene) + "\n")
    width, height = (int(side * math.sqrt(scale)) for side in (440, 330))
    # Without jitter: which thread gets which random numbers differs between any two runs.
    return Spec(["/usr/bin/povray", "+Iscene.pov", "+OOUT/image.ppm", "+FP", f"+W{width}", f"+H{height}", "+A0.1", "-J",
                 "+WT2", "-D", "-GA"], ["image.ppm"],
                # Comments in the header tell when it was rendered.
                normalize_file=lambda data: re.sub(rb"(?m)^#.*\n", b"", data[:400]) + data[400:])


def octave(directory, scale):
    need("/usr/bin/octave-cli")
    (directory / "work.m").write_text(f"steps = {220 * scale};" + """
rand("seed", 5); randn("seed", 6);
n = 500; total = 0; worst = 0;
for k = 1:steps
  A = rand(n) + n * eye(n); b = randn(n, 4);
  x = A \\ b;
  worst = max(worst, norm(A * x - b));
  total = total + sum(abs(x(:)));
end
printf("%.15g %d\\n", total, worst < 1e-9);
""")
    return Spec(["/usr/bin/octave-cli", "--norc", "--no-history", "--quiet", "work.m"], [],
                env={"OPENBLAS_NUM_THREADS": "2"})


def stress_ng(_directory, scale):
    """Always a tree: the program, its stressor, and a child of that which may run out of memory."""
    need("/usr/bin/stress-ng")
    return Spec(["/usr/bin/stress-ng", "--vm", "1", "--vm-bytes", "64M", "--vm-method", "flip", "--verify",
                 "--timeout", f"{8 * scale}s", "--temp-path", "OUT"], [], normalize=lambda text: "")


PROGRAMS = {make.__name__: make for make in
            (blastn, python3, xz, zstd, sqlite3, cc1, povray, octave, stress_ng)}


@dataclasses.dataclass
class Outcome:
    status: int
    stdout: bytes
    stderr: bytes
    digests: dict


def collect(spec, out, status, stdout, stderr):
    clean = spec.normalize_file or (lambda data: data)
    digests = {name: hashlib.sha256(clean((out / name).read_bytes())).hexdigest()
               if (out / name).exists() else "missing" for name in spec.outputs}
    stdout = stdout.replace(str(out).encode(), b"OUT")
    if spec.normalize:
        stdout = spec.normalize(stdout)
    return Outcome(status, stdout, stderr, digests)


def argv_for(spec, out):
    return [arg.replace("OUT", str(out)) for arg in spec.argv]


def environment(spec):
    return {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", **spec.env}


def run_here(spec, directory, out):
    done = subprocess.run(argv_for(spec, out), cwd=directory, env=environment(spec), timeout=LIMIT_S,
                          stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return collect(spec, out, done.returncode, done.stdout, done.stderr)


class Moving:
    """The program in a capsule, attached, and the moves that it goes through."""

    def __init__(self, cluster, spec, directory, out):
        self.cluster, self.spec, self.out = cluster, spec, out
        self.name = f"p{os.getpid()}"
        variables = {**environment(spec), "GODWIT_TEST_PROGRAM": self.name}
        env = [word for key, value in variables.items() for word in ("--env", f"{key}={value}")]
        # Files, not pipes: nobody has to read while we look elsewhere.
        self.files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
        self.process = subprocess.Popen(
            [cluster.godwit, "run", "--name", self.name, "--node", "n1", "--cwd", str(directory), *env, "--",
             *argv_for(spec, out)], env=cluster.env, cwd="/", stdin=subprocess.DEVNULL,
            stdout=self.files[0], stderr=self.files[1])
        self.deadline = time.monotonic() + LIMIT_S
        self.node = "n1"

    def row(self):
        rows = json.loads(self.cluster.must("ps", "--json").stdout)
        rows = rows["capsules"] if isinstance(rows, dict) else rows
        return next((row for row in rows if row["name"] == self.name), None)

    def ended(self):
        return self.process.poll() is not None

    def ticks(self):
        """Processor time of the program and its children on this node; None while it isn't there."""
        row = self.row()
        if not row or row["state"] != "running" or not row["pid"]:
            return None
        try:
            return self.ticks_of(self.host_pid(row))
        except (FileNotFoundError, ProcessLookupError):
            return None

    def ticks_of(self, pid):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks = int(fields[11]) + int(fields[12])
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in pathlib.Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                ticks += self.ticks_of(child)
        return ticks

    def host_pid(self, row):
        """A node of a local cluster numbers its processes itself: NSpid has both numbers."""
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                status = pathlib.Path(entry.path, "status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            ids = re.search(r"^NSpid:\s*(.*)$", status, re.M)
            if ids and str(row["pid"]) in ids[1].split() and self.is_ours(entry.name):
                return int(entry.name)
        raise FileNotFoundError("its process")

    def is_ours(self, pid):
        try:
            return b"GODWIT_TEST_PROGRAM=" + self.name.encode() in \
                pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False

    def wait_for_work(self):
        """Until it has worked on this node; False: it has ended."""
        first = None
        while time.monotonic() < self.deadline:
            if self.ended():
                return False
            now = self.ticks()
            first = now if first is None else first
            if now is not None and now - first >= WORK_TICKS:
                return True
            self.pause()
        raise Failed(f"it doesn't work on {self.node}")

    def pause(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=0.02)

    def move(self, mode):
        target = "n2" if self.node == "n1" else "n1"
        result = self.cluster.run("migrate", self.name, target, "--mode", mode, "--json")
        if result.status != 0:
            return result
        self.node = target
        report = json.loads(result.stdout)
        print(f"  to {target}, {mode}: total {report['total_us'] / 1000:.1f} ms, downtime "
              f"{report['downtime_us'] / 1000:.1f} ms, {report['bytes_sent'] >> 10} KiB", flush=True)
        return result

    def finish(self):
        try:
            status = self.process.wait(timeout=max(1, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Failed(f"hangs, on {self.node}") from None
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read())
        return collect(self.spec, self.out, status, *texts)

    def end(self):
        if not self.ended():
            self.cluster.run("kill", self.name)
            self.process.kill()
        self.process.wait()
        for file in self.files:
            file.close()


def go_through_moves(moving, moves):
    done = 0
    for index in range(moves):
        if not moving.wait_for_work():
            break
        result = moving.move(MODES[index % len(MODES)])
        if result.status == 0:
            done += 1
        elif moving.ended() or moving.row() is None or moving.row()["state"] != "running":
            break  # It ended while it was moved.
        else:
            raise Failed(f"move {index + 1} failed: {result.text()}")
    if done < MOVES_MIN:
        raise Failed(f"it ended after {done} moves: too short, or it broke")


def compare(reference, moved):
    for name, digest in reference.digests.items():
        if digest == "missing":
            raise Failed(f"the run that never moved made no {name}: {reference.stderr[-2000:]!r}")
    differences = [name for name, digest in reference.digests.items() if moved.digests[name] != digest]
    if reference.status != moved.status:
        differences.append(f"exit status ({reference.status}, {moved.status})")
    if reference.stdout != moved.stdout:
        differences.append(f"stdout ({reference.stdout[-500:]!r}, {moved.stdout[-500:]!r})")
    if reference.status != 0:
        raise Failed(f"the run that never moved failed: {reference.stderr[-2000:]!r}")
    if differences:
        raise Failed(f"differs from the run that never moved: {', '.join(differences)}; "
                     f"stderr {moved.stderr[-1000:]!r}")


def run(name, cluster, moves):
    directory = pathlib.Path(tempfile.mkdtemp(prefix=f"program-{name}-", dir=cluster.shared_dir()))
    try:
        outs = [directory / which for which in ("here", "moved")]
        for out in outs:
            out.mkdir()
        scale = 1
        while True:
            spec = PROGRAMS[name](directory, scale)
            began = time.monotonic()
            reference = run_here(spec, directory, outs[0])
            took = time.monotonic() - began
            print(f"  never moved: {took:.1f} s", flush=True)
            if took >= SECONDS_MIN or scale >= SCALE_MAX:
                break
            scale = min(SCALE_MAX, scale * math.ceil(1.5 * SECONDS_MIN / took))
            shutil.rmtree(outs[0])
            outs[0].mkdir()
        began = time.monotonic()
        moving = Moving(cluster, spec, directory, outs[1])
        try:
            go_through_moves(moving, moves)
            compare(reference, moving.finish())
        finally:
            moving.end()
        print(f"  moved: {time.monotonic() - began:.1f} s", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*PROGRAMS, "list"])
    parser.add_argument("--godwit")
    parser.add_argument("--moves", type=int, default=MOVES)
    options = parser.parse_args()
    if options.name == "list":
        print("\n".join(PROGRAMS))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Runs every `finally` on the way.
    if os.geteuid() != 0:
        print("skip: needs root")
        return SKIP_EXIT_CODE
    try:
        with cluster_to_use(os.path.abspath(options.godwit)) as cluster:
            run(options.name, cluster, options.moves)
    except Skipped as reason:
        print(f"skip: {reason}")
        return SKIP_EXIT_CODE
    except (Failed, clusters.CommandFailed) as failure:
        print(f"FAILED: {options.name}: {failure}")
        return 1
    print(f"ok: {options.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
