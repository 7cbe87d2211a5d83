"""Quotas: no file system of a usual test machine has them (CONFIG_QFMT_V2); the rest: test_doctor_live.py."""

from pathlib import Path

import pytest
from squashmount.storage_conf.doctor import storage

GIB = 1 << 20  # KiB


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({}, ""),
        ({"bhard": 50 * GIB, "space": 10 << 30}, ""),
        ({"bhard": 50 * GIB, "space": (49 << 30) + (512 << 20)}, "warning"),
        ({"bsoft": 1 * GIB, "bhard": 50 * GIB, "space": 1 << 30}, "error"),
        ({"bhard": GIB // 2, "space": 1 << 20}, ""),  # small, and nearly all of it is left
        ({"ihard": 100000, "inodes": 90000}, "warning"),
        ({"isoft": 100000, "ihard": 200000, "inodes": 99950}, "error"),
    ],
)
def test_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: dict[str, int], said: str) -> None:
    monkeypatch.setattr(storage, "quota_of", lambda _place, _uid: storage.Quota(**block))
    found = list(storage._quota(str(tmp_path), 1000))
    assert [f"{one.severity.value} {one.id}" for one in found] == ([f"{said} U41"] if said else [])


def test_without_quota_there_is_none(tmp_path: Path) -> None:
    assert storage.quota_of(str(tmp_path), 1000) is None
