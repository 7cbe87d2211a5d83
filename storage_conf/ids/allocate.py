"""Who gets which range: by a formula of the uid, or the next free one for sparse uids. Nothing is written here.

The same accounts and the same past give the same plan, in whatever order they come. What somebody has stays his; what
somebody had is given to nobody else, because his files still carry those ids.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from squashmount.errors import UsageError

from ..finding import Finding, error, info, warning
from .ranges import ENOUGH, IDS_END, KINDS, Account, Group, Kind, Owners, Range
from .reserved import WINDOWS

SHOWN = 20
"""Names in a finding about many users."""


@dataclass(frozen=True)
class Rule:
    """How ranges are laid out: `count` ids each, from `base` to before `end`.

    By the formula `base + (uid - uid_min) * count`, or `sparse`: the first free place of that grid, in order of uids.
    """

    base: int = 2**31
    count: int = ENOUGH
    uid_min: int = 1000
    end: int = IDS_END
    sparse: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for a rule that gives nobody anything."""
        if self.count < 1 or self.base < 0 or self.uid_min < 1 or self.end > IDS_END:
            raise UsageError(f"a range of {self.count} ids from {self.base} to {self.end - 1} is impossible.")
        if self.base + self.count > self.end:
            raise UsageError(f"not even one range of {self.count} ids fits between {self.base} and {self.end - 1}.")

    @property
    def capacity(self) -> int:
        """How many ranges there are places for."""
        return (self.end - self.base) // self.count

    @property
    def uid_end(self) -> int:
        """The first uid whose range would not fit any more; the formula does not wrap around."""
        return self.uid_min + self.capacity

    def start(self, uid: int) -> int | None:
        """Return where the formula puts the range of a uid, None where there is no such place."""
        return self.base + (uid - self.uid_min) * self.count if self.uid_min <= uid < self.uid_end else None

    def __str__(self) -> str:
        if self.sparse:
            return f"the first free {self.count} ids from {self.base} on, in order of uids"
        return f"{self.base} + (uid - {self.uid_min}) * {self.count}"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Ids that are taken: by whom, under which check, and whether it is an earlier range of this uid and name."""

    start: int
    end: int
    what: str
    check: str
    uid: int | None = None
    name: str = ""
    past: bool = False

    def is_own(self, account: Account) -> bool:
        """Tell whether these are ids the account itself had: the same number *and* the same name."""
        return self.past and self.uid == account.uid and self.name == account.name


class Obstacles:
    """Finds what is in the way of a range: O(log n), however they overlap."""

    def __init__(self, obstacles: Iterable[Obstacle]) -> None:
        self._items = sorted(obstacles, key=lambda one: (one.start, one.end, one.what))
        self._starts = [one.start for one in self._items]
        self._furthest = list(accumulate(range(len(self._items)), self._further))

    def _further(self, best: int, new: int) -> int:
        return new if self._items[new].end > self._items[best].end else best

    def all(self) -> Sequence[Obstacle]:
        """Return them all, by start."""
        return self._items

    def hit(self, start: int, end: int, account: Account) -> Obstacle | None:
        """Return what lies in the way of `account`, of several the one that reaches furthest, if it is not his own."""
        position = bisect_left(self._starts, end) - 1
        while position >= 0:
            furthest = self._items[self._furthest[position]]
            if furthest.end <= start:
                return None
            if not furthest.is_own(account):
                return furthest
            if self._items[position].end > start and not self._items[position].is_own(account):
                return self._items[position]
            position -= 1
        return None


@dataclass(frozen=True, slots=True)
class Grant:
    """What one account gets; `kinds` without one of the two where he has the other already, in the entry `dn`."""

    account: Account
    start: int
    count: int
    kinds: tuple[Kind, ...] = ("uid", "gid")
    dn: str = ""


@dataclass(frozen=True)
class Past:
    """A range that somebody has or had, from a baseline."""

    uid: int
    name: str
    start: int
    count: int
    retired: str = ""


@dataclass
class Plan:
    """What is to be given to whom, who has something, and what is in the way."""

    rule: Rule
    users: int = 0
    kept: int = 0
    below: int = 0
    free: int = 0
    grants: list[Grant] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def as_text(self) -> str:
        """Return the headroom report."""
        rule, new = self.rule, len(self.grants)
        cannot = self.users - self.kept - new
        lines = [f"rule: {rule}, up to {rule.end - 1}"]
        lines.append(
            f"users: {self.users:,}; {self.kept:,} have their ranges, {new:,} get one, {cannot:,} cannot "
            f"({self.below:,} more have uids below {rule.uid_min})"
        )
        if new:
            first, last = self.grants[0], self.grants[-1]
            lines.append(
                f"new: {first.start}-{first.start + first.count - 1} ({first.account.name}) "
                f"to {last.start}-{last.start + last.count - 1} ({last.account.name})"
            )
        room = f"room: {rule.capacity:,} ranges of {rule.count:,} ids, {self.free:,} free after this plan"
        if not rule.sparse:
            room += f"; for uids {rule.uid_min} to {rule.uid_end - 1}: the first that does not fit is {rule.uid_end}"
        return "\n".join([*lines, room])


def make_plan(
    accounts: Iterable[Account],
    existing: Sequence[Range],
    rule: Rule,
    *,
    groups: Iterable[Group] = (),
    past: Sequence[Past] = (),
) -> Plan:
    """Plan ranges for the accounts that have none, around all that is taken.

    Of several names of one uid the first in the alphabet stands for it: the ids belong to the uid.
    """
    every = sorted(accounts, key=lambda one: (one.uid, one.name))
    users = list(
        {one.uid: one for one in reversed(every) if one.uid >= rule.uid_min and one.uid not in _NOBODY}.values()
    )
    users.reverse()
    owners = Owners(every)
    plan = Plan(rule, users=len(users), below=len({one.uid for one in every if one.uid < rule.uid_min}))
    has: dict[int, list[Range]] = defaultdict(list)
    for one in existing:
        uid = owners.uid(one.owner)
        if uid is not None and one.count > 0:
            has[uid].append(one)
    plan.kept = sum(len({one.kind for one in has.get(user.uid, ())}) == 2 for user in users)
    fixed = list(_taken(every, groups, past))
    for kind in KINDS:
        half = [user for user in users if {one.kind for one in has.get(user.uid, ())} == {kind}]
        other: Kind = "gid" if kind == "uid" else "uid"
        _mirror(half, has, other, Obstacles([*fixed, *_ranges(existing, {other})]), plan)
    taken = Obstacles([*fixed, *_ranges(existing, {*KINDS})])
    give = _next_free if rule.sparse else _by_formula
    give([user for user in users if user.uid not in has], taken, past, plan)
    plan.grants.sort(key=lambda one: one.account.uid)
    plan.free = _free(rule, [*taken.all(), *(_of_grant(grant) for grant in plan.grants)])
    plan.findings += _soft_windows(plan.grants)
    return plan


_NOBODY = frozenset({65534, 65535, IDS_END})


def _taken(
    accounts: Iterable[Account],
    groups: Iterable[Group],
    past: Iterable[Past],
) -> Iterator[Obstacle]:
    for account in accounts:
        yield Obstacle(account.uid, account.uid + 1, f"the real uid {account.uid} of {account.name}", "A03")
        yield Obstacle(account.gid, account.gid + 1, f"the real gid {account.gid} of {account.name}", "A03")
    for group in groups:
        yield Obstacle(group.gid, group.gid + 1, f"the real gid {group.gid} of group {group.name}", "A03")
    for old in past:
        when = f"until {old.retired}" if old.retired else "by the baseline"
        what = f"{old.start}-{old.start + old.count - 1}, {old.name}'s (uid {old.uid}) {when}"
        yield Obstacle(old.start, old.start + old.count, what, "A13", old.uid, old.name, past=True)
    for window in WINDOWS:
        if window.hard:
            yield Obstacle(window.start, window.end, f"ids {window.start}-{window.end - 1}: {window.name}", "A04")


def _ranges(existing: Iterable[Range], kinds: Collection[Kind]) -> Iterator[Obstacle]:
    return (Obstacle(one.start, one.end, str(one), "A02") for one in existing if one.kind in kinds and one.count > 0)


def _mirror(users: Sequence[Account], has: dict[int, list[Range]], missing: Kind, taken: Obstacles, plan: Plan) -> None:
    """Give the users who have ranges of one kind the same ids of the kind that is missing, where they are free."""
    reach = 0
    for user in sorted(users, key=lambda one: min(item.start for item in has[one.uid])):
        one = has[user.uid][0]
        hit = taken.hit(one.start, one.end, user)
        if len(has[user.uid]) > 1:
            why = f"there are {len(has[user.uid])} of them"
        elif hit is not None or one.start < reach:
            why = f"it would take {hit.what}" if hit else "another user has common ids with him"
        else:
            plan.grants.append(Grant(user, one.start, one.count, (missing,), one.dn))
            reach = one.end
            continue
        what = f"{user.name} has sub{one.kind}s and no sub{missing}s, and the same ids cannot be given: {why}"
        plan.findings.append(error(what, "Podman uses neither without the other.", "decide by hand", id="A05"))


def _by_formula(waiting: Sequence[Account], taken: Obstacles, _past: Sequence[Past], plan: Plan) -> None:
    rule = plan.rule
    blocked: dict[str, list[tuple[Account, Obstacle]]] = defaultdict(list)
    beyond = []
    for user in waiting:
        start = rule.start(user.uid)
        if start is None:
            beyond.append(user)
        elif hit := taken.hit(start, start + rule.count, user):
            blocked[hit.check].append((user, hit))
        else:
            plan.grants.append(Grant(user, start, rule.count))
    if beyond:
        plan.findings.append(_beyond(rule, beyond))
    plan.findings += [_blocked(check, hits) for check, hits in sorted(blocked.items())]


def _next_free(waiting: Sequence[Account], taken: Obstacles, past: Sequence[Past], plan: Plan) -> None:
    rule, given = plan.rule, []
    mine = {(one.uid, one.name): one for one in past}
    rest = []
    for user in waiting:
        old = mine.get((user.uid, user.name))
        if old is not None and taken.hit(old.start, old.start + old.count, user) is None:
            plan.grants.append(Grant(user, old.start, old.count))
            given.append(_of_grant(plan.grants[-1]))
        else:
            rest.append(user)
    taken, place = Obstacles([*taken.all(), *given]), 0
    nobody = Account("", -1, -1)
    for number, user in enumerate(rest):
        while place < rule.capacity:
            start = rule.base + place * rule.count
            hit = taken.hit(start, start + rule.count, nobody)
            if hit is None:
                break
            place = max(place + 1, -((rule.base - hit.end) // rule.count))  # the first place behind it
        if place >= rule.capacity:
            plan.findings.append(_full(rule, rest[number:]))
            return
        plan.grants.append(Grant(user, rule.base + place * rule.count, rule.count))
        place += 1


def _free(rule: Rule, taken: Sequence[Obstacle]) -> int:
    """Count the places of the grid that nothing touches."""
    free, place = 0, 0
    for one in sorted(taken, key=lambda item: item.start):
        first = max(0, (one.start - rule.base) // rule.count)
        if one.end <= rule.base or first >= rule.capacity:
            continue
        free += max(0, first - place)
        place = max(place, -((rule.base - one.end) // rule.count))
    return free + max(0, rule.capacity - place)


def _of_grant(grant: Grant) -> Obstacle:
    return Obstacle(grant.start, grant.start + grant.count, grant.account.name, "A02")


def _users(number: int) -> str:
    return f"{number:,} user{'s' * (number != 1)}"


def _named(users: Sequence[Account]) -> str:
    names = ", ".join(f"{user.name} ({user.uid})" for user in users[:SHOWN])
    return names + (f" and {len(users) - SHOWN:,} more" if len(users) > SHOWN else "")


def _beyond(rule: Rule, users: Sequence[Account]) -> Finding:
    return error(
        f"no range for {_users(len(users))}, because it would not fit below {rule.end}: "
        f"the first uid that does not is {rule.uid_end}",
        f"{rule} is not wrapped around: two users would share ids.",
        f"a lower BASE or a higher UID_MIN in --formula, or --next-free, which suits uids as high as {users[-1].uid}",
        id="A14",
        evidence=_named(users),
    )


def _full(rule: Rule, users: Sequence[Account]) -> Finding:
    return error(
        f"no range for {_users(len(users))}: none of {rule.count} ids is free between {rule.base} and {rule.end - 1}",
        "Every place is taken, also by what was retired.",
        "a lower BASE in --formula, or a site-wide clean-up of files that carry retired ids",
        id="A14",
        evidence=_named(users),
    )


_BLOCKED = {
    "A02": ("belong to another range", "two users with common ids can read and change each other's files"),
    "A03": ("are real ids", "whoever has them in his range can act as their owner, also on NFS"),
    "A04": ("are reserved", "a program or the kernel uses them for something else"),
    "A13": ("belonged to somebody else", "files still carry them, and would be the new owner's"),
}


def _blocked(check: str, hits: Sequence[tuple[Account, Obstacle]]) -> Finding:
    what, why = _BLOCKED[check]
    lines = [f"{user.name} ({user.uid}) would take {hit.what}" for user, hit in hits[:SHOWN]]
    lines += [f"and {len(hits) - SHOWN:,} more"] if len(hits) > SHOWN else []
    return error(
        f"no range for {_users(len(hits))}, because the formula's ids {what}",
        why[0].upper() + why[1:] + ".",
        "another BASE in --formula, or --next-free, which goes around what is taken",
        id=check,
        evidence="\n".join(lines),
    )


def _soft_windows(grants: Sequence[Grant]) -> Iterator[Finding]:
    for window in WINDOWS:
        inside = [one.account for one in grants if window.meets(one.start, one.start + one.count)]
        if window.hard or not inside:
            continue
        say = info if window.start >= 2**31 else warning
        yield say(
            f"new ranges in {window.start}-{window.end - 1} ({window.name}): {len(inside):,}",
            f"They are somebody else's where that is in use ({window.source}).",
            "nothing, if no node uses it; else another BASE in --formula",
            id="A04",
        )
