"""The dynamic loader's cache of libraries, /etc/ld.so.cache: which name is found where.

Source: elf/cache.c and sysdeps/generic/dl-cache.h of glibc. Three layouts exist: the old one (`ldconfig -c old`), the
new one (default since glibc 2.32), and the new one behind an old one in the same file (default before).
"""

import struct
from collections.abc import Iterable
from typing import Any

from squashmount.errors import SquashmountError

from .tree import Tree

PATH = "/etc/ld.so.cache"

_MOST_BYTES = 16 << 20
"""A distribution with everything installed has 1 MiB."""

_OLD_MAGIC = b"ld.so-1.7.0"
_OLD_HEADER, _OLD_ENTRY = 16, 12
_NEW_MAGIC = b"glibc-ld.so.cache1.1"
_NEW_HEADER, _NEW_ENTRY = 48, 24
_LITTLE, _BIG = 2, 3
_LONGEST = 4096


class CacheError(SquashmountError):
    """A loader cache that is damaged or too large. The libraries are then looked for in the directories."""


def read_cache(tree: Tree) -> dict[str, list[str]]:
    """Return the paths by name, those for newer processors first; nothing when the tree has no cache (musl).

    Raises CacheError, and OSError when reading fails.
    """
    kind = tree.kind(PATH)
    if not kind:
        return {}
    if kind != "file":
        raise CacheError(f"{PATH} is not a file.")
    if (size := tree.size(PATH)) > _MOST_BYTES:
        raise CacheError(f"{PATH} has {size} bytes, more than any loader cache.", hint="run ldconfig in the image")
    with tree.open(PATH) as file:
        return parse_cache(file.read(_MOST_BYTES))


def parse_cache(data: bytes) -> dict[str, list[str]]:
    """Return the paths by name from the bytes of a cache. Raises CacheError."""
    if data.startswith(_NEW_MAGIC):
        return _parse_new(data)
    if not data.startswith(_OLD_MAGIC) or len(data) < _OLD_HEADER:
        raise _damaged("it begins with neither of the two known marks")
    order, count = _order_that_fits(data, 12, _OLD_HEADER, _OLD_ENTRY)
    end = _OLD_HEADER + count * _OLD_ENTRY
    # the new part is aligned for its widest member: 8 bytes, 4 on 32-bit x86
    for alignment in (8, 4):
        start = -(-end // alignment) * alignment
        if data.startswith(_NEW_MAGIC, start):
            return _parse_new(data[start:])
    return _entries(data[end:], struct.iter_unpack(f"{order}iII", data[_OLD_HEADER:end]))


def _parse_new(data: bytes) -> dict[str, list[str]]:
    if len(data) < _NEW_HEADER:
        raise _damaged("it ends within its header")
    order, count = _order_that_fits(data, 20, _NEW_HEADER, _NEW_ENTRY, order=data[28] & 3)
    end = _NEW_HEADER + count * _NEW_ENTRY
    return _entries(data, struct.iter_unpack(f"{order}iIIIQ", data[_NEW_HEADER:end]))


def _order_that_fits(data: bytes, at: int, header: int, entry: int, *, order: int = 0) -> tuple[str, int]:
    """Return the byte order and the number of entries; caches before glibc 2.33 do not say their byte order."""
    for mark in {_LITTLE: "<", _BIG: ">"}.get(order, "<>"):
        count: int = struct.unpack_from(f"{mark}I", data, at)[0]
        if header + count * entry <= len(data):
            return mark, count
    raise _damaged("it says to have more entries than fit")


def _entries(strings: bytes, entries: Iterable[tuple[Any, ...]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for _, name, path, *_ in entries:
        paths = found.setdefault(_string(strings, name), [])
        if (text := _string(strings, path)).startswith("/") and text not in paths:
            paths.append(text)
    return found


def _string(strings: bytes, start: int) -> str:
    end = strings.find(b"\0", start, start + _LONGEST)
    if end < 0:
        raise _damaged(f"a name at {start} without an end")
    return strings[start:end].decode("utf-8", "surrogateescape")


def _damaged(why: str) -> CacheError:
    return CacheError(f"{PATH} is damaged.", details=why, hint="run ldconfig in the image")
