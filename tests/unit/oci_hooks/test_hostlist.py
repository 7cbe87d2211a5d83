"""The lists of nodes that Slurm writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from squashmount.oci_hooks.hostlist import MOST, expanded

LISTS = [
    ("", []),
    ("n1", ["n1"]),
    ("login.x_y-z", ["login.x_y-z"]),
    ("n[1-3]", ["n1", "n2", "n3"]),
    ("n[1-3,07],m", ["n1", "n2", "n3", "n07", "m"]),
    ("n[008-010,12],login", ["n008", "n009", "n010", "n12", "login"]),
    ("r[1-2]c[3-4]", ["r1c3", "r1c4", "r2c3", "r2c4"]),
    ("n[098-101]", ["n098", "n099", "n100", "n101"]),
]
# Slurm of Debian 12 refuses text behind the last bracket
BEHIND = [
    ("n[098-099]-ib", ["n098-ib", "n099-ib"]),
    ("r[1-2]c[3-4].x", ["r1c3.x", "r1c4.x", "r2c3.x", "r2c4.x"]),
]


@pytest.mark.parametrize(("text", "names"), LISTS + BEHIND)
def test_lists(text: str, names: list[str]) -> None:
    assert expanded(text) == names


@pytest.mark.parametrize(
    "text",
    [
        *(
            "n[",
            "n[1",
            "n[1-",
            "n]",
            "n[]",
            "n[1]]",
            "n[[1]]",
            "n[a-b]",
            "n[3-1]",
            "n[1-]",
            "n[-1]",
            "n[1-2-3]",
            "n[,]",
        ),
        *(",", "a,", ",a", "a,,b", "n[\u0661-\u0662]", "n\u00e9", "n1 Port 22", "n1\nHost *", "*", "!n1", "a/b"),
        *("n[1-9999999]", "n[1-999999999]", "n[0-9999]x[0-9999]", f"n[1-{MOST}],m", "n" + "[1]" * 5000, "n[" * 5000),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"(?s).*"):
        expanded(text)


@given(st.text(st.sampled_from("n01[]-,."), max_size=24))
def test_all_is_either_a_list_of_names_or_none(text: str) -> None:
    try:
        names = expanded(text)
    except ValueError:
        return
    assert len(names) <= MOST
    assert not any(char in name for name in names for char in "[],")
    assert all(names)
