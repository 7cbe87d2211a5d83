"""The log of an engine, bounded: a damaged block is asked for again and again, and the log must not fill a disk."""

from squashmount.lean import Callable, suppress

Log = Callable[[str], None]

_ALL_UNTIL = 100
_THEN_EVERY = 10_000


class Complaints:
    """Passes on the first hundred lines, then one in ten thousand."""

    def __init__(self, log: Log) -> None:
        """Remember where the lines go; a log that fails is ignored."""
        self._log = log
        self._count = 0

    def __call__(self, what: str) -> None:
        """Log one line, or count it."""
        self._count += 1
        if self._count <= _ALL_UNTIL or self._count % _THEN_EVERY == 0:
            with suppress(OSError):
                self._log(f"{what} (message {self._count})" if self._count > _ALL_UNTIL else what)
