"""One QEMU machine: its process, and commands run in it through a virtio serial port."""
import contextlib
import json
import os
import pathlib
import select
import shutil
import socket
import subprocess
import threading
import time

MEMORY_MIB = 1280
PROCESSORS = 2
BOOT_LIMIT_S = 900
COMMAND_LIMIT_S = 600
PORT_NAME = "org.godwit.test"
# Under emulation the checks for processor bugs cost time in every system call, the watchdogs of
# clocks and processors see a machine that isn't theirs.
KERNEL_OPTIONS = ("console=ttyS0 quiet panic=-1 mitigations=off nowatchdog no_timer_check "
                  "random.trust_cpu=on systemd.show_status=0 systemd.log_level=warning "
                  "systemd.unified_cgroup_hierarchy=1 apparmor=0 audit=0")


class MachineFailed(Exception):
    pass


class EmulatorCrashed(MachineFailed):
    """QEMU ended by a signal, which says nothing of the programs in it."""


class Result:
    def __init__(self, answer):
        self.status = answer["status"]
        self.stdout = answer["stdout"]
        self.stderr = answer["stderr"]

    def text(self):
        return (self.stdout + self.stderr).strip()


class Machine:
    """Started by `start`, gone after `end`, whatever happened between. Its disks are never written:
    what it changes goes to a temporary file of QEMU, which has no name."""

    def __init__(self, name, image, kernel, cpu, directory):
        self.name = name
        self.cpu = cpu
        self.image = image
        self.kernel = image.kernels[kernel]
        self.directory = pathlib.Path(directory)
        self.console = self.directory / f"{name}.console"
        self.release = None
        self.boot_s = None
        self._process = None
        self._channel = None
        self._reader = None
        self._lock = threading.Condition()
        self._answers = {}
        self._next_id = 0
        self._lost = None

    def start(self, tools, link_fd, mac):
        path = self.directory / f"{self.name}.port"
        qemu = self.image.qemu
        argv = [
            qemu.program, "-L", f"{qemu.root}/usr/share/qemu",
            "-L", f"{qemu.root}/usr/share/seabios",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", self.cpu,
            "-smp", str(PROCESSORS), "-m", str(MEMORY_MIB), "-no-reboot",
            "-kernel", self.kernel.vmlinuz, "-initrd", self.kernel.initramfs,
            "-append", f"{KERNEL_OPTIONS} systemd.hostname={self.name}",
            "-drive", f"file={self.image.root},format=raw,if=virtio,snapshot=on",
            "-drive", f"file={tools},format=raw,if=virtio,readonly=on",
            "-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=port,path={path},server=on,wait=off",
            "-device", f"virtserialport,chardev=port,name={PORT_NAME}",
            "-device", "virtio-rng-pci",
            "-netdev", f"socket,id=link,fd={link_fd}",
            "-device", f"virtio-net-pci,netdev=link,mac={mac},romfile="]
        self._began = time.monotonic()
        with open(self.directory / f"{self.name}.qemu", "wb") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(link_fd,),
                env={**qemu.env, "TMPDIR": str(self.directory)}, preexec_fn=_end_with_parent)
        self._connect(path)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _connect(self, path):
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = time.monotonic() + 30
        while True:
            try:
                self._channel.connect(str(path))
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise MachineFailed(f"QEMU didn't start: {self._qemu_says()}") from None
                select.select([], [], [], 0.05)

    def _read(self):
        rest = b""
        try:
            while data := self._channel.recv(65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
            reason = "QEMU has ended"
        except (OSError, ValueError) as error:
            reason = str(error)
        with self._lock:
            self._lost = reason
            self._lock.notify_all()

    def _take(self, message):
        with self._lock:
            if "up" in message:
                self.release = message["up"]
                self.boot_s = time.monotonic() - self._began
            else:
                self._answers[message["id"]] = message
            self._lock.notify_all()

    def _wait(self, condition, limit_s, what):
        with self._lock:
            self._lock.wait_for(lambda: condition() or self._lost, timeout=limit_s)
            if condition():
                return
            raise self._failure()(f"{self.name}: {what}: {self._lost or f'not within {limit_s} s'}\n"
                                  f"{self._qemu_says()}{self.console_tail()}")

    def _failure(self):
        if not self._lost or self._process is None:
            return MachineFailed
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        ended = self._process.returncode
        return EmulatorCrashed if ended is not None and ended < 0 else MachineFailed

    def wait_booted(self):
        self._wait(lambda: self.release, BOOT_LIMIT_S, "boot")

    def run(self, *argv, env=None, limit_s=COMMAND_LIMIT_S):
        with self._lock:
            self._next_id += 1
            number = self._next_id
            order = {"id": number, "argv": argv, "env": env or {}, "limit_s": limit_s}
            self._channel.sendall(json.dumps(order).encode() + b"\n")
        self._wait(lambda: number in self._answers, limit_s + 60, f"command {' '.join(argv)}")
        with self._lock:
            return Result(self._answers.pop(number))

    def set_clock(self):
        """To ours. A machine without a network reads its clock at boot to the second only."""
        with self._lock:
            self._channel.sendall(json.dumps({"set_clock": time.time()}).encode() + b"\n")

    def must(self, *argv, **how):
        result = self.run(*argv, **how)
        if result.status != 0:
            raise MachineFailed(f"{self.name}: {' '.join(argv)}: status {result.status}\n"
                                f"{result.text()}")
        return result.stdout

    def console_tail(self, lines=25):
        try:
            text = self.console.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(f"  {self.name} console: {line}" for line in text[-lines:])

    def _qemu_says(self):
        text = (self.directory / f"{self.name}.qemu").read_text(errors="replace").strip()
        return f"  qemu: {text}\n" if text else ""

    def end(self):
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
        if self._channel is not None:
            self._channel.close()
        if self._reader is not None:
            self._reader.join(5)


def _end_with_parent():
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: also when we are killed.


def make_disk(path, staged):
    """An ext4 file system with what is in the directory `staged`."""
    used = sum(f.stat().st_size for f in pathlib.Path(staged).rglob("*") if f.is_file())
    kib = (used >> 10) * 5 // 4 + 16384
    done = subprocess.run([shutil.which("mke2fs"), "-q", "-t", "ext4", "-O", "^has_journal", "-d",
                           staged, path, f"{kib}k"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MachineFailed(f"mke2fs: {done.stderr}")
