"""Two machines with different kernels, joined by a wire, each with the real godwitd."""
import json
import pathlib
import shutil
import socket
import subprocess
import time

from machine import Machine, MachineFailed, make_disk

TESTS = pathlib.Path(__file__).resolve().parent.parent
NODES = {"n1": "6.12", "n2": "6.1"}
# Without AVX and protection keys the XSAVE area ends after its header: 576 bytes instead of 2696.
LESSER_CPU = "max,avx=off,avx2=off,pku=off"
CPUS = {"same": {"n1": "max", "n2": "max"}, "lesser": {"n1": LESSER_CPU, "n2": "max"}}
NETWORK = "10.77"              # Of the wire, which nothing else is connected to.
NODE_PORT = 7717
SOCKET = "/run/godwit/godwitd.sock"
GODWIT = "/opt/godwit/bin/godwit"
PROGRAMS = "/opt/godwit/programs"
DAEMON_LIMIT_S = 600
LIMIT_FACTOR = 10              # Limits of cases and commands, for the slowness of emulation.

CONFIG = """\
cluster = "qemu"
node = "{node}"
libexec_dir = "/opt/godwit/libexec"
listen = "{address}:{port}"
capsule_network = "{network}.0.0/16"
capsule_range = "{network}.{number}.0/24"

[tls]
ca = "/etc/godwit/ca.crt"
cert = "/etc/godwit/node.crt"
key = "/etc/godwit/node.key"
"""
PEER = '\n[[peers]]\nname = "{node}"\naddress = "{address}:{port}"\n'

# As an administrator would set a machine up. The bridge has a MAC of its own, else it would take
# those of capsules that come and go.
SET_UP = """
set -eu
modprobe -a virtio_net bridge veth
cp /opt/godwit/nodes/$NODE/* /etc/godwit/
ip link add godwit0 address 02:67:00:00:00:$NUMBER type bridge
ip link set eth0 master godwit0
ip link set eth0 up
ip link set godwit0 up
ip address add $ADDRESS/16 dev godwit0
systemctl start godwitd
"""


def address_of(number):
    return f"{NETWORK}.0.{number}"


def openssl(*argv):
    done = subprocess.run(["openssl", *argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MachineFailed(f"openssl {' '.join(argv)}: {done.stderr}")


def make_certificates(directory):
    """A CA for this run, and a certificate for each node: its name, its address, both uses."""
    ca, ca_key = directory / "ca.crt", directory / "ca.key"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", str(ca_key), "-out", str(ca), "-days", "2",
            "-subj", "/CN=godwit cluster qemu",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for number, node in enumerate(NODES, 1):
        home = directory / node
        home.mkdir()
        shutil.copy(ca, home / "ca.crt")
        extensions = home / "extensions"
        extensions.write_text("basicConstraints=critical,CA:FALSE\n"
                              "keyUsage=critical,digitalSignature\n"
                              "extendedKeyUsage=serverAuth,clientAuth\n"
                              f"subjectAltName=DNS:{node},IP:{address_of(number)}\n")
        request, key = home / "request", home / "node.key"
        openssl("req", *curve, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={node}")
        openssl("x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key),
                "-CAcreateserial", "-days", "2", "-extfile", str(extensions),
                "-out", str(home / "node.crt"))
        request.unlink()
        extensions.unlink()
    for left in directory.glob("ca.*"):
        left.unlink()


def stage(directory, binaries, programs, cases):
    """What goes to /opt/godwit of both machines."""
    (directory / "bin").mkdir(parents=True)
    (directory / "libexec").mkdir()
    (directory / "programs").mkdir()
    (directory / "nodes").mkdir()
    shutil.copy(TESTS / "qemu/guest/agent.py", directory)
    for binary in binaries:
        place = "bin" if binary.name == "godwit" else "libexec"
        shutil.copy2(binary, directory / place)
    for program in sorted({case.program for case in cases}):
        shutil.copy2(programs / program, directory / "programs")
    # The judge of a case runs on n1 as it does here; the manifest wants to see the sources.
    for folder in ("system", "tracees"):
        shutil.copytree(TESTS / folder, directory / "tests" / folder,
                        ignore=shutil.ignore_patterns("__pycache__"))
    make_certificates(directory / "nodes")
    for number, node in enumerate(NODES, 1):
        text = CONFIG.format(node=node, address=address_of(number), port=NODE_PORT,
                             network=NETWORK, number=number)
        for peer_number, peer in enumerate(NODES, 1):
            if peer != node:
                text += PEER.format(node=peer, address=address_of(peer_number), port=NODE_PORT)
        (directory / "nodes" / node / "godwit.toml").write_text(text)


class Pair:
    """`with Pair(...) as pair`: whatever happens, no process and no file is left afterwards."""

    def __init__(self, image, cpus, directory, say):
        self.directory = pathlib.Path(directory)
        self.say = say
        self.machines = {node: Machine(node, image, kernel, CPUS[cpus][node], directory)
                         for node, kernel in NODES.items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        for machine in self.machines.values():
            machine.end()

    def start(self, binaries, programs, cases):
        stage(self.directory / "stage", binaries, programs, cases)
        tools = self.directory / "tools.ext4"
        make_disk(tools, self.directory / "stage")
        ends = socket.socketpair()  # The wire: needs no port and no name.
        for number, (machine, end) in enumerate(zip(self.machines.values(), ends), 1):
            machine.start(tools, end.fileno(), f"52:54:00:67:00:{number:02x}")
            end.close()
        for machine in self.machines.values():
            machine.wait_booted()
            self.say(f"{machine.name}: Linux {machine.release}, up after {machine.boot_s:.1f} s")
        for machine in self.machines.values():
            machine.set_clock()  # Nodes of a cluster have the same time, within milliseconds.
        for number, machine in enumerate(self.machines.values(), 1):
            machine.must("sh", "-c", SET_UP, env={"NODE": machine.name, "NUMBER": f"{number:02x}",
                                                  "ADDRESS": address_of(number)})
        self._wait_connected()

    def _wait_connected(self):
        """Until each daemon sees the other as alive."""
        deadline = time.monotonic() + DAEMON_LIMIT_S
        for machine in self.machines.values():
            while True:
                result = machine.run(GODWIT, "nodes", "--json", env={"GODWIT_SOCKET": SOCKET})
                if result.status == 0 and self._all_alive(result.stdout):
                    break
                if time.monotonic() > deadline:
                    log = machine.run("journalctl", "-u", "godwitd", "-n", "30", "--no-pager")
                    raise MachineFailed(f"{machine.name}: godwitd isn't connected: "
                                        f"{result.text()}\n{log.text()}")

    @staticmethod
    def _all_alive(text):
        rows = json.loads(text)
        rows = rows["nodes"] if isinstance(rows, dict) else rows
        return {row["name"] for row in rows if row.get("alive", True)} == set(NODES)

    def doctor(self, node):
        text = self.machines[node].must(GODWIT, "doctor", "--json", env={"GODWIT_SOCKET": SOCKET})
        return json.loads(text)

    def history(self, node):
        text = self.machines[node].must(GODWIT, "history", "--json", env={"GODWIT_SOCKET": SOCKET})
        rows = json.loads(text)
        return rows["migrations"] if isinstance(rows, dict) else rows

    def run_case(self, case, uid, modes, start, limit_s):
        """Moves one tracee to and fro, once for each of `modes`; it starts on `start`, as its judge
        does."""
        (other,) = set(NODES) - {start}
        return self.machines[start].run(
            "/usr/bin/python3", "/opt/godwit/tests/system/run_tracee.py", "moved",
            "--programs", PROGRAMS, "--godwit", GODWIT, "--user", str(uid),
            "--modes", ",".join(modes), "--nodes", f"{start},{other}", "--kernels-differ", case.name,
            env={"GODWIT_SOCKET": SOCKET, "PYTHONDONTWRITEBYTECODE": "1",
                 "GODWIT_TEST_LIMIT_FACTOR": str(LIMIT_FACTOR)},
            limit_s=limit_s)

    def can_migrate(self, source, target):
        """The reasons against moving a program that began on `source`, by `godwit can-migrate`. Not
        a tracee: detached it reads the end of its stdin, says so and is gone."""
        machine, name = self.machines[source], "can-migrate"
        env = {"GODWIT_SOCKET": SOCKET}
        machine.must(GODWIT, "run", "-d", "--name", name, "--", "/usr/bin/sleep", "infinity", env=env)
        try:
            result = machine.run(GODWIT, "can-migrate", name, target, "--json", env=env)
            answer = json.loads(result.stdout)
            if "reasons" not in answer:
                raise MachineFailed(f"{source}: can-migrate: {result.text()}")
            return answer["reasons"]
        finally:
            machine.must(GODWIT, "kill", name, env=env)

    def logs(self):
        """What the daemons and kernels said, for a failure."""
        text = []
        for machine in self.machines.values():
            try:
                log = machine.run("journalctl", "-b", "-n", "60", "--no-pager", limit_s=30).text()
                text.append(f"--- journal of {machine.name}\n{log}")
            except MachineFailed as error:
                text.append(str(error))
            text.append(machine.console_tail())
        return "\n".join(text)
