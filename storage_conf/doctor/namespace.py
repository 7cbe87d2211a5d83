"""Work in a user and mount namespace made as rootless Podman makes its own: a child, newuidmap, newgidmap.

Source of the order and the arguments: podman pkg/rootless/rootless_linux.go (becomeRootInUserNS, tryMappingTool).
"""

import json
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from squashmount import linux
from squashmount.errors import ToolError
from squashmount.process import run

from .node import Node

Ranges = Sequence[tuple[int, int]]
"""(start, count) of each subordinate range."""


_UNSHARED = b"unshared"


class NamespaceError(Exception):
    """The namespace cannot be made: which step failed, what it said, its errno where the kernel refused."""

    def __init__(self, step: str, text: str, code: int = 0) -> None:
        """Keep the parts apart: the cause is looked up by them."""
        super().__init__(f"{step}: {text}")
        self.step = step
        self.text = text
        self.code = code


class IdMaps(NamedTuple):
    """What newuidmap and newgidmap are asked for; without ranges Podman goes on with one id."""

    uid: int
    gid: int
    uids: Ranges = ()
    gids: Ranges = ()

    @property
    def single(self) -> bool:
        """Tell whether only the user's own id is mapped: Podman does so when either kind is missing."""
        return not (self.uids and self.gids)


def podman_arguments(own: int, ranges: Ranges) -> list[str]:
    """Return the triples Podman gives: its own id as 0, then the ranges by start from 1 on."""
    words, inside = ["0", str(own), "1"], 1
    for start, count in sorted(ranges):
        words += [str(inside), str(start), str(count)]
        inside += count
    return words


def in_namespace(node: Node, maps: IdMaps, work: Callable[[], Any]) -> Any:
    """Return what `work` returns (JSON) in a child in the namespace. NamespaceError when there is none."""
    with _Child(work) as child:
        if maps.single or maps.uid == 0:
            child.let_go("single" if maps.uid else "root")
        else:
            map_ids(node, "newuidmap", child.pid, podman_arguments(maps.uid, maps.uids))
            map_ids(node, "newgidmap", child.pid, podman_arguments(maps.gid, maps.gids))
            child.let_go("mapped")
        return child.result()


def try_map(node: Node, program: str, arguments: Sequence[str]) -> str | None:
    """Ask for a map in a namespace nobody uses: None when it is granted, else what the program says.

    NamespaceError when there is no namespace.
    """
    with _Child(lambda: None) as child:
        try:
            map_ids(node, program, child.pid, arguments)
        except NamespaceError as err:
            return err.text
    return None


def map_ids(node: Node, program: str, pid: int, arguments: Sequence[str]) -> None:
    """Call newuidmap or newgidmap. NamespaceError with its words."""
    try:
        run(program, str(pid), *arguments, env=dict(node.environ), timeout=4.0)
    except ToolError as err:
        raise NamespaceError(program, f"{err.brief}\n{err.details}" if err.details else err.brief) from err


class _Child:
    """A process in new namespaces that waits for its id map. At the end of the block it is gone."""

    def __init__(self, work: Callable[[], Any]) -> None:
        go_reader, self._go = os.pipe2(os.O_CLOEXEC)
        self._said, said_writer = os.pipe2(os.O_CLOEXEC)
        ids = os.getuid(), os.getgid()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.close(self._said)
            linux.die_with_parent(parent)
            _be_child(work, go_reader, said_writer, ids)
        os.close(go_reader)
        os.close(said_writer)

    def __enter__(self) -> Self:
        first = os.read(self._said, 64)
        if first != _UNSHARED:
            self.__exit__()
            code = int(first or b"0")
            raise NamespaceError("unshare", os.strerror(code), code)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._go)  # a child that waits ends
        os.close(self._said)
        os.waitpid(self.pid, 0)

    def let_go(self, word: str) -> None:
        os.write(self._go, word.encode())

    def result(self) -> Any:
        data = b""
        while part := os.read(self._said, 1 << 16):
            data += part
        said: Any = json.loads(data) if data else {"bug": "it died"}
        if "bug" in said:
            raise RuntimeError(said["bug"])
        if "code" in said:
            raise NamespaceError("namespace", os.strerror(said["code"]), said["code"])
        return said["result"]


def _be_child(work: Callable[[], Any], go: int, said: int, ids: tuple[int, int]) -> None:
    """Be the child: never returns."""
    try:
        try:
            linux.unshare(linux.CLONE_NEWNS | (linux.CLONE_NEWUSER if ids[0] else 0))
        except OSError as err:
            os.write(said, str(err.errno).encode())
            return
        os.write(said, _UNSHARED)
        if word := os.read(go, 16):
            _write_all(said, json.dumps(_outcome(work, ids if word == b"single" else None)).encode())
    finally:
        os._exit(0)


def _outcome(work: Callable[[], Any], own_ids: tuple[int, int] | None) -> Any:
    try:
        if own_ids:
            _map_one(*own_ids)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        return {"result": work()}
    except OSError as err:
        return {"code": err.errno}
    except Exception:  # noqa: BLE001 - the parent tells it
        return {"bug": traceback.format_exc()}


def _map_one(uid: int, gid: int) -> None:
    # user_namespaces(7): a process without privilege writes its gid map only after it gave up setgroups(2)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _write_all(writer: int, data: bytes) -> None:
    while data:
        data = data[os.write(writer, data) :]
