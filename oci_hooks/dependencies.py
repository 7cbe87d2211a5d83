"""Whose libraries the injected ones use: for everything they need besides glibc, the image's own file or the host's.

The image's own stays where it has all that is taken of it, which is what the loader asks for. Otherwise the host's
comes into a directory of its own at the front of LD_LIBRARY_PATH, if it can stand for the image's in programs of the
image: nothing of the image is changed, and the set is complete. Libraries of the fabric are the host's in any case.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os.path import dirname, join

from .elf import Symbols
from .libraries import Libraries, Library, is_glibc, split_name
from .plan import PRIVATE, Mount
from .preflight import (
    Finding,
    Findings,
    Verdict,
    check_missing,
    check_versions,
    same_build,
    satisfies,
    stands_for,
    symbols_of,
)
from .verbs import DRIVERS, IBVERBS, read_node, unfit

_FABRIC = re.compile(
    r"lib(fabric|uc[pstm]|psm2|psm_infinipath|cxi|pmi2?|pals|pmix|xpmem|gdrapi|mpi_gtl_\w+|portals|lustreapi|slurm_pmi)"
)
"""Libraries that must fit the host's network and job manager rather than the image, whatever their numbers say."""

VERBS = re.compile(r"lib(ibverbs|rdmacm|ibumad|ibmad|mlx[45]|efa|hns|mana)")
"""rdma-core is one set: libibverbs loads providers of its own build, and mlx5dv works only in the copy that is loaded.
The newer set is taken, as a whole, or the one that knows the cards of this node (`verbs`).
"""

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
        self._forced = {library.name for library in self.extra}
        self._chosen: dict[str, Library] = {}
        self._own: dict[str, Library] = {}
        self._verbs_of_host: bool | None = None
        self._roots = [*self.primaries, *self.extra]
        self._known_symbols: dict[tuple[bool, str], Symbols] = {}

    def place(self) -> Placed:
        """Choose for everything that is needed, check it, and say where it goes."""
        closure = self.host.closure(self._roots)
        self.found.hard += check_missing(
            (name, user) for name, user in closure.missing if not self._only_the_image_has(name, user)
        )
        self._choose({library.name: library for library in self.extra}, self._roots)
        self._choose(closure.libraries, self._roots)
        plugins = self._plugins()
        providers = self._providers()
        self._drop_unused()
        self._check([*self.primaries, *self._chosen.values()])
        mounts = [Mount(library.real, join(PRIVATE, name), create="file") for name, library in self._chosen.items()]
        mounts += [Mount(folder, join(PRIVATE, name), create="dir") for name, folder in plugins.items()]
        mounts += [*providers, *self._pinned()]
        # providers of the image's libfabric are not for the host's: what the image says about them must not stand
        fabric = any(split_name(name)[0] == "libfabric" for name in self._chosen)
        told = "libfabric" in plugins or (fabric and "FI_PROVIDER_PATH" in self.image.environ)
        return Placed(
            tuple(mounts),
            {"LD_LIBRARY_PATH": PRIVATE} if mounts else {},
            {"FI_PROVIDER_PATH": join(PRIVATE, "libfabric")} if told else {},
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
            if VERBS.fullmatch(split_name(name)[0]) and name not in self._forced:
                hosts = own is None or self._takes_verbs(library, libraries)
            else:
                hosts = own is None or self._prefers_host(name, library, own, users)
            if own is None or hosts:
                self._chosen[name] = library
            else:
                self._own[name] = own

    def _only_the_image_has(self, name: str, user: Library) -> bool:
        own = self.image.find(name, wanted_by=user)
        if own is None or self.image.closure([own]).missing:
            return False
        self._own[name] = own
        self.found.reasons.append(f"{own.path} is the image's: the host has no {name}, which {user.path} needs.")
        return True

    def _image_has(self, name: str, library: Library) -> Library | None:
        """Return what programs of the image get for a name: by the run paths of what is replaced, and the loader's."""
        likes = [one for one in self.targets if one.elf.abi == library.elf.abi] or [library]
        return next((own for like in likes if (own := self.image.find(name, wanted_by=like))), None)

    def _prefers_host(self, name: str, library: Library, own: Library, users: list[Library]) -> bool:
        if same_build(library, own):
            return False
        if self._is_fabric(name):
            if not stands_for(library, own):
                why = "it must fit the host's network"
                self.found.warnings.append(
                    f"{library.path} takes the place of the newer {own.path} of the image: {why}."
                )
            return True
        if self._serves(name, own, library, users):
            self.found.reasons.append(f"{own.path} stays the image's: it has all that is needed of {name}.")
            return False
        if not stands_for(library, own):
            evidence = f"the image needs its own {own.path}, and neither can stand for the other"
            self.found.hard.append(Finding(Verdict.ABI_MISMATCH, library.path, evidence, (name,)))
        return True

    def _serves(self, name: str, own: Library, library: Library, users: Iterable[Library]) -> bool:
        """Return whether the image's file has every version (without versions: every symbol) that is taken of ours."""
        users = [user for user in users if name in user.elf.needed]
        if self.image.closure([own]).missing or not satisfies(own, name, users):
            return False
        if own.elf.versions_defined:
            return True
        taken = {symbol for user in users for symbol in self._symbols(self.host, user).undefined}
        return taken & self._symbols(self.host, library).defined <= self._symbols(self.image, own).defined

    def _symbols(self, libraries: Libraries, library: Library) -> Symbols:
        key = (libraries is self.host, library.real)
        if key not in self._known_symbols:
            self._known_symbols[key] = symbols_of(libraries, library)
        return self._known_symbols[key]

    def _takes_verbs(self, library: Library, libraries: Mapping[str, Library]) -> bool:
        """Return whether rdma-core is the host's: decided once, by what is complete and newer."""
        if self._verbs_of_host is None:
            verbs = {name: one for name, one in libraries.items() if VERBS.fullmatch(split_name(name)[0])}
            own = {name: self._image_has(name, one) for name, one in verbs.items()}
            ours = self.image.find(IBVERBS, wanted_by=library)
            complete = ours is not None and self.image.tree.kind(join(dirname(ours.real), "libibverbs")) == "dir"
            as_new = all(one is not None and stands_for(one, verbs[name]) for name, one in own.items())
            lacking = unfit(self.image, ours, read_node(self.host.tree)) if ours and complete and as_new else []
            self._verbs_of_host = not (complete and as_new) or bool(lacking)
            whose = "host's" if self._verbs_of_host else "image's: it is complete and as new as the host's"
            whose += f": {'; '.join(lacking)}" if lacking else ""
            self.found.reasons.append(f"rdma-core (libibverbs, its providers, librdmacm) is the {whose}.")
        return self._verbs_of_host

    def _providers(self) -> list[Mount]:
        """Return the mounts that the host's libibverbs finds its providers by, and choose what those need."""
        library = self._chosen.get(IBVERBS)
        if library is None:
            return []
        folder = join(dirname(library.real), "libibverbs")
        mounts = [Mount(path, path, create="dir") for path in (folder, DRIVERS) if self.host.tree.kind(path) == "dir"]
        names = self.host.tree.listdir(folder) if mounts and mounts[0].source == folder else []
        parts = {name: part for name in names if (part := self.host.load(join(folder, name)))}
        self._choose(self.host.closure(parts.values()).libraries, list(parts.values()))
        # a link that leads out of the directory is broken in the container; then it is looked for by name
        self._chosen |= {name: part for name, part in parts.items() if dirname(part.real) != folder}
        self._roots += parts.values()
        return mounts

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
            self._roots += loaded
        return folders

    def _drop_unused(self) -> None:
        """Leave out what only those of the host's libraries need that the image's own were preferred to."""
        reached = {root.real for root in self._roots}
        waiting = list(self._roots)
        while waiting:
            for name in waiting.pop().elf.needed:
                library = self._chosen.get(name)
                if library is not None and library.real not in reached:
                    reached.add(library.real)
                    waiting.append(library)
        self._chosen = {name: library for name, library in self._chosen.items() if library.real in reached}

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
                users = (*self.primaries, *self._chosen.values())
                if not self._is_fabric(name) and self._serves(name, copy, library, users):
                    continue
                if stands_for(library, copy) or self._is_fabric(name):
                    mounts[copy.real] = Mount(library.real, copy.real, create="none")
                    continue
                evidence = f"{how} leads to {copy.path} of the image, which lacks what is needed and must stay"
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
