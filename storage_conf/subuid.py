"""Whether a user has a subordinate id range. Only what `generate` needs; the full checks are another module's."""

import os
import pwd

from squashmount.errors import ToolError
from squashmount.process import run

ENOUGH = 65536
"""Ids 0 … 65535 of an ordinary image; with fewer, some chown of a pull fails."""


def has_range(uid: int, *, path: str = "/etc/subuid") -> bool:
    """Tell whether /etc/subuid, or nsswitch through getsubids(1), gives the user at least `ENOUGH` ids.

    Root needs none.
    """
    if uid == 0:
        return True
    names = {str(uid)}
    try:
        names.add(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return _file_range(path, names) >= ENOUGH
    return max(_file_range(path, names), *(_nss_range(name) for name in names)) >= ENOUGH


def _file_range(path: str, names: set[str]) -> int:
    if not os.access(path, os.R_OK):
        return 0
    with open(path, encoding="utf-8", errors="replace") as file:
        rows = [line.strip().split(":") for line in file]
    return sum(
        int(row[2]) for row in rows if len(row) == 3 and row[0] in names and row[2].isascii() and row[2].isdigit()
    )


def _nss_range(name: str) -> int:
    try:
        lines = run("getsubids", name, ok=(0, 1), timeout=5).splitlines()  # "0: NAME START COUNT"
    except ToolError:
        return 0
    return sum(int(words[3]) for line in lines if len(words := line.split()) == 4 and words[3].isdigit())
