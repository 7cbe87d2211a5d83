"""User and group id maps of a user namespace (user_namespaces(7))."""

from .lean import NamedTuple


class IdRange(NamedTuple):
    """`length` ids: `inside` (seen by the container) corresponds to `outside` (seen by its parent)."""

    inside: int
    outside: int
    length: int


IdMap = tuple[IdRange, ...]
"""As /proc/PID/uid_map has it (user_namespaces(7)); empty means identity."""


def to_outside(id_map: IdMap, inside: int) -> int | None:
    """Translate one id, or None when the map does not cover it."""
    if not id_map:
        return inside
    for entry in id_map:
        if entry.inside <= inside < entry.inside + entry.length:
            return entry.outside + inside - entry.inside
    return None


def read_id_map(path: str) -> IdMap:
    """Parse /proc/PID/uid_map or gid_map: three numbers a line, inside, outside, count (user_namespaces(7))."""
    # not "ascii": every other codec is one more module to load
    with open(path, encoding="utf-8") as file:
        return tuple(IdRange(*map(int, line.split())) for line in file)
