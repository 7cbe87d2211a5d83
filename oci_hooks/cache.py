"""Plans that were made before: a plan costs 100 ms where an MPI is swapped, looking whether it still holds costs 2.

A plan is remembered with everything it was made from: the image (by its layers), the modules, and every file of the
host and every variable that was looked at while it was made (`Watch`). What was looked at and was not there counts.
A container whose own layer may have changed what the image has (libraries installed before a restart) is planned anew.
"""

import binascii
import os
import stat

from squashmount.errors import UsageError
from squashmount.lean import TYPE_CHECKING, Any, Iterator, NamedTuple

from .leanjson import dumps, loads
from .plan import Plan, from_json, to_json

if TYPE_CHECKING:
    from typing import BinaryIO

    from .catalogue import Catalogue
    from .selection import Selection
    from .tree import DirectoryTree, Target

FORMAT = 4
KEPT = 64
_LIMIT = 1 << 16  # bytes of a file in /proc or /sys
_NO_LIBRARIES = frozenset({"etc", "run", "proc", "sys", "dev", "tmp"})
_LINKER = frozenset({"ld.so.cache", "ld.so.conf", "ld.so.conf.d"})
_EVERYTHING = "*"


class WatchedVariables(dict[str, str]):
    """A dictionary that remembers what was asked of it."""

    def __init__(self, values: dict[str, str]) -> None:
        """Take the values; nothing was asked yet."""
        super().__init__(values)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> str:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As dict.get."""
        self.asked.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self.asked.add(_EVERYTHING)
        return super().__iter__()

    def keys(self) -> Any:
        """As dict.keys."""
        self.asked.add(_EVERYTHING)
        return super().keys()

    def values(self) -> Any:
        """As dict.values."""
        self.asked.add(_EVERYTHING)
        return super().values()

    def items(self) -> Any:
        """As dict.items."""
        self.asked.add(_EVERYTHING)
        return super().items()

    def answers(self) -> dict[str, str | None]:
        """Return what was asked with what was said; None for what is not there."""
        return _answers(self, self.asked)


def _answers(values: Any, asked: Any) -> dict[str, str | None]:
    if _EVERYTHING in asked:
        return {_EVERYTHING: _answer(values, _EVERYTHING)}
    return {key: _answer(values, key) for key in sorted(map(str, asked))}


def _answer(values: Any, key: str) -> str | None:
    if not key.endswith(_EVERYTHING):
        return dict.get(values, key)
    # a planner was given all that begin so
    return "\0".join(sorted(f"{name}={value}" for name, value in dict.items(values) if name.startswith(key[:-1])))


class WatchedTree:
    """The host's files; remembers every path that was looked at."""

    def __init__(self, tree: "DirectoryTree") -> None:
        """Look at `tree`, which stays the caller's."""
        self._tree = tree
        self.asked: set[str] = set()
        self.listed: set[str] = set()

    def resolve(self, path: str) -> str | None:
        """As Tree.resolve."""
        self.asked.add(path)
        return self._tree.resolve(path)

    def trouble(self, path: str) -> str:
        """As Tree.trouble."""
        self.asked.add(path)
        return self._tree.trouble(path)

    def target(self, path: str) -> "Target":
        """As Tree.target."""
        self.asked.add(path)
        return self._tree.target(path)

    def open(self, path: str) -> "BinaryIO":
        """As Tree.open."""
        self.asked.add(path)
        return self._tree.open(path)

    def listdir(self, path: str) -> list[str]:
        """As Tree.listdir."""
        self.listed.add(path)
        return self._tree.listdir(path)

    def kind(self, path: str) -> str:
        """As Tree.kind."""
        self.asked.add(path)
        return self._tree.kind(path)

    def size(self, path: str) -> int:
        """As Tree.size."""
        self.asked.add(path)
        return self._tree.size(path)


class Watch(NamedTuple):
    """What a plan is made from, watched while it is made."""

    host: WatchedTree
    environ: WatchedVariables
    env: WatchedVariables
    annotations: WatchedVariables


def image_key(root: str) -> str:
    """Return what stands for the image below a container's root file system; "" when that cannot be told.

    `root` is <graphroot>/overlay/<layer>/merged. The layers below are named by `lower` (Podman 4, 5) or `lower-layers`
    (6); names of layers are random, or derived from the image, and layers never change.
    """
    layer, name = os.path.split(root)
    if name != "merged":
        return ""
    try:
        own = set(os.listdir(os.path.join(layer, "diff")))
        if not own <= _NO_LIBRARIES or ("etc" in own and _LINKER & set(os.listdir(os.path.join(layer, "diff", "etc")))):
            return ""
        for lower in ("lower-layers", "lower"):
            path = os.path.join(layer, lower)
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
    return ""


class Remembered(NamedTuple):
    """Where the plan for one question is kept, and the question itself."""

    path: str
    key: list[Any]


def place(state: str, root: str, known: "Catalogue", selection: "Selection") -> Remembered | None:
    """Return where a plan is kept; None when it cannot be."""
    image = image_key(root)
    if not image or not state:
        return None
    key = [FORMAT, image, known.digest, list(selection.why), list(selection.rejected)]
    name = f"{binascii.crc32(image.encode()):08x}{binascii.crc32(dumps(key)):08x}.json"
    return Remembered(os.path.join(state, "hook-plans", name), key)


def recall(
    where: Remembered,
    environ: dict[str, str],
    env: dict[str, str],
    annotations: dict[str, str],
    passed: dict[str, str],
) -> Plan | None:
    """Return the plan if everything it was made from is as it was; with the variables `passed` on now."""
    try:
        with open(where.path, "rb") as file:
            kept = loads(file.read(), where=where.path)
        same = (
            kept["key"] == where.key
            and kept["environ"] == _answers(environ, kept["environ"])
            and kept["env"] == _answers(env, kept["env"])
            and kept["annotations"] == _answers(annotations, kept["annotations"])
            and all(_stamp(path) == before for path, before in kept["files"].items())
            and all(_stamp(path, listed=True) == before for path, before in kept["listed"].items())
        )
        if not same:
            return None
        return from_json(kept["plan"])._replace(env_set={**kept["fixed"], **passed, **kept["fixed"]})
    except (OSError, UsageError, KeyError, TypeError, AttributeError, ValueError):
        return None


def remember(where: Remembered, plan: Plan, watch: Watch) -> None:
    """Keep a plan. What cannot be written is made anew the next time."""
    from squashmount import atomic  # noqa: PLC0415 - only after a plan was made

    kept = {
        "key": where.key,
        "environ": watch.environ.answers(),
        "env": watch.env.answers(),
        "annotations": watch.annotations.answers(),
        "files": {path: _stamp(path) for path in sorted(watch.host.asked)},
        "listed": {path: _stamp(path, listed=True) for path in sorted(watch.host.listed)},
        # what is set stands before what is passed on, also when the job has it another time
        "fixed": {name: value for name, value in plan.env_set.items() if name not in plan.passed},
        "plan": to_json(plan),
    }
    folder = os.path.dirname(where.path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        atomic.replace_text(where.path, dumps(kept).decode(), mode=0o600)
        names = [os.path.join(folder, name) for name in os.listdir(folder)]
        for path in sorted(names, key=lambda path: os.lstat(path).st_mtime_ns)[: max(len(names) - KEPT, 0)]:
            os.unlink(path)
    except OSError:
        return


def _stamp(path: str, *, listed: bool = False) -> Any:
    """Return what changes when a file does; None for one that is not there."""
    try:
        status = os.stat(path)
        if path.startswith(("/proc/", "/sys/")):
            # their times are those of the last look
            return _content(path, status.st_mode)
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(status.st_mode) and not listed:
        return [status.st_ino, status.st_dev]
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev]


def _content(path: str, mode: int) -> Any:
    if stat.S_ISDIR(mode):
        return sorted(os.listdir(path))
    if not stat.S_ISREG(mode):
        return mode
    with open(path, "rb") as file:
        return file.read(_LIMIT).decode(errors="backslashreplace")
