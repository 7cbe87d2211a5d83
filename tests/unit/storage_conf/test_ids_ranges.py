"""Arithmetic on ranges, against the plain definition."""

from hypothesis import given
from hypothesis import strategies as st
from squashmount.storage_conf.ids.ranges import Account, Owners, Range, holders, overlaps

SOME = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12)


def ranges(pairs: list[tuple[int, int]]) -> list[Range]:
    return [Range(f"u{number}", start, count, "uid") for number, (start, count) in enumerate(pairs)]


@given(SOME)
def test_every_range_that_shares_an_id_is_in_a_pair_and_each_pair_shares(pairs: list[tuple[int, int]]) -> None:
    given_ranges = ranges(pairs)
    ids = {item.owner: set(range(item.start, item.end)) for item in given_ranges}
    sharing = {a for a in ids for b in ids if a != b and ids[a] & ids[b]}
    found = list(overlaps(given_ranges))
    assert {item.owner for pair in found for item in (pair.first, pair.second)} == sharing
    assert len(found) < max(1, len(given_ranges))
    for pair in found:
        assert set(range(pair.start, pair.end)) == ids[pair.first.owner] & ids[pair.second.owner]


@given(SOME, st.lists(st.integers(0, 90), max_size=20))
def test_holders_of_ids(pairs: list[tuple[int, int]], numbers: list[int]) -> None:
    given_ranges = ranges(pairs)
    found = dict(holders(given_ranges, numbers))
    for index, number in enumerate(numbers):
        holding = {item.owner for item in given_ranges if item.start <= number < item.end}
        assert (found[index].owner in holding) if holding else index not in found


def test_an_owner_is_a_name_or_a_uid() -> None:
    owners = Owners([Account("dave", 20000, 20000), Account("20001", 7, 7)])
    assert owners.uid("dave") == owners.uid("20000") == 20000
    assert owners.uid("20001") == 7, "a name of digits is a name first, as newuidmap looks"
    assert owners.uid("4711") == 4711
    assert owners.uid("erin") is None
    assert owners.uid("٣") is None
    assert owners.uid("9" * 5000) is None
    assert owners.name("20000") == "dave"
