"""Records what is first needed of an image, and in which order, from the requests that reach a fresh server.

The kernel asks once and remembers, so each request of a server that was started for the recording is a first need.
What is kept while recording is the bare requests; the paths are worked out from the tree at the end.
"""

import errno
import os
import stat
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from squashmount import atomic
from squashmount.errors import DamagedError
from squashmount.layout import staging_beside
from squashmount.lean import Lock, suppress
from squashmount.profile import (
    ABSENT,
    FILE,
    LINK,
    LIST,
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_NAME,
    STAT,
    Need,
    Profile,
    merged,
    placed,
)
from squashmount.runtime import Log

from .tree import ROOT, Tree

LOOKUP, READLINK, READ, READDIR, READDIRPLUS = 1, 5, 15, 28, 44

LEARN_SECONDS = 30.0
"""How long a server records that was not asked to: the start of most programs."""
_LEARNED_FILES = 32
"""`true` needs fewer, and says nothing about what the image is for."""
_MAX_REQUESTS = 400_000
_MAX_LEARNED = 100_000
"""30 MB: a server that records unasked keeps to its memory, too."""
_READ_IN = struct.Struct("=QQI")
_LISTED_FROM = 4
_LISTED_SHARE = 16
"""A listing brings all names in a few requests: worth it from so many needed names on, if they are a sixteenth."""
_MAX_RANGES = 4096
_DEEPEST = 2048
_LONGEST_PATH = 3800


class Request(Protocol):
    """What is recorded of a FUSE request (wire.Request)."""

    @property
    def opcode(self) -> int: ...  # noqa: D102 - named as in fuse.h
    @property
    def node(self) -> int: ...  # noqa: D102
    @property
    def body(self) -> memoryview: ...  # noqa: D102


class Recorder:
    """Called with every request, by any thread, before it is answered."""

    def __init__(self, seconds: float = 0.0) -> None:
        """Record for so many seconds; 0 means until the end."""
        self._until = time.monotonic() + seconds if seconds else 0.0
        self._most = _MAX_LEARNED if seconds else _MAX_REQUESTS
        self._requests: list[tuple[int, int, bytes]] = []  # append is atomic
        self.ended = False

    def __call__(self, request: Request) -> None:
        """Remember one request."""
        if self.ended:
            return
        opcode = request.opcode
        if opcode in {LOOKUP, READLINK, READ, READDIR, READDIRPLUS}:
            self._requests.append((opcode, request.node, bytes(request.body[:300])))
            self.ended = len(self._requests) >= self._most or bool(self._until and time.monotonic() > self._until)

    def profile(self, tree: Tree, *, recorded: str) -> Profile:
        """Stop, and return what was needed. OSError or DamagedError when the tree cannot be read."""
        self.ended = True
        requests, self._requests = self._requests, []
        return _Resolved(tree, requests).profile(recorded)


class Recording:
    """A recorder, and the file its profile becomes."""

    def __init__(self, tree: Tree, places: tuple[str, ...], log: Log, *, seconds: float = 0.0) -> None:
        """Record for the first of `places` that can be written.

        With `seconds` it was not asked for: it replaces none, and one of a program that hardly reads is not kept.
        """
        self.recorder = Recorder(seconds)
        self._tree = tree
        self._places = places
        self._log = log
        self._asked = not seconds
        self._once = Lock()

    def finish(self) -> None:
        """Write the profile; the second call does nothing."""
        if not self._once.acquire(blocking=False):
            return
        try:
            one = self.recorder.profile(self._tree, recorded=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        except (OSError, DamagedError) as err:
            self._log.fail(f"cannot make a profile: {err}")
            return
        if self._asked or len(one.files()) >= _LEARNED_FILES:
            self._write(one)

    def _write(self, one: Profile) -> None:
        for path in self._places:
            try:
                if self._asked:
                    atomic.replace_text(path, one.to_json())
                else:
                    _create(path, one.to_json())
            except OSError as err:
                self._log(f"no profile in {path}: {err}")
            else:
                self._log(f"recorded {len(one.files())} files in {path}")
                return


def _create(path: str, text: str) -> None:
    """Write a file unless it exists: a thousand nodes may start the same image at once."""
    staging = staging_beside(path)
    for directory in {staging, os.path.dirname(path)}:
        if not _is_ours(directory):
            raise PermissionError(errno.EPERM, "it belongs to somebody else", directory)
    if staging == os.path.dirname(path):
        os.makedirs(staging, mode=0o700, exist_ok=True)
    temp = os.path.join(staging, f"learned-{os.urandom(8).hex()}")
    atomic.replace_text(temp, text)
    try:
        with suppress(FileExistsError):
            os.link(temp, path)
    finally:
        os.unlink(temp)


def _is_ours(directory: str) -> bool:
    """Tell whether a directory, or the first above it that exists, is this user's.

    Root must not be led into writing for others, by a store that is theirs or by a home that sudo(8) kept.
    """
    while True:
        try:
            info = os.lstat(directory)
        except FileNotFoundError:
            directory = os.path.dirname(directory)
        else:
            return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


class _Resolved:
    """Requests turned into needs: nodes get the names they were found by."""

    def __init__(self, tree: Tree, requests: list[tuple[int, int, bytes]]) -> None:
        self._tree = tree
        self._names: dict[int, tuple[int, bytes]] = {}
        self._paths: dict[int, bytes | None] = {ROOT: b""}
        self._directories: dict[bytes, int] = {}
        """Path → index, in the order of the first need."""
        self._nodes: list[int] = []
        """Node of each of them."""
        self._needs: dict[tuple[int, str, bytes], int] = {}
        """Directory, kind, name → node, in the order of the first need."""
        self._read: dict[int, list[tuple[int, int]]] = {}
        wanted = {node for _, node, _ in requests}
        for node in dict.fromkeys(node for opcode, node, _ in requests if opcode in {READDIR, READDIRPLUS}):
            self._name_children(node, wanted)
        for opcode, node, body in requests:
            self._add(opcode, node, body)

    def profile(self, recorded: str) -> Profile:
        """Return the needs without those that another one meets."""
        needs: list[Need] = []
        room = MAX_BYTES // 2
        for need in self._fewest():
            room -= 40 + 2 * len(need.name) + 12 * len(need.ranges)
            if len(needs) == MAX_ENTRIES or room < 0:
                break
            needs.append(need)
        return placed(Profile(tuple(self._directories), tuple(needs), recorded=recorded), self._tree.image)

    def _name_children(self, node: int, wanted: set[int]) -> None:
        for name in self._tree.readdir(node, 0):
            if name.node in wanted:
                self._names.setdefault(name.node, (node, name.name))

    def _path(self, node: int) -> bytes | None:
        """Return the path of a node, None when nobody said how it was found (a resumed server)."""
        names: list[bytes] = []
        at = node
        while at not in self._paths and at in self._names and len(names) < _DEEPEST:
            at, name = self._names[at]
            names.append(name)
        top = self._paths.get(at)
        path = None if top is None else b"/".join(part for part in (top, *reversed(names)) if part)
        self._paths[node] = path
        return path

    def _add(self, opcode: int, node: int, body: bytes) -> None:
        if opcode == READ:
            _, offset, size = _READ_IN.unpack_from(body)
            self._read.setdefault(node, []).append((offset, offset + size))
            self._need_of(node, FILE)
        elif opcode == READLINK:
            self._need_of(node, LINK)
        elif opcode == LOOKUP:
            self._need_name(node, body.split(b"\0", 1)[0])
        else:
            self._need(node, LIST, b"", node)

    def _need_of(self, node: int, kind: str) -> None:
        if node in self._names:
            parent, name = self._names[node]
            self._need(parent, kind, name, node)

    def _need_name(self, parent: int, name: bytes) -> None:
        if name in {b".", b".."} or not 0 < len(name) <= MAX_NAME:
            return
        try:
            node, _ = self._tree.lookup(parent, name)
        except FileNotFoundError:
            self._need(parent, ABSENT, name, 0)
        else:
            self._names.setdefault(node, (parent, name))
            self._need(parent, STAT, name, node)

    def _need(self, parent: int, kind: str, name: bytes, node: int) -> None:
        path = self._path(parent)
        if path is None or len(path) > _LONGEST_PATH:
            return
        if path not in self._directories:
            self._directories[path] = len(self._directories)
            self._nodes.append(parent)
        self._needs.setdefault((self._directories[path], kind, name), node)

    def _fewest(self) -> Iterator[Need]:
        listed = self._worth_listing()
        opened = {(directory, name) for directory, kind, name in self._needs if kind in {FILE, LINK}}
        paths = list(self._directories)
        begun: set[int] = set()
        for (directory, kind, name), node in self._needs.items():
            if directory in listed and directory not in begun:
                begun.add(directory)
                yield Need(directory, LIST)
            path = b"/".join(part for part in (paths[directory], name) if part)
            known = directory in listed or (directory, name) in opened or path in self._directories
            ranges = self._ranges(node) if kind == FILE else ()
            if kind in {LINK, ABSENT} or ranges or (kind == STAT and not known):
                yield Need(directory, kind, name, ranges)

    def _worth_listing(self) -> set[int]:
        """Return the directories that were listed, and those of which enough names were looked up one by one."""
        needed = Counter(directory for directory, _ in {(key[0], key[2]) for key in self._needs if key[1] != ABSENT})
        listed = {directory for directory, kind, _ in self._needs if kind == LIST}
        for directory, count in needed.items():
            if directory not in listed and count >= _LISTED_FROM:
                length = sum(1 for _ in self._tree.readdir(self._nodes[directory], 0))
                if length <= _LISTED_SHARE * count:
                    listed.add(directory)
        return listed

    def _ranges(self, node: int) -> tuple[int, ...]:
        size = self._tree.attr(node).size
        pairs = merged((start, min(end, size)) for start, end in self._read.get(node, ()) if start < size)
        return tuple(number for pair in pairs[:_MAX_RANGES] for number in pair)
