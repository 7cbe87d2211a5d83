"""Who the user is on this node, and which ids are his: U01 to U15.

Rootless Podman looks the ranges up by $USER, through libsubid; newuidmap looks them up again by the uid, and has its
own opinion of group and file. What differs between the two is a container that does not start. Root needs no ranges.

Of systemd's windows (UIDS-GIDS.md) only those that single programs use are errors in U13; the window of its
containers, 524288 to 1879048191, is what many sites hand out, and whether it clashes is a question for the site (A04).
"""

import os
import pwd
import re
import stat
import time
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

from squashmount.host import is_initial
from squashmount.idmap import read_id_map

from ..finding import Fact, Finding, error, info, warning
from ..ids import libsubid
from ..ids.libsubid import Kind, Pair
from ..ids.lint import LAST_END, Fault, lint
from .node import Node
from .probe import Probe

ENOUGH = 65536
FEW = 1000
"""With fewer, the first system user of an image is not mapped."""

_MAP_BYTES, _MAP_LINES = 4096, 340
"""Of /proc/PID/uid_map: the text must be shorter than a page (user_namespaces(7)); UID_GID_MAP_MAX_EXTENTS."""

_RESERVED = (
    (0, 1000, "ids of the system"),
    (60001, 60514, "ids of systemd-homed"),
    (61184, 65520, "ids of systemd's dynamic users"),
    (65534, 65536, "nobody and the 16-bit -1"),
)
_KINDS: tuple[tuple[Kind, str], ...] = (("uid", "/etc/subuid"), ("gid", "/etc/subgid"))
_OVERFLOW = 65534
"""Whom files of ids that a user namespace does not map belong to in it, root's too (user_namespaces(7))."""

_SHOWN = 10
_MOST_LINES = 500_000
"""Of /etc/subuid; a second's work."""


# Account


def account(node: Node) -> Iterator[Finding | Fact]:
    """Compare uid, $USER and group with passwd."""
    entry = node.passwd
    if entry is None:
        yield error(
            f"The uid {node.uid} has no entry in passwd on this node.",
            "newuidmap wants to know your name; the node has lost sssd or LDAP, or the job runs on the wrong node.",
            "ask the site: `getent passwd $(id -u)` must answer here; is sssd running?",
            id="U01",
            evidence=f"getpwuid({node.uid}): not found",
        )
        return
    yield Fact("user", entry.pw_name)
    if node.uid:
        yield from _wrong_user(node, entry)
        yield from _wrong_group(node, entry)


def _wrong_user(node: Node, entry: pwd.struct_passwd) -> Iterator[Finding]:
    said = node.environ.get("USER")
    if said and said != entry.pw_name and not _is_another_name(said, node.uid):
        yield error(
            f"USER is {said}, but you are {entry.pw_name}.",
            f"Podman looks up the ranges of {said}, and newuidmap does not let {entry.pw_name} use them.",
            f"export USER={entry.pw_name}   (su without `-` and `sbatch --export` keep another one)",
            id="U02",
            evidence=f"USER={said}, passwd: {entry.pw_name}, uid {node.uid}",
        )


def _is_another_name(name: str, uid: int) -> bool:
    try:
        return pwd.getpwnam(name).pw_uid == uid
    except (KeyError, ValueError):
        return False


def _wrong_group(node: Node, entry: pwd.struct_passwd) -> Iterator[Finding]:
    if node.gid != entry.pw_gid and not _auxiliary_groups(node):
        yield error(
            f"The group of this process is {node.gid}, the group of your login is {entry.pw_gid}.",
            "newuidmap refuses a process whose group is not that of passwd: `Target process is owned by a different "
            "user`. newgrp, sg and srun --gid change it.",
            "leave that shell (exit), or start podman from one with the login's group",
            id="U03",
            evidence=f"gid {node.gid}, passwd: {entry.pw_gid}",
        )


def _auxiliary_groups(node: Node) -> bool:
    """Tell whether login.defs allows it (shadow >= 4.9, lib/idmapping.c)."""
    words = [line.split() for line in (node.text("/etc/login.defs") or "").splitlines()]
    return any(line[:2] == ["GRANT_AUX_GROUP_SUBIDS", "yes"] for line in words)


# Source


def source_of(node: Node) -> str:
    """Return the word of nsswitch.conf that decides where ranges come from."""
    lines = libsubid.subid_lines(node.text("/etc/nsswitch.conf") or "")
    return lines[0][1][0] if lines else "files"


def source(node: Node) -> Iterator[Finding]:
    """Load the plugin as newuidmap would, and read the files where they are the source."""
    word = source_of(node)
    if word == "files":
        yield from _files(node)
        return
    if missing := libsubid.missing_of_plugin(word):
        yield error(
            f"The plugin for `subid: {word}` cannot be loaded on this node.",
            "newuidmap and Podman then silently take /etc/subuid: this node gives other ranges than its neighbours, "
            "and files made here belong to nobody there.",
            "as root: install the package with "
            f"libsubid_{word}.so ({'sssd-common; RHEL: sssd-client' if word == 'sss' else 'ask the site'}), or take "
            "the line out of /etc/nsswitch.conf on all nodes",
            id="U05",
            evidence=missing,
        )


def _files(node: Node) -> Iterator[Finding]:
    names = {name for name in (node.name, node.user) if name and name != str(node.uid)}
    for _, path in _KINDS:
        try:
            status = os.stat(node.path(path))
            if not stat.S_ISREG(status.st_mode):
                yield error(
                    f"{path} is no regular file.",
                    "newuidmap refuses it, or waits for ever: nobody has a range.",
                    f"as root: move it away, and write the lines into a file; chmod 644 {path}",
                    id="U06",
                    evidence=stat.filemode(status.st_mode),
                )
                continue
            file = open(node.path(path), "rb")  # noqa: SIM115 - closed below; a closed file is a finding
        except FileNotFoundError:
            continue  # nobody has a range: U07 says it
        except OSError as err:
            yield error(
                f"{path} cannot be read by you.",
                "newuidmap could, but Podman reads it as you: `cannot read subids`.",
                f"as root: chmod 644 {path}",
                id="U06",
                evidence=f"open {path}: {os.strerror(err.errno or 0)}",
            )
            continue
        with file:
            yield from _owner(path, status)
            yield from _lines(path, lint(file, names=names, most=_MOST_LINES), names | {str(node.uid)})


def _owner(path: str, status: os.stat_result) -> Iterator[Finding]:
    mode = stat.S_IMODE(status.st_mode)
    owner = 0 if status.st_uid == _OVERFLOW and not is_initial(read_id_map("/proc/self/uid_map")) else status.st_uid
    if owner or mode & 0o022:
        yield error(
            f"{path} can be written by others than root.",
            "Who writes it can give himself every id, root's too.",
            f"as root: chown root:root {path}; chmod 644 {path}",
            id="U06",
            evidence=f"owner {status.st_uid}, mode {mode:04o}",
        )


def _lines(path: str, faults: Iterator[Fault], mine: set[str]) -> Iterator[Finding]:
    """Report what is wrong with own lines as errors; overlap and overflow of a range have ids of their own."""
    own = {name.casefold() for name in mine}
    told = (fault for fault in faults if fault.code not in {"duplicate", "overflow"})
    for fault in islice(told, _SHOWN):
        whole = fault.code in {"newline", "nul"} and libsubid.abi() >= 6
        everything = fault.code == "everything"  # whoever has it, he can become root here
        bad = whole or everything or (fault.code != "newline" and fault.name.casefold() in own)
        yield (error if bad else warning)(
            f"{path}: {fault.what}.",
            "The whole file is refused." if whole else _EVERYTHING if everything else _MEANS[bad],
            "as root: " + fault.fix.replace("FILE", path),
            id="U06",
            evidence=f"{path}:{fault.line}: {fault.text}",
        )


_MEANS = {
    True: "newuidmap passes over such a line or reads another number, without a word.",
    False: "It is not yours, but its owner has no range, and some programs refuse the whole file.",
}

_EVERYTHING = "Its owner may map any id of this machine, root's and yours too, and read and change all files."


# Ranges


def ranges(node: Node) -> Iterator[Finding | Fact]:
    """Look up the ranges as Podman does, and judge them."""
    lines = libsubid.subid_lines(node.text("/etc/nsswitch.conf") or "")
    names = (node.name, str(node.uid))
    began = time.perf_counter()
    found = {kind: libsubid.ranges_of(names, kind) for kind, _ in _KINDS}
    took = time.perf_counter() - began
    if node.uid == 0:
        return
    yield from _slow(took)
    yield from _several_words(lines, nothing=not all(found.values()))
    if not all(found.values()):
        if not _ambiguous(lines):
            yield from _none(node, found)
        return
    for kind, pairs in found.items():
        yield Fact(f"sub{kind}", ", ".join(f"{start}:{count}" for start, count in pairs))
        yield from judged(kind, pairs, node.uid if kind == "uid" else node.gid, node.name)
    if found["uid"] != found["gid"]:
        yield info(
            "Your subordinate uids and gids differ.",
            "It works, but files in squashes and archives are easier to understand when they are the same.",
            "ask the site to give the same range in both",
            id="U14",
            evidence=f"subuid {_text(found['uid'])}; subgid {_text(found['gid'])}",
        )


def _slow(took: float) -> Iterator[Finding]:
    if took > 1.0:  # after ten seconds the probe is over, and that is an error
        yield warning(
            "Looking up your ranges is slow, and every podman command does it.",
            "LDAP or sssd answers slowly, or /etc/subuid is long: shadow 4.20 asks passwd for each of its lines.",
            "ask the site: ranges in LDAP with sssd's cache, or a short file",
            id="U08",
            evidence=f"{took:.1f} s for subuid and subgid",
        )


def _ambiguous(lines: Sequence[tuple[int, list[str]]]) -> bool:
    return len(lines) > 1 or any(len(words) > 1 for _, words in lines)


def _several_words(lines: Sequence[tuple[int, list[str]]], *, nothing: bool) -> Iterator[Finding]:
    if _ambiguous(lines):
        taken = lines[0][1][0]
        yield (error if nothing else warning)(
            f"nsswitch.conf names several sources of ranges, and only `{taken}` is used.",
            f"newuidmap has one source and no fallback; you have {'no range' if nothing else 'your range'} in {taken}.",
            "as root: keep one line with one word in /etc/nsswitch.conf, such as `subid: sss`",
            id="U04",
            evidence="\n".join(f"/etc/nsswitch.conf:{number}: subid: {' '.join(words)}" for number, words in lines),
        )


def _none(node: Node, found: dict[Kind, list[Pair]]) -> Iterator[Finding]:
    word = source_of(node)
    kinds = " and no ".join(f"sub{kind}" for kind, pairs in found.items() if not pairs)
    files = [path for kind, path in _KINDS if not found[kind]]
    where = " and ".join(files) if word == "files" else f"`subid: {word}`"
    start = _free_start(node)
    fix = f"ask the site for 65536 subuids and subgids for {node.name}"
    if word == "files" and start + ENOUGH <= LAST_END:
        fix += "; as root, if nobody has these: " + "; ".join(
            f"echo {node.name}:{start}:65536 >> {path}" for path in files
        )
    elif word != "files":
        fix += f" in LDAP; if they are there: does `getsubids {node.name}` answer, and is sssd running on this node?"
    yield error(
        f"{node.name} has no {kinds} range.",
        f"{where} gives none, or does not answer. Podman then maps your own id only, and images with other owners "
        "cannot be unpacked.",
        fix,
        id="U07",
        evidence="; ".join(f"sub{kind} of {node.name}: {_text(pairs) or 'none'}" for kind, pairs in found.items()),
    )


def _free_start(node: Node) -> int:
    """Return a start behind all ranges of the files, in steps of 65536 from 524288 on, as systemd's containers lie."""
    end = 524288
    for _, path in _KINDS:
        if os.path.isfile(node.path(path)):
            for line in islice((node.text(path) or "").split("\n"), _MOST_LINES):
                if row := re.fullmatch(r"[^:]+:([0-9]{1,10}):([0-9]{1,10})\s*", line):
                    end = max(end, int(row[1]) + int(row[2]))
    return -(-end // ENOUGH) * ENOUGH


def judged(kind: Kind, pairs: Sequence[Pair], own: int, name: str) -> Iterator[Finding]:
    """Judge one user's ranges of one kind, sorted by start: U09 to U13."""
    path = dict(_KINDS)[kind]
    seen = f"sub{kind} {_text(pairs)}"
    total = sum(count for _, count in pairs)
    if total < ENOUGH:
        yield (error if total < FEW else warning)(
            f"{name} has {total} sub{kind}s, fewer than {ENOUGH}.",
            "An image with a higher id (nobody is 65534) cannot be unpacked: `lchown: invalid argument`.",
            f"ask the site for a range of {ENOUGH} in sub{kind}; then: podman system migrate",
            id="U09",
            evidence=seen,
        )
    if any(start + count > after for (start, count), (after, _) in pairwise(pairs)):
        yield error(
            f"Your sub{kind} ranges overlap each other.",
            "The kernel refuses such a map: `write to uid_map failed: Invalid argument`.",
            f"as root: remove the line that is there twice, {path} or LDAP",
            id="U10",
            evidence=seen,
        )
    if any(start <= own < start + count for start, count in pairs):
        yield error(
            f"Your own {kind} {own} lies in your sub{kind} range.",
            f"Podman maps your own {kind} to 0, and an id cannot be mapped twice: `invalid configuration`.",
            f"ask the site to move the range away from real {kind}s",
            id="U11",
            evidence=seen,
        )
    yield from _long_map(kind, pairs, own)
    yield from _forbidden(kind, pairs, seen)


def _long_map(kind: Kind, pairs: Sequence[Pair], own: int) -> Iterator[Finding]:
    text, inside = f"0 {own} 1\n", 1
    for start, count in pairs:
        text += f"{inside} {start} {count}\n"
        inside += count
    if len(pairs) + 1 > _MAP_LINES or len(text) >= _MAP_BYTES:
        yield error(
            f"You have {len(pairs)} sub{kind} ranges, more than the kernel takes.",
            f"A map has at most {_MAP_LINES} lines and fewer than {_MAP_BYTES} bytes (user_namespaces(7)).",
            "ask the site to merge them into one",
            id="U12",
            evidence=f"{len(pairs) + 1} lines, {len(text)} bytes",
        )


def _forbidden(kind: Kind, pairs: Sequence[Pair], seen: str) -> Iterator[Finding]:
    for start, count in pairs:
        if start + count > LAST_END:
            what = f"ends at {start + count - 1}, behind the last id {LAST_END - 1}"
            why = "newuidmap refuses it: `subuid overflow detected`."
        elif hit := next((one for one in _RESERVED if start < one[1] and start + count > one[0]), None):
            what = f"covers {hit[2]} ({hit[0]} to {hit[1] - 1})"
            why = "Files of these ids, root's among them, could be read and written by you: newuidmap does not check."
        else:
            continue
        yield error(
            f"Your sub{kind} range {start}:{count} {what}.",
            why,
            "ask the site for another range at once; then: podman system migrate",
            id="U13",
            evidence=seen,
        )
        return


def _text(pairs: Sequence[Pair]) -> str:
    shown = ", ".join(f"{start}:{count}" for start, count in pairs[:_SHOWN])
    return shown + (f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else "")


PROBES = (
    Probe(("U01", "U02", "U03"), "The account", account),
    Probe(("U05", "U06"), "The source of ranges", source),
    # the id that is told when nothing answers comes first
    Probe(
        ("U08", "U04", "U07", "U09", "U10", "U11", "U12", "U13", "U14"),
        "The lookup of ranges",
        ranges,
        seconds=10.0,
        explained_by=("U01", "U02", "U05", "U06"),
    ),
)
