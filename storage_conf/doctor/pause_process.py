"""Podman's pause process, put back as it was: where none ran, the first podman command starts one, which stays."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


@contextmanager
def as_before(pid_files: Sequence[str]) -> Iterator[None]:
    """End the pause process that a podman started inside of the block, and remove its pause.pid, as `migrate` does.

    One that ran before stays, and so does a new one that other processes have already joined: their mounts are in its
    namespaces.
    """
    before = {path: _pause_process(path) for path in pid_files}
    try:
        yield
    finally:
        for path in pid_files:
            pid = _pause_process(path)
            if pid and pid != before[path]:
                _end(path, pid)


def _pause_process(pid_file: str) -> int:
    """Return the pid of a running process of ours in another user namespace; 0 where the file names none."""
    try:
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read(32))
        ours = os.stat(f"/proc/{pid}").st_uid == os.getuid()
        return pid if ours and _namespace(pid) not in {"", _namespace(os.getpid())} else 0
    except (OSError, ValueError):
        return 0


def _end(pid_file: str, pid: int) -> None:
    with suppress(OSError):
        handle = os.pidfd_open(pid)  # what is looked at now and what is killed then are the same process
        try:
            if _pause_process(pid_file) == pid and not _joined(pid):
                os.unlink(pid_file)
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _joined(pid: int) -> bool:
    here = _namespace(pid)
    others = (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != pid)
    return any(_namespace(other) == here for other in others)


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/user")
    except OSError:  # ended, or of another user
        return ""
