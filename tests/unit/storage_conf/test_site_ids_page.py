"""The numbers of docs/site-ids.md are those of the planner and of the table of reserved windows."""

import re
from pathlib import Path

import pytest
from squashmount.storage_conf.ids.allocate import Rule
from squashmount.storage_conf.ids.ranges import IDS_END
from squashmount.storage_conf.ids.reserved import WINDOWS

PAGE = (Path(__file__).parents[3] / "docs/site-ids.md").read_text()
ROW = re.compile(
    r"^\| (?P<base>\d+) \| (?P<end>\d+)[^|]* \| (?P<counts>[\d, ]+) \| (?P<users>[^|]+) \| (?P<others>.+) \|$",
    re.MULTILINE,
)
ROWS = [match.groupdict() for match in ROW.finditer(PAGE)]


def numbers(text: str) -> list[int]:
    return [int(word.replace(",", "")) for word in re.findall(r"\d{1,3}(?:,\d{3})+|\d+", text)]


@pytest.mark.parametrize("row", ROWS, ids=[row["base"] for row in ROWS])
def test_the_capacity(row: dict[str, str]) -> None:
    base, end = int(row["base"]), int(row["end"]) + 1
    assert end <= IDS_END
    told = numbers(row["users"].partition("(")[0])
    assert told == [Rule(base, count, end=end).capacity for count in numbers(row["counts"])]


def test_all_rows_are_read() -> None:
    assert len(ROWS) == 5
    assert {int(row["base"]) for row in ROWS} >= {Rule().base}


def test_what_is_taken_on_every_machine() -> None:
    said = numbers(PAGE.partition("Taken on every machine, whatever BASE is: ")[2].partition(".\n")[0])
    for window in WINDOWS:
        if window.hard:
            last = window.end - 1
            assert {window.start, last} <= set(said), window


def test_the_windows_of_other_programs() -> None:
    soft = {window.name: window for window in WINDOWS if not window.hard}
    nspawn = soft["containers of systemd-nspawn"]
    assert f"window for containers, {nspawn.start} to {nspawn.end - 1}" in PAGE
    assert str(soft["ids sssd computes for Active Directory"].start) in PAGE
