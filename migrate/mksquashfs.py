"""The squashfs writer of the host: what the found binary can do, its command line, its progress, its pseudo files.

Building the command line is pure. Sources: mksquashfs(1) of squashfs-tools 4.4, 4.5.1 and 4.6.1, and trying 4.5.1.
"""

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace

from squashmount import process
from squashmount.errors import ToolError, UsageError

OLDEST = (4, 4)
"""4.4 made reproducible output the default and added -mkfs-time."""
COMPRESSORS = ("gzip", "lz4", "xz", "zstd")
_LEVELS = {"gzip": range(1, 10), "zstd": range(1, 23)}
_INSTALL = "install squashfs-tools (Debian, Fedora, RHEL: package squashfs-tools)"


@dataclass(frozen=True, slots=True)
class Mksquashfs:
    """A binary and what it can do.

    `compressors` is empty when the binary does not list them; `sets_root` means that it has -root-uid, -root-time ….
    """

    path: str
    version: tuple[int, ...]
    compressors: frozenset[str] = frozenset()
    sets_root: bool = True

    @property
    def excludes_xattrs(self) -> bool:
        """-xattrs-exclude exists since 4.6."""
        return self.version >= (4, 6)

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


@dataclass(frozen=True, slots=True)
class Format:
    """What the squash file shall look like. `level` applies to gzip and zstd only; `block` is in bytes."""

    compressor: str = "zstd"
    level: int = 3
    block: int = 131072

    def checked(self) -> "Format":
        """Return it with level 0 where there are none, or raise UsageError for a level the compressor does not have."""
        levels = _LEVELS.get(self.compressor)
        if levels is None:
            return replace(self, level=0)
        if self.level not in levels:
            raise UsageError(f"{self.compressor} has levels {levels[0]} to {levels[-1]}, not {self.level}.")
        return self

    def __str__(self) -> str:
        return f"{self.compressor}-{self.level}" if self.compressor in _LEVELS else self.compressor


def probe(program: str = "mksquashfs", log: process.Log = process.quiet) -> Mksquashfs:
    """Find the binary and ask for its version and compressors; ToolError when missing or older than 4.4."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise ToolError(f"{program} is not installed or not on PATH.", hint=_INSTALL)
    text = "".join(process.run_both(path, "-version", ok=(0, 1), log=log))
    version = parse_version(text)
    if version is None or version < OLDEST:
        raise ToolError(
            f"{path} is too old: squashfs-tools 4.4 or newer is needed.",
            details=text.splitlines()[0] if text else "",
            hint=_INSTALL,
        )
    ask = "-help-all" if version >= (4, 7) else "-h"  # since 4.7 -h names only the sections of the help
    usage = "".join(process.run_both(path, ask, ok=(0, 1), log=log))
    return Mksquashfs(path, version, parse_compressors(usage), "-root-uid" in usage or version >= (4, 6))


def parse_version(text: str) -> tuple[int, ...] | None:
    """Read `mksquashfs version 4.5.1 (2022/03/17)`; distributions append -git or -e4f8a2."""
    found = re.search(r"mksquashfs version (\d+(?:\.\d+)+)", text)
    return tuple(map(int, found[1].split("."))) if found else None


def parse_compressors(usage: str) -> frozenset[str]:
    """Read the names under `Compressors available:` of the usage text."""
    found = re.search(r"Compressors available[^\n]*:\n((?:[ \t]+[a-z0-9]+(?: \(default\))?[ \t]*\n)+)", usage)
    return frozenset(line.split()[0] for line in found[1].splitlines()) if found else frozenset()


def require(binary: Mksquashfs, wanted: Format) -> None:
    """Raise ToolError when the binary was built without the compressor."""
    if binary.compressors and wanted.compressor not in binary.compressors:
        raise ToolError(
            f"{binary.path} {binary} was built without {wanted.compressor}.",
            details="it has: " + ", ".join(sorted(binary.compressors)),
            hint="choose another with --compressor, or " + _INSTALL,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One squash to be made. `xattrs` is `keep`, `none`, or `filter` (4.6 and newer). Times are seconds since 1970.

    `root_owner` is (mode, uid, gid) of `/` when it must be corrected: pseudo definitions cannot (tried with 4.5.1).
    """

    root: str
    output: str
    format: Format
    created: int
    processors: int = 0
    xattrs: str = "keep"
    pseudo_file: str = ""
    pseudo_definitions: tuple[bytes, ...] = ()
    root_owner: tuple[int, int, int] | None = None
    sort_file: str = ""


UNWANTED_XATTRS = (
    r"^(user|trusted)\.overlay\.|^user\.fuseoverlayfs\.|^user\.containers\.|^security\.(selinux|ima|evm|SMACK64.*)$"
)
"""survey.belongs_to says why. The image's own user.* stay, and security.capability does: what mksquashfs reads inside
the user namespace is relative to that namespace (capabilities(7), "Namespaced file capabilities"), and so is what a
mount of the squash inside one shows: the container behaves as with unpacked layers."""


def command(binary: Mksquashfs, run: Run) -> list[str]:
    """Return the command line; -exit-on-error because an unreadable file must not become an empty one."""
    words = [binary.path, run.root, run.output, "-noappend", "-exit-on-error", "-progress", "-reproducible"]
    words += ["-comp", run.format.compressor, "-b", str(run.format.block), "-mkfs-time", str(run.created)]
    if run.format.compressor in _LEVELS:
        words += ["-Xcompression-level", str(run.format.level)]
    if run.processors:
        words += ["-processors", str(run.processors)]
    words += {"keep": ["-xattrs"], "none": ["-no-xattrs"], "filter": ["-xattrs-exclude", UNWANTED_XATTRS]}[run.xattrs]
    if binary.sets_root:  # the mtime of `/` is often the moment of the pull: no header of any layer sets it
        words += ["-root-time", str(run.created)]
    if run.root_owner:
        mode, uid, gid = run.root_owner
        words += ["-root-mode", f"{mode:o}", "-root-uid", str(uid), "-root-gid", str(gid)]
    if run.sort_file:
        words += ["-sort", run.sort_file]
    if run.pseudo_file:
        words += ["-pf", run.pseudo_file]
    for definition in run.pseudo_definitions:
        words += ["-p", os.fsdecode(definition)]
    return words


def sort_list(paths: Iterable[bytes]) -> bytes:
    """Return a sort file: the first path is written first, then the others, then everything that is not named.

    Priorities are 16-bit numbers, those of files that are not named 0 (mksquashfs(1), -sort). What comes after the
    first 32,767 shares the last one. A backslash takes the meaning from the next character (sort.c, read_sort_file:
    white space ends a path, `#` begins a comment), a name with a newline cannot be written.
    """
    named = (path for path in paths if b"\n" not in path)
    return b"".join(b"%s %d\n" % (escape(path), max(32767 - place, 1)) for place, path in enumerate(named))


def modify(path: bytes, mode: int, uid: int, gid: int) -> bytes:
    """Return the pseudo definition that gives `path` (relative to the root) another owner and mode."""
    return b"%s m %o %d %d" % (escape(path), mode & 0o7777, uid, gid)


def escape(path: bytes) -> bytes:
    """Escape a name for a pseudo definition: white space ends a name, `"` quotes, `#` starts a comment line."""
    return re.sub(rb'([ \t\n\v\f\r"\\#])', rb"\\\1", path)


def split_definitions(definitions: Iterable[bytes]) -> tuple[bytes, tuple[bytes, ...]]:
    """Return (text of a pseudo file, definitions that must go on the command line because a name holds a newline)."""
    lines: list[bytes] = []
    words: list[bytes] = []
    for definition in definitions:
        (words if b"\n" in definition else lines).append(definition)
    return b"".join(line + b"\n" for line in lines), tuple(words)


def parse_progress(text: str) -> int | None:
    """Return the last percentage of a piece of the progress bar (`[===/ ] 123/456  27%`), or None."""
    found = re.findall(r"\]\s+\d+/\d+\s+(\d+)%", text)
    return int(found[-1]) if found else None
