"""The command `squashmount-conf check`: exit codes, text, JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from squashmount.storage_conf.cli import main


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho podman version 5.4.2\n")
    podman.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("CONTAINERS_STORAGE_CONF", "CONTAINERS_CONF", "STORAGE_OPTS", "STORAGE_DRIVER", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "storage.conf"
    file.write_text('[storage]\ndriver = "overlay"\ngraphroot = "/tmp/$UID/g"\nrunroot = "/tmp/$UID/r"\n')
    return file


def test_nothing_wrong(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--storage-conf", str(conf)]) == 0
    assert f"Podman 5, {conf}: " in capsys.readouterr().out


def test_an_error_is_exit_code_11_and_has_three_lines(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf.write_text(conf.read_text().replace("overlay", "vfs"))
    assert main(["check", "--storage-conf", str(conf)]) == 11
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "error: The storage driver is vfs."
    assert lines[1].startswith("  why: ")
    assert lines[2] == '  fix: in [storage]: driver = "overlay"'


def test_a_warning_counts_only_when_strict(conf: Path) -> None:
    conf.write_text(conf.read_text() + "nonsense = 1\n")
    assert main(["check", "--storage-conf", str(conf)]) == 0
    assert main(["check", "--strict", "--storage-conf", str(conf)]) == 11


def test_json(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf.write_text("[storage")
    assert main(["check", "--json", "--podman", "6", "--storage-conf", str(conf)]) == 11
    answer = json.loads(capsys.readouterr().out)
    assert answer["files"] == [str(conf)]
    assert answer["podman"] == 6
    assert answer["findings"][0]["check"] == "unreadable_file"
    assert set(answer["findings"][0]) == {"check", "id", "severity", "what", "evidence", "why", "fix"}


def test_settings_that_stop_every_program_are_told(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.toml").write_text('linger = "x"\n')
    monkeypatch.setenv("SQUASHMOUNT_CONFIG", str(tmp_path / "own.toml"))
    assert main(["check", "--json", "--podman", "5", "--storage-conf", str(conf)]) == 11
    (finding,) = [one for one in json.loads(capsys.readouterr().out)["findings"] if one["check"] == "settings"]
    assert str(tmp_path / "own.toml") in finding["what"] + finding["why"]


def test_generated_files_pass(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    for name in ("overlay-images/images", "overlay-layers/layers"):
        (store / name).parent.mkdir(parents=True)
        (store / f"{name}.json").write_text("[]")
        (store / f"{name}.lock").write_text("")
    program = tmp_path / "squashmount"
    program.write_text("#!/bin/sh\n# squashmount\n")
    program.chmod(0o755)
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf))
    monkeypatch.setenv("HOME", str(tmp_path))
    conf.unlink()
    assert main(["generate", "--write", "--mount-program", str(program), str(store)]) == 0
    assert main(["check", "--strict"]) == 0


@pytest.mark.parametrize("podman", ["4", "5", "6"])
def test_site_looks_as_an_ordinary_user(conf: Path, capsys: pytest.CaptureFixture[str], podman: str) -> None:
    assert conf.exists()
    assert main(["check", "--site", "--json", "--podman", podman]) in {0, 11}
    answer = json.loads(capsys.readouterr().out)
    assert "runtime_dir" not in [finding["check"] for finding in answer["findings"]]
    assert answer["graphroot"].startswith(("/nonexistent", "/tmp", "/var", "/local"))
    assert main(["check", "--site", "--storage-conf", "/x", "--podman", podman]) == 2


def test_a_reader_that_went_away_sees_no_traceback(conf: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from squashmount.storage_conf.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "check", "--storage-conf", str(conf)]
    with os.fdopen(writer, "w") as stdout:
        done = subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
