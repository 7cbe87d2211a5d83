"""How newuidmap reads its files: what runs of the real one (tests/integration/test_newuidmap.py) do not reach."""

import tracemalloc
from contextlib import suppress
from io import BytesIO, RawIOBase

import pytest
from hypothesis import given
from hypothesis import strategies as st
from squashmount.storage_conf.ids.newuidmap import (
    DEBIAN_12,
    DEBIAN_13,
    UNSTABLE,
    Caller,
    Line,
    RefusedFileError,
    Triple,
    podman_map,
    podman_ranges,
    predict,
    read_lines,
)

DAVE = Caller("dave", 1000, 1000)
UIDS = {"dave": 1000, "david": 1000, "erin": 1001}


class Endless(RawIOBase):
    """A file of one line of `size` bytes, without its bytes in memory."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size > 0
        chunk = b"x" * min(size, self.left)
        self.left -= len(chunk)
        return chunk


@pytest.mark.parametrize("version", [DEBIAN_12, DEBIAN_13, UNSTABLE])
def test_a_huge_line_takes_no_memory(version: tuple[int, int]) -> None:
    tracemalloc.start()
    try:
        with suppress(RefusedFileError):
            assert list(read_lines(Endless(200_000_001), version)) == []  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300), st.sampled_from([DEBIAN_12, DEBIAN_13, UNSTABLE]))
def test_any_bytes_are_lines_or_a_refused_file(data: bytes, version: tuple[int, int]) -> None:
    with suppress(RefusedFileError):
        lines = list(read_lines(BytesIO(data), version))
        assert all(0 <= line.start < 2**64 and 0 <= line.count < 2**64 and ":" not in line.owner for line in lines)


_ids = st.integers(0, 40)
_some_lines = st.lists(st.builds(Line, st.just(1), st.sampled_from(["dave", "1000", "erin"]), _ids, st.integers(1, 9)))


@given(_some_lines, _ids, st.integers(1, 20))
def test_allowed_is_what_the_lines_hold_together(lines: list[Line], first: int, count: int) -> None:
    own = {number for line in lines if line.owner != "erin" for number in range(line.start, line.start + line.count)}
    verdict = predict([Triple(0, first, count)], lines, DAVE, version=DEBIAN_13, uid_of=UIDS.get)
    assert verdict.allowed is own.issuperset(range(first, first + count))


def test_podman_and_newgidmap_read_numbers_in_subgid_differently() -> None:
    lines = list(read_lines(BytesIO(b"david:1:2\n500:10:20\n1000:30:40\n"), DEBIAN_13))
    groups = {"dave": 500}
    assert [
        line.start
        for line in podman_ranges(lines, "dave", "uid", version=DEBIAN_13, uid_of=UIDS.get, gid_of=groups.get)
    ] == [30]
    assert [
        line.start
        for line in podman_ranges(lines, "dave", "gid", version=DEBIAN_13, uid_of=UIDS.get, gid_of=groups.get)
    ] == [10]
    # and so newgidmap, which looks for the uid, refuses what Podman asks it for
    caller = Caller("dave", 1000, 500)
    asked = podman_map(podman_ranges(lines, "dave", "gid", version=DEBIAN_13, uid_of=UIDS.get, gid_of=groups.get), 500)
    verdict = predict(asked, lines, caller, "gid", version=DEBIAN_13, uid_of=UIDS.get)
    assert str(verdict) == "gid range [1-21) -> [10-30) not allowed"


def test_podman_falls_back_to_the_uid_in_subgid() -> None:
    lines = list(read_lines(BytesIO(b"1000:30:40\n"), DEBIAN_12))
    assert [
        line.start for line in podman_ranges(lines, "dave", "gid", version=DEBIAN_12, uid_of=UIDS.get, gid_of={}.get)
    ] == [30]
