"""The plan of ranges: nobody shares ids, whatever is there before and in whatever order it is told."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from squashmount.storage_conf.ids.allocate import Past, Plan, Rule, make_plan
from squashmount.storage_conf.ids.directory_schema import FREEIPA, SSSD
from squashmount.storage_conf.ids.ldif import read_ldif
from squashmount.storage_conf.ids.plan_output import Tree, ldif, subid_lines
from squashmount.storage_conf.ids.ranges import IDS_END, Account, Group, Range, overlaps
from squashmount.storage_conf.ids.reserved import WINDOWS

from squashmount.errors import UsageError

UIDS = st.integers(1000, 1300)
ACCOUNTS = st.lists(st.builds(lambda uid: Account(f"u{uid}", uid, uid), UIDS), max_size=40)
# places close to each other, so that what exists is often in the way; also past the end of all ids
BASES = st.one_of(st.integers(2000, 60000), st.integers(IDS_END - 30000, IDS_END - 200))
RULES = st.builds(Rule, base=BASES, count=st.integers(1, 150), uid_min=st.integers(1000, 1100), sparse=st.booleans())


@st.composite
def sites(draw: st.DrawFn) -> tuple[list[Account], list[Range], Rule, list[Past]]:
    accounts, rule = draw(ACCOUNTS), draw(RULES)
    near = st.integers(max(0, rule.base - 500), min(rule.base + 30000, IDS_END - 200))
    owners = st.one_of(UIDS.map(lambda uid: f"u{uid}"), UIDS.map(str), st.just("gone"))
    existing = draw(
        st.lists(st.builds(Range, owners, near, st.integers(0, 200), st.sampled_from(["uid", "gid"])), max_size=6)
    )
    past = draw(
        st.lists(
            st.builds(Past, UIDS, st.sampled_from(["u1000", "u1001", "old"]), near, st.integers(1, 200)), max_size=6
        )
    )
    return accounts, existing, rule, past


def granted(plan: Plan) -> list[Range]:
    return [Range(one.account.name, one.start, one.count, kind) for one in plan.grants for kind in one.kinds]


@given(sites())
def test_nothing_granted_overlaps_anything(site: tuple[list[Account], list[Range], Rule, list[Past]]) -> None:
    accounts, existing, rule, past = site
    plan = make_plan(accounts, existing, rule, past=past)
    new = granted(plan)
    for kind in ("uid", "gid"):
        assert not list(overlaps(one for one in new if one.kind == kind))
        for one, other in itertools.product(new, existing):
            if one.kind == other.kind == kind and other.count:
                assert one.end <= other.start or other.end <= one.start
    for one in new:
        assert 0 <= one.start < one.end <= IDS_END
        assert not any(window.hard and window.meets(one.start, one.end) for window in WINDOWS)
        assert not any(one.start <= account.uid < one.end for account in accounts)
        for old in past:
            apart = one.end <= old.start or old.start + old.count <= one.start
            assert apart or (f"u{old.uid}", old.name) == (one.owner, one.owner)


@given(sites(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    site: tuple[list[Account], list[Range], Rule, list[Past]], random: object
) -> None:
    accounts, existing, rule, past = site
    plan = make_plan(accounts, existing, rule, past=past)
    mixed = [list(part) for part in (accounts, existing, past)]
    for part in mixed:
        random.shuffle(part)  # type: ignore[attr-defined]
    again = make_plan(mixed[0], mixed[1], rule, past=mixed[2])
    assert again.grants == plan.grants
    assert again.as_text() == plan.as_text()


@given(sites(), ACCOUNTS)
def test_added_users_change_nothing_for_the_others(
    site: tuple[list[Account], list[Range], Rule, list[Past]], more: list[Account]
) -> None:
    accounts, existing, rule, past = site
    first = make_plan(accounts, existing, rule, past=past)
    second = make_plan([*accounts, *more], [*existing, *granted(first)], rule, past=past)
    had = {one.account.uid for one in first.grants}
    assert all(one.account.uid not in had or len(one.kinds) == 1 for one in second.grants)
    if not rule.sparse:
        # by the formula even a plan that was never carried out is the same, but for new real ids in the way
        third = make_plan([*accounts, *more], existing, rule, past=past)
        starts = {one.account.uid: one.start for one in first.grants if len(one.kinds) == 2}
        assert all(starts.get(one.account.uid, one.start) == one.start for one in third.grants if len(one.kinds) == 2)


@given(sites())
def test_a_plan_that_is_carried_out_leaves_nothing_to_do(
    site: tuple[list[Account], list[Range], Rule, list[Past]],
) -> None:
    accounts, existing, rule, past = site
    first = make_plan(accounts, existing, rule, past=past)
    second = make_plan(accounts, [*existing, *granted(first)], rule, past=past)
    assert second.grants == []
    assert first.free == second.free


@given(sites())
def test_the_free_places_are_those_a_next_user_can_get(
    site: tuple[list[Account], list[Range], Rule, list[Past]],
) -> None:
    accounts, existing, rule, past = site
    rule = Rule(rule.base, rule.count, 1000, min(IDS_END, rule.base + 40 * rule.count), sparse=True)
    plan = make_plan(accounts, existing, rule, past=past)
    # uids that lie outside the grid, so that they take no place themselves
    newcomers = [Account(f"n{number}", number, number) for number in range(1500, 1560)]
    full = make_plan([*accounts, *newcomers], [*existing, *granted(plan)], rule, past=past)
    places = {grant.start for grant in full.grants if grant.account.name[0] == "n"}
    assert len(places) == min(plan.free, 60)


def test_the_formula_of_shadow_and_its_numbers() -> None:
    rule = Rule(base=100000, uid_min=1000)
    assert [rule.start(uid) for uid in (999, 1000, 1001)] == [None, 100000, 165536]
    # the capacities of the classic windows: useradd's default, systemd's containers, the upper half, uid << 16
    assert Rule(100000, end=600100001).capacity == 9155
    assert Rule(524288, end=1879048192).capacity == 28664
    assert Rule(2**31).capacity == 32767
    assert Rule(65536, uid_min=1).capacity == 65534
    assert Rule(2**31, 16384).capacity == 131071


def test_the_last_uid_that_fits_and_the_first_that_does_not() -> None:
    rule = Rule()
    users = [Account("last", rule.uid_end - 1, 5), Account("first", rule.uid_end, 5), Account("far", 1_600_000_000, 5)]
    plan = make_plan(users, [], rule)
    assert [one.account.name for one in plan.grants] == ["last"]
    assert plan.grants[0].start + plan.grants[0].count <= IDS_END
    (finding,) = (one for one in plan.findings if one.id == "A14")
    assert "the first uid that does not is 33767" in finding.what
    assert finding.evidence == "first (33767), far (1600000000)"


def test_what_is_in_the_way_is_named_with_its_check() -> None:
    users = [Account("a", 1000, 1000), Account("b", 1001, 1001), Account("c", 1002, 1002), Account("d", 1003, 1003)]
    existing = [Range("x", 200_010, 5, "uid", "/etc/subuid", 7)]
    past = [Past(1001, "former", 300_000, 10, "2026-01-01")]
    groups = [Group("big", 400_001)]
    plan = make_plan(users, existing, Rule(200_000, 100_000), groups=groups, past=past)
    assert [one.account.name for one in plan.grants] == ["d"]
    said = {one.id: one.evidence for one in plan.findings if one.severity.value == "error"}
    assert said["A02"] == "a (1000) would take x: subuid 200010-200014 (/etc/subuid:7)"
    assert said["A13"] == "b (1001) would take 300000-300009, former's (uid 1001) until 2026-01-01"
    assert said["A03"] == "c (1002) would take the real gid 400001 of group big"


def test_who_comes_back_gets_what_he_had_and_nobody_else_does() -> None:
    past = [Past(1001, "b", 300_000, 100_000, "2026-01-01")]
    users = [Account("a", 1000, 1000), Account("b", 1001, 1001)]
    for sparse in (False, True):
        plan = make_plan(users, [], Rule(200_000, 100_000, sparse=sparse), past=past)
        assert [(one.account.name, one.start) for one in plan.grants] == [("a", 200_000), ("b", 300_000)]
    other = [Account("a", 1000, 1000), Account("new", 1001, 1001)]
    assert [one.start for one in make_plan(other, [], Rule(200_000, 100_000), past=past).grants] == [200_000]
    sparse = make_plan(other, [], Rule(200_000, 100_000, sparse=True), past=past)
    assert [one.start for one in sparse.grants] == [200_000, 400_000]


def test_who_has_one_kind_gets_the_same_of_the_other() -> None:
    users = [Account("a", 1000, 1000), Account("b", 1001, 1001)]
    existing = [Range("a", 500_000, 65536, "uid", dn="cn=a,dc=x"), Range("b", 600_000, 65536, "gid")]
    plan = make_plan(users, existing, Rule(sparse=True))
    assert [(one.account.name, one.start, one.kinds) for one in plan.grants] == [
        ("a", 500_000, ("gid",)),
        ("b", 600_000, ("uid",)),
    ]
    text = ldif(plan.grants[:1], Tree(SSSD, "dc=x", ""))
    assert "dn: cn=a,dc=x\nchangetype: modify\nadd: subGidNumber\nsubGidNumber: 500000\n-\n" in text


def test_lines_of_files_by_name_and_by_uid() -> None:
    plan = make_plan([Account("a", 1000, 1000)], [], Rule())
    assert subid_lines(plan.grants, "uid") == "a:2147483648:65536\n"
    assert subid_lines(plan.grants, "gid", by_uid=True) == "1000:2147483648:65536\n"
    odd = make_plan([Account("a b", 1000, 1000)], [], Rule())
    with pytest.raises(UsageError, match="cannot stand in a file"):
        subid_lines(odd.grants, "uid")


def test_ldif_of_odd_names_comes_back(tmp_path: Path) -> None:
    names = ["plain", "komma,plus+", "größe", " blank ", "#hash", 'quo"te\\']
    plan = make_plan([Account(name, 1000 + n, 1000) for n, name in enumerate(names)], [], Rule())
    for schema in (FREEIPA, SSSD):
        text = ldif(plan.grants, Tree(schema, "cn=subids,dc=x", "uid={name},cn=users,dc=x"))
        path = tmp_path / schema.name
        path.write_text(text.replace("changetype: add\n", ""))
        with path.open("rb") as file:
            wanted = [schema.owner, schema.subuid, schema.subgid_count, "objectClass"]
            entries = list(read_ldif(file, name="x", wanted=wanted).entries())
        assert [entry.texts(schema.subuid) for entry in entries] == [[str(one.start)] for one in plan.grants]
        assert {tuple(entry.texts(schema.subgid_count)) for entry in entries} == {("65536",)}
        assert entries[1].texts(schema.owner) == ["uid=komma\\,plus\\+,cn=users,dc=x"]
        assert entries[3].texts(schema.owner) == ["uid=\\ blank\\ ,cn=users,dc=x"]
        assert len({entry.dn for entry in entries}) == len(names)
    assert ldif(plan.grants, Tree(FREEIPA, "dc=x", "uid={name}")) == ldif(
        plan.grants, Tree(FREEIPA, "dc=x", "uid={name}")
    )


@pytest.mark.parametrize("wrong", [{"base": -1}, {"count": 0}, {"base": IDS_END}, {"uid_min": 0}, {"end": IDS_END + 1}])
def test_impossible_rules(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Rule(**wrong)
