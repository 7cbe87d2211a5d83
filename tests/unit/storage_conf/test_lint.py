"""Every way a line of /etc/subuid can miss what its writer meant (what newuidmap makes of it: shadow 4.13)."""

import io
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squashmount.storage_conf.ids.lint import Fault, lint
from squashmount.storage_conf.ids.newuidmap import (
    DEBIAN_12,
    DEBIAN_13,
    UNSTABLE,
    Caller,
    Line,
    RefusedFileError,
    Triple,
    Version,
    owned_lines,
    predict,
    read_lines,
)

GOOD = b"root:100000:65536\n"


def faults(data: bytes, *names: str) -> list[Fault]:
    return list(lint(io.BytesIO(data), names=names))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"dave:100000:65536\n",
        b"# a comment: with colons\n\n   \ndave:100000:65536\n",
        b"20000:0:1\nDOM\\dave:4294901759:65536\n",
        b"dave@hpc.test:1:1\ndave:4294967294:1\n",
        b"dave:100000:65536\ndave:165536:65536\n",
    ],
)
def test_what_is_right_is_left_alone(data: bytes) -> None:
    assert faults(data, "dave") == []


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b"dave:100000:65536\r", "return", "carriage return"),
        (b" dave:100000:65536", "blank", "blank"),
        (b"dave :100000:65536", "blank", "blank"),
        (b"dave:\t100000:65536", "blank", "blank"),
        (b"dave:100000:65536 # for dave", "comment", "comment"),
        (b"dave:100000", "fields", "2 fields"),
        (b"dave:100000:65536:x", "fields", "4 fields"),
        (b"dave", "fields", "1 fields"),
        (b":100000:65536", "name", "no login"),
        (b"da\x1bve:100000:65536", "name", "no login"),
        (b"dave:01000000:65536", "octal", "octal 262144"),
        (b"dave:100000:00", "octal", "octal 0"),
        (b"dave:0xF4240:65536", "hex", "0xF4240"),
        (b"dave:-1:65536", "number", "start '-1'"),
        (b"dave:100000:", "number", "count ''"),
        (b"dave:089:1", "number", "start '089'"),
        (b"dave:1e5:65536", "number", "start '1e5'"),
        (b"dave:100000:" + b"9" * 1000, "number", "no number"),
        ("dave:\u0661\u0660:65536".encode(), "number", "no number"),
        (b"dave:100000:0", "zero", "count 0"),
        (b"dave:0:0", "everything", "every id there is"),
        (b"dave:4294901760:65536", "overflow", "ends at 4294967295"),
        (b"dave:18446744073709551616:1", "overflow", "last id is 4294967294"),
        (b"Dave:100000:65536", "case", "the login is dave"),
        (b"da\0ve:100000:65536", "nul", "NUL"),
        (b"# da\0ve", "nul", "refuse the whole file"),
        (b"+dave:100000:65536", "nis", "NIS"),
        (b"01000:100000:65536", "owner", "uid 1000"),
        (b"77:100000:65536", "owner", "for the login 77"),
        (b"dave:100000:" + b"9" * 1012, "long", "1024 bytes"),
        (b"x" * 5000, "long", "4096 bytes"),
    ],
)
def test_each_fault_has_its_line_and_its_name(line: bytes, code: str, words: str) -> None:
    found = faults(GOOD + b"# c\n" + line + b"\n" + b"last:1:1\n", "dave", "77")
    assert [(fault.line, fault.code) for fault in found] == [(3, code)]
    assert words in found[0].what
    assert found[0].what.startswith("line 3 ")
    assert found[0].fix


def test_the_same_line_again() -> None:
    found = faults(GOOD + b"a:1:1\n" + GOOD)
    assert [(fault.line, fault.code, fault.what) for fault in found] == [
        (3, "duplicate", "line 3 is the same as line 1")
    ]


def test_no_newline_at_the_end_is_a_fault_beside_the_others() -> None:
    assert [(fault.line, fault.code) for fault in faults(GOOD + b"dave:1:1")] == [(2, "newline")]
    assert [(fault.line, fault.code) for fault in faults(b"dave:1")] == [(1, "fields"), (1, "newline")]
    assert [(fault.line, fault.code) for fault in faults(b"x" * 9000)] == [(1, "long"), (1, "newline")]


def test_a_limit_of_lines() -> None:
    data = GOOD + b"a:1:1\nb:1:1\n"
    assert list(lint(io.BytesIO(data), most=3)) == []
    assert [(fault.line, fault.code) for fault in lint(io.BytesIO(data), most=2)] == [(3, "many")]


def test_a_login_in_capitals_is_no_fault_where_it_exists() -> None:
    assert faults(b"Dave:1:1\n", "Dave", "dave") == []
    assert faults(b"Dave:1:1\n") == []


UIDS = {"dave": 1000, "david": 1000, "77": 1000, "erin": 1001}
_good = st.builds(
    "{}:{}:{}".format,
    st.sampled_from(["dave", "david", "erin", "1000", "1001"]),
    st.integers(1, 9999),
    st.integers(1, 9999),
)
_owners = st.sampled_from(["77", "01000", "001001", "+1000", "-1", "Dave", "#dave", " 1000", "", "4294968296"])
_values = [str(value) for value in (0, 2**32 - 2, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1)]
_forms = [
    "010",
    "0x10",
    "0b11",
    "-1",
    "+1",
    " 1",
    "1 ",
    "1\0",
    "",
    "1:",
    "1:x",
    "1\r",
    "0" * 999 + "1",
    "0" * 1020 + "1",
]
_numbers = st.sampled_from(_values + _forms)
_odd = st.one_of(
    st.builds("{}:5:5".format, _owners),
    st.builds("dave:{}:5".format, _numbers),
    st.builds("1000:5:{}".format, _numbers),
    st.builds("dave:{}:{}".format, _numbers, _numbers),
    st.sampled_from(["dave:0:0", "dave:1:2:3"]),
    st.builds("# {}".format, st.text(":#0 \t\0a", max_size=5)),
    st.text(":#0 \0a", max_size=9),
)
_ends = st.sampled_from(["\n"] * 5 + ["", "\n\n", "\n#\n"])


def read_by(data: bytes, version: Version) -> list[tuple[list[Line], bool]] | None:
    """Return the lines of each user and whether he may have an id.

    The user whose login is digits is another one since 4.20: that is no fault of a file.
    """
    try:
        lines = list(read_lines(io.BytesIO(data), version))
    except RefusedFileError:
        return None
    callers = [Caller(name, uid, 100) for name, uid in UIDS.items() if not name.isdecimal()]
    asked = [Triple(0, 20000, 1)]
    return [
        (
            owned_lines(lines, caller, UIDS.get, version),
            predict(asked, lines, caller, version=version, uid_of=UIDS.get).allowed,
        )
        for caller in callers
    ]


@settings(max_examples=500)
@given(st.lists(_good, max_size=2), _odd, st.lists(_good, max_size=2), _ends)
def test_a_file_without_a_fault_is_read_the_same_by_every_shadow(
    before: list[str], odd: str, after: list[str], end: str
) -> None:
    data = ("\n".join([*before, odd, *after]) + end).encode()
    oldest, newer, newest = (read_by(data, version) for version in (DEBIAN_12, DEBIAN_13, UNSTABLE))
    if not faults(data, *UIDS):
        assert oldest == newer == newest is not None


@given(st.binary(max_size=300))
def test_no_bytes_confuse_it(data: bytes) -> None:
    found = faults(data, "a")
    assert all(1 <= fault.line <= data.count(b"\n") + 1 for fault in found)
    assert all(fault.text.isprintable() or not fault.text for fault in found)


class _Endless(io.RawIOBase):
    """A file of 256 MiB without a newline."""

    left = 256 << 20

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        size = min(len(view), self.left)
        view[:size] = b"x" * size
        self.left -= size
        return size


def test_memory_is_bounded_without_a_single_newline() -> None:
    tracemalloc.start()
    try:
        found = list(lint(io.BufferedReader(_Endless(), 1 << 16)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [fault.code for fault in found] == ["long", "newline"]
    assert peak < 4 << 20


def test_memory_is_bounded_in_a_long_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squashmount.storage_conf.ids.lint._REMEMBERED", 1000)
    data = b"".join(b"u%d:1:1\n" % number for number in range(20_000))
    tracemalloc.start()
    try:
        assert list(lint(io.BytesIO(data))) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
