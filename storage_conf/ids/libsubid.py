"""Ask libsubid, in which newuidmap and Podman look up ranges: nsswitch.conf decides as it does for them.

The names and the type are from shadow's lib/subid.h: `subid_get_uid_ranges` since ABI 4 (shadow 4.10),
`get_subuid_ranges` before. A plugin of nsswitch may print, hang or crash: call this in a child (doctor/probe.py).
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import Literal

from squashmount.errors import ToolError
from squashmount.process import run

Kind = Literal["uid", "gid"]
Pair = tuple[int, int]
"""Start and count."""

_ABIS = (6, 5, 4, 3)
PLUGIN_SYMBOLS = (
    "shadow_subid_has_range",
    "shadow_subid_list_owner_ranges",
    "shadow_subid_find_subid_owners",
)
"""What a libsubid_X.so must have, or newuidmap goes on with the files (shadow lib/nss.c, nss_init)."""


class _Range(ctypes.Structure):
    _fields_ = (("start", ctypes.c_ulong), ("count", ctypes.c_ulong))


def abi() -> int:
    """Return the number in libsubid.so.N, the newest that loads; 0 without one. shadow 4.20 has 6."""
    return _load()[0]


def ranges_of(names: Sequence[str], kind: Kind) -> list[Pair]:
    """Return the ranges of the first of the names that has any, by start, as Podman does (name, then uid).

    Empty where there are none *or* where the source does not answer: libsubid tells no difference. Without libsubid
    getsubids(1) is asked.
    """
    number, library = _load()
    for name in names:
        found = _called(library, number, name, kind) if library else _printed(name, kind)
        if found:
            return sorted(found)
    return []


@cache
def _load() -> tuple[int, ctypes.CDLL | None]:
    for number in _ABIS:
        try:
            return number, ctypes.CDLL(f"libsubid.so.{number}")
        except OSError:
            continue
    return 0, None


def _called(library: ctypes.CDLL, number: int, name: str, kind: Kind) -> list[Pair]:
    ask = getattr(library, f"subid_get_{kind}_ranges" if number >= 4 else f"get_sub{kind}_ranges")
    ask.restype = ctypes.c_int
    ask.argtypes = (ctypes.c_char_p, ctypes.POINTER(ctypes.POINTER(_Range)))
    got = ctypes.POINTER(_Range)()
    count: int = ask(os.fsencode(name), ctypes.byref(got))
    return [(got[i].start, got[i].count) for i in range(count)]  # -1 when it fails; the memory goes with the child


def _printed(name: str, kind: Kind) -> list[Pair]:
    try:
        out = run("getsubids", *(["-g"] if kind == "gid" else []), name, ok=(0, 1), timeout=12.0)
    except ToolError:
        return []
    rows = [line.split() for line in out.splitlines()]  # "0: NAME START COUNT"
    return [(int(row[2]), int(row[3])) for row in rows if len(row) == 4 and row[2].isdigit() and row[3].isdigit()]


def missing_of_plugin(word: str) -> str:
    """Return why libsubid_WORD.so cannot be used, in the words of the loader; empty when it can."""
    name = f"libsubid_{word}.so"
    try:
        library = ctypes.CDLL(name)
    except OSError as err:
        return str(err)
    lacks = [symbol for symbol in PLUGIN_SYMBOLS if not hasattr(library, symbol)]
    return f"{name} lacks {', '.join(lacks)}" if lacks else ""


def subid_lines(nsswitch: str) -> list[tuple[int, list[str]]]:
    """Return line number and words of each `subid:` line of nsswitch.conf; the first with a word decides.

    As shadow reads it (lib/nss.c): in column 1, in any case; the first word is the only one that counts.
    """
    found = []
    for number, line in enumerate(nsswitch.splitlines(), 1):
        if line[:6].lower() == "subid:" and (words := line[6:].partition("#")[0].split()):
            found.append((number, words))
    return found
