"""The id map Podman itself makes for this user: U15.

A podman without libsubid (static builds) reads /etc/subuid only, whatever nsswitch.conf says. Podman keeps the map of
its pause process, so the question is put to one with directories of its own, which are gone afterwards; nothing of the
user's storage is touched. What the running pause process has is U51.
"""

import mmap
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from squashmount.errors import ToolError
from squashmount.host import which
from squashmount.process import run

from ..finding import Finding, error
from ..ids import libsubid
from ..ids.libsubid import Kind, Pair
from .causes import NO_NAMESPACE, explained
from .node import Node
from .probe import Probe

Extent = tuple[int, int, int]
"""A line of /proc/PID/uid_map: first id inside, first id outside, count."""

_FILES: tuple[Kind, ...] = ("uid", "gid")


def agrees(node: Node) -> Iterator[Finding]:
    """Compare the map Podman makes with the one that follows from the ranges."""
    program = which("podman")
    if node.uid == 0 or not program:
        return  # a missing podman has an id of its own
    names = (node.name, str(node.uid))
    expected = tuple(
        expected_map(own, libsubid.ranges_of(names, kind))
        for own, kind in zip((node.uid, node.gid), _FILES, strict=True)
    )
    try:
        seen = podmans_maps(node)
    except ToolError as err:
        yield error(
            "Podman cannot make its user namespace.",
            "newuidmap and the ranges look right, so it is Podman's own setup: its words are the best hint.",
            explained(err),
            id="U15",
            evidence=err.details.strip() or err.brief,
        )
        return
    if seen != expected:
        static = not has_libsubid(program)
        yield error(
            "Podman maps other ids than this node's source of ranges gives you.",
            "This podman is built without libsubid and reads /etc/subuid and /etc/subgid only."
            if static
            else "Podman reads another source than newuidmap, or the ranges have just changed.",
            "use the distribution's podman, or ask the site for the same ranges in /etc/subuid and /etc/subgid"
            if static
            else f"compare `getsubids {node.name}` with /etc/subuid; another podman on PATH? type -a podman",
            id="U15",
            evidence=f"podman: {_text(seen)}\nsource: {_text(expected)}",
        )


def expected_map(own: int, pairs: list[Pair]) -> list[Extent]:
    """Return the map of these ranges: the own id as 0, then the ranges by start (rootless.GetConfiguredMappings)."""
    extents, inside = [(0, own, 1)], 1
    for start, count in sorted(pairs):
        extents.append((inside, start, count))
        inside += count
    return merged(extents)


def merged(extents: list[Extent]) -> list[Extent]:
    """Return the extents by their ids inside, what touches on both sides as one: the same map has one form then."""
    result: list[Extent] = []
    for inside, outside, count in sorted(extents):
        if result and (result[-1][0] + result[-1][2], result[-1][1] + result[-1][2]) == (inside, outside):
            result[-1] = (*result[-1][:2], result[-1][2] + count)
        else:
            result.append((inside, outside, count))
    return result


def podmans_maps(node: Node) -> tuple[list[Extent], list[Extent]]:
    """Return the uid and the gid map of a new namespace of Podman's. ToolError with its words when it makes none."""
    with _own_directories(node) as base:
        env = {**node.environ, "XDG_RUNTIME_DIR": base, "TMPDIR": base}
        # the runroot is the directory itself: Podman takes 50 characters, and its own, `containers`, is as long
        others = (f"--{name}={base}/{name}" for name in ("root", "tmpdir", "network-config-dir"))
        places = [f"--runroot={base}", *others]
        # paste: both in one answer, and `cat` alone would not tell where the first one ends
        files = [f"/proc/self/{kind}_map" for kind in _FILES]
        out = run(
            "podman", *places, "unshare", "sh", "-c", 'cat "$1"; echo; cat "$2"', "sh", *files, env=env, timeout=8.0
        )
    first, _, second = out.partition("\n\n")
    return _extents(first), _extents(second)


@contextmanager
def _own_directories(node: Node) -> Iterator[str]:
    """Give a directory for Podman in the runtime directory; its pause process ends with it."""
    runtime = node.runtime_dir
    base = tempfile.mkdtemp(prefix="dr", dir=runtime if os.access(runtime, os.W_OK | os.X_OK) else None)
    try:
        yield base
    finally:
        for folder, _, files in os.walk(base):
            if "pause.pid" in files:
                _end(os.path.join(folder, "pause.pid"))
        shutil.rmtree(base, ignore_errors=True)


def _end(pid_file: str) -> None:
    with suppress(OSError, ValueError), open(pid_file, encoding="ascii") as file:
        os.kill(int(file.read()), signal.SIGKILL)


def _extents(text: str) -> list[Extent]:
    rows = (line.split() for line in text.splitlines())
    return merged([(int(row[0]), int(row[1]), int(row[2])) for row in rows if len(row) == 3])


def has_libsubid(program: str) -> bool:
    """Tell whether a program is linked to libsubid; True where it cannot be read."""
    try:
        with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return data.find(b"libsubid.so") >= 0
    except (OSError, ValueError):
        return True


def _text(maps: tuple[list[Extent], ...]) -> str:
    return "; ".join(
        f"{kind} " + ", ".join(f"{inside}->{outside} ({count})" for inside, outside, count in extents)
        for kind, extents in zip(_FILES, maps, strict=True)
    )


PROBES = (
    Probe(
        ("U15",),
        "Podman's own id map",
        agrees,
        seconds=10.0,
        explained_by=(*NO_NAMESPACE, "U09", "U42", "U50", "U80", "U81", "U82"),
    ),
)
