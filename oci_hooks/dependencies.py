"""Whose libraries the injected ones use: for everything they need besides glibc, the host's file or the image's own.

The host's go into a directory of their own that comes first in LD_LIBRARY_PATH: nothing of the image is changed, and
the set is complete. The image's own stays where it is the same build or newer, because programs of the image may need
what is new in it. Libraries of the fabric are the host's in any case.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os.path import dirname, join

from .libraries import Libraries, Library, is_glibc, split_name
from .plan import Mount
from .preflight import (
    Finding,
    Findings,
    Verdict,
    check_missing,
    check_versions,
    same_build,
    satisfies,
    stands_for,
)

PRIVATE = "/run/squashmount/lib"

_FABRIC = re.compile(
    r"lib(fabric|uc[pstm]|psm2|psm_infinipath|ibverbs|rdmacm|mlx[45]|efa|cxi|pmi2?|pals|pmix|xpmem|gdrapi|mpi_gtl_\w+|"
    r"portals|lustreapi|slurm_pmi)"
)
"""Libraries that must fit the host's network and job manager rather than the image, whatever their numbers say."""

_PLUGINS = {"libucs": "ucx", "libfabric": "libfabric"}
"""Directories beside a library from which it loads parts of itself."""


def is_fabric(name: str) -> bool:
    """Return whether a library belongs to the host's network or job manager."""
    return _FABRIC.fullmatch(split_name(name)[0]) is not None


@dataclass(frozen=True)
class Placed:
    """The mounts of the dependencies, and the environment that makes them found."""

    mounts: tuple[Mount, ...] = ()
    env_prepend: Mapping[str, str] = field(default_factory=dict)
    env_set: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Dependencies:
    """The choice for one set of host libraries. What stands in its way is added to `found`.

    `primaries` are host libraries that have a place already; `targets` the files of the image they are put over, and
    `extra` more host libraries to bring along by SONAME. `host_glibc`: the container will have the host's C library.
    """

    image: Libraries
    host: Libraries
    primaries: list[Library]
    targets: list[Library]
    found: Findings
    extra: tuple[Library, ...] = ()
    host_glibc: bool = False

    def __post_init__(self) -> None:
        """Start with nothing chosen."""
        self._forced = {library.elf.soname for library in self.extra}
        self._chosen: dict[str, Library] = {}
        self._own: dict[str, Library] = {}

    def place(self) -> Placed:
        """Choose for everything that is needed, check it, and say where it goes."""
        roots = [*self.primaries, *self.extra]
        closure = self.host.closure(roots)
        self.found.hard += check_missing(closure.missing)
        self._choose({library.elf.soname: library for library in self.extra}, roots)
        self._choose(closure.libraries, roots)
        plugins = self._plugins()
        self._check([*self.primaries, *self._chosen.values()])
        mounts = [Mount(library.real, join(PRIVATE, name), create="file") for name, library in self._chosen.items()]
        mounts += [Mount(folder, join(PRIVATE, name), create="dir") for name, folder in plugins.items()]
        mounts += self._pinned()
        return Placed(
            tuple(mounts),
            {"LD_LIBRARY_PATH": PRIVATE} if mounts else {},
            {"FI_PROVIDER_PATH": join(PRIVATE, "libfabric")} if "libfabric" in plugins else {},
        )

    def _choose(self, libraries: Mapping[str, Library], roots: list[Library]) -> None:
        users = [*roots, *libraries.values()]
        ours, replaced = ({library.real for library in group} for group in (self.primaries, self.targets))
        for name, library in libraries.items():
            if name in self._chosen or name in self._own:
                continue
            own = self._image_has(name, library)
            if own is not None and own.real in replaced and library.real in ours:
                continue  # what is put over the image's file is found under this name, too
            if own is None or self._prefers_host(name, library, own, users):
                self._chosen[name] = library
            else:
                self._own[name] = own

    def _image_has(self, name: str, library: Library) -> Library | None:
        """Return what programs of the image get for a name: by the run paths of what is replaced, and the loader's."""
        likes = [one for one in self.targets if one.elf.abi == library.elf.abi] or [library]
        return next((own for like in likes if (own := self.image.find(name, wanted_by=like))), None)

    def _prefers_host(self, name: str, library: Library, own: Library, users: list[Library]) -> bool:
        if same_build(library, own):
            return False
        fabric = self._is_fabric(name)
        if stands_for(library, own):
            # where the image's would do and the host's cannot, the image's
            return fabric or not satisfies(own, name, users) or self._versions(library) is None
        if fabric:
            self.found.warnings.append(
                f"{library.path} takes the place of the newer {own.path} of the image: it must fit the host's network."
            )
            return True
        if satisfies(own, name, users):
            self.found.reasons.append(f"{own.path} stays the image's: it is newer than the host's {library.path}.")
            return False
        evidence = f"the image needs its own {own.path}, and neither can stand for the other"
        self.found.hard.append(Finding(Verdict.ABI_MISMATCH, library.path, evidence, (name,)))
        return True

    def _is_fabric(self, name: str) -> bool:
        return name in self._forced or is_fabric(name)

    def _plugins(self) -> dict[str, str]:
        """Return the directories of parts that chosen libraries load by themselves, and choose what the parts need."""
        folders: dict[str, str] = {}
        for name, library in list(self._chosen.items()):
            folder = _PLUGINS.get(split_name(name)[0], "")
            path = join(dirname(library.real), folder)
            if not folder or self.host.tree.kind(path) != "dir":
                continue
            folders[folder] = path
            parts = [self.host.load(join(path, entry)) for entry in self.host.tree.listdir(path)]
            loaded = [part for part in parts if part is not None and part.elf.abi == library.elf.abi]
            # a part whose needs are not met is passed by when it is to be loaded: what is missing is no error
            self._choose(self.host.closure(loaded).libraries, loaded)
        return folders

    def _check(self, libraries: Iterable[Library]) -> None:
        known = {finding.library for finding in self.found.hard}
        for library in libraries:
            finding = self._versions(library)
            if finding and finding.library not in known:
                known.add(finding.library)
                self.found.hard.append(finding)

    def _versions(self, library: Library) -> Finding | None:
        return check_versions(self.host, library, lambda name: self._provider(name, library))

    def _provider(self, name: str, library: Library) -> Library | None:
        if is_glibc(name) and (not self.host_glibc or self._image_has(name, library) is None):
            return self._image_has(name, library)
        return self._own.get(name) or self.host.find(name, wanted_by=library)

    def _pinned(self) -> list[Mount]:
        """Return mounts over the image's copies that a run path reaches before LD_LIBRARY_PATH."""
        mounts = {}
        replaced = {library.real for library in self.targets}
        for folder, how in self._pinning():
            for name, library in self._chosen.items():
                copy = self.image.load(join(folder, name))
                if copy is None or copy.real in replaced or copy.real in mounts or same_build(copy, library):
                    continue
                if stands_for(library, copy) or self._is_fabric(name):
                    mounts[copy.real] = Mount(library.real, copy.real, create="none")
                    continue
                evidence = f"{how} leads to {copy.path} of the image, which is newer and must stay"
                self.found.hard.append(Finding(Verdict.PINNED_BY_RPATH, library.path, evidence, (copy.real,)))
        return list(mounts.values())

    def _pinning(self) -> list[tuple[str, str]]:
        """Return directories of the image that come before LD_LIBRARY_PATH, with the reason.

        DT_RPATH of the host's libraries does (without DT_RUNPATH, ld.so(8)); and a directory the loader does not know
        is one that programs reach by run paths of their own.
        """
        places = list(dict.fromkeys(dirname(library.real) for library in self.targets))
        known = set(self.image.defaults) | set(self.image.path)
        found = [(place, "the run path that finds the MPI library beside it") for place in places if place not in known]
        for library in (*self.primaries, *self._chosen.values()):
            if library.elf.rpath and not library.elf.runpath:
                folders = self.image.expanded(library.elf.rpath, [PRIVATE, *places])
                found += [(folder, f"the run path of {library.path}") for folder in folders]
        return found
