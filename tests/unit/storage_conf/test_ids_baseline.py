"""The baseline: what it remembers, what it calls a change, and that nobody can edit it unseen."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from squashmount.storage_conf.finding import Severity
from squashmount.storage_conf.ids.allocate import Rule, make_plan
from squashmount.storage_conf.ids.baseline import (
    Baseline,
    Change,
    Record,
    as_text,
    current,
    differences,
    findings,
    from_text,
    merged,
    spans,
    without,
)
from squashmount.storage_conf.ids.ranges import Account, Range

from squashmount.errors import DamagedError

ACCOUNTS = [Account(name, 1000 + number, 1000) for number, name in enumerate("abcdef")]


def both(owner: str, *ids: tuple[int, int]) -> list[Range]:
    return [Range(owner, start, count, kind) for start, count in ids for kind in ("uid", "gid")]


def base(*ranges: list[Range], accounts: list[Account] = ACCOUNTS, today: str = "2026-01-01") -> Baseline:
    return current([one for part in ranges for one in part], accounts, today=today)


OLD = base(both("a", (100_000, 100)), both("b", (200_000, 100)), both("c", (300_000, 100)))


@pytest.mark.parametrize(
    ("ranges", "change"),
    [
        (both("a", (100_000, 100)), None),
        (both("1000", (100_050, 50), (100_000, 50)), None),
        (both("a", (100_000, 101)), Change.GROWN),
        (both("a", (100_000, 100), (500_000, 10)), Change.GROWN),
        (both("a", (100_000, 99)), Change.SHRUNK),
        (both("a", (100_001, 99)), Change.MOVED),
        (both("a", (50_000, 10), (100_000, 100)), Change.MOVED),
        (both("a", (400_000, 100)), Change.MOVED),
        ([Range("a", 100_000, 100, "uid")], Change.SHRUNK),
        ([], Change.REMOVED),
    ],
)
def test_the_classes_of_change(ranges: list[Range], change: Change | None) -> None:
    new = base(ranges, both("b", (200_000, 100)), both("c", (300_000, 100)))
    assert [(one.change, one.uid) for one in differences(OLD, new)] == ([(change, 1000)] if change else [])


def test_an_added_user_and_a_reused_uid() -> None:
    accounts = [Account("z", 1000, 1000), *ACCOUNTS[1:]]
    ranges = [both("z", (100_000, 100)), both("b", (200_000, 100)), both("c", (300_000, 100)), both("d", (400_000, 9))]
    found = differences(OLD, base(*ranges, accounts=accounts))
    assert [(one.change, one.uid) for one in found] == [(Change.REUSED, 1000), (Change.ADDED, 1003)]
    assert str(found[0]) == "a -> z (1000): 100000:100 -> 100000:100"


def test_who_gets_ids_that_were_somebody_elses_is_named_even_years_later() -> None:
    without_a = base(both("b", (200_000, 100)), both("c", (300_000, 100)), today="2026-02-02")
    old = merged(OLD, without_a)
    assert [(one.name, one.retired) for one in old.records if one.retired] == [("a", "2026-02-02")]
    later = base(both("b", (200_000, 100)), both("c", (300_000, 100)), both("d", (100_099, 10)), today="2030-01-01")
    found = differences(merged(old, without_a), later)
    assert [(one.change, one.uid) for one in found] == [(Change.ADDED, 1003), (Change.REISSUED, 1003)]
    assert str(found[1]) == "d (1003): 100099:10: has ids of a (1000) until 2026-02-02"
    moved = base(both("a", (200_000, 100)), both("b", (100_000, 100)), both("c", (300_000, 100)))
    assert {(one.change, one.uid) for one in differences(OLD, moved)} == {
        (change, uid) for change in (Change.MOVED, Change.REISSUED) for uid in (1000, 1001)
    }


def test_findings_name_the_users_and_the_paths_at_risk() -> None:
    new = base(both("a", (400_000, 100)), both("b", (200_000, 50)))
    made = findings(differences(OLD, new), before=3, paths=["/tmp/containers-$UID", "$HOME/.local/share/containers"])
    assert [(one.severity, one.id) for one in made] == [
        (Severity.WARNING, "A13"),
        (Severity.ERROR, "A13"),
        (Severity.ERROR, "A13"),
    ]
    assert made[1].evidence == (
        "a (1000): 100000:100 -> 400000:100; at risk: /tmp/containers-1000, ~a/.local/share/containers"
    )
    assert made[2].evidence.startswith("b (1001): 200000:100 -> 200000:50; at risk:")
    assert made[0].evidence.startswith("c (1002): 300000:100 -> none; at risk:")


def test_a_save_over_an_old_one_keeps_what_was_and_since_when() -> None:
    new = base(both("a", (100_000, 60), (500_000, 10)), both("b", (200_000, 100)), today="2026-03-03")
    found = merged(OLD, new)
    assert [(one.uid, one.subuid, one.since, one.retired) for one in found.records] == [
        (1000, ((100_060, 40),), "2026-01-01", "2026-03-03"),
        (1000, ((100_000, 60), (500_000, 10)), "2026-03-03", ""),
        (1001, ((200_000, 100),), "2026-01-01", ""),
        (1002, ((300_000, 100),), "2026-01-01", "2026-03-03"),
    ]
    assert merged(found, new) == found


def test_owners_without_a_uid_are_an_error() -> None:
    with pytest.raises(DamagedError, match="1 owners of ranges are no users: ghost"):
        base(both("ghost", (1, 1)))
    assert [one.uid for one in base(both("4711", (1, 1))).records] == [4711]


def _edits() -> list[bytes]:
    text = as_text(OLD).encode()
    head, rest = text.split(b"\n", 1)
    newer = head.replace(b'"format":1', b'"format":2') + b"\n" + rest
    return [
        b"",
        b"nonsense\n" + rest,
        head + b"\n",
        text[:-1],
        text + b"\n",
        text.replace(b"200000", b"200001"),
        newer,
        rest,
        head + b"\n" + b"".join(reversed(rest.splitlines(keepends=True))),
    ]


@pytest.mark.parametrize("data", _edits())
def test_an_edited_or_torn_file_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedError):
        from_text(data, where="the file")


def test_the_file_is_lines_of_json_with_a_header() -> None:
    head, first, *_rest = as_text(OLD).splitlines()
    assert json.loads(head) | {"sha256": ""} == {
        "baseline": "subordinate ids",
        "format": 1,
        "saved": "2026-01-01",
        "users": 3,
        "records": 3,
        "sha256": "",
    }
    assert first == (
        '{"uid":1000,"name":"a","subuid":[[100000,100]],"subgid":[[100000,100]],"since":"2026-01-01","source":""}'
    )


_spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=6)


def _set(ids: tuple[tuple[int, int], ...]) -> set[int]:
    return {number for start, count in ids for number in range(start, start + count)}


@given(_spans, _spans)
def test_spans_are_sets_of_ids(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    first, second = spans(one), spans(other)
    assert _set(first) == _set(tuple(one))
    assert all(before[0] + before[1] < after[0] for before, after in pairwise(first))
    assert _set(without(first, second)) == _set(first) - _set(second)


_owner = st.sampled_from(["a", "b", "c", "d", "1004", "4711"])
_ranges = st.lists(
    st.builds(Range, _owner, st.integers(10_000, 10_300), st.integers(1, 60), st.sampled_from(["uid", "gid"])),
    max_size=12,
)


@given(st.lists(_ranges, min_size=1, max_size=4))
def test_round_trip_and_no_id_is_ever_forgotten(history: list[list[Range]]) -> None:
    kept, ever = Baseline(), set()
    for number, ranges in enumerate(history):
        now = base(ranges, today=f"2026-01-0{number + 1}")
        assert not differences(now, now)
        kept = merged(kept, now)
        assert from_text(as_text(kept).encode(), where="x") == kept
        assert kept.live() == {one.uid: one for one in kept.records if not one.retired}
        assert {uid: one.subuid for uid, one in kept.live().items()} == {one.uid: one.subuid for one in now.records}
        ever |= {(one.uid, "uid", n) for one in now.records for n in _set(one.subuid)}
        ever |= {(one.uid, "gid", n) for one in now.records for n in _set(one.subgid)}
        known = {(one.uid, "uid", n) for one in kept.records for n in _set(one.subuid)}
        known |= {(one.uid, "gid", n) for one in kept.records for n in _set(one.subgid)}
        assert known == ever


@given(_ranges, _ranges)
def test_a_plan_with_the_baseline_reissues_nothing(first: list[Range], second: list[Range]) -> None:
    kept = merged(base(first), base(second, today="2026-02-02"))
    rule = Rule(10_000, 50, 1000, 20_000, sparse=True)
    newcomers = [*ACCOUNTS, Account("new", 1500, 1500), Account("newer", 1501, 1501)]
    plan = make_plan(newcomers, second, rule, past=kept.past())
    granted = [Range(one.account.name, one.start, one.count, kind) for one in plan.grants for kind in one.kinds]
    after = base(second, granted, accounts=newcomers, today="2026-03-03")
    got = {one.account.uid for one in plan.grants if len(one.kinds) == 2}
    assert not [one for one in differences(kept, after) if one.change is Change.REISSUED and one.uid in got]


def test_a_record_of_both_kinds() -> None:
    record = Record(1, "a", ((1, 2),), ((3, 4),), "2026-01-01")
    assert [(one.start, one.count) for one in record.past()] == [(1, 2), (3, 4)]
