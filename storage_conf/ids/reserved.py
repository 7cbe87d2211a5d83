"""Ids that belong to somebody on every machine, or to a program that hands them out itself."""

from typing import NamedTuple

from .ranges import IDS_END


class Window(NamedTuple):
    """Ids from `start` to before `end`; `hard`: a range in them is an error, else a warning. `source` has the fact."""

    start: int
    end: int
    name: str
    hard: bool
    source: str

    def meets(self, start: int, end: int) -> bool:
        """Tell whether the half-open interval has an id in common with the window."""
        return start < self.end and self.start < end


_SYSTEMD = "systemd, docs/UIDS-GIDS.md"

WINDOWS = (
    Window(0, 1000, "root and system users", hard=True, source=_SYSTEMD),
    Window(60001, 60514, "home directories of systemd-homed", hard=True, source=_SYSTEMD),
    Window(61184, 65520, "dynamic users of systemd", hard=True, source=_SYSTEMD),
    Window(65534, 65536, "nobody, and -1 of 16 bits", hard=True, source=_SYSTEMD),
    Window(200000, 2000200000, "ids sssd computes for Active Directory", hard=False, source="sssd-ldap(5), ID MAPPING"),
    Window(524288, 1879048192, "containers of systemd-nspawn", hard=False, source=_SYSTEMD),
    Window(2147483648, IDS_END, "negative to tools that take ids for signed", hard=False, source=_SYSTEMD),
    Window(IDS_END, IDS_END + 1, "-1, which is no id", hard=True, source="setreuid(2)"),
)
"""By start; the soft ones overlap, because they matter only where the program is used."""
