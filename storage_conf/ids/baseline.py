"""What ranges everybody had: a file to compare with, because files keep the ids they were written with.

JSON lines: a header with the SHA-256 of the rest, then a record for each uid, and one for what it or its predecessor
had before (`retired`). Records go by uid, not by name: a rename changes no file. What is retired stays in the file
forever: whoever got such ids would own the files of somebody else.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from squashmount.errors import DamagedError, StoreError, UsageError
from squashmount.jsonio import get_int, get_str, load_object

from ..finding import Finding, Severity
from .allocate import Past
from .inventory import opened
from .ranges import Account, Owners, Range

FORMAT = 1
Spans = tuple[tuple[int, int], ...]
"""Starts and counts, in order, merged where they meet: the order in which a container counts them."""


@dataclass(frozen=True, slots=True)
class Record:
    """The ranges of one uid, now or, with a date in `retired`, until then. Dates are YYYY-MM-DD."""

    uid: int
    name: str
    subuid: Spans
    subgid: Spans
    since: str
    source: str = ""
    retired: str = ""

    def past(self) -> Iterator[Past]:
        """Yield what must not be given to anybody else."""
        for start, count in dict.fromkeys((*self.subuid, *self.subgid)):
            yield Past(self.uid, self.name, start, count, self.retired)


@dataclass(frozen=True)
class Baseline:
    """All records, by uid, the retired ones before those in force."""

    records: tuple[Record, ...] = ()
    saved: str = ""

    def live(self) -> dict[int, Record]:
        """Return what is in force, by uid."""
        return {one.uid: one for one in self.records if not one.retired}

    def past(self) -> list[Past]:
        """Return all ranges that somebody has or had; of one user the latest last."""
        return [past for one in self.records for past in one.past()]


class Change(Enum):
    """What happened to the ranges of a uid."""

    ADDED = "added"
    GROWN = "grown"
    REMOVED = "removed"
    MOVED = "moved"
    SHRUNK = "shrunk"
    REUSED = "uid reused"
    REISSUED = "reissued"


@dataclass(frozen=True)
class Difference:
    """One uid that is not as in the baseline."""

    change: Change
    uid: int
    before: Record | None
    after: Record | None
    other: str = ""

    def __str__(self) -> str:
        names = [one.name for one in (self.before, self.after) if one is not None]
        who = f"{' -> '.join(dict.fromkeys(names))} ({self.uid})"
        if self.change is Change.REISSUED:
            return f"{who}: {_said(self.after)}: {self.other}"
        return f"{who}: {_said(self.before)} -> {_said(self.after)}"


def _said(record: Record | None) -> str:
    if record is None:
        return "none"
    uids, gids = (", ".join(f"{start}:{count}" for start, count in spans) or "none" for spans in _both(record))
    return uids if uids == gids else f"subuid {uids} subgid {gids}"


def _both(record: Record) -> tuple[Spans, Spans]:
    return record.subuid, record.subgid


def spans(ranges: Iterable[tuple[int, int]]) -> Spans:
    """Return starts and counts sorted, without common ids, and merged."""
    made: list[tuple[int, int]] = []
    for start, count in sorted(ranges):
        if made and start <= sum(made[-1]):
            made[-1] = (made[-1][0], max(sum(made[-1]), start + count) - made[-1][0])
        elif count > 0:
            made.append((start, count))
    return tuple(made)


def without(ids: Spans, taken: Spans) -> Spans:
    """Return the ids that are not taken."""
    left: list[tuple[int, int]] = []
    for start, count in ids:
        place, end = start, start + count
        for other, size in taken:
            if other < end and place < other + size:
                left.append((place, other - place))
                place = max(place, other + size)
        left.append((place, end - place))
    return spans((start, count) for start, count in left if count > 0)


def current(ranges: Iterable[Range], accounts: Iterable[Account], *, today: str, source: str = "") -> Baseline:
    """Return what is in force now; DamagedError for owners whose uid nobody knows."""
    owners = Owners(accounts)
    found: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: {"uid": [], "gid": []})
    names: dict[int, str] = {}
    strangers: dict[str, None] = {}
    for one in ranges:
        uid = owners.uid(one.owner)
        if uid is None:
            strangers[one.owner] = None
            continue
        account = owners.account(str(uid))
        names.setdefault(uid, account.name if account else owners.name(one.owner))
        found[uid][one.kind].append((one.start, one.count))
    if strangers:
        raise DamagedError(
            f"{len(strangers)} owners of ranges are no users: {', '.join([*strangers][:5])}"
            + (" …" if len(strangers) > 5 else ""),
            details="A baseline goes by uid; ranges of nobody cannot be in it.",
            hint="squashmount-conf ids check names them (A01, A05): remove them, or read the users from where they are",
        )
    records = (
        Record(uid, names[uid], spans(found[uid]["uid"]), spans(found[uid]["gid"]), today, source) for uid in found
    )
    return Baseline(tuple(sorted(records, key=_order)), today)


def _order(record: Record) -> tuple[int, bool, str, str, Spans, Spans]:
    return (record.uid, not record.retired, record.retired, record.name, record.subuid, record.subgid)


def differences(old: Baseline, new: Baseline) -> list[Difference]:
    """Return what changed, by uid; also ranges of the new one that an old one had under another uid or name."""
    before, after = old.live(), new.live()
    found = [
        Difference(change, uid, before.get(uid), after.get(uid))
        for uid in sorted(before.keys() | after.keys())
        if (change := _change(before.get(uid), after.get(uid))) is not None
    ]
    return [*found, *_reissued(old, new)]


def _change(before: Record | None, after: Record | None) -> Change | None:
    if before is None:
        return Change.ADDED
    if after is None:
        return Change.REMOVED
    if before.name != after.name:
        return Change.REUSED
    kinds = {_compared(was, now) for was, now in zip(_both(before), _both(after), strict=True)} - {None}
    for worst in (Change.MOVED, Change.SHRUNK, Change.GROWN):
        if worst in kinds:
            return worst
    return None


def _compared(was: Spans, now: Spans) -> Change | None:
    """Compare as a container counts: a prefix keeps the number of every id."""
    if was == now:
        return None
    if _begins(now, was):
        return Change.GROWN
    return Change.SHRUNK if _begins(was, now) else Change.MOVED


def _begins(longer: Spans, shorter: Spans) -> bool:
    if not shorter:
        return True
    last = len(shorter) - 1
    if len(longer) <= last or longer[:last] != shorter[:last]:
        return False
    return longer[last][0] == shorter[last][0] and longer[last][1] >= shorter[last][1]


_NEIGHBOURS = 100
"""Earlier owners of one id that are compared; where there are more, that they overlap is the greater evil (A02)."""


def _reissued(old: Baseline, new: Baseline) -> Iterator[Difference]:
    """Yield who got ids that were, or are by the old baseline, another uid's."""
    before, seen = old.live(), set[tuple[int, int]]()
    for index in (0, 1):
        rows: list[tuple[int, int, bool, Record]] = []
        for one in old.records:
            rows += ((start, start + count, False, one) for start, count in _both(one)[index])
        for one in new.records:
            had = before.get(one.uid)
            gained = without(_both(one)[index], _both(had)[index]) if had else _both(one)[index]
            rows += ((start, start + count, True, one) for start, count in gained)
        reach: list[tuple[int, bool, Record]] = []
        for start, end, is_new, one in sorted(rows, key=lambda row: (*row[:3], row[3].uid, row[3].retired)):
            reach = [row for row in reach if row[0] > start]
            for _end, other_is_new, other in reach:
                was, now = (other, one) if is_new else (one, other)
                if is_new != other_is_new and was.uid != now.uid and (was.uid, now.uid) not in seen:
                    seen.add((was.uid, now.uid))
                    since = f"until {was.retired}" if was.retired else "by the baseline"
                    yield Difference(Change.REISSUED, now.uid, None, now, f"has ids of {was.name} ({was.uid}) {since}")
            reach.append((end, is_new, one))
            if len(reach) > _NEIGHBOURS:
                reach = sorted(reach, key=lambda row: row[0])[-_NEIGHBOURS:]


def merged(old: Baseline, new: Baseline) -> Baseline:
    """Return the new baseline with all that is retired: what the old one has, and what is in force no more."""
    before, after, today = old.live(), new.live(), new.saved
    records = [one for one in old.records if one.retired]
    for uid, was in before.items():
        now = after.get(uid)
        if now is None or now.name != was.name:
            records.append(replace(was, retired=today))
            continue
        lost = replace(
            was, subuid=without(was.subuid, now.subuid), subgid=without(was.subgid, now.subgid), retired=today
        )
        if lost.subuid or lost.subgid:
            records.append(lost)
    for uid, now in after.items():
        same = before.get(uid)
        kept = same is not None and same.name == now.name and _both(same) == _both(now)
        records.append(replace(now, since=same.since, source=same.source) if same and kept else now)
    return Baseline(tuple(sorted(set(records), key=_order)), today)


# -- the file


def as_text(baseline: Baseline) -> str:
    """Return the file."""
    lines = "".join(json.dumps(_as_json(one), separators=(",", ":")) + "\n" for one in baseline.records)
    header = {
        "baseline": "subordinate ids",
        "format": FORMAT,
        "saved": baseline.saved,
        "users": len(baseline.live()),
        "records": len(baseline.records),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }
    return json.dumps(header, separators=(",", ":")) + "\n" + lines


def _as_json(record: Record) -> dict[str, Any]:
    made = {
        "uid": record.uid,
        "name": record.name,
        "subuid": [list(one) for one in record.subuid],
        "subgid": [list(one) for one in record.subgid],
        "since": record.since,
        "source": record.source,
    }
    return made | ({"retired": record.retired} if record.retired else {})


def load(path: str) -> Baseline:
    """Return the baseline in a file. UsageError when it cannot be read, DamagedError as `from_text`."""
    with opened(path, regular=True) as file:
        if file is not None:
            return from_text(file.read(), where=path)
    if os.path.islink(path):
        raise UsageError(
            f"{path} is a symbolic link to {os.readlink(path)}, which does not exist.",
            hint="is what it leads to not mounted? remove the link only if there never was a baseline",
        )
    raise UsageError(f"{path} does not exist.", hint=f"squashmount-conf ids baseline save {path}")


def from_text(data: bytes, *, where: str) -> Baseline:
    """Return what is in the file. DamagedError when it is torn, was edited, or is of a newer format."""
    head, _, rest = data.partition(b"\n")
    try:
        header = load_object(head, where=where)
        if get_str(header, "baseline") != "subordinate ids":
            raise DamagedError(f"{where} is no baseline of subordinate ids.")
        if get_int(header, "format") != FORMAT:
            raise DamagedError(f"{where} is of format {header['format']}, this program knows {FORMAT}.")
        if get_str(header, "sha256") != hashlib.sha256(rest).hexdigest():
            raise DamagedError(
                f"{where} was edited or cut off: its checksum is another.",
                hint="take it from a backup: what it forgets, the next plan may give to somebody else",
            )
        records = tuple(_from_json(load_object(line, where=where)) for line in rest.splitlines())
        return Baseline(records, get_str(header, "saved"))
    except StoreError as err:
        raise DamagedError(f"{where} is no baseline of subordinate ids.", details=str(err)) from err


def _from_json(obj: dict[str, Any]) -> Record:
    return Record(
        get_int(obj, "uid"),
        get_str(obj, "name"),
        _spans_of(obj, "subuid"),
        _spans_of(obj, "subgid"),
        get_str(obj, "since"),
        get_str(obj, "source", ""),
        get_str(obj, "retired", ""),
    )


def _spans_of(obj: dict[str, Any], key: str) -> Spans:
    value = obj.get(key)
    if not isinstance(value, list) or not all(_is_span(one) for one in value):
        raise StoreError(f"{key} is no list of [start, count].")
    return spans((start, count) for start, count in value)


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) is int and one >= 0 for one in value)


# -- what it means

_MEANING = {
    Change.ADDED: (Severity.INFO, "with ranges where there was none", "New users.", "ids baseline save"),
    Change.GROWN: (
        Severity.INFO,
        "with more ids than before, behind the old ones",
        "Files keep their owners; running namespaces keep the old map.",
        "each of them: podman system migrate; then ids baseline save",
    ),
    Change.REMOVED: (
        Severity.WARNING,
        "without the range that was there",
        "Files in their images and containers belong to ids that nobody can map; the ranges must never be given away.",
        "ids baseline save --accept, which keeps the ranges as retired; remove what is at PATHS",
    ),
    Change.MOVED: (
        Severity.ERROR,
        "with other ids than before",
        "Files made with the old ids show as nobody (65534) in the namespace, and cannot be read, changed or removed.",
        "give them the old ranges back; or remove what is at PATHS with the old map (podman system reset)",
    ),
    Change.SHRUNK: (
        Severity.ERROR,
        "with fewer ids than before",
        "Files of the ids that are gone show as nobody (65534) in the namespace, and cannot be changed or removed.",
        "give them the old ranges back; or remove what is at PATHS with the old map (podman system reset)",
    ),
    Change.REUSED: (
        Severity.ERROR,
        "with another name than the baseline has for the uid",
        "An account was renamed, or a uid was given to a new person, who owns the files of the former one then.",
        "renamed: ids baseline save --accept; else a new uid and range for the new one, and remove what is at PATHS",
    ),
    Change.REISSUED: (
        Severity.ERROR,
        "with ids that were somebody else's",
        "Files that still carry those ids are theirs now: they can read and change them.",
        "other ranges for them: ids plan --baseline FILE goes around what was ever given",
    ),
}

_ORDER = tuple(_MEANING)

_MANY_GONE = (
    Severity.ERROR,
    "of OLD lost their ranges at once",
    "Most likely the source is incomplete: a --base too low, an ACL, a file cut off. Saved, they are retired for ever.",
    "ask for all users (--base, --bind, --schema, --source); ids baseline save --accept only if all of them left",
)


def _too_many_gone(gone: int, before: int) -> bool:
    """Tell whether it is rather the answer that lacks them: more than 10 users, and more than one in 20."""
    return gone > 10 and gone * 20 > before


def findings(changes: Iterable[Difference], *, before: int, paths: Iterable[str]) -> list[Finding]:
    """Return one finding for each kind of change, the worst last, with all its users.

    `before` is how many users the baseline has; `paths` are templates of where files with subordinate ids lie: $USER,
    $UID, $HOME.
    """
    by_change: dict[Change, list[Difference]] = defaultdict(list)
    for one in changes:
        by_change[one.change].append(one)
    made = []
    for change in (one for one in _ORDER if one in by_change):
        users = by_change[change]
        many_gone = change is Change.REMOVED and _too_many_gone(len(users), before)
        severity, what, why, fix = _MANY_GONE if many_gone else _MEANING[change]
        what = what.replace("OLD", f"{before:,}")
        lines = [str(one) for one in users]
        noun = "users" if len(users) > 1 else "user"
        at_risk = change in (Change.MOVED, Change.SHRUNK, Change.REUSED, Change.REMOVED)
        if at_risk:
            lines = [f"{one}; at risk: {', '.join(_places(one, paths))}" for one in users]
        fix = fix.replace("PATHS", "the paths above")
        made.append(Finding(severity, f"{len(users):,} {noun} {what}", why, fix, "A13", "\n".join(lines)))
    return made


def _places(change: Difference, paths: Iterable[str]) -> Iterator[str]:
    record = change.before or change.after
    name = record.name if record is not None else ""
    for path in paths:
        text = path.replace("$UID", str(change.uid)).replace("$HOME", f"~{name}")
        yield text.replace("$USER", name)
