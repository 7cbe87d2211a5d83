"""Settings from files and the environment; errors name the place, the key and what is allowed."""

from pathlib import Path

import pytest

from squashmount import config
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


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the site's two files lie here; what lies above is not root's in every place tests run."""
    files = (str(tmp_path / "squashmount.toml"), str(tmp_path / "site.toml"))
    monkeypatch.setattr(config, "SITE_FILES", files)
    monkeypatch.setattr(config, "SITE_FILE", files[1])
    return tmp_path


def test_site_below_user_below_environment(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squashmount.trust.Trust.doubt", lambda *_: "")
    (site / "squashmount.toml").write_text("linger = 1\ncache_mib = 1\nprocessors = 1\nblock_kib = 4\n")
    text = 'cache_mib = 2\nprocessors = 2\nblock_kib = 8\nforbidden = ["/home"]\n[scratch]\ngraphroot = "/l"\n'
    (site / "site.toml").write_text(text)
    (site / ".config").mkdir()
    (site / ".config/squashmount.toml").write_text("processors = 3\nblock_kib = 16\n")
    found = load_config({"HOME": str(site), "SQUASHMOUNT_BLOCK_KIB": "32"})
    assert (found.linger, found.cache_mib, found.processors, found.block_kib) == (1.0, 2, 3, 32)


def test_a_user_has_no_keys_of_the_site(file: Path) -> None:
    file.write_text('forbidden = ["/home"]\n')
    with pytest.raises(UsageError, match="unknown key 'forbidden'"):
        load_config(env(file))


def test_the_sites_file_must_be_trusted(site: Path) -> None:
    (site / "site.toml").write_text("linger = 1\n")
    (site / "site.toml").chmod(0o666)
    with pytest.raises(UsageError, match=r"configuration of the site .*site\.toml is not trusted") as caught:
        load_config({"HOME": str(site)})
    assert (
        "by everybody" in caught.value.details
        or "belongs to uid" in caught.value.details
        or "its group" in caught.value.details
    )
