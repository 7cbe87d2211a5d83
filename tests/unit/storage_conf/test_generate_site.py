"""What `generate` makes of a site.toml: files for each Podman, stores by audience, refusals."""

import os
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from squashmount.storage_conf import generate_command
from squashmount.storage_conf.cli import main
from squashmount.storage_conf.profile_script import script
from squashmount.storage_conf.site import Store

PROGRAM = "/usr/bin/env"
TEXT = """\
mount_program = "/usr/bin/env"
forbidden = ["/home"]
ignore_chown_errors = false
[scratch]
graphroot = "/local/$UID/g"
runroot = "/run/user/$UID/c"
[[stores]]
path = "/all"
all = true
[[stores]]
path = "/physics"
groups = ["physics"]
[[stores]]
path = "/mine"
users = ["dave"]
[modules.hpc.containers]
ipcns = "host"
annotations = ["a=b", {append = true}]
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("podman", ["4", "5", "6"])
def test_files_of_a_site(site: Path, tmp_path: Path, podman: str) -> None:
    root = tmp_path / "root"
    command = ["generate", "--site", "--write", "--prefix", str(root), "--from", str(site), "--podman", podman]
    assert main(command) == 0
    etc = root / "etc/containers"
    name = "storage.rootless.conf.d/50-squashmount.conf" if podman == "6" else "squashmount/storage.conf"
    storage = tomllib.loads((etc / name).read_text())["storage"]
    assert (storage["graphroot"], storage["runroot"]) == ("/local/$UID/g", "/run/user/$UID/c")
    assert storage["options"]["additionalimagestores"] == ["/all"]
    assert storage["options"]["overlay"] == {"mount_program": PROGRAM, "ignore_chown_errors": "false"}
    module = tomllib.loads((etc / "containers.conf.modules/hpc").read_text())
    assert module == {"containers": {"ipcns": "host", "annotations": ["a=b", {"append": True}]}}
    before = {path: path.read_text() for path in root.rglob("*") if path.is_file()}
    assert main(command) == 0
    assert {path: path.read_text() for path in root.rglob("*") if path.is_file()} == before


def chosen(text: str, tmp_path: Path, user: str, groups: str) -> dict[str, str]:
    """Run the script as a login shell of some user does, and return the variables it leaves."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    lines = f'case $1 in -un) echo {user};; -u) echo 1001;; -Gn) echo "{groups}";; -G) echo 1001 5000;; esac'
    (programs / "id").write_text(f"#!/bin/sh\n{lines}\n")
    (programs / "id").chmod(0o755)
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    out = subprocess.run(["sh", "-euc", f"{text}\nenv"], env=env, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


STORES = (
    Store("/all", everybody=True),
    Store("/mine", users=("dave", "erin")),
    Store("/physics", groups=("physics", "5000")),
    Store("/lab", groups=("lab",), users=("dave",)),
)


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("dave", "users lab", ["/mine", "/lab", "/physics", "/all"]),
        ("dav", "physic", ["/physics", "/all"]),
        ("erin", "lab physics", ["/mine", "/physics", "/lab", "/all"]),
    ],
)
@pytest.mark.parametrize("podman", [5, 6])
def test_stores_at_login(tmp_path: Path, podman: int, user: str, groups: str, expected: list[str]) -> None:
    base = tmp_path / "base.conf"
    base.write_text('[storage]\ndriver = "overlay"\n[storage.options]\n# stores\nadditionalimagestores = ["/all"]\n')
    found = chosen(script(STORES, ["/all"], podman=podman, base=str(base)), tmp_path, user, groups)
    name = found["CONTAINERS_STORAGE_CONF" if podman < 6 else "CONTAINERS_STORAGE_CONF_OVERRIDE"]
    storage = tomllib.loads(Path(name).read_text())["storage"]
    assert storage["options"]["additionalimagestores"] == expected
    assert storage.get("driver") == ("overlay" if podman < 6 else None)
    assert not [key for key in found if key.startswith("squashmount_")]
    assert stat.S_ISREG(Path(name).lstat().st_mode)


def test_without_an_audience_the_file_of_everybody(tmp_path: Path) -> None:
    base = tmp_path / "base.conf"
    base.touch()
    text = script(STORES[:1], ["/all"], podman=5, base=str(base))
    assert chosen(text, tmp_path, "dave", "x")["CONTAINERS_STORAGE_CONF"] == str(base)
    assert script(STORES[:1], ["/all"], podman=6, base=str(base)) == ""
    # a file that an admin edited into several lines is taken as it is
    base.write_text('[storage.options]\nadditionalimagestores = [\n"/all",\n]\n')
    assert chosen(script(STORES, ["/all"], podman=5, base=str(base)), tmp_path, "dave", "x")[
        "CONTAINERS_STORAGE_CONF"
    ] == str(base)
    (tmp_path / ".config/containers").mkdir(parents=True)
    (tmp_path / ".config/containers/storage.conf").write_text("")
    assert "CONTAINERS_STORAGE_CONF" not in chosen(
        script(STORES, ["/all"], podman=5, base=str(base)), tmp_path, "dave", "x"
    )


@pytest.mark.parametrize("podman", ["5", "6"])
@pytest.mark.parametrize("others", [["/all"], []])
def test_what_site_toml_names_no_more_is_gone(site: Path, tmp_path: Path, podman: str, others: list[str]) -> None:
    command = [
        "generate",
        "--site",
        "--write",
        "--prefix",
        str(tmp_path / "r"),
        "--from",
        str(site),
        "--podman",
        podman,
    ]
    first = [f'[[stores]]\npath = "{path}"\nall = true\n' for path in (*others, "/moved", "/removed")]
    site.write_text(f'mount_program = "{PROGRAM}"\n' + "".join(first))
    assert main(command) == 0
    name = "storage.rootless.conf.d/50-squashmount.conf" if podman == "6" else "squashmount/storage.conf"
    path = tmp_path / "r/etc/containers" / name
    path.write_text(path.read_text() + "# kept\n")
    then = [f'[[stores]]\npath = "{path}"\nall = true\n' for path in others]
    site.write_text(f'mount_program = "{PROGRAM}"\n' + "".join(then) + '[[stores]]\npath = "/moved"\ngroups = ["x"]\n')
    assert main(command) == 0
    assert tomllib.loads(path.read_text())["storage"]["options"]["additionalimagestores"] == others
    assert path.read_text().endswith("# kept\n")


@pytest.mark.parametrize("podman", [5, 6])
def test_no_path_is_run_by_the_login_shell(tmp_path: Path, podman: int) -> None:
    path = f"/a'; touch {tmp_path}/ran; echo '$(touch {tmp_path}/ran)"
    base = tmp_path / "base.conf"
    base.write_text(f'[storage.options]\nadditionalimagestores = ["{path}"]\n')
    found = chosen(script(STORES, [path], podman=podman, base=str(base)), tmp_path, "erin", "x")
    name = found["CONTAINERS_STORAGE_CONF" if podman < 6 else "CONTAINERS_STORAGE_CONF_OVERRIDE"]
    stores = tomllib.loads(Path(name).read_text())["storage"]["options"]["additionalimagestores"]
    assert stores == ["/mine", "/physics", path]
    assert not (tmp_path / "ran").exists()


def test_the_script_is_quiet_where_the_file_has_been_removed(tmp_path: Path) -> None:
    text = script(STORES, ["/all"], podman=5, base=str(tmp_path / "gone.conf"))
    assert "CONTAINERS_STORAGE_CONF" not in chosen(text, tmp_path, "erin", "x")


def test_a_user_gets_the_stores_of_his_audience(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_command, "_user", lambda _: "dave")
    monkeypatch.setattr(generate_command, "_groups", lambda: {"physics"})
    assert main(["generate", "--from", str(site), "--podman", "5"]) == 0
    assert 'additionalimagestores = ["/mine", "/physics", "/all"]' in capsys.readouterr().out


def test_a_link_that_leads_out_of_the_image_is_refused(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "r/etc").mkdir(parents=True)
    (tmp_path / "r/etc/profile.d").symlink_to(tmp_path / "host")
    command = ["generate", "--site", "--write", "--prefix", str(tmp_path / "r"), "--from", str(site), "--podman", "5"]
    assert main(command) == 2
    assert "leads out of" in capsys.readouterr().err
    assert list((tmp_path / "host").iterdir()) == []


def test_what_a_site_forbids(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--from", str(site), "--podman", "5", "--graphroot", "/home/$UID/g"]) == 2
    assert "graphroot /home/$UID/g is on /home, which the site forbids." in capsys.readouterr().err


def test_hooks_that_others_can_change_are_refused(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks = tmp_path / "hooks.d"
    hooks.mkdir()
    hooks.chmod(0o777)
    site.write_text(f'hooks_dirs = ["{hooks}"]\n{TEXT}')
    assert main(["generate", "--site", "--from", str(site), "--podman", "5"]) == 2
    assert f"{hooks} is not trusted." in capsys.readouterr().err
