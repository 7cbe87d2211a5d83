"""From an entry of the lowerdir list to the squash, on real directories."""

from pathlib import Path

import pytest

from squashmount.errors import DamagedError, StoreError
from squashmount.ids import ImageId
from squashmount.layout import StoreLayout, image_layers, link_of
from squashmount.lowers import has_whiteout_files, resolve_lowers

IMAGE = ImageId("1" * 64)
LAYER = image_layers(IMAGE, 1)[-1].id


def make_store(root: Path, *, squash_is_link: bool = True) -> StoreLayout:
    store = StoreLayout(str(root))
    layer = LAYER
    diff = Path(store.diff(layer))
    diff.mkdir(parents=True)
    (diff.parent / "empty").mkdir()
    (diff.parent / "link").write_text(link_of(layer))
    Path(store.links).mkdir()
    Path(store.link(link_of(layer))).symlink_to(f"../{layer}/diff")
    squash = Path(store.squash(IMAGE))
    squash.parent.mkdir(parents=True)
    squash.write_bytes(b"x")
    if squash_is_link:
        Path(store.link_squash(link_of(layer))).symlink_to(f"../../squashmount/capsules/{IMAGE}/image.squashfs")
    else:
        Path(store.link_squash(link_of(layer))).write_bytes(b"x")
    return store


def test_short_link_diff_path_and_symlinked_root_find_the_same_squash(tmp_path: Path) -> None:
    store = make_store(tmp_path / "real")
    (tmp_path / "alias").symlink_to("real")
    layer = LAYER
    spellings = (
        store.link(link_of(layer)),
        store.diff(layer),
        str(tmp_path / "alias/overlay/l" / link_of(layer)),
        str(tmp_path / "alias/overlay" / layer / "diff"),
    )
    found = {resolve_lowers((spelling,), cwd="/")[0].squash for spelling in spellings}
    assert found == {store.squash(IMAGE)}


def test_relative_entries_are_relative_to_the_overlay_directory(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (lower,) = resolve_lowers((f"l/{link_of(LAYER)}",), cwd=store.overlay)
    assert lower.squash == store.squash(IMAGE)
    assert lower.given.startswith("l/")


def test_squash_as_a_regular_file_as_podman_hpc_writes_it(tmp_path: Path) -> None:
    store = make_store(tmp_path, squash_is_link=False)
    (lower,) = resolve_lowers((store.diff(LAYER),), cwd="/")
    assert lower.squash == store.link_squash(link_of(LAYER))


def test_what_lies_below_a_squash_need_not_exist(tmp_path: Path) -> None:
    store = make_store(tmp_path, squash_is_link=False)
    (tmp_path / "unpacked").mkdir()
    # `podman diff` and `commit` on an image in a podman-hpc store: its layers have no `empty`
    entries = (str(tmp_path / "unpacked"), store.diff(LAYER), store.layer(LAYER) + "/gone", "l/GONE")
    assert [lower.given for lower in resolve_lowers(entries, cwd="/")] == list(entries[:2])
    with pytest.raises(StoreError, match="gone"):
        resolve_lowers((store.layer(LAYER) + "/gone", store.diff(LAYER)), cwd="/")


def test_empty_directory_and_ordinary_layers_have_no_squash(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    ordinary = tmp_path / "overlay/abc/diff"
    ordinary.mkdir(parents=True)
    (ordinary.parent / "link").write_text("ORDINARY")
    empty = store.layer(LAYER) + "/empty"
    assert [lower.squash for lower in resolve_lowers((empty, str(ordinary)), cwd="/")] == [None, None]


def test_missing_squash_is_named_with_its_cure(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    Path(store.squash(IMAGE)).unlink()
    with pytest.raises(DamagedError, match="missing") as caught:
        resolve_lowers((store.diff(LAYER),), cwd="/")
    assert "migrate2scratch" in caught.value.hint


def test_missing_layer_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="l/GONE"):
        resolve_lowers(("l/GONE",), cwd=str(tmp_path))


def test_a_link_file_cannot_point_out_of_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    Path(store.layer(LAYER), "link").write_text("../../../etc/passwd")
    (lower,) = resolve_lowers((store.diff(LAYER),), cwd="/")
    assert lower.squash is None


def test_whiteout_files_are_found_at_any_depth(tmp_path: Path) -> None:
    deep = tmp_path / "a/b"
    deep.mkdir(parents=True)
    assert not has_whiteout_files(str(tmp_path))
    (deep / ".wh.gone").touch()
    assert has_whiteout_files(str(tmp_path))


def test_whiteouts_are_not_looked_for_behind_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.wh.x").touch()
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer/link").symlink_to("../out")
    assert not has_whiteout_files(str(tmp_path / "layer"))
