"""Settings from files and the environment; errors name the place, the key and what is allowed."""

from pathlib import Path

import pytest

from squashmount.config import Config, load_config
from squashmount.errors import UsageError


def env(path: Path, **more: str) -> dict[str, str]:
    return {"SQUASHMOUNT_CONFIG": str(path), **more}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "squashmount.toml"


def test_defaults(tmp_path: Path) -> None:
    assert load_config({"HOME": str(tmp_path)}) == Config()


def test_environment_beats_the_file(file: Path) -> None:
    file.write_text('linger = 3\nengine = "wire"\n')
    config = load_config(env(file, SQUASHMOUNT_LINGER="0.5"))
    assert (config.linger, config.engine) == (0.5, "wire")


def test_the_users_file(tmp_path: Path) -> None:
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config/squashmount.toml").write_text("cache_mib = 7\n")
    assert load_config({"HOME": str(tmp_path)}).cache_mib == 7


def test_squash_dir_has_its_traditional_name(file: Path) -> None:
    file.write_text("")
    assert load_config(env(file, SQUASH_DIR="/s")).squash_dir == "/s"
    assert load_config(env(file, SQUASH_DIR="/s", SQUASHMOUNT_SQUASH_DIR="/t")).squash_dir == "/t"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lingr = 1", "unknown key 'lingr'"),
        ('engine = "fast"', "engine = 'fast' is not allowed"),
        ("linger = -1", "linger"),
        ("linger = true", "linger"),
        ('linger = "long"', "linger"),
        ("block_kib = 100", "block_kib"),
        ("cache_mib = 1.5", "cache_mib"),
        ("= broken", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        load_config(env(file))
    assert str(file) in str(caught.value)


def test_a_bad_variable_names_the_environment(file: Path) -> None:
    file.write_text("")
    with pytest.raises(UsageError, match="the environment: overlay = 'x'"):
        load_config(env(file, SQUASHMOUNT_OVERLAY="x"))


def test_a_missing_named_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cannot read"):
        load_config(env(tmp_path / "none"))
