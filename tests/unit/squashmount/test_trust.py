"""Which files of the host may be believed."""

import os
from pathlib import Path

import pytest

from squashmount.trust import Trust


@pytest.fixture
def trust() -> Trust:
    return Trust((os.getuid(),))


def test_a_link_that_others_can_change_is_named_however_far(tmp_path: Path, trust: Trust) -> None:
    (tmp_path / "good").mkdir(mode=0o755)
    (tmp_path / "good/file").touch(mode=0o644)
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose").chmod(0o777)
    (tmp_path / "loose/link").symlink_to(tmp_path / "good/file")
    (tmp_path / "good/first").symlink_to("second")
    (tmp_path / "good/second").symlink_to("../loose/link")
    assert trust.doubt(str(tmp_path / "good/file")) == ""
    assert "loose' can be written by everybody" in trust.doubt(str(tmp_path / "loose/link"))
    assert "loose' can be written by everybody" in trust.doubt(str(tmp_path / "good/first"))
    (tmp_path / "loose").chmod(0o755)
    assert Trust((os.getuid(),)).doubt(str(tmp_path / "good/first")) == ""


def test_a_circle_of_links_ends(tmp_path: Path, trust: Trust) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    trust.doubt(str(tmp_path / "a"))
