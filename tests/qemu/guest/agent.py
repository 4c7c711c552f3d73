"""Runs commands for the host, which speaks through a virtio serial port: JSON objects, one a line.

    {"id": 1, "argv": [...], "env": {...}, "limit_s": 10}      what to run
    {"set_clock": 1795895170.7}                                the time that it is
    {"id": 1, "status": 0, "stdout": "...", "stderr": "..."}   how it ended; -1: over its limit

Commands run side by side. The first line says that the machine is up.
"""
import json
import os
import pathlib
import select
import signal
import subprocess
import threading
import time

PORT_NAME = "org.godwit.test"
PORT_LIMIT_S = 600


def open_port():
    """The driver learns the ports' names by messages, some time after it was loaded."""
    subprocess.run(["modprobe", "virtio_console"], check=True)
    deadline = time.monotonic() + PORT_LIMIT_S
    while time.monotonic() < deadline:
        for name in pathlib.Path("/sys/class/virtio-ports").glob("*/name"):
            device = pathlib.Path("/dev", name.parent.name)
            if name.read_text(encoding="ascii").strip() == PORT_NAME and device.exists():
                return os.open(device, os.O_RDWR)
        select.select([], [], [], 0.05)
    raise SystemExit(f"no virtio port {PORT_NAME} within {PORT_LIMIT_S} s")


class Agent:
    def __init__(self, fd):
        self.fd = fd
        self.lock = threading.Lock()

    def send(self, message):
        data = json.dumps(message).encode() + b"\n"
        with self.lock:
            while data:
                data = data[os.write(self.fd, data):]

    def run(self, order):
        # A session of its own: what the command leaves behind ends with it when it hangs.
        child = subprocess.Popen(order["argv"], env={**os.environ, **order["env"]}, cwd="/",
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, start_new_session=True)
        try:
            output = child.communicate(timeout=order["limit_s"])
            status = child.returncode
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            output = child.communicate()
            status = -1
        stdout, stderr = (data.decode(errors="replace") for data in output)
        self.send({"id": order["id"], "status": status, "stdout": stdout, "stderr": stderr})

    def answer(self, order):
        if "set_clock" in order:
            time.clock_settime(time.CLOCK_REALTIME, order["set_clock"])
            return
        try:
            self.run(order)
        except OSError as error:
            self.send({"id": order["id"], "status": 127, "stdout": "", "stderr": str(error)})

    def serve(self):
        self.send({"up": os.uname().release})
        rest = b""
        while True:
            data = os.read(self.fd, 65536)
            if not data:
                raise SystemExit("the host has closed the port")
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                threading.Thread(target=self.answer, args=(json.loads(line),), daemon=True).start()


Agent(open_port()).serve()
