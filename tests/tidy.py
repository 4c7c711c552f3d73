#!/usr/bin/env python3
"""Checks what the compiler doesn't: layers, one folder per library, lengths, READMEs, naps in tests.

Exit status 0 if the tree is tidy, else 1 with one line per breach. See "Layers" in
docs/ARCHITECTURE.md for the rules' reasons.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SRC = ROOT / "src"

LAYER = {
    "base": 0,
    "sys": 1, "image": 1, "wire": 1, "model": 1, "policy": 1, "gossip": 1,
    "rpc": 2, "transport": 2, "capture": 2, "restore": 2, "memory": 2, "sockets": 2,
    "backend": 3, "capsule": 3,
    "migrate": 4,
    "daemon": 5, "sim": 5,
}
# Layer 1 is pure but for sys; the schemas may be shared among pure folders.
SIBLINGS_ALLOWED = {("wire", "image")}
# Clients talk to a daemon, so they see its messages; `local` builds nodes and needs the kernel too.
CLIENTS = {"cli": {"base", "wire", "rpc", "local", "image"}, "local": {"base", "sys"}}
# A library's headers appear in one folder, so that it can be replaced there.
LIBRARY_HOMES = {
    "spdlog/": {"base"},
    "grpcpp/": {"rpc"},
    "sqlite3.h": {"daemon"},
    "toml++/": {"daemon"},
    "CLI/": {"cli"},
    "libmnl/": {"sys"},
    "openssl/": {"transport", "local"},
    "nlohmann/": {"cli", "local", "daemon"},
}
LINE_COLUMNS = 100
FILE_LINES = 650
TEST_FILE_LINES = 1000
# Test programs nap on purpose: a blocked call is what they test.
NAPS_ALLOWED = ("tests/tracees/", "tests/engine/witness.cc", "src/restore/restorer_test.cc",
                "src/capture/selfcheck_tracee")
# A line that asks again and again until a condition holds says so.
POLLS = re.compile(r"(//|#) [Pp]olls")
NAP = re.compile(r"sleep_for|\busleep\(|(?<![_a-z])sleep\(|^\s*sleep [0-9.]+|time\.sleep\(")
INCLUDE = re.compile(r'^\s*#include\s+["<]([^">]+)[">]')


def source_files():
    for path in sorted(SRC.rglob("*")):
        if path.suffix in (".h", ".cc") and path.is_file():
            yield path


def check_includes(path, folder, number, name, ours, breaches):
    target = name.split("/")[0]
    if ours and "/" in name and (SRC / target).is_dir() and target != folder:
        if folder in CLIENTS:
            if target not in CLIENTS[folder]:
                breaches.append(f"{path}:{number}: client {folder} includes {name}")
        elif target not in LAYER:
            breaches.append(f"{path}:{number}: {folder} includes {name}, which has no layer")
        elif LAYER[target] >= LAYER[folder] and (folder, target) not in SIBLINGS_ALLOWED:
            breaches.append(f"{path}:{number}: {folder} (layer {LAYER[folder]}) includes {name} "
                            f"(layer {LAYER[target]}); connect them from above")
    for library, homes in LIBRARY_HOMES.items():
        if (name.startswith(library) if library.endswith("/") else name == library) \
                and folder not in homes:
            breaches.append(f"{path}:{number}: {name} belongs to {', '.join(sorted(homes))} only")


def main():
    breaches = []
    for path in source_files():
        relative = path.relative_to(ROOT)
        folder = path.relative_to(SRC).parts[0]
        if folder not in LAYER and folder not in CLIENTS:
            breaches.append(f"{relative}: folder src/{folder} has no layer in tests/tidy.py")
            continue
        lines = path.read_text().splitlines()
        most = TEST_FILE_LINES if "test" in path.name else FILE_LINES
        if len(lines) > most:
            breaches.append(f"{relative}: {len(lines)} lines; one concept a file, {most} at most")
        if path.suffix == ".h" and "#pragma once" not in lines:
            breaches.append(f"{relative}: no #pragma once")
        for number, line in enumerate(lines, 1):
            if len(line) > LINE_COLUMNS:
                breaches.append(f"{relative}:{number}: {len(line)} columns, {LINE_COLUMNS} at most")
            match = INCLUDE.match(line)
            if match:
                ours = '"' in line  # <sys/...> is the C library's, not our folder.
                check_includes(relative, folder, number, match.group(1), ours, breaches)
    for folder in sorted(p for p in SRC.iterdir() if p.is_dir() and any(p.iterdir())):
        if not (folder / "README.md").is_file():
            breaches.append(f"src/{folder.name}: no README.md (purpose, entry points, invariants)")
    tests = [p for p in (ROOT / "tests").rglob("*") if p.suffix in (".py", ".sh", ".cc", ".h")]
    tests += list(SRC.rglob("*_test.cc"))
    for path in sorted(tests):
        relative = str(path.relative_to(ROOT))
        if relative.startswith(NAPS_ALLOWED) or relative == "tests/tidy.py":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if NAP.search(line) and not POLLS.search(line):
                breaches.append(f"{relative}:{number}: a nap; wait for the condition instead")
    for breach in breaches:
        print(breach)
    print(f"tidy: {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
