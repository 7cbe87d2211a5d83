"""Shared libraries in a tree: where the loader would find a name, and every copy of one wherever it hides.

The loader's own places (its cache, /etc/ld.so.conf, the default directories, run paths, LD_LIBRARY_PATH) are searched
in the order of ld.so(8). Images keep libraries elsewhere too and reach them by run paths: conda, spack, /opt, wheels.
`Libraries.copies` walks these places, within bounds.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from . import loader_conf
from .elf import Elf, NotElfError, read_elf
from .ldcache import CacheError, read_cache
from .listing import matches, names_in
from .tree import Tree

_DEFAULT = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
_GLIBC = re.compile(
    r"(linux-vdso|linux-gate|ld-linux[\w-]*|ld64|ld|lib(c|m|mvec|pthread|dl|rt|resolv|util|anl|nsl|thread_db|BrokenLocale))"
    r"\.so(\.\d+)*"
)
_NAME = re.compile(r"(?P<stem>lib.+)\.so(?P<numbers>(\.\d+)*)")

_SYSTEM = re.compile("bin|boot|dev|etc|lib(32|64|x32)?|media|mnt|proc|run|sbin|sys|tmp|usr|var")
"""Top directories that the walk leaves out: the loader's places below /usr and /lib are searched apart."""
_PRUNED = re.compile(
    "share|include|docs?|man|locale|__pycache__|(site|dist)-packages|node_modules|src|tests?|proc|sys|dev|conda-meta|pkgs|"
    "modules|firmware|debug|gconv|python3.*"
)
_FILES = re.compile(
    r".+\.(pyc?|pyi|h|hpp|hh|c|cc|cpp|f90|mod|o|a|la|pc|cmake|txt|md|rst|json|ya?ml|xml|html|js|css|png|svg|gz|xz|bz2|zip|conf|"
    r"cfg|ini|sh|pl|pm|r|lua|tcl|log|dat|db|whl)",
    re.IGNORECASE,
)
"""Names that are no directories: asking for the kind of every file would be most of the work."""
_MOST_DIRECTORIES = 4000
_MOST_ENTRIES = 100_000
_DEEPEST = 9
_DEEPEST_SYSTEM = 3
_MOST_LIBRARIES = 2000


@dataclass(frozen=True)
class Library:
    """One file: `path` is where it was found, `real` where it lies with every link followed."""

    path: str
    real: str
    elf: Elf

    @property
    def name(self) -> str:
        """What others need it under: the SONAME, or the file's name for plugins without one."""
        return self.elf.soname or os.path.basename(self.path)


@dataclass(frozen=True)
class Closure:
    """All that some libraries need besides glibc, by the name it is needed under; `missing`: (name, who needs it)."""

    libraries: Mapping[str, Library]
    missing: tuple[tuple[str, Library], ...]


def is_glibc(name: str) -> bool:
    """Return whether a name is of the C library's family, which must never be mixed with another one's."""
    return _GLIBC.fullmatch(name) is not None


def split_name(name: str) -> tuple[str, tuple[int, ...]]:
    """Return ("libmpi", (12, 2, 2)) for libmpi.so.12.2.2; ("", ()) when the name is not one of a library."""
    if not (match := _NAME.fullmatch(name)):
        return "", ()
    return match["stem"], tuple(int(number[:9]) for number in match["numbers"].split(".")[1:])


@dataclass
class Libraries:
    """The libraries of one tree. `environ` is the image's environment; `problems` says what could not be read.

    `preferred` are found for their names whatever the loader would take: what has been decided for all of a container.
    """

    tree: Tree
    environ: Mapping[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    preferred: Mapping[str, "Library"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the cache and the configuration; a damaged cache is a problem, not an error."""
        self._elfs: dict[str, Elf | None] = {}
        try:
            self._cache = read_cache(self.tree)
        except (CacheError, OSError) as error:
            self._cache = {}
            self.problems.append(f"{error}".replace("\n", " "))
        self.path = tuple(part for part in self.environ.get("LD_LIBRARY_PATH", "").split(":") if part.startswith("/"))
        configured = loader_conf.read(self.tree)
        self.problems += configured.problems
        self.defaults = tuple(self._distinct([*configured.directories, *self._system_directories()]))

    # -- as the loader --

    def load(self, path: str) -> Library | None:
        """Return the library at a path; None when there is nothing or something else."""
        real = self.tree.resolve(path)
        if real is None:
            return None
        if real not in self._elfs:
            self._elfs[real] = self._read(real)
        elf = self._elfs[real]
        return Library(path, real, elf) if elf else None

    def find(self, name: str, *, wanted_by: Library) -> Library | None:
        """Return what the loader would take for a DT_NEEDED name of `wanted_by`, which is never another machine's."""
        decided = self.preferred.get(name)
        if decided and decided.elf.abi == wanted_by.elf.abi:
            return decided
        for path in self._candidates(name, wanted_by):
            library = self.load(path)
            if library and library.elf.abi == wanted_by.elf.abi:
                return library
        return None

    def closure(self, roots: Iterable[Library]) -> Closure:
        """Return everything the roots need, and what that needs, without glibc."""
        found: dict[str, Library] = {}
        missing: dict[str, Library] = {}
        waiting = list(roots)
        while waiting and len(found) < _MOST_LIBRARIES:
            library = waiting.pop(0)
            for name in library.elf.needed:
                if is_glibc(name) or name in found or name in missing:
                    continue
                other = self.find(name, wanted_by=library)
                if other is None:
                    missing[name] = library
                else:
                    found[name] = other
                    waiting.append(other)
        return Closure(found, tuple(missing.items()))

    def expanded(self, paths: Iterable[str], origins: Iterable[str]) -> Iterator[str]:
        """Yield run path entries with $ORIGIN and $LIB replaced as ld.so does; others that vary are left out."""
        folders = list(origins)
        for path in paths:
            for folder in folders if "ORIGIN" in path else folders[:1]:
                text = path.replace("${ORIGIN}", folder).replace("$ORIGIN", folder)
                for lib in ("lib64", "lib") if "$LIB" in text or "${LIB}" in text else ("",):
                    full = text.replace("${LIB}", lib).replace("$LIB", lib)
                    if full.startswith("/") and "$" not in full:
                        yield full

    def _candidates(self, name: str, wanted_by: Library) -> Iterator[str]:
        if "/" in name:
            yield name
            return
        origins = dict.fromkeys([os.path.dirname(wanted_by.path), os.path.dirname(wanted_by.real)])
        elf = wanted_by.elf
        before = () if elf.runpath else elf.rpath
        for folder in (*self.expanded(before, origins), *self.path, *self.expanded(elf.runpath, origins)):
            yield os.path.join(folder, name)
        # what is for newer processors only cannot be judged from here; every name has a general variant as well
        yield from (path for path in self._cache.get(name, ()) if "/glibc-hwcaps/" not in path)
        for folder in self.defaults:
            yield os.path.join(folder, name)

    def _read(self, real: str) -> Elf | None:
        try:
            with self.tree.open(real) as file:
                return read_elf(file)
        except (NotElfError, OSError) as error:
            # text in the place of a library is the usual linker script
            if isinstance(error, OSError) or "not an ELF file" not in error.brief:
                self.problems.append(f"{real!r}: {error}".replace("\n", " "))
            return None

    def has(self, library: Library) -> bool:
        """Return whether a library was read from this tree."""
        return self._elfs.get(library.real) is library.elf

    # -- everywhere --

    def copies(self, wanted: Callable[[str], bool], *, walk: bool = True) -> list[Library]:
        """Return every library with a wanted file name, each path once; `walk` looks beyond the loader's places too."""
        paths = [path for name, places in self._cache.items() if wanted(name) for path in places]
        for folder in (*self.path, *self.defaults):
            paths += [os.path.join(folder, name) for name in names_in(self.tree, folder) if wanted(name)]
        if walk:
            paths += self._walk(wanted)
        loaded = (self.load(path) for path in dict.fromkeys(paths))
        return [library for library in loaded if library is not None]

    def _walk(self, wanted: Callable[[str], bool]) -> list[str]:
        found: list[str] = []
        seen: set[str] = set()
        waiting = [(folder, 0) for folder in self._prefixes()]
        waiting += [(folder, _DEEPEST - _DEEPEST_SYSTEM) for folder in ("/usr/lib", "/usr/lib64")]
        entries = 0
        while waiting:
            folder, depth = waiting.pop(0)
            real = self.tree.resolve(folder)
            if real is None or real in seen:
                continue
            seen.add(real)
            names = names_in(self.tree, real)
            entries += len(names)
            if len(seen) > _MOST_DIRECTORIES or entries > _MOST_ENTRIES:
                self.problems.append(f"Only the first {len(seen)} directories were searched; {folder!r} was not.")
                break
            found += [os.path.join(real, name) for name in names if wanted(name)]
            if depth < _DEEPEST:
                below = (os.path.join(real, name) for name in names if _may_be_directory(name))
                waiting += [(path, depth + 1) for path in below if self.tree.kind(path) == "dir"]
        return found

    def _prefixes(self) -> list[str]:
        """Return where software lies beyond the distribution's: what is on PATH first, then what else is at the top."""
        found = []
        for part in self.environ.get("PATH", "").split(":"):
            prefix, last = os.path.split(part.rstrip("/"))
            if last in {"bin", "sbin"} and prefix not in {"", "/", "/usr"}:
                found += [os.path.join(prefix, name) for name in ("lib", "lib64")]
        top = [f"/{name}" for name in names_in(self.tree, "/") if not _SYSTEM.fullmatch(name)]
        return [*found, "/opt", "/usr/local", *(path for path in top if self.tree.kind(path) == "dir")]

    def _system_directories(self) -> Iterator[str]:
        for folder in ("/lib", "/usr/lib"):
            # Debian's multiarch directories
            yield from (f"{folder}/{name}" for name in names_in(self.tree, folder) if "-linux-gnu" in name)
        yield from _DEFAULT

    def _distinct(self, folders: Iterable[str]) -> Iterator[str]:
        seen = set()
        for folder in folders:
            real = self.tree.resolve(folder)
            if real is not None and real not in seen:
                seen.add(real)
                yield real

    def matches(self, pattern: str) -> list[str]:
        """As listing.matches."""
        return matches(self.tree, pattern)

    def cached(self, name: str) -> bool:
        """Return whether the loader's cache knows a name."""
        return name in self._cache

    def named(self, soname: str) -> list[Library]:
        """Return the libraries of that name in the cache and the loader's directories, the loader's choice first."""
        paths = [
            *self._cache.get(soname, ()),
            *(os.path.join(folder, soname) for folder in (*self.path, *self.defaults)),
        ]
        loaded = (self.load(path) for path in dict.fromkeys(paths))
        return list({library.real: library for library in reversed([one for one in loaded if one])}.values())[::-1]


def find_libraries(
    tree: Tree, wanted: Iterable[str], *, environ: Mapping[str, str] | None = None
) -> dict[str, list[Library]]:
    """Return every copy in the tree of libraries named like libmpi.so, by that name, whatever version follows it."""
    names = {name.removesuffix(".so"): name for name in wanted}
    found: dict[str, list[Library]] = {name: [] for name in names.values()}
    for library in Libraries(tree, environ or {}).copies(lambda name: split_name(name)[0] in names):
        found[names[split_name(os.path.basename(library.path))[0]]].append(library)
    return found


def _may_be_directory(name: str) -> bool:
    return not (_PRUNED.fullmatch(name) or _FILES.fullmatch(name) or split_name(name)[0])
