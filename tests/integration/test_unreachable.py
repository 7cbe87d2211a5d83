"""The squash file lies on a file system that fails, hangs, shrinks or goes away: every request gets an answer.

Two real mounts: `far` is a FUSE file system with one file, whose mood the test sets; our server reads its squash file
there. This file is also the program that mounts, in a namespace of its own.
"""

import contextlib
import errno
import hashlib
import mmap
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mounted import as_program, run_part
from squash_images import mksquash, noise

from squashmount import linux
from squashmount.server.fusemount import mount_fuse, unmount_fuse
from squashmount.server.tree import Attr, Shown, Tree, Usage
from squashmount.server.wire import serve
from squashmount.squashfs.image import SquashImage

FILES, SIZE = 100, 300_000
READERS = 16
HEALTHY, FAILING, HANGING, SHRUNK = range(4)

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


@pytest.fixture(scope="module")
def squash(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = tmp_path_factory.mktemp("far")
    (top / "tree").mkdir()
    for number in range(FILES):
        (top / f"tree/{number}").write_bytes(noise(SIZE + number))
    return mksquash(top / "tree", top / "image", "-comp", "gzip")


class OneFile:
    """What `far` shows: node 2, `image`, read from a real file as the mood wants it."""

    has_xattrs = False
    uids = gids = Shown(lambda inside: inside)

    def __init__(self, path: str, mood: mmap.mmap) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._mood = mood

    @staticmethod
    def cache_counts() -> dict[str, int]:
        return {}

    def attr(self, node: int) -> Attr:
        kind = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
        return Attr(node, os.fstat(self._fd).st_size, 0, 0, kind, 1, 0, 0, 0)

    def lookup(self, _parent: int, _name: bytes) -> tuple[int, Attr]:
        return 2, self.attr(2)

    def read(self, _node: int, offset: int, size: int) -> list[bytes]:
        while self._mood[0] == HANGING:
            time.sleep(0.01)
        if self._mood[0] == FAILING:
            raise OSError(errno.EREMOTEIO, "the file server is gone")
        return [os.pread(self._fd, 1 if self._mood[0] == SHRUNK else size, offset)]

    @staticmethod
    def usage() -> Usage:
        return Usage(4096, 1, 1, 255)


class Near:
    """Our server on top of `far`."""

    def __init__(self, top: str, squash: str) -> None:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        self._log = Path(top, "log")
        self._log.touch()
        self.mood = mmap.mmap(-1, 4096)
        self.far, self.mnt = f"{top}/far", f"{top}/mnt"
        for path in (self.far, self.mnt):
            os.mkdir(path)
        self.far_pid = self._serving(self.far, lambda fd: serve(fd, OneFile(squash, self.mood), threads=4, log=print))  # type: ignore[arg-type]
        self.pid = self._serving(self.mnt, self._serve)

    def _serve(self, fd: int) -> None:
        def log(line: str) -> None:
            with self._log.open("a") as file:
                file.write(f"{line}\n")

        with SquashImage.open(f"{self.far}/image") as image:
            serve(fd, Tree(image), threads=2, log=log)

    @staticmethod
    def _serving(target: str, work: Callable[[int], None]) -> int:
        fd = mount_fuse(target, source="test")
        pid = os.fork()
        if pid == 0:
            try:
                work(fd)
            finally:
                os._exit(0)
        os.close(fd)
        return pid

    def forget(self) -> None:
        """Drop what the kernel remembers of the squash file, so that far is asked."""
        fd = os.open(f"{self.far}/image", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)

    def set(self, mood: int) -> None:
        self.mood[0] = mood
        self.forget()

    def read(self, number: int) -> str:
        """Return a file's checksum or the errno."""
        try:
            return hashlib.sha256(Path(self.mnt, str(number)).read_bytes()).hexdigest()
        except OSError as err:
            return errno.errorcode[err.errno or 0]

    def read_at_once(self, first: int, *, during: Callable[[], None] = lambda: None) -> list[str]:
        found = dict.fromkeys(range(first, first + READERS), "no answer")
        threads = [threading.Thread(target=lambda n=n: found.update({n: self.read(n)}), daemon=True) for n in found]
        for thread in threads:
            thread.start()
        during()
        for thread in threads:
            thread.join(20)
        return list(found.values())

    def log(self) -> list[str]:
        return self._log.read_text().splitlines()

    def alive(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)


@contextlib.contextmanager
def near(top: str, squash: str) -> Iterator[Near]:
    server = Near(top, squash)
    try:
        yield server
    finally:
        server.mood[0] = HEALTHY
        for path in (server.mnt, server.far):
            unmount_fuse(path)
        for pid in (server.pid, server.far_pid):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def right(first: int, count: int = READERS) -> list[str]:
    return [hashlib.sha256(noise(SIZE + number)).hexdigest() for number in range(first, first + count)]


def failing(top: str, squash: str) -> Any:
    with near(top, squash) as server:
        found = [server.read_at_once(0)]
        server.set(FAILING)
        found.append(server.read_at_once(20))
        cached = server.read_at_once(0)
        lines = server.log()
        server.set(HEALTHY)
        return [*found, server.read_at_once(20)], cached, lines, server.alive()


def test_an_error_of_the_file_system_is_an_error_of_that_request_only(squash: str, tmp_path: Path) -> None:
    (before, during, after), cached, lines, alive = run_part(failing, tmp_path, squash)
    assert before == right(0)
    assert during == ["EIO"] * READERS
    assert cached == right(0), "what the kernel has goes on being served"
    assert len(lines) >= READERS
    assert all("read of node" in line and "Input/output error" in line for line in lines)
    assert after == right(20), "an error is not remembered"
    assert alive


def hanging(top: str, squash: str) -> Any:
    with near(top, squash) as server:
        server.read(0)
        server.set(HANGING)

        def recover() -> None:
            time.sleep(1)
            server.set(HEALTHY)

        return server.read_at_once(20, during=recover), server.log(), server.alive()


def test_readers_wait_for_a_file_system_that_hangs_and_then_get_the_data(squash: str, tmp_path: Path) -> None:
    found, lines, alive = run_part(hanging, tmp_path, squash)
    assert (found, lines, alive) == (right(20), [], True)


def shrunk(top: str, squash: str) -> Any:
    with near(top, squash) as server:
        server.read(0)
        server.set(SHRUNK)
        found = server.read_at_once(20)
        return found, server.log(), server.alive(), server.read(0)


def test_a_file_that_ends_early_is_damage_and_not_wrong_data(squash: str, tmp_path: Path) -> None:
    """To the kernel a short answer is the new end of the file (fs/fuse/file.c, fuse_short_read)."""
    found, lines, alive, cached = run_part(shrunk, tmp_path, squash)
    assert found == ["EIO"] * READERS
    assert sum("is damaged" in line for line in lines) == sum("it ends at" in line for line in lines) >= READERS
    assert (alive, [cached]) == (True, right(0, 1))


def gone(top: str, squash: str) -> Any:
    with near(top, squash) as server:
        server.read(0)
        os.kill(server.far_pid, signal.SIGKILL)
        os.waitpid(server.far_pid, 0)
        server.far_pid = server.pid  # it is gone: there is nothing else to end
        found = server.read_at_once(20)
        return found, server.read(0), len(os.listdir(server.mnt)), server.log(), server.alive()


def test_a_file_system_that_is_gone_for_good_hangs_nobody(squash: str, tmp_path: Path) -> None:
    found, cached, names, lines, alive = run_part(gone, tmp_path, squash)
    assert found == ["EIO"] * READERS
    assert ([cached], names, alive) == (right(0, 1), FILES, True)
    assert any("not connected" in line for line in lines)


if __name__ == "__main__":
    as_program(globals())
