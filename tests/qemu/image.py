"""The file system, kernels and initramfs of the machines, made from Debian packages and cached.

Everything comes from Debian's mirrors through an apt configuration of our own below the cache
directory: the machine's sources are neither read nor changed (backports are needed for 6.12). One
read-only image serves both machines; what differs comes by the kernel's command line and the disk
of tools. The key of the cache is the hash of all that goes in.
"""
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
SECURITY = "http://deb.debian.org/debian-security"
SOURCES = "".join(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for mirror, suite in (
    (MIRROR, "bookworm"), (MIRROR, "bookworm-updates"), (SECURITY, "bookworm-security"),
    (MIRROR, "bookworm-backports")))
# The release that each machine's kernel is taken from; its meta package names the present version.
KERNELS = {"6.12": "bookworm-backports", "6.1": "bookworm"}
PACKAGES = ("systemd-sysv", "kmod", "iproute2", "procps", "python3")
# QEMU 7.2 of bookworm is no good: kernel 6.12 dies of a double fault after its cmpxchg16b.
QEMU_RELEASE = "bookworm-backports"
TOOLS = ("mmdebstrap", "mke2fs", "apt-get", "dpkg-deb", "openssl")
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
# Loaded by the guest's own modprobe later: virtio_net, virtio_console, bridge, veth, overlay.
IMAGE_BYTES = 1536 << 20
UNUSED_UNITS = ("systemd-timesyncd.service", "apt-daily.timer", "apt-daily-upgrade.timer",
                "e2scrub_all.timer", "e2scrub_reap.service", "dpkg-db-backup.timer", "fstrim.timer",
                "systemd-logind.service", "getty@tty1.service", "serial-getty@ttyS0.service",
                "systemd-networkd-wait-online.service", "systemd-update-utmp.service",
                "systemd-update-utmp-runlevel.service", "systemd-journal-flush.service",
                "systemd-tmpfiles-clean.timer", "systemd-random-seed.service",
                "systemd-firstboot.service", "systemd-machine-id-commit.service",
                "systemd-binfmt.service", "systemd-boot-update.service",
                "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount",
                "proc-sys-fs-binfmt_misc.automount", "systemd-pstore.service")


class NoImage(Exception):
    """It can't be made here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    name: str        # "6.12"
    vmlinuz: str
    initramfs: str


@dataclasses.dataclass(frozen=True)
class Qemu:
    """Unpacked below `root`, with those libraries that the machine hasn't installed."""
    root: str

    @property
    def program(self):
        return f"{self.root}/usr/bin/qemu-system-x86_64"

    @property
    def env(self):
        libraries = "lib/x86_64-linux-gnu"  # Packages of bookworm may have either place.
        return {**os.environ, "LD_LIBRARY_PATH": f"{self.root}/usr/{libraries}:{self.root}/{libraries}",
                "QEMU_MODULE_DIR": f"{self.root}/usr/{libraries}/qemu"}

    def why_not(self):
        """Why it doesn't start; empty: it does."""
        try:
            done = subprocess.run([self.program, "--version"], env=self.env, capture_output=True,
                                  stdin=subprocess.DEVNULL, text=True, timeout=60, check=False)
        except OSError as error:
            return str(error)
        return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()


@dataclasses.dataclass(frozen=True)
class Image:
    root: str
    kernels: dict
    qemu: Qemu


def missing_tools():
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def run(argv, limit_s=600, **how):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=limit_s, check=False, **how)
    if done.returncode != 0:
        raise NoImage(f"{' '.join(map(str, argv))}: status {done.returncode}\n"
                      f"{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def library_packages(binaries):
    """The Debian packages with the shared libraries that our binaries need, by ldd and dpkg."""
    libraries = set()
    for binary in binaries:
        done = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
        libraries |= set(re.findall(r"=> (/\S+)", done.stdout))  # Static ones have none.
    packages = set()
    for library in libraries:
        # dpkg knows a file by the path that it was unpacked to, /lib or /usr/lib.
        real = os.path.realpath(library)
        for path in (real, real.removeprefix("/usr"), library):
            done = subprocess.run(["dpkg", "-S", path], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                packages.add(done.stdout.split(":")[0])
                break
        else:
            raise NoImage(f"no package has {library}")
    return packages


class Apt:
    """apt with sources, lists and cache of its own."""

    def __init__(self, directory):
        self.directory = directory
        for sub in ("state/lists/partial", "cache/archives/partial", "etc"):
            (directory / sub).mkdir(parents=True, exist_ok=True)
        self.sources = directory / "etc/sources.list"
        self.sources.write_text(SOURCES)
        self.options = [f"-oDir::Etc::sourcelist={self.sources}", "-oDir::Etc::sourceparts=/dev/null",
                        f"-oDir::State={directory}/state", f"-oDir::Cache={directory}/cache",
                        "-oDir::State::status=/dev/null", "-oAcquire::Retries=3",
                        "-oAcquire::Languages=none", "-oAPT::Sandbox::User=root"]

    def update(self):
        run(["apt-get", *self.options, "update"])

    def unpack_with_needs(self, package, release, into):
        """A package and all that it depends on, as far as this machine has it not installed. Nothing
        of the machine changes: dpkg's state is read, and what was downloaded is only unpacked."""
        archives = self.directory / "cache/archives"
        for deb in archives.glob("*.deb"):
            deb.unlink()
        run(["apt-get", *self.options, "-oDir::State::status=/var/lib/dpkg/status",
             "-oDebug::NoLocking=1", "-t", release, "--no-install-recommends", "--download-only",
             "--reinstall", "-y", "install", package])
        for deb in archives.glob("*.deb"):
            run(["dpkg-deb", "-x", deb, into])

    def kernel_package(self, release):
        """The package that linux-image-cloud-amd64 of `release` stands for."""
        text = run(["apt-cache", *self.options, "-t", release, "show", "--no-all-versions",
                    "linux-image-cloud-amd64"])
        found = re.search(r"^Depends: (linux-image-\S+)", text, re.MULTILINE)
        if not found:
            raise NoImage(f"{release} has no linux-image-cloud-amd64")
        return found[1]

    def unpack(self, package, into):
        with tempfile.TemporaryDirectory(dir=self.directory) as here:
            run(["apt-get", *self.options, "download", package], cwd=here)
            for deb in pathlib.Path(here).glob("*.deb"):
                run(["dpkg-deb", "-x", deb, into])


def module_files(modules_dir, names):
    """Paths of these modules and all they need, needed ones first; built-in ones have none."""
    needs, by_name = {}, {}
    for line in (modules_dir / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        by_name[pathlib.Path(path).name.split(".")[0].replace("-", "_")] = path
    order = []

    def add(path):
        for needed in reversed(needs[path]):
            add(needed)
        if path not in order:
            order.append(path)

    for name in names:
        if name in by_name:
            add(by_name[name])
    return order


def cpio(entries):
    """An archive in the "newc" format: (name, mode, bytes) each."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def make_initramfs(busybox, modules_dir, path):
    files = module_files(modules_dir, BOOT_MODULES)
    entries = [(name, 0o40755, b"") for name in ("bin", "dev", "proc", "root", "modules")]
    entries += [("bin/busybox", 0o100755, busybox.read_bytes()), ("bin/sh", 0o120777, b"busybox"),
                ("init", 0o100755, (HERE / "guest/initramfs.sh").read_bytes())]
    listed = []
    for file in files:
        inside = f"modules/{pathlib.Path(file).name}"
        data = (modules_dir / file).read_bytes()
        if file.endswith(".xz"):
            import lzma
            data, inside = lzma.decompress(data), inside.removesuffix(".xz")
        entries.append((inside, 0o100644, data))
        listed.append("/" + inside)
    entries.append(("modules.list", 0o100644, "".join(f"{m}\n" for m in listed).encode()))
    path.write_bytes(cpio(entries))


def make_root(apt, packages, root):
    # bookworm-backports has the lower priority, so only the kernel comes from it.
    run(["mmdebstrap", "--mode=root", "--variant=minbase", "--quiet",
         "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
         "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-unsafe-io",
         f"--include={','.join(sorted(packages))}", "bookworm", root, apt.sources], limit_s=1500)
    units = root / "etc/systemd/system"
    for unit in UNUSED_UNITS:
        link = units / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    for unit in ("godwit-machine.service", "godwitd.service"):
        shutil.copy(HERE / "guest" / unit, units / unit)
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "godwit-machine.service").symlink_to("/etc/systemd/system/godwit-machine.service")
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (root / "etc/machine-id").write_text("")  # Each machine makes its own at boot.
    for directory in ("opt/godwit", "etc/godwit", "usr/libexec/godwit"):
        (root / directory).mkdir(parents=True, exist_ok=True)


def finish_modules(root):
    for modules in (root / "lib/modules").iterdir():
        run(["chroot", root, "depmod", modules.name])


def key_of(packages, kernels):
    parts = [SOURCES, *sorted(packages), *kernels, *UNUSED_UNITS, *BOOT_MODULES]
    parts += [path.read_text() for path in sorted((HERE / "guest").iterdir())
              if path.name != "agent.py"]
    parts.append(pathlib.Path(__file__).read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def only_one(cache):
    """Several runs may share the cache; one makes the image, the others wait."""
    with open(cache / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(directory, apt, packages, kernel_packages, say):
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        scratch = pathlib.Path(scratch)
        say("image: file system by mmdebstrap")
        root = scratch / "root"
        make_root(apt, packages, root)
        say("image: kernels")
        apt.unpack("busybox-static", scratch / "busybox")
        for name, package in kernel_packages.items():
            apt.unpack(package, scratch / name)
            shutil.copytree(scratch / name / "lib/modules", root / "lib/modules", symlinks=True,
                            dirs_exist_ok=True)
        finish_modules(root)
        for name in kernel_packages:
            (vmlinuz,) = (scratch / name / "boot").glob("vmlinuz-*")
            version = vmlinuz.name.removeprefix("vmlinuz-")
            shutil.copy(vmlinuz, directory / f"vmlinuz-{name}")
            make_initramfs(scratch / "busybox/bin/busybox", root / "lib/modules" / version,
                           directory / f"initramfs-{name}")
        say("image: mke2fs")
        run(["mke2fs", "-q", "-t", "ext4", "-d", root, "-L", "root", directory / "root.ext4",
             f"{IMAGE_BYTES >> 10}k"])


def get(cache, binaries, say):
    """The image for these binaries: from the cache, or made now."""
    cache = pathlib.Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    packages = library_packages(binaries) | set(PACKAGES)
    with only_one(cache):
        directory = cache / key_of(packages, KERNELS)
        if not (directory / "complete").exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            say("image: lists of packages")
            apt = Apt(cache / "apt")
            apt.update()
            kernel_packages = {name: apt.kernel_package(release)
                               for name, release in KERNELS.items()}
            build(directory, apt, packages, kernel_packages, say)
            (directory / "complete").write_text(" ".join(kernel_packages.values()) + "\n")
        qemu = get_qemu(cache, directory, say)
    return Image(str(directory / "root.ext4"), {
        name: Kernel(name, str(directory / f"vmlinuz-{name}"), str(directory / f"initramfs-{name}"))
        for name in KERNELS}, qemu)


def get_qemu(cache, directory, say):
    """The machine's own libraries count, so what was unpacked once may do no more."""
    qemu = Qemu(str(directory / "qemu"))
    if not qemu.why_not():
        return qemu
    say("image: QEMU")
    shutil.rmtree(qemu.root, ignore_errors=True)
    apt = Apt(cache / "apt")
    apt.update()
    apt.unpack_with_needs("qemu-system-x86", QEMU_RELEASE, qemu.root)
    if reason := qemu.why_not():
        raise NoImage(f"QEMU doesn't start: {reason}")
    return qemu
