"""The built-in server behind a real mount; this file is also the program that mounts, in a namespace of its own."""

import contextlib
import errno
import hashlib
import os
import pickle
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from squash_images import add_xattrs, describe_folder, make_tree, mksquash

from squashmount import linux
from squashmount.server.fusemount import mount_fuse, mount_fusermount, unmount_fuse
from squashmount.server.tree import IdShift, Tree
from squashmount.server.wire import Stats, serve
from squashmount.squashfs.image import SquashImage

TESTS = str(Path(__file__).resolve().parents[1])
LIMIT = 60

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("source") / "tree"
    top.mkdir()
    make_tree(top)
    add_xattrs(top)
    (top / "many").mkdir()
    for number in range(5000):
        (top / f"many/entry-{number}").symlink_to(str(number))
    return top


@pytest.fixture(scope="module")
def squash(source: Path) -> str:
    return mksquash(source, source.parent / "image", "-comp", "zstd", "-Xcompression-level", "3")


def run(action: Callable[..., Any], *args: str, tmp_path: Path) -> Any:
    """Run one of the functions below in a process of its own; kill all of it (server included) when it hangs."""
    (tmp_path / "mnt").mkdir(exist_ok=True)
    os.chmod(tmp_path / "mnt", 0o777)
    program = subprocess.Popen(
        [sys.executable, __file__, action.__name__, str(tmp_path / "mnt"), *args],
        env=os.environ | {"PYTHONPATH": TESTS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = program.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
        pytest.fail(f"{action.__name__} did not end in {LIMIT} s")
    assert program.returncode == 0, err.decode()
    return pickle.loads(out)


@contextlib.contextmanager
def served(mountpoint: str, squash: str, mount: Callable[..., int] = mount_fuse) -> Iterator[int]:
    """Mount and serve from a child process; yields its pid. Everything must have been answered without complaint."""
    fd = mount(mountpoint, source=squash)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        complaints: list[str] = []
        try:
            with SquashImage.open(squash) as image:
                serve(fd, Tree(image, IdShift()), stats=Stats(), log=complaints.append)
        finally:
            sys.stderr.write("\n".join(complaints))
            os._exit(len(complaints))
    os.close(fd)
    try:
        yield pid
    finally:
        unmount_fuse(mountpoint)
        _, status = os.waitpid(pid, 0)
    assert status in {0, signal.SIGKILL}, status


def private_mounts() -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)


def describe(mountpoint: str, squash: str) -> Any:
    private_mounts()
    with served(mountpoint, squash):
        return describe_folder(mountpoint)


def test_the_mounted_tree_is_the_packed_tree(source: Path, squash: str, tmp_path: Path) -> None:
    found = run(describe, squash, tmp_path=tmp_path)
    expected = describe_folder(source)
    assert found.keys() == expected.keys()
    assert len(found) > 5000
    for path, facts in expected.items():
        assert found[path] == facts, path


def answers(mountpoint: str, squash: str) -> Any:
    """What single calls on the mount return."""
    private_mounts()
    text = f"{mountpoint}/etc/text"
    found: dict[str, Any] = {}

    def errno_of(name: str, call: Callable[[], Any]) -> None:
        try:
            found[name] = call()
        except OSError as err:
            found[name] = errno.errorcode[err.errno or 0]

    with served(mountpoint, squash):
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            found["mount"] = next(line for line in file if mountpoint in line)
        for attempt in ("first", "again"):
            errno_of(f"absent {attempt}", lambda: os.stat(f"{mountpoint}/none"))
        errno_of("write", lambda: os.open(text, os.O_WRONLY | os.O_APPEND))
        errno_of("mkdir", lambda: os.mkdir(f"{mountpoint}/x"))
        errno_of("unlink", lambda: os.unlink(text))
        errno_of("setxattr", lambda: os.setxattr(text, "user.x", b"1"))
        errno_of("not a directory", lambda: os.stat(f"{text}/x"))
        errno_of("no attribute", lambda: os.getxattr(text, "user.none"))
        errno_of("long name", lambda: os.stat(f"{mountpoint}/{'n' * 300}"))
        errno_of("free", lambda: os.statvfs(mountpoint).f_bfree)
        errno_of("dotdot", lambda: os.listdir(f"{mountpoint}/deep/a/b/../../../bin"))
        with open(text, "rb") as file:
            file.seek(0, os.SEEK_END)
            errno_of("seek", file.tell)
            errno_of("hole", lambda: os.lseek(file.fileno(), 0, os.SEEK_HOLE))
            errno_of("beyond", lambda: os.pread(file.fileno(), 10, 1 << 62))
    return found


def test_single_calls(source: Path, squash: str, tmp_path: Path) -> None:
    found = run(answers, squash, tmp_path=tmp_path)
    size = (source / "etc/text").stat().st_size
    mount = found.pop("mount")
    assert " - fuse.squashmount " in mount
    assert " ro,nosuid,nodev,noatime " in mount
    assert found == {
        "absent first": "ENOENT",
        "absent again": "ENOENT",
        "write": "EROFS",
        "mkdir": "EROFS",
        "unlink": "EROFS",
        "setxattr": "EROFS",
        "not a directory": "ENOTDIR",
        "no attribute": "ENODATA",
        "long name": "ENAMETOOLONG",
        "free": 0,
        "dotdot": ["su"],
        "seek": size,
        "hole": size,
        "beyond": b"",
    }


def many_readers(mountpoint: str, squash: str) -> Any:
    private_mounts()
    sums: list[str] = []

    def read() -> None:
        digest = hashlib.sha256()
        for folder, folders, files in os.walk(mountpoint):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, "rb") as file:
                        digest.update(file.read())
                else:
                    digest.update(os.fsencode(name))
        sums.append(digest.hexdigest())

    with served(mountpoint, squash):
        threads = [threading.Thread(target=read) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sums


def test_sixteen_readers_at_once(squash: str, tmp_path: Path) -> None:
    sums = run(many_readers, squash, tmp_path=tmp_path)
    assert len(sums) == 16
    assert len(set(sums)) == 1


def killed(mountpoint: str, squash: str) -> Any:
    private_mounts()
    with served(mountpoint, squash) as pid:
        os.listdir(mountpoint)
        os.kill(pid, signal.SIGKILL)
        started = time.monotonic()
        while True:  # until the kernel has closed the dead process's descriptor
            try:
                os.stat(f"{mountpoint}/deep/a")
            except OSError as err:
                return errno.errorcode[err.errno or 0], time.monotonic() - started
            time.sleep(0.01)


def test_a_killed_server_is_an_error_and_not_a_hang(squash: str, tmp_path: Path) -> None:
    code, seconds = run(killed, squash, tmp_path=tmp_path)
    assert code in {"ENOTCONN", "ECONNABORTED"}
    assert seconds < 5


def survivor(mountpoint: str, squash: str) -> Any:
    """Kill the server again and again while a walk is under way; the next one takes over the same descriptor."""
    private_mounts()
    fd = mount_fuse(mountpoint, source=squash)
    results, found = os.pipe()
    serving = 0
    kills = 0
    walker = 0
    try:
        while True:
            serving = os.fork()
            if serving == 0:
                with SquashImage.open(squash) as image:
                    serve(fd, Tree(image), log=lambda _line: None, resumed=walker > 0)
                os._exit(0)
            if not walker:
                walker = os.fork()
                if walker == 0:
                    os.close(fd)
                    os.close(results)
                    with os.fdopen(found, "wb") as file:
                        pickle.dump([describe_folder(mountpoint) for _ in range(3)], file)
                    os._exit(0)
                os.close(found)
            if select.select([results], [], [], 0.1)[0] or kills == 10:
                break
            os.kill(serving, signal.SIGKILL)
            os.waitpid(serving, 0)
            kills += 1
        with os.fdopen(results, "rb") as file:
            return kills, pickle.load(file)
    finally:
        unmount_fuse(mountpoint)
        os.kill(serving, signal.SIGKILL)
        os.waitpid(serving, 0)
        os.waitpid(walker, 0)


@pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 9), reason="needs FUSE_NOTIFY_RESEND: Linux 6.9"
)
def test_a_successor_answers_what_a_killed_server_left(source: Path, squash: str, tmp_path: Path) -> None:
    kills, walks = run(survivor, squash, tmp_path=tmp_path)
    assert kills >= 1
    assert walks == [describe_folder(source)] * 3


def in_user_namespace(mountpoint: str, squash: str) -> Any:
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    for name, line in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(line)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    with served(mountpoint, squash):
        info = os.stat(f"{mountpoint}/bin/su")
        return info.st_uid, info.st_size, len(os.listdir(f"{mountpoint}/many"))


def test_a_mount_in_a_user_namespace(squash: str, tmp_path: Path) -> None:
    assert run(in_user_namespace, squash, tmp_path=tmp_path) == (65534, 10, 5000)


def through_fusermount(mountpoint: str, squash: str) -> Any:
    """Mount as an ordinary user, one that passwd knows (fusermount3 asks).

    The device is a copy with mode 0666, visible in this namespace only.
    """
    private_mounts()
    device = os.path.join(os.path.dirname(mountpoint), "fuse")
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(10, 229))
    os.chmod(device, 0o666)
    linux.mount(device, "/dev/fuse", None, linux.MS_BIND)
    os.chown(mountpoint, 65534, 65534)
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    with served(mountpoint, squash, mount_fusermount):
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            mount = next(line for line in file if mountpoint in line)
        return mount, os.stat(f"{mountpoint}/bin/su").st_size


@pytest.mark.skipif(not os.path.exists("/usr/bin/fusermount3"), reason="needs fusermount3")
def test_an_ordinary_user_mounts_through_fusermount(squash: str) -> None:
    import shutil
    import tempfile

    # pytest's folders are root's alone.
    top = Path(tempfile.mkdtemp(prefix="squash,mount-"))
    try:
        top.chmod(0o755)
        shutil.copy(squash, top / "a,b.squashfs")
        mount, size = run(through_fusermount, str(top / "a,b.squashfs"), tmp_path=top)
    finally:
        shutil.rmtree(top)
    assert f" - fuse.squashmount {top}/a,b.squashfs " in mount
    assert size == 10


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
