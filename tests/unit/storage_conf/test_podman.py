"""Which files count for which Podman, and how paths in them are read."""

import os
from pathlib import Path

import pytest
from squashmount.storage_conf.podman import (
    Machine,
    checked_major,
    engine_files,
    expand,
    podman_major,
    storage_files,
    unset_variables,
)

from squashmount.errors import ToolError, UsageError


def machine(root: Path, podman: int, uid: int = 1000, **environ: str) -> Machine:
    environ = {"HOME": str(root / "home"), "USER": "ann", **environ}
    return Machine(environ, uid, podman, etc=str(root / "etc"), vendor=str(root / "usr"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def names(root: Path, files: tuple[str, ...]) -> list[str]:
    return [os.path.relpath(file, root) for file in files]


def test_until_podman_5_one_file_counts(tmp_path: Path) -> None:
    touch(tmp_path, "etc/storage.conf", "usr/storage.conf", "etc/storage.conf.d/a.conf")
    assert storage_files(machine(tmp_path, 5)) == ()
    assert names(tmp_path, storage_files(machine(tmp_path, 5, uid=0))) == ["etc/storage.conf"]
    touch(tmp_path, "home/.config/containers/storage.conf")
    assert names(tmp_path, storage_files(machine(tmp_path, 4))) == ["home/.config/containers/storage.conf"]


@pytest.mark.parametrize("podman", [4, 5, 6])
def test_the_variable_beats_all_files(tmp_path: Path, podman: int) -> None:
    touch(tmp_path, "etc/storage.conf", "home/.config/containers/storage.conf", "etc/storage.conf.d/a.conf")
    assert storage_files(machine(tmp_path, podman, CONTAINERS_STORAGE_CONF="/x.conf")) == ("/x.conf",)


def test_podman_6_reads_one_main_file_and_then_drop_ins_by_name(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "usr/storage.conf",
        "etc/storage.conf",
        "etc/storage.conf.d/50-x.conf",
        "etc/storage.conf.d/20-b.conf",
        "etc/storage.conf.d/readme",
        "etc/storage.rootless.conf.d/50-x.conf",
        "etc/storage.rootless.conf.d/1000/10-a.conf",
        "etc/storage.rootless.conf.d/1001/10-other.conf",
        "etc/storage.rootful.conf.d/10-root.conf",
        "home/.config/containers/storage.conf.d/60-c.conf",
    )
    assert names(tmp_path, storage_files(machine(tmp_path, 6))) == [
        "etc/storage.conf",
        "etc/storage.rootless.conf.d/1000/10-a.conf",
        "etc/storage.conf.d/20-b.conf",
        "etc/storage.rootless.conf.d/50-x.conf",
        "home/.config/containers/storage.conf.d/60-c.conf",
    ]
    assert names(tmp_path, storage_files(machine(tmp_path, 6, uid=0)))[1:3] == [
        "etc/storage.rootful.conf.d/10-root.conf",
        "etc/storage.conf.d/20-b.conf",
    ]


def test_containers_conf_is_merged_from_all_places(tmp_path: Path) -> None:
    touch(tmp_path, "usr/containers.conf", "etc/containers.conf.d/a.conf", "home/.config/containers/containers.conf")
    expected = ["usr/containers.conf", "etc/containers.conf.d/a.conf", "home/.config/containers/containers.conf"]
    assert names(tmp_path, engine_files(machine(tmp_path, 5))) == expected
    assert names(tmp_path, engine_files(machine(tmp_path, 6))) == [expected[2], expected[1]]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/tmp/c-$UID/storage", "/tmp/c-1000/storage"),
        ("/tmp/$USER/$UID", "/tmp/ann/1000"),
        ("/tmp/c-${UID}/x", "/tmp/c-/x"),
        ("/tmp/c-${USER}/$NOPE/x/", "/tmp/c-ann/x"),
        ("", ""),
    ],
)
def test_paths_are_read_as_podman_does(tmp_path: Path, path: str, expected: str) -> None:
    assert expand(path, machine(tmp_path, 5)) == expected


def test_variables_that_become_nothing(tmp_path: Path) -> None:
    assert unset_variables("/$UID/${UID}/$USER/$NOPE", machine(tmp_path, 5)) == ("UID", "NOPE")


def fake_podman(root: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    program = root / "podman"
    program.write_text(f"#!/bin/sh\necho podman version {version}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(root))


@pytest.mark.parametrize(("version", "major"), [("4.3.1", 4), ("5.8.0-rhel", 5), ("6.1.1", 6), ("7.0.0", 6)])
def test_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, major: int) -> None:
    fake_podman(tmp_path, monkeypatch, version)
    assert podman_major() == major
    assert checked_major(None) == major


def test_a_podman_5_that_reads_its_files_as_6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_podman(tmp_path, monkeypatch, "5.8.6")
    program = tmp_path / "podman"
    refuses = '[ -z "$CONTAINERS_STORAGE_CONF_OVERRIDE" ] || exit 1'
    program.write_text(program.read_text().replace("echo", f"{refuses}\necho"))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF_OVERRIDE", "/of/the/user")
    assert podman_major() == 6


def test_the_override_is_read_last_by_podman_6_only(tmp_path: Path) -> None:
    named = {"CONTAINERS_STORAGE_CONF": "/a", "CONTAINERS_STORAGE_CONF_OVERRIDE": "/b"}
    assert storage_files(machine(tmp_path, 6, **named)) == ("/a", "/b")
    assert storage_files(machine(tmp_path, 5, **named)) == ("/a",)


def test_too_old_missing_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_podman(tmp_path, monkeypatch, "3.4.2")
    with pytest.raises(ToolError, match="not supported"):
        podman_major()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolError, match="not installed"):
        podman_major()
    with pytest.raises(UsageError, match="Podman 3"):
        checked_major(3)
