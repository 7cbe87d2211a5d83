"""A killed worker and its successor, one request at a time: what happens to the request it was busy with.

This file is also the program that mounts, in a namespace of its own, with the product's own `Workers`.
"""

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lab import wait_for
from mounted import Mounted, as_program, run_part
from squash_images import make_tree, mksquash

from squashmount import supervisor
from squashmount.server.tree import Tree

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

needs_resend = pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < supervisor.RESEND, reason="needs FUSE_NOTIFY_RESEND: Linux 6.9"
)


@pytest.fixture(scope="module")
def squash(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = tmp_path_factory.mktemp("takeover")
    (top / "tree").mkdir()
    make_tree(top / "tree")
    return mksquash(top / "tree", top / "image")


class Server(Mounted):
    """Looking up `slow…` never ends as long as the file `busy` exists."""

    def __init__(self, top: str, squash: str) -> None:
        self.busy = f"{top}/busy"
        self._make_slow()
        super().__init__(top, squash)

    def _make_slow(self) -> None:
        lookup, busy = Tree.lookup, self.busy

        def slow(tree: Tree, parent: int, name: bytes) -> Any:
            if name.startswith(b"slow") and os.path.exists(busy):
                Path(f"{busy}-{os.getpid()}").touch()
                time.sleep(1000)
            return lookup(tree, parent, name)

        Tree.lookup = slow  # type: ignore[assignment, method-assign]

    def kill(self) -> None:
        os.kill(self.workers.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.workers.pid, os.WEXITED | os.WNOWAIT)

    def ask_and_kill(self) -> tuple[str, float, bool]:
        """Return how a request ended whose worker was killed, after how many seconds, and whether others are served."""
        Path(self.busy).touch()
        asking = threading.Thread(target=self._ask, daemon=True)
        asking.start()
        wait_for(lambda: os.path.exists(f"{self.busy}-{self.workers.pid}"), "the worker has the request")
        Path(self.busy).unlink()
        killed = time.monotonic()
        self.kill()
        ended = self.workers.ended()
        asking.join(20)
        assert not asking.is_alive(), "the request was never answered"
        return self.answer, self.answered - killed, not ended

    def _ask(self) -> None:
        try:
            os.stat(f"{self.mountpoint}/slow{self.workers.pid}")
        except OSError as err:
            self.answer = errno.errorcode[err.errno or 0]
        self.answered = time.monotonic()


def interrupted(top: str, squash: str, *kernel: str) -> Any:
    if kernel:
        supervisor.RESEND = (99, 0)
    server = Server(top, squash)
    try:
        answer = server.ask_and_kill()
        # names nobody has asked for: only a server can know them
        listed = sorted(os.listdir(f"{server.mountpoint}/deep/a"))
        again = server.ask_and_kill()
        content = Path(f"{server.mountpoint}/etc/text").read_bytes()
        return answer, listed, again, len(content)
    finally:
        server.close()


@needs_resend
def test_the_successor_answers_the_request_of_a_killed_worker(squash: str, tmp_path: Path) -> None:
    first, listed, second, size = run_part(interrupted, tmp_path, squash)
    # the name does not exist, which is the right answer
    assert (first[0], first[2]) == (second[0], second[2]) == ("ENOENT", True)
    assert max(first[1], second[1]) < 5
    assert (listed, size) == (["b", "hard"], 13 * 40_000)


def test_without_resend_that_request_fails_at_once_and_others_are_answered(squash: str, tmp_path: Path) -> None:
    """Kernels before 6.9: here, the supervisor is told that this is one."""
    first, listed, second, size = run_part(interrupted, tmp_path, squash, "old")
    assert (first[0], first[2]) == (second[0], second[2]) == ("ECONNABORTED", True)
    assert max(first[1], second[1]) < 5
    assert (listed, size) == (["b", "hard"], 13 * 40_000)


def endless(top: str, squash: str, how: str) -> Any:
    server = Server(top, squash)
    signals = {"killed": signal.SIGKILL, "crashed": signal.SIGSEGV}
    try:
        for count in range(1, 300):
            os.kill(server.workers.pid, signals[how])
            os.waitid(os.P_PID, server.workers.pid, os.WEXITED | os.WNOWAIT)
            if server.workers.ended():
                return count
        return None
    finally:
        server.workers.pid = os.fork() or os._exit(0)  # close() wants a child to wait for
        server.close()


@pytest.mark.parametrize(("how", "most"), [("killed", 200), ("crashed", 5)])
def test_a_worker_that_ends_again_and_again_is_given_up(squash: str, tmp_path: Path, how: str, most: int) -> None:
    """Killed from outside it is replaced for long; what crashes by itself would for ever."""
    assert run_part(endless, tmp_path, squash, how) == most + 1


if __name__ == "__main__":
    as_program(globals())
