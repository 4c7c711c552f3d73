#!/usr/bin/env python3
"""Reads tests/tracees/manifest.toml: which tracees there are, how they are built, run and judged.

    manifest.py cmake    prints CMake commands that build and register them (see CMakeLists.txt)
    manifest.py list     prints every case, one a line
"""
import dataclasses
import pathlib
import sys
import tomllib

TRACEES = pathlib.Path(__file__).resolve().parent.parent / "tracees"
LIMIT_S = 300
KEYS = {"refused", "kept_or_refused", "retry", "root", "static", "shared_dir", "same_kernel", "terminal",
        "stdin", "stdout", "stderr", "args", "runs", "limit_s", "compile", "link"}


@dataclasses.dataclass(frozen=True)
class Tracee:
    """One program."""
    name: str
    folder: str
    static: bool
    compile: tuple
    link: tuple


@dataclasses.dataclass(frozen=True)
class Case:
    """One program with arguments, in one of its builds: what ctest runs."""
    name: str
    folder: str
    program: str
    args: tuple
    refused: str | None          # Regular expression that the reason must match.
    may_be_refused: bool
    retry: str | None            # Regular expression of reasons after which the move is asked for again.
    root: bool
    in_shared_dir: bool
    same_kernel: bool            # Holds only between nodes of one kernel.
    terminal: bool
    lines: frozenset             # Of stdin, stdout, stderr: where numbered lines pass.
    limit_s: int


class ManifestError(Exception):
    pass


def load():
    """The tracees and the cases of the manifest; each source file must be in it, and be there."""
    with open(TRACEES / "manifest.toml", "rb") as file:
        folders = tomllib.load(file)
    tracees, cases = [], []
    for folder, entries in folders.items():
        for name, entry in entries.items():
            unknown = set(entry) - KEYS
            if unknown:
                raise ManifestError(f"{folder}.{name}: unknown keys {sorted(unknown)}")
            tracees.append(Tracee(name, folder, entry.get("static", False),
                                  tuple(entry.get("compile", ())), tuple(entry.get("link", ()))))
            cases += cases_of(folder, name, entry)
    listed = {f"{t.folder}/{t.name}.cc" for t in tracees}
    found = {str(p.relative_to(TRACEES)) for p in TRACEES.glob("*/*.cc")}
    if listed != found:
        raise ManifestError(f"not in the manifest: {sorted(found - listed)}, "
                            f"no such file: {sorted(listed - found)}")
    return tracees, cases


def cases_of(folder, name, entry):
    runs = entry.get("runs", {"": entry.get("args", [])})
    plain = Case(name=name, folder=folder, program=name, args=(),
                 refused=entry.get("refused", entry.get("kept_or_refused")),
                 may_be_refused="kept_or_refused" in entry,
                 retry=entry.get("retry"), root=entry.get("root", False),
                 in_shared_dir=False, same_kernel=entry.get("same_kernel", False),
                 terminal=entry.get("terminal", False),
                 lines=frozenset(s for s in ("stdin", "stdout", "stderr") if s in entry),
                 limit_s=entry.get("limit_s", LIMIT_S))
    for run, args in runs.items():
        case = dataclasses.replace(plain, name=name + (f".{run}" if run else ""), args=tuple(args))
        yield case
        if entry.get("static"):
            yield dataclasses.replace(case, name=case.name + ".static", program=name + ".static")
        if entry.get("shared_dir"):
            yield dataclasses.replace(case, name=case.name + ".shared_dir", in_shared_dir=True)


def find_case(name):
    for case in load()[1]:
        if case.name == name:
            return case
    raise ManifestError(f"no case {name}")


def print_cmake(tracees, cases):
    for t in tracees:
        static = " STATIC" if t.static else ""
        print(f"godwit_tracee({t.name} {t.folder}{static} COMPILE {' '.join(t.compile)} "
              f"LINK {' '.join(t.link)})")
    for c in cases:
        root_only = " ROOT_ONLY" if c.root else ""
        print(f"godwit_tracee_case({c.name} {c.folder} {c.limit_s}{root_only})")


def main():
    try:
        tracees, cases = load()
    except (ManifestError, tomllib.TOMLDecodeError) as error:
        print(f"manifest.toml: {error}", file=sys.stderr)
        return 1
    if sys.argv[1:] == ["cmake"]:
        print_cmake(tracees, cases)
    elif sys.argv[1:] == ["list"]:
        for case in cases:
            print(f"{case.folder}/{case.name}")
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
