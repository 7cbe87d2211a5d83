"""Where the state lies, and the bounded log."""

import os
from pathlib import Path

import pytest

from squashmount.config import Config
from squashmount.errors import HostError
from squashmount.runtime import LOG_BYTES, Log, remembered_whiteouts, state_dir


def test_below_the_runtime_directory(tmp_path: Path) -> None:
    state = state_dir(Config(), {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert state == str(tmp_path / "squashmount")
    assert Path(state).stat().st_mode & 0o777 == 0o700


def test_configured_directory_wins(tmp_path: Path) -> None:
    wanted = str(tmp_path / "x/y")
    assert state_dir(Config(runtime_dir=wanted), {"XDG_RUNTIME_DIR": "/nowhere"}) == wanted


def test_a_directory_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "squashmount").mkdir()
    (tmp_path / "squashmount").chmod(0o777)
    with pytest.raises(HostError, match="written by others") as caught:
        state_dir(Config(), {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert caught.value.hint


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="Cannot use"):
        state_dir(Config(runtime_dir=str(tmp_path / "file/x")), {})


def test_log_levels_and_bound(tmp_path: Path) -> None:
    log = Log(str(tmp_path), "info")
    log("one\ntwo")
    log.detail("hidden")
    log.fail("bad")
    text = (tmp_path / "log").read_text()
    assert " info " in text
    assert "one\n    two\n" in text
    assert "hidden" not in text
    assert " error " in text
    (tmp_path / "log").write_bytes(b"x" * LOG_BYTES)
    log("over")
    log("new")
    assert (tmp_path / "log.1").stat().st_size > LOG_BYTES
    assert (tmp_path / "log").read_text().endswith("new\n")


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    Log(str(tmp_path / "missing"), "debug")("lost")
    (tmp_path / "log").symlink_to(tmp_path / "target")
    Log(str(tmp_path), "debug")("not through a link")
    assert not (tmp_path / "target").exists()


def test_whiteouts_are_remembered_until_the_directory_changes(tmp_path: Path) -> None:
    layer, state = tmp_path / "layer", tmp_path / "state"
    (layer / "sub").mkdir(parents=True)
    state.mkdir()
    assert not remembered_whiteouts(str(state), str(layer))
    # a change below goes unseen: image layers are immutable; that is what makes remembering right
    (layer / "sub/.wh.x").touch()
    assert not remembered_whiteouts(str(state), str(layer))
    os.utime(layer, ns=(1, 1))
    assert remembered_whiteouts(str(state), str(layer))
