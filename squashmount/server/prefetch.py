"""Replays a profile on a fresh mount, so that the kernel knows what the first container is about to need.

A process of its own that uses the mount as any program would: it looks names up, lists directories, and asks the kernel
to read files ahead (posix_fadvise(2)). Why not FUSE_NOTIFY_STORE by a thread of the worker, which needs no requests: it
waits for pages that are being read, uninterruptibly (fs/fuse/dev.c, filemap_grab_folio). When the worker is killed in
that moment, the thread waits for an answer of its own process: it can never be reaped or replaced, and as it holds the
connection open, nobody who reads there can ever be killed. A process without the connection waits for whoever serves.

Its priority is the usual one: while a name is being looked up or a page read, everybody else who wants it waits until
the process that began has finished, and on a busy node one of low priority would not. It gives way in between instead.
"""

import os

from squashmount.errors import StoreError
from squashmount.lean import NamedTuple, signal, suppress
from squashmount.runtime import Log, Report
from squashmount.squashfs.image import SquashImage

_SECONDS = 60


class Hot(NamedTuple):
    """Open descriptors: the root of the mount (O_PATH), the profile, the squash file."""

    root: int
    profile: int
    squash: int

    def prefetch(self, *, budget: int, report: Report, log: Log) -> None:
        """Replay in a process that is nobody's child, and close root, profile and report here.

        `budget` is in bytes of files; `report` gets the counters. The caller has one thread.
        """
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                _replay(self, budget, report, log)
            os._exit(0)
        os.waitpid(child, 0)
        # an open root holds the file system: its server would never end
        os.close(self.root)
        os.close(self.profile)
        os.close(report.directory)


def find(profile: str, image: SquashImage, mountpoint: str) -> Hot | None:
    """Open a profile, and the root of the mount it is for; nothing is asked of the mount. None without a profile."""
    try:
        opened = os.open(profile, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    return Hot(os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), opened, image.fileno())


def _replay(hot: Hot, budget: int, report: Report, log: Log) -> None:
    try:
        # neither the connection, nor the locks that say that the server is alive, nor the pipe its starter waits for
        _keep_only({*hot, report.directory, 0, 1, 2})
        # whatever hangs, hangs without us; when the server ends, so does every access, and so do we
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.alarm(_SECONDS)
        from squashmount.profile import MAX_BYTES, parse  # noqa: PLC0415 - json: not while the first container waits

        from .replay import Replay  # noqa: PLC0415 - the same

        with open(hot.profile, "rb") as file:
            profile = parse(file.read(MAX_BYTES + 1), where="the profile")
        replay = Replay(hot, budget)
        replay.run(profile)
        report.write(replay.counts)
    except StoreError as err:
        log.fail(f"a profile is ignored: {err}")
    except OSError as err:
        log(f"prefetch ended early: {err}")
    except Exception as err:  # noqa: BLE001 - a process without a terminal: a bug must reach the log
        log.fail(f"prefetch: {type(err).__name__}: {err}")
    finally:
        os._exit(0)


def _keep_only(needed: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in needed:
            with suppress(OSError):
                os.close(int(name))
