"""What the live probes see, in the words of a finding; the real faults are in test_doctor_live.py."""

import errno
import os
from typing import Any

import pytest
from squashmount.storage_conf.doctor import live
from squashmount.storage_conf.doctor.namespace import NamespaceError, podman_arguments
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.doctor.places import configuration
from squashmount.storage_conf.facts import Facts
from squashmount.storage_conf.finding import Severity


def facts() -> Facts:
    return configuration(Node(environ={"HOME": "/nonexistent"}, uid=1000, gid=1000))


def test_ranges_are_given_by_start_without_gaps_inside() -> None:
    assert podman_arguments(1000, [(900000, 10), (100000, 5)]) == [
        "0",
        "1000",
        "1",
        "1",
        "100000",
        "5",
        "6",
        "900000",
        "10",
    ]


@pytest.mark.parametrize(
    ("ranges", "last"),
    [
        ([(1000, 10)], (1000, 10)),
        ([(1010, 5), (1000, 10)], (1000, 15)),  # they touch: newuidmap grants across them
        ([(1000, 10), (1002, 3)], (1000, 10)),
        ([(1000, 10), (2000, 3)], (2000, 3)),
    ],
)
def test_the_end_of_what_is_granted(ranges: list[tuple[int, int]], last: tuple[int, int]) -> None:
    assert live._merged(ranges)[-1] == last


@pytest.mark.parametrize(
    ("step", "text", "code", "word"),
    [
        ("newuidmap", "newuidmap: uid range [1-65537) -> [1-65537) not allowed", 0, "getsubids"),
        ("newgidmap", "newgidmap: open of gid_map failed: Permission denied", 0, "u-s"),
        ("newuidmap", "newuidmap: write to uid_map failed: Invalid argument", 0, "twice"),
        ("newuidmap", "newuidmap: Target process 7 is owned by a different user: uid:1 pw_uid:1", 0, "newgrp"),
        ("unshare", os.strerror(errno.ENOSPC), errno.ENOSPC, "max_user_namespaces"),
        ("unshare", os.strerror(errno.EPERM), errno.EPERM, "pivot_root"),
        ("namespace", os.strerror(errno.EPERM), errno.EPERM, "apparmor"),
        ("unshare", os.strerror(errno.EIO), errno.EIO, "ask the site"),
    ],
)
def test_each_refusal_has_its_cure(step: str, text: str, code: int, word: str) -> None:
    finding = live._no_namespace(NamespaceError(step, text, code))
    assert (finding.id, finding.severity) == ("U42", Severity.ERROR)
    assert word in finding.fix
    assert text in finding.evidence


@pytest.mark.parametrize(
    ("seen", "mapped", "expected"),
    [
        ({"1": 0, "65534": 0, "65535": 0}, 65537, None),
        ({"1": 0, "65534": errno.EINVAL, "65535": errno.EINVAL}, 1001, None),  # U09
        ({"1": errno.EPERM, "65534": errno.EPERM, "65535": errno.EPERM}, 65537, "root_squash"),
        ({"1": 0, "65534": errno.EINVAL, "65535": 0}, 65537, "does not know the ids"),
    ],
)
def test_chown(seen: dict[str, int], mapped: int, expected: str | None) -> None:
    found = list(live._chown(facts(), "/g", seen, mapped))
    assert [one.id for one in found] == (["U44"] if expected else [])
    assert not expected or expected in found[0].why


def test_without_fuse_overlayfs_a_missing_overlay_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {"tmpfs": 0, "overlay": {"userxattr": errno.EPERM, "": errno.EPERM}}
    for program, severity in ((None, Severity.ERROR), ("/usr/bin/fuse-overlayfs", Severity.WARNING)):
        monkeypatch.setattr(live, "which", lambda _name, program=program: program)
        (found,) = live._overlay(facts(), "/g", seen)
        assert (found.id, found.severity) == ("U43", severity)  # type: ignore[union-attr]


def test_a_tmpfs_that_is_refused() -> None:
    (found,) = live._overlay(facts(), "/g", {"tmpfs": errno.EACCES})
    assert found.id == "U43"  # type: ignore[union-attr]
