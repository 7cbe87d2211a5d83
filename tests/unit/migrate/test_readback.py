import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from squashmount.migrate import readback
from squashmount.migrate.readback import Sample

from squashmount.errors import DamagedError, ToolError


@pytest.fixture(params=["zstd", "gzip", "xz", "lz4"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Sample]:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    data = os.urandom(1000) * 3000
    (tree / "d" / "file").write_bytes(data)
    (tree / "d" / "file").chmod(0o640)
    output = tmp_path / "o"
    argv = ["mksquashfs", str(tree), str(output), "-comp", str(request.param), "-noappend", "-no-progress", "-all-root"]
    subprocess.run(argv, check=True, capture_output=True)
    return str(output), Sample("d/file", 0o640, 0, 0, hashlib.sha256(data).hexdigest())


def test_a_good_file_passes(made: tuple[str, Sample]) -> None:
    readback.check(made[0], entries=3, samples=[made[1]])


@pytest.mark.parametrize("wrong", [{"mode": 0o600}, {"uid": 1}, {"gid": 1}, {"sha256": "0"}, {"path": "d/other"}])
def test_each_difference_is_found(made: tuple[str, Sample], wrong: dict[str, object]) -> None:
    with pytest.raises(ToolError, match="differs from the image"):
        readback.check(made[0], entries=3, samples=[replace(made[1], **wrong)])  # type: ignore[arg-type]


def test_a_missing_name_is_found(made: tuple[str, Sample]) -> None:
    with pytest.raises(ToolError, match="differs") as caught:
        readback.check(made[0], entries=4, samples=[])
    assert "3 names instead of 4" in caught.value.details


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    tree = os.fsencode(tmp_path / "tree")
    os.mkdir(tree)
    Path(os.fsdecode(os.path.join(tree, b"\xff"))).write_bytes(b"hello")
    argv = ["mksquashfs", tree, tmp_path / "o", "-noappend", "-no-progress", "-all-root"]
    subprocess.run(argv, check=True, capture_output=True)
    sample = Sample("\udcff", 0o644, 0, 0, hashlib.sha256(b"hello").hexdigest())
    readback.check(str(tmp_path / "o"), entries=2, samples=[sample])


def test_a_cut_file_is_damaged(made: tuple[str, Sample]) -> None:
    os.truncate(made[0], os.path.getsize(made[0]) // 2)
    with pytest.raises(DamagedError):
        readback.header(made[0])


def test_samples_travel_as_json() -> None:
    sample = Sample("a\udcff", 0o4755, 1, 2, "ab")
    value = {"path": "a\udcff", "mode": 0o4755, "uid": 1, "gid": 2, "sha256": "ab"}
    assert Sample.from_json(value) == sample
