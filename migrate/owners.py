"""Who owns what, according to the headers of the layers: for images pulled with `ignore_chown_errors`.

The layers are merged bottom-up as the OCI image specification says (layer.md): an entry replaces what lower layers had
at its path, directories are joined, `.wh.NAME` removes NAME of the lower layers, `.wh..wh..opq` everything in its
directory. Whiteouts never concern entries of their own layer. A directory without a header in some layer keeps what the
layers below say.
"""

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from squashmount.squashfs.image import SquashImage

from . import survey, tarsplit
from .tarsplit import Member

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_META = b".wh..wh."


class Owner(NamedTuple):
    """Owner, group and permission bits of a file, as the image means them."""

    uid: int
    gid: int
    mode: int


class _Inode:
    """What hard links share."""

    __slots__ = ("owner",)

    def __init__(self, owner: Owner | None) -> None:
        self.owner = owner


class Tree:
    """A merged file tree with owners; a node is [inode, children or None]."""

    __slots__ = ("children", "inode")

    def __init__(self, owner: Owner | None = None, *, directory: bool = True) -> None:
        """Make a directory or another kind of file."""
        self.inode = _Inode(owner)
        self.children: dict[bytes, Tree] | None = {} if directory else None

    def find(self, path: bytes) -> "Tree | None":
        """Return the node of a path, None when there is none."""
        node: Tree | None = self
        for name in path.split(b"/") if path else ():
            node = (node.children or {}).get(name) if node else None
        return node

    def owner(self, path: bytes) -> Owner | None:
        """Return the owner of a path, None when no layer says."""
        node = self.find(path)
        return node.inode.owner if node else None

    def add_layer(self, entries: Iterable[Member]) -> None:
        """Put a layer on top: its whiteouts first, they concern only what is there already."""
        listed = list(entries)
        for entry in listed:
            directory, _, name = entry.path.rpartition(b"/")
            if name.startswith(_WHITEOUT):
                self._white_out(directory, name)
        for entry in listed:
            if not entry.path.rpartition(b"/")[2].startswith(_WHITEOUT):
                self._put(entry)

    def add_squash(self, path: str) -> None:
        """Take over what a squash file says; it becomes the bottom, below every layer added later."""
        with SquashImage.open(path) as image:
            root = image.inode(image.root_ref)
            self.inode = _Inode(Owner(root.uid, root.gid, root.mode))
            inodes: dict[int, _Inode] = {}
            stack = [(self, root)]
            while stack:
                node, directory = stack.pop()
                for entry in image.entries(directory):
                    inode = image.inode(entry.ref)
                    child = Tree(directory=entry.kind == stat.S_IFDIR)
                    owner = Owner(inode.uid, inode.gid, inode.mode)
                    child.inode = inodes.setdefault(inode.number, _Inode(owner))
                    assert node.children is not None
                    node.children[entry.name] = child
                    if entry.kind == stat.S_IFDIR:
                        stack.append((child, inode))

    def _white_out(self, directory: bytes, name: bytes) -> None:
        parent = self.find(directory)
        if parent is None or parent.children is None:
            return
        if name == _OPAQUE:
            parent.children.clear()
        elif not name.startswith(_META):
            parent.children.pop(name.removeprefix(_WHITEOUT), None)

    def _put(self, entry: Member) -> None:
        owner = Owner(entry.uid, entry.gid, entry.mode)
        if not entry.path:
            self.inode = _Inode(owner)
            return
        directory, _, name = entry.path.rpartition(b"/")
        siblings = self._directory(directory)
        if entry.kind == "dir":
            node = siblings.get(name)
            if node is None or node.children is None:
                node = siblings[name] = Tree()
            node.inode = _Inode(owner)
            return
        node = siblings[name] = Tree(owner, directory=False)
        target = self.find(entry.link) if entry.kind == "link" else None
        if target is not None and target.children is None:
            target.inode.owner = owner  # containers-storage chowns through the new name (archive.go, createTarFile)
            node.inode = target.inode

    def _directory(self, path: bytes) -> "dict[bytes, Tree]":
        node = self
        for name in path.split(b"/") if path else ():
            assert node.children is not None
            child = node.children.get(name)
            if child is None or child.children is None:
                child = node.children[name] = Tree()
            node = child
        assert node.children is not None
        return node.children


def merged(records: Iterable[str]) -> Tree:
    """Merge the layers, bottom first; the bottom may be a squash file. StoreError when a record is damaged."""
    tree = Tree()
    for path in records:
        if path.endswith(".squash"):
            tree.add_squash(path)
        else:
            tree.add_layer(tarsplit.members(path))
    return tree


def lost(present: set[int], named: Iterable[int], *, ignored: bool) -> bool:
    """Tell whether the unpacked files may not show the owners the layers named.

    True when Podman was told to ignore errors of chown, or when everything belongs to root although the layers named
    other ids: then it was told so at the time of the pull.
    """
    return ignored or (present <= {0} and any(named))


Restored = tuple[bytes, int, int, int]
"""Path, mode, uid, gid."""


def differences(root: str, tree: Tree) -> list[Restored]:
    """Return (path, mode, uid, gid) for every file below `root` that is not what the layers say."""
    found = []
    for path, info in survey.walk(os.fsencode(root)):
        owner = tree.owner(path)
        if owner is None:
            continue
        mode = stat.S_IMODE(info.st_mode) if stat.S_ISLNK(info.st_mode) else owner.mode
        if (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) != (owner.uid, owner.gid, mode):
            found.append((path, mode, owner.uid, owner.gid))
    return found
