"""Stores that other squash programs made run through our mount program as they are, without conversion.

What Podman itself refuses on them, so that no mount program can help (4.3.1):
- every command of a user who does not own a podman-hpc store: `migrate` copies the image's directory with mode 0700
- `commit` in a parallax store: "history lists N non-empty layers, but we have 2 layers on disk"
- `diff` and `commit` by a user who does not own the store: Podman chowns the store's `<layer>/diff` before it mounts it
- `image mount` and `--mount type=image` of any image in a read-only store
- `save`: it wants the files of the layers, which are only in the squash
- `diff IMAGE` in a podman-hpc store: it mounts the parent layer, which has neither content nor the `empty` it names
"""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import Node, User, wait_for
from peers import PodmanHpc, lacks_for_static_mksquashfs, make_parallax_store, own_python, snapshot_script, top_layer

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

Tree = dict[str, dict[str, Any]]

# What Podman makes in a container; podman-hpc squashes it from inside one, without /proc, /sys and /dev
MADE = ("./dev", "./proc", "./sys", "./run", "./etc/hosts", "./etc/hostname", "./etc/resolv.conf")
LZ4 = 5
"""The compressor's number in the superblock (Documentation/filesystems/squashfs.rst)."""


@dataclass(frozen=True)
class Peer:
    """A store, a user who may read it, its image's one layer with a squash, and the tree that image has."""

    name: str
    store: Path
    user: User
    layer: str
    tree: Tree

    @property
    def squash(self) -> Path:
        link = (self.store / "overlay" / self.layer / "link").read_text()
        return (self.store / "overlay/l" / f"{link}.squash").resolve(strict=True)

    def files(self) -> dict[str, int]:
        """Return every path of the store with its time of change."""
        return {str(path): path.lstat().st_mtime_ns for path in self.store.rglob("*")}


@pytest.fixture(scope="module")
def original(login: Node, debian: str) -> Tree:
    """The image as Podman shows it from its unpacked layers, in the user namespace."""
    script = login.base / "peers-snapshot.py"
    script.write_text(snapshot_script())
    mounted = f'root=$(podman image mount {debian}) && python3 {script} "$root" {" ".join(MADE)}'
    tree = login.podman("unshare", "sh", "-c", f"{mounted}; code=$?; podman image unmount {debian} >&2; exit $code")
    return without_time_of_root(json.loads(tree.ok()))


@pytest.fixture(scope="module")
def podman_hpc_store(lab: Path, alice: User, login: Node, debian: str, original: Tree) -> Peer:
    if reason := lacks_for_static_mksquashfs():
        (pytest.fail if os.environ.get("SQUASHMOUNT_REQUIRE") == "all" else pytest.skip)(reason)
    path = lab / "podman-hpc-store"
    path.mkdir()
    os.chown(path, alice.uid, alice.gid)
    PodmanHpc(lab, own_python()).migrate(login, debian, path)
    # it leaves security.capability out
    tree = original | {"./odd/capable": original["./odd/capable"] | {"xattrs": {}}}
    return Peer("podman-hpc", path, alice, top_layer(path, debian), tree)


@pytest.fixture(scope="module")
def parallax_store(lab: Path, bob: User, login: Node, debian: str, original: Tree) -> Peer:
    path = lab / "parallax-store"
    path.mkdir()
    make_parallax_store(path, login, debian)
    tree = {name: entry | ({"xattrs": {}} if "xattrs" in entry else {}) for name, entry in original.items()}
    return Peer("parallax", path, bob, top_layer(path, debian), tree)


@pytest.fixture(params=["podman_hpc", "parallax"])
def peer(request: pytest.FixtureRequest) -> Peer:
    found = request.getfixturevalue(f"{request.param}_store")
    assert isinstance(found, Peer)
    return found


@pytest.fixture
def node(make_node: Callable[..., Node], peer: Peer) -> Node:
    """A compute node that sees only the peer's store."""
    made = make_node(peer.user, stores=(peer.store,))
    (made.base / "snapshot.py").write_text(snapshot_script())
    return made


def differences(expected: Tree, found: Tree) -> list[str]:
    """Return the first paths that differ, with both descriptions: a comparison of dicts prints thousands."""
    paths = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    return [f"{path}: {expected.get(path)} became {found.get(path)}" for path in paths[:20]]


def without_time_of_root(tree: Tree) -> Tree:
    # `/` is the container's own upper directory, written when Podman makes its mount points
    return tree | {".": {key: value for key, value in tree["."].items() if key != "mtime"}}


def test_a_container_shows_the_image_and_leaves_nothing(node: Node, peer: Peer, debian: str) -> None:
    before = peer.files()
    assert node.podman("images", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}").ok() == f"{debian} true"
    volume = f"{node.base}/snapshot.py:/snapshot.py:ro"
    command = ("python3", "/snapshot.py", "/", *MADE, "./snapshot.py")
    found = json.loads(node.podman("run", "--rm", "-v", volume, debian, *command).ok())
    # Podman gives `/` the mode of the layer's diff directory, which podman-hpc makes 0755 whatever the image says
    mode = oct(stat.S_IMODE((peer.store / "overlay" / peer.layer / "diff").stat().st_mode))
    expected = peer.tree | {".": peer.tree["."] | {"mode": mode}}
    assert differences(expected, without_time_of_root(found)) == []
    assert f"kernel overlay (fastest) over {peer.squash}, engine wire" in node.log()

    wait_for(lambda: not node.servers(), "the server ends when it has been unused for the linger time")
    assert [path.name for path in node.state().iterdir()] == ["log"]
    assert str(node.state()) not in node.podman("unshare", "cat", "/proc/self/mountinfo").ok()
    assert peer.files() == before


def test_podman_hpc_wrote_lz4_into_a_file_and_parallax_a_link(podman_hpc_store: Peer, parallax_store: Peer) -> None:
    # squashfs.rst: 16 bits at offset 20 of the superblock
    assert int.from_bytes(podman_hpc_store.squash.read_bytes()[20:22], "little") == LZ4
    assert podman_hpc_store.squash.parent.name == "l"
    assert parallax_store.squash.parent.name == "squash"


# Podman 6 and the read-only mounts of Podman 5 name a layer by its id (drivers/overlay/overlay.go)
SPELLINGS = {
    "podman 6": "lowerdir={store}/overlay/{layer}/diff,upperdir={work}/upper,workdir={work}/work,,volatile",
    "read-only": "lowerdir={layer}/diff:{layer}/diff,ro",
    "read-only, nothing below": "lowerdir={store}/overlay/{layer}/diff:{store}/overlay/{layer}/missing,ro",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_layer_named_by_its_id(node: Node, peer: Peer, spelling: str) -> None:
    options = SPELLINGS[spelling].format(store=peer.store, layer=peer.layer, work=node.base)
    steps = (
        f"cd {node.base} && mkdir -m 555 upper && mkdir work merged && cd {peer.store}/overlay",
        f"{node.product}/bin/squashmount -o {options} {node.base}/merged",
        f"if touch {node.base}/merged/new 2>/dev/null; then rm {node.base}/merged/new; echo wrote >&2; fi",
        f"python3 {node.base}/snapshot.py {node.base}/merged {' '.join(MADE)}",
        f"umount {node.base}/merged",
    )
    done = node.podman("unshare", "sh", "-ec", "\n".join(steps))
    assert differences(peer.tree, without_time_of_root(json.loads(done.ok()))) == []
    assert ("wrote" in done.err) == (spelling == "podman 6")


def test_diff_and_commit_by_the_owner(make_node: Callable[..., Node], alice: User, peer: Peer, debian: str) -> None:
    node = make_node(alice, stores=(peer.store,))
    # a name that cannot begin an image's id: `podman diff` prefers images
    node.podman(
        "run", "--name", "worker", debian, "sh", "-c", "rm /odd/owned && rm -r /odd/many && echo new > /new"
    ).ok()
    changed = {"A /new", "C /odd", "D /odd/owned", "D /odd/many"}
    assert set(node.podman("diff", "worker").ok().splitlines()) == changed
    done = node.podman("commit", "-q", "worker", "localhost/child")
    if peer.name == "parallax":
        # its config keeps the history of layers the image no longer has
        assert done.code != 0
        assert "history lists" in done.err
        return
    done.ok()
    script = "cat /new; ls -d /odd/owned /odd/many /odd/hard1 2>/dev/null"
    assert node.podman("run", "--rm", "localhost/child", "sh", "-c", script).out.split() == ["new", "/odd/hard1"]


@pytest.mark.parametrize("command", [("mig", "IMAGE"), ("rmi", "IMAGE"), ("init",), ("repair",)])
def test_migrate2scratch_never_writes_into_it(login: Node, peer: Peer, debian: str, command: tuple[str, ...]) -> None:
    before = peer.files()
    done = login.migrate(*(debian if word == "IMAGE" else word for word in command), str(peer.store))
    assert done.code == 5, done
    assert f"{peer.store} is a store made by {peer.name}; it is never written to." in done.err
    assert "hint: use another DIR" in done.err
    assert peer.files() == before
