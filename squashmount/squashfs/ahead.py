"""Decoding ahead: while files in one fragment are being read, a thread reads and decodes the next fragments.

Decompressors leave Python's lock to others, so this uses a second processor where there is one. The kernel's own
read-ahead stops at the end of each file. Within a large file it does the same for us, two requests at a time: doing it
here, too, made reading 256 MiB 13 % slower on two processors (a third thread wants Python's lock).
"""

from _queue import SimpleQueue  # what `queue` offers under this name; `queue` also imports threading and heapq

from squashmount.lean import Callable, Iterable, Lock, Thread, suppress

DEPTH = 2
"""How many are asked for at most, and as many as were used in sequence before. 5,000 small files on two processors,
cold: 255 ms without, 243 with one, 236 with two, 260 with eight."""

Key = tuple[int, int]
"""(position, size word) of a stored block."""


class Ahead:
    """A queue of runs of blocks and the thread that empties it, started with the first one."""

    __slots__ = ("_fetch", "_lock", "_queue", "_queued", "_thread")

    def __init__(self, fetch: Callable[[list[Key]], None]) -> None:
        """`fetch` decodes blocks into a cache; what it raises is forgotten: whoever needs the block meets it again."""
        self._fetch = fetch
        self._queue: SimpleQueue[list[Key] | None] = SimpleQueue()
        self._queued: set[Key] = set()
        self._lock = Lock()
        self._thread: Thread | None = None

    def __contains__(self, key: Key) -> bool:
        """Tell whether a block was asked for and is not decoded yet."""
        return key in self._queued

    def put(self, keys: Iterable[Key]) -> None:
        """Ask for blocks, those first that are needed first."""
        run = [key for key in keys if key not in self._queued]
        if run and (self._thread is not None or self._start()):
            self._queued.update(run)
            self._queue.put(run)

    def close(self) -> None:
        """Return when nothing is being read or decoded any more; what was asked for is forgotten."""
        with self._lock:
            if self._thread is not None:
                self._queued.clear()
                self._queue.put(None)
                self._thread.join()
                self._thread = None

    def _start(self) -> bool:
        """Tell whether there is a thread; at the limit of processes there is none, and nothing is decoded ahead."""
        with self._lock, suppress(RuntimeError):
            if self._thread is None:
                thread = Thread(target=self._run, daemon=True)
                thread.start()
                self._thread = thread
        return self._thread is not None

    def _run(self) -> None:
        while (run := self._queue.get()) is not None:
            try:
                self._fetch([key for key in run if key in self._queued])
            except Exception:  # noqa: BLE001, S110 - see __init__; nobody would miss this thread if it ended
                pass
            finally:
                self._queued.difference_update(run)
