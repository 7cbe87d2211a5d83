import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from migrate_helpers import directory, entry, layer
from squashmount.migrate import owners, tarsplit
from squashmount.migrate.owners import Owner, merged

from squashmount.errors import StoreError


def owner(path: bytes, *splits: str) -> Owner | None:
    return merged(splits).owner(path)


def test_headers_survive_the_holes(tmp_path: Path) -> None:
    split = layer(
        tmp_path / "a", [directory("./d/", uid=5), entry("d/f", size=5000, uid=7, gid=8, mode=0o4755), entry("g")]
    )
    assert [(one.path, one.uid, one.gid, one.mode) for one in tarsplit.members(split)] == [
        (b"d", 5, 0, 0o755),
        (b"d/f", 7, 8, 0o4755),
        (b"g", 0, 0, 0o644),
    ]


@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_non_utf8_names_and_large_ids(tmp_path: Path, fmt: int) -> None:
    name = os.fsdecode(b"\xff" + b"long" * 60)
    split = layer(tmp_path / "a", [entry(name, uid=4_000_000_000 if fmt == tarfile.PAX_FORMAT else 65534)], fmt=fmt)
    found = next(tarsplit.members(split))
    assert found.path == os.fsencode(name)
    assert found.uid == (4_000_000_000 if fmt == tarfile.PAX_FORMAT else 65534)


def test_root_entry_is_the_empty_path(tmp_path: Path) -> None:
    assert owner(b"", layer(tmp_path / "a", [directory("./", uid=3, mode=0o700)])) == Owner(3, 0, 0o700)


def test_upper_layer_wins_and_keeps_children(tmp_path: Path) -> None:
    lower = layer(tmp_path / "a", [directory("d", uid=1), entry("d/old", uid=1), entry("d/both", uid=1)])
    upper = layer(tmp_path / "b", [directory("d", uid=2), entry("d/both", uid=2)])
    assert owner(b"d", lower, upper) == Owner(2, 0, 0o755)
    assert owner(b"d/both", lower, upper) == Owner(2, 0, 0o644)
    assert owner(b"d/old", lower, upper) == Owner(1, 0, 0o644)


def test_whiteout_removes_a_subtree_of_lower_layers_only(tmp_path: Path) -> None:
    lower = layer(tmp_path / "a", [directory("d", uid=1), entry("d/f", uid=1), entry("gone", uid=1)])
    upper = layer(tmp_path / "b", [directory("d", uid=2), entry(".wh.d"), entry(".wh.gone")])
    assert owner(b"d", lower, upper) == Owner(2, 0, 0o755)
    assert owner(b"d/f", lower, upper) is None
    assert owner(b"gone", lower, upper) is None


def test_opaque_directory_hides_lower_entries_whatever_the_order(tmp_path: Path) -> None:
    lower = layer(tmp_path / "a", [directory("d"), entry("d/low", uid=1), directory("d/s"), entry("d/s/low", uid=1)])
    upper = layer(tmp_path / "b", [directory("d"), entry("d/new", uid=2), entry("d/.wh..wh..opq")])
    assert owner(b"d/new", lower, upper) == Owner(2, 0, 0o644)
    assert owner(b"d/low", lower, upper) is None
    assert owner(b"d/s/low", lower, upper) is None


def test_file_over_directory_and_back(tmp_path: Path) -> None:
    first = layer(tmp_path / "a", [directory("x"), entry("x/f", uid=1)])
    second = layer(tmp_path / "b", [entry("x", uid=2)])
    third = layer(tmp_path / "c", [directory("x", uid=3)])
    assert owner(b"x", first, second) == Owner(2, 0, 0o644)
    assert owner(b"x/f", first, second) is None
    assert owner(b"x", first, second, third) == Owner(3, 0, 0o755)
    assert owner(b"x/f", first, second, third) is None


def test_hard_links_share_the_last_header(tmp_path: Path) -> None:
    link = entry("d/link", type=tarfile.LNKTYPE, linkname="./file", uid=9, gid=8, mode=0o600)
    split = layer(tmp_path / "a", [entry("file", uid=1), link])
    assert owner(b"file", split) == owner(b"d/link", split) == Owner(9, 8, 0o600)
    assert owner(b"d", split) is None, "a directory without a header says nothing"


def test_a_whiteout_below_something_absent_is_ignored(tmp_path: Path) -> None:
    split = layer(tmp_path / "a", [entry("no/such/.wh.file"), entry("f/.wh..wh.plnk"), entry("f2", uid=4)])
    assert owner(b"f2", split) == Owner(4, 0, 0o644)


def test_differences_are_only_where_the_disk_disagrees(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir(mode=0o755)
    for name in ("same", "other", "unknown", "mode"):
        (tree / name).touch(mode=0o644)
    (tree / "ln").symlink_to("same")
    uid, gid = os.getuid(), os.getgid()
    mine = {"uid": uid, "gid": gid}
    split = layer(
        tmp_path / "a",
        [
            directory(".", **mine),
            entry("same", **mine),
            entry("other", uid=33, gid=44),
            entry("mode", mode=0o4711, **mine),
            entry("ln", type=tarfile.SYMTYPE, linkname="same", mode=0o644, uid=7, gid=gid),
        ],
    )
    assert sorted(owners.differences(str(tree), merged([split]))) == [
        (b"ln", 0o777, 7, gid),
        (b"mode", 0o4711, uid, gid),
        (b"other", 0o644, 33, 44),
    ]


@pytest.mark.parametrize(
    ("present", "named", "ignored", "lost"),
    [
        ({0}, (0, 33), False, True),
        ({0}, (0,), False, False),
        ({0, 33}, (0, 33), False, False),
        ({0, 33}, (0, 33), True, True),
        ({0}, (), False, False),
    ],
)
def test_when_owners_are_lost(present: set[int], named: tuple[int, ...], ignored: bool, lost: bool) -> None:
    assert owners.lost(present, named, ignored=ignored) is lost


def test_damaged_records_say_so(tmp_path: Path) -> None:
    good = Path(layer(tmp_path / "a", [entry("f", size=9000)]))
    torn = tmp_path / "torn"
    torn.write_bytes(good.read_bytes()[:-20])
    for path in (torn, tmp_path / "missing"):
        with pytest.raises(StoreError, match="record of a layer"):
            list(tarsplit.members(str(path)))


def test_holed_file_reads_across_pieces() -> None:
    holed = tarsplit.Holed([b"ab", 3, b"", b"cd"])
    assert holed.read() == b"ab\0\0\0cd"
    holed.seek(1)
    assert holed.read(3) == b"b\0\0"
    holed.seek(-1, 2)
    assert (holed.read(9), holed.tell()) == (b"d", 7)


def test_a_squash_may_be_the_bottom(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d/f").touch(mode=0o640)
    (tree / "d/g").touch(mode=0o640)
    bottom = tmp_path / "x.squash"
    words = ["-p", "d/f m 4711 33 44", "-noappend", "-no-progress"]
    subprocess.run(["mksquashfs", tree, bottom, *words], check=True, capture_output=True)
    top = layer(tmp_path / "a", [directory("d", uid=9), entry("d/.wh.g")])
    assert owner(b"d/f", str(bottom), top) == Owner(33, 44, 0o4711)
    assert owner(b"d/g", str(bottom)) == Owner(os.getuid(), os.getgid(), 0o640)
    assert owner(b"d/g", str(bottom), top) is None
    assert owner(b"d", str(bottom), top) == Owner(9, 0, 0o755)
