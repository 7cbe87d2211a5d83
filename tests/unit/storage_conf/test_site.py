"""site.toml: who sees which store, where nothing may lie; `explain`: who set what."""

import json
from pathlib import Path

import pytest
from squashmount.storage_conf import explain_command, site
from squashmount.storage_conf.cli import main
from squashmount.storage_conf.podman import Machine
from squashmount.storage_conf.site import Site, Store, load_site

from squashmount import config
from squashmount.errors import UsageError

TEXT = """\
engine = "wire"
forbidden = ["/home", "/scratch/"]

[scratch]
graphroot = "/local/$UID/c"

[[stores]]
path = "/all"
all = true

[[stores]]
path = "/mine"
users = ["dave"]

[[stores]]
path = "/physics"
groups = ["physics", "1234"]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site.toml"
    for module in (config, site, explain_command):
        monkeypatch.setattr(module, "SITE_FILE", str(path))
    monkeypatch.setattr(config, "SITE_FILES", (str(tmp_path / "squashmount.toml"), str(path)))
    monkeypatch.setattr("squashmount.trust.Trust.doubt", lambda *_: "")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "SQUASHMOUNT_CONFIG", "SQUASHMOUNT_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    return path


def test_stores_by_audience(here: Path) -> None:
    here.write_text(TEXT)
    found = load_site(str(here))
    assert found.stores_of("dave", ["physics"]) == ("/mine", "/physics", "/all")
    assert found.stores_of("erin", ["users", "1234"]) == ("/physics", "/all")
    assert found.stores_of("erin", []) == ("/all",)
    assert found.stores[0] == Store("/all", everybody=True)
    here.unlink()
    assert load_site(str(here)) == Site()


def test_forbidden_places(tmp_path: Path) -> None:
    real = tmp_path / "home"
    (real / "dave").mkdir(parents=True)
    (tmp_path / "link").symlink_to(real / "dave")
    machine = Machine({"USER": "dave", "HOME": str(real / "dave")}, 1001, 5)
    found = Site(forbidden=(str(real),))
    assert found.forbids("$HOME/c", machine) == str(real)
    assert found.forbids(f"{tmp_path}/link/c", machine) == str(real)
    assert found.forbids(f"{tmp_path}/homeless", machine) == ""
    (tmp_path / "homes").symlink_to(real)
    assert Site(forbidden=(f"{tmp_path}/homes",)).forbids("$HOME/c", machine) == f"{tmp_path}/homes"


@pytest.mark.parametrize("text", [b'engine = "\xff"\n', b"engine = " + b"[" * 3000 + b"]" * 3000, b"engine = \n"])
def test_what_no_parser_takes_is_an_error_with_the_command_that_names_the_line(
    here: Path, capsys: pytest.CaptureFixture[str], text: bytes
) -> None:
    here.write_bytes(text)
    for command in (["explain"], ["generate", "--site", "--podman", "5"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "is not valid TOML" in said
        assert f"squashmount-conf check {here}" in said


def test_a_site_file_that_leads_nowhere_is_an_error(here: Path) -> None:
    here.symlink_to("/nonexistent/site.toml")
    with pytest.raises(UsageError, match="Cannot read the configuration file"):
        load_site(str(here))
    assert main(["explain"]) == 2


def test_dates_are_explained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here.write_text("[modules.a.containers]\nenv = [1979-05-27]\n")
    assert main(["explain", "modules"]) == 0
    assert "1979-05-27" in capsys.readouterr().out
    assert main(["explain", "--json"]) == 0
    assert "1979-05-27" in capsys.readouterr().out


def test_a_wrong_file_is_refused(here: Path) -> None:
    here.write_text('[scratch]\ngraphroot = "/local"\n')
    with pytest.raises(UsageError, match="graphroot /local is the same for every user"):
        load_site(str(here))


def test_each_value_has_its_origin(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.write_text(TEXT)
    (here.parent / ".config").mkdir()
    user = here.parent / ".config/squashmount.toml"
    user.write_text('# mine\n\nengine = "squashfuse_ll"\ncache_mib = 7\n')
    monkeypatch.setenv("SQUASHMOUNT_ENGINE", "auto")
    assert main(["explain", "engine"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'engine = "auto"  # SQUASHMOUNT_ENGINE',
        f'    instead of "squashfuse_ll", {user}:3',
        f'    instead of "wire", {here}:1',
        '    instead of "auto", default',
    ]
    assert main(["explain", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["settings"]
    assert said["cache_mib"][0] == {"value": 7, "origin": f"{user}:4"}
    assert said["scratch.graphroot"][0] == {"value": "/local/$UID/c", "origin": f"{here}:5"}
    assert said["stores"][0]["origin"] == f"{here}:7"
    assert said["linger"] == [{"value": 10.0, "origin": "default"}]
    assert set(config.Config._fields) < set(said)


def test_an_unknown_setting(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not here.exists()
    assert main(["explain", "engin"]) == 2
    assert "did you mean engine?" in capsys.readouterr().err
