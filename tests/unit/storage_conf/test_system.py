"""Cgroups of nodes that these tests cannot be run on."""

from pathlib import Path

import pytest
from squashmount.storage_conf.doctor import system
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.finding import Fact, Finding
from squashmount.storage_conf.podman import Installed


@pytest.mark.parametrize(
    ("folder", "podman", "kind", "severity"),
    [
        ("memory", "4.3.1", "v1", "warning"),
        ("unified", "5.4.2", "v1 and v2 (hybrid)", "warning"),
        ("memory", "6.0.1", "v1", "error"),
        ("memory", "", "v1", "warning"),
    ],
)
def test_u60(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, podman: str, kind: str, severity: str
) -> None:
    (tmp_path / "sys/fs/cgroup" / folder).mkdir(parents=True)
    installed = Installed(podman, int(podman[0])) if podman else None
    monkeypatch.setattr(system, "podman", lambda _node: installed)
    fact, finding = system.cgroups(Node(environ={}, uid=1000, gid=1000, root=str(tmp_path)))
    assert fact == Fact("cgroup", kind)
    assert isinstance(finding, Finding)
    assert (finding.id, finding.severity.value) == ("U60", severity)


def test_a_delegated_cgroup_is_no_finding(tmp_path: Path) -> None:
    for name, text in (
        ("proc/self/cgroup", "1:name=systemd:/x\n0::/user/a\n"),
        ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids"),
        ("sys/fs/cgroup/user/a/cgroup.controllers", "cpu memory pids"),
        ("sys/fs/cgroup/user/a/cgroup.procs", ""),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    answers = list(system.cgroups(Node(environ={}, uid=1000, gid=1000, root=str(tmp_path))))
    assert answers == [Fact("cgroup", "v2, /user/a: yours, controllers cpu memory pids")]


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("fusermount3 version: 3.14.0\\nfuse-overlayfs: version 1.10\\nFUSE library version 3.14.0", "1.10"),
        ("?", "of an"),
    ],
)
def test_the_tools_own_line_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, version: str) -> None:
    program = tmp_path / "fuse-overlayfs"
    program.write_text(f"#!/bin/sh\nprintf '{said}\\n'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    node = Node(environ={"PATH": f"{tmp_path}:/usr/bin:/bin"}, uid=1000, gid=1000)
    asked = next(one for one in system._PROGRAMS if one[0] == "fuse-overlayfs")
    assert system.version_of(node, *asked).startswith(version)


@pytest.mark.parametrize(
    ("program", "script", "severity", "seen"),
    [("crun", "sleep 60", "error", "did not finish in 0.5 s"), ("mksquashfs", "kill -9 $$", "warning", "signal 9")],
)
def test_a_program_that_hangs_or_dies_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, script: str, severity: str, seen: str
) -> None:
    fake = tmp_path / program
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(system, "_SECONDS", 0.5)
    monkeypatch.setattr(system, "podman", lambda _node: Installed("5.4.2", 5))
    node = Node(environ={"PATH": f"{tmp_path}:/usr/bin:/bin"}, uid=1000, gid=1000)
    found = [one for one in system.versions(node) if isinstance(one, Finding) and str(fake) in one.what]
    assert [(one.id, one.severity.value) for one in found] == [("U80", severity)]
    assert seen in found[0].evidence
