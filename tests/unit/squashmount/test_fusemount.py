"""What a user reads when FUSE cannot be mounted, and what is cleaned up then."""

import errno
import os
from pathlib import Path

import pytest

from squashmount import linux
from squashmount.errors import HostError, ToolError
from squashmount.server import fusemount


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fuse"
    path.touch()
    monkeypatch.setattr(fusemount, "DEVICE", str(path))
    return path


class Mounts:
    """Stands in for mount(2): fails with the errno given for a type, else remembers."""

    def __init__(self, **failures: int) -> None:
        self.failures = failures
        self.done: list[tuple[object, ...]] = []

    def __call__(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        if number := self.failures.get(fstype.replace(".", "_"), 0):
            raise OSError(number, os.strerror(number), target)
        self.done.append((source, target, fstype, flags, data))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.usefixtures("device")
def test_what_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = Mounts()
    monkeypatch.setattr(linux, "mount", mounts)
    fd = fusemount.mount_fuse("/mnt", source="a,b", user_id=5, group_id=6)
    os.close(fd)
    plain = fusemount.mount_fuse("/mnt", source="x", flags=1, allow_other=False, default_permissions=False)
    os.close(plain)
    flags = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID | linux.MS_NOATIME
    options = f"fd={fd},rootmode=40000,user_id=5,group_id=6,allow_other,default_permissions"
    assert mounts.done[0] == ("a,b", "/mnt", "fuse.squashmount", flags, options)
    own = f"fd={plain},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    assert mounts.done[1] == ("x", "/mnt", "fuse.squashmount", 1, own)


@pytest.mark.usefixtures("device")
def test_a_kernel_without_subtypes_gets_the_plain_type(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = Mounts(fuse_squashmount=errno.ENODEV)
    monkeypatch.setattr(linux, "mount", mounts)
    os.close(fusemount.mount_fuse("/mnt", source="x"))
    assert [done[2] for done in mounts.done] == ["fuse"]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EPERM, "podman unshare"),
        (errno.EINVAL, "user namespace"),
        (errno.ENODEV, "modprobe fuse"),
        (errno.ENOENT, "existing directory"),
        (errno.ENOTCONN, "umount -l"),
        (errno.ENOSPC, "mount-max"),
    ],
)
def test_a_refused_mount_says_why(monkeypatch: pytest.MonkeyPatch, number: int, hint: str) -> None:
    monkeypatch.setattr(linux, "mount", Mounts(fuse_squashmount=number, fuse=number))
    before = descriptors()
    with pytest.raises(HostError, match="Cannot mount a FUSE file system on /mnt") as caught:
        fusemount.mount_fuse("/mnt", source="x")
    assert hint in caught.value.hint
    assert os.strerror(number) in caught.value.details
    assert descriptors() == before


def test_a_machine_without_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fusemount, "DEVICE", str(tmp_path / "none"))
    with pytest.raises(HostError, match="Cannot open") as caught:
        fusemount.mount_fuse("/mnt", source="x")
    assert "modprobe fuse" in caught.value.hint


def test_a_device_nobody_may_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, _flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError) as caught:
        fusemount.mount_fuse("/mnt", source="x")
    assert "chmod 0666 /dev/fuse" in caught.value.hint


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "bin/fusermount3"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_fusermount_gets_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    helper(tmp_path, monkeypatch, f'printf "%s\\n" "$@" > {tmp_path}/argv')
    before = descriptors()
    with pytest.raises(HostError, match="gave no descriptor"):
        fusemount.mount_fusermount("/mnt", source="/a,b\\c", allow_other=True)
    dash_o, options, dashes, target = (tmp_path / "argv").read_text().splitlines()
    assert (dash_o, dashes, target) == ("-o", "--", "/mnt")
    assert options.endswith(",subtype=squashmount,fsname=/a\\,b\\\\c,allow_other")
    assert options.startswith("ro,nosuid,nodev,")
    assert descriptors() == before


def test_fusermount_that_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    helper(tmp_path, monkeypatch, "echo 'fusermount3: user has no write access to mountpoint' >&2; exit 1")
    before = descriptors()
    with pytest.raises(ToolError) as caught:
        fusemount.mount_fusermount("/mnt", source="x")
    assert "no write access" in caught.value.details
    assert descriptors() == before


def test_system_calls_name_the_path_and_the_errno(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing") as caught:
        linux.umount(str(tmp_path / "nothing"))
    assert caught.value.errno in {errno.ENOENT, errno.EPERM}
    assert caught.value.filename == str(tmp_path / "nothing")
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.setns(-1)
    with pytest.raises(ValueError, match="null byte"):
        linux.umount("/tmp\0/x")
