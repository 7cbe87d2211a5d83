"""Whether all nodes agree on subordinate ids (A09): what one node says of itself, and what many said.

A node is not asked for the ranges of all users where a directory has them: a thousand nodes asking for 20,000 users
each is an attack. It says what decides the answer, and the answer for a few users.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from squashmount.errors import DamagedError, SquashmountError

from ..doctor.node import Node
from ..finding import Finding, error, warning
from . import nss
from .inventory import from_files, readable
from .site import has_plugin, versions
from .source_options import subid_word
from .verdict import Verdict, about, number

FORMAT = 1

_LINE_LIMIT = 1 << 16
_NODES_LIMIT = 100_000

Values = dict[str, str]
"""What is compared: `versions.shadow` → `4.13`."""


def fingerprint(node: Node, users: Sequence[str], *, seconds: float) -> dict[str, Any]:
    """Return what decides which ids users get on this node. Nothing in it is secret."""
    word = subid_word(node)
    try:
        files = from_files(node)
        rows = sorted((item.kind, item.owner, item.start, item.count) for item in files.ranges)
        ranges = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        lines = len(rows)
    except SquashmountError as err:
        ranges, lines = f"unreadable: {err.brief}", 0
    return {
        "format": FORMAT,
        "host": os.uname().nodename,
        "subid": word,
        "plugin": word == "files" or has_plugin(node, word),
        "ranges": ranges,
        "lines": lines,
        "passwd": _words(node, "passwd"),
        "versions": {name: ".".join(map(str, numbers)) for name, numbers in versions(node).items()},
        "users": _answers(users, seconds) if node.root == "/" else {},
    }


def _words(node: Node, database: str) -> str:
    for line in (node.text("/etc/nsswitch.conf") or "").split("\n"):
        name, colon, rest = line.partition("#")[0].partition(":")
        if colon and name.strip() == database:
            return " ".join(rest.split())
    return "files"


def _answers(users: Sequence[str], seconds: float) -> dict[str, Any]:
    """Return what the node answers for users: of sssd an answer may be as old as its cache."""
    try:
        found = nss.ask(users, seconds=seconds, source="")
        uids = {account.name: account.uid for account in nss.accounts(users, seconds=seconds)}
    except SquashmountError as err:
        return {name: {"error": err.brief} for name in users}
    return {
        name: {
            "uid": uids.get(name),
            "subuid": sorted([item.start, item.count] for item in found if (item.owner, item.kind) == (name, "uid")),
            "subgid": sorted([item.start, item.count] for item in found if (item.owner, item.kind) == (name, "gid")),
        }
        for name in users
    }


# -- many of them


@dataclass(frozen=True)
class Group:
    """Nodes that say the same; `differs` is in what, and how, the largest group says something else."""

    nodes: tuple[str, ...]
    differs: dict[str, tuple[str, str]]


def read_fingerprints(file: IO[bytes], *, name: str, into: dict[str, list[Values]]) -> None:
    """Add the fingerprints of a file, one a line, also with the label that `srun --label` puts before each.

    Raises DamagedError, with the number of the line, for what is none: a node must not be left out silently.
    """
    number_of_line = 0
    while line := file.readline(_LINE_LIMIT):
        number_of_line += 1
        text = re.sub(rb"^\s*\d+:\s*", b"", line).strip()
        if not text:
            continue
        try:
            host, values = _read(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DamagedError(
                f"Line {number_of_line} of {name} is no fingerprint: {readable(text[:60].decode(errors='replace'))}",
                hint="make them with `srun --ntasks-per-node=1 squashmount-conf ids fingerprint`",
            ) from None
        if values not in into.setdefault(host, []):
            into[host].append(values)
        if len(into) > _NODES_LIMIT:
            raise DamagedError(f"{name} has more than {_NODES_LIMIT} nodes.")


def _read(said: dict[str, Any]) -> tuple[str, Values]:
    if said["format"] != FORMAT:
        raise ValueError
    values = {"subid": str(said["subid"]), "plugin": "there" if said["plugin"] else "missing"}
    values |= {"ranges": str(said["ranges"])[:80], "passwd": str(said["passwd"])}
    values |= {f"versions.{name}": str(version) for name, version in said["versions"].items()}
    for user, answer in said["users"].items():
        values |= {f"users.{user}.{key}": json.dumps(value) for key, value in answer.items()}
    return readable(str(said["host"])), {readable(key): readable(value) for key, value in values.items()}


def grouped(nodes: dict[str, list[Values]]) -> list[Group]:
    """Return groups of nodes that agree, the largest first; of a node that said several things, the last counts."""
    by_values: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for host, said in nodes.items():
        by_values[tuple(sorted(said[-1].items()))].append(host)
    ordered = sorted(by_values.items(), key=lambda item: (-len(item[1]), item[0]))
    first = dict(ordered[0][0]) if ordered else {}
    groups = []
    for values, hosts in ordered:
        own = dict(values)
        names = sorted(own.keys() | first.keys())
        differs = {
            name: (own.get(name, "none"), first.get(name, "none")) for name in names if own.get(name) != first.get(name)
        }
        groups.append(Group(tuple(sorted(hosts, key=_natural)), differs))
    return groups


def differences(nodes: dict[str, list[Values]], *, expected: int | None = None) -> Iterator[Verdict]:
    """A09: yield one verdict for each thing in which nodes differ, and one for nodes that said nothing or twice."""
    if expected is not None and len(nodes) != expected:
        yield from about(
            error,
            "A09",
            f"{number(len(nodes), 'node')} said something, and {expected} should have.",
            "Of a node that is silent nothing is known.",
            "look for what srun said of the others",
            [f"{len(nodes)} of {expected}"],
        )
    yield from about(
        error,
        "A09",
        "Nodes that said different things one after the other.",
        "A change was just being made, or two nodes have one name.",
        "ask once more",
        [host for host, said in nodes.items() if len(said) > 1],
    )
    latest = {host: said[-1] for host, said in nodes.items()}
    for name in sorted({name for values in latest.values() for name in values}):
        by_value: dict[str, list[str]] = defaultdict(list)
        for host, values in latest.items():
            # a user whom a node was not asked for is no difference, a program it does not have is one
            if name in values or not name.startswith("users."):
                by_value[values.get(name, "none")].append(host)
        if len(by_value) > 1:
            yield from _differ(name, by_value, latest)


def _differ(name: str, by_value: dict[str, list[str]], latest: dict[str, Values]) -> Iterator[Verdict]:
    ordered = sorted(by_value.items(), key=lambda item: (-len(item[1]), item[0]))
    few = sum(len(hosts) for _, hosts in ordered[1:])
    why, fix, grave = _meaning(name, {values["subid"] for values in latest.values()})
    yield from about(
        error if grave else warning,
        "A09",
        f"{few} of {number(sum(map(len, by_value.values())), 'node')} differ in {name}.",
        why,
        fix,
        [f"{_short(value)}: {number(len(hosts), 'node')}: {folded(hosts)}" for value, hosts in ordered],
    )


def _meaning(name: str, words: set[str]) -> tuple[str, str, bool]:
    if name == "subid":
        return (
            "Nodes ask different sources: one user has different ids on them, and files of one are another's.",
            "the same `subid:` line in /etc/nsswitch.conf of all nodes",
            True,
        )
    if name == "plugin":
        return (
            "Where the plugin is missing, shadow takes /etc/subuid without a word.",
            "install it (sssd-common on Debian, sssd-client on Red Hat)",
            True,
        )
    if name == "ranges":
        return (
            "/etc/subuid or /etc/subgid have other ranges (the order of lines is not compared).",
            "make both files in one place and copy them to all nodes",
            "files" in words,
        )
    if name.startswith("users."):
        return (
            "One user has different ids on them. sssd repeats an old answer for 90 minutes; sss_cache does not help.",
            "on the nodes with the old answer: stop sssd, delete /var/lib/sss/db/*, start it",
            True,
        )
    return (
        "Versions and lookups of accounts need not be the same, but what fails on some nodes only is often this.",
        "the same image for all nodes",
        False,
    )


def _short(value: str) -> str:
    return value[:12] if re.fullmatch(r"[0-9a-f]{64}", value) else value


def _natural(host: str) -> tuple[str, int, str]:
    match = re.fullmatch(r"(.*?)(\d{1,18})", host)
    return (match[1], int(match[2]), host) if match else (host, -1, host)


def folded(hosts: Iterable[str]) -> str:
    """Return names of nodes as Slurm writes them, `n[001-003,7]`; a name with two numbers is folded in the last."""
    runs: list[tuple[str, list[str]]] = []
    for host in sorted(hosts, key=_natural):
        match = re.fullmatch(r"(.*?)(\d{1,18})", host)
        if match is None:
            runs.append((host, []))
        elif runs and runs[-1][0] == match[1] and runs[-1][1]:
            runs[-1][1].append(match[2])
        else:
            runs.append((match[1], [match[2]]))
    return ",".join(_bracketed(prefix, digits) for prefix, digits in runs)


def _bracketed(prefix: str, digits: list[str]) -> str:
    if len(digits) < 2:
        return prefix + "".join(digits)
    parts: list[list[str]] = []
    for text in digits:
        if parts and int(text) == int(parts[-1][-1]) + 1 and len(text) == len(parts[-1][0]):
            parts[-1][1:] = [text]
        else:
            parts.append([text])
    return f"{prefix}[{','.join('-'.join(part) for part in parts)}]"


def findings_of(verdicts: Iterable[Verdict]) -> list[Finding]:
    """Return the findings alone."""
    return [verdict.finding for verdict in verdicts]
