import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from migrate_helpers import image_id
from squashmount.migrate import derive, names, source
from squashmount.migrate.capsule import Capsule, parse
from squashmount.migrate.derive import State
from squashmount.migrate.image import Graph, Image, Layer, read_graph
from squashmount.migrate.mksquashfs import Format
from squashmount.migrate.names import Match
from squashmount.migrate.plan import Drop, Name, Share, Squash, Unname, plan_migration, plan_prune, plan_removal

from squashmount.errors import AmbiguousImageError, ImageNotFoundError, StoreError, UsageError
from squashmount.ids import ImageId

A, B, C = image_id("a"), image_id("b"), ImageId("ca97" + "0" * 60)


def capsule(image: ImageId, *, diff_ids: tuple[str, ...] = (), digest: str = "") -> Capsule:
    record = {
        "id": image,
        "digest": digest,
        "created": "2026-01-01T00:00:00Z",
        "names": ["old"],
        "mapped-layers": ["x"],
    }
    return Capsule(image, record, diff_ids, 1, "00", 2, 3, 0o755, "zstd", 3, 131072, "2026-01-02T00:00:00Z", "me")


STATE = State(
    {A: capsule(A, digest="sha256:aa"), B: capsule(B), C: capsule(C)},
    {
        "docker.io/library/python:3": A,
        "localhost/ada:latest": B,
        "quay.io/team/tool:1": A,
        "reg:5000/x/tool:1": B,
        "127.0.0.1:5000/busybox:latest": B,
    },
)


@pytest.mark.parametrize(
    ("wanted", "image", "name"),
    [
        ("python:3", A, "docker.io/library/python:3"),
        ("docker.io/library/python:3", A, "docker.io/library/python:3"),
        ("library/python:3", A, "docker.io/library/python:3"),
        ("ada", B, "localhost/ada:latest"),
        ("team/tool:1", A, "quay.io/team/tool:1"),
        ("127.0.0.1:5000/busybox", B, "127.0.0.1:5000/busybox:latest"),
        ("busybox", B, "127.0.0.1:5000/busybox:latest"),
        ("python@sha256:aa", A, ""),
        (A[:10], A, ""),
        ("sha256:" + B, B, ""),
    ],
)
def test_names_are_found(wanted: str, image: ImageId, name: str) -> None:
    assert names.find(STATE, wanted, where="D") == Match(image, name)


def test_a_name_goes_before_an_id() -> None:
    state = State({A: capsule(A), C: capsule(C)}, {"localhost/ca97:latest": A})
    assert names.find(state, "ca97", where="D").image == A


@pytest.mark.parametrize("wanted", ["tool:1", "ca97"])
def test_ambiguous(wanted: str) -> None:
    other = ImageId("ca97" + "1" * 60)
    state = State({**STATE.capsules, other: capsule(other)}, STATE.names)
    with pytest.raises(AmbiguousImageError) as caught:
        names.find(state, wanted, where="D")
    assert len(caught.value.details.splitlines()) == (2 if wanted == "tool:1" else 3)


def test_not_found_names_what_is_near() -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        names.find(STATE, "pyton:3", where="D")
    assert "docker.io/library/python:3" in caught.value.details
    with pytest.raises(UsageError):
        names.find(STATE, " ", where="D")


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("bc:1", "localhost/bb:1"),
        ("python", "docker.io/library/python:3"),
        ("zzzzzz", None),
        ("docker.io/libary/python:3", "docker.io/library/python:3"),
    ],
)
def test_near_misses(wanted: str, near: str | None) -> None:
    found = source.near_misses(wanted, ["localhost/bb:1", "docker.io/library/python:3"])
    assert (near in found) if near else not found


def image(*tags: str, image: ImageId = A) -> Image:
    return Image(image, "top", tags, "2026-01-01T00:00:00Z", "", {})


def test_first_migration() -> None:
    actions = plan_migration(State({}, {}), image("b:1", "a:1"), ("x",), Format())
    assert actions == (Squash(A, Format()), Name("a:1", A), Name("b:1", A))


def test_again_is_nothing_and_a_new_tag_is_only_named() -> None:
    state = State({A: capsule(A)}, {"a:1": A})
    assert plan_migration(state, image("a:1"), ("x",), Format()) == ()
    assert plan_migration(state, image("a:1", "n:1"), ("x",), Format()) == (Name("n:1", A),)


def test_a_moved_tag_says_whose_it_was_and_replace_drops_the_nameless() -> None:
    state = State({A: capsule(A), B: capsule(B)}, {"t:1": B, "o:1": A})
    wanted = image("t:1", image=A)
    assert plan_migration(state, wanted, (), Format()) == (Name("t:1", A, B),)
    assert plan_migration(state, wanted, (), Format(), replace=True) == (Name("t:1", A, B), Drop(B))
    kept = State(state.capsules, {**state.names, "keep:1": B})
    assert plan_migration(kept, wanted, (), Format(), replace=True) == (Name("t:1", A, B),)


def test_same_layers_share_the_squash_only_in_the_same_format() -> None:
    state = State({B: capsule(B, diff_ids=("x", "y"))}, {})
    assert plan_migration(state, image(), ("x", "y"), Format()) == (Share(A, B),)
    assert plan_migration(state, image(), ("x",), Format()) == (Squash(A, Format()),)
    assert plan_migration(state, image(), ("x", "y"), Format("xz", 0)) == (Squash(A, Format("xz", 0)),)
    assert plan_migration(State({B: capsule(B, diff_ids=("",))}, {}), image(), ("",), Format())[0] == Squash(
        A, Format()
    )


def test_removal() -> None:
    state = State({A: capsule(A), B: capsule(B)}, {"a:1": A, "a:2": A})
    assert plan_removal(state, Match(A, "a:1")) == (Unname("a:1", A),)
    assert plan_removal(state, Match(A, "a:1"), force=True) == (Drop(A, ("a:1", "a:2")),)
    with pytest.raises(UsageError, match="several names"):
        plan_removal(state, Match(A, ""))
    assert plan_removal(State(state.capsules, {"a:1": A}), Match(A, "a:1")) == (Drop(A, ("a:1",)),)
    assert plan_removal(state, Match(B, "")) == (Drop(B),)
    assert plan_prune(state) == (Drop(B),)


def test_every_action_describes_itself() -> None:
    for action in (Squash(A, Format()), Share(A, B), Name("n", A, B), Unname("n", A), Drop(A, ("n",)), Drop(A)):
        assert A[:12] in action.describe()


def test_derived_records() -> None:
    state = State({A: capsule(A)}, {"b": A, "a": A})
    record = json.loads(derive.images_json(state))[0]
    assert record["names"] == ["a", "b"]
    assert record["layer"] == capsule(A).top
    assert "mapped-layers" not in record
    layer = json.loads(derive.layers_json(state))[0]
    assert layer == {
        "id": capsule(A).top,
        "created": "2026-01-01T00:00:00Z",
        "diff-digest": capsule(A).chain[0].digest,
        "diff-size": 2,
    }


def test_capsule_round_trip_and_newer_formats() -> None:
    one = capsule(A)
    assert parse(one.to_json(), where="x") == one
    with pytest.raises(StoreError, match="newer version"):
        parse(replace(one, format=2).to_json(), where="x")


def test_graph(tmp_path: Path) -> None:
    (tmp_path / "overlay-images").mkdir()
    (tmp_path / "overlay-layers").mkdir()
    assert read_graph(str(tmp_path), "overlay") == Graph(str(tmp_path), "overlay", (), {})
    images = [{"id": A, "layer": "top", "names": None, "big-data-names": ["manifest"]}]
    layers = [
        {"id": "top", "parent": "base", "diff-digest": "sha256:2", "uidset": [0, 33], "gidset": None},
        {"id": "base", "diff-digest": "sha256:1"},
        {"id": "child", "parent": "in another store", "diff-digest": "sha256:3"},
    ]
    (tmp_path / "overlay-images/images.json").write_text(json.dumps(images))
    (tmp_path / "overlay-layers/layers.json").write_text(json.dumps(layers))
    graph = read_graph(str(tmp_path), "overlay")
    assert graph.diff_ids("top") == ("sha256:1", "sha256:2")
    assert graph.diff_ids("child") == ("layer:in another store", "sha256:3")
    assert graph.chain("top")[1] == Layer("top", "base", "sha256:2", frozenset({0, 33}), str(tmp_path))
    found = graph.image(A)
    assert found
    assert (found.names, found.big_data) == ((), ("manifest",))
    assert graph.owner_records("top") == ()
    for name in ("top", "base"):
        (tmp_path / f"overlay-layers/{name}.tar-split.gz").touch()
    assert [os.path.basename(path) for path in graph.owner_records("top")] == ["base.tar-split.gz", "top.tar-split.gz"]
    (tmp_path / "overlay-images/images.json").write_text("[{")
    with pytest.raises(StoreError, match="not valid JSON"):
        read_graph(str(tmp_path), "overlay")


def test_a_chain_goes_on_in_additional_stores_and_ends_at_a_squash(tmp_path: Path) -> None:
    home, shared = tmp_path / "home", tmp_path / "shared"
    for root, layers in (
        (home, [{"id": "child", "parent": "s1", "diff-digest": "sha256:3"}]),
        (shared, [{"id": "s0", "diff-digest": "sha256:0"}, {"id": "s1", "parent": "s0", "diff-digest": "sha256:1"}]),
    ):
        (root / "overlay-layers").mkdir(parents=True)
        (root / "overlay-layers/layers.json").write_text(json.dumps(layers))
    (home / "overlay-layers/child.tar-split.gz").touch()
    for name in ("s0", "s1"):
        (shared / "overlay" / name).mkdir(parents=True)
        (shared / "overlay" / name / "link").write_text(name.upper())
    (shared / "overlay/l").mkdir()
    (shared / "overlay/l/S1.squash").touch()
    graph = read_graph(str(home), "overlay", (str(shared),))
    assert [layer.id for layer in graph.chain("child")] == ["s0", "s1", "child"]
    assert graph.owner_records("child") == (
        str(shared / "overlay/l/S1.squash"),
        str(home / "overlay-layers/child.tar-split.gz"),
    )
    assert read_graph(str(home), "overlay").diff_ids("child") == ("layer:s1", "sha256:3")
