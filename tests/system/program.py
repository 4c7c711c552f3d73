"""A tracee as a child process of ours: its protocol (ready, check, ok), its lines, its end.

The child is the tracee itself, or an attached `godwit run` that passes everything through: whoever
drives it can't tell, which is what the tests are about.
"""
import os
import pty
import queue
import re
import subprocess
import termios
import threading
import time

SKIP_EXIT_CODE = 77
FEED_PAUSE_S = 0.002


class Failed(Exception):
    """The test failed; the text says why."""


class NeverReady(Failed):
    """It failed before anything was done to it."""


class Skipped(Exception):
    """The tracee said that this machine can't do what it is about."""


class Program:
    """Threads read its output line by line, so that it never waits for us."""

    def __init__(self, argv, *, env, uid, terminal, limit_s):
        self.deadline = time.monotonic() + limit_s
        self.lines = {"stdout": [], "stderr": []}
        self._news = queue.Queue()
        self._feeding = None
        self._terminal_fd = None
        ids = {} if uid == os.geteuid() else {"user": uid, "group": uid, "extra_groups": []}
        if terminal:
            self._terminal_fd, inner = pty.openpty()
            termios.tcsetwinsize(inner, (50, 132))
            os.fchmod(inner, 0o666)
            self._process = subprocess.Popen(
                argv, env=env, cwd="/", stdin=inner, stdout=inner, stderr=inner,
                start_new_session=True, preexec_fn=_take_terminal, **ids)
            os.close(inner)
            self._stdin_fd = self._terminal_fd
            outputs = {"stdout": os.dup(self._terminal_fd)}
        else:
            self._process = subprocess.Popen(
                argv, env=env, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, start_new_session=True, **ids)
            self._stdin_fd = self._process.stdin.fileno()
            outputs = {"stdout": self._process.stdout.fileno(),
                       "stderr": self._process.stderr.fileno()}
        self._readers = [threading.Thread(target=self._read, args=item, daemon=True)
                         for item in outputs.items()]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, fd):
        rest = b""
        while True:
            try:
                data = os.read(fd, 65536)
            except OSError:  # EIO: the other end of the terminal is closed.
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._add(stream, line)
        if rest:
            self._add(stream, rest)
        self._news.put((stream, None))

    def _add(self, stream, line):
        text = line.decode(errors="replace").rstrip("\r")
        self.lines[stream].append(text)
        if not re.fullmatch(r"(error )?line \d+", text):
            self._news.put((stream, text))

    def remaining_s(self):
        return max(0.0, self.deadline - time.monotonic())

    def wait_ready(self):
        while True:
            try:
                stream, line = self._news.get(timeout=self.remaining_s())
            except queue.Empty:
                raise NeverReady("never became ready") from None
            if stream != "stdout":
                continue
            if line == "ready":
                return
            if line is None:
                raise self._ended_before_ready()

    def _ended_before_ready(self):
        status = self._wait()
        reasons = [line[6:] for line in self.lines["stdout"] if line.startswith("skip: ")]
        if status == SKIP_EXIT_CODE and reasons:
            return Skipped(reasons[0])
        return NeverReady(f"ended with {status} before it was ready")

    def pause(self, seconds):
        """Lets it run for a while, unless it ends by itself."""
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass

    def feed_numbered_lines(self):
        """From now until check(): lines "line 0", "line 1"... on its stdin."""
        stop = threading.Event()

        def feed():
            number = 0
            while not stop.is_set():
                block = "".join(f"line {n}\n" for n in range(number, number + 20))
                number += 20
                self._write(block)
                stop.wait(FEED_PAUSE_S)

        thread = threading.Thread(target=feed, daemon=True)
        thread.start()
        self._feeding = (stop, thread)

    def _write(self, text):
        data = text.encode()
        try:
            while data:
                data = data[os.write(self._stdin_fd, data):]
        except OSError as error:
            raise Failed(f"its stdin is closed: {error}") from error

    def check(self, lines):
        """Sends `check`, waits for its end and judges what it said."""
        if self._feeding:
            stop, thread = self._feeding
            stop.set()
            thread.join(self.remaining_s())
            if thread.is_alive():
                raise Failed("doesn't read its stdin any more")
        self._write("check\n")
        status = self._wait()
        for reader in self._readers:
            reader.join(self.remaining_s())
        failures = [line for line in self.lines["stdout"] if line.startswith("FAIL")]
        if failures:
            raise Failed("; ".join(failures))
        if status != 0:
            raise Failed(f"ended with {status}")
        if self.lines["stdout"][-1:] != ["ok"]:
            raise Failed("ended with 0, but without saying ok")
        if "stdout" in lines:
            self._check_numbers("stdout", r"line (\d+)", r"lines (\d+)")
        if "stderr" in lines:
            self._check_numbers("stderr", r"error line (\d+)", r"error lines (\d+)")

    def _check_numbers(self, stream, one, total):
        """Every number once and in order, as many as the program says that it wrote."""
        numbers = [int(m[1]) for line in self.lines[stream] if (m := re.fullmatch(one, line))]
        totals = [int(m[1]) for line in self.lines["stdout"] if (m := re.fullmatch(total, line))]
        for index, number in enumerate(numbers):
            if index != number:
                raise Failed(f"{stream}: line {index} says {number}")
        if totals != [len(numbers)]:
            raise Failed(f"{stream}: {len(numbers)} lines came, the program wrote {totals}")

    def _wait(self):
        try:
            return self._process.wait(timeout=self.remaining_s())
        except subprocess.TimeoutExpired:
            raise Failed("hangs") from None

    def transcript(self):
        text = []
        for stream, lines in self.lines.items():
            shown = lines if len(lines) <= 60 else lines[:20] + ["..."] + lines[-39:]
            text += [f"  {stream}: {line}" for line in shown]
        return "\n".join(text)

    def end(self):
        """Whatever state it is in: afterwards it is gone, and its descriptors are closed."""
        if self._feeding:
            self._feeding[0].set()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(5)
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            if file:
                try:
                    file.close()
                except OSError:  # Bytes that nobody will read any more.
                    pass
        if self._terminal_fd is not None:
            os.close(self._terminal_fd)
            self._terminal_fd = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def _take_terminal():
    import fcntl
    import termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
