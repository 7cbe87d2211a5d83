"""The command line of squashmount-hooks, as far as it needs no Podman."""

import json
from pathlib import Path

import pytest
from squashmount.oci_hooks import cli


def test_check_says_what_is_wrong_in_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, site = tmp_path / "good.toml", tmp_path / "bad.toml", tmp_path / "hooks.toml"
    good.write_text('help = "fine"')
    bad.write_text("[when]\nalway = true")
    site.write_text('on = ["good"]')
    assert cli.main(["check", str(good), str(site)]) == 0
    assert cli.main(["check", str(bad), str(good)]) == 11
    said = capsys.readouterr()
    assert said.out.count("module good: fine") == 2
    assert f"{site}: policy: fine" in said.out
    assert said.err == f"{bad}: when.alway: unknown key (did you mean always?).\n"


def test_check_without_a_file_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 2
    assert "No file is named" in capsys.readouterr().err


def test_check_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--schema"]) == 0
    assert "mounts" in json.loads(capsys.readouterr().out)["properties"]
