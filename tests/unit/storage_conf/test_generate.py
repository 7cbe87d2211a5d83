"""The command `squashmount-conf generate` on real files, with a fake podman on PATH."""

import json
import os
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest
from squashmount.storage_conf.cli import main
from squashmount.storage_conf.subuid import has_range


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    for name, text in (("podman", "echo podman version ${FAKE_PODMAN:-5.4.2}"), ("squashmount", "exit 0")):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["/nowhere/pytest"])
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "CONTAINERS_STORAGE_CONF", "CONTAINERS_CONF"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "store").mkdir()
    return tmp_path


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_prints_both_files_and_writes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(home)
    assert main(["generate", str(home / "store")]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("### ")] == [
        f"### {home}/.config/containers/storage.conf",
        f"### {home}/.config/containers/containers.conf",
    ]
    assert f'mount_program = "{home}/bin/squashmount"' in out
    assert listing(home) == before


def test_write_installs_keeps_the_first_file_and_says_what_is_next(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = home / ".config/containers/storage.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text('# mine\n[storage]\ndriver = "vfs"\n')
    conf.chmod(0o600)
    for graphroot in ("/local/1", "/local/2"):
        assert main(["generate", "--write", "--graphroot", graphroot, str(home / "store")]) == 0
    assert (conf.parent / "storage.conf.before-squashmount").read_text() == '# mine\n[storage]\ndriver = "vfs"\n'
    assert tomllib.loads(conf.read_text())["storage"]["graphroot"] == "/local/2"
    assert conf.read_text().startswith("# mine\n")
    assert conf.stat().st_mode & 0o777 == 0o600
    out = capsys.readouterr().out
    assert f"changed: {conf} (the file of before: {conf}.before-squashmount)" in out
    assert "unchanged: " in out
    assert out.endswith("next: squashmount-conf check && podman images\n")


def test_write_through_a_symbolic_link(home: Path) -> None:
    (home / "dotfiles").mkdir()
    (home / ".config").mkdir()
    (home / ".config/containers").symlink_to(home / "dotfiles")
    (home / "dotfiles/real.conf").write_text("# dot\n")
    (home / "dotfiles/storage.conf").symlink_to("real.conf")
    assert main(["generate", "--write", str(home / "store")]) == 0
    assert (home / "dotfiles/storage.conf").is_symlink()
    assert "# dot\n" in (home / "dotfiles/real.conf").read_text()


def test_dry_run_writes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(home)
    assert main(["generate", "--write", "--dry-run", "/not/there"]) == 0
    assert "would be created: " in capsys.readouterr().out
    assert listing(home) == before


def test_podman_6_gets_drop_ins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PODMAN", "6.1.1")
    assert main(["generate", "--write", str(home / "store")]) == 0
    folder = home / ".config/containers"
    assert listing(folder) == ["containers.conf.d/50-squashmount.conf", "storage.conf.d/50-squashmount.conf"]
    storage = tomllib.loads((folder / "storage.conf.d/50-squashmount.conf").read_text())["storage"]
    assert "rootless_storage_path" not in storage


def test_site_files_below_a_prefix(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = home / "image"
    assert main(["generate", "--site", "--prefix", str(root), "--write", "--podman", "5", "/scratch/images"]) == 0
    assert listing(root) == [
        "etc/containers/containers.conf.d/50-squashmount.conf",
        "etc/containers/squashmount/storage.conf",
        "etc/containers/storage.conf",
        "etc/profile.d/squashmount.sh",
    ]
    system = tomllib.loads((root / "etc/containers/storage.conf").read_text())["storage"]
    assert system["graphroot"] == "/var/lib/containers/storage"
    assert "additionalimagestores" not in system["options"]
    assert "boot a node" in capsys.readouterr().out
    six = home / "six"
    assert main(["generate", "--site", "--prefix", str(six), "--write", "--podman", "6", "/scratch/images"]) == 0
    assert listing(six) == [
        "etc/containers/containers.rootless.conf.d/50-squashmount.conf",
        "etc/containers/storage.rootless.conf.d/50-squashmount.conf",
    ]


@pytest.mark.parametrize(
    ("uid", "environ", "own_file", "expected"),
    [
        ("1000", {}, False, "{home}/image/etc/containers/squashmount/storage.conf"),
        ("0", {}, False, ""),
        ("1000", {"CONTAINERS_STORAGE_CONF": "/mine"}, False, "/mine"),
        ("1000", {}, True, ""),
    ],
)
def test_the_profile_script(home: Path, uid: str, environ: dict[str, str], own_file: bool, expected: str) -> None:
    main(["generate", "--site", "--prefix", str(home / "image"), "--write", "--podman", "4", "/scratch/images"])
    fake_id = home / "bin/id"
    fake_id.write_text(f"#!/bin/sh\necho {uid}\n")
    fake_id.chmod(0o755)
    if own_file:
        (home / ".config/containers").mkdir(parents=True)
        (home / ".config/containers/storage.conf").write_text("")
    profile = home / "image/etc/profile.d/squashmount.sh"
    base = "/etc/containers/squashmount/storage.conf"
    profile.write_text(profile.read_text().replace(base, f"{home}/image{base}"))
    script = f'set -eu; . {profile}; echo "${{CONTAINERS_STORAGE_CONF:-}}"'
    done = subprocess.run(
        ["sh", "-c", script],
        env={"HOME": str(home), "PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected.format(home=home)


def test_files_of_a_site_are_open_to_all_whatever_the_umask(home: Path) -> None:
    before = os.umask(0o077)
    try:
        main(["generate", "--site", "--prefix", str(home / "image"), "--write", "--podman", "5", "/scratch/images"])
    finally:
        os.umask(before)
    closed = [path for path in (home / "image/etc").rglob("*") if path.stat().st_mode & 0o044 != 0o044]
    assert closed == []


def test_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--json", "--podman", "4", str(home / "store")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["podman"], answer["written"]) == (4, False)
    assert [item["change"] for item in answer["files"]] == ["created", "created"]
    assert tomllib.loads(answer["files"][0]["text"])["storage"]["driver"] == "overlay"


def test_images_left_in_the_old_place_are_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / ".local/share/containers/storage/overlay-images").mkdir(parents=True)
    assert main(["generate", "--write", str(home / "store")]) == 0
    assert f"images pulled earlier stay in {home}/.local/share/containers/storage" in capsys.readouterr().out


def test_the_mount_program_is_the_one_with_the_quick_start(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [f"{home}/bin/squashmount-conf"])
    quick = home / "bin/squashmount-mount"
    quick.symlink_to("squashmount")
    assert main(["generate", str(home / "store")]) == 0
    assert f'mount_program = "{quick}"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--write", "/not/there"], 5, "does not exist"),
        (["--graphroot", "local"], 2, "not an absolute path"),
        (["--graphroot", "/tmp/${UID}"], 2, "write $UID"),
        (["--mount-program", "bin/squashmount"], 2, "not an absolute path"),
        (["--prefix", "/x"], 2, "belongs to --site"),
        (["--site", "--graphroot", "/local/c"], 2, "the same for every user"),
        (["--podman", "3"], 2, "Podman 3"),
    ],
)
def test_wrong_use(home: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str) -> None:
    before = listing(home)
    assert main(["generate", *argv]) == code
    assert message in capsys.readouterr().err
    assert listing(home) == before


def test_a_broken_file_is_named_and_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = home / ".config/containers/storage.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("[storage")
    assert main(["generate", "--write", str(home / "store")]) == 2
    assert f"{conf} cannot be edited" in capsys.readouterr().err
    assert conf.read_text() == "[storage"


def test_a_place_that_cannot_be_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / ".config").write_text("a file where a directory should be")
    monkey = main(["generate", "--write", str(home / "store")])
    assert monkey in {2, 6}
    assert "storage.conf cannot be" in capsys.readouterr().err


def test_a_site_is_told_when_others_cannot_run_the_program(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "--site", "--prefix", str(home / "image"), "--mount-program"]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        program = Path(name) / "squashmount"
        program.write_text(f"#!{name}/closed/python\n")
        program.chmod(0o755)
        (program.parent / "closed").mkdir()
        (program.parent / "closed/python").symlink_to("/bin/sh")
        for folder in (name, f"{name}/closed", ""):
            Path(name).chmod(0o755)
            (program.parent / "closed").chmod(0o755)
            if folder:
                Path(folder).chmod(0o700)
            assert main([*argv, str(program)]) == 0
            err = capsys.readouterr().err
            assert err == (
                f"squashmount-conf: warning: other users cannot run {program}: see {folder}\n" if folder else ""
            )
    assert main([*argv, "/not/there/yet"]) == 0
    assert capsys.readouterr().err == ""


def test_subuid_ranges(tmp_path: Path) -> None:
    subuid = tmp_path / "subuid"
    subuid.write_text("4000000:100000:65536\n4000001:165536:1000\nbroken\n4000001:1:x\n")
    assert has_range(4000000, path=str(subuid))
    assert not has_range(4000001, path=str(subuid))
    assert has_range(0, path=str(tmp_path / "missing"))
