#!/usr/bin/env python3
"""Writes docs/SUPPORT.md from tests/tracees/manifest.toml: what moves, in which modes, by which test.

    docs/support.py            writes it
    docs/support.py --check    exit status 1 if it isn't what would be written (run by ctest)
"""
import pathlib
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "tests/tracees/manifest.toml"
OUT = ROOT / "docs/SUPPORT.md"

TITLES = {
    "memory": "Memory", "cpu": "Registers and what the kernel keeps per processor",
    "calls": "System calls that are interrupted by the move", "threads": "Threads",
    "process": "The process", "trees": "Several processes", "files": "Files", "load": "Under load",
    "not_yet_covered": "Not yet: refused by name before anything is touched",
}
HEAD = """# What can move

Made by `docs/support.py` from the manifest of the self-checking programs (`tests/tracees`); each is moved in every mode, as root and as an
ordinary user, and then checks itself. A test is run by `ctest --preset release -R 'tracee.moved.NAME'`.

"moves": in the modes stop, precopy, postcopy, hybrid and auto. "refused": `godwit can-migrate` and `godwit migrate` say so by name, and the
program goes on where it is. "moves or refused": depends on what the kernel and the machine offer; never wrong silently.
"""


def words(name):
    return name.replace("_", " ")


def verdict(entry):
    if "refused" in entry:
        return "refused"
    if "kept_or_refused" in entry:
        return "moves or refused"
    return "moves"


def render():
    manifest = tomllib.loads(MANIFEST.read_text())
    parts = [HEAD]
    for folder, entries in manifest.items():
        parts.append(f"\n## {TITLES.get(folder, folder)}\n\n| claim | verdict | test |\n|---|---|---|\n")
        for name, entry in entries.items():
            parts.append(f"| {words(name)} | {verdict(entry)} | `{name}` |\n")
    return "".join(parts)


def main():
    text = render()
    if sys.argv[1:] == ["--check"]:
        if OUT.exists() and OUT.read_text() == text:
            return 0
        print("docs/SUPPORT.md is stale: run docs/support.py")
        return 1
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    OUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
