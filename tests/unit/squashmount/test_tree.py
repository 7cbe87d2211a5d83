"""What a squash file means: node ids, shifted owners, hidden names, errno values."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from squash_images import mksquash

from squashmount.idmap import IdRange
from squashmount.server.tree import OVERFLOW_ID, ROOT, IdShift, Tree
from squashmount.squashfs.image import SquashImage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the files must belong to root")


@pytest.fixture(scope="module")
def squash(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = tmp_path_factory.mktemp("tree")
    (top / "t/d/e").mkdir(parents=True)
    (top / "t/file").write_bytes(b"x" * 1000)
    os.link(top / "t/file", top / "t/d/hard")
    (top / "t/link").symlink_to("d/e")
    for name in ("user.colour", "user.overlay.opaque", "user.fuseoverlayfs.origin", "user.containers.override_stat"):
        os.setxattr(top / "t/file", name, name.encode())
    os.setxattr(top / "t/d", "user.overlay.opaque", b"y")
    owners = "d/e m 755 33 44"
    return mksquash(top / "t", top / "i", "-p", owners, "-p", "dev c 600 1000 5000 5 1")


@pytest.fixture
def image(squash: str) -> Iterator[SquashImage]:
    with SquashImage.open(squash) as opened:
        yield opened


@contextlib.contextmanager
def raises(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        yield
    assert caught.value.errno == number


def test_node_ids_say_where_the_inode_is(image: SquashImage) -> None:
    tree = Tree(image)
    node, attr = tree.lookup(ROOT, b"file")
    assert node == image.lookup(image.inode(image.root_ref), b"file").ref + 2  # type: ignore[union-attr]
    assert Tree(image).attr(node) == attr  # a second tree knows the node without having looked anything up
    folder, _ = tree.lookup(ROOT, b"d")
    assert tree.lookup(folder, b"hard") == (node, attr)
    assert (attr.nlink, attr.size, attr.blocks, attr.mode) == (2, 1000, 2, stat.S_IFREG | 0o644)


def test_dot_and_dotdot_find_their_way(image: SquashImage, tmp_path: Path) -> None:
    tree = Tree(image)
    folder, _ = tree.lookup(ROOT, b"d")
    inner, _ = tree.lookup(folder, b"e")
    assert tree.lookup(inner, b".")[0] == inner
    assert tree.lookup(inner, b"..")[0] == folder
    assert tree.lookup(folder, b"..")[0] == ROOT
    assert tree.lookup(ROOT, b"..")[0] == ROOT
    (tmp_path / "t/d").mkdir(parents=True)
    with SquashImage.open(mksquash(tmp_path / "t", tmp_path / "i", "-no-exports")) as plain:
        folder, _ = Tree(plain).lookup(ROOT, b"d")
        with raises(errno.ENOENT):
            Tree(plain).lookup(folder, b"..")


def test_listings_begin_with_the_dots_and_resume(image: SquashImage) -> None:
    tree = Tree(image)
    whole = list(tree.readdir(ROOT, 0))
    assert [name.name for name in whole] == [b".", b"..", b"d", b"dev", b"file", b"link"]
    assert [name.node for name in whole[:2]] == [0, 0]
    for at, name in enumerate(whole):
        assert list(tree.readdir(ROOT, name.cookie)) == whole[at + 1 :]
        assert name.cookie > 0
    for name in whole[2:]:
        node, attr = tree.lookup(ROOT, name.name)
        assert (name.node, name.ino, name.kind) == (node, attr.ino, stat.S_IFMT(attr.mode))
    folder, attr = tree.lookup(ROOT, b"d")
    dots = list(tree.readdir(folder, 0))[:2]
    assert [dot.ino for dot in dots] == [attr.ino, tree.attr(ROOT).ino]


def test_errors_have_the_errno_a_file_system_gives(image: SquashImage) -> None:
    tree = Tree(image)
    file, link = tree.lookup(ROOT, b"file")[0], tree.lookup(ROOT, b"link")[0]
    with raises(errno.ENOENT):
        tree.lookup(ROOT, b"none")
    with raises(errno.ENOTDIR):
        tree.lookup(file, b"x")
    with raises(errno.ENOTDIR):
        list(tree.readdir(file, 0))
    with raises(errno.EISDIR):
        tree.read(ROOT, 0, 1)
    with raises(errno.EINVAL):
        tree.read(link, 0, 1)
    with raises(errno.EINVAL):
        tree.readlink(file)
    assert tree.readlink(link) == b"d/e"
    assert b"".join(tree.read(file, 999, 50)) == b"x"


def test_overlay_attributes_are_hidden(image: SquashImage) -> None:
    tree = Tree(image)
    file, folder = tree.lookup(ROOT, b"file")[0], tree.lookup(ROOT, b"d")[0]
    assert tree.has_xattrs
    assert tree.xattr_names(file) == [b"user.colour"]
    assert tree.xattr(file, b"user.colour") == b"user.colour"
    assert tree.xattr_names(folder) == []
    for name in (b"user.overlay.opaque", b"user.none", b"system.posix_acl_access", b"trusted.overlay.opaque"):
        with raises(errno.ENODATA):
            tree.xattr(file, name)


def owners(tree: Tree) -> list[tuple[int, int]]:
    folder = tree.lookup(ROOT, b"d")[0]
    attrs = tree.attr(ROOT), tree.lookup(folder, b"e")[1], tree.lookup(ROOT, b"dev")[1]
    return [(attr.uid, attr.gid) for attr in attrs]


def test_ids_without_a_shift(image: SquashImage) -> None:
    assert owners(Tree(image)) == [(0, 0), (33, 44), (1000, 5000)]


def test_ids_of_keep_id(image: SquashImage) -> None:
    """podman --userns=keep-id for user 1000: the container's 1000 is the namespace's 0, and what is below moves up."""
    uids = (IdRange(0, 1, 1000), IdRange(1000, 0, 1), IdRange(1001, 1001, 64535))
    gids = (IdRange(0, 1, 100),)
    assert owners(Tree(image, IdShift(uids, gids))) == [(1, 1), (34, 45), (0, OVERFLOW_ID)]


def test_ids_of_a_namespace_with_one_id(image: SquashImage) -> None:
    assert owners(Tree(image, IdShift(single_uid=0, single_gid=7))) == [(0, 7)] * 3


def test_devices_keep_their_number(image: SquashImage) -> None:
    _, attr = Tree(image).lookup(ROOT, b"dev")
    assert stat.S_ISCHR(attr.mode)
    assert (os.major(attr.rdev), os.minor(attr.rdev)) == (5, 1)


def test_usage_is_that_of_a_full_file_system(image: SquashImage) -> None:
    usage = Tree(image).usage()
    assert usage.files == image.superblock.inode_count == 6
    assert usage.blocks * usage.block_size >= image.superblock.bytes_used > (usage.blocks - 1) * usage.block_size
    assert usage.max_name == 255
