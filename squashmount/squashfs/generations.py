"""A bounded cache without a lock: when the young generation is full it becomes the old one, and the old one is dropped.

Not exact LRU: an entry used since the last turn survives the next. What it buys is a hit that costs one dictionary
access and needs no lock (single dictionary operations are atomic), which matters at 100,000 look-ups a second.
"""

from squashmount.lean import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Generations(Generic[K, V]):
    """At most two generations of `limit` total weight each (plus one entry that may exceed it alone)."""

    __slots__ = ("_limit", "_old", "_weight", "_young")

    def __init__(self, limit: int) -> None:
        """`limit` is in the unit of the weights given to `put`."""
        self._limit = limit
        self._weight = 0
        self._young: dict[K, tuple[V, int]] = {}
        self._old: dict[K, tuple[V, int]] = {}

    def get(self, key: K) -> V | None:
        """Return the value or None; a hit in the old generation moves to the young one."""
        hit = self._young.get(key)
        if hit is None:
            hit = self._old.get(key)
            if hit is None:
                return None
            self.put(key, hit[0], hit[1])
        return hit[0]

    def put(self, key: K, value: V, weight: int = 1) -> None:
        """Remember the value. Two threads may store the same key: the last one stays."""
        if self._weight + weight > self._limit:
            self._old = self._young
            self._young = {}
            self._weight = 0
        self._young[key] = (value, weight)
        self._weight += weight

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
