"""One library for one name: what several modules bring, and what the host's MPI is linked with, must be the same file.

libfabric is the case: a module lists the network's own (with the cxi provider), and the host's MPI was linked with the
distribution's. Both have the SONAME libfabric.so.1, and in one directory of the container there is place for one. Every
planner of a container comes to the same answer here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os.path import basename, dirname, join
from typing import TYPE_CHECKING

from .dependencies import is_fabric
from .host_libraries import host_libraries
from .libraries import Libraries, Library, split_name
from .mpi import host_mpi
from .plugins import newest
from .preflight import satisfies

if TYPE_CHECKING:
    from .module import Module
    from .planners import Question

LIBFABRIC = "libfabric.so.1"


@dataclass(frozen=True)
class Agreed:
    """The library to use for a name where there are several; `lost` are the others, each with the reason."""

    libraries: Mapping[str, Library] = field(default_factory=dict)
    lost: tuple[tuple[Library, str], ...] = ()

    def instead(self, libraries: Iterable[Library]) -> tuple[Library, ...]:
        """Return the libraries with those that lost exchanged for what is used."""
        chosen = (self.libraries.get(one.name, one) for one in libraries)
        return tuple({one.real: one for one in chosen}.values())

    def reasons(self, used: Iterable[str]) -> list[str]:
        """Return why some libraries lost, as far as they or what is used instead are among these real paths."""
        paths = set(used)
        return [why for one, why in self.lost if {one.real, self.libraries[one.name].real} & paths]


def agreed(question: "Question", host: Libraries) -> Agreed:
    """Return what all modules of a container use where they would bring different files of one name."""
    bringing = [module for module in question.modules if module.libraries or module.planner == "mpich"]
    if len(bringing) < 2:
        return Agreed()
    parts = [_brought(question, module, host) for module in bringing]
    roots = [library for part in parts for library in part]
    # what one part finds for a name may differ from what another finds: each is asked for itself
    closures = [host.closure(part).libraries for part in parts]
    candidates: dict[str, dict[str, Library]] = {}
    for name, library in [*((root.name, root) for root in roots), *(pair for one in closures for pair in one.items())]:
        if is_fabric(name):
            candidates.setdefault(name, {}).setdefault(library.real, library)
    users = [*roots, *(library for one in closures for library in one.values())]
    chosen: dict[str, Library] = {}
    lost: list[tuple[Library, str]] = []
    for name, several in candidates.items():
        if len(several) > 1:
            chosen[name], why = _best(name, list(several.values()), users, host)
            others = [one for one in several.values() if one.real != chosen[name].real]
            lost += [(one, f"{chosen[name].path} is used in the place of {one.path}: {why}.") for one in others]
    return Agreed(chosen, tuple(lost))


def _brought(question: "Question", module: "Module", host: Libraries) -> tuple[Library, ...]:
    """Return the libraries of the host that a module starts from."""
    asked = question._replace(module=module)
    listed = host_libraries(asked, host)
    mpi = tuple(host_mpi(asked, host)) if module.planner == "mpich" else listed.primaries
    return (*mpi, *newest(one for one in listed.others if one not in listed.providers))


def _best(name: str, several: list[Library], users: list[Library], host: Libraries) -> tuple[Library, str]:
    """Return the library to use, and why: it has the provider of this node's network; it serves all; it is newer."""
    pool, why = several, "it is the newer one"
    if name == LIBFABRIC and _has_cxi(host):
        with_cxi = [one for one in several if has_provider(host, one, "cxi")]
        if with_cxi:
            pool, why = with_cxi, "it has the provider cxi, which this node's network needs"
    able = [one for one in pool if satisfies(one, name, users)]
    if able and len(able) < len(pool) == len(several):
        why = "it has all that is needed of it"
    # the first of equals, which a module lists
    return max(able or pool, key=_age), why


def _age(library: Library) -> tuple[int, tuple[int, ...]]:
    return len(library.elf.versions_defined), split_name(basename(library.real))[1]


def _has_cxi(host: Libraries) -> bool:
    try:
        return any(name.startswith("cxi") for name in host.tree.listdir("/dev"))
    except OSError:
        return False


def has_provider(host: Libraries, library: Library, provider: str) -> bool:
    """Return whether a libfabric has a provider: linked in, or as a plugin beside it (fabric(7), FI_PROVIDER_PATH)."""
    if any(name.startswith(f"lib{provider}.so") for name in library.elf.needed):
        return True
    return host.tree.kind(join(dirname(library.real), "libfabric", f"lib{provider}-fi.so")) == "file"
