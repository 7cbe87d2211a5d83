"""The login session or job: runtime directory, pause process, linger, home, and Podman's own word: U50 to U52, U82."""

import os
import stat
import time
from collections.abc import Iterator

from squashmount.errors import ToolError
from squashmount.idmap import IdMap, read_id_map
from squashmount.process import run

from ..facts import NETWORK, Facts, session_dir, table
from ..finding import Fact, Finding, error, info, warning
from .causes import NO_NAMESPACE, explained
from .namespace import IdMaps, podman_arguments
from .node import Node
from .pause_process import as_before
from .places import configuration, mounts, own_ranges
from .probe import Probe

_SLOW = 5.0
"""Seconds for `podman info`; with a few images it takes a fifth of one."""

_MAKE = 'mkdir -m 700 -p "/tmp/xdg-$(id -u)" && export XDG_RUNTIME_DIR="/tmp/xdg-$(id -u)"'


def runtime_dir(node: Node) -> Iterator[Finding | Fact]:
    """Judge XDG_RUNTIME_DIR: U50."""
    path = node.runtime_dir
    if node.uid == 0:
        return
    if not path:
        yield warning(
            "XDG_RUNTIME_DIR is not set.",
            "Podman then keeps its state in /tmp under another name: two shells of one job do not see each other's "
            "containers.",
            f"export XDG_RUNTIME_DIR=/run/user/$(id -u); in a job: {_MAKE}",
            id="U50",
        )
        return
    yield Fact("runtime directory", path)
    try:
        status = os.stat(path)
    except OSError as err:
        yield error(
            f"XDG_RUNTIME_DIR {path} cannot be used: {os.strerror(err.errno or 0)}.",
            "It was inherited from another node or session (sbatch exports it); no logind session made it here.",
            f"{_MAKE}; or as root: loginctl enable-linger {node.name}",
            id="U50",
        )
        return
    yield from _owner_and_mode(node, path, status)
    fstype = _fstype(node, path)
    if fstype in NETWORK:
        yield error(
            f"XDG_RUNTIME_DIR {path} is on {fstype}.",
            "Sockets, locks and the pids of this node lie there; two nodes that share it damage each other's state.",
            _MAKE,
            id="U50",
            evidence=f"{path}: {fstype}",
        )


def _owner_and_mode(node: Node, path: str, status: os.stat_result) -> Iterator[Finding]:
    mode = stat.S_IMODE(status.st_mode)
    seen = f"owner {status.st_uid}, mode {mode:04o}"
    if status.st_uid != node.uid or not stat.S_ISDIR(status.st_mode):
        yield error(
            f"XDG_RUNTIME_DIR {path} is not a directory of yours.",
            "Podman refuses it (su without - and sudo keep the variable of the first user).",
            f"unset XDG_RUNTIME_DIR and log in anew; in a job: {_MAKE}",
            id="U50",
            evidence=seen,
        )
    elif mode != 0o700:
        report = error if mode & 0o022 or mode & 0o700 != 0o700 else warning
        yield report(
            f"XDG_RUNTIME_DIR {path} has the mode {mode:04o}.",
            "The specification wants 0700: there are the sockets through which others could command your containers.",
            f"chmod 700 {path}",
            id="U50",
            evidence=seen,
        )


def _fstype(node: Node, path: str) -> str:
    real = os.path.realpath(path)
    under = [one for one in mounts(node) if real == one.target or real.startswith(one.target.rstrip("/") + "/")]
    return max(under, key=lambda one: len(one.target.rstrip("/"))).fstype if under else ""


# The pause process


def pause(node: Node) -> Iterator[Finding]:
    """Compare the id map of the running pause process with the present ranges: U51."""
    uids, gids = own_ranges(node)
    wanted = IdMaps(node.uid, node.gid, uids, gids)
    here = read_id_map("/proc/self/uid_map"), read_id_map("/proc/self/gid_map")
    facts = configuration(node)
    for path in _pause_files(node, facts):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                pid = file.read(32).strip()
            if not pid.isdigit():
                continue
            seen = read_id_map(f"/proc/{pid}/uid_map"), read_id_map(f"/proc/{pid}/gid_map")
            owner, is_pause = _owner(pid), _is_pause(pid)
        except (OSError, ValueError):
            continue  # gone: Podman starts another one
        if seen == here or owner != node.uid:
            # with some states of its files Podman takes pause.pid away by itself: then the advice does no harm
            where = "is in the user namespace of this shell" if seen == here else "is in another user namespace"
            yield _no_pause_process(path, pid, f"belongs to uid {owner} and {where}")
            return
        now = _map(wanted, node.uid, uids), _map(wanted, node.gid, gids)
        if seen == now:
            continue
        if not is_pause:  # one of the user's own containers: Podman, of any version, tries to join it
            yield _no_pause_process(path, pid, f"is in another user namespace, with the map {_text(seen[0])}")
        else:
            yield error(
                "Podman's pause process has another id map than your ranges.",
                "It was started before they changed, or in another place, and every podman joins it: containers have "
                "the old ids until it ends.",
                "podman system migrate   (it stops your containers on this node; where U54 is found too, do first what "
                "it says: the old map can remove old files)",
                id="U51",
                evidence=f"{path}: process {pid} has {_text(seen[0])}; configured {_text(now[0])}",
            )
        return


def _owner(pid: str) -> int:
    """Return the real uid of a process: proc(5) gives the directory of one that is not dumpable to root."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Uid:"))


def _is_pause(pid: str) -> bool:
    """Tell Podman's pause process by its name (podman pkg/rootless/rootless_linux.c, do_pause).

    It is `catatonit -P`, or Podman itself where that is missing: `podman pause`, `podman` or `exe` in early ones. The
    init of a container is catatonit as well, without -P.
    """
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        name = file.read().strip()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(4096).split(b"\0")
    return b"-P" in words[1:2] if name == "catatonit" else name.startswith("podman") or name == "exe"


def _no_pause_process(path: str, pid: str, seen: str) -> Finding:
    return error(
        f"Podman's pause.pid names the process {pid}, which is no pause process.",
        "The pause process was killed (at the end of a job, say) and its number given to another one: every podman "
        "fails with `cannot re-exec process to join the existing user namespace`, `system migrate` too; or it joins a "
        "container of yours, has its ids, and `system migrate` ends it.",
        f"rm {path}",
        id="U51",
        evidence=f"{path}: process {pid} {seen}",
    )


def _pause_files(node: Node, facts: Facts) -> list[str]:
    """Return where pause.pid may be: `libpod/tmp` of the session, before Podman 5 tmp_dir (tried: 4.3.1, 5.4.2)."""
    if node.uid == 0:
        return []
    named = table(facts.engine, "engine").get("tmp_dir") if facts.machine.podman < 5 else None
    places = [os.path.join(session_dir(facts.machine), "libpod/tmp")]
    return [os.path.join(place, "pause.pid") for place in ([named] if isinstance(named, str) else []) + places]


def _map(maps: IdMaps, own: int, ranges: list[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    words = [int(word) for word in podman_arguments(own, () if maps.single else ranges)]
    return tuple((words[at], words[at + 1], words[at + 2]) for at in range(0, len(words), 3))


def _text(id_map: IdMap | tuple[tuple[int, int, int], ...]) -> str:
    return ", ".join(" ".join(map(str, entry)) for entry in id_map)


# systemd, home, Podman itself


def linger(node: Node) -> Iterator[Finding]:
    """Tell that containers end with the last session: U52. In a job that is as it should be."""
    if node.uid == 0 or "SLURM_JOB_ID" in node.environ or not os.path.isdir(node.path("/run/systemd/system")):
        return
    user = node.user
    if user and not os.path.exists(node.path(f"/var/lib/systemd/linger/{user}")):
        yield info(
            "Your processes end with your last session on this node.",
            "Without linger systemd removes /run/user/UID and everything in the session: detached containers, too.",
            f"loginctl enable-linger {user}",
            id="U52",
        )


def home_and_podman(node: Node) -> Iterator[Finding | Fact]:
    """Look whether the home directory answers and can be read, then ask Podman: U82."""
    path = node.environ.get("HOME", "")
    try:
        os.listdir(path or "/nonexistent")
    except OSError as err:
        what = f"Your home directory {path} cannot be read: {os.strerror(err.errno or 0)}."
        yield warning(
            what if path else "HOME is not set.",
            "Podman looks there for its configuration and, unless storage.conf says otherwise, for its images.",
            "in a job: is the home file system mounted on this node, and your ticket or token valid?",
            id="U82",
        )
        return
    yield from _podman_itself(node)


def _podman_itself(node: Node) -> Iterator[Finding | Fact]:
    """Ask Podman: whatever else is wrong, it says so here.

    A graphroot nobody used yet would get its files and the driver of today for good, so there it is not asked.
    """
    facts = configuration(node)
    graphroot = facts.graphroot.path
    if not os.path.exists(os.path.join(graphroot, "storage.lock")):  # containers/storage makes it at its first use
        yield Fact("podman info", f"not asked: it would make its storage in {graphroot}")
        return
    start = time.monotonic()
    try:
        with as_before(_pause_files(node, facts)):
            run("podman", "info", "--format", "{{.Host.OCIRuntime.Name}}", env=dict(node.environ))
    except ToolError as err:
        yield error(
            "`podman info` fails: no podman command works.",
            "What it says is below.",
            explained(err),
            id="U82",
            evidence=f"{err.brief}\n{err.details}".strip(),
        )
        return
    took = time.monotonic() - start
    yield Fact("podman info", f"answers in {took:.1f} s")
    if took > _SLOW:
        yield warning(
            f"`podman info` takes {took:.0f} s.",
            "Every podman command starts like that: a slow home or source of ranges, a lock, or very many images.",
            "strace -f -r podman info",
            id="U82",
            evidence=f"{took:.1f} s",
        )


PROBES = (
    Probe(("U50",), "XDG_RUNTIME_DIR", runtime_dir),
    Probe(("U51",), "Podman's pause process", pause, explained_by=NO_NAMESPACE),
    Probe(("U52",), "Linger", linger),
    Probe(
        ("U82",),
        "The home directory, or `podman info`,",
        home_and_podman,
        seconds=8.0,
        explained_by=(*NO_NAMESPACE, "U40", "U41", "U42", "U50", "U51", "U80", "U81", "S02", "S03", "S04"),
    ),
)
