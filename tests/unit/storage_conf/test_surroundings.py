"""Whose user namespace the doctor is in, by /proc/self/uid_map; the real ones are in test_doctor_ids.py."""

from pathlib import Path

import pytest
from squashmount.storage_conf.doctor.command import all_probes
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.doctor.surroundings import inside


@pytest.mark.parametrize(
    ("uid_map", "uid", "expected"),
    [
        ("         0          0 4294967295\n", 0, []),
        ("         0          0 4294967295\n", 1000, []),
        ("         0       1000          1\n         1     100000      65536\n", 0, ["error S09"]),
        ("         0     100000      65536\n", 0, ["error S09"]),
        ("         0          1       1000\n      1000          0          1\n", 1000, ["info S09"]),
        (None, 0, []),
    ],
)
def test_root_of_a_namespace_is_another_user(
    tmp_path: Path, uid_map: str | None, uid: int, expected: list[str]
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    if uid_map:
        (tmp_path / "proc/self/uid_map").write_text(uid_map)
    node = Node(environ={}, uid=uid, gid=uid, root=str(tmp_path))
    assert [f"{one.severity.value} {one.id}" for one in inside(node)] == expected


def test_every_other_check_waits_for_it() -> None:
    assert all(("S09" in probe.ids) != ("S09" in probe.explained_by) for probe in all_probes())
