"""The headers of a layer, from the record containers-storage keeps of its tar stream.

`*.tar-split.gz` (github.com/vbatts/tar-split, tar/storage) is gzipped JSON, one object a line: type 2 holds raw bytes
of the stream (headers and padding, base64), type 1 stands for the contents of a file of `size` bytes. Put together
they are the tar stream with holes where the contents were; `tarfile` reads it as such. No tar header is parsed here.
"""

import base64
import gzip
import io
import json
import posixpath
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from squashmount import jsonio
from squashmount.errors import StoreError

_FILE, _RAW = 1, 2


class Member(NamedTuple):
    """One entry of a layer. Paths are bytes relative to the root, `b""` is the root itself; mode without file type."""

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    link: bytes = b""


class Holed(io.RawIOBase):
    """A seekable read-only file made of byte strings and holes; holes read as zeros."""

    def __init__(self, pieces: Iterable[bytes | int]) -> None:
        """Lay the pieces end to end; an integer is a hole of that many bytes."""
        self._starts: list[int] = []
        self._pieces: list[bytes | int] = []
        self._at = end = 0
        for piece in pieces:
            self._starts.append(end)
            self._pieces.append(piece)
            end += piece if isinstance(piece, int) else len(piece)
        self._end = end

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        stop = self._end if size < 0 else min(self._end, self._at + size)
        parts: list[bytes] = []
        while self._at < stop:
            index = bisect_right(self._starts, self._at) - 1
            piece, inner = self._pieces[index], self._at - self._starts[index]
            length = piece if isinstance(piece, int) else len(piece)
            take = min(stop - self._at, length - inner)
            parts.append(bytes(take) if isinstance(piece, int) else piece[inner : inner + take])
            self._at += take
        return b"".join(parts)


def members(path: str) -> Iterator[Member]:
    """Yield the entries of a layer in stream order. StoreError when the record is damaged."""
    try:
        with gzip.open(path, "rb") as file:
            stream = Holed(list(_pieces(file, path)))
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or a million entries stay in memory
                yield _member(info)
    except FileNotFoundError as err:
        raise StoreError("Podman's record of a layer is missing.", details=path, hint="pull the image again") from err
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as err:
        raise StoreError(f"Podman's record of a layer is damaged: {path}", details=str(err)) from err


def _pieces(file: Iterable[bytes], where: str) -> Iterator[bytes | int]:
    for line in file:
        entry = json.loads(line)
        kind = jsonio.get_int(entry, "type", where=where)
        if kind == _RAW:
            yield base64.b64decode(entry.get("payload") or "")
        elif kind == _FILE:
            size = jsonio.get_int(entry, "size", 0, where=where)
            if size:
                yield size
        else:
            raise ValueError(f"unknown entry of type {kind}")


def _member(info: tarfile.TarInfo) -> Member:
    kind = "dir" if info.isdir() else "symlink" if info.issym() else "link" if info.islnk() else "other"
    link = clean(info.linkname) if kind == "link" else b""
    return Member(clean(info.name), kind, info.mode & 0o7777, info.uid, info.gid, link)


def clean(name: str) -> bytes:
    """Return a tar name as a path relative to the root, the way containers-storage does (filepath.Clean)."""
    path = posixpath.normpath("/" + name.lstrip("/")).lstrip("/")
    return path.encode("utf-8", "surrogateescape")
