"""A profile: what a program needs of an image, in the order in which it first needs it.

Recorded by a server (`server.recording`), replayed when the image is mounted (`server.prefetch`), and the order in
which `mig --profile` lays the files out. It names paths, so it fits every squash file of the image. Whatever it says is
checked when it is read, and at worst useless: nothing outside of the image is ever opened because of it.
"""

import json
import os
from stat import S_IFREG

from . import jsonio
from .errors import StoreError
from .lean import TYPE_CHECKING, NamedTuple, fnv1a

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .squashfs.image import SquashImage

FORMAT = 1
MAX_BYTES = 4 << 20
"""No profile is larger; one that would be ends earlier."""
MAX_ENTRIES = 50_000
MAX_NAME = 255  # NAME_MAX
_MAX_PATH = 4096  # PATH_MAX
_METADATA = 4 << 20
_NEAR = 128 << 10
"""Extents that are so near to each other are read as one: a request to a parallel file system costs more."""

FILE, LIST, STAT, LINK, ABSENT = "f", "l", "s", "k", "n"
"""What is needed: contents of a file, a listing, a name with its attributes, a link's target, that a name is absent."""


class Need(NamedTuple):
    """One thing needed: `directory` is an index into Profile.directories, `name` is empty for a listing.

    `ranges` are start and end, start and end … of the bytes needed of a file, in rising order.
    """

    directory: int
    kind: str
    name: bytes = b""
    ranges: tuple[int, ...] = ()


class Profile(NamedTuple):
    """What was recorded. Directories are paths from the root without a leading slash; the root itself is empty.

    `extents` are (position, size) in the squash file that `squash` names (see `squash_id`), of everything needed.
    """

    directories: tuple[bytes, ...]
    needs: tuple[Need, ...]
    squash: str = ""
    extents: tuple[tuple[int, int], ...] = ()
    recorded: str = ""

    def files(self) -> list[bytes]:
        """Return the paths of the files whose contents are needed, the first needed first, each once."""
        paths = (self.path(need) for need in self.needs if need.kind == FILE)
        return list(dict.fromkeys(paths))

    def order(self) -> str:
        """Return a name for the order of the files: a squash file laid out by it need not be laid out again."""
        return fnv1a(b"\0".join(self.files()))

    def path(self, need: Need) -> bytes:
        """Return the path of what is needed."""
        directory = self.directories[need.directory]
        return b"/".join(part for part in (directory, need.name) if part)

    def file_bytes(self) -> int:
        """Return how many bytes of files are needed."""
        return sum(sum(need.ranges[1::2]) - sum(need.ranges[::2]) for need in self.needs)

    def to_json(self) -> str:
        """Return its text: one line a need, ASCII. Bytes that are no UTF-8 are lone surrogates (PEP 383)."""
        head = {"format": FORMAT, "recorded": self.recorded, "squash": self.squash}
        lines = [json.dumps(head)[:-1]]
        lines.append('"extents": ' + json.dumps(self.extents, separators=(",", ":")))
        lines.append('"directories": [\n' + ",\n".join(json.dumps(_text(path)) for path in self.directories) + "]")
        needs = (json.dumps([need[0], need[1], _text(need[2]), *need[3]], separators=(",", ":")) for need in self.needs)
        return ",\n".join(lines) + ',\n"needs": [\n' + ",\n".join(needs) + "]}\n"


def parse(data: bytes, *, where: str) -> Profile:
    """Read a profile. StoreError when it is damaged, too large, of a newer format, or names what no image can hold."""
    if len(data) > MAX_BYTES:
        raise StoreError(f"{where} is larger than a profile can be.")
    try:
        value = jsonio.load_object(data, where=where)
    except RecursionError as err:  # the parser's answer to a million brackets
        raise StoreError(f"{where} is not valid JSON.") from err
    if jsonio.get_int(value, "format", where=where) != FORMAT:
        raise StoreError(f"{where} was written by another version.", hint="record the profile again")
    try:
        directories = tuple(_checked_path(path) for path in jsonio.get_strs(value, "directories", where=where))
        needs = tuple(_need(item, len(directories)) for item in _list(value.get("needs")))
        extents = tuple(_extent(item) for item in _list(value.get("extents")))
    except (ValueError, TypeError) as err:
        raise StoreError(f"{where} is damaged.", details=str(err), hint="record the profile again") from err
    return Profile(
        directories,
        needs,
        jsonio.get_str(value, "squash", "", where=where),
        extents,
        jsonio.get_str(value, "recorded", "", where=where),
    )


def squash_id(fd: int) -> str:
    """Return what tells a squash file from the other ones of its image: a hash of its superblock (96 bytes)."""
    return fnv1a(os.pread(fd, 96, 0))


def placed(profile: Profile, image: "SquashImage") -> Profile:
    """Return the profile with the extents of what is needed in this squash file: the metadata, and the files' blocks.

    Raises OSError or DamagedError when it cannot be read; files that it does not have are left out.
    """
    block = image.superblock
    found = [(block.inode_table, min(block.bytes_used, block.inode_table + _METADATA))]
    for need in profile.needs:
        inode = image.find(profile.path(need)) if need.kind == FILE else None
        if inode is not None and inode.kind == S_IFREG:
            for start, end in zip(need.ranges[::2], need.ranges[1::2], strict=True):
                found += image.extents(inode, start, end - start)
    extents = tuple((start, end - start) for start, end in merged(found, _NEAR)[:MAX_ENTRIES])
    return profile._replace(squash=squash_id(image.fileno()), extents=extents)


def merged(ranges: "Iterable[tuple[int, int]]", gap: int = 0) -> list[tuple[int, int]]:
    """Return (start, end) pairs sorted, those that touch or are at most `gap` bytes apart as one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1] + gap:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _list(value: object) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise ValueError("a list is missing or too long")
    return value


def _checked_path(text: str) -> bytes:
    path = text.encode("utf-8", "surrogateescape")
    if len(path) > _MAX_PATH or (path and not all(_is_name(name) for name in path.split(b"/"))):
        raise ValueError(f"{path[:100]!r} is not a path from the root")
    return path


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= MAX_NAME and name not in {b".", b".."} and b"/" not in name and b"\0" not in name


def _need(item: object, directories: int) -> Need:
    if not isinstance(item, list) or len(item) < 3:
        raise ValueError("a need is not a list of directory, kind and name")
    directory, kind, text, *numbers = item
    if kind not in {FILE, LIST, STAT, LINK, ABSENT} or not isinstance(text, str):
        raise ValueError(f"a need of the kind {kind!r}")
    if not _is_number(directory) or directory >= directories:
        raise ValueError(f"there is no directory {directory!r}")
    name = text.encode("utf-8", "surrogateescape")
    if not _is_name(name) and (kind != LIST or name):
        raise ValueError(f"{name[:100]!r} is not a name")
    rising = all(_is_number(number) for number in numbers) and numbers == sorted(set(numbers))
    if len(numbers) % 2 or not rising:
        raise ValueError(f"the ranges of {name!r} do not rise")
    return Need(directory, kind, name, tuple(numbers))


def _extent(item: object) -> tuple[int, int]:
    if not isinstance(item, list) or len(item) != 2 or not all(map(_is_number, item)):
        raise ValueError("an extent is not a position and a size")
    return item[0], item[1]


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
