"""Ranges of subordinate ids and the accounts that own them: values, and arithmetic on them.

Intervals are half-open: `start` belongs to a range, `end` does not, so neighbours share no id.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Literal

Kind = Literal["uid", "gid"]
KINDS: tuple[Kind, Kind] = ("uid", "gid")

IDS_END = 2**32 - 1
"""The first number that is no id: (uid_t)-1 means "unchanged" (chown(2)), newuidmap refuses ranges that reach it."""

ENOUGH = 65536
"""Ids 0 … 65535 of an ordinary image; 65534 is nobody."""


@dataclass(frozen=True, slots=True)
class Range:
    """`count` ids from `start` on that belong to `owner`.

    `owner` is a login name or a uid in decimal digits, as the source has it; of an LDAP entry the name of the account
    its owner DN is, or that DN itself where no account has it. `line` counts from 1 in a file or LDIF; 0: no lines.
    """

    owner: str
    start: int
    count: int
    kind: Kind
    source: str = ""
    line: int = 0
    dn: str = ""

    @property
    def end(self) -> int:
        """The first id after the range."""
        return self.start + self.count

    @property
    def where(self) -> str:
        """Where an admin finds it: a DN, `FILE:LINE`, or the source."""
        return self.dn or (f"{self.source}:{self.line}" if self.line else self.source)

    def __str__(self) -> str:
        return f"{self.owner}: sub{self.kind} {self.start}-{self.end - 1} ({self.where})"


@dataclass(frozen=True, slots=True)
class Account:
    """A real user: the ids that files of his carry on every node. `login`: has a shell that lets him in."""

    name: str
    uid: int
    gid: int
    source: str = ""
    dn: str = ""
    login: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    """A real group."""

    name: str
    gid: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two ranges of one kind that have ids in common; `second` starts at or after `first`."""

    first: Range
    second: Range

    @property
    def start(self) -> int:
        """The first common id."""
        return self.second.start

    @property
    def end(self) -> int:
        """The id after the last common one."""
        return min(self.first.end, self.second.end)


_order = attrgetter("start", "count", "owner", "line", "dn")


def by_start(ranges: Iterable[Range]) -> list[Range]:
    """Return the ranges in an order that does not depend on the order of the input."""
    return sorted(ranges, key=_order)


def overlaps(ranges: Iterable[Range]) -> Iterator[Overlap]:
    """Yield for each range that starts inside another one a pair of both; ranges are of one kind.

    Every range that has ids in common with any other is in at least one pair, and there are fewer pairs than ranges:
    20,000 copies of one line are 19,999 pairs, not 200 million. O(n log n).
    """
    furthest: Range | None = None
    for current in by_start(ranges):
        if current.count <= 0:
            continue
        if furthest is not None and current.start < furthest.end:
            yield Overlap(furthest, current)
        if furthest is None or current.end > furthest.end:
            furthest = current


def holders(ranges: Iterable[Range], ids: Sequence[int]) -> Iterator[tuple[int, Range]]:
    """Yield for each of the ids that lies in a range the id's index, and the range that reaches furthest of those.

    O((n + m) log n). The ranges are of one kind, their order does not matter.
    """
    ordered = by_start(item for item in ranges if item.count > 0)
    starts = [item.start for item in ordered]
    furthest = list(accumulate(ordered, _further))
    for index, number in enumerate(ids):
        position = bisect_right(starts, number) - 1
        if position >= 0 and furthest[position].end > number:
            yield index, furthest[position]


def _further(best: Range, item: Range) -> Range:
    return item if item.end > best.end else best


class Owners:
    """Finds the account behind the owner of a range, who is a name or a uid in digits."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        """Index the accounts; of two with the same name or uid the first counts, as with nsswitch."""
        self._by_name: dict[str, Account] = {}
        self._by_uid: dict[int, Account] = {}
        for account in accounts:
            self._by_name.setdefault(account.name, account)
            self._by_uid.setdefault(account.uid, account)

    def account(self, owner: str) -> Account | None:
        """Return the account, or None for an owner that is nobody."""
        found = self._by_name.get(owner)
        if found is None and owner.isascii() and owner.isdigit() and len(owner) <= 10:
            return self._by_uid.get(int(owner))
        return found

    def uid(self, owner: str) -> int | None:
        """Return the owner's uid: also of a number without an account, None for a name without one."""
        found = self.account(owner)
        if found is not None:
            return found.uid
        return int(owner) if owner.isascii() and owner.isdigit() and len(owner) <= 10 else None

    def name(self, owner: str) -> str:
        """Return the login name if there is one, else the owner as it is written."""
        found = self.account(owner)
        return found.name if found is not None else owner
