"""Where images and state lie, and what the files say about it: U40, U41, U53, U54, U81."""

import ctypes
import errno
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from squashmount.errors import SquashmountError

from .. import checks, store_checks
from ..facts import Facts, table
from ..finding import Fact, Finding, Severity, error, info, warning
from ..ids.libsubid import Pair
from .causes import NO_RANGES
from .node import Node
from .places import configuration, nameless_file, nearest, own_ranges, podman
from .probe import Probe

_MIB = 1 << 20
_LITTLE_BYTES, _LITTLE_INODES = 1024 * _MIB, 20_000
_LITTLE = {"bytes": _LITTLE_BYTES, "inodes": _LITTLE_INODES}
_NOTHING = {"bytes": 16 * _MIB, "inodes": 100}
"""An ordinary image that is not squashed: half a gigabyte, 15,000 files."""

_BASELINE_LIMIT = 256 * _MIB
"""Bytes; 200,000 users are 40 MiB."""

_SAMPLE, _SAMPLE_SECONDS = 2000, 0.5

_OF_THE_FILES = (
    checks.unreadable_file,
    checks.wrong_type,
    checks.unknown_key,
    checks.environment,
    checks.driver,
    checks.former_driver,
    checks.former_runroot,
    checks.shared_by_users,
    checks.variables,
    checks.env_graphroot,
    checks.deprecated_path,
    store_checks.missing_program,
)


def storage(node: Node) -> Iterator[Finding | Fact]:
    """Judge the places and the files that name them."""
    facts = configuration(node)
    if found := podman(node):
        yield Fact("podman", f"{found.version} (reads its files as Podman {facts.machine.podman})")
    yield Fact("storage.conf", ", ".join(file.path for file in facts.files) or "none of this user")
    for name, place in (("graphroot", facts.graphroot), ("runroot", facts.runroot)):
        yield Fact(name, f"{place.path} ({place.fstype or 'unknown'} on {place.target or '?'})")
    yield from places(facts)
    yield from space(facts.graphroot.path, node.uid)
    for check in _OF_THE_FILES:
        yield from (replace(finding, id="U81") for finding in check(facts))
    yield from _chown_errors(facts)


def places(facts: Facts) -> Iterator[Finding]:
    """Tell a graphroot (U40) or a runroot (U53) that lies where it cannot work."""
    for check in (checks.network_place, checks.unwritable_place):
        for finding in check(facts):
            yield replace(finding, id="U40" if finding.what.startswith("graphroot") else "U53")
    for check in (checks.long_runroot, checks.runroot_on_disk):
        yield from (_at_least_a_warning(finding, "U53") for finding in check(facts))
    yield from _flags(facts)


def _at_least_a_warning(finding: Finding, name: str) -> Finding:
    kind = Severity.WARNING if finding.severity is Severity.INFO else finding.severity
    return replace(finding, id=name, severity=kind)


def _flags(facts: Facts) -> Iterator[Finding]:
    """Tell flags of the mount below the graphroot.

    An overlay has flags of its own (tried: kernel and fuse-overlayfs): what counts there is volumes. With vfs the
    root of a container is a bind mount and inherits them.
    """
    flags = facts.graphroot.flags & {"nosuid", "noexec"}
    if not flags:
        return
    shown = " and ".join(sorted(flags))
    what = f"graphroot {facts.graphroot.path} is on a {shown} mount."
    fix = f"as root: mount -o remount,{','.join(name[2:] for name in sorted(flags))} {facts.graphroot.target}"
    if facts.storage.get("driver") == "vfs":
        why = "With the driver vfs the containers inherit that: no program, or no setuid program, runs in them."
        yield error(what, why, 'in [storage]: driver = "overlay"', id="U40", evidence=shown)
    else:
        why = "Containers are not affected (an overlay has flags of its own), but named volumes are bind mounts."
        yield info(what, why, fix + "; or keep named volumes for data only", id="U40", evidence=shown)


def _chown_errors(facts: Facts) -> Iterator[Finding]:
    overlay = table(facts.storage, "options", "overlay")
    if str(overlay.get("ignore_chown_errors", "")).lower() == "true":
        yield info(
            "ignore_chown_errors is set.",
            "Where a file cannot be given to its owner it stays yours, and nobody is told: fine for one user's own "
            "programs, wrong for services that want to be somebody else.",
            "take it out where `squashmount-conf doctor --only U07,U44` finds nothing",
            id="U81",
        )


# Space


def space(graphroot: str, uid: int) -> Iterator[Finding]:
    """Tell a file system without room, or a user without quota, where the graphroot is or will be."""
    place = nearest(graphroot)
    state = os.statvfs(place)
    # 0 in all: a file system without a fixed number (btrfs has no inodes to count, ramfs not even a size)
    size = state.f_bavail * state.f_frsize if state.f_blocks else _LITTLE_BYTES
    inodes = state.f_favail if state.f_files else _LITTLE_INODES
    yield from _room(place, "bytes", size)
    yield from _room(place, "inodes", inodes)
    yield from _quota(place, uid)
    if size >= _NOTHING["bytes"] and inodes >= _NOTHING["inodes"]:
        yield from _really_writes(place)


def _room(place: str, kind: str, free: int) -> Iterator[Finding]:
    if free >= _LITTLE[kind]:
        return
    report, how = (error, "no") if free < _NOTHING[kind] else (warning, "little")
    shown = f"{free // _MIB} MiB" if kind == "bytes" else f"{free} inodes"
    typed = "df -h" if kind == "bytes" else "df -i"
    yield report(
        f"There is {how} room on {place}: {shown} are free.",
        "Pulling an image writes all its files there; containers write there, too. A squashed image needs none.",
        f"`{typed} {place}`; podman system prune --all; or squash images: migrate2scratch mig IMAGE DIR",
        id="U41",
        evidence=f"{free} {kind} free",
    )


def _really_writes(place: str) -> Iterator[Finding]:
    """Write a page to a file without a name: quotas of groups, projects and servers answer only then."""
    if not os.access(place, os.W_OK):
        return  # U40 says it
    try:
        file = nameless_file(place)
        try:
            os.write(file, b"\1" * 4096)
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as err:
        if err.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            return
        yield error(
            f"Nothing can be written to {place}: {os.strerror(err.errno)}.",
            "A quota (yours, your group's, the project's) is used up, or the file system is full or broken.",
            f"`quota -s`, `lfs quota {place}`; podman system prune --all",
            id="U41",
            evidence=errno.errorcode[err.errno],
        )


class Quota(ctypes.Structure):
    """`struct if_dqblk` of linux/quota.h: limits in KiB, curspace in bytes."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in ("bhard", "bsoft", "space", "ihard", "isoft", "inodes", "btime", "itime")
        ),
        ("valid", ctypes.c_uint32),
    ]


_QUOTACTL_FD = 443  # the same number everywhere since Linux 5.14 (scripts/syscall.tbl)
_GET_USER_QUOTA = 0x800007 << 8


def _quota(place: str, uid: int) -> Iterator[Finding]:
    """Tell a user quota that is nearly used up."""
    block = quota_of(place, uid)
    if not block:
        return
    for kind, limit, used in (
        ("bytes", (block.bsoft or block.bhard) * 1024, block.space),
        ("inodes", block.isoft or block.ihard, block.inodes),
    ):
        left = limit - used
        if limit and left < min(_LITTLE[kind], limit // 10 + _NOTHING[kind]):
            report = error if left < _NOTHING[kind] else warning
            yield report(
                f"Your quota on {place} leaves {max(left, 0)} {kind}.",
                "What belongs to the root of your containers counts as yours.",
                "`quota -s`; podman system prune --all; or a graphroot elsewhere",
                id="U41",
                evidence=f"{used} of {limit} {kind}",
            )


def quota_of(place: str, uid: int) -> Quota | None:
    """Return a user's own quota (quotactl_fd(2)), None without one; NFS, Lustre and GPFS keep theirs to themselves."""
    try:
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return None
    try:
        block = Quota()
        failed = ctypes.CDLL(None).syscall(_QUOTACTL_FD, folder, _GET_USER_QUOTA, uid, ctypes.byref(block))
        return None if failed else block
    finally:
        os.close(folder)


# What lies there already


def earlier(node: Node) -> Iterator[Finding]:
    """Tell files in the graphroot that nobody's container can own under the present ranges: U54."""
    uids, gids = own_ranges(node)
    if not (uids and gids) or node.uid == 0:
        return  # U07
    yield from _since_the_baseline(node, uids, gids)
    graphroot = configuration(node).graphroot.path
    strangers: Counter[int] = Counter()
    example, looked = "", 0
    for path, status in _sample(graphroot):
        looked += 1
        if not (_mine(status.st_uid, node.uid, uids) and _mine(status.st_gid, node.gid, gids, *os.getgroups())):
            strangers[status.st_gid if _mine(status.st_uid, node.uid, uids) else status.st_uid] += 1
            example = example or path
    if strangers:
        ids = ", ".join(str(number) for number, _ in strangers.most_common(3))
        yield error(
            f"Files in {graphroot} belong to ids that are not yours (any more).",
            "Your range was changed after they were made: containers see them as nobody's and cannot change them. "
            "Squashed images are not affected.",
            "ask the site for the old range; or remove them: podman system reset, while Podman still runs with the old "
            f"map (U51); afterwards only root can: rm -rf --one-file-system {graphroot}",
            id="U54",
            evidence=f"{sum(strangers.values())} of {looked} files looked at, ids {ids}; first: {example}",
        )


def _since_the_baseline(node: Node, uids: list[Pair], gids: list[Pair]) -> Iterator[Finding]:
    """Compare the ranges with those in a file of `ids baseline`, if one was named."""
    if not node.baseline:
        return
    from ..ids import baseline  # noqa: PLC0415 - only where a file is named

    try:
        with open(node.baseline, "rb") as file:
            old = baseline.from_text(file.read(_BASELINE_LIMIT), where=node.baseline).live().get(node.uid)
    except (OSError, SquashmountError) as err:
        why = "What was written down cannot be compared with what is."
        yield warning(f"The baseline {node.baseline} cannot be read.", why, "name another", id="U54", evidence=str(err))
        return
    if not old:
        return  # it is older than this user
    now = replace(old, name=node.name, subuid=baseline.spans(uids), subgid=baseline.spans(gids))
    for change in baseline.differences(baseline.Baseline((old,)), baseline.Baseline((now,))):
        if change.change in {baseline.Change.MOVED, baseline.Change.SHRUNK, baseline.Change.REUSED}:
            yield error(
                f"Your ranges are not those of {old.since}: {change.change.value}.",
                "Files your containers made with the old ids are nobody's now. Squashed images are not affected.",
                "ask the site for the old range; else podman system migrate, and podman system reset",
                id="U54",
                evidence=str(change),
            )


def _mine(number: int, own: int, ranges: list[tuple[int, int]], *groups: int) -> bool:
    return number == own or number in groups or any(start <= number < start + count for start, count in ranges)


def _sample(graphroot: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield some files of the layers: at most 2000, for half a second, two directories deep, what is readable."""
    end = time.monotonic() + _SAMPLE_SECONDS
    left = _SAMPLE
    for top in (os.path.join(graphroot, "overlay"), os.path.join(graphroot, "vfs/dir")):
        for layer in _names(top):
            for entry in _walk(layer.path, depth=3):
                if left <= 0 or time.monotonic() > end:
                    return
                left -= 1
                try:
                    yield entry.path, entry.stat(follow_symlinks=False)
                except OSError:
                    continue


def _walk(folder: str, depth: int) -> Iterator[os.DirEntry[str]]:
    for entry in _names(folder)[:200]:
        yield entry
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, depth - 1)


def _names(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


PROBES = (
    Probe(("U40", "U41", "U53", "U81"), "Podman's storage", storage),
    Probe(("U54",), "The owners of what is stored", earlier, explained_by=NO_RANGES),
)
