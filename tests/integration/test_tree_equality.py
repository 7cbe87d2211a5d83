"""The tree a container shows is the tree of the original image, whatever engine, overlay and id map."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import TOP, Node, User

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

Tree = dict[str, dict[str, Any]]

# What Podman itself mounts or makes in a container.
MADE = ["./dev", "./proc", "./sys", "./run", "./etc/hosts", "./etc/hostname", "./etc/resolv.conf"]
SCRIPT = "/snapshot.py"


@pytest.fixture(scope="session")
def original(login: Node, debian: str) -> Tree:
    """The image as Podman shows it from its unpacked layers, inside the user namespace."""
    snapshot = str(login.base / "snapshot.py")
    Path(snapshot).write_text((TOP / "tests/snapshot.py").read_text())
    mounted = f'root=$(podman image mount {debian}); python3 {snapshot} "$root" {" ".join(MADE)}'
    tree: Tree = json.loads(login.podman("unshare", "sh", "-c", mounted).ok())
    login.podman("unshare", "podman", "image", "unmount", debian).ok()
    return tree


def in_container(node: Node, image: str, *options: str) -> Tree:
    """Take the snapshot inside a container; the script comes in as a volume."""
    script = node.base / "snapshot.py"
    script.write_text((TOP / "tests/snapshot.py").read_text())
    volume = f"{script}:{SCRIPT}:ro"
    command = ("python3", SCRIPT, "/", *MADE, f".{SCRIPT}")
    tree: Tree = json.loads(node.podman("run", "-v", volume, *options, image, *command).ok())
    return tree


def differences(expected: Tree, found: Tree) -> list[str]:
    """Say in words what differs, the first few."""
    lines = [f"missing {path}" for path in expected.keys() - found.keys()]
    lines += [f"too many {path}" for path in found.keys() - expected.keys()]
    for path in sorted(expected.keys() & found.keys()):
        for key in sorted(expected[path].keys() | found[path].keys()):
            # `/` is the container's own: its upper directory, written when Podman made the mount points
            if expected[path].get(key) != found[path].get(key) and (path, key) != (".", "mtime"):
                lines.append(f"{path}: {key} {expected[path].get(key)!r} became {found[path].get(key)!r}")
    return lines[:20]


def without(tree: Tree, *keys: str, path: str | None = None) -> Tree:
    """Return the tree without some keys of every entry (or of one), or without one entry."""
    left = {name: entry for name, entry in tree.items() if keys or name != path}
    return {
        name: {key: value for key, value in entry.items() if key not in keys or path not in {None, name}}
        for name, entry in left.items()
    }


def single(tree: Tree) -> Tree:
    """Return the tree as a user with one id sees it."""
    return {path: {**entry, "owner": [0, 0]} for path, entry in tree.items()}


def test_the_original_holds_what_is_easily_lost(original: Tree) -> None:
    assert original["./odd/owned"]["owner"] == [1000, 2000]
    assert original["./odd/owned"]["xattrs"] == {"user.note": b"kept\0binary".hex()}
    assert "security.capability" in original["./odd/capable"]["xattrs"]
    assert original["./odd/hard2"]["same_as"] == original["./odd/sub/hard3"]["same_as"]
    assert "./odd/name \xff\xfe" in original
    assert "./odd/again/old1" not in original
    assert "./odd/many/2999" in original
    assert len(original) > 8000


@pytest.mark.parametrize("overlay", ["kernel", "fuse"])
@pytest.mark.parametrize("engine", ["wire", "squashfuse_ll"])
def test_full_map(compute: Node, original: Tree, debian: str, engine: str, overlay: str) -> None:
    compute.env |= {"SQUASHMOUNT_ENGINE": engine, "SQUASHMOUNT_OVERLAY": overlay}
    found = in_container(compute, debian, "--rm")
    if overlay == "fuse":
        # fuse-overlayfs counts the links it has seen so far, over unpacked layers, too
        original, found = without(original, "links"), without(found, "links")
    if engine == "squashfuse_ll":
        # squashfuse 0.1.105 does not show file capabilities, 0.5.2 does; one more reason for an engine of our own
        assert found["./odd/capable"]["xattrs"] in ({}, original["./odd/capable"]["xattrs"])
        original, found = (without(tree, "xattrs", path="./odd/capable") for tree in (original, found))
    assert differences(original, found) == []
    assert f"engine {engine}" in compute.log()
    assert f"{overlay} overlay" in compute.log()


@pytest.mark.parametrize("kept", [False, True])
def test_keep_id(compute: Node, original: Tree, debian: str, *, kept: bool) -> None:
    found = in_container(compute, debian, "--userns=keep-id", "--user=0:0", *([] if kept else ["--rm"]))
    # Podman adds the user to these two
    for path in ("./etc/passwd", "./etc/group"):
        original, found = without(original, path=path), without(found, path=path)
    original, found = (without(tree, "mtime", path="./etc") for tree in (original, found))
    if kept:
        # fuse-overlayfs shifts owners, but not the root id a file capability belongs to
        original, found = (
            without(without(tree, "links"), "xattrs", path="./odd/capable") for tree in (original, found)
        )
    assert differences(original, found) == []
    assert ("fuse overlay" if kept else "ids shifted") in compute.log()


def test_keep_id_as_the_user_himself(compute: Node, debian: str, alice: User) -> None:
    out = compute.podman(
        "run", "--rm", "--userns=keep-id", debian, "sh", "-c", "id -u; touch /tmp/x; stat -c %u /tmp/x /etc"
    ).ok()
    assert out.split() == [str(alice.uid), str(alice.uid), "0"]


@pytest.fixture
def solo_node(make_node: Callable[..., Node], solo: User, solo_store: Path) -> Node:
    return make_node(solo, stores=(solo_store,), ignore_chown_errors=True)


@pytest.mark.parametrize("overlay", ["kernel", "fuse"])
def test_single_id_map(solo_node: Node, original: Tree, debian: str, overlay: str) -> None:
    node = solo_node
    node.env |= {"SQUASHMOUNT_OVERLAY": overlay}
    found = in_container(node, debian, "--rm")
    if overlay == "fuse":
        original, found = without(original, "links"), without(found, "links")
    assert differences(single(original), found) == []


def test_a_single_id_user_squashes_the_true_owners(
    make_node: Callable[..., Node], bob: User, original: Tree, debian: str, solo_store: Path
) -> None:
    node = make_node(bob, stores=(solo_store,))
    assert differences(original, in_container(node, debian, "--rm")) == []
