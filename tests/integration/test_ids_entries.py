"""Every way in which an entry of a real directory can be wrong: made in slapd, and `ids check` names its id.

Nothing but what follows is named besides: who has no valid range has none (A05), an odd one is off the grid (A06).
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from directory_lab import COUNT, FIRST_RANGE, NEEDS_DIRECTORY, SECOND_SUFFIX, SUFFIX, Account, Directory, directory
from lab import run

pytestmark = [pytest.mark.needs_root, NEEDS_DIRECTORY]

PROGRAM = str(Path(sys.executable).with_name("squashmount-conf"))
_FREE = FIRST_RANGE + 100 * COUNT
_MOVED = (_FREE, COUNT)


@pytest.fixture(scope="module")
def slapd(lab: Path) -> Iterator[Directory]:
    with directory(lab, map(Account.number, range(50))) as slapd:
        yield slapd


@contextmanager
def entries(slapd: Directory, text: str) -> Iterator[None]:
    """Have these entries in the second, small directory."""
    text = text.replace(SUFFIX, SECOND_SUFFIX)
    slapd.modify(text, SECOND_SUFFIX)
    try:
        yield
    finally:
        names = [line for line in text.splitlines() if line.startswith("dn: ")]
        slapd.modify("".join(f"{name}\nchangetype: delete\n\n" for name in names), SECOND_SUFFIX)


def check(uri: str, *more: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code and what is found, but that ids from 2^31 on are used."""
    options = ("--uri", uri, "--base", SECOND_SUFFIX, "--anonymous", "--json", *more)
    done = run(PROGRAM, "ids", "check", *options)
    assert done.out, done.err
    return done.code, [
        one for one in json.loads(done.out)["findings"] if (one["id"], one["severity"]) != ("A04", "info")
    ]


ONE, TWO = Account.number(1, "one"), Account.number(2, "two")
HEALTHY = ONE.user_ldif() + ONE.plain_ldif() + TWO.user_ldif()
"""Of two users, and the ranges of the first; what is wrong is the entry of the second."""


def _without(attribute: str) -> str:
    return "".join(f"{line}\n" for line in TWO.plain_ldif().splitlines() if not line.startswith(attribute))


def _ranges(start: int, count: int) -> str:
    return replace(TWO, subuid=(start, count), subgid=(start, count)).plain_ldif()


GHOST = replace(TWO, name="ghost", subuid=_MOVED, subgid=_MOVED)
INVALID = {"error A01", "warning A05"}
CASES: dict[str, tuple[set[str], str]] = {
    "healthy": (set(), TWO.plain_ldif()),
    "in the other schema": (set(), TWO.freeipa_ldif()),
    "no subuid": (INVALID, _without("subUid")),
    "no count": (INVALID, _without("subUidCount")),
    "no owner": (INVALID, _without("subidRangeOwner")),
    "a count of 0": (INVALID, _ranges(_FREE, 0)),
    "a negative start": (INVALID, _ranges(-COUNT, COUNT)),
    "a start of 2^64": (INVALID, _ranges(1 << 64, COUNT)),
    "behind the last id": ({"error A01"}, _ranges((1 << 32) - COUNT, COUNT)),
    "an owner who is gone": ({"error A01"}, TWO.plain_ldif() + GHOST.plain_ldif()),
    "two entries of one owner": (
        {"error A07"},
        TWO.plain_ldif() + _ranges(*_MOVED).replace("cn=two", "cn=again").replace("cn: two", "cn: again"),
    ),
    "the same range twice": ({"error A02"}, _ranges(FIRST_RANGE + COUNT, COUNT)),
    "one id of the neighbour": ({"error A02", "info A06"}, _ranges(FIRST_RANGE + 2 * COUNT - 1, COUNT)),
    "the uid of the neighbour": ({"error A03", "warning A06", "info A06"}, _ranges(ONE.uid, 1)),
    "no entry": ({"warning A05"}, ""),
    "1000 ids": ({"warning A06"}, _ranges(_FREE, 1000)),
    "other gids": ({"info A08"}, replace(TWO, subgid=_MOVED).plain_ldif()),
    "ids of systemd-homed": ({"error A04", "warning A06", "info A06"}, _ranges(60001, 512)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_entries(slapd: Directory, name: str) -> None:
    expected, text = CASES[name]
    with entries(slapd, HEALTHY + text):
        code, found = check(slapd.uri)
    assert {f"{one['severity']} {one['id']}" for one in found} == expected, found
    assert code == (11 if any(name.startswith("error") for name in expected) else 0)
    assert all("two" in str(one) or "ghost" in str(one) or "again" in str(one) for one in found), found


def test_a_connection_that_anybody_can_forge(slapd: Directory) -> None:
    hosts = Path("/etc/hosts")
    before = hosts.read_text()
    hosts.write_text(f"{before}{slapd.address} ldap.example.com\n")
    try:
        with entries(slapd, HEALTHY + TWO.plain_ldif()):
            code, found = check("ldap://ldap.example.com")
    finally:
        hosts.write_text(before)
    assert [(one["severity"], one["id"]) for one in found] == [("warning", "A17")], found
    assert code == 0


def test_a_line_of_a_file_against_an_entry(slapd: Directory, tmp_path: Path) -> None:
    """The file counts on a node without the plugin: two nodes, two ranges."""
    (tmp_path / "etc").mkdir()
    for name in ("subuid", "subgid"):
        (tmp_path / "etc" / name).write_text(f"one:{FIRST_RANGE + COUNT}:{COUNT}\ntwo:{_FREE}:{COUNT}\n")
    (tmp_path / "etc/nsswitch.conf").write_text("subid: sss\n")
    with entries(slapd, HEALTHY + TWO.plain_ldif()):
        code, found = check(slapd.uri, "--root", str(tmp_path), "--only", "A10")
    assert [(one["severity"], one["id"]) for one in found] == [("error", "A10")] * 2, "uids and gids"
    assert all("two" in str(one["items"]) and "one" not in str(one["items"]) for one in found), found
    assert code == 11
